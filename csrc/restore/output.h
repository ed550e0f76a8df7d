/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_OUTPUT_H
#define US_RESTORE_OUTPUT_H

#include <limits.h>
#include <stddef.h>
#include <sys/stat.h>

#include "../base/error.h"
#include "../base/escape.h"
#include "made_dirs.h"

/*
 * The place where a database is restored to: its directory, the names that
 * belong to it, and what stands in the way. One per restore, on one thread.
 */

#define US_SIDE_COUNT 3 /* -wal, -shm, -journal, in this order */
#define US_SIDE_SHM 1
#define US_SIDE_NAME_LEN_MAX (NAME_MAX + 8) /* too long for the file system: does not exist */
#define US_HIDDEN_NAME_LEN_MAX 40
/* enter_wait_ns in a fleet: a directory that is locked for longer is come back to, others
 * must not wait. */
#define US_OUTPUT_FLEET_WAIT_NS INT64_C(100000000)
/* Of a directory that was just made, until us_output_set_dirs: one that nobody has else. */
#define US_OUTPUT_DIR_MODE 03700

struct us_output {
	const char *path;               /* borrowed */
	char shown[US_ESCAPE_SHOW_LEN]; /* path for messages */
	char dir[PATH_MAX];
	size_t tree_len; /* of DIR: below that no link is followed; 0: DIR is the operator's own */
	size_t made_len; /* of the first directory that was made, a prefix of DIR; 0: none */
	int defer_sync;  /* set by the caller: what is made is durable after its syncfs only */
	struct us_made_dirs *made_dirs; /* of a fleet, set by the caller; NULL: this one is alone */
	int64_t enter_wait_ns;          /* of us_output_enter; us_output_open sets 30 s */
	int dir_fd;                     /* -1: the directory does not exist (yet) */
	int temp_fd;                    /* the file being restored, or -1 */
	char name[NAME_MAX + 1];
	char side[US_SIDE_COUNT][US_SIDE_NAME_LEN_MAX + 1];
	/* Hidden names, the same in every restore of this output; place.c. */
	char temp[US_HIDDEN_NAME_LEN_MAX + 1];
	char before_new[US_HIDDEN_NAME_LEN_MAX + 1];
	char before_db[US_HIDDEN_NAME_LEN_MAX + 1];
	char before_side[US_SIDE_COUNT][US_HIDDEN_NAME_LEN_MAX + 1];
};

/* Splits PATH (borrowed) and opens its directory if that exists. Below the directory
 * TREE, which others may write to, no link is followed. Paired with us_output_close,
 * which is safe after a failure. */
int32_t us_output_open(struct us_output *o, const char *path, const char *tree,
		       struct us_error *err);
/* Closes; removes the temporary file if it is still there, and directories that
 * were made for it and are empty. */
void us_output_close(struct us_output *o);

/* Whether something is there under the name (a link is followed). 1, 0 or US_E_*. */
int32_t us_output_exists(const struct us_output *o, struct us_error *err);

/* The file or link NAME itself. 1, 0 (not there) or US_E_*. */
int32_t us_output_stat(const struct us_output *o, const char *name, struct stat *ret_st,
		       struct us_error *err);

/*
 * Refuses what may not be replaced: US_E_EXISTS for a database (not an empty
 * file) or a side file unless FORCE, and always for what is no regular file.
 * Then 0 with RET_PRESENT: 1 if a file has the name.
 */
int32_t us_output_check(const struct us_output *o, int force, int *ret_present,
			struct us_error *err);

/* US_E_BUSY if anybody holds one of SQLite's locks on the database or its -shm.
 * Takes none. */
int32_t us_output_probe(const struct us_output *o, struct us_error *err);

struct us_output_locks {
	int db_fd, shm_fd; /* -1: there is none */
};

/* Takes all of SQLite's locks on the database and its -shm, where they exist.
 * US_E_BUSY, and nothing is held, if anybody has one. */
int32_t us_output_lock(const struct us_output *o, struct us_output_locks *ret_locks,
		       struct us_error *err);
void us_output_unlock(struct us_output_locks *locks);

/*
 * One at a time: held for the short while in which names are looked at and
 * changed, by all restores into one directory (flock on it). Waits up to enter_wait_ns,
 * then US_E_BUSY. Goes without on file systems that cannot do it.
 */
int32_t us_output_enter(const struct us_output *o, const _Atomic uint32_t *cancel,
			struct us_error *err);
void us_output_leave(const struct us_output *o);

/*
 * Gives the directories that a restore has made on the way (this one, or another whose
 * database could not be restored) the owner of the database (as root), UID and GID, and a
 * mode that lets whoever may read it, by MODE, list them, and all pass. One that databases
 * of several owners share goes back to this process's user, with 0755. Directories that
 * were there stay as they are.
 */
int32_t us_output_set_dirs(const struct us_output *o, uint32_t uid, uint32_t gid, uint32_t mode,
			   struct us_error *err);

/* Makes the directory durably (each missing one, US_OUTPUT_DIR_MODE), then the temporary file
 * (0600). US_E_BUSY if another restore of this output is under way. */
int32_t us_output_temp(struct us_output *o, const _Atomic uint32_t *cancel, struct us_error *err);

/* Whether the temporary file's name still means the file in temp_fd. */
int us_output_has_temp(const struct us_output *o);

int32_t us_output_sync_dir(const struct us_output *o, struct us_error *err);

#endif
