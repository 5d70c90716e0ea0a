// Package zerocopy copies bytes into a Unix socket in the kernel, without a buffer in the
// program. It does so on Linux, with sendfile(2) and splice(2).
//
// The sockets are non-blocking and registered with the runtime's poller, so a copy waits
// as Read and Write do, and a deadline or a close ends it.
package zerocopy

import "errors"

// ErrRefused is the error of a copy that the kernel cannot start or continue: Read and
// Write have to copy the rest, or report the error.
var ErrRefused = errors.New("the kernel refuses the copy")

// A Socket is the destination of a file. Its lock excludes other writes, and does not delay a
// close, which makes Lock fail. Where Lock(true) would wait, Lock(false) returns
// sys.ErrWouldBlock. WriteLocked is the Write of a [syscall.RawConn], called with the lock held.
type Socket interface {
	Lock(wait bool) error
	Unlock()
	WriteLocked(f func(fd uintptr) bool) error
}
