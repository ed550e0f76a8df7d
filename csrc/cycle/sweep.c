/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sweep: once a day the target is listed, in one pass and on a thread of its own, as
 * that can take hours and cycles go on beside it. From the listing follow
 *
 *	retention	what is older by name than retention_s and has two newer ones goes,
 *			in batches, while the listing goes on; memory: one batch
 *	reconciliation	a database whose newest object is not the one that its record
 *			names is marked: the next cycle uploads it, whatever its content
 *	the epoch	of a fresh state, which knows nothing of what an older one has put
 *			there: it moves past the newest name found, so that nothing older is
 *			overwritten or sorts after what comes, whatever the clock says. No
 *			upload before that
 *
 * and afterwards uploads in parts that nobody will finish are aborted.
 *
 * What is never deleted: a key that is not ours and the newest two of a database (the
 * catalog gives neither), and the object that the record names as its database's last (a
 * name far ahead of the clock may sort after it). If the clock stands more than a year
 * after the last snapshot, it is not believed, and nothing is deleted at all.
 *
 * Why records and listing can be compared although cycles run beside: US_RECORD_TOUCHED.
 * A sweep begins between two cycles: no put is in flight then but such whose outcome
 * nobody saw (timed out at our end, still on their way at the other). The flag is taken off
 * all records, then the listing starts. Whoever starts a put sets the flag first, under
 * the lock of the record's shard (name_object in pipeline.c). A database is judged under
 * that lock, and only if the flag is not set. So:
 *
 *	- flag not set: no put of it was started since before its page was listed. The
 *	  listing shows what was there when the sweep began, and the record, which only a
 *	  put changes in what is compared here, is as it was then. They must agree.
 *	- flag set: it is being sent, or was. The acknowledgement tells what the target
 *	  has, and the listing may be older than that: no judgement until the next sweep.
 *	- judged, then sent: the record was marked or not before its name was chosen; if its
 *	  last name was corrected, the new name is chosen after it (one lock for both).
 *	- read by a worker before, found unchanged after it was marked: record_synced sees
 *	  that the content is not known any more, and leaves the mark.
 *	- a put of unknown outcome may arrive at any time: its record is unsynced until a
 *	  later one is acknowledged, and then has that one's name, which sorts after it.
 *	  Unsynced records are not judged (they are uploaded anyway).
 *	- acknowledged in an earlier cycle, but the commit failed: memory counts. The file
 *	  is asked for a length only, and only of the object that memory names.
 *	- a record made during the sweep has the flag; one forgotten is not found.
 *	- retention: objects appear at the end of a database's names or take the place of
 *	  the last one. What had two newer ones when it was listed still has.
 *
 * After a complete listing, a record without the flag was not named by it: its database
 * has no object in the target.
 *
 * Threads: the cycle's thread starts a sweep, and joins it once it is over; in between, all
 * of us_sweep_run but OVER (us->mutex) belongs to the sweep's thread. Marked records are
 * dirty like any others. The time of the sweep is committed with them, never before.
 */
#include "fleet.h"

#include <stdatomic.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/thread.h"
#include "../restore/catalog.h"

#define INTERVAL_S 86400
#define RETRY_NS (3600 * US_NS_PER_S)
/* How long a cycle waits for a sweep that was merely due. */
#define WAIT_NS (10 * US_NS_PER_S)
#define WAIT_FOREVER INT64_MAX
#define WAIT_STEP_NS US_NS_PER_S
#define CLOCK_BACK_NS (600 * US_NS_PER_S)
/* A name further ahead is no clock's error: it would stop time for all. */
#define NAME_AHEAD_MAX_S (366u * 86400)
#define CLOCK_AHEAD_MAX_NS (366 * (86400 * US_NS_PER_S))
#define BATCH_TEXT_LEN ((size_t)256 * 1024)
/* Failures to delete in a row after which this sweep deletes no more. */
#define DELETE_FAILURES_MAX 3
/* What the log was told, until a sweep succeeds in it. */
#define WARNED_LIST 1u
#define WARNED_ABORT 2u

/* Keys to be removed, one behind the other. */
struct batch {
	const char *keys[US_REMOVE_MANY_MAX];
	size_t count, text_len;
	uint64_t objects_len;
	char text[BATCH_TEXT_LEN];
};

struct us_sweep_run {
	struct us *us;
	pthread_t thread;
	int over;     /* guarded by us->mutex */
	int is_fresh; /* the state has not seen the target's names */
	int may_delete;
	int clock_ahead;  /* the clock is not believed */
	uint32_t now_s;   /* the wall clock at the start */
	uint32_t limit_s; /* later names are passed over */
	int64_t start_ns; /* monotonic */
	double seconds;
	struct us_store_counts before, after;
	struct us_state_lengths *lengths;
	struct batch batch;
	char path[US_PATH_LEN_MAX + 1];
	/* What came of it. */
	int32_t rc;
	struct us_error err;
	struct us_catalog_result found;
	uint64_t deleted, deleted_len;
	uint64_t reconciled;
	uint64_t aborted;
	uint32_t delete_failures;              /* in a row */
	struct us_error delete_err, abort_err; /* the first; code 0: none */
};

/* ---------------------------------------------------------------- retention */

/* The record's hash of PATH, which is absolute and below the prefix. */
static uint64_t hash_of_path(const struct us *us, const char *path)
{
	const char *prefix = us_pattern_prefix(us->pattern);
	const char *below = path + strlen(prefix) + (prefix[1] ? 1 : 0);
	return us_path_hash_of(&us_state_info(us->state)->key, below);
}

/* Whether KEY is an object's of ours; then run->path is its database. */
static int is_ours(struct us_sweep_run *run, const char *key, size_t key_len)
{
	size_t prefix_len;
	uint32_t time_s;
	return us_object_key_parse(key, key_len, &prefix_len, &time_s) &&
	       us_template_path(run->us->tmpl, key, prefix_len, run->path, NULL) >= 0;
}

static void delete_batch(struct us_sweep_run *run)
{
	struct batch *batch = &run->batch;
	struct us_store *store = run->us->store;
	if (batch->count == 0) {
		return;
	}
	struct us_error err = US_ERROR_INIT;
	size_t removed = 0;
	int32_t rc = us_owner_check(run->us->owner, &err);
	rc = rc ? rc : store->ops->remove_many(store, batch->keys, batch->count, &removed, &err);
	run->deleted += removed;
	/* Which ones are left after a failure is not known: their share is near enough. */
	run->deleted_len += removed == batch->count ? batch->objects_len
						    : batch->objects_len / batch->count * removed;
	run->delete_failures = rc ? run->delete_failures + 1 : 0;
	if (rc && rc != US_E_CANCELED && !run->delete_err.code) {
		run->delete_err = err;
	}
	if (rc == US_E_ACCESS || rc == US_E_OWNED || run->delete_failures == DELETE_FAILURES_MAX) {
		run->may_delete = 0;
	}
	batch->count = batch->text_len = 0;
	batch->objects_len = 0;
}

/* KEY has two newer ones of its database. */
static int32_t on_surplus(void *arg, const char *key, const struct us_backup *backup)
{
	struct us_sweep_run *run = arg;
	struct us *us = run->us;
	struct batch *batch = &run->batch;
	struct us_record record;
	size_t key_len = strlen(key);
	int is_old = run->now_s > backup->time_s && run->now_s - backup->time_s > us->retention_s;
	if (!run->may_delete || !is_old || !is_ours(run, key, key_len)) {
		return 0;
	}
	if (us_table_get(us->table, hash_of_path(us, run->path), &record) &&
	    record.object_time == backup->time_s) {
		return 0; /* the last one that the state knows */
	}
	if (batch->count == US_REMOVE_MANY_MAX || batch->text_len + key_len + 1 > BATCH_TEXT_LEN) {
		delete_batch(run);
	}
	char *copy = batch->text + batch->text_len;
	memcpy(copy, key, key_len + 1);
	batch->text_len += key_len + 1;
	batch->keys[batch->count++] = copy;
	batch->objects_len += backup->object_len;
	return 0;
}

/* ----------------------------------------------------------- reconciliation */

static uint32_t wall_s(void)
{
	return (uint32_t)(us_clock_wall_ns() / US_NS_PER_S);
}

/* As us_record_reconcile. RECORD is locked; what gets marked does not wait for min_interval. */
static int reconcile(struct us_sweep_run *run, struct us_record *record, uint32_t newest_s,
		     uint64_t newest_len, uint64_t object_len)
{
	int verdict = us_record_reconcile(record, newest_s, newest_len, object_len, wall_s());
	if (verdict == 1) {
		us_table_set_stamp(run->us->table, record, 0);
	}
	return verdict;
}

static void judged(struct us_sweep_run *run, uint64_t path_hash, int verdict)
{
	run->reconciled += verdict == 1;
	if (verdict) {
		us_mark_dirty(run->us, path_hash, 0);
	}
}

static int32_t on_database(void *arg, const struct us_catalog_entry *entry)
{
	struct us_sweep_run *run = arg;
	struct us *us = run->us;
	uint64_t path_hash = hash_of_path(us, entry->path);
	struct us_record copy;
	if (!us_table_get(us->table, path_hash, &copy) || copy.flags & US_RECORD_TOUCHED) {
		return 0;
	}
	/* Names too far ahead do not count, unless that is how its last one is called. */
	const struct us_backup *found =
		entry->newest.time_s <= run->limit_s || copy.object_time > run->limit_s
			? &entry->newest
			: &entry->before;
	/* Until the record is touched, it is about the object that COPY is about. */
	uint64_t object_len = us_state_length(run->lengths, &copy);
	int verdict = 0;
	struct us_record *record = us_table_acquire(us->table, path_hash, 0);
	if (!record) {
		return 0;
	}
	if (!(record->flags & US_RECORD_TOUCHED)) {
		record->flags |= US_RECORD_TOUCHED;
		verdict = reconcile(run, record, found->time_s, found->object_len, object_len);
	}
	us_table_release(us->table, path_hash);
	judged(run, path_hash, verdict);
	return 0;
}

/* After a complete listing: what it did not name is not there. */
static int32_t judge_missing(void *arg, struct us_record *record)
{
	struct us_sweep_run *run = arg;
	if (!(record->flags & US_RECORD_TOUCHED)) {
		judged(run, record->path_hash, reconcile(run, record, 0, 0, 0));
	}
	return 0;
}

/* --------------------------------------------------------------- the thread */

static int is_upload_ours(void *arg, const char *key, size_t key_len)
{
	return is_ours(arg, key, key_len);
}

static int32_t sweep(struct us_sweep_run *run)
{
	struct us *us = run->us;
	const struct us_catalog_fns fns = { .database = on_database,
					    .surplus = run->may_delete ? on_surplus : NULL,
					    .arg = run };
	int32_t rc = us_state_lengths_open(us->state, &run->lengths, &run->err);
	if (rc) {
		return rc;
	}
	rc = us_catalog_run(us->store, us->tmpl, NULL, run->limit_s * US_NS_PER_S, run->limit_s,
			    &fns, &us->canceled, &run->found, &run->err);
	if (rc != US_E_CANCELED) {
		delete_batch(run); /* what was listed was listed */
	}
	if (rc) {
		return rc;
	}
	(void)us_table_each(us->table, judge_missing, run); /* it never stops */
	if (!us_owner_check(us->owner, NULL)) {
		(void)us->store->ops->abort_uploads(us->store, us_template_list_prefix(us->tmpl),
						    is_upload_ours, run, &run->aborted,
						    &run->abort_err); /* told when it is over */
	}
	return us->canceled ? us_fail(&run->err, US_E_CANCELED, "canceled") : 0;
}

static void *sweep_main(void *arg)
{
	struct us_sweep_run *run = arg;
	struct us *us = run->us;
	run->rc = sweep(run);
	us_state_lengths_close(run->lengths);
	us->store->ops->counts(us->store, &run->after);
	run->seconds = (double)(us_clock_mono_ns() - run->start_ns) / (double)US_NS_PER_S;
	(void)pthread_mutex_lock(&us->mutex);
	run->over = 1;
	(void)pthread_cond_signal(&us->done);
	(void)pthread_mutex_unlock(&us->mutex);
	return NULL;
}

static int32_t untouch(void *arg, struct us_record *record)
{
	(void)arg;
	record->flags &= (uint8_t)~US_RECORD_TOUCHED;
	return 0;
}

/* Between two cycles: no job is under way. */
static int32_t start(struct us *us, struct us_error *err)
{
	struct us_sweep_run *run = us_alloc_zero(sizeof(*run));
	if (!run) {
		return us_fail_nomem(err);
	}
	int64_t wall_ns = us_clock_wall_ns();
	run->us = us;
	run->is_fresh = !us_state_info(us->state)->target_known;
	run->now_s = (uint32_t)(wall_ns / US_NS_PER_S);
	run->limit_s = run->now_s + NAME_AHEAD_MAX_S;
	run->clock_ahead = us->retention_s != 0 && us->high_water_ns != 0 &&
			   wall_ns - us->high_water_ns > CLOCK_AHEAD_MAX_NS;
	run->may_delete = us->retention_s != 0 && !run->clock_ahead;
	run->err = run->delete_err = run->abort_err = (struct us_error)US_ERROR_INIT;
	us->store->ops->counts(us->store, &run->before);
	(void)us_table_each(us->table, untouch, NULL); /* it never stops */
	run->start_ns = us_clock_mono_ns();
	int32_t rc = us_thread_start(&run->thread, "us-sweep", sweep_main, run, err);
	if (rc) {
		us_free(run);
		return rc;
	}
	us->sweep = run;
	return 0;
}

/* ------------------------------------------------------- what came of a sweep */

static void warn(struct us *us, uint32_t once, const char *stage, const char *what,
		 const struct us_error *why)
{
	struct us_error told = US_ERROR_INIT;
	if (us->sweep_warned & once) {
		return;
	}
	(void)us_fail(&told, US_E_IO, "%s: %s", what, why->message);
	if (us_report_event(us->report, US_EVENT_WARNING, "", stage, told.message)) {
		us->sweep_warned |= once;
	}
}

static void tell(struct us *us, const struct us_sweep_run *run)
{
	if (run->clock_ahead) {
		(void)us_report_event(us->report, US_EVENT_WARNING, "", "sweep",
				      "the clock is more than a year ahead of the last snapshot, "
				      "and not believed: no old backups were removed");
	}
	if (run->delete_err.code) {
		warn(us, 0, "sweep", "old backups cannot be removed", &run->delete_err);
	}
	if (run->abort_err.code && run->abort_err.code != US_E_CANCELED) {
		warn(us, WARNED_ABORT, "sweep", "unfinished uploads in parts cannot be aborted",
		     &run->abort_err);
	} else if (run->rc == 0) {
		us->sweep_warned &= ~WARNED_ABORT;
	}
}

/* A sweep that did not reach its end. */
static void note_failure(struct us *us, int32_t rc, const struct us_error *why)
{
	if (rc == US_E_CANCELED) {
		return; /* by us_cancel: nobody is left to be told */
	}
	us->sweep_retry_ns = us_clock_mono_ns() + RETRY_NS;
	(void)pthread_mutex_lock(&us->mutex);
	us->stats.sweep_failed = 1;
	(void)pthread_mutex_unlock(&us->mutex);
	if (us_state_info(us->state)->target_known) { /* else the cycle says so */
		warn(us, WARNED_LIST, "sweep",
		     "the target cannot be looked through: no old backups are removed, and none "
		     "are missed",
		     why);
	}
}

static void count(struct us *us, const struct us_sweep_run *run)
{
	(void)pthread_mutex_lock(&us->mutex);
	struct us_stats *s = &us->stats;
	s->objects_deleted += run->deleted;
	s->databases_reconciled += run->reconciled;
	s->uploads_aborted += run->aborted;
	if (run->rc == 0) {
		s->sweep_failed = 0;
		s->last_sweep_ns = run->now_s * US_NS_PER_S;
		s->sweep_objects = run->found.ours_count - run->deleted;
		s->sweep_bytes = run->found.ours_len - run->deleted_len;
		s->sweep_list = run->after.list - run->before.list;
		s->sweep_delete = run->after.remove - run->before.remove;
		s->sweep_seconds = run->seconds;
	}
	(void)pthread_mutex_unlock(&us->mutex);
}

/*
 * If the clock stands well before the newest name, it was set back since: what is read
 * now shall not look older than what is there. Snapshot times are at most a window
 * later than names. (Names alone may be some seconds ahead: epochs of states that began
 * in the same second, clocks of other hosts.)
 */
static void raise_floor(struct us *us, uint32_t newest_name_s)
{
	int64_t bound_ns = ((int64_t)newest_name_s + us->window_s + 1) * US_NS_PER_S;
	int64_t ahead_ns = newest_name_s * US_NS_PER_S - us_clock_wall_ns();
	if (ahead_ns > CLOCK_BACK_NS && bound_ns > us->high_water_ns) {
		us->floor_ns = us->high_water_ns = bound_ns;
	}
}

/*
 * What a fresh state learns of the names in the target. Where listing is forbidden
 * (credentials that may only put), the clock has to do. Another failure is the
 * target's: RET_ERR tells, and this cycle uploads nothing.
 */
static int32_t learn(struct us *us, const struct us_sweep_run *run, struct us_error *err)
{
	if (run->rc == US_E_ACCESS) {
		us->list_refused = 1;
		warn(us, WARNED_LIST, "list",
		     strstr(run->err.message, "AccessDenied")
			     ? "the names in the target cannot be looked at (allow s3:ListBucket); "
			       "should the clock be set back, new backups could sort before old "
			       "ones"
			     : "the names in the target cannot be looked at; should the clock be "
			       "set back, new backups could sort before old ones",
		     &run->err);
		return 0;
	}
	if (run->rc) {
		if (err) {
			*err = run->err;
		}
		return run->rc;
	}
	raise_floor(us, run->found.newest_s);
	return us_state_set_target_known(us->state, run->found.newest_s, us->high_water_ns, err);
}

/* Takes over what the sweep has found, if there is one and it is over. Why nothing may be
 * uploaded, or 0. */
static int32_t take_over(struct us *us, struct us_error *err)
{
	struct us_sweep_run *run = us->sweep;
	(void)pthread_mutex_lock(&us->mutex);
	int over = run && run->over;
	(void)pthread_mutex_unlock(&us->mutex);
	if (!over) {
		return 0;
	}
	(void)pthread_join(run->thread, NULL); /* it has said that it is over */
	us->sweep = NULL;
	tell(us, run);
	count(us, run);
	if (run->rc) {
		note_failure(us, run->rc, &run->err);
	} else {
		us->swept_s = run->now_s;
		us->sweep_warned &= ~WARNED_LIST;
	}
	int32_t rc = run->is_fresh ? learn(us, run, err) : 0;
	us_free(run);
	return rc;
}

/* ----------------------------------------------------------------- the cycle */

/* Waits for the sweep's end, at most WAIT_NS. Commits what it marks, as there may be much
 * of it. */
static void wait_for_end(struct us *us, int64_t wait_ns)
{
	int64_t start_ns = us_clock_mono_ns();
	(void)pthread_mutex_lock(&us->mutex);
	while (us->sweep && !us->sweep->over && !us_stopping(us)) {
		int64_t left_ns = wait_ns - (us_clock_mono_ns() - start_ns);
		if (left_ns <= 0) {
			break;
		}
		if (us->dirty_count < US_DIRTY_MAX) {
			(void)us_cond_wait_ns(&us->done, &us->mutex,
					      left_ns < WAIT_STEP_NS ? left_ns : WAIT_STEP_NS);
			continue;
		}
		(void)pthread_mutex_unlock(&us->mutex);
		if (us_commit(us, NULL)) {
			us_clock_sleep_ns(WAIT_STEP_NS); /* the last one of the cycle counts */
		}
		(void)pthread_mutex_lock(&us->mutex);
	}
	(void)pthread_mutex_unlock(&us->mutex);
}

static int is_due(const struct us *us)
{
	int64_t now_s = us_clock_wall_ns() / US_NS_PER_S;
	int due = us->swept_s == 0 || us->swept_s > now_s || now_s - us->swept_s >= INTERVAL_S;
	return due && us_clock_mono_ns() >= us->sweep_retry_ns;
}

int32_t us_sweep_begin(struct us *us, struct us_error *err)
{
	int32_t rc = take_over(us, err);
	int is_fresh = !us_state_info(us->state)->target_known;
	if (!rc && us->sweep && (is_fresh || us->sweep_wanted)) { /* of an earlier cycle */
		wait_for_end(us, WAIT_FOREVER);
		rc = take_over(us, err);
		is_fresh = !us_state_info(us->state)->target_known;
	}
	int is_needed = is_fresh || us->sweep_wanted;
	int wants_one = !rc && !us->sweep && (is_needed || is_due(us));
	if (wants_one && is_needed) {
		us_large_wait(us);
	}
	int is_free = wants_one && !us_large_is_any(us);
	us->large_paused = wants_one && !is_free; /* then the next cycle can */
	if (is_free && !us_stopping(us)) {
		struct us_error why = US_ERROR_INIT;
		is_needed |= atomic_exchange(&us->sweep_wanted, 0) != 0;
		rc = start(us, &why);
		if (rc && !is_fresh) {
			note_failure(us, rc, &why);
			return 0;
		}
		if (rc) {
			return us_fail(err, rc, "%s", why.message);
		}
		wait_for_end(us, is_needed ? WAIT_FOREVER : WAIT_NS);
		rc = take_over(us, err);
	}
	if (rc || us_state_info(us->state)->target_known || !us_stopping(us)) {
		return rc;
	}
	return us_fail(err, US_E_CANCELED, "the target was not looked at yet");
}

void us_sweep_notice(struct us *us)
{
	if (us_state_info(us->state)->target_known) { /* else the next cycle has to know more */
		(void)take_over(us, NULL); /* what a known state's sweep finds stops no upload */
	}
}

void us_sweep_stop(struct us *us)
{
	if (us->sweep) {
		(void)pthread_join(us->sweep->thread, NULL); /* ours, joined once; canceled */
		us_free(us->sweep);
		us->sweep = NULL;
	}
}
