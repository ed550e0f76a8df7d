/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An object, or a part of one, read into its owner's memory: one GET.
 *
 * A whole object is asked for without a range, and must have the length that it was
 * listed with; a part must be the range asked for, of an object of that length. Another
 * length means that the object was replaced since: US_E_BUSY, whoever listed it may list
 * it again. What comes is counted before it is copied, so nothing is ever written behind
 * the memory that was given, whatever the answer says about itself.
 */
#include "s3_slot.h"

#include <stdio.h>
#include <string.h>

/* A small object in one or two reads; there may be 1,000 handles with one each. */
#define OBJECT_BUFFER_LEN (32L << 10)

static int is_whole(const struct us_get *get)
{
	return get->offset == 0 && get->len == get->object_len;
}

static int32_t build_get(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_get *get = slot->job.item;
	char range[64];
	slot->counts = &store->get;
	slot->payload_len = get->len;
	if (get->len == 0 || get->offset > get->object_len ||
	    get->len > get->object_len - get->offset || get->object_len > INT64_MAX) {
		return us_fail(&slot->err, US_E_ARG, "get: empty or impossible range");
	}
	(void)snprintf(range, sizeof(range), "bytes=%llu-%llu", (unsigned long long)get->offset,
		       (unsigned long long)(get->offset + get->len - 1));
	return us_s3_request_get(&slot->transfer.request, &store->endpoint, &store->signer,
				 get->key, is_whole(get) ? NULL : range, &slot->err);
}

static int32_t fail_get(struct us_s3_slot *slot, int32_t code, const char *text)
{
	char what[800];
	us_s3_reply_what(&slot->store->endpoint, &slot->transfer.request, what, sizeof(what));
	(void)us_fail(&slot->err, code, "%s: %s", what, text);
	slot->err.http_status = slot->transfer.reply.status;
	return code;
}

static int32_t fail_length(struct us_s3_slot *slot)
{
	return fail_get(slot, US_E_BUSY, "the object has another length than listed");
}

static int32_t check_range(struct us_s3_slot *slot)
{
	const struct us_get *get = slot->job.item;
	const struct us_s3_reply *reply = &slot->transfer.reply;
	if (reply->range_total >= 0 && (uint64_t)reply->range_total != get->object_len) {
		return fail_length(slot);
	}
	if (reply->range_total < 0 || (uint64_t)reply->range_first != get->offset ||
	    (uint64_t)reply->range_last != get->offset + get->len - 1) {
		return fail_get(slot, US_E_HTTP,
				"the server answered with another range than asked for");
	}
	return 0;
}

/* What the headers of a 200 or 206 promise. */
static int32_t check_headers(struct us_s3_slot *slot)
{
	const struct us_get *get = slot->job.item;
	const struct us_s3_reply *reply = &slot->transfer.reply;
	if (!is_whole(get)) {
		return reply->status == 206 ? check_range(slot)
					    : fail_get(slot, US_E_UNSUPPORTED,
						       "the server does not know ranges");
	}
	if (reply->status == 206) {
		return fail_get(slot, US_E_HTTP, "the server answered with a part of the object");
	}
	return reply->content_len >= 0 && (uint64_t)reply->content_len != get->len
		       ? fail_length(slot)
		       : 0;
}

static int32_t take_object(struct us_s3_slot *slot, const char *data, size_t data_len)
{
	const struct us_get *get = slot->job.item;
	int32_t rc = slot->received == 0 ? check_headers(slot) : 0;
	if (rc) {
		return rc;
	}
	if (data_len > get->len - slot->received) {
		return is_whole(get) ? fail_length(slot)
				     : fail_get(slot, US_E_HTTP, "more came than was asked for");
	}
	memcpy(get->data + slot->received, data, data_len);
	slot->received += data_len;
	return 0;
}

static int32_t check_get(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_get *get = slot->job.item;
	const struct us_s3_reply *reply = &slot->transfer.reply;
	if (reply->status == 416) { /* it ends before the range: it was longer once */
		return fail_length(slot);
	}
	if (reply->status != 200 && reply->status != 206) {
		return us_s3_reply_fail(reply, &store->endpoint, &slot->transfer.request, 1,
					&slot->err);
	}
	int32_t rc = slot->received == 0 ? check_headers(slot) : 0; /* an empty body */
	if (rc == 0 && slot->received != get->len) {
		rc = is_whole(get) ? fail_length(slot)
				   : fail_get(slot, US_E_HTTP, "less came than was asked for");
	}
	return rc;
}

static void end_get(struct us_s3_store *store, const struct us_s3_job *job, int32_t rc,
		    const struct us_error *err)
{
	struct us_get *get = job->item;
	(void)store;
	get->rc = rc;
	if (rc) {
		get->err = *err;
	}
	us_get_queue_push(get->queue, get);
}

const struct us_s3_kind us_s3_kind_get = {
	.build = build_get,
	.take = take_object,
	.check = check_get,
	.end = end_get,
	.receive_buffer_len = OBJECT_BUFFER_LEN,
};
