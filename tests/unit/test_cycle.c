/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cycle, through the whole library: databases written by SQLite, a directory as
 * target. Between the library and its store stands a hook that can hold puts back and
 * let them fail. The clocks are this test's: the wall clock can be moved, the clock of
 * file times can stand still, and whoever sleeps has slept at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "fleet_dir.h"

#define HELD_MAX 256

/* ------------------------------------------------------------------- the clocks */

static _Atomic int64_t wall_offset_s;
static _Atomic int64_t file_clock_ns; /* where it stands; 0: it runs */
static _Atomic int64_t slept_ns;      /* by which the monotonic clock is ahead */
static _Atomic int64_t boot_clock_ns; /* as FILE_CLOCK_NS */

static int64_t to_ns(const struct timespec *ts)
{
	return (int64_t)ts->tv_sec * US_NS_PER_S + ts->tv_nsec;
}

static void from_ns(int64_t ns, struct timespec *ret)
{
	ret->tv_sec = ns / US_NS_PER_S;
	ret->tv_nsec = ns % US_NS_PER_S;
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int rc = (int)syscall(SYS_clock_gettime, id, ts);
	if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) {
		ts->tv_sec += wall_offset_s;
	}
	if (id == CLOCK_REALTIME_COARSE && file_clock_ns) {
		from_ns(file_clock_ns, ts);
	} else if (id == CLOCK_BOOTTIME && boot_clock_ns) {
		from_ns(boot_clock_ns, ts);
	} else if (id == CLOCK_MONOTONIC) {
		from_ns(to_ns(ts) + slept_ns, ts);
	}
	return rc;
}

/* Until an absolute time of the monotonic clock: those who sleep side by side wake
 * together. */
int clock_nanosleep(clockid_t id, int flags, const struct timespec *end, struct timespec *left)
{
	struct timespec now;
	(void)left;
	assert_true(id == CLOCK_MONOTONIC && flags == TIMER_ABSTIME);
	(void)syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
	int64_t ahead_ns = to_ns(end) - to_ns(&now);
	int64_t before_ns = slept_ns;
	while (ahead_ns > before_ns &&
	       !atomic_compare_exchange_weak(&slept_ns, &before_ns, ahead_ns)) {
	}
	(void)sched_yield();
	return 0;
}

/* All conditions of the library wait by the monotonic clock. */
int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *end)
{
	struct timespec real_end;
	from_ns(to_ns(end) - slept_ns, &real_end);
	return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &real_end);
}

/* ---------------------------------------------------------- between us and store */

static struct us *us;
static const struct us_store_ops *real;
static struct us_store_ops hooked;
static _Atomic int put_count, list_count;
static int32_t put_rc;           /* how every put ends, if not 0 */
static void (*at_store)(void);   /* called in every call of the store */
static void (*while_held)(void); /* called in put_wait, in which nothing has come back */
static int (*is_held)(const char *key);

static pthread_mutex_t held_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct us_put *held[HELD_MAX], *ended; /* ENDED: linked, never sent */
static size_t held_count, held_fresh;         /* HELD_FRESH: since the last put_wait */
static uint64_t held_len, held_len_peak;      /* in memory */

static void hook_put_start(struct us_store *store, struct us_put *put)
{
	put_count++;
	if (at_store) {
		at_store();
	}
	(void)pthread_mutex_lock(&held_mutex);
	int hold = is_held && is_held(put->key) && held_count < HELD_MAX;
	if (hold) {
		held[held_count++] = put;
		held_fresh++;
		held_len += put->data ? put->len : 0;
		held_len_peak = held_len > held_len_peak ? held_len : held_len_peak;
	} else if (put_rc) {
		put->rc = us_fail(&put->err, put_rc, "the put fails");
		put->next = ended;
		ended = put;
	}
	(void)pthread_mutex_unlock(&held_mutex);
	if (!hold && !put_rc) {
		real->put_start(store, put);
	}
}

/* The put that has been held longest. */
static struct us_put *take_held(void)
{
	struct us_put *put = NULL;
	(void)pthread_mutex_lock(&held_mutex);
	if (held_count > 0) {
		put = held[0];
		held_len -= put->data ? put->len : 0;
		memmove(held, held + 1, --held_count * sizeof(held[0]));
	}
	(void)pthread_mutex_unlock(&held_mutex);
	return put;
}

static struct us_put *hook_put_wait(struct us_store *store, int32_t timeout_ms)
{
	if (at_store) {
		at_store();
	}
	(void)pthread_mutex_lock(&held_mutex);
	struct us_put *puts = ended;
	ended = NULL;
	size_t fresh = held_fresh;
	held_fresh = 0;
	(void)pthread_mutex_unlock(&held_mutex);
	if (!puts) {
		puts = real->put_wait(store, timeout_ms);
	}
	if (!puts && fresh == 0 && while_held) {
		while_held();
	}
	return puts;
}

static int32_t hook_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			 void *arg, struct us_error *err)
{
	list_count++;
	if (at_store) {
		at_store();
	}
	return real->list(store, prefix, fn, arg, err);
}

/* ------------------------------------------------------------------- the fleet */

static uint64_t min_interval_ms; /* of the fleets to be opened */

static int setup(void **state)
{
	(void)state;
	static const char *const dirs[] = { "data", "target", "state" };
	wall_offset_s = file_clock_ns = slept_ns = boot_clock_ns = 0;
	min_interval_ms = 0;
	put_count = list_count = 0;
	put_rc = 0;
	at_store = while_held = NULL;
	is_held = NULL;
	ended = NULL;
	held_count = held_fresh = 0;
	held_len = held_len_peak = 0;
	return make_dirs(dirs, sizeof(dirs) / sizeof(dirs[0]));
}

static int teardown(void **state)
{
	(void)state;
	us_close(us); /* of a test that failed */
	us = NULL;
	return remove_dirs();
}

static void open_fleet(const char *state_dir)
{
	char pattern[PATH_LEN], target[PATH_LEN], state[PATH_LEN];
	path_of(pattern, "data/*.db");
	path_of(target, "target");
	path_of(state, "%s", state_dir);
	const struct us_options options = { .struct_size = sizeof(options),
					    .flags = US_OPEN_ANY_FILESYSTEM,
					    .discovery_pattern = pattern,
					    .path = "b/{{name}}",
					    .state_dir = state,
					    .target = US_TARGET_FILE,
					    .directory = target,
					    .memory_limit_bytes = 16000000,
					    .min_interval_ms = min_interval_ms };
	struct us_error err = US_ERROR_INIT;
	if (us_open(&options, &us, &err)) {
		fail_msg("%s", err.message);
	}
	real = us->store->ops;
	hooked = *real;
	hooked.put_start = hook_put_start;
	hooked.put_wait = hook_put_wait;
	hooked.list = hook_list;
	us->store->ops = &hooked;
}

static void close_fleet(void)
{
	us_close(us);
	us = NULL;
}

static sqlite3 *open_db(const char *name)
{
	char path[PATH_LEN];
	sqlite3 *db;
	path_of(path, "data/%s.db", name);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	return db;
}

static void run_sql(sqlite3 *db, const char *sql)
{
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
}

/* A row of LEN random bytes more in NAME.db; makes it, if there is none. */
static void change(const char *name, int len)
{
	char sql[200];
	sqlite3 *db = open_db(name);
	(void)snprintf(sql, sizeof(sql),
		       "PRAGMA synchronous=OFF; CREATE TABLE IF NOT EXISTS t(x);"
		       "INSERT INTO t VALUES (randomblob(%d))",
		       len);
	run_sql(db, sql);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
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

static struct us_cycle_result cycle(void)
{
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	struct us_error err = US_ERROR_INIT;
	wall_offset_s += 2; /* every cycle has a second of its own for its names */
	if (us_cycle(us, &result, &err)) {
		fail_msg("%s", err.message);
	}
	return result;
}

static struct us_record record_of(const char *name)
{
	char file[64];
	struct us_record record = { 0 };
	(void)snprintf(file, sizeof(file), "%s.db", name);
	const struct us_siphash_key *key = &us_state_info(us->state)->key;
	(void)us_table_get(us->table, us_path_hash(key, "", 0, file, strlen(file)), &record);
	return record;
}

static int hold_all(const char *key)
{
	(void)key;
	return 1;
}

static int hold_a(const char *key)
{
	return strncmp(key, "b/a/", 4) == 0;
}

/* ------------------------------------------------------------------- the tests */

static void test_restart(void **state)
{
	(void)state;
	change("a", 10);
	change("b", 10);
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 2);
	assert_int_equal(list_count, 1); /* a state that is new looks at the names once */
	close_fleet();
	open_fleet("state");
	for (int i = 0; i < 3; i++) {
		struct us_cycle_result r = cycle();
		assert_int_equal(r.databases, 2);
		assert_int_equal(r.changed, 0);
	}
	assert_int_equal(put_count, 2);
	assert_int_equal(list_count, 1);
	close_fleet();
}

#define LOCKED 400
#define DAMAGED 50
#define GOOD 50

/* Write-locks LEN bytes of data/NAME, as another process would. */
static int lock_file(const char *name, off_t start, off_t len)
{
	char path[PATH_LEN];
	struct flock lock = { .l_type = F_WRLCK, .l_start = start, .l_len = len };
	path_of(path, "data/%s", name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
	return fd;
}

static int lock_exclusive(const char *name)
{
	return lock_file(name, 0x40000002, 510);
}

static int lock_reserved(const char *name)
{
	return lock_file(name, 0x40000001, 1);
}

/*
 * Databases that stay locked, or are damaged, cost the others nothing: those are backed
 * up, and the time that a cycle waits for locks is bounded, however many there are.
 */
static void test_patience(void **state)
{
	(void)state;
	static int fds[LOCKED];
	char template[PATH_LEN], path[PATH_LEN];
	change("template", 5000);
	path_of(template, "data/template.db");
	for (int i = 0; i < LOCKED; i++) {
		path_of(path, "data/x%03d-locked.db", i);
		copy_file(template, path);
	}
	for (int i = 0; i < DAMAGED; i++) {
		path_of(path, "data/x%03d-damaged.db", i);
		copy_file(template, path);
		assert_int_equal(truncate(path, 4096), 0);
	}
	for (int i = 1; i < GOOD; i++) {
		path_of(path, "data/x%03d-good.db", i);
		copy_file(template, path);
	}
	for (int i = 0; i < LOCKED; i++) {
		(void)snprintf(path, sizeof(path), "x%03d-locked.db", i);
		fds[i] = lock_exclusive(path);
	}
	open_fleet("state");
	for (int i = 0; i < 2; i++) {
		slept_ns = 0;
		struct us_cycle_result r = cycle();
		print_message("%.2f s waited for locks\n", (double)slept_ns / 1e9);
		assert_int_equal(r.databases, LOCKED + DAMAGED + GOOD);
		assert_int_equal(r.failed, LOCKED + DAMAGED);
		assert_int_equal(r.uploaded, i == 0 ? GOOD : 0);
		/* Five seconds, and what was begun by then. */
		assert_true(slept_ns > US_NS_PER_S && slept_ns < 8 * US_NS_PER_S);
	}
	for (int i = 0; i < LOCKED; i++) {
		(void)close(fds[i]);
	}
	assert_int_equal(cycle().uploaded, LOCKED);
	close_fleet();
}

#define TURNS_MAX 600
#define BEGUN 50

/* COUNT locked databases, and BEGUN with a writer that has not touched the file yet:
 * patience reads those. */
static void make_busy(int count, int fds[TURNS_MAX + BEGUN])
{
	char template[PATH_LEN], path[PATH_LEN], name[32];
	change("template", 5000);
	path_of(template, "data/template.db");
	for (int i = 0; i < count + BEGUN; i++) {
		(void)snprintf(name, sizeof(name), "x%03d.db", i);
		path_of(path, "data/%s", name);
		copy_file(template, path);
		fds[i] = i < count ? lock_exclusive(name) : lock_reserved(name);
	}
	path_of(path, "data/template.db");
	assert_int_equal(unlink(path), 0);
}

/* However many stay locked, and wherever the walk meets them: each has its turn. */
static void test_turns(void **state)
{
	(void)state;
	static int fds[TURNS_MAX + BEGUN];
	const int locked = 60;
	make_busy(locked, fds);
	open_fleet("state");
	/* At least four of those that are locked are waited for in a cycle. */
	uint64_t uploaded = 0;
	int cycles = 0;
	for (; uploaded < BEGUN && cycles < locked / 4 + 1; cycles++) {
		uploaded += cycle().uploaded;
	}
	print_message("%d cycles\n", cycles);
	assert_int_equal(uploaded, BEGUN);
	for (int i = 0; i < locked + BEGUN; i++) {
		(void)close(fds[i]);
	}
	close_fleet();
}

/* More than can be put aside: the walk's last ones have their turn too. */
static void test_too_many_busy(void **state)
{
	(void)state;
	static int fds[TURNS_MAX + BEGUN];
	static char last[BEGUN][16];
	const struct dirent *entry;
	char path[PATH_LEN];
	int count = 0;
	make_busy(TURNS_MAX, fds);
	path_of(path, "data");
	DIR *d = opendir(path);
	assert_non_null(d);
	while ((entry = readdir(d)) != NULL) {
		if (entry->d_name[0] == 'x' && atoi(entry->d_name + 1) >= TURNS_MAX) {
			(void)snprintf(last[count++], sizeof(last[0]), "%.4s", entry->d_name);
		}
	}
	(void)closedir(d);
	assert_int_equal(count, BEGUN);
	open_fleet("state");
	const struct us_siphash_key *key = &us_state_info(us->state)->key;
	uint64_t uploaded = 0;
	for (int i = BEGUN - 5; i < BEGUN; i++) {
		char file[32];
		(void)snprintf(file, sizeof(file), "%s.db", last[i]);
		us->turn = us_path_hash(key, "", 0, file, strlen(file));
		struct us_cycle_result r = cycle();
		uploaded += r.uploaded;
		assert_int_equal(r.failed, TURNS_MAX + BEGUN - uploaded);
		assert_int_equal(record_of(last[i]).object_count, 1);
	}
	for (int i = 0; i < TURNS_MAX + BEGUN; i++) {
		(void)close(fds[i]);
	}
	assert_int_equal(cycle().uploaded, TURNS_MAX + BEGUN - uploaded);
	close_fleet();
}

static void release_one(void)
{
	struct us_put *put = take_held();
	if (put) {
		real->put_start(us->store, put);
	}
}

/* While nothing reaches the target, objects are staged up to half the memory limit. */
static void test_budget(void **state)
{
	(void)state;
	for (int i = 0; i < 20; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "n%02d", i);
		change(name, 1000000);
	}
	open_fleet("state");
	is_held = hold_all;
	while_held = release_one;
	assert_int_equal(cycle().uploaded, 20);
	print_message("%llu of %llu bytes staged\n", (unsigned long long)held_len_peak,
		      (unsigned long long)us->staged_max);
	assert_int_equal(us->staged_max, 8000000);
	assert_true(held_len_peak <= us->staged_max);
	assert_true(held_len_peak >= us->staged_max / 2);
	assert_int_equal(us->staged, 0);
	close_fleet();
}

static size_t heap_len(void)
{
	struct mallinfo2 info = mallinfo2();
	return info.uordblks + info.hblkhd;
}

#define MANY 5000

/* A database that is known costs 64 bytes at most. (With a sanitizer the heap is not
 * libc's, and this says nothing.) */
static void test_memory_per_database(void **state)
{
	(void)state;
	char path[PATH_LEN];
	min_interval_ms = 1000; /* it costs memory, too */
	open_fleet("state");
	(void)cycle();
	size_t before = heap_len();
	for (int i = 0; i < MANY; i++) {
		path_of(path, "data/n%05d.db", i);
		int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		assert_true(fd >= 0);
		(void)close(fd);
	}
	for (int i = 0; i < 3; i++) {
		assert_int_equal(cycle().databases, MANY);
	}
	size_t after = heap_len();
	print_message("%d databases: %zu bytes of heap, before %zu\n", MANY, after, before);
	assert_true(after <= before + 64 * MANY + ((size_t)1 << 20));
	close_fleet();
}

/* Takes every lock of the library, again and again. */
static _Atomic int prober_ends;
static _Atomic unsigned int prober_rounds;

static int32_t look_at(void *arg, struct us_record *record)
{
	(void)arg, (void)record;
	return 0;
}

static void *probe_main(void *arg)
{
	(void)arg;
	while (!prober_ends) {
		struct us_stats s = { .struct_size = sizeof(s) };
		struct us_failure f;
		(void)us_stats(us, &s, NULL);
		(void)us_failures(us, &f, 1, NULL);
		(void)us_table_each(us->table, look_at, NULL);
		prober_rounds++;
	}
	return NULL;
}

static _Atomic int stuck_count;

/* The target takes its time: meanwhile whoever wants a lock gets it. */
static void await_prober(void)
{
	unsigned int from = prober_rounds;
	struct timespec pause = { .tv_nsec = 100000 };
	for (int i = 0; stuck_count == 0 && prober_rounds - from < 2; i++) {
		if (i == 100000) { /* ten seconds and more */
			stuck_count++;
			return;
		}
		(void)nanosleep(&pause, NULL);
	}
}

static void test_no_lock_in_the_store(void **state)
{
	(void)state;
	pthread_t prober;
	for (int i = 0; i < 5; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "n%02d", i);
		change(name, 100);
	}
	open_fleet("state");
	prober_ends = 0;
	stuck_count = 0;
	assert_int_equal(pthread_create(&prober, NULL, probe_main, NULL), 0);
	at_store = await_prober;
	struct us_cycle_result r = cycle();
	us_sweep(us);
	(void)cycle();
	prober_ends = 1;
	(void)pthread_join(prober, NULL);
	assert_int_equal(stuck_count, 0);
	assert_int_equal(r.uploaded, 5);
	assert_int_equal(list_count, 2);
	close_fleet();
}

/* The database "x" with a commit in its WAL, as a crash leaves it. Returns its ctime. */
static int64_t make_wal_db(void)
{
	char from[PATH_LEN], to[PATH_LEN];
	sqlite3 *db = open_db("made");
	run_sql(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(random())");
	path_of(from, "data/made.db");
	path_of(to, "data/x.db");
	copy_file(from, to);
	path_of(from, "data/made.db-wal");
	path_of(to, "data/x.db-wal");
	copy_file(from, to);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	path_of(from, "data/made.db");
	assert_int_equal(unlink(from), 0);
	struct stat st;
	assert_int_equal(stat(to, &st), 0);
	return to_ns(&st.st_ctim);
}

/* A file that was written within a tick of the look at it is read again, once. */
static void test_looked_at_again(void **state)
{
	(void)state;
	static const int64_t ahead_ns[] = { 5 * US_NS_PER_MS, -10 * US_NS_PER_S };
	for (int i = 0; i < 2; i++) {
		int64_t ctime_ns = make_wal_db();
		file_clock_ns = ctime_ns + ahead_ns[i];
		open_fleet("state");
		assert_int_equal(cycle().uploaded, 1);
		file_clock_ns += US_NS_PER_S;
		struct us_cycle_result r = cycle();
		assert_int_equal(r.changed, 0);
		assert_int_equal(r.unchanged, 1);
		assert_int_equal(cycle().unchanged, 0);
		close_fleet();
	}
	/* One that is older is not. */
	file_clock_ns = make_wal_db() + US_NS_PER_S;
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(cycle().unchanged, 0);
	close_fleet();
}

static uint32_t objects_of_a(void)
{
	char path[PATH_LEN], time[US_TIME_NAME_LEN + 1];
	uint32_t count = 0, now_s = (uint32_t)(us_clock_wall_ns() / US_NS_PER_S);
	for (uint32_t time_s = now_s - 60; time_s <= now_s + 60; time_s++) {
		us_time_name_format(time_s, time);
		path_of(path, "target/b/a/%s.db.lz4", time);
		count += access(path, F_OK) == 0;
	}
	return count;
}

/* What was a database and is none any more keeps its backups, and is a failure. */
static void test_no_database_any_more(void **state)
{
	(void)state;
	char path[PATH_LEN];
	struct us_failure f;
	change("a", 100);
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	path_of(path, "data/a.db");
	for (int i = 0; i < 2; i++) {
		FILE *file = fopen(path, "w"); /* of no bytes at first */
		assert_non_null(file);
		for (int k = 0; k < i * 1000; k++) {
			(void)fputs("no database ", file);
		}
		assert_int_equal(fclose(file), 0);
		struct us_cycle_result r = cycle();
		assert_int_equal(r.failed, 1);
		assert_int_equal(r.uploaded, 0);
		assert_int_equal(us_failures(us, &f, 1, NULL), 1);
		assert_non_null(strstr(f.message, "its backups are kept"));
		assert_int_equal(objects_of_a(), 1);
		assert_int_equal(put_count, 1);
	}
	close_fleet();
}

/* A put that fails may arrive all the same: what the target has is not known from the
 * moment it is sent, and the content that it had before is sent again. */
static void test_unknown_outcome(void **state)
{
	(void)state;
	char path[PATH_LEN], aside[PATH_LEN];
	path_of(path, "data/a.db");
	path_of(aside, "aside.db");
	change("a", 100);
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	copy_file(path, aside);
	change("a", 100);
	put_rc = US_E_TIMEOUT;
	assert_int_equal(cycle().failed, 1);
	assert_int_equal(record_of("a").content_hash, 0);
	put_rc = 0;
	copy_file(aside, path);
	struct us_cycle_result r = cycle();
	assert_int_equal(r.uploaded, 1);
	assert_int_equal(r.unchanged, 0);
	close_fleet();
}

static int waits_while_held;
static struct us_record while_under_way; /* that of a */

/* b is acknowledged, a is not: after a while the state is committed. What a kill would
 * leave at this moment is kept, and the put of a is never heard of again. */
static void take_crash_image(void)
{
	static const char *const names[] = { "state.db", "state.db-wal" };
	char from[PATH_LEN], to[PATH_LEN];
	while_under_way = record_of("a");
	if (waits_while_held++ == 0) {
		slept_ns += 6 * US_NS_PER_S; /* a commit is due */
	}
	if (waits_while_held < 4) { /* it was made before the next but one call */
		return;
	}
	for (size_t i = 0; i < 2; i++) {
		path_of(from, "state/%s", names[i]);
		path_of(to, "crashed/%s", names[i]);
		copy_file(from, to);
	}
	while_held = NULL;
	struct us_put *put = take_held();
	put->rc = us_fail(&put->err, US_E_NETWORK, "the network is gone");
	(void)pthread_mutex_lock(&held_mutex);
	put->next = ended;
	ended = put;
	(void)pthread_mutex_unlock(&held_mutex);
}

/* Killed while one put is under way: it is sent again, the acknowledged one is not. */
static void test_killed(void **state)
{
	(void)state;
	char path[PATH_LEN];
	path_of(path, "crashed");
	assert_int_equal(mkdir(path, 0700), 0);
	change("a", 100);
	change("b", 100);
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 2);
	change("a", 100);
	change("b", 100);
	waits_while_held = 0;
	is_held = hold_a;
	while_held = take_crash_image;
	struct us_cycle_result r = cycle();
	assert_true(while_under_way.flags & US_RECORD_UNSYNCED);
	assert_int_equal(while_under_way.content_hash, 0);
	assert_int_equal(r.uploaded, 1);
	assert_int_equal(r.failed, 1);
	close_fleet();
	is_held = NULL;
	put_count = 0;
	open_fleet("crashed");
	r = cycle();
	assert_int_equal(r.uploaded, 1);
	assert_int_equal(put_count, 1);
	assert_int_equal(objects_of_a(), 2);
	close_fleet();
}

static int hold_large(const char *key)
{
	return strncmp(key, "b/a/", 4) == 0 || strncmp(key, "b/d/", 4) == 0;
}

static struct us_stats stats(void)
{
	struct us_stats s = { .struct_size = sizeof(s) };
	assert_int_equal(us_stats(us, &s, NULL), 0);
	return s;
}

/* A large database that takes long holds up nobody, and is not begun twice. */
static void test_large(void **state)
{
	(void)state;
	static struct us_failure failure;
	const int large = 70 << 20;
	change("a", large);
	change("b", 100);
	change("c", 100);
	open_fleet("state");
	us_carry(us, 1);
	is_held = hold_large;
	assert_int_equal(cycle().uploaded, 2);
	while (put_count < 3) {
		(void)sched_yield(); /* it is read beside the cycles */
	}
	assert_int_equal(stats().unsynced, 1);
	assert_int_equal(stats().databases_failed, 0);
	/* Later cycles go on without it, and say so. */
	change("b", 100);
	change("a", 100);
	struct us_cycle_result r = cycle();
	assert_int_equal(r.uploaded, 1);
	assert_int_equal(r.failed, 1);
	assert_int_equal(put_count, 4);
	assert_int_equal(stats().databases_failed, 1);
	assert_int_equal(us_failures(us, &failure, 1, NULL), 1);
	assert_non_null(strstr(failure.path, "/a.db"));
	assert_non_null(strstr(failure.message, "not come to its end"));
	/* No sweep begins, and no other large one before it. */
	list_count = 0;
	us->swept_s = 0;
	change("d", large);
	change("c", 100);
	assert_int_equal(cycle().uploaded, 1);
	assert_int_equal(list_count, 0);
	assert_int_equal(put_count, 5);
	assert_int_equal(us->large_live, 1);
	/* It ends: what was committed since is seen, and the sweep and the other come. */
	release_one();
	while (us_large_is_any(us)) {
		(void)cycle();
	}
	while_held = release_one;
	while (stats().unsynced > 0) {
		(void)cycle();
	}
	assert_int_equal(list_count, 1);
	assert_int_equal(stats().databases_failed, 0);
	assert_int_equal(objects_of_a(), 2);
	assert_int_equal(us->large_live, 0);
	/* A cycle that has to wait for it does. */
	us_carry(us, 0);
	change("a", 100);
	assert_int_equal(cycle().uploaded, 1);
	/* What is under way at the end is cut off, and is the next run's. */
	us_carry(us, 1);
	while_held = NULL;
	change("a", 100);
	assert_int_equal(cycle().uploaded, 0);
	assert_int_equal(us->large_live, 1);
	while_held = release_one;
	close_fleet();
	is_held = NULL;
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	close_fleet();
}

/* -------------------------------------------------------------- min_interval */

#define INTERVAL_S 1800
#define CYCLE_NS (30 * US_NS_PER_S)

/* A fleet whose databases are uploaded every half an hour at most; its clock stands. */
static void open_waiting_fleet(void)
{
	min_interval_ms = INTERVAL_S * 1000;
	if (!boot_clock_ns) {
		boot_clock_ns = 1000 * US_NS_PER_S;
	}
	open_fleet("state");
}

static void check_cycle(uint64_t uploaded, uint64_t waiting, uint64_t failed)
{
	struct us_cycle_result r = cycle();
	assert_int_equal(r.uploaded, uploaded);
	assert_int_equal(r.waiting, waiting);
	assert_int_equal(r.failed, failed);
	assert_int_equal(stats().unsynced, waiting + failed);
	assert_int_equal(stats().databases_failed, failed);
}

/* With cycles of 30 s each 60th uploads a database that changes all the time, and between
 * these it is not read: it is locked. Cycles begin a little early or late. */
static void test_interval(void **state)
{
	(void)state;
	change("a", 100);
	change("idle", 100);
	open_waiting_fleet();
	check_cycle(2, 0, 0);
	int64_t start_ns = boot_clock_ns;
	for (int i = 1; i <= 180; i++) {
		change("a", 100);
		boot_clock_ns = start_ns + i * CYCLE_NS + (i % 3 - 1) * 15 * US_NS_PER_MS;
		int is_due = i % 60 == 0;
		int fd = is_due ? -1 : lock_exclusive("a.db");
		check_cycle(is_due ? 1 : 0, is_due ? 0 : 1, 0);
		if (!is_due) {
			(void)close(fd);
			assert_int_equal(stats().changed_last_cycle, 1);
		}
	}
	assert_int_equal(put_count, 2 + 3);
	assert_int_equal(stats().uploads_first, 2);
	assert_int_equal(stats().uploads_success, 5);
	/* Never earlier by more than the slack; what has waited long enough does not wait. */
	change("a", 100);
	boot_clock_ns = start_ns + 240 * CYCLE_NS - 200 * US_NS_PER_MS;
	check_cycle(0, 1, 0);
	boot_clock_ns += 110 * US_NS_PER_MS;
	check_cycle(0, 1, 0);
	change("idle", 100);
	boot_clock_ns += 90 * US_NS_PER_MS;
	check_cycle(2, 0, 0);
	/* Nor does a new one. */
	change("new", 100);
	check_cycle(1, 0, 0);
	close_fleet();
}

/* Since when a database waits, and how long yet, is known after a restart: by the wall
 * clock. If that was set, nobody waits longer. */
static void test_interval_restart(void **state)
{
	(void)state;
	change("a", 100);
	change("b", 100);
	open_waiting_fleet();
	check_cycle(2, 0, 0);
	change("a", 100);
	boot_clock_ns += 600 * US_NS_PER_S;
	wall_offset_s += 600;
	check_cycle(0, 1, 0);
	int64_t since_ns = stats().oldest_unsynced_ns;
	for (int i = 0; i < 2; i++) {
		close_fleet();
		boot_clock_ns = 5 * US_NS_PER_S; /* another boot */
		wall_offset_s += 300;
		open_waiting_fleet();
		check_cycle(0, 1, 0);
		assert_int_equal(stats().oldest_unsynced_ns, since_ns);
	}
	close_fleet();
	wall_offset_s += 600;
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	/* Set back: it is due. Set back a little: it waits no longer than from now on. */
	change("a", 100);
	close_fleet();
	wall_offset_s -= 3600;
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	wall_offset_s += 600;
	boot_clock_ns += 600 * US_NS_PER_S;
	change("a", 100);
	check_cycle(0, 1, 0);
	close_fleet();
	wall_offset_s -= 300;
	open_waiting_fleet();
	check_cycle(0, 1, 0);
	boot_clock_ns += INTERVAL_S * US_NS_PER_S;
	check_cycle(1, 0, 0);
	/* While it runs the wall clock does not matter. */
	change("a", 100);
	wall_offset_s += 86400;
	check_cycle(0, 1, 0);
	wall_offset_s -= 2 * 86400;
	check_cycle(0, 1, 0);
	boot_clock_ns += INTERVAL_S * US_NS_PER_S;
	check_cycle(1, 0, 0);
	close_fleet();
}

/* A state without times of uploads: none of them is young. */
static void test_interval_switched_on(void **state)
{
	(void)state;
	change("a", 100);
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	close_fleet();
	change("a", 100);
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	change("a", 100);
	check_cycle(0, 1, 0);
	close_fleet();
	min_interval_ms = 0; /* and off again */
	open_fleet("state");
	assert_int_equal(cycle().uploaded, 1);
	close_fleet();
}

/* Neither what failed before nor, in the next process, what the last cycle could not
 * send waits. */
static void test_interval_failure(void **state)
{
	(void)state;
	change("a", 100);
	open_waiting_fleet();
	put_rc = US_E_TIMEOUT;
	check_cycle(0, 0, 1);
	check_cycle(0, 0, 1);
	put_rc = 0;
	check_cycle(1, 0, 0);
	change("a", 100);
	check_cycle(0, 1, 0);
	boot_clock_ns += INTERVAL_S * US_NS_PER_S;
	put_rc = US_E_TIMEOUT;
	check_cycle(0, 0, 1);
	put_rc = 0;
	check_cycle(1, 0, 0);
	change("a", 100);
	check_cycle(0, 1, 0);
	us_flush(us);
	put_rc = US_E_TIMEOUT;
	check_cycle(0, 0, 1);
	close_fleet();
	put_rc = 0;
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	close_fleet();
}

/* As if the target had something else than what was read at the last look. */
static void differ(const char *file)
{
	uint64_t hash = us_path_hash(&us_state_info(us->state)->key, "", 0, file, strlen(file));
	struct us_record *record = us_table_acquire(us->table, hash, 0);
	assert_non_null(record);
	record->content_hash++;
	us_table_release(us->table, hash);
}

/* A look at what could have changed unseen is no upload, and leads to none too early. */
static void test_interval_look(void **state)
{
	(void)state;
	file_clock_ns = make_wal_db() + 5 * US_NS_PER_MS;
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	boot_clock_ns += CYCLE_NS;
	differ("x.db");
	check_cycle(0, 1, 0);
	assert_int_equal(stats().changed_last_cycle, 0);
	assert_true(stats().oldest_unsynced_ns > 0);
	check_cycle(0, 1, 0);
	assert_int_equal(stats().changed_last_cycle, 1);
	boot_clock_ns += INTERVAL_S * US_NS_PER_S - CYCLE_NS;
	check_cycle(1, 0, 0);
	/* Nothing was there: it is not an upload. */
	boot_clock_ns += INTERVAL_S * US_NS_PER_S - CYCLE_NS;
	struct us_cycle_result r = cycle();
	assert_int_equal(r.unchanged, 1);
	boot_clock_ns += CYCLE_NS;
	differ("x.db");
	check_cycle(1, 0, 0);
	close_fleet();
}

/* What a sweep misses in the target does not wait. */
static void test_interval_sweep(void **state)
{
	(void)state;
	char path[PATH_LEN], time[US_TIME_NAME_LEN + 1];
	change("a", 100);
	change("b", 100);
	change("c", 100);
	open_waiting_fleet();
	check_cycle(3, 0, 0);
	change("c", 100);
	us_time_name_format(record_of("a").object_time, time);
	path_of(path, "target/b/a/%s.db.lz4", time);
	assert_int_equal(unlink(path), 0);
	us_time_name_format(record_of("b").object_time, time);
	path_of(path, "target/b/b/%s.db.lz4", time);
	assert_int_equal(truncate(path, 10), 0);
	us_sweep(us);
	check_cycle(2, 1, 0);
	assert_int_equal(stats().databases_reconciled, 2);
	close_fleet();
}

/* The last cycle takes along what waits. */
static void test_interval_flush(void **state)
{
	(void)state;
	change("a", 100);
	open_waiting_fleet();
	check_cycle(1, 0, 0);
	change("a", 100);
	check_cycle(0, 1, 0);
	us_flush(us);
	check_cycle(1, 0, 0);
	change("a", 100);
	check_cycle(1, 0, 0);
	close_fleet();
	change("a", 100);
	open_waiting_fleet();
	check_cycle(0, 1, 0);
	close_fleet();
}

/* Killed: what waits goes on waiting. */
static void test_interval_killed(void **state)
{
	(void)state;
	char path[PATH_LEN];
	path_of(path, "crashed");
	assert_int_equal(mkdir(path, 0700), 0);
	change("a", 100);
	change("b", 100);
	change("c", 100);
	open_waiting_fleet();
	check_cycle(3, 0, 0);
	change("c", 100);
	check_cycle(0, 1, 0);
	change("a", 100);
	change("b", 100);
	boot_clock_ns += INTERVAL_S * US_NS_PER_S;
	wall_offset_s += INTERVAL_S;
	waits_while_held = 0;
	is_held = hold_a;
	while_held = take_crash_image;
	check_cycle(2, 0, 1);
	close_fleet();
	is_held = NULL;
	change("b", 100);
	open_fleet("crashed");
	check_cycle(1, 1, 0); /* a, of which no upload is known; b waits */
	boot_clock_ns += INTERVAL_S * US_NS_PER_S;
	check_cycle(1, 0, 0);
	close_fleet();
}

/* The upload of a large database begins with the cycle that has found it changed. */
static void test_interval_large(void **state)
{
	(void)state;
	change("a", 70 << 20);
	change("b", 100);
	open_waiting_fleet();
	us_carry(us, 1);
	is_held = hold_a;
	assert_int_equal(cycle().uploaded, 1);
	while (put_count < 2) {
		(void)sched_yield(); /* it is read beside the cycles */
	}
	boot_clock_ns += INTERVAL_S / 2 * US_NS_PER_S;
	is_held = NULL;
	release_one();
	while (us_large_is_any(us)) {
		(void)cycle();
	}
	change("a", 100);
	check_cycle(0, 1, 0);
	boot_clock_ns += INTERVAL_S / 2 * US_NS_PER_S;
	us_carry(us, 0);
	check_cycle(1, 0, 0);
	close_fleet();
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_restart),
		CASE(test_patience),
		CASE(test_turns),
		CASE(test_too_many_busy),
		CASE(test_budget),
		CASE(test_memory_per_database),
		CASE(test_no_lock_in_the_store),
		CASE(test_looked_at_again),
		CASE(test_no_database_any_more),
		CASE(test_unknown_outcome),
		CASE(test_killed),
		CASE(test_large),
		CASE(test_interval),
		CASE(test_interval_restart),
		CASE(test_interval_switched_on),
		CASE(test_interval_failure),
		CASE(test_interval_look),
		CASE(test_interval_sweep),
		CASE(test_interval_flush),
		CASE(test_interval_killed),
		CASE(test_interval_large),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
