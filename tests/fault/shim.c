/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every function here stands before libc's of the same name. The shape is always the
 * same: hit() counts the call and says whether it is to fail; if not, libc's is called.
 *
 * __cyg_profile_func_enter and _exit keep, per thread, the chain of the core's functions
 * and a running hash of it. Where the chain is empty, the program itself is at work (or a
 * library on its own), and nothing counts.
 *
 * malloc and its kin go to glibc's __libc_malloc; with SHIM_WRAP (sanitizers, which bring
 * their own) the linker wraps them instead, for what is linked statically.
 */
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include <utime.h>

#define BARE __attribute__((no_instrument_function))

/* ------------------------------------------------------------------- calls */

/* What each can fail with, by its manual page and by what file systems do. */
#define CALLS(X) \
	X(malloc, ENOMEM) \
	X(calloc, ENOMEM) \
	X(realloc, ENOMEM) \
	X(open, EMFILE, ENOMEM, EIO, EINTR) \
	X(create, ENOSPC, EMFILE, EIO, ENOMEM, EINTR) \
	X(openat2, EMFILE, ENOMEM, EIO, EINTR, ENOSYS) \
	X(close, EIO, EINTR) \
	X(read, EIO, EINTR, SHIM_SHORT) \
	X(pread, EIO, EINTR, SHIM_SHORT) \
	X(write, ENOSPC, EIO, EINTR, SHIM_SHORT) \
	X(pwrite, ENOSPC, EIO, EINTR, SHIM_SHORT) \
	X(fstat, EIO, ENOMEM) \
	X(stat, EIO, ENOMEM) \
	X(lstat, EIO, ENOMEM) \
	X(fstatat, EIO, ENOMEM) \
	X(statx, EIO, ENOMEM) \
	X(statfs, EIO, ENOMEM, EINTR) \
	X(access, EIO, ENOMEM) \
	X(realpath, EIO, ENOMEM) \
	X(readlink, EIO, ENOMEM) \
	X(getcwd, ENOMEM) \
	X(getdents64, EIO, ENOMEM, EINTR) \
	X(mkdir, ENOSPC, EIO, ENOMEM) \
	X(rmdir, EIO, ENOMEM) \
	X(unlink, EIO, ENOMEM) \
	X(rename, ENOSPC, EIO, ENOMEM) \
	X(link, ENOSPC, EIO, ENOMEM) \
	X(fsync, EIO, ENOSPC, EINTR) \
	X(syncfs, EIO, ENOSPC) \
	X(ftruncate, EIO, ENOSPC, EINTR) \
	X(fchmod, EIO, ENOMEM) \
	X(fchown, EIO, ENOSPC, ENOMEM) \
	X(utime, EIO) \
	X(fcntl_lock, ENOLCK, EINTR) \
	X(fcntl, EMFILE) \
	X(flock, ENOLCK, EINTR) \
	X(ioctl, EIO, ENOSPC) \
	X(mmap, ENOMEM) \
	X(getrandom, EINTR, SHIM_SHORT) \
	X(getaffinity, ENOMEM) \
	X(thread, EAGAIN) \
	X(epoll_create, EMFILE, ENOMEM) \
	X(epoll_ctl, ENOMEM, ENOSPC) \
	X(epoll_wait, EINTR) \
	X(eventfd, EMFILE, ENOMEM) \
	X(eventfd_use, EINTR) \
	X(poll, EINTR, ENOMEM) \
	X(socket, EMFILE, ENOBUFS, ENOMEM) \
	X(connect, EINTR, ENOMEM) \
	X(bind, ENOMEM) \
	X(send, ENOBUFS, ENOMEM, EINTR, SHIM_SHORT) \
	X(recv, ENOMEM, EINTR, SHIM_SHORT) \
	X(sockopt, ENOBUFS, ENOMEM) \
	X(sockname, ENOBUFS) \
	X(sleep, EINTR)

enum call {
#define CALL_ID(name, ...) CALL_##name,
	CALLS(CALL_ID) CALL_COUNT
};

static const struct {
	const char *name;
	int errors[SHIM_ERRORS_MAX];
} calls[] = {
#define CALL_ENTRY(name, ...) { #name, { __VA_ARGS__ } },
	CALLS(CALL_ENTRY)
};

const char *shim_call_name(uint32_t call)
{
	return calls[call].name;
}

uint32_t shim_call_of(const char *name)
{
	uint32_t call = 0;
	while (call < CALL_COUNT && strcmp(calls[call].name, name) != 0) {
		call++;
	}
	return call;
}

const int *shim_call_errors(uint32_t call)
{
	return calls[call].errors;
}

int shim_call_is_allocation(uint32_t call)
{
	return call <= CALL_realloc;
}

static int can_fail_with(enum call call, int error)
{
	for (int i = 0; i < SHIM_ERRORS_MAX && calls[call].errors[i]; i++) {
		if (calls[call].errors[i] == error) {
			return 1;
		}
	}
	return 0;
}

/* ------------------------------------------------------------------- chains */

static __thread struct {
	uint32_t depth;
	void *functions[SHIM_CHAIN_MAX], *froms[SHIM_CHAIN_MAX];
	uint64_t hashes[SHIM_CHAIN_MAX + 1]; /* of the chain up to there; [0]: empty */
} chain;

static uint64_t mix(uint64_t hash, const void *value)
{
	hash = (hash ^ (uint64_t)(uintptr_t)value) * UINT64_C(0x9E3779B97F4A7C15);
	return hash ^ hash >> 29;
}

BARE void __cyg_profile_func_enter(void *function, void *from);
BARE void __cyg_profile_func_exit(void *function, void *from);

void __cyg_profile_func_enter(void *function, void *from)
{
	uint32_t depth = chain.depth++;
	if (depth < SHIM_CHAIN_MAX) {
		chain.functions[depth] = function;
		chain.froms[depth] = from;
		/* The outermost is called by the program: from where does not matter. */
		chain.hashes[depth + 1] =
			mix(mix(chain.hashes[depth], function), depth ? from : NULL);
	}
}

void __cyg_profile_func_exit(void *function, void *from)
{
	(void)function, (void)from;
	chain.depth--;
}

static uint32_t chain_len(void)
{
	return chain.depth < SHIM_CHAIN_MAX ? chain.depth : SHIM_CHAIN_MAX;
}

static struct shim_chain chain_copy(void *from)
{
	uint32_t len = chain_len();
	struct shim_chain copy = { .from = from, .last_from = chain.froms[len - 1], .len = len };
	memcpy(copy.functions, chain.functions, copy.len * sizeof(void *));
	return copy;
}

/* ------------------------------------------------------ counting and failing */

#define OPS_MAX 200000u
#define DATA_MAX (UINT64_C(256) << 20)

/* What a process shares with its parent. */
static struct shared {
	atomic_flag lock;
	uint32_t site_count;
	struct shim_site sites[SHIM_SITES_MAX];
	uint32_t op_count;
	uint64_t data_len;
	struct shim_op ops[OPS_MAX];
	uint8_t data[DATA_MAX];
} *shared;

static _Atomic uint32_t phase_now;
static int counting, tracking;
static struct shim_fault armed; /* error 0: none */
static _Atomic uint32_t armed_hits;
static _Atomic int fired;

const char *shim_busy_name;

static void lock(atomic_flag *flag)
{
	while (atomic_flag_test_and_set_explicit(flag, memory_order_acquire)) {
	}
}

static void unlock(atomic_flag *flag)
{
	atomic_flag_clear_explicit(flag, memory_order_release);
}

static void die(const char *why)
{
	(void)!write(2, why, strlen(why));
	_exit(2);
}

void shim_init(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED) {
		die("shim: no memory\n");
	}
}

void shim_phase(uint32_t phase)
{
	phase_now = phase;
}

void shim_count(void)
{
	memset(shared->sites, 0, sizeof(shared->sites));
	shared->site_count = 0;
	counting = 1;
}

const struct shim_site *shim_sites(uint32_t *ret_count)
{
	*ret_count = SHIM_SITES_MAX;
	return shared->sites;
}

void shim_arm(const struct shim_fault *fault)
{
	armed = *fault;
	armed_hits = 0;
	fired = 0;
}

int shim_has_fired(void)
{
	return fired;
}

/* The place of HASH in the table, which may be free. */
static struct shim_site *find_site(uint64_t hash)
{
	for (uint64_t i = hash;; i++) {
		struct shim_site *site = &shared->sites[i % SHIM_SITES_MAX];
		if (site->hash == hash || site->hash == 0) {
			return site;
		}
	}
}

const struct shim_site *shim_site_of(uint64_t hash)
{
	const struct shim_site *site = find_site(hash);
	return site->hash ? site : NULL;
}

static void note(enum call call, uint64_t hash, void *from)
{
	lock(&shared->lock);
	struct shim_site *site = find_site(hash);
	if (!site->hash) {
		if (shared->site_count >= SHIM_SITES_MAX / 2) {
			die("shim: too many sites\n");
		}
		*site = (struct shim_site){ .hash = hash,
					    .call = call,
					    .phase = phase_now,
					    .order = shared->site_count++,
					    .chain = chain_copy(from) };
	}
	site->count++;
	unlock(&shared->lock);
}

static uint64_t site_hash(enum call call, const void *from)
{
	uint64_t hash = mix(mix(chain.hashes[chain_len()], from),
			    (const void *)(uintptr_t)(call + 1 + 1000 * phase_now));
	return hash ? hash : 1;
}

/* What this call is to fail with; 0: nothing. Keeps errno. */
static int hit(enum call call, void *from)
{
	if (chain.depth == 0 || phase_now == 0 || (!counting && !armed.error)) {
		return 0;
	}
	if (counting) {
		note(call, site_hash(call, from), from);
		return 0;
	}
	if (fired) {
		return armed.stays && can_fail_with(call, armed.error) ? armed.error : 0;
	}
	if (call == armed.call && phase_now == armed.phase &&
	    (!armed.site || site_hash(call, from) == armed.site) && armed_hits++ == armed.nth) {
		fired = 1;
		return armed.error;
	}
	return 0;
}

/* An eventfd takes eight bytes or none, and nothing but a signal disturbs it. */
static int is_eventfd(int fd)
{
	char link[40], target[40];
	(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	ssize_t len = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof(target));
	return len >= 20 && memcmp(target, "anon_inode:[eventfd]", 20) == 0;
}

/* Of a transfer: -1 with errno, else it goes on with *LEN bytes. */
static int hit_transfer(enum call call, void *from, size_t *len)
{
	int error = hit(call, from);
	if (error == SHIM_SHORT) {
		*len = *len < 2 ? *len : armed.stays ? (*len + 1) / 2 : 1;
		return 0;
	}
	errno = error ? error : errno;
	return error ? -1 : 0;
}

#define FROM __builtin_return_address(0)
#define HIT(call) \
	do { \
		int error_ = hit(call, FROM); \
		if (error_) { \
			errno = error_; \
			return -1; \
		} \
	} while (0)

/* libc's function NAME, of the type of ours. */
#define REAL(name) \
	({ \
		static __typeof__(&name) found_; \
		if (!found_) { \
			found_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
		} \
		found_; \
	})

/* -------------------------------------------------------------- allocations */

#define BLOCKS_MAX (1u << 14)

static struct {
	void *block; /* NULL: free */
	struct shim_chain chain;
} blocks[BLOCKS_MAX];
static uint32_t block_count;
static atomic_flag blocks_lock = ATOMIC_FLAG_INIT;

static uint32_t block_home(const void *block)
{
	return (uint32_t)(mix(0, block) >> 17) % BLOCKS_MAX;
}

static void block_add(void *block, void *from)
{
	if (!tracking || chain.depth == 0 || !block) {
		return;
	}
	lock(&blocks_lock);
	if (++block_count > BLOCKS_MAX / 2) {
		die("shim: too many blocks\n");
	}
	uint32_t at = block_home(block);
	while (blocks[at].block) {
		at = (at + 1) % BLOCKS_MAX;
	}
	blocks[at].block = block;
	blocks[at].chain = chain_copy(from);
	unlock(&blocks_lock);
}

static void block_remove(void *block)
{
	if (!tracking || !block) {
		return;
	}
	lock(&blocks_lock);
	uint32_t at = block_home(block);
	while (blocks[at].block && blocks[at].block != block) {
		at = (at + 1) % BLOCKS_MAX;
	}
	if (blocks[at].block) {
		block_count--;
		/* Moves back what was pushed past it. */
		for (uint32_t hole = at, i = (at + 1) % BLOCKS_MAX;; i = (i + 1) % BLOCKS_MAX) {
			if (!blocks[i].block) {
				blocks[hole].block = NULL;
				break;
			}
			uint32_t home = block_home(blocks[i].block);
			if ((i - home) % BLOCKS_MAX >= (i - hole) % BLOCKS_MAX) {
				blocks[hole] = blocks[i];
				hole = i;
			}
		}
	}
	unlock(&blocks_lock);
}

void shim_track(void)
{
	tracking = 1;
}

uint32_t shim_untrack(int (*is_kept)(const struct shim_chain *chain), struct shim_chain *ret_chain)
{
	uint32_t count = 0;
	tracking = 0;
	for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
		if (blocks[i].block && !is_kept(&blocks[i].chain)) {
			*ret_chain = blocks[i].chain;
			count++;
		}
	}
	return count;
}

#ifdef SHIM_WRAP
#define OUR(name) __wrap_##name
#define LIBC(name) __real_##name
#else
#define OUR(name) name
#define LIBC(name) __libc_##name
#endif
void *LIBC(malloc)(size_t len);
void *LIBC(calloc)(size_t count, size_t len);
void *LIBC(realloc)(void *old, size_t len);
void LIBC(free)(void *block);
void *OUR(malloc)(size_t len);
void *OUR(calloc)(size_t count, size_t len);
void *OUR(realloc)(void *old, size_t len);
void OUR(free)(void *block);

void *OUR(malloc)(size_t len)
{
	int error = hit(CALL_malloc, FROM);
	void *block = error ? NULL : LIBC(malloc)(len);
	errno = error ? error : errno;
	block_add(block, FROM);
	return block;
}

void *OUR(calloc)(size_t count, size_t len)
{
	int error = hit(CALL_calloc, FROM);
	void *block = error ? NULL : LIBC(calloc)(count, len);
	errno = error ? error : errno;
	block_add(block, FROM);
	return block;
}

void *OUR(realloc)(void *old, size_t len)
{
	int error = hit(CALL_realloc, FROM);
	if (error) {
		errno = error;
		return NULL;
	}
	block_remove(old);
	void *block = LIBC(realloc)(old, len);
	block_add(block ? block : old, FROM);
	return block;
}

void OUR(free)(void *block)
{
	block_remove(block);
	LIBC(free)(block);
}

/* ------------------------------------------------------------------- the log */

static int logging;
static uint32_t log_end_at;
static pthread_mutex_t log_mutex = PTHREAD_MUTEX_INITIALIZER; /* held across what is logged */

static int log_begin(void)
{
	if (!logging || chain.depth == 0) {
		return 0;
	}
	(void)pthread_mutex_lock(&log_mutex);
	return 1;
}

static void log_end(int begun)
{
	if (begun && log_end_at && shared->op_count >= log_end_at) {
		_exit(0);
	}
	if (begun) {
		(void)pthread_mutex_unlock(&log_mutex);
	}
}

static struct shim_op *log_op(enum shim_op_kind kind)
{
	if (shared->op_count == OPS_MAX) {
		die("shim: the log is full\n");
	}
	struct shim_op *op = &shared->ops[shared->op_count++];
	*op = (struct shim_op){ .kind = kind };
	return op;
}

static uint64_t ino_of_fd(int fd)
{
	struct stat st;
	return syscall(SYS_fstat, fd, &st) ? 0 : st.st_ino;
}

/* 0: no such name. */
static uint64_t ino_of(int dir_fd, const char *path)
{
	struct stat st;
	return syscall(SYS_newfstatat, dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) ? 0 : st.st_ino;
}

/* The directory that PATH is in, and its name there. */
static uint64_t split(int dir_fd, const char *path, char name[256])
{
	char dir[4096];
	struct stat st;
	const char *slash = strrchr(path, '/');
	(void)snprintf(name, 256, "%s", slash ? slash + 1 : path);
	(void)snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
	return syscall(SYS_newfstatat, dir_fd, dir[0] ? dir : "/", &st, 0) ? 0 : st.st_ino;
}

static void log_name(enum shim_op_kind kind, int dir_fd, const char *path, uint64_t ino)
{
	struct shim_op *op = log_op(kind);
	op->dir = split(dir_fd, path, op->name);
	op->ino = ino;
}

static void log_data(int fd, uint64_t off, const void *data, size_t len)
{
	if (shared->data_len + len > DATA_MAX) {
		die("shim: the log is full\n");
	}
	struct shim_op *op = log_op(SHIM_OP_WRITE);
	op->ino = ino_of_fd(fd);
	op->off = off;
	op->len = len;
	op->data = shared->data + shared->data_len;
	memcpy(shared->data + shared->data_len, data, len);
	shared->data_len += len;
}

static void log_ino(enum shim_op_kind kind, int fd, uint64_t len)
{
	struct shim_op *op = log_op(kind);
	op->ino = ino_of_fd(fd);
	op->len = len;
}

void shim_log(int go_on, uint32_t end_at)
{
	shared->op_count = go_on ? shared->op_count : 0;
	shared->data_len = go_on ? shared->data_len : 0;
	log_end_at = end_at;
	logging = 1;
}

void shim_mark(const char *text)
{
	(void)pthread_mutex_lock(&log_mutex);
	(void)snprintf(log_op(SHIM_OP_MARK)->name, 256, "%s", text);
	(void)pthread_mutex_unlock(&log_mutex);
}

const struct shim_op *shim_ops(uint32_t *ret_count)
{
	*ret_count = shared->op_count;
	return shared->ops;
}

/* ------------------------------------------------------------- opening, names */

static void touch_if_busy(int fd, const char *path)
{
	const char *slash = strrchr(path, '/');
	if (fd >= 0 && shim_busy_name && chain.depth > 0 &&
	    strcmp(slash ? slash + 1 : path, shim_busy_name) == 0) {
		const struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { .tv_nsec = UTIME_OMIT } };
		char link[40];
		(void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		(void)syscall(SYS_utimensat, AT_FDCWD, link, times, 0);
	}
}

static int is_creating(int flags)
{
	return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

static int open_any(int dir_fd, const char *path, int flags, mode_t mode, void *from)
{
	int creating = is_creating(flags);
	int error = hit(creating ? CALL_create : CALL_open, from);
	if (error) {
		errno = error;
		return -1;
	}
	int begun = log_begin();
	uint64_t before = begun && flags & O_CREAT ? ino_of(dir_fd, path) : 0;
	int fd = REAL(openat)(dir_fd, path, flags, mode);
	if (begun && fd >= 0 && flags & O_CREAT && !before) {
		log_name(SHIM_OP_CREATE, dir_fd, path, ino_of_fd(fd));
	} else if (begun && fd >= 0 && flags & O_TRUNC) {
		log_ino(SHIM_OP_TRUNCATE, fd, 0);
	}
	log_end(begun);
	touch_if_busy(fd, path);
	return fd;
}

static mode_t mode_of(int flags, va_list args)
{
	return is_creating(flags) ? va_arg(args, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
	va_list args;
	va_start(args, flags);
	mode_t mode = mode_of(flags, args);
	va_end(args);
	return open_any(AT_FDCWD, path, flags, mode, FROM);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int dir_fd, const char *path, int flags, ...)
{
	va_list args;
	va_start(args, flags);
	mode_t mode = mode_of(flags, args);
	va_end(args);
	return open_any(dir_fd, path, flags, mode, FROM);
}
int openat64(int dir_fd, const char *path, int flags, ...) __attribute__((alias("openat")));

/* openat2 and getdents64 have no wrappers in libc. */
long syscall(long number, ...)
{
	long a[6];
	va_list args;
	va_start(args, number);
	for (int i = 0; i < 6; i++) {
		a[i] = va_arg(args, long);
	}
	va_end(args);
	if (number == SYS_openat2) {
		HIT(CALL_openat2);
	} else if (number == SYS_getdents64) {
		HIT(CALL_getdents64);
	}
	long rc = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (number == SYS_openat2) {
		touch_if_busy((int)rc, (const char *)a[1]);
	}
	return rc;
}

int close(int fd)
{
	int rc = REAL(close)(fd); /* the descriptor is gone in any case */
	HIT(CALL_close);
	return rc;
}

int mkdirat(int dir_fd, const char *path, mode_t mode)
{
	HIT(CALL_mkdir);
	int begun = log_begin();
	int rc = REAL(mkdirat)(dir_fd, path, mode);
	if (begun && rc == 0) {
		log_name(SHIM_OP_MKDIR, dir_fd, path, ino_of(dir_fd, path));
	}
	log_end(begun);
	return rc;
}

int mkdir(const char *path, mode_t mode)
{
	HIT(CALL_mkdir);
	int begun = log_begin();
	int rc = REAL(mkdir)(path, mode);
	if (begun && rc == 0) {
		log_name(SHIM_OP_MKDIR, AT_FDCWD, path, ino_of(AT_FDCWD, path));
	}
	log_end(begun);
	return rc;
}

static int unlink_any(int dir_fd, const char *path, int flags)
{
	int begun = log_begin();
	uint64_t ino = begun ? ino_of(dir_fd, path) : 0;
	int rc = REAL(unlinkat)(dir_fd, path, flags);
	if (begun && rc == 0) {
		log_name(SHIM_OP_UNLINK, dir_fd, path, ino);
	}
	log_end(begun);
	return rc;
}

int unlinkat(int dir_fd, const char *path, int flags)
{
	HIT(flags & AT_REMOVEDIR ? CALL_rmdir : CALL_unlink);
	return unlink_any(dir_fd, path, flags);
}

int unlink(const char *path)
{
	HIT(CALL_unlink);
	return unlink_any(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
	HIT(CALL_rmdir);
	return unlink_any(AT_FDCWD, path, AT_REMOVEDIR);
}

static int rename_any(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
	int begun = log_begin();
	int rc = REAL(renameat2)(from_fd, from, to_fd, to, flags);
	if (begun && rc == 0) {
		struct shim_op *op = log_op(SHIM_OP_RENAME);
		op->dir = split(from_fd, from, op->name);
		op->to_dir = split(to_fd, to, op->to_name);
		op->ino = ino_of(to_fd, to);
	}
	log_end(begun);
	return rc;
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags)
{
	HIT(CALL_rename);
	return rename_any(from_fd, from, to_fd, to, flags);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	HIT(CALL_rename);
	return rename_any(from_fd, from, to_fd, to, 0);
}

int rename(const char *from, const char *to)
{
	HIT(CALL_rename);
	return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
	HIT(CALL_link);
	int begun = log_begin();
	int rc = REAL(linkat)(from_fd, from, to_fd, to, flags);
	if (begun && rc == 0) {
		log_name(SHIM_OP_LINK, to_fd, to, ino_of(to_fd, to));
	}
	log_end(begun);
	return rc;
}

/* -------------------------------------------------------------------- looking */

int fstat(int fd, struct stat *ret)
{
	HIT(CALL_fstat);
	return REAL(fstat)(fd, ret);
}
int fstat64(int fd, struct stat64 *ret) __attribute__((alias("fstat")));

int stat(const char *path, struct stat *ret)
{
	HIT(CALL_stat);
	return REAL(stat)(path, ret);
}
int stat64(const char *path, struct stat64 *ret) __attribute__((alias("stat")));

int lstat(const char *path, struct stat *ret)
{
	HIT(CALL_lstat);
	return REAL(lstat)(path, ret);
}
int lstat64(const char *path, struct stat64 *ret) __attribute__((alias("lstat")));

int fstatat(int dir_fd, const char *path, struct stat *ret, int flags)
{
	HIT(CALL_fstatat);
	return REAL(fstatat)(dir_fd, path, ret, flags);
}
int fstatat64(int dir_fd, const char *path, struct stat64 *ret, int flags)
	__attribute__((alias("fstatat")));

int statx(int dir_fd, const char *path, int flags, unsigned int mask, struct statx *ret)
{
	HIT(CALL_statx);
	return REAL(statx)(dir_fd, path, flags, mask, ret);
}

int fstatfs(int fd, struct statfs *ret)
{
	HIT(CALL_statfs);
	return REAL(fstatfs)(fd, ret);
}

int fstatvfs(int fd, struct statvfs *ret)
{
	HIT(CALL_statfs);
	return REAL(fstatvfs)(fd, ret);
}

int access(const char *path, int mode)
{
	HIT(CALL_access);
	return REAL(access)(path, mode);
}

int faccessat(int dir_fd, const char *path, int mode, int flags)
{
	HIT(CALL_access);
	return REAL(faccessat)(dir_fd, path, mode, flags);
}

char *realpath(const char *path, char *ret)
{
	int error = hit(CALL_realpath, FROM);
	errno = error ? error : errno;
	return error ? NULL : REAL(realpath)(path, ret);
}

ssize_t readlink(const char *path, char *ret, size_t len)
{
	HIT(CALL_readlink);
	return REAL(readlink)(path, ret, len);
}

char *getcwd(char *ret, size_t len)
{
	int error = hit(CALL_getcwd, FROM);
	errno = error ? error : errno;
	return error ? NULL : REAL(getcwd)(ret, len);
}

int fchmod(int fd, mode_t mode)
{
	HIT(CALL_fchmod);
	int begun = log_begin();
	int rc = REAL(fchmod)(fd, mode);
	if (begun && rc == 0) {
		log_ino(SHIM_OP_MODE, fd, mode);
	}
	log_end(begun);
	return rc;
}

int fchown(int fd, uid_t uid, gid_t gid)
{
	HIT(CALL_fchown);
	return REAL(fchown)(fd, uid, gid);
}

int utime(const char *path, const struct utimbuf *times)
{
	HIT(CALL_utime);
	return REAL(utime)(path, times);
}

/* ----------------------------------------------------------- reading, writing */

ssize_t read(int fd, void *data, size_t len)
{
	if (len == sizeof(uint64_t) && is_eventfd(fd)) {
		HIT(CALL_eventfd_use);
		return REAL(read)(fd, data, len);
	}
	return hit_transfer(CALL_read, FROM, &len) ? -1 : REAL(read)(fd, data, len);
}

ssize_t pread(int fd, void *data, size_t len, off_t off)
{
	return hit_transfer(CALL_pread, FROM, &len) ? -1 : REAL(pread)(fd, data, len, off);
}
ssize_t pread64(int fd, void *data, size_t len, off64_t off) __attribute__((alias("pread")));

ssize_t write(int fd, const void *data, size_t len)
{
	if (len == sizeof(uint64_t) && is_eventfd(fd)) {
		HIT(CALL_eventfd_use);
		return REAL(write)(fd, data, len);
	}
	if (hit_transfer(CALL_write, FROM, &len)) {
		return -1;
	}
	int begun = log_begin();
	off_t off = begun ? lseek(fd, 0, SEEK_CUR) : 0;
	ssize_t n = REAL(write)(fd, data, len);
	if (begun && n > 0 && off >= 0) {
		log_data(fd, (uint64_t)off, data, (size_t)n);
	}
	log_end(begun);
	return n;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t off)
{
	if (hit_transfer(CALL_pwrite, FROM, &len)) {
		return -1;
	}
	int begun = log_begin();
	ssize_t n = REAL(pwrite)(fd, data, len, off);
	if (begun && n > 0) {
		log_data(fd, (uint64_t)off, data, (size_t)n);
	}
	log_end(begun);
	return n;
}
ssize_t pwrite64(int fd, const void *data, size_t len, off64_t off)
	__attribute__((alias("pwrite")));

int ftruncate(int fd, off_t len)
{
	HIT(CALL_ftruncate);
	int begun = log_begin();
	int rc = REAL(ftruncate)(fd, len);
	if (begun && rc == 0) {
		log_ino(SHIM_OP_TRUNCATE, fd, (uint64_t)len);
	}
	log_end(begun);
	return rc;
}
int ftruncate64(int fd, off64_t len) __attribute__((alias("ftruncate")));

/* Nothing is synced: no power is cut, and the disk is slow. */
int fsync(int fd)
{
	HIT(CALL_fsync);
	int begun = log_begin();
	if (begun) {
		log_ino(SHIM_OP_SYNC, fd, 0);
	}
	log_end(begun);
	return 0;
}
int fdatasync(int fd) __attribute__((alias("fsync")));

int syncfs(int fd)
{
	HIT(CALL_syncfs);
	int begun = log_begin();
	if (begun) {
		log_ino(SHIM_OP_SYNCFS, fd, 0);
	}
	log_end(begun);
	return 0;
}

/* ---------------------------------------------------------------- descriptors */

static int is_lock(int what)
{
	return what == F_SETLK || what == F_SETLKW || what == F_GETLK || what == F_OFD_SETLK ||
	       what == F_OFD_SETLKW || what == F_OFD_GETLK;
}

int fcntl(int fd, int what, ...)
{
	va_list args;
	va_start(args, what);
	void *arg = va_arg(args, void *);
	va_end(args);
	/* To give a lock back does not fail on a local file system. */
	if (is_lock(what) && ((const struct flock *)arg)->l_type != F_UNLCK) {
		HIT(CALL_fcntl_lock);
	} else if (what == F_DUPFD || what == F_DUPFD_CLOEXEC) {
		HIT(CALL_fcntl);
	}
	return REAL(fcntl)(fd, what, arg);
}
int fcntl64(int fd, int what, ...) __attribute__((alias("fcntl")));

int flock(int fd, int what)
{
	HIT(CALL_flock);
	return REAL(flock)(fd, what);
}

int ioctl(int fd, unsigned long what, ...)
{
	va_list args;
	va_start(args, what);
	void *arg = va_arg(args, void *);
	va_end(args);
	HIT(CALL_ioctl);
	return REAL(ioctl)(fd, what, arg);
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	int error = hit(CALL_mmap, FROM);
	errno = error ? error : errno;
	return error ? MAP_FAILED : (void *)syscall(SYS_mmap, at, len, prot, flags, fd, off);
}
void *mmap64(void *at, size_t len, int prot, int flags, int fd, off64_t off)
	__attribute__((alias("mmap")));

ssize_t getrandom(void *ret, size_t len, unsigned int flags)
{
	return hit_transfer(CALL_getrandom, FROM, &len) ? -1 : REAL(getrandom)(ret, len, flags);
}

int sched_getaffinity(pid_t pid, size_t len, cpu_set_t *ret)
{
	HIT(CALL_getaffinity);
	return REAL(sched_getaffinity)(pid, len, ret);
}

int pthread_create(pthread_t *ret, const pthread_attr_t *attr, void *(*main)(void *), void *arg)
{
	int error = hit(CALL_thread, FROM);
	return error ? error : REAL(pthread_create)(ret, attr, main, arg);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left)
{
	int error = hit(CALL_sleep, FROM);
	return error ? error : REAL(clock_nanosleep)(clock, flags, until, left);
}

static _Atomic int64_t clock_offset_s;

void shim_clock_forward(int64_t s)
{
	clock_offset_s += s;
}

int clock_gettime(clockid_t clock, struct timespec *ret)
{
	int rc = REAL(clock_gettime)(clock, ret);
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
		ret->tv_sec += clock_offset_s;
	}
	return rc;
}

/* ------------------------------------------------------------------- network */

int epoll_create1(int flags)
{
	HIT(CALL_epoll_create);
	return REAL(epoll_create1)(flags);
}

int epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *event)
{
	if (what != EPOLL_CTL_DEL) {
		HIT(CALL_epoll_ctl);
	}
	return REAL(epoll_ctl)(epoll_fd, what, fd, event);
}

int epoll_wait(int epoll_fd, struct epoll_event *ret, int count, int timeout_ms)
{
	HIT(CALL_epoll_wait);
	return REAL(epoll_wait)(epoll_fd, ret, count, timeout_ms);
}

int eventfd(unsigned int count, int flags)
{
	HIT(CALL_eventfd);
	return REAL(eventfd)(count, flags);
}

int poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	HIT(CALL_poll);
	return REAL(poll)(fds, count, timeout_ms);
}

int socket(int domain, int type, int protocol)
{
	HIT(CALL_socket);
	return REAL(socket)(domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int ret[2])
{
	HIT(CALL_socket);
	return REAL(socketpair)(domain, type, protocol, ret);
}

int connect(int fd, const struct sockaddr *address, socklen_t len)
{
	HIT(CALL_connect);
	return REAL(connect)(fd, address, len);
}

int bind(int fd, const struct sockaddr *address, socklen_t len)
{
	HIT(CALL_bind);
	return REAL(bind)(fd, address, len);
}

ssize_t send(int fd, const void *data, size_t len, int flags)
{
	return hit_transfer(CALL_send, FROM, &len) ? -1 : REAL(send)(fd, data, len, flags);
}

ssize_t sendto(int fd, const void *data, size_t len, int flags, const struct sockaddr *to,
	       socklen_t to_len)
{
	return hit_transfer(CALL_send, FROM, &len)
		       ? -1
		       : REAL(sendto)(fd, data, len, flags, to, to_len);
}

ssize_t recv(int fd, void *data, size_t len, int flags)
{
	return hit_transfer(CALL_recv, FROM, &len) ? -1 : REAL(recv)(fd, data, len, flags);
}

ssize_t recvfrom(int fd, void *data, size_t len, int flags, struct sockaddr *from,
		 socklen_t *from_len)
{
	return hit_transfer(CALL_recv, FROM, &len)
		       ? -1
		       : REAL(recvfrom)(fd, data, len, flags, from, from_len);
}

int getsockopt(int fd, int level, int name, void *ret, socklen_t *len)
{
	HIT(CALL_sockopt);
	return REAL(getsockopt)(fd, level, name, ret, len);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	HIT(CALL_sockopt);
	return REAL(setsockopt)(fd, level, name, value, len);
}

int getsockname(int fd, struct sockaddr *ret, socklen_t *len)
{
	HIT(CALL_sockname);
	return REAL(getsockname)(fd, ret, len);
}

int getpeername(int fd, struct sockaddr *ret, socklen_t *len)
{
	HIT(CALL_sockname);
	return REAL(getpeername)(fd, ret, len);
}
