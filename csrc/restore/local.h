/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_LOCAL_H
#define US_RESTORE_LOCAL_H

#include "../discover/template.h"

/*
 * The databases on disk, by the key that each has, in the order in which a catalog
 * names those of the target (us_key_compare). NULL stands for none: a tree that does
 * not exist.
 */
struct us_local;

struct us_local_bad { /* a database whose path gives no legal key */
	const char *path, *message;
};

/* Walks. ANY_FILESYSTEM as for us_walk_open. *RET_LOCAL is freed with us_local_free; it
 * is NULL if the pattern's prefix does not exist. */
int32_t us_local_walk(const struct us_pattern *pattern, const struct us_template *tmpl,
		      int any_filesystem, const _Atomic uint32_t *cancel,
		      struct us_local **ret_local, struct us_error *err);
void us_local_free(struct us_local *local);

size_t us_local_count(const struct us_local *local); /* with a key */
const char *us_local_key(const struct us_local *local, size_t index);
int us_local_has(const struct us_local *local, const char *key);
size_t us_local_bad_count(const struct us_local *local);
struct us_local_bad us_local_bad_at(const struct us_local *local, size_t index);

/* Directories and files that could not be looked at, and why the first could not. */
uint64_t us_local_failures(const struct us_local *local);
const char *us_local_first_failure(const struct us_local *local);

/* Byte order of "KEY/", but a key that others lie below comes after them. */
int us_key_compare(const char *a, const char *b);

#endif
