package retry

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errFull = errors.New("full")

// A server is what the goroutines of a test wait for. In virtual time only the system call
// takes time, but the timer and the wakeup before it are counted, too.
type server struct {
	took time.Duration

	mu      sync.Mutex
	room    int           // how many attempts succeed
	used    time.Duration // processor time of the attempts that failed
	tries   int
	disturb time.Duration // how much longer the next attempt takes
}

func (s *server) try() error {
	s.mu.Lock()
	s.tries++
	took := s.took + s.disturb
	s.disturb = 0
	s.mu.Unlock()
	time.Sleep(took)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room > 0 {
		s.room--
		return nil
	}
	s.used += s.took + min(overhead*s.took, maxOverhead)
	return errFull
}

// set changes a field.
func set[T any](s *server, field *T, value T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*field = value
}

// get returns a field.
func get[T any](s *server, field *T) T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *field
}

// wait starts goroutines that wait for a server, and returns a channel of their errors.
func wait(g *Group, ctx context.Context, name string, s *server, goroutines int) <-chan error {
	errs := make(chan error, goroutines)
	for range goroutines {
		go func() { errs <- g.Do(ctx, name, s.took, s.try) }()
	}
	return errs
}

func TestAttemptsUseLessThanAFifthOfACore(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
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
			synctest.Test(t, func(t *testing.T) {
				g := New(errFull)
				ctx, cancel := context.WithCancel(t.Context())
				var servers []*server
				for i := range test.names {
					s := &server{took: test.took}
					if i == 0 {
						s.took = test.first
					}
					servers = append(servers, s)
					wait(g, ctx, fmt.Sprint(i), s, test.waiters)
				}
				used := func() (sum time.Duration) {
					for _, s := range servers {
						sum += get(s, &s.used)
					}
					return sum
				}
				for _, period := range []time.Duration{2 * time.Second, 20 * time.Second} {
					before := used()
					time.Sleep(period)
					if got := used() - before; got > period/5 {
						t.Errorf("processor time of failed attempts in %v: got %v, want at most a fifth", period, got)
					}
				}
				end(cancel)
			})
		})
	}
}

// end cancels the context of goroutines and lets their last attempts end.
func end(cancel func()) {
	cancel()
	time.Sleep(time.Minute)
}

// delay returns how long after there is room an attempt succeeds.
func delay(t *testing.T, s *server, errs <-chan error) time.Duration {
	t.Helper()
	set(s, &s.room, 1)
	start := time.Now()
	if err := <-errs; err != nil {
		t.Errorf("Do, once there is room: got %v, want no error", err)
	}
	return time.Since(start)
}

func TestRoomIsFoundWithin100ms(t *testing.T) {
	for _, test := range []struct{ names, waiters int }{{1, 1}, {1, 2}, {1, 10}, {1, 300}, {10, 10}, {80, 1}} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			for round := range 3 {
				synctest.Test(t, func(t *testing.T) {
					g := New(errFull)
					ctx, cancel := context.WithCancel(t.Context())
					s := &server{took: 4 * time.Microsecond}
					errs := wait(g, ctx, "with room", s, test.waiters)
					for i := range test.names - 1 {
						wait(g, ctx, fmt.Sprint(i), &server{took: s.took}, test.waiters)
					}
					time.Sleep(time.Second + time.Duration(round)*7*time.Millisecond)
					if d := delay(t, s, errs); d > 100*time.Millisecond {
						t.Errorf("time from room to an attempt that succeeds: got %v, want at most 100 ms", d)
					}
					end(cancel)
				})
			}
		})
	}
}

func TestDisturbedAttemptDelaysNoOther(t *testing.T) {
	for _, tries := range []int{0, 1, 5} {
		t.Run(fmt.Sprint("after ", tries), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := New(errFull)
				s := &server{took: 4 * time.Microsecond}
				if tries == 0 {
					s.disturb = 10 * time.Second
				}
				errs := wait(g, t.Context(), "name", s, 1)
				for get(s, &s.tries) < tries {
					time.Sleep(time.Microsecond)
				}
				if tries > 0 {
					set(s, &s.disturb, 10*time.Second)
				}
				time.Sleep(11 * time.Second)
				if d := delay(t, s, errs); d > 100*time.Millisecond {
					t.Errorf("time from room to an attempt that succeeds, after one of 10 s: got %v, want at most 100 ms", d)
				}
			})
		})
	}
}

func TestGoroutinesAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const goroutines = 300
		g := New(errFull)
		s := &server{took: 4 * time.Microsecond}
		served := make(chan int, goroutines)
		for i := range goroutines {
			go func() {
				if err := g.Do(t.Context(), "name", s.took, s.try); err != nil {
					t.Errorf("Do: got %v, want no error", err)
				}
				served <- i
			}()
			time.Sleep(time.Millisecond)
		}
		set(s, &s.room, goroutines)
		start := time.Now()
		for i := range goroutines {
			if got := <-served; got != i {
				t.Fatalf("goroutine served as number %d: got %d, want the one that has waited longest", i, got)
			}
		}
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Errorf("time to serve %d goroutines, once there is room: got %v, want at most 50 ms", goroutines, d)
		}
	})
}

func TestTurnPassesAfterOthersHaveGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(errFull)
		s := &server{took: 4 * time.Microsecond}
		ctx, cancel := context.WithCancel(t.Context())
		wait(g, ctx, "name", s, 1000)
		time.Sleep(time.Second)
		errs := wait(g, t.Context(), "name", s, 1)
		time.Sleep(time.Second)
		cancel()
		if d := delay(t, s, errs); d > 100*time.Millisecond {
			t.Errorf("time from room to an attempt that succeeds, after 1000 others have given up: got %v, want at most 100 ms", d)
		}
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(errFull)
		ctx, cancel := context.WithCancel(t.Context())
		s := &server{took: time.Microsecond}
		errs := wait(g, ctx, "name", s, 3)
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		for range 3 {
			select {
			case err := <-errs:
				if err != context.Canceled {
					t.Errorf("Do whose context is canceled: got %v, want Canceled", err)
				}
			default:
				t.Fatal("Do whose context is canceled: got no return, want Canceled")
			}
		}
		if len(g.queues) != 0 || g.cost != 0 {
			t.Errorf("Group after the last Do: got %d queues and a cost of %v, want none", len(g.queues), g.cost)
		}
	})
}

// Waiters with the same timeout give up one after the other, in their turns.
func TestGivingUpInTurnCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(errFull)
		s := &server{took: 100 * time.Microsecond}
		const goroutines = 1000
		for range goroutines {
			ctx, cancel := context.WithTimeout(t.Context(), goroutines*time.Millisecond)
			defer cancel()
			wait(g, ctx, "name", s, 1)
			time.Sleep(time.Millisecond)
		}
		before := get(s, &s.used)
		time.Sleep(goroutines * time.Millisecond)
		if got := get(s, &s.used) - before; got > goroutines*time.Millisecond/5 {
			t.Errorf("processor time of attempts while %d goroutines give up in %d ms: got %v, want at most a fifth", goroutines, goroutines, got)
		}
		time.Sleep(time.Minute)
	})
}

func TestLongTurnIsUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(errFull)
		s := &server{took: 4 * time.Microsecond}
		errs := wait(g, t.Context(), "name", s, 2)
		for _, step := range []struct {
			after  time.Duration
			urgent bool
		}{{time.Millisecond, false}, {100 * time.Millisecond, true}} {
			time.Sleep(step.after)
			if got := g.IsUrgent("name"); got != step.urgent || g.IsUrgent("other") {
				t.Errorf("IsUrgent after a wait of about %v: got %t, want %t, and false for another name", step.after, got, step.urgent)
			}
		}
		delay(t, s, errs)
		time.Sleep(time.Millisecond)
		if g.IsUrgent("name") {
			t.Error("IsUrgent after an attempt in the turn of the next goroutine: got true, want false")
		}
		delay(t, s, errs)
		if g.IsUrgent("name") {
			t.Error("IsUrgent while no goroutine waits: got true, want false")
		}
	})
}

func TestContextRunsWithoutALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(errFull)
		s := &server{took: time.Microsecond}
		cancelable, cancel := context.WithCancel(t.Context())
		ctx := &slowContext{Context: cancelable, g: g, release: make(chan struct{})}
		first := wait(g, ctx, "name", s, 1)
		time.Sleep(time.Second)
		second := wait(g, t.Context(), "name", s, 1)
		time.Sleep(time.Second)
		cancel() // the method Err of the first one's context does not return
		if d := delay(t, s, second); d > 100*time.Millisecond {
			t.Errorf("time from room to an attempt that succeeds, while the context of another call is busy: got %v, want at most 100 ms", d)
		}
		close(ctx.release)
		if err := <-first; err != context.Canceled {
			t.Errorf("Do whose context is canceled: got %v, want Canceled", err)
		}
		if done := ctx.done.Load(); done != 1 || ctx.locked.Load() {
			t.Errorf("calls of Done: got %d, and one with the lock held: %t; want 1 before the turn, and no lock", done, ctx.locked.Load())
		}
	})
}

// A slowContext is a context whose method Err waits.
type slowContext struct {
	context.Context
	g       *Group
	release chan struct{}
	done    atomic.Int32
	locked  atomic.Bool
}

func (c *slowContext) Done() <-chan struct{} {
	c.done.Add(1)
	if c.g.mu.TryLock() {
		c.g.mu.Unlock()
	} else {
		c.locked.Store(true)
	}
	return c.Context.Done()
}

func (c *slowContext) Err() error {
	<-c.release
	return c.Context.Err()
}

func TestContextThatIsDoneWithoutAnErrorIsNoSuccess(t *testing.T) {
	done := make(chan struct{})
	close(done)
	ctx := doneContext{context.Background(), done}
	if err := New(errFull).Do(ctx, "name", 0, func() error { return errFull }); err != context.Canceled {
		t.Errorf("Do whose context is done, and has no error: got %v, want Canceled", err)
	}
}

type doneContext struct {
	context.Context
	done chan struct{}
}

func (c doneContext) Done() <-chan struct{} { return c.done }

func TestBubbleAndAGoroutineOutsideWaitForOneName(t *testing.T) {
	g := New(errFull)
	outside := make(chan error, 1)
	tried, room := make(chan bool, 1), make(chan bool)
	go func() {
		outside <- g.Do(context.Background(), "name", time.Microsecond, func() error {
			select {
			case tried <- true:
			default:
			}
			select {
			case <-room:
				return nil
			default:
				return errFull
			}
		})
	}()
	<-tried
	synctest.Test(t, func(t *testing.T) {
		s := new(server) // no time passes during an attempt
		errs := wait(g, t.Context(), "name", s, 2)
		wait(g, t.Context(), "other", s, 1)
		time.Sleep(time.Second)
		g.mu.Lock()
		if n := len(g.queues); n != 1 {
			t.Errorf("queues while goroutines wait in a bubble and one outside: got %d, want that of the one outside", n)
		}
		g.mu.Unlock()
		set(s, &s.room, 3)
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Errorf("Do in a bubble: got %v, want no error", err)
			}
		}
	})
	close(room)
	if err := <-outside; err != nil {
		t.Errorf("Do outside of the bubble: got %v, want no error", err)
	}
}
