/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TRACK_TABLE_H
#define US_TRACK_TABLE_H

#include "../base/error.h"
#include "record.h"

/*
 * All records, by path hash. Any threads; each call locks one shard for a moment.
 */
struct us_table;

int32_t us_table_new(struct us_table **ret_table, struct us_error *err);
void us_table_free(struct us_table *table);
void us_table_clear(struct us_table *table); /* forgets every record */
/* Makes room for COUNT records at once, and some more: growing on the way leaves holes in the
 * heap. */
void us_table_reserve(struct us_table *table, uint64_t count);

/* Before the first record: with each, TABLE keeps a stamp (us_stamp), 4 bytes more. */
void us_table_keep_stamps(struct us_table *table);
int us_table_keeps_stamps(const struct us_table *table);

/* The record of PATH_HASH (not 0) with its shard locked, until us_table_release.
 * CREATE: a missing one is added, all zero but its hash. NULL if there is none, or
 * on US_E_NOMEM (CREATE only); the shard is not locked then. The caller may change
 * everything but path_hash, and does no I/O meanwhile. */
struct us_record *us_table_acquire(struct us_table *table, uint64_t path_hash, int create);
void us_table_release(struct us_table *table, uint64_t path_hash);

/* Fetches what us_table_acquire of PATH_HASH, a little later, will look at. */
void us_table_prefetch(struct us_table *table, uint64_t path_hash);

/* Copies a record; 1, or 0 if there is none. */
int us_table_get(struct us_table *table, uint64_t path_hash, struct us_record *ret_record);

/* The stamp of RECORD, which is locked (acquired, or given by us_table_each): when its last
 * upload began, as the caller has set it. 0 in a new record, and where none are kept; there
 * setting it does nothing. */
uint32_t us_table_stamp(struct us_table *table, const struct us_record *record);
void us_table_set_stamp(struct us_table *table, const struct us_record *record, uint32_t stamp);

struct us_table_sums {
	uint64_t record_count;
	uint64_t unsynced, failed, empty, not_databases;
	uint32_t oldest_unsynced_s; /* since 1970; 0: none */
	uint64_t gone;
};

#define US_GONE_WALKS 3

/*
 * After a walk of GENERATION: sums over the records it saw. A record not seen by
 * US_GONE_WALKS walks in a row, all without an error, is removed and its hash
 * given to GONE (may be NULL; the shard is locked meanwhile), unless its last name is
 * not before NOW_S: if it came back, it could take that name again. WALK_CLEAN 0: this
 * walk had errors, so every absence starts to count anew.
 */
void us_table_sweep(struct us_table *table, uint8_t generation, int walk_clean, uint32_t now_s,
		    void (*gone)(void *arg, uint64_t path_hash), void *arg,
		    struct us_table_sums *ret_sums);

/* Calls FN for every record, shard by shard, with the shard locked. It may change
 * everything but path_hash. Non-zero stops. */
int32_t us_table_each(struct us_table *table, int32_t (*fn)(void *arg, struct us_record *record),
		      void *arg);

#endif
