//go:build darwin || openbsd

package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const maxWrapped = 103 // the maximum length of a name that x/sys/unix passes to the kernel

func accept(fd int) (int, string, error) {
	defer holdForks()()
	nfd, sa, err := acceptSocket(fd)
	if err == unix.EINVAL && nfd >= 0 { // package syscall has closed nfd: its peer's name is too long
		err = unix.ECONNABORTED
	}
	cloexec(err, nfd)
	name, err := nameOf(sa, err)
	return nfd, name, err
}

func getsockname(fd int) (string, error) { return nameOf(syscall.Getsockname(fd)) }
func getpeername(fd int) (string, error) { return nameOf(syscall.Getpeername(fd)) }

// nameOf returns the name in an address that a call has returned.
func nameOf(sa syscall.Sockaddr, err error) (string, error) {
	if unixAddr, ok := sa.(*syscall.SockaddrUnix); ok {
		return unixAddr.Name, err
	}
	if err == nil {
		err = unix.EAFNOSUPPORT
	}
	return "", err
}

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }
