/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large objects, in parts:
 *
 *	CREATE	 POST key?uploads=		the answer names the upload's id
 *	PARTS	 PUT key?partNumber=N&uploadId=	up to US_S3_PARTS_AT_ONCE at a time; each
 *						answer has an ETag, opaque, at most
 *						US_S3_ETAG_LEN_MAX bytes
 *	COMPLETE POST key?uploadId=		numbers and ETags in XML; done only if the
 *						answer is a CompleteMultipartUploadResult,
 *						as a 200 may carry an Error
 *	ABORT	 DELETE key?uploadId=		in place of COMPLETE after a failure
 *
 * Each is a job of the pool like any other: same limit, back-off and stall clock. A step
 * that fails in a way that may pass (5xx, 429, the network) is sent again, TRIES_MAX times
 * in all, after a pause in which the upload sends nothing; then the whole put fails with
 * that error. It is handed back before the upload is aborted: whose abort fails, or is cut
 * off by the end of the process, is left to abort_uploads.
 *
 * A part that lands behind the abort would stay for good, in some servers where no listing
 * shows it. So after a failure parts that were sent whole are waited for (DRAIN); those
 * that were not, no server takes. A cancel waits for nothing but ABORT_PAUSE_MS.
 *
 * COMPLETE may take a server minutes, in which not every server sends a byte: it gets
 * COMPLETE_PATIENCE times the stall time. If its answer is lost, the object may be there
 * although the put has failed, as with any other put.
 *
 * Parts are hashed by put_start on its caller's thread, because the pool's has to serve
 * all others. Only the last part is shorter than part_len; memory is some 170 bytes for
 * each, and a copy of the key, since the put goes back before the abort is done.
 */
#include "s3_multipart.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"

#define MIB (UINT64_C(1) << 20)
#define PART_LEN_MIN (16 * MIB)
#define PART_COUNT_MAX 10000 /* S3's limit */
#define TRIES_MAX 3
#define PAUSE_MS_FIRST 250 /* and four times that before the next */
#define ABORT_PAUSE_MS 100
#define COMPLETE_PATIENCE 10
#define COPY_LEN ((size_t)256 << 10)
#define ANSWER_BUFFER_LEN (4L << 10)
#define COMPLETE_LEN_MAX ((size_t)PART_COUNT_MAX * (6 * US_S3_ETAG_LEN_MAX + 128))

/* ---- hashing, on the caller's thread. SHA-256 only computes once it has begun; S3 would
 * refuse a part with a wrong one. */

static int32_t hash_file(const struct us_put *put, uint64_t off, uint64_t len, uint8_t *copy,
			 EVP_MD_CTX *ctx, struct us_error *err)
{
	while (len > 0) {
		ssize_t n =
			pread(put->fd, copy, len < COPY_LEN ? (size_t)len : COPY_LEN, (off_t)off);
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return us_fail_errno(err, errno, "reading the spooled object");
		}
		if (n == 0) {
			return us_fail(err, US_E_IO, "the spooled object is shorter than it was");
		}
		(void)EVP_DigestUpdate(ctx, copy, (size_t)n); /* as above */
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static uint64_t len_of_part(const struct us_s3_upload *upload, uint64_t object_len, uint32_t part)
{
	uint64_t left = object_len - part * upload->part_len;
	return left < upload->part_len ? left : upload->part_len;
}

static int32_t hash_part(struct us_s3_upload *upload, uint32_t part, uint8_t *copy, EVP_MD_CTX *ctx,
			 struct us_error *err)
{
	const struct us_put *put = upload->put;
	uint64_t off = part * upload->part_len;
	uint64_t len = len_of_part(upload, put->len, part);
	if (!EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)) {
		return us_fail_nomem(err);
	}
	int32_t rc = 0;
	if (put->data) {
		(void)EVP_DigestUpdate(ctx, put->data + off, len); /* as above */
	} else {
		rc = hash_file(put, off, len, copy, ctx, err);
	}
	(void)EVP_DigestFinal_ex(ctx, upload->parts[part].sha256, NULL); /* as above */
	return rc;
}

static int32_t hash_parts(struct us_s3_store *store, struct us_s3_upload *upload,
			  struct us_error *err)
{
	uint8_t *copy = us_alloc(COPY_LEN);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	int32_t rc = copy && ctx ? 0 : us_fail_nomem(err);
	for (uint32_t i = 0; i < upload->part_count && !rc; i++) {
		rc = atomic_load(&store->canceled) ? us_fail(err, US_E_CANCELED, "canceled")
						   : hash_part(upload, i, copy, ctx, err);
	}
	EVP_MD_CTX_free(ctx);
	us_free(copy);
	return rc;
}

static uint64_t choose_part_len(uint64_t object_len)
{
	uint64_t least = (object_len + PART_COUNT_MAX - 1) / PART_COUNT_MAX;
	uint64_t rounded = (least + MIB - 1) / MIB * MIB;
	return rounded > PART_LEN_MIN ? rounded : PART_LEN_MIN;
}

int32_t us_s3_upload_new(struct us_s3_store *store, struct us_put *put,
			 struct us_s3_upload **ret_upload, struct us_error *err)
{
	if (put->len > US_S3_OBJECT_LEN_MAX) {
		return us_fail(err, US_E_UNSUPPORTED,
			       "PUT \"%.600s\": the object has %llu bytes; S3 holds up to 5 TiB",
			       put->key, (unsigned long long)put->len);
	}
	struct us_s3_upload *upload = us_alloc_zero(sizeof(*upload));
	if (!upload) {
		return us_fail_nomem(err);
	}
	us_text_init(&upload->body, COMPLETE_LEN_MAX);
	upload->put = put;
	upload->key = us_strdup(put->key);
	upload->part_len = choose_part_len(put->len);
	upload->part_count = (uint32_t)((put->len + upload->part_len - 1) / upload->part_len);
	upload->parts = us_alloc_array(upload->part_count, sizeof(*upload->parts));
	int32_t rc =
		upload->key && upload->parts ? hash_parts(store, upload, err) : us_fail_nomem(err);
	if (rc) {
		us_s3_upload_free(upload);
		return rc;
	}
	*ret_upload = upload;
	return 0;
}

void us_s3_upload_free(struct us_s3_upload *upload)
{
	if (upload) {
		us_text_done(&upload->body);
		us_free(upload->parts);
		us_free(upload->key);
		us_free(upload);
	}
}

/* ---- what each step sends, and what its answer means */

static int32_t build_create(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_s3_upload *upload = slot->job.item;
	slot->counts = &store->put;
	return us_s3_request_create(&slot->transfer.request, &store->endpoint, &store->signer,
				    upload->put, &slot->err);
}

static int32_t build_part(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_s3_upload *upload = slot->job.item;
	const struct us_put *put = upload->put;
	uint32_t part = slot->job.part;
	uint64_t off = part * upload->part_len;
	slot->body = (struct us_s3_body){ .data = put->data ? put->data + off : NULL,
					  .fd = put->fd,
					  .off = off,
					  .len = len_of_part(upload, put->len, part) };
	slot->counts = &store->put;
	slot->payload_len = slot->body.len;
	return us_s3_request_part(&slot->transfer.request, &store->endpoint, &store->signer,
				  upload->key, upload->id, part + 1, upload->parts[part].sha256,
				  &slot->err);
}

static void write_complete(struct us_s3_upload *upload)
{
	struct us_text *body = &upload->body;
	us_text_clear(body);
	us_text_puts(body, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
			   "<CompleteMultipartUpload "
			   "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	for (uint32_t i = 0; i < upload->part_count; i++) {
		char number[64];
		(void)snprintf(number, sizeof(number), "<Part><PartNumber>%u</PartNumber><ETag>",
			       i + 1);
		us_text_puts(body, number);
		us_s3_xml_escape(body, upload->parts[i].etag, strlen(upload->parts[i].etag));
		us_text_puts(body, "</ETag></Part>");
	}
	us_text_puts(body, "</CompleteMultipartUpload>");
}

static int32_t build_complete(struct us_s3_store *store, struct us_s3_slot *slot)
{
	struct us_s3_upload *upload = slot->job.item;
	uint8_t sha256[US_SHA256_LEN];
	write_complete(upload);
	if (upload->body.failed ||
	    !EVP_Digest(upload->body.data, upload->body.len, sha256, NULL, EVP_sha256(), NULL)) {
		return us_fail_nomem(&slot->err);
	}
	slot->body = (struct us_s3_body){ .data = (const uint8_t *)upload->body.data,
					  .fd = -1,
					  .len = upload->body.len };
	slot->counts = &store->put;
	return us_s3_request_complete(&slot->transfer.request, &store->endpoint, &store->signer,
				      upload->key, upload->id, sha256, &slot->err);
}

static int32_t build_abort(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_s3_upload *upload = slot->job.item;
	slot->counts = &store->remove;
	return us_s3_request_abort(&slot->transfer.request, &store->endpoint, &store->signer,
				   upload->key, upload->id, &slot->err);
}

/* Prefixes what was found in an answer with the request it concerns. */
static int32_t name_request(struct us_s3_slot *slot, const char *text)
{
	char what[800], copy[US_ERROR_MESSAGE_LEN];
	(void)snprintf(copy, sizeof(copy), "%s", text);
	us_s3_reply_what(&slot->store->endpoint, &slot->transfer.request, what, sizeof(what));
	(void)us_fail(&slot->err, US_E_HTTP, "%s: %s", what, copy);
	slot->err.http_status = slot->transfer.reply.status;
	return US_E_HTTP;
}

/* Whether the answer is DOCUMENT. */
static int32_t check_document(struct us_s3_slot *slot, enum us_s3_document document, char *ret_id)
{
	const struct us_s3_reply *reply = &slot->transfer.reply;
	const struct us_s3_endpoint *endpoint = &slot->store->endpoint;
	struct us_s3_error_doc doc;
	if (reply->status != 200) {
		return us_s3_reply_fail(reply, endpoint, &slot->transfer.request, 0, &slot->err);
	}
	int32_t rc = us_s3_xml_result(reply->body.data ? reply->body.data : "", reply->body.len,
				      document, ret_id, &doc, &slot->err);
	if (rc != US_E_HTTP) {
		return rc;
	}
	return doc.code[0] != '\0' ? us_s3_reply_fail_doc(reply, &doc, endpoint,
							  &slot->transfer.request, 0, &slot->err)
				   : name_request(slot, slot->err.message);
}

static int32_t check_create(struct us_s3_store *store, struct us_s3_slot *slot)
{
	struct us_s3_upload *upload = slot->job.item;
	(void)store;
	int32_t rc = check_document(slot, US_S3_CREATED, upload->id);
	atomic_store(&upload->has_id, rc == 0);
	return rc;
}

static int32_t check_part(struct us_s3_store *store, struct us_s3_slot *slot)
{
	struct us_s3_upload *upload = slot->job.item;
	const struct us_s3_reply *reply = &slot->transfer.reply;
	int32_t rc =
		us_s3_reply_check_put(reply, &store->endpoint, &slot->transfer.request, &slot->err);
	if (rc) {
		return rc;
	}
	if (reply->etag[0] == '\0') {
		return name_request(slot, "a part without an ETag, or with one that is too long");
	}
	memcpy(upload->parts[slot->job.part].etag, reply->etag, sizeof(reply->etag));
	return 0;
}

static int32_t check_complete(struct us_s3_store *store, struct us_s3_slot *slot)
{
	(void)store;
	return check_document(slot, US_S3_COMPLETED, NULL);
}

static int32_t check_abort(struct us_s3_store *store, struct us_s3_slot *slot)
{
	const struct us_s3_reply *reply = &slot->transfer.reply;
	if (reply->status == 200 || reply->status == 204) {
		return 0;
	}
	int32_t rc =
		us_s3_reply_fail(reply, &store->endpoint, &slot->transfer.request, 1, &slot->err);
	return rc == US_E_NOTFOUND ? 0 : rc; /* gone is what was wanted */
}

/* ---- the steps' order */

static void enter(struct us_s3_upload *upload, enum us_s3_upload_state state)
{
	upload->state = state;
	upload->tries = 0;
	upload->resume_ns = 0;
}

int us_s3_upload_is_ready(const struct us_s3_upload *upload, int64_t now_ns)
{
	if (now_ns < upload->resume_ns || upload->state == US_S3_UPLOAD_DRAIN) {
		return 0;
	}
	return upload->state == US_S3_UPLOAD_PARTS ? upload->scan < upload->part_count &&
							     upload->in_flight < US_S3_PARTS_AT_ONCE
						   : upload->in_flight == 0;
}

static const struct us_s3_kind kinds[];

struct us_s3_job us_s3_upload_next(struct us_s3_upload *upload)
{
	struct us_s3_job job = { .kind = &kinds[upload->state], .item = upload };
	upload->in_flight++;
	if (upload->state == US_S3_UPLOAD_PARTS) {
		job.part = upload->scan;
		upload->parts[upload->scan].is_begun = 1;
		while (upload->scan < upload->part_count && upload->parts[upload->scan].is_begun) {
			upload->scan++;
		}
	}
	return job;
}

static void hand_back(struct us_s3_store *store, struct us_s3_upload *upload, int32_t rc,
		      const struct us_error *err)
{
	struct us_put *put = upload->put;
	if (put) {
		put->rc = rc;
		if (rc) {
			put->err = *err;
		}
		upload->put = NULL;
		us_s3_pool_put_ended(store, put);
	}
}

/* Hands the put back as failed; nothing reads from it any more. */
static void give_up(struct us_s3_store *store, struct us_s3_upload *upload,
		    const struct us_error *err)
{
	hand_back(store, upload, err->code, err);
	if (atomic_load(&upload->has_id) && upload->state != US_S3_UPLOAD_ABORT) {
		enter(upload, US_S3_UPLOAD_ABORT);
		upload->resume_ns = us_clock_mono_ns() + ABORT_PAUSE_MS * US_NS_PER_MS;
	} else {
		us_s3_pool_upload_over(store, upload);
	}
}

void us_s3_upload_cancel(struct us_s3_store *store, struct us_s3_upload *upload,
			 const struct us_error *err)
{
	(void)us_s3_pool_drop(store, upload, 1); /* all that was under way */
	upload->in_flight = 0;
	give_up(store, upload, err);
}

/* Ends it with ERR as soon as no part is under way that could still land. */
static void fail(struct us_s3_store *store, struct us_s3_upload *upload, const struct us_error *err)
{
	upload->in_flight -= us_s3_pool_drop(store, upload, 0);
	if (upload->in_flight == 0) {
		give_up(store, upload, err);
		return;
	}
	upload->err = *err;
	enter(upload, US_S3_UPLOAD_DRAIN);
}

/* Whether the step is to be sent again. */
static int try_again(struct us_s3_upload *upload, uint32_t number, const struct us_error *err)
{
	int is_part = upload->state == US_S3_UPLOAD_PARTS;
	struct us_s3_part *part = &upload->parts[number];
	uint32_t tries = is_part ? ++part->tries : ++upload->tries;
	if (!err->retryable || tries >= TRIES_MAX) {
		return 0;
	}
	if (is_part) {
		part->is_begun = 0;
		upload->scan = number < upload->scan ? number : upload->scan;
	}
	upload->resume_ns =
		us_clock_mono_ns() + (PAUSE_MS_FIRST << (2 * (tries - 1))) * US_NS_PER_MS;
	return 1;
}

static void end_step(struct us_s3_store *store, const struct us_s3_job *job, int32_t rc,
		     const struct us_error *err)
{
	struct us_s3_upload *upload = job->item;
	upload->in_flight--;
	if (rc && upload->state != US_S3_UPLOAD_DRAIN) {
		if (!try_again(upload, job->part, err)) {
			fail(store, upload, err);
		}
		return;
	}
	switch (upload->state) {
	case US_S3_UPLOAD_DRAIN:
		if (upload->in_flight == 0) {
			give_up(store, upload, &upload->err);
		}
		break;
	case US_S3_UPLOAD_CREATE:
		enter(upload, US_S3_UPLOAD_PARTS);
		break;
	case US_S3_UPLOAD_PARTS:
		if (++upload->sent_count == upload->part_count) {
			enter(upload, US_S3_UPLOAD_COMPLETE);
		}
		break;
	default:
		hand_back(store, upload, 0, NULL);
		us_s3_pool_upload_over(store, upload);
		break;
	}
}

#define KIND(name, ...) \
	{ \
		.build = build_##name, .check = check_##name, .end = end_step, \
		.receive_buffer_len = ANSWER_BUFFER_LEN, __VA_ARGS__ \
	}

static const struct us_s3_kind kinds[] = {
	[US_S3_UPLOAD_CREATE] = KIND(create, .has_body = 1),
	[US_S3_UPLOAD_PARTS] = KIND(part, .has_body = 1, .is_paced = 1),
	[US_S3_UPLOAD_COMPLETE] = KIND(complete, .has_body = 1, .patience = COMPLETE_PATIENCE),
	[US_S3_UPLOAD_ABORT] = KIND(abort, .has_body = 0),
};
