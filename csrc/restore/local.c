/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys lie one after the other in chunks that never move; an array of pointers to them
 * is sorted when the walk is over. The mutex guards both while several threads walk.
 */
#include "local.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../discover/walk.h"

#define CHUNK_LEN ((size_t)256 << 10)
#define COUNT_FIRST 1024u

struct chunk {
	struct chunk *next;
	size_t used;
	char text[CHUNK_LEN];
};

struct texts {
	const char **items;
	size_t count, cap;
};

struct us_local {
	const struct us_pattern *pattern;
	const struct us_template *tmpl;
	pthread_mutex_t mutex;
	struct chunk *chunks;
	struct texts keys;
	struct texts bad; /* path, message, path, message, ... */
	struct us_walk_result walked;
	char first_failure[US_ERROR_MESSAGE_LEN];
};

int us_key_compare(const char *a, const char *b)
{
	size_t i = 0;
	while (a[i] == b[i] && a[i] != '\0') {
		i++;
	}
	if (a[i] == b[i]) {
		return 0;
	}
	unsigned char x = a[i] ? (unsigned char)a[i] : '/';
	unsigned char y = b[i] ? (unsigned char)b[i] : '/';
	if (x != y) {
		return x < y ? -1 : 1;
	}
	return a[i] ? -1 : 1; /* the other one ends here: A lies below it */
}

/* Keeps a copy of TEXT at the end of LIST. Wants the mutex. 0 or -1. */
static int keep(struct us_local *local, struct texts *list, const char *text)
{
	size_t len = strlen(text) + 1;
	struct chunk *chunk = local->chunks;
	if (!chunk || CHUNK_LEN - chunk->used < len) {
		chunk = us_alloc(sizeof(*chunk));
		if (!chunk) {
			return -1;
		}
		chunk->used = 0;
		chunk->next = local->chunks;
		local->chunks = chunk;
	}
	if (list->count == list->cap) {
		size_t cap = list->cap ? us_size_mul(list->cap, 2) : COUNT_FIRST;
		const char **items = us_realloc(list->items, us_size_mul(cap, sizeof(*items)));
		if (!items) {
			return -1;
		}
		list->items = items;
		list->cap = cap;
	}
	list->items[list->count++] = memcpy(chunk->text + chunk->used, text, len);
	chunk->used += len;
	return 0;
}

static int keep_entry(struct us_local *local, const struct us_walk_batch *batch, const char *name)
{
	const char *prefix = us_pattern_prefix(local->pattern);
	char path[US_PATH_LEN_MAX + 2], key[US_KEY_LEN_MAX + 1];
	struct us_error err = US_ERROR_INIT;
	int len = snprintf(path, sizeof(path), "%s%s%s%s%s", prefix, prefix[1] ? "/" : "",
			   batch->dir, batch->dir_len ? "/" : "", name);
	size_t path_len = len < (int)sizeof(path) ? (size_t)len : sizeof(path) - 1;
	int32_t rc = us_template_key(local->tmpl, path, path_len, key, &err);
	(void)pthread_mutex_lock(&local->mutex);
	int failed =
		rc >= 0 ? keep(local, &local->keys, key)
			: keep(local, &local->bad, path) || keep(local, &local->bad, err.message);
	(void)pthread_mutex_unlock(&local->mutex);
	return failed;
}

static int32_t on_batch(void *arg, uint32_t thread, const struct us_walk_batch *batch)
{
	(void)thread;
	for (size_t i = 0; i < batch->entry_count; i++) {
		if (keep_entry(arg, batch, batch->entries[i].name)) {
			return US_E_NOMEM;
		}
	}
	return 0;
}

static void on_failure(void *arg, uint32_t thread, const char *path, const struct us_error *err)
{
	struct us_local *local = arg;
	(void)thread;
	(void)path; /* the message names it */
	(void)pthread_mutex_lock(&local->mutex);
	if (!local->first_failure[0]) {
		(void)snprintf(local->first_failure, sizeof(local->first_failure), "%s",
			       err->message);
	}
	(void)pthread_mutex_unlock(&local->mutex);
}

static int by_key(const void *a, const void *b)
{
	return us_key_compare(*(const char *const *)a, *(const char *const *)b);
}

int32_t us_local_walk(const struct us_pattern *pattern, const struct us_template *tmpl,
		      int any_filesystem, const _Atomic uint32_t *cancel,
		      struct us_local **ret_local, struct us_error *err)
{
	int prefix_fd = us_walk_open(pattern, any_filesystem, err);
	if (prefix_fd == US_E_NOTFOUND) {
		us_error_clear(err);
		*ret_local = NULL;
		return 0;
	}
	if (prefix_fd < 0) {
		return prefix_fd;
	}
	struct us_local *local = us_alloc_zero(sizeof(*local));
	int32_t rc = local ? 0 : us_fail_nomem(err);
	if (!rc) {
		local->pattern = pattern;
		local->tmpl = tmpl;
		(void)pthread_mutex_init(&local->mutex, NULL); /* never fails on Linux */
		const struct us_walk_fns fns = { .batch = on_batch,
						 .failure = on_failure,
						 .arg = local };
		rc = us_walk(pattern, prefix_fd, us_walk_threads(), &fns, cancel, &local->walked,
			     err);
		if (rc == US_E_CANCELED && !*cancel) {
			rc = us_fail_nomem(err); /* on_batch stopped it */
		}
	}
	(void)close(prefix_fd); /* only read from */
	if (rc) {
		us_local_free(local);
		return rc;
	}
	if (local->keys.count > 1) {
		qsort(local->keys.items, local->keys.count, sizeof(*local->keys.items), by_key);
	}
	*ret_local = local;
	return 0;
}

void us_local_free(struct us_local *local)
{
	if (!local) {
		return;
	}
	while (local->chunks) {
		struct chunk *chunk = local->chunks;
		local->chunks = chunk->next;
		us_free(chunk);
	}
	us_free(local->keys.items);
	us_free(local->bad.items);
	(void)pthread_mutex_destroy(&local->mutex); /* nobody walks any more */
	us_free(local);
}

size_t us_local_count(const struct us_local *local)
{
	return local ? local->keys.count : 0;
}

const char *us_local_key(const struct us_local *local, size_t index)
{
	return local->keys.items[index];
}

int us_local_has(const struct us_local *local, const char *key)
{
	return us_local_count(local) > 0 && bsearch(&key, local->keys.items, local->keys.count,
						    sizeof(*local->keys.items), by_key) != NULL;
}

size_t us_local_bad_count(const struct us_local *local)
{
	return local ? local->bad.count / 2 : 0;
}

struct us_local_bad us_local_bad_at(const struct us_local *local, size_t index)
{
	return (struct us_local_bad){ .path = local->bad.items[2 * index],
				      .message = local->bad.items[2 * index + 1] };
}

uint64_t us_local_failures(const struct us_local *local)
{
	return local ? local->walked.failure_count : 0;
}

const char *us_local_first_failure(const struct us_local *local)
{
	return local ? local->first_failure : "";
}
