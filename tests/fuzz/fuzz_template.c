/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pattern, template, host name, and then texts, all separated by NULs. Each text is a
 * path, a key in a target, and what wildcards have caught in paths made here. A key gives
 * its path back, two paths never share one, and no key can be taken for the name of an
 * object or for what is hidden.
 */
#include "fuzz.h"

#include "../../csrc/discover/template.h"

#define TEXTS_MAX 8
#define PAIRS_MAX (3 * TEXTS_MAX)

struct pair {
	char path[US_PATH_LEN_MAX + 1], key[US_KEY_LEN_MAX + 1];
};

static struct pair pairs[PAIRS_MAX];
static size_t pair_count;

static int is_object_name(const char *name, size_t len)
{
	static const char form[] = "dddddddd"
				   "T"
				   "dddddd"
				   "Z.db.lz4";
	for (size_t i = 0; i < len && len == US_OBJECT_NAME_LEN; i++) {
		int same = form[i] == 'd' && i < 15 ? name[i] >= '0' && name[i] <= '9'
						    : name[i] == form[i];
		if (!same) {
			return 0;
		}
	}
	return len == US_OBJECT_NAME_LEN;
}

static void check_key(const struct us_template *t, const char *key)
{
	const char *fixed = us_template_list_prefix(t);
	require(is_key_text(key));
	require(strlen(key) + 1 + US_OBJECT_NAME_LEN <= US_KEY_LEN_MAX);
	require(strncmp(key, fixed, strlen(fixed)) == 0);
	for (const char *at = key;; at++) {
		size_t len = strcspn(at, "/");
		require(len > 0 && len <= US_KEY_COMPONENT_LEN_MAX);
		require(at[0] != '.' && !is_object_name(at, len));
		at += len;
		if (*at == '\0') {
			return;
		}
	}
}

static void remember(const char *path, const char *key)
{
	for (size_t i = 0; i < pair_count; i++) {
		int same_path = strcmp(pairs[i].path, path) == 0;
		int same_key = strcmp(pairs[i].key, key) == 0;
		require(same_path == same_key);
	}
	require(pair_count < PAIRS_MAX);
	memcpy(pairs[pair_count].path, path, strlen(path) + 1);
	memcpy(pairs[pair_count++].key, key, strlen(key) + 1);
}

static void check_path(const struct us_template *t, const char *path)
{
	struct us_error err = US_ERROR_INIT;
	char key[US_KEY_LEN_MAX + 1], back[US_PATH_LEN_MAX + 1];
	int matches = us_pattern_match(us_template_pattern(t), path, strlen(path), NULL);
	int32_t len = us_template_key(t, path, strlen(path), key, &err);
	if (len < 0) {
		require(len == (matches ? US_E_NAME : US_E_NOTFOUND));
		require_reason(len, &err);
		return;
	}
	require(matches && strlen(key) == (size_t)len);
	check_key(t, key);
	require(us_template_path(t, key, (size_t)len, back, &err) == (int32_t)strlen(path));
	require(strcmp(back, path) == 0);
	remember(path, key);
}

static void check_foreign(const struct us_template *t, const char *key)
{
	struct us_error err = US_ERROR_INIT;
	char path[US_PATH_LEN_MAX + 1], again[US_KEY_LEN_MAX + 1];
	int32_t len = us_template_path(t, key, strlen(key), path, &err);
	if (len < 0) {
		require(len == US_E_NOTFOUND);
		require_reason(len, &err);
		return;
	}
	require(strlen(path) == (size_t)len);
	require(us_template_key(t, path, (size_t)len, again, &err) == (int32_t)strlen(key));
	require(strcmp(again, key) == 0);
	check_key(t, key);
	remember(path, key);
}

/* The path that caught TEXTS from number FIRST on. */
static void check_made(const struct us_template *t, char *const *texts, size_t text_count,
		       size_t first)
{
	const struct us_pattern *p = us_template_pattern(t);
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	for (size_t i = 0; i < us_pattern_capture_count(p); i++) {
		const char *text = texts[(first + i) % text_count];
		captures[i] = (struct us_capture){ text, us_pattern_capture_is_deep(p, i)
								 ? strlen(text)
								 : strcspn(text, "/") };
	}
	char path[US_PATH_LEN_MAX + 1];
	if (us_pattern_path(p, captures, path) >= 0) {
		check_path(t, path);
	}
}

static void check_texts(const struct us_template *t, struct input *in)
{
	char *texts[TEXTS_MAX];
	size_t count = 0;
	pair_count = 0;
	while (in->left > 0 && count < TEXTS_MAX) {
		texts[count++] = input_string(in);
	}
	for (size_t i = 0; i < count; i++) {
		check_path(t, texts[i]);
		check_foreign(t, texts[i]);
		check_made(t, texts, count, i);
	}
	for (size_t i = 0; i < count; i++) {
		free(texts[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	struct us_error err = US_ERROR_INIT;
	struct us_pattern *p = NULL;
	struct us_template *t = NULL;
	char *pattern = input_string(&in), *text = input_string(&in), *host = input_string(&in);
	if (us_pattern_new(pattern, &p, NULL) == 0) {
		int32_t rc = us_template_new(text, p, host[0] ? host : NULL, &t, &err);
		if (rc == 0) {
			check_texts(t, &in);
		} else {
			require(rc == US_E_CONFIG && !t);
			require_reason(rc, &err);
			require(strncmp(err.message, "path: ", 6) == 0);
		}
	}
	us_template_free(t);
	us_pattern_free(p);
	free(pattern);
	free(text);
	free(host);
	return 0;
}
