/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A database and its WAL: flags, length of the database, the database, the WAL. By flags
 * the WAL's checksums and salts are made right, so that what lies behind them is reached,
 * and the database is too long for the reader's memory.
 */
#include "read_files.h"

#define FIX_HEADER 1u
#define FIX_SUMS 2u
#define FIX_SALTS 4u
#define LARGE 8u
#define NO_WAL 16u
#define LARGE_LEN ((size_t)900 << 10)

static void add(uint32_t sum[2], const uint8_t *data, size_t len, int big_endian)
{
	for (size_t i = 0; i + 8 <= len; i += 8) {
		sum[0] += (big_endian ? us_get_be32(data + i) : us_get_le32(data + i)) + sum[1];
		sum[1] += (big_endian ? us_get_be32(data + i + 4) : us_get_le32(data + i + 4)) +
			  sum[0];
	}
}

/* As the format's description has it. */
static void fix(uint8_t *wal, size_t len, uint8_t flags)
{
	if (len < 32 || !(flags & FIX_HEADER)) {
		return;
	}
	uint32_t sum[2] = { 0, 0 };
	int big_endian = wal[3] & 1;
	uint64_t page_size = us_get_be32(wal + 8);
	add(sum, wal, 24, big_endian);
	us_put_be32(wal + 24, sum[0]);
	us_put_be32(wal + 28, sum[1]);
	uint64_t frame_len = 24 + page_size;
	for (uint8_t *frame = wal + 32; (uint64_t)(wal + len - frame) >= frame_len && page_size > 0;
	     frame += frame_len) {
		if (flags & FIX_SALTS) {
			memcpy(frame + 8, wal + 16, 8);
		}
		add(sum, frame, 8, big_endian);
		add(sum, frame + 24, page_size, big_endian);
		if (flags & FIX_SUMS) {
			us_put_be32(frame + 16, sum[0]);
			us_put_be32(frame + 20, sum[1]);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	char *files[FILE_COUNT] = { NULL };
	size_t lens[FILE_COUNT] = { 0 };
	set_up();
	uint8_t flags = input_byte(&in);
	uint16_t db_len = input_u16(&in);
	files[FILE_DB] = input_bytes(&in, db_len, &lens[FILE_DB]);
	if (!(flags & NO_WAL)) {
		files[FILE_WAL] = input_bytes(&in, in.left, &lens[FILE_WAL]);
		fix((uint8_t *)files[FILE_WAL], lens[FILE_WAL], flags);
	}
	put_files(files, lens, flags & LARGE ? LARGE_LEN : 0);
	check_files();
	free(files[FILE_DB]);
	free(files[FILE_WAL]);
	return 0;
}
