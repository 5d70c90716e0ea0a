//go:build linux || dragonfly || freebsd || netbsd

package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sockFlags    = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	receiveFlags = unix.MSG_CMSG_CLOEXEC
	maxWrapped   = 0 // x/sys/unix changes some names of any length
	pathNUL      = 0
)

func accept(fd int) (int, string, error) {
	nfd, name, err := getSockaddr(acceptTrap, fd)
	if err != nil && nfd >= 0 {
		unix.Close(nfd)
	}
	return nfd, name, err
}

func getsockname(fd int) (string, error) {
	_, name, err := getSockaddr(unix.SYS_GETSOCKNAME, fd)
	return name, err
}

func getpeername(fd int) (string, error) {
	_, name, err := getSockaddr(unix.SYS_GETPEERNAME, fd)
	return name, err
}

// getSockaddr makes a system call that reports an address. Only accept has flags, in one
// of the last two arguments. The functions of x/sys/unix fail if a peer of NetBSD or
// DragonFly is bound to a name that is longer than a RawSockaddrUnix.
func getSockaddr(trap uintptr, fd int) (n int, name string, err error) {
	var b [maxAddress]byte
	size := uint32(len(b))
	r, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b)),
		uintptr(unsafe.Pointer(&size)), acceptFlags, sockFlags, 0)
	if errno != 0 {
		return -1, "", errno
	}
	name, err = decode(b[:min(int(size), len(b))], AbstractNames)
	return int(r), name, err
}

// writev is writev(2). x/sys/unix lacks it on the BSDs, and on Linux allocates for more than
// eight buffers.
func writev(fd int, v [][]byte) (int, error) {
	var few [64]unix.Iovec
	vector := few[:0]
	for _, b := range v {
		vector = append(vector, unix.Iovec{Base: unsafe.SliceData(b)})
		vector[len(vector)-1].SetLen(len(b))
	}
	first := unsafe.Pointer(unsafe.SliceData(vector))
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(first), uintptr(len(vector)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
