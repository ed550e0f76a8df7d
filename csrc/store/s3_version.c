/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small object that several processes take turns to write: its version is its ETag, and
 * a PUT carries If-Match, or If-None-Match: * where there is to be none. AWS (since
 * November 2024), Google, R2, MinIO and versitygw keep to these; whoever calls cannot be
 * sure of it, as a server that does not know them may ignore them. Its age is the
 * difference between two times of the server's: no clock of ours has a part in it.
 *
 * What is read decides who may write, so here an answer must look like S3's: what came from
 * something on the way would pass for an object that is nobody's.
 */
#include <openssl/sha.h>
#include <string.h>

#include "s3_call.h"

struct buffer {
	uint8_t *data;
	size_t len, cap;
};

static int32_t keep(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct buffer *buffer = arg;
	if (data_len > buffer->cap - buffer->len) {
		return us_fail(err, US_E_OBJECT, "it has more than %zu bytes", buffer->cap);
	}
	memcpy(buffer->data + buffer->len, data, data_len);
	buffer->len += data_len;
	return 0;
}

static int is_s3s(const struct us_s3_reply *reply)
{
	return (reply->has_etag || reply->request_id[0] != '\0') && !reply->is_compressed;
}

static void version_of(const struct us_s3_reply *reply, struct us_store_version *ret)
{
	const char *tag = reply->etag[0] != '\0' ? reply->etag : US_STORE_TAG_ANY;
	memcpy(ret->tag, tag, strlen(tag) + 1);
	int is_told = reply->date_s >= 0 && reply->modified_s >= 0;
	ret->age_s = !is_told                            ? -1
		     : reply->date_s > reply->modified_s ? reply->date_s - reply->modified_s
							 : 0;
}

int32_t us_s3_read_version(struct us_store *base, const char *key, uint8_t *ret_data, size_t cap,
			   size_t *ret_len, struct us_store_version *ret_version,
			   struct us_error *err)
{
	struct us_s3_call *call = us_s3_call_take((struct us_s3_store *)base, err);
	if (!call) {
		return US_E_NOMEM;
	}
	struct buffer buffer = { .data = ret_data, .cap = cap };
	uint64_t total;
	int32_t rc = us_s3_call_get(call, key, 0, UINT64_MAX, keep, &buffer, &total, err);
	if (!rc && !is_s3s(&call->transfer.reply)) {
		rc = us_fail(err, US_E_HTTP, "GET \"%s\": 200 not S3's answer", key);
	}
	if (!rc) {
		*ret_len = buffer.len;
		version_of(&call->transfer.reply, ret_version);
	}
	us_s3_call_put_back(call);
	return rc;
}

/* Whether the server saw another version than was asked for. 404: If-Match, and nothing is
 * there. */
static int is_other_version(const struct us_s3_reply *reply, const char *tag)
{
	return reply->status == 412 || (reply->status == 404 && tag[0] != '\0');
}

/* RC of a write with a condition. 409: another write is under way, and who wins is open. */
static int32_t check_condition(const struct us_s3_reply *reply, const char *key, const char *tag,
			       int32_t rc, struct us_error *err)
{
	if (is_other_version(reply, tag)) {
		return us_fail(err, US_E_EXISTS, "PUT \"%s\": another process has written it", key);
	}
	return reply->status == 409
		       ? us_fail(err, US_E_BUSY, "PUT \"%s\": another process is writing it", key)
		       : rc;
}

static int32_t write_once(struct us_s3_call *call, const char *key, const char *tag,
			  struct us_error *err)
{
	struct us_s3_store *store = call->store;
	uint8_t sha256[US_SHA256_LEN];
	SHA256((const uint8_t *)call->body.data, call->body.len, sha256);
	int32_t rc = us_s3_request_write(&call->transfer.request, &store->endpoint, &store->signer,
					 key, tag, sha256, err);
	rc = rc ? rc : us_s3_call_perform(call, &store->put, err);
	if (rc) {
		return rc;
	}
	rc = us_s3_reply_check_put(&call->transfer.reply, &store->endpoint, &call->transfer.request,
				   err);
	return rc && tag ? check_condition(&call->transfer.reply, key, tag, rc, err) : rc;
}

int32_t us_s3_write_version(struct us_store *base, const char *key, const char *tag,
			    const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct us_s3_store *store = (struct us_s3_store *)base;
	struct us_s3_call *call = us_s3_call_take(store, err);
	if (!call) {
		return US_E_NOMEM;
	}
	tag = store->no_conditions ? NULL : tag;
	us_text_clear(&call->body);
	us_text_add(&call->body, data, data_len);
	call->has_body = 1;
	int32_t rc = call->body.failed ? us_fail_nomem(err) : write_once(call, key, tag, err);
	if (rc && tag && us_s3_reply_is_unsupported(&call->transfer.reply)) {
		us_error_clear(err);
		rc = write_once(call, key, NULL, err);
		store->no_conditions = rc == 0; /* one request each from now on */
	}
	us_s3_call_put_back(call);
	return rc;
}
