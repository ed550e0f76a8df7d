/* SPDX-License-Identifier: Apache-2.0 */
/*
 * image DIRECTORY COUNT ROUNDS
 *
 * COUNT databases of 20 KB in WAL mode, made in DIRECTORY, each with ten frames in a -wal
 * that a process of its own keeps in use. ROUNDS times, in turns which goes first, an image
 * of each into memory: by libsqlite3 (open, BEGIN, sqlite3_serialize, close) and by the
 * library's reader. All images are compared once.
 *
 *	pair SQLITE_WALL SQLITE_CPU OURS_WALL OURS_CPU      (seconds for an image)
 */
#include "bench.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "read/image.h"

#define DATABASES_MAX 1000
#define DATABASE_LEN ((size_t)20 * 1024)
#define IMAGE_LEN_MAX ((size_t)64 * 1024)
#define FRAMES 10
/* What bin/litestream gives each of its readers at the default memory_limit, or more. */
#define READER_MEMORY_LEN ((size_t)20 << 20)
#define WAL_LEN (32 + FRAMES * (24 + 4096))

struct copy {
	uint8_t bytes[IMAGE_LEN_MAX];
	size_t len;
};

static const char *directory;

static void path_of(long number, const char *suffix, char *ret, size_t cap)
{
	(void)snprintf(ret, cap, "%s/%04ld.db%s", directory, number, suffix);
}

static void run(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL)) {
		die(sql, sqlite3_errmsg(db));
	}
}

/* Each row of `page` fills a page, so an UPDATE of it is one frame. */
static sqlite3 *make(long number)
{
	char path[4096];
	sqlite3 *db;
	struct stat st;
	path_of(number, "", path, sizeof(path));
	if (sqlite3_open(path, &db)) {
		die(path, sqlite3_errmsg(db));
	}
	run(db, "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
		"CREATE TABLE page (id INTEGER PRIMARY KEY, text);"
		"INSERT INTO page VALUES (1, hex(randomblob(1800))), (2, hex(randomblob(1800))),"
		" (3, hex(randomblob(1800)));"
		"PRAGMA wal_checkpoint(TRUNCATE)");
	for (int i = 0; i < FRAMES; i++) {
		run(db, i % 3 == 0   ? "UPDATE page SET text = hex(randomblob(1800)) WHERE id = 1"
			: i % 3 == 1 ? "UPDATE page SET text = hex(randomblob(1800)) WHERE id = 2"
				     : "UPDATE page SET text = hex(randomblob(1800)) WHERE id = 3");
	}
	if (stat(path, &st) || (size_t)st.st_size != DATABASE_LEN) {
		die(path, "is not 20 KB");
	}
	path_of(number, "-wal", path, sizeof(path));
	if (stat(path, &st) || st.st_size != WAL_LEN) {
		die(path, "does not have ten frames");
	}
	return db;
}

/* The application: makes the databases, says so through FD, and keeps them open. */
static void application(long count, int fd)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (long i = 0; i < count; i++) {
		(void)make(i);
	}
	if (write(fd, "", 1) != 1) {
		die_errno("pipe");
	}
	for (;;) {
		(void)pause();
	}
}

/* The image, to be freed with sqlite3_free. */
static unsigned char *sqlite_image(long number, size_t *ret_len)
{
	char path[4096];
	sqlite3 *db;
	sqlite3_int64 len;
	path_of(number, "", path, sizeof(path));
	if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL)) {
		die(path, sqlite3_errmsg(db));
	}
	run(db, "BEGIN");
	unsigned char *bytes = sqlite3_serialize(db, "main", &len, 0);
	if (!bytes) {
		die(path, "cannot be serialized");
	}
	run(db, "COMMIT");
	if (sqlite3_close(db)) {
		die(path, "cannot be closed");
	}
	*ret_len = (size_t)len;
	return bytes;
}

static int32_t begin(void *arg, const struct us_image_info *info, struct us_error *err)
{
	struct copy *copy = arg;
	(void)info;
	(void)err;
	copy->len = 0;
	return 0;
}

static int32_t append(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct copy *copy = arg;
	(void)err;
	if (data_len > sizeof(copy->bytes) - copy->len) {
		die("image", "is too long");
	}
	memcpy(copy->bytes + copy->len, data, data_len);
	copy->len += data_len;
	return 0;
}

struct ours {
	struct us_reader *reader;
	int directory_fd;
	uint64_t *inodes;
	struct copy copy;
};

static void our_image(struct ours *ours, long number)
{
	char name[32];
	struct us_image_info info;
	struct us_error err = US_ERROR_INIT;
	(void)snprintf(name, sizeof(name), "%04ld.db", number);
	const struct us_read_source source = {
		.prefix_fd = ours->directory_fd,
		.rel = name,
		.display = name,
		.inode = ours->inodes[number],
	};
	const struct us_image_sink sink = { .begin = begin, .write = append, .arg = &ours->copy };
	if (us_read_image(ours->reader, &source, &sink, &info, &err)) {
		die(name, err.message);
	}
}

static void compare(struct ours *ours, long count)
{
	for (long i = 0; i < count; i++) {
		size_t len;
		unsigned char *bytes = sqlite_image(i, &len);
		our_image(ours, i);
		if (len != ours->copy.len || memcmp(bytes, ours->copy.bytes, len) != 0) {
			die("image", "is not that of libsqlite3");
		}
		sqlite3_free(bytes);
	}
}

static struct lap lap_sqlite(long count)
{
	struct lap start = lap_now();
	for (long i = 0; i < count; i++) {
		size_t len;
		sqlite3_free(sqlite_image(i, &len));
	}
	return lap_since(start);
}

static struct lap lap_ours(struct ours *ours, long count)
{
	struct lap start = lap_now();
	for (long i = 0; i < count; i++) {
		our_image(ours, i);
	}
	return lap_since(start);
}

static void open_ours(struct ours *ours, long count)
{
	struct us_error err = US_ERROR_INIT;
	ours->directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ours->inodes = calloc((size_t)count, sizeof(ours->inodes[0]));
	if (ours->directory_fd < 0 || !ours->inodes) {
		die_errno(directory);
	}
	for (long i = 0; i < count; i++) {
		char path[4096];
		struct stat st;
		path_of(i, "", path, sizeof(path));
		if (stat(path, &st)) {
			die_errno(path);
		}
		ours->inodes[i] = st.st_ino;
	}
	if (us_reader_new(READER_MEMORY_LEN, ours->directory_fd, &ours->reader, &err)) {
		die("us_reader_new", err.message);
	}
}

static pid_t start_application(long count)
{
	int pipes[2];
	char byte;
	if (pipe2(pipes, O_CLOEXEC)) {
		die_errno("pipe");
	}
	pid_t pid = fork();
	if (pid < 0) {
		die_errno("fork");
	}
	if (pid == 0) {
		application(count, pipes[1]);
	}
	(void)close(pipes[1]);
	if (read(pipes[0], &byte, 1) != 1) {
		die("the application", "has failed");
	}
	(void)close(pipes[0]);
	return pid;
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		die("usage", "image DIRECTORY COUNT ROUNDS");
	}
	directory = argv[1];
	long count = to_long(argv[2], 1, DATABASES_MAX), rounds = to_long(argv[3], 1, 1000);
	pid_t pid = start_application(count);
	static struct ours ours;
	open_ours(&ours, count);
	compare(&ours, count);
	for (long i = 0; i < rounds; i++) {
		struct lap sqlite = { 0, 0 };
		if (i % 2 == 0) {
			sqlite = lap_sqlite(count);
		}
		struct lap our = lap_ours(&ours, count);
		if (i % 2 != 0) {
			sqlite = lap_sqlite(count);
		}
		printf("pair %.9f %.9f %.9f %.9f\n", sqlite.wall_s / (double)count,
		       sqlite.cpu_s / (double)count, our.wall_s / (double)count,
		       our.cpu_s / (double)count);
	}
	us_reader_free(ours.reader);
	free(ours.inodes);
	(void)close(ours.directory_fd);
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	return 0;
}
