/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least number of requests under way that gets out of the server what it can give.
 *
 * What more requests at once bring is measured, not derived from latency: with objects of
 * all sizes, connections that are set up on the way, and answers that take now 20 ms and now
 * 2 s, latency tells little, and a rule that goes by the least one seen (BBR's drain, Vegas,
 * gradient2 of Netflix's concurrency-limits, whose limit is known to drift) gives away
 * throughput. Taken over are slow start, that growth ends when throughput does (BBR), and
 * that no verdict is given on time in which there was less to do than might be (BBR).
 *
 * A level is a power of two, or the maximum. For each is remembered what it last brought:
 * work (bytes, and REQUEST_WORK for each request) per second. That is measured in rounds:
 * first all but an eighth of the requests that were under way when the level was reached
 * have to end, so that new connections are not held against it; then at least as many as
 * ROUND_COUNT_MIN and twice the level are counted, for at least ROUND_NS_MIN. Whenever fewer
 * are under way than may, for want of work, it begins anew. After each round:
 *
 *	1. the level wanted is the least that brings ENOUGH of what the best does;
 *	2. if either of the two above it, or the one below, is not known: that one next;
 *	3. after LOOK_ROUNDS rounds a neighbour, below and above in turn, for one round;
 *	4. else the level wanted.
 *
 * So it goes up from LEVEL_FIRST until twice as many, and four times as many, bring no more,
 * and then comes down. Until it has first come to rest, it waits no longer than RISE_NS_MAX
 * on a level: slow answers cost no more than half a second to 100. What was remembered is
 * mended by 3, and where a level suddenly brings MUCH_MORE than any did, what is above it is
 * forgotten and tried again. Noise makes some other level look better than it is, and
 * by 1 that is rather one with more requests: it errs on the fast side. What is lost is
 * 1 - ENOUGH, and one round in 2 * LOOK_ROUNDS below.
 *
 * Throttling (503, 429) goes first. It halves `cap`, which bounds the limit, once for all
 * requests that were under way at that moment (their tickets are older than the halving:
 * answers to them are echoes of the same overload). The limit at which that happened, less
 * one, becomes the ceiling: below it the cap rises by one per `cap` successes, at it only
 * after PROBE_SUCCESSES, because every probe too far costs somebody a failed upload. While
 * the cap is below the level, nothing is measured.
 */
#include "concurrency.h"

#include "../base/clock.h"

#define LEVEL_FIRST 3        /* 8 */
#define REQUEST_WORK 65536.0 /* what a request is beside its payload, in bytes of such */
#define ROUND_COUNT_MIN 32   /* requests */
#define ROUND_NS_MIN (100 * US_NS_PER_MS)
#define RISE_NS_MAX (150 * US_NS_PER_MS)
#define ENOUGH 0.95
#define MUCH_MORE 1.25
#define LOOK_ROUNDS 16
#define PROBE_SUCCESSES 256

static uint32_t level_limit(const struct us_concurrency *control, uint32_t level)
{
	return level + 1 == control->level_count ? control->max : UINT32_C(1) << level;
}

/* Levels at which the server has not been throttling; at least one. */
static uint32_t usable_count(const struct us_concurrency *control)
{
	uint32_t count = 1;
	while (count < control->level_count && level_limit(control, count) <= control->cap) {
		count++;
	}
	return count;
}

static void begin_level(struct us_concurrency *control, uint32_t level)
{
	uint32_t limit = level_limit(control, level);
	control->level = level;
	control->limit = limit < control->cap ? limit : control->cap;
	control->phase = US_CONCURRENCY_FILL;
	control->spent_ns = 0;
}

void us_concurrency_init(struct us_concurrency *control, uint32_t max)
{
	*control = (struct us_concurrency){
		.max = max, .cap = max, .ceiling = max, .level_count = 1, .is_rising = 1
	};
	while (UINT32_C(1) << (control->level_count - 1) < max) {
		control->level_count++;
	}
	begin_level(control,
		    control->level_count > LEVEL_FIRST ? LEVEL_FIRST : control->level_count - 1);
}

/* ---- rounds */

static void begin_round(struct us_concurrency *control, int64_t now_ns)
{
	control->phase = US_CONCURRENCY_WARM;
	control->warm_ns = now_ns;
	control->ended_count = 0;
	control->work = 0;
}

/* The least level that brings enough. */
static uint32_t pick_level(const struct us_concurrency *control, uint32_t count)
{
	double best = 0;
	uint32_t level = 0;
	for (uint32_t i = 0; i < count; i++) {
		best = control->rates[i] > best ? control->rates[i] : best;
	}
	while (level + 1 < count && control->rates[level] < best * ENOUGH) {
		level++;
	}
	return level;
}

static uint32_t next_level(struct us_concurrency *control)
{
	uint32_t count = usable_count(control);
	uint32_t level = pick_level(control, count);
	for (uint32_t i = level + 1; i < count && i <= level + 2; i++) {
		if (control->rates[i] == 0) {
			return i;
		}
	}
	if (level > 0 && control->rates[level - 1] == 0) {
		return level - 1;
	}
	if (++control->round_count < LOOK_ROUNDS) {
		return level;
	}
	control->round_count = 0;
	control->looks_down = !control->looks_down;
	if (control->looks_down) {
		return level > 0 ? level - 1 : level;
	}
	return level + 1 < count ? level + 1 : level;
}

static void note_rate(struct us_concurrency *control, double rate)
{
	double *known = &control->rates[control->level];
	double best = 0;
	for (uint32_t i = 0; i < control->level_count; i++) {
		best = control->rates[i] > best ? control->rates[i] : best;
	}
	*known = *known > 0 ? (*known + rate) / 2 : rate;
	for (uint32_t i = control->level + 1; i < control->level_count && rate > best * MUCH_MORE;
	     i++) {
		control->rates[i] = 0;
	}
}

static void end_round(struct us_concurrency *control, int64_t took_ns, int64_t now_ns)
{
	note_rate(control, control->work / (double)took_ns);
	uint32_t level = next_level(control);
	control->is_rising &= level > control->level;
	if (level == control->level) {
		begin_round(control, now_ns);
	} else {
		begin_level(control, level);
	}
}

static void measure(struct us_concurrency *control, uint64_t len, int64_t now_ns)
{
	uint32_t need = 2 * control->limit;
	control->work += (double)len + REQUEST_WORK;
	control->ended_count++;
	int64_t took_ns = now_ns - control->warm_ns;
	if (control->ended_count >= (need > ROUND_COUNT_MIN ? need : ROUND_COUNT_MIN) &&
	    took_ns >= ROUND_NS_MIN) {
		end_round(control, took_ns, now_ns);
	}
}

/* ---- backing off */

static void note_success(struct us_concurrency *control)
{
	uint32_t need = control->cap < control->ceiling ? control->cap : PROBE_SUCCESSES;
	if (control->cap == control->max || ++control->success_count < need) {
		return;
	}
	control->success_count = 0;
	control->cap++;
	control->ceiling = control->cap > control->ceiling ? control->cap : control->ceiling;
	if (control->limit < level_limit(control, control->level)) {
		begin_level(control, control->level);
	}
}

void us_concurrency_throttled(struct us_concurrency *control, uint32_t ticket)
{
	control->in_flight--;
	if (ticket < control->back_off_ticket) {
		return;
	}
	control->back_off_ticket = ++control->ticket;
	control->ceiling = control->limit > 1 ? control->limit - 1 : 1;
	control->cap = control->limit > 1 ? control->limit / 2 : 1;
	control->success_count = 0;
	control->is_rising = 0;
	begin_level(control, control->level);
}

/* ---- what happens */

uint32_t us_concurrency_started(struct us_concurrency *control, int64_t now_ns)
{
	control->in_flight++;
	if (control->phase != US_CONCURRENCY_FILL || control->in_flight < control->limit ||
	    control->limit < level_limit(control, control->level)) {
		return control->ticket;
	}
	control->phase = US_CONCURRENCY_COLD;
	control->full_ns = now_ns;
	control->cold_count = control->in_flight - control->in_flight / 8;
	return control->ticket++;
}

static void leave(struct us_concurrency *control, uint32_t ticket, int64_t now_ns)
{
	control->in_flight--;
	if (control->phase == US_CONCURRENCY_COLD && ticket < control->ticket &&
	    --control->cold_count == 0) {
		begin_round(control, now_ns);
	}
}

void us_concurrency_succeeded(struct us_concurrency *control, uint32_t ticket, uint64_t len,
			      int64_t now_ns)
{
	int is_measured = control->phase == US_CONCURRENCY_WARM;
	leave(control, ticket, now_ns);
	if (is_measured) {
		measure(control, len, now_ns);
	}
	note_success(control);
}

void us_concurrency_failed(struct us_concurrency *control, uint32_t ticket, int64_t now_ns)
{
	leave(control, ticket, now_ns);
}

void us_concurrency_starved(struct us_concurrency *control, int64_t now_ns)
{
	if (control->phase != US_CONCURRENCY_FILL) {
		control->spent_ns += now_ns - control->full_ns;
		control->phase = US_CONCURRENCY_FILL;
	}
}

int64_t us_concurrency_due_ns(const struct us_concurrency *control)
{
	return control->is_rising && control->phase != US_CONCURRENCY_FILL
		       ? control->full_ns + RISE_NS_MAX - control->spent_ns
		       : INT64_MAX;
}

void us_concurrency_look(struct us_concurrency *control, int64_t now_ns)
{
	if (now_ns < us_concurrency_due_ns(control)) {
		return;
	}
	if (control->level + 1 < usable_count(control)) {
		begin_level(control, control->level + 1);
	} else {
		control->is_rising = 0;
	}
}
