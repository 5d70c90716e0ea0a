package unixsock

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/pending"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// An Accepted is what a receive from the channel of [Listener.AcceptEvt] yields: a
// connection, or the error of accept(2).
type Accepted struct {
	Conn *Conn
	Err  error
}

// Ready returns a channel from which a receive succeeds while a connection is pending. Each
// receive yields l, and every call returns the same channel. A receive accepts nothing:
// another goroutine or process may take the connection first, so use [Listener.TryAccept].
// The channel mirrors Racket's listener as a synchronizable event.
//
// Call Ready in the select itself. Each call checks the kernel's queue, so a select with a
// default case is exact. With a channel kept in a variable, a blocking receive misses no
// connection, but a select with a default case may.
//
// The channel is empty when the accept that took the last connection returns, or within 50
// ms if another process or a receive from [Listener.AcceptEvt] took it. It is closed when
// the listener is, so a loop must check the second value of the receive. The first call
// starts a goroutine, which ends with Close.
func (l *Listener) Ready() <-chan *Listener {
	if !l.ok() {
		return closedReady
	}
	return l.queue.Ready()
}

// AcceptEvt returns a channel of accepted connections. Each connection goes to one receiver,
// which must close it. The same ctx gives the same channel, so a loop can call AcceptEvt in
// each select. ctx is the custodian of the connections, as if by [Conn.CloseOn]: when it is
// done, the channel is closed, and so are the connections that it has delivered. To stop a
// loop and let its connections finish, call [Listener.Drain] and receive until the channel is
// closed. Closing the listener closes the channel only. AcceptEvt mirrors
// unix-socket-accept-evt, whose connections belong to Racket's current custodian.
//
// An error of accept(2), such as EMFILE, is delivered as an Accepted with Err, one per
// receive, and the channel stays open. A receive succeeds only once a goroutine offers a
// connection, so a select with a default case uses [Listener.Ready] and [Listener.TryAccept]
// instead. The channel may be kept in a variable: a select over several listeners must set
// the one that is closed to nil.
//
// To offer a connection, the listener accepts one ahead. If no goroutine receives it, the
// next Accept, TryAccept or receive from any of the channels gets it, even after ctx is
// done. Another process, or another Listener of the same socket, cannot get it: a process
// that shares its socket should use Ready. Close disconnects it, and [Listener.Drain]
// delivers it.
func (l *Listener) AcceptEvt(ctx context.Context) <-chan Accepted {
	if !l.ok() {
		return closedEvt
	}
	return l.queue.Event(ctx)
}

var closedReady, closedEvt = make(chan *Listener), make(chan Accepted)

func init() {
	close(closedReady)
	close(closedEvt)
}

// delivered makes the context of an event the custodian of a connection that it has
// delivered, unless the receiver has called CloseOn.
func delivered(a Accepted, event *pending.Custody) { a.Conn.closeOn(event) }

// source is a Listener as the [pending.Source] of its queue.
type source Listener

func (s *source) Accept() (Accepted, error) {
	fd, peer, err := sys.Accept(s.fd)
	switch err {
	case nil:
		c := newConn(fd, s.addr, peer)
		c.custodian = undelivered
		return Accepted{Conn: c}, nil
	case sys.ErrWouldBlock:
		return Accepted{}, pending.ErrNone
	}
	// A process may have set the shared socket to blocking mode. Then Linux does not return
	// EAGAIN if it is shut down.
	if errors.Is(err, syscall.EINVAL) && s.State() == pending.ShutDown {
		return Accepted{}, pending.ErrNone
	}
	return Accepted{Err: (*Listener)(s).opError("accept", err)}, err
}

func (s *source) State() pending.State {
	switch readable, shutDown := sys.Poll(s.fd); {
	case shutDown:
		return pending.ShutDown
	case readable:
		return pending.Readable
	}
	return pending.Empty
}

func (s *source) Wait(arrived func() bool) error {
	s.arrived = arrived
	for {
		err := s.raw.Read(s.onReadable)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return netfd.MapRawErr(err)
		}
		s.file.SetReadDeadline(time.Time{}) // the interrupt has had its effect
	}
}

// Interrupt sets the file's deadline, which has no other purpose.
func (s *source) Interrupt() { s.file.SetReadDeadline(netfd.ALongTimeAgo) }
