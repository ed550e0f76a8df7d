/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pattern, then what it is tried on, all separated by NULs. Each text after the pattern
 * is a path, and all of them in a row are captures to make a path of. What matches,
 * and with which captures, is compared with a matcher that shares no code.
 */
#include "reference_match.h"

#include "../../csrc/discover/pattern.h"

#define TEXTS_MAX 8

/* The same question, asked as the walk asks it. */
static int walk_matches(const struct us_pattern *p, const char *path, size_t path_len)
{
	const char *prefix = us_pattern_prefix(p);
	size_t prefix_len = strcmp(prefix, "/") == 0 ? 0 : strlen(prefix);
	if (path_len > US_PATH_LEN_MAX || path_len <= prefix_len ||
	    memcmp(path, prefix, prefix_len) != 0 || path[prefix_len] != '/') {
		return 0;
	}
	us_pattern_state state = us_pattern_start(p);
	const char *end = path + path_len;
	for (const char *at = path + prefix_len + 1;;) {
		const char *slash = memchr(at, '/', (size_t)(end - at));
		size_t len = (size_t)((slash ? slash : end) - at);
		if (!slash) {
			int accepts = us_pattern_accepts(p, state, at, len);
			require(!accepts || us_pattern_wants_files(p, state));
			return accepts;
		}
		const char *only = us_pattern_only_directory(p, state);
		state = us_pattern_enter(p, state, at, len);
		require(!only || !state || (strlen(only) == len && memcmp(only, at, len) == 0));
		at += len + 1;
	}
}

static void check_path(const struct us_pattern *p, const char *text, const char *path,
		       size_t path_len)
{
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	static struct ref_span expected[REF_PARTS_MAX];
	size_t expected_count, count = us_pattern_capture_count(p);
	char again[US_PATH_LEN_MAX + 1];
	int matches = us_pattern_match(p, path, path_len, captures);
	require(matches == ref_match(text, path, path_len, expected, &expected_count));
	require(matches == us_pattern_match(p, path, path_len, NULL));
	if (!memchr(path, '\0', path_len)) {
		require(matches == walk_matches(p, path, path_len));
	}
	if (!matches) {
		return;
	}
	require(count == expected_count);
	for (size_t i = 0; i < count; i++) {
		require(captures[i].len > 0 || us_pattern_capture_is_deep(p, i));
		require(captures[i].len == expected[i].len &&
			memcmp(captures[i].text, expected[i].text, expected[i].len) == 0);
	}
	require(us_pattern_path(p, captures, again) == (int64_t)path_len);
	require(memcmp(again, path, path_len) == 0 && again[path_len] == '\0');
}

/* A path whose captures are TEXTS, over and over; a slash in one that cannot have it ends
 * it. */
static void check_made(const struct us_pattern *p, const char *text, char *const *texts,
		       size_t text_count)
{
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	size_t count = us_pattern_capture_count(p);
	for (size_t i = 0; i < count; i++) {
		const char *capture = text_count ? texts[i % text_count] : "a";
		captures[i] = (struct us_capture){ capture, us_pattern_capture_is_deep(p, i)
								    ? strlen(capture)
								    : strcspn(capture, "/") };
	}
	char path[US_PATH_LEN_MAX + 1];
	int64_t len = us_pattern_path(p, captures, path);
	if (len >= 0) {
		require(path[len] == '\0' && strlen(path) == (size_t)len);
		check_path(p, text, path, (size_t)len);
	}
}

static void check_compiled(const struct us_pattern *p, const char *text)
{
	static struct ref_span parts[REF_PARTS_MAX];
	static struct ref_component c;
	size_t part_count = ref_split(text, strlen(text), parts), wildcard = 0, fixed = 1;
	const char *prefix = us_pattern_prefix(p);
	require(prefix[0] == '/' && (prefix[1] == '\0' || prefix[strlen(prefix) - 1] != '/'));
	const char *at = strcmp(prefix, "/") == 0 ? "" : prefix;
	for (size_t i = 0; i < part_count; i++) {
		ref_parse(&c, parts[i]);
		fixed &= ref_is_literal(&c) && i + 1 < part_count;
		if (fixed) {
			size_t len = strcspn(at + 1, "/");
			require(at[0] == '/' && ref_literal(&c, (struct ref_span){ at + 1, len }));
			at += 1 + len;
		}
		require(!c.is_deep || (us_pattern_capture_is_deep(p, wildcard) &&
				       !us_pattern_capture_name(p, wildcard)));
		wildcard += c.is_deep ? 1 : 0;
		for (size_t k = 0; k < c.count; k++) {
			if (k != c.first && c.items[k].kind != REF_NAMED) {
				continue;
			}
			const char *name = us_pattern_capture_name(p, wildcard);
			require(!us_pattern_capture_is_deep(p, wildcard));
			require((name != NULL) == (c.items[k].kind == REF_NAMED));
			require(!name || (strlen(name) == c.items[k].text.len &&
					  memcmp(name, c.items[k].text.text, strlen(name)) == 0));
			wildcard++;
		}
	}
	require(at[0] == '\0' && wildcard == us_pattern_capture_count(p) && wildcard > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	struct us_error err = US_ERROR_INIT;
	struct us_pattern *p = NULL;
	char *text = input_string(&in), *texts[TEXTS_MAX];
	int32_t rc = us_pattern_new(text, &p, &err);
	if (rc) {
		require(rc == US_E_CONFIG && !p);
		require_reason(rc, &err);
		require(strncmp(err.message, "discovery_pattern: ", 19) == 0);
		free(text);
		return 0;
	}
	check_compiled(p, text);
	check_path(p, text, (const char *)in.at, in.left); /* NULs and all */
	size_t text_count = 0;
	while (in.left > 0 && text_count < TEXTS_MAX) {
		texts[text_count] = input_string(&in);
		check_path(p, text, texts[text_count], strlen(texts[text_count]));
		text_count++;
	}
	check_made(p, text, texts, text_count);
	for (size_t i = 0; i < text_count; i++) {
		free(texts[i]);
	}
	us_pattern_free(p);
	free(text);
	return 0;
}
