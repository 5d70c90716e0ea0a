// Package retry decides how often goroutines try to get what they wait for, where no event
// reports when to try: a connection to a socket whose backlog is full.
//
// Invariant: the attempts of all goroutines of a [Group] together use less than a fifth of
// one core, whatever an attempt costs. While that limit applies, each name has the same number
// of attempts, however many goroutines wait for it. [Group.interval] establishes it.
//
// Goroutines that wait share counts and durations, but no channel and no time, so some of
// them may be inside and others outside of a bubble of testing/synctest. For the same
// reason none can wake another: each sleeps until it tries itself.
package retry

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// Between two attempts for a name is at least share times the cost of one attempt for
	// every name.
	share = 8

	// A goroutine sleeps about minPause after its first attempt, and twice as long after
	// each further one, up to maxPause, and perWaiter longer for each other goroutine that
	// waits for the name.
	minPause  = 100 * time.Microsecond
	maxPause  = 20 * time.Millisecond
	perWaiter = time.Millisecond

	// The timer and the wakeup of an attempt cost up to overhead times as much processor
	// time as its system call takes, on Linux and on gVisor, but at most maxOverhead.
	overhead    = 30
	maxOverhead = 3 * time.Millisecond

	// A measured cost at most doubles and grows by maxRise, because the process may have been
	// stopped, and falls by half at most.
	maxRise = 4 * time.Millisecond
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

// A queue represents the goroutines that wait for one name. The mutex of its Group guards
// it.
type queue struct {
	waiters int
	cost    time.Duration // of an attempt, as measured
}

// Do calls try until its result is not the error given to New, and returns that result, or
// ctx.Err() once ctx is done. It calls try at once, and then at intervals that depend on how
// long the calls take and on how many goroutines wait. Goroutines that wait for the same
// thing use the same name.
func (g *Group) Do(ctx context.Context, name string, try func() error) error {
	q := g.add(name, 1)
	defer g.add(name, -1)
	for attempt := 0; ; attempt++ {
		start := time.Now()
		if err := try(); err != g.retryOn {
			return err
		}
		select {
		case <-time.After(g.interval(q, attempt, time.Since(start))):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// add adds waiters to the queue for name, which exists while it has any.
func (g *Group) add(name string, waiters int) *queue {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[name]
	if q == nil {
		q = new(queue)
		g.queues[name] = q
	}
	q.waiters += waiters
	if q.waiters == 0 {
		g.cost -= q.cost
		delete(g.queues, name)
	}
	return q
}

// interval returns how long a goroutine of q sleeps after one of its attempts, which are
// counted from 0. Goroutines that begin to wait try in turn. Later the range is wide, so that
// those that have tried at the same moment, for example because the process was stopped, do
// not do so again.
func (g *Group) interval(q *queue, attempt int, took time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if took > 0 { // it is 0 in a bubble
		g.cost -= q.cost
		cost := min(took+min(overhead*took, maxOverhead), 2*q.cost+maxRise)
		q.cost = max(cost, q.cost/2)
		g.cost += q.cost
	}
	n := time.Duration(q.waiters)
	pause := min(minPause<<min(attempt, 20), maxPause+(n-1)*perWaiter)
	each := max(pause/n, share*g.cost) // between two attempts of the n goroutines
	if attempt == 0 {
		return 2*n*each + rand.N(each+1) // twice as long, because more may begin
	}
	return each + rand.N(2*(n-1)*each+each/8+1)
}
