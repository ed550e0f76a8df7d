/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One replicator for one target. Two that write under the same keys would replace each
 * other's objects and believe in records that are not true any more. So each writes its
 * name into a small object, the owner object, and looks there before it writes anything
 * else:
 *
 *	.litestream-multi-db/owner-<16 hex digits>
 *
 * at the root of the target. The digits are a hash of the path template with {{hostname}}
 * resolved and variables unnamed, so fleets that share a bucket below different paths do
 * not meet. No key of a database begins with a dot (us_escape_component).
 *
 * Who may take it:
 *
 *	nobody has it, or who had it has given it back
 *	it is this run's own, or (until this run has had it once) that of an earlier run
 *		with the same state file: the lock of the state directory says that it is
 *		over. On another machine it would be a copy: the first one finds out below
 *	its process was of this very machine and pid namespace, and is gone
 *	nothing was heard of it for STALE_S
 *	or somebody says so (takeover)
 *
 * Written with a condition on the version that was read (write_version), so of two that
 * try at once one fails and reads again. An answer that is not the target's (a portal's
 * page, a stray 404) must not take it from anybody: so only a note that was read is ever
 * written over without condition, where the target does not understand them.
 *
 * RENEW_NS after each renewal the object is read and written again: 2 calls in 10 minutes,
 * 288 a day, and 3 for start and end. If it has
 * another's name then, the target is lost, and nothing is written until the other one is
 * over; that costs a read every RETRY_NS, 288 a day as well. (While the target cannot be
 * asked, each cycle tries.)
 *
 * A lease: nothing is written LEASE_NS after the last renewal (which is shorter than
 * STALE_S by more than an upload should take), by a clock that goes on while the machine
 * sleeps. So a machine that was suspended, or cut off from the target, does not write over
 * who has taken its place. What it is not: a fence. An upload that is under way when the
 * lease ends may still arrive, and after a takeover by word both write for RENEW_NS.
 *
 * What we take over from somebody else, or find written by our own state file at a later
 * time than ours (`commits`: this one was rolled back with its machine), holds objects
 * that our records do not know: the state forgets the names in the target, and the cycle
 * sweeps before it uploads anything. Until the state has that, the object says so
 * (`reconcile`), should we die in between.
 *
 * A target that refuses the owner object (credentials for the keys of databases only) is
 * written to all the same, unguarded, and the log says so: not to back up would be worse.
 *
 * Threads: `us-owner` alone sends. Others leave a request and wait for the answer.
 * Lock: owner->mutex, a leaf, never held across I/O.
 */
#include "owner.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/clock.h"
#include "../base/escape.h"
#include "../base/hex.h"
#include "../base/thread.h"
#include "fleet.h"
#include "owner_note.h"

#define RENEW_NS (600 * US_NS_PER_S)
#define RETRY_NS (300 * US_NS_PER_S)
#define LEASE_NS (1500 * US_NS_PER_S)
#define STALE_S 1800
#define TRIES_MAX 4
#define TRY_PAUSE_NS (250 * US_NS_PER_MS)
#define WAIT_STEP_NS (100 * US_NS_PER_MS)
#define WAIT_FOREVER_MS INT32_MAX

_Static_assert(LEASE_NS < STALE_S * US_NS_PER_S, "we stop before anybody may take over");

/* Of two that nobody has taken up yet, the later in this order counts. */
enum { ASK_RENEW, ASK_TAKEOVER, ASK_RELEASE };

struct us_owner {
	struct us *us;
	char key[48];
	struct us_owner_note mine;
	_Atomic uint32_t reconcile;
	int told_unguarded; /* the thread's, as is the next */
	int no_conditions;  /* the target does not understand them */
	pthread_t thread;
	int started;

	pthread_mutex_t mutex;  /* guards all below */
	pthread_cond_t wake;    /* for the thread: a request, or the end */
	pthread_cond_t changed; /* for all others: an answer */
	int closing;
	int request;              /* ASK_* */
	uint64_t asked, answered; /* requests so far */
	uint32_t status;          /* US_OWNER_* */
	int has_held;             /* in this run */
	int64_t renewed_ns;       /* boot clock: when the renewal that succeeded last began */
	int64_t due_ns;           /* monotonic: when the thread looks again; 0: not by itself */
	struct us_error why;      /* of a status that is not US_OWNER_US */
};

/* ------------------------------------------------------------------ who we are */

/* Where our pid means something; "" if that cannot be told. */
static void find_place(char *ret, size_t cap)
{
	char boot[37] = "", space[32] = "";
	ret[0] = '\0';
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		return;
	}
	ssize_t len = pread(fd, boot, sizeof(boot) - 1, 0);
	(void)close(fd); /* only read from */
	ssize_t space_len = readlink("/proc/self/ns/pid", space, sizeof(space) - 1);
	if (len == (ssize_t)sizeof(boot) - 1 && space_len > 0) {
		(void)snprintf(ret, cap, "%s/%.*s", boot, (int)space_len, space);
	}
}

static int32_t introduce(struct us_owner *owner, struct us_error *err)
{
	struct us_owner_note *mine = &owner->mine;
	const struct us_siphash_key *key = &us_state_info(owner->us->state)->key;
	char host[65] = "";
	if (gethostname(host, sizeof(host) - 1) || host[0] == '\0') {
		(void)snprintf(host, sizeof(host), "(unknown)");
	}
	size_t len = us_escape(host, strlen(host), mine->host, sizeof(mine->host) - 1);
	mine->host[len] = '\0';
	_Static_assert(sizeof(mine->host) > 3 * sizeof(host), "escaped, it fits");
	find_place(mine->place, sizeof(mine->place));
	mine->pid = getpid();
	mine->state = us_siphash(key, "owner", 5);
	us_time_rfc3339_format(us_clock_wall_ns(), mine->started);
	if (getrandom(&mine->run, sizeof(mine->run), 0) != sizeof(mine->run)) {
		return us_fail_errno(err, errno, "no random bytes");
	}
	return 0;
}

static int32_t make_key(struct us_owner *owner, struct us_error *err)
{
	uint8_t sha256[SHA256_DIGEST_LENGTH];
	char digits[17];
	char *shape = us_template_shape(owner->us->tmpl);
	if (!shape) {
		return us_fail_nomem(err);
	}
	SHA256((const uint8_t *)shape, strlen(shape), sha256);
	us_free(shape);
	us_hex(sha256, 8, digits);
	(void)snprintf(owner->key, sizeof(owner->key), US_STORE_OWN_PREFIX "owner-%s", digits);
	return 0;
}

/* ---------------------------------------------------------------- whose it is */

/* What lies in the target. */
struct found {
	struct us_owner_note note;
	struct us_store_version version; /* tag "": nothing */
	int is_unreadable;               /* 403: there may be one, or not */
	int is_note;
	int is_nobodys; /* nor of another version: a server's page, or what a crash has left */
};

static int32_t look_once(struct us_owner *owner, struct found *ret, struct us_error *err)
{
	char text[US_OWNER_NOTE_LEN_MAX];
	size_t len;
	struct us_store *store = owner->us->store;
	memset(ret, 0, sizeof(*ret));
	int32_t rc = store->ops->read_version(store, owner->key, (uint8_t *)text, sizeof(text),
					      &len, &ret->version, err);
	if (rc == US_E_NOTFOUND) {
		return 0;
	}
	if (rc == US_E_ACCESS && !us_is_refused_for_all(err)) {
		ret->is_unreadable = 1;
		return 0;
	}
	if (rc) {
		return rc;
	}
	ret->is_note = us_owner_note_parse(text, len, &ret->note) == 0;
	ret->is_nobodys = !us_owner_note_is_one(text, len);
	/* Neither a note nor a version: a captive portal, say. The owner may be behind it. */
	return ret->is_nobodys && strcmp(ret->version.tag, US_STORE_TAG_ANY) == 0
		       ? us_fail(err, US_E_HTTP, "GET \"%s\": that is not the target's answer",
				 owner->key)
		       : 0;
}

/* What is like a note and cannot be read may have been cut off on the way: once more. */
static int32_t look(struct us_owner *owner, struct found *ret, struct us_error *err)
{
	int32_t rc = look_once(owner, ret, err);
	int is_odd = !rc && ret->version.tag[0] != '\0' && !ret->is_note && !ret->is_nobodys;
	return is_odd ? look_once(owner, ret, err) : rc;
}

static int is_process_gone(const struct us_owner_note *mine, const struct us_owner_note *other)
{
	return mine->place[0] != '\0' && strcmp(mine->place, other->place) == 0 &&
	       kill((pid_t)other->pid, 0) && errno == ESRCH;
}

/* Whether what was FOUND may become ours. */
static int may_take(const struct us_owner *owner, const struct found *found, int has_held)
{
	const struct us_owner_note *mine = &owner->mine;
	const struct us_owner_note *other = &found->note;
	if (found->version.tag[0] == '\0' || found->is_nobodys || found->version.age_s >= STALE_S) {
		return 1;
	}
	return found->is_note &&
	       (other->run == mine->run || other->released ||
		(!has_held && other->state == mine->state) || is_process_gone(mine, other));
}

static int32_t refuse(const struct us_owner *owner, const struct found *found, struct us_error *err)
{
	char host[US_ESCAPE_SHOW_LEN], started[US_ESCAPE_SHOW_LEN];
	const struct us_owner_note *other = &found->note;
	if (!found->is_note) {
		return us_fail(err, US_E_OWNED,
			       "\"%s\" in the target is of another version of litestream, or "
			       "damaged: nobody "
			       "knows who writes there; if nobody does, start once with -takeover",
			       owner->key);
	}
	return us_fail(
		err, US_E_OWNED,
		"the target is in use by another replicator: host \"%s\", process %lld, started "
		"%s, heard of %lld seconds ago; stop that one, or give each a path of its own "
		"(with {{hostname}}, say). If it is gone for good, start this one with -takeover, "
		"or wait until nothing was heard of it for %d minutes",
		us_escape_show(other->host, strlen(other->host), host), (long long)other->pid,
		us_escape_show(other->started, strlen(other->started), started),
		(long long)found->version.age_s, STALE_S / 60);
}

/* Somebody else's objects may be newer than what our state knows. */
static int is_news(const struct us_owner *owner, const struct found *found)
{
	const struct us_owner_note *other = &found->note;
	if (!found->is_note) {
		return found->version.tag[0] != '\0';
	}
	/* Even this very run's own: its memory can go back with its machine, too. */
	return other->commits > (int64_t)owner->us->commits ||
	       (other->run != owner->mine.run &&
		(other->state != owner->mine.state || other->reconcile));
}

/* ---------------------------------------------------------------- asking */

static int32_t write_note(struct us_owner *owner, const char *tag, int released,
			  struct us_error *err)
{
	char text[US_OWNER_NOTE_LEN_MAX];
	struct us_owner_note note = owner->mine;
	struct us_store *store = owner->us->store;
	note.commits = (int64_t)owner->us->commits;
	note.reconcile = owner->reconcile != 0;
	note.released = released != 0;
	us_time_rfc3339_format(us_clock_wall_ns(), note.renewed);
	size_t len = us_owner_note_format(&note, text);
	return store->ops->write_version(store, owner->key, tag, (const uint8_t *)text, len, err);
}

static void warn_unguarded(struct us_owner *owner, const struct us_error *why)
{
	struct us_error told = US_ERROR_INIT;
	if (owner->told_unguarded) {
		return;
	}
	(void)us_fail(&told, US_E_ACCESS,
		      "a second replicator of this target would not be noticed (allow GET and PUT "
		      "of " US_STORE_OWN_PREFIX "*): %s",
		      why->message);
	owner->told_unguarded =
		us_report_event(owner->us->report, US_EVENT_WARNING, "", "owner", told.message);
}

/* We have it, and it was another state's, or a later one of ours: two that take turns
 * would not meet, and each look through all of the target. */
static void tell_news(struct us_owner *owner, const struct found *found)
{
	char host[US_ESCAPE_SHOW_LEN];
	struct us_error told = US_ERROR_INIT;
	const struct us_owner_note *other = &found->note;
	if (!found->is_note || (other->state == owner->mine.state && other->reconcile)) {
		return;
	}
	if (other->state == owner->mine.state) {
		(void)us_fail(&told, US_E_OWNED,
			      "this state directory is older than what was written with it: the "
			      "target is looked through first");
	} else {
		(void)us_fail(&told, US_E_OWNED,
			      "the target was host \"%s\"'s before, process %lld, with another "
			      "state directory: it is looked through first, and what differs is "
			      "uploaded again",
			      us_escape_show(other->host, strlen(other->host), host),
			      (long long)other->pid);
	}
	(void)us_report_event(owner->us->report, US_EVENT_WARNING, "", "owner",
			      told.message); /* a full queue: the sweep shows */
}

/*
 * Reads, decides, writes; again if somebody was faster. Returns the US_OWNER_* that is
 * so, with ERR where that is not US_OWNER_US.
 */
static uint32_t take(struct us_owner *owner, int takeover, int has_held, struct us_error *err)
{
	char tag_before[US_STORE_TAG_LEN_MAX + 1] = "-";
	int same_count = 0;
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		struct found found;
		us_error_clear(err);
		if (look(owner, &found, err)) {
			return US_OWNER_UNKNOWN;
		}
		if (!takeover && !may_take(owner, &found, has_held)) {
			(void)refuse(owner, &found, err);
			return US_OWNER_OTHER;
		}
		int news = is_news(owner, &found);
		if (news) {
			owner->reconcile = 1;
		}
		/* Refused, and yet unchanged each time: this target does not understand
		 * conditions. Who was not shown a note may have been told an untruth. */
		same_count = strcmp(tag_before, found.version.tag) == 0 ? same_count + 1 : 0;
		memcpy(tag_before, found.version.tag, sizeof(tag_before));
		owner->no_conditions |= found.is_note && same_count == TRIES_MAX - 1;
		const char *tag = owner->no_conditions && found.is_note ? NULL : found.version.tag;
		int32_t rc = write_note(owner, tag, 0, err);
		if (!rc) {
			if (news) {
				tell_news(owner, &found);
			}
			return US_OWNER_US;
		}
		int is_unguarded = (rc == US_E_ACCESS && !us_is_refused_for_all(err)) ||
				   (rc == US_E_EXISTS && found.is_unreadable);
		if (is_unguarded) {
			warn_unguarded(owner, err);
			return US_OWNER_UNGUARDED;
		}
		if (rc != US_E_EXISTS) {
			return US_OWNER_UNKNOWN;
		}
		us_clock_sleep_ns(TRY_PAUSE_NS);
	}
	return US_OWNER_UNKNOWN;
}

/* A single 503 shall not cost a cycle. */
static uint32_t take_patiently(struct us_owner *owner, int takeover, int has_held,
			       struct us_error *err)
{
	uint32_t status = US_OWNER_UNKNOWN;
	for (int tries = 0; tries < TRIES_MAX; tries++) {
		status = take(owner, takeover, has_held, err);
		if (status != US_OWNER_UNKNOWN || !err->retryable || owner->us->canceled) {
			break;
		}
		us_clock_sleep_ns(TRY_PAUSE_NS << tries);
	}
	return status;
}

static void give_back(struct us_owner *owner, struct us_error *err)
{
	struct found found;
	if (!look(owner, &found, err) && found.is_note && found.note.run == owner->mine.run) {
		(void)write_note(owner, found.version.tag, 1, err); /* ERR tells */
	}
}

/* ---------------------------------------------------------------- the thread */

static void warn_lost(struct us_owner *owner, const struct us_error *why)
{
	struct us_error told = US_ERROR_INIT;
	(void)us_fail(&told, US_E_OWNED, "nothing more is uploaded: %s", why->message);
	(void)us_report_event(owner->us->report, US_EVENT_WARNING, "", "owner",
			      told.message); /* a full queue: each cycle says so, too */
}

/* One request: without the mutex for as long as it sends. */
static void answer(struct us_owner *owner)
{
	uint64_t asked = owner->asked;
	int request = owner->request;
	int had = owner->status == US_OWNER_US;
	int has_held = owner->has_held;
	owner->request = ASK_RENEW;
	(void)pthread_mutex_unlock(&owner->mutex);
	struct us_error err = US_ERROR_INIT;
	int64_t start_ns = us_clock_boot_ns();
	uint32_t status = US_OWNER_UNKNOWN;
	if (request != ASK_RELEASE) {
		status = take_patiently(owner, request == ASK_TAKEOVER, has_held, &err);
	} else if (had) {
		give_back(owner, &err);
	}
	if (has_held && status == US_OWNER_OTHER) {
		if (had) {
			warn_lost(owner, &err);
		}
		owner->reconcile = 1; /* should it become ours again */
	}
	(void)pthread_mutex_lock(&owner->mutex);
	int64_t now_ns = us_clock_mono_ns();
	owner->answered = asked;
	int is_asked_once = status == US_OWNER_OTHER || status == US_OWNER_UNKNOWN;
	owner->due_ns = now_ns + (is_asked_once ? RETRY_NS : RENEW_NS);
	if (request == ASK_TAKEOVER && status == US_OWNER_UNKNOWN && owner->request == ASK_RENEW) {
		owner->request = ASK_TAKEOVER; /* it is still to be done */
	}
	if (request == ASK_RELEASE) {
		owner->has_held = 0;
		owner->due_ns = 0;
	}
	if (status == US_OWNER_US) {
		owner->renewed_ns = start_ns;
		owner->has_held = 1;
	}
	/* What could not be asked stays ours for as long as the lease. */
	if (status != US_OWNER_UNKNOWN || !had || request == ASK_RELEASE) {
		owner->status = status;
	}
	owner->why = err;
	(void)pthread_cond_broadcast(&owner->changed);
}

static void *owner_main(void *arg)
{
	struct us_owner *owner = arg;
	(void)pthread_mutex_lock(&owner->mutex);
	while (!owner->closing) {
		int64_t left_ns = owner->due_ns - us_clock_mono_ns();
		if (owner->asked != owner->answered || (owner->due_ns != 0 && left_ns <= 0)) {
			answer(owner);
		} else if (owner->due_ns != 0) {
			(void)us_cond_wait_ns(&owner->wake, &owner->mutex, left_ns);
		} else {
			(void)pthread_cond_wait(&owner->wake, &owner->mutex);
		}
	}
	(void)pthread_mutex_unlock(&owner->mutex);
	return NULL;
}

/* ---------------------------------------------------------------- interface */

int32_t us_owner_new(struct us *us, struct us_owner **ret_owner, struct us_error *err)
{
	struct us_owner *owner = us_alloc_zero(sizeof(*owner));
	if (!owner) {
		return us_fail_nomem(err);
	}
	owner->us = us;
	owner->why = (struct us_error)US_ERROR_INIT;
	(void)pthread_mutex_init(&owner->mutex, NULL); /* never fails on Linux */
	int32_t rc = us_cond_init(&owner->wake, err);
	if (!rc) {
		rc = us_cond_init(&owner->changed, err);
	}
	if (!rc) {
		rc = make_key(owner, err);
	}
	if (!rc) {
		rc = introduce(owner, err);
	}
	if (!rc) {
		rc = us_thread_start(&owner->thread, "us-owner", owner_main, owner, err);
		owner->started = !rc;
	}
	if (rc) {
		us_owner_free(owner);
		return rc;
	}
	*ret_owner = owner;
	return 0;
}

void us_owner_free(struct us_owner *owner)
{
	if (!owner) {
		return;
	}
	(void)pthread_mutex_lock(&owner->mutex);
	owner->closing = 1;
	(void)pthread_cond_signal(&owner->wake);
	(void)pthread_mutex_unlock(&owner->mutex);
	if (owner->started) {
		(void)pthread_join(owner->thread, NULL); /* ours, joined once; canceled */
	}
	(void)pthread_cond_destroy(&owner->wake); /* nobody waits any more */
	(void)pthread_cond_destroy(&owner->changed);
	(void)pthread_mutex_destroy(&owner->mutex);
	us_free(owner);
}

/* Wants the mutex. */
static int32_t check(struct us_owner *owner, struct us_error *err)
{
	int64_t age_ns = us_clock_boot_ns() - owner->renewed_ns;
	if (owner->status == US_OWNER_UNGUARDED ||
	    (owner->status == US_OWNER_US && age_ns < LEASE_NS)) {
		return 0;
	}
	if (owner->why.code) {
		if (err) {
			*err = owner->why;
		}
		return owner->why.code;
	}
	return us_fail(err, US_E_BUSY, "the target was not asked yet whether it is ours");
}

/* Leaves REQUEST and waits for its answer. Wants the mutex. 0, or why there is none. */
static int32_t ask(struct us_owner *owner, int request, int32_t timeout_ms, struct us_error *err)
{
	int64_t end_ns = us_clock_mono_ns() + timeout_ms * US_NS_PER_MS;
	uint64_t number = ++owner->asked;
	owner->request = request > owner->request ? request : owner->request;
	(void)pthread_cond_signal(&owner->wake);
	while (owner->answered < number) {
		if (owner->us->canceled || (request != ASK_RELEASE && us_stopping(owner->us))) {
			return us_fail(err, US_E_CANCELED, "canceled");
		}
		if (us_clock_mono_ns() >= end_ns) {
			return us_fail(err, US_E_TIMEOUT,
				       "the target has not answered within %d ms", timeout_ms);
		}
		(void)us_cond_wait_ns(&owner->changed, &owner->mutex, WAIT_STEP_NS);
	}
	return 0;
}

int32_t us_owner_ask(struct us_owner *owner, int takeover, int32_t timeout_ms, struct us_error *err)
{
	(void)pthread_mutex_lock(&owner->mutex);
	int32_t rc = ask(owner, takeover ? ASK_TAKEOVER : ASK_RENEW, timeout_ms, err);
	rc = rc ? rc : check(owner, err);
	(void)pthread_mutex_unlock(&owner->mutex);
	return rc;
}

int32_t us_owner_release(struct us_owner *owner, int32_t timeout_ms, struct us_error *err)
{
	(void)pthread_mutex_lock(&owner->mutex);
	int is_ours = owner->status == US_OWNER_US;
	int32_t rc = is_ours ? ask(owner, ASK_RELEASE, timeout_ms, err) : 0;
	if (!rc && is_ours && owner->why.code) {
		rc = owner->why.code;
		if (err) {
			*err = owner->why;
		}
	}
	(void)pthread_mutex_unlock(&owner->mutex);
	return rc;
}

int32_t us_owner_check(struct us_owner *owner, struct us_error *err)
{
	(void)pthread_mutex_lock(&owner->mutex);
	int32_t rc = check(owner, err);
	(void)pthread_mutex_unlock(&owner->mutex);
	if (!rc && owner->reconcile) {
		return us_fail(err, US_E_BUSY,
			       "another replicator had the target in between; the next cycle looks "
			       "first what it has written");
	}
	return rc;
}

int32_t us_owner_begin(struct us_owner *owner, struct us_error *err)
{
	(void)pthread_mutex_lock(&owner->mutex);
	int32_t rc = check(owner, err);
	if (rc && owner->status != US_OWNER_OTHER) {
		rc = ask(owner, ASK_RENEW, WAIT_FOREVER_MS, err);
		rc = rc ? rc : check(owner, err);
	}
	(void)pthread_mutex_unlock(&owner->mutex);
	return rc;
}

int us_owner_has_news(const struct us_owner *owner)
{
	return owner->reconcile != 0;
}

void us_owner_take_news(struct us_owner *owner)
{
	owner->reconcile = 0;
}

uint32_t us_owner_status(struct us_owner *owner)
{
	(void)pthread_mutex_lock(&owner->mutex);
	int is_over = owner->status == US_OWNER_US && check(owner, NULL);
	uint32_t status = is_over ? US_OWNER_UNKNOWN : owner->status;
	(void)pthread_mutex_unlock(&owner->mutex);
	return status;
}
