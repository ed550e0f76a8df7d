/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LIST: the catalog of the target and the sorted keys on disk are merged as the
 * listing comes, so the first row waits for the walk alone. BACKUPS: the objects of
 * one database; their trailers are read BATCH at a time.
 */
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "choose.h"
#include "task_internal.h"

#define BATCH 32
#define WAIT_MS 1000

struct list {
	struct us_task *task;
	const struct us_local *local;
	size_t next; /* key on disk */
	char path[US_PATH_LEN_MAX + 1];
};

static int32_t give_never(struct list *l, const char *path, const char *why)
{
	if (!us_task_chooses(l->task, path)) {
		return 0;
	}
	const struct us_task_row row = { .status = US_ROW_NEVER, .path = path, .message = why };
	return us_task_give(l->task, &row);
}

/* Rows for keys on disk that come before KEY (NULL: all the others). RET_THERE: KEY is
 * next, and was passed. */
static int32_t pass_local(struct list *l, const char *key, int *ret_there)
{
	*ret_there = 0;
	for (; l->next < us_local_count(l->local); l->next++) {
		const char *local_key = us_local_key(l->local, l->next);
		int order = key ? us_key_compare(local_key, key) : -1;
		if (order >= 0) {
			*ret_there = order == 0;
			l->next += order == 0;
			return 0;
		}
		int32_t rc = us_template_path(l->task->view.tmpl, local_key, strlen(local_key),
					      l->path, NULL);
		if (rc >= 0) { /* always: it was made from a path */
			rc = give_never(l, l->path, NULL);
		}
		if (rc < 0) {
			return rc;
		}
	}
	return 0;
}

static int32_t on_database(void *arg, const struct us_catalog_entry *entry)
{
	struct list *l = arg;
	int there;
	int32_t rc = pass_local(l, entry->key, &there);
	if (rc || !us_task_chooses(l->task, entry->path)) {
		return rc;
	}
	(void)pthread_mutex_lock(&l->task->mutex);
	l->task->progress.total_count++;
	l->task->progress.total_len += entry->objects_len;
	l->task->progress.object_count += entry->object_count;
	(void)pthread_mutex_unlock(&l->task->mutex);
	const struct us_task_row row = { .status = there ? US_ROW_OK : US_ROW_GONE,
					 .path = entry->path,
					 .key = entry->key,
					 .object_count = entry->object_count,
					 .objects_len = entry->objects_len,
					 .object_len = entry->newest.object_len,
					 .time_s = entry->newest.time_s };
	return us_task_give(l->task, &row);
}

static int32_t list_all(struct list *l, struct us_error *err)
{
	struct us_task *task = l->task;
	const struct us_catalog_fns fns = { .database = on_database, .is_patient = 1, .arg = l };
	struct us_catalog_result result;
	int32_t rc = 0;
	for (size_t i = 0; i < us_local_bad_count(l->local) && !rc; i++) {
		struct us_local_bad bad = us_local_bad_at(l->local, i);
		rc = give_never(l, bad.path, bad.message);
	}
	if (!rc) {
		rc = us_catalog_run(task->view.store, task->view.tmpl, NULL, 0, UINT32_MAX, &fns,
				    &task->cancel, &result, err);
	}
	if (!rc) {
		int there;
		us_task_listed(task, &result);
		rc = pass_local(l, NULL, &there);
	}
	return rc;
}

int32_t us_list_run(struct us_task *task, struct us_error *err)
{
	struct us_local *local;
	int32_t rc = us_task_walk(task, &local, err);
	if (rc) {
		return rc;
	}
	struct list *l = us_alloc_zero(sizeof(*l));
	if (l) {
		l->task = task;
		l->local = local;
		rc = list_all(l, err);
	}
	us_local_free(local);
	us_free(l);
	return l ? rc : US_E_NOMEM;
}

/* -------------------------------------------------------------------- BACKUPS */

struct tail {
	struct us_get get;
	char key[US_KEY_LEN_MAX + 1];
	uint8_t data[US_TRAILER_LEN_MAX];
};

struct tails {
	struct us_task *task;
	struct us_origin origin;
	struct us_get_queue queue;
	struct us_trailer trailer;
	char escaped_path[US_TRAILER_PATH_LEN_MAX + 1];
	struct tail items[BATCH];
};

static void start_tail(struct tails *t, struct tail *tail, const struct us_backup *backup)
{
	uint64_t len =
		backup->object_len < US_TRAILER_LEN_MAX ? backup->object_len : US_TRAILER_LEN_MAX;
	us_object_key(t->task->key, backup->time_s, tail->key);
	tail->get = (struct us_get){ .key = tail->key,
				     .offset = backup->object_len - len,
				     .len = len,
				     .object_len = backup->object_len,
				     .data = tail->data,
				     .queue = &t->queue,
				     .err = US_ERROR_INIT };
	if (len == 0) {
		tail->get.rc = us_fail(&tail->get.err, US_E_OBJECT, "it is empty");
		us_get_queue_push(&t->queue, &tail->get);
		return;
	}
	t->task->view.store->ops->get_start(t->task->view.store, &tail->get);
}

static int32_t give_tail(struct tails *t, struct tail *tail, const struct us_backup *backup)
{
	struct us_get *get = &tail->get;
	struct us_trailer *trailer = &t->trailer;
	int32_t code = get->rc;
	if (!code) {
		code = us_trailer_parse(tail->data, (size_t)get->len, trailer, NULL, &get->err);
	}
	if (!code) {
		code = us_choose_check(&t->origin, tail->key, trailer, &get->err);
	}
	(void)pthread_mutex_lock(&t->task->mutex);
	t->task->progress.done_count++;
	t->task->progress.done_len += backup->object_len;
	t->task->progress.failed_count += code != 0;
	(void)pthread_mutex_unlock(&t->task->mutex);
	struct us_task_row row = { .status = code ? US_ROW_FAILED : US_ROW_OK,
				   .code = code,
				   .path = t->task->options.path,
				   .key = tail->key,
				   .message = code ? get->err.message : NULL,
				   .object_len = backup->object_len,
				   .time_s = backup->time_s };
	if (!code) {
		row.snapshot_ns = trailer->snapshot_ns;
		row.database_len = trailer->database_len;
		row.mode = trailer->mode;
		row.page_size = trailer->page_size;
	}
	return us_task_give(t->task, &row);
}

static int32_t give_batch(struct tails *t, const struct us_backup *backups, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		start_tail(t, &t->items[i], &backups[i]);
	}
	for (size_t back = 0; back < count;) {
		struct us_get *get = us_get_queue_wait(&t->queue, WAIT_MS);
		for (; get; get = get->next) {
			back++;
		}
	}
	int32_t rc = 0;
	for (size_t i = 0; i < count && !rc; i++) {
		rc = give_tail(t, &t->items[i], &backups[i]);
	}
	return rc;
}

static int32_t give_all(struct tails *t, struct us_error *err)
{
	struct us_task *task = t->task;
	struct us_backup *backups;
	size_t count;
	int32_t rc = us_choose_list(&t->origin, &backups, &count, err);
	if (rc) {
		return rc;
	}
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.listed = 1;
	task->progress.total_count = task->progress.object_count = count;
	for (size_t i = 0; i < count; i++) {
		task->progress.total_len += backups[i].object_len;
	}
	(void)pthread_mutex_unlock(&task->mutex);
	for (size_t i = 0; i < count && !rc; i += BATCH) {
		rc = give_batch(t, &backups[i], count - i < BATCH ? count - i : BATCH);
	}
	us_free(backups);
	return rc;
}

int32_t us_backups_run(struct us_task *task, struct us_error *err)
{
	struct tails *t = us_alloc_zero(sizeof(*t));
	if (!t) {
		return US_E_NOMEM;
	}
	const char *path = task->options.path;
	size_t len = us_escape(path, strlen(path), t->escaped_path, sizeof(t->escaped_path) - 1);
	t->escaped_path[len] = '\0';
	t->task = task;
	t->origin = (struct us_origin){ .store = task->view.store,
					.key_prefix = task->key,
					.escaped_path = t->escaped_path,
					.cancel = &task->cancel };
	int32_t rc = us_get_queue_init(&t->queue, err);
	if (!rc) {
		rc = give_all(t, err);
		us_get_queue_done(&t->queue);
	}
	us_free(t);
	return rc;
}
