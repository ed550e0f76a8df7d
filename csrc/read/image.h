/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_IMAGE_H
#define US_READ_IMAGE_H

#include "../base/error.h"
#include "../base/stat.h"

/*
 * One consistent image of one database: the bytes SQLite would leave in the file
 * after recovery and a full checkpoint, cut to the header's page count. Nothing
 * is written, no lock taken (but see PATIENT), no file appears. DESIGN.md section
 * 5 has the rules and the measurements behind them.
 */

struct us_image_info {
	uint64_t image_len; /* page_size * page_count */
	uint32_t page_size; /* 512..65536 */
	uint32_t page_count;
	uint32_t change_counter; /* header field, from the image */
	uint32_t mode;		 /* permission bits, 0..07777 */
	uint32_t uid, gid;
	int64_t snapshot_ns;	 /* wall clock, a moment at which the image was the current state */
	struct us_file_stat db;	 /* taken before anything was read: what to remember */
	struct us_file_stat wal; /* all zero: none */
	int64_t clock_ns;	 /* us_clock_file_ns() read before those stats */
};

/*
 * Where the image goes. BEGIN is called once before the first WRITE; a reader
 * that has to start over calls BEGIN again (what was written so far is void).
 * Only a return of 0 from us_read_image makes the bytes an image. A negative
 * return of either function stops the read with that code; ERR is the reader's.
 * INFO at BEGIN has all fields but snapshot_ns, which is final in RET_INFO.
 */
struct us_image_sink {
	int32_t (*begin)(void *arg, const struct us_image_info *info, struct us_error *err);
	int32_t (*write)(void *arg, const uint8_t *data, size_t data_len, struct us_error *err);
	void *arg;
};

struct us_read_source {
	int prefix_fd;	     /* directory below which nothing but real directories is passed */
	const char *rel;     /* path below it */
	const char *display; /* absolute path as shown in messages (escaped) */
	uint64_t inode;	     /* as the walk saw it; another one now: US_E_NOTFOUND */
	/* Whether a file is one that this process has open elsewhere: closing ours would
	 * drop its POSIX locks, so it is refused (US_E_ACCESS) unopened. NULL: none is. */
	int (*is_foreign)(void *arg, uint64_t device, uint64_t inode);
	void *arg;
	/* 0: one try, US_E_BUSY at once if the file is changing or too young.
	 * 1: up to three tries a tick apart, then, in rollback mode, one read under a
	 * SHARED open-file-description lock (at most 1 s of waiting). */
	int patient;
	/* 1: the directory stays open for further reads below the same PREFIX_FD, until
	 * us_reader_forget: those find in it what was moved away with it meanwhile. */
	int keeps_dir;
};

struct us_reader;

/*
 * A reader owns scratch memory and serves one call at a time. MEMORY_LEN bounds
 * what it holds of a database and its WAL at once (at least 1 MiB); larger ones
 * are streamed, through files in the directory SPOOL_FD (borrowed) where that is
 * needed. Freed with us_reader_free.
 */
int32_t us_reader_new(size_t memory_len, int spool_fd, struct us_reader **ret_reader,
		      struct us_error *err);
void us_reader_free(struct us_reader *reader);
/* Closes the directory that is open for further reads. */
void us_reader_forget(struct us_reader *reader);

/*
 * Returns 0, or
 *   US_E_BUSY      locked, or changing while it was read: the next cycle's
 *   US_E_EMPTY     zero-length file (whatever lies beside it)
 *   US_E_NOTDB     no SQLite header
 *   US_E_CORRUPT   a header, but the file is shorter than it says, or its WAL or
 *                  journal cannot belong to it
 *   US_E_NOTFOUND  gone, replaced, or a link now
 *   US_E_ACCESS, US_E_IO, US_E_NOMEM, US_E_NOSPACE (spool), or the sink's code.
 */
int32_t us_read_image(struct us_reader *reader, const struct us_read_source *source,
		      const struct us_image_sink *sink, struct us_image_info *ret_info,
		      struct us_error *err);

#endif
