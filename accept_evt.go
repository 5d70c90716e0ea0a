package unixsock

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// An Accepted is what a receive from [Listener.AcceptEvt]'s channel gives: a
// connection, or the error of accept(2).
type Accepted struct {
	Conn *Conn
	Err  error
}

// events is the part of a Listener that Ready and AcceptEvt need. Nothing of it
// is in use before the first call of either.
//
// Two things make the channels agree with the backlog: agree, which is called
// with mu held by whoever has looked at the backlog or changed it, and the
// watcher, a goroutine that is started with the first use and ends with Close,
// or when the last event has ended and Ready was never used. The watcher goes
// round in three states:
//
//	waiting    In the poller, or in the queue for it. It holds no offer.
//	settling   In the poller's callback, with mu. It accepts ahead, if there
//	           are events, and decides on an offer; if there is one, offering
//	           is set.
//	offering   It offers, in one select, readiness and the connection in hand
//	           to all who may receive. It needs no mutex until the offer has
//	           ended, so who holds mu can always end it, by withdraw.
//
// An offer ends in one of two ways: it is withdrawn, over retract, or else the
// watcher puts into outcome which event took what was in hand, nil if none did.
// Either way whoever sees the end first, with mu held, clears offering.
//
// That the readiness channel is buffered makes it exact for a select with a
// default, which sees a goroutine's offer only once that goroutine is parked.
// That the watcher keeps the buffer full makes it level-triggered.
type events struct {
	watched atomic.Bool    // there is a watcher; changed with mu held
	ready   chan *Listener // Ready's channel; nil before its first use
	evts    map[<-chan struct{}]*acceptEvt
	hand    Accepted // what is accepted ahead, a connection or an error
	// offering: the watcher offers, or is on its way to. While it is set, hand
	// may be gone already, and only withdraw tells.
	offering bool
	retract  chan struct{}
	outcome  chan *acceptEvt // of size 1
}

// readyTokens is how many receives a select with a default may make before the
// watcher must have run again. To put and to take back so many costs as much as
// a system call or two, so there are fewTokens where more would rarely serve:
// where the watcher is about to run, or somebody has waited and will accept.
const (
	readyTokens = 128
	fewTokens   = 4
)

// An offer is made to fewEvents by a select statement, to more by
// reflect.Select, and to offersMost at once: reflect.Select takes 65,536 cases,
// and its time grows with their number.
const (
	fewEvents  = 4
	offersMost = 1 << 8
)

// recheck is how old an offer may become that is not of a connection in hand:
// another process, which has the same listener, may take the connection, and
// an error of accept(2) may pass.
const recheck = 50 * time.Millisecond

// Ready returns the listener's readiness channel, always the same one. A receive
// from it gives the listener itself: it is the listener as a synchronizable
// event.
//
// While a connection waits to be accepted, every receive succeeds, for every
// goroutine, again and again; while none waits, none succeeds. A select with a
// default that asks for the channel anew,
//
//	select {
//	case <-l.Ready():
//	default:
//	}
//
// is exact: the call itself looks at the backlog, and provides for 128 receives
// from then on. (If others receive as often between the call and the select, it
// may find none for the moment.) A channel kept in a variable follows when an
// Accept, AcceptContext or Connect of this package in this process returns; news
// of a connect made elsewhere, and of a connection that came out of AcceptEvt's
// channel, comes as soon as a goroutine can run; if that was the channel of
// another Listener of the same socket, within 50 ms, as from another process. A
// kept channel that is polled many times in a row, 128 or (if others wait on it,
// too) 4, may lag in the same way.
//
// Readiness accepts nothing. Between a receive and an Accept another goroutine or
// process that accepts may take the connection, and the Accept then waits for the
// next. Where there are such, give AcceptContext a context that ends, or use
// [Listener.AcceptEvt].
//
// The first call starts a goroutine, which Close ends. Closing the listener closes
// the channel.
func (l *Listener) Ready() <-chan *Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ready == nil {
		l.ready = make(chan *Listener, readyTokens)
		if l.ended() {
			close(l.ready)
		} else {
			observed.add(l)
			l.watch()
		}
	}
	l.refresh(readyTokens, readyTokens)
	return l.ready
}

// AcceptEvt returns a channel from which a receive gives a connection already
// accepted, as synchronizing on unix-socket-accept-evt does. ctx is the
// connection's custodian, as the current custodian is in Racket: when it is
// done, the channel is closed, and so are the connections that came out of it.
// Nothing is delivered any more; a connection that nobody has received yet goes
// to the listener's other users. Asked for anew, the channel is closed as soon as
// ctx is done. (For one kept in a variable there is an exception, beyond a
// select's power: a receive that begins after the cancel, but while an offer is
// on its way, may rarely get a connection, which is closed at once.)
//
// The same ctx gives the same channel, so that a loop may call AcceptEvt anew in
// each select. At most one connection is accepted ahead of its receiver, and it
// hinders nobody: Ready reports it, and the next Accept, AcceptContext or
// receive of another event gets it.
//
// An error of accept(2), such as EMFILE, is delivered as an Accepted with Err,
// one each receive, and the event goes on. Closing the listener closes the
// channel, and the connection accepted ahead.
func (l *Listener) AcceptEvt(ctx context.Context) <-chan Accepted {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended() || ctx.Err() != nil {
		return overEvt
	}
	// The Done channel stands for ctx: it can always be a map's key, and
	// contexts that share it end together.
	done := ctx.Done()
	e := l.evts[done]
	if e == nil {
		e = &acceptEvt{ctx: ctx, done: done, ch: make(chan Accepted)}
		if done != nil {
			e.stop = context.AfterFunc(ctx, func() { l.endEvt(e) })
		}
		if l.evts == nil {
			l.evts = make(map[<-chan struct{}]*acceptEvt)
		}
		l.evts[done] = e
		l.watch()
	}
	return e.ch
}

// An acceptEvt is what AcceptEvt made for one context.
type acceptEvt struct {
	ctx  context.Context
	done <-chan struct{} // ctx's
	ch   chan Accepted   // unbuffered: what is sent has been received
	stop func() bool     // lets go of ctx; nil if it never ends
}

// over reports whether the context of e is done.
func (e *acceptEvt) over() bool { return e.ctx.Err() != nil }

// noEvt is an event that nothing can be sent to, and that never ends.
var noEvt = new(acceptEvt)

// overEvt is the channel of every event that is over before it began.
var overEvt = func() chan Accepted { c := make(chan Accepted); close(c); return c }()

// ended reports whether l is closed, or never was open. mu is held.
func (l *Listener) ended() bool { return l.closed || l.file == nil }

// watch starts the watcher, or makes it look at what has changed. mu is held.
func (l *Listener) watch() {
	switch {
	case !l.watched.Load():
		if l.retract == nil {
			l.retract = make(chan struct{})
			l.outcome = make(chan *acceptEvt, 1)
		}
		l.watched.Store(true)
		go (&watcher{l: l}).run()
	case l.offering:
		l.withdraw()
	default:
		l.kick()
	}
}

// endEvt closes the channel of e, whose context is done.
func (l *Listener) endEvt(e *acceptEvt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.evts[e.done] != e {
		return // Close was first
	}
	l.withdraw()
	delete(l.evts, e.done)
	close(e.ch)
	if len(l.evts) == 0 {
		l.hand.Err = nil // there is no one to tell it
		l.kick()         // there may be nothing to watch for
	}
}

// endEvents closes all channels and returns the connection in hand, or nil. mu
// is held, and closed is set.
func (l *Listener) endEvents() *Conn {
	l.withdraw()
	hand := l.hand.Conn
	l.hand = Accepted{}
	if l.ready != nil {
		observed.remove(l)
		l.drain()
		close(l.ready)
	}
	for _, e := range l.evts {
		if e.stop != nil {
			e.stop()
		}
		close(e.ch)
	}
	l.evts = nil
	return hand
}

// reclaim takes the connection in hand, or returns nil. An error in hand is
// dropped: it is asked for anew. mu is held.
func (l *Listener) reclaim() *Conn {
	if l.hand == (Accepted{}) {
		return nil
	}
	l.withdraw()
	c := l.hand.Conn
	l.hand = Accepted{}
	return c
}

// withdraw ends the offer, if there is one. mu is held. The watcher needs no mu
// to come here: it is in its select, or on its way to it or from it.
func (l *Listener) withdraw() {
	if !l.offering {
		return
	}
	var e *acceptEvt
	select {
	case l.retract <- struct{}{}:
	case e = <-l.outcome:
	}
	l.offering = false
	l.delivered(e)
}

// delivered records that what was in hand went to e; nil means that it did not.
// mu is held, and the watcher does not offer.
func (l *Listener) delivered(e *acceptEvt) {
	if e == nil {
		return
	}
	if c := l.hand.Conn; c != nil {
		c.CloseOn(e.ctx)
	}
	l.hand = Accepted{}
	l.refresh(fewTokens, fewTokens)
}

// refresh looks at the backlog for Ready's sake. mu is held.
func (l *Listener) refresh(tokens, fewer int) {
	if l.ready == nil || l.ended() {
		return
	}
	if l.hand.Conn != nil {
		l.withdraw() // an event may have taken it just now
	}
	l.raw.Control(func(fd uintptr) { l.agree(int(fd), tokens, fewer) })
}

// agree makes the readiness channel agree with the backlog and what is in hand.
// If the listener is ready, which it returns, the channel holds so many tokens
// at least, or fewer, where somebody who waited has taken one. mu is held.
func (l *Listener) agree(fd, tokens, fewer int) bool {
	if l.ready == nil {
		return false
	}
	if l.hand.Conn == nil && !readable(fd) {
		l.withdraw()
		l.drain()
		return false
	}
	// Those who wait take theirs at once, and it is not in the channel then.
	for range readyTokens {
		n := len(l.ready)
		if n >= tokens {
			break
		}
		select {
		case l.ready <- l:
		default:
		}
		if len(l.ready) <= n {
			tokens = min(tokens, fewer)
		}
	}
	return true
}

// drain takes back the readiness that nobody has received. mu is held, and the
// watcher does not offer.
func (l *Listener) drain() {
	for {
		select {
		case <-l.ready:
		default:
			return
		}
	}
}

// A watcher waits for connections and offers them.
type watcher struct {
	l *Listener

	// The offer, written in settle.
	offering bool
	ready    chan *Listener // nil if readiness is not offered
	hand     Accepted
	to       []*acceptEvt // who may have what is in hand
	part     bool         // and there are more

	quit bool // there is nothing left to watch for

	recheck *time.Timer // reused from offer to offer
}

func (w *watcher) run() {
	l := w.l
	for l.await(context.Background(), nil, w.settle) == nil && !w.quit {
		if !w.offering {
			continue
		}
		w.offer()
		l.mu.Lock()
		if l.offering {
			l.offering = false
			l.delivered(<-l.outcome)
		}
		l.mu.Unlock()
	}
}

// settle is the poller's callback: it accepts ahead and decides on an offer. It
// returns true if there is one, or if others should have their turn.
func (w *watcher) settle(fd uintptr) bool {
	l := w.l
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(w.to[:cap(w.to)]) // what has ended must not be held
	w.offering, w.ready, w.to = false, nil, w.to[:0]
	if l.closed {
		return true
	}
	if l.ready == nil && len(l.evts) == 0 {
		// To stay would be to keep the turn from an Accept.
		w.quit = true
		l.watched.Store(false)
		return true
	}
	l.hand.Err = nil // what nobody received is asked for anew
	for _, e := range l.evts {
		if !e.over() {
			w.to = append(w.to, e)
		}
	}
	if len(w.to) > 0 && l.hand == (Accepted{}) {
		if c, err := l.acceptOne(int(fd)); err != errWouldBlock {
			if l.hand.Conn = c; err != nil {
				l.hand.Err = l.opError("accept", err)
			} else {
				_, _ = c.file.open() // there is time until it is received; as in accept
			}
		}
	}
	if l.hand != (Accepted{}) && w.serve() {
		return true // nothing to offer yet: look again
	}
	if w.part = len(w.to) > offersMost; w.part {
		w.to = w.to[:offersMost] // for now; the map's order is random
	}
	if l.agree(int(fd), fewTokens, fewTokens) {
		w.ready = l.ready
	}
	w.hand = l.hand
	if w.hand == (Accepted{}) {
		w.to = w.to[:0]
	}
	w.offering = w.ready != nil || len(w.to) > 0
	l.offering = w.offering
	return w.offering
}

// serve gives what is in hand to one who waits for it already. l.mu is held.
func (w *watcher) serve() bool {
	for _, e := range w.to {
		if e.over() {
			continue // since settle looked
		}
		select {
		case e.ch <- w.l.hand:
			w.l.delivered(e)
			return true
		default:
		}
	}
	return false
}

// offer offers until the offer is withdrawn, or ends otherwise and its outcome
// is told.
//
// That the contexts of the events are among the cases keeps their promise: the
// close of a Done channel takes the parked watcher out of its select before the
// cancel returns, so that no later receive can find it there. What no select
// can rule out is a receive that begins after the cancel returned, while the
// watcher is between its look at the context and the locks of its select: there
// it finds both ready, and a select has no preference. (To name Done many times
// makes the way to the locks longer, and gains nothing.) For a few events that
// way is shorter than the receiver's, so that it takes an interrupt in between.
// Such a connection is closed, by its context.
func (w *watcher) offer() {
	w.fill()
	var over <-chan time.Time
	if w.hand.Conn == nil || w.part {
		if w.recheck == nil {
			w.recheck = time.NewTimer(recheck)
		} else {
			w.recheck.Reset(recheck)
		}
		defer w.recheck.Stop()
		over = w.recheck.C
	}
	offer := w.offerFew
	if len(w.to) > fewEvents {
		offer = w.offerMany
	}
	if taker, retracted := offer(over); !retracted {
		w.l.outcome <- taker
	}
}

// offerFew is offer's select for no more than fewEvents. It reaches its locks
// much sooner than reflect's, which allocates.
func (w *watcher) offerFew(over <-chan time.Time) (taker *acceptEvt, retracted bool) {
	var to [fewEvents]*acceptEvt
	for i := range to {
		to[i] = noEvt
	}
	copy(to[:], w.to)
	for !slices.ContainsFunc(w.to, (*acceptEvt).over) {
		select {
		case w.ready <- w.l:
			w.fill()
		case to[0].ch <- w.hand:
			return to[0], false
		case to[1].ch <- w.hand:
			return to[1], false
		case to[2].ch <- w.hand:
			return to[2], false
		case to[3].ch <- w.hand:
			return to[3], false
		case <-to[0].done:
			return nil, false
		case <-to[1].done:
			return nil, false
		case <-to[2].done:
			return nil, false
		case <-to[3].done:
			return nil, false
		case <-over:
			return nil, false
		case <-w.l.retract:
			return nil, true
		}
	}
	return nil, false
}

// offerMany is offer's select for any number of events.
func (w *watcher) offerMany(over <-chan time.Time) (taker *acceptEvt, retracted bool) {
	const (
		retract = iota
		recheck
		ready
		first // of those of the events
	)
	cases := []reflect.SelectCase{
		retract: {Dir: reflect.SelectRecv, Chan: reflect.ValueOf(w.l.retract)},
		recheck: {Dir: reflect.SelectRecv, Chan: reflect.ValueOf(over)},
		ready:   {Dir: reflect.SelectSend, Chan: reflect.ValueOf(w.ready), Send: reflect.ValueOf(w.l)},
	}
	for _, e := range w.to {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(e.ch), Send: reflect.ValueOf(w.hand)})
	}
	for _, e := range w.to {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(e.done)})
	}
	for !slices.ContainsFunc(w.to, (*acceptEvt).over) {
		switch i, _, _ := reflect.Select(cases); {
		case i == retract:
			return nil, true
		case i == ready:
			w.fill()
		case i >= first && i < first+len(w.to):
			return w.to[i-first], false
		default: // time to look again, or a context is done
			return nil, false
		}
	}
	return nil, false
}

// fill fills the readiness channel, as far as those who empty it let it: it
// must come to an end.
func (w *watcher) fill() {
	for range readyTokens {
		select {
		case w.ready <- w.l:
		default:
			return
		}
	}
}

// observed are the listeners of this process that have been asked for Ready, so
// that a Connect, or an Accept of another that has the same socket, can bring
// them up to date before it returns: a channel kept in a variable is exact then
// too.
var observed listenerSet

type listenerSet struct {
	count  atomic.Int32
	mu     sync.Mutex
	byName map[string][]*Listener
}

func (s *listenerSet) add(l *Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName == nil {
		s.byName = make(map[string][]*Listener)
	}
	s.byName[l.name] = append(s.byName[l.name], l)
	s.count.Add(1)
}

func (s *listenerSet) remove(l *Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := slices.DeleteFunc(s.byName[l.name], func(other *Listener) bool { return other == l })
	if s.byName[l.name] = rest; len(rest) == 0 {
		delete(s.byName, l.name)
	}
	s.count.Add(-1)
}

// connected tells the listener that fd has connected to, by name, if it is among
// them.
func (s *listenerSet) connected(fd int, name string) {
	if s.count.Load() == 0 {
		return
	}
	// The file of that name may be a link, or have been another listener's.
	if own, err := getpeername(fd); err == nil {
		name = own
	}
	s.refresh(name, nil)
}

// accepted tells the others that have the socket of l.
func (s *listenerSet) accepted(l *Listener) {
	if s.count.Load() > 0 {
		s.refresh(l.name, l)
	}
}

// refresh brings all listeners called name up to date, except one.
func (s *listenerSet) refresh(name string, except *Listener) {
	s.mu.Lock()
	called := slices.Clone(s.byName[name])
	s.mu.Unlock()
	for _, l := range called {
		if l != except {
			l.mu.Lock()
			l.refresh(readyTokens, fewTokens)
			l.mu.Unlock()
		}
	}
}
