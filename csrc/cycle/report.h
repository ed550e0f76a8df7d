/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_CYCLE_REPORT_H
#define US_CYCLE_REPORT_H

#include "../base/error.h"

/*
 * What a cycle has to say: events for the log, and the failures that have lasted
 * longest. Bounded memory however many databases fail. Any threads.
 */
struct us_report;

int32_t us_report_new(struct us_report **ret_report, struct us_error *err);
void us_report_free(struct us_report *report);

/* Queues an event; PATH is escaped, "" if it has none. 1, or 0 if the queue is full
 * or memory is out: report it again next time. */
int us_report_event(struct us_report *report, uint32_t kind, const char *path, const char *stage,
		    const char *message);
int32_t us_report_next(struct us_report *report, struct us_event *ret_events, size_t capacity);

/* Notes a failure of the cycle under way. SINCE_NS: when it began; CYCLES: in a row. */
void us_report_failure(struct us_report *report, const char *path, const char *stage,
		       const char *message, uint64_t cycles, int64_t since_ns);

/* Notes a directory or file that the walk could not look at: a failure, and an
 * event the first time in a row. */
void us_report_walk_failure(struct us_report *report, const char *path, const char *message,
			    uint64_t path_hash, int64_t now_ns);

/* Starts a cycle: forgets what one that did not end has noted. */
void us_report_begin(struct us_report *report);

/* Ends a cycle: what was noted becomes what us_report_failures gives. */
void us_report_publish(struct us_report *report);
int32_t us_report_failures(struct us_report *report, struct us_failure *ret_failures, size_t capacity);

#endif
