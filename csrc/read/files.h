/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_FILES_H
#define US_READ_FILES_H

#include "image.h"
#include "probe.h"
#include "wal.h"

#define US_FILE_NAME_CAP 272 /* 255, the longest suffix, and a NUL */
#define US_DIR_NAME_CAP 4096

/* A directory that stays open from one database to the next. */
struct us_files_dir {
	int fd; /* -1: none */
	char rel[US_DIR_NAME_CAP];
};

/*
 * The files of one database as one try found them: open, with their stats and
 * the locks of that moment. -wal and -journal are looked up by name each time.
 */
struct us_files {
	const struct us_read_source *source;   /* borrowed */
	char name[US_FILE_NAME_CAP];           /* of the database in its directory */
	int dir_fd, db_fd, wal_fd, journal_fd; /* -1: not open */
	int dir_is_borrowed;                   /* dir_fd is the source's, or kept */
	uint32_t mode, uid, gid;

	/* set by us_files_look, in this order */
	int64_t clock_ns;         /* us_clock_file_ns() */
	int64_t mono_ns, wall_ns; /* the same moment by the other clocks */
	struct us_file_stat db;
	struct us_locks locks;
	struct us_file_stat wal, journal; /* all zero: no such file */
	int wal_live;                     /* it has a valid header: WAL_HEADER */
	int journal_live;                 /* it could be hot: its first byte is not zero */
	int dotfile;                      /* unix-dotfile's lock stands beside it */
	struct us_wal_header wal_header;
};

/* Opens the directory and the database; the inode must be the source's. If the source says so,
 * the directory is KEPT's, or is kept there. */
int32_t us_files_open(struct us_files *files, const struct us_read_source *source,
		      struct us_files_dir *kept, struct us_error *err);
/* Accepts a files of which us_files_open failed; a second call does nothing. */
void us_files_close(struct us_files *files);

/* Looks at everything, anew each time; opens the -wal and -journal that matter. */
int32_t us_files_look(struct us_files *files, struct us_error *err);

/* The second look. 0 if the same file still has the name, with the same stat. */
int32_t us_files_same_db(const struct us_files *files, struct us_error *err);
int32_t us_files_same_journal(const struct us_files *files, struct us_error *err);
/* 0 if database and WAL are still those files, and the WAL the same generation. */
int32_t us_files_same_wal(const struct us_files *files, struct us_error *err);

#endif
