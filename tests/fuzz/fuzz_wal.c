/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A database and its WAL: flags, length of the database, the database, the WAL. By flags
 * the WAL's checksums and salts are made right, so that what lies behind them is reached,
 * and the database is too long for the reader's memory.
 */
#include "read_files.h"
#include "wal_sums.h"

#define LARGE 8u
#define NO_WAL 16u
#define LARGE_LEN ((size_t)900 << 10)

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
		wal_fix((uint8_t *)files[FILE_WAL], lens[FILE_WAL], flags);
	}
	put_files(files, lens, flags & LARGE ? LARGE_LEN : 0);
	check_files();
	free(files[FILE_DB]);
	free(files[FILE_WAL]);
	return 0;
}
