package sys

import "golang.org/x/sys/unix"

// MaxPathLen is the maximum length of a path in a socket address.
const MaxPathLen = 104

// macOS has no flags that make a new descriptor close-on-exec and non-blocking.
const (
	bornMarked   = false
	birthFlags   = 0
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
