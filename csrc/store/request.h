/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_REQUEST_H
#define US_STORE_REQUEST_H

#include <curl/curl.h>
#include <pthread.h>

#include "endpoint.h"
#include "sigv4.h"
#include "text.h"

/*
 * One signed request as curl wants it: URL and header list. A request object is
 * built again and again; its memory stays, so a pooled one stops allocating.
 */

#define US_S3_HEADERS_MAX 16

/* Who signs, shared by all requests of a store. The identity lies in pages of its
 * own that core dumps leave out. */
struct us_s3_signer {
	pthread_mutex_t lock; /* held while a request is put together, never across I/O */
	struct us_sigv4_identity *identity;
};

int32_t us_s3_signer_init(struct us_s3_signer *signer, struct us_error *err);
void us_s3_signer_done(struct us_s3_signer *signer);
int32_t us_s3_signer_set(struct us_s3_signer *signer, const struct us_s3_credentials *credentials,
			 struct us_error *err);

struct us_s3_line { /* "name: value" in the text of headers */
	size_t off, name_len, value_off, value_len;
};

struct us_s3_request {
	const char *method;
	const char *key; /* what it is about, for messages; borrowed from the caller */
	struct us_text url, headers, authorization;
	struct us_s3_line lines[US_S3_HEADERS_MAX];
	size_t line_count;
	struct curl_slist list[US_S3_HEADERS_MAX + 2]; /* the lines, then authorization, Expect */
};

void us_s3_request_init(struct us_s3_request *request);
void us_s3_request_done(struct us_s3_request *request);

/* Each builds REQUEST anew, signed for now. 0, or US_E_NOMEM; US_E_ARG for a key
 * that is empty or longer than S3 allows. */
int32_t us_s3_request_put(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			  struct us_s3_signer *signer, const struct us_put *put,
			  struct us_error *err);
/* RANGE: the value of the Range header, or NULL. */
int32_t us_s3_request_get(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			  struct us_s3_signer *signer, const char *key, const char *range,
			  struct us_error *err);
/* A PUT without metadata of an object whose version is TAG ("": there is none; NULL:
 * whatever it is). */
int32_t us_s3_request_write(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			    struct us_s3_signer *signer, const char *key, const char *tag,
			    const uint8_t sha256[US_SHA256_LEN], struct us_error *err);
int32_t us_s3_request_remove(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			     struct us_s3_signer *signer, const char *key, struct us_error *err);
/* TOKEN: where to go on, or NULL. AFTER: keys that sort after it, or NULL for all. */
int32_t us_s3_request_list(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			   struct us_s3_signer *signer, const char *prefix, const char *token,
			   const char *after, struct us_error *err);

/* One page of the uploads in parts below PREFIX; AFTER_KEY: where to go on, or NULL. */
int32_t us_s3_request_uploads(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			      struct us_s3_signer *signer, const char *prefix,
			      const char *after_key, struct us_error *err);
/* DeleteObjects. ABOUT: one of the keys, for messages. Of the body: its SHA-256, and its
 * MD5 in base64. */
int32_t us_s3_request_remove_many(struct us_s3_request *request,
				  const struct us_s3_endpoint *endpoint,
				  struct us_s3_signer *signer, const char *about,
				  const uint8_t sha256[US_SHA256_LEN], const char *content_md5,
				  struct us_error *err);
/* The steps of an upload in parts: start, one part (NUMBER from 1), end, or end without
 * object. */
int32_t us_s3_request_create(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			     struct us_s3_signer *signer, const struct us_put *put,
			     struct us_error *err);
int32_t us_s3_request_part(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			   struct us_s3_signer *signer, const char *key, const char *upload_id,
			   uint32_t number, const uint8_t sha256[US_SHA256_LEN],
			   struct us_error *err);
int32_t us_s3_request_complete(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			       struct us_s3_signer *signer, const char *key, const char *upload_id,
			       const uint8_t sha256[US_SHA256_LEN], struct us_error *err);
int32_t us_s3_request_abort(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			    struct us_s3_signer *signer, const char *key, const char *upload_id,
			    struct us_error *err);

/* Whether TEXT, which a server sent, repeats the signature or the session token
 * that REQUEST carried. */
int us_s3_request_leaks(const struct us_s3_request *request, const char *text);

#endif
