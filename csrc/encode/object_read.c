/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Object -> image: the reverse of object.c, for bytes that nobody vouches for.
 * The states follow the layout: frame header (kept whole until LZ4F can tell the
 * content size), frame, trailer. Every byte of the frame goes through SHA-256;
 * what follows it is kept, at most US_TRAILER_LEN_MAX bytes, and must be exactly
 * one trailer frame.
 */
#include "encode.h"

#include <lz4frame.h>
#include <openssl/evp.h>
#include <string.h>

#include "../base/alloc.h"

#define OUT_LEN ((size_t)256 * 1024)
#define HEADER_LEN_MAX LZ4F_HEADER_SIZE_MAX

enum stage { STAGE_HEADER, STAGE_FRAME, STAGE_TRAILER };

struct us_decoder {
	us_decode_fn *fn;
	void *arg;
	uint64_t image_len_max;
	LZ4F_dctx *lz4;
	EVP_MD_CTX *sha;
	enum stage stage;
	uint8_t header[HEADER_LEN_MAX];
	size_t header_len;
	uint64_t content_len, decoded_len;
	uint8_t *out;
	uint8_t *tail;
	size_t tail_len;
	int sha_failed;
};

int32_t us_decoder_new(us_decode_fn *fn, void *arg, uint64_t image_len_max,
		       struct us_decoder **ret_decoder, struct us_error *err)
{
	struct us_decoder *d = us_alloc_zero(sizeof(*d));
	if (!d) {
		return us_fail_nomem(err);
	}
	d->fn = fn;
	d->out = us_alloc(OUT_LEN);
	d->tail = us_alloc(US_TRAILER_LEN_MAX);
	d->sha = EVP_MD_CTX_new();
	if (!d->out || !d->tail || !d->sha ||
	    LZ4F_isError(LZ4F_createDecompressionContext(&d->lz4, LZ4F_VERSION))) {
		us_decoder_free(d);
		return us_fail_nomem(err);
	}
	us_decoder_reset(d, arg, image_len_max);
	*ret_decoder = d;
	return 0;
}

void us_decoder_reset(struct us_decoder *d, void *arg, uint64_t image_len_max)
{
	LZ4F_resetDecompressionContext(d->lz4);
	d->arg = arg;
	d->image_len_max = image_len_max;
	d->stage = STAGE_HEADER;
	d->header_len = d->tail_len = 0;
	d->content_len = d->decoded_len = 0;
	d->sha_failed = 0;
}

void us_decoder_free(struct us_decoder *d)
{
	if (!d) {
		return;
	}
	(void)LZ4F_freeDecompressionContext(d->lz4); /* accepts NULL; the frame is done with */
	EVP_MD_CTX_free(d->sha);
	us_free(d->out);
	us_free(d->tail);
	us_free(d);
}

static int32_t fail_frame(struct us_error *err, const char *why)
{
	return us_fail(err, US_E_OBJECT, "the object's LZ4 frame is damaged: %s", why);
}

/* Decodes from DATA until the frame ends or DATA does; RET_USED bytes went in. */
static int32_t decode(struct us_decoder *d, const uint8_t *data, size_t data_len, size_t *ret_used,
		      struct us_error *err)
{
	size_t used = 0;
	for (;;) {
		size_t in_len = data_len - used;
		size_t out_len = OUT_LEN;
		size_t rc = LZ4F_decompress(d->lz4, d->out, &out_len, data + used, &in_len, NULL);
		if (LZ4F_isError(rc)) {
			return fail_frame(err, LZ4F_getErrorName(rc));
		}
		used += in_len;
		d->decoded_len += out_len;
		if (d->decoded_len > d->content_len) {
			return fail_frame(err, "it holds more than it says");
		}
		if (out_len > 0) {
			int32_t fn_rc = d->fn(d->arg, d->out, out_len, err);
			if (fn_rc) {
				return fn_rc;
			}
		}
		if (rc == 0) {
			d->stage = STAGE_TRAILER;
			break;
		}
		if (out_len == 0 && in_len == 0) {
			break;
		}
	}
	d->sha_failed |= !EVP_DigestUpdate(d->sha, data, used);
	*ret_used = used;
	return 0;
}

/* The header is complete as soon as LZ4F can read it from what is there. */
static int32_t start_frame(struct us_decoder *d, struct us_error *err)
{
	if (d->header_len < LZ4F_MIN_SIZE_TO_KNOW_HEADER_LENGTH ||
	    LZ4F_headerSize(d->header, d->header_len) > d->header_len) {
		if (d->header_len >= LZ4F_MIN_SIZE_TO_KNOW_HEADER_LENGTH &&
		    LZ4F_isError(LZ4F_headerSize(d->header, d->header_len))) {
			return fail_frame(err, "no LZ4 frame at its start");
		}
		return 0;
	}
	LZ4F_frameInfo_t info;
	size_t len = d->header_len;
	size_t rc = LZ4F_getFrameInfo(d->lz4, &info, d->header, &len);
	if (LZ4F_isError(rc)) {
		return fail_frame(err, LZ4F_getErrorName(rc));
	}
	if (info.frameType != LZ4F_frame || info.contentSize == 0 ||
	    info.contentChecksumFlag != LZ4F_contentChecksumEnabled) {
		return fail_frame(err, "content size or checksum is missing");
	}
	if (info.contentSize > d->image_len_max) {
		return us_fail(err, US_E_OBJECT,
			       "the object says it holds %llu bytes; at most %llu are possible",
			       (unsigned long long)info.contentSize,
			       (unsigned long long)d->image_len_max);
	}
	d->content_len = info.contentSize;
	d->stage = STAGE_FRAME;
	if (!EVP_DigestInit_ex(d->sha, EVP_sha256(), NULL)) {
		return us_fail_nomem(err);
	}
	d->sha_failed |= !EVP_DigestUpdate(d->sha, d->header, len);
	return 0;
}

int32_t us_decoder_write(struct us_decoder *d, const uint8_t *data, size_t data_len,
			 struct us_error *err)
{
	while (d->stage == STAGE_HEADER && data_len > 0) {
		/* One byte at a time: nothing but the header is swallowed here. */
		d->header[d->header_len++] = *data++;
		data_len--;
		int32_t rc = start_frame(d, err);
		if (rc) {
			return rc;
		}
		if (d->stage == STAGE_HEADER &&
		    d->header_len == HEADER_LEN_MAX) { /* unreached: no header is longer */
			return fail_frame(err, "no LZ4 frame at its start");
		}
	}
	if (d->stage == STAGE_FRAME && data_len > 0) {
		size_t used = 0;
		int32_t rc = decode(d, data, data_len, &used, err);
		if (rc) {
			return rc;
		}
		data += used;
		data_len -= used;
	}
	if (data_len == 0) {
		return 0;
	}
	if (data_len > US_TRAILER_LEN_MAX - d->tail_len) {
		return us_fail(err, US_E_OBJECT, "the object goes on after its trailer");
	}
	memcpy(d->tail + d->tail_len, data, data_len);
	d->tail_len += data_len;
	return 0;
}

int32_t us_decoder_end(struct us_decoder *d, struct us_trailer *ret_trailer, struct us_error *err)
{
	if (d->stage != STAGE_TRAILER) {
		return us_fail(err, US_E_OBJECT, "the object is cut off inside its LZ4 frame");
	}
	size_t frame_len = 0;
	int32_t rc = us_trailer_parse(d->tail, d->tail_len, ret_trailer, &frame_len, err);
	if (rc) {
		return rc;
	}
	if (frame_len != d->tail_len) {
		return us_fail(err, US_E_OBJECT, "foreign bytes between frame and trailer");
	}
	uint8_t digest[32];
	d->sha_failed |= !EVP_DigestFinal_ex(d->sha, digest, NULL);
	if (d->sha_failed) { /* unreached: it only computes */
		return us_fail(err, US_E_IO, "SHA-256 failed");
	}
	if (memcmp(digest, ret_trailer->lz4_sha256, sizeof(digest)) != 0) {
		return us_fail(err, US_E_OBJECT,
			       "the object's SHA-256 is not the one in its trailer");
	}
	if (d->decoded_len != ret_trailer->database_len) {
		return us_fail(err, US_E_OBJECT,
			       "the object holds %llu bytes, its trailer says %llu",
			       (unsigned long long)d->decoded_len,
			       (unsigned long long)ret_trailer->database_len);
	}
	return 0;
}
