/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The path template, compiled against a pattern. One part for each component of
 * the key:
 *
 *	LITERAL	text and {{hostname}}: the same in every key; kept escaped
 *	CAPTURE	one wildcard, literal text before and after it; kept raw
 *	DEEP	what `**` caught: zero or more components
 *
 * A component of the key is its raw text (literal, capture, literal) put through
 * us_escape_component as a whole. Literal text in the template needs no escape, so
 * only captures (and hostnames) ever change.
 *
 * Why no two paths share a key, and why a key gives its path back:
 * - the number of a key's components tells how many `**` caught, so every component
 *   belongs to a known part;
 * - escaping is reversible and leaves slashes alone, so the raw text of each
 *   component is known, and with it the capture between the literal texts;
 * - every wildcard is in the template exactly once, so all captures are known, and
 *   the pattern builds the path from them (us_pattern_path).
 * us_template_path then makes the key of the path it found and compares: whatever
 * lies in a target that is not the key of a path is not ours.
 *
 * Why keys do not collide with the objects of other keys (`a/<time>.db.lz4` beside a
 * key `a/b`): no component of a key has the form of an object's name, or begins
 * with a dot as temporary and reserved names do; see us_escape_component. A LIST below
 * one key can still return objects of longer keys: the last component of an object's
 * key is its name, all before it is the key prefix.
 */
#include "template.h"

#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "../base/utf8.h"

#define PARTS_MAX 128
#define TEMPLATE_LEN_MAX 4096
#define HOSTNAME_LEN_MAX 255
/* Of the key prefix: a slash and the object's name come after it. */
#define KEY_PREFIX_LEN_MAX (US_KEY_LEN_MAX - 1 - US_OBJECT_NAME_LEN)
/* A component's raw text: a capture is at most a file name, the literal text at
 * most a component. */
#define RAW_LEN_MAX (US_KEY_COMPONENT_LEN_MAX + US_PATTERN_FILE_NAME_LEN_MAX)

enum { PART_LITERAL, PART_CAPTURE, PART_DEEP };

struct part {
	uint32_t kind;
	uint32_t capture; /* index in the pattern; CAPTURE, DEEP */
	char *head;       /* LITERAL: all of it, escaped; CAPTURE: before the wildcard */
	char *tail;       /* CAPTURE: after the wildcard */
	size_t head_len, tail_len;
};

struct us_template {
	const struct us_pattern *pattern;
	char *list_prefix;
	uint32_t part_count;
	uint32_t deep; /* index of the DEEP part, or part_count */
	struct part parts[PARTS_MAX];
};

/* ---------------------------------------------------------------- compiling */

struct variable {
	const char *name; /* in the template's text */
	size_t name_len;
	uint32_t part;
	uint32_t is_bound;
};

struct parser {
	struct us_template *tmpl;
	struct us_error *err;
	const char *hostname;
	char shown[US_ESCAPE_SHOW_LEN]; /* the template, for messages */
	struct variable variables[PARTS_MAX];
	uint32_t variable_count;
	/* the component being read */
	const char *text;
	size_t len, at;
	char head[US_KEY_COMPONENT_LEN_MAX], tail[US_KEY_COMPONENT_LEN_MAX];
	size_t head_len, tail_len;
	uint32_t has_variable;
};

/* All messages of this file name the key and the value in the same way. */
#define FAIL(parser, format, ...) \
	us_fail((parser)->err, US_E_CONFIG, "path: \"%s\" " format, (parser)->shown, ##__VA_ARGS__)

/* Adds literal text to the component, before or after its variable. */
static int32_t add_text(struct parser *parser, const char *text, size_t len)
{
	if (len > US_KEY_COMPONENT_LEN_MAX - parser->head_len - parser->tail_len) {
		return FAIL(parser,
			    "has a component with more than %d bytes of text; a component of a "
			    "key has at most that many",
			    US_KEY_COMPONENT_LEN_MAX);
	}
	char *to = parser->has_variable ? parser->tail : parser->head;
	size_t *to_len = parser->has_variable ? &parser->tail_len : &parser->head_len;
	memcpy(to + *to_len, text, len);
	*to_len += len;
	return 0;
}

static int32_t take_literal(struct parser *parser)
{
	const char *text = parser->text + parser->at;
	uint32_t value;
	size_t len = us_utf8_next(text, parser->len - parser->at, &value);
	if (value == '{' || value == '}') {
		return FAIL(parser, "has a single \"%c\"; write a variable as {{tenant}}",
			    (char)value);
	}
	if (value == '%' || value == '\\') {
		return FAIL(parser, "has a \"%c\", which is used for escapes; leave it away",
			    (char)value);
	}
	if (value < 0x20 || value == 0x7F || value == 0xFFFE || value == 0xFFFF ||
	    value >= US_UTF8_BYTE) {
		return FAIL(parser,
			    "has the byte 0x%02X, a control byte or not UTF-8; leave it away",
			    (unsigned int)(unsigned char)text[0]);
	}
	parser->at += len;
	return add_text(parser, text, len);
}

static int32_t take_hostname(struct parser *parser)
{
	const char *name = parser->hostname;
	if (!name || name[0] == '\0') {
		return FAIL(parser,
			    "uses {{hostname}}, but the name of this host is not known; write it "
			    "out instead");
	}
	if (strchr(name, '/') || strlen(name) > HOSTNAME_LEN_MAX) {
		char shown[US_ESCAPE_SHOW_LEN];
		return FAIL(parser,
			    "uses {{hostname}}, which is \"%s\" here; it must have no slash and at "
			    "most %d bytes",
			    us_escape_show(name, strlen(name), shown), HOSTNAME_LEN_MAX);
	}
	return add_text(parser, name, strlen(name));
}

static int32_t check_variable_name(struct parser *parser, const char *name, size_t len)
{
	size_t good = 0;
	while (good < len &&
	       ((name[good] >= 'a' && name[good] <= 'z') ||
		(name[good] >= 'A' && name[good] <= 'Z') || name[good] == '_' ||
		(good && ((name[good] >= '0' && name[good] <= '9') || name[good] == '-')))) {
		good++;
	}
	char shown[US_ESCAPE_SHOW_LEN];
	(void)us_escape_show(name, len, shown);
	if (len == 0 || good < len) {
		return FAIL(parser,
			    "has a variable named \"%s\"; a name is letters, digits, \"_\" and "
			    "\"-\" without spaces, and begins with a letter or \"_\", as in "
			    "{{tenant}}",
			    shown);
	}
	if (len > US_PATTERN_NAME_LEN_MAX) {
		return FAIL(parser, "has a variable name of %zu bytes, \"%s\"; the longest is %d",
			    len, shown, US_PATTERN_NAME_LEN_MAX);
	}
	return 0;
}

static int32_t take_variable(struct parser *parser)
{
	const char *name = parser->text + parser->at + 2;
	const char *close = memmem(name, parser->len - parser->at - 2, "}}", 2);
	if (!close) {
		return FAIL(parser,
			    "has a \"{{\" without its \"}}\" in the same component; close it");
	}
	size_t len = (size_t)(close - name);
	int32_t rc = check_variable_name(parser, name, len);
	if (rc) {
		return rc;
	}
	parser->at += len + 4;
	if (len == strlen("hostname") && memcmp(name, "hostname", len) == 0) {
		return take_hostname(parser);
	}
	for (uint32_t i = 0; i < parser->variable_count; i++) {
		const struct variable *other = &parser->variables[i];
		if (other->name_len == len && memcmp(other->name, name, len) == 0) {
			return FAIL(parser, "uses {{%.*s}} twice; use every wildcard once",
				    (int)len, name);
		}
	}
	if (parser->has_variable) {
		return FAIL(parser,
			    "has {{%.*s}} in one component with another variable, so that two "
			    "databases could get the same key; put a slash between them",
			    (int)len, name);
	}
	parser->has_variable = 1;
	parser->variables[parser->variable_count++] = (struct variable){
		.name = name, .name_len = len, .part = parser->tmpl->part_count
	};
	return 0;
}

static int32_t publish_part(struct parser *parser)
{
	struct us_template *t = parser->tmpl;
	struct part *part = &t->parts[t->part_count++];
	part->kind = parser->has_variable ? PART_CAPTURE : PART_LITERAL;
	char literal[3 * US_KEY_COMPONENT_LEN_MAX];
	const char *head = parser->head;
	part->head_len = parser->head_len;
	part->tail_len = parser->tail_len;
	if (part->kind == PART_LITERAL) {
		part->head_len = us_escape_component(parser->head, parser->head_len, literal,
						     sizeof(literal));
		head = literal;
	}
	if (part->head_len > US_KEY_COMPONENT_LEN_MAX) {
		return FAIL(parser,
			    "has a component of %zu bytes, once {{hostname}} is escaped; a "
			    "component of a key has at most %d",
			    part->head_len, US_KEY_COMPONENT_LEN_MAX);
	}
	part->head = us_strndup(head, part->head_len);
	part->tail = us_strndup(parser->tail, part->tail_len);
	return part->head && part->tail ? 0 : us_fail_nomem(parser->err);
}

static int32_t take_component(struct parser *parser)
{
	if (parser->tmpl->part_count == PARTS_MAX) {
		return FAIL(parser, "has more than %d components; use fewer", PARTS_MAX);
	}
	if (parser->text[0] == '.') {
		return FAIL(parser,
			    "has a component that begins with a dot; such names are reserved for "
			    "temporary files and for what is not a database");
	}
	parser->at = parser->head_len = parser->tail_len = 0;
	parser->has_variable = 0;
	while (parser->at < parser->len) {
		const char *rest = parser->text + parser->at;
		int is_variable = parser->len - parser->at >= 2 && memcmp(rest, "{{", 2) == 0;
		int32_t rc = is_variable ? take_variable(parser) : take_literal(parser);
		if (rc) {
			return rc;
		}
	}
	return publish_part(parser);
}

static int32_t parse(struct parser *parser, const char *text, size_t len)
{
	if (len == 0) {
		return us_fail(
			parser->err, US_E_CONFIG,
			"path: is empty; write a template such as \"{{project}}/{{tenant}}\"");
	}
	if (len > TEMPLATE_LEN_MAX) {
		return FAIL(parser, "is %zu bytes long; the longest template has %d", len,
			    TEMPLATE_LEN_MAX);
	}
	if (text[0] == '/') {
		return FAIL(parser, "begins with a slash; leave it away");
	}
	if (text[len - 1] == '/') {
		return FAIL(parser, "ends in a slash; leave it away");
	}
	for (size_t at = 0; at < len;) {
		const char *slash = memchr(text + at, '/', len - at);
		size_t end = slash ? (size_t)(slash - text) : len;
		if (end == at) {
			return FAIL(parser, "has an empty component; write one slash");
		}
		parser->text = text + at;
		parser->len = end - at;
		int32_t rc = take_component(parser);
		if (rc) {
			return rc;
		}
		at = end + 1;
	}
	return 0;
}

/* ------------------------------------------------------------------ binding */

static void bind(struct parser *parser, struct variable *variable, size_t capture)
{
	struct us_template *t = parser->tmpl;
	variable->is_bound = 1;
	t->parts[variable->part].capture = (uint32_t)capture;
	if (us_pattern_capture_is_deep(t->pattern, capture)) {
		t->parts[variable->part].kind = PART_DEEP;
		t->deep = variable->part;
	}
}

static int32_t bind_named(struct parser *parser, size_t capture, const char *name)
{
	for (uint32_t i = 0; i < parser->variable_count; i++) {
		struct variable *v = &parser->variables[i];
		if (v->name_len == strlen(name) && memcmp(v->name, name, v->name_len) == 0) {
			bind(parser, v, capture);
			return 0;
		}
	}
	return FAIL(parser,
		    "does not use {%s} of discovery_pattern, so that two databases could get the "
		    "same key; add {{%s}}",
		    name, name);
}

/* Named wildcards first, then the unnamed ones to the variables that are left. */
static int32_t bind_all(struct parser *parser)
{
	const struct us_pattern *pattern = parser->tmpl->pattern;
	size_t capture_count = us_pattern_capture_count(pattern);
	size_t unnamed_count = 0;
	for (size_t i = 0; i < capture_count; i++) {
		const char *name = us_pattern_capture_name(pattern, i);
		int32_t rc = name ? bind_named(parser, i, name) : 0;
		if (rc) {
			return rc;
		}
		unnamed_count += !name;
	}
	uint32_t next = 0;
	size_t free_count = 0;
	const struct variable *extra = NULL; /* the first one that is left over */
	for (uint32_t i = 0; i < parser->variable_count; i++) {
		free_count += !parser->variables[i].is_bound;
		if (!parser->variables[i].is_bound && free_count > unnamed_count && !extra) {
			extra = &parser->variables[i];
		}
	}
	if (extra) {
		return FAIL(
			parser,
			"has {{%.*s}}, for which discovery_pattern has no wildcard (%zu unnamed "
			"for %zu variables that are not named there); leave it away, or name "
			"a wildcard {%.*s}",
			(int)extra->name_len, extra->name, unnamed_count, free_count,
			(int)extra->name_len, extra->name);
	}
	if (free_count < unnamed_count) {
		return FAIL(
			parser,
			"has %zu variables for the %zu unnamed wildcards of discovery_pattern, so "
			"that two databases could get the same key; use every wildcard once",
			free_count, unnamed_count);
	}
	for (size_t i = 0; i < capture_count; i++) {
		if (!us_pattern_capture_name(pattern, i)) {
			while (parser->variables[next].is_bound) {
				next++;
			}
			bind(parser, &parser->variables[next], i);
		}
	}
	return 0;
}

/* What the whole must fulfil once everything is bound. */
static int32_t check(struct parser *parser)
{
	const struct us_template *t = parser->tmpl;
	size_t len_min = 0;
	for (uint32_t i = 0; i < t->part_count; i++) {
		const struct part *part = &t->parts[i];
		if (part->kind == PART_DEEP && part->head_len + part->tail_len > 0) {
			return FAIL(parser,
				    "has text beside the variable of \"**\", which stands for any "
				    "number of components; put a slash between them");
		}
		len_min += part->kind == PART_DEEP ? 0
						   : part->head_len + part->tail_len + 1 +
							     (part->kind == PART_CAPTURE);
	}
	if (t->deep != t->part_count && t->part_count == 1) {
		return FAIL(parser,
			    "is empty where \"**\" stands for no directory; add a component, as in "
			    "\"databases/%s\"",
			    parser->shown);
	}
	if (len_min > KEY_PREFIX_LEN_MAX + 1) {
		return FAIL(parser,
			    "gives keys of %zu bytes or more; with the names of objects after them "
			    "they can have at most %d",
			    len_min - 1, KEY_PREFIX_LEN_MAX);
	}
	return 0;
}

static char *make_list_prefix(const struct us_template *t)
{
	char text[US_KEY_LEN_MAX + 2];
	size_t len = 0;
	for (uint32_t i = 0; t->parts[i].kind == PART_LITERAL; i++) { /* one of them is none */
		memcpy(text + len, t->parts[i].head, t->parts[i].head_len);
		len += t->parts[i].head_len;
		text[len++] = '/';
	}
	return us_strndup(text, len);
}

int32_t us_template_new(const char *text, const struct us_pattern *pattern, const char *hostname,
			struct us_template **ret_template, struct us_error *err)
{
	text = text ? text : "";
	struct us_template *t = us_alloc_zero(sizeof(*t));
	struct parser *parser = us_alloc_zero(sizeof(*parser));
	int32_t rc;
	if (!t || !parser) {
		rc = us_fail_nomem(err);
		goto out;
	}
	t->pattern = pattern;
	parser->tmpl = t;
	parser->err = err;
	parser->hostname = hostname;
	(void)us_escape_show(text, strlen(text), parser->shown);
	rc = parse(parser, text, strlen(text));
	if (rc) {
		goto out;
	}
	t->deep = t->part_count;
	rc = bind_all(parser);
	if (!rc) {
		rc = check(parser);
	}
	if (!rc) {
		t->list_prefix = make_list_prefix(t);
		rc = t->list_prefix ? 0 : us_fail_nomem(err);
	}
out:
	us_free(parser);
	if (rc) {
		us_template_free(t);
		return rc;
	}
	*ret_template = t;
	return 0;
}

void us_template_free(struct us_template *tmpl)
{
	if (!tmpl) {
		return;
	}
	for (uint32_t i = 0; i < tmpl->part_count; i++) {
		us_free(tmpl->parts[i].head);
		us_free(tmpl->parts[i].tail);
	}
	us_free(tmpl->list_prefix);
	us_free(tmpl);
}

const struct us_pattern *us_template_pattern(const struct us_template *tmpl)
{
	return tmpl->pattern;
}

const char *us_template_list_prefix(const struct us_template *tmpl)
{
	return tmpl->list_prefix;
}

char *us_template_shape(const struct us_template *tmpl)
{
	static const char variable[] = "{{}}";
	size_t cap = 1;
	for (uint32_t i = 0; i < tmpl->part_count; i++) {
		cap += 1 + tmpl->parts[i].head_len + sizeof(variable) + tmpl->parts[i].tail_len;
	}
	char *shape = us_alloc_zero(cap);
	size_t len = 0;
	for (uint32_t i = 0; shape && i < tmpl->part_count; i++) {
		const struct part *part = &tmpl->parts[i];
		len += (size_t)snprintf(shape + len, cap - len, "%s%.*s%s%.*s", i ? "/" : "",
					(int)part->head_len, part->head,
					part->kind == PART_LITERAL ? "" : variable,
					(int)part->tail_len, part->tail);
	}
	return shape;
}

/* --------------------------------------------------------------- path -> key */

struct key_writer {
	char text[US_KEY_LEN_MAX + 1];
	size_t len;               /* needed, even where that is more than TEXT holds */
	size_t component_len_max; /* of the longest component */
};

static void put_bytes(struct key_writer *w, const char *text, size_t len)
{
	if (w->len <= US_KEY_LEN_MAX && len <= US_KEY_LEN_MAX - w->len) {
		memcpy(w->text + w->len, text, len);
	}
	w->len += len;
}

static void put_component(struct key_writer *w, const char *raw, size_t raw_len)
{
	char escaped[3 * RAW_LEN_MAX];
	size_t len = us_escape_component(raw, raw_len, escaped, sizeof(escaped));
	if (w->len > 0) {
		put_bytes(w, "/", 1);
	}
	put_bytes(w, escaped, len);
	w->component_len_max = len > w->component_len_max ? len : w->component_len_max;
}

static void put_capture(struct key_writer *w, const struct part *part,
			const struct us_capture *capture)
{
	char raw[RAW_LEN_MAX];
	memcpy(raw, part->head, part->head_len);
	memcpy(raw + part->head_len, capture->text, capture->len);
	memcpy(raw + part->head_len + capture->len, part->tail, part->tail_len);
	put_component(w, raw, part->head_len + capture->len + part->tail_len);
}

static void put_deep(struct key_writer *w, const struct us_capture *capture)
{
	const char *at = capture->text;
	const char *end = at + capture->len;
	while (at < end) {
		const char *slash = memchr(at, '/', (size_t)(end - at));
		const char *stop = slash ? slash : end;
		put_component(w, at, (size_t)(stop - at));
		at = stop + 1;
	}
}

static void put_key(struct key_writer *w, const struct us_template *t,
		    const struct us_capture *captures)
{
	for (uint32_t i = 0; i < t->part_count; i++) {
		const struct part *part = &t->parts[i];
		if (part->kind == PART_CAPTURE) {
			put_capture(w, part, &captures[part->capture]);
		} else if (part->kind == PART_DEEP) {
			put_deep(w, &captures[part->capture]);
		} else {
			if (w->len > 0) {
				put_bytes(w, "/", 1);
			}
			put_bytes(w, part->head, part->head_len);
		}
	}
}

int32_t us_template_key(const struct us_template *tmpl, const char *path, size_t path_len,
			char *ret_key, struct us_error *err)
{
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	char shown[US_ESCAPE_SHOW_LEN];
	if (!us_pattern_match(tmpl->pattern, path, path_len, captures)) {
		return us_fail(err, US_E_NOTFOUND, "\"%s\" is not matched by discovery_pattern",
			       us_escape_show(path, path_len, shown));
	}
	struct key_writer w = { .len = 0 };
	put_key(&w, tmpl, captures);
	if (w.component_len_max > US_KEY_COMPONENT_LEN_MAX) {
		return us_fail(
			err, US_E_NAME,
			"\"%s\" gives a key with a component of %zu bytes; a component has at most "
			"%d, so give it a shorter name",
			us_escape_show(path, path_len, shown), w.component_len_max,
			US_KEY_COMPONENT_LEN_MAX);
	}
	if (w.len > KEY_PREFIX_LEN_MAX) {
		return us_fail(err, US_E_NAME,
			       "\"%s\" gives a key of %zu bytes, %zu with the name of an object; a "
			       "key has "
			       "at most %d, so give it a shorter name",
			       us_escape_show(path, path_len, shown), w.len,
			       w.len + 1 + US_OBJECT_NAME_LEN, US_KEY_LEN_MAX);
	}
	memcpy(ret_key, w.text, w.len);
	ret_key[w.len] = '\0';
	return (int32_t)w.len;
}

/* --------------------------------------------------------------- key -> path */

/* A key being taken apart. Captures are unescaped to RAW, which they never outgrow. */
struct key_reader {
	const char *at, *end; /* what is left of the key; past its end: nothing */
	char raw[US_KEY_LEN_MAX + 1];
	size_t raw_len;
};

/* The next component; its length may be 0. They were counted. */
static size_t next_component(struct key_reader *r, const char **ret_text)
{
	US_ASSERT(r->at <= r->end);
	*ret_text = r->at;
	const char *slash = memchr(r->at, '/', (size_t)(r->end - r->at));
	const char *stop = slash ? slash : r->end;
	r->at = stop + 1;
	return (size_t)(stop - *ret_text);
}

static int read_capture(struct key_reader *r, const struct part *part, struct us_capture *capture)
{
	const char *text;
	size_t text_len = next_component(r, &text);
	char *raw = r->raw + r->raw_len;
	int64_t len = text_len ? us_unescape(text, text_len, raw) : -1;
	size_t literal_len = part->head_len + part->tail_len;
	if (len < 0 || (size_t)len <= literal_len || memcmp(raw, part->head, part->head_len) != 0 ||
	    memcmp(raw + (size_t)len - part->tail_len, part->tail, part->tail_len) != 0) {
		return 0;
	}
	r->raw_len += (size_t)len;
	*capture = (struct us_capture){ .text = raw + part->head_len,
					.len = (size_t)len - literal_len };
	return 1;
}

static int read_deep(struct key_reader *r, size_t count, struct us_capture *capture)
{
	char *raw = r->raw + r->raw_len;
	size_t raw_len = 0;
	for (size_t i = 0; i < count; i++) {
		const char *text;
		size_t text_len = next_component(r, &text);
		if (i > 0) {
			raw[raw_len++] = '/';
		}
		int64_t len = text_len ? us_unescape(text, text_len, raw + raw_len) : -1;
		if (len < 0) {
			return 0;
		}
		raw_len += (size_t)len;
	}
	*capture = (struct us_capture){ .text = raw, .len = raw_len };
	r->raw_len += raw_len;
	return 1;
}

static int read_literal(struct key_reader *r, const struct part *part)
{
	const char *text;
	size_t text_len = next_component(r, &text);
	return text_len == part->head_len && memcmp(text, part->head, text_len) == 0;
}

static int read_key(struct key_reader *r, const struct us_template *t, struct us_capture *captures)
{
	size_t component_count = 1;
	for (const char *p = r->at; p < r->end; p++) {
		component_count += *p == '/';
	}
	int has_deep = t->deep != t->part_count;
	size_t fixed_count = t->part_count - (has_deep ? 1u : 0u);
	if (component_count < fixed_count || (!has_deep && component_count > fixed_count)) {
		return 0;
	}
	for (uint32_t i = 0; i < t->part_count; i++) {
		const struct part *part = &t->parts[i];
		int ok = part->kind == PART_CAPTURE
				 ? read_capture(r, part, &captures[part->capture])
			 : part->kind == PART_DEEP ? read_deep(r, component_count - fixed_count,
							       &captures[part->capture])
						   : read_literal(r, part);
		if (!ok) {
			return 0;
		}
	}
	return 1;
}

int32_t us_template_path(const struct us_template *tmpl, const char *key, size_t key_len,
			 char *ret_path, struct us_error *err)
{
	struct us_capture captures[US_PATTERN_CAPTURES_MAX];
	struct key_reader r = { .at = key, .end = key + key_len };
	char path[US_PATH_LEN_MAX + 1];
	char again[US_KEY_LEN_MAX + 1];
	int64_t path_len = -1;
	if (key_len > 0 && key_len <= KEY_PREFIX_LEN_MAX && read_key(&r, tmpl, captures)) {
		path_len = us_pattern_path(tmpl->pattern, captures, path);
	}
	if (path_len < 0 ||
	    us_template_key(tmpl, path, (size_t)path_len, again, NULL) != (int32_t)key_len ||
	    memcmp(again, key, key_len) != 0) {
		char shown[US_ESCAPE_SHOW_LEN];
		return us_fail(err, US_E_NOTFOUND,
			       "\"%s\" is not the key of a path that discovery_pattern matches",
			       us_escape_show(key, key_len, shown));
	}
	memcpy(ret_path, path, (size_t)path_len + 1);
	return (int32_t)path_len;
}
