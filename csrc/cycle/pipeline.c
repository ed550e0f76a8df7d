/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a changed file to an object in the store, and from its acknowledgement to
 * the record. A job is taken by a walking thread, queued, read and encoded by a
 * worker, handed to the store, and ended by the cycle's thread when the store
 * gives it back; jobs that need no upload are ended by the worker.
 *
 * Bounds: at most job_max jobs and US_LARGE_MAX large ones outside the deferred list (the
 * walk waits for a free one), at most DEFERRED_MAX in it, at most staged_max bytes of
 * objects in memory (workers wait; objects beyond a quarter of that are in spool files).
 * Waiting cannot deadlock: what holds budget or a job is in the store, which
 * always gives it back.
 *
 * A file that is changing or too young is not waited for: its job is deferred
 * until all others are read, and only then read with patience, so that one hot
 * database delays nobody.
 *
 * Nor does a large one, which can take minutes to read and to send: one worker is kept
 * free of them, and (us_carry) a cycle ends without those that are still under way. Such
 * a job has a descriptor of the prefix of its own and depends on nothing of its cycle; it
 * is known by its path hash, so that later cycles do not begin a second one, and ends in
 * whatever cycle is running then. From the second cycle on its database counts as failed.
 * No sweep begins while one is live (sweep.c): none is begun while one is due.
 *
 * Locks: us->mutex, then nothing. A table shard is locked alone. Neither is held
 * across I/O.
 */
#include "fleet.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/escape.h"
#include "../base/hex.h"
#include "../base/thread.h"

#define DEFERRED_MAX 512
/* So many jobs, and buffers, stay allocated between cycles: twice as many as two of the last
 * US_PEAKS used (a first sync is one), but at least and at most these. */
#define JOBS_KEPT_MIN 32
#define JOBS_KEPT_MAX US_SPARES_MAX
/* A walk that has had to wait goes on when so many jobs are free, and not for each: to wake
 * it costs more than to fill one. Less than job_max. */
#define ROOM_STEP 32
/* Likewise for a worker: so many queued jobs, or the first one so long. */
#define QUEUED_STEP 8
#define QUEUED_WAIT_NS US_NS_PER_MS
/* A large database is longer, and its object goes to a spool file. */
#define LARGE_LEN_MIN (UINT64_C(64) << 20)
/* A cycle that has begun large ones gives them so long to end with it. */
#define LARGE_WAIT_NS (2 * US_NS_PER_S)
/* Failures of the network in a row after which a cycle gives up on the target. */
#define NETWORK_FAILURES_MAX 20
#define STAGE_UPLOAD "upload"
/* How a job is read: at once or not at all, with patience, or once more at once. */
#define PATIENCE_NONE 0
#define PATIENCE_FULL 1
#define PATIENCE_OVER 2
#define PATIENCE_NS (5 * US_NS_PER_S)

/* --------------------------------------------------------------------- jobs */

static void list_push(struct us_job_list *list, struct us_job *job)
{
	job->next = NULL;
	if (!list->last) {
		list->last = &list->first;
	}
	*list->last = job;
	list->last = &job->next;
	list->count++;
}

static struct us_job *list_pop(struct us_job_list *list)
{
	struct us_job *job = list->first;
	if (job) {
		list->first = job->next;
		list->count--;
		if (!list->first) {
			list->last = &list->first;
		}
	}
	return job;
}

static void free_jobs(struct us_job_list *list)
{
	struct us_job *job;
	while ((job = list_pop(list)) != NULL) {
		us_object_done(&job->object);
		us_free(job);
	}
}

/* Wants the mutex. */
static size_t small_live(const struct us *us)
{
	return us->live - us->large_live;
}

int us_stopping(struct us *us)
{
	return us->canceled || us->finishing;
}

struct us_job *us_job_take(struct us *us)
{
	(void)pthread_mutex_lock(&us->mutex);
	while (small_live(us) >= us->job_max && !us_stopping(us)) {
		(void)pthread_cond_broadcast(&us->work); /* what is queued makes room */
		us->room_waiters++;
		(void)pthread_cond_wait(&us->room, &us->mutex);
		us->room_waiters--;
	}
	struct us_job *job = NULL;
	if (!us_stopping(us)) {
		job = list_pop(&us->unused);
		if (!job) {
			job = us_alloc_zero(sizeof(*job));
		}
	}
	if (job) {
		us->live++;
		us->live_peak = us->live > us->live_peak ? us->live : us->live_peak;
		job->is_large = 0;
		job->object.fd = -1;
		job->patience = PATIENCE_NONE;
		job->staged_bytes = 0;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return job;
}

void us_job_queue(struct us *us, struct us_job *job)
{
	(void)pthread_mutex_lock(&us->mutex);
	list_push(job->is_large ? &us->queued_large : &us->queued, job);
	if (us->queued.count == 1) {
		us->queued_since_ns = us_clock_mono_ns();
	}
	if (job->is_large || us->queued.count >= QUEUED_STEP) {
		(void)pthread_cond_signal(&us->work);
	}
	(void)pthread_mutex_unlock(&us->mutex);
}

void us_jobs_flush(struct us *us, int64_t now_ns)
{
	int64_t since_ns = us->queued_since_ns;
	if (since_ns == 0 || now_ns - since_ns < QUEUED_WAIT_NS) {
		return;
	}
	(void)pthread_mutex_lock(&us->mutex);
	us->queued_since_ns = 0;
	(void)pthread_cond_signal(&us->work);
	(void)pthread_mutex_unlock(&us->mutex);
}

void us_note_wait(struct us *us)
{
	int64_t now_ns = us_clock_mono_ns();
	if (us->waits) {
		us->stage_ns[US_STAGE_UPLOAD_WAIT] += now_ns - us->wait_ns;
	}
	us->waits = us->walk_done && us->putting > 0 && us->live == us->putting;
	us->wait_ns = now_ns;
}

/* A job has left the pipeline. Wants the mutex. */
static void leave(struct us *us)
{
	us->live--;
	us_note_wait(us);
	if (us->room_waiters > 0 && small_live(us) + ROOM_STEP <= us->job_max) {
		(void)pthread_cond_signal(&us->room);
	}
	if (us->walk_done && us->deferred.count > 0) {
		(void)pthread_cond_signal(&us->work);
	}
	if (us->live == us->large_live) {
		(void)pthread_cond_signal(&us->done);
	}
}

/* Gives back all but KEEP_LEN bytes of the staging budget. Wants the mutex. */
static void give_back(struct us *us, struct us_job *job, uint64_t keep_len)
{
	us->staged -= job->staged_bytes - keep_len;
	job->staged_bytes = keep_len;
	if (us->budget_waiters > 0) {
		(void)pthread_cond_broadcast(&us->budget);
	}
}

/* Wants the mutex. */
static void forget_large(struct us *us, uint64_t path_hash)
{
	size_t i = 0;
	while (us->large[i] != path_hash) {
		i++;
	}
	us->large[i] = us->large[--us->large_live];
}

static void job_free(struct us *us, struct us_job *job)
{
	struct us_object object = job->object;
	job->object = (struct us_object){ .fd = -1 };
	if (job->is_large) {
		(void)close(job->prefix_fd); /* a directory */
	}
	(void)pthread_mutex_lock(&us->mutex);
	if (object.cap == US_SPARE_LEN && us->spare_count < US_SPARES_MAX) {
		us->spares[us->spare_count++] = object.data;
		object.data = NULL;
	}
	give_back(us, job, 0);
	if (job->is_large) {
		forget_large(us, job->path_hash);
	}
	list_push(&us->unused, job);
	leave(us);
	(void)pthread_mutex_unlock(&us->mutex);
	us_object_done(&object);
}

int us_is_large(const struct us *us, uint64_t db_len)
{
	return db_len >= LARGE_LEN_MIN && us_encode_bound(db_len) > us->staged_max / 4;
}

int us_job_make_large(struct us *us, struct us_job *job)
{
	int fd = fcntl(us->prefix_fd, F_DUPFD_CLOEXEC, 0);
	(void)pthread_mutex_lock(&us->mutex);
	int fits = fd >= 0 && us->large_live < US_LARGE_MAX && !us->large_paused;
	if (fits) {
		us->large[us->large_live++] = job->path_hash;
		us->large_wait_ns = us_clock_mono_ns() + LARGE_WAIT_NS;
		job->is_large = 1;
		job->prefix_fd = fd;
		job->patience = PATIENCE_FULL; /* nobody waits for it */
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (fits) {
		return 1;
	}
	if (fd >= 0) {
		(void)close(fd); /* a directory */
	}
	return 0;
}

void us_job_drop(struct us *us, struct us_job *job)
{
	job_free(us, job);
}

int us_large_is_any(struct us *us)
{
	(void)pthread_mutex_lock(&us->mutex);
	int any = us->large_live > 0;
	(void)pthread_mutex_unlock(&us->mutex);
	return any;
}

int us_large_is_live(struct us *us, uint64_t path_hash)
{
	int found = 0;
	(void)pthread_mutex_lock(&us->mutex);
	for (size_t i = 0; i < us->large_live && !found; i++) {
		found = us->large[i] == path_hash;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return found;
}

void us_jobs_trim(struct us *us)
{
	struct us_job_list surplus = { 0 };
	(void)pthread_mutex_lock(&us->mutex);
	size_t most = JOBS_KEPT_MIN / 2, keep = most; /* the second most */
	us->peaks[us->generation % US_PEAKS] = us->live_peak;
	for (int i = 0; i < US_PEAKS; i++) {
		size_t peak = us->peaks[i];
		keep = peak >= most ? most : peak > keep ? peak : keep;
		most = peak > most ? peak : most;
	}
	keep = 2 * keep < JOBS_KEPT_MAX ? 2 * keep : JOBS_KEPT_MAX;
	us->live_peak = us->live;
	while (us->unused.count > keep) {
		list_push(&surplus, list_pop(&us->unused));
	}
	while (us->spare_count > keep) {
		us_free(us->spares[--us->spare_count]);
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (surplus.count > 0) {
		free_jobs(&surplus);
		(void)malloc_trim(0); /* 1: something went back to the system */
	}
}

/*
 * Puts JOB aside until everything else is read. Returns NULL, or the job for which there
 * is no room then. In the order of the path hashes, from the one on whose turn it is: those
 * which never succeed do not always use up the patience of a cycle.
 */
static struct us_job *job_defer(struct us *us, struct us_job *job)
{
	struct us_job_list *list = &us->deferred;
	struct us_job **at = &list->first;
	(void)pthread_mutex_lock(&us->mutex);
	while (*at && (*at)->path_hash - us->turn <= job->path_hash - us->turn) {
		at = &(*at)->next;
	}
	job->next = *at;
	*at = job;
	list->count++;
	struct us_job *surplus = NULL;
	if (list->count > DEFERRED_MAX) {
		for (at = &list->first; (*at)->next;) {
			at = &(*at)->next;
		}
		surplus = *at; /* stays live, in place of JOB */
		*at = NULL;
		list->count--;
	} else {
		leave(us);
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return surplus;
}

/* Waiting for busy databases makes a cycle longer for all: at most PATIENCE_NS of it.
 * Wants the mutex. */
static int patience_left(struct us *us)
{
	int64_t now_ns = us_clock_mono_ns();
	if (us->patience_end_ns == 0) {
		us->patience_end_ns = now_ns + PATIENCE_NS;
	}
	return now_ns < us->patience_end_ns;
}

/* The next job to read: a queued one, else, once the walk is done, a deferred one. Before W
 * waits for one it closes the directory that it keeps open. */
static struct us_job *next_job(struct us_worker *w)
{
	struct us *us = w->us;
	struct us_job *job = NULL;
	int rests = 0;
	(void)pthread_mutex_lock(&us->mutex);
	for (;;) {
		job = list_pop(&us->queued);
		if (!job && us->large_reading + 1 < us->worker_count) {
			job = list_pop(&us->queued_large);
			us->large_reading += job != NULL;
		}
		if (!job && us->walk_done && small_live(us) < us->job_max) {
			job = list_pop(&us->deferred);
			if (job) {
				us->live++;
				job->patience = patience_left(us) ? PATIENCE_FULL : PATIENCE_OVER;
				if (job->patience == PATIENCE_FULL) {
					us->turn = job->path_hash + 1;
				}
			}
		}
		if (job || us->closing) {
			break;
		}
		if (!rests) {
			(void)pthread_mutex_unlock(&us->mutex);
			us_reader_forget(w->reader);
			rests = 1;
			(void)pthread_mutex_lock(&us->mutex);
			continue;
		}
		(void)pthread_cond_wait(&us->work, &us->mutex);
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return job;
}

/* ------------------------------------------------------------------ results */

void us_mark_dirty(struct us *us, uint64_t path_hash, uint64_t object_len)
{
	(void)pthread_mutex_lock(&us->mutex);
	if (us->dirty_count == us->dirty_cap) {
		size_t cap = us_size_mul(us->dirty_cap, 2);
		struct us_state_change *dirty =
			us_realloc(us->dirty, us_size_mul(cap, sizeof(*dirty)));
		if (!dirty) {
			us->dirty_lost = 1; /* the next commit writes everything */
			(void)pthread_mutex_unlock(&us->mutex);
			return;
		}
		us->dirty = dirty;
		us->dirty_cap = cap;
		us_free(us->dirty_spare);
		us->dirty_spare = NULL;
	}
	us->dirty[us->dirty_count++] =
		(struct us_state_change){ .path_hash = path_hash, .object_len = object_len };
	if (us->dirty_count == US_DIRTY_MAX) {
		(void)pthread_cond_signal(&us->done);
	}
	(void)pthread_mutex_unlock(&us->mutex);
}

/* The absolute path of JOB, escaped, into RET (US_PATH_TEXT_LEN). */
static void escaped_path(const struct us *us, const struct us_job *job, char *ret)
{
	const char *prefix = us_pattern_prefix(us->pattern);
	char path[US_PATH_LEN_MAX + 2];
	int len = snprintf(path, sizeof(path), "%s%s%s", prefix, prefix[1] ? "/" : "", job->rel);
	size_t path_len = len < (int)sizeof(path) ? (size_t)len : sizeof(path) - 1;
	size_t escaped_len = us_escape(path, path_len, ret, US_PATH_TEXT_LEN - 1);
	ret[escaped_len < US_PATH_TEXT_LEN ? escaped_len : US_PATH_TEXT_LEN - 1] = '\0';
}

/* Tells the log once about a failure (or, KIND, another finding). */
static int tell(struct us *us, const struct us_job *job, uint32_t kind, const char *stage,
		const char *message)
{
	char path[US_PATH_TEXT_LEN];
	escaped_path(us, job, path);
	return us_report_event(us->report, kind, path, stage, message);
}

static void note_failure(struct us *us, int upload)
{
	(void)pthread_mutex_lock(&us->mutex);
	us->now.failed++;
	us->stats.uploads_failed += upload != 0;
	(void)pthread_mutex_unlock(&us->mutex);
}

/* TOLD: the log has this failure already, for the target as a whole. */
static void job_fail_as(struct us *us, struct us_job *job, const char *stage,
			const struct us_error *why, int told)
{
	struct us_record *record = us_table_acquire(us->table, job->path_hash, 1);
	if (!record) {
		job_free(us, job); /* out of memory: still changed, the next cycle's */
		return;
	}
	int is_first = us_record_failed_cycles(record) == 0;
	uint32_t since_s = record->flags & US_RECORD_UNSYNCED
				   ? us_record_since_s(record)
				   : (uint32_t)(us_clock_wall_ns() / US_NS_PER_S);
	uint32_t cycles = us_record_failed_cycles(record) + 1;
	int reported = record->flags & US_RECORD_REPORTED;
	us_record_set_unsynced(record, since_s, cycles);
	us_table_release(us->table, job->path_hash);

	char path[US_PATH_TEXT_LEN];
	escaped_path(us, job, path);
	us_report_failure(us->report, path, stage, why->message, cycles, since_s * US_NS_PER_S);
	if (!reported && !told &&
	    us_report_event(us->report, US_EVENT_FAILED, path, stage, why->message)) {
		record = us_table_acquire(us->table, job->path_hash, 0);
		if (record) {
			record->flags |= US_RECORD_REPORTED;
			us_table_release(us->table, job->path_hash);
		}
	}
	if (is_first) {
		us_mark_dirty(us, job->path_hash, 0);
	}
	note_failure(us, strcmp(stage, STAGE_UPLOAD) == 0);
	job_free(us, job);
}

void us_large_tell(struct us *us, uint64_t path_hash, const char *rel)
{
	struct us_job job = { .path_hash = path_hash };
	(void)snprintf(job.rel, sizeof(job.rel), "%s", rel);
	struct us_record *record = us_table_acquire(us->table, path_hash, 0);
	if (!record || !(record->flags & US_RECORD_UNSYNCED)) { /* it has just come to its end */
		us_table_release(us->table, path_hash);
		return;
	}
	uint32_t cycles = us_record_failed_cycles(record) + 1, since_s = us_record_since_s(record);
	us_record_set_unsynced(record, since_s, cycles);
	us_table_release(us->table, path_hash);
	char path[US_PATH_TEXT_LEN];
	escaped_path(us, &job, path);
	us_report_failure(us->report, path, STAGE_UPLOAD,
			  "it is large, and its backup has not come to its end yet", cycles,
			  since_s * US_NS_PER_S);
	note_failure(us, 0);
}

static void job_fail(struct us *us, struct us_job *job, const char *stage,
		     const struct us_error *why)
{
	job_fail_as(us, job, stage, why, 0);
}

/* Records that the target has what these stats describe. 0: it has not, if JOB was not
 * UPLOADED and a sweep has meanwhile found that its object is not there. */
static int record_synced(struct us *us, struct us_job *job, int uploaded)
{
	const struct us_image_info *info = &job->info;
	uint64_t fingerprint =
		us_fingerprint(&us_state_info(us->state)->key, &info->db, &info->wal);
	struct us_record *record = us_table_acquire(us->table, job->path_hash, 1);
	if (!record) {
		return 1; /* out of memory: it will be read and sent once more */
	}
	if (!uploaded && record->content_hash != job->content_hash) {
		us_table_release(us->table, job->path_hash);
		return 0;
	}
	int recovered = record->flags & US_RECORD_REPORTED;
	int is_first = uploaded && record->object_count == 0;
	uint8_t before = record->fingerprint == fingerprint ? record->flags : 0;
	if (record->flags & US_RECORD_UNSYNCED) {
		before = 0;
	}
	record->fingerprint = fingerprint;
	record->flags = us_racy_flags(&info->db, &info->wal, info->clock_ns, before) |
			(uint8_t)(record->flags & US_RECORD_TOUCHED);
	if (uploaded) {
		record->content_hash = job->content_hash;
		record->object_time = job->object_time;
		/* With 1 the next one does not take this one's name, under which the first
		 * of two may still arrive. */
		int is_settled = record->object_count > 0 && !job->put.sent_twice;
		record->object_count = is_settled ? 2 : 1;
		record->size_class = us_size_class(info->image_len);
		us_table_set_stamp(us->table, record, job->stamp);
	}
	us_table_release(us->table, job->path_hash);
	us_mark_dirty(us, job->path_hash, uploaded ? job->put.len : 0);
	if (recovered) {
		(void)tell(us, job, US_EVENT_RECOVERED, "",
			   ""); /* a full queue loses a good news only */
	}
	if (is_first) {
		(void)pthread_mutex_lock(&us->mutex);
		us->stats.uploads_first++;
		(void)pthread_mutex_unlock(&us->mutex);
	}
	return 1;
}

static void job_unchanged(struct us *us, struct us_job *job)
{
	if (record_synced(us, job, 0)) {
		(void)pthread_mutex_lock(&us->mutex);
		us->now.unchanged++;
		us->stats.uploads_skipped_unchanged++;
		(void)pthread_mutex_unlock(&us->mutex);
	}
	job_free(us, job);
}

/*
 * The file is empty, or no database. If the target has a good image of it, that
 * is a failure (its backups are never replaced by this), else a fact to remember.
 */
static void job_not_database(struct us *us, struct us_job *job, int32_t code,
			     const struct us_error *why)
{
	struct us_record *record = us_table_acquire(us->table, job->path_hash, 1);
	if (record && record->object_count != 0) {
		us_table_release(us->table, job->path_hash);
		struct us_error err = US_ERROR_INIT;
		(void)us_fail(&err, code, "%s; it was a database, its backups are kept as they are",
			      why->message);
		job_fail(us, job, "read", &err);
		return;
	}
	if (record) {
		uint8_t kind = code == US_E_EMPTY ? US_RECORD_EMPTY : US_RECORD_NOT_DATABASE;
		int is_new = !(record->flags & kind);
		record->fingerprint = job->fingerprint;
		record->flags =
			kind | job->racy_flags | (uint8_t)(record->flags & US_RECORD_TOUCHED);
		us_table_release(us->table, job->path_hash);
		us_mark_dirty(us, job->path_hash, 0);
		if (is_new && kind == US_RECORD_NOT_DATABASE) {
			(void)tell(us, job, US_EVENT_NOT_DATABASE, "read",
				   why->message); /* counted anyway */
		}
	}
	job_free(us, job);
}

void us_give_up_on_target(struct us *us, const struct us_error *why)
{
	(void)pthread_mutex_lock(&us->mutex);
	int first = !us->target_down;
	if (first) {
		us->target_down = 1;
		us->target_error = *why;
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (first) {
		(void)us_report_event(us->report, US_EVENT_UNREACHABLE, "", STAGE_UPLOAD,
				      why->message);
	}
}

int us_is_refused_for_all(const struct us_error *err)
{
	static const char *const codes[] = { "SignatureDoesNotMatch", "InvalidAccessKeyId",
					     "ExpiredToken", "RequestTimeTooSkewed",
					     "NoSuchBucket" };
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		if (err->http_status != 0 && strstr(err->message, codes[i])) {
			return 1;
		}
	}
	return 0;
}

void us_job_put_done(struct us *us, struct us_job *job)
{
	int32_t rc = job->put.rc;
	int unreachable = rc == US_E_NETWORK || rc == US_E_TIMEOUT ||
			  (rc && us_is_refused_for_all(&job->put.err));
	(void)pthread_mutex_lock(&us->mutex);
	us->putting--;
	us_note_wait(us);
	us->network_failures = unreachable ? us->network_failures + 1 : 0;
	int give_up = us->network_failures >= NETWORK_FAILURES_MAX;
	if (rc == 0) {
		us->now.uploaded++;
		us->now.bytes_uploaded += job->put.len;
		us->stats.uploads_success++;
		us->stats.bytes_uploaded += job->put.len;
		if (job->info.snapshot_ns > us->high_water_ns) {
			us->high_water_ns = job->info.snapshot_ns;
		}
	}
	(void)pthread_mutex_unlock(&us->mutex);
	if (give_up) {
		us_give_up_on_target(us, &job->put.err);
	}
	if (rc != 0) {
		us_mark_dirty(us, job->path_hash, 0); /* its content hash is not known any more */
	}
	if (rc == 0) {
		(void)record_synced(us, job, 1); /* always 1 */
		job_free(us, job);
	} else if (rc == US_E_CANCELED) {
		job_free(us, job);
	} else {
		job_fail(us, job, STAGE_UPLOAD, &job->put.err);
	}
}

/* ------------------------------------------------------------------ reading */

/* Waits until LEN bytes of the staging budget are JOB's. RET_SPARE, if it is not NULL, gets a
 * buffer that was used before, or NULL. */
static int32_t stage_bytes(struct us *us, struct us_job *job, uint64_t len, uint8_t **ret_spare,
			   struct us_error *err)
{
	(void)pthread_mutex_lock(&us->mutex);
	give_back(us, job, 0); /* of a try before */
	while (us->staged + len > us->staged_max && !us->canceled) {
		us->budget_waiters++;
		(void)pthread_cond_wait(&us->budget, &us->mutex);
		us->budget_waiters--;
	}
	int canceled = us->canceled != 0;
	if (!canceled) {
		us->staged += len;
		job->staged_bytes = len;
		if (ret_spare && us->spare_count > 0) {
			*ret_spare = us->spares[--us->spare_count];
		}
	}
	(void)pthread_mutex_unlock(&us->mutex);
	return canceled ? us_fail(err, US_E_CANCELED, "canceled") : 0;
}

static void unstage_bytes(struct us *us, struct us_job *job, uint64_t keep_len)
{
	(void)pthread_mutex_lock(&us->mutex);
	give_back(us, job, keep_len);
	(void)pthread_mutex_unlock(&us->mutex);
}

/* Lets the next object be made in SPARE, or (NULL) in a buffer that will be used again. */
static int32_t use_spare(struct us_worker *w, uint8_t *spare, struct us_error *err)
{
	spare = spare ? spare : us_alloc(US_SPARE_LEN);
	if (!spare) {
		return us_fail_nomem(err);
	}
	us_encoder_use(w->encoder, spare, US_SPARE_LEN);
	return 0;
}

static int32_t begin_image(void *arg, const struct us_image_info *info, struct us_error *err)
{
	struct us_worker *w = arg;
	struct us *us = w->us;
	uint64_t bound = us_encode_bound(info->image_len);
	int to_file = bound > us->staged_max / 4;
	int is_small = bound <= US_SPARE_LEN;
	bound = is_small ? US_SPARE_LEN : bound;
	w->failed_stage = "encode";
	int64_t start_ns = us_clock_mono_ns();
	uint8_t *spare = NULL;
	int32_t rc = stage_bytes(us, w->job, to_file ? 0 : bound, is_small ? &spare : NULL, err);
	w->room_ns += us_clock_mono_ns() - start_ns;
	if (!rc && is_small) {
		rc = use_spare(w, spare, err);
	}
	if (!rc) {
		rc = us_encoder_begin(w->encoder, info->image_len, to_file, err);
	}
	if (!rc) {
		w->failed_stage = NULL;
	}
	return rc;
}

static int32_t write_image(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct us_worker *w = arg;
	if (w->us->canceled) {
		return us_fail(err, US_E_CANCELED, "canceled");
	}
	int64_t start_ns = us_clock_mono_ns();
	int32_t rc = us_encoder_write(w->encoder, data, data_len, err);
	w->encode_ns += us_clock_mono_ns() - start_ns;
	if (rc) {
		w->failed_stage = "encode";
	}
	return rc;
}

static int32_t encode_end(struct us_worker *w, struct us_error *err)
{
	struct us_job *job = w->job;
	const struct us_image_info *info = &job->info;
	w->trailer.snapshot_ns = info->snapshot_ns;
	w->trailer.database_len = info->image_len;
	w->trailer.page_size = info->page_size;
	w->trailer.change_counter = info->change_counter;
	w->trailer.mode = info->mode;
	w->trailer.uid = info->uid;
	w->trailer.gid = info->gid;
	int64_t start_ns = us_clock_mono_ns();
	int32_t rc = us_encoder_end(w->encoder, &w->trailer, &job->object, err);
	w->encode_ns += us_clock_mono_ns() - start_ns;
	if (!rc) {
		uint64_t kept_len = job->object.cap ? job->object.cap : job->object.len;
		unstage_bytes(w->us, job, job->object.data ? kept_len : 0);
		job->content_hash =
			us_content_hash(job->object.lz4_sha256, info->mode, info->uid, info->gid);
	}
	return rc;
}

/* Not in the target yet, though nothing has failed. */
static void keep_changed(struct us *us, const struct us_job *job)
{
	struct us_record *record = us_table_acquire(us->table, job->path_hash, 0);
	if (record) {
		if (!(record->flags & US_RECORD_UNSYNCED)) {
			us_record_set_unsynced(record, (uint32_t)(us_clock_wall_ns() / US_NS_PER_S),
					       0);
		}
		us_table_release(us->table, job->path_hash);
	}
}

/* A look has found a change, but no upload is due yet. */
static void job_wait(struct us *us, struct us_job *job)
{
	keep_changed(us, job);
	us_mark_dirty(us, job->path_hash, 0); /* since when holds through a restart */
	(void)pthread_mutex_lock(&us->mutex);
	us->now.waiting++;
	(void)pthread_mutex_unlock(&us->mutex);
	job_free(us, job);
}

/*
 * The time in the name of JOB's object, 0 if there is none now. Until it is acknowledged,
 * nobody knows which content the target has; its name is used up in any case, as it may
 * still arrive. Under one lock, as a sweep may correct the record's last name; from now on
 * it does not.
 */
static uint32_t name_object(struct us *us, struct us_job *job)
{
	struct us_record *record = us_table_acquire(us->table, job->path_hash, 1);
	if (!record) {
		return 0; /* out of memory: still changed */
	}
	/* Only in the cycle that has found the change: after a kill names are ahead of the
	 * clock, and two cycles can begin within a second. */
	uint32_t may_wait_s = job->was_unsynced ? 0 : (uint32_t)(us_clock_wall_ns() / US_NS_PER_S);
	uint32_t time_s = us_object_time_next(
		record, job->info.image_len, us->window_s, us_state_info(us->state)->epoch_s,
		(uint32_t)(job->info.snapshot_ns / US_NS_PER_S), may_wait_s);
	if (time_s != 0) {
		record->content_hash = 0;
		record->object_time = time_s;
		record->flags |= US_RECORD_TOUCHED;
	}
	us_table_release(us->table, job->path_hash);
	return time_s;
}

/* Names the object and gives it to the store, if the target is still ours. */
static void send(struct us *us, struct us_job *job)
{
	struct us_error err = US_ERROR_INIT;
	if (us_owner_check(us->owner, &err)) {
		us_give_up_on_target(us, &err);
		job_fail_as(us, job, STAGE_UPLOAD, &err, 1);
		return;
	}
	job->object_time = name_object(us, job);
	if (job->object_time == 0) {
		keep_changed(us, job); /* the next cycle has another second */
		job_free(us, job);
		return;
	}
	char time[US_TIME_NAME_LEN + 1];
	us_time_name_format(job->object_time, time);
	size_t len = strlen(job->key);
	(void)snprintf(job->key + len, sizeof(job->key) - len, "/%s.db.lz4", time);
	job->put = (struct us_put){
		.key = job->key,
		.data = job->object.data,
		.fd = job->object.fd,
		.len = job->object.len,
		.owner = job,
		.err = US_ERROR_INIT,
	};
	memcpy(job->put.sha256, job->object.sha256, sizeof(job->put.sha256));
	us_time_rfc3339_format(job->info.snapshot_ns, job->put.snapshot_time);
	us_hex(job->object.lz4_sha256, sizeof(job->object.lz4_sha256), job->put.lz4_sha256);
	(void)pthread_mutex_lock(&us->mutex);
	if (us->putting++ == 0) {
		(void)pthread_cond_signal(&us->done);
	}
	us_note_wait(us);
	(void)pthread_mutex_unlock(&us->mutex);
	us->store->ops->put_start(us->store, &job->put);
}

static void read_failed(struct us_worker *w, int32_t rc, const struct us_error *err)
{
	struct us *us = w->us;
	struct us_job *job = w->job;
	unstage_bytes(us, job, 0);
	us_encoder_drop(w->encoder);
	if (rc == US_E_BUSY && job->patience == PATIENCE_NONE) {
		job->put.err = *err;
		job = job_defer(us, job);
		if (job) {
			job_fail(us, job, "read", &job->put.err);
		}
		return;
	}
	if (rc == US_E_CANCELED || (rc == US_E_NOTFOUND && !job->was_unsynced)) {
		/* Gone or replaced since the walk: the next one sees what is there. If that
		 * was so before, it fails. */
		job_free(us, job);
	} else if (rc == US_E_EMPTY || rc == US_E_NOTDB) {
		job_not_database(us, job, rc, err);
	} else {
		job_fail(us, job, w->failed_stage ? w->failed_stage : "read", err);
	}
}

/* Where JOB is: its absolute path, key and escaped path. 0 or the failure. */
static int32_t locate(struct us_worker *w, struct us_error *err)
{
	const char *prefix = us_pattern_prefix(w->us->pattern);
	int len = snprintf(w->path, sizeof(w->path), "%s%s%s", prefix, prefix[1] ? "/" : "",
			   w->job->rel);
	if (len >= (int)sizeof(w->path)) {
		return us_fail(err, US_E_NAME, "path of %d bytes is longer than %d", len,
			       US_PATH_LEN_MAX);
	}
	int32_t rc = us_template_key(w->us->tmpl, w->path, (size_t)len, w->job->key, err);
	if (rc < 0) {
		return rc;
	}
	size_t escaped_len =
		us_escape(w->path, (size_t)len, w->trailer.path, US_TRAILER_PATH_LEN_MAX);
	w->trailer.path[escaped_len] = '\0';
	return 0;
}

/* Reads the image through SINK, which encodes it meanwhile. */
static int32_t read_timed(struct us_worker *w, const struct us_read_source *source,
			  const struct us_image_sink *sink, struct us_error *err)
{
	w->encode_ns = w->room_ns = 0;
	int64_t start_ns = us_clock_mono_ns();
	int32_t rc = us_read_image(w->reader, source, sink, &w->job->info, err);
	w->us->stage_ns[US_STAGE_READ] += us_clock_mono_ns() - start_ns - w->encode_ns - w->room_ns;
	return rc;
}

static void process(struct us_worker *w)
{
	struct us *us = w->us;
	struct us_job *job = w->job;
	struct us_error err = US_ERROR_INIT;
	if (us_stopping(us)) {
		job_free(us, job);
		return;
	}
	if (us->target_down) {
		(void)pthread_mutex_lock(&us->mutex);
		err = us->target_error;
		(void)pthread_mutex_unlock(&us->mutex);
		job_fail_as(us, job, STAGE_UPLOAD, &err, 1);
		return;
	}
	if (locate(w, &err)) {
		job_fail(us, job, "key", &err);
		return;
	}
	const struct us_read_source source = {
		.prefix_fd = job->is_large ? job->prefix_fd : us->prefix_fd,
		.rel = job->rel,
		.display = w->trailer.path,
		.inode = job->inode,
		.is_foreign = us->has_foreign ? us_foreign_has : NULL,
		.arg = us,
		.patient = job->patience == PATIENCE_FULL,
		.keeps_dir = !job->is_large,
	};
	const struct us_image_sink sink = { .begin = begin_image, .write = write_image, .arg = w };
	w->failed_stage = NULL;
	int32_t rc = read_timed(w, &source, &sink, &err);
	if (rc) {
		read_failed(w, rc, &err);
		return;
	}
	if (job->info.snapshot_ns <= job->floor_ns) {
		job->info.snapshot_ns = job->floor_ns + 1;
	}
	rc = encode_end(w, &err);
	us->stage_ns[US_STAGE_ENCODE] += w->encode_ns;
	if (rc) {
		us_encoder_drop(w->encoder);
		job_fail(us, job, "encode", &err);
		return;
	}
	struct us_record record = { 0 };
	if (us_table_get(us->table, job->path_hash, &record) &&
	    record.content_hash == job->content_hash) { /* which is never 0 */
		job_unchanged(us, job);
		return;
	}
	if (job->is_early && !us->flushing) {
		job_wait(us, job);
		return;
	}
	send(us, job);
}

static void *worker_main(void *arg)
{
	struct us_worker *w = arg;
	struct us *us = w->us;
	while ((w->job = next_job(w)) != NULL) {
		int is_large = w->job->is_large;
		process(w);
		if (is_large) { /* and the next one's cycle may be another */
			us_reader_forget(w->reader);
			(void)pthread_mutex_lock(&us->mutex);
			us->large_reading--;
			(void)pthread_cond_signal(&us->work);
			(void)pthread_mutex_unlock(&us->mutex);
		}
	}
	return NULL;
}

int32_t us_workers_start(struct us *us, struct us_error *err)
{
	/* Half of the memory limit is for staged objects, a quarter for the readers. */
	uint64_t scratch = us->memory_limit / 4 / us->worker_count;
	size_t scratch_len = scratch < 1 << 20 ? 1 << 20 : (size_t)scratch;
	for (uint32_t i = 0; i < us->worker_count; i++) {
		struct us_worker *w = &us->workers[i];
		w->us = us;
		int32_t rc = us_reader_new(scratch_len, us->spool_fd, &w->reader, err);
		if (!rc) {
			rc = us_encoder_new(us->spool_fd, &w->encoder, err);
		}
		if (!rc) {
			rc = us_thread_start(&w->thread, "us-read", worker_main, w, err);
		}
		if (rc) {
			return rc;
		}
		w->started = 1;
	}
	return 0;
}

void us_workers_stop(struct us *us)
{
	(void)pthread_mutex_lock(&us->mutex);
	us->closing = 1;
	(void)pthread_cond_broadcast(&us->work);
	(void)pthread_cond_broadcast(&us->budget);
	(void)pthread_mutex_unlock(&us->mutex);
	for (uint32_t i = 0; i < us->worker_count; i++) {
		struct us_worker *w = &us->workers[i];
		if (w->started) {
			(void)pthread_join(w->thread, NULL); /* ours, joined once */
		}
		us_reader_free(w->reader);
		us_encoder_free(w->encoder);
	}
}

void us_jobs_free(struct us *us)
{
	free_jobs(&us->queued);
	free_jobs(&us->queued_large);
	free_jobs(&us->deferred);
	free_jobs(&us->unused);
	while (us->spare_count > 0) {
		us_free(us->spares[--us->spare_count]);
	}
}
