// Package retry decides how often goroutines try to get what they wait for, where no event
// reports when to try: a connection to a socket whose backlog is full.
//
// Invariant: one goroutine tries at a time for each name, and the attempts for all names of a
// [Group] together use less than a fifth of one core, whatever an attempt costs.
// [Group.interval] establishes it.
//
// A goroutine in a bubble of testing/synctest may share no channel and no time with a
// goroutine outside. It tries on its own.
package retry

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// Between two attempts for a name is on average at least share times the cost of one
	// attempt for every name.
	share = 8

	// In its turn a goroutine sleeps about minPause after an attempt, and twice as long after
	// each further one, up to maxPause.
	minPause = 100 * time.Microsecond
	maxPause = 20 * time.Millisecond

	// The timer and the wakeup of an attempt cost up to overhead times as much processor
	// time as its system call takes, on Linux and on gVisor, but at most maxOverhead.
	overhead    = 30
	maxOverhead = 3 * time.Millisecond

	// A measured cost at most doubles and grows by maxRise, because the process may have been
	// stopped.
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
	turn chan struct{} // holds a token while one of them tries

	// The mutex of the Group guards these fields.
	waiters int
	cost    time.Duration // of an attempt, as measured
}

// Do calls try until its result is not the error given to New, and returns that result, or
// ctx.Err() once ctx is done. It calls try at once. Then the goroutines that wait for the same
// name take turns: each calls try when the turn passes to it, and at intervals that depend on
// how long the calls take.
func (g *Group) Do(ctx context.Context, name string, try func() error) error {
	start := time.Now()
	if err := try(); err != g.retryOn {
		return err
	}
	took := time.Since(start)
	if took == 0 { // in a bubble, whose clock stands still during a system call
		return g.repeat(ctx, new(queue), minPause, took, try)
	}
	q := g.add(name, 1)
	defer g.add(name, -1)
	pause := minPause
	select {
	case q.turn <- struct{}{}:
	default:
		pause = 0 // after the wait
		select {
		case q.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { <-q.turn }()
	return g.repeat(ctx, q, pause, took, try)
}

// repeat calls try as Do does, during a turn. It sleeps before it calls try for the first
// time if pause is not 0. The last attempt for q took a time, which is 0 in a bubble.
func (g *Group) repeat(ctx context.Context, q *queue, pause, took time.Duration, try func() error) error {
	for ; ; pause = max(minPause, min(2*pause, maxPause)) {
		if d := max(pause, g.interval(q, took)); pause > 0 {
			select {
			case <-time.After(d*3/4 + rand.N(d/2)): // so that processes do not try at the same moments
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		start := time.Now()
		if err := try(); err != g.retryOn {
			return err
		}
		took = time.Since(start)
	}
}

// add adds waiters to the queue for name, which exists while it has any.
func (g *Group) add(name string, waiters int) *queue {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[name]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		g.queues[name] = q
	}
	q.waiters += waiters
	if q.waiters == 0 {
		g.cost -= q.cost
		delete(g.queues, name)
	}
	return q
}

// interval returns the shortest average time between two attempts for a name, given how long
// the last one for q took.
func (g *Group) interval(q *queue, took time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if took > 0 {
		cost := min(took+min(overhead*took, maxOverhead), 2*q.cost+maxRise)
		g.cost += cost - q.cost
		q.cost = cost
	}
	return share * g.cost
}
