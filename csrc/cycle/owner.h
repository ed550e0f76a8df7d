/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CYCLE_OWNER_H
#define US_CYCLE_OWNER_H

#include "../base/error.h"

/*
 * One replicator for one target: see owner.c. Made by us_open, for handles that may
 * write.
 */
struct us;
struct us_owner;

/* Starts the thread; nothing is sent until somebody asks. 0, US_E_NOMEM, US_E_IO. */
int32_t us_owner_new(struct us *us, struct us_owner **ret_owner, struct us_error *err);
/* After us_cancel: joins, frees. NULL is accepted. */
void us_owner_free(struct us_owner *owner);

/* Asks for the target, waits for the answer at most TIMEOUT_MS, but not beyond us_cancel
 * and us_finish. 0: it is ours, or unguarded. US_E_OWNED, US_E_TIMEOUT (the thread goes
 * on), US_E_CANCELED, or why it could not be asked. TAKEOVER: whoever has it. */
int32_t us_owner_ask(struct us_owner *owner, int takeover, int32_t timeout_ms,
		     struct us_error *err);

/* Gives the target back; waits likewise. 0 also if it was not ours. */
int32_t us_owner_release(struct us_owner *owner, int32_t timeout_ms, struct us_error *err);

/* Whether objects may be written and removed now: 0, or why not (news, too). Any thread;
 * sends nothing. */
int32_t us_owner_check(struct us_owner *owner, struct us_error *err);

/* Before a cycle: 0, or why nothing may be written. Asks where that is not known. */
int32_t us_owner_begin(struct us_owner *owner, struct us_error *err);

/* Whether somebody else, or a later version of our state, has written to the target since
 * our state last knew it. The caller makes its state forget the target, and then takes
 * the news: until then the object tells, should we die. */
int us_owner_has_news(const struct us_owner *owner);
void us_owner_take_news(struct us_owner *owner);

/* US_OWNER_*, any thread. */
uint32_t us_owner_status(struct us_owner *owner);

#endif
