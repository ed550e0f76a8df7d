#include "task_internal.h"
int32_t us_fleet_run(struct us_task *task, struct us_error *err)
{
	(void)task;
	return us_fail(err, US_E_UNSUPPORTED, "not yet");
}
