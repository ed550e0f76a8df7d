/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_ENDPOINT_H
#define US_STORE_ENDPOINT_H

#include "store.h"

/* Where an S3 store's requests go, worked out once from the options. Immutable
 * afterwards, so any thread reads it. */
struct us_s3_endpoint {
	char *origin; /* "https://host[:port]" as in URLs: no default port, no slash */
	char *host;   /* the Host header; points into origin */
	char *root;   /* path before the key's slash: "" or "/bucket" (encoded) */
	char *bucket;
	char *region;
	char *storage_class, *sse, *sse_kms_key_id; /* NULL: not sent */
	int skip_verify;
};

/* Copies what it needs. US_E_CONFIG ("endpoint: ...", "bucket: ..."), US_E_NOMEM. */
int32_t us_s3_endpoint_init(struct us_s3_endpoint *endpoint,
			    const struct us_store_s3_options *options, struct us_error *err);
void us_s3_endpoint_done(struct us_s3_endpoint *endpoint);

#endif
