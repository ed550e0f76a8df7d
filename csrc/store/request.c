/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Building S3 requests. Headers are added in the order of their names, which is
 * the order the signature wants; every header but Authorization and Expect is
 * signed. The lines lie NUL-separated in one text; the list that curl gets is
 * linked over them once the text no longer moves.
 *
 * An identity that is empty gives a plain request without x-amz-date and
 * x-amz-content-sha256.
 *
 * Locks: signer->lock, taken here alone, while a request is put together (some
 * 10 us): the identity may be replaced by another thread at any time, and its
 * cached signing key is written here.
 */
#include "request.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "../base/hex.h"
#include "../base/clock.h"
#include "s3_xml.h"

#define URL_LEN_MAX (32u << 10)     /* origin, escaped key or prefix, escaped token */
#define HEADERS_LEN_MAX (16u << 10) /* the token is the longest */
#define QUERY_PAIRS_MAX 5
#define XML_TYPE "application/xml"
#define SIGNATURE_MARK "Signature="
#define NO_EXPECT "Expect:" /* waiting for 100-continue costs a second where servers ignore it */
#define TOKEN_HEADER "x-amz-security-token"

int32_t us_s3_signer_init(struct us_s3_signer *signer, struct us_error *err)
{
	void *pages = mmap(NULL, sizeof(*signer->identity), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED) {
		return us_fail_nomem(err);
	}
	(void)madvise(pages, sizeof(*signer->identity), MADV_DONTDUMP);   /* since Linux 3.4 */
	(void)madvise(pages, sizeof(*signer->identity), MADV_WIPEONFORK); /* since 4.14 */
	if (pthread_mutex_init(&signer->lock, NULL)) {
		(void)munmap(pages,
			     sizeof(*signer->identity)); /* cannot fail for a whole mapping */
		return us_fail_nomem(err);
	}
	signer->identity = pages;
	return 0;
}

void us_s3_signer_done(struct us_s3_signer *signer)
{
	if (!signer->identity) {
		return;
	}
	us_sigv4_identity_wipe(signer->identity);
	(void)munmap(signer->identity, sizeof(*signer->identity)); /* as above */
	(void)pthread_mutex_destroy(&signer->lock);                /* nobody is left to hold it */
	signer->identity = NULL;
}

int32_t us_s3_signer_set(struct us_s3_signer *signer, const struct us_s3_credentials *credentials,
			 struct us_error *err)
{
	pthread_mutex_lock(&signer->lock);
	int32_t rc = us_sigv4_identity_set(signer->identity, credentials->access_key_id,
					   credentials->secret_access_key,
					   credentials->session_token, err);
	pthread_mutex_unlock(&signer->lock);
	return rc;
}

void us_s3_request_init(struct us_s3_request *request)
{
	memset(request, 0, sizeof(*request));
	us_text_init(&request->url, URL_LEN_MAX);
	us_text_init(&request->headers, HEADERS_LEN_MAX);
	us_text_init(&request->authorization, HEADERS_LEN_MAX);
}

void us_s3_request_done(struct us_s3_request *request)
{
	us_text_done(&request->url);
	us_text_done(&request->headers);
	us_text_done(&request->authorization);
}

static void begin(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
		  const char *method, const char *key)
{
	request->method = method;
	request->key = key;
	request->line_count = 0;
	us_text_clear(&request->headers);
	us_text_clear(&request->authorization);
	us_text_puts(&request->headers, NO_EXPECT);
	us_text_end_string(&request->headers);
	us_text_clear(&request->url);
	us_text_puts(&request->url, endpoint->origin);
	us_text_puts(&request->url, endpoint->root);
	us_text_puts(&request->url, "/");
}

static void add_header(struct us_s3_request *request, const char *name, const char *value)
{
	struct us_text *text = &request->headers;
	if (!value || request->line_count == US_S3_HEADERS_MAX) {
		US_ASSERT(!value);
		return;
	}
	struct us_s3_line *line = &request->lines[request->line_count++];
	line->off = text->len;
	line->name_len = strlen(name);
	us_text_puts(text, name);
	us_text_puts(text, ": ");
	line->value_off = text->len;
	line->value_len = strlen(value);
	us_text_puts(text, value);
	us_text_end_string(text);
}

/* What stands in every request, before and after the headers of its kind: names
 * up to "x-amz-date", and from "x-amz-security-token". */
struct common {
	char time[US_TIME_NAME_LEN + 1];
	char sha256[US_SHA256_HEX_LEN + 1];
	int is_signed;
};

static void add_time_and_hash(struct us_s3_request *request, const struct common *common)
{
	if (common->is_signed) {
		add_header(request, "x-amz-content-sha256", common->sha256);
		add_header(request, "x-amz-date", common->time);
	}
}

static void add_token(struct us_s3_request *request, const struct us_sigv4_identity *identity)
{
	if (identity->token[0] != '\0' && !us_sigv4_is_anonymous(identity)) {
		add_header(request, TOKEN_HEADER, identity->token);
	}
}

static void add_encryption(struct us_s3_request *request, const struct us_s3_endpoint *endpoint)
{
	add_header(request, "x-amz-server-side-encryption", endpoint->sse);
	add_header(request, "x-amz-server-side-encryption-aws-kms-key-id",
		   endpoint->sse_kms_key_id);
}

static void start_common(struct us_s3_signer *signer, struct common *ret_common)
{
	us_time_name_format((uint32_t)(us_clock_wall_ns() / US_NS_PER_S), ret_common->time);
	memcpy(ret_common->sha256, US_SHA256_EMPTY, sizeof(ret_common->sha256));
	ret_common->is_signed = !us_sigv4_is_anonymous(signer->identity);
}

/* Links the finished lines for curl. */
static void link_headers(struct us_s3_request *request)
{
	size_t count = 0;
	for (; count < request->line_count; count++) {
		request->list[count].data = request->headers.data + request->lines[count].off;
	}
	if (request->authorization.len > 0) {
		request->list[count++].data = request->authorization.data;
	}
	request->list[count++].data = request->headers.data; /* NO_EXPECT */
	for (size_t i = 0; i < count; i++) {
		request->list[i].next = i + 1 < count ? &request->list[i + 1] : NULL;
	}
}

/* Signs what was put together, if there is somebody to sign, and links the list. */
static int32_t finish(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
		      struct us_s3_signer *signer, const struct common *common,
		      struct us_error *err)
{
	if (request->url.failed || request->headers.failed) {
		return us_fail_nomem(err);
	}
	if (common->is_signed) {
		struct us_sigv4_header headers[US_S3_HEADERS_MAX];
		const char *text = request->headers.data;
		for (size_t i = 0; i < request->line_count; i++) {
			const struct us_s3_line *line = &request->lines[i];
			headers[i] = (struct us_sigv4_header){ .name = text + line->off,
							       .name_len = line->name_len,
							       .value = text + line->value_off,
							       .value_len = line->value_len };
		}
		char *path = request->url.data + strlen(endpoint->origin);
		char *mark = strchr(path, '?');
		if (mark) {
			*mark = '\0'; /* for as long as the path is signed */
		}
		struct us_sigv4_request sign = { .method = request->method,
						 .path = path,
						 .query = mark ? mark + 1 : "",
						 .headers = headers,
						 .header_count = request->line_count,
						 .payload_sha256 = common->sha256,
						 .time = common->time,
						 .region = endpoint->region };
		us_text_puts(&request->authorization, "Authorization: ");
		int32_t rc = us_sigv4_authorization(signer->identity, &sign,
						    &request->authorization, err);
		if (mark) {
			*mark = '?';
		}
		if (rc) {
			return rc;
		}
	}
	link_headers(request);
	return 0;
}

static int32_t check_key(const char *key, struct us_error *err)
{
	size_t len = strnlen(key, US_S3_KEY_LEN_MAX + 1);
	if (len == 0 || len > US_S3_KEY_LEN_MAX) {
		return us_fail(err, US_E_ARG, "key %.100s: empty, or more than %d bytes", key,
			       US_S3_KEY_LEN_MAX);
	}
	return 0;
}

static struct us_sigv4_query_pair pair(const char *name, const char *value)
{
	return (struct us_sigv4_query_pair){ name, value, strlen(name), strlen(value) };
}

/* The headers that make an object what it is: of PUT, and of the start of an upload in
 * parts. */
static int32_t object_request(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			      struct us_s3_signer *signer, const struct us_put *put, int in_parts,
			      struct us_error *err)
{
	struct common common;
	int32_t rc = check_key(put->key, err);
	if (rc) {
		return rc;
	}
	pthread_mutex_lock(&signer->lock);
	start_common(signer, &common);
	begin(request, endpoint, in_parts ? "POST" : "PUT", put->key);
	us_text_add_encoded(&request->url, put->key, strlen(put->key), 1);
	if (in_parts) {
		us_text_puts(&request->url, "?uploads=");
	} else {
		us_hex(put->sha256, sizeof(put->sha256), common.sha256);
	}
	add_header(request, "content-type", "application/octet-stream");
	add_header(request, "host", endpoint->host);
	add_time_and_hash(request, &common);
	if (put->lz4_sha256[0] != '\0') {
		add_header(request, "x-amz-meta-lz4-sha256", put->lz4_sha256);
	}
	if (put->snapshot_time[0] != '\0') {
		add_header(request, "x-amz-meta-snapshot-time", put->snapshot_time);
	}
	add_token(request, signer->identity);
	add_encryption(request, endpoint);
	add_header(request, "x-amz-storage-class", endpoint->storage_class);
	rc = finish(request, endpoint, signer, &common, err);
	pthread_mutex_unlock(&signer->lock);
	return rc;
}

int32_t us_s3_request_put(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			  struct us_s3_signer *signer, const struct us_put *put,
			  struct us_error *err)
{
	return object_request(request, endpoint, signer, put, 0, err);
}

int32_t us_s3_request_create(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			     struct us_s3_signer *signer, const struct us_put *put,
			     struct us_error *err)
{
	return object_request(request, endpoint, signer, put, 1, err);
}

/* A request without metadata. What is NULL or 0 is not there. */
struct plain {
	const char *method;
	const char *about; /* for messages */
	const char *key;   /* in the path; NULL: it is the bucket's */
	struct us_sigv4_query_pair pairs[QUERY_PAIRS_MAX];
	size_t pair_count;
	const char *content_md5, *content_type, *if_match, *if_none_match, *range;
	int is_encrypted; /* an object is made: as the configuration says */
	const uint8_t *sha256; /* of what is sent */
};

static int32_t plain_request(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			     struct us_s3_signer *signer, struct plain *plain, struct us_error *err)
{
	struct common common;
	int32_t rc = plain->key ? check_key(plain->key, err) : 0;
	if (rc) {
		return rc;
	}
	pthread_mutex_lock(&signer->lock);
	start_common(signer, &common);
	if (plain->sha256) {
		us_hex(plain->sha256, US_SHA256_LEN, common.sha256);
	}
	begin(request, endpoint, plain->method, plain->about);
	if (plain->key) {
		us_text_add_encoded(&request->url, plain->key, strlen(plain->key), 1);
	}
	if (plain->pair_count > 0) {
		us_text_puts(&request->url, "?");
		us_sigv4_add_query(&request->url, plain->pairs, plain->pair_count);
	}
	add_header(request, "content-md5", plain->content_md5);
	add_header(request, "content-type", plain->content_type);
	add_header(request, "host", endpoint->host);
	add_header(request, "if-match", plain->if_match);
	add_header(request, "if-none-match", plain->if_none_match);
	add_header(request, "range", plain->range);
	add_time_and_hash(request, &common);
	add_token(request, signer->identity);
	if (plain->is_encrypted) {
		add_encryption(request, endpoint);
	}
	rc = finish(request, endpoint, signer, &common, err);
	pthread_mutex_unlock(&signer->lock);
	return rc;
}

int32_t us_s3_request_get(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			  struct us_s3_signer *signer, const char *key, const char *range,
			  struct us_error *err)
{
	struct plain plain = { .method = "GET", .about = key, .key = key, .range = range };
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_write(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			    struct us_s3_signer *signer, const char *key, const char *tag,
			    const uint8_t sha256[US_SHA256_LEN], struct us_error *err)
{
	struct plain plain = { .method = "PUT",
			       .about = key,
			       .key = key,
			       .content_type = "application/octet-stream",
			       .if_match = tag && tag[0] ? tag : NULL,
			       .if_none_match = tag && !tag[0] ? "*" : NULL,
			       .is_encrypted = 1,
			       .sha256 = sha256 };
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_remove(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			     struct us_s3_signer *signer, const char *key, struct us_error *err)
{
	struct plain plain = { .method = "DELETE", .about = key, .key = key };
	return plain_request(request, endpoint, signer, &plain, err);
}

static int32_t check_prefix(const char *prefix, struct us_error *err)
{
	if (strnlen(prefix, US_S3_KEY_LEN_MAX + 1) > US_S3_KEY_LEN_MAX) {
		return us_fail(err, US_E_ARG, "prefix %.100s...: more than %d bytes", prefix,
			       US_S3_KEY_LEN_MAX);
	}
	return 0;
}

int32_t us_s3_request_list(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			   struct us_s3_signer *signer, const char *prefix, const char *token,
			   const char *after, struct us_error *err)
{
	int32_t rc = check_prefix(prefix, err);
	if (rc) {
		return rc;
	}
	struct plain plain = { .method = "GET", .about = prefix };
	plain.pairs[plain.pair_count++] = pair("encoding-type", "url");
	plain.pairs[plain.pair_count++] = pair("list-type", "2");
	plain.pairs[plain.pair_count++] = pair("max-keys", "1000");
	plain.pairs[plain.pair_count++] = pair("prefix", prefix);
	if (token) {
		plain.pairs[plain.pair_count++] = pair("continuation-token", token);
	} else if (after) {
		plain.pairs[plain.pair_count++] = pair("start-after", after);
	}
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_uploads(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			      struct us_s3_signer *signer, const char *prefix,
			      const char *after_key, struct us_error *err)
{
	int32_t rc = check_prefix(prefix, err);
	if (rc) {
		return rc;
	}
	struct plain plain = { .method = "GET", .about = prefix };
	plain.pairs[plain.pair_count++] = pair("encoding-type", "url");
	plain.pairs[plain.pair_count++] = pair("max-uploads", "1000");
	plain.pairs[plain.pair_count++] = pair("prefix", prefix);
	plain.pairs[plain.pair_count++] = pair("uploads", "");
	if (after_key) {
		plain.pairs[plain.pair_count++] = pair("key-marker", after_key);
	}
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_remove_many(struct us_s3_request *request,
				  const struct us_s3_endpoint *endpoint,
				  struct us_s3_signer *signer, const char *about,
				  const uint8_t sha256[US_SHA256_LEN], const char *content_md5,
				  struct us_error *err)
{
	struct plain plain = { .method = "POST",
			       .about = about,
			       .pairs = { pair("delete", "") },
			       .pair_count = 1,
			       .content_md5 = content_md5,
			       .content_type = XML_TYPE,
			       .sha256 = sha256 };
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_part(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			   struct us_s3_signer *signer, const char *key, const char *upload_id,
			   uint32_t number, const uint8_t sha256[US_SHA256_LEN],
			   struct us_error *err)
{
	char text[16];
	(void)snprintf(text, sizeof(text), "%u", number);
	struct plain plain = { .method = "PUT",
			       .about = key,
			       .key = key,
			       .pairs = { pair("partNumber", text), pair("uploadId", upload_id) },
			       .pair_count = 2,
			       .sha256 = sha256 };
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_complete(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			       struct us_s3_signer *signer, const char *key, const char *upload_id,
			       const uint8_t sha256[US_SHA256_LEN], struct us_error *err)
{
	struct plain plain = { .method = "POST",
			       .about = key,
			       .key = key,
			       .pairs = { pair("uploadId", upload_id) },
			       .pair_count = 1,
			       .content_type = XML_TYPE,
			       .sha256 = sha256 };
	return plain_request(request, endpoint, signer, &plain, err);
}

int32_t us_s3_request_abort(struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			    struct us_s3_signer *signer, const char *key, const char *upload_id,
			    struct us_error *err)
{
	struct plain plain = { .method = "DELETE",
			       .about = key,
			       .key = key,
			       .pairs = { pair("uploadId", upload_id) },
			       .pair_count = 1 };
	return plain_request(request, endpoint, signer, &plain, err);
}

int us_s3_request_leaks(const struct us_s3_request *request, const char *text)
{
	const char *signature = request->authorization.len > 0
					? strstr(request->authorization.data, SIGNATURE_MARK)
					: NULL;
	if (signature && strstr(text, signature + strlen(SIGNATURE_MARK))) {
		return 1;
	}
	for (size_t i = 0; i < request->line_count; i++) {
		const struct us_s3_line *line = &request->lines[i];
		const char *value = request->headers.data + line->value_off;
		if (line->name_len == strlen(TOKEN_HEADER) &&
		    memcmp(request->headers.data + line->off, TOKEN_HEADER, line->name_len) == 0) {
			char start[17] = { 0 }; /* the message may hold the token cut off */
			memcpy(start, value, line->value_len < 16 ? line->value_len : 16);
			return strstr(text, start) != NULL;
		}
	}
	return 0;
}
