//go:build darwin || freebsd

package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// PeerCred returns the peer's credentials. pid is 0 if the system does not report it.
func PeerCred(fd int) (pid, uid, gid int, err error) {
	x, err := peerXucred(fd)
	if err != nil {
		return 0, 0, 0, err
	}
	return peerPID(fd), int(x.Uid), int(x.Groups[0]), nil // the first group is the effective one
}

// PeerGroups returns the peer's supplementary groups. The kernel records at most 15.
func PeerGroups(fd int) ([]int, error) {
	x, err := peerXucred(fd)
	if err != nil {
		return nil, err
	}
	return toInts(x.Groups[min(1, x.Ngroups):x.Ngroups]), nil
}

func peerXucred(fd int) (*unix.Xucred, error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	return x, os.NewSyscallError("getsockopt", err)
}
