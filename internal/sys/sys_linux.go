package sys

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxWrapped   = 0 // x/sys/unix changes some names of any length
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func accept(fd int) (int, string, error) {
	var b [maxAddress]byte
	n := uint32(len(b))
	nfd, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)),
		birthFlags, 0, 0)
	if errno != 0 {
		return -1, "", errno
	}
	return int(nfd), decodeLinux(b[:], int(n)), nil
}

func getsockname(fd int) (string, error) { return takeAddress(unix.SYS_GETSOCKNAME, fd) }
func getpeername(fd int) (string, error) { return takeAddress(unix.SYS_GETPEERNAME, fd) }

// takeAddress makes a system call that reports an address.
func takeAddress(trap uintptr, fd int) (string, error) {
	var b [maxAddress]byte
	n := uint32(len(b))
	if _, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n))); errno != 0 {
		return "", errno
	}
	if binary.NativeEndian.Uint16(b[:]) != familyUnix {
		return "", unix.EAFNOSUPPORT
	}
	return decodeLinux(b[:], int(n)), nil
}

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
	groups := make([]uint32, 32)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && len(groups) < maxGroups:
			groups = make([]uint32, 2*len(groups)) // not all kernels report the size
			continue
		case errno == unix.ENOPROTOOPT: // older than Linux 4.13
			return nil, errors.ErrUnsupported
		case errno != 0:
			return nil, os.NewSyscallError("getsockopt", errno)
		}
		return toInts(groups[:size/4]), nil
	}
}

// Sendfile writes up to size bytes of a file, starting at its offset, which moves by as
// many, to a socket. Like package net, it calls package syscall, which informs the race
// detector that a read of the same bytes happens after it.
func Sendfile(out, in, size int) (int, error) {
	return repeat("sendfile", func() (int, error) { return syscall.Sendfile(out, in, nil, size) })
}

// Peek is Read at the offset of a file, which does not move.
func Peek(fd int, b []byte) (int, error) {
	offset, err := unix.Seek(fd, 0, io.SeekCurrent)
	if err != nil {
		return 0, os.NewSyscallError("lseek", err)
	}
	n, err := repeat("pread", func() (int, error) { return unix.Pread(fd, b, offset) })
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// Splice moves up to size bytes between a pipe and another descriptor.
func Splice(out, in, size int) (int, error) {
	return repeat("splice", func() (int, error) {
		n, err := unix.Splice(in, nil, out, nil, size, unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
}
