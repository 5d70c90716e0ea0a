package sys

import "golang.org/x/sys/unix"

const (
	MaxPathLen   = 103 // the kernel needs room for a NUL after it
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	acceptMarks  = false
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept(fd) }

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }
