package unixsock

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenBSD takes system calls from its libc alone, so the address goes by way of
// x/sys/unix. A path there has no NUL inside and one behind: nothing is lost.

func bind(fd int, name string) error {
	return unix.Bind(fd, &unix.SockaddrUnix{Name: name})
}

func connect(fd int, name string) error {
	return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
}

func accept(fd int) (int, string, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	nfd, sa, err := unix.Accept(fd)
	if err != nil {
		return -1, "", err
	}
	nfd, err = mark(nfd)
	return nfd, nameOf(sa), err
}

func getsockname(fd int) (string, error) {
	sa, err := unix.Getsockname(fd)
	return nameOf(sa), err
}

func getpeername(fd int) (string, error) {
	sa, err := unix.Getpeername(fd)
	return nameOf(sa), err
}

func nameOf(sa unix.Sockaddr) string {
	if sa, ok := sa.(*unix.SockaddrUnix); ok {
		return sa.Name
	}
	return ""
}
