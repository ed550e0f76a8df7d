/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_TEXT_H
#define US_STORE_TEXT_H

#include <stddef.h>
#include <stdint.h>

/*
 * A growing string with a hard cap. Its memory is kept when it is cleared, so a
 * pooled owner stops allocating after its first uses. A failure (no memory, or
 * longer than the cap) sticks until the next clear: callers append freely and
 * look at `failed` once.
 */
struct us_text {
	char *data; /* NUL-terminated, or NULL while nothing was appended */
	size_t len;
	size_t cap;
	size_t len_max;
	int failed;
};

void us_text_init(struct us_text *text, size_t len_max);
void us_text_done(struct us_text *text);
void us_text_clear(struct us_text *text);

void us_text_add(struct us_text *text, const void *bytes, size_t len);
void us_text_puts(struct us_text *text, const char *string);
/* Appends the NUL byte itself, for several strings in one text. */
void us_text_end_string(struct us_text *text);

/* Appends the bytes as RFC 3986 asks of AWS's signatures: all but A-Z a-z 0-9
 * `-._~` become %XX in upper case; KEEP_SLASH leaves `/` too. */
void us_text_add_encoded(struct us_text *text, const char *bytes, size_t len, int keep_slash);

/* A-Z a-z 0-9 `-._~`: what needs no escape anywhere in a URL. */
static inline int us_is_unreserved(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == '-' || c == '.' || c == '_' || c == '~';
}

#endif
