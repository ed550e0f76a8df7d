/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_UTF8_H
#define US_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Values of bytes that are no part of a valid UTF-8 character. */
#define US_UTF8_BYTE UINT32_C(0x110000)

/*
 * The first character of TEXT (LEN is at least 1): returns its length, 1..4, and
 * its code point. Where no valid UTF-8 starts (overlong forms, surrogates and
 * values above U+10FFFF are not valid) that is one byte: 1 and US_UTF8_BYTE + byte.
 */
static inline size_t us_utf8_next(const char *text, size_t len, uint32_t *ret_value)
{
	const unsigned char *p = (const unsigned char *)text;
	if (p[0] < 0x80) {
		*ret_value = p[0];
		return 1;
	}
	*ret_value = US_UTF8_BYTE + p[0];
	size_t need = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
	if (p[0] < 0xC2 || p[0] > 0xF4 || len < need) {
		return 1;
	}
	uint32_t value = p[0] & (0xFFu >> (need + 1));
	for (size_t i = 1; i < need; i++) {
		if ((p[i] & 0xC0) != 0x80) {
			return 1;
		}
		value = value << 6 | (p[i] & 0x3Fu);
	}
	if ((need == 3 && value < 0x800) || (need == 4 && value < 0x10000) ||
	    (value >= 0xD800 && value <= 0xDFFF) || value > 0x10FFFF) {
		return 1;
	}
	*ret_value = value;
	return need;
}

/* Writes the bytes of a value that us_utf8_next gave; returns their count. */
static inline size_t us_utf8_put(uint32_t value, char ret[4])
{
	if (value < 0x80 || value >= US_UTF8_BYTE) {
		ret[0] = (char)(value & 0xFF);
		return 1;
	}
	size_t len = value < 0x800 ? 2 : value < 0x10000 ? 3 : 4;
	for (size_t i = len - 1; i > 0; i--) {
		ret[i] = (char)(0x80 | (value & 0x3F));
		value >>= 6;
	}
	ret[0] = (char)((0xF00u >> len & 0xFF) | value);
	return len;
}

#endif
