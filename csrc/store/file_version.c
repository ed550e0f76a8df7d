/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small file that several processes take turns to write: its version is the SHA-256 of
 * its content. Whoever writes holds an open-file-description lock on `lock-owner` beside it from
 * the comparison to the rename; over NFS that lock holds between hosts, too. Nobody keeps
 * it longer than that, so it is waited for LOCK_TRIES times only: one that is stopped at
 * that moment must not stop the others for good.
 */
#include "file_version.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/clock.h"
#include "../base/hex.h"
#include "../base/tree.h"

#define LOCK_TRIES 50
#define LOCK_WAIT_NS (20 * US_NS_PER_MS)
#define TMP_NAME "version"
#define LOCK_NAME "lock-owner" /* not "lock": a state directory may be the same one */
#define DIR_LEN_MAX 64

_Static_assert(2 * SHA256_DIGEST_LENGTH <= US_STORE_TAG_LEN_MAX, "a tag holds the hash");

/* Reads up to CAP bytes from the start. Their count, or -1 with errno. */
static ssize_t read_whole(int fd, uint8_t *ret_data, size_t cap)
{
	size_t len = 0;
	while (len < cap) {
		ssize_t n = pread(fd, ret_data + len, cap - len, (off_t)len);
		if (n == 0) {
			break;
		}
		if (n < 0 && errno != EINTR) {
			return -1;
		}
		len += n > 0 ? (size_t)n : 0;
	}
	return (ssize_t)len;
}

static void tag_of(const uint8_t *data, size_t data_len, char *ret_tag)
{
	uint8_t sha256[SHA256_DIGEST_LENGTH];
	SHA256(data, data_len, sha256);
	us_hex(sha256, sizeof(sha256), ret_tag);
}

int32_t us_file_read_version(int root_fd, const char *key, uint8_t *ret_data, size_t cap,
			     size_t *ret_len, struct us_store_version *ret_version,
			     struct us_error *err)
{
	struct stat st;
	int fd = us_tree_open(root_fd, key, O_RDONLY, key, err);
	if (fd < 0) {
		return fd;
	}
	int32_t rc = 0;
	ssize_t len = 0;
	if (fstat(fd, &st) || (len = read_whole(fd, ret_data, cap)) < 0) {
		rc = us_fail_errno(err, errno, "GET \"%s\": cannot read it", key);
	} else if (!S_ISREG(st.st_mode) || st.st_size != len) {
		rc = us_fail(err, US_E_OBJECT,
			     "GET \"%s\": it is no regular file, or has more than %zu bytes", key,
			     cap);
	}
	(void)close(fd); /* only read from */
	if (rc) {
		return rc;
	}
	int64_t age_s = us_clock_wall_ns() / US_NS_PER_S - st.st_mtim.tv_sec;
	*ret_len = (size_t)len;
	tag_of(ret_data, (size_t)len, ret_version->tag);
	ret_version->age_s = age_s > 0 ? age_s : 0;
	return 0;
}

static int take_lock(int dir_fd)
{
	int fd = openat(dir_fd, LOCK_NAME, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
			0600);
	for (int tries = 0; fd >= 0; tries++) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		if (!fcntl(fd, F_OFD_SETLK, &lock)) {
			return fd;
		}
		if (tries == LOCK_TRIES || (errno != EAGAIN && errno != EACCES)) {
			int saved = errno;
			(void)close(fd); /* not locked */
			errno = saved;
			return -1;
		}
		us_clock_sleep_ns(LOCK_WAIT_NS);
	}
	return -1;
}

/* 0, US_E_EXISTS, or why it cannot be told. */
static int32_t compare(int root_fd, const char *key, const char *tag, struct us_error *err)
{
	uint8_t data[4096];
	size_t len;
	struct us_store_version version = { .tag = "" };
	int32_t rc = us_file_read_version(root_fd, key, data, sizeof(data), &len, &version, err);
	if (rc && rc != US_E_NOTFOUND) {
		return rc;
	}
	return strcmp(version.tag, tag) == 0
		       ? 0
		       : us_fail(err, US_E_EXISTS, "PUT \"%s\": another process has written it",
				 key);
}

static int write_durably(int tmp_fd, const uint8_t *data, size_t data_len)
{
	int fd = openat(tmp_fd, TMP_NAME, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
			0600);
	if (fd < 0) {
		return -1;
	}
	size_t at = 0;
	int failed = 0;
	while (at < data_len && !failed) {
		ssize_t n = write(fd, data + at, data_len - at);
		failed = n < 0 && errno != EINTR;
		at += n > 0 ? (size_t)n : 0;
	}
	failed = failed || fsync(fd);
	int saved = errno;
	(void)close(fd); /* synced, or failed already */
	errno = saved;
	return failed ? -1 : 0;
}

int32_t us_file_write_version(int root_fd, int tmp_fd, const char *key, const char *tag,
			      const uint8_t *data, size_t data_len, struct us_error *err)
{
	char dir[DIR_LEN_MAX + 1];
	const char *name = strchr(key, '/') + 1;
	size_t dir_len = (size_t)(name - key) - 1;
	US_ASSERT(dir_len <= DIR_LEN_MAX);
	memcpy(dir, key, dir_len);
	dir[dir_len] = '\0';
	if (mkdirat(root_fd, dir, 0700) && errno != EEXIST) {
		return us_fail_errno(err, errno, "PUT \"%s\": cannot create its directory", key);
	}
	int dir_fd = us_tree_open(root_fd, dir, O_RDONLY | O_DIRECTORY, dir, err);
	if (dir_fd < 0) {
		return dir_fd;
	}
	int32_t rc = 0;
	int lock_fd = take_lock(dir_fd);
	if (lock_fd < 0) {
		rc = us_fail_errno(err, errno, "PUT \"%s\": cannot lock \"%s/" LOCK_NAME "\"", key,
				   dir);
		goto out;
	}
	rc = tag ? compare(root_fd, key, tag, err) : 0;
	if (rc) {
		goto out;
	}
	if (write_durably(tmp_fd, data, data_len) || renameat(tmp_fd, TMP_NAME, dir_fd, name) ||
	    fsync(dir_fd) || fsync(root_fd)) {
		rc = us_fail_errno(err, errno, "PUT \"%s\": cannot write it", key);
	}
out:
	if (lock_fd >= 0) {
		(void)close(lock_fd); /* releases the lock */
	}
	(void)close(dir_fd); /* a directory */
	return rc;
}
