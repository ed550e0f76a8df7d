/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Growing strings for URLs, headers and answers. Growth doubles, so that a text
 * reaches its working size in a few steps and then stays. One spare byte always
 * holds the NUL. Requests hold session tokens, and answers may repeat them: memory is
 * wiped before it is given back.
 */
#include "text.h"

#include <string.h>

#include "../base/alloc.h"

#define TEXT_CAP_FIRST 256

void us_text_init(struct us_text *text, size_t len_max)
{
	*text = (struct us_text){ .len_max = len_max };
}

void us_text_done(struct us_text *text)
{
	us_free_wiped(text->data);
	*text = (struct us_text){ .len_max = text->len_max };
}

void us_text_clear(struct us_text *text)
{
	text->len = 0;
	text->failed = 0;
	if (text->data) {
		text->data[0] = '\0';
	}
}

/* Room for LEN more bytes and the NUL: 0, or -1 with the failure noted. */
static int grow(struct us_text *text, size_t len)
{
	if (text->failed || len > text->len_max - text->len) {
		text->failed = 1;
		return -1;
	}
	size_t need = text->len + len + 1;
	if (need <= text->cap) {
		return 0;
	}
	size_t cap = text->cap ? text->cap : TEXT_CAP_FIRST;
	while (cap < need) {
		cap = us_size_mul(cap, 2);
	}
	char *data = us_realloc_wiped(text->data, cap);
	if (!data) {
		text->failed = 1;
		return -1;
	}
	text->data = data;
	text->cap = cap;
	return 0;
}

void us_text_add(struct us_text *text, const void *bytes, size_t len)
{
	if (grow(text, len)) {
		return;
	}
	if (len > 0) {
		memcpy(text->data + text->len, bytes, len);
	}
	text->len += len;
	text->data[text->len] = '\0';
}

void us_text_puts(struct us_text *text, const char *string)
{
	us_text_add(text, string, strlen(string));
}

void us_text_end_string(struct us_text *text)
{
	us_text_add(text, "", 1);
}

void us_text_add_encoded(struct us_text *text, const char *bytes, size_t len, int keep_slash)
{
	static const char digits[] = "0123456789ABCDEF";
	if (grow(text, us_size_mul(len, 3) > text->len_max - text->len ? len : len * 3)) {
		return;
	}
	size_t start = 0;
	for (size_t i = 0; i < len; i++) {
		if (us_is_unreserved(bytes[i]) || (keep_slash && bytes[i] == '/')) {
			continue;
		}
		unsigned char byte = (unsigned char)bytes[i];
		char escaped[3] = { '%', digits[byte >> 4], digits[byte & 15] };
		us_text_add(text, bytes + start, i - start);
		us_text_add(text, escaped, sizeof(escaped));
		start = i + 1;
	}
	us_text_add(text, bytes + start, len - start);
}
