/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gets that run in the pool, many at once: against a real server, and against small ones
 * that lie about length and range, fall silent or throttle.
 */
#include "s3_support.h"

#define CANARY_LEN 64

/* A get whose memory ends in bytes that nobody may touch. */
struct guarded {
	struct us_get get;
	uint8_t *data;
};

static void guard(struct guarded *g, struct us_get_queue *queue, const char *key, uint64_t offset,
		  uint64_t len, uint64_t object_len)
{
	g->data = malloc(len + CANARY_LEN);
	memset(g->data, 0xC5, len + CANARY_LEN);
	g->get = (struct us_get){ .key = key,
				  .offset = offset,
				  .len = len,
				  .object_len = object_len,
				  .data = g->data,
				  .queue = queue,
				  .owner = g,
				  .rc = 1 };
}

static void assert_guarded(const struct guarded *g)
{
	for (size_t i = 0; i < CANARY_LEN; i++) {
		assert_int_equal(g->data[g->get.len + i], 0xC5);
	}
	assert_int_equal(g->get.rc, g->get.err.code);
}

static struct us_get_queue queue;

static int make_queue(void **state)
{
	(void)state;
	return us_get_queue_init(&queue, NULL);
}

static int end_queue(void **state)
{
	(void)state;
	us_get_queue_done(&queue);
	return 0;
}

static struct us_get *take_one(int32_t timeout_ms)
{
	struct us_get *get = us_get_queue_wait(&queue, timeout_ms);
	assert_non_null(get);
	assert_null(get->next);
	return get;
}

/* Gets OFFSET..LEN of KEY and compares with WANT where that works. */
static int32_t get_now(struct us_store *store, const char *key, uint64_t offset, uint64_t len,
		       uint64_t object_len, const char *want, struct us_error *ret_err)
{
	struct guarded g;
	guard(&g, &queue, key, offset, len, object_len);
	store->ops->get_start(store, &g.get);
	assert_ptr_equal(take_one(60000), &g.get);
	assert_ptr_equal(g.get.owner, &g);
	assert_guarded(&g);
	if (g.get.rc == 0 && want) {
		assert_memory_equal(g.data, want, len);
	}
	if (ret_err) {
		*ret_err = g.get.err;
	}
	free(g.data);
	return g.get.rc;
}

/* ------------------------------------------------------------ the real server */

static void test_whole_and_parts(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(4);
	struct us_error err;
	assert_int_equal(put_text(store, "p/a b", "0123456789", NULL), 0);
	assert_int_equal(get_now(store, "p/a b", 0, 10, 10, "0123456789", &err), 0);
	assert_int_equal(get_now(store, "p/a b", 0, 9, 10, "012345678", &err), 0);
	assert_int_equal(get_now(store, "p/a b", 3, 4, 10, "3456", &err), 0);
	assert_int_equal(get_now(store, "p/a b", 9, 1, 10, "9", &err), 0);
	assert_int_equal(get_now(store, "p/a b", 1, 9, 10, "123456789", &err), 0);
	assert_int_equal(get_now(store, "p/none", 0, 10, 10, NULL, &err), US_E_NOTFOUND);
	assert_int_equal(err.http_status, 404);
	assert_non_null(strstr(err.message, "GET \"bk1/p/none\": 404 NoSuchKey"));
	assert_int_equal(get_now(store, "p/none", 2, 3, 10, NULL, &err), US_E_NOTFOUND);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.get, 7);
	assert_int_equal(counts.get_bytes, 10 + 9 + 4 + 1 + 9);
	assert_true(counts.get_ns > 0);
	/* Never sent: */
	assert_int_equal(get_now(store, "p/a b", 0, 0, 10, NULL, &err), US_E_ARG);
	assert_int_equal(get_now(store, "p/a b", 5, 6, 10, NULL, &err), US_E_ARG);
	assert_int_equal(get_now(store, "p/a b", 11, 1, 10, NULL, &err), US_E_ARG);
	assert_int_equal(get_now(store, "", 0, 1, 1, NULL, &err), US_E_ARG);
	store->ops->counts(store, &counts);
	assert_int_equal(counts.get, 7);
	store->ops->close(store);
}

static void test_replaced_meanwhile(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(2);
	struct us_error err;
	assert_int_equal(put_text(store, "k", "0123456789", NULL), 0);
	static const struct {
		uint64_t offset, len, object_len;
	} wrong[] = {
		{ 0, 9, 9 }, { 0, 11, 11 }, { 0, 5, 11 }, { 0, 5, 9 }, { 8, 2, 11 }, { 20, 5, 25 },
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(get_now(store, "k", wrong[i].offset, wrong[i].len,
					 wrong[i].object_len, NULL, &err),
				 US_E_BUSY);
		assert_string_equal(err.message,
				    "GET \"bk1/k\": the object has another length than listed");
		assert_int_equal(err.retryable, 1);
	}
	assert_int_equal(put_text(store, "k", "", NULL), 0);
	assert_int_equal(get_now(store, "k", 0, 10, 10, NULL, &err), US_E_BUSY);
	assert_int_equal(get_now(store, "k", 2, 3, 10, NULL, &err), US_E_BUSY);
	store->ops->close(store);
}

#define SMALL_LEN 20000
#define SMALL_COUNT 300
#define LARGE_LEN 5000003
#define LARGE_PARTS 9

static uint8_t byte_at(size_t object, size_t at)
{
	return (uint8_t)(at * 7 + at / 251 + object * 13);
}

static void assert_bytes(const struct guarded *g, size_t object)
{
	for (size_t i = 0; i < g->get.len; i++) {
		if (g->data[i] != byte_at(object, g->get.offset + i)) {
			fail_msg("object %zu: byte %zu", object, i);
		}
	}
}

/* Small objects and the parts of a large one, on handles that send puts in between. */
static void test_many_among_puts(void **state)
{
	(void)state;
	struct us_store *store = open_gateway(8);
	uint8_t *large = malloc(LARGE_LEN);
	char(*keys)[32] = calloc(SMALL_COUNT, sizeof(*keys));
	uint8_t(*small)[SMALL_LEN] = calloc(SMALL_COUNT, sizeof(*small));
	struct us_put *puts = calloc(SMALL_COUNT, sizeof(*puts));
	struct guarded *gets = calloc(SMALL_COUNT + LARGE_PARTS, sizeof(*gets));
	struct us_put put;
	for (size_t i = 0; i < LARGE_LEN; i++) {
		large[i] = byte_at(SMALL_COUNT, i);
	}
	fill_put(&put, "many/large", large, LARGE_LEN);
	assert_int_equal(put_now(store, &put), 0);
	for (size_t i = 0; i < SMALL_COUNT; i++) {
		(void)snprintf(keys[i], sizeof(keys[i]), "many/%zu", i);
		for (size_t j = 0; j < SMALL_LEN; j++) {
			small[i][j] = byte_at(i, j);
		}
		fill_put(&puts[i], keys[i], small[i], SMALL_LEN);
		assert_int_equal(put_now(store, &puts[i]), 0);
	}
	size_t part_len = LARGE_LEN / LARGE_PARTS + 1;
	for (size_t i = 0; i < LARGE_PARTS; i++) {
		size_t off = i * part_len;
		size_t len = LARGE_LEN - off < part_len ? LARGE_LEN - off : part_len;
		guard(&gets[SMALL_COUNT + i], &queue, "many/large", off, len, LARGE_LEN);
		store->ops->get_start(store, &gets[SMALL_COUNT + i].get);
	}
	for (size_t i = 0; i < SMALL_COUNT; i++) {
		guard(&gets[i], &queue, keys[i], 0, SMALL_LEN, SMALL_LEN);
		store->ops->get_start(store, &gets[i].get);
		store->ops->put_start(store, &puts[i]); /* the same content */
	}
	size_t got = 0, sent = 0;
	while (got < SMALL_COUNT + LARGE_PARTS || sent < SMALL_COUNT) {
		for (struct us_get *get = us_get_queue_wait(&queue, 100); get; get = get->next) {
			struct guarded *g = get->owner;
			if (get->rc) {
				fail_msg("%s", get->err.message);
			}
			size_t object = (size_t)(g - gets);
			assert_bytes(g, object < SMALL_COUNT ? object : SMALL_COUNT);
			assert_guarded(g);
			got++;
		}
		for (struct us_put *p = store->ops->put_wait(store, 0); p; p = p->next) {
			assert_int_equal(p->rc, 0);
			sent++;
		}
	}
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.get, SMALL_COUNT + LARGE_PARTS);
	assert_int_equal(counts.get_bytes, SMALL_COUNT * SMALL_LEN + LARGE_LEN);
	for (size_t i = 0; i < SMALL_COUNT + LARGE_PARTS; i++) {
		free(gets[i].data);
	}
	free(gets);
	free(puts);
	free(small);
	free(keys);
	free(large);
	store->ops->close(store);
}

/* ------------------------------------------------------- servers of our own */

#define BODY10 "0123456789"
#define PART(range, length, body) \
	ANSWER("206 Partial", "Content-Range: bytes " range "\r\n", length, body)
#define CHUNKED(chunks) "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" chunks

static void test_answers(void **state)
{
	(void)state;
	static const struct {
		const char *answer;
		uint64_t offset, len;
		int32_t code;
		const char *message; /* or what comes */
	} rows[] = {
		/* of an object of 10 bytes */
		{ ANSWER("200 OK", "", "10", BODY10), 0, 10, 0, BODY10 },
		{ CHUNKED("4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"), 0, 10, 0, BODY10 },
		{ "HTTP/1.1 200 OK\r\n\r\n0123456789close", 0, 10, US_E_BUSY, "another length" },
		{ CHUNKED("4\r\n0123\r\n0\r\n\r\n"), 0, 10, US_E_BUSY, "another length" },
		{ CHUNKED("b\r\n0123456789a\r\n0\r\n\r\n"), 0, 10, US_E_BUSY, "another length" },
		{ ANSWER("200 OK", "", "9", "012345678"), 0, 10, US_E_BUSY, "another length" },
		{ ANSWER("200 OK", "", "20", BODY10 BODY10), 0, 10, US_E_BUSY, "another length" },
		{ ANSWER("200 OK", "", "0", ""), 0, 10, US_E_BUSY, "another length" },
		{ "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nclose", 0, 10, US_E_NETWORK, "" },
		{ "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nclose", 0, 10, US_E_BUSY, "" },
		{ PART("0-9/10", "10", BODY10), 0, 10, US_E_HTTP, "a part of the object" },
		{ PART("4-6/10", "3", "456"), 4, 3, 0, "456" },
		{ PART("4-6/10", "3", "456"), 3, 3, US_E_HTTP, "another range" },
		{ PART("4-6/10", "3", "456"), 4, 4, US_E_HTTP, "another range" },
		{ PART("4-7/10", "4", "4567"), 4, 3, US_E_HTTP, "another range" },
		{ PART("4-6/10", "4", "4567"), 4, 3, US_E_HTTP, "more came" },
		{ PART("4-6/10", "2", "45"), 4, 3, US_E_HTTP, "less came" },
		{ PART("4-6/10", "0", ""), 4, 3, US_E_HTTP, "less came" },
		{ PART("4-6/11", "3", "456"), 4, 3, US_E_BUSY, "another length" },
		{ PART("4-6/9", "3", "456"), 4, 3, US_E_BUSY, "another length" },
		{ PART("4-6/*", "3", "456"), 4, 3, US_E_HTTP, "another range" },
		{ ANSWER("206 Partial", "", "3", "456"), 4, 3, US_E_HTTP, "another range" },
		{ "HTTP/1.1 206 Partial\r\nContent-Range: bytes 4-6/10\r\nContent-Length: 3\r\n\r\n"
		  "close",
		  4, 2, US_E_HTTP, "another range" },
		{ ANSWER("200 OK", "", "10", BODY10), 4, 3, US_E_UNSUPPORTED, "ranges" },
		{ ANSWER("416 Range", "", "0", ""), 4, 3, US_E_BUSY, "another length" },
		{ ANSWER("404 No", "", "0", ""), 0, 10, US_E_NOTFOUND, "404" },
		{ ANSWER("404 No", "", "43", "<Error><Code>NoSuchBucket</Code></Error>   "), 0, 10,
		  US_E_HTTP, "NoSuchBucket" },
		{ ANSWER("403 No", "", "0", ""), 0, 10, US_E_ACCESS, "403" },
		{ ANSWER("500 No", "", "10", BODY10), 0, 10, US_E_HTTP, "500" },
		{ ANSWER("204 No", "", "0", ""), 0, 10, US_E_HTTP, "204" },
		{ ANSWER("302 No", "", "10", BODY10), 0, 10, US_E_HTTP, "302" },
		{ NULL, 0, 10, US_E_NETWORK, "" },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct server server = { .answer = rows[i].answer };
		struct us_error err;
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
		int32_t rc = get_now(store, "k", rows[i].offset, rows[i].len, 10,
				     rows[i].code ? NULL : rows[i].message, &err);
		if (rc != rows[i].code || (rc && !strstr(err.message, rows[i].message))) {
			fail_msg("%zu: %d %s", i, rc, err.message);
		}
		assert_int_equal(rc == 0 || strstr(err.message, "GET \"bk1/k\": ") != NULL, 1);
		store->ops->close(store);
		server_stop(&server);
	}
}

static void test_request(void **state)
{
	(void)state;
	struct server server = { .answer = ANSWER("200 OK", "", "10", BODY10) };
	struct us_error err;
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 1, NULL);
	set_keys(store, "ak", SECRET, TOKEN);
	assert_int_equal(get_now(store, "a b/c", 0, 10, 10, BODY10, &err), 0);
	const char *r = server.last_request;
	assert_non_null(strstr(r, "GET /bk1/a%20b/c HTTP/1.1\r\n"));
	assert_null(strcasestr(r, "\r\nrange:"));
	assert_null(strcasestr(r, "\r\ncontent-length:"));
	assert_null(strcasestr(r, "\r\ntransfer-encoding:"));
	assert_non_null(strstr(r, "SignedHeaders=host;x-amz-content-sha256;x-amz-date;"
				  "x-amz-security-token, "));
	assert_int_equal(get_now(store, "k", 2, 3, 10, NULL, &err), US_E_UNSUPPORTED);
	assert_non_null(strstr(r, "range: bytes=2-4\r\n"));
	store->ops->close(store);
	server_stop(&server);
}

static void test_dead_connections(void **state)
{
	(void)state;
	struct server dying = { .answer = ANSWER("200 OK", "ETag: \"x\"\r\n", "10", BODY10),
				.die_on_second = 1 };
	struct us_error err;
	server_start(&dying);
	struct us_store *store = open_store(dying.endpoint, "bk1", 1, NULL);
	for (int i = 0; i < 50; i++) {
		if (get_now(store, "k", 0, 10, 10, BODY10, &err)) {
			fail_msg("%d: %s", i, err.message);
		}
		assert_int_equal(put_text(store, "k", BODY10, &err), 0);
	}
	assert_int_equal(dying.requests, 100);
	store->ops->close(store);
	server_stop(&dying);
}

static void test_no_progress(void **state)
{
	(void)state;
	static const struct us_s3_timing timing = { 2000, 300, 25, 600 };
	static const struct server servers[] = {
		{ .hang = 1 },
		{ .read_nothing = 1 },
		{ .answer = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123" },
		{ .answer = "HTTP/1.1 200 OK\r\n" },
	};
	for (size_t i = 0; i < sizeof(servers) / sizeof(servers[0]); i++) {
		struct server server = servers[i];
		struct us_error err;
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 2, &timing);
		int64_t start_ns = us_clock_mono_ns();
		assert_int_equal(get_now(store, "k", 0, 10, 10, NULL, &err), US_E_TIMEOUT);
		assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 250, 1500);
		assert_int_equal(err.retryable, 1);
		store->ops->close(store);
		server_stop(&server);
	}
}

static void test_cancel(void **state)
{
	(void)state;
	/* In the middle of a body, silent, and waiting for a slot. */
	static const char *const answers[] = { "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123",
					       NULL };
	for (size_t i = 0; i < 2; i++) {
		struct server server = { .answer = answers[i], .hang = !answers[i] };
		struct guarded gets[9];
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 4, NULL);
		for (size_t j = 0; j < 9; j++) {
			guard(&gets[j], &queue, "k", 0, 10, 10);
			store->ops->get_start(store, &gets[j].get);
		}
		while (atomic_load(&server.requests) < 4) {
			us_clock_sleep_ns(10 * US_NS_PER_MS);
		}
		assert_null(us_get_queue_wait(&queue, 100));
		int64_t start_ns = us_clock_mono_ns();
		store->ops->cancel(store);
		for (size_t done = 0; done < 9;) {
			struct us_get *get = us_get_queue_wait(&queue, 2000);
			assert_non_null(get);
			for (; get; get = get->next) {
				assert_int_equal(get->rc, US_E_CANCELED);
				assert_guarded(get->owner);
				done++;
			}
		}
		assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 0, 500);
		assert_int_equal(get_now(store, "k", 0, 10, 10, NULL, NULL), US_E_CANCELED);
		store->ops->close(store);
		server_stop(&server);
		for (size_t j = 0; j < 9; j++) {
			free(gets[j].data);
		}
	}
}

/* Close without having waited: everything is handed back all the same. */
static void test_close_early(void **state)
{
	(void)state;
	struct server server = { .hang = 1 };
	struct guarded gets[4];
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 2, NULL);
	for (size_t j = 0; j < 4; j++) {
		guard(&gets[j], &queue, "k", 0, 10, 10);
		store->ops->get_start(store, &gets[j].get);
	}
	store->ops->close(store);
	size_t done = 0;
	for (struct us_get *get = us_get_queue_wait(&queue, 0); get; get = get->next) {
		assert_int_equal(get->rc, US_E_CANCELED);
		done++;
	}
	assert_int_equal(done, 4);
	for (size_t j = 0; j < 4; j++) {
		free(gets[j].data);
	}
	server_stop(&server);
}

#define GOOD ANSWER("200 OK", "ETag: \"x\"\r\n", "10", BODY10)

static const char *throttling(struct server *server, const char *request, uint64_t number)
{
	(void)server, (void)request;
	return number == 0 ? ANSWER("503 Slow Down", "", "0", "") : GOOD;
}

/* One limit for gets and puts: a get's 503 halves it, successes of both raise it. */
static void test_backing_off_together(void **state)
{
	(void)state;
	struct server server = { .answer_fn = throttling };
	struct us_error err;
	server_start(&server);
	struct us_store *store = open_store(server.endpoint, "bk1", 8, NULL);
	assert_int_equal(get_now(store, "k", 0, 10, 10, NULL, &err), US_E_HTTP);
	assert_int_equal(err.http_status, 503);
	assert_int_equal(us_s3_pool_limit(store), 4);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(put_text(store, "k", BODY10, &err), 0);
		assert_int_equal(get_now(store, "k", 0, 10, 10, BODY10, &err), 0);
	}
	assert_int_equal(us_s3_pool_limit(store), 5);
	store->ops->close(store);
	server_stop(&server);
}

static char order[201];

static const char *note_order(struct server *server, const char *request, uint64_t number)
{
	(void)server;
	if (number < sizeof(order) - 1) {
		order[number] = request[0];
	}
	return GOOD;
}

/* One slot, a crowd of either kind: they take turns. */
static void test_neither_starves(void **state)
{
	(void)state;
	for (int gets_first = 0; gets_first < 2; gets_first++) {
		struct server server = { .answer_fn = note_order };
		struct guarded gets[100];
		struct us_put puts[100];
		memset(order, 0, sizeof(order));
		server_start(&server);
		struct us_store *store = open_store(server.endpoint, "bk1", 1, NULL);
		for (size_t i = 0; i < 200; i++) {
			if ((i < 100) == gets_first) {
				guard(&gets[i % 100], &queue, "k", 0, 10, 10);
				store->ops->get_start(store, &gets[i % 100].get);
			} else {
				fill_put(&puts[i % 100], "k", BODY10, 10);
				store->ops->put_start(store, &puts[i % 100]);
			}
		}
		size_t done = 0;
		while (done < 200) {
			for (struct us_get *get = us_get_queue_wait(&queue, 10); get;
			     get = get->next) {
				assert_int_equal(get->rc, 0);
				done++;
			}
			for (struct us_put *p = store->ops->put_wait(store, 0); p; p = p->next) {
				assert_int_equal(p->rc, 0);
				done++;
			}
		}
		size_t turns = 0;
		for (size_t i = 1; i < 200; i++) {
			turns += order[i] != order[i - 1];
		}
		assert_in_range(turns, 150, 199); /* the first few may find one kind only */
		for (size_t i = 0; i < 100; i++) {
			free(gets[i].data);
		}
		store->ops->close(store);
		server_stop(&server);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, make_queue, end_queue)
	const struct CMUnitTest gateway_tests[] = {
		TEST(test_whole_and_parts),
		TEST(test_replaced_meanwhile),
		TEST(test_many_among_puts),
	};
	const struct CMUnitTest own_tests[] = {
		TEST(test_answers),
		TEST(test_request),
		TEST(test_dead_connections),
		TEST(test_no_progress),
		TEST(test_cancel),
		TEST(test_close_early),
		TEST(test_backing_off_together),
		TEST(test_neither_starves),
	};
	int failed = cmocka_run_group_tests_name("s3 gets (versitygw)", gateway_tests,
						 start_gateway, stop_gateway);
	return failed + cmocka_run_group_tests_name("s3 gets (own servers)", own_tests, NULL, NULL);
}
