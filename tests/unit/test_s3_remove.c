/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Removing many objects in one request, and aborting uploads in parts that nobody will
 * end: against a real server, and against small ones that refuse and lie.
 */
#include "../../csrc/store/s3_call.h"
#include "s3_support.h"

/* Whether the gateway has a file for KEY. */
static int is_there(const char *key)
{
	char path[1200];
	struct stat st;
	(void)snprintf(path, sizeof(path), "%s/root/bk1/%s", gateway.dir, key);
	return lstat(path, &st) == 0;
}

/* Makes the file itself: some names cannot be sent. */
static void make_file(const char *key)
{
	char path[1200];
	(void)snprintf(path, sizeof(path), "%s/root/bk1/%s", gateway.dir, key);
	for (char *slash = path + strlen(gateway.dir) + 10; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(path, 0755) == 0 || errno == EEXIST);
		*slash = '/';
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	close(fd);
}

static int32_t remove_many(struct us_store *store, const char *const *keys, size_t count,
			   size_t want_removed, struct us_error *err)
{
	size_t removed = 12345;
	int32_t rc = store->ops->remove_many(store, keys, count, &removed, err);
	if (removed != want_removed) {
		fail_msg("%zu removed, not %zu: %s", removed, want_removed, rc ? err->message : "");
	}
	return rc;
}

static void test_odd_names(void **state)
{
	(void)state;
	static const char *const pieces[] = {
		"a b",
		"a+b",
		"a%20b",
		"a&b",
		"a&amp;b",
		"a&#38;b",
		"<x>",
		"</Key></Object>",
		"]]>",
		"\"q\" 'r'",
		"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
		"nel\xc2\x85 c1\xc2\x80\xc2\x9f",
		"ls\xe2\x80\xa8",
		"del\x7f",
		"tab\tlf\nend",
		"cr\rend",
		"  blanks  ",
		"!*'();:@=,/?#[]",
		"bmp\xef\xbf\xbd\xee\x80\x80",
		"plain",
	};
	enum { PIECES = sizeof(pieces) / sizeof(pieces[0]), COUNT = US_REMOVE_MANY_MAX };
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	char(*names)[128] = calloc(COUNT, sizeof(*names));
	const char **keys = calloc(COUNT, sizeof(*keys));
	for (size_t i = 0; i < COUNT; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "odd/%s/%s%zu", pieces[i % PIECES],
			       pieces[i / PIECES % PIECES], i);
		keys[i] = names[i];
		make_file(keys[i]);
	}
	/* What a wrong escape would hit. */
	make_file("odd/a&b/stays");
	make_file("odd/a&amp;amp;b/a&amp;amp;b63");
	assert_int_equal(remove_many(store, keys, COUNT, COUNT, &err), 0);
	for (size_t i = 0; i < COUNT; i++) {
		if (is_there(keys[i])) {
			fail_msg("%s", keys[i]);
		}
	}
	assert_true(is_there("odd/a&b/stays") && is_there("odd/a&amp;amp;b/a&amp;amp;b63"));
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.remove, 1);
	/* Gone already: that is what was wanted. */
	assert_int_equal(remove_many(store, keys, 100, 100, &err), 0);
	assert_int_equal(store->ops->remove_many(store, keys, COUNT + 1, &(size_t){ 0 }, &err),
			 US_E_ARG);
	assert_int_equal(remove_many(store, keys, 0, 0, &err), 0);
	store->ops->counts(store, &counts);
	assert_int_equal(counts.remove, 2);
	free(keys);
	free(names);
	store->ops->close(store);
}

/* Bytes that no XML document can hold: those keys go one by one. */
static void test_names_beyond_xml(void **state)
{
	(void)state;
	static const char *const keys[] = {
		"beyond/ok1", "beyond/\x01\x02",      "beyond/\x1b[0m",  "beyond/\xff\xfe",
		"beyond/ok2", "beyond/u\xef\xbf\xbe", "beyond/half\xc3",
	};
	enum { COUNT = sizeof(keys) / sizeof(keys[0]) };
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	for (size_t i = 0; i < COUNT; i++) {
		make_file(keys[i]);
	}
	make_file("beyond/stays");
	assert_int_equal(remove_many(store, keys, COUNT, COUNT, &err), 0);
	for (size_t i = 0; i < COUNT; i++) {
		assert_false(is_there(keys[i]));
	}
	assert_true(is_there("beyond/stays"));
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.remove, 1 + 5);
	store->ops->close(store);
}

static void test_refused(void **state)
{
	(void)state;
	static const char *const keys[] = { "refused/1", "refused/2" };
	struct us_error err = error_of_test();
	struct us_store *store = open_store(gateway.endpoint, "bk1", 2, NULL);
	make_file(keys[0]);
	set_keys(store, "ak", "wrong-secret", NULL);
	assert_int_equal(remove_many(store, keys, 2, 0, &err), US_E_ACCESS);
	assert_non_null(strstr(err.message, "POST \"bk1/refused/1\": 403 SignatureDoesNotMatch"));
	assert_true(is_there(keys[0]));
	store->ops->close(store);
	store = open_store(gateway.endpoint, "nobucket", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	assert_int_equal(remove_many(store, keys, 2, 0, &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "NoSuchBucket"));
	store->ops->close(store);
}

/* Directories whose names sort on either side of the slash. */
static void test_listing_order(void **state)
{
	(void)state;
	static const char *const stems[] = {
		"a", "a b", "a!", "a-b", "a.b", "a0", "a_b", "aa", "A"
	};
	enum { STEMS = sizeof(stems) / sizeof(stems[0]), EACH = 150 };
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	char key[64];
	for (size_t i = 0; i < STEMS; i++) {
		for (size_t j = 0; j < EACH; j++) {
			(void)snprintf(key, sizeof(key), "order/%s/%zu%s", stems[i], j,
				       j % 3 ? ".x/y" : "");
			make_file(key);
		}
	}
	struct listed listed = { 0 };
	if (store->ops->list(store, "order/", to_listed, &listed, &err)) {
		fail_msg("%s", err.message);
	}
	assert_int_equal(listed.count, STEMS * EACH); /* in two pages */
	for (size_t i = 1; i < listed.count; i++) {
		assert_true(strcmp(listed.keys[i - 1], listed.keys[i]) < 0);
	}
	listed_done(&listed);
	store->ops->close(store);
}

/* ------------------------------------------------------- uploads in parts */

/* Starts an upload that nobody will end. */
static void leave_upload(struct us_store *base, const char *key)
{
	struct us_s3_store *store = (struct us_s3_store *)base;
	struct us_error err = error_of_test();
	struct us_s3_call *call = us_s3_call_take(store, &err);
	struct us_put put;
	struct us_s3_kind_counts counts = { 0 };
	fill_put(&put, key, "", 0);
	assert_int_equal(us_s3_request_create(&call->transfer.request, &store->endpoint,
					      &store->signer, &put, &err),
			 0);
	if (us_s3_call_document(call, US_S3_CREATED, &counts, &err)) {
		fail_msg("%s", err.message);
	}
	us_s3_call_put_back(call);
}

struct chooser {
	const char *begins;
	size_t asked;
};

static int is_ours(void *arg, const char *key, size_t key_len)
{
	struct chooser *chooser = arg;
	assert_int_equal(strlen(key), key_len);
	chooser->asked++;
	return strncmp(key, chooser->begins, strlen(chooser->begins)) == 0;
}

static int32_t abort_uploads(struct us_store *store, const char *prefix, const char *begins,
			     uint64_t want_count, size_t want_asked, struct us_error *err)
{
	struct chooser chooser = { .begins = begins };
	uint64_t count = 77;
	int32_t rc = store->ops->abort_uploads(store, prefix, is_ours, &chooser, &count, err);
	if (count != want_count || chooser.asked != want_asked) {
		fail_msg("%llu aborted, not %llu, of %zu: %s", (unsigned long long)count,
			 (unsigned long long)want_count, chooser.asked, rc ? err->message : "");
	}
	return rc;
}

static void test_abort(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	assert_int_equal(abort_uploads(store, "up/", "up/", 0, 0, &err), 0);
	leave_upload(store, "up/ours/a");
	leave_upload(store, "up/ours/a");
	leave_upload(store, "up/ours/a b&<>\"'%41+\xc3\xa9");
	leave_upload(store, "up/theirs/a");
	leave_upload(store, "elsewhere/up/ours/a");
	assert_int_equal(abort_uploads(store, "up/", "up/ours/", 3, 4, &err), 0);
	assert_int_equal(abort_uploads(store, "up/", "up/ours/", 0, 1, &err), 0);
	assert_int_equal(abort_uploads(store, "up/", "", 1, 1, &err), 0);
	assert_int_equal(abort_uploads(store, "", "", 1, 1, &err), 0);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.list, 5);
	assert_int_equal(counts.remove, 5);
	store->ops->close(store);
}

static void test_abort_many(void **state)
{
	(void)state;
	enum { COUNT = 1100 };
	struct us_store *store = open_gateway(4);
	struct us_error err = error_of_test();
	char key[32];
	for (size_t i = 0; i < COUNT; i++) {
		(void)snprintf(key, sizeof(key), "pages/%04zu", i);
		leave_upload(store, key);
	}
	assert_int_equal(abort_uploads(store, "pages/", "pages/", COUNT, COUNT, &err), 0);
	assert_int_equal(abort_uploads(store, "pages/", "pages/", 0, 0, &err), 0);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.list, 3);
	store->ops->close(store);
}

/* ------------------------------------------------------- servers of our own */

static char document_answer[65536];

static const char *document(const char *status, const char *body)
{
	(void)snprintf(document_answer, sizeof(document_answer),
		       "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
	return document_answer;
}

#define XMLNS " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""
#define FAILED(key, code) \
	"<Error><Key>" key "</Key><Code>" code "</Code><Message>no</Message></Error>"

static void test_remove_many_answers(void **state)
{
	(void)state;
	static const char *const keys[] = { "k1", "k2", "k3" };
	static const struct {
		const char *status, *body;
		int32_t code;
		size_t removed;
		const char *message;
	} rows[] = {
		{ "200 OK", "<DeleteResult" XMLNS "/>", 0, 3, "" },
		{ "200 OK", "<DeleteResult><Deleted><Key>k1</Key></Deleted></DeleteResult>", 0, 3,
		  "" },
		{ "200 OK", "<DeleteResult>" FAILED("k2", "AccessDenied") "</DeleteResult>",
		  US_E_ACCESS, 2, "DELETE \"bk1/k2\": 200 AccessDenied: no" },
		{ "200 OK",
		  "<DeleteResult>" FAILED("k3", "InternalError") FAILED("k2", "AccessDenied")
			  FAILED("k1", "NoSuchKey") "</DeleteResult>",
		  US_E_HTTP, 1, "DELETE \"bk1/k3\": 200 InternalError: no" },
		{ "200 OK", "<DeleteResult>" FAILED("k3", "NoSuchKey") "</DeleteResult>", 0, 3,
		  "" },
		{ "200 OK",
		  "<DeleteResult>" FAILED("a", "X") FAILED("b", "X") FAILED("c", "X")
			  FAILED("d", "X") "</DeleteResult>",
		  US_E_HTTP, 0, "DELETE \"bk1/a\"" },
		{ "200 OK", "<Error><Code>InternalError</Code></Error>", US_E_HTTP, 0,
		  "POST \"bk1/k1\": 200 InternalError" },
		{ "200 OK", "<DeleteResult>", US_E_HTTP, 0, "POST \"bk1/k1\": malformed answer: " },
		{ "200 OK", "<html/>", US_E_HTTP, 0, "not a DeleteResult" },
		{ "200 OK", "", US_E_HTTP, 0, "malformed answer: " },
		{ "200 OK", "<!DOCTYPE a><DeleteResult/>", US_E_HTTP, 0, "DOCTYPE" },
		{ "503 Slow Down", "", US_E_HTTP, 0, "503" },
		{ "403 No", "", US_E_ACCESS, 0, "403" },
		{ "404 No", "<Error><Code>NoSuchKey</Code></Error>", US_E_HTTP, 0, "404" },
		{ "400 No", "<Error><Code>MalformedXML</Code></Error>", US_E_HTTP, 0,
		  "MalformedXML" },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct server server = { .answer = document(rows[i].status, rows[i].body) };
		struct us_error err = error_of_test();
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
		int32_t rc = remove_many(store, keys, 3, rows[i].removed, &err);
		if (rc != rows[i].code || (rc && !strstr(err.message, rows[i].message))) {
			fail_msg("%zu: %d %s", i, rc, err.message);
		}
		assert_int_equal(server.requests, 1);
		store->ops->close(store);
		server_stop(&server);
	}
}

static void test_remove_many_request(void **state)
{
	(void)state;
	static const char *const keys[] = { "k1", "k2" };
	struct server server = { .answer = document("200 OK", "<DeleteResult/>") };
	struct us_error err = error_of_test();
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, TOKEN);
	assert_int_equal(remove_many(store, keys, 2, 2, &err), 0);
	const char *r = server.last_request;
	assert_non_null(strstr(r, "POST /bk1/?delete= HTTP/1.1\r\n"));
	assert_non_null(strstr(r, "content-type: application/xml\r\n"));
	assert_null(strcasestr(r, "\r\nexpect:"));
	assert_non_null(strstr(r, "SignedHeaders=content-md5;content-type;host;"
				  "x-amz-content-sha256;x-amz-date;x-amz-security-token, "));
	const char *md5 = strstr(r, "\r\ncontent-md5: ");
	assert_non_null(md5);
	assert_int_equal(strcspn(md5 + 15, "\r"), 24);
	store->ops->close(store);
	server_stop(&server);
}

static const char *not_implemented = "501 Not Implemented";

static const char *single_deletes_only(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)number;
	if (strncmp(request, "POST", 4) == 0) {
		return document(not_implemented,
				strncmp(not_implemented, "400", 3) == 0
					? "<Error><Code>NotImplemented</Code></Error>"
					: "");
	}
	return strstr(request, "/k2") ? document("403 No", "")
	       : strstr(request, "/k3")
		       ? document("404 No", "<Error><Code>NoSuchKey</Code></Error>")
		       : "HTTP/1.1 204 No Content\r\n\r\n";
}

static void test_without_delete_objects(void **state)
{
	(void)state;
	static const char *const keys[] = { "k1", "k2", "k3", "k4", "" };
	static const char *const ways[] = { "501 Not Implemented", "405 Method Not Allowed",
					    "400 Bad Request" };
	for (size_t i = 0; i < 3; i++) {
		struct server server = { .answer_fn = single_deletes_only };
		struct us_error err = error_of_test();
		not_implemented = ways[i];
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
		assert_int_equal(remove_many(store, keys, 5, 3, &err), US_E_ACCESS);
		assert_non_null(strstr(err.message, "DELETE \"bk1/k2\": 403"));
		assert_int_equal(server.requests, 1 + 4);
		struct us_store_counts counts;
		store->ops->counts(store, &counts);
		assert_int_equal(counts.remove, 1 + 4);
		assert_int_equal(remove_many(store, keys, 1, 1, &err), 0);
		store->ops->close(store);
		server_stop(&server);
	}
}

/* Where nobody answers, the rest is not tried. */
static void test_network_ends_it(void **state)
{
	(void)state;
	static const char *const keys[] = { "k1", "k\x01", "k\x02", "k\x03" };
	static const struct us_s3_timing timing = { 2000, 300, 25, 600 };
	struct server server = { .hang = 1 };
	struct us_error err = error_of_test();
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, &timing);
	assert_int_equal(remove_many(store, keys, 4, 0, &err), US_E_TIMEOUT);
	assert_int_equal(server.requests, 1);
	assert_int_equal(remove_many(store, keys + 1, 3, 0, &err), US_E_TIMEOUT);
	assert_int_equal(server.requests, 2);
	store->ops->cancel(store);
	assert_int_equal(remove_many(store, keys, 4, 0, &err), US_E_CANCELED);
	uint64_t count;
	assert_int_equal(store->ops->abort_uploads(store, "", is_ours, NULL, &count, &err),
			 US_E_CANCELED);
	store->ops->close(store);
	server_stop(&server);
}

#define UPLOADS "<ListMultipartUploadsResult" XMLNS ">"
#define UPLOADS_END "</ListMultipartUploadsResult>"
#define UPLOAD(key, id) "<Upload><Key>" key "</Key><UploadId>" id "</UploadId></Upload>"
#define MORE(key, id) \
	"<IsTruncated>true</IsTruncated><NextKeyMarker>" key "</NextKeyMarker>" \
	"<NextUploadIdMarker>" id "</NextUploadIdMarker>"

static const char *const *upload_pages; /* answers to GETs, the last one again and again */
static size_t upload_page_count;
static const char *upload_abort; /* status of DELETEs */
static char seen[8][512];        /* request lines */

static const char *uploads(struct server *server, const char *request, uint64_t number)
{
	(void)server;
	if (number < 8) {
		(void)snprintf(seen[number], sizeof(seen[number]), "%.*s",
			       (int)strcspn(request, "\r"), request);
	}
	if (strncmp(request, "GET", 3) != 0) {
		return document(upload_abort, strncmp(upload_abort, "404", 3) == 0
						      ? "<Error><Code>NoSuchUpload</Code></Error>"
						      : "");
	}
	static size_t page;
	page = number == 0 ? 0 : page + 1;
	return document("200 OK",
			upload_pages[page < upload_page_count ? page : upload_page_count - 1]);
}

static int32_t abort_against(const char *const *pages, size_t page_count, const char *abort_status,
			     uint64_t want_count, size_t want_asked, struct us_error *err)
{
	struct server server = { .answer_fn = uploads };
	upload_pages = pages;
	upload_page_count = page_count;
	upload_abort = abort_status;
	memset(seen, 0, sizeof(seen));
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	set_keys(store, "ak", SECRET, NULL);
	int32_t rc = abort_uploads(store, "p/", "p/", want_count, want_asked, err);
	store->ops->close(store);
	server_stop(&server);
	return rc;
}

static void test_abort_pages(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	static const char *const pages[] = {
		UPLOADS "<EncodingType>url</EncodingType>" UPLOAD("p/a+b%26", "id/1&amp;=")
			MORE("p/a+b%26", "id/1&amp;=") UPLOADS_END,
		UPLOADS "<EncodingType>url</EncodingType>" UPLOAD("p/b%2B", "id2") MORE("p/c", "")
			UPLOADS_END,
		UPLOADS "<IsTruncated>false</IsTruncated><Upload><UploadId>x+y</UploadId>"
			"<Key>p/%41+</Key></Upload>" UPLOADS_END,
	};
	assert_int_equal(abort_against(pages, 3, "204 No Content", 3, 3, &err), 0);
	static const char *const want[] = {
		"GET /bk1/?encoding-type=url&max-uploads=1000&prefix=p%2F&uploads= HTTP/1.1",
		"GET /bk1/?encoding-type=url&key-marker=p%2Fa%20b%26&max-uploads=1000&prefix=p%2F&"
		"uploads= HTTP/1.1",
		"GET /bk1/?encoding-type=url&key-marker=p%2Fc&max-uploads=1000&prefix=p%2F&"
		"uploads= HTTP/1.1",
		"DELETE /bk1/p/a%20b%26?uploadId=id%2F1%26%3D HTTP/1.1",
		"DELETE /bk1/p/b%2B?uploadId=id2 HTTP/1.1",
		"DELETE /bk1/p/%2541%2B?uploadId=x%2By HTTP/1.1",
	};
	for (size_t i = 0; i < 6; i++) {
		assert_string_equal(seen[i], want[i]);
	}
	/* Gone meanwhile: no failure, but not ours to count. */
	assert_int_equal(abort_against(pages, 3, "404 Not Found", 0, 3, &err), 0);
	assert_int_equal(abort_against(pages, 3, "403 No", 0, 3, &err), US_E_ACCESS);
	assert_non_null(strstr(err.message, "DELETE \"bk1/p/a b&\": 403"));
}

static void test_abort_refuses(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	static const struct {
		const char *page, *message;
		size_t asked;
	} rows[] = {
		{ UPLOADS UPLOAD("p/a", "1") MORE("p/a", "1") UPLOADS_END, "does not move on", 1 },
		{ UPLOADS UPLOAD("q/a", "1") UPLOADS_END, "begin with the prefix", 0 },
		{ UPLOADS UPLOAD("p/a", "") UPLOADS_END, "two ids or an empty one", 0 },
		{ UPLOADS "<Upload><Key>p/a</Key></Upload>" UPLOADS_END, "without key or id", 0 },
		{ UPLOADS "<Upload><UploadId>1</UploadId></Upload>" UPLOADS_END,
		  "without key or id", 0 },
		{ UPLOADS "<IsTruncated>true</IsTruncated>" UPLOADS_END, "not how to go on", 0 },
		{ UPLOADS, "no element found", 0 },
		{ "<ListBucketResult/>", "not a ListMultipartUploadsResult", 0 },
		{ "<Error><Code>InternalError</Code></Error>", "200 InternalError", 0 },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int32_t rc =
			abort_against(&rows[i].page, 1, "204 No Content", 0, rows[i].asked, &err);
		if (rc != US_E_HTTP || !strstr(err.message, rows[i].message)) {
			fail_msg("%zu: %d %s", i, rc, err.message);
		}
		assert_non_null(strstr(err.message, "GET \"bk1/p/\": "));
	}
	static const char *const back[] = {
		UPLOADS MORE("p/b", "1") UPLOADS_END,
		UPLOADS MORE("p/a", "2") UPLOADS_END,
	};
	assert_int_equal(abort_against(back, 2, "204 No Content", 0, 0, &err), US_E_HTTP);
	assert_non_null(strstr(err.message, "does not move on"));
}

static void test_abort_unknown(void **state)
{
	(void)state;
	static const struct {
		const char *status, *body;
		int32_t code;
	} rows[] = {
		{ "501 Not Implemented", "", 0 },
		{ "405 Method Not Allowed", "", 0 },
		{ "400 No", "<Error><Code>NotImplemented</Code></Error>", 0 },
		{ "400 No", "<Error><Code>InvalidArgument</Code></Error>", US_E_HTTP },
		{ "403 No", "", US_E_ACCESS },
		{ "503 No", "", US_E_HTTP },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct server server = { .answer = document(rows[i].status, rows[i].body) };
		struct us_error err = error_of_test();
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
		assert_int_equal(abort_uploads(store, "p/", "p/", 0, 0, &err), rows[i].code);
		assert_int_equal(err.code, rows[i].code);
		store->ops->close(store);
		server_stop(&server);
	}
}

int main(void)
{
	const struct CMUnitTest gateway_tests[] = {
		cmocka_unit_test(test_odd_names), cmocka_unit_test(test_names_beyond_xml),
		cmocka_unit_test(test_refused),   cmocka_unit_test(test_listing_order),
		cmocka_unit_test(test_abort),     cmocka_unit_test(test_abort_many),
	};
	const struct CMUnitTest own_tests[] = {
		cmocka_unit_test(test_remove_many_answers),
		cmocka_unit_test(test_remove_many_request),
		cmocka_unit_test(test_without_delete_objects),
		cmocka_unit_test(test_network_ends_it),
		cmocka_unit_test(test_abort_pages),
		cmocka_unit_test(test_abort_refuses),
		cmocka_unit_test(test_abort_unknown),
	};
	int failed = cmocka_run_group_tests_name("s3 remove (versitygw)", gateway_tests,
						 start_gateway, stop_gateway);
	return failed +
	       cmocka_run_group_tests_name("s3 remove (own servers)", own_tests, NULL, NULL);
}
