/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tasks: a thread that works, and rows that its owner takes. A row waits as one
 * allocation with its texts; at most ROWS_MAX do, then those who give rows wait. That
 * is how a slow reader of `list` slows the listing down instead of filling memory.
 */
#include "task_internal.h"

#include <fnmatch.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "../base/thread.h"

#define ROWS_MAX 1024
#define CANCEL_LOOK_NS (100 * US_NS_PER_MS)
/* How long the first row of a batch waits for others: a batch costs its taker a call. */
#define LINGER_NS (50 * US_NS_PER_MS)

struct row {
	struct row *next;
	struct us_task_row fields; /* its texts lie behind the struct */
};

static const char *text_of(const char *text)
{
	return text ? text : "";
}

static struct row *row_new(const struct us_task_row *from)
{
	const char *texts[4] = { text_of(from->path), text_of(from->output), text_of(from->key),
				 text_of(from->message) };
	size_t len = sizeof(struct row);
	for (int i = 0; i < 4; i++) {
		len += strlen(texts[i]) + 1;
	}
	struct row *row = us_alloc(len);
	if (!row) {
		return NULL;
	}
	char *at = (char *)(row + 1);
	for (int i = 0; i < 4; i++) {
		size_t text_len = strlen(texts[i]) + 1;
		texts[i] = memcpy(at, texts[i], text_len);
		at += text_len;
	}
	row->next = NULL;
	row->fields = *from;
	row->fields.path = texts[0];
	row->fields.output = texts[1];
	row->fields.key = texts[2];
	row->fields.message = texts[3];
	return row;
}

int32_t us_task_give(struct us_task *task, const struct us_task_row *from)
{
	struct row *row = row_new(from);
	if (!row) {
		return US_E_NOMEM;
	}
	(void)pthread_mutex_lock(&task->mutex);
	while (task->row_count >= ROWS_MAX && !task->cancel) {
		(void)us_cond_wait_ns(&task->room, &task->mutex, CANCEL_LOOK_NS);
	}
	int taken = !task->cancel;
	if (taken) {
		*task->last = row;
		task->last = &row->next;
		task->row_count++;
		if (task->row_count == 1 || task->row_count == task->wanted) {
			(void)pthread_cond_signal(&task->filled);
		}
	}
	(void)pthread_mutex_unlock(&task->mutex);
	if (!taken) {
		us_free(row);
	}
	return taken ? 0 : US_E_CANCELED;
}

int us_task_chooses(const struct us_task *task, const char *path)
{
	return !task->options.match || fnmatch(task->options.match, path, 0) == 0;
}

int32_t us_task_walk(struct us_task *task, struct us_local **ret_local, struct us_error *err)
{
	struct us_local *local;
	int32_t rc = us_local_walk(task->view.pattern, task->view.tmpl, task->view.any_filesystem,
				   &task->cancel, &local, err);
	if (rc) {
		return rc;
	}
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.local_count = us_local_count(local) + us_local_bad_count(local);
	task->progress.walk_failures = us_local_failures(local);
	(void)pthread_mutex_unlock(&task->mutex);
	*ret_local = local;
	return 0;
}

void us_task_listed(struct us_task *task, const struct us_catalog_result *result)
{
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.listed = 1;
	task->progress.ours_count = result->ours_count;
	task->progress.foreign_count = result->foreign_count;
	(void)pthread_mutex_unlock(&task->mutex);
}

/* ------------------------------------------------------------------- the thread */

static int32_t run(struct us_task *task, struct us_error *err)
{
	switch (task->options.kind) {
	case US_TASK_LIST:
		return us_list_run(task, err);
	case US_TASK_BACKUPS:
		return us_backups_run(task, err);
	case US_TASK_PURGE:
		return us_purge_run(task, err);
	default:
		return us_fleet_run(task, err);
	}
}

static void *task_main(void *arg)
{
	struct us_task *task = arg;
	struct us_error err = US_ERROR_INIT;
	int32_t rc = run(task, &err);
	if (rc == US_E_NOMEM) {
		(void)us_fail_nomem(&err);
	} else if (task->cancel || *task->view.cancel || rc == US_E_CANCELED) {
		/* Also where it had come to its end by itself: what was cut off is not known. */
		rc = us_fail(&err, US_E_CANCELED, "canceled");
	}
	(void)pthread_mutex_lock(&task->mutex);
	task->over = 1;
	task->rc = rc;
	task->err = err;
	(void)pthread_cond_signal(&task->filled);
	(void)pthread_mutex_unlock(&task->mutex);
	return NULL;
}

/* -------------------------------------------------------------------- opening */

static int32_t check_options(const struct us_task_options *o, struct us_error *err)
{
	const uint32_t restore = US_RESTORE_FORCE | US_RESTORE_DRY_RUN |
				 US_RESTORE_IF_DB_NOT_EXISTS | US_TASK_FALLBACK;
	uint32_t known = o->kind == US_TASK_RESTORE ? restore
			 : o->kind == US_TASK_PURGE ? US_TASK_GONE
						    : 0;
	if (o->kind < US_TASK_LIST || o->kind > US_TASK_PURGE || o->flags & ~known ||
	    o->integrity_check > US_INTEGRITY_FULL) {
		return us_fail(err, US_E_ARG,
			       "task: kind %u, flags 0x%x or integrity check %u out of range",
			       o->kind, o->flags, o->integrity_check);
	}
	if (o->output_dir && o->output_dir[0] != '/') {
		return us_fail(err, US_E_ARG, "output directory \"%s\" is relative", o->output_dir);
	}
	int gone = (o->flags & US_TASK_GONE) != 0;
	if (o->kind == US_TASK_PURGE && gone != (o->older_than_ns != 0)) {
		return us_fail(err, US_E_ARG, "purge: gone and older_than_ns need each other");
	}
	if (o->kind == US_TASK_PURGE && !gone && !o->path && !o->match) {
		return us_fail(err, US_E_ARG, "purge: nothing says what: a path, match or gone");
	}
	if (o->path && (gone || o->match)) {
		return us_fail(err, US_E_ARG, "a path goes without match and gone");
	}
	return o->kind != US_TASK_BACKUPS || o->path
		       ? 0
		       : us_fail(err, US_E_ARG, "the path of the database is missing");
}

static int copy_texts(struct us_task *task)
{
	const char **texts[] = { &task->options.path, &task->options.match,
				 &task->options.output_dir };
	int failed = 0;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		if (*texts[i]) {
			*texts[i] = us_strdup(*texts[i]);
			failed |= !*texts[i];
		}
	}
	return failed;
}

static void free_text(const char *text)
{
	us_free((void *)(uintptr_t)text); /* made by copy_texts */
}

int32_t us_task_open(const struct us_fleet_view *view, const struct us_task_options *options,
		     struct us_task **ret_task, struct us_error *err)
{
	int32_t rc = check_options(options, err);
	if (rc) {
		return rc;
	}
	struct us_task *task = us_alloc_zero(sizeof(*task));
	if (!task) {
		return us_fail_nomem(err);
	}
	task->view = *view;
	task->options = *options;
	task->last = &task->first;
	(void)pthread_mutex_init(&task->mutex, NULL); /* never fails on Linux */
	rc = copy_texts(task) ? us_fail_nomem(err) : us_cond_init(&task->filled, err);
	if (!rc) {
		rc = us_cond_init(&task->room, err);
	}
	if (!rc && task->options.path) {
		const char *path = task->options.path;
		int32_t len = us_template_key(view->tmpl, path, strlen(path), task->key, err);
		rc = len < 0 ? len : 0;
	}
	if (!rc) {
		rc = us_thread_start(&task->thread, "us-task", task_main, task, err);
		task->started = !rc;
	}
	if (rc) {
		us_task_free(task);
		return rc;
	}
	*ret_task = task;
	return 0;
}

void us_task_free(struct us_task *task)
{
	if (!task) {
		return;
	}
	if (task->started) {
		task->cancel = 1;
		(void)pthread_mutex_lock(&task->mutex);
		(void)pthread_cond_broadcast(&task->room);
		(void)pthread_mutex_unlock(&task->mutex);
		(void)pthread_join(task->thread, NULL); /* ours, joined once */
	}
	while (task->first) {
		struct row *row = task->first;
		task->first = row->next;
		us_free(row);
	}
	(void)pthread_cond_destroy(&task->filled); /* nobody waits any more */
	(void)pthread_cond_destroy(&task->room);
	(void)pthread_mutex_destroy(&task->mutex);
	free_text(task->options.path);
	free_text(task->options.match);
	free_text(task->options.output_dir);
	us_free(task);
}

/* ----------------------------------------------------------------- taking rows */

static void escape_path(const char *path, char ret[US_PATH_TEXT_LEN])
{
	size_t len = us_escape(path, strlen(path), ret, US_PATH_TEXT_LEN - 1);
	ret[len < US_PATH_TEXT_LEN ? len : US_PATH_TEXT_LEN - 1] = '\0';
}

static void copy_text(char *ret, size_t cap, const char *text)
{
	size_t len = strnlen(text, cap - 1);
	memcpy(ret, text, len);
	ret[len] = '\0';
}

static void fill(struct us_row *ret, const struct us_task_row *row)
{
	ret->status = row->status;
	ret->code = row->code;
	escape_path(row->path, ret->path);
	escape_path(row->output, ret->output);
	copy_text(ret->key, sizeof(ret->key), row->key);
	copy_text(ret->message, sizeof(ret->message), row->message);
	ret->object_count = row->object_count;
	ret->objects_len = row->objects_len;
	ret->object_len = row->object_len;
	ret->time_ns = row->time_s * US_NS_PER_S;
	ret->snapshot_ns = row->snapshot_ns;
	ret->database_len = row->database_len;
	ret->mode = row->mode;
	ret->page_size = row->page_size;
}

/* Takes up to CAPACITY rows off the queue. Wants the mutex. */
static struct row *take_rows(struct us_task *task, size_t capacity)
{
	struct row *rows = task->first;
	struct row **end = &task->first;
	size_t count = 0;
	while (count < capacity && *end) {
		end = &(*end)->next;
		count++;
	}
	if (count == 0) {
		return NULL;
	}
	struct row *rest = *end;
	*end = NULL;
	task->first = rest;
	if (!rest) {
		task->last = &task->first;
	}
	task->row_count -= count;
	(void)pthread_cond_broadcast(&task->room);
	return rows;
}

/* Until there are COUNT rows, the task is over or canceled, or END_NS. Wants the mutex. */
static void wait_rows(struct us_task *task, size_t count, int64_t end_ns)
{
	for (int64_t left_ns; task->row_count < count && !task->over && !*task->view.cancel &&
			      (left_ns = end_ns - us_clock_mono_ns()) > 0;) {
		(void)us_cond_wait_ns(&task->filled, &task->mutex,
				      left_ns < CANCEL_LOOK_NS ? left_ns : CANCEL_LOOK_NS);
	}
}

int32_t us_task_take(struct us_task *task, int32_t timeout_ms, struct us_row *ret_rows,
		     size_t capacity, struct us_progress *ret_progress, struct us_error *err)
{
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	(void)pthread_mutex_lock(&task->mutex);
	task->wanted = capacity;
	wait_rows(task, 1, end_ns);
	int64_t linger_ns = us_clock_mono_ns() + LINGER_NS;
	if (task->first) {
		wait_rows(task, capacity, linger_ns < end_ns ? linger_ns : end_ns);
	}
	if (*task->view.cancel) {
		task->cancel = 1;
	}
	int32_t rc = !task->first && task->over ? task->rc : 0;
	if (rc && err) {
		*err = task->err;
	}
	task->progress.finished = !task->first && task->over;
	struct row *rows = take_rows(task, capacity);
	*ret_progress = task->progress;
	(void)pthread_mutex_unlock(&task->mutex);
	struct us_store_counts counts;
	task->view.store->ops->counts(task->view.store, &counts);
	ret_progress->struct_size = sizeof(*ret_progress);
	ret_progress->api_get = counts.get;
	ret_progress->api_list = counts.list;
	ret_progress->api_delete = counts.remove;
	int32_t count = 0;
	while (rows) {
		struct row *row = rows;
		rows = row->next;
		fill(&ret_rows[count++], &row->fields);
		us_free(row);
	}
	return rc ? rc : count;
}
