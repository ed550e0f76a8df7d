/* SPDX-License-Identifier: Apache-2.0 */
/* An object sent whole: one PUT. */
#include "s3_slot.h"

#define ANSWER_BUFFER_LEN (4L << 10)

static int32_t build_put(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_put *put = slot->job.item;
	slot->body = (struct us_s3_body){ .data = put->data, .fd = put->fd, .len = put->len };
	slot->counts = &store->put;
	slot->payload_len = put->len;
	return us_s3_request_put(&slot->transfer.request, &store->endpoint, &store->signer, put,
				 &slot->err);
}

static int32_t check_put(struct us_s3_store *store, struct us_s3_slot *slot)
{
	struct us_put *put = slot->job.item;
	put->sent_twice = slot->sent_twice;
	return us_s3_reply_check_put(&slot->transfer.reply, &store->endpoint,
				     &slot->transfer.request, &slot->err);
}

static void end_put(struct us_s3_store *store, const struct us_s3_job *job, int32_t rc,
		    const struct us_error *err)
{
	struct us_put *put = job->item;
	put->rc = rc;
	if (rc) {
		put->err = *err;
	}
	us_s3_pool_put_ended(store, put);
}

const struct us_s3_kind us_s3_kind_put = {
	.build = build_put,
	.check = check_put,
	.end = end_put,
	.receive_buffer_len = ANSWER_BUFFER_LEN,
	.has_body = 1,
	.is_paced = 1,
};
