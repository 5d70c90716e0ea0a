//go:build darwin || openbsd

package unixsock

import "golang.org/x/sys/unix"

// mark makes a new descriptor close-on-exec and non-blocking, where no flag can
// do so at its birth. The caller holds syscall.ForkLock, which keeps a fork of
// this process from falling in between.
func mark(fd int) (int, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
