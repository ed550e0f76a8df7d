/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_SIGV4_H
#define US_STORE_SIGV4_H

#include "../base/error.h"
#include "text.h"

/*
 * AWS Signature Version 4 for S3, in the Authorization header. All functions
 * work on their arguments alone; the caller serializes uses of one identity.
 */

#define US_SIGV4_TIME_LEN 16 /* "20060102T150405Z" */
#define US_SIGV4_DAY_LEN 8
#define US_SHA256_LEN 32
#define US_SHA256_HEX_LEN 64

#define US_ACCESS_KEY_ID_LEN_MAX 255
#define US_SECRET_LEN_MAX 511
#define US_TOKEN_LEN_MAX 8191
#define US_REGION_LEN_MAX 63

/* SHA-256 of nothing, in hex: the payload of GET, LIST and DELETE. */
#define US_SHA256_EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

/*
 * Who signs. The only place of the library where the secret is kept; wipe with
 * us_sigv4_identity_wipe. All zero: anonymous. The signing key is derived from
 * the secret once per day and region.
 */
struct us_sigv4_identity {
	char access_key_id[US_ACCESS_KEY_ID_LEN_MAX + 1];
	char secret[US_SECRET_LEN_MAX + 1];
	char token[US_TOKEN_LEN_MAX + 1]; /* "": none */
	uint8_t signing_key[US_SHA256_LEN];
	char signing_day[US_SIGV4_DAY_LEN + 1]; /* "": no key derived yet */
	char signing_region[US_REGION_LEN_MAX + 1];
	uint64_t derived_count; /* for the tests */
};

/* Replaces the identity. TOKEN may be NULL. US_E_ARG (IDENTITY untouched) if a
 * value is too long, holds a control byte, a space or a byte outside ASCII, or
 * only one of key and secret is given. */
int32_t us_sigv4_identity_set(struct us_sigv4_identity *identity, const char *access_key_id,
			      const char *secret, const char *token, struct us_error *err);
void us_sigv4_identity_wipe(struct us_sigv4_identity *identity);

static inline int us_sigv4_is_anonymous(const struct us_sigv4_identity *identity)
{
	return identity->access_key_id[0] == '\0';
}

/* One header to sign. NAME is lower-case; VALUE is as sent. */
struct us_sigv4_header {
	const char *name, *value;
	size_t name_len, value_len;
};

struct us_sigv4_request {
	const char *method;
	const char *path;                      /* encoded, from the first slash, as sent */
	const char *query;                     /* encoded and sorted, as sent; "" for none */
	const struct us_sigv4_header *headers; /* sorted by name */
	size_t header_count;
	const char *payload_sha256; /* hex */
	const char *time;           /* US_SIGV4_TIME_LEN bytes */
	const char *region;
};

/* Appends the value of the Authorization header to RET_VALUE. IDENTITY is not
 * anonymous; its cached key may be replaced. 0 or US_E_NOMEM. */
int32_t us_sigv4_authorization(struct us_sigv4_identity *identity,
			       const struct us_sigv4_request *request, struct us_text *ret_value,
			       struct us_error *err);

struct us_sigv4_query_pair {
	const char *name, *value;
	size_t name_len, value_len;
};

/* Appends NAME=VALUE pairs joined by `&`, encoded, in the order that AWS asks for
 * (by encoded name, then value). PAIRS is sorted in place. */
void us_sigv4_add_query(struct us_text *text, struct us_sigv4_query_pair *pairs, size_t count);

#endif
