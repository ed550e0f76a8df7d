/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_DIR_H
#define US_BASE_DIR_H

/* Calls FN for each name in the directory but "." and "..", as far as it can be read. */
void us_dir_each_name(int dir_fd, void (*fn)(int dir_fd, const char *name));

/* Unlinks every file in the directory; what cannot be unlinked stays. */
void us_dir_remove_files(int dir_fd);

#endif
