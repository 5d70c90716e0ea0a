//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stress

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A model runs operations on a Listener, one after the other, and checks each result against
// its own state. The tests of internal/pending check the same rules in virtual time, with
// many more schedules. The model shows that they hold with a kernel's queue and poller.
type model struct {
	*testing.T
	*rand.Rand
	l       *unixsock.Listener
	pending []*link  // in the order of the connects
	links   []*link  // accepted and open
	events  []*event // whose context is not done

	kept  <-chan *unixsock.Listener // result of the first Ready; nil before
	exact bool                      // a poll of kept must show the state of the backlog
}

// A link is a connection. The client has sent its ID.
type link struct {
	id             string
	client, server *unixsock.Conn
	event          *event // that has delivered it, whose context is the custodian; nil: none
}

type event struct {
	context.Context
	cancel context.CancelFunc
	ch     <-chan unixsock.Accepted
}

// TestModel runs random operations of a model.
func TestModel(t *testing.T) {
	byChance(t, 40, func(t *testing.T, r *rand.Rand) {
		checkLeaks(t)
		m := &model{T: t, Rand: r, l: sockettest.Listen(t, unixsock.Backlog(32))}
		for range 150 {
			operations := []func(){
				m.connect, m.connect, m.connect, m.accept, m.accept, m.pollReady, m.pollReady, m.pollKept, m.pollKept,
				m.begin, m.receive, m.receive, m.endEvent, m.race, m.race, m.race,
			}
			operations[r.IntN(len(operations))]()
		}
		m.close()
	})
}

func (m *model) begin() {
	e := new(event)
	e.Context, e.cancel = context.WithCancel(context.Background())
	m.Cleanup(e.cancel)
	e.ch = m.l.AcceptEvt(e)
	if again := m.l.AcceptEvt(e); again != e.ch {
		m.Fatalf("second AcceptEvt with the same context: got channel %v, want %v", again, e.ch)
	}
	m.events = append(m.events, e)
}

// oneEvent returns a random event, or nil.
func (m *model) oneEvent() *event {
	if len(m.events) == 0 {
		return nil
	}
	return m.events[m.IntN(len(m.events))]
}

func (m *model) connect() {
	if len(m.pending) == 8 {
		return
	}
	k := &link{id: string(rune('!' + m.IntN(90))), client: sockettest.Connect(m, m.l.Addr().String())}
	k.client.Write([]byte(k.id)) // fails if a context has closed the connection already
	m.pending, m.exact = append(m.pending, k), false
}

// accepted records that c was accepted, which must be the connection that has been pending
// longest. e is the event that delivered it, nil if none did.
func (m *model) accepted(c *unixsock.Conn, err error, e *event) {
	m.Helper()
	sockettest.Check(m, err)
	m.Cleanup(func() { c.Close() })
	if len(m.pending) == 0 {
		m.Fatal("accept without a pending connection: got a connection")
	}
	k := m.pending[0]
	k.server, k.event = c, e
	m.pending, m.links = m.pending[1:], append(m.links, k)
	m.exact = e == nil
	if e == nil || e.Err() == nil { // else it is closed
		sockettest.Expect(m, c, k.id)
	}
}

// accept accepts the next connection. If none is pending, it checks that an accept waits.
func (m *model) accept() {
	if len(m.pending) > 0 && m.IntN(2) == 0 {
		m.accepted(sockettest.Accept(m, m.l), nil, nil)
		return
	}
	c, err := m.l.TryAccept()
	if len(m.pending) > 0 {
		m.accepted(c, err, nil)
		return
	}
	sockettest.ExpectError(m, "TryAccept without a pending connection", err, syscall.EAGAIN)
	ctx, cancel := context.WithTimeout(m.Context(), time.Millisecond)
	defer cancel()
	sockettest.CheckReturns(m, "the end of AcceptContext", func() { _, err = m.l.AcceptContext(ctx) })
	sockettest.ExpectError(m, "AcceptContext without a pending connection", err, context.DeadlineExceeded)
}

// pollReady checks that a poll of Ready() is exact, regardless of earlier operations.
func (m *model) pollReady() {
	for range 1 + m.IntN(3) {
		if ready := showsReady(m.l.Ready()); ready != (len(m.pending) > 0) {
			m.Fatalf("poll of Ready() with %d pending: got %t, want %t", len(m.pending), ready, !ready)
		}
	}
	m.kept, m.exact = m.l.Ready(), true
}

// pollKept checks that a poll of a channel that Ready returned before is exact. After a
// connect, or a receive from an event, it need not be until a goroutine has run.
func (m *model) pollKept() {
	if m.kept == nil {
		return
	}
	for range 1 + m.IntN(5) {
		pending := len(m.pending) > 0
		if m.exact && showsReady(m.kept) != pending {
			m.Fatalf("poll of a kept Ready channel with %d pending: got %t, want %t", len(m.pending), !pending, pending)
		} else if !m.exact && pending {
			sockettest.Receive(m, "readiness", m.kept)
		} else if !m.exact {
			sockettest.WaitFor(m, "a kept Ready channel is ready, and none is pending", func() bool { return !showsReady(m.kept) })
		}
	}
	m.exact = len(m.pending) == 0 // the next accept or tick fills the channel
}

// receive receives from an event if a connection is pending.
func (m *model) receive() {
	if e := m.oneEvent(); e != nil && len(m.pending) > 0 {
		a := sockettest.Receive(m, "an event with a pending connection", e.ch)
		m.accepted(a.Conn, a.Err, e)
	}
}

// race lets a goroutine wait in AcceptContext or for an event, while a client connects and
// in half of the cases the context ends. The goroutine gets the connection, or it is pending.
func (m *model) race() {
	if len(m.pending) > 0 {
		return
	}
	ctx, cancel := context.WithCancel(m.Context())
	defer cancel()
	wait := func() (*unixsock.Conn, error) { return m.l.AcceptContext(ctx) }
	e := m.oneEvent()
	if e != nil {
		cancel = e.cancel
		wait = func() (*unixsock.Conn, error) {
			a, ok := <-e.ch
			if !ok {
				return nil, e.Err()
			}
			return a.Conn, a.Err
		}
	}
	got := make(chan sockettest.Dialed, 1)
	go func() {
		c, err := wait()
		got <- sockettest.Dialed{Conn: c, Err: err}
	}()
	time.Sleep(time.Duration(max(0, m.IntN(600)-300)) * time.Microsecond) // the connect comes at a random point
	canceled := m.IntN(2) == 0
	if canceled {
		time.AfterFunc(time.Duration(m.IntN(100))*time.Microsecond, cancel)
	}
	if !canceled || m.IntN(3) > 0 {
		m.connect()
	}
	if canceled {
		cancel()
	}
	d := sockettest.Receive(m, "an accept or an event", got)
	if d.Err == nil || !canceled {
		m.accepted(d.Conn, d.Err, e)
	} else {
		sockettest.ExpectError(m, "accept, whose context has ended", d.Err, context.Canceled)
	}
	if canceled && e != nil {
		m.ended(e)
	}
}

// endEvent ends the context of an event, which closes the channel and the connections that the
// event has delivered.
func (m *model) endEvent() {
	if e := m.oneEvent(); e != nil {
		e.cancel()
		m.ended(e)
	}
}

func (m *model) ended(e *event) {
	m.events = slices.DeleteFunc(m.events, func(other *event) bool { return other == e })
	if a, ok := sockettest.ReceiveOK(m, "the end of an event", e.ch); ok { // it raced with the cancel
		m.accepted(a.Conn, a.Err, e)
	}
	m.links = slices.DeleteFunc(m.links, func(k *link) bool {
		if k.event == e {
			m.disconnected(k)
			sockettest.WaitFor(m, "a connection is open after the end of its custodian", func() bool { return errors.Is(k.server.SetDeadline(time.Time{}), net.ErrClosed) })
		}
		return k.event == e
	})
}

func (m *model) disconnected(k *link) {
	sockettest.Check(m, k.client.SetReadDeadline(time.Now().Add(sockettest.Timeout)))
	if _, err := k.client.Read(make([]byte, 1)); err != io.EOF && !isGone(err) {
		m.Fatalf("Read of a client that is disconnected: got %v, want EOF or ECONNRESET", err)
	}
}

// close closes the listener. Its channels are closed, pending clients are disconnected, and
// accepted connections stay open.
func (m *model) close() {
	sockettest.Check(m, m.l.Close())
	if _, ok := sockettest.ReceiveOK(m, "the end of Ready", m.l.Ready()); ok {
		m.Fatal("receive from Ready() of a closed listener: got the listener, want a closed channel")
	}
	_, err := m.l.Accept()
	sockettest.ExpectError(m, "Accept of a closed listener", err, net.ErrClosed)
	for _, k := range m.pending {
		m.disconnected(k)
	}
	m.pending = nil
	for _, k := range m.links {
		sockettest.Send(m, k.client, "?")
		sockettest.Expect(m, k.server, "?")
	}
	for len(m.events) > 0 {
		m.endEvent()
	}
}
