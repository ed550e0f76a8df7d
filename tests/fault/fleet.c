/* SPDX-License-Identifier: Apache-2.0 */
#include "fleet.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* Beyond the memory of a reader (of two at least), and of an object in memory, at a
 * memory_limit of 16 MB. */
#define LARGE_ROWS 580
#define HUGE_LEN (66 << 20)
#define PARTS_LEN (9 << 20)
#define MANY 40

void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)fprintf(stderr, "fault: ");
	(void)vfprintf(stderr, format, args);
	(void)fprintf(stderr, "\n");
	va_end(args);
	_exit(2);
}

static long number(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);
	if (*end || end == text || value < 0) {
		die("%s is no number", text);
	}
	return value;
}

void options_parse(int argc, char **argv, struct options *ret)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";
		if (strcmp(argv[i], "-full") == 0) {
			ret->full = 1;
			continue;
		}
		if (strcmp(argv[i], "-seed") == 0) {
			ret->seed = (uint64_t)number(value);
		} else if (strcmp(argv[i], "-seconds") == 0) {
			ret->seconds = number(value);
		} else if (strcmp(argv[i], "-jobs") == 0) {
			ret->jobs = (int)number(value);
		} else if (strcmp(argv[i], "-only") == 0) {
			ret->only = value;
		} else {
			die("usage: [-full] [-seed N] [-seconds N] [-jobs N] [-only SCENARIO]");
		}
		i++;
	}
}

void scratch_make(const char *name, char *ret_path)
{
	const char *base = getenv("TMPDIR");
	(void)snprintf(ret_path, 512, "%.400s/us-%s-XXXXXX", base && base[0] ? base : P_tmpdir,
		       name);
	if (!mkdtemp(ret_path)) {
		die("%s: %s", ret_path, strerror(errno));
	}
}

/* ------------------------------------------------------------------- files */

const char *path_of(const char *format, ...)
{
	static char paths[16][FLEET_PATH_LEN];
	static unsigned next;
	char *path = paths[next++ % 16];
	va_list args;
	va_start(args, format);
	int len = vsnprintf(path, FLEET_PATH_LEN, format, args);
	va_end(args);
	if (len < 0 || len >= FLEET_PATH_LEN) {
		die("a path is too long");
	}
	return path;
}

uint8_t *file_read(const char *path, size_t *ret_len)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		die("%s: %s", path, strerror(errno));
	}
	uint8_t *data = malloc((size_t)st.st_size + 1);
	if (!data || read(fd, data, (size_t)st.st_size) != st.st_size) {
		die("%s: cannot be read", path);
	}
	(void)close(fd);
	*ret_len = (size_t)st.st_size;
	return data;
}

void file_write(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (fd < 0 || write(fd, data, len) != (ssize_t)len || close(fd)) {
		die("%s: %s", path, strerror(errno));
	}
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	return remove(path);
}

void tree_remove(const char *path)
{
	if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT) {
		die("%s: %s", path, strerror(errno));
	}
}

void file_copy(const char *from, const char *to)
{
	char names[2048], value[4096];
	size_t len;
	uint8_t *data = file_read(from, &len);
	file_write(to, data, len);
	free(data);
	ssize_t names_len = listxattr(from, names, sizeof(names));
	for (ssize_t at = 0; at < names_len; at += (ssize_t)strlen(names + at) + 1) {
		ssize_t value_len = getxattr(from, names + at, value, sizeof(value));
		if (value_len < 0 || setxattr(to, names + at, value, (size_t)value_len, 0)) {
			die("%s: its attributes cannot be copied", from);
		}
	}
}

void tree_copy(const char *from_path, const char *to_path)
{
	char from[FLEET_PATH_LEN], to[FLEET_PATH_LEN];
	(void)snprintf(from, sizeof(from), "%s", from_path); /* path_of gives them for a while */
	(void)snprintf(to, sizeof(to), "%s", to_path);
	DIR *dir = opendir(from);
	if (!dir || (mkdir(to, 0755) && errno != EEXIST)) {
		die("%s: %s", from, strerror(errno));
	}
	for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
		struct stat st;
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
			continue;
		}
		const char *source = path_of("%s/%s", from, entry->d_name);
		const char *copy = path_of("%s/%s", to, entry->d_name);
		if (lstat(source, &st)) {
			die("%s: %s", source, strerror(errno));
		}
		if (S_ISDIR(st.st_mode)) {
			tree_copy(source, copy);
		} else {
			file_copy(source, copy);
		}
	}
	(void)closedir(dir);
}

static void copy_if_there(const char *from, const char *to, const char *suffix)
{
	const char *source = path_of("%s%s", from, suffix), *copy = path_of("%s%s", to, suffix);
	(void)unlink(copy);
	if (access(source, F_OK) == 0) {
		file_copy(source, copy);
	}
}

/* What a crash of whoever has FROM open would leave, at TO. */
static void copy_database(const char *from, const char *to)
{
	copy_if_there(from, to, "");
	copy_if_there(from, to, "-wal");
	copy_if_there(from, to, "-journal");
}

/* ------------------------------------------------------------------ databases */

static void run(sqlite3 *db, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void run(sqlite3 *db, const char *format, ...)
{
	char sql[1024], *message = NULL;
	va_list args;
	va_start(args, format);
	(void)vsnprintf(sql, sizeof(sql), format, args);
	va_end(args);
	if (sqlite3_exec(db, sql, NULL, NULL, &message)) {
		die("%s: %s", sql, message);
	}
}

static sqlite3 *open_db(const char *path)
{
	sqlite3 *db;
	if (sqlite3_open(path, &db)) {
		die("%s: %s", path, sqlite3_errmsg(db));
	}
	return db;
}

/* The transactions up to VERSION. */
static void fill(sqlite3 *db, int rows, int version)
{
	run(db, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, version INTEGER, text)");
	for (int v = 1; v <= version; v++) {
		run(db,
		    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) "
		    "INSERT INTO t SELECT i + %d, %d, printf('%%.*c', %d, 'x') FROM n",
		    v == 1 ? rows : 4, 1000000 * v, v, rows > 100 ? 4000 : 300);
	}
}

/* Leaves a database with its journal in the midst of a transaction. */
static void stage_hot(sqlite3 *db, int version)
{
	run(db, "PRAGMA journal_mode = DELETE");
	fill(db, 60, version);
	run(db, "PRAGMA cache_size = 2");
	run(db, "BEGIN");
	run(db, "UPDATE t SET text = 'not committed, ' || text || text");
}

static void append_super(const char *journal, const char *super)
{
	static const uint8_t magic[8] = { 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7 };
	uint32_t len = (uint32_t)strlen(super), sum = 0;
	uint8_t tail[FLEET_PATH_LEN + 20];
	uint32_t lock_page = (1u << 30) / 4096 + 1;
	for (uint32_t i = 0; i < len; i++) {
		sum += (unsigned char)super[i];
	}
	for (int i = 0; i < 4; i++) {
		tail[i] = (uint8_t)(lock_page >> (24 - 8 * i));
		tail[4 + len + (uint32_t)i] = (uint8_t)(len >> (24 - 8 * i));
		tail[8 + len + (uint32_t)i] = (uint8_t)(sum >> (24 - 8 * i));
	}
	memcpy(tail + 4, super, len);
	memcpy(tail + 12 + len, magic, sizeof(magic));
	int fd = open(journal, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0 || write(fd, tail, len + 20) != (ssize_t)(len + 20) || close(fd)) {
		die("%s: %s", journal, strerror(errno));
	}
}

/* Makes version VERSION of the database KIND at PATH, on a way over STAGE. */
static void make(const char *kind, int version, const char *stage, const char *path)
{
	const char *super = path_of("%s-mj00000001", stage);
	if (strcmp(kind, "empty") == 0) {
		file_write(path, "", 0);
		return;
	}
	if (strcmp(kind, "text") == 0) {
		file_write(path, "no database", 11);
		return;
	}
	(void)unlink(stage);
	sqlite3 *db = open_db(stage);
	run(db, "PRAGMA synchronous = OFF");
	if (strcmp(kind, "hot") == 0 || strcmp(kind, "super") == 0) {
		stage_hot(db, version);
	} else if (strcmp(kind, "persist") == 0) {
		run(db, "PRAGMA journal_mode = PERSIST");
		fill(db, 8, version);
	} else if (strcmp(kind, "large") == 0) {
		fill(db, LARGE_ROWS, version);
	} else if (strcmp(kind, "huge") == 0 || strcmp(kind, "parts") == 0) {
		fill(db, 8, version);
		run(db, "CREATE TABLE blob AS SELECT randomblob(%d) AS data",
		    strcmp(kind, "huge") == 0 ? HUGE_LEN : PARTS_LEN);
	} else if (strstr(kind, "wal")) {
		int large = strcmp(kind, "large-wal") == 0;
		run(db, "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0");
		fill(db, large ? LARGE_ROWS : 8, 1);
		run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
		run(db, "INSERT INTO t VALUES (1, %d, 'in the WAL')", version);
	} else {
		fill(db, 8, version);
	}
	copy_database(stage, path);
	if (strcmp(kind, "super") == 0) {
		file_write(super, path, strlen(path) + 1);
		append_super(path_of("%s-journal", path), super);
	}
	if (strcmp(kind, "wal-header") == 0) {
		const char *wal = path_of("%s-wal", path);
		if (truncate(wal, 32)) {
			die("%s: %s", wal, strerror(errno));
		}
		run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
		copy_if_there(stage, path, "");
	}
	if (sqlite3_close(db)) {
		die("%s: cannot be closed", stage);
	}
}

/* What SQLite makes of a copy of the files at PATH, in IMAGE. */
static void make_image(const char *path, const char *copy, const char *image)
{
	copy_database(path, copy);
	sqlite3 *db = open_db(copy);
	run(db, "SELECT count(*) FROM t; PRAGMA wal_checkpoint(TRUNCATE)");
	if (sqlite3_close(db)) {
		die("%s: cannot be closed", copy);
	}
	size_t len;
	uint8_t *data = file_read(copy, &len);
	size_t page_size = (size_t)data[16] << 8 | data[17];
	size_t pages = (size_t)data[28] << 24 | (size_t)data[29] << 16 | (size_t)data[30] << 8 |
		       (size_t)data[31];
	file_write(image, data, pages * page_size < len ? pages * page_size : len);
	free(data);
	copy_database("", copy); /* removes it */
}

/* ------------------------------------------------------------------ the tenant */

static const char *kind_of(const struct fleet_db *db)
{
	return strchr(db->rel, '/') + 1;
}

static void make_version(const struct fleet *fleet, int version, sqlite3 **live)
{
	const char *scratch = fleet->scratch;
	for (uint32_t i = 0; i < fleet->db_count; i++) {
		const struct fleet_db *db = &fleet->dbs[i];
		char kind[64], path[FLEET_PATH_LEN], stage[FLEET_PATH_LEN];
		(void)snprintf(path, sizeof(path), "%s", path_of("%s/%s", fleet->root, db->rel));
		(void)snprintf(stage, sizeof(stage), "%s", path_of("%s/stage/%u.db", scratch, i));
		(void)snprintf(kind, sizeof(kind), "%.*s", (int)strcspn(kind_of(db), "."),
			       kind_of(db));
		if (strcmp(kind, "live-wal") != 0) {
			make(kind, version, stage, path);
		} else if (version == 1) {
			*live = open_db(path);
			run(*live, "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF");
			fill(*live, 8, 1);
		} else {
			run(*live, "INSERT INTO t VALUES (1, 2, 'live')");
		}
		if (db->is_database) {
			make_image(path, path_of("%s/stage/copy.db", scratch),
				   path_of("%s/stage/image-%u-%d", scratch, i, version));
			if (strcmp(kind, "super") == 0) { /* SQLite has removed it */
				file_write(path_of("%s-mj00000001", stage), path, strlen(path) + 1);
			}
		}
	}
}

static void tenant_main(const struct fleet *fleet, int in, int out)
{
	sqlite3 *live = NULL;
	char version;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read(in, &version, 1) == 1) {
		make_version(fleet, version, &live);
		if (write(out, &version, 1) != 1) {
			die("the tenant has lost its parent");
		}
	}
	_exit(0);
}

static void order(struct fleet *fleet, int version)
{
	char byte = (char)version;
	if (write(fleet->to_tenant, &byte, 1) != 1 || read(fleet->from_tenant, &byte, 1) != 1) {
		die("the tenant has failed");
	}
	fleet->version = (uint32_t)version;
	for (uint32_t i = 0; i < fleet->db_count; i++) {
		struct fleet_db *db = &fleet->dbs[i];
		if (db->is_database) {
			const char *image = path_of("%s/stage/image-%u-%d", fleet->scratch, i, version);
			db->images[version] = file_read(image, &db->image_lens[version]);
		}
	}
	/* Nothing is younger than a tick of the file system's clock from here on. */
	const struct timespec tick = { .tv_nsec = 40000000 };
	(void)nanosleep(&tick, NULL);
}

static void add(struct fleet *fleet, const char *rel)
{
	struct fleet_db *db = &fleet->dbs[fleet->db_count++];
	(void)snprintf(db->rel, sizeof(db->rel), "%s", rel);
	db->is_database = !strstr(rel, "/empty.") && !strstr(rel, "/text.");
}

static void add_all(struct fleet *fleet, const char *const *rels, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		add(fleet, rels[i]);
	}
}

void fleet_make(struct fleet *fleet, const char *scratch, uint32_t kinds)
{
	static const char *const shapes[] = { "a/rollback.db",	"a/live-wal.db", "a/orphan-wal.db",
					      "a/hot.db",	"b/super.db",	 "b/persist.db",
					      "b/wal-header.db", "b/empty.db",	 "b/text.db" };
	static const char *const large[] = { "b/large.db", "b/orphan-wal.db" };
	static const char *const busy[] = { "b/" FLEET_BUSY_NAME };
	static const char *const parts[] = { "b/parts.db" }, *const huge[] = { "b/huge.db" };
	int to[2], from[2];
	memset(fleet, 0, sizeof(*fleet));
	(void)snprintf(fleet->scratch, sizeof(fleet->scratch), "%s", scratch);
	add_all(fleet, shapes, kinds & FLEET_SHAPES ? sizeof(shapes) / sizeof(shapes[0]) : 0);
	add_all(fleet, large, kinds & FLEET_LARGE ? sizeof(large) / sizeof(large[0]) : 0);
	add_all(fleet, busy, kinds & FLEET_BUSY ? 1 : 0);
	add_all(fleet, parts, kinds & FLEET_PARTS ? 1 : 0);
	add_all(fleet, huge, kinds & FLEET_HUGE ? 1 : 0);
	for (int i = 0; kinds & FLEET_MANY && i < MANY; i++) {
		add(fleet, path_of("c/many.%d.db", i));
	}
	(void)snprintf(fleet->root, sizeof(fleet->root), "%s", path_of("%s/fleet", fleet->scratch));
	static const char *const dirs[] = { "stage", "fleet", "fleet/a", "fleet/b", "fleet/c" };
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		if (mkdir(path_of("%s/%s", fleet->scratch, dirs[i]), 0755)) {
			die("%s/%s: %s", fleet->scratch, dirs[i], strerror(errno));
		}
	}
	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) {
		die("no pipes");
	}
	fleet->to_tenant = to[1];
	fleet->from_tenant = from[0];
	fleet->tenant = fork();
	if (fleet->tenant == 0) {
		(void)close(to[1]);
		tenant_main(fleet, to[0], from[1]);
	}
	(void)close(to[0]);
	(void)close(from[1]);
	order(fleet, 1);
}

void fleet_change(struct fleet *fleet)
{
	order(fleet, 2);
}

void fleet_end(struct fleet *fleet)
{
	(void)kill(fleet->tenant, SIGKILL);
	(void)waitpid(fleet->tenant, NULL, 0);
	(void)close(fleet->to_tenant);
	(void)close(fleet->from_tenant);
}

/* ------------------------------------------------------------------ the look */

static char *look_text;
static size_t look_len, look_cap;

static int look_at(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)type, (void)at;
	size_t len = strlen(path);
	if (look_len + len + 200 > look_cap) {
		look_cap = 2 * look_cap + len + 4096;
		look_text = realloc(look_text, look_cap);
		if (!look_text) {
			die("no memory");
		}
	}
	int is_busy = len > strlen(FLEET_BUSY_NAME) &&
		      strcmp(path + len - strlen(FLEET_BUSY_NAME), FLEET_BUSY_NAME) == 0;
	look_len += (size_t)snprintf(
		look_text + look_len, look_cap - look_len, "%s %o %llu %lld %lld.%09ld %lld.%09ld\n",
		path, st->st_mode, (unsigned long long)st->st_ino,
		S_ISDIR(st->st_mode) ? 0 : (long long)st->st_size, (long long)st->st_mtim.tv_sec,
		st->st_mtim.tv_nsec, is_busy ? 0 : (long long)st->st_ctim.tv_sec,
		is_busy ? 0 : st->st_ctim.tv_nsec);
	return 0;
}

char *fleet_look(const struct fleet *fleet)
{
	look_text = NULL;
	look_len = look_cap = 0;
	if (nftw(fleet->root, look_at, 16, FTW_PHYS)) {
		die("%s: %s", fleet->root, strerror(errno));
	}
	return look_text;
}
