package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	birthFlags   = 0 // macOS has no SOCK_CLOEXEC
	receiveFlags = 0
)

// acceptSocket is accept(2) if a descriptor is free: XNU removes a connection from the
// queue before it allocates the descriptor, and drops it if that fails. If another
// goroutine takes the last descriptor in between, the connection is lost.
func acceptSocket(fd int) (int, syscall.Sockaddr, error) {
	if !Readable(fd) {
		return -1, nil, unix.EAGAIN
	}
	if err := freeDescriptor(fd); err != nil {
		return -1, nil, err
	}
	return syscall.Accept(fd)
}

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }

// peerPID returns the peer's process ID, 0 once the peer has closed: XNU forgets the
// process then.
func peerPID(fd int) int {
	pid, _ := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	return pid
}
