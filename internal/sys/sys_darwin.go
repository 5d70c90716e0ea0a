package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// MaxPathLen is the maximum length of a path in a socket address.
const MaxPathLen = 104

// macOS has no flags that mark a descriptor at its birth.
const (
	bornMarked   = false
	birthFlags   = 0
	acceptMarks  = false
	receiveFlags = 0
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept(fd) }

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }

// PeerCred returns the peer's credentials. pid is 0 once the peer has closed: XNU
// forgets the process then.
func PeerCred(fd int) (pid, uid, gid int, err error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, 0, 0, os.NewSyscallError("getsockopt", err)
	}
	if pid, err = unix.GetsockoptInt(fd, unix.SOL_LOCAL, unix.LOCAL_PEERPID); err != nil {
		pid = 0
	}
	return pid, int(x.Uid), int(x.Groups[0]), nil // the first group is the effective one
}

// PeerGroups returns the peer's supplementary groups, at most 15: the kernel
// records no more. The first group of an xucred is the effective one.
func PeerGroups(fd int) ([]int, error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return toInts(x.Groups[min(1, x.Ngroups):x.Ngroups]), nil
}
