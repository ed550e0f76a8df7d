/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_S3_INTERNAL_H
#define US_STORE_S3_INTERNAL_H

#include <stdatomic.h>

#include "rate.h"
#include "store.h"
#include "transfer.h"

/* Shared by s3.c (opening), s3_pool.c (many at once), s3_call.c and s3_remove.c
 * (blocking calls). */

struct us_s3_pool;   /* s3_pool.c */
struct us_s3_call;   /* s3_call.c */
struct us_s3_upload; /* s3_multipart.c */

struct us_s3_kind_counts {
	_Atomic uint64_t count, bytes, ns;
};

struct us_s3_store {
	struct us_store base;
	struct us_s3_endpoint endpoint; /* immutable, as are the next two */
	struct us_s3_timing timing;
	uint32_t concurrency;
	struct us_s3_signer signer;
	atomic_int canceled;
	atomic_int no_conditions; /* the server does not implement them */
	struct us_s3_kind_counts put, get, list, remove;
	struct us_s3_pool *pool;
	struct us_rate rate; /* of puts; the pool's thread's */
	/* idle objects of blocking calls, each with its connections */
	pthread_mutex_t calls_lock;
	struct us_s3_call *calls;
	uint32_t call_count;
};

/* us_store_s3_open with other time-outs. */
int32_t us_s3_open_timed(const struct us_store_s3_options *options,
			 const struct us_s3_timing *timing, struct us_store **ret_store,
			 struct us_error *err);

/* Counts a request that has ended, if it was sent. */
void us_s3_count(struct us_s3_kind_counts *counts, struct us_s3_transfer *transfer, uint64_t bytes);

int32_t us_s3_get(struct us_store *store, const char *key, int64_t offset, uint64_t len,
		  us_store_data_fn *fn, void *arg, uint64_t *ret_len, struct us_error *err);
int32_t us_s3_read_version(struct us_store *store, const char *key, uint8_t *ret_data, size_t cap,
			   size_t *ret_len, struct us_store_version *ret_version,
			   struct us_error *err);
int32_t us_s3_write_version(struct us_store *store, const char *key, const char *tag,
			    const uint8_t *data, size_t data_len, struct us_error *err);
int32_t us_s3_list_after(struct us_store *store, const char *prefix, const char *after,
			 us_store_list_fn *fn, void *arg, struct us_error *err);
int32_t us_s3_list(struct us_store *store, const char *prefix, us_store_list_fn *fn, void *arg,
		   struct us_error *err);
int32_t us_s3_remove(struct us_store *store, const char *key, struct us_error *err);
int32_t us_s3_remove_many(struct us_store *store, const char *const *keys, size_t count,
			  size_t *ret_removed, struct us_error *err);
int32_t us_s3_abort_uploads(struct us_store *store, const char *prefix,
			    us_store_is_ours_fn *is_ours, void *arg, uint64_t *ret_count,
			    struct us_error *err);
void us_s3_calls_free(struct us_s3_store *store);

/* The pool (s3_pool.c): the operations of the same names. */
int32_t us_s3_pool_open(struct us_s3_store *store, struct us_error *err);
void us_s3_pool_close(struct us_s3_store *store);
void us_s3_pool_wake(struct us_s3_store *store);
void us_s3_put_start(struct us_store *store, struct us_put *put);
struct us_put *us_s3_put_wait(struct us_store *store, int32_t timeout_ms);
void us_s3_get_start(struct us_store *store, struct us_get *get);
/* Hands PUT, whose rc and err are set, to put_wait. On the pool's thread. */
void us_s3_pool_put_ended(struct us_s3_store *store, struct us_put *put);
/* Takes ITEM's requests off curl without ending its jobs; those that were sent whole only
 * if ALL. Returns how many. On the pool's thread, as is the next, which frees UPLOAD. */
uint32_t us_s3_pool_drop(struct us_s3_store *store, const void *item, int all);
void us_s3_pool_upload_over(struct us_s3_store *store, struct us_s3_upload *upload);
/* Whether the upload UPLOAD_ID of KEY is this store's and under way. Any thread. */
int us_s3_pool_has_upload(struct us_s3_store *store, const char *key, const char *upload_id);
/* How many requests may be under way now (concurrency.c). For tests. */
uint32_t us_s3_pool_limit(struct us_store *store);

#endif
