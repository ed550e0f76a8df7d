/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_SIPHASH_H
#define US_BASE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012,
 * with the round counts hash tables use): names are chosen by tenants, the key
 * is not theirs to know. */
struct us_siphash_key {
	uint64_t k0, k1;
};

uint64_t us_siphash(const struct us_siphash_key *key, const void *data, size_t len);

#endif
