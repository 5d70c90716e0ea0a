// Package pending decides which connections of a listening socket are pending, and which
// receiver gets each. It makes no system call: its [Source] does.
//
// A connection is pending if it is in the backlog, or ahead: accepted before its receiver
// is known. A [Queue] reports pending connections on a channel, and hands each of them to
// one receiver, which is an Accept, a TryAccept or a receive from an event.
//
// Until the first call of Ready, Event or Drain, a queue only accepts: one Accept waits in
// the source, and the others wait for their turn. From then on the queue is watched: one
// goroutine, the watcher, waits in the source, and sync establishes this invariant:
//
//   - While a connection is pending, ready is full, and wake holds a token unless an Accept
//     has just taken it. If there are events, or the queue drains, one connection is ahead,
//     and it is on offer to the events.
//   - While none is pending, ready and wake are empty, and nothing is on offer. A queue that
//     drains is closed.
//
// sync is called with mu held whenever the invariant may be broken: at each arrival, after
// every accept, when an event begins or an offer ends, and at each tick, because receives
// empty ready and another process may accept. It never blocks.
//
// No method of a caller's context runs while a lock is held: not Done, Err, Value or
// AfterFunc, and not the stop function of [context.AfterFunc], which calls Done and Value.
// Locks, in this rule, are mu and the turn to wait in the source, and the callback of a Wait
// counts as one. A Done channel may be received from at any time.
package pending

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Source is a listening socket. A Queue calls Accept and State with its mutex held, and
// never after it is closed.
type Source[E any] interface {
	// Accept accepts a connection. It does not wait. It returns ErrNone if none is pending.
	// On another error, the result is what an event delivers for it.
	Accept() (E, error)

	// State returns the state of the backlog.
	State() State

	// Wait calls arrived at once, after each arrival of a connection, after a shutdown of
	// the socket, and after each Interrupt, until arrived returns true. It returns an error
	// if the socket is closed.
	Wait(arrived func() bool) error

	// Interrupt makes the Wait in progress, or else the next one, call arrived. It may be called
	// at any time, also after the socket is closed.
	Interrupt()
}

// ErrNone is the error of an accept if no connection is pending.
var ErrNone = errors.New("no connection is pending")

// A State is the state of a backlog.
type State int

const (
	Empty    State = iota // no connection is in the backlog
	Readable              // a connection is in the backlog
	ShutDown              // no more connections arrive, and only an accept can tell whether one is there
)

// Hooks are functions that a Queue calls with its mutex held. They must not call the Queue.
type Hooks[E any] struct {
	// Delivered is called when an event has delivered the connection e, which uses c until
	// c.Release is called.
	Delivered func(e E, c *Custody)

	// Ended is called when the queue has closed itself.
	Ended func()
}

// A Queue is the state of one listening socket. L is the type of the value that Ready
// yields, and E is what an event yields: a connection, or the error of an accept.
type Queue[L, E any] struct {
	listener L
	source   Source[E]
	hooks    Hooks[E]

	// turn holds a token while a goroutine waits in the source. The watcher never gives it
	// back.
	turn          chan struct{}
	inTurn        waiter[E]   // of the Accept whose turn it is
	arrivedInTurn func() bool // acceptInTurn

	watching atomic.Bool
	wake     chan struct{} // of size 1: a token wakes one Accept
	done     chan struct{} // closed, with mu held, when the queue is

	mu       sync.Mutex // guards the fields below, and every accept
	ahead    ahead[E]
	ready    chan L // nil before the first call of Ready or Close
	events   map[<-chan struct{}]*event[E]
	offer    *offer[E] // of what is ahead; nil if there is none
	draining bool      // the queue closes once nothing is pending
	refusing bool      // the queue accepts nothing more

	ticker  *time.Timer // of the next tick; nil before the queue is watched
	tick    time.Duration
	ticking bool

	deadline time.Time     // of Accept; zero: none
	expired  chan struct{} // closed when the deadline passes
	expiry   *time.Timer   // nil before the first deadline
}

// A waiter is an Accept that waits in the source.
type waiter[E any] struct {
	over, expired <-chan struct{}
	e             E
	err           error
}

// ahead is what has been accepted before its receiver is known.
type ahead[E any] struct {
	what content
	e    E
}

type content int

const (
	nothing content = iota
	connection
	failure // an error, while a connection stays in the backlog
)

const (
	// readyTokens is the number of receives that a channel kept in a variable serves
	// between two calls of sync, in addition to those of goroutines that already wait.
	readyTokens = 8

	// maxServed bounds the receivers that one call of sync serves, so that it ends even
	// if they receive again at once. The next tick serves the others.
	maxServed = 1 << 10

	// The interval of the ticks. Ticks are needed while a connection is pending: another
	// process may accept it, and receives empty ready. The interval is maxTick, and shorter
	// while ready is in use.
	minTick = 1 * time.Millisecond
	maxTick = 40 * time.Millisecond
)

// New returns a Queue for source, whose Ready yields listener.
func New[L, E any](listener L, source Source[E], hooks Hooks[E]) *Queue[L, E] {
	q := &Queue[L, E]{
		listener: listener,
		source:   source,
		hooks:    hooks,
		turn:     make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		events:   make(map[<-chan struct{}]*event[E]),
		expired:  make(chan struct{}),
		tick:     maxTick,
	}
	q.arrivedInTurn = q.acceptInTurn // a method value allocates
	return q
}

// Accept waits for a connection and returns it. It returns an error when the queue is
// closed, the deadline passes or ctx is done. If that is so already, it accepts nothing.
func (q *Queue[L, E]) Accept(ctx context.Context) (E, error) {
	over := ctx.Done()
	if over != nil && !q.watching.Load() {
		// Registered before the turn, and released after it: both call methods of ctx.
		stop := context.AfterFunc(ctx, q.source.Interrupt)
		defer stop()
	}
	q.mu.Lock()
	expired := q.expired
	q.mu.Unlock()
	for {
		var none E
		switch {
		case isClosed(q.done):
			return none, net.ErrClosed
		case isClosed(expired):
			return none, os.ErrDeadlineExceeded
		case isClosed(over):
			return none, cmp.Or(ctx.Err(), context.Canceled)
		}
		if e, err := q.acceptOrWait(over, expired); err != ErrNone {
			return e, err
		}
	}
}

// acceptOrWait accepts a connection. If none is pending, it waits for a reason to look
// again, and returns ErrNone.
func (q *Queue[L, E]) acceptOrWait(over, expired <-chan struct{}) (none E, err error) {
	turn := q.turn
	if q.watching.Load() {
		if e, err := q.TryAccept(); err != ErrNone {
			return e, err
		}
		turn = nil // it is the watcher's
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
		return q.waitInTurn(over, expired)
	case <-q.wake:
		// Before anything else is looked at: with the token, another wakeup would be lost.
		return q.TryAccept()
	case <-over:
	case <-expired:
	case <-q.done:
	}
	return none, ErrNone
}

// waitInTurn waits in the source until it has accepted a connection. It returns ErrNone if
// there is a reason to look again.
func (q *Queue[L, E]) waitInTurn(over, expired <-chan struct{}) (E, error) {
	q.inTurn = waiter[E]{over: over, expired: expired, err: ErrNone}
	err := q.source.Wait(q.arrivedInTurn)
	w := q.inTurn
	q.inTurn = waiter[E]{}
	return w.e, cmp.Or(err, w.err)
}

// acceptInTurn is the callback of an Accept that waits in the source. An interrupt may be
// meant for the Accept whose turn it was before.
func (q *Queue[L, E]) acceptInTurn() bool {
	w := &q.inTurn
	if q.watching.Load() || isClosed(w.over) || isClosed(w.expired) {
		return true
	}
	w.e, w.err = q.TryAccept()
	return w.err != ErrNone
}

// TryAccept returns the connection that is ahead, or accepts one. It returns ErrNone if none
// is pending.
func (q *Queue[L, E]) TryAccept() (e E, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if isClosed(q.done) {
		return e, net.ErrClosed
	}
	q.cancelOffer()
	if q.ahead.what == connection {
		e, q.ahead = q.ahead.e, ahead[E]{}
	} else if e, err = q.accept(); err == ErrNone && q.draining {
		q.end()
	}
	q.sync()
	if err == ErrNone && isClosed(q.done) {
		err = net.ErrClosed
	}
	return e, err
}

// accept accepts a connection from the source. If none is pending, it notices whether the
// socket is shut down, and the queue drains then. mu is held.
func (q *Queue[L, E]) accept() (e E, err error) {
	if q.refusing {
		return e, ErrNone
	}
	e, err = q.source.Accept()
	if err == ErrNone && !q.draining && q.source.State() == ShutDown {
		q.draining = true
		e, err = q.source.Accept() // one may have come just before the shutdown
	}
	return e, err
}

// Ready returns the channel that yields the listener while a connection is pending. It is
// always the same one. Closing the queue closes it.
func (q *Queue[L, E]) Ready() <-chan L {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ready == nil {
		q.ready = make(chan L, readyTokens)
		q.watch()
	}
	q.sync()
	return q.ready
}

// Sync makes the channels agree with the backlog, which the caller may have changed.
func (q *Queue[L, E]) Sync() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sync()
}

// Drain closes the queue once no connection is pending. If the connections in the backlog
// are left to others, only the one that is ahead is pending. Drain reports whether the queue
// is closed now.
func (q *Queue[L, E]) Drain(leaveBacklog bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
	q.refusing = q.refusing || leaveBacklog
	q.watch()
	q.sync()
	return isClosed(q.done)
}

// Close closes the queue, and returns the connection that was ahead. ok is false if there
// was none.
func (q *Queue[L, E]) Close() (e E, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if isClosed(q.done) {
		return e, false
	}
	q.cancelOffer()
	e, ok = q.ahead.e, q.ahead.what == connection
	q.close()
	return e, ok
}

// end closes the queue because nothing is pending and nothing will be. mu is held.
func (q *Queue[L, E]) end() {
	q.close()
	q.hooks.Ended()
}

// close closes the channels and wakes all goroutines that wait. mu is held, and there is no
// offer.
func (q *Queue[L, E]) close() {
	close(q.done)
	q.ahead = ahead[E]{}
	if q.ready == nil {
		q.ready = make(chan L)
	}
	q.fill(false)
	close(q.ready)
	for _, evt := range q.events {
		q.finish(evt)
	}
	q.events = nil
	if q.ticker != nil {
		q.ticker.Stop()
	}
	if q.expiry != nil {
		q.expiry.Stop()
	}
	q.source.Interrupt()
}

// SetDeadline sets the deadline of Accept. The zero time means no deadline.
func (q *Queue[L, E]) SetDeadline(t time.Time) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if isClosed(q.done) {
		return net.ErrClosed
	}
	if q.expiry != nil {
		q.expiry.Stop()
	}
	if isClosed(q.expired) {
		q.expired = make(chan struct{})
	}
	q.deadline = t
	if !t.IsZero() {
		left := time.Until(t)
		q.deadline = time.Now().Add(left) // a change of the wall clock has no effect on it
		q.expiry = time.AfterFunc(left, q.onDeadline)
		q.expire()
	}
	return nil
}

func (q *Queue[L, E]) onDeadline() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.expire()
}

// expire ends the Accepts that wait if the deadline has passed. It may have been moved
// since the timer was started. mu is held.
func (q *Queue[L, E]) expire() {
	if q.deadline.IsZero() || time.Now().Before(q.deadline) || isClosed(q.expired) {
		return
	}
	close(q.expired)
	q.source.Interrupt()
}

// watch starts the watcher if there is none. mu is held.
func (q *Queue[L, E]) watch() {
	if isClosed(q.done) || q.watching.Swap(true) {
		return
	}
	q.ticker = time.AfterFunc(maxTick, q.onTick)
	q.ticker.Stop()
	q.source.Interrupt() // an Accept that waits there
	go func() {
		q.turn <- struct{}{}
		_ = q.source.Wait(q.arrived) // it fails if the socket is closed
	}()
}

func (q *Queue[L, E]) arrived() bool {
	q.Sync()
	return isClosed(q.done)
}

// sync establishes the invariant of the package. mu is held.
func (q *Queue[L, E]) sync() {
	if isClosed(q.done) || !q.watching.Load() {
		return
	}
	q.cancelOffer()
	pending := q.lookAhead()
	if q.draining && !pending {
		q.end()
		return
	}
	if q.ahead.what != nothing {
		q.startOffer()
	}
	q.fill(pending)
	if pending && !q.ticking {
		q.ticking = true
		q.ticker.Reset(q.tick)
	}
}

// lookAhead reports whether a connection is pending. For events, and in a drain, it accepts
// connections ahead until no receiver waits for the last one. mu is held, and there is no
// offer.
func (q *Queue[L, E]) lookAhead() bool {
	if q.ahead.what == failure {
		q.ahead = ahead[E]{} // it may have passed
	}
	if q.ahead.what == nothing && len(q.events) == 0 && !q.draining {
		if state := q.source.State(); state != ShutDown {
			return state == Readable
		}
	}
	for range maxServed {
		if q.ahead.what == nothing && !q.acceptAhead() {
			return false
		}
		if !q.deliver() {
			break
		}
	}
	return true
}

// acceptAhead accepts a connection ahead. It returns false if none is pending. An error
// means that one is. mu is held.
func (q *Queue[L, E]) acceptAhead() bool {
	e, err := q.accept()
	switch err {
	case nil:
		q.ahead = ahead[E]{connection, e}
	case ErrNone:
		return false
	default:
		q.ahead = ahead[E]{failure, e}
	}
	return true
}

// fill fills ready and wake, or empties them. mu is held.
func (q *Queue[L, E]) fill(pending bool) {
	fill, empty := q.ready, q.ready
	wake, sleep := q.wake, q.wake
	if pending {
		empty, sleep = nil, nil // block forever, so select ignores them
	} else {
		fill, wake = nil, nil
	}
	select {
	case wake <- struct{}{}:
	case <-sleep:
	default:
	}
	for range maxServed {
		select {
		case fill <- q.listener:
		case <-empty:
		default:
			return
		}
	}
}

func (q *Queue[L, E]) onTick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ticking = false
	q.tick = min(2*q.tick, maxTick)
	if len(q.ready) < cap(q.ready) {
		q.tick = minTick // receives have emptied it
	}
	q.sync()
	if !q.ticking {
		q.tick = maxTick // nothing is pending
	}
}

// isClosed reports whether c, on which nothing is ever sent, is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
