package pending

import (
	"context"
	"reflect"
	"slices"
	"sync/atomic"
)

// A connection is offered to at most maxOffers events at once: the time that
// reflect.Select takes grows with their number, and it has a limit.
const maxOffers = 1 << 8

// An event is what Event returned for one context.
type event[E any] struct {
	custody *Custody
	over    <-chan struct{} // the Done channel of the caller's context
	ch      chan E          // unbuffered: what is sent has been received
}

// A Custody is the context of an event. It is done when the context of Event's caller is, but
// its own methods are those of package context, so they may be called with a lock held. The
// event and each connection that it has delivered use it. It leaves nothing behind on the
// caller's context once the last of them has released it.
type Custody struct {
	context.Context
	users  atomic.Int32
	cancel context.CancelFunc
}

// Release ends one use of the custody.
func (c *Custody) Release() {
	if c.users.Add(-1) == 0 {
		go c.cancel() // calls methods of the caller's context
	}
}

// Event returns the channel that yields connections until ctx is done or the queue is
// closed. It returns the same channel for every context with the same Done channel.
func (q *Queue[L, E]) Event(ctx context.Context) <-chan E {
	over := ctx.Done()
	if ch := q.channelOf(over, nil); ch != nil {
		return ch
	}
	evt := &event[E]{custody: new(Custody), over: over, ch: make(chan E)}
	evt.custody.users.Add(1)
	evt.custody.Context, evt.custody.cancel = context.WithCancel(ctx)
	context.AfterFunc(evt.custody, func() { q.endEvent(evt) })
	ch := q.channelOf(over, evt)
	if ch != evt.ch {
		evt.custody.Release()
	}
	return ch
}

// channelOf returns the channel of the event whose context has the Done channel over, or a
// closed channel if that is closed or the queue is. If there is no event, evt begins. A nil
// evt does not, and the result is nil then.
func (q *Queue[L, E]) channelOf(over <-chan struct{}, evt *event[E]) <-chan E {
	q.mu.Lock()
	defer q.mu.Unlock()
	if isClosed(q.done) || isClosed(over) {
		ch := make(chan E)
		close(ch)
		return ch
	}
	if existing := q.events[over]; existing != nil {
		return existing.ch
	}
	if evt == nil {
		return nil
	}
	q.events[over] = evt
	q.watch()
	q.sync()
	return evt.ch
}

// endEvent closes the channel of evt, whose context is done.
func (q *Queue[L, E]) endEvent(evt *event[E]) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.events[evt.over] != evt {
		return // it has not begun, or the queue is closed
	}
	offered := q.offer != nil && slices.Contains(q.offer.events, evt)
	if offered {
		q.cancelOffer()
	}
	delete(q.events, evt.over)
	q.finish(evt)
	if offered {
		q.sync()
	}
}

// finish closes the channel of an event that has begun. mu is held, and there is no offer.
func (q *Queue[L, E]) finish(evt *event[E]) {
	close(evt.ch)
	evt.custody.Release()
}

// deliver sends what is ahead to a receiver that already waits, and reports whether there
// was one. mu is held.
func (q *Queue[L, E]) deliver() bool {
	for _, evt := range q.events {
		if isClosed(evt.over) {
			continue
		}
		select {
		case evt.ch <- q.ahead.e:
			q.delivered(evt)
			return true
		default:
		}
	}
	return false
}

// delivered records that a receiver of evt has what was ahead. mu is held.
func (q *Queue[L, E]) delivered(evt *event[E]) {
	if q.ahead.what == connection {
		evt.custody.users.Add(1)
		q.hooks.Delivered(q.ahead.e, evt.custody)
	}
	q.ahead = ahead[E]{}
}

// An offer is one goroutine that sends what is ahead to the first event that receives. It
// ends when a receiver takes it or a context is done, and then synchronizes the queue, or
// when cancelOffer ends it, with mu held.
type offer[E any] struct {
	events []*event[E]
	cancel chan struct{}
	taker  chan *event[E] // of size 1, sent to without mu: the receiver's event, or nil
}

// startOffer offers what is ahead to at most maxOffers of the events whose context is not
// done, chosen at random. mu is held.
func (q *Queue[L, E]) startOffer() {
	var events []*event[E]
	for _, evt := range q.events {
		if len(events) == maxOffers {
			break
		}
		if !isClosed(evt.over) {
			events = append(events, evt)
		}
	}
	if len(events) == 0 {
		return
	}
	o := &offer[E]{events: events, cancel: make(chan struct{}), taker: make(chan *event[E], 1)}
	q.offer = o
	e := q.ahead.e
	go func() {
		o.taker <- o.send(e)
		if isClosed(o.cancel) {
			return // without mu, for which many goroutines may wait
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.offer == o { // it was not cancelled in the meantime
			q.sync()
		}
	}()
}

// cancelOffer ends the offer, if there is one, and records how it has ended. Afterwards
// what was ahead is still there only if no receiver has it. mu is held.
func (q *Queue[L, E]) cancelOffer() {
	o := q.offer
	if o == nil {
		return
	}
	q.offer = nil
	close(o.cancel)
	if taker := <-o.taker; taker != nil {
		q.delivered(taker)
	}
}

// send sends e to one of the events, and returns that event. It returns nil if it is
// cancelled, or the context of an event is done.
//
// Closing a Done channel takes the waiting goroutine out of its select before the cancel
// returns. A receive that begins after the cancel may still get a connection, which its
// context closes at once, if the goroutine did not wait yet.
func (o *offer[E]) send(e E) *event[E] {
	value := reflect.ValueOf(e)
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(o.cancel)}}
	for _, evt := range o.events {
		cases = append(cases,
			reflect.SelectCase{Dir: reflect.SelectSend, Chan: reflect.ValueOf(evt.ch), Send: value},
			reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(evt.over)})
	}
	for _, evt := range o.events { // as late as possible
		if isClosed(evt.over) {
			return nil
		}
	}
	if i, _, _ := reflect.Select(cases); i%2 == 1 { // the case of a send
		return o.events[i/2]
	}
	return nil
}
