/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups a flat listing by database. Keys come in byte order, so the objects of one
 * database follow each other, but for those of databases whose key prefix lies below
 * its own ("a" and "a/b", with a `**`). What is open is therefore a stack: each level's
 * prefix and a slash begin the next one's. A key that does not begin so ends the level
 * for good. A key prefix is turned into a path once, when its level is opened.
 */
#include "catalog.h"

#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"

/* A key of 1,024 bytes has at most 512 components. */
#define LEVELS_MAX 512
/* A patient listing goes on until nothing has come for so long. */
#define OUTAGE_MAX_NS (60 * US_NS_PER_S)
#define PAUSE_STEP_NS (100 * US_NS_PER_MS)
#define PAUSE_STEPS 10

struct level {
	struct us_catalog_entry entry;
	struct us_backup kept[2]; /* the newest two that are not empty, older one first */
	size_t kept_count;
	size_t key_len;
	char key[US_KEY_LEN_MAX + 1];
	char path[US_PATH_LEN_MAX + 1];
};

struct catalog {
	const struct us_template *tmpl;
	const struct us_catalog_fns *fns;
	const _Atomic uint32_t *cancel;
	int has_timestamp;
	uint32_t timestamp_s; /* names up to this one are not after the timestamp */
	uint32_t newest_limit_s;
	struct us_catalog_result result;
	char last_key[US_KEY_LEN_MAX + 1]; /* of all listed; "": none yet */
	int64_t moved_ns;                  /* when that was, monotonic */
	struct level *levels[LEVELS_MAX];  /* kept once made */
	size_t depth;
};

void us_object_key(const char *key_prefix, uint32_t time_s, char *ret)
{
	char time[US_TIME_NAME_LEN + 1];
	us_time_name_format(time_s, time);
	_Static_assert(US_KEY_LEN_MAX - 1 - US_OBJECT_NAME_LEN == 1000, "what a key prefix has");
	(void)snprintf(ret, US_KEY_LEN_MAX + 1, "%.1000s/%s" US_OBJECT_SUFFIX, key_prefix, time);
}

int us_object_key_parse(const char *key, size_t key_len, size_t *ret_prefix_len,
			uint32_t *ret_time_s)
{
	if (key_len <= US_OBJECT_NAME_LEN + 1 || key_len > US_KEY_LEN_MAX) {
		return 0;
	}
	size_t prefix_len = key_len - US_OBJECT_NAME_LEN - 1;
	const char *name = key + prefix_len + 1;
	if (key[prefix_len] != '/' || us_time_name_parse(name, US_TIME_NAME_LEN, ret_time_s) ||
	    strcmp(name + US_TIME_NAME_LEN, US_OBJECT_SUFFIX) != 0) {
		return 0;
	}
	*ret_prefix_len = prefix_len;
	return 1;
}

static int is_below(const struct level *level, const char *key, size_t key_len)
{
	return key_len > level->key_len && key[level->key_len] == '/' &&
	       memcmp(key, level->key, level->key_len) == 0;
}

/* Ends the levels that KEY does not lie below; a KEY_LEN of 0 ends all. */
static int32_t close_levels(struct catalog *c, const char *key, size_t key_len)
{
	while (c->depth > 0 && !is_below(c->levels[c->depth - 1], key, key_len)) {
		const struct level *level = c->levels[--c->depth];
		c->result.database_count++;
		int32_t rc = c->fns->database(c->fns->arg, &level->entry);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

/* 1, 0 if the prefix is not ours, or US_E_NOMEM. */
static int32_t open_level(struct catalog *c, const char *key, size_t prefix_len)
{
	if (c->depth == LEVELS_MAX) {
		return 0;
	}
	struct level *level = c->levels[c->depth];
	if (!level) {
		level = c->levels[c->depth] = us_alloc(sizeof(*level));
		if (!level) {
			return US_E_NOMEM;
		}
	}
	if (us_template_path(c->tmpl, key, prefix_len, level->path, NULL) < 0) {
		return 0;
	}
	memcpy(level->key, key, prefix_len);
	level->key[prefix_len] = '\0';
	level->key_len = prefix_len;
	level->kept_count = 0;
	level->entry = (struct us_catalog_entry){ .key = level->key, .path = level->path };
	c->depth++;
	return 1;
}

static void note_by_timestamp(const struct catalog *c, struct us_catalog_entry *entry,
			      const struct us_backup *backup)
{
	if (backup->time_s <= c->timestamp_s) {
		entry->before2 = entry->before;
		entry->before = *backup;
	} else if (entry->after.time_s == 0) {
		entry->after = *backup;
	}
}

/* Two of a database stay: tells of the one that BACKUP makes superfluous, if any. An empty
 * object (of a server that was full, or crashed) is no backup, and replaces none. */
static int32_t keep_two(struct catalog *c, struct level *level, const struct us_backup *backup)
{
	if (backup->object_len == 0) {
		return 0;
	}
	if (level->kept_count < 2) {
		level->kept[level->kept_count++] = *backup;
		return 0;
	}
	const struct us_backup old = level->kept[0];
	level->kept[0] = level->kept[1];
	level->kept[1] = *backup;
	if (!c->fns->surplus) {
		return 0;
	}
	char key[US_KEY_LEN_MAX + 1];
	us_object_key(level->key, old.time_s, key);
	return c->fns->surplus(c->fns->arg, key, &old);
}

static int32_t add_object(struct catalog *c, struct level *level, uint32_t time_s,
			  uint64_t object_len)
{
	struct us_catalog_entry *entry = &level->entry;
	const struct us_backup backup = { .time_s = time_s, .object_len = object_len };
	int32_t rc = keep_two(c, level, &backup);
	if (rc) {
		return rc;
	}
	entry->object_count++;
	entry->newest = backup;
	entry->objects_len += object_len;
	if (c->has_timestamp) {
		note_by_timestamp(c, entry, &backup);
	}
	c->result.ours_count++;
	c->result.ours_len += object_len;
	if (time_s > c->result.newest_s && time_s <= c->newest_limit_s) {
		c->result.newest_s = time_s;
	}
	return 0;
}

static int32_t on_listed(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	struct catalog *c = arg;
	size_t prefix_len;
	uint32_t time_s;
	if (c->cancel && *c->cancel) {
		return US_E_CANCELED;
	}
	if (strncmp(key, US_STORE_OWN_PREFIX, strlen(US_STORE_OWN_PREFIX)) == 0) {
		return 0;
	}
	int32_t rc = close_levels(c, key, key_len);
	if (rc) {
		return rc;
	}
	(void)snprintf(c->last_key, sizeof(c->last_key), "%s", key);
	c->moved_ns = us_clock_mono_ns();
	/* The name of second 0 would read as "none" everywhere. */
	if (!us_object_key_parse(key, key_len, &prefix_len, &time_s) || time_s == 0) {
		c->result.foreign_count++;
		return 0;
	}
	struct level *top = c->depth > 0 ? c->levels[c->depth - 1] : NULL;
	if (!top || top->key_len != prefix_len) {
		rc = open_level(c, key, prefix_len);
		if (rc <= 0) {
			c->result.foreign_count += rc == 0;
			return rc;
		}
		top = c->levels[c->depth - 1];
	}
	return add_object(c, top, time_s, object_len);
}

/* Whether to go on behind the last key after a failure that may pass. Pauses. */
static int is_worth_more(struct catalog *c, int32_t rc, const struct us_error *err)
{
	int passes =
		rc == US_E_NETWORK || rc == US_E_TIMEOUT || (rc == US_E_HTTP && err->retryable);
	if (!passes || !c->fns->is_patient || c->last_key[0] == '\0' ||
	    us_clock_mono_ns() - c->moved_ns > OUTAGE_MAX_NS) {
		return 0;
	}
	for (int i = 0; i < PAUSE_STEPS && !(c->cancel && *c->cancel); i++) {
		us_clock_sleep_ns(PAUSE_STEP_NS);
	}
	return 1;
}

static int32_t list(struct catalog *c, struct us_store *store, const char *prefix,
		    struct us_error *err)
{
	struct us_error own = US_ERROR_INIT;
	int32_t rc = store->ops->list(store, prefix, on_listed, c, &own);
	while (is_worth_more(c, rc, &own)) {
		char after[US_KEY_LEN_MAX + 1];
		memcpy(after, c->last_key, sizeof(after));
		us_error_clear(&own);
		rc = store->ops->list_after(store, prefix, after, on_listed, c, &own);
	}
	if (rc && err) {
		*err = own;
	}
	return rc;
}

int32_t us_catalog_run(struct us_store *store, const struct us_template *tmpl, const char *only,
		       int64_t timestamp_ns, uint32_t newest_limit_s,
		       const struct us_catalog_fns *fns, const _Atomic uint32_t *cancel,
		       struct us_catalog_result *ret, struct us_error *err)
{
	char prefix[US_KEY_LEN_MAX + 2];
	(void)snprintf(prefix, sizeof(prefix), "%s%s", only ? only : us_template_list_prefix(tmpl),
		       only ? "/" : "");
	struct catalog *c = us_alloc_zero(sizeof(*c));
	if (!c) {
		return us_fail_nomem(err);
	}
	int64_t timestamp_s = timestamp_ns / US_NS_PER_S;
	c->tmpl = tmpl;
	c->fns = fns;
	c->cancel = cancel;
	c->has_timestamp = timestamp_ns != 0;
	c->timestamp_s = timestamp_s < UINT32_MAX ? (uint32_t)timestamp_s : UINT32_MAX;
	c->newest_limit_s = newest_limit_s;
	int32_t rc = list(c, store, prefix, err);
	if (!rc) {
		rc = close_levels(c, "", 0);
	}
	if (rc == US_E_NOMEM) {
		(void)us_fail_nomem(err);
	} else if (rc == US_E_CANCELED) {
		(void)us_fail(err, rc, "canceled");
	}
	*ret = c->result;
	for (size_t i = 0; i < LEVELS_MAX; i++) {
		us_free(c->levels[i]);
	}
	us_free(c);
	return rc;
}
