// Package netfd provides a socket descriptor that is registered with the
// runtime's poller only once a call needs the poller.
//
// [FD.Control] may hold a lock, so its function must only make a system call. A caller's
// callback runs through [FD.SyscallConn], without that lock: other reads or writes wait for
// it, and a close wakes them.
package netfd

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// maxDirect is the maximum number of bytes that a direct call moves. The call holds mu,
// and while the peer reads, a write(2) continues until all of its bytes are written. A longer
// Write registers the FD.
const maxDirect = 1 << 20

// An FD is a connected socket. It becomes an os.File, which is registered with the
// runtime's poller, when a call has to wait or sets a deadline. Until then plain system
// calls read, write and close the descriptor. A connection on which no call waits saves
// half of its system calls.
//
//	direct      fd is open, and used with mu held only
//	registered  file is set, and owns the descriptor
//	closed      neither
//
// A direct FD becomes one of the others. A registered FD is closed by closing its
// file. A zero FD is closed.
type FD struct {
	file    atomic.Pointer[os.File]
	closing sync.Mutex // held by Close

	mu       sync.Mutex // guards the fields below, and every use of fd while direct is set
	writes   *sync.Cond // of the writes that wait for their turn; nil before the first one
	next     uint32     // the turn of the next write
	turn     uint32     // of the write in progress; next if there is none
	noWrites bool       // the output is shut down, or the FD is closed
	direct   bool
	fd       int32 // constant; the state says how it may be used
}

// New returns an FD for fd, which it owns from then on: like an os.File, it
// closes the descriptor when it becomes unreachable.
func New(fd int) *FD {
	f := &FD{direct: true, fd: int32(fd)}
	runtime.SetFinalizer(f, (*FD).Close)
	startPoller.Do(func() { _, _ = f.File() })
	return f
}

// startPoller registers the first FD of the process at once. That starts the
// runtime's poller, which needs descriptors of its own, and ends the process if
// it cannot open them. Later there may be none left.
var startPoller sync.Once

// NewFile registers fd with the runtime's poller. The file owns fd from then on. If the
// poller refuses fd (ENOSPC, ENOMEM), NewFile closes it and returns an error.
func NewFile(fd int) (*os.File, error) {
	fd, err := sys.AboveStandard(fd)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "unix socket")
	if err := f.SetDeadline(time.Time{}); err != nil { // os.NewFile does not report it
		f.Close()
		return nil, fmt.Errorf("cannot register the descriptor with the runtime's poller: %w", err)
	}
	return f, nil
}

// File returns the FD as an os.File, for calls that may have to wait. The file
// belongs to the FD. If the poller refuses the descriptor, the FD is closed.
func (f *FD) File() (*os.File, error) {
	if f.lockDirect() {
		defer f.mu.Unlock()
		f.direct = false
		runtime.SetFinalizer(f, nil)
		file, err := NewFile(int(f.fd))
		if err != nil {
			return nil, err
		}
		f.file.Store(file)
	}
	if file := f.file.Load(); file != nil {
		return file, nil
	}
	return nil, net.ErrClosed
}

// lockDirect locks mu if the FD is direct, and reports whether it is.
func (f *FD) lockDirect() bool {
	if f.file.Load() != nil {
		return false
	}
	f.mu.Lock()
	if !f.direct {
		f.mu.Unlock()
		return false
	}
	return true
}

// Read is [os.File.Read].
func (f *FD) Read(b []byte) (int, error) {
	if f.lockDirect() {
		n, err := sys.Read(int(f.fd), b[:min(len(b), maxDirect)])
		f.mu.Unlock()
		if err != sys.ErrWouldBlock {
			return n, err
		}
	}
	file, err := f.File()
	if err != nil {
		return 0, err
	}
	n, err := file.Read(b)
	return n, sys.ReadError(err)
}

// Write is [os.File.Write].
func (f *FD) Write(b []byte) (n int, err error) {
	if err := f.lockWrites(true); err != nil {
		return 0, err
	}
	defer f.unlockWrites()
	if len(b) <= maxDirect && f.lockDirect() {
		n, err = sys.Write(int(f.fd), b)
		f.mu.Unlock()
		if err != sys.ErrWouldBlock && (err != nil || n == len(b)) {
			return n, err
		}
	}
	file, err := f.File()
	if err != nil {
		return n, err
	}
	m, err := file.Write(b[n:])
	return n + m, err
}

// lockWrites waits for the end of the writes that began before, and keeps later ones waiting
// until unlockWrites is called. If it would have to wait and wait is false, it returns
// ErrWouldBlock. It does not use the descriptor, so it does not delay Close, which wakes it:
// it returns net.ErrClosed then.
func (f *FD) lockWrites(wait bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.turn != f.next && !wait {
		return sys.ErrWouldBlock
	}
	turn := f.next
	f.next++
	for turn != f.turn && !f.noWrites {
		if f.writes == nil {
			f.writes = sync.NewCond(&f.mu)
		}
		f.writes.Wait()
	}
	if f.noWrites {
		return net.ErrClosed
	}
	return nil
}

func (f *FD) unlockWrites() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn++
	if f.writes != nil {
		f.writes.Signal() // the one that has waited longest, whose turn it is
	}
}

// endWrites makes all calls of lockWrites fail.
func (f *FD) endWrites() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.noWrites = true
	if f.writes != nil {
		f.writes.Broadcast()
	}
}

// Close closes the descriptor. Calls that wait for the peer do not delay it. A second Close
// waits for the first one, and returns nil.
func (f *FD) Close() error {
	f.endWrites()
	f.closing.Lock()
	defer f.closing.Unlock()
	if f.lockDirect() {
		defer f.mu.Unlock()
		f.direct = false
		runtime.SetFinalizer(f, nil)
		return sys.Close(int(f.fd))
	}
	if file := f.file.Load(); file != nil {
		if err := file.Close(); !errors.Is(err, os.ErrClosed) {
			return err
		}
	}
	return nil
}

// ShutdownRead shuts down the input, and discards unread data. Calls that wait for
// input end, with [io.EOF] or [os.ErrDeadlineExceeded].
func (f *FD) ShutdownRead() error {
	return f.shutdown(sys.ShutdownRead, (*os.File).SetReadDeadline)
}

// ShutdownWrite shuts down the output. Calls that wait to write end, with EPIPE or
// [os.ErrDeadlineExceeded].
func (f *FD) ShutdownWrite() error {
	f.endWrites()
	return f.shutdown(sys.ShutdownWrite, (*os.File).SetWriteDeadline)
}

// shutdown sets a deadline because the shutdown alone does not wake a writer on Linux:
// poll reports nothing for a socket whose buffer is full.
func (f *FD) shutdown(half func(fd int) error, setDeadline func(*os.File, time.Time) error) error {
	err := f.Control(half)
	if file := f.file.Load(); file != nil { // else no call waits
		_ = setDeadline(file, ALongTimeAgo)
	}
	if err == net.ErrClosed {
		return nil // the descriptor is closed, and so is this half
	}
	return err
}

// ALongTimeAgo is a deadline that interrupts every call that waits.
var ALongTimeAgo = time.Unix(1, 0)

// SyscallConn is [os.File.SyscallConn].
func (f *FD) SyscallConn() (RawConn, error) {
	file, err := f.File()
	if err != nil {
		return RawConn{}, err
	}
	raw, err := file.SyscallConn()
	return RawConn{raw, f}, err
}

// A RawConn is the RawConn of an os.File. Its Write excludes other writes of the FD. The
// errors of calls that wait are those of MapRawErr.
type RawConn struct {
	syscall.RawConn
	fd *FD
}

func (r RawConn) Read(do func(fd uintptr) bool) error { return MapRawErr(r.RawConn.Read(do)) }

func (r RawConn) Write(do func(fd uintptr) bool) error {
	if err := r.Lock(true); err != nil {
		return err
	}
	defer r.Unlock()
	return r.WriteLocked(do)
}

// Lock waits for the end of the write in progress, and keeps other writes of the FD waiting
// until Unlock is called. If it would have to wait and wait is false, it returns ErrWouldBlock.
// A lock does not delay Close, which makes Lock fail.
func (r RawConn) Lock(wait bool) error { return r.fd.lockWrites(wait) }
func (r RawConn) Unlock()              { r.fd.unlockWrites() }

// WriteLocked is Write for a caller of Lock.
func (r RawConn) WriteLocked(do func(fd uintptr) bool) error { return MapRawErr(r.RawConn.Write(do)) }

// Control calls do with the descriptor, which stays open during the call, and
// returns do's error. If the descriptor is closed already, the error is
// [net.ErrClosed].
func (f *FD) Control(do func(fd int) error) error {
	if f.lockDirect() {
		defer f.mu.Unlock()
		return do(int(f.fd))
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if raw.Control(func(fd uintptr) { err = do(int(fd)) }) != nil {
		return net.ErrClosed
	}
	return err
}

// MapErr turns an error of os.File into the one that package net would return.
func MapErr(err error) error {
	pathErr, ok := err.(*fs.PathError)
	if !ok {
		return err
	}
	switch pathErr.Err {
	case os.ErrClosed:
		return net.ErrClosed
	case os.ErrDeadlineExceeded:
		return os.ErrDeadlineExceeded
	}
	return os.NewSyscallError(pathErr.Op, pathErr.Err)
}

// MapRawErr turns an error of os.File's RawConn into the one that package net would
// return. The cause is a deadline or a close. For a close, the poller's own error
// is not one that errors.Is can find.
func MapRawErr(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return net.ErrClosed
}
