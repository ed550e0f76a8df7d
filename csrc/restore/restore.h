/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_RESTORE_H
#define US_RESTORE_RESTORE_H

#include "../discover/template.h"
#include "../store/store.h"

/*
 * Restores one database; the contract is that of us_restore in ultrasimple.h.
 * OPTIONS are checked but for the output path. CANCEL (may be NULL) is looked at
 * between pieces. RET is filled on success only, but for its struct_size. Any
 * number of threads may restore different databases through one store.
 */
int32_t us_restore_one(struct us_store *store, const struct us_template *tmpl,
		       const struct us_restore_options *options, const _Atomic uint32_t *cancel,
		       struct us_restore_result *ret, struct us_error *err);

#endif
