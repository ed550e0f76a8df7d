/* SPDX-License-Identifier: Apache-2.0 */
/* The limit of bandwidth, by a clock in hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/store/rate.h"

#define START_NS (7 * US_NS_PER_S)

static void test_no_limit(void **state)
{
	(void)state;
	struct us_rate rate;
	us_rate_init(&rate, 0);
	us_rate_charge(&rate, UINT64_MAX, START_NS);
	assert_true(us_rate_may_send(&rate, 0));
	assert_int_equal(us_rate_piece_len(&rate, SIZE_MAX), SIZE_MAX);
}

/* Sends as soon as it may, each TICK_NS; returns how many bytes in SECONDS. */
static uint64_t send_for(struct us_rate *rate, uint64_t len, int64_t tick_ns, int64_t seconds)
{
	uint64_t sent = 0;
	for (int64_t at_ns = 0; at_ns < seconds * US_NS_PER_S; at_ns += tick_ns) {
		while (us_rate_may_send(rate, START_NS + at_ns)) {
			us_rate_charge(rate, len, START_NS + at_ns);
			sent += len;
		}
	}
	return sent;
}

static void test_average(void **state)
{
	(void)state;
	/* Whatever the length, and with a clock that is late: the limit, plus one object and
	 * the credit of 0.1 s. */
	static const uint64_t lens[] = { 1, 100, 8192, 999999, 5000000, 64 << 20 };
	static const int64_t ticks_ms[] = { 1, 7, 90 };
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		for (size_t k = 0; k < sizeof(ticks_ms) / sizeof(ticks_ms[0]); k++) {
			struct us_rate rate;
			us_rate_init(&rate, 1000000);
			uint64_t sent = send_for(&rate, lens[i], ticks_ms[k] * US_NS_PER_MS, 100);
			assert_in_range(sent, 100 * 1000000 - 100000,
					100 * 1000000 + lens[i] + 100000);
		}
	}
}

static void test_large_one_goes_first_and_costs(void **state)
{
	(void)state;
	struct us_rate rate;
	us_rate_init(&rate, 1000);
	assert_true(us_rate_may_send(&rate, START_NS));
	us_rate_charge(&rate, 10000, START_NS);
	assert_int_equal(rate.due_ns, START_NS - US_NS_PER_S / 10 + 10 * US_NS_PER_S);
	assert_false(us_rate_may_send(&rate, rate.due_ns - 1));
	assert_true(us_rate_may_send(&rate, rate.due_ns));
	us_rate_charge(&rate, 500, START_NS); /* sent again: counts, though it was not asked */
	assert_int_equal(rate.due_ns, START_NS - US_NS_PER_S / 10 + 10500 * US_NS_PER_MS);
}

static void test_idle_time_is_lost(void **state)
{
	(void)state;
	struct us_rate rate;
	us_rate_init(&rate, 1000);
	us_rate_charge(&rate, 1000, START_NS);
	int64_t later_ns = START_NS + 3600 * US_NS_PER_S;
	us_rate_charge(&rate, 1000, later_ns);
	assert_int_equal(rate.due_ns, later_ns + US_NS_PER_S * 9 / 10);
}

static void test_pieces(void **state)
{
	(void)state;
	struct us_rate rate;
	us_rate_init(&rate, 1000);
	assert_int_equal(us_rate_piece_len(&rate, 16384), 250);
	assert_int_equal(us_rate_piece_len(&rate, 20), 20);
	us_rate_init(&rate, 1);
	assert_int_equal(us_rate_piece_len(&rate, 16384), 1);
	us_rate_init(&rate, UINT64_MAX);
	assert_int_equal(rate.bytes_per_s, INT64_MAX); /* curl takes no more */
	assert_int_equal(us_rate_piece_len(&rate, 16384), 16384);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_limit),
		cmocka_unit_test(test_average),
		cmocka_unit_test(test_large_one_goes_first_and_costs),
		cmocka_unit_test(test_idle_time_is_lost),
		cmocka_unit_test(test_pieces),
	};
	return cmocka_run_group_tests_name("rate", tests, NULL, NULL);
}
