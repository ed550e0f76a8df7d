/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_FAULT_SHIM_H
#define US_FAULT_SHIM_H

#include <stddef.h>
#include <stdint.h>

/*
 * System calls and allocations that are counted, fail or are cut short, and a log of
 * what is written. Linked into a program, the functions of shim.c stand before libc's
 * for the core and for every library that works for it. Only what happens inside a
 * function of the core counts: the core is compiled with -finstrument-functions.
 *
 * A fault has an address: the call, how the core got there (SITE, a hash of the call
 * chain), and how often it came there before (NTH, from 0). It is the same in every run
 * whatever the threads do, which a mere number would not be.
 */

#define SHIM_CHAIN_MAX 32
#define SHIM_SITES_MAX 16384
#define SHIM_SHORT 1000 /* in place of an errno: one byte less than asked for, or 1 byte */
#define SHIM_ERRORS_MAX 6

/* Who called, and the functions of the core that were under way, outermost first. */
struct shim_chain {
	void *from;
	void *last_from; /* who called the innermost of them: a library, in a callback */
	uint32_t len;
	void *functions[SHIM_CHAIN_MAX];
};

struct shim_site {
	uint64_t hash; /* 0: free */
	uint32_t call, phase;
	uint32_t count;
	uint32_t order; /* the how manieth site that was seen */
	struct shim_chain chain;
};

struct shim_fault {
	uint64_t site; /* 0: any */
	uint32_t call, phase;
	uint32_t nth;
	int error;  /* an errno, or SHIM_SHORT */
	int stays;  /* from there on every call that can fails so, until shim_phase(0) */
};

const char *shim_call_name(uint32_t call);
uint32_t shim_call_of(const char *name);
/* What CALL can fail with, 0 at the end. */
const int *shim_call_errors(uint32_t call);
int shim_call_is_allocation(uint32_t call);

/* Before all else, in the parent of the processes that are tested. */
void shim_init(void);

/* Calls of other phases than 1.. are let through. */
void shim_phase(uint32_t phase);

/* Counts from now on, into a table that this process shares with its parent. */
void shim_count(void);
const struct shim_site *shim_sites(uint32_t *ret_count);
const struct shim_site *shim_site_of(uint64_t hash);

/* From now on this process has FAULT. */
void shim_arm(const struct shim_fault *fault);
int shim_has_fired(void);

/* Allocations made inside the core and not freed since shim_track, which is called once,
 * but for those that IS_KEPT says somebody keeps. RET_CHAIN: of one. */
void shim_track(void);
uint32_t shim_untrack(int (*is_kept)(const struct shim_chain *chain),
		      struct shim_chain *ret_chain);

/* Whenever the core opens a file of this name, its ctime becomes now: a database that
 * somebody writes to. */
extern const char *shim_busy_name;

/* The wall clock goes on by so much, for the whole program: names of objects have a second
 * each, and nobody wants to wait for them. */
void shim_clock_forward(int64_t s);

/* ---------------------------------------------------------------- the log */

enum shim_op_kind {
	SHIM_OP_CREATE, /* dir, name, ino */
	SHIM_OP_MKDIR,
	SHIM_OP_LINK,
	SHIM_OP_RENAME, /* dir, name to to_dir, to_name; ino */
	SHIM_OP_UNLINK, /* also rmdir */
	SHIM_OP_WRITE,	/* ino, off, len, data */
	SHIM_OP_TRUNCATE, /* ino, len */
	SHIM_OP_MODE,	  /* ino, len: permission bits */
	SHIM_OP_SYNC,	/* ino: of a file or a directory */
	SHIM_OP_SYNCFS, /* ino: of a file or a directory on it */
	SHIM_OP_MARK,	/* name: shim_mark's */
};

struct shim_op {
	enum shim_op_kind kind;
	uint64_t ino, dir, to_dir;
	uint64_t off, len;
	const uint8_t *data;
	char name[256], to_name[256];
};

/* Logs what is done inside the core from now on, into a log that this process shares with
 * its parent: an empty one, or (GO_ON) behind what is in it. The process ends, as by
 * SIGKILL, when there are END_AT entries; 0: it does not. */
void shim_log(int go_on, uint32_t end_at);
void shim_mark(const char *text);
const struct shim_op *shim_ops(uint32_t *ret_count);

#endif
