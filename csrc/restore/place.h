/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_PLACE_H
#define US_RESTORE_PLACE_H

#include "output.h"

/*
 * Undoes or completes what a killed restore of this output left; cheap if there
 * is nothing. If a database was created under the name in between, nothing is
 * touched: US_E_EXISTS, or 0 with FORCE (us_place then decides). The directory
 * must be open.
 */
int32_t us_place_recover(const struct us_output *o, int force, const _Atomic uint32_t *cancel,
			 struct us_error *err);

/* Whether the output's name is free, and nothing waits to be brought back under it: then
 * us_place may be the first to look closer. */
int us_place_is_free(const struct us_output *o);

/*
 * Puts the temporary file, complete and durable, under the output's name; what
 * is there (FORCE, or an empty file) goes. Durable when it returns 0; with DEFER_SYNC it
 * may return 1, for a name that was free: durable only after the caller's syncfs. After
 * any failure the output is what it was.
 */
int32_t us_place(const struct us_output *o, int force, int defer_sync,
		 const _Atomic uint32_t *cancel, struct us_error *err);

#endif
