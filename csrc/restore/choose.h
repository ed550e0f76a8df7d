/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_CHOOSE_H
#define US_RESTORE_CHOOSE_H

#include "../discover/template.h"
#include "../encode/encode.h"
#include "../store/store.h"
#include "catalog.h"

/* Which database's objects, and where they are. Everything is borrowed. */
struct us_origin {
	struct us_store *store;
	const char *key_prefix;         /* of the objects, without a trailing slash */
	const char *escaped_path;       /* what their trailers must say */
	uint64_t part_len;              /* of large downloads, us_fetch_part_len */
	const _Atomic uint32_t *cancel; /* may be NULL */
};

/* One object, as the listing showed it. */
struct us_choice {
	uint32_t time_s; /* in its name: the start of its window, not its snapshot time */
	uint64_t object_len;
	char key[US_KEY_LEN_MAX + 1];
};

/* US_E_CANCELED once CANCEL is set. */
int32_t us_check_cancel(const _Atomic uint32_t *cancel, struct us_error *err);

/*
 * Lists the objects of ORIGIN and chooses: the newest by name, or with
 * TIMESTAMP_NS not 0 the newest by name whose snapshot time is not after it.
 * US_E_NOTFOUND if there is none (the message names the earliest snapshot time
 * where one exists); US_E_OBJECT for a trailer that had to be looked at and is
 * damaged: no older object is taken in its place.
 */
int32_t us_choose(const struct us_origin *origin, int64_t timestamp_ns,
		  struct us_choice *ret_choice, struct us_error *err);

/* Lists the objects of ORIGIN, oldest first; RET_BACKUPS is freed with us_free. */
int32_t us_choose_list(const struct us_origin *origin, struct us_backup **ret_backups,
		       size_t *ret_count, struct us_error *err);

/* The choice of BACKUP. */
void us_choose_make(const struct us_origin *origin, const struct us_backup *backup,
		    struct us_choice *ret_choice);

/* Reads the trailer of object KEY, checked with us_choose_check. RET_OBJECT_LEN
 * (may be NULL): bytes of the object. */
int32_t us_choose_trailer(const struct us_origin *origin, const char *key,
			  struct us_trailer *ret_trailer, uint64_t *ret_object_len,
			  struct us_error *err);

/* US_E_OBJECT unless TRAILER, of object KEY, is of ORIGIN's database. */
int32_t us_choose_check(const struct us_origin *origin, const char *key,
			const struct us_trailer *trailer, struct us_error *err);

/* Puts the name of object KEY before the message of an ERR that is US_E_OBJECT;
 * returns RC. */
int32_t us_choose_name(int32_t rc, const char *key, struct us_error *err);

#endif
