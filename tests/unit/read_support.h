/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_READ_SUPPORT_H
#define US_TESTS_READ_SUPPORT_H

/* What the two tests of csrc/read share: a sink that keeps the image, whole
 * files in memory, a seeded random number generator, and SQL that must work. */

#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../csrc/read/image.h"
#include "scratch.h"

#define PATH_LEN (SCRATCH_LEN + 128)

struct image {
	uint8_t *data;
	size_t len, cap, longest; /* LONGEST: bytes of one write */
	int begins, writes;
	struct us_image_info info;
};

static int32_t image_begin(void *arg, const struct us_image_info *info, struct us_error *err)
{
	struct image *image = arg;
	(void)err;
	image->len = 0;
	image->begins++;
	image->info = *info;
	return 0;
}

static int32_t image_write(void *arg, const uint8_t *data, size_t len, struct us_error *err)
{
	struct image *image = arg;
	if (image->len + len > image->cap) {
		size_t cap = (image->len + len) * 2;
		uint8_t *more = realloc(image->data, cap);
		if (!more) {
			return us_fail_nomem(err);
		}
		image->data = more;
		image->cap = cap;
	}
	memcpy(image->data + image->len, data, len);
	image->len += len;
	image->writes++;
	image->longest = len > image->longest ? len : image->longest;
	return 0;
}

/* Reads the database REL below the directory DIR. */
static int32_t image_read(struct us_reader *reader, const char *dir, const char *rel, int patient,
			  struct image *image, struct us_error *err)
{
	struct stat st = { 0 };
	int prefix_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (prefix_fd < 0) {
		return US_E_IO;
	}
	(void)fstatat(prefix_fd, rel, &st, AT_SYMLINK_NOFOLLOW);
	const struct us_read_source source = {
		.prefix_fd = prefix_fd,
		.rel = rel,
		.display = rel,
		.inode = st.st_ino,
		.patient = patient,
	};
	const struct us_image_sink sink = { image_begin, image_write, image };
	struct us_image_info info;
	int32_t rc = us_read_image(reader, &source, &sink, &info, err);
	if (!rc) {
		image->info = info;
	}
	(void)close(prefix_fd);
	return rc;
}

static inline void image_done(struct image *image)
{
	free(image->data);
	*image = (struct image){ 0 };
}

struct bytes {
	uint8_t *data;
	size_t len;
	int exists;
};

static inline struct bytes bytes_load(const char *path)
{
	struct bytes b = { 0 };
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		return b;
	}
	b.data = malloc((size_t)st.st_size + 1);
	ssize_t n = b.data ? read(fd, b.data, (size_t)st.st_size) : -1;
	b.len = n > 0 ? (size_t)n : 0;
	b.exists = 1;
	(void)close(fd);
	return b;
}

static inline void bytes_store(const struct bytes *b, const char *path)
{
	(void)unlink(path);
	if (!b->exists) {
		return;
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (fd < 0 || write(fd, b->data, b->len) != (ssize_t)b->len || close(fd)) {
		abort();
	}
}

static inline void bytes_free(struct bytes *b)
{
	free(b->data);
	*b = (struct bytes){ 0 };
}

/* xorshift64*: the same sequence for the same seed. */
static uint64_t rng_state = 88172645463325252u;

static inline uint32_t rng(uint32_t below)
{
	rng_state ^= rng_state >> 12;
	rng_state ^= rng_state << 25;
	rng_state ^= rng_state >> 27;
	return (uint32_t)((rng_state * 2685821657736338717u) >> 33) % below;
}

__attribute__((format(printf, 2, 3))) static int sql(sqlite3 *db, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	char *text = sqlite3_vmprintf(format, args);
	va_end(args);
	int rc = sqlite3_exec(db, text, NULL, NULL, NULL);
	sqlite3_free(text);
	return rc;
}

/* First column of the first row as a number; -1 on error. */
static inline int64_t sql_int(sqlite3 *db, const char *text)
{
	sqlite3_stmt *stmt = NULL;
	int64_t value = -1;
	if (sqlite3_prepare_v2(db, text, -1, &stmt, NULL) == SQLITE_OK &&
	    sqlite3_step(stmt) == SQLITE_ROW) {
		value = sqlite3_column_int64(stmt, 0);
	}
	(void)sqlite3_finalize(stmt);
	return value;
}

/* An image opened in memory; NULL if SQLite does not take it. IMAGE is changed:
 * a database in WAL mode cannot be one in memory. */
static inline sqlite3 *image_open(struct image *image)
{
	sqlite3 *db = NULL;
	image->data[18] = image->data[19] = 1;
	if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK ||
	    sqlite3_deserialize(db, "main", image->data, (sqlite3_int64)image->len,
				(sqlite3_int64)image->len,
				SQLITE_DESERIALIZE_READONLY) != SQLITE_OK) {
		(void)sqlite3_close(db);
		return NULL;
	}
	return db;
}

static inline int image_is_sound(struct image *image)
{
	sqlite3 *db = image_open(image);
	sqlite3_stmt *stmt = NULL;
	int sound =
		db &&
		sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL) == SQLITE_OK &&
		sqlite3_step(stmt) == SQLITE_ROW &&
		strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0;
	(void)sqlite3_finalize(stmt);
	(void)sqlite3_close(db);
	return sound;
}

static inline int remove_tree(const char *root)
{
	char command[PATH_LEN + 16];
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
	FILE *p = popen(command, "r");
	return p ? pclose(p) : -1;
}

#endif
