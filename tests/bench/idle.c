/* SPDX-License-Identifier: Apache-2.0 */
/*
 * idle ROOT TARGET STATE_DIR RUNS THREADS
 *
 * Cycles until nothing is uploaded, then a few idle ones; prints what memory the
 * process then has:
 *
 *	rss KB DATABASES
 *
 * then RUNS pairs of the bare walk and an idle cycle, in turns which goes first:
 *
 *	pair FLOOR_WALL FLOOR_CPU OURS_WALL OURS_CPU OURS_SCAN      (seconds)
 */
#include "bench.h"

#include <ultrasimple.h>

#define SETTLE_CYCLES_MAX 10
#define WARM_CYCLES 3

static struct lap lap_floor(const char *root, long thread_count, unsigned long long databases)
{
	struct lap start = lap_now();
	if (floor_walk(root, thread_count) != (long)databases) {
		die(root, "the walk and the cycle do not count the same databases");
	}
	return lap_since(start);
}

static struct lap lap_ours(struct us *us, double *scan_s)
{
	struct lap start = lap_now();
	if (ours_cycle(us, NULL, scan_s)) {
		die("idle cycle", "it uploaded something: the fleet is not idle");
	}
	return lap_since(start);
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		die("usage", "idle ROOT TARGET STATE_DIR RUNS THREADS");
	}
	long runs = to_long(argv[4], 0, 1000),
	     thread_count = to_long(argv[5], 1, BENCH_THREADS_MAX);
	unsigned long long databases = 0;
	struct us *us = ours_open(argv[1], argv[2], argv[3]);
	for (int i = 0; ours_cycle(us, &databases, NULL) > 0; i++) {
		if (i == SETTLE_CYCLES_MAX) {
			die("us_cycle", "the fleet does not become idle");
		}
	}
	for (int i = 0; i < WARM_CYCLES; i++) {
		(void)ours_cycle(us, NULL, NULL);
	}
	printf("rss %ld %llu\n", rss_kb(), databases);
	(void)floor_walk(argv[1], thread_count);
	for (long i = 0; i < runs; i++) {
		struct lap floor = { 0, 0 }, ours;
		double scan_s;
		if (i % 2 == 0) {
			floor = lap_floor(argv[1], thread_count, databases);
		}
		ours = lap_ours(us, &scan_s);
		if (i % 2 != 0) {
			floor = lap_floor(argv[1], thread_count, databases);
		}
		printf("pair %.6f %.6f %.6f %.6f %.6f\n", floor.wall_s, floor.cpu_s, ours.wall_s,
		       ours.cpu_s, scan_s);
	}
	us_close(us);
	return 0;
}
