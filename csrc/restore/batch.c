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

static void fail_device(struct us_batch_item *items, size_t count, uint64_t device, int sys_errno)
{
	for (size_t i = 0; i < count; i++) {
		struct us_batch_item *item = &items[i];
		if (item->device != device || item->rc) {
			continue;
		}
		item->rc = us_fail_errno(&item->err, sys_errno,
					 "cannot make the restored file of \"%s\" durable",
					 item->output->shown);
		if (item->is_placed) {
			/* as it was; the failure is told anyway */
			(void)unlinkat(item->output->dir_fd, item->output->name, 0);
		}
	}
}

static void sync_devices(struct us_batch_item *items, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (is_first_of_device(items, i) && syncfs(items[i].output->temp_fd)) {
			fail_device(items, count, items[i].device, errno);
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
		item->device = item->rc ? 0 : st.st_dev;
		if (!many && !item->rc) {
			sync_one(item);
		}
	}
	if (many) {
		sync_devices(items, count);
	}
	for (size_t i = 0; i < count; i++) {
		struct us_batch_item *item = &items[i];
		if (item->rc) {
			continue;
		}
		int32_t rc = us_place(item->output, force, many, cancel, &item->err);
		item->is_placed = rc > 0;
		item->rc = rc > 0 ? 0 : rc;
	}
	if (many) {
		sync_devices(items, count);
	}
}
