/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <fnmatch.h>
#include <locale.h>
#include <stdlib.h>
#include <wchar.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/discover/pattern.h"
#include "gen_pattern.h"

static struct us_pattern *compile(const char *text)
{
	struct us_pattern *p = NULL;
	struct us_error err = US_ERROR_INIT;
	if (us_pattern_new(text, &p, &err)) {
		fail_msg("%s", err.message);
	}
	return p;
}

/* The captures of PATH joined by "|", or NULL if it does not match. Agrees with the walk. */
static const char *captures_of(const struct us_pattern *p, const char *path)
{
	static char joined[8192];
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	joined[0] = '\0';
	if (!us_pattern_match(p, path, strlen(path), captures)) {
		assert_int_equal(us_pattern_match(p, path, strlen(path), NULL), 0);
		return NULL;
	}
	assert_int_equal(us_pattern_match(p, path, strlen(path), NULL), 1);
	for (size_t i = 0; i < us_pattern_capture_count(p); i++) {
		size_t len = strlen(joined);
		(void)snprintf(joined + len, sizeof(joined) - len, "%s%.*s", i ? "|" : "",
			       (int)captures[i].len, captures[i].text);
	}
	char back[US_PATH_LEN_MAX + 1];
	assert_int_equal(us_pattern_path(p, captures, back), (int64_t)strlen(path));
	assert_string_equal(back, path);
	return joined;
}

struct match {
	const char *pattern, *path, *captures; /* NULL: no match */
};

static void test_match_table(void **state)
{
	(void)state;
	static const struct match table[] = {
		{ "/data/*.db", "/data/a.db", "a" },
		{ "/data/*.db", "/data/.db", NULL },
		{ "/data/*.db", "/data/.a.db", NULL },
		{ "/data/*.db", "/data/a.db-wal", NULL },
		{ "/data/*.db", "/data/x/a.db", NULL },
		{ "/data/*.db", "/data/a.db/", NULL },
		{ "/data/*.db", "data/a.db", NULL },
		{ "/data/*.db", "/dataa.db", NULL },
		{ "/data/*.db", "/datax/a.db", NULL },
		{ "/data/*.db", "/data", NULL },
		{ "/data/*.db", "/data/", NULL },
		{ "/data/*.db", "", NULL },
		{ "/data/*", "/data/x-wal", NULL },
		{ "/data/*", "/data/x-shm", NULL },
		{ "/data/*", "/data/x-journal", NULL },
		{ "/data/*", "/data/-wal", NULL },
		{ "/data/*", "/data/wal", "wal" },
		{ "/data/*/x.db", "/data/t-wal/x.db", "t-wal" },
		{ "/data/*-?.db", "/data/ab-c.db", "ab-c" },
		{ "/data/*-?.db", "/data/-c.db", "-c" },
		{ "/data/x*", "/data/x", NULL },
		{ "/data/x*", "/data/x.y", ".y" },
		{ "/data/x*y*z", "/data/xyz", "y" },
		{ "/data/.*", "/data/.a", "a" },
		{ "/data/.*", "/data/..", NULL },
		{ "/data/.{a}/x", "/data/../x", NULL },
		{ "/data/[.]a*", "/data/.ab", NULL },
		{ "/data/[!x]a", "/data/.a", NULL },
		{ "/data/?a", "/data/.a", NULL },
		{ "/data/{t}", "/data/.a", NULL },
		{ "/data/.hid/*", "/data/.hid/a", "a" },
		{ "/data/*/.hid/*", "/data/a/.hid/b", "a|b" },
		{ "/data/{t}.db", "/data/x.db.db", "x.db" },
		{ "/data/{a}-{b}.db", "/data/x-y-z.db", "x|y-z" },
		{ "/data/{a}{b}", "/data/xyz", "x|yz" },
		{ "/data/{a}{b}", "/data/x", NULL },
		{ "/data/{a}-*", "/data/x--y", "x|-y" },
		{ "/data/*{a}", "/data/xy", "x|y" },
		{ "/data/*{a}*", NULL, NULL },
		{ "/data/?", "/data/\xC3\xA9", "\xC3\xA9" },
		{ "/data/??", "/data/\xC3\xA9", NULL },
		{ "/data/??", "/data/\xC3x", "\xC3x" },
		{ "/data/[\xC3\xA0-\xC3\xBF]x", "/data/\xC3\xA9x", "\xC3\xA9" },
		{ "/data/[a-c]", "/data/b", "b" },
		{ "/data/[a-c]", "/data/d", NULL },
		{ "/data/[!a-c]", "/data/d", "d" },
		{ "/data/[^a-c]", "/data/b", NULL },
		{ "/data/[]a]", "/data/]", "]" },
		{ "/data/[!]a]", "/data/]", NULL },
		{ "/data/[a-]", "/data/-", "-" },
		{ "/data/[-a]", "/data/-", "-" },
		{ "/data/[a\\]]x", "/data/]x", "]" },
		{ "/data/[*]x", "/data/*x", "*" },
		{ "/data/\\*x*", "/data/*xy", "y" },
		{ "/data/\\{x}*", "/data/{x}y", "y" },
		{ "/data/a\\\\*", "/data/a\\y", "y" },
		{ "/data/a}]*", "/data/a}]y", "y" },
		{ "/d\\*/*", "/d*/a", "a" },
		{ "/data/\x01*\n", "/data/\x01xx\n", "xx" },
		{ "/data/\xFF*", "/data/\xFFz", "z" },
		{ "/data/\xA9*", "/data/\xC3\xA9z", NULL },
		{ "/data/*\xA9", "/data/\xC3\xA9", NULL },
		{ "/data/**/*.db", "/data/a.db", "|a" },
		{ "/data/**/*.db", "/data/x/y/a.db", "x/y|a" },
		{ "/data/**/*.db", "/data/x/.y/a.db", NULL },
		{ "/data/**/*.db", "/data/x//a.db", NULL },
		{ "/data/**/*.db", "/data//a.db", NULL },
		{ "/data/**/d/*.db", "/data/d/d/a.db", "d|a" },
		{ "/data/**/d/*.db", "/data/d/a.db", "|a" },
		{ "/data/**/d/*.db", "/data/a.db", NULL },
		{ "/data/*/**/e/x.db", "/data/p/q/r/e/x.db", "p|q/r" },
		{ "/**/x", "/x", "" },
		{ "/**/x", "/a/b/x", "a/b" },
		{ "/*", "/a", "a" },
		{ "/*", "/", NULL },
		{ "/*/app.db", "/t/app.db", "t" },
		{ "/data/*/databases/*/branches/*/tenants/*.db",
		  "/data/p/databases/d/branches/b/tenants/t.db", "p|d|b|t" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		if (!table[i].path) {
			continue; /* refused: see the other table */
		}
		struct us_pattern *p = compile(table[i].pattern);
		const char *captures = captures_of(p, table[i].path);
		if (!captures != !table[i].captures ||
		    (captures && strcmp(captures, table[i].captures) != 0)) {
			fail_msg("%s on %s: %s", table[i].pattern, table[i].path,
				 captures ? captures : "no match");
		}
		us_pattern_free(p);
	}
	struct us_pattern *p = compile("/data/*");
	assert_int_equal(us_pattern_match(p, "/data/a\0b", 9, NULL), 0);
	us_pattern_free(p);
}

struct refusal {
	const char *pattern, *part; /* of the message */
};

static void test_refusals(void **state)
{
	(void)state;
	static const struct refusal table[] = {
		{ NULL, "is empty" },
		{ "", "discovery_pattern: is empty" },
		{ "data/*.db",
		  "discovery_pattern: \"data/*.db\" is relative; write an absolute path such as "
		  "\"/data/*.db\"" },
		{ "/data/x.db", "no wildcard" },
		{ "/", "ends in a slash" },
		{ "/data/*/", "ends in a slash" },
		{ "/data//*.db", "empty component" },
		{ "//*.db", "empty component" },
		{ "/data/./*.db", "\".\" component" },
		{ "/data/../*.db", "\"..\" component" },
		{ "/data/*/..", "\"..\" component" },
		{ "/data/\\.\\./*", "\"..\" component" },
		{ "/**/**/x", "\"**\" twice" },
		{ "/data/a**b", "beside other text" },
		{ "/data/**.db", "beside other text" },
		{ "/data/***", "beside other text" },
		{ "/data/**", "ends in \"**\"" },
		{ "/data/[ab", "without its \"]\"" },
		{ "/data/[", "without its \"]\"" },
		{ "/data/[]", "without its \"]\"" },
		{ "/data/[a/b]", "without its \"]\"" },
		{ "/data/[z-a]", "wrong order" },
		{ "/data/[[:digit:]]", "classes" },
		{ "/data/{a", "without its \"}\"" },
		{ "/data/{a/b}", "without its \"}\"" },
		{ "/data/{}", "named \"\"" },
		{ "/data/{a,b}", "named \"a,b\"" },
		{ "/data/{1a}", "named \"1a\"" },
		{ "/data/{^}", "named \"^\"" },
		{ "/data/{a:}", "named \"a:\"" },
		{ "/data/{a.}", "named \"a.\"" },
		{ "/data/{a{}", "named \"a{\"" },
		{ "/data/[\\", "nothing after it" },
		{ "/data/[a-\\", "nothing after it" },
		{ "/data/[[.x.]]", "classes" },
		{ "/data/[[=x=]]", "classes" },
		{ "/data/{{a}}", "named \"{a\"" },
		{ "/data/{a b}", "named \"a b\"" },
		{ "/data/{a}/{a}", "name {a} twice" },
		{ "/data/{a}{a}", "name {a} twice" },
		{ "/data/{hostname}", "built in" },
		{ "/data/*{a}*", "between unnamed" },
		{ "/data/?{a}[x]", "between unnamed" },
		{ "/data/x\\", "nothing after it" },
		{ "/data/*-wal", "\"-wal\" at its end" },
		{ "/data/*/db-shm", "\"-shm\" at its end" },
		{ "/data/*.db-journal", "\"-journal\" at its end" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct us_pattern *p = NULL;
		struct us_error err = US_ERROR_INIT;
		assert_int_equal(us_pattern_new(table[i].pattern, &p, &err), US_E_CONFIG);
		assert_null(p);
		if (strncmp(err.message, "discovery_pattern: ", 19) != 0 ||
		    !strstr(err.message, table[i].part)) {
			fail_msg("%s: %s", table[i].pattern, err.message);
		}
		assert_int_equal(us_pattern_new(table[i].pattern, &p, NULL), US_E_CONFIG);
	}
}

static void test_limits(void **state)
{
	(void)state;
	char text[US_PATTERN_LEN_MAX + 100];
	struct us_pattern *p = NULL;
	struct us_error err = US_ERROR_INIT;
	memset(text, 'x', sizeof(text));
	memcpy(text, "/data/*", 7);
	text[6 + 255] = '\0'; /* a star and 254 x */
	p = compile(text);
	us_pattern_free(p);
	text[6 + 255] = 'x';
	text[6 + 256] = '\0';
	assert_int_equal(us_pattern_new(text, &p, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "256 bytes"));
	text[6 + 256] = 'x';
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(us_pattern_new(text, &p, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "the longest pattern"));
	for (size_t count = 64; count <= 65; count++) { /* components; each a capture */
		text[0] = '\0';
		for (size_t i = 0; i < count; i++) {
			gen_append(text, sizeof(text), "/*");
		}
		assert_int_equal(us_pattern_new(text, &p, &err), count == 64 ? 0 : US_E_CONFIG);
	}
	assert_non_null(captures_of(p, text + 2));
	us_pattern_free(p);
	text[0] = '\0';
	for (size_t i = 0; i < 65; i++) {
		char name[32];
		(void)snprintf(name, sizeof(name), "%s{n%zu}", i % 20 ? "-" : "/", i);
		gen_append(text, sizeof(text), name);
	}
	assert_int_equal(us_pattern_new(text, &p, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "more than 64 wildcards"));
	/* a deep prefix is none of the 64 */
	text[0] = '\0';
	for (size_t i = 0; i < 200; i++) {
		gen_append(text, sizeof(text), "/d");
	}
	gen_append(text, sizeof(text), "/*");
	p = compile(text);
	assert_int_equal(strlen(us_pattern_prefix(p)), 400);
	us_pattern_free(p);
	/* names that are almost built in, that use all there is; brackets that are no class */
	p = compile("/data/{hostnamx}/{hostnam}/{_A9-Z_z}/[[x]/[[-a]");
	us_pattern_free(p);
	/* names of 255 bytes match, longer ones do not */
	char path[600];
	memset(path, 'y', sizeof(path));
	memcpy(path, "/data/", 6);
	p = compile("/data/*");
	assert_int_equal(us_pattern_match(p, path, 6 + 255, NULL), 1);
	assert_int_equal(us_pattern_match(p, path, 6 + 256, NULL), 0);
	us_pattern_free(p);
	/* likewise for each of those that "**" stands for; an empty one is none */
	p = compile("/data/**/x.db");
	memcpy(path + 6 + 255, "/x.db", 6);
	assert_int_equal(us_pattern_match(p, path, 6 + 255 + 5, NULL), 1);
	memcpy(path + 6 + 255, "y/x.db", 7);
	assert_int_equal(us_pattern_match(p, path, 6 + 256 + 5, NULL), 0);
	assert_int_equal(us_pattern_match(p, "/data//x.db", 11, NULL), 0);
	assert_int_equal(us_pattern_match(p, "/data/a//x.db", 13, NULL), 0);
	assert_int_equal(us_pattern_match(p, "/data/x.db", 10, NULL), 1);
	us_pattern_state state_in = us_pattern_start(p);
	assert_true(us_pattern_enter(p, state_in, path + 6, 255) != 0);
	assert_true(us_pattern_enter(p, state_in, path + 6, 256) == 0);
	assert_true(us_pattern_enter(p, state_in, "", 0) == 0);
	assert_true(us_pattern_enter(p, state_in, ".a", 2) == 0);
	/* captures that give a path longer than there can be */
	char back[US_PATH_LEN_MAX + 1], *much = malloc(US_PATH_LEN_MAX);
	memset(much, 'm', US_PATH_LEN_MAX);
	struct us_capture capture = { .text = much, .len = US_PATH_LEN_MAX - 11 };
	assert_int_equal(us_pattern_path(p, &capture, back), US_PATH_LEN_MAX);
	capture.len++;
	assert_int_equal(us_pattern_path(p, &capture, back), -1);
	capture.len = US_PATH_LEN_MAX;
	assert_int_equal(us_pattern_path(p, &capture, back), -1);
	free(much);
	us_pattern_free(p);
	us_pattern_free(NULL);
}

static void test_prefix_and_captures(void **state)
{
	(void)state;
	static const char *const table[][2] = {
		{ "/*", "/" },
		{ "/*/x", "/" },
		{ "/a/*", "/a" },
		{ "/a/b/{c}/d", "/a/b" },
		{ "/a/**/x", "/a" },
		{ "/a\\*/b/*", "/a*/b" },
		{ "/.hid/\n/[x]", "/.hid/\n" },
	};
	for (size_t i = 0; i < GEN_COUNT(table); i++) {
		struct us_pattern *p = compile(table[i][0]);
		assert_string_equal(us_pattern_prefix(p), table[i][1]);
		us_pattern_free(p);
	}
	struct us_pattern *p = compile("/d/{ten-ant_1}-*x?/**/[a]{b}");
	assert_int_equal(us_pattern_capture_count(p), 5);
	assert_string_equal(us_pattern_capture_name(p, 0), "ten-ant_1");
	assert_null(us_pattern_capture_name(p, 1));
	assert_null(us_pattern_capture_name(p, 2));
	assert_null(us_pattern_capture_name(p, 3));
	assert_string_equal(us_pattern_capture_name(p, 4), "b");
	for (size_t i = 0; i < 5; i++) {
		assert_int_equal(us_pattern_capture_is_deep(p, i), i == 2);
	}
	us_pattern_free(p);
}

/* ---------------------------------------------- an independent, slow matcher */

struct ref {
	const struct gen_pattern *pattern;
	const char *parts[64]; /* components of the path */
	size_t part_lens[64], part_count;
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	size_t capture_count;
};

/* Characters as the C library sees them. */
static size_t ref_char_len(const char *text, size_t len)
{
	mbstate_t shift = { 0 };
	wchar_t wide;
	size_t n = mbrtowc(&wide, text, len, &shift);
	return n == 0 || n > len ? 1 : n;
}

static int ref_set_has(const char *set, const char *c, size_t len)
{
	char one[8] = "";
	memcpy(one, c, len);
	if (strcmp(set, "[ab]") == 0) {
		return strcmp(one, "a") == 0 || strcmp(one, "b") == 0;
	}
	if (strcmp(set, "[!a]") == 0) {
		return strcmp(one, "a") != 0;
	}
	if (strcmp(set, "[^-b]") == 0) {
		return strcmp(one, "-") != 0 && strcmp(one, "b") != 0;
	}
	if (strcmp(set, "[a-c.]") == 0) {
		return strlen(one) == 1 && strchr("abc.", one[0]);
	}
	if (strcmp(set, "[]a]") == 0) {
		return strcmp(one, "]") == 0 || strcmp(one, "a") == 0;
	}
	return strcmp(one, "\xC3\xA9") == 0; /* of the characters used */
}

static size_t ref_unnamed_count(const struct gen_component *c)
{
	size_t count = 0;
	for (size_t i = 0; i < c->count; i++) {
		count += c->items[i].kind != GEN_LITERAL && c->items[i].kind != GEN_NAMED;
	}
	return count;
}

/* Tries every split, shortest first. POS[I]: where item I begins. */
static int ref_items(const struct gen_component *c, size_t item, const char *name, size_t len,
		     size_t at, size_t *pos)
{
	pos[item] = at;
	if (item == c->count) {
		return at == len;
	}
	const struct gen_item *it = &c->items[item];
	if (it->kind == GEN_STAR || it->kind == GEN_NAMED) {
		int at_least_one = it->kind == GEN_NAMED || ref_unnamed_count(c) == 1;
		for (size_t end = at;; end += ref_char_len(name + end, len - end)) {
			if ((end > at || !at_least_one) &&
			    ref_items(c, item + 1, name, len, end, pos)) {
				return 1;
			}
			if (end >= len) {
				return 0;
			}
		}
	}
	if (at >= len) {
		return 0;
	}
	size_t n = ref_char_len(name + at, len - at);
	int ok = it->kind == GEN_ANY ||
		 (it->kind == GEN_SET && ref_set_has(it->text, name + at, n)) ||
		 (it->kind == GEN_LITERAL && strlen(it->text) == n &&
		  memcmp(it->text, name + at, n) == 0);
	return ok && ref_items(c, item + 1, name, len, at + n, pos);
}

static int ref_name(struct ref *r, const struct gen_component *c, const char *name, size_t len)
{
	size_t pos[8];
	if (len == 0 || (name[0] == '.' && c->items[0].kind != GEN_LITERAL) ||
	    (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.') ||
	    !ref_items(c, 0, name, len, 0, pos)) {
		return 0;
	}
	size_t first = SIZE_MAX, last = 0; /* unnamed */
	for (size_t i = 0; i < c->count; i++) {
		if (c->items[i].kind != GEN_LITERAL && c->items[i].kind != GEN_NAMED) {
			first = first == SIZE_MAX ? i : first;
			last = i;
		}
	}
	for (size_t i = 0; i < c->count; i++) {
		size_t end = i == first ? last : i;
		if (i == first || c->items[i].kind == GEN_NAMED) {
			r->captures[r->capture_count++] =
				(struct us_capture){ .text = name + pos[i],
						     .len = pos[end + 1] - pos[i] };
		}
	}
	return 1;
}

static int ref_components(struct ref *r, size_t component, size_t part)
{
	if (component == r->pattern->count) {
		return part == r->part_count;
	}
	const struct gen_component *c = &r->pattern->components[component];
	size_t capture_count = r->capture_count;
	if (!c->deep) {
		return part < r->part_count && ref_name(r, c, r->parts[part], r->part_lens[part]) &&
		       ref_components(r, component + 1, part + 1);
	}
	for (size_t end = part; end <= r->part_count; end++) {
		if (end > part && (r->part_lens[end - 1] == 0 || r->parts[end - 1][0] == '.')) {
			return 0;
		}
		r->capture_count = capture_count;
		r->captures[r->capture_count++] = (struct us_capture){
			.text = r->parts[part],
			.len = end > part ? (size_t)(r->parts[end - 1] - r->parts[part]) +
						    r->part_lens[end - 1]
					  : 0,
		};
		if (ref_components(r, component + 1, end)) {
			return 1;
		}
	}
	return 0;
}

static int ref_match(struct ref *r, const struct gen_pattern *pattern, const char *path)
{
	memset(r, 0, sizeof(*r));
	r->pattern = pattern;
	for (const char *at = path; *at && r->part_count < 63;) {
		size_t len = strcspn(++at, "/");
		r->parts[r->part_count] = at;
		r->part_lens[r->part_count++] = len;
		at += len;
	}
	return ref_components(r, 0, 0);
}

/* The same question, asked as the walk asks it. */
static int walk_match(const struct us_pattern *p, const char *path)
{
	size_t prefix_len = strlen(us_pattern_prefix(p));
	prefix_len = prefix_len == 1 ? 0 : prefix_len;
	if (strncmp(path, us_pattern_prefix(p), prefix_len) != 0 || path[prefix_len] != '/') {
		return 0;
	}
	us_pattern_state state = us_pattern_start(p);
	for (const char *at = path + prefix_len + 1;;) {
		size_t len = strcspn(at, "/");
		if (at[len] == '\0') {
			assert_true(us_pattern_wants_files(p, state) ||
				    !us_pattern_accepts(p, state, at, len));
			return us_pattern_accepts(p, state, at, len);
		}
		const char *only = us_pattern_only_directory(p, state);
		us_pattern_state inside = us_pattern_enter(p, state, at, len);
		assert_true(!only || !inside ||
			    (strlen(only) == len && memcmp(only, at, len) == 0));
		state = inside;
		if (!state) {
			return 0;
		}
		at += len + 1;
	}
}

static void test_random_against_reference(void **state)
{
	(void)state;
	if (!setlocale(LC_CTYPE, "C.UTF-8")) {
		skip();
	}
	size_t matches = 0, misses = 0;
	static struct gen_pattern g;
	for (int round = 0; round < 4000; round++) {
		gen_pattern_new(&g);
		struct us_pattern *p = compile(g.text);
		for (int i = 0; i < 25; i++) {
			char path[1024];
			struct ref r;
			struct us_capture captures[US_PATTERN_CAPTURES_MAX];
			gen_path_new(&g, path, sizeof(path));
			int expected = ref_match(&r, &g, path);
			int got = us_pattern_match(p, path, strlen(path), captures);
			if (got != expected || walk_match(p, path) != expected) {
				fail_msg("%s on %s: %d", g.text, path, got);
			}
			matches += expected != 0;
			misses += !expected;
			if (!expected) {
				continue;
			}
			assert_int_equal(us_pattern_capture_count(p), r.capture_count);
			for (size_t k = 0; k < r.capture_count; k++) {
				if (captures[k].len != r.captures[k].len ||
				    memcmp(captures[k].text, r.captures[k].text, captures[k].len) !=
					    0) {
					fail_msg("%s on %s: capture %zu is %.*s", g.text, path, k,
						 (int)captures[k].len, captures[k].text);
				}
			}
			assert_non_null(captures_of(p, path));
		}
		us_pattern_free(p);
	}
	assert_true(matches > 10000 && misses > 10000);
}

/* Against glibc's fnmatch, with plain wildcards and ASCII only. */
static void test_random_against_fnmatch(void **state)
{
	(void)state;
	static const char *const pieces[] = {
		"*", "?", "[ab]", "[!a]", "[a-c]", "a", "b", ".", "-"
	};
	static const char *const chars[] = { "a", "b", "c", ".", "-" };
	size_t matches = 0;
	for (int round = 0; round < 30000; round++) {
		char glob[128] = "", text[160] = "/r/", name[64] = "/r/";
		size_t wild = 0;
		for (uint32_t i = 1 + gen_below(6); i > 0; i--) {
			const char *piece = pieces[gen_below(GEN_COUNT(pieces))];
			size_t len = strlen(glob);
			if (piece[0] != '*' || len == 0 || glob[len - 1] != '*') {
				gen_append(glob, sizeof(glob), piece);
				wild += strchr("*?[", piece[0]) != NULL;
			}
		}
		gen_append(text, sizeof(text), glob);
		struct us_pattern *p = NULL;
		if (wild == 0) {
			continue;
		}
		p = compile(text);
		/* a star that is alone catches at least one byte */
		char *star = strchr(text, '*');
		if (wild == 1 && star) {
			char rest[128];
			(void)snprintf(rest, sizeof(rest), "?%s", star);
			(void)snprintf(star, sizeof(text) - (size_t)(star - text), "%s", rest);
		}
		for (int i = 0; i < 8; i++) {
			name[3] = '\0';
			for (uint32_t k = 1 + gen_below(6); k > 0; k--) {
				gen_append(name, sizeof(name), chars[gen_below(GEN_COUNT(chars))]);
			}
			if (strcmp(name, "/r/.") == 0 || strcmp(name, "/r/..") == 0) {
				continue;
			}
			/* glibc 2.36's FNM_PERIOD refuses "b.b" for "*?*[!a]b", which shells match
			 */
			int expected = fnmatch(text, name, 0) == 0 &&
				       !(name[3] == '.' && strchr("*?[", text[3]));
			if (us_pattern_match(p, name, strlen(name), NULL) != expected) {
				fail_msg("%s on %s: not %d", text, name, expected);
			}
			matches += expected != 0;
		}
		us_pattern_free(p);
	}
	assert_true(matches > 10000);
}

/* What makes backtracking matchers exponential costs no more than other names. */
static void test_no_blow_up(void **state)
{
	(void)state;
	char text[300] = "/d/", path[300] = "/d/";
	for (int i = 0; i < 60; i++) {
		gen_append(text, sizeof(text), "*a");
	}
	gen_append(text, sizeof(text), "*b");
	for (int i = 0; i < 250; i++) {
		gen_append(path, sizeof(path), "a");
	}
	struct us_pattern *p = compile(text);
	int64_t begin_ns = us_clock_mono_ns();
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(us_pattern_match(p, path, strlen(path), NULL), 0);
	}
	assert_true(us_clock_mono_ns() - begin_ns < 5 * US_NS_PER_S);
	us_pattern_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_match_table),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_prefix_and_captures),
		cmocka_unit_test(test_random_against_reference),
		cmocka_unit_test(test_random_against_fnmatch),
		cmocka_unit_test(test_no_blow_up),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
