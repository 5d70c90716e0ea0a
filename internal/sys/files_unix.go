//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// errReplaced is the error of Chmod and Chown if the socket file is not the
// expected one.
var errReplaced = errors.New("the socket file was replaced by another")

// Unlink removes a file. os.Remove would also remove an empty directory.
func Unlink(name string) error {
	for {
		if err := unix.Unlink(name); err != unix.EINTR {
			return os.NewSyscallError("unlink", err)
		}
	}
}

// LockDir locks the directory dir against other callers of LockDir, in any
// process, until the function that it returns is called; the kernel releases the
// lock when the process dies. It returns ErrWouldBlock if the lock is held.
func LockDir(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return nil, ErrWouldBlock
		}
		return nil, os.NewSyscallError("flock", err)
	}
	return func() {
		_ = unix.Flock(fd, unix.LOCK_UN) // a child being forked may have the descriptor, too
		unix.Close(fd)
	}, nil
}
