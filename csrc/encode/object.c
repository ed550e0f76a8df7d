/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image -> object. One LZ4 frame, made in blocks of 64 KiB (LZ4 Frame Format
 * 1.6.1: independent blocks, content size, content checksum), then the trailer
 * (trailer.c). Both SHA-256 are computed over the bytes as they are made, while
 * they are in the cache; that of the whole object continues from that of the
 * frame.
 *
 * An object goes either to one allocation of the worst-case size, which is cut
 * at the end, or to an unlinked file in the spool directory through one block of
 * scratch; memory does not depend on the image in the second case.
 */
#include "encode.h"

#include <lz4frame.h>
#include <openssl/evp.h>
#include <string.h>
#include <unistd.h>

#include "../base/alloc.h"
#include "../base/spool.h"
#include "trailer.h"

/* One piece handed to LZ4F_compressUpdate. */
#define PIECE_LEN ((size_t)64 * 1024)
/* Frame header 19, end mark 4, content checksum 4, and room for one block header. */
#define FRAME_OVERHEAD 64

struct us_encoder {
	LZ4F_cctx *lz4;
	EVP_MD_CTX *sha;
	EVP_MD_CTX *sha_frame;
	int spool_fd;
	uint8_t *scratch; /* file objects: one compressed piece */
	size_t scratch_cap;
	/* the object being made */
	struct us_object object;
	uint64_t cap; /* of object.data */
	uint8_t *buf; /* for the next object, of BUF_CAP bytes; or NULL */
	uint64_t buf_cap;
	uint64_t image_len, written;
	int sha_failed;
};

static LZ4F_preferences_t preferences(uint64_t image_len)
{
	return (LZ4F_preferences_t){
		.frameInfo = {
			.blockSizeID = LZ4F_max64KB,
			.blockMode = LZ4F_blockIndependent,
			.contentChecksumFlag = LZ4F_contentChecksumEnabled,
			.contentSize = image_len,
		},
		.autoFlush = 1,
	};
}

void us_object_done(struct us_object *object)
{
	us_free(object->data);
	if (object->fd >= 0) {
		(void)close(object->fd); /* unlinked: its bytes are not wanted any more */
	}
	*object = (struct us_object){ .fd = -1 };
}

int32_t us_encoder_new(int spool_fd, struct us_encoder **ret_encoder, struct us_error *err)
{
	struct us_encoder *e = us_alloc_zero(sizeof(*e));
	if (!e) {
		return us_fail_nomem(err);
	}
	e->spool_fd = spool_fd;
	e->object.fd = -1;
	LZ4F_preferences_t prefs = preferences(0);
	e->scratch_cap = LZ4F_compressBound(PIECE_LEN, &prefs) + FRAME_OVERHEAD;
	e->scratch = us_alloc(e->scratch_cap);
	e->sha = EVP_MD_CTX_new();
	e->sha_frame = EVP_MD_CTX_new();
	if (!e->scratch || !e->sha || !e->sha_frame ||
	    LZ4F_isError(LZ4F_createCompressionContext(&e->lz4, LZ4F_VERSION))) {
		us_encoder_free(e);
		return us_fail_nomem(err);
	}
	*ret_encoder = e;
	return 0;
}

void us_encoder_free(struct us_encoder *e)
{
	if (!e) {
		return;
	}
	us_object_done(&e->object);
	us_free(e->buf);
	(void)LZ4F_freeCompressionContext(e->lz4); /* always 0; accepts NULL */
	EVP_MD_CTX_free(e->sha);
	EVP_MD_CTX_free(e->sha_frame);
	us_free(e->scratch);
	us_free(e);
}

void us_encoder_use(struct us_encoder *e, uint8_t *buf, uint64_t cap)
{
	us_free(e->buf);
	e->buf = buf;
	e->buf_cap = cap;
}

void us_encoder_drop(struct us_encoder *e)
{
	us_object_done(&e->object);
}

uint64_t us_encode_bound(uint64_t image_len)
{
	/* An incompressible block is stored: its bytes and a header of 4. */
	uint64_t bound =
		image_len + (image_len / PIECE_LEN + 1) * 4 + FRAME_OVERHEAD + US_TRAILER_LEN_MAX;
	return bound < image_len ? UINT64_MAX : bound;
}

/* Takes the bytes just made: they are at DATA, which is the object's own memory
 * or the scratch. */
static int32_t take(struct us_encoder *e, const uint8_t *data, size_t data_len,
		    struct us_error *err)
{
	e->sha_failed |= !EVP_DigestUpdate(e->sha, data, data_len);
	if (e->object.fd >= 0) {
		int32_t rc = us_spool_write(e->object.fd, data, data_len, err);
		if (rc) {
			return rc;
		}
	}
	e->object.len += data_len;
	return 0;
}

/* Where the next bytes may be made. */
static uint8_t *room(struct us_encoder *e, size_t *ret_cap)
{
	if (e->object.fd >= 0) {
		*ret_cap = e->scratch_cap;
		return e->scratch;
	}
	*ret_cap = (size_t)(e->cap - e->object.len);
	return e->object.data + e->object.len;
}

static int32_t take_lz4(struct us_encoder *e, const uint8_t *data, size_t lz4_rc,
			struct us_error *err)
{
	if (LZ4F_isError(lz4_rc)) { /* unreached: there is room for the worst case */
		return us_fail(err, US_E_IO, "LZ4 failed: %s", LZ4F_getErrorName(lz4_rc));
	}
	return take(e, data, lz4_rc, err);
}

int32_t us_encoder_begin(struct us_encoder *e, uint64_t image_len, int to_file,
			 struct us_error *err)
{
	us_object_done(&e->object);
	e->image_len = image_len;
	e->written = 0;
	e->sha_failed = 0;
	if (to_file) {
		int32_t fd = us_spool_file(e->spool_fd, err);
		if (fd < 0) {
			return fd;
		}
		e->object.fd = fd;
	} else if (e->buf) {
		e->object.data = e->buf;
		e->object.cap = e->cap = e->buf_cap;
		e->buf = NULL;
	} else {
		e->cap = us_encode_bound(image_len);
		e->object.data = e->cap < SIZE_MAX ? us_alloc((size_t)e->cap) : NULL;
		if (!e->object.data) {
			return us_fail_nomem(err);
		}
	}
	if (!EVP_DigestInit_ex(e->sha, EVP_sha256(), NULL)) {
		return us_fail(err, US_E_IO, "SHA-256 is not available");
	}
	size_t cap;
	uint8_t *at = room(e, &cap);
	LZ4F_preferences_t prefs = preferences(image_len);
	return take_lz4(e, at, LZ4F_compressBegin(e->lz4, at, cap, &prefs), err);
}

int32_t us_encoder_write(struct us_encoder *e, const uint8_t *data, size_t data_len,
			 struct us_error *err)
{
	if (data_len > e->image_len - e->written) {
		return us_fail(err, US_E_ARG, "image longer than the %llu bytes announced",
			       (unsigned long long)e->image_len);
	}
	e->written += data_len;
	while (data_len > 0) {
		size_t piece_len = data_len < PIECE_LEN ? data_len : PIECE_LEN;
		size_t cap;
		uint8_t *at = room(e, &cap);
		int32_t rc = take_lz4(
			e, at, LZ4F_compressUpdate(e->lz4, at, cap, data, piece_len, NULL), err);
		if (rc) {
			return rc;
		}
		data += piece_len;
		data_len -= piece_len;
	}
	return 0;
}

static int32_t end_frame(struct us_encoder *e, struct us_error *err)
{
	size_t cap;
	uint8_t *at = room(e, &cap);
	int32_t rc = take_lz4(e, at, LZ4F_compressEnd(e->lz4, at, cap, NULL), err);
	if (rc) {
		return rc;
	}
	e->object.lz4_len = e->object.len;
	if (!EVP_MD_CTX_copy_ex(e->sha_frame, e->sha)) {
		return us_fail_nomem(err);
	}
	e->sha_failed |= !EVP_DigestFinal_ex(e->sha_frame, e->object.lz4_sha256, NULL);
	return 0;
}

int32_t us_encoder_end(struct us_encoder *e, struct us_trailer *trailer,
		       struct us_object *ret_object, struct us_error *err)
{
	if (e->written != e->image_len) {
		return us_fail(err, US_E_ARG, "image of %llu bytes where %llu were announced",
			       (unsigned long long)e->written, (unsigned long long)e->image_len);
	}
	int32_t rc = end_frame(e, err);
	if (rc) {
		return rc;
	}
	memcpy(trailer->lz4_sha256, e->object.lz4_sha256, sizeof(trailer->lz4_sha256));
	size_t cap;
	uint8_t *at = room(e, &cap);
	size_t trailer_len;
	rc = us_trailer_format(trailer, at, cap, &trailer_len, err);
	if (!rc) {
		rc = take(e, at, trailer_len, err);
	}
	if (rc) {
		return rc;
	}
	e->sha_failed |= !EVP_DigestFinal_ex(e->sha, e->object.sha256, NULL);
	if (e->sha_failed) { /* unreached: it only computes */
		return us_fail(err, US_E_IO, "SHA-256 failed");
	}
	if (e->object.data && e->object.cap == 0) {
		uint8_t *cut = us_realloc(e->object.data, (size_t)e->object.len);
		e->object.data = cut ? cut : e->object.data;
	}
	*ret_object = e->object;
	e->object = (struct us_object){ .fd = -1 };
	return 0;
}
