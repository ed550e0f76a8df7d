/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Databases that Litestream itself replicates in this process. POSIX locks belong to
 * the process: closing any descriptor of such a file would drop the locks that
 * Litestream's SQLite holds on it. The pattern does not match their paths (that is
 * checked when they are configured), but a tenant could give one another name with a
 * hard link. So they are known by device and inode, and looked up anew each cycle.
 */
#include "fleet.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../base/alloc.h"

/* Stats outside the mutex: paths are only ever added, and never change. */
static void look(const char *path, struct us_foreign *ret)
{
	static const char *const suffixes[2] = { "", "-shm" };
	for (int i = 0; i < 2; i++) {
		char name[US_PATH_LEN_MAX + 8];
		struct stat st;
		(void)snprintf(name, sizeof(name), "%s%s", path, suffixes[i]);
		int exists = !stat(name, &st);
		ret->files[i].device = exists ? st.st_dev : 0;
		ret->files[i].inode = exists ? st.st_ino : 0;
	}
}

int32_t us_foreign_add(struct us *us, const char *path, struct us_error *err)
{
	struct us_foreign added = { .path = us_strdup(path) };
	if (!added.path) {
		return us_fail_nomem(err);
	}
	look(path, &added);
	(void)pthread_mutex_lock(&us->mutex);
	size_t len = us_size_mul(us->foreign_count + 1, sizeof(added));
	struct us_foreign *foreign = us_realloc(us->foreign, len);
	if (foreign) {
		us->foreign = foreign;
		us->foreign[us->foreign_count++] = added;
		us->has_foreign = 1;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (!foreign) {
		us_free(added.path);
		return us_fail_nomem(err);
	}
	return 0;
}

void us_foreign_refresh(struct us *us)
{
	for (size_t i = 0;; i++) {
		(void)pthread_mutex_lock(&us->mutex);
		struct us_foreign one = { .path = i < us->foreign_count ? us->foreign[i].path
									: NULL };
		(void)pthread_mutex_unlock(&us->mutex);
		if (!one.path) {
			return;
		}
		look(one.path, &one);
		(void)pthread_mutex_lock(&us->mutex);
		us->foreign[i] = one;
		(void)pthread_mutex_unlock(&us->mutex);
	}
}

int us_foreign_has(void *arg, uint64_t device, uint64_t inode)
{
	struct us *us = arg;
	int found = 0;
	(void)pthread_mutex_lock(&us->mutex);
	for (size_t i = 0; i < us->foreign_count && !found; i++) {
		for (int k = 0; k < 2; k++) {
			found |= us->foreign[i].files[k].inode == inode &&
				 us->foreign[i].files[k].device == device;
		}
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return found;
}

void us_foreign_free(struct us *us)
{
	for (size_t i = 0; i < us->foreign_count; i++) {
		us_free(us->foreign[i].path);
	}
	us_free(us->foreign);
}
