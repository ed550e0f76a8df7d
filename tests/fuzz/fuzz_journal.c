/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A database and its hot journal: flags, lengths of database and WAL, the database, the WAL
 * (none if it has no bytes), the journal. By flags the checksums of the records are made
 * right, and a super-journal record is appended; its file exists or not. Names of
 * super-journals in an input are spoilt: SQLite deletes the file of such a name.
 */
#include "read_files.h"

#define FIX_SUMS 1u
#define SUPER 2u
#define SUPER_EXISTS 4u
#define SUPER_ELSEWHERE 8u
#define SUPER_NAME "x.db-mj0123456789"

static const uint8_t magic[8] = { 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7 };

/* As the format's description has it: headers on sector boundaries, each with its records. */
static void fix(uint8_t *journal, size_t len)
{
	uint64_t sector = len >= 28 ? us_get_be32(journal + 20) : 0;
	uint64_t page = len >= 28 ? us_get_be32(journal + 24) : 0;
	if (sector < 32 || page < 512 || page > 65536) {
		return;
	}
	uint64_t at = 0;
	while (at + 28 <= len && memcmp(journal + at, magic, 8) == 0) {
		uint32_t count = us_get_be32(journal + at + 8),
			 nonce = us_get_be32(journal + at + 12);
		at += sector;
		for (; count > 0 && at + page + 8 <= len; count--, at += page + 8) {
			uint32_t sum = nonce;
			for (int64_t i = (int64_t)page - 200; i > 0; i -= 200) {
				sum += journal[at + 4 + (uint64_t)i];
			}
			us_put_be32(journal + at + 4 + page, sum);
		}
		at = (at + sector - 1) / sector * sector;
	}
}

/* Appends the record of a super-journal called NAME to a journal. */
static void append_super(int dir_fd, const char *name)
{
	uint8_t tail[16];
	uint32_t sum = 0;
	for (const char *p = name; *p; p++) {
		sum += (uint32_t)(int32_t)*p;
	}
	us_put_be32(tail, (uint32_t)strlen(name));
	us_put_be32(tail + 4, sum);
	memcpy(tail + 8, magic, 8);
	int fd = openat(dir_fd, "x.db-journal", O_WRONLY | O_APPEND | O_CLOEXEC);
	require(fd >= 0 && write(fd, "\0\0\0\0", 4) == 4);
	require(write(fd, name, strlen(name)) == (ssize_t)strlen(name));
	require(write(fd, tail, sizeof(tail)) == sizeof(tail));
	(void)close(fd);
}

static void put_super(int dir_fd, const char *dir, uint8_t flags)
{
	char name[SCRATCH_LEN + 64];
	const char *where = flags & SUPER_ELSEWHERE ? "/nowhere" : "";
	put_file(dir_fd, SUPER_NAME, flags & SUPER_EXISTS ? "x" : NULL, 1, 0);
	if (flags & SUPER) {
		(void)snprintf(name, sizeof(name), "%s%s/%s", dir, where, SUPER_NAME);
		append_super(dir_fd, name);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	char *files[FILE_COUNT] = { NULL };
	size_t lens[FILE_COUNT];
	set_up();
	uint8_t flags = input_byte(&in);
	uint16_t db_len = input_u16(&in), wal_len = input_u16(&in);
	files[FILE_DB] = input_bytes(&in, db_len, &lens[FILE_DB]);
	if (wal_len > 0) {
		files[FILE_WAL] = input_bytes(&in, wal_len, &lens[FILE_WAL]);
	}
	files[FILE_JOURNAL] = input_bytes(&in, in.left, &lens[FILE_JOURNAL]);
	char *journal = files[FILE_JOURNAL];
	size_t len = lens[FILE_JOURNAL];
	if (flags & FIX_SUMS) {
		fix((uint8_t *)journal, len);
	}
	if (len >= 8 && memcmp(journal + len - 8, magic, 8) == 0) {
		journal[len - 1] = 0;
	}
	t.journal_page_size = len >= 28 ? us_get_be32((uint8_t *)journal + 24) : 0;
	put_files(files, lens, 0);
	put_super(t.ours_fd, t.ours, flags);
	put_super(t.theirs_fd, t.theirs, flags);
	check_files();
	for (size_t i = 0; i < FILE_COUNT; i++) {
		free(files[i]);
	}
	return 0;
}
