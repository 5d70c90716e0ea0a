package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// MaxPathLen is the maximum length of a path in a socket address.
const MaxPathLen = 104

const (
	bornMarked   = true
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	acceptMarks  = true
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept4(fd, birthFlags) }

// PeerCred returns the peer's credentials. pid is 0: x/sys/unix has no name for
// the field that holds it.
func PeerCred(fd int) (pid, uid, gid int, err error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, 0, 0, os.NewSyscallError("getsockopt", err)
	}
	return 0, int(x.Uid), int(x.Groups[0]), nil // the first group is the effective one
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
