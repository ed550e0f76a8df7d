/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first and the second look at a database's files.
 *
 * The order of the first look is what the proofs in image.c rest on: the clock,
 * then the stat of the database, then the locks, then the names beside it. The
 * clock is read first, so that "ctime older than the clock minus the tick" means
 * that no write began after the stat. The locks come before the journal: a
 * writer that ends in between has changed the database, which the second look
 * sees; one that begins in between leaves a journal too young to be believed.
 *
 * The directory is opened through us_tree_open and names are looked up in it
 * with AT_SYMLINK_NOFOLLOW, so nothing is followed anywhere. A link or a special
 * file in the place of a -wal or a -journal is an error: to ignore it could mean
 * to miss commits, to follow it could mean to read another tenant's file.
 *
 * Opening and closing these files drops classic POSIX locks that this process
 * holds on them: it must hold none (DESIGN.md, trap 1). The -shm is never opened.
 */
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/tree.h"

#define SUFFIX_WAL "-wal"
#define SUFFIX_JOURNAL "-journal"
#define SUFFIX_DOTFILE ".lock"

static void close_fd(int *fd)
{
	if (*fd >= 0) {
		(void)close(*fd); /* only read from */
		*fd = -1;
	}
}

/* The directory of DIR_LEN bytes of the source's path. */
static int32_t open_dir_at(struct us_files *f, size_t dir_len, struct us_files_dir *kept,
			   struct us_error *err)
{
	const struct us_read_source *source = f->source;
	char dir[US_DIR_NAME_CAP];
	if (dir_len >= sizeof(dir)) {
		return us_fail_errno(err, ENAMETOOLONG, "cannot open \"%s\"", source->display);
	}
	memcpy(dir, source->rel, dir_len);
	dir[dir_len] = '\0';
	f->dir_is_borrowed = source->keeps_dir;
	if (source->keeps_dir && kept->fd >= 0 && strcmp(dir, kept->rel) == 0) {
		f->dir_fd = kept->fd;
		return 0;
	}
	f->dir_fd = us_tree_open(source->prefix_fd, dir, O_RDONLY | O_DIRECTORY, source->display,
				 err);
	if (f->dir_fd < 0) {
		return f->dir_fd;
	}
	if (source->keeps_dir) {
		close_fd(&kept->fd);
		kept->fd = f->dir_fd;
		memcpy(kept->rel, dir, dir_len + 1);
	}
	return 0;
}

static int32_t open_dir(struct us_files *f, struct us_files_dir *kept, struct us_error *err)
{
	const char *rel = f->source->rel;
	const char *slash = strrchr(rel, '/');
	const char *name = slash ? slash + 1 : rel;
	size_t name_len = strlen(name);
	if (name_len == 0 || name_len > 255) {
		return us_fail(err, US_E_NOTFOUND, "\"%s\" is no file name", f->source->display);
	}
	memcpy(f->name, name, name_len + 1);
	if (!slash) {
		f->dir_fd = f->source->prefix_fd;
		f->dir_is_borrowed = 1;
		return 0;
	}
	return open_dir_at(f, (size_t)(slash - rel), kept, err);
}

/* Opens NAME, unless this process has that file open elsewhere: then it is refused
 * unopened. An O_PATH descriptor is no open file, closing it drops no locks. */
static int32_t open_file(struct us_files *f, const char *name, struct us_error *err)
{
	const struct us_read_source *source = f->source;
	char link[40];
	struct stat st;
	if (!source->is_foreign) {
		return us_tree_open(f->dir_fd, name, O_RDONLY | O_NOATIME, source->display, err);
	}
	int path_fd = us_tree_open(f->dir_fd, name, O_PATH, source->display, err);
	if (path_fd < 0) {
		return path_fd;
	}
	int32_t fd;
	if (fstat(path_fd, &st)) {
		fd = us_fail_errno(err, errno, "cannot stat \"%s\"", source->display);
	} else if (source->is_foreign(source->arg, st.st_dev, st.st_ino)) {
		fd = us_fail(err, US_E_ACCESS,
			     "\"%s\" or a file beside it is another name of a database that dbs: "
			     "replicates; it is not read here, because that would drop its locks",
			     source->display);
	} else if (!S_ISREG(st.st_mode)) {
		fd = us_fail(err, US_E_NOTFOUND, "\"%s\" is not a regular file any more",
			     source->display);
	} else {
		(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", path_fd);
		fd = open(link, O_RDONLY | O_NOATIME | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (fd < 0 && errno == EPERM) { /* neither its owner nor root */
			fd = open(link, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		}
		if (fd < 0 && errno == ENOENT) {
			fd = us_fail(err, US_E_IO, "cannot open \"%s\": /proc is not there",
				     source->display);
		} else if (fd < 0) {
			fd = us_fail_errno(err, errno, "cannot open \"%s\"", source->display);
		}
	}
	(void)close(path_fd); /* see above */
	return fd;
}

int32_t us_files_open(struct us_files *f, const struct us_read_source *source,
		      struct us_files_dir *kept, struct us_error *err)
{
	*f = (struct us_files){
		.source = source,
		.dir_fd = -1,
		.db_fd = -1,
		.wal_fd = -1,
		.journal_fd = -1,
	};
	int32_t rc = open_dir(f, kept, err);
	if (rc) {
		return rc;
	}
	f->db_fd = open_file(f, f->name, err);
	return f->db_fd < 0 ? f->db_fd : 0;
}

void us_files_close(struct us_files *f)
{
	close_fd(&f->journal_fd);
	close_fd(&f->wal_fd);
	close_fd(&f->db_fd);
	if (!f->dir_is_borrowed) {
		close_fd(&f->dir_fd);
	}
	f->dir_fd = -1;
}

static int32_t stat_db(struct us_files *f, struct us_error *err)
{
	struct stat st;
	if (fstat(f->db_fd, &st)) {
		return us_fail_errno(err, errno, "cannot stat \"%s\"", f->source->display);
	}
	if (!S_ISREG(st.st_mode)) {
		return us_fail(err, US_E_NOTFOUND, "\"%s\" is not a regular file any more",
			       f->source->display);
	}
	if (st.st_ino != f->source->inode) {
		return us_fail(err, US_E_NOTFOUND, "\"%s\" is another file now",
			       f->source->display);
	}
	f->db = us_file_stat_of(&st);
	f->mode = st.st_mode & 07777;
	f->uid = st.st_uid;
	f->gid = st.st_gid;
	return 0;
}

/* 1 and *RET_ST if there is something of that name, 0 if not. */
static int32_t stat_beside(const struct us_files *f, const char *suffix, struct stat *ret_st,
			   struct us_error *err)
{
	char name[US_FILE_NAME_CAP];
	size_t len = strlen(f->name);
	memcpy(name, f->name, len);
	memcpy(name + len, suffix, strlen(suffix) + 1);
	if (!fstatat(f->dir_fd, name, ret_st, AT_SYMLINK_NOFOLLOW)) {
		return 1;
	}
	/* A name too long for the suffix has no file: SQLite could not make it. */
	if (errno == ENOENT || errno == ENAMETOOLONG) {
		return 0;
	}
	return us_fail_errno(err, errno, "cannot stat \"%s%s\"", f->source->display, suffix);
}

static int32_t came_and_went(const struct us_files *f, const char *suffix, struct us_error *err)
{
	return us_fail(err, US_E_BUSY, "changing while it is read: \"%s%s\" came or went",
		       f->source->display, suffix);
}

/* Opens what stat_beside has seen: *RET_FD and the stat of what was opened. */
static int32_t open_beside(struct us_files *f, const char *suffix, const struct stat *seen,
			   int *ret_fd, struct us_file_stat *ret_stat, struct us_error *err)
{
	if (!S_ISREG(seen->st_mode)) {
		return us_fail(err, US_E_CORRUPT,
			       "\"%s%s\" is a link or a special file, not what "
			       "SQLite left there",
			       f->source->display, suffix);
	}
	*ret_stat = us_file_stat_of(seen);
	if (seen->st_size == 0) {
		return 0;
	}
	char name[US_FILE_NAME_CAP];
	size_t len = strlen(f->name);
	memcpy(name, f->name, len);
	memcpy(name + len, suffix, strlen(suffix) + 1);
	int fd = open_file(f, name, err);
	if (fd < 0) {
		return fd == US_E_NOTFOUND ? came_and_went(f, suffix, err) : fd;
	}
	*ret_fd = fd;
	struct stat st;
	if (fstat(fd, &st)) {
		return us_fail_errno(err, errno, "cannot stat \"%s%s\"", f->source->display,
				     suffix);
	}
	if (!S_ISREG(st.st_mode) || st.st_ino != seen->st_ino) {
		return came_and_went(f, suffix, err);
	}
	*ret_stat = us_file_stat_of(&st);
	return 0;
}

static int32_t look_wal(struct us_files *f, struct us_error *err)
{
	struct stat st;
	int32_t rc = stat_beside(f, SUFFIX_WAL, &st, err);
	if (rc > 0) {
		rc = open_beside(f, SUFFIX_WAL, &st, &f->wal_fd, &f->wal, err);
	}
	if (rc || f->wal_fd < 0) {
		return rc;
	}
	uint8_t bytes[US_WAL_HEADER_LEN];
	int64_t n = us_read_at(f->wal_fd, bytes, sizeof(bytes), 0, f->source->display, err);
	if (n < 0) {
		return (int32_t)n;
	}
	f->wal_live = us_wal_header_parse(bytes, (size_t)n, &f->wal_header);
	return 0;
}

static int32_t look_journal(struct us_files *f, struct us_error *err)
{
	struct stat st;
	int32_t rc = stat_beside(f, SUFFIX_JOURNAL, &st, err);
	if (rc > 0) {
		rc = open_beside(f, SUFFIX_JOURNAL, &st, &f->journal_fd, &f->journal, err);
	}
	if (rc || f->journal_fd < 0) {
		return rc;
	}
	uint8_t first = 0;
	int64_t n = us_read_at(f->journal_fd, &first, 1, 0, f->source->display, err);
	if (n < 0) {
		return (int32_t)n;
	}
	f->journal_live = first != 0;
	return 0;
}

/* A directory: unix-dotfile makes its lock with mkdir(). Plain files of that name
 * are other programs' locks, and often stay for ever. */
static int32_t look_dotfile(struct us_files *f, struct us_error *err)
{
	struct stat st;
	int32_t rc = stat_beside(f, SUFFIX_DOTFILE, &st, err);
	if (rc < 0) {
		return rc;
	}
	f->dotfile = rc > 0 && S_ISDIR(st.st_mode);
	return 0;
}

int32_t us_files_look(struct us_files *f, struct us_error *err)
{
	close_fd(&f->wal_fd);
	close_fd(&f->journal_fd);
	f->wal = f->journal = (struct us_file_stat){ 0 };
	f->wal_live = f->journal_live = f->dotfile = 0;
	f->clock_ns = us_clock_file_ns();
	f->mono_ns = us_clock_mono_ns();
	f->wall_ns = us_clock_wall_ns();
	int32_t rc = stat_db(f, err);
	if (rc || f->db.len == 0) {
		return rc;
	}
	rc = us_locks_probe(f->db_fd, &f->locks, err);
	if (!rc) {
		rc = look_wal(f, err);
	}
	if (!rc) {
		rc = look_journal(f, err);
	}
	if (!rc) {
		rc = look_dotfile(f, err);
	}
	return rc;
}

static int32_t moved(const struct us_files *f, const char *suffix, struct us_error *err)
{
	return us_fail(err, US_E_BUSY, "changing while it is read: \"%s%s\" has moved on",
		       f->source->display, suffix);
}

/* 1 and the stat if SUFFIX names a regular file with that inode. */
static int32_t stat_same(const struct us_files *f, const char *suffix, uint64_t inode,
			 struct us_file_stat *ret_stat, struct us_error *err)
{
	struct stat st;
	int32_t rc = stat_beside(f, suffix, &st, err);
	if (rc <= 0) {
		return rc;
	}
	*ret_stat = us_file_stat_of(&st);
	return S_ISREG(st.st_mode) && st.st_ino == inode;
}

int32_t us_files_same_db(const struct us_files *f, struct us_error *err)
{
	struct us_file_stat now;
	int32_t rc = stat_same(f, "", f->db.inode, &now, err);
	if (rc < 0) {
		return rc;
	}
	return rc && us_file_stat_equal(&now, &f->db) ? 0 : moved(f, "", err);
}

int32_t us_files_same_journal(const struct us_files *f, struct us_error *err)
{
	struct us_file_stat now;
	int32_t rc = stat_same(f, SUFFIX_JOURNAL, f->journal.inode, &now, err);
	if (rc < 0) {
		return rc;
	}
	return rc && us_file_stat_equal(&now, &f->journal) ? 0 : moved(f, SUFFIX_JOURNAL, err);
}

int32_t us_files_same_wal(const struct us_files *f, struct us_error *err)
{
	struct us_file_stat now;
	int32_t rc = stat_same(f, "", f->db.inode, &now, err);
	if (rc <= 0) {
		return rc < 0 ? rc : moved(f, "", err);
	}
	rc = stat_same(f, SUFFIX_WAL, f->wal.inode, &now, err);
	if (rc <= 0) {
		return rc < 0 ? rc : moved(f, SUFFIX_WAL, err);
	}
	uint8_t bytes[US_WAL_HEADER_LEN];
	int64_t n = us_read_at(f->wal_fd, bytes, sizeof(bytes), 0, f->source->display, err);
	if (n < 0) {
		return (int32_t)n;
	}
	if (n != US_WAL_HEADER_LEN || memcmp(bytes, f->wal_header.bytes, sizeof(bytes)) != 0) {
		return moved(f, SUFFIX_WAL, err);
	}
	return 0;
}
