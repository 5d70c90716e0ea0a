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

// modelSteps is how many operations one run of the model plays.
const modelSteps = 150

// modelBacklog leaves room for all clients that may be pending, and modelWaiting is
// their maximum: a connect in the model never waits.
const (
	modelBacklog = 32
	modelWaiting = 8
)

// A model plays operations on a Listener, one after the other, and knows what
// each must show: which clients are pending, in the order of connecting; which events live; and
// of each connection made, which halves are closed and what is on its way.
//
// Each client sends a byte that is its own as soon as it has connected, so that
// the goroutine that accepts it can check that it is the next one.
type model struct {
	t    *testing.T
	r    *rand.Rand
	l    *unixsock.Listener
	path string
	log  []string // the last steps, for the message of a failure

	clients int                // how many there were
	dialed  map[byte]*modelEnd // by id, until accepted
	waiting []byte             // ids, in the order of connecting
	pairs   []*modelPair
	events  []*modelEvent

	kept <-chan *unixsock.Listener // nil before the first Ready
	// exact: what kept shows must be so now. It need not after a connect by
	// others, or a receive from an event, before the listener has looked.
	exact bool
	late  int // deliveries by events that were over
	// ahead: a connection may have been accepted ahead, out of the kernel's sight.
	ahead bool
}

// A modelEvent is a context, and what AcceptEvt gave for it.
type modelEvent struct {
	ctx       context.Context
	cancel    context.CancelFunc
	ch        <-chan unixsock.Accepted
	delivered []*modelPair
}

// A modelPair is both ends of a connection.
type modelPair struct{ ends [2]*modelEnd }

// A modelEnd is one end of a connection.
type modelEnd struct {
	conn   net.Conn
	ours   *unixsock.Conn // conn, if it is this package's
	unread []byte         // what is on the way to it
	closed sockettest.Half
}

// TestModel plays operations by chance. What it checks after each is documented where
// it is played, below.
func TestModel(t *testing.T) {
	byChance(t, 100, func(t *testing.T, r *rand.Rand) {
		goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
		m := &model{t: t, r: r, l: sockettest.Listen(t, unixsock.Backlog(modelBacklog)), dialed: make(map[byte]*modelEnd)}
		m.path = m.l.Addr().String()
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("the last steps: %q", m.log[max(0, len(m.log)-12):])
			}
		})
		for range modelSteps {
			m.step()
		}
		m.step1("close", m.closeListener)
		m.finish()
		sockettest.WaitGoroutines(t, goroutines)
		sockettest.WaitDescriptors(t, descriptors)
	})
}

// step plays one operation.
func (m *model) step() {
	type operation struct {
		weight int
		name   string
		play   func()
	}
	operations := []operation{
		{20, "connect", m.connect},
		{12, "accept", m.accept},
		{12, "poll Ready", m.pollReady},
		{12, "poll kept", m.pollKept},
		{10, "receive", m.receiveEvent},
		{6, "poll an event", m.pollEvent},
		{6, "new event", m.newEvent},
		{4, "cancel an event", m.cancelEvent},
		{3, "cancel, a connect at the same time", m.cancelWhileConnecting},
		{3, "accept waits", m.acceptWaits},
		{3, "receiver waits", m.receiverWaits},
		{3, "accept is cancelled", m.acceptCancelled},
		{2, "deadline", m.deadlinePasses},
		{3, "accept elsewhere", m.acceptElsewhere},
		{30, "use a connection", m.usePair},
	}
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := m.r.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			m.step1(o.name, o.play)
			return
		}
	}
}

func (m *model) step1(name string, play func()) {
	m.log = append(m.log, name)
	play()
}

func (m *model) chance(percent int) bool { return m.r.IntN(100) < percent }

// connect connects one more client, by Connect or by package net.
func (m *model) connect() {
	if len(m.waiting) >= modelWaiting || m.clients > 255 {
		return
	}
	id := m.newID()
	if m.chance(30) {
		m.connected(id, m.dialNet())
		m.exact = false
		return
	}
	c, err := unixsock.Connect(m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	m.connected(id, c)
	m.exact = false
}

func (m *model) newID() byte {
	m.clients++
	return byte(m.clients - 1)
}

func (m *model) dialNet() net.Conn {
	c, err := net.Dial("unix", m.path)
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// connected says that client id has come by c, and waits.
func (m *model) connected(id byte, c net.Conn) {
	m.t.Helper()
	m.t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte{id}); err != nil {
		m.t.Fatal(err)
	}
	ours, _ := c.(*unixsock.Conn)
	m.dialed[id] = &modelEnd{conn: c, ours: ours}
	m.waiting = append(m.waiting, id)
	if len(m.events) > 0 {
		m.ahead = true
	}
}

// accepted records that c was accepted: it must be the one that has been pending longest.
func (m *model) accepted(c *unixsock.Conn, err error) *modelPair {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%v, and %d wait", err, len(m.waiting))
	}
	m.t.Cleanup(func() { c.Close() })
	id := make([]byte, 1)
	c.SetReadDeadline(time.Now().Add(sockettest.Timeout))
	if _, err := io.ReadFull(c, id); err != nil {
		m.t.Fatal(err)
	}
	c.SetReadDeadline(time.Time{})
	if len(m.waiting) == 0 || m.waiting[0] != id[0] {
		m.t.Fatalf("accepted client %d, and %v wait in this order", id[0], m.waiting)
	}
	m.waiting = m.waiting[1:]
	if len(m.waiting) == 0 {
		m.ahead = false
	} else if len(m.events) > 0 {
		m.ahead = true
	}
	p := &modelPair{[2]*modelEnd{m.dialed[id[0]], {conn: c, ours: c}}}
	delete(m.dialed, id[0])
	m.pairs = append(m.pairs, p)
	return p
}

// accept accepts a pending client at once, or finds that none is pending.
func (m *model) accept() {
	if len(m.waiting) > 0 {
		if m.chance(50) {
			c, err := m.l.Accept()
			if err != nil {
				m.t.Fatal(err)
			}
			m.accepted(c.(*unixsock.Conn), nil)
		} else {
			m.accepted(m.l.AcceptContext(m.t.Context()))
		}
		m.exact = m.kept != nil
		return
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		m.t.Fatalf("Accept: got %v while no client is pending", err)
	}
}

// pollReady calls Ready and polls its channel, which is exact whatever happened before.
func (m *model) pollReady() {
	for range 1 + m.r.IntN(3) {
		var ready bool
		select {
		case got, ok := <-m.l.Ready():
			if got != m.l || !ok {
				m.t.Fatalf("received %v, %v", got, ok)
			}
			ready = true
		default:
		}
		if ready != (len(m.waiting) > 0) {
			m.t.Fatalf("select on Ready(): ready is %v, and %v are pending", ready, m.waiting)
		}
	}
	if ch := m.l.Ready(); m.kept == nil {
		m.kept = ch
	} else if ch != m.kept {
		m.t.Fatal("Ready returned another channel")
	}
	m.exact = true
}

// pollKept looks at the channel that was kept. It is exact if this package has
// had reason to look, and otherwise becomes so.
func (m *model) pollKept() {
	if m.kept == nil {
		return
	}
	if !m.exact {
		if len(m.waiting) > 0 {
			if got := sockettest.Receive(m.t, "readiness", m.kept); got != m.l {
				m.t.Fatalf("received %v", got)
			}
		} else {
			sockettest.WaitFor(m.t, "old news to go", func() bool { return !showsReady(m.kept) })
		}
		return
	}
	for i := range 1 + m.r.IntN(5) {
		if ready := showsReady(m.kept); ready != (len(m.waiting) > 0) {
			m.t.Fatalf("kept, ready is %v at poll %d, and %v wait", ready, i+1, m.waiting)
		}
	}
	// Polls that succeed use up what the channel holds until the next accept or tick.
	m.exact = len(m.waiting) == 0
}

func showsReady(ready <-chan *unixsock.Listener) bool {
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// newEvent asks for an event, and asks again with the same context and with one
// that shares its end.
func (m *model) newEvent() {
	if len(m.events) >= 4 {
		return
	}
	e := &modelEvent{}
	e.ctx, e.cancel = context.WithCancel(m.t.Context())
	e.ch = m.l.AcceptEvt(e.ctx)
	type key struct{}
	if m.l.AcceptEvt(e.ctx) != e.ch || m.l.AcceptEvt(context.WithValue(e.ctx, key{}, 1)) != e.ch {
		m.t.Fatal("the same context gave another channel")
	}
	m.events = append(m.events, e)
	m.ahead = m.ahead || len(m.waiting) > 0
}

// anEvent returns one of the events that live, or nil.
func (m *model) anEvent() *modelEvent {
	if len(m.events) == 0 {
		return nil
	}
	return m.events[m.r.IntN(len(m.events))]
}

// delivered says what came out of the channel of e.
func (m *model) delivered(e *modelEvent, a unixsock.Accepted, ok bool) {
	m.t.Helper()
	if !ok {
		m.t.Fatal("the channel of an event that lives is closed")
	}
	e.delivered = append(e.delivered, m.accepted(a.Conn, a.Err))
	m.exact = false
}

// receiveEvent receives from an event, if someone waits.
func (m *model) receiveEvent() {
	e := m.anEvent()
	if e == nil || len(m.waiting) == 0 {
		return
	}
	select {
	case a, ok := <-e.ch:
		m.delivered(e, a, ok)
	case <-time.After(sockettest.Timeout):
		m.t.Fatalf("no event in %v, and %v wait", sockettest.Timeout, m.waiting)
	}
}

// pollEvent polls an event. It may say nothing, but nothing false.
func (m *model) pollEvent() {
	e := m.anEvent()
	if e == nil {
		return
	}
	select {
	case a, ok := <-e.ch:
		m.delivered(e, a, ok)
	default:
	}
}

// cancelEvent ends an event: its channel is closed, its connections are closed,
// and no pending client is lost.
func (m *model) cancelEvent() {
	e := m.anEvent()
	if e == nil {
		return
	}
	e.cancel()
	a, ok := <-e.ch
	if ok {
		// An offer was on its way, which is rare; its context closes it, so that
		// it cannot send its ID.
		if m.late++; a.Err != nil || len(m.waiting) == 0 || m.late > 2 {
			m.t.Fatalf("late delivery %d, an error %v, and %v wait", m.late, a.Err, m.waiting)
		}
		m.lost(e, m.dialed[m.waiting[0]], a.Conn)
		delete(m.dialed, m.waiting[0])
		m.waiting = m.waiting[1:]
		if _, ok := <-e.ch; ok {
			m.t.Fatal("a second delivery once the context was done")
		}
	}
	m.ended(e)
}

// lost says that e delivered what its context closes at once.
func (m *model) lost(e *modelEvent, client *modelEnd, c *unixsock.Conn) {
	p := &modelPair{[2]*modelEnd{client, {conn: c, ours: c}}}
	m.pairs = append(m.pairs, p)
	e.delivered = append(e.delivered, p)
}

// ended says that the context of e is done.
func (m *model) ended(e *modelEvent) {
	m.events = slices.DeleteFunc(m.events, func(other *modelEvent) bool { return other == e })
	for _, p := range e.delivered {
		sockettest.WaitFor(m.t, "what an event delivered is open", func() bool {
			// Halves that were shut down before look hung up, too.
			return sockettest.IsClosed(m.t, p.ends[1].ours) && hungUp(m.t, p.ends[0].conn)
		})
		m.closedEnd(p, 1, sockettest.BothHalves)
	}
	e.delivered = nil
	if m.chance(30) {
		if _, ok := <-m.l.AcceptEvt(e.ctx); ok {
			m.t.Fatal("an event for a context that is done delivered")
		}
	}
}

// hungUp reports whether the other end of c is closed; if c itself is, it need
// not be known.
func hungUp(t testing.TB, c net.Conn) (yes bool) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(fds, 0)
		yes = err == nil && fds[0].Revents&unix.POLLHUP != 0
	})
	return yes || err != nil
}

// cancelWhileConnecting ends an event that someone receives from, while a client
// connects: it is delivered, or it waits.
func (m *model) cancelWhileConnecting() {
	e := m.anEvent()
	if e == nil || len(m.waiting) > 0 || m.clients > 255 {
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
		c, err := unixsock.Connect(m.path)
		clients <- sockettest.Dialed{Conn: c, Err: err}
	}()
	for range m.r.IntN(2000) {
		runtime.KeepAlive(e)
	}
	e.cancel()
	client := sockettest.Receive(m.t, "a client", clients)
	if client.Err != nil {
		m.t.Fatal(client.Err)
	}
	m.exact = false
	if got := sockettest.Receive(m.t, "the end of an event", results); got.ok {
		if got.a.Err != nil {
			m.t.Fatal(got.a.Err)
		}
		m.lost(e, &modelEnd{conn: client.Conn, ours: client.Conn}, got.a.Conn)
	} else {
		m.connected(id, client.Conn)
		m.ahead = true
	}
	m.ended(e)
}

// acceptWaits connects while an accept waits.
func (m *model) acceptWaits() {
	if len(m.waiting) > 0 || m.clients > 255 {
		return
	}
	results := make(chan sockettest.Dialed, 1)
	go func() {
		c, err := m.l.AcceptContext(m.t.Context())
		results <- sockettest.Dialed{Conn: c, Err: err}
	}()
	if m.chance(50) {
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Microsecond)
	}
	m.connect()
	got := sockettest.Receive(m.t, "the accept of the new client", results)
	m.accepted(got.Conn, got.Err)
	m.exact = m.kept != nil
}

// receiverWaits connects while an event is received from.
func (m *model) receiverWaits() {
	e := m.anEvent()
	if e == nil || len(m.waiting) > 0 || m.clients > 255 {
		return
	}
	results := make(chan unixsock.Accepted, 1)
	go func() { results <- <-e.ch }()
	if m.chance(50) {
		time.Sleep(time.Duration(m.r.IntN(300)) * time.Microsecond)
	}
	m.connect()
	m.delivered(e, sockettest.Receive(m.t, "the event for the new client", results), true)
}

// acceptCancelled ends an accept that waits, perhaps while a client connects.
func (m *model) acceptCancelled() {
	if len(m.waiting) > 0 {
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
	got := sockettest.Receive(m.t, "an accept that is cancelled", results)
	switch {
	case got.Err == nil:
		m.accepted(got.Conn, nil)
		m.exact = m.kept != nil
	case !errors.Is(got.Err, context.Canceled):
		m.t.Fatal(got.Err)
	}
}

// deadlinePasses sets a deadline, which rules accepts and nothing else.
func (m *model) deadlinePasses() {
	set := func(at time.Time) {
		if err := m.l.SetDeadline(at); err != nil {
			m.t.Fatal(err)
		}
	}
	if len(m.waiting) == 0 && m.chance(50) {
		set(time.Now().Add(time.Duration(m.r.IntN(1000)) * time.Microsecond))
	} else {
		set(time.Now().Add(-time.Second))
		m.pollReady()
		m.receiveEvent()
	}
	if c, err := m.l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		m.t.Fatalf("accepted %v, %v past a deadline", c, err)
	}
	set(time.Time{})
	m.accept()
}

// acceptElsewhere accepts by a copy of the descriptor, as another process does,
// in the listener's absence. Only what is in the kernel's hands can be had so.
func (m *model) acceptElsewhere() {
	if len(m.waiting) == 0 || m.ahead || len(m.events) > 0 {
		return
	}
	f, err := m.l.File()
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	other, err := unixsock.FileListener(f)
	if err != nil {
		m.t.Fatal(err)
	}
	defer other.Close()
	m.accepted(other.AcceptContext(m.t.Context()))
	m.exact = false
}

// usePair does something with one of the connections.
func (m *model) usePair() {
	if len(m.pairs) == 0 {
		return
	}
	p := m.pairs[m.r.IntN(len(m.pairs))]
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

// write writes from end i: it comes through, or says which close was before.
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
			m.t.Fatalf("wrote %d, %v to a half that is closed", n, err)
		}
	case to.closed&sockettest.ReadHalf != 0:
		if n != 0 || !isGone(err) {
			m.t.Fatalf("Write to a peer that does not read: got %d, %v", n, err)
		}
	case n != len(b) || err != nil:
		m.t.Fatalf("wrote %d of %d bytes, %v", n, len(b), err)
	default:
		to.unread = append(to.unread, b...)
	}
}

// isGone reports whether err is what a write to a closed peer gives.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// read reads at end i: what was written, or the end, or nothing yet.
func (m *model) read(p *modelPair, i int) {
	to, from := p.ends[i], p.ends[1-i]
	b := make([]byte, 1+m.r.IntN(300))
	switch {
	case to.closed&sockettest.ReadHalf != 0:
		if n, err := to.conn.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
			m.t.Fatalf("read %d, %v from a half that is closed", n, err)
		}
	case len(to.unread) > 0:
		b = b[:min(len(b), len(to.unread))]
		if n, err := io.ReadFull(to.conn, b); err != nil || !bytes.Equal(b, to.unread[:n]) {
			m.t.Fatalf("read %d bytes, %v, and not the %d that were written", n, err, len(b))
		}
		to.unread = to.unread[len(b):]
	case from.closed&sockettest.WriteHalf != 0:
		if n, err := to.conn.Read(b); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			m.t.Fatalf("read %d, %v where the end is", n, err)
		}
	default:
		to.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := to.conn.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			m.t.Fatalf("read %d, %v where nothing is", n, err)
		}
		to.conn.SetReadDeadline(time.Time{})
	}
}

// closeSome closes a half of end i, or both.
func (m *model) closeSome(p *modelPair, i int) {
	e := p.ends[i]
	if e.ours == nil {
		// A half that net has closed is not one that ours has: close both, once.
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
		m.t.Fatal(err)
	}
	m.closedEnd(p, i, c.what)
}

// closedEnd says that halves of end i of p are closed.
func (m *model) closedEnd(p *modelPair, i int, what sockettest.Half) {
	e := p.ends[i]
	e.closed |= what
	if what&sockettest.ReadHalf != 0 {
		e.unread = nil
	}
}

// closeListener closes the listener: all its channels are closed, each waiting call is
// turned away, and what was accepted stays.
func (m *model) closeListener() {
	if err := m.l.Close(); err != nil {
		m.t.Fatal(err)
	}
	for range 3 {
		if m.kept != nil {
			if _, ok := <-m.kept; ok {
				m.t.Fatal("readiness of a listener that is closed")
			}
		}
		if _, ok := <-m.l.Ready(); ok {
			m.t.Fatal("Ready() of a closed listener yields the listener")
		}
		for _, e := range m.events {
			if _, ok := <-e.ch; ok {
				m.t.Fatal("an event of a listener that is closed")
			}
		}
	}
	if _, err := m.l.Accept(); !errors.Is(err, net.ErrClosed) {
		m.t.Fatal(err)
	}
	for id, e := range m.dialed {
		e.conn.SetReadDeadline(time.Now().Add(sockettest.Timeout))
		if n, err := e.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			m.t.Fatalf("pending client %d: read %d, %v", id, n, err)
		}
	}
}

// finish plays the rest of what the connections have in store, ends the events
// and closes all.
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
		m.ended(e)
	}
	for _, p := range m.pairs {
		p.ends[0].conn.Close()
		p.ends[1].conn.Close()
	}
	for _, e := range m.dialed {
		e.conn.Close()
	}
}

// TestModelOfManyAtOnce lets clients come in every way, and accepts them in every
// way, at once, and contexts end meanwhile. It checks what holds in any order:
// each client is taken by one, and only the end of an event's
// context, its custodian, may cost it the answer.
func TestModelOfManyAtOnce(t *testing.T) {
	byChance(t, 3, func(t *testing.T, r *rand.Rand) {
		goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
		l := sockettest.Listen(t, unixsock.Backlog(r.IntN(8)))
		m := &crowd{t: t, l: l, served: make(map[uint32]int)}
		ctx, stop := context.WithCancel(t.Context())
		var takers sync.WaitGroup
		for _, take := range []func(context.Context, *rand.Rand){
			m.byAccept, m.byAccept, m.byAcceptContext, m.byReady, m.byKeptReady, m.byEvent, m.byEvent, m.bySharedEvent,
			m.bySharedEvent, m.byAbandonedEvents, m.byDeadlines,
		} {
			seeded := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
			takers.Go(func() { take(ctx, seeded) })
		}
		const clients, each = 16, 40
		var comers sync.WaitGroup
		for i := range clients {
			foreign := r.IntN(100) < 25
			comers.Go(func() {
				for j := range each {
					m.come(uint32(i*each+j), foreign)
				}
			})
		}
		comers.Wait()
		if showsReady(l.Ready()) {
			t.Error("ready without a pending connection, want not ready")
		}
		stop()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		takers.Wait()
		m.exchanges.Wait()

		for id, n := range m.served {
			if n != 1 {
				t.Errorf("client %d was served %d times", id, n)
			}
		}
		answered, cut, dropped := m.answered.Load(), m.cut.Load(), m.dropped.Load()
		if answered+cut != clients*each || int(answered) > len(m.served) {
			t.Errorf("of %d clients %d were answered and %d were cut off; %d were served", clients*each, answered, cut, len(m.served))
		}
		if cut != dropped {
			t.Errorf("%d clients were cut off, and %d connections were closed by their context", cut, dropped)
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
	served map[uint32]int // how often, by id

	exchanges              sync.WaitGroup
	answered, cut, dropped atomic.Int64
}

// come connects as client id, and waits for the answer or the end.
func (m *crowd) come(id uint32, foreign bool) {
	var c net.Conn
	var err error
	if foreign {
		for {
			// Of a full backlog, net says that it is an error.
			if c, err = net.Dial("unix", m.l.Addr().String()); !errors.Is(err, syscall.EAGAIN) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	} else {
		c, err = unixsock.Connect(m.l.Addr().String())
	}
	if err != nil {
		m.t.Error(err)
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
		m.t.Errorf("client %d got the answer %x", id, b)
	case err == io.EOF || isGone(err):
		m.cut.Add(1)
	default:
		m.t.Errorf("client %d: %v", id, err)
	}
}

// serve answers a client. mayEnd says that a context may close c meanwhile.
func (m *crowd) serve(c *unixsock.Conn, mayEnd bool) {
	m.exchanges.Go(func() {
		defer c.Close()
		c.SetDeadline(time.Now().Add(sockettest.Timeout))
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
			m.t.Errorf("serving: %v", err)
		}
	})
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
			m.t.Error(err)
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

// acceptIn accepts until ctx is done.
func (m *crowd) acceptIn(ctx context.Context) {
	c, err := m.l.AcceptContext(ctx)
	switch {
	case err == nil:
		m.serve(c, false)
	case ctx.Err() != nil, errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
	default:
		m.t.Error(err)
	}
}

func (m *crowd) byReady(ctx context.Context, r *rand.Rand) {
	for {
		select {
		case _, ok := <-m.l.Ready():
			if !ok {
				return
			}
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			m.acceptIn(short)
			cancel()
		case <-ctx.Done():
			return
		}
	}
}

func (m *crowd) byKeptReady(ctx context.Context, r *rand.Rand) {
	for range m.l.Ready() {
		if r.IntN(4) == 0 {
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			m.acceptIn(short)
			cancel()
		}
	}
}

func (m *crowd) byEvent(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
		for a := range m.l.AcceptEvt(short) {
			if a.Err != nil {
				m.t.Error(a.Err)
				continue
			}
			m.serve(a.Conn, true)
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
			if a.Err != nil {
				m.t.Error(a.Err)
				continue
			}
			m.serve(a.Conn, true)
		case <-ctx.Done():
			return
		}
	}
}

// byAbandonedEvents makes events without a receiver.
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

// TestEventsFollowEachOtherAtOnce lets many wait at a listener whose Ready is in
// use too: to receive them all takes no longer than to accept them.
func TestEventsFollowEachOtherAtOnce(t *testing.T) {
	const clients, runs = 20, 10
	l := sockettest.Listen(t, unixsock.Backlog(clients))
	l.Ready()
	evt := l.AcceptEvt(t.Context())
	var slowest time.Duration
	for range runs {
		received := make(chan unixsock.Accepted, clients)
		go func() {
			for range clients {
				received <- <-evt
			}
		}()
		for range clients {
			sockettest.Connect(t, l.Addr().String())
		}
		begin := time.Now()
		for range clients {
			a := sockettest.Receive(t, "an event", received)
			if a.Err != nil {
				t.Fatal(a.Err)
			}
			a.Conn.Close()
		}
		slowest = max(slowest, time.Since(begin))
	}
	// One of them that waits for the next look at the backlog is no news; that
	// every other does is.
	if slowest > clients/4*50*time.Millisecond {
		t.Errorf("%d events took %v", clients, slowest)
	}
}
