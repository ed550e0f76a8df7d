/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fleet TEMPLATE ROOT COUNT PER_DIRECTORY [WAL_PERCENT]
 *
 * COUNT databases ROOT/gNNNNN/tNNNNNNN.db, copies of the SQLite database TEMPLATE.
 * The text "MARKER0123456789" in a row of it becomes the database's own number, so
 * no two are the same. WAL_PERCENT of them get a copy of TEMPLATE-wal beside them.
 */
#include "bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKER "MARKER0123456789"
#define TEMPLATE_LEN_MAX (1 << 20)

struct file {
	char bytes[TEMPLATE_LEN_MAX];
	size_t len;
};

static void read_template(const char *path, struct file *ret)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd >= 0 ? read(fd, ret->bytes, sizeof(ret->bytes)) : -1;
	if (len < 0) {
		die_errno(path);
	}
	(void)close(fd);
	ret->len = (size_t)len;
}

static void write_file(const char *path, const struct file *file)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	if (fd < 0 || write(fd, file->bytes, file->len) != (ssize_t)file->len || close(fd)) {
		die_errno(path);
	}
}

int main(int argc, char **argv)
{
	static struct file image, wal;
	char path[4096], number[17];
	if (argc != 5 && argc != 6) {
		die("usage", "fleet TEMPLATE ROOT COUNT PER_DIRECTORY [WAL_PERCENT]");
	}
	long count = to_long(argv[3], 0, 10000000), per_directory = to_long(argv[4], 1, 1000000);
	long wal_percent = argc == 6 ? to_long(argv[5], 0, 100) : 0;
	read_template(argv[1], &image);
	if (wal_percent > 0) {
		(void)snprintf(path, sizeof(path), "%s-wal", argv[1]);
		read_template(path, &wal);
	}
	char *marker = memmem(image.bytes, image.len, MARKER, strlen(MARKER));
	if (!marker) {
		die(argv[1], "has no " MARKER);
	}
	for (long i = 0; i < count; i++) {
		(void)snprintf(path, sizeof(path), "%s/g%05ld", argv[2], i / per_directory);
		if (i % per_directory == 0 && mkdir(path, 0755)) {
			die_errno(path);
		}
		(void)snprintf(number, sizeof(number), "%016lx", i);
		memcpy(marker, number, 16);
		(void)snprintf(path, sizeof(path), "%s/g%05ld/t%07ld.db", argv[2],
			       i / per_directory, i);
		write_file(path, &image);
		if (i % 100 < wal_percent) {
			(void)strncat(path, "-wal", sizeof(path) - strlen(path) - 1);
			write_file(path, &wal);
		}
	}
	return 0;
}
