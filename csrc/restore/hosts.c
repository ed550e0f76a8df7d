/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which hosts a target has backups of. What stands at the place of {{hostname}} in a key
 * is a candidate; it is a host if the template, compiled with it, turns the key into a
 * path and back. Then all keys with the same beginning are passed over, by the page if
 * there are many: one more request for each host, not one for each 1,000 objects.
 */
#include "hosts.h"

#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "catalog.h"

#define MARK "{{hostname}}"
#define REQUESTS_MAX 1000
/* So many keys are read rather than asked past: a page. */
#define PASS_MAX 1000
/* The listing is to go on behind what is passed over. */
#define SKIP US_E_EXISTS

struct search {
	const struct us_pattern *pattern;
	const char *template_text;
	const _Atomic uint32_t *cancel;
	uint32_t component; /* which one of a key has the host */
	char head[US_KEY_COMPONENT_LEN_MAX + 1], tail[US_KEY_COMPONENT_LEN_MAX + 1];
	char passed[US_KEY_LEN_MAX + 2]; /* what keys begin with that are passed over, or "" */
	uint32_t pass_count;
	char path[US_PATH_LEN_MAX + 1];
	struct us_hosts *hosts;
};

/* The text beside the mark in its component. Where that has a variable, nobody can tell
 * which part of a key is the host's name: no key has such text. */
static void split_component(const char *start, const char *mark, char *ret_head, char *ret_tail)
{
	const char *end = mark + strlen(MARK);
	size_t tail_len = strcspn(end, "/");
	(void)snprintf(ret_head, US_KEY_COMPONENT_LEN_MAX + 1, "%.*s", (int)(mark - start), start);
	(void)snprintf(ret_tail, US_KEY_COMPONENT_LEN_MAX + 1, "%.*s", (int)tail_len, end);
}

/* 0 if the template has no host. RET_PREFIX: what all keys begin with. */
static int init(struct search *s, char *ret_prefix)
{
	const char *mark = strstr(s->template_text, MARK);
	const char *text = s->template_text;
	if (!mark) {
		return 0;
	}
	const char *start = text;
	for (const char *at = text; at < mark; at++) {
		if (*at == '/') {
			s->component++;
			start = at + 1;
		}
	}
	size_t literal_len = (size_t)(strstr(text, "{{") - text);
	(void)snprintf(ret_prefix, US_KEY_LEN_MAX + 1, "%.*s", (int)literal_len, text);
	split_component(start, mark, s->head, s->tail);
	return 1;
}

/* Whether KEY (KEY_LEN bytes, a key prefix) is one of host NAME. */
static int is_of_host(struct search *s, const char *key, size_t key_len, const char *name)
{
	struct us_template *tmpl;
	if (us_template_new(s->template_text, s->pattern, name, &tmpl, NULL)) {
		return 0;
	}
	int is = us_template_path(tmpl, key, key_len, s->path, NULL) >= 0;
	us_template_free(tmpl);
	return is;
}

/* The component of KEY that has the host: RET_START and its length, or 0. */
static size_t find_component(const struct search *s, const char *key, const char **ret_start)
{
	for (uint32_t i = 0; i < s->component; i++) {
		key = strchr(key, '/');
		if (!key) {
			return 0;
		}
		key++;
	}
	*ret_start = key;
	return strcspn(key, "/");
}

/* The candidate in the COMPONENT_LEN bytes at COMPONENT, unescaped. 0: none. */
static int take_name(const struct search *s, const char *component, size_t component_len,
		     char *ret_name)
{
	size_t head_len = strlen(s->head), tail_len = strlen(s->tail);
	if (component_len <= head_len + tail_len || component_len > US_KEY_COMPONENT_LEN_MAX ||
	    memcmp(component, s->head, head_len) != 0 ||
	    memcmp(component + component_len - tail_len, s->tail, tail_len) != 0) {
		return 0;
	}
	int64_t len =
		us_unescape(component + head_len, component_len - head_len - tail_len, ret_name);
	ret_name[len > 0 ? len : 0] = '\0';
	return len > 0 && !memchr(ret_name, '\0', (size_t)len);
}

static int is_known(const struct us_hosts *hosts, const char *name)
{
	for (size_t i = 0; i < hosts->count; i++) {
		if (strcmp(hosts->names[i], name) == 0) {
			return 1;
		}
	}
	return 0;
}

static int32_t on_listed(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	struct search *s = arg;
	size_t prefix_len;
	uint32_t time_s;
	const char *component = key;
	char name[US_HOST_LEN_MAX + 1];
	(void)object_len;
	if (s->cancel && *s->cancel) {
		return US_E_CANCELED;
	}
	if (s->passed[0] && strncmp(key, s->passed, strlen(s->passed)) == 0) {
		return ++s->pass_count < PASS_MAX ? 0 : SKIP;
	}
	size_t component_len = find_component(s, key, &component);
	if (!us_object_key_parse(key, key_len, &prefix_len, &time_s) ||
	    !take_name(s, component, component_len, name) ||
	    !is_of_host(s, key, prefix_len, name)) {
		return 0;
	}
	if (!is_known(s->hosts, name)) {
		(void)snprintf(s->hosts->names[s->hosts->count++], US_HOST_LEN_MAX + 1, "%s", name);
	}
	(void)snprintf(s->passed, sizeof(s->passed), "%.*s",
		       (int)(component - key + (ptrdiff_t)component_len + 1), key);
	s->pass_count = 0;
	return s->hosts->count < US_HOSTS_MAX ? 0 : US_E_CANCELED;
}

int32_t us_hosts_find(struct us_store *store, const struct us_pattern *pattern,
		      const char *template_text, const _Atomic uint32_t *cancel,
		      struct us_hosts *ret_hosts, struct us_error *err)
{
	char prefix[US_KEY_LEN_MAX + 1], after[US_KEY_LEN_MAX + 2];
	struct search *s = us_alloc_zero(sizeof(*s));
	if (!s) {
		return us_fail_nomem(err);
	}
	ret_hosts->count = 0;
	s->pattern = pattern;
	s->template_text = template_text;
	s->cancel = cancel;
	s->hosts = ret_hosts;
	int32_t rc = 0;
	if (init(s, prefix)) {
		rc = store->ops->list(store, prefix, on_listed, s, err);
	}
	for (int i = 0; rc == SKIP && i < REQUESTS_MAX; i++) {
		/* Behind every key that begins so: '0' is the byte after '/'. */
		memcpy(after, s->passed, sizeof(after));
		after[strlen(after) - 1] = '0';
		rc = store->ops->list_after(store, prefix, after, on_listed, s, err);
	}
	us_free(s);
	if (rc == SKIP || (rc == US_E_CANCELED && ret_hosts->count == US_HOSTS_MAX)) {
		us_error_clear(err);
		rc = 0;
	}
	return rc;
}
