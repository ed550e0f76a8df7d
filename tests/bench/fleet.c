/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fleet TEMPLATE ROOT COUNT PER_DIRECTORY
 *
 * COUNT databases ROOT/gNNNNN/tNNNNNNN.db, copies of the SQLite database TEMPLATE.
 * The text "MARKER0123456789" in a row of it becomes the database's own number, so
 * no two are the same.
 */
#include "bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER "MARKER0123456789"
#define TEMPLATE_LEN_MAX (1 << 20)

static char image[TEMPLATE_LEN_MAX];

static size_t read_template(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd >= 0 ? read(fd, image, sizeof(image)) : -1;
	if (len < 0) {
		die_errno(path);
	}
	(void)close(fd);
	return (size_t)len;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		die("usage", "fleet TEMPLATE ROOT COUNT PER_DIRECTORY");
	}
	long count = to_long(argv[3], 0, 10000000), per_directory = to_long(argv[4], 1, 1000000);
	size_t len = read_template(argv[1]);
	char *marker = memmem(image, len, MARKER, strlen(MARKER));
	if (!marker) {
		die(argv[1], "has no " MARKER);
	}
	for (long i = 0; i < count; i++) {
		char path[4096], number[17];
		(void)snprintf(path, sizeof(path), "%s/g%05ld", argv[2], i / per_directory);
		if (i % per_directory == 0 && mkdir(path, 0755)) {
			die_errno(path);
		}
		(void)snprintf(number, sizeof(number), "%016lx", i);
		memcpy(marker, number, 16);
		(void)snprintf(path, sizeof(path), "%s/g%05ld/t%07ld.db", argv[2],
			       i / per_directory, i);
		int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
		if (fd < 0 || write(fd, image, len) != (ssize_t)len || close(fd)) {
			die_errno(path);
		}
	}
	return 0;
}
