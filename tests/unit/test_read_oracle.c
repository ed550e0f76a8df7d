/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reader against SQLite. A writer process works on a database through a VFS
 * that stops it (SIGSTOP) at a random write, truncate, sync or delete; what lies
 * on disk then is what a crash would leave. The files are copied twice: one copy
 * is read by us, the other opened by SQLite, which recovers it. Both must be the
 * same bytes, or both must fail.
 *
 * SQLite only reads in its copy: a recovery changes nothing but what it restores
 * (no change counter is raised), so the comparison is exact. The file is cut to
 * the header's page count as an image is.
 *
 * US_ORACLE_COUNT (default 1000): states with a live WAL to compare, and as many
 * with a hot journal. US_ORACLE_SEED repeats a run; a failure names its seed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "read_support.h"

/* ------------------------------------------------------ the VFS that stops */

static struct {
	int sector_size, characteristics;
	int32_t ops_left; /* until the next stop */
	uint32_t ops_between;
	int disk_only_super; /* stop only while a super-journal exists */
	int super_count;
} vfs_conf;

struct vfs_file {
	sqlite3_file base;
	sqlite3_file *real;
};

static sqlite3_vfs *real_vfs;
static sqlite3_vfs stop_vfs;

static void count_op(void)
{
	if (vfs_conf.disk_only_super && vfs_conf.super_count == 0) {
		return;
	}
	if (--vfs_conf.ops_left < 0) {
		vfs_conf.ops_left = (int32_t)rng(vfs_conf.ops_between);
		(void)raise(SIGSTOP);
	}
}

static sqlite3_file *real_of(sqlite3_file *file)
{
	return ((struct vfs_file *)file)->real;
}

static int file_close(sqlite3_file *f)
{
	return real_of(f)->pMethods->xClose(real_of(f));
}
static int file_read(sqlite3_file *f, void *buf, int len, sqlite3_int64 off)
{
	return real_of(f)->pMethods->xRead(real_of(f), buf, len, off);
}
static int file_write(sqlite3_file *f, const void *buf, int len, sqlite3_int64 off)
{
	count_op();
	return real_of(f)->pMethods->xWrite(real_of(f), buf, len, off);
}
static int file_truncate(sqlite3_file *f, sqlite3_int64 len)
{
	count_op();
	return real_of(f)->pMethods->xTruncate(real_of(f), len);
}
static int file_sync(sqlite3_file *f, int flags)
{
	(void)f, (void)flags; /* the disk is not what is tested */
	count_op();
	return SQLITE_OK;
}
static int file_size(sqlite3_file *f, sqlite3_int64 *ret)
{
	return real_of(f)->pMethods->xFileSize(real_of(f), ret);
}
static int file_lock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xLock(real_of(f), level);
}
static int file_unlock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xUnlock(real_of(f), level);
}
static int file_reserved(sqlite3_file *f, int *ret)
{
	return real_of(f)->pMethods->xCheckReservedLock(real_of(f), ret);
}
static int file_control(sqlite3_file *f, int op, void *arg)
{
	return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}
static int file_sector(sqlite3_file *f)
{
	(void)f;
	return vfs_conf.sector_size;
}
static int file_characteristics(sqlite3_file *f)
{
	(void)f;
	return vfs_conf.characteristics;
}
static int file_shm_map(sqlite3_file *f, int page, int len, int extend, void volatile **ret)
{
	return real_of(f)->pMethods->xShmMap(real_of(f), page, len, extend, ret);
}
static int file_shm_lock(sqlite3_file *f, int off, int n, int flags)
{
	return real_of(f)->pMethods->xShmLock(real_of(f), off, n, flags);
}
static void file_shm_barrier(sqlite3_file *f)
{
	real_of(f)->pMethods->xShmBarrier(real_of(f));
}
static int file_shm_unmap(sqlite3_file *f, int del)
{
	return real_of(f)->pMethods->xShmUnmap(real_of(f), del);
}

static const sqlite3_io_methods stop_methods = {
	.iVersion = 2,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_unlock,
	.xCheckReservedLock = file_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector,
	.xDeviceCharacteristics = file_characteristics,
	.xShmMap = file_shm_map,
	.xShmLock = file_shm_lock,
	.xShmBarrier = file_shm_barrier,
	.xShmUnmap = file_shm_unmap,
};

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *ret)
{
	struct vfs_file *f = (struct vfs_file *)file;
	(void)vfs;
	memset(f, 0, sizeof(*f));
	f->real = (sqlite3_file *)(f + 1);
	int rc = real_vfs->xOpen(real_vfs, name, f->real, flags, ret);
	if (rc == SQLITE_OK && (flags & SQLITE_OPEN_SUPER_JOURNAL)) {
		vfs_conf.super_count++;
	}
	f->base.pMethods = f->real->pMethods ? &stop_methods : NULL;
	return rc;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	(void)vfs, (void)sync_dir;
	count_op();
	int rc = real_vfs->xDelete(real_vfs, name, 0);
	if (strstr(name, "-mj")) {
		count_op(); /* committed, all journals still there */
	} else if (vfs_conf.super_count && strstr(name, "-journal")) {
		count_op();
	}
	return rc;
}

static void vfs_register(void)
{
	real_vfs = sqlite3_vfs_find("unix");
	stop_vfs = *real_vfs;
	stop_vfs.zName = "stop";
	stop_vfs.szOsFile = (int)sizeof(struct vfs_file) + real_vfs->szOsFile;
	stop_vfs.xOpen = vfs_open;
	stop_vfs.xDelete = vfs_delete;
	stop_vfs.pNext = NULL;
	(void)sqlite3_vfs_register(&stop_vfs, 1);
}

/* ------------------------------------------------------------- the writer */

enum mode { MODE_WAL, MODE_DELETE, MODE_TRUNCATE, MODE_PERSIST, MODE_COUNT };
static const char *const mode_names[] = { "WAL", "DELETE", "TRUNCATE", "PERSIST" };

struct plan {
	uint64_t seed;
	enum mode mode;
	int page_size, attached;
};

static void write_some(sqlite3 *db, const char *schema, int page_size)
{
	uint32_t rows = 1 + rng(40);
	int blob = 1 + (int)rng((uint32_t)page_size * 3);
	switch (rng(6)) {
	case 0:
	case 1:
	case 2:
		(void)sql(db,
			  "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%u)"
			  " INSERT INTO %s.t(a,b) SELECT random(), randomblob(abs(random())%%%d) "
			  "FROM c",
			  rows, schema, blob);
		break;
	case 3:
		(void)sql(db, "UPDATE %s.t SET b=randomblob(%d), a=random() WHERE id%%%u=%u",
			  schema, blob, 5u, rng(5));
		break;
	case 4:
		(void)sql(db, "DELETE FROM %s.t WHERE id%%%u=%u", schema, 3u, rng(3));
		break;
	default:
		(void)sql(db, "DELETE FROM %s.t WHERE id>(SELECT max(id)-%u FROM %s.t)", schema,
			  rng(200), schema);
		break;
	}
}

static void transaction(sqlite3 *db, const struct plan *plan)
{
	(void)sql(db, "BEGIN");
	uint32_t steps = 1 + rng(8);
	for (uint32_t i = 0; i < steps; i++) {
		const char *schema = plan->attached && rng(2) ? "other" : "main";
		int nested = rng(4) == 0;
		if (nested) {
			(void)sql(db, "SAVEPOINT s");
		}
		write_some(db, schema, plan->page_size);
		if (nested) {
			write_some(db, schema, plan->page_size);
			(void)sql(db, rng(2) ? "ROLLBACK TO s" : "RELEASE s");
		}
	}
	(void)sql(db, rng(5) ? "COMMIT" : "ROLLBACK");
}

static void housekeeping(sqlite3 *db, const struct plan *plan)
{
	static const char *const checkpoints[] = { "PASSIVE", "FULL", "RESTART", "TRUNCATE" };
	switch (rng(12)) {
	case 0:
		(void)sql(db, "VACUUM");
		break;
	case 1:
		(void)sql(db, "PRAGMA incremental_vacuum(5)");
		break;
	case 2:
	case 3:
		if (plan->mode == MODE_WAL) {
			(void)sql(db, "PRAGMA wal_checkpoint(%s)", checkpoints[rng(4)]);
		}
		break;
	case 4:
		(void)sql(db, "PRAGMA synchronous=%u", rng(3));
		break;
	case 5:
		(void)sql(db, "PRAGMA cache_size=%u", 3 + rng(20));
		break;
	default:
		break;
	}
}

static void set_up(sqlite3 *db, const char *schema, const struct plan *plan)
{
	(void)sql(db, "PRAGMA %s.page_size=%d", schema, plan->page_size);
	(void)sql(db, "PRAGMA %s.auto_vacuum=%u", schema, rng(3));
	(void)sql(db, "PRAGMA %s.journal_mode=%s", schema, mode_names[plan->mode]);
	(void)sql(db, "PRAGMA %s.secure_delete=%u", schema, rng(2));
	(void)sql(db, "PRAGMA %s.cache_size=%u", schema, 3 + rng(10));
	(void)sql(db, "CREATE TABLE %s.t(id INTEGER PRIMARY KEY, a, b)", schema);
	(void)sql(db, "CREATE INDEX %s.i ON t(a)", schema);
}

__attribute__((noreturn)) static void writer(const char *dir, const struct plan *plan)
{
	char path[PATH_LEN + 32];
	sqlite3 *db;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	rng_state = plan->seed * 0x9E3779B97F4A7C15u + 1;
	vfs_conf.sector_size = 512 << rng(4);
	static const int characteristics[] = { 0,
					       0,
					       0,
					       SQLITE_IOCAP_SAFE_APPEND,
					       SQLITE_IOCAP_SEQUENTIAL,
					       SQLITE_IOCAP_POWERSAFE_OVERWRITE };
	vfs_conf.characteristics = characteristics[rng(6)];
	vfs_conf.ops_between = plan->attached ? 12 : 400;
	vfs_conf.disk_only_super = plan->attached && rng(4);
	vfs_conf.ops_left = (int32_t)rng(vfs_conf.ops_between);
	vfs_register();
	(void)snprintf(path, sizeof(path), "%s/a.db", dir);
	if (sqlite3_open(path, &db) != SQLITE_OK) {
		_exit(1);
	}
	if (rng(8) == 0) {
		int chunk = 1 << 20;
		(void)sqlite3_file_control(db, "main", SQLITE_FCNTL_CHUNK_SIZE, &chunk);
	}
	set_up(db, "main", plan);
	if (plan->attached) {
		(void)sql(db, "ATTACH '%s/b.db' AS other", dir);
		set_up(db, "other", plan);
	}
	if (plan->mode == MODE_WAL) {
		(void)sql(db, "PRAGMA wal_autocheckpoint=%u", rng(3) ? 5 + rng(100) : 1000);
	}
	if (rng(6) == 0) {
		(void)sql(db, "PRAGMA locking_mode=EXCLUSIVE");
	}
	(void)sql(db, "PRAGMA synchronous=%u", rng(3));
	for (;;) {
		transaction(db, plan);
		housekeeping(db, plan);
	}
}

/* ------------------------------------------------------------ the compare */

static struct {
	char root[SCRATCH_LEN], work[PATH_LEN], ours[PATH_LEN], theirs[PATH_LEN];
	struct us_reader *reader, *small_reader;
	int spool_fd;
	/* what was seen */
	int wal, journal, quiet, with_super, super_void, torn, failed_alike, empty, segments;
} t;

static const char *const suffixes[] = { "", "-wal", "-journal" };

static void spoil(struct bytes *b)
{
	if (!b->exists || b->len == 0) {
		return;
	}
	if (rng(2)) {
		b->len -= rng((uint32_t)(b->len < 20000 ? b->len : 20000));
	} else {
		b->data[rng((uint32_t)b->len)] ^= (uint8_t)(1u << rng(8));
	}
	t.torn++;
}

static int is_live_journal(const struct bytes *b)
{
	static const uint8_t magic[8] = { 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7 };
	return b->len >= 512 && memcmp(b->data, magic, 8) == 0;
}

static int is_live_wal(const struct bytes *b)
{
	return b->len > 32 && b->data[0] == 0x37 && b->data[1] == 0x7f;
}

static int count_segments(const struct bytes *b)
{
	int n = 0;
	for (size_t off = 0; off + 28 < b->len; off += 512) {
		struct bytes at = { b->data + off, 512, 1 };
		n += is_live_journal(&at);
	}
	return n;
}

/* Recovers the copy in t.theirs; *RET_RC is what SQLite says, the bytes what it
 * leaves, cut to the header's page count. */
static struct bytes recover(int *ret_rc)
{
	char path[PATH_LEN + 16];
	sqlite3 *db;
	(void)snprintf(path, sizeof(path), "%s/x.db", t.theirs);
	int rc = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL);
	if (rc == SQLITE_OK) {
		(void)sql(db, "PRAGMA synchronous=OFF");
		rc = sql(db, "SELECT count(*) FROM sqlite_master");
		if (rc == SQLITE_OK) {
			rc = sql(db, "PRAGMA wal_checkpoint(TRUNCATE)");
		}
	}
	(void)sqlite3_close(db);
	*ret_rc = rc;
	struct bytes b = bytes_load(path);
	if (b.len >= 100 && memcmp(b.data + 24, b.data + 92, 4) == 0) {
		uint64_t page_size = (uint64_t)b.data[16] << 8 | b.data[17];
		uint64_t count = (uint64_t)b.data[28] << 24 | (uint64_t)b.data[29] << 16 |
				 (uint64_t)b.data[30] << 8 | b.data[31];
		uint64_t len = (page_size == 1 ? 65536 : page_size) * count;
		b.len = count && len < b.len ? (size_t)len : b.len;
	}
	return b;
}

static void report(const struct plan *plan, int32_t ours, const struct us_error *err, int theirs,
		   const struct image *image, const struct bytes *file)
{
	size_t at = 0;
	while (at < image->len && at < file->len && image->data[at] == file->data[at]) {
		at++;
	}
	print_error("seed %" PRIu64 " mode %s page %d attached %d: ours %d (%s) %zu bytes, "
		    "SQLite %d, %zu bytes, first difference at %zu\n",
		    plan->seed, mode_names[plan->mode], plan->page_size, plan->attached, ours,
		    err->message, image->len, theirs, file->len, at);
}

/* 1 if both agree on the state that lies in the two directories. */
static int compare(const struct plan *plan)
{
	struct image image = { 0 };
	struct us_error err = US_ERROR_INIT;
	int theirs_rc;
	int32_t ours =
		image_read(rng(2) ? t.reader : t.small_reader, t.ours, "x.db", 1, &image, &err);
	struct bytes file = recover(&theirs_rc);
	int same;
	if (ours == 0) {
		same = image.len == file.len && memcmp(image.data, file.data, file.len) == 0 &&
		       image.info.image_len == image.len;
	} else if (ours == US_E_EMPTY) {
		same = file.len == 0;
		t.empty++;
	} else {
		same = theirs_rc != SQLITE_OK && (ours == US_E_CORRUPT || ours == US_E_NOTDB);
		t.failed_alike++;
	}
	if (!same) {
		report(plan, ours, &err, theirs_rc, &image, &file);
	}
	image_done(&image);
	bytes_free(&file);
	return same;
}

static void move_super(int away)
{
	char command[2 * PATH_LEN];
	(void)snprintf(command, sizeof(command),
		       "cd '%s' && for f in *-mj*; do %s; done 2>/dev/null", t.work,
		       away ? "[ -f \"$f\" ] && mv \"$f\" \"hidden-$f\"" : ":");
	FILE *p = popen(command, "r");
	if (p) {
		(void)pclose(p);
	}
}

/* Copies the stopped writer's files to both sides and compares. */
static int take_state(const struct plan *plan)
{
	const char *name = plan->attached && rng(2) ? "b.db" : "a.db";
	struct bytes files[3];
	for (int i = 0; i < 3; i++) {
		char path[PATH_LEN + 32];
		(void)snprintf(path, sizeof(path), "%s/%s%s", t.work, name, suffixes[i]);
		files[i] = bytes_load(path);
	}
	if (!files[0].exists) {
		return 1; /* not attached yet */
	}
	if (rng(4) == 0) {
		spoil(&files[1 + rng(2)]);
	}
	for (int i = 0; i < 3; i++) {
		char path[PATH_LEN + 32];
		(void)snprintf(path, sizeof(path), "%s/x.db%s", t.ours, suffixes[i]);
		bytes_store(&files[i], path);
		(void)snprintf(path, sizeof(path), "%s/x.db%s", t.theirs, suffixes[i]);
		bytes_store(&files[i], path);
		(void)snprintf(path, sizeof(path), "%s/x.db-shm", t.theirs);
		(void)unlink(path);
	}
	int live_journal = is_live_journal(&files[2]);
	int super = live_journal && files[2].len > 520 &&
		    memcmp(files[2].data + files[2].len - 8, files[2].data, 8) == 0;
	t.wal += is_live_wal(&files[1]);
	t.journal += live_journal;
	t.quiet += !live_journal && !is_live_wal(&files[1]);
	t.segments += live_journal && count_segments(&files[2]) > 1;
	t.with_super += super;
	int is_void = super && rng(2);
	t.super_void += is_void;
	if (is_void) {
		move_super(1);
	}
	int same = compare(plan);
	for (int i = 0; i < 3; i++) {
		bytes_free(&files[i]);
	}
	return is_void ? -same : same;
}

/* One writer, stopped up to STATES times. */
static void run_writer(const struct plan *plan, int states)
{
	assert_int_equal(remove_tree(t.work), 0);
	assert_int_equal(mkdir(t.work, 0700), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		writer(t.work, plan);
	}
	for (int i = 0; i < states; i++) {
		int status;
		assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
		if (!WIFSTOPPED(status)) {
			fail_msg("seed %" PRIu64 ": the writer ended by itself", plan->seed);
		}
		int same = take_state(plan);
		if (!same) {
			(void)kill(pid, SIGKILL);
			(void)waitpid(pid, &status, 0);
			fail_msg("seed %" PRIu64 ": state %d differs", plan->seed, i);
		}
		if (same < 0) {
			break; /* its super-journal was taken away */
		}
		(void)kill(pid, SIGCONT);
	}
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
}

static int env_int(const char *name, int value)
{
	const char *text = getenv(name);
	return text && text[0] ? (int)strtol(text, NULL, 10) : value;
}

static void run_until(int *counter, int wal)
{
	int want = env_int("US_ORACLE_COUNT", 1000);
	uint64_t seed = (uint64_t)env_int("US_ORACLE_SEED", 0);
	if (seed == 0) {
		seed = (uint64_t)us_clock_wall_ns() % 1000000000;
	}
	print_message("first seed %" PRIu64 "\n", seed);
	while (*counter < want) {
		struct plan plan = { .seed = seed };
		rng_state = seed * 88172645463325253u + 1;
		plan.mode = wal ? MODE_WAL : (enum mode)(MODE_DELETE + rng(3));
		plan.page_size = 512 << rng(8);
		plan.attached = !wal && rng(3) == 0;
		run_writer(&plan, plan.attached ? 8 : 12);
		seed++;
	}
	print_message(
		"compared: %d live WALs, %d hot journals (%d of several segments, %d naming a "
		"super-journal, %d of those void), %d quiet; %d spoilt, %d empty, %d refused by "
		"both\n",
		t.wal, t.journal, t.segments, t.with_super, t.super_void, t.quiet, t.torn, t.empty,
		t.failed_alike);
}

static void test_wal(void **state)
{
	(void)state;
	run_until(&t.wal, 1);
}

static void test_journal(void **state)
{
	(void)state;
	run_until(&t.journal, 0);
}

static int setup(void **state)
{
	(void)state;
	if (scratch_dir(t.root)) {
		return -1;
	}
	(void)snprintf(t.work, sizeof(t.work), "%s/work", t.root);
	(void)snprintf(t.ours, sizeof(t.ours), "%s/ours", t.root);
	(void)snprintf(t.theirs, sizeof(t.theirs), "%s/theirs", t.root);
	if (mkdir(t.work, 0700) || mkdir(t.ours, 0700) || mkdir(t.theirs, 0700)) {
		return -1;
	}
	t.spool_fd = open(t.root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return us_reader_new((size_t)64 << 20, t.spool_fd, &t.reader, NULL) ||
	       us_reader_new((size_t)1 << 20, t.spool_fd, &t.small_reader, NULL);
}

static int teardown(void **state)
{
	(void)state;
	us_reader_free(t.reader);
	us_reader_free(t.small_reader);
	(void)close(t.spool_fd);
	return remove_tree(t.root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wal),
		cmocka_unit_test(test_journal),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
