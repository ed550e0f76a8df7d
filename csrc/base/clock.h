/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_CLOCK_H
#define US_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define US_NS_PER_S INT64_C(1000000000)
#define US_NS_PER_MS INT64_C(1000000)

/* Wall clock (CLOCK_REALTIME) and monotonic clock, ns. */
int64_t us_clock_wall_ns(void);
int64_t us_clock_mono_ns(void);
/* The monotonic clock that goes on while the machine is suspended (CLOCK_BOOTTIME), ns. */
int64_t us_clock_boot_ns(void);
/* The clock the kernel stamps files with (CLOCK_REALTIME_COARSE), ns. Never
 * ahead of us_clock_wall_ns; compare it with ctimes, not the precise clock. */
int64_t us_clock_file_ns(void);

/* Sleeps WAIT_NS by the monotonic clock, through signals. */
void us_clock_sleep_ns(int64_t wait_ns);

/* "20060102T150405Z" and its NUL: the time in an object's name, UTC. TIME_S is
 * seconds since 1970, 0..UINT32_MAX. */
#define US_TIME_NAME_LEN 16
void us_time_name_format(uint32_t time_s, char ret_text[US_TIME_NAME_LEN + 1]);
/* 0, or -1 if the LEN bytes are not exactly such a time (a date that does not
 * exist included). */
int us_time_name_parse(const char *text, size_t len, uint32_t *ret_time_s);

/* RFC 3339 with nanoseconds: "2006-01-02T15:04:05.123456789Z" and its NUL.
 * TIME_NS is 0 or more. */
#define US_TIME_RFC3339_LEN 30
void us_time_rfc3339_format(int64_t time_ns, char ret_text[US_TIME_RFC3339_LEN + 1]);
/* Takes exactly that form, "Z" only, with 0 to 9 digits of fraction. 0 or -1. */
int us_time_rfc3339_parse(const char *text, size_t len, int64_t *ret_time_ns);

#endif
