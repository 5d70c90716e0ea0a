// Package unixsock provides Unix domain stream sockets. It mirrors Racket's
// racket/unix-socket and adds what package net lacks: a listener whose readiness is a
// channel, paths and abstract names of full length, connection halves that close
// independently, and a Connect that waits while the server's backlog is full.
//
// README.md and the package's example show a server that waits for clients, a ticker and a
// context in one select, and drains before it stops.
//
// # Differences from net
//
// A [Listener] is a [net.Listener] and a [Conn] is a [net.Conn]. [Listen] and
// [Connect] correspond to net.Listen and net.Dial with the network "unix". The
// differences:
//
//   - [Listener.Ready] is a channel that can be received from while a connection is
//     pending, so a select can wait for clients, timers and contexts alike. A receive
//     accepts nothing. [Listener.AcceptEvt] is a channel of accepted connections.
//   - On Linux, Connect waits while the listener's backlog is full, as a blocking
//     connect(2) does; net.Dial fails with EAGAIN.
//   - The default backlog is 4, too small for most servers; see [Backlog].
//   - A leading @ has no special meaning. An abstract name begins with NUL; see [Abstract].
//   - Closing a listener leaves the socket file, unless [UnlinkOnClose] is given.
//     [Listener.Drain] ends a listener without losing a client.
//   - [Conn.CloseRead] discards unread data, and Read fails from then on.
//   - Accept returns a *Conn, not a *net.UnixConn. The name of an abstract socket in
//     addresses and errors contains its NUL; print it with %q.
//
// # Racket's names
//
//	unix-socket-available?      Available
//	unix-socket-path?           ValidPath; CheckPath explains
//	#"\0name"                   "\x00name", or Abstract("name")
//	unix-socket-connect         Connect, ConnectContext; then Conn.Ports
//	unix-socket-listen          Listen; Backlog is its second argument
//	unix-socket-listener?       the type *Listener
//	(sync listener)             <-listener.Ready()
//	unix-socket-accept          Listener.Accept, AcceptContext, TryAccept
//	unix-socket-accept-evt      Listener.AcceptEvt; then Accepted.Conn.Ports
//	unix-socket-close-listener  Listener.Close
//	make-unix-socket-tcp@       NewTCPUnit
//	(sync/timeout 0 listener)   a select with a default that calls listener.Ready()
//	custodian-shutdown-all      the cancel function of a context
//
// Racket's sync over several events is a select over their channels: the body of a case
// is what handle-evt calls, and alarm-evt is [time.After]. A custodian is the context that
// [Conn.CloseOn], [Listener.CloseOn] or [Listener.AcceptEvt] is given; there is no
// current-custodian. Where Racket raises an exception, a function returns an error.
//
// # Platforms
//
// The package supports Linux (including Android), macOS (including iOS), FreeBSD,
// NetBSD, OpenBSD and DragonFly. On any other platform it compiles, [Available] is
// false, no path is valid, and every constructor returns an error that wraps
// [errors.ErrUnsupported].
//
// Abstract names, a Connect that waits, and copies in the kernel exist on Linux only. For
// what else differs on macOS and the BSDs, see [MaxPathLen], [Mode], [Conn.CloseRead],
// [Conn.PeerCred], [Conn.PeerPIDFD], [Conn.PeerGroups], [Conn.WriteFiles],
// [Listener.Accept], [Listener.Drain] and [FileListener].
package unixsock

import (
	"context"
	"net"
	"time"

	"github.com/go-unixsock/unixsock/internal/retry"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// Connect is [ConnectContext] without a context. It mirrors unix-socket-connect, whose two
// ports are [Conn.Ports].
func Connect(path string) (*Conn, error) {
	return ConnectContext(context.Background(), path)
}

// ConnectContext connects to the socket at path, a filesystem path or an abstract name
// as defined by [CheckPath].
//
// On Linux it waits while the listener's backlog is full, until ctx is done; then
// errors.Is finds ctx.Err() in the error. No kernel event reports room in a backlog, so
// ConnectContext tries again about every 20 ms, and less often where system calls are slow or
// goroutines wait for many paths. Goroutines that wait for one path take turns. All waiting
// goroutines of a process together use less than a fifth of one core. Once connected, ctx
// has no effect on the Conn. On macOS and the BSDs a full backlog is reported as ECONNREFUSED,
// as if no process were listening.
//
// Errors are *[net.OpError] with Op "dial". Among others, errors.Is finds
// [ErrInvalidPath], [io/fs.ErrNotExist], [io/fs.ErrPermission] and
// [syscall.ECONNREFUSED].
func ConnectContext(ctx context.Context, path string) (*Conn, error) {
	name, err := resolve(path)
	if err != nil {
		return nil, pathError("dial", path, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, pathError("dial", name, err)
	}
	start := time.Now()
	fd, err := sys.Socket()
	if err != nil {
		return nil, pathError("dial", name, err)
	}
	err = sys.ErrWouldBlock
	if !connecting.IsUrgent(name) {
		err = sys.Connect(fd, name)
	}
	if err == sys.ErrWouldBlock {
		took := time.Since(start)
		err = connecting.Do(ctx, name, took, func() error { return sys.Connect(fd, name) })
	}
	if err != nil {
		sys.Close(fd)
		return nil, pathError("dial", name, err)
	}
	return newConn(fd, unnamed, name), nil
}

func pathError(op, name string, err error) error {
	return &net.OpError{Op: op, Net: "unix", Addr: unixAddr(name), Err: err}
}

// connecting holds the goroutines that wait for a full backlog, by the socket's name.
var connecting = retry.New(sys.ErrWouldBlock)
