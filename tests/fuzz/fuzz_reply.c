/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server may answer: flags, the key that was asked for and a NUL, header lines up to
 * an empty one, then the body. A server repeats what it was sent where an input has the
 * byte 1 (the signature of the request) or 2 (its session token): neither may come back in
 * a message.
 */
#include "fuzz.h"

#include "../../csrc/store/reply.h"

#define TOKEN "FwoGZXIvYXdzEBYaDTestSessionToken"
#define TEXT_LEN_MAX ((size_t)1 << 20)

static struct us_s3_endpoint endpoint;
static struct us_s3_signer signer;

static void set_up(void)
{
	const struct us_store_s3_options options = { .endpoint = "http://127.0.0.1:9000",
						     .bucket = "bucket",
						     .path_style = 1 };
	const struct us_s3_credentials credentials = { "AKID", "secret", TOKEN };
	if (!endpoint.origin) {
		require(us_s3_endpoint_init(&endpoint, &options, NULL) == 0);
		require(us_s3_signer_init(&signer, NULL) == 0);
		require(us_s3_signer_set(&signer, &credentials, NULL) == 0);
	}
}

static const char *signature_of(const struct us_s3_request *request)
{
	const char *mark = strstr(request->authorization.data, "Signature=");
	require(mark && strlen(mark) == 10 + 64);
	return mark + 10;
}

/* The answer's text, with what the server repeats. */
static void fill_in(struct us_text *text, struct input *in, const struct us_s3_request *request)
{
	us_text_init(text, TEXT_LEN_MAX);
	us_text_puts(text, "");
	for (; in->left > 0; in->at++, in->left--) {
		if (*in->at == 1) {
			us_text_puts(text, signature_of(request));
		} else if (*in->at == 2) {
			us_text_puts(text, TOKEN);
		} else {
			us_text_add(text, in->at, 1);
		}
	}
	require(!text->failed);
}

/* Feeds header lines; returns how long they are, the empty line included. */
static size_t feed_headers(struct us_s3_reply *reply, const char *text, size_t len)
{
	size_t at = 0;
	while (at < len) {
		const char *newline = memchr(text + at, '\n', len - at);
		size_t line_len = newline ? (size_t)(newline - text) + 1 - at : len - at;
		char *line = malloc(line_len); /* not NUL-terminated, as curl's */
		require(line);
		memcpy(line, text + at, line_len);
		size_t taken = us_s3_reply_header(line, 1, line_len, reply);
		require(taken == line_len || (taken == 0 && at + line_len > 256 << 10));
		int is_end = line_len <= 2 && (line[0] == '\n' || line[0] == '\r');
		free(line);
		at += line_len;
		if (is_end || taken == 0) {
			break;
		}
	}
	return at;
}

static int is_printable(const char *text, size_t cap)
{
	require(memchr(text, '\0', cap));
	for (; *text; text++) {
		if (*text <= ' ' || *text > '~') {
			return 0;
		}
	}
	return 1;
}

static void check_fields(const struct us_s3_reply *r)
{
	require(r->status == 0 || (r->status >= 100 && r->status <= 599));
	require(is_printable(r->etag, sizeof(r->etag)));
	require(is_printable(r->request_id, sizeof(r->request_id)));
	require(is_printable(r->bucket_region, sizeof(r->bucket_region)));
	require(r->content_len >= -1 && r->range_total >= -1);
	require(r->range_first < 0 ? r->range_first == -1 && r->range_last == -1
				   : r->range_last >= r->range_first);
	require(r->has_etag || r->etag[0] == '\0');
	require(!r->has_head || r->status >= 200);
}

static void check_failure(int32_t rc, const struct us_s3_reply *reply,
			  const struct us_s3_request *request, int key_can_miss,
			  const struct us_error *err)
{
	require_reason(rc, err);
	require(rc == US_E_ACCESS || rc == US_E_HTTP || (rc == US_E_NOTFOUND && key_can_miss));
	require(err->http_status == reply->status);
	require(!strstr(err->message, signature_of(request)) && !strstr(err->message, TOKEN));
}

static void check_answer(const struct us_s3_reply *reply, const struct us_s3_request *request,
			 int key_can_miss)
{
	struct us_error err = US_ERROR_INIT;
	struct us_s3_error_doc doc;
	int32_t rc = us_s3_reply_fail(reply, &endpoint, request, key_can_miss, &err);
	check_failure(rc, reply, request, key_can_miss, &err);
	int is_error =
		reply->body.len > 0 && us_s3_xml_error(reply->body.data, reply->body.len, &doc);
	rc = us_s3_reply_check_put(reply, &endpoint, request, &err);
	int has_id_alone = reply->body.len == 0 && reply->request_id[0] != '\0';
	require((rc == 0) ==
		(reply->status == 200 && (has_id_alone || (reply->has_etag && !is_error))));
	if (rc) {
		check_failure(rc, reply, request, 0, &err);
	}
	require(!us_s3_reply_is_throttle(reply) || reply->status >= 429);
	require(!us_s3_reply_is_unsupported(reply) || reply->status >= 400);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	static struct us_s3_reply reply; /* reused, as a pooled one */
	static struct us_s3_request request;
	struct input in = { data, data_len };
	struct us_text text;
	set_up();
	if (!request.method) {
		us_s3_reply_init(&reply);
		us_s3_request_init(&request);
	}
	uint8_t flags = input_byte(&in);
	char *key = input_string(&in);
	if (!strstr(key, TOKEN) && /* the server has not repeated that one */
	    us_s3_request_get(&request, &endpoint, &signer, key, NULL, NULL) == 0) {
		fill_in(&text, &in, &request);
		us_s3_reply_clear(&reply);
		size_t at = feed_headers(&reply, text.data, text.len);
		check_fields(&reply);
		while (at < text.len) {
			size_t piece = 1 + flags / 2u, left = text.len - at;
			piece = piece < left ? piece : left;
			require(us_s3_reply_add_body(&reply, text.data + at, piece) == 0);
			at += piece;
		}
		check_answer(&reply, &request, flags & 1);
		us_text_done(&text);
	}
	free(key);
	return 0;
}
