/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From options to a URL's origin and root.
 *
 *	endpoint ""	 https://bucket.s3.region.amazonaws.com (regions cn-*: .com.cn);
 *			 a bucket with dots goes into the path, because the wildcard of
 *			 AWS's certificates covers one label
 *	path style	 endpoint/bucket
 *	else		 scheme://bucket.host[:port]
 *
 * The origin is put together anew from checked parts (letters, digits, `-._` or a
 * bracketed IPv6 address; a port that is not the scheme's default), so nothing
 * configured can smuggle a user name, a path or a header into a request.
 */
#include "endpoint.h"

#include <arpa/inet.h>
#include <string.h>

#include "../base/alloc.h"
#include "sigv4.h"
#include "text.h"

#define HOST_LEN_MAX 253
#define BUCKET_LEN_MAX 255
#define ORIGIN_LEN_MAX 1024
#define OPTION_LEN_MAX 2048 /* a KMS key's ARN is the longest */

struct parts {
	int https;
	const char *host; /* brackets included */
	size_t host_len;
	uint32_t port; /* 0: the scheme's default */
	int is_address;
};

static int is_host_byte(char c)
{
	return us_is_unreserved(c) && c != '~';
}

static int is_ipv6(const char *text, size_t len)
{
	char copy[INET6_ADDRSTRLEN];
	struct in6_addr address;
	if (len >= sizeof(copy)) {
		return 0;
	}
	memcpy(copy, text, len);
	copy[len] = '\0';
	return inet_pton(AF_INET6, copy, &address) == 1;
}

static int is_ipv4(const char *text, size_t len)
{
	char copy[INET_ADDRSTRLEN];
	struct in_addr address;
	if (len >= sizeof(copy)) {
		return 0;
	}
	memcpy(copy, text, len);
	copy[len] = '\0';
	return inet_pton(AF_INET, copy, &address) == 1;
}

/* The length of the host that TEXT begins with, or 0. */
static size_t parse_host(const char *text, int *ret_is_address)
{
	size_t len = 0;
	if (text[0] == '[') {
		const char *end = strchr(text, ']');
		if (!end || !is_ipv6(text + 1, (size_t)(end - text) - 1)) {
			return 0;
		}
		*ret_is_address = 1;
		return (size_t)(end - text) + 1;
	}
	while (is_host_byte(text[len])) {
		len++;
	}
	*ret_is_address = is_ipv4(text, len);
	return len > 0 && len <= HOST_LEN_MAX && text[0] != '.' && text[len - 1] != '.' ? len : 0;
}

/* ":1234" at *TEXT, moved past it. -1 if it is no port. */
static int parse_port(const char **text, uint32_t *ret_port)
{
	const char *p = *text;
	if (*p != ':') {
		return 0;
	}
	uint32_t port = 0;
	const char *start = ++p;
	for (; *p >= '0' && *p <= '9' && port <= 65535; p++) {
		port = port * 10 + (uint32_t)(*p - '0');
	}
	if (p == start || port == 0 || port > 65535) {
		return -1;
	}
	*text = p;
	*ret_port = port;
	return 0;
}

/* Only what can be in it without harm is shown: an endpoint with a user name and
 * password in it must not reach a message. */
static int32_t fail_endpoint(const char *endpoint, const char *why, struct us_error *err)
{
	if (strchr(endpoint, '@')) {
		return us_fail(err, US_E_CONFIG,
			       "endpoint: it holds an @; write http(s)://host[:port] "
			       "and put keys into access_key_id and "
			       "secret_access_key");
	}
	return us_fail(err, US_E_CONFIG,
		       "endpoint: %.200s: %s; write http(s)://host[:port], for example "
		       "https://s3.example.com or http://127.0.0.1:9000",
		       endpoint, why);
}

static int32_t parse_endpoint(const char *endpoint, struct parts *ret_parts, struct us_error *err)
{
	struct parts parts = { 0 };
	const char *rest;
	if (strncasecmp(endpoint, "https://", 8) == 0) {
		parts.https = 1;
		rest = endpoint + 8;
	} else if (strncasecmp(endpoint, "http://", 7) == 0) {
		rest = endpoint + 7;
	} else {
		return fail_endpoint(endpoint, "it does not begin with http:// or https://", err);
	}
	parts.host = rest;
	parts.host_len = parse_host(rest, &parts.is_address);
	if (parts.host_len == 0) {
		return fail_endpoint(endpoint, "the host is missing or not a host name", err);
	}
	rest += parts.host_len;
	if (parse_port(&rest, &parts.port)) {
		return fail_endpoint(endpoint, "the port is not in 1..65535", err);
	}
	if (rest[0] != '\0' && strcmp(rest, "/") != 0) {
		return fail_endpoint(endpoint, "something follows the host", err);
	}
	if (parts.port == (parts.https ? 443 : 80)) {
		parts.port = 0;
	}
	*ret_parts = parts;
	return 0;
}

static int32_t check_bucket(const char *bucket, struct us_error *err)
{
	size_t len = strnlen(bucket, BUCKET_LEN_MAX + 1);
	if (len == 0) {
		return us_fail(err, US_E_CONFIG, "bucket: empty; name the bucket");
	}
	int dots_only = 1;
	for (size_t i = 0; i < len; i++) {
		if (!is_host_byte(bucket[i])) {
			return us_fail(
				err, US_E_CONFIG,
				"bucket: %.200s: names have letters, digits, `-`, `.` and `_` "
				"only; a path in the bucket belongs into path",
				bucket);
		}
		dots_only &= bucket[i] == '.';
	}
	if (len > BUCKET_LEN_MAX || dots_only) {
		return us_fail(err, US_E_CONFIG, "bucket: %.200s: not a bucket name", bucket);
	}
	return 0;
}

static int32_t check_region(const char *region, struct us_error *err)
{
	size_t len = strlen(region);
	for (size_t i = 0; i < len; i++) {
		if (!is_host_byte(region[i])) {
			return us_fail(err, US_E_CONFIG,
				       "region: %.100s: names look like us-east-1 or auto", region);
		}
	}
	if (len > US_REGION_LEN_MAX) {
		return us_fail(err, US_E_CONFIG, "region: %.100s: too long", region);
	}
	return 0;
}

/* Values that go into headers as they are. */
static int32_t check_option(const char *key, const char *value, struct us_error *err)
{
	size_t len = value ? strnlen(value, OPTION_LEN_MAX + 1) : 0;
	for (size_t i = 0; i < len; i++) {
		if (value[i] <= ' ' || value[i] > '~' || len > OPTION_LEN_MAX) {
			return us_fail(
				err, US_E_CONFIG,
				"%s: spaces, control bytes, bytes outside ASCII, or more than "
				"%d bytes",
				key, OPTION_LEN_MAX);
		}
	}
	return 0;
}

static void add_origin(struct us_text *origin, const struct parts *parts, const char *bucket)
{
	us_text_puts(origin, parts->https ? "https://" : "http://");
	if (bucket) {
		us_text_puts(origin, bucket);
		us_text_puts(origin, ".");
	}
	us_text_add(origin, parts->host, parts->host_len);
	if (parts->port != 0) {
		char digits[8];
		size_t at = sizeof(digits);
		for (uint32_t port = parts->port; port > 0; port /= 10) {
			digits[--at] = (char)('0' + port % 10);
		}
		us_text_puts(origin, ":");
		us_text_add(origin, digits + at, sizeof(digits) - at);
	}
}

static void add_aws_host(struct us_text *host, const char *region)
{
	us_text_puts(host, "s3.");
	us_text_puts(host, region);
	us_text_puts(host, strncmp(region, "cn-", 3) == 0 ? ".amazonaws.com.cn" : ".amazonaws.com");
}

/* Fills origin, host and root. */
static int32_t locate(struct us_s3_endpoint *endpoint, const struct us_store_s3_options *options,
		      struct us_error *err)
{
	int path_style = options->path_style;
	struct us_text aws_host, origin;
	struct parts parts = { 0 };
	us_text_init(&aws_host, HOST_LEN_MAX);
	us_text_init(&origin, ORIGIN_LEN_MAX);
	int32_t rc = 0;
	if (options->endpoint && options->endpoint[0] != '\0') {
		rc = parse_endpoint(options->endpoint, &parts, err);
		if (!rc && parts.is_address && !path_style) {
			rc = us_fail(
				err, US_E_CONFIG,
				"endpoint: %.200s is an address, and a bucket cannot be put in "
				"front of it; set force_path_style: true",
				options->endpoint);
		}
	} else {
		path_style |= strchr(endpoint->bucket, '.') != NULL;
		add_aws_host(&aws_host, endpoint->region);
		parts = (struct parts){ .https = 1,
					.host = aws_host.data,
					.host_len = aws_host.len };
		rc = aws_host.failed ? us_fail_nomem(err) : 0;
	}
	if (rc) {
		goto out;
	}
	add_origin(&origin, &parts, path_style ? NULL : endpoint->bucket);
	struct us_text root;
	us_text_init(&root, BUCKET_LEN_MAX + 1);
	us_text_puts(&root, path_style ? "/" : "");
	us_text_puts(&root, path_style ? endpoint->bucket : "");
	endpoint->root = root.data;
	if (origin.failed || root.failed) {
		rc = us_fail_nomem(err);
		goto out;
	}
	endpoint->origin = origin.data;
	endpoint->host = origin.data + (parts.https ? 8 : 7);
	origin.data = NULL; /* handed over */
out:
	us_text_done(&aws_host);
	us_text_done(&origin);
	return rc;
}

static int copy_option(char **ret_copy, const char *value)
{
	if (!value || value[0] == '\0') {
		return 0;
	}
	*ret_copy = us_strdup(value);
	return *ret_copy ? 0 : -1;
}

int32_t us_s3_endpoint_init(struct us_s3_endpoint *endpoint,
			    const struct us_store_s3_options *options, struct us_error *err)
{
	*endpoint = (struct us_s3_endpoint){ .skip_verify = options->skip_verify };
	const char *region =
		options->region && options->region[0] != '\0' ? options->region : "us-east-1";
	const char *bucket = options->bucket ? options->bucket : "";
	int32_t rc = check_bucket(bucket, err);
	rc = rc ? rc : check_region(region, err);
	rc = rc ? rc : check_option("storage_class", options->storage_class, err);
	rc = rc ? rc : check_option("sse", options->sse, err);
	rc = rc ? rc : check_option("sse_kms_key_id", options->sse_kms_key_id, err);
	if (rc) {
		return rc;
	}
	endpoint->bucket = us_strdup(bucket);
	endpoint->region = us_strdup(region);
	if (!endpoint->bucket || !endpoint->region ||
	    copy_option(&endpoint->storage_class, options->storage_class) ||
	    copy_option(&endpoint->sse, options->sse) ||
	    copy_option(&endpoint->sse_kms_key_id, options->sse_kms_key_id)) {
		rc = us_fail_nomem(err);
	} else {
		rc = locate(endpoint, options, err);
	}
	if (rc) {
		us_s3_endpoint_done(endpoint);
	}
	return rc;
}

void us_s3_endpoint_done(struct us_s3_endpoint *endpoint)
{
	us_free(endpoint->origin);
	us_free(endpoint->root);
	us_free(endpoint->bucket);
	us_free(endpoint->region);
	us_free(endpoint->storage_class);
	us_free(endpoint->sse);
	us_free(endpoint->sse_kms_key_id);
	*endpoint = (struct us_s3_endpoint){ 0 };
}
