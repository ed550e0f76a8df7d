/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error codes, their names, and the filling of struct us_error. The numbers are
 * part of the ABI (ultrasimple.h); the table below is checked against them, so
 * that a code without a name does not compile.
 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

#define US_ERROR_TABLE(X) \
	X(US_OK, 0, "no error") \
	X(US_E_NOMEM, -1, "out of memory") \
	X(US_E_ARG, -2, "invalid argument") \
	X(US_E_CONFIG, -3, "invalid configuration") \
	X(US_E_IO, -4, "input/output error") \
	X(US_E_NOTFOUND, -5, "not found") \
	X(US_E_EXISTS, -6, "already exists") \
	X(US_E_BUSY, -7, "busy") \
	X(US_E_NOTDB, -8, "not an SQLite database") \
	X(US_E_EMPTY, -9, "empty file") \
	X(US_E_CORRUPT, -10, "damaged database") \
	X(US_E_NAME, -11, "name not representable") \
	X(US_E_ACCESS, -12, "permission denied") \
	X(US_E_NETWORK, -13, "target unreachable") \
	X(US_E_TIMEOUT, -14, "timed out") \
	X(US_E_HTTP, -15, "refused by the target") \
	X(US_E_OBJECT, -16, "damaged backup") \
	X(US_E_CANCELED, -17, "canceled") \
	X(US_E_LOCKED, -18, "locked by another process") \
	X(US_E_NOSPACE, -19, "no space left") \
	X(US_E_STATE, -20, "state file error") \
	X(US_E_UNSUPPORTED, -21, "not supported") \
	X(US_E_OWNED, -22, "target in use by another replicator")

#define US_CHECK_CODE(name, value, text) _Static_assert((name) == (value), #name);
US_ERROR_TABLE(US_CHECK_CODE)

static const char *const code_texts[] = {
#define US_CODE_TEXT(name, value, text) [-(value)] = (text),
	US_ERROR_TABLE(US_CODE_TEXT)
};

US_API const char *us_strerror(int32_t code)
{
	if (code > 0 || code <= -(int32_t)(sizeof(code_texts) / sizeof(code_texts[0]))) {
		return "unknown error";
	}
	return code_texts[-code];
}

void us_error_clear(struct us_error *err)
{
	if (err) {
		memset(err, 0, sizeof(*err));
		err->struct_size = sizeof(*err);
	}
}

/* What is no part of a line of valid UTF-8 becomes `?`: parts of a message come from
 * configurations and servers, and %.300s or the end of the buffer may cut a character. */
static void make_presentable(char *text)
{
	size_t len = strlen(text);
	for (size_t at = 0; at < len;) {
		uint32_t value;
		size_t char_len = us_utf8_next(text + at, len - at, &value);
		if (value < 0x20 || value == 0x7F || value >= US_UTF8_BYTE) {
			text[at] = '?';
		}
		at += char_len;
	}
}

static void set_message(struct us_error *err, const char *format, va_list args)
{
	(void)vsnprintf(err->message, sizeof(err->message), format, args);
	make_presentable(err->message);
}

int32_t (us_fail)(struct us_error *err, int32_t code, const char *format, ...)
{
	if (err) {
		us_error_clear(err);
		err->code = code;
		err->retryable = code == US_E_BUSY || code == US_E_NETWORK || code == US_E_TIMEOUT;
		va_list args;
		va_start(args, format);
		set_message(err, format, args);
		va_end(args);
	}
	return code;
}

static int32_t code_of_errno(int sys_errno)
{
	switch (sys_errno) {
	case EACCES:
	case EPERM:
		return US_E_ACCESS;
	case ENOENT:
	case ENOTDIR:
		return US_E_NOTFOUND;
	case ENOMEM:
		return US_E_NOMEM;
	case ENOSPC:
	case EDQUOT:
		return US_E_NOSPACE;
	case EAGAIN:
		return US_E_BUSY;
	default:
		return US_E_IO;
	}
}

int32_t (us_fail_errno)(struct us_error *err, int sys_errno, const char *format, ...)
{
	int32_t code = code_of_errno(sys_errno);
	if (err) {
		us_error_clear(err);
		err->code = code;
		err->sys_errno = sys_errno;
		va_list args;
		va_start(args, format);
		set_message(err, format, args);
		va_end(args);
		size_t len = strlen(err->message);
		char reason[96];
		(void)snprintf(err->message + len, sizeof(err->message) - len, ": %s",
			       strerror_r(sys_errno, reason, sizeof(reason)));
	}
	return code;
}

int32_t (us_fail_nomem)(struct us_error *err)
{
	return us_fail(err, US_E_NOMEM, "out of memory");
}
