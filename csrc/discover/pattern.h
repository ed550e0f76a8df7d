/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISCOVER_PATTERN_H
#define US_DISCOVER_PATTERN_H

#include <stddef.h>

#include "../base/error.h"

/*
 * A discovery pattern: an absolute path whose components may hold `*`, `?`,
 * `[...]`, named wildcards `{name}`, and which may have one `**` component
 * (zero or more whole components). Bytes, not characters: a name need not be
 * UTF-8. `?` and `[...]` match one UTF-8 character where the name is valid
 * there, else one byte. `\` before a character makes it literal. Immutable after
 * us_pattern_new: any number of threads may use it.
 */
struct us_pattern;

#define US_PATTERN_LEN_MAX 4096
#define US_PATTERN_COMPONENTS_MAX 64
#define US_PATTERN_NAME_LEN_MAX 64 /* of {name}: [A-Za-z_][A-Za-z0-9_-]* */
#define US_PATTERN_CAPTURES_MAX 64
#define US_PATTERN_FILE_NAME_LEN_MAX 255 /* a longer name never matches */
#define US_PATH_LEN_MAX 4095

/* One slice of a path that a wildcard caught. Borrowed from the path. */
struct us_capture {
	const char *text;
	size_t len; /* at least 1, except `**` which may catch nothing */
};

/* Compiles TEXT. US_E_CONFIG with a message that begins with
 * "discovery_pattern: " and names value and remedy. Freed with us_pattern_free. */
int32_t us_pattern_new(const char *text, struct us_pattern **ret_pattern, struct us_error *err);
void us_pattern_free(struct us_pattern *pattern);

/* The longest wildcard-free directory: absolute, without a trailing slash except
 * "/" itself; never the last component. Lives as long as the pattern. */
const char *us_pattern_prefix(const struct us_pattern *pattern);

/* Wildcards in order, left to right: all unnamed wildcards of one component are
 * one capture, from the first to the last (text between them included); a named
 * wildcard is a capture of its own; `**` is an unnamed capture. */
size_t us_pattern_capture_count(const struct us_pattern *pattern);
/* Name of wildcard I, or NULL if it is unnamed. */
const char *us_pattern_capture_name(const struct us_pattern *pattern, size_t i);
/* Whether capture I is the `**`. */
int us_pattern_capture_is_deep(const struct us_pattern *pattern, size_t i);

/*
 * Matches an absolute path of PATH_LEN bytes as a whole. Returns 1 and fills
 * RET_CAPTURES (us_pattern_capture_count entries; may be NULL), or 0. Wildcards
 * do not match a leading dot; names that end in -wal, -shm or -journal never
 * match. Where several splits are possible the leftmost capture is the shortest.
 * Time is O(pattern x path).
 */
int us_pattern_match(const struct us_pattern *pattern, const char *path, size_t path_len,
		     struct us_capture *ret_captures);

/*
 * The inverse: writes the path that has CAPTURES (us_pattern_capture_count entries,
 * without slashes except in `**`) and a NUL to RET_PATH (US_PATH_LEN_MAX + 1 bytes);
 * returns its length, or -1 (RET_PATH is then undefined) if it does not fit. Captures
 * that no match gave give a path that matches otherwise or not at all.
 */
int64_t us_pattern_path(const struct us_pattern *pattern, const struct us_capture *captures,
			char *ret_path);

/*
 * For the walk: a position is a set of pattern components that the next path
 * component may meet (bit I: component I of the part below the prefix).
 */
typedef uint64_t us_pattern_state;
us_pattern_state us_pattern_start(const struct us_pattern *pattern);
/* The state inside directory NAME entered from STATE; 0: nothing can match there. */
us_pattern_state us_pattern_enter(const struct us_pattern *pattern, us_pattern_state state,
				  const char *name, size_t name_len);
/* Whether a file called NAME in a directory of STATE matches the whole pattern. */
int us_pattern_accepts(const struct us_pattern *pattern, us_pattern_state state, const char *name,
		       size_t name_len);
/* Whether files can be of interest at all in STATE. */
int us_pattern_wants_files(const struct us_pattern *pattern, us_pattern_state state);
/* The one name, NUL-terminated, that is of interest in STATE, where it is a
 * directory's (a literal component): there is nothing to list. Else NULL. */
const char *us_pattern_only_directory(const struct us_pattern *pattern, us_pattern_state state);
/* Whether NAME ends in -wal, -shm or -journal. */
int us_pattern_is_sidecar(const char *name, size_t name_len);

#endif
