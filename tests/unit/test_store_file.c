/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/store/store.h"
#include "scratch.h"

static char root[SCRATCH_LEN];

static int setup(void **state)
{
	(void)state;
	return scratch_dir(root);
}

static int teardown(void **state)
{
	char command[SCRATCH_LEN + 16];
	(void)state;
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
	FILE *p = popen(command, "r");
	return p ? pclose(p) : -1;
}

static struct us_store *open_limited(int read_only, uint64_t upload_bytes_per_s)
{
	struct us_store *store;
	struct us_error err = US_ERROR_INIT;
	int32_t rc = us_store_file_open(root, read_only, upload_bytes_per_s, &store, &err);
	if (rc) {
		print_error("%s\n", err.message);
	}
	assert_int_equal(rc, 0);
	return store;
}

static struct us_store *open_store(int read_only)
{
	return open_limited(read_only, 0);
}

static struct us_put *make_put(const char *key, const char *data)
{
	struct us_put *put = calloc(1, sizeof(*put));
	assert_non_null(put);
	put->key = strdup(key);
	put->data = (const uint8_t *)strdup(data);
	put->len = strlen(data);
	put->fd = -1;
	put->err.struct_size = sizeof(put->err);
	put->rc = 1;
	return put;
}

static void free_put(struct us_put *put)
{
	free((void *)(uintptr_t)put->key);
	free((void *)(uintptr_t)put->data);
	free(put);
}

/* Starts all, waits for all, in the order they were given. */
static void put_all(struct us_store *store, struct us_put **puts, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		store->ops->put_start(store, puts[i]);
	}
	for (size_t got = 0; got < count;) {
		for (struct us_put *put = store->ops->put_wait(store, 10000); put;
		     put = put->next) {
			assert_int_not_equal(put->rc, 1);
			got++;
		}
	}
}

static void put_one(struct us_store *store, const char *key, const char *data, int32_t want)
{
	struct us_put *put = make_put(key, data);
	put_all(store, &put, 1);
	if (put->rc != want) {
		print_error("%s: %s\n", key, put->err.message);
	}
	assert_int_equal(put->rc, want);
	free_put(put);
}

struct text {
	char bytes[4096];
	size_t len;
};

static int32_t to_text(void *arg, const uint8_t *data, size_t len, struct us_error *err)
{
	struct text *text = arg;
	(void)err;
	assert_true(text->len + len < sizeof(text->bytes));
	memcpy(text->bytes + text->len, data, len);
	text->len += len;
	text->bytes[text->len] = '\0';
	return 0;
}

static void assert_get(struct us_store *store, const char *key, int64_t off, uint64_t len,
		       const char *want)
{
	struct text text = { .len = 0 };
	struct us_error err = US_ERROR_INIT;
	uint64_t whole = 0;
	text.bytes[0] = '\0';
	assert_int_equal(store->ops->get(store, key, off, len, to_text, &text, &whole, &err), 0);
	assert_string_equal(text.bytes, want);
	assert_true(whole >= text.len);
}

static int32_t join_keys(void *arg, const char *key, size_t key_len, uint64_t len)
{
	struct text *text = arg;
	char line[2048];
	assert_int_equal(strlen(key), key_len);
	int n = snprintf(line, sizeof(line), "%s:%llu\n", key, (unsigned long long)len);
	return to_text(text, (const uint8_t *)line, (size_t)n, NULL);
}

static void assert_list(struct us_store *store, const char *prefix, const char *want)
{
	struct text text = { .len = 0 };
	struct us_error err = US_ERROR_INIT;
	text.bytes[0] = '\0';
	assert_int_equal(store->ops->list(store, prefix, join_keys, &text, &err), 0);
	assert_string_equal(text.bytes, want);
}

static void test_put_get_list_remove(void **state)
{
	(void)state;
	struct us_store *store = open_store(0);
	put_one(store, "p/db/x", "one", 0);
	put_one(store, "p/db/x", "replaced", 0);
	put_one(store, "p/db.b", "two", 0);
	put_one(store, "top", "three", 0);
	put_one(store, "p/db/a \"q\" \xc3\xa9\n", "four", 0);
	assert_get(store, "p/db/x", 0, UINT64_MAX, "replaced");
	assert_get(store, "p/db/x", 2, 3, "pla");
	assert_get(store, "p/db/x", -4, UINT64_MAX, "aced");
	assert_get(store, "p/db/x", -400, UINT64_MAX, "replaced");
	/* The order of S3: '.' before '/'. */
	assert_list(store, "", "p/db.b:3\np/db/a \"q\" \xc3\xa9\n:4\np/db/x:8\ntop:5\n");
	assert_list(store, "p/db/", "p/db/a \"q\" \xc3\xa9\n:4\np/db/x:8\n");
	assert_list(store, "p/db", "p/db.b:3\np/db/a \"q\" \xc3\xa9\n:4\np/db/x:8\n");
	assert_list(store, "q", "");
	assert_int_equal(store->ops->remove(store, "p/db/x", NULL), 0);
	assert_int_equal(store->ops->remove(store, "p/db/x", NULL), 0);
	assert_int_equal(store->ops->get(store, "p/db/x", 0, 1, to_text, NULL, NULL, NULL),
			 US_E_NOTFOUND);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.put, 5);
	assert_int_equal(counts.put_bytes, 3 + 8 + 3 + 5 + 4);
	assert_int_equal(counts.list, 4);
	assert_int_equal(counts.remove, 2);
	store->ops->close(store);
}

/* Reads OFFSET..LEN of an object that was listed with OBJECT_LEN bytes. */
static int32_t get_part(struct us_store *store, const char *key, uint64_t offset, uint64_t len,
			uint64_t object_len, const char *want)
{
	struct us_get_queue queue;
	struct text text = { .len = 0 };
	struct us_get get = { .key = key,
			      .offset = offset,
			      .len = len,
			      .object_len = object_len,
			      .data = (uint8_t *)text.bytes,
			      .queue = &queue,
			      .rc = 1 };
	assert_int_equal(us_get_queue_init(&queue, NULL), 0);
	store->ops->get_start(store, &get);
	assert_ptr_equal(us_get_queue_wait(&queue, 1000), &get);
	us_get_queue_done(&queue);
	assert_int_equal(get.rc, get.err.code);
	if (want) {
		assert_string_equal(text.bytes, want);
	}
	return get.rc;
}

static void test_get_parts(void **state)
{
	(void)state;
	char path[SCRATCH_LEN + 64];
	struct us_store *store = open_store(0);
	put_one(store, "d/o", "0123456789", 0);
	assert_int_equal(get_part(store, "d/o", 0, 10, 10, "0123456789"), 0);
	assert_int_equal(get_part(store, "d/o", 3, 4, 10, "3456"), 0);
	assert_int_equal(get_part(store, "d/o", 9, 1, 10, "9"), 0);
	/* Another length than listed, though the part would be there. */
	assert_int_equal(get_part(store, "d/o", 0, 9, 9, ""), US_E_BUSY);
	assert_int_equal(get_part(store, "d/o", 0, 11, 11, ""), US_E_BUSY);
	assert_int_equal(get_part(store, "d/o", 3, 4, 11, ""), US_E_BUSY);
	assert_int_equal(get_part(store, "d/o", 0, 0, 10, ""), US_E_ARG);
	assert_int_equal(get_part(store, "d/o", 5, 6, 10, ""), US_E_ARG);
	assert_int_equal(get_part(store, "d/none", 0, 1, 1, ""), US_E_NOTFOUND);
	assert_int_equal(get_part(store, "d", 0, 1, 1, ""), US_E_NOTFOUND);
	(void)snprintf(path, sizeof(path), "%s/d/link", root);
	assert_int_equal(symlink("o", path), 0);
	assert_int_equal(get_part(store, "d/link", 0, 10, 10, ""), US_E_NOTFOUND);
	(void)snprintf(path, sizeof(path), "%s/up", root);
	assert_int_equal(symlink("d", path), 0);
	assert_int_equal(get_part(store, "up/o", 0, 10, 10, ""), US_E_NOTFOUND);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.get, 12);
	assert_int_equal(counts.get_bytes, 10 + 4 + 1);
	assert_true(counts.get_ns > 0);
	store->ops->cancel(store);
	assert_int_equal(get_part(store, "d/o", 0, 10, 10, ""), US_E_CANCELED);
	store->ops->close(store);
	store = open_store(1);
	assert_int_equal(get_part(store, "d/o", 3, 4, 10, "3456"), 0);
	store->ops->close(store);
}

static int has(const char *path)
{
	char whole[SCRATCH_LEN + 200];
	struct stat st;
	(void)snprintf(whole, sizeof(whole), "%s/%.150s", root, path);
	return lstat(whole, &st) == 0;
}

static int32_t remove_many(struct us_store *store, const char *const *keys, size_t count,
			   size_t want_removed, struct us_error *err)
{
	size_t removed = 12345;
	int32_t rc = store->ops->remove_many(store, keys, count, &removed, err);
	assert_int_equal(removed, want_removed);
	return rc;
}

/* Objects go, and the directories that become empty by it; nothing else. */
static void test_remove_many(void **state)
{
	(void)state;
	static const char *const keys[] = { "a/b/c/1", "a/b/c/2", "a/b/d/1", "a/other", "e/1",
					    "e/none",  "none/1",  "f/g/h/1", "top" };
	enum { COUNT = sizeof(keys) / sizeof(keys[0]) };
	struct us_error err = US_ERROR_INIT;
	struct us_store *store = open_store(0);
	for (size_t i = 0; i < COUNT; i++) {
		if (!strstr(keys[i], "none")) {
			put_one(store, keys[i], "x", 0);
		}
	}
	put_one(store, "a/stays", "x", 0);
	put_one(store, "e/stays/x", "x", 0);
	put_one(store, "f/stays", "x", 0);
	assert_int_equal(remove_many(store, keys, COUNT, COUNT, &err), 0);
	assert_list(store, "", "a/stays:1\ne/stays/x:1\nf/stays:1\n");
	assert_false(has("a/b") || has("f/g"));
	assert_true(has("a") && has("e/stays") && has("f"));
	static const char *const last[] = { "a/stays", "e/stays/x", "f/stays" };
	assert_int_equal(remove_many(store, last, 3, 3, &err), 0);
	assert_false(has("a") || has("e") || has("f"));
	put_one(store, "a/b/c/1", "again", 0);
	struct us_store_counts counts;
	store->ops->counts(store, &counts);
	assert_int_equal(counts.remove, COUNT + 3);
	assert_true(counts.remove_ns > 0);
	assert_int_equal(store->ops->remove_many(store, last, 0, &(size_t){ 0 }, &err), 0);
	uint64_t aborted = 5;
	assert_int_equal(store->ops->abort_uploads(store, "", NULL, NULL, &aborted, &err), 0);
	assert_int_equal(aborted, 0);
	store->ops->cancel(store);
	assert_int_equal(remove_many(store, keys, 1, 0, &err), US_E_CANCELED);
	store->ops->close(store);
	assert_true(has("a/b/c/1"));
}

/* More directories than are made durable one by one. */
static void test_remove_from_many_directories(void **state)
{
	(void)state;
	enum { COUNT = 200 };
	struct us_error err = US_ERROR_INIT;
	struct us_store *store = open_store(0);
	static char names[COUNT][32];
	const char *keys[COUNT];
	struct us_put *puts[COUNT];
	for (int i = 0; i < COUNT; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "d%d/t%d/o%d", i % 9, i / 2, i);
		keys[i] = names[i];
		puts[i] = make_put(keys[i], "x");
	}
	put_all(store, puts, COUNT);
	assert_int_equal(remove_many(store, keys, COUNT, COUNT, &err), 0);
	assert_list(store, "", "");
	for (int i = 0; i < COUNT; i++) {
		*strchr(names[i], '/') = '\0';
		assert_false(has(names[i]));
		free_put(puts[i]);
	}
	store->ops->close(store);
}

static void test_remove_many_failures(void **state)
{
	(void)state;
	char path[SCRATCH_LEN + 64];
	struct us_error err = US_ERROR_INIT;
	struct us_store *store = open_store(0);
	put_one(store, "d/1", "x", 0);
	put_one(store, "d/sub/1", "x", 0);
	put_one(store, "d/2", "x", 0);
	/* A directory is no object; what lies around it goes all the same. */
	static const char *const keys[] = { "d/1", "d/sub", "d/2" };
	assert_int_equal(remove_many(store, keys, 3, 2, &err), US_E_IO);
	assert_non_null(strstr(err.message, "DELETE \"d/sub\""));
	assert_list(store, "", "d/sub/1:1\n");
	/* Links are not followed: not into another directory, and not by rmdir. */
	put_one(store, "real/1", "x", 0);
	(void)snprintf(path, sizeof(path), "%s/link", root);
	assert_int_equal(symlink("real", path), 0);
	static const char *const linked[] = { "link/1" };
	assert_int_equal(remove_many(store, linked, 1, 1, &err), 0); /* no such object */
	assert_true(has("real/1") && has("link"));
	static const char *const real[] = { "real/1" };
	assert_int_equal(remove_many(store, real, 1, 1, &err), 0);
	assert_true(!has("real") && has("link"));
	/* An object that is a link now: the link goes, not what it points at. */
	(void)snprintf(path, sizeof(path), "%s/d/l", root);
	assert_int_equal(symlink("sub/1", path), 0);
	static const char *const link[] = { "d/l" };
	assert_int_equal(remove_many(store, link, 1, 1, &err), 0);
	assert_true(has("d/sub/1") && !has("d/l"));
	store->ops->close(store);
}

static void test_batches(void **state)
{
	(void)state;
	enum { COUNT = 3000 };
	struct us_store *store = open_store(0);
	static struct us_put *puts[COUNT];
	char key[64], data[64];
	for (int i = 0; i < COUNT; i++) {
		(void)snprintf(key, sizeof(key), "d%d/t%d/o", i % 7, i);
		(void)snprintf(data, sizeof(data), "object %d", i);
		puts[i] = make_put(key, data);
	}
	put_all(store, puts, COUNT);
	for (int i = 0; i < COUNT; i++) {
		assert_int_equal(puts[i]->rc, 0);
		(void)snprintf(data, sizeof(data), "object %d", i);
		assert_get(store, puts[i]->key, 0, UINT64_MAX, data);
		free_put(puts[i]);
	}
	store->ops->close(store);
}

static void test_one_failure_is_its_own(void **state)
{
	(void)state;
	char key[400], path[SCRATCH_LEN + 64];
	struct us_store *store = open_store(0);
	put_one(store, "file", "x", 0);
	memset(key, 'k', 300);
	(void)snprintf(key + 300, sizeof(key) - 300, "/o");
	struct us_put *puts[20];
	for (int i = 0; i < 20; i++) {
		char good[16];
		(void)snprintf(good, sizeof(good), "good%d", i);
		puts[i] = make_put(i == 5    ? key
				   : i == 9  ? "file/below"
				   : i == 12 ? "link/o"
					     : good,
				   "y");
	}
	(void)snprintf(path, sizeof(path), "%s/link", root);
	assert_int_equal(symlink("..", path), 0);
	put_all(store, puts, 20);
	for (int i = 0; i < 20; i++) {
		int bad = i == 5 || i == 9 || i == 12;
		assert_int_equal(puts[i]->rc == 0, !bad);
		assert_int_equal(strstr(puts[i]->err.message, puts[i]->key) != NULL, bad);
		free_put(puts[i]);
	}
	assert_get(store, "file", 0, UINT64_MAX, "x");
	store->ops->close(store);
	/* Nothing is left of what failed. */
	(void)snprintf(path, sizeof(path), "%s/.litestream-multi-db-tmp/id", root);
	assert_int_equal(unlink(path), 0);
	*strrchr(path, '/') = '\0';
	assert_int_equal(rmdir(path), 0);
}

static void test_from_spool_file(void **state)
{
	(void)state;
	struct us_store *store = open_store(0);
	int fd = open(root, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "from a file", 11), 11);
	struct us_put *put = make_put("spooled", "");
	free((void *)(uintptr_t)put->data);
	put->data = NULL;
	put->fd = fd;
	put->len = 11;
	put_all(store, &put, 1);
	assert_int_equal(put->rc, 0);
	assert_get(store, "spooled", 0, UINT64_MAX, "from a file");
	free_put(put);
	assert_int_equal(close(fd), 0);
	store->ops->close(store);
}

/* What a killed run leaves goes with the next start; what a living one has stays. */
static void test_leftovers(void **state)
{
	(void)state;
	char path[SCRATCH_LEN + 64];
	int ready[2];
	assert_int_equal(pipe(ready), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct us_store *killed;
		if (us_store_file_open(root, 0, 0, &killed, NULL)) {
			_exit(1);
		}
		(void)!write(ready[1], "x", 1);
		pause();
	}
	char byte;
	assert_int_equal(close(ready[1]), 0);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	struct us_store *alive = open_store(0);
	assert_int_equal(kill(pid, 9), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	struct stat st;
	(void)snprintf(path, sizeof(path), "%s/.litestream-multi-db-tmp", root);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_nlink, 4);
	struct us_store *next = open_store(0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_nlink, 4); /* the living one's and its own */
	put_one(alive, "still", "works", 0);
	next->ops->close(next);
	alive->ops->close(alive);
	assert_int_equal(close(ready[0]), 0);
}

/* Another directory under the same name: nothing is written, and it has another id. */
static void test_directory_replaced(void **state)
{
	(void)state;
	char aside[SCRATCH_LEN + 8], id[64], command[2 * SCRATCH_LEN];
	struct us_store *store = open_store(0);
	(void)snprintf(id, sizeof(id), "%s", us_store_file_id(store));
	assert_int_equal(strlen(id), 32);
	put_one(store, "a", "x", 0);
	(void)snprintf(aside, sizeof(aside), "%s.old", root);
	assert_int_equal(rename(root, aside), 0);
	put_one(store, "b", "x", US_E_IO);
	assert_int_equal(mkdir(root, 0700), 0);
	put_one(store, "c", "x", US_E_IO);
	store->ops->close(store);
	store = open_store(0);
	assert_string_not_equal(us_store_file_id(store), id);
	assert_list(store, "", "");
	store->ops->close(store);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
	FILE *p = popen(command, "r");
	assert_non_null(p);
	assert_int_equal(pclose(p), 0);
	assert_int_equal(rename(aside, root), 0);
	store = open_store(1);
	assert_string_equal(us_store_file_id(store), id);
	assert_list(store, "", "a:1\n");
	store->ops->close(store);
}

static void test_read_only_and_cancel(void **state)
{
	(void)state;
	struct us_store *store = open_store(0);
	put_one(store, "a/b", "data", 0);
	store->ops->cancel(store);
	put_one(store, "a/c", "data", US_E_CANCELED);
	store->ops->close(store);
	store = open_store(1);
	assert_list(store, "", "a/b:4\n");
	store->ops->close(store);
	struct us_store *none;
	struct us_error err = US_ERROR_INIT;
	(void)teardown(state);
	assert_int_equal(us_store_file_open(root, 1, 0, &none, &err), 0);
	assert_int_equal(none->ops->list(none, "", join_keys, NULL, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, root));
	none->ops->close(none);
	assert_int_equal(mkdir(root, 0700), 0);
}

/* ---------------------------------------------------------- limited bandwidth */

static struct us_put *make_spooled(const char *key, const char *data)
{
	char path[SCRATCH_LEN + 16];
	struct us_put *put = make_put(key, data);
	(void)snprintf(path, sizeof(path), "%s/spool-XXXXXX", root);
	put->fd = mkstemp(path);
	assert_true(put->fd >= 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(write(put->fd, data, put->len), (ssize_t)put->len);
	free((void *)(uintptr_t)put->data);
	put->data = NULL;
	return put;
}

static void test_limited(void **state)
{
	(void)state;
	enum { COUNT = 6, LEN = 3000, LIMIT = 10000 };
	struct us_store *store = open_limited(0, LIMIT);
	struct us_put *puts[COUNT];
	char text[LEN + 1], key[16];
	int64_t start_ns = us_clock_mono_ns();
	for (size_t i = 0; i < COUNT; i++) {
		memset(text, (int)('a' + i), LEN);
		text[LEN] = '\0';
		(void)snprintf(key, sizeof(key), "limited/%zu", i);
		puts[i] = i % 2 ? make_spooled(key, text) : make_put(key, text);
	}
	put_all(store, puts, COUNT);
	/* but for the last piece, a quarter of a second's, and a tenth of a second */
	assert_true(us_clock_mono_ns() - start_ns >=
		    (COUNT * LEN - LIMIT / 4) * US_NS_PER_S / LIMIT - 100 * US_NS_PER_MS);
	for (size_t i = 0; i < COUNT; i++) {
		memset(text, (int)('a' + i), LEN);
		assert_int_equal(puts[i]->rc, 0);
		assert_get(store, puts[i]->key, 0, UINT64_MAX, text);
		if (puts[i]->fd >= 0) {
			close(puts[i]->fd);
		}
		free_put(puts[i]);
	}
	store->ops->close(store);
}

/* A cancel reaches the writer where it waits, and what it has not begun; what is there can be
 * read meanwhile. */
static void test_cancel_of_limited(void **state)
{
	(void)state;
	struct us_store *store = open_limited(0, 1000);
	static char text[200001];
	struct us_put *puts[3];
	put_one(store, "here", "x", 0);
	memset(text, 't', sizeof(text) - 1);
	puts[0] = make_put("k0", text);
	puts[1] = make_spooled("k1", text);
	puts[2] = make_put("k2", text);
	for (size_t i = 0; i < 3; i++) {
		store->ops->put_start(store, puts[i]);
	}
	assert_get(store, "here", 0, UINT64_MAX, "x");
	assert_null(store->ops->put_wait(store, 100));
	store->ops->cancel(store);
	for (size_t done = 0; done < 3;) {
		struct us_put *put = store->ops->put_wait(store, 10000);
		assert_non_null(put);
		for (; put; put = put->next) {
			assert_int_equal(put->rc, US_E_CANCELED);
			done++;
		}
	}
	close(puts[1]->fd);
	for (size_t i = 0; i < 3; i++) {
		free_put(puts[i]);
	}
	store->ops->close(store);
	store = open_store(0);
	assert_list(store, "", "here:1\n");
	store->ops->close(store);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_put_get_list_remove),
		TEST(test_batches),
		TEST(test_one_failure_is_its_own),
		TEST(test_from_spool_file),
		TEST(test_leftovers),
		TEST(test_read_only_and_cancel),
		TEST(test_directory_replaced),
		TEST(test_get_parts),
		TEST(test_remove_many),
		TEST(test_remove_from_many_directories),
		TEST(test_remove_many_failures),
		TEST(test_limited),
		TEST(test_cancel_of_limited),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
