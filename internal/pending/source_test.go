package pending

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A socket is a Source without a kernel. Its Wait behaves as the runtime's poller does on an
// edge-triggered epoll: an arrival queues a report, and arrivals until it is delivered are
// one. It is delivered later, and dropped if there is nothing to accept by then. A report
// that is delivered sets a mark, which the beginning of a wait clears.
type socket struct {
	t       *testing.T
	q       *Queue[string, accepted]
	reading sync.Mutex // locked by Wait
	onWait  func()     // called once, as a Wait begins
	onState func()     // called once, as the state is asked for

	waits, accepts, states atomic.Int32 // calls

	mu      sync.Mutex
	backlog []int // connections, numbered from 1 in the order of their arrival
	last    int   // the last connection
	fail    error // of an accept while a connection is in the backlog
	shut    bool  // by another process
	closed  bool

	reported, marked, interrupted bool
	woken                         chan struct{} // of size 1
	reportLag, interruptLag       time.Duration // how late reports and interrupts take effect
	late                          int           // interrupts
}

type accepted struct { // what an event yields
	id  int
	err error
}

var errFull = errors.New("too many open files")

// change changes the socket, and lets a Wait look at it.
func (s *socket) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// report queues a report. mu is held.
func (s *socket) report() {
	if s.reported {
		return
	}
	s.reported = true
	lag := s.reportLag
	go func() {
		time.Sleep(lag)
		s.change(func() {
			s.reported = false
			s.marked = s.marked || len(s.backlog) > 0 || s.shut
		})
	}()
}

func (s *socket) Interrupt() {
	s.change(func() {
		if s.interruptLag == 0 {
			s.interrupted = true
			return
		}
		s.late++
		time.AfterFunc(s.interruptLag, func() { s.change(func() { s.interrupted = true; s.late-- }) })
	})
}

func (s *socket) Wait(arrived func() bool) error {
	s.waits.Add(1)
	if !s.reading.TryLock() {
		s.t.Error("Wait of the source: called during another Wait, which it would have to wait for; want one at a time")
		s.reading.Lock()
	}
	defer s.reading.Unlock()
	if f := s.onWait; f != nil {
		s.onWait = nil
		f()
	}
	for {
		var closed bool
		s.change(func() { s.interrupted, s.marked, closed = false, false, s.closed })
		if closed {
			return net.ErrClosed
		}
		for report := true; report; report = s.block() {
			if arrived() {
				return nil
			}
		}
	}
}

// block waits for a report. It returns false if it is interrupted or the socket closed.
func (s *socket) block() (report bool) {
	for {
		s.mu.Lock()
		end := s.closed || s.interrupted
		if report = s.marked && !end; report {
			s.marked = false
		}
		s.mu.Unlock()
		if report || end {
			return report
		}
		<-s.woken
	}
}

func (s *socket) Accept() (accepted, error) {
	defer s.call("Accept", &s.accepts)()
	switch {
	case len(s.backlog) == 0:
		return accepted{}, ErrNone
	case s.fail != nil:
		return accepted{err: s.fail}, s.fail
	}
	return accepted{id: s.shift()}, nil
}

// shift takes the next connection from the backlog. mu is held.
func (s *socket) shift() int {
	id := s.backlog[0]
	s.backlog = s.backlog[1:]
	return id
}

func (s *socket) State() State {
	if f := s.onState; f != nil {
		s.onState = nil
		f()
	}
	defer s.call("State", &s.states)()
	switch {
	case s.shut:
		return ShutDown
	case len(s.backlog) > 0:
		return Readable
	}
	return Empty
}

// call locks mu and checks that a method is called with the queue's mutex held, and before
// the close. It returns Unlock.
func (s *socket) call(method string, calls *atomic.Int32) func() {
	s.mu.Lock()
	calls.Add(1)
	free := s.q.mu.TryLock()
	if free {
		s.q.mu.Unlock()
	}
	if free || s.closed || isClosed(s.q.done) {
		s.t.Errorf("%s of the source: called with the mutex free %t, the queue closed %t; want false, false", method, free, isClosed(s.q.done))
	}
	return s.mu.Unlock
}
