package sys

import "golang.org/x/sys/unix"

const (
	MaxPathLen   = 104
	birthFlags   = 0 // macOS has no SOCK_CLOEXEC
	acceptMarks  = false
	receiveFlags = 0
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept(fd) }

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }

// peerPID returns the peer's process ID, 0 once the peer has closed: XNU forgets the
// process then.
func peerPID(fd int) int {
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		return 0
	}
	return pid
}
