// Package retry decides how often goroutines try to get what they wait for, where no event
// reports when to try: a connection to a socket whose backlog is full.
//
// Invariant: for each name one of the goroutines that wait tries at a time, and the attempts
// for all names of a [Group] together use less than a fifth of one core, whatever an attempt
// costs. [Group.next] establishes it. The first attempt of a goroutine is its caller's.
//
// A goroutine in a bubble of testing/synctest may share no channel and no time with a
// goroutine outside. It tries on its own.
//
// No method of a caller's context runs during a turn, which is a lock.
package retry

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// The interval after a failed attempt for a name is on average at least share times the
	// cost of one attempt for every name.
	share = 8

	// A goroutine that begins a queue sleeps about minPause before its first attempt. One that
	// gets the turn tries at the time that comes with it. After each attempt it sleeps about
	// minPause, then twice as long each time, up to maxPause.
	minPause = 100 * time.Microsecond
	maxPause = 20 * time.Millisecond

	// The timer and the wakeup of an attempt cost up to overhead times as much processor
	// time as its system call takes, on Linux and on gVisor, but at most maxOverhead.
	overhead    = 30
	maxOverhead = 3 * time.Millisecond

	// From one attempt to the next, the cost grows to at most twice its value plus maxRise:
	// the process may have been stopped.
	maxRise = 3 * time.Millisecond
)

// A Group is a set of names that goroutines wait for.
type Group struct {
	retryOn error // the error of an attempt that is to be repeated

	mu     sync.Mutex
	queues map[string]*queue
	cost   time.Duration // the sum of the queues' costs
}

// New returns an empty Group, whose attempts are repeated while their error is retryOn.
func New(retryOn error) *Group {
	return &Group{retryOn: retryOn, queues: make(map[string]*queue)}
}

// A queue represents the goroutines that wait for one name.
type queue struct {
	// turn holds a token while none of them has its turn: the time of the next attempt.
	turn chan time.Time

	// The mutex of the Group guards these fields.
	waiters int
	urgent  bool          // the next attempt must come before the first one of any newcomer
	cost    time.Duration // of an attempt, as measured
}

// IsUrgent reports whether a goroutine waits for name whose turn has lasted for long. Then a
// caller of Do must not try before, or it may overtake that goroutine again and again.
func (g *Group) IsUrgent(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[name]
	return q != nil && q.urgent
}

// Do calls try until its result is not the error given to New, and returns that result, or
// ctx.Err() once ctx is done. The goroutines that wait for the same name take turns. One that
// is served passes its turn to another, which tries at once. Otherwise the intervals depend on
// how long the calls take.
//
// took is how long the caller's first attempt has taken, or another system call. It is 0 in a
// bubble, whose clock stands still during a system call.
func (g *Group) Do(ctx context.Context, name string, took time.Duration, try func() error) error {
	err := g.wait(ctx.Done(), name, took, try)
	if err == errDone {
		return cmp.Or(ctx.Err(), context.Canceled)
	}
	return err
}

var errDone = errors.New("the context is done")

// wait is Do, but returns errDone once done is closed.
func (g *Group) wait(done <-chan struct{}, name string, took time.Duration, try func() error) error {
	var q *queue // nil in a bubble
	isNew := true
	if took > 0 {
		q, isNew = g.join(name)
		defer g.leave(name, q)
	}
	var next time.Time
	if isNew {
		next = g.next(q, minPause, took, false)
	} else {
		select {
		case next = <-q.turn:
		case <-done:
			return errDone
		}
	}
	if q != nil {
		defer func() { q.turn <- next }()
	}
	began := time.Now()
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		select {
		case <-time.After(time.Until(next)):
		case <-done:
			return errDone
		}
		start := time.Now()
		if err := try(); err != g.retryOn {
			return err // next has passed, so the goroutine that gets the turn tries at once
		}
		next = g.next(q, pause, time.Since(start), time.Since(began) > maxPause)
	}
}

// join adds a waiter to the queue for name, which exists while it has any. If the queue is
// new, the caller has the turn.
func (g *Group) join(name string) (q *queue, isNew bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q = g.queues[name]
	if q == nil {
		q = &queue{turn: make(chan time.Time, 1)}
		g.queues[name] = q
	}
	q.waiters++
	return q, q.waiters == 1
}

func (g *Group) leave(name string, q *queue) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q.waiters--; q.waiters == 0 {
		g.cost -= q.cost
		delete(g.queues, name)
	}
}

// next returns the time of the next attempt for a name. The last one took a time, and the
// next one is urgent or not. q is nil in a bubble.
func (g *Group) next(q *queue, pause, took time.Duration, urgent bool) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q != nil {
		cost := min(took+min(overhead*took, maxOverhead), 2*q.cost+maxRise)
		g.cost += cost - q.cost
		q.cost = cost
		q.urgent = urgent
	}
	d := max(pause, share*g.cost)
	return time.Now().Add(d*7/8 + rand.N(d/4)) // so that processes do not try at the same moments
}
