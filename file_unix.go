//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func newPair() (int, int, error) {
	fds, err := socketpair()
	if err != nil {
		return -1, -1, os.NewSyscallError("socketpair", err)
	}
	return aboveStandard(fds[0]), aboveStandard(fds[1]), nil
}

// duplicate copies fd, close-on-exec from birth.
func duplicate(fd int) (int, error) {
	nfd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return nfd, os.NewSyscallError("fcntl", err)
}

// adoptSocket makes sure that fd is a unix stream socket, listening or
// connected as wanted, makes it non-blocking, and returns its names.
func adoptSocket(fd int, listening bool) (local, remote string, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return "", "", fmt.Errorf("not a socket: %w", os.NewSyscallError("getsockopt", err))
	}
	if sa, err := unix.Getsockname(fd); err != nil {
		return "", "", os.NewSyscallError("getsockname", err)
	} else if _, ok := sa.(*unix.SockaddrUnix); !ok {
		return "", "", errors.New("not a unix socket: it is of another address family")
	}
	if kind != unix.SOCK_STREAM {
		return "", "", errors.New("not a stream socket: it keeps message boundaries")
	}
	remote, peerErr := getpeername(fd)
	accepting, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case err == unix.ENOPROTOOPT && listening && peerErr != nil:
		// Of the BSDs, FreeBSD alone tells. A socket with no peer is taken for
		// one that listens; if it does not, its first accept says so.
		accepting = 1
	case err != nil && err != unix.ENOPROTOOPT:
		return "", "", os.NewSyscallError("getsockopt", err)
	}
	switch {
	case listening && accepting == 0:
		return "", "", errors.New("not a listening socket")
	case !listening && accepting != 0:
		return "", "", errors.New("not a connected socket: it listens")
	case !listening && peerErr != nil:
		return "", "", fmt.Errorf("not a connected socket: %w", os.NewSyscallError("getpeername", peerErr))
	}
	if local, err = getsockname(fd); err != nil {
		return "", "", os.NewSyscallError("getsockname", err)
	}
	return local, remote, os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
}
