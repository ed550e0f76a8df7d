/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A directory as target: keys are paths below it, directories 0700, objects 0600.
 *
 * An object is written to a temporary file, made durable, renamed to its key, and
 * the rename made durable; only then is it acknowledged. That is done in batches:
 * the writer thread takes all puts that wait (at most BATCH_MAX) and writes their
 * temporary files while the committer thread makes the batch before durable. A
 * small batch costs an fsync per file and directory, a larger one two syncfs,
 * which a hundred thousand small objects need.
 *
 * Temporary files are in `.litestream-multi-db-tmp/<16 hex digits>/` at the root: a
 * directory per process, locked with flock while it lives, so that a start can
 * remove what killed runs have left, and only that. No key begins with a dot, so
 * listings never see them; a rename across directories is as atomic as one within.
 *
 * Where bandwidth is limited, the writer waits between pieces, and a batch has no more than a
 * second's: what is written is not kept from being durable by what is still to be.
 *
 * Paths below the root are opened component by component without following links
 * (us_tree_open): whoever can write into the target cannot lead us out of it.
 *
 * Locks: file->mutex only, never held across I/O. The batch that is handed over is
 * the committer's alone.
 */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/dir.h"
#include "../base/thread.h"
#include "../base/tree.h"
#include "file_list.h"
#include "file_remove.h"
#include "file_version.h"
#include "rate.h"

#define BATCH_MAX 1024
#define SMALL_BATCH 16
#define COPY_LEN ((size_t)256 * 1024)
#define TMP_DIR ".litestream-multi-db-tmp"
#define KEY_LEN_MAX 1024
#define TMP_NAME_LEN 24
/* The target's own name: ID_LEN hex digits in TMP_DIR "/id". */
#define ID_LEN 32

struct item {
	struct us_put *put;
	int fd; /* of the temporary file; -1: closed, or failed */
	char tmp_name[TMP_NAME_LEN];
};

struct batch {
	struct item items[BATCH_MAX];
	size_t count;
	uint64_t len; /* of the objects */
};

struct file_store {
	struct us_store base;
	char *directory;
	int root_fd;
	int tmp_fd; /* this process's directory for temporary files; -1: read-only */
	char tmp_dir[sizeof(TMP_DIR) + 20];
	uint64_t tmp_count;
	char id[ID_LEN + 1];
	uint8_t *copy;       /* the writer's, as is the next */
	struct us_rate rate; /* of what is written for puts */
	/* The committer's: directories were made whose names may not be durable yet; at first
	 * by a run that was killed. */
	int has_made_dirs;
	pthread_t writer, committer;
	int writer_started, committer_started;
	_Atomic uint32_t canceled;

	pthread_mutex_t mutex;  /* guards all below */
	pthread_cond_t work;    /* for the writer: queued, canceled, a batch is done, or the end */
	pthread_cond_t changed; /* for all others: a batch is handed over or done */
	struct us_put *queued, **queued_last;
	struct us_put *done, **done_last;
	struct batch batches[2];
	struct batch *handed; /* written, for the committer; NULL: it is idle */
	int closing, writer_done;
	struct us_store_counts counts;
};

static struct file_store *of(struct us_store *store)
{
	return (struct file_store *)store;
}

/* ------------------------------------------------------------------- writing */

static int32_t fail_put(struct us_put *put, const char *doing)
{
	put->rc = us_fail_errno(&put->err, errno, "PUT \"%s\": cannot %s", put->key, doing);
	return put->rc;
}

static int write_all(int fd, const uint8_t *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);
		if (n < 0 && errno != EINTR) {
			return -1;
		}
		if (n > 0) {
			data += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

/* Waits until LEN bytes may be written, or a cancel. */
static void pace(struct file_store *file, size_t len)
{
	int64_t now_ns = us_clock_mono_ns();
	if (!us_rate_may_send(&file->rate, now_ns)) {
		(void)pthread_mutex_lock(&file->mutex);
		while (!file->canceled && !us_rate_may_send(&file->rate, now_ns)) {
			(void)us_cond_wait_ns(&file->work, &file->mutex,
					      file->rate.due_ns - now_ns);
			now_ns = us_clock_mono_ns();
		}
		(void)pthread_mutex_unlock(&file->mutex);
	}
	us_rate_charge(&file->rate, len, now_ns);
}

/* Reads up to CAP bytes of PUT at OFF, in place or into file->copy. Returns how many, or -1
 * and errno. */
static ssize_t read_piece(struct file_store *file, const struct us_put *put, uint64_t off,
			  size_t cap, const uint8_t **ret_data)
{
	*ret_data = put->data ? put->data + off : file->copy;
	if (put->data) {
		return (ssize_t)cap;
	}
	ssize_t n;
	do {
		n = pread(put->fd, file->copy, cap, (off_t)off);
	} while (n < 0 && errno == EINTR);
	errno = n == 0 ? EIO : errno;
	return n > 0 ? n : -1;
}

static int32_t write_object(struct file_store *file, int fd, struct us_put *put)
{
	for (uint64_t off = 0; off < put->len;) {
		uint64_t left = put->len - off;
		size_t len =
			us_rate_piece_len(&file->rate, left < COPY_LEN ? (size_t)left : COPY_LEN);
		const uint8_t *data;
		pace(file, len);
		if (file->canceled) {
			put->rc = us_fail(&put->err, US_E_CANCELED, "canceled");
			return put->rc;
		}
		ssize_t n = read_piece(file, put, off, len, &data);
		if (n < 0) {
			return fail_put(put, "read it from the spool");
		}
		if (write_all(fd, data, (size_t)n)) {
			return fail_put(put, "write it");
		}
		off += (uint64_t)n;
	}
	return 0;
}

static void close_item(struct item *item)
{
	if (item->fd >= 0) {
		(void)close(item->fd); /* an error would have shown in fsync or syncfs */
		item->fd = -1;
	}
}

/* Whether the directory is the one that was opened: one that was moved away, or that
 * something was mounted over, would take objects that nobody finds. */
static int is_in_place(const struct file_store *file)
{
	struct stat opened, named;
	return !fstat(file->root_fd, &opened) && !stat(file->directory, &named) &&
	       opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

static void write_item(struct file_store *file, struct item *item, int in_place, int keep_open)
{
	struct us_put *put = item->put;
	item->fd = -1;
	put->rc = 0;
	if (!in_place) {
		put->rc = us_fail(
			&put->err, US_E_IO,
			"PUT \"%s\": directory \"%s\" is not the one it was at start; if that is "
			"meant, restart",
			put->key, file->directory);
		return;
	}
	if (file->canceled) {
		put->rc = us_fail(&put->err, US_E_CANCELED, "canceled");
		return;
	}
	(void)snprintf(item->tmp_name, sizeof(item->tmp_name), "%016llx",
		       (unsigned long long)file->tmp_count++);
	item->fd = openat(file->tmp_fd, item->tmp_name,
			  O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (item->fd < 0) {
		(void)fail_put(put, "create a temporary file");
		return;
	}
	if (write_object(file, item->fd, put)) {
		close_item(item);
		(void)unlinkat(file->tmp_fd, item->tmp_name,
			       0); /* else the next start removes it */
	} else if (!keep_open) {
		close_item(item);
	}
}

/* Moves waiting puts to BATCH until it is full: BATCH_MAX, or LEN_MAX bytes. Returns how many
 * there were. Wants the mutex. */
static size_t take_queued(struct file_store *file, struct batch *batch, uint64_t len_max)
{
	size_t first = batch->count;
	while (file->queued && batch->count < BATCH_MAX && batch->len < len_max) {
		struct us_put *put = file->queued;
		file->queued = put->next;
		put->next = NULL;
		batch->len += put->len;
		batch->items[batch->count++] = (struct item){ .put = put, .fd = -1 };
	}
	if (!file->queued) {
		file->queued_last = &file->queued;
	}
	file->counts.put += batch->count - first;
	return batch->count - first;
}

/* Writes what waits, and what comes while the committer is busy. Wants the mutex, and gives
 * it up meanwhile. */
static void fill_batch(struct file_store *file, struct batch *batch, uint64_t len_max)
{
	batch->count = 0;
	batch->len = 0;
	for (;;) {
		size_t first = batch->count;
		if (take_queued(file, batch, len_max) > 0) {
			(void)pthread_mutex_unlock(&file->mutex);
			int in_place = is_in_place(file);
			for (size_t i = first; i < batch->count; i++) {
				write_item(file, &batch->items[i], in_place, i < SMALL_BATCH);
			}
			(void)pthread_mutex_lock(&file->mutex);
		} else if (file->handed) {
			(void)pthread_cond_wait(&file->work, &file->mutex);
		} else {
			return;
		}
	}
}

static void *writer_main(void *arg)
{
	struct file_store *file = arg;
	struct batch *batch = &file->batches[0];
	uint64_t len_max = file->rate.bytes_per_s ? file->rate.bytes_per_s : UINT64_MAX;
	(void)pthread_mutex_lock(&file->mutex);
	for (;;) {
		while (!file->queued && !file->closing) {
			(void)pthread_cond_wait(&file->work, &file->mutex);
		}
		if (!file->queued) {
			break;
		}
		fill_batch(file, batch, len_max);
		file->handed = batch;
		(void)pthread_cond_broadcast(&file->changed);
		batch = batch == &file->batches[0] ? &file->batches[1] : &file->batches[0];
	}
	file->writer_done = 1;
	(void)pthread_cond_broadcast(&file->changed);
	(void)pthread_mutex_unlock(&file->mutex);
	return NULL;
}

/* ---------------------------------------------------------------- committing */

/* The directory in which the directories of a batch's objects are, more often than not. */
struct parent {
	int fd; /* -1: none */
	char path[KEY_LEN_MAX + 1];
};

static int enter_or_make(int dir_fd, const char *name, int *ret_created)
{
	if (!mkdirat(dir_fd, name, 0700)) {
		*ret_created = 1;
	} else if (errno != EEXIST) {
		return -1;
	}
	return openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void close_parent(struct parent *parent)
{
	if (parent->fd >= 0) {
		(void)close(parent->fd); /* a directory */
		parent->fd = -1;
	}
}

/* Opens the directory PATH, which is cut up for it, creating what is missing, component by
 * component so that no link is followed. Returns a descriptor, or -1 with errno. */
static int open_or_make(struct file_store *file, char *path)
{
	int fd = us_tree_open(file->root_fd, path, O_RDONLY | O_DIRECTORY, path, NULL);
	if (fd >= 0) {
		return fd;
	}
	int dir_fd = file->root_fd;
	for (char *name = path;;) {
		char *slash = strchr(name, '/');
		if (slash) {
			*slash = '\0';
		}
		fd = enter_or_make(dir_fd, name, &file->has_made_dirs);
		int saved = errno;
		if (dir_fd != file->root_fd) {
			(void)close(dir_fd); /* only passed through */
		}
		errno = saved;
		if (fd < 0 || !slash) {
			return fd;
		}
		dir_fd = fd;
		name = slash + 1;
	}
}

/* Keeps the directory of DIR_LEN bytes of PATH open as PARENT. -1: errno. */
static int need_parent(struct file_store *file, struct parent *parent, const char *path,
		       size_t dir_len)
{
	char dir[KEY_LEN_MAX + 1];
	if (parent->fd >= 0 && strncmp(parent->path, path, dir_len) == 0 &&
	    parent->path[dir_len] == '\0') {
		return 0;
	}
	close_parent(parent);
	memcpy(parent->path, path, dir_len);
	parent->path[dir_len] = '\0';
	memcpy(dir, parent->path, dir_len + 1);
	parent->fd = open_or_make(file, dir);
	return parent->fd < 0 ? -1 : 0;
}

/* Opens the directory of KEY, creating what is missing. Returns a descriptor, or -1 with
 * errno. */
static int open_directory(struct file_store *file, struct parent *parent, const char *key,
			  size_t dir_len)
{
	char path[KEY_LEN_MAX + 1];
	memcpy(path, key, dir_len);
	path[dir_len] = '\0';
	char *slash = strrchr(path, '/');
	if (slash && need_parent(file, parent, path, (size_t)(slash - path))) {
		return -1;
	}
	int parent_fd = slash ? parent->fd : file->root_fd;
	const char *name = slash ? slash + 1 : path;
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		fd = enter_or_make(parent_fd, name, &file->has_made_dirs);
	}
	if (fd < 0) { /* a sweep may have removed PARENT: the next one looks again */
		int saved = errno;
		close_parent(parent);
		errno = saved;
	}
	return fd;
}

/* Renames ITEM to its key. SYNC: makes its directory durable too, but not those above, which
 * may have been made on the way. */
static void place_item(struct file_store *file, struct parent *parent, struct item *item, int sync)
{
	struct us_put *put = item->put;
	const char *slash = strrchr(put->key, '/');
	const char *name = slash ? slash + 1 : put->key;
	int dir_fd = file->root_fd;
	if (slash) {
		dir_fd = open_directory(file, parent, put->key, (size_t)(slash - put->key));
	}
	if (dir_fd < 0) {
		(void)fail_put(put, "open its directory");
	} else if (renameat(file->tmp_fd, item->tmp_name, dir_fd, name)) {
		(void)fail_put(put, "rename it into place");
	} else if (sync && fsync(dir_fd)) {
		(void)fail_put(put, "make its directory durable");
	}
	if (put->rc) {
		(void)unlinkat(file->tmp_fd, item->tmp_name,
			       0); /* else the next start removes it */
	}
	if (dir_fd >= 0 && dir_fd != file->root_fd) {
		(void)close(dir_fd); /* a directory: synced or not */
	}
}

static void fail_all(struct batch *batch, const char *doing)
{
	int saved = errno;
	for (size_t i = 0; i < batch->count; i++) {
		if (batch->items[i].put->rc == 0) {
			errno = saved;
			(void)fail_put(batch->items[i].put, doing);
		}
	}
}

static void commit_batch(struct file_store *file, struct batch *batch)
{
	int small = batch->count <= SMALL_BATCH;
	struct parent parent = { .fd = -1 };
	if (!small && syncfs(file->root_fd)) {
		fail_all(batch, "make it durable");
	}
	for (size_t i = 0; i < batch->count; i++) {
		struct item *item = &batch->items[i];
		if (small && item->put->rc == 0 && fsync(item->fd)) {
			(void)fail_put(item->put, "make it durable");
		}
		close_item(item);
		if (item->put->rc == 0) {
			place_item(file, &parent, item, small);
		} else if (item->tmp_name[0]) {
			(void)unlinkat(file->tmp_fd, item->tmp_name, 0); /* may be gone already */
		}
	}
	close_parent(&parent);
	if (!small || file->has_made_dirs) {
		file->has_made_dirs = syncfs(file->root_fd) != 0;
		if (file->has_made_dirs) {
			fail_all(batch, "make its directory durable");
		}
	}
}

static void *committer_main(void *arg)
{
	struct file_store *file = arg;
	(void)pthread_mutex_lock(&file->mutex);
	for (;;) {
		while (!file->handed && !file->writer_done) {
			(void)pthread_cond_wait(&file->changed, &file->mutex);
		}
		struct batch *batch = file->handed;
		if (!batch) {
			break;
		}
		(void)pthread_mutex_unlock(&file->mutex);
		int64_t start_ns = us_clock_mono_ns();
		commit_batch(file, batch);
		int64_t took_ns = us_clock_mono_ns() - start_ns;
		(void)pthread_mutex_lock(&file->mutex);
		file->counts.put_ns += (uint64_t)took_ns;
		for (size_t i = 0; i < batch->count; i++) {
			struct us_put *put = batch->items[i].put;
			file->counts.put_bytes += put->rc == 0 ? put->len : 0;
			*file->done_last = put;
			file->done_last = &put->next;
		}
		file->handed = NULL;
		(void)pthread_cond_signal(&file->work);
		(void)pthread_cond_broadcast(&file->changed);
	}
	(void)pthread_mutex_unlock(&file->mutex);
	return NULL;
}

/* ------------------------------------------------------------------ interface */

static void file_put_start(struct us_store *store, struct us_put *put)
{
	struct file_store *file = of(store);
	put->next = NULL;
	(void)pthread_mutex_lock(&file->mutex);
	if (!file->queued) {
		(void)pthread_cond_signal(&file->work);
	}
	*file->queued_last = put;
	file->queued_last = &put->next;
	(void)pthread_mutex_unlock(&file->mutex);
}

static struct us_put *file_put_wait(struct us_store *store, int32_t timeout_ms)
{
	struct file_store *file = of(store);
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	(void)pthread_mutex_lock(&file->mutex);
	for (int64_t left_ns; !file->done && (left_ns = end_ns - us_clock_mono_ns()) > 0;) {
		(void)us_cond_wait_ns(&file->changed, &file->mutex, left_ns);
	}
	struct us_put *done = file->done;
	file->done = NULL;
	file->done_last = &file->done;
	(void)pthread_mutex_unlock(&file->mutex);
	return done;
}

/* A read-only store can be opened before the first backup has made its directory. */
static int32_t check_root(const struct file_store *file, struct us_error *err)
{
	return file->root_fd >= 0 ? 0
				  : us_fail(err, US_E_CONFIG, "directory: \"%s\" does not exist",
					    file->directory);
}

static int32_t file_get(struct us_store *store, const char *key, int64_t offset, uint64_t len,
			us_store_data_fn *fn, void *arg, uint64_t *ret_len, struct us_error *err)
{
	struct file_store *file = of(store);
	struct stat st;
	int32_t rc = check_root(file, err);
	if (rc) {
		return rc;
	}
	int fd = us_tree_open(file->root_fd, key, O_RDONLY, key, err);
	if (fd < 0) {
		return fd;
	}
	uint8_t *buf = us_alloc(COPY_LEN);
	if (!buf) {
		rc = us_fail_nomem(err);
		goto out;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		rc = us_fail(err, US_E_NOTFOUND, "GET \"%s\": it is not a regular file", key);
		goto out;
	}
	uint64_t whole = (uint64_t)st.st_size;
	uint64_t back = offset < 0 ? (uint64_t)-offset : 0;
	uint64_t at = offset < 0 ? (back < whole ? whole - back : 0) : (uint64_t)offset;
	uint64_t got = 0;
	while (!rc && got < len && at < whole) {
		if (file->canceled) {
			rc = us_fail(err, US_E_CANCELED, "canceled");
			break;
		}
		uint64_t want = len - got < COPY_LEN ? len - got : COPY_LEN;
		ssize_t n = pread(fd, buf, (size_t)want, (off_t)at);
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			rc = n ? us_fail_errno(err, errno, "GET \"%s\": cannot read it", key)
			       : us_fail(err, US_E_IO, "GET \"%s\": it was cut while it was read",
					 key);
			break;
		}
		at += (uint64_t)n;
		got += (uint64_t)n;
		rc = fn(arg, buf, (size_t)n, err);
	}
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.get++;
	file->counts.get_bytes += rc ? 0 : got;
	(void)pthread_mutex_unlock(&file->mutex);
	if (!rc && ret_len) {
		*ret_len = whole;
	}
out:
	us_free(buf);
	(void)close(fd); /* only read from */
	return rc;
}

/* Reads what GET wants from FD, in pieces so that a cancel is seen. */
static int32_t read_part(struct file_store *file, int fd, struct us_get *get)
{
	for (uint64_t got = 0; got < get->len;) {
		uint64_t left = get->len - got;
		if (file->canceled) {
			return us_fail(&get->err, US_E_CANCELED, "canceled");
		}
		ssize_t n = pread(fd, get->data + got, left < COPY_LEN ? (size_t)left : COPY_LEN,
				  (off_t)(get->offset + got));
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			return n ? us_fail_errno(&get->err, errno, "GET \"%s\": cannot read it",
						 get->key)
				 : us_fail(&get->err, US_E_BUSY,
					   "GET \"%s\": it was cut while it was read", get->key);
		}
		got += (uint64_t)n;
	}
	return 0;
}

static int32_t get_part(struct file_store *file, struct us_get *get)
{
	struct stat st;
	int32_t rc = check_root(file, &get->err);
	if (rc) {
		return rc;
	}
	if (get->len == 0 || get->offset > get->object_len ||
	    get->len > get->object_len - get->offset) {
		return us_fail(&get->err, US_E_ARG, "get: empty or impossible range");
	}
	int fd = us_tree_open(file->root_fd, get->key, O_RDONLY, get->key, &get->err);
	if (fd < 0) {
		return fd;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		rc = us_fail(&get->err, US_E_NOTFOUND, "GET \"%s\": it is not a regular file",
			     get->key);
	} else if ((uint64_t)st.st_size != get->object_len) {
		rc = us_fail(&get->err, US_E_BUSY,
			     "GET \"%s\": the object has another length than listed", get->key);
	} else {
		rc = read_part(file, fd, get);
	}
	(void)close(fd); /* only read from */
	return rc;
}

/* Reads on the caller's thread: a disk gains nothing from a detour. */
static void file_get_start(struct us_store *store, struct us_get *get)
{
	struct file_store *file = of(store);
	int64_t start_ns = us_clock_mono_ns();
	us_error_clear(&get->err);
	get->rc = get_part(file, get);
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.get++;
	file->counts.get_bytes += get->rc ? 0 : get->len;
	file->counts.get_ns += (uint64_t)(us_clock_mono_ns() - start_ns);
	(void)pthread_mutex_unlock(&file->mutex);
	us_get_queue_push(get->queue, get);
}

static int32_t file_read_version(struct us_store *store, const char *key, uint8_t *ret_data,
				 size_t cap, size_t *ret_len, struct us_store_version *ret_version,
				 struct us_error *err)
{
	struct file_store *file = of(store);
	int32_t rc = check_root(file, err);
	rc = rc ? rc
		: us_file_read_version(file->root_fd, key, ret_data, cap, ret_len, ret_version,
				       err);
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.get++;
	(void)pthread_mutex_unlock(&file->mutex);
	return rc;
}

static int32_t file_write_version(struct us_store *store, const char *key, const char *tag,
				  const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct file_store *file = of(store);
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.put++;
	(void)pthread_mutex_unlock(&file->mutex);
	if (!is_in_place(file)) {
		return us_fail(err, US_E_IO,
			       "PUT \"%s\": directory \"%s\" is not the one it was at start", key,
			       file->directory);
	}
	return us_file_write_version(file->root_fd, file->tmp_fd, key, tag, data, data_len, err);
}

static int32_t file_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			 void *arg, struct us_error *err)
{
	struct file_store *file = of(store);
	int64_t start_ns = us_clock_mono_ns();
	int32_t rc = check_root(file, err);
	if (!rc) {
		rc = us_file_list(file->root_fd, prefix, fn, arg, &file->canceled, err);
	}
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.list++;
	file->counts.list_ns += (uint64_t)(us_clock_mono_ns() - start_ns);
	(void)pthread_mutex_unlock(&file->mutex);
	return rc;
}

struct after {
	const char *key;
	us_store_list_fn *fn;
	void *arg;
};

static int32_t pass_after(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	const struct after *after = arg;
	return strcmp(key, after->key) > 0 ? after->fn(after->arg, key, key_len, object_len) : 0;
}

static int32_t file_list_after(struct us_store *store, const char *prefix, const char *key,
			       us_store_list_fn *fn, void *arg, struct us_error *err)
{
	struct after after = { .key = key, .fn = fn, .arg = arg };
	return file_list(store, prefix, pass_after, &after, err);
}

static int32_t file_remove(struct us_store *store, const char *key, struct us_error *err)
{
	struct file_store *file = of(store);
	char dir[KEY_LEN_MAX + 1] = ".";
	const char *slash = strrchr(key, '/');
	int dir_fd = file->root_fd;
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.remove++;
	(void)pthread_mutex_unlock(&file->mutex);
	if (slash) {
		(void)snprintf(dir, sizeof(dir), "%.*s", (int)(slash - key), key);
		dir_fd = us_tree_open(file->root_fd, dir, O_RDONLY | O_DIRECTORY, key, err);
		if (dir_fd < 0) {
			return dir_fd == US_E_NOTFOUND ? 0 : dir_fd;
		}
	}
	int32_t rc = 0;
	if (unlinkat(dir_fd, slash ? slash + 1 : key, 0) && errno != ENOENT) {
		rc = us_fail_errno(err, errno, "DELETE \"%s\"", key);
	} else if (fsync(dir_fd)) {
		rc = us_fail_errno(err, errno, "DELETE \"%s\": cannot make it durable", key);
	}
	if (dir_fd != file->root_fd) {
		(void)close(dir_fd); /* synced */
	}
	return rc;
}

static int32_t file_remove_many(struct us_store *store, const char *const *keys, size_t count,
				size_t *ret_removed, struct us_error *err)
{
	struct file_store *file = of(store);
	int64_t start_ns = us_clock_mono_ns();
	*ret_removed = 0;
	int32_t rc = check_root(file, err);
	if (rc) {
		return rc;
	}
	rc = us_file_remove_many(file->root_fd, keys, count, &file->canceled, ret_removed, err);
	(void)pthread_mutex_lock(&file->mutex);
	file->counts.remove += count;
	file->counts.remove_ns += (uint64_t)(us_clock_mono_ns() - start_ns);
	(void)pthread_mutex_unlock(&file->mutex);
	return rc;
}

/* Objects come whole here: there is nothing to abort. */
static int32_t file_abort_uploads(struct us_store *store, const char *prefix,
				  us_store_is_ours_fn *is_ours, void *arg, uint64_t *ret_count,
				  struct us_error *err)
{
	(void)store, (void)prefix, (void)is_ours, (void)arg, (void)err;
	*ret_count = 0;
	return 0;
}

static void file_cancel(struct us_store *store)
{
	struct file_store *file = of(store);
	(void)pthread_mutex_lock(&file->mutex);
	file->canceled = 1;
	(void)pthread_cond_broadcast(&file->work);
	(void)pthread_mutex_unlock(&file->mutex);
}

static void file_counts(struct us_store *store, struct us_store_counts *ret_counts)
{
	struct file_store *file = of(store);
	(void)pthread_mutex_lock(&file->mutex);
	*ret_counts = file->counts;
	(void)pthread_mutex_unlock(&file->mutex);
}

static void remove_tmp_dir(int parent_fd, int dir_fd, const char *name)
{
	(void)us_dir_remove_files(dir_fd);             /* what stays is found by the next start */
	(void)unlinkat(parent_fd, name, AT_REMOVEDIR); /* likewise */
}

static void file_close(struct us_store *store)
{
	struct file_store *file = of(store);
	(void)pthread_mutex_lock(&file->mutex);
	file->closing = 1;
	(void)pthread_cond_broadcast(&file->work);
	(void)pthread_cond_broadcast(&file->changed);
	(void)pthread_mutex_unlock(&file->mutex);
	if (file->writer_started) {
		(void)pthread_join(file->writer, NULL); /* ours, joined once */
	}
	if (file->committer_started) {
		(void)pthread_join(file->committer, NULL);
	}
	if (file->tmp_fd >= 0) {
		remove_tmp_dir(file->root_fd, file->tmp_fd, file->tmp_dir);
		(void)close(file->tmp_fd); /* releases its lock */
	}
	if (file->root_fd >= 0) {
		(void)close(file->root_fd); /* a directory */
	}
	(void)pthread_cond_destroy(&file->work); /* nobody waits any more */
	(void)pthread_cond_destroy(&file->changed);
	(void)pthread_mutex_destroy(&file->mutex);
	us_free(file->directory);
	us_free(file->copy);
	us_free(file);
}

static const struct us_store_ops file_ops = {
	.put_start = file_put_start,
	.put_wait = file_put_wait,
	.get_start = file_get_start,
	.get = file_get,
	.read_version = file_read_version,
	.write_version = file_write_version,
	.list = file_list,
	.list_after = file_list_after,
	.remove = file_remove,
	.remove_many = file_remove_many,
	.abort_uploads = file_abort_uploads,
	.cancel = file_cancel,
	.counts = file_counts,
	.close = file_close,
};

/* -------------------------------------------------------------------- opening */

static int32_t check_case(struct file_store *file, uint64_t random, struct us_error *err)
{
	char name[48], folded[48];
	(void)snprintf(name, sizeof(name), ".us-CASE-%016llx", (unsigned long long)random);
	(void)snprintf(folded, sizeof(folded), ".us-case-%016llx", (unsigned long long)random);
	int fd = openat(file->root_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			0600);
	if (fd < 0) {
		return us_fail_errno(err, errno, "directory: cannot create a file in \"%s\"",
				     file->directory);
	}
	(void)close(fd); /* empty */
	int folds = !faccessat(file->root_fd, folded, F_OK, AT_SYMLINK_NOFOLLOW);
	if (unlinkat(file->root_fd, name, 0)) {
		return us_fail_errno(err, errno, "directory: cannot remove a file from \"%s\"",
				     file->directory);
	}
	return folds ? us_fail(err, US_E_CONFIG,
			       "directory: \"%s\" folds case, so two databases could share a file; "
			       "choose "
			       "a directory that does not",
			       file->directory)
		     : 0;
}

/* Called for each entry of TMP_DIR: removes those that no living process locks. */
static void remove_if_stale(int parent_fd, const char *name)
{
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		return;
	}
	if (!flock(fd, LOCK_EX | LOCK_NB)) {
		remove_tmp_dir(parent_fd, fd, name);
	}
	(void)close(fd); /* and its lock */
}

/* 0, US_E_NOTFOUND, or why it cannot be read. */
static int32_t read_id(struct file_store *file, struct us_error *err)
{
	char text[ID_LEN + 1] = "";
	int fd = us_tree_open(file->root_fd, TMP_DIR "/id", O_RDONLY, TMP_DIR "/id", err);
	if (fd < 0) {
		return fd;
	}
	ssize_t len = pread(fd, text, ID_LEN, 0);
	(void)close(fd); /* only read from */
	if (len != ID_LEN || strspn(text, "0123456789abcdef") != ID_LEN) {
		return US_E_NOTFOUND; /* cut off when it was made */
	}
	memcpy(file->id, text, sizeof(text));
	return 0;
}

static int32_t make_id(struct file_store *file, struct us_error *err)
{
	uint64_t random[2];
	char tmp[40];
	if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
		return us_fail_errno(err, errno, "no random bytes");
	}
	(void)snprintf(file->id, sizeof(file->id), "%016llx%016llx", (unsigned long long)random[0],
		       (unsigned long long)random[1]);
	(void)snprintf(tmp, sizeof(tmp), TMP_DIR "/%.8s", file->id);
	int fd = openat(file->root_fd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			0600);
	int failed = fd < 0 || write_all(fd, (const uint8_t *)file->id, ID_LEN) || fsync(fd) ||
		     renameat(file->root_fd, tmp, file->root_fd, TMP_DIR "/id") ||
		     fsync(file->root_fd);
	int saved = errno;
	if (fd >= 0) {
		(void)close(fd); /* synced, or failed already */
	}
	return failed ? us_fail_errno(err, saved, "directory: cannot write to \"%s/" TMP_DIR "\"",
				      file->directory)
		      : 0;
}

const char *us_store_file_id(const struct us_store *store)
{
	return ((const struct file_store *)store)->id;
}

/* Makes and locks this process's directory for temporary files. */
static int32_t make_tmp_dir(struct file_store *file, struct us_error *err)
{
	if (mkdirat(file->root_fd, TMP_DIR, 0700) && errno != EEXIST) {
		return us_fail_errno(err, errno, "directory: cannot create \"%s/" TMP_DIR "\"",
				     file->directory);
	}
	int parent_fd = us_tree_open(file->root_fd, TMP_DIR, O_RDONLY | O_DIRECTORY, TMP_DIR, err);
	if (parent_fd < 0) {
		return parent_fd;
	}
	us_dir_each_name(parent_fd, remove_if_stale);
	(void)close(parent_fd); /* a directory */
	int32_t rc = read_id(file, err);
	if (rc == US_E_NOTFOUND) {
		rc = make_id(file, err);
	}
	if (rc) {
		return rc;
	}
	for (int tries = 0; tries < 10; tries++) {
		uint64_t random;
		struct stat st;
		if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
			break;
		}
		(void)snprintf(file->tmp_dir, sizeof(file->tmp_dir), TMP_DIR "/%016llx",
			       (unsigned long long)random);
		if (mkdirat(file->root_fd, file->tmp_dir, 0700)) {
			break;
		}
		file->tmp_fd = us_tree_open(file->root_fd, file->tmp_dir, O_RDONLY | O_DIRECTORY,
					    file->tmp_dir, NULL);
		/* Another start may have taken it for a leftover before it was locked. */
		if (file->tmp_fd >= 0 && !flock(file->tmp_fd, LOCK_EX | LOCK_NB) &&
		    !fstat(file->tmp_fd, &st) && st.st_nlink > 0) {
			return check_case(file, random, err);
		}
		if (file->tmp_fd >= 0) {
			(void)close(file->tmp_fd); /* lost to the other one */
			file->tmp_fd = -1;
		}
	}
	return us_fail_errno(err, errno, "directory: cannot create \"%s/%s\"", file->directory,
			     file->tmp_dir);
}

static int32_t start_threads(struct file_store *file, struct us_error *err)
{
	file->copy = us_alloc(COPY_LEN);
	if (!file->copy) {
		return us_fail_nomem(err);
	}
	int32_t rc = us_thread_start(&file->writer, "us-write", writer_main, file, err);
	if (!rc) {
		file->writer_started = 1;
		rc = us_thread_start(&file->committer, "us-commit", committer_main, file, err);
		file->committer_started = !rc;
	}
	return rc;
}

int32_t us_store_file_open(const char *directory, int read_only, uint64_t upload_bytes_per_s,
			   struct us_store **ret_store, struct us_error *err)
{
	struct file_store *file = us_alloc_zero(sizeof(*file));
	if (!file) {
		return us_fail_nomem(err);
	}
	file->base.ops = &file_ops;
	file->root_fd = file->tmp_fd = -1;
	file->has_made_dirs = 1;
	us_rate_init(&file->rate, upload_bytes_per_s);
	file->queued_last = &file->queued;
	file->done_last = &file->done;
	file->directory = us_strdup(directory);
	(void)pthread_mutex_init(&file->mutex, NULL); /* never fails on Linux */
	int32_t rc = file->directory ? us_cond_init(&file->changed, err) : us_fail_nomem(err);
	if (!rc) {
		rc = us_cond_init(&file->work, err);
	}
	if (!rc && !read_only && mkdir(directory, 0700) && errno != EEXIST) {
		rc = us_fail_errno(err, errno, "directory: cannot create \"%s\"", directory);
	}
	if (!rc) {
		file->root_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (file->root_fd < 0 && !(read_only && errno == ENOENT)) {
			rc = us_fail_errno(err, errno, "directory: cannot open \"%s\"", directory);
		}
	}
	if (!rc && read_only && file->root_fd >= 0) {
		(void)read_id(file, NULL); /* none: no backup was made here */
	}
	if (!rc && !read_only) {
		rc = make_tmp_dir(file, err);
	}
	if (!rc && !read_only) {
		rc = start_threads(file, err);
	}
	if (rc) {
		file_close(&file->base);
		return rc;
	}
	*ret_store = &file->base;
	return 0;
}
