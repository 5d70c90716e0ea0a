package unixsock

import (
	"cmp"
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

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/pending"
	"github.com/go-unixsock/unixsock/internal/sockfile"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// A ListenOption changes how [Listen] listens. A nil one has no effect.
type ListenOption func(*listenConfig)

type listenConfig struct {
	backlog       int
	file          sockfile.Options
	unlinkOnClose bool
}

// Backlog sets the maximum number of pending connections. The default is 4, as in
// Racket. A server behind nginx or haproxy, or with clients that use package net,
// needs more, for example 511: such clients fail while the backlog is full. Linux
// queues one more than n, so 0 is usable, and caps n at net.core.somaxconn. [Listen]
// returns an error if n is negative.
func Backlog(n int) ListenOption {
	return func(c *listenConfig) { c.backlog = n }
}

// Mode sets the permission bits of the socket file to exactly perm before the socket
// listens. The umask neither limits perm nor changes. On Linux the bits are never wider than
// perm, and they alone decide: the ACL that a directory gives to its new files is removed,
// with the entries that refuse a user.
//
// To connect takes write permission on the file. Some systems do not check that: there, use
// a directory that other users cannot enter.
//
// [Listen] returns an error if perm has bits outside [fs.ModePerm], or for an abstract name.
func Mode(perm fs.FileMode) ListenOption {
	return func(c *listenConfig) { c.file.Mode = &perm }
}

// Owner sets the owner and the group of the socket file before the socket listens. -1 leaves
// one unchanged, as in [os.Chown]. Together with Mode(0o660) it lets a front-end server of
// another group connect. Without Mode, a connect that overlaps with the change may succeed for
// a process that only the file's original owner or group admits.
//
// [Listen] returns an error, and leaves no socket file, if the process may not make the
// change, or for an abstract name. Only root may change the owner. Other users may set the
// group to one of their own. If the file has that owner and group already, nothing is set, so
// Owner works on file systems that refuse changes, too.
func Owner(uid, gid int) ListenOption {
	return func(c *listenConfig) { c.file.Owner = &sockfile.Owner{UID: uid, GID: gid} }
}

// ReplaceStale makes [Listen] replace a socket file that no process has open. If a server is
// listening, if the file is a link or not a socket, or if the kernel's answer is not
// certain, Listen fails with [syscall.EADDRINUSE] and leaves the file. The error says why.
// If the process may not connect to the socket, errors.Is finds [fs.ErrPermission], too.
//
// No answer is certain on FUSE, NFS, SMB, 9P and other file systems through which a live
// socket can be seen but not reached, unless the file is on the device of "/". The upper
// directory of a mounted overlay cannot be told from any other: do not listen there.
//
// If several processes race for a path, one succeeds. They exclude each other with a lock on
// the directory. If Listen cannot read the directory, or has waited for two seconds, it
// proceeds without the lock, and two may succeed.
func ReplaceStale() ListenOption {
	return func(c *listenConfig) { c.file.ReplaceStale = true }
}

// UnlinkOnClose makes [Listener.Close] remove the socket file; see
// [Listener.SetUnlinkOnClose].
func UnlinkOnClose() ListenOption {
	return func(c *listenConfig) { c.unlinkOnClose = true }
}

// A Listener is a listening Unix domain socket, a [net.Listener]. All of its methods may
// be called concurrently.
//
// Errors are *[net.OpError]. errors.Is finds [net.ErrClosed] after a close, and
// [os.ErrDeadlineExceeded] past a deadline. The methods of a nil or zero Listener return
// an error, a zero value or a closed channel.
type Listener struct {
	file  *os.File
	raw   syscall.RawConn // of file
	fd    int             // of file; used by the queue only, with its mutex held, until it is closed
	addr  *net.UnixAddr
	queue *pending.Queue[*Listener, Accepted]

	// Of the Wait in progress. They are fields because a closure for each Wait would allocate.
	arrived    func() bool
	onReadable func(fd uintptr) bool

	// No lock is held while a method of a caller's context or a caller's callback runs.

	mu            sync.Mutex // guards the fields below
	closed        bool
	custodian     *custodian // of CloseOn
	unlinkOnClose bool
	owner         bool // Drain ends the socket, not only this Listener
	drained       bool // Drain was called

	fileMu   sync.Mutex     // guards sockFile; while it is held, the descriptor stays open
	sockFile *sockfile.File // nil: none, not known, or removed
	gone     chan struct{}  // closed once Close is complete
}

var (
	_ net.Listener = (*Listener)(nil)
	_ syscall.Conn = (*Listener)(nil)
)

// Listen listens on a socket bound to path, a filesystem path or an abstract name as
// defined by [CheckPath]. The default [Backlog], 4, is too small for most servers.
//
// Binding a filesystem path creates a file, which stays after Close, as in Racket, unless
// [UnlinkOnClose] is given. If a file exists already, the error is [syscall.EADDRINUSE];
// see [ReplaceStale]. The file exists a moment before the socket listens: a client that
// connects in between gets [syscall.ECONNREFUSED]. A file that is mounted into a container
// cannot be replaced (EBUSY): mount its directory.
//
// Errors are *[net.OpError] with Op "listen". Among others, errors.Is finds
// [ErrInvalidPath], [io/fs.ErrNotExist] and [io/fs.ErrPermission]. Listen mirrors
// unix-socket-listen.
func Listen(path string, opts ...ListenOption) (*Listener, error) {
	name, err := resolve(path)
	if err != nil {
		return nil, pathError("listen", path, err)
	}
	config := listenConfig{backlog: 4}
	for _, opt := range opts {
		if opt != nil {
			opt(&config)
		}
	}
	if config.backlog < 0 {
		return nil, pathError("listen", name, fmt.Errorf("negative backlog: %d", config.backlog))
	}
	if err := config.file.Check(name); err != nil {
		return nil, pathError("listen", name, err)
	}
	fd, err := sys.Socket()
	if err != nil {
		return nil, pathError("listen", name, err)
	}
	backlog := min(config.backlog, math.MaxInt32)
	file, err := config.file.Bind(fd, name, func() error { return sys.Listen(fd, backlog) })
	if err != nil {
		sys.Close(fd)
		return nil, pathError("listen", name, err)
	}
	l, err := newListener(fd, name, file)
	if err != nil {
		file.Remove()
		return nil, pathError("listen", name, err)
	}
	l.unlinkOnClose, l.owner = config.unlinkOnClose, true
	return l, nil
}

// newListener returns a Listener for fd, which it owns from then on, even if it fails.
func newListener(fd int, name string, sockFile *sockfile.File) (*Listener, error) {
	file, err := netfd.NewFile(fd)
	if err != nil {
		return nil, err
	}
	raw, _ := file.SyscallConn() // fails only if the file is nil
	l := &Listener{file: file, raw: raw, addr: unixAddr(name), sockFile: sockFile, gone: make(chan struct{})}
	raw.Control(func(fd uintptr) { l.fd = int(fd) })
	l.onReadable = func(uintptr) bool { return l.arrived() }
	l.queue = pending.New(l, (*source)(l), pending.Hooks[Accepted]{Delivered: delivered, Ended: l.ended})
	return l, nil
}

func (l *Listener) ok() bool { return l != nil && l.file != nil }

// Accept waits for a connection and returns it as a *[Conn]. If the process is out of
// descriptors, the error is EMFILE: a loop should pause before it tries again. The
// connection stays pending, except on macOS and gVisor, whose kernels drop it. Accept
// mirrors unix-socket-accept.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptContext(context.Background())
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptContext is [Listener.Accept], but waits only until ctx is done; then errors.Is
// finds ctx.Err() in the error. If ctx is done already, that is the result even if a
// connection is pending. Once a connection is accepted, ctx has no effect on it.
func (l *Listener) AcceptContext(ctx context.Context) (*Conn, error) {
	if !l.ok() {
		return nil, l.opError("accept", os.ErrInvalid)
	}
	a, err := l.queue.Accept(ctx)
	return a.Conn, l.opError("accept", err)
}

// TryAccept accepts a pending connection and does not wait. If none is pending, errors.Is
// finds [syscall.EAGAIN] in the error, whose Timeout method returns true, and
// [Listener.Ready] is empty. If l has drained, errors.Is finds [net.ErrClosed] instead.
//
// TryAccept is the accept to use after a receive from Ready when other goroutines or
// processes accept, too. It ignores the deadline. It waits only if another process has set
// the shared socket to blocking mode.
func (l *Listener) TryAccept() (*Conn, error) {
	if !l.ok() {
		return nil, l.opError("accept", os.ErrInvalid)
	}
	a, err := l.queue.TryAccept()
	if err == pending.ErrNone {
		err = os.NewSyscallError("accept", sys.EAGAIN)
	}
	return a.Conn, l.opError("accept", err)
}

// Drain lets no later client in, and closes l once no connection is pending. It does not
// wait for that: until then Accept, TryAccept, Ready and AcceptEvt continue, so the loop
// that serves l goes on until errors.Is finds [net.ErrClosed], which is no failure: the Serve
// of an http.Server returns it. If l owns its socket, the process that calls Drain must run
// such a loop, also beside other processes that share the socket: l accepts a connection
// ahead, which is lost if it is not served. Close ends a drain. A drain does not end while
// the process is out of descriptors.
//
// What Drain does depends on who owns the socket: a listener made by [Listen] does, with or
// without [UnlinkOnClose], and one from [FileListener] does not, unless
// [Listener.SetUnlinkOnClose] has changed that. The owner's Drain removes the socket file
// and, on Linux and NetBSD, makes the kernel refuse later connects: the listeners of all
// processes that share the socket then drain, too (on NetBSD once they call an accept again).
// On other systems a client that connects during the removal may be lost. Drain of any other
// listener leaves the file and the backlog to the other processes. It delivers only what
// [Listener.AcceptEvt] has accepted ahead.
//
// If the file cannot be removed, Drain returns the error, and the drain proceeds. A second
// Drain, or one after Close, does nothing. If another goroutine than the one that calls Drain
// serves l, it should call Close when it has finished: Close waits until the file is removed.
func (l *Listener) Drain() error {
	if !l.ok() {
		return l.opError("drain", os.ErrInvalid)
	}
	l.mu.Lock()
	first, owner := !l.drained, l.owner
	l.drained = true
	l.mu.Unlock()
	if !first {
		return nil // a socket that is shut down has no other process to leave its backlog to
	}
	var err error
	if owner {
		// The lock comes first: the queue may end, and close the file, as soon as it
		// notices the shutdown.
		l.fileMu.Lock()
		l.raw.Control(func(fd uintptr) { sys.RefuseConnects(int(fd)) }) // fails after Close
		err = l.removeFile(true)
		l.fileMu.Unlock()
	}
	if l.queue.Drain(!owner) {
		l.Close()
	}
	return l.opError("drain", err)
}

// ended is called when the queue has closed itself. The socket file is not the Listener's any
// more: Drain has removed it, another process has shut down the socket, or the Listener was
// not the owner.
func (l *Listener) ended() {
	l.mu.Lock()
	l.unlinkOnClose = false
	l.mu.Unlock()
	go l.Close()
}

// removeFile removes the socket file if unlink is set, and forgets it. fileMu is held, so
// the descriptor is open: no other process takes the file for a stale one.
func (l *Listener) removeFile(unlink bool) error {
	file := l.sockFile
	l.sockFile = nil
	if !unlink {
		return nil
	}
	return netfd.MapErr(file.Remove())
}

// Close closes the listener. Accepts that are waiting fail with [net.ErrClosed]. Pending
// clients are disconnected, unless the listening socket is open elsewhere, for example in
// another process. The socket file stays unless [UnlinkOnClose] or
// [Listener.SetUnlinkOnClose] says otherwise. A second Close waits for the first one, and
// returns nil. Close mirrors unix-socket-close-listener.
func (l *Listener) Close() error { return l.close(nil) }

// close closes the listener. If by is set, it does so only if by is still the custodian.
func (l *Listener) close(by *custodian) error {
	if !l.ok() {
		return l.opError("close", os.ErrInvalid)
	}
	l.mu.Lock()
	if by != nil && by != l.custodian {
		l.mu.Unlock()
		return nil
	}
	first, unlink, custodian := !l.closed, l.unlinkOnClose, l.custodian
	l.closed, l.custodian = true, nil
	l.mu.Unlock()
	custodian.release()
	if !first {
		<-l.gone
		return nil
	}
	defer close(l.gone)
	a, ahead := l.queue.Close()
	l.fileMu.Lock()
	err := l.removeFile(unlink)
	l.fileMu.Unlock()
	err = errors.Join(err, netfd.MapErr(l.file.Close()))
	if ahead {
		a.Conn.Close() // last: a client that connects again must not reach this listener
	}
	return l.opError("close", err)
}

// CloseOn makes ctx the custodian of the Listener, as [Conn.CloseOn] does for a Conn. A
// goroutine closes the Listener just after ctx is done. Close is complete when it returns.
func (l *Listener) CloseOn(ctx context.Context) {
	if !l.ok() {
		return
	}
	free := func() bool { return !l.closed }
	closeOn(ctx, &l.mu, &l.custodian, free, func(k *custodian) { l.close(k) })
}

// SetUnlinkOnClose sets whether Close removes the socket file, as in
// [net.UnixListener.SetUnlinkOnClose]. The default is false, or true with [UnlinkOnClose].
// A call also sets whether l owns its socket, which decides what [Listener.Drain] does.
//
// Close removes only the file that l is bound to. If a process is replacing the file, Close
// waits for it, at most a second. For a listener from [FileListener], Linux 6 and later is
// asked which file that is. Without an answer, or with one that names another device, the
// file stays: on btrfs, on an overlay over several file systems, in another network namespace,
// and in a sandbox without netlink. On other kernels the socket file that was at the path when
// FileListener was called is taken for l's own.
func (l *Listener) SetUnlinkOnClose(unlink bool) {
	if !l.ok() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlinkOnClose, l.owner = unlink, unlink
}

// Addr returns the *[net.UnixAddr] that the listener is bound to: the absolute form of
// the path, or the abstract name with its leading NUL, or for a listener from
// [FileListener] the name as it was bound.
func (l *Listener) Addr() net.Addr {
	if !l.ok() {
		return nil
	}
	return l.addr
}

// String returns "unix " and the listener's name, in quotes where [Conn.String] would use them.
func (l *Listener) String() string {
	if l == nil {
		return "<nil>"
	}
	return "unix " + printable(cmp.Or(l.addr, unnamed).Name)
}

// SetDeadline sets the deadline of Accept and AcceptContext. The zero time means no
// deadline. [Listener.Ready] and [Listener.AcceptEvt] ignore it.
func (l *Listener) SetDeadline(t time.Time) error {
	if !l.ok() {
		return l.opError("set", os.ErrInvalid)
	}
	return l.opError("set", l.queue.SetDeadline(t))
}

// SyscallConn returns access to the descriptor by the RawConn's Control. Its Read and Write
// fail with [errors.ErrUnsupported]. Several callbacks may run concurrently. A callback must
// not call Close or Drain, which wait for it. If it accepts a connection, the channel of
// [Listener.Ready] agrees with the backlog afterwards.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	if !l.ok() {
		return nil, l.opError("raw", os.ErrInvalid)
	}
	return rawListener{l}, nil
}

// rawListener is a Listener's syscall.RawConn.
type rawListener struct{ l *Listener }

func (r rawListener) Control(f func(fd uintptr)) error {
	err := r.l.raw.Control(func(fd uintptr) {
		defer r.l.queue.Sync() // also if f panics
		f(fd)
	})
	return r.l.opError("raw-control", netfd.MapRawErr(err))
}

func (r rawListener) Read(func(fd uintptr) bool) error {
	return r.l.opError("raw-read", errors.ErrUnsupported)
}

func (r rawListener) Write(func(fd uintptr) bool) error {
	return r.l.opError("raw-write", errors.ErrUnsupported)
}

// opError returns the error of a method of l, nil if err is nil.
func (l *Listener) opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: op, Net: "unix", Addr: l.Addr(), Err: netfd.MapErr(err)}
}
