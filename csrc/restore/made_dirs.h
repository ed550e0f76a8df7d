/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_MADE_DIRS_H
#define US_RESTORE_MADE_DIRS_H

#include <pthread.h>
#include <stddef.h>

#include "../base/error.h"

/*
 * The directories that a fleet restore has made and given to the owner of a database in or
 * below them, so that they can be taken back when one of another owner follows: nobody
 * shall own, and so be able to empty, a directory that he shares.
 */
struct us_made_dir {
	uint64_t device, inode; /* inode 0: a free slot */
	uint32_t uid;
	uint32_t is_shared; /* taken back */
};

#define US_ENTER_COUNT 64

struct us_made_dirs {
	/* By directory: workers of one fleet wait for each other here, and only for other
	 * processes at the directory's flock, where waiting is polling. Held as that is. */
	pthread_mutex_t enter[US_ENTER_COUNT];
	pthread_mutex_t mutex; /* held while one item makes or gives away directories */
	uint32_t uid;          /* of the first database */
	int has_uid;
	int is_mixed; /* another owner has come */
	struct us_made_dir *slots;
	size_t count, cap;
};

void us_made_dirs_init(struct us_made_dirs *made); /* of zeroed memory */
void us_made_dirs_done(struct us_made_dirs *made);

/* Both want the mutex. Find: NULL if it is not one. Add: US_E_NOMEM. */
struct us_made_dir *us_made_dirs_find(struct us_made_dirs *made, uint64_t device, uint64_t inode);
int32_t us_made_dirs_add(struct us_made_dirs *made, uint64_t device, uint64_t inode, uint32_t uid);

#endif
