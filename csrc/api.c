/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public header, and nothing else: arguments are checked here, handles made
 * and freed, calls passed on. us_open goes from what costs nothing to what leaves
 * traces: texts, file systems and overlaps first, then the state directory.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/spool.h"
#include "base/thread.h"
#include "cycle/fleet.h"
#include "restore/hosts.h"
#include "restore/restore.h"
#include "restore/task.h"

#define MEMORY_LIMIT_LEAST UINT64_C(16000000)
#define MEMORY_LIMIT_DEFAULT UINT64_C(256000000)
#define CONCURRENCY_MOST 1000
#define BANDWIDTH_LEAST 1000
#define MIN_INTERVAL_MOST_MS (UINT64_C(365) * 86400 * 1000)
/* A directory takes objects in batches: enough of them for two. */
#define FILE_JOBS 2048
#define DESCRIPTORS_SPARE 64
#define CONCURRENCY_LEAST 8
#define WAIT_MS_MAX 1000000
#define RELEASE_WAIT_MS 1000
#define STATE_DIR_NAME ".litestream-multi-db"
#define FLAGS_KNOWN \
	(US_OPEN_READ_ONLY | US_OPEN_ANY_FILESYSTEM | US_OPEN_S3_PATH_STYLE | \
	 US_OPEN_S3_SKIP_VERIFY)

US_API uint32_t us_abi_version(void)
{
	return US_ABI_VERSION;
}

/* ------------------------------------------------------------------ arguments */

/*
 * Copies a caller's struct of SIZE bytes (its first field) over RET of KNOWN bytes.
 * A shorter one leaves the rest zero; of a longer one the unknown tail must be.
 */
static int32_t copy_struct(void *ret, size_t known, const void *given, const char *what,
			   struct us_error *err)
{
	if (!given) {
		return us_fail(err, US_E_ARG, "%s is NULL", what);
	}
	uint32_t size;
	memcpy(&size, given, sizeof(size));
	if (size < sizeof(size) || size > 65536) {
		return us_fail(err, US_E_ARG, "%s: struct_size %u is not one", what, size);
	}
	for (size_t i = known; i < size; i++) {
		if (((const char *)given)[i] != 0) {
			return us_fail(err, US_E_ARG, "%s: has fields this library does not know",
				       what);
		}
	}
	memset(ret, 0, known);
	memcpy(ret, given, size < known ? size : known);
	return 0;
}

/* Gives a result of KNOWN bytes to a caller whose struct has struct_size bytes. */
static int32_t give_struct(void *ret, const void *result, size_t known, const char *what,
			   struct us_error *err)
{
	uint32_t size;
	if (!ret) {
		return us_fail(err, US_E_ARG, "%s is NULL", what);
	}
	memcpy(&size, ret, sizeof(size));
	if (size < sizeof(size)) {
		return us_fail(err, US_E_ARG, "%s: struct_size %u is too small", what, size);
	}
	size_t len = size < known ? size : known;
	memcpy((char *)ret + sizeof(size), (const char *)result + sizeof(size), len - sizeof(size));
	return 0;
}

static int is_set(const char *text)
{
	return text && text[0];
}

/* --------------------------------------------------------------- configuration */

static int32_t check_numbers(const struct us_options *o, struct us_error *err)
{
	if (o->flags & ~FLAGS_KNOWN || o->reserved) {
		return us_fail(err, US_E_ARG, "options: unknown flags 0x%x", o->flags);
	}
	if (o->max_concurrent_uploads > CONCURRENCY_MOST) {
		return us_fail(err, US_E_CONFIG,
			       "max_concurrent_uploads: %u is out of range; use 1 to %d",
			       o->max_concurrent_uploads, CONCURRENCY_MOST);
	}
	if (o->memory_limit_bytes && o->memory_limit_bytes < MEMORY_LIMIT_LEAST) {
		return us_fail(err, US_E_CONFIG,
			       "memory_limit: %llu bytes is too little; use at least 16MB",
			       (unsigned long long)o->memory_limit_bytes);
	}
	if (o->max_upload_bandwidth && o->max_upload_bandwidth < BANDWIDTH_LEAST) {
		return us_fail(err, US_E_CONFIG,
			       "max_upload_bandwidth: %llu bytes a second is too little; use at "
			       "least 1KB, or 0 for no limit",
			       (unsigned long long)o->max_upload_bandwidth);
	}
	if (o->min_interval_ms > MIN_INTERVAL_MOST_MS) {
		return us_fail(err, US_E_CONFIG,
			       "min_interval: %llu ms is too long; use at most 8760h",
			       (unsigned long long)o->min_interval_ms);
	}
	return 0;
}

/* A ".." behind a name that does not exist yet cannot be resolved. */
static int32_t check_no_dots(const char *key, const char *path, struct us_error *err)
{
	for (const char *at = path; at && (at = strstr(at, "/..")) != NULL; at += 3) {
		if (at[3] == '/' || at[3] == '\0') {
			return us_fail(err, US_E_CONFIG,
				       "%s: \"%s\" has a \"..\"; write the path without it", key,
				       path);
		}
	}
	return 0;
}

static int32_t check_target(const struct us_options *o, struct us_error *err)
{
	switch (o->target) {
	case US_TARGET_S3:
		return is_set(o->s3_bucket) ? 0 : us_fail(err, US_E_CONFIG, "bucket: missing");
	case US_TARGET_FILE:
		if (!is_set(o->directory)) {
			return us_fail(err, US_E_CONFIG, "directory: missing");
		}
		return o->directory[0] == '/'
			       ? check_no_dots("directory", o->directory, err)
			       : us_fail(err, US_E_CONFIG,
					 "directory: \"%s\" is relative; write an absolute path",
					 o->directory);
	default:
		return us_fail(err, US_E_ARG, "options: target %u is neither S3 nor a directory",
			       o->target);
	}
}

/* Compiles pattern and template; on success both are the caller's. */
static int32_t compile(const struct us_options *o, struct us_pattern **ret_pattern,
		       struct us_template **ret_tmpl, struct us_error *err)
{
	if (!o->discovery_pattern || !o->path) {
		return us_fail(err, US_E_CONFIG, "%s: missing",
			       o->discovery_pattern ? "path" : "discovery_pattern");
	}
	struct us_pattern *pattern;
	int32_t rc = us_pattern_new(o->discovery_pattern, &pattern, err);
	if (rc) {
		return rc;
	}
	rc = us_template_new(o->path, pattern, o->hostname, ret_tmpl, err);
	if (rc) {
		us_pattern_free(pattern);
		return rc;
	}
	*ret_pattern = pattern;
	return 0;
}

static int32_t open_s3(const struct us_options *o, uint32_t concurrency,
		       struct us_store **ret_store, struct us_error *err)
{
	const struct us_store_s3_options s3 = {
		.endpoint = o->s3_endpoint ? o->s3_endpoint : "",
		.region = o->s3_region ? o->s3_region : "",
		.bucket = o->s3_bucket,
		.path_style = (o->flags & US_OPEN_S3_PATH_STYLE) != 0,
		.skip_verify = (o->flags & US_OPEN_S3_SKIP_VERIFY) != 0,
		.storage_class = o->s3_storage_class,
		.sse = o->s3_sse,
		.sse_kms_key_id = o->s3_sse_kms_key_id,
		.concurrency = concurrency,
		.upload_bytes_per_s = o->max_upload_bandwidth,
	};
	return us_store_s3_open(&s3, ret_store, err);
}

static int32_t checked_options(const struct us_options *given, struct us_options *ret,
			       struct us_error *err)
{
	int32_t rc = copy_struct(ret, sizeof(*ret), given, "options", err);
	if (!rc) {
		rc = check_numbers(ret, err);
	}
	if (!rc) {
		rc = check_no_dots("state_dir", ret->state_dir, err);
	}
	return rc ? rc : check_target(ret, err);
}

US_API int32_t us_check(const struct us_options *options, struct us_error *err)
{
	struct us_options o;
	struct us_pattern *pattern;
	struct us_template *tmpl;
	int32_t rc = checked_options(options, &o, err);
	if (!rc) {
		rc = compile(&o, &pattern, &tmpl, err);
	}
	if (rc) {
		return rc;
	}
	us_template_free(tmpl);
	us_pattern_free(pattern);
	if (o.target == US_TARGET_S3) {
		struct us_store *store;
		rc = open_s3(&o, 1, &store, err);
		if (!rc) {
			store->ops->close(store);
		}
	}
	return rc;
}

US_API int32_t us_match(const struct us_options *options, const char *path, struct us_error *err)
{
	struct us_options o;
	struct us_pattern *pattern;
	int32_t rc = copy_struct(&o, sizeof(o), options, "options", err);
	if (rc) {
		return rc;
	}
	if (!path || !o.discovery_pattern) {
		return us_fail(err, US_E_ARG, "path or discovery_pattern is NULL");
	}
	rc = us_pattern_new(o.discovery_pattern, &pattern, err);
	if (rc) {
		return rc;
	}
	rc = us_pattern_match(pattern, path, strlen(path), NULL);
	us_pattern_free(pattern);
	return rc;
}

US_API int32_t us_prefix(const struct us_options *options, char *ret_prefix, size_t capacity,
			 struct us_error *err)
{
	struct us_options o;
	struct us_pattern *pattern;
	int32_t rc = copy_struct(&o, sizeof(o), options, "options", err);
	if (rc) {
		return rc;
	}
	if (!ret_prefix || !o.discovery_pattern) {
		return us_fail(err, US_E_ARG, "ret_prefix or discovery_pattern is NULL");
	}
	rc = us_pattern_new(o.discovery_pattern, &pattern, err);
	if (rc) {
		return rc;
	}
	size_t len = strlen(us_pattern_prefix(pattern));
	if (len < capacity) {
		memcpy(ret_prefix, us_pattern_prefix(pattern), len + 1);
	}
	us_pattern_free(pattern);
	return len < capacity
		       ? (int32_t)len
		       : us_fail(err, US_E_ARG, "the prefix has %zu bytes, there is room for %zu",
				 len, capacity);
}

/* -------------------------------------------------------------------- overlaps */

/* The state inside the directory REL (relative, no leading slash) of the prefix;
 * 0: the pattern finds nothing there or below. */
static us_pattern_state enter_all(const struct us_pattern *pattern, const char *rel)
{
	us_pattern_state state = us_pattern_start(pattern);
	while (*rel && state) {
		size_t len = strcspn(rel, "/");
		if (len > 0) {
			state = us_pattern_enter(pattern, state, rel, len);
		}
		rel += len + (rel[len] == '/');
	}
	return state;
}

/* Ends PATH at its last component that exists, and resolves that; RET_REST (PATH_MAX)
 * gets the components below, which do not exist yet. */
static int resolve_existing(const char *path, char *ret_real, char *ret_rest)
{
	char head[PATH_MAX];
	if (snprintf(head, sizeof(head), "%s", path) >= (int)sizeof(head)) {
		return -1;
	}
	ret_rest[0] = '\0';
	while (!realpath(head, ret_real)) {
		char *slash = strrchr(head, '/');
		if (errno != ENOENT || !slash) {
			return -1;
		}
		(void)snprintf(ret_rest, PATH_MAX, "%s", path + (slash - head) + 1);
		if (slash == head) {
			slash++;
		}
		*slash = '\0';
	}
	return 0;
}

static int is_same_directory(const char *path, const struct stat *other)
{
	struct stat st;
	return !stat(path, &st) && st.st_dev == other->st_dev && st.st_ino == other->st_ino;
}

/* Calls for every ancestor of REAL (an absolute path), itself included: whether it
 * is DIRECTORY. Returns the offset behind it in REAL, or -1. */
static int find_ancestor(const char *real, const struct stat *directory)
{
	char ancestor[PATH_MAX];
	size_t len = strlen(real);
	for (size_t i = 0; i <= len; i++) {
		if (i != 0 && real[i] != '/' && real[i] != '\0') {
			continue;
		}
		(void)snprintf(ancestor, sizeof(ancestor), "%.*s", i ? (int)i : 1, real);
		if (is_same_directory(ancestor, directory)) {
			return (int)(i < len ? i + 1 : len);
		}
	}
	return -1;
}

/*
 * Refuses DIR (of configuration key KEY) where the pattern could find the files
 * written into it: DIR lies in the prefix at a place that the pattern enters. The
 * parents of DIR are compared by device and inode, so links and bind mounts do not
 * hide it. AND_ABOVE: nor may the prefix lie in DIR.
 */
static int32_t check_apart(const struct us_pattern *pattern, const char *key, const char *dir,
			   int and_above, struct us_error *err)
{
	char real[PATH_MAX], rest[PATH_MAX], prefix_real[PATH_MAX], rel[2 * PATH_MAX + 2];
	struct stat prefix, self;
	const char *prefix_path = us_pattern_prefix(pattern);
	if (stat(prefix_path, &prefix) || !realpath(prefix_path, prefix_real)) {
		return us_fail_errno(err, errno,
				     "discovery_pattern: cannot look at the directory \"%s\"",
				     prefix_path);
	}
	if (resolve_existing(dir, real, rest)) {
		return us_fail_errno(err, errno, "%s: cannot look at \"%s\"", key, dir);
	}
	int below = find_ancestor(real, &prefix);
	int overlaps = 0;
	if (below >= 0) {
		(void)snprintf(rel, sizeof(rel), "%s/%s", real + below, rest);
		overlaps = enter_all(pattern, rel) != 0;
	}
	if (!overlaps && and_above && !stat(dir, &self)) {
		overlaps = find_ancestor(prefix_real, &self) >= 0;
	}
	if (!overlaps) {
		return 0;
	}
	return us_fail(
		err, US_E_CONFIG,
		"%s: \"%s\" is where discovery_pattern looks for databases; choose a directory "
		"outside \"%s\"",
		key, dir, prefix_path);
}

/* --------------------------------------------------------------------- opening */

static int32_t make_identity(struct us *us, const struct us_options *o, struct us_error *err)
{
	static const char format[] = "lz4 v1";
	const char *parts[] = {
		o->target == US_TARGET_S3 ? "s3" : "file",
		o->target == US_TARGET_S3 && o->s3_endpoint ? o->s3_endpoint : "",
		o->target == US_TARGET_S3 ? o->s3_bucket : o->directory,
		o->target == US_TARGET_FILE ? us_store_file_id(us->store) : "",
		o->discovery_pattern, /* with the template it says which key a path has */
		o->path,
		o->hostname && strstr(o->path, "{{hostname}}") ? o->hostname : "",
		format,
	};
	size_t cap = 1;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		cap += strlen(parts[i]) + 1;
	}
	us->identity = us_alloc_zero(cap);
	if (!us->identity) {
		return us_fail_nomem(err);
	}
	size_t len = 0;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		len += (size_t)snprintf(us->identity + len, cap - len, "%s%s", i ? "\n" : "",
					parts[i]);
	}
	return 0;
}

static int32_t choose_state_dir(struct us *us, const struct us_options *o, struct us_error *err)
{
	if (is_set(o->state_dir)) {
		if (o->state_dir[0] != '/') {
			return us_fail(err, US_E_CONFIG,
				       "state_dir: \"%s\" is relative; write an absolute path",
				       o->state_dir);
		}
		us->state_dir = us_strdup(o->state_dir);
	} else {
		const char *prefix = us_pattern_prefix(us->pattern);
		size_t cap = strlen(prefix) + sizeof("/" STATE_DIR_NAME);
		us->default_state_dir = 1;
		us->state_dir = us_alloc(cap);
		if (us->state_dir) {
			(void)snprintf(us->state_dir, cap, "%s/" STATE_DIR_NAME,
				       prefix[1] ? prefix : "");
		}
	}
	return us->state_dir ? 0 : us_fail_nomem(err);
}

/* The state directory that nobody chose lies where others can write: it must be ours. */
static int32_t check_default_state_dir(const char *path, struct us_error *err)
{
	struct stat st;
	if (lstat(path, &st)) {
		return us_fail_errno(err, errno, "state_dir: cannot look at \"%s\"", path);
	}
	if (!S_ISDIR(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0)) {
		return us_fail(
			err, US_E_CONFIG,
			"state_dir: \"%s\" is a link, or belongs to another user; remove it, or "
			"configure state_dir",
			path);
	}
	return 0;
}

/* mkdir -p, each with mode 0700. */
static int32_t make_directories(const char *path, struct us_error *err)
{
	char partial[PATH_MAX];
	if (snprintf(partial, sizeof(partial), "%s", path) >= (int)sizeof(partial)) {
		return us_fail(err, US_E_CONFIG, "state_dir: path of %zu bytes is too long",
			       strlen(path));
	}
	for (char *at = partial + 1;; at++) {
		if (*at != '/' && *at != '\0') {
			continue;
		}
		char saved = *at;
		*at = '\0';
		if (mkdir(partial, 0700) && errno != EEXIST) {
			return us_fail_errno(
				err, errno,
				"state_dir: cannot create \"%s\" (set state_dir to a directory "
				"that this user can write)",
				partial);
		}
		if (saved == '\0') {
			break;
		}
		*at = saved;
	}
	return 0;
}

static int32_t open_state(struct us *us, struct us_error *err)
{
	if (us->flags & US_OPEN_READ_ONLY) {
		us->state_error.struct_size = sizeof(us->state_error);
		int32_t rc = us_state_open_read_only(us->state_dir, us->identity, us->table,
						     &us->state, &us->state_error);
		return rc == US_E_NOMEM ? us_fail_nomem(err)
					: 0; /* restore needs none; us_plan says */
	}
	char reset[1024];
	int32_t rc = make_directories(us->state_dir, err);
	if (!rc && us->default_state_dir) {
		rc = check_default_state_dir(us->state_dir, err);
	}
	if (!rc) {
		rc = us_state_open(us->state_dir, us->identity, us->window_s,
				   (uint32_t)(us_clock_wall_ns() / US_NS_PER_S), us->table, reset,
				   sizeof(reset), &us->state, err);
	}
	if (rc) {
		return rc;
	}
	us->high_water_ns = us_state_info(us->state)->high_water_ns;
	us->swept_s = us_state_info(us->state)->last_sweep_s;
	us->commits = us_state_info(us->state)->commits;
	us->stats.last_sweep_ns = us->published.last_sweep_ns = us->swept_s * US_NS_PER_S;
	if (reset[0]) {
		(void)us_report_event(us->report, US_EVENT_STATE_RESET, "", "state",
				      reset); /* queue is empty */
	}
	us->spool_fd = us_spool_open(us->state_dir, err);
	return us->spool_fd < 0 ? us->spool_fd : 0;
}

static int32_t open_store(struct us *us, const struct us_options *o, struct us_error *err)
{
	int read_only = (us->flags & US_OPEN_READ_ONLY) != 0;
	if (o->target == US_TARGET_S3) {
		return open_s3(o, us->concurrency, &us->store, err);
	}
	return us_store_file_open(o->directory, read_only, o->max_upload_bandwidth, &us->store,
				  err);
}

static int32_t check_places(struct us *us, const struct us_options *o, struct us_error *err)
{
	int fd = us_walk_open(us->pattern, us->flags & US_OPEN_ANY_FILESYSTEM, err);
	if (fd < 0) {
		return fd;
	}
	(void)close(fd); /* it can be opened; cycles open it anew */
	char spool[PATH_MAX];
	(void)snprintf(spool, sizeof(spool), "%s/spool", us->state_dir);
	int32_t rc = check_apart(us->pattern, "state_dir", us->state_dir, 0, err);
	if (!rc) {
		rc = check_apart(us->pattern, "state_dir", spool, 1, err);
	}
	if (!rc && o->target == US_TARGET_FILE) {
		rc = check_apart(us->pattern, "directory", o->directory, 1, err);
	}
	return rc;
}

static int32_t init_sync(struct us *us, struct us_error *err)
{
	(void)pthread_mutex_init(&us->mutex, NULL); /* never fails on Linux */
	int32_t rc = us_cond_init(&us->work, err);
	if (!rc) {
		rc = us_cond_init(&us->room, err);
	}
	if (!rc) {
		rc = us_cond_init(&us->budget, err);
	}
	return rc ? rc : us_cond_init(&us->done, err);
}

/* Each upload has a connection; the rest is for databases, directories and the host. */
static void fit_descriptors(struct us *us)
{
	struct rlimit limit;
	if (us->target != US_TARGET_S3 || getrlimit(RLIMIT_NOFILE, &limit) ||
	    limit.rlim_cur == RLIM_INFINITY ||
	    limit.rlim_cur >= us->concurrency + DESCRIPTORS_SPARE) {
		return;
	}
	uint32_t fits = limit.rlim_cur > DESCRIPTORS_SPARE + CONCURRENCY_LEAST
				? (uint32_t)limit.rlim_cur - DESCRIPTORS_SPARE
				: CONCURRENCY_LEAST;
	if (fits >= us->concurrency) {
		return;
	}
	us->concurrency = fits;
	struct us_error told = US_ERROR_INIT;
	(void)us_fail(
		&told, US_E_CONFIG,
		"this process may open %llu files only (ulimit -n): at most %u uploads at a time",
		(unsigned long long)limit.rlim_cur, us->concurrency);
	(void)us_report_event(us->report, US_EVENT_WARNING, "", "open",
			      told.message); /* queue is empty */
}

static int32_t open_all(struct us *us, const struct us_options *o, struct us_error *err)
{
	int read_only = (us->flags & US_OPEN_READ_ONLY) != 0;
	int32_t rc = compile(o, &us->pattern, &us->tmpl, err);
	if (!rc) {
		rc = choose_state_dir(us, o, err);
	}
	if (!rc && !read_only) {
		rc = check_places(us, o, err);
	}
	if (!rc) {
		rc = us_report_new(&us->report, err);
	}
	if (!rc) {
		fit_descriptors(us);
		rc = open_store(us, o, err);
	}
	if (!rc) {
		rc = make_identity(us, o, err);
	}
	if (!rc) {
		rc = us_table_new(&us->table, err);
	}
	if (!rc && us->stamps_apart) {
		us_table_keep_stamps(us->table);
	}
	if (!rc) {
		rc = open_state(us, err);
	}
	if (!rc && !read_only) {
		rc = us_owner_new(us, &us->owner, err);
	}
	if (!rc && !read_only) {
		rc = us_workers_start(us, err);
	}
	return rc;
}

US_API int32_t us_open(const struct us_options *options, struct us **ret_us, struct us_error *err)
{
	struct us_options o;
	int32_t rc = checked_options(options, &o, err);
	if (rc) {
		return rc;
	}
	struct us *us = ret_us ? us_alloc_zero(sizeof(*us)) : NULL;
	if (!us) {
		return ret_us ? us_fail_nomem(err) : us_fail(err, US_E_ARG, "ret_us is NULL");
	}
	us->flags = o.flags;
	us->template_text = us_strdup(o.path ? o.path : ""); /* a missing one is told later */
	us->target = o.target;
	us->window_s = o.snapshot_window_s;
	us->retention_s = o.retention_s;
	us->stamps_apart = us_stamps_apart(o.min_interval_ms);
	us->concurrency = o.max_concurrent_uploads ? o.max_concurrent_uploads
						   : (o.target == US_TARGET_S3 ? 100 : 8);
	us->memory_limit = o.memory_limit_bytes ? o.memory_limit_bytes : MEMORY_LIMIT_DEFAULT;
	us->staged_max = us->memory_limit / 2;
	us->job_max = o.target == US_TARGET_FILE ? FILE_JOBS : us->concurrency + 64;
	/* One more than there are processors: it reads no large databases. */
	us->worker_count = us_cpu_count() < US_READERS_MAX ? us_cpu_count() + 1 : US_READERS_MAX;
	us->spool_fd = us->prefix_fd = -1;
	us->dirty_cap = US_DIRTY_MAX;
	us->dirty = us_alloc(us->dirty_cap * sizeof(*us->dirty));
	rc = us->dirty && us->template_text ? init_sync(us, err) : us_fail_nomem(err);
	if (!rc) {
		rc = open_all(us, &o, err);
	}
	if (rc) {
		us_close(us);
		return rc;
	}
	*ret_us = us;
	return 0;
}

US_API void us_close(struct us *us)
{
	if (!us) {
		return;
	}
	if (us->owner && !us->canceled) {
		(void)us_owner_release(us->owner, RELEASE_WAIT_MS, NULL); /* else it gets stale */
	}
	us_cancel(us);
	us_sweep_stop(us);
	us_owner_free(us->owner);
	us_workers_stop(us);
	if (us->store) {
		us_puts_end(us);
		us->store->ops->close(us->store);
	}
	us_jobs_free(us);
	us_state_close(us->state);
	us_table_free(us->table);
	us_report_free(us->report);
	us_template_free(us->tmpl);
	us_pattern_free(us->pattern);
	if (us->spool_fd >= 0) {
		(void)close(us->spool_fd); /* a directory */
	}
	(void)pthread_cond_destroy(&us->work); /* nobody waits any more */
	(void)pthread_cond_destroy(&us->room);
	(void)pthread_cond_destroy(&us->budget);
	(void)pthread_cond_destroy(&us->done);
	(void)pthread_mutex_destroy(&us->mutex);
	us_free(us->template_text);
	us_free(us->state_dir);
	us_free(us->identity);
	us_free(us->dirty);
	us_free(us->dirty_spare);
	us_foreign_free(us);
	us_free(us);
}

US_API int32_t us_set_credentials(struct us *us, const struct us_credentials *credentials,
				  struct us_error *err)
{
	struct us_credentials c;
	if (!us || us->target != US_TARGET_S3) {
		return us_fail(err, US_E_ARG, "credentials are for an S3 target");
	}
	int32_t rc = copy_struct(&c, sizeof(c), credentials, "credentials", err);
	if (rc) {
		return rc;
	}
	const struct us_s3_credentials s3 = {
		.access_key_id = c.access_key_id ? c.access_key_id : "",
		.secret_access_key = c.secret_access_key ? c.secret_access_key : "",
		.session_token = c.session_token,
	};
	rc = us_store_s3_set_credentials(us->store, &s3, err);
	if (!rc) {
		us->credentials_expire_ns = c.expires_ns;
		us->has_credentials = is_set(c.access_key_id) ? 1 : 0;
	}
	return rc;
}

US_API int32_t us_exclude(struct us *us, const char *path, struct us_error *err)
{
	if (!us || !path || path[0] != '/') {
		return us_fail(err, US_E_ARG, "the handle is NULL, or path is not absolute");
	}
	return us_foreign_add(us, path, err);
}

static void wake_all(struct us *us)
{
	(void)pthread_mutex_lock(&us->mutex);
	(void)pthread_cond_broadcast(&us->work);
	(void)pthread_cond_broadcast(&us->room);
	(void)pthread_cond_broadcast(&us->budget);
	(void)pthread_cond_broadcast(&us->done);
	(void)pthread_mutex_unlock(&us->mutex);
}

US_API void us_cancel(struct us *us)
{
	if (!us) {
		return;
	}
	us->canceled = 1;
	us->walk_stop = 1;
	if (us->store) {
		us->store->ops->cancel(us->store);
	}
	wake_all(us);
}

US_API void us_finish(struct us *us)
{
	if (us) {
		us->finishing = 1;
		us->walk_stop = 1;
		wake_all(us);
	}
}

US_API void us_carry(struct us *us, uint32_t carries)
{
	if (us) {
		us->carries = carries != 0;
	}
}

US_API void us_flush(struct us *us)
{
	if (us) {
		us->flushing = 1;
	}
}

US_API void us_sweep(struct us *us)
{
	if (us) {
		us->sweep_wanted = 1;
	}
}

/* ----------------------------------------------------------------- the rest */

static int32_t check_alive(const struct us *us, struct us_error *err)
{
	if (!us) {
		return us_fail(err, US_E_ARG, "the handle is NULL");
	}
	return us->canceled ? us_fail(err, US_E_CANCELED, "canceled") : 0;
}

US_API int32_t us_cycle(struct us *us, struct us_cycle_result *ret_result, struct us_error *err)
{
	struct us_error own = US_ERROR_INIT;
	int32_t rc = check_alive(us, err);
	if (!rc && us->flags & US_OPEN_READ_ONLY) {
		rc = us_fail(err, US_E_ARG, "this handle is read-only");
	}
	if (!rc) {
		rc = us_cycle_run(us, err ? err : &own);
	}
	if (rc || !ret_result) {
		return rc;
	}
	(void)pthread_mutex_lock(&us->mutex); /* what it has carried over may end */
	struct us_cycle_result result = us->now;
	(void)pthread_mutex_unlock(&us->mutex);
	return give_struct(ret_result, &result, sizeof(result), "ret_result", err);
}

static int32_t check_owner_args(struct us *us, int32_t timeout_ms, struct us_error *err)
{
	int32_t rc = check_alive(us, err);
	if (rc) {
		return rc;
	}
	return us->flags & US_OPEN_READ_ONLY || timeout_ms < 0 || timeout_ms > WAIT_MS_MAX
		       ? us_fail(err, US_E_ARG,
				 "this handle is read-only, or timeout_ms out of range")
		       : 0;
}

US_API int32_t us_acquire(struct us *us, uint32_t flags, int32_t timeout_ms, struct us_error *err)
{
	int32_t rc = check_owner_args(us, timeout_ms, err);
	if (rc) {
		return rc;
	}
	if (flags & ~US_ACQUIRE_TAKEOVER) {
		return us_fail(err, US_E_ARG, "us_acquire: unknown flags 0x%x", flags);
	}
	rc = us_check_credentials(us, err);
	return rc ? rc
		  : us_owner_ask(us->owner, (flags & US_ACQUIRE_TAKEOVER) != 0, timeout_ms, err);
}

US_API int32_t us_release(struct us *us, int32_t timeout_ms, struct us_error *err)
{
	int32_t rc = check_owner_args(us, timeout_ms, err);
	return rc ? rc : us_owner_release(us->owner, timeout_ms, err);
}

US_API int32_t us_stats(struct us *us, struct us_stats *ret_stats, struct us_error *err)
{
	if (!us) {
		return us_fail(err, US_E_ARG, "the handle is NULL");
	}
	uint32_t owner = us->owner ? us_owner_status(us->owner) : US_OWNER_UNKNOWN;
	(void)pthread_mutex_lock(&us->mutex);
	struct us_stats stats = us->published;
	(void)pthread_mutex_unlock(&us->mutex);
	stats.owner = owner;
	return give_struct(ret_stats, &stats, sizeof(stats), "ret_stats", err);
}

US_API int32_t us_failures(struct us *us, struct us_failure *ret_failures, size_t capacity,
			   struct us_error *err)
{
	if (!us || (capacity && !ret_failures)) {
		return us_fail(err, US_E_ARG, "the handle or ret_failures is NULL");
	}
	return us_report_failures(us->report, ret_failures, capacity);
}

US_API int32_t us_next_events(struct us *us, struct us_event *ret_events, size_t capacity,
			      struct us_error *err)
{
	if (!us || (capacity && !ret_events)) {
		return us_fail(err, US_E_ARG, "the handle or ret_events is NULL");
	}
	return us_report_next(us->report, ret_events, capacity);
}

US_API int32_t us_plan(struct us *us, struct us_plan *ret_plan, struct us_sample *ret_samples,
		       size_t capacity, size_t *ret_sample_count, struct us_error *err)
{
	int32_t rc = check_alive(us, err);
	if (rc) {
		return rc;
	}
	if (capacity && !ret_samples) {
		return us_fail(err, US_E_ARG, "ret_samples is NULL");
	}
	struct us_plan *plan = us_alloc_zero(sizeof(*plan));
	if (!plan) {
		return us_fail_nomem(err);
	}
	rc = us_plan_run(us, plan, ret_samples, capacity, ret_sample_count, err);
	if (!rc) {
		rc = give_struct(ret_plan, plan, sizeof(*plan), "ret_plan", err);
	}
	us_free(plan);
	return rc;
}

US_API int32_t us_restore(struct us *us, const struct us_restore_options *options,
			  struct us_restore_result *ret_result, struct us_error *err)
{
	struct us_restore_options o;
	int32_t rc = check_alive(us, err);
	if (!rc) {
		rc = copy_struct(&o, sizeof(o), options, "options", err);
	}
	if (rc) {
		return rc;
	}
	if (!is_set(o.path) || o.reserved || o.integrity_check > US_INTEGRITY_FULL) {
		return us_fail(err, US_E_ARG,
			       "restore: path is missing, or a field is out of range");
	}
	struct us_restore_result result = { .struct_size = sizeof(result) };
	const struct us_restore_env env = { .store = us->store,
					    .tmpl = us->tmpl,
					    .memory_len = us->memory_limit / 4,
					    .cancel = &us->canceled };
	rc = us_restore_one(&env, &o, &result, NULL, err);
	if (rc || !ret_result) {
		return rc;
	}
	return give_struct(ret_result, &result, sizeof(result), "ret_result", err);
}

US_API int32_t us_hosts(struct us *us, char *ret_names, size_t capacity, struct us_error *err)
{
	int32_t rc = check_alive(us, err);
	if (rc) {
		return rc;
	}
	if (capacity && !ret_names) {
		return us_fail(err, US_E_ARG, "ret_names is NULL");
	}
	struct us_hosts *hosts = us_alloc(sizeof(*hosts));
	if (!hosts) {
		return us_fail_nomem(err);
	}
	rc = us_hosts_find(us->store, us->pattern, us->template_text, &us->canceled, hosts, err);
	size_t at = 0;
	for (size_t i = 0; !rc && i < hosts->count; i++) {
		const char *name = hosts->names[i];
		size_t len = us_escape(name, strlen(name), NULL, 0);
		if (capacity - at <= len) {
			break;
		}
		(void)us_escape(name, strlen(name), ret_names + at, len);
		ret_names[at + len] = '\0';
		at += len + 1;
	}
	rc = rc ? rc : (int32_t)hosts->count;
	us_free(hosts);
	return rc;
}

/* --------------------------------------------------------------------- tasks */

US_API int32_t us_task_start(struct us *us, const struct us_task_options *options,
			     struct us_task **ret_task, struct us_error *err)
{
	struct us_task_options o;
	int32_t rc = check_alive(us, err);
	if (!rc) {
		rc = copy_struct(&o, sizeof(o), options, "options", err);
	}
	if (rc || !ret_task) {
		return rc ? rc : us_fail(err, US_E_ARG, "ret_task is NULL");
	}
	const struct us_fleet_view view = {
		.store = us->store,
		.pattern = us->pattern,
		.tmpl = us->tmpl,
		.table = us->table,
		.state = us->state,
		.state_error = &us->state_error,
		.state_dir = us->state_dir,
		.identity = us->identity,
		.any_filesystem = (us->flags & US_OPEN_ANY_FILESYSTEM) != 0,
		.concurrency = us->concurrency,
		.memory_limit = us->memory_limit,
		.cancel = &us->canceled,
	};
	return us_task_open(&view, &o, ret_task, err);
}

US_API int32_t us_task_next(struct us_task *task, int32_t timeout_ms, struct us_row *ret_rows,
			    size_t capacity, struct us_progress *ret_progress, struct us_error *err)
{
	if (!task || (capacity && !ret_rows) || timeout_ms < 0 || timeout_ms > WAIT_MS_MAX) {
		return us_fail(err, US_E_ARG,
			       "task or ret_rows is NULL, or timeout_ms out of range");
	}
	struct us_progress progress = { .struct_size = sizeof(progress) };
	int32_t count = us_task_take(task, timeout_ms, ret_rows, capacity, &progress, err);
	int32_t rc = ret_progress ? give_struct(ret_progress, &progress, sizeof(progress),
						"ret_progress", err)
				  : 0;
	return rc ? rc : count;
}

US_API void us_task_close(struct us_task *task)
{
	us_task_free(task);
}
