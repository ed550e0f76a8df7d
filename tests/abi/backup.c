/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ABI alone: backs up a directory of databases, and brings one back.
 *
 *   backup backup  SRC_DIR TARGET_DIR STATE_DIR
 *   backup restore SRC_DIR TARGET_DIR STATE_DIR PATH OUTPUT
 *
 * SRC_DIR/NAME.db goes to TARGET_DIR/NAME/TIME.db.lz4. All paths are absolute.
 * Strict C11, and C++17.
 */
#include <stdio.h>
#include <string.h>

#include <ultrasimple.h>

static int fail(const char *what, const struct us_error *err)
{
	fprintf(stderr, "backup: %s: %s: %s\n", what, us_strerror(err->code), err->message);
	return 1;
}

static int backup(struct us *us, struct us_error *err)
{
	struct us_cycle_result result;
	struct us_stats stats;
	memset(&result, 0, sizeof(result));
	memset(&stats, 0, sizeof(stats));
	result.struct_size = sizeof(result);
	stats.struct_size = sizeof(stats);
	if (us_cycle(us, &result, err) != US_OK || us_stats(us, &stats, err) != US_OK) {
		return fail("cycle", err);
	}
	printf("databases %llu uploaded %llu failed %llu unsynced %llu\n",
	       (unsigned long long)result.databases, (unsigned long long)result.uploaded,
	       (unsigned long long)result.failed, (unsigned long long)stats.unsynced);
	return result.failed || result.walk_failures || stats.unsynced ? 1 : 0;
}

static int restore(struct us *us, const char *path, const char *output, struct us_error *err)
{
	struct us_restore_options options;
	struct us_restore_result result;
	memset(&options, 0, sizeof(options));
	memset(&result, 0, sizeof(result));
	options.struct_size = sizeof(options);
	options.path = path;
	options.output_path = output;
	options.integrity_check = US_INTEGRITY_FULL;
	result.struct_size = sizeof(result);
	if (us_restore(us, &options, &result, err) != US_OK) {
		return fail("restore", err);
	}
	printf("restored %llu bytes from %s\n", (unsigned long long)result.database_len,
	       result.key);
	return 0;
}

int main(int argc, char **argv)
{
	struct us_options options;
	struct us_error err;
	struct us *us = NULL;
	char pattern[4096];
	int is_restore = argc == 7 && strcmp(argv[1], "restore") == 0;
	if (!is_restore && (argc != 5 || strcmp(argv[1], "backup") != 0)) {
		fprintf(stderr, "usage: backup backup|restore SRC TARGET STATE [PATH OUTPUT]\n");
		return 2;
	}
	if (us_abi_version() >> 16 != US_ABI_VERSION >> 16) {
		fprintf(stderr, "backup: the library has another ABI\n");
		return 2;
	}
	if (snprintf(pattern, sizeof(pattern), "%s/{name}.db", argv[2]) >= (int)sizeof(pattern)) {
		fprintf(stderr, "backup: SRC_DIR is too long\n");
		return 2;
	}
	memset(&err, 0, sizeof(err));
	memset(&options, 0, sizeof(options));
	err.struct_size = sizeof(err);
	options.struct_size = sizeof(options);
	options.flags = is_restore ? US_OPEN_READ_ONLY : 0;
	options.discovery_pattern = pattern;
	options.path = "{{name}}";
	options.target = US_TARGET_FILE;
	options.directory = argv[3];
	options.state_dir = argv[4];
	if (us_open(&options, &us, &err) != US_OK) {
		return fail("open", &err);
	}
	int rc = is_restore ? restore(us, argv[5], argv[6], &err) : backup(us, &err);
	us_close(us);
	return rc;
}
