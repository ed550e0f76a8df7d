/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocking calls that take away: one object, many, and what is left of uploads in parts.
 *
 * Many go in one DeleteObjects request. Keys that no XML document can hold go one by one
 * behind it, and so does everything where the server has no such request. A failure of
 * one key does not keep the others from being removed; one of the network does.
 *
 * Uploads are listed first and aborted then, because aborting takes away what a listing's
 * marker points at. A listing goes on behind a key, not behind an upload of that key,
 * which some servers get wrong. So of a key's many uploads some may be left for the next
 * call, as is what does not fit into FOUND_LEN_MAX.
 */
#include <openssl/evp.h>
#include <string.h>

#include "s3_call.h"

#define FOUND_LEN_MAX ((size_t)8 << 20)
#define MD5_LEN 16
#define MD5_BASE64_LEN 24

static const char body_start[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
				 "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
				 "<Quiet>true</Quiet>";

/* ---- one */

static int32_t remove_one(struct us_s3_call *call, const char *key, struct us_error *err)
{
	struct us_s3_store *store = call->store;
	call->has_page = call->has_body = 0;
	int32_t rc = us_s3_request_remove(&call->transfer.request, &store->endpoint, &store->signer,
					  key, err);
	rc = rc ? rc : us_s3_call_perform(call, &store->remove, err);
	if (rc || call->transfer.reply.status == 200 || call->transfer.reply.status == 204) {
		return rc;
	}
	rc = us_s3_call_fail_answer(call, 1, err);
	if (rc == US_E_NOTFOUND) { /* gone is what was wanted */
		us_error_clear(err);
		rc = 0;
	}
	return rc;
}

int32_t us_s3_remove(struct us_store *base, const char *key, struct us_error *err)
{
	struct us_s3_call *call = us_s3_call_take((struct us_s3_store *)base, err);
	if (!call) {
		return US_E_NOMEM;
	}
	int32_t rc = remove_one(call, key, err);
	us_s3_call_put_back(call);
	return rc;
}

/* ---- many */

struct removal {
	struct us_s3_call *call;
	const char *const *keys;
	size_t count, removed;
	int32_t rc; /* the first failure, in ERR too */
	struct us_error *err;
};

static void note_failure(struct removal *removal, int32_t rc, const struct us_error *err)
{
	if (removal->rc == 0) {
		removal->rc = rc;
		if (removal->err) {
			*removal->err = *err;
		}
	}
}

/* Whether a failure is the target's, and would be the next key's too. */
static int is_general(int32_t rc)
{
	return rc == US_E_NETWORK || rc == US_E_TIMEOUT || rc == US_E_CANCELED || rc == US_E_NOMEM;
}

static int fits_document(const char *key)
{
	size_t len = strnlen(key, US_S3_KEY_LEN_MAX + 1);
	return len > 0 && len <= US_S3_KEY_LEN_MAX && us_s3_xml_can_hold(key, len);
}

/* Removes one by one: all, or those that do not fit into a document. */
static void remove_each(struct removal *removal, int all)
{
	for (size_t i = 0; i < removal->count && !is_general(removal->rc); i++) {
		struct us_error err = US_ERROR_INIT;
		if (!all && fits_document(removal->keys[i])) {
			continue;
		}
		int32_t rc = remove_one(removal->call, removal->keys[i], &err);
		if (rc) {
			note_failure(removal, rc, &err);
		} else {
			removal->removed++;
		}
	}
}

/* Writes the body; returns how many keys are in it. */
static size_t build_body(const struct removal *removal)
{
	struct us_text *body = &removal->call->body;
	size_t count = 0;
	us_text_clear(body);
	us_text_puts(body, body_start);
	for (size_t i = 0; i < removal->count; i++) {
		const char *key = removal->keys[i];
		if (fits_document(key)) {
			us_text_puts(body, "<Object><Key>");
			us_s3_xml_escape(body, key, strlen(key));
			us_text_puts(body, "</Key></Object>");
			count++;
		}
	}
	us_text_puts(body, "</Delete>");
	return count;
}

/* Signs and describes the body that was built. */
static int32_t build_request(const struct removal *removal, struct us_error *err)
{
	struct us_s3_call *call = removal->call;
	struct us_s3_store *store = call->store;
	uint8_t sha256[US_SHA256_LEN], md5[MD5_LEN];
	char md5_base64[MD5_BASE64_LEN + 1];
	if (call->body.failed ||
	    !EVP_Digest(call->body.data, call->body.len, sha256, NULL, EVP_sha256(), NULL)) {
		return us_fail_nomem(err);
	}
	if (!EVP_Digest(call->body.data, call->body.len, md5, NULL, EVP_md5(), NULL)) {
		return us_fail(err, US_E_UNSUPPORTED, "no MD5 here"); /* FIPS */
	}
	(void)EVP_EncodeBlock((unsigned char *)md5_base64, md5, MD5_LEN); /* its fixed length */
	call->has_body = 1;
	return us_s3_request_remove_many(&call->transfer.request, &store->endpoint, &store->signer,
					 removal->keys[0], sha256, md5_base64, err);
}

/* Counts what the answer to COUNT keys says. */
static void take_result(struct removal *removal, size_t count)
{
	struct us_s3_call *call = removal->call;
	const struct us_s3_error_doc *first = us_s3_page_first_failure(call->page);
	size_t failures = us_s3_page_failure_count(call->page);
	removal->removed += failures < count ? count - failures : 0;
	if (first) {
		struct us_error err = US_ERROR_INIT;
		struct us_s3_request *request = &call->transfer.request;
		request->method = "DELETE"; /* which is what has failed */
		request->key = us_s3_request_leaks(request, first->key) ? "" : first->key;
		int32_t rc = us_s3_reply_fail_doc(&call->transfer.reply, first,
						  &call->store->endpoint, request, 0, &err);
		note_failure(removal, rc, &err);
	}
}

/* 0 if the request was answered, US_E_UNSUPPORTED, or a failure, which is noted. */
static int32_t remove_batch(struct removal *removal)
{
	struct us_s3_call *call = removal->call;
	struct us_error err = US_ERROR_INIT;
	size_t count = build_body(removal);
	if (count == 0) {
		return 0;
	}
	int32_t rc = build_request(removal, &err);
	if (rc == US_E_UNSUPPORTED) {
		return rc;
	}
	rc = rc ? rc : us_s3_call_document(call, US_S3_DELETED, &call->store->remove, &err);
	if (rc == 0) {
		take_result(removal, count);
	} else if (us_s3_reply_is_unsupported(&call->transfer.reply)) {
		return US_E_UNSUPPORTED;
	} else {
		note_failure(removal, rc, &err);
	}
	return rc;
}

int32_t us_s3_remove_many(struct us_store *base, const char *const *keys, size_t count,
			  size_t *ret_removed, struct us_error *err)
{
	*ret_removed = 0;
	if (count > US_REMOVE_MANY_MAX) {
		return us_fail(err, US_E_ARG, "remove: %zu keys, more than %d", count,
			       US_REMOVE_MANY_MAX);
	}
	struct us_s3_call *call = us_s3_call_take((struct us_s3_store *)base, err);
	if (!call) {
		return US_E_NOMEM;
	}
	struct removal removal = { .call = call, .keys = keys, .count = count, .err = err };
	remove_each(&removal, remove_batch(&removal) == US_E_UNSUPPORTED);
	us_text_done(&call->body); /* up to megabytes, rarely needed */
	us_s3_call_put_back(call);
	*ret_removed = removal.removed;
	return removal.rc;
}

/* ---- uploads in parts */

struct sweep {
	struct us_s3_call *call;
	const char *prefix;
	us_store_is_ours_fn *is_ours;
	void *arg;
	struct us_text found; /* key and id of each, with their NULs */
	struct us_text after_key;
};

static int32_t fetch_uploads(struct sweep *sweep, struct us_error *err)
{
	struct us_s3_call *call = sweep->call;
	struct us_s3_store *store = call->store;
	const char *after_key = sweep->after_key.len > 0 ? sweep->after_key.data : NULL;
	int32_t rc = us_s3_request_uploads(&call->transfer.request, &store->endpoint,
					   &store->signer, sweep->prefix, after_key, err);
	return rc ? rc : us_s3_call_document(call, US_S3_UPLOADS, &store->list, err);
}

static const char *check_uploads(struct sweep *sweep)
{
	const struct us_s3_page *page = sweep->call->page;
	size_t prefix_len = strlen(sweep->prefix);
	for (size_t i = 0; i < us_s3_page_count(page); i++) {
		if (strncmp(us_s3_page_entry(page, i).key, sweep->prefix, prefix_len) != 0) {
			return "a key that does not begin with the prefix";
		}
	}
	const char *next = us_s3_page_next_token(page);
	int moves = !next || sweep->after_key.len == 0 || strcmp(next, sweep->after_key.data) > 0;
	return moves ? NULL : "it does not move on";
}

/* Keeps those of a page that are to go. 0 if there is no room for more. */
static int keep_found(struct sweep *sweep)
{
	const struct us_s3_page *page = sweep->call->page;
	struct us_text *found = &sweep->found;
	for (size_t i = 0; i < us_s3_page_count(page); i++) {
		struct us_s3_entry entry = us_s3_page_entry(page, i);
		if (!sweep->is_ours(sweep->arg, entry.key, entry.key_len)) {
			continue;
		}
		size_t id_len = strlen(entry.upload_id);
		if (entry.key_len + id_len + 2 > found->len_max - found->len) {
			return 0;
		}
		us_text_add(found, entry.key, entry.key_len + 1); /* with its NUL */
		us_text_add(found, entry.upload_id, id_len + 1);
	}
	return 1;
}

static int32_t find_uploads(struct sweep *sweep, struct us_error *err)
{
	for (;;) { /* check_uploads sees to it that it moves; cancel ends it */
		int32_t rc = fetch_uploads(sweep, err);
		if (rc && us_s3_reply_is_unsupported(&sweep->call->transfer.reply)) {
			us_error_clear(err); /* who has no such uploads has none to abort */
			return 0;
		}
		if (rc) {
			return rc;
		}
		const char *fault = check_uploads(sweep);
		if (fault) {
			(void)us_fail(err, US_E_HTTP, "malformed listing: %s", fault);
			return us_s3_call_name_request(sweep->call, US_E_HTTP, err);
		}
		const struct us_s3_page *page = sweep->call->page;
		const char *next = us_s3_page_next_token(page);
		if (!keep_found(sweep) || !next) {
			return sweep->found.failed ? us_fail_nomem(err) : 0;
		}
		us_text_clear(&sweep->after_key);
		us_text_puts(&sweep->after_key, next);
		if (sweep->after_key.failed) {
			return us_fail_nomem(err);
		}
	}
}

/* 1: it was there and is gone; 0: it was gone already; or the failure. */
static int32_t abort_one(struct us_s3_call *call, const char *key, const char *upload_id,
			 struct us_error *err)
{
	struct us_s3_store *store = call->store;
	call->has_page = 0;
	int32_t rc = us_s3_request_abort(&call->transfer.request, &store->endpoint, &store->signer,
					 key, upload_id, err);
	rc = rc ? rc : us_s3_call_perform(call, &store->remove, err);
	if (rc) {
		return rc;
	}
	if (call->transfer.reply.status == 200 || call->transfer.reply.status == 204) {
		return 1;
	}
	rc = us_s3_call_fail_answer(call, 1, err);
	return rc == US_E_NOTFOUND ? 0 : rc;
}

static int32_t abort_found(struct sweep *sweep, uint64_t *ret_count, struct us_error *err)
{
	int32_t first_rc = 0;
	const char *at = sweep->found.data;
	const char *end = at + sweep->found.len;
	while (at < end && !is_general(first_rc)) {
		struct us_error own = US_ERROR_INIT;
		const char *key = at;
		const char *upload_id = key + strlen(key) + 1;
		at = upload_id + strlen(upload_id) + 1;
		if (us_s3_pool_has_upload(sweep->call->store, key, upload_id)) {
			continue;
		}
		int32_t rc = abort_one(sweep->call, key, upload_id, &own);
		*ret_count += rc > 0;
		if (rc < 0 && first_rc == 0) {
			first_rc = rc;
			if (err) {
				*err = own;
			}
		}
	}
	return first_rc;
}

int32_t us_s3_abort_uploads(struct us_store *base, const char *prefix, us_store_is_ours_fn *is_ours,
			    void *arg, uint64_t *ret_count, struct us_error *err)
{
	*ret_count = 0;
	struct us_s3_call *call = us_s3_call_take((struct us_s3_store *)base, err);
	if (!call) {
		return US_E_NOMEM;
	}
	struct sweep sweep = { .call = call, .prefix = prefix, .is_ours = is_ours, .arg = arg };
	us_text_init(&sweep.found, FOUND_LEN_MAX);
	us_text_init(&sweep.after_key, US_S3_KEY_LEN_MAX);
	int32_t rc = find_uploads(&sweep, err);
	if (rc == 0 && sweep.found.len > 0) {
		rc = abort_found(&sweep, ret_count, err);
	}
	us_text_done(&sweep.found);
	us_text_done(&sweep.after_key);
	us_s3_call_put_back(call);
	return rc;
}
