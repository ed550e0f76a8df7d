/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_FUZZ_FILES_H
#define US_TESTS_FUZZ_FILES_H

/* Files that a target makes of its input. */

#include "fuzz.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/scratch.h"

/* A file of DATA and then of zeros up to LEN; none if DATA is NULL. */
static inline void put_file(int dir_fd, const char *name, const char *data, size_t data_len,
			    size_t len)
{
	if (!data) {
		(void)unlinkat(dir_fd, name, 0);
		return;
	}
	int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	require(fd >= 0 && write(fd, data, data_len) == (ssize_t)data_len);
	require(len <= data_len || ftruncate(fd, (off_t)len) == 0);
	(void)close(fd);
}

/* Reads up to CAP bytes of a file; returns how many it has, 0 if there is none. */
static inline size_t get_file(int dir_fd, const char *name, void *ret, size_t cap)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd >= 0 ? read(fd, ret, cap) : 0;
	require(len >= 0);
	if (fd >= 0) {
		(void)close(fd);
	}
	return (size_t)len;
}

#endif
