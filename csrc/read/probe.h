/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_PROBE_H
#define US_READ_PROBE_H

#include "../base/error.h"

/* Which of SQLite's bytes someone holds a write lock on. */
struct us_locks {
	int any;      /* some lock was seen, maybe gone before it could be named */
	int reserved; /* a writer in its transaction */
	int pending;  /* a writer that waits for readers to leave */
	int shared;   /* EXCLUSIVE: the SHARED range is write-locked */
	int32_t pid;  /* of one holder; 0: not known */
};

/* Asks with F_OFD_GETLK, which takes no lock. 0 or US_E_IO. */
int32_t us_locks_probe(int db_fd, struct us_locks *ret_locks, struct us_error *err);

/* US_E_BUSY with a message that names the strongest of LOCKS. */
int32_t us_locks_fail(const struct us_locks *locks, const char *display, struct us_error *err);

/*
 * Takes SQLite's SHARED lock for the open file description of DB_FD, within
 * WAIT_NS; 0, US_E_BUSY or US_E_IO. Nothing is held after a failure. Closing
 * DB_FD gives it back as us_unlock does.
 */
int32_t us_lock_shared(int db_fd, int64_t wait_ns, const char *display, struct us_error *err);
void us_unlock(int db_fd);

#endif
