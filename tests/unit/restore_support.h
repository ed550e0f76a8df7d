/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_RESTORE_SUPPORT_H
#define US_TESTS_RESTORE_SUPPORT_H

/*
 * What the restore tests share: a store in memory, databases written by SQLite,
 * a picture of a directory to compare, and system calls that stop at the Nth.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <lz4frame.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/encode/encode.h"
#include "../../csrc/restore/restore.h"
#include "scratch.h"

#define PATH_LEN 1024
#define SOURCE "/data/acme/x.db"
#define KEY_PREFIX "b/acme/x"

/* ---------------------------------------------------------- system calls */

#define CRASH_STATUS 42

/* The Nth of the calls below ends the process (crash_at), or fails with EIO once
 * (fail_at). 0: none does. */
static long call_count, crash_at, fail_at;
static int calls_are_free; /* nobody counts: set where threads run */
static int write_errno; /* of every write, if not 0 */

/* Called once before the Nth call, at hook_at. */
static long hook_at;
static void (*hook)(void);
/* The calls so far, a line each, with short names for the hidden files. */
static char trace[4096];

static inline const char *short_name(const char *name)
{
	static const char *const known[][2] = {
		{ "-new", "NEW" }, { "-db", "DB" },   { "-wal", "WAL" },
		{ "-shm", "SHM" }, { "-jrn", "JRN" },
	};
	if (strncmp(name, ".us-restore-", 12) == 0) {
		return "TEMP";
	}
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		size_t len = strlen(name), suffix_len = strlen(known[i][0]);
		if (strncmp(name, ".us-before-", 11) == 0 &&
		    strcmp(name + len - suffix_len, known[i][0]) == 0) {
			return known[i][1];
		}
	}
	return name;
}

static inline int call_fails(const char *call, const char *from, const char *to)
{
	if (calls_are_free) {
		return 0;
	}
	size_t len = strlen(trace);
	(void)snprintf(trace + len, sizeof(trace) - len, "%s%s%s%s%s\n", call, from[0] ? " " : "",
		       short_name(from), to[0] ? " " : "", short_name(to));
	call_count++;
	if (crash_at && call_count == crash_at) {
		_exit(CRASH_STATUS);
	}
	if (hook_at && call_count == hook_at) {
		hook_at = 0;
		hook();
	}
	if (fail_at && call_count == fail_at) {
		errno = EIO;
		return 1;
	}
	return 0;
}

/* These stand before libc's, for the library's calls as well. Nothing is synced: a
 * killed process loses nothing, and the disk is slow. */
int fsync(int fd)
{
	struct stat st;
	int is_dir = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
	return call_fails(is_dir ? "sync" : "sync file", "", "") ? -1 : 0;
}

int fdatasync(int fd)
{
	(void)fd;
	return 0;
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags)
{
	return call_fails(flags == 1 ? "rename" : "rename over", from, to)
		       ? -1
		       : (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
	return call_fails("link", from, to)
		       ? -1
		       : (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
}

int unlinkat(int fd, const char *name, int flags)
{
	return call_fails("unlink", name, "") ? -1 : (int)syscall(SYS_unlinkat, fd, name, flags);
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t off)
{
	if (write_errno) {
		errno = write_errno;
		return -1;
	}
	return syscall(SYS_pwrite64, fd, data, len, off);
}

/* ------------------------------------------------------- a store in memory */

#define OBJECTS_MAX 512

struct memory_object {
	char key[1200];
	uint8_t *data;
	size_t len;
};

static struct memory_store {
	struct us_store store;
	struct memory_object objects[OBJECTS_MAX];
	size_t count;
	size_t piece_len;
	_Atomic uint32_t get_count, list_count;
	void (*on_get)(const char *key); /* before the object is looked up */
} memory;

static inline struct memory_object *memory_find(const char *key)
{
	for (size_t i = 0; i < memory.count; i++) {
		if (strcmp(memory.objects[i].key, key) == 0) {
			return &memory.objects[i];
		}
	}
	return NULL;
}

static inline int32_t memory_get(struct us_store *store, const char *key, int64_t offset,
				 uint64_t len, us_store_data_fn *fn, void *arg, uint64_t *ret_len,
				 struct us_error *err)
{
	(void)store;
	memory.get_count++;
	if (memory.on_get) {
		memory.on_get(key);
	}
	struct memory_object *o = memory_find(key);
	if (!o) {
		return us_fail(err, US_E_NOTFOUND, "GET \"%s\": no such object", key);
	}
	size_t at = offset >= 0                ? (size_t)offset
		    : (size_t)-offset < o->len ? o->len - (size_t)-offset
					       : 0;
	size_t end = len < o->len - at ? at + (size_t)len : o->len;
	while (at < end) {
		size_t n = end - at < memory.piece_len ? end - at : memory.piece_len;
		int32_t rc = fn(arg, o->data + at, n, err);
		if (rc) {
			return rc;
		}
		at += n;
	}
	if (ret_len) {
		*ret_len = o->len;
	}
	return 0;
}

static inline int by_key(const void *a, const void *b)
{
	return strcmp(((const struct memory_object *)a)->key,
		      ((const struct memory_object *)b)->key);
}

static inline int32_t memory_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
				  void *arg, struct us_error *err)
{
	(void)store;
	memory.list_count++;
	for (size_t i = 0; i < memory.count; i++) {
		struct memory_object *o = &memory.objects[i];
		if (strncmp(o->key, prefix, strlen(prefix)) == 0) {
			int32_t rc = fn(arg, o->key, strlen(o->key), o->len);
			if (rc) {
				return us_fail(err, rc, "stopped");
			}
		}
	}
	return 0;
}

static const struct us_store_ops memory_ops = { .get = memory_get, .list = memory_list };

static inline void memory_remove(const char *key)
{
	struct memory_object *o = memory_find(key);
	if (o) {
		free(o->data);
		*o = memory.objects[--memory.count];
		qsort(memory.objects, memory.count, sizeof(*o), by_key);
	}
}

static inline void memory_put(const char *key, const uint8_t *data, size_t len)
{
	memory_remove(key);
	assert_true(memory.count < OBJECTS_MAX);
	struct memory_object *o = &memory.objects[memory.count++];
	(void)snprintf(o->key, sizeof(o->key), "%s", key);
	o->data = malloc(len ? len : 1);
	assert_non_null(o->data);
	memcpy(o->data, data, len);
	o->len = len;
	qsort(memory.objects, memory.count, sizeof(*o), by_key);
}

static inline void memory_reset(void)
{
	while (memory.count) {
		memory_remove(memory.objects[0].key);
	}
	memset(&memory, 0, sizeof(memory));
	memory.store.ops = &memory_ops;
	memory.piece_len = 1000;
}

/* ----------------------------------------------------------------- files */

static char root[SCRATCH_LEN];

static inline const char *in_root(const char *name)
{
	static char paths[8][PATH_LEN];
	static unsigned next;
	char *path = paths[next++ % 8];
	(void)snprintf(path, PATH_LEN, "%s/%s", root, name);
	return path;
}

static inline void run_command(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void run_command(const char *format, ...)
{
	char command[4 * PATH_LEN];
	va_list args;
	va_start(args, format);
	(void)vsnprintf(command, sizeof(command), format, args);
	va_end(args);
	assert_int_equal(system(command), 0);
}

static inline uint8_t *read_file(const char *path, size_t *ret_len)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	uint8_t *data = malloc((size_t)st.st_size + 1);
	assert_non_null(data);
	assert_int_equal(read(fd, data, (size_t)st.st_size), st.st_size);
	close(fd);
	*ret_len = (size_t)st.st_size;
	return data;
}

static inline void write_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, len), (ssize_t)len);
	close(fd);
}

/* Copies or (TO is NULL) removes the files of a flat directory, and it. */
static inline void each_file(const char *from, const char *to)
{
	DIR *dir = opendir(from);
	if (!dir && !to) {
		return;
	}
	assert_non_null(dir);
	if (to) {
		assert_int_equal(mkdir(to, 0755), 0);
	}
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		char file[2 * PATH_LEN], copy[2 * PATH_LEN];
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
			continue;
		}
		(void)snprintf(file, sizeof(file), "%s/%s", from, e->d_name);
		if (to) {
			size_t len;
			uint8_t *data = read_file(file, &len);
			(void)snprintf(copy, sizeof(copy), "%s/%s", to, e->d_name);
			write_file(copy, data, len);
			free(data);
		} else {
			assert_int_equal(unlink(file), 0);
		}
	}
	closedir(dir);
	if (!to) {
		assert_int_equal(rmdir(from), 0);
	}
}

static inline int is_there(const char *path)
{
	struct stat st;
	return lstat(path, &st) == 0;
}

static inline int count_entries(const char *path, const char *beginning)
{
	int count = 0;
	DIR *dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		count += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
			 strncmp(e->d_name, beginning, strlen(beginning)) == 0;
	}
	closedir(dir);
	return count;
}

/* Names, modes, inodes, lengths, mtimes and contents of a directory, as a hash. */
static inline uint64_t picture(const char *path)
{
	uint64_t sum = 0;
	DIR *dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		char file[2 * PATH_LEN], text[2 * PATH_LEN];
		struct stat st;
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
			continue;
		}
		(void)snprintf(file, sizeof(file), "%s/%s", path, e->d_name);
		assert_int_equal(lstat(file, &st), 0);
		int text_len = snprintf(text, sizeof(text), "%s %o %ju %jd %jd.%ld", e->d_name,
					st.st_mode, (uintmax_t)st.st_ino, (intmax_t)st.st_size,
					(intmax_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
		uint64_t hash = UINT64_C(14695981039346656037);
		for (int i = 0; i < text_len; i++) {
			hash = (hash ^ (uint8_t)text[i]) * UINT64_C(1099511628211);
		}
		if (S_ISREG(st.st_mode)) {
			size_t len;
			uint8_t *data = read_file(file, &len);
			for (size_t i = 0; i < len; i++) {
				hash = (hash ^ data[i]) * UINT64_C(1099511628211);
			}
			free(data);
		}
		sum += hash;
	}
	closedir(dir);
	return sum;
}

/* -------------------------------------------------------------- databases */

static inline void run_sql(sqlite3 *db, const char *sql)
{
	char *message = NULL;
	if (sqlite3_exec(db, sql, NULL, NULL, &message)) {
		fail_msg("%s: %s", sql, message);
	}
}

static inline sqlite3 *open_db(const char *path)
{
	sqlite3 *db;
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	return db;
}

/* A small database whose one row is VALUE. */
static inline void make_db(const char *path, const char *value)
{
	char sql[200];
	sqlite3 *db = open_db(path);
	(void)snprintf(sql, sizeof(sql),
		       "PRAGMA page_size=512; CREATE TABLE t(v); INSERT INTO t VALUES('%s')",
		       value);
	run_sql(db, sql);
	sqlite3_close(db);
}

/* The row of the database at PATH (opened like an application does), "nothing" if
 * there is no file, or what is wrong. */
static inline void read_value(const char *path, char ret[64])
{
	sqlite3 *db;
	sqlite3_stmt *stmt = NULL;
	if (!is_there(path)) {
		(void)snprintf(ret, 64, "nothing");
		return;
	}
	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	int rc = sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL);
	if (!rc && sqlite3_step(stmt) == SQLITE_ROW &&
	    strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0) {
		sqlite3_finalize(stmt);
		rc = sqlite3_prepare_v2(db, "SELECT group_concat(v) FROM t WHERE length(v) < 60",
					-1, &stmt, NULL);
		if (!rc && sqlite3_step(stmt) == SQLITE_ROW) {
			(void)snprintf(ret, 64, "%s", (const char *)sqlite3_column_text(stmt, 0));
		} else {
			(void)snprintf(ret, 64, "unreadable: %s", sqlite3_errmsg(db));
		}
	} else {
		(void)snprintf(ret, 64, "damaged: %s", sqlite3_errmsg(db));
	}
	sqlite3_finalize(stmt);
	sqlite3_close(db);
}

static inline void assert_value(const char *path, const char *value)
{
	char text[64];
	read_value(path, text);
	assert_string_equal(text, value);
}

static inline void copy_file(const char *from, const char *from_suffix, const char *to,
			     const char *to_suffix)
{
	char source[2 * PATH_LEN], copy[2 * PATH_LEN];
	size_t len;
	(void)snprintf(source, sizeof(source), "%s%s", from, from_suffix);
	(void)snprintf(copy, sizeof(copy), "%s%s", to, to_suffix);
	uint8_t *data = read_file(source, &len);
	write_file(copy, data, len);
	free(data);
}

/* A WAL database whose file says "stale" and whose WAL says "old"; no process has
 * it open. The -shm is the one its last process left. */
static inline void make_wal_db(const char *path)
{
	const char *live = in_root("live.db");
	make_db(live, "stale");
	sqlite3 *db = open_db(live);
	run_sql(db, "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; UPDATE t SET v='old'");
	copy_file(live, "", path, "");
	copy_file(live, "-wal", path, "-wal");
	copy_file(live, "-shm", path, "-shm");
	sqlite3_close(db);
	assert_int_equal(unlink(live), 0);
}

/* A database with a hot journal: its file is in the middle of a transaction that
 * SQLite will roll back to "old". */
static inline void make_hot_db(const char *path)
{
	const char *live = in_root("live.db");
	make_db(live, "old");
	sqlite3 *db = open_db(live);
	run_sql(db, "PRAGMA cache_size=2; BEGIN; UPDATE t SET v='half';"
		    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<200)"
		    " INSERT INTO t SELECT hex(zeroblob(100)) FROM c");
	copy_file(live, "", path, "");
	copy_file(live, "-journal", path, "-journal");
	sqlite3_close(db);
	assert_int_equal(unlink(live), 0);
}

/* --------------------------------------------------------------- objects */

static inline struct us_object encode(const uint8_t *image, size_t len, struct us_trailer *trailer)
{
	struct us_error err = US_ERROR_INIT;
	struct us_encoder *encoder;
	struct us_object object;
	assert_int_equal(us_encoder_new(-1, &encoder, &err), 0);
	assert_int_equal(us_encoder_begin(encoder, len, 0, &err), 0);
	assert_int_equal(us_encoder_write(encoder, image, len, &err), 0);
	assert_int_equal(us_encoder_end(encoder, trailer, &object, &err), 0);
	us_encoder_free(encoder);
	return object;
}

static inline void trailer_init(struct us_trailer *trailer, const uint8_t *image, size_t len)
{
	memset(trailer, 0, sizeof(*trailer));
	(void)snprintf(trailer->path, sizeof(trailer->path), "%s", SOURCE);
	trailer->snapshot_ns = 1700000000 * US_NS_PER_S;
	trailer->database_len = len;
	trailer->page_size =
		image[16] == 0 && image[17] == 1 ? 65536 : (uint32_t)(image[16] << 8 | image[17]);
	trailer->mode = 0640;
	trailer->uid = geteuid();
	trailer->gid = getegid();
}

/* Puts the database at PATH as the backup of window NAME. */
static inline void put_backup(const char *name, const char *path, int64_t snapshot_ns)
{
	char key[200];
	size_t len;
	uint8_t *image = read_file(path, &len);
	struct us_trailer *trailer = malloc(sizeof(*trailer));
	assert_non_null(trailer);
	trailer_init(trailer, image, len);
	trailer->snapshot_ns = snapshot_ns;
	struct us_object object = encode(image, len, trailer);
	(void)snprintf(key, sizeof(key), KEY_PREFIX "/%s.db.lz4", name);
	memory_put(key, object.data, object.len);
	us_object_done(&object);
	free(trailer);
	free(image);
}

static inline void put_value(const char *name, const char *value, int64_t snapshot_ns)
{
	const char *path = in_root("source.db");
	make_db(path, value);
	put_backup(name, path, snapshot_ns);
	assert_int_equal(unlink(path), 0);
}

#define NEW_NAME "20231114T220000Z"
#define NEW_KEY KEY_PREFIX "/" NEW_NAME ".db.lz4"
static inline void put_new(void)
{
	put_value(NEW_NAME, "new", 1700000000 * US_NS_PER_S);
}

/* --------------------------------------------------------------- restore */

static struct us_pattern *pattern;
static struct us_template *tmpl;
static _Atomic uint32_t cancel;
static struct us_restore_result result;
static struct us_error error;

static inline int32_t restore_options(const struct us_restore_options *options,
				      const _Atomic uint32_t *canceled,
				      struct us_restore_result *ret, struct us_error *err)
{
	const struct us_restore_env env = { .store = &memory.store,
					    .tmpl = tmpl,
					    .memory_len = 16000000,
					    .cancel = canceled };
	return us_restore_one(&env, options, ret, NULL, err);
}

static inline int32_t restore_with(const char *output, uint32_t flags, int64_t timestamp_ns,
				   uint32_t integrity)
{
	const struct us_restore_options options = {
		.struct_size = sizeof(options),
		.flags = flags,
		.path = SOURCE,
		.output_path = output,
		.timestamp_ns = timestamp_ns,
		.integrity_check = integrity,
	};
	result = (struct us_restore_result){ .struct_size = sizeof(result) };
	error = (struct us_error)US_ERROR_INIT;
	int32_t rc = restore_options(&options, &cancel, &result, &error);
	if (rc) {
		assert_int_equal(error.code, rc);
		assert_true(error.message[0] != '\0');
		assert_int_equal(result.database_len, 0);
	}
	return rc;
}

static inline int32_t restore(const char *output, uint32_t flags)
{
	return restore_with(output, flags, 0, US_INTEGRITY_NONE);
}

static inline void assert_message(const char *part)
{
	if (!strstr(error.message, part)) {
		fail_msg("\"%s\" is not in \"%s\"", part, error.message);
	}
}

static inline int setup_restore(void **state)
{
	(void)state;
	memory_reset();
	cancel = 0;
	call_count = crash_at = fail_at = hook_at = calls_are_free = 0;
	trace[0] = '\0';
	if (scratch_dir(root) || us_pattern_new("/data/*/*.db", &pattern, NULL) ||
	    us_template_new("b/{{tenant}}/{{name}}", pattern, NULL, &tmpl, NULL)) {
		return -1;
	}
	return 0;
}

static inline int teardown_restore(void **state)
{
	char command[SCRATCH_LEN + 16];
	(void)state;
	crash_at = fail_at = write_errno = 0;
	us_template_free(tmpl);
	us_pattern_free(pattern);
	memory_reset();
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
	return system(command);
}

#endif
