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
// listens, whatever the umask, which stays unchanged. To connect takes write permission,
// except on systems that ignore the bits of sockets: there, protect the directory.
//
// On Linux the bits are never wider than perm, and they alone decide: what a default ACL of
// the directory has added goes, entries that refuse a user, too. On macOS and the BSDs the
// bits may be wider between bind(2) and chmod(2): a connect that the kernel admits then may
// succeed.
//
// [Listen] returns an error if perm has bits outside [fs.ModePerm], or for an abstract name.
func Mode(perm fs.FileMode) ListenOption {
	return func(c *listenConfig) { c.file.Mode = &perm }
}

// Owner sets the owner and the group of the socket file before the socket listens. -1
// leaves one unchanged, as in [os.Chown]. Together with Mode(0o660) it lets a front-end
// server of another group connect. On a file system that refuses changes, Owner may name
// the owner that the file has.
//
// Use it with Mode: on Linux, the file then admits only the user of this process until
// its owner is set. Without Mode, a connect that only the first owner or group admits may
// succeed if it comes just before the change.
//
// [Listen] returns an error, and leaves no socket file, if the process may not make the
// change, or for an abstract name. Changing the owner requires root's privileges. The
// group may be one of the process's own.
func Owner(uid, gid int) ListenOption {
	return func(c *listenConfig) { c.file.Owner = &sockfile.Owner{UID: uid, GID: gid} }
}

// ReplaceStale makes [Listen] replace a socket file that no process has open. If a server
// is listening, if the file is a link or not a socket, or if the kernel's answer is not
// certain, Listen fails with [syscall.EADDRINUSE] and leaves the file. The error says why,
// and if the probe was refused, errors.Is finds [fs.ErrPermission], too. Listen waits up to
// 50 ms for a closed socket that a child process still holds between fork and exec.
//
// No answer is certain on FUSE, NFS, SMB, 9P and other file systems through which a live
// socket can be seen but not reached, unless the file is on the device of "/". The upper
// directory of a mounted overlay cannot be told from any other: do not listen there.
//
// If several processes race for a path, one succeeds. They exclude each other with a lock
// on the directory, for which Listen waits at most two seconds, because every user who can
// read the directory can hold it. Use a directory that the server can read: without the
// lock, two may succeed if one is suspended between its probe and the removal.
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
	file *os.File
	raw  syscall.RawConn // of file
	fd   int             // of file; open while mu is held and done is not closed
	addr *net.UnixAddr

	// pollSem holds a token while a goroutine waits in the poller. Only one may: a second
	// would block on os.File's read lock, where its context cannot interrupt it. Only the
	// holder resets the file's deadline.
	pollSem chan struct{}
	done    chan struct{} // closed by Close, which holds mu
	removed chan struct{} // closed once Close has dealt with the socket file

	mu            sync.Mutex     // guards the fields below, and every accept(2) on the descriptor
	changed       chan struct{}  // closed by wake; nil if no goroutine waits for it
	deadline      time.Time      // zero: none
	timer         *time.Timer    // of the last deadline that was set; nil if none was
	custodian     *custodian     // of CloseOn
	sockFile      *sockfile.File // nil: none, or not known
	unlinkOnClose bool
	events        events // Ready and AcceptEvt
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
	l.unlinkOnClose = config.unlinkOnClose
	return l, nil
}

// newListener returns a Listener for fd, which it owns from then on, even if it fails.
func newListener(fd int, name string, sockFile *sockfile.File) (*Listener, error) {
	file, err := netfd.NewFile(fd)
	if err != nil {
		return nil, err
	}
	raw, _ := file.SyscallConn() // fails only if the file is nil
	l := &Listener{
		file:     file,
		raw:      raw,
		addr:     unixAddr(name),
		pollSem:  make(chan struct{}, 1),
		done:     make(chan struct{}),
		removed:  make(chan struct{}),
		sockFile: sockFile,
	}
	raw.Control(func(fd uintptr) { l.fd = int(fd) })
	return l, nil
}

func (l *Listener) ok() bool { return l != nil && l.file != nil }

// Accept waits for a connection and returns it as a *[Conn]. If the process is out of
// descriptors, the error is EMFILE: a loop should pause before it tries again. The
// connection stays pending, except on gVisor and macOS, which drop it. If no other one is
// pending there, Accept reports no error and waits. Accept mirrors unix-socket-accept.
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
	var res Accepted
	err := l.tryOrWait(ctx, func(uintptr) bool {
		res.Conn, res.Err = l.take()
		return res.Err != sys.ErrWouldBlock
	})
	if err == nil {
		err = res.Err
	}
	return res.Conn, l.opError("accept", err)
}

// take returns a connection, accepted ahead or now, or ErrWouldBlock.
func (l *Listener) take() (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if isClosed(l.done) {
		return nil, net.ErrClosed
	}
	c, err := l.takePending(), error(nil)
	if c == nil {
		c, err = l.acceptOne()
	}
	l.sync()
	return c, err
}

// acceptOne accepts one connection from the kernel, or returns ErrWouldBlock. mu is held.
func (l *Listener) acceptOne() (*Conn, error) {
	nfd, peer, err := sys.Accept(l.fd)
	if err != nil {
		return nil, err
	}
	return newConn(nfd, l.addr, peer), nil
}

// tryOrWait calls try with the descriptor, now and after each arrival of a connection,
// until try returns true. It returns early when ctx is done, the deadline expires or the
// listener is closed.
func (l *Listener) tryOrWait(ctx context.Context, try func(fd uintptr) bool) error {
	for {
		changed, err := l.nextChange(ctx) // before the attempt, so that no arrival is missed
		if err != nil {
			return err
		}
		pollSem := l.pollSem
		if l.events.watching.Load() {
			pollSem = nil // only the watcher may wait in the poller
			over := false
			err := l.raw.Control(func(fd uintptr) { over = try(fd) })
			if over || err != nil {
				return netfd.MapRawErr(err)
			}
		}
		select {
		case pollSem <- struct{}{}:
			if over, err := l.pollWait(ctx, try); over || err != nil {
				return err
			}
		case <-changed:
		case <-ctx.Done():
		case <-l.done:
		}
	}
}

// pollWait is tryOrWait for the holder of pollSem, which it releases: the goroutine waits
// in the poller itself. Once there is a watcher, it returns false and no error.
func (l *Listener) pollWait(ctx context.Context, try func(fd uintptr) bool) (over bool, err error) {
	defer func() { <-l.pollSem }()
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, l.interrupt)
		defer stop()
	}
	for {
		if _, err := l.nextChange(ctx); err != nil {
			return false, err
		}
		if l.events.watching.Load() {
			return false, nil
		}
		err := netfd.MapRawErr(l.raw.Read(try))
		if err != os.ErrDeadlineExceeded {
			return err == nil, err
		}
		// The interrupt may have been meant for the previous holder of pollSem. Callers
		// of interrupt set their condition first, so the checks above see it.
		l.file.SetReadDeadline(time.Time{})
	}
}

// nextChange returns a channel that is closed when a connection arrives or is accepted
// ahead, or the deadline expires. Its error is the reason not to wait.
func (l *Listener) nextChange(ctx context.Context) (<-chan struct{}, error) {
	err := ctx.Err() // without mu, because it may lock a mutex of the caller's
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case isClosed(l.done):
		return nil, net.ErrClosed
	case !l.deadline.IsZero() && !time.Now().Before(l.deadline):
		return nil, os.ErrDeadlineExceeded
	case l.changed == nil:
		l.changed = make(chan struct{})
	}
	return l.changed, err
}

// wake wakes the goroutines that wait for a change. mu is held.
func (l *Listener) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
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

// interrupt makes the goroutine that waits in the poller check its conditions. The
// file's deadline has no other purpose.
func (l *Listener) interrupt() {
	l.file.SetReadDeadline(netfd.ALongTimeAgo)
}

// Close closes the listener. Accepts that are waiting fail with [net.ErrClosed]. Pending
// clients are disconnected, unless the listening socket is open elsewhere, for example in
// another process. The socket file stays unless [UnlinkOnClose] or
// [Listener.SetUnlinkOnClose] says otherwise. A second Close waits until the first one has
// dealt with the file, and returns nil. Close mirrors unix-socket-close-listener.
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
	if isClosed(l.done) {
		l.mu.Unlock()
		<-l.removed // not for the first Close, which may wait for a callback that calls Close
		return nil
	}
	close(l.done)
	l.custodian = l.custodian.replace(context.Background(), nil)
	if c := l.takePending(); c != nil {
		defer c.Close() // last: a client that connects again must not reach this listener
	}
	l.endEvents()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.interrupt()
	if !l.unlinkOnClose {
		l.sockFile = nil
	}
	l.mu.Unlock()

	// The socket is still open, so no other process takes the file for a stale one.
	removeErr := l.sockFile.Remove()
	close(l.removed)
	// Without mu: closing the descriptor waits for callbacks that lock mu.
	err := errors.Join(netfd.MapErr(removeErr), netfd.MapErr(l.file.Close()))
	return l.opError("close", err)
}

// CloseOn makes ctx the custodian of the Listener, as [Conn.CloseOn] does for a Conn. A
// goroutine closes it just after ctx is done; Close is complete when it returns.
func (l *Listener) CloseOn(ctx context.Context) {
	if !l.ok() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !isClosed(l.done) {
		l.custodian = l.custodian.replace(ctx, func(k *custodian) { l.close(k) })
	}
}

// SetUnlinkOnClose sets whether Close removes the socket file, as in
// [net.UnixListener.SetUnlinkOnClose]. The default is false, or true with
// [UnlinkOnClose]. For a restart of the server, see [Listener.File].
//
// Close removes only the file that l is bound to, and waits at most a second for a process
// that is replacing it. The setting has no effect on an abstract name, which vanishes with
// its socket.
//
// For a listener from [FileListener], Linux 6 and later is asked through netlink which file
// that is. If it does not answer, or names another device, the file stays: in another
// network namespace, in a sandbox without netlink, on btrfs, and on an overlay over several
// file systems. On other kernels it is the socket file that was at the path when
// FileListener was called.
func (l *Listener) SetUnlinkOnClose(unlink bool) {
	if !l.ok() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unlinkOnClose = unlink
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

// String returns "unix " and the listener's name, quoted as in [Conn.String].
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if isClosed(l.done) {
		return l.opError("set", net.ErrClosed)
	}
	if l.timer != nil {
		l.timer.Stop()
	}
	l.deadline = t
	if !t.IsZero() {
		left := time.Until(t)
		l.deadline = time.Now().Add(left) // a change of the wall clock has no effect on it
		l.timer = time.AfterFunc(left, l.onDeadline)
	}
	return nil
}

func (l *Listener) onDeadline() {
	l.mu.Lock()
	l.wake()
	l.mu.Unlock()
	l.interrupt()
}

// SyscallConn returns access to the descriptor, for operations that this package lacks.
// The RawConn's Read waits as Accept does, with the same deadline; the first one starts a
// goroutine, which ends with Close. Its Write fails with [errors.ErrUnsupported]. Several
// callbacks may run concurrently. A callback must not call Close, which waits for it.
func (l *Listener) SyscallConn() (syscall.RawConn, error) {
	if !l.ok() {
		return nil, l.opError("raw", os.ErrInvalid)
	}
	return rawListener{l}, nil
}

// rawListener is a Listener's syscall.RawConn. A callback may accept a connection, so
// the readiness channel is synchronized after each one.
type rawListener struct{ l *Listener }

func (r rawListener) Control(f func(fd uintptr)) error {
	err := r.l.raw.Control(func(fd uintptr) {
		f(fd)
		r.l.lockAndSync()
	})
	return r.l.opError("raw-control", netfd.MapRawErr(err))
}

func (r rawListener) Read(f func(fd uintptr) bool) error {
	r.l.mu.Lock()
	r.l.startWatcher() // else Accept would wait for pollSem while f returns false
	r.l.mu.Unlock()
	err := r.l.tryOrWait(context.Background(), func(fd uintptr) bool {
		defer r.l.lockAndSync()
		return f(fd)
	})
	return r.l.opError("raw-read", err)
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
