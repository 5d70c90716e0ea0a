package unixsock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func socket(kind int) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
	if err != nil {
		return -1, err
	}
	return mark(fd)
}

func socketpair() (fds [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); err != nil {
		return fds, err
	}
	if _, err = mark(fds[0]); err != nil {
		unix.Close(fds[1])
	} else if _, err = mark(fds[1]); err != nil {
		unix.Close(fds[0])
	}
	return fds, err
}

func accept(fd int) (int, string, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	var b [sockaddrSize]byte
	n := uint32(len(b))
	r, _, errno := unix.Syscall(unix.SYS_ACCEPT, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return -1, "", errno
	}
	if n == 0 {
		// XNU's way to say that the client went away before the accept.
		unix.Close(int(r))
		return -1, "", unix.ECONNABORTED
	}
	nfd, err := mark(int(r))
	return nfd, systemLayout.decode(b[:], int(n)), err
}
