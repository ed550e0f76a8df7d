/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_FILE_VERSION_H
#define US_STORE_FILE_VERSION_H

#include "store.h"

/* For file.c: read_version and write_version of store.h in a directory. KEY has one
 * slash; TMP_FD is this process's directory for temporary files. One thread at a time. */
int32_t us_file_read_version(int root_fd, const char *key, uint8_t *ret_data, size_t cap,
			     size_t *ret_len, struct us_store_version *ret_version,
			     struct us_error *err);
int32_t us_file_write_version(int root_fd, int tmp_fd, const char *key, const char *tag,
			      const uint8_t *data, size_t data_len, struct us_error *err);

#endif
