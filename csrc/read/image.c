/* SPDX-License-Identifier: Apache-2.0 */
/*
 * us_read_image: which files make up the image, and why what was read is one
 * committed state. Nothing here writes, and nothing but SHARED is ever locked.
 *
 * Let C be the bytes of the database file. "Calm" means: the ctime of the first
 * stat is older than the clock before it minus the tick, and the second look has
 * the same stat. Kernels stamp the ctime before they copy data, so no write began
 * between (clock - tick) and the second look: C was constant all that time.
 *
 *   quiet      No write lock at the probe, no live -wal or -journal after it, and
 *              calm: every rollback-mode transaction, and every checkpoint (they
 *              run while the WAL is live) that touched C was over. A writer with
 *              RESERVED alone has not touched the file yet (a patient reader
 *              accepts that); in a database in WAL mode EXCLUSIVE without RESERVED
 *              is locking_mode=EXCLUSIVE at rest.
 *   WAL        While one generation of the WAL lasts, which is as long as its
 *              header stays (salt-1 counts up with each restart), C changes only
 *              by checkpoints, and they write what committed frames hold. The WAL
 *              is read after C: its frames cover whatever a checkpoint did to the
 *              part that was read before or while. Calm is not needed. If there is
 *              no committed frame, the rules are those of quiet and of WAL both.
 *   journal    No write lock at the probe, a live journal after it, database and
 *              journal calm: nobody owns the transaction, its rollback is the
 *              state. A live journal beside a RESERVED lock is not hot (SQLite's
 *              hasHotJournal()): C is the state. SHARED is given back at once: a
 *              new writer may begin its journal after the probe all the same.
 *   SHARED     Nobody can write to C in rollback mode, nor begin with a WAL (that
 *              needs EXCLUSIVE once). In a database in WAL mode the lock means
 *              nothing of the sort, so calm is asked for there. It is given back
 *              before the image is handed on: the sink may wait for the network.
 *
 * Files that fit the memory budget are read in one go, then looked at again, then
 * written out. Larger ones, and those with a hot journal, are streamed from where
 * they are and looked at again at the end. Beside a WAL that needs a calm
 * database; one that is being checkpointed is copied to the spool, looked at
 * again, and streamed from the copies, because a long stream would not outlive
 * the WAL's generation.
 */
#include "image.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/bytes.h"
#include "compose.h"
#include "files.h"
#include "journal.h"

#define MEMORY_LEN_MIN ((size_t)1024 * 1024)
#define CHUNK_LEN ((size_t)256 * 1024) /* of the memory; whole pages, a frame and more */
#define MEMORY_STEP ((size_t)64 * 1024)
#define TRIES_MAX 3
#define LOCK_WAIT_NS (1 * US_NS_PER_S)
#define WAL_VERSION 3007000u
#define WAL_GROWTH_ROUNDS_MAX 8 /* how often a WAL that grows under the scan is followed */
#define DEFAULT_PAGE_SIZE 4096u

struct us_reader {
	size_t memory_len; /* for file contents; CHUNK is apart */
	int spool_fd;
	uint8_t *memory, *chunk; /* allocated when first needed, then kept */
	size_t memory_cap;
	struct us_overlay wal_overlay, journal_overlay;
	struct us_files_dir dir;
};

/* One try. */
struct attempt {
	struct us_reader *reader;
	const struct us_read_source *source;
	struct us_files files;
	/* stats of the try before, to settle ctimes in the future; mono_ns 0: none */
	struct us_file_stat before_db, before_journal;
	int64_t before_ns;
	int shared; /* the SHARED lock is held */

	int use_wal, use_journal; /* what lies over the database file */
	int is_live;              /* streamed from the files themselves */
	struct us_source db, wal, journal;
	int spool_db_fd, spool_wal_fd; /* -1: none */
	struct us_wal_scan wal_scan;
	struct us_compose image;
	int64_t snapshot_ns;
};

int32_t us_reader_new(size_t memory_len, int spool_fd, struct us_reader **ret_reader,
		      struct us_error *err)
{
	if (memory_len < MEMORY_LEN_MIN) {
		return us_fail(err, US_E_ARG, "a reader needs at least 1 MiB of memory, not %zu",
			       memory_len);
	}
	struct us_reader *r = us_alloc_zero(sizeof(*r));
	if (!r) {
		return us_fail_nomem(err);
	}
	r->memory_len = memory_len - CHUNK_LEN;
	r->spool_fd = spool_fd;
	r->dir.fd = -1;
	*ret_reader = r;
	return 0;
}

void us_reader_forget(struct us_reader *r)
{
	if (r->dir.fd >= 0) {
		(void)close(r->dir.fd); /* a directory */
		r->dir.fd = -1;
	}
}

void us_reader_free(struct us_reader *r)
{
	if (!r) {
		return;
	}
	us_reader_forget(r);
	us_overlay_done(&r->wal_overlay);
	us_overlay_done(&r->journal_overlay);
	us_free(r->memory);
	us_free(r->chunk);
	us_free(r);
}

/* Room for LEN bytes of file contents, those read so far kept. LEN is at most
 * memory_len. */
static int32_t grow_memory(struct us_reader *r, size_t len, struct us_error *err)
{
	if (len <= r->memory_cap) {
		return 0;
	}
	size_t cap = r->memory_cap ? r->memory_cap : MEMORY_STEP;
	while (cap < len) {
		cap = us_size_mul(cap, 2);
	}
	cap = cap < r->memory_len ? cap : r->memory_len;
	uint8_t *memory = us_realloc(r->memory, cap);
	if (!memory) {
		return us_fail_nomem(err);
	}
	r->memory = memory;
	r->memory_cap = cap;
	return 0;
}

static int32_t need_chunk(struct us_reader *r, struct us_error *err)
{
	if (!r->chunk) {
		r->chunk = us_alloc(CHUNK_LEN);
	}
	return r->chunk ? 0 : us_fail_nomem(err);
}

/* --------------------------------------------------------------- what holds */

static int is_calm(const struct attempt *a, const struct us_file_stat *now,
		   const struct us_file_stat *before)
{
	if (!us_stat_is_racy(now, a->files.clock_ns)) {
		return 1;
	}
	return us_stat_is_future(now, a->files.clock_ns) && a->before_ns != 0 &&
	       us_file_stat_equal(now, before) &&
	       a->files.mono_ns - a->before_ns >= us_stat_tick_ns(now);
}

static int32_t check_calm(const struct attempt *a, struct us_error *err)
{
	if (is_calm(a, &a->files.db, &a->before_db) &&
	    (!a->use_journal || is_calm(a, &a->files.journal, &a->before_journal))) {
		return 0;
	}
	return us_fail(err, US_E_BUSY, "changing while it is read: \"%s\" was written a moment ago",
		       a->source->display);
}

/* The read and write versions of the header: 1 rollback, 2 WAL. 0 or US_E_IO. */
static int32_t read_is_wal_mode(const struct attempt *a, int *ret_is_wal, struct us_error *err)
{
	uint8_t versions[2] = { 0, 0 };
	int64_t n =
		us_read_at(a->files.db_fd, versions, sizeof(versions), 18, a->source->display, err);
	if (n < 0) {
		return (int32_t)n;
	}
	*ret_is_wal = versions[0] == 2 || versions[1] == 2;
	return 0;
}

/* Whether the locks allow to take the database file as it is. */
static int32_t check_locks(const struct attempt *a, struct us_error *err)
{
	const struct us_locks *locks = &a->files.locks;
	if (a->shared || !locks->any) {
		return 0;
	}
	int is_begun_only = locks->reserved && !locks->pending && !locks->shared;
	if (is_begun_only && a->source->patient && !a->use_journal) {
		return 0;
	}
	if (locks->shared && !locks->reserved && a->files.wal.inode != 0 &&
	    !a->files.journal_live) {
		int is_wal_mode = 0;
		int32_t rc = read_is_wal_mode(a, &is_wal_mode, err);
		if (rc || is_wal_mode) {
			return rc;
		}
	}
	return us_locks_fail(locks, a->source->display, err);
}

static int needs_quiet(const struct attempt *a)
{
	return !a->use_wal || a->use_journal || a->wal_scan.page_count == 0;
}

/* What must hold before the database file counts without a WAL that covers it. */
static int32_t check_quiet(const struct attempt *a, struct us_error *err)
{
	/* Whatever the header says, a -wal that has bytes puts SQLite in WAL mode. */
	int is_wal_mode = a->files.wal.len != 0;
	int32_t rc = check_locks(a, err);
	if (!rc && a->shared && !is_wal_mode) {
		rc = read_is_wal_mode(a, &is_wal_mode, err);
	}
	if (rc || (a->shared && !is_wal_mode)) {
		return rc;
	}
	return check_calm(a, err);
}

static int32_t second_look(const struct attempt *a, struct us_error *err)
{
	int32_t rc = a->use_wal ? us_files_same_wal(&a->files, err) : 0;
	if (!rc && (a->is_live || needs_quiet(a))) {
		rc = us_files_same_db(&a->files, err);
	}
	if (!rc && a->use_journal) {
		rc = us_files_same_journal(&a->files, err);
	}
	return rc;
}

/* Which of the files count, by the first look. */
static int32_t choose_parts(struct attempt *a, struct us_error *err)
{
	const struct us_files *f = &a->files;
	if (f->dotfile) {
		return us_fail(err, US_E_BUSY,
			       "locked by another process: unix-dotfile lock \"%s.lock\" exists",
			       a->source->display);
	}
	if (f->wal_live && f->wal_header.version != WAL_VERSION) {
		return us_fail(err, US_E_CORRUPT, "\"%s-wal\" has format version %u, not %u",
			       a->source->display, f->wal_header.version, WAL_VERSION);
	}
	a->use_wal = f->wal_live;
	a->use_journal = f->journal_live && !f->locks.reserved;
	a->wal_scan = (struct us_wal_scan){ 0 };
	return a->use_wal && !a->use_journal ? 0 : check_quiet(a, err);
}

/* ------------------------------------------------------------- getting bytes */

static int32_t len_now(const struct attempt *a, int fd, uint64_t *ret_len, struct us_error *err)
{
	struct stat st;
	if (fstat(fd, &st)) {
		return us_fail_errno(err, errno, "cannot stat \"%s\" or its -wal",
				     a->source->display);
	}
	*ret_len = (uint64_t)st.st_size;
	return 0;
}

static int32_t scan_wal_on(struct attempt *a, struct us_error *err)
{
	struct us_window window = { .source = &a->wal,
				    .what = a->source->display,
				    .buf = a->reader->chunk,
				    .cap = CHUNK_LEN };
	return us_wal_scan_run(&a->wal_scan, &window, &a->reader->wal_overlay, err);
}

/* Scans the WAL file from where the scan stands, and what is added to it
 * meanwhile, some way. */
static int32_t scan_wal_file(struct attempt *a, struct us_error *err)
{
	a->wal = (struct us_source){ .fd = a->files.wal_fd };
	for (int round = 0; round < WAL_GROWTH_ROUNDS_MAX; round++) {
		uint64_t len = 0;
		int32_t rc = len_now(a, a->files.wal_fd, &len, err);
		if (rc) {
			return rc;
		}
		if (len <= a->wal.len) {
			break;
		}
		a->wal.len = len;
		rc = scan_wal_on(a, err);
		if (rc) {
			return rc;
		}
		if (us_wal_scan_has_ended(&a->wal_scan, len)) {
			break;
		}
	}
	a->snapshot_ns = us_clock_wall_ns();
	return 0;
}

/* The next piece of the WAL, up to LEN, behind USED bytes of memory, and its scan.
 * Returns 1, 0 if it does not fit (or is not there any more), or US_E_*. */
static int32_t read_wal_piece(struct attempt *a, size_t used, uint64_t len, struct us_error *err)
{
	struct us_reader *r = a->reader;
	uint64_t have = a->wal.len;
	size_t piece = len - have < CHUNK_LEN ? (size_t)(len - have) : CHUNK_LEN;
	if (piece > r->memory_len - used || have > r->memory_len - used - piece) {
		return 0;
	}
	int32_t rc = grow_memory(r, used + (size_t)have + piece, err);
	if (rc) {
		return rc;
	}
	int64_t n = us_read_at(a->files.wal_fd, r->memory + used + have, piece, have,
			       a->source->display, err);
	if (n <= 0) {
		return (int32_t)n;
	}
	a->wal.len += (uint64_t)n;
	a->wal.mem = r->memory + used;
	rc = scan_wal_on(a, err);
	return rc ? rc : 1;
}

/* Reads the part of the WAL that counts into memory, piece by piece: behind it
 * often lie megabytes of an older generation. Returns as read_wal_piece. */
static int32_t read_wal_to_memory(struct attempt *a, size_t used, struct us_error *err)
{
	for (int round = 0; round < WAL_GROWTH_ROUNDS_MAX; round++) {
		uint64_t len = 0;
		int32_t rc = len_now(a, a->files.wal_fd, &len, err);
		if (rc) {
			return rc;
		}
		if (len <= a->wal.len) {
			break;
		}
		while (a->wal.len < len && !us_wal_scan_has_ended(&a->wal_scan, a->wal.len)) {
			rc = read_wal_piece(a, used, len, err);
			if (rc <= 0) {
				return rc;
			}
		}
		if (us_wal_scan_has_ended(&a->wal_scan, a->wal.len)) {
			break;
		}
	}
	a->snapshot_ns = us_clock_wall_ns();
	return 1;
}

/* The database in memory at 0; returns its length or US_E_*. */
static int64_t read_db_to_memory(struct attempt *a, size_t len, struct us_error *err)
{
	int32_t rc = grow_memory(a->reader, len, err);
	if (rc) {
		return rc;
	}
	return us_read_at(a->files.db_fd, a->reader->memory, len, 0, a->source->display, err);
}

static int32_t spool_db(struct attempt *a, uint64_t len, struct us_error *err)
{
	int32_t rc = us_spool_copy(a->reader->spool_fd, a->files.db_fd, len, a->reader->chunk,
				   CHUNK_LEN, a->source->display, &a->spool_db_fd, &a->db.len, err);
	a->db.fd = a->spool_db_fd;
	return rc;
}

/* Goes on in the file; what is committed there goes to the spool. */
static int32_t spool_wal(struct attempt *a, struct us_error *err)
{
	int32_t rc = scan_wal_file(a, err);
	if (rc) {
		return rc;
	}
	rc = us_spool_copy(a->reader->spool_fd, a->files.wal_fd, us_wal_scan_len(&a->wal_scan),
			   a->reader->chunk, CHUNK_LEN, a->source->display, &a->spool_wal_fd,
			   &a->wal.len, err);
	a->wal.fd = a->spool_wal_fd;
	return rc;
}

/* USED: bytes of memory that the database takes. */
static int32_t copy_wal(struct attempt *a, size_t used, struct us_error *err)
{
	a->wal = (struct us_source){ .fd = -1 };
	us_wal_scan_init(&a->wal_scan, &a->files.wal_header, &a->reader->wal_overlay);
	int32_t rc = used > a->reader->memory_len ? 0 : read_wal_to_memory(a, used, err);
	return rc > 0 ? 0 : rc < 0 ? rc : spool_wal(a, err);
}

/* Private copies of all parts, in memory where they fit: database first, WAL last.
 * (There is no journal: those are never copied.) */
static int32_t copy_parts(struct attempt *a, struct us_error *err)
{
	size_t used = 0;
	uint64_t len = a->files.db.len;
	/* The WAL covers the file of now; the stat may be older than its generation. */
	int32_t rc = a->use_wal ? len_now(a, a->files.db_fd, &len, err) : 0;
	if (rc) {
		return rc;
	}
	a->db = (struct us_source){ .fd = -1 };
	int in_memory = len <= a->reader->memory_len;
	if (in_memory) {
		int64_t n = read_db_to_memory(a, (size_t)len, err);
		if (n < 0) {
			return (int32_t)n;
		}
		a->db.len = (uint64_t)n;
		used = ((size_t)n + 7) & ~(size_t)7;
	} else {
		rc = spool_db(a, len, err);
	}
	if (!rc && a->use_wal) {
		rc = copy_wal(a, used, err);
	}
	a->db.mem = in_memory ? a->reader->memory : NULL; /* which may have moved */
	return rc;
}

static void use_files(struct attempt *a)
{
	a->db = (struct us_source){ .fd = a->files.db_fd, .len = a->files.db.len };
	a->journal = (struct us_source){ .fd = a->files.journal_fd, .len = a->files.journal.len };
}

/* -------------------------------------------------------------- understanding */

static uint64_t most(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* As pager_truncate() and the writes after it leave the length. */
static uint64_t len_after_rollback(uint64_t len, const struct us_journal *journal)
{
	uint64_t page_size = journal->page_size;
	uint64_t target = page_size * journal->page_count;
	if (len > target || len + page_size <= target) {
		len = target;
	}
	return most(len, page_size * journal->page_highest);
}

static int32_t scan_journal(struct attempt *a, struct us_error *err)
{
	struct us_reader *r = a->reader;
	struct us_journal journal;
	uint8_t field[2] = { 0, 0 };
	int32_t rc = us_journal_is_open(&a->journal, a->files.dir_fd, a->source->display, err);
	if (rc <= 0) {
		return rc;
	}
	int64_t n = us_source_read(&a->db, 16, field, sizeof(field), a->source->display, err);
	if (n < 0) {
		return (int32_t)n;
	}
	uint32_t page_size = us_get_be16(field);
	page_size = page_size == 1 ? 65536 : page_size ? page_size : DEFAULT_PAGE_SIZE;
	struct us_window window = {
		.source = &a->journal, .what = a->source->display, .buf = r->chunk, .cap = CHUNK_LEN
	};
	rc = us_journal_scan(&window, page_size, &r->journal_overlay, &journal, err);
	if (rc || !journal.rolled_back) {
		return rc;
	}
	r->journal_overlay.source = a->journal;
	a->image.journal_page_size = journal.page_size;
	a->image.base_len = len_after_rollback(a->db.len, &journal);
	if (a->db.len > a->image.base_len) {
		a->image.base.len = a->image.base_len;
	}
	return 0;
}

static void finish_wal(struct attempt *a)
{
	struct us_overlay *overlay = &a->reader->wal_overlay;
	us_wal_scan_finish(&a->wal_scan, overlay);
	overlay->source = a->wal;
	a->image.wal_page_count = a->wal_scan.page_count;
	a->image.wal_page_size = a->files.wal_header.page_size;
}

static int32_t scan_parts(struct attempt *a, struct us_error *err)
{
	a->image = (struct us_compose){
		.display = a->source->display,
		.base = a->db,
		.base_len = a->db.len,
		.wal = &a->reader->wal_overlay,
		.journal = &a->reader->journal_overlay,
	};
	int32_t rc = a->use_journal ? scan_journal(a, err) : 0;
	if (!rc && a->use_wal && a->is_live) {
		us_wal_scan_init(&a->wal_scan, &a->files.wal_header, &a->reader->wal_overlay);
		rc = scan_wal_file(a, err);
	}
	/* SQLite deletes the WAL of a database of no bytes. */
	if (!rc && a->use_wal && a->image.base_len != 0) {
		finish_wal(a);
	}
	return rc;
}

/* ---------------------------------------------------------------- giving bytes */

static void fill_info(const struct attempt *a, struct us_image_info *info)
{
	*info = (struct us_image_info){
		.image_len = (uint64_t)a->image.page_size * a->image.page_count,
		.page_size = a->image.page_size,
		.page_count = a->image.page_count,
		.change_counter = a->image.change_counter,
		.mode = a->files.mode,
		.uid = a->files.uid,
		.gid = a->files.gid,
		.snapshot_ns = a->snapshot_ns,
		.db = a->files.db,
		.wal = a->files.wal,
		.clock_ns = a->files.clock_ns,
	};
}

static int32_t deliver(struct attempt *a, const struct us_image_sink *sink,
		       struct us_image_info *info, struct us_error *err)
{
	int32_t rc = us_compose_resolve(&a->image, err);
	if (rc) {
		return rc;
	}
	fill_info(a, info);
	rc = sink->begin(sink->arg, info, err);
	if (rc) {
		a->image.sink_failed = 1;
		return rc;
	}
	return us_compose_write(&a->image, sink, a->reader->chunk, CHUNK_LEN, err);
}

/* Copies first, looks again, then delivers at leisure. */
static int32_t run_private(struct attempt *a, const struct us_image_sink *sink,
			   struct us_image_info *info, struct us_error *err)
{
	a->is_live = 0;
	int32_t rc = copy_parts(a, err);
	if (!rc && a->use_wal) {
		rc = us_files_same_wal(&a->files, err);
	}
	if (!rc) {
		rc = scan_parts(a, err);
	}
	if (!rc && a->use_wal && needs_quiet(a)) {
		rc = check_quiet(a, err);
	}
	if (!rc && needs_quiet(a)) {
		rc = second_look(a, err);
	}
	if (rc) {
		return rc;
	}
	if (a->shared) {
		us_unlock(a->files.db_fd);
		a->shared = 0;
	}
	return deliver(a, sink, info, err);
}

static int is_verdict(int32_t rc)
{
	return rc == US_E_CORRUPT || rc == US_E_NOTDB || rc == US_E_EMPTY;
}

/* Delivers from the files themselves and looks again at the end; what seemed
 * damaged may only have moved. */
static int32_t run_live(struct attempt *a, const struct us_image_sink *sink,
			struct us_image_info *info, struct us_error *err)
{
	a->is_live = 1;
	use_files(a);
	int32_t rc = scan_parts(a, err);
	if (!rc && a->use_wal && needs_quiet(a)) {
		rc = check_quiet(a, err);
	}
	if (!rc) {
		rc = deliver(a, sink, info, err);
	}
	if (a->image.sink_failed || (rc && !is_verdict(rc))) {
		return rc;
	}
	int32_t moved = second_look(a, rc ? NULL : err);
	return moved ? moved : rc;
}

/* A large database beside a WAL: from where it is if it is at rest, else from
 * copies, for which everything is looked at anew. */
static int32_t run_large_wal(struct attempt *a, const struct us_image_sink *sink,
			     struct us_image_info *info, struct us_error *err)
{
	if (is_calm(a, &a->files.db, &a->before_db)) {
		int32_t rc = run_live(a, sink, info, err);
		if (rc != US_E_BUSY || a->image.sink_failed) {
			return rc;
		}
		rc = us_files_look(&a->files, err);
		if (!rc) {
			rc = choose_parts(a, err);
		}
		if (rc || !a->use_wal || a->use_journal) {
			return rc ? rc
				  : us_fail(err, US_E_BUSY,
					    "changing while it is read: \"%s-wal\" came or went",
					    a->source->display);
		}
	}
	return run_private(a, sink, info, err);
}

static int32_t run(struct attempt *a, const struct us_image_sink *sink, struct us_image_info *info,
		   struct us_error *err)
{
	int32_t rc = choose_parts(a, err);
	if (!rc) {
		rc = need_chunk(a->reader, err);
	}
	if (rc) {
		return rc;
	}
	/* Where calm is asked for, nothing has changed since. A WAL has its own. */
	a->snapshot_ns = a->files.wall_ns;
	if (a->use_journal) {
		return run_live(a, sink, info, err);
	}
	uint64_t wal_len = a->use_wal ? a->files.wal.len : 0;
	if (a->files.db.len <= a->reader->memory_len &&
	    wal_len <= a->reader->memory_len - a->files.db.len) {
		return run_private(a, sink, info, err);
	}
	if (a->use_wal) {
		return run_large_wal(a, sink, info, err);
	}
	/* Under SHARED from a copy: it is given back sooner, and before the sink is called. */
	return a->shared ? run_private(a, sink, info, err) : run_live(a, sink, info, err);
}

/* Looks; takes SHARED first where that helps, and looks under it. */
static int32_t look(struct attempt *a, int want_shared, struct us_error *err)
{
	int32_t rc = us_files_look(&a->files, err);
	if (rc || !want_shared || a->files.wal_live || a->files.db.len == 0) {
		return rc;
	}
	rc = us_lock_shared(a->files.db_fd, LOCK_WAIT_NS, a->source->display, err);
	if (rc) {
		return rc;
	}
	a->shared = 1;
	rc = us_files_look(&a->files, err);
	/* It protects neither; both may be read while they are handed on. */
	if (!rc && (a->files.wal_live || (a->files.journal_live && !a->files.locks.reserved))) {
		us_unlock(a->files.db_fd);
		a->shared = 0;
	}
	return rc;
}

static int32_t attempt_once(struct attempt *a, int want_shared, const struct us_image_sink *sink,
			    struct us_image_info *info, struct us_error *err)
{
	a->shared = 0;
	a->spool_db_fd = a->spool_wal_fd = -1;
	a->image = (struct us_compose){ 0 };
	us_overlay_reset(&a->reader->wal_overlay);
	us_overlay_reset(&a->reader->journal_overlay);
	int32_t rc = us_files_open(&a->files, a->source, &a->reader->dir, err);
	if (!rc) {
		rc = look(a, want_shared, err);
	}
	if (!rc && a->files.db.len == 0) {
		rc = us_fail(err, US_E_EMPTY, "\"%s\" is empty", a->source->display);
	}
	if (!rc) {
		rc = run(a, sink, info, err);
	}
	if (a->shared) {
		us_unlock(a->files.db_fd);
	}
	us_files_close(&a->files);
	if (a->spool_db_fd >= 0) {
		(void)close(a->spool_db_fd); /* a copy without a name */
	}
	if (a->spool_wal_fd >= 0) {
		(void)close(a->spool_wal_fd);
	}
	a->before_db = a->files.db;
	a->before_journal = a->files.journal;
	a->before_ns = a->files.mono_ns;
	return rc;
}

int32_t us_read_image(struct us_reader *reader, const struct us_read_source *source,
		      const struct us_image_sink *sink, struct us_image_info *ret_info,
		      struct us_error *err)
{
	struct attempt a = { .reader = reader, .source = source };
	struct us_image_info info;
	int32_t rc = attempt_once(&a, 0, sink, &info, err);
	/* After three tries with nothing locked, one under SHARED. */
	for (int tries = 1; rc == US_E_BUSY && !a.image.sink_failed && source->patient; tries++) {
		if (tries > TRIES_MAX) {
			break;
		}
		us_clock_sleep_ns(a.files.db.inode ? us_stat_tick_ns(&a.files.db) : US_TICK_NS);
		rc = attempt_once(&a, tries == TRIES_MAX, sink, &info, err);
	}
	if (rc) {
		return rc;
	}
	*ret_info = info;
	return 0;
}
