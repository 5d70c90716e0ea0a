package pending

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A fixture runs scripts on a queue over a socket, in a bubble of virtual time, and keeps
// an account of every connection.
type fixture struct {
	*testing.T
	*socket
	q        *Queue[string, accepted]
	script   []string // the steps so far
	contexts map[string]*custom
	events   map[string]<-chan accepted
	calls    map[string]*call
	kept     <-chan string // the result of the first Ready

	account   sync.Mutex
	owned     map[int]bool     // connections that calls have returned
	delivered map[int]*Custody // of connections that events have delivered
	ended     atomic.Int32     // calls of the hook Ended

	stale bool // an accept elsewhere may not have been noticed before the next tick
	taken bool // receives from ready may not have been made up for before the next tick
}

type call struct { // a goroutine that runs until its function returns
	what string
	ctx  *custom // of the event that it receives from
	got  atomic.Pointer[string]
}

// A custom context is of a type of the caller's own, and counts what is left on it.
type custom struct {
	context.Context
	cancel     func()
	enter      func()        // called by each method
	late       chan struct{} // callbacks wait until it is closed; nil: they do not wait
	registered atomic.Int32  // callbacks that have neither begun nor been stopped
	delegates  bool          // package context uses its own methods instead of AfterFunc
}

func (c *custom) Done() <-chan struct{} { c.enter(); return c.Context.Done() }
func (c *custom) Err() error            { c.enter(); return c.Context.Err() }

func (c *custom) Value(key any) any {
	switch c.enter(); {
	case c.delegates:
		return c.Context.Value(key)
	case key == "key":
		return c
	}
	return nil
}

func (c *custom) AfterFunc(callback func()) (stop func() bool) {
	c.enter()
	c.registered.Add(1)
	stopInner := context.AfterFunc(c.Context, func() {
		c.registered.Add(-1)
		if c.late != nil {
			<-c.late
		}
		callback()
	})
	return func() bool {
		c.enter()
		stopped := stopInner()
		if stopped {
			c.registered.Add(-1)
		}
		return stopped
	}
}

// bubble runs test with a fixture, closes the queue, and checks that nothing is lost or left.
func bubble(t *testing.T, test func(f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &socket{t: t, woken: make(chan struct{}, 1)}
		f := &fixture{T: t, socket: s, owned: make(map[int]bool), delivered: make(map[int]*Custody),
			contexts: make(map[string]*custom), events: make(map[string]<-chan accepted), calls: make(map[string]*call)}
		f.q = New("ready", s, Hooks[accepted]{
			Delivered: func(e accepted, c *Custody) {
				f.account.Lock()
				defer f.account.Unlock()
				f.delivered[e.id] = c
			},
			Ended: func() {
				f.ended.Add(1)
				go s.change(func() { s.closed = true })
			},
		})
		s.q = f.q
		t.Cleanup(func() { // also if the test fails
			f.close()
			time.Sleep(time.Minute) // until what is late has come
			for _, c := range f.delivered {
				c.Release()
			}
			synctest.Wait()
			if n := len(f.backlog) + len(f.owned); n != f.last {
				t.Errorf("%q: connected %d; %d in the backlog, %d returned; want each once", f.script, f.last, len(f.backlog), len(f.owned))
			}
			for name, c := range f.contexts {
				if n := c.registered.Load(); n != 0 {
					t.Errorf("%q: left %d callbacks on context %s, want none", f.script, n, name)
				}
			}
		})
		test(f)
	})
}

func scripts(t *testing.T, scripts ...string) {
	t.Helper()
	for _, script := range scripts {
		bubble(t, func(f *fixture) { f.run(script) })
	}
}

// everywhere runs the script after each of the scripts that make Accept wait in another
// place: in the source, for its turn, for a wake token.
func everywhere(t *testing.T, script string) {
	t.Helper()
	for _, place := range []string{"", "accept x", "ready", "event x", "ready; accept x", "accept x; event y"} {
		scripts(t, place+";"+script)
	}
}

// run runs the steps of a script. After each step it waits until nothing happens any more, and
// checks the invariant, unless & separates it from the next one. A step may end with = and
// what its result must be: one of some results, or some connection.
func (f *fixture) run(script string) {
	f.Helper()
	for steps := range strings.FieldsFuncSeq(script, func(r rune) bool { return r == ';' || r == '\n' }) {
		for step := range strings.SplitSeq(steps, "&") {
			command, want, checked := strings.Cut(strings.TrimSpace(step), " = ")
			if command == "" {
				continue
			}
			f.script = append(f.script, strings.TrimSpace(step))
			got := f.do(strings.Fields(command))
			if checked && !slices.Contains(strings.Split(want, "|"), got) && !(want == "some" && got > "0" && got < "a") {
				f.Fatalf("%q: got %s from the last step, want %s", f.script, got, want)
			}
		}
		synctest.Wait()
		f.check()
	}
}

// do runs a command and returns its result.
func (f *fixture) do(words []string) string {
	f.Helper()
	arg := func(i int) string { return append(words, "", "", "")[i] }
	n, _ := strconv.Atoi(cmp.Or(arg(1), "1"))
	d, _ := time.ParseDuration(arg(1))
	switch words[0] {
	case "connect": // n clients
		for range n {
			f.change(func() { f.last++; f.backlog = append(f.backlog, f.last); f.report() })
		}
	case "elsewhere": // another process accepts a connection, if there is one
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.backlog) > 0 {
			f.stale = true
			return f.own(accepted{id: f.shift()}, nil)
		}
	case "shut": // another process shuts the socket down
		f.change(func() { f.shut = true; f.report() })
	case "fail", "pass": // accepts fail from now on, or succeed again
		f.change(func() { f.fail = map[string]error{"fail": errFull}[words[0]] })
	case "reports", "interrupts": // take d to have an effect
		f.change(func() {
			*map[string]*time.Duration{"reports": &f.reportLag, "interrupts": &f.interruptLag}[words[0]] = d
		})
	case "sleep":
		time.Sleep(d)
	case "tick": // as long as ready may disagree with the backlog
		time.Sleep(50 * time.Millisecond)
		f.stale, f.taken = false, false
	case "left": // in the backlog
		f.change(func() { n = len(f.backlog) })
		return strconv.Itoa(n)
	case "ended": // calls of the hook
		return fmt.Sprint(f.ended.Load())
	case "accept": // with context arg(2), if given
		ctx := context.Background()
		if arg(2) != "" {
			ctx = f.context(arg(2))
		}
		f.start(arg(1), &call{what: "accept"}, func() string { return f.own(f.q.Accept(ctx)) })
	case "receive": // from event arg(2)
		ch := f.events[arg(2)]
		f.start(arg(1), &call{what: "receive", ctx: f.contexts[arg(2)]}, func() string { return f.received(<-ch) })
	case "await": // receives from the kept channel of Ready
		kept := f.kept
		f.start(arg(1), &call{what: "await"}, func() string { return cmp.Or(<-kept, "over") })
		f.taken = true
	case "try":
		return f.own(f.q.TryAccept())
	case "ready":
		last := f.kept
		if f.kept = f.q.Ready(); last != nil && last != f.kept {
			f.Errorf("%q: got another channel of Ready, want the same one", f.script)
		}
	case "poll": // Ready, or what "kept" has
		f.do([]string{"ready"})
		fallthrough
	case "kept":
		f.taken = true
		select {
		case l := <-f.kept:
			return cmp.Or(l, "over")
		default:
			return "nothing"
		}
	case "sync":
		f.q.Sync()
	case "event": // begins event arg(1)
		f.events[arg(1)] = f.q.Event(f.context(arg(1)))
	case "take": // polls event arg(1)
		select {
		case e := <-f.events[arg(1)]:
			return f.received(e)
		default:
			return "nothing"
		}
	case "cancel": // context arg(1)
		f.context(arg(1)).cancel()
	case "late": // makes the callbacks of context arg(1) late
		f.context(arg(1)).late = make(chan struct{})
	case "callbacks": // of the late context arg(1)
		close(f.context(arg(1)).late)
	case "left-on": // context arg(1): callbacks
		return fmt.Sprint(f.context(arg(1)).registered.Load())
	case "custody": // of connection n
		return fmt.Sprint("done ", isClosed(f.delivered[n].Done()))
	case "release": // connection n
		f.delivered[n].Release()
		delete(f.delivered, n)
	case "timeout": // context t ends after d
		c := f.context("t")
		c.Context, c.cancel = context.WithTimeout(context.Background(), d)
	case "deadline": // in d, or none
		t := time.Now().Add(d).Round(0)
		if arg(1) == "" {
			t = time.Time{}
		}
		return map[error]string{nil: "", net.ErrClosed: "closed"}[f.q.SetDeadline(t)]
	case "drain":
		f.q.Drain(arg(1) == "leave") // the backlog
	case "close":
		return f.close()
	case "waiting": // calls that have not returned
		return strconv.Itoa(len(f.waiting("")))
	default: // a call
		c := f.calls[words[0]]
		if c == nil {
			f.Errorf("%q: no such command or call", f.script)
			return ""
		}
		if got := c.got.Load(); got != nil {
			return *got
		}
		return "waits"
	}
	return ""
}

func (f *fixture) context(name string) *custom {
	if f.contexts[name] == nil {
		ctx, cancel := context.WithCancel(context.Background())
		f.contexts[name] = &custom{Context: ctx, cancel: cancel, enter: func() {}}
	}
	return f.contexts[name]
}

// start starts a call. A number starts as many.
func (f *fixture) start(name string, c *call, run func() string) {
	if n, err := strconv.Atoi(name); err == nil {
		for range n {
			f.start(fmt.Sprint("call", len(f.calls)), &call{what: c.what, ctx: c.ctx}, run)
		}
		return
	}
	f.calls[name] = c
	go func() { c.got.Store(new(run())) }()
}

// waiting returns the calls that have not returned; if what is not empty, only such calls.
func (f *fixture) waiting(what string) []*call {
	calls := slices.Collect(maps.Values(f.calls))
	return slices.DeleteFunc(calls, func(c *call) bool { return c.got.Load() != nil || what != "" && c.what != what })
}

// close closes the queue, then the socket.
func (f *fixture) close() string {
	e, ok := f.q.Close()
	f.change(func() { f.closed = true })
	if !ok {
		return "nothing"
	}
	return f.own(e, nil)
}

func (f *fixture) received(e accepted) string {
	if e == (accepted{}) { // from a closed channel
		return "over"
	}
	return f.own(e, nil)
}

// own records what a call has returned, and describes it.
func (f *fixture) own(e accepted, err error) string {
	f.account.Lock()
	defer f.account.Unlock()
	err = cmp.Or(err, e.err)
	for result, target := range map[string]error{"none": ErrNone, "closed": net.ErrClosed, "expired": os.ErrDeadlineExceeded,
		"cancelled": context.Canceled, "timeout": context.DeadlineExceeded, "full": errFull} {
		if errors.Is(err, target) && e.id == 0 {
			return result
		}
	}
	if err != nil || f.owned[e.id] || e.id == 0 {
		f.Errorf("%q: got connection %d, returned before %t, and error %v; want a connection, once, or a known error", f.script, e.id, f.owned[e.id], err)
	}
	f.owned[e.id] = true
	return strconv.Itoa(e.id)
}

// check checks the invariant of the package while no goroutine can run.
func (f *fixture) check() {
	f.Helper()
	q := f.q
	if !q.mu.TryLock() {
		f.Fatalf("%q: mu is held while every goroutine waits, want free", f.script)
	}
	defer q.mu.Unlock()
	f.mu.Lock()
	backlog, unknown, shut := len(f.backlog), f.reported || f.late > 0, f.shut
	f.mu.Unlock()
	want := func(ok bool, what string) {
		f.Helper()
		if !ok {
			f.Fatalf("%q: backlog %d, ahead %v, draining %t, refusing %t, %d events, ready %d of %d, wake %d, %d calls wait; want %s", f.script,
				backlog, q.ahead, q.draining, q.refusing, len(q.events), len(q.ready), cap(q.ready), len(q.wake), len(f.waiting("")), what)
		}
	}
	if isClosed(q.done) {
		want(q.ahead.what == nothing && q.offer == nil && len(q.events)+len(q.ready)+len(q.wake) == 0, "nothing left in a closed queue")
		want(len(f.waiting("")) == 0, "no call waits on a closed queue")
		return
	}
	if f.stale || unknown {
		return
	}
	pending := q.ahead.what != nothing || backlog > 0 && !q.refusing
	want(!pending || len(f.waiting("accept")) == 0 && (f.taken || len(f.waiting("await")) == 0), "no call waits while a connection is pending")
	if !q.watching.Load() {
		want(q.ahead.what == nothing && q.offer == nil, "nothing ahead before the queue is watched")
		want(pending || !shut || len(f.waiting("accept")) == 0, "no Accept waits after a shutdown")
		return
	}
	live := 0
	for over := range q.events {
		if !isClosed(over) {
			live++
		}
	}
	if !pending {
		want(len(q.wake)+len(q.ready) == 0, "ready and wake empty")
		want(q.offer == nil && !q.draining && !shut, "no offer and no drain without a connection")
		return
	}
	want(len(q.wake) == 1 && (f.taken || len(q.ready) == cap(q.ready)), "ready and wake full")
	want(live == 0 && !q.draining || q.ahead.what != nothing, "one connection ahead")
	want((q.offer != nil) == (live > 0), "what is ahead on offer")
	want(q.ticking, "ticks")
	for _, c := range f.waiting("receive") {
		want(live > maxOffers || isClosed(c.ctx.Context.Done()), "no receive waits while a connection is pending")
	}
}
