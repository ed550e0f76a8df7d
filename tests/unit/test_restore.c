/* SPDX-License-Identifier: Apache-2.0 */
/* Which backup is restored, what is refused in one, and what a restore leaves. */
#include "restore_support.h"

#include "../../csrc/restore/output.h"

#include <pthread.h>

#define S(n) ((n)*US_NS_PER_S)

/* ----------------------------------------------------------------- the file */

static void test_restores_a_database(void **state)
{
	struct stat st;
	(void)state;
	put_new();
	umask(077);
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	umask(022);
	assert_string_equal(result.key, NEW_KEY);
	assert_int_equal(result.mode, 0640);
	assert_int_equal(result.page_size, 512);
	assert_int_equal(result.database_len, 1024);
	assert_int_equal(result.object_len, memory_find(NEW_KEY)->len);
	assert_int_equal(result.snapshot_ns, S(1700000000));
	assert_int_equal(result.skipped, 0);
	assert_int_equal(stat(in_root("x.db"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	assert_int_equal(st.st_nlink, 1);
	assert_int_equal(count_entries(root, ""), 1);
	assert_value(in_root("x.db"), "new");
	assert_int_equal(memory.get_count, 1);
}

static void test_every_piece_length(void **state)
{
	(void)state;
	put_new();
	const size_t lens[] = { 1, 2, 7, 19, 64, 100000 };
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		memory.piece_len = lens[i];
		assert_int_equal(restore(in_root("x.db"), 0), 0);
		assert_value(in_root("x.db"), "new");
		assert_int_equal(unlink(in_root("x.db")), 0);
	}
}

static void test_a_large_database(void **state)
{
	(void)state;
	sqlite3 *db = open_db(in_root("source.db"));
	run_sql(db, "PRAGMA page_size=65536; PRAGMA journal_mode=WAL; CREATE TABLE t(v);"
		    "INSERT INTO t VALUES('new');"
		    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<3000)"
		    " INSERT INTO t SELECT hex(randomblob(1000)) FROM c");
	sqlite3_close(db);
	put_backup(NEW_NAME, in_root("source.db"), S(1700000000));
	memory.piece_len = 16384;
	assert_int_equal(restore_with(in_root("x.db"), 0, 0, US_INTEGRITY_FULL), 0);
	assert_int_equal(result.page_size, 65536);
	run_command("cmp '%s' '%s'", in_root("x.db"), in_root("source.db"));
	assert_int_equal(count_entries(root, ""), 2); /* a WAL database, and no -wal, no -shm */
}

static void put_with(void (*change)(struct us_trailer *trailer, uint8_t *image))
{
	size_t len;
	struct us_trailer *trailer = malloc(sizeof(*trailer));
	assert_non_null(trailer);
	make_db(in_root("source.db"), "new");
	uint8_t *image = read_file(in_root("source.db"), &len);
	trailer_init(trailer, image, len);
	change(trailer, image);
	struct us_object object = encode(image, len, trailer);
	memory_put(NEW_KEY, object.data, object.len);
	us_object_done(&object);
	free(image);
	free(trailer);
	assert_int_equal(unlink(in_root("source.db")), 0);
}

static void set_owner(struct us_trailer *trailer, uint8_t *image)
{
	(void)image;
	trailer->uid = 12345;
	trailer->gid = 23456;
	trailer->mode = 06604;
}

static void test_owner_and_mode(void **state)
{
	struct stat st;
	(void)state;
	put_with(set_owner);
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	assert_int_equal(result.mode, 06604);
	assert_int_equal(stat(in_root("x.db"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0604); /* without the set-id bits */
	if (geteuid() == 0) {
		assert_int_equal(st.st_uid, 12345);
		assert_int_equal(st.st_gid, 23456);
	}
}

static void test_names_of_255_bytes(void **state)
{
	char name[256];
	(void)state;
	put_new();
	memset(name, 'n', 255);
	name[255] = '\0';
	assert_int_equal(restore(in_root(name), 0), 0);
	/* SQLite cannot open it (no room for -journal); the bytes are there. */
	assert_int_equal(count_entries(root, ""), 1);
	assert_int_equal(restore(in_root(name), 0), US_E_EXISTS);
	assert_int_equal(restore(in_root(name), US_RESTORE_FORCE), 0);
	assert_int_equal(count_entries(root, ""), 1);
	name[254] = '\0';
	for (size_t i = 246; i < 255; i++) { /* sides that just fit, or just do not */
		name[i] = '\0';
		assert_int_equal(restore(in_root(name), 0), 0);
		assert_int_equal(restore(in_root(name), US_RESTORE_FORCE), 0);
		name[i] = 'n';
	}
	assert_int_equal(restore(in_root("d/"), 0), US_E_ARG);
	assert_int_equal(restore(in_root("d/.."), 0), US_E_ARG);
	memset(name, 'n', 255);
	char path[PATH_LEN];
	(void)snprintf(path, sizeof(path), "%s/%sn", root, name);
	assert_int_equal(restore(path, 0), US_E_ARG);
}

static void test_missing_directories(void **state)
{
	struct stat st;
	char cwd[PATH_LEN];
	(void)state;
	put_new();
	assert_int_equal(restore(in_root("a/b//c/x.db"), 0), 0);
	assert_value(in_root("a/b/c/x.db"), "new");
	for (const char *const *dir = (const char *const[]){ "a", "a/b", "a/b/c", NULL }; *dir;
	     dir++) {
		assert_int_equal(stat(in_root(*dir), &st), 0);
		assert_int_equal(st.st_mode & 07777, 0711 | (result.mode & 044));
	}
	assert_int_equal(result.mode, 0640);

	/* A failure takes the directories it made with it, and no others. */
	memory_find(NEW_KEY)->data[30] ^= 1;
	assert_int_equal(restore(in_root("a/q/r/s/x.db"), 0), US_E_OBJECT);
	assert_false(is_there(in_root("a/q")));
	assert_true(is_there(in_root("a/b")));
	memory_find(NEW_KEY)->data[30] ^= 1;

	assert_non_null(getcwd(cwd, sizeof(cwd)));
	assert_int_equal(chdir(root), 0);
	assert_int_equal(restore("y.db", 0), 0);
	assert_int_equal(restore("r/s/y.db", 0), 0);
	assert_int_equal(chdir(cwd), 0);
	assert_value(in_root("y.db"), "new");
	assert_value(in_root("r/s/y.db"), "new");

	write_file(in_root("file"), "x", 1);
	assert_int_not_equal(restore(in_root("file/x.db"), 0), 0);
	assert_int_not_equal(restore(in_root("file/d/x.db"), 0), 0);
}

/* -------------------------------------------------------------- what exists */

static void test_existing_output(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	assert_int_equal(restore(in_root("x.db"), 0), US_E_EXISTS);
	assert_message("cannot restore, output path already exists and is not empty: ");
	assert_message(". Use -force to overwrite");
	assert_true(picture(root) == before);
	assert_int_equal(memory.list_count, 0); /* told before the network is asked */
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
	assert_value(in_root("x.db"), "new");
	assert_int_equal(count_entries(root, ""), 1);
}

static void test_side_files(void **state)
{
	static const char *const sides[] = { "x.db-wal", "x.db-shm", "x.db-journal" };
	(void)state;
	put_new();
	for (size_t i = 0; i < 3; i++) {
		for (int with_empty = 0; with_empty < 2; with_empty++) {
			write_file(in_root(sides[i]), "side", 4);
			if (with_empty) {
				write_file(in_root("x.db"), "", 0);
			}
			assert_int_equal(restore(in_root("x.db"), 0), US_E_EXISTS);
			assert_message("SQLite sidecar path already exists");
			assert_message(sides[i]);
			assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
			assert_int_equal(count_entries(root, ""), 1);
			assert_value(in_root("x.db"), "new");
			assert_int_equal(unlink(in_root("x.db")), 0);
		}
	}
}

static void test_empty_file_is_replaced(void **state)
{
	(void)state;
	put_new();
	write_file(in_root("x.db"), "", 0);
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	assert_value(in_root("x.db"), "new");
	assert_int_equal(count_entries(root, ""), 1);
}

static void test_what_is_no_file(void **state)
{
	const uint32_t flags[] = { 0, US_RESTORE_FORCE };
	(void)state;
	put_new();
	make_db(in_root("real.db"), "old");
	assert_int_equal(symlink("real.db", in_root("link.db")), 0);
	assert_int_equal(symlink("nowhere", in_root("dangling.db")), 0);
	assert_int_equal(mkdir(in_root("dir.db"), 0700), 0);
	assert_int_equal(mkfifo(in_root("fifo.db"), 0600), 0);
	uint64_t before = picture(root);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(restore(in_root("link.db"), flags[i]), US_E_EXISTS);
		assert_message("symbolic link");
		assert_message("link.db");
		assert_int_equal(restore(in_root("dangling.db"), flags[i]), US_E_EXISTS);
		assert_message("symbolic link");
		assert_int_equal(restore(in_root("dir.db"), flags[i]), US_E_EXISTS);
		assert_message("cannot restore, output path is a directory: ");
		assert_int_equal(restore(in_root("fifo.db"), flags[i]), US_E_EXISTS);
	}
	assert_true(picture(root) == before);
}

/* Side files that are links or directories are never followed. */
static void test_strange_side_files(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	write_file(in_root("other"), "other", 5);
	assert_int_equal(symlink("other", in_root("x.db-wal")), 0);
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
	assert_value(in_root("x.db"), "new");
	assert_int_equal(count_entries(root, ""), 2);

	assert_int_equal(mkdir(in_root("x.db-wal"), 0700), 0);
	uint64_t before = picture(root);
	assert_int_not_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
	assert_true(picture(root) == before);
	assert_int_equal(rmdir(in_root("x.db-wal")), 0);
	assert_int_equal(symlink("other", in_root("x.db-shm")), 0);
	before = picture(root);
	assert_int_not_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
	assert_true(picture(root) == before);
}

static void test_if_db_not_exists(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_IF_DB_NOT_EXISTS), 0);
	assert_int_equal(result.skipped, 1);
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_IF_DB_NOT_EXISTS | US_RESTORE_FORCE),
			 0);
	assert_int_equal(result.skipped, 1);
	assert_int_equal(memory.list_count, 0);
	assert_true(picture(root) == before);
	assert_int_equal(restore(in_root("y.db"), US_RESTORE_IF_DB_NOT_EXISTS), 0);
	assert_int_equal(result.skipped, 0);
	assert_value(in_root("y.db"), "new");
	assert_int_equal(restore(in_root("no/y.db"), US_RESTORE_IF_DB_NOT_EXISTS), 0);
	assert_int_equal(result.skipped, 0);
}

static void test_dry_run_writes_nothing(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	write_file(in_root(".us-before-0000000000000000-db"), "x", 1);
	uint64_t before = picture(root);
	const char *outputs[] = { "x.db", "y.db", "d/e/x.db" };
	for (size_t i = 0; i < 3; i++) {
		memory.get_count = 0;
		assert_int_equal(restore(in_root(outputs[i]), US_RESTORE_DRY_RUN), 0);
		assert_int_equal(memory.get_count, 1);
		assert_string_equal(result.key, NEW_KEY);
		assert_int_equal(result.mode, 0640);
		assert_int_equal(result.database_len, 1024);
		assert_int_equal(result.object_len, memory_find(NEW_KEY)->len);
		assert_int_equal(result.snapshot_ns, S(1700000000));
	}
	assert_true(picture(root) == before);
	memory.objects[0].data[memory.objects[0].len - 3] ^= 1;
	assert_int_equal(restore(in_root("y.db"), US_RESTORE_DRY_RUN), US_E_OBJECT);
}

/* Below the pattern's directory others can plant links; above it, the operator does. */
static void test_no_link_below_the_tree(void **state)
{
	(void)state;
	struct us_output o;
	struct us_error err = US_ERROR_INIT;
	char path[SCRATCH_LEN + 128], tree[SCRATCH_LEN + 64];
	(void)snprintf(tree, sizeof(tree), "%s/tree", root);
	assert_int_equal(mkdir(tree, 0700), 0);
	assert_int_equal(mkdir(in_root("elsewhere"), 0700), 0);
	assert_int_equal(symlink("../elsewhere", in_root("tree/acme")), 0);
	static const char *const names[] = { "tree/acme/x.db", "tree/acme/new/x.db" };
	for (size_t i = 0; i < 2; i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", root, names[i]);
		assert_int_equal(us_output_open(&o, path, tree, &err), US_E_NOTFOUND);
		assert_non_null(strstr(err.message, "acme"));
		us_output_close(&o);
		assert_int_equal(us_output_open(&o, path, "/data", &err), 0);
		us_output_close(&o);
	}
	assert_int_equal(count_entries(in_root("elsewhere"), ""), 0);
	/* Real directories are made, one by one, and go again if nothing comes of it. */
	(void)snprintf(path, sizeof(path), "%s/a/b/x.db", tree);
	assert_int_equal(us_output_open(&o, path, tree, &err), 0);
	assert_int_equal(us_output_temp(&o, NULL, &err), 0);
	assert_true(is_there(in_root("tree/a/b")));
	us_output_close(&o);
	assert_false(is_there(in_root("tree/a")));
}

/* ---------------------------------------------------------------- choosing */

static void test_no_backup(void **state)
{
	(void)state;
	put_new();
	const struct us_restore_options other = { .struct_size = sizeof(other),
						  .path = "/data/acme/other.db",
						  .output_path = in_root("x.db") };
	const struct us_restore_options foreign = { .struct_size = sizeof(foreign),
						    .path = "/elsewhere/x.db",
						    .output_path = in_root("x.db") };
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(restore_options(&other, NULL, &result, &err),
			 US_E_NOTFOUND);
	assert_non_null(strstr(err.message, "other.db"));
	assert_int_equal(restore_options(&foreign, NULL, &result, NULL),
			 US_E_NOTFOUND);
	assert_int_equal(count_entries(root, ""), 0);
}

static void test_only_our_names_count(void **state)
{
	static const char *const decoys[] = {
		"b/acme/x/20301114T220000Z.db.lz4.tmp",   "b/acme/x/20301114T220000Z.db",
		"b/acme/x/20301114T220000Z.db.lz",        "b/acme/x/20301199T220000Z.db.lz4",
		"b/acme/x/20301114t220000Z.db.lz4",       "b/acme/x/20301114T220000Z.db.LZ4",
		"b/acme/x/y/20301114T220000Z.db.lz4",     "b/acme/x/.20301114T220000Z.db.lz4",
		"b/acme/x2/20301114T220000Z.db.lz4",      "b/acme/x20301114T220000Z.db.lz4",
		"b/acme/x/20301114T220000Z.ltx.lz4",      "b/acme/x/",
		"b/acme/x/20301114T220000Z.db.lz4/thing", "b/acme/x/zzzzzzzzzzzzzzzz.db.lz4",
	};
	(void)state;
	put_new();
	for (size_t i = 0; i < sizeof(decoys) / sizeof(decoys[0]); i++) {
		memory_put(decoys[i], (const uint8_t *)"decoy", 5);
	}
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	assert_string_equal(result.key, NEW_KEY);
	assert_int_equal(restore_with(in_root("y.db"), 0, S(1700000000), 0), 0);
	assert_string_equal(result.key, NEW_KEY);
}

#define HISTORY_COUNT 200
/* One window per hour; each snapshot is taken 1,000 s after its window's start. */
static void put_history(void)
{
	for (uint32_t i = 0; i < HISTORY_COUNT; i++) {
		char name[US_TIME_NAME_LEN + 1], value[16];
		us_time_name_format(1700000000 + 3600 * i, name);
		(void)snprintf(value, sizeof(value), "v%u", i);
		put_value(name, value, S(1700000000 + 3600 * (int64_t)i + 1000));
	}
}

static void test_timestamps(void **state)
{
	(void)state;
	put_history();
	const struct {
		int64_t timestamp_ns;
		const char *value;
	} cases[] = {
		{ 0, "v199" },
		{ S(1700001000), "v0" },
		{ S(1700001000) + 1, "v0" },
		{ S(1700001000 + 3600) - 1,
		  "v0" }, /* after the window's name, before its snapshot */
		{ S(1700001000 + 3600), "v1" },
		{ S(1700001000 + 3600 * 77), "v77" },
		{ S(1700001000 + 3600 * 78) - 1, "v77" },
		{ S(1700001000 + 3600 * 199) - 1, "v198" },
		{ S(1700001000 + 3600 * 199), "v199" },
		{ INT64_MAX, "v199" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memory.get_count = 0;
		assert_int_equal(restore_with(in_root("x.db"), 0, cases[i].timestamp_ns, 0), 0);
		assert_value(in_root("x.db"), cases[i].value);
		assert_int_equal(unlink(in_root("x.db")), 0);
		assert_in_range(memory.get_count, 1, 9); /* log2(200), and the object */
	}
	const int64_t before[] = { S(1700001000) - 1, S(1700000000), 1, -1, INT64_MIN };
	for (size_t i = 0; i < sizeof(before) / sizeof(before[0]); i++) {
		assert_int_equal(restore_with(in_root("x.db"), 0, before[i], 0), US_E_NOTFOUND);
		assert_message("2023-11-14T22:30:00"); /* the earliest */
	}
	assert_int_equal(count_entries(root, ""), 0);
}

/* Some targets do not list in order. */
static void test_unsorted_listing(void **state)
{
	(void)state;
	put_history();
	for (size_t i = 0; i < memory.count / 2; i++) {
		struct memory_object swapped = memory.objects[i];
		memory.objects[i] = memory.objects[memory.count - 1 - i];
		memory.objects[memory.count - 1 - i] = swapped;
	}
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	assert_value(in_root("x.db"), "v199");
	assert_int_equal(restore_with(in_root("y.db"), 0, S(1700001000 + 3600 * 77), 0), 0);
	assert_value(in_root("y.db"), "v77");
}

/* A damaged object is an error if it is the one asked for, and in nobody's way else. */
static void test_damaged_trailer_in_the_search(void **state)
{
	(void)state;
	put_value("20231114T220000Z", "v0", S(1699999300));
	put_value("20231114T230000Z", "v1", S(1700002900));
	put_value("20231115T000000Z", "v2", S(1700006500));
	struct memory_object *o = memory_find(KEY_PREFIX "/20231114T230000Z.db.lz4");
	o->data[o->len - 100] ^= 1;
	assert_int_equal(restore_with(in_root("x.db"), 0, S(1700003000), 0), US_E_OBJECT);
	assert_message("20231114T230000Z.db.lz4");
	assert_int_equal(restore_with(in_root("x.db"), 0, S(1699999400), 0), 0);
	assert_value(in_root("x.db"), "v0");
	assert_int_equal(restore_with(in_root("y.db"), 0, S(1700006600), 0), 0);
	assert_value(in_root("y.db"), "v2");
	assert_int_equal(restore(in_root("z.db"), 0), 0);
	assert_value(in_root("z.db"), "v2");
}

static void set_other_path(struct us_trailer *trailer, uint8_t *image)
{
	(void)image;
	(void)snprintf(trailer->path, sizeof(trailer->path), "/data/acme/y.db");
}

static void test_object_of_another_database(void **state)
{
	(void)state;
	put_with(set_other_path);
	for (int timed = 0; timed < 2; timed++) {
		assert_int_equal(restore_with(in_root("x.db"), 0, timed ? INT64_MAX : 0, 0),
				 US_E_OBJECT);
		assert_message("belongs to another database");
		assert_message("/data/acme/y.db");
		assert_message(NEW_KEY);
	}
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_DRY_RUN), US_E_OBJECT);
	assert_int_equal(count_entries(root, ""), 0);
}

/* ------------------------------------------------- what changes meanwhile */

static void replace_once(const char *key)
{
	memory.on_get = NULL;
	(void)key;
	/* A larger one, which compresses far better: the listed length says too little. */
	sqlite3 *db = open_db(in_root("other.db"));
	run_sql(db, "CREATE TABLE t(v); INSERT INTO t VALUES('newer');"
		    "INSERT INTO t SELECT zeroblob(3000000)");
	sqlite3_close(db);
	put_backup(NEW_NAME, in_root("other.db"), S(1700000600));
	assert_int_equal(unlink(in_root("other.db")), 0);
}

static void remove_once(const char *key)
{
	memory.on_get = NULL;
	memory_remove(key);
	put_value("20231114T230000Z", "newest", S(1700003600));
}

static void test_changes_between_list_and_get(void **state)
{
	(void)state;
	put_new();
	memory.on_get = replace_once;
	assert_int_equal(restore(in_root("x.db"), 0), 0);
	assert_value(in_root("x.db"), "newer");
	assert_int_equal(result.object_len, memory_find(NEW_KEY)->len);

	memory.on_get = remove_once;
	assert_int_equal(restore(in_root("y.db"), 0), 0);
	assert_value(in_root("y.db"), "newest");
}

/* The object in the timestamp's window is replaced by a later state while it is
 * chosen: what comes must not be of after the timestamp. */
static int gets_until_replaced;
static void replace_later(const char *key)
{
	(void)key;
	if (gets_until_replaced-- == 0) {
		memory.on_get = NULL;
		put_value(NEW_NAME, "late", S(1700000600));
	}
}

static void test_replaced_by_a_later_state(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) { /* before its trailer is read, and before itself is */
		put_value("20231114T210000Z", "first", S(1699999000));
		put_new();
		gets_until_replaced = i;
		memory.on_get = replace_later;
		assert_int_equal(restore_with(in_root("x.db"), 0, S(1700000300), 0), 0);
		assert_value(in_root("x.db"), "first");
		assert_int_equal(unlink(in_root("x.db")), 0);
	}
}

static void cancel_now(const char *key)
{
	(void)key;
	cancel = 1;
}

static void test_cancel(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	memory.on_get = cancel_now;
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), US_E_CANCELED);
	assert_int_equal(restore(in_root("y.db"), 0), US_E_CANCELED);
	cancel = 0;
	assert_int_equal(restore_with(in_root("y.db"), 0, S(1800000000), 0), US_E_CANCELED);
	assert_true(picture(root) == before);
}

/* ----------------------------------------------------------------- damage */

static void test_every_byte_flipped(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	struct memory_object *o = memory_find(NEW_KEY);
	for (size_t i = 0; i < o->len; i++) {
		o->data[i] ^= (uint8_t)(1 << (i % 8));
		int32_t rc = restore(in_root("x.db"), US_RESTORE_FORCE);
		if (rc != US_E_OBJECT) {
			fail_msg("byte %zu of %zu: %d %s", i, o->len, rc, error.message);
		}
		assert_message(NEW_KEY);
		assert_true(picture(root) == before);
		o->data[i] ^= (uint8_t)(1 << (i % 8));
	}
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
}

static void test_every_truncation(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	struct memory_object *o = memory_find(NEW_KEY);
	size_t whole = o->len;
	for (o->len = 0; o->len < whole; o->len++) {
		assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), US_E_OBJECT);
		assert_int_equal(restore_with(in_root("x.db"), US_RESTORE_FORCE, INT64_MAX, 0),
				 US_E_OBJECT);
		assert_true(picture(root) == before);
	}
	uint8_t *longer = malloc(whole + 20000);
	assert_non_null(longer);
	memcpy(longer, o->data, whole);
	memset(longer + whole, 0, 20000);
	for (size_t extra = 1; extra <= 20000; extra += 4999) {
		memory_put(NEW_KEY, longer, whole + extra);
		assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), US_E_OBJECT);
	}
	free(longer);
	assert_true(picture(root) == before);
}

static void test_trailer_missing(void **state)
{
	(void)state;
	put_new();
	struct memory_object *o = memory_find(NEW_KEY);
	for (size_t i = o->len - 4; i > 0; i--) {
		if (memcmp(o->data + i, "\x50\x2A\x4D\x18", 4) == 0) {
			o->len = i;
			break;
		}
	}
	assert_int_equal(restore(in_root("x.db"), 0), US_E_OBJECT);
	assert_message("trailer");
	assert_int_equal(count_entries(root, ""), 0);
}

/* A frame that claims a terabyte, its trailer in agreement. */
static void test_bomb(void **state)
{
	(void)state;
	put_new();
	struct memory_object *o = memory_find(NEW_KEY);
	uint8_t *data = malloc(o->len + 64);
	assert_non_null(data);
	LZ4F_cctx *lz4;
	const LZ4F_preferences_t preferences = { .frameInfo = { .contentSize = UINT64_C(1) << 40,
								.contentChecksumFlag = 1,
								.blockMode =
									LZ4F_blockIndependent } };
	assert_false(LZ4F_isError(LZ4F_createCompressionContext(&lz4, LZ4F_VERSION)));
	size_t header_len = LZ4F_compressBegin(lz4, data, 64, &preferences);
	assert_false(LZ4F_isError(header_len));
	LZ4F_freeCompressionContext(lz4);
	memcpy(data + header_len, o->data + header_len, o->len - header_len);
	memory_put(NEW_KEY, data, o->len);
	free(data);
	assert_int_equal(restore(in_root("x.db"), 0), US_E_OBJECT);
	assert_message("1099511627776");
	assert_int_equal(count_entries(root, ""), 0);
}

static void spoil_magic(struct us_trailer *trailer, uint8_t *image)
{
	(void)trailer;
	image[3] ^= 1;
}

static void spoil_page_size(struct us_trailer *trailer, uint8_t *image)
{
	(void)trailer;
	image[16] = 4;
}

static void spoil_trailer_page_size(struct us_trailer *trailer, uint8_t *image)
{
	(void)image;
	trailer->page_size = 1024;
}

static void spoil_page_count(struct us_trailer *trailer, uint8_t *image)
{
	(void)trailer;
	image[31]++;
}

static void spoil_page_count_unused(struct us_trailer *trailer, uint8_t *image)
{
	(void)trailer;
	image[31]++;
	image[95]++; /* version-valid-for: the count does not count */
}

/* True to its hashes, and yet no such database. */
static void test_wrong_images(void **state)
{
	(void)state;
	void (*const spoilers[])(struct us_trailer *, uint8_t *) = { spoil_magic, spoil_page_size,
								     spoil_trailer_page_size,
								     spoil_page_count };
	for (size_t i = 0; i < sizeof(spoilers) / sizeof(spoilers[0]); i++) {
		put_with(spoilers[i]);
		assert_int_equal(restore(in_root("x.db"), 0), US_E_OBJECT);
		assert_message(NEW_KEY);
		assert_int_equal(count_entries(root, ""), 0);
	}
	put_with(spoil_page_count_unused);
	assert_int_equal(restore(in_root("x.db"), 0), 0);
}

static void spoil_content(struct us_trailer *trailer, uint8_t *image)
{
	(void)trailer;
	memset(image + 512, 0xFF, 100); /* the header of the second page, a b-tree's root */
}

static void test_integrity_check(void **state)
{
	(void)state;
	put_with(spoil_content);
	const uint32_t checks[] = { US_INTEGRITY_QUICK, US_INTEGRITY_FULL };
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(restore_with(in_root("x.db"), US_RESTORE_FORCE, 0, checks[i]),
				 US_E_CORRUPT);
		assert_message("integrity check");
		assert_true(picture(root) == before);
	}
	assert_int_equal(restore(in_root("x.db"), US_RESTORE_FORCE), 0);
	assert_int_equal(unlink(in_root("x.db")), 0);
	put_new();
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(
			restore_with(in_root("odd ?#%41&name"), US_RESTORE_FORCE, 0, checks[i]), 0);
		assert_int_equal(count_entries(root, ""), 1);
	}
}

static void test_disk_full(void **state)
{
	(void)state;
	put_new();
	make_db(in_root("x.db"), "old");
	uint64_t before = picture(root);
	write_errno = ENOSPC;
	int32_t rc = restore(in_root("x.db"), US_RESTORE_FORCE);
	int32_t deep_rc = restore(in_root("d/e/x.db"), 0);
	write_errno = 0;
	assert_int_equal(rc, US_E_NOSPACE);
	assert_int_equal(deep_rc, US_E_NOSPACE);
	assert_true(picture(root) == before);
}

/* ---------------------------------------------------------------- parallel */

#define THREADS 6
#define EACH 30

static void *restore_many(void *arg)
{
	long failures = 0;
	for (int i = 0; i < EACH; i++) {
		char output[PATH_LEN];
		const int bad = i % 3 == 0;
		struct us_restore_result own = { .struct_size = sizeof(own) };
		struct us_error err = US_ERROR_INIT;
		/* All in the same directories, which the failing ones keep removing. */
		(void)snprintf(output, sizeof(output), "%s/p/%d/%d-%d.db", root, i / 3, *(int *)arg,
			       i);
		const struct us_restore_options options = {
			.struct_size = sizeof(options),
			.path = bad ? "/data/acme/bad.db" : SOURCE,
			.output_path = output,
		};
		int32_t rc = restore_options(&options, NULL, &own, &err);
		failures += rc != (bad ? US_E_OBJECT : 0);
		if (rc != (bad ? US_E_OBJECT : 0)) {
			print_error("%s: %d %s\n", output, rc, err.message);
		}
	}
	return failures ? arg : NULL;
}

static void test_many_at_once(void **state)
{
	pthread_t threads[THREADS];
	int ids[THREADS];
	(void)state;
	put_new();
	struct memory_object *o = memory_find(NEW_KEY);
	memory_put("b/acme/bad/" NEW_NAME ".db.lz4", o->data, o->len);
	calls_are_free = 1;
	for (int i = 0; i < THREADS; i++) {
		ids[i] = i;
		assert_int_equal(pthread_create(&threads[i], NULL, restore_many, &ids[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		void *failed;
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	assert_value(in_root("p/9/5-29.db"), "new");
	assert_int_equal(count_entries(in_root("p/9"), ""), THREADS * 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(test_##name, setup_restore, teardown_restore)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(restores_a_database),
		TEST(every_piece_length),
		TEST(a_large_database),
		TEST(owner_and_mode),
		TEST(names_of_255_bytes),
		TEST(missing_directories),
		TEST(existing_output),
		TEST(side_files),
		TEST(empty_file_is_replaced),
		TEST(what_is_no_file),
		TEST(strange_side_files),
		TEST(if_db_not_exists),
		TEST(dry_run_writes_nothing),
		TEST(no_backup),
		TEST(only_our_names_count),
		TEST(timestamps),
		TEST(unsorted_listing),
		TEST(damaged_trailer_in_the_search),
		TEST(object_of_another_database),
		TEST(changes_between_list_and_get),
		TEST(replaced_by_a_later_state),
		TEST(cancel),
		TEST(every_byte_flipped),
		TEST(every_truncation),
		TEST(trailer_missing),
		TEST(bomb),
		TEST(wrong_images),
		TEST(integrity_check),
		TEST(disk_full),
		TEST(many_at_once),
		TEST(no_link_below_the_tree),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
