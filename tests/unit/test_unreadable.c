/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory that cannot be looked at, from the outside: each public function says so,
 * it is told once, and nothing is forgotten or removed for it. In a process that is
 * nobody, since root may read everything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ultrasimple.h>

#include "scratch.h"

#define PATH_LEN (SCRATCH_LEN + 64)
#define NOBODY 65534

static char dir[SCRATCH_LEN], pattern[PATH_LEN], target[PATH_LEN], state_dir[PATH_LEN],
	closed[PATH_LEN];
static struct us *us;
static struct us_error err = { .struct_size = sizeof(err) };

/* In the child an assertion ends the process. */
#define expect(condition) \
	do { \
		if (!(condition)) { \
			(void)fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, \
				      #condition, err.message); \
			exit(1); \
		} \
	} while (0)

static void make_db(const char *rel)
{
	char path[2 * PATH_LEN];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/data/%s", dir, rel);
	expect(sqlite3_open(path, &db) == SQLITE_OK);
	expect(sqlite3_exec(db, "CREATE TABLE t (a)", NULL, NULL, NULL) == SQLITE_OK);
	expect(sqlite3_close(db) == SQLITE_OK);
}

static struct us_cycle_result cycle(void)
{
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	expect(us_cycle(us, &result, &err) == 0);
	return result;
}

/* Events of KIND that name the directory. */
static int events_of(uint32_t kind)
{
	struct us_event *event = calloc(1, sizeof(*event));
	int count = 0;
	while (us_next_events(us, event, 1, &err) == 1) {
		count += event->kind == kind && strcmp(event->path, closed) == 0 &&
			 strcmp(event->stage, "walk") == 0 &&
			 strstr(event->message, "Permission denied");
	}
	free(event);
	return count;
}

/* The cycles for which it is told to fail; 0: it is not. */
static uint64_t failing_cycles(void)
{
	struct us_failure *failure = calloc(1, sizeof(*failure));
	uint64_t cycles = 0;
	if (us_failures(us, failure, 1, &err) == 1) {
		expect(strcmp(failure->path, closed) == 0);
		expect(strcmp(failure->stage, "walk") == 0);
		expect(strstr(failure->message, "Permission denied"));
		expect(failure->since_ns > 0);
		cycles = failure->cycles;
	}
	free(failure);
	return cycles;
}

static struct us_stats stats(void)
{
	struct us_stats stats = { .struct_size = sizeof(stats) };
	expect(us_stats(us, &stats, &err) == 0);
	return stats;
}

/* Runs a task to its end; its code. */
static int32_t run_task(const struct us_task_options *options, struct us_progress *ret_progress)
{
	struct us_task *task = NULL;
	struct us_row *row = calloc(1, sizeof(*row));
	int32_t rc = us_task_start(us, options, &task, &err);
	*ret_progress = (struct us_progress){ .struct_size = sizeof(*ret_progress) };
	while (rc >= 0 && !ret_progress->finished) {
		rc = us_task_next(task, 1000, row, 1, ret_progress, &err);
	}
	us_task_close(task);
	free(row);
	return rc;
}

static void look_otherwise(uint64_t failures)
{
	struct us_plan plan = { .struct_size = sizeof(plan) };
	struct us_progress progress;
	expect(us_plan(us, &plan, NULL, 0, NULL, &err) == 0);
	expect(plan.walk_failures == failures);
	expect(plan.databases == 2 - failures);
	expect(failures ? strstr(plan.first_failure, "\"y\": Permission denied") != NULL
			: plan.first_failure[0] == '\0');

	struct us_task_options list = { .struct_size = sizeof(list), .kind = US_TASK_LIST };
	expect(run_task(&list, &progress) == 0);
	expect(progress.walk_failures == failures);
	struct us_task_options verify = { .struct_size = sizeof(verify), .kind = US_TASK_VERIFY };
	expect(run_task(&verify, &progress) == 0);
	expect(progress.walk_failures == failures);
	expect(progress.done_count == 2);

	/* What is not seen is not gone. */
	struct us_task_options purge = { .struct_size = sizeof(purge),
					 .kind = US_TASK_PURGE,
					 .flags = US_TASK_GONE,
					 .older_than_ns = INT64_MAX };
	int32_t rc = run_task(&purge, &progress);
	expect(failures ? rc == US_E_CONFIG && strstr(err.message, "\"y\"")
			: rc == 0 && progress.object_count == 0);
}

static int live(void)
{
	struct us_options options = { .struct_size = sizeof(options),
				      .discovery_pattern = pattern,
				      .path = "{{project}}/{{tenant}}",
				      .state_dir = state_dir,
				      .target = US_TARGET_FILE,
				      .directory = target };
	if (geteuid() == 0 && (setgid(NOBODY) || setuid(NOBODY))) {
		return 2;
	}
	make_db("x/a.db");
	make_db("y/b.db");
	expect(us_open(&options, &us, &err) == 0);
	struct us_cycle_result r = cycle();
	expect(r.uploaded == 2 && r.walk_failures == 0);
	expect(events_of(US_EVENT_WALK_FAILED) == 0 && failing_cycles() == 0);
	look_otherwise(0);

	expect(chmod(closed, 0) == 0);
	for (uint64_t i = 1; i <= 5; i++) { /* more than after which what is gone is forgotten */
		r = cycle();
		expect(r.databases == 1 && r.walk_failures == 1 && r.gone == 0 && r.failed == 0);
		expect(events_of(US_EVENT_WALK_FAILED) == (i == 1));
		expect(failing_cycles() == i);
		expect(stats().walk_failures == 1 && stats().databases_gone == 0);
	}
	look_otherwise(1);

	expect(chmod(closed, 0700) == 0);
	r = cycle();
	expect(r.databases == 2 && r.walk_failures == 0 && r.uploaded == 0 && r.changed == 0);
	expect(failing_cycles() == 0);
	look_otherwise(0);
	expect(chmod(closed, 0) == 0); /* a failure of its own, told anew */
	(void)cycle();
	expect(events_of(US_EVENT_WALK_FAILED) == 1 && failing_cycles() == 1);
	expect(chmod(closed, 0700) == 0);
	us_close(us);
	return 0;
}

static void test_unreadable(void **state)
{
	(void)state;
	char path[PATH_LEN], command[SCRATCH_LEN + 16];
	int status;
	assert_int_equal(scratch_dir(dir), 0);
	static const char *const names[] = {
		"", "/data", "/data/x", "/data/y", "/backup", "/state"
	};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s%s", dir, names[i]);
		assert_true(i == 0 || mkdir(path, 0755) == 0);
		assert_true(geteuid() != 0 || chown(path, NOBODY, NOBODY) == 0);
	}
	(void)snprintf(pattern, sizeof(pattern), "%s/data/{project}/{tenant}.db", dir);
	(void)snprintf(target, sizeof(target), "%s/backup", dir);
	(void)snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
	(void)snprintf(closed, sizeof(closed), "%s/data/y", dir);
	pid_t pid = fork();
	if (pid == 0) {
		exit(live());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	assert_int_equal(system(command), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unreadable),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
