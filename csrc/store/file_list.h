/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_FILE_LIST_H
#define US_STORE_FILE_LIST_H

#include "store.h"

/*
 * Lists the regular files below ROOT_FD whose path begins with PREFIX, in byte
 * order of the whole path ("a.b" before "a/b"), as S3 does. Names with a leading
 * dot and links are passed over; memory is one directory's names per level.
 */
int32_t us_file_list(int root_fd, const char *prefix, us_store_list_fn *fn, void *arg,
		     const _Atomic uint32_t *cancel, struct us_error *err);

#endif
