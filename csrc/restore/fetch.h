/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_FETCH_H
#define US_RESTORE_FETCH_H

#include "choose.h"

/*
 * Downloads the object CHOICE into the file FD, which is emptied first, and checks
 * all that can be told from the object: frame, SHA-256, sizes, trailer, that it
 * is ORIGIN's database, and that it begins as an SQLite database of that size.
 * SHOWN names the output in messages. On success CHOICE has the length of what was
 * read (the listing may be older). RET_TRAILER is undefined after a failure.
 */
int32_t us_fetch(const struct us_origin *origin, struct us_choice *choice, int fd,
		 const char *shown, struct us_trailer *ret_trailer, struct us_error *err);

/*
 * Lets SQLite check the database in FD: US_INTEGRITY_*. Leaves no file behind.
 * US_E_CORRUPT with what it found; US_E_UNSUPPORTED if the check cannot run (the
 * schema needs a function or collation that only its application has).
 */
int32_t us_fetch_check(int fd, uint32_t integrity_check, const char *shown,
		       const _Atomic uint32_t *cancel, struct us_error *err);

#endif
