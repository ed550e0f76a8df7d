/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_S3_SLOT_H
#define US_STORE_S3_SLOT_H

#include "s3_internal.h"

/*
 * One request of the pool: a slot runs a job, whose kind knows how to build the request,
 * where the answer's body goes and what it means. All of it on the pool's thread.
 */

struct us_s3_slot;

struct us_s3_job {
	const struct us_s3_kind *kind;
	void *item;    /* a us_put, a us_get, a us_s3_upload */
	uint32_t part; /* of such an upload, from 0 */
};

struct us_s3_kind {
	/* Builds SLOT's request, and sets what is sent and counted (body, counts,
	 * payload_len). 0 or the failure. */
	int32_t (*build)(struct us_s3_store *store, struct us_s3_slot *slot);
	/* Takes a piece of an answer's body; NULL: it is kept with the reply. 0, or why the
	 * transfer is of no use (in slot->err). */
	int32_t (*take)(struct us_s3_slot *slot, const char *data, size_t data_len);
	/* Judges a whole answer, or one of 300 and above. 0 or the failure, in slot->err. */
	int32_t (*check)(struct us_s3_store *store, struct us_s3_slot *slot);
	/* The end of JOB, which may never have been on a slot. ERR is of use if RC. */
	void (*end)(struct us_s3_store *store, const struct us_s3_job *job, int32_t rc,
		    const struct us_error *err);
	long receive_buffer_len;
	int has_body;      /* of the request, possibly an empty one */
	int is_paced;      /* the body is payload, and counts for the limit of bandwidth */
	uint32_t patience; /* how many stall times it gets; 0: one */
};

extern const struct us_s3_kind us_s3_kind_put; /* s3_put.c */
extern const struct us_s3_kind us_s3_kind_get; /* s3_get.c */

/* What a request sends: LEN bytes of memory, or of FD from offset OFF. */
struct us_s3_body {
	const uint8_t *data; /* NULL: in FD */
	int fd;
	uint64_t off, len;
};

struct us_s3_slot {
	struct us_s3_transfer transfer;
	struct us_s3_store *store;
	struct us_s3_job job; /* kind NULL: idle */
	int32_t rc;           /* what a callback found; 0: nothing */
	struct us_error err;
	struct us_s3_body body;
	uint64_t body_done;
	int sent_twice; /* the body has gone out whole before, without an answer */
	uint64_t received; /* what TAKE has taken */
	struct us_s3_kind_counts *counts;
	uint64_t payload_len; /* counted if it succeeds */
	uint32_t ticket;      /* the pool's, for its limit */
	uint32_t busy_index;  /* likewise */
};

/* NULL and US_E_NOMEM, or a slot, freed with us_s3_slot_free (accepts NULL). */
struct us_s3_slot *us_s3_slot_new(struct us_s3_store *store, struct us_error *err);
void us_s3_slot_free(struct us_s3_slot *slot);

/* Builds JOB's request and sets all of curl's options. 0, or the failure in slot->err. */
int32_t us_s3_slot_begin(struct us_s3_slot *slot, const struct us_s3_job *job);
/* Whether a request that ended with RESULT is to be added to curl again. */
int us_s3_slot_resend(struct us_s3_slot *slot, CURLcode result);
/* What RESULT and the answer mean: 0, or the failure in slot->err. */
int32_t us_s3_slot_result(struct us_s3_slot *slot, CURLcode result);

#endif
