//go:build linux || dragonfly || freebsd

package unixsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func accept(fd int) (int, string, error) {
	var b [sockaddrSize]byte
	n := uint32(len(b))
	r, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)),
		unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, "", errno
	}
	return int(r), systemLayout.decode(b[:], int(n)), nil
}
