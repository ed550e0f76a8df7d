/* SPDX-License-Identifier: Apache-2.0 */
/* SQLite on a descriptor without a name: it reads what is there, and whoever asks to
 * write, to delete, or to open anything else is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../csrc/restore/fd_vfs.h"
#include "scratch.h"

/* A database without a name; the descriptor is only good for reading. */
static int make_nameless(void)
{
	char dir[SCRATCH_LEN], path[SCRATCH_LEN + 16];
	sqlite3 *db;
	assert_int_equal(scratch_dir(dir), 0);
	(void)snprintf(path, sizeof(path), "%s/x.db", dir);
	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(
		sqlite3_exec(db, "CREATE TABLE t (a); INSERT INTO t VALUES (7)", NULL, NULL, NULL),
		SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(dir), 0);
	return fd;
}

static int value(sqlite3 *db)
{
	sqlite3_stmt *stmt;
	int found = -1;
	if (sqlite3_prepare_v2(db, "SELECT a FROM t ORDER BY a", -1, &stmt, NULL) == SQLITE_OK &&
	    sqlite3_step(stmt) == SQLITE_ROW) {
		found = sqlite3_column_int(stmt, 0);
	}
	(void)sqlite3_finalize(stmt);
	return found;
}

static void test_reads(void **state)
{
	(void)state;
	sqlite3 *db;
	int fd = make_nameless();
	assert_int_equal(us_fd_vfs_open(fd, &db), SQLITE_OK);
	assert_int_equal(value(db), 7);
	assert_int_equal(sqlite3_exec(db, "PRAGMA integrity_check", NULL, NULL, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, "INSERT INTO t VALUES (8)", NULL, NULL, NULL),
			 SQLITE_READONLY);
	/* Large sorts stay in memory: there is no other file. */
	assert_int_equal(
		sqlite3_exec(db,
			     "PRAGMA cache_size = 10;"
			     "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
			     "WHERE i < 30000) SELECT hex(randomblob(100)) AS r FROM n "
			     "ORDER BY r LIMIT 1",
			     NULL, NULL, NULL),
		SQLITE_OK);
	assert_true(sqlite3_exec(db, "ATTACH 'other.db' AS other", NULL, NULL, NULL) != SQLITE_OK);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	close(fd);
}

static void test_refuses(void **state)
{
	(void)state;
	sqlite3 *db;
	sqlite3_file *file;
	struct stat before, after;
	int reserved = 1, there = 1, fd = make_nameless();
	assert_int_equal(fstat(fd, &before), 0);
	assert_int_equal(us_fd_vfs_open(fd, &db), SQLITE_OK);
	assert_int_equal(sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &file),
			 SQLITE_OK);
	const sqlite3_io_methods *methods = file->pMethods;
	assert_int_equal(methods->xWrite(file, "x", 1, 0), SQLITE_READONLY);
	assert_int_equal(methods->xTruncate(file, 0), SQLITE_READONLY);
	assert_int_equal(methods->xSync(file, SQLITE_SYNC_FULL), SQLITE_OK);
	assert_int_equal(methods->xLock(file, SQLITE_LOCK_EXCLUSIVE), SQLITE_OK);
	assert_int_equal(methods->xCheckReservedLock(file, &reserved), SQLITE_OK);
	assert_int_equal(reserved, 0);
	assert_int_equal(methods->xFileControl(file, 12345, NULL), SQLITE_NOTFOUND);
	assert_true(methods->xSectorSize(file) >= 512);
	assert_true(methods->xDeviceCharacteristics(file) & SQLITE_IOCAP_IMMUTABLE);
	assert_int_equal(fstat(fd, &after), 0);
	assert_int_equal(after.st_size, before.st_size);
	assert_int_equal(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);

	sqlite3_vfs *vfs = sqlite3_vfs_find("us-fd");
	assert_non_null(vfs);
	assert_ptr_not_equal(sqlite3_vfs_find(NULL), vfs); /* nobody else's */
	assert_int_equal(vfs->xDelete(vfs, "/us-fd/3", 0), SQLITE_IOERR_DELETE);
	assert_int_equal(vfs->xAccess(vfs, "/us-fd/3-journal", SQLITE_ACCESS_EXISTS, &there),
			 SQLITE_OK);
	assert_int_equal(there, 0);
	char path[8];
	assert_int_equal(vfs->xFullPathname(vfs, "/us-fd/12345", sizeof(path), path),
			 SQLITE_CANTOPEN);
	sqlite3_file *other = calloc(1, (size_t)vfs->szOsFile);
	assert_int_equal(vfs->xOpen(vfs, "/etc/passwd", other,
				    SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB, NULL),
			 SQLITE_CANTOPEN);
	assert_int_equal(vfs->xOpen(vfs, "/us-fd/3", other,
				    SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_JOURNAL, NULL),
			 SQLITE_CANTOPEN);
	assert_null(other->pMethods);
	assert_int_equal(vfs->xOpen(vfs, "/us-fd/3", other,
				    SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB, NULL),
			 SQLITE_OK);
	free(other);
	assert_int_equal(value(db), 7);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
	close(fd);
}

/* A file that is cut, and a descriptor that is none. */
static void test_fails(void **state)
{
	(void)state;
	sqlite3 *db;
	sqlite3_file *file;
	sqlite3_int64 len;
	char page[64];
	int fd = make_nameless();
	assert_int_equal(us_fd_vfs_open(fd, &db), SQLITE_OK);
	assert_int_equal(sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &file),
			 SQLITE_OK);
	assert_int_equal(ftruncate(fd, 20), 0);
	memset(page, 'x', sizeof(page));
	assert_int_equal(file->pMethods->xRead(file, page, sizeof(page), 0),
			 SQLITE_IOERR_SHORT_READ);
	assert_memory_equal(page, "SQLite format 3", 16);
	for (size_t i = 20; i < sizeof(page); i++) {
		assert_int_equal(page[i], 0);
	}
	assert_int_equal(file->pMethods->xFileSize(file, &len), SQLITE_OK);
	assert_int_equal(len, 20);
	close(fd);
	assert_int_equal(file->pMethods->xRead(file, page, sizeof(page), 0), SQLITE_IOERR_READ);
	assert_int_equal(file->pMethods->xFileSize(file, &len), SQLITE_IOERR_FSTAT);
	assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_fails),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
