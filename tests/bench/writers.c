/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writers ROOT COUNT RATE SECONDS
 *
 * COUNT databases in WAL mode and COUNT with a rollback journal (ROOT/wal/NN.db,
 * ROOT/rollback/NN.db, made where they are missing), each with a process of its own that
 * commits RATE times a second for SECONDS, as applications do: synchronous is SQLite's
 * default, busy_timeout 0. Measures each transaction from BEGIN IMMEDIATE until COMMIT
 * has returned, those of the first two seconds apart, and prints for each mode
 *
 *	MODE P50_US P99_US MOST_US COMMITS BUSY
 *
 * BUSY: transactions that met SQLITE_BUSY; they are given up, and not measured.
 */
#include "bench.h"

#include <sqlite3.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#define WRITERS_MAX 64
#define SAMPLES_MAX 100000
#define WARM_UP_S 2
#define ROWS 100

/* Of one writer, shared with the parent. */
struct samples {
	uint32_t us[SAMPLES_MAX];
	uint32_t count, busy;
};

static const char *const modes[2] = { "wal", "rollback" };

static void run(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL)) {
		die(sql, sqlite3_errmsg(db));
	}
}

static sqlite3 *open_db(const char *root, int mode, long number)
{
	char path[4096], sql[300];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/%s/%02ld.db", root, modes[mode], number);
	if (sqlite3_open(path, &db)) {
		die(path, sqlite3_errmsg(db));
	}
	run(db, mode == 0 ? "PRAGMA journal_mode=WAL" : "PRAGMA journal_mode=DELETE");
	(void)snprintf(sql, sizeof(sql),
		       "CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, note TEXT);"
		       "INSERT OR IGNORE INTO item WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL "
		       "SELECT i + 1 FROM n WHERE i < %d) SELECT i, hex(randomblob(80)) FROM n",
		       ROWS - 1);
	run(db, sql);
	return db;
}

static int64_t now_ns(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void sleep_until(int64_t at_ns)
{
	struct timespec at = { .tv_sec = at_ns / 1000000000, .tv_nsec = at_ns % 1000000000 };
	(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}

/* One transaction; 0, or 1 if it met SQLITE_BUSY. */
static int commit(sqlite3 *db, sqlite3_stmt *update, int row)
{
	int rc = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
	if (!rc) {
		(void)sqlite3_bind_int(update, 1, row);
		rc = sqlite3_step(update);
		(void)sqlite3_reset(update);
		rc = rc == SQLITE_DONE ? sqlite3_exec(db, "COMMIT", NULL, NULL, NULL) : rc;
	}
	if (!rc) {
		return 0;
	}
	if (rc != SQLITE_BUSY) {
		die("a transaction", sqlite3_errmsg(db));
	}
	if (!sqlite3_get_autocommit(db)) {
		run(db, "ROLLBACK");
	}
	return 1;
}

static void write_paced(sqlite3 *db, int64_t start_ns, int64_t period_ns, int64_t end_ns,
			struct samples *samples)
{
	sqlite3_stmt *update;
	if (sqlite3_prepare_v2(db, "UPDATE item SET note = hex(randomblob(80)) WHERE id = ?1", -1,
			       &update, NULL)) {
		die("prepare", sqlite3_errmsg(db));
	}
	int64_t warm_ns = start_ns + WARM_UP_S * INT64_C(1000000000);
	int row = 0;
	for (int64_t at_ns = start_ns; at_ns < end_ns; row = (row + 37) % ROWS) {
		sleep_until(at_ns);
		int64_t from_ns = now_ns();
		int busy = commit(db, update, row);
		int64_t until_ns = now_ns();
		if (from_ns >= warm_ns && busy) {
			samples->busy++;
		} else if (from_ns >= warm_ns && samples->count < SAMPLES_MAX) {
			samples->us[samples->count++] = (uint32_t)((until_ns - from_ns) / 1000);
		}
		do { /* what is late is left out */
			at_ns += period_ns;
		} while (at_ns < until_ns);
	}
	(void)sqlite3_finalize(update);
}

static int compare(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

static void report(const char *mode, const struct samples *samples, long count)
{
	uint32_t *all = malloc(sizeof(*all) * SAMPLES_MAX * (size_t)count);
	size_t n = 0;
	unsigned int busy = 0;
	if (!all) {
		die_errno("malloc");
	}
	for (long i = 0; i < count; i++) {
		memcpy(all + n, samples[i].us, samples[i].count * sizeof(*all));
		n += samples[i].count;
		busy += samples[i].busy;
	}
	if (n < 100) {
		die(mode, "has less than 100 commits");
	}
	qsort(all, n, sizeof(*all), compare);
	printf("%s %u %u %u %zu %u\n", mode, all[n / 2], all[n * 99 / 100], all[n - 1], n, busy);
	free(all);
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		die("usage", "writers ROOT COUNT RATE SECONDS");
	}
	long count = to_long(argv[2], 1, WRITERS_MAX), rate = to_long(argv[3], 1, 1000);
	long seconds = to_long(argv[4], WARM_UP_S + 1, 3600);
	size_t len = sizeof(struct samples) * 2 * (size_t)count;
	struct samples *samples =
		mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (samples == MAP_FAILED) {
		die_errno("mmap");
	}
	for (int mode = 0; mode < 2; mode++) {
		char path[4096];
		(void)snprintf(path, sizeof(path), "%s/%s", argv[1], modes[mode]);
		if (mkdir(path, 0755) && errno != EEXIST) {
			die_errno(path);
		}
	}
	int64_t period_ns = 1000000000 / rate;
	int64_t start_ns = now_ns() + 1000000000; /* by then all have begun */
	for (long i = 0; i < 2 * count; i++) {
		pid_t pid = fork();
		if (pid < 0) {
			die_errno("fork");
		}
		if (pid == 0) {
			(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
			sqlite3 *db = open_db(argv[1], (int)(i / count), i % count);
			/* spread over a period */
			write_paced(db, start_ns + period_ns * i / (2 * count), period_ns,
				    start_ns + seconds * INT64_C(1000000000), &samples[i]);
			exit(sqlite3_close(db) ? 1 : 0);
		}
	}
	int status, failed = 0;
	while (wait(&status) > 0) {
		failed |= status;
	}
	if (failed) {
		die("a writer", "failed");
	}
	report(modes[0], samples, count);
	report(modes[1], samples + count, count);
	return 0;
}
