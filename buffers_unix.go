//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeVector writes as much of v as there is room for, or returns errWouldBlock
// if there is none.
func writeVector(fd int, v [][]byte) (int, error) {
	for {
		switch n, err := writev(fd, v); err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, errWouldBlock
		default:
			return 0, os.NewSyscallError("writev", err)
		}
	}
}

func setBufferSize(fd int, h half, bytes int) error {
	opt := unix.SO_RCVBUF
	if h == writeHalf {
		opt = unix.SO_SNDBUF
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, bytes))
}
