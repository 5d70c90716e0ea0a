// Package sys makes the system calls on Unix domain sockets that package
// unixsock needs, one function each. It holds no state. It compiles on every
// platform; without Unix domain sockets, its functions fail with
// [errors.ErrUnsupported].
//
// Descriptors that it creates or accepts are non-blocking and close-on-exec. The
// error of a system call is an *[os.SyscallError]; [ErrWouldBlock] and [io.EOF]
// are returned as they are. Calls that a signal interrupts are repeated.
package sys

import (
	"errors"
	"runtime"
)

// ErrWouldBlock is the error of a call that would have to wait.
var ErrWouldBlock = errors.New("would block")

// AbstractNames reports whether the kernel has abstract socket names.
const AbstractNames = runtime.GOOS == "linux" || runtime.GOOS == "android"

const (
	// MaxRights is the maximum number of descriptors in one message: Linux's
	// SCM_MAX_FD. The other systems allow more.
	MaxRights = 253

	// MaxIovecs is the maximum number of buffers that writev takes.
	MaxIovecs = 1024

	// MaxIO is the maximum number of bytes that one call transfers. Linux
	// truncates, and macOS refuses, what exceeds 2 GiB.
	MaxIO = 1 << 30
)
