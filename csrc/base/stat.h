/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_STAT_H
#define US_BASE_STAT_H

#include <stdint.h>
#include <sys/stat.h>

#include "clock.h"

/* What identifies the state of a file from outside. All zero: no such file. */
struct us_file_stat {
	uint64_t len;
	int64_t mtime_ns;
	int64_t ctime_ns;
	uint64_t inode;
};

/* The ticks of file time stamps: kernels stamp with their coarse clock (at most
 * 10 ms at HZ=100); file systems that store whole seconds only (ext4 with
 * 128-byte inodes) get 2 s. */
#define US_TICK_NS (20 * US_NS_PER_MS)
#define US_TICK_COARSE_NS (2 * US_NS_PER_S)

static inline int64_t us_stat_tick_ns(const struct us_file_stat *st)
{
	int coarse = st->mtime_ns % US_NS_PER_S == 0 && st->ctime_ns % US_NS_PER_S == 0;
	return coarse ? US_TICK_COARSE_NS : US_TICK_NS;
}

/* Whether a later write could carry the same ctime as ST, which was read when
 * the clock stood at CLOCK_NS (the racy rule of git's index). A ctime in the
 * future is racy too. */
static inline int us_stat_is_racy(const struct us_file_stat *st, int64_t clock_ns)
{
	return st->inode != 0 && st->ctime_ns > clock_ns - us_stat_tick_ns(st);
}

static inline int us_stat_is_future(const struct us_file_stat *st, int64_t clock_ns)
{
	return st->inode != 0 && st->ctime_ns > clock_ns;
}

static inline struct us_file_stat us_file_stat_of(const struct stat *st)
{
	return (struct us_file_stat){
		.len = (uint64_t)st->st_size,
		.mtime_ns = (int64_t)st->st_mtim.tv_sec * US_NS_PER_S + st->st_mtim.tv_nsec,
		.ctime_ns = (int64_t)st->st_ctim.tv_sec * US_NS_PER_S + st->st_ctim.tv_nsec,
		.inode = st->st_ino,
	};
}

static inline int us_file_stat_equal(const struct us_file_stat *a, const struct us_file_stat *b)
{
	return a->len == b->len && a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns &&
	       a->inode == b->inode;
}

#endif
