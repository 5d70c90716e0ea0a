package unixsock

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// half names one direction of a Conn, or both, as bits.
type half uint32

const (
	readHalf   half = 1 << iota // the input: what is read here
	writeHalf                   // the output: what is written here
	bothHalves = readHalf | writeHalf
)

// A Conn is a connected unix domain socket. It is a [net.Conn] and a
// [syscall.Conn], and all of its methods may be called at once from many
// goroutines. Its errors are *[net.OpError]: after a close they are
// [net.ErrClosed], past a deadline [os.ErrDeadlineExceeded].
//
// At the end of the peer's output, Read returns io.EOF as it is.
//
// Its two halves, the input and the output, close apart: by [Conn.CloseRead]
// and [Conn.CloseWrite], or through its [Conn.Ports]. The descriptor is closed
// with the second half. It is no error to close again what is closed, nor that
// the peer has gone.
//
// Read and Write allocate nothing, but for the first that has to wait.
type Conn struct {
	// A Conn goes through these states, and never back:
	//
	//	closed == 0           open
	//	closed == one half    that half is shut down, the other goes on
	//	closed == bothHalves  the file is closed, or about to be
	//
	// Whoever sets the second bit closes the file: exactly one does. A bit is
	// set before anything is done to its half, so that who is woken there finds
	// it set; and a deadline is moved only while mu is held and the bit is not
	// set, so that none undoes the one that wakes.
	closed atomic.Uint32

	mu      sync.Mutex // guards changes of closed, deadlines, and custody
	custody custody    // the contexts of CloseOn

	file          *lazyFile // which keeps the descriptor open while it is in use
	local, remote string    // socket names, as the kernel has them
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)

// newConn makes a Conn of fd, which it then owns.
func newConn(fd int, local, remote string) *Conn {
	return &Conn{file: newLazyFile(fd), local: local, remote: remote}
}

// Read reads up to len(b) bytes. At the end of the peer's output it returns
// [io.EOF].
func (c *Conn) Read(b []byte) (int, error) {
	if c.isClosed(readHalf) {
		return 0, c.opError("read", net.ErrClosed)
	}
	n, err := c.file.Read(b)
	if n > 0 && c.isClosed(readHalf) {
		return 0, c.opError("read", net.ErrClosed) // closeHalf may have dropped what came before
	}
	return n, c.ioError("read", readHalf, err)
}

// Write writes all of b, or returns how many bytes went out and why no more
// did. Writes from several goroutines do not mix.
func (c *Conn) Write(b []byte) (int, error) {
	if c.isClosed(writeHalf) {
		return 0, c.opError("write", net.ErrClosed)
	}
	n, err := c.file.Write(b)
	return n, c.ioError("write", writeHalf, err)
}

// Close closes both halves, and wakes all who wait in either with
// [net.ErrClosed]. A second Close returns nil.
func (c *Conn) Close() error { return c.closeHalf(bothHalves) }

// CloseRead closes the input: Read returns [net.ErrClosed] from now on, to those
// who wait in it too, and the peer's writes fail with EPIPE. What has come and
// was not read is dropped. If the output is closed already, the descriptor is
// closed.
func (c *Conn) CloseRead() error { return c.closeHalf(readHalf) }

// CloseWrite closes the output: Write returns [net.ErrClosed] from now on, to
// those who wait in it too, and the peer reads EOF. If the input is closed
// already, the descriptor is closed.
func (c *Conn) CloseWrite() error { return c.closeHalf(writeHalf) }

func (c *Conn) isClosed(h half) bool {
	return half(c.closed.Load())&h != 0
}

// closeHalf closes what of h is still open.
func (c *Conn) closeHalf(h half) error {
	if c.file == nil {
		return c.opError("close", os.ErrInvalid)
	}
	c.mu.Lock()
	was := half(c.closed.Load())
	now := was | h
	c.closed.Store(uint32(now))
	var custody custody
	if now == bothHalves {
		custody, c.custody = c.custody, nil
	}
	c.mu.Unlock()

	var err error
	switch {
	case now == was:
		return nil
	case now == bothHalves:
		custody.end()
		err = c.file.Close()
	default:
		err = c.shutdown(h)
	}
	if err != nil {
		return c.opError("close", err)
	}
	return nil
}

// shutdown shuts down one half.
func (c *Conn) shutdown(h half) error {
	err := c.file.control(func(fd int) error {
		err := shutdownSocket(fd, h)
		if h == readHalf {
			discard(fd) // past who reads just now, and finds closed set behind it
		}
		return err
	})
	// The shutdown alone does not wake a writer on Linux: of a socket whose
	// buffer is full, poll has nothing to tell.
	switch file := c.file.file.Load(); {
	case file == nil: // nobody waits
	case h == readHalf:
		file.SetReadDeadline(past)
	default:
		file.SetWriteDeadline(past)
	}
	if err == net.ErrClosed {
		return nil // and so is this half
	}
	return err
}

// past is a deadline that wakes those who wait.
var past = time.Unix(1, 0)

// CloseOn closes the Conn when ctx is done: ctx is its custodian. A Conn that
// is closed earlier leaves nothing behind on ctx.
func (c *Conn) CloseOn(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if half(c.closed.Load()) != bothHalves {
		c.custody.add(ctx, c.Close)
	}
}

// LocalAddr returns the *[net.UnixAddr] of this end. The Name of an abstract
// socket keeps its leading NUL and every byte; that of an unnamed one is "".
func (c *Conn) LocalAddr() net.Addr { return unixAddr(c.local) }

// RemoteAddr returns the *[net.UnixAddr] of the other end, as LocalAddr does:
// of a Conn made by Connect, the address that it connected to.
func (c *Conn) RemoteAddr() net.Addr { return unixAddr(c.remote) }

func unixAddr(name string) *net.UnixAddr {
	return &net.UnixAddr{Name: name, Net: "unix"}
}

// SetDeadline sets the deadline of both halves, those that are still open. The
// zero time means none.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(bothHalves, t) }

// SetReadDeadline sets the deadline of the input: a Read that waits beyond it
// fails with [os.ErrDeadlineExceeded]. The zero time means none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(readHalf, t) }

// SetWriteDeadline sets the deadline of the output: a Write that waits beyond
// it fails with [os.ErrDeadlineExceeded]. The zero time means none.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(writeHalf, t) }

func (c *Conn) setDeadline(h half, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	file, err := c.file.open()
	if err == nil {
		switch h &^ half(c.closed.Load()) {
		case bothHalves:
			err = file.SetDeadline(t)
		case readHalf:
			err = file.SetReadDeadline(t)
		case writeHalf:
			err = file.SetWriteDeadline(t)
		default:
			err = net.ErrClosed
		}
	}
	if err != nil {
		return c.opError("set", err)
	}
	return nil
}

// SyscallConn returns access to the descriptor, for what this package does not
// offer. It is used only while the Conn, or the half concerned, is open.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if c.file == nil {
		return nil, c.opError("raw", os.ErrInvalid)
	}
	return rawConn{c}, nil
}

// raw returns the RawConn for a call that may have to wait in half h. A close of
// h moves the file's deadline, to wake who waits: so the file must be there
// before h is seen to be open.
func (c *Conn) raw(h half) (syscall.RawConn, error) {
	file, err := c.file.open()
	switch {
	case err != nil:
		return nil, err
	case c.isClosed(h):
		return nil, net.ErrClosed
	}
	return file.SyscallConn()
}

// rawConn is os.File's syscall.RawConn with a Conn's halves and errors.
type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	raw, err := r.c.file.SyscallConn()
	if err == nil {
		err = raw.Control(f)
	}
	if err != nil {
		return r.c.opError("raw-control", rawCause(err))
	}
	return nil
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	return r.wait("raw-read", readHalf, syscall.RawConn.Read, f)
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	return r.wait("raw-write", writeHalf, syscall.RawConn.Write, f)
}

func (r rawConn) wait(op string, h half, wait func(syscall.RawConn, func(fd uintptr) bool) error, f func(fd uintptr) bool) error {
	raw, err := r.c.raw(h)
	if err == nil {
		err = rawCause(wait(raw, f))
	}
	return r.c.ioError(op, h, err)
}

// An InputPort is the half of a [Conn] that reads, Racket's input port.
type InputPort Conn

// An OutputPort is the half of a [Conn] that writes, Racket's output port.
type OutputPort Conn

// Ports returns the Conn as the two ports that unix-socket-connect and
// unix-socket-accept return. Each closes its own half; the descriptor is closed
// when both are. It returns the same two ports each time.
func (c *Conn) Ports() (*InputPort, *OutputPort) {
	return (*InputPort)(c), (*OutputPort)(c)
}

// Read is [Conn.Read].
func (p *InputPort) Read(b []byte) (int, error) { return (*Conn)(p).Read(b) }

// Close is [Conn.CloseRead].
func (p *InputPort) Close() error { return (*Conn)(p).CloseRead() }

// SetReadDeadline is [Conn.SetReadDeadline].
func (p *InputPort) SetReadDeadline(t time.Time) error { return (*Conn)(p).SetReadDeadline(t) }

// Write is [Conn.Write].
func (p *OutputPort) Write(b []byte) (int, error) { return (*Conn)(p).Write(b) }

// Close is [Conn.CloseWrite].
func (p *OutputPort) Close() error { return (*Conn)(p).CloseWrite() }

// SetWriteDeadline is [Conn.SetWriteDeadline].
func (p *OutputPort) SetWriteDeadline(t time.Time) error { return (*Conn)(p).SetWriteDeadline(t) }

// ioError makes the error of a call that used half h of what ended the call.
func (c *Conn) ioError(op string, h half, err error) error {
	switch {
	case err == nil:
		return nil
	case c.isClosed(h):
		return c.opError(op, net.ErrClosed) // whatever the close looked like down there
	case err == io.EOF:
		return err
	}
	return c.opError(op, err)
}

// opError makes the error of a method of c, the one place that does.
func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "unix", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: cause(err)}
}

// cause turns an error of os.File into one as net has them.
func cause(err error) error {
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

// rawCause names the error of a call of os.File's RawConn. It is a deadline, or
// a close, of which the poller's own error is nothing that errors.Is can find.
func rawCause(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return net.ErrClosed
}
