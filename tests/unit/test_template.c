/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <stdlib.h>

#include "../../csrc/base/utf8.h"
#include "../../csrc/discover/template.h"
#include "gen_pattern.h"

struct fixture {
	struct us_pattern *pattern;
	struct us_template *tmpl;
};

static struct fixture compile(const char *pattern, const char *path)
{
	struct fixture f = { 0 };
	struct us_error err = US_ERROR_INIT;
	if (us_pattern_new(pattern, &f.pattern, &err) ||
	    us_template_new(path, f.pattern, "web-1", &f.tmpl, &err)) {
		fail_msg("%s with %s: %s", pattern, path, err.message);
	}
	return f;
}

static void done(struct fixture *f)
{
	us_template_free(f->tmpl);
	us_pattern_free(f->pattern);
}

/* The key of PATH, whose way back is checked, or NULL if it has none. */
static const char *key_of(const struct fixture *f, const char *path)
{
	static char key[US_KEY_LEN_MAX + 1];
	char back[US_PATH_LEN_MAX + 1];
	int32_t len = us_template_key(f->tmpl, path, strlen(path), key, NULL);
	if (len < 0) {
		return NULL;
	}
	assert_int_equal(len, strlen(key));
	int32_t back_len = us_template_path(f->tmpl, key, (size_t)len, back, NULL);
	if (back_len != (int32_t)strlen(path) || strcmp(back, path) != 0) {
		fail_msg("%s gives %s, and that gives %s", path, key,
			 back_len < 0 ? "nothing" : back);
	}
	return key;
}

struct sample {
	const char *pattern, *tmpl, *path, *key;
};

static void test_key_table(void **state)
{
	(void)state;
	static const struct sample table[] = {
		{ "/data/*/databases/*/branches/*/tenants/*.db",
		  "{{project}}/{{database}}/{{branch}}/{{tenant}}",
		  "/data/p1/databases/main/branches/dev/tenants/t 7.db", "p1/main/dev/t 7" },
		{ "/d/{a}/{b}.db", "{{b}}/{{a}}", "/d/x/y.db", "y/x" },
		{ "/d/*/{b}/*.db", "{{x}}/{{b}}/{{y}}", "/d/1/2/3.db", "1/2/3" },
		{ "/d/*/{b}/*.db", "{{b}}/{{y}}/{{x}}", "/d/1/2/3.db", "2/1/3" },
		{ "/d/{t}.db", "backups/v1-{{t}}.x", "/d/q.db", "backups/v1-q.x" },
		{ "/d/{t}.db", "{{hostname}}/h-{{hostname}}-{{t}}", "/d/q.db", "web-1/h-web-1-q" },
		{ "/d/**/{t}.db", "{{dirs}}/{{t}}", "/d/a/b/c.db", "a/b/c" },
		{ "/d/**/{t}.db", "{{dirs}}/{{t}}", "/d/c.db", "c" },
		{ "/d/**/{t}.db", "{{t}}/{{dirs}}", "/d/c.db", "c" },
		{ "/d/**/{t}.db", "{{t}}/{{dirs}}", "/d/a/b/c.db", "c/a/b" },
		{ "/d/**/{t}.db", "x/{{dirs}}/{{t}}", "/d/c.db", "x/c" },
		{ "/d/**/app.db", "x/{{dirs}}", "/d/app.db", "x" },
		{ "/d/**/app.db", "x/{{dirs}}", "/d/a%/\xFF/app.db", "x/a%25/%FF" },
		{ "/d/*-?.db", "{{x}}", "/d/ab-c.db", "ab-c" },
		{ "/d/{a}-{b}.db", "{{a}}/{{b}}", "/d/x-y-z.db", "x/y-z" },
		{ "/d/x*", "{{t}}", "/d/x.", "%2E" },
		{ "/d/x*", "{{t}}", "/d/x..", "%2E%2E" },
		{ "/d/x*", "{{t}}", "/d/x...", "%2E.." },
		{ "/d/x*", "{{t}}", "/d/x.y", "%2Ey" },
		{ "/d/x*", "{{t}}.", "/d/x.", "%2E%2E" },
		{ "/d/x*", "a{{t}}", "/d/x.y", "a.y" },
		{ "/d/*", "{{t}}", "/d/20060102T150405Z.db.lz4", "20060102T150405Z%2Edb.lz4" },
		{ "/d/**/{t}.db", "{{t}}/{{dirs}}", "/d/20060102T150405Z.db.lz4/c.db",
		  "c/20060102T150405Z%2Edb.lz4" },
		{ "/d/*", "{{t}}", "/d/\n\"\\%'\xC3\xA9\xC3", "%0A\"%5C%25'\xC3\xA9%C3" },
		{ "/d/*", "{{t}}", "/d/\xEF\xBF\xBF", "%EF%BF%BF" },
		{ "/d/*", "\xC3\xA9-{{t}}", "/d/\xA9", "\xC3\xA9-%A9" },
		{ "/d/*", "{{t}}", "/e/x", NULL },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct fixture f = compile(table[i].pattern, table[i].tmpl);
		const char *key = key_of(&f, table[i].path);
		if (!key != !table[i].key || (key && strcmp(key, table[i].key) != 0)) {
			fail_msg("%s gives %s", table[i].path, key ? key : "nothing");
		}
		done(&f);
	}
}

struct refusal {
	const char *pattern, *tmpl, *part;
};

static void test_refusals(void **state)
{
	(void)state;
	static const struct refusal table[] = {
		{ "/d/*", NULL, "path: is empty" },
		{ "/d/*", "", "path: is empty" },
		{ "/d/*", "/{{t}}", "path: \"/{{t}}\" begins with a slash" },
		{ "/d/*", "{{t}}/", "ends in a slash" },
		{ "/d/*", "a//{{t}}", "empty component" },
		{ "/d/*", "{{t}}/.x", "begins with a dot" },
		{ "/d/*", ".{{t}}", "begins with a dot" },
		{ "/d/*", "./{{t}}", "begins with a dot" },
		{ "/d/*", "../{{t}}", "begins with a dot" },
		{ "/d/*", ".litestream-multi-db/{{t}}", "begins with a dot" },
		{ "/d/*", "{t}", "single \"{\"" },
		{ "/d/*", "{{t}}}", "single \"}\"" },
		{ "/d/*", "a}/{{t}}", "single \"}\"" },
		{ "/d/*", "{{t", "without its \"}}\"" },
		{ "/d/*", "{{t}", "without its \"}}\"" },
		{ "/d/*", "{{a/b}}", "without its \"}}\"" },
		{ "/d/*", "{{}}", "named \"\"" },
		{ "/d/*", "{{ t }}", "without spaces" },
		{ "/d/*", "{{1}}", "named \"1\"" },
		{ "/d/*", "{{^}}", "named \"^\"" },
		{ "/d/*", "{{a^}}", "named \"a^\"" },
		{ "/d/*", "{{a:}}", "named \"a:\"" },
		{ "/d/*", "{{a.}}", "named \"a.\"" },
		{ "/d/*", "{{a{}}", "named \"a{\"" },
		{ "/d/*", "{{a}}/{{b}}/{{c}}", "has {{b}}" },
		{ "/d/*", "a\xEF\xBF\xBF/{{t}}", "0xEF" },
		{ "/d/*", "a%b/{{t}}", "has a \"%\"" },
		{ "/d/*", "a\\b/{{t}}", "has a \"\\\"" },
		{ "/d/*", "a\nb/{{t}}", "0x0A" },
		{ "/d/*", "a\x7F/{{t}}", "0x7F" },
		{ "/d/*", "a\xFF/{{t}}", "0xFF" },
		{ "/d/*", "a\xEF\xBF\xBE/{{t}}", "0xEF" },
		{ "/d/*", "static", "0 variables for the 1 unnamed" },
		{ "/d/*/*", "{{a}}", "1 variables for the 2 unnamed" },
		{ "/d/*", "{{a}}/{{b}}", "has {{b}}" },
		{ "/d/{a}", "{{b}}", "does not use {a}" },
		{ "/d/{a}", "{{a}}/{{b}}", "has {{b}}" },
		{ "/d/{a}/*", "{{b}}", "does not use {a}" },
		{ "/d/*/*", "{{a}}/{{a}}", "uses {{a}} twice" },
		{ "/d/{a}", "{{a}}/{{a}}", "uses {{a}} twice" },
		{ "/d/*/*", "{{a}}-{{b}}", "another variable" },
		{ "/d/*/*", "{{a}}{{b}}", "another variable" },
		{ "/d/**/*", "x-{{p}}/{{t}}", "beside the variable of \"**\"" },
		{ "/d/**/app.db", "{{p}}", "stands for no directory" },
		{ "/d/**/app.db", "{{hostname}}{{p}}", "beside the variable" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct us_pattern *pattern = NULL;
		struct us_template *tmpl = NULL;
		struct us_error err = US_ERROR_INIT;
		assert_int_equal(us_pattern_new(table[i].pattern, &pattern, &err), 0);
		assert_int_equal(us_template_new(table[i].tmpl, pattern, "host", &tmpl, &err),
				 US_E_CONFIG);
		assert_null(tmpl);
		if (strncmp(err.message, "path: ", 6) != 0 || !strstr(err.message, table[i].part)) {
			fail_msg("%s: %s", table[i].tmpl, err.message);
		}
		us_pattern_free(pattern);
	}
}

static void test_hostname(void **state)
{
	(void)state;
	struct us_pattern *pattern = NULL;
	struct us_template *tmpl = NULL;
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_pattern_new("/d/*", &pattern, &err), 0);
	assert_int_equal(us_template_new("{{hostname}}/{{t}}", pattern, NULL, &tmpl, &err),
			 US_E_CONFIG);
	assert_non_null(strstr(err.message, "{{hostname}}"));
	assert_int_equal(us_template_new("{{hostname}}/{{t}}", pattern, "", &tmpl, &err),
			 US_E_CONFIG);
	assert_int_equal(us_template_new("{{hostname}}/{{t}}", pattern, "a/b", &tmpl, &err),
			 US_E_CONFIG);
	assert_int_equal(us_template_new("{{t}}", pattern, NULL, &tmpl, &err), 0);
	us_template_free(tmpl);
	static const char *const table[][2] = {
		{ "..", "%2E%2E/" },
		{ ".h", "%2Eh/" },
		{ "a%\n", "a%25%0A/" },
		{ "h.example.org", "h.example.org/" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct fixture f = { .pattern = pattern };
		assert_int_equal(
			us_template_new("{{hostname}}/{{t}}", pattern, table[i][0], &f.tmpl, &err),
			0);
		assert_string_equal(us_template_list_prefix(f.tmpl), table[i][1]);
		const char *key = key_of(&f, "/d/x");
		assert_int_equal(strncmp(key, table[i][1], strlen(table[i][1])), 0);
		us_template_free(f.tmpl);
	}
	char long_name[300];
	memset(long_name, '\n', sizeof(long_name));
	long_name[100] = '\0';
	assert_int_equal(us_template_new("{{hostname}}/{{t}}", pattern, long_name, &tmpl, &err),
			 US_E_CONFIG);
	memset(long_name, 'h', 256);
	long_name[256] = '\0';
	assert_int_equal(us_template_new("{{hostname}}/{{t}}", pattern, long_name, &tmpl, &err),
			 US_E_CONFIG);
	assert_non_null(strstr(err.message, "at most 255 bytes"));
	us_pattern_free(pattern);
}

static void test_list_prefix(void **state)
{
	(void)state;
	static const char *const table[][2] = {
		{ "{{t}}/{{p}}", "" },
		{ "x-{{t}}/{{p}}", "" },
		{ "a/b/{{t}}/{{p}}/c", "a/b/" },
		{ "{{hostname}}/{{t}}/{{p}}", "web-1/" },
		{ "a/{{hostname}}-{{t}}/{{p}}", "a/" },
		{ "h-{{hostname}}/x/{{p}}/{{t}}", "h-web-1/x/" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct fixture f = compile("/d/*/{t}", table[i][0]);
		assert_string_equal(us_template_list_prefix(f.tmpl), table[i][1]);
		done(&f);
	}
}

static void test_lengths(void **state)
{
	(void)state;
	char path[US_PATH_LEN_MAX + 1], key[US_KEY_LEN_MAX + 1];
	struct us_error err = US_ERROR_INIT;
	struct fixture f = compile("/d/*", "{{t}}");
	memset(path, 'x', sizeof(path));
	memcpy(path, "/d/", 3);
	assert_int_equal(us_template_key(f.tmpl, path, 3 + 255, key, &err), 255);
	path[3] = '\n'; /* three bytes in the key */
	assert_int_equal(us_template_key(f.tmpl, path, 3 + 253, key, &err), 255);
	assert_int_equal(us_template_key(f.tmpl, path, 3 + 254, key, &err), US_E_NAME);
	assert_non_null(strstr(err.message, "256 bytes"));
	assert_non_null(strstr(err.message, "255"));
	done(&f);

	f = compile("/d/**/{t}", "{{p}}/{{t}}");
	memset(path + 3, 'x', 1000);
	for (size_t i = 3 + 200; i < 1000; i += 200) {
		path[i] = '/';
	}
	path[3 + 1000] = '\0';
	assert_int_equal(strlen(key_of(&f, path)), 1000); /* 1024 - "/20060102T150405Z.db.lz4" */
	assert_int_equal(us_template_key(f.tmpl, path, 3 + 1000, key, &err), 1000);
	path[3 + 1000] = 'x';
	assert_int_equal(us_template_key(f.tmpl, path, 3 + 1001, key, &err), US_E_NAME);
	assert_non_null(strstr(err.message, "1001 bytes"));
	assert_non_null(strstr(err.message, "1025"));
	assert_non_null(strstr(err.message, "1024"));
	memset(path + 3, '\xFF', 4000);
	for (size_t i = 3 + 200; i < 4000; i += 200) {
		path[i] = '/';
	}
	assert_int_equal(us_template_key(f.tmpl, path, 4003, key, &err), US_E_NAME);
	done(&f);

	char text[5000]; /* literal text that leaves no room */
	struct us_template *tmpl = NULL;
	assert_int_equal(us_pattern_new("/d/*", &f.pattern, &err), 0);
	for (size_t part_len = 255; part_len <= 256; part_len++) {
		memset(text, 'x', part_len);
		memcpy(text + part_len, "/{{t}}", 7);
		assert_int_equal(us_template_new(text, f.pattern, NULL, &tmpl, &err),
				 part_len == 255 ? 0 : US_E_CONFIG);
	}
	us_template_free(tmpl);
	for (size_t len = 998; len <= 999; len++) {
		memset(text, 'x', len);
		for (size_t i = 200; i < len; i += 200) {
			text[i] = '/';
		}
		memcpy(text + len, "/{{t}}", 7);
		assert_int_equal(us_template_new(text, f.pattern, NULL, &tmpl, &err),
				 len == 998 ? 0 : US_E_CONFIG);
	}
	us_template_free(tmpl);
	/* too many components, too long a name, too long a text */
	for (size_t i = 0; i < 130; i++) {
		memcpy(text + 2 * i, "x/", 2);
	}
	memcpy(text + 2 * 130, "{{t}}", 6);
	assert_int_equal(us_template_new(text, f.pattern, NULL, &tmpl, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "more than 128 components"));
	for (size_t len = 64; len <= 65; len++) {
		memset(text, 'n', len + 2);
		memcpy(text, "{{", 2);
		memcpy(text + 2 + len, "}}", 3);
		assert_int_equal(us_template_new(text, f.pattern, NULL, &tmpl, &err),
				 len == 64 ? 0 : US_E_CONFIG);
	}
	assert_non_null(strstr(err.message, "variable name of 65 bytes"));
	us_template_free(tmpl);
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(us_template_new(text, f.pattern, NULL, &tmpl, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "the longest template has 4096"));
	us_pattern_free(f.pattern);
	f = compile("/d/*/*", "{{_A9-Z_z}}/{{B}}");
	assert_string_equal(key_of(&f, "/d/x/y"), "x/y");
	done(&f);
	us_template_free(NULL);
}

static void test_foreign_keys(void **state)
{
	(void)state;
	struct fixture f = compile("/d/x{a}/**/[ab]*.db", "v/{{a}}-q/{{p}}/{{t}}");
	static const char *const keys[] = {
		"",
		"v",
		"v/",
		"/v/1-q/a",
		"v/1-q",
		"v/1-q/",
		"v/1-q//a",
		"v/1-q/a/",
		"w/1-q/a",
		"v/1/a",
		"v/-q/a",
		"v/1-q/c",
		"v/1-q/.p/a",
		"v/1-q/../a",
		"v/1-q/%2E%2E/a",
		"v/1-q/%2E./a",
		"v/1-q/%41",
		"v/1-q/a%2Fb",
		"v/1-q/a%00",
		"v/1-q/a\n",
		"v/1-q/\xFF",
		"v/1%2D-q/a",
		"v/1-q/a%2Eb",
		"v/1-q/a%2e",
		"V/1-q/a",
		"v/%2E.-q/a%",
	};
	char path[US_PATH_LEN_MAX + 1] = "untouched";
	struct us_error err = US_ERROR_INIT;
	for (size_t i = 0; i < GEN_COUNT(keys); i++) {
		assert_int_equal(us_template_path(f.tmpl, keys[i], strlen(keys[i]), path, &err),
				 US_E_NOTFOUND);
		assert_string_equal(path, "untouched");
	}
	assert_true(us_template_path(f.tmpl, "v/1-q/a", 7, path, &err) > 0);
	assert_string_equal(path, "/d/x1/a.db");
	assert_true(us_template_path(f.tmpl, "v/%2E.-q/n/a", 12, path, &err) > 0);
	assert_string_equal(path, "/d/x../n/a.db");
	char long_key[2000];
	memset(long_key, 'a', sizeof(long_key));
	assert_int_equal(us_template_path(f.tmpl, long_key, sizeof(long_key), path, &err),
			 US_E_NOTFOUND);
	done(&f);
}

/* A random template that uses every wildcard of P. Returns 0 if there is none. */
static int gen_template(const struct us_pattern *p, char *text, size_t cap)
{
	static const char *const literals[] = { "x", "-", "\xC3\xA9", "{{hostname}}", ".z", "2" };
	size_t count = us_pattern_capture_count(p);
	size_t order[US_PATTERN_CAPTURES_MAX];
	for (size_t i = 0; i < count; i++) {
		order[i] = i;
	}
	for (size_t i = 0; i + 1 < count; i++) { /* unnamed ones keep their order */
		size_t k = i + gen_below((uint32_t)(count - i));
		if (us_pattern_capture_name(p, order[i]) && us_pattern_capture_name(p, order[k])) {
			size_t swap = order[i];
			order[i] = order[k];
			order[k] = swap;
		}
	}
	text[0] = '\0';
	size_t fixed = 0;
	for (size_t i = 0; i < count; i++) {
		char variable[100];
		const char *name = us_pattern_capture_name(p, order[i]);
		int deep = us_pattern_capture_is_deep(p, order[i]);
		if (name) {
			(void)snprintf(variable, sizeof(variable), "{{%s}}", name);
		} else {
			(void)snprintf(variable, sizeof(variable), "{{u%zu}}", order[i]);
		}
		if (gen_below(5) == 0) {
			gen_append(text, cap, text[0] ? "/lit" : "lit");
			fixed++;
		}
		gen_append(text, cap, text[0] ? "/" : "");
		if (!deep && gen_below(4) == 0) {
			const char *head = literals[gen_below(GEN_COUNT(literals))];
			gen_append(text, cap, head[0] == '.' ? "y.z" : head);
		}
		gen_append(text, cap, variable);
		if (!deep && gen_below(4) == 0) {
			gen_append(text, cap, literals[gen_below(GEN_COUNT(literals))]);
		}
		fixed += !deep;
	}
	return fixed > 0;
}

/* What every key promises to the targets. */
static void check_key(const char *key)
{
	for (const char *at = key; *at;) {
		uint32_t value;
		at += us_utf8_next(at, strlen(at), &value);
		assert_true(value < US_UTF8_BYTE && value >= 32 && value != 127 &&
			    value != 0xFFFE && value != 0xFFFF && value != '\\');
	}
	for (const char *at = key;; at++) {
		size_t len = strcspn(at, "/");
		assert_true(len > 0 && len <= US_KEY_COMPONENT_LEN_MAX && at[0] != '.');
		assert_true(len != US_OBJECT_NAME_LEN ||
			    strncmp(at, "20060102T150405Z.db.lz4", len) != 0);
		at += len;
		if (*at == '\0') {
			return;
		}
	}
}

static void gen_mutate(char *key)
{
	static const char bytes[] = "ab-./%2EC39\xC3\xA9\xFF";
	size_t len = strlen(key);
	size_t at = gen_below((uint32_t)len + 1);
	char byte = bytes[gen_below(sizeof(bytes) - 1)];
	uint32_t how = gen_below(3);
	if (how == 0 && len < US_KEY_LEN_MAX) {
		memmove(key + at + 1, key + at, len - at + 1);
		key[at] = byte;
	} else if (how == 1 && at < len) {
		key[at] = byte;
	} else if (at < len) {
		memmove(key + at, key + at + 1, len - at);
	}
}

struct pair {
	char path[512], key[US_KEY_LEN_MAX + 1];
};

static int compare_keys(const void *a, const void *b)
{
	return strcmp(((const struct pair *)a)->key, ((const struct pair *)b)->key);
}

#define PATHS 40

static void test_random_bijection(void **state)
{
	(void)state;
	static struct gen_pattern g;
	static struct pair pairs[PATHS];
	size_t key_count = 0, mutated_count = 0, accepted_count = 0;
	for (int round = 0; round < 4000; round++) {
		struct fixture f = { 0 };
		char text[2048];
		gen_pattern_new(&g);
		assert_int_equal(us_pattern_new(g.text, &f.pattern, NULL), 0);
		if (!gen_template(f.pattern, text, sizeof(text))) {
			us_pattern_free(f.pattern);
			continue;
		}
		us_pattern_free(f.pattern);
		f = compile(g.text, text);
		size_t count = 0;
		for (int i = 0; i < PATHS; i++) {
			struct pair *pair = &pairs[count];
			gen_path_new(&g, pair->path, sizeof(pair->path));
			const char *key = key_of(&f, pair->path);
			if (!key) {
				continue;
			}
			check_key(key);
			(void)snprintf(pair->key, sizeof(pair->key), "%s", key);
			count++;
			char mutated[US_KEY_LEN_MAX + 2], back[US_PATH_LEN_MAX + 1];
			char again[US_KEY_LEN_MAX + 1];
			(void)snprintf(mutated, sizeof(mutated), "%s", key);
			for (uint32_t k = 1 + gen_below(3); k > 0; k--) {
				gen_mutate(mutated);
			}
			mutated_count++;
			int32_t len =
				us_template_path(f.tmpl, mutated, strlen(mutated), back, NULL);
			if (len >= 0) {
				accepted_count++;
				assert_int_equal(
					us_pattern_match(f.pattern, back, (size_t)len, NULL), 1);
				assert_true(us_template_key(f.tmpl, back, (size_t)len, again,
							    NULL) > 0);
				assert_string_equal(again, mutated);
			}
		}
		key_count += count;
		qsort(pairs, count, sizeof(pairs[0]), compare_keys);
		for (size_t i = 1; i < count; i++) {
			assert_int_equal(strcmp(pairs[i].key, pairs[i - 1].key) == 0,
					 strcmp(pairs[i].path, pairs[i - 1].path) == 0);
		}
		done(&f);
	}
	assert_true(key_count > 10000 && accepted_count > 1000 && accepted_count < mutated_count);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_key_table),        cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_hostname),         cmocka_unit_test(test_list_prefix),
		cmocka_unit_test(test_lengths),          cmocka_unit_test(test_foreign_keys),
		cmocka_unit_test(test_random_bijection),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
