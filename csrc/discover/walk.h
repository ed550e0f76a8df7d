/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISCOVER_WALK_H
#define US_DISCOVER_WALK_H

#include "../base/stat.h"
#include "pattern.h"

/*
 * One pass over the tree below the pattern's prefix. Directories are spread over
 * THREAD_COUNT threads, and so are the files of a large one; each directory is read with
 * getdents64 and each matching regular file costs one statx, two where the listing shows a
 * `-wal` beside it. Results come in batches per directory, on the walking threads.
 */

struct us_walk_entry {
	const char *name; /* NUL-terminated file name */
	uint32_t name_len;
	uint32_t reserved;
	struct us_file_stat db;
	struct us_file_stat wal; /* all zero: no -wal (or an empty one: length 0, inode set) */
	int64_t clock_ns; /* us_clock_file_ns() read before the stats of this entry's batch */
};

struct us_walk_batch {
	const char *dir; /* of the directory, relative to the prefix: "" for the prefix itself */
	size_t dir_len;
	const struct us_walk_entry *entries;
	size_t entry_count; /* 1..US_WALK_BATCH_MAX; a directory may give several batches,
			     * also on several threads at once */
};

#define US_WALK_BATCH_MAX 256
#define US_WALK_THREADS_MAX 64
#define US_WALK_DEPTH_MAX 256 /* below the prefix; deeper is an error of that directory */

struct us_walk_fns {
	/* THREAD is 0..thread_count-1. Everything is borrowed for the call. A
	 * non-zero return stops the walk (us_walk then returns US_E_CANCELED). */
	int32_t (*batch)(void *arg, uint32_t thread, const struct us_walk_batch *batch);
	/* A directory that could not be listed, is on another device or too deep, or
	 * a file that could not be stat-ed (other than because it is gone). PATH is
	 * absolute. The rest of the walk goes on. Several threads may call. */
	void (*failure)(void *arg, uint32_t thread, const char *path, const struct us_error *err);
	void *arg;
};

struct us_walk_result {
	uint64_t database_count;  /* entries delivered */
	uint64_t directory_count; /* listed; a literal component of the pattern needs no listing */
	uint64_t failure_count;   /* calls of failure() */
	int64_t busy_ns;          /* of all threads together, callbacks included */
};

/* Opens the pattern's prefix for us_walk: a descriptor (closed by the caller), or why it
 * cannot be opened. Unless ANY_FILESYSTEM: US_E_CONFIG where locks and ctime do not mean
 * what they should (NFS, FUSE and so on). */
int32_t us_walk_open(const struct us_pattern *pattern, int any_filesystem, struct us_error *err);

/* How many threads a walk is worth on this machine. */
uint32_t us_walk_threads(void);

/*
 * Walks with PREFIX_FD, an open directory (us_pattern_prefix), which is borrowed.
 * Links are not followed, other devices not entered. Blocks until every thread
 * is done; the caller's is thread 0. Returns 0 with RET_RESULT filled even where
 * failure() was called; US_E_CANCELED after a batch() that returned non-zero or by
 * CANCEL; US_E_NOMEM; what stopped the listing of the prefix itself (US_E_ACCESS,
 * US_E_NOTFOUND, US_E_IO). CANCEL (may be NULL) is looked at between directories and
 * batches: non-zero stops.
 */
int32_t us_walk(const struct us_pattern *pattern, int prefix_fd, uint32_t thread_count,
		const struct us_walk_fns *fns, const _Atomic uint32_t *cancel,
		struct us_walk_result *ret_result, struct us_error *err);

#endif
