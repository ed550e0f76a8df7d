/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_BASE_THREAD_H
#define US_BASE_THREAD_H

#include <pthread.h>
#include <stdint.h>

#include "error.h"

/*
 * Starts a joinable thread named NAME (at most 15 bytes) with all signals
 * blocked, so that the host's signal handling (Go's runtime) never lands on it.
 * Joined by the caller with pthread_join. Returns 0 or US_E_NOMEM.
 */
int32_t us_thread_start(pthread_t *ret_thread, const char *name, void *(*main)(void *), void *arg,
			struct us_error *err);

/* Processors this process may run on, at least 1. */
uint32_t us_cpu_count(void);

/* pthread_cond_t that waits by the monotonic clock. 0 or US_E_NOMEM. */
int32_t us_cond_init(pthread_cond_t *cond, struct us_error *err);
/* Waits at most WAIT_NS; returns 1 if signalled (or woken), 0 on time-out. */
int us_cond_wait_ns(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t wait_ns);

#endif
