/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_FILE_REMOVE_H
#define US_STORE_FILE_REMOVE_H

#include "store.h"

/*
 * Removes the files KEYS below ROOT_FD, durably, and the directories that became empty
 * by it, up to the root. A file that is not there counts as removed. No link is followed.
 * The first failure does not keep the others from being removed; RET_REMOVED: how many
 * are gone for sure, also then.
 */
int32_t us_file_remove_many(int root_fd, const char *const *keys, size_t count,
			    const _Atomic uint32_t *cancel, size_t *ret_removed,
			    struct us_error *err);

#endif
