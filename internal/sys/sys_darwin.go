package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sockFlags    = 0 // macOS has no SOCK_CLOEXEC
	receiveFlags = 0
)

func acceptSocket(fd int) (int, syscall.Sockaddr, error) { return syscall.Accept(fd) }

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }

// peerPID returns the peer's process ID, 0 once the peer has closed: XNU forgets the
// process then.
func peerPID(fd int) int {
	pid, _ := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	return pid
}
