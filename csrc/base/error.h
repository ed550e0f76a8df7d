/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_ERROR_H
#define US_BASE_ERROR_H

#include "../include/ultrasimple.h"

/*
 * Filling a struct us_error. ERR may be NULL everywhere: the code alone is then
 * returned. Each function returns CODE, so that callers write
 *
 *	return us_fail(err, US_E_CONFIG, "discovery_pattern: %s: ...", value);
 *
 * Messages name the thing, the value and what would be right, never a secret. They
 * are one line of valid UTF-8: any other byte becomes `?`. What is too long for
 * us_error.message is cut.
 */
int32_t us_fail(struct us_error *err, int32_t code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The same for a failed system call: appends ": " and the text of SYS_ERRNO,
 * stores it, and chooses the code from it (EACCES, EPERM: US_E_ACCESS; ENOENT:
 * US_E_NOTFOUND; ENOMEM: US_E_NOMEM; ENOSPC, EDQUOT: US_E_NOSPACE; EAGAIN:
 * US_E_BUSY; all others: US_E_IO). */
int32_t us_fail_errno(struct us_error *err, int sys_errno, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

int32_t us_fail_nomem(struct us_error *err);

#ifdef US_ANALYZE /* by tools that see one file at a time: a failure is never 0 */
static inline int32_t us_failure(int32_t code)
{
	if (code >= 0) {
		__builtin_unreachable();
	}
	return code;
}
#define us_fail(...) us_failure(us_fail(__VA_ARGS__))
#define us_fail_errno(...) us_failure(us_fail_errno(__VA_ARGS__))
#define us_fail_nomem(err) us_failure(us_fail_nomem(err))
#endif

/* Empties ERR but for its size (NULL is accepted). */
void us_error_clear(struct us_error *err);

/* Initializer of a us_error on the stack. */
#define US_ERROR_INIT { .struct_size = sizeof(struct us_error) }

/* Programmer errors: checked in debug, test and fuzz builds only. */
#ifdef US_DEBUG
#include <stdlib.h>
#define US_ASSERT(condition) ((condition) ? (void)0 : abort())
#else
#define US_ASSERT(condition) ((void)sizeof(condition))
#endif

#endif
