package pending

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcceptTakesConnectionsInTheirOrder(t *testing.T) {
	scripts(t,
		"connect 3; accept a; a = 1; accept b; b = 2; try = 3; accept c; c = waits; connect; c = 4",
		"ready; connect 3; accept a; a = 1; accept b; b = 2; try = 3; accept c; c = waits; connect; c = 4",
		"ready; reports 1s; connect; accept a; a = 1")
	everywhere(t, "accept 20; connect 5; connect 18; waiting = 0|1")
}

func TestQueueThatOnlyAcceptsIsNotWatched(t *testing.T) {
	bubble(t, func(f *fixture) {
		f.run("accept a; connect; a = 1; connect; accept b; b = 2; try = none")
		waits, accepts, states := f.waits.Load(), f.accepts.Load(), f.states.Load()
		if waits != 2 || accepts != 4 || states > 2 || f.q.watching.Load() || f.q.ticker != nil || f.q.inTurn != (waiter[accepted]{}) {
			t.Errorf("%q: got watcher %t, %d waits, %d accepts, %d calls of State, and kept %v; want false, 2, 4, at most 2, nothing", f.script,
				f.q.watching.Load(), waits, accepts, states, f.q.inTurn)
		}
	})
}

func TestAcceptThatMayNotWaitAcceptsNothing(t *testing.T) {
	everywhere(t, "connect 3; cancel c; accept a c; a = cancelled; deadline 0s; accept b; b = expired; try = some; try = some")
	everywhere(t, "connect 3; deadline -1s & accept a; a = expired; deadline 0s; close; cancel c; accept b c; b = closed")
}

func TestContextEndsItsAcceptOnly(t *testing.T) {
	everywhere(t, `timeout 1s; accept a c; accept b t; accept d; cancel c; a = cancelled; b = waits; d = waits
		sleep 1s; b = timeout; d = waits; connect 2; d = some`)
	scripts(t, "ready; accept a c; left-on c = 0") // a wake token needs no callback
}

func TestLateInterruptEndsNoOtherAccept(t *testing.T) {
	scripts(t, "interrupts 1s; accept a c; accept 2; cancel c; a = waits; connect; a = cancelled; waiting = 1; sleep 2s; waiting = 1; connect; waiting = 0")
}

// The source forgets an interrupt that comes before it begins to wait, and calls arrived.
func TestInterruptBeforeTheWaitIsNotLost(t *testing.T) {
	for interrupt, want := range map[string]string{
		"cancel c": "cancelled", "deadline 0s": "expired", "close": "closed", "drain": "closed", "ready & connect": "1", "event e & connect": "1",
	} {
		bubble(t, func(f *fixture) {
			f.onWait = func() {
				for step := range strings.SplitSeq(interrupt, " & ") {
					f.do(strings.Fields(step))
				}
				time.Sleep(time.Nanosecond) // until the interrupt has come
			}
			f.run("accept a c & sleep 1ms; a = " + want)
		})
	}
}

// An Accept takes the token that wakes it while its context ends. If it looked at its context
// first, nothing would wake the other Accept.
func TestAcceptThatIsWokenAndCancelledTakesTheConnection(t *testing.T) {
	for range 10 {
		scripts(t, "ready; accept a c; accept b; reports 1s; connect & sync & cancel c; left = 0; connect & sync; b = some")
	}
}

func TestDeadlineEndsEveryAcceptAndMayBeMoved(t *testing.T) {
	everywhere(t, `deadline 1s; accept a; accept b c; sleep 999ms; a = waits; sleep 1ms; a = expired; b = expired
		connect 2; accept d; d = expired; deadline; accept e; e = some`)
	everywhere(t, `accept a; deadline 1s; deadline 3s; sleep 2s; a = waits; deadline; sleep 2s; a = waits; deadline 1h & deadline -1h; a = expired
		deadline 1s; accept b; b = waits; sleep 1s; b = expired; deadline; accept c; sleep 1h; c = waits; deadline 2s; deadline 1s; sleep 1s; c = expired`)
	scripts(t, "deadline 0s; event e; receive r e; connect 3; r = 1; poll = ready; try = 2; take e = 3")
}

// The timer may fire while the deadline is moved.
func TestTimerOfAnEarlierDeadlineHasNoEffect(t *testing.T) {
	for _, deadline := range []string{"deadline", "deadline 1h"} {
		bubble(t, func(f *fixture) {
			f.run("accept a; deadline 1s")
			timer := f.q.expiry
			if f.run(deadline); timer.Stop() {
				t.Errorf("%q: the timer of the earlier deadline runs, want it stopped", f.script)
			}
			f.run("sleep 2s")
			f.q.onDeadline()
			f.run("sync; a = waits; deadline 1s; sleep 1s; a = expired")
			f.q.onDeadline()
		})
	}
}

func TestCloseWakesEveryoneAndStopsTheTimers(t *testing.T) {
	everywhere(t, `accept a; accept b c; deadline 1s; close = nothing; a = closed; b = closed; sync; drain; deadline 1s = closed; try = closed; accept d; d = closed
		poll = over; event e; take e = over; close = nothing; sleep 1h; ended = 0`)
	scripts(t, "ready; event e; receive 5 e; await 5; receive r e; await w; close; r = over; w = over; waiting = 0; take e = over; kept = over",
		"event e; connect 2; event f; close = 1; take e = over; poll = over; left = 1", "ready; connect 2; close = nothing; kept = over; left = 2")
	bubble(t, func(f *fixture) {
		f.run("ready; event e; connect 3; deadline 1s; accept a; close")
		if f.q.ticker.Stop() || f.q.expiry.Stop() {
			t.Error("closed queue: got a timer that runs, want none")
		}
	})
}

func TestCloseOfTheQueueOrOfTheSourceEndsEveryWait(t *testing.T) {
	for i, begin := range []string{"accept a", "accept a", "ready; accept a", "drain leave; accept a"} {
		bubble(t, func(f *fixture) {
			f.run(begin)
			if i == 0 {
				f.change(func() { f.closed = true })
			} else {
				f.q.Close()
			}
			synctest.Wait()
			if f.run("a = closed"); !f.reading.TryLock() {
				t.Errorf("%q, close: a goroutine waits in the source, want none", f.script)
			}
		})
	}
}

func TestErrorOfAnAcceptIsReturnedAndTheConnectionStays(t *testing.T) {
	everywhere(t, "accept a; fail; connect 2; a = full; try = full; left = 2; pass; tick; try = 1; try = 2")
}

func TestReadyYieldsTheListenerWhileAConnectionIsPending(t *testing.T) {
	scripts(t, "ready; await 50; connect; waiting = 0; poll = ready; poll = ready; kept = ready; tick; kept = ready; await 100; sleep 1s; waiting = 0",
		"ready; kept = nothing; connect; kept = ready; try = 1; kept = nothing; poll = nothing; await w; w = waits; connect; w = ready",
		"connect; poll = ready; accept a; kept = nothing; poll = nothing",
		"connect 2; poll = ready; elsewhere; poll = ready; tick; kept = ready; left = 1",
		"ready; connect; elsewhere; poll = nothing; connect; kept = ready; elsewhere; try = none; kept = nothing",
		"ready; connect; sleep 1s; kept = ready; elsewhere; tick; kept = nothing; await w; tick; w = waits; connect; w = ready",
		"ready; connect; elsewhere; sync; kept = nothing",
		"connect 2; poll = ready; poll = ready; sleep 1s; left = 2", // accepts nothing
		"ready; reports 1s; connect; kept = nothing; poll = ready; elsewhere; poll = nothing; sleep 2s; kept = nothing; connect; kept = nothing; sleep 1s; kept = ready")
}

func TestKeptReadyServesManyReceives(t *testing.T) {
	bubble(t, func(f *fixture) {
		f.run("ready; connect; sleep 1s")
		start := time.Now()
		for range 1000 {
			<-f.kept
		}
		if d := time.Since(start); d < 100*time.Millisecond || d > 250*time.Millisecond {
			t.Errorf("1000 receives from a kept channel: took %v, want 100 to 250ms, because ticks refill it", d)
		}
	})
}

// Two minutes of virtual time have 3,000 ticks of 40 ms.
func TestNothingSpins(t *testing.T) {
	for _, c := range []struct {
		begin, then string
		calls       int32 // of the source, at most
	}{
		{"ready; accept 100", "connect", 3}, {"ready; event e; accept 100", "connect", 3}, {"ready; event e", "sleep 2m", 0},
		{"fail; ready; connect 2", "sleep 2m", 3100}, {"fail; event e; connect 2", "sleep 2m", 3100}, {"fail; ready; event e; connect", "sleep 2m", 3100},
		{"fail; ready; connect; drain", "sleep 2m", 3100}, {"ready; event e; connect", "sleep 2m", 3100}, {"connect; drain", "sleep 2m", 0},
		{"ready; connect; kept; tick; kept; tick", "sleep 2m", 3100}, // after receives, ticks become rare again
		{"ready; connect", "sleep 30ms", 0}, {"ready; connect; kept; tick; kept; tick; try; tick; connect", "sleep 30ms", 0},
	} {
		bubble(t, func(f *fixture) {
			f.run(c.begin)
			before := f.accepts.Load() + f.states.Load()
			f.run(c.then)
			if n := f.accepts.Load() + f.states.Load() - before; n > c.calls {
				t.Errorf("%q: got %d calls of Accept and State during the last step, want at most %d", f.script, n, c.calls)
			}
		})
	}
}
