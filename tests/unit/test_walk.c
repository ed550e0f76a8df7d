/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk on real trees. What a file system rarely does (answer without types,
 * fail half way through a listing) is made by replacing syscall() and statx() of
 * the C library in this program.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/discover/walk.h"

/* ------------------------------------------------------------ faults of the system */

static _Atomic int fault_no_types;      /* every d_type is DT_UNKNOWN */
static _Atomic int fault_listing_after; /* getdents64 number N fails, from 1 */
static _Atomic int fault_listing_errno;
static _Atomic int fault_no_openat2;
static ino_t fault_endless_inode; /* the listing of this directory never ends */
static char fault_stat_name[64];  /* statx of this name fails */
static _Atomic int fault_stat_errno;

/* As many names of full length as LEN bytes hold. */
static long list_endlessly(char *ret, long len)
{
	const long record_len = 280;
	static long number;
	long at = 0;
	for (; at + record_len <= len; at += record_len) {
		struct dirent64 *entry = (void *)(ret + at);
		*entry = (struct dirent64){ .d_reclen = (unsigned short)record_len,
					    .d_type = DT_REG };
		(void)snprintf(entry->d_name, 256, "%0248ld.db-wal", number++);
	}
	return at;
}

long syscall(long number, ...);
long syscall(long number, ...)
{
	static long (*_Atomic real)(long, ...);
	if (!real) {
		real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	}
	va_list args;
	va_start(args, number);
	long a = va_arg(args, long), b = va_arg(args, long), c = va_arg(args, long);
	long d = va_arg(args, long), e = va_arg(args, long), f = va_arg(args, long);
	va_end(args);
	if (number == SYS_openat2 && fault_no_openat2) {
		errno = ENOSYS;
		return -1;
	}
	if (number == SYS_getdents64 && fault_listing_after && --fault_listing_after == 0) {
		errno = fault_listing_errno;
		return -1;
	}
	long got = real(number, a, b, c, d, e, f);
	if (number == SYS_getdents64 && got == 0 && fault_endless_inode) {
		struct stat st;
		if (fstat((int)a, &st) == 0 && st.st_ino == fault_endless_inode) {
			return list_endlessly((char *)b, c);
		}
	}
	if (number == SYS_getdents64 && fault_no_types) {
		for (long at = 0; at < got;) {
			struct dirent64 *entry = (void *)(b + at);
			entry->d_type = DT_UNKNOWN;
			at += entry->d_reclen;
		}
	}
	return got;
}

int statx(int fd, const char *restrict name, int flags, unsigned int mask,
	  struct statx *restrict st)
{
	if (fault_stat_errno && strcmp(name, fault_stat_name) == 0) {
		errno = fault_stat_errno;
		return -1;
	}
	return (int)syscall(SYS_statx, (long)fd, name, (long)flags, (long)mask, st, 0L);
}

/* ---------------------------------------------------------------------- the tree */

static char root[PATH_MAX];

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static int setup(void **state)
{
	(void)state;
	const char *tmp = getenv("TMPDIR");
	(void)snprintf(root, sizeof(root), "%s/us-walk-XXXXXX", tmp ? tmp : P_tmpdir);
	return mkdtemp(root) && chmod(root, 0755) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	fault_no_types = fault_listing_after = fault_no_openat2 = fault_stat_errno = 0;
	fault_endless_inode = 0;
	return nftw(root, remove_one, 64, FTW_DEPTH | FTW_PHYS);
}

/* ROOT/FORMAT; four at a time. */
static const char *at(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *at(const char *format, ...)
{
	static char paths[4][2 * PATH_MAX];
	static int next;
	char *path = paths[next++ % 4];
	int len = snprintf(path, sizeof(paths[0]), "%s/", root);
	va_list args;
	va_start(args, format);
	(void)vsnprintf(path + len, sizeof(paths[0]) - (size_t)len, format, args);
	va_end(args);
	return path;
}

/* Creates the directories of PATH and, unless it ends in a slash, a file of LEN bytes. */
static void make(const char *path, size_t len)
{
	char dir[2 * PATH_MAX];
	(void)snprintf(dir, sizeof(dir), "%s", path);
	for (char *slash = dir + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(dir, 0755) == 0 || errno == EEXIST);
		*slash = '/';
	}
	if (path[strlen(path) - 1] != '/') {
		int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, (off_t)len), 0);
		assert_int_equal(close(fd), 0);
	}
}

/* --------------------------------------------------------------------- the walks */

#define FOUND_MAX 8192

struct seen {
	pthread_mutex_t mutex;
	struct us_pattern *pattern;
	char *paths[FOUND_MAX]; /* below the root */
	struct us_walk_entry entries[FOUND_MAX];
	size_t count;
	char failures[16][512]; /* path below the root: message */
	int failure_errno[16];
	size_t failure_count;
	uint32_t thread_count, threads_used;
	int32_t batch_rc;
	_Atomic uint32_t *cancel_on_batch;
	pthread_barrier_t *first; /* all threads meet here with their first batches */
	size_t batches;
	struct us_walk_result result;
	struct us_error err;
};

static int32_t on_batch(void *arg, uint32_t thread, const struct us_walk_batch *batch)
{
	struct seen *s = arg;
	pthread_mutex_lock(&s->mutex);
	assert_true(thread < s->thread_count);
	assert_true(batch->entry_count >= 1 && batch->entry_count <= US_WALK_BATCH_MAX);
	assert_int_equal(strlen(batch->dir), batch->dir_len);
	int is_first = !(s->threads_used & 1u << thread);
	s->threads_used |= 1u << thread;
	s->batches++;
	const char *prefix = us_pattern_prefix(s->pattern) + strlen(root);
	for (size_t i = 0; i < batch->entry_count; i++) {
		const struct us_walk_entry *e = &batch->entries[i];
		assert_int_equal(strlen(e->name), e->name_len);
		assert_int_equal(e->reserved, 0);
		assert_true(s->count < FOUND_MAX);
		char path[2 * PATH_MAX];
		(void)snprintf(path, sizeof(path), "%s/%s%s%s", prefix, batch->dir,
			       batch->dir_len ? "/" : "", e->name);
		s->paths[s->count] = strdup(path + 1);
		s->entries[s->count++] = *e;
	}
	if (s->cancel_on_batch) {
		atomic_store(s->cancel_on_batch, 1);
	}
	pthread_mutex_unlock(&s->mutex);
	if (s->first && is_first) {
		(void)pthread_barrier_wait(s->first);
	}
	return s->batch_rc;
}

static void on_failure(void *arg, uint32_t thread, const char *path, const struct us_error *err)
{
	struct seen *s = arg;
	pthread_mutex_lock(&s->mutex);
	assert_true(thread < s->thread_count && err->code < 0);
	assert_int_equal(strncmp(path, root, strlen(root)), 0);
	if (s->failure_count < 16) {
		s->failure_errno[s->failure_count] = err->sys_errno;
		(void)snprintf(s->failures[s->failure_count], sizeof(s->failures[0]),
			       "%.100s: %.400s", path + strlen(root) + 1, err->message);
	}
	s->failure_count++;
	pthread_mutex_unlock(&s->mutex);
}

static int32_t walk(struct seen *s, const char *pattern, uint32_t threads,
		    const _Atomic uint32_t *cancel)
{
	pthread_mutex_init(&s->mutex, NULL);
	s->err = (struct us_error)US_ERROR_INIT;
	s->thread_count = threads;
	assert_int_equal(us_pattern_new(at("%s", pattern), &s->pattern, &s->err), 0);
	int fd = open(us_pattern_prefix(s->pattern), O_PATH | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	struct us_walk_fns fns = { .batch = on_batch, .failure = on_failure, .arg = s };
	int32_t rc = us_walk(s->pattern, fd, threads, &fns, cancel, &s->result, &s->err);
	assert_int_equal(close(fd), 0); /* still ours, and open */
	if (rc == 0) {
		assert_int_equal(s->result.database_count, s->count);
		assert_int_equal(s->result.failure_count, s->failure_count);
	}
	return rc;
}

static struct seen *seen_new(void)
{
	struct seen *s = calloc(1, sizeof(*s));
	assert_non_null(s);
	return s;
}

static void seen_free(struct seen *s)
{
	for (size_t i = 0; i < s->count; i++) {
		free(s->paths[i]);
	}
	us_pattern_free(s->pattern);
	pthread_mutex_destroy(&s->mutex);
	free(s);
}

static const struct us_walk_entry *find(const struct seen *s, const char *path)
{
	for (size_t i = 0; i < s->count; i++) {
		if (strcmp(s->paths[i], path) == 0) {
			return &s->entries[i];
		}
	}
	return NULL;
}

static struct us_file_stat stat_of(const char *path)
{
	struct stat st;
	assert_int_equal(lstat(path, &st), 0);
	return us_file_stat_of(&st);
}

/* Walks PATTERN with THREADS and compares with WANT ("a b c", any order). */
static void expect(const char *pattern, uint32_t threads, const char *want, size_t failure_count)
{
	struct seen *s = seen_new();
	int32_t rc = walk(s, pattern, threads, NULL);
	if (rc) {
		fail_msg("%s", s->err.message);
	}
	char copy[4096];
	(void)snprintf(copy, sizeof(copy), "%s", want);
	size_t count = 0;
	char *rest = copy;
	for (char *word; (word = strsep(&rest, " ")) && *word;) {
		count++;
		if (!find(s, word)) {
			fail_msg("%s: %s not found", pattern, word);
		}
	}
	for (size_t i = 0; i < s->count && s->count != count; i++) {
		print_error("found %s\n", s->paths[i]);
	}
	assert_int_equal(s->count, count);
	if (s->failure_count != failure_count) {
		fail_msg("%zu failures, %s", s->failure_count, s->failures[0]);
	}
	seen_free(s);
}

/* --------------------------------------------------------------------- the tests */

static void make_zoo(void)
{
	make(at("t1/a.db"), 1);
	make(at("t1/b.db"), 2);
	make(at("t1/b.db-wal"), 3);
	make(at("t1/b.db-shm"), 3);
	make(at("t1/b.db-journal"), 3);
	make(at("t1/c.txt"), 1);
	make(at("t1/.hidden.db"), 1);
	make(at("t1/orphan.db-wal"), 9);
	make(at("t1/dir.db/"), 0);
	make(at("t1/dir.db/in.db"), 1);
	make(at("t2/d.db"), 1);
	make(at("t2/deep/er/e.db"), 1);
	make(at(".hid/f.db"), 1);
	make(at("top.db"), 1);
	make(at("t3/new\nline\xFF.db"), 1);
	make(at("empty/"), 0);
	assert_int_equal(symlink("a.db", at("t1/link.db")), 0);
	assert_int_equal(symlink("nowhere", at("t1/broken.db")), 0);
	assert_int_equal(symlink("t1", at("linkdir")), 0);
	assert_int_equal(mkfifo(at("t1/fifo.db"), 0644), 0);
}

static void check_zoo(uint32_t threads)
{
	expect("*.db", threads, "top.db", 0);
	expect("*/*.db", threads, "t1/a.db t1/b.db t2/d.db t3/new\nline\xFF.db", 0);
	expect("t1/*", threads, "t1/a.db t1/b.db t1/c.txt", 0);
	expect("*/a.db", threads, "t1/a.db", 0);
	expect("**/*.db", threads,
	       "top.db t1/a.db t1/b.db t1/dir.db/in.db t2/d.db t2/deep/er/e.db t3/new\nline\xFF.db",
	       0);
	expect("*/deep/*/*.db", threads, "t2/deep/er/e.db", 0);
	expect("*/dir.db/*", threads, "t1/dir.db/in.db", 0);
	expect(".hid/*", threads, ".hid/f.db", 0);
	expect("*/.hid*", threads, "t1/.hidden.db", 0);
	expect("empty/*", threads, "", 0);
	expect("linkdir/*.db", threads, "linkdir/a.db linkdir/b.db",
	       0); /* the prefix may be a link */
	expect("**/er/*", threads, "t2/deep/er/e.db", 0);
	expect("t[12]/{name}.db", threads, "t1/a.db t1/b.db t2/d.db", 0);
}

static void test_zoo(void **state)
{
	(void)state;
	make_zoo();
	check_zoo(1);
	check_zoo(4);
	fault_no_types = 1;
	check_zoo(1);
	check_zoo(3);
	fault_no_openat2 = 1;
	check_zoo(2);
}

static void test_stats(void **state)
{
	(void)state;
	make(at("a.db"), 4096);
	make(at("b.db"), 100);
	make(at("b.db-wal"), 200);
	make(at("c.db"), 1);
	make(at("c.db-wal"), 0);
	make(at("d.db"), 1);
	make(at("d.db-wal/"), 0);
	make(at("e.db"), 1);
	assert_int_equal(symlink("/etc/passwd", at("e.db-wal")), 0);
	make(at("f.dbx-wal"), 1);
	make(at("f.db"), 1);
	for (int pass = 0; pass < 2; pass++) {
		struct seen *s = seen_new();
		int64_t begin_ns = us_clock_file_ns();
		assert_int_equal(walk(s, "*.db", 2, NULL), 0);
		assert_int_equal(s->count, 6);
		struct us_file_stat zero = { 0 };
		for (size_t i = 0; i < s->count; i++) {
			const struct us_walk_entry *e = &s->entries[i];
			struct us_file_stat db = stat_of(at("%s", s->paths[i]));
			assert_true(us_file_stat_equal(&e->db, &db));
			char wal_path[PATH_MAX + 8];
			(void)snprintf(wal_path, sizeof(wal_path), "%s-wal", at("%s", s->paths[i]));
			struct us_file_stat wal = access(wal_path, F_OK) ? zero : stat_of(wal_path);
			assert_true(us_file_stat_equal(&e->wal, &wal));
			assert_true(e->clock_ns >= begin_ns && e->clock_ns <= us_clock_file_ns());
		}
		assert_int_equal(find(s, "c.db")->wal.len, 0);
		assert_true(find(s, "c.db")->wal.inode != 0);
		assert_int_equal(find(s, "a.db")->wal.inode, 0);
		assert_int_equal(find(s, "f.db")->wal.inode, 0);
		seen_free(s);
		fault_no_types = 1;
	}
}

/* More than one getdents64, many batches, long names, `-wal` names that clash. */
static void test_wide_directory(void **state)
{
	(void)state;
	char long_name[256];
	memset(long_name, 'n', 255);
	long_name[255] = '\0';
	make(at("%s", long_name), 7);
	long_name[251] = '\0';
	make(at("%s", long_name), 8);
	make(at("%s-wal", long_name), 9);
	for (int i = 0; i < 5000; i++) {
		make(at("tenant-with-a-name-%d", i), (size_t)i);
		if (i % 3 == 0) {
			make(at("tenant-with-a-name-%d-wal", i), (size_t)i + 1);
		}
	}
	struct seen *s = seen_new();
	assert_int_equal(walk(s, "*", 2, NULL), 0);
	assert_int_equal(s->count, 5002);
	assert_true(s->batches >= 5002 / US_WALK_BATCH_MAX);
	int found = 0;
	for (size_t i = 0; i < s->count; i++) {
		const struct us_walk_entry *e = &s->entries[i];
		int number;
		if (sscanf(s->paths[i], "tenant-with-a-name-%d", &number) == 1) {
			found++;
			assert_int_equal(e->db.len, number);
			assert_int_equal(e->wal.len, number % 3 ? 0 : number + 1);
			assert_int_equal(e->wal.inode != 0, number % 3 == 0);
		} else {
			assert_int_equal(e->db.len, e->name_len == 255 ? 7 : 8);
			assert_int_equal(e->wal.len, e->name_len == 255 ? 0 : 9);
		}
	}
	assert_int_equal(found, 5000);
	seen_free(s);
}

/* One directory, and each of four threads gets some of its files: it would hang else. */
static void test_shared_directory(void **state)
{
	(void)state;
	enum { COUNT = 8000, THREADS = 4 };
	make(at("d/other"), 1);
	for (int i = 0; i < COUNT; i++) {
		make(at("d/%d.db", i), (size_t)i);
		if (i % 5 == 0) {
			make(at("d/%d.db-wal", i), (size_t)i + 1);
		}
	}
	pthread_barrier_t first;
	assert_int_equal(pthread_barrier_init(&first, NULL, THREADS), 0);
	struct seen *s = seen_new();
	s->first = &first;
	assert_int_equal(walk(s, "{group}/*.db", THREADS, NULL), 0);
	assert_int_equal(s->threads_used, (1u << THREADS) - 1);
	assert_int_equal(s->count, COUNT);
	static uint8_t found[COUNT];
	memset(found, 0, sizeof(found));
	for (size_t i = 0; i < s->count; i++) {
		const struct us_walk_entry *e = &s->entries[i];
		int number = -1;
		assert_int_equal(sscanf(s->paths[i], "d/%d.db", &number), 1);
		assert_int_equal(found[number]++, 0);
		assert_int_equal(e->db.len, number);
		assert_int_equal(e->wal.len, number % 5 ? 0 : number + 1);
	}
	seen_free(s);
	/* A stop on one of them ends it for all. */
	s = seen_new();
	s->batch_rc = 5;
	assert_int_equal(walk(s, "{group}/*.db", THREADS, NULL), US_E_CANCELED);
	assert_true(s->batches >= 1 && s->batches <= THREADS);
	seen_free(s);
	pthread_barrier_destroy(&first);
}

static void test_many_directories(void **state)
{
	(void)state;
	for (int i = 0; i < 600; i++) {
		make(at("p%d/databases/d%d/x.db", i % 20, i), 1);
		make(at("p%d/databases/d%d/y.db", i % 20, i), 1);
	}
	for (uint32_t threads = 1; threads <= 8; threads *= 2) {
		struct seen *s = seen_new();
		assert_int_equal(walk(s, "*/databases/*/*.db", threads, NULL), 0);
		assert_int_equal(s->count, 1200);
		assert_int_equal(s->failure_count, 0);
		/* the root, 20 databases/, 600 d*: p* needs no listing */
		assert_int_equal(s->result.directory_count, 621);
		seen_free(s);
	}
}

static void test_deep_tree(void **state)
{
	(void)state;
	char path[2 * PATH_MAX];
	size_t len = (size_t)snprintf(path, sizeof(path), "%s", root);
	for (int depth = 1; depth <= US_WALK_DEPTH_MAX + 2; depth++) {
		len += (size_t)snprintf(path + len, sizeof(path) - len, "/%c", 'a' + depth % 26);
		assert_int_equal(mkdir(path, 0755), 0);
		(void)snprintf(path + len, sizeof(path) - len, "/x.db");
		int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		assert_true(fd >= 0);
		assert_int_equal(close(fd), 0);
	}
	for (uint32_t threads = 1; threads <= 3; threads++) {
		struct seen *s = seen_new();
		assert_int_equal(walk(s, "**/*.db", threads, NULL), 0);
		assert_int_equal(s->count, US_WALK_DEPTH_MAX);
		assert_int_equal(s->failure_count, 1);
		assert_non_null(strstr(s->failures[0], "more than 256 levels"));
		seen_free(s);
	}
}

/* Paths over 4,095 bytes are named, and nothing overflows. */
static void test_long_paths(void **state)
{
	(void)state;
	char name[251];
	memset(name, 'd', 250);
	name[250] = '\0';
	int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (int depth = 0; depth < 18; depth++) { /* 18 * 251 bytes */
		assert_int_equal(mkdirat(fd, name, 0755), 0);
		int next = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		assert_true(next >= 0);
		close(fd);
		fd = next;
		int file = openat(fd, "x.db", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		assert_true(file >= 0);
		close(file);
		file = openat(fd, name + 10, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		close(file);
	}
	close(fd);
	struct seen *s = seen_new();
	assert_int_equal(walk(s, "**/*", 2, NULL), 0);
	assert_true(s->failure_count >= 1 && s->failure_count <= 2);
	assert_non_null(strstr(s->failures[0], "4095"));
	assert_true(s->count > 20);
	seen_free(s);
	fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC); /* nftw cannot remove these */
	int parents[20] = { fd };
	for (int depth = 0; depth < 18; depth++) {
		parents[depth + 1] = openat(parents[depth], name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		(void)unlinkat(parents[depth + 1], "x.db", 0);
		(void)unlinkat(parents[depth + 1], name + 10, 0);
	}
	for (int depth = 18; depth > 0; depth--) {
		close(parents[depth]);
		assert_int_equal(unlinkat(parents[depth - 1], name, AT_REMOVEDIR), 0);
	}
	close(fd);
}

static void test_unreadable(void **state)
{
	(void)state;
	make(at("ok/a.db"), 1);
	make(at("shut/a.db"), 1);
	make(at("names/a.db"), 1);          /* can be listed, not entered */
	make(at("pass/databases/a.db"), 1); /* can be entered, not listed */
	assert_int_equal(chmod(at("shut"), 0), 0);
	assert_int_equal(chmod(at("names"), 0444), 0);
	assert_int_equal(chmod(at("pass"), 0111), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) { /* root may read everything: be somebody else */
		if (getuid() == 0 && (setgid(65534) || setuid(65534))) {
			_exit(2);
		}
		struct seen *s = seen_new();
		int ok = walk(s, "*/*.db", 2, NULL) == 0 && s->count == 1 && find(s, "ok/a.db") &&
			 s->failure_count == 3 && s->failure_errno[0] == EACCES &&
			 s->failure_errno[1] == EACCES && s->failure_errno[2] == EACCES;
		seen_free(s);
		s = seen_new();
		ok = ok && walk(s, "*/databases/*.db", 1, NULL) == 0 &&
		     find(s, "pass/databases/a.db");
		seen_free(s);
		s = seen_new();
		ok = ok && walk(s, "shut/*.db", 1, NULL) == US_E_ACCESS && s->failure_count == 0 &&
		     strstr(s->err.message, "shut");
		seen_free(s);
		_exit(ok ? 0 : 1);
	}
	int status = 0;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(
		chmod(at("shut"), 0755) | chmod(at("names"), 0755) | chmod(at("pass"), 0755), 0);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_listing_fails(void **state)
{
	(void)state;
	make(at("t/a.db"), 1);
	make(at("t/b.db"), 1);
	make(at("t/b.db-wal"), 5);
	make(at("u/c.db"), 1);
	for (int after = 1; after <= 8; after++) {
		struct seen *s = seen_new();
		fault_listing_after = after;
		fault_listing_errno = EIO;
		int32_t rc = walk(s, "*/*.db", 1, NULL);
		if (after <= 2) { /* the prefix: getdents64 1 and 2 */
			assert_int_equal(rc, US_E_IO);
			assert_int_equal(s->err.sys_errno, EIO);
			assert_int_equal(s->failure_count, 0);
		} else {
			assert_int_equal(rc, 0);
			assert_int_equal(s->failure_count, after <= 6);
			assert_true(s->count >= 1); /* the other directory at least */
			const struct us_walk_entry *b = find(s, "t/b.db");
			assert_true(!b || b->wal.len == 5);
		}
		seen_free(s);
	}
	/* A directory removed while it is listed is no failure, unless it is the prefix. */
	for (int after = 2; after <= 4; after++) {
		struct seen *s = seen_new();
		fault_listing_after = after;
		fault_listing_errno = ENOENT;
		assert_int_equal(walk(s, "*/*.db", 1, NULL), after == 2 ? US_E_NOTFOUND : 0);
		assert_int_equal(s->failure_count, 0);
		seen_free(s);
	}
}

/* More names than are kept: a failure of that directory, and of no other. */
static void test_too_many_names(void **state)
{
	(void)state;
	make(at("t/a.db"), 1);
	make(at("t/a.db-wal"), 5);
	make(at("u/b.db"), 1);
	make(at("v/c.db"), 1);
	fault_endless_inode = (ino_t)stat_of(at("t")).inode;
	struct seen *s = seen_new();
	int32_t rc = walk(s, "*/*.db", 1, NULL);
	if (rc) {
		fail_msg("%s", s->err.message);
	}
	assert_int_equal(s->count, 3);
	assert_non_null(find(s, "u/b.db"));
	assert_non_null(find(s, "v/c.db"));
	assert_non_null(find(s, "t/a.db"));
	assert_int_equal(find(s, "t/a.db")->wal.len, 5);
	assert_int_equal(s->failure_count, 1);
	assert_int_equal(strncmp(s->failures[0], "t: cannot list directory", 24), 0);
	assert_int_equal(s->failure_errno[0], ENOMEM);
	seen_free(s);
	/* Of the prefix it is the end of the walk. */
	s = seen_new();
	assert_int_equal(walk(s, "t/*.db", 1, NULL), US_E_NOMEM);
	seen_free(s);
}

static void test_stat_fails(void **state)
{
	(void)state;
	make(at("a.db"), 1);
	make(at("b.db"), 1);
	make(at("b.db-wal"), 1);
	static const char *const names[] = { "a.db", "b.db-wal" };
	for (size_t i = 0; i < 2; i++) {
		(void)snprintf(fault_stat_name, sizeof(fault_stat_name), "%s", names[i]);
		fault_stat_errno = EIO;
		struct seen *s = seen_new();
		assert_int_equal(walk(s, "*.db", 1, NULL), 0);
		assert_int_equal(s->count, 1);
		assert_int_equal(s->failure_count, 1);
		assert_int_equal(strncmp(s->failures[0], names[i], strlen(names[i])), 0);
		seen_free(s);
		fault_stat_errno = ENOENT; /* gone since it was listed */
		s = seen_new();
		assert_int_equal(walk(s, "*.db", 1, NULL), 0);
		assert_int_equal(s->count, i == 0 ? 1 : 2);
		assert_int_equal(s->failure_count, 0);
		assert_int_equal(find(s, "b.db")->wal.inode != 0, i == 0);
		seen_free(s);
	}
}

/* /proc and /dev/shm lie on devices of their own everywhere; use them from "/". */
static void test_other_device(void **state)
{
	(void)state;
	struct stat slash, proc;
	if (stat("/", &slash) || stat("/proc", &proc) || slash.st_dev == proc.st_dev) {
		skip();
	}
	for (int fallback = 0; fallback < 2; fallback++) {
		fault_no_openat2 = fallback;
		struct seen *s = seen_new();
		char saved[PATH_MAX];
		(void)snprintf(saved, sizeof(saved), "%s", root);
		root[0] = '\0';
		int32_t rc = walk(s, "[p]ro[c]/version", 2, NULL);
		(void)snprintf(root, sizeof(root), "%s", saved);
		assert_int_equal(rc, 0);
		assert_int_equal(s->count, 0);
		assert_int_equal(s->failure_count, 1);
		assert_int_equal(s->failure_errno[0], EXDEV);
		assert_non_null(strstr(s->failures[0], "is on another device"));
		seen_free(s);
	}
}

static void test_cancel(void **state)
{
	(void)state;
	for (int i = 0; i < 200; i++) {
		make(at("d%d/x.db", i), 1);
	}
	for (uint32_t threads = 1; threads <= 4; threads += 3) {
		_Atomic uint32_t cancel = 1;
		struct seen *s = seen_new();
		s->result.database_count = 77;
		assert_int_equal(walk(s, "*/*.db", threads, &cancel), US_E_CANCELED);
		assert_int_equal(s->err.code, US_E_CANCELED);
		assert_int_equal(s->count, 0);
		assert_int_equal(s->result.database_count, 77);
		seen_free(s);
		cancel = 0;
		s = seen_new();
		s->cancel_on_batch = &cancel;
		assert_int_equal(walk(s, "*/*.db", threads, &cancel), US_E_CANCELED);
		assert_true(s->count >= 1 && s->count <= threads);
		seen_free(s);
		s = seen_new();
		s->batch_rc = 5;
		assert_int_equal(walk(s, "*/*.db", threads, NULL), US_E_CANCELED);
		assert_true(s->count >= 1 && s->count <= threads);
		seen_free(s);
	}
}

static void test_arguments(void **state)
{
	(void)state;
	struct seen *s = seen_new();
	assert_int_equal(walk(s, "*", 0, NULL), US_E_ARG);
	seen_free(s);
	s = seen_new();
	assert_int_equal(walk(s, "*", US_WALK_THREADS_MAX + 1, NULL), US_E_ARG);
	seen_free(s);
	s = seen_new();
	assert_int_equal(us_pattern_new(at("*"), &s->pattern, NULL), 0);
	pthread_mutex_init(&s->mutex, NULL);
	struct us_walk_fns fns = { .batch = on_batch, .failure = on_failure, .arg = s };
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(us_walk(s->pattern, fd, 1, &fns, NULL, &s->result, &s->err) < 0);
	assert_true(us_walk(s->pattern, -1, 1, &fns, NULL, &s->result, NULL) < 0);
	close(fd);
	seen_free(s);
}

/* Descriptors: one per thread, whatever the tree. */
static void test_descriptors(void **state)
{
	(void)state;
	for (int i = 0; i < 100; i++) {
		make(at("a%d/b/c/x.db", i), 1);
	}
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int next = dup(0); /* the lowest free number */
		close(next);
		struct rlimit limit = { .rlim_cur = (rlim_t)next + 3,
					.rlim_max = (rlim_t)next + 3 };
		struct seen *s = seen_new();
		int ok = setrlimit(RLIMIT_NOFILE, &limit) == 0 &&
			 walk(s, "**/*.db", 2, NULL) == 0 && s->count == 100 &&
			 s->failure_count == 0; /* prefix_fd and one each */
		seen_free(s);
		s = seen_new();
		limit.rlim_cur = (rlim_t)next + 1;
		ok = ok && setrlimit(RLIMIT_NOFILE, &limit) == 0 &&
		     walk(s, "**/*.db", 1, NULL) < 0 &&
		     s->err.sys_errno == EMFILE; /* the prefix itself */
		seen_free(s);
		_exit(ok ? 0 : 1);
	}
	int status = 0;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Files and directories come and go: nothing is reported, nothing hangs. */
static void *churn(void *arg)
{
	_Atomic uint32_t *end = arg;
	char dir[PATH_MAX + 32], file[PATH_MAX + 64];
	for (int i = 0; !atomic_load(end); i++) {
		(void)snprintf(dir, sizeof(dir), "%s/d%d", root, i % 10);
		(void)snprintf(file, sizeof(file), "%s/x%d.db", dir, i % 7);
		(void)mkdir(dir, 0755);
		int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (fd >= 0) {
			close(fd);
		}
		if (i % 3 == 0) {
			(void)unlink(file);
		}
		(void)rmdir(dir);
	}
	return NULL;
}

static void test_churn(void **state)
{
	(void)state;
	_Atomic uint32_t end = 0;
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, churn, &end), 0);
	for (int i = 0; i < 200; i++) {
		struct seen *s = seen_new();
		assert_int_equal(walk(s, "*/*.db", 3, NULL), 0);
		assert_int_equal(s->failure_count, 0);
		seen_free(s);
	}
	atomic_store(&end, 1);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

#define WALK_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WALK_TEST(test_zoo),
		WALK_TEST(test_stats),
		WALK_TEST(test_wide_directory),
		WALK_TEST(test_shared_directory),
		WALK_TEST(test_many_directories),
		WALK_TEST(test_deep_tree),
		WALK_TEST(test_long_paths),
		WALK_TEST(test_unreadable),
		WALK_TEST(test_listing_fails),
		WALK_TEST(test_too_many_names),
		WALK_TEST(test_stat_fails),
		WALK_TEST(test_other_device),
		WALK_TEST(test_cancel),
		WALK_TEST(test_arguments),
		WALK_TEST(test_descriptors),
		WALK_TEST(test_churn),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
