/* SPDX-License-Identifier: Apache-2.0 */
#include "spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "dir.h"

/* ".us-" and 16 hex digits: what create_and_unlink makes. Nothing else is ours. */
static void remove_leftover(int dir_fd, const char *name)
{
	if (strncmp(name, ".us-", 4) == 0 && strlen(name) == 20 &&
	    strspn(name + 4, "0123456789abcdef") == 16) {
		(void)unlinkat(dir_fd, name, 0); /* only takes room if it stays */
	}
}

int32_t us_spool_open(const char *state_dir, struct us_error *err)
{
	char path[4200];
	if (snprintf(path, sizeof(path), "%s/spool", state_dir) >= (int)sizeof(path)) {
		return us_fail(err, US_E_CONFIG, "state_dir: path of %zu bytes is too long",
			       strlen(state_dir));
	}
	if (mkdir(path, 0700) && errno != EEXIST) {
		return us_fail_errno(err, errno, "state_dir: cannot create \"%s\"", path);
	}
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		return us_fail_errno(err, errno, "state_dir: cannot open \"%s\"", path);
	}
	us_dir_each_name(fd, remove_leftover);
	return fd;
}

/* For file systems without O_TMPFILE: named for a moment. */
static int create_and_unlink(int spool_fd)
{
	uint64_t random = 0;
	char name[32];
	if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
		return -1;
	}
	(void)snprintf(name, sizeof(name), ".us-%016llx", (unsigned long long)random);
	int fd = openat(spool_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0) {
		(void)unlinkat(spool_fd, name, 0); /* removed at the next start if it stays */
	}
	return fd;
}

int32_t us_spool_check_room(int fd, uint64_t len, struct us_error *err)
{
	struct statvfs fs;
	if (fstatvfs(fd, &fs)) {
		return us_fail_errno(err, errno, "cannot ask for the free space of state_dir");
	}
	if (fs.f_bavail < fs.f_blocks / 10 + len / fs.f_frsize) {
		return us_fail(err, US_E_NOSPACE,
			       "no room to spool %llu bytes: the disk of state_dir has to stay 10 "
			       "%% free; "
			       "databases too large for memory_limit are not backed up until there "
			       "is room",
			       (unsigned long long)len);
	}
	return 0;
}

int32_t us_spool_file(int spool_fd, struct us_error *err)
{
	int32_t rc = us_spool_check_room(spool_fd, 0, err);
	if (rc) {
		return rc;
	}
	int fd = openat(spool_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
		fd = create_and_unlink(spool_fd);
	}
	if (fd < 0) {
		rc = us_fail_errno(err, errno, "cannot create a file in the spool of state_dir");
		return rc == US_E_NOSPACE ? rc : US_E_IO;
	}
	return fd;
}

int32_t us_spool_write(int fd, const void *data, size_t data_len, struct us_error *err)
{
	int32_t rc = us_spool_check_room(fd, data_len, err);
	if (rc) {
		return rc;
	}
	const uint8_t *p = data;
	while (data_len > 0) {
		ssize_t n = write(fd, p, data_len);
		if (n < 0 && errno != EINTR) {
			return us_fail_errno(err, errno, "cannot write to the spool of state_dir");
		}
		if (n > 0) {
			p += n;
			data_len -= (size_t)n;
		}
	}
	return 0;
}
