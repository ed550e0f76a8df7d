/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_S3_CALL_H
#define US_STORE_S3_CALL_H

#include "s3_internal.h"

/* What the blocking calls share: one request at a time on the caller's thread. */

struct us_s3_call {
	struct us_s3_transfer transfer;
	CURLM *multi;
	struct us_s3_store *store;
	struct us_s3_call *next;
	struct us_error *err; /* the caller's, for what callbacks find */
	int32_t rc;           /* what a callback found; 0: nothing */
	/* get: the wanted part, and how much of the answer's body to pass over */
	us_store_data_fn *data_fn;
	void *data_arg;
	int is_range;
	int64_t offset;
	uint64_t len;
	uint64_t received; /* bytes of a successful answer's body */
	uint64_t skip, left;
	int is_placed; /* skip and left are set */
	/* what is sent (DeleteObjects, a small object) */
	struct us_text body;
	int has_body;
	/* an answer that is a document: begun, and fed by the transfer */
	struct us_s3_page *page;
	int has_page;
};

/* From a small stock, with nothing set; NULL for US_E_NOMEM. */
struct us_s3_call *us_s3_call_take(struct us_s3_store *store, struct us_error *err);
void us_s3_call_put_back(struct us_s3_call *call);

/* One get: the whole object or a range, as us_store_ops.get; RET_TOTAL: its size. */
int32_t us_s3_call_get(struct us_s3_call *call, const char *key, int64_t offset, uint64_t len,
		       us_store_data_fn *fn, void *arg, uint64_t *ret_total, struct us_error *err);

/* Sends the request that was just built. 0: a complete answer is there, whatever
 * its status. */
int32_t us_s3_call_perform(struct us_s3_call *call, struct us_s3_kind_counts *counts,
			   struct us_error *err);
/* The same where the answer is to be DOCUMENT: 0 only with a status 200 and the whole
 * document in call->page. */
int32_t us_s3_call_document(struct us_s3_call *call, enum us_s3_document document,
			    struct us_s3_kind_counts *counts, struct us_error *err);
/* The failure that an answer is. */
int32_t us_s3_call_fail_answer(struct us_s3_call *call, int key_can_miss, struct us_error *err);
/* Prefixes what a callback or check found with the request it concerns. Returns RC. */
int32_t us_s3_call_name_request(struct us_s3_call *call, int32_t rc, struct us_error *err);

#endif
