/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Durability for many files at once. An fsync for each of 20,000 files and their
 * directories is as many commits of the file system's journal; two syncfs a batch are
 * two. syncfs reports failed write-back since Linux 5.8.
 *
 * The order is that of a single restore: contents durable, then names, then names
 * durable. A name that could not be made durable is taken back, as us_place does.
 */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "place.h"

#define SMALL_COUNT 8

static int is_first_of_device(const struct us_batch_item *items, size_t index)
{
	for (size_t i = 0; i < index; i++) {
		if (items[i].device == items[index].device) {
			return 0;
		}
	}
	return 1;
}

/* As it was, unless the name is somebody else's by now. */
static void take_back(const struct us_output *o)
{
	struct stat ours, there;
	if (!fstat(o->temp_fd, &ours) &&
	    !fstatat(o->dir_fd, o->name, &there, AT_SYMLINK_NOFOLLOW) &&
	    ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) {
		(void)unlinkat(o->dir_fd, o->name, 0); /* the failure is told anyway */
	}
}

static void fail_device(struct us_batch_item *items, size_t count, uint64_t device, int placed,
			int sys_errno)
{
	for (size_t i = 0; i < count; i++) {
		struct us_batch_item *item = &items[i];
		if (item->device != device || item->rc || item->is_placed != placed) {
			continue;
		}
		item->rc = us_fail_errno(&item->err, sys_errno,
					 "cannot make the restored file of \"%s\" durable",
					 item->output->shown);
		if (placed) {
			take_back(item->output);
		}
	}
}

/* PLACED: for those that have their names and need it, else for those that wait. */
static void sync_devices(struct us_batch_item *items, size_t count, int placed)
{
	for (size_t i = 0; i < count; i++) {
		if (is_first_of_device(items, i) && syncfs(items[i].output->temp_fd)) {
			fail_device(items, count, items[i].device, placed, errno);
		}
	}
}

static void sync_one(struct us_batch_item *item)
{
	if (fsync(item->output->temp_fd)) {
		item->rc = us_fail_errno(&item->err, errno,
					 "cannot make the restored file of \"%s\" durable",
					 item->output->shown);
	}
}

void us_batch_commit(struct us_batch_item *items, size_t count, int force, int made_dirs,
		     const _Atomic uint32_t *cancel)
{
	int many = count > SMALL_COUNT || made_dirs;
	for (size_t i = 0; i < count; i++) {
		struct stat st;
		struct us_batch_item *item = &items[i];
		item->rc = fstat(item->output->temp_fd, &st)
				   ? us_fail_errno(&item->err, errno, "cannot look at \"%s\"",
						   item->output->shown)
				   : 0;
		item->is_placed = 0;
		item->device = item->rc ? 0 : st.st_dev;
		if (!many && !item->rc) {
			sync_one(item);
		}
	}
	if (many) {
		sync_devices(items, count, 0);
	}
	for (size_t i = 0; i < count; i++) {
		struct us_batch_item *item = &items[i];
		if (item->rc) {
			continue;
		}
		int32_t rc = us_place(item->output, force, many, cancel, &item->err);
		item->is_placed = rc == 1;
		item->rc = rc > 0 ? 0 : rc;
	}
	if (many) {
		sync_devices(items, count, 1);
	}
	for (size_t i = 0; i < count; i++) {
		if (!items[i].rc) {
			items[i].output->made_len = 0; /* its directories stay */
		}
	}
}
