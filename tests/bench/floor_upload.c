/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor_upload ROOT COUNT PER_DIRECTORY STEP ENDPOINT BUCKET THREADS
 *
 * What a cycle cannot go below that uploads every STEP-th of the COUNT databases that
 * fleet.c has made below ROOT: the bare walk of all, and for each of these: the database
 * and its -wal are read, the checksums of the WAL followed, its pages put over those of the
 * database, the image made an LZ4 frame, hashed, signed and put into BUCKET, a hundred at a
 * time. No locks looked at, no second look, no trailer, no state. CPU is of this process;
 * one thread, so nothing of it is spent on handing over.
 *
 *	upload WALL CPU OBJECTS FRAMES
 */
#include "bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONCURRENCY 100
#define IMAGE_LEN_MAX ((size_t)1 << 20)
#define WAL_LEN_MAX ((size_t)4 << 20)
#define WAL_HEADER_LEN 32
#define FRAME_HEADER_LEN 24

struct upload {
	int root_fd;
	long count, per_directory, step, at, frames;
	struct floor_frame *frame;
	uint8_t *image, *wal;
	uint8_t *objects[CONCURRENCY];
};

static uint32_t be32(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

/* Goes on with a WAL's checksum, of words in this machine's order. */
static void add_sum(uint32_t sum[2], const uint8_t *data, size_t len)
{
	uint32_t a = sum[0], b = sum[1];
	for (size_t i = 0; i < len; i += 8) {
		uint32_t words[2];
		memcpy(words, data + i, sizeof(words));
		a += words[0] + b;
		b += words[1] + a;
	}
	sum[0] = a;
	sum[1] = b;
}

static int has_sum(const uint8_t *p, const uint32_t sum[2])
{
	return be32(p) == sum[0] && be32(p + 4) == sum[1];
}

/* Reads a file, 0 bytes of one that is not there. */
static size_t read_file(struct upload *u, const char *path, uint8_t *ret, size_t cap)
{
	struct stat st;
	int fd = openat(u->root_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT) {
		return 0;
	}
	if (fd < 0 || fstat(fd, &st) || (size_t)st.st_size > cap ||
	    read(fd, ret, (size_t)st.st_size) != st.st_size) {
		die_errno(path);
	}
	(void)close(fd);
	return (size_t)st.st_size;
}

/* Puts the committed frames of the WAL over the image; returns the image's length. */
static size_t apply_wal(struct upload *u, size_t image_len, size_t wal_len)
{
	const uint8_t *wal = u->wal;
	uint32_t sum[2] = { 0, 0 };
	if (wal_len < WAL_HEADER_LEN) {
		return image_len;
	}
	size_t page_len = be32(wal + 8), frame_len = FRAME_HEADER_LEN + page_len;
	size_t applied = WAL_HEADER_LEN;
	add_sum(sum, wal, 24);
	if (be32(wal) != 0x377f0682 || !has_sum(wal + 24, sum)) {
		die("WAL", "its header is not right, or not of this machine's byte order");
	}
	for (size_t at = WAL_HEADER_LEN; at + frame_len <= wal_len; at += frame_len) {
		const uint8_t *frame = wal + at;
		add_sum(sum, frame, 8);
		add_sum(sum, frame + FRAME_HEADER_LEN, page_len);
		if (memcmp(frame + 8, wal + 16, 8) != 0 || !has_sum(frame + 16, sum)) {
			break;
		}
		if (be32(frame + 4) == 0) {
			continue; /* no commit */
		}
		image_len = be32(frame + 4) * page_len;
		for (; applied <= at; applied += frame_len, u->frames++) {
			size_t off = (be32(wal + applied) - 1) * page_len;
			if (off + page_len > IMAGE_LEN_MAX) {
				die("WAL", "a page beyond the longest image");
			}
			memcpy(u->image + off, wal + applied + FRAME_HEADER_LEN, page_len);
		}
	}
	return image_len;
}

static int next(void *arg, long slot, struct floor_object *ret)
{
	struct upload *u = arg;
	char path[128];
	long i = u->at;
	if (i >= u->count) {
		return 0;
	}
	u->at += u->step;
	(void)snprintf(path, sizeof(path), "g%05ld/t%07ld.db", i / u->per_directory, i);
	size_t image_len = read_file(u, path, u->image, IMAGE_LEN_MAX);
	(void)snprintf(path, sizeof(path), "g%05ld/t%07ld.db-wal", i / u->per_directory, i);
	image_len = apply_wal(u, image_len, read_file(u, path, u->wal, WAL_LEN_MAX));
	ret->data = u->objects[slot];
	ret->len = floor_frame(u->frame, u->image, image_len, ret->data, 2 * IMAGE_LEN_MAX);
	(void)snprintf(ret->key, sizeof(ret->key), "g%05ld/t%07ld/20260101T000000Z.db.lz4",
		       i / u->per_directory, i);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc != 8) {
		die("usage", "floor_upload ROOT COUNT PER_DIRECTORY STEP ENDPOINT BUCKET THREADS");
	}
	struct upload u = {
		.root_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC),
		.count = to_long(argv[2], 1, 10000000),
		.per_directory = to_long(argv[3], 1, 1000000),
		.step = to_long(argv[4], 1, 1000000),
		.image = malloc(IMAGE_LEN_MAX),
		.wal = malloc(WAL_LEN_MAX),
	};
	if (u.root_fd < 0 || !u.image || !u.wal) {
		die_errno(argv[1]);
	}
	for (long i = 0; i < CONCURRENCY; i++) {
		u.objects[i] = malloc(2 * IMAGE_LEN_MAX);
		if (!u.objects[i]) {
			die_errno("malloc");
		}
	}
	struct lap begin = lap_now();
	u.frame = floor_frame_new();
	if (floor_walk(argv[1], to_long(argv[7], 1, BENCH_THREADS_MAX)) != u.count) {
		die(argv[1], "has another number of databases");
	}
	long done = floor_put(argv[5], argv[6], CONCURRENCY, next, &u);
	struct lap took = lap_since(begin);
	printf("upload %.6f %.6f %ld %ld\n", took.wall_s, took.cpu_s, done, u.frames);
	return 0;
}
