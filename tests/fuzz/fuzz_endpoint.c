/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a user writes about an S3 target, a key of an object, and a prefix, separated by
 * NULs. A request that comes of it goes where it was meant to go, as curl understands its
 * URL, and no text ends a header before its time. The secret is nowhere.
 */
#include "fuzz.h"

#include <curl/curl.h>

#include "../../csrc/store/request.h"

#define SECRET "Secret+/Secret+/Secret+/Secret+/Secret+/"

static char *url_part(CURLU *url, CURLUPart part, unsigned int flags)
{
	char *text = NULL;
	return curl_url_get(url, part, &text, flags) == CURLUE_OK ? text : NULL;
}

static void check_headers(const struct us_s3_request *request)
{
	size_t count = 0;
	for (const struct curl_slist *line = request->list; line; line = line->next) {
		require(++count <= US_S3_HEADERS_MAX + 2 && strchr(line->data, ':'));
		for (const char *p = line->data; *p; p++) {
			require(*p >= ' ' && *p <= '~');
		}
		require(!strstr(line->data, SECRET));
	}
}

/* Whether text that was decoded from a URL is KEY. */
static int is_text(const char *text, int len, const char *key)
{
	return (size_t)len == strlen(key) && memcmp(text, key, (size_t)len) == 0;
}

/* Host and port of a URL, in the form that curl gives them. */
static void authority_of(const char *text, char ret[512])
{
	CURLU *url = curl_url();
	require(url && curl_url_set(url, CURLUPART_URL, text, CURLU_PATH_AS_IS) == CURLUE_OK);
	char *host = url_part(url, CURLUPART_HOST, 0);
	char *port = url_part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT);
	require(host && port && snprintf(ret, 512, "%s:%s", host, port) < 512);
	require(!url_part(url, CURLUPART_USER, 0) && !url_part(url, CURLUPART_FRAGMENT, 0));
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(url);
}

static void check_place(const struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
			const struct us_store_s3_options *options)
{
	char there[512], wanted[512];
	authority_of(request->url.data, there);
	authority_of(endpoint->origin, wanted);
	require(strcmp(there, wanted) == 0);
	require(strncmp(request->url.data, endpoint->origin, strlen(endpoint->origin)) == 0);
	require(strcmp(strstr(endpoint->origin, "://") + 3, endpoint->host) == 0);
	const char *bucket = endpoint->root[0] ? endpoint->root + 1 : endpoint->host;
	size_t len = strlen(options->bucket);
	require(strncmp(bucket, options->bucket, len) == 0 &&
		bucket[len] == (endpoint->root[0] ? '\0' : '.'));
}

/* KEY and PREFIX, as far as they are not NULL, are in the URL as they were. */
static void check_url(const struct us_s3_request *request, const struct us_s3_endpoint *endpoint,
		      const char *key, const char *prefix)
{
	CURLU *url = curl_url();
	require(url && curl_url_set(url, CURLUPART_URL, request->url.data, CURLU_PATH_AS_IS) == 0);
	char *path = url_part(url, CURLUPART_PATH, 0), *query = url_part(url, CURLUPART_QUERY, 0);
	size_t root_len = strlen(endpoint->root);
	require(path && strncmp(path, endpoint->root, root_len) == 0 && path[root_len] == '/');
	int len = 0;
	char *text = curl_easy_unescape(NULL, path + root_len + 1, 0, &len);
	require(text && is_text(text, len, key ? key : ""));
	curl_free(text);
	require((query != NULL) == (prefix != NULL));
	if (prefix) {
		char *value = strstr(query, "prefix=");
		int value_len = value ? (int)strcspn(value + 7, "&") : 0;
		require(value && (value_len > 0) == (prefix[0] != '\0'));
		text = curl_easy_unescape(NULL, value + 7, value_len, &len);
		require(text && (prefix[0] == '\0' || is_text(text, len, prefix)));
		curl_free(text);
	}
	curl_free(path);
	curl_free(query);
	curl_url_cleanup(url);
}

static void check_requests(const struct us_s3_endpoint *endpoint,
			   const struct us_store_s3_options *options, struct us_s3_signer *signer,
			   const char *key, const char *prefix)
{
	struct us_s3_request request;
	struct us_error err = US_ERROR_INIT;
	struct us_put put = { .key = key, .fd = -1, .snapshot_time = "2026-01-02T15:04:05Z" };
	us_s3_request_init(&request);
	int32_t rc = us_s3_request_put(&request, endpoint, signer, &put, &err);
	if (rc) {
		require(key[0] == '\0' || strlen(key) > 1024);
	} else {
		check_place(&request, endpoint, options);
		check_url(&request, endpoint, key, NULL);
		check_headers(&request);
	}
	if (strlen(prefix) <= 1024) {
		require(us_s3_request_list(&request, endpoint, signer, prefix, NULL, NULL, &err) ==
			0);
		check_url(&request, endpoint, NULL, prefix);
		check_headers(&request);
	}
	us_s3_request_done(&request);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	enum { ENDPOINT, REGION, BUCKET, CLASS, SSE, KMS, KEY_ID, TOKEN, KEY, PREFIX, TEXTS };
	struct input in = { data, data_len };
	struct us_error err = US_ERROR_INIT;
	char *t[TEXTS];
	if (memmem(data, data_len, SECRET, strlen(SECRET))) {
		return 0; /* found by comparing: it would be everywhere */
	}
	uint8_t flags = input_byte(&in);
	for (size_t i = 0; i < TEXTS; i++) {
		t[i] = input_string(&in);
	}
	const struct us_store_s3_options options = {
		.endpoint = t[ENDPOINT],
		.region = t[REGION],
		.bucket = t[BUCKET],
		.path_style = flags & 1,
		.storage_class = t[CLASS],
		.sse = t[SSE],
		.sse_kms_key_id = t[KMS],
	};
	const struct us_s3_credentials credentials = {
		.access_key_id = t[KEY_ID],
		.secret_access_key = t[KEY_ID][0] ? SECRET : "",
		.session_token = t[TOKEN],
	};
	struct us_s3_endpoint endpoint;
	struct us_s3_signer signer = { 0 };
	require(us_s3_signer_init(&signer, &err) == 0);
	int32_t rc = us_s3_signer_set(&signer, &credentials, &err);
	require(rc == 0 || rc == US_E_ARG);
	if (rc) {
		require_reason(rc, &err);
	}
	rc = us_s3_endpoint_init(&endpoint, &options, &err);
	if (rc) {
		require(rc == US_E_CONFIG);
		require_reason(rc, &err);
	} else {
		check_requests(&endpoint, &options, &signer, t[KEY], t[PREFIX]);
		us_s3_endpoint_done(&endpoint);
	}
	us_s3_signer_done(&signer);
	for (size_t i = 0; i < TEXTS; i++) {
		free(t[i]);
	}
	return 0;
}
