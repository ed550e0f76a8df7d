/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects from a target, and what is made of them. The first byte says what the rest is,
 * the second how long the pieces are in which the object arrives:
 *
 *	0  an object
 *	1  length, LZ4 frame, JSON line: both hashes are put in, so that a line reaches the
 *	   parser. In the line, byte 1 stands for the frame's hash, 2 for the image's length
 *	2  the same with an image that LZ4 compresses
 *	3  length, image, then where to change which bits of the object made of it: any
 *	   change is noticed
 *
 * What is accepted is what LZ4 and SHA-256 say, however it was cut into pieces.
 */
#include "fuzz.h"

#include <lz4frame.h>
#include <openssl/sha.h>

#include "../../csrc/base/bytes.h"
#include "../../csrc/base/hex.h"
#include "../../csrc/encode/trailer.h"

#define IMAGE_LEN_MAX ((size_t)1 << 20)
#define OBJECT_LEN_MAX ((size_t)1 << 18)

struct object {
	uint8_t data[OBJECT_LEN_MAX];
	size_t len;
};

struct image {
	uint8_t data[IMAGE_LEN_MAX];
	size_t len;
};

static int32_t take(void *arg, const uint8_t *data, size_t len, struct us_error *err)
{
	struct image *image = arg;
	(void)err;
	require(len > 0 && len <= IMAGE_LEN_MAX - image->len);
	memcpy(image->data + image->len, data, len);
	image->len += len;
	return 0;
}

static int32_t decode(const struct object *object, size_t step, struct image *ret_image,
		      struct us_trailer *ret_trailer)
{
	static struct us_decoder *decoder; /* reused, whatever became of the one before */
	struct us_error err = US_ERROR_INIT;
	require(decoder || us_decoder_new(take, NULL, 0, &decoder, &err) == 0);
	us_decoder_reset(decoder, ret_image, IMAGE_LEN_MAX);
	ret_image->len = 0;
	memset(ret_trailer, 0, sizeof(*ret_trailer));
	int32_t rc = 0;
	for (size_t at = 0; at < object->len && rc == 0;) {
		size_t len = object->len - at < step ? object->len - at : step;
		uint8_t *piece = malloc(len);
		require(piece);
		memcpy(piece, object->data + at, len);
		rc = us_decoder_write(decoder, piece, len, &err);
		free(piece);
		at += len;
	}
	rc = rc ? rc : us_decoder_end(decoder, ret_trailer, &err);
	if (rc) {
		require(rc == US_E_OBJECT);
		require_reason(rc, &err);
	}
	return rc;
}

static int is_same(const struct us_trailer *a, const struct us_trailer *b)
{
	return strcmp(a->path, b->path) == 0 && a->snapshot_ns == b->snapshot_ns &&
	       a->database_len == b->database_len && a->page_size == b->page_size &&
	       a->change_counter == b->change_counter && a->mode == b->mode && a->uid == b->uid &&
	       a->gid == b->gid && memcmp(a->lz4_sha256, b->lz4_sha256, 32) == 0;
}

/* What is accepted, by LZ4 and OpenSSL alone. */
static void check_frame(const struct object *object, const struct image *image,
			const struct us_trailer *trailer)
{
	LZ4F_dctx *lz4;
	static uint8_t out[IMAGE_LEN_MAX];
	size_t in_len = object->len, out_len = sizeof(out);
	require(!LZ4F_isError(LZ4F_createDecompressionContext(&lz4, LZ4F_VERSION)));
	require(LZ4F_decompress(lz4, out, &out_len, object->data, &in_len, NULL) == 0);
	(void)LZ4F_freeDecompressionContext(lz4);
	require(out_len == image->len && memcmp(out, image->data, out_len) == 0);
	require(trailer->database_len == out_len);
	uint8_t digest[32];
	char hex[65];
	require(memcmp(SHA256(object->data, in_len, digest), trailer->lz4_sha256, 32) == 0);
	const uint8_t *frame = object->data + in_len;
	size_t line_len = object->len - in_len - 8 - 1 - 64;
	require(object->len - in_len > 8 + 1 + 64 && us_get_le32(frame) == 0x184D2A50);
	require(us_get_le32(frame + 4) == line_len + 1 + 64 && frame[8 + line_len] == '\n');
	us_hex(SHA256(frame + 8, line_len, digest), 32, hex);
	require(memcmp(hex, frame + 8 + line_len + 1, 64) == 0);
}

/* A trailer is found from the end, and what it says can be written again. */
static void check_trailer(const struct object *object, const struct us_trailer *trailer)
{
	struct us_error err = US_ERROR_INIT;
	struct us_trailer again;
	size_t len = object->len < US_TRAILER_LEN_MAX ? object->len : US_TRAILER_LEN_MAX;
	uint8_t written[US_TRAILER_LEN_MAX];
	require(us_trailer_parse(object->data + object->len - len, len, &again, NULL, &err) == 0);
	require(is_same(trailer, &again));
	require(trailer->mode <= 07777 && trailer->snapshot_ns >= 0);
	if (!is_one_line(trailer->path) || strchr(trailer->path, '\\')) {
		return; /* nothing that an escaped path can be */
	}
	int32_t rc = us_trailer_format(trailer, written, sizeof(written), &len, &err);
	if (rc) {
		require(rc == US_E_NAME);
		return;
	}
	require(us_trailer_parse(written, len, &again, NULL, &err) == 0);
	require(is_same(trailer, &again));
}

static int32_t check_object(const struct object *object, size_t step)
{
	static struct image image, in_pieces;
	struct us_trailer trailer, again;
	int32_t rc = decode(object, OBJECT_LEN_MAX, &image, &trailer);
	require(rc == decode(object, step, &in_pieces, &again));
	if (rc) {
		return rc;
	}
	require(is_same(&trailer, &again) && image.len == in_pieces.len &&
		memcmp(image.data, in_pieces.data, image.len) == 0);
	check_frame(object, &image, &trailer);
	check_trailer(object, &trailer);
	return 0;
}

static void append(struct object *object, const void *data, size_t len)
{
	if (len <= OBJECT_LEN_MAX - object->len) {
		memcpy(object->data + object->len, data, len);
		object->len += len;
	}
}

/* The trailer's frame around what is left of IN. */
static void append_trailer(struct object *object, struct input *in, size_t image_len)
{
	uint8_t digest[32], header[8];
	char hex[65], number[24];
	size_t header_at = object->len;
	us_hex(SHA256(object->data, object->len, digest), 32, hex);
	(void)snprintf(number, sizeof(number), "%zu", image_len);
	append(object, "\0\0\0\0\0\0\0\0", 8);
	size_t line_at = object->len;
	for (; in->left > 0; in->at++, in->left--) {
		if (*in->at <= 2 && *in->at > 0) {
			append(object, *in->at == 1 ? hex : number,
			       *in->at == 1 ? 64 : strlen(number));
		} else {
			append(object, in->at, 1);
		}
	}
	us_hex(SHA256(object->data + line_at, object->len - line_at, digest), 32, hex);
	us_put_le32(header, 0x184D2A50);
	us_put_le32(header + 4, (uint32_t)(object->len - line_at + 1 + 64));
	memcpy(object->data + header_at, header, 8);
	append(object, "\n", 1);
	append(object, hex, 64);
}

static size_t append_compressed(struct object *object, struct input *in)
{
	uint8_t options = input_byte(in);
	uint16_t len = input_u16(in);
	size_t image_len;
	char *image = input_bytes(in, len, &image_len);
	LZ4F_preferences_t preferences = {
		.frameInfo = { .blockSizeID = (LZ4F_blockSizeID_t)(4 + (options & 3)),
			       .blockMode = options & 4 ? LZ4F_blockLinked : LZ4F_blockIndependent,
			       .contentChecksumFlag = (LZ4F_contentChecksum_t) !(options & 8),
			       .blockChecksumFlag = (LZ4F_blockChecksum_t)((options & 16) != 0),
			       .contentSize = options & 32 ? 0 : image_len },
	};
	size_t done =
		LZ4F_compressFrame(object->data, OBJECT_LEN_MAX, image, image_len, &preferences);
	require(!LZ4F_isError(done));
	object->len = done;
	free(image);
	return image_len;
}

/* Through the encoder and back; then with BITS changed. */
static void check_encoder(struct input *in, size_t step, struct object *object)
{
	static struct us_encoder *encoder;
	struct us_error err = US_ERROR_INIT;
	struct us_object made;
	static struct image image;
	struct us_trailer trailer = { .path = "/data/%FF\"t1.db", .mode = 0640, .page_size = 512 };
	struct us_trailer back;
	uint16_t len = input_u16(in);
	size_t image_len;
	char *bytes = input_bytes(in, len, &image_len);
	require(encoder || us_encoder_new(-1, &encoder, &err) == 0);
	trailer.database_len = image_len;
	trailer.snapshot_ns = input_u16(in);
	require(us_encoder_begin(encoder, image_len, 0, &err) == 0);
	for (size_t at = 0; at < image_len; at += step) {
		size_t piece = image_len - at < step ? image_len - at : step;
		require(us_encoder_write(encoder, (uint8_t *)bytes + at, piece, &err) == 0);
	}
	require(us_encoder_end(encoder, &trailer, &made, &err) == 0);
	require(made.len <= us_encode_bound(image_len));
	object->len = 0;
	append(object, made.data, (size_t)made.len);
	require(object->len == made.len);
	us_object_done(&made);
	int32_t rc = check_object(object, step);
	require((rc == 0) == (image_len > 0)); /* no database is empty */
	if (rc == 0) {
		require(decode(object, step, &image, &back) == 0 && is_same(&trailer, &back));
		require(image.len == image_len && memcmp(image.data, bytes, image_len) == 0);
		size_t at = input_u16(in) % object->len;
		uint8_t bits = input_byte(in);
		object->data[at] ^= bits;
		require((check_object(object, step) == 0) == (bits == 0));
	}
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	static struct object object;
	struct input in = { data, data_len };
	uint8_t kind = input_byte(&in) & 3;
	size_t step = input_byte(&in) + 1u;
	object.len = 0;
	if (kind == 3) {
		check_encoder(&in, step, &object);
		return 0;
	}
	if (kind == 2) {
		append_trailer(&object, &in, append_compressed(&object, &in));
	} else if (kind == 1) {
		uint16_t len = input_u16(&in);
		size_t frame_len;
		char *frame = input_bytes(&in, len, &frame_len);
		append(&object, frame, frame_len);
		free(frame);
		append_trailer(&object, &in, frame_len);
	} else {
		append(&object, in.at, in.left);
	}
	(void)check_object(&object, step);
	return 0;
}
