//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// mustReceive returns the next connection from evt. The connection is closed at the
// end of the test.
func mustReceive(t testing.TB, evt <-chan unixsock.Accepted) *unixsock.Conn {
	t.Helper()
	a, ok := sockettest.ReceiveOK(t, "AcceptEvt", evt)
	if !ok || a.Err != nil || a.Conn == nil {
		t.Fatalf("receive from AcceptEvt: got %+v, %v; want a connection, true", a, ok)
	}
	t.Cleanup(func() { a.Conn.Close() })
	return a.Conn
}

// mustBeOver fails the test unless evt yields no value and is closed within
// [sockettest.Timeout].
func mustBeOver(t testing.TB, evt <-chan unixsock.Accepted) {
	t.Helper()
	if a, ok := sockettest.ReceiveOK(t, "the event's channel to be closed", evt); ok {
		t.Fatalf("receive from an event that has ended: got %+v, want a closed channel", a)
	}
}

// waitReceivers waits until n goroutines that the test has started are blocked.
func waitReceivers(t *testing.T, n int) {
	t.Helper()
	sockettest.WaitFor(t, "the receivers are not blocked", func() bool {
		return sockettest.Parked("unixsock_test."+t.Name()+".func") >= n
	})
}

// mustTalk fails the test unless server reads the byte that client writes.
func mustTalk(t testing.TB, client, server *unixsock.Conn) {
	t.Helper()
	server.SetReadDeadline(time.Now().Add(sockettest.Timeout))
	defer server.SetReadDeadline(time.Time{})
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatalf("Write of 1 byte: %v", err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(server, b); err != nil || b[0] != 'x' {
		t.Fatalf("Read of 1 byte that was sent: got %q, %v; want %q, nil", b, err, "x")
	}
}

// mustEnd fails the test unless the peer of c closes the connection within
// [sockettest.Timeout].
func mustEnd(t testing.TB, c *unixsock.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(sockettest.Timeout))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("Read after the peer's close: got %d, %v; want 0, io.EOF or ECONNRESET", n, err)
	}
}

// acceptAhead connects to l. It returns once the listener has accepted the connection
// ahead, for an event, and offers it.
func acceptAhead(t testing.TB, l *unixsock.Listener) (client *unixsock.Conn) {
	t.Helper()
	client = sockettest.Connect(t, l.Addr().String())
	sockettest.WaitFor(t, "the listener has not accepted the connection ahead", func() bool { return !sockettest.Pending(t, l) })
	waitOffer(t) // a cancel before the offer may come too late to stop it
	return client
}

func TestAcceptEvtGivesAConnection(t *testing.T) {
	l := sockettest.Listen(t)
	for range 20 {
		client := sockettest.Connect(t, l.Addr().String())
		mustTalk(t, client, mustReceive(t, l.AcceptEvt(t.Context())))
	}
}

func TestAcceptEvtDeliversToAWaitingReceiver(t *testing.T) {
	l := sockettest.Listen(t)
	evt := l.AcceptEvt(t.Context())
	received := make(chan unixsock.Accepted)
	go func() { received <- <-evt }()
	waitReceivers(t, 1)
	client := sockettest.Connect(t, l.Addr().String())
	mustTalk(t, client, mustReceive(t, received))
}

func TestEachConnectionIsDeliveredOnce(t *testing.T) {
	clients := 2000
	if testing.Short() {
		clients = 300
	}
	l := sockettest.Listen(t, unixsock.Backlog(16))
	l.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// A server writes one byte and closes the connection. Each client must read exactly
	// that byte.
	var served atomic.Int32
	serve := func(c net.Conn) {
		served.Add(1)
		c.Write([]byte("s"))
		c.Close()
	}
	var servers sync.WaitGroup
	for range 2 {
		servers.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serve(c)
			}
		})
		servers.Go(func() {
			for {
				c, err := l.AcceptContext(ctx)
				if err != nil {
					return
				}
				serve(c)
			}
		})
		for range 2 {
			own, cancelOwn := context.WithCancel(ctx)
			defer cancelOwn()
			servers.Go(func() {
				for a := range l.AcceptEvt(own) {
					if a.Err != nil {
						t.Errorf("receive from AcceptEvt: got the error %v, want a connection", a.Err)
						continue
					}
					serve(a.Conn)
				}
			})
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range clients / 20 {
				c, err := unixsock.Connect(l.Addr().String())
				if err != nil {
					t.Errorf("Connect: %v", err)
					return
				}
				c.SetDeadline(time.Now().Add(sockettest.Timeout))
				b, err := io.ReadAll(c)
				if string(b) != "s" || err != nil {
					t.Errorf("ReadAll in a client: got %q, %v; want %q, nil", b, err, "s")
				}
				c.Close()
			}
		})
	}
	sockettest.CheckReturns(t, "the clients", wg.Wait)
	if n := int(served.Load()); n != clients {
		t.Errorf("served connections after %d connects: got %d, want %d", clients, n, clients)
	}
	cancel()
	l.Close()
	sockettest.CheckReturns(t, "the servers", servers.Wait)
}

func TestAbandonedEventBlocksNoOtherReceiver(t *testing.T) {
	accept := func(t *testing.T, l *unixsock.Listener) *unixsock.Conn { return sockettest.Accept(t, l) }
	event := func(t *testing.T, l *unixsock.Listener) *unixsock.Conn {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		return mustReceive(t, l.AcceptEvt(ctx))
	}
	plain := func(t *testing.T, l *unixsock.Listener) *unixsock.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Errorf("Accept: got %v, want a connection", err)
			return nil
		}
		t.Cleanup(func() { c.Close() })
		return c.(*unixsock.Conn)
	}
	abandon := func(t *testing.T, l *unixsock.Listener) {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		l.AcceptEvt(ctx)
	}
	for name, take := range map[string]func(*testing.T, *unixsock.Listener) *unixsock.Conn{
		"Accept": plain, "AcceptContext": accept, "another event": event,
	} {
		t.Run(name+" after event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			abandon(t, l)
			for range 3 {
				client := acceptAhead(t, l)
				sockettest.CheckReturns(t, name, func() { mustTalk(t, client, take(t, l)) })
			}
		})
		t.Run(name+" after connect and event", func(t *testing.T) {
			l := sockettest.Listen(t)
			for range 3 {
				client := sockettest.Connect(t, l.Addr().String())
				abandon(t, l)
				sockettest.CheckReturns(t, name, func() { mustTalk(t, client, take(t, l)) })
			}
		})
		t.Run(name+" between event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			abandon(t, l)
			for range 3 {
				accepted := make(chan *unixsock.Conn, 1)
				go func() { accepted <- take(t, l) }()
				client := sockettest.Connect(t, l.Addr().String())
				mustTalk(t, client, sockettest.Receive(t, name, accepted))
			}
		})
		t.Run(name+" before event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			for range 3 {
				accepted := make(chan *unixsock.Conn, 1)
				go func() { accepted <- take(t, l) }()
				sockettest.WaitInPoller(t, 1)
				abandon(t, l)
				client := sockettest.Connect(t, l.Addr().String())
				mustTalk(t, client, sockettest.Receive(t, name, accepted))
			}
		})
		t.Run(name+" with Ready in use", func(t *testing.T) {
			l := sockettest.Listen(t)
			l.Ready()
			abandon(t, l)
			for range 3 {
				client := sockettest.Connect(t, l.Addr().String())
				sockettest.Receive(t, "Ready", l.Ready())
				mustTalk(t, client, take(t, l))
			}
		})
	}
}

func TestAtMostOneConnectionIsAcceptedAhead(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(2))
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.AcceptEvt(ctx)
	}
	l.Ready()
	acceptAhead(t, l)
	sockettest.Receive(t, "Ready", l.Ready())
	// The backlog is empty again, so it holds as many connections as without an event.
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 3 {
		t.Errorf("connects until the backlog of 2 is full: got %d, want 3", n)
	}
}

func TestAcceptEvtGivesABurstWithoutDelay(t *testing.T) {
	const n = 8
	l := sockettest.Listen(t, unixsock.Backlog(n))
	l.Ready()
	evt := l.AcceptEvt(t.Context())
	// The receivers start before the first connect. On one processor, all connections
	// arrive before the watcher can deliver the first.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	received := make(chan time.Time, n)
	for range n {
		go func() {
			if a := <-evt; a.Conn != nil {
				a.Conn.Close()
			}
			received <- time.Now()
		}()
	}
	waitReceivers(t, n)
	start := time.Now()
	for range n {
		sockettest.Connect(t, l.Addr().String())
	}
	var last time.Time
	for range n {
		last = sockettest.Receive(t, "a connection", received)
	}
	if took := last.Sub(start); took > 2*recheck {
		t.Errorf("receive of a burst of %d connections: got the last after %v, want at most %v", n, took, 2*recheck)
	}
}

func TestReadyAndAcceptEvtInOneSelectBothCome(t *testing.T) {
	l := sockettest.Listen(t)
	ctx := t.Context()
	for round, ready := 0, 0; round < 10 || ready == 0; round++ {
		sockettest.Connect(t, l.Addr().String())
		sockettest.CheckReturns(t, "select to choose AcceptEvt", func() {
			for {
				select {
				case _, ok := <-l.Ready():
					if ok {
						ready++
					}
				case a := <-l.AcceptEvt(ctx):
					if a.Err != nil {
						t.Errorf("receive from AcceptEvt: got the error %v, want a connection", a.Err)
						return
					}
					a.Conn.Close()
					return
				}
			}
		})
		if t.Failed() {
			return
		}
		if round > 10000 {
			t.Fatalf("select between Ready and AcceptEvt, %d times: it never chose Ready", round)
		}
	}
}

func TestSameContextGivesTheSameChannel(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	other, cancelOther := context.WithCancel(t.Context())
	defer cancelOther()
	evt := l.AcceptEvt(ctx)
	if l.AcceptEvt(ctx) != evt {
		t.Error("AcceptEvt twice with the same context: got two channels, want one")
	}
	if l.AcceptEvt(other) == evt {
		t.Error("AcceptEvt with another context: got the same channel, want another")
	}
	never := l.AcceptEvt(context.Background())
	if l.AcceptEvt(context.Background()) != never {
		t.Error("AcceptEvt twice with context.Background(): got two channels, want one")
	}
}

func TestAcceptEvtOfTheSameContextLeavesNothingBehind(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	evt := l.AcceptEvt(ctx)
	goroutines := runtime.NumGoroutine()
	heap := sockettest.HeapInUse()
	type key struct{}
	for range 100000 {
		l.AcceptEvt(ctx)
		l.AcceptEvt(context.WithValue(ctx, key{}, 1))
	}
	if more := sockettest.HeapInUse() - heap; more > 1<<20 {
		t.Errorf("heap after 200000 calls of AcceptEvt: got %d more bytes, want at most 1 MiB", more)
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.Connect(t, l.Addr().String())
	mustReceive(t, evt)
}

func TestEndedEventsLeaveNothingBehind(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context()) // starts the watcher, which runs until Close
	goroutines, heap := runtime.NumGoroutine(), sockettest.HeapInUse()
	for range 10000 {
		ctx, cancel := context.WithCancel(t.Context())
		evt := l.AcceptEvt(ownContext{Context: ctx})
		cancel()
		mustBeOver(t, evt)
	}
	sockettest.WaitGoroutines(t, goroutines)
	if more := sockettest.HeapInUse() - heap; more > 1<<20 {
		t.Errorf("heap after 10000 events that ended: got %d more bytes, want at most 1 MiB", more)
	}
	runtime.KeepAlive(l)
}

func TestAcceptEvtTakesAnyContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, ctx := range map[string]context.Context{
		"Background":     context.Background(),
		"WithValue":      context.WithValue(parent, key{}, 1),
		"WithoutCancel":  context.WithoutCancel(parent),
		"not comparable": ownContext{Context: parent},
		"ends never":     ownContext{Context: context.Background()},
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			for range 2 {
				client := sockettest.Connect(t, l.Addr().String())
				mustTalk(t, client, mustReceive(t, l.AcceptEvt(ctx)))
			}
		})
	}
}

func TestMoreEventsThanASelectTakesAreServed(t *testing.T) {
	if testing.Short() || sockettest.Race {
		t.Skip("the test makes 40,000 contexts")
	}
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last <-chan unixsock.Accepted
	for range 40000 {
		own, cancelOwn := context.WithCancel(ctx)
		defer cancelOwn()
		last = l.AcceptEvt(own)
	}
	acceptAhead(t, l)
	mustReceive(t, last)
}

func TestEndOfTheContextClosesTheEvent(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	evt := l.AcceptEvt(ctx)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if a, ok := <-evt; ok {
				t.Errorf("receive while the context ends: got %+v, want a closed channel", a)
			}
		})
	}
	waitReceivers(t, 5)
	cancel()
	sockettest.CheckReturns(t, "the receivers of the event", wg.Wait)
	mustBeOver(t, evt)
	mustBeOver(t, l.AcceptEvt(ctx))
}

func TestAcceptEvtOfADoneContextIsClosed(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	goroutines := runtime.NumGoroutine()
	mustBeOver(t, l.AcceptEvt(ctx))
	if !sockettest.Pending(t, l) {
		t.Error("AcceptEvt with a context that is done: got the connection accepted, want it pending")
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("AcceptEvt with a context that is done: got %d goroutines, want at most %d", n, goroutines)
	}
}

// recheck is the documented limit within which a listener observes what another process
// changes.
const recheck = 50 * time.Millisecond

// manyEvents is more events than an implementation is likely to handle as a special case
// for a few.
const manyEvents = 8

// waitOffer waits until a goroutine that the package started is parked in a select.
// That goroutine offers a connection, or an error, to the events.
func waitOffer(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(sockettest.Timeout); time.Now().Before(deadline); runtime.Gosched() {
		for _, stack := range sockettest.Goroutines() {
			head, _, _ := strings.Cut(stack, "\n")
			if strings.Contains(head, " [select") && strings.Contains(stack, "\ncreated by github.com/go-unixsock/unixsock.") {
				return
			}
		}
	}
	t.Fatalf("waited %v: no goroutine offers a connection or an error", sockettest.Timeout)
}

func TestNothingIsDeliveredOnceTheContextIsDone(t *testing.T) {
	rounds := 2500
	if testing.Short() || sockettest.Race {
		rounds = 100
	}
	for name, others := range map[string]int{"alone": 0, "with another event": 1, "with many events": manyEvents} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			for range others {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				l.AcceptEvt(ctx)
			}
			sockettest.Connect(t, l.Addr().String())
			for round := range rounds {
				ctx, cancel := context.WithCancel(t.Context())
				evt := l.AcceptEvt(ctx)
				waitOffer(t)
				cancel()
				if a, ok := <-evt; ok {
					t.Fatalf("round %d: receive after the context is done: got %+v, want a closed channel", round, a)
				}
			}
			sockettest.Accept(t, l) // the connection is not lost
		})
	}
}

func TestAcceptEvtOfAnEndedContextIsClosedAtOnce(t *testing.T) {
	rounds := 10000
	if testing.Short() || sockettest.Race {
		rounds = 1000
	}
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		l.AcceptEvt(ctx)
		for range round % 50 {
			runtime.Gosched()
		}
		cancel()
		select {
		case a, ok := <-l.AcceptEvt(ctx):
			if ok {
				t.Fatalf("round %d: receive after the context is done: got %+v, want a closed channel", round, a)
			}
		default:
			t.Fatalf("round %d: receive after the context is done: would block, want a closed channel", round)
		}
	}
	mustTalk(t, client, sockettest.Accept(t, l))
}

// TestContextThatEndsWhileAnOfferIsOnItsWay ends a context while a goroutine offers a
// connection. The offer can find a receiver that came after the context ended, because a
// select chooses at random between a ready receiver and a context that is done. Such a
// delivery must be an exception, and the delivered connection must be closed. How rare it
// is depends on the machine: about 10 in 10,000 on one, 1 in 20 on a busy emulator.
func TestContextThatEndsWhileAnOfferIsOnItsWay(t *testing.T) {
	rounds := 10000
	switch {
	case testing.Short():
		rounds = 500
	case sockettest.Race:
		rounds = 2500
	}
	for name, others := range map[string]int{"alone": 0, "with another event": 1, "with many events": manyEvents} {
		for _, ready := range []bool{false, true} {
			full := name
			if ready {
				full += " and Ready"
			}
			t.Run(full, func(t *testing.T) {
				l := sockettest.Listen(t)
				for range others {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					l.AcceptEvt(ctx)
				}
				if ready {
					l.Ready()
				}
				client := sockettest.Connect(t, l.Addr().String())
				delivered := 0
				for round := range rounds {
					ctx, cancel := context.WithCancel(t.Context())
					evt := l.AcceptEvt(ctx)
					for range round % 200 {
						runtime.Gosched()
					}
					cancel()
					if a, ok := <-evt; ok {
						delivered++
						if a.Err != nil {
							t.Fatalf("round %d: receive from AcceptEvt: got the error %v, want a connection", round, a.Err)
						}
						mustEnd(t, client)
						client = sockettest.Connect(t, l.Addr().String())
						mustBeOver(t, evt)
					}
				}
				t.Logf("deliveries after the context is done: %d in %d rounds", delivered, rounds)
				if delivered > rounds/5 {
					t.Errorf("deliveries after the context is done: got %d in %d rounds, want at most %d", delivered, rounds, rounds/5)
				}
				mustTalk(t, client, sockettest.Accept(t, l))
			})
		}
	}
}

func TestConnectionAfterTheContextIsDoneIsNotDelivered(t *testing.T) {
	rounds := 2000
	if testing.Short() {
		rounds = 100
	}
	l := sockettest.Listen(t)
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		evt := l.AcceptEvt(ctx)
		for range round % 50 {
			runtime.Gosched()
		}
		cancel()
		client := sockettest.Connect(t, l.Addr().String())
		if a, ok := <-evt; ok {
			t.Fatalf("round %d: receive after the context is done: got %+v, want a closed channel", round, a)
		}
		server := sockettest.Accept(t, l)
		mustTalk(t, client, server)
		client.Close()
		server.Close()
	}
}

func TestConnectionAcceptedAheadOutlivesItsEvent(t *testing.T) {
	for _, next := range []string{"Accept", "another event", "an event made before", "Ready"} {
		t.Run(next, func(t *testing.T) {
			l := sockettest.Listen(t)
			ctx, cancel := context.WithCancel(t.Context())
			evt := l.AcceptEvt(ctx)
			var other <-chan unixsock.Accepted
			if next == "an event made before" {
				otherCtx, cancelOther := context.WithCancel(t.Context())
				defer cancelOther()
				other = l.AcceptEvt(otherCtx)
			}
			client := acceptAhead(t, l)
			cancel()
			mustBeOver(t, evt)
			switch next {
			case "Accept":
				mustTalk(t, client, sockettest.Accept(t, l))
			case "another event":
				mustTalk(t, client, mustReceive(t, l.AcceptEvt(t.Context())))
			case "an event made before":
				mustTalk(t, client, mustReceive(t, other))
			case "Ready":
				if !polled(t, l, l.Ready()) {
					t.Error("select on Ready() once the event has ended: got not ready, want ready")
				}
				mustTalk(t, client, sockettest.Accept(t, l))
				if polled(t, l, l.Ready()) {
					t.Error("select on Ready() after the accept: got ready, want not ready")
				}
			}
		})
	}
}

func TestConnectionAcceptedAheadGoesToAWaitingAccept(t *testing.T) {
	l := sockettest.Listen(t)
	for range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		l.AcceptEvt(ctx)
		errs := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			errs <- err
		}()
		go cancel()
		sockettest.Connect(t, l.Addr().String()).Close()
		if err := sockettest.Receive(t, "Accept", errs); err != nil {
			t.Fatalf("Accept while an event ends: got %v, want a connection", err)
		}
	}
}

func TestContextClosesWhatItsEventDelivered(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(8))
	ctx, cancel := context.WithCancel(t.Context())
	other, cancelOther := context.WithCancel(t.Context())
	defer cancelOther()
	var clients []*unixsock.Conn
	for range 5 {
		clients = append(clients, sockettest.Connect(t, l.Addr().String()))
		mustReceive(t, l.AcceptEvt(ctx))
	}
	spared := sockettest.Connect(t, l.Addr().String())
	sparedServer := mustReceive(t, l.AcceptEvt(other))
	cancel()
	for _, c := range clients {
		mustEnd(t, c)
	}
	mustTalk(t, spared, sparedServer)
}

func TestContextThatEndsAtOnceClosesWhatItsEventDelivered(t *testing.T) {
	l := sockettest.Listen(t)
	for range 500 {
		client := sockettest.Connect(t, l.Addr().String())
		ctx, cancel := context.WithCancel(t.Context())
		mustReceive(t, l.AcceptEvt(ctx))
		cancel()
		mustEnd(t, client)
		client.Close()
	}
}

func TestDeliveredConnectionClosedEarlierLeavesNothingOnItsContext(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	evt := l.AcceptEvt(ownContext{Context: ctx})
	goroutines := runtime.NumGoroutine()
	for range 50 {
		sockettest.Connect(t, l.Addr().String()).Close()
		mustReceive(t, evt).Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
}

func TestCloseClosesTheEventAndTheConnectionAcceptedAhead(t *testing.T) {
	l := sockettest.Listen(t)
	evts := []<-chan unixsock.Accepted{l.AcceptEvt(t.Context()), l.AcceptEvt(context.Background())}
	client := acceptAhead(t, l)
	l.Close()
	for _, evt := range evts {
		mustBeOver(t, evt)
	}
	mustBeOver(t, l.AcceptEvt(t.Context()))
	mustBeOver(t, l.AcceptEvt(context.Background()))
	mustEnd(t, client)
}

// A client that was accepted ahead and finds its connection closed may connect again at once.
func TestClientThatConnectsAgainDoesNotReachTheClosingListener(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(500) {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		l.AcceptEvt(t.Context())
		client := acceptAhead(t, l)
		again := make(chan error, 1)
		go func() {
			client.Read(make([]byte, 1)) // ends with Close
			c, err := unixsock.Connect(path)
			if err == nil {
				c.Close()
			}
			again <- err
		}()
		l.Close()
		if err := sockettest.Receive(t, "Connect of the client", again); err == nil {
			t.Fatal("Connect after the end of a connection that was accepted ahead: got nil, want an error")
		}
		client.Close()
	}
}

func TestCloseLeavesWhatAnEventDelivered(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := mustReceive(t, l.AcceptEvt(t.Context()))
	l.Close()
	mustTalk(t, client, server)
}

func TestCloseWakesEveryReceiverOfTheEvent(t *testing.T) {
	l := sockettest.Listen(t)
	var wg sync.WaitGroup
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		evt := l.AcceptEvt(ctx)
		wg.Go(func() {
			if a, ok := <-evt; ok {
				t.Errorf("receive while the listener closes: got %+v, want a closed channel", a)
			}
		})
	}
	waitReceivers(t, 5)
	l.Close()
	sockettest.CheckReturns(t, "the receivers of the events", wg.Wait)
}

func TestEventsLeaveNoGoroutineAndNoDescriptorAfterClose(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	for range 20 {
		l := sockettest.Listen(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.AcceptEvt(ctx)
		l.AcceptEvt(ownContext{Context: ctx})
		acceptAhead(t, l).Close()
		l.Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// skipUnlessPendingIsKept skips the test on a kernel that drops a pending connection
// while the process is out of descriptors.
func skipUnlessPendingIsKept(t *testing.T) {
	t.Helper()
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops a pending connection if accept(2) has no descriptor for it")
	}
}

func TestAcceptEvtDeliversOneErrorPerReceive(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	evt := l.AcceptEvt(t.Context())
	for range 5 {
		a, ok := sockettest.ReceiveOK(t, "AcceptEvt to deliver an error", evt)
		var opErr *net.OpError
		if !ok || a.Conn != nil || !errors.Is(a.Err, syscall.EMFILE) || !errors.As(a.Err, &opErr) || opErr.Op != "accept" {
			t.Fatalf("receive from AcceptEvt without descriptors: got %+v, %v; want EMFILE of accept, true", a, ok)
		}
	}
	free()
	a := sockettest.Receive(t, "AcceptEvt", evt)
	if a.Err != nil { // the goroutine offered it before free
		a = sockettest.Receive(t, "AcceptEvt", evt)
	}
	if a.Err != nil {
		t.Fatalf("receive from AcceptEvt with descriptors: got the error %v, want a connection", a.Err)
	}
	mustTalk(t, client, a.Conn)
	mustTalk(t, sockettest.Connect(t, l.Addr().String()), mustReceive(t, evt))
}

func TestOfferedErrorIsNotAnAccepts(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	l.AcceptEvt(t.Context())
	waitOffer(t)
	if _, err := l.Accept(); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Accept without descriptors: got %v, want EMFILE", err)
	}
	free()
	mustTalk(t, client, sockettest.Accept(t, l))
}

func TestErrorWaitsForItsReceiver(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	l.Ready()
	sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	evt := l.AcceptEvt(t.Context())
	time.Sleep(2 * recheck) // the time for which the error waits
	if a := sockettest.Receive(t, "AcceptEvt to deliver an error", evt); !errors.Is(a.Err, syscall.EMFILE) {
		t.Fatalf("receive from AcceptEvt without descriptors: got %+v, want EMFILE", a)
	}
}

func TestNothingSpinsWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	received := make(chan unixsock.Accepted, 1)
	go func() { received <- <-l.AcceptEvt(t.Context()) }()
	if a := sockettest.Receive(t, "AcceptEvt to deliver an error", received); !errors.Is(a.Err, syscall.EMFILE) {
		t.Fatalf("receive from AcceptEvt without descriptors: got %+v, want EMFILE", a)
	}
	sockettest.Receive(t, "Ready", kept)
	idles(t)
}

func TestEventWithNothingToAcceptGivesNoError(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	select {
	case a := <-l.AcceptEvt(t.Context()):
		t.Errorf("receive from AcceptEvt with no connection and no descriptor: got %+v, want nothing", a)
	case <-time.After(100 * time.Millisecond): // nothing must come for a while
	}
	idles(t)
}

func TestEndedEventLeavesNoGoroutineBesideAWaitingAccept(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context()) // starts the watcher, which runs until Close
	ctx, cancel := context.WithCancel(t.Context())
	errs := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
	goroutines := runtime.NumGoroutine()
	for range 5 {
		own, cancelOwn := context.WithCancel(t.Context())
		evt := l.AcceptEvt(own)
		cancelOwn()
		mustBeOver(t, evt)
	}
	sockettest.WaitGoroutines(t, goroutines)
	cancel()
	if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, context.Canceled) {
		t.Errorf("AcceptContext with a canceled context: got %v, want context.Canceled", err)
	}
	sockettest.WaitGoroutines(t, goroutines-1)
}

func TestConnectionAcceptedAheadKeepsItsPeer(t *testing.T) {
	l := sockettest.Listen(t)
	evt := l.AcceptEvt(t.Context())
	client := acceptAhead(t, l)
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatalf("Write of the client: %v", err)
	}
	client.Close()
	b, err := io.ReadAll(mustReceive(t, evt))
	if string(b) != "last words" || err != nil {
		t.Errorf("ReadAll after the client's close: got %q, %v; want %q, nil", b, err, "last words")
	}
}

func TestEventThatHasEndedHoldsNothing(t *testing.T) {
	l := sockettest.Listen(t)
	l.Ready() // keeps the watcher running
	const n = 3
	freed := make(chan struct{}, n)
	type key struct{}
	func() {
		for range n {
			value := new([1024]byte)
			runtime.AddCleanup(value, func(struct{}) { freed <- struct{}{} }, struct{}{})
			ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, value))
			evt := l.AcceptEvt(ctx)
			sockettest.Connect(t, l.Addr().String())
			mustReceive(t, evt)
			cancel()
			mustBeOver(t, evt)
		}
	}()
	sockettest.WaitFor(t, "the listener holds contexts of events that have ended", func() bool {
		runtime.GC()
		return len(freed) == n
	})
	runtime.KeepAlive(l)
}

func TestReleasedConnectionOutlivesTheContextOfItsEvent(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	client := sockettest.Connect(t, l.Addr().String())
	evt := l.AcceptEvt(ctx)
	server := mustReceive(t, evt)
	server.CloseOn(context.Background())
	cancel()
	mustBeOver(t, evt)
	mustTalk(t, client, server)
}

// TestReceiversCloseOnWinsOverItsEvent releases a connection at the moment of its delivery.
// The listener makes the event's context the custodian only if the receiver has not called
// CloseOn.
func TestReceiversCloseOnWinsOverItsEvent(t *testing.T) {
	rounds := 3000
	if testing.Short() || sockettest.Race {
		rounds = 500
	}
	l := sockettest.Listen(t)
	path := l.Addr().String()
	for range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		evt := l.AcceptEvt(ctx)
		released := make(chan *unixsock.Conn, 1)
		go func() {
			a := <-evt
			if a.Conn != nil {
				a.Conn.CloseOn(context.Background())
			}
			released <- a.Conn
		}()
		client := sockettest.Connect(t, path)
		server := sockettest.Receive(t, "AcceptEvt", released)
		cancel()
		mustBeOver(t, evt)
		mustTalk(t, client, server)
		client.Close()
		server.Close()
	}
}

// TestAcceptBesideAnEventGetsWhatAnySyncAcceptedAhead calls AcceptContext while another
// goroutine calls Ready and AcceptEvt and ends contexts. Each of these makes the listener
// check the backlog, too. On one processor, the goroutines that the contexts start must not
// gather.
func TestAcceptBesideAnEventGetsWhatAnySyncAcceptedAhead(t *testing.T) {
	t.Run("one processor", func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		acceptWhileEventsBeginAndEnd(t, 20)
	})
	t.Run("all processors", func(t *testing.T) { acceptWhileEventsBeginAndEnd(t, 100) })
}

func acceptWhileEventsBeginAndEnd(t *testing.T, rounds int) {
	l := sockettest.Listen(t)
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case _, ok := <-l.Ready():
				if !ok {
					return
				}
			default:
			}
			ctx, cancel := context.WithCancel(t.Context())
			l.AcceptEvt(ctx)
			cancel()
		}
	})
	for range rounds {
		accepted := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
		sockettest.Connect(t, l.Addr().String()).Close()
		if err := sockettest.Receive(t, "AcceptContext", accepted); err != nil {
			t.Fatalf("AcceptContext while events begin and end: got %v, want a connection", err)
		}
	}
	l.Close()
	busy.Wait()
}
