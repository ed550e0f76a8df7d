/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_READ_JOURNAL_H
#define US_READ_JOURNAL_H

#include "overlay.h"

/* What a hot journal says about the database before its transaction. */
struct us_journal {
	int rolled_back;       /* 0: the first header is not valid, nothing is undone */
	uint32_t page_size;    /* of the records */
	uint32_t page_count;   /* the database is cut or extended to this many pages */
	uint32_t page_highest; /* highest page that a record restores; 0: none */
};

/*
 * Reads a journal through WINDOW and puts the page versions that playback would
 * write into OVERLAY, sealed. DEFAULT_PAGE_SIZE is for journals that do not say
 * (SQLite before 3.5.8). Returns 0, US_E_IO, US_E_NOMEM, or US_E_UNSUPPORTED for
 * journals of more than 32 GiB.
 */
int32_t us_journal_scan(struct us_window *window, uint32_t default_page_size,
			struct us_overlay *overlay, struct us_journal *ret_journal,
			struct us_error *err);

/* SQLite's MAX_PATHNAME: a longer name counts as none. */
#define US_SUPER_NAME_MAX 512

/*
 * Whether the transaction of a hot journal is still open. A transaction over
 * several databases is committed when the super-journal that their journals
 * name is deleted: 1, no super-journal is named, or it exists; 0, it does not
 * (committed: the journal is void). Only the existence of the name is asked for;
 * nothing is opened, and a link in its place is not followed.
 *
 * Failure where that cannot be told from here: US_E_ACCESS (a directory that
 * cannot be searched, or that is not the one the name was made in: no database
 * of that name in it), US_E_CORRUPT (a link, or no absolute name), US_E_IO.
 * DIR_FD is the directory of the database, looked into as well.
 */
int32_t us_journal_is_open(const struct us_source *source, int dir_fd, const char *what,
			   struct us_error *err);

#endif
