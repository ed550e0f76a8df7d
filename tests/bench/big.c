/* SPDX-License-Identifier: Apache-2.0 */
/*
 * big DIRECTORY NAME SPOOL_PARENT: the image of one large database, read, made an object
 * and kept in the spool, as a cycle does it before it sends the object.
 *
 *	big WALL CPU OBJECT_LEN RSS_BEFORE_KB RSS_MOST_KB
 */
#include "bench.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/spool.h"
#include "encode/encode.h"
#include "read/image.h"

/* What bin/litestream gives each of three readers at the default memory_limit. */
#define READER_MEMORY_LEN ((size_t)21 << 20)

static int32_t begin(void *arg, const struct us_image_info *info, struct us_error *err)
{
	return us_encoder_begin(arg, info->image_len, 1, err);
}

static int32_t append(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	return us_encoder_write(arg, data, data_len, err);
}

static void describe(struct us_trailer *trailer, const char *name, const struct us_image_info *info)
{
	(void)snprintf(trailer->path, sizeof(trailer->path), "/%s", name);
	trailer->snapshot_ns = info->snapshot_ns;
	trailer->database_len = info->image_len;
	trailer->page_size = info->page_size;
	trailer->change_counter = info->change_counter;
	trailer->mode = info->mode;
}

static long rss_most_kb(void)
{
	struct rusage used;
	if (getrusage(RUSAGE_SELF, &used)) {
		die_errno("getrusage");
	}
	return used.ru_maxrss;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		die("usage", "big DIRECTORY NAME SPOOL_PARENT");
	}
	struct us_error err = US_ERROR_INIT;
	struct us_reader *reader;
	struct us_encoder *encoder;
	struct us_image_info info;
	struct us_object object;
	static struct us_trailer trailer;
	struct stat st;
	int prefix_fd = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (prefix_fd < 0 || fstatat(prefix_fd, argv[2], &st, AT_SYMLINK_NOFOLLOW)) {
		die_errno(argv[2]);
	}
	int spool_fd = us_spool_open(argv[3], &err);
	if (spool_fd < 0 || us_reader_new(READER_MEMORY_LEN, spool_fd, &reader, &err) ||
	    us_encoder_new(spool_fd, &encoder, &err)) {
		die("big", err.message);
	}
	const struct us_read_source source = {
		.prefix_fd = prefix_fd,
		.rel = argv[2],
		.display = argv[2],
		.inode = st.st_ino,
		.patient = 1,
	};
	const struct us_image_sink sink = { .begin = begin, .write = append, .arg = encoder };
	long before_kb = rss_kb();
	struct lap start = lap_now();
	if (us_read_image(reader, &source, &sink, &info, &err)) {
		die(argv[2], err.message);
	}
	describe(&trailer, argv[2], &info);
	if (us_encoder_end(encoder, &trailer, &object, &err)) {
		die(argv[2], err.message);
	}
	struct lap took = lap_since(start);
	printf("big %.6f %.6f %llu %ld %ld\n", took.wall_s, took.cpu_s,
	       (unsigned long long)object.len, before_kb, rss_most_kb());
	us_object_done(&object);
	us_encoder_free(encoder);
	us_reader_free(reader);
	(void)close(spool_fd);
	(void)close(prefix_fd);
	return 0;
}
