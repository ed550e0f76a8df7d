/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Positioned reads, and private copies in the spool. Files are read with pread,
 * never mapped: a file that its owner truncates gives a short read here, a
 * mapping would give SIGBUS.
 *
 * The spool shares a disk with the databases more often than not. Filling it
 * would stop the applications that we are here to protect, so a tenth of it is
 * left alone; only a reflink, which takes no room of its own, needs no more than
 * that.
 */
#include "source.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/spool.h"

int64_t us_read_at(int fd, void *ret, size_t len, uint64_t off, const char *what,
		   struct us_error *err)
{
	size_t done = 0;
	while (done < len) {
		ssize_t n = pread(fd, (uint8_t *)ret + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			(void)us_fail_errno(err, errno, "cannot read \"%s\"", what);
			return US_E_IO;
		}
		if (n == 0) {
			break;
		}
		done += (size_t)n;
	}
	return (int64_t)done;
}

int64_t us_source_read(const struct us_source *source, uint64_t off, void *ret, size_t len,
		       const char *what, struct us_error *err)
{
	if (off >= source->len) {
		return 0;
	}
	if (len > source->len - off) {
		len = (size_t)(source->len - off);
	}
	if (!source->mem) {
		return us_read_at(source->fd, ret, len, off, what, err);
	}
	memcpy(ret, source->mem + off, len);
	return (int64_t)len;
}

int32_t us_window_view(struct us_window *window, uint64_t off, size_t len, const uint8_t **ret_view,
		       struct us_error *err)
{
	const struct us_source *source = window->source;
	if (off > source->len || len > source->len - off) {
		*ret_view = NULL;
		return 0;
	}
	if (source->mem) {
		*ret_view = source->mem + off;
		return 0;
	}
	if (off < window->off || off - window->off > window->len ||
	    len > window->len - (size_t)(off - window->off)) {
		int64_t n =
			us_source_read(source, off, window->buf, window->cap, window->what, err);
		if (n < 0) {
			return (int32_t)n;
		}
		window->off = off;
		window->len = (size_t)n;
	}
	size_t start = (size_t)(off - window->off);
	*ret_view = len <= window->len - start ? window->buf + start : NULL;
	return 0;
}

static int32_t copy_bytes(int from_fd, int to_fd, uint64_t len, uint8_t *buf, size_t buf_len,
			  const char *what, uint64_t *ret_len, struct us_error *err)
{
	uint64_t done = 0;
	while (done < len) {
		size_t piece = len - done < buf_len ? (size_t)(len - done) : buf_len;
		int64_t n = us_read_at(from_fd, buf, piece, done, what, err);
		if (n < 0) {
			return (int32_t)n;
		}
		if (n == 0) {
			break;
		}
		int32_t rc = us_spool_write(to_fd, buf, (size_t)n, err);
		if (rc) {
			return rc;
		}
		done += (uint64_t)n;
	}
	*ret_len = done;
	return 0;
}

static int32_t clone_or_copy(int spool_fd, int from_fd, int to_fd, uint64_t len, uint8_t *buf,
			     size_t buf_len, const char *what, uint64_t *ret_len,
			     struct us_error *err)
{
	struct stat st;
	if (!ioctl(to_fd, FICLONE, from_fd) && !fstat(to_fd, &st)) {
		*ret_len = (uint64_t)st.st_size < len ? (uint64_t)st.st_size : len;
		return 0;
	}
	int32_t rc = us_spool_check_room(spool_fd, len, err);
	return rc ? rc : copy_bytes(from_fd, to_fd, len, buf, buf_len, what, ret_len, err);
}

int32_t us_spool_copy(int spool_fd, int fd, uint64_t len, uint8_t *buf, size_t buf_len,
		      const char *what, int *ret_fd, uint64_t *ret_len, struct us_error *err)
{
	int copy_fd = us_spool_file(spool_fd, err);
	if (copy_fd < 0) {
		return copy_fd;
	}
	uint64_t copied = 0;
	int32_t rc = clone_or_copy(spool_fd, fd, copy_fd, len, buf, buf_len, what, &copied, err);
	if (rc) {
		(void)close(copy_fd); /* has no name: nothing stays behind */
		return rc;
	}
	*ret_fd = copy_fd;
	*ret_len = copied;
	return 0;
}
