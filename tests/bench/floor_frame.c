/* SPDX-License-Identifier: Apache-2.0 */
/* One LZ4 frame of one image, in pieces of a block, as an encoder gets them. */
#include "bench.h"

#include <lz4frame.h>

#define PIECE_LEN ((size_t)64 * 1024)

struct floor_frame {
	LZ4F_cctx *lz4;
};

static const LZ4F_preferences_t preferences = {
	.frameInfo = {
		.blockSizeID = LZ4F_max64KB,
		.blockMode = LZ4F_blockIndependent,
		.contentChecksumFlag = LZ4F_contentChecksumEnabled,
	},
	.autoFlush = 1,
};

struct floor_frame *floor_frame_new(void)
{
	struct floor_frame *f = malloc(sizeof(*f));
	if (!f || LZ4F_isError(LZ4F_createCompressionContext(&f->lz4, LZ4F_VERSION))) {
		die("LZ4F", "cannot be started");
	}
	return f;
}

size_t floor_frame(struct floor_frame *f, const uint8_t *image, size_t image_len,
		   uint8_t *ret_frame, size_t cap)
{
	LZ4F_preferences_t prefs = preferences;
	prefs.frameInfo.contentSize = image_len;
	size_t len = LZ4F_compressBegin(f->lz4, ret_frame, cap, &prefs);
	for (size_t at = 0; at < image_len && !LZ4F_isError(len);) {
		size_t piece = image_len - at < PIECE_LEN ? image_len - at : PIECE_LEN;
		size_t n = LZ4F_compressUpdate(f->lz4, ret_frame + len, cap - len, image + at,
					       piece, NULL);
		len = LZ4F_isError(n) ? n : len + n;
		at += piece;
	}
	size_t n = LZ4F_isError(len) ? len
				     : LZ4F_compressEnd(f->lz4, ret_frame + len, cap - len, NULL);
	if (LZ4F_isError(n)) {
		die("LZ4F", LZ4F_getErrorName(n));
	}
	return len + n;
}
