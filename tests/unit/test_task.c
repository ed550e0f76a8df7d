/* SPDX-License-Identifier: Apache-2.0 */
/* Tasks through the public header: a fleet of real databases, a directory as target. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../csrc/include/ultrasimple.h"
#include "scratch.h"

#define COUNT 60
#define ROWS 64

static char root[SCRATCH_LEN];
static struct us_row *rows; /* what the last task gave, all of it */
static size_t row_count;
static struct us_progress progress;
static struct us_error error;

static const char *in_root(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *in_root(const char *format, ...)
{
	static char paths[8][1200];
	static unsigned at;
	char *path = paths[at++ % 8];
	va_list args;
	int len = snprintf(path, sizeof(paths[0]), "%s/", root);
	va_start(args, format);
	(void)vsnprintf(path + len, sizeof(paths[0]) - (size_t)len, format, args);
	va_end(args);
	return path;
}

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
	char command[4000];
	va_list args;
	int len = snprintf(command, sizeof(command), "cd '%s' && ", root);
	va_start(args, format);
	(void)vsnprintf(command + len, sizeof(command) - (size_t)len, format, args);
	va_end(args);
	FILE *p = popen(command, "r");
	assert_non_null(p);
	assert_int_equal(pclose(p), 0);
}

static void write_db(const char *path, int number, int fill)
{
	sqlite3 *db;
	char sql[400];
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	(void)snprintf(sql, sizeof(sql),
		       "PRAGMA journal_mode=%s; CREATE TABLE IF NOT EXISTS t (n, body);"
		       "INSERT INTO t VALUES (%d, hex(randomblob(%d)))",
		       number % 2 ? "wal" : "delete", number, fill);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static const char *db_name(int i)
{
	static char name[2][64];
	(void)snprintf(name[i % 2], sizeof(name[0]), "data/org%d/t%03d.db", i % 4, i);
	return name[i % 2];
}

static struct us *open_us(uint32_t flags, uint64_t memory_limit)
{
	struct us_error err = { .struct_size = sizeof(err) };
	const struct us_options options = {
		.struct_size = sizeof(options),
		.flags = flags | US_OPEN_ANY_FILESYSTEM,
		.discovery_pattern = in_root("data/*/*.db"),
		.path = "b/{{org}}/{{name}}",
		.state_dir = in_root("state"),
		.target = US_TARGET_FILE,
		.directory = in_root("target"),
		.memory_limit_bytes = memory_limit,
	};
	struct us *us;
	int32_t rc = us_open(&options, &us, &err);
	if (rc) {
		print_error("%s\n", err.message);
	}
	assert_int_equal(rc, 0);
	return us;
}

static void sync_all(void)
{
	struct us *us = open_us(0, 0);
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	assert_int_equal(us_cycle(us, &result, NULL), 0);
	assert_int_equal(result.failed, 0);
	us_close(us);
}

static int setup(void **state)
{
	(void)state;
	if (scratch_dir(root)) {
		return -1;
	}
	for (int i = 0; i < 4; i++) {
		shell("mkdir -p data/org%d", i);
	}
	for (int i = 0; i < COUNT; i++) {
		write_db(in_root("%s", db_name(i)), i, i == 7 ? 3 << 20 : 100 + 137 * i);
		assert_int_equal(chmod(in_root("%s", db_name(i)), i % 3 ? 0640 : 0604), 0);
	}
	shell("sleep 0.05; cp -a data kept"); /* older than a tick */
	sync_all();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free(rows);
	rows = NULL;
	row_count = 0;
	shell("rm -rf '%s'", root);
	return 0;
}

/* Runs a task to its end. Returns its code. */
static int32_t run_with(struct us *us, const struct us_task_options *options)
{
	struct us_task *task;
	error = (struct us_error){ .struct_size = sizeof(error) };
	int32_t rc = us_task_start(us, options, &task, &error);
	row_count = 0;
	if (rc) {
		return rc;
	}
	size_t cap = 0;
	do {
		if (row_count + ROWS > cap) {
			cap = row_count + 4 * ROWS;
			rows = realloc(rows, cap * sizeof(*rows));
			assert_non_null(rows);
		}
		progress = (struct us_progress){ .struct_size = sizeof(progress) };
		rc = us_task_next(task, 1000, rows + row_count, ROWS, &progress, &error);
		row_count += rc > 0 ? (size_t)rc : 0;
	} while (rc >= 0 && !progress.finished);
	us_task_close(task);
	return rc < 0 ? rc : 0;
}

static int32_t run(const struct us_task_options *options)
{
	struct us *us = open_us(US_OPEN_READ_ONLY, 0);
	int32_t rc = run_with(us, options);
	us_close(us);
	return rc;
}

#define RUN(...) \
	run(&(const struct us_task_options){ .struct_size = sizeof(struct us_task_options), \
					     __VA_ARGS__ })

static const struct us_row *row_of(const char *path)
{
	for (size_t i = 0; i < row_count; i++) {
		if (strcmp(rows[i].path, path) == 0) {
			return &rows[i];
		}
	}
	return NULL;
}

static size_t count_status(uint32_t status)
{
	size_t count = 0;
	for (size_t i = 0; i < row_count; i++) {
		count += rows[i].status == status;
	}
	return count;
}

/* The object of data/orgO/tN.db; there is one for each. */
static const char *object_of(int i)
{
	static char path[1200];
	const char *dir = in_root("target/b/org%d/t%03d", i % 4, i);
	DIR *d = opendir(dir);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] != '.') {
			(void)snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		}
	}
	closedir(d);
	return path;
}

/* Every database of TREE is what `kept` has, with its mode, and nothing else is there. */
static void assert_tree(const char *tree, int count)
{
	shell("test $(find '%s' -type f | wc -l) = %d", tree, count);
	shell("cd '%s' && find . -type f | while read -r f; do"
	      " a=$(sqlite3 \"$f\" 'PRAGMA integrity_check; SELECT n, body FROM t' | sha256sum) &&"
	      " b=$(sqlite3 \"%s/kept/$f\" 'PRAGMA integrity_check; SELECT n, body FROM t' | "
	      "sha256sum) &&"
	      " test \"$a\" = \"$b\" && test $(stat -c %%a \"$f\") = $(stat -c %%a \"%s/kept/$f\") "
	      "|| exit 1;"
	      " done",
	      tree, root, root);
}

static void test_restore_all(void **state)
{
	(void)state;
	shell("rm -rf data");
	assert_int_equal(RUN(.kind = US_TASK_RESTORE), 0);
	assert_int_equal(row_count, COUNT);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	assert_int_equal(progress.done_count, COUNT);
	assert_int_equal(progress.total_count, COUNT);
	assert_int_equal(progress.listed, 1);
	assert_tree("data", COUNT);
	shell("test -z \"$(find data -name '.*')\"");
	/* Again: everything is in the way, or passed over. */
	assert_int_equal(RUN(.kind = US_TASK_RESTORE), 0);
	assert_int_equal(count_status(US_ROW_FAILED), COUNT);
	assert_int_equal(rows[0].code, US_E_EXISTS);
	shell("rm data/org1/t00[19].db");
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .flags = US_RESTORE_IF_DB_NOT_EXISTS), 0);
	assert_int_equal(count_status(US_ROW_SKIPPED), COUNT - 2);
	assert_int_equal(count_status(US_ROW_OK), 2);
	assert_int_equal(progress.skipped_count, COUNT - 2);
	assert_tree("data", COUNT);
	/* Forced, over what has changed. */
	write_db(in_root("%s", db_name(5)), 5, 10);
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .flags = US_RESTORE_FORCE), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	assert_tree("data", COUNT);
}

/* As root: a directory goes to the owner of its databases, but not a shared one. */
static void test_owners_of_directories(void **state)
{
	(void)state;
	if (geteuid() != 0) {
		skip();
	}
	shell("chown 1001:1001 data/org0/* data/org2/*; chown 1002:1002 data/org1/* "
	      "data/org2/t002.db");
	shell("chmod 600 data/org*/*; sleep 1.1"); /* a second has one object */
	sync_all();
	shell("rm -rf data");
	assert_int_equal(RUN(.kind = US_TASK_RESTORE), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	shell("test $(stat -c %%u:%%a data/org0) = 1001:711 -a $(stat -c %%u:%%a data/org1) = "
	      "1002:711");
	shell("test $(stat -c %%u:%%a data/org2) = 0:755 -a $(stat -c %%u:%%a data) = 0:755");
	shell("test $(stat -c %%u:%%g data/org2/t002.db) = 1002:1002");
	shell("test -z \"$(find data -type d -perm -1000)\"");
}

static void test_output_dir_and_match(void **state)
{
	(void)state;
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("out/deep"),
			     .match = "*/org2/*"),
			 0);
	assert_int_equal(row_count, COUNT / 4);
	assert_string_equal(row_of(in_root("data/org2/t002.db"))->output,
			    in_root("out/deep/org2/t002.db"));
	assert_tree("out/deep", COUNT / 4);
	/* A dry run writes nothing and sends no GET. */
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("dry"),
			     .flags = US_RESTORE_DRY_RUN),
			 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	assert_int_equal(progress.api_get, 0);
	assert_int_equal(access(in_root("dry"), F_OK), -1);
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .match = "/nothing/*"), 0);
	assert_int_equal(row_count, 0);
	assert_int_equal(progress.total_count, 0);
}

/* With little memory, and a database that comes in parts. */
static void test_little_memory(void **state)
{
	(void)state;
	write_db(in_root("data/org0/big.db"), 0, 12 << 20);
	shell("sleep 0.05; cp data/org0/big.db kept/org0/");
	sync_all();
	struct us *us = open_us(US_OPEN_READ_ONLY, 16000000);
	const struct us_task_options options = { .struct_size = sizeof(options),
						 .kind = US_TASK_RESTORE,
						 .integrity_check = US_INTEGRITY_FULL,
						 .output_dir = in_root("out") };
	assert_int_equal(run_with(us, &options), 0);
	us_close(us);
	assert_int_equal(count_status(US_ROW_OK), COUNT + 1);
	assert_tree("out", COUNT + 1);
}

static void flip(const char *path, off_t at)
{
	unsigned char byte;
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 16;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void test_bad_objects(void **state)
{
	(void)state;
	/* Two databases get a second object, and that one is damaged. */
	for (int i = 1; i <= 2; i++) {
		write_db(in_root("%s", db_name(i)), i, 5);
	}
	shell("sleep 1.1");
	sync_all();
	shell("for n in 1 2; do test $(ls target/b/org$n/t00$n | wc -l) = 2; done");
	shell("for n in 1 2; do f=$(ls target/b/org$n/t00$n/* | tail -1); printf 'Z' |"
	      " dd of=$f bs=1 seek=300 conv=notrunc status=none; done");
	flip(object_of(10), 40);
	shell("truncate -s 100 '%s'", object_of(11));
	shell("cp '%s' \"$(ls target/b/org0/t012/*)\"", object_of(13)); /* of another database */
	shell("rm -rf data");
	assert_int_equal(RUN(.kind = US_TASK_RESTORE), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT - 5);
	assert_int_equal(count_status(US_ROW_FAILED), 5);
	assert_int_equal(progress.failed_count, 5);
	assert_tree("data", COUNT - 5);
	shell("test -z \"$(find data -name '.*')\"");
	const struct us_row *row = row_of(in_root("%s", db_name(1)));
	assert_int_equal(row->status, US_ROW_FAILED);
	assert_int_equal(row->code, US_E_OBJECT);
	assert_non_null(strstr(row->message, "the next older good one is \"b/org1/t001/"));
	assert_null(strstr(row_of(in_root("%s", db_name(10)))->message, "older"));
	assert_non_null(strstr(row_of(in_root("%s", db_name(12)))->message, "another database"));
	/* And the older ones instead. */
	assert_int_equal(RUN(.kind = US_TASK_RESTORE,
			     .flags = US_TASK_FALLBACK | US_RESTORE_IF_DB_NOT_EXISTS),
			 0);
	assert_int_equal(count_status(US_ROW_FAILED), 3);
	assert_int_equal(count_status(US_ROW_OK), 2);
	assert_true(row_of(in_root("%s", db_name(2)))->message[0] != '\0');
	assert_tree("data", COUNT - 3);
}

static void test_verify(void **state)
{
	(void)state;
	assert_int_equal(RUN(.kind = US_TASK_VERIFY, .integrity_check = US_INTEGRITY_FULL), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	assert_int_equal(progress.local_count, COUNT);
	assert_true(progress.database_len > COUNT * 8192);
	assert_int_equal(RUN(.kind = US_TASK_VERIFY, .sample_count = 7), 0);
	assert_int_equal(row_count, 7);
	assert_int_equal(progress.total_count, 7);
	flip(object_of(10), 40);
	assert_int_equal(RUN(.kind = US_TASK_VERIFY), 0);
	assert_int_equal(count_status(US_ROW_FAILED), 1);
	assert_int_equal(row_of(in_root("%s", db_name(10)))->status, US_ROW_FAILED);
	shell("rm -rf target/b");
	assert_int_equal(RUN(.kind = US_TASK_VERIFY), 0);
	assert_int_equal(count_status(US_ROW_OK), 0);
}

/* What the state knows was uploaded has to be there. */
static void test_verify_against_state(void **state)
{
	(void)state;
	shell("sleep 1.1");
	for (int i = 0; i < 3; i++) {
		write_db(in_root("%s", db_name(i)), i, 50);
	}
	shell("sleep 0.05");
	sync_all();
	assert_int_equal(RUN(.kind = US_TASK_VERIFY), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	/* A whole one of its own, but older; the newest one gone; all of them gone. */
	shell("cd target/b/org0/t000 && cp $(ls | head -1) $(ls | tail -1)");
	shell("cd target/b/org1/t001 && rm $(ls | tail -1)");
	shell("rm -r target/b/org2/t002");
	assert_int_equal(RUN(.kind = US_TASK_VERIFY), 0);
	assert_int_equal(count_status(US_ROW_FAILED), 3);
	assert_int_equal(progress.failed_count, 3);
	assert_int_equal(progress.total_count, COUNT);
	assert_int_equal(progress.done_count, COUNT);
	assert_int_equal(row_of(in_root("%s", db_name(0)))->code, US_E_OBJECT);
	assert_non_null(strstr(row_of(in_root("%s", db_name(1)))->message, "is not in the target"));
	assert_non_null(strstr(row_of(in_root("%s", db_name(2)))->message, "has no backup"));
}

/* A state file that cannot be read is told, not taken for nothing to compare with. */
static void test_verify_with_damaged_state(void **state)
{
	(void)state;
	shell("dd if=/dev/zero of=state/state.db bs=4096 count=1 conv=notrunc status=none");
	assert_int_equal(RUN(.kind = US_TASK_VERIFY), US_E_STATE);
	assert_non_null(strstr(error.message, "damaged"));
	shell("rm -r state");
	assert_int_equal(RUN(.kind = US_TASK_VERIFY, .sample_count = UINT64_MAX), 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
}

/* Somebody keeps one directory locked: its databases fail, and no others wait for them. */
static void test_locked_directory(void **state)
{
	(void)state;
	shell("mkdir -p out/org0");
	int fd = open(in_root("out/org0"), O_RDONLY | O_DIRECTORY);
	assert_true(fd >= 0);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("out")), 0);
	assert_int_equal(count_status(US_ROW_FAILED), COUNT / 4);
	assert_int_equal(count_status(US_ROW_OK), COUNT - COUNT / 4);
	for (size_t i = 0; i < row_count; i++) {
		int is_locked = strstr(rows[i].output, "/org0/") != NULL;
		assert_int_equal(rows[i].code, is_locked ? US_E_BUSY : 0);
		/* The others came first. */
		assert_true(is_locked || i < COUNT - COUNT / 4);
	}
	close(fd);
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("out"),
			     .flags = US_RESTORE_IF_DB_NOT_EXISTS),
			 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT / 4);
	assert_tree("out", COUNT);
}

static void test_state_directory_removed(void **state)
{
	(void)state;
	struct us *us = open_us(0, 0);
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	assert_int_equal(us_cycle(us, &result, NULL), 0);
	shell("rm -rf state");
	error = (struct us_error){ .struct_size = sizeof(error) };
	assert_int_equal(us_cycle(us, &result, &error), US_E_STATE);
	assert_non_null(strstr(error.message, "restart"));
	us_close(us);
}

static void test_list(void **state)
{
	(void)state;
	shell("rm data/org1/t001.db && cp data/org2/t002.db data/org2/new.db && mkdir target/x &&"
	      " touch target/b/foreign");
	assert_int_equal(RUN(.kind = US_TASK_LIST), 0);
	assert_int_equal(row_count, COUNT + 1);
	assert_int_equal(count_status(US_ROW_OK), COUNT - 1);
	const struct us_row *gone = row_of(in_root("data/org1/t001.db"));
	const struct us_row *never = row_of(in_root("data/org2/new.db"));
	assert_int_equal(gone->status, US_ROW_GONE);
	assert_string_equal(gone->key, "b/org1/t001");
	assert_int_equal(gone->object_count, 1);
	assert_true(gone->time_ns > 0 && gone->object_len > 100);
	assert_int_equal(never->status, US_ROW_NEVER);
	assert_int_equal(never->object_count, 0);
	assert_int_equal(progress.foreign_count, 1);
	for (size_t i = 1; i < row_count; i++) {
		assert_true(strcmp(rows[i - 1].path, rows[i].path) < 0);
	}
	assert_int_equal(RUN(.kind = US_TASK_LIST, .match = "*new.db"), 0);
	assert_int_equal(row_count, 1);
}

static void test_backups(void **state)
{
	(void)state;
	write_db(in_root("%s", db_name(3)), 3, 77);
	shell("sleep 1.1");
	sync_all();
	shell("echo junk > target/b/org3/t003/20200101T000000Z.db.lz4;"
	      " touch target/b/org3/t003/20200102T000000Z.db.lz4");
	assert_int_equal(RUN(.kind = US_TASK_BACKUPS, .path = in_root("%s", db_name(3))), 0);
	assert_int_equal(row_count, 4);
	assert_int_equal(rows[0].status, US_ROW_FAILED);
	assert_int_equal(rows[1].status, US_ROW_FAILED);
	assert_int_equal(rows[2].status, US_ROW_OK);
	assert_true(rows[2].snapshot_ns < rows[3].snapshot_ns);
	assert_true(rows[3].database_len >= 8192);
	assert_int_equal(rows[3].mode, 0604);
	assert_int_equal(RUN(.kind = US_TASK_BACKUPS, .path = "/elsewhere/x.db"), US_E_NOTFOUND);
	assert_int_equal(RUN(.kind = US_TASK_BACKUPS), US_E_ARG);
}

static void test_purge(void **state)
{
	(void)state;
	char one[1200];
	(void)snprintf(one, sizeof(one), "%s/%s", root, db_name(3));
	assert_int_equal(RUN(.kind = US_TASK_PURGE), US_E_ARG);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .flags = US_TASK_GONE), US_E_ARG);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .path = one), 0);
	assert_int_equal(progress.object_count, 1);
	assert_int_equal(progress.confirmed, 0);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .path = one, .confirm_count = 2), 0);
	assert_int_equal(progress.confirmed, 0);
	assert_int_equal(progress.removed_count, 0);
	assert_int_equal(access(object_of(3), F_OK), 0);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .path = one, .confirm_count = 1), 0);
	assert_int_equal(progress.confirmed, 1);
	assert_int_equal(progress.removed_count, 1);
	shell("test $(find target/b -type f | wc -l) = %d", COUNT - 1);
	shell("test ! -e target/b/org3/t003");
	/* Gone, and old enough. */
	shell("rm data/org0/t000.db data/org0/t004.db");
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .flags = US_TASK_GONE, .older_than_ns = 1), 0);
	assert_int_equal(progress.object_count, 0);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .flags = US_TASK_GONE,
			     .older_than_ns = INT64_MAX, .confirm_count = 2),
			 0);
	assert_int_equal(progress.removed_count, 2);
	assert_string_equal(rows[0].path, in_root("data/org0/t000.db"));
	shell("test $(find target/b -type f | wc -l) = %d", COUNT - 3);
	/* Everything, only if one says so. */
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .match = "/*", .confirm_count = COUNT - 3),
			 US_E_CONFIG);
	assert_non_null(strstr(error.message, "-match '*'"));
	/* A tree that is not mounted. */
	shell("mv data away && mkdir data");
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .flags = US_TASK_GONE, .match = "*",
			     .older_than_ns = INT64_MAX, .confirm_count = COUNT - 3),
			 US_E_CONFIG);
	shell("test $(find target/b -type f | wc -l) = %d", COUNT - 3);
	assert_int_equal(RUN(.kind = US_TASK_PURGE, .match = "*", .confirm_count = COUNT - 3), 0);
	shell("test $(find target -name '*.lz4' | wc -l) = 0");
}

static void test_timestamp(void **state)
{
	(void)state;
	shell("rm -rf target state"); /* two snapshots, a second and more apart */
	shell("sleep 1.1");
	sync_all();
	assert_int_equal(RUN(.kind = US_TASK_BACKUPS, .path = in_root("%s", db_name(1))), 0);
	int64_t first_ns = rows[0].snapshot_ns;
	shell("sleep 1.1");
	for (int i = 0; i < COUNT; i++) {
		write_db(in_root("%s", db_name(i)), i, 5);
	}
	shell("sleep 0.1");
	sync_all();
	assert_int_equal(RUN(.kind = US_TASK_BACKUPS, .path = in_root("%s", db_name(1))), 0);
	assert_int_equal(row_count, 2);
	int64_t second_ns = rows[1].snapshot_ns;
	static const struct {
		int second, before; /* relative to which snapshot */
		int ok;
	} cases[] = { { 0, 0, 1 }, { 0, 1, 0 }, { 1, 1, 1 }, { 1, 0, 2 } };
	for (size_t i = 0; i < 4; i++) {
		int64_t at_ns = (cases[i].second ? second_ns : first_ns) - cases[i].before;
		assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("at%zu", i),
				     .match = "*/t001.db", .timestamp_ns = at_ns),
				 0);
		assert_int_equal(row_count, 1);
		if (cases[i].ok) {
			assert_int_equal(rows[0].snapshot_ns,
					 cases[i].ok == 1 ? first_ns : second_ns);
			shell("test $(sqlite3 at%zu/org1/t001.db 'SELECT count(*) FROM t') = %d", i,
			      cases[i].ok);
		} else {
			assert_int_equal(rows[0].code, US_E_NOTFOUND);
			assert_non_null(strstr(rows[0].message, "the earliest is of"));
		}
	}
	/* All of them, between the two. */
	assert_int_equal(RUN(.kind = US_TASK_RESTORE, .output_dir = in_root("between"),
			     .timestamp_ns = first_ns + 1000000000),
			 0);
	assert_int_equal(count_status(US_ROW_OK), COUNT);
	assert_tree("between", COUNT);
}

static void test_close_in_the_middle(void **state)
{
	(void)state;
	struct us *us = open_us(US_OPEN_READ_ONLY, 0);
	for (uint32_t kind = US_TASK_LIST; kind <= US_TASK_PURGE; kind++) {
		const struct us_task_options options = {
			.struct_size = sizeof(options),
			.kind = kind,
			.path = kind == US_TASK_BACKUPS ? in_root("%s", db_name(1)) : NULL,
			.match = kind == US_TASK_PURGE ? "*" : NULL,
			.output_dir = kind == US_TASK_RESTORE ? in_root("half") : NULL,
		};
		struct us_task *task;
		assert_int_equal(us_task_start(us, &options, &task, NULL), 0);
		us_task_close(task);
	}
	us_close(us);
	shell("test -z \"$(find . -name '.us-*')\"");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_restore_all),
		TEST(test_owners_of_directories),
		TEST(test_output_dir_and_match),
		TEST(test_little_memory),
		TEST(test_bad_objects),
		TEST(test_verify),
		TEST(test_verify_against_state),
		TEST(test_verify_with_damaged_state),
		TEST(test_locked_directory),
		TEST(test_state_directory_removed),
		TEST(test_list),
		TEST(test_backups),
		TEST(test_purge),
		TEST(test_timestamp),
		TEST(test_close_in_the_middle),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
