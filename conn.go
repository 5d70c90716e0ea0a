package unixsock

import (
	"cmp"
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/pending"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// half names one direction of a Conn, or both, as bits.
type half uint32

const (
	readHalf   half = 1 << iota // the input
	writeHalf                   // the output
	bothHalves = readHalf | writeHalf
)

// A Conn is a connected Unix domain socket. It is a [net.Conn] and a [syscall.Conn]. All
// of its methods may be called concurrently. Read and Write allocate nothing, except for
// the first call that has to wait.
//
// Its two halves, the input and the output, close independently: by [Conn.CloseRead] and
// [Conn.CloseWrite], or through its [Conn.Ports]. Closing the second half closes the
// descriptor. It is not an error to close a half again, or after the peer has gone.
//
// Errors are *[net.OpError]. errors.Is finds [net.ErrClosed] after a close, and
// [os.ErrDeadlineExceeded] past a deadline. The methods of a nil or zero Conn return an
// error or a zero value.
type Conn struct {
	// closed holds the bits of the halves that are closed. The goroutine that sets the
	// second bit closes the descriptor. A bit is set before its half is shut down, so a
	// goroutine woken by the shutdown observes it. SetDeadline holds mu and skips a half
	// whose bit is set, so it does not undo the deadline that wakes the goroutine.
	closed atomic.Uint32

	mu        sync.Mutex // guards changes of closed and of deadlines, and custodian
	custodian *custodian // set by CloseOn and AcceptEvt

	fd     *netfd.FD     // keeps the descriptor open while it is in use
	local  *net.UnixAddr // shared with other connections
	remote string        // the name of the other end

	remoteAddr atomic.Pointer[net.UnixAddr] // of remote; set once it is asked for
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ syscall.Conn  = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
)

// newConn returns a Conn for fd, which it owns from then on.
func newConn(fd int, local *net.UnixAddr, remote string) *Conn {
	return &Conn{fd: netfd.New(fd), local: local, remote: remote}
}

// ok reports whether c is neither nil nor zero.
func (c *Conn) ok() bool { return c != nil && c.fd != nil }

// netfd returns an FD that is closed for a nil or zero Conn.
func (c *Conn) netfd() *netfd.FD {
	if !c.ok() {
		return new(netfd.FD)
	}
	return c.fd
}

// Read reads up to len(b) bytes. At the end of the peer's output it returns [io.EOF].
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.netfd().Read(b)
	if c.isClosed(readHalf) {
		// CloseRead may have discarded bytes that came before these.
		n, err = 0, net.ErrClosed
	}
	return n, c.ioError("read", readHalf, err)
}

// Write writes all of b, or returns the number of bytes written and the error that
// stopped it. Concurrent Writes are not interleaved.
func (c *Conn) Write(b []byte) (int, error) {
	if c.isClosed(writeHalf) {
		return 0, c.opError("write", net.ErrClosed)
	}
	n, err := c.netfd().Write(b)
	return n, c.ioError("write", writeHalf, err)
}

// Close closes both halves. Calls that wait in either half fail with [net.ErrClosed]. If
// there is unread data, the peer gets [syscall.ECONNRESET] on Linux after it has read what
// was sent. To avoid that, call CloseRead first.
func (c *Conn) Close() error { return c.close(bothHalves, nil) }

// CloseRead closes the input. Reads fail with [net.ErrClosed] from then on, including those
// that are waiting. Unread data is discarded. On Linux the peer's writes fail with EPIPE
// from then on. Most other kernels do not tell the peer.
func (c *Conn) CloseRead() error { return c.close(readHalf, nil) }

// CloseWrite closes the output. The peer reads EOF. Writes fail with [net.ErrClosed]
// from then on, including those that are waiting.
func (c *Conn) CloseWrite() error { return c.close(writeHalf, nil) }

// isClosed reports whether h is closed. Both halves of a nil or zero Conn are.
func (c *Conn) isClosed(h half) bool {
	return !c.ok() || half(c.closed.Load())&h != 0
}

// close closes the halves of h that are still open. If by is set, it closes them
// only if by is still the custodian, which may have been replaced as its context ended.
func (c *Conn) close(h half, by *custodian) error {
	if !c.ok() {
		return c.opError("close", os.ErrInvalid)
	}
	c.mu.Lock()
	if by != nil && by != c.custodian {
		c.mu.Unlock()
		return nil
	}
	was := half(c.closed.Or(uint32(h)))
	now := was | h
	var custodian *custodian
	if now == bothHalves {
		custodian, c.custodian = c.custodian, nil
	}
	c.mu.Unlock()
	custodian.release()

	var err error
	switch {
	case now == was && h != bothHalves: // closed already
	case now == bothHalves:
		err = c.fd.Close() // a second one waits for the first
	case h == readHalf:
		err = c.fd.ShutdownRead()
	default:
		err = c.fd.ShutdownWrite()
	}
	return c.opError("close", err)
}

// CloseOn makes ctx the custodian of the Conn: the Conn is closed when ctx is done. A Conn
// has one custodian at a time. A later call replaces ctx, and CloseOn(context.Background())
// releases the Conn. A Conn that is closed or released leaves nothing behind on ctx.
//
// A goroutine closes the Conn just after ctx is done, so calls may succeed for a moment. (In
// Racket, the shutdown of a custodian is synchronous.) Where that matters, call Close, which
// is complete when it returns.
func (c *Conn) CloseOn(ctx context.Context) {
	if c.ok() {
		c.closeOn(ctx)
	}
}

// closeOn makes ctx the custodian, unless the Conn is closed. If ctx is that of the event
// that has delivered the Conn, CloseOn may have replaced it already.
func (c *Conn) closeOn(ctx context.Context) {
	_, isEvent := ctx.(*pending.Custody)
	free := func() bool {
		return half(c.closed.Load()) != bothHalves && (!isEvent || c.custodian == undelivered)
	}
	closeOn(ctx, &c.mu, &c.custodian, free, func(k *custodian) { c.close(bothHalves, k) })
}

// A custodian is the context that closes one Conn or Listener. A nil custodian never closes
// anything.
type custodian struct {
	stop  func() bool      // releases the context; nil: there is none
	event *pending.Custody // the context, if it is an event's
}

// undelivered is the custodian of a Conn that a Listener has accepted, until another one
// replaces it. It never closes anything.
var undelivered = new(custodian)

// closeOn makes a custodian of ctx and stores it in slot if free returns true. When ctx is
// done, it calls close with that custodian. mu guards slot. It is held while free runs, and
// not while a method of ctx does.
func closeOn(ctx context.Context, mu *sync.Mutex, slot **custodian, free func() bool,
	close func(*custodian)) {
	k := new(custodian)
	k.event, _ = ctx.(*pending.Custody)
	if ctx.Done() != nil {
		k.stop = context.AfterFunc(ctx, func() { close(k) })
	}
	old := k
	mu.Lock()
	if free() {
		old, *slot = *slot, k
	}
	mu.Unlock()
	old.release()
	if ctx.Err() != nil { // perhaps since before k was in slot: that call of close did nothing
		go close(k)
	}
}

// release releases the context of a custodian that has been replaced. That calls methods of
// the caller's context, which must not delay anything else.
func (k *custodian) release() {
	switch {
	case k == nil || k.stop == nil:
	case k.event != nil:
		k.stop()
		k.event.Release()
	default:
		go k.stop()
	}
}

// LocalAddr returns the *[net.UnixAddr] of this end. The Name of an abstract socket
// keeps its leading NUL and every byte. The Name of an unnamed socket is "".
func (c *Conn) LocalAddr() net.Addr {
	if !c.ok() {
		return nil
	}
	return c.local
}

// RemoteAddr returns the *[net.UnixAddr] of the other end, with a Name as in
// LocalAddr. For a Conn made by Connect it is the address that was connected to.
func (c *Conn) RemoteAddr() net.Addr {
	switch {
	case !c.ok():
		return nil
	case c.remote == "":
		return unnamed
	}
	addr := c.remoteAddr.Load()
	if addr == nil {
		addr = unixAddr(c.remote)
		c.remoteAddr.Store(addr)
	}
	return addr
}

// unnamed is the address of all sockets without a name.
var unnamed = unixAddr("")

func unixAddr(name string) *net.UnixAddr {
	return &net.UnixAddr{Name: name, Net: "unix"}
}

// String returns "unix ", and the names of this end and of the other one with "->" between
// them. A name that has a control character or is not valid UTF-8 is quoted, because the peer
// chooses its name.
func (c *Conn) String() string {
	if c == nil {
		return "<nil>"
	}
	return "unix " + printable(cmp.Or(c.local, unnamed).Name) + "->" + printable(c.remote)
}

// printable returns a name as it is, or quoted if it has bytes that a terminal may obey.
func printable(name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		return strconv.Quote(name)
	}
	return name
}

// SetDeadline sets the deadline of the halves that are open: a Read or Write that waits
// beyond it fails with [os.ErrDeadlineExceeded]. The zero time means no deadline.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(bothHalves, t) }

// SetReadDeadline is SetDeadline for the input only.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(readHalf, t) }

// SetWriteDeadline is SetDeadline for the output only.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(writeHalf, t) }

func (c *Conn) setDeadline(h half, t time.Time) error {
	file, err := c.netfd().File()
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
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
	return c.opError("set", err)
}

// SyscallConn returns access to the descriptor, for operations that this package lacks.
// The RawConn's methods fail once the Conn, or the half that they use, is closed. A
// callback must not call Close, which waits for the callback to return.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if !c.ok() {
		return nil, c.opError("raw", os.ErrInvalid)
	}
	return rawConn{c}, nil
}

// raw returns the RawConn for a call that may have to wait in half h. Closing h
// wakes the call through the file's deadline, so the file must exist before raw
// checks that h is open.
func (c *Conn) raw(h half) (netfd.RawConn, error) {
	raw, err := c.netfd().SyscallConn()
	if err == nil && c.isClosed(h) {
		err = net.ErrClosed
	}
	return raw, err
}

// wait calls f with the descriptor, and waits for half h to be ready, until f returns
// true. It returns early when h is closed or past its deadline.
func (c *Conn) wait(h half, f func(fd uintptr) bool) error {
	raw, err := c.raw(h)
	switch {
	case err != nil:
		return err
	case h == readHalf:
		return raw.Read(f)
	}
	return raw.Write(f)
}

type rawConn struct{ c *Conn }

func (r rawConn) Control(f func(fd uintptr)) error {
	// The file is not locked during the call, unlike a direct FD, so f may use the Conn.
	raw, err := r.c.fd.SyscallConn()
	if err == nil {
		err = netfd.MapRawErr(raw.Control(f))
	}
	return r.c.opError("raw-control", err)
}

func (r rawConn) Read(f func(fd uintptr) bool) error {
	return r.c.ioError("raw-read", readHalf, r.c.wait(readHalf, f))
}

func (r rawConn) Write(f func(fd uintptr) bool) error {
	return r.c.ioError("raw-write", writeHalf, r.c.wait(writeHalf, f))
}

// An InputPort is the half of a [Conn] that reads, Racket's input port.
type InputPort Conn

// An OutputPort is the half of a [Conn] that writes, Racket's output port.
type OutputPort Conn

// Ports returns the halves of the Conn as two ports, the same ones each time. Each port
// closes its own half. They are what unix-socket-connect and unix-socket-accept return.
func (c *Conn) Ports() (*InputPort, *OutputPort) {
	return (*InputPort)(c), (*OutputPort)(c)
}

// String is [Conn.String].
func (p *InputPort) String() string { return (*Conn)(p).String() }

// Read is [Conn.Read].
func (p *InputPort) Read(b []byte) (int, error) { return (*Conn)(p).Read(b) }

// Close is [Conn.CloseRead].
func (p *InputPort) Close() error { return (*Conn)(p).CloseRead() }

// SetReadDeadline is [Conn.SetReadDeadline].
func (p *InputPort) SetReadDeadline(t time.Time) error { return (*Conn)(p).SetReadDeadline(t) }

// String is [Conn.String].
func (p *OutputPort) String() string { return (*Conn)(p).String() }

// Write is [Conn.Write].
func (p *OutputPort) Write(b []byte) (int, error) { return (*Conn)(p).Write(b) }

// Close is [Conn.CloseWrite].
func (p *OutputPort) Close() error { return (*Conn)(p).CloseWrite() }

// SetWriteDeadline is [Conn.SetWriteDeadline].
func (p *OutputPort) SetWriteDeadline(t time.Time) error { return (*Conn)(p).SetWriteDeadline(t) }

// Cred holds the peer's credentials as recorded by the kernel when the peer called connect
// or listen. A user or a group that this user namespace does not map appears as 65534: never
// authorize that number.
type Cred struct {
	PID int // 0 if the platform, or a PID namespace, hides it
	UID int
	GID int
}

// PeerCred returns the peer's credentials. For a Conn of [Connect], the peer is the process
// that called listen, and for both ends of a [Pair] the process that made it. The PID may be
// reused once the peer has ended; see [Conn.PeerPIDFD]. On NetBSD, OpenBSD and DragonFly the
// error is [errors.ErrUnsupported].
func (c *Conn) PeerCred() (cred Cred, err error) {
	err = c.netfd().Control(func(fd int) (err error) {
		cred.PID, cred.UID, cred.GID, err = sys.PeerCred(fd)
		return err
	})
	return cred, c.opError("peercred", err)
}

// PeerPIDFD returns a pidfd of the peer's process. Unlike a PID, it denotes that process for
// ever. It becomes readable when the process ends. The caller closes it. Before Linux 6.5,
// and on other systems, the error is [errors.ErrUnsupported].
//
// Never authorize a peer by the name, the executable or the arguments of its process: exec
// changes them, and the pidfd stays the same.
func (c *Conn) PeerPIDFD() (*os.File, error) {
	var pidfd int
	err := c.netfd().Control(func(fd int) (err error) {
		pidfd, err = sys.PeerPIDFD(fd)
		return err
	})
	if err != nil {
		return nil, c.opError("peerpidfd", err)
	}
	return os.NewFile(uintptr(pidfd), "pidfd"), nil
}

// PeerGroups returns the IDs of the peer's supplementary groups, as recorded by the kernel
// together with [Cred]. A server that authorizes by group must also compare Cred.GID, which
// need not be among them. Where the kernel does not record the groups, the error is
// [errors.ErrUnsupported].
func (c *Conn) PeerGroups() (groups []int, err error) {
	err = c.netfd().Control(func(fd int) (err error) {
		groups, err = sys.PeerGroups(fd)
		return err
	})
	return groups, c.opError("peergroups", err)
}

// WriteBuffers writes all of the buffers, or returns the number of bytes written and
// the error that stopped it. One system call writes up to 1,024 buffers, without joining
// them first. Written bytes are removed from *v, as by [net.Buffers.WriteTo], which
// itself uses writev only for the connections of package net. Concurrent Writes are not
// interleaved with the buffers.
func (c *Conn) WriteBuffers(v *net.Buffers) (n int64, err error) {
	waitErr := c.wait(writeHalf, func(fd uintptr) bool {
		consume(v, 0)
		for len(*v) > 0 {
			var m int
			m, err = sys.Writev(int(fd), batch(*v))
			n += int64(m)
			consume(v, m)
			if err != nil {
				return err != sys.ErrWouldBlock
			}
		}
		return true
	})
	return n, c.ioError("write", writeHalf, cmp.Or(waitErr, err))
}

// batch returns the part of the buffers that one writev takes.
func batch(v [][]byte) [][]byte {
	n, room := 0, sys.MaxIO
	for n < min(len(v), sys.MaxIovecs) && len(v[n]) <= room {
		room -= len(v[n])
		n++
	}
	if n == 0 { // the first buffer alone exceeds MaxIO
		return [][]byte{v[0][:room]}
	}
	return v[:n]
}

// consume removes the first n bytes of the buffers, and the empty buffers after them.
func consume(v *net.Buffers, n int) {
	for len(*v) > 0 && n >= len((*v)[0]) {
		n -= len((*v)[0])
		(*v)[0] = nil
		*v = (*v)[1:]
	}
	if n > 0 {
		(*v)[0] = (*v)[0][n:]
	}
}

// SetReadBuffer sets the size of the kernel's receive buffer (SO_RCVBUF) in bytes.
// On Linux it has no effect on a Unix socket: unread data counts against the writer's
// send buffer.
func (c *Conn) SetReadBuffer(bytes int) error {
	return c.setBuffer(readHalf, sys.SetReadBuffer, bytes)
}

// SetWriteBuffer sets the size of the kernel's send buffer (SO_SNDBUF) in bytes,
// which limits how much may be written before the peer reads. The kernel applies its
// own limits, and Linux doubles the value to allow for bookkeeping.
func (c *Conn) SetWriteBuffer(bytes int) error {
	return c.setBuffer(writeHalf, sys.SetWriteBuffer, bytes)
}

func (c *Conn) setBuffer(h half, set func(fd, bytes int) error, bytes int) error {
	if c.isClosed(h) {
		return c.opError("set", net.ErrClosed)
	}
	return c.opError("set", c.netfd().Control(func(fd int) error { return set(fd, bytes) }))
}

// ioError returns the error of a call on half h that ended with err.
func (c *Conn) ioError(op string, h half, err error) error {
	if err != nil && c.isClosed(h) {
		err = net.ErrClosed // whatever error the close caused below
	}
	return c.opError(op, err)
}

// opError returns the error of a method of c. nil and io.EOF stay as they are.
func (c *Conn) opError(op string, err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case !c.ok():
		err = os.ErrInvalid
	}
	return &net.OpError{Op: op, Net: "unix", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: netfd.MapErr(err)}
}
