/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep, through the whole library: databases written by SQLite, a directory as
 * target, objects aged by giving copies of real ones older names, the clock moved by
 * standing before libc's. Between the library and its store stands a hook that counts
 * and can fail or hold a listing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <ftw.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "fleet_dir.h"

#define DAY 86400
#define RETENTION_S (30 * DAY)
#define NAME_LEN (US_OBJECT_NAME_LEN + 1)
#define OBJECTS_MAX 4096

/* ------------------------------------------------------------------- the clock */

static _Atomic int64_t clock_offset_s;

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int rc = (int)syscall(SYS_clock_gettime, id, ts);
	if (rc == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		ts->tv_sec += clock_offset_s;
	}
	return rc;
}

static uint32_t now(void)
{
	return (uint32_t)(us_clock_wall_ns() / US_NS_PER_S);
}

/* ---------------------------------------------------------- between us and store */

static const struct us_store_ops *real;
static struct us_store_ops hooked;
static struct us *us;
static int32_t list_rc, remove_rc; /* what these calls return, if not 0 */
static int list_count, remove_count;
static size_t remove_most;
/* A listing is taken, but given out only when nobody holds it any more. */
static _Atomic int list_held, list_taken;

static struct {
	char *key;
	uint64_t len;
} held[OBJECTS_MAX];
static size_t held_count;

static int32_t hold_object(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	(void)arg;
	held[held_count].key = strndup(key, key_len);
	held[held_count++].len = object_len;
	return 0;
}

static int32_t hook_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			 void *arg, struct us_error *err)
{
	list_count++;
	if (list_rc) {
		return us_fail(err, list_rc, "the list fails");
	}
	if (!list_held) {
		return real->list(store, prefix, fn, arg, err);
	}
	held_count = 0;
	int32_t rc = real->list(store, prefix, hold_object, NULL, err);
	list_taken = 1;
	while (list_held && !us->canceled) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	for (size_t i = 0; i < held_count; i++) {
		rc = rc ? rc : fn(arg, held[i].key, strlen(held[i].key), held[i].len);
		free(held[i].key);
	}
	return rc;
}

static int32_t hook_remove_many(struct us_store *store, const char *const *keys, size_t count,
				size_t *ret_removed, struct us_error *err)
{
	remove_count++;
	remove_most = count > remove_most ? count : remove_most;
	if (remove_rc) {
		return us_fail(err, remove_rc, "the removal fails");
	}
	return real->remove_many(store, keys, count, ret_removed, err);
}

/* ------------------------------------------------------------------- the fleet */


static int setup(void **state)
{
	(void)state;
	static const char *const dirs[] = { "data", "target", "state" };
	clock_offset_s = 0;
	list_rc = remove_rc = 0;
	list_count = remove_count = 0;
	remove_most = 0;
	list_held = list_taken = 0;
	return make_dirs(dirs, sizeof(dirs) / sizeof(dirs[0]));
}

static int teardown(void **state)
{
	(void)state;
	us_close(us); /* of a test that failed */
	us = NULL;
	return remove_dirs();
}

static void open_fleet(uint64_t retention_s)
{
	char pattern[PATH_LEN], target[PATH_LEN], state[PATH_LEN];
	path_of(pattern, "data/*.db");
	path_of(target, "target");
	path_of(state, "state");
	const struct us_options options = { .struct_size = sizeof(options),
					    .flags = US_OPEN_ANY_FILESYSTEM,
					    .discovery_pattern = pattern,
					    .path = "b/{{name}}",
					    .state_dir = state,
					    .target = US_TARGET_FILE,
					    .directory = target,
					    .retention_s = retention_s };
	struct us_error err = US_ERROR_INIT;
	if (us_open(&options, &us, &err)) {
		fail_msg("%s", err.message);
	}
	real = us->store->ops;
	hooked = *real;
	hooked.list = hook_list;
	hooked.remove_many = hook_remove_many;
	us->store->ops = &hooked;
	list_count = 0;
}

static void close_fleet(void)
{
	us_close(us);
	us = NULL;
}

/* Adds a row to NAME.db; makes it, if there is none. */
static void change(const char *name)
{
	char path[PATH_LEN];
	sqlite3 *db;
	path_of(path, "data/%s.db", name);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db,
				      "CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES "
				      "(hex(randomblob(400)))",
				      NULL, NULL, NULL),
			 SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static struct us_cycle_result cycle_at_once(void)
{
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	struct us_error err = US_ERROR_INIT;
	if (us_cycle(us, &result, &err)) {
		fail_msg("%s", err.message);
	}
	return result;
}

static struct us_cycle_result cycle(void)
{
	clock_offset_s += 2; /* every cycle has a second of its own for its names */
	return cycle_at_once();
}

/* A cycle that begins with a sweep; returns the uploads. */
static uint64_t sweep(void)
{
	us_sweep(us);
	return cycle().uploaded;
}

static struct us_stats stats(void)
{
	struct us_stats s = { .struct_size = sizeof(s) };
	assert_int_equal(us_stats(us, &s, NULL), 0);
	return s;
}

/* Takes the events; how many of KIND and STAGE hold TEXT. */
static int events(uint32_t kind, const char *stage, const char *text)
{
	static struct us_event e;
	int count = 0;
	while (us_next_events(us, &e, 1, NULL) == 1) {
		count += e.kind == kind && strcmp(e.stage, stage) == 0 && strstr(e.message, text);
	}
	return count;
}

/* -------------------------------------------------------------------- objects */

struct objects {
	char names[OBJECTS_MAX][NAME_LEN];
	size_t count;
};

static int compare(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* The objects of NAME, oldest first. */
static const struct objects *objects_of(const char *name)
{
	static struct objects all;
	char path[PATH_LEN];
	path_of(path, "target/b/%s", name);
	all.count = 0;
	DIR *d = opendir(path);
	struct dirent *entry;
	while (d && (entry = readdir(d)) != NULL) {
		uint32_t time_s;
		if (strlen(entry->d_name) == US_OBJECT_NAME_LEN &&
		    !us_time_name_parse(entry->d_name, US_TIME_NAME_LEN, &time_s)) {
			memcpy(all.names[all.count++], entry->d_name, NAME_LEN);
		}
	}
	if (d) {
		(void)closedir(d);
	}
	qsort(all.names, all.count, NAME_LEN, compare);
	return &all;
}

static uint32_t newest_of(const char *name)
{
	const struct objects *all = objects_of(name);
	uint32_t time_s = 0;
	if (all->count > 0) {
		assert_int_equal(
			us_time_name_parse(all->names[all->count - 1], US_TIME_NAME_LEN, &time_s),
			0);
	}
	return time_s;
}

static void object_path(char *ret, const char *name, uint32_t time_s)
{
	char time[US_TIME_NAME_LEN + 1];
	us_time_name_format(time_s, time);
	path_of(ret, "target/b/%s/%s.db.lz4", name, time);
}

static int exists(const char *name, uint32_t time_s)
{
	char path[PATH_LEN];
	object_path(path, name, time_s);
	return access(path, F_OK) == 0;
}

static void copy_file(const char *from, const char *to)
{
	char data[65536];
	FILE *in = fopen(from, "r"), *out = fopen(to, "w");
	assert_non_null(in);
	assert_non_null(out);
	size_t len;
	while ((len = fread(data, 1, sizeof(data), in)) > 0) {
		assert_int_equal(fwrite(data, 1, len, out), len);
	}
	assert_int_equal(fclose(in), 0);
	assert_int_equal(fclose(out), 0);
}

/* A copy of the newest object of FROM becomes one of NAME with TIME_S. */
static void add_object(const char *from, const char *name, uint32_t time_s)
{
	char source[PATH_LEN], path[PATH_LEN];
	object_path(source, from, newest_of(from));
	path_of(path, "target/b/%s", name);
	(void)mkdir(path, 0700); /* may be there */
	object_path(path, name, time_s);
	copy_file(source, path);
}

static void remove_object(const char *name, uint32_t time_s)
{
	char path[PATH_LEN];
	object_path(path, name, time_s);
	assert_int_equal(unlink(path), 0);
}

static void add_foreign(const char *rel)
{
	char path[PATH_LEN];
	path_of(path, "target/%s", rel);
	for (char *slash = strchr(path + strlen(dir) + 1, '/'); slash;
	     slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		(void)mkdir(path, 0700); /* may be there */
		*slash = '/';
	}
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fputc('x', f), 'x'); /* empty ones are no backups */
	assert_int_equal(fclose(f), 0);
}

static int is_there(const char *rel)
{
	char path[PATH_LEN];
	path_of(path, "target/%s", rel);
	return access(path, F_OK) == 0;
}

static uint64_t bytes_of_target(const char *const *names, size_t count)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < count; i++) {
		const struct objects *all = objects_of(names[i]);
		for (size_t k = 0; k < all->count; k++) {
			char path[PATH_LEN];
			struct stat st;
			path_of(path, "target/b/%s/%s", names[i], all->names[k]);
			assert_int_equal(stat(path, &st), 0);
			sum += (uint64_t)st.st_size;
		}
	}
	return sum;
}

/* Databases a, b, c, backed up. */
static void three(uint64_t retention_s)
{
	change("a");
	change("b");
	change("c");
	open_fleet(retention_s);
	assert_int_equal(cycle().uploaded, 3);
}

/* ------------------------------------------------------------------ retention */

static const char *const foreign[] = {
	"b/a/notes.txt",
	"b/a/20200101T000000Z.db.lz4.bak",
	"b/a/20200101T000000Z.db",
	"b/a/20200230T000000Z.db.lz4", /* no such day */
	"b/20200101T000000Z.db.lz4",
	"b/20200102T000000Z.db.lz4",
	"b/20200103T000000Z.db.lz4",
	"b/x/y/20200101T000000Z.db.lz4",
	"b/x/y/20200102T000000Z.db.lz4",
	"b/x/y/20200103T000000Z.db.lz4",
	"b/%41/20200101T000000Z.db.lz4", /* an "A" is never written so */
	"b/%41/20200102T000000Z.db.lz4",
	"b/%41/20200103T000000Z.db.lz4",
	"other/a/20200101T000000Z.db.lz4",
};

static void age(const char *name, const uint32_t *days, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		add_object("c", name, now() - days[i] * DAY);
	}
}

static void test_retention(void **state)
{
	(void)state;
	static const char *const names[] = { "a", "b", "c", "gone" };
	three(RETENTION_S);
	uint32_t at = now();
	age("a", (const uint32_t[]){ 60, 50, 40, 31, 1 }, 5);
	age("b", (const uint32_t[]){ 100, 90 }, 2);
	age("gone", (const uint32_t[]){ 100, 99, 98, 97 }, 4);
	age("c", (const uint32_t[]){ 29, 20 }, 2);
	for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
		add_foreign(foreign[i]);
	}
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 2); /* its own and that of yesterday */
	assert_true(exists("a", at - 1 * DAY));
	assert_int_equal(objects_of("b")->count, 2); /* the second newest is old, and stays */
	assert_true(exists("b", at - 90 * DAY));
	assert_int_equal(objects_of("c")->count, 3);
	assert_int_equal(objects_of("gone")->count, 2);
	assert_true(exists("gone", at - 97 * DAY));
	assert_true(exists("gone", at - 98 * DAY));
	for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
		assert_true(is_there(foreign[i]));
	}
	struct us_stats s = stats();
	assert_int_equal(s.objects_deleted, 7);
	assert_int_equal(s.sweep_objects, 9);
	assert_int_equal(s.sweep_bytes, bytes_of_target(names, 4));
	assert_int_equal(s.sweep_list, 1);
	assert_true(s.sweep_delete > 0);
	assert_int_equal(s.databases_reconciled, 0);
	assert_int_equal(s.sweep_failed, 0);
	assert_int_equal(remove_count, 1);
	/* Nothing left to do. */
	assert_int_equal(sweep(), 0);
	s = stats();
	assert_int_equal(s.objects_deleted, 7);
	assert_int_equal(s.sweep_objects, 9);
	assert_int_equal(s.sweep_delete, 0);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", ""), 0);
	close_fleet();
}

/* The limit is a second sharp. */
static void test_retention_limit(void **state)
{
	(void)state;
	three(RETENTION_S);
	uint32_t limit = now() + 2 - RETENTION_S; /* as cycle() moves the clock */
	for (uint32_t i = 0; i < 20; i++) {
		add_object("c", "a", limit - 10 + i);
	}
	us_sweep(us);
	uint32_t before = now() + 2;
	(void)cycle();
	uint32_t after = now();
	assert_true(after - before < 8);
	for (uint32_t i = 0; i < 20; i++) {
		uint32_t time_s = limit - 10 + i;
		if (time_s + RETENTION_S < before) {
			assert_false(exists("a", time_s));
		} else if (time_s + RETENTION_S >= after) {
			assert_true(exists("a", time_s));
		}
	}
	close_fleet();
}

static void test_retention_in_batches(void **state)
{
	(void)state;
	three(RETENTION_S);
	for (uint32_t i = 0; i < 2345; i++) {
		add_foreign(i % 2 ? "b/a/x" : "b/b/x"); /* makes the directories */
		char time[US_TIME_NAME_LEN + 1], rel[128];
		us_time_name_format(now() - 50 * DAY - i * 60, time);
		(void)snprintf(rel, sizeof(rel), "b/%s/%s.db.lz4", i % 2 ? "a" : "b", time);
		add_foreign(rel);
	}
	assert_int_equal(sweep(), 0);
	assert_int_equal(stats().objects_deleted, 2343);
	assert_int_equal(remove_count, 3);
	assert_int_equal(remove_most, US_REMOVE_MANY_MAX);
	assert_int_equal(objects_of("a")->count, 2);
	assert_int_equal(objects_of("b")->count, 2);
	assert_int_equal(objects_of("c")->count, 1);
	close_fleet();
}

static void test_no_retention(void **state)
{
	(void)state;
	three(0);
	age("a", (const uint32_t[]){ 4000, 3000, 2000 }, 3);
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 4);
	assert_int_equal(stats().objects_deleted, 0);
	assert_int_equal(stats().sweep_objects, 6);
	close_fleet();
	/* For ever, in other numbers. */
	open_fleet(UINT64_MAX);
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 4);
	close_fleet();
}

/* The clock is not believed if it runs away from the last snapshot. */
static void test_clock_jump(void **state)
{
	(void)state;
	three(RETENTION_S);
	age("a", (const uint32_t[]){ 3, 2, 1 }, 3);
	clock_offset_s += 367 * DAY;
	assert_int_equal(cycle().uploaded, 0); /* one is due, too */
	assert_int_equal(objects_of("a")->count, 4);
	assert_int_equal(stats().objects_deleted, 0);
	assert_int_equal(remove_count, 0);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", "clock"), 1);
	clock_offset_s -= 2 * DAY;
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 2);
	assert_int_equal(stats().objects_deleted, 2);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", ""), 0);
	close_fleet();
}

/* Names far ahead do not make the last one that the state knows an old one. */
static void test_names_far_ahead(void **state)
{
	(void)state;
	three(RETENTION_S);
	uint32_t known = newest_of("a");
	age("a", (const uint32_t[]){ 10 }, 1);
	clock_offset_s += 60 * DAY;
	add_object("c", "a", now() + 800 * DAY);
	add_object("c", "a", now() + 900 * DAY);
	assert_int_equal(sweep(), 0);
	assert_true(exists("a", known));
	assert_int_equal(objects_of("a")->count, 3);
	assert_int_equal(stats().objects_deleted, 1);
	assert_int_equal(stats().databases_reconciled, 0);
	close_fleet();
}

static void test_delete_fails(void **state)
{
	(void)state;
	three(RETENTION_S);
	age("a", (const uint32_t[]){ 60, 50, 40 }, 3);
	remove_rc = US_E_NETWORK;
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 4);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", "the removal fails"), 1);
	struct us_stats s = stats();
	assert_int_equal(s.objects_deleted, 0);
	assert_int_equal(s.sweep_objects, 6);
	assert_int_equal(s.sweep_failed, 0); /* the rest of it reached its end */
	remove_rc = 0;
	assert_int_equal(sweep(), 0);
	assert_int_equal(objects_of("a")->count, 2);
	assert_int_equal(stats().objects_deleted, 2);
	close_fleet();
}

/* -------------------------------------------------------------- reconciliation */

/* NAME, and nothing else, is uploaded, its new name sorts after AFTER_S, and then all is
 * in order. */
static void assert_uploaded_again(const char *name, uint32_t after_s)
{
	static const char *const names[] = { "a", "b", "c" };
	uint32_t before[3];
	uint64_t reconciled = stats().databases_reconciled;
	for (int i = 0; i < 3; i++) {
		before[i] = newest_of(names[i]);
	}
	assert_int_equal(sweep(), 1);
	for (int i = 0; i < 3; i++) {
		if (strcmp(names[i], name) == 0) {
			assert_true(newest_of(names[i]) > after_s);
		} else {
			assert_int_equal(newest_of(names[i]), before[i]);
		}
	}
	assert_int_equal(stats().databases_reconciled, reconciled + 1);
	assert_int_equal(stats().unsynced, 0);
	assert_int_equal(sweep(), 0);
	assert_int_equal(stats().databases_reconciled, reconciled + 1);
}

static void test_newest_missing(void **state)
{
	(void)state;
	three(0);
	change("a");
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(objects_of("a")->count, 2);
	uint32_t newest = newest_of("a");
	remove_object("a", newest);
	assert_uploaded_again("a", newest);
	assert_int_equal(objects_of("a")->count, 2);
	close_fleet();
}

static void test_all_missing(void **state)
{
	(void)state;
	three(RETENTION_S);
	uint32_t newest = newest_of("b");
	remove_object("b", newest);
	assert_uploaded_again("b", newest);
	/* The whole target: each of them. */
	remove_object("a", newest_of("a"));
	remove_object("b", newest_of("b"));
	remove_object("c", newest_of("c"));
	assert_int_equal(sweep(), 3);
	assert_int_equal(sweep(), 0);
	close_fleet();
}

static void test_truncated(void **state)
{
	(void)state;
	char path[PATH_LEN];
	three(0);
	uint32_t newest = newest_of("c");
	object_path(path, "c", newest);
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size - 1), 0);
	assert_uploaded_again("c", newest);
	/* The length is remembered through a restart. */
	newest = newest_of("c");
	object_path(path, "c", newest);
	close_fleet();
	open_fleet(0);
	assert_int_equal(sweep(), 0);
	assert_int_equal(truncate(path, 0), 0);
	assert_uploaded_again("c", newest);
	close_fleet();
}

static void test_newer_unknown(void **state)
{
	(void)state;
	three(0);
	uint32_t unknown = now() + 3600;
	add_object("a", "a", unknown);
	assert_uploaded_again("a", unknown);
	assert_int_equal(newest_of("a"), unknown + 1); /* the clock is behind it */
	close_fleet();
}

static void copy_state(const char *from, const char *to)
{
	char source[PATH_LEN], path[PATH_LEN];
	path_of(source, "%s", from);
	path_of(path, "%s", to);
	copy_file(source, path);
}

/* The state goes back to an older copy, and the clock with it. */
static void test_rolled_back(void **state)
{
	(void)state;
	three(0);
	close_fleet();
	copy_state("state/state.db", "saved.db");
	open_fleet(0);
	clock_offset_s += 3600;
	change("a");
	assert_int_equal(cycle().uploaded, 1);
	close_fleet();
	clock_offset_s -= 3000;
	copy_state("saved.db", "state/state.db");
	open_fleet(0);
	assert_uploaded_again("a", newest_of("a"));
	assert_int_equal(events(US_EVENT_STATE_RESET, "state", ""), 0);
	close_fleet();
}

/* What is no database, or empty, is left alone, whatever an older state has put there. */
static void test_no_databases(void **state)
{
	(void)state;
	char path[PATH_LEN];
	three(0);
	path_of(path, "data/empty.db");
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fclose(f), 0);
	path_of(path, "data/text.db");
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fprintf(f, "%2000s", "no database") > 0);
	assert_int_equal(fclose(f), 0);
	us_clock_sleep_ns(50 * US_NS_PER_MS); /* past the racy tick */
	assert_int_equal(cycle().uploaded, 0);
	add_object("a", "text", now() - 100);
	assert_int_equal(sweep(), 0);
	assert_int_equal(cycle().changed, 0);
	assert_int_equal(stats().databases_reconciled, 0);
	assert_int_equal(stats().not_databases, 1);
	assert_int_equal(stats().databases_empty, 1);
	close_fleet();
}

/* ----------------------------------------------------------- when, and how often */

static void test_once_a_day(void **state)
{
	(void)state;
	three(RETENTION_S);
	/* A fresh state: the sweep's listing is the one that looks at the names. */
	assert_int_equal(list_count, 1);
	assert_int_equal(stats().api_list, 1);
	int64_t swept_ns = stats().last_sweep_ns;
	assert_true(swept_ns > us_clock_wall_ns() - 60 * US_NS_PER_S);
	assert_true(stats().sweep_seconds > 0);
	assert_int_equal(cycle().uploaded, 0);
	close_fleet();
	/* A restart: nothing listed, nothing put, and the time is known at once. */
	open_fleet(RETENTION_S);
	assert_int_equal(stats().last_sweep_ns, swept_ns);
	clock_offset_s += DAY - 120;
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().api_list, 0);
	assert_int_equal(stats().api_put, 1); /* the owner object */
	assert_int_equal(stats().last_sweep_ns, swept_ns);
	close_fleet();
	/* A day later. */
	clock_offset_s += 120;
	open_fleet(RETENTION_S);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().api_list, 1);
	assert_true(stats().last_sweep_ns >= swept_ns + DAY * US_NS_PER_S);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().api_list, 1);
	close_fleet();
	/* A sweep that has found nothing is remembered like any other. */
	open_fleet(RETENTION_S);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().api_list, 0);
	close_fleet();
	/* The clock was set back before it: due. */
	clock_offset_s -= 2 * DAY;
	open_fleet(RETENTION_S);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().api_list, 1);
	close_fleet();
}

/* Cron with a state that does not live on: the first sweep removes what is old. */
static void test_fresh_state(void **state)
{
	(void)state;
	three(0);
	age("a", (const uint32_t[]){ 60, 50, 40 }, 3);
	add_object("a", "b", now() + 300); /* of another host's clock */
	close_fleet();
	char path[PATH_LEN];
	path_of(path, "state/state.db");
	assert_int_equal(unlink(path), 0);
	open_fleet(RETENTION_S);
	us_sweep(us);
	assert_int_equal(cycle().uploaded, 3);
	assert_int_equal(list_count, 1);
	assert_int_equal(stats().objects_deleted, 2);
	assert_int_equal(stats().databases_reconciled, 0);
	assert_int_equal(objects_of("a")->count, 3);
	/* The epoch is past the newest name of all. */
	assert_true(newest_of("a") > now() + 200);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(list_count, 1);
	close_fleet();
}

static void test_fresh_state_cannot_list(void **state)
{
	(void)state;
	change("a");
	open_fleet(RETENTION_S);
	/* The target does not answer: nothing is uploaded. */
	list_rc = US_E_NETWORK;
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(events(US_EVENT_UNREACHABLE, "upload", "the list fails"), 1);
	assert_int_equal(stats().sweep_failed, 1);
	assert_int_equal(objects_of("a")->count, 0);
	/* Listing is forbidden: the clock has to do, and that is said once. */
	list_rc = US_E_ACCESS;
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(list_count, 2);
	assert_int_equal(stats().sweep_failed, 1);
	assert_int_equal(stats().last_sweep_ns, 0);
	change("a");
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(list_count, 2); /* within the hour */
	assert_int_equal(events(US_EVENT_WARNING, "list", "cannot be looked at"), 1);
	list_rc = 0;
	assert_int_equal(sweep(), 0);
	assert_int_equal(stats().sweep_failed, 0);
	close_fleet();
}

static void test_failure(void **state)
{
	(void)state;
	three(RETENTION_S);
	age("a", (const uint32_t[]){ 60, 50, 40 }, 3);
	int64_t swept_ns = stats().last_sweep_ns;
	clock_offset_s += DAY;
	list_rc = US_E_TIMEOUT;
	change("a");
	assert_int_equal(cycle().uploaded, 1); /* uploads do not care */
	assert_int_equal(list_count, 2);
	assert_int_equal(stats().sweep_failed, 1);
	assert_int_equal(stats().last_sweep_ns, swept_ns);
	change("b");
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(list_count, 2); /* not before an hour is over */
	us->sweep_retry_ns = us_clock_mono_ns();
	(void)cycle();
	assert_int_equal(list_count, 3);
	us_sweep(us); /* unless it is asked for */
	(void)cycle();
	assert_int_equal(list_count, 4);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", "the list fails"), 1);
	assert_int_equal(objects_of("a")->count, 5);
	list_rc = 0;
	us->sweep_retry_ns = us_clock_mono_ns();
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(stats().sweep_failed, 0);
	assert_true(stats().last_sweep_ns > swept_ns);
	assert_int_equal(objects_of("a")->count, 2);
	/* And said anew when it fails anew. */
	list_rc = US_E_TIMEOUT;
	assert_int_equal(sweep(), 0);
	assert_int_equal(events(US_EVENT_WARNING, "sweep", "the list fails"), 1);
	close_fleet();
}

/* What a listing that fails has not named is not missing. */
static int32_t give_nothing(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			    void *arg, struct us_error *err)
{
	(void)store, (void)prefix, (void)fn, (void)arg;
	return us_fail(err, US_E_NETWORK, "cut off");
}

static void test_incomplete_listing(void **state)
{
	(void)state;
	three(RETENTION_S);
	hooked.list = give_nothing;
	assert_int_equal(sweep(), 0);
	assert_int_equal(stats().databases_reconciled, 0);
	assert_int_equal(stats().unsynced, 0);
	close_fleet();
}

/* A state file of version 1: nothing is uploaded again. */
static void test_version_1(void **state)
{
	(void)state;
	char path[PATH_LEN];
	sqlite3 *db;
	three(RETENTION_S);
	us_clock_sleep_ns(50 * US_NS_PER_MS);
	assert_int_equal(cycle().uploaded, 0);
	close_fleet();
	path_of(path, "state/state.db");
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(
		sqlite3_exec(db,
			     "ALTER TABLE record DROP COLUMN object_len;"
			     "ALTER TABLE record DROP COLUMN uploaded_ms; PRAGMA user_version = 1;"
			     "DELETE FROM meta WHERE name = 'last_sweep'",
			     NULL, NULL, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	open_fleet(RETENTION_S);
	object_path(path, "a", newest_of("a"));
	assert_int_equal(truncate(path, 10), 0);
	assert_int_equal(cycle().uploaded, 0); /* lengths are not known */
	assert_int_equal(events(US_EVENT_STATE_RESET, "state", ""), 0);
	assert_int_equal(stats().api_put, 1); /* the owner object */
	assert_int_equal(stats().api_list, 1); /* no sweep is known: due */
	uint32_t newest = newest_of("b");
	remove_object("b", newest);
	assert_uploaded_again("b", newest);
	close_fleet();
}

/* ------------------------------------------------------------- beside a cycle */

/*
 * A listing that is older than what was uploaded meanwhile: that says nothing about what
 * was. A cycle goes on after ten seconds, and later ones take over what was found.
 */
static void test_beside_cycles(void **state)
{
	(void)state;
	three(0);
	remove_object("b", newest_of("b"));
	clock_offset_s += DAY;
	list_held = 1;
	change("a");
	change("new");
	int64_t start_ns = us_clock_mono_ns();
	assert_int_equal(cycle().uploaded, 2);
	int64_t waited_ns = us_clock_mono_ns() - start_ns;
	assert_true(waited_ns > 9 * US_NS_PER_S);
	assert_true(waited_ns < 25 * US_NS_PER_S);
	assert_true(list_taken);
	start_ns = us_clock_mono_ns();
	change("c");
	assert_int_equal(cycle().uploaded, 1); /* it does not wait again */
	assert_true(us_clock_mono_ns() - start_ns < 8 * US_NS_PER_S);
	assert_int_equal(stats().databases_reconciled, 0);
	list_held = 0;
	for (int i = 0; i < 1000 && stats().databases_reconciled == 0; i++) {
		us_clock_sleep_ns(5 * US_NS_PER_MS);
		(void)cycle();
	}
	/* Only b was missing; it is there by the cycle after that at the latest. */
	assert_int_equal(stats().databases_reconciled, 1);
	(void)cycle();
	assert_int_equal(objects_of("b")->count, 1);
	assert_int_equal(objects_of("a")->count, 2);
	assert_int_equal(objects_of("c")->count, 2);
	assert_int_equal(objects_of("new")->count, 1);
	assert_int_equal(list_count, 2);
	assert_int_equal(sweep(), 0);
	assert_int_equal(stats().databases_reconciled, 1);
	close_fleet();
}

static void *run_cycle(void *arg)
{
	struct us_cycle_result *result = arg;
	result->struct_size = sizeof(*result);
	return us_cycle(us, result, NULL) ? NULL : result;
}

/* Starts a cycle that waits for its sweep. */
static pthread_t start_waiting(struct us_cycle_result *result)
{
	pthread_t thread;
	list_held = 1;
	us_sweep(us);
	clock_offset_s += 2;
	assert_int_equal(pthread_create(&thread, NULL, run_cycle, result), 0);
	while (!list_taken) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	return thread;
}

static void test_finish(void **state)
{
	(void)state;
	struct us_cycle_result result;
	void *ok;
	three(0);
	change("a");
	pthread_t thread = start_waiting(&result);
	int64_t start_ns = us_clock_mono_ns();
	us_finish(us);
	assert_int_equal(pthread_join(thread, &ok), 0);
	assert_true(us_clock_mono_ns() - start_ns < 5 * US_NS_PER_S);
	assert_ptr_equal(ok, &result);
	assert_int_equal(result.interrupted, 1);
	assert_int_equal(result.uploaded, 0);
	/* The next one has what this one has not. */
	assert_int_equal(cycle().uploaded, 1);
	/* And the end does not wait for it. */
	start_ns = us_clock_mono_ns();
	close_fleet();
	assert_true(us_clock_mono_ns() - start_ns < 5 * US_NS_PER_S);
	/* It did not reach its end: the time of the one before it stands. */
	list_held = 0;
	open_fleet(0);
	assert_int_equal(cycle().uploaded, 0);
	close_fleet();
}

static void test_cancel(void **state)
{
	(void)state;
	struct us_cycle_result result;
	void *ok;
	three(0);
	pthread_t thread = start_waiting(&result);
	us_cancel(us);
	assert_int_equal(pthread_join(thread, &ok), 0);
	assert_null(ok);
	close_fleet();
}

/* A fresh state that was interrupted has not seen the names: nothing is uploaded before. */
static void test_finish_fresh(void **state)
{
	(void)state;
	struct us_cycle_result result;
	void *ok;
	change("a");
	open_fleet(0);
	pthread_t thread = start_waiting(&result);
	us_finish(us);
	assert_int_equal(pthread_join(thread, &ok), 0);
	assert_ptr_equal(ok, &result);
	assert_int_equal(result.interrupted, 1);
	assert_int_equal(objects_of("a")->count, 0);
	list_held = 0;
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(list_count, 1);
	assert_true(stats().last_sweep_ns > 0);
	close_fleet();
}

/* The second that the last object is named after is not yet over: a change waits for
 * the next cycle, and no longer, even if that comes within the second, too. */
static void test_waits_one_cycle(void **state)
{
	(void)state;
	change("a");
	open_fleet(0);
	uint32_t second;
	uint64_t at_once, then;
	do {
		change("a");
		assert_int_equal(cycle().uploaded, 1);
		second = newest_of("a");
		change("a");
		at_once = cycle_at_once().uploaded;
		then = cycle_at_once().uploaded;
	} while (now() != second);
	assert_int_equal(at_once, 0);
	assert_int_equal(then, 1);
	assert_true(newest_of("a") > second);
	assert_int_equal(stats().unsynced, 0);
	close_fleet();
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_retention),
		TEST(test_retention_limit),
		TEST(test_retention_in_batches),
		TEST(test_no_retention),
		TEST(test_clock_jump),
		TEST(test_names_far_ahead),
		TEST(test_delete_fails),
		TEST(test_newest_missing),
		TEST(test_all_missing),
		TEST(test_truncated),
		TEST(test_newer_unknown),
		TEST(test_rolled_back),
		TEST(test_no_databases),
		TEST(test_once_a_day),
		TEST(test_fresh_state),
		TEST(test_fresh_state_cannot_list),
		TEST(test_failure),
		TEST(test_incomplete_listing),
		TEST(test_version_1),
		TEST(test_beside_cycles),
		TEST(test_finish),
		TEST(test_cancel),
		TEST(test_finish_fresh),
		TEST(test_waits_one_cycle),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
