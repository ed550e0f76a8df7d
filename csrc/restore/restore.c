/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of a restore: everything local that can fail comes before the first
 * request, everything that can be wrong with the object before the first name is
 * changed. Until us_place, the only traces are a temporary file and directories
 * made for it, and both go when it fails. No lock on a database is held while
 * the network is waited for; what was checked before the download is checked
 * again under the locks.
 *
 * An object may be replaced or removed by `replicate` between listing and
 * download (retention, a new upload in its window). So a download that failed
 * for the object's sake, or gave a state after the timestamp, counts only if a
 * second listing chooses the same object again. Then the newest good one before it is
 * looked for, to be named, or taken.
 */
#include "restore.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "choose.h"
#include "fetch.h"
#include "place.h"

#define DOWNLOAD_TRIES_MAX 4
#define OLDER_TRIES_MAX 100
#define MODE_MASK 0777u /* set-id bits make no sense on a database */

struct restore {
	const struct us_restore_env *env;
	const struct us_restore_options *options;
	struct us_fetch *fetch;
	struct us_origin origin;
	int fd; /* where the image goes */
	const char *shown;
	struct us_choice choice;
	struct us_trailer trailer;
	struct us_output output;
	char key_prefix[US_KEY_LEN_MAX + 1];
	char escaped_path[US_TRAILER_PATH_LEN_MAX + 1];
};

static int is_flag(const struct restore *r, uint32_t flag)
{
	return (r->options->flags & flag) != 0;
}

static int32_t set_origin(struct restore *r, struct us_error *err)
{
	const char *path = r->options->path;
	size_t path_len = strlen(path);
	if (path_len > US_PATH_LEN_MAX) {
		return us_fail(err, US_E_NOTFOUND, "a path of %zu bytes has no backup", path_len);
	}
	int32_t key_len = us_template_key(r->env->tmpl, path, path_len, r->key_prefix, err);
	if (key_len < 0) {
		return key_len;
	}
	size_t len = us_escape(path, path_len, r->escaped_path, sizeof(r->escaped_path) - 1);
	r->escaped_path[len] = '\0';
	return 0;
}

int32_t us_restore_check_output(const struct us_output *o, uint32_t flags,
				const _Atomic uint32_t *cancel, int *ret_skip, struct us_error *err)
{
	int force = (flags & US_RESTORE_FORCE) != 0, dry = (flags & US_RESTORE_DRY_RUN) != 0;
	int present;
	*ret_skip = 0;
	if (o->dir_fd < 0 || (!force && us_place_is_free(o))) {
		return 0;
	}
	int32_t rc = dry ? 0 : us_place_recover(o, force, cancel, err);
	if (!rc && flags & US_RESTORE_IF_DB_NOT_EXISTS) {
		rc = us_output_exists(o, err);
		*ret_skip = rc > 0;
	}
	if (rc < 0 || *ret_skip || dry) {
		return rc < 0 ? rc : 0;
	}
	rc = us_output_check(o, force, &present, err);
	return rc || (!present && !force) ? rc : us_output_probe(o, err);
}

static int is_in_time(const struct restore *r)
{
	int64_t timestamp_ns = r->options->timestamp_ns;
	return timestamp_ns == 0 || r->trailer.snapshot_ns <= timestamp_ns;
}

/* The object of r->choice, with all that is wanted to be known of it. */
static int32_t fetch_and_check(struct restore *r, struct us_error *err)
{
	int32_t rc = us_fetch_object(r->fetch, &r->origin, &r->choice, r->fd, r->shown, &r->trailer,
				     err);
	return rc ? rc
		  : us_choose_name(us_fetch_check(r->fd, r->options->integrity_check, r->shown,
						  r->origin.cancel, err),
				   r->choice.key, err);
}

static int is_bad_object(int32_t rc)
{
	return rc == US_E_OBJECT || rc == US_E_CORRUPT;
}

static int32_t download(struct restore *r, struct us_error *err)
{
	for (int i = 0; i < DOWNLOAD_TRIES_MAX; i++) {
		struct us_choice again;
		struct us_error other = US_ERROR_INIT;
		int32_t rc = fetch_and_check(r, err);
		if (rc ? !is_bad_object(rc) && rc != US_E_NOTFOUND && rc != US_E_BUSY
		       : is_in_time(r)) {
			return rc;
		}
		int32_t again_rc = us_choose(&r->origin, r->options->timestamp_ns, &again, &other);
		if (again_rc) {
			if (!rc && err) {
				*err = other;
			}
			return rc ? rc : again_rc;
		}
		if (rc && again.time_s == r->choice.time_s &&
		    again.object_len == r->choice.object_len) {
			return rc;
		}
		r->choice = again;
	}
	return us_fail(err, US_E_BUSY, "the backups of \"%s\" keep changing", r->shown);
}

/* The newest good one of the objects before r->choice. 0, US_E_NOTFOUND, or why it
 * cannot be told. */
static int32_t find_older(struct restore *r)
{
	struct us_backup *backups;
	size_t count;
	int32_t rc = us_choose_list(&r->origin, &backups, &count, NULL);
	if (rc) {
		return rc;
	}
	while (count > 0 && backups[count - 1].time_s >= r->choice.time_s) {
		count--;
	}
	rc = US_E_NOTFOUND;
	for (int i = 0; i < OLDER_TRIES_MAX && count > 0; i++) {
		us_choose_make(&r->origin, &backups[--count], &r->choice);
		rc = fetch_and_check(r, NULL);
		if (!is_bad_object(rc)) {
			break;
		}
	}
	us_free(backups);
	return rc;
}

/* The object chosen is bad, as BAD says: looks for an older one. */
static int32_t fall_back(struct restore *r, int32_t bad_rc, const struct us_error *bad,
			 struct us_error *ret_bad, struct us_error *err)
{
	int32_t rc = find_older(r);
	if (rc == 0 && r->env->fallback) {
		*ret_bad = *bad;
		return 0;
	}
	if (rc == US_E_CANCELED) {
		return us_fail(err, rc, "canceled");
	}
	if (err) {
		*err = *bad;
	}
	if (rc == 0) {
		char time[US_TIME_RFC3339_LEN + 1];
		us_time_rfc3339_format(r->trailer.snapshot_ns, time);
		(void)us_fail(err, bad_rc, "%s; the next older good one is \"%s\" of %s",
			      bad->message, r->choice.key, time);
	}
	return bad_rc;
}

static int32_t download_good(struct restore *r, struct us_error *ret_bad, struct us_error *err)
{
	struct us_error own = US_ERROR_INIT;
	int32_t rc = download(r, &own);
	if (is_bad_object(rc)) {
		return fall_back(r, rc, &own, ret_bad, err);
	}
	if (rc && err) {
		*err = own;
	}
	return rc;
}

/* A root that may not give files away (user namespaces, file systems without owners)
 * keeps them. A chown may clear mode bits: the mode comes after it. */
int32_t us_restore_set_mode(const struct us_output *o, const struct us_trailer *trailer,
			    struct us_error *err)
{
	int fd = o->temp_fd;
	if (geteuid() == 0 && fchown(fd, trailer->uid, trailer->gid) && errno != EPERM &&
	    errno != EINVAL && errno != EOPNOTSUPP) {
		return us_fail_errno(err, errno, "cannot set owner %u:%u of \"%s\"", trailer->uid,
				     trailer->gid, o->shown);
	}
	if (fchmod(fd, trailer->mode & MODE_MASK)) {
		return us_fail_errno(err, errno, "cannot set the mode of \"%s\"", o->shown);
	}
	return us_output_set_dirs(o, trailer->uid, trailer->gid, trailer->mode, err);
}

static int32_t fetch_and_place(struct restore *r, struct us_error *ret_bad, struct us_error *err)
{
	const _Atomic uint32_t *cancel = r->origin.cancel;
	int32_t rc = us_output_temp(&r->output, cancel, err);
	if (!rc) {
		r->fd = r->output.temp_fd;
		rc = download_good(r, ret_bad, err);
	}
	if (!rc) {
		rc = us_restore_set_mode(&r->output, &r->trailer, err);
	}
	if (!rc && fsync(r->fd)) {
		rc = us_fail_errno(err, errno, "cannot make the restored file of \"%s\" durable",
				   r->shown);
	}
	if (!rc) {
		rc = us_check_cancel(cancel, err);
	}
	if (!rc) {
		rc = us_place(&r->output, is_flag(r, US_RESTORE_FORCE), 0, cancel, err);
	}
	if (!rc) {
		r->output.made_len = 0; /* they stay */
	}
	return rc;
}

static int32_t run(struct restore *r, int *ret_skip, struct us_error *ret_bad, struct us_error *err)
{
	const char *output = r->options->output_path;
	const char *tree =
		r->env->tree ? r->env->tree : us_pattern_prefix(us_template_pattern(r->env->tmpl));
	int32_t rc = us_output_open(&r->output, output ? output : r->options->path, tree, err);
	r->shown = r->output.shown;
	if (r->env->made_dirs) {
		r->output.made_dirs = r->env->made_dirs;
		r->output.enter_wait_ns = US_OUTPUT_FLEET_WAIT_NS;
	}
	if (!rc) {
		rc = us_restore_check_output(&r->output, r->options->flags, r->origin.cancel,
					     ret_skip, err);
	}
	if (rc || *ret_skip) {
		return rc;
	}
	rc = us_choose(&r->origin, r->options->timestamp_ns, &r->choice, err);
	if (rc) {
		return rc;
	}
	if (is_flag(r, US_RESTORE_DRY_RUN)) {
		return us_choose_trailer(&r->origin, r->choice.key, &r->trailer,
					 &r->choice.object_len, err);
	}
	return fetch_and_place(r, ret_bad, err);
}

static void give_result(const struct restore *r, int skip, struct us_restore_result *ret)
{
	struct us_restore_result result = { .struct_size = ret->struct_size, .skipped = skip != 0 };
	if (!skip) {
		_Static_assert(sizeof(result.key) >= sizeof(r->choice.key), "a key fits");
		memcpy(result.key, r->choice.key, strlen(r->choice.key) + 1);
		result.mode = r->trailer.mode;
		result.page_size = r->trailer.page_size;
		result.object_len = r->choice.object_len;
		result.database_len = r->trailer.database_len;
		result.snapshot_ns = r->trailer.snapshot_ns;
	}
	*ret = result;
}

/* A restore of OPTIONS with its origin; freed with restore_free. */
static int32_t restore_new(const struct us_restore_env *env,
			   const struct us_restore_options *options, struct restore **ret_restore,
			   struct us_error *err)
{
	struct restore *r = us_alloc_zero(sizeof(*r));
	if (!r) {
		return us_fail_nomem(err);
	}
	r->env = env;
	r->options = options;
	r->origin = (struct us_origin){ .store = env->store,
					.key_prefix = r->key_prefix,
					.escaped_path = r->escaped_path,
					.part_len = us_fetch_part_len(env->memory_len),
					.cancel = env->cancel };
	r->output.dir_fd = r->output.temp_fd = -1;
	int32_t rc = set_origin(r, err);
	if (!rc) {
		rc = us_fetch_new(&r->fetch, err);
	}
	if (rc) {
		us_free(r);
		return rc;
	}
	*ret_restore = r;
	return 0;
}

static void restore_free(struct restore *r)
{
	us_fetch_free(r->fetch);
	us_free(r);
}

int32_t us_restore_one(const struct us_restore_env *env, const struct us_restore_options *options,
		       struct us_restore_result *ret, struct us_error *ret_bad,
		       struct us_error *err)
{
	const uint32_t known = US_RESTORE_FORCE | US_RESTORE_DRY_RUN | US_RESTORE_IF_DB_NOT_EXISTS;
	struct us_error bad = US_ERROR_INIT;
	struct restore *r;
	if (options->flags & ~known || options->integrity_check > US_INTEGRITY_FULL) {
		return us_fail(err, US_E_ARG, "restore: unknown flags 0x%x or integrity check %u",
			       options->flags, options->integrity_check);
	}
	int32_t rc = restore_new(env, options, &r, err);
	if (rc) {
		return rc;
	}
	int skip = 0;
	rc = run(r, &skip, &bad, err);
	us_output_close(&r->output);
	if (!rc) {
		give_result(r, skip, ret);
		if (ret_bad) {
			*ret_bad = bad;
		}
	}
	restore_free(r);
	return rc;
}

int32_t us_verify_one(const struct us_restore_env *env, const char *path, uint32_t integrity_check,
		      int fd, struct us_choice *ret_choice, struct us_trailer *ret_trailer,
		      struct us_error *err)
{
	const struct us_restore_options options = { .struct_size = sizeof(options),
						    .path = path,
						    .integrity_check = integrity_check };
	struct us_error bad = US_ERROR_INIT;
	char shown[US_ESCAPE_SHOW_LEN];
	struct restore *r;
	int32_t rc = restore_new(env, &options, &r, err);
	if (rc) {
		return rc;
	}
	r->fd = fd;
	r->shown = us_escape_show(path, strlen(path), shown);
	rc = us_choose(&r->origin, 0, &r->choice, err);
	if (!rc) {
		rc = download_good(r, &bad, err);
	}
	if (!rc) {
		*ret_choice = r->choice;
		*ret_trailer = r->trailer;
	}
	restore_free(r);
	return rc;
}
