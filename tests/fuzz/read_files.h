/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_READ_FILES_H
#define US_TESTS_READ_FILES_H

/*
 * A database with arbitrary bytes and arbitrary files beside it, read by us_read_image and
 * recovered by SQLite. Where both take it, both must have the same bytes; nothing in the
 * directory may have changed.
 *
 * Each pair of files lies in a directory of its own, so that neither sees the other's
 * locks. The kernel's clock for files is put forward by an hour, so that files just
 * written count as old.
 */

#include "files.h"

#include <dirent.h>
#include <sqlite3.h>
#include <sys/syscall.h>
#include <time.h>

#include "../../csrc/base/bytes.h"
#include "../../csrc/read/image.h"

#define IMAGE_LEN_MAX ((size_t)8 << 20)
#define READER_LEN ((size_t)1 << 20) /* a database longer than three quarters is streamed */

enum { FILE_DB, FILE_WAL, FILE_JOURNAL, FILE_COUNT };
static const char *const file_names[FILE_COUNT] = { "x.db", "x.db-wal", "x.db-journal" };

int clock_gettime(clockid_t clock, struct timespec *ret);
int clock_gettime(clockid_t clock, struct timespec *ret)
{
	int rc = (int)syscall(SYS_clock_gettime, clock, ret);
	ret->tv_sec += clock == CLOCK_REALTIME_COARSE ? 3600 : 0;
	return rc;
}

static struct {
	char ours[SCRATCH_LEN + 16], theirs[SCRATCH_LEN + 16];
	int ours_fd, theirs_fd;
	struct us_reader *reader;
	uint8_t image[IMAGE_LEN_MAX], recovered[IMAGE_LEN_MAX];
	size_t image_len, begun_len, left_len; /* LEFT: what SQLite left of the file */
	uint32_t journal_page_size;            /* of its first header; 0: none */
	int begin_count;
} t;

static inline void set_up(void)
{
	char root[SCRATCH_LEN];
	if (t.reader) {
		return;
	}
	require(scratch_dir(root) == 0);
	(void)snprintf(t.ours, sizeof(t.ours), "%s/1", root);
	(void)snprintf(t.theirs, sizeof(t.theirs), "%s/2", root); /* of the same length */
	require(mkdir(t.ours, 0700) == 0 && mkdir(t.theirs, 0700) == 0);
	t.ours_fd = open(t.ours, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	t.theirs_fd = open(t.theirs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	require(t.ours_fd >= 0 && t.theirs_fd >= 0);
	require(us_reader_new(READER_LEN, t.theirs_fd, &t.reader, NULL) == 0);
}

/* ---------------------------------------------------------------------- ours */

static inline int32_t on_begin(void *arg, const struct us_image_info *info, struct us_error *err)
{
	(void)arg;
	(void)err;
	t.image_len = 0;
	t.begun_len = info->image_len;
	t.begin_count++;
	return 0;
}

static inline int32_t on_write(void *arg, const uint8_t *data, size_t len, struct us_error *err)
{
	(void)arg;
	require(t.begin_count > 0 && len > 0 && len <= t.begun_len - t.image_len);
	if (len > IMAGE_LEN_MAX - t.image_len) {
		return us_fail(err, US_E_CANCELED, "an image of some size");
	}
	memcpy(t.image + t.image_len, data, len);
	t.image_len += len;
	return 0;
}

static inline uint32_t header_page_size(const uint8_t *header)
{
	uint32_t page_size = us_get_be16(header + 16);
	return page_size == 1 ? 65536 : page_size;
}

/* What DESIGN.md section 5 promises of every image. */
static inline void check_image(const struct us_image_info *info, const struct stat *st)
{
	require(t.begin_count == 1 && info->image_len == t.image_len);
	require(info->page_size >= 512 && info->page_size <= 65536 &&
		(info->page_size & (info->page_size - 1)) == 0);
	require(info->page_count > 0 &&
		(uint64_t)info->page_size * info->page_count == t.image_len);
	require(memcmp(t.image, "SQLite format 3", 16) == 0);
	require(header_page_size(t.image) == info->page_size);
	require(us_get_be32(t.image + 24) == info->change_counter);
	uint32_t count = us_get_be32(t.image + 28);
	require(count == 0 || memcmp(t.image + 24, t.image + 92, 4) != 0 ||
		count == info->page_count);
	require(info->mode == (st->st_mode & 07777) && info->db.inode == st->st_ino);
	require(info->snapshot_ns > 0 && info->db.len == (uint64_t)st->st_size);
}

static inline int32_t read_ours(struct us_error *err)
{
	struct stat st;
	struct us_image_info info;
	require(fstatat(t.ours_fd, "x.db", &st, 0) == 0);
	const struct us_read_source source = {
		.prefix_fd = t.ours_fd, .rel = "x.db", .display = "x.db", .inode = st.st_ino
	};
	const struct us_image_sink sink = { on_begin, on_write, NULL };
	t.image_len = t.begun_len = 0;
	t.begin_count = 0;
	int32_t rc = us_read_image(t.reader, &source, &sink, &info, err);
	if (rc == 0) {
		check_image(&info, &st);
	} else {
		require_reason(rc, err);
		/* Nobody has these files open, so they are never busy. */
		require(rc == US_E_EMPTY || rc == US_E_NOTDB || rc == US_E_CORRUPT ||
			rc == US_E_ACCESS || rc == US_E_CANCELED);
	}
	return rc;
}

/* Names, lengths and times of all files in the directory. */
static inline uint64_t fingerprint_of(int dir_fd)
{
	uint64_t sum = 0;
	struct stat st;
	struct dirent *entry;
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	require(dir);
	while ((entry = readdir(dir))) {
		require(fstatat(dir_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0);
		sum += (st.st_ino * 31 + (uint64_t)st.st_size) * 31 +
		       (uint64_t)st.st_mtim.tv_nsec * 7 + (uint64_t)st.st_ctim.tv_nsec;
		sum += entry->d_name[0] == '.' ? 0 : 1000003;
	}
	(void)closedir(dir);
	return sum;
}

/* -------------------------------------------------------------------- theirs */

static inline int sql(sqlite3 *db, const char *text)
{
	return sqlite3_exec(db, text, NULL, NULL, NULL);
}

/* The length of what an image has of the LEN bytes that SQLite left: up to the header's
 * page count, and the last page whole. */
static inline size_t whole_pages(size_t len)
{
	const uint8_t *header = t.recovered;
	uint64_t page_size = len >= 100 ? header_page_size(header) : 0;
	uint64_t said = page_size * us_get_be32(header + 28);
	if (said && said <= len && memcmp(header + 24, header + 92, 4) == 0) {
		return (size_t)said;
	}
	size_t rest = page_size ? len % page_size : 0;
	if (rest && len + page_size - rest <= IMAGE_LEN_MAX) {
		memset(t.recovered + len, 0, page_size - rest);
		len += page_size - rest;
	}
	return len;
}

/* Recovers the other copy; its bytes, cut to the header's page count, are in t.recovered.
 * SQLITE_OK, or why SQLite does not take it. */
static inline int recover_theirs(size_t *ret_len)
{
	char path[SCRATCH_LEN + 32];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/x.db", t.theirs);
	int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);
	if (rc == SQLITE_OK) {
		/* writable_schema: whatever the tables look like. */
		rc = sql(db, "PRAGMA writable_schema=ON; PRAGMA synchronous=OFF;"
			     "PRAGMA user_version");
	}
	if (rc == SQLITE_OK) {
		rc = sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
	}
	(void)sqlite3_close(db);
	t.left_len = get_file(t.theirs_fd, "x.db", t.recovered, IMAGE_LEN_MAX);
	*ret_len = whole_pages(t.left_len);
	return rc;
}

/* Whether SQLite finds nothing wrong with what it has recovered. To it, a file that ends
 * early goes on with zeros, a very short one is an empty database, and a journal may have
 * other pages; not to us. */
static inline int is_sound(void)
{
	if ((t.journal_page_size && t.journal_page_size != header_page_size(t.recovered)) ||
	    t.left_len < 512 ||
	    t.left_len < (uint64_t)header_page_size(t.recovered) * us_get_be32(t.recovered + 28)) {
		return 0;
	}
	char path[SCRATCH_LEN + 32];
	sqlite3 *db;
	sqlite3_stmt *stmt = NULL;
	(void)snprintf(path, sizeof(path), "%s/x.db", t.theirs);
	int sound =
		sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK &&
		sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL) == SQLITE_OK &&
		sqlite3_step(stmt) == SQLITE_ROW &&
		strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
	(void)sqlite3_finalize(stmt);
	(void)sqlite3_close(db);
	return sound;
}

/* Whether both agree; a sound database is not refused. */
static inline int is_agreed(int32_t ours, int theirs, size_t len)
{
	if (ours == 0) {
		return theirs != SQLITE_OK ||
		       (len == t.image_len && memcmp(t.recovered, t.image, len) == 0);
	}
	if (ours == US_E_EMPTY) {
		return len == 0;
	}
	return ours == US_E_CANCELED || ours == US_E_ACCESS || theirs != SQLITE_OK || !is_sound();
}

/* Puts the database (up to DB_LEN filled with zeros), its WAL and its journal on both
 * sides; a NULL is no file. */
static inline void put_files(char *const files[FILE_COUNT], const size_t lens[FILE_COUNT],
			     size_t db_len)
{
	for (size_t i = 0; i < FILE_COUNT; i++) {
		size_t len = i == FILE_DB ? db_len : 0;
		put_file(t.ours_fd, file_names[i], files[i], lens[i], len);
		put_file(t.theirs_fd, file_names[i], files[i], lens[i], len);
	}
	(void)unlinkat(t.theirs_fd, "x.db-shm", 0);
}

/* Reads and recovers what put_files has put. */
static inline void check_files(void)
{
	struct us_error err = US_ERROR_INIT;
	uint64_t before = fingerprint_of(t.ours_fd);
	int32_t rc = read_ours(&err);
	require(fingerprint_of(t.ours_fd) == before);
	size_t len, at = 0;
	int theirs = recover_theirs(&len);
	if (!is_agreed(rc, theirs, len)) {
		while (at < len && at < t.image_len && t.image[at] == t.recovered[at]) {
			at++;
		}
		(void)fprintf(stderr,
			      "ours %d (%s), %zu bytes; SQLite %d (%s), %zu bytes; equal up to "
			      "%zu\n",
			      rc, err.message, t.image_len, theirs, sqlite3_errstr(theirs), len,
			      at);
		abort();
	}
}

#endif
