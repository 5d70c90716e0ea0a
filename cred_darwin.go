package unixsock

import "golang.org/x/sys/unix"

// peerPID returns 0 once the peer has closed, of which XNU forgets the process.
func peerPID(fd int) int {
	pid, err := unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID)
	if err != nil {
		return 0
	}
	return pid
}
