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
 * second listing chooses the same object again.
 */
#include "restore.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "choose.h"
#include "fetch.h"
#include "place.h"

#define DOWNLOAD_TRIES_MAX 4
#define MODE_MASK 0777u /* set-id bits make no sense on a database */

struct restore {
	const char *tree; /* where the pattern looks: no link is followed below it */
	const struct us_restore_options *options;
	struct us_origin origin;
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

static int32_t set_origin(struct restore *r, const struct us_template *tmpl, struct us_error *err)
{
	const char *path = r->options->path;
	size_t path_len = strlen(path);
	if (path_len > US_PATH_LEN_MAX) {
		return us_fail(err, US_E_NOTFOUND, "a path of %zu bytes has no backup", path_len);
	}
	int32_t key_len = us_template_key(tmpl, path, path_len, r->key_prefix, err);
	if (key_len < 0) {
		return key_len;
	}
	size_t len = us_escape(path, path_len, r->escaped_path, sizeof(r->escaped_path) - 1);
	r->escaped_path[len] = '\0';
	return 0;
}

/* What stands in the way, before the network is asked. RET_SKIP: done already. */
static int32_t check_output(struct restore *r, int *ret_skip, struct us_error *err)
{
	const struct us_output *o = &r->output;
	int force = is_flag(r, US_RESTORE_FORCE), dry = is_flag(r, US_RESTORE_DRY_RUN);
	int present;
	*ret_skip = 0;
	if (o->dir_fd < 0) {
		return 0;
	}
	int32_t rc = dry ? 0 : us_place_recover(o, force, r->origin.cancel, err);
	if (!rc && is_flag(r, US_RESTORE_IF_DB_NOT_EXISTS)) {
		rc = us_output_exists(o, err);
		*ret_skip = rc > 0;
	}
	if (rc < 0 || *ret_skip || dry) {
		return rc < 0 ? rc : 0;
	}
	rc = us_output_check(o, force, &present, err);
	return rc ? rc : us_output_probe(o, err);
}

static int is_in_time(const struct restore *r)
{
	int64_t timestamp_ns = r->options->timestamp_ns;
	return timestamp_ns == 0 || r->trailer.snapshot_ns <= timestamp_ns;
}

static int32_t download(struct restore *r, struct us_error *err)
{
	for (int i = 0; i < DOWNLOAD_TRIES_MAX; i++) {
		struct us_choice again;
		struct us_error other = US_ERROR_INIT;
		int32_t rc = us_fetch(&r->origin, &r->choice, r->output.temp_fd, r->output.shown,
				      &r->trailer, err);
		if (rc ? rc != US_E_OBJECT && rc != US_E_NOTFOUND : is_in_time(r)) {
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
	return us_fail(err, US_E_BUSY, "the backups of \"%s\" keep changing", r->output.shown);
}

/* Owner (as root) before mode: a chown may clear mode bits. A root that may not
 * give files away (user namespaces, file systems without owners) keeps it. */
static int32_t set_owner_and_mode(const struct restore *r, struct us_error *err)
{
	int fd = r->output.temp_fd;
	if (geteuid() == 0 && fchown(fd, r->trailer.uid, r->trailer.gid) && errno != EPERM &&
	    errno != EINVAL && errno != EOPNOTSUPP) {
		return us_fail_errno(err, errno, "cannot set owner %u:%u of \"%s\"", r->trailer.uid,
				     r->trailer.gid, r->output.shown);
	}
	if (fchmod(fd, r->trailer.mode & MODE_MASK)) {
		return us_fail_errno(err, errno, "cannot set the mode of \"%s\"", r->output.shown);
	}
	return 0;
}

static int32_t fetch_and_place(struct restore *r, struct us_error *err)
{
	const _Atomic uint32_t *cancel = r->origin.cancel;
	int32_t rc = us_output_temp(&r->output, cancel, err);
	if (!rc) {
		rc = download(r, err);
	}
	if (!rc) {
		rc = us_fetch_check(r->output.temp_fd, r->options->integrity_check, r->output.shown,
				    cancel, err);
	}
	if (!rc) {
		rc = set_owner_and_mode(r, err);
	}
	if (!rc && fsync(r->output.temp_fd)) {
		rc = us_fail_errno(err, errno, "cannot make the restored file of \"%s\" durable",
				   r->output.shown);
	}
	if (!rc) {
		rc = us_check_cancel(cancel, err);
	}
	return rc ? rc : us_place(&r->output, is_flag(r, US_RESTORE_FORCE), cancel, err);
}

static int32_t run(struct restore *r, int *ret_skip, struct us_error *err)
{
	const char *output = r->options->output_path;
	int32_t rc = us_output_open(&r->output, output ? output : r->options->path, r->tree, err);
	if (!rc) {
		rc = check_output(r, ret_skip, err);
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
	return fetch_and_place(r, err);
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

int32_t us_restore_one(struct us_store *store, const struct us_template *tmpl,
		       const struct us_restore_options *options, const _Atomic uint32_t *cancel,
		       struct us_restore_result *ret, struct us_error *err)
{
	const uint32_t known = US_RESTORE_FORCE | US_RESTORE_DRY_RUN | US_RESTORE_IF_DB_NOT_EXISTS;
	if (options->flags & ~known || options->integrity_check > US_INTEGRITY_FULL) {
		return us_fail(err, US_E_ARG, "restore: unknown flags 0x%x or integrity check %u",
			       options->flags, options->integrity_check);
	}
	struct restore *r = us_alloc_zero(sizeof(*r));
	if (!r) {
		return us_fail_nomem(err);
	}
	int skip = 0;
	r->options = options;
	r->tree = us_pattern_prefix(us_template_pattern(tmpl));
	r->origin = (struct us_origin){ .store = store,
					.key_prefix = r->key_prefix,
					.escaped_path = r->escaped_path,
					.cancel = cancel };
	r->output.dir_fd = r->output.temp_fd = -1;
	int32_t rc = set_origin(r, tmpl, err);
	if (!rc) {
		rc = run(r, &skip, err);
		us_output_close(&r->output);
	}
	if (!rc) {
		give_result(r, skip, ret);
	}
	us_free(r);
	return rc;
}
