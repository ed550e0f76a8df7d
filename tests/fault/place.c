/* SPDX-License-Identifier: Apache-2.0 */
#include "place.h"
#include "shim.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../csrc/cycle/fleet.h"
#include "../../csrc/store/s3_internal.h"

#define MEMORY_LIMIT 16000000
#define CONCURRENCY 8
#define SERVER_WAIT_MS 20000
#define TASK_WAIT_MS 1000
#define OLD_S (10 * 86400)
#define KEY_ID "ak"
#define SECRET "sk/SECRET+value"

/* ------------------------------------------------------------------ the server */

static pid_t server;
static char server_dir[64];
static char endpoint[64];

/* A connection that is dead is given up sooner than the default does. */
int32_t __wrap_us_store_s3_open(const struct us_store_s3_options *options,
				struct us_store **ret_store, struct us_error *err);
int32_t __wrap_us_store_s3_open(const struct us_store_s3_options *options,
				struct us_store **ret_store, struct us_error *err)
{
	static const struct us_s3_timing timing = {
		.connect_ms = 4000, .stall_ms = 4000, .idle_age_s = 25, .lifetime_s = 600
	};
	return us_s3_open_timed(options, &timing, ret_store, err);
}

static int loopback(uint16_t port, struct sockaddr_in *ret)
{
	*ret = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
	ret->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		die("no socket");
	}
	return fd;
}

static uint16_t free_port(void)
{
	struct sockaddr_in address;
	socklen_t len = sizeof(address);
	int fd = loopback(0, &address);
	if (bind(fd, (struct sockaddr *)&address, len) ||
	    getsockname(fd, (struct sockaddr *)&address, &len)) {
		die("no port");
	}
	(void)close(fd);
	return ntohs(address.sin_port);
}

void server_start(char *ret_root)
{
	const char *path = getenv("VERSITYGW");
	uint16_t port = free_port();
	char listen_text[32];
	(void)snprintf(server_dir, sizeof(server_dir), "%s", P_tmpdir "/us-fault-s3-XXXXXX");
	if (!mkdtemp(server_dir)) {
		die("%s: %s", server_dir, strerror(errno));
	}
	(void)snprintf(ret_root, 512, "%s", server_dir);
	(void)snprintf(listen_text, sizeof(listen_text), "127.0.0.1:%u", port);
	(void)snprintf(endpoint, sizeof(endpoint), "http://%s", listen_text);
	server = fork();
	if (server == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		(void)dup2(null, 1);
		(void)dup2(null, 2); /* it reports what is done to it */
		(void)execlp(path ? path : "versitygw", "versitygw", "--port", listen_text,
			     "--keep-alive", "--quiet", "--access", KEY_ID, "--secret", SECRET,
			     "posix", server_dir, (char *)NULL);
		_exit(127);
	}
	for (int waited_ms = 0; waited_ms < SERVER_WAIT_MS; waited_ms += 20) {
		struct sockaddr_in address;
		const struct timespec pause = { .tv_nsec = 20000000 };
		int fd = loopback(port, &address);
		int rc = connect(fd, (struct sockaddr *)&address, sizeof(address));
		(void)close(fd);
		if (rc == 0) {
			return;
		}
		(void)nanosleep(&pause, NULL);
	}
	die("versitygw does not start; VERSITYGW says where it is");
}

void server_stop(void)
{
	(void)kill(server, SIGKILL);
	(void)waitpid(server, NULL, 0);
	tree_remove(server_dir);
}

/* --------------------------------------------------------------------- the core */

int32_t place_open(const struct place *p, uint32_t flags, struct us **ret_us, struct us_error *err)
{
	char pattern[FLEET_PATH_LEN];
	(void)snprintf(pattern, sizeof(pattern), "%.2000s/{group}/{name}.db", p->fleet->root);
	const struct us_options options = {
		.struct_size = sizeof(options),
		.flags = flags | (p->is_s3 ? US_OPEN_S3_PATH_STYLE : 0),
		.discovery_pattern = pattern,
		.path = "{{group}}/{{name}}",
		.state_dir = p->state,
		.target = p->is_s3 ? US_TARGET_S3 : US_TARGET_FILE,
		.max_concurrent_uploads = CONCURRENCY,
		.memory_limit_bytes = MEMORY_LIMIT,
		.snapshot_window_s = 3600,
		.directory = p->is_s3 ? NULL : p->target,
		.s3_endpoint = p->is_s3 ? endpoint : NULL,
		.s3_bucket = p->is_s3 ? p->bucket : NULL,
		.retention_s = p->retention_s,
	};
	const struct us_credentials credentials = { .struct_size = sizeof(credentials),
						    .access_key_id = KEY_ID,
						    .secret_access_key = SECRET };
	int32_t rc = us_open(&options, ret_us, err);
	if (rc == 0 && p->is_s3) {
		rc = us_set_credentials(*ret_us, &credentials, err);
		if (rc) {
			us_close(*ret_us);
		}
	}
	return rc;
}

int32_t place_cycle(struct us *us, struct us_cycle_result *ret, struct us_error *err)
{
	memset(ret, 0, sizeof(*ret));
	ret->struct_size = sizeof(*ret);
	return us_cycle(us, ret, err);
}

void place_sync(const struct place *p)
{
	pid_t pid = fork();
	int status;
	if (pid == 0) {
		struct us_error err = { .struct_size = sizeof(err) };
		struct us_cycle_result result;
		struct us *us;
		shim_clock_forward(PLACE_CLOCK_S * (p->fleet->version - 1));
		if (place_open(p, 0, &us, &err) || place_cycle(us, &result, &err)) {
			die("%s", err.message);
		}
		us_close(us);
		const char *why = place_is_right(p);
		if (why) {
			die("%s", why);
		}
		_exit(result.failed || result.walk_failures ? 1 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
		die("a cycle fails without a fault");
	}
}

void place_make(struct place *p, const struct fleet *fleet, const char *dir,
		const char *bucket_dir)
{
	p->fleet = fleet;
	p->is_s3 = bucket_dir != NULL;
	(void)snprintf(p->dir, sizeof(p->dir), "%s", dir);
	(void)snprintf(p->state, sizeof(p->state), "%s/state", dir);
	(void)snprintf(p->output, sizeof(p->output), "%s/output", dir);
	(void)snprintf(p->target, sizeof(p->target), "%s%s", bucket_dir ? bucket_dir : dir,
		       bucket_dir ? "" : "/target");
	p->bucket = strrchr(p->target, '/') + 1;
	if (mkdir(dir, 0755) || (bucket_dir && mkdir(bucket_dir, 0755))) {
		die("%s: %s", dir, strerror(errno));
	}
}

/* ------------------------------------------------------------------- templates */

/* The directory itself stays: it is a server's. */
static void empty(const char *dir)
{
	tree_remove(dir);
	if (mkdir(dir, 0700)) {
		die("%s: %s", dir, strerror(errno));
	}
}

void place_clear(const struct place *p)
{
	tree_remove(p->state);
	if (p->is_s3) {
		empty(p->target);
	} else {
		tree_remove(p->target);
	}
}

void place_load(const struct place *p, const char *name)
{
	place_clear(p);
	tree_copy(path_of("%s/%s-state", p->dir, name), p->state);
	tree_copy(path_of("%s/%s-target", p->dir, name), p->target);
}

void place_save(const struct place *p, const char *name)
{
	tree_remove(path_of("%s/%s-state", p->dir, name));
	tree_remove(path_of("%s/%s-target", p->dir, name));
	tree_copy(p->state, path_of("%s/%s-state", p->dir, name));
	tree_copy(p->target, path_of("%s/%s-target", p->dir, name));
}

/* The newest object of each database below DIR has older ones beside it, but that of one,
 * which is not there. */
void place_grow_old(const struct place *p)
{
	for (uint32_t i = 0; i < p->fleet->db_count; i++) {
		const struct fleet_db *db = &p->fleet->dbs[i];
		const char *dir = path_of("%s/%.*s", p->target, (int)strlen(db->rel) - 3, db->rel);
		struct dirent **names;
		int count = db->is_database ? scandir(dir, &names, NULL, alphasort) : 0;
		for (int day = 1; count > 2 && day <= 3; day++) {
			char name[32];
			time_t then = time(NULL) - OLD_S - day * 86400;
			struct tm tm;
			(void)strftime(name, sizeof(name), "%Y%m%dT%H%M%SZ.db.lz4",
				       gmtime_r(&then, &tm));
			file_copy(path_of("%s/%s", dir, names[2]->d_name),
				  path_of("%s/%s", dir, name));
		}
		if (count > 2 && i == 0) {
			(void)unlink(path_of("%s/%s", dir, names[count - 1]->d_name));
		}
		for (int n = 0; n < count; n++) {
			free(names[n]);
		}
		if (count > 0) {
			free(names);
		}
	}
}

/* ----------------------------------------------------------------------- checks */

static char text[3000];

static const char *wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *wrong(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return text;
}

static uint32_t right_count(const struct place *p, const struct target *target)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < p->fleet->db_count; i++) {
		count += !p->fleet->dbs[i].is_database ||
			 target_newest(target, i) == p->fleet->version;
	}
	return count;
}

const char *place_is_right(const struct place *p)
{
	struct target target;
	const char *why = target_read(p->target, p->fleet, &target);
	for (uint32_t i = 0; !why && i < p->fleet->db_count; i++) {
		if (p->fleet->dbs[i].is_database &&
		    target_newest(&target, i) != p->fleet->version) {
			why = wrong("%s: the newest of %u objects is version %u, not %u",
				    p->fleet->dbs[i].rel, target.dbs[i].count,
				    target_newest(&target, i), p->fleet->version);
		}
	}
	return why;
}

/* Whether RECORD says that the target has the present state of database DB, by the times
 * of its files. */
static int is_present(const struct place *p, uint32_t db, const struct us_siphash_key *key,
		      const struct us_record *record)
{
	struct us_file_stat files[2] = { { 0 }, { 0 } };
	static const char *const suffixes[] = { "", "-wal" };
	for (int i = 0; i < 2; i++) {
		struct stat st;
		if (!lstat(path_of("%s/%s%s", p->fleet->root, p->fleet->dbs[db].rel, suffixes[i]),
			   &st)) {
			files[i] = us_file_stat_of(&st);
		}
	}
	return us_fingerprint(key, &files[0], &files[1]) == record->fingerprint;
}

static const char *check_claims(const struct place *p, const struct target *target,
				struct us_table *table, const struct us_siphash_key *key,
				const char *where)
{
	for (uint32_t i = p->is_robbed; i < p->fleet->db_count; i++) {
		const struct target_db *t = &target->dbs[i];
		struct us_record record;
		uint32_t at = 0;
		if (!p->fleet->dbs[i].is_database ||
		    !us_table_get(table, us_path_hash_of(key, p->fleet->dbs[i].rel), &record) ||
		    record.flags & US_RECORD_UNSYNCED || record.content_hash == 0) {
			continue;
		}
		while (at < t->count && t->objects[at].time_s != record.object_time) {
			at++;
		}
		if (at == t->count) {
			return wrong("%s, %s: acknowledged, but the target has no such object",
				     p->fleet->dbs[i].rel, where);
		}
		if (t->objects[at].version != p->fleet->version && is_present(p, i, key, &record)) {
			return wrong("%s, %s: acknowledged as version %u, the target has %u",
				     p->fleet->dbs[i].rel, where, p->fleet->version,
				     t->objects[at].version);
		}
	}
	return NULL;
}

static const char *check_state_file(const struct place *p, const struct us *us,
				    const struct target *target)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_table *table;
	struct us_state *state;
	if (us_table_new(&table, &err)) {
		die("%s", err.message);
	}
	const char *why = NULL;
	int32_t rc = us_state_open_read_only(p->state, us->identity, table, &state, &err);
	if (rc == 0) {
		why = check_claims(p, target, table, &us_state_info(state)->key, "state file");
		us_state_close(state);
	} else {
		why = wrong("the state file cannot be read: %s", err.message);
	}
	us_table_free(table);
	return why;
}

const char *place_claims(const struct place *p, struct us *us, const struct us_cycle_result *result)
{
	struct us_error err = { .struct_size = sizeof(err) };
	struct us_stats stats = { .struct_size = sizeof(stats) };
	struct target target;
	const char *why = target_read(p->target, p->fleet, &target);
	if (!why) {
		why = check_claims(p, &target, us->table, &us_state_info(us->state)->key, "memory");
	}
	if (!why) {
		why = check_state_file(p, us, &target);
	}
	if (why || !result) {
		return why;
	}
	uint32_t right = right_count(p, &target);
	(void)us_stats(us, &stats, &err);
	if (result->walk_failures == 0 && !result->interrupted &&
	    p->fleet->db_count - right > stats.unsynced + p->is_robbed) {
		return wrong("%u of %u databases are in the target, and %llu are said to be "
			     "missing",
			     right, p->fleet->db_count, (unsigned long long)stats.unsynced);
	}
	return NULL;
}

/* --------------------------------------------------------------------- restores */

void place_prepare_output(const struct place *p, int with_old)
{
	const char *rel = p->fleet->dbs[PLACE_RESTORED(p)].rel;
	tree_remove(p->output);
	if (!with_old) {
		return;
	}
	if (mkdir(p->output, 0755) || mkdir(path_of("%s/a", p->output), 0755)) {
		die("%s: %s", p->output, strerror(errno));
	}
	file_copy(path_of("%s/%s", p->fleet->root, rel), path_of("%s/%s", p->output, rel));
	file_copy(path_of("%s/%s-wal", p->fleet->root, rel), path_of("%s/%s-wal", p->output, rel));
}

const char *place_compare(const struct place *p, uint32_t db, int may_miss)
{
	static const char *const sides[] = { "-wal", "-shm", "-journal" };
	const struct fleet *fleet = p->fleet;
	const char *path = path_of("%s/%s", p->output, fleet->dbs[db].rel);
	struct stat st, source;
	size_t len;
	if (lstat(path_of("%s/%s", fleet->root, fleet->dbs[db].rel), &source)) {
		die("the fleet has gone");
	}
	if (lstat(path, &st)) {
		return may_miss ? NULL : wrong("%s is not there", path);
	}
	uint8_t *data = file_read(path, &len);
	int same = len == fleet->dbs[db].image_lens[fleet->version] &&
		   memcmp(data, fleet->dbs[db].images[fleet->version], len) == 0;
	free(data);
	if (!same || st.st_mode != source.st_mode) {
		return wrong("%s is not what was backed up (%zu bytes, mode %o)", path, len,
			     st.st_mode);
	}
	for (int i = 0; i < 3; i++) {
		const char *side = path_of("%s%s", path, sides[i]);
		if (access(side, F_OK) == 0) {
			return wrong("%s is still there", side);
		}
	}
	return NULL;
}

int32_t place_restore(const struct place *p, struct us *us, uint32_t flags, struct us_error *err)
{
	const char *rel = p->fleet->dbs[PLACE_RESTORED(p)].rel;
	struct us_restore_result result = { .struct_size = sizeof(result) };
	const struct us_restore_options options = {
		.struct_size = sizeof(options),
		.flags = flags,
		.path = path_of("%s/%s", p->fleet->root, rel),
		.output_path = path_of("%s/%s", p->output, rel),
		.integrity_check = US_INTEGRITY_FULL,
	};
	return us_restore(us, &options, &result, err);
}

int32_t place_restore_fleet(const struct place *p, struct us *us, uint32_t flags,
			    uint32_t *ret_failed, struct us_error *err)
{
	static struct us_row rows[8];
	struct us_task *task;
	struct us_progress progress = { .struct_size = sizeof(progress) };
	const struct us_task_options options = { .struct_size = sizeof(options),
						 .kind = US_TASK_RESTORE,
						 .flags = flags,
						 .output_dir = p->output };
	int32_t rc = us_task_start(us, &options, &task, err);
	if (rc) {
		return rc;
	}
	while (rc >= 0 && !progress.finished) {
		rc = us_task_next(task, TASK_WAIT_MS, rows, 8, &progress, err);
		for (int32_t i = 0; i < rc; i++) {
			if (rows[i].status == US_ROW_FAILED && rows[i].message[0] == '\0') {
				die("a row has failed without a message");
			}
		}
	}
	us_task_close(task);
	*ret_failed = (uint32_t)progress.failed_count; /* a row may lack memory, and be missing */
	return rc;
}
