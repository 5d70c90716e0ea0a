package unixsock

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// bareMost is how many bytes a bare call moves: others wait for it to end.
const bareMost = 64 << 10

// A lazyFile is a connected socket that becomes an os.File, and so is given to
// the runtime's poller, no sooner than somebody has to wait for it, asks for a
// deadline or moves more than bareMost at once. Until then plain system calls read, write and close it. A connection
// of which each end finds the other's bytes there never meets the poller, and
// that saves half of its system calls.
//
//	bare      fd is open, and used with mu held only
//	a file    file is set, and owns the descriptor; if the poller has refused it,
//	          what need not wait is done, and nothing else
//	closed    neither
//
// From bare it becomes one of the others; when a file is closed, that is the
// file's affair.
type lazyFile struct {
	file atomic.Pointer[os.File]
	fd   int // always the same; who may use it, the state tells

	mu      sync.Mutex // guards what follows, and file's becoming set
	bare    bool
	refused bool // by the poller; set before file is
}

// errRefused says that the poller will not have a descriptor.
var errRefused = fmt.Errorf("the runtime's poller refuses the descriptor: %w", os.ErrNoDeadline)

// newLazyFile makes a lazyFile of fd, which it then owns: like an os.File, it
// closes a descriptor that nobody can reach any more.
func newLazyFile(fd int) *lazyFile {
	f := &lazyFile{bare: true, fd: fd}
	runtime.SetFinalizer(f, (*lazyFile).Close)
	startPoller.Do(func() { _, _ = f.open() })
	return f
}

// startPoller has the first lazyFile of the process be a file at once. That
// starts the runtime's poller, which needs descriptors of its own and ends the
// process if it cannot have them: later there may be none left.
var startPoller sync.Once

// open returns f as an os.File, for those who may have to wait. If the poller
// has refused it, that is the error, and there is a file all the same.
func (f *lazyFile) open() (*os.File, error) {
	if f == nil {
		return nil, os.ErrInvalid
	}
	if f.file.Load() == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.bare {
			f.become(newFile(f.fd))
		}
	}
	file := f.file.Load()
	if file == nil {
		return nil, net.ErrClosed
	}
	if f.refused {
		return file, errRefused
	}
	return file, nil
}

// become makes f a file. mu is held.
func (f *lazyFile) become(file *os.File, refused error) {
	f.bare = false
	runtime.SetFinalizer(f, nil)
	f.refused = refused != nil
	f.file.Store(file)
}

// Read is os.File's.
func (f *lazyFile) Read(b []byte) (int, error) {
	if n, err := f.readBare(b); err != errWouldBlock {
		return n, err
	}
	file, err := f.open()
	switch {
	case err == errRefused:
		return f.atOnce(readSocket, b)
	case err != nil:
		return 0, err
	}
	return file.Read(b)
}

// atOnce does as much as can be done without the poller, which refuses.
func (f *lazyFile) atOnce(do func(fd int, b []byte) (int, error), b []byte) (n int, err error) {
	err = f.control(func(fd int) (err error) {
		n, err = do(fd, b)
		return err
	})
	if err == errWouldBlock {
		err = errRefused
	}
	return n, err
}

// readBare reads what has come, or returns errWouldBlock.
func (f *lazyFile) readBare(b []byte) (int, error) {
	if f == nil || f.file.Load() != nil || len(b) > bareMost {
		return 0, errWouldBlock
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.bare {
		return 0, errWouldBlock
	}
	return readSocket(f.fd, b)
}

// Write is os.File's.
func (f *lazyFile) Write(b []byte) (int, error) {
	if f != nil && f.file.Load() == nil && len(b) <= bareMost {
		f.mu.Lock()
		if f.bare {
			n, err := writeSocket(f.fd, b)
			if err == errWouldBlock || err == nil && n < len(b) {
				rest, err := f.writeRest(b[n:])
				return n + rest, err
			}
			f.mu.Unlock()
			return n, err
		}
		f.mu.Unlock()
	}
	file, err := f.open()
	switch {
	case err == errRefused:
		n, err := f.atOnce(writeSocket, b)
		if err == nil && n < len(b) {
			err = errRefused
		}
		return n, err
	case err != nil:
		return 0, err
	case f.fd <= 2:
		// Of 1 and 2 os.File takes EPIPE for the end of the program.
		return writeAll(file, b, func() {})
	}
	return file.Write(b)
}

// writeRest writes what a bare Write has left. It is called with mu held, and
// lets go of it: but others see the file only once its write lock is held here,
// so that nothing they write comes in between.
func (f *lazyFile) writeRest(b []byte) (n int, err error) {
	file, refused := newFile(f.fd)
	letGo := sync.OnceFunc(func() {
		f.become(file, refused)
		f.mu.Unlock()
	})
	defer letGo()
	if refused != nil {
		return 0, refused
	}
	return writeAll(file, b, letGo)
}

// writeAll writes all of b, and calls begun once file's write lock is held.
func writeAll(file *os.File, b []byte, begun func()) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	rawErr := raw.Write(func(fd uintptr) bool {
		begun()
		for n < len(b) {
			var m int
			if m, err = writeSocket(int(fd), b[n:]); err != nil {
				return err != errWouldBlock
			}
			n += m
		}
		return true
	})
	if rawErr != nil {
		err = rawCause(rawErr)
	}
	return n, err
}

// Close closes the descriptor. It does not wait for calls that have to wait.
func (f *lazyFile) Close() error {
	f.mu.Lock()
	bare := f.bare
	f.bare = false
	f.mu.Unlock()
	if !bare {
		return f.file.Load().Close()
	}
	runtime.SetFinalizer(f, nil)
	return closeSocket(f.fd)
}

// SyscallConn is os.File's. To wait in it is for Conn.raw.
func (f *lazyFile) SyscallConn() (syscall.RawConn, error) {
	file, err := f.open()
	if file == nil {
		return nil, err
	}
	return file.SyscallConn()
}

// control returns what do returns, which is called with the descriptor. It stays
// open meanwhile. If it is closed already, the error is net.ErrClosed.
func (f *lazyFile) control(do func(fd int) error) error {
	if f == nil {
		return os.ErrInvalid
	}
	f.mu.Lock()
	if f.bare {
		defer f.mu.Unlock()
		return do(f.fd)
	}
	f.mu.Unlock()
	raw, err := f.SyscallConn()
	if err != nil {
		return net.ErrClosed
	}
	if raw.Control(func(fd uintptr) { err = do(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}
