/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joins base and overlays. The fields of the database header (all big-endian) are
 * taken from page 1 of the image, which may lie in the WAL:
 *
 *    0  "SQLite format 3" and a NUL
 *   16  page size, 2 bytes; 1 means 65536
 *   24  change counter
 *   28  size in pages, if not 0 and if
 *   92  ("version valid for") equals the change counter
 *
 * The size of the image is that field, else what the WAL's last commit, or the
 * length of the file, says. A page that is nowhere is damage, with two
 * exceptions that SQLite's own file has as holes: the lock page at 1 GiB, which
 * is never written, and what a rollback adds to a file that had been shortened.
 */
#include "compose.h"

#include <string.h>

#include "../base/bytes.h"

#define DB_HEADER_LEN 100
#define PAGE_SIZE_MIN 512u
#define PAGE_SIZE_MAX 65536u
#define LOCK_BYTE UINT32_C(0x40000000)
#define PAGES_MAX UINT32_C(0xfffffffe)

static const char db_magic[16] = "SQLite format 3";

/* Page 1's header from where the image has it; count of bytes, or US_E_*. */
static int64_t read_header(const struct us_compose *m, uint8_t ret[DB_HEADER_LEN],
			   struct us_error *err)
{
	if (m->wal_page_count && us_overlay_pgno(m->wal, 0) == 1) {
		return us_source_read(&m->wal->source, us_overlay_off(m->wal, 0), ret,
				      DB_HEADER_LEN, m->display, err);
	}
	if (m->journal_page_size && us_overlay_pgno(m->journal, 0) == 1) {
		return us_source_read(&m->journal->source, us_overlay_off(m->journal, 0), ret,
				      DB_HEADER_LEN, m->display, err);
	}
	if (m->base_len < PAGE_SIZE_MIN) {
		return 0;
	}
	return us_source_read(&m->base, 0, ret, DB_HEADER_LEN, m->display, err);
}

static int32_t check_page_size(const struct us_compose *m, uint32_t page_size, struct us_error *err)
{
	if (page_size < PAGE_SIZE_MIN || (page_size & (page_size - 1))) {
		return us_fail(err, US_E_CORRUPT, "the header of \"%s\" says page size %u",
			       m->display, page_size);
	}
	if (m->wal_page_count && m->wal_page_size != page_size) {
		return us_fail(err, US_E_CORRUPT, "\"%s\" has pages of %u bytes, its -wal of %u",
			       m->display, page_size, m->wal_page_size);
	}
	if (m->journal_page_size && m->journal_page_size != page_size) {
		return us_fail(err, US_E_CORRUPT,
			       "\"%s\" has pages of %u bytes, its -journal of %u", m->display,
			       page_size, m->journal_page_size);
	}
	return 0;
}

/* The size in pages of what there is, and the size the header says: into IMAGE. */
static int32_t choose_page_count(struct us_compose *m, const uint8_t *header, struct us_error *err)
{
	uint64_t there = m->wal_page_count ? m->wal_page_count
					   : (m->base_len + m->page_size - 1) / m->page_size;
	uint32_t said = us_get_be32(header + 28);
	int is_valid = said != 0 && memcmp(header + 24, header + 92, 4) == 0;
	uint64_t count = is_valid ? said : there;
	if (count > there || count > PAGES_MAX ||
	    (is_valid && !m->wal_page_count && m->base_len < count * m->page_size)) {
		return us_fail(
			err, US_E_CORRUPT,
			"\"%s\" is shorter than its header says: %llu pages of %u bytes, not %u",
			m->display, (unsigned long long)(m->base_len / m->page_size), m->page_size,
			said);
	}
	m->page_count = (uint32_t)count;
	return 0;
}

int32_t us_compose_resolve(struct us_compose *m, struct us_error *err)
{
	uint8_t header[DB_HEADER_LEN];
	if (m->base_len == 0) {
		return us_fail(err, US_E_EMPTY, "\"%s\" is empty: its only transaction was cut off",
			       m->display);
	}
	int64_t n = read_header(m, header, err);
	if (n < 0) {
		return (int32_t)n;
	}
	if (n < DB_HEADER_LEN || memcmp(header, db_magic, sizeof(db_magic)) != 0) {
		return us_fail(err, US_E_NOTDB, "\"%s\" is not an SQLite database", m->display);
	}
	uint32_t page_size = us_get_be16(header + 16);
	page_size = page_size == 1 ? PAGE_SIZE_MAX : page_size;
	int32_t rc = check_page_size(m, page_size, err);
	if (rc) {
		return rc;
	}
	m->page_size = page_size;
	m->change_counter = us_get_be32(header + 24);
	return choose_page_count(m, header, err);
}

struct writer {
	struct us_compose *image;
	const struct us_image_sink *sink;
	uint8_t *buf;
	size_t cap, len; /* CAP is a multiple of the page size */
	struct us_error *err;
};

static int32_t hand_over(struct writer *w, const uint8_t *data, size_t len)
{
	int32_t rc = w->sink->write(w->sink->arg, data, len, w->err);
	w->image->sink_failed = rc != 0;
	return rc;
}

static int32_t flush(struct writer *w)
{
	size_t len = w->len;
	w->len = 0;
	return len ? hand_over(w, w->buf, len) : 0;
}

/* Appends LEN bytes of SOURCE, all of which must be there. */
static int32_t append(struct writer *w, const struct us_source *source, uint64_t off, size_t len)
{
	int64_t n = us_source_read(source, off, w->buf + w->len, len, w->image->display, w->err);
	if (n < 0) {
		return (int32_t)n;
	}
	if ((size_t)n < len) {
		return us_fail(w->err, US_E_CORRUPT, "\"%s\" or a file beside it ends early",
			       w->image->display);
	}
	w->len += len;
	return 0;
}

static int32_t put_version(struct writer *w, const struct us_overlay *overlay, size_t cursor)
{
	if (w->len == w->cap) {
		int32_t rc = flush(w);
		if (rc) {
			return rc;
		}
	}
	return append(w, &overlay->source, us_overlay_off(overlay, cursor), w->image->page_size);
}

/* How many of the pages from PGNO up to STOP the base has; zeros for the rest
 * are in order only where SQLite's file would have a hole. */
static int32_t count_base_pages(const struct writer *w, uint32_t pgno, uint32_t stop,
				uint32_t *ret_count)
{
	const struct us_compose *m = w->image;
	/* Beside a WAL a last page that is cut off must be in the WAL. */
	uint64_t has = (m->base_len + (m->wal_page_count ? 0 : m->page_size - 1)) / m->page_size;
	if (pgno <= has) {
		*ret_count = has < stop ? (uint32_t)(has - pgno + 1) : stop - pgno;
		return 0;
	}
	if (pgno == LOCK_BYTE / m->page_size + 1) {
		*ret_count = 1;
		return 0;
	}
	return us_fail(w->err, US_E_CORRUPT, "page %u of \"%s\" is neither there nor in its -wal",
		       pgno, m->display);
}

/* Appends COUNT pages that fit the buffer: base bytes, then zeros. */
static int32_t put_base_piece(struct writer *w, uint32_t pgno, uint32_t count)
{
	const struct us_compose *m = w->image;
	uint64_t off = (uint64_t)(pgno - 1) * m->page_size;
	size_t len = (size_t)count * m->page_size;
	size_t there = off >= m->base.len        ? 0
		       : m->base.len - off < len ? (size_t)(m->base.len - off)
						 : len;
	int32_t rc = append(w, &m->base, off, there);
	if (rc) {
		return rc;
	}
	memset(w->buf + w->len, 0, len - there);
	w->len += len - there;
	return 0;
}

/* The pages from PGNO up to STOP, none of which is in an overlay. */
static int32_t put_base(struct writer *w, uint32_t pgno, uint32_t stop)
{
	const struct us_compose *m = w->image;
	while (pgno < stop) {
		uint32_t count = 0;
		int32_t rc = count_base_pages(w, pgno, stop, &count);
		if (rc) {
			return rc;
		}
		uint64_t off = (uint64_t)(pgno - 1) * m->page_size;
		uint64_t len = (uint64_t)count * m->page_size;
		if (m->base.mem && w->len == 0 && off + len <= m->base.len &&
		    (len >= w->cap || count == m->page_count)) {
			rc = hand_over(w, m->base.mem + off, (size_t)len);
		} else {
			uint32_t room = (uint32_t)((w->cap - w->len) / m->page_size);
			count = count < room ? count : room;
			rc = put_base_piece(w, pgno, count);
			if (!rc && w->len == w->cap) {
				rc = flush(w);
			}
		}
		if (rc) {
			return rc;
		}
		pgno += count;
	}
	return 0;
}

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

int32_t us_compose_write(struct us_compose *m, const struct us_image_sink *sink, uint8_t *buf,
			 size_t buf_len, struct us_error *err)
{
	static const struct us_overlay nothing = { 0 };
	const struct us_overlay *wal = m->wal_page_count ? m->wal : &nothing;
	const struct us_overlay *journal = m->journal_page_size ? m->journal : &nothing;
	struct writer w = { m, sink, buf, buf_len - buf_len % m->page_size, 0, err };
	size_t in_wal = 0, in_journal = 0;
	uint32_t end = m->page_count + 1;
	int32_t rc = 0;
	for (uint32_t pgno = 1; !rc && pgno < end;) {
		in_wal = us_overlay_seek(wal, in_wal, pgno);
		in_journal = us_overlay_seek(journal, in_journal, pgno);
		uint32_t next_wal = us_overlay_pgno(wal, in_wal);
		uint32_t next_journal = us_overlay_pgno(journal, in_journal);
		if (next_wal == pgno) {
			rc = put_version(&w, wal, in_wal);
			pgno++;
		} else if (next_journal == pgno) {
			rc = put_version(&w, journal, in_journal);
			pgno++;
		} else {
			uint32_t stop = least(end, least(next_wal, next_journal));
			rc = put_base(&w, pgno, stop);
			pgno = stop;
		}
	}
	return rc ? rc : flush(&w);
}
