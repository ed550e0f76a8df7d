/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_FAULT_TARGET_H
#define US_FAULT_TARGET_H

#include "fleet.h"

/* What a target holds, read without the core: liblz4, SHA-256, and the layout of
 * docs/formats.md. A bucket is read where its server keeps it. */

#define TARGET_OBJECTS_MAX 64

struct target_db {
	struct {
		uint32_t time_s;  /* in the name */
		uint32_t version; /* of the fleet: what the object restores to */
	} objects[TARGET_OBJECTS_MAX]; /* in the order of names */
	uint32_t count;
};

struct target {
	struct target_db dbs[64];
	uint32_t object_count;
};

/* Before the processes that read. */
void target_init(void);
/* This process is a clean run: what it decodes need not be decoded again. */
void target_learn(void);

/* Every visible object below DIR must be complete, and one of a database of FLEET. NULL,
 * or what is wrong. */
const char *target_read(const char *dir, const struct fleet *fleet, struct target *ret);

/* The object KEY (<group>/<name>/<time>.db.lz4) with these bytes goes to RET. */
const char *target_add(const char *key, const uint8_t *data, size_t len,
		       const struct fleet *fleet, struct target *ret);

/* Of the newest object of database DB; 0: there is none. */
uint32_t target_newest(const struct target *target, uint32_t db);

#endif
