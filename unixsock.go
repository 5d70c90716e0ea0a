// Package unixsock is unix domain sockets of the stream kind, with the features
// of Racket's unix-socket library that package net lacks: a listener that can be waited
// for in a select, all the bytes of a path or an abstract name, two ends of a
// connection that close apart, and a Connect that waits while a server is busy.
//
// # From net
//
// A [Listener] is a [net.Listener] and a [Conn] is a [net.Conn]; what takes one
// of these takes them too. [Listen] and [Connect] stand for net.Listen and
// net.Dial with "unix". The differences:
//
//   - [Listener.Ready] is a channel that is ready to receive from while a client
//     waits to be accepted, so that a loop can select on clients, timers and
//     contexts alike. It accepts nothing. [Listener.AcceptEvt] is such a channel
//     that accepts.
//   - Connect waits while the listener's backlog is full, as connect(2) does in
//     C, where net.Dial fails with EAGAIN. (On Linux; elsewhere it is refused.)
//   - The backlog is 4 unless [Backlog] says otherwise: few, for a server whose
//     clients are not of this package and fail when it is full.
//   - A leading @ means nothing special. An abstract name begins with NUL; see
//     [Abstract] and [CheckPath]. Every byte of it counts.
//   - Closing a listener leaves the socket file, unless [UnlinkOnClose] is given.
//   - [Conn.CloseRead] drops what has come and was not read, and Read fails then.
//   - What Accept returns is a *Conn, not a *net.UnixConn, and the name of an
//     abstract socket in addresses and errors has its NUL; print it with %q.
//
// # From Racket
//
//	unix-socket-available?      Available
//	unix-socket-path?           ValidPath; CheckPath says why not
//	#"\0name"                   "\x00name", or Abstract("name")
//	unix-socket-connect         Connect, ConnectContext; then Conn.Ports
//	unix-socket-listen          Listen; Backlog is its second argument
//	unix-socket-listener?       the type *Listener
//	(sync listener)             <-listener.Ready()
//	unix-socket-accept          Listener.Accept, Listener.AcceptContext
//	unix-socket-accept-evt      Listener.AcceptEvt
//	unix-socket-close-listener  Listener.Close
//	make-unix-socket-tcp@       NewTCPUnit
//
// sync over several events is select over their channels. A custodian is a
// [context.Context]: [Conn.CloseOn] and [Listener.CloseOn] put a connection or a
// listener under it, and AcceptEvt's is that of the connections it delivers. An
// error is a value that is returned, where Racket raises an exception.
//
// # A server's loop
//
//	listener, err := unixsock.Listen("/run/example.sock")
//	...
//	for {
//		select {
//		case <-listener.Ready():
//			conn, err := listener.AcceptContext(ctx)
//			...
//		case <-ticker.C:
//			...
//		case <-ctx.Done():
//			return listener.Close()
//		}
//	}
//
// # Platforms
//
// Linux (Android too), macOS (iOS too), FreeBSD, NetBSD, OpenBSD and DragonFly.
// On any other the package compiles, [Available] is false, no path is valid, and
// what makes a socket returns an error that is [errors.ErrUnsupported]. Abstract
// names are Linux's alone.
package unixsock

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

// errWouldBlock says that a call would have had to wait.
var errWouldBlock = errors.New("would block")

// Connect connects to the socket at path and waits while its listener's backlog
// is full; see [ConnectContext]. It mirrors unix-socket-connect: [Conn.Ports]
// are the two ports.
func Connect(path string) (*Conn, error) {
	return ConnectContext(context.Background(), path)
}

// ConnectContext connects to the socket at path, a filesystem path or an
// abstract name as [CheckPath] has them.
//
// As a blocking connect(2) would, it waits while the backlog of the listener is
// full, until ctx is done; errors.Is finds ctx.Err() in the error then. On Linux,
// that is: on macOS and the BSDs a full backlog is ECONNREFUSED, no different
// from nobody listening. It waits by trying again at intervals, of some
// milliseconds, more if many wait, for no event tells of room: who came first
// need not be the first to connect. Once connected, ctx has no hold on the Conn.
//
// Errors are *[net.OpError] with Op "dial". Among what errors.Is finds are
// [ErrInvalidPath], [io/fs.ErrNotExist], [io/fs.ErrPermission] and
// [syscall.ECONNREFUSED].
func ConnectContext(ctx context.Context, path string) (*Conn, error) {
	name, err := resolve(path)
	if err != nil {
		return nil, dialError(path, err)
	}
	return dial(ctx, name)
}

// dial connects to the socket called name.
func dial(ctx context.Context, name string) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, dialError(name, err)
	}
	fd, err := newSocket()
	if err != nil {
		return nil, dialError(name, err)
	}
	if err = connectSocket(fd, name); err == errWouldBlock {
		err = awaitBacklog(ctx, fd, name)
	}
	if err != nil {
		closeSocket(fd)
		return nil, dialError(name, err)
	}
	observed.connected(fd, name)
	return newConn(fd, "", name), nil
}

func dialError(name string, err error) error {
	return &net.OpError{Op: "dial", Net: "unix", Addr: unixAddr(name), Err: err}
}

// No event tells that a full backlog has room again: the kernel wakes those who
// block in connect(2), each in a thread of its own, and poll has no word for
// it. So one tries again, at intervals that keep the whole process, however
// many of its goroutines wait, below one attempt per retryShare.
const (
	retryFirst = 100 * time.Microsecond
	retryMost  = 10 * time.Millisecond
	retryShare = 50 * time.Microsecond
)

// retrying counts the goroutines in awaitBacklog.
var retrying atomic.Int64

// awaitBacklog connects fd to name, whose backlog was full just now.
func awaitBacklog(ctx context.Context, fd int, name string) error {
	retrying.Add(1)
	defer retrying.Add(-1)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		d := max(pause, time.Duration(retrying.Load())*retryShare)
		timer.Reset(d/2 + rand.N(d)) // no two in step
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		if err := connectSocket(fd, name); err != errWouldBlock {
			return err
		}
	}
}
