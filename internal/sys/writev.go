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
