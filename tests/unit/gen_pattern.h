/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_GEN_PATTERN_H
#define US_TESTS_GEN_PATTERN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/*
 * Random patterns, and random paths that are likely to match them, for the tests of
 * pattern.c and template.c. A fixed seed, so that failures repeat.
 */

static uint64_t gen_seed = 0x9E3779B97F4A7C15u;

static inline uint32_t gen_below(uint32_t count)
{
	gen_seed ^= gen_seed << 13;
	gen_seed ^= gen_seed >> 7;
	gen_seed ^= gen_seed << 17;
	return (uint32_t)((gen_seed >> 16) % count);
}

enum { GEN_LITERAL, GEN_ANY, GEN_SET, GEN_STAR, GEN_NAMED };

struct gen_item {
	int kind;
	char text[16]; /* as in the pattern; LITERAL: unquoted */
};

struct gen_component {
	struct gen_item items[6];
	size_t count;
	int deep, has_wildcard;
};

struct gen_pattern {
	struct gen_component components[6];
	size_t count, named_count;
	int has_wildcard, has_deep;
	char text[512];
};

static const char *const gen_literals[] = { "a", "b", "-", ".", "\xC3\xA9", "*", "\xFF", "%" };
static const char *const gen_sets[] = { "[ab]", "[!a]", "[^-b]", "[a-c.]", "[\xC3\xA0-\xC3\xBF]",
					"[]a]" };
static const char *const gen_chars[] = {
	"a",
	"a",
	"b",
	"b",
	"-",
	".",
	"\xC3\xA9",
	"*",
	"\xFF",
	"%",
	"\xC3",
	"\xA9",
	"\\",
	"\n",
	"\"",
	"c",
	"\xEF\xBF\xBE",
	"\xED\xA0\x80",
	"\xF0\x9F\x98\x80",
	"2",
	"\x7F",
	"\xC2\x80",
};
#define GEN_COUNT(array) ((uint32_t)(sizeof(array) / sizeof((array)[0])))

static inline void gen_append(char *text, size_t cap, const char *more)
{
	size_t len = strlen(text);
	(void)snprintf(text + len, cap - len, "%s", more);
}

static inline void gen_component_new(struct gen_pattern *p, struct gen_component *c)
{
	memset(c, 0, sizeof(*c));
	int unnamed = 0; /* 1: there is one; 2: and a named one after it */
	size_t count = 1 + gen_below(5);
	while (c->count < count) {
		struct gen_item *item = &c->items[c->count];
		item->kind = gen_below(3) ? GEN_LITERAL : 1 + (int)gen_below(4);
		if (item->kind == GEN_NAMED) {
			unnamed += unnamed == 1;
			(void)snprintf(item->text, sizeof(item->text), "{n%zu}", p->named_count++);
		} else if (item->kind == GEN_LITERAL) {
			(void)snprintf(item->text, sizeof(item->text), "%s",
				       gen_literals[gen_below(GEN_COUNT(gen_literals))]);
		} else if (unnamed == 2 || (item->kind == GEN_STAR && c->count > 0 &&
					    c->items[c->count - 1].kind == GEN_STAR)) {
			continue;
		} else {
			unnamed = 1;
			(void)snprintf(item->text, sizeof(item->text), "%s",
				       item->kind == GEN_ANY ? "?"
				       : item->kind == GEN_STAR
					       ? "*"
					       : gen_sets[gen_below(GEN_COUNT(gen_sets))]);
		}
		c->has_wildcard |= item->kind != GEN_LITERAL;
		c->count++;
	}
	if (!c->has_wildcard) { /* never "." or ".." */
		(void)snprintf(c->items[0].text, sizeof(c->items[0].text), "a");
	}
	p->has_wildcard |= c->has_wildcard;
}

static inline void gen_pattern_new(struct gen_pattern *p)
{
	do {
		memset(p, 0, sizeof(*p));
		p->count = 1 + gen_below(5);
		for (size_t i = 0; i < p->count; i++) {
			struct gen_component *c = &p->components[i];
			if (i + 1 < p->count && !p->has_deep && gen_below(4) == 0) {
				memset(c, 0, sizeof(*c));
				c->deep = p->has_deep = p->has_wildcard = 1;
				continue;
			}
			gen_component_new(p, c);
		}
	} while (!p->has_wildcard);
	for (size_t i = 0; i < p->count; i++) {
		gen_append(p->text, sizeof(p->text), p->components[i].deep ? "/**" : "/");
		for (size_t k = 0; k < p->components[i].count; k++) {
			const struct gen_item *item = &p->components[i].items[k];
			int quote = item->kind == GEN_LITERAL && item->text[0] == '*';
			gen_append(p->text, sizeof(p->text), quote ? "\\*" : item->text);
		}
	}
}

static inline void gen_any_chars(char *text, size_t cap, uint32_t count)
{
	if (gen_below(50) == 0) {
		gen_append(text, cap, "20060102T150405Z.db.lz4");
	}
	for (uint32_t i = 0; i < count; i++) {
		gen_append(text, cap, gen_chars[gen_below(GEN_COUNT(gen_chars))]);
	}
}

/* A path that P often matches. */
static inline void gen_path_new(const struct gen_pattern *p, char *path, size_t cap)
{
	path[0] = '\0';
	for (size_t i = 0; i < p->count; i++) {
		const struct gen_component *c = &p->components[i];
		if (c->deep) {
			for (uint32_t k = gen_below(4); k > 0; k--) {
				gen_append(path, cap, "/");
				gen_any_chars(path, cap, 1 + gen_below(3));
			}
			continue;
		}
		gen_append(path, cap, "/");
		for (size_t k = 0; k < c->count; k++) {
			const struct gen_item *item = &c->items[k];
			if (gen_below(40) == 0) {
				gen_any_chars(path, cap, gen_below(2));
			} else if (item->kind == GEN_LITERAL) {
				gen_append(path, cap, item->text);
			} else if (item->kind == GEN_SET && gen_below(4)) {
				gen_append(path, cap,
					   strstr(item->text, "\xC3") ? "\xC3\xA9"
					   : item->text[1] == '!'     ? "b"
								      : "a");
			} else {
				gen_any_chars(path, cap,
					      item->kind == GEN_STAR    ? gen_below(4)
					      : item->kind == GEN_NAMED ? 1 + gen_below(3)
									: 1);
			}
		}
	}
}

#endif
