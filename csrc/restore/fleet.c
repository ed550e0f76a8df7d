/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RESTORE and VERIFY: very many databases, one object each.
 *
 *	lister	the catalog; what is chosen becomes an item in `listed`
 *	worker	starts an item (what is in the way on disk? which object?) and hands its
 *		get to the store's pool; takes items whose object has come, decodes, checks
 *		and writes them to their temporary file; commits batches
 *	pump	the task's thread: takes completed gets to `ready`, lets retries come due,
 *		lets no batch grow older than BATCH_AGE
 *
 * A restored file gets its name in a batch (batch.c). A large object is fetched by its
 * worker alone, in parts. Everything out of the ordinary (an object that is bad, that
 * was replaced since it was listed, whose neighbours' names do not tell which one is the
 * one for the timestamp) goes the slow and exact way of restore.c.
 *
 * Points in time: an object's name is the start of its window, so at most a window
 * before its snapshot time, and after it only for a moment. So it is the newest whose
 * name is not after the timestamp, or, if that is too young, the one before. Names may
 * be ahead of snapshots by up to AHEAD_MAX_S where the clock was set back before a state
 * began; if a name that close follows, its trailer is looked at, too.
 *
 * Bounds: `listed` takes at most listed_max bytes, objects in memory at most staged_max
 * (one is always allowed), and at most flight_max items are worked on.
 *
 * An outage of the target stops the start of items (BRAKE_*), not the task, for up to
 * OUTAGE_MAX_NS. VERIFY: what is whole but not what the state knows is looked at once more
 * when all others are over (recheck).
 *
 * Locks: fleet.mutex, then nothing; never held across I/O. Those of made_dirs are: output.c.
 */
#include "fleet.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/thread.h"

#define WORKERS_MAX 32
#define WORKER_MEMORY_LEN (UINT64_C(2) << 20)
#define BATCH_LEAST 8
#define BATCH_AGE_NS US_NS_PER_S
#define PUMP_MS 20
/* After so many failures of the network in a row one item a second is tried, until it
 * works again, or nothing has worked for so long. */
#define BRAKE_FAILURES 20
#define BRAKE_NS US_NS_PER_S
#define OUTAGE_MAX_NS (60 * US_NS_PER_S)
#define DESCRIPTORS_SPARE 128
#define AHEAD_MAX_S 601
#define SAMPLE_FIRST 128
/* A running cycle commits at least every 5 s. */
#define RECHECK_NS (7 * US_NS_PER_S)

/* ----------------------------------------------------------------------- items */

static void push(struct us_fleet_items *list, struct us_fleet_item *item)
{
	item->next = NULL;
	if (!list->first) {
		list->last = &list->first;
	}
	*list->last = item;
	list->last = &item->next;
}

static struct us_fleet_item *pop(struct us_fleet_items *list)
{
	struct us_fleet_item *item = list->first;
	if (item) {
		list->first = item->next;
	}
	return item;
}

static struct us_fleet_item *item_new(const struct us_catalog_entry *entry)
{
	size_t path_len = strlen(entry->path) + 1, key_len = strlen(entry->key) + 1;
	size_t len = sizeof(struct us_fleet_item) + path_len + key_len;
	struct us_fleet_item *item = us_alloc_zero(len);
	if (item) {
		char *text = (char *)(item + 1);
		item->path = memcpy(text, entry->path, path_len);
		item->key_prefix = memcpy(text + path_len, entry->key, key_len);
		item->len = len;
	}
	return item;
}

void us_fleet_flight_free(struct us_fleet_item *item)
{
	struct us_fleet_flight *flight = item->flight;
	if (flight) {
		if (flight->is_open) {
			us_output_close(&flight->output);
		}
		us_free(flight->get.data);
		us_free(flight);
		item->flight = NULL;
	}
}

void us_fleet_item_free(struct us_fleet_item *item)
{
	if (item) {
		us_fleet_flight_free(item);
		us_free(item);
	}
}

static void free_all(struct us_fleet_items *list)
{
	for (struct us_fleet_item *item; (item = pop(list)) != NULL;) {
		us_fleet_item_free(item);
	}
}

static int is_over(const struct us_fleet *f)
{
	return f->lister_done && !f->listed.first && !f->ready.first && !f->retries.first &&
	       f->flight_count == 0;
}

/* ITEM is not worked on any more. Wants the mutex. */
static void uncount(struct us_fleet *f, struct us_fleet_item *item)
{
	if (item->is_counted) {
		f->flight_count--;
		f->staged_len -= item->staged_len;
		item->is_counted = 0;
	}
	if (is_over(f)) { /* else the worker that is done goes on itself */
		(void)pthread_cond_broadcast(&f->work);
	}
}

void us_fleet_release(struct us_fleet *f, struct us_fleet_item *item)
{
	(void)pthread_mutex_lock(&f->mutex);
	uncount(f, item);
	(void)pthread_mutex_unlock(&f->mutex);
}

void us_fleet_batch_add(struct us_fleet *f, struct us_fleet_item *item)
{
	(void)pthread_mutex_lock(&f->mutex);
	if (f->batch->count == 0) {
		f->batch->first_ns = us_clock_mono_ns();
	}
	f->batch->items[f->batch->count++] = item;
	uncount(f, item);
	(void)pthread_mutex_unlock(&f->mutex);
}

void us_fleet_retry(struct us_fleet *f, struct us_fleet_item *item, int64_t due_ns)
{
	(void)pthread_mutex_lock(&f->mutex);
	item->due_ns = due_ns;
	push(&f->retries, item);
	uncount(f, item);
	(void)pthread_mutex_unlock(&f->mutex);
}

void us_fleet_suspect(struct us_fleet *f, struct us_fleet_item *item)
{
	us_fleet_flight_free(item); /* there may be as many as databases */
	(void)pthread_mutex_lock(&f->mutex);
	push(&f->suspects, item);
	uncount(f, item);
	(void)pthread_mutex_unlock(&f->mutex);
}

void us_fleet_note_network(struct us_fleet *f, const struct us_error *failure)
{
	(void)pthread_mutex_lock(&f->mutex);
	int64_t now_ns = us_clock_mono_ns();
	if (!failure) {
		f->network_failures = 0;
		f->brake_ns = 0;
	} else {
		f->network_failed_ns = f->network_failures ? f->network_failed_ns : now_ns;
		if (++f->network_failures >= BRAKE_FAILURES) {
			f->brake_ns = now_ns + BRAKE_NS;
		}
		if (now_ns - f->network_failed_ns > OUTAGE_MAX_NS && !f->given_up) {
			f->given_up = 1;
			f->gave_up_err = *failure;
			(void)pthread_cond_broadcast(&f->work);
		}
	}
	(void)pthread_mutex_unlock(&f->mutex);
}

int us_fleet_is_outage(struct us_fleet *f)
{
	(void)pthread_mutex_lock(&f->mutex);
	int is = f->network_failures >= BRAKE_FAILURES;
	(void)pthread_mutex_unlock(&f->mutex);
	return is;
}

void us_fleet_get(struct us_fleet *f, struct us_fleet_item *item)
{
	struct us_get *get = &item->flight->get;
	get->key = item->flight->choice.key;
	get->len = get->object_len = item->backup.object_len;
	get->queue = &f->gets;
	get->owner = item;
	(void)pthread_mutex_lock(&f->mutex);
	f->gets_out++;
	(void)pthread_mutex_unlock(&f->mutex);
	f->store->ops->get_start(f->store, get);
}

/* --------------------------------------------------------------------- listing */

static int is_stopped(const struct us_fleet *f)
{
	return f->task->cancel || f->given_up;
}

/* Counts ITEM and queues it; waits while too much is. */
static void add_listed(struct us_fleet *f, struct us_fleet_item *item)
{
	(void)pthread_mutex_lock(&f->task->mutex);
	f->task->progress.total_count++;
	f->task->progress.total_len += item->backup.object_len;
	(void)pthread_mutex_unlock(&f->task->mutex);
	(void)pthread_mutex_lock(&f->mutex);
	while (f->listed_len > f->listed_max && !is_stopped(f)) {
		(void)us_cond_wait_ns(&f->room, &f->mutex, US_NS_PER_S);
	}
	push(&f->listed, item);
	f->listed_len += item->len;
	(void)pthread_cond_signal(&f->work);
	(void)pthread_mutex_unlock(&f->mutex);
}

/* Keeps ITEM in the reservoir with the chance that each one has (algorithm R: Vitter,
 * "Random sampling with a reservoir", 1985); frees what does not stay. */
static int32_t sample_item(struct us_fleet *f, struct us_fleet_item *item)
{
	uint64_t random = 0;
	uint64_t seen = f->sample_seen++;
	uint64_t slot = seen;
	if (seen >= f->options->sample_count) {
		if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
			random = (uint64_t)us_clock_mono_ns(); /* a lesser sample */
		}
		slot = random % (seen + 1);
	}
	if (slot >= f->options->sample_count) {
		us_fleet_item_free(item);
		return 0;
	}
	if (slot == f->sample_cap) {
		size_t cap = f->sample_cap ? us_size_mul(f->sample_cap, 2) : SAMPLE_FIRST;
		struct us_fleet_item **sample =
			us_realloc(f->sample, us_size_mul(cap, sizeof(struct us_fleet_item *)));
		if (!sample) {
			us_fleet_item_free(item);
			return US_E_NOMEM;
		}
		f->sample = sample;
		f->sample_cap = cap;
	}
	if (slot < seen) {
		us_fleet_item_free(f->sample[slot]);
	}
	f->sample[slot] = item;
	return 0;
}

static void add_sample(struct us_fleet *f)
{
	for (uint64_t i = 0; i < f->options->sample_count && i < f->sample_seen; i++) {
		add_listed(f, f->sample[i]);
	}
	f->sample_seen = 0;
	us_free(f->sample);
	f->sample = NULL;
}

static void choose_by_timestamp(struct us_fleet_item *item, const struct us_catalog_entry *entry,
				int64_t timestamp_ns)
{
	int64_t limit_s = timestamp_ns / US_NS_PER_S + AHEAD_MAX_S;
	item->backup = entry->before;
	item->older = entry->before2;
	if (entry->after.time_s && entry->after.time_s <= limit_s) {
		item->after = entry->after;
	}
	item->is_slow = entry->before.time_s == 0;
}

/* VERIFY: databases on disk whose keys come before KEY (NULL: all the others) have
 * nothing in the target. */
static int32_t pass_local(struct us_fleet *f, const char *key)
{
	char path[US_PATH_LEN_MAX + 1];
	while (f->local_next < us_local_count(f->local)) {
		const char *local_key = us_local_key(f->local, f->local_next);
		int order = key ? us_key_compare(local_key, key) : -1;
		if (order > 0) {
			break;
		}
		f->local_next++;
		if (order < 0 &&
		    us_template_path(f->env.tmpl, local_key, strlen(local_key), path, NULL) >= 0 &&
		    us_task_chooses(f->task, path)) {
			int32_t rc = us_fleet_missing(f, path, 0);
			if (rc < 0) {
				return rc;
			}
		}
	}
	return 0;
}

static int32_t on_database(void *arg, const struct us_catalog_entry *entry)
{
	struct us_fleet *f = arg;
	int32_t rc = pass_local(f, entry->key);
	if (rc || is_stopped(f)) {
		return rc ? rc : US_E_CANCELED;
	}
	if (!us_task_chooses(f->task, entry->path)) {
		return 0;
	}
	rc = f->is_verify ? us_fleet_missing(f, entry->path, entry->newest.time_s) : 0;
	if (rc) {
		return rc < 0 ? rc : 0;
	}
	struct us_fleet_item *item = item_new(entry);
	if (!item) {
		return US_E_NOMEM;
	}
	item->backup = entry->newest;
	if (f->options->timestamp_ns) {
		choose_by_timestamp(item, entry, f->options->timestamp_ns);
	}
	if (f->options->sample_count) {
		return sample_item(f, item);
	}
	add_listed(f, item);
	return 0;
}

static void *lister_main(void *arg)
{
	struct us_fleet *f = arg;
	const struct us_catalog_fns fns = { .database = on_database, .is_patient = 1, .arg = f };
	struct us_catalog_result result;
	struct us_error err = US_ERROR_INIT;
	int32_t rc = us_catalog_run(f->store, f->env.tmpl, NULL, f->options->timestamp_ns,
				    UINT32_MAX, &fns, &f->task->cancel, &result, &err);
	add_sample(f);
	if (!rc) {
		rc = pass_local(f, NULL);
		us_task_listed(f->task, &result);
	}
	(void)pthread_mutex_lock(&f->mutex);
	f->lister_done = 1;
	f->list_rc = rc;
	f->list_err = err;
	(void)pthread_cond_broadcast(&f->work);
	(void)pthread_mutex_unlock(&f->mutex);
	return NULL;
}

/* ---------------------------------------------------------------------- workers */

static int may_start(struct us_fleet *f)
{
	struct us_fleet_item *item = f->listed.first;
	if (!item || (f->brake_ns && (f->flight_count > 0 || us_clock_mono_ns() < f->brake_ns))) {
		return 0;
	}
	uint64_t len = item->backup.object_len;
	item->staged_len = len <= f->small_len_max ? len : 0;
	return f->flight_count == 0 || (f->flight_count < f->flight_max &&
					f->staged_len + item->staged_len <= f->staged_max);
}

static struct us_fleet_item *take_listed(struct us_fleet *f)
{
	struct us_fleet_item *item = pop(&f->listed);
	f->listed_len -= item->len;
	f->staged_len += item->staged_len;
	f->flight_count++;
	item->is_counted = 1;
	(void)pthread_cond_signal(&f->room);
	return item;
}

/* The batch, if W is to commit it now: its empty one takes its place. Wants the mutex. */
static struct us_fleet_batch *take_batch(struct us_fleet *f, struct us_fleet_worker *w)
{
	struct us_fleet_batch *batch = f->batch;
	if (batch->count == 0 || (batch->count < f->batch_max && !f->flush && !is_over(f))) {
		return NULL;
	}
	f->batch = w->spare;
	w->spare = NULL;
	f->flush = 0;
	return batch;
}

static void *worker_main(void *arg)
{
	struct us_fleet_worker *w = arg;
	struct us_fleet *f = w->fleet;
	(void)pthread_mutex_lock(&f->mutex);
	while (!is_stopped(f)) {
		struct us_fleet_batch *batch = take_batch(f, w);
		struct us_fleet_item *ready = batch ? NULL : pop(&f->ready);
		struct us_fleet_item *listed =
			!batch && !ready && may_start(f) ? take_listed(f) : NULL;
		if (!batch && !ready && !listed) {
			if (is_over(f) && f->batch->count == 0) {
				break;
			}
			(void)us_cond_wait_ns(&f->work, &f->mutex, US_NS_PER_S);
			continue;
		}
		(void)pthread_mutex_unlock(&f->mutex);
		if (batch) {
			us_fleet_commit(w, batch);
			w->spare = batch;
		} else if (ready) {
			us_fleet_finish(w, ready);
		} else {
			us_fleet_start(w, listed);
		}
		(void)pthread_mutex_lock(&f->mutex);
	}
	f->running--;
	(void)pthread_cond_broadcast(&f->work);
	(void)pthread_mutex_unlock(&f->mutex);
	return NULL;
}

/* Moves retries that are due to `listed`. Wants the mutex. */
static int retries_due(struct us_fleet *f, int64_t now_ns)
{
	struct us_fleet_items waiting = { 0 };
	int moved = 0;
	for (struct us_fleet_item *item; (item = pop(&f->retries)) != NULL;) {
		if (item->due_ns > now_ns) {
			push(&waiting, item);
		} else {
			push(&f->listed, item);
			f->listed_len += item->len;
			moved = 1;
		}
	}
	f->retries = waiting;
	return moved;
}

/* Until no worker runs and nothing is with the store. */
static void pump(struct us_fleet *f)
{
	for (int more = 1; more;) {
		struct us_get *get = us_get_queue_wait(&f->gets, PUMP_MS);
		int64_t now_ns = us_clock_mono_ns();
		(void)pthread_mutex_lock(&f->mutex);
		while (get) {
			struct us_get *next = get->next;
			push(&f->ready, get->owner);
			f->gets_out--;
			(void)pthread_cond_signal(&f->work);
			get = next;
		}
		int changed = retries_due(f, now_ns) || (f->brake_ns && now_ns >= f->brake_ns);
		if (f->batch->count > 0 && now_ns - f->batch->first_ns > BATCH_AGE_NS) {
			f->flush = changed = 1;
		}
		if (changed) {
			(void)pthread_cond_broadcast(&f->work);
		}
		more = f->running > 0 || f->gets_out > 0;
		(void)pthread_mutex_unlock(&f->mutex);
	}
}

/* ------------------------------------------------------------- beginning and end */

/* A file without a name for the images that VERIFY lets SQLite check. */
static int open_scratch(const struct us_fleet *f)
{
	const char *const dirs[] = { f->task->view.state_dir, "/var/tmp", "/tmp" };
	int fd = -1;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]) && fd < 0; i++) {
		fd = open(dirs[i], O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	}
	return fd;
}

static int32_t start_worker(struct us_fleet *f, struct us_fleet_worker *w, struct us_error *err)
{
	w->fleet = f;
	w->fd = -1;
	w->spare = us_alloc_zero(sizeof(*w->spare));
	int32_t rc = w->spare ? us_fetch_new(&w->fetch, err) : us_fail_nomem(err);
	if (!rc && f->is_verify) {
		w->fd = open_scratch(f);
		rc = w->fd < 0 ? us_fail_errno(err, errno,
					       "no temporary file, in state_dir, /var/tmp or /tmp")
			       : 0;
	}
	if (rc) {
		return rc;
	}
	(void)pthread_mutex_lock(&f->mutex);
	f->running++;
	(void)pthread_mutex_unlock(&f->mutex);
	rc = us_thread_start(&w->thread, "us-restore", worker_main, w, err);
	w->started = !rc;
	if (rc) {
		(void)pthread_mutex_lock(&f->mutex);
		f->running--;
		(void)pthread_mutex_unlock(&f->mutex);
	}
	return rc;
}

/* Each item in flight has a directory and a file open, and so has each in a batch; every
 * worker may have a batch, and one is being filled. */
static void fit_descriptors(struct us_fleet *f)
{
	struct rlimit limit;
	uint64_t concurrency = f->task->view.concurrency;
	size_t spare = 4096;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur != RLIM_INFINITY) {
		uint64_t used = concurrency + DESCRIPTORS_SPARE;
		spare = limit.rlim_cur > used ? (size_t)(limit.rlim_cur - used) : 0;
	}
	while (f->worker_count > 1 && spare / ((size_t)4 * (f->worker_count + 1)) < BATCH_LEAST) {
		f->worker_count--;
	}
	f->flight_max = (size_t)concurrency + f->worker_count;
	if (f->flight_max > spare / 4) {
		f->flight_max = spare / 4 > f->worker_count ? spare / 4 : f->worker_count;
	}
	f->batch_max = spare / ((size_t)4 * (f->worker_count + 1));
	if (f->batch_max > US_FLEET_BATCH_MAX - WORKERS_MAX) {
		/* Workers that are at an item add it, however full the batch is by then. */
		f->batch_max = US_FLEET_BATCH_MAX - WORKERS_MAX;
	}
	f->batch_max = f->batch_max < BATCH_LEAST ? BATCH_LEAST : f->batch_max;
}

/* Each may have a download in parts. */
static uint32_t fit_workers(uint64_t memory_limit)
{
	uint64_t most = 2 * us_cpu_count() < WORKERS_MAX ? 2 * us_cpu_count() : WORKERS_MAX;
	uint64_t fits = memory_limit / 4 / WORKER_MEMORY_LEN;
	uint64_t count = most < fits ? most : fits;
	return count > 0 ? (uint32_t)count : 1;
}

static int32_t init(struct us_fleet *f, struct us_task *task, struct us_error *err)
{
	const struct us_fleet_view *view = &task->view;
	const char *prefix = us_pattern_prefix(view->pattern);
	f->task = task;
	f->options = &task->options;
	f->store = view->store;
	f->is_verify = task->options.kind == US_TASK_VERIFY;
	f->prefix_len = prefix[1] ? strlen(prefix) : 0;
	f->worker_count = fit_workers(view->memory_limit);
	f->staged_max = view->memory_limit / 4;
	f->listed_max = view->memory_limit / 4;
	f->small_len_max = f->staged_max / 4;
	if (f->small_len_max >= US_FETCH_PARTS_LEN_MIN) {
		f->small_len_max = US_FETCH_PARTS_LEN_MIN - 1;
	}
	fit_descriptors(f);
	f->env = (struct us_restore_env){
		.store = view->store,
		.tmpl = view->tmpl,
		.tree = task->options.output_dir ? task->options.output_dir : prefix,
		.memory_len = view->memory_limit / 4 / f->worker_count,
		.made_dirs = &f->made_dirs,
		.fallback = (task->options.flags & US_TASK_FALLBACK) != 0,
		.cancel = &task->cancel,
	};
	f->workers = us_alloc_array(f->worker_count, sizeof(*f->workers));
	f->batch = us_alloc_zero(sizeof(*f->batch));
	return f->workers && f->batch ? 0 : us_fail_nomem(err);
}

static int32_t init_sync(struct us_fleet *f, struct us_error *err)
{
	(void)pthread_mutex_init(&f->mutex, NULL); /* never fails on Linux */
	us_made_dirs_init(&f->made_dirs);
	int32_t rc = us_cond_init(&f->work, err);
	if (!rc) {
		rc = us_cond_init(&f->room, err);
	}
	return rc ? rc : us_get_queue_init(&f->gets, err);
}

static void done(struct us_fleet *f)
{
	for (uint32_t i = 0; f->workers && i < f->worker_count; i++) {
		struct us_fleet_worker *w = &f->workers[i];
		us_fetch_free(w->fetch);
		us_free(w->spare);
		if (w->fleet && w->fd >= 0) {
			(void)close(w->fd); /* scratch */
		}
	}
	for (size_t i = 0; f->batch && i < f->batch->count; i++) {
		us_fleet_item_free(f->batch->items[i]);
	}
	free_all(&f->listed);
	free_all(&f->ready);
	free_all(&f->retries);
	free_all(&f->suspects);
	us_free(f->batch);
	us_free(f->workers);
	us_local_free(f->local);
	us_get_queue_done(&f->gets);
	us_made_dirs_done(&f->made_dirs);
	(void)pthread_cond_destroy(&f->work); /* nobody waits any more */
	(void)pthread_cond_destroy(&f->room);
	(void)pthread_mutex_destroy(&f->mutex);
	us_free(f);
}

/*
 * The suspects once more, against a state that is read anew: by then a `replicate` that
 * runs beside this has committed what it had acknowledged before.
 */
static int32_t recheck(struct us_fleet *f, struct us_error *err)
{
	const struct us_fleet_view *view = &f->task->view;
	int64_t end_ns = us_clock_mono_ns() + RECHECK_NS;
	while (us_clock_mono_ns() < end_ns) {
		if (f->task->cancel) {
			return US_E_CANCELED;
		}
		us_clock_sleep_ns(PUMP_MS * US_NS_PER_MS);
	}
	struct us_table *table;
	struct us_state *state = NULL;
	int32_t rc = us_table_new(&table, err);
	if (rc) {
		return rc;
	}
	rc = us_state_open_read_only(view->state_dir, view->identity, table, &state, err);
	for (struct us_fleet_item *item;
	     !rc && !f->task->cancel && (item = pop(&f->suspects)) != NULL;) {
		us_fleet_recheck(&f->workers[0], item, state, table);
	}
	us_state_close(state);
	us_table_free(table);
	return rc;
}

static int32_t run_threads(struct us_fleet *f, struct us_error *err)
{
	pthread_t lister;
	int32_t rc = us_thread_start(&lister, "us-list", lister_main, f, err);
	if (rc) {
		return rc;
	}
	for (uint32_t i = 0; i < f->worker_count && !rc; i++) {
		rc = start_worker(f, &f->workers[i], err);
	}
	if (rc) {
		(void)pthread_mutex_lock(&f->mutex);
		f->given_up = 1;
		(void)pthread_cond_broadcast(&f->work);
		(void)pthread_mutex_unlock(&f->mutex);
	}
	pump(f);
	for (uint32_t i = 0; i < f->worker_count; i++) {
		if (f->workers[i].started) {
			(void)pthread_join(f->workers[i].thread, NULL); /* ours, joined once */
		}
	}
	(void)pthread_mutex_lock(&f->mutex);
	(void)pthread_cond_broadcast(&f->room);
	(void)pthread_mutex_unlock(&f->mutex);
	(void)pthread_join(lister, NULL);
	if (rc) {
		return rc;
	}
	if (f->given_up && !f->task->cancel) {
		us_fleet_commit(&f->workers[0], f->batch); /* what is complete */
		return us_fail(err, US_E_NETWORK,
			       "given up: the target could not be reached for a minute: %s",
			       f->gave_up_err.message);
	}
	if (f->suspects.first) {
		rc = recheck(f, err);
	}
	if (f->list_rc) {
		*err = f->list_err;
	}
	return f->list_rc ? f->list_rc : rc;
}

int32_t us_fleet_run(struct us_task *task, struct us_error *err)
{
	struct us_fleet *f = us_alloc_zero(sizeof(*f));
	if (!f) {
		return US_E_NOMEM;
	}
	int32_t rc = init_sync(f, err);
	if (rc) {
		us_free(f);
		return rc;
	}
	rc = init(f, task, err);
	if (!rc && f->is_verify && !task->view.state &&
	    task->view.state_error->code != US_E_NOTFOUND) {
		*err = *task->view.state_error; /* nothing can be compared with it */
		rc = err->code;
	}
	if (!rc && f->is_verify) {
		rc = us_task_walk(task, &f->local, err);
	}
	if (!rc) {
		rc = run_threads(f, err);
	}
	done(f);
	return rc;
}
