/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_REFERENCE_MATCH_H
#define US_TESTS_REFERENCE_MATCH_H

/*
 * A second matcher for discovery patterns, after pattern.h and DESIGN.md section 2:
 * slow, simple, and without a line in common with csrc/discover. It takes the text of
 * a pattern that was found to be good. It tries everything, the shortest first, and
 * remembers what failed.
 */

#include "fuzz.h"

#define REF_ITEMS_MAX 4096
#define REF_PARTS_MAX 4096
#define REF_NAME_MAX 255
#define REF_PATH_MAX 4095

struct ref_span {
	const char *text;
	size_t len;
};

enum { REF_CHAR, REF_ANY, REF_SET, REF_STAR, REF_NAMED };

struct ref_item {
	int kind;
	uint32_t value;       /* CHAR */
	struct ref_span text; /* SET: between the brackets; NAMED: the name */
};

struct ref_component {
	struct ref_item items[REF_ITEMS_MAX];
	size_t count;
	size_t first, last; /* of the unnamed items; FIRST is COUNT where there is none */
	int is_deep;
};

/* RFC 3629's table. A byte that begins no character is one of its own, above all others. */
static inline size_t ref_char(const char *text, size_t len, uint32_t *ret_value)
{
	static const uint8_t table[][5] = {
		/* first byte, second byte, length */
		{ 0xC2, 0xDF, 0x80, 0xBF, 2 }, { 0xE0, 0xE0, 0xA0, 0xBF, 3 },
		{ 0xE1, 0xEC, 0x80, 0xBF, 3 }, { 0xED, 0xED, 0x80, 0x9F, 3 },
		{ 0xEE, 0xEF, 0x80, 0xBF, 3 }, { 0xF0, 0xF0, 0x90, 0xBF, 4 },
		{ 0xF1, 0xF3, 0x80, 0xBF, 4 }, { 0xF4, 0xF4, 0x80, 0x8F, 4 },
	};
	const uint8_t *p = (const uint8_t *)text;
	*ret_value = p[0] < 0x80 ? p[0] : 0x110000u + p[0];
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const uint8_t *row = table[i];
		if (p[0] < row[0] || p[0] > row[1] || len < row[4] || p[1] < row[2] ||
		    p[1] > row[3] || (row[4] > 2 && (p[2] & 0xC0) != 0x80) ||
		    (row[4] > 3 && (p[3] & 0xC0) != 0x80)) {
			continue;
		}
		*ret_value = row[4] == 2 ? (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu)
			     : row[4] == 3
				     ? (p[0] & 0xFu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu)
				     : (p[0] & 7u) << 18 | (p[1] & 0x3Fu) << 12 |
					       (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
		return row[4];
	}
	return 1;
}

/* One character of a pattern, which a `\` may stand before. */
static inline uint32_t ref_quoted(struct ref_span text, size_t *at)
{
	uint32_t value;
	*at += text.text[*at] == '\\';
	require(*at < text.len);
	*at += ref_char(text.text + *at, text.len - *at, &value);
	return value;
}

static inline int ref_set_has(struct ref_span set, uint32_t value)
{
	size_t at = 0;
	int negated = set.text[0] == '!' || set.text[0] == '^';
	int found = 0;
	at += negated ? 1 : 0;
	while (at < set.len) {
		uint32_t first = ref_quoted(set, &at), last = first;
		if (set.len - at > 1 && set.text[at] == '-') {
			at++;
			last = ref_quoted(set, &at);
		}
		found |= value >= first && value <= last;
	}
	return found != negated;
}

/* From behind the `[`; returns where its `]` is. */
static inline size_t ref_set_end(struct ref_span text, size_t at)
{
	at += text.text[at] == '!' || text.text[at] == '^';
	size_t begin = at;
	while (text.text[at] != ']' || at == begin) {
		(void)ref_quoted(text, &at);
		require(at < text.len);
	}
	return at;
}

static inline void ref_parse(struct ref_component *c, struct ref_span text)
{
	c->count = 0;
	c->first = SIZE_MAX;
	c->last = 0;
	c->is_deep = text.len == 2 && memcmp(text.text, "**", 2) == 0;
	for (size_t at = 0; at < text.len && !c->is_deep;) {
		require(c->count < REF_ITEMS_MAX);
		struct ref_item *item = &c->items[c->count];
		char first = text.text[at];
		if (first == '*' || first == '?') {
			item->kind = first == '*' ? REF_STAR : REF_ANY;
			at++;
		} else if (first == '[') {
			size_t end = ref_set_end(text, at + 1);
			item->kind = REF_SET;
			item->text = (struct ref_span){ text.text + at + 1, end - at - 1 };
			at = end + 1;
		} else if (first == '{') {
			const char *end = memchr(text.text + at, '}', text.len - at);
			require(end);
			item->kind = REF_NAMED;
			item->text = (struct ref_span){ text.text + at + 1,
							(size_t)(end - text.text) - at - 1 };
			at = (size_t)(end - text.text) + 1;
		} else {
			item->kind = REF_CHAR;
			item->value = ref_quoted(text, &at);
		}
		if (item->kind != REF_CHAR && item->kind != REF_NAMED) {
			c->first = c->first == SIZE_MAX ? c->count : c->first;
			c->last = c->count;
		}
		c->count++;
	}
	c->first = c->first == SIZE_MAX ? c->count : c->first;
}

struct ref_try {
	const struct ref_component *component;
	struct ref_span name;
	size_t begin[REF_ITEMS_MAX + 1]; /* of each item in the name */
	uint8_t *failed;                 /* item * (name.len + 1) + place */
};

static inline int ref_items(struct ref_try *t, size_t i, size_t at)
{
	const struct ref_component *c = t->component;
	uint32_t value;
	t->begin[i] = at;
	if (i == c->count) {
		return at == t->name.len;
	}
	uint8_t *failed = &t->failed[i * (t->name.len + 1) + at];
	if (*failed) {
		return 0;
	}
	const struct ref_item *item = &c->items[i];
	int is_long = item->kind == REF_STAR || item->kind == REF_NAMED;
	size_t least = item->kind == REF_STAR && c->first != c->last ? 0 : 1;
	size_t most = is_long ? SIZE_MAX : 1;
	size_t end = at;
	for (size_t taken = 0; taken <= most; taken++) {
		if (taken >= least && ref_items(t, i + 1, end)) {
			t->begin[i] = at;
			return 1;
		}
		if (end == t->name.len) {
			break;
		}
		end += ref_char(t->name.text + end, t->name.len - end, &value);
		if ((item->kind == REF_CHAR && value != item->value) ||
		    (item->kind == REF_SET && !ref_set_has(item->text, value))) {
			break;
		}
	}
	*failed = 1;
	return 0;
}

/* One component that is not `**` against one name; its captures are appended. */
static inline int ref_name(const struct ref_component *c, struct ref_span name,
			   struct ref_span *captures, size_t *capture_count)
{
	int is_dots = (name.len == 1 && name.text[0] == '.') ||
		      (name.len == 2 && memcmp(name.text, "..", 2) == 0);
	if (name.len == 0 || name.len > REF_NAME_MAX || is_dots ||
	    (name.text[0] == '.' && c->items[0].kind != REF_CHAR)) {
		return 0;
	}
	static struct ref_try t;
	t.component = c;
	t.name = name;
	t.failed = calloc(c->count + 1, name.len + 1);
	require(t.failed);
	int matches = ref_items(&t, 0, 0);
	free(t.failed);
	for (size_t i = 0; i < c->count && matches; i++) {
		size_t end = i == c->first ? c->last : i;
		if (i == c->first || c->items[i].kind == REF_NAMED) {
			captures[(*capture_count)++] =
				(struct ref_span){ name.text + t.begin[i],
						   t.begin[end + 1] - t.begin[i] };
		}
	}
	return matches;
}

/* Literal text is compared as bytes. */
static inline int ref_literal(const struct ref_component *c, struct ref_span name)
{
	char text[4 * REF_ITEMS_MAX];
	size_t len = 0;
	for (size_t i = 0; i < c->count; i++) {
		len += us_utf8_put(c->items[i].value, text + len);
	}
	return len == name.len && memcmp(text, name.text, len) == 0;
}

static inline int ref_is_literal(const struct ref_component *c)
{
	for (size_t i = 0; i < c->count; i++) {
		if (c->items[i].kind != REF_CHAR) {
			return 0;
		}
	}
	return !c->is_deep;
}

/* Splits "/a/b" into its components; returns their count. */
static inline size_t ref_split(const char *path, size_t len, struct ref_span *parts)
{
	size_t count = 0;
	if (len == 0 || path[0] != '/') {
		return 0;
	}
	for (size_t at = 1; at <= len; count++) {
		const char *slash = memchr(path + at, '/', len - at);
		size_t end = slash ? (size_t)(slash - path) : len;
		require(count < REF_PARTS_MAX);
		parts[count] = (struct ref_span){ path + at, end - at };
		at = end + 1;
	}
	return count;
}

static inline int ref_ends_in(struct ref_span name, const char *suffix)
{
	size_t len = strlen(suffix);
	return name.len >= len && memcmp(name.text + name.len - len, suffix, len) == 0;
}

/*
 * 1 if PATH matches the pattern TEXT, with its captures (there is room for them), else 0.
 * `**` takes what the other components leave.
 */
static inline int ref_match(const char *text, const char *path, size_t path_len,
			    struct ref_span *ret_captures, size_t *ret_capture_count)
{
	static struct ref_span wanted[REF_PARTS_MAX], parts[REF_PARTS_MAX];
	static struct ref_component c;
	size_t wanted_count = ref_split(text, strlen(text), wanted);
	size_t part_count = path_len <= REF_PATH_MAX && !memchr(path, '\0', path_len)
				    ? ref_split(path, path_len, parts)
				    : 0;
	size_t at = 0;
	*ret_capture_count = 0;
	for (size_t i = 0; i < wanted_count; i++) {
		ref_parse(&c, wanted[i]);
		if (c.is_deep) {
			size_t left = wanted_count - i - 1; /* components after this one */
			if (part_count < at + left) {
				return 0;
			}
			size_t end = part_count - left;
			struct ref_span *capture = &ret_captures[(*ret_capture_count)++];
			*capture = (struct ref_span){ path, 0 };
			for (size_t k = at; k < end; k++) {
				if (parts[k].len == 0 || parts[k].len > REF_NAME_MAX ||
				    parts[k].text[0] == '.') {
					return 0;
				}
				capture->text = parts[at].text;
				capture->len =
					(size_t)(parts[k].text + parts[k].len - capture->text);
			}
			at = end;
		} else if (at == part_count ||
			   (ref_is_literal(&c)
				    ? !ref_literal(&c, parts[at])
				    : !ref_name(&c, parts[at], ret_captures, ret_capture_count))) {
			return 0;
		} else {
			at++;
		}
	}
	struct ref_span last = part_count ? parts[part_count - 1] : (struct ref_span){ "", 0 };
	return at == part_count && !ref_ends_in(last, "-wal") && !ref_ends_in(last, "-shm") &&
	       !ref_ends_in(last, "-journal");
}

#endif
