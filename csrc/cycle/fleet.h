/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CYCLE_FLEET_H
#define US_CYCLE_FLEET_H

#include <pthread.h>

#include "../discover/template.h"
#include "../discover/walk.h"
#include "../encode/encode.h"
#include "../read/image.h"
#include "../store/store.h"
#include "../track/state.h"
#include "owner.h"
#include "report.h"

/*
 * Everything an open handle has. api.c makes and frees it; the files of this
 * room work on it.
 */

#define US_READERS_MAX 16
#define US_LARGE_MAX 64 /* large databases under way at a time, where cycles end without them */

/* Objects that fit in US_SPARE_LEN are made in buffers that are used again. */
#define US_SPARE_LEN ((size_t)64 * 1024)
#define US_SPARES_MAX 192
#define US_PEAKS 8 /* cycles whose needs are remembered, see us_jobs_trim */

/* A file that other parts of this process have open: never opened here. */
struct us_foreign {
	char *path;
	struct {
		uint64_t device, inode; /* 0: it does not exist */
	} files[2]; /* the database, its -shm */
};

/* One changed database on its way through a cycle. */
struct us_job {
	struct us_job *next;
	uint64_t path_hash;
	uint64_t fingerprint; /* as the walk saw it: recorded where nothing is read */
	uint64_t inode;
	uint64_t staged_bytes; /* of the budget */
	uint32_t object_time;
	uint8_t racy_flags;	 /* of the walk's stats */
	uint8_t patience;	 /* PATIENCE_*: whether reading it may wait */
	uint8_t was_unsynced;	 /* before this cycle */
	uint8_t is_large;	 /* may outlast its cycle */
	uint8_t is_early;	 /* for an upload: it is only looked at */
	uint32_t stamp;		 /* of the cycle that has begun it */
	int prefix_fd;		 /* of a large one its own */
	int64_t floor_ns;	 /* its snapshot time is later */
	struct us_image_info info;
	uint64_t content_hash;
	struct us_object object;
	struct us_put put;
	char rel[US_PATH_LEN_MAX + 1]; /* below the prefix */
	char key[US_KEY_LEN_MAX + 1];
};

/* Where time goes: us_stats says what each is. */
enum us_stage {
	US_STAGE_WALK,
	US_STAGE_TRACK,
	US_STAGE_READ,
	US_STAGE_ENCODE,
	US_STAGE_UPLOAD_WAIT,
	US_STAGE_COMMIT,
	US_STAGE_COUNT
};

struct us_job_list {
	struct us_job *first, **last;
	size_t count;
};

/* A reader thread and its scratch. */
struct us_worker {
	struct us *us;
	pthread_t thread;
	int started;
	struct us_reader *reader;
	struct us_encoder *encoder;
	struct us_job *job;	   /* being read */
	const char *failed_stage;  /* where the sink stopped a read; NULL: it did not */
	int64_t encode_ns, room_ns; /* of this job: encoding, waiting for the budget */
	struct us_trailer trailer; /* its path is the escaped path of the job */
	char path[US_PATH_LEN_MAX + 1];
};

struct us {
	/* Fixed after us_open. */
	uint32_t flags;
	uint32_t target;
	uint32_t window_s;
	uint64_t retention_s; /* 0: everything stays */
	uint32_t stamps_apart; /* of two uploads of a database */
	uint32_t concurrency;
	uint64_t memory_limit;
	struct us_pattern *pattern;
	struct us_template *tmpl;
	char *template_text;
	char *state_dir;
	int default_state_dir;
	char *identity; /* of the target, for the state file */
	int spool_fd;
	struct us_store *store;
	struct us_table *table;
	struct us_state *state; /* NULL: read-only and there is none, for this reason: */
	struct us_error state_error;
	struct us_report *report;
	struct us_owner *owner; /* NULL: read-only */

	_Atomic uint32_t canceled;
	_Atomic uint32_t finishing;
	_Atomic uint32_t walk_stop; /* either of them, for the walk */
	_Atomic uint32_t has_foreign;
	_Atomic uint32_t sweep_wanted; /* us_sweep was called */
	_Atomic uint32_t carries;      /* cycles do not wait for large databases (us_carry) */
	_Atomic uint32_t flushing;     /* us_flush was called */
	_Atomic int large_paused;      /* none begins: a sweep waits for their end */
	_Atomic int64_t commits;       /* of the state, for the owner's thread */
	_Atomic int64_t stage_ns[US_STAGE_COUNT]; /* since us_open */

	/* The cycle under way; set while no worker has a job but large ones, which do not look
	 * at them. */
	int prefix_fd;
	uint8_t generation;
	uint32_t stamp;	  /* of its start */
	int64_t floor_ns; /* snapshot times of this cycle are later */
	int64_t stage_begin_ns[US_STAGE_COUNT]; /* as of its start */

	pthread_mutex_t mutex; /* guards all below; never held across I/O */
	pthread_cond_t work;   /* for workers: a job, or the end */
	pthread_cond_t room;   /* for the walk: a job is free */
	pthread_cond_t budget; /* for workers: bytes of the staging budget are free */
	pthread_cond_t done;   /* for the cycle: something is finished */
	struct us_worker workers[US_READERS_MAX];
	uint32_t worker_count;
	int closing;
	struct us_job_list queued, queued_large, deferred, unused;
	_Atomic int64_t queued_since_ns; /* monotonic; the first of these, 0: a worker was woken */
	size_t job_max;		   /* of live ones that are not large */
	size_t live;		   /* queued, being read, or in the store */
	size_t live_peak;	   /* most of them in this cycle, ... */
	size_t peaks[US_PEAKS];	   /* ... and in those before */
	_Atomic size_t large_live; /* of these, large */
	uint32_t large_reading;	   /* by so many workers */
	uint64_t large[US_LARGE_MAX]; /* path hashes of those */
	int64_t large_wait_ns; /* monotonic: until then a cycle waits for large ones, too */
	size_t putting;		   /* in the store */
	int waits;		   /* nothing is left to do but to wait for these, ... */
	int64_t wait_ns;	   /* ... as far as is booked until then (monotonic) */
	uint64_t staged, staged_max;
	uint8_t *spares[US_SPARES_MAX]; /* buffers for small objects, US_SPARE_LEN bytes each */
	size_t spare_count;
	uint32_t room_waiters, budget_waiters; /* nobody is woken for nothing */
	int walk_done;
	int64_t patience_end_ns; /* monotonic; 0: not begun */
	uint64_t turn; /* path hash from which on deferred ones are read: next to the last one */
	uint32_t network_failures; /* in a row */
	_Atomic int target_down; /* the cycle has given up on the target */
	struct us_error target_error;
	struct us_state_change *dirty; /* records that are to be committed */
	struct us_state_change *dirty_spare; /* for the next ones, of dirty_cap; may be NULL */
	size_t dirty_count, dirty_cap;
	int dirty_lost; /* one could not be noted */
	int64_t high_water_ns;
	_Atomic int64_t credentials_expire_ns;
	_Atomic uint32_t has_credentials;
	int list_refused; /* the credentials may not list */
	int clock_warned;
	/* The cycle's thread alone, but for what sweep.c says. */
	struct us_sweep_run *sweep; /* the sweep under way, or over and not noticed yet */
	int64_t swept_s;	    /* start of the last complete one, by the wall clock; 0: none */
	int64_t sweep_retry_ns;	    /* monotonic; a due one waits for it after a failure */
	uint32_t sweep_warned;	    /* of what the log was told, see sweep.c */
	struct us_foreign *foreign;
	size_t foreign_count;
	struct us_cycle_result now;   /* of the cycle under way */
	struct us_stats stats;	      /* running totals */
	struct us_stats published;    /* what us_stats gives */
};

#define US_DIRTY_MAX 1000 /* records per commit while a cycle runs */

/* pipeline.c: jobs and the threads that read. */
int32_t us_workers_start(struct us *us, struct us_error *err);
void us_workers_stop(struct us *us);
void us_jobs_free(struct us *us); /* at the end, once the store has given all back */
/* A job to fill; waits for one. NULL: the cycle is ending (or US_E_NOMEM). */
struct us_job *us_job_take(struct us *us);
/* A worker is woken for several: whoever queues calls us_jobs_flush from time to time, until
 * walk_done. */
void us_job_queue(struct us *us, struct us_job *job);
void us_jobs_flush(struct us *us, int64_t now_ns);
/* Books the time in which nothing was left to do but to wait for the target. After whatever
 * may begin or end that; wants the mutex. */
void us_note_wait(struct us *us);
/* Gives back what an earlier cycle has taken from the heap for more jobs than this one had. */
void us_jobs_trim(struct us *us);
/* Ends JOB, whose put has come back. */
void us_job_put_done(struct us *us, struct us_job *job);
/* Whether a database of DB_LEN bytes goes through the spool and may take long. */
int us_is_large(const struct us *us, uint64_t db_len);
/* Makes JOB, which is not queued yet, one that may outlast its cycle. 0: it stays as it
 * is, too many are under way. */
int us_job_make_large(struct us *us, struct us_job *job);
/* Ends JOB, which is not queued yet: its database stays changed. */
void us_job_drop(struct us *us, struct us_job *job);
int us_large_is_any(struct us *us);
/* Whether the large database of PATH_HASH is under way. */
int us_large_is_live(struct us *us, uint64_t path_hash);
/* Counts the database at REL below the prefix, which an earlier cycle has begun, as failed. */
void us_large_tell(struct us *us, uint64_t path_hash, const char *rel);

/* The record has to be committed. OBJECT_LEN: of its object that was just acknowledged,
 * else 0. */
void us_mark_dirty(struct us *us, uint64_t path_hash, uint64_t object_len);
/* This cycle sends nothing more: every further job fails for this reason. */
void us_give_up_on_target(struct us *us, const struct us_error *why);
/* Whether the target's answer is about the credentials or the bucket, so that it would be
 * the same for every key. */
int us_is_refused_for_all(const struct us_error *err);

/* foreign.c: files of this process that are not ours. */
int32_t us_foreign_add(struct us *us, const char *path, struct us_error *err);
void us_foreign_refresh(struct us *us); /* looks again which files they are */
int us_foreign_has(void *us, uint64_t device, uint64_t inode);
void us_foreign_free(struct us *us);

/*
 * sweep.c: the target against retention and records, on a thread of its own.
 *
 * us_sweep_begin, before the walk: starts a sweep if one is due, wanted or needed (a state
 * that has not seen the target's names). Waits for the end of one that is wanted or needed,
 * else a moment; us_finish and us_cancel end the waiting. Returns 0, or why nothing may be
 * uploaded in this cycle; US_E_STATE and US_E_NOMEM: why there can be none.
 * us_sweep_notice, at a cycle's end: takes over what a sweep that is over has found.
 * us_sweep_stop, after us_cancel: joins. The cycle's thread only.
 */
int32_t us_sweep_begin(struct us *us, struct us_error *err);
void us_sweep_notice(struct us *us);
void us_sweep_stop(struct us *us);

/* cycle.c, plan.c */
int32_t us_cycle_run(struct us *us, struct us_error *err);
/* Takes back what is in the store until nothing is live, or (us_finish, us_cancel) until it
 * shall end. */
void us_large_wait(struct us *us);
/* After us_cancel, once no worker runs: takes back what is in the store. */
void us_puts_end(struct us *us);
/* Commits the dirty records. After a failure the next commit writes everything. */
int32_t us_commit(struct us *us, struct us_error *err);
int us_stopping(struct us *us);
/* 0, or why nothing can be sent: there are none, or they have expired. */
int32_t us_check_credentials(struct us *us, struct us_error *err);
int32_t us_plan_run(struct us *us, struct us_plan *ret_plan, struct us_sample *samples,
		    size_t capacity, size_t *ret_count, struct us_error *err);

#endif
