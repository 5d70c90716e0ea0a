package unixsock

import (
	"context"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// An Accepted is what a receive from the channel of [Listener.AcceptEvt] yields: a
// connection, or the error of accept(2).
type Accepted struct {
	Conn *Conn
	Err  error
}

// events is the part of a Listener that Ready and AcceptEvt need. It is unused before the
// first call of either, or of the Read of SyscallConn.
//
// One invariant ties the channels to the backlog. A connection is pending if it is in the
// backlog, or accepted ahead: accepted before its receiver is known.
//
//   - While a connection is pending, ready is full, and if there are events, one
//     connection is accepted ahead and offered to all of them.
//   - While none is pending, ready is empty and nothing is offered.
//
// Only sync, called with mu held, establishes the invariant, and it never blocks. It is
// called whenever the invariant may be broken: by Ready, after every accept, when an event
// begins or ends, at each arrival of a connection, after each offer, after each callback
// of SyscallConn, and at each tick. Ticks are needed while receives may empty the ready
// channel, another process may accept the connection, or an event has no offer.
//
// The watcher is a goroutine that waits for arrivals in the poller, from the first use
// until Close. An Accept that must wait then waits for nextChange instead.
type events struct {
	watching atomic.Bool // set when the watcher starts, with mu held

	ready   chan *Listener // nil before the first call of Ready or Close
	byDone  map[<-chan struct{}]*acceptEvt
	pending Accepted // accepted ahead: a connection, an error, or neither
	offer   *offer   // of pending; nil if there is none

	endMu sync.Mutex   // guards ended; locked after mu
	ended []*acceptEvt // the call of endEvt for the first one will close the channels of all

	ticker *time.Timer // of the ticks; nil before the first use
	tick   time.Duration
}

const (
	// readyTokens is the number of receives that a channel kept in a variable serves
	// between two calls of sync, in addition to those of goroutines that already wait.
	readyTokens = 8

	// maxServed bounds the receivers that one call of sync serves, so that it ends even
	// if they receive again at once. The next tick serves the others.
	maxServed = 1 << 10

	// A connection is offered to at most maxOffers events at once: the time that
	// reflect.Select takes grows with their number, and it has a limit.
	maxOffers = 1 << 8

	// The interval of the ticks. An accept by another process is noticed within maxTick.
	minTick = 1 * time.Millisecond
	maxTick = 40 * time.Millisecond
)

// Ready returns the listener's readiness channel, always the same one. A receive yields
// the listener itself. The channel mirrors Racket's listener as a synchronizable event.
//
// While a connection is pending, every receive succeeds, for every goroutine, repeatedly.
// While none is pending, no receive succeeds: an accept has emptied the channel when it
// returns. (If another process, or another Listener of the same socket, has accepted the
// connection, receives may succeed for up to 50 ms more. A receive from a channel kept in
// a variable may also succeed just after a receive from AcceptEvt.)
//
// A select with a default must call Ready itself, as in case <-l.Ready(). It is exact then,
// because the call polls the kernel. (If other goroutines receive between the call and the
// select, the channel may be empty for a moment.) With a channel kept in a variable, such a
// select can miss a pending connection in three cases: just after a connect, just after a
// receive from AcceptEvt, and after more than 8 receives without an accept. A blocking
// receive from a kept channel misses none.
//
// Readiness accepts nothing: the connection stays in the backlog. Between a receive and
// an Accept, another goroutine or process may accept the connection, and the Accept then
// waits for the next one. If others accept, use AcceptContext with a timeout, say 20 ms.
//
// The first call starts a goroutine, which ends with Close. Closing the listener closes
// the channel: a receive then yields nil, false, so a loop must check the second value.
func (l *Listener) Ready() <-chan *Listener {
	if !l.ok() {
		return closedReady
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.events.ready == nil {
		l.events.ready = make(chan *Listener, readyTokens)
		l.startWatcher()
	}
	l.sync()
	return l.events.ready
}

// AcceptEvt returns a channel that yields accepted connections, each to one receiver, which
// closes it when it is done. ctx is the custodian of the connections, as if by
// [Conn.CloseOn]: just after ctx is done, the channel is closed, and so are the connections
// that it delivered. To let a connection outlive ctx, call conn.CloseOn(context.Background()).
//
// The same ctx gives the same channel, so a loop can call AcceptEvt in each select. Once
// ctx is done, nothing more is delivered, except that a receive from a channel kept in a
// variable that races with the end of ctx may yield a connection that is closed at once.
// In a select with a default, use [Listener.Ready] and [Listener.AcceptContext] instead: a
// receive from this channel succeeds only once a goroutine offers the connection.
//
// To offer a connection on its channels, the listener accepts it ahead, one at a time. Ready
// reports it, and the next Accept, AcceptContext or receive from any of the channels gets it,
// even after ctx is done. But another process, or another Listener of the same socket, never
// gets it. A server process that shares its socket with others, and may stop receiving,
// should use [Listener.Ready] and [Listener.AcceptContext] instead.
//
// An error of accept(2), such as EMFILE, is delivered as an Accepted with Err, one per
// receive, even if it has passed by then, and the channel stays open. Closing the listener
// closes the channel, and disconnects a connection that was accepted ahead and not received.
//
// AcceptEvt mirrors unix-socket-accept-evt, which uses Racket's current custodian.
func (l *Listener) AcceptEvt(ctx context.Context) <-chan Accepted {
	if !l.ok() {
		return closedEvt
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The Done channel identifies ctx: it can always be a map's key, and contexts that
	// share it end together.
	e, done := &l.events, ctx.Done()
	if isClosed(l.done) || isClosed(done) {
		return closedEvt
	}
	evt := e.byDone[done]
	if evt == nil {
		l.startWatcher()
		evt = &acceptEvt{ctx: ctx, done: done, ch: make(chan Accepted)}
		evt.stop = context.AfterFunc(ctx, func() { l.endEvt(evt) })
		e.byDone[done] = evt
		l.sync()
	}
	return evt.ch
}

// An acceptEvt is what AcceptEvt returned for one context.
type acceptEvt struct {
	ctx  context.Context
	done <-chan struct{} // of ctx
	ch   chan Accepted   // unbuffered: what is sent has been received
	stop func() bool     // releases ctx
}

func (e *acceptEvt) ended() bool { return isClosed(e.done) }

var closedReady, closedEvt = make(chan *Listener), make(chan Accepted)

func init() {
	close(closedReady)
	close(closedEvt)
}

// startWatcher starts the watcher of an open listener if there is none. mu is held.
func (l *Listener) startWatcher() {
	if isClosed(l.done) || l.events.watching.Swap(true) {
		return
	}
	l.events.byDone = make(map[<-chan struct{}]*acceptEvt)
	l.events.ticker, l.events.tick = time.AfterFunc(maxTick, l.onTick), minTick
	l.interrupt() // an Accept that waits in the poller
	go l.watch()
}

func (l *Listener) watch() {
	l.pollSem <- struct{}{} // never released
	for {
		err := netfd.MapRawErr(l.raw.Read(l.arrived))
		if isClosed(l.done) || err != os.ErrDeadlineExceeded {
			return
		}
		l.file.SetReadDeadline(time.Time{}) // an interrupt that was meant for an Accept
	}
}

// arrived is called when the watcher begins to wait, and when connections have arrived.
func (l *Listener) arrived(uintptr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake()
	l.sync()
	return false
}

// lockAndSync is sync for a caller that does not hold mu.
func (l *Listener) lockAndSync() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sync()
}

// sync establishes the invariant of events. mu is held.
func (l *Listener) sync() {
	e := &l.events
	if isClosed(l.done) || !e.watching.Load() {
		return
	}
	l.cancelOffer()
	drained := l.acceptAhead()
	if e.pending != (Accepted{}) {
		l.startOffer()
	}
	pending := e.pending.Conn != nil || !drained && sys.Readable(l.fd)
	l.fillReady(pending)
	// What is offered to all events needs no tick, and without events nothing has to be
	// offered.
	unoffered := len(e.byDone) > 0 && (e.offer == nil || len(e.byDone) > maxOffers)
	l.setTicker(pending && e.ready != nil || (pending || e.pending.Err != nil) && unoffered)
}

// acceptAhead accepts connections for the events until no receiver waits for the pending
// one, or the backlog is empty; then drained is true. mu is held, and there is no offer.
func (l *Listener) acceptAhead() (drained bool) {
	e := &l.events
	if len(e.byDone) == 0 {
		e.pending.Err = nil
		return false
	}
	for range maxServed {
		if e.pending == (Accepted{}) {
			c, err := l.acceptOne()
			if err == sys.ErrWouldBlock {
				return true
			}
			if err == nil {
				c.custodian = undelivered
				l.wake() // the poller does not report what has left the backlog
			}
			e.pending = Accepted{c, l.opError("accept", err)}
		}
		if !l.deliver() {
			return false
		}
	}
	return false
}

// deliver sends the pending connection to a receiver that already waits, and reports
// whether there was one. mu is held.
func (l *Listener) deliver() bool {
	for _, evt := range l.events.byDone {
		if evt.ended() {
			continue
		}
		select {
		case evt.ch <- l.events.pending:
			l.delivered(evt)
			return true
		default:
		}
	}
	return false
}

// delivered records that a receiver of evt has what was pending. mu is held.
func (l *Listener) delivered(evt *acceptEvt) {
	if c := l.events.pending.Conn; c != nil {
		c.closeOn(evt.ctx, undelivered)
	}
	l.events.pending = Accepted{}
}

// takePending returns the connection that is accepted ahead, or nil. mu is held.
func (l *Listener) takePending() *Conn {
	l.cancelOffer()
	c := l.events.pending.Conn
	l.events.pending.Conn = nil
	return c
}

// fillReady fills the readiness channel, or empties it. mu is held.
func (l *Listener) fillReady(pending bool) {
	fill, drain := l.events.ready, l.events.ready
	if pending {
		drain = nil // blocks forever, so select ignores it
	} else {
		fill = nil
	}
	for range maxServed {
		select {
		case fill <- l:
		case <-drain:
		default:
			return
		}
	}
}

// setTicker starts the ticks if they are needed, or stops them. mu is held.
func (l *Listener) setTicker(needed bool) {
	e := &l.events
	if needed {
		e.ticker.Reset(e.tick)
	} else {
		e.ticker.Stop()
		e.tick = minTick
	}
}

func (l *Listener) onTick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.events
	e.tick = min(2*e.tick, maxTick)
	if len(e.ready) < cap(e.ready) {
		e.tick = minTick // receives have emptied it
	}
	l.sync()
}

// endEvt closes the channel of evt, whose context is done. One call does so for all the
// events that end before it has locked mu, and the others return without mu: when
// thousands of contexts end at once, an Accept does not wait for thousands of calls.
func (l *Listener) endEvt(evt *acceptEvt) {
	e := &l.events
	e.endMu.Lock()
	e.ended = append(e.ended, evt)
	first := len(e.ended) == 1
	e.endMu.Unlock()
	if !first {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.endMu.Lock()
	ended := e.ended
	e.ended = nil
	e.endMu.Unlock()
	l.cancelOffer()
	for _, evt := range ended {
		if e.byDone[evt.done] == evt { // else Close was first
			delete(e.byDone, evt.done)
			close(evt.ch)
		}
	}
	l.sync()
}

// endEvents closes all channels. mu is held, and there is no offer.
func (l *Listener) endEvents() {
	e := &l.events
	if e.ready == nil {
		e.ready = make(chan *Listener)
	}
	l.fillReady(false)
	close(e.ready)
	for _, evt := range e.byDone {
		evt.stop()
		close(evt.ch)
	}
	e.byDone = nil
	if e.ticker != nil {
		e.ticker.Stop()
	}
}

// An offer is one goroutine that sends what is pending to the first event that receives.
// It ends when a receiver takes what is pending or a context ends, and then synchronizes
// the listener, or when cancelOffer ends it, with mu held.
type offer struct {
	cancel chan struct{}
	taker  chan *acceptEvt // of size 1, sent to without mu: the receiver's event, or nil
}

// startOffer offers what is pending to at most maxOffers of the events whose context is
// not done, chosen at random. mu is held.
func (l *Listener) startOffer() {
	var evts []*acceptEvt
	for _, evt := range l.events.byDone {
		if len(evts) == maxOffers {
			break
		}
		if !evt.ended() {
			evts = append(evts, evt)
		}
	}
	if len(evts) == 0 {
		return
	}
	o := &offer{cancel: make(chan struct{}), taker: make(chan *acceptEvt, 1)}
	l.events.offer = o
	pending := l.events.pending
	go func() {
		o.taker <- o.send(pending, evts)
		if isClosed(o.cancel) {
			return // without mu, for which many goroutines may wait
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.events.offer == o { // it was not cancelled in the meantime
			l.sync()
		}
	}()
}

// cancelOffer ends the offer, if there is one, and records how it has ended. Afterwards
// pending is still there only if no receiver has it. mu is held.
func (l *Listener) cancelOffer() {
	o := l.events.offer
	if o == nil {
		return
	}
	l.events.offer = nil
	close(o.cancel)
	if taker := <-o.taker; taker != nil {
		l.delivered(taker)
	}
}

// send sends pending to one of the events, and returns it. It returns nil if it is
// cancelled, or the context of an event is done.
//
// Closing a Done channel takes the waiting goroutine out of its select before the cancel
// returns, so no later receive finds it there. A receive that begins after the cancel, while
// the goroutine is between its check of the context and its wait, may still get a connection,
// which its context closes at once.
func (o *offer) send(pending Accepted, evts []*acceptEvt) *acceptEvt {
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(o.cancel)}}
	for _, evt := range evts {
		cases = append(cases,
			reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(evt.ch), Send: reflect.ValueOf(pending)},
			reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(evt.done)})
	}
	if slices.ContainsFunc(evts, (*acceptEvt).ended) { // as late as possible
		return nil
	}
	if i, _, _ := reflect.Select(cases); i%2 == 1 { // the case of a send
		return evts[i/2]
	}
	return nil
}
