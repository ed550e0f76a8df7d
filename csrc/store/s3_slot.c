/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots: easy handles with what curl's callbacks need to know about the job that they
 * run. A slot is used again and again, for jobs of all kinds; its memory stays.
 *
 * Where bandwidth is limited, curl keeps each transfer below it (CURLOPT_MAX_SEND_SPEED). It
 * looks between two reads only, so these are short, too; and, after the last one, it reads no
 * answer until the time is up: what goes out in one piece anyway is spared that.
 */
#include "s3_slot.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"

/* Each handle keeps its buffers, and there may be 1,000: curl's least for sending. */
#define UPLOAD_BUFFER_LEN (16L << 10)

void us_s3_slot_free(struct us_s3_slot *slot)
{
	if (slot) {
		us_s3_transfer_done(&slot->transfer);
		us_free(slot);
	}
}

struct us_s3_slot *us_s3_slot_new(struct us_s3_store *store, struct us_error *err)
{
	struct us_s3_slot *slot = us_alloc_zero(sizeof(*slot));
	if (!slot || us_s3_transfer_init(&slot->transfer, &store->endpoint, &store->timing, err)) {
		us_s3_slot_free(slot);
		(void)us_fail_nomem(err);
		return NULL;
	}
	slot->store = store;
	return slot;
}

/* ---- curl's callbacks */

static size_t fail_body(struct us_s3_slot *slot, int32_t rc)
{
	slot->rc = rc;
	return CURL_READFUNC_ABORT;
}

static size_t read_body(char *buffer, size_t one, size_t cap, void *user)
{
	struct us_s3_slot *slot = user;
	const struct us_s3_body *body = &slot->body;
	(void)one; /* always 1 */
	uint64_t left = body->len - slot->body_done;
	size_t len = left < cap ? (size_t)left : cap;
	if (len == 0) {
		return 0;
	}
	len = slot->job.kind->is_paced ? us_rate_piece_len(&slot->store->rate, len) : len;
	if (body->data) {
		memcpy(buffer, body->data + slot->body_done, len);
	} else {
		ssize_t got;
		do {
			got = pread(body->fd, buffer, len, (off_t)(body->off + slot->body_done));
		} while (got < 0 && errno == EINTR);
		if (got < 0) {
			return fail_body(slot, us_fail_errno(&slot->err, errno,
							     "reading the spooled object"));
		}
		if (got == 0) {
			return fail_body(slot, us_fail(&slot->err, US_E_IO,
						       "the spooled object is shorter than it "
						       "was"));
		}
		len = (size_t)got;
	}
	slot->body_done += len;
	return len;
}

/* The body is sent again from OFFSET. */
static void rewind_body(struct us_s3_slot *slot, uint64_t offset)
{
	if (slot->job.kind->is_paced && slot->body_done > offset) {
		us_rate_charge(&slot->store->rate, slot->body_done - offset, us_clock_mono_ns());
	}
	slot->sent_twice |= slot->body_done == slot->body.len;
	slot->body_done = offset;
}

/* Curl sends once more when a reused connection turns out to be dead. */
static int seek_body(void *user, curl_off_t offset, int origin)
{
	struct us_s3_slot *slot = user;
	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > slot->body.len) {
		return CURL_SEEKFUNC_FAIL;
	}
	rewind_body(slot, (uint64_t)offset);
	return CURL_SEEKFUNC_OK;
}

static size_t write_answer(char *data, size_t one, size_t data_len, void *user)
{
	struct us_s3_slot *slot = user;
	const struct us_s3_kind *kind = slot->job.kind;
	struct us_s3_reply *reply = &slot->transfer.reply;
	(void)one; /* always 1 */
	if (kind->take && (reply->status == 200 || reply->status == 206)) {
		slot->rc = kind->take(slot, data, data_len);
		return slot->rc ? 0 : data_len;
	}
	return us_s3_reply_add_body(reply, data, data_len) ? 0 : data_len;
}

/* ---- one request */

static int set_options(struct us_s3_slot *slot)
{
	const struct us_s3_kind *kind = slot->job.kind;
	CURL *easy = slot->transfer.easy;
	int failed = 0;
#define SET(option, value) failed |= curl_easy_setopt(easy, option, value) != CURLE_OK
	if (kind->has_body) {
		SET(CURLOPT_UPLOAD, 1L);
		SET(CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER_LEN);
		SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)slot->body.len);
		SET(CURLOPT_READFUNCTION, read_body);
		SET(CURLOPT_READDATA, slot);
		SET(CURLOPT_SEEKFUNCTION, seek_body);
		SET(CURLOPT_SEEKDATA, slot);
	}
	if (kind->is_paced &&
	    us_rate_piece_len(&slot->store->rate, slot->body.len) < slot->body.len) {
		SET(CURLOPT_MAX_SEND_SPEED_LARGE, (curl_off_t)slot->store->rate.bytes_per_s);
	}
	SET(CURLOPT_CUSTOMREQUEST, slot->transfer.request.method);
	SET(CURLOPT_BUFFERSIZE, kind->receive_buffer_len);
	SET(CURLOPT_WRITEFUNCTION, write_answer);
	SET(CURLOPT_WRITEDATA, slot);
	SET(CURLOPT_PRIVATE, slot);
#undef SET
	return failed;
}

int32_t us_s3_slot_begin(struct us_s3_slot *slot, const struct us_s3_job *job)
{
	slot->job = *job;
	slot->rc = 0;
	slot->err.struct_size = sizeof(slot->err);
	slot->body = (struct us_s3_body){ .fd = -1 };
	slot->body_done = slot->received = slot->payload_len = 0;
	slot->sent_twice = 0;
	int32_t rc = job->kind->build(slot->store, slot);
	rc = rc ? rc : us_s3_transfer_begin(&slot->transfer, &slot->err);
	slot->transfer.takes_body = job->kind->take != NULL;
	if (!rc && job->kind->patience > 0) {
		slot->transfer.stall_ms *= job->kind->patience;
	}
	if (rc) {
		return rc;
	}
	if (job->kind->is_paced) {
		us_rate_charge(&slot->store->rate, slot->body.len, slot->transfer.start_ns);
	}
	return set_options(slot) ? us_fail_nomem(&slot->err) : 0;
}

int us_s3_slot_resend(struct us_s3_slot *slot, CURLcode result)
{
	if (slot->rc || !us_s3_transfer_resend(&slot->transfer, result)) {
		return 0;
	}
	us_s3_count(slot->counts, &slot->transfer, 0);
	rewind_body(slot, 0);
	return 1;
}

/* Whether all of the body has gone out before the answer came. */
static int32_t check_sent(struct us_s3_slot *slot)
{
	curl_off_t sent = 0;
	(void)curl_easy_getinfo(slot->transfer.easy, CURLINFO_SIZE_UPLOAD_T, &sent); /* else 0 */
	if (slot->body_done == slot->body.len && (uint64_t)sent >= slot->body.len) {
		return 0;
	}
	char what[800];
	us_s3_reply_what(&slot->store->endpoint, &slot->transfer.request, what, sizeof(what));
	return us_fail(&slot->err, US_E_HTTP,
		       "%s: %d before the object was sent (%llu of %llu bytes)", what,
		       slot->transfer.reply.status, (unsigned long long)sent,
		       (unsigned long long)slot->body.len);
}

int32_t us_s3_slot_result(struct us_s3_slot *slot, CURLcode result)
{
	struct us_s3_transfer *transfer = &slot->transfer;
	if (slot->rc) {
		return slot->rc;
	}
	/* an answer counts even where the connection broke behind it, unless it is good news */
	int answered = transfer->reply.status >= 300;
	result = us_s3_transfer_result(transfer, result);
	if (result != CURLE_OK && !(answered && result != CURLE_OUT_OF_MEMORY)) {
		return us_s3_transfer_fail(transfer, result, &slot->err);
	}
	int32_t rc = slot->job.kind->check(slot->store, slot);
	return rc ? rc : check_sent(slot);
}
