//go:build darwin || freebsd

package unixsock

import (
	"os"

	"golang.org/x/sys/unix"
)

func peerCred(fd int) (Cred, error) {
	x, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return Cred{}, os.NewSyscallError("getsockopt", err)
	}
	// The first of the groups is the effective one.
	return Cred{PID: peerPID(fd), UID: int(x.Uid), GID: int(x.Groups[0])}, nil
}
