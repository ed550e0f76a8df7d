/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_ENCODE_TRAILER_H
#define US_ENCODE_TRAILER_H

#include "encode.h"

/* Writes the trailer frame of TRAILER to RET (CAP bytes; US_TRAILER_LEN_MAX are
 * always enough). US_E_ARG if it does not fit. */
int32_t us_trailer_format(const struct us_trailer *trailer, uint8_t *ret, size_t cap,
			  size_t *ret_len, struct us_error *err);

#endif
