/* SPDX-License-Identifier: Apache-2.0 */
/*
 * changer ROOT COUNT PER_DIRECTORY STEP
 *
 * The application of every STEP-th of the COUNT databases that fleet.c has made below ROOT:
 * a connection to each in WAL mode, which stays open. For every line on standard input it
 * commits once in each, and answers with the number of commits.
 */
#include "bench.h"

#include <sqlite3.h>
#include <sys/resource.h>

#define DATABASES_MAX 100000

static void run(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL)) {
		die(sql, sqlite3_errmsg(db));
	}
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		die("usage", "changer ROOT COUNT PER_DIRECTORY STEP");
	}
	long count = to_long(argv[2], 1, 10000000), per_directory = to_long(argv[3], 1, 1000000);
	long step = to_long(argv[4], 1, 1000000), open_count = 0;
	static sqlite3 *all[DATABASES_MAX];
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files)) {
		die_errno("getrlimit");
	}
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files)) {
		die_errno("setrlimit");
	}
	for (long i = 0; i < count && open_count < DATABASES_MAX; i += step, open_count++) {
		char path[4096];
		(void)snprintf(path, sizeof(path), "%s/g%05ld/t%07ld.db", argv[1],
			       i / per_directory, i);
		if (sqlite3_open(path, &all[open_count])) {
			die(path, sqlite3_errmsg(all[open_count]));
		}
		run(all[open_count],
		    "PRAGMA cache_size=10; PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL");
	}
	char line[16];
	while (fgets(line, sizeof(line), stdin)) {
		for (long i = 0; i < open_count; i++) {
			run(all[i], "UPDATE person SET note = hex(randomblob(40)) WHERE id = 60");
		}
		printf("%ld\n", open_count);
		(void)fflush(stdout);
	}
	return 0;
}
