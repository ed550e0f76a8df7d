/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state file: an SQLite database with two tables.
 *
 *	meta(name TEXT PRIMARY KEY, value)	target, hash_key (blob of 16), epoch,
 *						window, high_water, target_known,
 *						last_sweep, open, commits
 *	record(path_hash INTEGER PRIMARY KEY, fingerprint, content_hash, object_time,
 *	       flags, size_class, object_count,
 *	       object_len, uploaded_ms)		64-bit values as signed integers
 *
 * object_len is in the file only: a sweep compares it with what the target lists. It goes
 * with content_hash and object_time; where a commit changes these and nobody says the
 * length, it becomes 0, not known. Sweeps read it through a second connection: in WAL mode
 * a reader and the writer do not wait for each other, each connection has one thread, and
 * no lock of ours is held. What the reader finds may be older than the record in memory:
 * it counts only if content_hash and object_time are those of the record.
 *
 * uploaded_ms is the stamp of a table that keeps them, by the wall clock: the clock of
 * stamps does not survive a restart of the machine. They are converted when a record is
 * loaded or written. One in the future was made before the wall clock was set back: 0.
 *
 * Version 1 had no object_len, version 2 no uploaded_ms. Such a file is upgraded in place
 * when it is opened for writing; readers need nothing that later versions have added.
 *
 * It is a cache of what the target holds: losing it costs uploads, never data. So
 * whatever is wrong with it (damage, another target, another schema) is answered by
 * beginning a new one, and the caller is told why. A file that is not ours gets another
 * name: a state_dir that was configured by mistake may hold files of something else.
 *
 * `open` is 1 while a process has it. Finding it 1 means that the last run was
 * killed and may have sent objects that no commit recorded; the epoch then moves,
 * so that none of them can be overwritten.
 *
 * The lock is an open-file-description lock on a file of its own that holds the
 * pid: it goes with the process, however that ends, and is not inherited through
 * exec (O_CLOEXEC).
 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <malloc.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/bytes.h"
#include "../base/clock.h"

#define APPLICATION_ID 0x75737374 /* "usst" */
#define SCHEMA_VERSION 3
#define PATH_CAP 4200
#define BUSY_TIMEOUT_MS 5000
#define ASIDE_MAX 100
#define DAMAGED "it is damaged"
#define LENGTHS_CACHE_KIB 256
#define STAMP_AGE_MAX_MS ((int64_t)UINT32_MAX * US_STAMP_MS)
#define PID_TEXT_LEN_MAX 20
/* Kills in quick succession may not drive names away from the clock for good. */
#define EPOCH_AHEAD_MAX_S 600

/* The same moment by two clocks. */
struct moment {
	int64_t wall_ms;
	uint32_t stamp;
};

struct us_state {
	int lock_fd;
	sqlite3 *db;
	sqlite3_stmt *put, *forget;
	struct us_state_info info;
	int incomplete; /* a commit failed: the file lacks records that memory has */
	int writable;
	int version;          /* of the file, when it was opened */
	struct moment commit; /* when the one under way began */
	char path[PATH_CAP];
};

static int32_t fail_sqlite(struct us_state *state, const char *doing, struct us_error *err)
{
	int rc = state->db ? sqlite3_extended_errcode(state->db) : SQLITE_NOMEM;
	const char *text = state->db ? sqlite3_errmsg(state->db) : "out of memory";
	(void)us_fail(err, US_E_STATE, "state file \"%s\": cannot %s: %s", state->path, doing,
		      text);
	if (err) {
		err->sqlite_rc = rc;
	}
	return US_E_STATE;
}

static int32_t run(struct us_state *state, const char *sql, const char *doing, struct us_error *err)
{
	return sqlite3_exec(state->db, sql, NULL, NULL, NULL) ? fail_sqlite(state, doing, err) : 0;
}

/* Whether the LEN bytes are what a lock file may hold: a pid, perhaps cut off where the disk
 * was full, or zeros of the same length after a power cut. */
static int is_pid_text(const char *text, size_t len)
{
	size_t i = 0;
	while (i < len && (text[i] == '\0' || strchr("0123456789\n", text[i]))) {
		i++;
	}
	return i == len && len <= PID_TEXT_LEN_MAX;
}

static int32_t take_lock(const char *state_dir, int *ret_fd, struct us_error *err)
{
	char path[PATH_CAP], text[32] = "";
	(void)snprintf(path, sizeof(path), "%s/lock", state_dir);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		return us_fail_errno(err, errno, "state_dir: cannot open \"%s\"", path);
	}
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	if (fcntl(fd, F_OFD_SETLK, &lock)) {
		int saved = errno;
		ssize_t len = pread(fd, text, sizeof(text) - 1, 0);
		(void)close(fd); /* not ours */
		if (saved != EAGAIN && saved != EACCES) {
			return us_fail_errno(err, saved, "state_dir: cannot lock \"%s\"", path);
		}
		text[len > 0 ? len : 0] = '\0';
		text[strcspn(text, "\n")] = '\0';
		return us_fail(
			err, US_E_LOCKED,
			"state_dir: \"%s\" is in use by process %s; stop it, or give this one "
			"another state_dir",
			state_dir, text[0] ? text : "(unknown pid)");
	}
	ssize_t old_len = pread(fd, text, sizeof(text) - 1, 0);
	if (old_len < 0) {
		int saved = errno;
		(void)close(fd); /* only read from */
		return us_fail_errno(err, saved, "state_dir: cannot read \"%s\"", path);
	}
	if (!is_pid_text(text, (size_t)old_len)) {
		(void)close(fd); /* not ours */
		return us_fail(
			err, US_E_CONFIG,
			"state_dir: \"%s\" is a file of something else; choose another state_dir",
			path);
	}
	int len = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
	if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)len, 0) != len) {
		int saved = errno;
		(void)close(fd);
		return us_fail_errno(err, saved, "state_dir: cannot write \"%s\"", path);
	}
	*ret_fd = fd;
	return 0;
}

/* One value of meta into a statement's only column; NULL if it is not there. */
static sqlite3_stmt *meta_select(struct us_state *state, const char *name)
{
	sqlite3_stmt *stmt = NULL;
	if (sqlite3_prepare_v2(state->db, "SELECT value FROM meta WHERE name = ?1", -1, &stmt,
			       NULL) ||
	    sqlite3_bind_text(stmt, 1, name, -1, SQLITE_STATIC) ||
	    sqlite3_step(stmt) != SQLITE_ROW) {
		(void)sqlite3_finalize(stmt); /* repeats the error */
		return NULL;
	}
	return stmt;
}

static int meta_int(struct us_state *state, const char *name, int64_t least, int64_t most,
		    int64_t *ret_value)
{
	sqlite3_stmt *stmt = meta_select(state, name);
	if (!stmt) {
		return -1;
	}
	int is_int = sqlite3_column_type(stmt, 0) == SQLITE_INTEGER;
	int64_t value = sqlite3_column_int64(stmt, 0);
	(void)sqlite3_finalize(stmt); /* only read */
	if (!is_int || value < least || value > most) {
		return -1;
	}
	*ret_value = value;
	return 0;
}

static int32_t meta_set_int(struct us_state *state, const char *name, int64_t value,
			    struct us_error *err)
{
	sqlite3_stmt *stmt = NULL;
	int failed = sqlite3_prepare_v2(state->db, "INSERT OR REPLACE INTO meta VALUES (?1, ?2)",
					-1, &stmt, NULL) ||
		     sqlite3_bind_text(stmt, 1, name, -1, SQLITE_STATIC) ||
		     sqlite3_bind_int64(stmt, 2, value) || sqlite3_step(stmt) != SQLITE_DONE;
	int32_t rc = failed ? fail_sqlite(state, "write to it", err) : 0;
	(void)sqlite3_finalize(stmt); /* repeats the error */
	return rc;
}

/* Why the file cannot be used, or NULL; fills info. */
static const char *check_meta(struct us_state *state, const char *target)
{
	sqlite3_stmt *stmt = meta_select(state, "target");
	if (!stmt) {
		return DAMAGED;
	}
	const char *text = (const char *)sqlite3_column_text(stmt, 0);
	int same = text && strcmp(text, target) == 0;
	(void)sqlite3_finalize(stmt); /* only read */
	if (!same) {
		return "it belongs to another target, pattern, path template or format";
	}
	stmt = meta_select(state, "hash_key");
	if (!stmt || sqlite3_column_bytes(stmt, 0) != (int)sizeof(state->info.key)) {
		(void)sqlite3_finalize(stmt);
		return DAMAGED;
	}
	memcpy(&state->info.key, sqlite3_column_blob(stmt, 0), sizeof(state->info.key));
	(void)sqlite3_finalize(stmt);
	int64_t epoch, window, known;
	if (meta_int(state, "epoch", 0, UINT32_MAX, &epoch) ||
	    meta_int(state, "window", 0, UINT32_MAX, &window) ||
	    meta_int(state, "target_known", 0, 1, &known) ||
	    meta_int(state, "high_water", 0, INT64_MAX, &state->info.high_water_ns)) {
		return DAMAGED;
	}
	state->info.epoch_s = (uint32_t)epoch;
	state->info.window_s = (uint32_t)window;
	state->info.target_known = (uint32_t)known;
	if (meta_int(state, "last_sweep", 0, INT64_MAX / US_NS_PER_S, &state->info.last_sweep_s)) {
		state->info.last_sweep_s = 0; /* none yet: version 1, say */
	}
	if (meta_int(state, "commits", 0, INT64_MAX - 1, &state->info.commits)) {
		state->info.commits = 0; /* likewise */
	}
	return NULL;
}

static struct moment this_moment(void)
{
	return (struct moment){ .wall_ms = us_clock_wall_ns() / US_NS_PER_MS,
				.stamp = us_stamp(us_clock_boot_ns()) };
}

static int64_t uploaded_ms_of(uint32_t stamp, const struct moment *now)
{
	return stamp ? now->wall_ms - (int64_t)(now->stamp - stamp) * US_STAMP_MS : 0;
}

static uint32_t stamp_of(int64_t uploaded_ms, const struct moment *now)
{
	if (uploaded_ms <= 0 || uploaded_ms > now->wall_ms ||
	    now->wall_ms - uploaded_ms > STAMP_AGE_MAX_MS) {
		return 0;
	}
	return now->stamp - (uint32_t)((now->wall_ms - uploaded_ms) / US_STAMP_MS);
}

static int select_int(struct us_state *state, const char *sql, int *ret_value)
{
	sqlite3_stmt *stmt = NULL;
	int failed = sqlite3_prepare_v2(state->db, sql, -1, &stmt, NULL) ||
		     sqlite3_step(stmt) != SQLITE_ROW;
	if (!failed) {
		*ret_value = sqlite3_column_int(stmt, 0);
	}
	(void)sqlite3_finalize(stmt); /* repeats the error */
	return failed ? -1 : 0;
}

static const char *load_records(struct us_state *state, struct us_table *table)
{
	static const char *const select[] = {
		"SELECT path_hash, fingerprint, content_hash, object_time, flags, size_class,"
		" object_count, 0 FROM record",
		"SELECT path_hash, fingerprint, content_hash, object_time, flags, size_class,"
		" object_count, uploaded_ms FROM record",
	};
	sqlite3_stmt *stmt = NULL;
	int has_stamps = state->version >= 3 && us_table_keeps_stamps(table);
	int count;
	if (select_int(state, "SELECT count(*) FROM record", &count) || count < 0) {
		return DAMAGED;
	}
	us_table_reserve(table, (uint64_t)count);
	if (sqlite3_prepare_v2(state->db, select[has_stamps], -1, &stmt, NULL)) {
		return DAMAGED;
	}
	const char *why = NULL;
	struct moment now = this_moment();
	int64_t was_open = 0;
	(void)meta_int(state, "open", 0, 1, &was_open); /* missing: 0 */
	int rc;
	while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
		uint64_t hash = (uint64_t)sqlite3_column_int64(stmt, 0);
		struct us_record *record = hash ? us_table_acquire(table, hash, 1) : NULL;
		if (!record) {
			why = hash ? "there is no memory for it" : DAMAGED;
			break;
		}
		record->fingerprint = (uint64_t)sqlite3_column_int64(stmt, 1);
		record->content_hash = (uint64_t)sqlite3_column_int64(stmt, 2);
		record->object_time = (uint32_t)sqlite3_column_int64(stmt, 3);
		record->flags = (uint8_t)(sqlite3_column_int(stmt, 4) & (int)US_RECORD_KEPT);
		if (was_open) {
			record->flags |= US_RECORD_UNSURE;
			if (record->flags & US_RECORD_UNSYNCED) {
				record->content_hash = 0;
			}
		}
		record->size_class = (uint8_t)sqlite3_column_int(stmt, 5);
		record->object_count = (uint8_t)sqlite3_column_int(stmt, 6);
		us_table_set_stamp(table, record, stamp_of(sqlite3_column_int64(stmt, 7), &now));
		us_table_release(table, hash);
	}
	(void)sqlite3_finalize(stmt); /* rc has its error */
	return why ? why : rc == SQLITE_DONE ? NULL : DAMAGED;
}

/* Opens an existing file. NULL, or why it cannot be used. */
static const char *open_existing(struct us_state *state, const char *target, int flags,
				 struct us_table *table)
{
	int id, version;
	if (sqlite3_open_v2(state->path, &state->db, flags | SQLITE_OPEN_NOMUTEX, NULL) ||
	    sqlite3_busy_timeout(state->db, BUSY_TIMEOUT_MS) ||
	    select_int(state, "PRAGMA application_id", &id) ||
	    select_int(state, "PRAGMA user_version", &version)) {
		return DAMAGED;
	}
	if (id != APPLICATION_ID || version < 1 || version > SCHEMA_VERSION) {
		return "it is not a state file of this version";
	}
	state->version = version;
	const char *why = check_meta(state, target);
	return why ? why : load_records(state, table);
}

static int32_t upgrade(struct us_state *state, struct us_error *err)
{
	static const char from_1[] =
		"BEGIN IMMEDIATE;"
		"ALTER TABLE record ADD COLUMN object_len INTEGER NOT NULL DEFAULT 0;"
		"ALTER TABLE record ADD COLUMN uploaded_ms INTEGER NOT NULL DEFAULT 0;"
		"PRAGMA user_version = 3;"
		"COMMIT";
	static const char from_2[] =
		"BEGIN IMMEDIATE;"
		"ALTER TABLE record ADD COLUMN uploaded_ms INTEGER NOT NULL DEFAULT 0;"
		"PRAGMA user_version = 3;"
		"COMMIT";
	if (state->version == SCHEMA_VERSION) {
		return 0;
	}
	int32_t rc = run(state, state->version == 1 ? from_1 : from_2, "upgrade it", err);
	if (rc) {
		(void)sqlite3_exec(state->db, "ROLLBACK", NULL, NULL, NULL); /* may be over */
		return rc;
	}
	state->version = SCHEMA_VERSION;
	return 0;
}

static int32_t prepare(struct us_state *state, struct us_error *err)
{
	/* ?8: NULL where no length is given. */
	static const char put[] =
		"INSERT INTO record VALUES (?1,?2,?3,?4,?5,?6,?7,coalesce(?8,0),?9)"
		" ON CONFLICT (path_hash) DO UPDATE SET fingerprint = ?2, content_hash = ?3,"
		" object_time = ?4, flags = ?5, size_class = ?6, object_count = ?7,"
		" uploaded_ms = ?9,"
		" object_len = coalesce(?8, CASE WHEN content_hash = ?3 AND object_time = ?4"
		" THEN object_len ELSE 0 END)";
	if (sqlite3_prepare_v3(state->db, put, -1, SQLITE_PREPARE_PERSISTENT, &state->put, NULL) ||
	    sqlite3_prepare_v3(state->db, "DELETE FROM record WHERE path_hash = ?1", -1,
			       SQLITE_PREPARE_PERSISTENT, &state->forget, NULL)) {
		return fail_sqlite(state, "prepare a statement", err);
	}
	return 0;
}

static int32_t write_new_meta(struct us_state *state, const char *target, struct us_error *err)
{
	sqlite3_stmt *stmt = NULL;
	int failed = sqlite3_prepare_v2(state->db,
					"INSERT INTO meta VALUES ('target', ?1), ('hash_key', ?2),"
					" ('high_water', 0), ('target_known', 0)",
					-1, &stmt, NULL) ||
		     sqlite3_bind_text(stmt, 1, target, -1, SQLITE_STATIC) ||
		     sqlite3_bind_blob(stmt, 2, &state->info.key, sizeof(state->info.key),
				       SQLITE_STATIC) ||
		     sqlite3_step(stmt) != SQLITE_DONE;
	int32_t rc = failed ? fail_sqlite(state, "write to it", err) : 0;
	(void)sqlite3_finalize(stmt); /* repeats the error */
	return rc;
}

/* What is not ours is not ours to destroy: it gets a name that is free. */
static int32_t set_aside(const char *path, struct us_error *err)
{
	char aside[PATH_CAP + 32];
	for (int i = 1; i <= ASIDE_MAX; i++) {
		(void)snprintf(aside, sizeof(aside), "%s.unusable-%d", path, i);
		if (!renameat2(AT_FDCWD, path, AT_FDCWD, aside, RENAME_NOREPLACE) ||
		    errno == ENOENT) {
			return 0;
		}
		if (errno != EEXIST) {
			break;
		}
	}
	return us_fail_errno(err, errno, "state_dir: cannot rename \"%s\"", path);
}

static int32_t remove_file(const char *path, const char *suffix, struct us_error *err)
{
	char name[PATH_CAP + 16];
	(void)snprintf(name, sizeof(name), "%s%s", path, suffix);
	if (unlink(name) && errno != ENOENT) {
		return us_fail_errno(err, errno, "state_dir: cannot remove \"%s\"", name);
	}
	return 0;
}

/* Makes room for a new state: an old one of ours goes, with what belongs to it. */
static int32_t clear_way(const char *path, int is_ours, struct us_error *err)
{
	static const char *const suffixes[] = { "", "-wal", "-shm", "-journal" };
	if (!is_ours) {
		return set_aside(path, err);
	}
	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
		int32_t rc = remove_file(path, suffixes[i], err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

static int32_t create(struct us_state *state, const char *target, int is_ours, struct us_error *err)
{
	static const char schema[] =
		"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
		"BEGIN IMMEDIATE;"
		"CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;"
		"CREATE TABLE record (path_hash INTEGER PRIMARY KEY, fingerprint INTEGER NOT NULL,"
		" content_hash INTEGER NOT NULL, object_time INTEGER NOT NULL, flags INTEGER NOT "
		"NULL,"
		" size_class INTEGER NOT NULL, object_count INTEGER NOT NULL,"
		" object_len INTEGER NOT NULL DEFAULT 0, uploaded_ms INTEGER NOT NULL DEFAULT 0);";
	int32_t rc = clear_way(state->path, is_ours, err);
	if (rc) {
		return rc;
	}
	/* SQLite gives its -wal and -shm the mode of the file. */
	int fd = open(state->path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0) {
		return us_fail_errno(err, errno, "state_dir: cannot create \"%s\"", state->path);
	}
	(void)close(fd); /* empty; nobody has it open yet */
	memset(&state->info, 0, sizeof(state->info));
	if (getrandom(&state->info.key, sizeof(state->info.key), 0) != sizeof(state->info.key)) {
		return us_fail_errno(err, errno, "no random bytes for a new state");
	}
	if (sqlite3_open_v2(state->path, &state->db,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
			    NULL) ||
	    sqlite3_busy_timeout(state->db, BUSY_TIMEOUT_MS)) {
		return fail_sqlite(state, "create it", err);
	}
	char identity[96];
	(void)snprintf(identity, sizeof(identity),
		       "PRAGMA application_id = %d; PRAGMA user_version = %d;", APPLICATION_ID,
		       SCHEMA_VERSION);
	/* The identity first, in the file itself: whose it is must be seen without its WAL. */
	rc = run(state, identity, "create it", err);
	if (!rc) {
		rc = run(state, schema, "create it", err);
	}
	if (!rc) {
		rc = write_new_meta(state, target, err);
	}
	return rc ? rc : run(state, "COMMIT", "create it", err);
}

static void close_db(struct us_state *state)
{
	(void)sqlite3_finalize(state->put); /* repeats an error that was reported */
	(void)sqlite3_finalize(state->forget);
	state->put = state->forget = NULL;
	(void)sqlite3_close(state->db); /* all statements are finalized */
	state->db = NULL;
}

/* The last second after which a run that was killed can have named an object, NOW_S at
 * least: its epoch, or the second behind a name that it had committed (us_object_time_next;
 * a database gets one name in a cycle, and each cycle commits). Both are ahead of the
 * clock where kills follow each other quickly; what is far ahead has other reasons. */
static uint32_t last_named(struct us_state *state, uint32_t now_s)
{
	int64_t limit_s = (int64_t)now_s + EPOCH_AHEAD_MAX_S, at_s = now_s;
	if (state->info.epoch_s > at_s && state->info.epoch_s < limit_s) {
		at_s = state->info.epoch_s;
	}
	sqlite3_stmt *stmt = NULL;
	if (sqlite3_prepare_v2(state->db,
			       "SELECT max(object_time) FROM record WHERE object_time < ?1", -1,
			       &stmt, NULL) == SQLITE_OK &&
	    sqlite3_bind_int64(stmt, 1, limit_s) == SQLITE_OK && sqlite3_step(stmt) == SQLITE_ROW &&
	    sqlite3_column_int64(stmt, 0) >= at_s) {
		at_s = sqlite3_column_int64(stmt, 0) + 1;
	}
	(void)sqlite3_finalize(stmt); /* if it failed, what follows does */
	return at_s < UINT32_MAX ? (uint32_t)at_s : UINT32_MAX;
}

/* Moves the epoch where that is due and marks the state as open. */
static int32_t start(struct us_state *state, int fresh, uint32_t window_s, uint32_t now_s,
		     struct us_error *err)
{
	int64_t was_open = 0;
	(void)meta_int(state, "open", 0, 1, &was_open); /* missing in a fresh one: 0 */
	uint32_t floor_s = (uint32_t)(state->info.high_water_ns / US_NS_PER_S);
	uint32_t at_s = now_s > floor_s ? now_s : floor_s;
	if (was_open) {
		at_s = last_named(state, at_s);
	}
	int moved = was_open || (!fresh && window_s != state->info.window_s);
	if (moved && at_s < UINT32_MAX) {
		at_s++; /* the run before may have used this very second */
	}
	if ((fresh || moved) && at_s > state->info.epoch_s) {
		state->info.epoch_s = at_s;
	}
	state->info.window_s = window_s;
	int32_t rc = run(state, "BEGIN IMMEDIATE", "write to it", err);
	if (!rc) {
		rc = meta_set_int(state, "epoch", state->info.epoch_s, err);
	}
	if (!rc) {
		rc = meta_set_int(state, "window", window_s, err);
	}
	if (!rc) {
		rc = meta_set_int(state, "open", 1, err);
	}
	return rc ? rc : run(state, "COMMIT", "write to it", err);
}

static int32_t new_state(const char *state_dir, struct us_state **ret_state, struct us_error *err)
{
	struct us_state *state = us_alloc_zero(sizeof(*state));
	if (!state) {
		return us_fail_nomem(err);
	}
	state->lock_fd = -1;
	if (snprintf(state->path, sizeof(state->path), "%s/state.db", state_dir) >=
	    (int)sizeof(state->path)) {
		us_free(state);
		return us_fail(err, US_E_CONFIG, "state_dir: path of %zu bytes is too long",
			       strlen(state_dir));
	}
	*ret_state = state;
	return 0;
}

/* 1 if the file is a state file, 0 if it is no SQLite database; one that is somebody
 * else's is refused, without opening it as one. Header: magic at 0, application id
 * (be32) at 68. */
static int32_t check_owner(const struct us_state *state, struct us_error *err)
{
	uint8_t header[100];
	int fd = open(state->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) {
		return 0; /* open_existing says why */
	}
	ssize_t len = pread(fd, header, sizeof(header), 0);
	(void)close(fd); /* only read from; SQLite has not opened it yet */
	if (len < (ssize_t)sizeof(header) || memcmp(header, "SQLite format 3", 16) != 0) {
		return 0;
	}
	if (us_get_be32(header + 68) == APPLICATION_ID) {
		return 1;
	}
	return us_fail(
		err, US_E_CONFIG,
		"state_dir: \"%s\" is a database of something else; choose another state_dir",
		state->path);
}

static int32_t begin_anew(struct us_state *state, const char *target, struct us_table *table,
			  const char *why, int is_ours, char *ret_reset, size_t reset_cap,
			  struct us_error *err)
{
	(void)snprintf(ret_reset, reset_cap,
		       "state file \"%s\": %s; beginning a new one, every database is uploaded",
		       state->path, why);
	close_db(state);
	us_table_clear(table);
	return create(state, target, is_ours, err);
}

/* Opens what is there, else begins anew; TABLE is filled or untouched. */
static int32_t open_or_create(struct us_state *state, const char *target, struct us_table *table,
			      char *ret_reset, size_t reset_cap, int *ret_fresh,
			      struct us_error *err)
{
	struct stat st;
	const char *why = "there is none";
	int32_t is_ours = 1; /* what an earlier one has left beside it */
	*ret_fresh = 0;
	ret_reset[0] = '\0';
	if (lstat(state->path, &st) == 0) {
		is_ours = check_owner(state, err);
		if (is_ours < 0) {
			return is_ours;
		}
		why = S_ISREG(st.st_mode)
			      ? open_existing(state, target, SQLITE_OPEN_READWRITE, table)
			      : "it is not a regular file";
		if (!why) {
			(void)sqlite3_db_release_memory(state->db); /* every page was read once */
			(void)malloc_trim(0); /* 1: something went back to the system */
			return run(state, "PRAGMA synchronous = FULL", "open it", err);
		}
	}
	*ret_fresh = 1;
	return begin_anew(state, target, table, why, is_ours, ret_reset, reset_cap, err);
}

/* The first writes to the state. */
static int32_t make_ready(struct us_state *state, int fresh, uint32_t window_s, uint32_t now_s,
			  struct us_error *err)
{
	int32_t rc = fresh ? 0 : upgrade(state, err);
	if (!rc) {
		rc = prepare(state, err);
	}
	return rc ? rc : start(state, fresh, window_s, now_s, err);
}

/* Whether a write failed because of what is in the file: damage, or another schema. */
static int is_unusable(const struct us_error *err)
{
	int code = err->sqlite_rc & 0xff;
	return code == SQLITE_CORRUPT || code == SQLITE_NOTADB || code == SQLITE_ERROR ||
	       code == SQLITE_CONSTRAINT || code == SQLITE_MISMATCH;
}

int32_t us_state_open(const char *state_dir, const char *target, uint32_t window_s, uint32_t now_s,
		      struct us_table *table, char *ret_reset, size_t reset_cap,
		      struct us_state **ret_state, struct us_error *err)
{
	struct us_state *state;
	int32_t rc = new_state(state_dir, &state, err);
	if (rc) {
		return rc;
	}
	int fresh = 0;
	state->writable = 1;
	rc = take_lock(state_dir, &state->lock_fd, err);
	if (!rc) {
		rc = open_or_create(state, target, table, ret_reset, reset_cap, &fresh, err);
	}
	if (!rc) {
		struct us_error own = US_ERROR_INIT;
		rc = make_ready(state, fresh, window_s, now_s, &own);
		if (rc && !fresh && is_unusable(&own)) {
			rc = begin_anew(state, target, table, DAMAGED, 1, ret_reset, reset_cap,
					&own);
			rc = rc ? rc : make_ready(state, 1, window_s, now_s, &own);
		}
		if (rc && err) {
			*err = own;
		}
	}
	if (rc) {
		state->writable = 0;
		us_state_close(state);
		return rc;
	}
	*ret_state = state;
	return 0;
}

int32_t us_state_open_read_only(const char *state_dir, const char *target, struct us_table *table,
				struct us_state **ret_state, struct us_error *err)
{
	struct us_state *state;
	int32_t rc = new_state(state_dir, &state, err);
	if (rc) {
		return rc;
	}
	if (access(state->path, R_OK) && errno != ENOENT && errno != ENOTDIR) {
		rc = us_fail_errno(err, errno, "state file \"%s\" cannot be read", state->path);
		us_state_close(state);
		return rc;
	}
	struct stat st;
	const char *why = lstat(state->path, &st) || !S_ISREG(st.st_mode) ? "there is none" : NULL;
	if (!why) {
		why = open_existing(state, target, SQLITE_OPEN_READONLY, table);
	}
	if (why) {
		int is_damaged = strcmp(why, DAMAGED) == 0;
		rc = us_fail(err, is_damaged ? US_E_STATE : US_E_NOTFOUND, "state file \"%s\": %s",
			     state->path, why);
		us_table_clear(table);
		us_state_close(state);
		return rc;
	}
	*ret_state = state;
	return 0;
}

int32_t us_state_check(const struct us_state *state, struct us_error *err)
{
	struct stat st;
	if (state->lock_fd >= 0 && !fstat(state->lock_fd, &st) && st.st_nlink == 0) {
		return us_fail(err, US_E_STATE,
			       "state file \"%s\": its directory was removed or replaced while in "
			       "use; restart",
			       state->path);
	}
	return 0;
}

const struct us_state_info *us_state_info(const struct us_state *state)
{
	return &state->info;
}

/* OBJECT_LEN 0: what the file has stays, if that is about the same object. */
static int put_record(struct us_state *state, const struct us_record *r, uint32_t stamp,
		      uint64_t object_len)
{
	sqlite3_stmt *s = state->put;
	int failed = sqlite3_bind_int64(s, 1, (sqlite3_int64)r->path_hash) ||
		     sqlite3_bind_int64(s, 2, (sqlite3_int64)r->fingerprint) ||
		     sqlite3_bind_int64(s, 3, (sqlite3_int64)r->content_hash) ||
		     sqlite3_bind_int64(s, 4, r->object_time) ||
		     sqlite3_bind_int(s, 5, (int)(r->flags & US_RECORD_KEPT)) ||
		     sqlite3_bind_int(s, 6, r->size_class) ||
		     sqlite3_bind_int(s, 7, r->object_count) ||
		     (object_len ? sqlite3_bind_int64(s, 8, (sqlite3_int64)object_len)
				 : sqlite3_bind_null(s, 8)) ||
		     sqlite3_bind_int64(s, 9, uploaded_ms_of(stamp, &state->commit)) ||
		     sqlite3_step(s) != SQLITE_DONE;
	(void)sqlite3_reset(s); /* repeats the error */
	return failed;
}

static int forget_hash(struct us_state *state, uint64_t hash)
{
	int failed = sqlite3_bind_int64(state->forget, 1, (sqlite3_int64)hash) ||
		     sqlite3_step(state->forget) != SQLITE_DONE;
	(void)sqlite3_reset(state->forget); /* repeats the error */
	return failed;
}

static int write_change(struct us_state *state, struct us_table *table,
			const struct us_state_change *change)
{
	const struct us_record *record = us_table_acquire(table, change->path_hash, 0);
	if (!record) {
		return forget_hash(state, change->path_hash);
	}
	struct us_record copy = *record;
	uint32_t stamp = us_table_stamp(table, record);
	us_table_release(table, change->path_hash);
	return put_record(state, &copy, stamp, change->object_len);
}

struct whole {
	struct us_state *state;
	struct us_table *table;
};

static int32_t put_record_of_table(void *arg, struct us_record *record)
{
	struct whole *whole = arg;
	return put_record(whole->state, record, us_table_stamp(whole->table, record), 0) ? -1 : 0;
}

/* Deletes the rows whose records are gone. (That of the step just made may go.) */
static int prune(struct us_state *state, struct us_table *table)
{
	sqlite3_stmt *stmt = NULL;
	struct us_record record;
	int rc = sqlite3_prepare_v2(state->db, "SELECT path_hash FROM record", -1, &stmt, NULL);
	int failed = rc != SQLITE_OK;
	while (!failed && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
		uint64_t hash = (uint64_t)sqlite3_column_int64(stmt, 0);
		failed = !us_table_get(table, hash, &record) && forget_hash(state, hash);
	}
	(void)sqlite3_finalize(stmt); /* rc has its error */
	return failed || rc != SQLITE_DONE;
}

static int write_all(struct us_state *state, struct us_table *table)
{
	struct whole whole = { .state = state, .table = table };
	return us_table_each(table, put_record_of_table, &whole) || prune(state, table);
}

int32_t us_state_commit(struct us_state *state, struct us_table *table,
			const struct us_state_change *changes, size_t change_count, int whole,
			int64_t high_water_ns, int64_t last_sweep_s, struct us_error *err)
{
	state->incomplete |= whole;
	state->commit = this_moment();
	if (!sqlite3_get_autocommit(state->db)) { /* there was no memory to end the last one */
		(void)run(state, "ROLLBACK", "roll back", NULL); /* else BEGIN says so */
	}
	int32_t rc = run(state, "BEGIN IMMEDIATE", "begin a transaction", err);
	if (rc) {
		state->incomplete = 1;
		return rc;
	}
	int failed = state->incomplete && write_all(state, table);
	/* Where changes were lost, a length may be of an object before the last: none counts. */
	for (size_t i = 0; i < change_count && !whole && !failed; i++) {
		failed = write_change(state, table, &changes[i]);
	}
	rc = failed ? fail_sqlite(state, "write a record", err)
		    : meta_set_int(state, "high_water", high_water_ns, err);
	if (!rc && last_sweep_s != state->info.last_sweep_s) {
		rc = meta_set_int(state, "last_sweep", last_sweep_s, err);
	}
	if (!rc) {
		rc = meta_set_int(state, "commits", state->info.commits + 1, err);
	}
	if (!rc) {
		rc = run(state, "COMMIT", "commit", err);
	}
	if (rc) {
		(void)sqlite3_exec(state->db, "ROLLBACK", NULL, NULL,
				   NULL); /* may be rolled back already */
		state->incomplete = 1;
		return rc;
	}
	state->incomplete = 0;
	state->info.high_water_ns = high_water_ns;
	state->info.last_sweep_s = last_sweep_s;
	state->info.commits++;
	(void)sqlite3_db_release_memory(state->db); /* pages are random: a cache is of no use */
	return 0;
}

int32_t us_state_set_target_known(struct us_state *state, uint32_t newest_name_s,
				  int64_t high_water_ns, struct us_error *err)
{
	uint32_t epoch_s = state->info.epoch_s;
	if (newest_name_s >= epoch_s && newest_name_s < UINT32_MAX) {
		epoch_s = newest_name_s + 1;
	}
	int32_t rc = meta_set_int(state, "epoch", epoch_s, err);
	if (!rc) {
		rc = meta_set_int(state, "high_water", high_water_ns, err);
	}
	if (!rc) {
		rc = meta_set_int(state, "target_known", 1, err);
	}
	if (!rc) {
		state->info.epoch_s = epoch_s;
		state->info.target_known = 1;
	}
	return rc;
}

int32_t us_state_forget_target(struct us_state *state, struct us_error *err)
{
	int32_t rc = meta_set_int(state, "target_known", 0, err);
	if (!rc) {
		state->info.target_known = 0;
	}
	return rc;
}

/* -------------------------------------------------------------------- lengths */

struct us_state_lengths {
	sqlite3 *db;
	sqlite3_stmt *select;
	int failed; /* once: nothing more is known */
};

int32_t us_state_lengths_open(const struct us_state *state, struct us_state_lengths **ret_lengths,
			      struct us_error *err)
{
	char cache[64];
	struct us_state_lengths *lengths = us_alloc_zero(sizeof(*lengths));
	if (!lengths) {
		return us_fail_nomem(err);
	}
	(void)snprintf(cache, sizeof(cache), "PRAGMA cache_size = -%d", LENGTHS_CACHE_KIB);
	if (sqlite3_open_v2(state->path, &lengths->db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX,
			    NULL) ||
	    sqlite3_busy_timeout(lengths->db, BUSY_TIMEOUT_MS) ||
	    sqlite3_exec(lengths->db, cache, NULL, NULL, NULL) ||
	    sqlite3_prepare_v3(lengths->db,
			       "SELECT object_len FROM record WHERE path_hash = ?1"
			       " AND content_hash = ?2 AND object_time = ?3",
			       -1, SQLITE_PREPARE_PERSISTENT, &lengths->select, NULL)) {
		(void)us_fail(err, US_E_STATE,
			      "state file \"%s\": cannot read lengths of objects: %s", state->path,
			      lengths->db ? sqlite3_errmsg(lengths->db) : "out of memory");
		us_state_lengths_close(lengths);
		return US_E_STATE;
	}
	*ret_lengths = lengths;
	return 0;
}

void us_state_lengths_close(struct us_state_lengths *lengths)
{
	if (!lengths) {
		return;
	}
	(void)sqlite3_finalize(lengths->select); /* only read */
	(void)sqlite3_close(lengths->db);        /* its statement is finalized */
	us_free(lengths);
}

uint64_t us_state_length(struct us_state_lengths *lengths, const struct us_record *record)
{
	sqlite3_stmt *s = lengths->select;
	int64_t len = 0;
	if (lengths->failed) {
		return 0; /* it may have waited for a lock: not once more for each database */
	}
	if (!sqlite3_bind_int64(s, 1, (sqlite3_int64)record->path_hash) &&
	    !sqlite3_bind_int64(s, 2, (sqlite3_int64)record->content_hash) &&
	    !sqlite3_bind_int64(s, 3, record->object_time) && sqlite3_step(s) == SQLITE_ROW) {
		len = sqlite3_column_int64(s, 0);
	}
	lengths->failed = sqlite3_reset(s) != SQLITE_OK;
	return len > 0 ? (uint64_t)len : 0;
}

void us_state_close(struct us_state *state)
{
	if (!state) {
		return;
	}
	if (state->writable && state->db && !state->incomplete) {
		(void)meta_set_int(state, "open", 0,
				   NULL); /* else the next start moves the epoch */
	}
	close_db(state);
	if (state->lock_fd >= 0) {
		(void)close(state->lock_fd); /* releases the lock */
	}
	us_free(state);
}
