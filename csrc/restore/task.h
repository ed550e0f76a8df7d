/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_TASK_H
#define US_RESTORE_TASK_H

#include "../discover/template.h"
#include "../store/store.h"
#include "../track/state.h"

/* What a task works on: parts of an open handle, all borrowed. */
struct us_fleet_view {
	struct us_store *store;
	const struct us_pattern *pattern;
	const struct us_template *tmpl;
	struct us_table *table;
	const struct us_state *state; /* NULL: there is none, for this reason */
	const struct us_error *state_error;
	const char *state_dir;
	const char *identity; /* of the target, for the state file */
	int any_filesystem;
	uint32_t concurrency; /* downloads at a time */
	uint64_t memory_limit;
	const _Atomic uint32_t *cancel;
};

/* The contracts are those of the same names in ultrasimple.h; OPTIONS is complete
 * (not shorter than this library's), RET_PROGRESS too. */
int32_t us_task_open(const struct us_fleet_view *view, const struct us_task_options *options,
		     struct us_task **ret_task, struct us_error *err);
int32_t us_task_take(struct us_task *task, int32_t timeout_ms, struct us_row *ret_rows,
		     size_t capacity, struct us_progress *ret_progress, struct us_error *err);
void us_task_free(struct us_task *task);

#endif
