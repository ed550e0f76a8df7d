/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A token bucket, kept as the moment at which its balance is 0 again. What is sent may
 * overdraw it, so an object of any length can start, and the next one waits for longer:
 * over time that is exactly the limit. Who comes late, because timers are coarse or threads
 * busy, may make up for CREDIT_NS; time in which there was nothing to send is lost.
 */
#include "rate.h"

#include "../base/clock.h"

#define CREDIT_NS (100 * US_NS_PER_MS)

void us_rate_init(struct us_rate *rate, uint64_t bytes_per_s)
{
	*rate = (struct us_rate){
		.bytes_per_s = bytes_per_s < INT64_MAX ? bytes_per_s : INT64_MAX,
		.due_ns = INT64_MIN,
	};
}

int us_rate_may_send(const struct us_rate *rate, int64_t now_ns)
{
	return rate->bytes_per_s == 0 || now_ns >= rate->due_ns;
}

void us_rate_charge(struct us_rate *rate, uint64_t len, int64_t now_ns)
{
	if (rate->bytes_per_s == 0) {
		return;
	}
	int64_t from_ns = now_ns - CREDIT_NS;
	double took_ns = (double)len * (double)US_NS_PER_S / (double)rate->bytes_per_s;
	rate->due_ns = (rate->due_ns > from_ns ? rate->due_ns : from_ns) + (int64_t)took_ns;
}

size_t us_rate_piece_len(const struct us_rate *rate, size_t len)
{
	uint64_t most = rate->bytes_per_s / 4;
	if (rate->bytes_per_s == 0 || len <= most) {
		return len;
	}
	return most > 0 ? (size_t)most : 1;
}
