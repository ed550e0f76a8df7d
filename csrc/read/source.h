/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_SOURCE_H
#define US_READ_SOURCE_H

#include <stddef.h>

#include "../base/error.h"

/* Bytes that are read by position: a file, or a copy of one in memory. */
struct us_source {
	const uint8_t *mem; /* NULL: read from FD. Borrowed */
	int fd;             /* borrowed */
	uint64_t len;       /* bytes that count; what lies behind is not looked at */
};

/* Reads until LEN bytes or the end of the file. Returns the count, or US_E_IO
 * (WHAT names the file in the message). */
int64_t us_read_at(int fd, void *ret, size_t len, uint64_t off, const char *what,
		   struct us_error *err);

/* The same for a source; bytes at or behind its length count as its end. */
int64_t us_source_read(const struct us_source *source, uint64_t off, void *ret, size_t len,
		       const char *what, struct us_error *err);

/* A view of a source for reading forward: one read call serves many records. */
struct us_window {
	const struct us_source *source;
	const char *what;
	uint8_t *buf; /* borrowed; not used for memory sources */
	size_t cap;   /* at least the longest view asked for */
	uint64_t off; /* of BUF's first byte in the source */
	size_t len;   /* valid bytes in BUF */
};

/* Sets *RET_VIEW to LEN bytes at OFF, valid until the next call; NULL if the
 * source ends before. Returns 0 or US_E_IO. */
int32_t us_window_view(struct us_window *window, uint64_t off, size_t len, const uint8_t **ret_view,
		       struct us_error *err);

/*
 * Copies the first LEN bytes of FD (fewer if it ends before) into a file in the
 * directory SPOOL_FD that has no name and is gone when *RET_FD is closed: by
 * reflink where the file system can, else through BUF. Refused (US_E_NOSPACE)
 * where that would leave less than a tenth of the spool's disk free.
 */
int32_t us_spool_copy(int spool_fd, int fd, uint64_t len, uint8_t *buf, size_t buf_len,
		      const char *what, int *ret_fd, uint64_t *ret_len, struct us_error *err);

#endif
