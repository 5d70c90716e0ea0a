// Package unixsock is unix domain sockets.
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
// full, until ctx is done; the error then is ctx.Err(). On Linux, that is: on
// macOS and the BSDs a full backlog is ECONNREFUSED, no different from nobody
// listening. Once connected, ctx has no hold on the Conn.
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
	c, err := newConn(fd, "", name)
	if err != nil {
		return nil, dialError(name, err)
	}
	announce(name)
	return c, nil
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
