/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys are taken in runs of the same directory: it is opened once, its files are
 * unlinked, it and its parents are removed as far as they are empty, and the first that
 * stays is made durable, which covers what was removed below it. Where there are more
 * than FEW_RUNS of them, one syncfs at the end does that for all.
 *
 * A put that is about to place an object in a directory that goes at this moment fails,
 * and comes again with the next cycle.
 */
#include "file_remove.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/tree.h"

#define KEY_LEN_MAX 1024
#define FEW_RUNS 16

struct remover {
	int root_fd;
	int sync_each;
	size_t removed;
	int32_t rc; /* the first failure, in ERR too */
	struct us_error *err;
};

/* Where the next failure is to be described: only the first is kept. */
static struct us_error *err_of(struct remover *r)
{
	return r->rc ? NULL : r->err;
}

static void note_failure(struct remover *r, int32_t rc)
{
	r->rc = r->rc ? r->rc : rc;
}

static size_t dir_len_of(const char *key)
{
	const char *slash = strrchr(key, '/');
	return slash ? (size_t)(slash - key) : 0;
}

static int is_same_dir(const char *a, const char *b)
{
	size_t len = dir_len_of(a);
	return len == dir_len_of(b) && memcmp(a, b, len) == 0;
}

static size_t count_runs(const char *const *keys, size_t count)
{
	size_t runs = 0;
	for (size_t i = 0; i < count; i++) {
		runs += i == 0 || !is_same_dir(keys[i - 1], keys[i]);
	}
	return runs;
}

/* DIR "" is the root. A descriptor to be closed, or US_E_*. */
static int32_t open_dir(struct remover *r, const char *dir)
{
	if (dir[0] == '\0') {
		int fd = fcntl(r->root_fd, F_DUPFD_CLOEXEC, 0);
		return fd >= 0 ? fd : us_fail_errno(err_of(r), errno, "DELETE");
	}
	return us_tree_open(r->root_fd, dir, O_RDONLY | O_DIRECTORY, dir, err_of(r));
}

/* Removes the directory DIR, open as DIR_FD, and its parents while they are empty, and
 * cuts DIR to what stays. Returns that one's descriptor or US_E_*. */
static int32_t remove_empty(struct remover *r, char *dir, int32_t dir_fd)
{
	while (dir[0] != '\0') {
		char *slash = strrchr(dir, '/');
		char *name = slash ? slash + 1 : dir;
		char parent[KEY_LEN_MAX + 1];
		(void)snprintf(parent, sizeof(parent), "%.*s", slash ? (int)(slash - dir) : 0, dir);
		int32_t parent_fd = open_dir(r, parent);
		if (parent_fd < 0) {
			(void)close(dir_fd); /* a directory */
			return parent_fd;
		}
		if (unlinkat(parent_fd, name, AT_REMOVEDIR)) {
			(void)close(parent_fd); /* it holds more, or is held: it stays */
			return dir_fd;
		}
		(void)close(dir_fd); /* it is gone */
		dir_fd = parent_fd;
		memcpy(dir, parent, sizeof(parent));
	}
	return dir_fd;
}

static size_t unlink_run(struct remover *r, int dir_fd, const char *const *keys, size_t count)
{
	size_t gone = 0;
	for (size_t i = 0; i < count; i++) {
		const char *slash = strrchr(keys[i], '/');
		if (unlinkat(dir_fd, slash ? slash + 1 : keys[i], 0) && errno != ENOENT) {
			note_failure(r, us_fail_errno(err_of(r), errno, "DELETE \"%s\"", keys[i]));
		} else {
			gone++;
		}
	}
	return gone;
}

static void remove_run(struct remover *r, const char *const *keys, size_t count)
{
	char dir[KEY_LEN_MAX + 1];
	size_t dir_len = dir_len_of(keys[0]);
	if (dir_len > KEY_LEN_MAX) {
		note_failure(r, us_fail(err_of(r), US_E_ARG, "DELETE: a key of more than %d bytes",
					KEY_LEN_MAX));
		return;
	}
	memcpy(dir, keys[0], dir_len);
	dir[dir_len] = '\0';
	int32_t fd = open_dir(r, dir);
	if (fd == US_E_NOTFOUND) { /* and with it all that was in it */
		us_error_clear(err_of(r));
		r->removed += count;
		return;
	}
	if (fd < 0) {
		note_failure(r, fd);
		return;
	}
	size_t gone = unlink_run(r, fd, keys, count);
	fd = remove_empty(r, dir, fd);
	if (fd < 0) {
		note_failure(r, fd);
		return;
	}
	if (r->sync_each && fsync(fd)) {
		note_failure(r, us_fail_errno(err_of(r), errno,
					      "DELETE \"%s\": cannot make it durable", keys[0]));
		gone = 0;
	}
	(void)close(fd); /* synced, or will be */
	r->removed += gone;
}

int32_t us_file_remove_many(int root_fd, const char *const *keys, size_t count,
			    const _Atomic uint32_t *cancel, size_t *ret_removed,
			    struct us_error *err)
{
	struct remover r = { .root_fd = root_fd,
			     .sync_each = count_runs(keys, count) <= FEW_RUNS,
			     .err = err };
	for (size_t start = 0, end; start < count; start = end) {
		if (*cancel) {
			note_failure(&r, us_fail(err_of(&r), US_E_CANCELED, "canceled"));
			break;
		}
		for (end = start + 1; end < count && is_same_dir(keys[start], keys[end]);) {
			end++;
		}
		remove_run(&r, keys + start, end - start);
	}
	if (!r.sync_each && syncfs(root_fd)) {
		note_failure(&r,
			     us_fail_errno(err_of(&r), errno, "DELETE: cannot make it durable"));
		r.removed = 0;
	}
	*ret_removed = r.removed;
	return r.rc;
}
