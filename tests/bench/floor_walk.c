/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a scan cannot go below: the listing of every directory and one statx for every
 * database and every -wal, on as many threads as the library uses. No table, no hash, no
 * path; a sum keeps the stats from being unused.
 *
 * Threads take directories; if there are fewer of these than threads, all work on one after
 * the other, each on a piece of its listing.
 */
#include "bench.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LISTING_LEN (64 * 1024)
#define DIRECTORIES_MAX 100000

struct floor {
	int root_fd;
	char (*names)[64];
	long count;
	_Atomic long next, databases;
	_Atomic unsigned long long sum;
	int is_shared;
	pthread_mutex_t mutex; /* held while a piece of a shared directory is listed */
	int shared_fds[BENCH_THREADS_MAX];
};

struct sums {
	long databases;
	unsigned long long sum;
};

static int ends_with(const char *name, size_t len, const char *suffix, size_t suffix_len)
{
	return len > suffix_len && memcmp(name + len - suffix_len, suffix, suffix_len) == 0;
}

static long list(int fd, char *listing)
{
	long got = syscall(SYS_getdents64, fd, listing, LISTING_LEN);
	if (got < 0) {
		die_errno("getdents64");
	}
	return got;
}

static void stat_names(struct sums *sums, int fd, const char *listing, long got)
{
	for (long at = 0; at < got;) {
		const struct dirent64 *entry = (const void *)(listing + at);
		size_t len = strlen(entry->d_name);
		int is_database = ends_with(entry->d_name, len, ".db", 3);
		struct statx st;
		at += entry->d_reclen;
		if (!is_database && !ends_with(entry->d_name, len, ".db-wal", 7)) {
			continue;
		}
		if (statx(fd, entry->d_name,
			  AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT | AT_NO_AUTOMOUNT,
			  STATX_TYPE | STATX_SIZE | STATX_MTIME | STATX_CTIME | STATX_INO, &st)) {
			die_errno(entry->d_name);
		}
		sums->databases += is_database;
		sums->sum += st.stx_size + st.stx_ino + st.stx_mtime.tv_nsec + st.stx_ctime.tv_nsec;
	}
}

static int open_directory(const struct floor *f, long number)
{
	int fd = openat(f->root_fd, f->names[number],
			O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		die_errno(f->names[number]);
	}
	return fd;
}

static void walk_shared(struct floor *f, int fd, char *listing, struct sums *sums)
{
	for (;;) {
		(void)pthread_mutex_lock(&f->mutex);
		long got = list(fd, listing);
		(void)pthread_mutex_unlock(&f->mutex);
		if (got == 0) {
			return;
		}
		stat_names(sums, fd, listing, got);
	}
}

static void walk_own(struct floor *f, char *listing, struct sums *sums)
{
	for (long i; (i = f->next++) < f->count;) {
		int fd = open_directory(f, i);
		for (long got; (got = list(fd, listing)) > 0;) {
			stat_names(sums, fd, listing, got);
		}
		(void)close(fd);
	}
}

static void *walk_main(void *arg)
{
	struct floor *f = arg;
	struct sums sums = { 0, 0 };
	char *listing = malloc(LISTING_LEN);
	if (!listing) {
		die_errno("malloc");
	}
	for (long i = 0; f->is_shared && i < f->count; i++) {
		walk_shared(f, f->shared_fds[i], listing, &sums);
	}
	if (!f->is_shared) {
		walk_own(f, listing, &sums);
	}
	free(listing);
	f->databases += sums.databases;
	f->sum += sums.sum;
	return NULL;
}

static void list_root(struct floor *f)
{
	char *listing = malloc(LISTING_LEN);
	if (!listing) {
		die_errno("malloc");
	}
	for (long got; (got = list(f->root_fd, listing)) > 0;) {
		for (long at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)(listing + at);
			size_t len = strlen(entry->d_name);
			at += entry->d_reclen;
			if (entry->d_name[0] == '.') {
				continue;
			}
			if (f->count == DIRECTORIES_MAX || len >= sizeof(f->names[0])) {
				die(entry->d_name, "one directory too many, or a long name");
			}
			memcpy(f->names[f->count++], entry->d_name, len + 1);
		}
	}
	free(listing);
}

static void share(struct floor *f)
{
	f->is_shared = 1;
	(void)pthread_mutex_init(&f->mutex, NULL);
	for (long i = 0; i < f->count; i++) {
		f->shared_fds[i] = open_directory(f, i);
	}
}

static void close_shared(struct floor *f)
{
	for (long i = 0; f->is_shared && i < f->count; i++) {
		(void)close(f->shared_fds[i]);
	}
}

long floor_walk(const char *root, long thread_count)
{
	pthread_t threads[BENCH_THREADS_MAX];
	struct floor f = { .names = malloc(DIRECTORIES_MAX * sizeof(f.names[0])) };
	f.root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f.root_fd < 0 || !f.names) {
		die_errno(root);
	}
	list_root(&f);
	if (f.count < thread_count) {
		share(&f);
	}
	for (long i = 1; i < thread_count; i++) {
		if (pthread_create(&threads[i], NULL, walk_main, &f)) {
			die_errno("pthread_create");
		}
	}
	(void)walk_main(&f);
	for (long i = 1; i < thread_count; i++) {
		(void)pthread_join(threads[i], NULL);
	}
	close_shared(&f);
	(void)close(f.root_fd);
	free(f.names);
	return f.databases;
}
