//go:build linux || dragonfly || freebsd || netbsd

package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// writev is writev(2). x/sys/unix lacks it on these BSDs, and on Linux allocates
// for more than eight buffers.
func writev(fd int, v [][]byte) (int, error) {
	var few [64]unix.Iovec
	vector := few[:0]
	for _, b := range v {
		if len(b) > 0 {
			vector = append(vector, unix.Iovec{Base: &b[0]})
			vector[len(vector)-1].SetLen(len(b))
		}
	}
	if len(vector) == 0 {
		return 0, nil
	}
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&vector[0])), uintptr(len(vector)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
