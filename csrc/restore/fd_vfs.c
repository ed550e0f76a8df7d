/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VFS of SQLite (c3ref/vfs.html) whose only file is a descriptor, given as the "name"
 * of the main database. SQLite's own opens by name, resolves /proc/self/fd and refuses
 * links, and a restored file has no name that could be trusted, or none at all.
 * Temporary b-trees are kept in memory: a check of integrity needs next to none.
 */
#include "fd_vfs.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define VFS_NAME "us-fd"
#define NAME_FORMAT "/us-fd/%d"

struct fd_file {
	sqlite3_file base;
	int fd;
};

static int fd_close(sqlite3_file *file)
{
	(void)file; /* the caller's */
	return SQLITE_OK;
}

static int fd_read(sqlite3_file *file, void *data, int len, sqlite3_int64 off)
{
	const struct fd_file *f = (const struct fd_file *)file;
	size_t got = 0;
	while (got < (size_t)len) {
		ssize_t n = pread(f->fd, (char *)data + got, (size_t)len - got, off + (off_t)got);
		if (n < 0 && errno != EINTR) {
			return SQLITE_IOERR_READ;
		}
		if (n == 0) {
			memset((char *)data + got, 0, (size_t)len - got); /* as SQLite demands */
			return SQLITE_IOERR_SHORT_READ;
		}
		got += n > 0 ? (size_t)n : 0;
	}
	return SQLITE_OK;
}

static int fd_write(sqlite3_file *file, const void *data, int len, sqlite3_int64 off)
{
	(void)file;
	(void)data;
	(void)len;
	(void)off;
	return SQLITE_READONLY;
}

static int fd_truncate(sqlite3_file *file, sqlite3_int64 len)
{
	(void)file;
	(void)len;
	return SQLITE_READONLY;
}

static int fd_size(sqlite3_file *file, sqlite3_int64 *ret_len)
{
	struct stat st;
	if (fstat(((const struct fd_file *)file)->fd, &st)) {
		return SQLITE_IOERR_FSTAT;
	}
	*ret_len = st.st_size;
	return SQLITE_OK;
}

static int fd_nothing(sqlite3_file *file, int how)
{
	(void)file;
	(void)how;
	return SQLITE_OK;
}

static int fd_reserved(sqlite3_file *file, int *ret_reserved)
{
	(void)file;
	*ret_reserved = 0;
	return SQLITE_OK;
}

static int fd_control(sqlite3_file *file, int what, void *arg)
{
	(void)file;
	(void)what;
	(void)arg;
	return SQLITE_NOTFOUND;
}

static int fd_sector_size(sqlite3_file *file)
{
	(void)file;
	return 4096;
}

static int fd_characteristics(sqlite3_file *file)
{
	(void)file;
	return SQLITE_IOCAP_IMMUTABLE;
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = fd_close,
	.xRead = fd_read,
	.xWrite = fd_write,
	.xTruncate = fd_truncate,
	.xSync = fd_nothing,
	.xFileSize = fd_size,
	.xLock = fd_nothing,
	.xUnlock = fd_nothing,
	.xCheckReservedLock = fd_reserved,
	.xFileControl = fd_control,
	.xSectorSize = fd_sector_size,
	.xDeviceCharacteristics = fd_characteristics,
};

static int vfs_open(sqlite3_vfs *self, const char *name, sqlite3_file *file, int flags,
		    int *ret_flags)
{
	struct fd_file *f = (struct fd_file *)file;
	(void)self;
	f->base.pMethods = NULL;
	if (!(flags & SQLITE_OPEN_MAIN_DB) || sscanf(name, NAME_FORMAT, &f->fd) != 1) {
		return SQLITE_CANTOPEN;
	}
	f->base.pMethods = &methods;
	if (ret_flags) {
		*ret_flags = flags;
	}
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *self, const char *name, int sync)
{
	(void)self;
	(void)name;
	(void)sync;
	return SQLITE_IOERR_DELETE;
}

static int vfs_access(sqlite3_vfs *self, const char *name, int how, int *ret_there)
{
	(void)self;
	(void)name;
	(void)how;
	*ret_there = 0;
	return SQLITE_OK;
}

static int vfs_full_pathname(sqlite3_vfs *self, const char *name, int cap, char *ret_path)
{
	(void)self;
	return snprintf(ret_path, (size_t)cap, "%s", name) < cap ? SQLITE_OK : SQLITE_CANTOPEN;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static sqlite3_vfs vfs;

static void register_vfs(void)
{
	const sqlite3_vfs *usual = sqlite3_vfs_find(NULL);
	if (!usual) {
		return; /* opening fails and says so */
	}
	vfs = *usual; /* for time and chance */
	vfs.zName = VFS_NAME;
	vfs.pNext = NULL;
	vfs.szOsFile = sizeof(struct fd_file);
	vfs.xOpen = vfs_open;
	vfs.xDelete = vfs_delete;
	vfs.xAccess = vfs_access;
	vfs.xFullPathname = vfs_full_pathname;
	(void)sqlite3_vfs_register(&vfs, 0);
}

int us_fd_vfs_open(int fd, sqlite3 **ret_db)
{
	char uri[64];
	(void)pthread_once(&once, register_vfs); /* cannot fail */
	(void)snprintf(uri, sizeof(uri), "file:" NAME_FORMAT "?immutable=1", fd);
	int rc = sqlite3_open_v2(uri, ret_db,
				 SQLITE_OPEN_READONLY | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX |
					 SQLITE_OPEN_PRIVATECACHE,
				 VFS_NAME);
	return rc ? rc : sqlite3_exec(*ret_db, "PRAGMA temp_store = 2", NULL, NULL, NULL);
}
