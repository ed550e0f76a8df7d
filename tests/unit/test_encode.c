/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects: what the encoder makes, the lz4 program and the decoder read; what is
 * damaged in any byte, neither gives back as good.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <lz4frame.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../csrc/base/alloc.h"
#include "../../csrc/base/bytes.h"
#include "../../csrc/base/clock.h"
#include "../../csrc/encode/encode.h"
#include "../../csrc/encode/trailer.h"
#include "scratch.h"

static int spool_fd;

/* A disk of 1,000 blocks of 4 KiB. */
static fsblkcnt_t free_blocks = 1000;

int fstatvfs(int fd, struct statvfs *ret)
{
	(void)fd;
	*ret = (struct statvfs){ .f_blocks = 1000, .f_bavail = free_blocks, .f_frsize = 4096 };
	return 0;
}

static int open_spool(void **state)
{
	(void)state;
	spool_fd = open(scratch_base(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return spool_fd < 0;
}

static int close_spool(void **state)
{
	(void)state;
	return close(spool_fd);
}

/* Half text, half noise, so that both kinds of LZ4 block occur. */
static uint8_t *make_image(size_t len)
{
	uint8_t *image = malloc(len);
	uint32_t x = 12345;
	assert_non_null(image);
	for (size_t i = 0; i < len; i++) {
		x = x * 1664525 + 1013904223;
		image[i] = (i / 4096) % 2 ? (uint8_t)(x >> 24) : (uint8_t)("tenant "[i % 7]);
	}
	return image;
}

static struct us_trailer make_trailer(uint64_t len)
{
	struct us_trailer t = { .snapshot_ns = INT64_C(1764000000123456789),
				.database_len = len,
				.page_size = 4096,
				.change_counter = 42,
				.mode = 0640,
				.uid = 1000,
				.gid = 4294967295u };
	(void)snprintf(t.path, sizeof(t.path), "/data/a \"b\" %%0A \xc3\xa9.db");
	return t;
}

static struct us_object encode(const uint8_t *image, size_t len, int to_file,
			       struct us_trailer *trailer)
{
	struct us_encoder *e;
	struct us_object object;
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_encoder_new(spool_fd, &e, &err), 0);
	assert_int_equal(us_encoder_begin(e, len, to_file, &err), 0);
	for (size_t at = 0; at < len;) {
		size_t n = len - at < 70001 ? len - at : 70001;
		assert_int_equal(us_encoder_write(e, image + at, n, &err), 0);
		at += n;
	}
	assert_int_equal(us_encoder_end(e, trailer, &object, &err), 0);
	us_encoder_free(e);
	assert_true(object.len <= us_encode_bound(len));
	return object;
}

static uint8_t *bytes_of(const struct us_object *object)
{
	uint8_t *bytes = malloc(object->len);
	assert_non_null(bytes);
	if (object->data) {
		memcpy(bytes, object->data, object->len);
	} else {
		assert_int_equal(pread(object->fd, bytes, object->len, 0), object->len);
	}
	return bytes;
}

struct sink {
	uint8_t *data;
	size_t len, cap;
};

static int32_t to_sink(void *arg, const uint8_t *data, size_t len, struct us_error *err)
{
	struct sink *sink = arg;
	(void)err;
	assert_true(sink->len + len <= sink->cap);
	memcpy(sink->data + sink->len, data, len);
	sink->len += len;
	return 0;
}

/* Decodes in pieces of PIECE; returns the decoder's verdict. */
static int32_t decode(const uint8_t *object, size_t len, size_t piece, struct sink *sink,
		      struct us_trailer *trailer)
{
	struct us_decoder *d;
	struct us_error err = US_ERROR_INIT;
	sink->len = 0;
	assert_int_equal(us_decoder_new(to_sink, sink, sink->cap, &d, &err), 0);
	int32_t rc = 0;
	for (size_t at = 0; !rc && at < len; at += piece) {
		rc = us_decoder_write(d, object + at, len - at < piece ? len - at : piece, &err);
	}
	if (!rc) {
		rc = us_decoder_end(d, trailer, &err);
	}
	if (rc) {
		assert_int_equal(rc, US_E_OBJECT);
		assert_int_equal(err.code, rc);
		assert_true(err.message[0] != '\0');
	}
	us_decoder_free(d);
	return rc;
}

static void check_round_trip(size_t len, int to_file)
{
	uint8_t *image = make_image(len);
	struct us_trailer given = make_trailer(len), got;
	struct us_object object = encode(image, len, to_file, &given);
	assert_int_equal(object.data == NULL, to_file);
	uint8_t *bytes = bytes_of(&object);
	struct sink sink = { .data = malloc(len), .cap = len };
	static const size_t pieces[] = { 1 << 20, 4096, 7 };
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(decode(bytes, object.len, pieces[i], &sink, &got), 0);
		assert_int_equal(sink.len, len);
		assert_memory_equal(sink.data, image, len);
		assert_string_equal(got.path, given.path);
		assert_int_equal(got.snapshot_ns, given.snapshot_ns);
		assert_int_equal(got.database_len, len);
		assert_int_equal(got.page_size, 4096);
		assert_int_equal(got.change_counter, 42);
		assert_int_equal(got.mode, 0640);
		assert_int_equal(got.uid, 1000);
		assert_int_equal(got.gid, 4294967295u);
		assert_memory_equal(got.lz4_sha256, object.lz4_sha256, 32);
	}
	free(sink.data);
	free(bytes);
	free(image);
	us_object_done(&object);
}

static void test_round_trip(void **state)
{
	(void)state;
	static const size_t lens[] = { 512, 4096, 65536, 65537, 1000000 };
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		check_round_trip(lens[i], 0);
		check_round_trip(lens[i], 1);
	}
}

static void test_lz4_program_reads_it(void **state)
{
	(void)state;
	const size_t len = 300000;
	char path[SCRATCH_LEN], command[SCRATCH_LEN + 16];
	uint8_t *image = make_image(len), *out = malloc(len + 1);
	struct us_trailer trailer = make_trailer(len);
	struct us_object object = encode(image, len, 0, &trailer);
	(void)snprintf(path, sizeof(path), "%s/us-encode-XXXXXX", scratch_base());
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, object.data, object.len), object.len);
	assert_int_equal(close(fd), 0);
	(void)snprintf(command, sizeof(command), "lz4 -dc %s", path);
	FILE *p = popen(command, "r");
	assert_non_null(p);
	assert_int_equal(fread(out, 1, len + 1, p), len);
	assert_int_equal(pclose(p), 0);
	assert_memory_equal(out, image, len);
	assert_int_equal(unlink(path), 0);
	us_object_done(&object);
	free(image);
	free(out);
}

static void test_every_flipped_byte_is_found(void **state)
{
	(void)state;
	const size_t len = 4096;
	uint8_t *image = make_image(len);
	struct us_trailer trailer = make_trailer(len), got;
	struct us_object object = encode(image, len, 0, &trailer);
	struct sink sink = { .data = malloc(len), .cap = len };
	for (size_t i = 0; i < object.len; i++) {
		for (int bit = 0; bit < 8; bit += 7) {
			object.data[i] ^= (uint8_t)(1 << bit);
			assert_int_equal(decode(object.data, object.len, 1000, &sink, &got),
					 US_E_OBJECT);
			object.data[i] ^= (uint8_t)(1 << bit);
		}
	}
	for (size_t cut = 0; cut < object.len; cut++) {
		assert_int_equal(decode(object.data, cut, 1000, &sink, &got), US_E_OBJECT);
	}
	assert_int_equal(decode(object.data, object.len, 1000, &sink, &got), 0);
	free(sink.data);
	free(image);
	us_object_done(&object);
}

/* Frame and trailer each whole, but not of each other. */
static void test_foreign_trailer(void **state)
{
	(void)state;
	uint8_t *image = make_image(8192);
	struct us_trailer trailer = make_trailer(4096), got;
	struct us_object a = encode(image, 4096, 0, &trailer);
	trailer = make_trailer(4096);
	struct us_object b = encode(image + 4096, 4096, 0, &trailer);
	size_t tail_len = b.len - b.lz4_len;
	uint8_t *mixed = malloc(a.lz4_len + b.lz4_len + 2 * tail_len);
	struct sink sink = { .data = malloc(4096), .cap = 4096 };
	memcpy(mixed, a.data, a.lz4_len);
	memcpy(mixed + a.lz4_len, b.data + b.lz4_len, tail_len);
	assert_int_equal(decode(mixed, a.lz4_len + tail_len, 512, &sink, &got), US_E_OBJECT);
	/* Two trailers in a row. */
	memcpy(mixed, b.data, b.lz4_len);
	memcpy(mixed + b.lz4_len, b.data + b.lz4_len, tail_len);
	memcpy(mixed + b.lz4_len + tail_len, b.data + b.lz4_len, tail_len);
	assert_int_equal(decode(mixed, b.lz4_len + 2 * tail_len, 512, &sink, &got), US_E_OBJECT);
	free(mixed);
	free(sink.data);
	free(image);
	us_object_done(&a);
	us_object_done(&b);
}

static void test_bomb(void **state)
{
	(void)state;
	/* A frame header that claims 1 TB: magic, FLG (v1, independent, size, checksum),
	 * BD (64 KiB), size, then a header checksum that the decoder would have to accept;
	 * made by the encoder, so it is right. */
	struct us_encoder *e;
	struct us_decoder *d;
	struct us_error err = US_ERROR_INIT;
	uint8_t header[32];
	struct us_object object;
	assert_int_equal(us_encoder_new(spool_fd, &e, &err), 0);
	assert_int_equal(us_encoder_begin(e, UINT64_C(1) << 40, 1, &err), 0);
	uint8_t page[4096] = { 0 };
	struct us_trailer trailer = make_trailer(4096);
	assert_int_equal(us_encoder_write(e, page, sizeof(page), &err), 0);
	/* Not the announced length: refused. */
	assert_int_equal(us_encoder_end(e, &trailer, &object, &err), US_E_ARG);
	us_encoder_free(e);
	uint8_t *image = make_image(4096);
	object = encode(image, 4096, 0, &trailer);
	struct sink sink = { .data = malloc(4096), .cap = 4096 };
	memcpy(header, object.data, sizeof(header));
	/* At most 4,095 bytes allowed: refused before a byte is given out. */
	assert_int_equal(us_decoder_new(to_sink, &sink, 4095, &d, &err), 0);
	assert_int_equal(us_decoder_write(d, header, sizeof(header), &err), US_E_OBJECT);
	assert_int_equal(sink.len, 0);
	us_decoder_free(d);
	free(sink.data);
	free(image);
	us_object_done(&object);
}

static void test_trailer_fields(void **state)
{
	(void)state;
	uint8_t frame[US_TRAILER_LEN_MAX];
	size_t len;
	struct us_trailer trailer = make_trailer(4096), got;
	memset(trailer.lz4_sha256, 0xab, 32);
	assert_int_equal(us_trailer_format(&trailer, frame, sizeof(frame), &len, NULL), 0);
	static const char json[] =
		"{\"format\":1,\"path\":\"/data/a \\\"b\\\" %0A \xc3\xa9.db\","
		"\"snapshot_time\":\"2025-11-24T16:00:00.123456789Z\",\"database_size\":4096,"
		"\"page_size\":4096,\"change_counter\":42,\"mode\":\"0640\",\"uid\":1000,"
		"\"gid\":4294967295,\"lz4_sha256\":"
		"\"abababababababababababababababababababababababababababababababab\"}\n";
	assert_memory_equal(frame + 8, json, sizeof(json) - 1);
	assert_int_equal(us_get_le32(frame), 0x184D2A50);
	assert_int_equal(us_get_le32(frame + 4), len - 8);
	assert_int_equal(us_trailer_parse(frame, len, &got, NULL, NULL), 0);
	assert_string_equal(got.path, trailer.path);
	/* The longest path there can be. */
	memset(trailer.path, '"', US_TRAILER_PATH_LEN_MAX / 3);
	trailer.path[US_TRAILER_PATH_LEN_MAX / 3] = '\0';
	assert_int_equal(us_trailer_format(&trailer, frame, sizeof(frame), &len, NULL), 0);
	assert_int_equal(us_trailer_parse(frame, len, &got, NULL, NULL), 0);
	assert_string_equal(got.path, trailer.path);
	memset(trailer.path, 'x', US_TRAILER_PATH_LEN_MAX);
	trailer.path[US_TRAILER_PATH_LEN_MAX] = '\0';
	assert_int_equal(us_trailer_format(&trailer, frame, sizeof(frame), &len, NULL), 0);
	assert_int_equal(us_trailer_parse(frame, len, &got, NULL, NULL), 0);
	assert_string_equal(got.path, trailer.path);
}

/* A trailer frame by the book (docs/formats.md) around any line. */
static size_t frame_of(const char *line, uint8_t *ret)
{
	uint8_t digest[32];
	size_t len = strlen(line);
	us_put_le32(ret, 0x184D2A50);
	us_put_le32(ret + 4, (uint32_t)(len + 65));
	memcpy(ret + 8, line, len);
	ret[8 + len] = '\n';
	SHA256((const uint8_t *)line, len, digest);
	for (int i = 0; i < 32; i++) {
		char hex[3];
		(void)snprintf(hex, sizeof(hex), "%02x", digest[i]);
		memcpy(ret + 9 + len + 2 * i, hex, 2);
	}
	return 8 + len + 65;
}

#define AB8 "abababab"
#define AB64 AB8 AB8 AB8 AB8 AB8 AB8 AB8 AB8

/* Fields of a line that is good: name and value as JSON. */
static const char *const good_fields[][2] = {
	{ "format", "1" },
	{ "path", "\"/data/a.db\"" },
	{ "snapshot_time", "\"2025-11-24T16:00:00.123456789Z\"" },
	{ "database_size", "4096" },
	{ "page_size", "4096" },
	{ "change_counter", "42" },
	{ "mode", "\"0640\"" },
	{ "uid", "1000" },
	{ "gid", "4294967295" },
	{ "lz4_sha256", "\"" AB64 "\"" },
};
#define FIELD_COUNT (sizeof(good_fields) / sizeof(good_fields[0]))

/* The good line with VALUE in the field NAME, or without the field. */
static void line_with(const char *name, const char *value, char *ret, size_t cap)
{
	size_t len = (size_t)snprintf(ret, cap, "{");
	for (size_t i = 0; i < FIELD_COUNT; i++) {
		const char *v = good_fields[i][1];
		if (strcmp(good_fields[i][0], name) == 0) {
			v = value;
		}
		if (v) {
			len += (size_t)snprintf(ret + len, cap - len, "%s\"%s\":%s",
						len > 1 ? "," : "", good_fields[i][0], v);
		}
	}
	(void)snprintf(ret + len, cap - len, "}");
}

static void test_trailer_values(void **state)
{
	(void)state;
	static const struct {
		const char *name, *value;
		int good;
	} cases[] = {
		{ "none", NULL, 1 },
		{ "uid", "0", 1 },
		{ "database_size", "9223372036854775807", 1 },
		{ "mode", "\"7777\"", 1 },
		{ "path", "\"\"", 1 },
		{ "format", "2", 0 },
		{ "format", "\"one\"", 0 },
		{ "path", "5", 0 },
		{ "path", "null", 0 },
		{ "snapshot_time", "1764000000", 0 },
		{ "snapshot_time", "\"2025-11-24\"", 0 },
		{ "database_size", "0", 0 },
		{ "database_size", "-1", 0 },
		{ "database_size", "\"4096\"", 0 },
		{ "database_size", "4096.5", 0 },
		{ "database_size", "9223372036854775808", 0 },
		{ "page_size", "-1", 0 },
		{ "page_size", "4294967296", 0 },
		{ "page_size", "\"4096\"", 0 },
		{ "change_counter", "-1", 0 },
		{ "change_counter", "4294967296", 0 },
		{ "mode", "640", 0 },
		{ "mode", "\"640\"", 0 },
		{ "mode", "\"00640\"", 0 },
		{ "mode", "\"0680\"", 0 },
		{ "mode", "\"06/0\"", 0 },
		{ "uid", "-1", 0 },
		{ "uid", "4294967296", 0 },
		{ "gid", "true", 1 }, /* SQLite says 1 */
		{ "gid", "[]", 0 },
		{ "lz4_sha256", "\"ab\"", 0 },
		{ "lz4_sha256", "\"" AB64 "ab\"", 0 },
		{ "lz4_sha256", "\"AB" AB64 "\"", 0 },
		{ "lz4_sha256", "null", 0 },
	};
	char line[1024];
	uint8_t frame[2048];
	struct us_trailer got;
	struct us_error err = US_ERROR_INIT;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		line_with(cases[i].name, cases[i].value, line, sizeof(line));
		size_t len = frame_of(line, frame);
		int32_t rc = us_trailer_parse(frame, len, &got, NULL, &err);
		if (rc != (cases[i].good ? 0 : US_E_OBJECT)) {
			fail_msg("%s: %d (%s)", line, rc, err.message);
		}
	}
	for (size_t i = 0; i < FIELD_COUNT; i++) { /* each of them must be there */
		line_with(good_fields[i][0], NULL, line, sizeof(line));
		assert_int_equal(us_trailer_parse(frame, frame_of(line, frame), &got, NULL, &err),
				 US_E_OBJECT);
	}
	static const char *const lines[] = { "", "{", "[]", "x", "{}" };
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		assert_int_equal(
			us_trailer_parse(frame, frame_of(lines[i], frame), &got, NULL, &err),
			US_E_OBJECT);
	}
	/* A frame whose line does not end where it should. */
	line_with("none", NULL, line, sizeof(line));
	size_t len = frame_of(line, frame);
	frame[len - 65] = ' ';
	assert_int_equal(us_trailer_parse(frame, len, &got, NULL, &err), US_E_OBJECT);
	/* No frame in more bytes than a trailer can have. */
	uint8_t *noise = calloc(1, 2 * US_TRAILER_LEN_MAX);
	assert_int_equal(us_trailer_parse(noise, 2 * US_TRAILER_LEN_MAX, &got, NULL, &err),
			 US_E_OBJECT);
	free(noise);
	/* A path that is too long for a trailer, or for the room that there is. */
	struct us_trailer trailer = make_trailer(4096);
	assert_int_equal(us_trailer_format(&trailer, frame, 100, &len, &err), US_E_NAME);
	memset(trailer.path, '"', US_TRAILER_PATH_LEN_MAX);
	trailer.path[US_TRAILER_PATH_LEN_MAX] = '\0';
	uint8_t *room = malloc(4 * US_TRAILER_LEN_MAX);
	assert_int_equal(us_trailer_format(&trailer, room, 4 * US_TRAILER_LEN_MAX, &len, &err),
			 US_E_NAME);
	free(room);
}

/* Frames that LZ4 reads, and that are not as ours: PREFS, and CONTENT of IMAGE. */
static void check_frame(LZ4F_preferences_t prefs, size_t image_len, const char *want)
{
	struct us_error err = US_ERROR_INIT;
	struct us_decoder *d;
	uint8_t *image = make_image(image_len), frame[16384];
	struct sink sink = { .data = malloc(image_len), .cap = image_len };
	LZ4F_cctx *lz4;
	assert_false(LZ4F_isError(LZ4F_createCompressionContext(&lz4, LZ4F_VERSION)));
	prefs.autoFlush = 1;
	size_t len = LZ4F_compressBegin(lz4, frame, sizeof(frame), &prefs);
	len += LZ4F_compressUpdate(lz4, frame + len, sizeof(frame) - len, image, image_len, NULL);
	assert_true(len < sizeof(frame));
	assert_int_equal(us_decoder_new(to_sink, &sink, UINT64_MAX, &d, &err), 0);
	assert_int_equal(us_decoder_write(d, frame, len, &err), US_E_OBJECT);
	if (!strstr(err.message, want)) {
		fail_msg("%s", err.message);
	}
	us_decoder_free(d);
	(void)LZ4F_freeCompressionContext(lz4);
	free(sink.data);
	free(image);
}

static void test_foreign_frames(void **state)
{
	(void)state;
	LZ4F_preferences_t ours = { .frameInfo = { .contentSize = 4096,
						   .contentChecksumFlag =
							   LZ4F_contentChecksumEnabled } };
	LZ4F_preferences_t prefs = ours;
	prefs.frameInfo.contentSize = 0;
	check_frame(prefs, 4096, "content size or checksum is missing");
	prefs = ours;
	prefs.frameInfo.contentChecksumFlag = LZ4F_noContentChecksum;
	check_frame(prefs, 4096, "content size or checksum is missing");
	prefs = ours;
	prefs.frameInfo.contentSize = 100;
	check_frame(prefs, 4096, "it holds more than it says");

	struct us_error err = US_ERROR_INIT;
	struct us_decoder *d;
	assert_int_equal(us_decoder_new(to_sink, NULL, UINT64_MAX, &d, &err), 0);
	static const uint8_t skippable[12] = { 0x50, 0x2A, 0x4D, 0x18, 4 };
	assert_int_equal(us_decoder_write(d, skippable, sizeof(skippable), &err), US_E_OBJECT);
	us_decoder_reset(d, NULL, UINT64_MAX);
	assert_int_equal(us_decoder_write(d, (const uint8_t *)"SQLite format 3", 16, &err),
			 US_E_OBJECT);
	us_decoder_free(d);
	us_decoder_free(NULL);
}

static void test_lengths(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	struct us_encoder *e;
	uint8_t page[4096] = { 0 };
	assert_true(us_encode_bound(UINT64_MAX - 100) == UINT64_MAX);
	assert_int_equal(us_encoder_new(spool_fd, &e, &err), 0);
	assert_int_equal(us_encoder_begin(e, UINT64_MAX, 0, &err), US_E_NOMEM);
	assert_int_equal(us_encoder_begin(e, 4000, 0, &err), 0);
	assert_int_equal(us_encoder_write(e, page, 4000, &err), 0);
	assert_int_equal(us_encoder_write(e, page, 1, &err), US_E_ARG);
	us_encoder_drop(e);
	us_encoder_free(e);
	us_encoder_free(NULL);
}

/* A buffer that is used again: the same bytes as in memory of their own, and it comes back. */
static void test_buffer(void **state)
{
	(void)state;
	enum { LEN = 20000, CAP = 65536 };
	struct us_error err = US_ERROR_INIT;
	struct us_encoder *e;
	struct us_object object;
	uint8_t *image = make_image(LEN);
	struct us_trailer trailer = make_trailer(LEN);
	struct us_object want = encode(image, LEN, 0, &trailer);
	assert_int_equal(want.cap, 0);
	assert_int_equal(us_encoder_new(spool_fd, &e, &err), 0);
	uint8_t *buf = us_alloc(CAP);
	assert_non_null(buf);
	for (int i = 0; i < 3; i++) {
		memset(buf, i, CAP);
		us_encoder_use(e, buf, CAP);
		assert_int_equal(us_encoder_begin(e, LEN, 0, &err), 0);
		assert_int_equal(us_encoder_write(e, image, LEN, &err), 0);
		assert_int_equal(us_encoder_end(e, &trailer, &object, &err), 0);
		assert_ptr_equal(object.data, buf);
		assert_int_equal(object.cap, CAP);
		assert_int_equal(object.len, want.len);
		assert_memory_equal(object.data, want.data, want.len);
		assert_memory_equal(object.sha256, want.sha256, sizeof(want.sha256));
	}
	us_encoder_use(e, buf, CAP);
	us_encoder_use(e, NULL, 0); /* frees it */
	assert_int_equal(us_encoder_begin(e, LEN, 0, &err), 0);
	us_encoder_free(e);
	us_object_done(&want);
	free(image);
}

static void test_times(void **state)
{
	(void)state;
	char name[US_TIME_NAME_LEN + 1], text[US_TIME_RFC3339_LEN + 1];
	uint32_t s;
	int64_t ns;
	us_time_name_format(951782400, name);
	assert_string_equal(name, "20000229T000000Z");
	for (uint64_t t = 0; t <= UINT32_MAX; t += 86400 * 3 + 7919) {
		us_time_name_format((uint32_t)t, name);
		assert_int_equal(us_time_name_parse(name, US_TIME_NAME_LEN, &s), 0);
		assert_int_equal(s, t);
		us_time_rfc3339_format((int64_t)t * US_NS_PER_S + 5, text);
		assert_int_equal(us_time_rfc3339_parse(text, strlen(text), &ns), 0);
		assert_int_equal(ns, (int64_t)t * US_NS_PER_S + 5);
	}
	static const char *const bad[] = { "20010229T000000Z", "20001301T000000Z",
					   "20000001T000000Z", "20000101T240000Z",
					   "20000101T006000Z", "20000101t000000Z",
					   "19691231T235959Z", "2000010 T000000Z",
					   "99990101T000000Z" };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(us_time_name_parse(bad[i], strlen(bad[i]), &s), -1);
	}
	assert_int_equal(us_time_rfc3339_parse("2026-11-24T20:00:00Z", 20, &ns), 0);
	assert_int_equal(us_time_rfc3339_parse("2026-11-24T20:00:00.5Z", 22, &ns), 0);
	assert_int_equal(ns % US_NS_PER_S, 500000000);
	assert_int_equal(us_time_rfc3339_parse("2026-11-24T20:00:00.Z", 21, &ns), -1);
	assert_int_equal(us_time_rfc3339_parse("2026-11-24T20:00:00+01:00", 25, &ns), -1);
}

/* A tenth of the disk stays free, also if it fills up while an object is made. */
static void test_disk_fills_up(void **state)
{
	(void)state;
	size_t len = 200000;
	uint8_t *image = make_image(len);
	struct us_encoder *e;
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_encoder_new(spool_fd, &e, &err), 0);
	free_blocks = 99;
	assert_int_equal(us_encoder_begin(e, len, 1, &err), US_E_NOSPACE);
	free_blocks = 101;
	assert_int_equal(us_encoder_begin(e, len, 1, &err), 0);
	assert_int_equal(us_encoder_write(e, image, 4096, &err), 0);
	free_blocks = 100;
	assert_int_equal(us_encoder_write(e, image + 4096, len - 4096, &err), US_E_NOSPACE);
	assert_non_null(strstr(err.message, "no room to spool"));
	/* In memory it does not matter. */
	assert_int_equal(us_encoder_begin(e, len, 0, &err), 0);
	assert_int_equal(us_encoder_write(e, image, len, &err), 0);
	us_encoder_free(e);
	free_blocks = 1000;
	free(image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_lz4_program_reads_it),
		cmocka_unit_test(test_every_flipped_byte_is_found),
		cmocka_unit_test(test_foreign_trailer),
		cmocka_unit_test(test_bomb),
		cmocka_unit_test(test_trailer_fields),
		cmocka_unit_test(test_trailer_values),
		cmocka_unit_test(test_foreign_frames),
		cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_buffer),
		cmocka_unit_test(test_times),
		cmocka_unit_test(test_disk_fills_up),
	};
	return cmocka_run_group_tests(tests, open_spool, close_spool);
}
