package unixsock

import (
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// maxIO is how many bytes one call reads or writes: some systems refuse 2 GiB.
const maxIO = 1 << 30

// A lazyFile is a connected socket that becomes an os.File, and so is given to
// the runtime's poller, no sooner than somebody has to wait for it or asks for a
// deadline. Until then plain system calls read, write and close it. A connection
// of which each end finds the other's bytes there never meets the poller, and
// that saves half of its system calls.
//
//	bare      fd is open, and used with mu held only
//	a file    file is set, and owns the descriptor
//	closed    neither
//
// From bare it becomes one of the others; when a file is closed, that is the
// file's affair.
type lazyFile struct {
	file atomic.Pointer[os.File]

	mu   sync.Mutex // guards what follows, and file's becoming set
	bare bool
	fd   int
}

// newLazyFile makes a lazyFile of fd, which it then owns: like an os.File, it
// closes a descriptor that nobody can reach any more.
func newLazyFile(fd int) *lazyFile {
	f := &lazyFile{bare: true, fd: fd}
	runtime.SetFinalizer(f, (*lazyFile).Close)
	return f
}

// open returns f as an os.File, for those who may have to wait.
func (f *lazyFile) open() (*os.File, error) {
	if f == nil {
		return nil, os.ErrInvalid
	}
	if file := f.file.Load(); file != nil {
		return file, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch file := f.file.Load(); {
	case file != nil:
		return file, nil
	case !f.bare:
		return nil, net.ErrClosed
	}
	file, err := newFile(f.fd)
	f.become(file)
	return file, err
}

// become makes f a file. mu is held.
func (f *lazyFile) become(file *os.File) {
	f.bare = false
	runtime.SetFinalizer(f, nil)
	f.file.Store(file)
}

// Read is os.File's.
func (f *lazyFile) Read(b []byte) (int, error) {
	if n, err := f.readBare(b); err != errWouldBlock {
		return n, err
	}
	file, err := f.open()
	if err != nil {
		return 0, err
	}
	return file.Read(b)
}

// readBare reads what has come, or returns errWouldBlock.
func (f *lazyFile) readBare(b []byte) (int, error) {
	if f == nil || f.file.Load() != nil {
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
	if f != nil && f.file.Load() == nil {
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
	if err != nil {
		return 0, err
	}
	return file.Write(b)
}

// writeRest writes what a bare Write has left. It is called with mu held, and
// lets go of it: but others see the file only once its write lock is held here,
// so that nothing they write comes in between.
func (f *lazyFile) writeRest(b []byte) (n int, err error) {
	file, err := newFile(f.fd)
	letGo := sync.OnceFunc(func() {
		f.become(file)
		f.mu.Unlock()
	})
	defer letGo()
	if err != nil {
		return 0, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	rawErr := raw.Write(func(fd uintptr) bool {
		letGo()
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

// raw returns f as a RawConn, for those who may have to wait.
func (f *lazyFile) raw() (syscall.RawConn, error) {
	file, err := f.open()
	if err != nil {
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
	raw, err := f.raw()
	if err != nil {
		return net.ErrClosed
	}
	if raw.Control(func(fd uintptr) { err = do(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}
