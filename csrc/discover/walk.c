/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk. Directories that wait to be read are kept as a stack of groups: one
 * group is what one directory contained (its path once, then the names of its
 * subdirectories), and the threads take names from the top group. So the order is
 * depth first, and what waits is at most the listings along a few branches: about
 * 20 bytes for each directory of the widest ones.
 *
 *	group: path of the parent, then records { u8 length, name, NUL }
 *
 * A thread reads a directory as a whole before it looks at a file, because only
 * the complete listing tells whether NAME-wal exists. Names that matter are copied
 * to per-thread lists of the same records; `-wal` names also go into a hash table
 * (keyed SipHash, as names are chosen by tenants), so each database costs one
 * probe. Subdirectories are handed out before the files are looked at. Nothing is
 * allocated per file, and no path is built but the directory's.
 *
 * The files of a large directory are shared out: the thread that has listed it offers them
 * (walk.sharing), and those that find no directory to read take some of its names at a time,
 * with its descriptor and its lists, which stay as they are until all are done.
 *
 * A directory is opened by its path below the prefix in one openat2 that follows
 * no link and crosses no mount (us_tree_open): one descriptor per thread, however
 * deep or wide the tree. Names that are literal in the pattern are not looked up in
 * a listing but opened directly.
 *
 * Locks: walk.mutex guards the stack, the counts of busy threads and the first
 * error. It is not held during system calls on files or callbacks. walk.stop is
 * read without it: an order that comes a little late is fine.
 *
 * Why it ends: a thread leaves when there is nothing to take and no thread is busy, as
 * only busy threads push and offer; each change to either wakes the others.
 */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "../base/siphash.h"
#include "../base/thread.h"
#include "../base/tree.h"

#define LISTING_LEN ((size_t)64 * 1024)
#define NAMES_LEN_MAX ((size_t)1 << 28)  /* of one kind in one directory */
#define NAMES_KEEP_LEN ((size_t)1 << 20) /* a longer list is given back after its directory */
#define NAME_LEN_MAX US_PATTERN_FILE_NAME_LEN_MAX
#define WAL_SUFFIX_LEN 4
#define SHARE_COUNT_MIN 4096 /* files of a directory that is shared out */
#define SHARE_STEP 1024      /* files taken at a time */

#define STATX_MASK (STATX_TYPE | STATX_SIZE | STATX_MTIME | STATX_CTIME | STATX_INO)
#define STATX_FLAGS (AT_SYMLINK_NOFOLLOW | AT_STATX_SYNC_AS_STAT | AT_NO_AUTOMOUNT)

/* Records { u8 length, name, NUL }, packed. */
struct names {
	char *data;
	size_t len, cap;
	size_t count;
};

struct group {
	struct group *below;
	us_pattern_state state; /* of the parent directory */
	uint32_t depth;         /* of the parent directory */
	size_t path_len;
	size_t at, end; /* records not yet taken, in BYTES */
	char bytes[];
};

struct walk {
	const struct us_pattern *pattern;
	const struct us_walk_fns *fns;
	const _Atomic uint32_t *cancel;
	int prefix_fd;
	size_t base_len; /* of the prefix, 0 for "/" */
	uint32_t device_major, device_minor;
	int has_devices; /* directories of other devices need no mount to be entered */
	struct us_siphash_key hash_key;
	_Atomic int32_t stop; /* 0, or the code us_walk returns */
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	struct group *top;
	struct walker *sharing; /* those whose files others may take */
	uint32_t thread_count;
	uint32_t busy_count, waiting_count;
	uint32_t root_waits; /* the prefix itself is not taken yet */
	struct us_error err; /* of the first stop */
};

struct walker {
	struct walk *walk;
	uint32_t thread;
	uint32_t is_started;
	uint32_t is_busy;      /* counted in walk.busy_count */
	struct walker *helped; /* whose files it looks at; NULL: its own directory's */
	/* while it shares, guarded by walk.mutex */
	struct walker *next_sharing;
	size_t share_at; /* in files: from here on they are not taken */
	uint32_t helper_count;
	pthread_t handle;
	struct us_walk_result result;
	/* the directory at hand */
	char dir[US_PATH_LEN_MAX + 1]; /* below the prefix, NUL-terminated */
	size_t dir_len;
	uint32_t depth;
	us_pattern_state state;
	int fd;
	int listing_failed; /* the names are not all there */
	char *listing;
	struct names children, files, wals;
	uint32_t *slots; /* offset in wals + 1, or 0 */
	size_t slot_count, slot_cap;
	struct us_walk_entry entries[US_WALK_BATCH_MAX];
	size_t entry_count;
};

/* ------------------------------------------------------------------ stopping */

static void stop(struct walk *w, int32_t code, const struct us_error *err)
{
	pthread_mutex_lock(&w->mutex);
	if (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		w->err = *err;
		atomic_store_explicit(&w->stop, code, memory_order_relaxed);
	}
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->mutex);
}

static void stop_nomem(struct walk *w)
{
	struct us_error err = US_ERROR_INIT;
	stop(w, us_fail_nomem(&err), &err);
}

static int is_stopped(struct walk *w)
{
	if (w->cancel && atomic_load_explicit(w->cancel, memory_order_relaxed) &&
	    !atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		struct us_error err = US_ERROR_INIT;
		stop(w, us_fail(&err, US_E_CANCELED, "the walk was canceled"), &err);
	}
	return atomic_load_explicit(&w->stop, memory_order_relaxed) != 0;
}

/* ---------------------------------------------------------------------- names */

static int names_add(struct names *names, const char *name, size_t len)
{
	size_t need = names->len + 1 + len + 1;
	if (need > names->cap) {
		size_t cap = names->cap ? names->cap * 2 : 4096;
		char *data = cap <= NAMES_LEN_MAX ? us_realloc(names->data, cap) : NULL;
		if (!data) {
			return -1;
		}
		names->data = data;
		names->cap = cap;
	}
	char *to = names->data + names->len;
	to[0] = (char)(unsigned char)len;
	memcpy(to + 1, name, len);
	to[1 + len] = '\0';
	names->len = need;
	names->count++;
	return 0;
}

static void names_reset(struct names *names)
{
	if (names->cap > NAMES_KEEP_LEN) {
		us_free(names->data);
		*names = (struct names){ .len = 0 };
	}
	names->len = names->count = 0;
}

/* The record at *AT, which moves on. */
static const char *record_next(const char *data, size_t *at, size_t *ret_len)
{
	const char *record = data + *at;
	*ret_len = (unsigned char)record[0];
	*at += 1 + *ret_len + 1;
	return record + 1;
}

/* ------------------------------------------------------------------- failures */

/* Hands ERR over for NAME in the directory at hand, or the directory itself (NULL). */
static void report(struct walker *t, const char *name, const struct us_error *err)
{
	const char *prefix = us_pattern_prefix(t->walk->pattern);
	char path[US_PATTERN_LEN_MAX + US_PATH_LEN_MAX + NAME_LEN_MAX + 8];
	size_t len = t->walk->base_len;
	memcpy(path, prefix, len);
	if (t->dir_len) {
		path[len++] = '/';
		memcpy(path + len, t->dir, t->dir_len);
		len += t->dir_len;
	}
	if (name) {
		size_t name_len = strlen(name);
		path[len++] = '/';
		memcpy(path + len, name, name_len);
		len += name_len;
	}
	path[len] = '\0';
	t->result.failure_count++;
	t->walk->fns->failure(t->walk->fns->arg, t->thread, len ? path : "/", err);
}

/* A failure of the directory at hand: of the prefix, it is the end of the walk. */
static void fail_directory(struct walker *t, const struct us_error *err)
{
	if (t->dir_len == 0) {
		stop(t->walk, err->code, err);
	} else {
		report(t, NULL, err);
	}
}

static void fail_directory_errno(struct walker *t, int sys_errno, const char *what)
{
	struct us_error err = US_ERROR_INIT;
	char shown[US_ESCAPE_SHOW_LEN];
	const char *prefix = us_pattern_prefix(t->walk->pattern);
	if (t->dir_len == 0) {
		(void)us_fail_errno(&err, sys_errno, "cannot %s \"%s\"", what,
				    us_escape_show(prefix, strlen(prefix), shown));
	} else {
		(void)us_fail_errno(&err, sys_errno, "cannot %s directory \"%s\"", what,
				    us_escape_show(t->dir, t->dir_len, shown));
	}
	fail_directory(t, &err);
}

static void fail_file_errno(struct walker *t, const char *name, int sys_errno)
{
	struct us_error err = US_ERROR_INIT;
	char shown[US_ESCAPE_SHOW_LEN];
	(void)us_fail_errno(&err, sys_errno, "cannot stat \"%s\"",
			    us_escape_show(name, strlen(name), shown));
	report(t, name, &err);
}

/* -------------------------------------------------------------------- opening */

static void fail_other_device(struct walker *t)
{
	struct us_error err = US_ERROR_INIT;
	char shown[US_ESCAPE_SHOW_LEN];
	(void)us_fail(
		&err, US_E_UNSUPPORTED,
		"directory \"%s\" is on another device; its databases are not backed up: give it a "
		"multi_db section of its own, or move it",
		us_escape_show(t->dir, t->dir_len, shown));
	err.sys_errno = EXDEV;
	fail_directory(t, &err);
}

static void fail_path_len(struct walker *t, const char *name, size_t name_len)
{
	struct us_error err = US_ERROR_INIT;
	char shown[US_ESCAPE_SHOW_LEN];
	(void)us_fail(&err, US_E_NAME,
		      "the path of \"%s\" has more than %d bytes; give it a shorter one",
		      us_escape_show(name, name_len, shown), US_PATH_LEN_MAX);
	report(t, name, &err);
}

/* Makes subdirectory NAME the directory at hand. -1: it cannot be, which is reported. */
static int enter(struct walker *t, const char *name, size_t name_len)
{
	if (t->walk->base_len + 1 + t->dir_len + 1 + name_len > US_PATH_LEN_MAX) {
		fail_path_len(t, name, name_len);
		return -1;
	}
	if (t->depth == US_WALK_DEPTH_MAX) {
		struct us_error err = US_ERROR_INIT;
		char shown[US_ESCAPE_SHOW_LEN];
		(void)us_fail(
			&err, US_E_UNSUPPORTED,
			"directory \"%s\" is not entered: it is more than %d levels below the "
			"pattern's wildcard-free part",
			us_escape_show(name, name_len, shown), US_WALK_DEPTH_MAX);
		report(t, name, &err);
		return -1;
	}
	t->depth++;
	t->state = us_pattern_enter(t->walk->pattern, t->state, name, name_len);
	if (t->dir_len) {
		t->dir[t->dir_len++] = '/';
	}
	memcpy(t->dir + t->dir_len, name, name_len + 1);
	t->dir_len += name_len;
	return 0;
}

/* Goes on to the only subdirectory that can matter, as long as there is one. */
static int descend_literals(struct walker *t)
{
	const char *name;
	while ((name = us_pattern_only_directory(t->walk->pattern, t->state))) {
		if (enter(t, name, strlen(name))) {
			return -1;
		}
	}
	return 0;
}

static int open_dir_fd(struct walker *t)
{
	if (t->dir_len == 0) {
		t->fd = openat(t->walk->prefix_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (t->fd < 0) {
			fail_directory_errno(t, errno, "open");
		}
		return t->fd < 0 ? -1 : 0;
	}
	struct us_error err = US_ERROR_INIT;
	t->fd = us_tree_open(t->walk->prefix_fd, t->dir, O_RDONLY | O_DIRECTORY, t->dir, &err);
	if (t->fd >= 0) {
		return 0;
	}
	if (err.sys_errno == EXDEV) {
		fail_other_device(t);
	} else if (err.code != US_E_NOTFOUND) { /* gone since it was listed, or a link now */
		fail_directory_errno(t, err.sys_errno ? err.sys_errno : EIO, "open");
	}
	return -1;
}

/* Opens the directory at hand. -1: it is not to be read, and that is reported. */
static int open_directory(struct walker *t)
{
	if (open_dir_fd(t)) {
		return -1;
	}
	struct statx st;
	const struct walk *w = t->walk;
	if (!w->has_devices) {
		return 0;
	}
	if (statx(t->fd, "", AT_EMPTY_PATH | AT_STATX_SYNC_AS_STAT, STATX_TYPE, &st)) {
		fail_directory_errno(t, errno, "stat");
	} else if (st.stx_dev_major != w->device_major || st.stx_dev_minor != w->device_minor) {
		/* A subvolume: another device without being another mount. */
		fail_other_device(t);
	} else {
		return 0;
	}
	(void)close(t->fd); /* a directory: nothing to lose */
	return -1;
}

/* -------------------------------------------------------------------- listing */

static int is_directory(const struct walker *t, const char *name)
{
	struct statx st;
	return statx(t->fd, name, STATX_FLAGS, STATX_TYPE, &st) == 0 && S_ISDIR(st.stx_mode);
}

static int is_wal(const char *name, size_t len)
{
	return len > WAL_SUFFIX_LEN &&
	       memcmp(name + len - WAL_SUFFIX_LEN, "-wal", WAL_SUFFIX_LEN) == 0;
}

/* Keeps one name of the listing if it matters. Type DT_UNKNOWN may be anything. */
static int take_name(struct walker *t, const char *name, unsigned char type, int wants_files)
{
	const struct us_pattern *pattern = t->walk->pattern;
	size_t len = strlen(name);
	if (len > NAME_LEN_MAX || (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))) {
		return 0;
	}
	if ((type == DT_DIR || type == DT_UNKNOWN) &&
	    us_pattern_enter(pattern, t->state, name, len) &&
	    (type == DT_DIR || is_directory(t, name)) && names_add(&t->children, name, len)) {
		return -1;
	}
	if (!wants_files) {
		return 0;
	}
	if (is_wal(name, len)) {
		return names_add(&t->wals, name, len);
	}
	if ((type == DT_REG || type == DT_UNKNOWN) &&
	    us_pattern_accepts(pattern, t->state, name, len)) {
		return names_add(&t->files, name, len);
	}
	return 0;
}

/* Reads the whole listing. -1: the walk is stopped. */
static int list(struct walker *t)
{
	int wants_files = us_pattern_wants_files(t->walk->pattern, t->state);
	names_reset(&t->children);
	names_reset(&t->files);
	names_reset(&t->wals);
	t->listing_failed = 0;
	while (!is_stopped(t->walk)) {
		long got = syscall(SYS_getdents64, t->fd, t->listing, LISTING_LEN);
		if (got < 0 && errno == EINTR) {
			continue;
		}
		/* ENOENT: removed while it was read, which only the prefix must not be. */
		if (got < 0 && (errno != ENOENT || t->dir_len == 0)) {
			t->listing_failed = 1;
			fail_directory_errno(t, errno, "list");
		}
		if (got <= 0) {
			t->result.directory_count += !t->listing_failed;
			return is_stopped(t->walk) ? -1 : 0;
		}
		for (long at = 0; at < got;) {
			/* The kernel aligns the records to 8 bytes. */
			const struct dirent64 *entry = (const void *)(t->listing + at);
			if (take_name(t, entry->d_name, entry->d_type, wants_files)) {
				/* Whose tenant makes names without end stops nobody else. */
				t->listing_failed = 1;
				fail_directory_errno(t, ENOMEM, "list");
				return is_stopped(t->walk) ? -1 : 0;
			}
			at += entry->d_reclen;
		}
	}
	return -1;
}

/* ------------------------------------------------------------------ the stack */

/* Hands the subdirectories over to whichever thread is free. */
static int push_children(struct walker *t)
{
	if (t->children.count == 0) {
		return 0;
	}
	struct walk *w = t->walk;
	struct group *g = us_alloc(us_size_add(sizeof(*g), t->dir_len + t->children.len));
	if (!g) {
		stop_nomem(w);
		return -1;
	}
	*g = (struct group){ .state = t->state,
			     .depth = t->depth,
			     .path_len = t->dir_len,
			     .at = t->dir_len,
			     .end = t->dir_len + t->children.len };
	memcpy(g->bytes, t->dir, t->dir_len);
	memcpy(g->bytes + t->dir_len, t->children.data, t->children.len);
	pthread_mutex_lock(&w->mutex);
	g->below = w->top;
	w->top = g;
	if (w->waiting_count) {
		pthread_cond_broadcast(&w->cond);
	}
	pthread_mutex_unlock(&w->mutex);
	return 0;
}

/* Takes the top name off the stack, which is not empty, into NAME, and makes its
 * parent the directory at hand. Returns the group if that was its last name. */
static struct group *pop_child(struct walker *t, char name[NAME_LEN_MAX + 1], size_t *ret_name_len)
{
	struct walk *w = t->walk;
	struct group *g = w->top;
	const char *record = record_next(g->bytes, &g->at, ret_name_len);
	memcpy(name, record, *ret_name_len + 1);
	memcpy(t->dir, g->bytes, g->path_len);
	t->dir[g->path_len] = '\0';
	t->dir_len = g->path_len;
	t->depth = g->depth;
	t->state = g->state;
	if (g->at < g->end) {
		return NULL;
	}
	w->top = g->below;
	return g;
}

static void take_prefix(struct walker *t, size_t *ret_name_len)
{
	t->walk->root_waits = 0;
	t->dir[0] = '\0';
	t->dir_len = 0;
	t->depth = 0;
	t->state = us_pattern_start(t->walk->pattern);
	*ret_name_len = 0;
}

/* Somebody who has files left to be taken, or NULL. Wants the mutex. */
static struct walker *find_shared(const struct walk *w)
{
	struct walker *s = w->sharing;
	while (s && s->share_at == s->files.len) {
		s = s->next_sharing;
	}
	return s;
}

/* Gives up the directory at hand and waits for the next one: its parent is then the
 * directory at hand, NAME (empty for the prefix) what to enter; or t->helped is whom to
 * help. 0: the walk is over. */
static int take_next(struct walker *t, char name[NAME_LEN_MAX + 1], size_t *ret_name_len)
{
	struct walk *w = t->walk;
	struct group *used = NULL;
	pthread_mutex_lock(&w->mutex);
	w->busy_count -= t->is_busy;
	t->is_busy = 0;
	while (!w->top && !w->root_waits && !find_shared(w) && w->busy_count > 0 &&
	       !atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		w->waiting_count++;
		t->result.busy_ns += us_clock_mono_ns();
		pthread_cond_wait(&w->cond, &w->mutex);
		t->result.busy_ns -= us_clock_mono_ns();
		w->waiting_count--;
	}
	if (atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		/* stop() has woken the others */
	} else if (w->root_waits) {
		take_prefix(t, ret_name_len);
		t->is_busy = 1;
	} else if (w->top) {
		used = pop_child(t, name, ret_name_len);
		t->is_busy = 1;
	} else if ((t->helped = find_shared(w)) != NULL) {
		t->helped->helper_count++;
		t->is_busy = 1;
	} else {
		pthread_cond_broadcast(&w->cond);
	}
	w->busy_count += t->is_busy;
	pthread_mutex_unlock(&w->mutex);
	us_free(used);
	return t->is_busy != 0;
}

/* ---------------------------------------------------------------------- files */

static size_t hash_slot(const struct walker *t, const char *name, size_t len)
{
	return (size_t)us_siphash(&t->walk->hash_key, name, len) & (t->slot_count - 1);
}

/* Puts the `-wal` names of the directory into the table. */
static int index_wals(struct walker *t)
{
	if (t->wals.count == 0) {
		return 0;
	}
	size_t count = 64;
	while (count < 2 * t->wals.count) {
		count *= 2;
	}
	if (count > t->slot_cap) {
		us_free(t->slots);
		t->slots = us_alloc_array(count, sizeof(*t->slots));
		t->slot_cap = t->slots ? count : 0;
		if (!t->slots) {
			return -1;
		}
	}
	t->slot_count = count;
	memset(t->slots, 0, count * sizeof(*t->slots));
	for (size_t at = 0; at < t->wals.len;) {
		uint32_t mark = (uint32_t)at + 1;
		size_t len;
		const char *name = record_next(t->wals.data, &at, &len);
		size_t slot = hash_slot(t, name, len - WAL_SUFFIX_LEN);
		while (t->slots[slot]) {
			slot = (slot + 1) & (count - 1);
		}
		t->slots[slot] = mark;
	}
	return 0;
}

/* The name NAME-wal, if the listing has it. Its own record is in BUFFER where the
 * listing is not complete: then it has to be tried. */
static const char *find_wal(const struct walker *t, const char *name, size_t len,
			    char buffer[NAME_LEN_MAX + 1])
{
	if (t->listing_failed && len + WAL_SUFFIX_LEN <= NAME_LEN_MAX) {
		memcpy(buffer, name, len);
		memcpy(buffer + len, "-wal", WAL_SUFFIX_LEN + 1);
		return buffer;
	}
	if (t->wals.count == 0) {
		return NULL;
	}
	for (size_t slot = hash_slot(t, name, len); t->slots[slot];
	     slot = (slot + 1) & (t->slot_count - 1)) {
		size_t at = t->slots[slot] - 1;
		size_t wal_len;
		const char *wal = record_next(t->wals.data, &at, &wal_len);
		if (wal_len == len + WAL_SUFFIX_LEN && memcmp(wal, name, len) == 0) {
			return wal;
		}
	}
	return NULL;
}

static int64_t statx_ns(const struct statx_timestamp *time)
{
	return time->tv_sec * US_NS_PER_S + time->tv_nsec;
}

/* 1, or 0 if there is no such file (any more), or -1 if it failed, which is reported. */
static int stat_file(struct walker *t, const char *name, struct us_file_stat *ret_stat,
		     int *ret_is_regular)
{
	struct statx st;
	if (statx(t->fd, name, STATX_FLAGS, STATX_MASK, &st)) {
		if (errno == ENOENT) {
			return 0;
		}
		fail_file_errno(t, name, errno);
		return -1;
	}
	*ret_is_regular = S_ISREG(st.stx_mode);
	*ret_stat = (struct us_file_stat){
		.len = st.stx_size,
		.mtime_ns = statx_ns(&st.stx_mtime),
		.ctime_ns = statx_ns(&st.stx_ctime),
		.inode = st.stx_ino,
	};
	return 1;
}

/* Adds the file to the batch if it is a database to be reported. OF has listed it. */
static void look_at_file(struct walker *t, const struct walker *of, const char *name, size_t len,
			 int64_t clock_ns)
{
	if (t->walk->base_len + 1 + t->dir_len + 1 + len > US_PATH_LEN_MAX) {
		fail_path_len(t, name, len);
		return;
	}
	struct us_walk_entry *e = &t->entries[t->entry_count];
	int is_regular;
	if (stat_file(t, name, &e->db, &is_regular) <= 0 || !is_regular) {
		return;
	}
	char buffer[NAME_LEN_MAX + 1];
	const char *wal = find_wal(of, name, len, buffer);
	e->wal = (struct us_file_stat){ .len = 0 };
	/* A `-wal` that is no file is the reader's business, but its changes count. */
	if (wal && stat_file(t, wal, &e->wal, &is_regular) < 0) {
		return;
	}
	e->name = name;
	e->name_len = (uint32_t)len;
	e->reserved = 0;
	e->clock_ns = clock_ns;
	t->entry_count++;
}

static void deliver(struct walker *t)
{
	struct us_walk_batch batch = { .dir = t->dir,
				       .dir_len = t->dir_len,
				       .entries = t->entries,
				       .entry_count = t->entry_count };
	t->entry_count = 0;
	if (batch.entry_count == 0 || is_stopped(t->walk)) {
		return;
	}
	t->result.database_count += batch.entry_count;
	if (t->walk->fns->batch(t->walk->fns->arg, t->thread, &batch)) {
		struct us_error err = US_ERROR_INIT;
		stop(t->walk, us_fail(&err, US_E_CANCELED, "the walk was canceled"), &err);
	}
}

/* Looks at the files of OF, which may be T, from AT to END. */
static void look_at_range(struct walker *t, const struct walker *of, size_t at, size_t end)
{
	int64_t clock_ns = 0;
	t->entry_count = 0;
	while (at < end && !is_stopped(t->walk)) {
		size_t len;
		const char *name = record_next(of->files.data, &at, &len);
		if (t->entry_count == 0) {
			clock_ns = us_clock_file_ns();
		}
		look_at_file(t, of, name, len, clock_ns);
		if (t->entry_count == US_WALK_BATCH_MAX) {
			deliver(t);
		}
	}
	deliver(t);
}

/* Takes files of OF and looks at them until none is left. Wants the mutex, which it gives up
 * meanwhile. */
static void take_files(struct walker *t, struct walker *of)
{
	while (of->share_at < of->files.len) {
		size_t at = of->share_at, end = at;
		for (size_t len, i = 0; i < SHARE_STEP && end < of->files.len; i++) {
			(void)record_next(of->files.data, &end, &len);
		}
		of->share_at = end;
		pthread_mutex_unlock(&t->walk->mutex);
		look_at_range(t, of, at, end);
		pthread_mutex_lock(&t->walk->mutex);
	}
}

/* Lets others take files of T's directory, and ends when all are looked at. */
static void share_files(struct walker *t)
{
	struct walk *w = t->walk;
	pthread_mutex_lock(&w->mutex);
	t->share_at = 0;
	t->next_sharing = w->sharing;
	w->sharing = t;
	if (w->waiting_count) {
		pthread_cond_broadcast(&w->cond);
	}
	take_files(t, t);
	struct walker **link = &w->sharing;
	while (*link != t) {
		link = &(*link)->next_sharing;
	}
	*link = t->next_sharing;
	while (t->helper_count > 0) {
		pthread_cond_wait(&w->cond, &w->mutex);
	}
	pthread_mutex_unlock(&w->mutex);
}

/* Looks at files of another one's directory. */
static void help(struct walker *t)
{
	struct walk *w = t->walk;
	struct walker *of = t->helped;
	memcpy(t->dir, of->dir, of->dir_len + 1);
	t->dir_len = of->dir_len;
	t->fd = of->fd;
	pthread_mutex_lock(&w->mutex);
	take_files(t, of);
	t->helped = NULL;
	of->helper_count--;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->mutex);
}

static void look_at_files(struct walker *t)
{
	if (index_wals(t)) {
		stop_nomem(t->walk);
	} else if (t->files.count < SHARE_COUNT_MIN || t->walk->thread_count == 1) {
		look_at_range(t, t, 0, t->files.len);
	} else {
		share_files(t);
	}
}

/* -------------------------------------------------------------------- threads */

/* Reads the directory NAME in the directory at hand ("": that one itself). */
static void visit(struct walker *t, const char *name, size_t name_len)
{
	if (name_len > 0 && enter(t, name, name_len)) {
		return;
	}
	if (descend_literals(t) || open_directory(t)) {
		return;
	}
	if (list(t) == 0 && push_children(t) == 0) {
		look_at_files(t);
	}
	(void)close(t->fd); /* a directory: nothing to lose */
}

static void *run(void *arg)
{
	struct walker *t = arg;
	char name[NAME_LEN_MAX + 1] = "";
	size_t name_len = 0;
	t->result.busy_ns -= us_clock_mono_ns();
	while (take_next(t, name, &name_len)) {
		if (t->helped) {
			help(t);
		} else {
			visit(t, name, name_len);
		}
	}
	t->result.busy_ns += us_clock_mono_ns();
	return NULL;
}

static int32_t walk_init(struct walk *w, struct us_error *err)
{
	struct statx st;
	const char *prefix = us_pattern_prefix(w->pattern);
	w->base_len = strcmp(prefix, "/") == 0 ? 0 : strlen(prefix);
	w->root_waits = 1;
	if (statx(w->prefix_fd, "", AT_EMPTY_PATH | AT_STATX_SYNC_AS_STAT, STATX_TYPE, &st)) {
		char shown[US_ESCAPE_SHOW_LEN];
		return us_fail_errno(err, errno, "cannot stat \"%s\"",
				     us_escape_show(prefix, strlen(prefix), shown));
	}
	w->device_major = st.stx_dev_major;
	w->device_minor = st.stx_dev_minor;
	w->has_devices = us_tree_has_devices(w->prefix_fd);
	if (getrandom(&w->hash_key, sizeof(w->hash_key), 0) != (ssize_t)sizeof(w->hash_key)) {
		return us_fail_errno(err, errno, "cannot get random bytes");
	}
	if (pthread_mutex_init(&w->mutex, NULL)) {
		return us_fail_nomem(err);
	}
	if (pthread_cond_init(&w->cond, NULL)) {
		(void)pthread_mutex_destroy(&w->mutex); /* nothing held */
		return us_fail_nomem(err);
	}
	return 0;
}

static void walk_done(struct walk *w)
{
	while (w->top) {
		struct group *below = w->top->below;
		us_free(w->top);
		w->top = below;
	}
	(void)pthread_cond_destroy(&w->cond);   /* nobody waits */
	(void)pthread_mutex_destroy(&w->mutex); /* nobody holds it */
}

static void walkers_free(struct walker *walkers, uint32_t count)
{
	for (uint32_t i = 0; walkers && i < count; i++) {
		us_free(walkers[i].listing);
		us_free(walkers[i].children.data);
		us_free(walkers[i].files.data);
		us_free(walkers[i].wals.data);
		us_free(walkers[i].slots);
	}
	us_free(walkers);
}

static struct walker *walkers_new(struct walk *w, uint32_t count)
{
	struct walker *walkers = us_alloc_array(count, sizeof(*walkers));
	for (uint32_t i = 0; walkers && i < count; i++) {
		walkers[i].walk = w;
		walkers[i].thread = i;
		walkers[i].fd = -1;
		walkers[i].listing = us_alloc(LISTING_LEN);
		if (!walkers[i].listing) {
			walkers_free(walkers, count);
			return NULL;
		}
	}
	return walkers;
}

/* The caller is thread 0. Where a thread cannot be started, those there are do it. */
static void run_all(struct walker *walkers, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++) {
		walkers[i].is_started =
			us_thread_start(&walkers[i].handle, "us-walk", run, &walkers[i], NULL) == 0;
	}
	(void)run(&walkers[0]); /* always NULL */
	for (uint32_t i = 1; i < count; i++) {
		if (walkers[i].is_started) {
			(void)pthread_join(walkers[i].handle, NULL); /* ours, joined once */
		}
	}
}

int32_t us_walk(const struct us_pattern *pattern, int prefix_fd, uint32_t thread_count,
		const struct us_walk_fns *fns, const _Atomic uint32_t *cancel,
		struct us_walk_result *ret_result, struct us_error *err)
{
	if (thread_count < 1 || thread_count > US_WALK_THREADS_MAX) {
		return us_fail(err, US_E_ARG, "a walk has 1 to %d threads, not %u",
			       US_WALK_THREADS_MAX, thread_count);
	}
	struct walk w = { .pattern = pattern,
			  .fns = fns,
			  .cancel = cancel,
			  .prefix_fd = prefix_fd,
			  .thread_count = thread_count };
	int32_t rc = walk_init(&w, err);
	if (rc) {
		return rc;
	}
	struct walker *walkers = walkers_new(&w, thread_count);
	if (!walkers) {
		walk_done(&w);
		return us_fail_nomem(err);
	}
	run_all(walkers, thread_count);
	struct us_walk_result result = { .database_count = 0 };
	for (uint32_t i = 0; i < thread_count; i++) {
		result.database_count += walkers[i].result.database_count;
		result.directory_count += walkers[i].result.directory_count;
		result.failure_count += walkers[i].result.failure_count;
		result.busy_ns += walkers[i].result.busy_ns;
	}
	walkers_free(walkers, thread_count);
	rc = atomic_load_explicit(&w.stop, memory_order_relaxed);
	if (!rc) {
		*ret_result = result;
	} else if (err) {
		*err = w.err;
	}
	walk_done(&w);
	return rc;
}

int32_t us_walk_open(const struct us_pattern *pattern, int any_filesystem, struct us_error *err)
{
	const char *prefix = us_pattern_prefix(pattern);
	int fd = open(prefix, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		return us_fail_errno(err, errno,
				     "discovery_pattern: cannot open the directory \"%s\"", prefix);
	}
	int32_t rc = any_filesystem ? 0 : us_tree_check_filesystem(fd, prefix, err);
	if (rc) {
		(void)close(fd); /* only looked at */
	}
	return rc ? rc : fd;
}

uint32_t us_walk_threads(void)
{
	uint32_t count = us_cpu_count();
	return count < US_WALK_THREADS_MAX ? count : US_WALK_THREADS_MAX;
}
