/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_SCRATCH_H
#define US_TESTS_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>

#define SCRATCH_LEN 512

/* The directory for temporary files: TMPDIR, else the system's. */
static inline const char *scratch_base(void)
{
	const char *base = getenv("TMPDIR");
	return base && base[0] ? base : P_tmpdir;
}

/* Makes a directory of its own; 0, or -1. */
static inline int scratch_dir(char ret_path[SCRATCH_LEN])
{
	(void)snprintf(ret_path, SCRATCH_LEN, "%s/us-test-XXXXXX", scratch_base());
	return mkdtemp(ret_path) ? 0 : -1;
}

#endif
