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

/*
 * The same for one whole component of a key, where some names mean something
 * else in a target. Their dots are escaped too:
 *	"." and ".."                 both dots: no path component can mean these
 *	a leading dot                that one: temporary and reserved names have it
 *	"20060102T150405Z.db.lz4"    the first one: the name of an object. So no key
 *	                             has, as a directory, the name of another's object
 */
size_t us_escape_component(const char *text, size_t len, char *ret, size_t cap);

/* Reverses both into RET (at most LEN bytes); returns the length, or -1 (RET is
 * then undefined) if TEXT is not what they could have written (bad or lower-case
 * hex, or an escape of a byte that needs none, dots excepted). */
int64_t us_unescape(const char *text, size_t len, char *ret);

/* TEXT for an error message, with a NUL: valid UTF-8 on one line. Control bytes
 * and bytes outside UTF-8 become %XX, the rest stays, what is too long ends in
 * "...". Returns RET. Not to be reversed. */
#define US_ESCAPE_SHOW_LEN 320
const char *us_escape_show(const char *text, size_t len, char ret[US_ESCAPE_SHOW_LEN]);

#endif
