/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_BATCH_H
#define US_RESTORE_BATCH_H

#include "output.h"

/* A restored file that is complete, beside its output, and waits for its name. */
struct us_batch_item {
	struct us_output *output;
	void *owner; /* the caller's, untouched */
	/* set by us_batch_commit */
	int32_t rc;
	struct us_error err;
	/* its own */
	uint64_t device;
	int is_placed; /* durable only after the next syncfs */
};

/*
 * Makes all COUNT files durable, gives them their names, and makes those durable: with
 * two syncfs for each file system where there are many or directories were made on the
 * way (MADE_DIRS), else one by one. Each item's rc says what became of it; as for us_place.
 */
void us_batch_commit(struct us_batch_item *items, size_t count, int force, int made_dirs,
		     const _Atomic uint32_t *cancel);

#endif
