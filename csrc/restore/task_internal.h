/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_TASK_INTERNAL_H
#define US_RESTORE_TASK_INTERNAL_H

#include <pthread.h>

#include "catalog.h"
#include "local.h"
#include "task.h"

/* Shared by task.c (threads, rows) and what tasks do: list.c, fleet.c, purge.c. */

struct row; /* task.c */

struct us_task {
	struct us_fleet_view view;
	struct us_task_options options; /* its texts are owned */
	char key[US_KEY_LEN_MAX + 1];	/* key prefix of options.path, or "" */
	_Atomic uint32_t cancel;	/* us_task_close, or the handle's */
	pthread_t thread;
	int started;

	pthread_mutex_t mutex; /* guards all below; a leaf, never held across I/O */
	pthread_cond_t filled; /* for the taker: rows, or the end */
	pthread_cond_t room;   /* for those who give rows */
	struct row *first, **last;
	size_t row_count;
	size_t wanted; /* rows that the taker has room for */
	int over;
	int32_t rc; /* of the task as a whole, once over */
	struct us_error err;
	struct us_progress progress;
};

/* A row to be handed out; texts are borrowed for the call, paths are not escaped. NULL
 * is "". */
struct us_task_row {
	uint32_t status;
	int32_t code;
	const char *path, *output, *key, *message;
	uint64_t object_count, objects_len, object_len;
	uint32_t time_s;
	int64_t snapshot_ns;
	uint64_t database_len;
	uint32_t mode, page_size;
};

/* Queues a row; waits while too many are. US_E_CANCELED, US_E_NOMEM. */
int32_t us_task_give(struct us_task *task, const struct us_task_row *row);

/* Whether options.match (or none) chooses the database at PATH. */
int us_task_chooses(const struct us_task *task, const char *path);

/* Walks the disk and notes what was found in the progress. */
int32_t us_task_walk(struct us_task *task, struct us_local **ret_local, struct us_error *err);

/* Notes the end of the listing in the progress. */
void us_task_listed(struct us_task *task, const struct us_catalog_result *result);

/* What the kinds do, on the task's thread. */
int32_t us_list_run(struct us_task *task, struct us_error *err);
int32_t us_backups_run(struct us_task *task, struct us_error *err);
int32_t us_fleet_run(struct us_task *task, struct us_error *err);
int32_t us_purge_run(struct us_task *task, struct us_error *err);

#endif
