/* SPDX-License-Identifier: Apache-2.0 */
/* A hash table of inodes: linear probing, at most half full. */
#include "made_dirs.h"

#include "../base/alloc.h"

#define CAP_FIRST 64u

void us_made_dirs_init(struct us_made_dirs *made)
{
	(void)pthread_mutex_init(&made->mutex, NULL); /* never fails on Linux */
	for (int i = 0; i < US_ENTER_COUNT; i++) {
		(void)pthread_mutex_init(&made->enter[i], NULL);
	}
}

void us_made_dirs_done(struct us_made_dirs *made)
{
	(void)pthread_mutex_destroy(&made->mutex); /* nobody restores any more */
	for (int i = 0; i < US_ENTER_COUNT; i++) {
		(void)pthread_mutex_destroy(&made->enter[i]);
	}
	us_free(made->slots);
}

/* The slot of the inode, or the free one where it would go. */
static struct us_made_dir *slot_of(struct us_made_dir *slots, size_t cap, uint64_t device,
				   uint64_t inode)
{
	size_t at = (size_t)((inode * UINT64_C(0x9E3779B97F4A7C15)) >> 32) % cap;
	while (slots[at].inode != 0 && (slots[at].inode != inode || slots[at].device != device)) {
		at = at + 1 == cap ? 0 : at + 1;
	}
	return &slots[at];
}

struct us_made_dir *us_made_dirs_find(struct us_made_dirs *made, uint64_t device, uint64_t inode)
{
	if (made->cap == 0) {
		return NULL;
	}
	struct us_made_dir *dir = slot_of(made->slots, made->cap, device, inode);
	return dir->inode ? dir : NULL;
}

static int grow(struct us_made_dirs *made)
{
	size_t cap = made->cap ? us_size_mul(made->cap, 2) : CAP_FIRST;
	struct us_made_dir *slots = us_alloc_array(cap, sizeof(*slots));
	if (!slots) {
		return -1;
	}
	for (size_t i = 0; i < made->cap; i++) {
		const struct us_made_dir *dir = &made->slots[i];
		if (dir->inode) {
			*slot_of(slots, cap, dir->device, dir->inode) = *dir;
		}
	}
	us_free(made->slots);
	made->slots = slots;
	made->cap = cap;
	return 0;
}

int32_t us_made_dirs_add(struct us_made_dirs *made, uint64_t device, uint64_t inode, uint32_t uid)
{
	if (2 * (made->count + 1) > made->cap && grow(made)) {
		return US_E_NOMEM;
	}
	struct us_made_dir *dir = slot_of(made->slots, made->cap, device, inode);
	made->count += dir->inode == 0;
	*dir = (struct us_made_dir){ .device = device, .inode = inode, .uid = uid };
	return 0;
}
