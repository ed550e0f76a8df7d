/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cycles ROOT TARGET STATE_DIR COUNT: the next COUNT cycles over ROOT, with the memory that
 * the process has after each.
 *
 *	cycle WALL CPU OBJECTS RSS_KB
 */
#include "bench.h"

#include <ultrasimple.h>

int main(int argc, char **argv)
{
	if (argc != 5) {
		die("usage", "cycles ROOT TARGET STATE_DIR COUNT");
	}
	long count = to_long(argv[4], 1, 1000);
	struct us *us = ours_open(argv[1], argv[2], argv[3]);
	for (long i = 0; i < count; i++) {
		struct lap start = lap_now();
		unsigned long long uploaded = ours_cycle(us, NULL, NULL);
		struct lap took = lap_since(start);
		printf("cycle %.6f %.6f %llu %ld\n", took.wall_s, took.cpu_s, uploaded, rss_kb());
	}
	us_close(us);
	return 0;
}
