package pending

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// A gate holds one call of a caller's function.
type gate struct {
	at      int32 // the call that is held, from 1
	calls   atomic.Int32
	release chan struct{}
}

func (g *gate) held() bool { return g.calls.Load() >= g.at }

func (g *gate) enter() {
	if g.calls.Add(1) == g.at {
		<-g.release
	}
}

// othersGetOn checks that no lock is held while g holds a call.
func (f *fixture) othersGetOn(g *gate) {
	f.Helper()
	if !f.q.mu.TryLock() {
		f.Fatalf("%q: mu is held in call %d of the caller's code, want free", f.script, g.at)
	}
	f.q.mu.Unlock()
	for _, step := range []string{"deadline 1h", "connect 3", "accept other", "event other", "receive receiver other"} {
		f.do(strings.Fields(step))
		synctest.Wait()
	}
	other, receiver := f.do([]string{"other"}), f.do([]string{"receiver"})
	f.do([]string{"close"})
	f.do([]string{"accept", "last"})
	synctest.Wait()
	last := f.do([]string{"last"})
	if other == "waits" || receiver == "waits" || last != "closed" {
		f.Fatalf("%q, then held in call %d of the caller's code: Accept, a receiver, Accept after Close: got %s, %s, %s; want none to wait",
			f.script, g.at, other, receiver, last)
	}
}

// Each run holds another call of a method of the context c, and of no other.
func TestNoMethodOfAContextRunsWithALock(t *testing.T) {
	for _, script := range []string{"accept a c; cancel c", "accept a c; ready; cancel c", "accept a c; close", "ready; accept a c; cancel c",
		"accept a c; connect", "cancel c; accept a c", "event c; cancel c", "event c; event c; close", "cancel c; event c", "event c; connect; drain leave",
		"event c; receive r c; connect; close; release 1", "event c; receive r c; connect; release 1; cancel c"} {
		for _, delegates := range []bool{false, true} {
			g := new(gate)
			for g.held() {
				g = &gate{at: g.at + 1}
				bubble(t, func(f *fixture) {
					g.release = make(chan struct{})
					f.context("c").enter, f.context("c").delegates = g.enter, delegates
					for step := range strings.SplitSeq(script, "; ") {
						f.script = append(f.script, step)
						go f.do(strings.Fields(step))
						if synctest.Wait(); g.held() {
							f.othersGetOn(g)
							break
						}
					}
					f.context("c").cancel()
					close(g.release)
					synctest.Wait()
				})
			}
			if g.at < 2 {
				t.Errorf("%q: got %d calls of methods of the context, want some", script, g.at-1)
			}
		}
	}
}
