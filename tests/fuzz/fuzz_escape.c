/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names: escaping and back, names of objects, and times in texts. The input is one text;
 * its first byte also says how much room the escaped text has.
 */
#include "fuzz.h"

#include <time.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/base/escape.h"
#include "../../csrc/restore/catalog.h"

typedef size_t escape_fn(const char *text, size_t len, char *ret, size_t cap);

/* What ESCAPE makes of the text, with a NUL, having tried it with too little room first.
 * Freed by the caller. */
static char *check_escape(escape_fn *escape, const char *text, size_t len, size_t cap)
{
	size_t need = escape(text, len, NULL, 0);
	require(need >= len && need <= 3 * len);
	cap = cap < need ? cap : need;
	char *cut = calloc(1, cap + 1), *whole = malloc(need + 1), *back = malloc(need + 1);
	require(cut && whole && back);
	require(escape(text, len, cut, cap) == need && is_one_line(cut));
	require(escape(text, len, whole, need) == need);
	whole[need] = '\0';
	require(strlen(whole) == need && is_key_text(whole));
	require(strncmp(whole, cut, strlen(cut)) == 0);
	require(us_unescape(whole, need, back) == (int64_t)len && memcmp(back, text, len) == 0);
	free(cut);
	free(back);
	return whole;
}

static void check_component(const char *text, size_t len, size_t cap)
{
	uint32_t time_s;
	size_t prefix_len;
	char key[1024];
	char *escaped = check_escape(us_escape_component, text, len, cap);
	require(escaped[0] != '.');
	if (snprintf(key, sizeof(key), "k/%s", escaped) < (int)sizeof(key)) {
		require(!us_object_key_parse(key, strlen(key), &prefix_len, &time_s));
	}
	free(escaped);
}

/* Only one text unescapes to given bytes, but for the dots that a component may have
 * escaped. */
static void check_unescape(const char *text, size_t len)
{
	char *plain = malloc(len + 1);
	require(plain);
	int64_t plain_len = us_unescape(text, len, plain);
	if (plain_len >= 0) {
		char *again = check_escape(us_escape, plain, (size_t)plain_len, 0);
		const char *at = again;
		for (size_t i = 0; i < len; at++) {
			int is_dot = len - i >= 3 && memcmp(text + i, "%2E", 3) == 0;
			require(*at == (is_dot ? '.' : text[i]));
			i += is_dot ? 3 : 1;
		}
		require(*at == '\0');
		free(again);
	}
	free(plain);
}

static void check_show(const char *text, size_t len)
{
	char shown[US_ESCAPE_SHOW_LEN];
	require(us_escape_show(text, len, shown) == shown);
	require(memchr(shown, '\0', sizeof(shown)) && is_one_line(shown));
	require((shown[0] == '\0') == (len == 0));
}

static void check_object_key(const char *text, size_t len)
{
	uint32_t time_s;
	size_t prefix_len;
	if (!us_object_key_parse(text, len, &prefix_len, &time_s) || prefix_len > 1000) {
		return;
	}
	char prefix[1001], key[US_KEY_LEN_MAX + 1];
	memcpy(prefix, text, prefix_len);
	prefix[prefix_len] = '\0';
	us_object_key(prefix, time_s, key);
	require(strlen(prefix) < prefix_len || (strlen(key) == len && memcmp(key, text, len) == 0));
}

/* The C library knows the calendar, too. */
static int64_t seconds_of(int32_t year, int32_t month, int32_t day, int32_t hour, int32_t minute,
			  int32_t second)
{
	struct tm tm = { .tm_year = year - 1900,
			 .tm_mon = month - 1,
			 .tm_mday = day,
			 .tm_hour = hour,
			 .tm_min = minute,
			 .tm_sec = second };
	return timegm(&tm);
}

static void check_times(const char *text, size_t len)
{
	uint32_t time_s;
	int64_t time_ns, again_ns;
	char name[US_TIME_NAME_LEN + 1], rfc[US_TIME_RFC3339_LEN + 1];
	int32_t f[6];
	char zone[2];
	if (us_time_name_parse(text, len, &time_s) == 0) {
		us_time_name_format(time_s, name);
		require(len == US_TIME_NAME_LEN && memcmp(name, text, len) == 0);
		require(sscanf(name, "%4d%2d%2dT%2d%2d%2d%1s", &f[0], &f[1], &f[2], &f[3], &f[4],
			       &f[5], zone) == 7);
		require(seconds_of(f[0], f[1], f[2], f[3], f[4], f[5]) == (int64_t)time_s);
	}
	if (us_time_rfc3339_parse(text, len, &time_ns) == 0) {
		require(time_ns >= 0);
		us_time_rfc3339_format(time_ns, rfc);
		require(us_time_rfc3339_parse(rfc, strlen(rfc), &again_ns) == 0);
		require(again_ns == time_ns && memcmp(rfc, text, 19) == 0);
		require(sscanf(rfc, "%4d-%2d-%2dT%2d:%2d:%2d", &f[0], &f[1], &f[2], &f[3], &f[4],
			       &f[5]) == 6);
		require(seconds_of(f[0], f[1], f[2], f[3], f[4], f[5]) == time_ns / US_NS_PER_S);
	}
}

/* Every time has a name, and later ones sort behind. */
static void check_time_names(uint32_t a_s, uint32_t b_s)
{
	char a[US_TIME_NAME_LEN + 1], b[US_TIME_NAME_LEN + 1];
	uint32_t back_s;
	us_time_name_format(a_s, a);
	us_time_name_format(b_s, b);
	require(us_time_name_parse(a, strlen(a), &back_s) == 0 && back_s == a_s);
	require((strcmp(a, b) < 0) == (a_s < b_s) && (strcmp(a, b) == 0) == (a_s == b_s));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	size_t cap = input_byte(&in), len;
	char *text = input_bytes(&in, in.left, &len);
	free(check_escape(us_escape, text, len, cap));
	if (!memchr(text, '/', len)) {
		check_component(text, len, cap);
	}
	check_unescape(text, len);
	check_show(text, len);
	check_object_key(text, len);
	check_times(text, len);
	if (len >= 8) {
		uint32_t times[2];
		memcpy(times, text, sizeof(times));
		check_time_names(times[0], times[1]);
	}
	free(text);
	return 0;
}
