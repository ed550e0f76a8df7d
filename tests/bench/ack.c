/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ack ROOT COUNT PER_DIRECTORY STEP OBJECTS SECONDS
 *
 * The application of every STEP-th of the COUNT databases that fleet.c has made below ROOT
 * commits the present time into one after the other, each about once a second. OBJECTS is
 * the directory in which the S3 server keeps the bucket: as soon as an object appears there
 * it is read, and every commit that it is the first to have is a sample: from before the
 * commit until then.
 *
 *	ack P50 P99 MOST SAMPLES      (seconds)
 */
#include "bench.h"

#include <dirent.h>
#include <fcntl.h>
#include <lz4frame.h>
#include <poll.h>
#include <sqlite3.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#define DATABASES_MAX 1000
#define SAMPLES_MAX 1000000
#define OBJECT_LEN_MAX ((size_t)4 << 20)
#define WARM_UP_S 5
#define DRAIN_S 5

struct database {
	sqlite3 *db;
	sqlite3_stmt *insert;
	char objects[512]; /* directory */
	int watch;
	sqlite3_int64 seen; /* last row found in an object */
};

static struct database databases[DATABASES_MAX];
static long database_count;
static double samples[SAMPLES_MAX];
static size_t sample_count;
static double warm_s;

static double now_s(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void run(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL)) {
		die(sql, sqlite3_errmsg(db));
	}
}

static void open_database(const char *root, const char *objects, long number, long per_directory,
			  int inotify_fd)
{
	struct database *d = &databases[database_count++];
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/g%05ld/t%07ld.db", root, number / per_directory,
		       number);
	if (sqlite3_open(path, &d->db)) {
		die(path, sqlite3_errmsg(d->db));
	}
	run(d->db, "PRAGMA cache_size=10; PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL;"
		   "CREATE TABLE moment (id INTEGER PRIMARY KEY, at REAL)");
	if (sqlite3_prepare_v2(d->db, "INSERT INTO moment (at) VALUES (?1)", -1, &d->insert,
			       NULL)) {
		die(path, sqlite3_errmsg(d->db));
	}
	(void)snprintf(d->objects, sizeof(d->objects), "%s/g%05ld/t%07ld", objects,
		       number / per_directory, number);
	d->watch =
		inotify_add_watch(inotify_fd, d->objects, IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE);
	if (d->watch < 0) {
		die_errno(d->objects);
	}
}

static void commit(struct database *d)
{
	(void)sqlite3_bind_double(d->insert, 1, now_s());
	if (sqlite3_step(d->insert) != SQLITE_DONE || sqlite3_reset(d->insert)) {
		die("commit", sqlite3_errmsg(d->db));
	}
}

/* The image in an object. */
static size_t decode(const uint8_t *object, size_t object_len, uint8_t *ret, size_t cap)
{
	LZ4F_dctx *lz4;
	size_t done = 0;
	if (LZ4F_isError(LZ4F_createDecompressionContext(&lz4, LZ4F_VERSION))) {
		die("LZ4F", "cannot be started");
	}
	for (size_t at = 0, hint = 1; hint > 0 && at < object_len;) {
		size_t in_len = object_len - at, out_len = cap - done;
		hint = LZ4F_decompress(lz4, ret + done, &out_len, object + at, &in_len, NULL);
		if (LZ4F_isError(hint)) {
			die("LZ4F", LZ4F_getErrorName(hint));
		}
		at += in_len;
		done += out_len;
	}
	(void)LZ4F_freeDecompressionContext(lz4);
	return done;
}

static void take_sample(double at_s, double seen_s)
{
	if (at_s >= warm_s && sample_count < SAMPLES_MAX) {
		samples[sample_count++] = seen_s - at_s;
	}
}

static void read_moments(struct database *d, uint8_t *image, size_t image_len, double seen_s)
{
	sqlite3 *db;
	sqlite3_stmt *select;
	image[18] = image[19] = 1; /* no WAL beside an image in memory */
	if (sqlite3_open(":memory:", &db) ||
	    sqlite3_deserialize(db, "main", image, (sqlite3_int64)image_len,
				(sqlite3_int64)image_len, SQLITE_DESERIALIZE_READONLY) ||
	    sqlite3_prepare_v2(db, "SELECT id, at FROM moment WHERE id > ?1", -1, &select, NULL)) {
		die("an object's database", sqlite3_errmsg(db));
	}
	(void)sqlite3_bind_int64(select, 1, d->seen);
	while (sqlite3_step(select) == SQLITE_ROW) {
		d->seen = sqlite3_column_int64(select, 0);
		take_sample(sqlite3_column_double(select, 1), seen_s);
	}
	(void)sqlite3_finalize(select);
	(void)sqlite3_close(db);
}

static void read_object(struct database *d, const char *name)
{
	static uint8_t object[OBJECT_LEN_MAX], image[OBJECT_LEN_MAX];
	char path[1024];
	double seen_s = now_s();
	(void)snprintf(path, sizeof(path), "%s/%s", d->objects, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		return; /* replaced meanwhile: that is an event of its own */
	}
	ssize_t len = read(fd, object, sizeof(object));
	(void)close(fd);
	if (len > 0) {
		read_moments(d, image, decode(object, (size_t)len, image, sizeof(image)), seen_s);
	}
}

static struct database *database_of(int watch)
{
	for (long i = 0; i < database_count; i++) {
		if (databases[i].watch == watch) {
			return &databases[i];
		}
	}
	die("inotify", "an unknown watch");
	return NULL;
}

static void read_events(int inotify_fd)
{
	_Alignas(struct inotify_event) char buffer[65536];
	ssize_t got;
	while ((got = read(inotify_fd, buffer, sizeof(buffer))) > 0) {
		for (ssize_t at = 0; at < got;) {
			const struct inotify_event *event = (const void *)(buffer + at);
			size_t len = event->len > 0 ? strlen(event->name) : 0;
			at += (ssize_t)(sizeof(*event) + event->len);
			if (len > 7 && strcmp(event->name + len - 7, ".db.lz4") == 0) {
				read_object(database_of(event->wd), event->name);
			}
		}
	}
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		die("usage", "ack ROOT COUNT PER_DIRECTORY STEP OBJECTS SECONDS");
	}
	long count = to_long(argv[2], 1, 10000000), per_directory = to_long(argv[3], 1, 1000000);
	long step = to_long(argv[4], 1, 1000000), seconds = to_long(argv[6], 1, 3600);
	int inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (inotify_fd < 0) {
		die_errno("inotify");
	}
	for (long i = 0; i < count && database_count < DATABASES_MAX; i += step) {
		open_database(argv[1], argv[5], i, per_directory, inotify_fd);
	}
	double begin_s = now_s(), period_s = 1.0 / (double)database_count;
	double end_s = begin_s + WARM_UP_S + (double)seconds;
	double next_s = begin_s;
	warm_s = begin_s + WARM_UP_S;
	for (long turn = 0; now_s() < end_s + DRAIN_S;) {
		struct pollfd fd = { .fd = inotify_fd, .events = POLLIN };
		double wait_s = next_s - now_s();
		(void)poll(&fd, 1, wait_s > 0.001 && next_s < end_s ? (int)(wait_s * 1000) : 1);
		read_events(inotify_fd);
		for (; next_s <= now_s() && next_s < end_s; next_s += period_s) {
			commit(&databases[turn++ % database_count]);
		}
	}
	if (sample_count < 100) {
		die("ack", "less than 100 commits were seen in the target");
	}
	for (long i = 0; i < database_count; i++) {
		struct database *d = &databases[i];
		if (sqlite3_last_insert_rowid(d->db) != d->seen) {
			die(d->objects, "its last commit never came");
		}
	}
	qsort(samples, sample_count, sizeof(samples[0]), compare);
	printf("ack %.6f %.6f %.6f %zu\n", samples[sample_count / 2],
	       samples[sample_count * 99 / 100], samples[sample_count - 1], sample_count);
	return 0;
}
