/* SPDX-License-Identifier: Apache-2.0 */
#include "thread.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "clock.h"

int32_t us_thread_start(pthread_t *ret_thread, const char *name, void *(*main)(void *), void *arg,
			struct us_error *err)
{
	sigset_t all, before;
	(void)sigfillset(&all);
	if (pthread_sigmask(SIG_SETMASK, &all, &before)) {
		return us_fail(err, US_E_NOMEM, "cannot block signals for thread %s", name);
	}
	int rc = pthread_create(ret_thread, NULL, main, arg);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL); /* a mask we were given back */
	if (rc) {
		char reason[96];
		return us_fail(err, US_E_NOMEM, "cannot start thread %s: %s", name,
			       strerror_r(rc, reason, sizeof(reason)));
	}
	(void)pthread_setname_np(*ret_thread, name); /* a name is a convenience */
	return 0;
}

uint32_t us_cpu_count(void)
{
	cpu_set_t set;
	if (sched_getaffinity(0, sizeof(set), &set)) {
		return 1;
	}
	int count = CPU_COUNT(&set);
	return count > 0 ? (uint32_t)count : 1;
}

int32_t us_cond_init(pthread_cond_t *cond, struct us_error *err)
{
	pthread_condattr_t attr;
	if (pthread_condattr_init(&attr)) {
		return us_fail_nomem(err);
	}
	int rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (!rc) {
		rc = pthread_cond_init(cond, &attr);
	}
	(void)pthread_condattr_destroy(&attr); /* nothing held */
	return rc ? us_fail_nomem(err) : 0;
}

int us_cond_wait_ns(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t wait_ns)
{
	int64_t end_ns = us_clock_mono_ns() + wait_ns;
	struct timespec end = { .tv_sec = end_ns / US_NS_PER_S, .tv_nsec = end_ns % US_NS_PER_S };
	return pthread_cond_timedwait(cond, mutex, &end) != ETIMEDOUT;
}
