/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The trailer: one LZ4 skippable frame (LZ4 Frame Format 1.6.1, "Skippable
 * Frames"), which every LZ4 decoder passes over:
 *
 *	magic 0x184D2A50  le32
 *	payload length    le32
 *	payload           one line of JSON, '\n', 64 hex digits: SHA-256 of the line
 *			  without its newline
 *
 * JSON is read by SQLite's own json_extract: a parser that others keep, in a
 * library that is here anyway. It sees the line only after its hash was right.
 *
 * Finding the trailer from the end: the payload length is not there, so the
 * magic is searched backwards; a candidate counts only if its length reaches the
 * end exactly and its hash is right, so bytes of a compressed block that look
 * like a magic cannot deceive.
 */
#include "trailer.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/bytes.h"
#include "../base/clock.h"
#include "../base/hex.h"

#define SKIPPABLE_MAGIC UINT32_C(0x184D2A50)
#define FRAME_HEADER_LEN 8
#define HASH_TEXT_LEN 64
#define FORMAT_VERSION 1

static int unhex(const char *text, uint8_t ret_digest[32])
{
	static const char digits[] = "0123456789abcdef";
	for (int i = 0; i < 64; i++) {
		const char *digit = text[i] ? strchr(digits, text[i]) : NULL;
		if (!digit) {
			return -1;
		}
		uint8_t nibble = (uint8_t)(digit - digits);
		ret_digest[i / 2] =
			i % 2 ? (uint8_t)(ret_digest[i / 2] | nibble) : (uint8_t)(nibble << 4);
	}
	return text[64] == '\0' ? 0 : -1;
}

static int sha256(const void *data, size_t len, uint8_t ret_digest[32])
{
	return EVP_Digest(data, len, ret_digest, NULL, EVP_sha256(), NULL) ? 0 : -1;
}

static void append(char *line, size_t cap, size_t *len, char c)
{
	if (*len < cap) {
		line[*len] = c;
	}
	(*len)++;
}

/* Appends TEXT to LINE of *LEN bytes as far as CAP allows; *LEN is what it would take. An
 * escaped path needs no JSON escape but for the quotation mark. */
static void append_quoted(char *line, size_t cap, size_t *len, const char *text)
{
	for (; *text; text++) {
		if (*text == '"') {
			append(line, cap, len, '\\');
		}
		append(line, cap, len, *text);
	}
}

/* The line, without its newline, cut off at CAP. Returns the length that it would take. */
static size_t format_line(const struct us_trailer *trailer, char *line, size_t cap)
{
	char hash[65], time[US_TIME_RFC3339_LEN + 1];
	us_hex(trailer->lz4_sha256, sizeof(trailer->lz4_sha256), hash);
	us_time_rfc3339_format(trailer->snapshot_ns, time);
	int n = snprintf(line, cap, "{\"format\":%d,\"path\":\"", FORMAT_VERSION);
	size_t len = (size_t)n;
	append_quoted(line, cap, &len, trailer->path);
	n = snprintf(len < cap ? line + len : NULL, len < cap ? cap - len : 0,
		     "\",\"snapshot_time\":\"%s\","
		     "\"database_size\":%" PRIu64 ",\"page_size\":%" PRIu32
		     ",\"change_counter\":%" PRIu32 ",\"mode\":\"%04" PRIo32 "\",\"uid\":%" PRIu32
		     ",\"gid\":%" PRIu32 ",\"lz4_sha256\":\"%s\"}",
		     time, trailer->database_len, trailer->page_size, trailer->change_counter,
		     trailer->mode, trailer->uid, trailer->gid, hash);
	return len + (size_t)n;
}

int32_t us_trailer_format(const struct us_trailer *trailer, uint8_t *ret, size_t cap,
			  size_t *ret_len, struct us_error *err)
{
	char hash[HASH_TEXT_LEN + 1];
	uint8_t digest[32];
	size_t around_len = FRAME_HEADER_LEN + 1 + HASH_TEXT_LEN;
	size_t line_cap = cap < US_TRAILER_LEN_MAX ? cap : US_TRAILER_LEN_MAX;
	line_cap = line_cap > around_len ? line_cap - around_len + 1 : 0;
	char *line = (char *)ret + FRAME_HEADER_LEN;
	size_t len = format_line(trailer, line, line_cap);
	if (len >= line_cap || sha256(line, len, digest)) {
		return us_fail(err, US_E_NAME, "path too long for a trailer");
	}
	us_put_le32(ret, SKIPPABLE_MAGIC);
	us_put_le32(ret + 4, (uint32_t)(len + 1 + HASH_TEXT_LEN));
	line[len] = '\n';
	us_hex(digest, sizeof(digest), hash);
	memcpy(line + len + 1, hash, HASH_TEXT_LEN);
	*ret_len = around_len + len;
	return 0;
}

/* The JSON line of the trailer frame that ends at TAIL + LEN, or NULL. */
static const char *find_line(const uint8_t *tail, size_t len, size_t *ret_line_len,
			     size_t *ret_frame_len)
{
	const size_t least = FRAME_HEADER_LEN + 1 + HASH_TEXT_LEN;
	for (size_t frame_len = least; frame_len <= len && frame_len <= US_TRAILER_LEN_MAX;
	     frame_len++) {
		const uint8_t *frame = tail + (len - frame_len);
		if (us_get_le32(frame) != SKIPPABLE_MAGIC ||
		    us_get_le32(frame + 4) != frame_len - FRAME_HEADER_LEN) {
			continue;
		}
		size_t line_len = frame_len - least;
		const char *line = (const char *)frame + FRAME_HEADER_LEN;
		uint8_t digest[32];
		char hash[65];
		if (line[line_len] != '\n' || sha256(line, line_len, digest)) {
			return NULL;
		}
		us_hex(digest, sizeof(digest), hash);
		if (memcmp(hash, line + line_len + 1, HASH_TEXT_LEN) != 0) {
			return NULL;
		}
		*ret_line_len = line_len;
		*ret_frame_len = frame_len;
		return line;
	}
	return NULL;
}

/* Columns of the query below. */
enum {
	COL_FORMAT,
	COL_PATH,
	COL_TIME,
	COL_SIZE,
	COL_PAGE,
	COL_COUNTER,
	COL_MODE,
	COL_UID,
	COL_GID,
	COL_SHA
};

static int column_u32(sqlite3_stmt *stmt, int column, uint32_t *ret)
{
	sqlite3_int64 value = sqlite3_column_int64(stmt, column);
	if (sqlite3_column_type(stmt, column) != SQLITE_INTEGER || value < 0 ||
	    value > UINT32_MAX) {
		return -1;
	}
	*ret = (uint32_t)value;
	return 0;
}

static int parse_mode(const char *text, uint32_t *ret_mode)
{
	uint32_t mode = 0;
	if (strlen(text) != 4) {
		return -1;
	}
	for (int i = 0; i < 4; i++) {
		if (text[i] < '0' || text[i] > '7') {
			return -1;
		}
		mode = mode * 8 + (uint32_t)(text[i] - '0');
	}
	*ret_mode = mode;
	return 0;
}

static int fields_of(sqlite3_stmt *stmt, struct us_trailer *ret)
{
	const int texts[] = { COL_PATH, COL_TIME, COL_MODE, COL_SHA };
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		if (sqlite3_column_type(stmt, texts[i]) != SQLITE_TEXT) {
			return -1;
		}
	}
	const char *path = (const char *)sqlite3_column_text(stmt, COL_PATH);
	const char *time = (const char *)sqlite3_column_text(stmt, COL_TIME);
	const char *mode = (const char *)sqlite3_column_text(stmt, COL_MODE);
	const char *sha = (const char *)sqlite3_column_text(stmt, COL_SHA);
	sqlite3_int64 size = sqlite3_column_int64(stmt, COL_SIZE);
	if (!path || !time || !mode || !sha || strlen(path) > US_TRAILER_PATH_LEN_MAX ||
	    size <= 0 || sqlite3_column_type(stmt, COL_SIZE) != SQLITE_INTEGER ||
	    us_time_rfc3339_parse(time, strlen(time), &ret->snapshot_ns) ||
	    parse_mode(mode, &ret->mode) || unhex(sha, ret->lz4_sha256) ||
	    column_u32(stmt, COL_PAGE, &ret->page_size) ||
	    column_u32(stmt, COL_COUNTER, &ret->change_counter) ||
	    column_u32(stmt, COL_UID, &ret->uid) || column_u32(stmt, COL_GID, &ret->gid)) {
		return -1;
	}
	memcpy(ret->path, path, strlen(path) + 1);
	ret->database_len = (uint64_t)size;
	return 0;
}

static int32_t parse_line(const char *line, size_t line_len, struct us_trailer *ret,
			  struct us_error *err)
{
	static const char query[] =
		"SELECT j->>'$.format', j->>'$.path', j->>'$.snapshot_time', j->>'$.database_size',"
		" j->>'$.page_size', j->>'$.change_counter', j->>'$.mode', j->>'$.uid', "
		"j->>'$.gid',"
		" j->>'$.lz4_sha256' FROM (SELECT ?1 AS j)";
	sqlite3 *db = NULL;
	sqlite3_stmt *stmt = NULL;
	int32_t rc = us_fail(err, US_E_OBJECT, "the trailer's JSON cannot be read");
	if (sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) ||
	    sqlite3_prepare_v2(db, query, -1, &stmt, NULL) ||
	    sqlite3_bind_text(stmt, 1, line, (int)line_len, SQLITE_STATIC) ||
	    sqlite3_step(stmt) != SQLITE_ROW) {
		goto out;
	}
	sqlite3_int64 format = sqlite3_column_int64(stmt, COL_FORMAT);
	if (format != FORMAT_VERSION) {
		rc = us_fail(err, US_E_OBJECT,
			     "trailer of format %lld; this version reads format %d",
			     (long long)format, FORMAT_VERSION);
	} else if (fields_of(stmt, ret)) {
		rc = us_fail(err, US_E_OBJECT,
			     "the trailer lacks a field or holds one out of range");
	} else {
		us_error_clear(err);
		rc = 0;
	}
out:
	(void)sqlite3_finalize(stmt); /* repeats the error of the step */
	(void)sqlite3_close(db);      /* in memory; nothing to lose */
	return rc;
}

int32_t us_trailer_parse(const uint8_t *tail, size_t len, struct us_trailer *ret_trailer,
			 size_t *ret_trailer_len, struct us_error *err)
{
	size_t line_len, frame_len;
	const char *line = find_line(tail, len, &line_len, &frame_len);
	if (!line) {
		return us_fail(err, US_E_OBJECT, "no intact trailer at the end of the object");
	}
	struct us_trailer *trailer = us_alloc_zero(sizeof(*trailer));
	if (!trailer) {
		return us_fail_nomem(err);
	}
	int32_t rc = parse_line(line, line_len, trailer, err);
	if (!rc) {
		*ret_trailer = *trailer;
		if (ret_trailer_len) {
			*ret_trailer_len = frame_len;
		}
	}
	us_free(trailer);
	return rc;
}
