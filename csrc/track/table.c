/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table in 64 shards. The top six bits of the path hash choose the shard,
 * the low 32 bits the slot; linear probing, at most 7/8 full, grown by half. The
 * hash is keyed (SipHash), so tenants cannot aim at a slot. A shard is small: its
 * growth copies a 64th of the table and stops nobody else.
 *
 * A hash of 0 marks a free slot; us_path_hash never gives 0. Removal shifts the
 * following run back, so there are no tombstones.
 *
 * Where stamps are kept they lie behind the slots, in the same order and allocation: who
 * only looks at records does not touch them.
 *
 * Locks: one mutex per shard, never two at once, never held across I/O.
 */
#include "table.h"

#include <pthread.h>
#include <string.h>

#include "../base/alloc.h"

#define SHARD_COUNT 64
#define SHARD_BITS 6
#define CAP_MIN 16
#define LINE_LEN 64 /* of the cache, bytes */
/* Of a record that is kept though long gone: its age must not wrap around. */
#define AGE_MAX 128

struct shard {
	pthread_mutex_t mutex;
	void *memory;            /* what the heap gave */
	struct us_record *slots; /* in it, two to a cache line */
	uint32_t *stamps;        /* behind them; NULL: none are kept */
	uint32_t cap, count;
} __attribute__((aligned(64)));

struct us_table {
	struct shard shards[SHARD_COUNT];
	int keeps_stamps;
};

int32_t us_table_new(struct us_table **ret_table, struct us_error *err)
{
	struct us_table *table = us_alloc_zero(sizeof(*table));
	if (!table) {
		return us_fail_nomem(err);
	}
	for (int i = 0; i < SHARD_COUNT; i++) {
		(void)pthread_mutex_init(&table->shards[i].mutex, NULL); /* never fails on Linux */
	}
	*ret_table = table;
	return 0;
}

void us_table_free(struct us_table *table)
{
	if (!table) {
		return;
	}
	for (int i = 0; i < SHARD_COUNT; i++) {
		us_free(table->shards[i].memory);
		(void)pthread_mutex_destroy(&table->shards[i].mutex); /* not locked */
	}
	us_free(table);
}

static struct us_record *first_slot(void *memory)
{
	uintptr_t at = (uintptr_t)memory;
	return (void *)((at + LINE_LEN - 1) / LINE_LEN * LINE_LEN);
}

/* Gives the shard MEMORY, of CAP slots (and stamps) and a line more, and frees what it had.
 * What us_table_prefetch looks at may be read at any time. */
static void set_memory(struct shard *shard, void *memory, uint32_t cap, int keeps_stamps)
{
	struct us_record *slots = memory ? first_slot(memory) : NULL;
	us_free(shard->memory);
	shard->memory = memory;
	shard->stamps = keeps_stamps ? (void *)(slots + cap) : NULL;
	__atomic_store_n(&shard->slots, slots, __ATOMIC_RELAXED);
	__atomic_store_n(&shard->cap, cap, __ATOMIC_RELAXED);
}

void us_table_clear(struct us_table *table)
{
	for (int i = 0; i < SHARD_COUNT; i++) {
		struct shard *shard = &table->shards[i];
		(void)pthread_mutex_lock(&shard->mutex);
		set_memory(shard, NULL, 0, 0);
		shard->count = 0;
		(void)pthread_mutex_unlock(&shard->mutex);
	}
}

void us_table_keep_stamps(struct us_table *table)
{
	table->keeps_stamps = 1;
}

int us_table_keeps_stamps(const struct us_table *table)
{
	return table->keeps_stamps;
}

static struct shard *shard_of(struct us_table *table, uint64_t hash)
{
	return &table->shards[hash >> (64 - SHARD_BITS)];
}

static uint32_t home_slot(uint64_t hash, uint32_t cap)
{
	return (uint32_t)((hash & UINT32_MAX) * cap >> 32);
}

static uint32_t next_slot(uint32_t slot, uint32_t cap)
{
	return slot + 1 == cap ? 0 : slot + 1;
}

/* The slot of HASH, or the free slot where it would go. The shard has one. */
static uint32_t find_slot(const struct us_record *slots, uint32_t cap, uint64_t hash)
{
	uint32_t slot = home_slot(hash, cap);
	while (slots[slot].path_hash != 0 && slots[slot].path_hash != hash) {
		slot = next_slot(slot, cap);
	}
	return slot;
}

static int resize(struct shard *shard, uint32_t cap, int keeps_stamps)
{
	size_t slot_len = sizeof(struct us_record) + (keeps_stamps ? sizeof(uint32_t) : 0);
	void *memory = us_alloc_array((size_t)cap + LINE_LEN / sizeof(struct us_record), slot_len);
	if (!memory) {
		return -1;
	}
	struct us_record *slots = first_slot(memory);
	uint32_t *stamps = keeps_stamps ? (void *)(slots + cap) : NULL;
	for (uint32_t i = 0; i < shard->cap; i++) {
		if (shard->slots[i].path_hash != 0) {
			uint32_t to = find_slot(slots, cap, shard->slots[i].path_hash);
			slots[to] = shard->slots[i];
			if (stamps) {
				stamps[to] = shard->stamps[i];
			}
		}
	}
	set_memory(shard, memory, cap, keeps_stamps);
	return 0;
}

static int grow(struct shard *shard, int keeps_stamps)
{
	return resize(shard, shard->cap ? shard->cap + shard->cap / 2 : CAP_MIN, keeps_stamps);
}

void us_table_reserve(struct us_table *table, uint64_t count)
{
	uint64_t cap = count / SHARD_COUNT + count / SHARD_COUNT / 4 + CAP_MIN;
	for (int i = 0; i < SHARD_COUNT && cap <= UINT32_MAX; i++) {
		struct shard *shard = &table->shards[i];
		(void)pthread_mutex_lock(&shard->mutex);
		if (shard->cap < cap) {
			(void)resize(shard, (uint32_t)cap, table->keeps_stamps); /* or it grows */
		}
		(void)pthread_mutex_unlock(&shard->mutex);
	}
}

struct us_record *us_table_acquire(struct us_table *table, uint64_t path_hash, int create)
{
	struct shard *shard = shard_of(table, path_hash);
	(void)pthread_mutex_lock(&shard->mutex);
	if (shard->cap > 0) {
		struct us_record *record =
			&shard->slots[find_slot(shard->slots, shard->cap, path_hash)];
		if (record->path_hash != 0) {
			return record;
		}
	}
	if (create &&
	    ((shard->count + 1) * 8 <= shard->cap * 7 || !grow(shard, table->keeps_stamps))) {
		struct us_record *record =
			&shard->slots[find_slot(shard->slots, shard->cap, path_hash)];
		record->path_hash = path_hash;
		shard->count++;
		return record;
	}
	(void)pthread_mutex_unlock(&shard->mutex);
	return NULL;
}

void us_table_release(struct us_table *table, uint64_t path_hash)
{
	(void)pthread_mutex_unlock(&shard_of(table, path_hash)->mutex);
}

void us_table_prefetch(struct us_table *table, uint64_t path_hash)
{
	/* The shard may be growing: then this is the wrong line, which does no harm. */
	struct shard *shard = shard_of(table, path_hash);
	struct us_record *slots = __atomic_load_n(&shard->slots, __ATOMIC_RELAXED);
	uint32_t cap = __atomic_load_n(&shard->cap, __ATOMIC_RELAXED);
	if (slots) {
		__builtin_prefetch(
			(void *)((uintptr_t)slots + home_slot(path_hash, cap) * sizeof(*slots)), 1);
	}
}

int us_table_get(struct us_table *table, uint64_t path_hash, struct us_record *ret_record)
{
	const struct us_record *record = us_table_acquire(table, path_hash, 0);
	if (!record) {
		return 0;
	}
	*ret_record = *record;
	us_table_release(table, path_hash);
	return 1;
}

uint32_t us_table_stamp(struct us_table *table, const struct us_record *record)
{
	const struct shard *shard = shard_of(table, record->path_hash);
	return shard->stamps ? shard->stamps[record - shard->slots] : 0;
}

void us_table_set_stamp(struct us_table *table, const struct us_record *record, uint32_t stamp)
{
	struct shard *shard = shard_of(table, record->path_hash);
	if (shard->stamps) {
		shard->stamps[record - shard->slots] = stamp;
	}
}

/* Empties SLOT and moves back what was pushed past it. */
static void remove_slot(struct shard *shard, uint32_t slot)
{
	uint32_t hole = slot;
	for (uint32_t i = next_slot(slot, shard->cap); shard->slots[i].path_hash != 0;
	     i = next_slot(i, shard->cap)) {
		uint32_t home = home_slot(shard->slots[i].path_hash, shard->cap);
		/* Movable unless its home lies cyclically in (hole, i]. */
		int stays = hole <= i ? home > hole && home <= i : home > hole || home <= i;
		if (!stays) {
			shard->slots[hole] = shard->slots[i];
			if (shard->stamps) {
				shard->stamps[hole] = shard->stamps[i];
			}
			hole = i;
		}
	}
	memset(&shard->slots[hole], 0, sizeof(shard->slots[hole]));
	if (shard->stamps) {
		shard->stamps[hole] = 0;
	}
	shard->count--;
}

static void add_to_sums(struct us_table_sums *sums, const struct us_record *record)
{
	sums->record_count++;
	if (!(record->flags & US_RECORD_UNSYNCED)) {
		sums->empty += !!(record->flags & US_RECORD_EMPTY);
		sums->not_databases += !!(record->flags & US_RECORD_NOT_DATABASE);
	}
	if (record->flags & US_RECORD_UNSYNCED) {
		uint32_t since_s = us_record_since_s(record);
		sums->unsynced++;
		sums->failed += us_record_failed_cycles(record) > 0;
		if (sums->oldest_unsynced_s == 0 || since_s < sums->oldest_unsynced_s) {
			sums->oldest_unsynced_s = since_s;
		}
	}
}

/* Removes what has been gone for long enough; wants the shard locked. */
static void remove_gone(struct shard *shard, uint8_t generation, uint32_t now_s,
			void (*gone)(void *arg, uint64_t path_hash), void *arg, uint64_t *count)
{
	for (uint32_t i = 0; i < shard->cap; i++) {
		struct us_record *record = &shard->slots[i];
		/* A removal may move another record here: look at the slot again. */
		while (record->path_hash != 0 && record->object_time < now_s &&
		       (uint8_t)(generation - record->generation) >= US_GONE_WALKS) {
			uint64_t hash = record->path_hash;
			remove_slot(shard, i);
			(*count)++;
			if (gone) {
				gone(arg, hash);
			}
		}
	}
}

void us_table_sweep(struct us_table *table, uint8_t generation, int walk_clean, uint32_t now_s,
		    void (*gone)(void *arg, uint64_t path_hash), void *arg,
		    struct us_table_sums *ret_sums)
{
	struct us_table_sums sums = { 0 };
	for (int s = 0; s < SHARD_COUNT; s++) {
		struct shard *shard = &table->shards[s];
		(void)pthread_mutex_lock(&shard->mutex);
		if (walk_clean) {
			remove_gone(shard, generation, now_s, gone, arg, &sums.gone);
		}
		for (uint32_t i = 0; i < shard->cap; i++) {
			struct us_record *record = &shard->slots[i];
			if (record->path_hash == 0) {
				continue;
			}
			if (record->generation == generation) {
				add_to_sums(&sums, record);
			} else if (!walk_clean) {
				record->generation = generation;
			} else if ((uint8_t)(generation - record->generation) > AGE_MAX) {
				record->generation = (uint8_t)(generation - AGE_MAX);
			}
		}
		(void)pthread_mutex_unlock(&shard->mutex);
	}
	*ret_sums = sums;
}

int32_t us_table_each(struct us_table *table, int32_t (*fn)(void *arg, struct us_record *record),
		      void *arg)
{
	for (int s = 0; s < SHARD_COUNT; s++) {
		struct shard *shard = &table->shards[s];
		(void)pthread_mutex_lock(&shard->mutex);
		for (uint32_t i = 0; i < shard->cap; i++) {
			int32_t rc = shard->slots[i].path_hash != 0 ? fn(arg, &shard->slots[i]) : 0;
			if (rc) {
				(void)pthread_mutex_unlock(&shard->mutex);
				return rc;
			}
		}
		(void)pthread_mutex_unlock(&shard->mutex);
	}
	return 0;
}
