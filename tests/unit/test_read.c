/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader, case by case. Databases, WALs and journals are SQLite's own work,
 * bent where a case needs it; what a bent file must give is SQLite's to say
 * wherever it has an opinion (expect_like_sqlite). test_read_oracle.c compares
 * crash states by the thousand, test_read_live.c reads beside live writers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "../../csrc/base/bytes.h"
#include "../../csrc/read/probe.h"
#include "read_support.h"

#define PENDING_BYTE 0x40000000
#define TICK_US 40000

static char root[SCRATCH_LEN], dir[PATH_LEN];
static struct us_reader *reader, *small_reader;
static int spool_fd;
static struct image image;
static struct us_error err;

/* ---------------------------------------------------------------- helpers */

static const char *path_of(const char *name)
{
	static char paths[4][PATH_LEN + 300];
	static unsigned int next;
	char *path = paths[next++ % 4];
	(void)snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
	return path;
}

static void settle(void)
{
	(void)usleep(TICK_US);
}

static sqlite3 *open_db(const char *name)
{
	sqlite3 *db;
	assert_int_equal(sqlite3_open(path_of(name), &db), SQLITE_OK);
	(void)sql(db, "PRAGMA synchronous=OFF");
	return db;
}

static void fill(sqlite3 *db, const char *journal_mode, int page_size, int rows)
{
	assert_int_equal(sql(db, "PRAGMA page_size=%d", page_size), SQLITE_OK);
	assert_int_equal(sql(db, "PRAGMA journal_mode=%s", journal_mode), SQLITE_OK);
	assert_int_equal(sql(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, b)"), SQLITE_OK);
	assert_int_equal(
		sql(db,
		    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)"
		    " INSERT INTO t(b) SELECT randomblob(700) FROM c",
		    rows),
		SQLITE_OK);
}

static void make_db(const char *name, const char *journal_mode, int page_size, int rows)
{
	sqlite3 *db = open_db(name);
	fill(db, journal_mode, page_size, rows);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void copy_file(const char *from, const char *to)
{
	struct bytes b = bytes_load(path_of(from));
	bytes_store(&b, path_of(to));
	bytes_free(&b);
}

/* The state of NAME's files under another name. */
static void copy_state(const char *from, const char *to)
{
	static const char *const suffixes[] = { "", "-wal", "-journal" };
	for (int i = 0; i < 3; i++) {
		char a[300], b[300];
		(void)snprintf(a, sizeof(a), "%s%s", from, suffixes[i]);
		(void)snprintf(b, sizeof(b), "%s%s", to, suffixes[i]);
		copy_file(a, b);
	}
}

/* A database with a WAL of several commits, left as a crash leaves it. */
static void make_wal_db(const char *name, int page_size, int rows)
{
	sqlite3 *db = open_db("made.db");
	fill(db, "WAL", page_size, rows);
	assert_int_equal(sql(db, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK);
	assert_int_equal(sql(db, "PRAGMA wal_autocheckpoint=0"), SQLITE_OK);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(sql(db, "UPDATE t SET b=randomblob(700) WHERE id%%5=%d", i),
				 SQLITE_OK);
		assert_int_equal(sql(db, "INSERT INTO t(b) VALUES(randomblob(3000))"), SQLITE_OK);
	}
	copy_state("made.db", name);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	(void)unlink(path_of("made.db"));
}

/* A database in the middle of a large rollback-mode transaction, likewise. */
static void make_hot_db(const char *name, int page_size, int rows)
{
	sqlite3 *db = open_db("made.db");
	fill(db, "DELETE", page_size, rows);
	assert_int_equal(sql(db, "PRAGMA synchronous=FULL"), SQLITE_OK);
	assert_int_equal(sql(db, "PRAGMA cache_size=5"), SQLITE_OK);
	assert_int_equal(sql(db, "BEGIN"), SQLITE_OK);
	assert_int_equal(sql(db, "UPDATE t SET b=randomblob(900)"), SQLITE_OK);
	copy_state("made.db", name);
	assert_int_equal(sql(db, "ROLLBACK"), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	(void)unlink(path_of("made.db"));
}

static int32_t read_with(struct us_reader *r, const char *name, int patient)
{
	us_error_clear(&err);
	image.begins = image.writes = 0;
	image.len = image.longest = 0;
	return image_read(r, dir, name, patient, &image, &err);
}

static int32_t read_now(const char *name)
{
	return read_with(reader, name, 0);
}

static void expect(const char *name, int32_t code, const char *message_part)
{
	int32_t rc = read_now(name);
	if (rc != code || (message_part && !strstr(err.message, message_part))) {
		print_error("%s: %d, \"%s\"\n", name, rc, err.message);
	}
	assert_int_equal(rc, code);
	if (message_part) {
		assert_non_null(strstr(err.message, message_part));
	}
}

/* A file whose ctime is now is not believed yet (unless we are held up a tick). */
static void expect_too_young(const char *name)
{
	int32_t rc = 0;
	for (int i = 0; i < 20 && rc == 0; i++) {
		assert_int_equal(chmod(path_of(name), 0600), 0);
		rc = read_now(name);
	}
	assert_int_equal(rc, US_E_BUSY);
	assert_non_null(strstr(err.message, "a moment ago"));
	assert_int_equal(image.begins, 0);
}

static void expect_bytes(const struct bytes *b)
{
	if (image.len != b->len || memcmp(image.data, b->data, b->len) != 0) {
		print_error("image of %zu bytes, expected %zu\n", image.len, b->len);
		fail();
	}
	assert_int_equal(image.info.image_len, image.len);
	assert_int_equal(image.info.page_size * (uint64_t)image.info.page_count, image.len);
}

static void expect_file(const char *name)
{
	struct bytes b = bytes_load(path_of(name));
	expect_bytes(&b);
	bytes_free(&b);
}

/* What SQLite makes of a copy of NAME's state; its result code. */
static int recover_copy(const char *name, struct bytes *ret)
{
	sqlite3 *db;
	copy_state(name, "recovered.db");
	assert_int_equal(sqlite3_open(path_of("recovered.db"), &db), SQLITE_OK);
	int rc = sql(db, "SELECT count(*) FROM sqlite_master");
	if (rc == SQLITE_OK) {
		rc = sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
	}
	(void)sqlite3_close(db);
	*ret = bytes_load(path_of("recovered.db"));
	(void)unlink(path_of("recovered.db"));
	(void)unlink(path_of("recovered.db-wal"));
	(void)unlink(path_of("recovered.db-journal"));
	(void)unlink(path_of("recovered.db-shm"));
	return rc;
}

/* Reads NAME, calm by now, with both readers. */
static void expect_like_sqlite(const char *name)
{
	struct bytes b;
	assert_int_equal(recover_copy(name, &b), SQLITE_OK);
	settle();
	expect(name, 0, NULL);
	expect_bytes(&b);
	assert_int_equal(read_with(small_reader, name, 0), 0);
	expect_bytes(&b);
	bytes_free(&b);
}

static void poke(const char *name, uint64_t off, const void *data, size_t len)
{
	int fd = open(path_of(name), O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, data, len, (off_t)off), (ssize_t)len);
	(void)close(fd);
}

static void poke_be32(const char *name, uint64_t off, uint32_t value)
{
	uint8_t bytes[4];
	us_put_be32(bytes, value);
	poke(name, off, bytes, sizeof(bytes));
}

/* What happens between the first look at NAME and the moment its image is handed on,
 * once per read. */
static void (*in_between)(void);

static int32_t interrupted_begin(void *arg, const struct us_image_info *info, struct us_error *e)
{
	void (*what)(void) = in_between;
	in_between = NULL;
	if (what) {
		what();
	}
	return image_begin(arg, info, e);
}

static int32_t read_interrupted(struct us_reader *r, const char *name, int patient,
				void (*what)(void))
{
	struct stat st;
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(stat(path_of(name), &st), 0);
	struct us_read_source source = { .prefix_fd = prefix_fd,
					 .rel = name,
					 .display = name,
					 .inode = st.st_ino,
					 .patient = patient };
	struct us_image_sink sink = { interrupted_begin, image_write, &image };
	us_error_clear(&err);
	in_between = what;
	image.begins = 0;
	int32_t rc = us_read_image(r, &source, &sink, &image.info, &err);
	assert_true(rc == US_E_BUSY || !in_between);
	(void)close(prefix_fd);
	return rc;
}

static pid_t other; /* a process of the test, ended by the next one at the latest */

static void end_process(pid_t pid)
{
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
}

static int fresh(void **state)
{
	(void)state;
	if (other) {
		end_process(other);
		other = 0;
	}
	if (remove_tree(dir) || mkdir(dir, 0700)) {
		return -1;
	}
	err.struct_size = sizeof(err);
	return 0;
}

/* ------------------------------------------------------------------- quiet */

static void test_quiet(void **state)
{
	(void)state;
	for (int page_size = 512; page_size <= 65536; page_size *= 2) {
		(void)fresh(NULL);
		make_db("x.db", "DELETE", page_size, 50);
		settle();
		int64_t before = us_clock_wall_ns();
		expect("x.db", 0, NULL);
		int64_t after = us_clock_wall_ns();
		expect_file("x.db");
		struct stat st;
		assert_int_equal(stat(path_of("x.db"), &st), 0);
		struct us_file_stat fs = us_file_stat_of(&st);
		assert_true(us_file_stat_equal(&fs, &image.info.db));
		assert_int_equal(image.info.wal.inode, 0);
		assert_int_equal(image.info.page_size, page_size);
		assert_int_equal(image.info.mode, st.st_mode & 07777);
		assert_int_equal(image.info.uid, st.st_uid);
		assert_true(image.info.snapshot_ns >= before && image.info.snapshot_ns <= after);
		assert_true(image.info.clock_ns <= after && image.info.clock_ns > fs.ctime_ns);
		assert_int_equal(image.info.change_counter, us_get_be32(image.data + 24));
		assert_true(image_is_sound(&image));
	}
}

static void test_too_young(void **state)
{
	(void)state;
	make_db("x.db", "DELETE", 4096, 5);
	expect_too_young("x.db");
	assert_int_equal(read_with(reader, "x.db", 1), 0);
	expect_file("x.db");
}

static void write_to_x(void)
{
	poke("x.db", 5000, "y", 1);
}

static void replace_x(void)
{
	assert_int_equal(rename(path_of("y.db"), path_of("x.db")), 0);
}

/* A large one is read while it is handed on: what it became meanwhile is seen. */
static void test_changed_while_read(void **state)
{
	(void)state;
	make_db("x.db", "DELETE", 4096, 3000);
	make_db("y.db", "DELETE", 4096, 3000);
	settle();
	assert_int_equal(read_interrupted(small_reader, "x.db", 0, write_to_x), US_E_BUSY);
	assert_non_null(strstr(err.message, "has moved on"));
	settle();
	assert_int_equal(read_interrupted(small_reader, "x.db", 0, replace_x), US_E_BUSY);
	assert_non_null(strstr(err.message, "has moved on"));
	settle();
	expect("x.db", 0, NULL);
	expect_file("x.db");
}

/* What is remembered is what the files were before they were read. */
static void test_remembers_before(void **state)
{
	(void)state;
	static const char *const modes[] = { "DELETE", "WAL" };
	for (int i = 0; i < 2; i++) {
		(void)fresh(NULL);
		make_db("x.db", modes[i], 4096, 20);
		if (i) {
			make_wal_db("x.db", 4096, 20);
		}
		settle();
		struct stat st, st_wal = { 0 };
		assert_int_equal(stat(path_of("x.db"), &st), 0);
		(void)stat(path_of("x.db-wal"), &st_wal);
		struct us_file_stat db = us_file_stat_of(&st), wal = us_file_stat_of(&st_wal);
		assert_int_equal(read_interrupted(reader, "x.db", 0, write_to_x), 0);
		assert_true(us_file_stat_equal(&image.info.db, &db));
		assert_true(us_file_stat_equal(&image.info.wal, &wal));
		assert_int_equal(stat(path_of("x.db"), &st), 0);
		db = us_file_stat_of(&st);
		assert_false(us_file_stat_equal(&image.info.db, &db));
	}
}

static void test_below_directories(void **state)
{
	(void)state;
	assert_int_equal(mkdir(path_of("a"), 0700), 0);
	assert_int_equal(mkdir(path_of("a/b"), 0700), 0);
	make_db("a/b/x.db", "DELETE", 4096, 5);
	settle();
	expect("a/b/x.db", 0, NULL);
	expect_file("a/b/x.db");
	assert_int_equal(symlink("a", path_of("link")), 0);
	expect("link/b/x.db", US_E_NOTFOUND, NULL);
}

static void test_sizes(void **state)
{
	(void)state;
	static const uint8_t padding[70000];
	make_db("x.db", "DELETE", 4096, 20);
	struct bytes whole = bytes_load(path_of("x.db"));
	/* SQLITE_FCNTL_CHUNK_SIZE: longer than the count */
	poke("x.db", whole.len, padding, sizeof(padding));
	settle();
	expect("x.db", 0, NULL);
	expect_bytes(&whole);
	/* a count that is not valid (written by SQLite before 3.7.0) */
	poke_be32("x.db", 92, 0);
	assert_int_equal(truncate(path_of("x.db"), (off_t)whole.len - 4096), 0);
	settle();
	expect("x.db", 0, NULL);
	expect_file("x.db");
	/* likewise, and a last page that is cut off: zeros, as for SQLite */
	assert_int_equal(truncate(path_of("x.db"), (off_t)whole.len - 5000), 0);
	settle();
	expect("x.db", 0, NULL);
	assert_int_equal(image.len, whole.len - 4096);
	/* a valid count that the file does not hold */
	bytes_store(&whole, path_of("x.db"));
	assert_int_equal(truncate(path_of("x.db"), (off_t)whole.len - 1), 0);
	settle();
	expect("x.db", US_E_CORRUPT, "shorter than its header says");
	assert_int_equal(image.begins, 0);
	bytes_free(&whole);
}

static void test_not_databases(void **state)
{
	(void)state;
	struct bytes b = { .data = (uint8_t *)calloc(1, 8192), .len = 0, .exists = 1 };
	bytes_store(&b, path_of("empty.db"));
	make_wal_db("wal.db", 4096, 5);
	copy_file("wal.db-wal", "empty.db-wal");
	make_hot_db("hot.db", 1024, 200);
	copy_file("hot.db-journal", "empty.db-journal");
	b.len = 8192;
	bytes_store(&b, path_of("zeros.db"));
	copy_file("wal.db", "short.db");
	assert_int_equal(truncate(path_of("short.db"), 511), 0);
	copy_file("wal.db", "page.db");
	uint8_t odd[2] = { 0x0f, 0xff };
	poke("page.db", 16, odd, 2);
	settle();
	expect("empty.db", US_E_EMPTY, "empty");
	expect("zeros.db", US_E_NOTDB, NULL);
	expect("short.db", US_E_NOTDB, NULL);
	expect("page.db", US_E_CORRUPT, "page size");
	assert_int_equal(image.begins, 0);
	free(b.data);
}

static void test_names(void **state)
{
	(void)state;
	struct bytes b;
	make_db("x.db", "DELETE", 4096, 5);
	settle();
	/* another file than the walk saw */
	struct stat st;
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(stat(path_of("x.db"), &st), 0);
	struct us_read_source source = {
		.prefix_fd = prefix_fd, .rel = "x.db", .display = "x.db", .inode = st.st_ino + 1
	};
	struct us_image_sink sink = { image_begin, image_write, &image };
	assert_int_equal(us_read_image(reader, &source, &sink, &image.info, &err), US_E_NOTFOUND);
	(void)close(prefix_fd);
	expect("missing.db", US_E_NOTFOUND, NULL);
	assert_int_equal(symlink("x.db", path_of("link.db")), 0);
	expect("link.db", US_E_NOTFOUND, "symbolic link");
	assert_int_equal(mkfifo(path_of("fifo.db"), 0600), 0);
	expect("fifo.db", US_E_NOTFOUND, NULL);
	/* what stands in the place of a -wal or a -journal is never ignored */
	assert_int_equal(symlink("elsewhere", path_of("x.db-wal")), 0);
	expect("x.db", US_E_CORRUPT, "x.db-wal");
	assert_int_equal(unlink(path_of("x.db-wal")), 0);
	assert_int_equal(mkfifo(path_of("x.db-journal"), 0600), 0);
	expect("x.db", US_E_CORRUPT, "x.db-journal");
	assert_int_equal(unlink(path_of("x.db-journal")), 0);
	expect("x.db", 0, NULL);
	/* a name that leaves no room for a suffix */
	char name[256];
	memset(name, 'n', 255);
	name[255] = '\0';
	b = bytes_load(path_of("x.db"));
	bytes_store(&b, path_of(name));
	settle();
	expect(name, 0, NULL);
	expect_bytes(&b);
	bytes_free(&b);
	if (geteuid() != 0) {
		assert_int_equal(chmod(path_of("x.db"), 0), 0);
		settle();
		expect("x.db", US_E_ACCESS, NULL);
	}
}

/* ARG is the inode of a file that this process has open elsewhere. */
static int is_foreign(void *arg, uint64_t device, uint64_t inode)
{
	(void)device;
	return inode == *(const uint64_t *)arg;
}

static void expect_foreign(uint64_t foreign_inode, int32_t code)
{
	struct stat st;
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(fstatat(prefix_fd, "x.db", &st, 0), 0);
	struct us_read_source source = { .prefix_fd = prefix_fd,
					 .rel = "x.db",
					 .display = "x.db",
					 .inode = st.st_ino,
					 .is_foreign = is_foreign,
					 .arg = &foreign_inode };
	struct us_image_sink sink = { image_begin, image_write, &image };
	struct us_image_info info;
	us_error_clear(&err);
	int32_t rc = us_read_image(reader, &source, &sink, &info, &err);
	if (rc != code) {
		print_error("%d, \"%s\"\n", rc, err.message);
	}
	assert_int_equal(rc, code);
	(void)close(prefix_fd);
}

/* What this process has open elsewhere is not opened: its locks stay. */
static void test_foreign(void **state)
{
	(void)state;
	struct stat st, st_wal;
	make_wal_db("x.db", 4096, 5);
	assert_int_equal(stat(path_of("x.db"), &st), 0);
	assert_int_equal(stat(path_of("x.db-wal"), &st_wal), 0);
	int fd = open(path_of("x.db"), O_RDWR | O_CLOEXEC);
	struct flock lock = { .l_type = F_RDLCK, .l_start = PENDING_BYTE + 2, .l_len = 510 };
	assert_int_equal(fcntl(fd, F_SETLK, &lock), 0);
	expect_foreign(st.st_ino, US_E_ACCESS);
	lock.l_type = F_WRLCK;
	pid_t pid = fork();
	if (pid == 0) {
		_exit(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_RDLCK ? 0 : 1);
	}
	int status = 1;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)close(fd);
	expect_foreign(st_wal.st_ino, US_E_ACCESS);
	expect_foreign(1, 0);
}

/* -------------------------------------------------------------------- locks */

/* A process that holds a POSIX write lock on a range of a file until killed. */
static pid_t hold_lock(const char *name, off_t start, off_t len)
{
	int ready[2];
	char byte;
	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct flock lock = { .l_type = F_WRLCK, .l_start = start, .l_len = len };
		int fd = open(path_of(name), O_RDWR | O_CLOEXEC);
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fcntl(fd, F_SETLK, &lock) || write(ready[1], "x", 1) != 1) {
			_exit(1);
		}
		for (;;) {
			(void)pause();
		}
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	(void)close(ready[0]);
	(void)close(ready[1]);
	return pid;
}

static void test_locks(void **state)
{
	(void)state;
	make_db("x.db", "DELETE", 4096, 5);
	settle();
	pid_t pid = hold_lock("x.db", PENDING_BYTE + 1, 1);
	expect("x.db", US_E_BUSY, "RESERVED");
	assert_int_equal(read_with(reader, "x.db", 1), 0);
	expect_file("x.db");
	end_process(pid);

	pid = hold_lock("x.db", PENDING_BYTE + 2, 510);
	expect("x.db", US_E_BUSY, "EXCLUSIVE");
	int64_t begin = us_clock_mono_ns();
	assert_int_equal(read_with(reader, "x.db", 1), US_E_BUSY);
	int64_t took = us_clock_mono_ns() - begin;
	assert_true(took >= US_NS_PER_S / 2 && took < 2 * US_NS_PER_S);
	assert_non_null(strstr(err.message, "EXCLUSIVE"));
	end_process(pid);

	pid = hold_lock("x.db", PENDING_BYTE, 1);
	expect("x.db", US_E_BUSY, "PENDING");
	end_process(pid);
	expect("x.db", 0, NULL);
}

/* Locks of this very process count too: Litestream's SQLite lives in it. */
static void test_locks_of_this_process(void **state)
{
	(void)state;
	make_db("x.db", "DELETE", 4096, 5);
	int theirs = open(path_of("x.db"), O_RDWR | O_CLOEXEC);
	int ours = open(path_of("x.db"), O_RDONLY | O_CLOEXEC);
	struct flock lock = { .l_type = F_WRLCK, .l_start = PENDING_BYTE + 2, .l_len = 510 };
	assert_int_equal(fcntl(theirs, F_SETLK, &lock), 0);
	struct us_locks locks;
	assert_int_equal(us_locks_probe(ours, &locks, &err), 0);
	assert_true(locks.any && locks.shared && !locks.reserved && !locks.pending);
	assert_int_equal(us_lock_shared(ours, US_NS_PER_MS, "x.db", &err), US_E_BUSY);
	lock.l_type = F_RDLCK;
	assert_int_equal(fcntl(theirs, F_SETLK, &lock), 0);
	assert_int_equal(us_lock_shared(ours, US_NS_PER_MS, "x.db", &err), 0);
	us_unlock(ours);
	/* what this process had is still there */
	lock.l_type = F_WRLCK;
	assert_int_equal(fcntl(ours, F_OFD_GETLK, &lock), 0);
	assert_int_equal(lock.l_type, F_RDLCK);
	(void)close(ours);
	(void)close(theirs);
}

/* Nobody's lock but another descriptor's, which is how SQLite would meet ours. */
static void expect_no_lock(void)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = PENDING_BYTE, .l_len = 512 };
	int fd = open(path_of("x.db"), O_RDWR | O_CLOEXEC);
	assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
	assert_int_equal(lock.l_type, F_UNLCK);
	(void)close(fd);
}

/* A process that writes to x.db under EXCLUSIVE, all but without a pause, until killed. */
static pid_t keep_writing(void)
{
	pid_t pid = fork();
	if (pid == 0) {
		int fd = open(path_of("x.db"), O_RDWR | O_CLOEXEC);
		struct flock lock = { .l_start = PENDING_BYTE + 2, .l_len = 510 };
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			lock.l_type = F_WRLCK;
			if (!fcntl(fd, F_SETLK, &lock)) {
				(void)!pwrite(fd, "S", 1, 0);
				lock.l_type = F_UNLCK;
				(void)fcntl(fd, F_SETLK, &lock);
			}
			(void)usleep(1000);
		}
	}
	return pid;
}

/* The sink may wait for the network (for the budget, until uploads are over), so no lock
 * is held when it is called: neither of a database that fits the memory, nor of one that
 * does not, nor of one with a hot journal. */
static void test_no_lock_at_the_sink(void **state)
{
	(void)state;
	struct bytes rolled_back;
	for (int rows = 20; rows <= 3000; rows += 2980) {
		make_db("x.db", "DELETE", 4096, rows);
		other = keep_writing();
		while (read_now("x.db") != US_E_BUSY) {
			(void)usleep(1000);
		}
		int32_t rc = US_E_BUSY;
		for (int i = 0; i < 30 && rc == US_E_BUSY; i++) {
			rc = read_interrupted(small_reader, "x.db", 1, expect_no_lock);
		}
		assert_int_equal(rc, 0);
		end_process(other);
		other = 0;
		expect_file("x.db");
		(void)unlink(path_of("x.db"));
	}
	make_hot_db("x.db", 1024, 400);
	assert_int_equal(recover_copy("x.db", &rolled_back), SQLITE_OK);
	settle();
	/* let go of while we wait for SHARED */
	other = hold_lock("x.db", PENDING_BYTE, 1);
	pid_t killer = fork();
	if (killer == 0) {
		(void)usleep(300000);
		_exit(kill(other, SIGKILL));
	}
	assert_int_equal(read_interrupted(reader, "x.db", 1, expect_no_lock), 0);
	expect_bytes(&rolled_back);
	bytes_free(&rolled_back);
	(void)waitpid(killer, NULL, 0);
}

static void test_dotfile(void **state)
{
	(void)state;
	sqlite3 *db;
	make_db("x.db", "DELETE", 4096, 5);
	assert_int_equal(
		sqlite3_open_v2(path_of("x.db"), &db, SQLITE_OPEN_READWRITE, "unix-dotfile"),
		SQLITE_OK);
	assert_int_equal(sql(db, "BEGIN IMMEDIATE"), SQLITE_OK);
	settle();
	expect("x.db", US_E_BUSY, "unix-dotfile");
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	/* a plain file of that name is another program's */
	struct bytes nothing = { .exists = 1 };
	bytes_store(&nothing, path_of("x.db.lock"));
	settle();
	expect("x.db", 0, NULL);
}

/* A long write transaction that has not touched the file: readers go on. */
static void test_long_transaction(void **state)
{
	(void)state;
	make_db("x.db", "DELETE", 4096, 5);
	pid_t pid = fork();
	if (pid == 0) {
		sqlite3 *db;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)sqlite3_open(path_of("x.db"), &db);
		/* no-sync: the journal's header counts from the first moment */
		(void)sql(db, "PRAGMA synchronous=OFF");
		(void)sql(db, "BEGIN");
		(void)sql(db, "UPDATE t SET b=1");
		(void)sql(db, "SELECT 1");
		struct bytes done = { .exists = 1 };
		bytes_store(&done, path_of("done"));
		for (;;) {
			(void)pause();
		}
	}
	while (access(path_of("done"), F_OK)) {
		(void)usleep(1000);
	}
	settle();
	struct bytes journal = bytes_load(path_of("x.db-journal"));
	assert_true(journal.len > 512 && journal.data[0] == 0xd9);
	bytes_free(&journal);
	expect("x.db", US_E_BUSY, "RESERVED");
	assert_int_equal(read_with(reader, "x.db", 1), 0);
	expect_file("x.db");
	end_process(pid);
	/* the same journal without its owner is hot: rolled back to the same bytes */
	expect_like_sqlite("x.db");
}

static void test_exclusive_wal_at_rest(void **state)
{
	(void)state;
	make_db("x.db", "WAL", 4096, 5);
	int ready[2];
	char byte;
	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	if (pid == 0) {
		sqlite3 *db;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)sqlite3_open(path_of("x.db"), &db);
		(void)sql(db, "PRAGMA locking_mode=EXCLUSIVE");
		(void)sql(db, "SELECT count(*) FROM t");
		(void)!write(ready[1], "x", 1);
		(void)pause();
		(void)sql(db, "UPDATE t SET b=randomblob(10)");
		(void)!write(ready[1], "x", 1);
		for (;;) {
			(void)pause();
		}
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	settle();
	assert_int_equal(access(path_of("x.db-shm"), F_OK), -1);
	expect("x.db", 0, NULL); /* EXCLUSIVE is held, the -wal is empty */
	expect_file("x.db");
	end_process(pid);
	(void)close(ready[0]);
	(void)close(ready[1]);
}

/* ---------------------------------------------------------------------- WAL */

static void wal_sum(uint32_t sum[2], const uint8_t *data, size_t len, int big_endian)
{
	for (size_t i = 0; i < len; i += 8) {
		uint32_t a = big_endian ? us_get_be32(data + i) : us_get_le32(data + i);
		uint32_t b = big_endian ? us_get_be32(data + i + 4) : us_get_le32(data + i + 4);
		sum[0] += a + sum[1];
		sum[1] += b + sum[0];
	}
}

/* Writes all checksums of a WAL anew. SQLite is asked whether they are right. */
static void resum_wal(struct bytes *wal, int big_endian)
{
	uint32_t sum[2] = { 0, 0 };
	size_t page_size = us_get_be32(wal->data + 8);
	us_put_be32(wal->data, 0x377f0682u + (uint32_t)big_endian);
	wal_sum(sum, wal->data, 24, big_endian);
	us_put_be32(wal->data + 24, sum[0]);
	us_put_be32(wal->data + 28, sum[1]);
	for (size_t off = 32; off + 24 + page_size <= wal->len; off += 24 + page_size) {
		uint8_t *frame = wal->data + off;
		wal_sum(sum, frame, 8, big_endian);
		wal_sum(sum, frame + 24, page_size, big_endian);
		us_put_be32(frame + 16, sum[0]);
		us_put_be32(frame + 20, sum[1]);
	}
}

static void test_wal(void **state)
{
	(void)state;
	for (int page_size = 512; page_size <= 65536; page_size *= 2) {
		(void)fresh(NULL);
		make_wal_db("x.db", page_size, 50);
		expect("x.db", 0, NULL); /* young: no matter, the WAL covers it */
		expect_like_sqlite("x.db");
		struct stat st;
		assert_int_equal(stat(path_of("x.db-wal"), &st), 0);
		struct us_file_stat fs = us_file_stat_of(&st);
		assert_true(us_file_stat_equal(&fs, &image.info.wal));
		assert_true(image_is_sound(&image));
	}
}

static void test_wal_byte_orders(void **state)
{
	(void)state;
	struct bytes images[2];
	make_wal_db("x.db", 1024, 50);
	for (int big_endian = 0; big_endian < 2; big_endian++) {
		struct bytes wal = bytes_load(path_of("x.db-wal"));
		resum_wal(&wal, big_endian);
		bytes_store(&wal, path_of("x.db-wal"));
		expect_like_sqlite("x.db");
		images[big_endian] = (struct bytes){ malloc(image.len), image.len, 1 };
		memcpy(images[big_endian].data, image.data, image.len);
		bytes_free(&wal);
	}
	expect_bytes(&images[0]);
	/* and it is not the database file alone */
	struct bytes base = bytes_load(path_of("x.db"));
	assert_true(base.len != images[0].len || memcmp(base.data, images[0].data, base.len) != 0);
	bytes_free(&base);
	bytes_free(&images[0]);
	bytes_free(&images[1]);
}

static void test_wal_that_is_none(void **state)
{
	(void)state;
	make_wal_db("x.db", 1024, 50);
	struct bytes wal = bytes_load(path_of("x.db-wal"));
	poke_be32("x.db-wal", 24, us_get_be32(wal.data + 24) ^ 1);
	expect_too_young("x.db"); /* no WAL, so the database must be calm */
	expect_like_sqlite("x.db");
	expect_file("x.db");
	/* a header that counts and frames that do not */
	bytes_store(&wal, path_of("x.db-wal"));
	poke_be32("x.db-wal", 32 + 8, us_get_be32(wal.data + 32 + 8) ^ 1);
	expect_like_sqlite("x.db");
	expect_file("x.db");
	/* the header alone; less than it */
	assert_int_equal(truncate(path_of("x.db-wal"), 32), 0);
	expect_like_sqlite("x.db");
	assert_int_equal(truncate(path_of("x.db-wal"), 31), 0);
	expect_like_sqlite("x.db");
	expect_file("x.db");
	/* the second sum of the header; page sizes that cannot be */
	bytes_store(&wal, path_of("x.db-wal"));
	poke_be32("x.db-wal", 28, us_get_be32(wal.data + 28) ^ 1);
	expect_like_sqlite("x.db");
	expect_file("x.db");
	static const uint32_t sizes[] = { 0, 256, 1000, 131072, UINT32_C(1) << 31 };
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t sum[2] = { 0, 0 };
		uint8_t header[32];
		memcpy(header, wal.data, sizeof(header));
		us_put_be32(header + 8, sizes[i]);
		wal_sum(sum, header, 24, 0);
		us_put_be32(header + 24, sum[0]);
		us_put_be32(header + 28, sum[1]);
		poke("x.db-wal", 0, header, sizeof(header));
		expect_like_sqlite("x.db");
		expect_file("x.db");
	}
	/* another format version */
	us_put_be32(wal.data + 4, 3007001);
	resum_wal(&wal, 0);
	bytes_store(&wal, path_of("x.db-wal"));
	settle();
	expect("x.db", US_E_CORRUPT, "version");
	bytes_free(&wal);
}

/* Half of a transaction at the end, and a frame that was torn: no part of the image. */
static void test_wal_torn(void **state)
{
	(void)state;
	make_wal_db("x.db", 1024, 50);
	struct bytes wal = bytes_load(path_of("x.db-wal"));
	settle();
	expect("x.db", 0, NULL);
	struct bytes whole = { malloc(image.len), image.len, 1 };
	memcpy(whole.data, image.data, image.len);
	size_t frames = (wal.len - 32) / 1048;
	uint8_t *last = wal.data + 32 + (frames - 1) * 1048;
	assert_int_not_equal(us_get_be32(last + 4), 0);
	us_put_be32(last + 4, 0);
	resum_wal(&wal, 0);
	bytes_store(&wal, path_of("x.db-wal"));
	expect_like_sqlite("x.db");
	assert_true(image.len != whole.len || memcmp(image.data, whole.data, whole.len) != 0);
	/* one bit, in the middle */
	wal.data[32 + frames / 2 * 1048 + 24 + 700] ^= 1;
	bytes_store(&wal, path_of("x.db-wal"));
	expect_like_sqlite("x.db");
	bytes_free(&wal);
	bytes_free(&whole);
}

static int opened;

/* Between the stat of the database and the look at its WAL: a checkpoint makes the one
 * longer, and the other begins anew. */
static int grow_and_restart(void *arg, uint64_t device, uint64_t inode)
{
	sqlite3 *db = arg;
	(void)device, (void)inode;
	if (++opened == 2) {
		assert_int_equal(sql(db, "PRAGMA wal_checkpoint(RESTART)"), SQLITE_OK);
		assert_int_equal(sql(db, "UPDATE t SET b=1 WHERE id=1"), SQLITE_OK);
	}
	return 0;
}

static void test_wal_restarted_at_first_look(void **state)
{
	(void)state;
	struct us_reader *const readers[] = { reader, small_reader };
	for (size_t i = 0; i < 2; i++) {
		(void)fresh(NULL);
		sqlite3 *db = open_db("x.db");
		fill(db, "WAL", 4096, i == 0 ? 10 : 3000);
		(void)sql(db, "PRAGMA wal_autocheckpoint=0");
		assert_int_equal(sql(db, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK);
		assert_int_equal(sql(db, "INSERT INTO t(b) SELECT b FROM t"), SQLITE_OK);
		settle();
		struct stat st;
		int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		assert_int_equal(stat(path_of("x.db"), &st), 0);
		struct us_read_source source = { .prefix_fd = prefix_fd,
						 .rel = "x.db",
						 .display = "x.db",
						 .inode = st.st_ino,
						 .is_foreign = grow_and_restart,
						 .arg = db };
		struct us_image_sink sink = { image_begin, image_write, &image };
		us_error_clear(&err);
		opened = 0;
		int32_t rc = us_read_image(readers[i], &source, &sink, &image.info, &err);
		if (rc) {
			fail_msg("%s", err.message);
		}
		assert_true(opened >= 2);
		struct bytes b;
		assert_int_equal(recover_copy("x.db", &b), SQLITE_OK);
		expect_bytes(&b);
		assert_true(b.len > (size_t)st.st_size);
		bytes_free(&b);
		(void)close(prefix_fd);
		(void)sqlite3_close(db);
	}
}

static struct bytes next_wal;

static void restart_wal(void)
{
	poke("x.db-wal", 0, next_wal.data, 32);
}

/* The WAL begins a new generation while a large database is handed on: the frames that
 * covered it may be gone, so everything is read anew. */
static void test_wal_restarted(void **state)
{
	(void)state;
	make_wal_db("x.db", 1024, 3000);
	next_wal = bytes_load(path_of("x.db-wal"));
	us_put_be32(next_wal.data + 16, us_get_be32(next_wal.data + 16) + 1);
	next_wal.len = 32;
	resum_wal(&next_wal, 0);
	settle();
	assert_int_equal(read_interrupted(small_reader, "x.db", 0, restart_wal), 0);
	assert_int_equal(image.begins, 2);
	expect_file("x.db");
	bytes_free(&next_wal);
}

static void test_wal_of_another(void **state)
{
	(void)state;
	struct bytes b;
	make_db("x.db", "WAL", 4096, 50);
	sqlite3 *db = open_db("made.db");
	fill(db, "WAL", 1024, 50);
	assert_int_equal(sql(db, "PRAGMA wal_checkpoint(TRUNCATE)"), SQLITE_OK);
	assert_int_equal(sql(db, "UPDATE t SET b=randomblob(700)"), SQLITE_OK);
	copy_file("made.db-wal", "x.db-wal"); /* page 1 is not in it */
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	assert_int_equal(unlink(path_of("made.db")), 0);
	assert_int_not_equal(recover_copy("x.db", &b), SQLITE_OK);
	bytes_free(&b);
	settle();
	expect("x.db", US_E_CORRUPT, "pages of");
	make_wal_db("y.db", 1024, 50);
	/* a WAL that says there are more pages than anyone has */
	copy_file("y.db-wal", "z.db-wal");
	copy_file("y.db", "z.db");
	struct bytes wal = bytes_load(path_of("z.db-wal"));
	for (size_t off = 32; off + 1048 <= wal.len; off += 1048) {
		if (us_get_be32(wal.data + off + 4)) {
			us_put_be32(wal.data + off + 4, 5000);
		}
		if (us_get_be32(wal.data + off) == 1) {
			us_put_be32(wal.data + off + 24 + 28, 5000);
		}
	}
	resum_wal(&wal, 0);
	bytes_store(&wal, path_of("z.db-wal"));
	bytes_free(&wal);
	settle();
	expect("z.db", US_E_CORRUPT, "nor in its -wal");
}

/* VACUUM within one generation: frames of pages that are gone again. */
static void test_wal_shrinks(void **state)
{
	(void)state;
	sqlite3 *db = open_db("made.db");
	fill(db, "WAL", 1024, 300);
	(void)sql(db, "PRAGMA wal_autocheckpoint=0");
	(void)sql(db, "UPDATE t SET b=randomblob(700)");
	(void)sql(db, "DELETE FROM t WHERE id>20");
	assert_int_equal(sql(db, "VACUUM"), SQLITE_OK);
	copy_state("made.db", "x.db");
	(void)sqlite3_close(db);
	expect_like_sqlite("x.db");
	struct bytes base = bytes_load(path_of("x.db"));
	assert_true(image.len < 100 * 1024);
	bytes_free(&base);
}

/* ------------------------------------------------------------------ journal */

static void test_journal(void **state)
{
	(void)state;
	for (int page_size = 512; page_size <= 16384; page_size *= 2) {
		(void)fresh(NULL);
		make_hot_db("x.db", page_size, 400);
		expect_too_young("x.db");
		expect_like_sqlite("x.db");
		struct bytes base = bytes_load(path_of("x.db"));
		assert_true(base.len != image.len || memcmp(base.data, image.data, base.len) != 0);
		bytes_free(&base);
		assert_true(image_is_sound(&image));
	}
}

/* Headers that end or bend the playback: all as SQLite has it. */
static void test_journal_headers(void **state)
{
	(void)state;
	static const struct {
		uint32_t off, value;
	} pokes[] = {
		{ 0, 0 },
		{ 0, 0xd9d50500 },
		{ 8, 0 },
		{ 8, 3 },
		{ 8, 0xffffffff },
		{ 8, 0xfffffffe },
		{ 12, 1 },
		{ 16, 20 },
		{ 20, 0 },
		{ 20, 16 },
		{ 20, 32 },
		{ 20, 1024 },
		{ 20, 513 },
		{ 20, 65536 },
		{ 20, 131072 },
		{ 24, 0 },
		{ 24, 256 },
		{ 24, 1000 },
		{ 24, 131072 },
		{ 512, 0 },
		{ 512, 0x00100001 },
		{ 512 + 1032, 1u << 30 },
		{ 520, 77 },
	};
	make_hot_db("hot.db", 1024, 400);
	for (size_t i = 0; i < sizeof(pokes) / sizeof(pokes[0]); i++) {
		copy_state("hot.db", "x.db");
		poke_be32("x.db-journal", pokes[i].off, pokes[i].value);
		struct bytes b;
		int rc = recover_copy("x.db", &b);
		settle();
		int32_t ours = read_now("x.db");
		uint64_t count = b.len >= 100 && !memcmp(b.data + 24, b.data + 92, 4)
					 ? us_get_be32(b.data + 28)
					 : 0;
		if (count && count * 1024 < b.len) {
			b.len = count * 1024;
		}
		if (ours == 0 ? image.len != b.len || memcmp(image.data, b.data, b.len) != 0
			      : rc == SQLITE_OK) {
			fail_msg("header word %u = 0x%x: ours %d (%s), SQLite %d", pokes[i].off,
				 pokes[i].value, ours, err.message, rc);
		}
		bytes_free(&b);
	}
}

/* The first transaction of a database, cut off: SQLite leaves an empty file. */
static void test_journal_of_nothing(void **state)
{
	(void)state;
	make_hot_db("x.db", 1024, 400);
	poke_be32("x.db-journal", 16, 0);
	settle();
	expect("x.db", US_E_EMPTY, "cut off");
}

static void append_super(const char *journal, const char *name)
{
	struct bytes b = bytes_load(path_of(journal));
	uint8_t record[5000];
	size_t len = strlen(name);
	uint32_t sum = 0;
	for (size_t i = 0; i < len; i++) {
		int32_t byte = name[i];
		sum += (uint32_t)byte;
	}
	us_put_be32(record, (1u << 30) / 1024 + 1);
	memcpy(record + 4, name, len);
	us_put_be32(record + 4 + len, (uint32_t)len);
	us_put_be32(record + 8 + len, sum);
	memcpy(record + 12 + len, b.data, 8);
	poke(journal, b.len, record, len + 20);
	bytes_free(&b);
}

static void test_super_journal(void **state)
{
	(void)state;
	struct bytes one = { .data = (uint8_t *)strdup("x"), .len = 1, .exists = 1 };
	struct bytes rolled, base;
	char super[PATH_LEN + 300];
	make_hot_db("hot.db", 1024, 400);
	make_db("main.db", "DELETE", 1024, 1);
	assert_int_equal(recover_copy("hot.db", &rolled), SQLITE_OK);
	base = bytes_load(path_of("hot.db"));
	(void)snprintf(super, sizeof(super), "%s/main.db-mj12345678A", dir);

	copy_state("hot.db", "x.db");
	append_super("x.db-journal", super);
	bytes_store(&one, super);
	settle();
	expect("x.db", 0, NULL);
	expect_bytes(&rolled);
	/* deleted: the transaction was committed */
	assert_int_equal(unlink(super), 0);
	expect_like_sqlite("x.db");
	assert_int_equal(memcmp(image.data, base.data, image.len), 0);
	/* no bytes: as if it were not there */
	one.len = 0;
	bytes_store(&one, super);
	expect_like_sqlite("x.db");
	assert_int_equal(memcmp(image.data, base.data, image.len), 0);
	assert_int_equal(access(super, F_OK), 0);
	/* a link: not followed */
	assert_int_equal(unlink(super), 0);
	assert_int_equal(symlink("main.db", super), 0);
	expect("x.db", US_E_CORRUPT, "symbolic link");
	assert_int_equal(unlink(super), 0);
	/* the database the name was made from is not where the name says: another
	 * container's view. Nobody can tell from here. */
	assert_int_equal(unlink(path_of("main.db")), 0);
	expect("x.db", US_E_ACCESS, "cannot be seen");
	/* but the file may lie beside us */
	copy_state("hot.db", "x.db");
	append_super("x.db-journal", "/not/here/main.db-mj12345678A");
	settle();
	expect("x.db", US_E_ACCESS, "cannot be seen");
	one.len = 1;
	bytes_store(&one, super);
	expect("x.db", 0, NULL);
	expect_bytes(&rolled);
	copy_state("hot.db", "x.db");
	append_super("x.db-journal", "main.db-mj12345678A");
	settle();
	expect("x.db", US_E_CORRUPT, "absolute");
	bytes_free(&one);
	bytes_free(&rolled);
	bytes_free(&base);
}

/* Ends of a journal that look like the name of a super-journal, and are none: the journal
 * is rolled back, as by SQLite. */
static void test_super_journal_that_is_none(void **state)
{
	(void)state;
	char super[PATH_LEN + 300];
	struct bytes rolled;
	make_hot_db("hot.db", 1024, 400);
	make_db("main.db", "DELETE", 1024, 1);
	assert_int_equal(recover_copy("hot.db", &rolled), SQLITE_OK);
	(void)snprintf(super, sizeof(super), "%s/main.db-mj12345678A", dir);
	static const struct {
		int64_t off; /* from the end of the journal */
		uint32_t value;
	} ends[] = {
		{ 16, 0 }, { 16, 4097 },      { 16, UINT32_MAX },
		{ 12, 0 }, { 8, 0xd9d50500 }, { 4, 0xd9d50500 },
	};
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		struct stat st;
		copy_state("hot.db", "x.db");
		append_super("x.db-journal", super);
		assert_int_equal(stat(path_of("x.db-journal"), &st), 0);
		poke_be32("x.db-journal", (uint64_t)(st.st_size - ends[i].off), ends[i].value);
		settle();
		expect("x.db", 0, NULL);
		expect_bytes(&rolled);
		expect_like_sqlite("x.db");
	}
	bytes_free(&rolled);
}

/* Names that say nothing, or that cannot be looked for: nobody may guess. */
static void test_super_journal_elsewhere(void **state)
{
	(void)state;
	char name[PATH_LEN + 16];
	struct bytes rolled;
	make_hot_db("hot.db", 1024, 400);
	assert_int_equal(recover_copy("hot.db", &rolled), SQLITE_OK);
	/* a component that no file system has */
	(void)snprintf(name, sizeof(name), "/%0300d-mj12345678A", 0);
	copy_state("hot.db", "x.db");
	append_super("x.db-journal", name);
	settle();
	assert_true(read_now("x.db") < 0);
	assert_non_null(strstr(err.message, "cannot look for"));
	/* not made as SQLite makes them; beside us lies what is none */
	copy_state("hot.db", "x.db");
	append_super("x.db-journal", "/not/here/super");
	settle();
	expect("x.db", US_E_ACCESS, "cannot be seen");
	assert_int_equal(mkdir(path_of("super"), 0755), 0);
	expect("x.db", US_E_ACCESS, "cannot be seen");
	assert_int_equal(rmdir(path_of("super")), 0);
	struct bytes none = { .data = (uint8_t *)strdup(""), .len = 0, .exists = 1 };
	bytes_store(&none, path_of("super"));
	expect("x.db", US_E_ACCESS, "cannot be seen");
	/* a directory of that name is there, for SQLite as for us */
	assert_int_equal(unlink(path_of("super")), 0);
	(void)snprintf(name, sizeof(name), "%s/super", dir);
	assert_int_equal(mkdir(name, 0755), 0);
	copy_state("hot.db", "x.db");
	append_super("x.db-journal", name);
	settle();
	expect("x.db", 0, NULL);
	expect_bytes(&rolled);
	assert_int_equal(rmdir(name), 0);
	bytes_free(&none);
	bytes_free(&rolled);
}

/* WAL over journal over base: SQLite rolls back first and then opens the WAL. */
static void test_journal_and_wal(void **state)
{
	(void)state;
	make_hot_db("x.db", 1024, 200);
	copy_state("x.db", "y.db");
	sqlite3 *db = open_db("y.db");
	assert_int_equal(sql(db, "PRAGMA journal_mode=WAL"), SQLITE_OK);
	assert_int_equal(sql(db, "PRAGMA wal_autocheckpoint=0"), SQLITE_OK);
	assert_int_equal(sql(db, "UPDATE t SET b=randomblob(500) WHERE id<50"), SQLITE_OK);
	copy_file("y.db-wal", "x.db-wal");
	(void)sqlite3_close(db);
	expect_like_sqlite("x.db");
	struct bytes b = bytes_load(path_of("x.db"));
	assert_true(b.len != image.len || memcmp(b.data, image.data, b.len) != 0);
	bytes_free(&b);
	(void)unlink(path_of("x.db-wal"));
	struct bytes with_wal = { malloc(image.len), image.len, 1 };
	memcpy(with_wal.data, image.data, image.len);
	expect_like_sqlite("x.db");
	assert_true(with_wal.len != image.len || memcmp(with_wal.data, image.data, image.len) != 0);
	bytes_free(&with_wal);
}

/* ---------------------------------------------------------------- streaming */

static size_t heap_peak;

static int32_t measuring_write(void *arg, const uint8_t *data, size_t len, struct us_error *e)
{
	struct mallinfo2 info = mallinfo2();
	size_t now = info.uordblks + info.hblkhd - image.cap;
	heap_peak = now > heap_peak ? now : heap_peak;
	return image_write(arg, data, len, e);
}

static int32_t read_measured(const char *name, int patient, size_t *ret_heap)
{
	struct stat st;
	struct us_reader *r;
	assert_int_equal(us_reader_new((size_t)1 << 20, spool_fd, &r, &err), 0);
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(stat(path_of(name), &st), 0);
	image.data = realloc(image.data, (size_t)200 << 20);
	image.cap = (size_t)200 << 20;
	struct us_read_source source = { .prefix_fd = prefix_fd,
					 .rel = name,
					 .display = name,
					 .inode = st.st_ino,
					 .patient = patient };
	struct us_image_sink sink = { image_begin, measuring_write, &image };
	struct mallinfo2 before = mallinfo2();
	heap_peak = 0;
	image.begins = 0;
	image.longest = 0;
	int32_t rc = us_read_image(r, &source, &sink, &image.info, &err);
	size_t base = before.uordblks + before.hblkhd - image.cap;
	*ret_heap = heap_peak > base ? heap_peak - base : 0;
	us_reader_free(r);
	(void)close(prefix_fd);
	return rc;
}

static void test_streaming(void **state)
{
	(void)state;
	size_t heap;
	struct bytes b;
	sqlite3 *db = open_db("made.db");
	fill(db, "WAL", 4096, 80000);
	(void)sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
	(void)sql(db, "PRAGMA wal_autocheckpoint=0");
	(void)sql(db, "UPDATE t SET b=randomblob(700) WHERE id%%9=1");
	(void)sql(db, "INSERT INTO t(b) SELECT randomblob(700) FROM t WHERE id<10000");
	(void)sql(db, "UPDATE t SET b=randomblob(700) WHERE id%%1000<300");
	copy_state("made.db", "x.db");
	(void)sqlite3_close(db);
	struct stat st, st_wal;
	assert_int_equal(stat(path_of("x.db"), &st), 0);
	assert_int_equal(stat(path_of("x.db-wal"), &st_wal), 0);
	assert_true(st.st_size > (60 << 20) && st_wal.st_size > (60 << 20));
	assert_int_equal(recover_copy("x.db", &b), SQLITE_OK);
	/* calm: from where it is */
	settle();
	assert_int_equal(read_measured("x.db", 0, &heap), 0);
	expect_bytes(&b);
	assert_int_equal(image.begins, 1);
	assert_true(image.longest <= 256 * 1024);
	size_t frames = (size_t)st_wal.st_size / 4120;
	print_message("heap while streaming %zu + %zu MB: %zu bytes, %zu frames\n",
		      (size_t)st.st_size >> 20, (size_t)st_wal.st_size >> 20, heap, frames);
	assert_true(heap <= ((size_t)1 << 20) + 8 * frames + 65536);
	/* written to just now: through the spool */
	poke("x.db", 0, b.data, 0);
	assert_int_equal(chmod(path_of("x.db"), 0600), 0);
	assert_int_equal(read_measured("x.db", 0, &heap), 0);
	expect_bytes(&b);
	assert_int_equal(image.begins, 1);
	assert_true(heap <= ((size_t)1 << 20) + 8 * frames + 65536);
	bytes_free(&b);
	/* a large quiet one */
	(void)unlink(path_of("x.db-wal"));
	poke_be32("x.db", 92, 0); /* the count is older than the file's end may be */
	settle();
	assert_int_equal(read_measured("x.db", 0, &heap), 0);
	expect_file("x.db");
	assert_true(heap <= (size_t)1 << 20);
	/* not a database: known before it is read */
	static const uint8_t zeros[100];
	poke("x.db", 0, zeros, sizeof(zeros));
	settle();
	assert_int_equal(read_measured("x.db", 0, &heap), US_E_NOTDB);
	assert_int_equal(image.begins, 0);
	struct dirent *entry;
	DIR *d = fdopendir(dup(spool_fd));
	rewinddir(d);
	while ((entry = readdir(d))) {
		assert_true(entry->d_name[0] != '.' || strlen(entry->d_name) <= 2);
	}
	(void)closedir(d);
}

static void test_streaming_journal(void **state)
{
	(void)state;
	make_hot_db("x.db", 4096, 8000);
	struct bytes b;
	size_t heap;
	assert_int_equal(recover_copy("x.db", &b), SQLITE_OK);
	settle();
	assert_int_equal(read_measured("x.db", 0, &heap), 0);
	expect_bytes(&b);
	bytes_free(&b);
}

/* The sink's refusal is the call's, and is not tried again. */
static int32_t refuse(void *arg, const uint8_t *data, size_t len, struct us_error *e)
{
	(void)arg, (void)data, (void)len;
	return us_fail(e, US_E_BUSY, "no room");
}

static void test_sink_refuses(void **state)
{
	(void)state;
	struct stat st;
	make_db("x.db", "DELETE", 4096, 5);
	settle();
	assert_int_equal(stat(path_of("x.db"), &st), 0);
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct us_read_source source = { .prefix_fd = prefix_fd,
					 .rel = "x.db",
					 .display = "x.db",
					 .inode = st.st_ino,
					 .patient = 1 };
	struct us_image_sink sink = { image_begin, refuse, &image };
	struct us_image_info info;
	image.begins = 0;
	assert_int_equal(us_read_image(reader, &source, &sink, &info, &err), US_E_BUSY);
	assert_string_equal(err.message, "no room");
	assert_int_equal(image.begins, 1);
	(void)close(prefix_fd);
}

/* ------------------------------------------------------------------ untouched */

static void describe(char *text, size_t cap)
{
	struct dirent **names;
	int n = scandir(dir, &names, NULL, alphasort);
	size_t len = 0;
	for (int i = 0; i < n; i++) {
		struct stat st;
		(void)stat(path_of(names[i]->d_name), &st);
		struct bytes b = S_ISREG(st.st_mode) ? bytes_load(path_of(names[i]->d_name))
						     : (struct bytes){ 0 };
		uint64_t hash = 14695981039346656037u;
		for (size_t k = 0; k < b.len; k++) {
			hash = (hash ^ b.data[k]) * 1099511628211u;
		}
		int added = snprintf(text + len, cap - len, "%s %ld %ld.%ld %ld.%ld %" PRIx64 "\n",
				     names[i]->d_name, (long)st.st_ino, (long)st.st_mtim.tv_sec,
				     st.st_mtim.tv_nsec, (long)st.st_ctim.tv_sec,
				     st.st_ctim.tv_nsec, hash);
		len += (size_t)added;
		bytes_free(&b);
		free(names[i]);
	}
	free(names);
}

static void test_nothing_disturbed(void **state)
{
	(void)state;
	static char before[16384], after[16384];
	make_db("closed.db", "WAL", 4096, 20);
	make_db("quiet.db", "PERSIST", 4096, 20);
	make_wal_db("orphan.db", 4096, 20);
	make_hot_db("hot.db", 1024, 400);
	pid_t pid = fork();
	if (pid == 0) {
		sqlite3 *db;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)sqlite3_open(path_of("live.db"), &db);
		fill(db, "WAL", 4096, 50);
		struct bytes done = { .exists = 1 };
		bytes_store(&done, path_of("done"));
		for (;;) {
			(void)pause();
		}
	}
	while (access(path_of("done"), F_OK)) {
		(void)usleep(1000);
	}
	settle();
	describe(before, sizeof(before));
	static const char *const names[] = { "closed.db", "quiet.db", "orphan.db", "hot.db",
					     "live.db" };
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		expect(names[i], 0, NULL);
		assert_int_equal(read_with(small_reader, names[i], 1), 0);
	}
	describe(after, sizeof(after));
	if (strcmp(before, after) != 0) {
		fail_msg("before:\n%safter:\n%s", before, after);
	}
	/* nor does a lock stay behind */
	struct flock lock = { .l_type = F_WRLCK, .l_start = PENDING_BYTE, .l_len = 512 };
	int fd = open(path_of("quiet.db"), O_RDWR | O_CLOEXEC);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
	(void)close(fd);
	end_process(pid);
}

/* A lease says that nobody has the file open for writing, and is broken by whoever tries. */
static void test_opened_for_reading(void **state)
{
	(void)state;
	static const char *const names[] = { "x.db", "y.db", "y.db-wal", "z.db", "z.db-journal" };
	int fds[5];
	make_db("x.db", "DELETE", 4096, 20);
	make_wal_db("y.db", 4096, 20);
	make_hot_db("z.db", 1024, 200);
	settle();
	(void)signal(SIGIO, SIG_IGN); /* how the breaking of a lease is told */
	for (int i = 0; i < 5; i++) {
		fds[i] = open(path_of(names[i]), O_RDONLY | O_CLOEXEC);
		assert_int_equal(fcntl(fds[i], F_SETLEASE, F_RDLCK), 0);
	}
	expect("x.db", 0, NULL);
	expect("y.db", 0, NULL);
	expect("z.db", 0, NULL);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(fcntl(fds[i], F_GETLEASE), F_RDLCK);
		(void)close(fds[i]);
	}
}

static void expect_access_time(const char *name, time_t time_s)
{
	struct stat st;
	assert_int_equal(stat(path_of(name), &st), 0);
	assert_int_equal(st.st_atim.tv_sec, time_s);
}

/* A mount with relatime would set it, as it is older than the last change. */
static void test_access_time(void **state)
{
	(void)state;
	static const char *const names[] = { "x.db", "x.db-wal", "z.db", "z.db-journal" };
	const struct timespec times[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1100000000 } };
	make_wal_db("x.db", 4096, 20);
	make_hot_db("z.db", 1024, 200);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(utimensat(AT_FDCWD, path_of(names[i]), times, 0), 0);
	}
	settle();
	expect("x.db", 0, NULL);
	expect("z.db", 0, NULL);
	expect_foreign(1, 0); /* x.db, opened in another way */
	for (int i = 0; i < 4; i++) {
		expect_access_time(names[i], 1000000000);
	}
}

static void test_arguments(void **state)
{
	(void)state;
	struct us_reader *r = NULL;
	assert_int_equal(us_reader_new(1000, spool_fd, &r, &err), US_E_ARG);
	assert_null(r);
	us_reader_free(NULL);
}

static int setup(void **state)
{
	(void)state;
	if (scratch_dir(root)) {
		return -1;
	}
	(void)snprintf(dir, sizeof(dir), "%s/data", root);
	spool_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return us_reader_new((size_t)64 << 20, spool_fd, &reader, NULL) ||
	       us_reader_new((size_t)1 << 20, spool_fd, &small_reader, NULL);
}

static int teardown(void **state)
{
	(void)state;
	us_reader_free(reader);
	us_reader_free(small_reader);
	image_done(&image);
	(void)close(spool_fd);
	return remove_tree(root);
}

#define CASE(name) cmocka_unit_test_setup(name, fresh)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_quiet),
		CASE(test_too_young),
		CASE(test_changed_while_read),
		CASE(test_remembers_before),
		CASE(test_below_directories),
		CASE(test_sizes),
		CASE(test_not_databases),
		CASE(test_names),
		CASE(test_foreign),
		CASE(test_locks),
		CASE(test_locks_of_this_process),
		CASE(test_no_lock_at_the_sink),
		CASE(test_dotfile),
		CASE(test_long_transaction),
		CASE(test_exclusive_wal_at_rest),
		CASE(test_wal),
		CASE(test_wal_byte_orders),
		CASE(test_wal_that_is_none),
		CASE(test_wal_torn),
		CASE(test_wal_restarted),
		CASE(test_wal_restarted_at_first_look),
		CASE(test_wal_of_another),
		CASE(test_wal_shrinks),
		CASE(test_journal),
		CASE(test_journal_headers),
		CASE(test_journal_of_nothing),
		CASE(test_super_journal),
		CASE(test_super_journal_that_is_none),
		CASE(test_super_journal_elsewhere),
		CASE(test_journal_and_wal),
		CASE(test_streaming),
		CASE(test_streaming_journal),
		CASE(test_sink_refuses),
		CASE(test_nothing_disturbed),
		CASE(test_opened_for_reading),
		CASE(test_access_time),
		CASE(test_arguments),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
