// Package zerocopy copies bytes between two descriptors in the kernel, without a
// buffer in the program. It does so on Linux, with sendfile(2) and splice(2).
//
// The descriptors are non-blocking and registered with the runtime's poller, so a
// copy waits as Read and Write do, and a deadline or a close ends it.
package zerocopy

import (
	"errors"
	"syscall"
)

// ErrRefused is the error of a copy that the kernel cannot start or continue: Read and
// Write have to copy the rest, or report the error.
var ErrRefused = errors.New("the kernel refuses the copy")

// A Kind says what the kernel can do with a descriptor.
type Kind int

const (
	Unsupported Kind = iota // no copies in the kernel
	File                    // a regular file: SendFile from it, Splice to it
	Stream                  // a non-blocking stream socket or pipe: Splice from it and to it
)

// KindOf returns the kind of a descriptor, Unsupported if it is closed.
func KindOf(raw syscall.RawConn) (kind Kind) {
	raw.Control(func(fd uintptr) { kind = kindOf(int(fd)) }) // fails if it is closed
	return kind
}
