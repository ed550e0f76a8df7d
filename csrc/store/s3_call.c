/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocking calls: what they share, get, and list (s3_remove.c has the others). Each runs on its
 * caller's thread with a call object of its own (an easy handle, a multi handle that holds its
 * connections, a page parser), taken from a small stock and put back, so that a restore of many
 * databases reuses connections. The multi handle is there to be able to look at
 * `canceled` and at the stall clock every POLL_MS; the sink of a get may block
 * (on a disk) without holding up anybody but its own transfer.
 *
 * A listing is delivered page by page, after a page was read and checked as a
 * whole, with no request under way. It is refused unless it moves: keys begin with
 * the prefix and ascend over all pages, a token differs from the one before, and
 * at most EMPTY_PAGES_MAX pages in a row are empty.
 *
 * SIGPIPE: OpenSSL writes with write(2). Callers' threads are not ours, so the
 * signal is held back during a call and a pending one of ours is swallowed.
 *
 * Locks: calls_lock guards the stock, for list operations only.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "s3_call.h"

#define POLL_MS 50
#define CALLS_KEPT_MAX 64
#define EMPTY_PAGES_MAX 1000
#define READ_BUFFER_LEN (64L << 10)
/* US_REMOVE_MANY_MAX keys at six bytes for each of theirs, and the elements around. */
#define BODY_LEN_MAX ((size_t)US_REMOVE_MANY_MAX * (6 * US_S3_KEY_LEN_MAX + 64))

static void call_free(struct us_s3_call *call)
{
	if (!call) {
		return;
	}
	us_s3_transfer_done(&call->transfer);
	(void)curl_multi_cleanup(call->multi); /* accepts NULL */
	us_s3_page_free(call->page);
	us_text_done(&call->body);
	us_free(call);
}

static struct us_s3_call *call_new(struct us_s3_store *store, struct us_error *err)
{
	struct us_s3_call *call = us_alloc_zero(sizeof(*call));
	if (!call || us_s3_transfer_init(&call->transfer, &store->endpoint, &store->timing, err) ||
	    !(call->multi = curl_multi_init()) || us_s3_page_new(&call->page, err)) {
		call_free(call);
		(void)us_fail_nomem(err);
		return NULL;
	}
	call->store = store;
	us_text_init(&call->body, BODY_LEN_MAX);
	return call;
}

struct us_s3_call *us_s3_call_take(struct us_s3_store *store, struct us_error *err)
{
	pthread_mutex_lock(&store->calls_lock);
	struct us_s3_call *call = store->calls;
	if (call) {
		store->calls = call->next;
		store->call_count--;
	}
	pthread_mutex_unlock(&store->calls_lock);
	call = call ? call : call_new(store, err);
	if (call) {
		call->data_fn = NULL;
		call->is_range = call->has_body = call->has_page = 0;
		call->received = 0;
	}
	return call;
}

void us_s3_call_put_back(struct us_s3_call *call)
{
	struct us_s3_store *store = call->store;
	pthread_mutex_lock(&store->calls_lock);
	int keep = store->call_count < CALLS_KEPT_MAX;
	if (keep) {
		call->next = store->calls;
		store->calls = call;
		store->call_count++;
	}
	pthread_mutex_unlock(&store->calls_lock);
	if (!keep) {
		call_free(call);
	}
}

void us_s3_calls_free(struct us_s3_store *store)
{
	while (store->calls) {
		struct us_s3_call *call = store->calls;
		store->calls = call->next;
		call_free(call);
	}
}

/* ---- one request */

/* Works out skip and left from the headers of a 200 or 206. 0, or what is wrong. */
static int32_t place_body(struct us_s3_call *call)
{
	const struct us_s3_reply *reply = &call->transfer.reply;
	call->is_placed = 1;
	call->skip = 0;
	call->left = call->len;
	if (!call->is_range) {
		return 0;
	}
	if (reply->status == 206) {
		int64_t first = call->offset;
		if (first < 0) {
			first = reply->range_total + call->offset; /* all of it if it is shorter */
			first = reply->range_total >= 0 && first < 0 ? 0 : first;
		}
		if (reply->range_first < 0 || reply->range_first != first) {
			return us_fail(call->err, US_E_HTTP,
				       "the server answered with another range than asked for");
		}
		return 0;
	}
	if (call->offset >= 0) { /* the server knows no ranges: the whole object comes */
		call->skip = (uint64_t)call->offset;
	} else if (reply->content_len < 0) {
		return us_fail(call->err, US_E_HTTP,
			       "the server ignores ranges and does not tell the object's size");
	} else if (reply->content_len > -call->offset) {
		call->skip = (uint64_t)(reply->content_len + call->offset);
	}
	return 0;
}

static int32_t take_object(struct us_s3_call *call, const char *data, size_t data_len)
{
	if (!call->is_placed) {
		int32_t rc = place_body(call);
		if (rc) {
			return rc;
		}
	}
	call->received += data_len;
	size_t skip = data_len < call->skip ? data_len : (size_t)call->skip;
	call->skip -= skip;
	size_t use = data_len - skip < call->left ? data_len - skip : (size_t)call->left;
	if (use == 0) {
		return 0;
	}
	int32_t rc = call->data_fn(call->data_arg, (const uint8_t *)data + skip, use, call->err);
	call->left -= use;
	us_s3_transfer_touch(&call->transfer);
	return rc;
}

static size_t write_body(char *data, size_t one, size_t data_len, void *user)
{
	struct us_s3_call *call = user;
	const struct us_s3_reply *reply = &call->transfer.reply;
	(void)one; /* always 1 */
	int good = reply->status == 200 || (reply->status == 206 && call->is_range);
	if (good && call->data_fn) {
		call->rc = take_object(call, data, data_len);
	} else if (good && call->has_page) {
		call->rc = us_s3_page_feed(call->page, data, data_len, call->err);
	} else if (us_s3_reply_add_body(&call->transfer.reply, data, data_len)) {
		return 0;
	}
	return call->rc ? 0 : data_len;
}

static int finished(struct us_s3_call *call, CURLcode *ret_result)
{
	int left;
	for (CURLMsg *msg; (msg = curl_multi_info_read(call->multi, &left)) != NULL;) {
		if (msg->msg == CURLMSG_DONE) {
			*ret_result = msg->data.result;
			return 1;
		}
	}
	return 0;
}

/* Runs the transfer until it ends (0, with its result), stalls or is canceled. */
static int32_t drive(struct us_s3_call *call, CURLcode *ret_result)
{
	struct us_s3_store *store = call->store;
	for (;;) {
		int running;
		if (atomic_load(&store->canceled)) {
			return us_fail(call->err, US_E_CANCELED, "canceled");
		}
		CURLMcode rc = curl_multi_perform(call->multi, &running);
		if (finished(call, ret_result)) {
			return 0;
		}
		if (us_s3_transfer_is_stalled(&call->transfer, us_clock_mono_ns())) {
			return us_s3_transfer_fail_stalled(&call->transfer, call->err);
		}
		rc = rc ? rc : curl_multi_poll(call->multi, NULL, 0, POLL_MS, NULL);
		if (rc) {
			return us_fail(call->err, US_E_IO, "libcurl: %s", curl_multi_strerror(rc));
		}
	}
}

static int set_options(struct us_s3_call *call)
{
	CURL *easy = call->transfer.easy;
	int failed = 0;
#define SET(option, value) failed |= curl_easy_setopt(easy, option, value) != CURLE_OK
	if (call->has_body) { /* curl sends it from where it is, again if it must */
		SET(CURLOPT_POSTFIELDS, call->body.data);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body.len);
	}
	SET(CURLOPT_WRITEFUNCTION, write_body);
	SET(CURLOPT_WRITEDATA, call);
	SET(CURLOPT_BUFFERSIZE, READ_BUFFER_LEN);
	SET(CURLOPT_CUSTOMREQUEST, call->transfer.request.method);
#undef SET
	return failed;
}

static int32_t perform(struct us_s3_call *call, struct us_s3_kind_counts *counts,
		       struct us_error *err)
{
	struct us_s3_transfer *transfer = &call->transfer;
	call->err = err;
	call->rc = 0;
	int32_t rc = us_s3_transfer_begin(transfer, err);
	if (rc) {
		return rc;
	}
	transfer->takes_body = call->data_fn || call->has_page;
	if (set_options(call) || curl_multi_add_handle(call->multi, transfer->easy)) {
		return us_fail_nomem(err);
	}
	CURLcode result = CURLE_OK;
	rc = drive(call, &result);
	if (rc == 0 && us_s3_transfer_resend(transfer, result)) {
		us_s3_count(counts, transfer, 0);
		(void)curl_multi_remove_handle(call->multi, transfer->easy); /* it is in there */
		rc = curl_multi_add_handle(call->multi, transfer->easy) ? us_fail_nomem(err)
									: drive(call, &result);
	}
	if (rc == 0) {
		result = us_s3_transfer_result(transfer, result);
	}
	int32_t status = transfer->reply.status;
	us_s3_count(counts, transfer, rc == 0 && status < 300 ? call->received : 0);
	(void)curl_multi_remove_handle(call->multi, transfer->easy); /* it is in there */
	if (rc || call->rc) {
		return rc ? rc : call->rc;
	}
	if (result != CURLE_OK && (status < 300 || result == CURLE_OUT_OF_MEMORY)) {
		return us_s3_transfer_fail(transfer, result, err);
	}
	return 0;
}

static void hold_sigpipe(sigset_t *ret_before, int *ret_pending)
{
	sigset_t pipe_set, pending;
	(void)sigemptyset(&pipe_set);
	(void)sigaddset(&pipe_set, SIGPIPE);
	(void)sigpending(&pending);
	*ret_pending = sigismember(&pending, SIGPIPE);
	(void)pthread_sigmask(SIG_BLOCK, &pipe_set,
			      ret_before); /* cannot fail for these arguments */
}

static void release_sigpipe(const sigset_t *before, int was_pending)
{
	sigset_t pipe_set;
	static const struct timespec at_once = { 0 };
	(void)sigemptyset(&pipe_set);
	(void)sigaddset(&pipe_set, SIGPIPE);
	while (!was_pending && sigtimedwait(&pipe_set, NULL, &at_once) < 0 && errno == EINTR) {
	}
	(void)pthread_sigmask(SIG_SETMASK, before, NULL); /* a mask we were given */
}

int32_t us_s3_call_perform(struct us_s3_call *call, struct us_s3_kind_counts *counts,
			   struct us_error *err)
{
	sigset_t before;
	int was_pending;
	hold_sigpipe(&before, &was_pending);
	int32_t rc = perform(call, counts, err);
	release_sigpipe(&before, was_pending);
	return rc;
}

int32_t us_s3_call_fail_answer(struct us_s3_call *call, int key_can_miss, struct us_error *err)
{
	return us_s3_reply_fail(&call->transfer.reply, &call->store->endpoint,
				&call->transfer.request, key_can_miss, err);
}

int32_t us_s3_call_name_request(struct us_s3_call *call, int32_t rc, struct us_error *err)
{
	if (err && rc == US_E_HTTP && err->http_status == 0) {
		char what[800], text[US_ERROR_MESSAGE_LEN];
		memcpy(text, err->message, sizeof(text));
		us_s3_reply_what(&call->store->endpoint, &call->transfer.request, what,
				 sizeof(what));
		(void)us_fail(err, rc, "%s: %s", what, text);
		err->http_status = call->transfer.reply.status;
	}
	return rc;
}

int32_t us_s3_call_document(struct us_s3_call *call, enum us_s3_document document,
			    struct us_s3_kind_counts *counts, struct us_error *err)
{
	struct us_s3_error_doc doc;
	call->has_page = 1;
	int32_t rc = us_s3_page_begin(call->page, document, err);
	rc = rc ? rc : us_s3_call_perform(call, counts, err);
	if (rc) {
		return us_s3_call_name_request(call, rc, err);
	}
	if (call->transfer.reply.status != 200) {
		return us_s3_call_fail_answer(call, 0, err);
	}
	rc = us_s3_page_end(call->page, &doc, err);
	if (rc && doc.code[0] != '\0') {
		return us_s3_reply_fail_doc(&call->transfer.reply, &doc, &call->store->endpoint,
					    &call->transfer.request, 0, err);
	}
	return us_s3_call_name_request(call, rc, err);
}

/* ---- get */

static void begin_get(struct us_s3_call *call, int64_t offset, uint64_t len, us_store_data_fn *fn,
		      void *arg)
{
	call->data_fn = fn;
	call->data_arg = arg;
	call->is_range = offset != 0 || len != UINT64_MAX;
	call->offset = offset;
	call->len = len;
	call->received = call->skip = call->left = 0;
	call->is_placed = 0;
}

static void format_range(char *ret, size_t cap, int64_t offset, uint64_t len)
{
	if (offset < 0) {
		(void)snprintf(ret, cap, "bytes=%lld", (long long)offset);
	} else if (len > (uint64_t)(INT64_MAX - offset)) {
		(void)snprintf(ret, cap, "bytes=%lld-", (long long)offset);
	} else {
		(void)snprintf(ret, cap, "bytes=%lld-%lld", (long long)offset,
			       (long long)offset + (long long)len - 1);
	}
}

/* Whether a complete 200 or 206 held what was asked for; the object's size. */
static int32_t check_get(struct us_s3_call *call, uint64_t *ret_total, struct us_error *err)
{
	const struct us_s3_reply *reply = &call->transfer.reply;
	if (!call->is_placed) { /* an empty body */
		int32_t rc = place_body(call);
		if (rc) {
			return rc;
		}
	}
	if (reply->status == 200) {
		*ret_total = call->received;
		return call->skip == 0
			       ? 0
			       : us_fail(err, US_E_HTTP, "the object is shorter than the range");
	}
	int64_t last = reply->range_last;
	int64_t total = reply->range_total;
	uint64_t got = (uint64_t)(last - reply->range_first) + 1;
	int64_t want_last = INT64_MAX;
	if (call->offset >= 0 && call->len <= (uint64_t)(INT64_MAX - call->offset)) {
		want_last = call->offset + (int64_t)call->len - 1;
	}
	want_last = total > 0 && want_last > total - 1 ? total - 1 : want_last;
	if (got != call->received || (total >= 0 && last != want_last) || last > want_last) {
		return us_fail(err, US_E_HTTP,
			       "the server answered with another range than asked for");
	}
	*ret_total = total >= 0 ? (uint64_t)total : UINT64_MAX;
	return 0;
}

static int32_t run_get(struct us_s3_call *call, const char *key, uint64_t *ret_total,
		       struct us_error *err)
{
	struct us_s3_store *store = call->store;
	char range[64];
	format_range(range, sizeof(range), call->offset, call->len);
	int32_t rc = us_s3_request_get(&call->transfer.request, &store->endpoint, &store->signer,
				       key, call->is_range ? range : NULL, err);
	rc = rc ? rc : us_s3_call_perform(call, &store->get, err);
	if (rc) {
		return us_s3_call_name_request(call, rc, err);
	}
	int32_t status = call->transfer.reply.status;
	if (status != 200 && !(status == 206 && call->is_range)) {
		return us_s3_call_fail_answer(call, 1, err);
	}
	return us_s3_call_name_request(call, check_get(call, ret_total, err), err);
}

int32_t us_s3_call_get(struct us_s3_call *call, const char *key, int64_t offset, uint64_t len,
		       us_store_data_fn *fn, void *arg, uint64_t *ret_total, struct us_error *err)
{
	begin_get(call, offset, len, fn, arg);
	return run_get(call, key, ret_total, err);
}

int32_t us_s3_get(struct us_store *base, const char *key, int64_t offset, uint64_t len,
		  us_store_data_fn *fn, void *arg, uint64_t *ret_len, struct us_error *err)
{
	struct us_s3_store *store = (struct us_s3_store *)base;
	if (len == 0 || offset == INT64_MIN) {
		return us_fail(err, US_E_ARG, "get: empty or impossible range");
	}
	struct us_s3_call *call = us_s3_call_take(store, err);
	if (!call) {
		return US_E_NOMEM;
	}
	uint64_t total = 0;
	int32_t rc = us_s3_call_get(call, key, offset, len, fn, arg, &total, err);
	us_s3_call_put_back(call);
	if (rc == 0 && ret_len) {
		*ret_len = total;
	}
	return rc;
}

/* ---- list */

struct listing {
	const char *prefix, *after;
	us_store_list_fn *fn;
	void *arg;
	struct us_text last_key, token;
	uint32_t empty_pages;
};

static int32_t fetch_page(struct us_s3_call *call, struct listing *listing, struct us_error *err)
{
	struct us_s3_store *store = call->store;
	const char *token = listing->token.len > 0 ? listing->token.data : NULL;
	int32_t rc = us_s3_request_list(&call->transfer.request, &store->endpoint, &store->signer,
					listing->prefix, token, listing->after, err);
	return rc ? rc : us_s3_call_document(call, US_S3_LISTING, &store->list, err);
}

/* All keys of a page, before any of them is delivered. */
static const char *check_page(struct us_s3_call *call, struct listing *listing)
{
	size_t count = us_s3_page_count(call->page);
	size_t prefix_len = strlen(listing->prefix);
	const char *before_page = listing->last_key.data ? listing->last_key.data : listing->after;
	for (size_t i = 0; i < count; i++) {
		struct us_s3_entry entry = us_s3_page_entry(call->page, i);
		const char *before = i > 0 ? us_s3_page_entry(call->page, i - 1).key : before_page;
		if (strncmp(entry.key, listing->prefix, prefix_len) != 0) {
			return "a key that does not begin with the prefix";
		}
		if (before && strcmp(before, entry.key) >= 0) { /* strcmp: by unsigned bytes */
			return "keys are not in ascending order";
		}
	}
	listing->empty_pages = count > 0 ? 0 : listing->empty_pages + 1;
	const char *token = us_s3_page_next_token(call->page);
	if (token && listing->token.len > 0 && strcmp(token, listing->token.data) == 0) {
		return "the same continuation token twice";
	}
	return token && listing->empty_pages > EMPTY_PAGES_MAX ? "too many empty pages" : NULL;
}

static int32_t deliver_page(struct us_s3_call *call, struct listing *listing)
{
	size_t count = us_s3_page_count(call->page);
	for (size_t i = 0; i < count; i++) {
		struct us_s3_entry entry = us_s3_page_entry(call->page, i);
		int32_t rc = listing->fn(listing->arg, entry.key, entry.key_len, entry.object_len);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

/* Remembers where the page ended. */
static int32_t advance(struct us_s3_call *call, struct listing *listing, struct us_error *err)
{
	size_t count = us_s3_page_count(call->page);
	if (count > 0) {
		us_text_clear(&listing->last_key);
		us_text_puts(&listing->last_key, us_s3_page_entry(call->page, count - 1).key);
	}
	us_text_clear(&listing->token);
	us_text_puts(&listing->token, us_s3_page_next_token(call->page));
	return listing->last_key.failed || listing->token.failed ? us_fail_nomem(err) : 0;
}

static int32_t run_list(struct us_s3_call *call, struct listing *listing, struct us_error *err)
{
	for (;;) { /* check_page sees to it that it moves; cancel ends it */
		int32_t rc = fetch_page(call, listing, err);
		if (rc) {
			return rc;
		}
		const char *fault = check_page(call, listing);
		if (fault) {
			(void)us_fail(err, US_E_HTTP, "malformed listing: %s", fault);
			return us_s3_call_name_request(call, US_E_HTTP, err);
		}
		rc = deliver_page(call, listing);
		if (rc || !us_s3_page_next_token(call->page)) {
			return rc;
		}
		rc = advance(call, listing, err);
		if (rc) {
			return rc;
		}
	}
}

int32_t us_s3_list_after(struct us_store *base, const char *prefix, const char *after,
			 us_store_list_fn *fn, void *arg, struct us_error *err)
{
	struct us_s3_call *call = us_s3_call_take((struct us_s3_store *)base, err);
	if (!call) {
		return US_E_NOMEM;
	}
	struct listing listing = { .prefix = prefix, .after = after, .fn = fn, .arg = arg };
	us_text_init(&listing.last_key, US_S3_KEY_LEN_MAX);
	us_text_init(&listing.token, US_S3_TOKEN_LEN_MAX);
	int32_t rc = run_list(call, &listing, err);
	us_text_done(&listing.last_key);
	us_text_done(&listing.token);
	us_s3_call_put_back(call);
	return rc;
}

int32_t us_s3_list(struct us_store *base, const char *prefix, us_store_list_fn *fn, void *arg,
		   struct us_error *err)
{
	return us_s3_list_after(base, prefix, NULL, fn, arg, err);
}
