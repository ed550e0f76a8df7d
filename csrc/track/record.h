/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TRACK_RECORD_H
#define US_TRACK_RECORD_H

#include <stdint.h>

#include "../base/siphash.h"
#include "../base/stat.h"

/*
 * What is remembered of one database: 32 bytes, no path. A record is about the
 * image that the target has, never about what was merely looked at.
 */
struct us_record {
	uint64_t path_hash;   /* never 0 */
	uint64_t fingerprint; /* of the files when the image was read; see US_RECORD_UNSYNCED */
	uint64_t content_hash; /* us_content_hash of what the target has; 0: not known */
	uint32_t object_time; /* in the name of the last object sent, or found in the target
			       * by a sweep, s since 1970; 0: none yet */
	uint8_t flags;	      /* US_RECORD_* */
	uint8_t size_class;   /* us_size_class of the last image */
	uint8_t object_count; /* objects acknowledged under this state: 0, 1, or 2 for more; 1
			       * also where the last one may yet arrive once more */
	uint8_t generation;   /* of the last walk that saw it, modulo 256 */
};

_Static_assert(sizeof(struct us_record) == 32, "a database costs 32 bytes");

/* Look again next cycle even if nothing differs: a ctime was within a tick. */
#define US_RECORD_RACY 1u
/* That ctime was in the future: it counts as old once it is seen unmoved again. */
#define US_RECORD_FUTURE 2u
/* The present state is not in the target. The fingerprint is not needed while
 * this is so (the database is changed, whatever its stat says), and its bytes
 * hold: seconds since 1970 when this was first seen (low 32 bits), and how many
 * cycles in a row have failed (high 32 bits). */
#define US_RECORD_UNSYNCED 4u
/* The failure has been reported (an event was taken). In memory only. */
#define US_RECORD_REPORTED 8u
/* With this fingerprint it was no database, or empty; nothing to upload. */
#define US_RECORD_NOT_DATABASE 16u
#define US_RECORD_EMPTY 32u

/* Loaded from a state that was not closed: if the files have changed since, an object
 * that no commit recorded may have been sent. In memory only. */
#define US_RECORD_UNSURE 64u

/* Not to be judged by the sweep under way: sent or created since it began, or judged
 * already. Whoever replaces the flags of a record keeps this one. In memory only. */
#define US_RECORD_TOUCHED 128u

/* The flags that are kept in the state file. */
#define US_RECORD_KEPT (0xffu & ~(US_RECORD_REPORTED | US_RECORD_UNSURE | US_RECORD_TOUCHED))

static inline uint32_t us_record_since_s(const struct us_record *r)
{
	return r->flags & US_RECORD_UNSYNCED ? (uint32_t)r->fingerprint : 0;
}

static inline uint32_t us_record_failed_cycles(const struct us_record *r)
{
	return r->flags & US_RECORD_UNSYNCED ? (uint32_t)(r->fingerprint >> 32) : 0;
}

static inline void us_record_set_unsynced(struct us_record *r, uint32_t since_s, uint32_t failed_cycles)
{
	r->flags |= US_RECORD_UNSYNCED;
	r->fingerprint = (uint64_t)failed_cycles * (UINT64_C(1) << 32) + since_s;
}

/* The hash of a path below the prefix; never 0. */
uint64_t us_path_hash(const struct us_siphash_key *key, const char *dir, size_t dir_len,
		      const char *name, size_t name_len);
/* The same of a whole path below the prefix. */
uint64_t us_path_hash_of(const struct us_siphash_key *key, const char *below);
/* The part of it that a directory has in common: with it, one short hash per name. */
struct us_siphash_key us_path_hash_key(const struct us_siphash_key *key, const char *dir,
				       size_t dir_len);
uint64_t us_path_hash_name(const struct us_siphash_key *dir_key, const char *name, size_t name_len);

/* 64-bit hash of both files' length, mtime, ctime and inode; keyed per state. */
uint64_t us_fingerprint(const struct us_siphash_key *key, const struct us_file_stat *db,
			const struct us_file_stat *wal);

/* What decides whether an image is the one the target has: the first 8 bytes of the
 * SHA-256 of its LZ4 frame, and mode, owner and group, which a restore brings back
 * too. Never 0. */
uint64_t us_content_hash(const uint8_t lz4_sha256[32], uint32_t mode, uint32_t uid, uint32_t gid);

/* US_RECORD_RACY and US_RECORD_FUTURE as these stats, taken at CLOCK_NS, demand.
 * BEFORE: the flags of the record if its fingerprint is equal, else 0. */
uint8_t us_racy_flags(const struct us_file_stat *db, const struct us_file_stat *wal, int64_t clock_ns,
		      uint8_t before);

/* 4 * log2(len), rounded down: an image of less than half the size is always at
 * least 4 classes lower. */
uint8_t us_size_class(uint64_t len);

/*
 * The change decision: what to do with a database whose files have FINGERPRINT,
 * given its record. US_SEEN_CHANGED marks the record US_RECORD_UNSYNCED since
 * NOW_S; nothing else is modified.
 */
#define US_SEEN_UNCHANGED 0 /* nothing to do */
#define US_SEEN_RACY 1	    /* nothing differs, but read it again */
#define US_SEEN_CHANGED 2   /* differs, is new, or has failed so far */
int us_record_see(struct us_record *record, uint64_t fingerprint, uint32_t now_s);

/*
 * When the upload of a database began: the start of its cycle, in units of 10 ms by a clock
 * that only goes forward (us_clock_boot_ns), modulo 2^32. 0, which no time gives, is never or
 * long ago. After 497 days a stamp looks young again: a database that was not uploaded for so
 * long may wait once more.
 */
#define US_STAMP_MS 10
uint32_t us_stamp(int64_t clock_ns);

/* How far apart the stamps of two uploads are at least, MIN_INTERVAL_MS (up to 366 days)
 * apart less at most 100 ms, as cycles do not begin to the millisecond; 0: they need not be. */
uint32_t us_stamps_apart(uint64_t min_interval_ms);

/* Whether an upload at NOW would follow the LAST one too early. */
static inline int us_stamp_is_early(uint32_t last, uint32_t now, uint32_t apart)
{
	return last != 0 && now - last < apart;
}

/*
 * What the target was found to hold of a database that was not sent meanwhile, against
 * its record. Returns 1 if the record is now marked to be uploaded again, whatever its
 * content (US_RECORD_UNSYNCED since NOW_S, content not known), 2 if only its last name
 * was corrected, 0 if all is as it should be.
 *
 *	newest_s    in the name of the newest object, 0: there is none. If the record did
 *	            not know it, it is used up from now on: the next name sorts after it
 *	newest_len  bytes of it
 *	object_len  bytes of the object as the state knows it; 0: not known
 */
int us_record_reconcile(struct us_record *record, uint32_t newest_s, uint64_t newest_len,
			uint64_t object_len, uint32_t now_s);

/*
 * The time in the name of the next object of a database (DESIGN.md section 3):
 * s since 1970, or 0 if it has to wait for the next second.
 *
 *	window_s   0: every object has its own second
 *	epoch_s    no name may be lower
 *	now_s      second of the snapshot, by the clock that never runs back
 *	wall_s     second of the wall clock; 0: it cannot wait
 */
uint32_t us_object_time_next(const struct us_record *record, uint64_t image_len, uint32_t window_s,
			     uint32_t epoch_s, uint32_t now_s, uint32_t wall_s);

#endif
