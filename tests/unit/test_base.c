/* SPDX-License-Identifier: Apache-2.0 */
/* What all rooms stand on: memory, times as text, error codes, the spool, opening files
 * in other people's trees, file systems. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/base/alloc.h"
#include "../../csrc/base/clock.h"
#include "../../csrc/base/dir.h"
#include "../../csrc/base/error.h"
#include "../../csrc/base/spool.h"
#include "../../csrc/base/stat.h"
#include "../../csrc/base/thread.h"
#include "../../csrc/base/tree.h"
#include "refuse.h"
#include "scratch.h"

/* ---------------------------------------------------------------------- memory */

static void test_alloc(void **state)
{
	(void)state;
	/* Nothing is something: NULL means failure alone. */
	void *p = us_alloc(0);
	assert_non_null(p);
	p = us_realloc(p, 0);
	assert_non_null(p);
	us_free(p);
	us_free(us_alloc_zero(0));
	us_free(us_alloc_array(0, 0));
	us_free(NULL);
	assert_null(us_alloc_array(SIZE_MAX, 2));
	assert_null(us_strdup(NULL));
	errno = ENOENT;
	us_free(us_strdup("x"));
	assert_int_equal(errno, ENOENT);
	assert_true(us_size_add(SIZE_MAX, 1) == SIZE_MAX);
	assert_true(us_size_mul(SIZE_MAX / 2, 3) == SIZE_MAX);
	assert_int_equal(us_size_add(2, 3), 5);
	assert_int_equal(us_size_mul(2, 3), 6);
}

static void test_alloc_wiped(void **state)
{
	(void)state;
	us_free_wiped(NULL);
	char *p = us_realloc_wiped(NULL, 64);
	assert_non_null(p);
	memset(p, 'x', 64);
	char *q = us_realloc_wiped(p, 1000); /* grown: what was there is there */
	assert_non_null(q);
	for (int i = 0; i < 64; i++) {
		assert_int_equal(q[i], 'x');
	}
	memset(q, 'y', 1000);
	char *r = us_realloc_wiped(q, 10); /* shrunk: the rest is wiped at once */
	assert_ptr_equal(r, q);
	assert_int_equal(r[9], 'y');
	for (int i = 10; i < 1000; i++) {
		assert_int_equal(r[i], 0);
	}
	r = us_realloc_wiped(r, 0);
	assert_non_null(r);
	us_free_wiped(r);
}

/* ----------------------------------------------------------------------- times */

/* Each is one step away from a time that is right. */
static const char *const bad_names[] = {
	"20260102T030405",  "20260102T030405ZZ", "20260102 030405Z", "20260102T030405z",
	"2O260102T030405Z", "20260/02T030405Z",  "20261302T030405Z", "20260002T030405Z",
	"20260100T030405Z", "20260132T030405Z",  "20260230T030405Z", "20250229T030405Z",
	"20260102T240405Z", "20260102T036005Z",  "20260102T030460Z", "2026x102T030405Z",
	"202601x2T030405Z", "20260102Tx30405Z",  "20260102T03x405Z", "20260102T0304x5Z",
	"20260102T03040:Z", "19691231T235959Z",  "21060207T062816Z", "00000101T000000Z",
};

static void test_time_names(void **state)
{
	(void)state;
	char text[US_TIME_NAME_LEN + 1];
	uint32_t time_s;
	for (size_t i = 0; i < sizeof(bad_names) / sizeof(bad_names[0]); i++) {
		time_s = 7;
		if (us_time_name_parse(bad_names[i], strlen(bad_names[i]), &time_s) != -1) {
			fail_msg("%s is taken for %u", bad_names[i], time_s);
		}
		assert_int_equal(time_s, 7);
	}
	/* Both ways, against the C library, over leap years and both ends. */
	for (uint64_t s = 0; s <= UINT32_MAX; s += 86399 * 3) {
		char want[US_TIME_NAME_LEN + 1];
		time_t when = (time_t)s;
		struct tm parts;
		strftime(want, sizeof(want), "%Y%m%dT%H%M%SZ", gmtime_r(&when, &parts));
		us_time_name_format((uint32_t)s, text);
		assert_string_equal(text, want);
		assert_int_equal(us_time_name_parse(text, strlen(text), &time_s), 0);
		assert_int_equal(time_s, s);
	}
	us_time_name_format(UINT32_MAX, text);
	assert_string_equal(text, "21060207T062815Z");
	assert_int_equal(us_time_name_parse(text, strlen(text), &time_s), 0);
	assert_int_equal(time_s, UINT32_MAX);
}

static const struct {
	const char *text;
	int64_t want; /* -1: none */
} stamps[] = {
	{ "1970-01-01T00:00:00Z", 0 },
	{ "1970-01-01T00:00:01.000000001Z", 1000000001 },
	{ "2026-01-02T03:04:05.5Z", INT64_C(1767323045500000000) },
	{ "2026-01-02T03:04:05.123456789Z", INT64_C(1767323045123456789) },
	{ "2024-02-29T00:00:00Z", INT64_C(1709164800000000000) },
	{ "2026-01-02T03:04:0Z", -1 },
	{ "2026/01-02T03:04:05Z", -1 },
	{ "2026-01/02T03:04:05Z", -1 },
	{ "2026-01-02 03:04:05Z", -1 },
	{ "2026-01-02T03.04:05Z", -1 },
	{ "2026-01-02T03:04.05Z", -1 },
	{ "2026-01-02T03:04:05z", -1 },
	{ "2026-01-02T03:04:05+00:00", -1 },
	{ "x026-01-02T03:04:05Z", -1 },
	{ "2026-x1-02T03:04:05Z", -1 },
	{ "2026-01-x2T03:04:05Z", -1 },
	{ "2026-01-02Tx3:04:05Z", -1 },
	{ "2026-01-02T03:x4:05Z", -1 },
	{ "2026-01-02T03:04:x5Z", -1 },
	{ "2026-13-02T03:04:05Z", -1 },
	{ "2026-01-02T03:04:61Z", -1 },
	{ "1969-12-31T23:59:59Z", -1 },
	{ "2263-01-01T00:00:00Z", -1 }, /* beyond 64 bits of nanoseconds */
	{ "2026-01-02T03:04:05.Z", -1 },
	{ "2026-01-02T03:04:05,5Z", -1 },
	{ "2026-01-02T03:04:05.1234567890Z", -1 },
	{ "2026-01-02T03:04:05.12x4Z", -1 },
};

static void test_rfc3339(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(stamps) / sizeof(stamps[0]); i++) {
		int64_t ns = -1;
		int rc = us_time_rfc3339_parse(stamps[i].text, strlen(stamps[i].text), &ns);
		if (rc != (stamps[i].want < 0 ? -1 : 0) || ns != stamps[i].want) {
			fail_msg("%s: %d, %lld", stamps[i].text, rc, (long long)ns);
		}
	}
}

static void ignore(int number)
{
	(void)number;
}

/* A signal in between does not cut it short. */
static void test_sleep(void **state)
{
	(void)state;
	struct sigaction action = { .sa_handler = ignore }; /* without SA_RESTART */
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec soon = { .it_value.tv_nsec = US_NS_PER_MS,
				   .it_interval.tv_nsec = US_NS_PER_MS };
	assert_int_equal(sigaction(SIGUSR1, &action, NULL), 0);
	assert_int_equal(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	assert_int_equal(timer_settime(timer, 0, &soon, NULL), 0);
	int64_t start_ns = us_clock_mono_ns();
	us_clock_sleep_ns(30 * US_NS_PER_MS);
	assert_true(us_clock_mono_ns() - start_ns >= 30 * US_NS_PER_MS);
	timer_delete(timer);
}

static void test_ticks(void **state)
{
	(void)state;
	struct us_file_stat none = { 0 }, whole = { 5, 3 * US_NS_PER_S, 4 * US_NS_PER_S, 9 };
	struct us_file_stat fine = { 5, 3 * US_NS_PER_S + 1, 4 * US_NS_PER_S, 9 };
	struct us_file_stat other = whole;
	assert_int_equal(us_stat_tick_ns(&whole), US_TICK_COARSE_NS);
	assert_int_equal(us_stat_tick_ns(&fine), US_TICK_NS);
	fine.mtime_ns = 3 * US_NS_PER_S;
	fine.ctime_ns++;
	assert_int_equal(us_stat_tick_ns(&fine), US_TICK_NS);
	assert_false(us_stat_is_racy(&none, 0));
	assert_false(us_stat_is_future(&none, -1));
	assert_true(us_stat_is_future(&whole, 4 * US_NS_PER_S - 1));
	assert_false(us_stat_is_future(&whole, 4 * US_NS_PER_S));
	assert_true(us_stat_is_racy(&whole, 5 * US_NS_PER_S));
	assert_false(us_stat_is_racy(&whole, 6 * US_NS_PER_S));
	assert_true(us_file_stat_equal(&whole, &other));
	for (int field = 0; field < 4; field++) {
		other = whole;
		other.len += field == 0;
		other.mtime_ns += field == 1;
		other.ctime_ns += field == 2;
		other.inode += field == 3;
		assert_false(us_file_stat_equal(&whole, &other));
	}
}

/* ---------------------------------------------------------------------- errors */

static void test_codes(void **state)
{
	(void)state;
	static const struct {
		int sys_errno;
		int32_t code;
	} pairs[] = {
		{ EACCES, US_E_ACCESS },    { EPERM, US_E_ACCESS }, { ENOENT, US_E_NOTFOUND },
		{ ENOTDIR, US_E_NOTFOUND }, { ENOMEM, US_E_NOMEM }, { ENOSPC, US_E_NOSPACE },
		{ EDQUOT, US_E_NOSPACE },   { EAGAIN, US_E_BUSY },  { EIO, US_E_IO },
		{ EMFILE, US_E_IO },
	};
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		struct us_error err = US_ERROR_INIT;
		assert_int_equal(us_fail_errno(&err, pairs[i].sys_errno, "x"), pairs[i].code);
		assert_int_equal(err.code, pairs[i].code);
		assert_int_equal(err.sys_errno, pairs[i].sys_errno);
		assert_non_null(strstr(err.message, strerror(pairs[i].sys_errno)));
		assert_int_equal(us_fail_errno(NULL, pairs[i].sys_errno, "x"), pairs[i].code);
	}
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_fail_nomem(&err), US_E_NOMEM);
	assert_string_equal(err.message, us_strerror(US_E_NOMEM));
	assert_int_equal(us_fail_nomem(NULL), US_E_NOMEM);
	int32_t least = 0;
	while (strcmp(us_strerror(least - 1), "unknown error") != 0) {
		least--;
		for (int32_t other = 0; other > least; other--) {
			assert_string_not_equal(us_strerror(least), us_strerror(other));
		}
	}
	assert_int_equal(least, US_E_OWNED);
	assert_string_equal(us_strerror(1), "unknown error");
	assert_string_equal(us_strerror(INT32_MIN), "unknown error");
	static const int32_t later[] = { US_E_BUSY, US_E_NETWORK, US_E_TIMEOUT };
	for (size_t i = 0; i < 3; i++) {
		(void)us_fail(&err, later[i], "x");
		assert_int_equal(err.retryable, 1);
	}
	(void)us_fail(&err, US_E_IO, "x");
	assert_int_equal(err.retryable, 0);
}

/* ----------------------------------------------------------------------- files */

static char dir[SCRATCH_LEN];
static int dir_fd;

static int make_dir(void **state)
{
	(void)state;
	if (scratch_dir(dir)) {
		return -1;
	}
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir_fd < 0;
}

static int drop_dir(void **state)
{
	(void)state;
	char command[SCRATCH_LEN + 16];
	close(dir_fd);
	(void)snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	return system(command);
}

static void touch(const char *rel)
{
	int fd = openat(dir_fd, rel, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, rel, strlen(rel)), strlen(rel));
	close(fd);
}

static int is_there(const char *rel)
{
	struct stat st;
	return fstatat(dir_fd, rel, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

static int makes_files(void)
{
	struct us_error err = US_ERROR_INIT;
	struct stat st;
	int32_t spool_fd = us_spool_open(dir, &err);
	int32_t fd = us_spool_file(spool_fd, &err);
	if (fd < 0 || fstat(fd, &st) || st.st_nlink != 0 || us_spool_write(fd, "x", 1, &err)) {
		print_error("%s\n", err.message);
		return 1;
	}
	close(fd);
	close(spool_fd);
	return 0;
}

static void test_spool_without_tmpfile(void **state)
{
	(void)state;
	const uint32_t tmpfile_flag = O_TMPFILE & ~O_DIRECTORY;
	assert_int_equal(makes_files(), 0);
	assert_works_without(SYS_openat, EOPNOTSUPP, 2, tmpfile_flag, makes_files);
	assert_works_without(SYS_openat, EISDIR, 2, tmpfile_flag, makes_files);
	assert_works_without(SYS_openat, EINVAL, 2, tmpfile_flag, makes_files);
	assert_int_equal(without(SYS_openat, EMFILE, 2, tmpfile_flag, makes_files), 1);
}

/* Of what lies in a spool only what it made itself is a leftover. */
static void test_spool(void **state)
{
	(void)state;
	static const char *const kept[] = { "spool/.us-0123456789abcde",
					    "spool/.us-0123456789abcdefa",
					    "spool/.us-0123456789abcdeF",
					    "spool/us-0123456789abcdef0", "spool/notes" };
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(mkdirat(dir_fd, "spool", 0755), 0);
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		touch(kept[i]);
	}
	touch("spool/.us-0123456789abcdef");
	touch("spool/.us-ffffffffffffffff");
	int32_t spool_fd = us_spool_open(dir, &err);
	assert_true(spool_fd >= 0);
	assert_false(is_there("spool/.us-0123456789abcdef"));
	assert_false(is_there("spool/.us-ffffffffffffffff"));
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		assert_true(is_there(kept[i]));
	}
	int32_t fd = us_spool_file(spool_fd, &err);
	assert_true(fd >= 0);
	assert_int_equal(us_spool_write(fd, "hello", 5, &err), 0);
	char back[8];
	assert_int_equal(pread(fd, back, sizeof(back), 0), 5);
	assert_memory_equal(back, "hello", 5);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_nlink, 0);
	close(fd);
	assert_int_equal(us_spool_check_room(spool_fd, 1, &err), 0);
	assert_int_equal(us_spool_check_room(spool_fd, UINT64_MAX / 2, &err), US_E_NOSPACE);
	assert_non_null(strstr(err.message, "10 % free"));
	assert_int_equal(lseek(spool_fd, 0, SEEK_SET), 0);
	us_dir_remove_files(spool_fd);
	assert_false(is_there("spool/notes"));
	close(spool_fd);

	/* Where there cannot be one. */
	assert_int_equal(unlinkat(dir_fd, "spool", AT_REMOVEDIR), 0);
	assert_int_equal(symlinkat("/tmp", dir_fd, "spool"), 0);
	assert_true(us_spool_open(dir, &err) < 0);
	assert_non_null(strstr(err.message, "cannot open"));
	assert_int_equal(unlinkat(dir_fd, "spool", 0), 0);
	char path[2 * PATH_MAX];
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(us_spool_open(path, &err), US_E_CONFIG);
	(void)snprintf(path, sizeof(path), "%s/none", dir);
	assert_int_equal(us_spool_open(path, &err), US_E_NOTFOUND);
	assert_non_null(strstr(err.message, "cannot create"));
}

/* How many paths are not opened, or refused, as they should be. */
static int wrong_opens(void)
{
	static const struct {
		const char *rel;
		int32_t want; /* 0: opened */
	} cases[] = {
		{ "a/b/file", 0 },
		{ "file", 0 },
		{ "a/b", 0 },
		{ "none", US_E_NOTFOUND },
		{ "a/none/file", US_E_NOTFOUND },
		{ "file/x", US_E_NOTFOUND },
		{ "link", US_E_NOTFOUND },
		{ "a/dirlink/file", US_E_NOTFOUND },
	};
	struct us_error err = US_ERROR_INIT;
	int wrong = 0;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int32_t fd = us_tree_open(dir_fd, cases[i].rel, O_RDONLY, cases[i].rel, &err);
		if ((fd >= 0) != (cases[i].want == 0) || (fd < 0 && fd != cases[i].want) ||
		    (fd < 0 && !strstr(err.message, cases[i].rel))) {
			print_error("%s: %d (%s)\n", cases[i].rel, fd, err.message);
			wrong++;
		}
		if (fd >= 0) {
			close(fd);
		}
	}
	/* A component of 256 bytes, an empty one, another device. */
	char name[300];
	memset(name, 'x', 256);
	(void)snprintf(name + 256, sizeof(name) - 256, "/file");
	wrong += us_tree_open(dir_fd, name, O_RDONLY, "long", &err) != US_E_IO ||
		 err.sys_errno != ENAMETOOLONG;
	int root_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	wrong += us_tree_open(root_fd, "proc/version", O_RDONLY, "version", &err) != US_E_IO ||
		 err.sys_errno != EXDEV;
	close(root_fd);
	return wrong;
}

static void test_tree(void **state)
{
	(void)state;
	assert_int_equal(mkdirat(dir_fd, "a", 0755), 0);
	assert_int_equal(mkdirat(dir_fd, "a/b", 0755), 0);
	touch("a/b/file");
	touch("file");
	assert_int_equal(symlinkat("file", dir_fd, "link"), 0);
	assert_int_equal(symlinkat("b", dir_fd, "a/dirlink"), 0);
	assert_int_equal(wrong_opens(), 0);
	/* Kernels before 5.6 do not have the one call that does all of it, sandboxes refuse it. */
	assert_works_without(SYS_openat2, ENOSYS, 0, 0, wrong_opens);
	assert_works_without(SYS_openat2, EPERM, 0, 0, wrong_opens);
}

static void test_filesystems(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(us_tree_check_filesystem(fd, "/proc", &err), US_E_CONFIG);
	assert_non_null(strstr(err.message, "of type unknown (0x9fa0)"));
	close(fd);
	fd = open("/dev/shm", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0) {
		assert_int_equal(us_tree_check_filesystem(fd, "/dev/shm", &err), 0);
		close(fd);
	}
	assert_int_equal(us_tree_check_filesystem(-1, "closed", &err), US_E_IO);
	assert_non_null(strstr(err.message, "\"closed\""));
}

static void test_cpus(void **state)
{
	(void)state;
	cpu_set_t set;
	assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
	assert_int_equal(us_cpu_count(), CPU_COUNT(&set));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alloc),
		cmocka_unit_test(test_alloc_wiped),
		cmocka_unit_test(test_time_names),
		cmocka_unit_test(test_rfc3339),
		cmocka_unit_test(test_sleep),
		cmocka_unit_test(test_ticks),
		cmocka_unit_test(test_codes),
		cmocka_unit_test_setup_teardown(test_spool, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_spool_without_tmpfile, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_tree, make_dir, drop_dir),
		cmocka_unit_test(test_filesystems),
		cmocka_unit_test(test_cpus),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
