/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The S3 target: opening, credentials, counters, and the table of operations.
 *
 *	endpoint.c	options -> where requests go
 *	request.c	key, range, prefix -> URL and signed headers (sigv4.c)
 *	transfer.c	curl's options, progress, meaning of its codes
 *	reply.c		answer -> success or error (s3_xml.c)
 *	s3_pool.c	puts and gets: one thread, many at once, each on a slot (s3_slot.c)
 *	concurrency.c, rate.c	how many at once, and how fast
 *	s3_put.c, s3_get.c	what they send, and what the answer means
 *	s3_multipart.c	likewise for objects that are sent in parts
 *	s3_call.c	get, list: on their caller's thread
 *	s3_remove.c	remove, remove_many, abort_uploads: likewise
 *	s3_version.c	an object that processes take turns to write: likewise
 *
 * Locks: none here. signer.lock (request.c), calls_lock (s3_call.c) and the
 * pool's lock (s3_pool.c) are leaves: no two are ever held together, and none
 * across I/O.
 */
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "concurrency.h"
#include "s3_internal.h"

/* libcurl's and OpenSSL's global set-up must run once, before any thread uses
 * them; this is the one process-wide state of the room, and is never undone
 * because the host may use libcurl too. Session tokens pass through libcurl's
 * buffers: once there has been one, those are wiped when they are freed (of static
 * credentials libcurl sees signatures only). If the host has set libcurl up before,
 * it keeps its own allocator. */
static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_once_rc;
static atomic_int curl_sees_tokens;

static void free_for_curl(void *p)
{
	if (atomic_load_explicit(&curl_sees_tokens, memory_order_relaxed)) {
		us_free_wiped(p);
	} else {
		us_free(p);
	}
}

static void *realloc_for_curl(void *old, size_t len)
{
	return atomic_load_explicit(&curl_sees_tokens, memory_order_relaxed)
		       ? us_realloc_wiped(old, len)
		       : us_realloc(old, len);
}

static void init_curl(void)
{
	curl_once_rc = curl_global_init_mem(CURL_GLOBAL_DEFAULT, us_alloc, free_for_curl,
					    realloc_for_curl, us_strdup, us_alloc_array);
}

static struct us_s3_store *from_base(struct us_store *store)
{
	return (struct us_s3_store *)store; /* base is the first member */
}

static void s3_cancel(struct us_store *base)
{
	struct us_s3_store *store = from_base(base);
	atomic_store(&store->canceled, 1);
	us_s3_pool_wake(store); /* blocking calls look every 50 ms */
}

void us_s3_count(struct us_s3_kind_counts *counts, struct us_s3_transfer *transfer, uint64_t bytes)
{
	if (!us_s3_transfer_was_sent(transfer)) {
		return;
	}
	int64_t ns = us_clock_mono_ns() - transfer->start_ns;
	atomic_fetch_add_explicit(&counts->count, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&counts->bytes, bytes, memory_order_relaxed);
	atomic_fetch_add_explicit(&counts->ns, (uint64_t)ns, memory_order_relaxed);
}

static void s3_counts(struct us_store *base, struct us_store_counts *ret_counts)
{
	struct us_s3_store *store = from_base(base);
	*ret_counts = (struct us_store_counts){
		.put = store->put.count,
		.get = store->get.count,
		.list = store->list.count,
		.remove = store->remove.count,
		.put_bytes = store->put.bytes,
		.get_bytes = store->get.bytes,
		.put_ns = store->put.ns,
		.get_ns = store->get.ns,
		.list_ns = store->list.ns,
		.remove_ns = store->remove.ns,
	};
}

static void s3_close(struct us_store *base)
{
	if (!base) {
		return;
	}
	struct us_s3_store *store = from_base(base);
	us_s3_pool_close(store);
	us_s3_calls_free(store);
	(void)pthread_mutex_destroy(&store->calls_lock); /* nobody is left to hold it */
	us_s3_signer_done(&store->signer);
	us_s3_endpoint_done(&store->endpoint);
	us_free(store);
}

static const struct us_store_ops s3_ops = {
	.put_start = us_s3_put_start,
	.put_wait = us_s3_put_wait,
	.get_start = us_s3_get_start,
	.get = us_s3_get,
	.read_version = us_s3_read_version,
	.write_version = us_s3_write_version,
	.list = us_s3_list,
	.list_after = us_s3_list_after,
	.remove = us_s3_remove,
	.remove_many = us_s3_remove_many,
	.abort_uploads = us_s3_abort_uploads,
	.cancel = s3_cancel,
	.counts = s3_counts,
	.close = s3_close,
};

int32_t us_s3_open_timed(const struct us_store_s3_options *options,
			 const struct us_s3_timing *timing, struct us_store **ret_store,
			 struct us_error *err)
{
	if (options->concurrency < 1 || options->concurrency > US_CONCURRENCY_MAX) {
		return us_fail(err, US_E_CONFIG, "max_concurrent_uploads: %u: must be 1..%d",
			       options->concurrency, US_CONCURRENCY_MAX);
	}
	(void)pthread_once(&curl_once, init_curl); /* cannot fail */
	struct us_s3_store *store = us_alloc_zero(sizeof(*store));
	if (!store || curl_once_rc || pthread_mutex_init(&store->calls_lock, NULL)) {
		us_free(store);
		return us_fail_nomem(err);
	}
	store->base.ops = &s3_ops;
	store->timing = *timing;
	store->concurrency = options->concurrency;
	us_rate_init(&store->rate, options->upload_bytes_per_s);
	int32_t rc = us_s3_endpoint_init(&store->endpoint, options, err);
	rc = rc ? rc : us_s3_signer_init(&store->signer, err);
	rc = rc ? rc : us_s3_pool_open(store, err);
	if (rc) {
		s3_close(&store->base);
		return rc;
	}
	*ret_store = &store->base;
	return 0;
}

int32_t us_store_s3_open(const struct us_store_s3_options *options, struct us_store **ret_store,
			 struct us_error *err)
{
	static const struct us_s3_timing timing = US_S3_TIMING_DEFAULT;
	return us_s3_open_timed(options, &timing, ret_store, err);
}

int32_t us_store_s3_set_credentials(struct us_store *store,
				    const struct us_s3_credentials *credentials,
				    struct us_error *err)
{
	if (credentials->session_token && credentials->session_token[0]) {
		atomic_store(&curl_sees_tokens, 1); /* before any request has it */
	}
	return us_s3_signer_set(&from_base(store)->signer, credentials, err);
}
