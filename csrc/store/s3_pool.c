/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many requests at once: one thread drives one curl multi handle with multi_socket
 * and epoll.
 *
 * put_start and get_start append to a queue each and wake the thread through an
 * eventfd. The thread moves as many jobs as may be under way onto slots (s3_slot.c: easy
 * handles, made at first use and kept), taking turns between the queues so that
 * neither starves, and runs curl. Puts that have ended are appended to `ended`, which
 * put_wait takes as a whole; gets go to their owners' queues at once. What a job sends
 * and what its answer means is its kind's (s3_put.c, s3_get.c, s3_multipart.c).
 *
 * Uploads in parts are in a list of their own, the third to be taken from, and stay there
 * until they are over; each is asked for its next step. A cancel hands all puts and gets
 * back at once, but lets uploads be aborted for ABORT_MS_MAX, also while the pool closes.
 *
 * How many jobs are on slots is decided by `control` (concurrency.c), which is told of each
 * start and end. Puts and parts also wait for `store->rate`: all else is taken before them
 * meanwhile, and the thread sleeps until they are due.
 *
 * Threads: everything in `struct us_s3_pool` below the line belongs to the pool's
 * thread. `lock` guards the queues, `asleep` and `stopping`; it is held for list
 * operations only. `asleep` saves the eventfd write while the thread is awake:
 * the thread sets it in the same critical section in which it finds nothing to
 * start, they read it in the one in which they append, so a wake-up is never
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
#include "concurrency.h"
#include "s3_multipart.h"

#define EVENTS_MAX 64
#define STALL_LOOK_MS_MAX 1000
#define ABORT_MS_MAX 1000
/* Who waits for ended puts is woken for so many, or the last one, or after this time. */
#define ENDED_STEP 32
#define ENDED_WAIT_NS (5 * US_NS_PER_MS)
/* What take_waiting takes from. */
#define LIST_PUTS 0
#define LIST_GETS 1
#define LIST_STEPS 2

struct us_s3_pool {
	struct us_s3_store *store;
	pthread_t thread;
	int thread_started;
	int wake_fd, epoll_fd;
	pthread_mutex_t lock;
	pthread_cond_t ended_cond;
	struct us_put *puts, **puts_tail; /* waiting */
	struct us_get *gets, **gets_tail; /* waiting */
	struct us_s3_upload *uploads;     /* not over; links guarded by LOCK */
	struct us_put *ended, **ended_tail;
	uint32_t ended_count, put_count; /* ended; handed over and not ended */
	int asleep, stopping;
	_Atomic uint32_t limit; /* control's, for us_s3_pool_limit */
	/* ---- the thread's own */
	CURLM *multi;             /* NULL: to be made for the next transfer */
	int64_t curl_deadline_ns; /* INT64_MAX: none */
	int64_t stall_look_ns;
	int64_t resume_ns; /* when the first put or upload that waits may go on; INT64_MAX: none */
	int64_t abort_end_ns;             /* 0: not canceled */
	struct us_s3_slot **idle, **busy; /* concurrency pointers each */
	uint32_t idle_count, busy_count;
	uint32_t turn; /* which list is the next to be taken from */
	struct us_concurrency control;
	struct us_put *done, **done_tail; /* ended, not published yet */
	uint32_t done_count;
};

static void wake(struct us_s3_pool *pool)
{
	uint64_t one = 1;
	while (write(pool->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
	} /* else it is full: the thread is being woken already */
}

/* ---- the callers' side */

/* Ends a critical section in which a job was appended. */
static void unlock_and_wake(struct us_s3_pool *pool)
{
	int must_wake = pool->asleep;
	pool->asleep = 0;
	pthread_mutex_unlock(&pool->lock);
	if (must_wake) {
		wake(pool);
	}
}

/* Appends to the list of uploads. Wants the lock. */
static void append_upload(struct us_s3_pool *pool, struct us_s3_upload *upload)
{
	struct us_s3_upload **at = &pool->uploads;
	while (*at) {
		at = &(*at)->next;
	}
	upload->next = NULL;
	*at = upload;
}

static void start_upload(struct us_s3_store *store, struct us_put *put)
{
	struct us_s3_pool *pool = store->pool;
	struct us_s3_upload *upload = NULL;
	put->rc = us_s3_upload_new(store, put, &upload, &put->err);
	pthread_mutex_lock(&pool->lock);
	if (upload) {
		append_upload(pool, upload);
		pool->put_count++;
	} else {
		*pool->ended_tail = put;
		pool->ended_tail = &put->next;
		pool->ended_count++;
		pthread_cond_broadcast(&pool->ended_cond);
	}
	unlock_and_wake(pool);
}

void us_s3_put_start(struct us_store *base, struct us_put *put)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	put->next = NULL;
	put->rc = 0;
	us_error_clear(&put->err);
	if (put->len > US_S3_WHOLE_LEN_MAX) {
		start_upload((struct us_s3_store *)base, put);
		return;
	}
	pthread_mutex_lock(&pool->lock);
	*pool->puts_tail = put;
	pool->puts_tail = &put->next;
	pool->put_count++;
	unlock_and_wake(pool);
}

void us_s3_get_start(struct us_store *base, struct us_get *get)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	get->next = NULL;
	get->rc = 0;
	us_error_clear(&get->err);
	pthread_mutex_lock(&pool->lock);
	*pool->gets_tail = get;
	pool->gets_tail = &get->next;
	unlock_and_wake(pool);
}

static int enough_ended(const struct us_s3_pool *pool)
{
	return pool->ended_count >= ENDED_STEP || (pool->ended && pool->put_count == 0);
}

struct us_put *us_s3_put_wait(struct us_store *base, int32_t timeout_ms)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	pthread_mutex_lock(&pool->lock);
	for (int64_t left_ns; !enough_ended(pool) && timeout_ms > 0;) {
		left_ns = end_ns - us_clock_mono_ns();
		if (left_ns <= 0) {
			break;
		}
		(void)us_cond_wait_ns(&pool->ended_cond, &pool->lock,
				      left_ns < ENDED_WAIT_NS ? left_ns : ENDED_WAIT_NS);
		if (pool->ended) {
			break;
		}
	}
	struct us_put *list = pool->ended;
	pool->ended = NULL;
	pool->ended_tail = &pool->ended;
	pool->ended_count = 0;
	pthread_mutex_unlock(&pool->lock);
	return list;
}

uint32_t us_s3_pool_limit(struct us_store *base)
{
	struct us_s3_pool *pool = ((struct us_s3_store *)base)->pool;
	return atomic_load_explicit(&pool->limit, memory_order_relaxed);
}

int us_s3_pool_has_upload(struct us_s3_store *store, const char *key, const char *upload_id)
{
	struct us_s3_pool *pool = store->pool;
	int has = 0;
	pthread_mutex_lock(&pool->lock);
	for (struct us_s3_upload *u = pool->uploads; u && !has; u = u->next) {
		/* One that does not know its id yet may be any of its key. */
		has = strcmp(u->key, key) == 0 &&
		      (!atomic_load(&u->has_id) || strcmp(u->id, upload_id) == 0);
	}
	pthread_mutex_unlock(&pool->lock);
	return has;
}

void us_s3_pool_wake(struct us_s3_store *store)
{
	wake(store->pool);
}

/* ---- curl's callbacks, all on the pool's thread */

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

static int32_t open_multi(struct us_s3_pool *pool, struct us_error *err)
{
	long connections = (long)pool->store->concurrency + 8;
	pool->multi = curl_multi_init();
	int failed = !pool->multi;
#define SET(option, value) failed |= curl_multi_setopt(pool->multi, option, value) != CURLM_OK
	SET(CURLMOPT_SOCKETFUNCTION, on_socket); /* an error without a handle */
	SET(CURLMOPT_SOCKETDATA, pool);
	SET(CURLMOPT_TIMERFUNCTION, on_timer);
	SET(CURLMOPT_TIMERDATA, pool);
	SET(CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
	SET(CURLMOPT_MAXCONNECTS, connections);
#undef SET
	if (failed) {
		(void)curl_multi_cleanup(pool->multi); /* accepts NULL */
		pool->multi = NULL;
	}
	return failed ? us_fail_nomem(err) : 0;
}

void us_s3_pool_put_ended(struct us_s3_store *store, struct us_put *put)
{
	struct us_s3_pool *pool = store->pool;
	put->next = NULL;
	*pool->done_tail = put;
	pool->done_tail = &put->next;
	pool->done_count++;
}

static void end_job(struct us_s3_pool *pool, const struct us_s3_job *job, int32_t rc,
		    const struct us_error *err)
{
	job->kind->end(pool->store, job, rc, err);
}

static void slot_begin(struct us_s3_pool *pool, struct us_s3_slot *slot,
		       const struct us_s3_job *job)
{
	int32_t rc = us_s3_slot_begin(slot, job);
	if (!rc && !pool->multi) {
		rc = open_multi(pool, &slot->err);
	}
	if (!rc && curl_multi_add_handle(pool->multi, slot->transfer.easy)) {
		rc = us_fail_nomem(&slot->err);
	}
	if (rc) {
		pool->idle[pool->idle_count++] = slot;
		end_job(pool, job, rc, &slot->err);
		return;
	}
	slot->ticket = us_concurrency_started(&pool->control, us_clock_mono_ns());
	slot->busy_index = pool->busy_count;
	pool->busy[pool->busy_count++] = slot;
}

static void show_limit(struct us_s3_pool *pool)
{
	atomic_store_explicit(&pool->limit, pool->control.limit, memory_order_relaxed);
}

/* Takes SLOT, which ended with RC, off curl. */
static void slot_release(struct us_s3_pool *pool, struct us_s3_slot *slot, int32_t rc)
{
	int64_t now_ns = us_clock_mono_ns();
	us_s3_count(slot->counts, &slot->transfer, rc ? 0 : slot->payload_len);
	if (rc == 0) {
		us_concurrency_succeeded(&pool->control, slot->ticket, slot->payload_len, now_ns);
	} else if (us_s3_reply_is_throttle(&slot->transfer.reply)) {
		us_concurrency_throttled(&pool->control, slot->ticket);
	} else {
		us_concurrency_failed(&pool->control, slot->ticket, now_ns);
	}
	show_limit(pool);
	(void)curl_multi_remove_handle(pool->multi, slot->transfer.easy); /* it is in there */
	struct us_s3_slot *last = pool->busy[--pool->busy_count];
	pool->busy[slot->busy_index] = last;
	last->busy_index = slot->busy_index;
	pool->idle[pool->idle_count++] = slot;
}

/* Takes SLOT off curl and ends its job. RC and slot->err are final. May end others. */
static void slot_end(struct us_s3_pool *pool, struct us_s3_slot *slot, int32_t rc)
{
	slot_release(pool, slot, rc);
	end_job(pool, &slot->job, rc, &slot->err);
}

uint32_t us_s3_pool_drop(struct us_s3_store *store, const void *item, int all)
{
	struct us_s3_pool *pool = store->pool;
	uint32_t count = 0;
	for (uint32_t i = pool->busy_count; i-- > 0;) { /* releasing one moves the last here */
		struct us_s3_slot *slot = pool->busy[i];
		if (slot->job.item == item && (all || slot->body_done < slot->body.len)) {
			slot_release(pool, slot, US_E_CANCELED);
			count++;
		}
	}
	return count;
}

void us_s3_pool_upload_over(struct us_s3_store *store, struct us_s3_upload *upload)
{
	struct us_s3_pool *pool = store->pool;
	pthread_mutex_lock(&pool->lock);
	struct us_s3_upload **at = &pool->uploads;
	while (*at != upload) {
		at = &(*at)->next;
	}
	*at = upload->next;
	pthread_mutex_unlock(&pool->lock);
	us_s3_upload_free(upload);
}

/* ---- what has ended */

/* Puts SLOT back on curl if that is worth while. */
static int resend(struct us_s3_pool *pool, struct us_s3_slot *slot, CURLcode result)
{
	if (!us_s3_slot_resend(slot, result)) {
		return 0;
	}
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
		struct us_s3_slot *slot = NULL;
		CURLcode result = msg->data.result; /* MSG goes with the handle's removal */
		(void)curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &slot); /* was set */
		if (resend(pool, slot, result)) {
			continue;
		}
		slot_end(pool, slot, us_s3_slot_result(slot, result));
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
		if (i >= pool->busy_count) {            /* it has ended others, too */
			continue;
		}
		struct us_s3_slot *slot = pool->busy[i];
		if (us_s3_transfer_is_stalled(&slot->transfer, now_ns)) {
			slot_end(pool, slot,
				 us_s3_transfer_fail_stalled(&slot->transfer, &slot->err));
		}
	}
}

/* Whether a put or part may start, or be canceled. */
static int may_send(const struct us_s3_pool *pool, int64_t now_ns)
{
	return pool->abort_end_ns || us_rate_may_send(&pool->store->rate, now_ns);
}

/* Whether UPLOAD has something to send that may be sent. */
static int is_ready(const struct us_s3_pool *pool, const struct us_s3_upload *upload,
		    int64_t now_ns)
{
	return us_s3_upload_is_ready(upload, now_ns) &&
	       (upload->state != US_S3_UPLOAD_PARTS || may_send(pool, now_ns));
}

static int take_put(struct us_s3_pool *pool, struct us_s3_job *ret_job)
{
	struct us_put *put = pool->puts;
	if (!put || !may_send(pool, us_clock_mono_ns())) {
		return 0;
	}
	pool->puts = put->next;
	pool->puts_tail = pool->puts ? pool->puts_tail : &pool->puts;
	*ret_job = (struct us_s3_job){ .kind = &us_s3_kind_put, .item = put };
	return 1;
}

static int take_get(struct us_s3_pool *pool, struct us_s3_job *ret_job)
{
	struct us_get *get = pool->gets;
	if (!get) {
		return 0;
	}
	pool->gets = get->next;
	pool->gets_tail = pool->gets ? pool->gets_tail : &pool->gets;
	*ret_job = (struct us_s3_job){ .kind = &us_s3_kind_get, .item = get };
	return 1;
}

/* Asks the uploads for a step; the one that has one goes to the end of the list. */
static int take_step(struct us_s3_pool *pool, struct us_s3_job *ret_job)
{
	int64_t now_ns = pool->uploads ? us_clock_mono_ns() : 0;
	for (struct us_s3_upload **at = &pool->uploads; *at; at = &(*at)->next) {
		struct us_s3_upload *upload = *at;
		if (is_ready(pool, upload, now_ns)) {
			*ret_job = us_s3_upload_next(upload);
			*at = upload->next;
			append_upload(pool, upload);
			return 1;
		}
	}
	return 0;
}

/* Takes the next job from the list whose turn it is, or else from another; of the COUNT
 * lists from FIRST. */
static int take_waiting(struct us_s3_pool *pool, uint32_t first, uint32_t count,
			struct us_s3_job *ret_job)
{
	static int (*const take[])(struct us_s3_pool *, struct us_s3_job *) = {
		[LIST_PUTS] = take_put, [LIST_GETS] = take_get, [LIST_STEPS] = take_step
	};
	int taken = 0;
	pthread_mutex_lock(&pool->lock);
	for (uint32_t i = 0; i < count && !taken; i++) {
		taken = take[first + pool->turn++ % count](pool, ret_job);
	}
	pthread_mutex_unlock(&pool->lock);
	return taken;
}

/* The first upload that is not being aborted, or (ANY) at all. */
static struct us_s3_upload *find_upload(struct us_s3_pool *pool, int any)
{
	pthread_mutex_lock(&pool->lock);
	struct us_s3_upload *upload = pool->uploads;
	while (upload && !any && upload->state == US_S3_UPLOAD_ABORT) {
		upload = upload->next;
	}
	pthread_mutex_unlock(&pool->lock);
	return upload;
}

/* Ends everything but aborts, and those too when their time is over. */
static void cancel_all(struct us_s3_pool *pool)
{
	struct us_error err = US_ERROR_INIT;
	struct us_s3_upload *upload;
	(void)us_fail(&err, US_E_CANCELED, "canceled");
	int64_t now_ns = us_clock_mono_ns();
	if (pool->abort_end_ns == 0) {
		pool->abort_end_ns = now_ns + ABORT_MS_MAX * US_NS_PER_MS;
	}
	while ((upload = find_upload(pool, now_ns >= pool->abort_end_ns)) != NULL) {
		us_s3_upload_cancel(pool->store, upload, &err);
	}
	for (uint32_t i = pool->busy_count; i-- > 0;) { /* ending one moves the last here */
		struct us_s3_slot *slot = pool->busy[i];
		if (slot->job.kind == &us_s3_kind_put || slot->job.kind == &us_s3_kind_get) {
			slot->err = err;
			slot_end(pool, slot, US_E_CANCELED);
		}
	}
	struct us_s3_job job;
	while (take_waiting(pool, LIST_PUTS, 2, &job)) {
		end_job(pool, &job, US_E_CANCELED, &err);
	}
}

static int take_now(struct us_s3_pool *pool, struct us_s3_job *ret_job)
{
	if (pool->busy_count >= pool->control.limit) {
		return 0;
	}
	return pool->abort_end_ns ? take_waiting(pool, LIST_STEPS, 1, ret_job)
				  : take_waiting(pool, LIST_PUTS, 3, ret_job);
}

static void begin_waiting(struct us_s3_pool *pool)
{
	for (struct us_s3_job job; take_now(pool, &job);) {
		struct us_error err = US_ERROR_INIT;
		struct us_s3_slot *slot = pool->idle_count > 0 ? pool->idle[--pool->idle_count]
							       : us_s3_slot_new(pool->store, &err);
		if (slot) {
			slot_begin(pool, slot, &job);
		} else {
			end_job(pool, &job, US_E_NOMEM, &err);
		}
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
	pool->ended_count += pool->done_count;
	pool->put_count -= pool->done_count;
	if (enough_ended(pool)) {
		pthread_cond_broadcast(&pool->ended_cond);
	}
	pthread_mutex_unlock(&pool->lock);
	pool->done = NULL;
	pool->done_tail = &pool->done;
	pool->done_count = 0;
}

/* ---- the loop */

static int wait_ms(struct us_s3_pool *pool)
{
	int64_t until_ns = pool->curl_deadline_ns;
	if (pool->busy_count > 0 && pool->stall_look_ns < until_ns) {
		until_ns = pool->stall_look_ns;
	}
	int64_t look_ns = us_concurrency_due_ns(&pool->control);
	until_ns = look_ns < until_ns ? look_ns : until_ns;
	until_ns = pool->resume_ns < until_ns ? pool->resume_ns : until_ns;
	if (until_ns == INT64_MAX) {
		return -1;
	}
	int64_t left_ns = until_ns - us_clock_mono_ns();
	int64_t ms = left_ns <= 0 ? 0 : (left_ns + US_NS_PER_MS - 1) / US_NS_PER_MS;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

/* Whether something could be started; sets when to look again. Wants the lock. */
static int has_work(struct us_s3_pool *pool)
{
	int64_t now_ns = us_clock_mono_ns();
	int may = may_send(pool, now_ns);
	int has = pool->gets || (pool->puts && may);
	pool->resume_ns = pool->uploads && pool->abort_end_ns ? pool->abort_end_ns : INT64_MAX;
	if (!may && (pool->puts || pool->uploads) && pool->store->rate.due_ns < pool->resume_ns) {
		pool->resume_ns = pool->store->rate.due_ns;
	}
	for (const struct us_s3_upload *u = pool->uploads; u; u = u->next) {
		has |= is_ready(pool, u, now_ns);
		if (u->resume_ns > now_ns && u->resume_ns < pool->resume_ns) {
			pool->resume_ns = u->resume_ns;
		}
	}
	return has;
}

/* Whether the thread may sleep: there is nothing it could start. From here on
 * put_start and get_start wake it. */
static int may_sleep(struct us_s3_pool *pool)
{
	int is_full = pool->busy_count >= pool->control.limit;
	pthread_mutex_lock(&pool->lock);
	int has = has_work(pool);
	pool->asleep = !has || is_full;
	pthread_mutex_unlock(&pool->lock);
	if (!has && !is_full) {
		us_concurrency_starved(&pool->control, us_clock_mono_ns());
	}
	return !has || is_full;
}

/*
 * Lets curl act on FD. Where it is out of memory it leaves a hash table without slots with
 * the socket that it was about, and divides by their number at its next event (7.88.1,
 * singlesocket() in multi.c): all transfers end, and the next one gets a new handle.
 */
static void act(struct us_s3_pool *pool, curl_socket_t fd, int mask)
{
	int running;
	/* other results are per transfer, see collect() */
	if (curl_multi_socket_action(pool->multi, fd, mask, &running) != CURLM_OUT_OF_MEMORY) {
		return;
	}
	while (pool->busy_count > 0) {
		struct us_s3_slot *slot = pool->busy[pool->busy_count - 1];
		slot_end(pool, slot, us_fail_nomem(&slot->err));
	}
	(void)curl_multi_cleanup(pool->multi); /* closes its connections */
	pool->multi = NULL;
}

static void wait_events(struct us_s3_pool *pool)
{
	struct epoll_event events[EVENTS_MAX];
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
		act(pool, events[i].data.fd, mask);
	}
	if (pool->curl_deadline_ns <= us_clock_mono_ns()) {
		pool->curl_deadline_ns = INT64_MAX;
		act(pool, CURL_SOCKET_TIMEOUT, 0);
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
	for (;;) {
		int stopping = is_stopping(pool);
		if (stopping || atomic_load(&pool->store->canceled)) {
			cancel_all(pool);
		}
		if (stopping && !find_upload(pool, 1)) { /* nothing may stay in curl */
			break;
		}
		us_concurrency_look(&pool->control, us_clock_mono_ns());
		show_limit(pool);
		begin_waiting(pool);
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
	publish(pool);
	return NULL;
}

/* ---- opening and closing */

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
	pool->puts_tail = &pool->puts;
	pool->gets_tail = &pool->gets;
	pool->ended_tail = &pool->ended;
	pool->done_tail = &pool->done;
	pool->curl_deadline_ns = INT64_MAX;
	us_concurrency_init(&pool->control, concurrency);
	atomic_init(&pool->limit, pool->control.limit);
	/* NOLINTBEGIN(bugprone-sizeof-expression): they are arrays of pointers */
	pool->idle = us_alloc_array(concurrency, sizeof(*pool->idle));
	pool->busy = us_alloc_array(concurrency, sizeof(*pool->busy));
	/* NOLINTEND(bugprone-sizeof-expression) */
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
		us_s3_slot_free(pool->idle[i]);
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
