/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks and the two spellings of a time. The calendar arithmetic is Howard
 * Hinnant's days_from_civil (chrono-compatible low-level date algorithms): no
 * locale, no time zone, no static buffer.
 */
#include "clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

/* Month 1..12, day 1..31, UTC. */
struct civil {
	int32_t year, month, day, hour, minute, second;
};

static int64_t read_clock(clockid_t id)
{
	struct timespec now = { 0 };
	(void)clock_gettime(id, &now); /* cannot fail for these clocks */
	return (int64_t)now.tv_sec * US_NS_PER_S + now.tv_nsec;
}

int64_t us_clock_wall_ns(void)
{
	return read_clock(CLOCK_REALTIME);
}

int64_t us_clock_mono_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

int64_t us_clock_boot_ns(void)
{
	return read_clock(CLOCK_BOOTTIME);
}

int64_t us_clock_file_ns(void)
{
	return read_clock(CLOCK_REALTIME_COARSE);
}

void us_clock_sleep_ns(int64_t wait_ns)
{
	int64_t end_ns = us_clock_mono_ns() + wait_ns;
	struct timespec end = { .tv_sec = end_ns / US_NS_PER_S, .tv_nsec = end_ns % US_NS_PER_S };
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR) {
	}
}

static int64_t days_from_civil(int32_t year, int32_t month, int32_t day)
{
	int64_t y = year - (month <= 2);
	int64_t era = (y >= 0 ? y : y - 399) / 400;
	int64_t year_of_era = y - era * 400;
	int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
	return era * 146097 + day_of_era - 719468;
}

static struct civil civil_from_s(int64_t time_s)
{
	int64_t days = time_s / 86400;
	int64_t second_of_day = time_s % 86400;
	if (second_of_day < 0) {
		second_of_day += 86400;
		days--;
	}
	int64_t z = days + 719468;
	int64_t era = (z >= 0 ? z : z - 146096) / 146097;
	int64_t day_of_era = z - era * 146097;
	int64_t year_of_era =
		(day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	int64_t day_of_year =
		day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int64_t mp = (5 * day_of_year + 2) / 153;
	int64_t month = mp < 10 ? mp + 3 : mp - 9;
	return (struct civil){
		.year = (int32_t)(year_of_era + era * 400 + (month <= 2)),
		.month = (int32_t)month,
		.day = (int32_t)(day_of_year - (153 * mp + 2) / 5 + 1),
		.hour = (int32_t)(second_of_day / 3600),
		.minute = (int32_t)(second_of_day / 60 % 60),
		.second = (int32_t)(second_of_day % 60),
	};
}

/* 0, or -1 where the date does not exist or a field is out of range. */
static int seconds_from_civil(const struct civil *c, int64_t *ret_s)
{
	if (c->month < 1 || c->month > 12 || c->day < 1 || c->day > 31 || c->hour > 23 ||
	    c->minute > 59 || c->second > 59) {
		return -1;
	}
	int64_t s = days_from_civil(c->year, c->month, c->day) * 86400 + (int64_t)c->hour * 3600 +
		    (int64_t)c->minute * 60 + c->second;
	struct civil back = civil_from_s(s);
	if (back.month != c->month || back.day != c->day) {
		return -1;
	}
	*ret_s = s;
	return 0;
}

static int parse_digits(const char *text, size_t count, int32_t *ret_value)
{
	int32_t value = 0;
	for (size_t i = 0; i < count; i++) {
		if (text[i] < '0' || text[i] > '9') {
			return -1;
		}
		value = value * 10 + (text[i] - '0');
	}
	*ret_value = value;
	return 0;
}

void us_time_name_format(uint32_t time_s, char ret_text[US_TIME_NAME_LEN + 1])
{
	struct civil c = civil_from_s(time_s);
	char text[64];
	(void)snprintf(text, sizeof(text), "%04d%02d%02dT%02d%02d%02dZ", c.year, c.month, c.day,
		       c.hour, c.minute, c.second);
	(void)snprintf(ret_text, US_TIME_NAME_LEN + 1, "%.16s", text);
}

int us_time_name_parse(const char *text, size_t len, uint32_t *ret_time_s)
{
	struct civil c;
	int64_t s;
	if (len != US_TIME_NAME_LEN || text[8] != 'T' || text[15] != 'Z' ||
	    parse_digits(text, 4, &c.year) || parse_digits(text + 4, 2, &c.month) ||
	    parse_digits(text + 6, 2, &c.day) || parse_digits(text + 9, 2, &c.hour) ||
	    parse_digits(text + 11, 2, &c.minute) || parse_digits(text + 13, 2, &c.second) ||
	    seconds_from_civil(&c, &s) || s < 0 || s > UINT32_MAX) {
		return -1;
	}
	*ret_time_s = (uint32_t)s;
	return 0;
}

void us_time_rfc3339_format(int64_t time_ns, char ret_text[US_TIME_RFC3339_LEN + 1])
{
	struct civil c = civil_from_s(time_ns / US_NS_PER_S);
	char text[96];
	(void)snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%09dZ", c.year, c.month,
		       c.day, c.hour, c.minute, c.second, (int)(time_ns % US_NS_PER_S));
	(void)snprintf(ret_text, US_TIME_RFC3339_LEN + 1, "%.30s", text);
}

int us_time_rfc3339_parse(const char *text, size_t len, int64_t *ret_time_ns)
{
	struct civil c;
	int64_t s;
	if (len < 20 || text[4] != '-' || text[7] != '-' || text[10] != 'T' || text[13] != ':' ||
	    text[16] != ':' || text[len - 1] != 'Z' || parse_digits(text, 4, &c.year) ||
	    parse_digits(text + 5, 2, &c.month) || parse_digits(text + 8, 2, &c.day) ||
	    parse_digits(text + 11, 2, &c.hour) || parse_digits(text + 14, 2, &c.minute) ||
	    parse_digits(text + 17, 2, &c.second) || seconds_from_civil(&c, &s) || s < 0 ||
	    s > INT64_MAX / US_NS_PER_S - 1) {
		return -1;
	}
	int32_t fraction = 0;
	size_t digit_count = len > 20 ? len - 21 : 0;
	if (len > 20 && (text[19] != '.' || digit_count < 1 || digit_count > 9 ||
			 parse_digits(text + 20, digit_count, &fraction))) {
		return -1;
	}
	for (size_t i = digit_count; i < 9; i++) {
		fraction *= 10;
	}
	*ret_time_ns = s * US_NS_PER_S + fraction;
	return 0;
}
