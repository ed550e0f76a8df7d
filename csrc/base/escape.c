/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Escaping, one character at a time: a character of valid UTF-8 that may stand
 * as it is is copied, any other byte becomes three.
 *
 * Why it can be reversed: `%` itself is always escaped, so every `%` in the output
 * starts an escape. Why only one text unescapes to given bytes (dots aside):
 * us_unescape decodes first and then checks, character by character, that
 * escaping the result would write what it was given.
 *
 * U+FFFE and U+FFFF fall apart into bytes, as XML 1.0 (S3's LIST) has neither.
 * Their three bytes are escaped one after another: the second and third are no
 * start of a character, so they are seen as bytes outside UTF-8.
 */
#include "escape.h"

#include <string.h>

#include "utf8.h"

static const char hex_digits[] = "0123456789ABCDEF";

/* How many bytes at TEXT may stand as they are: one character, or 0. */
static size_t plain_len(const char *text, size_t len)
{
	uint32_t value;
	size_t char_len = us_utf8_next(text, len, &value);
	if (value < 0x20 || value == 0x7F || value == '%' || value == '\\' || value == 0xFFFE ||
	    value == 0xFFFF || value >= US_UTF8_BYTE) {
		return 0;
	}
	return char_len;
}

static void put_escape(char byte, char ret[3])
{
	unsigned int value = (unsigned char)byte;
	ret[0] = '%';
	ret[1] = hex_digits[value >> 4];
	ret[2] = hex_digits[value & 15];
}

/* Dots at index DOT_BEGIN..DOT_END-1 are escaped too. */
static size_t escape(const char *text, size_t len, size_t dot_begin, size_t dot_end, char *ret,
		     size_t cap)
{
	size_t out = 0;
	for (size_t i = 0; i < len;) {
		size_t plain = plain_len(text + i, len - i);
		if (i >= dot_begin && i < dot_end && text[i] == '.') {
			plain = 0;
		}
		size_t unit_len = plain ? plain : 3;
		if (out <= cap && unit_len <= cap - out) {
			if (plain) {
				memcpy(ret + out, text + i, plain);
			} else {
				put_escape(text[i], ret + out);
			}
		} else {
			cap = 0; /* nothing more is written: what is there stays valid UTF-8 */
		}
		out += unit_len;
		i += plain ? plain : 1;
	}
	return out;
}

size_t us_escape(const char *text, size_t len, char *ret, size_t cap)
{
	return escape(text, len, 0, 0, ret, cap);
}

#define OBJECT_TIME_LEN 16 /* "20060102T150405Z" */

/* By form alone, so that a name never changes sides: "99999999T999999Z.db.lz4" too. */
static int is_object_name(const char *text, size_t len)
{
	static const char form[] = "00000000T000000Z.db.lz4";
	if (len != sizeof(form) - 1) {
		return 0;
	}
	for (size_t i = 0; i < len; i++) {
		int is_digit = text[i] >= '0' && text[i] <= '9';
		if (form[i] == '0' ? !is_digit : text[i] != form[i]) {
			return 0;
		}
	}
	return 1;
}

size_t us_escape_component(const char *text, size_t len, char *ret, size_t cap)
{
	if (len > 0 && text[0] == '.') {
		return escape(text, len, 0, len == 2 ? 2 : 1, ret, cap);
	}
	if (is_object_name(text, len)) {
		return escape(text, len, OBJECT_TIME_LEN, OBJECT_TIME_LEN + 1, ret, cap);
	}
	return escape(text, len, 0, 0, ret, cap);
}

static int hex_value(char c)
{
	const char *digit = c ? strchr(hex_digits, c) : NULL;
	return digit ? (int)(digit - hex_digits) : -1;
}

/* Undoes every %XX without a look at what it stands for. */
static int64_t decode(const char *text, size_t len, char *ret)
{
	size_t out = 0;
	for (size_t i = 0; i < len; out++) {
		if (text[i] != '%') {
			ret[out] = text[i++];
			continue;
		}
		if (len - i < 3) {
			return -1;
		}
		int high = hex_value(text[i + 1]);
		int low = hex_value(text[i + 2]);
		if (high < 0 || low < 0) {
			return -1;
		}
		ret[out] = (char)(high * 16 + low);
		i += 3;
	}
	return (int64_t)out;
}

int64_t us_unescape(const char *text, size_t len, char *ret)
{
	int64_t decoded = decode(text, len, ret);
	if (decoded < 0) {
		return -1;
	}
	size_t ret_len = (size_t)decoded;
	size_t at = 0;
	for (size_t i = 0; i < ret_len;) {
		size_t plain = plain_len(ret + i, ret_len - i);
		if (text[at] == '%') {
			if (plain && ret[i] != '.') {
				return -1;
			}
			i++;
			at += 3;
			continue;
		}
		if (!plain || len - at < plain || memcmp(text + at, ret + i, plain) != 0) {
			return -1;
		}
		i += plain;
		at += plain;
	}
	return decoded;
}

const char *us_escape_show(const char *text, size_t len, char ret[US_ESCAPE_SHOW_LEN])
{
	static const char more[] = "...";
	size_t out = 0;
	for (size_t i = 0; i < len;) {
		size_t plain = plain_len(text + i, len - i);
		if (text[i] == '%' || text[i] == '\\') {
			plain = 1;
		}
		size_t unit_len = plain ? plain : 3;
		if (out + unit_len + sizeof(more) > US_ESCAPE_SHOW_LEN) {
			memcpy(ret + out, more, sizeof(more));
			return ret;
		}
		if (plain) {
			memcpy(ret + out, text + i, plain);
		} else {
			put_escape(text[i], ret + out);
		}
		out += unit_len;
		i += plain ? plain : 1;
	}
	ret[out] = '\0';
	return ret;
}
