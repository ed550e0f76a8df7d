/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_S3_SUPPORT_H
#define US_TESTS_S3_SUPPORT_H

/*
 * What the tests of the S3 target share: a real server (versitygw, from $VERSITYGW or
 * PATH), and small servers that misbehave.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/base/alloc.h"
#include "../../csrc/base/clock.h"
#include "../../csrc/store/s3_internal.h"

#define SECRET "sk/SECRET+value"
#define TOKEN "FwoGZXIvYXdzEBYaDMsession-token-value"

/* ------------------------------------------------------------ small helpers */

static inline struct us_error error_of_test(void)
{
	return (struct us_error)US_ERROR_INIT;
}

static inline struct us_store *open_limited(const char *endpoint, const char *bucket,
					    uint32_t concurrency, const struct us_s3_timing *timing,
					    uint64_t upload_bytes_per_s)
{
	struct us_store_s3_options options = { .endpoint = endpoint,
					       .region = "us-east-1",
					       .bucket = bucket,
					       .path_style = 1,
					       .concurrency = concurrency,
					       .upload_bytes_per_s = upload_bytes_per_s };
	static const struct us_s3_timing usual = US_S3_TIMING_DEFAULT;
	struct us_store *store = NULL;
	struct us_error err = error_of_test();
	int32_t rc = us_s3_open_timed(&options, timing ? timing : &usual, &store, &err);
	if (rc) {
		print_error("%s\n", err.message);
	}
	assert_int_equal(rc, 0);
	return store;
}

static inline struct us_store *open_store(const char *endpoint, const char *bucket,
					  uint32_t concurrency, const struct us_s3_timing *timing)
{
	return open_limited(endpoint, bucket, concurrency, timing, 0);
}

static inline void set_keys(struct us_store *store, const char *key, const char *secret,
			    const char *token)
{
	struct us_s3_credentials credentials = { key, secret, token };
	assert_int_equal(us_store_s3_set_credentials(store, &credentials, NULL), 0);
}

static inline void fill_put(struct us_put *put, const char *key, const void *data, size_t len)
{
	memset(put, 0, sizeof(*put));
	put->key = key;
	put->data = data;
	put->fd = -1;
	put->len = len;
	SHA256(data, len, put->sha256);
	(void)snprintf(put->snapshot_time, sizeof(put->snapshot_time), "%s",
		       "2026-01-02T03:04:05.000000006Z");
	memset(put->lz4_sha256, 'a', 64);
}

static inline int32_t put_now(struct us_store *store, struct us_put *put)
{
	store->ops->put_start(store, put);
	struct us_put *got = NULL;
	for (int i = 0; i < 600 && !got; i++) {
		got = store->ops->put_wait(store, 100);
	}
	assert_ptr_equal(got, put);
	assert_null(got->next);
	assert_int_equal(put->rc, put->err.code);
	return put->rc;
}

static inline int32_t put_text(struct us_store *store, const char *key, const char *text,
			       struct us_error *ret_err)
{
	struct us_put put;
	fill_put(&put, key, text, strlen(text));
	int32_t rc = put_now(store, &put);
	if (ret_err) {
		*ret_err = put.err;
	}
	return rc;
}

struct sink {
	char data[4096];
	size_t len;
	int32_t rc;
};

static inline int32_t to_sink(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct sink *sink = arg;
	if (sink->rc) {
		return us_fail(err, sink->rc, "the sink says no");
	}
	assert_true(sink->len + data_len <= sizeof(sink->data));
	memcpy(sink->data + sink->len, data, data_len);
	sink->len += data_len;
	return 0;
}

struct listed {
	char **keys;
	uint64_t *lens;
	size_t count, stop_at;
};

static inline int32_t to_listed(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	struct listed *listed = arg;
	assert_int_equal(strlen(key), key_len);
	listed->keys = realloc(listed->keys, (listed->count + 1) * sizeof(*listed->keys));
	listed->lens = realloc(listed->lens, (listed->count + 1) * sizeof(*listed->lens));
	listed->keys[listed->count] = strdup(key);
	listed->lens[listed->count++] = object_len;
	return listed->stop_at && listed->count == listed->stop_at ? US_E_BUSY : 0;
}

static inline void listed_done(struct listed *listed)
{
	for (size_t i = 0; i < listed->count; i++) {
		free(listed->keys[i]);
	}
	free(listed->keys);
	free(listed->lens);
	*listed = (struct listed){ 0 };
}

static inline int listen_on(uint16_t *port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t len = sizeof(address);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 128), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
	*port = ntohs(address.sin_port);
	return fd;
}

/* ------------------------------------------------------------ the real server */

struct gateway {
	pid_t pid;
	char dir[64], endpoint[64];
};

static struct gateway gateway;

static inline const char *gateway_path(void)
{
	const char *path = getenv("VERSITYGW");
	return path ? path : "versitygw";
}

static inline int can_connect(uint16_t port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int rc = connect(fd, (struct sockaddr *)&address, sizeof(address));
	close(fd);
	return rc == 0;
}

/* A self-signed certificate for 127.0.0.1, and its key, in files below DIR. */
static inline void write_certificate(const char *dir, char *cert_path, char *key_path, size_t cap)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();
	assert_non_null(key);
	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
	X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
	X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
				   (const unsigned char *)"test", -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(cert));
	X509_set_pubkey(cert, key);
	X509_EXTENSION *name =
		X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
	X509_add_ext(cert, name, -1);
	assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
	(void)snprintf(cert_path, cap, "%s/cert.pem", dir);
	(void)snprintf(key_path, cap, "%s/key.pem", dir);
	FILE *file = fopen(cert_path, "w");
	PEM_write_X509(file, cert);
	fclose(file);
	file = fopen(key_path, "w");
	PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
	fclose(file);
	X509_EXTENSION_free(name);
	X509_free(cert);
	EVP_PKEY_free(key);
}

static inline int gateway_start(struct gateway *g, int tls)
{
	uint16_t port;
	char root[80], bucket[96], listen_text[32], cert[96], key[96];
	close(listen_on(&port));
	(void)snprintf(g->dir, sizeof(g->dir), "%s", P_tmpdir "/us-test-s3-XXXXXX");
	assert_non_null(mkdtemp(g->dir));
	(void)snprintf(root, sizeof(root), "%s/root", g->dir);
	(void)snprintf(bucket, sizeof(bucket), "%s/bk1", root);
	assert_int_equal(mkdir(root, 0755), 0);
	assert_int_equal(mkdir(bucket, 0755), 0);
	(void)snprintf(listen_text, sizeof(listen_text), "127.0.0.1:%u", port);
	(void)snprintf(g->endpoint, sizeof(g->endpoint), "http%s://%s", tls ? "s" : "",
		       listen_text);
	if (tls) {
		write_certificate(g->dir, cert, key, sizeof(cert));
	}
	const char *arguments[] = { "versitygw", "--port", listen_text, "--keep-alive", "--quiet",
				    "--access", "ak", "--secret", SECRET,
				    /* then the certificate, or at once: */
				    tls ? "--cert" : "posix", tls ? cert : root,
				    tls ? "--key" : NULL, key, "posix", root, NULL };
	char *argv[16];
	memcpy(argv, arguments, sizeof(arguments)); /* exec wants them without const */
	g->pid = fork();
	if (g->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		dup2(null, 1);
		dup2(null, 2); /* it reports what the tests do to it */
		execvp(gateway_path(), argv);
		_exit(127);
	}
	for (int i = 0; i < 200; i++) {
		if (can_connect(port)) {
			return 0;
		}
		us_clock_sleep_ns(50 * US_NS_PER_MS);
	}
	print_error("versitygw (%s) does not start\n", gateway_path());
	return -1;
}

static inline void gateway_stop(struct gateway *g)
{
	kill(g->pid, SIGKILL);
	waitpid(g->pid, NULL, 0);
	pid_t pid = fork();
	if (pid == 0) {
		execlp("rm", "rm", "-rf", g->dir, (char *)NULL);
		_exit(127);
	}
	waitpid(pid, NULL, 0);
}

static inline int start_gateway(void **state)
{
	(void)state;
	return gateway_start(&gateway, 0);
}

static inline int stop_gateway(void **state)
{
	(void)state;
	gateway_stop(&gateway);
	return 0;
}

static inline struct us_store *open_gateway(uint32_t concurrency)
{
	struct us_store *store = open_store(gateway.endpoint, "bk1", concurrency, NULL);
	set_keys(store, "ak", SECRET, NULL);
	return store;
}

/* ------------------------------------------------------- servers of our own */

#define PEERS_MAX 300

struct server {
	int listen_fd;
	uint16_t port;
	char endpoint[48];
	pthread_t thread;
	/* what it does */
	const char *answer; /* to every request, or NULL: see below */
	const char *(*answer_fn)(struct server *server, const char *request, uint64_t number);
	int hang;          /* never answers */
	int read_nothing;  /* not even that */
	int close_after;   /* closes a connection after an answer, without saying so */
	int answer_early;  /* before the request has come */
	int die_on_second; /* takes the second request of a connection, or (2) its head, and hangs
			      up */
	int64_t delay_ms;
	int64_t drip_ms; /* the answer comes byte by byte, so far apart */
	/* what it saw */
	atomic_uint_fast64_t requests, connections;
	atomic_int now, now_max;
	char last_request[8192];
	pthread_mutex_t lock;
	atomic_int stopping;
	int peer_fds[PEERS_MAX];
	pthread_t peers[PEERS_MAX];
	size_t peer_count;
};

struct peer {
	struct server *server;
	int fd;
};

static inline int read_request(int fd, char *text, size_t cap)
{
	size_t len = 0;
	char *end = NULL;
	while (!end) {
		ssize_t n = recv(fd, text + len, cap - 1 - len, 0);
		if (n <= 0) {
			return -1;
		}
		len += (size_t)n;
		text[len] = '\0';
		end = strstr(text, "\r\n\r\n");
	}
	size_t body = 0, have = len - (size_t)(end + 4 - text);
	char *field = strcasestr(text, "\r\ncontent-length: ");
	if (field) {
		body = strtoul(field + 18, NULL, 10);
	}
	char sink[65536];
	while (have < body) {
		ssize_t n =
			recv(fd, sink, body - have < sizeof(sink) ? body - have : sizeof(sink), 0);
		if (n <= 0) {
			return -1;
		}
		have += (size_t)n;
	}
	return 0;
}

/* As close(2) with unread data does; the number stays taken for server_stop. */
static inline void reset_connection(int fd)
{
	struct linger at_once = { .l_onoff = 1, .l_linger = 0 };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	dup2(null, fd);
	close(null);
}

/* 0, or -1 where nobody takes it. */
static inline int send_answer(struct server *server, int fd, const char *answer)
{
	size_t len = strlen(answer);
	size_t step = server->drip_ms ? 1 : len;
	for (size_t i = 0; i < len; i += step) {
		if (atomic_load(&server->stopping) ||
		    send(fd, answer + i, step, MSG_NOSIGNAL) < 0) {
			return -1;
		}
		us_clock_sleep_ns(server->drip_ms * US_NS_PER_MS);
	}
	return 0;
}

static inline void *peer_main(void *arg)
{
	struct peer *peer = arg;
	struct server *server = peer->server;
	int fd = peer->fd;
	free(peer);
	char text[8192];
	int requests = 0;
	if (server->answer_early) {
		(void)recv(fd, text, sizeof(text), 0);
		(void)send(fd, server->answer, strlen(server->answer), MSG_NOSIGNAL);
		us_clock_sleep_ns(100 * US_NS_PER_MS);
		shutdown(fd, SHUT_RDWR);
		return NULL;
	}
	while (!server->read_nothing) {
		int is_last = server->die_on_second && requests++ == 1;
		if (is_last && server->die_on_second == 2) {
			(void)recv(fd, text, sizeof(text), 0);
			reset_connection(fd);
			return NULL;
		}
		if (is_last || read_request(fd, text, sizeof(text))) {
			shutdown(fd, SHUT_RDWR);
			return NULL;
		}
		uint64_t number = atomic_fetch_add(&server->requests, 1);
		int now = atomic_fetch_add(&server->now, 1) + 1;
		pthread_mutex_lock(&server->lock);
		if (now > server->now_max) {
			server->now_max = now;
		}
		memcpy(server->last_request, text, sizeof(text));
		pthread_mutex_unlock(&server->lock);
		us_clock_sleep_ns(server->delay_ms * US_NS_PER_MS);
		if (server->hang) {
			break;
		}
		const char *answer = server->answer_fn ? server->answer_fn(server, text, number)
						       : server->answer;
		atomic_fetch_sub(&server->now, 1);
		if (!answer || send_answer(server, fd, answer) || server->close_after ||
		    strstr(answer, "close")) {
			shutdown(fd, SHUT_RDWR);
			return NULL;
		}
	}
	while (!atomic_load(&server->stopping) && (server->hang || server->read_nothing)) {
		us_clock_sleep_ns(10 * US_NS_PER_MS);
	}
	return NULL;
}

static inline void *server_main(void *arg)
{
	struct server *server = arg;
	for (;;) {
		int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0 || atomic_load(&server->stopping)) {
			if (fd >= 0) {
				close(fd);
			}
			return NULL;
		}
		atomic_fetch_add(&server->connections, 1);
		assert_true(server->peer_count < PEERS_MAX);
		struct peer *peer = malloc(sizeof(*peer));
		*peer = (struct peer){ server, fd };
		server->peer_fds[server->peer_count] = fd;
		pthread_create(&server->peers[server->peer_count++], NULL, peer_main, peer);
	}
}

static inline void server_start(struct server *server)
{
	server->listen_fd = listen_on(&server->port);
	(void)snprintf(server->endpoint, sizeof(server->endpoint), "http://127.0.0.1:%u/",
		       server->port);
	pthread_mutex_init(&server->lock, NULL);
	pthread_create(&server->thread, NULL, server_main, server);
}

static inline void server_stop(struct server *server)
{
	atomic_store(&server->stopping, 1);
	shutdown(server->listen_fd, SHUT_RDWR);
	pthread_join(server->thread, NULL);
	close(server->listen_fd);
	for (size_t i = 0; i < server->peer_count; i++) {
		shutdown(server->peer_fds[i], SHUT_RDWR);
		pthread_join(server->peers[i], NULL);
		close(server->peer_fds[i]);
	}
	pthread_mutex_destroy(&server->lock);
}

#define ANSWER(status, headers, length, body) \
	"HTTP/1.1 " status "\r\n" headers "Content-Length: " length "\r\n\r\n" body
#define OK_PUT ANSWER("200 OK", "ETag: \"x\"\r\n", "0", "")

#endif
