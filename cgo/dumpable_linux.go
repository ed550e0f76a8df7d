package multidb

import "golang.org/x/sys/unix"

// forbidCoreFiles keeps the kernel from writing a core file of this process, now that
// it has keys in strings that cannot be wiped. A limit of 0 for core files would not do:
// it does not bind a core_pattern that is a pipe, and commands of -exec would inherit it,
// while this ends with their exec. It also hides /proc/PID/environ and /proc/PID/mem from
// other processes of the same user, and keeps their debuggers out.
func forbidCoreFiles() error {
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
