/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects that are sent in parts: against a real server, whose copy is compared byte for
 * byte, and against one of our own that fails at every step.
 */
#include "../../csrc/store/s3_multipart.h"
#include "s3_support.h"

#define MIB ((uint64_t)1 << 20)

static uint8_t byte_at(uint64_t at)
{
	return (uint8_t)(at * 7 + at / 4093 + (at >> 20) * 31);
}

static void fill(uint8_t *data, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++) {
		data[i] = byte_at(off + i);
	}
}

/* A spool file of LEN bytes. */
static int spool_of(uint64_t len)
{
	char path[] = P_tmpdir "/us-test-s3-spool-XXXXXX";
	int fd = mkstemp(path);
	uint8_t *data = malloc(MIB);
	unlink(path);
	for (uint64_t off = 0; off < len; off += MIB) {
		uint64_t n = len - off < MIB ? len - off : MIB;
		fill(data, off, n);
		assert_int_equal(write(fd, data, n), (ssize_t)n);
	}
	free(data);
	return fd;
}

/* Of LEN bytes in FD; a hash of the whole is of no use to an upload in parts. */
static void fill_spooled(struct us_put *put, const char *key, int fd, uint64_t len)
{
	fill_put(put, key, "", 0);
	put->data = NULL;
	put->fd = fd;
	put->len = len;
}

static struct us_put *wait_put(struct us_store *store)
{
	struct us_put *put = NULL;
	for (int i = 0; i < 1200 && !put; i++) {
		put = store->ops->put_wait(store, 100);
	}
	assert_non_null(put);
	return put;
}

static int is_ours(void *arg, const char *key, size_t key_len)
{
	(void)arg, (void)key, (void)key_len;
	return 1;
}

static uint64_t abort_left_over(struct us_store *store)
{
	struct us_error err = error_of_test();
	uint64_t count = 0;
	if (store->ops->abort_uploads(store, "", is_ours, NULL, &count, &err)) {
		fail_msg("%s", err.message);
	}
	return count;
}

/* ------------------------------------------------------------ the real server */

/* Uploads in parts that the gateway has begun and not ended. */
static size_t count_left_over(void)
{
	char command[256], line[64] = "";
	(void)snprintf(command, sizeof(command),
		       "find %s/root/bk1/.sgwtmp/multipart -mindepth 2 -maxdepth 2 2>/dev/null "
		       "| wc -l",
		       gateway.dir);
	FILE *p = popen(command, "r");
	assert_non_null(p);
	assert_non_null(fgets(line, sizeof(line), p));
	pclose(p);
	return strtoul(line, NULL, 10);
}

static void forget_left_over(void)
{
	char command[256];
	(void)snprintf(command, sizeof(command), "rm -rf %s/root/bk1/.sgwtmp/multipart/*",
		       gateway.dir);
	FILE *p = popen(command, "r");
	assert_non_null(p);
	pclose(p);
}

/* Aborts go on behind the put that has failed. */
static void wait_for_none_left(void)
{
	for (int i = 0; i < 100 && count_left_over() > 0; i++) {
		us_clock_sleep_ns(50 * US_NS_PER_MS);
	}
	assert_int_equal(count_left_over(), 0);
}

/* Reads KEY back in ranges and compares. */
static void assert_object(struct us_store *store, const char *key, uint64_t len)
{
	enum { PART = 7340033 };
	struct us_get_queue queue;
	uint8_t *data = malloc(PART), *want = malloc(PART);
	assert_int_equal(us_get_queue_init(&queue, NULL), 0);
	for (uint64_t off = 0; off < len; off += PART) {
		uint64_t n = len - off < PART ? len - off : PART;
		struct us_get get = { .key = key,
				      .offset = off,
				      .len = n,
				      .object_len = len,
				      .data = data,
				      .queue = &queue };
		store->ops->get_start(store, &get);
		assert_ptr_equal(us_get_queue_wait(&queue, 60000), &get);
		if (get.rc) {
			fail_msg("%s", get.err.message);
		}
		fill(want, off, n);
		assert_memory_equal(data, want, n);
	}
	us_get_queue_done(&queue);
	free(data);
	free(want);
}

static void test_lengths(void **state)
{
	(void)state;
	static const struct {
		uint64_t len, requests;
	} rows[] = {
		{ 64 * MIB, 1 },         { 64 * MIB + 1, 1 + 5 + 1 },       { 70 * MIB, 1 + 5 + 1 },
		{ 80 * MIB, 1 + 5 + 1 }, { 200 * MIB + 12345, 1 + 13 + 1 },
	};
	struct us_store_counts before = { 0 }, counts;
	struct us_store *store = open_gateway(16);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct us_put put;
		int fd = spool_of(rows[i].len);
		fill_spooled(&put, "parts/a b&<>\"'+%\xc3\xa9", fd, rows[i].len);
		if (rows[i].requests == 1) { /* sent whole, the hash matters */
			uint8_t *data = malloc(rows[i].len);
			fill(data, 0, rows[i].len);
			SHA256(data, rows[i].len, put.sha256);
			free(data);
		}
		if (put_now(store, &put)) {
			fail_msg("%s", put.err.message);
		}
		close(fd);
		store->ops->counts(store, &counts);
		assert_int_equal(counts.put - before.put, rows[i].requests);
		assert_int_equal(counts.put_bytes - before.put_bytes, rows[i].len);
		before = counts;
		assert_object(store, put.key, rows[i].len);
		assert_int_equal(count_left_over(), 0);
	}
	assert_int_equal(counts.remove, 0);
	store->ops->close(store);
}

static void test_from_memory_with_metadata(void **state)
{
	(void)state;
	uint64_t len = 70 * MIB;
	uint8_t *data = malloc(len);
	struct us_put put;
	struct us_store *store = open_gateway(16);
	fill(data, 0, len);
	fill_put(&put, "memory", data, 0);
	put.len = len;
	if (put_now(store, &put)) {
		fail_msg("%s", put.err.message);
	}
	assert_object(store, "memory", len);
	char path[128], names[1024], all[4096];
	int times = 0, types = 0;
	(void)snprintf(path, sizeof(path), "%s/root/bk1/memory", gateway.dir);
	ssize_t names_len = listxattr(path, names, sizeof(names));
	for (char *name = names; name < names + names_len; name += strlen(name) + 1) {
		ssize_t n = getxattr(path, name, all, sizeof(all) - 1);
		all[n > 0 ? n : 0] = '\0';
		times += strstr(all, "2026-01-02T03:04:05.000000006Z") != NULL;
		types += strstr(all, "application/octet-stream") != NULL;
	}
	assert_int_equal(times, 1);
	assert_int_equal(types, 1);
	free(data);
	store->ops->close(store);
}

/* Several at once, and small objects between them. */
static void test_side_by_side(void **state)
{
	(void)state;
	enum { LARGE = 3, SMALL = 200 };
	uint64_t len = 100 * MIB + 7;
	int fd = spool_of(len);
	struct us_put large[LARGE], *small = calloc(SMALL, sizeof(*small));
	char large_keys[LARGE][16], (*small_keys)[16] = calloc(SMALL, sizeof(*small_keys));
	struct us_store *store = open_gateway(6);
	for (size_t i = 0; i < LARGE; i++) {
		(void)snprintf(large_keys[i], sizeof(large_keys[i]), "side/%zu", i);
		fill_spooled(&large[i], large_keys[i], fd, len);
		store->ops->put_start(store, &large[i]);
	}
	for (size_t i = 0; i < SMALL; i++) {
		(void)snprintf(small_keys[i], sizeof(small_keys[i]), "side/s%zu", i);
		fill_put(&small[i], small_keys[i], "0123456789", 10);
		store->ops->put_start(store, &small[i]);
	}
	for (size_t done = 0; done < LARGE + SMALL;) {
		for (struct us_put *put = wait_put(store); put; put = put->next) {
			if (put->rc) {
				fail_msg("%s", put->err.message);
			}
			done++;
		}
	}
	for (size_t i = 0; i < LARGE; i++) {
		assert_object(store, large_keys[i], len);
	}
	assert_int_equal(count_left_over(), 0);
	free(small);
	free(small_keys);
	close(fd);
	store->ops->close(store);
}

static void test_spool_changes(void **state)
{
	(void)state;
	uint64_t len = 70 * MIB;
	struct us_put put;
	struct us_store *store = open_gateway(8);
	/* Shorter than it says: found when it is hashed, nothing is sent. */
	int fd = spool_of(len - 1);
	fill_spooled(&put, "changes", fd, len);
	assert_int_equal(put_now(store, &put), US_E_IO);
	assert_non_null(strstr(put.err.message, "shorter"));
	put.fd = -1;
	assert_int_equal(put_now(store, &put), US_E_IO);
	assert_int_equal(put.err.sys_errno, EBADF);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put, 0);
	/* It is cut while it is sent. */
	put.fd = fd;
	put.len = len - 1;
	store->ops->put_start(store, &put);
	assert_int_equal(ftruncate(fd, 1000), 0);
	assert_ptr_equal(wait_put(store), &put);
	assert_int_equal(put.rc, US_E_IO);
	wait_for_none_left();
	close(fd);
	/* It is overwritten: the server compares with what was signed. */
	fd = spool_of(len);
	fill_spooled(&put, "changes", fd, len);
	store->ops->put_start(store, &put);
	assert_int_equal(pwrite(fd, "changed", 7, (off_t)(len - 100)), 7);
	assert_ptr_equal(wait_put(store), &put);
	assert_int_equal(put.rc, US_E_HTTP);
	assert_int_equal(put.err.http_status, 400);
	wait_for_none_left();
	close(fd);
	store->ops->close(store);
}

/* Whether the abort finds all parts is up to the server: see test_cancel. */
static void test_cancel_on_the_way(void **state)
{
	(void)state;
	uint64_t len = 200 * MIB;
	int fd = spool_of(len);
	struct us_put put;
	struct us_store *store = open_gateway(2);
	fill_spooled(&put, "canceled", fd, len);
	store->ops->put_start(store, &put);
	while (count_left_over() == 0) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	store->ops->cancel(store);
	struct us_put *got = store->ops->put_wait(store, 1000);
	assert_ptr_equal(got, &put);
	assert_int_equal(put.rc, US_E_CANCELED);
	store->ops->close(store);
	close(fd);
	forget_left_over();
}

static void test_killed(void **state)
{
	(void)state;
	uint64_t len = 200 * MIB;
	int fd = spool_of(len);
	pid_t pid = fork();
	if (pid == 0) {
		struct us_store *killed = open_gateway(2);
		struct us_put put;
		fill_spooled(&put, "killed", fd, len);
		killed->ops->put_start(killed, &put);
		pause();
		_exit(1);
	}
	close(fd);
	while (count_left_over() == 0) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	struct us_store *store = open_gateway(2);
	assert_int_equal(count_left_over(), 1);
	assert_int_equal(abort_left_over(store), 1);
	assert_int_equal(count_left_over(), 0);
	assert_int_equal(abort_left_over(store), 0);
	store->ops->close(store);
}

/* ------------------------------------------------------- a server of our own */

enum step { CREATE, PART, COMPLETE, ABORT, OTHER, STEPS };

/* The first COUNT requests of a step (of PART: of part NUMBER, 0 for any) get ANSWER. */
static struct {
	enum step step;
	int number;
	atomic_int count;
	const char *answer;
	_Atomic int64_t delay_ms;
	atomic_int hangs; /* bits of steps that are never answered */
} fault;
static atomic_int step_counts[STEPS], parts_now, parts_now_max;

#define CREATED \
	ANSWER("200 OK", "", "92", \
	       "<InitiateMultipartUploadResult><UploadId>id/1+</UploadId>" \
	       "</InitiateMultipartUploadResult>   ")
#define COMPLETED ANSWER("200 OK", "", "32", "<CompleteMultipartUploadResult/>")
#define DROP "close" /* no HTTP at all */

static enum step step_of(const char *request)
{
	return strncmp(request, "POST", 4) == 0
		       ? (strstr(request, "?uploads= ") ? CREATE : COMPLETE)
	       : strncmp(request, "PUT", 3) == 0 && strstr(request, "?partNumber=") ? PART
	       : strncmp(request, "DELETE", 6) == 0                                 ? ABORT
										    : OTHER;
}

static const char *in_parts(struct server *server, const char *request, uint64_t number)
{
	static const char *const good[] = { CREATED, OK_PUT, COMPLETED,
					    "HTTP/1.1 204 No Content\r\n\r\n", OK_PUT };
	enum step step = step_of(request);
	(void)number;
	atomic_fetch_add(&step_counts[step], 1);
	if (step == PART || step == COMPLETE || step == ABORT) {
		assert_non_null(strstr(request, "uploadId=id%2F1%2B HTTP/1.1"));
	}
	if (step == PART) {
		int now = atomic_fetch_add(&parts_now, 1) + 1, max = atomic_load(&parts_now_max);
		while (now > max && !atomic_compare_exchange_weak(&parts_now_max, &max, now)) {
		}
	}
	const char *part = strstr(request, "?partNumber=");
	int is_it = step == fault.step && (step != PART || fault.number == 0 ||
					   strtol(part + 12, NULL, 10) == fault.number);
	int fails = is_it && atomic_fetch_sub(&fault.count, 1) > 0;
	for (int64_t ms = 0; fails && ms < fault.delay_ms && !atomic_load(&server->stopping);
	     ms += 10) {
		us_clock_sleep_ns(10 * US_NS_PER_MS);
	}
	while (atomic_load(&fault.hangs) & 1 << step && !atomic_load(&server->stopping)) {
		us_clock_sleep_ns(10 * US_NS_PER_MS);
	}
	if (step == PART) {
		atomic_fetch_sub(&parts_now, 1);
	}
	return fails && fault.answer ? fault.answer : good[step];
}

static struct server server;
static struct us_store *store;
static int spool = -1;
#define SPOOL_LEN (150 * MIB) /* ten parts */

static void begin_faults(enum step step, int number, int count, const char *answer)
{
	static const struct us_s3_timing timing = { 2000, 1000, 25, 600 };
	fault.step = step;
	fault.number = number;
	atomic_store(&fault.count, count);
	fault.answer = answer;
	atomic_store(&fault.delay_ms, 0);
	atomic_store(&fault.hangs, 0);
	for (int i = 0; i < STEPS; i++) {
		atomic_store(&step_counts[i], 0);
	}
	atomic_store(&parts_now_max, 0);
	server = (struct server){ .answer_fn = in_parts };
	server_start(&server);
	store = open_store(server.endpoint, "bk1", 32, &timing);
}

static void end_faults(void)
{
	store->ops->close(store);
	server_stop(&server);
}

static void wait_for_abort(int count)
{
	for (int i = 0; i < 300 && atomic_load(&step_counts[ABORT]) < count; i++) {
		us_clock_sleep_ns(10 * US_NS_PER_MS);
	}
	us_clock_sleep_ns(20 * US_NS_PER_MS); /* one too many would come now */
	assert_int_equal(step_counts[ABORT], count);
}

static int make_spool(void **state)
{
	(void)state;
	spool = spool_of(SPOOL_LEN);
	return 0;
}

static int end_spool(void **state)
{
	(void)state;
	return close(spool);
}

#define ERROR_500 ANSWER("500 Oops", "", "0", "")
#define INTERNAL_ERROR ANSWER("200 OK", "", "46", "<Error><Code>InternalError</Code></Error>     ")

static void test_faults(void **state)
{
	(void)state;
	static const struct {
		enum step step;
		int number, count;
		const char *answer;
		int32_t code;
		int creates, parts, completes, aborts; /* requests */
		const char *message;
	} rows[] = {
		{ OTHER, 0, 0, NULL, 0, 1, 10, 1, 0, "" },
		/* What may pass is sent again, */
		{ CREATE, 0, 2, ERROR_500, 0, 3, 10, 1, 0, "" },
		{ PART, 3, 2, ERROR_500, 0, 1, 12, 1, 0, "" },
		{ PART, 10, 1, DROP, 0, 1, 11, 1, 0, "" },
		{ PART, 0, 3, ANSWER("429 Slow", "", "0", ""), 0, 1, 13, 1, 0, "" },
		{ COMPLETE, 0, 2, INTERNAL_ERROR, 0, 1, 10, 3, 0, "" },
		{ COMPLETE, 0, 1, DROP, 0, 1, 10, 2, 0, "" },
		/* three times at most, */
		{ CREATE, 0, 3, ERROR_500, US_E_HTTP, 3, 0, 0, 0, "POST \"bk1/big\": 500" },
		{ PART, 3, 3, ERROR_500, US_E_HTTP, 1, -1, 0, 1, "PUT \"bk1/big\": 500" },
		{ PART, 1, 9, DROP, US_E_NETWORK, 1, -1, 0, 1, "PUT \"bk1/big\": " },
		{ COMPLETE, 0, 3, INTERNAL_ERROR, US_E_HTTP, 1, 10, 3, 1,
		  "POST \"bk1/big\": 200 InternalError" },
		/* and what will not is not. */
		{ CREATE, 0, 1, ANSWER("403 No", "", "0", ""), US_E_ACCESS, 1, 0, 0, 0, "403" },
		{ CREATE, 0, 1, ANSWER("200 OK", "", "7", "<html/>"), US_E_HTTP, 1, 0, 0, 0,
		  "not a InitiateMultipartUploadResult" },
		{ CREATE, 0, 1, OK_PUT, US_E_HTTP, 1, 0, 0, 0, "malformed answer" },
		{ PART, 5, 1, ANSWER("403 No", "", "0", ""), US_E_ACCESS, 1, -1, 0, 1, "403" },
		{ PART, 5, 1, ANSWER("200 OK", "x-amz-request-id: P\r\n", "0", ""), US_E_HTTP, 1,
		  -1, 0, 1, "without an ETag" },
		{ PART, 5, 1,
		  ANSWER("200 OK",
			 "ETag: 0123456789012345678901234567890123456789012345678901234567890123"
			 "0123456789012345678901234567890123456789012345678901234567890123\r\n",
			 "0", ""),
		  US_E_HTTP, 1, -1, 0, 1, "too long" },
		{ COMPLETE, 0, 1, ANSWER("200 OK", "", "7", "<html/>"), US_E_HTTP, 1, 10, 1, 1,
		  "not a CompleteMultipartUploadResult" },
		{ COMPLETE, 0, 1, OK_PUT, US_E_HTTP, 1, 10, 1, 1, "malformed answer" },
		{ COMPLETE, 0, 1,
		  ANSWER("404 No", "", "44", "<Error><Code>NoSuchUpload</Code></Error>    "),
		  US_E_HTTP, 1, 10, 1, 1, "404 NoSuchUpload" },
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct us_put put;
		begin_faults(rows[i].step, rows[i].number, rows[i].count, rows[i].answer);
		fill_spooled(&put, "big", spool, SPOOL_LEN);
		int32_t rc = put_now(store, &put);
		if (rc != rows[i].code || (rc && !strstr(put.err.message, rows[i].message))) {
			fail_msg("%zu: %d %s", i, rc, put.err.message);
		}
		wait_for_abort(rows[i].aborts);
		if (step_counts[CREATE] != rows[i].creates ||
		    step_counts[COMPLETE] != rows[i].completes ||
		    (rows[i].parts >= 0 && step_counts[PART] != rows[i].parts)) {
			fail_msg("%zu: %d created, %d parts, %d completed", i, step_counts[CREATE],
				 step_counts[PART], step_counts[COMPLETE]);
		}
		struct us_store_counts counts;
		store->ops->counts(store, &counts);
		assert_int_equal(counts.remove, rows[i].aborts);
		if (rc == 0) {
			assert_int_equal(counts.put_bytes, SPOOL_LEN);
		}
		end_faults();
	}
}

/* One upload has at most eight parts under way, and small objects pass it by. */
static void test_parts_at_once(void **state)
{
	(void)state;
	struct us_put big, small;
	begin_faults(PART, 0, 8, OK_PUT);
	atomic_store(&fault.delay_ms, 500);
	fill_spooled(&big, "big", spool, SPOOL_LEN);
	store->ops->put_start(store, &big);
	while (atomic_load(&step_counts[PART]) < 8) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	fill_put(&small, "small", "x", 1);
	store->ops->put_start(store, &small);
	struct us_put *first = wait_put(store);
	assert_ptr_equal(first, &small);
	assert_int_equal(step_counts[PART], 8);
	assert_ptr_equal(wait_put(store), &big);
	assert_int_equal(big.rc, 0);
	assert_int_equal(parts_now_max, 8);
	end_faults();
}

/* Where parts hang, a cancel hands the put back at once and aborts behind it. */
static void test_cancel(void **state)
{
	(void)state;
	for (int closes = 0; closes < 2; closes++) { /* close cancels, too */
		struct us_put put;
		begin_faults(OTHER, 0, 0, NULL);
		atomic_store(&fault.hangs, 1 << PART);
		fill_spooled(&put, "big", spool, SPOOL_LEN);
		store->ops->put_start(store, &put);
		while (atomic_load(&step_counts[PART]) < 8) {
			us_clock_sleep_ns(US_NS_PER_MS);
		}
		int64_t start_ns = us_clock_mono_ns();
		if (!closes) {
			store->ops->cancel(store);
			assert_ptr_equal(wait_put(store), &put);
			assert_int_equal(put.rc, US_E_CANCELED);
			assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 0, 300);
			fill_spooled(&put, "big", spool, SPOOL_LEN);
			assert_int_equal(put_now(store, &put), US_E_CANCELED);
		}
		store->ops->close(store);
		assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 0, 900);
		assert_int_equal(step_counts[ABORT], 1);
		server_stop(&server);
	}
}

/* An abort that nobody answers holds up a shutdown for a second, not more. */
static void test_abort_hangs(void **state)
{
	(void)state;
	struct us_put put;
	begin_faults(OTHER, 0, 0, NULL);
	atomic_store(&fault.hangs, 1 << PART | 1 << ABORT);
	fill_spooled(&put, "big", spool, SPOOL_LEN);
	store->ops->put_start(store, &put);
	while (atomic_load(&step_counts[PART]) < 2) {
		us_clock_sleep_ns(US_NS_PER_MS);
	}
	int64_t start_ns = us_clock_mono_ns();
	store->ops->cancel(store);
	assert_ptr_equal(wait_put(store), &put);
	assert_int_equal(put.rc, US_E_CANCELED);
	assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 0, 300);
	store->ops->close(store);
	assert_in_range((us_clock_mono_ns() - start_ns) / US_NS_PER_MS, 900, 1600);
	server_stop(&server);
}

/* COMPLETE may take longer than anything else; a part may not. */
static void test_patience(void **state)
{
	(void)state;
	struct us_put put;
	begin_faults(COMPLETE, 0, 1, COMPLETED);
	atomic_store(&fault.delay_ms, 2500); /* the stall time is 1 s */
	fill_spooled(&put, "big", spool, SPOOL_LEN);
	if (put_now(store, &put)) {
		fail_msg("%s", put.err.message);
	}
	assert_int_equal(step_counts[COMPLETE], 1);
	end_faults();
	begin_faults(PART, 2, 1, OK_PUT);
	atomic_store(&fault.delay_ms, 2500);
	assert_int_equal(put_now(store, &put), 0);
	assert_int_equal(step_counts[PART], 11);
	end_faults();
}

/* Parts count for backing off like all else. */
static void test_throttled(void **state)
{
	(void)state;
	struct us_put put;
	begin_faults(PART, 7, 1, ANSWER("503 Slow Down", "", "0", ""));
	fill_spooled(&put, "big", spool, SPOOL_LEN);
	store->ops->close(store);
	store = open_store(server.endpoint, "bk1", 8, NULL);
	assert_int_equal(us_s3_pool_limit(store), 8);
	assert_int_equal(put_now(store, &put), 0);
	assert_in_range(us_s3_pool_limit(store), 4, 7);
	end_faults();
}

/* Parts wait for the limit of bandwidth, too. */
static void test_limited(void **state)
{
	(void)state;
	struct us_put put;
	begin_faults(PART, -1, 0, NULL);
	store->ops->close(store);
	store = open_limited(server.endpoint, "bk1", 32, NULL, 100 * MIB);
	int64_t start_ns = us_clock_mono_ns();
	fill_spooled(&put, "big", spool, SPOOL_LEN);
	assert_int_equal(put_now(store, &put), 0);
	/* but for the last part, and a tenth of a second */
	assert_true(us_clock_mono_ns() - start_ns >= 1200 * US_NS_PER_MS);
	assert_int_equal(step_counts[PART], 10);
	end_faults();
}

static int is_asked;

static int note_asked(void *arg, const char *key, size_t key_len)
{
	(void)arg, (void)key_len;
	is_asked += strcmp(key, "big") == 0;
	return 1;
}

/* Lists two uploads of "big": this store's and another, and one of another key. */
static const char *list_uploads(struct server *s, const char *request, uint64_t number)
{
	(void)number;
	static const char body[] = "<ListMultipartUploadsResult>"
				   "<Upload><Key>big</Key><UploadId>id/1+</UploadId></Upload>"
				   "<Upload><Key>big</Key><UploadId>id/2</UploadId></Upload>"
				   "<Upload><Key>other</Key><UploadId>id/1+</UploadId></Upload>"
				   "</ListMultipartUploadsResult>";
	static char answer[1024];
	if (strstr(request, "&uploads= ")) {
		(void)snprintf(answer, sizeof(answer),
			       "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body),
			       body);
		return answer;
	}
	if (step_of(request) == ABORT) {
		if (strstr(request, "uploadId=id%2F1%2B") && strstr(request, "/big?")) {
			atomic_fetch_add(&step_counts[OTHER], 1);
		}
		atomic_fetch_add(&step_counts[ABORT], 1);
		return "HTTP/1.1 204 No Content\r\n\r\n";
	}
	return in_parts(s, request, number);
}

static void test_under_way_is_not_aborted(void **state)
{
	(void)state;
	struct us_put put;
	for (int in_create = 0; in_create < 2; in_create++) {
		enum step step = in_create ? CREATE : PART;
		begin_faults(step, 0, 1000, in_create ? CREATED : OK_PUT);
		server.answer_fn = list_uploads;
		atomic_store(&fault.delay_ms, 500);
		fill_spooled(&put, "big", spool, SPOOL_LEN);
		store->ops->put_start(store, &put);
		while (atomic_load(&step_counts[step]) < 1) {
			us_clock_sleep_ns(US_NS_PER_MS);
		}
		struct us_error err = error_of_test();
		uint64_t count = 0;
		is_asked = 0;
		assert_int_equal(
			store->ops->abort_uploads(store, "", note_asked, NULL, &count, &err), 0);
		assert_int_equal(is_asked, 2);
		/* One whose id is not known yet may be either. */
		assert_int_equal(count, in_create ? 1 : 2);
		assert_int_equal(step_counts[OTHER], 0);
		assert_ptr_equal(wait_put(store), &put);
		assert_int_equal(put.rc, 0);
		count = 0;
		assert_int_equal(
			store->ops->abort_uploads(store, "", note_asked, NULL, &count, &err), 0);
		assert_int_equal(count, 3);
		end_faults();
	}
}

static void test_request_headers(void **state)
{
	(void)state;
	struct us_error err = error_of_test();
	struct us_put put;
	begin_faults(CREATE, 0, 3, ANSWER("403 No", "", "0", ""));
	store->ops->close(store);
	struct us_store_s3_options options = { .endpoint = server.endpoint,
					       .bucket = "bk1",
					       .path_style = 1,
					       .storage_class = "STANDARD_IA",
					       .sse = "aws:kms",
					       .sse_kms_key_id = "arn:x",
					       .concurrency = 1 };
	assert_int_equal(us_store_s3_open(&options, &store, &err), 0);
	set_keys(store, "ak", SECRET, TOKEN);
	fill_spooled(&put, "a b/c", spool, SPOOL_LEN);
	assert_int_equal(put_now(store, &put), US_E_ACCESS);
	const char *r = server.last_request;
	assert_non_null(strstr(r, "POST /bk1/a%20b/c?uploads= HTTP/1.1\r\n"));
	assert_non_null(strcasestr(r, "\r\ncontent-length: 0\r\n"));
	assert_null(strcasestr(r, "\r\nexpect:"));
	assert_null(strcasestr(r, "\r\ntransfer-encoding:"));
	assert_non_null(strstr(r, "x-amz-meta-snapshot-time: 2026-01-02T03:04:05.000000006Z\r\n"));
	assert_non_null(strstr(r, "x-amz-storage-class: STANDARD_IA\r\n"));
	assert_non_null(strstr(r, "x-amz-server-side-encryption-aws-kms-key-id: arn:x\r\n"));
	assert_non_null(strstr(r, "content-type: application/octet-stream\r\n"));
	end_faults();
}

static void test_limits(void **state)
{
	(void)state;
	struct us_put put;
	begin_faults(OTHER, 0, 0, NULL);
	fill_spooled(&put, "huge", spool, US_S3_OBJECT_LEN_MAX + 1);
	assert_int_equal(put_now(store, &put), US_E_UNSUPPORTED);
	assert_non_null(strstr(put.err.message, "5 TiB"));
	assert_int_equal(server.requests, 0);
	end_faults();
	/* Nobody there: nothing is sent, and put_start does not wait for it. */
	uint16_t port;
	char endpoint[48];
	close(listen_on(&port));
	(void)snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%u", port);
	store = open_store(endpoint, "bk1", 4, NULL);
	fill_spooled(&put, "big", spool, SPOOL_LEN);
	assert_int_equal(put_now(store, &put), US_E_NETWORK);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put + counts.remove, 0);
	store->ops->close(store);
}

int main(void)
{
	const struct CMUnitTest gateway_tests[] = {
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_from_memory_with_metadata),
		cmocka_unit_test(test_side_by_side),
		cmocka_unit_test(test_spool_changes),
		cmocka_unit_test(test_cancel_on_the_way),
		cmocka_unit_test(test_killed),
	};
	const struct CMUnitTest own_tests[] = {
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_parts_at_once),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_abort_hangs),
		cmocka_unit_test(test_patience),
		cmocka_unit_test(test_throttled),
		cmocka_unit_test(test_limited),
		cmocka_unit_test(test_under_way_is_not_aborted),
		cmocka_unit_test(test_request_headers),
		cmocka_unit_test(test_limits),
	};
	int failed = cmocka_run_group_tests_name("s3 in parts (versitygw)", gateway_tests,
						 start_gateway, stop_gateway);
	return failed + cmocka_run_group_tests_name("s3 in parts (own server)", own_tests,
						    make_spool, end_spool);
}
