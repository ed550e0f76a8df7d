/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading answers. Headers are taken from the last status line on (there may be
 * several: 100 Continue, or a resend on a fresh connection). Of bodies that are
 * errors a bounded part is kept and parsed; nothing but the fields of an Error
 * document ever reaches a message, because pages of proxies repeat request headers.
 *
 * A PUT counts as done only if the answer is what S3 gives: 200, and an ETag (or, with
 * no body, at least a request id). A captive portal's 200 is no acknowledgement, with a
 * page or without, and neither is a 200 that carries an Error document.
 */
#include "reply.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

/* No answer is that long: the transfer is stopped. */
#define BODY_LEN_MAX (1u << 20)
#define HEADER_LEN_MAX (256u << 10)

void us_s3_reply_init(struct us_s3_reply *reply)
{
	memset(reply, 0, sizeof(*reply));
	us_text_init(&reply->body, US_S3_ERROR_LEN_MAX);
	us_s3_reply_clear(reply);
}

void us_s3_reply_done(struct us_s3_reply *reply)
{
	us_text_done(&reply->body);
}

static void clear_headers(struct us_s3_reply *reply)
{
	reply->status = 0;
	reply->has_etag = 0;
	reply->has_head = reply->is_compressed = 0;
	reply->etag[0] = '\0';
	reply->content_len = -1;
	reply->range_first = reply->range_last = reply->range_total = -1;
	reply->date_s = reply->modified_s = -1;
	reply->request_id[0] = '\0';
	reply->bucket_region[0] = '\0';
}

void us_s3_reply_clear(struct us_s3_reply *reply)
{
	clear_headers(reply);
	us_text_clear(&reply->body);
	reply->body_too_long = 0;
	reply->header_len = reply->discarded_len = 0;
}

/* A decimal number at *TEXT of at most 18 digits, moved past it; -1 if none. */
static int64_t take_number(const char **text, const char *end)
{
	int64_t number = 0;
	const char *p = *text;
	for (; p < end && *p >= '0' && *p <= '9'; p++) {
		if (p - *text == 18) {
			return -1;
		}
		number = number * 10 + (*p - '0');
	}
	if (p == *text) {
		return -1;
	}
	*text = p;
	return number;
}

static int take_literal(const char **text, const char *end, const char *literal)
{
	size_t len = strlen(literal);
	if ((size_t)(end - *text) < len || strncasecmp(*text, literal, len) != 0) {
		return 0;
	}
	*text += len;
	return 1;
}

/* "HTTP/1.1 200 OK" */
static void read_status_line(struct us_s3_reply *reply, const char *p, const char *end)
{
	clear_headers(reply);
	while (p < end && *p != ' ') {
		p++;
	}
	while (p < end && *p == ' ') {
		p++;
	}
	int64_t status = take_number(&p, end);
	reply->status = status >= 100 && status <= 599 ? (int32_t)status : 0;
}

/* "bytes 0-9/443", the total possibly "*" */
static void read_content_range(struct us_s3_reply *reply, const char *p, const char *end)
{
	if (!take_literal(&p, end, "bytes ")) {
		return;
	}
	int64_t first = take_number(&p, end);
	if (first < 0 || !take_literal(&p, end, "-")) {
		return;
	}
	int64_t last = take_number(&p, end);
	if (last < first || !take_literal(&p, end, "/")) {
		return;
	}
	reply->range_first = first;
	reply->range_last = last;
	reply->range_total = take_number(&p, end);
}

/* "Wed, 25 Nov 2026 02:32:27 GMT"; -1 for what is no date. */
static int64_t read_date(const char *p, const char *end)
{
	char text[64];
	if ((size_t)(end - p) >= sizeof(text)) {
		return -1;
	}
	memcpy(text, p, (size_t)(end - p));
	text[end - p] = '\0';
	return (int64_t)curl_getdate(text, NULL);
}

static int is_compression(const char *p, const char *end)
{
	static const char *const names[] = {
		"gzip", "x-gzip", "deflate", "br", "zstd", "compress"
	};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *at = p;
		if (take_literal(&at, end, names[i]) && (at == end || *at == ',')) {
			return 1;
		}
	}
	return 0;
}

static void copy_value(char *ret, size_t cap, const char *p, const char *end)
{
	size_t len = 0;
	for (; p < end && len < cap - 1; p++) {
		if (*p > ' ' && *p <= '~') {
			ret[len++] = *p;
		}
	}
	ret[len] = '\0';
}

size_t us_s3_reply_header(char *data, size_t one, size_t data_len, void *user)
{
	struct us_s3_reply *reply = user;
	(void)one; /* always 1 */
	const char *p = data;
	const char *end = data + data_len;
	reply->header_len += data_len;
	if (reply->header_len > HEADER_LEN_MAX) {
		return 0;
	}
	if (data_len > 0 && (*data == '\r' || *data == '\n')) {
		reply->has_head = reply->status >= 200;
		return data_len;
	}
	while (end > p && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' ')) {
		end--;
	}
	if (take_literal(&p, end, "HTTP/")) {
		read_status_line(reply, p, end);
		return data_len;
	}
	const char *colon = memchr(p, ':', (size_t)(end - p));
	if (!colon) {
		return data_len;
	}
	const char *value = colon + 1;
	while (value < end && (*value == ' ' || *value == '\t')) {
		value++;
	}
	if (take_literal(&p, end, "etag:")) {
		reply->has_etag = value < end;
		if ((size_t)(end - value) < sizeof(reply->etag)) {
			copy_value(reply->etag, sizeof(reply->etag), value, end);
		}
	} else if (take_literal(&p, end, "content-length:")) {
		reply->content_len = take_number(&value, end);
	} else if (take_literal(&p, end, "content-encoding:")) {
		reply->is_compressed |= is_compression(value, end);
	} else if (take_literal(&p, end, "date:")) {
		reply->date_s = read_date(value, end);
	} else if (take_literal(&p, end, "last-modified:")) {
		reply->modified_s = read_date(value, end);
	} else if (take_literal(&p, end, "content-range:")) {
		read_content_range(reply, value, end);
	} else if (take_literal(&p, end, "x-amz-request-id:")) {
		copy_value(reply->request_id, sizeof(reply->request_id), value, end);
	} else if (take_literal(&p, end, "x-amz-bucket-region:")) {
		copy_value(reply->bucket_region, sizeof(reply->bucket_region), value, end);
	}
	return data_len;
}

int us_s3_reply_add_body(struct us_s3_reply *reply, const char *data, size_t data_len)
{
	size_t room = reply->body.len_max - reply->body.len;
	size_t keep = data_len < room ? data_len : room;
	us_text_add(&reply->body, data, keep);
	reply->discarded_len += data_len - keep;
	reply->body_too_long |= reply->discarded_len > BODY_LEN_MAX;
	return reply->body_too_long ? -1 : 0;
}

void us_s3_reply_what(const struct us_s3_endpoint *endpoint, const struct us_s3_request *request,
		      char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s \"%s/%.600s\"", request->method, endpoint->bucket,
		       request->key); /* long keys are cut */
}

static const char *status_text(int32_t status)
{
	switch (status) {
	case 301:
	case 307:
	case 308:
		return "redirect";
	case 400:
		return "bad request";
	case 401:
	case 403:
		return "access denied";
	case 404:
		return "not found";
	case 416:
		return "range not satisfiable";
	case 429:
		return "too many requests";
	case 503:
		return "service unavailable";
	default:
		return "not S3's answer";
	}
}

static int32_t code_of(int32_t status, const char *s3_code, int key_can_miss)
{
	if (status == 401 || status == 403 || strcmp(s3_code, "AccessDenied") == 0 ||
	    strcmp(s3_code, "ExpiredToken") == 0 || strcmp(s3_code, "InvalidToken") == 0) {
		return US_E_ACCESS;
	}
	if (status == 404 && key_can_miss &&
	    (s3_code[0] == '\0' || strcmp(s3_code, "NoSuchKey") == 0 ||
	     strcmp(s3_code, "NotFound") == 0 || strcmp(s3_code, "NoSuchUpload") == 0)) {
		return US_E_NOTFOUND;
	}
	return US_E_HTTP;
}

static uint32_t is_retryable(int32_t status, const char *s3_code)
{
	return status == 429 || status == 408 ||
	       (status >= 500 && status != 501 && status != 505) ||
	       strcmp(s3_code, "RequestTimeout") == 0 || strcmp(s3_code, "SlowDown") == 0 ||
	       strcmp(s3_code, "ServiceUnavailable") == 0 ||
	       strcmp(s3_code, "InternalError") == 0 || strcmp(s3_code, "OperationAborted") == 0;
}

/* What the user can do about it, or "". */
static void explain(const struct us_s3_reply *reply, const struct us_s3_error_doc *doc,
		    const struct us_s3_endpoint *endpoint, char *ret, size_t cap)
{
	const char *region = doc->region[0] != '\0' ? doc->region : reply->bucket_region;
	int misplaced = reply->status == 301 || reply->status == 307 || reply->status == 308 ||
			reply->status == 400 || reply->status == 403;
	if (misplaced && region[0] != '\0' && strcmp(region, endpoint->region) != 0) {
		(void)snprintf(ret, cap,
			       "; the bucket is in another region: set region: %s (now %s)", region,
			       endpoint->region);
	} else if (strcmp(doc->code, "NoSuchBucket") == 0) {
		(void)snprintf(ret, cap, "; the bucket %.64s does not exist at %.200s",
			       endpoint->bucket, endpoint->origin);
	} else if (strcmp(doc->code, "RequestTimeTooSkewed") == 0) {
		(void)snprintf(ret, cap, "; set this machine's clock");
	} else {
		ret[0] = '\0';
	}
}

int32_t us_s3_reply_fail_doc(const struct us_s3_reply *reply, const struct us_s3_error_doc *doc,
			     const struct us_s3_endpoint *endpoint,
			     const struct us_s3_request *request, int key_can_miss,
			     struct us_error *err)
{
	char what[800], hint[400];
	us_s3_reply_what(endpoint, request, what, sizeof(what));
	explain(reply, doc, endpoint, hint, sizeof(hint));
	int withheld = us_s3_request_leaks(request, doc->message) ||
		       us_s3_request_leaks(request, doc->code) ||
		       us_s3_request_leaks(request, doc->region) ||
		       us_s3_request_leaks(request, doc->request_id) ||
		       us_s3_request_leaks(request, reply->request_id) ||
		       us_s3_request_leaks(request, reply->bucket_region);
	const char *id = doc->request_id[0] != '\0' ? doc->request_id : reply->request_id;
	int32_t code = code_of(reply->status, doc->code, key_can_miss);
	if (withheld) {
		(void)us_fail(err, code,
			      "%s: %d (the answer repeats a signature or token: withheld)", what,
			      reply->status);
	} else {
		(void)us_fail(err, code, "%s: %d %s%s%.300s%s%s%s%s", what, reply->status,
			      doc->code[0] != '\0' ? doc->code : status_text(reply->status),
			      doc->message[0] != '\0' ? ": " : "", doc->message, hint,
			      id[0] != '\0' ? " (request id " : "", id, id[0] != '\0' ? ")" : "");
	}
	if (err) {
		err->http_status = reply->status;
		err->retryable = is_retryable(reply->status, doc->code);
	}
	return code;
}

int32_t us_s3_reply_fail(const struct us_s3_reply *reply, const struct us_s3_endpoint *endpoint,
			 const struct us_s3_request *request, int key_can_miss,
			 struct us_error *err)
{
	struct us_s3_error_doc doc = { 0 };
	if (reply->body.len > 0) {
		(void)us_s3_xml_error(reply->body.data, reply->body.len, &doc); /* else empty */
	}
	int32_t rc = us_s3_reply_fail_doc(reply, &doc, endpoint, request, key_can_miss, err);
	OPENSSL_cleanse(&doc, sizeof(doc)); /* it may repeat the token */
	return rc;
}

int us_s3_reply_is_throttle(const struct us_s3_reply *reply)
{
	return reply->status == 503 || reply->status == 429;
}

/* Whether the body is an Error document, of S3_CODE (NULL: of any). */
static int holds_error(const struct us_s3_reply *reply, const char *s3_code)
{
	struct us_s3_error_doc doc;
	int found = us_s3_xml_error(reply->body.data, reply->body.len, &doc);
	if (found != 1) {
		return found && !s3_code; /* no memory: it may be one */
	}
	int holds = !s3_code || strcmp(doc.code, s3_code) == 0;
	OPENSSL_cleanse(&doc, sizeof(doc)); /* as above */
	return holds;
}

int us_s3_reply_is_unsupported(const struct us_s3_reply *reply)
{
	return reply->status == 501 || reply->status == 405 ||
	       (reply->status == 400 && holds_error(reply, "NotImplemented"));
}

int32_t us_s3_reply_check_put(const struct us_s3_reply *reply,
			      const struct us_s3_endpoint *endpoint,
			      const struct us_s3_request *request, struct us_error *err)
{
	int is_done =
		reply->status == 200 && ((reply->body.len == 0 && reply->request_id[0] != '\0') ||
					 (reply->has_etag && !holds_error(reply, NULL)));
	return is_done ? 0 : us_s3_reply_fail(reply, endpoint, request, 0, err);
}
