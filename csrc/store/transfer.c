/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all requests share: curl's options, progress, and the meaning of its codes.
 *
 * Progress is measured here and not with CURLOPT_LOW_SPEED_TIME, because curl
 * counts a byte as sent when the kernel has taken it. On a slow line with many
 * uploads the kernel's send queue alone can take longer than the time-out to
 * drain; what the peer has not acknowledged (SIOCOUTQ) is therefore subtracted.
 * What comes at a drip would hold a cycle for hours: less than MOVED_LEN_MIN within
 * the time-out is no progress, and neither is an answer that is not itself what is
 * wanted (to a PUT, say), or headers. Those have the time-out from the last byte sent.
 *
 * A handle is reset before every request: curl counts the resends on dead reused
 * connections per handle, gives up at the sixth, and up to 8.16 forgets the count
 * only there and in a reset (curl pull request 19066). Connections survive a reset. One
 * whose transfer was dropped or has failed is replaced: for want of memory it may have kept
 * a receive buffer, and then curl refuses CURLOPT_BUFFERSIZE for good (seen in 7.88).
 *
 * The environment is not read: no proxy, no .netrc. Redirects are not followed,
 * because a signature is bound to its host.
 */
#include "transfer.h"

#include <linux/sockios.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../base/clock.h"

#define MOVED_LEN_MIN 1024

/* What a store repeats of a session token shall not stay in a buffer of OpenSSL's. */
static CURLcode wipe_plaintext(CURL *easy, void *ssl_ctx, void *arg)
{
	(void)easy, (void)arg;
	(void)SSL_CTX_set_options(ssl_ctx, SSL_OP_CLEANSE_PLAINTEXT);
	return CURLE_OK;
}

static int set_options(struct us_s3_transfer *transfer)
{
	CURL *easy = transfer->easy;
	const struct us_s3_timing *timing = transfer->timing;
	int failed = 0;
#define SET(option, value) failed |= curl_easy_setopt(easy, option, value) != CURLE_OK
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NOPROGRESS, 1L);
	SET(CURLOPT_USERAGENT, "libultrasimple");
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long)timing->connect_ms);
	SET(CURLOPT_MAXAGE_CONN, (long)timing->idle_age_s);
#if LIBCURL_VERSION_NUM >= 0x075000
	SET(CURLOPT_MAXLIFETIME_CONN, (long)timing->lifetime_s);
#endif
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
#else
	SET(CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(CURLOPT_QUICK_EXIT, 1L); /* else giving up waits for the resolver's thread */
#endif
	if (transfer->endpoint->skip_verify) {
		SET(CURLOPT_SSL_VERIFYPEER, 0L);
		SET(CURLOPT_SSL_VERIFYHOST, 0L);
	}
	/* refused by a libcurl that has another TLS library */
	(void)curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, wipe_plaintext);
	SET(CURLOPT_ERRORBUFFER, transfer->curl_text);
	SET(CURLOPT_HEADERFUNCTION, us_s3_reply_header);
	SET(CURLOPT_HEADERDATA, &transfer->reply);
	SET(CURLOPT_URL, transfer->request.url.data);
	SET(CURLOPT_HTTPHEADER, transfer->request.list);
#undef SET
	return failed;
}

int32_t us_s3_transfer_init(struct us_s3_transfer *transfer, const struct us_s3_endpoint *endpoint,
			    const struct us_s3_timing *timing, struct us_error *err)
{
	us_s3_request_init(&transfer->request);
	us_s3_reply_init(&transfer->reply);
	transfer->endpoint = endpoint;
	transfer->timing = timing;
	transfer->easy = curl_easy_init();
	return transfer->easy ? 0 : us_fail_nomem(err);
}

void us_s3_transfer_done(struct us_s3_transfer *transfer)
{
	if (transfer->easy) {
		curl_easy_cleanup(transfer->easy); /* before what it points to */
		transfer->easy = NULL;
	}
	us_s3_request_done(&transfer->request);
	us_s3_reply_done(&transfer->reply);
}

/* Connections are the multi handle's: they survive. */
static int renew(struct us_s3_transfer *transfer)
{
	CURL *easy = curl_easy_init();
	if (!easy) {
		return -1;
	}
	curl_easy_cleanup(transfer->easy);
	transfer->easy = easy;
	return 0;
}

int32_t us_s3_transfer_begin(struct us_s3_transfer *transfer, struct us_error *err)
{
	if (transfer->is_used && renew(transfer)) {
		return us_fail_nomem(err);
	}
	transfer->is_used = 1;
	CURL *easy = transfer->easy;
	us_s3_reply_clear(&transfer->reply);
	transfer->curl_text[0] = '\0';
	transfer->resent = 0;
	transfer->stall_ms = transfer->timing->stall_ms;
	transfer->takes_body = 0;
	transfer->progress = 0;
	transfer->start_ns = transfer->progress_ns = us_clock_mono_ns();
	curl_easy_reset(easy);
	if (set_options(transfer)) {
		return us_fail_nomem(err);
	}
	return 0;
}

void us_s3_transfer_touch(struct us_s3_transfer *transfer)
{
	transfer->progress_ns = us_clock_mono_ns();
}

static uint64_t moved_bytes(const struct us_s3_transfer *transfer)
{
	CURL *easy = transfer->easy;
	curl_off_t sent = 0, received = 0;
	long request_sent = 0;
	curl_socket_t fd = CURL_SOCKET_BAD;
	int queued = 0;
	/* values curl always has; an unknown one would stay 0 */
	(void)curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &sent);
	if (transfer->takes_body) {
		(void)curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &received);
	}
	(void)curl_easy_getinfo(easy, CURLINFO_REQUEST_SIZE, &request_sent);
	if (curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &fd) == CURLE_OK &&
	    fd != CURL_SOCKET_BAD && ioctl(fd, SIOCOUTQ, &queued)) {
		queued = 0;
	}
	int64_t moved = sent + received + request_sent - queued;
	return moved > 0 ? (uint64_t)moved : 0; /* the queue has TLS's bytes, too */
}

int us_s3_transfer_is_stalled(struct us_s3_transfer *transfer, int64_t now_ns)
{
	uint64_t moved = moved_bytes(transfer);
	/* Less than before: sent again. */
	if (moved < transfer->progress || moved - transfer->progress >= MOVED_LEN_MIN) {
		transfer->progress = moved;
		transfer->progress_ns = now_ns;
		return 0;
	}
	return now_ns - transfer->progress_ns > transfer->stall_ms * US_NS_PER_MS;
}

int us_s3_transfer_resend(struct us_s3_transfer *transfer, CURLcode result)
{
	long connects = 1;
	(void)curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects); /* else 1: no */
	int died = result == CURLE_SEND_ERROR || result == CURLE_RECV_ERROR ||
		   result == CURLE_GOT_NOTHING;
	if (!died || connects != 0 || transfer->resent || transfer->reply.header_len > 0 ||
	    curl_easy_setopt(transfer->easy, CURLOPT_FRESH_CONNECT, 1L)) {
		return 0;
	}
	transfer->resent = 1;
	us_s3_reply_clear(&transfer->reply);
	transfer->curl_text[0] = '\0';
	us_s3_transfer_touch(transfer);
	return 1;
}

CURLcode us_s3_transfer_result(struct us_s3_transfer *transfer, CURLcode result)
{
	transfer->is_used = result != CURLE_OK;
	if (result != CURLE_OK || transfer->reply.has_head) {
		return result;
	}
	(void)snprintf(transfer->curl_text, sizeof(transfer->curl_text),
		       "the answer broke off in its headers");
	return CURLE_RECV_ERROR;
}

int us_s3_transfer_was_sent(struct us_s3_transfer *transfer)
{
	long request_sent = 0;
	(void)curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE, &request_sent); /* else 0 */
	return request_sent > 0;
}

/* Curl's own words, or its code's; control bytes replaced. */
static const char *words_of(struct us_s3_transfer *transfer, CURLcode result)
{
	if (transfer->curl_text[0] == '\0') {
		return curl_easy_strerror(result);
	}
	for (char *p = transfer->curl_text; *p != '\0'; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7F) {
			*p = ' ';
		}
	}
	return transfer->curl_text;
}

int32_t us_s3_transfer_fail(struct us_s3_transfer *transfer, CURLcode result, struct us_error *err)
{
	const struct us_s3_endpoint *endpoint = transfer->endpoint;
	char what[800];
	us_s3_reply_what(endpoint, &transfer->request, what, sizeof(what));
	const char *words = words_of(transfer, result);
	switch (result) {
	case CURLE_OUT_OF_MEMORY:
		return us_fail_nomem(err);
	case CURLE_OPERATION_TIMEDOUT: /* the connection's: the only one that curl is told */
		return us_fail(err, US_E_NETWORK, "%s: no connection to %s within %lld ms", what,
			       endpoint->host, (long long)transfer->timing->connect_ms);
	case CURLE_COULDNT_RESOLVE_HOST:
		return us_fail(err, US_E_NETWORK, "%s: the name of %s cannot be resolved", what,
			       endpoint->host);
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_ISSUER_ERROR:
		return us_fail(
			err, US_E_NETWORK,
			"%s: the certificate of %s is not trusted: %s; install its CA in the "
			"system's certificate store, or set skip_verify: true",
			what, endpoint->host, words);
	case CURLE_SSL_CONNECT_ERROR:
		return us_fail(err, US_E_NETWORK, "%s: no TLS with %s: %s", what, endpoint->host,
			       words);
	default:
		return us_fail(err, US_E_NETWORK, "%s: %s", what, words);
	}
}

int32_t us_s3_transfer_fail_stalled(struct us_s3_transfer *transfer, struct us_error *err)
{
	char what[800];
	us_s3_reply_what(transfer->endpoint, &transfer->request, what, sizeof(what));
	return us_fail(err, US_E_TIMEOUT, "%s: %s: nothing moved for %lld ms", what,
		       transfer->endpoint->host, (long long)transfer->stall_ms);
}
