/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_S3_MULTIPART_H
#define US_STORE_S3_MULTIPART_H

#include "s3_slot.h"

/* One object on its way in parts. (s3_multipart.c) */

#define US_S3_WHOLE_LEN_MAX (UINT64_C(64) << 20) /* larger objects go in parts */
#define US_S3_OBJECT_LEN_MAX (UINT64_C(5) << 40) /* S3's limit */
#define US_S3_PARTS_AT_ONCE 8                    /* of one upload, so that it starves nobody */

enum us_s3_upload_state {
	US_S3_UPLOAD_CREATE,
	US_S3_UPLOAD_PARTS,
	US_S3_UPLOAD_DRAIN, /* has failed, and waits for parts that were sent */
	US_S3_UPLOAD_COMPLETE,
	US_S3_UPLOAD_ABORT, /* its put has been handed back */
};

struct us_s3_part {
	uint8_t sha256[US_SHA256_LEN];
	char etag[US_S3_ETAG_LEN_MAX + 1];
	uint8_t tries;
	uint8_t is_begun; /* sent, or being sent */
};

/* The pool's thread owns it once it is in the pool; other threads may look at KEY, at
 * HAS_ID and then at ID. */
struct us_s3_upload {
	struct us_s3_upload *next; /* the pool's list */
	char *key;
	char id[US_S3_UPLOAD_ID_LEN_MAX + 1];
	atomic_int has_id;
	struct us_put *put; /* NULL: handed back */
	enum us_s3_upload_state state;
	uint64_t part_len;
	struct us_s3_part *parts;
	uint32_t part_count;
	uint32_t scan;       /* no part before it is to be sent */
	uint32_t sent_count; /* acknowledged */
	uint32_t in_flight;
	uint32_t tries;      /* of a step that is no part */
	int64_t resume_ns;   /* nothing is sent before */
	struct us_text body; /* of the step that completes it */
	struct us_error err; /* why it drains */
};

/* Hashes the parts of PUT, on its caller's thread. 0, US_E_IO (the spool), US_E_CANCELED,
 * US_E_UNSUPPORTED (too long for S3), US_E_NOMEM. */
int32_t us_s3_upload_new(struct us_s3_store *store, struct us_put *put,
			 struct us_s3_upload **ret_upload, struct us_error *err);
void us_s3_upload_free(struct us_s3_upload *upload);

/* Whether there is something to send now, */
int us_s3_upload_is_ready(const struct us_s3_upload *upload, int64_t now_ns);
/* and what; only if it is. */
struct us_s3_job us_s3_upload_next(struct us_s3_upload *upload);

/* Hands its put back with ERR, and lets it be aborted if there is something to abort; one
 * that is being aborted ends. */
void us_s3_upload_cancel(struct us_s3_store *store, struct us_s3_upload *upload,
			 const struct us_error *err);

#endif
