/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_FAULT_PLACE_H
#define US_FAULT_PLACE_H

#include <stdint.h>

#include <ultrasimple.h>

#include "fleet.h"
#include "target.h"

/* Where one test runs: its state directory, its target, and what it restores. */

struct place {
	const struct fleet *fleet;
	int is_s3;
	uint64_t retention_s;
	uint32_t is_robbed; /* 1: somebody has removed the newest object of the first database, and
			     * nobody has noticed yet */
	char dir[512];	   /* all of it; templates too */
	char state[600];   /* the state directory */
	char target[600]; /* the target directory, or where the server keeps the bucket */
	char output[600]; /* the directory to restore to */
	const char *bucket; /* the last part of TARGET */
};

/* The server of all S3 places; its buckets are directories below RET_ROOT (512 bytes). */
void server_start(char *ret_root);
void server_stop(void);

/* Makes DIR and what is below; BUCKET_DIR: an S3 place, with its bucket there. */
void place_make(struct place *p, const struct fleet *fleet, const char *dir,
		const char *bucket_dir);

int32_t place_open(const struct place *p, uint32_t flags, struct us **ret_us, struct us_error *err);
int32_t place_cycle(struct us *us, struct us_cycle_result *ret, struct us_error *err);

/* Empties state and target, or makes them what place_save has kept under NAME. */
void place_clear(const struct place *p);
void place_load(const struct place *p, const char *name);
void place_save(const struct place *p, const char *name);

/* Something to do for a sweep that keeps PLACE_RETENTION_S: the oldest object of each database
 * has older ones beside it, and the newest of the first database is not there. */
#define PLACE_RETENTION_S 86400
void place_grow_old(const struct place *p);

/* All databases have their present version in the target; NULL, or what is wrong. */
const char *place_is_right(const struct place *p);
/* Each record that says "in the target" is true, in memory and in the state file. */
const char *place_claims(const struct place *p, struct us *us, const struct us_cycle_result *result);

/* Between the versions in place_sync. */
#define PLACE_CLOCK_S 3

/* One cycle without faults that must succeed, in a process of its own. */
void place_sync(const struct place *p);

/* The database that is restored alone, by its place in the fleet: the third of shapes, or
 * the last. */
#define PLACE_RESTORED(p) ((p)->fleet->db_count > 2 ? 2u : (p)->fleet->db_count - 1)

/* Restores it, or all; RET_FAILED: how many are counted as failed. */
int32_t place_restore(const struct place *p, struct us *us, uint32_t flags, struct us_error *err);
int32_t place_restore_fleet(const struct place *p, struct us *us, uint32_t flags,
			    uint32_t *ret_failed, struct us_error *err);
/* Empties the output; WITH_OLD: puts a database with a WAL in the place of that which is
 * restored alone. */
void place_prepare_output(const struct place *p, int with_old);
/* Whether database DB is in the output, as it should be (MAY_MISS: or is not there), without
 * side files. */
const char *place_compare(const struct place *p, uint32_t db, int may_miss);

#endif
