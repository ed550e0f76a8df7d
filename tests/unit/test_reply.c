/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server's answer means, answer by answer: header lines, statuses, error codes.
 * And the requests that no other test sends as such.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <stdlib.h>

#include "../../csrc/store/reply.h"

#define TOKEN "FwoGZXIvYXdzEBYaDTestSessionToken"
#define ERROR_DOC(code, message) \
	"<Error><Code>" code "</Code><Message>" message "</Message></Error>"

static struct us_s3_endpoint endpoint;
static struct us_s3_signer signer;
static struct us_s3_request request;
static struct us_s3_reply reply;

static int set_up(void **state)
{
	(void)state;
	const struct us_store_s3_options options = { .endpoint = "http://127.0.0.1:9000",
						     .region = "us-east-1",
						     .bucket = "bucket",
						     .path_style = 1 };
	const struct us_s3_credentials credentials = { "AKID", "secret", TOKEN };
	us_s3_request_init(&request);
	us_s3_reply_init(&reply);
	return us_s3_endpoint_init(&endpoint, &options, NULL) || us_s3_signer_init(&signer, NULL) ||
	       us_s3_signer_set(&signer, &credentials, NULL) ||
	       us_s3_request_get(&request, &endpoint, &signer, "some/key", NULL, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	us_s3_request_done(&request);
	us_s3_reply_done(&reply);
	us_s3_signer_done(&signer);
	us_s3_endpoint_done(&endpoint);
	return 0;
}

static void take_line(const char *line)
{
	size_t len = strlen(line);
	char *copy = malloc(len ? len : 1); /* without a NUL, as curl's */
	memcpy(copy, line, len);
	assert_int_equal(us_s3_reply_header(copy, 1, len, &reply), len);
	free(copy);
}

/* A whole answer: lines up to an empty one. */
static void answer(const char *head, const char *body)
{
	us_s3_reply_clear(&reply);
	while (*head) {
		char line[512];
		size_t len = strcspn(head, "\n") + (strchr(head, '\n') != NULL);
		assert_true(len < sizeof(line));
		memcpy(line, head, len);
		line[len] = '\0';
		take_line(line);
		head += len;
	}
	take_line("\r\n");
	assert_int_equal(us_s3_reply_add_body(&reply, body, strlen(body)), 0);
}

/* -------------------------------------------------------------------- headers */

static void test_status_lines(void **state)
{
	(void)state;
	static const struct {
		const char *line;
		int32_t status;
	} lines[] = {
		{ "HTTP/1.1 200 OK\r\n", 200 }, { "http/1.0 404\r\n", 404 },
		{ "HTTP/2   503  \r\n", 503 },  { "HTTP/1.1 599 x\n", 599 },
		{ "HTTP/1.1 99 x\r\n", 0 },     { "HTTP/1.1 600 x\r\n", 0 },
		{ "HTTP/1.1 abc\r\n", 0 },      { "HTTP/1.1\r\n", 0 },
		{ "HTTP/1.1 \r\n", 0 },         { "HTTP/1.1 99999999999999999999\r\n", 0 },
	};
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		us_s3_reply_clear(&reply);
		take_line(lines[i].line);
		assert_int_equal(reply.status, lines[i].status);
		assert_false(reply.has_head);
		take_line("\r\n");
		assert_int_equal(reply.has_head, lines[i].status >= 200);
	}
	/* The last status line counts, and its headers alone. */
	us_s3_reply_clear(&reply);
	take_line("HTTP/1.1 100 Continue\r\n");
	take_line("ETag: \"first\"\r\n");
	take_line("x-amz-request-id: one\r\n");
	take_line("\r\n");
	assert_false(reply.has_head);
	take_line("HTTP/1.1 200 OK\r\n");
	assert_int_equal(reply.status, 200);
	assert_int_equal(reply.has_etag, 0);
	assert_string_equal(reply.request_id, "");
	take_line("\n");
	assert_true(reply.has_head);
}

static void test_header_lines(void **state)
{
	(void)state;
	answer("HTTP/1.1 206 Partial Content\r\nno colon here\r\n: nothing\r\n\tfolded: x\r\n"
	       "ETAG:\t \"a b\x7f\x01\xe9\"  \r\nContent-Length: 12\r\n"
	       "Content-Range: bytes 3-14/100\r\nX-Amz-Request-Id: id 1\r\n"
	       "x-amz-bucket-region:eu-west-1\r\nDate: Thu, 01 Jan 1970 00:00:10 GMT\r\n"
	       "Last-Modified: Thu, 01 Jan 1970 00:00:05 GMT\r\n",
	       "");
	assert_int_equal(reply.has_etag, 1);
	assert_string_equal(reply.etag, "\"ab\"");
	assert_int_equal(reply.content_len, 12);
	assert_int_equal(reply.range_first, 3);
	assert_int_equal(reply.range_last, 14);
	assert_int_equal(reply.range_total, 100);
	assert_string_equal(reply.request_id, "id1");
	assert_string_equal(reply.bucket_region, "eu-west-1");
	assert_int_equal(reply.date_s, 10);
	assert_int_equal(reply.modified_s, 5);
	static const struct {
		const char *value;
		int64_t first, last, total;
	} ranges[] = {
		{ "bytes 0-9/*", 0, 9, -1 },    { "BYTES 0-0/1", 0, 0, 1 },
		{ "bytes 5-5/", 5, 5, -1 },     { "items 0-9/10", -1, -1, -1 },
		{ "bytes x-9/10", -1, -1, -1 }, { "bytes 0x9/10", -1, -1, -1 },
		{ "bytes 9-0/10", -1, -1, -1 }, { "bytes 0-9", -1, -1, -1 },
		{ "bytes 0-9x10", -1, -1, -1 }, { "bytes 0-1234567890123456789/5", -1, -1, -1 },
		{ "bytes", -1, -1, -1 },        { "", -1, -1, -1 },
	};
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		char line[128];
		(void)snprintf(line, sizeof(line), "Content-Range: %s\r\n", ranges[i].value);
		us_s3_reply_clear(&reply);
		take_line(line);
		assert_int_equal(reply.range_first, ranges[i].first);
		assert_int_equal(reply.range_last, ranges[i].last);
		assert_int_equal(reply.range_total, ranges[i].total);
	}
	/* Values that are none, or longer than there is room. */
	us_s3_reply_clear(&reply);
	take_line("ETag:\r\n");
	take_line("Content-Length: -1\r\n");
	take_line("Date: once upon a time\r\n");
	char line[400] = "Date: ";
	memset(line + 6, 'x', 300);
	take_line(line);
	assert_int_equal(reply.has_etag, 0);
	assert_int_equal(reply.content_len, -1);
	assert_int_equal(reply.date_s, -1);
	memcpy(line, "x-amz-request-id: ", 18);
	take_line(line);
	assert_int_equal(strlen(reply.request_id), sizeof(reply.request_id) - 1);
	memcpy(line, "ETag: ", 6);
	memset(line + 6, 'e', sizeof(line) - 7);
	take_line(line);
	assert_int_equal(reply.has_etag, 1);
	assert_string_equal(reply.etag, ""); /* a version cut off would be another */
}

static void test_too_much(void **state)
{
	(void)state;
	char *much = calloc(1, 300u << 10);
	assert_int_equal(us_s3_reply_header(much, 1, 200u << 10, &reply), 200u << 10);
	assert_int_equal(us_s3_reply_header(much, 1, 100u << 10, &reply), 0);
	us_s3_reply_clear(&reply);
	size_t taken = 0;
	while (us_s3_reply_add_body(&reply, much, 100u << 10) == 0) {
		taken += 100u << 10;
		assert_true(taken < 2u << 20);
	}
	assert_int_equal(reply.body.len, US_S3_ERROR_LEN_MAX);
	assert_int_equal(us_s3_reply_add_body(&reply, much, 1), -1);
	free(much);
}

/* ------------------------------------------------------------------- failures */

static void test_failures(void **state)
{
	(void)state;
	static const struct {
		const char *head, *body;
		int key_can_miss;
		int32_t code;
		uint32_t retryable;
		const char *says;
	} cases[] = {
		{ "HTTP/1.1 301 x\r\n", "", 0, US_E_HTTP, 0, "301 redirect" },
		{ "HTTP/1.1 307 x\r\n", "", 0, US_E_HTTP, 0, "307 redirect" },
		{ "HTTP/1.1 308 x\r\n", "", 0, US_E_HTTP, 0, "308 redirect" },
		{ "HTTP/1.1 400 x\r\n", "", 0, US_E_HTTP, 0, "400 bad request" },
		{ "HTTP/1.1 401 x\r\n", "", 0, US_E_ACCESS, 0, "401 access denied" },
		{ "HTTP/1.1 403 x\r\n", "", 1, US_E_ACCESS, 0, "403 access denied" },
		{ "HTTP/1.1 404 x\r\n", "", 0, US_E_HTTP, 0, "404 not found" },
		{ "HTTP/1.1 404 x\r\n", "", 1, US_E_NOTFOUND, 0, "404 not found" },
		{ "HTTP/1.1 408 x\r\n", "", 0, US_E_HTTP, 1, "not S3's answer" },
		{ "HTTP/1.1 416 x\r\n", "", 0, US_E_HTTP, 0, "range not satisfiable" },
		{ "HTTP/1.1 418 x\r\n", "", 0, US_E_HTTP, 0, "not S3's answer" },
		{ "HTTP/1.1 429 x\r\n", "", 0, US_E_HTTP, 1, "too many requests" },
		{ "HTTP/1.1 500 x\r\n", "", 0, US_E_HTTP, 1, "not S3's answer" },
		{ "HTTP/1.1 501 x\r\n", "", 0, US_E_HTTP, 0, "not S3's answer" },
		{ "HTTP/1.1 503 x\r\n", "", 0, US_E_HTTP, 1, "service unavailable" },
		{ "HTTP/1.1 505 x\r\n", "", 0, US_E_HTTP, 0, "not S3's answer" },
		{ "HTTP/1.1 200 x\r\n", ERROR_DOC("AccessDenied", "no"), 0, US_E_ACCESS, 0,
		  "AccessDenied: no" },
		{ "HTTP/1.1 400 x\r\n", ERROR_DOC("ExpiredToken", "old"), 0, US_E_ACCESS, 0,
		  "ExpiredToken: old" },
		{ "HTTP/1.1 400 x\r\n", ERROR_DOC("InvalidToken", ""), 0, US_E_ACCESS, 0,
		  "InvalidToken" },
		{ "HTTP/1.1 404 x\r\n", ERROR_DOC("NoSuchKey", ""), 1, US_E_NOTFOUND, 0,
		  "NoSuchKey" },
		{ "HTTP/1.1 404 x\r\n", ERROR_DOC("NotFound", ""), 1, US_E_NOTFOUND, 0,
		  "NotFound" },
		{ "HTTP/1.1 404 x\r\n", ERROR_DOC("NoSuchUpload", ""), 1, US_E_NOTFOUND, 0,
		  "NoSuchUpload" },
		{ "HTTP/1.1 404 x\r\n", ERROR_DOC("NoSuchKey", ""), 0, US_E_HTTP, 0, "NoSuchKey" },
		{ "HTTP/1.1 404 x\r\n", ERROR_DOC("NoSuchBucket", ""), 1, US_E_HTTP, 0,
		  "the bucket bucket does not exist at http://127.0.0.1:9000" },
		{ "HTTP/1.1 403 x\r\n", ERROR_DOC("RequestTimeTooSkewed", ""), 0, US_E_ACCESS, 0,
		  "set this machine's clock" },
		{ "HTTP/1.1 400 x\r\n", ERROR_DOC("RequestTimeout", ""), 0, US_E_HTTP, 1, "" },
		{ "HTTP/1.1 200 x\r\n", ERROR_DOC("SlowDown", ""), 0, US_E_HTTP, 1, "" },
		{ "HTTP/1.1 200 x\r\n", ERROR_DOC("ServiceUnavailable", ""), 0, US_E_HTTP, 1, "" },
		{ "HTTP/1.1 200 x\r\n", ERROR_DOC("InternalError", ""), 0, US_E_HTTP, 1, "" },
		{ "HTTP/1.1 409 x\r\n", ERROR_DOC("OperationAborted", ""), 0, US_E_HTTP, 1, "" },
		{ "HTTP/1.1 409 x\r\n", ERROR_DOC("BucketNotEmpty", ""), 0, US_E_HTTP, 0, "" },
		{ "HTTP/1.1 301 x\r\nx-amz-bucket-region: eu-west-1\r\n", "", 0, US_E_HTTP, 0,
		  "set region: eu-west-1 (now us-east-1)" },
		{ "HTTP/1.1 307 x\r\nx-amz-bucket-region: eu-west-1\r\n", "", 0, US_E_HTTP, 0,
		  "set region: eu-west-1" },
		{ "HTTP/1.1 308 x\r\nx-amz-bucket-region: eu-west-1\r\n", "", 0, US_E_HTTP, 0,
		  "set region: eu-west-1" },
		{ "HTTP/1.1 400 x\r\n", "<Error><Code>x</Code><Region>eu-west-2</Region></Error>",
		  0, US_E_HTTP, 0, "set region: eu-west-2" },
		{ "HTTP/1.1 403 x\r\nx-amz-bucket-region: us-east-1\r\nx-amz-request-id: R1\r\n",
		  "", 0, US_E_ACCESS, 0, "403 access denied (request id R1)" },
		{ "HTTP/1.1 404 x\r\nx-amz-bucket-region: eu-west-1\r\n", "", 0, US_E_HTTP, 0,
		  "404 not found" },
		{ "HTTP/1.1 403 x\r\nx-amz-request-id: R1\r\n",
		  "<Error><Code>x</Code><RequestId>R2</RequestId></Error>", 0, US_E_ACCESS, 0,
		  "(request id R2)" },
		{ "HTTP/1.1 502 x\r\n", "<html>secret things</html>", 0, US_E_HTTP, 1,
		  "502 not S3's answer" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct us_error err = US_ERROR_INIT;
		answer(cases[i].head, cases[i].body);
		int32_t code =
			us_s3_reply_fail(&reply, &endpoint, &request, cases[i].key_can_miss, &err);
		if (code != cases[i].code || err.code != code || err.http_status != reply.status ||
		    err.retryable != cases[i].retryable || !strstr(err.message, cases[i].says) ||
		    strstr(err.message, "secret things") ||
		    strncmp(err.message, "GET \"bucket/some/key\": ", 23) != 0) {
			fail_msg("%s%s: %d, %u, %s", cases[i].head, cases[i].body, code,
				 err.retryable, err.message);
		}
		assert_int_equal(
			us_s3_reply_fail(&reply, &endpoint, &request, cases[i].key_can_miss, NULL),
			code);
	}
}

/* Whichever field repeats what is secret, nothing of the answer is shown. */
static void test_withheld(void **state)
{
	(void)state;
	const char *signature = strstr(request.authorization.data, "Signature=") + 10;
	const char *const secrets[] = { TOKEN, signature };
	static const char *const fields[] = { "Code", "Message", "Region", "RequestId" };
	for (int s = 0; s < 2; s++) {
		char text[600];
		struct us_error err = US_ERROR_INIT;
		for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
			if (s == 1 && i != 1) {
				continue; /* the others have no room for one */
			}
			(void)snprintf(text, sizeof(text), "<Error>%s<%s>%s</%s></Error>",
				       i > 0 ? "<Code>x</Code>" : "", fields[i], secrets[s],
				       fields[i]);
			answer("HTTP/1.1 403 x\r\n", text);
			(void)us_s3_reply_fail(&reply, &endpoint, &request, 0, &err);
			assert_non_null(strstr(err.message, "withheld"));
			assert_null(strstr(err.message, "FwoGZX"));
		}
		static const char *const names[] = { "x-amz-request-id", "x-amz-bucket-region" };
		for (size_t i = 0; i < 2 - (size_t)s; i++) {
			(void)snprintf(text, sizeof(text), "HTTP/1.1 403 x\r\n%s: %s\r\n", names[i],
				       secrets[s]);
			answer(text, "");
			(void)us_s3_reply_fail(&reply, &endpoint, &request, 0, &err);
			assert_non_null(strstr(err.message, "withheld"));
		}
	}
}

static void test_acknowledgements(void **state)
{
	(void)state;
	static const struct {
		const char *head, *body;
		int good;
	} cases[] = {
		{ "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n", "", 1 },
		{ "HTTP/1.1 200 OK\r\nx-amz-request-id: R\r\n", "", 1 },
		{ "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n", "<CopyObjectResult/>", 1 },
		{ "HTTP/1.1 200 OK\r\n", "", 0 },
		{ "HTTP/1.1 200 OK\r\nx-amz-request-id: R\r\n", "welcome", 0 },
		{ "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n", ERROR_DOC("InternalError", ""), 0 },
		{ "HTTP/1.1 201 OK\r\nETag: \"x\"\r\n", "", 0 },
		{ "HTTP/1.1 204 OK\r\nETag: \"x\"\r\n", "", 0 },
		{ "HTTP/1.1 500 OK\r\nETag: \"x\"\r\n", "", 0 },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct us_error err = US_ERROR_INIT;
		answer(cases[i].head, cases[i].body);
		int32_t rc = us_s3_reply_check_put(&reply, &endpoint, &request, &err);
		if ((rc == 0) != cases[i].good) {
			fail_msg("%s%s: %d", cases[i].head, cases[i].body, rc);
		}
	}
}

static void test_kinds(void **state)
{
	(void)state;
	static const struct {
		const char *head, *body;
		int throttle, unsupported;
	} cases[] = {
		{ "HTTP/1.1 200 x\r\n", "", 0, 0 },
		{ "HTTP/1.1 429 x\r\n", "", 1, 0 },
		{ "HTTP/1.1 503 x\r\n", "", 1, 0 },
		{ "HTTP/1.1 500 x\r\n", "", 0, 0 },
		{ "HTTP/1.1 501 x\r\n", "", 0, 1 },
		{ "HTTP/1.1 405 x\r\n", "", 0, 1 },
		{ "HTTP/1.1 400 x\r\n", "", 0, 0 },
		{ "HTTP/1.1 400 x\r\n", ERROR_DOC("NotImplemented", ""), 0, 1 },
		{ "HTTP/1.1 400 x\r\n", ERROR_DOC("InvalidRequest", ""), 0, 0 },
		{ "HTTP/1.1 400 x\r\n", "<html>", 0, 0 },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		answer(cases[i].head, cases[i].body);
		assert_int_equal(us_s3_reply_is_throttle(&reply), cases[i].throttle);
		assert_int_equal(us_s3_reply_is_unsupported(&reply), cases[i].unsupported);
	}
}

/* ------------------------------------------------------------------- requests */

/* The value of a header of REQUEST, or NULL. */
static const char *header(const char *name)
{
	size_t len = strlen(name);
	for (const struct curl_slist *line = request.list; line; line = line->next) {
		if (strncmp(line->data, name, len) == 0 && line->data[len] == ':') {
			return line->data + len + 2;
		}
	}
	return NULL;
}

static void test_conditional_writes(void **state)
{
	(void)state;
	static const uint8_t sha256[US_SHA256_LEN] = { 1 };
	assert_int_equal(us_s3_request_write(&request, &endpoint, &signer, "k", NULL, sha256, NULL),
			 0);
	assert_null(header("if-match"));
	assert_null(header("if-none-match"));
	assert_int_equal(us_s3_request_write(&request, &endpoint, &signer, "k", "", sha256, NULL),
			 0);
	assert_null(header("if-match"));
	assert_string_equal(header("if-none-match"), "*");
	assert_int_equal(
		us_s3_request_write(&request, &endpoint, &signer, "k", "\"v1\"", sha256, NULL), 0);
	assert_string_equal(header("if-match"), "\"v1\"");
	assert_null(header("if-none-match"));
	assert_non_null(strstr(request.authorization.data, "if-match"));
	assert_string_equal(request.method, "PUT");
	assert_memory_equal(header("x-amz-content-sha256"), "01000000", 8);
}

static void test_listings(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	char prefix[US_S3_KEY_LEN_MAX + 2];
	memset(prefix, 'p', sizeof(prefix) - 1);
	prefix[sizeof(prefix) - 1] = '\0';
	assert_int_equal(us_s3_request_list(&request, &endpoint, &signer, prefix, NULL, NULL, &err),
			 US_E_ARG);
	assert_non_null(strstr(err.message, "more than 1024 bytes"));
	assert_int_equal(us_s3_request_uploads(&request, &endpoint, &signer, prefix, NULL, &err),
			 US_E_ARG);
	prefix[sizeof(prefix) - 2] = '\0';
	assert_int_equal(us_s3_request_list(&request, &endpoint, &signer, prefix, NULL, NULL, &err),
			 0);
	assert_int_equal(us_s3_request_uploads(&request, &endpoint, &signer, "a/", NULL, &err), 0);
	assert_null(strstr(request.url.data, "key-marker"));
	assert_int_equal(us_s3_request_uploads(&request, &endpoint, &signer, "a/", "a/x y", &err),
			 0);
	assert_non_null(
		strstr(request.url.data, "?encoding-type=url&key-marker=a%2Fx%20y&max-uploads="));
	assert_int_equal(us_s3_request_list(&request, &endpoint, &signer, "a/", NULL, "a/b", &err),
			 0);
	assert_non_null(strstr(request.url.data, "start-after=a%2Fb"));
	/* Where to go on says more than where to begin. */
	assert_int_equal(us_s3_request_list(&request, &endpoint, &signer, "a/", "tok", "a/b", &err),
			 0);
	assert_non_null(strstr(request.url.data, "continuation-token=tok"));
	assert_null(strstr(request.url.data, "start-after"));
	assert_int_equal(us_s3_request_get(&request, &endpoint, &signer, "", NULL, &err), US_E_ARG);
	prefix[sizeof(prefix) - 2] = 'p';
	assert_int_equal(us_s3_request_get(&request, &endpoint, &signer, prefix, NULL, &err),
			 US_E_ARG);
	/* A token of a listing that no URL has room for. */
	size_t len = 64u << 10;
	char *token = malloc(len + 1);
	memset(token, 't', len);
	token[len] = '\0';
	assert_int_equal(us_s3_request_list(&request, &endpoint, &signer, "a/", token, NULL, &err),
			 US_E_NOMEM);
	free(token);
}

/* Without keys nothing is signed, and no token is sent. */
static void test_anonymous(void **state)
{
	(void)state;
	const struct us_s3_credentials nobody = { "", "", TOKEN }, somebody = { "AKID", "s", "" };
	assert_int_equal(us_s3_signer_set(&signer, &nobody, NULL), 0);
	assert_int_equal(us_s3_request_get(&request, &endpoint, &signer, "k", NULL, NULL), 0);
	assert_null(header("Authorization"));
	assert_null(header("x-amz-security-token"));
	assert_null(header("x-amz-date"));
	assert_false(us_s3_request_leaks(&request, TOKEN));
	assert_int_equal(us_s3_signer_set(&signer, &somebody, NULL), 0);
	assert_int_equal(us_s3_request_get(&request, &endpoint, &signer, "k", NULL, NULL), 0);
	assert_non_null(header("Authorization"));
	assert_null(header("x-amz-security-token"));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_status_lines), CASE(test_header_lines),       CASE(test_too_much),
		CASE(test_failures),     CASE(test_withheld),           CASE(test_acknowledgements),
		CASE(test_kinds),        CASE(test_conditional_writes), CASE(test_listings),
		CASE(test_anonymous),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
