package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A ListenOption changes how [Listen] listens.
type ListenOption func(*listenConfig)

type listenConfig struct {
	backlog       int
	mode          *fs.FileMode // nil: left to the umask
	replaceStale  bool
	unlinkOnClose bool
}

// Backlog sets how many connections may wait to be accepted, 4 unless told. The
// kernel has it its own way: Linux lets one more wait, so that 0 serves, too, and
// caps it at net.core.somaxconn. A negative one is an error of [Listen].
func Backlog(n int) ListenOption {
	return func(c *listenConfig) { c.backlog = n }
}

// A Listener is a listening unix domain socket, a [net.Listener]. All of its
// methods may be called at once from many goroutines. Its errors are
// *[net.OpError]: after a close they are [net.ErrClosed], past a deadline
// [os.ErrDeadlineExceeded].
type Listener struct {
	file *os.File
	raw  syscall.RawConn // of file
	name string

	socketFile *socketFile // what Close removes, or nil

	// turn holds a token while a goroutine waits, or is about to wait, in the
	// poller. One at a time can: a second would queue inside os.File, deaf to
	// its own context. The others queue for the turn.
	turn     chan struct{}
	done     chan struct{} // closed by Close
	unlinked chan struct{} // closed once Close has seen to the socket file
	deadline deadline

	// mu guards what follows, and every accept(2) on the descriptor.
	mu      sync.Mutex
	closed  bool
	custody custody // the contexts of CloseOn
	events          // Ready and AcceptEvt
}

var (
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)

// Listen listens on a socket bound to path, a filesystem path or an abstract
// name as [CheckPath] has them. It mirrors unix-socket-listen, its default
// backlog of 4 too.
//
// Binding a filesystem path makes a file there, which stays after Close, as in
// Racket: remove it yourself, or use [UnlinkOnClose]. A file that is there
// already is an error, [syscall.EADDRINUSE]; see [ReplaceStale].
//
// Errors are *[net.OpError] with Op "listen". Among what errors.Is finds are
// [ErrInvalidPath], [syscall.EADDRINUSE], [io/fs.ErrNotExist] and
// [io/fs.ErrPermission].
func Listen(path string, opts ...ListenOption) (*Listener, error) {
	name, err := resolve(path)
	if err != nil {
		return nil, listenError(path, err)
	}
	return listen(name, opts)
}

// listen listens on a socket called name.
func listen(name string, opts []ListenOption) (*Listener, error) {
	config := listenConfig{backlog: 4}
	for _, opt := range opts {
		if opt != nil {
			opt(&config)
		}
	}
	l, err := config.listen(name)
	if err != nil {
		return nil, listenError(name, err)
	}
	return l, nil
}

func listenError(name string, err error) error {
	return &net.OpError{Op: "listen", Net: "unix", Addr: unixAddr(name), Err: err}
}

func (config *listenConfig) listen(name string) (*Listener, error) {
	if config.backlog < 0 {
		return nil, fmt.Errorf("backlog %d: it must not be negative", config.backlog)
	}
	if err := config.checkMode(name); err != nil {
		return nil, err
	}
	fd, err := newSocket()
	if err != nil {
		return nil, err
	}
	file, err := config.bind(fd, name)
	if err == nil {
		if err = listenSocket(fd, min(config.backlog, math.MaxInt32)); err != nil {
			file.unlink()
		}
	}
	if err != nil {
		closeSocket(fd)
		return nil, err
	}
	l, err := newListener(fd, name)
	if err != nil {
		file.unlink() // the socket is closed already, but was never seen
		return nil, err
	}
	if config.unlinkOnClose {
		l.socketFile = file
	}
	return l, nil
}

// newListener makes a Listener of fd, which it then owns.
func newListener(fd int, name string) (*Listener, error) {
	file, err := newFile(fd)
	if err != nil {
		file.Close()
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Listener{
		file:     file,
		raw:      raw,
		name:     name,
		turn:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		unlinked: make(chan struct{}),
		deadline: deadline{expired: make(chan struct{})},
	}, nil
}

// Accept waits for a connection and returns it, a *[Conn]. It mirrors
// unix-socket-accept; [Conn.Ports] are its two ports. If descriptors run out,
// Accept returns EMFILE and the connection goes on waiting for the next Accept:
// a loop should pause before it tries again.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptContext(context.Background())
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptContext is [Listener.Accept], until ctx is done; errors.Is finds
// ctx.Err() in the error then. Once accepted, ctx has no hold on the Conn.
func (l *Listener) AcceptContext(ctx context.Context) (*Conn, error) {
	if l.file == nil {
		return nil, l.opError("accept", os.ErrInvalid)
	}
	c, err := l.accept(ctx)
	if err != nil {
		return nil, l.opError("accept", err)
	}
	observed.accepted(l)
	return c, nil
}

func (l *Listener) accept(ctx context.Context) (*Conn, error) {
	var taken struct {
		conn   *Conn
		err    error
		waited bool
	}
	try := func(fd uintptr) bool {
		taken.conn, taken.err = l.take(int(fd))
		if taken.err == errWouldBlock {
			taken.waited = true
			return false
		}
		return true
	}
	if err := l.attempt(ctx, try); err != nil {
		return nil, err
	}
	if taken.waited && taken.err == nil {
		// A server that was idle comes before the client's first bytes, and has
		// the time now; with a busy one they may be there when it reads.
		_, _ = taken.conn.file.open() // if that fails, so does what has to wait
	}
	return taken.conn, taken.err
}

// take accepts one connection, the one in hand first, or returns errWouldBlock.
func (l *Listener) take(fd int) (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, net.ErrClosed
	}
	c, err := l.reclaim(), error(nil)
	if c == nil {
		c, err = l.acceptOne(fd)
	}
	l.agree(fd, readyTokens, fewTokens)
	return c, err
}

// acceptOne makes a Conn of what accept(2) returns, or returns errWouldBlock.
// l.mu is held.
func (l *Listener) acceptOne(fd int) (*Conn, error) {
	nfd, peer, err := acceptSocket(fd)
	if err != nil {
		return nil, err
	}
	return newConn(nfd, l.name, peer), nil
}

// attempt is await, for any but the watcher, which may have the turn: what can be
// had at once is had without.
func (l *Listener) attempt(ctx context.Context, f func(fd uintptr) bool) error {
	if l.watched.Load() {
		if err := l.interrupted(ctx, &l.deadline); err != nil {
			return err
		}
		over := false
		if l.raw.Control(func(fd uintptr) { over = f(fd) }) == nil && over {
			return nil
		}
	}
	return l.await(ctx, &l.deadline, f)
}

// await calls f with the descriptor, at once and whenever connections have
// arrived, until it returns true. It returns early when ctx is done, d expires,
// which may be nil, or the listener is closed.
func (l *Listener) await(ctx context.Context, d *deadline, f func(fd uintptr) bool) error {
	select {
	case l.turn <- struct{}{}:
	default:
		select {
		case l.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wait():
			return os.ErrDeadlineExceeded
		case <-l.done:
			return net.ErrClosed
		}
	}
	defer func() { <-l.turn }()
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, l.kick)
		defer stop()
	}
	for {
		if err := l.interrupted(ctx, d); err != nil {
			return err
		}
		err := rawCause(l.raw.Read(f))
		if err != os.ErrDeadlineExceeded {
			return err
		}
		// A kick, perhaps one meant for who had the turn before: whoever kicks
		// makes his reason true first, so it is seen above.
		l.file.SetReadDeadline(time.Time{})
	}
}

// interrupted returns why not to wait, if there is a reason.
func (l *Listener) interrupted(ctx context.Context, d *deadline) error {
	switch {
	case isClosed(l.done):
		return net.ErrClosed
	case isClosed(d.wait()):
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

// isClosed reports whether c, on which nothing is ever sent, is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// kick makes whoever waits in the poller look around. The file's deadline
// serves for nothing else.
func (l *Listener) kick() {
	l.file.SetReadDeadline(past)
}

// Close closes the listener and wakes all who wait for it. The socket file
// stays, as with unix-socket-close-listener, unless [UnlinkOnClose] was among
// the options. A second Close returns nil, once the first has seen to the file:
// whoever was first, it is gone then.
func (l *Listener) Close() error {
	if l.file == nil {
		return l.opError("close", os.ErrInvalid)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		// Not until all is closed: a callback of SyscallConn may be who calls, and
		// that waits for it.
		<-l.unlinked
		return nil
	}
	l.closed = true
	custody := l.custody
	l.custody = nil
	hand := l.endEvents()
	close(l.done)
	l.kick()
	l.mu.Unlock()

	// While the socket is open, its file cannot be taken for a stale one.
	unlinkErr := l.socketFile.unlink()
	close(l.unlinked)
	// Not under mu: closing the file waits for callbacks that want it.
	err := errors.Join(cause(unlinkErr), cause(l.file.Close()))
	if hand != nil {
		hand.Close()
	}
	custody.end()
	l.deadline.set(time.Time{}, nil)
	if err != nil {
		return l.opError("close", err)
	}
	return nil
}

// CloseOn closes the Listener when ctx is done: ctx is its custodian. A
// Listener that is closed earlier leaves nothing behind on ctx.
func (l *Listener) CloseOn(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended() {
		l.custody.add(ctx, l.Close)
	}
}

// Addr returns the *[net.UnixAddr] that the listener is bound to: the absolute
// form of the path, or the abstract name with its leading NUL; of a socket that
// [FileListener] adopted, the name as it was bound.
func (l *Listener) Addr() net.Addr { return unixAddr(l.name) }

// SetDeadline sets the deadline of Accept and AcceptContext: those that wait
// beyond it fail with [os.ErrDeadlineExceeded]. The zero time means none.
// [Listener.Ready] and [Listener.AcceptEvt] have no deadline.
func (l *Listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.file == nil:
		return l.opError("set", os.ErrInvalid)
	case l.closed:
		return l.opError("set", net.ErrClosed)
	}
	l.deadline.set(t, l.kick)
	return nil
}

// A deadline is a moment that can be moved, and a channel that it closes.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer   // nil if there is no deadline to come
	expired chan struct{} // closed while the deadline is past
}

// set moves the deadline to t, the zero time meaning never. When it comes, and
// the channel is closed, notify is called.
func (d *deadline) set(t time.Time, notify func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if isClosed(d.expired) {
		d.expired = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	expired := d.expired
	left := time.Until(t)
	if left <= 0 {
		close(expired)
		notify()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer { // else the deadline was moved at the last moment
			d.timer = nil
			close(expired)
			notify()
		}
	})
	d.timer = timer
}

// wait returns a channel that is closed once the deadline is past; nil never is.
func (d *deadline) wait() <-chan struct{} {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

// SyscallConn returns access to the descriptor, for what this package does not
// offer. A Read waits as an Accept does, its deadline too; a Write fails with
// [errors.ErrUnsupported]. What they call back may be called by several at once.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	if l.file == nil {
		return nil, l.opError("raw", os.ErrInvalid)
	}
	return rawListener{l}, nil
}

type rawListener struct{ l *Listener }

func (r rawListener) Control(f func(fd uintptr)) error {
	if err := r.l.raw.Control(f); err != nil {
		return r.l.opError("raw-control", net.ErrClosed)
	}
	return nil
}

func (r rawListener) Read(f func(fd uintptr) bool) error {
	if err := r.l.attempt(context.Background(), f); err != nil {
		return r.l.opError("raw-read", err)
	}
	return nil
}

func (r rawListener) Write(func(fd uintptr) bool) error {
	return r.l.opError("raw-write", errors.ErrUnsupported)
}

// opError makes the error of a method of l, the one place that does.
func (l *Listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "unix", Addr: l.Addr(), Err: cause(err)}
}
