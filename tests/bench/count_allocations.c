/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded: counts the calls of malloc, calloc and realloc by who makes them, in an array
 * of 64-bit counters in the file US_BENCH_COUNTS, in this order: the library (return
 * addresses in US_BENCH_TEXT, "FIRST-END" in hex, of the program as it is on disk), the rest
 * of the program, libcurl, OpenSSL, libsqlite3, all others.
 *
 * What libcurl asks the library's allocator for (csrc/base/alloc.c, at US_BENCH_ALLOCATOR in
 * the same notation) counts as libcurl's: it is whoever has called the allocator that counts.
 */
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OURS, PROGRAM, CURL, OPENSSL, SQLITE, OTHERS, KINDS, ALLOCATOR };

#define RANGES_MAX 64
#define FRAMES_MAX 8

struct range {
	uintptr_t first, end;
	int kind;
};

extern void *__libc_malloc(size_t len);
extern void *__libc_calloc(size_t count, size_t len);
extern void *__libc_realloc(void *old, size_t len);

static struct range ranges[RANGES_MAX];
static size_t range_count;
static _Atomic uint64_t *counters; /* NULL: not yet */

static void add(uintptr_t first, uintptr_t end, int kind)
{
	if (range_count < RANGES_MAX) {
		ranges[range_count++] = (struct range){ first, end, kind };
	}
}

static void add_named(const char *variable, uintptr_t base, int kind)
{
	const char *text = getenv(variable);
	unsigned long first, end;
	if (text && sscanf(text, "%lx-%lx", &first, &end) == 2) {
		add(base + first, base + end, kind);
	}
}

static int kind_of(const char *name)
{
	return name[0] == '\0'              ? PROGRAM
	       : strstr(name, "/libcurl")   ? CURL
	       : strstr(name, "/libssl")    ? OPENSSL
	       : strstr(name, "/libcrypto") ? OPENSSL
	       : strstr(name, "/libsqlite") ? SQLITE
					    : OTHERS;
}

static int add_object(struct dl_phdr_info *info, size_t len, void *arg)
{
	(void)len;
	(void)arg;
	int kind = kind_of(info->dlpi_name);
	if (kind == PROGRAM) {
		add_named("US_BENCH_ALLOCATOR", info->dlpi_addr, ALLOCATOR);
		add_named("US_BENCH_TEXT", info->dlpi_addr, OURS);
	}
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		if (header->p_type == PT_LOAD && (header->p_flags & PF_X) && kind != OTHERS) {
			uintptr_t first = info->dlpi_addr + header->p_vaddr;
			add(first, first + header->p_memsz, kind);
		}
	}
	return 0;
}

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("US_BENCH_COUNTS");
	int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
	if (fd < 0 || ftruncate(fd, KINDS * 8)) {
		return;
	}
	void *frame;
	(void)backtrace(&frame, 1); /* loads what it needs */
	(void)dl_iterate_phdr(add_object, NULL);
	void *p = mmap(NULL, KINDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	counters = p == MAP_FAILED ? NULL : p;
	(void)close(fd);
}

static int kind_at(const void *address)
{
	uintptr_t at = (uintptr_t)address;
	for (size_t i = 0; i < range_count; i++) {
		if (at >= ranges[i].first && at < ranges[i].end) {
			return ranges[i].kind;
		}
	}
	return OTHERS;
}

static void count(const void *caller)
{
	if (!counters) {
		return;
	}
	int kind = kind_at(caller);
	if (kind == ALLOCATOR) {
		void *frames[FRAMES_MAX];
		int frame_count = backtrace(frames, FRAMES_MAX), i = 0;
		while (i < frame_count && kind_at(frames[i]) != ALLOCATOR) {
			i++;
		}
		while (i < frame_count && kind_at(frames[i]) == ALLOCATOR) {
			i++;
		}
		kind = i < frame_count ? kind_at(frames[i]) : OTHERS;
	}
	counters[kind]++;
}

void *malloc(size_t len)
{
	count(__builtin_return_address(0));
	return __libc_malloc(len);
}

void *calloc(size_t items, size_t len)
{
	count(__builtin_return_address(0));
	return __libc_calloc(items, len);
}

void *realloc(void *old, size_t len)
{
	count(__builtin_return_address(0));
	return __libc_realloc(old, len);
}
