// Package unixsock provides Unix domain stream sockets. It mirrors Racket's
// racket/unix-socket and adds what package net lacks: a listener whose readiness is a
// channel, paths and abstract names of full length, connection halves that close
// independently, and a Connect that waits while the server's backlog is full.
//
// README.md and the package's example show a server that waits for clients, a ticker and a
// context in one select, and serves the pending clients before it stops.
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
//	unix-socket-accept          Listener.Accept, Listener.AcceptContext
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
// [Listener.Accept] and [FileListener].
package unixsock

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

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
// errors.Is finds ctx.Err() in the error. No kernel event reports room in a backlog,
// so ConnectContext tries again at intervals of up to 30 ms, longer where system calls
// are slow or goroutines wait for many paths. Goroutines that wait for the same path
// take turns, and all waiting goroutines of a process together use only a small share
// of one core. Once connected, ctx has no effect on the Conn. On macOS and the BSDs a
// full backlog is reported as ECONNREFUSED, as if no process were listening.
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
	fd, err := sys.Socket()
	if err != nil {
		return nil, pathError("dial", name, err)
	}
	if err = sys.Connect(fd, name); err == sys.ErrWouldBlock {
		err = waitForBacklog(ctx, fd, name)
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

const (
	minRetry = 100 * time.Microsecond
	maxRetry = 20 * time.Millisecond

	// With n names, an interval is at least n*retryShare times as long as an attempt, as
	// measured in this process, so all attempts use 1 % of a core. The timers and wakeups
	// around them use several times as much where system calls are slow, about ten times
	// on gVisor.
	retryShare = 100
)

// waitForBacklog connects fd to name, whose backlog was full.
func waitForBacklog(ctx context.Context, fd int, name string) error {
	q := waiting.add(name, 1)
	defer waiting.add(name, -1)
	select {
	case q.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-q.turn }()
	for pause := minRetry; ; pause = min(2*pause, maxRetry) {
		start := time.Now()
		if err := sys.Connect(fd, name); err != sys.ErrWouldBlock {
			return err
		}
		d := max(pause, waiting.interval(time.Since(start)))
		select {
		case <-time.After(d/2 + rand.N(d)): // so that processes do not retry in lockstep
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// waiting holds a queue for each name that a goroutine waits to connect to.
var waiting = queues{byName: make(map[string]*queue), cost: time.Hour}

type queues struct {
	mu     sync.Mutex
	byName map[string]*queue
	cost   time.Duration // of an attempt, as measured; at first longer than any
}

// A queue represents the goroutines that wait to connect to one name. One of them tries at
// a time: the others would find the same full backlog.
type queue struct {
	turn    chan struct{} // holds a token while one of them retries
	members int           // guarded by queues.mu
}

// add adds n members to the queue for name, which exists while it has members.
func (qs *queues) add(name string, n int) *queue {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.byName[name]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		qs.byName[name] = q
	}
	q.members += n
	if q.members == 0 {
		delete(qs.byName, name)
	}
	return q
}

// interval returns the minimum time between two attempts for one name, given how long
// the last attempt took. The measured cost falls at once, but at most doubles with each
// attempt: the goroutine may have been preempted during the last one.
func (qs *queues) interval(took time.Duration) time.Duration {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	qs.cost = max(1, min(took, 2*qs.cost)) // 0 would not double
	return time.Duration(len(qs.byName)) * retryShare * qs.cost
}
