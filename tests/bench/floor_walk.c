/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a scan cannot go below: the listing of every directory and one statx for
 * every database, on as many threads as the library uses. No table, no hash, no
 * path; a sum keeps the stats from being unused.
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
};

static int is_database(const char *name)
{
	size_t len = strlen(name);
	return len > 3 && memcmp(name + len - 3, ".db", 3) == 0;
}

/* Calls FN for each name in the directory. */
static void each_name(int fd, char *listing, void (*fn)(void *arg, int fd, const char *name),
		      void *arg)
{
	long got;
	while ((got = syscall(SYS_getdents64, fd, listing, LISTING_LEN)) > 0) {
		for (long at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)(listing + at);
			fn(arg, fd, entry->d_name);
			at += entry->d_reclen;
		}
	}
	if (got < 0) {
		die_errno("getdents64");
	}
}

static void add_directory(void *arg, int fd, const char *name)
{
	struct floor *f = arg;
	(void)fd;
	if (name[0] == '.') {
		return;
	}
	if (f->count == DIRECTORIES_MAX || strlen(name) >= sizeof(f->names[0])) {
		die(name, "one directory too many, or its name is too long");
	}
	memcpy(f->names[f->count++], name, strlen(name) + 1);
}

struct sums {
	long databases;
	unsigned long long sum;
};

static void stat_database(void *arg, int fd, const char *name)
{
	struct sums *sums = arg;
	struct statx st;
	if (!is_database(name)) {
		return;
	}
	if (statx(fd, name, AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT | AT_NO_AUTOMOUNT,
		  STATX_TYPE | STATX_SIZE | STATX_MTIME | STATX_CTIME | STATX_INO, &st)) {
		die_errno(name);
	}
	sums->databases++;
	sums->sum += st.stx_size + st.stx_ino + st.stx_mtime.tv_nsec + st.stx_ctime.tv_nsec;
}

static void *walk_main(void *arg)
{
	struct floor *f = arg;
	struct sums sums = { 0, 0 };
	char *listing = malloc(LISTING_LEN);
	if (!listing) {
		die_errno("malloc");
	}
	for (long i; (i = f->next++) < f->count;) {
		int fd = openat(f->root_fd, f->names[i],
				O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (fd < 0) {
			die_errno(f->names[i]);
		}
		each_name(fd, listing, stat_database, &sums);
		(void)close(fd);
	}
	free(listing);
	f->databases += sums.databases;
	f->sum += sums.sum;
	return NULL;
}

long floor_walk(const char *root, long thread_count)
{
	pthread_t threads[BENCH_THREADS_MAX];
	struct floor f = { .names = malloc(DIRECTORIES_MAX * sizeof(f.names[0])) };
	char *listing = malloc(LISTING_LEN);
	f.root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f.root_fd < 0 || !f.names || !listing) {
		die_errno(root);
	}
	each_name(f.root_fd, listing, add_directory, &f);
	for (long i = 1; i < thread_count; i++) {
		if (pthread_create(&threads[i], NULL, walk_main, &f)) {
			die_errno("pthread_create");
		}
	}
	(void)walk_main(&f);
	for (long i = 1; i < thread_count; i++) {
		(void)pthread_join(threads[i], NULL);
	}
	(void)close(f.root_fd);
	free(listing);
	free(f.names);
	return f.databases;
}
