/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool's limit against servers that are models, by a clock in hand: everything is
 * repeatable. Each is run twice, with the control and with a fixed limit, through the calls
 * that the pool makes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/store/concurrency.h"

/* ---------------------------------------------------------------- the model */

struct model {
	double network_ms, network_spread; /* there and back; sigma of its logarithm */
	double connect_ms;                 /* the first time that so many are under way */
	int workers;                       /* 0: as many as there are requests */
	double work_ms, work_spread;       /* of a worker, for each request */
	double link_bytes_per_ms;          /* of all together; 0: no limit */
	int allowed;                       /* more at once are refused; 0: any */
	int has_large;                     /* every tenth object is 100 times as large */
	int burst;                         /* so many puts each second; 0: always more */
	int64_t slow_from_s, slow_to_s;    /* the work takes ten times as long */
};

struct request {
	int64_t start_ns, end_ns;
	uint64_t len;
	uint32_t ticket;
	int is_served, is_refused;
};

struct run {
	const struct model *model;
	struct us_concurrency control;
	uint32_t fixed; /* the limit; 0: the control's */
	struct request requests[US_CONCURRENCY_MAX];
	uint32_t count, connection_count, allowed_count;
	uint64_t waiting, next_second;
	int64_t now_ns, link_ns, worker_ns[64];
	uint64_t seed;
	/* what came of it */
	uint64_t done, refused, bytes;
	double latency_ms, limit_seconds;
};

static double random_unit(struct run *run)
{
	run->seed ^= run->seed << 13;
	run->seed ^= run->seed >> 7;
	run->seed ^= run->seed << 17;
	return (double)((run->seed >> 11) + 1) / 9007199254740993.0;
}

/* Lognormal, with this mean. */
static double spread(struct run *run, double mean, double sigma)
{
	double normal = sqrt(-2 * log(random_unit(run))) * cos(6.28318530718 * random_unit(run));
	return mean * exp(sigma * normal - sigma * sigma / 2);
}

static uint32_t limit_of(const struct run *run)
{
	return run->fixed ? run->fixed : run->control.limit;
}

static void start_request(struct run *run)
{
	const struct model *model = run->model;
	struct request *request = &run->requests[run->count++];
	double ms = spread(run, model->network_ms, model->network_spread);
	if (run->count > run->connection_count) {
		run->connection_count = run->count;
		ms += model->connect_ms;
	}
	int is_large = model->has_large && random_unit(run) < 0.1;
	*request = (struct request){ .start_ns = run->now_ns, .len = is_large ? 819200 : 8192 };
	request->is_refused = model->allowed && (int)run->allowed_count >= model->allowed;
	run->allowed_count += !request->is_refused;
	request->end_ns = run->now_ns + (int64_t)(ms * 1e6);
	request->ticket = us_concurrency_started(&run->control, run->now_ns);
}

/* REQUEST has arrived: when it will have been served. */
static void serve(struct run *run, struct request *request)
{
	const struct model *model = run->model;
	request->is_served = 1;
	if (model->workers > 0 && !request->is_refused) {
		int64_t *free_ns = &run->worker_ns[0];
		for (int i = 1; i < model->workers; i++) {
			free_ns = run->worker_ns[i] < *free_ns ? &run->worker_ns[i] : free_ns;
		}
		int64_t second = run->now_ns / US_NS_PER_S;
		int is_slow = second >= model->slow_from_s && second < model->slow_to_s;
		double ms = spread(run, model->work_ms, model->work_spread) * (is_slow ? 10 : 1);
		*free_ns = (*free_ns > run->now_ns ? *free_ns : run->now_ns) + (int64_t)(ms * 1e6);
		request->end_ns = *free_ns;
	}
	if (model->link_bytes_per_ms > 0) {
		int64_t from_ns = run->link_ns > request->end_ns ? run->link_ns : request->end_ns;
		run->link_ns =
			from_ns + (int64_t)((double)request->len / model->link_bytes_per_ms * 1e6);
		request->end_ns = run->link_ns;
	}
}

static void end_request(struct run *run, struct request *request)
{
	if (request->is_refused) {
		run->refused++;
		us_concurrency_throttled(&run->control, request->ticket);
	} else {
		run->allowed_count--;
		run->done++;
		run->bytes += request->len;
		run->latency_ms += (double)(run->now_ns - request->start_ns) / 1e6;
		us_concurrency_succeeded(&run->control, request->ticket, request->len, run->now_ns);
	}
	*request = run->requests[--run->count];
}

static void advance(struct run *run, int64_t to_ns)
{
	run->limit_seconds += limit_of(run) * (double)(to_ns - run->now_ns) / 1e9;
	run->now_ns = to_ns;
}

/* One thing that happens. */
static void step(struct run *run)
{
	while (run->count < limit_of(run) && run->waiting > 0) {
		run->waiting -= run->model->burst > 0;
		start_request(run);
	}
	if (run->count < limit_of(run)) {
		us_concurrency_starved(&run->control, run->now_ns);
	}
	struct request *next = NULL;
	for (uint32_t i = 0; i < run->count; i++) {
		struct request *request = &run->requests[i];
		next = !next || request->end_ns < next->end_ns ? request : next;
	}
	int64_t next_ns = next ? next->end_ns : INT64_MAX;
	int64_t look_ns = us_concurrency_due_ns(&run->control);
	int64_t burst_ns = run->model->burst ? (int64_t)run->next_second * US_NS_PER_S : INT64_MAX;
	if (burst_ns <= next_ns && burst_ns <= look_ns) {
		advance(run, burst_ns);
		run->waiting += (uint64_t)run->model->burst;
		run->next_second++;
	} else if (look_ns <= next_ns) {
		advance(run, look_ns > run->now_ns ? look_ns : run->now_ns);
		us_concurrency_look(&run->control, run->now_ns);
	} else if (next) {
		advance(run, next_ns);
		if (!next->is_served) {
			serve(run, next);
		} else {
			end_request(run, next);
		}
	}
}

static void begin_run(struct run *run, const struct model *model, uint32_t max, uint32_t fixed)
{
	*run = (struct run){
		.model = model,
		.fixed = fixed,
		.seed = 88172645463325252,
		.waiting = model->burst == 0,
	};
	us_concurrency_init(&run->control, max);
}

static void run_until(struct run *run, int64_t end_ns)
{
	run->done = run->refused = run->bytes = 0;
	run->latency_ms = run->limit_seconds = 0;
	while (run->now_ns < end_ns) {
		step(run);
	}
}

/* --------------------------------------------------------------------- tests */

#define SECONDS 30
#define MAX 100

struct outcome {
	double done, latency, limit; /* relative to the fixed one's; the mean */
	uint64_t refused;
};

static struct outcome compare(const char *name, const struct model *model, uint32_t max)
{
	static struct run control, fixed;
	begin_run(&fixed, model, max, max);
	begin_run(&control, model, max, 0);
	run_until(&fixed, SECONDS * US_NS_PER_S);
	run_until(&control, SECONDS * US_NS_PER_S);
	struct outcome outcome = {
		.done = (double)control.done / (double)fixed.done,
		.latency = control.latency_ms / (double)control.done /
			   (fixed.latency_ms / (double)fixed.done),
		.limit = control.limit_seconds / SECONDS,
		.refused = control.refused,
	};
	print_message("%s: %.3f of the puts, %.3f of the latency, %.1f under way, %llu refused\n",
		      name, outcome.done, outcome.latency, outcome.limit,
		      (unsigned long long)outcome.refused);
	return outcome;
}

/* Saturated by a few: as fast, with a part of the latency. */
static void test_local_server(void **state)
{
	(void)state;
	const struct model model = { .network_ms = 0.3,
				     .network_spread = 0.3,
				     .workers = 2,
				     .work_ms = 0.6,
				     .work_spread = 0.5 };
	struct outcome outcome = compare("two processors", &model, MAX);
	assert_true(outcome.done > 0.95 && outcome.latency < 0.3 && outcome.limit < 16);
	const struct model farther = { .network_ms = 2,
				       .network_spread = 0.5,
				       .workers = 2,
				       .work_ms = 0.6,
				       .work_spread = 0.5 };
	outcome = compare("two processors, 2 ms away", &farther, MAX);
	assert_true(outcome.done > 0.95 && outcome.latency < 0.5 && outcome.limit < 40);
	outcome = compare("of up to 400", &farther, 400);
	assert_true(outcome.done > 0.95 && outcome.latency < 0.1 && outcome.limit < 40);
}

/* Never enough: up to the limit, whatever the answers' times. */
static void test_scaling_server(void **state)
{
	(void)state;
	static const double spreads[] = { 0, 0.5, 1 };
	for (size_t i = 0; i < 3; i++) {
		const struct model model = { .network_ms = 50,
					     .network_spread = spreads[i],
					     .connect_ms = 150 };
		assert_true(compare("50 ms away", &model, MAX).done > 0.92);
	}
	const struct model slow = { .network_ms = 2000, .network_spread = 0.5 };
	assert_true(compare("2 s away", &slow, MAX).done > 0.9);
	const struct model far_away = { .network_ms = 200, .network_spread = 0.5 };
	assert_true(compare("of up to 400", &far_away, 400).done > 0.92);
}

/* From nothing to 100, and to 1,000. */
static void test_rise(void **state)
{
	(void)state;
	static struct run run;
	const struct model model = { .network_ms = 50, .network_spread = 0.5, .connect_ms = 150 };
	begin_run(&run, &model, MAX, 0);
	assert_int_equal(run.control.limit, 8);
	run_until(&run, US_NS_PER_S * 3 / 4);
	assert_int_equal(run.control.limit, MAX);
	begin_run(&run, &model, US_CONCURRENCY_MAX, 0);
	run_until(&run, US_NS_PER_S * 5 / 4);
	assert_int_equal(run.control.limit, US_CONCURRENCY_MAX);
	/* A server that does not answer at all. */
	const struct model dead = { .network_ms = 1e6 };
	begin_run(&run, &dead, MAX, 0);
	run_until(&run, 2 * US_NS_PER_S);
	assert_int_equal(run.count, MAX);
}

static void test_some_more_bring_more(void **state)
{
	(void)state;
	const struct model slow = { .network_ms = 50,
				    .network_spread = 0.5,
				    .workers = 1,
				    .work_ms = 2.5,
				    .work_spread = 0.5 };
	struct outcome outcome = compare("400 a second, 50 ms away", &slow, MAX);
	assert_true(outcome.done > 0.95 && outcome.limit < 90);
	const struct model wide = { .network_ms = 50,
				    .network_spread = 0.5,
				    .workers = 40,
				    .work_ms = 50,
				    .work_spread = 0.5 };
	assert_true(compare("40 workers, 50 ms away", &wide, MAX).done > 0.92);
}

static void test_large_and_small(void **state)
{
	(void)state;
	const struct model link = {
		.network_ms = 20, .network_spread = 0.5, .link_bytes_per_ms = 10000, .has_large = 1
	};
	assert_true(compare("10 MB/s, mixed", &link, MAX).done > 0.92);
	const struct model far = { .network_ms = 50, .network_spread = 0.7, .has_large = 1 };
	assert_true(compare("50 ms away, mixed", &far, MAX).done > 0.92);
	const struct model local = { .network_ms = 0.3,
				     .workers = 2,
				     .work_ms = 0.6,
				     .work_spread = 0.5,
				     .link_bytes_per_ms = 300000,
				     .has_large = 1 };
	assert_true(compare("two processors, mixed", &local, MAX).done > 0.92);
}

/* A few at a time: no verdict on what never lasted, so what was there stays. */
static void test_few_puts(void **state)
{
	(void)state;
	const struct model few = { .network_ms = 50, .network_spread = 0.5, .burst = 50 };
	struct outcome outcome = compare("50 a second", &few, MAX);
	assert_true(outcome.done > 0.99);
	static struct run run;
	begin_run(&run, &few, MAX, 0);
	run_until(&run, 10 * US_NS_PER_S);
	assert_true(run.control.limit >= 64);
}

static void test_throttling_server(void **state)
{
	(void)state;
	const struct model three = { .network_ms = 20, .network_spread = 0.2, .allowed = 3 };
	struct outcome outcome = compare("3 allowed", &three, MAX);
	assert_true(outcome.done > 0.95 && outcome.limit < 3.2 && outcome.refused < 100);
	const struct model forty = { .network_ms = 20, .network_spread = 0.2, .allowed = 40 };
	outcome = compare("40 allowed", &forty, MAX);
	assert_true(outcome.done > 0.75 && outcome.limit < 40 && outcome.refused < 1000);
}

/* Once slow: what was learned then does not stay. */
static void test_server_recovers(void **state)
{
	(void)state;
	static struct run control, fixed;
	const struct model model = { .network_ms = 20,
				     .network_spread = 0.5,
				     .workers = 16,
				     .work_ms = 5,
				     .work_spread = 0.5,
				     .slow_from_s = 10,
				     .slow_to_s = 40 };
	begin_run(&control, &model, MAX, 0);
	begin_run(&fixed, &model, MAX, MAX);
	run_until(&control, 45 * US_NS_PER_S);
	run_until(&fixed, 45 * US_NS_PER_S);
	run_until(&control, 75 * US_NS_PER_S);
	run_until(&fixed, 75 * US_NS_PER_S);
	print_message("after it was slow: %.3f\n", (double)control.done / (double)fixed.done);
	assert_true((double)control.done > 0.9 * (double)fixed.done);
}

/* Answers to requests that were under way when it was halved do not halve it again; the
 * ceiling is probed once in 256 successes. */
static void test_back_off(void **state)
{
	(void)state;
	struct us_concurrency control;
	uint32_t tickets[8];
	us_concurrency_init(&control, 8);
	for (size_t i = 0; i < 8; i++) {
		tickets[i] = us_concurrency_started(&control, 0);
	}
	for (size_t i = 0; i < 6; i++) {
		us_concurrency_throttled(&control, tickets[i]);
	}
	assert_int_equal(control.limit, 4);
	us_concurrency_failed(&control, tickets[6], 0);
	us_concurrency_throttled(&control, tickets[7]);
	assert_int_equal(control.limit, 4);
	assert_int_equal(control.in_flight, 0);
	for (int i = 0; i < 4 + 5 + 6; i++) {
		us_concurrency_succeeded(&control, us_concurrency_started(&control, 0), 1, 0);
	}
	assert_int_equal(control.limit, 7);
	for (int i = 0; i < 256; i++) {
		assert_int_equal(control.limit, 7);
		us_concurrency_succeeded(&control, us_concurrency_started(&control, 0), 1, 0);
	}
	assert_int_equal(control.limit, 8);
	for (int i = 0; i < 10; i++) {
		us_concurrency_throttled(&control, us_concurrency_started(&control, 0));
	}
	assert_int_equal(control.limit, 1);
}

static void test_every_maximum(void **state)
{
	(void)state;
	static struct run run;
	const struct model model = { .network_ms = 1, .network_spread = 0.5 };
	for (uint32_t max = 1; max <= US_CONCURRENCY_MAX; max = max < 20 ? max + 1 : max * 3 / 2) {
		begin_run(&run, &model, max, 0);
		assert_true(run.control.limit == (max < 8 ? max : 8));
		run_until(&run, 2 * US_NS_PER_S);
		assert_in_range(run.control.limit, 1, max);
		assert_true(run.control.level_count <= US_CONCURRENCY_LEVELS);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_local_server),
		cmocka_unit_test(test_scaling_server),
		cmocka_unit_test(test_rise),
		cmocka_unit_test(test_some_more_bring_more),
		cmocka_unit_test(test_large_and_small),
		cmocka_unit_test(test_few_puts),
		cmocka_unit_test(test_throttling_server),
		cmocka_unit_test(test_server_recovers),
		cmocka_unit_test(test_back_off),
		cmocka_unit_test(test_every_maximum),
	};
	return cmocka_run_group_tests_name("concurrency", tests, NULL, NULL);
}
