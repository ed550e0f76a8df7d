/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_FLEET_H
#define US_RESTORE_FLEET_H

#include "batch.h"
#include "fetch.h"
#include "restore.h"
#include "task_internal.h"

/*
 * RESTORE and VERIFY. fleet.c has the threads and the queues, fleet_item.c what is done
 * with one database; the proof of both is at the top of fleet.c.
 */

#define US_FLEET_BATCH_MAX 256

/* One database on its way; texts lie behind the struct. */
struct us_fleet_item {
	struct us_fleet_item *next;
	const char *path; /* when it was backed up */
	const char *key_prefix;
	struct us_backup backup; /* the object to take */
	/* With a timestamp; time_s 0: none. */
	struct us_backup older; /* to take if BACKUP is too young */
	struct us_backup after; /* its snapshot may not be after the timestamp either */
	int is_slow;            /* restore.c has to choose */
	uint32_t tries;
	int64_t due_ns; /* of the next try, monotonic */
	uint64_t len;   /* of this allocation */
	int is_counted; /* in flight_count; and STAGED_LEN in staged_len */
	uint64_t staged_len;
	struct us_fleet_flight *flight;
};

/* What an item has only while it is being worked on. */
struct us_fleet_flight {
	struct us_get get;
	int is_open;    /* output */
	int is_blocked; /* by somebody else in its directory */
	struct us_output output;
	struct us_choice choice;
	/* of its trailer */
	int64_t snapshot_ns;
	uint64_t database_len;
	uint32_t mode, page_size;
	char output_path[PATH_MAX];
};

struct us_fleet_items {
	struct us_fleet_item *first, **last;
};

struct us_fleet_batch {
	struct us_fleet_item *items[US_FLEET_BATCH_MAX];
	size_t count;
	int64_t first_ns;
};

struct us_fleet_worker {
	struct us_fleet *fleet;
	pthread_t thread;
	int started;
	struct us_fetch *fetch;
	struct us_fleet_batch *spare; /* empty: takes the place of the one that is committed */
	int fd; /* VERIFY: where images go; else -1 */
	struct us_trailer trailer;
	struct us_batch_item batch_items[US_FLEET_BATCH_MAX];
	char escaped_path[US_TRAILER_PATH_LEN_MAX + 1];
};

struct us_fleet {
	struct us_task *task;
	const struct us_task_options *options;
	struct us_store *store;
	struct us_restore_env env;
	int is_verify;
	uint64_t small_len_max; /* of objects that are fetched by the pool as a whole */
	uint64_t listed_max, staged_max;
	size_t flight_max, batch_max;
	size_t prefix_len; /* of the pattern's prefix, without a trailing slash */
	struct us_get_queue gets;
	_Atomic uint32_t has_made_dirs;
	struct us_made_dirs made_dirs;
	struct us_fleet_worker *workers;
	uint32_t worker_count;
	/* the lister's */
	struct us_local *local; /* VERIFY: what is on disk */
	size_t local_next;
	struct us_fleet_item **sample; /* VERIFY with sample_count: a reservoir */
	size_t sample_cap;
	uint64_t sample_seen;

	pthread_mutex_t mutex; /* guards all below */
	pthread_cond_t work;   /* for workers */
	pthread_cond_t room;   /* for the lister */
	struct us_fleet_items listed, ready, retries;
	struct us_fleet_items suspects; /* VERIFY: whole, but not what the state knows */
	uint64_t listed_len, staged_len;
	size_t flight_count; /* items that are worked on or with the store */
	size_t gets_out;     /* with the store */
	uint32_t running;    /* worker threads */
	int lister_done;
	int32_t list_rc;
	struct us_error list_err;
	struct us_fleet_batch *batch; /* being filled */
	int flush;                    /* it is old enough */
	uint32_t network_failures;    /* in a row, since: */
	int64_t network_failed_ns;    /* monotonic */
	int64_t brake_ns;             /* nothing is started before */
	_Atomic int given_up;         /* the target cannot be reached, for this reason: */
	struct us_error gave_up_err;
};

/* fleet.c */
void us_fleet_item_free(struct us_fleet_item *item); /* accepts NULL */
void us_fleet_flight_free(struct us_fleet_item *item);
/* ITEM leaves the worker's hands: to the batch, or to be tried again at DUE_NS. */
void us_fleet_batch_add(struct us_fleet *fleet, struct us_fleet_item *item);
void us_fleet_retry(struct us_fleet *fleet, struct us_fleet_item *item, int64_t due_ns);
/* To be looked at once more when all others are over. */
void us_fleet_suspect(struct us_fleet *fleet, struct us_fleet_item *item);
/* It is over. */
void us_fleet_release(struct us_fleet *fleet, struct us_fleet_item *item);
/* A failure of the network, or (NULL) that it works. After many in a row all is given up. */
void us_fleet_note_network(struct us_fleet *fleet, const struct us_error *failure);
/* Whether nothing has come from the target for some failures. */
int us_fleet_is_outage(struct us_fleet *fleet);
/* Hands the item's get to the store. */
void us_fleet_get(struct us_fleet *fleet, struct us_fleet_item *item);

/* fleet_item.c */
/* From `listed` to the store, or to its end. */
void us_fleet_start(struct us_fleet_worker *worker, struct us_fleet_item *item);
/* Its get is over: to the batch, to its end, or to another try. */
void us_fleet_finish(struct us_fleet_worker *worker, struct us_fleet_item *item);
/* Ends all in BATCH, which is empty then. */
void us_fleet_commit(struct us_fleet_worker *worker, struct us_fleet_batch *batch);
/* VERIFY: a suspect, compared with STATE and TABLE, read just now. */
void us_fleet_recheck(struct us_fleet_worker *worker, struct us_fleet_item *item,
		      const struct us_state *state, struct us_table *table);
/* VERIFY: the newest object in the target of the database at PATH is named NEWEST_S (0:
 * there is none). 1, with a row, if the state knows a newer one. */
int32_t us_fleet_missing(struct us_fleet *fleet, const char *path, uint32_t newest_s);

#endif
