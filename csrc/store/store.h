/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_STORE_H
#define US_STORE_STORE_H

#include <pthread.h>
#include <stddef.h>

#include "../base/error.h"

/*
 * Objects in a target: an S3 bucket or a directory. One interface, two
 * implementations (s3.c, file.c) behind a table of functions.
 *
 * Threads: put_start, put_wait, get_start and cancel may be called from any threads; the
 * others block their caller and may run side by side.
 */
struct us_store;

/* One object on its way. The caller owns it and everything it points to, from
 * put_start until put_wait hands it back; the store copies nothing. */
struct us_put {
	const char *key;      /* whole key, NUL-terminated, no leading slash */
	const uint8_t *data;  /* the object, or NULL: it is in FD, from offset 0 */
	int fd;		      /* a readable file (pread), or -1 */
	uint64_t len;	      /* bytes of the object */
	uint8_t sha256[32];   /* of the whole object (S3: x-amz-content-sha256) */
	char snapshot_time[31]; /* metadata: RFC 3339 */
	char lz4_sha256[65];	/* metadata: lower-case hex */
	void *owner;		/* the caller's, untouched */
	/* set by the store */
	int32_t rc; /* 0: the target has it, durably */
	int sent_twice; /* where RC is 0: the first one, unanswered, may still arrive */
	struct us_error err;
	struct us_put *next;
};

/* Takes back completed gets: its owner's, one consumer. (get_queue.c) */
struct us_get_queue {
	pthread_mutex_t mutex;
	pthread_cond_t ended;
	struct us_get *first, **last;
};

/* One part of an object, or a whole one, to be read into memory. The caller owns it and
 * everything it points to, from get_start until the queue hands it back. */
struct us_get {
	const char *key; /* whole key, NUL-terminated */
	uint64_t offset; /* 0 where all of it is wanted */
	uint64_t len;	 /* bytes wanted, at least 1 */
	uint64_t object_len; /* of the whole object, as it was listed: OFFSET + LEN at least */
	uint8_t *data;	     /* LEN bytes */
	struct us_get_queue *queue;
	void *owner; /* the caller's, untouched */
	/* set by the store */
	int32_t rc; /* 0: DATA has all of it. US_E_BUSY: the object has another length by now */
	struct us_error err;
	struct us_get *next;
};

int32_t us_get_queue_init(struct us_get_queue *queue, struct us_error *err);
void us_get_queue_done(struct us_get_queue *queue);
/* Appends GET (for stores). */
void us_get_queue_push(struct us_get_queue *queue, struct us_get *get);
/* Waits up to TIMEOUT_MS (0: not at all) for completed gets and returns them as a list
 * linked by `next`, or NULL. */
struct us_get *us_get_queue_wait(struct us_get_queue *queue, int32_t timeout_ms);

#define US_REMOVE_MANY_MAX 1000 /* keys of one DeleteObjects request */

struct us_store_counts { /* since open: requests sent, whatever became of them */
	uint64_t put, get, list, remove;
	uint64_t put_bytes, get_bytes; /* payload of requests that succeeded */
	uint64_t put_ns, get_ns, list_ns, remove_ns;
};

/* Receives an object's bytes in order. Non-zero stops the transfer with that code. */
typedef int32_t us_store_data_fn(void *arg, const uint8_t *data, size_t data_len,
				 struct us_error *err);
/* Whether an upload in parts of KEY is this fleet's. */
typedef int us_store_is_ours_fn(void *arg, const char *key, size_t key_len);
/* Receives one listed object; KEY is NUL-terminated and borrowed for the call.
 * Non-zero stops the listing with that code. */
typedef int32_t us_store_list_fn(void *arg, const char *key, size_t key_len, uint64_t object_len);

/* Keys of this program's own that are no database's. No component of a database's key
 * begins with a dot. */
#define US_STORE_OWN_PREFIX ".litestream-multi-db/"

#define US_STORE_TAG_LEN_MAX 127
#define US_STORE_TAG_ANY "*" /* whichever exists: the target has not told */

/* Which writing of an object is meant: of one that processes take turns to write. */
struct us_store_version {
	char tag[US_STORE_TAG_LEN_MAX + 1]; /* opaque; "": there is no such object */
	int64_t age_s; /* since it was written, by the target's clock; -1: not told */
};

struct us_store_ops {
	/* Hands over PUT; never blocks on the network. Completion, failed or not, comes
	 * from put_wait. Puts of one key must not overlap. */
	void (*put_start)(struct us_store *store, struct us_put *put);
	/* Waits up to TIMEOUT_MS (0: not at all) for completed puts and returns them as
	 * a list linked by `next`, or NULL. */
	struct us_put *(*put_wait)(struct us_store *store, int32_t timeout_ms);
	/* Hands over GET; never blocks on the network. Completion, failed or not, comes from
	 * its queue. Any threads. */
	void (*get_start)(struct us_store *store, struct us_get *get);
	/* Whole object: OFFSET 0, LEN UINT64_MAX. The last N bytes: OFFSET -N. 0,
	 * US_E_NOTFOUND, or the failure. RET_LEN (may be NULL): size of the whole object. */
	int32_t (*get)(struct us_store *store, const char *key, int64_t offset, uint64_t len,
		       us_store_data_fn *fn, void *arg, uint64_t *ret_len, struct us_error *err);
	/* All of a small object, of at most CAP bytes (US_E_OBJECT), and which version of it
	 * that is. US_E_NOTFOUND, or the failure. */
	int32_t (*read_version)(struct us_store *store, const char *key, uint8_t *ret_data,
				size_t cap, size_t *ret_len, struct us_store_version *ret_version,
				struct us_error *err);
	/* Writes a small object, durably, if its version is still TAG: US_E_EXISTS if it is
	 * another one by now. TAG NULL: whatever is there. A target that knows no conditions
	 * writes without. */
	int32_t (*write_version)(struct us_store *store, const char *key, const char *tag,
				 const uint8_t *data, size_t data_len, struct us_error *err);
	/* Keys that begin with PREFIX, in byte order, streamed page by page. */
	int32_t (*list)(struct us_store *store, const char *prefix, us_store_list_fn *fn, void *arg,
			struct us_error *err);
	/* The same, of keys that sort after AFTER only. */
	int32_t (*list_after)(struct us_store *store, const char *prefix, const char *after,
			      us_store_list_fn *fn, void *arg, struct us_error *err);
	int32_t (*remove)(struct us_store *store, const char *key, struct us_error *err);
	/* Removes COUNT objects (at most US_REMOVE_MANY_MAX) in one request where the target
	 * can. What is gone already counts as removed. RET_REMOVED: how many are gone for
	 * sure, also after a failure; 0 only if all are. */
	int32_t (*remove_many)(struct us_store *store, const char *const *keys, size_t count,
			       size_t *ret_removed, struct us_error *err);
	/* Aborts uploads in parts below PREFIX that IS_OURS accepts and that this store has
	 * not under way. RET_COUNT: how many. A target without such uploads: 0. */
	int32_t (*abort_uploads)(struct us_store *store, const char *prefix,
				 us_store_is_ours_fn *is_ours, void *arg, uint64_t *ret_count,
				 struct us_error *err);
	/* Makes everything in flight and everything started later fail with
	 * US_E_CANCELED, soon. For shutdown. */
	void (*cancel)(struct us_store *store);
	void (*counts)(struct us_store *store, struct us_store_counts *ret_counts);
	/* All puts must have been handed back. Joins the store's threads. */
	void (*close)(struct us_store *store);
};

/* First member of every implementation's struct. */
struct us_store {
	const struct us_store_ops *ops;
};

struct us_store_s3_options {
	const char *endpoint;	/* "http(s)://host[:port]" or "" for AWS */
	const char *region;	/* "" becomes "us-east-1" */
	const char *bucket;
	int path_style;		/* 1: endpoint/bucket/key; 0: bucket.endpoint/key */
	int skip_verify;	/* 1: accept any certificate */
	const char *storage_class, *sse, *sse_kms_key_id; /* "" or NULL: not sent */
	uint32_t concurrency; /* 1..1000 */
	uint64_t upload_bytes_per_s; /* of all puts together; 0: no limit */
};

struct us_s3_credentials {
	const char *access_key_id, *secret_access_key; /* "" for both: anonymous requests */
	const char *session_token;		       /* "" or NULL: none */
};

/* Opens the S3 target; nothing is sent yet. Everything is copied. US_E_CONFIG for
 * an endpoint or bucket that cannot be right. */
int32_t us_store_s3_open(const struct us_store_s3_options *options, struct us_store **ret_store,
			 struct us_error *err);
/* Replaces the credentials for requests from now on. Copied; wiped on replacement
 * and close. */
int32_t us_store_s3_set_credentials(struct us_store *store,
				    const struct us_s3_credentials *credentials,
				    struct us_error *err);

/*
 * Opens directory DIRECTORY (absolute; created with mode 0700 if missing) as a
 * target. Refuses one that folds case, and removes the temporary files of runs
 * that were killed. READ_ONLY: does none of that, the directory need not exist yet
 * (US_E_CONFIG from all then), and puts may not be called. UPLOAD_BYTES_PER_S: as for S3.
 */
int32_t us_store_file_open(const char *directory, int read_only, uint64_t upload_bytes_per_s,
			   struct us_store **ret_store, struct us_error *err);

/* A text that tells this target directory from another one under the same name (a
 * disk that is not mounted, a directory made anew): made once, kept in the directory.
 * "" if it has none and the store is read-only. Lives as long as the store. */
const char *us_store_file_id(const struct us_store *store);

#endif
