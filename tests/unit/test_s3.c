/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The S3 target against a real server (versitygw, from $VERSITYGW or PATH) and
 * against small servers in this file that misbehave.
 */
#include "s3_support.h"

static void test_put_get_remove(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	assert_int_equal(put_text(store, "a/b/c.db.lz4", "0123456789", &err), 0);
	struct sink sink = { 0 };
	uint64_t len = 0;
	assert_int_equal(
		store->ops->get(store, "a/b/c.db.lz4", 0, UINT64_MAX, to_sink, &sink, &len, &err),
		0);
	assert_int_equal(len, 10);
	assert_int_equal(sink.len, 10);
	assert_memory_equal(sink.data, "0123456789", 10);
	static const struct {
		int64_t offset;
		uint64_t len;
		const char *want;
	} ranges[] = {
		{ 2, 3, "234" },           { 0, 1, "0" },
		{ 8, 100, "89" },          { 5, UINT64_MAX, "56789" },
		{ -4, 4, "6789" },         { -4, UINT64_MAX, "6789" },
		{ -4, 2, "67" },           { -10, 10, "0123456789" },
		{ -99, 99, "0123456789" },
	};
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		sink.len = len = 0;
		int32_t rc = store->ops->get(store, "a/b/c.db.lz4", ranges[i].offset, ranges[i].len,
					     to_sink, &sink, &len, &err);
		if (rc) {
			print_error("%zu: %s\n", i, err.message);
		}
		assert_int_equal(rc, 0);
		assert_int_equal(len, 10);
		assert_int_equal(sink.len, strlen(ranges[i].want));
		assert_memory_equal(sink.data, ranges[i].want, sink.len);
	}
	assert_int_equal(store->ops->get(store, "a/b/c.db.lz4", 50, 5, to_sink, &sink, &len, &err),
			 US_E_HTTP);
	assert_int_equal(err.http_status, 416);
	sink.rc = US_E_NOSPACE;
	assert_int_equal(
		store->ops->get(store, "a/b/c.db.lz4", 0, UINT64_MAX, to_sink, &sink, &len, &err),
		US_E_NOSPACE);
	assert_string_equal(err.message, "the sink says no");
	assert_int_equal(store->ops->remove(store, "a/b/c.db.lz4", &err), 0);
	assert_int_equal(store->ops->remove(store, "a/b/c.db.lz4", &err), 0);
	sink = (struct sink){ 0 };
	assert_int_equal(
		store->ops->get(store, "a/b/c.db.lz4", 0, UINT64_MAX, to_sink, &sink, &len, &err),
		US_E_NOTFOUND);
	assert_int_equal(err.http_status, 404);
	assert_non_null(strstr(err.message, "GET \"bk1/a/b/c.db.lz4\": 404 NoSuchKey: "));
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put, 1);
	assert_int_equal(counts.put_bytes, 10);
	assert_int_equal(counts.get, 13);
	assert_int_equal(counts.remove, 2);
	assert_int_equal(counts.list, 0);
	assert_true(counts.put_ns > 0 && counts.get_ns > 0 && counts.remove_ns > 0);
	store->ops->close(store);
}

static void test_put_from_file(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(4);
	size_t len = 3000001;
	uint8_t *data = malloc(len);
	for (size_t i = 0; i < len; i++) {
		data[i] = (uint8_t)(i * 7 + i / 251);
	}
	char path[] = P_tmpdir "/us-test-s3-spool-XXXXXX";
	int fd = mkstemp(path);
	unlink(path);
	assert_int_equal(write(fd, data, len), (ssize_t)len);
	struct us_put put;
	fill_put(&put, "big", data, len);
	put.data = NULL;
	put.fd = fd;
	assert_int_equal(put_now(store, &put), 0);
	char object[128];
	(void)snprintf(object, sizeof(object), "%s/root/bk1/big", gateway.dir);
	int stored = open(object, O_RDONLY | O_CLOEXEC);
	uint8_t *back = malloc(len + 1);
	size_t got = 0;
	for (ssize_t n; (n = read(stored, back + got, len + 1 - got)) > 0;) {
		got += (size_t)n;
	}
	close(stored);
	assert_int_equal(got, len);
	assert_memory_equal(back, data, len);

	assert_int_equal(ftruncate(fd, 1000), 0); /* shorter than it says */
	assert_int_equal(put_now(store, &put), US_E_IO);
	assert_non_null(strstr(put.err.message, "shorter"));
	close(fd);
	put.fd = -1; /* and unreadable */
	assert_int_equal(put_now(store, &put), US_E_IO);
	assert_int_equal(put.err.sys_errno, EBADF);
	fill_put(&put, "empty", "", 0);
	assert_int_equal(put_now(store, &put), 0);
	put.sha256[0] ^= 1; /* the server checks what was signed */
	assert_int_equal(put_now(store, &put), US_E_HTTP);
	assert_int_equal(put.err.http_status, 400);
	free(data);
	free(back);
	store->ops->close(store);
}

/* Object metadata as the gateway keeps it: one extended attribute each. */
static void test_metadata(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(1);
	assert_int_equal(put_text(store, "meta", "x", NULL), 0);
	char path[128], names[1024], value[128];
	(void)snprintf(path, sizeof(path), "%s/root/bk1/meta", gateway.dir);
	ssize_t len = listxattr(path, names, sizeof(names));
	assert_true(len > 0);
	int times = 0, sums = 0, types = 0;
	for (char *name = names; name < names + len; name += strlen(name) + 1) {
		ssize_t n = getxattr(path, name, value, sizeof(value) - 1);
		value[n > 0 ? n : 0] = '\0';
		times += strstr(name, "snapshot-time") != NULL &&
			 strcmp(value, "2026-01-02T03:04:05.000000006Z") == 0;
		sums += strstr(name, "lz4-sha256") != NULL && strspn(value, "a") == 64;
		types += strcmp(value, "application/octet-stream") == 0;
	}
	if (times == 0) { /* newer gateways keep all metadata in one attribute */
		char all[4096];
		for (char *name = names; name < names + len; name += strlen(name) + 1) {
			ssize_t n = getxattr(path, name, all, sizeof(all) - 1);
			all[n > 0 ? n : 0] = '\0';
			times += strstr(all, "2026-01-02T03:04:05.000000006Z") != NULL;
			sums += strstr(all, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") != NULL;
		}
	}
	assert_int_equal(times, 1);
	assert_int_equal(sums, 1);
	assert_int_equal(types, 1);
	store->ops->close(store);
}

static void test_odd_keys(void **state)
{
	(void)state;
	static const char *const keys[] = {
		"odd/a b",
		"odd/a+b",
		"odd/a%b",
		"odd/a%20b",
		"odd/a&b;c=d",
		"odd/a?b",
		"odd/a#b",
		"odd/a=b",
		"odd/\"q\"'",
		"odd/<x>",
		"odd/\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
		"odd/a:b@c,d",
		"odd/a~b",
		"odd/(x)[y]{z}*!$^`|",
		"odd/a-b/c",
		"odd/a/b",
		"odd/a.b",
	};
	const size_t count = sizeof(keys) / sizeof(keys[0]);
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	for (size_t i = 0; i < count; i++) {
		if (put_text(store, keys[i], keys[i], &err)) {
			fail_msg("%s: %s", keys[i], err.message);
		}
		struct sink sink = { 0 };
		if (store->ops->get(store, keys[i], 0, UINT64_MAX, to_sink, &sink, NULL, &err)) {
			fail_msg("%s", err.message);
		}
		assert_int_equal(sink.len, strlen(keys[i]));
		assert_memory_equal(sink.data, keys[i], sink.len);
	}
	struct listed listed = { 0 };
	int32_t rc = store->ops->list(store, "odd/", to_listed, &listed, &err);
	if (rc) {
		print_error("%s\n", err.message);
	}
	assert_int_equal(rc, 0);
	assert_int_equal(listed.count, count);
	for (size_t i = 0; i < count; i++) {
		size_t found = 0;
		for (size_t j = 0; j < listed.count; j++) {
			found += strcmp(keys[i], listed.keys[j]) == 0 &&
				 listed.lens[j] == strlen(keys[i]);
		}
		assert_int_equal(found, 1);
	}
	listed_done(&listed);
	assert_int_equal(store->ops->list(store, "odd/a b", to_listed, &listed, &err), 0);
	assert_int_equal(listed.count, 1);
	listed_done(&listed);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(store->ops->remove(store, keys[i], &err), 0);
	}
	assert_int_equal(store->ops->list(store, "odd/", to_listed, &listed, &err), 0);
	assert_int_equal(listed.count, 0);
	store->ops->close(store);
}

#define MANY 2345

static void test_many(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(64);
	struct us_put *puts = calloc(MANY, sizeof(*puts));
	char(*keys)[32] = calloc(MANY, sizeof(*keys));
	size_t started = 0, done = 0;
	while (done < MANY) {
		while (started < MANY && started - done < 64) {
			(void)snprintf(keys[started], sizeof(keys[started]), "many/%05zu", started);
			fill_put(&puts[started], keys[started], keys[started], 10);
			store->ops->put_start(store, &puts[started++]);
		}
		for (struct us_put *put = store->ops->put_wait(store, 1000); put; put = put->next) {
			if (put->rc) {
				fail_msg("%s", put->err.message);
			}
			done++;
		}
	}
	assert_null(store->ops->put_wait(store, 0));
	struct listed listed = { 0 };
	struct us_error err = error_of_test();
	assert_int_equal(store->ops->list(store, "many/", to_listed, &listed, &err), 0);
	assert_int_equal(listed.count, MANY);
	for (size_t i = 0; i < MANY; i++) {
		assert_string_equal(listed.keys[i], keys[i]);
		assert_int_equal(listed.lens[i], 10);
	}
	listed_done(&listed);
	listed.stop_at = 1500; /* the callback's code comes back */
	assert_int_equal(store->ops->list(store, "many/", to_listed, &listed, &err), US_E_BUSY);
	assert_int_equal(listed.count, 1500);
	listed_done(&listed);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put, MANY);
	assert_int_equal(counts.list, 3 + 2);
	free(puts);
	free(keys);
	store->ops->close(store);
}

static void test_more_puts_than_the_limit(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(2);
	struct us_put puts[40];
	char keys[40][16];
	for (size_t i = 0; i < 40; i++) {
		(void)snprintf(keys[i], sizeof(keys[i]), "queue/%zu", i);
		fill_put(&puts[i], keys[i], "x", 1);
		store->ops->put_start(store, &puts[i]);
	}
	size_t done = 0;
	while (done < 40) {
		for (struct us_put *put = store->ops->put_wait(store, 1000); put; put = put->next) {
			assert_int_equal(put->rc, 0);
			done++;
		}
	}
	store->ops->close(store);
}

static void test_refusals(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	struct us_store *store = open_store(gateway.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", "wrong-secret", NULL);
	assert_int_equal(put_text(store, "k", "x", &err), US_E_ACCESS);
	assert_int_equal(err.http_status, 403);
	assert_int_equal(err.retryable, 0);
	assert_non_null(strstr(err.message, "PUT \"bk1/k\": 403 SignatureDoesNotMatch: "));
	assert_non_null(strstr(err.message, "(request id "));
	assert_null(strstr(err.message, "wrong-secret"));
	set_keys(store, "unknown", "wrong-secret", NULL);
	assert_true(put_text(store, "k", "x", &err) < 0); /* AWS: 403, this gateway: 404 */
	assert_non_null(strstr(err.message, "access key"));
	set_keys(store, "", "", NULL); /* anonymous */
	assert_int_equal(put_text(store, "k", "x", &err), US_E_ACCESS);
	set_keys(store, "ak", SECRET, NULL); /* and right ones work at once */
	assert_int_equal(put_text(store, "k", "x", &err), 0);
	store->ops->close(store);

	store = open_store(gateway.endpoint, "nobucket", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	struct sink sink = { 0 };
	struct listed listed = { 0 };
	assert_int_equal(put_text(store, "k", "x", &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "404 NoSuchBucket"));
	assert_non_null(strstr(err.message, "the bucket nobucket does not exist"));
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_HTTP);
	assert_int_equal(store->ops->list(store, "", to_listed, &listed, &err), US_E_HTTP);
	assert_int_equal(store->ops->remove(store, "k", &err), US_E_HTTP);
	store->ops->close(store);

	struct us_store_s3_options options = { .endpoint = gateway.endpoint,
					       .region = "eu-west-9",
					       .bucket = "bk1",
					       .path_style = 1,
					       .concurrency = 1 };
	assert_int_equal(us_store_s3_open(&options, &store, &err), 0);
	set_keys(store, "ak", SECRET, NULL);
	assert_true(put_text(store, "k", "x", &err) < 0);
	assert_non_null(strstr(err.message, "set region: us-east-1 (now eu-west-9)"));
	store->ops->close(store);
}

static void test_tls(void **state)
{
	(void)state;
	struct gateway tls;
	struct us_error err = error_of_test();
	struct us_store *store = NULL;
	struct sink sink = { 0 };
	assert_int_equal(gateway_start(&tls, 1), 0);
	struct us_store_s3_options options = {
		.endpoint = tls.endpoint, .bucket = "bk1", .path_style = 1, .concurrency = 2
	};
	assert_int_equal(us_store_s3_open(&options, &store, &err), 0);
	set_keys(store, "ak", SECRET, NULL);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_NETWORK);
	assert_non_null(strstr(err.message, "the certificate of 127.0.0.1:"));
	assert_non_null(strstr(err.message, "skip_verify: true"));
	store->ops->close(store);
	options.skip_verify = 1;
	assert_int_equal(us_store_s3_open(&options, &store, &err), 0);
	set_keys(store, "ak", SECRET, NULL);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(put_text(store, "k", "hello", &err), 0);
	}
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err), 0);
	assert_memory_equal(sink.data, "hello", 5);
	/* The server goes away under open connections, on our thread too: no SIGPIPE. */
	gateway_stop(&tls);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_NETWORK);
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_NETWORK);
	store->ops->close(store);
}

/* One put against a server that gives ANSWER; returns its error. */
static struct us_error put_against(const char *answer)
{
	struct server server = { .answer = answer };
	struct us_error err = error_of_test();
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, TOKEN);
	(void)put_text(store, "k", "hello", &err);
	store->ops->close(store);
	server_stop(&server);
	assert_null(strstr(err.message, SECRET));
	assert_null(strstr(err.message, TOKEN));
	return err;
}

static void test_put_answers(void **state)
{
	(void)state;
	assert_int_equal(put_against(OK_PUT).code, 0);
	/* Some give no ETag, but then an id; who gives neither is no S3. */
	assert_int_equal(
		put_against(ANSWER("200 OK", "x-amz-request-id: HEADERID\r\n", "0", "")).code, 0);
	struct us_error err = put_against(ANSWER("200 OK", "Server: portal\r\n", "0", ""));
	assert_int_equal(err.code, US_E_HTTP);
	assert_non_null(strstr(err.message, "200 not S3's answer"));
	err = put_against(ANSWER("503 Slow Down", "", "0", ""));
	assert_int_equal(err.code, US_E_HTTP);
	assert_int_equal(err.http_status, 503);
	assert_int_equal(err.retryable, 1);
	assert_string_equal(err.message, "PUT \"bk1/k\": 503 service unavailable");

	err = put_against(
		ANSWER("503 Slow Down", "x-amz-request-id: HEADERID\r\n", "90",
		       "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce "
		       "rate</Message></Error>\n\n\n"));
	assert_int_equal(err.http_status, 503);
	assert_string_equal(err.message,
			    "PUT \"bk1/k\": 503 SlowDown: Reduce rate (request id HEADERID)");

	err = put_against(
		ANSWER("200 OK", "ETag: \"x\"\r\n", "72",
		       "<Error><Code>InternalError</Code><Message>We failed</Message></Error>"
		       "    "));
	assert_int_equal(err.code, US_E_HTTP);
	assert_int_equal(err.retryable, 1);
	assert_non_null(strstr(err.message, "200 InternalError: We failed"));

	/* A captive portal. */
	err = put_against(ANSWER("200 OK", "", "20", "<html>Log in!</html>"));
	assert_int_equal(err.code, US_E_HTTP);
	assert_non_null(strstr(err.message, "200 not S3's answer"));

	err = put_against("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 10\r\n\r\nclose");
	assert_int_equal(err.code, US_E_NETWORK); /* truncated */
	assert_int_equal(err.retryable, 1);
	err = put_against("HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\nclose");
	assert_int_equal(err.code, US_E_NETWORK); /* in its headers */
	assert_int_equal(err.retryable, 1);
	assert_non_null(strstr(err.message, "broke off in its headers"));
	err = put_against("HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nclose");
	assert_int_equal(err.code, US_E_HTTP); /* bad news may be truncated */
	assert_int_equal(err.http_status, 500);
	err = put_against("garbage that is no HTTP, close\r\n\r\n");
	assert_int_equal(err.code, US_E_NETWORK);
	err = put_against(NULL);
	assert_int_equal(err.code, US_E_NETWORK);
	err = put_against(ANSWER("404 Not Found", "", "0", ""));
	assert_int_equal(err.code, US_E_HTTP);
	err = put_against(ANSWER("401 No", "", "0", ""));
	assert_int_equal(err.code, US_E_ACCESS);
	err = put_against(ANSWER("429 Too Many Requests", "", "0", ""));
	assert_int_equal(err.retryable, 1);
	err = put_against(ANSWER("501 Not Implemented", "", "0", ""));
	assert_int_equal(err.retryable, 0);
}

static void test_wrong_region(void **state)
{
	(void)state;
	struct us_error err = put_against(
		ANSWER("301 Moved Permanently",
		       "x-amz-bucket-region: eu-west-3\r\nLocation: http://x/\r\n", "0", ""));
	assert_int_equal(err.code, US_E_HTTP);
	assert_non_null(strstr(err.message, "set region: eu-west-3 (now us-east-1)"));
	err = put_against(
		ANSWER("400 Bad Request", "", "107",
		       "<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong</Message>"
		       "<Region>ap-south-1</Region></Error>     "));
	assert_non_null(strstr(err.message, "400 AuthorizationHeaderMalformed: wrong; "));
	assert_non_null(strstr(err.message, "set region: ap-south-1 (now us-east-1)"));
}

static char echo_answer[16384];

/* Repeats what it was sent where a message would be. */
static const char *echo(struct server *server, const char *request, uint64_t number)
{
	(void)number;
	const char *what = server->close_after ? "x-amz-security-token: " : "Authorization: ";
	const char *start = strstr(request, what);
	char line[2048], body[4096];
	assert_non_null(start);
	size_t len = strcspn(start, "\r");
	(void)snprintf(line, sizeof(line), "%.*s", (int)len, start);
	int body_len = snprintf(body, sizeof(body),
				"<Error><Code>Denied</Code><Message>%s</Message></Error>", line);
	(void)snprintf(echo_answer, sizeof(echo_answer),
		       "HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s", body_len, body);
	return echo_answer;
}

static void test_secrets_stay_out_of_messages(void **state)
{
	(void)state;
	for (int token = 0; token < 2; token++) {
		struct server server = { .answer_fn = echo, .close_after = token };
		struct us_error err = error_of_test();
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
		set_keys(store, "ak", SECRET, TOKEN);
		assert_int_equal(put_text(store, "k", "x", &err), US_E_ACCESS);
		assert_non_null(strstr(err.message, "withheld"));
		assert_null(strstr(err.message, "Signature="));
		assert_null(strstr(err.message, TOKEN));
		store->ops->close(store);
		server_stop(&server);
	}
}

static void test_request_headers(void **state)
{
	(void)state;
	struct server server = { .answer = OK_PUT };
	struct us_error err = error_of_test();
	struct us_store *store = NULL;
	server_start(&server);
	struct us_store_s3_options options = { .endpoint = server.endpoint,
					       .bucket = "bk1",
					       .path_style = 1,
					       .storage_class = "STANDARD_IA",
					       .sse = "aws:kms",
					       .sse_kms_key_id = "arn:aws:kms:x:1:key/2",
					       .concurrency = 1 };
	assert_int_equal(us_store_s3_open(&options, &store, &err), 0);
	set_keys(store, "ak", SECRET, TOKEN);
	setenv("http_proxy", "http://127.0.0.1:1", 1);
	assert_int_equal(put_text(store, "a b/c", "hello", &err), 0);
	unsetenv("http_proxy");
	const char *r = server.last_request;
	assert_non_null(strstr(r, "PUT /bk1/a%20b/c HTTP/1.1\r\n"));
	assert_non_null(strstr(r, "x-amz-storage-class: STANDARD_IA\r\n"));
	assert_non_null(strstr(r, "x-amz-server-side-encryption: aws:kms\r\n"));
	assert_non_null(strstr(
		r, "x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:x:1:key/2\r\n"));
	assert_non_null(strstr(r, "x-amz-security-token: " TOKEN "\r\n"));
	assert_non_null(
		strstr(r, "/us-east-1/s3/aws4_request, SignedHeaders=content-type;host;"
			  "x-amz-content-sha256;x-amz-date;x-amz-meta-lz4-sha256;"
			  "x-amz-meta-snapshot-time;x-amz-security-token;"
			  "x-amz-server-side-encryption;"
			  "x-amz-server-side-encryption-aws-kms-key-id;x-amz-storage-class, "));
	assert_non_null(strstr(r, "content-type: application/octet-stream\r\n"));
	assert_non_null(strstr(r, "Content-Length: 5\r\n"));
	assert_null(strcasestr(r, "\r\nexpect:"));
	assert_null(strcasestr(r, "\r\ntransfer-encoding:"));
	char host[64];
	(void)snprintf(host, sizeof(host), "\r\nhost: 127.0.0.1:%u\r\n", server.port);
	char *first = strcasestr(server.last_request, "\r\nhost: ");
	assert_non_null(first);
	assert_ptr_equal(strcasestr(r, host), first);
	assert_null(strcasestr(first + 4, "\r\nhost: "));
	set_keys(store, "", "", NULL);
	assert_int_equal(put_text(store, "a b/c", "hello", &err), 0);
	assert_null(strcasestr(r, "authorization"));
	assert_null(strcasestr(r, "x-amz-date"));
	store->ops->close(store);
	server_stop(&server);
}

/* Takes every other request and hangs up. */
static const char *swallow_odd(struct server *server, const char *request, uint64_t number)
{
	(void)server;
	(void)request;
	return number % 2 ? NULL : OK_PUT;
}

/* A put that was sent whole, got no answer and was sent again says so: the first one may
 * still land. */
static void test_sent_twice(void **state)
{
	(void)state;
	struct us_put put;
	struct server dying = { .answer_fn = swallow_odd };
	server_start(&dying);
	struct us_store *store = open_store(dying.endpoint, "bk1", 1, NULL);
	for (int i = 0; i < 10; i++) {
		fill_put(&put, "k", "hello", 5);
		assert_int_equal(put_now(store, &put), 0);
		assert_int_equal(put.sent_twice, i > 0);
	}
	store->ops->close(store);
	server_stop(&dying);

	/* What was not sent whole cannot land. */
	struct server resetting = { .answer = OK_PUT, .die_on_second = 2 };
	size_t len = 32u << 20;
	char *data = calloc(1, len);
	server_start(&resetting);
	store = open_store(resetting.endpoint, "bk1", 1, NULL);
	for (int i = 0; i < 3; i++) {
		fill_put(&put, "k", data, len);
		assert_int_equal(put_now(store, &put), 0);
		assert_int_equal(put.sent_twice, 0);
	}
	free(data);
	store->ops->close(store);
	server_stop(&resetting);
}

static void test_connections_are_reused(void **state)
{
	(void)state;
	struct server server = { .answer = OK_PUT };
	struct us_error err = error_of_test();
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 4, NULL);
	for (int i = 0; i < 50; i++) {
		assert_int_equal(put_text(store, "k", "hello", &err), 0);
	}
	assert_int_equal(server.connections, 1);
	store->ops->close(store);
	server_stop(&server);

	/* Connections that are dead on second use: sent again, on a new one. */
	struct server closing = { .answer = OK_PUT, .close_after = 1 };
	server_start(&closing);
	store = open_store(closing.endpoint, "bk1", 4, NULL);
	for (int i = 0; i < 50; i++) {
		if (put_text(store, "k", "hello", &err)) {
			fail_msg("%s", err.message);
		}
	}
	assert_int_equal(closing.requests, 50);
	store->ops->close(store);
	server_stop(&closing);

	/* Connections that die under the second request, every time. */
	struct server dying = { .answer = OK_PUT, .die_on_second = 1 };
	struct sink sink = { 0 };
	server_start(&dying);
	store = open_store(dying.endpoint, "bk1", 1, NULL);
	for (int i = 0; i < 50; i++) {
		if (put_text(store, "k", "hello", &err) ||
		    store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err)) {
			fail_msg("%d: %s", i, err.message);
		}
	}
	assert_int_equal(dying.requests, 100);
	store->ops->close(store);
	server_stop(&dying);

	/* Or in the middle of it, where curl gives up. */
	struct server resetting = { .answer = OK_PUT, .die_on_second = 2 };
	size_t len = 8u << 20;
	char *data = calloc(1, len);
	struct us_put put;
	server_start(&resetting);
	store = open_store(resetting.endpoint, "bk1", 1, NULL);
	for (int i = 0; i < 20; i++) {
		fill_put(&put, "k", data, len);
		if (put_now(store, &put)) {
			fail_msg("%d: %s", i, put.err.message);
		}
	}
	assert_int_equal(resetting.requests, 20);
	free(data);
	store->ops->close(store);
	server_stop(&resetting);
}

static void test_unreachable(void **state)
{
	(void)state;
	uint16_t port;
	char endpoint[48];
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	close(listen_on(&port));
	(void)snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%u", port);
	struct us_store *store = open_store(endpoint, "bk1", 4, NULL);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_NETWORK);
	assert_int_equal(err.retryable, 1);
	assert_non_null(strstr(err.message, "PUT \"bk1/k\": "));
	assert_non_null(strstr(err.message, "127.0.0.1"));
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_NETWORK);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put + counts.get, 0); /* nothing was sent */
	store->ops->close(store);

	store = open_store("http://no-such-host.invalid", "bk1", 4, NULL);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_NETWORK);
	assert_non_null(strstr(err.message, "no-such-host.invalid cannot be resolved"));
	store->ops->close(store);

	/* A plain server where TLS was expected. */
	struct server server = { .answer = OK_PUT };
	server_start(&server);
	(void)snprintf(endpoint, sizeof(endpoint), "https://127.0.0.1:%u", server.port);
	static const struct us_s3_timing timing = { 500, 1000, 25, 600 };
	store = open_store(endpoint, "bk1", 4, &timing);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_NETWORK);
	store->ops->close(store);
	server_stop(&server);
}

static int64_t elapsed_ms(int64_t since_ns)
{
	return (us_clock_mono_ns() - since_ns) / US_NS_PER_MS;
}

static void test_no_progress(void **state)
{
	(void)state;
	static const struct us_s3_timing timing = { 2000, 400, 25, 600 };
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	struct server server = { .hang = 1 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 4, &timing);
	int64_t start_ns = us_clock_mono_ns();
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_TIMEOUT);
	assert_int_equal(err.retryable, 1);
	assert_in_range(elapsed_ms(start_ns), 350, 1500);
	start_ns = us_clock_mono_ns();
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_TIMEOUT);
	assert_in_range(elapsed_ms(start_ns), 350, 1500);
	assert_int_equal(store->ops->remove(store, "k", &err), US_E_TIMEOUT);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put, 1);
	assert_int_equal(counts.put_bytes, 0);
	store->ops->close(store);
	server_stop(&server);

	/* The peer's kernel takes a part of the object and then nothing more. */
	struct server deaf = { .read_nothing = 1 };
	server_start(&deaf);
	store = open_store(deaf.endpoint, "bk1", 4, &timing);
	size_t len = 32u << 20;
	char *data = calloc(1, len);
	struct us_put put;
	fill_put(&put, "k", data, len);
	assert_int_equal(put_now(store, &put), US_E_TIMEOUT);
	free(data);
	store->ops->close(store);
	server_stop(&deaf);
}

/* An answer that comes, but byte by byte, is no progress. */
static void test_drip(void **state)
{
	(void)state;
	static const struct us_s3_timing timing = { 2000, 400, 25, 600 };
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	struct listed listed = { 0 };
	struct server server = { .answer = ANSWER("200 OK",
						  "ETag: \"x\"\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n"
						  "E: 5\r\nF: 6\r\n",
						  "59",
						  "<ListBucketResult>"
						  "<KeyCount>0</KeyCount></ListBucketResult>"),
				 .drip_ms = 10 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 4, &timing);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_TIMEOUT);
	assert_int_equal(store->ops->remove(store, "k", &err), US_E_TIMEOUT);
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_TIMEOUT);
	assert_int_equal(store->ops->list(store, "", to_listed, &listed, &err), US_E_TIMEOUT);
	store->ops->close(store);
	server_stop(&server);
}

/* "Done", said of an object that was not sent yet. */
static void test_early_answer(void **state)
{
	(void)state;
	struct server server = { .answer = OK_PUT, .answer_early = 1 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 1, NULL);
	size_t len = 32u << 20;
	char *data = calloc(1, len);
	struct us_put put;
	fill_put(&put, "k", data, len);
	assert_true(put_now(store, &put) < 0);
	free(data);
	store->ops->close(store);
	server_stop(&server);
}

/* Answers that do not end: headers, then bodies. */
static char endless_headers[600000], endless_body[2000000];

static void fill_endless(char *text, size_t len, const char *start)
{
	size_t at = (size_t)snprintf(text, len, "%s", start);
	while (at + 10 < len) {
		memcpy(text + at, "a: b\r\n", 7);
		at += 6;
	}
}

static const char *endless(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	return number == 0 ? endless_headers : endless_body;
}

static void test_endless_answers(void **state)
{
	(void)state;
	struct server server = { .answer_fn = endless };
	struct us_error err = error_of_test();
	fill_endless(endless_headers, sizeof(endless_headers), "HTTP/1.1 500 Oops\r\n");
	fill_endless(endless_body, sizeof(endless_body), "HTTP/1.1 500 Oops\r\n\r\n");
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 1, NULL);
	assert_int_equal(put_text(store, "k", "x", &err),
			 US_E_HTTP); /* headers: the status is there */
	assert_int_equal(put_text(store, "k", "x", &err), US_E_HTTP);
	struct sink sink = { 0 };
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_HTTP);
	store->ops->close(store);
	server_stop(&server);
}

static const char *slow_steps(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request, (void)number;
	us_clock_sleep_ns(250 * US_NS_PER_MS); /* below the stall time, several in a row */
	return OK_PUT;
}

static void test_slow_is_not_stalled(void **state)
{
	(void)state;
	static const struct us_s3_timing timing = { 2000, 500, 25, 600 };
	struct us_error err = error_of_test();
	struct server server = { .answer_fn = slow_steps };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 1, &timing);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(put_text(store, "k", "hello", &err), 0);
	}
	store->ops->close(store);
	server_stop(&server);
}

/* ---------------------------------------------------------- limited bandwidth */

static struct us_store *open_gateway_limited(const struct us_s3_timing *timing,
					     uint64_t upload_bytes_per_s)
{
	struct us_store *store =
		open_limited(gateway.endpoint, "bk1", 16, timing, upload_bytes_per_s);
	set_keys(store, "ak", SECRET, NULL);
	return store;
}

/* One alone: in time with the limit, which is slower than the stall time allows for the
 * whole, and with all of its bytes. */
static void test_limit_of_one(void **state)
{
	(void)state;
	static const struct us_s3_timing timing = { 2000, 500, 25, 600 };
	enum { LEN = 200000, LIMIT = 100000 };
	struct us_store *store = open_gateway_limited(&timing, LIMIT);
	uint8_t *data = malloc(LEN), *back = malloc(LEN);
	for (size_t i = 0; i < LEN; i++) {
		data[i] = (uint8_t)(i * 7 + i / 4093);
	}
	struct us_put put;
	fill_put(&put, "limited/one", data, LEN);
	int64_t start_ns = us_clock_mono_ns();
	if (put_now(store, &put)) {
		fail_msg("%s", put.err.message);
	}
	/* but for the last piece, a quarter of a second's */
	assert_true(elapsed_ms(start_ns) >= (LEN - LIMIT / 4) * 1000 / LIMIT - 10);
	struct us_get_queue queue;
	assert_int_equal(us_get_queue_init(&queue, NULL), 0);
	struct us_get get = {
		.key = "limited/one", .len = LEN, .object_len = LEN, .data = back, .queue = &queue
	};
	store->ops->get_start(store, &get);
	assert_ptr_equal(us_get_queue_wait(&queue, 60000), &get);
	assert_int_equal(get.rc, 0);
	assert_memory_equal(data, back, LEN);
	us_get_queue_done(&queue);
	free(data);
	free(back);
	store->ops->close(store);
}

/* Many small ones: no more than the limit together; and all else goes past those that wait. */
static void test_limit_of_all(void **state)
{
	(void)state;
	enum { COUNT = 40, LEN = 2500, LIMIT = 50000 };
	struct us_store *store = open_gateway_limited(NULL, LIMIT);
	static char data[LEN], keys[COUNT][24];
	struct us_put puts[COUNT];
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	struct listed listed = { 0 };
	uint64_t len = 0;
	memset(data, 'd', sizeof(data));
	int64_t start_ns = us_clock_mono_ns();
	for (size_t i = 0; i < COUNT; i++) {
		(void)snprintf(keys[i], sizeof(keys[i]), "limited/many/%zu", i);
		fill_put(&puts[i], keys[i], data, LEN);
		store->ops->put_start(store, &puts[i]);
	}
	struct us_put *first = store->ops->put_wait(store, 60000);
	assert_non_null(first);
	assert_int_equal(
		store->ops->get(store, first->key, 0, UINT64_MAX, to_sink, &sink, &len, &err), 0);
	assert_int_equal(len, LEN);
	struct us_get_queue queue;
	assert_int_equal(us_get_queue_init(&queue, NULL), 0);
	struct us_get get = { .key = first->key,
			      .len = LEN,
			      .object_len = LEN,
			      .data = (uint8_t *)sink.data,
			      .queue = &queue };
	store->ops->get_start(store, &get);
	assert_ptr_equal(us_get_queue_wait(&queue, 60000), &get);
	assert_int_equal(get.rc, 0);
	assert_memory_equal(get.data, data, LEN);
	us_get_queue_done(&queue);
	assert_int_equal(store->ops->remove(store, first->key, &err), 0);
	assert_int_equal(
		store->ops->write_version(store, "limited/owner", NULL, (uint8_t *)data, LEN, &err),
		0);
	size_t done = 0;
	for (struct us_put *put = first; done < COUNT; put = store->ops->put_wait(store, 60000)) {
		for (; put; put = put->next) {
			assert_int_equal(put->rc, 0);
			done++;
		}
	}
	/* The first is free, and so is a tenth of a second. */
	assert_true(elapsed_ms(start_ns) >= (COUNT - 1) * LEN * 1000 / LIMIT - 100);
	assert_int_equal(store->ops->list(store, "limited/many/", to_listed, &listed, &err), 0);
	assert_int_equal(listed.count, COUNT - 1);
	listed_done(&listed);
	store->ops->close(store);
}

/* A cancel reaches those that wait for the limit and the one that is slowed by it. */
static void test_cancel_of_limited(void **state)
{
	(void)state;
	struct us_store *store = open_gateway_limited(NULL, 1000);
	static char data[500000];
	static const char *const keys[] = { "limited/0", "limited/1", "limited/2" };
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	struct us_put puts[3];
	for (size_t i = 0; i < 3; i++) {
		fill_put(&puts[i], keys[i], data, sizeof(data));
		store->ops->put_start(store, &puts[i]);
	}
	assert_int_equal(
		store->ops->get(store, "limited/0", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
		US_E_NOTFOUND);
	assert_null(store->ops->put_wait(store, 0));
	store->ops->cancel(store);
	for (size_t done = 0; done < 3;) {
		struct us_put *put = store->ops->put_wait(store, 10000);
		assert_non_null(put);
		for (; put; put = put->next) {
			assert_int_equal(put->rc, US_E_CANCELED);
			done++;
		}
	}
	store->ops->close(store);
}

/* What has to be sent again counts again. */
static void test_limit_counts_resends(void **state)
{
	(void)state;
	enum { LEN = 10000, LIMIT = 40000 };
	struct server server = { .answer_fn = swallow_odd };
	static char data[LEN];
	struct us_put put;
	server_start(&server);
	struct us_store *store = open_limited(server.endpoint, "bk1", 1, NULL, LIMIT);
	int64_t start_ns = us_clock_mono_ns();
	for (int i = 0; i < 3; i++) {
		fill_put(&put, "k", data, LEN);
		assert_int_equal(put_now(store, &put), 0);
		assert_int_equal(put.sent_twice, i > 0);
	}
	int64_t due_ns = ((struct us_s3_store *)store)->rate.due_ns; /* nothing is under way */
	assert_true(due_ns - start_ns >= 5 * LEN * US_NS_PER_S / LIMIT - 100 * US_NS_PER_MS);
	store->ops->close(store);
	server_stop(&server);
}

static void *cancel_soon(void *arg)
{
	struct us_store *store = arg;
	us_clock_sleep_ns(200 * US_NS_PER_MS);
	store->ops->cancel(store);
	return NULL;
}

static void test_cancel(void **state)
{
	(void)state;
	struct server server = { .hang = 1 };
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 4, NULL);
	struct us_put puts[10];
	for (size_t i = 0; i < 10; i++) { /* 4 in flight, 6 waiting */
		fill_put(&puts[i], "k", "hello", 5);
		store->ops->put_start(store, &puts[i]);
	}
	pthread_t thread;
	pthread_create(&thread, NULL, cancel_soon, store);
	int64_t start_ns = us_clock_mono_ns();
	assert_int_equal(store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL, &err),
			 US_E_CANCELED);
	assert_in_range(elapsed_ms(start_ns), 150, 600);
	size_t done = 0;
	while (done < 10) {
		struct us_put *put = store->ops->put_wait(store, 1000);
		assert_non_null(put);
		for (; put; put = put->next) {
			assert_int_equal(put->rc, US_E_CANCELED);
			done++;
		}
	}
	assert_in_range(elapsed_ms(start_ns), 150, 600);
	pthread_join(thread, NULL);
	assert_int_equal(put_text(store, "k", "hello", &err), US_E_CANCELED);
	assert_int_equal(store->ops->remove(store, "k", &err), US_E_CANCELED);
	store->ops->close(store);
	server_stop(&server);
}

/* ------------------------------------------------------------- backing off */

static const char *crowded(struct server *server, const char *request, uint64_t number)
{
	(void)request, (void)number;
	return atomic_load(&server->now) > 3 ? ANSWER("503 Slow Down", "", "0", "") : OK_PUT;
}

static void test_backing_off(void **state)
{
	(void)state;
	struct server server = { .answer_fn = crowded, .delay_ms = 2 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 64, NULL);
	assert_int_equal(us_s3_pool_limit(store), 8); /* to begin with */
	struct us_put *puts = calloc(2000, sizeof(*puts));
	size_t started = 0, done = 0, failed = 0, failed_late = 0;
	while (done < 2000) {
		while (started < 2000 && started - done < 100) {
			fill_put(&puts[started], "k", "hello", 5);
			store->ops->put_start(store, &puts[started++]);
		}
		for (struct us_put *put = store->ops->put_wait(store, 1000); put; put = put->next) {
			failed += put->rc != 0;
			failed_late += put->rc != 0 && done > 300;
			assert_true(put->rc == 0 || put->err.http_status == 503);
			done++;
		}
	}
	uint32_t limit = us_s3_pool_limit(store);
	print_message("2,000 puts, 4th at once refused: %zu refused, %zu of them after the first "
		      "300; limit at the end %u\n",
		      failed, failed_late, limit);
	assert_in_range(limit, 1, 8);
	assert_true(failed >= 1 && failed < 300);
	assert_true(failed_late < 60);
	free(puts);
	store->ops->close(store);
	server_stop(&server);
}

static const char *recovering(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	return number == 0 ? ANSWER("429 Too Many Requests", "", "0", "") : OK_PUT;
}

static void test_recovering(void **state)
{
	(void)state;
	struct server server = { .answer_fn = recovering };
	struct us_error err = error_of_test();
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 8, NULL);
	assert_int_equal(put_text(store, "k", "x", &err), US_E_HTTP);
	assert_int_equal(us_s3_pool_limit(store), 4);
	for (int i = 0; i < 4 + 5 + 6; i++) {
		assert_int_equal(put_text(store, "k", "x", &err), 0);
	}
	assert_int_equal(us_s3_pool_limit(store), 7); /* the ceiling */
	for (int i = 0; i < 256; i++) {
		assert_int_equal(put_text(store, "k", "x", &err), 0);
	}
	assert_int_equal(us_s3_pool_limit(store), 8);
	store->ops->close(store);
	server_stop(&server);
}

/* -------------------------------------------------- gets and lists that lie */

static int32_t get_against(const char *answer, int64_t offset, uint64_t len, struct sink *sink,
			   uint64_t *ret_len, struct us_error *err)
{
	struct server server = { .answer = answer };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	*sink = (struct sink){ 0 };
	int32_t rc = store->ops->get(store, "k", offset, len, to_sink, sink, ret_len, err);
	store->ops->close(store);
	server_stop(&server);
	return rc;
}

static void test_get_answers(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	struct sink sink;
	uint64_t len = 77;
	/* A server without ranges. */
	const char *whole = ANSWER("200 OK", "", "10", "0123456789");
	assert_int_equal(get_against(whole, 3, 4, &sink, &len, &err), 0);
	assert_int_equal(len, 10);
	assert_int_equal(sink.len, 4);
	assert_memory_equal(sink.data, "3456", 4);
	assert_int_equal(get_against(whole, -3, 3, &sink, &len, &err), 0);
	assert_int_equal(sink.len, 3);
	assert_memory_equal(sink.data, "789", 3);
	assert_int_equal(get_against(whole, -30, 30, &sink, &len, &err), 0);
	assert_int_equal(sink.len, 10);
	assert_int_equal(get_against(whole, 30, 3, &sink, &len, &err), US_E_HTTP);
	len = 77;
	assert_int_equal(
		get_against("HTTP/1.1 200 OK\r\n\r\n0123456789close", -3, 3, &sink, &len, &err),
		US_E_HTTP);
	/* Another range than asked for, a truncated one, a 206 out of nowhere. */
	const char *shifted = ANSWER("206 Partial", "Content-Range: bytes 4-6/10\r\n", "3", "456");
	assert_int_equal(get_against(shifted, 3, 3, &sink, &len, &err), US_E_HTTP);
	assert_int_equal(err.http_status, 206);
	assert_int_equal(get_against(shifted, -3, 3, &sink, &len, &err), US_E_HTTP);
	assert_int_equal(get_against(shifted, 4, 4, &sink, &len, &err), US_E_HTTP);
	assert_int_equal(get_against(shifted, 4, 3, &sink, &len, &err), 0);
	assert_int_equal(len, 10);
	assert_int_equal(get_against(shifted, 0, UINT64_MAX, &sink, &len, &err), US_E_HTTP);
	const char *nothing = ANSWER("206 Partial", "", "3", "456");
	assert_int_equal(get_against(nothing, 4, 3, &sink, &len, &err), US_E_HTTP);
	const char *lies = ANSWER("206 Partial", "Content-Range: bytes 4-8/10\r\n", "3", "456");
	assert_int_equal(get_against(lies, 4, 5, &sink, &len, &err), US_E_HTTP);
	len = 77;
	assert_int_equal(get_against("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n0123close", 0,
				     UINT64_MAX, &sink, &len, &err),
			 US_E_NETWORK);
	assert_int_equal(len, 77); /* untouched on failure */
	assert_int_equal(
		get_against(ANSWER("200 OK", "", "0", ""), 0, UINT64_MAX, &sink, &len, &err), 0);
	assert_int_equal(len, 0);
}

#define LIST_HEAD "<?xml version=\"1.0\"?><ListBucketResult>"
static char list_answer[65536];

static const char *list_of(const char *body)
{
	(void)snprintf(
		list_answer, sizeof(list_answer),
		"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %zu\r\n\r\n%s",
		strlen(body), body);
	return list_answer;
}

#define MORE "<IsTruncated>true</IsTruncated>"
#define LAST "<IsTruncated>false</IsTruncated>"
#define ENTRY(key) "<Contents><Key>" key "</Key><Size>1</Size></Contents>"

static const char *same_token(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	char body[512];
	(void)snprintf(body, sizeof(body),
		       LIST_HEAD MORE "<NextContinuationToken>same</NextContinuationToken>"
				      "<Contents><Key>p/%06llu</Key><Size>1</Size></Contents>"
				      "</ListBucketResult>",
		       (unsigned long long)number);
	return list_of(body);
}

static const char *empty_pages(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	char body[512];
	(void)snprintf(body, sizeof(body),
		       LIST_HEAD MORE "<NextContinuationToken>t%llu</NextContinuationToken>"
				      "</ListBucketResult>",
		       (unsigned long long)number);
	return list_of(body);
}

static const char *same_keys(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	char body[512];
	(void)snprintf(body, sizeof(body),
		       LIST_HEAD MORE
		       "<NextContinuationToken>t%llu</NextContinuationToken>" ENTRY("p/a")
			       ENTRY("p/b") "</ListBucketResult>",
		       (unsigned long long)number);
	return list_of(body);
}

static const char *three_pages(struct server *server, const char *request, uint64_t number)
{
	(void)server;
	static const char *const wants[] = { "?encoding-type=url&list-type=2&",
					     "?continuation-token=t%2B1%3D&encoding-type=url&",
					     "?continuation-token=t2&encoding-type=url&" };
	static const char *const bodies[] = {
		LIST_HEAD MORE "<NextContinuationToken>t+1=</NextContinuationToken>" ENTRY(
			"p/a") "</ListBucketResult>",
		LIST_HEAD MORE
		"<NextContinuationToken>t2</NextContinuationToken></ListBucketResult>",
		LIST_HEAD LAST ENTRY("p/b") "</ListBucketResult>",
	};
	assert_true(number < 3);
	assert_non_null(strstr(request, wants[number]));
	assert_non_null(strstr(request, "&max-keys=1000&prefix=p%2F HTTP/1.1"));
	return list_of(bodies[number]);
}

static int32_t list_against(const struct server *template, size_t *ret_count, struct us_error *err)
{
	struct server server = *template;
	struct listed listed = { 0 };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	int32_t rc = store->ops->list(store, "p/", to_listed, &listed, err);
	*ret_count = listed.count;
	listed_done(&listed);
	store->ops->close(store);
	server_stop(&server);
	return rc;
}

static void test_list_answers(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	size_t count;
	struct server server = { .answer_fn = three_pages };
	assert_int_equal(list_against(&server, &count, &err), 0);
	assert_int_equal(count, 2);
	server.answer_fn = same_token;
	assert_int_equal(list_against(&server, &count, &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "malformed listing: the same continuation token"));
	assert_int_equal(count, 1);
	server.answer_fn = empty_pages;
	assert_int_equal(list_against(&server, &count, &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "too many empty pages"));
	server.answer_fn = same_keys;
	assert_int_equal(list_against(&server, &count, &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "ascending"));
	assert_int_equal(count, 2);
	static const struct {
		const char *body, *message;
	} bad[] = {
		{ LIST_HEAD MORE ENTRY("p/a") "</ListBucketResult>", "not how to go on" },
		{ LIST_HEAD LAST ENTRY("p/b") ENTRY("p/a") "</ListBucketResult>", "ascending" },
		{ LIST_HEAD LAST ENTRY("q/b") "</ListBucketResult>", "prefix" },
		{ LIST_HEAD LAST ENTRY("p/b"), "malformed listing" },
		{ "<html>login</html>", "not a ListBucketResult" },
		{ "", "malformed listing" },
		{ "<Error><Code>SlowDown</Code><Message>later</Message></Error>",
		  "200 SlowDown: later" },
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		server = (struct server){ .answer = list_of(bad[i].body) };
		assert_int_equal(list_against(&server, &count, &err), US_E_HTTP);
		if (!strstr(err.message, bad[i].message)) {
			fail_msg("%zu: %s", i, err.message);
		}
		assert_non_null(strstr(err.message, "GET \"bk1/p/\": "));
		assert_int_equal(err.http_status, 200);
		assert_int_equal(count, 0);
	}
}

/* --------------------------------------------------------------- options */

static int32_t open_with(struct us_store_s3_options options, struct us_error *err)
{
	struct us_store *store = NULL;
	options.concurrency = options.concurrency ? options.concurrency : 1;
	int32_t rc = us_store_s3_open(&options, &store, err);
	if (rc == 0) {
		store->ops->close(store);
	}
	return rc;
}

static void expect_place(struct us_store_s3_options options, const char *origin, const char *host,
			 const char *root)
{
	struct us_s3_endpoint endpoint;
	struct us_error err = error_of_test();
	if (us_s3_endpoint_init(&endpoint, &options, &err)) {
		fail_msg("%s", err.message);
	}
	assert_string_equal(endpoint.origin, origin);
	assert_string_equal(endpoint.host, host);
	assert_string_equal(endpoint.root, root);
	us_s3_endpoint_done(&endpoint);
}

#define OPTIONS_OF(name, ...) ((struct us_store_s3_options){ .bucket = (name), __VA_ARGS__ })
#define OPTIONS(...) OPTIONS_OF("bk", __VA_ARGS__)

static void test_endpoints(void **state)
{
	(void)state;
	expect_place(OPTIONS(.region = "eu-west-1"), "https://bk.s3.eu-west-1.amazonaws.com",
		     "bk.s3.eu-west-1.amazonaws.com", "");
	expect_place(OPTIONS(.region = "eu-west-1", .path_style = 1),
		     "https://s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com", "/bk");
	expect_place(OPTIONS_OF("a.b", .region = NULL), "https://s3.us-east-1.amazonaws.com",
		     "s3.us-east-1.amazonaws.com", "/a.b");
	expect_place(OPTIONS(.region = "cn-north-1"), "https://bk.s3.cn-north-1.amazonaws.com.cn",
		     "bk.s3.cn-north-1.amazonaws.com.cn", "");
	expect_place(OPTIONS(.endpoint = "http://h:9000/", .path_style = 1), "http://h:9000",
		     "h:9000", "/bk");
	expect_place(OPTIONS(.endpoint = "https://h:443", .path_style = 1), "https://h", "h",
		     "/bk");
	expect_place(OPTIONS(.endpoint = "HTTP://h:080"), "http://bk.h", "bk.h", "");
	expect_place(OPTIONS(.endpoint = "https://h:80"), "https://bk.h:80", "bk.h:80", "");
	expect_place(OPTIONS(.endpoint = "http://[::1]:9000", .path_style = 1), "http://[::1]:9000",
		     "[::1]:9000", "/bk");
	static const char *const bad[] = {
		"h:9000",
		"ftp://h",
		"http://",
		"http://h:0",
		"http://h:65536",
		"http://h:",
		"http://h/p",
		"http://h//",
		"http://h?x",
		"http://[::1",
		"http://[x]",
		"http://h h",
		"http://.h",
		"http://h\r\nx: y",
		"http://h#",
		"http://h:80x",
		"http://h\\x",
		"http://",
		"http://\xc3\xa9",
		"http://h.",
		"http://~h",
		"http://h:9x",
		"http://h:/",
		"http://h:999999999999",
		"http://[1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc]",
	};
	struct us_error err = error_of_test();
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(open_with(OPTIONS(.endpoint = bad[i], .path_style = 1), &err),
				 US_E_CONFIG);
		assert_ptr_equal(strstr(err.message, "endpoint: "), err.message);
		assert_non_null(strstr(err.message, "http(s)://host[:port]"));
	}
	assert_int_equal(open_with(OPTIONS(.endpoint = "http://ak:topsecret@h"), &err),
			 US_E_CONFIG);
	assert_null(strstr(err.message, "topsecret"));
	assert_int_equal(open_with(OPTIONS(.endpoint = "http://127.0.0.1:9000"), &err),
			 US_E_CONFIG);
	assert_non_null(strstr(err.message, "force_path_style: true"));
	static const char *const bad_buckets[] = { "",  "a/b", "a b", "a\n",
						   ".", "..",  "a%",  "\xc3\xa9" };
	for (size_t i = 0; i < sizeof(bad_buckets) / sizeof(bad_buckets[0]); i++) {
		assert_int_equal(open_with(OPTIONS_OF(bad_buckets[i], .region = NULL), &err),
				 US_E_CONFIG);
		assert_ptr_equal(strstr(err.message, "bucket: "), err.message);
	}
	assert_int_equal(open_with(OPTIONS_OF("Old_Bucket", .region = NULL), &err), 0);
	assert_int_equal(open_with(OPTIONS(.region = "a/b"), &err), US_E_CONFIG);
	assert_int_equal(open_with(OPTIONS(.storage_class = "A\r\nx: y"), &err), US_E_CONFIG);
	assert_int_equal(open_with(OPTIONS(.concurrency = 1001), &err), US_E_CONFIG);
	assert_int_equal(open_with(OPTIONS_OF(NULL, .region = NULL), &err), US_E_CONFIG);
	/* As long as each may be, and a byte longer. */
	char text[2100] = "http://";
	memset(text + 7, 'h', sizeof(text) - 7);
	for (size_t len = 253; len <= 254; len++) {
		text[7 + len] = '\0';
		assert_int_equal(open_with(OPTIONS(.endpoint = text, .path_style = 1), &err),
				 len == 253 ? 0 : US_E_CONFIG);
		text[7 + len] = 'h';
	}
	memset(text, 'b', sizeof(text));
	for (size_t len = 255; len <= 256; len++) {
		text[len] = '\0';
		assert_int_equal(open_with(OPTIONS_OF(text, .path_style = 1), &err),
				 len == 255 ? 0 : US_E_CONFIG);
		text[len] = 'b';
	}
	for (size_t len = 63; len <= 64; len++) {
		text[len] = '\0';
		assert_int_equal(open_with(OPTIONS(.region = text, .path_style = 1), &err),
				 len == 63 ? 0 : US_E_CONFIG);
		text[len] = 'b';
	}
	assert_non_null(strstr(err.message, "too long"));
	for (size_t len = 2048; len <= 2049; len++) {
		text[len] = '\0';
		assert_int_equal(open_with(OPTIONS(.sse_kms_key_id = text), &err),
				 len == 2048 ? 0 : US_E_CONFIG);
		text[len] = 'b';
	}
	assert_int_equal(open_with(OPTIONS(.sse = "a\x7f"), &err), US_E_CONFIG);
	struct us_store_s3_options none = OPTIONS(.path_style = 1);
	none.concurrency = 0;
	struct us_store *store = NULL;
	assert_int_equal(us_store_s3_open(&none, &store, &err), US_E_CONFIG);
}

static void test_bad_arguments(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	struct sink sink = { 0 };
	struct us_store *store = open_store("http://127.0.0.1:1", "bk1", 1, NULL);
	char longer[1026];
	memset(longer, 'k', sizeof(longer) - 1);
	longer[1025] = '\0';
	assert_int_equal(put_text(store, longer, "x", &err), US_E_ARG);
	assert_int_equal(put_text(store, "", "x", &err), US_E_ARG);
	assert_int_equal(store->ops->get(store, "", 0, 1, to_sink, &sink, NULL, &err), US_E_ARG);
	assert_int_equal(store->ops->get(store, "k", 0, 0, to_sink, &sink, NULL, &err), US_E_ARG);
	assert_int_equal(store->ops->remove(store, "", &err), US_E_ARG);
	struct us_s3_credentials half = { "ak", "", NULL };
	assert_int_equal(us_store_s3_set_credentials(store, &half, &err), US_E_ARG);
	struct us_s3_credentials split = { "ak", "a\nb", NULL };
	assert_int_equal(us_store_s3_set_credentials(store, &split, &err), US_E_ARG);
	assert_null(strstr(err.message, "a\nb"));
	store->ops->close(store);
}

/* Credentials change while puts and gets are signed: for the thread sanitizer. */
static void *change_keys(void *arg)
{
	struct us_store *store = arg;
	for (int i = 0; i < 2000; i++) {
		struct us_s3_credentials credentials = { "ak", i % 2 ? SECRET : "other", TOKEN };
		(void)us_store_s3_set_credentials(store, &credentials, NULL);
	}
	return NULL;
}

static void test_threads(void **state)
{
	(void)state;
	struct server server = { .answer = OK_PUT };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 8, NULL);
	pthread_t thread;
	pthread_create(&thread, NULL, change_keys, store);
	struct us_put puts[200];
	for (size_t i = 0; i < 200; i++) {
		fill_put(&puts[i], "k", "hello", 5);
		store->ops->put_start(store, &puts[i]);
		if (i % 40 == 0) {
			struct us_store_counts counts;
			struct sink sink = { 0 };
			store->ops->counts(store, &counts);
			(void)store->ops->get(store, "k", 0, UINT64_MAX, to_sink, &sink, NULL,
					      NULL);
		}
	}
	for (size_t done = 0; done < 200;) {
		for (struct us_put *put = store->ops->put_wait(store, 1000); put; put = put->next) {
			assert_int_equal(put->rc, 0);
			done++;
		}
	}
	pthread_join(thread, NULL);
	store->ops->close(store);
	server_stop(&server);
}

/* ------------------------------------------ objects that processes take turns to write */

static int has_condition(const char *request)
{
	return strcasestr(request, "\r\nif-match:") || strcasestr(request, "\r\nif-none-match:");
}

static const char *know_no_conditions(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)number;
	return has_condition(request) ? ANSWER("501 Not Implemented", "", "0", "") : OK_PUT;
}

static const char *write_at_once(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)number;
	assert_true(has_condition(request));
	return strncmp(request, "PUT /bk1/conflict ", 18) == 0 ? ANSWER("409 Conflict", "", "0", "")
	       : strncmp(request, "PUT /bk1/gone ", 14) == 0 ? ANSWER("404 Not Found", "", "0", "")
							     : ANSWER("412 No", "", "0", "");
}

static void test_conditions(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	const uint8_t *text = (const uint8_t *)"x";
	struct server server = { .answer_fn = know_no_conditions };
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	assert_int_equal(store->ops->write_version(store, "k", "", text, 1, &err), 0);
	assert_int_equal(server.requests, 2);
	assert_int_equal(store->ops->write_version(store, "k", "\"a\"", text, 1, &err), 0);
	assert_int_equal(server.requests, 3); /* that is known by now */
	store->ops->close(store);
	server_stop(&server);

	server = (struct server){ .answer_fn = write_at_once };
	server_start(&server);
	store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	assert_int_equal(store->ops->write_version(store, "k", "\"a\"", text, 1, &err),
			 US_E_EXISTS);
	assert_int_equal(store->ops->write_version(store, "gone", "\"a\"", text, 1, &err),
			 US_E_EXISTS);
	/* Nobody has won yet. */
	assert_int_equal(store->ops->write_version(store, "conflict", "", text, 1, &err),
			 US_E_BUSY);
	assert_int_equal(err.retryable, 1);
	store->ops->close(store);
	server_stop(&server);
}

int main(void)
{
	const struct CMUnitTest gateway_tests[] = {
		cmocka_unit_test(test_put_get_remove),
		cmocka_unit_test(test_put_from_file),
		cmocka_unit_test(test_metadata),
		cmocka_unit_test(test_odd_keys),
		cmocka_unit_test(test_many),
		cmocka_unit_test(test_more_puts_than_the_limit),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_tls),
		cmocka_unit_test(test_limit_of_one),
		cmocka_unit_test(test_limit_of_all),
		cmocka_unit_test(test_cancel_of_limited),
	};
	const struct CMUnitTest own_tests[] = {
		cmocka_unit_test(test_put_answers),
		cmocka_unit_test(test_wrong_region),
		cmocka_unit_test(test_secrets_stay_out_of_messages),
		cmocka_unit_test(test_request_headers),
		cmocka_unit_test(test_connections_are_reused),
		cmocka_unit_test(test_sent_twice),
		cmocka_unit_test(test_unreachable),
		cmocka_unit_test(test_no_progress),
		cmocka_unit_test(test_drip),
		cmocka_unit_test(test_slow_is_not_stalled),
		cmocka_unit_test(test_limit_counts_resends),
		cmocka_unit_test(test_early_answer),
		cmocka_unit_test(test_endless_answers),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_backing_off),
		cmocka_unit_test(test_recovering),
		cmocka_unit_test(test_get_answers),
		cmocka_unit_test(test_list_answers),
		cmocka_unit_test(test_endpoints),
		cmocka_unit_test(test_bad_arguments),
		cmocka_unit_test(test_conditions),
		cmocka_unit_test(test_threads),
	};
	int failed = cmocka_run_group_tests_name("s3 (versitygw)", gateway_tests, start_gateway,
						 stop_gateway);
	return failed + cmocka_run_group_tests_name("s3 (own servers)", own_tests, NULL, NULL);
}
