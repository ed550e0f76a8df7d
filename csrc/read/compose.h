/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_COMPOSE_H
#define US_READ_COMPOSE_H

#include "image.h"
#include "overlay.h"

/*
 * An image out of its parts: WAL over journal over the bytes of the database
 * file. What the caller fills in first; sizes of 0 mean that there is no such
 * part, and its overlay is not looked at.
 */
struct us_compose {
	const char *display;
	struct us_source base; /* LEN: the bytes there are */
	uint64_t base_len;     /* of the file after the rollback; behind base.len: zeros */
	const struct us_overlay *wal, *journal;
	uint32_t wal_page_size, wal_page_count;
	uint32_t journal_page_size;

	/* set by us_compose_resolve */
	uint32_t page_size, page_count, change_counter;

	int sink_failed; /* the code that us_compose_write returned is the sink's */
};

/*
 * Reads the image's own header and checks that the parts fit. Returns 0, or
 * US_E_EMPTY, US_E_NOTDB, US_E_CORRUPT as in us_read_image, US_E_IO.
 */
int32_t us_compose_resolve(struct us_compose *image, struct us_error *err);

/* Writes the image to SINK in page order, through BUF (at least 64 KiB). */
int32_t us_compose_write(struct us_compose *image, const struct us_image_sink *sink, uint8_t *buf,
			 size_t buf_len, struct us_error *err);

#endif
