/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite's locks on a database file (os_unix.c): POSIX record locks on bytes at
 * 1 GiB, a page that holds no data.
 *
 *   PENDING   0x40000000        write-locked while a writer waits for readers
 *   RESERVED  0x40000001        write-locked from the begin of a write transaction
 *   SHARED    0x40000002 + 510  read-locked by readers, write-locked by whoever
 *                               writes to the file (EXCLUSIVE)
 *
 * Open-file-description locks conflict with the classic POSIX locks that SQLite
 * takes, also with those of our own process (Litestream's SQLite lives in it),
 * and go with the descriptor instead of with the process.
 */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>

#include "../base/clock.h"

#define PENDING_BYTE 0x40000000
#define RESERVED_BYTE (PENDING_BYTE + 1)
#define SHARED_FIRST (PENDING_BYTE + 2)
#define SHARED_LEN 510
#define ALL_LEN (SHARED_FIRST + SHARED_LEN - PENDING_BYTE)
#define LOCK_PAUSE_NS (2 * US_NS_PER_MS)

/* 1 if someone's write lock is in the range, 0, or US_E_IO. */
static int32_t probe_range(int db_fd, off_t start, off_t len, int32_t *ret_pid,
			   struct us_error *err)
{
	struct flock lock = {
		.l_type = F_RDLCK,
		.l_whence = SEEK_SET,
		.l_start = start,
		.l_len = len,
	};
	if (fcntl(db_fd, F_OFD_GETLK, &lock)) {
		(void)us_fail_errno(err, errno, "cannot ask for locks");
		return US_E_IO;
	}
	if (lock.l_type == F_UNLCK) {
		return 0;
	}
	if (lock.l_pid > 0) {
		*ret_pid = lock.l_pid;
	}
	return 1;
}

int32_t us_locks_probe(int db_fd, struct us_locks *ret_locks, struct us_error *err)
{
	struct us_locks locks = { 0 };
	locks.any = probe_range(db_fd, PENDING_BYTE, ALL_LEN, &locks.pid, err);
	if (locks.any > 0) {
		/* SHARED last: whoever was seen with RESERVED and then is not seen
		 * with EXCLUSIVE had not written before. */
		locks.reserved = probe_range(db_fd, RESERVED_BYTE, 1, &locks.pid, err);
		locks.pending = probe_range(db_fd, PENDING_BYTE, 1, &locks.pid, err);
		locks.shared = probe_range(db_fd, SHARED_FIRST, SHARED_LEN, &locks.pid, err);
	}
	if (locks.any < 0 || locks.reserved < 0 || locks.pending < 0 || locks.shared < 0) {
		return US_E_IO;
	}
	*ret_locks = locks;
	return 0;
}

int32_t us_locks_fail(const struct us_locks *locks, const char *display, struct us_error *err)
{
	const char *name = locks->shared     ? "EXCLUSIVE"
			   : locks->pending  ? "PENDING"
			   : locks->reserved ? "RESERVED"
					     : "write";
	if (locks->pid > 0) {
		return us_fail(err, US_E_BUSY,
			       "locked by another process: %s lock held by process %d on \"%s\"",
			       name, locks->pid, display);
	}
	return us_fail(err, US_E_BUSY, "locked by another process: %s lock held on \"%s\"", name,
		       display);
}

/* 1 if done, 0 if someone else's lock is in the way, or US_E_IO. */
static int32_t set_lock(int db_fd, short type, off_t start, off_t len, struct us_error *err)
{
	struct flock lock = {
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = start,
		.l_len = len,
	};
	while (fcntl(db_fd, F_OFD_SETLK, &lock)) {
		if (errno == EAGAIN || errno == EACCES) {
			return 0;
		}
		if (errno != EINTR) {
			(void)us_fail_errno(err, errno, "cannot take a SHARED lock");
			return US_E_IO;
		}
	}
	return 1;
}

/* One try, as unixLock() goes from nothing to SHARED. */
static int32_t try_shared(int db_fd, struct us_error *err)
{
	int32_t rc = set_lock(db_fd, F_RDLCK, PENDING_BYTE, 1, err);
	if (rc <= 0) {
		return rc;
	}
	rc = set_lock(db_fd, F_RDLCK, SHARED_FIRST, SHARED_LEN, err);
	int32_t rc_pending = set_lock(db_fd, F_UNLCK, PENDING_BYTE, 1, rc < 0 ? NULL : err);
	return rc < 0 || rc_pending > 0 ? rc : rc_pending;
}

int32_t us_lock_shared(int db_fd, int64_t wait_ns, const char *display, struct us_error *err)
{
	int64_t end_ns = us_clock_mono_ns() + wait_ns;
	for (;;) {
		int32_t rc = try_shared(db_fd, err);
		if (rc != 0) {
			return rc > 0 ? 0 : rc;
		}
		if (us_clock_mono_ns() + LOCK_PAUSE_NS > end_ns) {
			break;
		}
		us_clock_sleep_ns(LOCK_PAUSE_NS);
	}
	struct us_locks locks = { 0 };
	int32_t rc = us_locks_probe(db_fd, &locks, err);
	return rc ? rc : us_locks_fail(&locks, display, err);
}

void us_unlock(int db_fd)
{
	(void)set_lock(db_fd, F_UNLCK, PENDING_BYTE, ALL_LEN, NULL); /* else close does it */
}
