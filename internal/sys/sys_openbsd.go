package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sockFlags    = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	receiveFlags = unix.MSG_CMSG_CLOEXEC
	pathNUL      = 1 // the kernel needs room for a NUL after the name
)

// acceptSocket calls package syscall, because x/sys/unix lacks Accept4.
func acceptSocket(fd int) (int, syscall.Sockaddr, error) { return syscall.Accept4(fd, sockFlags) }
