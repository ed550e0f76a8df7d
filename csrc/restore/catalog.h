/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_CATALOG_H
#define US_RESTORE_CATALOG_H

#include "../discover/template.h"
#include "../store/store.h"

/*
 * What a target holds of a fleet, database by database, from one flat LIST. Only keys
 * that are ours count: an object's name with a time, below a key prefix that turns into
 * a path and back.
 */

#define US_OBJECT_SUFFIX ".db.lz4"

/* One object of a database. */
struct us_backup {
	uint32_t time_s; /* in its name */
	uint64_t object_len;
};

/* One database. All pointers are borrowed for the call. */
struct us_catalog_entry {
	const char *key;  /* key prefix, NUL-terminated */
	const char *path; /* absolute, NUL-terminated, not escaped */
	uint64_t object_count, objects_len;
	struct us_backup newest;
	/* With a timestamp, by name alone; time_s 0: there is none. */
	struct us_backup before;  /* newest not after it */
	struct us_backup before2; /* the one before that */
	struct us_backup after;   /* the first after it */
};

struct us_catalog_fns {
	/* A database whose objects are all listed. Non-zero stops with that code. */
	int32_t (*database)(void *arg, const struct us_catalog_entry *entry);
	/* May be NULL: an object with two newer ones of its database, none of the three empty.
	 * KEY is the whole key. */
	int32_t (*surplus)(void *arg, const char *key, const struct us_backup *backup);
	void *arg;
	/* 1: once something was listed, a failure of the network or the server does not end
	 * the listing before it has lasted a minute. */
	int is_patient;
};

struct us_catalog_result {
	uint64_t ours_count, ours_len; /* objects */
	uint64_t foreign_count;
	uint64_t database_count;
	uint32_t newest_s; /* of all names not after newest_limit_s */
};

/*
 * Lists the target below the template's fixed part, or below the key prefix ONLY (may
 * be NULL), and calls FNS in the order of the listing: databases by key, where one whose
 * key others lie below comes after them. TIMESTAMP_NS: 0 or more; for `before` and so on.
 * NEWEST_LIMIT_S: later names do not count for newest_s. CANCEL may be NULL. RET is
 * filled as far as the listing got, also after a failure. Memory: one database per
 * level of a key. Returns what list returned, or what a function did.
 */
int32_t us_catalog_run(struct us_store *store, const struct us_template *tmpl, const char *only,
		       int64_t timestamp_ns, uint32_t newest_limit_s,
		       const struct us_catalog_fns *fns, const _Atomic uint32_t *cancel,
		       struct us_catalog_result *ret, struct us_error *err);

/* The key of the object with TIME_S of KEY_PREFIX into RET (US_KEY_LEN_MAX + 1). */
void us_object_key(const char *key_prefix, uint32_t time_s, char *ret);

/* 1 with the time and the length of the key prefix if KEY ends in "/" and an object's
 * name; the prefix is not looked at. */
int us_object_key_parse(const char *key, size_t key_len, size_t *ret_prefix_len,
			uint32_t *ret_time_s);

#endif
