/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_TESTS_REFUSE_H
#define US_TESTS_REFUSE_H

/*
 * A kernel that cannot do something: a system call fails from now on, in this process
 * and for good. So it is for a child process, which runs a function and ends with its
 * result. Machines that have no seccomp skip the test.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Calls of NUMBER fail with SYS_ERRNO if all bits of MASK are set in argument ARG. */
static inline int refuse(long number, int sys_errno, unsigned int arg, uint32_t mask)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
			 (uint32_t)(offsetof(struct seccomp_data, args) + arg * sizeof(uint64_t))),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, mask, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)sys_errno),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

#define REFUSE_UNSUPPORTED 77

/* The result of FN, 0..76, where NUMBER fails so; REFUSE_UNSUPPORTED without seccomp. */
static inline int without(long number, int sys_errno, unsigned int arg, uint32_t mask,
			  int (*fn)(void))
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		exit(refuse(number, sys_errno, arg, mask) ? REFUSE_UNSUPPORTED : fn());
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Expects 0 of FN. */
#define assert_works_without(number, sys_errno, arg, mask, fn) \
	do { \
		int result = without(number, sys_errno, arg, mask, fn); \
		if (result == REFUSE_UNSUPPORTED) { \
			skip(); \
		} \
		assert_int_equal(result, 0); \
	} while (0)

#endif
