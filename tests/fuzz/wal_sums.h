/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_WAL_SUMS_H
#define US_TESTS_WAL_SUMS_H

/* Makes the checksums of a WAL right, so that what lies behind them is reached. */

#include "fuzz.h"

#include "../../csrc/base/bytes.h"

#define WAL_FIX_HEADER 1u
#define WAL_FIX_SUMS 2u
#define WAL_FIX_SALTS 4u

static inline void wal_add(uint32_t sum[2], const uint8_t *data, size_t len, int big_endian)
{
	for (size_t i = 0; i + 8 <= len; i += 8) {
		sum[0] += (big_endian ? us_get_be32(data + i) : us_get_le32(data + i)) + sum[1];
		sum[1] += (big_endian ? us_get_be32(data + i + 4) : us_get_le32(data + i + 4)) +
			  sum[0];
	}
}

/* Puts in what FLAGS say, as the format's description has it. */
static inline void wal_fix(uint8_t *wal, size_t len, uint8_t flags)
{
	if (len < 32 || !(flags & WAL_FIX_HEADER)) {
		return;
	}
	uint32_t sum[2] = { 0, 0 };
	int big_endian = wal[3] & 1;
	uint64_t page_size = us_get_be32(wal + 8);
	wal_add(sum, wal, 24, big_endian);
	us_put_be32(wal + 24, sum[0]);
	us_put_be32(wal + 28, sum[1]);
	uint64_t frame_len = 24 + page_size;
	for (uint8_t *frame = wal + 32; (uint64_t)(wal + len - frame) >= frame_len && page_size > 0;
	     frame += frame_len) {
		if (flags & WAL_FIX_SALTS) {
			memcpy(frame + 8, wal + 16, 8);
		}
		wal_add(sum, frame, 8, big_endian);
		wal_add(sum, frame + 24, page_size, big_endian);
		if (flags & WAL_FIX_SUMS) {
			us_put_be32(frame + 16, sum[0]);
			us_put_be32(frame + 20, sum[1]);
		}
	}
}

#endif
