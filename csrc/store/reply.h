/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_REPLY_H
#define US_STORE_REPLY_H

#include "endpoint.h"
#include "request.h"
#include "s3_xml.h"

/* What a server answered, and what that means. */

#define US_S3_ETAG_LEN_MAX US_STORE_TAG_LEN_MAX /* an opaque text; AWS's have 34 bytes */

struct us_s3_reply {
	int32_t status;                    /* of the last status line; 0: none yet */
	char etag[US_S3_ETAG_LEN_MAX + 1]; /* as received; "": none, or too long */
	int has_etag;
	int has_head;        /* its headers have come to their end */
	int is_compressed;   /* by Content-Encoding, which nobody asked for */
	int64_t content_len; /* -1: not told */
	int64_t range_first, range_last, range_total; /* Content-Range; -1: not told */
	int64_t date_s, modified_s;                   /* Date, Last-Modified; -1: not told */
	char request_id[80];
	char bucket_region[64];
	struct us_text body; /* the first US_S3_ERROR_LEN_MAX bytes of what is no object */
	size_t header_len, discarded_len;
	int body_too_long;
};

void us_s3_reply_init(struct us_s3_reply *reply);
void us_s3_reply_done(struct us_s3_reply *reply);
void us_s3_reply_clear(struct us_s3_reply *reply);

/* For CURLOPT_HEADERFUNCTION; USER is the reply. Stops the transfer where headers
 * do not end. */
size_t us_s3_reply_header(char *data, size_t one, size_t data_len, void *user);
/* Keeps a piece of the body. 0, or -1 if it is longer than any sane answer. */
int us_s3_reply_add_body(struct us_s3_reply *reply, const char *data, size_t data_len);

/* The answer as an error, for a status that is no success or an Error document.
 * Chooses the code; US_E_NOTFOUND only if KEY_CAN_MISS and the key, or the upload in
 * parts, is missing. */
int32_t us_s3_reply_fail(const struct us_s3_reply *reply, const struct us_s3_endpoint *endpoint,
			 const struct us_s3_request *request, int key_can_miss,
			 struct us_error *err);
/* The same where the document was parsed elsewhere. */
int32_t us_s3_reply_fail_doc(const struct us_s3_reply *reply, const struct us_s3_error_doc *doc,
			     const struct us_s3_endpoint *endpoint,
			     const struct us_s3_request *request, int key_can_miss,
			     struct us_error *err);

/* Whether the answer asks to send less (503, 429). */
int us_s3_reply_is_throttle(const struct us_s3_reply *reply);

/* Whether the server has no such request at all. */
int us_s3_reply_is_unsupported(const struct us_s3_reply *reply);

/* 0 if the answer acknowledges a PUT, else the failure. */
int32_t us_s3_reply_check_put(const struct us_s3_reply *reply,
			      const struct us_s3_endpoint *endpoint,
			      const struct us_s3_request *request, struct us_error *err);

/* `PUT "bucket/key"` into RET (CAP bytes), for a message. */
void us_s3_reply_what(const struct us_s3_endpoint *endpoint, const struct us_s3_request *request,
		      char *ret, size_t cap);

#endif
