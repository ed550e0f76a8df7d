/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_FLEET_DIR_H
#define US_TESTS_FLEET_DIR_H

/* A directory of a test's own, with what a fleet needs in it. */

#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "scratch.h"

#define PATH_LEN (SCRATCH_LEN + 512)

static char dir[SCRATCH_LEN];

/* PATH_LEN bytes: the path in DIR that FORMAT gives. */
__attribute__((format(printf, 2, 3))) static void path_of(char *ret, const char *format, ...)
{
	char rest[PATH_LEN];
	va_list args;
	va_start(args, format);
	(void)vsnprintf(rest, sizeof(rest), format, args);
	va_end(args);
	assert_true(snprintf(ret, PATH_LEN, "%s/%.400s", dir, rest) < PATH_LEN);
}

static int make_dirs(const char *const *names, size_t count)
{
	char path[PATH_LEN];
	if (scratch_dir(dir)) {
		return -1;
	}
	for (size_t i = 0; i < count; i++) {
		path_of(path, "%s", names[i]);
		if (mkdir(path, 0700)) {
			return -1;
		}
	}
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static int remove_dirs(void)
{
	return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
