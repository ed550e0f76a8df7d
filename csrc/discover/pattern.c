/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matching paths against a compiled pattern (pattern_program.h).
 *
 * match_tokens lets each star take as little as possible and, where it gets
 * stuck, gives one more character to the last star only. That finds a match if
 * there is one, and the one with the shortest captures from the left: what stands
 * between two stars has a fixed number of characters, so anything that matches
 * with an earlier star longer also matches with it shorter and the next star
 * longer. O(tokens x name), no recursion.
 *
 * Paths are split without search: only `**` takes a variable number of components,
 * and there is at most one.
 */
#include "pattern_program.h"

#include <string.h>

#include "../base/utf8.h"

#define NONE US_PATTERN_NONE
#define TOKENS_MAX US_PATTERN_TOKENS_MAX

const char *us_pattern_prefix(const struct us_pattern *pattern)
{
	return pattern->prefix;
}

size_t us_pattern_capture_count(const struct us_pattern *pattern)
{
	return pattern->wildcard_count;
}

const char *us_pattern_capture_name(const struct us_pattern *pattern, size_t i)
{
	return pattern->wildcards[i].name;
}

int us_pattern_capture_is_deep(const struct us_pattern *pattern, size_t i)
{
	return pattern->wildcards[i].is_deep != 0;
}

int us_pattern_is_sidecar(const char *name, size_t name_len)
{
	return (name_len >= 4 && (memcmp(name + name_len - 4, "-wal", 4) == 0 ||
				  memcmp(name + name_len - 4, "-shm", 4) == 0)) ||
	       (name_len >= 8 && memcmp(name + name_len - 8, "-journal", 8) == 0);
}

static int set_has(const struct us_pattern *p, const struct set *set, uint32_t value)
{
	for (uint32_t i = set->range_begin; i < set->range_end; i++) {
		if (value >= p->ranges[i].first && value <= p->ranges[i].last) {
			return !set->negated;
		}
	}
	return set->negated != 0;
}

static int token_takes(const struct us_pattern *p, const struct token *t, uint32_t value)
{
	return t->kind == TOKEN_CHAR  ? t->value == value
	       : t->kind == TOKEN_SET ? set_has(p, &p->sets[t->value], value)
				      : 1;
}

/* Fills POS[I] with where token I of component C begins, and the end after the last. */
static int match_tokens(const struct us_pattern *p, const struct component *c, const char *name,
			size_t len, uint16_t pos[TOKENS_MAX + 1])
{
	const struct token *tokens = p->tokens + c->token_begin;
	size_t count = c->token_end - c->token_begin;
	size_t i = 0, at = 0;
	size_t retry_token = 0, retry_at = 0; /* after the last star: 0, there is none */
	uint32_t value;
	while (at < len) {
		size_t char_len = us_utf8_next(name + at, len - at, &value);
		if (i < count && tokens[i].kind == TOKEN_STAR) {
			pos[i] = (uint16_t)at;
			at += tokens[i].value ? char_len : 0;
			retry_at = at;
			retry_token = ++i;
		} else if (i < count && token_takes(p, &tokens[i], value)) {
			pos[i++] = (uint16_t)at;
			at += char_len;
		} else if (retry_token) {
			retry_at += us_utf8_next(name + retry_at, len - retry_at, &value);
			at = retry_at;
			i = retry_token;
		} else {
			return 0;
		}
	}
	while (i < count && tokens[i].kind == TOKEN_STAR && tokens[i].value == 0) {
		pos[i++] = (uint16_t)len;
	}
	pos[i] = (uint16_t)len;
	return i == count;
}

static int match_glob(const struct us_pattern *p, const struct component *c, const char *name,
		      size_t len, struct us_capture *captures)
{
	uint16_t pos[TOKENS_MAX + 1];
	if (!match_tokens(p, c, name, len, pos)) {
		return 0;
	}
	for (uint32_t i = c->wildcard_begin; captures && i < c->wildcard_end; i++) {
		uint16_t begin = pos[p->wildcards[i].token_begin - c->token_begin];
		uint16_t end = pos[p->wildcards[i].token_end - c->token_begin];
		captures[i] =
			(struct us_capture){ .text = name + begin, .len = (size_t)(end - begin) };
	}
	return 1;
}

/* NAME against any component but a DEEP one. CAPTURES may be NULL. */
static int match_name(const struct us_pattern *p, const struct component *c, const char *name,
		      size_t len, struct us_capture *captures)
{
	if (len < c->name_len_min || len > US_PATTERN_FILE_NAME_LEN_MAX) { /* the least is 1 */
		return 0;
	}
	if (name[0] == '.' && (c->starts_wild || len == 1 || (len == 2 && name[1] == '.'))) {
		return 0;
	}
	if (c->kind == COMPONENT_GLOB) {
		return match_glob(p, c, name, len, captures);
	}
	if (c->kind == COMPONENT_LITERAL) {
		return len == c->head_len && memcmp(name, c->head, len) == 0;
	}
	if (memcmp(name, c->head, c->head_len) != 0 ||
	    memcmp(name + len - c->tail_len, c->tail, c->tail_len) != 0) {
		return 0;
	}
	if (captures) {
		captures[c->wildcard_begin] = (struct us_capture){
			.text = name + c->head_len,
			.len = len - c->head_len - c->tail_len,
		};
	}
	return 1;
}

/* Takes COUNT components that `**` may catch off the front of the path. */
static int match_deep(size_t count, const char **rest, const char *end, struct us_capture *capture)
{
	const char *begin = *rest;
	const char *at = begin;
	for (size_t i = 0; i < count; i++) {
		const char *slash = memchr(at, '/', (size_t)(end - at));
		if (!slash) { /* unreached: COUNT leaves components for the rest of the pattern */
			return 0;
		}
		if (slash == at || *at == '.' || slash - at > US_PATTERN_FILE_NAME_LEN_MAX) {
			return 0;
		}
		at = slash + 1;
	}
	*capture =
		(struct us_capture){ .text = begin, .len = count ? (size_t)(at - begin - 1) : 0 };
	*rest = at;
	return 1;
}

static size_t count_components(const char *path, const char *end)
{
	size_t count = 1;
	for (const char *at = path; (at = memchr(at, '/', (size_t)(end - at))); at++) {
		count++;
	}
	return count;
}

int us_pattern_match(const struct us_pattern *pattern, const char *path, size_t path_len,
		     struct us_capture *ret_captures)
{
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	size_t base_len = pattern->base_len;
	if (path_len > US_PATH_LEN_MAX || path_len <= base_len || path[base_len] != '/' ||
	    memcmp(path, pattern->prefix, base_len) != 0 || memchr(path, '\0', path_len)) {
		return 0;
	}
	const char *rest = path + base_len + 1;
	const char *end = path + path_len;
	size_t path_count = count_components(rest, end);
	size_t fixed_count = pattern->component_count - (pattern->deep != NONE ? 1u : 0u);
	if (path_count < fixed_count || (pattern->deep == NONE && path_count > fixed_count)) {
		return 0;
	}
	for (uint32_t i = 0; i < pattern->component_count; i++) {
		const struct component *c = &pattern->components[i];
		if (c->kind == COMPONENT_DEEP) {
			if (!match_deep(path_count - fixed_count, &rest, end,
					&captures[c->wildcard_begin])) {
				return 0;
			}
			continue;
		}
		const char *slash = memchr(rest, '/', (size_t)(end - rest));
		size_t len = (size_t)((slash ? slash : end) - rest);
		if (!match_name(pattern, c, rest, len, captures) ||
		    (!slash && us_pattern_is_sidecar(rest, len))) {
			return 0;
		}
		rest += len + 1;
	}
	if (ret_captures) {
		memcpy(ret_captures, captures, pattern->wildcard_count * sizeof(captures[0]));
	}
	return 1;
}

/* --------------------------------------------------------------- rebuilding */

struct writer {
	char *text;
	size_t len, cap;
	int overflow;
};

static void put(struct writer *w, const char *text, size_t len)
{
	if (w->overflow || len > w->cap - w->len) {
		w->overflow = 1;
		return;
	}
	memcpy(w->text + w->len, text, len);
	w->len += len;
}

static void put_component(struct writer *w, const struct us_pattern *p, const struct component *c,
			  const struct us_capture *captures)
{
	uint32_t next = c->wildcard_begin;
	for (uint32_t i = c->token_begin; i < c->token_end;) {
		if (next < c->wildcard_end && p->wildcards[next].token_begin == i) {
			put(w, captures[next].text, captures[next].len);
			i = p->wildcards[next++].token_end;
			continue;
		}
		char bytes[4];
		put(w, bytes, us_utf8_put(p->tokens[i].value, bytes));
		i++;
	}
}

int64_t us_pattern_path(const struct us_pattern *pattern, const struct us_capture *captures,
			char *ret_path)
{
	struct writer w = { .text = ret_path, .cap = US_PATH_LEN_MAX };
	put(&w, pattern->prefix, pattern->base_len);
	for (uint32_t i = 0; i < pattern->component_count; i++) {
		const struct component *c = &pattern->components[i];
		const struct us_capture *deep = &captures[c->wildcard_begin];
		if (c->kind != COMPONENT_DEEP) {
			put(&w, "/", 1);
			put_component(&w, pattern, c, captures);
		} else if (deep->len > 0) {
			put(&w, "/", 1);
			put(&w, deep->text, deep->len);
		}
	}
	if (w.overflow) {
		return -1;
	}
	ret_path[w.len] = '\0';
	return (int64_t)w.len;
}

/* --------------------------------------------------------------- for the walk */

static us_pattern_state state_bit(uint32_t i)
{
	return (us_pattern_state)1 << i;
}

static us_pattern_state last_bit(const struct us_pattern *pattern)
{
	return state_bit(pattern->component_count - 1);
}

/* Component I may come next: and so may the one after it where I may be empty. */
static us_pattern_state state_at(const struct us_pattern *pattern, uint32_t i)
{
	return state_bit(i) | (i == pattern->deep ? state_bit(i + 1) : 0);
}

us_pattern_state us_pattern_start(const struct us_pattern *pattern)
{
	return state_at(pattern, 0);
}

us_pattern_state us_pattern_enter(const struct us_pattern *pattern, us_pattern_state state,
				  const char *name, size_t name_len)
{
	us_pattern_state inside = 0;
	for (us_pattern_state rest = state & ~last_bit(pattern); rest; rest &= rest - 1) {
		uint32_t i = (uint32_t)__builtin_ctzll(rest);
		if (i == pattern->deep) {
			int is_caught = name_len > 0 && name_len <= US_PATTERN_FILE_NAME_LEN_MAX &&
					name[0] != '.';
			inside |= is_caught ? state_at(pattern, i) : 0;
		} else if (match_name(pattern, &pattern->components[i], name, name_len, NULL)) {
			inside |= state_at(pattern, i + 1);
		}
	}
	return inside;
}

int us_pattern_accepts(const struct us_pattern *pattern, us_pattern_state state, const char *name,
		       size_t name_len)
{
	return (state & last_bit(pattern)) != 0 &&
	       match_name(pattern, &pattern->components[pattern->component_count - 1], name,
			  name_len, NULL) &&
	       !us_pattern_is_sidecar(name, name_len);
}

int us_pattern_wants_files(const struct us_pattern *pattern, us_pattern_state state)
{
	return (state & last_bit(pattern)) != 0;
}

const char *us_pattern_only_directory(const struct us_pattern *pattern, us_pattern_state state)
{
	if (state == 0 || (state & (state - 1)) != 0 || state == last_bit(pattern)) {
		return NULL;
	}
	const struct component *c = &pattern->components[__builtin_ctzll(state)];
	return c->kind == COMPONENT_LITERAL ? c->head : NULL;
}
