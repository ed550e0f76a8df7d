/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The moment in which a restored database takes the place of another. A database
 * is a file and its side files (-wal, -shm, -journal), and no system call
 * replaces four names at once. So the order below keeps one promise at every
 * instant, through SIGKILL and power loss: under the database's name there is the
 * whole old database with its own side files, or nothing, or the whole new one
 * without any; never one with the side files of the other.
 *
 * NEW, DB and SIDE are the hidden names of output.c. "Sync" is fsync of the
 * directory. Steps, under the directory's flock and all of SQLite's locks on the
 * old database and its -shm:
 *
 *	 step				  an application sees	     the next restore
 *	1 rename temporary file to NEW	  old			     drops NEW
 *	2 link side files to SIDE, sync	  old			     drops SIDE, NEW
 *	3 rename database to DB, sync	  nothing (side files yet)   undoes
 *	4 unlink side files, sync	  nothing		     undoes
 *	5 rename NEW to database, sync	  new			     completes
 *	6 unlink DB, sync; unlink SIDE	  new			     completes
 *
 * Why the name is empty for a moment (3 to 5): renaming over it would need the
 * old side files gone first, and a kill at that instant would drop our locks and
 * show the old database without its WAL. With the database away first, nobody can
 * read anything wrong. An application that creates databases may then make an
 * empty one; SQLite unlinks the -wal or -journal it finds beside it. That is why
 * side files are linked in step 2 and not renamed in 4: our link keeps them. Step 5
 * does not replace (RENAME_NOREPLACE): such a database is seen, not overwritten. Nor
 * are its side files: step 4 renames each to the temporary file's name, which is
 * free by now, and unlinks it there if it is the one of step 2.
 *
 * What the next restore (or this one, after a failure) finds, and does:
 *
 *	no DB			 the SIDE links and NEW mean nothing: unlink them
 *	DB, database, no NEW	 step 5 was done: unlink DB, sync, SIDE
 *	DB, no database		 undo: link SIDE back to the side files, sync, rename DB
 *				 to database (no replace), sync, unlink SIDE and NEW
 *	DB, database, NEW	 somebody created one in between. An empty, unlocked file
 *				 goes, then undo. Else both are kept, and it is an error
 *				 that names them; with -force the one under the name is the
 *				 database to replace, and DB goes at the moment of placing
 *
 * Undo also stops at side files under the database's name that are not the old
 * ones. Each row leads to a state of the table or to nothing, so a kill during
 * recovery is just another one. DB goes before SIDE: a DB without its SIDE must
 * never be brought back.
 *
 * Where no file has the name there is nothing to undo: side files without a
 * database (FORCE only) are unlinked, sync, rename without replacing, sync.
 */
#include "place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Unlinks NAME if it is there. */
static int32_t drop(const struct us_output *o, const char *name, struct us_error *err)
{
	if (unlinkat(o->dir_fd, name, 0) && errno != ENOENT && errno != ENAMETOOLONG) {
		return us_fail_errno(err, errno, "cannot remove \"%s\" beside \"%s\"", name,
				     o->shown);
	}
	return 0;
}

static int32_t drop_sides(const struct us_output *o, struct us_error *err)
{
	int32_t rc = 0;
	for (int i = 0; i < US_SIDE_COUNT && !rc; i++) {
		rc = drop(o, o->side[i], err);
	}
	return rc ? rc : us_output_sync_dir(o, err);
}

static int is_same(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

/* Renames FROM to TO where nothing has that name. 0 or an errno. */
static int rename_free(const struct us_output *o, const char *from, const char *to)
{
	if (!renameat2(o->dir_fd, from, o->dir_fd, to, RENAME_NOREPLACE)) {
		return 0;
	}
	if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP) {
		return errno;
	}
	/* The file system cannot: in two steps; recovery knows one file with both names. */
	if (linkat(o->dir_fd, from, o->dir_fd, to, 0) || unlinkat(o->dir_fd, from, 0)) {
		return errno;
	}
	return 0;
}

/* ----------------------------------------------------------------- recovery */

/* What is there; each 0 or 1. */
struct scene {
	int db, new, side, name; /* DB, NEW, any SIDE, the database's name */
	struct stat db_st, new_st, name_st;
};

static int32_t look(const struct us_output *o, struct scene *ret, struct us_error *err)
{
	struct stat st;
	int32_t db = us_output_stat(o, o->before_db, &ret->db_st, err);
	int32_t new = db < 0 ? db : us_output_stat(o, o->before_new, &ret->new_st, err);
	int32_t name = new < 0 ? new : us_output_stat(o, o->name, &ret->name_st, err);
	int32_t side = 0;
	for (int i = 0; i < US_SIDE_COUNT && name >= 0 && side == 0; i++) {
		side = us_output_stat(o, o->before_side[i], &st, err);
	}
	if (name < 0 || side < 0) {
		return name < 0 ? name : side;
	}
	ret->db = db;
	ret->new = new;
	ret->name = name;
	ret->side = side;
	return 0;
}

/* The hidden files mean nothing (any more): DB first, see above. */
static int32_t discard(const struct us_output *o, const struct scene *scene, struct us_error *err)
{
	int32_t rc = 0;
	if (scene->db) {
		rc = drop(o, o->before_db, err);
		rc = rc ? rc : us_output_sync_dir(o, err);
	}
	for (int i = 0; i < US_SIDE_COUNT && !rc; i++) {
		rc = drop(o, o->before_side[i], err);
	}
	if (!rc) {
		rc = drop(o, o->before_new, err);
	}
	return rc ? rc : us_output_sync_dir(o, err);
}

static int32_t fail_both(const struct us_output *o, struct us_error *err)
{
	return us_fail(
		err, US_E_EXISTS,
		"cannot restore: \"%s\" or its side files were created while an earlier restore "
		"was "
		"cut off; the database before it is \"%s\" in the same directory. Move one of them "
		"away, or use -force to overwrite both",
		o->shown, o->before_db);
}

/* US_E_EXISTS if a side file under the database's name is not the one set aside. */
static int32_t check_sides(const struct us_output *o, struct us_error *err)
{
	for (int i = 0; i < US_SIDE_COUNT; i++) {
		struct stat ours, there;
		int32_t is_there = us_output_stat(o, o->side[i], &there, err);
		int32_t is_ours =
			is_there <= 0 ? 0 : us_output_stat(o, o->before_side[i], &ours, err);
		if (is_there < 0 || is_ours < 0) {
			return is_there < 0 ? is_there : is_ours;
		}
		if (is_there && (!is_ours || !is_same(&ours, &there))) {
			return fail_both(o, err);
		}
	}
	return 0;
}

/* An empty file under the name is no database: it goes, if nobody is at work on it. */
static int32_t drop_empty(const struct us_output *o, const struct stat *st, struct us_error *err)
{
	struct us_output_locks locks;
	struct stat now;
	if (!S_ISREG(st->st_mode) || st->st_size != 0) {
		return fail_both(o, err);
	}
	int32_t rc = us_output_lock(o, &locks, err);
	if (rc) {
		return rc;
	}
	if (locks.db_fd >= 0 && (fstat(locks.db_fd, &now) || now.st_size != 0)) {
		rc = fail_both(o, err);
	} else {
		rc = drop(o, o->name, err);
	}
	us_output_unlock(&locks);
	return rc;
}

static int32_t undo(const struct us_output *o, struct us_error *err)
{
	const struct scene rest = { .db = 0 };
	for (int i = 0; i < US_SIDE_COUNT; i++) {
		if (linkat(o->dir_fd, o->before_side[i], o->dir_fd, o->side[i], 0) &&
		    errno != EEXIST && errno != ENOENT) {
			return us_fail_errno(err, errno, "cannot bring back \"%s\"", o->shown);
		}
	}
	int32_t rc = us_output_sync_dir(o, err);
	if (rc) {
		return rc;
	}
	int failed = rename_free(o, o->before_db, o->name);
	if (failed == EEXIST) {
		return fail_both(o, err);
	}
	if (failed) {
		return us_fail_errno(err, failed, "cannot bring back \"%s\"", o->shown);
	}
	rc = us_output_sync_dir(o, err);
	return rc ? rc : discard(o, &rest, err);
}

/* By the table above. US_E_EXISTS: two databases. */
static int32_t recover(const struct us_output *o, struct us_error *err)
{
	struct scene scene;
	int32_t rc = look(o, &scene, err);
	if (rc || (!scene.db && !scene.new && !scene.side)) {
		return rc;
	}
	if (!scene.db) {
		return discard(o, &scene, err);
	}
	/* Equal inodes: rename_free was cut off between its two steps. */
	if (scene.name && (!scene.new || is_same(&scene.new_st, &scene.name_st) ||
			   is_same(&scene.db_st, &scene.name_st))) {
		rc = drop(o, o->before_new, err);
		return rc ? rc : discard(o, &scene, err);
	}
	rc = check_sides(o, err);
	if (!rc && scene.name) {
		rc = drop_empty(o, &scene.name_st, err);
	}
	return rc ? rc : undo(o, err);
}

int32_t us_place_recover(const struct us_output *o, int force, const _Atomic uint32_t *cancel,
			 struct us_error *err)
{
	struct scene scene;
	int32_t rc = look(o, &scene, err);
	if (rc || (!scene.db && !scene.new && !scene.side)) {
		return rc;
	}
	rc = us_output_enter(o, cancel, err);
	if (rc) {
		return rc;
	}
	rc = recover(o, err);
	us_output_leave(o);
	if (rc == US_E_EXISTS && force) {
		us_error_clear(err);
		return 0;
	}
	return rc;
}

/* ------------------------------------------------------------------ placing */

static int32_t fail_created(const struct us_output *o, struct us_error *err)
{
	return us_fail(err, US_E_EXISTS, "cannot restore, \"%s\" was created during the restore",
		       o->shown);
}

/* Nothing has the name. */
static int32_t place_free(const struct us_output *o, int force, int defer_sync,
			  struct us_error *err)
{
	int32_t rc = force ? drop_sides(o, err) : 0; /* else there are none */
	if (rc) {
		return rc;
	}
	int failed = rename_free(o, o->temp, o->name);
	if (failed) {
		return failed == EEXIST
			       ? fail_created(o, err)
			       : us_fail_errno(err, failed, "cannot create \"%s\"", o->shown);
	}
	if (defer_sync) {
		return 1;
	}
	rc = us_output_sync_dir(o, err);
	if (rc) {
		(void)unlinkat(o->dir_fd, o->name, 0); /* as it was; the failure is told anyway */
	}
	return rc;
}

int us_place_is_free(const struct us_output *o)
{
	struct stat st;
	return us_output_stat(o, o->name, &st, NULL) == 0 &&
	       us_output_stat(o, o->before_db, &st, NULL) == 0 &&
	       us_output_stat(o, o->before_new, &st, NULL) == 0;
}

/* Unlinks side file I if it is the one set aside: the name may be that of a database
 * created just now, so it is looked at under another name first. */
static int32_t take_side(const struct us_output *o, int i, struct us_error *err)
{
	struct stat taken, ours;
	int failed = rename_free(o, o->side[i], o->temp);
	if (failed == ENOENT || failed == ENAMETOOLONG) {
		return 0;
	}
	if (failed) {
		return us_fail_errno(err, failed, "cannot remove a side file of \"%s\"", o->shown);
	}
	int32_t rc = us_output_stat(o, o->temp, &taken, err);
	if (rc > 0) {
		rc = us_output_stat(o, o->before_side[i], &ours, err);
	}
	if (rc > 0 && is_same(&taken, &ours)) {
		rc = drop(o, o->temp, err);
	} else if (rc >= 0) {
		rc = fail_created(o, err);
	}
	if (rc) {
		(void)rename_free(o, o->temp, o->side[i]); /* free a moment ago */
	}
	return rc;
}

/* Steps 1 to 4. */
static int32_t set_aside(const struct us_output *o, struct us_error *err)
{
	int failed = rename_free(o, o->temp, o->before_new);
	if (failed) {
		return us_fail_errno(err, failed, "cannot rename the restored file of \"%s\"",
				     o->shown);
	}
	for (int i = 0; i < US_SIDE_COUNT; i++) {
		if (linkat(o->dir_fd, o->side[i], o->dir_fd, o->before_side[i], 0) &&
		    errno != ENOENT && errno != ENAMETOOLONG) {
			return us_fail_errno(err, errno, "cannot set aside \"%s\"", o->shown);
		}
	}
	int32_t rc = us_output_sync_dir(o, err);
	if (rc) {
		return rc;
	}
	failed = rename_free(o, o->name, o->before_db);
	if (failed) {
		return us_fail_errno(err, failed, "cannot set aside \"%s\"", o->shown);
	}
	rc = us_output_sync_dir(o, err);
	for (int i = 0; i < US_SIDE_COUNT && !rc; i++) {
		rc = take_side(o, i, err);
	}
	return rc ? rc : us_output_sync_dir(o, err);
}

/* Step 5. */
static int32_t bring_in(const struct us_output *o, struct us_error *err)
{
	int failed = rename_free(o, o->before_new, o->name);
	if (failed) {
		return failed == EEXIST
			       ? fail_created(o, err)
			       : us_fail_errno(err, failed, "cannot create \"%s\"", o->shown);
	}
	int32_t rc = us_output_sync_dir(o, err);
	if (rc) {
		(void)rename_free(o, o->name, o->before_new); /* then recovery undoes the rest */
	}
	return rc;
}

static int32_t replace(const struct us_output *o, struct us_error *err)
{
	int32_t rc = set_aside(o, err);
	if (!rc) {
		rc = bring_in(o, err);
	}
	if (rc) {
		(void)recover(o, NULL); /* the first failure counts; the next restore tries again */
		return rc;
	}
	const struct scene done = { .db = 1 };
	(void)discard(o, &done, NULL); /* the restore is done; the next one removes the rest */
	return 0;
}

/* Under the directory's lock: looks again at all that was looked at before. */
static int32_t place_entered(const struct us_output *o, int force, int defer_sync,
			     struct us_error *err)
{
	int present = 0;
	struct us_output_locks locks;
	int32_t rc = recover(o, err);
	int both = rc == US_E_EXISTS && force;
	if (!rc || both) {
		rc = us_output_check(o, force, &present, err);
	}
	if (!rc && !us_output_has_temp(o)) {
		rc = us_fail(err, US_E_BUSY, "the temporary file beside \"%s\" was removed",
			     o->shown);
	}
	if (!rc && !present && !force) {
		return place_free(o, force, defer_sync, err); /* no file: nobody has a lock */
	}
	if (!rc) {
		rc = us_output_lock(o, &locks, err);
	}
	if (rc) {
		return rc;
	}
	/* What was seen without the locks is seen with them. */
	rc = us_output_check(o, force, &present, err);
	if (!rc && both) {
		const struct scene before = { .db = 1 };
		rc = discard(o, &before, err);
	}
	if (!rc) {
		rc = present ? replace(o, err) : place_free(o, force, defer_sync, err);
	}
	us_output_unlock(&locks);
	return rc;
}

int32_t us_place(const struct us_output *o, int force, int defer_sync,
		 const _Atomic uint32_t *cancel, struct us_error *err)
{
	int32_t rc = us_output_enter(o, cancel, err);
	if (rc) {
		return rc;
	}
	rc = place_entered(o, force, defer_sync, err);
	us_output_leave(o);
	return rc;
}
