/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_TRANSFER_H
#define US_STORE_TRANSFER_H

#include "reply.h"
#include "request.h"

/*
 * An easy handle, its request and its reply. Pooled and used again, one request after the other.
 */

/* Time-outs; the defaults are the design's, tests shorten them. */
struct us_s3_timing {
	int64_t connect_ms; /* name, TCP and TLS together */
	int64_t stall_ms;   /* nothing moves; see us_s3_transfer_is_stalled */
	int64_t idle_age_s; /* older idle connections are not used again */
	int64_t lifetime_s; /* nor connections opened longer ago */
};

#define US_S3_TIMING_DEFAULT \
	{ \
		.connect_ms = 10000, .stall_ms = 30000, .idle_age_s = 25, .lifetime_s = 600 \
	}

struct us_s3_transfer {
	CURL *easy;
	int is_used; /* EASY has begun a transfer that it did not bring to a proper end */
	const struct us_s3_endpoint *endpoint;
	const struct us_s3_timing *timing;
	struct us_s3_request request;
	struct us_s3_reply reply;
	char curl_text[CURL_ERROR_SIZE];
	int64_t start_ns;
	int resent;
	/* set after begin, if at all */
	int64_t stall_ms; /* instead of the timing's */
	int takes_body;   /* the body of the answer is what is wanted: it counts as moving */
	uint64_t progress;
	int64_t progress_ns; /* when it last changed by enough */
};

/* ENDPOINT and TIMING are kept. 0 or US_E_NOMEM; done accepts a zeroed object, and
 * one whose init failed. */
int32_t us_s3_transfer_init(struct us_s3_transfer *transfer, const struct us_s3_endpoint *endpoint,
			    const struct us_s3_timing *timing, struct us_error *err);
void us_s3_transfer_done(struct us_s3_transfer *transfer);

/* Resets the handle, sets what all requests share, points it at the request that
 * was just built, and starts the clocks. The caller sets the rest: method, body. */
int32_t us_s3_transfer_begin(struct us_s3_transfer *transfer, struct us_error *err);

/* Whether nothing worth mentioning has moved for the stall time. Bytes in the kernel's send
 * queue count as moving while the peer takes them. Any callback may count too: see touch. */
int us_s3_transfer_is_stalled(struct us_s3_transfer *transfer, int64_t now_ns);
/* The time up to now was not the server's (a slow sink). */
void us_s3_transfer_touch(struct us_s3_transfer *transfer);

/* Whether a transfer that ended with RESULT fell victim to a reused connection
 * that was dead: then, once, it is worth sending again, and the handle is ready to
 * be added again. Curl does so itself, but not where a send fails behind the first. */
int us_s3_transfer_resend(struct us_s3_transfer *transfer, CURLcode result);

/* What a transfer that curl has ended came to: RESULT, or CURLE_RECV_ERROR where curl takes
 * an answer for whole that broke off in its headers. */
CURLcode us_s3_transfer_result(struct us_s3_transfer *transfer, CURLcode result);

/* Whether any byte of the request was sent. */
int us_s3_transfer_was_sent(struct us_s3_transfer *transfer);

/* The failure of a transfer that ended with RESULT, not CURLE_OK. */
int32_t us_s3_transfer_fail(struct us_s3_transfer *transfer, CURLcode result, struct us_error *err);
int32_t us_s3_transfer_fail_stalled(struct us_s3_transfer *transfer, struct us_error *err);

#endif
