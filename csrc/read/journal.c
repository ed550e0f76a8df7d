/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rollback journal, read as pager_playback() in SQLite's pager.c plays it
 * back. Format: https://www.sqlite.org/fileformat2.html#the_rollback_journal. All
 * fields are big-endian.
 *
 *   header, padded to the sector size
 *                 0 magic d9 d5 05 f9 20 a1 63 d7
 *                 8 records that follow (0xffffffff: up to the end of the file)
 *                12 nonce                     16 database size before, in pages
 *                20 sector size (only the first header's counts)
 *                24 page size (likewise)
 *   record        0 page number                4 the page as it was
 *                .. nonce + every 200th byte of the page, from the end down
 *   super-journal record, at the end of the file
 *                 0 page number of the lock page   4 name
 *                .. length of the name, sum of its bytes, magic
 *
 * A journal has several headers if it was synced in between; each begins on a
 * sector boundary. Playback ends silently where anything is wrong: what was not
 * synced was not followed by a write to the database either. Overwriting an old
 * journal in place (journal_mode PERSIST) leaves old records behind the new
 * ones; the nonce tells them apart.
 *
 * All offsets of records are multiples of 8 (sector sizes are powers of two of 32
 * or more, a record is a page and 8 bytes), so that offset / 8 fits the 32 bits
 * of a place.
 *
 * The name in a super-journal record was written by whoever may write to the
 * database's directory. SQLite deletes the file of that name after a rollback;
 * here nothing is done to it but one lstat.
 */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "../base/bytes.h"

#define HEADER_LEN 28
#define PAGE_SIZE_MIN 512u
#define PAGE_SIZE_MAX 65536u
#define SECTOR_SIZE_MIN 32u
#define SECTOR_SIZE_MAX 65536u
/* What SQLite assumes before it has read the first header. */
#define SECTOR_SIZE_DEFAULT 512u
#define LOCK_BYTE UINT32_C(0x40000000)
#define RECORDS_TO_END UINT32_C(0xffffffff)
#define SUPER_TAIL_LEN 16
#define PLACE_UNIT 8u
#define JOURNAL_LEN_MAX ((uint64_t)UINT32_MAX * PLACE_UNIT)

static const uint8_t magic[8] = { 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7 };

struct playback {
	uint64_t off; /* what is read next */
	uint32_t sector_size;
	uint32_t record_count; /* of this header */
	uint32_t nonce;
	int ended;
};

static int is_power_in(uint32_t value, uint32_t min, uint32_t max)
{
	return value >= min && value <= max && (value & (value - 1)) == 0;
}

/* The first header's sizes. 0: senseless, which ends the playback. */
static int take_sizes(const uint8_t *header, uint32_t default_page_size, struct playback *play,
		      struct us_journal *journal)
{
	uint32_t sector_size = us_get_be32(header + 20);
	uint32_t page_size = us_get_be32(header + 24);
	if (page_size == 0) {
		page_size = default_page_size;
	}
	if (!is_power_in(page_size, PAGE_SIZE_MIN, PAGE_SIZE_MAX) ||
	    !is_power_in(sector_size, SECTOR_SIZE_MIN, SECTOR_SIZE_MAX)) {
		return 0;
	}
	play->sector_size = sector_size;
	journal->page_size = page_size;
	journal->page_count = us_get_be32(header + 16);
	journal->rolled_back = 1;
	return 1;
}

/* Goes to the next header, on the next sector boundary. */
static int32_t read_header(struct us_window *window, uint32_t default_page_size,
			   struct playback *play, struct us_journal *journal, struct us_error *err)
{
	uint64_t sector = play->sector_size;
	uint64_t off = (play->off + sector - 1) / sector * sector;
	const uint8_t *header = NULL;
	int32_t rc = 0;
	if (off <= window->source->len && sector <= window->source->len - off) {
		rc = us_window_view(window, off, HEADER_LEN, &header, err);
	}
	if (rc || !header || memcmp(header, magic, sizeof(magic)) != 0 ||
	    (off == 0 && !take_sizes(header, default_page_size, play, journal))) {
		play->ended = 1;
		return rc;
	}
	play->off = off + play->sector_size;
	play->record_count = us_get_be32(header + 8);
	play->nonce = us_get_be32(header + 12);
	if (play->record_count == RECORDS_TO_END) {
		uint64_t rest = window->source->len > play->sector_size
					? window->source->len - play->sector_size
					: 0;
		play->record_count = (uint32_t)(rest / (journal->page_size + 8));
	}
	return 0;
}

static uint32_t page_sum(const uint8_t *page, uint32_t page_size, uint32_t nonce)
{
	uint32_t sum = nonce;
	for (uint32_t i = page_size - 200; (int32_t)i > 0; i -= 200) {
		sum += page[i];
	}
	return sum;
}

static int32_t read_record(struct us_window *window, struct playback *play,
			   struct us_overlay *overlay, struct us_journal *journal,
			   struct us_error *err)
{
	const uint8_t *record;
	uint32_t page_size = journal->page_size;
	uint64_t off = play->off;
	int32_t rc = us_window_view(window, off, page_size + 8, &record, err);
	if (rc || !record) {
		play->ended = 1;
		return rc;
	}
	play->off += page_size + 8;
	uint32_t pgno = us_get_be32(record);
	if (pgno == 0 || pgno == LOCK_BYTE / page_size + 1) {
		play->ended = 1;
		return 0;
	}
	if (pgno > journal->page_count) {
		return 0;
	}
	if (page_sum(record + 4, page_size, play->nonce) != us_get_be32(record + 4 + page_size)) {
		play->ended = 1;
		return 0;
	}
	if (pgno > journal->page_highest) {
		journal->page_highest = pgno;
	}
	return us_overlay_add(overlay, pgno, (uint32_t)(off / PLACE_UNIT), err);
}

int32_t us_journal_scan(struct us_window *window, uint32_t default_page_size,
			struct us_overlay *overlay, struct us_journal *ret_journal,
			struct us_error *err)
{
	struct us_journal journal = { 0 };
	struct playback play = { .sector_size = SECTOR_SIZE_DEFAULT };
	if (window->source->len > JOURNAL_LEN_MAX) {
		return us_fail(err, US_E_UNSUPPORTED, "\"%s-journal\" is longer than 32 GiB",
			       window->what);
	}
	overlay->count = 0;
	overlay->start = 4;
	overlay->stride = PLACE_UNIT;
	/* Ends with the file: every header and every record moves forward. */
	while (!play.ended) {
		int32_t rc = read_header(window, default_page_size, &play, &journal, err);
		for (uint32_t i = 0; !rc && !play.ended && i < play.record_count; i++) {
			rc = read_record(window, &play, overlay, &journal, err);
		}
		if (rc) {
			return rc;
		}
	}
	us_overlay_seal(overlay);
	*ret_journal = journal;
	return 0;
}

/* Length of the name put into RET_NAME; 0: none. */
static int32_t read_super_name(const struct us_source *source, const char *what,
			       char ret_name[US_SUPER_NAME_MAX + 1], struct us_error *err)
{
	uint8_t tail[SUPER_TAIL_LEN];
	if (source->len < SUPER_TAIL_LEN) {
		return 0;
	}
	int64_t n =
		us_source_read(source, source->len - SUPER_TAIL_LEN, tail, sizeof(tail), what, err);
	if (n < 0) {
		return (int32_t)n;
	}
	uint32_t len = us_get_be32(tail);
	uint32_t sum = us_get_be32(tail + 4);
	if (n < SUPER_TAIL_LEN || memcmp(tail + 8, magic, sizeof(magic)) != 0 || len == 0 ||
	    len > US_SUPER_NAME_MAX || len > source->len - SUPER_TAIL_LEN) {
		return 0;
	}
	char name[US_SUPER_NAME_MAX + 1];
	n = us_source_read(source, source->len - SUPER_TAIL_LEN - len, name, len, what, err);
	if (n < (int64_t)len) {
		return n < 0 ? (int32_t)n : 0;
	}
	/* Plain char, signed or not, as in the SQLite of this machine. */
	for (uint32_t i = 0; i < len; i++) {
		int32_t byte = name[i]; /* NOLINT(bugprone-signed-char-misuse) */
		sum -= (uint32_t)byte;
	}
	if (sum != 0) {
		return 0;
	}
	name[len] = '\0';
	memcpy(ret_name, name, len + 1);
	return (int32_t)strlen(name);
}

/* Whether the directory that NAME lies in is the one its writer saw: NAME is made
 * from the name of a database in it ("DATABASE-mjHHHHHHHHH"). A container sees
 * other directories under the same names. */
static int is_made_here(const char *name)
{
	char database[US_SUPER_NAME_MAX + 1];
	const char *mark = NULL;
	for (const char *p = strrchr(name, '/'); p && (p = strstr(p, "-mj")); p++) {
		mark = p;
	}
	if (!mark) {
		return 0;
	}
	size_t len = (size_t)(mark - name);
	memcpy(database, name, len);
	database[len] = '\0';
	struct stat st;
	return !fstatat(AT_FDCWD, database, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
}

int32_t us_journal_is_open(const struct us_source *source, int dir_fd, const char *what,
			   struct us_error *err)
{
	char name[US_SUPER_NAME_MAX + 1];
	struct stat st;
	int32_t len = read_super_name(source, what, name, err);
	if (len <= 0) {
		return len < 0 ? len : 1;
	}
	if (name[0] != '/') {
		return us_fail(err, US_E_CORRUPT,
			       "\"%s-journal\" names a super-journal without an absolute path",
			       what);
	}
	if (!fstatat(AT_FDCWD, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT)) {
		if (S_ISLNK(st.st_mode)) {
			return us_fail(
				err, US_E_CORRUPT,
				"\"%s-journal\" names a super-journal that is a symbolic link",
				what);
		}
		return !S_ISREG(st.st_mode) || st.st_size > 0; /* as unixAccess() has it */
	}
	if (errno != ENOENT && errno != ENOTDIR) {
		return us_fail_errno(err, errno,
				     "cannot look for the super-journal that \"%s-journal\" names",
				     what);
	}
	if (is_made_here(name)) {
		return 0;
	}
	if (!fstatat(dir_fd, strrchr(name, '/') + 1, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) &&
	    S_ISREG(st.st_mode) && st.st_size > 0) {
		return 1;
	}
	return us_fail(err, US_E_ACCESS,
		       "\"%s-journal\" names a super-journal in a directory that cannot be seen "
		       "from here; "
		       "let the application open the database once",
		       what);
}
