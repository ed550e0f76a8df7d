/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Uploads: one thread drives one curl multi handle with multi_socket and epoll.
 *
 * put_start appends to `waiting` and wakes the thread through an eventfd. The
 * thread moves as many puts as `limit` allows onto slots (easy handles, made at
 * first use and kept), runs curl, and appends what has ended to `ended`, which
 * put_wait takes as a whole.
 *
 * Backing off: `limit` starts at the configured concurrency. An answer 503 or 429
 * halves it, once for all requests that were under way at that moment (each slot
 * remembers the epoch it was started in; answers of an older epoch are echoes of
 * the same overload). The limit at which that happened, less one, becomes the
 * ceiling: below it the limit rises by one per `limit` successes, at it only after
 * PROBE_SUCCESSES, because every probe too far costs somebody a failed upload.
 *
 * Threads: everything in `struct us_s3_pool` below the line belongs to the pool's
 * thread. `lock` guards the two queues, `asleep` and `stopping`; it is held for
 * list operations only. `asleep` saves the eventfd write while the thread is awake:
 * the thread sets it in the same critical section in which it finds nothing to
 * start, put_start reads it in the one in which it appends, so a wake-up is never
 * lost. Cancelling and closing always write.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/thread.h"
#include "s3_internal.h"

#define EVENTS_MAX 64
#define PROBE_SUCCESSES 256
#define STALL_LOOK_MS_MAX 1000
/* Each handle keeps its buffers, and there may be 1,000: curl's least for sending,
 * and what an answer to a PUT needs. */
#define UPLOAD_BUFFER_LEN (16L << 10)
#define ANSWER_BUFFER_LEN (4L << 10)

struct slot {
	struct us_s3_transfer transfer;
	struct us_s3_pool *pool;
	struct us_put *put;       /* NULL: idle */
	struct us_error body_err; /* reading the object failed; code 0: it did not */
	uint64_t body_off;
	uint32_t epoch;
	uint32_t busy_index; /* in pool->busy */
};

struct us_s3_pool {
	struct us_s3_store *store;
	pthread_t thread;
	int thread_started;
	int wake_fd, epoll_fd;
	pthread_mutex_t lock;
	pthread_cond_t ended_cond;
	struct us_put *waiting, **waiting_tail;
	struct us_put *ended, **ended_tail;
	int asleep, stopping;
	_Atomic uint32_t limit; /* read by us_s3_pool_limit */
	/* ---- the thread's own */
	CURLM *multi;
	int64_t curl_deadline_ns; /* INT64_MAX: none */
	int64_t stall_look_ns;
	struct slot **idle, **busy; /* concurrency pointers each */
	uint32_t idle_count, busy_count;
	uint32_t epoch, ceiling, success_count;
	struct us_put *done, **done_tail; /* ended, not published yet */
};

static void wake(struct us_s3_pool *pool)
{
	uint64_t one = 1;
	ssize_t rc = write(pool->wake_fd, &one, sizeof(one));
	(void)rc; /* full: the thread is being woken already */
}

/* ---- the callers' side */

void us_s3_put_start(struct us_store *base, struct us_put *put)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	put->next = NULL;
	put->rc = 0;
	us_error_clear(&put->err);
	pthread_mutex_lock(&pool->lock);
	*pool->waiting_tail = put;
	pool->waiting_tail = &put->next;
	int must_wake = pool->asleep;
	pool->asleep = 0;
	pthread_mutex_unlock(&pool->lock);
	if (must_wake) {
		wake(pool);
	}
}

struct us_put *us_s3_put_wait(struct us_store *base, int32_t timeout_ms)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	pthread_mutex_lock(&pool->lock);
	while (!pool->ended && timeout_ms > 0) {
		int64_t left_ns = end_ns - us_clock_mono_ns();
		if (left_ns <= 0) {
			break;
		}
		(void)us_cond_wait_ns(&pool->ended_cond, &pool->lock, left_ns); /* looked at anew */
	}
	struct us_put *list = pool->ended;
	pool->ended = NULL;
	pool->ended_tail = &pool->ended;
	pthread_mutex_unlock(&pool->lock);
	return list;
}

uint32_t us_s3_pool_limit(struct us_store *base)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	return atomic_load_explicit(&pool->limit, memory_order_relaxed);
}

void us_s3_pool_wake(struct us_s3_store *store)
{
	wake(store->pool);
}

/* ---- curl's callbacks, all on the pool's thread */

static size_t read_body(char *buffer, size_t one, size_t cap, void *user)
{
	struct slot *slot = user;
	struct us_put *put = slot->put;
	(void)one; /* always 1 */
	uint64_t left = put->len - slot->body_off;
	size_t len = left < cap ? (size_t)left : cap;
	if (len == 0) {
		return 0;
	}
	if (put->data) {
		memcpy(buffer, put->data + slot->body_off, len);
	} else {
		ssize_t got;
		do {
			got = pread(put->fd, buffer, len, (off_t)slot->body_off);
		} while (got < 0 && errno == EINTR);
		if (got < 0) {
			(void)us_fail_errno(&slot->body_err, errno, "reading the spooled object");
			return CURL_READFUNC_ABORT;
		}
		if (got == 0) {
			(void)us_fail(&slot->body_err, US_E_IO,
				      "the spooled object is shorter than it was");
			return CURL_READFUNC_ABORT;
		}
		len = (size_t)got;
	}
	slot->body_off += len;
	return len;
}

/* Curl sends once more when a reused connection turns out to be dead. */
static int seek_body(void *user, curl_off_t offset, int origin)
{
	struct slot *slot = user;
	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > slot->put->len) {
		return CURL_SEEKFUNC_FAIL;
	}
	slot->body_off = (uint64_t)offset;
	return CURL_SEEKFUNC_OK;
}

static size_t write_answer(char *data, size_t one, size_t data_len, void *user)
{
	struct slot *slot = user;
	(void)one; /* always 1 */
	return us_s3_reply_add_body(&slot->transfer.reply, data, data_len) ? 0 : data_len;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *known)
{
	struct us_s3_pool *pool = user;
	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		/* fails only where the descriptor is gone, and with it the registration */
		(void)epoll_ctl(pool->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	struct epoll_event event = { .data.fd = fd };
	event.events = (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0u) |
		       (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0u);
	int op = known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
	if (epoll_ctl(pool->epoll_fd, op, fd, &event)) {
		/* Known to one side only: the other way round. No memory, no watches: the
		 * transfer gets no events and ends by its stall clock; to tell curl would
		 * end the multi handle for good. */
		op = op == EPOLL_CTL_ADD ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
		(void)epoll_ctl(pool->epoll_fd, op, fd, &event);
	}
	(void)curl_multi_assign(pool->multi, fd, pool); /* KNOWN from now on; else as above */
	return 0;
}

static int on_timer(CURLM *multi, long timeout_ms, void *user)
{
	struct us_s3_pool *pool = user;
	(void)multi;
	pool->curl_deadline_ns =
		timeout_ms < 0 ? INT64_MAX : us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	return 0;
}

/* ---- slots */

static void slot_free(struct slot *slot)
{
	if (slot) {
		us_s3_transfer_done(&slot->transfer);
		us_free(slot);
	}
}

static struct slot *slot_new(struct us_s3_pool *pool, struct us_error *err)
{
	struct slot *slot = us_alloc_zero(sizeof(*slot));
	if (!slot || us_s3_transfer_init(&slot->transfer, &pool->store->endpoint,
					 &pool->store->timing, err)) {
		slot_free(slot);
		(void)us_fail_nomem(err);
		return NULL;
	}
	slot->pool = pool;
	return slot;
}

static CURLcode set_upload(struct slot *slot)
{
	CURL *easy = slot->transfer.easy;
	CURLcode rc = CURLE_OK;
#define SET(option, value) rc = rc ? rc : curl_easy_setopt(easy, option, value)
	SET(CURLOPT_UPLOAD, 1L);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER_LEN);
	SET(CURLOPT_BUFFERSIZE, ANSWER_BUFFER_LEN);
	SET(CURLOPT_INFILESIZE_LARGE, (curl_off_t)slot->put->len);
	SET(CURLOPT_READFUNCTION, read_body);
	SET(CURLOPT_READDATA, slot);
	SET(CURLOPT_SEEKFUNCTION, seek_body);
	SET(CURLOPT_SEEKDATA, slot);
	SET(CURLOPT_WRITEFUNCTION, write_answer);
	SET(CURLOPT_WRITEDATA, slot);
	SET(CURLOPT_PRIVATE, slot);
#undef SET
	return rc;
}

/* Appends PUT, whose rc and err are set, to what the loop will publish. */
static void finish_put(struct us_s3_pool *pool, struct us_put *put)
{
	put->next = NULL;
	*pool->done_tail = put;
	pool->done_tail = &put->next;
}

static void slot_begin(struct us_s3_pool *pool, struct slot *slot, struct us_put *put)
{
	struct us_s3_store *store = pool->store;
	slot->put = put;
	slot->body_off = 0;
	us_error_clear(&slot->body_err);
	slot->epoch = pool->epoch;
	int32_t rc = us_s3_request_put(&slot->transfer.request, &store->endpoint, &store->signer,
				       put, &put->err);
	rc = rc ? rc : us_s3_transfer_begin(&slot->transfer, &put->err);
	if (!rc && (set_upload(slot) || curl_multi_add_handle(pool->multi, slot->transfer.easy))) {
		rc = us_fail_nomem(&put->err);
	}
	if (rc) {
		put->rc = rc;
		slot->put = NULL;
		pool->idle[pool->idle_count++] = slot;
		finish_put(pool, put);
		return;
	}
	slot->busy_index = pool->busy_count;
	pool->busy[pool->busy_count++] = slot;
}

/* Takes SLOT off curl and hands its put on. RC and the put's err are final. */
static void slot_end(struct us_s3_pool *pool, struct slot *slot, int32_t rc)
{
	struct us_put *put = slot->put;
	us_s3_count(&pool->store->put, &slot->transfer, rc ? 0 : put->len);
	(void)curl_multi_remove_handle(pool->multi, slot->transfer.easy); /* it is in there */
	struct slot *last = pool->busy[--pool->busy_count];
	pool->busy[slot->busy_index] = last;
	last->busy_index = slot->busy_index;
	pool->idle[pool->idle_count++] = slot;
	slot->put = NULL;
	put->rc = rc;
	finish_put(pool, put);
}

/* ---- the concurrency limit */

static void back_off(struct us_s3_pool *pool, const struct slot *slot)
{
	if (slot->epoch != pool->epoch) {
		return;
	}
	uint32_t limit = atomic_load_explicit(&pool->limit, memory_order_relaxed);
	pool->ceiling = limit > 1 ? limit - 1 : 1;
	pool->epoch++;
	pool->success_count = 0;
	atomic_store_explicit(&pool->limit, limit > 1 ? limit / 2 : 1, memory_order_relaxed);
}

static void note_success(struct us_s3_pool *pool)
{
	uint32_t limit = atomic_load_explicit(&pool->limit, memory_order_relaxed);
	if (limit == pool->store->concurrency) {
		return;
	}
	uint32_t need = limit < pool->ceiling ? limit : PROBE_SUCCESSES;
	if (++pool->success_count >= need) {
		pool->success_count = 0;
		atomic_store_explicit(&pool->limit, limit + 1, memory_order_relaxed);
		if (limit + 1 > pool->ceiling) {
			pool->ceiling = limit + 1;
		}
	}
}

/* ---- what has ended */

static int32_t result_of(struct us_s3_pool *pool, struct slot *slot, CURLcode result)
{
	const struct us_s3_endpoint *endpoint = &pool->store->endpoint;
	struct us_s3_transfer *transfer = &slot->transfer;
	struct us_put *put = slot->put;
	if (slot->body_err.code) {
		put->err = slot->body_err;
		return put->err.code;
	}
	/* an answer counts even where the connection broke behind it, unless it is good news */
	int answered = transfer->reply.status >= 300;
	if (result != CURLE_OK && !(answered && result != CURLE_OUT_OF_MEMORY)) {
		return us_s3_transfer_fail(transfer, result, &put->err);
	}
	int32_t rc =
		us_s3_reply_check_put(&transfer->reply, endpoint, &transfer->request, &put->err);
	curl_off_t sent = 0;
	(void)curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &sent); /* else 0 */
	if (!rc && (slot->body_off != put->len || (uint64_t)sent < put->len)) {
		rc = us_fail(
			&put->err, US_E_HTTP,
			"PUT \"%s/%.600s\": 200 before the object was sent (%llu of %llu bytes)",
			endpoint->bucket, put->key, (unsigned long long)sent,
			(unsigned long long)put->len);
	}
	return rc;
}

/* Puts SLOT back on curl if that is worth while. */
static int resend(struct us_s3_pool *pool, struct slot *slot, CURLcode result)
{
	if (slot->body_err.code || !us_s3_transfer_resend(&slot->transfer, result)) {
		return 0;
	}
	us_s3_count(&pool->store->put, &slot->transfer, 0);
	slot->body_off = 0;
	(void)curl_multi_remove_handle(pool->multi, slot->transfer.easy); /* it is in there */
	return curl_multi_add_handle(pool->multi, slot->transfer.easy) == CURLM_OK;
}

static void collect(struct us_s3_pool *pool)
{
	int left;
	for (CURLMsg *msg; (msg = curl_multi_info_read(pool->multi, &left)) != NULL;) {
		if (msg->msg != CURLMSG_DONE) {
			continue;
		}
		struct slot *slot = NULL;
		CURLcode result = msg->data.result; /* MSG goes with the handle's removal */
		(void)curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &slot); /* was set */
		if (resend(pool, slot, result)) {
			continue;
		}
		int32_t rc = result_of(pool, slot, result);
		if (rc == 0) {
			note_success(pool);
		} else if (us_s3_reply_is_throttle(&slot->transfer.reply)) {
			back_off(pool, slot);
		}
		slot_end(pool, slot, rc);
	}
}

static int64_t stall_look_interval_ns(const struct us_s3_pool *pool)
{
	int64_t ms = pool->store->timing.stall_ms / 8;
	return (ms > STALL_LOOK_MS_MAX ? STALL_LOOK_MS_MAX : ms) * US_NS_PER_MS;
}

static void end_stalled(struct us_s3_pool *pool, int64_t now_ns)
{
	for (uint32_t i = pool->busy_count; i-- > 0;) { /* ending one moves the last here */
		struct slot *slot = pool->busy[i];
		if (us_s3_transfer_is_stalled(&slot->transfer, now_ns)) {
			slot_end(pool, slot,
				 us_s3_transfer_fail_stalled(&slot->transfer, &slot->put->err));
		}
	}
}

static struct us_put *take_waiting(struct us_s3_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	struct us_put *put = pool->waiting;
	if (put) {
		pool->waiting = put->next;
		if (!pool->waiting) {
			pool->waiting_tail = &pool->waiting;
		}
	}
	pthread_mutex_unlock(&pool->lock);
	return put;
}

static void cancel_all(struct us_s3_pool *pool)
{
	while (pool->busy_count > 0) {
		struct slot *slot = pool->busy[pool->busy_count - 1];
		slot_end(pool, slot, us_fail(&slot->put->err, US_E_CANCELED, "canceled"));
	}
	for (struct us_put *put; (put = take_waiting(pool)) != NULL;) {
		put->rc = us_fail(&put->err, US_E_CANCELED, "canceled");
		finish_put(pool, put);
	}
}

static void begin_waiting(struct us_s3_pool *pool)
{
	while (pool->busy_count < atomic_load_explicit(&pool->limit, memory_order_relaxed)) {
		struct us_put *put = take_waiting(pool);
		if (!put) {
			return;
		}
		struct slot *slot = pool->idle_count > 0 ? pool->idle[--pool->idle_count]
							 : slot_new(pool, &put->err);
		if (!slot) {
			put->rc = put->err.code;
			finish_put(pool, put);
			continue;
		}
		slot_begin(pool, slot, put);
	}
}

static void publish(struct us_s3_pool *pool)
{
	if (!pool->done) {
		return;
	}
	pthread_mutex_lock(&pool->lock);
	*pool->ended_tail = pool->done;
	pool->ended_tail = pool->done_tail;
	pthread_cond_broadcast(&pool->ended_cond);
	pthread_mutex_unlock(&pool->lock);
	pool->done = NULL;
	pool->done_tail = &pool->done;
}

/* ---- the loop */

static int wait_ms(struct us_s3_pool *pool)
{
	int64_t until_ns = pool->curl_deadline_ns;
	if (pool->busy_count > 0 && pool->stall_look_ns < until_ns) {
		until_ns = pool->stall_look_ns;
	}
	if (until_ns == INT64_MAX) {
		return -1;
	}
	int64_t left_ns = until_ns - us_clock_mono_ns();
	int64_t ms = left_ns <= 0 ? 0 : (left_ns + US_NS_PER_MS - 1) / US_NS_PER_MS;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* Whether the thread may sleep: there is nothing it could start. From here on
 * put_start wakes it. */
static int may_sleep(struct us_s3_pool *pool)
{
	uint32_t limit = atomic_load_explicit(&pool->limit, memory_order_relaxed);
	pthread_mutex_lock(&pool->lock);
	int may = !pool->waiting || pool->busy_count >= limit;
	pool->asleep = may;
	pthread_mutex_unlock(&pool->lock);
	return may;
}

static void wait_events(struct us_s3_pool *pool)
{
	struct epoll_event events[EVENTS_MAX];
	int running;
	int timeout_ms = may_sleep(pool) ? wait_ms(pool) : 0;
	int count = epoll_wait(pool->epoll_fd, events, EVENTS_MAX, timeout_ms);
	for (int i = 0; i < count; i++) { /* a failure is EINTR: come back */
		if (events[i].data.fd == pool->wake_fd) {
			uint64_t value;
			ssize_t rc = read(pool->wake_fd, &value, sizeof(value));
			(void)rc; /* empty: woken twice for one write */
			continue;
		}
		int mask = (events[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
			   (events[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			   (events[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
		/* results are per transfer, see collect() */
		(void)curl_multi_socket_action(pool->multi, events[i].data.fd, mask, &running);
	}
	if (pool->curl_deadline_ns <= us_clock_mono_ns()) {
		pool->curl_deadline_ns = INT64_MAX;
		(void)curl_multi_socket_action(pool->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
}

static int is_stopping(struct us_s3_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	int stopping = pool->stopping;
	pthread_mutex_unlock(&pool->lock);
	return stopping;
}

static void *pool_main(void *arg)
{
	struct us_s3_pool *pool = arg;
	while (!is_stopping(pool)) {
		if (atomic_load(&pool->store->canceled)) {
			cancel_all(pool);
		} else {
			begin_waiting(pool);
		}
		publish(pool);
		wait_events(pool);
		collect(pool);
		int64_t now_ns = us_clock_mono_ns();
		if (now_ns >= pool->stall_look_ns) {
			pool->stall_look_ns = now_ns + stall_look_interval_ns(pool);
			end_stalled(pool, now_ns);
		}
		publish(pool);
	}
	cancel_all(pool); /* close without having waited: nothing may stay in curl */
	publish(pool);
	return NULL;
}

/* ---- opening and closing */

static int32_t open_multi(struct us_s3_pool *pool, struct us_error *err)
{
	long connections = (long)pool->store->concurrency + 8;
	pool->multi = curl_multi_init();
	if (!pool->multi || curl_multi_setopt(pool->multi, CURLMOPT_SOCKETFUNCTION, on_socket) ||
	    curl_multi_setopt(pool->multi, CURLMOPT_SOCKETDATA, pool) ||
	    curl_multi_setopt(pool->multi, CURLMOPT_TIMERFUNCTION, on_timer) ||
	    curl_multi_setopt(pool->multi, CURLMOPT_TIMERDATA, pool) ||
	    curl_multi_setopt(pool->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING) ||
	    curl_multi_setopt(pool->multi, CURLMOPT_MAXCONNECTS, connections)) {
		return us_fail_nomem(err);
	}
	return 0;
}

static int32_t open_descriptors(struct us_s3_pool *pool, struct us_error *err)
{
	pool->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (pool->epoll_fd < 0) {
		return us_fail_errno(err, errno, "epoll_create1");
	}
	pool->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->wake_fd < 0) {
		return us_fail_errno(err, errno, "eventfd");
	}
	struct epoll_event event = { .events = EPOLLIN, .data.fd = pool->wake_fd };
	if (epoll_ctl(pool->epoll_fd, EPOLL_CTL_ADD, pool->wake_fd, &event)) {
		return us_fail_errno(err, errno, "epoll_ctl");
	}
	return 0;
}

static int32_t open_pool(struct us_s3_pool *pool, struct us_error *err)
{
	uint32_t concurrency = pool->store->concurrency;
	pool->waiting_tail = &pool->waiting;
	pool->ended_tail = &pool->ended;
	pool->done_tail = &pool->done;
	pool->curl_deadline_ns = INT64_MAX;
	pool->ceiling = concurrency;
	atomic_init(&pool->limit, concurrency);
	pool->idle = us_alloc_array(concurrency, sizeof(*pool->idle));
	pool->busy = us_alloc_array(concurrency, sizeof(*pool->busy));
	if (!pool->idle || !pool->busy) {
		return us_fail_nomem(err);
	}
	int32_t rc = open_descriptors(pool, err);
	rc = rc ? rc : open_multi(pool, err);
	rc = rc ? rc : us_thread_start(&pool->thread, "us-s3", pool_main, pool, err);
	pool->thread_started = rc == 0;
	return rc;
}

int32_t us_s3_pool_open(struct us_s3_store *store, struct us_error *err)
{
	struct us_s3_pool *pool = us_alloc_zero(sizeof(*pool));
	if (!pool || us_cond_init(&pool->ended_cond, err)) {
		us_free(pool);
		return us_fail_nomem(err);
	}
	if (pthread_mutex_init(&pool->lock, NULL)) {
		(void)pthread_cond_destroy(&pool->ended_cond); /* unused */
		us_free(pool);
		return us_fail_nomem(err);
	}
	pool->store = store;
	pool->epoll_fd = pool->wake_fd = -1;
	store->pool = pool; /* us_s3_pool_close takes it from here, also after a failure */
	return open_pool(pool, err);
}

void us_s3_pool_close(struct us_s3_store *store)
{
	struct us_s3_pool *pool = store->pool;
	if (!pool) {
		return;
	}
	if (pool->thread_started) {
		pthread_mutex_lock(&pool->lock);
		pool->stopping = 1;
		pthread_mutex_unlock(&pool->lock);
		wake(pool);
		(void)pthread_join(pool->thread, NULL); /* ours, joined once */
	}
	for (uint32_t i = 0; i < pool->idle_count; i++) {
		slot_free(pool->idle[i]);
	}
	(void)curl_multi_cleanup(pool->multi); /* accepts NULL */
	if (pool->wake_fd >= 0) {
		(void)close(pool->wake_fd); /* nothing to lose */
	}
	if (pool->epoll_fd >= 0) {
		(void)close(pool->epoll_fd); /* nothing to lose */
	}
	(void)pthread_mutex_destroy(&pool->lock);      /* nobody is left to hold it */
	(void)pthread_cond_destroy(&pool->ended_cond); /* nor to wait for it */
	us_free(pool->idle);
	us_free(pool->busy);
	us_free(pool);
	store->pool = NULL;
}
