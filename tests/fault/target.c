/* SPDX-License-Identifier: Apache-2.0 */
#include "target.h"

#include <dirent.h>
#include <errno.h>
#include <lz4frame.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define SUFFIX ".db.lz4"
#define SHA_LEN 32

/* Frames that were decoded and compared before: clean runs, one at a time, learn them for
 * all the processes that come after. */
#define KNOWN_MAX 4096

static struct known {
	uint32_t count;
	struct {
		uint8_t sha[SHA_LEN];
		uint32_t db, version;
	} frames[KNOWN_MAX];
} *known;
static int learning;

void target_learn(void)
{
	learning = 1;
}

void target_init(void)
{
	known = mmap(NULL, sizeof(*known), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (known == MAP_FAILED) {
		die("no memory");
	}
}

static const char *fault(const char *key, const char *what)
{
	static char text[2048];
	(void)snprintf(text, sizeof(text), "object %s: %s", key, what);
	return text;
}

static void hex(const uint8_t *digest, char ret[2 * SHA_LEN + 1])
{
	for (int i = 0; i < SHA_LEN; i++) {
		(void)snprintf(ret + 2 * i, 3, "%02x", digest[i]);
	}
}

static void sha256(const void *data, size_t len, uint8_t ret[SHA_LEN])
{
	if (!EVP_Digest(data, len, ret, NULL, EVP_sha256(), NULL)) {
		die("SHA-256 is not available");
	}
}

/* ------------------------------------------------------------------ the object */

/* Where the trailer begins; its JSON line goes to LINE. */
static const char *read_trailer(const uint8_t *data, size_t len, size_t *ret_at, char line[16384])
{
	static const uint8_t magic[4] = { 0x50, 0x2A, 0x4D, 0x18 };
	for (size_t at = len < 16384 ? 0 : len - 16384; at + 8 + 65 < len; at++) {
		if (memcmp(data + at, magic, 4) != 0) {
			continue;
		}
		size_t payload = (size_t)data[at + 4] | (size_t)data[at + 5] << 8 |
				 (size_t)data[at + 6] << 16 | (size_t)data[at + 7] << 24;
		if (at + 8 + payload != len) {
			continue;
		}
		uint8_t sha[SHA_LEN];
		char text[2 * SHA_LEN + 1];
		size_t line_len = payload - 65;
		sha256(data + at + 8, line_len, sha);
		hex(sha, text);
		if (memcmp(data + len - 64, text, 64) == 0) {
			memcpy(line, data + at + 8, line_len);
			line[line_len] = '\0';
			*ret_at = at;
			return NULL;
		}
	}
	return "there is no trailer that is true to its hash";
}

/* The version of database DB that the LZ4 frame DATA decodes to; 0: none. */
static uint32_t decode(const uint8_t *data, size_t len, const struct fleet_db *db)
{
	LZ4F_dctx *ctx;
	uint8_t *image = malloc(db->image_lens[1] + db->image_lens[2] + 1);
	size_t done = 0, at = 0, cap = db->image_lens[1] + db->image_lens[2] + 1, more = 1;
	if (!image || LZ4F_isError(LZ4F_createDecompressionContext(&ctx, LZ4F_VERSION))) {
		die("no memory");
	}
	while (more != 0 && at < len && done < cap) {
		size_t out = cap - done, in = len - at;
		more = LZ4F_decompress(ctx, image + done, &out, data + at, &in, NULL);
		if (LZ4F_isError(more)) {
			break;
		}
		done += out;
		at += in;
	}
	(void)LZ4F_freeDecompressionContext(ctx);
	uint32_t version = FLEET_VERSIONS;
	while (version > 0 &&
	       (more != 0 || at != len || !db->images[version] || done != db->image_lens[version] ||
		memcmp(image, db->images[version], done) != 0)) {
		version--;
	}
	free(image);
	return version;
}

static uint32_t version_of(const uint8_t *frame, size_t len, const uint8_t sha[SHA_LEN],
			   const struct fleet *fleet, uint32_t db)
{
	for (uint32_t i = 0; i < known->count; i++) {
		if (memcmp(known->frames[i].sha, sha, SHA_LEN) == 0 && known->frames[i].db == db) {
			return known->frames[i].version;
		}
	}
	uint32_t version = decode(frame, len, &fleet->dbs[db]);
	if (version && learning && known->count < KNOWN_MAX) {
		memcpy(known->frames[known->count].sha, sha, SHA_LEN);
		known->frames[known->count].db = db;
		known->frames[known->count++].version = version;
	}
	return version;
}

static const char *check_object(const uint8_t *data, size_t len, const struct fleet *fleet,
				uint32_t db, uint32_t *ret_version)
{
	static char line[16384];
	char want[FLEET_PATH_LEN + 128], text[2 * SHA_LEN + 1];
	uint8_t sha[SHA_LEN];
	size_t frame_len;
	const char *why = read_trailer(data, len, &frame_len, line);
	if (why) {
		return why;
	}
	sha256(data, frame_len, sha);
	hex(sha, text);
	(void)snprintf(want, sizeof(want), "\"lz4_sha256\":\"%s\"", text);
	if (!strstr(line, want)) {
		return "the SHA-256 of its frame is not the trailer's";
	}
	(void)snprintf(want, sizeof(want), "\"path\":\"%s/%s\"", fleet->root, fleet->dbs[db].rel);
	if (!strstr(line, want)) {
		return "its trailer has another path";
	}
	*ret_version = version_of(data, frame_len, sha, fleet, db);
	if (*ret_version == 0) {
		return "it is no committed state of its database";
	}
	(void)snprintf(want, sizeof(want), "\"database_size\":%zu,",
		       fleet->dbs[db].image_lens[*ret_version]);
	return strstr(line, want) ? NULL : "its trailer has another size";
}

/* --------------------------------------------------------------------- the keys */

/* KEY is <rel without .db>/<time>.db.lz4. */
static int find_db(const char *key, const struct fleet *fleet, uint32_t *ret_db,
		   uint32_t *ret_time_s)
{
	const char *slash = strrchr(key, '/');
	struct tm tm = { 0 };
	const char *end = slash ? strptime(slash + 1, "%Y%m%dT%H%M%SZ", &tm) : NULL;
	if (!end || strcmp(end, SUFFIX) != 0) {
		return -1;
	}
	for (uint32_t i = 0; i < fleet->db_count; i++) {
		const char *rel = fleet->dbs[i].rel;
		size_t len = strlen(rel) - 3;
		if ((size_t)(slash - key) == len && memcmp(key, rel, len) == 0) {
			*ret_db = i;
			*ret_time_s = (uint32_t)timegm(&tm);
			return 0;
		}
	}
	return -1;
}

const char *target_add(const char *key, const uint8_t *data, size_t len,
		       const struct fleet *fleet, struct target *ret)
{
	uint32_t db, time_s, version;
	if (find_db(key, fleet, &db, &time_s)) {
		return fault(key, "nobody has made it");
	}
	const char *why = check_object(data, len, fleet, db, &version);
	if (why) {
		return fault(key, why);
	}
	struct target_db *t = &ret->dbs[db];
	if (t->count == TARGET_OBJECTS_MAX) {
		return fault(key, "there are too many");
	}
	uint32_t at = t->count++;
	for (; at > 0 && t->objects[at - 1].time_s > time_s; at--) {
		t->objects[at] = t->objects[at - 1];
	}
	t->objects[at].time_s = time_s;
	t->objects[at].version = version;
	ret->object_count++;
	return NULL;
}

uint32_t target_newest(const struct target *target, uint32_t db)
{
	const struct target_db *t = &target->dbs[db];
	return t->count ? t->objects[t->count - 1].version : 0;
}

static const char *read_dir(const char *dir, const char *key, const struct fleet *fleet,
			    struct target *ret)
{
	DIR *d = opendir(dir);
	const char *why = NULL;
	if (!d) {
		return errno == ENOENT ? NULL : fault(key, strerror(errno));
	}
	for (struct dirent *entry; !why && (entry = readdir(d)) != NULL;) {
		char path[FLEET_PATH_LEN], below[1024];
		struct stat st;
		if (entry->d_name[0] == '.') {
			continue; /* hidden: no object */
		}
		(void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		(void)snprintf(below, sizeof(below), "%s%s%s", key, key[0] ? "/" : "",
			       entry->d_name);
		if (lstat(path, &st)) {
			why = fault(below, strerror(errno));
		} else if (S_ISDIR(st.st_mode)) {
			why = read_dir(path, below, fleet, ret);
		} else {
			size_t len;
			uint8_t *data = file_read(path, &len);
			why = target_add(below, data, len, fleet, ret);
			free(data);
		}
	}
	(void)closedir(d);
	return why;
}

const char *target_read(const char *dir, const struct fleet *fleet, struct target *ret)
{
	memset(ret, 0, sizeof(*ret));
	return read_dir(dir, "", fleet, ret);
}
