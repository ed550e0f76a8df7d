/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which object of a database to restore. Objects are listed below
 * `<key prefix>/`; what counts is exactly "20060102T150405Z.db.lz4" as a direct
 * child. Names and snapshot times ascend together (DESIGN.md section 3), but a
 * name is only the start of a window: a point in time is decided by the snapshot
 * time in the trailer. The trailers are searched by bisection, so a database with
 * 86,400 objects costs 17 small reads.
 *
 * If the object chosen is damaged, it is named, never skipped: an older state in its
 * place would look like a success. Others that are damaged do not matter.
 */
#include "choose.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"

#define OBJECT_COUNT_MAX (4u << 20) /* one every second for 48 days */
#define OBJECT_COUNT_FIRST 256u

struct listing {
	size_t prefix_len; /* of "<key prefix>/" */
	int all;           /* 0: only the newest is kept */
	const _Atomic uint32_t *cancel;
	struct us_backup *found;
	size_t count, cap;
};

int32_t us_check_cancel(const _Atomic uint32_t *cancel, struct us_error *err)
{
	return cancel && *cancel ? us_fail(err, US_E_CANCELED, "canceled") : 0;
}

int32_t us_choose_name(int32_t rc, const char *key, struct us_error *err)
{
	if (rc != US_E_OBJECT || !err) {
		return rc;
	}
	char reason[US_ERROR_MESSAGE_LEN], shown[US_ESCAPE_SHOW_LEN];
	memcpy(reason, err->message, sizeof(reason));
	return us_fail(err, rc, "backup \"%s\": %s", us_escape_show(key, strlen(key), shown),
		       reason);
}

/* ------------------------------------------------------------------ listing */

static int32_t make_room(struct listing *l)
{
	if (l->count < l->cap) {
		return 0;
	}
	size_t cap = l->cap ? 2 * l->cap : OBJECT_COUNT_FIRST;
	if (cap > OBJECT_COUNT_MAX) {
		return US_E_UNSUPPORTED;
	}
	struct us_backup *found = us_realloc(l->found, cap * sizeof(*found));
	if (!found) {
		return US_E_NOMEM;
	}
	l->found = found;
	l->cap = cap;
	return 0;
}

static int32_t take_listed(void *arg, const char *key, size_t key_len, uint64_t object_len)
{
	struct listing *l = arg;
	struct us_backup found = { .object_len = object_len };
	if (us_check_cancel(l->cancel, NULL)) {
		return US_E_CANCELED;
	}
	if (key_len != l->prefix_len + US_TIME_NAME_LEN + strlen(US_OBJECT_SUFFIX)) {
		return 0;
	}
	const char *name = key + l->prefix_len;
	if (us_time_name_parse(name, US_TIME_NAME_LEN, &found.time_s) ||
	    strcmp(name + US_TIME_NAME_LEN, US_OBJECT_SUFFIX) != 0) {
		return 0;
	}
	if (!l->all && l->count == 1) {
		if (found.time_s >= l->found[0].time_s) {
			l->found[0] = found;
		}
		return 0;
	}
	int32_t rc = make_room(l);
	if (!rc) {
		l->found[l->count++] = found;
	}
	return rc;
}

static int by_time(const void *a, const void *b)
{
	const struct us_backup *x = a, *y = b;
	return x->time_s < y->time_s ? -1 : x->time_s > y->time_s;
}

static int32_t list_objects(const struct us_origin *o, struct listing *l, struct us_error *err)
{
	char prefix[US_KEY_LEN_MAX + 2];
	int len = snprintf(prefix, sizeof(prefix), "%s/", o->key_prefix);
	if (len < 0 || (size_t)len >= sizeof(prefix)) {
		return us_fail(err, US_E_NAME, "a key of %zu bytes is too long",
			       strlen(o->key_prefix));
	}
	l->prefix_len = (size_t)len;
	us_error_clear(err);
	int32_t rc = o->store->ops->list(o->store, prefix, take_listed, l, err);
	if (rc == US_E_NOMEM) {
		return us_fail_nomem(err);
	}
	if (rc == US_E_UNSUPPORTED && l->count == OBJECT_COUNT_MAX) {
		return us_fail(err, rc, "more than %u backups of \"%s\"", OBJECT_COUNT_MAX,
			       o->escaped_path);
	}
	if (rc == US_E_CANCELED) {
		return us_fail(err, rc, "canceled");
	}
	if (!rc && l->count > 1) { /* most targets list in order; the search relies on it */
		qsort(l->found, l->count, sizeof(*l->found), by_time);
	}
	return rc;
}

int32_t us_choose_list(const struct us_origin *o, struct us_backup **ret_backups, size_t *ret_count,
		       struct us_error *err)
{
	struct listing listing = { .all = 1, .cancel = o->cancel };
	int32_t rc = list_objects(o, &listing, err);
	if (rc) {
		us_free(listing.found);
		return rc;
	}
	*ret_backups = listing.found;
	*ret_count = listing.count;
	return 0;
}

void us_choose_make(const struct us_origin *o, const struct us_backup *found, struct us_choice *ret)
{
	ret->time_s = found->time_s;
	ret->object_len = found->object_len;
	us_object_key(o->key_prefix, found->time_s, ret->key);
}

/* ----------------------------------------------------------------- trailers */

struct tail {
	const _Atomic uint32_t *cancel;
	size_t len;
	uint8_t data[US_TRAILER_LEN_MAX];
};

static int32_t take_tail(void *arg, const uint8_t *data, size_t data_len, struct us_error *err)
{
	struct tail *tail = arg;
	if (data_len > sizeof(tail->data) - tail->len) {
		return us_fail(err, US_E_IO,
			       "the target sent more of the object than was asked for");
	}
	memcpy(tail->data + tail->len, data, data_len);
	tail->len += data_len;
	return us_check_cancel(tail->cancel, err);
}

int32_t us_choose_check(const struct us_origin *o, const char *key,
			const struct us_trailer *trailer, struct us_error *err)
{
	if (strcmp(trailer->path, o->escaped_path) == 0) {
		return 0;
	}
	char shown[US_ESCAPE_SHOW_LEN];
	us_fail(err, US_E_OBJECT, "it belongs to another database: \"%s\"",
		us_escape_show(trailer->path, strlen(trailer->path), shown));
	return us_choose_name(US_E_OBJECT, key, err);
}

int32_t us_choose_trailer(const struct us_origin *o, const char *key,
			  struct us_trailer *ret_trailer, uint64_t *ret_object_len,
			  struct us_error *err)
{
	struct tail *tail = us_alloc(sizeof(*tail));
	if (!tail) {
		return us_fail_nomem(err);
	}
	tail->cancel = o->cancel;
	tail->len = 0;
	int32_t rc = o->store->ops->get(o->store, key, -US_TRAILER_LEN_MAX, UINT64_MAX, take_tail,
					tail, ret_object_len, err);
	if (!rc) {
		rc = us_trailer_parse(tail->data, tail->len, ret_trailer, NULL, err);
		rc = us_choose_name(rc, key, err);
	}
	us_free(tail);
	return rc ? rc : us_choose_check(o, key, ret_trailer, err);
}

/* ------------------------------------------------------------------- choice */

static int32_t fail_none(const struct us_origin *o, int64_t timestamp_ns, int64_t earliest_ns,
			 struct us_error *err)
{
	char shown[US_ESCAPE_SHOW_LEN],
		wanted[US_TIME_RFC3339_LEN + 1] = "1970", earliest[US_TIME_RFC3339_LEN + 1];
	if (timestamp_ns >= 0) {
		us_time_rfc3339_format(timestamp_ns, wanted);
	}
	us_time_rfc3339_format(earliest_ns, earliest);
	return us_fail(
		err, US_E_NOTFOUND, "no backup of \"%s\" is as old as %s; the earliest is of %s",
		us_escape_show(o->escaped_path, strlen(o->escaped_path), shown), wanted, earliest);
}

/* The last of L whose snapshot time is not after TIMESTAMP_NS. */
static int32_t search(const struct us_origin *o, const struct listing *l, int64_t timestamp_ns,
		      struct us_choice *ret, struct us_error *err)
{
	struct us_trailer *trailer = us_alloc(sizeof(*trailer));
	if (!trailer) {
		return us_fail_nomem(err);
	}
	int32_t rc = 0;
	int64_t earliest_ns = 0;
	size_t low = 0, high = l->count; /* below LOW: not after it; from HIGH on: after it */
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		us_choose_make(o, &l->found[middle], ret);
		rc = us_choose_trailer(o, ret->key, trailer, NULL, err);
		if (rc == US_E_OBJECT) {
			/* Damaged: its name shows the way. If it is the one chosen, the restore
			 * says so. */
			trailer->snapshot_ns = l->found[middle].time_s * US_NS_PER_S;
			rc = 0;
		}
		if (rc) {
			break;
		}
		earliest_ns = trailer->snapshot_ns; /* the last one read, if none is old enough */
		if (trailer->snapshot_ns <= timestamp_ns) {
			low = middle + 1;
		} else {
			high = middle;
		}
	}
	us_free(trailer);
	if (rc) {
		return rc;
	}
	if (low == 0) {
		return fail_none(o, timestamp_ns, earliest_ns, err);
	}
	us_choose_make(o, &l->found[low - 1], ret);
	return 0;
}

int32_t us_choose(const struct us_origin *o, int64_t timestamp_ns, struct us_choice *ret_choice,
		  struct us_error *err)
{
	struct listing listing = { .all = timestamp_ns != 0, .cancel = o->cancel };
	struct us_choice choice;
	int32_t rc = list_objects(o, &listing, err);
	if (rc) {
		goto out;
	}
	if (listing.count == 0) {
		char shown[US_ESCAPE_SHOW_LEN];
		rc = us_fail(err, US_E_NOTFOUND, "no backup of \"%s\" in the target",
			     us_escape_show(o->escaped_path, strlen(o->escaped_path), shown));
	} else if (timestamp_ns == 0) {
		us_choose_make(o, &listing.found[0], &choice);
	} else {
		rc = search(o, &listing, timestamp_ns, &choice, err);
	}
	if (!rc) {
		*ret_choice = choice;
	}
out:
	us_free(listing.found);
	return rc;
}
