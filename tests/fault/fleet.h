/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_FAULT_FLEET_H
#define US_FAULT_FLEET_H

#include <stddef.h>
#include <stdint.h>

/*
 * The databases that are backed up: few, but of every shape that is read in a way of its
 * own, made by SQLite in a process of its own (the tenant), which keeps one of them open.
 * Version 2 of each has one transaction more than version 1.
 *
 * What the image of each must be is what SQLite makes of a copy of its files.
 */

#define FLEET_PATH_LEN 4096
#define FLEET_VERSIONS 2
#define FLEET_BUSY_NAME "large-wal.db" /* see shim_busy_name */

struct fleet_db {
	char rel[64];	      /* below the fleet's directory */
	int is_database;      /* else empty, or text */
	uint8_t *images[FLEET_VERSIONS + 1]; /* by version */
	size_t image_lens[FLEET_VERSIONS + 1];
};

struct fleet {
	char scratch[FLEET_PATH_LEN];
	char root[FLEET_PATH_LEN]; /* of the databases */
	struct fleet_db dbs[64];
	uint32_t db_count;
	uint32_t version;
	int to_tenant, from_tenant;
	int tenant;
};

#define FLEET_SHAPES 1u /* one of each shape, some pages long */
#define FLEET_LARGE 2u	/* beyond what is read and kept in memory, and a small one */
#define FLEET_BUSY 4u	/* another such, which is written to */
#define FLEET_PARTS 8u	/* an object that is fetched in parts */
#define FLEET_HUGE 16u	/* an object that is sent in parts */
#define FLEET_MANY 32u	/* forty of one shape: a batch of the file target */

/* Makes version 1 of databases of KINDS below SCRATCH, an absolute path. */
void fleet_make(struct fleet *fleet, const char *scratch, uint32_t kinds);
/* Makes version 2. */
void fleet_change(struct fleet *fleet);
/* Ends the tenant. */
void fleet_end(struct fleet *fleet);

/* What the files of the fleet are: names, inodes, times. Freed with free. */
char *fleet_look(const struct fleet *fleet);

struct options {
	int full, jobs;
	uint64_t seed;
	long seconds; /* 0: no limit */
	const char *only;
};
/* [-full] [-seed N] [-seconds N] [-jobs N] [-only SCENARIO] */
void options_parse(int argc, char **argv, struct options *ret);
/* Makes a directory for temporary files; RET_PATH has 512 bytes. */
void scratch_make(const char *name, char *ret_path);

/* Ends the program: something that is no part of the test does not work. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* A path in a buffer of its own for a while: the next 16 calls leave it alone. */
const char *path_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint8_t *file_read(const char *path, size_t *ret_len);
void file_write(const char *path, const void *data, size_t len);
/* And the attributes in which an S3 server keeps what it knows of an object. */
void file_copy(const char *from, const char *to);
/* Of a directory and all below; copies keep hard links apart. */
void tree_remove(const char *path);
void tree_copy(const char *from, const char *to);

#endif
