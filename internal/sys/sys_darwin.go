package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sockFlags    = 0 // macOS has no SOCK_CLOEXEC
	receiveFlags = 0
	pathNUL      = 0
)

func acceptSocket(fd int) (int, syscall.Sockaddr, error) { return syscall.Accept(fd) }

// peerPID returns the ID of the last process that used the peer's socket, 0 once the peer
// has closed: XNU forgets the process then.
func peerPID(fd int) int {
	pid, _ := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	return pid
}
