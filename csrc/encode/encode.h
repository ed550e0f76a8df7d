/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_ENCODE_ENCODE_H
#define US_ENCODE_ENCODE_H

#include <stddef.h>

#include "../base/error.h"

/*
 * Image -> object bytes and back. An object is one LZ4 frame (content size,
 * independent blocks, content checksum) of the whole image, then one LZ4
 * skippable frame with the trailer; docs/formats.md. The one place that knows a
 * format: `ltx` will stand beside it.
 */

#define US_TRAILER_PATH_LEN_MAX ((size_t)3 * 4095)
/* A trailer frame (header, JSON, newline, hex SHA-256) is never longer. */
#define US_TRAILER_LEN_MAX 16384

struct us_trailer {
	char path[US_TRAILER_PATH_LEN_MAX + 1]; /* source, escaped */
	int64_t snapshot_ns;
	uint64_t database_len;
	uint32_t page_size;
	uint32_t change_counter;
	uint32_t mode; /* permission bits, 0..07777 */
	uint32_t uid, gid;
	uint8_t lz4_sha256[32]; /* set by the encoder and the decoder */
};

/* An encoded object, in memory or in a spool file. */
struct us_object {
	uint8_t *data; /* NULL if it is in FD */
	int fd;	       /* -1 if it is in DATA; an unlinked file, readable from offset 0 */
	uint64_t len;
	uint64_t cap;		/* of DATA, if it is a buffer of us_encoder_use; else 0 */
	uint64_t lz4_len;	/* of the first frame */
	uint8_t sha256[32];	/* of the whole object */
	uint8_t lz4_sha256[32]; /* of the first frame */
};
void us_object_done(struct us_object *object); /* frees or closes; storage stays the caller's */

struct us_encoder;

/* One encoder per thread. SPOOL_FD (borrowed) is the directory for objects that
 * are kept in files. Freed with us_encoder_free. */
int32_t us_encoder_new(int spool_fd, struct us_encoder **ret_encoder, struct us_error *err);
void us_encoder_free(struct us_encoder *encoder);

/* Worst-case length of the object of an image; saturates. */
uint64_t us_encode_bound(uint64_t image_len);

/* Starts an object (and drops one begun before). TO_FILE: keep it in a spool file,
 * else in one allocation of us_encode_bound bytes, cut to size at the end, or in the
 * buffer of us_encoder_use. */
int32_t us_encoder_begin(struct us_encoder *encoder, uint64_t image_len, int to_file,
			 struct us_error *err);
/* Makes the next object in BUF (CAP bytes of us_alloc, at least us_encode_bound of it),
 * which is the encoder's from now on and then the object's. */
void us_encoder_use(struct us_encoder *encoder, uint8_t *buf, uint64_t cap);
/* Gives up the object begun, and its memory. */
void us_encoder_drop(struct us_encoder *encoder);
int32_t us_encoder_write(struct us_encoder *encoder, const uint8_t *data, size_t data_len,
			 struct us_error *err);
/* Ends it: the image must be complete. Sets TRAILER->lz4_sha256; the caller owns
 * RET_OBJECT (us_object_done). */
int32_t us_encoder_end(struct us_encoder *encoder, struct us_trailer *trailer,
		       struct us_object *ret_object, struct us_error *err);

/*
 * Parses the trailer at the end of the LEN bytes at TAIL: the last bytes of an
 * object, or all of it; US_TRAILER_LEN_MAX are always enough. RET_TRAILER_LEN
 * (may be NULL): bytes of the trailer frame. US_E_OBJECT if there is none or it
 * is not true to its own hash.
 */
int32_t us_trailer_parse(const uint8_t *tail, size_t len, struct us_trailer *ret_trailer,
			 size_t *ret_trailer_len, struct us_error *err);

/* Receives decoded image bytes in order. Non-zero stops with that code. */
typedef int32_t us_decode_fn(void *arg, const uint8_t *data, size_t data_len, struct us_error *err);

struct us_decoder;

/*
 * Decodes one object pushed in pieces of any size. Never gives out more bytes
 * than IMAGE_LEN_MAX nor than the frame's own content size. Nothing that FN got
 * is good before us_decoder_end has returned 0.
 */
int32_t us_decoder_new(us_decode_fn *fn, void *arg, uint64_t image_len_max,
		       struct us_decoder **ret_decoder, struct us_error *err);
void us_decoder_free(struct us_decoder *decoder);
/* Begins another object, whatever became of the one before. */
void us_decoder_reset(struct us_decoder *decoder, void *arg, uint64_t image_len_max);
int32_t us_decoder_write(struct us_decoder *decoder, const uint8_t *data, size_t data_len,
			 struct us_error *err);
/* Checks what is left: frame complete and its checksum right, trailer present,
 * sizes and SHA-256 equal. US_E_OBJECT else. RET_TRAILER is filled on success. */
int32_t us_decoder_end(struct us_decoder *decoder, struct us_trailer *ret_trailer,
		       struct us_error *err);

#endif
