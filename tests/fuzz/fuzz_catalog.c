/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names in a target: pattern, template and host name, then keys, separated by NULs, as
 * a listing gives them. What the catalog makes of them, database by database, is compared
 * with what a loop over all pairs of keys makes. Each key's object has as many bytes as its
 * text has at the end (0 for "!"), so that there are empty ones.
 */
#include "fuzz.h"

#include "../../csrc/base/clock.h"
#include "../../csrc/restore/catalog.h"

#define KEYS_MAX 64
#define OWN_PREFIX US_STORE_OWN_PREFIX

struct key {
	char text[US_KEY_LEN_MAX + 1];
	uint64_t object_len;
	/* by the reference: */
	int is_ours, is_surplus, is_seen;
	size_t prefix_len;
	uint32_t time_s;
};

static struct key keys[KEYS_MAX];
static size_t key_count;
static size_t database_count;
static const struct us_template *tmpl;
static int64_t timestamp_s;

static int by_bytes(const void *a, const void *b)
{
	return strcmp(((const struct key *)a)->text, ((const struct key *)b)->text);
}

static int32_t on_list(struct us_store *store, const char *prefix, us_store_list_fn *fn, void *arg,
		       struct us_error *err)
{
	(void)store;
	(void)err;
	for (size_t i = 0; i < key_count; i++) {
		const struct key *key = &keys[i];
		if (strncmp(key->text, prefix, strlen(prefix)) == 0) {
			int32_t rc = fn(arg, key->text, strlen(key->text), key->object_len);
			require(rc == 0);
		}
	}
	return 0;
}

/* --------------------------------------------------------------- the reference */

/* "<key prefix>/<time>.db.lz4", with a key prefix that is a path's. */
static void judge(struct key *key)
{
	char path[US_PATH_LEN_MAX + 1], time[US_TIME_NAME_LEN + 1];
	const char *slash = strrchr(key->text, '/');
	const char *fixed = us_template_list_prefix(tmpl);
	key->is_ours = key->is_surplus = key->is_seen = 0;
	if (!slash || slash == key->text || strncmp(key->text, fixed, strlen(fixed)) != 0 ||
	    strncmp(key->text, OWN_PREFIX, strlen(OWN_PREFIX)) == 0 ||
	    strlen(slash + 1) != US_TIME_NAME_LEN + strlen(US_OBJECT_SUFFIX) ||
	    strcmp(slash + 1 + US_TIME_NAME_LEN, US_OBJECT_SUFFIX) != 0) {
		return;
	}
	key->prefix_len = (size_t)(slash - key->text);
	if (us_time_name_parse(slash + 1, US_TIME_NAME_LEN, &key->time_s) || key->time_s == 0) {
		return;
	}
	us_time_name_format(key->time_s, time);
	require(strncmp(time, slash + 1, US_TIME_NAME_LEN) == 0);
	key->is_ours = us_template_path(tmpl, key->text, key->prefix_len, path, NULL) >= 0;
}

static int is_of(const struct key *key, const char *prefix, size_t prefix_len)
{
	return key->is_ours && key->prefix_len == prefix_len &&
	       memcmp(key->text, prefix, prefix_len) == 0;
}

/* Two newer ones of the same database that are not empty, and it is not either. */
static void judge_surplus(struct key *key)
{
	size_t newer = 0;
	for (size_t i = 0; i < key_count && key->is_ours; i++) {
		newer += is_of(&keys[i], key->text, key->prefix_len) &&
			 keys[i].time_s > key->time_s && keys[i].object_len > 0;
	}
	key->is_surplus = newer >= 2 && key->object_len > 0;
}

/* --------------------------------------------------------------------- the calls */

static int32_t on_surplus(void *arg, const char *text, const struct us_backup *backup)
{
	(void)arg;
	for (size_t i = 0; i < key_count; i++) {
		if (strcmp(keys[i].text, text) == 0) {
			require(keys[i].is_surplus && backup->time_s == keys[i].time_s);
			require(backup->object_len == keys[i].object_len);
			keys[i].is_surplus = 0; /* told once */
			return 0;
		}
	}
	require_failed(__FILE__, __LINE__, "a key that was listed");
}

static int32_t on_database(void *arg, const struct us_catalog_entry *e)
{
	char again[US_KEY_LEN_MAX + 1];
	struct us_backup newest = { 0 }, before = { 0 }, before2 = { 0 }, after = { 0 };
	uint64_t count = 0, len = 0;
	(void)arg;
	for (size_t i = 0; i < key_count; i++) { /* by time, as the names sort */
		if (!is_of(&keys[i], e->key, strlen(e->key))) {
			continue;
		}
		require(!keys[i].is_seen);
		keys[i].is_seen = 1;
		newest = (struct us_backup){ keys[i].time_s, keys[i].object_len };
		count++;
		len += keys[i].object_len;
		if (keys[i].time_s <= timestamp_s) {
			before2 = before;
			before = newest;
		} else if (after.time_s == 0) {
			after = newest;
		}
	}
	require(count > 0 && e->object_count == count && e->objects_len == len);
	require(e->newest.time_s == newest.time_s && e->newest.object_len == newest.object_len);
	if (timestamp_s > 0) {
		require(e->before.time_s == before.time_s && e->before2.time_s == before2.time_s);
		require(e->after.time_s == after.time_s);
	}
	require(us_template_key(tmpl, e->path, strlen(e->path), again, NULL) ==
		(int32_t)strlen(e->key));
	require(strcmp(again, e->key) == 0);
	database_count++;
	return 0;
}

static void take_keys(struct input *in)
{
	key_count = 0;
	while (in->left > 0 && key_count < KEYS_MAX) {
		char *text = input_string(in);
		size_t len = strlen(text);
		struct key *key = &keys[key_count];
		key->object_len = len && text[len - 1] == '!' ? 0 : len;
		len -= len && text[len - 1] == '!';
		if (len > 0 && len <= US_KEY_LEN_MAX) {
			memcpy(key->text, text, len);
			key->text[len] = '\0';
			key_count++;
		}
		free(text);
	}
	qsort(keys, key_count, sizeof(keys[0]), by_bytes);
	size_t kept = 0; /* no key twice */
	for (size_t i = 0; i < key_count; i++) {
		if (kept == 0 || strcmp(keys[kept - 1].text, keys[i].text) != 0) {
			keys[kept++] = keys[i];
		}
	}
	key_count = kept;
}

static void check_catalog(struct input *in)
{
	static const struct us_store_ops ops = { .list = on_list };
	struct us_store store = { .ops = &ops };
	const struct us_catalog_fns fns = { .database = on_database, .surplus = on_surplus };
	struct us_catalog_result result;
	struct us_error err = US_ERROR_INIT;
	uint64_t ours = 0, ours_len = 0, newest_s = 0, listed = 0;
	const char *fixed = us_template_list_prefix(tmpl);
	timestamp_s = (int64_t)input_u16(in) << 15;
	take_keys(in);
	for (size_t i = 0; i < key_count; i++) {
		judge(&keys[i]);
	}
	for (size_t i = 0; i < key_count; i++) {
		judge_surplus(&keys[i]);
	}
	database_count = 0;
	require(us_catalog_run(&store, tmpl, NULL, timestamp_s * US_NS_PER_S, UINT32_MAX, &fns,
			       NULL, &result, &err) == 0);
	for (size_t i = 0; i < key_count; i++) {
		const struct key *key = &keys[i];
		require(key->is_seen == key->is_ours && !key->is_surplus);
		listed += strncmp(key->text, fixed, strlen(fixed)) == 0 &&
			  strncmp(key->text, OWN_PREFIX, strlen(OWN_PREFIX)) != 0;
		ours += key->is_ours ? 1 : 0;
		ours_len += key->is_ours ? key->object_len : 0;
		newest_s = key->is_ours && key->time_s > newest_s ? key->time_s : newest_s;
	}
	require(result.ours_count == ours && result.ours_len == ours_len);
	require(result.database_count == database_count && result.newest_s == newest_s);
	require(result.foreign_count + ours == listed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	struct us_pattern *p = NULL;
	struct us_template *t = NULL;
	char *pattern = input_string(&in), *text = input_string(&in), *host = input_string(&in);
	if (us_pattern_new(pattern, &p, NULL) == 0 &&
	    us_template_new(text, p, host[0] ? host : NULL, &t, NULL) == 0) {
		tmpl = t;
		check_catalog(&in);
	}
	us_template_free(t);
	us_pattern_free(p);
	free(pattern);
	free(text);
	free(host);
	return 0;
}
