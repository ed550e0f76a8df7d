/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PURGE goes over the target twice. The first listing chooses databases and counts
 * their objects, and nothing is removed unless that count is the one that was
 * confirmed. Then each chosen database is listed on its own, so that what was counted
 * and nothing newer goes, and, for those that are gone, looked for on disk once more.
 *
 * Refused as a whole: a walk that could not look everywhere (what looks gone may be
 * there), a choice that is all there is in the target, unless the match is "*".
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "choose.h"
#include "task_internal.h"

#define CHOSEN_FIRST 256u

struct chosen {
	char *key; /* prefix */
	uint32_t newest_s;
};

struct purge {
	struct us_task *task;
	const struct us_local *local; /* NULL also where the disk does not matter */
	struct chosen *chosen;
	size_t count, cap;
	char (*keys)[US_KEY_LEN_MAX + 1]; /* to be removed next, US_REMOVE_MANY_MAX of them */
	size_t key_count;
};

/* ------------------------------------------------------------------- choosing */

static int is_chosen(const struct purge *p, const struct us_catalog_entry *entry)
{
	const struct us_task_options *o = &p->task->options;
	if (o->path) {
		return strcmp(entry->key, p->task->key) == 0;
	}
	if (!us_task_chooses(p->task, entry->path)) {
		return 0;
	}
	return !(o->flags & US_TASK_GONE) ||
	       (entry->newest.time_s * US_NS_PER_S < o->older_than_ns &&
		!us_local_has(p->local, entry->key));
}

static int32_t keep(struct purge *p, const struct us_catalog_entry *entry)
{
	if (p->count == p->cap) {
		size_t cap = p->cap ? us_size_mul(p->cap, 2) : CHOSEN_FIRST;
		struct chosen *chosen = us_realloc(p->chosen, us_size_mul(cap, sizeof(*chosen)));
		if (!chosen) {
			return US_E_NOMEM;
		}
		p->chosen = chosen;
		p->cap = cap;
	}
	char *key = us_strdup(entry->key);
	if (!key) {
		return US_E_NOMEM;
	}
	p->chosen[p->count++] = (struct chosen){ .key = key, .newest_s = entry->newest.time_s };
	return 0;
}

static int32_t on_database(void *arg, const struct us_catalog_entry *entry)
{
	struct purge *p = arg;
	struct us_task *task = p->task;
	if (!is_chosen(p, entry)) {
		return 0;
	}
	int32_t rc = keep(p, entry);
	if (rc) {
		return rc;
	}
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.total_count++;
	task->progress.total_len += entry->objects_len;
	task->progress.object_count += entry->object_count;
	(void)pthread_mutex_unlock(&task->mutex);
	const struct us_task_row row = { .status = US_ROW_OK,
					 .path = entry->path,
					 .key = entry->key,
					 .object_count = entry->object_count,
					 .objects_len = entry->objects_len,
					 .object_len = entry->newest.object_len,
					 .time_s = entry->newest.time_s };
	return us_task_give(task, &row);
}

static int32_t check_choice(const struct purge *p, uint64_t database_count, struct us_error *err)
{
	const struct us_task_options *o = &p->task->options;
	int is_all = !o->path && p->count > 0 && p->count == database_count;
	if (is_all && !(o->match && strcmp(o->match, "*") == 0)) {
		return us_fail(err, US_E_CONFIG,
			       "these are all %llu databases that the target has; to remove every "
			       "backup there is, say -match '*'",
			       (unsigned long long)database_count);
	}
	return 0;
}

static int32_t check_walk(const struct us_task *task, const struct us_local *local,
			  struct us_error *err)
{
	if (us_local_failures(local) > 0) {
		return us_fail(err, US_E_CONFIG,
			       "nothing is removed while a directory or file cannot be looked at: "
			       "%s",
			       us_local_first_failure(local));
	}
	if (us_local_count(local) == 0 && task->options.flags & US_TASK_GONE) {
		return us_fail(err, US_E_CONFIG,
			       "nothing is removed while no database at all is on disk: is a file "
			       "system not mounted?");
	}
	return 0;
}

/* ------------------------------------------------------------------- removing */

/* Removes what is in keys. */
static int32_t flush(struct purge *p, struct us_error *err)
{
	const char *keys[US_REMOVE_MANY_MAX];
	struct us_task *task = p->task;
	size_t removed = 0;
	if (p->key_count == 0) {
		return 0;
	}
	for (size_t i = 0; i < p->key_count; i++) {
		keys[i] = p->keys[i];
	}
	int32_t rc = task->view.store->ops->remove_many(task->view.store, keys, p->key_count,
							&removed, err);
	p->key_count = 0;
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.removed_count += removed;
	(void)pthread_mutex_unlock(&task->mutex);
	return rc;
}

/* Whether the database of KEY is on disk by now. */
static int is_back(const struct purge *p, const char *key)
{
	char path[US_PATH_LEN_MAX + 1];
	struct stat st;
	return p->task->options.flags & US_TASK_GONE &&
	       us_template_path(p->task->view.tmpl, key, strlen(key), path, NULL) >= 0 &&
	       !fstatat(AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW);
}

static int32_t remove_database(struct purge *p, const struct chosen *chosen, struct us_error *err)
{
	const struct us_origin origin = { .store = p->task->view.store,
					  .key_prefix = chosen->key,
					  .escaped_path = chosen->key,
					  .cancel = &p->task->cancel };
	struct us_backup *backups = NULL;
	size_t count = 0;
	if (is_back(p, chosen->key)) {
		return 0;
	}
	int32_t rc = us_choose_list(&origin, &backups, &count, err);
	for (size_t i = 0; !rc && i < count && backups[i].time_s <= chosen->newest_s; i++) {
		if (p->key_count == US_REMOVE_MANY_MAX) {
			rc = flush(p, err);
		}
		if (!rc) {
			us_object_key(chosen->key, backups[i].time_s, p->keys[p->key_count++]);
		}
	}
	us_free(backups);
	return rc;
}

static int32_t remove_all(struct purge *p, struct us_error *err)
{
	p->keys = us_alloc_array(US_REMOVE_MANY_MAX, sizeof(*p->keys));
	if (!p->keys) {
		return US_E_NOMEM;
	}
	int32_t rc = 0;
	for (size_t i = 0; i < p->count && !rc; i++) {
		rc = p->task->cancel ? US_E_CANCELED : remove_database(p, &p->chosen[i], err);
		(void)pthread_mutex_lock(&p->task->mutex);
		p->task->progress.done_count++;
		(void)pthread_mutex_unlock(&p->task->mutex);
	}
	return rc ? rc : flush(p, err);
}

static int32_t run(struct purge *p, struct us_error *err)
{
	struct us_task *task = p->task;
	const struct us_catalog_fns fns = { .database = on_database, .is_patient = 1, .arg = p };
	struct us_catalog_result result;
	int32_t rc = check_walk(task, p->local, err);
	if (!rc) {
		rc = us_catalog_run(task->view.store, task->view.tmpl,
				    task->options.path ? task->key : NULL, 0, UINT32_MAX, &fns,
				    &task->cancel, &result, err);
	}
	if (!rc) {
		us_task_listed(task, &result);
		rc = check_choice(p, result.database_count, err);
	}
	if (rc || task->options.confirm_count == 0 ||
	    task->options.confirm_count != task->progress.object_count) {
		return rc;
	}
	(void)pthread_mutex_lock(&task->mutex);
	task->progress.confirmed = 1;
	(void)pthread_mutex_unlock(&task->mutex);
	return remove_all(p, err);
}

int32_t us_purge_run(struct us_task *task, struct us_error *err)
{
	struct purge p = { .task = task };
	struct us_local *local = NULL;
	int32_t rc = task->options.path ? 0 : us_task_walk(task, &local, err);
	if (!rc) {
		p.local = local;
		rc = run(&p, err);
	}
	for (size_t i = 0; i < p.count; i++) {
		us_free(p.chosen[i].key);
	}
	us_free(p.chosen);
	us_free(p.keys);
	us_local_free(local);
	return rc;
}
