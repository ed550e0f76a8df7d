/*
 * Preloaded into what p35_day_test.go runs: all clocks that libc gives are ahead by the
 * nanoseconds in the file that DAY_CLOCK names (8 bytes, mapped: it may change at any
 * time). Who waits for a time of the monotonic clock looks again every few ms, as it can
 * come at once. Go's own clock and the kernel's (file times) are untouched.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)
#define STEP_NS INT64_C(10000000)

static const _Atomic int64_t none, *ahead = &none;

__attribute__((constructor)) static void map_clock(void)
{
	const char *path = getenv("DAY_CLOCK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = fd >= 0 ? mmap(NULL, sizeof(*ahead), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
	if (map == MAP_FAILED) {
		abort();
	}
	ahead = map;
	(void)close(fd);
}

static int64_t to_ns(const struct timespec *ts)
{
	return (int64_t)ts->tv_sec * NS_PER_S + ts->tv_nsec;
}

static struct timespec from_ns(int64_t ns)
{
	return (struct timespec){.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int rc = (int)syscall(SYS_clock_gettime, id, ts);
	if (rc == 0 && id != CLOCK_PROCESS_CPUTIME_ID && id != CLOCK_THREAD_CPUTIME_ID) {
		*ts = from_ns(to_ns(ts) + *ahead);
	}
	return rc;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	(void)tz;
	struct timespec ts;
	int rc = clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return rc;
}

time_t time(time_t *ret)
{
	struct timespec ts;
	(void)clock_gettime(CLOCK_REALTIME, &ts);
	if (ret) {
		*ret = ts.tv_sec;
	}
	return ts.tv_sec;
}

/* How long to wait for END of the clock ID, a step at most. */
static int64_t step_to(clockid_t id, const struct timespec *end)
{
	struct timespec now;
	(void)clock_gettime(id, &now);
	int64_t left_ns = to_ns(end) - to_ns(&now);
	return left_ns < STEP_NS ? left_ns : STEP_NS;
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *end, struct timespec *left)
{
	if (!(flags & TIMER_ABSTIME)) {
		return (int)syscall(SYS_clock_nanosleep, id, flags, end, left) ? errno : 0;
	}
	for (int64_t step_ns; (step_ns = step_to(id, end)) > 0;) {
		struct timespec step = from_ns(step_ns);
		(void)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &step, NULL);
	}
	return 0;
}

/* All conditions of the core wait by the monotonic clock, and look why they woke. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
			   const struct timespec *restrict end)
{
	int64_t step_ns = step_to(CLOCK_MONOTONIC, end);
	if (step_ns <= 0) {
		return ETIMEDOUT;
	}
	struct timespec now;
	(void)syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
	struct timespec until = from_ns(to_ns(&now) + step_ns);
	(void)pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &until);
	return 0;
}
