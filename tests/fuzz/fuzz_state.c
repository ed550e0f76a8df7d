/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A state directory: flags, length of state.db, state.db, its WAL (by flag; with checksums
 * made right by further ones, as in fuzz_wal). What a second reader finds in a copy of the
 * files says what must come of it: the same records, or a new state, or a refusal that
 * leaves the file as it is. Whatever was opened can be written, closed and opened again.
 */
#include "files.h"
#include "wal_sums.h"

#include <sqlite3.h>

#include "../../csrc/track/state.h"

#define HAS_WAL 8u
#define FILE_LEN_MAX ((size_t)1 << 20)
#define ROWS_MAX 4096
#define TARGET "s3\nhttp://127.0.0.1:9000\nbucket\n"
#define WINDOW_S 3600
#define NOW_S 1700000000u
#define APPLICATION_ID 0x75737374

/* What a state file holds. */
struct content {
	int is_intact;    /* 0: SQLite finds damage, and may read anything */
	int is_usable;    /* 0: a new one has to be begun */
	int is_sound;     /* 0: that may turn out when it is written */
	int is_read_only; /* by its header: made by a later SQLite */
	int64_t epoch, window, known, high_water, was_open;
	uint8_t key[16];
	struct us_record rows[ROWS_MAX];
	size_t row_count;
};

static char ours[SCRATCH_LEN + 16], theirs[SCRATCH_LEN + 16];
static int ours_fd, theirs_fd;

static void set_up(void)
{
	char root[SCRATCH_LEN];
	if (ours[0]) {
		return;
	}
	require(scratch_dir(root) == 0);
	(void)snprintf(ours, sizeof(ours), "%s/1", root);
	(void)snprintf(theirs, sizeof(theirs), "%s/2", root);
	require(mkdir(ours, 0700) == 0 && mkdir(theirs, 0700) == 0);
	ours_fd = open(ours, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	theirs_fd = open(theirs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	require(ours_fd >= 0 && theirs_fd >= 0);
}

static void put_files(int dir_fd, const char *db, size_t db_len, const char *wal, size_t wal_len)
{
	put_file(dir_fd, "state.db", db, db_len, 0);
	put_file(dir_fd, "state.db-wal", wal, wal_len, 0);
	put_file(dir_fd, "state.db-shm", NULL, 0, 0);
	put_file(dir_fd, "state.db.unusable-1", NULL, 0, 0);
}

/* ------------------------------------------------------------- the second reader */

static sqlite3_stmt *row_of(sqlite3 *db, const char *text)
{
	sqlite3_stmt *stmt = NULL;
	if (sqlite3_prepare_v2(db, text, -1, &stmt, NULL) != SQLITE_OK ||
	    sqlite3_step(stmt) != SQLITE_ROW) {
		(void)sqlite3_finalize(stmt);
		return NULL;
	}
	return stmt;
}

/* 1 and the number if there is one between LEAST and MOST. */
static int number_of(sqlite3 *db, const char *text, int64_t least, int64_t most, int64_t *ret)
{
	sqlite3_stmt *stmt = row_of(db, text);
	int found = stmt && sqlite3_column_type(stmt, 0) == SQLITE_INTEGER;
	*ret = found ? sqlite3_column_int64(stmt, 0) : 0;
	(void)sqlite3_finalize(stmt);
	return found && *ret >= least && *ret <= most;
}

#define META(name) "SELECT value FROM meta WHERE name = '" name "'"

static int read_meta(sqlite3 *db, struct content *c)
{
	int64_t id, version;
	if (!number_of(db, "PRAGMA application_id", APPLICATION_ID, APPLICATION_ID, &id) ||
	    !number_of(db, "PRAGMA user_version", 1, 3, &version)) {
		return 0;
	}
	sqlite3_stmt *target = row_of(db, META("target"));
	const char *text = target ? (const char *)sqlite3_column_text(target, 0) : NULL;
	int same = text && strcmp(text, TARGET) == 0;
	(void)sqlite3_finalize(target);
	sqlite3_stmt *key = same ? row_of(db, META("hash_key")) : NULL;
	int has_key = key && sqlite3_column_bytes(key, 0) == sizeof(c->key);
	if (has_key) {
		memcpy(c->key, sqlite3_column_blob(key, 0), sizeof(c->key));
	}
	(void)sqlite3_finalize(key);
	(void)number_of(db, META("open"), 0, 1, &c->was_open);
	/* What only version 3 has is read, too: the tables keep stamps. */
	int is_whole = version < 3 || sqlite3_exec(db, "SELECT uploaded_ms FROM record", NULL, NULL,
						   NULL) == SQLITE_OK;
	return has_key && is_whole && number_of(db, META("epoch"), 0, UINT32_MAX, &c->epoch) &&
	       number_of(db, META("window"), 0, UINT32_MAX, &c->window) &&
	       number_of(db, META("target_known"), 0, 1, &c->known) &&
	       number_of(db, META("high_water"), 0, INT64_MAX, &c->high_water);
}

static struct us_record *row_for(struct content *c, uint64_t hash)
{
	for (size_t i = 0; i < c->row_count; i++) {
		if (c->rows[i].path_hash == hash) {
			return &c->rows[i];
		}
	}
	return c->row_count < ROWS_MAX ? &c->rows[c->row_count++] : NULL;
}

/* 1, 0 if they cannot be read, -1 if there are too many. */
static int read_rows(sqlite3 *db, struct content *c)
{
	sqlite3_stmt *s = NULL;
	int rc = sqlite3_prepare_v2(
		db,
		"SELECT path_hash, fingerprint, content_hash, object_time, flags,"
		" size_class, object_count FROM record",
		-1, &s, NULL);
	int good = rc == SQLITE_OK;
	while (good > 0 && (rc = sqlite3_step(s)) == SQLITE_ROW) {
		uint64_t hash = (uint64_t)sqlite3_column_int64(s, 0);
		struct us_record *row = row_for(c, hash);
		if (!row) {
			good = -1;
			break;
		}
		*row = (struct us_record){
			.path_hash = hash,
			.fingerprint = (uint64_t)sqlite3_column_int64(s, 1),
			.content_hash = (uint64_t)sqlite3_column_int64(s, 2),
			.object_time = (uint32_t)sqlite3_column_int64(s, 3),
			.flags = (uint8_t)(sqlite3_column_int64(s, 4) & US_RECORD_KEPT),
			.size_class = (uint8_t)sqlite3_column_int(s, 5),
			.object_count = (uint8_t)sqlite3_column_int(s, 6),
		};
		if (c->was_open && (row->flags & US_RECORD_UNSYNCED)) {
			row->content_hash = 0;
		}
		row->flags |= (uint8_t)(c->was_open ? US_RECORD_UNSURE : 0);
		good = hash != 0;
	}
	(void)sqlite3_finalize(s);
	return good < 0 ? -1 : good && rc == SQLITE_DONE;
}

static int is_intact(sqlite3 *db)
{
	sqlite3_stmt *check = row_of(db, "PRAGMA integrity_check");
	int intact = check && strcmp((const char *)sqlite3_column_text(check, 0), "ok") == 0;
	(void)sqlite3_finalize(check);
	return intact;
}

/* The schema is as it should be. */
static int can_be_written(sqlite3 *db)
{
	int64_t count, version;
	static const char add[] = "BEGIN; ALTER TABLE record ADD COLUMN uploaded_ms;"
				  "SELECT uploaded_ms FROM record; ROLLBACK";
	static const char *const columns[] = {
		add,
		"SELECT object_len FROM record",
		"SELECT object_len, uploaded_ms FROM record",
	};
	(void)number_of(db, "PRAGMA user_version", 1, 3, &version);
	return number_of(db, "SELECT count(*) FROM sqlite_master", 2, 2, &count) &&
	       sqlite3_exec(db, columns[version - 1], NULL, NULL, NULL) == SQLITE_OK &&
	       (version != 2 || sqlite3_exec(db, add, NULL, NULL, NULL) == SQLITE_OK) &&
	       sqlite3_exec(db,
			    "BEGIN; INSERT INTO record (path_hash, fingerprint, content_hash,"
			    " object_time, flags, size_class, object_count)"
			    " SELECT max(path_hash) / 2 + 3, 1, 1, 1, 1, 1, 1 FROM record WHERE true"
			    " ON CONFLICT (path_hash) DO UPDATE SET flags = 1;"
			    "INSERT OR REPLACE INTO meta VALUES ('open', 1); ROLLBACK",
			    NULL, NULL, NULL) == SQLITE_OK;
}

/* 0 if the input is not worth it. */
static int read_content(struct content *c)
{
	char path[SCRATCH_LEN + 32];
	sqlite3 *db;
	*c = (struct content){ .row_count = 0 };
	(void)snprintf(path, sizeof(path), "%s/state.db", theirs);
	int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);
	int rows = rc == SQLITE_OK && read_meta(db, c) ? read_rows(db, c) : 0;
	c->is_usable = rows > 0;
	c->is_intact = is_intact(db);
	c->is_sound = c->is_intact && c->is_usable && can_be_written(db);
	c->is_read_only = sqlite3_db_readonly(db, "main") == 1;
	(void)sqlite3_close(db);
	return rows >= 0;
}

/* ------------------------------------------------------------------------- ours */

static int32_t count_record(void *arg, struct us_record *record)
{
	require(record->path_hash != 0);
	++*(size_t *)arg;
	return 0;
}

static size_t count_of(struct us_table *table)
{
	size_t count = 0;
	require(us_table_each(table, count_record, &count) == 0);
	return count;
}

/* TABLE holds the rows, but for flags that are not IN. */
static void check_table(struct us_table *table, const struct content *c, uint32_t in)
{
	require(count_of(table) == c->row_count);
	for (size_t i = 0; i < c->row_count; i++) {
		struct us_record got, want = c->rows[i];
		require(us_table_get(table, want.path_hash, &got));
		got.flags &= (uint8_t)in;
		want.flags &= (uint8_t)in;
		require(memcmp(&got, &want, sizeof(got)) == 0);
	}
}

static void check_read_only(const struct content *c)
{
	struct us_error err = US_ERROR_INIT;
	struct us_table *table;
	struct us_state *state;
	require(us_table_new(&table, NULL) == 0);
	us_table_keep_stamps(table);
	int32_t rc = us_state_open_read_only(ours, TARGET, table, &state, &err);
	require((rc == 0) == c->is_usable || !c->is_intact);
	if (rc == 0) {
		if (c->is_intact) {
			check_table(table, c, 0xff);
		}
		us_state_close(state);
	} else {
		require(rc == US_E_NOTFOUND || rc == US_E_STATE);
		require_reason(rc, &err);
		require(count_of(table) == 0);
	}
	us_table_free(table);
}

static void check_info(const struct us_state_info *info, const struct content *c, int is_fresh)
{
	int64_t floor_s = c->high_water / US_NS_PER_S;
	int64_t at_s = NOW_S > floor_s ? NOW_S : floor_s;
	require(info->window_s == WINDOW_S);
	if (is_fresh) {
		require(info->epoch_s == NOW_S && !info->target_known && info->high_water_ns == 0);
		return;
	}
	require(memcmp(&info->key, c->key, sizeof(c->key)) == 0);
	require(info->epoch_s >= c->epoch && info->high_water_ns == c->high_water);
	require(info->target_known == c->known);
	if (c->was_open || c->window != WINDOW_S) {
		require(info->epoch_s > at_s || info->epoch_s == UINT32_MAX || at_s > UINT32_MAX);
	} else {
		require(info->epoch_s == c->epoch);
	}
}

static int32_t open_state(struct us_table **ret_table, struct us_state **ret_state, char reset[256],
			  struct us_error *err)
{
	require(us_table_new(ret_table, NULL) == 0);
	us_table_keep_stamps(*ret_table);
	int32_t rc = us_state_open(ours, TARGET, WINDOW_S, NOW_S, *ret_table, reset, 256, ret_state,
				   err);
	if (rc) {
		require_reason(rc, err);
		us_table_free(*ret_table);
	}
	return rc;
}

/* What was opened is written and closed; then it opens again, with the same in it. */
static void check_again(struct us_table *table, struct us_state *state, const struct content *c)
{
	struct us_error err = US_ERROR_INIT;
	char reset[256];
	struct us_state_info info = *us_state_info(state);
	int32_t rc = us_state_commit(state, table, NULL, 0, 1, info.high_water_ns,
				     info.last_sweep_s, &err);
	us_state_close(state);
	us_table_free(table);
	if (rc) {
		require(rc == US_E_STATE);
		require_reason(rc, &err);
	}
	int32_t again = open_state(&table, &state, reset, &err);
	require(again == 0 || rc != 0);
	if (again) {
		return;
	}
	if (rc == 0) {
		require(reset[0] == '\0');
		check_table(table, c, US_RECORD_KEPT);
		require(us_state_info(state)->epoch_s == info.epoch_s);
	}
	us_state_close(state);
	us_table_free(table);
}

static int is_same_file(const char *name, const char *data, size_t len)
{
	static char now[FILE_LEN_MAX];
	return get_file(ours_fd, name, now, sizeof(now)) == len && memcmp(now, data, len) == 0;
}

static void check_open(const char *db, size_t len, int has_wal, struct content *c)
{
	struct us_error err = US_ERROR_INIT;
	struct us_table *table;
	struct us_state *state;
	char reset[256] = "";
	int is_sqlite = len >= 100 && memcmp(db, "SQLite format 3", 16) == 0;
	int is_foreign = is_sqlite && us_get_be32((const uint8_t *)db + 68) != APPLICATION_ID;
	int32_t rc = open_state(&table, &state, reset, &err);
	if (is_foreign) {
		require(rc == US_E_CONFIG && is_same_file("state.db", db, len));
		return;
	}
	if (rc) {
		require(rc == US_E_STATE && c->is_read_only);
		return;
	}
	require(is_one_line(reset) && !(reset[0] && c->is_sound));
	require(reset[0] || c->is_usable || !c->is_intact);
	if (reset[0]) {
		c->row_count = 0;
		/* With a WAL it may have become another file when SQLite closed it. */
		require(is_sqlite || has_wal || is_same_file("state.db.unusable-1", db, len));
	}
	if (c->is_intact || reset[0]) {
		check_table(table, c, 0xff);
		check_info(us_state_info(state), c, reset[0] != '\0');
		check_again(table, state, c);
	} else {
		us_state_close(state);
		us_table_free(table);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	static struct content content;
	struct input in = { data, data_len };
	char *wal = NULL;
	size_t db_len, wal_len = 0;
	set_up();
	uint8_t flags = input_byte(&in);
	uint16_t len = input_u16(&in);
	char *db = input_bytes(&in, len, &db_len);
	if (flags & HAS_WAL) {
		wal = input_bytes(&in, in.left, &wal_len);
		wal_fix((uint8_t *)wal, wal_len, flags);
	}
	put_files(theirs_fd, db, db_len, wal, wal_len);
	if (read_content(&content)) {
		put_files(ours_fd, db, db_len, wal, wal_len);
		check_read_only(&content);
		put_files(ours_fd, db, db_len, wal, wal_len); /* its WAL may be in it now */
		check_open(db, db_len, wal != NULL, &content);
	}
	free(db);
	free(wal);
	return 0;
}
