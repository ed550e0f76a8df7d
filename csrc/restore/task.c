/* SPDX-License-Identifier: Apache-2.0 */
#include "task.h"

int32_t us_task_open(const struct us_fleet_view *view, const struct us_task_options *options,
		     struct us_task **ret_task, struct us_error *err)
{
	(void)view;
	(void)options;
	(void)ret_task;
	return us_fail(err, US_E_UNSUPPORTED, "not yet");
}

int32_t us_task_take(struct us_task *task, int32_t timeout_ms, struct us_row *ret_rows,
		     size_t capacity, struct us_progress *ret_progress, struct us_error *err)
{
	(void)task;
	(void)timeout_ms;
	(void)ret_rows;
	(void)capacity;
	(void)ret_progress;
	return us_fail(err, US_E_UNSUPPORTED, "not yet");
}

void us_task_free(struct us_task *task)
{
	(void)task;
}
