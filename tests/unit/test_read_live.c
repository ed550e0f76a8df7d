/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader beside live writers: each transaction raises one number in every
 * row. An image must pass integrity_check, carry one number in all rows, and
 * never an older one than the image before. Writers that do not wait for locks
 * (busy_timeout 0) must not see SQLITE_BUSY while reads are impatient.
 *
 * Each kind of writer goes on until it has committed US_LIVE_COMMITS times
 * (default 150) and its share of US_LIVE_COUNT images (default 2000) was taken,
 * for at most US_LIVE_SECONDS (default 2).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "read_support.h"

#define ROWS 60

struct kind {
	const char *name, *journal_mode;
	int busy_timeout_ms; /* 0: every SQLITE_BUSY counts */
	int pause_us;        /* longest pause between transactions; 0: none */
	int patient, writers;
	size_t memory_len;
	int must_succeed; /* some images at least */
	int bulk_rows;    /* of 3,000 bytes that stay: more than TIGHT holds */
};

struct shared {
	atomic_int busy, commits, other_errors, stop;
};

static char root[SCRATCH_LEN];
static int spool_fd;
static struct shared *shared;

static int env_int(const char *name, int value)
{
	const char *text = getenv(name);
	return text && text[0] ? (int)strtol(text, NULL, 10) : value;
}

static void note(int rc)
{
	if (rc == SQLITE_OK) {
		atomic_fetch_add(&shared->commits, 1);
	} else if (rc == SQLITE_BUSY) {
		atomic_fetch_add(&shared->busy, 1);
	} else {
		atomic_fetch_add(&shared->other_errors, 1);
	}
}

/* Raises the number; grows and shrinks the file now and then. */
static int transaction(sqlite3 *db, int can_roll_back)
{
	int rc = sql(db, "BEGIN IMMEDIATE");
	if (rc != SQLITE_OK) {
		return rc;
	}
	rc = sql(db, "UPDATE t SET n=n+1, pad=randomblob(200+abs(random())%%1500)");
	if (rc == SQLITE_OK && rng(4) == 0) {
		rc = sql(db, "INSERT INTO junk SELECT randomblob(3000) FROM t WHERE id<%u",
			 rng(50));
	}
	if (rc == SQLITE_OK && rng(6) == 0) {
		rc = sql(db, "DELETE FROM junk");
	}
	if (rc == SQLITE_OK && can_roll_back && rng(5) == 0) {
		(void)sql(db, "ROLLBACK");
		return SQLITE_OK;
	}
	if (rc == SQLITE_OK) {
		rc = sql(db, "COMMIT");
	}
	if (rc != SQLITE_OK && !sqlite3_get_autocommit(db)) {
		(void)sql(db, "ROLLBACK");
	}
	return rc;
}

__attribute__((noreturn)) static void writer(const char *path, const struct kind *kind, int number)
{
	sqlite3 *db = NULL;
	int is_wal = strcmp(kind->journal_mode, "WAL") == 0;
	int can_roll_back = strcmp(kind->journal_mode, "OFF") != 0;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	rng_state += (uint64_t)number * 7919;
	while (!atomic_load(&shared->stop)) {
		if (!db) {
			(void)sqlite3_open(path, &db);
			(void)sqlite3_busy_timeout(db, kind->busy_timeout_ms);
			(void)sql(db, "PRAGMA journal_mode=%s", kind->journal_mode);
			(void)sql(db, "PRAGMA synchronous=%s", rng(2) ? "OFF" : "NORMAL");
			(void)sql(db, "PRAGMA cache_size=%u", 4 + rng(30));
			(void)sql(db, "PRAGMA wal_autocheckpoint=%u", 10 + rng(200));
		}
		note(transaction(db, can_roll_back));
		if (is_wal && rng(30) == 0) {
			(void)sql(db, "PRAGMA wal_checkpoint(%s)", rng(2) ? "RESTART" : "TRUNCATE");
		}
		if (kind->writers == 1 && can_roll_back && rng(60) == 0) {
			note(sql(db, "VACUUM"));
		}
		if (rng(50) == 0) {
			(void)sqlite3_close(db);
			db = NULL;
		}
		if (kind->pause_us) {
			(void)usleep(5000 + rng((uint32_t)kind->pause_us - 5000));
		}
	}
	(void)sqlite3_close(db);
	_exit(0);
}

static void create(const char *path, int bulk_rows)
{
	sqlite3 *db;
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	(void)sql(db, "PRAGMA page_size=1024");
	(void)sql(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, n, pad)");
	(void)sql(db, "CREATE TABLE junk(b)");
	(void)sql(db,
		  "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)"
		  " INSERT INTO t(n, pad) SELECT 0, randomblob(500) FROM c",
		  ROWS);
	(void)sql(db, "CREATE TABLE bulk(b)");
	(void)sql(db,
		  "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)"
		  " INSERT INTO bulk SELECT randomblob(3000) FROM c",
		  bulk_rows);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	(void)usleep(40000);
}

/* The number in all rows, or -1 if they differ. */
static int64_t number_in(struct image *image)
{
	sqlite3 *db = image_open(image);
	int64_t n =
		sql_int(db, "SELECT CASE WHEN min(n)=max(n) AND count(*)=60 THEN max(n) ELSE -1 END"
			    " FROM t");
	(void)sqlite3_close(db);
	return n;
}

static void run_kind(const struct kind *kind, int count)
{
	char path[PATH_LEN];
	struct us_reader *reader;
	struct image image = { 0 };
	pid_t pids[4];
	(void)snprintf(path, sizeof(path), "%s/%.40s.db", root, kind->name);
	create(path, kind->bulk_rows);
	assert_int_equal(us_reader_new(kind->memory_len, spool_fd, &reader, NULL), 0);
	memset(shared, 0, sizeof(*shared));
	for (int i = 0; i < kind->writers; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			writer(path, kind, i);
		}
	}
	char name[64];
	(void)snprintf(name, sizeof(name), "%.40s.db", kind->name);
	int64_t end_ns = us_clock_mono_ns() + env_int("US_LIVE_SECONDS", 2) * US_NS_PER_S;
	int64_t last = 0;
	int images = 0, busy = 0;
	int commits = env_int("US_LIVE_COMMITS", 150);
	while ((images < count || atomic_load(&shared->commits) < commits) &&
	       us_clock_mono_ns() < end_ns) {
		struct us_error err = US_ERROR_INIT;
		int32_t rc = image_read(reader, root, name, kind->patient, &image, &err);
		if (rc == US_E_BUSY) {
			busy++;
			(void)usleep(200);
			continue;
		}
		if (rc) {
			fail_msg("%s: %d, %s", kind->name, rc, err.message);
		}
		images++;
		if (!image_is_sound(&image)) {
			fail_msg("%s: image %d fails integrity_check", kind->name, images);
		}
		int64_t n = number_in(&image);
		if (n < last) {
			fail_msg("%s: image %d is torn or goes back (%" PRId64 " after %" PRId64
				 ")",
				 kind->name, images, n, last);
		}
		last = n;
	}
	atomic_store(&shared->stop, 1);
	for (int i = 0; i < kind->writers; i++) {
		(void)waitpid(pids[i], NULL, 0);
	}
	print_message("%-18s %5d images, %5d busy; writers: %5d commits, %d SQLITE_BUSY\n",
		      kind->name, images, busy, atomic_load(&shared->commits),
		      atomic_load(&shared->busy));
	assert_int_equal(atomic_load(&shared->other_errors), 0);
	if (kind->busy_timeout_ms == 0) {
		assert_int_equal(atomic_load(&shared->busy), 0);
	}
	assert_true(images > 0 || !kind->must_succeed);
	us_reader_free(reader);
	image_done(&image);
}

#define ROOMY ((size_t)64 << 20)
#define TIGHT ((size_t)1 << 20)

static void test_live(void **state)
{
	static const struct kind kinds[] = {
		{ "wal", "WAL", 10000, 0, 0, 2, ROOMY, 1, 0 },
		{ "wal-patient", "WAL", 10000, 8000, 1, 2, ROOMY, 1, 0 },
		{ "wal-paced", "WAL", 0, 20000, 0, 1, ROOMY, 1, 0 },
		{ "delete-paced", "DELETE", 0, 20000, 0, 1, ROOMY, 0, 0 },
		{ "truncate-paced", "TRUNCATE", 0, 20000, 0, 1, ROOMY, 0, 0 },
		{ "persist-paced", "PERSIST", 0, 20000, 0, 1, ROOMY, 0, 0 },
		{ "memory-paced", "MEMORY", 0, 60000, 0, 1, ROOMY, 1, 0 },
		{ "off-paced", "OFF", 0, 60000, 0, 1, ROOMY, 1, 0 },
		{ "delete", "DELETE", 10000, 0, 1, 2, ROOMY, 1, 0 },
		{ "truncate", "TRUNCATE", 10000, 0, 1, 2, ROOMY, 1, 0 },
		{ "persist", "PERSIST", 10000, 0, 1, 2, ROOMY, 1, 0 },
		{ "memory", "MEMORY", 10000, 0, 1, 2, ROOMY, 1, 0 },
		{ "off", "OFF", 10000, 0, 1, 1, ROOMY, 1, 0 },
		{ "wal-tight", "WAL", 10000, 0, 0, 2, TIGHT, 0, 0 },
		{ "wal-large", "WAL", 10000, 0, 0, 2, TIGHT, 1, 1000 },
		{ "wal-large-patient", "WAL", 10000, 20000, 1, 1, TIGHT, 1, 1000 },
		{ "delete-large", "DELETE", 10000, 0, 1, 2, TIGHT, 1, 1000 },
		{ "off-large", "OFF", 10000, 0, 1, 1, TIGHT, 1, 1000 },
	};
	size_t kind_count = sizeof(kinds) / sizeof(kinds[0]);
	int count = env_int("US_LIVE_COUNT", 2000) / (int)kind_count;
	(void)state;
	for (size_t i = 0; i < kind_count; i++) {
		run_kind(&kinds[i], count);
	}
}

static int setup(void **state)
{
	(void)state;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED || scratch_dir(root)) {
		return -1;
	}
	spool_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return spool_fd < 0;
}

static int teardown(void **state)
{
	(void)state;
	(void)close(spool_fd);
	return remove_tree(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_live) };
	return cmocka_run_group_tests(tests, setup, teardown);
}
