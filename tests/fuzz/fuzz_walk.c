/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any tree: flags, the end of a pattern, and orders that make directories, files, links and
 * what not, with any bytes for names. The walk finds what a second one finds, which is
 * simple, slow, and asks the reference matcher about each path.
 *
 * An order is one byte; a name follows as one byte that says how it is made, then its bytes.
 */
#include "files.h"
#include "reference_match.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sys/resource.h>

#include "../../csrc/discover/walk.h"

#define NODES_MAX 700
#define PATH_CAP (NODES_MAX * 256 + 8192)
#define NAME_CAP 256

struct found {
	char *path;
	uint64_t len, inode, wal_len, wal_inode;
};

struct list {
	struct found items[2 * NODES_MAX];
	size_t count;
	pthread_mutex_t mutex;
	size_t failure_count;
	uint32_t thread_count;
	int stop;
};

static char root[SCRATCH_LEN];

/* --------------------------------------------------------------------- the tree */

struct tree {
	int fd; /* the directory at hand */
	size_t depth, node_count;
	char last[NAME_CAP]; /* file that was made last */
};

/* At least one byte, none of them a slash or NUL. */
static void take_name(struct input *in, char name[NAME_CAP])
{
	static const char *const handy[] = { "x.db", "a",    "b",     "x.db-wal", "x.db-journal",
					     ".x",   "c.db", "a-wal", "-wal",     "..." };
	uint8_t how = input_byte(in);
	size_t len = how < 160 ? how % 16 + 1u : how < 200 ? 0 : 240u + how % 16;
	size_t given = how < 160 ? len : how % 4 + 1u;
	if (len == 0) {
		(void)snprintf(name, NAME_CAP, "%s", handy[how % 10]);
		return;
	}
	for (size_t i = 0; i < len; i++) {
		name[i] = i < given ? (char)input_byte(in) : name[i - given];
		name[i] = name[i] == '/' || name[i] == '\0' ? '_' : name[i];
	}
	name[len] = '\0';
}

static void enter(struct tree *t, const char *name)
{
	int fd = openat(t->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0) {
		(void)close(t->fd);
		t->fd = fd;
		t->depth++;
	}
}

static void leave(struct tree *t)
{
	if (t->depth > 0) {
		int fd = openat(t->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		require(fd >= 0);
		(void)close(t->fd);
		t->fd = fd;
		t->depth--;
	}
}

static void make_file(struct tree *t, const char *name, size_t len)
{
	int fd =
		openat(t->fd, name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	if (fd >= 0) {
		(void)!ftruncate(fd, (off_t)len); /* a fifo has no length */
		(void)close(fd);
		(void)snprintf(t->last, sizeof(t->last), "%s", name);
	}
}

/* What cannot be made, as the name is there or too long, is not made. */
static void make_node(struct tree *t, struct input *in)
{
	char name[NAME_CAP], beside[NAME_CAP + 8];
	uint8_t order = input_byte(in) % 16;
	if (order == 15) {
		leave(t);
		return;
	}
	t->node_count++;
	if (order == 14) {
		(void)snprintf(beside, sizeof(beside), "%s-wal", t->last[0] ? t->last : "x.db");
		make_file(t, beside, input_byte(in));
		return;
	}
	take_name(in, name);
	switch (order) {
	case 0 ... 3:
		(void)mkdirat(t->fd, name, 0700);
		enter(t, name);
		break;
	case 4:
		(void)mkdirat(t->fd, name, 0700);
		break;
	case 5: {
		size_t count = input_byte(in);
		for (; count > 0 && t->node_count < NODES_MAX; count--, t->node_count++) {
			(void)mkdirat(t->fd, name, 0700);
			enter(t, name);
		}
		break;
	}
	case 6:
		(void)symlinkat(input_byte(in) & 1 ? ".." : t->last, t->fd, name);
		break;
	case 7:
		(void)mkfifoat(t->fd, name, 0600);
		break;
	case 8:
		(void)linkat(t->fd, t->last, t->fd, name, 0);
		break;
	default:
		make_file(t, name, input_byte(in));
		break;
	}
}

static void make_tree(struct input *in)
{
	struct tree t = { .fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC) };
	require(t.fd >= 0);
	while (in->left > 0 && t.node_count < NODES_MAX) {
		make_node(&t, in);
	}
	(void)close(t.fd);
}

static void remove_below(int dir_fd, const char *name)
{
	if (unlinkat(dir_fd, name, 0) == 0) {
		return;
	}
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *entry;
	require(dir);
	while ((entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
			remove_below(fd, entry->d_name);
		}
	}
	(void)closedir(dir);
	require(unlinkat(dir_fd, name, AT_REMOVEDIR) == 0);
}

/* ---------------------------------------------------------------- the second walk */

struct reference {
	const char *pattern;
	struct list *list;
	char path[PATH_CAP];
	int has_limits; /* something is too deep or too long */
	int is_short;   /* a database among it */
};

static void add_expected(struct reference *r, int dir_fd, const char *name, size_t len,
			 const struct stat *st)
{
	struct list *list = r->list;
	struct stat wal = { 0 };
	char beside[NAME_CAP + 8];
	(void)snprintf(beside, sizeof(beside), "%s-wal", name);
	(void)fstatat(dir_fd, beside, &wal, AT_SYMLINK_NOFOLLOW);
	require(list->count < 2 * NODES_MAX);
	list->items[list->count++] =
		(struct found){ strndup(r->path, len), (uint64_t)st->st_size, st->st_ino,
				(uint64_t)wal.st_size, wal.st_ino };
}

/* DEPTH: of the directory, below the prefix. LEN: of its path. */
static void walk_below(struct reference *r, int dir_fd, size_t len, size_t depth)
{
	static struct ref_span captures[REF_PARTS_MAX];
	size_t capture_count;
	struct stat st;
	struct dirent *entry;
	DIR *dir = fdopendir(dir_fd);
	require(dir);
	while ((entry = readdir(dir))) {
		const char *name = entry->d_name;
		size_t name_len = strlen(name);
		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
			continue;
		}
		require(fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0);
		require(len + 1 + name_len < PATH_CAP);
		r->path[len] = '/';
		memcpy(r->path + len + 1, name, name_len + 1);
		size_t path_len = len + 1 + name_len;
		int is_dir = S_ISDIR(st.st_mode) ? 1 : 0;
		r->has_limits |=
			path_len > US_PATH_LEN_MAX || depth + (size_t)is_dir > US_WALK_DEPTH_MAX;
		if (is_dir) {
			int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			require(fd >= 0);
			walk_below(r, fd, path_len, depth + 1);
		} else if (S_ISREG(st.st_mode) && path_len <= US_PATH_LEN_MAX &&
			   ref_match(r->pattern, r->path, path_len, captures, &capture_count)) {
			if (depth > US_WALK_DEPTH_MAX) {
				r->is_short = 1;
			} else {
				add_expected(r, dir_fd, name, path_len, &st);
			}
		}
	}
	(void)closedir(dir);
}

/* ----------------------------------------------------------------------- ours */

static int32_t on_batch(void *arg, uint32_t thread, const struct us_walk_batch *batch)
{
	struct list *list = arg;
	char path[US_PATTERN_LEN_MAX + US_PATH_LEN_MAX + 8];
	require(thread < list->thread_count && batch->entry_count > 0);
	require(batch->entry_count <= US_WALK_BATCH_MAX && strlen(batch->dir) == batch->dir_len);
	pthread_mutex_lock(&list->mutex);
	for (size_t i = 0; i < batch->entry_count; i++) {
		const struct us_walk_entry *e = &batch->entries[i];
		require(strlen(e->name) == e->name_len && e->clock_ns > 0);
		(void)snprintf(path, sizeof(path), "%s%s/%s", batch->dir_len ? "/" : "", batch->dir,
			       e->name);
		require(list->count < 2 * NODES_MAX);
		list->items[list->count++] = (struct found){ strdup(path), e->db.len, e->db.inode,
							     e->wal.len, e->wal.inode };
	}
	int stop = list->stop;
	pthread_mutex_unlock(&list->mutex);
	return stop;
}

static void on_failure(void *arg, uint32_t thread, const char *path, const struct us_error *err)
{
	struct list *list = arg;
	require(thread < list->thread_count && path[0] == '/');
	require_reason(err->code, err);
	pthread_mutex_lock(&list->mutex);
	list->failure_count++;
	pthread_mutex_unlock(&list->mutex);
}

static int by_path(const void *a, const void *b)
{
	return strcmp(((const struct found *)a)->path, ((const struct found *)b)->path);
}

static void list_done(struct list *list)
{
	for (size_t i = 0; i < list->count; i++) {
		free(list->items[i].path);
	}
	list->count = 0;
}

/* OURS has paths below the prefix, with a slash before them. */
static void compare(struct list *ours, struct list *expected, size_t prefix_len)
{
	qsort(ours->items, ours->count, sizeof(ours->items[0]), by_path);
	qsort(expected->items, expected->count, sizeof(expected->items[0]), by_path);
	for (size_t i = 0; i < ours->count && i < expected->count; i++) {
		const struct found *a = &ours->items[i], *b = &expected->items[i];
		require(strcmp(a->path, b->path + prefix_len) == 0);
		require(a->len == b->len && a->inode == b->inode);
		require(a->wal_len == b->wal_len && a->wal_inode == b->wal_inode);
	}
	require(ours->count == expected->count);
}

static void check_walk(const struct us_pattern *p, const char *text, uint8_t flags)
{
	static struct list ours, expected;
	static struct reference r;
	struct us_error err = US_ERROR_INIT;
	struct us_walk_result result;
	const char *prefix = us_pattern_prefix(p);
	int prefix_fd = us_walk_open(p, 0, &err);
	if (prefix_fd < 0) {
		require_reason(prefix_fd, &err);
		require(access(prefix, F_OK) != 0 || prefix_fd == US_E_NOTFOUND);
		return;
	}
	r.pattern = text;
	r.list = &expected;
	r.has_limits = r.is_short = 0;
	(void)snprintf(r.path, sizeof(r.path), "%s", prefix);
	int fd = openat(prefix_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	require(fd >= 0);
	walk_below(&r, fd, strlen(prefix), 0);
	ours.thread_count = flags % 3 + 1u;
	ours.stop = (flags & 64) != 0;
	ours.failure_count = 0;
	(void)pthread_mutex_init(&ours.mutex, NULL);
	const struct us_walk_fns fns = { on_batch, on_failure, &ours };
	int32_t rc = us_walk(p, prefix_fd, ours.thread_count, &fns, NULL, &result, &err);
	if (ours.stop) {
		require(rc == (expected.count > 0 ? US_E_CANCELED : 0));
	} else {
		require(rc == 0 && result.failure_count == ours.failure_count);
		require(result.database_count == ours.count);
		require(r.has_limits || ours.failure_count == 0);
		require(!r.is_short || ours.failure_count > 0);
		compare(&ours, &expected, strlen(prefix));
	}
	(void)pthread_mutex_destroy(&ours.mutex);
	(void)close(prefix_fd);
	list_done(&ours);
	list_done(&expected);
}

static void set_up(void)
{
	struct rlimit limit;
	if (root[0]) {
		return;
	}
	require(scratch_dir(root) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max; /* one for each level of the deepest tree */
	require(setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > NODES_MAX + 100);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	struct us_pattern *p = NULL;
	char text[2 * SCRATCH_LEN + US_PATTERN_LEN_MAX];
	set_up();
	uint8_t flags = input_byte(&in);
	char *end = input_string(&in);
	size_t len = 0;
	for (const char *c = root; *c; c++) { /* a `\` is harmless before any byte */
		text[len] = '\\';
		len += *c != '/';
		text[len++] = *c;
	}
	(void)snprintf(text + len, sizeof(text) - len, "/%s", end);
	if (us_pattern_new(text, &p, NULL) == 0) {
		require(mkdir(root, 0700) == 0 || errno == EEXIST);
		make_tree(&in);
		check_walk(p, text, flags);
		remove_below(AT_FDCWD, root);
	}
	us_pattern_free(p);
	free(end);
	return 0;
}
