/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Object -> file. Bytes go from the target through the decoder to the file as
 * they come; memory is the decoder's, whatever the size. Nothing is believed
 * before us_decoder_end has compared the hashes; what goes to disk until then is
 * bounded by LZ4's ratio (at most 255 bytes out of one), so a frame that promises
 * a terabyte is refused at its header.
 *
 * A small object that turns out to be bad is taken to its end: only if it is as long as it
 * was listed is it the object that is bad, and an older one worth looking for. Else
 * something on the way gave an answer of its own.
 *
 * A large object comes in parts, PARTS_MAX at a time, through the store's pool:
 * memory is PARTS_MAX parts whatever its size. A part that fails for the
 * network's sake is asked for again, up to PART_TRIES_MAX times.
 *
 * Fields of the SQLite header (fileformat2.html, 1.3) that are compared:
 *
 *	 0  16	"SQLite format 3\0"
 *	16  be16 page size, 1 means 65536
 *	24  be32 change counter
 *	28  be32 size in pages, valid if not 0 and 92 equals 24
 *	92  be32 version-valid-for
 *
 * The integrity check runs in SQLite on that very file (fd_vfs.c): no name, no lock, no
 * side file, and bytes 18-19 (WAL mode) do not matter.
 */
#include "fetch.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/bytes.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "fd_vfs.h"

#define LZ4_RATIO_MAX 256
#define IMAGE_LEN_SPARE 65536
#define HEADER_LEN 100
#define PARTS_MAX 4
#define PART_LEN_LEAST (UINT64_C(512) << 10)
#define PART_LEN_MOST (UINT64_C(8) << 20)
#define PART_WAIT_MS 1000
#define PART_TRIES_MAX 5
#define PART_PAUSE_NS (250 * US_NS_PER_MS)
#define PROGRESS_STEPS 100000 /* of SQLite's machine between two looks at cancel */

struct us_fetch {
	const _Atomic uint32_t *cancel;
	struct us_decoder *decoder;
	const char *shown;
	int fd;
	off_t off;                      /* of what comes next */
	uint64_t object_len, taken_len; /* as listed, and as it comes */
	struct us_error bad;            /* what is wrong with it; code 0: nothing yet */
	size_t header_len;
	uint8_t header[HEADER_LEN];
};

static const uint8_t magic[16] = "SQLite format 3";

static int32_t write_all(struct us_fetch *f, const uint8_t *data, size_t data_len,
			 struct us_error *err)
{
	while (data_len > 0) {
		ssize_t n = pwrite(f->fd, data, data_len, f->off);
		if (n < 0 && errno != EINTR) {
			return us_fail_errno(err, errno,
					     "cannot write the restored file beside \"%s\"",
					     f->shown);
		}
		if (n > 0) {
			data += n;
			data_len -= (size_t)n;
			f->off += n;
		}
	}
	return 0;
}

static int32_t take_image(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct us_fetch *f = arg;
	int32_t rc = us_check_cancel(f->cancel, err);
	if (rc) {
		return rc;
	}
	if (f->header_len < HEADER_LEN) {
		size_t room = HEADER_LEN - f->header_len;
		size_t len = data_len < room ? data_len : room;
		memcpy(f->header + f->header_len, data, len);
		f->header_len += len;
	}
	size_t known = f->header_len < sizeof(magic) ? f->header_len : sizeof(magic);
	if (memcmp(f->header, magic, known) != 0) {
		return us_fail(err, US_E_OBJECT, "what it holds is no SQLite database");
	}
	return write_all(f, data, data_len, err);
}

static int32_t check_header(const struct us_fetch *f, const struct us_trailer *trailer,
			    struct us_error *err)
{
	const uint8_t *header = f->header;
	if (f->header_len < HEADER_LEN || memcmp(header, magic, sizeof(magic)) != 0) {
		return us_fail(err, US_E_OBJECT, "what it holds is no SQLite database");
	}
	uint32_t page_size = us_get_be16(header + 16);
	page_size = page_size == 1 ? 65536 : page_size;
	if (page_size < 512 || (page_size & (page_size - 1)) != 0 ||
	    page_size != trailer->page_size) {
		return us_fail(err, US_E_OBJECT, "page size %u in its database, %u in its trailer",
			       page_size, trailer->page_size);
	}
	uint64_t page_count = us_get_be32(header + 28);
	if (page_count == 0 || us_get_be32(header + 24) != us_get_be32(header + 92)) {
		page_count = trailer->database_len / page_size;
	}
	if (page_count * page_size != trailer->database_len) {
		return us_fail(err, US_E_OBJECT,
			       "its database has %llu bytes, not %llu pages of %u",
			       (unsigned long long)trailer->database_len,
			       (unsigned long long)page_count, page_size);
	}
	return 0;
}

int32_t us_fetch_new(struct us_fetch **ret_fetch, struct us_error *err)
{
	struct us_fetch *f = us_alloc_zero(sizeof(*f));
	if (!f) {
		return us_fail_nomem(err);
	}
	int32_t rc = us_decoder_new(take_image, f, 0, &f->decoder, err);
	if (rc) {
		us_free(f);
		return rc;
	}
	*ret_fetch = f;
	return 0;
}

void us_fetch_free(struct us_fetch *f)
{
	if (f) {
		us_decoder_free(f->decoder);
		us_free(f);
	}
}

int32_t us_fetch_begin(struct us_fetch *f, uint64_t object_len, int fd, const char *shown,
		       const _Atomic uint32_t *cancel, struct us_error *err)
{
	uint64_t image_len_max = UINT64_MAX;
	if (object_len < (UINT64_MAX - IMAGE_LEN_SPARE) / LZ4_RATIO_MAX) {
		image_len_max = object_len * LZ4_RATIO_MAX + IMAGE_LEN_SPARE;
	}
	struct stat st;
	if (fstat(fd, &st) || (st.st_size > 0 && ftruncate(fd, 0))) {
		return us_fail_errno(err, errno, "cannot write the restored file beside \"%s\"",
				     shown);
	}
	f->cancel = cancel;
	f->shown = shown;
	f->fd = fd;
	f->off = 0;
	f->object_len = object_len;
	f->taken_len = 0;
	f->bad = (struct us_error)US_ERROR_INIT;
	f->header_len = 0;
	us_decoder_reset(f->decoder, f, image_len_max);
	return 0;
}

int32_t us_fetch_feed(struct us_fetch *f, const uint8_t *data, size_t data_len,
		      struct us_error *err)
{
	return us_decoder_write(f->decoder, data, data_len, err);
}

int32_t us_fetch_end(struct us_fetch *f, struct us_trailer *ret_trailer, struct us_error *err)
{
	int32_t rc = us_decoder_end(f->decoder, ret_trailer, err);
	return rc ? rc : check_header(f, ret_trailer, err);
}

/* -------------------------------------------------------------------- download */

uint64_t us_fetch_part_len(uint64_t memory_len)
{
	uint64_t len = memory_len / PARTS_MAX;
	return len < PART_LEN_LEAST ? PART_LEN_LEAST : len > PART_LEN_MOST ? PART_LEN_MOST : len;
}

static int32_t take_object(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct us_fetch *f = arg;
	f->taken_len += data_len;
	if (!f->bad.code) {
		int32_t rc = us_fetch_feed(f, data, data_len, &f->bad);
		if (rc != US_E_OBJECT || f->object_len >= US_FETCH_PARTS_LEN_MIN) {
			if (rc && err) {
				*err = f->bad;
			}
			return rc;
		}
	}
	return f->taken_len > f->object_len ? us_fail(err, US_E_BUSY, "it is longer than listed")
					    : us_check_cancel(f->cancel, err);
}

static int32_t fail_length(const struct us_choice *choice, struct us_error *err)
{
	char shown[US_ESCAPE_SHOW_LEN];
	return us_fail(err, US_E_BUSY,
		       "backup \"%s\" came with another length than the %llu bytes listed",
		       us_escape_show(choice->key, strlen(choice->key), shown),
		       (unsigned long long)choice->object_len);
}

/* The whole object in one answer. */
static int32_t download_whole(struct us_fetch *f, const struct us_origin *o,
			      const struct us_choice *choice, uint64_t *ret_len,
			      struct us_trailer *ret_trailer, struct us_error *err)
{
	int32_t rc = o->store->ops->get(o->store, choice->key, 0, UINT64_MAX, take_object, f,
					ret_len, err);
	if (rc) {
		return rc == US_E_BUSY ? fail_length(choice, err) : rc;
	}
	if (!f->bad.code) {
		(void)us_fetch_end(f, ret_trailer, &f->bad); /* its code is there */
	}
	if (f->bad.code == US_E_OBJECT && f->taken_len != f->object_len) {
		return fail_length(choice, err);
	}
	if (f->bad.code && err) {
		*err = f->bad;
	}
	return f->bad.code;
}

uint64_t us_fetch_request_count(uint64_t object_len, uint64_t part_len)
{
	return object_len < US_FETCH_PARTS_LEN_MIN ? 1 : (object_len + part_len - 1) / part_len;
}

struct part {
	struct us_get get;
	uint8_t *data;
	uint32_t tries;
	int busy; /* with the store */
};

/* A download in parts: PARTS_MAX of them in flight, fed to the decoder in order. */
struct parts {
	struct us_store *store;
	const char *key;
	uint64_t object_len;
	uint64_t part_len;
	uint64_t started_off; /* what is behind it was not asked for yet */
	struct us_get_queue queue;
	struct part parts[PARTS_MAX];
};

static void start_part(struct parts *p, struct part *part)
{
	part->busy = 1;
	part->tries++;
	us_error_clear(&part->get.err);
	p->store->ops->get_start(p->store, &part->get);
}

/* The next part of the object goes to PART, which is free. */
static void start_next(struct parts *p, struct part *part)
{
	uint64_t left = p->object_len - p->started_off;
	uint64_t len = left < p->part_len ? left : p->part_len;
	if (len == 0) {
		return;
	}
	part->get = (struct us_get){ .key = p->key,
				     .offset = p->started_off,
				     .len = len,
				     .object_len = p->object_len,
				     .data = part->data,
				     .queue = &p->queue,
				     .owner = part,
				     .err = US_ERROR_INIT };
	part->tries = 0;
	p->started_off += len;
	start_part(p, part);
}

/* Until PART has come back (NULL: all of them). */
static void wait_part(struct parts *p, const struct part *part)
{
	for (;;) {
		int busy = part ? part->busy : 0;
		for (int i = 0; i < PARTS_MAX && !part; i++) {
			busy |= p->parts[i].busy;
		}
		if (!busy) {
			return;
		}
		struct us_get *get = us_get_queue_wait(&p->queue, PART_WAIT_MS);
		for (; get; get = get->next) {
			((struct part *)get->owner)->busy = 0;
		}
	}
}

static int is_transient(int32_t rc, const struct us_error *err)
{
	return rc == US_E_NETWORK || rc == US_E_TIMEOUT || (rc == US_E_HTTP && err->retryable);
}

static int32_t take_parts(struct us_fetch *f, struct parts *p, struct us_error *err)
{
	for (int i = 0; i < PARTS_MAX; i++) {
		start_next(p, &p->parts[i]);
	}
	uint64_t fed_off = 0;
	for (int i = 0; fed_off < p->object_len; i = (i + 1) % PARTS_MAX) {
		struct part *part = &p->parts[i];
		wait_part(p, part);
		while (is_transient(part->get.rc, &part->get.err) && part->tries < PART_TRIES_MAX &&
		       !us_check_cancel(f->cancel, NULL)) {
			us_clock_sleep_ns(PART_PAUSE_NS << part->tries);
			start_part(p, part);
			wait_part(p, part);
		}
		if (part->get.rc) {
			*err = part->get.err;
			return part->get.rc;
		}
		int32_t rc = us_fetch_feed(f, part->data, (size_t)part->get.len, err);
		if (rc) {
			return rc;
		}
		fed_off += part->get.len;
		start_next(p, part);
	}
	return 0;
}

static int32_t download_parts(struct us_fetch *f, const struct us_origin *o,
			      const struct us_choice *choice, struct us_error *err)
{
	struct parts p = { .store = o->store,
			   .key = choice->key,
			   .object_len = choice->object_len,
			   .part_len = o->part_len };
	int32_t rc = us_get_queue_init(&p.queue, err);
	if (rc) {
		return rc;
	}
	for (int i = 0; i < PARTS_MAX && !rc; i++) {
		p.parts[i].data = us_alloc((size_t)p.part_len);
		rc = p.parts[i].data ? 0 : us_fail_nomem(err);
	}
	if (!rc) {
		rc = take_parts(f, &p, err);
		wait_part(&p, NULL);
	}
	for (int i = 0; i < PARTS_MAX; i++) {
		us_free(p.parts[i].data);
	}
	us_get_queue_done(&p.queue);
	return rc;
}

/* One attempt; RET_LEN: bytes of the object. */
static int32_t download(struct us_fetch *f, const struct us_origin *o,
			const struct us_choice *choice, int in_parts, int fd, const char *shown,
			struct us_trailer *ret_trailer, uint64_t *ret_len, struct us_error *err)
{
	int32_t rc = us_fetch_begin(f, choice->object_len, fd, shown, o->cancel, err);
	if (rc || !in_parts) {
		return rc ? rc : download_whole(f, o, choice, ret_len, ret_trailer, err);
	}
	*ret_len = choice->object_len;
	rc = download_parts(f, o, choice, err);
	return rc ? rc : us_fetch_end(f, ret_trailer, err);
}

int32_t us_fetch_object(struct us_fetch *f, const struct us_origin *o, struct us_choice *choice,
			int fd, const char *shown, struct us_trailer *ret_trailer,
			struct us_error *err)
{
	struct us_error own = US_ERROR_INIT; /* read here, wanted or not */
	uint64_t object_len = 0;
	int in_parts = choice->object_len >= US_FETCH_PARTS_LEN_MIN;
	int32_t rc = download(f, o, choice, in_parts, fd, shown, ret_trailer, &object_len, &own);
	if (in_parts && (rc == US_E_OBJECT || rc == US_E_BUSY || rc == US_E_UNSUPPORTED)) {
		/* It may have been replaced between two parts, or the server knows no ranges. */
		us_error_clear(&own);
		rc = download(f, o, choice, 0, fd, shown, ret_trailer, &object_len, &own);
	}
	if (rc && err) {
		*err = own;
	}
	rc = us_choose_name(rc, choice->key, err);
	if (!rc) {
		rc = us_choose_check(o, choice->key, ret_trailer, err);
	}
	if (!rc) {
		choice->object_len = object_len;
	}
	return rc;
}

/* ---------------------------------------------------------- integrity check */

static int on_progress(void *arg)
{
	const _Atomic uint32_t *cancel = arg;
	return cancel && *cancel;
}

static int32_t fail_sqlite(sqlite3 *db, int sqlite_rc, const char *shown, struct us_error *err)
{
	const char *text = db ? sqlite3_errmsg(db) : sqlite3_errstr(sqlite_rc);
	int32_t code;
	switch (sqlite_rc & 0xFF) {
	case SQLITE_NOMEM:
		return us_fail_nomem(err);
	case SQLITE_INTERRUPT:
		return us_fail(err, US_E_CANCELED, "canceled");
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_FORMAT:
		code = US_E_CORRUPT;
		break;
	case SQLITE_IOERR:
	case SQLITE_FULL:
		code = US_E_IO;
		break;
	default:
		code = US_E_UNSUPPORTED;
		break;
	}
	us_fail(err, code, "integrity check of \"%s\" %s: %s", shown,
		code == US_E_CORRUPT ? "failed" : "cannot run", text);
	if (err) {
		err->sqlite_rc = sqlite_rc;
	}
	return code;
}

/* Runs the check on an open database; the first row is "ok" or the first fault. */
static int32_t run_check(sqlite3 *db, const char *sql, const char *shown, struct us_error *err)
{
	sqlite3_stmt *stmt = NULL;
	int32_t rc;
	int sqlite_rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
	if (sqlite_rc == SQLITE_OK) {
		sqlite_rc = sqlite3_step(stmt);
	}
	if (sqlite_rc == SQLITE_ROW) {
		const char *text = (const char *)sqlite3_column_text(stmt, 0);
		rc = !text ? us_fail_nomem(err)
		     : strcmp(text, "ok") == 0
			     ? 0
			     : us_fail(err, US_E_CORRUPT, "integrity check of \"%s\" failed: %s",
				       shown, text);
	} else {
		rc = fail_sqlite(db, sqlite_rc, shown, err);
	}
	(void)sqlite3_finalize(stmt); /* repeats the error of the step */
	return rc;
}

int32_t us_fetch_check(int fd, uint32_t integrity_check, const char *shown,
		       const _Atomic uint32_t *cancel, struct us_error *err)
{
	if (integrity_check == US_INTEGRITY_NONE) {
		return 0;
	}
	sqlite3 *db = NULL;
	int32_t rc;
	int sqlite_rc = us_fd_vfs_open(fd, &db);
	if (sqlite_rc == SQLITE_OK) {
		/* The schema is not trusted: no side effects through views or triggers. */
		(void)sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
		(void)sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
		sqlite3_progress_handler(db, PROGRESS_STEPS, on_progress,
					 (void *)(uintptr_t)cancel);
		rc = run_check(db,
			       integrity_check == US_INTEGRITY_QUICK ? "PRAGMA quick_check(1)"
								     : "PRAGMA integrity_check(1)",
			       shown, err);
	} else {
		rc = fail_sqlite(db, sqlite_rc, shown, err);
	}
	(void)sqlite3_close(db); /* only read from; accepts NULL */
	return rc;
}
