/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_ESCAPE_H
#define US_BASE_ESCAPE_H

#include <stddef.h>
#include <stdint.h>

/*
 * The escaping of captured bytes in keys and of paths in trailers, /stats and
 * logs: bytes outside UTF-8, U+FFFE and U+FFFF, control bytes (0-31, 127), `%` and
 * `\` become %XX (upper case). C1 controls (U+0080-U+009F) are valid UTF-8 and
 * stay. Slashes stay. The result is always valid UTF-8, and unescaping it gives
 * the bytes back.
 */

/* Writes at most CAP bytes, without a NUL; returns the length needed, which is
 * at most 3 * LEN. The output is complete only if that is <= CAP. */
size_t us_escape(const char *text, size_t len, char *ret, size_t cap);

/* The same for one component of a key: the dots of "." and ".." are escaped too. */
size_t us_escape_component(const char *text, size_t len, char *ret, size_t cap);

/* Reverses it into RET (at most LEN bytes); returns the length, or -1 if TEXT is
 * not what us_escape could have written (bad or lower-case hex, or an escape of
 * a byte that needs none, dots excepted). */
int64_t us_unescape(const char *text, size_t len, char *ret);

#endif
