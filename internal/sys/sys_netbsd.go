package sys

import "golang.org/x/sys/unix"

const (
	MaxPathLen   = 104
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	acceptMarks  = false
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept(fd) }
