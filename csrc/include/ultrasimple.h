/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libultrasimple: backs up very many SQLite databases from one process.
 *
 * A handle (struct us) joins a discovery pattern, a target (an S3 bucket or a
 * directory) and a state directory. us_cycle() makes one pass: it walks the
 * files, sees what changed, reads a consistent image of each changed database
 * without disturbing its application, and puts it in the target. What fails is
 * still changed, so the next cycle retries it. us_restore() brings one back.
 *
 * Conventions, for every function:
 *
 *   returns    0 or a count on success, a negative US_E_* otherwise. Values are
 *              fixed forever.
 *   errors     `err` may be NULL. Set err->struct_size = sizeof(struct us_error)
 *              before the call. Its message names the thing, the value and what
 *              would be right; it never holds a secret. Other outputs are
 *              untouched on failure.
 *   structs    begin with `struct_size` where the caller fills them: set it to
 *              sizeof. A longer struct than the library knows is accepted only if
 *              its unknown tail is zero. Zero (or NULL) means default. Fields are
 *              appended, never moved. `reserved` must be zero.
 *   strings    NUL-terminated bytes. Borrowed for the call unless stated.
 *   paths      in results (us_failure, us_event, us_sample) are escaped as in
 *              trailers: valid UTF-8, bytes outside it, control bytes, `%` and `\`
 *              as %XX.
 *   threads    one owner per handle: any thread may use it, not two at once,
 *              except where a function says "any time". C never calls back.
 *   times      ns since 1970-01-01 UTC, by the library's clock, which never runs
 *              backwards; 0 means never.
 */
#ifndef ULTRASIMPLE_H
#define ULTRASIMPLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define US_API __attribute__((visibility("default")))
#else
#define US_API
#endif

/* Raised when something is added (low 16 bits) or changed (high 16 bits). */
#define US_ABI_VERSION 0x00010003u

/* The version the library was built with; any time. Callers compare it with
 * US_ABI_VERSION: the high 16 bits must be equal, the low ones at least as high. */
US_API uint32_t us_abi_version(void);

/* ------------------------------------------------------------------ errors */

#define US_OK 0
#define US_E_NOMEM (-1)	       /* out of memory */
#define US_E_ARG (-2)	       /* a caller's error: NULL, range, struct_size, wrong state */
#define US_E_CONFIG (-3)       /* a configured value that cannot work */
#define US_E_IO (-4)	       /* a system call failed; see sys_errno */
#define US_E_NOTFOUND (-5)     /* no such file, database, object or backup */
#define US_E_EXISTS (-6)       /* something is in the place where a result would go */
#define US_E_BUSY (-7)	       /* locked or changing; later is fine */
#define US_E_NOTDB (-8)	       /* not an SQLite database */
#define US_E_EMPTY (-9)	       /* zero-length file */
#define US_E_CORRUPT (-10)     /* a database whose file cannot be whole */
#define US_E_NAME (-11)	       /* a path that gives no legal key */
#define US_E_ACCESS (-12)      /* permission denied, by the system or the target */
#define US_E_NETWORK (-13)     /* the target cannot be reached */
#define US_E_TIMEOUT (-14)     /* no progress */
#define US_E_HTTP (-15)	       /* the target answered with an error; see http_status */
#define US_E_OBJECT (-16)      /* a backup that is damaged */
#define US_E_CANCELED (-17)    /* us_cancel */
#define US_E_LOCKED (-18)      /* another process holds the state directory */
#define US_E_NOSPACE (-19)     /* no space left, or the spool's reserve reached */
#define US_E_STATE (-20)       /* the state file failed; see sqlite_rc */
#define US_E_UNSUPPORTED (-21) /* not by this build or this target */
#define US_E_OWNED (-22)       /* another replicator has the target */

#define US_ERROR_MESSAGE_LEN 1000

struct us_error {
	uint32_t struct_size;
	int32_t code;	     /* US_E_* */
	int32_t sys_errno;   /* errno of the failed system call, or 0 */
	int32_t http_status; /* 100..599, or 0 */
	int32_t sqlite_rc;   /* SQLite result code, or 0 */
	uint32_t retryable;  /* 1: the same call may succeed later */
	char message[US_ERROR_MESSAGE_LEN];
};

/* Short text of a code ("busy"), never NULL; static storage; any time. */
US_API const char *us_strerror(int32_t code);

/* ------------------------------------------------------------------ opening */

struct us; /* one configured fleet */

#define US_TARGET_S3 1u
#define US_TARGET_FILE 2u

#define US_OPEN_READ_ONLY 1u	      /* no lock, no state written, no us_cycle */
#define US_OPEN_ANY_FILESYSTEM 2u     /* allow_any_filesystem */
#define US_OPEN_S3_PATH_STYLE 4u      /* endpoint/bucket/key instead of bucket.endpoint/key */
#define US_OPEN_S3_SKIP_VERIFY 8u     /* accept any TLS certificate */

struct us_options {
	uint32_t struct_size;
	uint32_t flags;		       /* US_OPEN_* */
	const char *discovery_pattern; /* required; DESIGN.md section 2 */
	const char *path;	       /* required: the path template */
	const char *hostname;	       /* value of {{hostname}}; NULL: the template must not use it */
	const char *state_dir; /* NULL or "": <wildcard-free prefix>/.litestream-multi-db */
	uint32_t target;       /* US_TARGET_* */
	uint32_t max_concurrent_uploads; /* 1..1000; 0: 100 for S3, 8 for a directory */
	uint64_t memory_limit_bytes;	 /* at least 16 MB (16,000,000); 0: 256,000,000 */
	uint32_t snapshot_window_s;	 /* 0: keep every upload under its own second */
	uint32_t reserved;
	const char *directory;	/* US_TARGET_FILE: required, absolute */
	const char *s3_endpoint; /* US_TARGET_S3: "http(s)://host[:port]"; NULL or "": AWS */
	const char *s3_region;	 /* NULL or "": us-east-1 */
	const char *s3_bucket;	 /* required */
	const char *s3_storage_class, *s3_sse, *s3_sse_kms_key_id; /* NULL or "": not sent */
	uint64_t retention_s; /* objects older by name go, but the newest two; 0: keep all */
	/* Bytes of objects that all uploads together send in a second, on average over a few
	 * seconds; at least 1,000, or 0: no limit. */
	uint64_t max_upload_bandwidth;
	/* From the start of the cycle that has uploaded a database to that of the next one that
	 * may (100 ms early at most); until then it is not read again and stays unsynced, but has
	 * not failed. Not after a failure, or where a sweep has missed its object. At most a year
	 * of 365 days; 0: every cycle may. */
	uint64_t min_interval_ms;
};

/*
 * Checks everything in OPTIONS that can be checked without touching the disk or
 * the network. US_E_CONFIG with a message "key: ..." for the first fault. Any time.
 */
US_API int32_t us_check(const struct us_options *options, struct us_error *err);

/*
 * Opens a fleet. Copies OPTIONS. Unless US_OPEN_READ_ONLY: creates the state
 * directory (mode 0700), takes its lock, opens or recreates the state file, empties
 * the spool. Checks the file system of the prefix, that neither the state
 * directory nor a target directory lies where the pattern would find its files,
 * and that the target directory does not fold case. Nothing is sent to S3.
 *
 * Returns 0 with *RET_US set (freed with us_close), or US_E_CONFIG, US_E_LOCKED
 * (message names the pid), US_E_ACCESS, US_E_IO, US_E_STATE, US_E_NOMEM, US_E_ARG.
 * A state file that is damaged or belongs to another target is no error: it is
 * replaced, and an event (US_EVENT_STATE_RESET) says so.
 */
US_API int32_t us_open(const struct us_options *options, struct us **ret_us, struct us_error *err);

/* Gives the target back (in a second, and not after us_cancel), cancels, joins every
 * thread, commits the state, wipes the credentials, frees. NULL is accepted. No other call may be under way. */
US_API void us_close(struct us *us);

struct us_credentials {
	uint32_t struct_size;
	uint32_t reserved;
	const char *access_key_id;
	const char *secret_access_key;
	const char *session_token; /* NULL or "": none */
	int64_t expires_ns;	   /* 0: never. Requests are refused here once it has passed */
};

/*
 * Sets the credentials for requests from now on; copied. Any time. US_E_ARG for
 * a target that is no S3. Without any, us_cycle sends nothing; us_restore asks unsigned.
 */
US_API int32_t us_set_credentials(struct us *us, const struct us_credentials *credentials,
				  struct us_error *err);

/*
 * Names a database (absolute path; need not exist) that this process replicates or
 * uses in another way. It, its -shm, and every other name of them are never opened:
 * closing a descriptor would drop the POSIX locks of the whole process. Copied. Any
 * time. US_E_ARG, US_E_NOMEM.
 */
US_API int32_t us_exclude(struct us *us, const char *path, struct us_error *err);

/* Makes what is under way (us_cycle, us_restore, ...) return US_E_CANCELED soon,
 * and every later call but us_close too. Any time, idempotent. */
US_API void us_cancel(struct us *us);

/* Tells a us_cycle under way to start no further work: what is in flight is
 * finished and recorded, then it returns 0. Later cycles are not affected, nor is one
 * that is only about to begin: call it again until us_cycle has returned. Any time. */
US_API void us_finish(struct us *us);

/* ------------------------------------------------------------------- owner */

/*
 * One replicator for one target: who writes there says so in a small object in the target
 * (docs/formats.md), and renews it every ten minutes, on a thread of the handle's.
 * us_cycle asks for the target itself; us_acquire is for who wants to know before.
 */
#define US_ACQUIRE_TAKEOVER 1u /* whoever has it; that one stops within ten minutes. If the
				* target cannot be asked, it is done as soon as it can */

/*
 * Asks for the target, waits at most TIMEOUT_MS (0..1,000,000) for the answer. Returns 0
 * (it is this handle's, or the target refuses owner objects), or US_E_OWNED: another
 * replicator has it, the message names its host, process and start (or says that it is of
 * another version). US_E_TIMEOUT: no answer yet; it is waited for in the background.
 * US_E_ACCESS, US_E_NETWORK, US_E_HTTP, US_E_IO, US_E_BUSY, US_E_EXISTS (others write the
 * object at the same time), US_E_OBJECT (it is too long for one), US_E_NOMEM: the next
 * us_cycle asks again, and uploads nothing before. US_E_CANCELED, US_E_ARG (read-only
 * handle). Any time.
 */
US_API int32_t us_acquire(struct us *us, uint32_t flags, int32_t timeout_ms, struct us_error *err);

/*
 * Gives the target back, if it is this handle's, so that another one need not wait until
 * nothing was heard of this one for half an hour; us_close does so, too, but waits for a
 * second only. No cycle may be under way. Waits at most TIMEOUT_MS (0..1,000,000). 0, or why it could
 * not be written: as of us_acquire. Any time.
 */
US_API int32_t us_release(struct us *us, int32_t timeout_ms, struct us_error *err);

/* ------------------------------------------------------------------- cycles */

/*
 * Makes the next us_cycle begin with a sweep of the target even if none is due, and
 * wait for its end. (One is due a day after the last; us_cycle then starts it and
 * waits for it a little, the rest goes on beside later cycles.) A sweep lists the target
 * once: it removes what retention_s lets go, aborts uploads in parts that nobody will
 * finish, and marks databases whose newest object is not what the state knows, so
 * that they are uploaded again. Any time.
 */
US_API void us_sweep(struct us *us);

/*
 * CARRIES 1: from now on us_cycle does not wait for databases of 64 MiB and more whose
 * objects go through the spool, beyond two seconds. They go on beside later cycles, count
 * as failed from the second one on, and are acknowledged by the one that runs when they
 * end. Then no sweep begins before they have. 0 (so it is at first): each us_cycle ends
 * with all that it has found. Any time.
 */
US_API void us_carry(struct us *us, uint32_t carries);

/*
 * From now on no database waits for min_interval_ms: the next us_cycle uploads all that has
 * changed. For the last one before us_close. Any time.
 */
US_API void us_flush(struct us *us);

struct us_cycle_result {
	uint32_t struct_size; /* set by the caller */
	uint32_t interrupted; /* 1: us_finish ended it before everything was looked at */
	uint64_t databases;   /* matching regular files */
	uint64_t changed;     /* by fingerprint */
	uint64_t uploaded;    /* objects acknowledged */
	uint64_t unchanged;   /* read, but the content is what the target has */
	uint64_t failed;      /* databases whose present state could not be put in the target */
	uint64_t walk_failures; /* directories and files that could not be looked at */
	uint64_t bytes_uploaded;
	uint64_t gone; /* databases forgotten because they have disappeared */
	double scan_seconds, cycle_seconds;
	uint64_t waiting; /* changed, but min_interval_ms have not passed yet */
};

/*
 * One scan and sync; blocks until everything that changed was tried once, but for what
 * min_interval_ms leaves to later cycles. The failure of a database is not a failure of
 * the call: it is counted, and described by us_failures and us_next_events. Returns 0, US_E_CANCELED, US_E_ARG (read-only
 * handle), or what stopped the whole cycle: US_E_NOTFOUND or US_E_ACCESS for the
 * prefix, US_E_STATE, US_E_NOMEM. After a failure the handle stays usable.
 */
US_API int32_t us_cycle(struct us *us, struct us_cycle_result *ret_result, struct us_error *err);

#define US_OWNER_UNKNOWN 0u   /* the target could not be asked (yet), or was given back */
#define US_OWNER_US 1u	      /* this handle may write to it */
#define US_OWNER_OTHER 2u     /* another replicator has it: nothing is written */
#define US_OWNER_UNGUARDED 3u /* it lets nobody write owner objects: a second replicator
			       * would not be noticed */

struct us_stats {
	uint32_t struct_size; /* set by the caller */
	uint32_t reserved;
	uint64_t cycles; /* completed since us_open */
	int64_t last_scan_ns; /* start of the last completed cycle's scan; 0: none yet */
	uint64_t databases, changed_last_cycle;
	/* Objects, since us_open; failed ones include those given up unsent. */
	uint64_t uploads_success, uploads_failed, bytes_uploaded;
	uint64_t uploads_skipped_unchanged; /* since us_open */
	uint64_t unsynced; /* databases whose present state is not in the target */
	int64_t oldest_unsynced_ns; /* when the oldest was first seen changed (whole seconds); 0: none */
	uint64_t databases_failed, databases_empty, not_databases; /* as of the last cycle */
	uint64_t databases_gone; /* since us_open */
	uint64_t walk_failures;	 /* last cycle */
	double scan_seconds, cycle_seconds; /* last cycle */
	uint64_t api_put, api_get, api_list, api_delete; /* requests sent since us_open */
	uint32_t target_unreachable; /* 1: the last cycle gave up on the target */
	uint32_t sweep_failed;	     /* 1: the last sweep that was tried did not reach its end */
	int64_t last_sweep_ns; /* start of the last complete sweep, by the state file; 0: none */
	/* Of the last complete sweep since us_open: */
	uint64_t sweep_objects, sweep_bytes; /* what the target holds of this fleet, afterwards */
	uint64_t sweep_list, sweep_delete;   /* requests it took */
	double sweep_seconds;
	/* Since us_open: */
	uint64_t objects_deleted;      /* by retention */
	uint64_t databases_reconciled; /* marked to be uploaded again */
	uint64_t uploads_aborted;      /* uploads in parts that nobody had finished */
	uint32_t owner;		       /* US_OWNER_* of now */
	uint32_t reserved2;
	/* Of uploads_success: the first of its database that this state knows of. */
	uint64_t uploads_first;
	/* Where the last cycle spent its time. Walk (listing and stat), track (the decision what
	 * has changed), read and encode are summed over the threads that do it; upload wait is
	 * while nothing was left to do but to wait for the target; commit is of the state file. */
	double walk_seconds, track_seconds, read_seconds, encode_seconds;
	double upload_wait_seconds, commit_seconds;
};

/* The state after the last completed cycle. Any time; never blocks for long. */
US_API int32_t us_stats(struct us *us, struct us_stats *ret_stats, struct us_error *err);

#define US_FAILURES_MAX 20
#define US_PATH_TEXT_LEN 12288 /* a path of 4,095 bytes, escaped, and its NUL */

struct us_failure {
	char path[US_PATH_TEXT_LEN];
	char stage[16]; /* "walk", "key", "read", "encode", "upload" */
	char message[US_ERROR_MESSAGE_LEN];
	uint64_t cycles;  /* how many in a row it has failed */
	int64_t since_ns; /* when it was first seen changed, or first failed */
};

/* The failures of the last completed cycle that have lasted longest, oldest first:
 * at most CAPACITY and US_FAILURES_MAX. Returns their count. Any time. */
US_API int32_t us_failures(struct us *us, struct us_failure *ret_failures, size_t capacity,
			   struct us_error *err);

#define US_EVENT_FAILED 1u	 /* a database starts to fail; stage and message are set */
#define US_EVENT_RECOVERED 2u	 /* it is in the target again */
#define US_EVENT_NOT_DATABASE 3u /* a matching file that is no database (seen anew) */
#define US_EVENT_STATE_RESET 4u	 /* the state file was lost or foreign; message says why */
#define US_EVENT_UNREACHABLE 5u	 /* the cycle gave up on the target */
#define US_EVENT_WARNING 6u	 /* anything else worth a line */
#define US_EVENT_WALK_FAILED 7u	 /* a directory or file cannot be looked at (once) */

struct us_event {
	uint32_t kind; /* US_EVENT_* */
	uint32_t reserved;
	char path[US_PATH_TEXT_LEN]; /* "" where the event has none */
	char stage[16];
	char message[US_ERROR_MESSAGE_LEN];
};

/* Takes up to CAPACITY events, oldest first; returns their count, 0 if there are
 * none. Any time. The queue is bounded: a failure that finds it full is reported
 * in the next cycle instead. */
US_API int32_t us_next_events(struct us *us, struct us_event *ret_events, size_t capacity,
			      struct us_error *err);

/* --------------------------------------------------------------------- plan */

struct us_sample {
	char path[US_PATH_TEXT_LEN];
	char key[1025];	  /* key prefix, "" if it has none */
	char message[US_ERROR_MESSAGE_LEN]; /* why it has none, or "" */
	uint64_t database_len; /* of the database file, bytes */
};

struct us_plan {
	uint32_t struct_size; /* set by the caller */
	uint32_t reserved;
	uint64_t databases;
	uint64_t database_bytes; /* of the files, WALs included */
	uint64_t directories;
	uint64_t with_wal;
	uint64_t bad_names;	/* paths that give no legal key */
	uint64_t walk_failures; /* directories and files that could not be looked at */
	char prefix[US_PATH_TEXT_LEN]; /* the wildcard-free directory, escaped */
	char first_failure[US_ERROR_MESSAGE_LEN];
	/* by the state file, where one exists for this target: */
	uint64_t synced;  /* unchanged since their last backup */
	uint64_t changed; /* backed up before, changed or failing now */
	uint64_t never;	  /* no backup known */
	int64_t last_backup_ns; /* newest object's name among them; 0: none */
	uint32_t state_found;	/* 1: there is a state file for this target; 2: there is one that
				 * cannot be read, first_failure says why */
	uint32_t reserved2;
};

/*
 * Walks the files and says what us_cycle would see: totals, and the first up to
 * CAPACITY bad names and matches as samples. No network, nothing read or written.
 * SAMPLES may be NULL if CAPACITY is 0; RET_SAMPLE_COUNT may be NULL.
 */
US_API int32_t us_plan(struct us *us, struct us_plan *ret_plan, struct us_sample *ret_samples,
		       size_t capacity, size_t *ret_sample_count, struct us_error *err);

/* 1 if the pattern of OPTIONS could match PATH (absolute, clean), 0 if not, or
 * US_E_CONFIG. Only discovery_pattern is looked at. Any time. */
US_API int32_t us_match(const struct us_options *options, const char *path, struct us_error *err);

/* The longest wildcard-free directory of the pattern of OPTIONS, into RET_PREFIX
 * (CAPACITY bytes, NUL-terminated); returns its length. US_E_CONFIG; US_E_ARG if it
 * does not fit. Any time. */
US_API int32_t us_prefix(const struct us_options *options, char *ret_prefix, size_t capacity,
			 struct us_error *err);

/* ------------------------------------------------------------------ restore */

#define US_RESTORE_FORCE 1u		  /* replace an existing database */
#define US_RESTORE_DRY_RUN 2u		  /* choose and describe, write nothing */
#define US_RESTORE_IF_DB_NOT_EXISTS 4u	  /* existing output: return 0, skipped = 1 */
#define US_INTEGRITY_NONE 0u
#define US_INTEGRITY_QUICK 1u /* PRAGMA quick_check */
#define US_INTEGRITY_FULL 2u  /* PRAGMA integrity_check */

struct us_restore_options {
	uint32_t struct_size;
	uint32_t flags;		 /* US_RESTORE_* */
	const char *path;	 /* required: the database's absolute path at backup time */
	const char *output_path; /* NULL: the same path */
	int64_t timestamp_ns;	 /* newest backup whose snapshot time is not after it; 0: newest */
	uint32_t integrity_check; /* US_INTEGRITY_* */
	uint32_t reserved;
};

struct us_restore_result {
	uint32_t struct_size; /* set by the caller */
	uint32_t skipped;     /* 1: the output existed */
	char key[1025];	      /* of the object */
	uint32_t mode;	      /* permission bits of the database at backup time */
	uint32_t page_size;
	uint64_t object_len;
	uint64_t database_len;
	int64_t snapshot_ns;
};

/*
 * Restores one database: chooses, downloads to a hidden temporary file beside the
 * output, checks frame and SHA-256, optionally integrity, sets mode (and, as root,
 * owner), makes it durable and renames it into place. The output is as it was
 * after any failure.
 *
 * Returns 0, or US_E_NOTFOUND (no backup, or none old enough: the message names
 * the earliest), US_E_EXISTS (output, or a -wal/-journal beside it, is there and
 * no US_RESTORE_FORCE), US_E_BUSY (US_RESTORE_FORCE over a database in use),
 * US_E_OBJECT (damaged; nothing was replaced; the message names the next older good
 * one, if there is one), US_E_CORRUPT (integrity check),
 * US_E_NETWORK, US_E_TIMEOUT, US_E_HTTP, US_E_ACCESS, US_E_IO, US_E_NOSPACE, US_E_NOMEM,
 * US_E_CANCELED, US_E_ARG.
 */
US_API int32_t us_restore(struct us *us, const struct us_restore_options *options,
			  struct us_restore_result *ret_result, struct us_error *err);

#define US_HOSTS_TEXT_LEN 76800 /* room for as many as us_hosts gives */

/*
 * The hosts that have backups in the target, where the path has {{hostname}}: their names,
 * escaped as paths are, each ended by a NUL, into RET_NAMES (CAPACITY bytes; what does
 * not fit is left away). Returns their count, at most 100; 0 if the path has no
 * {{hostname}}. Sends some LIST requests for each. US_E_ACCESS, US_E_NETWORK, US_E_TIMEOUT,
 * US_E_HTTP, US_E_IO, US_E_NOMEM, US_E_CANCELED, US_E_ARG. Any time.
 */
US_API int32_t us_hosts(struct us *us, char *ret_names, size_t capacity, struct us_error *err);

/* -------------------------------------------------------------------- tasks */

/*
 * Work on many databases at once: it runs on threads of its own, and what it finds
 * is pulled as rows. Tasks work on read-only handles too, beside a running
 * `replicate`. The target is listed once, 1,000 objects a request; memory stays
 * within memory_limit however many objects there are, except that LIST, VERIFY and
 * PURGE keep the keys of the databases on disk, PURGE also of those it has chosen.
 */
struct us_task;

#define US_TASK_LIST 1u	   /* what is in the target against what is on disk, in the order of keys */
#define US_TASK_BACKUPS 2u /* the objects of one database, oldest first */
#define US_TASK_RESTORE 3u /* the newest object of each database to its file */
#define US_TASK_VERIFY 4u  /* downloads and checks the newest object of each database */
#define US_TASK_PURGE 5u   /* removes all objects of the databases chosen */

#define US_TASK_FALLBACK 256u /* RESTORE: the next older good object instead of a bad one */
#define US_TASK_GONE 512u     /* PURGE: only databases that are not on disk */

struct us_task_options {
	uint32_t struct_size;
	uint32_t kind;  /* US_TASK_LIST .. US_TASK_PURGE */
	uint32_t flags; /* RESTORE: US_RESTORE_*, US_TASK_FALLBACK; PURGE: US_TASK_GONE */
	uint32_t integrity_check; /* RESTORE, VERIFY: US_INTEGRITY_* */
	const char *path;  /* BACKUPS (required), PURGE: one database by its absolute path, or NULL */
	const char *match; /* all but BACKUPS: only databases whose original absolute path
			    * matches this shell pattern (its `*` crosses `/`); NULL: all */
	const char *output_dir; /* RESTORE: absolute; files go to it + their path below the
				 * pattern's wildcard-free directory. NULL: where they were */
	int64_t timestamp_ns;  /* RESTORE: newest object whose snapshot time is not after it; 0: newest */
	uint64_t sample_count; /* VERIFY: as many databases, chosen at random; 0: all */
	int64_t older_than_ns; /* PURGE with US_TASK_GONE (required): newest object's name before it */
	uint64_t confirm_count; /* PURGE: the number of objects; any other number removes none */
};

#define US_ROW_OK 1u	  /* LIST: in the target and on disk; else: done, or would be done */
#define US_ROW_GONE 2u	  /* LIST: in the target, not on disk */
#define US_ROW_NEVER 3u	  /* LIST: on disk, nothing in the target (message: why it has no key) */
#define US_ROW_SKIPPED 4u /* RESTORE: the output exists (US_RESTORE_IF_DB_NOT_EXISTS) */
#define US_ROW_FAILED 5u  /* code and message say why */

struct us_row {
	uint32_t status; /* US_ROW_* */
	int32_t code;	 /* US_E_* of US_ROW_FAILED, else 0 */
	char path[US_PATH_TEXT_LEN];  /* of the database when it was backed up */
	char output[US_PATH_TEXT_LEN]; /* RESTORE: where it goes, else "" */
	char key[1025]; /* of the (newest) object; LIST and PURGE: the key prefix; "" if there is none */
	char message[US_ERROR_MESSAGE_LEN]; /* also of US_ROW_OK with US_TASK_FALLBACK: what was bad */
	uint64_t object_count; /* LIST, PURGE: objects of this database; RESTORE with
				* US_RESTORE_DRY_RUN: the GET requests it would take */
	uint64_t objects_len;  /* LIST, PURGE: their bytes */
	uint64_t object_len;   /* of the (newest) object */
	int64_t time_ns;       /* in the name of the (newest) object; 0: none */
	/* Read from the trailer, 0 for LIST and PURGE: */
	int64_t snapshot_ns;
	uint64_t database_len;
	uint32_t mode, page_size;
};

struct us_progress {
	uint32_t struct_size; /* set by the caller */
	uint32_t finished;    /* 1: the task is over and every row was taken */
	uint32_t listed;      /* 1: the target was listed to its end: the totals are final */
	uint32_t confirmed;   /* PURGE: 1: confirm_count was right, and objects were removed */
	uint64_t total_count, total_len; /* databases chosen so far, bytes of their objects */
	uint64_t done_count, done_len;	 /* of them, over: restored, verified, failed, skipped */
	uint64_t failed_count, skipped_count;
	uint64_t database_len; /* bytes of the databases restored or verified */
	uint64_t object_count, removed_count; /* PURGE: objects chosen, and removed */
	uint64_t local_count;	 /* LIST, VERIFY, PURGE: databases on disk */
	uint64_t walk_failures;	 /* directories and files that could not be looked at */
	uint64_t ours_count;	 /* objects in the target that are of this fleet, chosen or not */
	uint64_t foreign_count;	 /* objects seen in the target that are not */
	uint64_t api_get, api_list, api_delete; /* requests sent by this handle */
};

/*
 * Starts a task; OPTIONS are copied. Returns 0 with *RET_TASK set (freed with
 * us_task_close), or US_E_ARG, US_E_NOMEM; US_E_NOTFOUND, US_E_NAME for a path that
 * the pattern does not match or that has no key; PURGE: US_E_ARG without path, match
 * or US_TASK_GONE. Any time; several tasks may run beside each other and a cycle.
 */
US_API int32_t us_task_start(struct us *us, const struct us_task_options *options,
			     struct us_task **ret_task, struct us_error *err);

/*
 * Takes up to CAPACITY rows; waits for the first of them at most TIMEOUT_MS (0: not at
 * all, at most 1,000,000). Returns their count. RET_PROGRESS (may be NULL) is filled
 * always. Once all rows are taken and the task is over: 0 with `finished`, or why the
 * task as a whole has failed: US_E_ACCESS, US_E_NETWORK, US_E_TIMEOUT, US_E_HTTP for the
 * listing; US_E_NOTFOUND, US_E_IO, US_E_ACCESS for the walk; PURGE: US_E_CONFIG where it refuses (a
 * directory that could not be listed, a match of everything that is not "*");
 * US_E_CANCELED. Failures of single databases are rows, not failures of the task. One
 * thread at a time. Tasks wait for their rows to be taken.
 */
US_API int32_t us_task_next(struct us_task *task, int32_t timeout_ms, struct us_row *ret_rows,
			    size_t capacity, struct us_progress *ret_progress,
			    struct us_error *err);

/* Cancels what is under way, joins its threads, frees. NULL is accepted. Before
 * us_close. */
US_API void us_task_close(struct us_task *task);

#ifdef __cplusplus
}
#endif

#endif
