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
//     Addresses and errors contain that NUL; print a name with %q.
//   - The address of an unnamed socket, as most clients have, is "" and not "@".
//   - Closing a listener leaves the socket file, unless [UnlinkOnClose] is given.
//     [Listener.Drain] ends a listener without losing a client.
//   - A second Close returns nil.
//   - Accept returns a *Conn, not a *net.UnixConn.
//   - [Conn.CloseRead] discards unread data, and Read fails from then on.
//   - The file of [Conn.File] is non-blocking even after a call of its Fd method.
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
//	(sync/timeout 0 listener)   a select with a default that calls listener.Ready()
//	unix-socket-accept          Listener.Accept, AcceptContext, TryAccept
//	unix-socket-accept-evt      Listener.AcceptEvt; then Accepted.Conn.Ports
//	unix-socket-close-listener  Listener.Close
//	make-unix-socket-tcp@       NewTCPUnit
//	close-input-port            InputPort.Close
//	close-output-port           OutputPort.Close
//	flush-output                not needed: an OutputPort has no buffer
//	(sync in), read-bytes-evt   Read in a goroutine, or with SetReadDeadline
//	(alarm-evt msecs)           time.After(time.Until(t)): both t and msecs are absolute
//	make-custodian              context.WithCancel
//	custodian-shutdown-all      its cancel function, which does not wait
//
// Racket's sync over several events is a select over their channels: the body of a case
// is what handle-evt calls. A port is no event. A custodian is the context that
// [Conn.CloseOn], [Listener.CloseOn] or [Listener.AcceptEvt] is given; there is no
// current-custodian. The shutdown of a custodian closes synchronously; after the cancel of a
// context, a goroutine closes. Where Racket raises an exception, a function returns an error.
//
// # Platforms
//
// The package supports Linux (including Android), macOS (including iOS), FreeBSD,
// NetBSD, OpenBSD and DragonFly. On any other platform it compiles, [Available] is
// false, no path is valid, and every constructor returns an error that wraps
// [errors.ErrUnsupported]. What differs for a caller:
//
//	                           Linux    macOS      FreeBSD   NetBSD   OpenBSD  DragonFly
//	MaxPathLen                 108      104        104       104      103      104
//	abstract names             yes      no         no        no       no       no
//	Connect, full backlog      waits    refused    refused   refused  refused  refused
//	Mode, before it is set     exact    wider      wider     wider    wider    wider
//	Accept, no descriptor      pending  lost       pending   pending  pending  pending
//	Drain, later connects      refused  no file    no file   refused  no file  no file
//	Accept, a longer name      none     lost       none      whole    none     whole
//	FileListener, no listener  error    no error   error     error    error    no error
//	CloseRead, peer's Write    EPIPE    discarded  waits     waits    waits    unknown
//	PeerCred                   yes      yes        no PID    no       no       no
//	PeerGroups                 yes      up to 15   up to 15  no       no       no
//	PeerPIDFD                  from 6.5 no         no        no       no       no
//	copies in the kernel       yes      no         no        no       no       no
//
// The rows that need words:
//
//   - Connect: where the kernel refuses connections to a full backlog, the error is
//     ECONNREFUSED.
//   - Mode: the bits may be wider from bind(2) until chmod(2), before the socket listens. A
//     connect that begins then may succeed once the socket listens. FreeBSD 15 is as Linux.
//   - Accept: if the process is out of descriptors, the connection stays pending or is lost.
//     Where it is lost, Accept reports EMFILE only if another one is pending.
//   - Drain: where the kernel cannot refuse connects, only the removal of the socket file
//     keeps clients away. One that connects during the removal may be lost. On NetBSD an
//     Accept that waits in another process goes on waiting; the next one fails.
//   - A longer name: macOS, NetBSD and DragonFly let a client bind a name that is longer than
//     MaxPathLen. Its connection is accepted with the whole name, or lost.
//   - FileListener: where it cannot tell that a socket does not listen, the first accept fails.
//   - CloseRead: the peer's Write fails, or its bytes are discarded, or it waits once a buffer
//     is full. On FreeBSD 15 it fails.
//   - PeerCred: on macOS, the PID is that of the process that last used the peer's socket.
//
// gVisor is as Linux, except that a connection is lost if the process is out of descriptors,
// Drain cannot make the kernel refuse connects (a listener with an abstract name closes after
// what is pending at that moment), and PeerGroups and PeerPIDFD are not supported.
//
// The tests run on Linux and on gVisor. They were run by hand on FreeBSD 12.1 and NetBSD
// 10.99, in an emulator. macOS, OpenBSD, DragonFly and FreeBSD 15 are untested: what is
// said of them comes from their kernels' source.
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

// ConnectContext connects to the socket at path, a filesystem path or an abstract name as
// defined by [CheckPath].
//
// On Linux it waits while the listener's backlog is full, until ctx is done; then errors.Is
// finds ctx.Err() in the error. Goroutines that wait for the same path take turns, in the
// order in which they came. No kernel event reports room in a backlog, so the first of them
// tries again, about every 20 ms, and less often where system calls are slow or goroutines
// wait for many paths: all of them together use less than a fifth of one core. On other
// systems ConnectContext fails with ECONNREFUSED, as if no process were listening. Once
// connected, ctx has no effect on the Conn.
//
// Errors are *[net.OpError] with Op "dial". Among others, errors.Is finds [ErrInvalidPath],
// [io/fs.ErrNotExist], [io/fs.ErrPermission] and [syscall.ECONNREFUSED].
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
