package retry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const us, ms = time.Microsecond, time.Millisecond

var errFull = errors.New("full")

// A server is what the goroutines of a test wait for. In virtual time only the system call
// takes time, but the timer and the wakeup before it are counted, too.
type server struct {
	took    time.Duration
	room    atomic.Int64 // how many attempts succeed
	tries   atomic.Int64
	used    atomic.Int64 // processor time of the attempts that failed
	disturb atomic.Int64 // how much longer the next attempt takes
}

func (s *server) try() error {
	s.tries.Add(1)
	time.Sleep(s.took + time.Duration(s.disturb.Swap(0)))
	if s.room.Add(-1) >= 0 {
		return nil
	}
	s.room.Add(1)
	s.used.Add(int64(s.took + min(overhead*s.took, maxOverhead)))
	return errFull
}

// wait starts goroutines that wait for a server, and returns a channel of their errors.
func wait(g *Group, ctx context.Context, name string, s *server, goroutines int) <-chan error {
	errs := make(chan error, goroutines)
	for range goroutines {
		go func() { errs <- g.Do(ctx, name, s.took, s.try) }()
	}
	return errs
}

// inBubble runs a test with a Group and a server in virtual time. At its end it cancels the
// context and lets the last attempts end.
func inBubble(t *testing.T, took time.Duration, test func(t *testing.T, ctx context.Context, g *Group, s *server)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		test(t, ctx, New(errFull), &server{took: took})
		cancel()
		time.Sleep(time.Minute)
	})
}

// expectFound makes room for one goroutine, and expects an attempt to succeed within 100 ms.
func expectFound(t *testing.T, s *server, errs <-chan error) {
	t.Helper()
	start := time.Now()
	s.room.Add(1)
	if err, d := <-errs, time.Since(start); err != nil || d > 100*ms {
		t.Errorf("Do, once there is room: got %v after %v, want nil within 100 ms", err, d)
	}
}

// expectUsed expects that attempts use less than a fifth of a core in a period.
func expectUsed(t *testing.T, period time.Duration, servers ...*server) {
	t.Helper()
	for _, s := range servers {
		s.used.Store(0)
	}
	time.Sleep(period)
	var used time.Duration
	for _, s := range servers {
		used += time.Duration(s.used.Load())
	}
	if used > period/5 {
		t.Errorf("processor time of failed attempts in %v: got %v, want at most a fifth", period, used)
	}
}

func TestAttemptsUseLessThanAFifthOfACore(t *testing.T) {
	for _, test := range []struct {
		names, waiters int
		took, first    time.Duration // of an attempt; first is that of the first name
	}{
		{1, 1, us, us},
		{1, 200, 4 * us, 4 * us},
		{10, 20, 4 * us, 4 * us},
		{300, 1, 4 * us, 4 * us},
		{100, 1, 4 * us, 20 * ms},
		{1, 200, 100 * us, 100 * us},
		{200, 1, 100 * us, 100 * us},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			inBubble(t, test.first, func(t *testing.T, ctx context.Context, g *Group, s *server) {
				servers := []*server{s}
				for len(servers) < test.names {
					servers = append(servers, &server{took: test.took})
				}
				for i, s := range servers {
					wait(g, ctx, fmt.Sprint(i), s, test.waiters)
				}
				expectUsed(t, 2*time.Second, servers...)
				expectUsed(t, 20*time.Second, servers...)
			})
		})
	}
}

func TestRoomIsFoundWithin100ms(t *testing.T) {
	for _, test := range []struct{ names, waiters int }{{1, 1}, {1, 2}, {1, 10}, {1, 300}, {10, 10}, {80, 1}} {
		for round := range 3 {
			t.Run(fmt.Sprint(test, round), func(t *testing.T) {
				inBubble(t, 4*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
					errs := wait(g, ctx, "with room", s, test.waiters)
					for i := range test.names - 1 {
						wait(g, ctx, fmt.Sprint(i), &server{took: s.took}, test.waiters)
					}
					time.Sleep(time.Second + time.Duration(round)*7*ms)
					expectFound(t, s, errs)
				})
			})
		}
	}
}

// The process may be stopped during an attempt.
func TestDisturbedAttemptDelaysNoOther(t *testing.T) {
	for _, tries := range []int64{0, 1, 5} {
		t.Run(fmt.Sprint("after ", tries), func(t *testing.T) {
			inBubble(t, 4*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
				var errs <-chan error
				if tries > 0 {
					errs = wait(g, ctx, "name", s, 1)
				}
				for s.tries.Load() < tries {
					time.Sleep(us)
				}
				s.disturb.Store(int64(10 * time.Second))
				if tries == 0 {
					errs = wait(g, ctx, "name", s, 1)
				}
				time.Sleep(11 * time.Second)
				expectFound(t, s, errs)
			})
		})
	}
}

// Each passes its turn on at once.
func TestGoroutinesAreServedInTurn(t *testing.T) {
	inBubble(t, 4*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
		const goroutines = 300
		served := make(chan int, goroutines)
		for i := range goroutines {
			go func() {
				_ = g.Do(ctx, "name", s.took, s.try)
				served <- i
			}()
			time.Sleep(ms)
		}
		s.room.Store(goroutines)
		time.Sleep(50 * ms)
		if len(served) != goroutines {
			t.Errorf("goroutines served 50 ms after there is room for %d: got %d", goroutines, len(served))
		}
		for i := range len(served) {
			if got := <-served; got != i {
				t.Fatalf("goroutine served as number %d: got %d, want the one that has waited longest", i, got)
			}
		}
	})
}

func TestDoEndsWithItsContextAndPassesTheTurn(t *testing.T) {
	inBubble(t, 4*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
		var cancels [2]func()
		var errs [2]<-chan error
		for i := range 2 { // one that has the turn, then a thousand that wait for it
			ctx, cancel := context.WithCancel(ctx)
			cancels[i], errs[i] = cancel, wait(g, ctx, "name", s, 1+999*i)
			time.Sleep(time.Second)
		}
		last := wait(g, ctx, "name", s, 1)
		time.Sleep(time.Second)
		for _, i := range []int{1, 0} {
			cancels[i]()
			synctest.Wait()
			if got := len(errs[i]); got != cap(errs[i]) {
				t.Fatalf("Dos whose context is canceled: got %d returns, want %d", got, cap(errs[i]))
			}
			for range cap(errs[i]) {
				if err := <-errs[i]; err != context.Canceled {
					t.Fatalf("Do whose context is canceled: got %v, want Canceled", err)
				}
			}
		}
		expectFound(t, s, last)
		if len(g.queues) != 0 || g.cost != 0 {
			t.Errorf("Group after the last Do: got %d queues and a cost of %v, want none", len(g.queues), g.cost)
		}
	})
}

// Waiters with the same timeout give up one after the other, in their turns.
func TestGivingUpInTurnCostsLittle(t *testing.T) {
	inBubble(t, 100*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
		const goroutines = 1000
		for range goroutines {
			ctx, cancel := context.WithTimeout(ctx, goroutines*ms)
			defer cancel()
			wait(g, ctx, "name", s, 1)
			time.Sleep(ms)
		}
		expectUsed(t, goroutines*ms, s)
	})
}

func TestLongTurnIsUrgent(t *testing.T) {
	inBubble(t, 4*us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
		errs := wait(g, ctx, "name", s, 2)
		expectUrgent := func(when string, want bool) {
			t.Helper()
			if got := g.IsUrgent("name"); got != want || g.IsUrgent("other") {
				t.Errorf("IsUrgent %s: got %t, want %t, and false for another name", when, got, want)
			}
		}
		time.Sleep(ms)
		expectUrgent("after a short wait", false)
		time.Sleep(100 * ms)
		expectUrgent("after a long wait", true)
		expectFound(t, s, errs)
		time.Sleep(ms)
		expectUrgent("after an attempt in the turn of the next goroutine", false)
		expectFound(t, s, errs)
		expectUrgent("while no goroutine waits", false)
	})
}

// A hookContext has methods of its own.
type hookContext struct {
	context.Context
	done func() <-chan struct{}
	err  func() error
}

func (c hookContext) Done() <-chan struct{} { return c.done() }
func (c hookContext) Err() error            { return c.err() }

func TestContextRunsWithoutALock(t *testing.T) {
	inBubble(t, us, func(t *testing.T, ctx context.Context, g *Group, s *server) {
		canceled, cancel := context.WithCancel(ctx)
		release := make(chan bool)
		var calls, locked atomic.Int64
		first := wait(g, hookContext{canceled, func() <-chan struct{} {
			calls.Add(1)
			if g.mu.TryLock() {
				g.mu.Unlock()
			} else {
				locked.Add(1)
			}
			return canceled.Done()
		}, func() error {
			<-release
			return canceled.Err()
		}}, "name", s, 1)
		time.Sleep(time.Second)
		second := wait(g, ctx, "name", s, 1)
		time.Sleep(time.Second)
		cancel() // the method Err of the first one's context does not return
		expectFound(t, s, second)
		close(release)
		if err := <-first; err != context.Canceled {
			t.Errorf("Do whose context is canceled: got %v, want Canceled", err)
		}
		if calls.Load() != 1 || locked.Load() != 0 {
			t.Errorf("calls of Done: got %d, %d with the lock held; want 1 before the turn, 0", calls.Load(), locked.Load())
		}
	})
}

func TestContextThatIsDoneWithoutAnErrorIsNoSuccess(t *testing.T) {
	done := make(chan struct{})
	close(done)
	ctx := hookContext{context.Background(), func() <-chan struct{} { return done }, func() error { return nil }}
	if err := New(errFull).Do(ctx, "name", 0, func() error { return errFull }); err != context.Canceled {
		t.Errorf("Do whose context is done, and has no error: got %v, want Canceled", err)
	}
}
