/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power [-full] [-seed N] [-seconds N] [-only SCENARIO]
 *
 * The power is cut. What the core writes to a directory target, to its state, and where it
 * restores, is logged (shim.h). Then, for each point of the log, states are made that a
 * disk may have after a cut there, and each is looked at:
 *
 *	every visible object is complete; every one that was acknowledged is there
 *	no record of the state file speaks of an object that is not there
 *	a restored database under its name is complete, and one that was replaced has its
 *	own side files or is complete without
 *	for some of them: two cycles later all is in the target; a second restore is right
 *
 * What a disk may have: all that was synced before the cut, by fsync of the file, or of
 * the directory for a name, or by syncfs. Of the rest any part: a write whole, in part, as
 * zeros, or not; a name or not, whatever became of its data. That is more than the file
 * systems of today permit themselves.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "place.h"
#include "shim.h"

#define NODES_MAX 4096
#define ENTRIES_MAX 256
#define NEVER UINT32_MAX
#define VIOLATIONS_SHOWN 10
#define HANG_S 60
#define SECTOR_LEN 512u
#define FULL_STATES 20u /* for each cut of the long run */
#define TWICE_STEP 5u	/* every so manieth way to break off the first run, in the short one */
#define GO_ON_STEP 37u	/* every so manieth state of the short one is gone on with */

/* ------------------------------------------------------------------ the disk */

struct entry {
	uint32_t node;
	char name[256];
};

struct node {
	int is_dir;
	mode_t mode;
	uint32_t tree; /* the node of what it is below, in the place's directory */
	uint8_t *data;
	size_t len, cap;
	struct entry *entries;
	uint32_t count;
};

static struct disk {
	struct node nodes[NODES_MAX]; /* [0]: the place's directory */
	uint32_t count;
} before, after;

static uint32_t node_new(struct disk *disk, int is_dir, mode_t mode, uint32_t tree)
{
	if (disk->count == NODES_MAX) {
		die("too many files");
	}
	disk->nodes[disk->count] = (struct node){ .is_dir = is_dir, .mode = mode, .tree = tree };
	return disk->count++;
}

static void disk_clear(struct disk *disk)
{
	for (uint32_t i = 0; i < disk->count; i++) {
		free(disk->nodes[i].data);
		free(disk->nodes[i].entries);
	}
	disk->count = 0;
}

static struct entry *entry_of(const struct disk *disk, uint32_t dir, const char *name)
{
	const struct node *node = &disk->nodes[dir];
	for (uint32_t i = 0; i < node->count; i++) {
		if (strcmp(node->entries[i].name, name) == 0) {
			return &node->entries[i];
		}
	}
	return NULL;
}

static void entry_set(struct disk *disk, uint32_t dir, const char *name, uint32_t to)
{
	struct entry *entry = entry_of(disk, dir, name);
	struct node *node = &disk->nodes[dir];
	if (!entry) {
		node->entries = realloc(node->entries, (node->count + 1) * sizeof(*node->entries));
		if (!node->entries || node->count == ENTRIES_MAX) {
			die("too many names");
		}
		entry = &node->entries[node->count++];
		(void)snprintf(entry->name, sizeof(entry->name), "%s", name);
	}
	entry->node = to;
}

static void entry_remove(struct disk *disk, uint32_t dir, const char *name)
{
	struct entry *entry = entry_of(disk, dir, name);
	struct node *node = &disk->nodes[dir];
	if (entry) {
		*entry = node->entries[--node->count];
	}
}

static void resize(struct node *node, size_t len)
{
	if (len > node->cap) {
		node->cap = 2 * len;
		node->data = realloc(node->data, node->cap);
		if (!node->data) {
			die("no memory");
		}
	}
	if (len > node->len) {
		memset(node->data + node->len, 0, len - node->len);
	}
	node->len = len;
}

/* DATA NULL: zeros. */
static void put(struct node *node, uint64_t off, const uint8_t *data, size_t len)
{
	if (off + len > node->len) {
		resize(node, off + len);
	}
	if (data) {
		memcpy(node->data + off, data, len);
	} else {
		memset(node->data + off, 0, len);
	}
}

static void disk_copy(struct disk *to, const struct disk *from)
{
	disk_clear(to);
	for (uint32_t i = 0; i < from->count; i++) {
		const struct node *node = &from->nodes[i];
		(void)node_new(to, node->is_dir, node->mode, node->tree);
		put(&to->nodes[i], 0, node->data, node->len);
		for (uint32_t e = 0; e < node->count; e++) {
			entry_set(to, i, node->entries[e].name, node->entries[e].node);
		}
	}
}

/* The node that PATH, below the place's directory, names; NEVER: none. */
static uint32_t find(const struct disk *disk, const char *path)
{
	char name[256];
	uint32_t at = 0;
	while (*path && at != NEVER) {
		size_t len = strcspn(path, "/");
		(void)snprintf(name, sizeof(name), "%.*s", (int)len, path);
		const struct entry *entry = entry_of(disk, at, name);
		at = entry ? entry->node : NEVER;
		path += len + (path[len] == '/');
	}
	return at;
}

/* Makes the files below NODE real, below PATH. Those with two names have them again. */
static void write_out(const struct disk *disk, uint32_t node, const char *path,
		      char made[NODES_MAX][FLEET_PATH_LEN])
{
	const struct node *n = &disk->nodes[node];
	if (!n->is_dir) {
		if (made[node][0]) {
			if (link(made[node], path)) {
				die("%s: %s", path, strerror(errno));
			}
			return;
		}
		file_write(path, n->data ? n->data : (const uint8_t *)"", n->len);
		(void)chmod(path, n->mode);
		(void)snprintf(made[node], FLEET_PATH_LEN, "%s", path);
		return;
	}
	if (mkdir(path, 0700) && errno != EEXIST) {
		die("%s: %s", path, strerror(errno));
	}
	for (uint32_t i = 0; i < n->count; i++) {
		char below[FLEET_PATH_LEN];
		(void)snprintf(below, sizeof(below), "%s", path_of("%s/%s", path, n->entries[i].name));
		write_out(disk, n->entries[i].node, below, made);
	}
	(void)chmod(path, n->mode);
}

/* --------------------------------------------------------------------- the log */

/* An entry of the log, with nodes instead of inodes. */
struct step {
	const struct shim_op *op;
	uint32_t node, dir, to_dir; /* NEVER: none of ours */
	uint32_t synced; /* the entry after which it is durable for certain */
};

static struct step *steps;
static uint32_t step_count;

/* Inodes may be used again: the one that is meant is the last that was made. */
static struct {
	uint64_t ino;
	uint32_t node;
} *inodes;
static uint32_t inode_count;

static uint32_t node_of(uint64_t ino)
{
	for (uint32_t i = inode_count; i-- > 0;) {
		if (inodes[i].ino == ino) {
			return inodes[i].node;
		}
	}
	return NEVER;
}

static void know(uint64_t ino, uint32_t node)
{
	inodes = realloc(inodes, (inode_count + 1) * sizeof(*inodes));
	if (!inodes) {
		die("no memory");
	}
	inodes[inode_count].ino = ino;
	inodes[inode_count++].node = node;
}

/* The tree that a new node in DIR belongs to. */
static uint32_t tree_below(uint32_t dir, uint32_t new_node)
{
	return dir == 0 ? new_node : before.nodes[dir].tree;
}

static void scan(const char *path, uint32_t node)
{
	struct stat st;
	if (lstat(path, &st)) {
		die("%s: %s", path, strerror(errno));
	}
	know(st.st_ino, node);
	if (!S_ISDIR(st.st_mode)) {
		size_t len;
		uint8_t *data = file_read(path, &len);
		put(&before.nodes[node], 0, data, len);
		free(data);
		return;
	}
	struct dirent **names;
	int count = scandir(path, &names, NULL, alphasort);
	for (int i = 0; i < count; i++) {
		const char *name = names[i]->d_name;
		int is_template = node == 0 && strchr(name, '-');
		if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !is_template) {
			char below[FLEET_PATH_LEN];
			(void)snprintf(below, sizeof(below), "%s", path_of("%s/%s", path, name));
			if (lstat(below, &st)) {
				die("%s: %s", below, strerror(errno));
			}
			uint32_t child =
				node_new(&before, S_ISDIR(st.st_mode), st.st_mode & 07777,
					 tree_below(node, before.count));
			entry_set(&before, node, name, child);
			scan(below, child);
		}
		free(names[i]);
	}
	free(names);
}

static int is_of_names(enum shim_op_kind kind)
{
	return kind == SHIM_OP_CREATE || kind == SHIM_OP_MKDIR || kind == SHIM_OP_LINK ||
	       kind == SHIM_OP_RENAME || kind == SHIM_OP_UNLINK;
}

/* Whether step J, a sync, makes step I durable. */
static int covers(const struct step *j, const struct step *i)
{
	enum shim_op_kind kind = i->op->kind;
	int names = is_of_names(kind);
	uint32_t dir = kind == SHIM_OP_RENAME ? i->to_dir : i->dir;
	if (j->node == NEVER) {
		return 0;
	}
	if (j->op->kind == SHIM_OP_SYNC) {
		return j->node == (names ? dir : i->node);
	}
	if (j->op->kind != SHIM_OP_SYNCFS || i->node == NEVER) {
		return 0;
	}
	return before.nodes[j->node].tree == before.nodes[i->node].tree;
}

/* Makes steps of the log; `before` gets the nodes that are made on the way. */
static void read_log(void)
{
	const struct shim_op *ops = shim_ops(&step_count);
	steps = realloc(steps, (step_count + 1) * sizeof(*steps));
	if (!steps) {
		die("no memory");
	}
	for (uint32_t i = 0; i < step_count; i++) {
		const struct shim_op *op = &ops[i];
		struct step *step = &steps[i];
		*step = (struct step){ .op = op, .synced = NEVER };
		step->dir = node_of(op->dir);
		step->to_dir = node_of(op->to_dir);
		if ((op->kind == SHIM_OP_CREATE || op->kind == SHIM_OP_MKDIR) && step->dir != NEVER) {
			int is_dir = op->kind == SHIM_OP_MKDIR;
			know(op->ino, node_new(&before, is_dir, is_dir ? 0700 : 0600,
					       tree_below(step->dir, before.count)));
		}
		step->node = node_of(op->ino);
	}
	for (uint32_t i = 0; i < step_count; i++) {
		for (uint32_t j = i + 1; j < step_count && steps[i].synced == NEVER; j++) {
			if (covers(&steps[j], &steps[i])) {
				steps[i].synced = j;
			}
		}
	}
}

/* ------------------------------------------------------------------- the cut */

enum loss {
	LOSS_ALL,   /* what was not synced is not there */
	LOSS_NONE,
	LOSS_DATA,  /* names are there, and zeros */
	LOSS_NAMES, /* data is there */
	LOSS_SOME,  /* by chance */
	LOSS_COUNT
};

static const char *const loss_names[] = { "all", "nothing", "data", "names", "some" };

static uint64_t random_state;

static uint32_t random_below(uint32_t limit)
{
	random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (uint32_t)((random_state >> 33) % limit);
}

static void apply_name(const struct step *step)
{
	const struct shim_op *op = step->op;
	if (step->dir == NEVER || (op->kind == SHIM_OP_RENAME && step->to_dir == NEVER) ||
	    step->node == NEVER) {
		return;
	}
	const struct entry *old = entry_of(&after, step->dir, op->name);
	switch (op->kind) {
	case SHIM_OP_UNLINK:
		entry_remove(&after, step->dir, op->name);
		break;
	case SHIM_OP_RENAME:
		if (old && old->node == step->node) {
			entry_remove(&after, step->dir, op->name);
		}
		entry_set(&after, step->to_dir, op->to_name, step->node);
		break;
	default:
		entry_set(&after, step->dir, op->name, step->node);
		break;
	}
}

static void apply_data(const struct step *step, int torn, int zeros)
{
	const struct shim_op *op = step->op;
	if (step->node == NEVER) {
		return;
	}
	struct node *node = &after.nodes[step->node];
	if (op->kind == SHIM_OP_TRUNCATE || op->kind == SHIM_OP_MODE) {
		resize(node, op->kind == SHIM_OP_MODE ? node->len : op->len);
		node->mode = op->kind == SHIM_OP_MODE ? (mode_t)op->len & 07777 : node->mode;
		return;
	}
	size_t len = op->len;
	if (torn) {
		uint32_t sectors = (uint32_t)(len / SECTOR_LEN);
		len = sectors ? random_below(sectors + 1) * SECTOR_LEN : random_below((uint32_t)len + 1);
	}
	put(node, op->off, zeros ? NULL : op->data, len);
}

/* What the disk has if the power is cut before step CUT. */
static void cut_power(uint32_t cut, enum loss loss)
{
	disk_copy(&after, &before);
	for (uint32_t i = 0; i < cut; i++) {
		const struct step *step = &steps[i];
		int names = is_of_names(step->op->kind);
		int data = step->op->kind == SHIM_OP_WRITE || step->op->kind == SHIM_OP_TRUNCATE ||
			   step->op->kind == SHIM_OP_MODE;
		int durable = step->synced < cut;
		uint32_t chance = durable ? 0 : random_below(4);
		if (!names && !data) {
			continue;
		}
		if (!durable && (loss == LOSS_ALL || (loss == LOSS_NAMES && names) ||
				 (loss == LOSS_SOME && chance == 0))) {
			continue;
		}
		if (names) {
			apply_name(step);
		} else {
			int zeros = !durable && (loss == LOSS_DATA || (loss == LOSS_SOME && chance == 1));
			apply_data(step, loss == LOSS_SOME && chance == 2, zeros);
		}
	}
}

/* ------------------------------------------------------------------- scenarios */

struct scenario {
	const char *name;
	int fleet;
	const char *from; /* template; NULL: nothing */
	/* What is logged. */
	void (*work)(const struct scenario *scenario);
	/* What must be so on the disk; DONE: the work was acknowledged before the cut. */
	const char *(*check)(int done);
	/* What must become of it, on real files. */
	const char *(*recover)(void);
	uint32_t flags;
};

#define REPLACE 1u /* an older database stands where a restore goes */
#define SWEEP 2u
#define TWICE 4u /* the first run is cut off, or a sync fails in it; then it is done again */

enum { SHAPES, MANY, FLEET_COUNT };

static struct fleet fleets[FLEET_COUNT];
static struct place places[FLEET_COUNT];
static struct place *place; /* of the scenario */
static const struct fleet *fleet;
static const struct scenario *current;

#define MARK_DONE "done"

static void work_cycle(const struct scenario *scenario)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_cycle_result result;
	struct us *us = NULL;
	shim_phase(1); /* for the fault of TWICE */
	int32_t rc = place_open(place, 0, &us, &err);
	for (int i = 0; i < (scenario->flags & TWICE ? 2 : 1) && !rc; i++) {
		shim_clock_forward(PLACE_CLOCK_S);
		if (scenario->flags & SWEEP) {
			us_sweep(us);
		}
		rc = place_cycle(us, &result, &err);
	}
	shim_phase(0);
	if (!shim_has_fired() && (rc || result.failed || result.walk_failures)) {
		die("%s: it fails without a fault: %s", scenario->name, err.message);
	}
	if (!rc && !result.failed && !result.walk_failures) {
		shim_mark(MARK_DONE);
	}
	us_close(us);
}

static const char *check_target(int done)
{
	static char why[2200];
	struct target target = { 0 };
	char key[1200];
	uint32_t root = find(&after, "target");
	/* Groups, databases, objects: the layout of the fleet's keys. */
	for (uint32_t g = 0; root != NEVER && g < after.nodes[root].count; g++) {
		const struct entry *group = &after.nodes[root].entries[g];
		for (uint32_t d = 0; group->name[0] != '.' && d < after.nodes[group->node].count; d++) {
			const struct entry *db = &after.nodes[group->node].entries[d];
			for (uint32_t o = 0; o < after.nodes[db->node].count; o++) {
				const struct entry *object = &after.nodes[db->node].entries[o];
				const struct node *node = &after.nodes[object->node];
				(void)snprintf(key, sizeof(key), "%s/%s/%s", group->name, db->name,
					       object->name);
				const char *fault = object->name[0] == '.' ? NULL
					: target_add(key, node->data ? node->data : (const uint8_t *)"",
						     node->len, fleet, &target);
				if (fault) {
					return fault;
				}
			}
		}
	}
	for (uint32_t i = 0; i < fleet->db_count; i++) {
		if (current->flags & SWEEP && fleet->dbs[i].is_database && target.dbs[i].count < 2) {
			(void)snprintf(why, sizeof(why), "%s had three objects, and has %u",
				       fleet->dbs[i].rel, target.dbs[i].count);
			return why;
		}
		if (done && fleet->dbs[i].is_database &&
		    target_newest(&target, i) != fleet->version) {
			(void)snprintf(why, sizeof(why), "%s was acknowledged, the target has version %u",
				       fleet->dbs[i].rel, target_newest(&target, i));
			return why;
		}
	}
	return NULL;
}

static const char *recover_cycle(void)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_cycle_result result;
	struct us *us;
	shim_clock_forward(2 * PLACE_CLOCK_S);
	if (place_open(place, 0, &us, &err)) {
		return path_of("us_open: %s", err.message);
	}
	place->is_robbed = (current->flags & SWEEP) != 0;
	const char *why = place_claims(place, us, NULL);
	for (int i = 0; i < 2 && !why; i++) {
		shim_clock_forward(2);
		if (current->flags & SWEEP) {
			us_sweep(us);
		}
		if (place_cycle(us, &result, &err)) {
			why = path_of("us_cycle: %s", err.message);
		}
	}
	why = why ? why : place_is_right(place);
	us_close(us);
	return why;
}

/* ------------------------------------------------------------------- restores */

static void work_restore(const struct scenario *scenario)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us;
	if (place_open(place, US_OPEN_READ_ONLY, &us, &err) ||
	    place_restore(place, us, scenario->flags & REPLACE ? US_RESTORE_FORCE : 0, &err)) {
		die("%s: it fails without a fault: %s", scenario->name, err.message);
	}
	shim_mark(MARK_DONE);
	us_close(us);
}

static void work_fleet(const struct scenario *scenario)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us;
	uint32_t failed = 0;
	if (place_open(place, US_OPEN_READ_ONLY, &us, &err) ||
	    place_restore_fleet(place, us, 0, &failed, &err) || failed) {
		die("%s: it fails without a fault: %s", scenario->name, err.message);
	}
	shim_mark(MARK_DONE);
	us_close(us);
}

static int is_same(const struct node *node, const uint8_t *data, size_t len)
{
	return node->len == len && (len == 0 || memcmp(node->data, data, len) == 0);
}

/* Whether the file NAME of the disk holds what the file SOURCE does. */
static int is_copy(const char *name, const char *source)
{
	uint32_t node = find(&after, name);
	size_t len;
	uint8_t *data = node == NEVER ? NULL : file_read(source, &len);
	int same = data && is_same(&after.nodes[node], data, len);
	free(data);
	return same;
}

/* The old database with its WAL, the new one without, or none. */
static const char *check_file(uint32_t db, int done)
{
	static const char *const sides[] = { "-wal", "-shm", "-journal" };
	const char *rel = fleet->dbs[db].rel;
	const char *path = path_of("output/%s", rel);
	uint32_t node = find(&after, path);
	if (node == NEVER) {
		return done ? path_of("%s was restored, and is not there", path) : NULL;
	}
	if (!done && current->flags & REPLACE && is_copy(path, path_of("%s/%s", fleet->root, rel))) {
		return is_copy(path_of("%s-wal", path), path_of("%s/%s-wal", fleet->root, rel))
			       ? NULL
			       : path_of("%s is the old one without its WAL", path);
	}
	if (!is_same(&after.nodes[node], fleet->dbs[db].images[fleet->version],
		     fleet->dbs[db].image_lens[fleet->version])) {
		return path_of("%s is there, and not complete", path);
	}
	for (int i = 0; i < 3; i++) {
		if (find(&after, path_of("%s%s", path, sides[i])) != NEVER) {
			return path_of("%s is the new one, beside %s of the old", path, sides[i]);
		}
	}
	return NULL;
}

static const char *check_restored(int done)
{
	return check_file(PLACE_RESTORED(place), done);
}

static const char *check_fleet(int done)
{
	const char *why = NULL;
	for (uint32_t i = 0; i < fleet->db_count && !why; i++) {
		why = fleet->dbs[i].is_database ? check_file(i, done) : NULL;
	}
	return why;
}

static const char *recover_restore(void)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us;
	if (place_open(place, US_OPEN_READ_ONLY, &us, &err) ||
	    place_restore(place, us, US_RESTORE_FORCE, &err)) {
		return path_of("the next restore: %s", err.message);
	}
	us_close(us);
	return place_compare(place, PLACE_RESTORED(place), 0);
}

static const char *recover_fleet(void)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us *us;
	uint32_t failed = 0;
	const char *why = NULL;
	if (place_open(place, US_OPEN_READ_ONLY, &us, &err) ||
	    place_restore_fleet(place, us, US_RESTORE_IF_DB_NOT_EXISTS, &failed, &err) || failed) {
		return path_of("the next restore: %u failed, %s", failed, err.message);
	}
	us_close(us);
	for (uint32_t i = 0; i < fleet->db_count && !why; i++) {
		why = fleet->dbs[i].is_database ? place_compare(place, i, 0) : NULL;
	}
	return why;
}

#define CYCLE .work = work_cycle, .check = check_target, .recover = recover_cycle

static const struct scenario scenarios[] = {
	{ .name = "first", CYCLE },
	{ .name = "second", .from = "v1", CYCLE },
	{ .name = "many", .fleet = MANY, CYCLE },
	{ .name = "sweep", .from = "old", CYCLE, .flags = SWEEP },
	{ .name = "twice", CYCLE, .flags = TWICE },
	{ .name = "many-twice", .fleet = MANY, CYCLE, .flags = TWICE },
	{ .name = "restore",
	  .from = "v2",
	  .work = work_restore,
	  .check = check_restored,
	  .recover = recover_restore },
	{ .name = "replace",
	  .from = "v2",
	  .work = work_restore,
	  .check = check_restored,
	  .recover = recover_restore,
	  .flags = REPLACE },
	{ .name = "fleet",
	  .from = "v2",
	  .work = work_fleet,
	  .check = check_fleet,
	  .recover = recover_fleet },
	{ .name = "many-fleet",
	  .fleet = MANY,
	  .from = "v2",
	  .work = work_fleet,
	  .check = check_fleet,
	  .recover = recover_fleet },
};
#define SCENARIO_COUNT (sizeof(scenarios) / sizeof(scenarios[0]))

/* ------------------------------------------------------------------------- runs */

static struct shared {
	char why[3000];
} *shared;

static int full;
static const char *only;
static time_t deadline;

/* Runs FN in a process of its own; what it returns, or that it did not end. */
static const char *in_child(const char *(*fn)(void))
{
	int status;
	shared->why[0] = '\0';
	pid_t pid = fork();
	if (pid == 0) {
		(void)alarm(HANG_S);
		const char *why = fn();
		(void)snprintf(shared->why, sizeof(shared->why), "%s", why ? why : "");
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		die("fork: %s", strerror(errno));
	}
	if (WIFSIGNALED(status)) {
		return WTERMSIG(status) == SIGALRM ? "it hangs" : "it crashes";
	}
	if (WEXITSTATUS(status) != 0) {
		exit(2); /* it has said why */
	}
	return shared->why[0] ? shared->why : NULL;
}

static uint32_t end_at; /* of run_work */
static struct shim_fault fault;
static int go_on;

static const char *run_work(void)
{
	shim_log(go_on, end_at);
	if (fault.error) {
		shim_arm(&fault);
	}
	current->work(current);
	return NULL;
}

static void prepare(void)
{
	place_clear(place);
	if (current->from) {
		place_load(place, current->from);
	}
	place_prepare_output(place, (current->flags & REPLACE) != 0);
	disk_clear(&before);
	inode_count = 0;
	(void)node_new(&before, 1, 0755, 0);
	scan(place->dir, 0);
}

static void make_real(void)
{
	static char made[NODES_MAX][FLEET_PATH_LEN];
	memset(made, 0, sizeof(made));
	place_clear(place);
	tree_remove(place->output);
	write_out(&after, 0, place->dir, made);
}

struct totals {
	uint32_t steps, states, recovered, violations;
};

static int is_late(void)
{
	return deadline && time(NULL) >= deadline;
}

static void tell(uint32_t cut, enum loss loss, const char *why)
{
	(void)fprintf(stderr, "VIOLATION: %s: cut at %u of %u, %s is lost: %s\n", current->name, cut,
		      step_count, loss_names[loss], why);
	for (uint32_t i = cut < 6 ? 0 : cut - 6; i < cut; i++) {
		const struct shim_op *op = steps[i].op;
		static const char *const kinds[] = { "create", "mkdir",	   "link", "rename", "unlink",
						     "write",  "truncate", "mode", "sync", "syncfs", "mark" };
		(void)fprintf(stderr, "  %u: %s node %d %s %s, durable from %d\n", i, kinds[op->kind],
			      (int)steps[i].node, op->name, op->to_name, (int)steps[i].synced);
	}
}

/* The step after which all is acknowledged. */
static uint32_t done_at(void)
{
	uint32_t done = NEVER;
	for (uint32_t i = 0; i < step_count; i++) {
		done = steps[i].op->kind == SHIM_OP_MARK ? i : done;
	}
	return done;
}

/* One state of the disk. Returns what is wrong with it. */
static const char *look(uint32_t cut, enum loss loss, int go_on_with_it, struct totals *totals)
{
	cut_power(cut, loss);
	const char *why = current->check(done_at() < cut);
	totals->states++;
	if (!why && go_on_with_it) {
		make_real();
		why = in_child(current->recover);
		totals->recovered++;
	}
	if (why) {
		tell(cut, loss, why);
		totals->violations++;
	}
	return why;
}

static void run_scenario(struct totals *totals)
{
	prepare();
	if (in_child(run_work)) {
		die("%s: it fails without a cut", current->name);
	}
	read_log();
	uint32_t losses = full ? FULL_STATES : LOSS_COUNT;
	for (uint32_t cut = 0; cut <= step_count && totals->violations < VIOLATIONS_SHOWN; cut++) {
		for (uint32_t n = 0; n < losses && !is_late(); n++) {
			int goes_on = full || totals->states % GO_ON_STEP == 0;
			if (look(cut, n < LOSS_COUNT ? (enum loss)n : LOSS_SOME, goes_on, totals)) {
				break;
			}
		}
	}
	totals->steps = step_count;
}

/* The first run ends in the midst, or a sync fails in it; what the second one acknowledges
 * must be there all the same, names that the first has made included. */
static void run_twice(struct totals *totals)
{
	static const char *const syncs[] = { "fsync", "syncfs" };
	prepare();
	if (in_child(run_work)) {
		die("%s: it fails without a cut", current->name);
	}
	read_log();
	uint32_t count = step_count, *ends = calloc(count + 1, sizeof(*ends)), end_count = 0;
	for (uint32_t i = 0; i < count; i++) {
		if (is_of_names(steps[i].op->kind)) {
			ends[end_count++] = i + 1;
		}
	}
	for (uint32_t n = 0; n < 3 * end_count && !is_late(); n += full ? 1 : TWICE_STEP) {
		prepare();
		if (n < end_count) {
			end_at = ends[n];
		} else {
			fault = (struct shim_fault){ .call = shim_call_of(syncs[n % 2]),
						     .phase = 1,
						     .nth = (n - end_count) / 2,
						     .error = EIO };
		}
		(void)in_child(run_work);
		end_at = 0;
		fault.error = 0;
		go_on = 1;
		(void)in_child(run_work);
		go_on = 0;
		read_log();
		if (look(step_count, LOSS_ALL, full || n % GO_ON_STEP == 0, totals) &&
		    totals->violations >= VIOLATIONS_SHOWN) {
			break;
		}
	}
	totals->steps = count;
	free(ends);
}

static void make_fleets(const char *scratch)
{
	static const uint32_t kinds[FLEET_COUNT] = { FLEET_SHAPES, FLEET_MANY };
	for (int i = 0; i < FLEET_COUNT; i++) {
		const char *dir = path_of("%s/fleet%d", scratch, i);
		if (mkdir(dir, 0755)) {
			die("%s: %s", dir, strerror(errno));
		}
		fleet_make(&fleets[i], dir, kinds[i]);
		place_make(&places[i], &fleets[i], path_of("%s/place%d", scratch, i), NULL);
		place_sync(&places[i]);
		place_save(&places[i], "v1");
		fleet_change(&fleets[i]);
		place_sync(&places[i]);
		place_save(&places[i], "v2");
		place_grow_old(&places[i]);
		place_save(&places[i], "old");
		places[i].retention_s = PLACE_RETENTION_S;
	}
}

static void parse(int argc, char **argv)
{
	struct options options = { .seed = 1 };
	options_parse(argc, argv, &options);
	full = options.full;
	random_state = options.seed;
	only = options.only;
	deadline = options.seconds ? time(NULL) + options.seconds : 0;
}

int main(int argc, char **argv)
{
	char scratch[512];
	struct totals sum = { 0 };
	parse(argc, argv);
	scratch_make("power", scratch);
	shim_init();
	target_init();
	target_learn();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		die("no memory");
	}
	make_fleets(scratch);
	for (size_t i = 0; i < SCENARIO_COUNT; i++) {
		struct totals totals = { 0 };
		current = &scenarios[i];
		place = &places[current->fleet];
		fleet = place->fleet;
		if (only && strcmp(only, current->name) != 0) {
			continue;
		}
		if (current->flags & TWICE) {
			run_twice(&totals);
		} else {
			run_scenario(&totals);
		}
		(void)printf("%-12s %5u steps, %6u states of the disk, %5u gone on with, %u violations\n",
			     current->name, totals.steps, totals.states, totals.recovered,
			     totals.violations);
		(void)fflush(stdout);
		sum.steps += totals.steps;
		sum.states += totals.states;
		sum.recovered += totals.recovered;
		sum.violations += totals.violations;
	}
	(void)printf("power cuts: %u steps, %u states of the disk, %u gone on with, %u violations\n",
		     sum.steps, sum.states, sum.recovered, sum.violations);
	for (int i = 0; i < FLEET_COUNT; i++) {
		fleet_end(&fleets[i]);
	}
	tree_remove(scratch);
	return sum.violations != 0;
}
