/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_FETCH_H
#define US_RESTORE_FETCH_H

#include "choose.h"

/* Turns objects into files, one after the other. One per thread. */
struct us_fetch;

int32_t us_fetch_new(struct us_fetch **ret_fetch, struct us_error *err);
void us_fetch_free(struct us_fetch *fetch);

/*
 * Begins an object of OBJECT_LEN bytes, which goes to the file FD, emptied first. SHOWN
 * names the output in messages; it and CANCEL are kept until the end.
 */
int32_t us_fetch_begin(struct us_fetch *fetch, uint64_t object_len, int fd, const char *shown,
		       const _Atomic uint32_t *cancel, struct us_error *err);
int32_t us_fetch_feed(struct us_fetch *fetch, const uint8_t *data, size_t data_len,
		      struct us_error *err);
/*
 * Checks all that can be told from the object: frame, SHA-256, sizes, trailer, and
 * that it begins as an SQLite database of that size. US_E_OBJECT for any fault.
 */
int32_t us_fetch_end(struct us_fetch *fetch, struct us_trailer *ret_trailer, struct us_error *err);

/*
 * Downloads the object CHOICE into the file FD, from begin to end, and checks that it is
 * ORIGIN's database. A large one comes in parts, several at a time. On success CHOICE
 * has the length of what was read (the listing may be older). RET_TRAILER is undefined
 * after a failure.
 */
int32_t us_fetch_object(struct us_fetch *fetch, const struct us_origin *origin,
			struct us_choice *choice, int fd, const char *shown,
			struct us_trailer *ret_trailer, struct us_error *err);

/* For us_origin: parts with which a download takes about MEMORY_LEN bytes. */
uint64_t us_fetch_part_len(uint64_t memory_len);

/* Requests that an object of OBJECT_LEN bytes takes. */
uint64_t us_fetch_request_count(uint64_t object_len, uint64_t part_len);

/* Objects of at least this length come in parts. */
#define US_FETCH_PARTS_LEN_MIN (UINT64_C(16) << 20)

/*
 * Lets SQLite check the database in FD: US_INTEGRITY_*. Leaves no file behind.
 * US_E_CORRUPT with what it found; US_E_UNSUPPORTED if the check cannot run (the
 * schema needs a function or collation that only its application has).
 */
int32_t us_fetch_check(int fd, uint32_t integrity_check, const char *shown,
		       const _Atomic uint32_t *cancel, struct us_error *err);

#endif
