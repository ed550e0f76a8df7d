/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One replicator for one target, through the whole library: two handles with a state
 * directory each, on one target directory. Between a handle and its store stands a hook
 * that counts and can fail what concerns the owner object; the clocks of leases are moved
 * by standing before libc's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "../../csrc/cycle/owner_note.h"
#include "fleet_dir.h"

#define WAIT_MS 20000
#define MINUTE 60

static _Atomic int64_t boot_offset_s;
static _Atomic int64_t mono_offset_s; /* of both clocks */
static _Atomic int64_t fast_left_s;   /* so long, waits of more than a minute take no time */

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int rc = (int)syscall(SYS_clock_gettime, id, ts);
	if (rc == 0 && (id == CLOCK_BOOTTIME || id == CLOCK_MONOTONIC)) {
		ts->tv_sec += mono_offset_s + (id == CLOCK_BOOTTIME ? boot_offset_s : 0);
	}
	return rc;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *time, struct timespec *left)
{
	struct timespec until = *time;
	until.tv_sec -= flags & TIMER_ABSTIME ? mono_offset_s : 0;
	return syscall(SYS_clock_nanosleep, id, flags, &until, left) ? errno : 0;
}

typedef int timedwait_fn(pthread_cond_t *cond, pthread_mutex_t *mutex,
			 const struct timespec *until);

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
			   const struct timespec *restrict until)
{
	union {
		void *pointer;
		timedwait_fn *fn;
	} next = { .pointer = dlsym(RTLD_NEXT, "pthread_cond_timedwait") };
	struct timespec now, real_until = *until;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	int64_t left_s = until->tv_sec - now.tv_sec;
	if (left_s > MINUTE && fast_left_s > 0) {
		mono_offset_s += left_s + 1;
		fast_left_s -= left_s + 1;
		return ETIMEDOUT;
	}
	real_until.tv_sec -= mono_offset_s;
	return next.fn(cond, mutex, &real_until);
}

/* ---------------------------------------------------------- between us and store */

static const struct us_store_ops *real;
static struct us_store_ops hooked;
static _Atomic int read_count, write_count, list_count, remove_count;
static _Atomic int32_t read_rc, write_rc; /* what these return, if not 0 */
static _Atomic int refuses_conditions;    /* every write over a version */
static _Atomic int list_held, list_taken;

static int32_t hook_read(struct us_store *store, const char *key, uint8_t *ret_data, size_t cap,
			 size_t *ret_len, struct us_store_version *ret_version,
			 struct us_error *err)
{
	read_count++;
	return read_rc ? us_fail(err, read_rc, "GET: AccessDenied, or whatever the test wants")
		       : real->read_version(store, key, ret_data, cap, ret_len, ret_version, err);
}

static int32_t hook_write(struct us_store *store, const char *key, const char *tag,
			  const uint8_t *data, size_t data_len, struct us_error *err)
{
	write_count++;
	if (write_rc) {
		return us_fail(err, write_rc, "PUT: AccessDenied, or whatever the test wants");
	}
	if (refuses_conditions && tag && tag[0]) {
		return us_fail(err, US_E_EXISTS, "PUT: another process has written it");
	}
	return real->write_version(store, key, tag, data, data_len, err);
}

static int32_t hook_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			 void *arg, struct us_error *err)
{
	list_count++;
	list_taken = 1;
	while (list_held) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	return real->list(store, prefix, fn, arg, err);
}

static int32_t hook_remove_many(struct us_store *store, const char *const *keys, size_t count,
				size_t *ret_removed, struct us_error *err)
{
	remove_count++;
	return real->remove_many(store, keys, count, ret_removed, err);
}

/* ------------------------------------------------------------------- the fleets */

static struct us *first, *second;

static int setup(void **state)
{
	(void)state;
	static const char *const dirs[] = { "data", "target", "state1", "state2" };
	boot_offset_s = mono_offset_s = fast_left_s = 0;
	read_count = write_count = list_count = remove_count = 0;
	read_rc = write_rc = 0;
	refuses_conditions = list_held = list_taken = 0;
	return make_dirs(dirs, sizeof(dirs) / sizeof(dirs[0]));
}

static void close_one(struct us **us)
{
	us_close(*us);
	*us = NULL;
}

/* As if killed: nothing is given back. */
static void kill_one(struct us **us)
{
	us_cancel(*us);
	close_one(us);
}

static int teardown(void **state)
{
	(void)state;
	list_held = 0;
	close_one(&first); /* of a test that failed */
	close_one(&second);
	return remove_dirs();
}

static struct us *open_with(const char *state_name, const char *template, uint64_t retention_s)
{
	char pattern[PATH_LEN], target[PATH_LEN], state[PATH_LEN];
	struct us *us;
	path_of(pattern, "data/{name}.db");
	path_of(target, "target");
	path_of(state, "%s", state_name);
	const struct us_options options = { .struct_size = sizeof(options),
					    .flags = US_OPEN_ANY_FILESYSTEM,
					    .discovery_pattern = pattern,
					    .path = template,
					    .hostname = "h1",
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
	hooked.read_version = hook_read;
	hooked.write_version = hook_write;
	hooked.list = hook_list;
	hooked.remove_many = hook_remove_many;
	us->store->ops = &hooked;
	return us;
}

static void open_first(void)
{
	first = open_with("state1", "b/{{name}}", 0);
}

static void open_second(void)
{
	second = open_with("state2", "b/{{name}}", 0);
}

static void change(const char *name)
{
	char path[PATH_LEN];
	sqlite3 *db;
	path_of(path, "data/%s.db", name);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db,
				      "CREATE TABLE IF NOT EXISTS t (x);"
				      "INSERT INTO t VALUES (randomblob(100))",
				      NULL, NULL, NULL),
			 SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	/* Objects are named after seconds; and past the file system's tick. */
	us_clock_sleep_ns(US_NS_PER_S - us_clock_wall_ns() % US_NS_PER_S + 50 * US_NS_PER_MS);
}

static struct us_cycle_result cycle(struct us *us)
{
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	struct us_error err = US_ERROR_INIT;
	if (us_cycle(us, &result, &err)) {
		fail_msg("%s", err.message);
	}
	return result;
}

static struct us_stats stats(struct us *us)
{
	struct us_stats s = { .struct_size = sizeof(s) };
	assert_int_equal(us_stats(us, &s, NULL), 0);
	return s;
}

static int32_t acquire(struct us *us, uint32_t flags, struct us_error *err)
{
	*err = (struct us_error)US_ERROR_INIT;
	return us_acquire(us, flags, WAIT_MS, err);
}

static void assert_ours(struct us *us, uint32_t flags)
{
	struct us_error err;
	if (acquire(us, flags, &err)) {
		fail_msg("%s", err.message);
	}
}

static void assert_refused(struct us *us)
{
	struct us_error err;
	assert_int_equal(acquire(us, 0, &err), US_E_OWNED);
}

/* How many objects NAME has; the newest one's name to RET (may be NULL). */
static int objects_of(const char *name, char *ret)
{
	char path[PATH_LEN];
	path_of(path, "target/b/%s", name);
	DIR *d = opendir(path);
	int count = 0;
	if (ret) {
		ret[0] = '\0';
	}
	for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
		if (e->d_name[0] == '.') {
			continue;
		}
		count++;
		if (ret && strcmp(e->d_name, ret) > 0) {
			(void)snprintf(ret, PATH_LEN, "%s", e->d_name);
		}
	}
	if (d) {
		(void)closedir(d);
	}
	return count;
}

/* The one owner object in the target. */
static void owner_path(char *ret)
{
	char path[PATH_LEN];
	path_of(path, "target/.litestream-multi-db");
	DIR *d = opendir(path);
	assert_non_null(d);
	int count = 0;
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (strncmp(e->d_name, "owner-", 6) == 0) {
			path_of(ret, "target/.litestream-multi-db/%s", e->d_name);
			count++;
		}
	}
	(void)closedir(d);
	assert_int_equal(count, 1);
}

static size_t read_owner(char text[US_OWNER_NOTE_LEN_MAX])
{
	char path[PATH_LEN];
	owner_path(path);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = read(fd, text, US_OWNER_NOTE_LEN_MAX);
	assert_true(len > 0);
	(void)close(fd);
	return (size_t)len;
}

static struct us_owner_note owner_note(void)
{
	char text[US_OWNER_NOTE_LEN_MAX];
	struct us_owner_note note;
	size_t len = read_owner(text);
	assert_int_equal(us_owner_note_parse(text, len, &note), 0);
	return note;
}

static void write_owner(const char *text, size_t len, int64_t age_s)
{
	char path[PATH_LEN], tmp[PATH_LEN];
	owner_path(path);
	path_of(tmp, "owner.tmp");
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, text, len), (ssize_t)len);
	struct timespec times[2] = { 0 };
	assert_int_equal(clock_gettime(CLOCK_REALTIME, &times[1]), 0);
	times[1].tv_sec -= age_s;
	times[0] = times[1];
	assert_int_equal(futimens(fd, times), 0);
	(void)close(fd);
	assert_int_equal(rename(tmp, path), 0); /* at once: the handle's thread may be looking */
}

static void write_note(const struct us_owner_note *note, int64_t age_s)
{
	char text[US_OWNER_NOTE_LEN_MAX];
	size_t len = us_owner_note_format(note, text);
	write_owner(text, len, age_s);
}

static int events(struct us *us, uint32_t kind, const char *stage, const char *part)
{
	static struct us_event list[64];
	int count = 0;
	int32_t n;
	while ((n = us_next_events(us, list, 64, NULL)) > 0) {
		for (int32_t i = 0; i < n; i++) {
			count += list[i].kind == kind && strcmp(list[i].stage, stage) == 0 &&
				 strstr(list[i].message, part) != NULL;
		}
	}
	return count;
}

/* ------------------------------------------------------------------- the text */

static struct us_owner_note example(void)
{
	return (struct us_owner_note){ .host = "web-1",
				       .place = "0-1/pid:[4]",
				       .started = "2026-01-02T03:04:05.000000000Z",
				       .renewed = "2026-01-02T03:04:06.000000000Z",
				       .pid = 77,
				       .commits = 12,
				       .run = 0xFEDCBA9876543210,
				       .state = 1,
				       .reconcile = 1,
				       .released = 0 };
}

static void test_text(void **state)
{
	(void)state;
	char text[US_OWNER_NOTE_LEN_MAX], bad[US_OWNER_NOTE_LEN_MAX + 2];
	struct us_owner_note note = example(), back = { 0 };
	size_t len = us_owner_note_format(&note, text);
	assert_int_equal(us_owner_note_parse(text, len, &back), 0);
	assert_memory_equal(&back, &note, sizeof(note));
	for (size_t cut = 0; cut < len; cut++) {
		assert_int_equal(us_owner_note_parse(text, cut, &back), -1);
	}
	/* A byte more, a byte less, another byte: another note, or none. */
	for (size_t at = 0; at < len; at++) {
		memcpy(bad, text, at);
		bad[at] = '\n';
		memcpy(bad + at + 1, text + at, len - at);
		if (us_owner_note_parse(bad, len + 1, &back) == 0) {
			assert_memory_not_equal(&back, &note, sizeof(note));
		}
		memcpy(bad, text, len);
		bad[at] = '\0';
		assert_int_equal(us_owner_note_parse(bad, len, &back), -1);
	}
	static const struct {
		const char *line, *with; /* of the same length */
	} not_written[] = {
		{ "pid 77", "pid 07" },
		{ "web-1", "we\tb1" },
		{ "web-1", "we%41" },
		{ "0-1/pid:[4]", "0-1/pid:[\xff]" },
		{ "2026-01-02T03", "2026-13-02T03" },
		{ "03:04:06.0", "03:04:60.0" },
	};
	for (size_t i = 0; i < sizeof(not_written) / sizeof(not_written[0]); i++) {
		memcpy(bad, text, len + 1);
		char *at = strstr(bad, not_written[i].line);
		assert_non_null(at);
		memcpy(at, not_written[i].with, strlen(not_written[i].with));
		assert_int_equal(us_owner_note_parse(bad, len, &back), -1);
	}
	assert_true(us_owner_note_is_one("litestream multi_db owner 2\n", 28));
	assert_false(us_owner_note_is_one("litestream multi_db", 19));
	assert_false(us_owner_note_is_one("", 0));
}

/* ------------------------------------------------------------- who may have it */

static void test_second_is_refused(void **state)
{
	(void)state;
	char host[65] = "", pid[32];
	struct us_error err;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	assert_int_equal(stats(first).owner, US_OWNER_US);
	struct us_owner_note note = owner_note();
	open_second();
	assert_int_equal(acquire(second, 0, &err), US_E_OWNED);
	assert_int_equal(gethostname(host, 64), 0);
	(void)snprintf(pid, sizeof(pid), "process %d", (int)getpid());
	assert_non_null(strstr(err.message, host));
	assert_non_null(strstr(err.message, pid));
	assert_non_null(strstr(err.message, note.started));
	assert_non_null(strstr(err.message, "-takeover"));
	/* Who does not ask gets the same answer in his cycle, and puts nothing. */
	struct us_cycle_result result = cycle(second);
	assert_int_equal(result.uploaded, 0);
	assert_int_equal(result.failed, 1);
	assert_int_equal(stats(second).owner, US_OWNER_OTHER);
	assert_int_equal(stats(second).unsynced, 1);
	assert_int_equal(objects_of("a", NULL), 1);
	struct us_failure failure;
	assert_int_equal(us_failures(second, &failure, 1, NULL), 1);
	assert_non_null(strstr(failure.message, host));
	change("a");
	assert_int_equal(cycle(first).uploaded, 1);
}

/* Other keys, other targets: names of variables make no difference, hosts do. */
static void test_another_path(void **state)
{
	(void)state;
	change("a");
	first = open_with("state1", "b/{{name}}", 0);
	assert_ours(first, 0);
	second = open_with("state2", "c/{{name}}", 0);
	assert_ours(second, 0);
	close_one(&second);
	second = open_with("state2", "{{hostname}}/{{name}}", 0);
	assert_ours(second, 0);
	assert_int_equal(cycle(second).uploaded, 1);
	assert_int_equal(cycle(first).uploaded, 1);
}

static void test_given_back(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	assert_int_equal(us_release(first, WAIT_MS, NULL), 0);
	assert_int_equal(stats(first).owner, US_OWNER_UNKNOWN);
	open_second();
	assert_ours(second, 0);
	assert_refused(first);
	assert_int_equal(events(second, US_EVENT_WARNING, "owner", "was host"), 1);
	close_one(&second); /* gives it back, too */
	assert_int_equal(owner_note().released, 1);
	assert_ours(first, 0);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", "was host"), 1);
	assert_ours(first, 0);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", ""), 0); /* once */
	assert_int_equal(owner_note().released, 0);
}

/* Killed: its own next run goes on at once, without a LIST. */
static void test_own_restart(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	kill_one(&first);
	assert_int_equal(owner_note().released, 0);
	list_count = 0;
	open_first();
	read_count = write_count = 0;
	assert_int_equal(cycle(first).uploaded, 0);
	assert_int_equal(read_count, 1);
	assert_int_equal(write_count, 1);
	assert_int_equal(list_count, 0);
	assert_int_equal(cycle(first).uploaded, 0);
	assert_int_equal(read_count + write_count, 2);
	close_one(&first);
	assert_int_equal(read_count + write_count, 4);
}

static void test_stale(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	struct us_owner_note note = owner_note();
	kill_one(&first);
	(void)snprintf(note.host, sizeof(note.host), "elsewhere");
	(void)snprintf(note.place, sizeof(note.place), "elsewhere");
	open_second();
	write_note(&note, 29 * MINUTE);
	assert_refused(second);
	write_note(&note, -10 * MINUTE); /* a clock that is ahead */
	assert_refused(second);
	write_note(&note, 31 * MINUTE);
	assert_ours(second, 0);
	assert_string_not_equal(owner_note().host, "elsewhere");
}

static void test_process_is_gone(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	struct us_owner_note note = owner_note();
	assert_true(note.place[0] != '\0');
	kill_one(&first);
	pid_t child = fork();
	if (child == 0) {
		_exit(0);
	}
	assert_int_equal(waitpid(child, NULL, 0), child);
	note.pid = child;
	open_second();
	struct us_owner_note away = note;
	away.place[0] ^= 1; /* another machine, or pid namespace */
	write_note(&away, 0);
	assert_refused(second);
	away.place[0] = '\0';
	write_note(&away, 0);
	assert_refused(second);
	write_note(&note, 0);
	assert_ours(second, 0);
}

static void test_nobodys_text(void **state)
{
	(void)state;
	static const char page[] = "<html>welcome</html>";
	static const char later[] = "litestream multi_db owner 2\nhost x\n";
	struct us_error err;
	change("a");
	open_first();
	assert_ours(first, 0);
	kill_one(&first);
	write_owner("", 0, 0);
	open_second();
	assert_ours(second, 0);
	kill_one(&second);
	write_owner(page, sizeof(page) - 1, 0);
	open_first();
	assert_ours(first, 0);
	kill_one(&first);
	/* A later version's: somebody is there. */
	write_owner(later, sizeof(later) - 1, 0);
	open_second();
	assert_int_equal(acquire(second, 0, &err), US_E_OWNED);
	assert_non_null(strstr(err.message, "owner-"));
	assert_int_equal(cycle(second).uploaded, 0);
	assert_int_equal(stats(second).owner, US_OWNER_OTHER);
	assert_ours(second, US_ACQUIRE_TAKEOVER);
	assert_int_equal(cycle(second).uploaded, 1);
	/* And if that one takes over, it has it at once, not when the lease ends. */
	write_owner(later, sizeof(later) - 1, 0);
	change("a");
	assert_refused(second);
	assert_int_equal(events(second, US_EVENT_WARNING, "owner", "nothing more is uploaded"), 1);
	assert_int_equal(cycle(second).uploaded, 0);
}

/* --------------------------------------------------------------- losing it */

static void test_taken_over(void **state)
{
	(void)state;
	struct us_error err;
	change("a");
	change("b");
	open_first();
	assert_int_equal(cycle(first).uploaded, 2);
	open_second();
	assert_ours(second, US_ACQUIRE_TAKEOVER);
	change("a");
	assert_int_equal(cycle(second).uploaded, 2);
	char newest[PATH_LEN], after[PATH_LEN];
	(void)objects_of("a", newest);
	/* The first one does not know until it looks. */
	assert_int_equal(acquire(first, 0, &err), US_E_OWNED);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", "nothing more is uploaded"), 1);
	struct us_cycle_result result = cycle(first);
	assert_int_equal(result.uploaded, 0);
	assert_int_equal(result.failed, 1);
	assert_int_equal(stats(first).owner, US_OWNER_OTHER);
	assert_int_equal(us_release(first, WAIT_MS, NULL), 0); /* not its own to give back */
	assert_int_equal(owner_note().released, 0);
	/* Even by the same state file: a copy of it may be running elsewhere. */
	struct us_owner_note copy = owner_note();
	copy.state = first->owner ? us_siphash(&us_state_info(first->state)->key, "owner", 5) : 0;
	write_note(&copy, 0);
	assert_refused(first);
	/* The other one ends: the first looks at the target before it writes. */
	copy.released = 1;
	write_note(&copy, 0);
	assert_ours(first, 0);
	list_count = 0;
	result = cycle(first);
	assert_int_equal(list_count, 1);
	assert_int_equal(result.failed, 0);
	assert_int_equal(stats(first).unsynced, 0);
	(void)objects_of("a", after);
	assert_true(strcmp(after, newest) > 0);
}

static void *run_cycle(void *us)
{
	(void)cycle(us);
	return NULL;
}

/* Lost in the middle of a sweep: nothing is deleted any more. */
static void test_lost_while_sweeping(void **state)
{
	(void)state;
	struct us_error err;
	static const char *const old[] = { "20200101T000000Z", "20200102T000000Z" };
	char path[PATH_LEN], target[PATH_LEN], newest[PATH_LEN];
	change("a");
	first = open_with("state1", "b/{{name}}", 86400);
	assert_int_equal(cycle(first).uploaded, 1);
	(void)objects_of("a", newest);
	path_of(path, "target/b/a/%s", newest);
	for (size_t i = 0; i < 2; i++) {
		path_of(target, "target/b/a/%s.db.lz4", old[i]);
		assert_int_equal(link(path, target), 0);
	}
	/* The cycle that begins the sweep is told to end; the sweep goes on. */
	list_held = 1;
	list_taken = 0;
	first->swept_s = 0;
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, run_cycle, first), 0);
	while (!list_taken) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	us_finish(first);
	assert_int_equal(pthread_join(thread, NULL), 0);
	open_second();
	assert_ours(second, US_ACQUIRE_TAKEOVER);
	first->finishing = 0;
	assert_int_equal(acquire(first, 0, &err), US_E_OWNED);
	list_held = 0;
	(void)cycle(first);
	us_sweep_stop(first);
	assert_int_equal(remove_count, 0);
	assert_int_equal(objects_of("a", NULL), 3);
}

/* A machine that slept, or was cut off, longer than a lease. */
static void test_lease(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	read_rc = US_E_NETWORK;
	change("a");
	boot_offset_s = 24 * MINUTE;
	assert_int_equal(cycle(first).uploaded, 1); /* renewal fails, but it is ours */
	change("a");
	boot_offset_s = 26 * MINUTE;
	struct us_cycle_result result = cycle(first);
	assert_int_equal(result.uploaded, 0);
	assert_int_equal(result.failed, 1);
	assert_int_equal(stats(first).owner, US_OWNER_UNKNOWN); /* not "this one" */
	read_rc = 0;
	assert_int_equal(cycle(first).uploaded, 1);
	assert_int_equal(stats(first).unsynced, 0);
}

/* ------------------------------------------------------------------- the state */

static void copy_state(const char *from, const char *to)
{
	static const char *const names[] = { "state.db", "state.db-wal", "state.db-shm" };
	char command[3 * PATH_LEN], a[PATH_LEN], b[PATH_LEN];
	for (size_t i = 0; i < 3; i++) {
		path_of(a, "%s/%s", from, names[i]);
		path_of(b, "%s/%s", to, names[i]);
		(void)unlink(b);
		if (access(a, F_OK) == 0) {
			(void)snprintf(command, sizeof(command), "cp -p '%s' '%s'", a, b);
			assert_int_equal(system(command), 0);
		}
	}
}

/* The state goes back to an earlier day with its machine. */
static void test_rolled_back(void **state)
{
	(void)state;
	char path[PATH_LEN], newest[PATH_LEN], after[PATH_LEN];
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	close_one(&first);
	path_of(path, "saved");
	assert_int_equal(mkdir(path, 0700), 0);
	copy_state("state1", "saved");
	open_first();
	change("a");
	assert_int_equal(cycle(first).uploaded, 1);
	(void)objects_of("a", newest);
	int64_t commits = first->commits;
	close_one(&first);
	assert_int_equal(owner_note().commits, commits);
	copy_state("saved", "state1");
	list_count = 0;
	open_first();
	assert_true(first->commits < commits);
	(void)cycle(first);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", "is older than"), 1);
	assert_int_equal(list_count, 1); /* though no sweep was due */
	assert_int_equal(stats(first).unsynced, 0);
	(void)objects_of("a", after);
	assert_true(strcmp(after, newest) > 0); /* what was there is not replaced */
	(void)cycle(first);
	assert_int_equal(list_count, 1);
	close_one(&first);
	open_first();
	(void)cycle(first);
	assert_int_equal(list_count, 1);
}

/* The same with the memory of the process: a snapshot of a machine that runs. */
static void test_memory_rolled_back(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	struct us_owner_note note = owner_note();
	note.commits = first->commits + 1;
	write_note(&note, 0);
	list_count = 0;
	assert_ours(first, 0);
	(void)cycle(first);
	assert_int_equal(list_count, 1);
	assert_ours(first, 0);
	(void)cycle(first);
	assert_int_equal(list_count, 1);
}

/* Taken over, then killed before the state has it: the object tells. */
static void test_reconcile_survives(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	close_one(&first);
	open_second();
	assert_int_equal(cycle(second).uploaded, 1);
	close_one(&second);
	open_first();
	assert_ours(first, 0);
	assert_int_equal(owner_note().reconcile, 1);
	kill_one(&first);
	list_count = 0;
	open_first();
	(void)cycle(first);
	assert_int_equal(list_count, 1);
	assert_ours(first, 0); /* renewed */
	assert_int_equal(owner_note().reconcile, 0);
}

/* The object says so until the state has it, not until it is about to. */
static void test_reconcile_is_kept(void **state)
{
	(void)state;
	char path[PATH_LEN];
	sqlite3 *db;
	pthread_t thread;
	change("a");
	open_second();
	assert_int_equal(cycle(second).uploaded, 1);
	close_one(&second);
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	struct us_owner_note note = owner_note();
	note.run ^= 1;
	note.state ^= 1;
	write_note(&note, 0);
	assert_ours(first, US_ACQUIRE_TAKEOVER);
	assert_int_equal(owner_note().reconcile, 1);
	/* The cycle cannot write to its state for now. */
	path_of(path, "state1/state.db");
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
	list_count = 0;
	assert_int_equal(pthread_create(&thread, NULL, run_cycle, first), 0);
	uint32_t kept = 1;
	int64_t end_ns = us_clock_mono_ns() + 500 * US_NS_PER_MS;
	while (kept && us_clock_mono_ns() < end_ns) {
		us_clock_sleep_ns(20 * US_NS_PER_MS);
		assert_ours(first, 0);
		kept = owner_note().reconcile;
	}
	assert_int_equal(sqlite3_exec(db, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(kept, 1);
	assert_int_equal(list_count, 1);
	assert_ours(first, 0);
	assert_int_equal(owner_note().reconcile, 0);
}

/* ------------------------------------------------------------------ the target */

static void test_unguarded(void **state)
{
	(void)state;
	change("a");
	open_first();
	write_rc = US_E_ACCESS;
	assert_int_equal(cycle(first).uploaded, 1);
	assert_int_equal(stats(first).owner, US_OWNER_UNGUARDED);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", "would not be noticed"), 1);
	assert_ours(first, 0);
	assert_int_equal(events(first, US_EVENT_WARNING, "owner", ""), 0); /* once */
	write_rc = 0;
	read_rc = US_E_ACCESS; /* may put, not get: the first time it is clear that it is ours */
	assert_ours(first, 0);
	assert_int_equal(stats(first).owner, US_OWNER_US);
	assert_ours(first, 0);
	assert_int_equal(stats(first).owner, US_OWNER_UNGUARDED);
	open_second();
	assert_ours(second, 0);
	assert_int_equal(stats(second).owner, US_OWNER_UNGUARDED);
}

static void test_no_conditions(void **state)
{
	(void)state;
	change("a");
	open_first();
	refuses_conditions = 1;
	assert_int_equal(cycle(first).uploaded, 1);
	assert_int_equal(stats(first).owner, US_OWNER_US);
	assert_ours(first, 0);
	open_second();
	assert_refused(second);
}

/* Who may write, and how many calls that takes in a day in which nothing happens. */
static void assert_a_day(struct us *us, uint32_t owner)
{
	assert_int_equal(stats(us).owner, owner);
	read_count = write_count = 0;
	fast_left_s = 86400;
	(void)us_acquire(us, 0, WAIT_MS, NULL); /* wakes the thread; may be too late */
	while (fast_left_s > 0) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	assert_int_equal(stats(us).owner, owner);
	assert_in_range(read_count + write_count, 140, 300);
}

static void test_cost(void **state)
{
	(void)state;
	struct us_error err;
	change("a");
	open_first();
	assert_ours(first, 0);
	assert_a_day(first, US_OWNER_US);
	refuses_conditions = 1;
	assert_ours(first, 0);
	assert_a_day(first, US_OWNER_US);
	refuses_conditions = 0;
	write_rc = US_E_ACCESS;
	assert_ours(first, 0);
	assert_a_day(first, US_OWNER_UNGUARDED);
	write_rc = 0;
	struct us_owner_note note = owner_note();
	note.run ^= 1;
	note.place[0] ^= 1;
	write_note(&note, 0);
	assert_int_equal(acquire(first, 0, &err), US_E_OWNED);
	assert_a_day(first, US_OWNER_OTHER);
}

/* What was to be taken from another one is, once the target answers. */
static void test_takeover_is_kept(void **state)
{
	(void)state;
	struct us_error err;
	change("a");
	open_first();
	assert_int_equal(cycle(first).uploaded, 1);
	open_second();
	read_rc = US_E_HTTP;
	assert_int_equal(acquire(second, US_ACQUIRE_TAKEOVER, &err), US_E_HTTP);
	assert_int_equal(cycle(second).uploaded, 0);
	read_rc = 0;
	assert_int_equal(cycle(second).uploaded, 1);
	/* Once. */
	assert_ours(first, US_ACQUIRE_TAKEOVER);
	assert_refused(second);
}

static void test_cannot_be_asked(void **state)
{
	(void)state;
	struct us_error err;
	change("a");
	open_first();
	read_rc = US_E_NETWORK;
	assert_int_equal(acquire(first, 0, &err), US_E_NETWORK);
	struct us_cycle_result result = cycle(first);
	assert_int_equal(result.uploaded, 0);
	assert_int_equal(result.failed, 1);
	assert_int_equal(stats(first).target_unreachable, 1);
	read_rc = 0;
	assert_int_equal(cycle(first).uploaded, 1);
}

/* The state directory may be called as the one of the owner objects is. */
static void test_state_beside(void **state)
{
	(void)state;
	change("a");
	first = open_with("target/.litestream-multi-db", "b/{{name}}", 0);
	assert_ours(first, 0);
	assert_int_equal(cycle(first).uploaded, 1);
}

static void test_arguments(void **state)
{
	(void)state;
	change("a");
	open_first();
	assert_int_equal(us_acquire(NULL, 0, 0, NULL), US_E_ARG);
	assert_int_equal(us_acquire(first, 2, 0, NULL), US_E_ARG);
	assert_int_equal(us_acquire(first, 0, -1, NULL), US_E_ARG);
	assert_int_equal(us_release(first, 1000001, NULL), US_E_ARG);
	assert_int_equal(us_release(NULL, 0, NULL), US_E_ARG);
	assert_int_equal(us_release(first, 0, NULL), 0); /* nothing to give back */
	us_cancel(first);
	assert_int_equal(us_acquire(first, 0, WAIT_MS, NULL), US_E_CANCELED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
		TEST(text),
		TEST(second_is_refused),
		TEST(another_path),
		TEST(given_back),
		TEST(own_restart),
		TEST(stale),
		TEST(process_is_gone),
		TEST(nobodys_text),
		TEST(taken_over),
		TEST(lease),
		TEST(lost_while_sweeping),
		TEST(rolled_back),
		TEST(memory_rolled_back),
		TEST(unguarded),
		TEST(reconcile_survives),
		TEST(reconcile_is_kept),
		TEST(no_conditions),
		TEST(cost),
		TEST(takeover_is_kept),
		TEST(state_beside),
		TEST(arguments),
		TEST(cannot_be_asked),
#undef TEST
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
