/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One cycle. The walk runs on threads of its own and looks every database up in
 * the table: one hash of the name, one of the stats, no system call beyond the
 * walk's own. What differs becomes a job (pipeline.c), unless its last upload is younger
 * than min_interval: then it stays marked as changed, unread. The caller's thread takes
 * back what the store has finished and commits the records on the way. When the
 * walk is over and no job is left, the table is swept: sums for /stats, and what
 * has been gone for three clean walks is forgotten.
 *
 * Before the walk a sweep of the target begins, if one is due (sweep.c).
 */
#include "fleet.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "../base/thread.h"
#include "../base/tree.h"

#define COMMIT_INTERVAL_NS (5 * US_NS_PER_S)
#define STORE_WAIT_MS 100
#define CLOCK_BACK_NS (600 * US_NS_PER_S)

struct walk {
	struct us *us;
	pthread_t thread;
	uint32_t now_s;
	struct us_walk_result result;
	_Atomic uint64_t changed, waiting;
	_Atomic int64_t callback_ns; /* spent in on_batch */
	_Atomic uint32_t out_of_memory;
	int32_t rc;
	struct us_error err;
	int64_t start_ns;
};

/* One entry of a batch against its record. */
struct seen {
	uint64_t path_hash, fingerprint;
	uint32_t index; /* in the batch */
	uint8_t racy_flags, was_unsynced;
	uint8_t is_early; /* for an upload */
};

/* ------------------------------------------------------------------ walking */

static int32_t start_job(struct walk *walk, const struct us_walk_batch *batch,
			 const struct seen *seen)
{
	const struct us_walk_entry *entry = &batch->entries[seen->index];
	struct us_job *job = us_job_take(walk->us);
	if (!job) {
		if (!us_stopping(walk->us)) {
			walk->out_of_memory = 1;
		}
		return US_E_CANCELED;
	}
	job->path_hash = seen->path_hash;
	job->fingerprint = seen->fingerprint;
	job->racy_flags = seen->racy_flags;
	job->was_unsynced = seen->was_unsynced;
	job->is_early = seen->is_early;
	job->stamp = walk->us->stamp;
	job->inode = entry->db.inode;
	job->floor_ns = walk->us->floor_ns;
	(void)snprintf(job->rel, sizeof(job->rel), "%s%s%s", batch->dir, batch->dir_len ? "/" : "",
		       entry->name);
	int is_carried = walk->us->carries && us_is_large(walk->us, entry->db.len);
	if (is_carried && !us_job_make_large(walk->us, job)) {
		us_job_drop(walk->us, job); /* a later cycle's */
		return 0;
	}
	us_job_queue(walk->us, job);
	return 0;
}

/* Whether min_interval keeps the database of RECORD from being uploaded in this cycle. Not
 * after a failure. */
static int is_early(const struct us *us, const struct us_record *record)
{
	return us->stamps_apart && !us->flushing && us_record_failed_cycles(record) == 0 &&
	       us_stamp_is_early(us_table_stamp(us->table, record), us->stamp, us->stamps_apart);
}

/* What the record says of ENTRY. A US_SEEN_* or US_E_NOMEM. */
static int see(struct walk *walk, const struct us_walk_entry *entry, struct seen *seen)
{
	struct us *us = walk->us;
	struct us_record *record = us_table_acquire(us->table, seen->path_hash, 1);
	if (!record) {
		walk->out_of_memory = 1;
		return US_E_NOMEM;
	}
	int is_new = record->fingerprint == 0 && record->flags == 0;
	if (is_new) {
		record->flags = US_RECORD_TOUCHED; /* no sweep under way knows it */
	}
	if (record->generation == us->generation && !is_new) {
		us_table_release(us->table, seen->path_hash);
		return US_SEEN_UNCHANGED; /* a name that a changing directory gave twice */
	}
	record->generation = us->generation;
	seen->was_unsynced = (record->flags & US_RECORD_UNSYNCED) != 0;
	int what = us_record_see(record, seen->fingerprint, walk->now_s);
	if (what != US_SEEN_UNCHANGED) {
		uint8_t before = what == US_SEEN_RACY ? record->flags : 0;
		seen->racy_flags = us_racy_flags(&entry->db, &entry->wal, entry->clock_ns, before);
		seen->is_early = is_early(us, record) ? 1 : 0;
	}
	us_table_release(us->table, seen->path_hash);
	return what;
}

static void tell_large(struct us *us, const struct us_walk_batch *batch,
		       const struct us_walk_entry *entry, uint64_t path_hash)
{
	char rel[US_PATH_LEN_MAX + 1];
	(void)snprintf(rel, sizeof(rel), "%s%s%s", batch->dir, batch->dir_len ? "/" : "",
		       entry->name);
	us_large_tell(us, path_hash, rel);
}

/* Leaves a changed database to a later cycle. */
static void wait_for_interval(struct walk *walk, const struct seen *seen)
{
	walk->waiting++;
	if (!seen->was_unsynced) {
		us_mark_dirty(walk->us, seen->path_hash,
			      0); /* since when holds through a restart */
	}
}

/* Hashes the entries of BATCH before it looks one up: by then their records have come. */
static void hash_all(struct us *us, const struct us_walk_batch *batch, struct seen *ret_seen)
{
	const struct us_siphash_key *key = &us_state_info(us->state)->key;
	const struct us_siphash_key dir_key = us_path_hash_key(key, batch->dir, batch->dir_len);
	for (size_t i = 0; i < batch->entry_count; i++) {
		const struct us_walk_entry *entry = &batch->entries[i];
		ret_seen[i].path_hash = us_path_hash_name(&dir_key, entry->name, entry->name_len);
		us_table_prefetch(us->table, ret_seen[i].path_hash);
		ret_seen[i].fingerprint = us_fingerprint(key, &entry->db, &entry->wal);
	}
}

/* Looks all entries of BATCH up; RET_SEEN gets those which may need a job. Returns their
 * count, or US_E_NOMEM. */
static int32_t see_all(struct walk *walk, const struct us_walk_batch *batch, struct seen *ret_seen)
{
	uint64_t changed = 0;
	int32_t count = 0;
	hash_all(walk->us, batch, ret_seen);
	for (uint32_t i = 0; i < batch->entry_count; i++) {
		struct seen seen = ret_seen[i];
		seen.index = i;
		int what = see(walk, &batch->entries[i], &seen);
		if (what < 0) {
			return what;
		}
		changed += what == US_SEEN_CHANGED;
		if (what == US_SEEN_CHANGED && seen.is_early) {
			wait_for_interval(walk, &seen);
		} else if (what != US_SEEN_UNCHANGED) {
			ret_seen[count++] = seen;
		}
	}
	walk->changed += changed;
	return count;
}

static int32_t on_batch(void *arg, uint32_t thread, const struct us_walk_batch *batch)
{
	struct walk *walk = arg;
	struct us *us = walk->us;
	struct seen seen[US_WALK_BATCH_MAX];
	(void)thread;
	int64_t start_ns = us_clock_mono_ns();
	int32_t count = see_all(walk, batch, seen);
	int64_t seen_ns = us_clock_mono_ns();
	us->stage_ns[US_STAGE_TRACK] += seen_ns - start_ns;
	int32_t rc = count < 0 ? US_E_CANCELED : 0;
	for (int32_t i = 0; i < count && !rc; i++) {
		if (us->large_live > 0 && us_large_is_live(us, seen[i].path_hash)) {
			tell_large(us, batch, &batch->entries[seen[i].index], seen[i].path_hash);
		} else {
			rc = start_job(walk, batch, &seen[i]);
		}
	}
	int64_t end_ns = count > 0 ? us_clock_mono_ns() : seen_ns;
	us_jobs_flush(us, end_ns);
	walk->callback_ns += end_ns - start_ns;
	return us_stopping(us) ? US_E_CANCELED : rc;
}

static void on_failure(void *arg, uint32_t thread, const char *path, const struct us_error *err)
{
	struct walk *walk = arg;
	struct us *us = walk->us;
	char escaped[US_PATH_TEXT_LEN];
	(void)thread;
	size_t len = us_escape(path, strlen(path), escaped, sizeof(escaped) - 1);
	escaped[len < sizeof(escaped) ? len : sizeof(escaped) - 1] = '\0';
	uint64_t hash = us_path_hash(&us_state_info(us->state)->key, "", 0, path, strlen(path));
	us_report_walk_failure(us->report, escaped, err->message, hash, us_clock_wall_ns());
}

static void *walk_main(void *arg)
{
	struct walk *walk = arg;
	struct us *us = walk->us;
	const struct us_walk_fns fns = { .batch = on_batch, .failure = on_failure, .arg = walk };
	walk->rc = us_walk(us->pattern, us->prefix_fd, us_walk_threads(), &fns, &us->walk_stop,
			   &walk->result, &walk->err);
	us->stage_ns[US_STAGE_WALK] += walk->result.busy_ns - walk->callback_ns;
	(void)pthread_mutex_lock(&us->mutex);
	us->walk_done = 1;
	us_note_wait(us);
	us->now.scan_seconds = (double)(us_clock_mono_ns() - walk->start_ns) / (double)US_NS_PER_S;
	(void)pthread_cond_broadcast(&us->work);
	(void)pthread_cond_signal(&us->done);
	(void)pthread_mutex_unlock(&us->mutex);
	return NULL;
}

/* ----------------------------------------------------------------- the store */

int32_t us_check_credentials(struct us *us, struct us_error *err)
{
	if (us->target == US_TARGET_S3 && !us->has_credentials) {
		return us_fail(err, US_E_ACCESS,
			       "there are no credentials for the target; set access_key_id "
			       "and secret_access_key, or AWS_ACCESS_KEY_ID and so on in the "
			       "environment");
	}
	if (us->credentials_expire_ns && us_clock_wall_ns() >= us->credentials_expire_ns) {
		return us_fail(err, US_E_ACCESS,
			       "the credentials of the target have expired; new ones were "
			       "not provided");
	}
	return 0;
}

/* Takes back the puts that are finished; waits a little if there are none. */
static void reap(struct us *us)
{
	struct us_put *put = us->store->ops->put_wait(us->store, STORE_WAIT_MS);
	while (put) {
		struct us_put *next = put->next;
		us_job_put_done(us, put->owner);
		put = next;
	}
}

int32_t us_commit(struct us *us, struct us_error *err)
{
	int wanted = us->swept_s != us_state_info(us->state)->last_sweep_s;
	(void)pthread_mutex_lock(&us->mutex);
	struct us_state_change *changes = us->dirty;
	size_t count = us->dirty_count, cap = us->dirty_cap;
	int whole = us->dirty_lost;
	wanted |= count || whole;
	struct us_state_change *spare = us->dirty_spare;
	if (wanted && !spare) {
		spare = us_alloc(cap * sizeof(*spare));
	}
	int64_t high_water_ns = us->high_water_ns;
	if (wanted && spare) {
		us->dirty = spare;
		us->dirty_spare = NULL;
		us->dirty_count = 0;
		us->dirty_lost = 0;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (!wanted || !spare) {
		return wanted ? us_fail_nomem(err) : 0;
	}
	int64_t start_ns = us_clock_mono_ns();
	int32_t rc = us_state_commit(us->state, us->table, changes, count, whole, high_water_ns,
				     us->swept_s, err);
	us->stage_ns[US_STAGE_COMMIT] += us_clock_mono_ns() - start_ns;
	us->commits = us_state_info(us->state)->commits;
	(void)pthread_mutex_lock(&us->mutex);
	if (us->dirty_cap == cap) { /* else these are too few now */
		us->dirty_spare = changes;
		changes = NULL;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	us_free(changes);
	return rc;
}

/* Whether a cycle may end with what is live. Wants the mutex. */
static int may_end(struct us *us)
{
	int is_carried = us->carries && us->large_live > 0 && us->live == us->large_live &&
			 !us_stopping(us) && us_clock_mono_ns() >= us->large_wait_ns;
	return us->live == 0 || is_carried;
}

/* Until the walk is over and no job is left that has to end with the cycle. Commits on the
 * way; if one fails, the next writes everything, and the last one of the cycle counts. */
static void drain(struct us *us)
{
	int64_t committed_ns = us_clock_mono_ns();
	for (;;) {
		(void)pthread_mutex_lock(&us->mutex);
		int over = us->walk_done && us->deferred.count == 0 && may_end(us);
		if (!over && us->putting == 0 && us->dirty_count < US_DIRTY_MAX) {
			(void)us_cond_wait_ns(&us->done, &us->mutex,
					      us->large_live > 0 ? STORE_WAIT_MS * US_NS_PER_MS
								 : COMMIT_INTERVAL_NS);
		}
		int putting = us->putting > 0;
		int due = us->dirty_count >= US_DIRTY_MAX ||
			  (us->dirty_count > 0 &&
			   us_clock_mono_ns() - committed_ns > COMMIT_INTERVAL_NS);
		(void)pthread_mutex_unlock(&us->mutex);
		if (over) {
			return;
		}
		if (putting) {
			reap(us);
		}
		if (due) {
			struct us_error err = US_ERROR_INIT;
			if (us_commit(us, &err)) {
				us_clock_sleep_ns(STORE_WAIT_MS *
						  US_NS_PER_MS); /* it will be tried again */
			}
			committed_ns = us_clock_mono_ns();
		}
	}
}

void us_large_wait(struct us *us)
{
	for (int live = 1; live && !us_stopping(us);) {
		(void)pthread_mutex_lock(&us->mutex);
		live = us->live > 0;
		int putting = us->putting > 0;
		if (live && !putting) {
			(void)us_cond_wait_ns(&us->done, &us->mutex, STORE_WAIT_MS * US_NS_PER_MS);
		}
		(void)pthread_mutex_unlock(&us->mutex);
		if (putting) {
			reap(us);
		}
	}
}

void us_puts_end(struct us *us)
{
	while (us->putting > 0) {
		reap(us);
	}
}

/* ---------------------------------------------------------------- the cycle */

/* The clock that never runs back, in seconds. */
static uint32_t now_s(const struct us *us)
{
	int64_t wall_ns = us_clock_wall_ns();
	return (uint32_t)((wall_ns > us->floor_ns ? wall_ns : us->floor_ns) / US_NS_PER_S);
}

static void on_gone(void *arg, uint64_t path_hash)
{
	struct us *us = arg;
	us_mark_dirty(us, path_hash, 0);
}

static double stage_seconds(const struct us *us, enum us_stage stage)
{
	return (double)(us->stage_ns[stage] - us->stage_begin_ns[stage]) / (double)US_NS_PER_S;
}

static void publish(struct us *us, const struct walk *walk, const struct us_table_sums *sums,
		    int64_t start_wall_ns)
{
	struct us_store_counts counts;
	us->store->ops->counts(us->store, &counts);
	us_report_publish(us->report);
	(void)pthread_mutex_lock(&us->mutex);
	struct us_stats *s = &us->stats;
	s->cycles++;
	s->last_scan_ns = start_wall_ns;
	s->databases = walk->result.database_count;
	s->changed_last_cycle = walk->changed;
	s->unsynced = sums->unsynced;
	s->oldest_unsynced_ns = sums->oldest_unsynced_s * US_NS_PER_S;
	s->databases_failed = sums->failed;
	s->databases_empty = sums->empty;
	s->not_databases = sums->not_databases;
	s->databases_gone += sums->gone;
	s->walk_failures = walk->result.failure_count;
	s->scan_seconds = us->now.scan_seconds;
	s->cycle_seconds = us->now.cycle_seconds;
	s->api_put = counts.put;
	s->api_get = counts.get;
	s->api_list = counts.list;
	s->api_delete = counts.remove;
	s->target_unreachable = us->target_down != 0;
	s->walk_seconds = stage_seconds(us, US_STAGE_WALK);
	s->track_seconds = stage_seconds(us, US_STAGE_TRACK);
	s->read_seconds = stage_seconds(us, US_STAGE_READ);
	s->encode_seconds = stage_seconds(us, US_STAGE_ENCODE);
	s->upload_wait_seconds = stage_seconds(us, US_STAGE_UPLOAD_WAIT);
	s->commit_seconds = stage_seconds(us, US_STAGE_COMMIT);
	us->published = *s;
	(void)pthread_mutex_unlock(&us->mutex);
}

/* Snapshot times never run back: while the clock does, all are but a moment later than
 * the last one, and those of one window replace each other. */
static void warn_of_clock(struct us *us)
{
	int64_t back_ns = us->floor_ns - us_clock_wall_ns();
	if (back_ns < CLOCK_BACK_NS) {
		us->clock_warned = 0;
	} else if (!us->clock_warned) {
		struct us_error told = US_ERROR_INIT;
		(void)us_fail(&told, US_E_BUSY,
			      "the clock is %lld minutes behind the last snapshot: until it has "
			      "caught up, "
			      "points in time between cannot be told apart",
			      (long long)(back_ns / (60 * US_NS_PER_S)));
		us->clock_warned =
			us_report_event(us->report, US_EVENT_WARNING, "", "clock", told.message);
	}
}

static void begin(struct us *us, int prefix_fd)
{
	us->prefix_fd = prefix_fd;
	us->generation++;
	us->stamp = us_stamp(us_clock_boot_ns());
	us->floor_ns = us->high_water_ns;
	us_report_begin(us->report);
	warn_of_clock(us);
	(void)pthread_mutex_lock(&us->mutex);
	us->walk_done = 0;
	us_note_wait(us);
	us->patience_end_ns = 0;
	us->target_down = 0;
	us->network_failures = 0;
	memset(&us->now, 0, sizeof(us->now));
	for (int i = 0; i < US_STAGE_COUNT; i++) {
		us->stage_begin_ns[i] = us->stage_ns[i];
	}
	(void)pthread_mutex_unlock(&us->mutex);
}

/* Everything after the walk has started, up to the last commit. */
static int32_t finish(struct us *us, struct walk *walk, int64_t start_wall_ns, struct us_error *err)
{
	drain(us);
	(void)pthread_join(walk->thread, NULL); /* it has said that it is done */
	int interrupted = us_stopping(us);
	int whole = walk->rc == 0 && !interrupted;
	struct us_table_sums sums;
	/* No database at all looks like a disk that is not mounted: nothing is forgotten. */
	int clean = whole && walk->result.failure_count == 0 && walk->result.database_count > 0;
	us_table_sweep(us->table, us->generation, clean, now_s(us), on_gone, us, &sums);
	if (us->list_refused && us->now.uploaded > 0 && !us_state_info(us->state)->target_known) {
		/* It may put but not list. If this fails, it is tried again. */
		(void)us_state_set_target_known(us->state, 0, us->high_water_ns, NULL);
	}
	struct us_error commit_err = US_ERROR_INIT;
	us_sweep_notice(us);
	int32_t commit_rc = us_commit(us, &commit_err);
	us_jobs_trim(us);
	us->now.interrupted = interrupted != 0;
	us->now.databases = walk->result.database_count;
	us->now.changed = walk->changed;
	(void)pthread_mutex_lock(&us->mutex); /* a large one may be found to wait now */
	us->now.waiting += walk->waiting;
	(void)pthread_mutex_unlock(&us->mutex);
	us->now.gone = sums.gone;
	us->now.walk_failures = walk->result.failure_count;
	us->now.cycle_seconds = (double)(us_clock_mono_ns() - walk->start_ns) / (double)US_NS_PER_S;
	if (us->canceled) {
		return us_fail(err, US_E_CANCELED, "canceled");
	}
	if (walk->out_of_memory) {
		return us_fail_nomem(err);
	}
	if (!whole && walk->rc != US_E_CANCELED) {
		*err = walk->err;
		return walk->rc;
	}
	if (whole) {
		publish(us, walk, &sums, start_wall_ns);
	}
	if (commit_rc) {
		*err = commit_err;
	}
	return commit_rc;
}

/* 0, or why nothing may be uploaded: asks whose the target is, and what it holds. */
static int32_t ask_target(struct us *us, struct us_error *err)
{
	int32_t rc = us_check_credentials(us, err);
	if (!rc) {
		rc = us_owner_begin(us->owner, err);
	}
	if (!rc && us_owner_has_news(us->owner)) {
		rc = us_state_forget_target(us->state, err);
		if (!rc) {
			us_owner_take_news(us->owner);
		}
	}
	return rc ? rc : us_sweep_begin(us, err);
}

int32_t us_cycle_run(struct us *us, struct us_error *err)
{
	struct us_error target_err = US_ERROR_INIT;
	us->finishing = 0;
	us->walk_stop = us->canceled;
	int32_t gone = us_state_check(us->state, err);
	if (gone) {
		return gone;
	}
	int prefix_fd = us_walk_open(us->pattern, us->flags & US_OPEN_ANY_FILESYSTEM, err);
	if (prefix_fd < 0) {
		return prefix_fd;
	}
	us_foreign_refresh(us);
	begin(us, prefix_fd);
	int32_t rc = ask_target(us, &target_err);
	if (rc == US_E_STATE || rc == US_E_NOMEM) {
		us->generation--; /* no walk: no database has been missing once more */
		*err = target_err;
		goto out;
	}
	if (rc && rc != US_E_CANCELED) {
		us_give_up_on_target(us, &target_err);
	}
	int64_t start_wall_ns = us_clock_wall_ns(); /* of the scan */
	struct walk walk = { .us = us,
			     .err = US_ERROR_INIT,
			     .start_ns = us_clock_mono_ns(),
			     .now_s = (uint32_t)(start_wall_ns / US_NS_PER_S) };
	rc = us_thread_start(&walk.thread, "us-walk", walk_main, &walk, err);
	if (rc) {
		us->generation--;
	} else {
		rc = finish(us, &walk, start_wall_ns, err);
	}
out:
	us->prefix_fd = -1;
	(void)close(prefix_fd); /* only read from */
	return rc;
}
