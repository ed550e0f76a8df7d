/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS Signature Version 4 ("Authenticating Requests: Using the Authorization
 * Header" in the S3 API reference):
 *
 *	canonical request = method \n path \n query \n
 *	                    {name:trimmed value\n}... \n names joined by ';' \n payload hash
 *	string to sign    = "AWS4-HMAC-SHA256" \n time \n scope \n hex(sha256(canonical request))
 *	scope             = day/region/s3/aws4_request
 *	signing key       = hmac(hmac(hmac(hmac("AWS4" secret, day), region), "s3"), "aws4_request")
 *	signature         = hex(hmac(signing key, string to sign))
 *
 * The canonical request is hashed as it is put together, never stored. For S3 the
 * path is encoded once and not normalized, so it is the path on the wire.
 * Intermediate keys are wiped on every way out. No locks, no state of its own.
 */
#include "sigv4.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "../base/hex.h"

static const char algorithm[] = "AWS4-HMAC-SHA256";
static const char service[] = "s3";
static const char terminator[] = "aws4_request";

/* Printable ASCII without spaces, at most LEN_MAX bytes: what a header can carry. */
static int is_token(const char *text, size_t len_max)
{
	size_t len = strnlen(text, len_max + 1);
	if (len > len_max) {
		return 0;
	}
	for (size_t i = 0; i < len; i++) {
		if (text[i] <= ' ' || text[i] > '~') {
			return 0;
		}
	}
	return 1;
}

int32_t us_sigv4_identity_set(struct us_sigv4_identity *identity, const char *access_key_id,
			      const char *secret, const char *token, struct us_error *err)
{
	const char *t = token ? token : "";
	if (!is_token(access_key_id, US_ACCESS_KEY_ID_LEN_MAX)) {
		return us_fail(err, US_E_ARG,
			       "access_key_id: not a key id (spaces, control bytes or "
			       "more than %d bytes)",
			       US_ACCESS_KEY_ID_LEN_MAX);
	}
	if (!is_token(secret, US_SECRET_LEN_MAX) || !is_token(t, US_TOKEN_LEN_MAX)) {
		return us_fail(err, US_E_ARG,
			       "secret_access_key or session token: spaces, control "
			       "bytes or too long");
	}
	if ((access_key_id[0] == '\0') != (secret[0] == '\0')) {
		return us_fail(err, US_E_ARG,
			       "access_key_id and secret_access_key: only one of them "
			       "is set; set both, or neither for anonymous requests");
	}
	us_sigv4_identity_wipe(identity);
	memcpy(identity->access_key_id, access_key_id, strlen(access_key_id) + 1);
	memcpy(identity->secret, secret, strlen(secret) + 1);
	memcpy(identity->token, t, strlen(t) + 1);
	return 0;
}

void us_sigv4_identity_wipe(struct us_sigv4_identity *identity)
{
	OPENSSL_cleanse(identity, sizeof(*identity));
}

static int hmac_sha256(const void *key, size_t key_len, const char *data, size_t data_len,
		       uint8_t ret_mac[US_SHA256_LEN])
{
	return HMAC(EVP_sha256(), key, (int)key_len, (const unsigned char *)data, data_len, ret_mac,
		    NULL) != NULL;
}

static int derive_key(struct us_sigv4_identity *identity, const char *day, const char *region)
{
	char first[4 + US_SECRET_LEN_MAX + 1] = "AWS4";
	uint8_t key[US_SHA256_LEN];
	size_t secret_len = strlen(identity->secret);
	memcpy(first + 4, identity->secret, secret_len);
	int ok = hmac_sha256(first, 4 + secret_len, day, US_SIGV4_DAY_LEN, key) &&
		 hmac_sha256(key, sizeof(key), region, strlen(region), key) &&
		 hmac_sha256(key, sizeof(key), service, sizeof(service) - 1, key) &&
		 hmac_sha256(key, sizeof(key), terminator, sizeof(terminator) - 1, key);
	if (ok) {
		memcpy(identity->signing_key, key, sizeof(key));
		memcpy(identity->signing_day, day, US_SIGV4_DAY_LEN);
		identity->signing_day[US_SIGV4_DAY_LEN] = '\0';
		memcpy(identity->signing_region, region, strlen(region) + 1);
		identity->derived_count++;
	}
	OPENSSL_cleanse(first, sizeof(first));
	OPENSSL_cleanse(key, sizeof(key));
	return ok;
}

static int ensure_key(struct us_sigv4_identity *identity, const char *day, const char *region)
{
	if (strncmp(identity->signing_day, day, US_SIGV4_DAY_LEN) == 0 &&
	    strcmp(identity->signing_region, region) == 0) {
		return 1;
	}
	identity->signing_day[0] = '\0';
	return strlen(region) <= US_REGION_LEN_MAX && derive_key(identity, day, region);
}

/* SHA-256 over pieces. It only computes: whether all of it went well is asked at the end. */
struct digest {
	EVP_MD_CTX *ctx;
	int failed;
};

static void digest(struct digest *d, const char *bytes, size_t len)
{
	d->failed |= !EVP_DigestUpdate(d->ctx, bytes, len);
}

static void digest_text(struct digest *d, const char *text)
{
	digest(d, text, strlen(text));
}

/* A header's value without outer blanks, inner runs of them as one space. */
static void digest_value(struct digest *d, const char *value, size_t len)
{
	const char *space = "";
	size_t i = 0;
	for (;;) {
		while (i < len && (value[i] == ' ' || value[i] == '\t')) {
			i++;
		}
		size_t start = i;
		while (i < len && value[i] != ' ' && value[i] != '\t') {
			i++;
		}
		if (i == start) {
			return;
		}
		digest_text(d, space);
		digest(d, value + start, i - start);
		space = " ";
	}
}

static void digest_request(struct digest *d, const struct us_sigv4_request *request)
{
	const char *const lines[] = { request->method, request->path, request->query };
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		digest_text(d, lines[i]);
		digest_text(d, "\n");
	}
	for (size_t i = 0; i < request->header_count; i++) {
		const struct us_sigv4_header *header = &request->headers[i];
		digest(d, header->name, header->name_len);
		digest_text(d, ":");
		digest_value(d, header->value, header->value_len);
		digest_text(d, "\n");
	}
	digest_text(d, "\n");
	for (size_t i = 0; i < request->header_count; i++) {
		digest_text(d, i > 0 ? ";" : "");
		digest(d, request->headers[i].name, request->headers[i].name_len);
	}
	digest_text(d, "\n");
	digest_text(d, request->payload_sha256);
}

static int hash_request(const struct us_sigv4_request *request, char ret_hex[US_SHA256_HEX_LEN + 1])
{
	uint8_t hash[US_SHA256_LEN];
	struct digest d = { .ctx = EVP_MD_CTX_new() };
	if (!d.ctx || !EVP_DigestInit_ex(d.ctx, EVP_sha256(), NULL)) {
		EVP_MD_CTX_free(d.ctx);
		return 0;
	}
	digest_request(&d, request);
	d.failed |= !EVP_DigestFinal_ex(d.ctx, hash, NULL);
	us_hex(hash, sizeof(hash), ret_hex);
	EVP_MD_CTX_free(d.ctx);
	return !d.failed;
}

static void add_scope(struct us_text *text, const struct us_sigv4_request *request)
{
	us_text_add(text, request->time, US_SIGV4_DAY_LEN);
	us_text_puts(text, "/");
	us_text_puts(text, request->region);
	us_text_puts(text, "/s3/aws4_request");
}

/* The string to sign goes through RET_VALUE's memory, so that nothing is
 * allocated for it: RET_VALUE is as before afterwards. */
static int sign(const struct us_sigv4_identity *identity, const struct us_sigv4_request *request,
		const char *request_hash, struct us_text *scratch,
		char ret_hex[US_SHA256_HEX_LEN + 1])
{
	size_t start = scratch->len;
	us_text_puts(scratch, algorithm);
	us_text_puts(scratch, "\n");
	us_text_add(scratch, request->time, US_SIGV4_TIME_LEN);
	us_text_puts(scratch, "\n");
	add_scope(scratch, request);
	us_text_puts(scratch, "\n");
	us_text_puts(scratch, request_hash);
	uint8_t mac[US_SHA256_LEN];
	int ok = !scratch->failed &&
		 hmac_sha256(identity->signing_key, sizeof(identity->signing_key),
			     scratch->data + start, scratch->len - start, mac);
	if (ok) {
		us_hex(mac, sizeof(mac), ret_hex);
		scratch->len = start;
		scratch->data[start] = '\0';
	}
	return ok;
}

int32_t us_sigv4_authorization(struct us_sigv4_identity *identity,
			       const struct us_sigv4_request *request, struct us_text *ret_value,
			       struct us_error *err)
{
	char request_hash[US_SHA256_HEX_LEN + 1];
	char signature[US_SHA256_HEX_LEN + 1];
	US_ASSERT(!us_sigv4_is_anonymous(identity));
	if (!ensure_key(identity, request->time, request->region) ||
	    !hash_request(request, request_hash) ||
	    !sign(identity, request, request_hash, ret_value, signature)) {
		return us_fail_nomem(err);
	}
	us_text_puts(ret_value, algorithm);
	us_text_puts(ret_value, " Credential=");
	us_text_puts(ret_value, identity->access_key_id);
	us_text_puts(ret_value, "/");
	add_scope(ret_value, request);
	us_text_puts(ret_value, ", SignedHeaders=");
	for (size_t i = 0; i < request->header_count; i++) {
		us_text_add(ret_value, ";", i > 0);
		us_text_add(ret_value, request->headers[i].name, request->headers[i].name_len);
	}
	us_text_puts(ret_value, ", Signature=");
	us_text_puts(ret_value, signature);
	return ret_value->failed ? us_fail_nomem(err) : 0;
}

/* The byte that encoding puts in place of C, as far as order goes: an escape
 * begins with '%', which is below every unreserved byte; two escapes compare by
 * their upper-case hex digits, in the order of the bytes themselves. */
static int encoded_rank(char c)
{
	return us_is_unreserved(c) ? 256 + (unsigned char)c : (unsigned char)c;
}

static int compare_encoded(const char *a, size_t a_len, const char *b, size_t b_len)
{
	size_t len = a_len < b_len ? a_len : b_len;
	for (size_t i = 0; i < len; i++) {
		int order = encoded_rank(a[i]) - encoded_rank(b[i]);
		if (order != 0) {
			return order;
		}
	}
	return (a_len > b_len) - (a_len < b_len);
}

static int compare_pairs(const struct us_sigv4_query_pair *a, const struct us_sigv4_query_pair *b)
{
	int order = compare_encoded(a->name, a->name_len, b->name, b->name_len);
	return order != 0 ? order : compare_encoded(a->value, a->value_len, b->value, b->value_len);
}

void us_sigv4_add_query(struct us_text *text, struct us_sigv4_query_pair *pairs, size_t count)
{
	for (size_t i = 1; i < count; i++) { /* insertion sort: a handful of pairs */
		struct us_sigv4_query_pair pair = pairs[i];
		size_t at = i;
		for (; at > 0 && compare_pairs(&pairs[at - 1], &pair) > 0; at--) {
			pairs[at] = pairs[at - 1];
		}
		pairs[at] = pair;
	}
	for (size_t i = 0; i < count; i++) {
		us_text_add(text, "&", i > 0);
		us_text_add_encoded(text, pairs[i].name, pairs[i].name_len, 0);
		us_text_puts(text, "=");
		us_text_add_encoded(text, pairs[i].value, pairs[i].value_len, 0);
	}
}
