package sockettest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// ReportsBoundFile reports whether the kernel has an interface that reports which file a
// socket is bound to, sock_diag(7) on Linux.
func ReportsBoundFile(t testing.TB) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}
