/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor_sync ROOT TARGET THREADS
 *
 * What a first sync cannot go below: every database of ROOT is read, made an LZ4
 * frame (content size, independent blocks, content checksum), hashed (SHA-256 of
 * the frame), and put in TARGET under the library's names with the library's
 * durability: batches of 1,024 objects are written to temporary files, made
 * durable (syncfs), renamed into directories made for them, made durable again.
 * Each thread works on a batch of its own, so one computes while the other waits
 * for the disk. No locks looked at, no second look, no trailer, no state.
 *
 *	sync WALL CPU OBJECTS
 */
#include "bench.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH 1024
#define DATABASE_LEN_MAX ((size_t)1 << 20)
#define OBJECT_NAME "20260101T000000Z.db.lz4"
#define TMP ".tmp"

struct database {
	char group[32], name[64]; /* NAME without .db */
};

struct floor {
	int root_fd, target_fd, tmp_fd;
	struct database *databases;
	long count, cap;
	_Atomic long next;
};

struct worker {
	struct floor *floor;
	pthread_t thread;
	uint8_t *image, *object;
	size_t object_cap;
	struct floor_frame *frame;
	EVP_MD_CTX *sha;
};

static void list_group(struct floor *f, const char *group)
{
	int fd = openat(f->root_fd, group, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		die_errno(group);
	}
	for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
		size_t len = strlen(entry->d_name);
		if (len < 4 || strcmp(entry->d_name + len - 3, ".db") != 0) {
			continue;
		}
		if (f->count == f->cap) {
			f->cap = f->cap ? f->cap * 2 : 4096;
			f->databases =
				realloc(f->databases, (size_t)f->cap * sizeof(f->databases[0]));
			if (!f->databases) {
				die_errno("realloc");
			}
		}
		struct database *d = &f->databases[f->count++];
		if (snprintf(d->group, sizeof(d->group), "%s", group) >= (int)sizeof(d->group) ||
		    snprintf(d->name, sizeof(d->name), "%.*s", (int)len - 3, entry->d_name) >=
			    (int)sizeof(d->name)) {
			die(entry->d_name, "is too long");
		}
	}
	(void)closedir(dir);
}

static void list_all(struct floor *f, const char *root)
{
	DIR *dir = opendir(root);
	if (!dir) {
		die_errno(root);
	}
	for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
		if (entry->d_name[0] != '.') {
			list_group(f, entry->d_name);
		}
	}
	(void)closedir(dir);
}

static size_t read_database(struct worker *w, const struct database *d)
{
	char path[128];
	struct stat st;
	(void)snprintf(path, sizeof(path), "%s/%s.db", d->group, d->name);
	int fd = openat(w->floor->root_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) || (size_t)st.st_size > DATABASE_LEN_MAX ||
	    read(fd, w->image, (size_t)st.st_size) != st.st_size) {
		die_errno(path);
	}
	(void)close(fd);
	return (size_t)st.st_size;
}

static size_t encode(struct worker *w, size_t image_len)
{
	size_t len = floor_frame(w->frame, w->image, image_len, w->object, w->object_cap);
	uint8_t digest[32];
	if (!EVP_DigestInit_ex(w->sha, EVP_sha256(), NULL) ||
	    !EVP_DigestUpdate(w->sha, w->object, len) ||
	    !EVP_DigestFinal_ex(w->sha, digest, NULL)) {
		die("SHA-256", "failed");
	}
	return len;
}

static void write_temporary(struct worker *w, long number, size_t len)
{
	char name[32];
	(void)snprintf(name, sizeof(name), "%016lx", number);
	int fd = openat(w->floor->tmp_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, w->object, len) != (ssize_t)len) {
		die_errno(name);
	}
	(void)close(fd);
}

static void place(const struct floor *f, long number)
{
	const struct database *d = &f->databases[number];
	char name[32], path[160];
	(void)snprintf(name, sizeof(name), "%016lx", number);
	(void)snprintf(path, sizeof(path), "%s/%s", d->group, d->name);
	if (mkdirat(f->target_fd, path, 0700)) {
		if (errno != ENOENT || (mkdirat(f->target_fd, d->group, 0700) && errno != EEXIST) ||
		    mkdirat(f->target_fd, path, 0700)) {
			die_errno(path);
		}
	}
	(void)snprintf(path, sizeof(path), "%s/%s/" OBJECT_NAME, d->group, d->name);
	if (renameat(f->tmp_fd, name, f->target_fd, path)) {
		die_errno(path);
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct floor *f = w->floor;
	for (long first; (first = atomic_fetch_add(&f->next, BATCH)) < f->count;) {
		long end = first + BATCH < f->count ? first + BATCH : f->count;
		for (long i = first; i < end; i++) {
			size_t image_len = read_database(w, &f->databases[i]);
			write_temporary(w, i, encode(w, image_len));
		}
		if (syncfs(f->target_fd)) {
			die_errno("syncfs");
		}
		for (long i = first; i < end; i++) {
			place(f, i);
		}
		if (syncfs(f->target_fd)) {
			die_errno("syncfs");
		}
	}
	return NULL;
}

static void start(struct worker *w, struct floor *f)
{
	w->floor = f;
	w->image = malloc(DATABASE_LEN_MAX);
	w->object_cap = DATABASE_LEN_MAX + 65536;
	w->object = malloc(w->object_cap);
	w->sha = EVP_MD_CTX_new();
	w->frame = floor_frame_new();
	if (!w->image || !w->object || !w->sha || pthread_create(&w->thread, NULL, work, w)) {
		die("worker", "cannot be started");
	}
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		die("usage", "floor_sync ROOT TARGET THREADS");
	}
	long thread_count = to_long(argv[3], 1, BENCH_THREADS_MAX);
	static struct worker workers[BENCH_THREADS_MAX];
	struct floor f = { .count = 0 };
	struct lap begin = lap_now();
	f.root_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (mkdir(argv[2], 0700) ||
	    (f.target_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 ||
	    mkdirat(f.target_fd, TMP, 0700) ||
	    (f.tmp_fd = openat(f.target_fd, TMP, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0 ||
	    f.root_fd < 0) {
		die_errno(argv[2]);
	}
	list_all(&f, argv[1]);
	for (long i = 0; i < thread_count; i++) {
		start(&workers[i], &f);
	}
	for (long i = 0; i < thread_count; i++) {
		(void)pthread_join(workers[i].thread, NULL);
	}
	struct lap took = lap_since(begin);
	printf("sync %.6f %.6f %ld\n", took.wall_s, took.cpu_s, f.count);
	return 0;
}
