/* SPDX-License-Identifier: Apache-2.0 */
/*
 * subreaper COMMAND [ARG...]: runs COMMAND and reaps whatever it leaves behind.
 *
 * Orphans go to the nearest subreaper, else to process 1; in many containers that
 * one reaps late or never, and a test that waits for an orphan to be gone (two of
 * upstream's TestReplicateShutdown) then sees a zombie. Exits as COMMAND does.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 2 || prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L) != 0) {
		return 127;
	}
	pid_t child = fork();
	if (child < 0) {
		return 127;
	}
	if (child == 0) {
		execvp(argv[1], argv + 1);
		perror(argv[1]);
		_exit(127);
	}
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, 0);
		if (pid < 0 && errno != EINTR) {
			return 127;
		}
		if (pid == child && WIFEXITED(status)) {
			return WEXITSTATUS(status);
		}
		if (pid == child && WIFSIGNALED(status)) {
			return 128 + WTERMSIG(status);
		}
	}
}
