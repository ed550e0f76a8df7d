/* SPDX-License-Identifier: Apache-2.0 */
/* The library as the benchmarks use it: through its ABI, with the file target. */
#include "bench.h"

#include <ultrasimple.h>

struct us *ours_open(const char *root, const char *target, const char *state_dir)
{
	char pattern[4096];
	struct us *us = NULL;
	struct us_error err = { .struct_size = sizeof(err) };
	(void)snprintf(pattern, sizeof(pattern), "%s/{group}/{tenant}.db", root);
	const struct us_options options = {
		.struct_size = sizeof(options),
		.discovery_pattern = pattern,
		.path = "{{group}}/{{tenant}}",
		.state_dir = state_dir,
		.target = US_TARGET_FILE,
		.snapshot_window_s = 3600,
		.directory = target,
	};
	if (us_open(&options, &us, &err)) {
		die("us_open", err.message);
	}
	return us;
}

unsigned long long ours_cycle(struct us *us, unsigned long long *ret_databases, double *scan_s)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	if (us_cycle(us, &result, &err)) {
		die("us_cycle", err.message);
	}
	if (result.failed || result.walk_failures) {
		struct us_failure *failure = calloc(1, sizeof(*failure));
		int32_t count = failure ? us_failures(us, failure, 1, &err) : 0;
		die("us_cycle: a database failed", count > 0 ? failure->message : "no message");
	}
	if (ret_databases) {
		*ret_databases = result.databases;
	}
	if (scan_s) {
		*scan_s = result.scan_seconds;
	}
	return result.uploaded;
}
