//go:build linux || darwin || dragonfly || freebsd || netbsd

package unixsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const systemLayout = layout(!onLinux)

func bind(fd int, name string) error {
	return withAddress(unix.SYS_BIND, fd, name)
}

func connect(fd int, name string) error {
	return withAddress(unix.SYS_CONNECT, fd, name)
}

// withAddress makes a system call that takes a descriptor and an address.
func withAddress(trap uintptr, fd int, name string) error {
	var b [sockaddrSize]byte
	n := systemLayout.encode(&b, name)
	if _, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(n)); errno != 0 {
		return errno
	}
	return nil
}

func getsockname(fd int) (string, error) {
	return askAddress(unix.SYS_GETSOCKNAME, fd)
}

func getpeername(fd int) (string, error) {
	return askAddress(unix.SYS_GETPEERNAME, fd)
}

// askAddress makes a system call that writes an address.
func askAddress(trap uintptr, fd int) (string, error) {
	var b [sockaddrSize]byte
	n := uint32(len(b))
	if _, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n))); errno != 0 {
		return "", errno
	}
	return systemLayout.decode(b[:], int(n)), nil
}
