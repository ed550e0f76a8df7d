/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_OVERLAY_H
#define US_READ_OVERLAY_H

#include <stddef.h>

#include "../base/error.h"
#include "source.h"

/*
 * Where other versions of pages lie: in a WAL or a rollback journal. One key of
 * 64 bits for each page version: page number above, place below, so that sorted
 * keys are in page order and, of one page, in file order. The version that lies
 * last in the file is the one that counts, in both formats.
 */
struct us_overlay {
	uint64_t *keys;
	size_t count, cap;
	struct us_source source; /* the file the places are in */
	uint64_t start;          /* a version's data is at start + place * stride */
	uint32_t stride;
};

/* Keeps the memory of KEYS, up to a limit: overlays are used again and again. */
void us_overlay_reset(struct us_overlay *overlay);
void us_overlay_done(struct us_overlay *overlay);

/* Adds a version; a place must be larger than those of the same page before it.
 * 0 or US_E_NOMEM. */
int32_t us_overlay_add(struct us_overlay *overlay, uint32_t pgno, uint32_t place,
		       struct us_error *err);
/* Sorts by page and drops all versions of a page but the last. After that: */
void us_overlay_seal(struct us_overlay *overlay);

/* the index of the first key whose page is PGNO or higher, CURSOR or later. */
size_t us_overlay_seek(const struct us_overlay *overlay, size_t cursor, uint32_t pgno);
/* the page of a key; UINT32_MAX (no legal page number) behind the last. */
uint32_t us_overlay_pgno(const struct us_overlay *overlay, size_t cursor);
/* where in the source the data of a key begins. */
uint64_t us_overlay_off(const struct us_overlay *overlay, size_t cursor);

#endif
