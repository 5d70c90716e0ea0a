//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stress

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// modelSteps is the number of operations in one run of the model.
const modelSteps = 150

const (
	// maxPending is the maximum number of pending clients.
	maxPending = 8

	// modelBacklog leaves room for maxPending clients, so that a connect in the model
	// never waits.
	modelBacklog = 32

	// maxClients is the number of IDs.
	maxClients = 256
)

// A model runs operations on a Listener, one after the other, and checks each result
// against its own state: which clients are pending, in the order of their connects;
// which events and custodians are alive; and for each connection, which halves are
// closed, which bytes are unread, and which context is the custodian.
//
// Each client sends its ID, one byte, as soon as it has connected. The goroutine that
// accepts the connection reads the ID and checks that the client is the next one.
type model struct {
	t    *testing.T
	r    *rand.Rand
	l    *unixsock.Listener
	path string
	log  []string // names of all operations, for the message of a failure

	clients int                // the number of IDs in use
	dialed  map[byte]*modelEnd // by ID, until accepted
	pending []byte             // IDs, in the order of the connects
	pairs   []*modelPair

	events     []*modelEvent     // events whose context is not done
	custodians []*modelCustodian // custodians that are not done, except those of events
	unlink     bool              // Close removes the socket file

	reportsClosedInput bool // sockettest.ReportsClosedInput

	kept <-chan *unixsock.Listener // result of the first Ready; nil before

	// exact reports whether a poll of kept must show the state of the backlog. After a
	// connect, or a receive from an event, it need not show it until a goroutine of the
	// listener has run.
	exact bool

	late int // deliveries by events whose context was done

	// ahead reports whether the listener may have accepted a connection ahead, so that
	// no other Listener can accept it.
	ahead bool
}

// A modelCustodian is a context that closes connections.
type modelCustodian struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func (m *model) newCustodian() *modelCustodian {
	k := new(modelCustodian)
	k.ctx, k.cancel = context.WithCancel(m.t.Context())
	return k
}

// A modelEvent is a custodian, and the channel that AcceptEvt returned for its context.
type modelEvent struct {
	*modelCustodian
	ch <-chan unixsock.Accepted
}

// A modelPair is both ends of a connection.
type modelPair struct{ ends [2]*modelEnd }

// A modelEnd is one end of a connection.
type modelEnd struct {
	conn      net.Conn
	ours      *unixsock.Conn  // conn, or nil if conn is a connection of package net
	unread    []byte          // bytes that the peer wrote and this end has not read
	closed    sockettest.Half // halves that are closed
	custodian *modelCustodian // nil: none
}

// TestModel runs random operations of a model. The comment of each operation states what
// the operation checks.
func TestModel(t *testing.T) {
	byChance(t, 100, func(t *testing.T, r *rand.Rand) {
		goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
		m := &model{t: t, r: r, l: sockettest.Listen(t, unixsock.Backlog(modelBacklog)), dialed: make(map[byte]*modelEnd)}
		m.path = m.l.Addr().String()
		m.reportsClosedInput = sockettest.ReportsClosedInput(t)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("last steps: %q", m.log[max(0, len(m.log)-12):])
			}
		})
		for range modelSteps {
			m.step()
		}
		m.runOperation("close", m.closeListener)
		m.finish()
		sockettest.WaitGoroutines(t, goroutines)
		sockettest.WaitDescriptors(t, descriptors)
	})
}

// step runs a random operation.
func (m *model) step() {
	type operation struct {
		weight int
		name   string
		run    func()
	}
	operations := []operation{
		{20, "connect", m.connect},
		{12, "accept", m.accept},
		{12, "poll Ready", m.pollReady},
		{12, "poll a kept Ready", m.pollKept},
		{10, "receive from an event", m.receiveEvent},
		{6, "poll an event", m.pollEvent},
		{6, "new event", m.newEvent},
		{4, "cancel an event", m.cancelEvent},
		{3, "cancel an event during a connect", m.cancelWhileConnecting},
		{3, "connect while an accept waits", m.acceptWaits},
		{3, "connect while a receiver waits", m.receiverWaits},
		{3, "cancel an accept", m.cancelAccept},
		{2, "let the deadline expire", m.expireDeadline},
		{3, "accept with another Listener", m.acceptElsewhere},
		{2, "CloseOn of the listener", m.replaceListenerCustodian},
		{2, "SetUnlinkOnClose", m.setUnlinkOnClose},
		{6, "CloseOn of a connection", m.replaceCustodian},
		{2, "end a custodian", m.endCustodian},
		{30, "use a connection", m.usePair},
	}
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := m.r.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			m.runOperation(o.name, o.run)
			return
		}
	}
}

// runOperation runs one operation and logs its name.
func (m *model) runOperation(name string, run func()) {
	m.log = append(m.log, name)
	run()
}

func (m *model) chance(percent int) bool { return m.r.IntN(100) < percent }

// oneOf returns a random element of s, or nil if s is empty.
func oneOf[T any](r *rand.Rand, s []*T) *T {
	if len(s) == 0 {
		return nil
	}
	return s[r.IntN(len(s))]
}

// idle reports whether no client is pending and another client may connect.
func (m *model) idle() bool { return len(m.pending) == 0 && m.clients < maxClients }

// connect connects another client, with Connect or with package net.
func (m *model) connect() {
	if len(m.pending) >= maxPending || m.clients >= maxClients {
		return
	}
	id := m.newID()
	m.exact = false
	if m.chance(30) {
		c, err := net.Dial("unix", m.path)
		if err != nil {
			m.t.Fatalf("net.Dial of client %d: got %v, want a connection", id, err)
		}
		m.connected(id, c)
		return
	}
	c, err := sockettest.Dial(m.t, m.path)
	if err != nil {
		m.t.Fatalf("Connect of client %d: got %v, want a connection", id, err)
	}
	m.connected(id, c)
}

func (m *model) newID() byte {
	m.clients++
	return byte(m.clients - 1)
}

// connected sends the ID of a client that has connected with c, and records that the
// client is pending.
func (m *model) connected(id byte, c net.Conn) {
	m.t.Helper()
	m.t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte{id}); err != nil {
		m.t.Fatalf("Write of the ID of client %d: got %v, want no error", id, err)
	}
	ours, _ := c.(*unixsock.Conn)
	m.dialed[id] = &modelEnd{conn: c, ours: ours}
	m.pending = append(m.pending, id)
	if len(m.events) > 0 {
		m.ahead = true
	}
}

// accepted records the result of an accept. It checks that the client is the one that has
// been pending longest.
func (m *model) accepted(c *unixsock.Conn, err error) *modelPair {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("accept with clients %v pending: got %v, want a connection", m.pending, err)
	}
	m.t.Cleanup(func() { c.Close() })
	id := make([]byte, 1)
	c.SetReadDeadline(time.Now().Add(sockettest.Timeout))
	if _, err := io.ReadFull(c, id); err != nil {
		m.t.Fatalf("ReadFull of the client's ID: got %v, want no error", err)
	}
	c.SetReadDeadline(time.Time{})
	if len(m.pending) == 0 || m.pending[0] != id[0] {
		m.t.Fatalf("accept with clients %v pending: got client %d, want the first", m.pending, id[0])
	}
	m.pending = m.pending[1:]
	if len(m.pending) == 0 {
		m.ahead = false
	} else if len(m.events) > 0 {
		m.ahead = true
	}
	p := m.pair(m.dialed[id[0]], c)
	delete(m.dialed, id[0])
	return p
}

// pair records a connection between a client and c.
func (m *model) pair(client *modelEnd, c *unixsock.Conn) *modelPair {
	p := &modelPair{[2]*modelEnd{client, {conn: c, ours: c}}}
	m.pairs = append(m.pairs, p)
	return p
}

// accept accepts the next client, which must succeed. If no client is pending, it checks
// that an accept waits.
func (m *model) accept() {
	if len(m.pending) > 0 {
		switch m.r.IntN(3) {
		case 0:
			m.accepted(acceptors[0](m.t.Context(), m.l))
		case 1:
			m.accepted(m.l.AcceptContext(m.t.Context()))
		case 2:
			m.accepted(m.l.TryAccept())
		}
		m.exact = m.kept != nil
		return
	}
	if _, err := m.l.TryAccept(); !errors.Is(err, syscall.EAGAIN) {
		m.t.Fatalf("TryAccept without a pending client: got %v, want EAGAIN", err)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		m.t.Fatalf("AcceptContext without a pending client: got %v, want DeadlineExceeded", err)
	}
}

// pollReady calls Ready and polls its channel. It checks that the result is exact,
// regardless of earlier operations, and that the channel is always the same one.
func (m *model) pollReady() {
	for range 1 + m.r.IntN(3) {
		var ready bool
		select {
		case got, ok := <-m.l.Ready():
			if got != m.l || !ok {
				m.t.Fatalf("receive from Ready(): got %p, %t; want the listener %p, true", got, ok, m.l)
			}
			ready = true
		default:
		}
		if ready != (len(m.pending) > 0) {
			m.t.Fatalf("poll of Ready() with clients %v pending: got %t, want %t", m.pending, ready, !ready)
		}
	}
	if ch := m.l.Ready(); m.kept == nil {
		m.kept = ch
	} else if ch != m.kept {
		m.t.Fatalf("second call of Ready: got channel %v, want %v", ch, m.kept)
	}
	m.exact = true
}

// pollKept polls the channel that a Ready returned before. It checks that the result is
// exact, or becomes exact if m.exact is false.
func (m *model) pollKept() {
	if m.kept == nil {
		return
	}
	if !m.exact {
		if len(m.pending) > 0 {
			if got := sockettest.Receive(m.t, "readiness", m.kept); got != m.l {
				m.t.Fatalf("receive from a kept Ready channel: got %p, want the listener %p", got, m.l)
			}
		} else {
			sockettest.WaitFor(m.t, "a kept Ready channel without a pending client is still ready", func() bool { return !showsReady(m.kept) })
		}
		return
	}
	for i := range 1 + m.r.IntN(5) {
		if ready := showsReady(m.kept); ready != (len(m.pending) > 0) {
			m.t.Fatalf("poll %d of a kept Ready channel with clients %v pending: got %t, want %t", i+1, m.pending, ready, !ready)
		}
	}
	// A receive empties the channel. The next accept or tick fills it.
	m.exact = len(m.pending) == 0
}

// showsReady polls a Ready channel and reports whether it was ready.
func showsReady(ready <-chan *unixsock.Listener) bool {
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// newEvent calls AcceptEvt with a new context. It checks that AcceptEvt returns the same
// channel for the same context, and for a derived context with the same Done channel.
func (m *model) newEvent() {
	if len(m.events) >= 4 {
		return
	}
	e := &modelEvent{modelCustodian: m.newCustodian()}
	e.ch = m.l.AcceptEvt(e.ctx)
	type key struct{}
	if m.l.AcceptEvt(e.ctx) != e.ch || m.l.AcceptEvt(context.WithValue(e.ctx, key{}, 1)) != e.ch {
		m.t.Fatal("second call of AcceptEvt with the same context: got another channel, want the same one")
	}
	m.events = append(m.events, e)
	m.ahead = m.ahead || len(m.pending) > 0
}

// delivered records a receive from the channel of e.
func (m *model) delivered(e *modelEvent, a unixsock.Accepted, ok bool) {
	m.t.Helper()
	if !ok {
		m.t.Fatal("receive from an event whose context is not done: got a closed channel, want a connection")
	}
	m.accepted(a.Conn, a.Err).ends[1].custodian = e.modelCustodian
	m.exact = false
}

// receiveEvent receives from an event if a client is pending.
func (m *model) receiveEvent() {
	e := oneOf(m.r, m.events)
	if e == nil || len(m.pending) == 0 {
		return
	}
	a, ok := sockettest.ReceiveOK(m.t, "an event with a pending client", e.ch)
	m.delivered(e, a, ok)
}

// pollEvent polls an event. A poll need not find a pending client. If it finds one, it must
// be the next one.
func (m *model) pollEvent() {
	e := oneOf(m.r, m.events)
	if e == nil {
		return
	}
	select {
	case a, ok := <-e.ch:
		m.delivered(e, a, ok)
	default:
	}
}

// cancelEvent ends the context of an event. It checks that the listener closes the channel
// and the connections that the event delivered, and that no pending client is lost.
func (m *model) cancelEvent() {
	e := oneOf(m.r, m.events)
	if e == nil {
		return
	}
	e.cancel()
	a, ok := <-e.ch
	if ok {
		// The receive raced with the cancel, which is rare. The context closes the
		// connection at once, so the client's ID cannot be read.
		if m.late++; a.Err != nil || len(m.pending) == 0 || m.late > 2 {
			m.t.Fatalf("receive from an event whose context is done, with clients %v pending: got %v, the late delivery number %d; want a closed channel",
				m.pending, a, m.late)
		}
		m.lost(e, m.dialed[m.pending[0]], a.Conn)
		delete(m.dialed, m.pending[0])
		m.pending = m.pending[1:]
		if a, ok := <-e.ch; ok {
			m.t.Fatalf("second receive from an event whose context is done: got %v, want a closed channel", a)
		}
	}
	m.eventEnded(e)
}

// lost records that e delivered a connection that its context closes at once.
func (m *model) lost(e *modelEvent, client *modelEnd, c *unixsock.Conn) {
	m.pair(client, c).ends[1].custodian = e.modelCustodian
}

// eventEnded records that the context of e is done.
func (m *model) eventEnded(e *modelEvent) {
	m.t.Helper()
	m.events = slices.DeleteFunc(m.events, func(other *modelEvent) bool { return other == e })
	m.custodianEnded(e.modelCustodian)
	if m.chance(30) {
		if a, ok := <-m.l.AcceptEvt(e.ctx); ok {
			m.t.Fatalf("AcceptEvt of a context that is done: got %v, want a closed channel", a)
		}
	}
}

// custodianEnded records that the context of k is done. It checks that the connections
// whose custodian it is are closed.
func (m *model) custodianEnded(k *modelCustodian) {
	m.t.Helper()
	for _, p := range m.pairs {
		for i, e := range p.ends {
			if e.custodian != k {
				continue
			}
			sockettest.WaitFor(m.t, "a connection is open after the end of its custodian", func() bool {
				// A connection whose halves were shut down before looks hung up, too.
				return sockettest.IsClosed(m.t, e.ours) && hungUp(m.t, p.ends[1-i].conn)
			})
			m.closedEnd(p, i, sockettest.BothHalves)
			e.custodian = nil
		}
	}
}

// replaceCustodian calls CloseOn of a connection with one of these contexts: a new one, one
// that is the custodian of other connections or of an event, the background context, which
// releases the connection, or one that is done, which closes the connection.
func (m *model) replaceCustodian() {
	p := oneOf(m.r, m.pairs)
	if p == nil {
		return
	}
	i := m.r.IntN(2)
	e := p.ends[i]
	if e.ours == nil {
		return
	}
	var k *modelCustodian
	switch n := m.r.IntN(100); {
	case n < 30:
		k = m.newCustodian()
		m.custodians = append(m.custodians, k)
	case n < 50:
		k = oneOf(m.r, m.custodians)
	case n < 60:
		if evt := oneOf(m.r, m.events); evt != nil {
			k = evt.modelCustodian
		}
	case n < 65:
		k = m.newCustodian()
		k.cancel()
	}
	if k == nil {
		e.ours.CloseOn(context.Background())
	} else {
		e.ours.CloseOn(k.ctx)
	}
	if e.closed == sockettest.BothHalves {
		return // a closed connection has no custodian
	}
	if e.custodian = k; k != nil && k.ctx.Err() != nil {
		m.custodianEnded(k)
	}
}

// endCustodian ends a context. It checks that the connections whose custodian it is are
// closed. Connections that have another custodian by now, or none, stay open: finish
// checks that.
func (m *model) endCustodian() {
	k := oneOf(m.r, m.custodians)
	if k == nil {
		return
	}
	m.custodians = slices.DeleteFunc(m.custodians, func(other *modelCustodian) bool { return other == k })
	k.cancel()
	m.custodianEnded(k)
}

// replaceListenerCustodian calls CloseOn of the listener twice, and ends the first context.
// The end of a replaced context does not close the listener: later operations check that.
func (m *model) replaceListenerCustodian() {
	k := m.newCustodian()
	m.l.CloseOn(k.ctx)
	if m.chance(50) {
		m.l.CloseOn(context.Background())
	} else {
		other := m.newCustodian()
		m.t.Cleanup(other.cancel)
		m.l.CloseOn(other.ctx)
	}
	k.cancel()
}

// setUnlinkOnClose calls SetUnlinkOnClose. closeListener checks that the last call applies.
func (m *model) setUnlinkOnClose() {
	m.unlink = m.chance(50)
	m.l.SetUnlinkOnClose(m.unlink)
}

// hungUp reports whether the other end of c is closed. It returns true if c itself is
// closed.
func hungUp(t testing.TB, c net.Conn) (yes bool) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, 0)
		_, peerErr := unix.Getpeername(int(fd)) // NetBSD has no POLLHUP for a socket, and no such peer
		yes = err == nil && fds[0].Revents&unix.POLLHUP != 0 || peerErr == unix.ENOTCONN
	})
	return yes || err != nil
}

// cancelWhileConnecting ends the context of an event that has a waiting receiver, while a
// client connects. It checks that the event delivers the client, or the client is pending.
func (m *model) cancelWhileConnecting() {
	e := oneOf(m.r, m.events)
	if e == nil || !m.idle() {
		return
	}
	type result struct {
		a  unixsock.Accepted
		ok bool
	}
	results := make(chan result, 1)
	go func() {
		a, ok := <-e.ch
		results <- result{a, ok}
	}()
	if m.chance(50) {
		runtime.Gosched()
	}
	id := m.newID()
	clients := make(chan sockettest.Dialed, 1)
	go func() {
		c, err := sockettest.Dial(m.t, m.path)
		clients <- sockettest.Dialed{Conn: c, Err: err}
	}()
	for range m.r.IntN(2000) { // a short random delay
		runtime.KeepAlive(e)
	}
	e.cancel()
	client := sockettest.Receive(m.t, "a Connect", clients)
	if client.Err != nil {
		m.t.Fatalf("Connect of client %d: got %v, want a connection", id, client.Err)
	}
	m.exact = false
	if got := sockettest.Receive(m.t, "the end of an event", results); got.ok {
		if got.a.Err != nil {
			m.t.Fatalf("receive from an event whose context ends: got %v, want a connection or a closed channel", got.a.Err)
		}
		m.lost(e, &modelEnd{conn: client.Conn, ours: client.Conn}, got.a.Conn)
	} else {
		m.connected(id, client.Conn)
		m.ahead = true
	}
	m.eventEnded(e)
}

// acceptWaits connects while a goroutine waits in AcceptContext, or is about to.
func (m *model) acceptWaits() {
	if !m.idle() {
		return
	}
	results := make(chan sockettest.Dialed, 1)
	go func() {
		c, err := m.l.AcceptContext(m.t.Context())
		results <- sockettest.Dialed{Conn: c, Err: err}
	}()
	if m.chance(50) {
		// The connect comes at a random point of the accept.
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Microsecond)
	}
	m.connect()
	got := sockettest.Receive(m.t, "the accept of the new client", results)
	m.accepted(got.Conn, got.Err)
	m.exact = m.kept != nil
}

// receiverWaits connects while a goroutine waits for an event, or is about to.
func (m *model) receiverWaits() {
	e := oneOf(m.r, m.events)
	if e == nil || !m.idle() {
		return
	}
	results := make(chan unixsock.Accepted, 1)
	go func() { results <- <-e.ch }()
	if m.chance(50) {
		// The connect comes at a random point of the receive.
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Microsecond)
	}
	m.connect()
	m.delivered(e, sockettest.Receive(m.t, "the event for the new client", results), true)
}

// cancelAccept ends the context of an accept, in half of the cases while a client connects.
func (m *model) cancelAccept() {
	if len(m.pending) > 0 {
		return
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	defer cancel()
	results := make(chan sockettest.Dialed, 1)
	go func() {
		c, err := m.l.AcceptContext(ctx)
		results <- sockettest.Dialed{Conn: c, Err: err}
	}()
	if m.chance(50) {
		time.AfterFunc(time.Duration(m.r.IntN(100))*time.Microsecond, cancel)
		m.connect()
	}
	cancel()
	got := sockettest.Receive(m.t, "a canceled AcceptContext", results)
	switch {
	case got.Err == nil:
		m.accepted(got.Conn, nil)
		m.exact = m.kept != nil
	case !errors.Is(got.Err, context.Canceled):
		m.t.Fatalf("AcceptContext with a canceled context: got %v, want Canceled or a connection", got.Err)
	}
}

// expireDeadline lets a deadline of the listener expire. It checks that the deadline ends
// accepts and affects nothing else.
func (m *model) expireDeadline() {
	set := func(at time.Time) {
		if err := m.l.SetDeadline(at); err != nil {
			m.t.Fatalf("SetDeadline: %v", err)
		}
	}
	if len(m.pending) == 0 && m.chance(50) {
		set(time.Now().Add(time.Duration(m.r.IntN(1000)) * time.Microsecond))
	} else {
		set(time.Now().Add(-time.Second))
		m.pollReady()
		m.receiveEvent()
	}
	if c, err := m.l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Fatalf("Accept past the deadline: got %v, %v; want ErrDeadlineExceeded", c, err)
	}
	set(time.Time{})
	m.accept()
}

// acceptElsewhere accepts with another Listener of the same socket, as another process
// does. That Listener can accept only connections in the backlog. A connection that the
// first Listener has accepted ahead is no longer there. Close of the other Listener leaves
// the socket file.
func (m *model) acceptElsewhere() {
	if len(m.pending) == 0 || m.ahead || len(m.events) > 0 {
		return
	}
	f, err := m.l.File()
	if err != nil {
		m.t.Fatalf("File of the listener: %v", err)
	}
	defer f.Close()
	other, err := unixsock.FileListener(f)
	if err != nil {
		m.t.Fatalf("FileListener: %v", err)
	}
	defer other.Close()
	m.accepted(other.AcceptContext(m.t.Context()))
	m.exact = false
}

// usePair writes to a random connection, reads from it, or closes halves of it.
func (m *model) usePair() {
	p := oneOf(m.r, m.pairs)
	if p == nil {
		return
	}
	i := m.r.IntN(2)
	switch n := m.r.IntN(100); {
	case n < 40:
		m.write(p, i)
	case n < 80:
		m.read(p, i)
	default:
		m.closeSome(p, i)
	}
}

// write writes at end i. It checks that the Write succeeds, or that its error is that of
// the half that was closed before. read checks that the peer receives the bytes.
func (m *model) write(p *modelPair, i int) {
	from, to := p.ends[i], p.ends[1-i]
	if len(to.unread) > 4096 {
		return
	}
	b := make([]byte, 1+m.r.IntN(300))
	for j := range b {
		b[j] = byte(m.r.Uint32())
	}
	n, err := from.conn.Write(b)
	switch {
	case from.closed&sockettest.WriteHalf != 0:
		if n != 0 || !errors.Is(err, net.ErrClosed) {
			m.t.Fatalf("Write to a closed half: got %d, %v; want 0, ErrClosed", n, err)
		}
	case to.closed == sockettest.ReadHalf && !m.reportsClosedInput:
		// The kernel discards the bytes and need not report an error.
	case to.closed&sockettest.ReadHalf != 0:
		if n != 0 || !isGone(err) {
			m.t.Fatalf("Write to a peer that closed its input: got %d, %v; want 0, EPIPE or ECONNRESET", n, err)
		}
	case n != len(b) || err != nil:
		m.t.Fatalf("Write of %d bytes: got %d, %v; want %d, nil", len(b), n, err, len(b))
	default:
		to.unread = append(to.unread, b...)
	}
}

// isGone reports whether err is the error of a write to a closed peer.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.ENOTCONN) // of FreeBSD, if the peer closes just now
}

// read reads at end i. It checks that the Read returns the bytes that the peer wrote, or
// EOF, or that it waits.
func (m *model) read(p *modelPair, i int) {
	to, from := p.ends[i], p.ends[1-i]
	b := make([]byte, 1+m.r.IntN(300))
	switch {
	case to.closed&sockettest.ReadHalf != 0:
		if n, err := to.conn.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
			m.t.Fatalf("Read from a closed half: got %d, %v; want 0, ErrClosed", n, err)
		}
	case len(to.unread) > 0:
		b = b[:min(len(b), len(to.unread))]
		if n, err := io.ReadFull(to.conn, b); err != nil || !bytes.Equal(b, to.unread[:n]) {
			m.t.Fatalf("ReadFull of %d bytes: got %d, equal to those written: %t, %v; want %d, true, nil",
				len(b), n, bytes.Equal(b[:n], to.unread[:n]), err, len(b))
		}
		to.unread = to.unread[len(b):]
	case from.closed&sockettest.WriteHalf != 0:
		if n, err := to.conn.Read(b); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			m.t.Fatalf("Read after the peer closed its output: got %d, %v; want 0, EOF or ECONNRESET", n, err)
		}
	default:
		to.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := to.conn.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			m.t.Fatalf("Read without data: got %d, %v; want 0, ErrDeadlineExceeded", n, err)
		}
		to.conn.SetReadDeadline(time.Time{})
	}
}

// closeSome closes one half of end i, or both.
func (m *model) closeSome(p *modelPair, i int) {
	e := p.ends[i]
	if e.ours == nil {
		// The model expects the errors that package unixsock returns for a closed half.
		// It therefore closes both halves of a connection of package net, once.
		if e.closed == 0 {
			e.conn.Close()
			m.closedEnd(p, i, sockettest.BothHalves)
		}
		return
	}
	in, out := e.ours.Ports()
	closers := []struct {
		what  sockettest.Half
		close func() error
	}{
		{sockettest.ReadHalf, e.ours.CloseRead},
		{sockettest.ReadHalf, in.Close},
		{sockettest.WriteHalf, e.ours.CloseWrite},
		{sockettest.WriteHalf, out.Close},
		{sockettest.BothHalves, e.ours.Close},
	}
	c := closers[m.r.IntN(len(closers))]
	if err := c.close(); err != nil {
		m.t.Fatalf("close of half %v, with half %v closed before: got %v, want no error", c.what, e.closed, err)
	}
	m.closedEnd(p, i, c.what)
}

// closedEnd records that halves of end i of p are closed.
func (m *model) closedEnd(p *modelPair, i int, what sockettest.Half) {
	e := p.ends[i]
	e.closed |= what
	if what&sockettest.ReadHalf != 0 {
		e.unread = nil
	}
}

// closeListener closes the listener, by Close or by the end of its custodian. It checks
// that the listener's channels are closed, that Accept fails, that pending clients are
// disconnected, and that the socket file is removed only if SetUnlinkOnClose requested it.
// Accepted connections stay open: finish checks that.
func (m *model) closeListener() {
	if m.chance(50) {
		k := m.newCustodian()
		m.l.CloseOn(k.ctx)
		k.cancel()
		sockettest.WaitClosing(m.t, m.l)
	}
	if err := m.l.Close(); err != nil {
		m.t.Fatalf("Close of the listener: got %v, want no error", err)
	}
	if exists := sockettest.IsSocketFile(m.path); exists == m.unlink {
		m.t.Fatalf("Close with UnlinkOnClose %t: got a socket file %t, want %t", m.unlink, exists, !m.unlink)
	}
	for range 3 {
		if m.kept != nil {
			if _, ok := <-m.kept; ok {
				m.t.Fatal("receive from the kept Ready channel of a closed listener: got the listener, want a closed channel")
			}
		}
		if _, ok := <-m.l.Ready(); ok {
			m.t.Fatal("receive from Ready() of a closed listener: got the listener, want a closed channel")
		}
		for _, e := range m.events {
			if a, ok := <-e.ch; ok {
				m.t.Fatalf("receive from an event of a closed listener: got %v, want a closed channel", a)
			}
		}
	}
	if _, err := m.l.Accept(); !errors.Is(err, net.ErrClosed) {
		m.t.Fatalf("Accept of a closed listener: got %v, want ErrClosed", err)
	}
	for id, e := range m.dialed {
		e.conn.SetReadDeadline(time.Now().Add(sockettest.Timeout))
		if n, err := e.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			m.t.Fatalf("Read of client %d, pending at Close: got %d, %v; want 0, EOF or ECONNRESET", id, n, err)
		}
	}
}

// finish reads all unread bytes and ends all contexts. It checks that the operations closed
// exactly the connections that the model recorded as closed. It then closes the others.
func (m *model) finish() {
	for _, p := range m.pairs {
		for i := range p.ends {
			for len(p.ends[i].unread) > 0 {
				m.read(p, i)
			}
		}
	}
	for len(m.events) > 0 {
		e := m.events[0]
		e.cancel()
		m.eventEnded(e)
	}
	for len(m.custodians) > 0 {
		m.endCustodian()
	}
	for _, p := range m.pairs {
		for i, e := range p.ends {
			if e.ours != nil && sockettest.IsClosed(m.t, e.ours) != (e.closed == sockettest.BothHalves) {
				m.t.Fatalf("end %d of a connection, with half %v closed: got closed %t, want %t", i, e.closed,
					sockettest.IsClosed(m.t, e.ours), e.closed == sockettest.BothHalves)
			}
		}
	}
	for _, p := range m.pairs {
		p.ends[0].conn.Close()
		p.ends[1].conn.Close()
	}
	for _, e := range m.dialed {
		e.conn.Close()
	}
}

// TestConcurrentAcceptsServeEachClientOnce lets clients connect and goroutines accept
// concurrently, with every method, while contexts end. It checks what holds in any order:
// each client is accepted once, and only the end of an event's context, which is the
// custodian of the connection, may close a connection before the answer.
func TestConcurrentAcceptsServeEachClientOnce(t *testing.T) {
	byChance(t, 3, func(t *testing.T, r *rand.Rand) {
		goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
		l := sockettest.Listen(t, unixsock.Backlog(r.IntN(8)))
		m := &crowd{t: t, l: l, served: make(map[uint32]int)}
		ctx, stop := context.WithCancel(t.Context())
		var accepting sync.WaitGroup
		for _, accept := range []func(context.Context, *rand.Rand){
			m.byAccept, m.byAccept, m.byAcceptContext, m.byReady, m.byKeptReady, m.byEvent, m.byEvent, m.bySharedEvent,
			m.bySharedEvent, m.byAbandonedEvents, m.byDeadlines,
		} {
			seeded := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
			accepting.Go(func() { accept(ctx, seeded) })
		}
		const clients, each = 16, 40
		var connecting sync.WaitGroup
		for i := range clients {
			byNet := r.IntN(100) < 25
			connecting.Go(func() {
				for j := range each {
					m.connect(uint32(i*each+j), byNet)
				}
			})
		}
		connecting.Wait()
		if showsReady(l.Ready()) {
			t.Error("poll of Ready() after the last client: got true, want false")
		}
		stop()
		if err := l.Close(); err != nil {
			t.Errorf("Close of the listener: got %v, want no error", err)
		}
		accepting.Wait()
		m.exchanges.Wait()

		for id, n := range m.served {
			if n != 1 {
				t.Errorf("accept client %d: got it %d times, want once", id, n)
			}
		}
		answered, disconnected, dropped := m.answered.Load(), m.disconnected.Load(), m.dropped.Load()
		if answered+disconnected != clients*each || int(answered) > len(m.served) {
			t.Errorf("connect %d clients: got %d answered, %d disconnected, %d served; want each answered or disconnected, and each answered one served",
				clients*each, answered, disconnected, len(m.served))
		}
		if disconnected != dropped {
			t.Errorf("connect %d clients: got %d disconnected, want %d, the number of connections that a context closed", clients*each, disconnected, dropped)
		}
		sockettest.WaitGoroutines(t, goroutines)
		sockettest.WaitDescriptors(t, descriptors)
	})
}

// A crowd is many clients, and many goroutines that accept them.
type crowd struct {
	t *testing.T
	l *unixsock.Listener

	mu     sync.Mutex
	served map[uint32]int // number of accepts of a client, by ID

	exchanges    sync.WaitGroup // goroutines that serve accepted connections
	answered     atomic.Int64   // clients that received the answer
	disconnected atomic.Int64   // clients whose connection ended without an answer
	dropped      atomic.Int64   // accepted connections that a context closed before the answer
}

// connect connects as client id, and waits for the answer or for the end of the
// connection.
func (m *crowd) connect(id uint32, byNet bool) {
	var c net.Conn
	var err error
	if byNet {
		for {
			// Package net returns an error if the backlog is full.
			c, err = net.Dial("unix", m.l.Addr().String())
			if !errors.Is(err, sockettest.FullBacklog(m.t)) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	} else {
		c, err = sockettest.Dial(m.t, m.l.Addr().String())
	}
	if err != nil {
		m.t.Errorf("connect of client %d: got %v, want a connection", id, err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(sockettest.Timeout))
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], id)
	if _, err = c.Write(b[:]); err == nil {
		_, err = io.ReadFull(c, b[:])
	}
	switch {
	case err == nil && binary.BigEndian.Uint32(b[:]) == ^id:
		m.answered.Add(1)
	case err == nil:
		m.t.Errorf("read the answer to client %d: got %x, want %08x", id, b, ^id)
	case err == io.EOF || isGone(err):
		m.disconnected.Add(1)
	default:
		m.t.Errorf("read the answer to client %d: got %v, want the answer or a disconnect", id, err)
	}
}

// serve answers a client. mayEnd reports whether a context may close c meanwhile.
func (m *crowd) serve(c *unixsock.Conn, mayEnd bool) {
	m.exchanges.Go(func() {
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(sockettest.Timeout)); err != nil && !mayEnd {
			m.t.Errorf("SetDeadline of an accepted connection: got %v, want no error", err)
		}
		var b [4]byte
		_, err := io.ReadFull(c, b[:])
		if err == nil {
			id := binary.BigEndian.Uint32(b[:])
			m.mu.Lock()
			m.served[id]++
			m.mu.Unlock()
			binary.BigEndian.PutUint32(b[:], ^id)
			_, err = c.Write(b[:])
		}
		switch {
		case err == nil:
		case mayEnd && errors.Is(err, net.ErrClosed):
			m.dropped.Add(1)
		default:
			m.t.Errorf("read the ID of an accepted client and answer it: got %v, want no error", err)
		}
	})
}

// serveEvent serves the connection that an event delivered. It first releases some
// connections from their custodian. If such a connection is open afterwards, it must stay
// open.
func (m *crowd) serveEvent(a unixsock.Accepted, r *rand.Rand) {
	if a.Err != nil {
		m.t.Errorf("receive from an event: got %v, want a connection", a.Err)
		return
	}
	mayEnd := true
	if r.IntN(4) == 0 {
		a.Conn.CloseOn(context.Background())
		mayEnd = errors.Is(a.Conn.SetDeadline(time.Time{}), net.ErrClosed)
	}
	m.serve(a.Conn, mayEnd)
}

func (m *crowd) byAccept(context.Context, *rand.Rand) {
	for {
		c, err := m.l.Accept()
		switch {
		case err == nil:
			m.serve(c.(*unixsock.Conn), false)
		case errors.Is(err, net.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			m.t.Errorf("Accept: got %v, want a connection, ErrDeadlineExceeded or ErrClosed", err)
			return
		}
	}
}

func (m *crowd) byAcceptContext(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(2000))*time.Microsecond)
		m.acceptIn(short)
		cancel()
	}
}

// acceptIn accepts a connection if one arrives before ctx is done.
func (m *crowd) acceptIn(ctx context.Context) {
	c, err := m.l.AcceptContext(ctx)
	switch {
	case err == nil:
		m.serve(c, false)
	case ctx.Err() != nil, errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
	default:
		m.t.Errorf("AcceptContext: got %v, want a connection, ErrDeadlineExceeded, ErrClosed or the error of the context", err)
	}
}

func (m *crowd) byReady(ctx context.Context, r *rand.Rand) {
	for {
		select {
		case _, ok := <-m.l.Ready():
			if !ok {
				return
			}
			m.tryAccept()
		case <-ctx.Done():
			return
		}
	}
}

func (m *crowd) byKeptReady(ctx context.Context, r *rand.Rand) {
	for range m.l.Ready() {
		if r.IntN(4) == 0 {
			m.tryAccept()
		}
	}
}

// tryAccept accepts a connection unless others have taken it.
func (m *crowd) tryAccept() {
	c, err := m.l.TryAccept()
	switch {
	case err == nil:
		m.serve(c, false)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, net.ErrClosed):
	default:
		m.t.Errorf("TryAccept: got %v, want a connection, EAGAIN or ErrClosed", err)
	}
}

func (m *crowd) byEvent(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
		for a := range m.l.AcceptEvt(short) {
			m.serveEvent(a, r)
		}
		cancel()
	}
}

func (m *crowd) bySharedEvent(ctx context.Context, r *rand.Rand) {
	for {
		select {
		case a, ok := <-m.l.AcceptEvt(ctx):
			if !ok {
				return
			}
			m.serveEvent(a, r)
		case <-ctx.Done():
			return
		}
	}
}

// byAbandonedEvents calls AcceptEvt without a receive from the channel.
func (m *crowd) byAbandonedEvents(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		short, cancel := context.WithCancel(ctx)
		m.l.AcceptEvt(short)
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		cancel()
	}
}

func (m *crowd) byDeadlines(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		m.l.SetDeadline(time.Now().Add(time.Duration(r.IntN(1000)) * time.Microsecond))
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		m.l.SetDeadline(time.Time{})
	}
}
