package pending

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
)

func TestEventGivesConnectionsToItsReceivers(t *testing.T) {
	scripts(t,
		"event e; event f; event g; receive 10 e; receive 10 f; receive 10 g; connect 31; waiting = 0; try = 31",
		"event e; event f; connect 3; take e = 1; take f = 2; take e = 3; take e = nothing; receive r e; r = waits; connect; r = 4",
		"connect 2; event e; take e = 1; accept a; a = 2; event f; connect; take f = 3",
		"event e; reports 1s; connect; poll = ready; take e = 1; connect; event f; take f = 2",
		"event e; connect 2; take e = 1 & try = 2; connect; take e = 3 & close = nothing; left = 0")
}

func TestContextsWithOneDoneChannelShareAnEvent(t *testing.T) {
	bubble(t, func(f *fixture) {
		f.run("event e")
		c := f.context("e")
		var calls atomic.Int32
		c.enter = func() { calls.Add(1) }
		type key struct{}
		if same := f.q.Event(context.WithValue(c, key{}, 1)) == f.events["e"]; !same || c.registered.Load() != 1 || calls.Load() != 1 {
			t.Errorf("Event with a derived context: same channel %t, %d callbacks on the context, %d calls of it; want true, 1, 1", same, c.registered.Load(), calls.Load())
		}
		if ch := f.q.Event(context.Background()); ch != f.q.Event(context.TODO()) || ch == f.events["e"] {
			t.Error("Event with two contexts that never end: got two channels or that of another context, want one of their own")
		}
		f.run("connect; take e = 1")
	})
}

func TestOneConnectionIsAheadAndBlocksNobody(t *testing.T) {
	for _, next := range []string{"accept a; a = 1", "try = 1", "take f = 1", "receive r g; r = 1", "close = 1", "poll = ready; try = 1",
		"cancel e; accept a; a = 1", "cancel e & cancel f & cancel g; try = 1; try = none", "cancel e & cancel f & event h; receive r h; r = 1",
		"cancel e & receive r g; r = 1", "cancel e & close = 1", "drain leave; accept a; a = 1", "deadline 1ms; sleep 1s; take e = 1"} {
		scripts(t, "event e; event f; event g; connect 3; left = 2; elsewhere; elsewhere;"+next)
	}
	scripts(t, "accept a; event e; event f; connect; a = 1", "accept a; event e; receive r e; connect 2; a = 1|2; r = 1|2; try = none")
}

// Nothing stays on the context once its event is over and the connections are released.
func TestCustodyOfAConnectionEndsWithTheContext(t *testing.T) {
	scripts(t,
		"event e; event f; receive r e; connect; custody 1 = done false; connect; take f = 2; cancel f; custody 1 = done false; custody 2 = done true; cancel e; custody 1 = done true",
		"event e; receive r e; connect; left-on e = 1; close; left-on e = 1; custody 1 = done false; release 1; left-on e = 0",
		"event e; receive 2 e; connect 2; release 1; left-on e = 1; close; left-on e = 1; release 2; left-on e = 0",
		"event e; receive r e; connect; close; cancel e; custody 1 = done true; left-on e = 0",
		"event e; receive r e; connect; release 1; left-on e = 1; connect; take e = 2", "event e; close; left-on e = 0", "event e; drain; left-on e = 0")
	bubble(t, func(f *fixture) {
		f.run("event e; fail; connect; take e = full; pass; tick; take e = 1; connect 2; try = 2; accept a; a = 3")
		if c := f.delivered[1]; len(f.delivered) != 1 || c == nil || c.Value("key") != f.context("e") {
			t.Errorf("%q: got custodies %v, want one, of connection 1, whose values are those of its context", f.script, f.delivered)
		}
	})
}

func TestEndOfItsContextClosesAnEvent(t *testing.T) {
	scripts(t,
		"event e; receive r e; cancel e; r = over; take e = over; event e; take e = over; connect; try = 1",
		"event e; event f; connect; cancel e; take e = over; take f = 1; connect; take e = over; try = 2",
		"event e; connect; cancel e; connect; take e = over; poll = ready; event f; take f = 1; take f = 2",
		"cancel e; event e; take e = over; connect; left = 1",
		"event e; cancel e; event f; receive r f; connect; r = 1")
}

func TestNothingIsDeliveredOnceTheContextIsDone(t *testing.T) {
	scripts(t,
		"late e; event e; cancel e; receive r e; connect; r = waits; try = 1; connect; event e; take e = over; r = waits; callbacks e; r = over",
		"late e; event e; connect; cancel e; receive r e; r = waits; callbacks e; r = over; try = 1",
		"late e; event e; event f; cancel e; receive r e; connect; r = waits; take f = 1; callbacks e; r = over",
		"late e; event e; event f; connect; cancel e; receive r e; r = waits; take f = 1; callbacks e; r = over",
		"late e; event e; event f; connect; cancel e & receive s f; receive r e; callbacks e; r = over; s = 1",
		"late e; event e; connect; cancel e; close = 1; callbacks e; take e = over",
		"late e; event e; fail; connect; cancel e; callbacks e; pass; tick; try = 1")
	bubble(t, func(f *fixture) { // the context ends just before the offer waits
		f.run("late e; event e; cancel e; receive r e")
		o := offer[accepted]{events: []*event[accepted]{f.q.events[f.context("e").Context.Done()]}}
		for range 50 {
			if o.send(accepted{}) != nil {
				t.Fatal("offer to a receiver that waits on an event whose context is done: got a delivery, want none")
			}
		}
		f.run("callbacks e")
	})
}

func TestEndOfAnEventCancelsTheOfferOnlyIfItIsOnOffer(t *testing.T) {
	bubble(t, func(f *fixture) {
		f.run("late e; event e; event f; cancel e; connect")
		offer := f.offered()
		f.run("callbacks e")
		if f.offered() != offer {
			t.Errorf("%q: got another offer, want the same one", f.script)
		}
		f.q.endEvent(f.q.events[f.context("f").Context.Done()]) // before the offer has seen the end
		f.run("take f = over; try = 1")
	})
}

func (f *fixture) offered() *offer[accepted] {
	f.q.mu.Lock()
	defer f.q.mu.Unlock()
	return f.q.offer
}

// While Event derives its context, the same one begins an event, ends, or the queue is closed.
func TestEventThatBeginsTwiceOrTooLate(t *testing.T) {
	for during, want := range map[string]string{"event e": "nothing", "cancel e": "over", "close": "over"} {
		bubble(t, func(f *fixture) {
			c, calls := f.context("e"), atomic.Int32{}
			c.enter = func() {
				if calls.Add(1) == 2 {
					f.run(during)
				}
			}
			ch := f.q.Event(c)
			if kept := f.events["e"]; kept != nil && kept != ch {
				t.Error("Event that began twice: got two channels, want one")
			}
			f.events["e"] = ch
			f.run("sync; left-on e = " + map[string]string{"nothing": "1", "over": "0"}[want] + "; take e = " + want + "; close; cancel e; take e = over")
		})
	}
}

// An offer or a receiver that waits gets one error, also if it has passed by then.
func TestErrorIsDeliveredOncePerReceive(t *testing.T) {
	scripts(t,
		"event e; event f; receive r e; fail; connect 2; r = full; take e = full; take f = full; poll = ready; pass; take e = full; take e = 1; take f = 2",
		"event e; fail; connect; try = full; pass; try = 1; fail; connect; pass; tick; take e = 2",
		"event e; fail; connect; cancel e; pass; try = 1", "event e; fail; connect; close = nothing; pass",
		"event e; fail; connect; elsewhere; tick; take e = nothing; poll = nothing", "event e; fail; connect; drain leave; take e = over; pass")
}

func TestMoreEventsThanAnOfferTakesAreServed(t *testing.T) {
	bubble(t, func(f *fixture) {
		for i := range maxOffers + 50 {
			f.run(fmt.Sprint("event e", i))
		}
		for f.run("event e"); f.last < 20; { // to a receiver that waits at once
			f.run("receive r e; connect; r = some")
		}
		f.run("connect")
		if n := len(f.offered().events); n != maxOffers {
			t.Errorf("offer with %d events: got %d, want %d", maxOffers+51, n, maxOffers)
		}
		for range 20 {
			f.run("receive r e; tick; r = some; connect")
		}
	})
}

func TestAnyNumberOfReceiversIsServed(t *testing.T) {
	bubble(t, func(f *fixture) {
		f.stale = true // until the tick
		f.run(fmt.Sprintf("ready; event e; receive %[1]d e & connect %[1]d; tick; tick; waiting = 0; kept = nothing", maxServed+100))
	})
}
