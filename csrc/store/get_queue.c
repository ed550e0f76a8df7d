/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where completed gets wait for their owner. Locks: the queue's own, a leaf, held for
 * list operations only.
 */
#include "store.h"

#include "../base/clock.h"
#include "../base/thread.h"

int32_t us_get_queue_init(struct us_get_queue *queue, struct us_error *err)
{
	int32_t rc = us_cond_init(&queue->ended, err);
	if (rc) {
		return rc;
	}
	(void)pthread_mutex_init(&queue->mutex, NULL); /* never fails on Linux */
	queue->first = NULL;
	queue->last = &queue->first;
	return 0;
}

void us_get_queue_done(struct us_get_queue *queue)
{
	(void)pthread_cond_destroy(&queue->ended); /* nobody waits any more */
	(void)pthread_mutex_destroy(&queue->mutex);
}

void us_get_queue_push(struct us_get_queue *queue, struct us_get *get)
{
	get->next = NULL;
	(void)pthread_mutex_lock(&queue->mutex);
	*queue->last = get;
	queue->last = &get->next;
	/* Under the mutex: once it is free, the owner may take the get and end the queue. */
	(void)pthread_cond_signal(&queue->ended);
	(void)pthread_mutex_unlock(&queue->mutex);
}

struct us_get *us_get_queue_wait(struct us_get_queue *queue, int32_t timeout_ms)
{
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	(void)pthread_mutex_lock(&queue->mutex);
	for (int64_t left_ns; !queue->first && (left_ns = end_ns - us_clock_mono_ns()) > 0;) {
		(void)us_cond_wait_ns(&queue->ended, &queue->mutex, left_ns);
	}
	struct us_get *list = queue->first;
	queue->first = NULL;
	queue->last = &queue->first;
	(void)pthread_mutex_unlock(&queue->mutex);
	return list;
}
