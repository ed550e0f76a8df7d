/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_SPOOL_H
#define US_BASE_SPOOL_H

#include "error.h"

/*
 * The spool directory `<state_dir>/spool` (0700): bytes that are too many for
 * memory. Its files have no name, so they vanish with the process.
 */

/* Creates and opens it below STATE_DIR, and removes what a killed run on a file
 * system without O_TMPFILE may have left. Returns a descriptor or US_E_*. */
int32_t us_spool_open(const char *state_dir, struct us_error *err);

/* Whether the disk stays a tenth free with LEN more bytes on it: filling it would
 * stop the applications whose databases live there. FD is of the spool directory or a
 * file in it. 0, US_E_NOSPACE, or US_E_*. */
int32_t us_spool_check_room(int fd, uint64_t len, struct us_error *err);

/* A new unnamed file, read and write, 0600; looks for room first. Returns a
 * descriptor or US_E_*. */
int32_t us_spool_file(int spool_fd, struct us_error *err);

/* Writes all of DATA at the file's position, if there is room. 0 or US_E_*. */
int32_t us_spool_write(int fd, const void *data, size_t data_len, struct us_error *err);

#endif
