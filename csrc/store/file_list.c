/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Directories in the order of S3 listings. Each level of the tree holds the names
 * of one directory, sorted as the paths below them sort: a directory compares with
 * a slash behind its name. A stack of levels, no recursion.
 */
#include "file_list.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/tree.h"

#define KEY_LEN_MAX 1024
#define DEPTH_MAX 512
#define DENTS_LEN 32768

/* struct linux_dirent64, getdents64(2): d_ino 8, d_off 8, d_reclen 2, d_type 1, name. */
#define DIRENT_RECLEN_OFF 16
#define DIRENT_NAME_OFF 19

struct level {
	char **names; /* each its own allocation; a directory's ends in '/' */
	size_t count, cap, next;
	size_t path_len; /* of the directory, with its slash */
};

struct lister {
	int root_fd;
	const char *prefix;
	size_t prefix_len;
	us_store_list_fn *fn;
	void *arg;
	struct us_error *err;
	char path[KEY_LEN_MAX + 2];
	struct level levels[DEPTH_MAX];
	size_t depth;
	char dents[DENTS_LEN];
};

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_level(struct level *level)
{
	for (size_t i = 0; i < level->count; i++) {
		us_free(level->names[i]);
	}
	us_free(level->names);
	memset(level, 0, sizeof(*level));
}

/* Whether a path can lead to the prefix or lies behind it. */
static int is_wanted(const struct lister *l, size_t dir_len, const char *name)
{
	size_t name_len = strlen(name);
	size_t left = l->prefix_len > dir_len ? l->prefix_len - dir_len : 0;
	size_t len = name_len < left ? name_len : left;
	return memcmp(name, l->prefix + dir_len, len) == 0 &&
	       (name_len >= left || name[name_len - 1] == '/');
}

static int32_t add_name(struct lister *l, struct level *level, const char *name, int is_directory)
{
	size_t len = strlen(name);
	if (level->count == level->cap) {
		size_t cap = level->cap ? level->cap * 2 : 16;
		char **names = us_realloc(level->names, us_size_mul(cap, sizeof(*names)));
		if (!names) {
			return us_fail_nomem(l->err);
		}
		level->names = names;
		level->cap = cap;
	}
	char *copy = us_alloc(len + 2);
	if (!copy) {
		return us_fail_nomem(l->err);
	}
	(void)snprintf(copy, len + 2, "%s%s", name, is_directory ? "/" : "");
	if (!is_wanted(l, level->path_len, copy) || level->path_len + len + 1 > KEY_LEN_MAX) {
		us_free(copy); /* a longer path cannot be a key */
		return 0;
	}
	level->names[level->count++] = copy;
	return 0;
}

static int32_t add_entry(struct lister *l, struct level *level, int dir_fd, const char *name)
{
	struct stat st;
	if (name[0] == '.') {
		return 0;
	}
	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW)) {
		return errno == ENOENT
			       ? 0
			       : us_fail_errno(l->err, errno, "LIST: cannot look at \"%s%s\"",
					       l->path, name);
	}
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
		return 0;
	}
	return add_name(l, level, name, S_ISDIR(st.st_mode));
}

/* Reads the directory l->path into a new level. */
static int32_t push_level(struct lister *l)
{
	if (l->depth == DEPTH_MAX) {
		return us_fail(l->err, US_E_IO, "LIST: \"%s\" is more than %d levels deep", l->path,
			       DEPTH_MAX);
	}
	struct level *level = &l->levels[l->depth++];
	level->path_len = strlen(l->path);
	char dir[KEY_LEN_MAX + 2];
	(void)snprintf(dir, sizeof(dir), "%s", level->path_len ? l->path : ".");
	if (level->path_len) {
		dir[level->path_len - 1] = '\0'; /* its slash */
	}
	int fd = us_tree_open(l->root_fd, dir, O_RDONLY | O_DIRECTORY, dir, l->err);
	if (fd < 0) {
		return fd == US_E_NOTFOUND ? 0 : fd; /* removed meanwhile */
	}
	int32_t rc = 0;
	long len;
	while (!rc && (len = syscall(SYS_getdents64, fd, l->dents, DENTS_LEN)) != 0) {
		if (len < 0) {
			rc = us_fail_errno(l->err, errno, "LIST: cannot read directory \"%s\"",
					   dir);
			break;
		}
		for (long at = 0; !rc && at < len;) {
			uint16_t reclen;
			memcpy(&reclen, l->dents + at + DIRENT_RECLEN_OFF, sizeof(reclen));
			rc = add_entry(l, level, fd, l->dents + at + DIRENT_NAME_OFF);
			at += reclen;
		}
	}
	(void)close(fd); /* only read from */
	if (level->count > 1) {
		qsort(level->names, level->count, sizeof(level->names[0]), compare_names);
	}
	return rc;
}

/* Gives out one file; its size as it is now. */
static int32_t give(struct lister *l)
{
	struct stat st;
	if (fstatat(l->root_fd, l->path, &st, AT_SYMLINK_NOFOLLOW)) {
		return errno == ENOENT || errno == ENOTDIR /* removed meanwhile */
			       ? 0
			       : us_fail_errno(l->err, errno, "LIST: cannot look at \"%s\"",
					       l->path);
	}
	if (!S_ISREG(st.st_mode)) {
		return 0; /* replaced meanwhile */
	}
	return l->fn(l->arg, l->path, strlen(l->path), (uint64_t)st.st_size);
}

int32_t us_file_list(int root_fd, const char *prefix, us_store_list_fn *fn, void *arg,
		     const _Atomic uint32_t *cancel, struct us_error *err)
{
	struct lister *l = us_alloc_zero(sizeof(*l));
	if (!l) {
		return us_fail_nomem(err);
	}
	l->root_fd = root_fd;
	l->prefix = prefix;
	l->prefix_len = strlen(prefix);
	l->fn = fn;
	l->arg = arg;
	l->err = err;
	int32_t rc = push_level(l);
	while (!rc && l->depth > 0) {
		struct level *level = &l->levels[l->depth - 1];
		if (*cancel) {
			rc = us_fail(err, US_E_CANCELED, "canceled");
		} else if (level->next == level->count) {
			free_level(level);
			l->depth--;
		} else {
			const char *name = level->names[level->next++];
			(void)snprintf(l->path + level->path_len, sizeof(l->path) - level->path_len,
				       "%s", name);
			rc = name[strlen(name) - 1] == '/' ? push_level(l) : give(l);
		}
	}
	while (l->depth > 0) {
		free_level(&l->levels[--l->depth]);
	}
	us_free(l);
	return rc;
}
