/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_FUZZ_H
#define US_TESTS_FUZZ_H

/* What the fuzz targets share: a check that stays in every build, and a way to take
 * an input apart. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/base/error.h"
#include "../../csrc/base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len);

#define require(condition) ((condition) ? (void)0 : require_failed(__FILE__, __LINE__, #condition))

__attribute__((noreturn)) static inline void require_failed(const char *file, int line,
							    const char *condition)
{
	(void)fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
	abort();
}

/* What is left of an input. */
struct input {
	const uint8_t *at;
	size_t left;
};

/* The next byte; 0 behind the end. */
static inline uint8_t input_byte(struct input *in)
{
	if (in->left == 0) {
		return 0;
	}
	in->left--;
	return *in->at++;
}

/* Big-endian; what is missing is 0. */
static inline uint16_t input_u16(struct input *in)
{
	uint16_t high = input_byte(in);
	return (uint16_t)(high << 8 | input_byte(in));
}

/* The next LEN bytes, fewer at the end, in memory of their own, so that a read behind
 * them is seen, with a NUL after them. Freed by the caller. */
static inline char *input_bytes(struct input *in, size_t len, size_t *ret_len)
{
	len = len < in->left ? len : in->left;
	char *bytes = malloc(len + 1);
	require(bytes);
	memcpy(bytes, in->at, len);
	bytes[len] = '\0';
	in->at += len;
	in->left -= len;
	if (ret_len) {
		*ret_len = len;
	}
	return bytes;
}

/* The bytes up to the next NUL, which is skipped, or the end. Freed by the caller. */
static inline char *input_string(struct input *in)
{
	const uint8_t *nul = in->left ? memchr(in->at, '\0', in->left) : NULL;
	char *string = input_bytes(in, nul ? (size_t)(nul - in->at) : in->left, NULL);
	(void)input_byte(in);
	return string;
}

/* Text that may be shown on one line: valid UTF-8 without control bytes. */
static inline int is_one_line(const char *text)
{
	for (size_t len = strlen(text); len > 0;) {
		uint32_t value;
		size_t char_len = us_utf8_next(text, len, &value);
		if (value < 0x20 || value == 0x7F || value >= US_UTF8_BYTE) {
			return 0;
		}
		text += char_len;
		len -= char_len;
	}
	return 1;
}

/* The same, and XML 1.0 can hold it: neither U+FFFE nor U+FFFF. */
static inline int is_key_text(const char *text)
{
	return is_one_line(text) && !strchr(text, '\\') && !strstr(text, "\xef\xbf\xbe") &&
	       !strstr(text, "\xef\xbf\xbf");
}

/* ERR says why RC was returned. */
static inline void require_reason(int32_t rc, const struct us_error *err)
{
	require(rc < 0 && err->code == rc && err->message[0] != '\0');
	require(memchr(err->message, '\0', sizeof(err->message)) && is_one_line(err->message));
}

#endif
