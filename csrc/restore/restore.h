/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_RESTORE_RESTORE_H
#define US_RESTORE_RESTORE_H

#include "../discover/template.h"
#include "../store/store.h"
#include "choose.h"
#include "output.h"

/* What a restore works with; everything is borrowed. */
struct us_restore_env {
	struct us_store *store;
	const struct us_template *tmpl;
	const char *tree;    /* below it no link is followed; NULL: the pattern's prefix */
	uint64_t memory_len; /* that a large download may take, about */
	struct us_made_dirs *made_dirs; /* of a fleet; may be NULL */
	int fallback;                   /* 1: an older good object in the place of a bad one */
	const _Atomic uint32_t *cancel; /* looked at between pieces; may be NULL */
};

/*
 * Restores one database; the contract is that of us_restore in ultrasimple.h. OPTIONS
 * are checked but for the output path. RET is filled on success only, but for its
 * struct_size. RET_BAD (may be NULL): with fallback, the failure of the object that an
 * older one stands in for, else code 0. Any number of threads may restore different
 * databases through one store.
 */
int32_t us_restore_one(const struct us_restore_env *env, const struct us_restore_options *options,
		       struct us_restore_result *ret, struct us_error *ret_bad,
		       struct us_error *err);

/* Downloads and checks what us_restore_one would choose for PATH, into the file FD. */
int32_t us_verify_one(const struct us_restore_env *env, const char *path, uint32_t integrity_check,
		      int fd, struct us_choice *ret_choice, struct us_trailer *ret_trailer,
		      struct us_error *err);

/* Owner (as root) and mode of TRAILER to the temporary file of OUTPUT, and what follows
 * from them to directories that were made. */
int32_t us_restore_set_mode(const struct us_output *output, const struct us_trailer *trailer,
			    struct us_error *err);

/* What stands in the way of OUTPUT, before the network is asked. RET_SKIP: it is there,
 * and US_RESTORE_IF_DB_NOT_EXISTS. FLAGS: US_RESTORE_*. */
int32_t us_restore_check_output(const struct us_output *output, uint32_t flags,
				const _Atomic uint32_t *cancel, int *ret_skip,
				struct us_error *err);

#endif
