/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/track/state.h"
#include "scratch.h"

#define SECOND US_NS_PER_S

static struct us_file_stat file(uint64_t len, int64_t ctime_ns)
{
	return (struct us_file_stat){ .len = len, .mtime_ns = 5, .ctime_ns = ctime_ns, .inode = 7 };
}

/* --------------------------------------------------------------- the racy rule */

static void test_racy_rule(void **state)
{
	(void)state;
	const struct us_file_stat none = { 0 };
	int64_t clock_ns = 1000 * SECOND + 1;
	struct us_file_stat old = file(1, clock_ns - US_TICK_NS - 1);
	struct us_file_stat young = file(1, clock_ns - US_TICK_NS + 1);
	assert_int_equal(us_racy_flags(&old, &none, clock_ns, 0), 0);
	assert_int_equal(us_racy_flags(&young, &none, clock_ns, 0), US_RECORD_RACY);
	assert_int_equal(us_racy_flags(&old, &young, clock_ns, 0), US_RECORD_RACY);
	/* mtime is the user's: it plays no part. */
	old.mtime_ns = clock_ns + SECOND;
	assert_int_equal(us_racy_flags(&old, &none, clock_ns, 0), 0);
}

static void test_racy_whole_seconds(void **state)
{
	(void)state;
	const struct us_file_stat none = { 0 };
	struct us_file_stat st = { .len = 1, .mtime_ns = 998 * SECOND, .ctime_ns = 998 * SECOND, .inode = 7 };
	assert_int_equal(us_racy_flags(&st, &none, 1000 * SECOND - 1, 0), US_RECORD_RACY);
	assert_int_equal(us_racy_flags(&st, &none, 1000 * SECOND + 1, 0), 0);
	/* One file with nanoseconds: the fine tick. */
	st.mtime_ns++;
	assert_int_equal(us_racy_flags(&st, &none, 999 * SECOND, 0), 0);
}

static void test_racy_future(void **state)
{
	(void)state;
	const struct us_file_stat none = { 0 };
	struct us_file_stat st = file(1, 2000 * SECOND + 3);
	uint8_t first = us_racy_flags(&st, &none, 1000 * SECOND, 0);
	assert_int_equal(first, US_RECORD_RACY | US_RECORD_FUTURE);
	assert_int_equal(us_racy_flags(&st, &none, 1001 * SECOND, first), 0);
}

/* In whole seconds a write can have just this ctime, once the clock gets there. */
static void test_racy_future_whole_seconds(void **state)
{
	(void)state;
	const struct us_file_stat none = { 0 };
	const uint8_t again = US_RECORD_RACY | US_RECORD_FUTURE;
	struct us_file_stat st = { .len = 1, .mtime_ns = 1003 * SECOND, .ctime_ns = 1003 * SECOND, .inode = 7 };
	struct us_file_stat fine = file(1, 5);
	for (int64_t clock_ns = 1000 * SECOND; clock_ns < 1003 * SECOND; clock_ns += SECOND / 2) {
		assert_int_equal(us_racy_flags(&st, &none, clock_ns, again), again);
		assert_int_equal(us_racy_flags(&fine, &st, clock_ns, again), again);
	}
	assert_int_equal(us_racy_flags(&st, &none, 1004 * SECOND, again), US_RECORD_RACY);
	assert_int_equal(us_racy_flags(&st, &none, 1005 * SECOND, US_RECORD_RACY), 0);
	/* The other file's ticks do not matter. */
	fine.ctime_ns = 2000 * SECOND + 3;
	st.mtime_ns = st.ctime_ns = 1 * SECOND;
	assert_int_equal(us_racy_flags(&fine, &st, 1000 * SECOND, again), 0);
}

/* ------------------------------------------------------------ change decisions */

static void test_see(void **state)
{
	(void)state;
	struct us_record r = { .path_hash = 1, .fingerprint = 42, .object_time = 9 };
	assert_int_equal(us_record_see(&r, 42, 100), US_SEEN_UNCHANGED);
	r.flags = US_RECORD_RACY;
	assert_int_equal(us_record_see(&r, 42, 100), US_SEEN_RACY);
	assert_int_equal(us_record_since_s(&r), 0);
	assert_int_equal(us_record_see(&r, 43, 100), US_SEEN_CHANGED);
	assert_int_equal(us_record_since_s(&r), 100);
	assert_int_equal(us_record_failed_cycles(&r), 0);
	/* Still changed later, even if the stat came back to what it was; since stays. */
	assert_int_equal(us_record_see(&r, 42, 200), US_SEEN_CHANGED);
	assert_int_equal(us_record_since_s(&r), 100);
	us_record_set_unsynced(&r, us_record_since_s(&r), 3);
	assert_int_equal(us_record_failed_cycles(&r), 3);
}

static void test_fingerprint_has_every_field(void **state)
{
	(void)state;
	const struct us_siphash_key key = { 1, 2 };
	struct us_file_stat both[2] = { { 1, 2, 3, 4 }, { 5, 6, 7, 8 } };
	uint64_t before = us_fingerprint(&key, &both[0], &both[1]);
	for (int i = 0; i < 8; i++) {
		struct us_file_stat changed[2] = { both[0], both[1] };
		struct us_file_stat *st = &changed[i / 4];
		switch (i % 4) {
		case 0:
			st->len++;
			break;
		case 1:
			st->mtime_ns++;
			break;
		case 2:
			st->ctime_ns++;
			break;
		default:
			st->inode++;
		}
		assert_int_not_equal(us_fingerprint(&key, &changed[0], &changed[1]), before);
	}
	const struct us_siphash_key other = { 1, 3 };
	assert_int_not_equal(us_fingerprint(&other, &both[0], &both[1]), before);
}

static void test_siphash_reference(void **state)
{
	(void)state;
	/* SipHash-1-3 of the bytes 0..n-1 under key 00..0f, as rust's and the reference
	 * implementation's vectors have it: n = 0 and n = 15. */
	const struct us_siphash_key key = { UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908) };
	uint8_t in[15];
	for (uint8_t i = 0; i < sizeof(in); i++) {
		in[i] = i;
	}
	assert_int_equal(us_siphash(&key, in, 0), UINT64_C(0xabac0158050fc4dc));
	assert_int_equal(us_siphash(&key, in, 1), UINT64_C(0xc9f49bf37d57ca93));
}

static void test_size_class(void **state)
{
	(void)state;
	uint64_t len = 512;
	for (int i = 0; i < 400; i++, len += len / 13 + 1) {
		for (uint64_t half = len / 2 - 2; half < len / 2; half++) {
			/* Less than half is always noticed. */
			assert_true(us_size_class(half) + 4 <= us_size_class(len));
		}
		/* Two thirds never are. */
		assert_false(us_size_class(len * 2 / 3) + 4 <= us_size_class(len));
		assert_true(us_size_class(len) <= us_size_class(len + 1));
	}
	assert_int_equal(us_size_class(UINT64_MAX), 255);
}

/* ------------------------------------------------------------------ the names */

static void test_names(void **state)
{
	(void)state;
	struct us_record r = { 0 };
	const uint32_t hour = 3600, epoch = 10 * hour + 1000;
	/* First object: its own second, or the epoch, so that an older one stays. */
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch + 50, epoch + 50), epoch + 50);
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch - 50, epoch - 50), epoch);
	r = (struct us_record){ .object_time = epoch, .object_count = 1, .size_class = us_size_class(4096),
				.content_hash = 7 };
	/* Second: its own second. Third: replaces the second inside the window. */
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch + 90, epoch + 90), epoch + 90);
	r.object_time = epoch + 90;
	r.object_count = 2;
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch + 120, epoch + 120), epoch + 90);
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, 11 * hour + 5, 11 * hour + 5), 11 * hour);
	/* Shrunk below half: its own second. */
	assert_int_equal(us_object_time_next(&r, 1024, hour, epoch, epoch + 130, epoch + 130), epoch + 130);
	/* Window 0: each second once; the same second waits. */
	r.object_time = epoch + 130;
	assert_int_equal(us_object_time_next(&r, 4096, 0, epoch, epoch + 131, epoch + 131), epoch + 131);
	assert_int_equal(us_object_time_next(&r, 4096, 0, epoch, epoch + 130, epoch + 130), 0);
	/* Clock set back a day: names still grow, nothing waits. */
	assert_int_equal(us_object_time_next(&r, 4096, 0, epoch, epoch + 130, epoch - 86400), epoch + 131);
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch + 130, epoch - 86400), epoch + 130);
	/* A put of unknown outcome: another name than its own. */
	r.content_hash = 0;
	assert_int_equal(us_object_time_next(&r, 4096, hour, epoch, epoch + 140, epoch + 140), epoch + 140);
	r.content_hash = 7;
	/* The end of time does not wrap around. */
	struct us_record last = { .object_time = UINT32_MAX, .object_count = 1, .content_hash = 7 };
	assert_int_equal(us_object_time_next(&last, 4096, hour, epoch, epoch, epoch), 0);
	/* A larger window never goes below the last name. */
	assert_int_equal(us_object_time_next(&r, 4096, 86400, epoch, epoch + 140, epoch + 140), epoch + 130);
}

static void test_stamps(void **state)
{
	(void)state;
	const int64_t ms = US_NS_PER_MS;
	assert_int_equal(us_stamp(0), 1);
	assert_int_equal(us_stamp(10 * ms), 1);
	assert_int_equal(us_stamp(20 * ms), 2);
	assert_int_equal(us_stamp((INT64_C(1) << 32) * 10 * ms), 1);
	assert_int_equal(us_stamp((INT64_C(1) << 32) * 10 * ms + 30 * ms), 3);
	assert_int_equal(us_stamps_apart(0), 0);
	assert_int_equal(us_stamps_apart(60), 0);
	assert_false(us_stamp_is_early(0, 5, UINT32_MAX)); /* never uploaded */
	assert_false(us_stamp_is_early(5, 5, 0));
	/* At most 100 ms too early, never late, wherever the stamps are cut. */
	static const int64_t intervals_ms[] = { 1000, 10007, 1800000, INT64_C(365) * 86400000 };
	for (int i = 0; i < 4; i++) {
		uint32_t apart = us_stamps_apart((uint64_t)intervals_ms[i]);
		int64_t wrap_ms = (INT64_C(1) << 32) * 10;
		for (int64_t first_ms = wrap_ms - 50; first_ms < wrap_ms + 50; first_ms++) {
			uint32_t first = us_stamp(first_ms * ms);
			int64_t due_ms = first_ms + intervals_ms[i];
			assert_true(us_stamp_is_early(first, us_stamp((due_ms - 100) * ms), apart));
			assert_true(us_stamp_is_early(first, us_stamp((first_ms + 5) * ms), apart));
			assert_false(us_stamp_is_early(first, us_stamp((due_ms - 20) * ms), apart));
			assert_false(us_stamp_is_early(first, us_stamp((due_ms + 900) * ms), apart));
		}
	}
}

/* -------------------------------------------------------------------- the table */

static uint64_t hash_of(uint64_t i)
{
	const struct us_siphash_key key = { 3, 4 };
	return us_siphash(&key, &i, sizeof(i)) | 1;
}

static struct us_table *new_table(void)
{
	struct us_table *table;
	assert_int_equal(us_table_new(&table, NULL), 0);
	return table;
}

static void put(struct us_table *table, uint64_t hash, uint32_t object_time, uint8_t generation)
{
	struct us_record *r = us_table_acquire(table, hash, 1);
	assert_non_null(r);
	r->object_time = object_time;
	r->generation = generation;
	us_table_release(table, hash);
}

static void test_table_keeps_all(void **state)
{
	(void)state;
	struct us_table *table = new_table();
	struct us_record r;
	for (uint32_t i = 0; i < 50000; i++) {
		put(table, hash_of(i), i + 1, 0);
	}
	for (uint32_t i = 0; i < 50000; i++) {
		assert_int_equal(us_table_get(table, hash_of(i), &r), 1);
		assert_int_equal(r.object_time, i + 1);
	}
	assert_int_equal(us_table_get(table, hash_of(50000), &r), 0);
	us_table_free(table);
}

/* Where room was made, nothing moves as records come; two of them are a cache line. */
static void test_table_reserve(void **state)
{
	(void)state;
	enum { COUNT = 50000 };
	struct us_table *table = new_table();
	put(table, hash_of(0), 1, 0);
	us_table_reserve(table, COUNT);
	const struct us_record *first = us_table_acquire(table, hash_of(0), 0);
	us_table_release(table, hash_of(0));
	assert_int_equal((uintptr_t)first % sizeof(*first), 0);
	for (uint32_t i = 1; i < COUNT; i++) {
		put(table, hash_of(i), i + 1, 0);
		assert_ptr_equal(us_table_acquire(table, hash_of(0), 0), first);
		us_table_release(table, hash_of(0));
	}
	us_table_reserve(table, 10); /* there is room for more already */
	for (uint32_t i = 0; i < COUNT; i++) {
		struct us_record r;
		assert_int_equal(us_table_get(table, hash_of(i), &r), 1);
		assert_int_equal(r.object_time, i + 1);
	}
	us_table_free(table);
}

/* Stamps go with their records, however these move; where none are kept all are 0. */
static void test_table_stamps(void **state)
{
	(void)state;
	struct us_table_sums sums;
	for (int keeps = 0; keeps < 2; keeps++) {
		struct us_table *table = new_table();
		if (keeps) {
			us_table_keep_stamps(table);
		}
		assert_int_equal(us_table_keeps_stamps(table), keeps);
		for (uint32_t i = 0; i < 20000; i++) {
			put(table, hash_of(i), 1, i % 3 == 0);
			const struct us_record *r = us_table_acquire(table, hash_of(i), 0);
			assert_int_equal(us_table_stamp(table, r), 0); /* not that of one before */
			us_table_set_stamp(table, r, i + 7);
			us_table_release(table, hash_of(i));
		}
		us_table_sweep(table, 3, 1, 9, NULL, NULL, &sums); /* two thirds are gone */
		assert_int_equal(sums.gone, 13333);
		for (uint32_t i = 0; i < 20000; i++) {
			const struct us_record *r = us_table_acquire(table, hash_of(i), 1);
			assert_int_equal(us_table_stamp(table, r), keeps && i % 3 == 0 ? i + 7 : 0);
			us_table_release(table, hash_of(i));
		}
		us_table_clear(table);
		put(table, hash_of(1), 1, 0);
		const struct us_record *r = us_table_acquire(table, hash_of(1), 0);
		assert_int_equal(us_table_stamp(table, r), 0);
		us_table_release(table, hash_of(1));
		us_table_free(table);
	}
}

static void count_gone(void *arg, uint64_t hash)
{
	(void)hash;
	(*(uint64_t *)arg)++;
}

static void test_table_forgets_after_three_clean_walks(void **state)
{
	(void)state;
	struct us_table *table = new_table();
	struct us_table_sums sums;
	uint64_t gone = 0;
	for (uint32_t i = 0; i < 10000; i++) {
		put(table, hash_of(i), i + 1, 250);
	}
	/* Half stays; generations wrap around. Walk 3 has an error: the count starts anew. */
	for (int walk = 1; walk <= 6; walk++) {
		uint8_t generation = (uint8_t)(250 + walk);
		for (uint32_t i = 0; i < 10000; i += 2) {
			put(table, hash_of(i), i + 1, generation);
		}
		us_table_sweep(table, generation, walk != 2, UINT32_MAX, count_gone, &gone, &sums);
		assert_int_equal(sums.record_count, 5000);
		assert_int_equal(gone, walk < 5 ? 0 : 5000);
	}
	struct us_record r;
	for (uint32_t i = 0; i < 10000; i++) {
		assert_int_equal(us_table_get(table, hash_of(i), &r), i % 2 == 0);
	}
	us_table_free(table);
}

/* A name that lies ahead of the clock could be given once more: it is remembered,
 * however long the database has been gone. */
static void test_table_keeps_names_ahead(void **state)
{
	(void)state;
	struct us_table *table = new_table();
	struct us_table_sums sums;
	struct us_record r;
	put(table, hash_of(1), 1000, 0);
	put(table, hash_of(2), 999, 0);
	for (int walk = 1; walk <= 600; walk++) {
		us_table_sweep(table, (uint8_t)walk, 1, 1000, NULL, NULL, &sums);
		assert_int_equal(sums.record_count, 0);
		assert_int_equal(us_table_get(table, hash_of(1), &r), 1);
		assert_int_equal(us_table_get(table, hash_of(2), &r), walk < 3);
	}
	us_table_sweep(table, 601 & 255, 1, 1001, NULL, NULL, &sums);
	assert_int_equal(us_table_get(table, hash_of(1), &r), 0);
	us_table_free(table);
}

/* After a kill, a database whose files have changed is sent whatever its content. */
static void test_see_unsure(void **state)
{
	(void)state;
	struct us_record r = { .path_hash = 1, .fingerprint = 42, .content_hash = 7, .flags = US_RECORD_UNSURE };
	assert_int_equal(us_record_see(&r, 42, 100), US_SEEN_UNCHANGED);
	assert_int_equal(r.content_hash, 7);
	assert_int_equal(us_record_see(&r, 43, 100), US_SEEN_CHANGED);
	assert_int_equal(r.content_hash, 0);
}

static void test_content_hash(void **state)
{
	(void)state;
	const uint8_t sha[32] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	uint64_t hash = us_content_hash(sha, 0640, 1, 2);
	assert_int_not_equal(us_content_hash(sha, 0600, 1, 2), hash);
	assert_int_not_equal(us_content_hash(sha, 0640, 3, 2), hash);
	assert_int_not_equal(us_content_hash(sha, 0640, 1, 3), hash);
	assert_int_equal(us_content_hash(sha, 0640, 1, 2), hash);
}

/* --------------------------------------------------------------- the state file */

static char dir[SCRATCH_LEN];

static int make_dir(void **state)
{
	(void)state;
	return scratch_dir(dir);
}

static int remove_dir(void **state)
{
	(void)state;
	static const char *const names[] = { "state.db",	  "state.db-wal",	  "state.db-shm", "lock",
					     "state.db.unusable-1" };
	char path[SCRATCH_LEN + 32];
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		(void)unlink(path);
	}
	return rmdir(dir);
}

static struct us_state *open_state(const char *target, uint32_t window_s, uint32_t now_s,
				   struct us_table *table, char *reset)
{
	struct us_state *state;
	struct us_error err = US_ERROR_INIT;
	int32_t rc = us_state_open(dir, target, window_s, now_s, table, reset, 1024, &state, &err);
	if (rc) {
		print_error("%s\n", err.message);
	}
	assert_int_equal(rc, 0);
	return state;
}

static void test_state_keeps_records(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	struct us_state *state = open_state("t", 3600, 1000, table, reset);
	assert_non_null(strstr(reset, "there is none"));
	assert_int_equal(us_state_info(state)->epoch_s, 1000);
	struct us_state_change changes[100] = { 0 };
	for (uint32_t i = 0; i < 100; i++) {
		changes[i].path_hash = hash_of(i);
		put(table, changes[i].path_hash, i + 1, 0);
	}
	assert_int_equal(us_state_commit(state, table, changes, 100, 0, 77, 5, NULL), 0);
	us_table_clear(table);
	put(table, hash_of(1), 500, 0);
	/* 0 gone, 1 changed */
	assert_int_equal(us_state_commit(state, table, changes, 2, 0, 78, 6, NULL), 0);
	struct us_siphash_key key = us_state_info(state)->key;
	us_state_close(state);

	us_table_clear(table);
	state = open_state("t", 3600, 2000, table, reset);
	assert_string_equal(reset, "");
	assert_int_equal(us_state_info(state)->epoch_s, 1000); /* closed properly: it stays */
	assert_int_equal(us_state_info(state)->high_water_ns, 78);
	assert_int_equal(us_state_info(state)->last_sweep_s, 6);
	assert_memory_equal(&us_state_info(state)->key, &key, sizeof(key));
	struct us_record r;
	assert_int_equal(us_table_get(table, hash_of(0), &r), 0);
	assert_int_equal(us_table_get(table, hash_of(1), &r), 1);
	assert_int_equal(r.object_time, 500);
	assert_int_equal(us_table_get(table, hash_of(99), &r), 1);
	us_state_close(state);
	us_table_free(table);
}

/* -------------------------------------------------- what a sweep finds, lengths */

static struct us_record synced(void)
{
	return (struct us_record){ .path_hash = 1, .fingerprint = 42, .content_hash = 7,
				   .object_time = 1000, .object_count = 2, .flags = US_RECORD_RACY };
}

static void assert_marked(const struct us_record *r, uint32_t object_time, uint8_t object_count)
{
	assert_true(r->flags & US_RECORD_UNSYNCED);
	assert_int_equal(us_record_since_s(r), 9000);
	assert_int_equal(us_record_failed_cycles(r), 0);
	assert_int_equal(r->content_hash, 0);
	assert_int_equal(r->object_time, object_time);
	assert_int_equal(r->object_count, object_count);
}

static void test_reconcile(void **arg)
{
	(void)arg;
	struct us_record r = synced(), before = synced();
	/* As it should be, the length known or not. */
	assert_int_equal(us_record_reconcile(&r, 1000, 50, 50, 9000), 0);
	assert_int_equal(us_record_reconcile(&r, 1000, 50, 0, 9000), 0);
	assert_memory_equal(&r, &before, sizeof(r));
	/* Another length; gone, and an older one found or none; one that is not known. */
	assert_int_equal(us_record_reconcile(&r, 1000, 49, 50, 9000), 1);
	assert_marked(&r, 1000, 1);
	r = synced();
	assert_int_equal(us_record_reconcile(&r, 999, 50, 50, 9000), 1);
	assert_marked(&r, 1000, 1);
	r = synced();
	assert_int_equal(us_record_reconcile(&r, 0, 0, 50, 9000), 1);
	assert_marked(&r, 1000, 1);
	r = synced();
	assert_int_equal(us_record_reconcile(&r, 1001, 50, 50, 9000), 1);
	assert_marked(&r, 1001, 1);
	/* Its next name: one of its own, after the newest. */
	assert_int_equal(us_object_time_next(&r, 4096, 3600, 0, 900, 900), 1002);
	assert_int_equal(us_object_time_next(&r, 4096, 3600, 0, 9000, 9000), 9000);
}

static void test_reconcile_spares(void **arg)
{
	(void)arg;
	/* Unsynced: since when and how often stay, only the name is corrected. */
	struct us_record r = synced(), before;
	us_record_set_unsynced(&r, 500, 3);
	before = r;
	assert_int_equal(us_record_reconcile(&r, 0, 0, 0, 9000), 0);
	assert_int_equal(us_record_reconcile(&r, 1000, 1, 50, 9000), 0);
	assert_memory_equal(&r, &before, sizeof(r));
	assert_int_equal(us_record_reconcile(&r, 2000, 1, 50, 9000), 2);
	before.object_time = 2000;
	assert_memory_equal(&r, &before, sizeof(r));
	/* No object under this record: no database, or empty. */
	r = (struct us_record){ .path_hash = 1, .fingerprint = 42, .flags = US_RECORD_EMPTY };
	before = r;
	assert_int_equal(us_record_reconcile(&r, 0, 0, 0, 9000), 0);
	assert_int_equal(us_record_reconcile(&r, 2000, 1, 0, 9000), 0);
	assert_memory_equal(&r, &before, sizeof(r));
}

static void put_content(struct us_table *table, uint64_t hash, uint64_t content_hash, uint32_t object_time)
{
	struct us_record *r = us_table_acquire(table, hash, 1);
	assert_non_null(r);
	r->content_hash = content_hash;
	r->object_time = object_time;
	us_table_release(table, hash);
}

static uint64_t length_of(struct us_state_lengths *lengths, struct us_table *table, uint64_t hash)
{
	struct us_record r;
	assert_int_equal(us_table_get(table, hash, &r), 1);
	return us_state_length(lengths, &r);
}

static void test_state_lengths(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	struct us_state *state = open_state("t", 3600, 1000, table, reset);
	struct us_state_lengths *lengths;
	assert_int_equal(us_state_lengths_open(state, &lengths, NULL), 0);
	struct us_state_change change[2] = { { hash_of(1), 111 }, { hash_of(2), 0 } };
	put_content(table, hash_of(1), 7, 500);
	put_content(table, hash_of(2), 8, 600);
	assert_int_equal(us_state_commit(state, table, change, 2, 0, 1, 0, NULL), 0);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 111);
	assert_int_equal(length_of(lengths, table, hash_of(2)), 0);
	/* It stays with the object: also through a rewrite of the whole table. */
	change[0].object_len = 0;
	assert_int_equal(us_state_commit(state, table, change, 1, 0, 1, 0, NULL), 0);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 111);
	assert_int_equal(us_state_commit(state, table, NULL, 0, 1, 1, 0, NULL), 0);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 111);
	/* Memory is ahead of the file: not known. */
	put_content(table, hash_of(1), 9, 500);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 0);
	put_content(table, hash_of(1), 7, 501);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 0);
	/* Another object whose length nobody said: not known, also should the first come back. */
	assert_int_equal(us_state_commit(state, table, change, 1, 0, 1, 0, NULL), 0);
	put_content(table, hash_of(1), 7, 500);
	assert_int_equal(us_state_commit(state, table, change, 1, 0, 1, 0, NULL), 0);
	assert_int_equal(length_of(lengths, table, hash_of(1)), 0);
	us_state_lengths_close(lengths);
	us_state_lengths_close(NULL);
	us_state_close(state);
	us_table_free(table);
}

/* A rewrite of the whole table leaves no row whose record is gone. */
static void test_state_whole_commit_forgets(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_record r;
	struct us_table *table = new_table();
	struct us_state *state = open_state("t", 3600, 1000, table, reset);
	for (uint32_t i = 0; i < 1000; i++) {
		put(table, hash_of(i), i + 1, 0);
	}
	assert_int_equal(us_state_commit(state, table, NULL, 0, 1, 1, 0, NULL), 0);
	us_table_clear(table);
	for (uint32_t i = 0; i < 1000; i += 3) {
		put(table, hash_of(i), i + 7, 0);
	}
	assert_int_equal(us_state_commit(state, table, NULL, 0, 1, 1, 0, NULL), 0);
	us_state_close(state);
	us_table_clear(table);
	us_state_close(open_state("t", 3600, 1000, table, reset));
	for (uint32_t i = 0; i < 1000; i++) {
		assert_int_equal(us_table_get(table, hash_of(i), &r), i % 3 == 0);
		assert_int_equal(i % 3 == 0 ? r.object_time : i + 7, i + 7);
	}
	us_table_free(table);
}

static void run_sql(const char *sql)
{
	char path[SCRATCH_LEN + 32];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, NULL)) {
		print_error("%s: %s\n", sql, sqlite3_errmsg(db));
		fail();
	}
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* What version 1 wrote, by its own schema. */
static void make_version_1(void)
{
	run_sql("DROP TABLE record; DELETE FROM meta WHERE name = 'last_sweep'; PRAGMA user_version = 1;"
		"CREATE TABLE record (path_hash INTEGER PRIMARY KEY, fingerprint INTEGER NOT NULL,"
		" content_hash INTEGER NOT NULL, object_time INTEGER NOT NULL, flags INTEGER NOT NULL,"
		" size_class INTEGER NOT NULL, object_count INTEGER NOT NULL);"
		"INSERT INTO record VALUES (77, 1, 2, 3, 1, 5, 2), (-78, 1, 2, 4, 0, 5, 1);");
}

static void test_state_version_1(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_record r;
	struct us_table *table = new_table();
	struct us_state *state;
	us_state_close(open_state("t", 3600, 1000, table, reset));
	make_version_1();
	/* A reader takes it as it is. */
	assert_int_equal(us_state_open_read_only(dir, "t", table, &state, NULL), 0);
	assert_int_equal(us_table_get(table, 77, &r), 1);
	assert_int_equal(us_state_info(state)->last_sweep_s, 0);
	us_state_close(state);
	/* A writer upgrades it, and loses nothing. */
	for (int i = 0; i < 2; i++) {
		us_table_clear(table);
		state = open_state("t", 3600, 2000, table, reset);
		assert_string_equal(reset, "");
		assert_int_equal(us_state_info(state)->epoch_s, 1000);
		assert_int_equal(us_table_get(table, 77, &r), 1);
		assert_int_equal(r.object_time, 3);
		assert_int_equal(r.object_count, 2);
		assert_int_equal(us_table_get(table, (uint64_t)-78, &r), 1);
		struct us_state_lengths *lengths;
		assert_int_equal(us_state_lengths_open(state, &lengths, NULL), 0);
		assert_int_equal(length_of(lengths, table, 77), i == 0 ? 0 : 99);
		const struct us_state_change change = { 77, 99 };
		assert_int_equal(us_state_commit(state, table, &change, 1, 0, 1, 0, NULL), 0);
		assert_int_equal(length_of(lengths, table, 77), 99);
		us_state_lengths_close(lengths);
		us_state_close(state);
	}
	/* One of the future is not ours to guess at. */
	run_sql("PRAGMA user_version = 4");
	us_state_close(open_state("t", 3600, 2000, table, reset));
	assert_non_null(strstr(reset, "version"));
	us_table_free(table);
}

static uint32_t stamp_of(struct us_table *table, uint64_t hash)
{
	const struct us_record *record = us_table_acquire(table, hash, 0);
	assert_non_null(record);
	uint32_t stamp = us_table_stamp(table, record);
	us_table_release(table, hash);
	return stamp;
}

static void set_stamp(struct us_table *table, uint64_t hash, uint32_t stamp)
{
	const struct us_record *record = us_table_acquire(table, hash, 1);
	assert_non_null(record);
	us_table_set_stamp(table, record, stamp);
	us_table_release(table, hash);
}

static struct us_table *new_stamped_table(void)
{
	struct us_table *table = new_table();
	us_table_keep_stamps(table);
	return table;
}

/* Stamps are in the file as times of the wall clock; only who keeps them asks for them. */
static void test_state_stamps(void **arg)
{
	(void)arg;
	char reset[1024];
	const uint32_t minute = 60 * 1000 / US_STAMP_MS;
	struct us_table *table = new_stamped_table();
	struct us_state *state = open_state("t", 3600, 1000, table, reset);
	uint32_t now = us_stamp(us_clock_boot_ns());
	set_stamp(table, hash_of(1), now - 5 * minute);
	set_stamp(table, hash_of(2), 0);
	set_stamp(table, hash_of(3), now - 7 * minute);
	const struct us_state_change change[2] = { { hash_of(1), 0 }, { hash_of(2), 0 } };
	assert_int_equal(us_state_commit(state, table, change, 2, 0, 1, 0, NULL), 0);
	assert_int_equal(us_state_commit(state, table, NULL, 0, 1, 1, 0, NULL), 0);
	us_state_close(state);
	us_table_clear(table);
	us_state_close(open_state("t", 3600, 1000, table, reset));
	assert_true(stamp_of(table, hash_of(1)) - (now - 5 * minute) + 5 <= 10);
	assert_int_equal(stamp_of(table, hash_of(2)), 0);
	assert_true(stamp_of(table, hash_of(3)) - (now - 7 * minute) + 5 <= 10);
	/* By a clock that was set since; by none. */
	static const char *const edits[] = {
		"uploaded_ms + 3600000", "-1", "0", "1", "9223372036854775807",
		"-9223372036854775807 - 1", "'x'", "uploaded_ms - 43000000000",
	};
	for (size_t i = 0; i < sizeof(edits) / sizeof(edits[0]); i++) {
		char sql[200];
		(void)snprintf(sql, sizeof(sql),
			       "CREATE TABLE was AS SELECT * FROM record;"
			       "UPDATE record SET uploaded_ms = %s",
			       edits[i]);
		run_sql(sql);
		us_table_clear(table);
		us_state_close(open_state("t", 3600, 1000, table, reset));
		assert_string_equal(reset, "");
		assert_int_equal(stamp_of(table, hash_of(1)), 0);
		run_sql("DELETE FROM record; INSERT INTO record SELECT * FROM was; DROP TABLE was");
	}
	us_table_free(table);
	table = new_table();
	us_state_close(open_state("t", 3600, 1000, table, reset));
	assert_int_equal(stamp_of(table, hash_of(1)), 0);
	us_table_free(table);
}

/* Versions 1 and 2 have no times of uploads: all of them were long ago. */
static void test_state_stamps_of_old_versions(void **arg)
{
	char reset[1024];
	struct us_table *table = new_stamped_table();
	struct us_state *state;
	for (int version = 1; version <= 2; version++) {
		us_state_close(open_state("t", 3600, 1000, table, reset));
		make_version_1();
		if (version == 2) {
			run_sql("ALTER TABLE record ADD COLUMN object_len INTEGER NOT NULL DEFAULT 0;"
				"UPDATE record SET object_len = 99; PRAGMA user_version = 2");
		}
		us_table_clear(table);
		assert_int_equal(us_state_open_read_only(dir, "t", table, &state, NULL), 0);
		assert_int_equal(stamp_of(table, 77), 0);
		us_state_close(state);
		for (int i = 0; i < 2; i++) {
			us_table_clear(table);
			state = open_state("t", 3600, 2000, table, reset);
			assert_string_equal(reset, "");
			assert_int_equal(stamp_of(table, 77) != 0, i);
			struct us_state_lengths *lengths;
			assert_int_equal(us_state_lengths_open(state, &lengths, NULL), 0);
			assert_int_equal(length_of(lengths, table, 77), version == 2 ? 99 : 0);
			us_state_lengths_close(lengths);
			set_stamp(table, 77, us_stamp(us_clock_boot_ns()));
			const struct us_state_change change = { 77, 0 };
			assert_int_equal(us_state_commit(state, table, &change, 1, 0, 1, 0, NULL), 0);
			us_state_close(state);
		}
		us_table_clear(table);
		(void)remove_dir(arg);
		assert_int_equal(make_dir(arg), 0);
	}
	us_table_free(table);
}

static void test_state_epoch_moves(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	us_state_close(open_state("t", 3600, 1000, table, reset));
	struct us_state *state = open_state("t", 60, 2000, table, reset); /* another window */
	assert_int_equal(us_state_info(state)->epoch_s, 2001);
	assert_int_equal(us_state_set_target_known(state, 5000, 9, NULL), 0);
	assert_int_equal(us_state_info(state)->epoch_s, 5001);
	us_state_close(state);
	state = open_state("t", 3600, 3000, table, reset); /* the clock stepped back: never lower */
	assert_int_equal(us_state_info(state)->epoch_s, 5001);
	assert_int_equal(us_state_info(state)->target_known, 1);
	us_state_close(state);
	us_table_free(table);
}

/* A child that exits without closing: what a SIGKILL leaves. Of what it named, these
 * names were committed, if they are not 0. */
static void open_and_die(uint32_t name_s, uint32_t other_s)
{
	pid_t pid = fork();
	if (pid == 0) {
		char reset[1024];
		struct us_table *table = new_table();
		struct us_state *state = open_state("t", 3600, 1000, table, reset);
		struct us_state_change changes[2] = { { .path_hash = 1 }, { .path_hash = 2 } };
		for (uint64_t hash = 1; name_s != 0 && hash <= 2; hash++) {
			us_table_acquire(table, hash, 1)->object_time = hash == 1 ? name_s : other_s;
			us_table_release(table, hash);
		}
		_exit(name_s != 0 && us_state_commit(state, table, changes, 2, 0, 1, 0, NULL));
	}
	int status = -1;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_state_after_kill(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	open_and_die(0, 0);
	struct us_state *state = open_state("t", 3600, 1010, table, reset);
	assert_string_equal(reset, "");
	assert_int_equal(us_state_info(state)->epoch_s, 1011);
	us_state_close(state);
	us_table_free(table);
}

/* Kills in quick succession: what the runs sent was named after their epochs, or one
 * second behind the last name that they had committed. */
static void test_state_after_kills(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	open_and_die(0, 0);	  /* at 1000 */
	open_and_die(1001, 1000); /* its epoch is 1001 */
	open_and_die(1003, 90000); /* 1003, as 1002 may have been named; one name is a day ahead */
	struct us_state *state = open_state("t", 3600, 1000, table, reset);
	assert_int_equal(us_state_info(state)->epoch_s, 1005); /* likewise 1004 */
	us_state_close(state);
	us_table_free(table);
}

static void test_state_lock_names_pid(void **arg)
{
	(void)arg;
	char reset[1024], pid[32];
	struct us_table *table = new_table();
	struct us_state *state = open_state("t", 3600, 1000, table, reset), *second;
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_state_open(dir, "t", 3600, 1000, table, reset, sizeof(reset), &second, &err),
			 US_E_LOCKED);
	(void)snprintf(pid, sizeof(pid), "process %ld;", (long)getpid());
	assert_non_null(strstr(err.message, pid));
	/* A reader needs no lock. */
	assert_int_equal(us_state_open_read_only(dir, "t", table, &second, NULL), 0);
	us_state_close(second);
	us_state_close(state);
	us_table_free(table);
}

static void overwrite_state(const char *with, size_t len, int truncate_to)
{
	char path[SCRATCH_LEN + 32];
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	FILE *f = fopen(path, truncate_to >= 0 ? "r+" : "w");
	assert_non_null(f);
	assert_int_equal(fwrite(with, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
	if (truncate_to >= 0) {
		assert_int_equal(truncate(path, truncate_to), 0);
	}
}

static void test_state_damaged_or_foreign(void **arg)
{
	(void)arg;
	char reset[1024];
	struct us_table *table = new_table();
	uint64_t hash = hash_of(1);
	for (int damage = 0; damage < 4; damage++) {
		us_table_clear(table);
		struct us_state *state = open_state("t", 3600, 1000, table, reset);
		put(table, hash, 5, 0);
		const struct us_state_change change = { .path_hash = hash };
		assert_int_equal(us_state_commit(state, table, &change, 1, 0, 1, 0, NULL), 0);
		us_state_close(state);
		us_table_clear(table);
		if (damage == 0) {
			overwrite_state("no database at all", 18, -1);
		} else if (damage == 1) {
			overwrite_state("", 0, 5000);
		} else if (damage == 2) {
			overwrite_state("", 0, 0);
		}
		state = open_state(damage == 3 ? "another" : "t", 3600, 2000, table, reset);
		assert_non_null(strstr(reset, "state.db"));
		assert_non_null(strstr(reset, damage == 3 ? "another target" : damage == 2 ? "version" : "damaged"));
		struct us_record r;
		assert_int_equal(us_table_get(table, hash, &r), 0);
		assert_int_equal(us_state_info(state)->epoch_s, 2000);
		us_state_close(state);
		(void)remove_dir(arg);
		assert_int_equal(make_dir(arg), 0);
	}
	us_table_free(table);
}

/* Runs SQL on the state file, which nobody has open. */
static void change_state(const char *sql)
{
	char path[SCRATCH_LEN + 16];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* A free block behind the end of meta's page (the second one). */
static void damage_page(void)
{
	char path[SCRATCH_LEN + 16];
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	FILE *f = fopen(path, "r+");
	assert_non_null(f);
	assert_int_equal(fseek(f, 4096 + 1, SEEK_SET), 0);
	assert_int_equal(fwrite("\x0f\xff", 1, 2, f), 2);
	assert_int_equal(fclose(f), 0);
}

/* All of it can be read, but it cannot be written: it is replaced like any other. */
static void test_state_damage_seen_by_writing(void **arg)
{
	static const char *const damages[] = {
		NULL,
		"CREATE TRIGGER t BEFORE INSERT ON meta BEGIN SELECT raise(ABORT, 'no'); END",
		"ALTER TABLE record DROP COLUMN object_len",
		"ALTER TABLE record DROP COLUMN uploaded_ms",
	};
	char reset[1024];
	struct us_table *table = new_table();
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		us_state_close(open_state("t", 3600, 1000, table, reset));
		if (damages[i]) {
			change_state(damages[i]);
		} else {
			damage_page();
		}
		struct us_state *state = open_state("t", 3600, 2000, table, reset);
		assert_non_null(strstr(reset, "damaged"));
		assert_int_equal(us_state_info(state)->epoch_s, 2000);
		put(table, hash_of(1), 5, 0);
		assert_int_equal(us_state_commit(state, table, NULL, 0, 1, 1, 0, NULL), 0);
		us_state_close(state);
		us_table_clear(table);
		us_state_close(open_state("t", 3600, 3000, table, reset));
		assert_string_equal(reset, "");
		us_table_clear(table);
		(void)remove_dir(arg);
		assert_int_equal(make_dir(arg), 0);
	}
	us_table_free(table);
}

/* Values that no version of ours writes: the file begins anew. */
static void test_state_values(void **arg)
{
	static const struct {
		const char *sql, *why; /* NULL: it is used as it is */
	} edits[] = {
		{ "DELETE FROM meta WHERE name = 'target'", "damaged" },
		{ "UPDATE meta SET value = NULL WHERE name = 'target'", "another target" },
		{ "DELETE FROM meta WHERE name = 'hash_key'", "damaged" },
		{ "UPDATE meta SET value = x'00' WHERE name = 'hash_key'", "damaged" },
		{ "DELETE FROM meta WHERE name = 'epoch'", "damaged" },
		{ "UPDATE meta SET value = -1 WHERE name = 'epoch'", "damaged" },
		{ "UPDATE meta SET value = 4294967296 WHERE name = 'epoch'", "damaged" },
		{ "UPDATE meta SET value = 'x' WHERE name = 'epoch'", "damaged" },
		{ "DELETE FROM meta WHERE name = 'window'", "damaged" },
		{ "UPDATE meta SET value = 1.5 WHERE name = 'window'", "damaged" },
		{ "UPDATE meta SET value = 2 WHERE name = 'target_known'", "damaged" },
		{ "UPDATE meta SET value = -1 WHERE name = 'high_water'", "damaged" },
		{ "DROP TABLE meta", "damaged" },
		{ "DROP TABLE record", "damaged" },
		{ "ALTER TABLE record DROP COLUMN flags", "damaged" },
		{ "INSERT INTO record VALUES (0, 1, 2, 3, 0, 1, 1, 0, 0)", "damaged" },
		{ "PRAGMA user_version = 0", "version" },
		{ "PRAGMA user_version = 1000", "version" },
		{ "PRAGMA application_id = 5", NULL }, /* see below */
		{ "UPDATE meta SET value = -5 WHERE name = 'last_sweep'", NULL },
		{ "UPDATE meta SET value = 'x' WHERE name = 'commits'", NULL },
		{ "DELETE FROM meta WHERE name IN ('last_sweep', 'commits', 'open')", NULL },
	};
	char reset[1024];
	struct us_table *table = new_table();
	for (size_t i = 0; i < sizeof(edits) / sizeof(edits[0]); i++) {
		us_state_close(open_state("t", 3600, 1000, table, reset));
		change_state(edits[i].sql);
		if (strstr(edits[i].sql, "application_id")) { /* a database of somebody else */
			struct us_state *none;
			struct us_error err = US_ERROR_INIT;
			assert_int_equal(us_state_open(dir, "t", 3600, 1, table, reset, sizeof(reset),
						       &none, &err),
					 US_E_CONFIG);
		} else {
			us_state_close(open_state("t", 3600, 2000, table, reset));
			if (edits[i].why ? !strstr(reset, edits[i].why) : reset[0] != '\0') {
				fail_msg("%s: %s", edits[i].sql, reset);
			}
		}
		us_table_clear(table);
		(void)remove_dir(arg);
		assert_int_equal(make_dir(arg), 0);
	}
	us_table_free(table);
}

/* A state_dir by mistake: what is somebody else's stays. */
static void test_state_spares_others(void **arg)
{
	(void)arg;
	char reset[1024], path[SCRATCH_LEN + 32];
	struct us_table *table = new_table();
	struct us_state *state;
	struct us_error err = US_ERROR_INIT;
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "CREATE TABLE theirs(x)", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	assert_int_equal(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "something else"));
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "SELECT x FROM theirs", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	assert_int_equal(unlink(path), 0);
	/* No database: set aside, not destroyed. */
	overwrite_state("their notes", 11, -1);
	us_state_close(open_state("t", 1, 1, table, reset));
	(void)snprintf(path, sizeof(path), "%s/state.db.unusable-1", dir);
	assert_int_equal(access(path, F_OK), 0);
	(void)snprintf(path, sizeof(path), "%s/lock", dir);
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs("precious\n", f) >= 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err), US_E_CONFIG);
	static const char *const contents[] = { "12x\n", "1 2\n",
						"1234567890123456789012345678901\n" };
	for (size_t i = 0; i < sizeof(contents) / sizeof(contents[0]); i++) {
		f = fopen(path, "w");
		assert_true(fputs(contents[i], f) >= 0);
		assert_int_equal(fclose(f), 0);
		assert_int_equal(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err),
				 US_E_CONFIG);
		assert_non_null(strstr(err.message, "a file of something else"));
	}
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("precious", path), 0);
	assert_int_equal(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err), US_E_IO);
	assert_non_null(strstr(err.message, "cannot open"));
	us_table_free(table);
}

/* Names for what is set aside may be taken, but not for ever. */
static void test_state_set_aside(void **arg)
{
	(void)arg;
	char reset[1024], path[SCRATCH_LEN + 32];
	struct us_table *table = new_table();
	struct us_state *state;
	struct us_error err = US_ERROR_INIT;
	overwrite_state("their notes", 11, -1);
	for (int i = 1; i <= 200; i++) {
		(void)snprintf(path, sizeof(path), "%s/state.db.unusable-%d", dir, i);
		if (mkdir(path, 0700)) {
			break;
		}
	}
	assert_int_equal(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err), US_E_IO);
	assert_non_null(strstr(err.message, "cannot rename"));
	for (int i = 1; i <= 200; i++) {
		(void)snprintf(path, sizeof(path), "%s/state.db.unusable-%d", dir, i);
		if (i != 3) {
			assert_int_equal(rmdir(path), 0);
		}
	}
	for (int i = 1; i < 3; i++) {
		(void)snprintf(path, sizeof(path), "%s/state.db.unusable-%d", dir, i);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	us_state_close(open_state("t", 1, 1, table, reset));
	for (int i = 1; i <= 3; i++) {
		(void)snprintf(path, sizeof(path), "%s/state.db.unusable-%d", dir, i);
		assert_int_equal(rmdir(path), 0);
	}
	(void)snprintf(path, sizeof(path), "%s/state.db.unusable-4", dir);
	assert_int_equal(unlink(path), 0);
	us_table_free(table);
}

/* Lock file, state file and their directory in a state that nothing can be done about. */
static void test_state_in_the_way(void **arg)
{
	char reset[1024], path[SCRATCH_LEN + 32], *longest = calloc(1, 5000);
	struct us_table *table = new_table();
	struct us_state *state;
	struct us_error err = US_ERROR_INIT;
	us_state_close(open_state("t", 1, 1, table, reset));
	change_state("PRAGMA user_version = 9");
	(void)snprintf(path, sizeof(path), "%s/state.db-journal", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_true(us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err) < 0);
	assert_int_equal(rmdir(path), 0);
	(void)remove_dir(arg);
	assert_int_equal(make_dir(arg), 0);
	(void)snprintf(path, sizeof(path), "%s/state.db", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	us_state_close(open_state("t", 1, 1, table, reset));
	assert_non_null(strstr(reset, "not a regular file"));
	(void)snprintf(path, sizeof(path), "%s/state.db.unusable-1", dir);
	assert_int_equal(rmdir(path), 0);
	memset(longest, 'x', 4990);
	assert_int_equal(us_state_open(longest, "t", 1, 1, table, reset, sizeof(reset), &state, &err),
			 US_E_CONFIG);
	assert_non_null(strstr(err.message, "too long"));
	free(longest);
	us_table_free(table);
}

/* A pid that a full disk or a power cut has spoilt is no file of somebody else's. */
static void test_state_lock_cut_off(void **arg)
{
	static const struct {
		const char *text;
		size_t len;
		int is_ours;
	} locks[] = { { "", 0, 1 },
		      { "12", 2, 1 },
		      { "123\n", 4, 1 },
		      { "\0\0\0\0\0", 5, 1 },
		      { "12\0\0", 4, 1 },
		      { "12 monkeys\n", 11, 0 },
		      { "1234567890123456789012345678901234567890", 40, 0 } };
	char path[SCRATCH_LEN + 32], reset[1024];
	struct us_state *state;
	struct us_error err = US_ERROR_INIT;
	(void)arg;
	(void)snprintf(path, sizeof(path), "%s/lock", dir);
	for (size_t i = 0; i < sizeof(locks) / sizeof(locks[0]); i++) {
		struct us_table *table = new_table();
		FILE *f = fopen(path, "w");
		assert_non_null(f);
		assert_int_equal(fwrite(locks[i].text, 1, locks[i].len, f), locks[i].len);
		assert_int_equal(fclose(f), 0);
		int32_t rc = us_state_open(dir, "t", 1, 1, table, reset, sizeof(reset), &state, &err);
		assert_int_equal(rc, locks[i].is_ours ? 0 : US_E_CONFIG);
		us_state_close(rc ? NULL : state);
		us_table_free(table);
	}
}

int main(void)
{
#define STATE_TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_racy_rule),
		cmocka_unit_test(test_racy_whole_seconds),
		cmocka_unit_test(test_racy_future),
		cmocka_unit_test(test_racy_future_whole_seconds),
		cmocka_unit_test(test_see),
		cmocka_unit_test(test_fingerprint_has_every_field),
		cmocka_unit_test(test_siphash_reference),
		cmocka_unit_test(test_size_class),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_stamps),
		cmocka_unit_test(test_table_keeps_all),
		cmocka_unit_test(test_table_reserve),
		cmocka_unit_test(test_table_stamps),
		cmocka_unit_test(test_table_forgets_after_three_clean_walks),
		cmocka_unit_test(test_table_keeps_names_ahead),
		cmocka_unit_test(test_see_unsure),
		cmocka_unit_test(test_content_hash),
		cmocka_unit_test(test_reconcile),
		cmocka_unit_test(test_reconcile_spares),
		STATE_TEST(test_state_keeps_records),
		STATE_TEST(test_state_lengths),
		STATE_TEST(test_state_whole_commit_forgets),
		STATE_TEST(test_state_version_1),
		STATE_TEST(test_state_stamps),
		STATE_TEST(test_state_stamps_of_old_versions),
		STATE_TEST(test_state_epoch_moves),
		STATE_TEST(test_state_after_kill),
		STATE_TEST(test_state_after_kills),
		STATE_TEST(test_state_lock_names_pid),
		STATE_TEST(test_state_damaged_or_foreign),
		STATE_TEST(test_state_damage_seen_by_writing),
		STATE_TEST(test_state_values),
		STATE_TEST(test_state_spares_others),
		STATE_TEST(test_state_lock_cut_off),
		STATE_TEST(test_state_set_aside),
		STATE_TEST(test_state_in_the_way),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
