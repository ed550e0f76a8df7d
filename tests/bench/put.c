/* SPDX-License-Identifier: Apache-2.0 */
/*
 * put ours|floor ENDPOINT BUCKET DIRECTORY COUNT CONCURRENCY
 *
 * COUNT files DIRECTORY/NNNNNNN as objects SIDE/NNNNNNN of BUCKET, CONCURRENCY at a time, by
 * the library's store or by the bare libcurl loop. They are in memory before; SHA-256 of
 * each counts, as a request has to be signed.
 *
 *	put WALL CPU OBJECTS
 */
#include "bench.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store.h"

struct objects {
	struct floor_object *all;
	long count, next;
};

static void read_file(const char *path, struct floor_object *object)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		die_errno(path);
	}
	object->len = (size_t)st.st_size;
	object->data = malloc(object->len);
	if (!object->data || read(fd, object->data, object->len) != st.st_size) {
		die_errno(path);
	}
	(void)close(fd);
}

static void read_all(struct objects *objects, const char *directory, const char *side)
{
	objects->all = calloc((size_t)objects->count, sizeof(objects->all[0]));
	if (!objects->all) {
		die_errno("calloc");
	}
	for (long i = 0; i < objects->count; i++) {
		char path[4096];
		(void)snprintf(path, sizeof(path), "%s/%07ld", directory, i);
		(void)snprintf(objects->all[i].key, sizeof(objects->all[i].key), "%s/%07ld", side,
			       i);
		read_file(path, &objects->all[i]);
	}
}

static int next(void *arg, long slot, struct floor_object *ret)
{
	struct objects *objects = arg;
	(void)slot;
	if (objects->next == objects->count) {
		return 0;
	}
	*ret = objects->all[objects->next++];
	return 1;
}

static struct us_store *open_store(const char *endpoint, const char *bucket, long concurrency)
{
	struct us_store *store;
	struct us_error err = US_ERROR_INIT;
	const struct us_store_s3_options options = {
		.endpoint = endpoint,
		.region = "us-east-1",
		.bucket = bucket,
		.path_style = 1,
		.concurrency = (uint32_t)concurrency,
	};
	const struct us_s3_credentials credentials = { BENCH_KEY, BENCH_SECRET, NULL };
	if (us_store_s3_open(&options, &store, &err) ||
	    us_store_s3_set_credentials(store, &credentials, &err)) {
		die("us_store_s3_open", err.message);
	}
	return store;
}

/* What the encoder has computed by then. */
static void fill(struct us_put *put, const struct floor_object *object)
{
	*put = (struct us_put){ .key = object->key,
				.data = object->data,
				.fd = -1,
				.len = object->len,
				.snapshot_time = "2026-01-01T00:00:00.000000000Z",
				.err = US_ERROR_INIT };
	if (!EVP_Digest(object->data, object->len, put->sha256, NULL, EVP_sha256(), NULL)) {
		die("SHA-256", "failed");
	}
	for (int i = 0; i < 32; i++) {
		(void)snprintf(put->lz4_sha256 + 2 * i, 3, "%02x", put->sha256[i]);
	}
}

static long put_ours(struct us_store *store, const struct objects *objects, struct us_put *puts)
{
	long done = 0;
	for (long i = 0; i < objects->count; i++) {
		fill(&puts[i], &objects->all[i]);
		store->ops->put_start(store, &puts[i]);
	}
	while (done < objects->count) {
		struct us_put *put = store->ops->put_wait(store, 1000);
		for (; put; put = put->next, done++) {
			if (put->rc) {
				die(put->key, put->err.message);
			}
		}
	}
	return done;
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		die("usage", "put ours|floor ENDPOINT BUCKET DIRECTORY COUNT CONCURRENCY");
	}
	struct objects objects = { .count = to_long(argv[5], 1, 1000000) };
	long concurrency = to_long(argv[6], 1, 1000), done;
	int is_ours = strcmp(argv[1], "ours") == 0;
	read_all(&objects, argv[4], argv[1]);
	struct us_put *puts = calloc((size_t)objects.count, sizeof(puts[0]));
	if (!puts) {
		die_errno("calloc");
	}
	struct lap begin = lap_now();
	if (is_ours) {
		struct us_store *store = open_store(argv[2], argv[3], concurrency);
		done = put_ours(store, &objects, puts);
		store->ops->close(store);
	} else {
		done = floor_put(argv[2], argv[3], concurrency, next, &objects);
	}
	struct lap took = lap_since(begin);
	printf("put %.6f %.6f %ld\n", took.wall_s, took.cpu_s, done);
	return 0;
}
