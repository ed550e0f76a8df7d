/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a pattern's text to its compiled form (pattern_program.h), component by
 * component, left to right. All tables are as long as the text could fill them,
 * so nothing grows while it is read.
 */
#include "pattern_program.h"

#include <string.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "../base/utf8.h"

#define NONE US_PATTERN_NONE
#define SIDECAR_LEN_MAX 8 /* "-journal" */

/* What is being compiled: the whole text and one component of it. */
struct parser {
	struct us_pattern *pattern;
	struct us_error *err;
	char shown[US_ESCAPE_SHOW_LEN]; /* the text, for messages */
	const char *text;               /* the component */
	size_t len, at;
};

/* All messages of this file name the key and the value in the same way. */
#define FAIL(parser, format, ...) \
	us_fail((parser)->err, US_E_CONFIG, "discovery_pattern: \"%s\" " format, (parser)->shown, \
		##__VA_ARGS__)

static int is_name_char(char c, int is_first)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
	       (!is_first && ((c >= '0' && c <= '9') || c == '-'));
}

static const char *keep_string(struct us_pattern *p, const char *text, size_t len)
{
	char *kept = p->strings + p->strings_len;
	memcpy(kept, text, len);
	kept[len] = '\0';
	p->strings_len += len + 1;
	return kept;
}

static void push_token(struct us_pattern *p, uint32_t kind, uint32_t value)
{
	p->tokens[p->token_count++] = (struct token){ .kind = kind, .value = value };
}

/* Takes one character of the component, after `\` if there is one. */
static int32_t take_char(struct parser *parser, uint32_t *ret_value)
{
	if (parser->text[parser->at] == '\\' && ++parser->at == parser->len) {
		return FAIL(parser,
			    "has a \"\\\" with nothing after it in one component; write \"\\\\\" "
			    "for a backslash in a name");
	}
	parser->at += us_utf8_next(parser->text + parser->at, parser->len - parser->at, ret_value);
	return 0;
}

/* Takes "a" or "a-z" inside brackets. */
static int32_t take_range(struct parser *parser)
{
	struct us_pattern *p = parser->pattern;
	struct range range = { .first = 0 };
	const char *rest = parser->text + parser->at;
	if (rest[0] == '[' && parser->len - parser->at > 1 && strchr(":.=", rest[1])) {
		return FAIL(parser,
			    "has \"[%c\" inside brackets; classes such as [:digit:] are not "
			    "known here, write ranges such as [0-9]",
			    rest[1]);
	}
	int32_t rc = take_char(parser, &range.first);
	if (rc) {
		return rc;
	}
	range.last = range.first;
	rest = parser->text + parser->at;
	if (parser->len - parser->at > 1 && rest[0] == '-' && rest[1] != ']') {
		parser->at++;
		rc = take_char(parser, &range.last);
		if (rc) {
			return rc;
		}
	}
	if (range.first > range.last) {
		return FAIL(parser,
			    "has a range inside brackets whose ends are in the wrong order; "
			    "write the lower one first, as in [0-9]");
	}
	p->ranges[p->range_count++] = range;
	return 0;
}

static int32_t take_set(struct parser *parser)
{
	struct us_pattern *p = parser->pattern;
	struct set set = { .range_begin = p->range_count };
	parser->at++;
	if (parser->at < parser->len &&
	    (parser->text[parser->at] == '!' || parser->text[parser->at] == '^')) {
		set.negated = 1;
		parser->at++;
	}
	size_t begin = parser->at; /* a `]` here is a member */
	while (parser->at < parser->len &&
	       (parser->text[parser->at] != ']' || parser->at == begin)) {
		int32_t rc = take_range(parser);
		if (rc) {
			return rc;
		}
	}
	if (parser->at >= parser->len) {
		return FAIL(parser,
			    "has a \"[\" without its \"]\" in the same component; close it, or "
			    "write \"\\[\" for a bracket in a name");
	}
	parser->at++;
	set.range_end = p->range_count;
	push_token(p, TOKEN_SET, p->set_count);
	p->sets[p->set_count++] = set;
	return 0;
}

static int32_t check_name(struct parser *parser, const char *name, size_t len)
{
	size_t good = 0;
	while (good < len && is_name_char(name[good], good == 0)) {
		good++;
	}
	char shown[US_ESCAPE_SHOW_LEN];
	(void)us_escape_show(name, len, shown);
	if (len == 0 || good < len) {
		return FAIL(parser,
			    "has a wildcard named \"%s\"; a name is letters, digits, \"_\" and "
			    "\"-\", and begins with a letter or \"_\", as in {tenant} (for a brace "
			    "in a name write \"\\{\")",
			    shown);
	}
	if (len > US_PATTERN_NAME_LEN_MAX) {
		return FAIL(parser, "has a wildcard name of %zu bytes, \"%s\"; the longest is %d",
			    len, shown, US_PATTERN_NAME_LEN_MAX);
	}
	if (len == strlen("hostname") && memcmp(name, "hostname", len) == 0) {
		return FAIL(parser,
			    "has a wildcard named {%s}, which is built in; choose another name",
			    shown);
	}
	for (uint32_t i = 0; i < parser->pattern->wildcard_count; i++) {
		const char *other = parser->pattern->wildcards[i].name;
		if (other && strlen(other) == len && memcmp(other, name, len) == 0) {
			return FAIL(parser, "uses the name {%s} twice; give each wildcard its own",
				    shown);
		}
	}
	return 0;
}

static int32_t add_wildcard(struct parser *parser, struct wildcard wildcard)
{
	struct us_pattern *p = parser->pattern;
	if (p->wildcard_count == US_PATTERN_CAPTURES_MAX) {
		return FAIL(parser, "has more than %d wildcards; use fewer",
			    US_PATTERN_CAPTURES_MAX);
	}
	p->wildcards[p->wildcard_count++] = wildcard;
	return 0;
}

static int32_t take_named(struct parser *parser)
{
	struct us_pattern *p = parser->pattern;
	const char *name = parser->text + parser->at + 1;
	const char *close = memchr(name, '}', parser->len - parser->at - 1);
	if (!close) {
		return FAIL(parser,
			    "has a \"{\" without its \"}\" in the same component; close it, or "
			    "write \"\\{\" for a brace in a name");
	}
	size_t len = (size_t)(close - name);
	int32_t rc = check_name(parser, name, len);
	if (rc) {
		return rc;
	}
	struct wildcard wildcard = { .name = keep_string(p, name, len),
				     .token_begin = p->token_count,
				     .token_end = p->token_count + 1 };
	push_token(p, TOKEN_STAR, 1);
	parser->at += len + 2;
	return add_wildcard(parser, wildcard);
}

/* Takes `*`, `?` or [...] as part of the component's one unnamed capture, which is
 * wildcard *GROUP, NONE before the first. */
static int32_t take_unnamed(struct parser *parser, uint32_t *group)
{
	struct us_pattern *p = parser->pattern;
	int32_t rc = 0;
	uint32_t token_begin = p->token_count;
	if (parser->text[parser->at] == '[') {
		rc = take_set(parser);
	} else if (parser->text[parser->at] == '?') {
		push_token(p, TOKEN_ANY, 0);
		parser->at++;
	} else {
		parser->at++;
		if (parser->at < parser->len && parser->text[parser->at] == '*') {
			return FAIL(
				parser,
				"has \"**\" beside other text; \"**\" stands for whole components "
				"and must be one of its own, as in /data/**/*.db");
		}
		push_token(p, TOKEN_STAR, 0);
	}
	if (rc) {
		return rc;
	}
	if (*group == NONE) {
		*group = p->wildcard_count;
		return add_wildcard(parser, (struct wildcard){ .token_begin = token_begin,
							       .token_end = p->token_count });
	}
	if (*group + 1 != p->wildcard_count) {
		return FAIL(parser,
			    "has {%s} between unnamed wildcards of one component, which are one "
			    "capture; name those too",
			    p->wildcards[p->wildcard_count - 1].name);
	}
	p->wildcards[*group].token_end = p->token_count;
	return 0;
}

static int32_t take_tokens(struct parser *parser)
{
	struct us_pattern *p = parser->pattern;
	uint32_t group = NONE;
	while (parser->at < parser->len) {
		char c = parser->text[parser->at];
		int32_t rc;
		if (c == '*' || c == '?' || c == '[') {
			rc = take_unnamed(parser, &group);
		} else if (c == '{') {
			rc = take_named(parser);
		} else {
			uint32_t value;
			rc = take_char(parser, &value);
			push_token(p, TOKEN_CHAR, rc ? 0 : value);
		}
		if (rc) {
			return rc;
		}
	}
	if (group != NONE) {
		struct wildcard *w = &p->wildcards[group];
		if (w->token_end - w->token_begin == 1 &&
		    p->tokens[w->token_begin].kind == TOKEN_STAR) {
			p->tokens[w->token_begin].value = 1;
		}
	}
	return 0;
}

/* Keeps the bytes of CHAR tokens BEGIN..END-1; returns whether they are UTF-8. */
static int keep_literal(struct us_pattern *p, uint32_t begin, uint32_t end, const char **ret_text,
			uint32_t *ret_len)
{
	char *text = p->strings + p->strings_len;
	size_t len = 0;
	int is_utf8 = 1;
	for (uint32_t i = begin; i < end; i++) {
		len += us_utf8_put(p->tokens[i].value, text + len);
		is_utf8 &= p->tokens[i].value < US_UTF8_BYTE;
	}
	text[len] = '\0';
	p->strings_len += len + 1;
	*ret_text = text;
	*ret_len = (uint32_t)len;
	return is_utf8;
}

/* Chooses the cheapest kind for a component whose tokens are complete. */
static void choose_kind(struct us_pattern *p, struct component *c)
{
	c->kind = COMPONENT_GLOB;
	if (c->wildcard_begin == c->wildcard_end) {
		(void)keep_literal(p, c->token_begin, c->token_end, &c->head, &c->head_len);
		c->kind = COMPONENT_LITERAL; /* compared as a whole: any bytes will do */
		return;
	}
	c->starts_wild = p->tokens[c->token_begin].kind != TOKEN_CHAR;
	const struct wildcard *w = &p->wildcards[c->wildcard_begin];
	if (c->wildcard_end - c->wildcard_begin == 1 && w->token_end - w->token_begin == 1 &&
	    p->tokens[w->token_begin].kind == TOKEN_STAR &&
	    keep_literal(p, c->token_begin, w->token_begin, &c->head, &c->head_len) &&
	    keep_literal(p, w->token_end, c->token_end, &c->tail, &c->tail_len)) {
		c->kind = COMPONENT_AFFIX;
	}
}

static size_t component_name_len_min(const struct us_pattern *p, const struct component *c)
{
	size_t len = 0;
	char bytes[4];
	for (uint32_t i = c->token_begin; i < c->token_end; i++) {
		const struct token *t = &p->tokens[i];
		len += t->kind == TOKEN_CHAR   ? us_utf8_put(t->value, bytes)
		       : t->kind == TOKEN_STAR ? t->value
					       : 1;
	}
	return len;
}

static int32_t parse_component(struct parser *parser, struct component *c)
{
	struct us_pattern *p = parser->pattern;
	*c = (struct component){ .token_begin = p->token_count,
				 .wildcard_begin = p->wildcard_count };
	int32_t rc = take_tokens(parser);
	if (rc) {
		return rc;
	}
	c->token_end = p->token_count;
	c->wildcard_end = p->wildcard_count;
	size_t len_min = component_name_len_min(p, c);
	if (len_min > US_PATTERN_FILE_NAME_LEN_MAX) {
		return FAIL(
			parser,
			"has a component that needs names of %zu bytes or more; a file name has "
			"at most %d",
			len_min, US_PATTERN_FILE_NAME_LEN_MAX);
	}
	c->name_len_min = (uint16_t)len_min;
	choose_kind(p, c);
	if (c->kind == COMPONENT_LITERAL &&
	    (strcmp(c->head, ".") == 0 || strcmp(c->head, "..") == 0)) {
		return FAIL(parser, "has a \"%s\" component; write the directory it stands for",
			    c->head);
	}
	return 0;
}

static int32_t parse_deep(struct parser *parser, struct component *c)
{
	struct us_pattern *p = parser->pattern;
	if (p->deep != NONE) {
		return FAIL(parser, "has \"**\" twice; a pattern has at most one");
	}
	p->deep = p->component_count;
	*c = (struct component){ .kind = COMPONENT_DEEP,
				 .starts_wild = 1,
				 .token_begin = p->token_count,
				 .token_end = p->token_count,
				 .wildcard_begin = p->wildcard_count,
				 .wildcard_end = p->wildcard_count + 1 };
	return add_wildcard(parser, (struct wildcard){ .token_begin = p->token_count,
						       .token_end = p->token_count,
						       .is_deep = 1 });
}

/* Adds the component in PARSER, to the prefix as long as that is all there is. */
static int32_t add_component(struct parser *parser, int is_last)
{
	struct us_pattern *p = parser->pattern;
	if (parser->len == 0) {
		return is_last ? FAIL(parser, "ends in a slash; name the files, as in \"*.db\"")
			       : FAIL(parser, "has an empty component; write one slash");
	}
	if (p->component_count == US_PATTERN_COMPONENTS_MAX) {
		return FAIL(parser,
			    "has more than %d components from its first wildcard on; use fewer",
			    US_PATTERN_COMPONENTS_MAX);
	}
	struct component *c = &p->components[p->component_count];
	int is_deep = parser->len == 2 && memcmp(parser->text, "**", 2) == 0;
	int32_t rc = is_deep ? parse_deep(parser, c) : parse_component(parser, c);
	if (rc) {
		return rc;
	}
	if (p->component_count == 0 && c->kind == COMPONENT_LITERAL && !is_last) {
		p->prefix[p->base_len] = '/';
		memcpy(p->prefix + p->base_len + 1, c->head, c->head_len + 1);
		p->base_len += 1 + c->head_len;
		return 0;
	}
	p->component_count++;
	return 0;
}

static int32_t check_last(struct parser *parser)
{
	const struct us_pattern *p = parser->pattern;
	const struct component *c = &p->components[p->component_count - 1];
	if (p->wildcard_count == 0) {
		return FAIL(parser, "has no wildcard; write one where the databases differ, as in "
				    "\"/data/*.db\", "
				    "or use dbs: for a single database");
	}
	if (c->kind == COMPONENT_DEEP) {
		return FAIL(
			parser,
			"ends in \"**\", which stands for directories; name the files after it, "
			"as in \"**/*.db\"");
	}
	char tail[SIDECAR_LEN_MAX + 1] = "";
	size_t at = SIDECAR_LEN_MAX;
	for (uint32_t i = c->token_end; i > c->token_begin && at > 0; i--) {
		const struct token *t = &p->tokens[i - 1];
		if (t->kind != TOKEN_CHAR || t->value >= 0x80) {
			break;
		}
		tail[--at] = (char)t->value;
	}
	if (us_pattern_is_sidecar(tail + at, SIDECAR_LEN_MAX - at)) {
		return FAIL(parser,
			    "matches only files that SQLite keeps beside a database; leave the "
			    "\"%s\" at its end away",
			    strrchr(tail + at, '-'));
	}
	return 0;
}

static int32_t parse(struct parser *parser, const char *text, size_t len)
{
	if (len == 0) {
		return us_fail(parser->err, US_E_CONFIG,
			       "discovery_pattern: is empty; write an absolute path with wildcards "
			       "such as "
			       "\"/data/*.db\"");
	}
	if (text[0] != '/') {
		return FAIL(parser, "is relative; write an absolute path such as \"/%s\"",
			    parser->shown);
	}
	if (len > US_PATTERN_LEN_MAX) {
		return FAIL(parser, "is %zu bytes long; the longest pattern has %d", len,
			    US_PATTERN_LEN_MAX);
	}
	for (size_t at = 1; at <= len;) {
		const char *slash = memchr(text + at, '/', len - at);
		size_t end = slash ? (size_t)(slash - text) : len;
		parser->text = text + at;
		parser->len = end - at;
		parser->at = 0;
		int32_t rc = add_component(parser, end == len);
		if (rc) {
			return rc;
		}
		at = end + 1;
	}
	return check_last(parser);
}

int32_t us_pattern_new(const char *text, struct us_pattern **ret_pattern, struct us_error *err)
{
	text = text ? text : "";
	size_t len = strlen(text);
	size_t cap = (len < US_PATTERN_LEN_MAX ? len : US_PATTERN_LEN_MAX) + 1;
	struct parser parser = { .err = err };
	(void)us_escape_show(text, len, parser.shown);
	struct us_pattern *p = us_alloc_zero(sizeof(*p));
	if (!p) {
		return us_fail_nomem(err);
	}
	p->deep = NONE;
	p->prefix[0] = '/';
	p->tokens = us_alloc_array(cap, sizeof(*p->tokens));
	p->ranges = us_alloc_array(cap, sizeof(*p->ranges));
	p->sets = us_alloc_array(cap, sizeof(*p->sets));
	p->strings = us_alloc_array(cap, 3); /* text, and the NULs of name, head and tail */
	parser.pattern = p;
	int32_t rc = p->tokens && p->ranges && p->sets && p->strings ? parse(&parser, text, len)
								     : us_fail_nomem(err);
	if (rc) {
		us_pattern_free(p);
		return rc;
	}
	*ret_pattern = p;
	return 0;
}

void us_pattern_free(struct us_pattern *pattern)
{
	if (!pattern) {
		return;
	}
	us_free(pattern->tokens);
	us_free(pattern->ranges);
	us_free(pattern->sets);
	us_free(pattern->strings);
	us_free(pattern);
}
