/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules about one record: what counts as changed, and how its next object is
 * called. Pure functions; the table holds the records, the state file keeps them.
 *
 * Racy rule, as git's index has it: a file that was changed within the same tick
 * as it was looked at can be changed once more without its ctime moving. Such a
 * record is looked at again although nothing differs. Only ctime counts: users
 * can set mtime.
 */
#include "record.h"

#include <string.h>

#include "../base/bytes.h"

/* With what the state file rounds, less than 100 ms. */
#define STAMP_SLACK_MS 60

struct us_siphash_key us_path_hash_key(const struct us_siphash_key *key, const char *dir,
				       size_t dir_len)
{
	struct us_siphash_key dir_key = *key;
	dir_key.k0 ^= us_siphash(key, dir, dir_len);
	return dir_key;
}

uint64_t us_path_hash_name(const struct us_siphash_key *dir_key, const char *name, size_t name_len)
{
	uint64_t hash = us_siphash(dir_key, name, name_len);
	return hash ? hash : 1;
}

uint64_t us_path_hash(const struct us_siphash_key *key, const char *dir, size_t dir_len,
		      const char *name, size_t name_len)
{
	struct us_siphash_key dir_key = us_path_hash_key(key, dir, dir_len);
	return us_path_hash_name(&dir_key, name, name_len);
}

uint64_t us_path_hash_of(const struct us_siphash_key *key, const char *below)
{
	const char *slash = strrchr(below, '/');
	const char *name = slash ? slash + 1 : below;
	return us_path_hash(key, below, slash ? (size_t)(slash - below) : 0, name, strlen(name));
}

uint64_t us_fingerprint(const struct us_siphash_key *key, const struct us_file_stat *db,
			const struct us_file_stat *wal)
{
	uint64_t fields[8] = {
		db->len,  (uint64_t)db->mtime_ns,  (uint64_t)db->ctime_ns,  db->inode,
		wal->len, (uint64_t)wal->mtime_ns, (uint64_t)wal->ctime_ns, wal->inode,
	};
	return us_siphash(key, fields, sizeof(fields));
}

uint64_t us_content_hash(const uint8_t lz4_sha256[32], uint32_t mode, uint32_t uid, uint32_t gid)
{
	static const struct us_siphash_key key = { 0, 0 };
	const uint32_t owner[3] = { mode, uid, gid };
	uint64_t hash = us_get_be64(lz4_sha256) ^ us_siphash(&key, owner, sizeof(owner));
	return hash ? hash : 1;
}

/* Whether a write may yet get just this ctime, which is in the future. */
static int is_coarse_future(const struct us_file_stat *st, int64_t clock_ns)
{
	return us_stat_is_future(st, clock_ns) && us_stat_tick_ns(st) == US_TICK_COARSE_NS;
}

uint8_t us_racy_flags(const struct us_file_stat *db, const struct us_file_stat *wal,
		      int64_t clock_ns, uint8_t before)
{
	int future = us_stat_is_future(db, clock_ns) || us_stat_is_future(wal, clock_ns);
	if (future) {
		/* Seen in the future before and not moved since: no write can bring it back
		 * to just this ctime, unless it has whole seconds only. */
		int is_coarse = is_coarse_future(db, clock_ns) || is_coarse_future(wal, clock_ns);
		return before & US_RECORD_FUTURE && !is_coarse ? 0
							       : US_RECORD_RACY | US_RECORD_FUTURE;
	}
	return us_stat_is_racy(db, clock_ns) || us_stat_is_racy(wal, clock_ns) ? US_RECORD_RACY : 0;
}

uint8_t us_size_class(uint64_t len)
{
	if (len == 0) {
		return 0;
	}
	uint32_t log2 = 63u - (uint32_t)__builtin_clzll(len);
	/* Quarters: 2^(1/4), 2^(2/4), 2^(3/4) in 1/2^16. */
	static const uint32_t quarters[3] = { 77936, 92682, 110218 };
	uint64_t mantissa = log2 >= 16 ? len >> (log2 - 16) : len << (16 - log2);
	uint32_t quarter = 0;
	while (quarter < 3 && mantissa >= quarters[quarter]) {
		quarter++;
	}
	return (uint8_t)(log2 * 4 + quarter);
}

int us_record_see(struct us_record *record, uint64_t fingerprint, uint32_t now_s)
{
	if (record->flags & US_RECORD_UNSYNCED) {
		return US_SEEN_CHANGED;
	}
	if (record->fingerprint == fingerprint) {
		return record->flags & US_RECORD_RACY ? US_SEEN_RACY : US_SEEN_UNCHANGED;
	}
	us_record_set_unsynced(record, now_s, 0);
	if (record->flags & US_RECORD_UNSURE) {
		record->content_hash = 0;
	}
	return US_SEEN_CHANGED;
}

int us_record_reconcile(struct us_record *record, uint32_t newest_s, uint64_t newest_len,
			uint64_t object_len, uint32_t now_s)
{
	int is_unsynced = record->flags & US_RECORD_UNSYNCED;
	if (!is_unsynced && record->object_count == 0) {
		return 0; /* nothing of it was sent: no database, or empty */
	}
	int is_newer = newest_s > record->object_time;
	int is_right =
		newest_s == record->object_time && (object_len == 0 || object_len == newest_len);
	if (is_newer) {
		record->object_time = newest_s;
	}
	if (is_unsynced) {
		return is_newer ? 2 : 0; /* it is uploaded anyway */
	}
	if (is_right) {
		return 0;
	}
	us_record_set_unsynced(record, now_s, 0);
	record->content_hash = 0;
	record->object_count = 1;
	return 1;
}

uint32_t us_stamp(int64_t clock_ns)
{
	uint32_t stamp = (uint32_t)(clock_ns / (US_STAMP_MS * US_NS_PER_MS));
	return stamp ? stamp : 1;
}

uint32_t us_stamps_apart(uint64_t min_interval_ms)
{
	if (min_interval_ms <= STAMP_SLACK_MS) {
		return 0;
	}
	/* Both stamps are rounded down: they may be one further apart than the times are. */
	return (uint32_t)((min_interval_ms - STAMP_SLACK_MS + US_STAMP_MS - 1) / US_STAMP_MS) + 1;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

uint32_t us_object_time_next(const struct us_record *record, uint64_t image_len, uint32_t window_s,
			     uint32_t epoch_s, uint32_t now_s, uint32_t wall_s)
{
	int shrunk = record->object_time != 0 && us_size_class(image_len) + 4 <= record->size_class;
	/* A put whose outcome is not known may still arrive: not under the name of the next. */
	int unsure = record->object_time != 0 && record->content_hash == 0;
	int own_second = window_s == 0 || record->object_count < 2 || shrunk || unsure;
	if (!own_second) {
		return max_u32(max_u32(now_s - now_s % window_s, epoch_s), record->object_time);
	}
	uint32_t time = max_u32(now_s, epoch_s);
	if (time > record->object_time) {
		return time;
	}
	/* The clock stands in the second of the last name: wait. If it was set back, waiting
	 * could take a day: the next free second is as good a name. */
	return wall_s == record->object_time || record->object_time == UINT32_MAX
		       ? 0
		       : record->object_time + 1;
}
