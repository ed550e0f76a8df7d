/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replacing a database: SIGKILL at, and failure of, every system call that
 * changes a name; applications at work on it. What counts is what SQLite reads.
 */
#include "restore_support.h"

#include <signal.h>

#define CALLS_MAX 80

static void make_plain_db(const char *path)
{
	make_db(path, "old");
}

/* The old database in each of its shapes; its value is "old". */
static void (*const shapes[])(const char *) = { make_plain_db, make_wal_db, make_hot_db };
#define SHAPE_COUNT 3

static void fresh_dir(const char *name)
{
	each_file(in_root(name), NULL);
	assert_int_equal(mkdir(in_root(name), 0755), 0);
}

/* Restores in a child that dies at call N. Returns 1 if it did, 0 if it was through. */
static int restore_until(long n, const char *output, uint32_t flags)
{
	int status;
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		call_count = 0;
		crash_at = n;
		int32_t rc = restore(output, flags);
		_exit(rc == 0 || rc == US_E_EXISTS ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CRASH_STATUS);
	return WEXITSTATUS(status) == CRASH_STATUS;
}

/* What an application would see in directory d, without disturbing it. */
static void see(char ret[64])
{
	each_file(in_root("seen"), NULL);
	each_file(in_root("d"), in_root("seen"));
	read_value(in_root("seen/x.db"), ret);
}

static void assert_seen(const char *one, const char *two, const char *three)
{
	char text[64];
	see(text);
	if (strcmp(text, one) != 0 && strcmp(text, two) != 0 && strcmp(text, three) != 0) {
		run_command("ls -la '%s'", in_root("d"));
		fail_msg("an application sees \"%s\"", text);
	}
}

static int hidden_count(void)
{
	return count_entries(in_root("d"), ".us-");
}

static void assert_clean(const char *value)
{
	assert_int_equal(count_entries(in_root("d"), ".us-before"), 0);
	assert_seen(value, value, value);
}

/* An application. */
static pid_t application;
static int application_in;

/* A process that has the database open and has run SQL; it waits for its end. */
static void start_application(const char *path, const char *sql)
{
	int to[2], from[2];
	char byte;
	assert_int_equal(pipe2(to, O_CLOEXEC), 0);
	assert_int_equal(pipe2(from, O_CLOEXEC), 0);
	application = fork();
	assert_true(application >= 0);
	if (application == 0) {
		sqlite3 *db;
		close(to[1]);
		int rc = sqlite3_open(path, &db) || sqlite3_exec(db, sql, NULL, NULL, NULL);
		if (rc || syscall(SYS_write, from[1], "r", 1) != 1) {
			_exit(1);
		}
		(void)!read(to[0], &byte, 1);
		_exit(0); /* like a crash: what it has open stays as it is */
	}
	close(to[0]);
	close(from[1]);
	assert_int_equal(read(from[0], &byte, 1), 1);
	close(from[0]);
	application_in = to[1];
}

static void stop_application(void)
{
	int status;
	close(application_in);
	assert_int_equal(waitpid(application, &status, 0), application);
	assert_int_equal(status, 0);
}

/* ------------------------------------------------------------------ SIGKILL */

static void test_kill_at_every_call(void **state)
{
	(void)state;
	put_new();
	for (size_t shape = 0; shape < SHAPE_COUNT; shape++) {
		int seen_nothing = 0, n = 1;
		for (;; n++) {
			char text[64];
			assert_true(n < CALLS_MAX);
			fresh_dir("d");
			shapes[shape](in_root("d/x.db"));
			int died = restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE);
			see(text);
			seen_nothing += strcmp(text, "nothing") == 0;
			assert_seen("old", "new", "nothing");
			if (!died) {
				assert_clean("new");
				assert_int_equal(hidden_count(), 0);
				break;
			}
			/* The next one, without -force: undone or completed, never nothing. */
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			assert_clean(strcmp(text, "new") == 0 ? "new" : "old");
			assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
			assert_clean("new");
			assert_int_equal(count_entries(in_root("d"), ""), 1);
		}
		assert_true(n > 12);
		assert_true(seen_nothing >= 3);
	}
}

static void test_kill_during_recovery(void **state)
{
	(void)state;
	put_new();
	for (int n = 1; n < CALLS_MAX; n++) {
		for (int m = 1; m < CALLS_MAX; m++) {
			fresh_dir("d");
			make_wal_db(in_root("d/x.db"));
			if (!restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE)) {
				assert_true(n > 12);
				return;
			}
			int died =
				restore_until(m, in_root("d/x.db"), m % 2 ? 0 : US_RESTORE_FORCE);
			assert_seen("old", "new", "nothing");
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			char text[64];
			see(text);
			assert_clean(text);
			assert_seen("old", "new", "new");
			if (!died) {
				break;
			}
		}
	}
	fail();
}

/* An application that creates databases, in the moment without one. */
static void test_created_in_between(void **state)
{
	(void)state;
	put_new();
	int met = 0;
	for (int n = 1;; n++) {
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		if (!restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE)) {
			break;
		}
		if (is_there(in_root("d/x.db"))) {
			continue;
		}
		met++;
		make_db(in_root("d/x.db"), "created");
		for (int i = 0; i < 2; i++) {
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			assert_message(".us-before-");
			assert_seen("created", "created", "created");
		}
		/* Both are kept: moving one away gives the other. */
		run_command("cp -a '%s' '%s.keep' && rm '%s'", in_root("d"), in_root("d"),
			    in_root("d/x.db"));
		assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
		assert_clean("old");
		/* -force replaces both, at any instant by the new one only. */
		for (int m = 1;; m++) {
			run_command("rm -rf '%s' && cp -a '%s.keep' '%s'", in_root("d"),
				    in_root("d"), in_root("d"));
			int died = restore_until(m, in_root("d/x.db"), US_RESTORE_FORCE);
			assert_seen("created", "new", "nothing");
			if (!died) {
				assert_clean("new");
				break;
			}
			assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
			assert_clean("new");
		}
		run_command("rm -rf '%s.keep'", in_root("d"));
	}
	assert_true(met >= 3);
}

/* An application that only opens what is not there: SQLite makes an empty file and
 * unlinks the -wal or -journal beside it. The old database comes back whole. */
static void test_opened_in_between(void **state)
{
	(void)state;
	put_new();
	int met = 0;
	for (size_t shape = 0; shape < SHAPE_COUNT; shape++) {
		for (int n = 1;; n++) {
			fresh_dir("d");
			shapes[shape](in_root("d/x.db"));
			if (!restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE)) {
				break;
			}
			if (is_there(in_root("d/x.db"))) {
				continue;
			}
			met++;
			sqlite3 *db = open_db(in_root("d/x.db"));
			run_sql(db, "SELECT * FROM sqlite_schema");
			assert_true(is_there(in_root("d/x.db")));
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			sqlite3_close(db);
			assert_clean("old");
		}
	}
	assert_true(met >= 9);
}

/* Leaves directory d as a restore does that is killed with the name empty. */
static void cut_off_in_the_gap(void)
{
	for (int n = 1;; n++) {
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		assert_true(restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE));
		if (!is_there(in_root("d/x.db")) && !is_there(in_root("d/x.db-wal"))) {
			return;
		}
	}
}

static void test_foreign_side_file_in_the_gap(void **state)
{
	(void)state;
	put_new();
	cut_off_in_the_gap();
	write_file(in_root("d/x.db-wal"), "foreign", 7);
	uint64_t before = picture(in_root("d"));
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_true(picture(in_root("d")) == before);
	run_command("cp -a '%s' '%s'", in_root("d"), in_root("e"));
	assert_int_equal(restore(in_root("e/x.db"), US_RESTORE_FORCE), 0);
	assert_value(in_root("e/x.db"), "new");
	assert_int_equal(count_entries(in_root("e"), ""), 1);
	assert_int_equal(unlink(in_root("d/x.db-wal")), 0);
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_clean("old");
}

static void test_database_being_created_in_the_gap(void **state)
{
	(void)state;
	put_new();
	cut_off_in_the_gap();
	start_application(in_root("d/x.db"), "BEGIN; SELECT * FROM sqlite_schema"); /* SHARED */
	uint64_t before = picture(in_root("d"));
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_BUSY);
	assert_true(picture(in_root("d")) == before);
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
	assert_true(picture(in_root("d")) == before);
	stop_application();
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_clean("old");
}

/* The restored database is removed by hand before the cut-off restore has cleaned
 * up: the old one may come back, but only with its WAL. */
static void test_removed_in_between(void **state)
{
	(void)state;
	put_new();
	int met = 0;
	for (int n = 1;; n++) {
		char text[64];
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		if (!restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE)) {
			break;
		}
		see(text);
		if (strcmp(text, "new") != 0) {
			continue;
		}
		met++;
		assert_int_equal(unlink(in_root("d/x.db")), 0);
		int32_t rc = restore(in_root("d/x.db"), 0);
		assert_true(rc == 0 || rc == US_E_EXISTS);
		assert_clean(rc ? "old" : "new");
	}
	assert_true(met >= 5);
}

/* The same instants in a restore that lives: what an application creates then is
 * neither overwritten nor robbed of its side files. */
static void create_now_with_wal(void)
{
	if (is_there(in_root("d/x.db"))) {
		return;
	}
	const char *live = in_root("live2.db");
	make_db(live, "half");
	sqlite3 *db = open_db(live);
	run_sql(db,
		"PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; UPDATE t SET v='created'");
	(void)unlink(in_root("d/x.db-wal")); /* as SQLite does before it makes its own */
	(void)unlink(in_root("d/x.db-shm"));
	copy_file(live, "-wal", in_root("d/x.db-wal"), "");
	copy_file(live, "", in_root("d/x.db"), "");
	sqlite3_close(db);
	assert_int_equal(unlink(live), 0);
}

static void open_now(void)
{
	if (!is_there(in_root("d/x.db"))) {
		sqlite3 *db = open_db(in_root("d/x.db"));
		run_sql(db, "SELECT * FROM sqlite_schema");
		sqlite3_close(db);
	}
}

static void test_created_during_the_restore(void **state)
{
	(void)state;
	put_new();
	int kept = 0, undone = 0;
	for (int n = 1;; n++) {
		assert_true(n < CALLS_MAX);
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		call_count = 0;
		hook_at = n;
		hook = create_now_with_wal;
		int32_t rc = restore(in_root("d/x.db"), US_RESTORE_FORCE);
		if (hook_at) {
			break;
		}
		if (rc) {
			assert_int_equal(rc, US_E_EXISTS);
			assert_message("created");
			assert_seen("created", "created", "created");
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			assert_message(".us-before-");
			run_command("rm '%s'*", in_root("d/x.db"));
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
			assert_clean("old");
			kept++;
		} else {
			assert_clean("new");
		}
	}
	for (int n = 1;; n++) {
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		call_count = 0;
		hook_at = n;
		hook = open_now;
		int32_t rc = restore(in_root("d/x.db"), US_RESTORE_FORCE);
		if (hook_at) {
			break;
		}
		undone += rc == US_E_EXISTS;
		if (rc) {
			assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
		}
		assert_clean(rc ? "old" : "new");
	}
	hook_at = 0;
	assert_true(kept >= 3 && undone >= 3);
}

/* The syncs between the steps matter only when the power fails, which no test here
 * can do: so the steps are spelled out. */
static void test_order_of_steps(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_wal_db(in_root("d/x.db"));
	trace[0] = '\0';
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
	assert_string_equal(trace,
			    "sync file\n"
			    "rename TEMP NEW\n"
			    "link x.db-wal WAL\nlink x.db-shm SHM\nlink x.db-journal JRN\nsync\n"
			    "rename x.db DB\nsync\n"
			    "rename x.db-wal TEMP\nunlink TEMP\n"
			    "rename x.db-shm TEMP\nunlink TEMP\n"
			    "rename x.db-journal TEMP\nsync\n"
			    "rename NEW x.db\nsync\n"
			    "unlink DB\nsync\n"
			    "unlink WAL\nunlink SHM\nunlink JRN\nunlink NEW\nsync\n");
	/* Undo, by the next restore, of one that was killed with the name empty. */
	fresh_dir("d");
	make_wal_db(in_root("d/x.db"));
	for (int n = 1; is_there(in_root("d/x.db")); n++) {
		fresh_dir("d");
		make_wal_db(in_root("d/x.db"));
		assert_true(restore_until(n, in_root("d/x.db"), US_RESTORE_FORCE));
	}
	trace[0] = '\0';
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_string_equal(trace,
			    "link WAL x.db-wal\nlink SHM x.db-shm\nlink JRN x.db-journal\nsync\n"
			    "rename DB x.db\nsync\n"
			    "unlink WAL\nunlink SHM\nunlink JRN\nunlink NEW\nsync\n");
	fresh_dir("d");
	trace[0] = '\0';
	assert_int_equal(restore(in_root("d/e/x.db"), 0), 0);
	assert_string_equal(trace, "sync\nsync\nsync file\nrename TEMP x.db\nsync\n");
	run_command("rm -r '%s'", in_root("d/e"));
}

static void test_kill_without_old_database(void **state)
{
	(void)state;
	put_new();
	for (int with_empty = 0; with_empty < 2; with_empty++) {
		for (int n = 1;; n++) {
			assert_true(n < CALLS_MAX);
			fresh_dir("d");
			if (with_empty) {
				write_file(in_root("d/x.db"), "", 0);
			}
			if (!restore_until(n, in_root("d/x.db"), 0)) {
				break;
			}
			int32_t rc = restore(in_root("d/x.db"), 0);
			assert_true(rc == 0 || rc == US_E_EXISTS);
			assert_clean("new");
			assert_int_equal(count_entries(in_root("d"), ""), 1);
		}
	}
}

/* ------------------------------------------------------------------ failures */

static void test_failure_of_every_call(void **state)
{
	(void)state;
	put_new();
	for (size_t shape = 0; shape < SHAPE_COUNT; shape++) {
		int failures = 0;
		for (int n = 1;; n++) {
			assert_true(n < CALLS_MAX);
			fresh_dir("d");
			shapes[shape](in_root("d/x.db"));
			uint64_t before = picture(in_root("d"));
			call_count = 0;
			fail_at = n;
			int32_t rc = restore(in_root("d/x.db"), US_RESTORE_FORCE);
			int reached = call_count >= n;
			fail_at = 0;
			if (rc) {
				failures++;
				assert_int_equal(rc, US_E_IO);
				if (picture(in_root("d")) != before) {
					run_command("ls -la '%s'", in_root("d"));
					fail_msg("call %d changed the output: %s", n,
						 error.message);
				}
			} else {
				assert_seen("new", "new", "new");
			}
			if (!reached) {
				break;
			}
		}
		assert_true(failures >= 9);
	}
}

static void test_failures_without_old_database(void **state)
{
	(void)state;
	put_new();
	for (int n = 1;; n++) {
		call_count = 0;
		fail_at = n;
		int32_t rc = restore(in_root("p/q/x.db"), 0);
		int reached = call_count >= n;
		fail_at = 0;
		if (rc) {
			assert_int_equal(rc, US_E_IO);
			/* The very call that would have removed the temporary file may fail. */
			assert_false(is_there(in_root("p/q/x.db")));
		}
		run_command("rm -rf '%s'", in_root("p"));
		if (!reached) {
			assert_int_equal(rc, 0);
			break;
		}
	}
}

/* --------------------------------------------------------------------- locks */

static void test_databases_in_use(void **state)
{
	static const struct {
		int wal;
		const char *sql, *held;
	} cases[] = {
		{ 1, "SELECT * FROM t", "SHARED" }, /* an idle WAL connection */
		{ 1, "BEGIN; SELECT * FROM t", "SHARED" },
		{ 1, "BEGIN IMMEDIATE", "SHARED" },
		{ 1, "PRAGMA locking_mode=EXCLUSIVE; SELECT * FROM t; UPDATE t SET v='x'",
		  "EXCLUSIVE" },
		{ 0, "BEGIN; SELECT * FROM t", "SHARED" },
		{ 0, "BEGIN IMMEDIATE", "RESERVED" },
		{ 0, "BEGIN IMMEDIATE; UPDATE t SET v='x'", "RESERVED" },
		{ 0, "BEGIN EXCLUSIVE", "RESERVED" },
		{ 0, "PRAGMA locking_mode=EXCLUSIVE; SELECT * FROM t", "SHARED" },
	};
	(void)state;
	put_new();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fresh_dir("d");
		make_db(in_root("d/x.db"), "old");
		if (cases[i].wal) {
			sqlite3 *db = open_db(in_root("d/x.db"));
			run_sql(db, "PRAGMA journal_mode=WAL");
			sqlite3_close(db);
		}
		start_application(in_root("d/x.db"), cases[i].sql);
		uint64_t before = picture(in_root("d"));
		uint32_t lists = memory.list_count;
		assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
		assert_message(cases[i].held);
		char who[32];
		(void)snprintf(who, sizeof(who), "process %d", (int)application);
		assert_message(who);
		assert_true(error.retryable);
		assert_int_equal(memory.list_count, lists); /* before the download */
		assert_true(picture(in_root("d")) == before);
		stop_application();
		assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
		assert_clean("new");
	}
}

/* Its file was removed below it; only the -shm tells. */
static void test_shm_in_use(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_db(in_root("d/x.db"), "old");
	start_application(in_root("d/x.db"), "PRAGMA journal_mode=WAL; SELECT * FROM t");
	assert_int_equal(unlink(in_root("d/x.db")), 0);
	uint64_t before = picture(in_root("d"));
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
	assert_message("DMS");
	assert_true(picture(in_root("d")) == before);
	stop_application();
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
	assert_clean("new");
}

static void test_dotfile_lock(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_db(in_root("d/x.db"), "old");
	assert_int_equal(mkdir(in_root("d/x.db.lock"), 0777), 0);
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
	assert_int_equal(rmdir(in_root("d/x.db.lock")), 0);
	write_file(in_root("d/x.db.lock"), "", 0); /* somebody else's kind of file */
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
}

/* What begins during the download is seen by the second look. */
static void use_now(const char *key)
{
	(void)key;
	memory.on_get = NULL;
	start_application(in_root("d/x.db"), "BEGIN; SELECT * FROM t");
}

static void create_now(const char *key)
{
	(void)key;
	memory.on_get = NULL;
	make_db(in_root("d/x.db"), "created");
}

static void create_side_now(const char *key)
{
	(void)key;
	memory.on_get = NULL;
	write_file(in_root("d/x.db-journal"), "side", 4);
}

static void test_used_during_the_download(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_db(in_root("d/x.db"), "old");
	uint64_t before = picture(in_root("d"));
	memory.on_get = use_now;
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
	stop_application();
	assert_true(picture(in_root("d")) == before);

	fresh_dir("d");
	memory.on_get = create_now;
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_clean("created");
	assert_int_equal(hidden_count(), 0);

	fresh_dir("d");
	memory.on_get = create_side_now;
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_EXISTS);
	assert_int_equal(count_entries(in_root("d"), ""), 1);
}

/* Two restores of one output: the second is told so, and disturbs nothing. */
static int32_t inner_rc;
static void restore_inside(const char *key)
{
	(void)key;
	memory.on_get = NULL;
	const struct us_restore_options options = { .struct_size = sizeof(options),
						    .path = SOURCE,
						    .flags = US_RESTORE_FORCE,
						    .output_path = in_root("d/x.db") };
	struct us_restore_result own = { .struct_size = sizeof(own) };
	inner_rc = restore_options(&options, NULL, &own, NULL);
}

static void test_two_restores_of_one_output(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_db(in_root("d/x.db"), "old");
	memory.on_get = restore_inside;
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
	assert_int_equal(inner_rc, US_E_BUSY);
	assert_clean("new");
	assert_int_equal(count_entries(in_root("d"), ""), 1);
}

/* An application that opens, reads and writes all the time sees old, then new. */
static void test_beside_a_busy_application(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	make_db(in_root("d/x.db"), "old");
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		for (int i = 0; i < 100000; i++) {
			sqlite3 *db;
			char *message = NULL;
			if (sqlite3_open_v2(in_root("d/x.db"), &db, SQLITE_OPEN_READWRITE, NULL) ==
			    SQLITE_OK) {
				int rc = sqlite3_exec(db,
						      "UPDATE t SET v=v; SELECT 1/count(*) FROM t",
						      NULL, NULL, &message);
				if (rc == SQLITE_CORRUPT || rc == SQLITE_NOTADB) {
					_exit(1);
				}
				sqlite3_free(message);
			}
			sqlite3_close(db);
		}
		_exit(0);
	}
	int done = 0;
	for (int i = 0; i < 60; i++) {
		int32_t rc = restore(in_root("d/x.db"), US_RESTORE_FORCE);
		assert_true(rc == 0 || rc == US_E_BUSY);
		done += rc == 0;
	}
	int status;
	assert_int_equal(kill(pid, 0), 0);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	print_message("%d of 60 restores found a gap\n", done);
	assert_seen("new", "old", "old");
}

/* The temporary file is taken away, and another put in its place. */
static void swap_temp(const char *key)
{
	(void)key;
	memory.on_get = NULL;
	run_command("cd '%s' && for f in .us-restore-*; do rm $f && echo foreign >$f; done",
		    in_root("d"));
}

static void test_temporary_file_swapped(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	memory.on_get = swap_temp;
	assert_int_equal(restore(in_root("d/x.db"), 0), US_E_BUSY);
	assert_seen("nothing", "nothing", "nothing");
	make_db(in_root("d/x.db"), "old");
	memory.on_get = swap_temp;
	assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), US_E_BUSY);
	assert_clean("old");
}

/* A leftover temporary file that is a link to something precious. */
static void test_planted_names(void **state)
{
	(void)state;
	put_new();
	fresh_dir("d");
	write_file(in_root("precious"), "precious", 8);
	assert_true(restore_until(1, in_root("d/x.db"), 0));
	DIR *dir = opendir(in_root("d"));
	assert_non_null(dir);
	char name[PATH_LEN] = "";
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (strncmp(e->d_name, ".us-restore-", 12) == 0) {
			(void)snprintf(name, sizeof(name), "%s/d/%s", root, e->d_name);
		}
	}
	closedir(dir);
	if (name[0] == '\0') { /* the first call comes before it exists */
		assert_true(restore_until(2, in_root("d/x.db"), 0));
		return;
	}
	for (int is_hard = 0; is_hard < 2; is_hard++) {
		(void)unlink(name);
		assert_int_equal(is_hard ? link(in_root("precious"), name)
					 : symlink("../precious", name),
				 0);
		assert_int_equal(restore(in_root("d/x.db"), US_RESTORE_FORCE), 0);
		assert_clean("new");
		run_command("test \"$(cat '%s')\" = precious", in_root("precious"));
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup_restore, teardown_restore)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(kill_at_every_call),
		TEST(kill_during_recovery),
		TEST(created_in_between),
		TEST(opened_in_between),
		TEST(foreign_side_file_in_the_gap),
		TEST(database_being_created_in_the_gap),
		TEST(removed_in_between),
		TEST(created_during_the_restore),
		TEST(order_of_steps),
		TEST(kill_without_old_database),
		TEST(failure_of_every_call),
		TEST(failures_without_old_database),
		TEST(databases_in_use),
		TEST(shm_in_use),
		TEST(dotfile_lock),
		TEST(used_during_the_download),
		TEST(two_restores_of_one_output),
		TEST(beside_a_busy_application),
		TEST(temporary_file_swapped),
		TEST(planted_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
