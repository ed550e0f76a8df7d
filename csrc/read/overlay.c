/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page map: an array of 64-bit keys, sorted in place. glibc's qsort would
 * take a second array of the same size from the heap, which breaks the budget of
 * 8 bytes a frame; heapsort takes none and has no bad case that a crafted WAL
 * could aim at. The keys of one transaction often arrive in order already. The array grows
 * with the frames that are valid, never with the length that a file claims.
 */
#include "overlay.h"

#include "../base/alloc.h"

/* What is kept between uses: 256 KiB, the frames of a 128 MiB WAL of 4 KiB pages. */
#define KEPT_KEYS_MAX ((size_t)32 * 1024)
#define KEYS_MIN ((size_t)256)

void us_overlay_reset(struct us_overlay *overlay)
{
	if (overlay->cap > KEPT_KEYS_MAX) {
		us_overlay_done(overlay);
	}
	overlay->count = 0;
	overlay->source = (struct us_source){ .fd = -1 };
}

void us_overlay_done(struct us_overlay *overlay)
{
	us_free(overlay->keys);
	*overlay = (struct us_overlay){ .source = { .fd = -1 } };
}

static int32_t grow(struct us_overlay *overlay, struct us_error *err)
{
	size_t cap = us_size_add(overlay->cap, overlay->cap / 4 + KEYS_MIN);
	uint64_t *keys = us_realloc(overlay->keys, us_size_mul(cap, sizeof(*keys)));
	if (!keys) {
		return us_fail_nomem(err);
	}
	overlay->keys = keys;
	overlay->cap = cap;
	return 0;
}

int32_t us_overlay_add(struct us_overlay *overlay, uint32_t pgno, uint32_t place,
		       struct us_error *err)
{
	if (overlay->count == overlay->cap) {
		int32_t rc = grow(overlay, err);
		if (rc) {
			return rc;
		}
	}
	overlay->keys[overlay->count++] = (uint64_t)pgno << 32 | place;
	return 0;
}

/* Lets the key at ROOT sink to its place in the heap of COUNT keys. */
static void sift(uint64_t *keys, size_t root, size_t count)
{
	uint64_t key = keys[root];
	for (size_t child; (child = 2 * root + 1) < count; root = child) {
		if (child + 1 < count && keys[child + 1] > keys[child]) {
			child++;
		}
		if (keys[child] <= key) {
			break;
		}
		keys[root] = keys[child];
	}
	keys[root] = key;
}

static int is_sorted(const uint64_t *keys, size_t count)
{
	for (size_t i = 1; i < count; i++) {
		if (keys[i - 1] > keys[i]) {
			return 0;
		}
	}
	return 1;
}

static void sort(uint64_t *keys, size_t count)
{
	if (is_sorted(keys, count)) {
		return;
	}
	for (size_t i = count / 2; i-- > 0;) {
		sift(keys, i, count);
	}
	for (size_t end = count - 1; end > 0; end--) {
		uint64_t largest = keys[0];
		keys[0] = keys[end];
		keys[end] = largest;
		sift(keys, 0, end);
	}
}

void us_overlay_seal(struct us_overlay *overlay)
{
	sort(overlay->keys, overlay->count);
	size_t kept = 0;
	for (size_t i = 0; i < overlay->count; i++) {
		if (i + 1 == overlay->count ||
		    overlay->keys[i] >> 32 != overlay->keys[i + 1] >> 32) {
			overlay->keys[kept++] = overlay->keys[i];
		}
	}
	overlay->count = kept;
}

size_t us_overlay_seek(const struct us_overlay *overlay, size_t cursor, uint32_t pgno)
{
	while (cursor < overlay->count && overlay->keys[cursor] >> 32 < pgno) {
		cursor++;
	}
	return cursor;
}

uint32_t us_overlay_pgno(const struct us_overlay *overlay, size_t cursor)
{
	return cursor < overlay->count ? (uint32_t)(overlay->keys[cursor] >> 32) : UINT32_MAX;
}

uint64_t us_overlay_off(const struct us_overlay *overlay, size_t cursor)
{
	return overlay->start + (overlay->keys[cursor] & UINT32_MAX) * overlay->stride;
}
