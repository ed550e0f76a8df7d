/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_RATE_H
#define US_STORE_RATE_H

#include <stddef.h>
#include <stdint.h>

/*
 * How much may be sent in a second. One thread's; the clock is given, nothing here waits.
 */
struct us_rate {
	uint64_t bytes_per_s; /* up to INT64_MAX; 0: no limit */
	int64_t due_ns;       /* before, nothing may be sent */
};

/* A limit above INT64_MAX counts as that. */
void us_rate_init(struct us_rate *rate, uint64_t bytes_per_s);
int us_rate_may_send(const struct us_rate *rate, int64_t now_ns);
/* LEN bytes are being sent, whether they might or not. */
void us_rate_charge(struct us_rate *rate, uint64_t len, int64_t now_ns);
/* How much of LEN bytes to send in one piece, at least one: a quarter of a second's. */
size_t us_rate_piece_len(const struct us_rate *rate, size_t len);

#endif
