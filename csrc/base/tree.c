/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening files in trees that other people can write to. A component may turn
 * into a link between a look and the open; only the kernel can refuse that.
 */
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* EAGAIN is a race with a rename (openat2), or a lease that somebody holds: that one
 * is the caller's US_E_BUSY. */
#define TRIES_MAX 8
#define OPEN_FLAGS (O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)

static int open_beneath(int tree_fd, const char *rel, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)(unsigned int)flags,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
	};
	return (int)syscall(SYS_openat2, tree_fd, rel, &how, sizeof(how));
}

/* O_NOATIME is for owners and root (EPERM): the others' reading shows. */
static int open_noatime_beneath(int tree_fd, const char *rel, int flags)
{
	int fd = open_beneath(tree_fd, rel, flags);
	return fd >= 0 || errno != EPERM || !(flags & O_NOATIME)
		       ? fd
		       : open_beneath(tree_fd, rel, flags & ~O_NOATIME);
}

static int same_device(int fd, dev_t device)
{
	struct stat st;
	if (fstat(fd, &st)) {
		return 0;
	}
	errno = EXDEV;
	return st.st_dev == device;
}

/* For kernels before 5.6 and sandboxes that refuse openat2. */
static int open_by_component(int tree_fd, const char *rel, int flags)
{
	struct stat tree;
	if (fstat(tree_fd, &tree)) {
		return -1;
	}
	int dir_fd = tree_fd;
	for (;;) {
		char name[256];
		size_t len = strcspn(rel, "/");
		if (len == 0 || len >= sizeof(name)) {
			errno = len ? ENAMETOOLONG : ENOENT;
			break;
		}
		memcpy(name, rel, len);
		name[len] = '\0';
		int last = rel[len] == '\0';
		int fd = openat(dir_fd, name,
				last ? flags : O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0600);
		int saved = errno;
		if (dir_fd != tree_fd) {
			(void)close(dir_fd); /* an O_PATH descriptor: nothing to lose */
		}
		errno = saved;
		if (fd < 0) {
			return -1;
		}
		if (!same_device(fd, tree.st_dev)) {
			saved = errno;
			(void)close(fd); /* refused, unread */
			errno = saved;
			return -1;
		}
		if (last) {
			return fd;
		}
		dir_fd = fd;
		rel += len + 1;
	}
	if (dir_fd != tree_fd) {
		int saved = errno;
		(void)close(dir_fd);
		errno = saved;
	}
	return -1;
}

int32_t us_tree_open(int tree_fd, const char *rel, int flags, const char *display,
		     struct us_error *err)
{
	int fd, tries = 0;
	do {
		fd = open_noatime_beneath(tree_fd, rel, flags | OPEN_FLAGS);
		if (fd < 0 && (errno == ENOSYS || errno == EPERM || errno == EINVAL)) {
			fd = open_by_component(tree_fd, rel, (flags | OPEN_FLAGS) & ~O_NOATIME);
		}
	} while (fd < 0 && (errno == EINTR || (errno == EAGAIN && ++tries < TRIES_MAX)));
	if (fd >= 0) {
		return fd;
	}
	if (errno == ELOOP) {
		return us_fail(err, US_E_NOTFOUND,
			       "\"%s\" is a symbolic link now; links are not followed", display);
	}
	return us_fail_errno(err, errno, "cannot open \"%s\"", display);
}

#ifndef ZFS_SUPER_MAGIC
#define ZFS_SUPER_MAGIC 0x2fc12fc1
#endif
#ifndef BCACHEFS_SUPER_MAGIC
#define BCACHEFS_SUPER_MAGIC 0xca451a4e
#endif
#ifndef F2FS_SUPER_MAGIC
#define F2FS_SUPER_MAGIC 0xF2F52010
#endif

struct filesystem {
	uint32_t magic;
	const char *name; /* NULL: a local one, fine */
};

static const struct filesystem filesystems[] = {
	{ EXT4_SUPER_MAGIC, NULL },      { XFS_SUPER_MAGIC, NULL },  { BTRFS_SUPER_MAGIC, NULL },
	{ ZFS_SUPER_MAGIC, NULL },       { TMPFS_MAGIC, NULL },      { RAMFS_MAGIC, NULL },
	{ OVERLAYFS_SUPER_MAGIC, NULL }, { F2FS_SUPER_MAGIC, NULL }, { BCACHEFS_SUPER_MAGIC, NULL },
	{ NFS_SUPER_MAGIC, "nfs" },      { SMB_SUPER_MAGIC, "smb" }, { SMB2_SUPER_MAGIC, "cifs" },
	{ CIFS_SUPER_MAGIC, "cifs" },    { V9FS_MAGIC, "9p" },       { FUSE_SUPER_MAGIC, "fuse" },
	{ CEPH_SUPER_MAGIC, "ceph" },    { AFS_SUPER_MAGIC, "afs" }, { MSDOS_SUPER_MAGIC, "vfat" },
};

int us_tree_has_devices(int dir_fd)
{
	struct statfs fs;
	if (fstatfs(dir_fd, &fs)) {
		return 1;
	}
	switch ((uint32_t)fs.f_type) {
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case TMPFS_MAGIC:
		return 0;
	default:
		return 1;
	}
}

int32_t us_tree_check_filesystem(int dir_fd, const char *display, struct us_error *err)
{
	struct statfs fs;
	if (fstatfs(dir_fd, &fs)) {
		return us_fail_errno(err, errno, "cannot ask for the file system of \"%s\"",
				     display);
	}
	uint32_t magic = (uint32_t)fs.f_type;
	const char *name = "unknown";
	for (size_t i = 0; i < sizeof(filesystems) / sizeof(filesystems[0]); i++) {
		if (filesystems[i].magic == magic) {
			name = filesystems[i].name;
			break;
		}
	}
	if (!name) {
		return 0;
	}
	return us_fail(err, US_E_CONFIG,
		       "\"%s\" is on a file system of type %s (0x%x), where other hosts' locks are "
		       "invisible and stats are cached; move the databases to a local one, or set "
		       "allow_any_filesystem: true if only this host writes them",
		       display, name, magic);
}
