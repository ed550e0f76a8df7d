/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_HEX_H
#define US_BASE_HEX_H

#include <stddef.h>
#include <stdint.h>

/* Lower-case hex of LEN bytes, and a NUL: 2 * LEN + 1 bytes at RET_HEX. */
static inline void us_hex(const uint8_t *bytes, size_t len, char *ret_hex)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < len; i++) {
		ret_hex[2 * i] = digits[bytes[i] >> 4];
		ret_hex[2 * i + 1] = digits[bytes[i] & 15];
	}
	ret_hex[2 * len] = '\0';
}

#endif
