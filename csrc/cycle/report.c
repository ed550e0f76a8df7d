/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events wait in a queue of at most EVENTS_MAX; when it is full the caller keeps
 * its "reported" mark clear and offers the event again in the next cycle, so a
 * fleet that fails as a whole neither blocks nor fills memory, and still every
 * failure is named once.
 *
 * Failures: an array of US_FAILURES_MAX sorted by age while the cycle runs, and
 * its last complete predecessor. Walk failures have no record to count in, so a
 * small table remembers since when each has lasted; beyond FAULTS_MAX at once they
 * are counted and not named.
 *
 * One mutex, never held across I/O or a call out.
 */
#include "report.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"

#define EVENTS_MAX 1024
#define FAULTS_MAX 256

struct event {
	struct event *next;
	uint32_t kind;
	char stage[16];
	char *path, *message; /* in the same allocation */
};

struct fault {
	uint64_t path_hash; /* 0: free */
	int64_t since_ns;
	uint32_t cycles;
	uint32_t seen; /* in the cycle under way */
};

struct failures {
	struct us_failure items[US_FAILURES_MAX];
	size_t count;
};

struct us_report {
	pthread_mutex_t mutex;
	struct event *first, **last;
	size_t event_count;
	struct fault faults[FAULTS_MAX];
	struct failures *noting, *published;
};

int32_t us_report_new(struct us_report **ret_report, struct us_error *err)
{
	struct us_report *report = us_alloc_zero(sizeof(*report));
	if (!report) {
		return us_fail_nomem(err);
	}
	(void)pthread_mutex_init(&report->mutex, NULL); /* never fails on Linux */
	report->last = &report->first;
	report->noting = us_alloc_zero(sizeof(*report->noting));
	report->published = us_alloc_zero(sizeof(*report->published));
	if (!report->noting || !report->published) {
		us_report_free(report);
		return us_fail_nomem(err);
	}
	*ret_report = report;
	return 0;
}

void us_report_free(struct us_report *report)
{
	if (!report) {
		return;
	}
	while (report->first) {
		struct event *event = report->first;
		report->first = event->next;
		us_free(event);
	}
	us_free(report->noting);
	us_free(report->published);
	(void)pthread_mutex_destroy(&report->mutex); /* not locked */
	us_free(report);
}

static void copy_text(char *ret, size_t cap, const char *text)
{
	(void)snprintf(ret, cap, "%s", text);
}

static struct event *new_event(uint32_t kind, const char *path, const char *stage,
			       const char *message)
{
	size_t path_len = strlen(path), message_len = strlen(message);
	struct event *event = us_alloc_zero(sizeof(*event) + path_len + message_len + 2);
	if (event) {
		event->kind = kind;
		copy_text(event->stage, sizeof(event->stage), stage);
		event->path = (char *)(event + 1);
		event->message = event->path + path_len + 1;
		memcpy(event->path, path, path_len);
		memcpy(event->message, message, message_len);
	}
	return event;
}

int us_report_event(struct us_report *report, uint32_t kind, const char *path, const char *stage,
		    const char *message)
{
	struct event *event = new_event(kind, path, stage, message);
	if (!event) {
		return 0;
	}
	(void)pthread_mutex_lock(&report->mutex);
	int taken = report->event_count < EVENTS_MAX;
	if (taken) {
		*report->last = event;
		report->last = &event->next;
		report->event_count++;
	}
	(void)pthread_mutex_unlock(&report->mutex);
	if (!taken) {
		us_free(event);
	}
	return taken;
}

int32_t us_report_next(struct us_report *report, struct us_event *ret_events, size_t capacity)
{
	int32_t count = 0;
	(void)pthread_mutex_lock(&report->mutex);
	while (report->first && (size_t)count < capacity && count < EVENTS_MAX) {
		struct event *event = report->first;
		struct us_event *ret = &ret_events[count++];
		report->first = event->next;
		report->event_count--;
		memset(ret, 0, sizeof(*ret));
		ret->kind = event->kind;
		copy_text(ret->path, sizeof(ret->path), event->path);
		copy_text(ret->stage, sizeof(ret->stage), event->stage);
		copy_text(ret->message, sizeof(ret->message), event->message);
		us_free(event);
	}
	if (!report->first) {
		report->last = &report->first;
	}
	(void)pthread_mutex_unlock(&report->mutex);
	return count;
}

void us_report_failure(struct us_report *report, const char *path, const char *stage,
		       const char *message, uint64_t cycles, int64_t since_ns)
{
	(void)pthread_mutex_lock(&report->mutex);
	struct failures *f = report->noting;
	size_t at = f->count;
	while (at > 0 && f->items[at - 1].since_ns > since_ns) {
		at--;
	}
	if (at < US_FAILURES_MAX) {
		size_t kept = f->count < US_FAILURES_MAX ? f->count : US_FAILURES_MAX - 1;
		memmove(&f->items[at + 1], &f->items[at], (kept - at) * sizeof(f->items[0]));
		struct us_failure *item = &f->items[at];
		copy_text(item->path, sizeof(item->path), path);
		copy_text(item->stage, sizeof(item->stage), stage);
		copy_text(item->message, sizeof(item->message), message);
		item->cycles = cycles;
		item->since_ns = since_ns;
		f->count = kept + 1;
	}
	(void)pthread_mutex_unlock(&report->mutex);
}

/* The entry of PATH_HASH, or a free one, or NULL. Wants the mutex. */
static struct fault *find_fault(struct us_report *report, uint64_t path_hash)
{
	struct fault *unused = NULL;
	for (size_t i = 0; i < FAULTS_MAX; i++) {
		if (report->faults[i].path_hash == path_hash) {
			return &report->faults[i];
		}
		if (report->faults[i].path_hash == 0 && !unused) {
			unused = &report->faults[i];
		}
	}
	return unused;
}

void us_report_walk_failure(struct us_report *report, const char *path, const char *message,
			    uint64_t path_hash, int64_t now_ns)
{
	int is_new = 0;
	int64_t since_ns = now_ns;
	uint64_t cycles = 1;
	(void)pthread_mutex_lock(&report->mutex);
	struct fault *fault = find_fault(report, path_hash);
	if (fault) {
		is_new = fault->path_hash == 0;
		if (is_new) {
			*fault = (struct fault){ .path_hash = path_hash, .since_ns = now_ns };
		}
		fault->cycles++;
		fault->seen = 1;
		since_ns = fault->since_ns;
		cycles = fault->cycles;
	}
	(void)pthread_mutex_unlock(&report->mutex);
	if (is_new) {
		/* A full queue loses this line, not the failure: /stats names it. */
		(void)us_report_event(report, US_EVENT_WALK_FAILED, path, "walk", message);
	}
	us_report_failure(report, path, "walk", message, cycles, since_ns);
}

void us_report_begin(struct us_report *report)
{
	(void)pthread_mutex_lock(&report->mutex);
	report->noting->count = 0;
	(void)pthread_mutex_unlock(&report->mutex);
}

void us_report_publish(struct us_report *report)
{
	(void)pthread_mutex_lock(&report->mutex);
	struct failures *old = report->published;
	report->published = report->noting;
	report->noting = old;
	old->count = 0;
	for (size_t i = 0; i < FAULTS_MAX; i++) {
		if (!report->faults[i].seen) {
			report->faults[i].path_hash = 0;
		}
		report->faults[i].seen = 0;
	}
	(void)pthread_mutex_unlock(&report->mutex);
}

int32_t us_report_failures(struct us_report *report, struct us_failure *ret_failures,
			   size_t capacity)
{
	(void)pthread_mutex_lock(&report->mutex);
	size_t count = report->published->count < capacity ? report->published->count : capacity;
	for (size_t i = 0; i < count; i++) { /* of none, RET_FAILURES may be NULL */
		ret_failures[i] = report->published->items[i];
	}
	(void)pthread_mutex_unlock(&report->mutex);
	return (int32_t)count;
}
