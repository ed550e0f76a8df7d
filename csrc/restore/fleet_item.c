/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker does with one database; see fleet.c. */
#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "fleet.h"

#define TRIES_MAX 5
/* By a directory that somebody keeps locked, or another restore of the same output. */
#define BLOCKED_TRIES_MAX 4
#define RETRY_FIRST_NS (US_NS_PER_S / 2)
#define RETRY_MOST_NS (8 * US_NS_PER_S)
/* Larger ones are not downloaded only to see their snapshot time. */
#define PROBE_LEN_MIN (UINT64_C(1) << 20)
/* This file's own code: the object is younger than the timestamp. */
#define TOO_YOUNG 1

static struct us_origin origin_of(struct us_fleet_worker *w, const struct us_fleet_item *item)
{
	size_t len = us_escape(item->path, strlen(item->path), w->escaped_path,
			       sizeof(w->escaped_path) - 1);
	w->escaped_path[len] = '\0';
	return (struct us_origin){ .store = w->fleet->store,
				   .key_prefix = item->key_prefix,
				   .escaped_path = w->escaped_path,
				   .part_len = us_fetch_part_len(w->fleet->env.memory_len),
				   .cancel = &w->fleet->task->cancel };
}

/* --------------------------------------------------------------------- results */

static void count_done(struct us_fleet *f, const struct us_fleet_item *item, uint32_t status,
		       uint64_t database_len)
{
	struct us_progress *p = &f->task->progress;
	(void)pthread_mutex_lock(&f->task->mutex);
	p->done_count++;
	p->done_len += item->backup.object_len;
	p->failed_count += status == US_ROW_FAILED;
	p->skipped_count += status == US_ROW_SKIPPED;
	p->database_len += status == US_ROW_OK ? database_len : 0;
	(void)pthread_mutex_unlock(&f->task->mutex);
}

/* Ends ITEM with a row. WHY: of a failure, or of what an older object stands in for. */
static void end_item(struct us_fleet *f, struct us_fleet_item *item, uint32_t status, int32_t code,
		     const char *why)
{
	const struct us_fleet_flight *flight = item->flight;
	char key[US_KEY_LEN_MAX + 1];
	if (code != US_E_CANCELED) {
		us_object_key(item->key_prefix, item->backup.time_s, key);
		struct us_task_row row = { .status = status,
					   .code = code,
					   .path = item->path,
					   .key = item->backup.time_s ? key : NULL,
					   .message = why,
					   .object_len = item->backup.object_len,
					   .time_s = item->backup.time_s };
		if (f->options->flags & US_RESTORE_DRY_RUN && status == US_ROW_OK) {
			uint64_t part_len = us_fetch_part_len(f->env.memory_len);
			row.object_count = us_fetch_request_count(row.object_len, part_len);
		}
		if (flight) {
			row.output = flight->output_path;
			row.snapshot_ns = flight->snapshot_ns;
			row.database_len = flight->database_len;
			row.mode = flight->mode;
			row.page_size = flight->page_size;
		}
		count_done(f, item, status, row.database_len);
		(void)us_task_give(f->task, &row); /* canceled or no memory: the counts have it */
	}
	us_fleet_flight_free(item);
	us_fleet_release(f, item);
	us_fleet_item_free(item);
}

static void fail_item(struct us_fleet *f, struct us_fleet_item *item, int32_t code,
		      const struct us_error *why)
{
	end_item(f, item, US_ROW_FAILED, code,
		 code == US_E_NOMEM ? us_strerror(code) : why->message);
}

static void note_trailer(struct us_fleet_flight *flight, const struct us_trailer *trailer)
{
	flight->snapshot_ns = trailer->snapshot_ns;
	flight->database_len = trailer->database_len;
	flight->mode = trailer->mode;
	flight->page_size = trailer->page_size;
}

/* --------------------------------------------------------------- against the state */

/* The record of the database at PATH, if STATE has one, with the content of an object. */
static int find_record(const struct us_fleet *f, const struct us_state *state,
		       struct us_table *table, const char *path, struct us_record *ret)
{
	if (!state) {
		return 0;
	}
	uint64_t hash = us_path_hash_of(&us_state_info(state)->key, path + f->prefix_len + 1);
	return us_table_get(table, hash, ret) && ret->content_hash != 0;
}

/*
 * What the state file says of the object that was verified: 0, US_E_NOTFOUND if it knows
 * a newer one, US_E_OBJECT if it knows another: that may be a `replicate` beside this,
 * whose state was read before, or not committed yet.
 */
static int32_t check_state(const struct us_fleet *f, const struct us_state *state,
			   struct us_table *table, const struct us_fleet_item *item,
			   const struct us_trailer *trailer, struct us_error *err)
{
	struct us_record record;
	char time[US_TIME_NAME_LEN + 1];
	if (!find_record(f, state, table, item->path, &record)) {
		return 0;
	}
	us_time_name_format(record.object_time, time);
	if (item->backup.time_s < record.object_time) {
		return us_fail(err, US_E_NOTFOUND,
			       "its newest backup by the state file, %s, is not in the target",
			       time);
	}
	if (trailer->snapshot_ns > us_state_info(state)->high_water_ns) {
		return 0; /* younger than all that the state knows */
	}
	uint64_t content =
		us_content_hash(trailer->lz4_sha256, trailer->mode, trailer->uid, trailer->gid);
	if (item->backup.time_s == record.object_time && content == record.content_hash) {
		return 0;
	}
	return us_fail(err, US_E_OBJECT,
		       "its newest backup is whole, but not the one that the state file knows, %s",
		       time);
}

int32_t us_fleet_missing(struct us_fleet *f, const char *path, uint32_t newest_s)
{
	struct us_record record;
	struct us_error err = US_ERROR_INIT;
	if (!find_record(f, f->task->view.state, f->task->view.table, path, &record) ||
	    newest_s >= record.object_time) {
		return 0;
	}
	char time[US_TIME_NAME_LEN + 1];
	us_time_name_format(record.object_time, time);
	(void)us_fail(&err, US_E_NOTFOUND,
		      newest_s ? "its newest backup by the state file, %s, is not in the target"
			       : "it has no backup in the target; by the state file it has %s",
		      time);
	const struct us_task_row row = {
		.status = US_ROW_FAILED, .code = US_E_NOTFOUND, .path = path, .message = err.message
	};
	(void)pthread_mutex_lock(&f->task->mutex);
	f->task->progress.total_count++;
	f->task->progress.done_count++;
	f->task->progress.failed_count++;
	(void)pthread_mutex_unlock(&f->task->mutex);
	int32_t rc = us_task_give(f->task, &row);
	return rc ? rc : 1;
}

static void end_verified(struct us_fleet *f, struct us_fleet_item *item,
			 const struct us_trailer *trailer)
{
	const struct us_fleet_view *view = &f->task->view;
	struct us_error err = US_ERROR_INIT;
	note_trailer(item->flight, trailer);
	int32_t rc = check_state(f, view->state, view->table, item, trailer, &err);
	if (rc == US_E_OBJECT) {
		us_fleet_suspect(f, item);
	} else {
		end_item(f, item, rc ? US_ROW_FAILED : US_ROW_OK, rc, err.message);
	}
}

void us_fleet_recheck(struct us_fleet_worker *w, struct us_fleet_item *item,
		      const struct us_state *state, struct us_table *table)
{
	struct us_fleet *f = w->fleet;
	struct us_error err = US_ERROR_INIT;
	struct us_choice choice;
	item->flight = us_alloc_zero(sizeof(*item->flight));
	if (!item->flight) {
		fail_item(f, item, US_E_NOMEM, &err);
		return;
	}
	int32_t rc = us_verify_one(&f->env, item->path, f->options->integrity_check, w->fd, &choice,
				   &w->trailer, &err);
	if (!rc) {
		item->backup = (struct us_backup){ .time_s = choice.time_s,
						   .object_len = choice.object_len };
		note_trailer(item->flight, &w->trailer);
		rc = check_state(f, state, table, item, &w->trailer, &err);
	}
	end_item(f, item, rc ? US_ROW_FAILED : US_ROW_OK, rc, err.message);
}

/* ------------------------------------------------------------- the slow, exact way */

static void restore_slowly(struct us_fleet *f, struct us_fleet_item *item)
{
	struct us_fleet_flight *flight = item->flight;
	struct us_error err = US_ERROR_INIT, bad = US_ERROR_INIT;
	struct us_restore_result result = { .struct_size = sizeof(result) };
	const struct us_restore_options options = {
		.struct_size = sizeof(options),
		.flags = f->options->flags & ~US_TASK_FALLBACK,
		.path = item->path,
		.output_path = flight->output_path,
		.timestamp_ns = f->options->timestamp_ns,
		.integrity_check = f->options->integrity_check,
	};
	us_output_close(&flight->output); /* it is opened anew, and its temporary file made */
	flight->is_open = 0;
	int32_t rc = us_restore_one(&f->env, &options, &result, &bad, &err);
	if (rc) {
		fail_item(f, item, rc, &err);
		return;
	}
	size_t prefix_len;
	(void)us_object_key_parse(result.key, strlen(result.key), &prefix_len,
				  &item->backup.time_s); /* skipped: there is none */
	item->backup.object_len = result.object_len;
	flight->snapshot_ns = result.snapshot_ns;
	flight->database_len = result.database_len;
	flight->mode = result.mode;
	flight->page_size = result.page_size;
	end_item(f, item, result.skipped ? US_ROW_SKIPPED : US_ROW_OK, 0, bad.message);
}

static void verify_slowly(struct us_fleet_worker *w, struct us_fleet_item *item)
{
	struct us_fleet *f = w->fleet;
	struct us_error err = US_ERROR_INIT;
	struct us_choice choice;
	int32_t rc = us_verify_one(&f->env, item->path, f->options->integrity_check, w->fd, &choice,
				   &w->trailer, &err);
	if (rc) {
		fail_item(f, item, rc, &err);
		return;
	}
	item->backup =
		(struct us_backup){ .time_s = choice.time_s, .object_len = choice.object_len };
	end_verified(f, item, &w->trailer);
}

static void do_slowly(struct us_fleet_worker *w, struct us_fleet_item *item)
{
	if (w->fleet->is_verify) {
		verify_slowly(w, item);
	} else {
		restore_slowly(w->fleet, item);
	}
}

/* --------------------------------------------------------------------- starting */

static int32_t make_output_path(const struct us_fleet *f, const struct us_fleet_item *item,
				char *ret_path, struct us_error *err)
{
	const char *dir = f->options->output_dir;
	const char *below = dir ? item->path + f->prefix_len : item->path;
	int len = snprintf(ret_path, PATH_MAX, "%s%s", dir && dir[1] ? dir : "", below);
	return len < PATH_MAX
		       ? 0
		       : us_fail(err, US_E_NAME,
				 "its path below the output directory would have %d bytes", len);
}

/* A dry run looks at what is there as a real one, but repairs nothing. */
static int32_t check_dry(const struct us_fleet *f, const struct us_output *o, int *ret_skip,
			 struct us_error *err)
{
	int present;
	if (f->options->flags & US_RESTORE_IF_DB_NOT_EXISTS) {
		int32_t exists = us_output_exists(o, err);
		if (exists) {
			*ret_skip = exists > 0;
			return exists < 0 ? exists : 0;
		}
	}
	return us_output_check(o, (f->options->flags & US_RESTORE_FORCE) != 0, &present, err);
}

/* Where the item goes, and whether something is in the way. 1: then it was ended. */
static int prepare_output(struct us_fleet *f, struct us_fleet_item *item)
{
	struct us_fleet_flight *flight = item->flight;
	struct us_output *o = &flight->output;
	struct us_error err = US_ERROR_INIT;
	int skip = 0;
	int32_t rc = make_output_path(f, item, flight->output_path, &err);
	if (!rc) {
		rc = us_output_open(o, flight->output_path, f->env.tree, &err);
		flight->is_open = 1;
		o->defer_sync = 1;
		o->enter_wait_ns = US_OUTPUT_FLEET_WAIT_NS;
		o->made_dirs = &f->made_dirs;
	}
	if (!rc) {
		rc = f->options->flags & US_RESTORE_DRY_RUN
			     ? check_dry(f, o, &skip, &err)
			     : us_restore_check_output(o, f->options->flags, &f->task->cancel,
						       &skip, &err);
	}
	if (rc) {
		fail_item(f, item, rc, &err);
	} else if (skip) {
		end_item(f, item, US_ROW_SKIPPED, 0, NULL);
	}
	return rc || skip;
}

static int is_too_young(const struct us_fleet *f, int64_t snapshot_ns)
{
	return f->options->timestamp_ns && snapshot_ns > f->options->timestamp_ns;
}

/* The object before takes the place of one that is younger than the timestamp. */
static void take_older(struct us_fleet_item *item)
{
	item->backup = item->older;
	item->older = (struct us_backup){ 0 };
	item->after = (struct us_backup){ 0 };
	item->is_slow = item->backup.time_s == 0;
}

/* Reads the trailers that decide which object it is, where names do not. What cannot be
 * read is left to restore.c. */
static void probe_trailers(struct us_fleet_worker *w, struct us_fleet_item *item)
{
	struct us_origin origin = origin_of(w, item);
	char key[US_KEY_LEN_MAX + 1];
	int is_dry = (w->fleet->options->flags & US_RESTORE_DRY_RUN) != 0;
	if ((item->backup.object_len >= PROBE_LEN_MIN && item->older.time_s) || is_dry) {
		us_object_key(item->key_prefix, item->backup.time_s, key);
		if (us_choose_trailer(&origin, key, &w->trailer, NULL, NULL)) {
			item->is_slow = 1;
		} else if (is_too_young(w->fleet, w->trailer.snapshot_ns)) {
			take_older(item);
		}
	}
	if (item->after.time_s && !item->is_slow) {
		us_object_key(item->key_prefix, item->after.time_s, key);
		item->is_slow = us_choose_trailer(&origin, key, &w->trailer, NULL, NULL) != 0 ||
				!is_too_young(w->fleet, w->trailer.snapshot_ns);
		item->after = (struct us_backup){ 0 };
	}
}

void us_fleet_start(struct us_fleet_worker *w, struct us_fleet_item *item)
{
	struct us_fleet *f = w->fleet;
	struct us_error err = US_ERROR_INIT;
	struct us_fleet_flight *flight = item->flight = us_alloc_zero(sizeof(*flight));
	if (!flight) {
		fail_item(f, item, US_E_NOMEM, &err);
		return;
	}
	flight->get.err = err;
	flight->output.dir_fd = flight->output.temp_fd = -1;
	if (!f->is_verify && prepare_output(f, item)) {
		return;
	}
	if (f->options->timestamp_ns && !item->is_slow) {
		probe_trailers(w, item);
	}
	uint64_t len = item->backup.object_len;
	if (item->is_slow) {
		do_slowly(w, item);
	} else if (f->options->flags & US_RESTORE_DRY_RUN) {
		end_item(f, item, US_ROW_OK, 0, NULL);
	} else if (len == 0 || len > f->small_len_max) {
		us_fleet_finish(w, item);
	} else if (!(flight->get.data = us_alloc((size_t)len))) {
		fail_item(f, item, US_E_NOMEM, &err);
	} else {
		us_choose_make(&(struct us_origin){ .key_prefix = item->key_prefix }, &item->backup,
			       &flight->choice);
		us_fleet_get(f, item);
	}
}

/* -------------------------------------------------------------------- finishing */

/* Decodes the object that the item's get has brought, or fetches it now. TOO_YOUNG: see
 * take_older. */
static int32_t fetch_image(struct us_fleet_worker *w, struct us_fleet_item *item, int fd,
			   const char *shown, struct us_error *err)
{
	struct us_get *get = &item->flight->get;
	struct us_origin origin = origin_of(w, item);
	int32_t rc;
	if (get->data) {
		rc = us_fetch_begin(w->fetch, get->len, fd, shown, origin.cancel, err);
		rc = rc ? rc : us_fetch_feed(w->fetch, get->data, (size_t)get->len, err);
		rc = rc ? rc : us_fetch_end(w->fetch, &w->trailer, err);
		rc = rc ? rc : us_choose_check(&origin, get->key, &w->trailer, err);
	} else {
		us_choose_make(&origin, &item->backup, &item->flight->choice);
		rc = us_fetch_object(w->fetch, &origin, &item->flight->choice, fd, shown,
				     &w->trailer, err);
	}
	if (!rc && is_too_young(w->fleet, w->trailer.snapshot_ns)) {
		return TOO_YOUNG;
	}
	return rc ? rc
		  : us_fetch_check(fd, w->fleet->options->integrity_check, shown, origin.cancel,
				   err);
}

/* Into the temporary file, with all that it needs to be renamed. */
static int32_t fetch_to_output(struct us_fleet_worker *w, struct us_fleet_item *item,
			       struct us_error *err)
{
	struct us_output *o = &item->flight->output;
	int32_t rc = us_output_temp(o, &w->fleet->task->cancel, err);
	if (rc) {
		item->flight->is_blocked = rc == US_E_BUSY;
		return rc;
	}
	if (o->made_len) {
		w->fleet->has_made_dirs = 1;
	}
	rc = fetch_image(w, item, o->temp_fd, o->shown, err);
	if (!rc) {
		rc = us_restore_set_mode(o, &w->trailer, err);
	}
	if (!rc) {
		note_trailer(item->flight, &w->trailer);
		us_free(item->flight->get.data);
		item->flight->get.data = NULL;
	}
	return rc;
}

static int is_transient(int32_t rc, const struct us_error *err)
{
	return rc == US_E_NETWORK || rc == US_E_TIMEOUT || (rc == US_E_HTTP && err->retryable);
}

static int is_worth_a_try_later(const struct us_fleet_item *item, int32_t rc,
				const struct us_error *err)
{
	if (is_transient(rc, err)) {
		return item->tries < TRIES_MAX &&
		       item->backup.object_len < US_FETCH_PARTS_LEN_MIN; /* parts had their tries */
	}
	return item->flight->is_blocked && item->tries < BLOCKED_TRIES_MAX;
}

/* What the slow way may do better: the object is bad, or another one by now. */
static int is_worth_another_look(int32_t rc)
{
	return rc == US_E_OBJECT || rc == US_E_CORRUPT || rc == US_E_NOTFOUND || rc == US_E_BUSY;
}

static void try_later(struct us_fleet *f, struct us_fleet_item *item)
{
	int64_t wait_ns = RETRY_FIRST_NS << item->tries;
	item->tries += !us_fleet_is_outage(f); /* that is no fault of this one */
	us_fleet_flight_free(item);
	us_fleet_retry(f, item,
		       us_clock_mono_ns() + (wait_ns < RETRY_MOST_NS ? wait_ns : RETRY_MOST_NS));
}

void us_fleet_finish(struct us_fleet_worker *w, struct us_fleet_item *item)
{
	struct us_fleet *f = w->fleet;
	struct us_error err = US_ERROR_INIT;
	int32_t rc = item->flight->get.rc;
	if (rc) {
		err = item->flight->get.err;
	} else {
		rc = f->is_verify ? fetch_image(w, item, w->fd, item->key_prefix, &err)
				  : fetch_to_output(w, item, &err);
	}
	if (rc >= 0 || !is_transient(rc, &err)) {
		us_fleet_note_network(f, NULL);
	} else if (rc == US_E_NETWORK) {
		us_fleet_note_network(f, &err);
	}
	if (rc == TOO_YOUNG) {
		take_older(item);
		us_fleet_flight_free(item);
		us_fleet_retry(f, item, 0);
	} else if (is_worth_a_try_later(item, rc, &err)) {
		try_later(f, item);
	} else if (is_worth_another_look(rc) && !item->flight->is_blocked) {
		do_slowly(w, item);
	} else if (rc) {
		fail_item(f, item, rc, &err);
	} else if (f->is_verify) {
		end_verified(f, item, &w->trailer);
	} else {
		us_fleet_batch_add(f, item);
	}
}

void us_fleet_commit(struct us_fleet_worker *w, struct us_fleet_batch *batch)
{
	struct us_fleet *f = w->fleet;
	for (size_t i = 0; i < batch->count; i++) {
		w->batch_items[i] =
			(struct us_batch_item){ .output = &batch->items[i]->flight->output,
						.owner = batch->items[i],
						.err = US_ERROR_INIT };
	}
	us_batch_commit(w->batch_items, batch->count, (f->options->flags & US_RESTORE_FORCE) != 0,
			f->has_made_dirs != 0, &f->task->cancel);
	for (size_t i = 0; i < batch->count; i++) {
		struct us_batch_item *done = &w->batch_items[i];
		if (done->rc) {
			fail_item(f, done->owner, done->rc, &done->err);
		} else {
			end_item(f, done->owner, US_ROW_OK, 0, NULL);
		}
	}
	batch->count = 0;
}
