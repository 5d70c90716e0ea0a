package sys

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pollShutDown = unix.POLLRDHUP

// PeerCred returns the peer's credentials.
func PeerCred(fd int) (pid, uid, gid int, err error) {
	u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, 0, os.NewSyscallError("getsockopt", err)
	}
	return int(u.Pid), int(u.Uid), int(u.Gid), nil
}

// PeerPIDFD returns a pidfd of the peer's process, which is close-on-exec.
func PeerPIDFD(fd int) (int, error) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch err {
	case nil:
		return AboveStandard(pidfd)
	case unix.ENOPROTOOPT: // older than Linux 6.5
		return -1, errors.ErrUnsupported
	}
	return -1, os.NewSyscallError("getsockopt", err)
}

// PeerGroups returns the peer's supplementary groups.
func PeerGroups(fd int) ([]int, error) {
	const maxGroups = 65536 // Linux's NGROUPS_MAX
	for count := 32; ; count *= 2 {
		groups, size := make([]uint32, count), uint32(4*count)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return toInts(groups[:size/4]), nil
		case errno == unix.ENOPROTOOPT: // older than Linux 4.13
			return nil, errors.ErrUnsupported
		case errno != unix.ERANGE || count == maxGroups: // not all kernels report the size
			return nil, os.NewSyscallError("getsockopt", errno)
		}
	}
}

// Sendfile writes up to size bytes of a file, starting at its offset, which moves by as
// many, to a socket. Like package net, it calls package syscall, which informs the race
// detector that a read of the same bytes happens after it.
func Sendfile(out, in, size int) (int, error) {
	return repeat("sendfile", func() (int, error) { return syscall.Sendfile(out, in, nil, size) })
}

// AtEnd reports whether a file has no byte at its offset, which does not move.
func AtEnd(fd int) bool {
	offset, err := unix.Seek(fd, 0, io.SeekCurrent)
	if err != nil {
		return false
	}
	var b [1]byte
	n, err := repeat("pread", func() (int, error) { return unix.Pread(fd, b[:], offset) })
	return n == 0 && err == nil
}

// Splice moves up to size bytes between a pipe and another descriptor.
func Splice(out, in, size int) (int, error) {
	return repeat("splice", func() (int, error) {
		n, err := unix.Splice(in, nil, out, nil, size, unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
}
