/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fleet comes back while the target misbehaves. Between the library and its store (a
 * directory) stands a hook that lets downloads fail; time passes as fast as they do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ftw.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "scratch.h"

#define PATH_LEN (SCRATCH_LEN + 64)
#define COUNT 150 /* more than a sample has room for at first */

/* ------------------------------------------------------------------- the clock */

static _Atomic int64_t ahead_ns; /* of the monotonic clock */
static int64_t started_ns;
static int64_t speed; /* of the monotonic clock since then */

static int64_t real_ns(void)
{
	struct timespec ts;
	(void)syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * US_NS_PER_S + ts.tv_nsec;
}

static int64_t fake_ns(void)
{
	return started_ns + (real_ns() - started_ns) * speed + ahead_ns;
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int rc = (int)syscall(SYS_clock_gettime, id, ts);
	if (id == CLOCK_MONOTONIC) {
		int64_t ns = fake_ns();
		ts->tv_sec = ns / US_NS_PER_S;
		ts->tv_nsec = ns % US_NS_PER_S;
	}
	return rc;
}

/* Conditions wait by the real clock. */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *end)
{
	int64_t end_ns = (int64_t)end->tv_sec * US_NS_PER_S + end->tv_nsec;
	int64_t ns = real_ns() + (end_ns - fake_ns()) / speed;
	struct timespec real_end = { .tv_sec = ns / US_NS_PER_S, .tv_nsec = ns % US_NS_PER_S };
	return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &real_end);
}

/* ---------------------------------------------------------- between us and store */

static struct us_store_ops hooked;
static const struct us_store_ops *real;
static _Atomic uint32_t get_count, failed_count;
static uint32_t fail_count;  /* so many gets fail, from the first */
static const char *fail_key; /* only those of keys with this in them; NULL: all */
static int32_t fail_rc;      /* how */
static uint32_t retryable;
static int64_t fail_takes_ns; /* what the clock moves by then */

static void hook_get_start(struct us_store *store, struct us_get *get)
{
	int is_meant = !fail_key || strstr(get->key, fail_key);
	if (!is_meant || get_count++ >= fail_count) {
		real->get_start(store, get);
		return;
	}
	failed_count++;
	ahead_ns += fail_takes_ns;
	get->rc = us_fail(&get->err, fail_rc, "the line is dead");
	get->err.retryable = retryable;
	us_get_queue_push(get->queue, get);
}

/* -------------------------------------------------------------------- the fleet */

static char dir[SCRATCH_LEN];
static struct us_error err;
static struct us_progress progress;
static struct us_row *rows;
static size_t row_count;

static const char *path_of(const char *rel)
{
	static char paths[4][PATH_LEN];
	static int next;
	char *path = paths[next++ % 4];
	(void)snprintf(path, PATH_LEN, "%s/%s", dir, rel);
	return path;
}

static void make_db(int number)
{
	char name[64], sql[128];
	sqlite3 *db;
	(void)snprintf(name, sizeof(name), "data/t%03d.db", number);
	(void)snprintf(sql, sizeof(sql),
		       "PRAGMA synchronous=OFF; CREATE TABLE t (a); INSERT INTO t VALUES (%d)",
		       number);
	assert_int_equal(sqlite3_open(path_of(name), &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static struct us *open_us(uint32_t flags)
{
	struct us *us = NULL;
	err = (struct us_error)US_ERROR_INIT;
	const struct us_options options = { .struct_size = sizeof(options),
					    .flags = flags | US_OPEN_ANY_FILESYSTEM,
					    .discovery_pattern = path_of("data/*.db"),
					    .path = "{{name}}",
					    .state_dir = path_of("state"),
					    .target = US_TARGET_FILE,
					    .directory = path_of("target") };
	if (us_open(&options, &us, &err)) {
		fail_msg("us_open: %s", err.message);
	}
	return us;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static int make_fleet(void **state)
{
	speed = 1;
	(void)state;
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	if (scratch_dir(dir) || mkdir(path_of("data"), 0700)) {
		return -1;
	}
	for (int i = 0; i < COUNT; i++) {
		make_db(i);
	}
	rows = calloc(COUNT, sizeof(*rows));
	struct us *us = open_us(0);
	int32_t rc = us_cycle(us, &result, NULL);
	us_close(us);
	return rc || result.uploaded != COUNT;
}

static int remove_fleet(void **state)
{
	(void)state;
	free(rows);
	return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int fresh(void **state)
{
	(void)state;
	ahead_ns = 0;
	started_ns = real_ns();
	speed = 1;
	get_count = failed_count = fail_count = retryable = 0;
	fail_key = NULL;
	fail_rc = US_E_NETWORK;
	fail_takes_ns = 0;
	struct stat st;
	return stat(path_of("out"), &st)
		       ? 0
		       : nftw(path_of("out"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Runs a task to its end; its code. */
static int32_t run(uint32_t kind, uint64_t sample_count)
{
	struct us *us = open_us(US_OPEN_READ_ONLY);
	struct us_task *task = NULL;
	const struct us_task_options options = { .struct_size = sizeof(options),
						 .kind = kind,
						 .output_dir = kind == US_TASK_RESTORE
								       ? path_of("out")
								       : NULL,
						 .sample_count = sample_count };
	real = us->store->ops;
	hooked = *real;
	hooked.get_start = hook_get_start;
	us->store->ops = &hooked;
	progress = (struct us_progress){ .struct_size = sizeof(progress) };
	row_count = 0;
	int32_t rc = us_task_start(us, &options, &task, &err);
	while (rc >= 0 && !progress.finished) {
		rc = us_task_next(task, 1000, rows + row_count, COUNT - row_count, &progress, &err);
		row_count += rc > 0 ? (size_t)rc : 0;
	}
	us_task_close(task);
	us->store->ops = real;
	us_close(us);
	return rc < 0 ? rc : 0;
}

static size_t count_of(uint32_t status)
{
	size_t count = 0;
	for (size_t i = 0; i < row_count; i++) {
		count += rows[i].status == status;
	}
	return count;
}

/* Databases with the right content below `out`; hidden files count as -1000. */
static int restored;
static int look_at(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	sqlite3 *db;
	sqlite3_stmt *stmt;
	(void)st;
	if (flag != FTW_F) {
		return 0;
	}
	if (path[ftw->base] == '.') {
		restored -= 1000;
		return 0;
	}
	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, "SELECT a FROM t", -1, &stmt, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	assert_int_equal(sqlite3_column_int(stmt, 0), atoi(path + ftw->base + 1));
	assert_int_equal(sqlite3_finalize(stmt), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	restored++;
	return 0;
}

static int count_restored(void)
{
	restored = 0;
	(void)nftw(path_of("out"), look_at, 16, FTW_PHYS); /* it may not be there */
	return restored;
}

/* -------------------------------------------------------------------- the tests */

static void test_outage(void **state)
{
	(void)state;
	fail_count = UINT32_MAX;
	fail_takes_ns = 10 * US_NS_PER_S;
	assert_int_equal(run(US_TASK_RESTORE, 0), US_E_NETWORK);
	assert_non_null(strstr(err.message,
			       "given up: the target could not be reached for a minute: "
			       "the line is dead"));
	assert_true(failed_count >= 7 && failed_count < COUNT);
	assert_int_equal(count_restored(), 0);
	assert_int_equal(count_of(US_ROW_OK), 0);
	assert_int_equal(run(US_TASK_VERIFY, 0), US_E_NETWORK);
}

/* What is complete when it is given up stays, whole. */
static void test_outage_in_the_middle(void **state)
{
	(void)state;
	fail_key = "t1"; /* t1xx */
	fail_count = UINT32_MAX;
	fail_takes_ns = 20 * US_NS_PER_S;
	int32_t rc = run(US_TASK_RESTORE, 0);
	assert_int_equal(count_restored(), count_of(US_ROW_OK));
	assert_int_equal(count_of(US_ROW_OK), progress.done_count - progress.failed_count);
	assert_true(rc == US_E_NETWORK || count_of(US_ROW_FAILED) > 0);
}

static void test_outage_that_passes(void **state)
{
	(void)state;
	fail_count = 22; /* from the 20th on one at a time, a second after the other */
	assert_int_equal(run(US_TASK_RESTORE, 0), 0);
	assert_int_equal(failed_count, 22);
	assert_int_equal(count_of(US_ROW_OK), COUNT);
	assert_int_equal(count_restored(), COUNT);
}

/* One that fails again and again is given up; the others do not wait for it. */
static void check_one(int32_t rc, uint32_t may_be_retried, uint32_t tries, int comes_back)
{
	(void)fresh(NULL);
	fail_key = "t007";
	fail_rc = rc;
	retryable = may_be_retried;
	fail_count = tries;
	speed = 20; /* the pauses are over soon */
	assert_int_equal(run(US_TASK_RESTORE, 0), 0);
	assert_int_equal(failed_count, tries);
	assert_int_equal(count_of(US_ROW_OK), comes_back ? COUNT : COUNT - 1);
	assert_int_equal(count_restored(), comes_back ? COUNT : COUNT - 1);
	for (size_t i = 0; i < row_count && !comes_back; i++) {
		if (rows[i].status == US_ROW_FAILED) {
			assert_non_null(strstr(rows[i].path, "t007.db"));
			assert_int_equal(rows[i].code, rc);
			assert_string_equal(rows[i].message, "the line is dead");
		}
	}
}

static void test_one_fails(void **state)
{
	(void)state;
	check_one(US_E_TIMEOUT, 1, 3, 1);
	check_one(US_E_HTTP, 1, 3, 1);
	check_one(US_E_HTTP, 0, 1, 0);
	check_one(US_E_TIMEOUT, 1, 6, 0);
	check_one(US_E_ACCESS, 0, 1, 0);
	/* Another look finds the object as it should be. */
	check_one(US_E_OBJECT, 0, 1, 1);
	check_one(US_E_NOTFOUND, 0, 1, 1);
}

/* With few descriptors fewer work at a time, and all comes back. */
static void test_few_descriptors(void **state)
{
	(void)state;
	struct rlimit before, now;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	static const rlim_t limits[] = { 130, 140, 200, 400 };
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		(void)fresh(NULL);
		now = before;
		now.rlim_cur = limits[i];
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
		int32_t rc = run(US_TASK_RESTORE, 0);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
		assert_int_equal(rc, 0);
		assert_int_equal(count_restored(), COUNT);
	}
}

static void test_samples(void **state)
{
	(void)state;
	static const uint64_t counts[] = { 1, 128, 129, COUNT - 1, COUNT, COUNT + 1, 0 };
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		uint64_t want = counts[i] == 0 || counts[i] > COUNT ? COUNT : counts[i];
		assert_int_equal(run(US_TASK_VERIFY, counts[i]), 0);
		assert_int_equal(row_count, want);
		assert_int_equal(count_of(US_ROW_OK), want);
		assert_int_equal(progress.total_count, want);
	}
}

#define CASE(name) cmocka_unit_test_setup(name, fresh)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_outage),
		CASE(test_outage_in_the_middle),
		CASE(test_outage_that_passes),
		CASE(test_one_fails),
		CASE(test_few_descriptors),
		CASE(test_samples),
	};
	return cmocka_run_group_tests(tests, make_fleet, remove_fleet);
}
