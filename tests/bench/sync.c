/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sync ROOT TARGET STATE_DIR: the first cycle over ROOT, into an empty TARGET.
 * Prints the memory that the process has then, too.
 *
 *	sync WALL CPU OBJECTS RSS_KB
 */
#include "bench.h"

#include <ultrasimple.h>

int main(int argc, char **argv)
{
	if (argc != 4) {
		die("usage", "sync ROOT TARGET STATE_DIR");
	}
	struct us *us = ours_open(argv[1], argv[2], argv[3]);
	struct lap start = lap_now();
	unsigned long long uploaded = ours_cycle(us, NULL, NULL);
	struct lap took = lap_since(start);
	printf("sync %.6f %.6f %llu %ld\n", took.wall_s, took.cpu_s, uploaded, rss_kb());
	us_close(us);
	return 0;
}
