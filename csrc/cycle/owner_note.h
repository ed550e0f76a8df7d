/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CYCLE_OWNER_NOTE_H
#define US_CYCLE_OWNER_NOTE_H

#include <stddef.h>
#include <stdint.h>

/*
 * What the owner object holds: who may write to a target. Text, one `name value` a line,
 * always these in this order (docs/formats.md):
 *
 *	litestream multi_db owner 1
 *	host web-1			escaped like paths
 *	pid 4711
 *	place 0123...-cdef/4026531836	boot id and pid namespace: where that pid means something
 *	run 0123456789abcdef		at random for each us_open
 *	state 0123456789abcdef		the same for the life of a state file
 *	started 2006-01-02T15:04:05.000000000Z
 *	renewed 2006-01-02T15:05:05.000000000Z
 *	commits 12			of the state file so far
 *	reconcile 0			1: the state does not know yet what the target holds
 *	released 0			1: given back
 */
struct us_owner_note {
	char host[256];
	char place[96]; /* "": not known */
	char started[31], renewed[31];
	int64_t pid;
	int64_t commits;
	uint64_t run, state;
	uint32_t reconcile, released;
};

#define US_OWNER_NOTE_LEN_MAX 1024

/* Into RET (US_OWNER_NOTE_LEN_MAX bytes); returns the length. */
size_t us_owner_note_format(const struct us_owner_note *note, char *ret);

/* Whether TEXT begins as a note of any version does. */
int us_owner_note_is_one(const char *text, size_t len);

/* 0, or -1 if TEXT is not exactly such a note; *RET_NOTE is then undefined. */
int us_owner_note_parse(const char *text, size_t len, struct us_owner_note *ret_note);

#endif
