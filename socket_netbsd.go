package unixsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// accept is paccept(2), NetBSD's accept with flags, leaving the signal mask be.
func accept(fd int) (int, string, error) {
	var b [sockaddrSize]byte
	n := uint32(len(b))
	r, _, errno := unix.Syscall6(unix.SYS_PACCEPT, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)),
		0, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errno != 0 {
		return -1, "", errno
	}
	return int(r), systemLayout.decode(b[:], int(n)), nil
}
