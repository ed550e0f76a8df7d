/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_CONCURRENCY_H
#define US_STORE_CONCURRENCY_H

#include <stdint.h>

/*
 * How many requests may be under way at once. Whoever starts and ends them tells so, with
 * the time, and starts no more than `limit`. One thread's; nothing here waits.
 */

#define US_CONCURRENCY_MAX 1000
#define US_CONCURRENCY_LEVELS 11 /* 1, 2, 4 ... 512, 1000 */

enum us_concurrency_phase {
	US_CONCURRENCY_FILL, /* fewer than the limit are under way */
	US_CONCURRENCY_COLD, /* as many as that; most since before it was reached */
	US_CONCURRENCY_WARM, /* as many as that; measured */
};

struct us_concurrency {
	uint32_t limit; /* read by the caller; the rest is concurrency.c's */
	uint32_t max, in_flight, ticket;
	/* backing off */
	uint32_t cap, ceiling, success_count, back_off_ticket;
	/* levels */
	uint32_t level, level_count;
	double rates[US_CONCURRENCY_LEVELS]; /* 0: not known */
	uint32_t round_count;                /* since a neighbour was last looked at */
	int is_rising, looks_down;
	/* the present level */
	enum us_concurrency_phase phase;
	int64_t full_ns;     /* since when it is not FILL */
	int64_t spent_ns;    /* how long it was not, before */
	uint32_t cold_count; /* how many have to end before it is WARM */
	int64_t warm_ns;     /* since when it is, or the round before ended */
	uint32_t ended_count;
	double work;
};

/* MAX: 1 to US_CONCURRENCY_MAX. */
void us_concurrency_init(struct us_concurrency *control, uint32_t max);

/* A request starts. Returns a ticket, to be given when it ends: in one of three ways. */
uint32_t us_concurrency_started(struct us_concurrency *control, int64_t now_ns);
/* It did what was wanted, with LEN bytes of payload. */
void us_concurrency_succeeded(struct us_concurrency *control, uint32_t ticket, uint64_t len,
			      int64_t now_ns);
/* The server was asked for too much. */
void us_concurrency_throttled(struct us_concurrency *control, uint32_t ticket);
/* Anything else, which tells nothing about what the server can do. */
void us_concurrency_failed(struct us_concurrency *control, uint32_t ticket, int64_t now_ns);

/* Fewer than `limit` are under way, and there is nothing to start. */
void us_concurrency_starved(struct us_concurrency *control, int64_t now_ns);
/* When to call `look` at the latest; INT64_MAX: never. */
int64_t us_concurrency_due_ns(const struct us_concurrency *control);
void us_concurrency_look(struct us_concurrency *control, int64_t now_ns);

#endif
