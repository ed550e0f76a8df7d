/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The output of a restore. Everything below its directory goes by descriptor
 * (openat and friends), never follows a link in the last component, and touches
 * only the database's own name, its three side files and the hidden names
 *
 *	.us-restore-HHHHHHHHHHHHHHHH	      the temporary file
 *	.us-before-HHHHHHHHHHHHHHHH-{new,db,wal,shm,jrn}	place.c
 *
 * H are the first 8 bytes of the SHA-256 of the output's file name, so the next
 * restore of the same output finds what a killed one left, and a name of 255
 * bytes has room. A temporary file is locked (byte 0, open file description) as
 * long as its restore lives: one without that lock is a leftover.
 *
 * Locks, in the order in which they are taken: in a fleet the mutex of the directory
 * (made_dirs.h), flock of the directory (both only while names change), then SQLite's
 * locks; made_dirs.mutex is taken alone:
 *
 *	database  0x40000000 PENDING, +1 RESERVED, +2..+511 SHARED	(os_unix.c)
 *	-shm      120..127 WAL-index locks, 128 DMS ("dead man's switch")
 *
 * A write lock on all of them is what no other connection can have beside
 * itself: every open WAL connection read-locks DMS and SHARED, every transaction
 * in rollback mode SHARED. A connection that is idle in rollback mode holds
 * nothing and cannot be seen.
 */
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "../base/clock.h"
#include "../base/tree.h"

#define MAKE_TRIES_MAX 16
#define PENDING_BYTE 0x40000000
#define RESERVED_BYTE (PENDING_BYTE + 1)
#define SHARED_FIRST (PENDING_BYTE + 2)
#define DB_LOCK_LEN 512
#define SHM_LOCK_FIRST 120
#define SHM_LOCK_LEN 9
#define SHM_DMS 128

#define ENTER_WAIT_NS (30 * US_NS_PER_S)
#define ENTER_PAUSE_FIRST_NS (US_NS_PER_MS / 50)
#define ENTER_PAUSE_MOST_NS (5 * US_NS_PER_MS)
#define TEMP_TRIES_MAX 10
#define TEMP_OPEN_FLAGS (O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC)

static const char *const side_suffix[US_SIDE_COUNT] = { "-wal", "-shm", "-journal" };
static const char *const before_suffix[US_SIDE_COUNT] = { "wal", "shm", "jrn" };

/* ------------------------------------------------------------ names, opening */

static int32_t make_names(struct us_output *o, struct us_error *err)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	if (!EVP_Digest(o->name, strlen(o->name), digest, NULL, EVP_sha256(), NULL)) {
		return us_fail(err, US_E_IO, "SHA-256 failed");
	}
	char id[17];
	for (size_t i = 0; i < 8; i++) {
		(void)snprintf(id + 2 * i, 3, "%02x", digest[i]);
	}
	(void)snprintf(o->temp, sizeof(o->temp), ".us-restore-%s", id);
	(void)snprintf(o->before_new, sizeof(o->before_new), ".us-before-%s-new", id);
	(void)snprintf(o->before_db, sizeof(o->before_db), ".us-before-%s-db", id);
	for (int i = 0; i < US_SIDE_COUNT; i++) {
		(void)snprintf(o->side[i], sizeof(o->side[i]), "%s%s", o->name, side_suffix[i]);
		(void)snprintf(o->before_side[i], sizeof(o->before_side[i]), ".us-before-%s-%s", id,
			       before_suffix[i]);
	}
	return 0;
}

/* Opens the first LEN bytes of o->dir. A descriptor, -1 if that does not exist, or
 * US_E_*, which are less. */
static int32_t open_part(const struct us_output *o, size_t len, struct us_error *err)
{
	char path[PATH_MAX];
	struct us_error own = US_ERROR_INIT;
	size_t top_len = o->tree_len && o->tree_len < len ? o->tree_len : len;
	memcpy(path, o->dir, len);
	path[len] = '\0';
	char after = path[top_len];
	path[top_len] = '\0';
	int top_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	path[top_len] = after;
	if (top_fd < 0 && errno != ENOENT) {
		return us_fail_errno(err, errno, "cannot open the directory of \"%s\"", o->shown);
	}
	if (top_fd < 0 || top_len == len) {
		return top_fd;
	}
	const char *rel = path + top_len + (o->tree_len > 1);
	int32_t fd = us_tree_open(top_fd, rel, O_RDONLY | O_DIRECTORY, o->shown, &own);
	(void)close(top_fd); /* a directory */
	if (fd < 0 && own.sys_errno == ENOENT) {
		return -1;
	}
	if (fd < 0 && err) {
		*err = own;
	}
	return fd < 0 ? own.code : fd;
}

/* The name of the directory that is the first LEN bytes of o->dir; RET_PARENT_LEN of it
 * are the directory that it is in, 0: the present one. */
static const char *split_part(const struct us_output *o, size_t len, size_t *ret_parent_len)
{
	size_t start = len;
	while (start > 0 && o->dir[start - 1] != '/') {
		start--;
	}
	*ret_parent_len = start > 1 ? start - 1 : start;
	while (*ret_parent_len > 1 && o->dir[*ret_parent_len - 1] == '/') {
		--*ret_parent_len;
	}
	return o->dir + start;
}

/* Removes what was made and is empty, by the descriptors of what it is in: a path could
 * have become another by now. */
static void remove_made_dirs(struct us_output *o)
{
	for (size_t len = strlen(o->dir); o->made_len > 0 && len >= o->made_len;) {
		size_t parent_len;
		o->dir[len] = '\0';
		const char *name = split_part(o, len, &parent_len);
		int parent_fd = parent_len > 0 ? open_part(o, parent_len, NULL)
					       : open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		int failed = parent_fd < 0 ||
			     (unlinkat(parent_fd, name, AT_REMOVEDIR) && errno != ENOENT);
		if (parent_fd >= 0) {
			(void)close(parent_fd); /* a directory */
		}
		if (failed) {
			break; /* somebody uses it: it stays */
		}
		len = parent_len;
	}
}

static int32_t open_dir(struct us_output *o, struct us_error *err)
{
	int32_t fd = open_part(o, strlen(o->dir), err);
	o->dir_fd = fd < -1 ? -1 : fd;
	return fd < -1 ? fd : 0;
}

/* The length of TREE if DIR lies below it, else 0. */
static size_t tree_len_of(const char *dir, const char *tree)
{
	size_t len = strlen(tree);
	if (len == 1) {
		return dir[0] == '/';
	}
	return strncmp(dir, tree, len) == 0 && dir[len] == '/' ? len : 0;
}

int32_t us_output_open(struct us_output *o, const char *path, const char *tree,
		       struct us_error *err)
{
	size_t len = strlen(path);
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	*o = (struct us_output){
		.path = path, .enter_wait_ns = ENTER_WAIT_NS, .dir_fd = -1, .temp_fd = -1
	};
	(void)us_escape_show(path, len, o->shown);
	if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
		return us_fail(err, US_E_ARG, "output path \"%s\" does not end in a file name",
			       o->shown);
	}
	size_t dir_len = slash ? (size_t)(slash - path) : 0;
	if (strlen(name) > NAME_MAX || dir_len >= sizeof(o->dir)) {
		return us_fail(err, US_E_ARG, "output path \"%s\" is too long", o->shown);
	}
	memcpy(o->name, name, strlen(name) + 1);
	memcpy(o->dir, path, dir_len);
	if (dir_len == 0) {
		o->dir[0] = slash ? '/' : '.';
		dir_len = 1;
	}
	o->dir[dir_len] = '\0';
	o->tree_len = tree_len_of(o->dir, tree);
	int32_t rc = make_names(o, err);
	return rc ? rc : open_dir(o, err);
}

int us_output_has_temp(const struct us_output *o)
{
	struct stat ours, there;
	return !fstat(o->temp_fd, &ours) &&
	       !fstatat(o->dir_fd, o->temp, &there, AT_SYMLINK_NOFOLLOW) &&
	       ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
}

void us_output_close(struct us_output *o)
{
	if (o->temp_fd >= 0) {
		if (us_output_has_temp(o)) {
			(void)unlinkat(o->dir_fd, o->temp, 0); /* else the next restore does it */
		}
		(void)close(o->temp_fd);
	}
	if (o->dir_fd >= 0) {
		(void)close(o->dir_fd); /* a directory */
	}
	remove_made_dirs(o);
	o->dir_fd = o->temp_fd = -1;
}

/* ----------------------------------------------------------- what is there */

int32_t us_output_stat(const struct us_output *o, const char *name, struct stat *ret_st,
		       struct us_error *err)
{
	if (o->dir_fd < 0) {
		return 0;
	}
	if (!fstatat(o->dir_fd, name, ret_st, AT_SYMLINK_NOFOLLOW)) {
		return 1;
	}
	if (errno == ENOENT || errno == ENAMETOOLONG) {
		return 0;
	}
	return us_fail_errno(err, errno, "cannot access output path \"%s\"", o->shown);
}

int32_t us_output_exists(const struct us_output *o, struct us_error *err)
{
	struct stat st;
	if (o->dir_fd < 0) {
		return 0;
	}
	if (!fstatat(o->dir_fd, o->name, &st, 0)) {
		return 1;
	}
	if (errno == ENOENT) { /* a dangling link too: us_output_check names it */
		return 0;
	}
	return us_fail_errno(err, errno, "cannot access output path \"%s\"", o->shown);
}

static int32_t check_kind(const struct us_output *o, const struct stat *st, int force,
			  struct us_error *err)
{
	if (S_ISLNK(st->st_mode)) {
		return us_fail(
			err, US_E_EXISTS,
			"cannot restore, output path is a symbolic link, which is not followed: %s",
			o->shown);
	}
	if (S_ISDIR(st->st_mode)) {
		return us_fail(err, US_E_EXISTS, "cannot restore, output path is a directory: %s",
			       o->shown);
	}
	if (!S_ISREG(st->st_mode)) {
		return us_fail(err, US_E_EXISTS,
			       "cannot restore, output path is not a regular file: %s", o->shown);
	}
	if (st->st_size > 0 && !force) {
		return us_fail(err, US_E_EXISTS,
			       "cannot restore, output path already exists and is not empty: %s. "
			       "Use -force to overwrite",
			       o->shown);
	}
	return 0;
}

int32_t us_output_check(const struct us_output *o, int force, int *ret_present,
			struct us_error *err)
{
	struct stat st;
	int32_t present = us_output_stat(o, o->name, &st, err);
	if (present < 0) {
		return present;
	}
	int32_t rc = present ? check_kind(o, &st, force, err) : 0;
	if (rc) {
		return rc;
	}
	for (int i = 0; i < US_SIDE_COUNT && !force; i++) {
		int32_t side = us_output_stat(o, o->side[i], &st, err);
		if (side < 0) {
			return side;
		}
		if (side) {
			return us_fail(
				err, US_E_EXISTS,
				"cannot restore, SQLite sidecar path already exists: %s%s. Use "
				"-force to overwrite",
				o->shown, side_suffix[i]);
		}
	}
	*ret_present = present;
	return 0;
}

/* ------------------------------------------------------------------- locks */

/* 1 with the kind and owner of a lock in the way of a write lock, 0, or US_E_IO. */
static int32_t ask_lock(int fd, off_t start, off_t len, struct flock *ret_lock,
			struct us_error *err)
{
	*ret_lock = (struct flock){
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len
	};
	if (fcntl(fd, F_OFD_GETLK, ret_lock)) {
		(void)us_fail_errno(err, errno, "cannot ask for locks");
		return US_E_IO;
	}
	return ret_lock->l_type != F_UNLCK;
}

static int32_t fail_busy(const struct us_output *o, const struct flock *lock, const char *what,
			 struct us_error *err)
{
	char who[40] = "another process";
	if (lock->l_pid > 0) {
		(void)snprintf(who, sizeof(who), "process %d", (int)lock->l_pid);
	}
	return us_fail(
		err, US_E_BUSY,
		"cannot restore, database is in use: %s holds %s of %s. Stop its application first",
		who, what, o->shown);
}

static int32_t probe_db(const struct us_output *o, int fd, struct us_error *err)
{
	static const struct {
		off_t start, len;
		const char *what;
	} parts[] = {
		{ RESERVED_BYTE, 1, "a write transaction (RESERVED lock)" },
		{ SHARED_FIRST, DB_LOCK_LEN - 2, "the SHARED lock" },
		{ PENDING_BYTE, 1, "the PENDING lock" },
	};
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		struct flock lock;
		int32_t rc = ask_lock(fd, parts[i].start, parts[i].len, &lock, err);
		if (rc) {
			const char *what = parts[i].start == SHARED_FIRST && lock.l_type == F_WRLCK
						   ? "the EXCLUSIVE lock"
						   : parts[i].what;
			return rc < 0 ? rc : fail_busy(o, &lock, what, err);
		}
	}
	return 0;
}

static int32_t probe_shm(const struct us_output *o, int fd, struct us_error *err)
{
	struct flock lock;
	int32_t rc = ask_lock(fd, SHM_LOCK_FIRST, SHM_LOCK_LEN, &lock, err);
	if (rc <= 0) {
		return rc;
	}
	int is_dms = lock.l_start + lock.l_len > SHM_DMS;
	return fail_busy(o, &lock,
			 is_dms ? "an open WAL connection (DMS lock on the -shm)"
				: "a WAL-index lock on the -shm",
			 err);
}

/* Opens NAME to lock it. -1 with *RET_RC 0: not there. */
static int open_for_locks(const struct us_output *o, const char *name, int access, int32_t *ret_rc,
			  struct us_error *err)
{
	struct stat st, now;
	*ret_rc = 0;
	int fd = openat(o->dir_fd, name, access | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		if (errno != ENOENT && errno != ENAMETOOLONG) {
			*ret_rc = us_fail_errno(err, errno, "cannot open \"%s\" to see who uses it",
						o->shown);
		}
		return -1;
	}
	if (fstat(fd, &st) || fstatat(o->dir_fd, name, &now, AT_SYMLINK_NOFOLLOW) ||
	    st.st_ino != now.st_ino || st.st_dev != now.st_dev || !S_ISREG(st.st_mode)) {
		(void)close(fd); /* nothing was done with it */
		*ret_rc = us_fail(err, US_E_BUSY,
				  "cannot restore, \"%s\" or its -shm is being replaced", o->shown);
		return -1;
	}
	return fd;
}

/* Locking style unix-dotfile: its lock is a directory NAME.lock. */
static int32_t check_dotfile(const struct us_output *o, struct us_error *err)
{
	struct stat st;
	char name[US_SIDE_NAME_LEN_MAX + 1];
	(void)snprintf(name, sizeof(name), "%s.lock", o->name);
	int32_t rc = us_output_stat(o, name, &st, err);
	if (rc > 0 && S_ISDIR(st.st_mode)) {
		return us_fail(err, US_E_BUSY, "cannot restore, database is in use: %s.lock exists",
			       o->shown);
	}
	return rc < 0 ? rc : 0;
}

int32_t us_output_probe(const struct us_output *o, struct us_error *err)
{
	int32_t rc;
	int fd = open_for_locks(o, o->name, O_RDONLY, &rc, err);
	if (fd >= 0) {
		rc = probe_db(o, fd, err);
		(void)close(fd); /* not written to */
	}
	if (!rc && (fd = open_for_locks(o, o->side[US_SIDE_SHM], O_RDONLY, &rc, err)) >= 0) {
		rc = probe_shm(o, fd, err);
		(void)close(fd); /* not written to */
	}
	return rc ? rc : check_dotfile(o, err);
}

/* 0, US_E_BUSY without a message, or US_E_IO. */
static int32_t take_lock(int fd, off_t start, off_t len, struct us_error *err)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = len
	};
	if (!fcntl(fd, F_OFD_SETLK, &lock)) {
		return 0;
	}
	if (errno == EAGAIN || errno == EACCES) {
		return US_E_BUSY;
	}
	(void)us_fail_errno(err, errno, "cannot take locks");
	return US_E_IO;
}

/* Takes the locks of one of the two files, or says who is in the way. */
static int32_t take_locks(const struct us_output *o, int fd, int is_shm, struct us_error *err)
{
	int32_t rc = take_lock(fd, is_shm ? SHM_LOCK_FIRST : PENDING_BYTE,
			       is_shm ? SHM_LOCK_LEN : DB_LOCK_LEN, err);
	if (rc != US_E_BUSY) {
		return rc;
	}
	rc = is_shm ? probe_shm(o, fd, err) : probe_db(o, fd, err);
	if (!rc) { /* gone meanwhile, but it was there */
		const struct flock unknown = { .l_pid = -1 };
		rc = fail_busy(o, &unknown, "a lock", err);
	}
	return rc;
}

int32_t us_output_lock(const struct us_output *o, struct us_output_locks *ret_locks,
		       struct us_error *err)
{
	struct us_output_locks locks = { .db_fd = -1, .shm_fd = -1 };
	int32_t rc;
	locks.db_fd = open_for_locks(o, o->name, O_RDWR, &rc, err);
	if (locks.db_fd >= 0) {
		rc = take_locks(o, locks.db_fd, 0, err);
	}
	if (!rc) {
		locks.shm_fd = open_for_locks(o, o->side[US_SIDE_SHM], O_RDWR, &rc, err);
		if (locks.shm_fd >= 0) {
			rc = take_locks(o, locks.shm_fd, 1, err);
		}
	}
	if (!rc) {
		rc = check_dotfile(o, err);
	}
	if (rc) {
		us_output_unlock(&locks);
		return rc;
	}
	*ret_locks = locks;
	return 0;
}

void us_output_unlock(struct us_output_locks *locks)
{
	if (locks->db_fd >= 0) {
		(void)close(locks->db_fd); /* never written to */
	}
	if (locks->shm_fd >= 0) {
		(void)close(locks->shm_fd);
	}
	locks->db_fd = locks->shm_fd = -1;
}

/* The mutex of the output's directory; NULL: it is restored alone. */
static pthread_mutex_t *enter_mutex(const struct us_output *o)
{
	uint32_t hash = 2166136261u; /* FNV-1a */
	for (const char *at = o->dir; *at; at++) {
		hash = (hash ^ (unsigned char)*at) * 16777619u;
	}
	return o->made_dirs ? &o->made_dirs->enter[hash % US_ENTER_COUNT] : NULL;
}

static int32_t take_flock(const struct us_output *o, const _Atomic uint32_t *cancel,
			  struct us_error *err)
{
	int64_t end_ns = us_clock_mono_ns() + o->enter_wait_ns;
	int64_t pause_ns = ENTER_PAUSE_FIRST_NS;
	while (flock(o->dir_fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR) {
			return 0; /* not on this file system (NFS: only with write access) */
		}
		if (cancel && *cancel) {
			return us_fail(err, US_E_CANCELED, "canceled");
		}
		if (us_clock_mono_ns() > end_ns) {
			return us_fail(err, US_E_BUSY,
				       "another process keeps the directory of \"%s\" locked",
				       o->shown);
		}
		us_clock_sleep_ns(pause_ns);
		pause_ns = pause_ns < ENTER_PAUSE_MOST_NS ? 2 * pause_ns : pause_ns;
	}
	return 0;
}

int32_t us_output_enter(const struct us_output *o, const _Atomic uint32_t *cancel,
			struct us_error *err)
{
	pthread_mutex_t *mutex = enter_mutex(o);
	if (mutex) {
		(void)pthread_mutex_lock(mutex);
	}
	int32_t rc = take_flock(o, cancel, err);
	if (rc && mutex) {
		(void)pthread_mutex_unlock(mutex);
	}
	return rc;
}

void us_output_leave(const struct us_output *o)
{
	pthread_mutex_t *mutex = enter_mutex(o);
	(void)flock(o->dir_fd, LOCK_UN); /* not held where it could not be taken */
	if (mutex) {
		(void)pthread_mutex_unlock(mutex);
	}
}

int32_t us_output_sync_dir(const struct us_output *o, struct us_error *err)
{
	return fsync(o->dir_fd)
		       ? us_fail_errno(err, errno, "cannot make the directory of \"%s\" durable",
				       o->shown)
		       : 0;
}

/* ----------------------------------------------- directory and temporary file */

/* Marks a directory that was just made, as far as it is still there under its name. */
static int mark_dir(int parent_fd, const char *name)
{
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		/* Whoever has moved it has it; what comes next says so. */
		return errno != ENOENT && errno != ENOTDIR && errno != ELOOP;
	}
	struct stat st;
	int failed = fstat(fd, &st) || (st.st_uid == geteuid() && fchmod(fd, US_OUTPUT_DIR_MODE));
	int saved = errno;
	(void)close(fd); /* a directory */
	errno = saved;
	return failed;
}

/* 1 if NAME was made, 0 if it was there. In a fleet under the mutex of made_dirs, so that no
 * other restore sees it without its mark. */
static int32_t make_one(const struct us_output *o, int parent_fd, const char *name,
			struct us_error *err)
{
	if (o->made_dirs) {
		(void)pthread_mutex_lock(&o->made_dirs->mutex);
	}
	int failed = mkdirat(parent_fd, name, 0700);
	int was_there = failed && errno == EEXIST;
	int saved = errno;
	if (!failed && mark_dir(parent_fd, name)) {
		failed = 1;
		saved = errno;
		/* Without its mark it would stay as it is, also when a restore succeeds. */
		(void)unlinkat(parent_fd, name, AT_REMOVEDIR);
	}
	if (o->made_dirs) {
		(void)pthread_mutex_unlock(&o->made_dirs->mutex);
	}
	return was_there ? 0
	       : failed  ? us_fail_errno(err, saved, "cannot create the directory of \"%s\"",
					 o->shown)
			 : 1;
}

/* Makes the directory that is the first LEN bytes of o->dir, durably, if it does not
 * exist. Its parent does. */
static int32_t make_part(struct us_output *o, size_t len, struct us_error *err)
{
	char name[NAME_MAX + 1];
	size_t start = len;
	while (start > 0 && o->dir[start - 1] != '/') {
		start--;
	}
	if (start == len) {
		return 0; /* the root, or a doubled slash */
	}
	if (len - start > NAME_MAX) {
		return us_fail_errno(err, ENAMETOOLONG, "cannot create the directory of \"%s\"",
				     o->shown);
	}
	memcpy(name, o->dir + start, len - start);
	name[len - start] = '\0';
	int32_t parent_fd = start > 1 ? open_part(o, start - 1, err)
				      : open(start ? "/" : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (parent_fd < 0) {
		return parent_fd < -1
			       ? parent_fd
			       : us_fail_errno(err, ENOENT, "cannot open the directory of \"%s\"",
					       o->shown);
	}
	int32_t rc = make_one(o, parent_fd, name, err);
	if (rc == 1) {
		rc = 0;
		if (o->made_len == 0 || len < o->made_len) {
			o->made_len = len;
		}
		if (!o->defer_sync && fsync(parent_fd)) {
			rc = us_fail_errno(err, errno,
					   "cannot make the directory of \"%s\" durable", o->shown);
		}
	}
	(void)close(parent_fd); /* a directory, synced */
	return rc;
}

static int32_t make_parts(struct us_output *o, struct us_error *err)
{
	size_t whole = strlen(o->dir);
	for (size_t len = 1; len <= whole; len++) {
		if (len < whole && o->dir[len] != '/') {
			continue;
		}
		int32_t rc = make_part(o, len, err);
		if (rc) {
			return rc;
		}
	}
	int32_t rc = open_dir(o, err);
	return !rc && o->dir_fd < 0
		       ? us_fail_errno(err, ENOENT, "cannot open the directory of \"%s\"", o->shown)
		       : rc;
}

/* mkdir -p of o->dir, then opens it. Another restore that fails removes what it made
 * and nobody uses; that may be a parent just found here. */
static int32_t make_dir(struct us_output *o, struct us_error *err)
{
	struct us_error own = US_ERROR_INIT;
	int32_t rc;
	int tries = 0;
	do {
		rc = make_parts(o, &own);
	} while (rc == US_E_NOTFOUND && own.sys_errno == ENOENT && ++tries < MAKE_TRIES_MAX);
	if (rc && err) {
		*err = own;
	}
	return rc;
}

static int32_t fail_set_dir(const struct us_output *o, struct us_error *err)
{
	return us_fail_errno(err, errno, "cannot set owner and mode of the directory of \"%s\"",
			     o->shown);
}

/* The mode first: a directory with another owner can be changed by that. */
static int give_dir(const struct us_output *o, int fd, uint32_t uid, uint32_t gid, mode_t mode)
{
	int failed = fchmod(fd, mode) || (geteuid() == 0 && fchown(fd, uid, gid) &&
					  errno != EPERM && errno != EINVAL && errno != EOPNOTSUPP);
	return failed || (!o->defer_sync && fsync(fd));
}

/*
 * One directory above a database of UID, GID, for which MODE would do. 1: those above it
 * have to be looked at, too; 0: they have not.
 */
static int32_t set_dir(const struct us_output *o, int fd, uint32_t uid, uint32_t gid, mode_t mode,
		       struct us_error *err)
{
	struct us_made_dirs *made = o->made_dirs;
	struct stat st;
	if (fstat(fd, &st)) {
		return fail_set_dir(o, err);
	}
	if ((st.st_mode & 07777) == US_OUTPUT_DIR_MODE && st.st_uid == geteuid()) {
		if (made && us_made_dirs_add(made, st.st_dev, st.st_ino, uid)) {
			return us_fail_nomem(err);
		}
		return give_dir(o, fd, uid, gid, mode) ? fail_set_dir(o, err) : 1;
	}
	if (!made || !made->is_mixed) {
		return 0; /* what lies above one that was set already was set, too */
	}
	struct us_made_dir *dir = us_made_dirs_find(made, st.st_dev, st.st_ino);
	if (dir && dir->uid != uid && !dir->is_shared) {
		dir->is_shared = 1;
		return give_dir(o, fd, geteuid(), getegid(), 0755) ? fail_set_dir(o, err) : 1;
	}
	return 1;
}

static int32_t set_dirs(const struct us_output *o, uint32_t uid, uint32_t gid, mode_t mode,
			struct us_error *err)
{
	int32_t rc = set_dir(o, o->dir_fd, uid, gid, mode, err);
	for (size_t len = strlen(o->dir); rc == 1 && len > 1 && len > o->tree_len;) {
		(void)split_part(o, len, &len);
		int fd = len > 1 ? open_part(o, len, err) : -1;
		if (fd < 0) {
			return fd < -1 ? fd : 0;
		}
		rc = set_dir(o, fd, uid, gid, mode, err);
		(void)close(fd); /* a directory */
	}
	return rc < 0 ? rc : 0;
}

int32_t us_output_set_dirs(const struct us_output *o, uint32_t uid, uint32_t gid, uint32_t mode,
			   struct us_error *err)
{
	/* Who may read the file may list its directory. Any may pass, as others than this
	 * database's owner may have theirs there; what they may open, files say. */
	mode_t dir_mode = 0711 | (mode & 044);
	struct us_made_dirs *made = o->made_dirs;
	if (!made) {
		return set_dirs(o, uid, gid, dir_mode, err);
	}
	(void)pthread_mutex_lock(&made->mutex);
	made->is_mixed |= made->has_uid && made->uid != uid;
	made->uid = made->has_uid ? made->uid : uid;
	made->has_uid = 1;
	int32_t rc = set_dirs(o, uid, gid, dir_mode, err);
	(void)pthread_mutex_unlock(&made->mutex);
	return rc;
}

/* Removes what a killed restore left; US_E_BUSY if it lives. */
static int32_t remove_leftover(const struct us_output *o, struct us_error *err)
{
	struct flock lock = { .l_type = F_UNLCK };
	int32_t rc = 0;
	int fd = openat(o->dir_fd, o->temp,
			O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd >= 0) {
		rc = ask_lock(fd, 0, 1, &lock, err);
		(void)close(fd); /* not written to */
	}
	if (rc) {
		return rc < 0 ? rc
			      : us_fail(err, US_E_BUSY, "another restore of \"%s\" is under way",
					o->shown);
	}
	if (unlinkat(o->dir_fd, o->temp, 0) && errno != ENOENT) {
		return us_fail_errno(err, errno, "cannot remove \"%s\" beside \"%s\"", o->temp,
				     o->shown);
	}
	return 0;
}

/* -1 with errno ENOENT and *RET_RC 0: the directory was removed meanwhile. */
static int create_temp(const struct us_output *o, const _Atomic uint32_t *cancel, int32_t *ret_rc,
		       struct us_error *err)
{
	int fd = -1;
	*ret_rc = us_output_enter(o, cancel, err);
	if (*ret_rc) {
		return -1;
	}
	fd = openat(o->dir_fd, o->temp, TEMP_OPEN_FLAGS, 0600);
	if (fd < 0 && errno == EEXIST) {
		*ret_rc = remove_leftover(o, err);
		fd = *ret_rc ? -1 : openat(o->dir_fd, o->temp, TEMP_OPEN_FLAGS, 0600);
	}
	if (fd < 0 && !*ret_rc && errno != ENOENT) {
		*ret_rc = us_fail_errno(err, errno, "cannot create a file beside \"%s\"", o->shown);
	}
	if (fd >= 0) {
		*ret_rc = take_lock(fd, 0, 1, err);
		if (*ret_rc && *ret_rc != US_E_BUSY) {
			(void)unlinkat(o->dir_fd, o->temp, 0); /* else the next restore does it */
		}
	}
	us_output_leave(o);
	if (*ret_rc == US_E_BUSY && fd >= 0) {
		(void)us_fail(err, US_E_BUSY, "another restore of \"%s\" is under way", o->shown);
	}
	if (*ret_rc && fd >= 0) {
		(void)close(fd); /* empty; whoever locked it has it */
		fd = -1;
	}
	return fd;
}

int32_t us_output_temp(struct us_output *o, const _Atomic uint32_t *cancel, struct us_error *err)
{
	/* A parallel restore that fails may remove the directory it made. */
	for (int i = 0; i < TEMP_TRIES_MAX; i++) {
		/* Another restore may have made it by now. */
		int32_t rc = o->dir_fd < 0 ? open_dir(o, err) : 0;
		if (!rc && o->dir_fd < 0) {
			rc = make_dir(o, err);
		}
		if (rc) {
			return rc;
		}
		o->temp_fd = create_temp(o, cancel, &rc, err);
		if (rc || o->temp_fd >= 0) {
			return rc;
		}
		(void)close(o->dir_fd); /* a directory */
		o->dir_fd = -1;
	}
	return us_fail(err, US_E_BUSY, "the directory of \"%s\" keeps being removed", o->shown);
}
