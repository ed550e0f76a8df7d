/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public functions and what they refuse: structs of other versions, values out of
 * range, directories that lie in each other's way, a state directory of somebody else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ultrasimple.h>

#include "scratch.h"

#define PATH_LEN (SCRATCH_LEN + 64)

static char dir[SCRATCH_LEN], pattern[PATH_LEN], target[PATH_LEN], state_dir[PATH_LEN];
static struct us_options options;
static struct us_error err;
static struct us *us;

static const char *path_of(const char *rel)
{
	static char paths[4][PATH_LEN];
	static int next;
	char *path = paths[next++ % 4];
	(void)snprintf(path, PATH_LEN, "%s/%s", dir, rel);
	return path;
}

static void make_dir(const char *rel)
{
	assert_int_equal(mkdir(path_of(rel), 0755), 0);
}

static void make_db(const char *rel)
{
	sqlite3 *db;
	assert_int_equal(sqlite3_open(path_of(rel), &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "CREATE TABLE t (a)", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static int set_up(void **state)
{
	(void)state;
	if (scratch_dir(dir)) {
		return -1;
	}
	make_dir("data");
	make_dir("data/x");
	make_db("data/x/a.db");
	(void)snprintf(pattern, sizeof(pattern), "%s/data/{project}/{tenant}.db", dir);
	(void)snprintf(target, sizeof(target), "%s/backup", dir);
	(void)snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
	options = (struct us_options){ .struct_size = sizeof(options),
				       .discovery_pattern = pattern,
				       .path = "{{project}}/{{tenant}}",
				       .state_dir = state_dir,
				       .target = US_TARGET_FILE,
				       .directory = target };
	err = (struct us_error){ .struct_size = sizeof(err) };
	us = NULL;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	char command[SCRATCH_LEN + 16];
	us_close(us);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	return system(command);
}

static void expect(int32_t rc, int32_t code, const char *says)
{
	if (rc != code || (code < 0 && err.code != code) || (says && !strstr(err.message, says))) {
		fail_msg("%d, want %d (%s): %s", rc, code, says ? says : "", err.message);
	}
}

static void open_now(void)
{
	int32_t rc = us_open(&options, &us, &err);
	if (rc) {
		fail_msg("us_open: %s", err.message);
	}
}

/* us_open refuses, and so would us_check if CHECKED. */
static void expect_refused(int32_t code, const char *says, int checked)
{
	struct us *none = NULL;
	if (checked) {
		expect(us_check(&options, &err), code, says);
	}
	expect(us_open(&options, &none, &err), code, says);
	assert_null(none);
	assert_int_equal(us_open(&options, &none, NULL), code);
}

/* -------------------------------------------------------------------- structs */

/* Older callers have shorter structs, newer ones longer ones. */
static void test_struct_sizes(void **state)
{
	(void)state;
	struct {
		struct us_options known;
		char later[16];
	} longer = { .known = options };
	expect(us_check(NULL, &err), US_E_ARG, "options is NULL");
	longer.known.struct_size = sizeof(longer);
	expect(us_check(&longer.known, &err), 0, NULL);
	longer.later[7] = 1;
	expect(us_check(&longer.known, &err), US_E_ARG, "does not know");
	longer.known.struct_size = 3;
	expect(us_check(&longer.known, &err), US_E_ARG, "struct_size 3");
	longer.known.struct_size = 65537;
	expect(us_check(&longer.known, &err), US_E_ARG, "struct_size 65537");
	options.struct_size = offsetof(struct us_options, retention_s);
	options.retention_s = UINT64_MAX; /* not theirs: not read */
	expect(us_check(&options, &err), 0, NULL);
	options.retention_s = 0;
	options.struct_size = offsetof(struct us_options, discovery_pattern);
	expect(us_check(&options, &err), US_E_ARG, "target 0");
	options.struct_size = sizeof(options);

	open_now();
	struct us_stats stats = { .struct_size = 3 };
	expect(us_stats(us, &stats, &err), US_E_ARG, "struct_size 3");
	expect(us_stats(us, NULL, &err), US_E_ARG, "ret_stats is NULL");
	struct {
		struct us_cycle_result known;
		char later[16];
	} result = { .known.struct_size = sizeof(result), .later = "untouched" };
	expect(us_cycle(us, &result.known, &err), 0, NULL);
	assert_int_equal(result.known.databases, 1);
	assert_string_equal(result.later, "untouched");
	struct us_cycle_result shorter = { .struct_size = offsetof(struct us_cycle_result, changed),
					   .changed = 77 };
	expect(us_cycle(us, &shorter, &err), 0, NULL);
	assert_int_equal(shorter.databases, 1);
	assert_int_equal(shorter.changed, 77);
	expect(us_cycle(us, NULL, NULL), 0, NULL);
}

static void test_options(void **state)
{
	(void)state;
	struct us_options good = options;
	expect(us_open(&options, NULL, &err), US_E_ARG, "ret_us is NULL");
	options.flags = 1u << 31;
	expect_refused(US_E_ARG, "unknown flags 0x80000000", 1);
	options = good;
	options.reserved = 1;
	expect_refused(US_E_ARG, "options", 1);
	options = good;
	options.max_concurrent_uploads = 1001;
	expect_refused(US_E_CONFIG, "max_concurrent_uploads: 1001", 1);
	options = good;
	options.memory_limit_bytes = 15999999;
	expect_refused(US_E_CONFIG, "memory_limit: 15999999", 1);
	options.memory_limit_bytes = 16000000;
	expect(us_check(&options, &err), 0, NULL);
	options = good;
	options.target = 3;
	expect_refused(US_E_ARG, "target 3", 1);
	options = good;
	options.directory = NULL;
	expect_refused(US_E_CONFIG, "directory: missing", 1);
	options.directory = "";
	expect_refused(US_E_CONFIG, "directory: missing", 1);
	options.directory = "backup";
	expect_refused(US_E_CONFIG, "directory: \"backup\" is relative", 1);
	options.directory = "/a/../b";
	expect_refused(US_E_CONFIG, "directory: \"/a/../b\" has a \"..\"", 1);
	options.directory = "/a/b/..";
	expect_refused(US_E_CONFIG, "has a \"..\"", 1);
	options.directory = "/a/..b/c..";
	expect(us_check(&options, &err), 0, NULL);
	options = good;
	options.state_dir = "/a/..";
	expect_refused(US_E_CONFIG, "state_dir: \"/a/..\" has a \"..\"", 1);
	options.state_dir = "state";
	expect_refused(US_E_CONFIG, "state_dir: \"state\" is relative", 0);
	options = good;
	options.discovery_pattern = NULL;
	expect_refused(US_E_CONFIG, "discovery_pattern: missing", 1);
	options = good;
	options.path = NULL;
	expect_refused(US_E_CONFIG, "path: missing", 1);
	options = good;
	options.discovery_pattern = "data/*.db";
	expect_refused(US_E_CONFIG, "discovery_pattern", 1);
	options = good;
	options.path = "{{nobody}}";
	expect_refused(US_E_CONFIG, "path", 1);
	options = good;
	options.target = US_TARGET_S3;
	expect_refused(US_E_CONFIG, "bucket: missing", 1);
	options.s3_bucket = "b!";
	expect_refused(US_E_CONFIG, "bucket: b!", 1);
	options.s3_bucket = "bucket";
	expect(us_check(&options, &err), 0, NULL);
	options.s3_endpoint = "host";
	expect_refused(US_E_CONFIG, "endpoint: host", 1);
}

/* ------------------------------------------------------------------ arguments */

static void test_handles(void **state)
{
	(void)state;
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	struct us_stats stats = { .struct_size = sizeof(stats) };
	struct us_plan plan = { .struct_size = sizeof(plan) };
	struct us_restore_options restore = { .struct_size = sizeof(restore) };
	struct us_task_options task_options = { .struct_size = sizeof(task_options),
						.kind = US_TASK_LIST };
	struct us_task *task = NULL;
	struct us_credentials credentials = { .struct_size = sizeof(credentials) };
	us_close(NULL);
	us_cancel(NULL);
	us_finish(NULL);
	us_sweep(NULL);
	us_task_close(NULL);
	expect(us_cycle(NULL, &result, &err), US_E_ARG, "NULL");
	expect(us_stats(NULL, &stats, &err), US_E_ARG, "NULL");
	expect(us_failures(NULL, NULL, 0, &err), US_E_ARG, "NULL");
	expect(us_next_events(NULL, NULL, 0, &err), US_E_ARG, "NULL");
	expect(us_plan(NULL, &plan, NULL, 0, NULL, &err), US_E_ARG, "NULL");
	expect(us_restore(NULL, &restore, NULL, &err), US_E_ARG, "NULL");
	expect(us_hosts(NULL, NULL, 0, &err), US_E_ARG, "NULL");
	expect(us_task_start(NULL, &task_options, &task, &err), US_E_ARG, "NULL");
	expect(us_task_next(NULL, 0, NULL, 0, NULL, &err), US_E_ARG, "NULL");
	expect(us_set_credentials(NULL, &credentials, &err), US_E_ARG, "S3");
	expect(us_exclude(NULL, "/x", &err), US_E_ARG, "NULL");
	expect(us_acquire(NULL, 0, 0, &err), US_E_ARG, "NULL");
	expect(us_release(NULL, 0, &err), US_E_ARG, "NULL");

	open_now();
	expect(us_set_credentials(us, &credentials, &err), US_E_ARG, "S3");
	expect(us_exclude(us, NULL, &err), US_E_ARG, "absolute");
	expect(us_exclude(us, "relative", &err), US_E_ARG, "absolute");
	expect(us_failures(us, NULL, 1, &err), US_E_ARG, "ret_failures");
	expect(us_failures(us, NULL, 0, &err), 0, NULL);
	expect(us_next_events(us, NULL, 1, &err), US_E_ARG, "ret_events");
	expect(us_next_events(us, NULL, 0, &err), 0, NULL);
	expect(us_plan(us, &plan, NULL, 1, NULL, &err), US_E_ARG, "ret_samples");
	expect(us_plan(us, NULL, NULL, 0, NULL, &err), US_E_ARG, "ret_plan");
	expect(us_plan(us, &plan, NULL, 0, NULL, &err), 0, NULL);
	assert_int_equal(plan.databases, 1);
	expect(us_hosts(us, NULL, 1, &err), US_E_ARG, "ret_names");
	expect(us_hosts(us, NULL, 0, &err), 0, NULL);
	expect(us_restore(us, NULL, NULL, &err), US_E_ARG, "options is NULL");
	expect(us_restore(us, &restore, NULL, &err), US_E_ARG, "path is missing");
	restore.path = path_of("data/x/a.db");
	restore.reserved = 1;
	expect(us_restore(us, &restore, NULL, &err), US_E_ARG, "out of range");
	restore.reserved = 0;
	restore.integrity_check = 3;
	expect(us_restore(us, &restore, NULL, &err), US_E_ARG, "out of range");
	expect(us_task_start(us, NULL, &task, &err), US_E_ARG, "options is NULL");
	expect(us_task_start(us, &task_options, NULL, &err), US_E_ARG, "ret_task");
	expect(us_acquire(us, 2, 0, &err), US_E_ARG, "unknown flags 0x2");
	expect(us_acquire(us, 0, -1, &err), US_E_ARG, "out of range");
	expect(us_acquire(us, 0, 1000001, &err), US_E_ARG, "out of range");
	expect(us_release(us, -1, &err), US_E_ARG, "out of range");

	expect(us_task_start(us, &task_options, &task, &err), 0, NULL);
	struct us_progress progress = { .struct_size = 2 };
	expect(us_task_next(task, -1, NULL, 0, NULL, &err), US_E_ARG, "out of range");
	expect(us_task_next(task, 1000001, NULL, 0, NULL, &err), US_E_ARG, "out of range");
	expect(us_task_next(task, 0, NULL, 1, NULL, &err), US_E_ARG, "ret_rows");
	expect(us_task_next(task, 0, NULL, 0, &progress, &err), US_E_ARG, "struct_size 2");
	assert_true(us_task_next(task, 0, NULL, 0, NULL, &err) >= 0);
	us_task_close(task);

	us_cancel(us);
	expect(us_cycle(us, &result, &err), US_E_CANCELED, "canceled");
	expect(us_plan(us, &plan, NULL, 0, NULL, &err), US_E_CANCELED, "canceled");
	expect(us_acquire(us, 0, 0, &err), US_E_CANCELED, "canceled");
	expect(us_stats(us, &stats, &err), 0, NULL);
}

static void test_read_only(void **state)
{
	(void)state;
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	options.flags = US_OPEN_READ_ONLY;
	open_now();
	expect(us_cycle(us, &result, &err), US_E_ARG, "read-only");
	expect(us_acquire(us, 0, 0, &err), US_E_ARG, "read-only");
	expect(us_release(us, 0, &err), US_E_ARG, "read-only");
	assert_int_equal(access(target, F_OK), -1); /* nothing was made */
	assert_int_equal(access(state_dir, F_OK), -1);
}

static void test_patterns(void **state)
{
	(void)state;
	char prefix[PATH_LEN];
	expect(us_match(&options, path_of("data/x/a.db"), &err), 1, NULL);
	expect(us_match(&options, path_of("data/a.db"), &err), 0, NULL);
	expect(us_match(&options, NULL, &err), US_E_ARG, "NULL");
	expect(us_match(NULL, "/x", &err), US_E_ARG, "NULL");
	expect(us_prefix(&options, prefix, sizeof(prefix), &err), (int32_t)strlen(path_of("data")),
	       NULL);
	assert_string_equal(prefix, path_of("data"));
	expect(us_prefix(&options, prefix, strlen(path_of("data")), &err), US_E_ARG, "room for");
	expect(us_prefix(&options, NULL, 0, &err), US_E_ARG, "NULL");
	expect(us_prefix(NULL, prefix, sizeof(prefix), &err), US_E_ARG, "NULL");
	options.discovery_pattern = "relative/*.db";
	expect(us_match(&options, "/x", &err), US_E_CONFIG, "absolute");
	expect(us_prefix(&options, prefix, sizeof(prefix), &err), US_E_CONFIG, "absolute");
	options.discovery_pattern = NULL;
	expect(us_match(&options, "/x", &err), US_E_ARG, "NULL");
	expect(us_prefix(&options, prefix, sizeof(prefix), &err), US_E_ARG, "NULL");
	assert_int_equal(us_abi_version(), US_ABI_VERSION);
}

/* ------------------------------------------------------------------ S3 handles */

static void test_credentials(void **state)
{
	(void)state;
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	struct us_credentials credentials = { .struct_size = sizeof(credentials) };
	options.target = US_TARGET_S3;
	options.s3_bucket = "bucket";
	options.s3_endpoint = "http://127.0.0.1:1";
	options.flags = US_OPEN_S3_PATH_STYLE;
	open_now();
	expect(us_set_credentials(us, NULL, &err), US_E_ARG, "NULL");
	credentials.access_key_id = "only this";
	expect(us_set_credentials(us, &credentials, &err), US_E_ARG, "access_key_id");
	credentials.access_key_id = "id";
	expect(us_set_credentials(us, &credentials, &err), US_E_ARG, "only one of them");
	credentials.secret_access_key = "secret";
	credentials.expires_ns = 1;
	expect(us_set_credentials(us, &credentials, &err), 0, NULL);
	expect(us_acquire(us, 0, 0, &err), US_E_ACCESS, "expired");
	expect(us_cycle(us, &result, &err), 0, NULL);
	assert_int_equal(result.failed, 1);
	struct us_failure *failure = calloc(1, sizeof(*failure));
	assert_int_equal(us_failures(us, failure, 1, &err), 1);
	assert_non_null(strstr(failure->message, "expired"));
	free(failure);
	/* No keys at all are no keys, not those from before. */
	credentials = (struct us_credentials){ .struct_size = sizeof(credentials) };
	expect(us_set_credentials(us, &credentials, &err), 0, NULL);
	expect(us_acquire(us, 0, 0, &err), US_E_ACCESS, "no credentials");
}

/* A process that may open few files makes few connections, and says so. */
static void check_descriptors(rlim_t limit, uint32_t wanted, const char *says)
{
	struct rlimit before, now;
	struct us_event *event = calloc(1, sizeof(*event));
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	now = before;
	now.rlim_cur = limit;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
	options.max_concurrent_uploads = wanted;
	int32_t rc = us_open(&options, &us, &err);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	expect(rc, 0, NULL);
	int told = 0;
	while (us_next_events(us, event, 1, &err) == 1) {
		if (strstr(event->message, "uploads at a time")) {
			told = 1;
			assert_non_null(says);
			assert_non_null(strstr(event->message, says));
			assert_int_equal(event->kind, US_EVENT_WARNING);
		}
	}
	assert_int_equal(told, says != NULL);
	free(event);
	us_close(us);
	us = NULL;
}

static void test_descriptors(void **state)
{
	(void)state;
	options.target = US_TARGET_S3;
	options.s3_bucket = "bucket";
	options.s3_endpoint = "http://127.0.0.1:1";
	options.flags = US_OPEN_S3_PATH_STYLE;
	check_descriptors(200, 500, "at most 136 uploads");
	check_descriptors(200, 136, NULL);
	check_descriptors(70, 500, "at most 8 uploads");
	check_descriptors(70, 8, NULL);
	options.target = US_TARGET_FILE;
	check_descriptors(200, 500, NULL);
}

/* -------------------------------------------------------------------- overlaps */

static void test_overlaps(void **state)
{
	(void)state;
	struct us_options good = options;
	/* The pattern would find what is written there. */
	options.directory = path_of("data/x");
	expect_refused(US_E_CONFIG, "directory: ", 0);
	options.directory = path_of("data/new");
	expect_refused(US_E_CONFIG, "is where discovery_pattern looks", 0);
	/* Deep enough, and it cannot. */
	options.directory = path_of("data/x/y/backup");
	make_dir("data/x/y");
	open_now();
	us_close(us);
	us = NULL;
	/* By another name. */
	assert_int_equal(symlink(path_of("data/x"), path_of("elsewhere")), 0);
	options.directory = path_of("elsewhere");
	expect_refused(US_E_CONFIG, "is where discovery_pattern looks", 0);
	/* The data in the target. */
	options.directory = dir;
	expect_refused(US_E_CONFIG, "is where discovery_pattern looks", 0);
	options.directory = path_of("data");
	expect_refused(US_E_CONFIG, "is where discovery_pattern looks", 0);
	options = good;
	options.state_dir = path_of("data/x");
	expect_refused(US_E_CONFIG, "state_dir: ", 0);
	options.state_dir = path_of("data/x/a.db/b");
	expect_refused(US_E_NOTFOUND, "state_dir: cannot look at", 0);
	/* Hidden from the pattern: fine, and where it is by default. */
	options.state_dir = NULL;
	open_now();
	assert_int_equal(access(path_of("data/.litestream-multi-db/state.db"), F_OK), 0);
	us_close(us);
	us = NULL;
	options.discovery_pattern = path_of("nowhere/*/*.db");
	options.path = "{{a}}/{{b}}";
	expect_refused(US_E_NOTFOUND, "nowhere", 0);
}

/* -------------------------------------------------------------- state directory */

static void test_state_dirs(void **state)
{
	(void)state;
	char longest[PATH_MAX + 100];
	options.state_dir = path_of("deep/er/state");
	open_now();
	struct stat st;
	assert_int_equal(stat(path_of("deep"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	us_close(us);
	us = NULL;
	int fd = open(path_of("file"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	close(fd);
	options.state_dir = path_of("file");
	expect_refused(US_E_NOTFOUND, "Not a directory", 0);
	options.state_dir = path_of("file/state");
	expect_refused(US_E_NOTFOUND, "cannot look at", 0);
	memset(longest, 'x', sizeof(longest));
	longest[0] = '/';
	for (size_t i = 100; i < sizeof(longest); i += 100) {
		longest[i] = '/';
	}
	longest[sizeof(longest) - 1] = '\0';
	options.state_dir = longest;
	expect_refused(US_E_IO, "cannot look at", 0);
	/* Longer than a path can be only with the name of its file. */
	(void)snprintf(longest, sizeof(longest), "%s/", dir);
	size_t len = strlen(longest);
	while (len < PATH_MAX - 20) {
		longest[len++] = 'y';
		longest[len++] = '/';
	}
	longest[len - 1] = '\0';
	assert_true(us_open(&options, &us, &err) < 0);

	/* The one that nobody chose must be ours: a link is not. */
	options.state_dir = "";
	make_dir("theirs");
	assert_int_equal(symlink(path_of("theirs"), path_of("data/.litestream-multi-db")), 0);
	expect_refused(US_E_CONFIG, "is a link, or belongs to another user", 0);
	assert_int_equal(unlink(path_of("data/.litestream-multi-db")), 0);
	if (geteuid() == 0) {
		make_dir("data/.litestream-multi-db");
		assert_int_equal(chown(path_of("data/.litestream-multi-db"), 65534, 65534), 0);
		expect_refused(US_E_CONFIG, "is a link, or belongs to another user", 0);
	}
}

/* In a process of its own: as somebody who may not write there. */
static void test_state_dir_of_others(void **state)
{
	(void)state;
	int status;
	if (geteuid() != 0) {
		skip();
	}
	make_dir("backup");
	assert_int_equal(chown(target, 65534, 65534), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct us *none = NULL;
		if (chmod(dir, 0755) || setgid(65534) || setuid(65534)) {
			exit(1);
		}
		int32_t rc = us_open(&options, &none, &err);
		exit(rc == US_E_ACCESS && strstr(err.message, "state_dir: cannot create") ? 0 : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_struct_sizes),        CASE(test_options),  CASE(test_handles),
		CASE(test_read_only),           CASE(test_patterns), CASE(test_credentials),
		CASE(test_descriptors),         CASE(test_overlaps), CASE(test_state_dirs),
		CASE(test_state_dir_of_others),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
