/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_WAL_H
#define US_READ_WAL_H

#include "overlay.h"

#define US_WAL_HEADER_LEN 32
#define US_WAL_FRAME_HEADER_LEN 24

struct us_wal_sum {
	uint32_t s0, s1;
};

struct us_wal_header {
	uint8_t bytes[US_WAL_HEADER_LEN]; /* names the generation: salts, sequence number */
	uint32_t page_size;
	uint32_t version;
	int big_endian; /* byte order of the checksums */
	struct us_wal_sum sum;
};

/* 1 and *RET_HEADER if the first LEN bytes of a WAL are a header that SQLite's
 * recovery would believe, else 0: the WAL holds nothing. */
int us_wal_header_parse(const uint8_t *bytes, size_t len, struct us_wal_header *ret_header);

/* Where the scan of a WAL stands; begin with us_wal_scan_init. */
struct us_wal_scan {
	struct us_wal_header header;
	struct us_wal_sum sum;     /* over all valid frames so far */
	uint32_t frame_count;      /* valid frames so far */
	uint32_t committed_frames; /* those up to the last commit frame */
	uint32_t page_count;       /* image size of the last commit; 0: no commit yet */
};

void us_wal_scan_init(struct us_wal_scan *scan, const struct us_wal_header *header,
		      struct us_overlay *overlay);

/*
 * Adds the valid frames that follow to the overlay, until one is not valid or the
 * source ends. May be called again with a longer source: it goes on from there.
 */
int32_t us_wal_scan_run(struct us_wal_scan *scan, struct us_window *window,
			struct us_overlay *overlay, struct us_error *err);

/* Whether the scan met a frame that is not valid, not only the end of LEN bytes:
 * the rest is left over from an older generation, or not written yet. */
int us_wal_scan_has_ended(const struct us_wal_scan *scan, uint64_t len);
/* Length of the file up to the last commit frame. */
uint64_t us_wal_scan_len(const struct us_wal_scan *scan);

/* Drops what no commit frame follows, and seals the overlay. */
void us_wal_scan_finish(struct us_wal_scan *scan, struct us_overlay *overlay);

#endif
