/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A walk that only counts: what a cycle would see, and what the state file says
 * about it. No network, no file opened but directories.
 */
#include "fleet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "../base/thread.h"

struct plan {
	struct us *us;
	struct us_plan *out;
	struct us_sample *samples;
	size_t capacity, count, bad_count; /* bad names come first among the samples */
	pthread_mutex_t mutex;             /* guards the above */
};

static void escape_text(const char *text, size_t len, char *ret, size_t cap)
{
	size_t escaped_len = us_escape(text, len, ret, cap - 1);
	ret[escaped_len < cap ? escaped_len : cap - 1] = '\0';
}

/* Wants the mutex. Bad names push good samples out. */
static void add_sample(struct plan *plan, const char *path, size_t path_len, const char *key,
		       const char *why, uint64_t database_len)
{
	size_t at = why ? plan->bad_count : plan->count;
	if (at >= plan->capacity) {
		return;
	}
	if (why && plan->count > plan->bad_count) {
		size_t to = plan->count < plan->capacity ? plan->count : plan->capacity - 1;
		plan->samples[to] = plan->samples[at];
	}
	if (plan->count < plan->capacity) {
		plan->count++;
	}
	struct us_sample *sample = &plan->samples[at];
	memset(sample, 0, sizeof(*sample));
	escape_text(path, path_len, sample->path, sizeof(sample->path));
	(void)snprintf(sample->key, sizeof(sample->key), "%s", why ? "" : key);
	(void)snprintf(sample->message, sizeof(sample->message), "%s", why ? why : "");
	sample->database_len = database_len;
	plan->bad_count += why != NULL;
}

static void count_record(struct plan *plan, const struct us_walk_batch *batch,
			 const struct us_walk_entry *entry)
{
	struct us *us = plan->us;
	if (!us->state) {
		plan->out->never++;
		return;
	}
	const struct us_siphash_key *key = &us_state_info(us->state)->key;
	struct us_record record;
	uint64_t hash = us_path_hash(key, batch->dir, batch->dir_len, entry->name, entry->name_len);
	if (!us_table_get(us->table, hash, &record)) {
		plan->out->never++;
		return;
	}
	int idle = us_record_see(&record, us_fingerprint(key, &entry->db, &entry->wal), 0) !=
		   US_SEEN_CHANGED;
	int nothing_to_do = record.flags & (US_RECORD_EMPTY | US_RECORD_NOT_DATABASE);
	plan->out->never += record.object_count == 0 && !(nothing_to_do && idle);
	plan->out->synced += record.object_count != 0 && idle;
	plan->out->changed += record.object_count != 0 && !idle;
	int64_t backup_ns = record.object_time * US_NS_PER_S;
	if (record.content_hash != 0 && backup_ns > plan->out->last_backup_ns) {
		plan->out->last_backup_ns = backup_ns;
	}
}

static int32_t on_batch(void *arg, uint32_t thread, const struct us_walk_batch *batch)
{
	struct plan *plan = arg;
	struct us *us = plan->us;
	const char *prefix = us_pattern_prefix(us->pattern);
	char path[US_PATH_LEN_MAX + 2], key[US_KEY_LEN_MAX + 1];
	(void)thread;
	(void)pthread_mutex_lock(&plan->mutex);
	for (size_t i = 0; i < batch->entry_count; i++) {
		const struct us_walk_entry *entry = &batch->entries[i];
		struct us_error err = US_ERROR_INIT;
		int len = snprintf(path, sizeof(path), "%s%s%s%s%s", prefix, prefix[1] ? "/" : "",
				   batch->dir, batch->dir_len ? "/" : "", entry->name);
		size_t path_len = len < (int)sizeof(path) ? (size_t)len : sizeof(path) - 1;
		int bad = us_template_key(us->tmpl, path, path_len, key, &err) < 0;
		plan->out->database_bytes += entry->db.len + entry->wal.len;
		plan->out->with_wal += entry->wal.inode != 0;
		plan->out->bad_names += bad != 0;
		add_sample(plan, path, path_len, key, bad ? err.message : NULL, entry->db.len);
		count_record(plan, batch, entry);
	}
	(void)pthread_mutex_unlock(&plan->mutex);
	return 0;
}

static void on_failure(void *arg, uint32_t thread, const char *path, const struct us_error *err)
{
	struct plan *plan = arg;
	(void)thread;
	(void)path; /* the message names it */
	(void)pthread_mutex_lock(&plan->mutex);
	if (!plan->out->first_failure[0]) {
		(void)snprintf(plan->out->first_failure, sizeof(plan->out->first_failure), "%s",
			       err->message);
	}
	(void)pthread_mutex_unlock(&plan->mutex);
}

/* Bad names first, then by path. */
static int compare_samples(const void *a, const void *b)
{
	const struct us_sample *x = a, *y = b;
	int x_bad = x->key[0] == '\0', y_bad = y->key[0] == '\0';
	return x_bad != y_bad ? y_bad - x_bad : strcmp(x->path, y->path);
}

int32_t us_plan_run(struct us *us, struct us_plan *ret_plan, struct us_sample *samples,
		    size_t capacity, size_t *ret_count, struct us_error *err)
{
	struct us_plan *out = us_alloc_zero(sizeof(*out));
	if (!out) {
		return us_fail_nomem(err);
	}
	struct plan plan = { .us = us, .out = out, .samples = samples, .capacity = capacity };
	struct us_walk_result walked;
	int prefix_fd = us_walk_open(us->pattern, us->flags & US_OPEN_ANY_FILESYSTEM, err);
	if (prefix_fd < 0) {
		us_free(out);
		return prefix_fd;
	}
	(void)pthread_mutex_init(&plan.mutex, NULL); /* never fails on Linux */
	const struct us_walk_fns fns = { .batch = on_batch, .failure = on_failure, .arg = &plan };
	int32_t rc = us_walk(us->pattern, prefix_fd, us_walk_threads(), &fns, &us->canceled,
			     &walked, err);
	(void)close(prefix_fd); /* only read from */
	(void)pthread_mutex_destroy(&plan.mutex);
	if (!rc) {
		const char *prefix = us_pattern_prefix(us->pattern);
		if (plan.count > 1) {
			qsort(samples, plan.count, sizeof(samples[0]), compare_samples);
		}
		escape_text(prefix, strlen(prefix), out->prefix, sizeof(out->prefix));
		out->struct_size = sizeof(*out);
		out->databases = walked.database_count;
		out->directories = walked.directory_count;
		out->walk_failures = walked.failure_count;
		out->state_found = us->state != NULL;
		if (!us->state && us->state_error.code != US_E_NOTFOUND) {
			out->state_found = 2;
			(void)snprintf(out->first_failure, sizeof(out->first_failure), "%s",
				       us->state_error.message);
		}
		*ret_plan = *out;
		if (ret_count) {
			*ret_count = plan.count;
		}
	}
	us_free(out);
	return rc;
}
