/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TRACK_STATE_H
#define US_TRACK_STATE_H

#include "table.h"

/*
 * The state file `<state_dir>/state.db` (SQLite) and the lock `<state_dir>/lock`.
 * docs/formats.md has the schema. One thread at a time.
 */
struct us_state;

struct us_state_info {
	struct us_siphash_key key; /* seed of path hashes and fingerprints */
	uint32_t epoch_s;	   /* no object may be named lower */
	uint32_t window_s;
	int64_t high_water_ns; /* no snapshot time may be lower or equal */
	uint32_t target_known; /* 0: the names in the target have not been looked at yet */
	int64_t last_sweep_s;  /* start of the last complete sweep, since 1970; 0: none */
	int64_t commits;       /* how often us_state_commit has committed */
};

/* A record to be committed. */
struct us_state_change {
	uint64_t path_hash;
	uint64_t object_len; /* of its last object, just acknowledged; 0: nothing new is known */
};

/*
 * Takes the lock and opens the state of TARGET (a text that identifies kind,
 * endpoint, bucket or directory, template and format) into TABLE, which is empty.
 * Where there is none, or it is damaged or foreign, a new one is begun and
 * RET_RESET (RESET_CAP bytes) says why in one line, else it is "".
 * WINDOW_S other than the one recorded moves the epoch to NOW_S, and so does a
 * state that was not closed (what the killed run sent last may not be recorded).
 *
 * US_E_LOCKED with the holder's pid; US_E_ACCESS, US_E_IO, US_E_STATE, US_E_NOMEM.
 */
int32_t us_state_open(const char *state_dir, const char *target, uint32_t window_s, uint32_t now_s,
		      struct us_table *table, char *ret_reset, size_t reset_cap,
		      struct us_state **ret_state, struct us_error *err);

/* Only reads, takes no lock. US_E_NOTFOUND if there is no state of TARGET,
 * US_E_STATE if it is damaged, US_E_ACCESS, US_E_IO if it cannot be read. */
int32_t us_state_open_read_only(const char *state_dir, const char *target, struct us_table *table,
				struct us_state **ret_state, struct us_error *err);

/* 0, or US_E_STATE if the files that it has open are not those in the directory any more. */
int32_t us_state_check(const struct us_state *state, struct us_error *err);

const struct us_state_info *us_state_info(const struct us_state *state);

/*
 * Commits, in one transaction: the present records of CHANGES (one whose record is gone
 * from TABLE is deleted), or, WHOLE, of all of TABLE, and the info fields given. After a
 * failure the next commit writes the whole table. An object's length is kept with the
 * record as long as that is about the same object.
 */
int32_t us_state_commit(struct us_state *state, struct us_table *table,
			const struct us_state_change *changes, size_t change_count, int whole,
			int64_t high_water_ns, int64_t last_sweep_s, struct us_error *err);

/* Records that the target's names have been looked at, the newest being
 * NEWEST_NAME_S (0: none): the epoch moves past it. Commits. */
int32_t us_state_set_target_known(struct us_state *state, uint32_t newest_name_s,
				  int64_t high_water_ns, struct us_error *err);

/* Takes that back: the names in the target are to be looked at again. Commits. */
int32_t us_state_forget_target(struct us_state *state, struct us_error *err);

/*
 * The lengths of objects as they were committed last: a connection of its own, so that
 * one thread may read them (and only that one) beside the thread that commits, and
 * neither waits for the other. Freed, before the state, with us_state_lengths_close
 * (NULL is accepted). US_E_STATE, US_E_NOMEM.
 */
struct us_state_lengths;
int32_t us_state_lengths_open(const struct us_state *state, struct us_state_lengths **ret_lengths,
			      struct us_error *err);
void us_state_lengths_close(struct us_state_lengths *lengths);

/* The length of the object that RECORD (a copy) is about; 0: not known. */
uint64_t us_state_length(struct us_state_lengths *lengths, const struct us_record *record);

/* Marks the state as properly closed, releases the lock, frees. NULL is accepted. */
void us_state_close(struct us_state *state);

#endif
