package sockettest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// RefusesSpliceToAppend reports whether splice(2) to a file that is open for appending
// fails, as on Linux. gVisor appends the bytes.
func RefusesSpliceToAppend(t testing.TB) bool {
	t.Helper()
	f := AppendingFile(t)
	var pipe [2]int
	check(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	if _, err := unix.Write(pipe[1], []byte("x")); err != nil {
		t.Fatal("probe of the kernel: ", err)
	}
	_, err := unix.Splice(pipe[0], nil, int(f.Fd()), nil, 1, unix.SPLICE_F_NONBLOCK)
	return err == unix.EINVAL
}

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
