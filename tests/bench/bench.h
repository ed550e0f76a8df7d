/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BENCH_H
#define US_BENCH_H

/* Helpers of the benchmarks. They measure and print; run.sh compares. */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define BENCH_THREADS_MAX 64

static inline void die(const char *what, const char *why)
{
	fprintf(stderr, "bench: %s: %s\n", what, why);
	exit(1);
}

static inline void die_errno(const char *what)
{
	die(what, strerror(errno));
}

static inline long to_long(const char *text, long least, long most)
{
	char *end;
	long value = strtol(text, &end, 10);
	if (*text == '\0' || *end != '\0' || value < least || value > most) {
		die(text, "is no number, or out of range");
	}
	return value;
}

/* Wall time, and CPU time (user and system) of this process. */
struct lap {
	double wall_s, cpu_s;
};

static inline struct lap lap_now(void)
{
	struct timespec now;
	struct rusage used;
	if (clock_gettime(CLOCK_MONOTONIC, &now) || getrusage(RUSAGE_SELF, &used)) {
		die_errno("clock");
	}
	return (struct lap){
		.wall_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9,
		.cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
			 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
	};
}

static inline struct lap lap_since(struct lap start)
{
	struct lap now = lap_now();
	return (struct lap){ now.wall_s - start.wall_s, now.cpu_s - start.cpu_s };
}

static inline long rss_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *f = fopen("/proc/self/status", "re");
	while (f && fgets(line, sizeof(line), f)) {
		(void)sscanf(line, "VmRSS: %ld", &kb);
	}
	if (!f || kb < 0) {
		die("/proc/self/status", "has no VmRSS");
	}
	(void)fclose(f);
	return kb;
}

/* floor_walk.c: the bare walk of ROOT's subdirectories: getdents64, and one statx for
 * each name ending in .db or .db-wal. Returns how many names end in .db. */
long floor_walk(const char *root, long thread_count);

/* floor_frame.c: one LZ4 frame (content size, independent blocks, content checksum). */
struct floor_frame;
struct floor_frame *floor_frame_new(void);
/* Compresses IMAGE into RET_FRAME (CAP bytes); returns its length. */
size_t floor_frame(struct floor_frame *f, const uint8_t *image, size_t image_len,
		   uint8_t *ret_frame, size_t cap);

/* floor_put.c: signed PUTs, CONCURRENCY at a time, by a bare libcurl multi loop. */
struct floor_object {
	char key[128];
	uint8_t *data;
	size_t len;
};
/* Fills OBJECT (its DATA may be used again once as many have been asked for as are sent at
 * a time); 0: there are no more. SLOT: which of those it is. */
typedef int floor_next_fn(void *arg, long slot, struct floor_object *ret_object);
/* Returns how many were acknowledged; any failure ends the program. */
long floor_put(const char *endpoint, const char *bucket, long concurrency, floor_next_fn *next,
	       void *arg);

#define BENCH_KEY "benchkey"
#define BENCH_SECRET "benchsecret"

/* ours.c: a fleet ROOT/{group}/{tenant}.db with the file target. */
struct us *ours_open(const char *root, const char *target, const char *state_dir);
/* One cycle that must not fail; returns the databases uploaded. SCAN_S may be NULL. */
unsigned long long ours_cycle(struct us *us, unsigned long long *ret_databases, double *scan_s);

#endif
