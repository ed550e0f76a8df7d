/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <wchar.h>
#include <locale.h>

#include "../../csrc/base/escape.h"
#include "../../csrc/base/utf8.h"
#include "gen_pattern.h"

struct sample {
	const char *raw, *escaped;
};

static void check(const struct sample *s, size_t (*escape)(const char *, size_t, char *, size_t))
{
	char text[1024], back[1024];
	size_t len = escape(s->raw, strlen(s->raw), text, sizeof(text) - 1);
	assert_true(len < sizeof(text));
	text[len] = '\0';
	assert_string_equal(text, s->escaped);
	assert_int_equal(us_unescape(text, len, back), (int64_t)strlen(s->raw));
	assert_memory_equal(back, s->raw, strlen(s->raw));
}

static void test_table(void **state)
{
	(void)state;
	static const struct sample samples[] = {
		{ "", "" },
		{ "plain/path.db", "plain/path.db" },
		{ "100%", "100%25" },
		{ "a\\b", "a%5Cb" },
		{ "new\nline\ttab\x7F\x01", "new%0Aline%09tab%7F%01" },
		{ "quote\"'<>&", "quote\"'<>&" },
		{ "h\xC3\xA9h\xC3\xA9", "h\xC3\xA9h\xC3\xA9" },
		{ "\xC2\x80", "\xC2\x80" },                             /* C1 control: stays */
		{ "\xEF\xBF\xBE|\xEF\xBF\xBF", "%EF%BF%BE|%EF%BF%BF" }, /* U+FFFE, U+FFFF */
		{ "\xEF\xBF\xBD", "\xEF\xBF\xBD" },
		{ "\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80" },
		{ "\xC3", "%C3" },
		{ "\xC3(", "%C3(" },
		{ "\xA9", "%A9" },
		{ "\xC0\xAF", "%C0%AF" },               /* overlong */
		{ "\xED\xA0\x80", "%ED%A0%80" },        /* surrogate */
		{ "\xF4\x90\x80\x80", "%F4%90%80%80" }, /* above U+10FFFF */
		{ "\xE2\x82", "%E2%82" },               /* cut off */
		{ "\xFF\xFE", "%FF%FE" },
		{ ".", "." },
		{ "..", ".." },
	};
	for (size_t i = 0; i < GEN_COUNT(samples); i++) {
		check(&samples[i], us_escape);
	}
}

static void test_component_table(void **state)
{
	(void)state;
	static const struct sample samples[] = {
		{ ".", "%2E" },
		{ "..", "%2E%2E" },
		{ "...", "%2E.." },
		{ ".y", "%2Ey" },
		{ ".hidden.db", "%2Ehidden.db" },
		{ "a.b", "a.b" },
		{ "a.", "a." },
		{ "20060102T150405Z.db.lz4", "20060102T150405Z%2Edb.lz4" },
		{ "99999999T999999Z.db.lz4", "99999999T999999Z%2Edb.lz4" },
		{ "20060102T150405Z.db.lz", "20060102T150405Z.db.lz" },
		{ "20060102T150405Z.db.lz4x", "20060102T150405Z.db.lz4x" },
		{ "20060102t150405Z.db.lz4", "20060102t150405Z.db.lz4" },
	};
	for (size_t i = 0; i < GEN_COUNT(samples); i++) {
		check(&samples[i], us_escape_component);
	}
}

static void test_unescape_refuses(void **state)
{
	(void)state;
	static const char *const texts[] = {
		"%",       "%2",        "a%2",          "%zz", "%2e",  "%41",          "%2F",
		"%C3%A9",  "%0a",       "\\",           "\n",  "\xFF", "\xC3\xA9\xA9", "%C3\xA9",
		"\xC3%A9", "%EF%BF%BD", "\xEF\xBF\xBE", "%20", "%c3",
	};
	for (size_t i = 0; i < GEN_COUNT(texts); i++) {
		char back[64];
		assert_int_equal(us_unescape(texts[i], strlen(texts[i]), back), -1);
	}
	char back[64];
	assert_int_equal(us_unescape("%00a", 4, back), 2);
	assert_memory_equal(back, "\0a", 2);
	assert_int_equal(us_unescape("a%2Eb", 5, back), 3);
}

static void test_short_buffer(void **state)
{
	(void)state;
	char text[16];
	memset(text, '#', sizeof(text));
	assert_int_equal(us_escape("a\xC3\xA9\nb", 5, text, 4), 7);
	assert_memory_equal(text, "a\xC3\xA9###", 6); /* never half an escape, nothing behind it */
	assert_int_equal(us_escape("\n", 1, NULL, 0), 3);
}

/* Whatever bytes: the way back is exact, and no other text leads there. */
static void test_random_bytes(void **state)
{
	(void)state;
	for (int round = 0; round < 200000; round++) {
		char raw[24], text[3 * sizeof(raw)], back[sizeof(text)];
		size_t len = gen_below(sizeof(raw) + 1);
		for (size_t i = 0; i < len; i++) {
			raw[i] = (char)(gen_below(2)
						? gen_below(256)
						: (uint32_t) "\xEF\xBF\xBE.%\xC3\xA9Z"[gen_below(
							  8)]);
		}
		size_t (*escape)(const char *, size_t, char *, size_t) =
			round % 2 ? us_escape : us_escape_component;
		size_t text_len = escape(raw, len, text, sizeof(text));
		assert_true(text_len <= 3 * len);
		assert_int_equal(us_unescape(text, text_len, back), (int64_t)len);
		assert_memory_equal(back, raw, len);
		for (size_t at = 0; at < text_len;) { /* valid UTF-8 without control bytes */
			uint32_t value;
			at += us_utf8_next(text + at, text_len - at, &value);
			assert_true(value < US_UTF8_BYTE && value >= 32 && value != 127);
		}
	}
}

static void test_random_texts(void **state)
{
	(void)state;
	static const char *const pieces[] = { "%",   "2",         "E",   "C3", "A9",   "%25",
					      "%2E", "%C3",       "%A9", "a",  "\xC3", "\xA9",
					      ".",   "%EF%BF%BE", "%0A", "F",  "%5C" };
	int accepted = 0;
	for (int round = 0; round < 200000; round++) {
		char text[64] = "", back[64], again[200], plain[64];
		for (uint32_t i = gen_below(7); i > 0; i--) {
			gen_append(text, sizeof(text), pieces[gen_below(GEN_COUNT(pieces))]);
		}
		int64_t len = us_unescape(text, strlen(text), back);
		if (len < 0) {
			continue;
		}
		accepted++;
		size_t plain_len = 0; /* the text, with each %2E a dot again */
		for (const char *p = text; *p; plain_len++) {
			int is_dot = strncmp(p, "%2E", 3) == 0;
			plain[plain_len] = is_dot ? '.' : *p;
			p += is_dot ? 3 : 1;
		}
		assert_int_equal(us_escape(back, (size_t)len, again, sizeof(again)), plain_len);
		assert_memory_equal(again, plain, plain_len);
	}
	assert_true(accepted > 1000);
}

/* The decoder against the C library's. */
static void test_utf8_oracle(void **state)
{
	(void)state;
	if (!setlocale(LC_CTYPE, "C.UTF-8")) {
		skip();
	}
	for (int round = 0; round < 300000; round++) {
		char bytes[5] = { 0 };
		for (size_t i = 0; i < 4; i++) {
			bytes[i] = (char)(gen_below(3) ? 0x80 + gen_below(0x80) : gen_below(256));
		}
		uint32_t value;
		size_t len = us_utf8_next(bytes, 4, &value);
		wchar_t wide = 0;
		mbstate_t shift = { 0 };
		size_t oracle = mbrtowc(&wide, bytes, 4, &shift);
		if (oracle == 0 || oracle > 4 || (uint32_t)wide > 0x10FFFF ||
		    ((uint32_t)wide >= 0xD800 && (uint32_t)wide <= 0xDFFF)) {
			assert_int_equal(len, 1);
		} else {
			assert_int_equal(len, oracle);
			assert_int_equal(value, (uint32_t)wide);
		}
		char again[4];
		assert_int_equal(us_utf8_put(value, again), len);
		assert_memory_equal(again, bytes, len);
	}
}

static void test_show(void **state)
{
	(void)state;
	char shown[US_ESCAPE_SHOW_LEN];
	assert_string_equal(us_escape_show("50%\\\n\xFF", 6, shown), "50%\\%0A%FF");
	char text[1000];
	memset(text, '\n', sizeof(text));
	(void)us_escape_show(text, sizeof(text), shown);
	assert_true(strlen(shown) < US_ESCAPE_SHOW_LEN);
	assert_string_equal(shown + strlen(shown) - 6, "%0A...");
	memset(text, 'x', sizeof(text));
	(void)us_escape_show(text, sizeof(text), shown);
	assert_int_equal(strlen(shown), US_ESCAPE_SHOW_LEN - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_component_table),
		cmocka_unit_test(test_unescape_refuses),
		cmocka_unit_test(test_short_buffer),
		cmocka_unit_test(test_random_bytes),
		cmocka_unit_test(test_random_texts),
		cmocka_unit_test(test_utf8_oracle),
		cmocka_unit_test(test_show),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
