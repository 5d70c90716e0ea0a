//go:build dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sockFlags    = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

// acceptSocket calls package syscall, because x/sys/unix lacks Accept4 on NetBSD and OpenBSD.
func acceptSocket(fd int) (int, syscall.Sockaddr, error) { return syscall.Accept4(fd, sockFlags) }
