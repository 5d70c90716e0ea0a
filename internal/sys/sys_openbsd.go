package sys

import "golang.org/x/sys/unix"

// MaxPathLen is the maximum length of a path in a socket address. The kernel needs room
// for a NUL after it.
const MaxPathLen = 103

const (
	bornMarked   = true
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	acceptMarks  = false
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept(fd) }

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }
