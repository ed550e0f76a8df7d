/* SPDX-License-Identifier: Apache-2.0 */
/* Messages can be logged, shown and put into JSON, whatever was put into them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>

#include "../../csrc/base/error.h"

static void test_one_line_of_utf8(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_fail(&err, US_E_CONFIG, "endpoint: %s", "http://h\r\nX: \x7f\xff\t"),
			 US_E_CONFIG);
	assert_string_equal(err.message, "endpoint: http://h??X: ???");
	(void)us_fail(&err, US_E_HTTP, "%.3s", "h\xc3\xa9\xc3\xa9");
	assert_string_equal(err.message, "h\xc3\xa9");
	(void)us_fail(&err, US_E_HTTP, "%.2s|", "h\xc3\xa9");
	assert_string_equal(err.message, "h?|");
	(void)us_fail_errno(&err, EIO, "\xf0\x9f\x98\x80 %s", "\xed\xa0\x80");
	assert_string_equal(err.message, "\xf0\x9f\x98\x80 ???: Input/output error");
}

static void test_cut(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	char text[2 * US_ERROR_MESSAGE_LEN];
	for (size_t i = 0; i + 2 < sizeof(text); i += 2) {
		memcpy(text + i, "\xc3\xa9", 3);
	}
	(void)us_fail(&err, US_E_IO, "%s", text);
	assert_int_equal(strlen(err.message), US_ERROR_MESSAGE_LEN - 1);
	assert_memory_equal(err.message, text, US_ERROR_MESSAGE_LEN - 2);
	assert_int_equal(err.message[US_ERROR_MESSAGE_LEN - 2], '?');
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_line_of_utf8),
		cmocka_unit_test(test_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
