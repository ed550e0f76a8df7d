/* SPDX-License-Identifier: Apache-2.0 */
#include "dir.h"

#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct linux_dirent64, getdents64(2): d_ino 8, d_off 8, d_reclen 2, d_type 1, name. */
#define DIRENT_RECLEN_OFF 16
#define DIRENT_NAME_OFF 19

void us_dir_each_name(int dir_fd, void (*fn)(int dir_fd, const char *name))
{
	char dents[4096];
	long len;
	while ((len = syscall(SYS_getdents64, dir_fd, dents, sizeof(dents))) > 0) {
		for (long at = 0; at < len;) {
			uint16_t reclen;
			memcpy(&reclen, dents + at + DIRENT_RECLEN_OFF, sizeof(reclen));
			const char *name = dents + at + DIRENT_NAME_OFF;
			if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
				fn(dir_fd, name);
			}
			at += reclen;
		}
	}
}

static void unlink_name(int dir_fd, const char *name)
{
	(void)unlinkat(dir_fd, name, 0); /* only takes room if it stays */
}

void us_dir_remove_files(int dir_fd)
{
	us_dir_each_name(dir_fd, unlink_name);
}
