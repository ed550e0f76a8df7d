/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault [-full] [-seed N] [-seconds N] [-jobs N] [-only SCENARIO]
 *
 * Backs up and restores a small fleet, and makes one system call or allocation of the core
 * fail, for each of them: in a process of its own each time, once or from there on until
 * the fault "ends", with each errno, or cut short. After each it demands
 *
 *	no crash, no hang, a message with each error
 *	no false acknowledgement: what a record says is in the target is there, and is the
 *	committed state of that moment; every visible object is complete
 *	the user's files as they were, and nothing new beside them
 *	everything in the target by the second cycle after the end of the fault; a restored
 *	file complete or not there, and there at the second try
 *	no descriptor, thread or allocation left
 *
 * Without -full: one fault for each place in the code from which a call is made, and
 * errnos in turn.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "place.h"
#include "shim.h"

#define HANG_S 180 /* the core's own longest time-out is a minute: takes_long */
#define JOBS_MAX 16
#define POINTS_MAX 2000000
#define VIOLATIONS_SHOWN 20
#define SHORT_STEP 4

enum phase { PHASE_NONE, PHASE_WORK, PHASE_CLOSE };

/* What a run tells its parent. */
struct report {
	char text[6000];
	struct shim_chain leak;
	int fired, ended; /* ended: it has come to its end */
};

struct run {
	const struct scenario *scenario;
	struct place place;
	struct report *report;
	struct shim_fault fault; /* error 0: none */
	const struct fleet *fleet;
};

/* Fleets; those of the long run stand last. */
enum { SHAPES, LARGE, BUSY, PARTS, HUGE_ONE, FLEET_COUNT };

#define FORCE 1u
#define SWEEP 2u

struct scenario {
	const char *name;
	int is_s3, fleet;
	const char *from; /* template; NULL: nothing */
	void (*work)(struct run *run);
	uint32_t flags; /* FORCE, SWEEP */
	int is_long;	/* only with -full */
};

static struct fleet fleets[FLEET_COUNT];
static char *looks[FLEET_COUNT]; /* of the fleets, before all runs */

/* ------------------------------------------------------------------ violations */

static void violate(struct run *run, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));
static void violate(struct run *run, const char *format, ...)
{
	va_list args;
	shim_phase(PHASE_NONE);
	va_start(args, format);
	(void)vsnprintf(run->report->text, sizeof(run->report->text), format, args);
	va_end(args);
	run->report->fired = shim_has_fired();
	_exit(1);
}

static void demand_right(struct run *run, const char *why, const char *when)
{
	if (why) {
		violate(run, "%s: %s", when, why);
	}
}

/* RC of CALL is a failure that says what it is. */
static void demand_message(struct run *run, const char *call, int32_t rc,
			   const struct us_error *err)
{
	if (!run->fault.error) {
		violate(run, "%s fails without a fault: %s", call, err->message);
	}
	if (err->message[0] == '\0' || err->code != rc) {
		violate(run, "%s returns %d (%s), and the error says %d: \"%s\"", call, rc,
			us_strerror(rc), err->code, err->message);
	}
}

/* ------------------------------------------------------------- what may be left */

static uint32_t count_entries(const char *path)
{
	uint32_t count = 0;
	DIR *dir = opendir(path);
	if (!dir) {
		die("%s: %s", path, strerror(errno));
	}
	while (readdir(dir)) {
		count++;
	}
	(void)closedir(dir);
	return count;
}

static void list_fds(char *ret, size_t cap)
{
	size_t len = 0;
	for (int fd = 0; fd < 1024 && len + 300 < cap; fd++) {
		char target[256];
		ssize_t n = readlink(path_of("/proc/self/fd/%d", fd), target, sizeof(target));
		if (n > 0) {
			len += (size_t)snprintf(ret + len, cap - len, " %d=%.*s", fd, (int)n,
						target);
		}
	}
}

static uint32_t fds_before;

static void begin(struct run *run)
{
	fds_before = count_entries("/proc/self/fd");
	if (run->fault.error) {
		shim_arm(&run->fault);
	}
	shim_track();
}

static int is_in(const void *address, const char *library)
{
	Dl_info info;
	return dladdr(address, &info) && strstr(info.dli_fname, library);
}

/* glibc keeps the stacks of threads that are over, with what belongs to them. */
static int is_kept(const struct shim_chain *chain)
{
	return is_in(chain->from, "/ld-linux");
}

/* Where an allocation of OpenSSL fails, OpenSSL 3.0 may lose another: EVP_MD_fetch does. */
static int is_openssls_fault(const struct run *run, uint32_t block_count)
{
	const struct shim_site *site = shim_site_of(run->fault.site);
	return block_count == 1 && site && shim_call_is_allocation(site->call) &&
	       is_in(site->chain.from, "libcrypto") && is_in(run->report->leak.from, "libcrypto");
}

static void demand_nothing_left(struct run *run)
{
	OPENSSL_thread_stop(); /* errors that it keeps for this thread, which goes on */
	uint32_t blocks = shim_untrack(is_kept, &run->report->leak);
	if (count_entries("/proc/self/fd") != fds_before) {
		char fds[4000];
		list_fds(fds, sizeof(fds));
		violate(run, "descriptors left: %u before, now%s", fds_before - 3, fds);
	}
	/* A thread that was joined may be seen for a moment more. */
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint32_t threads;
	for (int i = 0; (threads = count_entries("/proc/self/task") - 2) != 1 && i < 2000; i++) {
		(void)nanosleep(&pause, NULL);
	}
	if (threads != 1) {
		violate(run, "%u threads left", threads - 1);
	}
	if (blocks != 0 && !is_openssls_fault(run, blocks)) {
		violate(run, "%u allocations left", blocks);
	}
}

static void demand_untouched(struct run *run)
{
	char *now = fleet_look(run->fleet);
	const char *before = looks[run->scenario->fleet];
	if (strcmp(now, before) != 0) {
		violate(run, "the user's files have changed, from\n%s\nto\n%s", before, now);
	}
	free(now);
}

/* ------------------------------------------------------------------- the cycle */

static void check_failures(struct run *run, struct us *us)
{
	struct us_error err = { .struct_size = sizeof(err) };
	static struct us_failure failures[US_FAILURES_MAX];
	int32_t count = us_failures(us, failures, US_FAILURES_MAX, &err);
	for (int32_t i = 0; i < count; i++) {
		if (failures[i].message[0] == '\0' || failures[i].path[0] == '\0') {
			violate(run, "a failure of \"%s\" without a message", failures[i].path);
		}
	}
}

/* The newest two of each database are there always, and (FINAL) old ones beside them not. */
static void demand_swept(struct run *run, int final)
{
	struct target target;
	demand_right(run, target_read(run->place.target, run->fleet, &target), "in the target");
	for (uint32_t i = 0; i < run->fleet->db_count; i++) {
		const struct target_db *t = &target.dbs[i];
		if (!run->fleet->dbs[i].is_database) {
			continue;
		}
		if (t->count < 2 || t->objects[t->count - 1].version < (i == 0 ? 1 : 2)) {
			violate(run, "%s: %u objects, the newest of version %u",
				run->fleet->dbs[i].rel, t->count,
				t->count ? t->objects[t->count - 1].version : 0);
		}
		if (final && t->count > 2 && t->objects[0].time_s < time(NULL) - PLACE_RETENTION_S) {
			violate(run, "%s: of %u objects the first is older than retention",
				run->fleet->dbs[i].rel, t->count);
		}
	}
}

/* Two cycles, after which everything has to be there. */
static void demand_caught_up(struct run *run, struct us *us)
{
	int sweeps = (run->scenario->flags & SWEEP) != 0;
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_cycle_result result;
	for (int i = 0; i < 2; i++) {
		shim_clock_forward(2);
		if (sweeps) {
			us_sweep(us);
		}
		int32_t rc = place_cycle(us, &result, &err);
		if (rc && i == 1) {
			violate(run, "the second cycle after the fault: %s", err.message);
		}
		run->place.is_robbed &= i == 0;
		demand_right(run, place_claims(&run->place, us, rc ? NULL : &result),
			     "after the fault");
	}
	if (result.failed || result.walk_failures) {
		static struct us_failure failure;
		(void)us_failures(us, &failure, 1, &err);
		violate(run, "the second cycle after the fault: %llu failed, %llu in the walk: %s: %s",
			(unsigned long long)result.failed,
			(unsigned long long)result.walk_failures, failure.path, failure.message);
	}
	demand_right(run, place_is_right(&run->place), "two cycles after the fault");
	if (sweeps) {
		demand_swept(run, 1);
	}
}

static void open_again(struct run *run, struct us **ret_us)
{
	struct us_error err = { .struct_size = sizeof(err) };
	if (place_open(&run->place, 0, ret_us, &err)) {
		violate(run, "us_open after the fault: %s", err.message);
	}
}

static void work_cycle(struct run *run)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_cycle_result result;
	struct us *us = NULL;
	begin(run);
	shim_phase(PHASE_WORK);
	int32_t rc = place_open(&run->place, 0, &us, &err);
	if (rc) {
		shim_phase(PHASE_NONE);
		demand_message(run, "us_open", rc, &err);
		open_again(run, &us);
	} else {
		if (run->scenario->flags & SWEEP) {
			us_sweep(us);
		}
		rc = place_cycle(us, &result, &err);
		shim_phase(PHASE_NONE);
		if (rc) {
			demand_message(run, "us_cycle", rc, &err);
		}
		check_failures(run, us);
		demand_right(run, place_claims(&run->place, us, rc ? NULL : &result),
			     "after the cycle");
		if (run->scenario->flags & SWEEP) {
			demand_swept(run, 0);
		}
	}
	demand_caught_up(run, us);
	shim_phase(PHASE_CLOSE);
	us_close(us);
	shim_phase(PHASE_NONE);
	demand_nothing_left(run);
	if (run->fault.phase == PHASE_CLOSE) {
		open_again(run, &us);
		demand_caught_up(run, us);
		us_close(us);
	}
	demand_untouched(run);
}

/* ----------------------------------------------------------------- the restore */

static char *seen;
static size_t seen_len;
static const char *seen_root;

static int see(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)type, (void)at;
	char line[FLEET_PATH_LEN + 100];
	uint64_t sum = 0;
	if (S_ISREG(st->st_mode)) {
		size_t len;
		uint8_t *data = file_read(path, &len);
		for (size_t i = 0; i < len; i++) {
			sum = sum * 31 + data[i];
		}
		free(data);
	}
	int len = snprintf(line, sizeof(line), "%s %o %lld %llx\n", path + strlen(seen_root),
			   st->st_mode, S_ISREG(st->st_mode) ? (long long)st->st_size : 0,
			   (unsigned long long)sum);
	seen = realloc(seen, seen_len + (size_t)len + 1);
	if (!seen) {
		die("no memory");
	}
	memcpy(seen + seen_len, line, (size_t)len + 1);
	seen_len += (size_t)len;
	return 0;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Names, modes and contents of all below DIR, a sorted line each. HIDDEN: those, too. */
static char *look_at_tree(const char *dir, int hidden)
{
	seen = calloc(1, 1);
	seen_len = 0;
	seen_root = dir;
	if (!seen || (nftw(dir, see, 16, FTW_PHYS) && errno != ENOENT)) {
		die("%s: %s", dir, strerror(errno));
	}
	char *lines[1024], *text = calloc(1, seen_len + 1);
	size_t count = 0;
	for (char *line = strtok(seen, "\n"); line; line = strtok(NULL, "\n")) {
		if ((hidden || !strstr(line, "/.us-")) && count < 1024) {
			lines[count++] = line;
		}
	}
	qsort(lines, count, sizeof(lines[0]), by_text);
	for (size_t i = 0; i < count; i++) {
		(void)strcat(strcat(text, lines[i]), "\n");
	}
	free(seen);
	return text;
}

/* After a restore that failed all is as before, but for what is hidden. Where the fault
 * stays, nothing can be taken back: then the database may be there, complete, or be away
 * (hidden, until the next restore), and directories may be left. */
static void demand_as_before(struct run *run, const char *before)
{
	char *now = look_at_tree(run->place.output, 0);
	if (strcmp(now, before) != 0 &&
	    (!run->fault.stays || place_compare(&run->place, PLACE_RESTORED(&run->place), 1) != NULL)) {
		violate(run, "after a failed restore there is\n%s\nwhere there was\n%s", now,
			before);
	}
	free(now);
}

static void work_restore(struct run *run)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us = NULL;
	uint32_t flags = run->scenario->flags & FORCE ? US_RESTORE_FORCE : 0;
	place_prepare_output(&run->place, (run->scenario->flags & FORCE) != 0);
	char *before = look_at_tree(run->place.output, 0);
	begin(run);
	shim_phase(PHASE_WORK);
	int32_t rc = place_open(&run->place, US_OPEN_READ_ONLY, &us, &err);
	if (rc) {
		shim_phase(PHASE_NONE);
		demand_message(run, "us_open", rc, &err);
		if (place_open(&run->place, US_OPEN_READ_ONLY, &us, &err)) {
			violate(run, "us_open after the fault: %s", err.message);
		}
	} else {
		rc = place_restore(&run->place, us, flags, &err);
		shim_phase(PHASE_NONE);
		if (rc) {
			demand_message(run, "us_restore", rc, &err);
			demand_as_before(run, before);
		} else {
			demand_right(run, place_compare(&run->place, PLACE_RESTORED(&run->place), 0), "after the restore");
		}
	}
	if (place_restore(&run->place, us, US_RESTORE_FORCE, &err)) {
		violate(run, "the restore after the fault: %s", err.message);
	}
	demand_right(run, place_compare(&run->place, PLACE_RESTORED(&run->place), 0), "after the second restore");
	shim_phase(PHASE_CLOSE);
	us_close(us);
	shim_phase(PHASE_NONE);
	demand_nothing_left(run);
	struct stat st;
	if (!flags && !run->fault.stays && (lstat(path_of("%s/a", run->place.output), &st) || st.st_mode != (S_IFDIR | 0751))) {
		violate(run, "the directory has mode %o", st.st_mode);
	}
	char *all = look_at_tree(run->place.output, 1), *visible = look_at_tree(run->place.output, 0);
	if (strcmp(all, visible) != 0) {
		violate(run, "hidden files are left:\n%s", all);
	}
	demand_untouched(run);
}

static void demand_fleet(struct run *run, int may_miss, const char *when)
{
	for (uint32_t i = 0; i < run->fleet->db_count; i++) {
		if (run->fleet->dbs[i].is_database) {
			demand_right(run, place_compare(&run->place, i, may_miss), when);
		}
	}
}

static void work_fleet(struct run *run)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us = NULL;
	uint32_t failed = 0;
	place_prepare_output(&run->place, (run->scenario->flags & FORCE) != 0);
	begin(run);
	shim_phase(PHASE_WORK);
	int32_t rc = place_open(&run->place, US_OPEN_READ_ONLY, &us, &err);
	if (rc) {
		shim_phase(PHASE_NONE);
		demand_message(run, "us_open", rc, &err);
		if (place_open(&run->place, US_OPEN_READ_ONLY, &us, &err)) {
			violate(run, "us_open after the fault: %s", err.message);
		}
	} else {
		rc = place_restore_fleet(&run->place, us, 0, &failed, &err);
		shim_phase(PHASE_NONE);
		if (rc) {
			demand_message(run, "the task", rc, &err);
		} else if (failed && !run->fault.error) {
			violate(run, "%u rows fail without a fault", failed);
		}
		demand_fleet(run, rc != 0 || failed != 0, "after the restore");
	}
	if (place_restore_fleet(&run->place, us, US_RESTORE_IF_DB_NOT_EXISTS,
				&failed, &err) || failed) {
		violate(run, "the restore after the fault: %u failed, %s", failed, err.message);
	}
	demand_fleet(run, 0, "after the second restore");
	shim_phase(PHASE_CLOSE);
	us_close(us);
	shim_phase(PHASE_NONE);
	demand_nothing_left(run);
	demand_untouched(run);
}

/* --------------------------------------------------------------------- scenarios */

static const struct scenario scenarios[] = {
	{ .name = "first", .work = work_cycle },
	{ .name = "second", .from = "v1", .work = work_cycle },
	{ .name = "large", .fleet = BUSY, .work = work_cycle },
	{ .name = "sweep", .from = "old", .work = work_cycle, .flags = SWEEP },
	{ .name = "restore", .from = "v2", .work = work_restore },
	{ .name = "replace", .from = "v2", .work = work_restore, .flags = FORCE },
	{ .name = "fleet", .from = "v2", .work = work_fleet },
	{ .name = "s3-first", .is_s3 = 1, .fleet = LARGE, .work = work_cycle },
	{ .name = "s3-second", .is_s3 = 1, .from = "v1", .work = work_cycle },
	{ .name = "s3-sweep", .is_s3 = 1, .from = "old", .work = work_cycle, .flags = SWEEP },
	{ .name = "s3-restore", .is_s3 = 1, .from = "v2", .work = work_restore },
	{ .name = "s3-fleet", .is_s3 = 1, .from = "v2", .work = work_fleet },
	{ .name = "s3-parts", .is_s3 = 1, .fleet = PARTS, .from = "v2", .work = work_restore, .is_long = 1 },
	{ .name = "s3-huge", .is_s3 = 1, .fleet = HUGE_ONE, .work = work_cycle, .is_long = 1 },
};
#define SCENARIO_COUNT (sizeof(scenarios) / sizeof(scenarios[0]))

struct point {
	struct shim_fault fault;
	uint32_t number; /* in the order of places */
};

struct totals {
	uint32_t calls, sites, allocations, faults, fired, violations;
};

static struct place places[FLEET_COUNT][2][JOBS_MAX]; /* [1]: S3 */
static struct report *reports;		 /* by job */
static int jobs, full;
static const char *only;
static time_t deadline;

/* A run in this process, which ends with it. */
static void run_here(const struct scenario *scenario, int job, const struct shim_fault *fault)
{
	struct run run = { .scenario = scenario,
			   .place = places[scenario->fleet][scenario->is_s3][job],
			   .report = &reports[job],
			   .fleet = &fleets[scenario->fleet] };
	if (fault) {
		run.fault = *fault;
	}
	run.place.retention_s = scenario->flags & SWEEP ? PLACE_RETENTION_S : 0;
	run.place.is_robbed = (scenario->flags & SWEEP) != 0;
	shim_clock_forward(3 * PLACE_CLOCK_S);
	if (scenario->from) {
		place_load(&run.place, scenario->from);
	} else {
		place_clear(&run.place);
	}
	shim_busy_name = FLEET_BUSY_NAME;
	(void)alarm(HANG_S);
	scenario->work(&run);
	reports[job].fired = shim_has_fired();
	reports[job].ended = 1;
	_exit(0);
}

static pid_t run_start(const struct scenario *scenario, int job, const struct shim_fault *fault)
{
	memset(&reports[job], 0, sizeof(reports[job]));
	pid_t pid = fork();
	if (pid == 0) {
		run_here(scenario, job, fault);
	}
	if (pid < 0) {
		die("fork: %s", strerror(errno));
	}
	return pid;
}

static void print_chain(const struct shim_chain *chain)
{
	char command[4096];
	int len = snprintf(command, sizeof(command), "addr2line -f -s -e /proc/%d/exe", getpid());
	for (uint32_t i = 0; i < chain->len; i++) {
		len += snprintf(command + len, sizeof(command) - (size_t)len, " %p",
				chain->functions[i]);
	}
	(void)snprintf(command + len, sizeof(command) - (size_t)len,
		       " | paste - - | awk '{ printf \"  %%s\", $1 } END { print \"\" }' >&2");
	(void)!system(command);
}

static int explain(const struct scenario *scenario, int job, const struct shim_fault *fault,
		   int status)
{
	const struct report *report = &reports[job];
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && report->ended) {
		return 0;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
		exit(2); /* it has said why */
	}
	(void)fprintf(stderr, "VIOLATION: %s: ", scenario->name);
	if (fault) {
		(void)fprintf(stderr, "%s %s, number %u, phase %u, %s:\n",
			      shim_call_name(fault->call),
			      fault->error == SHIM_SHORT ? "short" : strerrorname_np(fault->error),
			      fault->nth, fault->phase, fault->stays ? "stays" : "once");
		const struct shim_site *site = shim_site_of(fault->site);
		print_chain(&site->chain);
	}
	if (WIFSIGNALED(status)) {
		(void)fprintf(stderr, "  %s\n",
			      WTERMSIG(status) == SIGALRM ? "it hangs" : strsignal(WTERMSIG(status)));
	} else {
		(void)fprintf(stderr, "  %s\n", report->text);
		if (report->leak.len) {
			print_chain(&report->leak);
		}
	}
	return 1;
}

/* The run without a fault, which counts. */
static void count_calls(const struct scenario *scenario, struct totals *totals)
{
	memset(&reports[0], 0, sizeof(reports[0]));
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		shim_count();
		target_learn();
		run_here(scenario, 0, NULL);
	}
	if (waitpid(pid, &status, 0) != pid || explain(scenario, 0, NULL, status)) {
		die("%s: it fails without a fault", scenario->name);
	}
	uint32_t cap;
	const struct shim_site *sites = shim_sites(&cap);
	for (uint32_t i = 0; i < cap; i++) {
		if (sites[i].hash) {
			totals->sites++;
			*(shim_call_is_allocation(sites[i].call) ? &totals->allocations
								 : &totals->calls) +=
				sites[i].count;
		}
	}
}

/* --------------------------------------------------------------------- the points */

static uint64_t random_state;

static uint32_t random_below(uint32_t limit)
{
	random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (uint32_t)((random_state >> 33) % limit);
}

static int by_number(const void *a, const void *b)
{
	const struct point *x = a, *y = b;
	return x->number < y->number ? -1 : x->number > y->number;
}

static uint32_t error_count(uint32_t call)
{
	const int *errors = shim_call_errors(call);
	uint32_t count = 0;
	while (count < SHIM_ERRORS_MAX && errors[count]) {
		count++;
	}
	return count;
}

static void add_point(struct point *points, uint32_t *count, const struct shim_site *site,
		      uint32_t nth, int error, int stays)
{
	if (*count == POINTS_MAX) {
		die("too many points");
	}
	/* EINTR for ever is no fault that a program can outlive. */
	points[(*count)++] =
		(struct point){ .fault = { .site = site->hash,
					   .call = site->call,
					   .phase = site->phase,
					   .nth = nth,
					   .error = error,
					   .stays = stays && error != EINTR },
				.number = full ? random_below(UINT32_MAX) : site->order };
}

static uint64_t *done_sites; /* that earlier scenarios had a fault at */
static uint32_t done_count;

static int is_done(uint64_t site)
{
	for (uint32_t i = 0; i < done_count; i++) {
		if (done_sites[i] == site) {
			return 1;
		}
	}
	done_sites[done_count++] = site;
	return 0;
}

/* The short run has a fault for each place in the core, and for every SHORT_STEP-th of those
 * inside libraries from which they allocate: there are very many. */
static int is_in_short(const struct shim_site *site)
{
	return !shim_call_is_allocation(site->call) || site->order % SHORT_STEP == 0 ||
	       (!is_in(site->chain.from, "/lib") && !is_in(site->chain.last_from, "/lib"));
}

/* Where SQLite gets no lock, each statement waits five seconds for it; where nothing can
 * be sent, a restore of a fleet waits for a minute. */
static int takes_long(const struct shim_site *site)
{
	const char *name = shim_call_name(site->call);
	return strcmp(name, "fcntl_lock") == 0 || strncmp(name, "sock", 4) == 0 ||
	       strcmp(name, "connect") == 0;
}

static uint32_t choose_points(struct point *points)
{
	uint32_t cap, count = 0;
	const struct shim_site *sites = shim_sites(&cap);
	for (uint32_t i = 0; i < cap; i++) {
		const struct shim_site *site = &sites[i];
		const int *errors = shim_call_errors(site->call);
		uint32_t errors_count = error_count(site->call);
		if (!site->hash) {
			continue;
		}
		if (!full) {
			if (!is_done(site->hash) && is_in_short(site)) {
				uint32_t turn = site->order;
				add_point(points, &count, site, turn % 3 ? 0 : site->count - 1,
					  errors[turn % errors_count],
					  turn / errors_count % 2 != 0 && !takes_long(site));
			}
			continue;
		}
		for (uint32_t nth = 0; nth < site->count; nth++) {
			for (uint32_t e = 0; e < errors_count; e++) {
				add_point(points, &count, site, nth, errors[e], 0);
				if (errors[e] != EINTR) {
					add_point(points, &count, site, nth, errors[e], 1);
				}
			}
		}
	}
	qsort(points, count, sizeof(*points), by_number);
	return count;
}

/* Runs all points, JOBS at a time. */
static void run_points(const struct scenario *scenario, const struct point *points, uint32_t count,
		       struct totals *totals)
{
	pid_t pids[JOBS_MAX] = { 0 };
	const struct point *running[JOBS_MAX] = { 0 };
	uint32_t next = 0;
	for (int busy = 0;;) {
		for (int job = 0; job < jobs; job++) {
			int late = deadline && time(NULL) >= deadline;
			if (!pids[job] && next < count && !late &&
			    totals->violations < VIOLATIONS_SHOWN) {
				running[job] = &points[next++];
				pids[job] = run_start(scenario, job, &running[job]->fault);
				busy++;
			}
		}
		if (busy == 0) {
			return;
		}
		int status, job = 0;
		pid_t pid = waitpid(-1, &status, 0);
		while (job < jobs && pids[job] != pid) {
			job++;
		}
		if (job == jobs) {
			die("the tenant or the server has ended");
		}
		totals->faults++;
		totals->fired += reports[job].fired != 0;
		totals->violations += explain(scenario, job, &running[job]->fault, status) != 0;
		pids[job] = 0;
		busy--;
	}
}

/* ------------------------------------------------------------------------- main */

static void *shared_memory(size_t len)
{
	void *memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		die("no memory");
	}
	return memory;
}

static int is_wanted(const struct scenario *scenario)
{
	return only ? strcmp(only, scenario->name) == 0 : full || !scenario->is_long;
}

/* Whether a scenario that is wanted has this target (and, FLEET >= 0, this fleet). */
static int is_used(int fleet, int is_s3)
{
	for (size_t i = 0; i < SCENARIO_COUNT; i++) {
		const struct scenario *s = &scenarios[i];
		if (is_wanted(s) && s->is_s3 == is_s3 && (fleet < 0 || s->fleet == fleet)) {
			return 1;
		}
	}
	return 0;
}

/* Each fleet in both versions, with the places that have been backed up to: v1, v2, and
 * "old", which is v2 with something to do for a sweep. */
static void make_fleets(const char *scratch, const char *server_root)
{
	static const uint32_t kinds[FLEET_COUNT] = { [SHAPES] = FLEET_SHAPES,
						     [LARGE] = FLEET_LARGE,
						     [BUSY] = FLEET_LARGE | FLEET_BUSY,
						     [PARTS] = FLEET_PARTS,
						     [HUGE_ONE] = FLEET_HUGE };
	for (int i = 0; i < FLEET_COUNT; i++) {
		if (!is_used(i, 0) && !is_used(i, 1)) {
			continue;
		}
		const char *dir = path_of("%s/fleet%d", scratch, i);
		if (mkdir(dir, 0755)) {
			die("%s: %s", dir, strerror(errno));
		}
		fleet_make(&fleets[i], dir, kinds[i]);
		for (int n = 0; n < 4 * jobs; n++) {
			int version = n / (2 * jobs) + 1, s3 = n / jobs % 2;
			struct place *p = &places[i][s3][n % jobs];
			if (version == 2 && fleets[i].version == 1) {
				fleet_change(&fleets[i]);
			}
			if (!is_used(i, s3)) {
				continue;
			}
			if (version == 1) {
				place_make(p, &fleets[i], path_of("%s/%d-%d-%d", scratch, i, s3, n % jobs),
					   s3 ? path_of("%s/bucket%d-%d", server_root, i, n % jobs)
					      : NULL);
			}
			place_sync(p);
			place_save(p, version == 1 ? "v1" : "v2");
			if (version == 2) {
				place_grow_old(p);
				place_save(p, "old");
			}
		}
		looks[i] = fleet_look(&fleets[i]);
	}
}

/* How libraries begin is not what is tested: OpenSSL 3.0 crashes, or never works again, if
 * an allocation fails then. So they do so here, before all else. */
static void warm_up(void)
{
	for (int i = 0; i < 2 * FLEET_COUNT; i++) {
		struct us_error err = { .struct_size = sizeof(err) };
		struct us_cycle_result result;
		struct us *us;
		if (!is_used(i / 2, i % 2)) {
			continue;
		}
		struct place place = places[i / 2][i % 2][0];
		place_load(&place, "old");
		place.retention_s = PLACE_RETENTION_S;
		if (place_open(&place, 0, &us, &err)) {
			die("%s", err.message);
		}
		us_sweep(us);
		if (place_cycle(us, &result, &err) || place_restore(&place, us, 0, &err)) {
			die("%s", err.message);
		}
		us_close(us);
	}
}

static void parse(int argc, char **argv)
{
	struct options options = { .seed = 1, .jobs = 4 };
	options_parse(argc, argv, &options);
	full = options.full;
	random_state = options.seed;
	only = options.only;
	jobs = options.jobs;
	deadline = options.seconds ? time(NULL) + options.seconds : 0;
	if (jobs < 1 || jobs > JOBS_MAX) {
		die("-jobs: 1 to %d", JOBS_MAX);
	}
}

int main(int argc, char **argv)
{
	char scratch[512], server_root[512] = "";
	struct totals sum = { 0 };
	parse(argc, argv);
	scratch_make("fault", scratch);
	shim_init();
	target_init();
	reports = shared_memory(JOBS_MAX * sizeof(*reports));
	done_sites = malloc(SCENARIO_COUNT * SHIM_SITES_MAX * sizeof(*done_sites));
	struct point *points = malloc(POINTS_MAX * sizeof(*points));
	int with_s3 = is_used(-1, 1);
	if (with_s3) {
		server_start(server_root);
	}
	make_fleets(scratch, server_root);
	warm_up();
	for (size_t i = 0; i < SCENARIO_COUNT; i++) {
		struct totals totals = { 0 };
		time_t start = time(NULL);
		if (!is_wanted(&scenarios[i])) {
			continue;
		}
		count_calls(&scenarios[i], &totals);
		run_points(&scenarios[i], points, choose_points(points), &totals);
		(void)printf("%-12s %6u system calls, %6u allocations, %5u places; %6u faults, "
			     "%6u came, %u violations, %ld s\n",
			     scenarios[i].name, totals.calls, totals.allocations, totals.sites,
			     totals.faults, totals.fired, totals.violations,
			     (long)(time(NULL) - start));
		(void)fflush(stdout);
		sum.calls += totals.calls;
		sum.allocations += totals.allocations;
		sum.faults += totals.faults;
		sum.fired += totals.fired;
		sum.violations += totals.violations;
	}
	(void)printf("%u system calls, %u allocations, %u faults, %u violations\n", sum.calls,
		     sum.allocations, sum.faults, sum.violations);
	for (int i = 0; i < FLEET_COUNT; i++) {
		if (looks[i]) {
			fleet_end(&fleets[i]);
		}
	}
	if (with_s3) {
		server_stop();
	}
	tree_remove(scratch);
	return sum.violations != 0;
}
