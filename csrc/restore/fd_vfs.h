/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_FD_VFS_H
#define US_RESTORE_FD_VFS_H

#include <sqlite3.h>

/*
 * Lets SQLite read the database in the file FD (borrowed until it is closed), as
 * immutable: nothing is written, locked or looked for beside it, and no name is
 * resolved, so nobody can slip another file in. SQLITE_OK, or as sqlite3_open_v2.
 */
int us_fd_vfs_open(int fd, sqlite3 **ret_db);

#endif
