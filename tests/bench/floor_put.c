/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PUTs as libcurl does them at its cheapest: one thread, one multi handle driven by
 * multi_socket and epoll, as many easy handles as there are requests at a time, whose
 * options are set once but for URL, headers and body. Each request is one that S3 accepts:
 * the payload's SHA-256, and a SigV4 signature (signing key derived once) over the headers
 * that the library sends, too.
 */
#include "bench.h"

#include <curl/curl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/epoll.h>
#include <unistd.h>

#define CONCURRENCY_MAX 1000
#define EVENTS_MAX 64
#define SIGNED "host;x-amz-content-sha256;x-amz-date;x-amz-meta-lz4-sha256;x-amz-meta-snapshot-time"
#define SNAPSHOT_TIME "2026-01-01T00:00:00.000000000Z"

struct slot {
	CURL *easy;
	struct floor_object object;
	size_t sent;
	struct curl_slist *headers;
};

struct loop {
	CURLM *multi;
	int epoll_fd;
	long timeout_ms; /* -1: none */
	const char *host, *endpoint, *bucket;
	uint8_t signing_key[32];
	char day[9], time[17];
	struct slot slots[CONCURRENCY_MAX];
};

/* ---------------------------------------------------------------------- signing */

static void hmac(const uint8_t *key, size_t key_len, const char *text, size_t text_len,
		 uint8_t ret[32])
{
	if (!HMAC(EVP_sha256(), key, (int)key_len, (const uint8_t *)text, text_len, ret, NULL)) {
		die("HMAC", "failed");
	}
}

static void sha256_hex(const void *data, size_t len, char ret[65])
{
	uint8_t digest[32];
	if (!EVP_Digest(data, len, digest, NULL, EVP_sha256(), NULL)) {
		die("SHA-256", "failed");
	}
	for (int i = 0; i < 32; i++) {
		ret[2 * i] = "0123456789abcdef"[digest[i] >> 4];
		ret[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
	}
	ret[64] = '\0';
}

static void derive_key(struct loop *l)
{
	time_t now = time(NULL);
	struct tm tm;
	uint8_t key[32];
	(void)gmtime_r(&now, &tm);
	(void)strftime(l->time, sizeof(l->time), "%Y%m%dT%H%M%SZ", &tm);
	(void)strftime(l->day, sizeof(l->day), "%Y%m%d", &tm);
	hmac((const uint8_t *)"AWS4" BENCH_SECRET, strlen("AWS4" BENCH_SECRET), l->day, 8, key);
	hmac(key, 32, "us-east-1", 9, key);
	hmac(key, 32, "s3", 2, key);
	hmac(key, 32, "aws4_request", 12, l->signing_key);
}

static void add_header(struct slot *slot, const char *name, const char *value)
{
	char line[1024];
	(void)snprintf(line, sizeof(line), "%s: %s", name, value);
	slot->headers = curl_slist_append(slot->headers, line);
	if (!slot->headers) {
		die_errno("curl_slist_append");
	}
}

/* Keys need no escaping here. */
static void sign(struct loop *l, struct slot *slot)
{
	char payload[65], hash[65], canonical[2048], text[512], authorization[512];
	uint8_t mac[32];
	sha256_hex(slot->object.data, slot->object.len, payload);
	int len =
		snprintf(canonical, sizeof(canonical),
			 "PUT\n/%s/%s\n\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n"
			 "x-amz-meta-lz4-sha256:%s\nx-amz-meta-snapshot-time:" SNAPSHOT_TIME
			 "\n\n" SIGNED "\n%s",
			 l->bucket, slot->object.key, l->host, payload, l->time, payload, payload);
	sha256_hex(canonical, (size_t)len, hash);
	len = snprintf(text, sizeof(text), "AWS4-HMAC-SHA256\n%s\n%s/us-east-1/s3/aws4_request\n%s",
		       l->time, l->day, hash);
	hmac(l->signing_key, 32, text, (size_t)len, mac);
	len = snprintf(authorization, sizeof(authorization),
		       "AWS4-HMAC-SHA256 Credential=" BENCH_KEY
		       "/%s/us-east-1/s3/aws4_request,SignedHeaders=" SIGNED ",Signature=",
		       l->day);
	for (int i = 0; i < 32; i++) {
		len += snprintf(authorization + len, sizeof(authorization) - (size_t)len, "%02x",
				mac[i]);
	}
	curl_slist_free_all(slot->headers);
	slot->headers = NULL;
	add_header(slot, "x-amz-content-sha256", payload);
	add_header(slot, "x-amz-date", l->time);
	add_header(slot, "x-amz-meta-lz4-sha256", payload);
	add_header(slot, "x-amz-meta-snapshot-time", SNAPSHOT_TIME);
	add_header(slot, "Authorization", authorization);
	slot->headers = curl_slist_append(slot->headers, "Expect:");
}

/* ------------------------------------------------------------------------- curl */

static size_t read_body(char *buffer, size_t one, size_t cap, void *user)
{
	struct slot *slot = user;
	size_t left = slot->object.len - slot->sent, len = left < cap ? left : cap;
	(void)one;
	memcpy(buffer, slot->object.data + slot->sent, len);
	slot->sent += len;
	return len;
}

static size_t drop_answer(char *data, size_t one, size_t len, void *user)
{
	(void)data;
	(void)one;
	(void)user;
	return len;
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *known)
{
	struct loop *l = user;
	struct epoll_event event = { .data.fd = fd };
	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		(void)epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return curl_multi_assign(l->multi, fd, NULL) != CURLM_OK;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(l->epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event)) {
		die_errno("epoll_ctl");
	}
	return curl_multi_assign(l->multi, fd, l) != CURLM_OK;
}

static int on_timer(CURLM *multi, long timeout_ms, void *user)
{
	(void)multi;
	((struct loop *)user)->timeout_ms = timeout_ms;
	return 0;
}

static void open_slot(struct slot *slot)
{
	CURL *easy = slot->easy = curl_easy_init();
	int failed = !easy;
#define SET(option, value) failed |= curl_easy_setopt(easy, option, value) != CURLE_OK
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_UPLOAD, 1L);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, 16384L);
	SET(CURLOPT_BUFFERSIZE, 1024L);
	SET(CURLOPT_READFUNCTION, read_body);
	SET(CURLOPT_READDATA, slot);
	SET(CURLOPT_WRITEFUNCTION, drop_answer);
	SET(CURLOPT_PRIVATE, slot);
#undef SET
	if (failed) {
		die("curl", "cannot be set up");
	}
}

/* 0: there is nothing more to send. */
static int start(struct loop *l, struct slot *slot, floor_next_fn *next, void *arg)
{
	char url[512];
	if (!next(arg, slot - l->slots, &slot->object)) {
		return 0;
	}
	if (!slot->easy) {
		open_slot(slot);
	}
	slot->sent = 0;
	sign(l, slot);
	(void)snprintf(url, sizeof(url), "%s/%s/%s", l->endpoint, l->bucket, slot->object.key);
	if (curl_easy_setopt(slot->easy, CURLOPT_URL, url) ||
	    curl_easy_setopt(slot->easy, CURLOPT_HTTPHEADER, slot->headers) ||
	    curl_easy_setopt(slot->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)slot->object.len) ||
	    curl_multi_add_handle(l->multi, slot->easy)) {
		die("curl", "cannot begin a request");
	}
	return 1;
}

static struct slot *finish(struct loop *l, const CURLMsg *message)
{
	CURL *easy = message->easy_handle;
	struct slot *slot;
	long status = 0;
	if (message->data.result != CURLE_OK) {
		die("PUT", curl_easy_strerror(message->data.result));
	}
	(void)curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	(void)curl_easy_getinfo(easy, CURLINFO_PRIVATE, (char **)&slot);
	if (status != 200) {
		die(slot->object.key, "the answer is not 200");
	}
	(void)curl_multi_remove_handle(l->multi, easy);
	return slot;
}

/* Waits for sockets and lets curl act on them. */
static void turn(struct loop *l)
{
	struct epoll_event events[EVENTS_MAX];
	int running, count = epoll_wait(l->epoll_fd, events, EVENTS_MAX,
					l->timeout_ms < 0 ? 1000 : (int)l->timeout_ms);
	for (int i = 0; i < count; i++) {
		int what = (events[i].events & EPOLLIN ? CURL_CSELECT_IN : 0) |
			   (events[i].events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			   (events[i].events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);
		(void)curl_multi_socket_action(l->multi, events[i].data.fd, what, &running);
	}
	if (count == 0) {
		l->timeout_ms = -1;
		(void)curl_multi_socket_action(l->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
}

long floor_put(const char *endpoint, const char *bucket, long concurrency, floor_next_fn *next,
	       void *arg)
{
	static struct loop l;
	long busy = 0, done = 0;
	const char *slashes = strstr(endpoint, "//");
	if (concurrency > CONCURRENCY_MAX || !slashes || curl_global_init(CURL_GLOBAL_DEFAULT)) {
		die(endpoint, "no endpoint, or too many requests at a time");
	}
	l = (struct loop){ .multi = curl_multi_init(),
			   .epoll_fd = epoll_create1(EPOLL_CLOEXEC),
			   .timeout_ms = -1,
			   .host = slashes + 2,
			   .endpoint = endpoint,
			   .bucket = bucket };
	derive_key(&l);
	if (!l.multi || l.epoll_fd < 0 ||
	    curl_multi_setopt(l.multi, CURLMOPT_SOCKETFUNCTION, on_socket) ||
	    curl_multi_setopt(l.multi, CURLMOPT_SOCKETDATA, &l) ||
	    curl_multi_setopt(l.multi, CURLMOPT_TIMERFUNCTION, on_timer) ||
	    curl_multi_setopt(l.multi, CURLMOPT_TIMERDATA, &l) ||
	    curl_multi_setopt(l.multi, CURLMOPT_MAXCONNECTS, concurrency)) {
		die("curl_multi", "cannot be set up");
	}
	while (busy < concurrency && start(&l, &l.slots[busy], next, arg)) {
		busy++;
	}
	while (busy > 0) {
		CURLMsg *message;
		int left;
		turn(&l);
		while ((message = curl_multi_info_read(l.multi, &left)) != NULL) {
			struct slot *slot = finish(&l, message);
			done++;
			busy -= !start(&l, slot, next, arg);
		}
	}
	for (long i = 0; i < concurrency && l.slots[i].easy; i++) {
		curl_easy_cleanup(l.slots[i].easy);
		curl_slist_free_all(l.slots[i].headers);
	}
	(void)curl_multi_cleanup(l.multi);
	(void)close(l.epoll_fd);
	return done;
}
