/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_TREE_H
#define US_BASE_TREE_H

#include "error.h"

/*
 * Opens REL (relative, no empty, "." or ".." component) below the directory
 * TREE_FD without following a symbolic link in any component and without
 * crossing into another mount: openat2(2) with RESOLVE_BENEATH |
 * RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV, else one openat per component.
 * FLAGS as of open(2); O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK and O_NOCTTY are added.
 * O_NOATIME is left out where it is not allowed.
 * DISPLAY names the file in messages. Returns the descriptor or US_E_*
 * (US_E_NOTFOUND if it is gone or is a link now).
 */
int32_t us_tree_open(int tree_fd, const char *rel, int flags, const char *display,
		     struct us_error *err);

/* Refuses a directory on a file system where other hosts' locks are invisible
 * or stats are cached (NFS, CIFS, 9p, FUSE, ...: all but those known to be
 * local). The message names the type. */
int32_t us_tree_check_filesystem(int dir_fd, const char *display, struct us_error *err);

/* Whether one mount of that file system may be several devices, as btrfs with its subvolumes:
 * 0 for those known to be one. */
int us_tree_has_devices(int dir_fd);

#endif
