/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The write-ahead log, read as walIndexRecover() in SQLite's wal.c reads it.
 * Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. All fields
 * are big-endian.
 *
 *   header (32)   0 magic 0x377f0682, or ..83: checksums over big-endian words
 *                 4 format version 3007000     8 page size
 *                12 checkpoint sequence       16 salt-1, salt-2
 *                24 checksum of bytes 0..23
 *   frame (24 + page size), from offset 32 on
 *                 0 page number                4 commit: image size in pages, else 0
 *                 8 salt-1, salt-2            16 checksum
 *                24 the page
 *
 * A frame is valid if its salts are the header's and its checksum continues that
 * of the frame before over its first 8 bytes and its page. Frames of an older
 * generation that a restarted WAL has not reached yet fail the salts; a torn or
 * half-written frame, and one of a transaction that was rolled back and partly
 * overwritten, fails the checksum. Everything up to the last valid commit frame
 * is the overlay.
 */
#include "wal.h"

#include <string.h>

#include "../base/bytes.h"

#define WAL_MAGIC UINT32_C(0x377f0682)
#define PAGE_SIZE_MIN 512u
#define PAGE_SIZE_MAX 65536u

/* LEN is a multiple of 8. */
static void add_sum(struct us_wal_sum *sum, const uint8_t *data, size_t len, int big_endian)
{
	uint32_t s0 = sum->s0, s1 = sum->s1;
	if (big_endian) {
		for (size_t i = 0; i < len; i += 8) {
			s0 += us_get_be32(data + i) + s1;
			s1 += us_get_be32(data + i + 4) + s0;
		}
	} else {
		for (size_t i = 0; i < len; i += 8) {
			s0 += us_get_le32(data + i) + s1;
			s1 += us_get_le32(data + i + 4) + s0;
		}
	}
	*sum = (struct us_wal_sum){ s0, s1 };
}

int us_wal_header_parse(const uint8_t *bytes, size_t len, struct us_wal_header *ret_header)
{
	if (len < US_WAL_HEADER_LEN) {
		return 0;
	}
	uint32_t magic = us_get_be32(bytes);
	uint32_t page_size = us_get_be32(bytes + 8);
	if ((magic & ~UINT32_C(1)) != WAL_MAGIC || page_size < PAGE_SIZE_MIN ||
	    page_size > PAGE_SIZE_MAX || (page_size & (page_size - 1))) {
		return 0;
	}
	struct us_wal_header header = {
		.page_size = page_size,
		.version = us_get_be32(bytes + 4),
		.big_endian = magic & 1,
	};
	add_sum(&header.sum, bytes, 24, header.big_endian);
	if (header.sum.s0 != us_get_be32(bytes + 24) || header.sum.s1 != us_get_be32(bytes + 28)) {
		return 0;
	}
	memcpy(header.bytes, bytes, US_WAL_HEADER_LEN);
	*ret_header = header;
	return 1;
}

void us_wal_scan_init(struct us_wal_scan *scan, const struct us_wal_header *header,
		      struct us_overlay *overlay)
{
	*scan = (struct us_wal_scan){ .header = *header, .sum = header->sum };
	overlay->count = 0;
	overlay->stride = US_WAL_FRAME_HEADER_LEN + header->page_size;
	overlay->start = US_WAL_HEADER_LEN + US_WAL_FRAME_HEADER_LEN;
}

/* 1 and the sum continued if FRAME (header and page) follows in this generation. */
static int frame_is_next(struct us_wal_scan *scan, const uint8_t *frame)
{
	if (memcmp(frame + 8, scan->header.bytes + 16, 8) != 0 || us_get_be32(frame) == 0) {
		return 0;
	}
	struct us_wal_sum sum = scan->sum;
	add_sum(&sum, frame, 8, scan->header.big_endian);
	add_sum(&sum, frame + US_WAL_FRAME_HEADER_LEN, scan->header.page_size,
		scan->header.big_endian);
	if (sum.s0 != us_get_be32(frame + 16) || sum.s1 != us_get_be32(frame + 20)) {
		return 0;
	}
	scan->sum = sum;
	return 1;
}

static uint64_t frames_len(const struct us_wal_scan *scan, uint32_t frame_count)
{
	uint64_t frame_len = US_WAL_FRAME_HEADER_LEN + scan->header.page_size;
	return US_WAL_HEADER_LEN + frame_count * frame_len;
}

int us_wal_scan_has_ended(const struct us_wal_scan *scan, uint64_t len)
{
	/* Frame numbers are 32 bits in SQLite too. */
	return scan->frame_count == UINT32_MAX || frames_len(scan, scan->frame_count + 1) <= len;
}

uint64_t us_wal_scan_len(const struct us_wal_scan *scan)
{
	return frames_len(scan, scan->committed_frames);
}

int32_t us_wal_scan_run(struct us_wal_scan *scan, struct us_window *window,
			struct us_overlay *overlay, struct us_error *err)
{
	size_t frame_len = overlay->stride;
	while (scan->frame_count < UINT32_MAX) {
		const uint8_t *frame;
		uint64_t off = frames_len(scan, scan->frame_count);
		int32_t rc = us_window_view(window, off, frame_len, &frame, err);
		if (rc) {
			return rc;
		}
		if (!frame || !frame_is_next(scan, frame)) {
			break;
		}
		rc = us_overlay_add(overlay, us_get_be32(frame), scan->frame_count, err);
		if (rc) {
			return rc;
		}
		scan->frame_count++;
		uint32_t commit_pages = us_get_be32(frame + 4);
		if (commit_pages) {
			scan->page_count = commit_pages;
			scan->committed_frames = scan->frame_count;
		}
	}
	return 0;
}

void us_wal_scan_finish(struct us_wal_scan *scan, struct us_overlay *overlay)
{
	overlay->count = scan->committed_frames; /* one key each */
	us_overlay_seal(overlay);
}
