//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
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

// mustReceive returns the connection that an event gives. It is closed with the
// test.
func mustReceive(t testing.TB, evt <-chan unixsock.Accepted) *unixsock.Conn {
	t.Helper()
	a, ok := sockettest.ReceiveOK(t, "AcceptEvt", evt)
	if !ok || a.Err != nil || a.Conn == nil {
		t.Fatalf("got %+v, %v, want a connection", a, ok)
	}
	t.Cleanup(func() { a.Conn.Close() })
	return a.Conn
}

// mustBeOver fails the test unless evt is closed already.
func mustBeOver(t testing.TB, evt <-chan unixsock.Accepted) {
	t.Helper()
	if a, ok := sockettest.ReceiveOK(t, "the end of the event", evt); ok {
		t.Fatalf("the event gave %+v, want its end", a)
	}
}

// mustTalk fails the test unless what client writes is what server reads.
func mustTalk(t testing.TB, client, server *unixsock.Conn) {
	t.Helper()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(server, b); err != nil || b[0] != 'x' {
		t.Fatalf("got %q, %v", b, err)
	}
}

// mustEnd fails the test unless the other end of c has been closed.
func mustEnd(t testing.TB, c *unixsock.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(sockettest.Timeout))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %d, %v, want the end", n, err)
	}
}

// acceptAhead connects to l and waits until an event of l has accepted the connection ahead.
func acceptAhead(t testing.TB, l *unixsock.Listener) (client *unixsock.Conn) {
	t.Helper()
	client = sockettest.Connect(t, l.Addr().String())
	sockettest.WaitFor(t, "no event accepts ahead", func() bool { return !sockettest.Pending(t, l) })
	waitOffer(t) // before, a cancel may come too late for it
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
	got := make(chan unixsock.Accepted)
	go func() { got <- <-evt }()
	client := sockettest.Connect(t, l.Addr().String())
	mustTalk(t, client, mustReceive(t, got))
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
	// A server writes the client's number back: each must come back once.
	var served [4]atomic.Int32
	serve := func(who int, c *unixsock.Conn) {
		served[who].Add(1)
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
				serve(0, c.(*unixsock.Conn))
			}
		})
		servers.Go(func() {
			for {
				c, err := l.AcceptContext(ctx)
				if err != nil {
					return
				}
				serve(1, c)
			}
		})
		for who := 2; who < 4; who++ {
			own, cancelOwn := context.WithCancel(ctx)
			defer cancelOwn()
			servers.Go(func() {
				for a := range l.AcceptEvt(own) {
					if a.Err != nil {
						t.Error(a.Err)
						continue
					}
					serve(who, a.Conn)
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
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(sockettest.Timeout))
				b, err := io.ReadAll(c)
				if string(b) != "s" || err != nil {
					t.Errorf("a client got %q, %v", b, err)
				}
				c.Close()
			}
		})
	}
	sockettest.Returns(t, "the clients", wg.Wait)
	total := 0
	for i := range served {
		total += int(served[i].Load())
	}
	if total != clients {
		t.Errorf("%d clients were served %d times", clients, total)
	}
	cancel()
	l.Close()
	sockettest.Returns(t, "the servers", servers.Wait)
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
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*unixsock.Conn)
	}
	abandon := func(t *testing.T, l *unixsock.Listener) {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		l.AcceptEvt(ctx)
	}
	for who, take := range map[string]func(*testing.T, *unixsock.Listener) *unixsock.Conn{
		"Accept": plain, "AcceptContext": accept, "another event": event,
	} {
		t.Run(who+" after event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			abandon(t, l)
			for range 3 {
				client := acceptAhead(t, l)
				sockettest.Returns(t, who, func() { mustTalk(t, client, take(t, l)) })
			}
		})
		t.Run(who+" after connect and event", func(t *testing.T) {
			l := sockettest.Listen(t)
			for range 3 {
				client := sockettest.Connect(t, l.Addr().String())
				abandon(t, l)
				sockettest.Returns(t, who, func() { mustTalk(t, client, take(t, l)) })
			}
		})
		t.Run(who+" between event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			abandon(t, l)
			for range 3 {
				got := make(chan *unixsock.Conn, 1)
				go func() { got <- take(t, l) }()
				client := sockettest.Connect(t, l.Addr().String())
				mustTalk(t, client, sockettest.Receive(t, who, got))
			}
		})
		t.Run(who+" before event and connect", func(t *testing.T) {
			l := sockettest.Listen(t)
			for range 3 {
				got := make(chan *unixsock.Conn, 1)
				go func() { got <- take(t, l) }()
				sockettest.WaitInPoller(t, 1)
				abandon(t, l)
				client := sockettest.Connect(t, l.Addr().String())
				mustTalk(t, client, sockettest.Receive(t, who, got))
			}
		})
		t.Run(who+" with Ready in use", func(t *testing.T) {
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
	// The backlog is empty again: it holds what it would without an event.
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 3 {
		t.Errorf("%d more connects succeeded, want 3", n)
	}
}

func TestAcceptEvtGivesABurstWithoutDelay(t *testing.T) {
	const n = 8
	l := sockettest.Listen(t, unixsock.Backlog(n))
	l.Ready()
	evt := l.AcceptEvt(t.Context())
	// All receivers wait already, and on one processor all connections are
	// there before the first can be delivered.
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
	sockettest.WaitInPoller(t, 1)
	start := time.Now()
	for range n {
		sockettest.Connect(t, l.Addr().String())
	}
	var last time.Time
	for range n {
		last = sockettest.Receive(t, "a connection", received)
	}
	if took := last.Sub(start); took > 2*recheck {
		t.Errorf("it took %v", took)
	}
}

func TestReadyAndAcceptEvtInOneSelectBothCome(t *testing.T) {
	l := sockettest.Listen(t)
	ctx := t.Context()
	for range 10 {
		sockettest.Connect(t, l.Addr().String())
		sockettest.Returns(t, "the event is chosen", func() {
			for {
				select {
				case <-l.Ready():
				case a := <-l.AcceptEvt(ctx):
					a.Conn.Close()
					return
				}
			}
		})
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
		t.Error("a second call gave another channel")
	}
	if l.AcceptEvt(other) == evt {
		t.Error("another context gave the same channel")
	}
	never := l.AcceptEvt(context.Background())
	if l.AcceptEvt(context.Background()) != never {
		t.Error("a context that never ends gave two channels")
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
		t.Errorf("200000 calls leave %d bytes behind, want less than 1 MiB", more)
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.Connect(t, l.Addr().String())
	mustReceive(t, evt)
}

func TestEndedEventsLeaveNothingBehind(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context()) // starts the watcher, which stays until Close
	goroutines, heap := runtime.NumGoroutine(), sockettest.HeapInUse()
	for range 10000 {
		ctx, cancel := context.WithCancel(t.Context())
		evt := l.AcceptEvt(ownContext{Context: ctx})
		cancel()
		mustBeOver(t, evt)
	}
	sockettest.WaitGoroutines(t, goroutines)
	if more := sockettest.HeapInUse() - heap; more > 1<<20 {
		t.Errorf("10000 events leave %d bytes behind, want less than 1 MiB", more)
	}
	runtime.KeepAlive(l)
}

func TestAcceptEvtTakesAnyContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	for what, ctx := range map[string]context.Context{
		"Background":     context.Background(),
		"WithValue":      context.WithValue(parent, key{}, 1),
		"WithoutCancel":  context.WithoutCancel(parent),
		"not comparable": ownContext{Context: parent},
		"ends never":     ownContext{Context: context.Background()},
	} {
		t.Run(what, func(t *testing.T) {
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
		t.Skip("makes 40,000 contexts")
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
				t.Errorf("the event gave %+v", a)
			}
		})
	}
	cancel()
	sockettest.Returns(t, "the receivers of the event", wg.Wait)
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
		t.Error("AcceptEvt with a context that is done accepted the connection")
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("AcceptEvt with a context that is done left %d goroutines, want %d", n, goroutines)
	}
}

// recheck is the contract's limit for what another process changes.
const recheck = 50 * time.Millisecond

// manyEvents is more than an implementation is likely to treat as a few.
const manyEvents = 8

// waitOffer waits until a goroutine that the package started is parked in a
// select: it offers a connection, or an error, to the events.
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
	t.Fatalf("waited %v: no goroutine offers a connection", sockettest.Timeout)
}

func TestNothingIsDeliveredOnceTheContextIsDone(t *testing.T) {
	rounds := 2500
	if testing.Short() || sockettest.Race {
		rounds = 100
	}
	for what, others := range map[string]int{"alone": 0, "with another event": 1, "with many events": manyEvents} {
		t.Run(what, func(t *testing.T) {
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
					t.Fatalf("round %d: the event gave %+v", round, a)
				}
			}
			sockettest.Accept(t, l) // the connection was not lost meanwhile
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
				t.Fatalf("round %d: the event gave %+v", round, a)
			}
		default:
			t.Fatalf("round %d: the event is not over", round)
		}
	}
	mustTalk(t, client, sockettest.Accept(t, l))
}

// An offer that is on its way while the context ends can find a receiver that
// came after: a select in which both are ready picks either. That must be rare,
// and what is delivered then must be closed.
func TestContextThatEndsWhileAnOfferIsOnItsWay(t *testing.T) {
	rounds := 10000
	switch {
	case testing.Short():
		rounds = 500
	case sockettest.Race:
		rounds = 2500
	}
	for what, others := range map[string]int{"alone": 0, "with another event": 1, "with many events": manyEvents} {
		for _, ready := range []bool{false, true} {
			name := what
			if ready {
				name += " and Ready"
			}
			t.Run(name, func(t *testing.T) {
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
							t.Fatal(a.Err)
						}
						mustEnd(t, client)
						client = sockettest.Connect(t, l.Addr().String())
						mustBeOver(t, evt)
					}
				}
				most := max(10, rounds/100)
				if others >= manyEvents {
					most = max(20, rounds/50)
				}
				if t.Logf("%d of %d were delivered", delivered, rounds); delivered > most {
					t.Errorf("more than %d were delivered", most)
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
			t.Fatalf("round %d: the event gave %+v", round, a)
		}
		server := sockettest.Accept(t, l)
		mustTalk(t, client, server)
		client.Close()
		server.Close()
	}
}

func TestConnectionAcceptedAheadOutlivesItsEvent(t *testing.T) {
	for _, who := range []string{"Accept", "another event", "an event made before", "Ready"} {
		t.Run(who, func(t *testing.T) {
			l := sockettest.Listen(t)
			ctx, cancel := context.WithCancel(t.Context())
			evt := l.AcceptEvt(ctx)
			var other <-chan unixsock.Accepted
			if who == "an event made before" {
				otherCtx, cancelOther := context.WithCancel(t.Context())
				defer cancelOther()
				other = l.AcceptEvt(otherCtx)
			}
			client := acceptAhead(t, l)
			cancel()
			mustBeOver(t, evt)
			switch who {
			case "Accept":
				mustTalk(t, client, sockettest.Accept(t, l))
			case "another event":
				mustTalk(t, client, mustReceive(t, l.AcceptEvt(t.Context())))
			case "an event made before":
				mustTalk(t, client, mustReceive(t, other))
			case "Ready":
				if !polled(t, l, l.Ready()) {
					t.Error("not ready")
				}
				mustTalk(t, client, sockettest.Accept(t, l))
				if polled(t, l, l.Ready()) {
					t.Error("ready after the accept")
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
		got := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			got <- err
		}()
		go cancel()
		sockettest.Connect(t, l.Addr().String()).Close()
		if err := sockettest.Receive(t, "the accept", got); err != nil {
			t.Fatal(err)
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
				t.Errorf("the event gave %+v", a)
			}
		})
	}
	l.Close()
	sockettest.Returns(t, "the receivers of an event", wg.Wait)
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

// skipUnlessPendingIsKept skips a test whose connection has to stay pending while the
// process is out of descriptors.
func skipUnlessPendingIsKept(t *testing.T) {
	t.Helper()
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops the connection that accept(2) has no descriptor for")
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
		a, ok := sockettest.ReceiveOK(t, "the error", evt)
		var opErr *net.OpError
		if !ok || a.Conn != nil || !errors.Is(a.Err, syscall.EMFILE) || !errors.As(a.Err, &opErr) || opErr.Op != "accept" {
			t.Fatalf("got %+v, %v", a, ok)
		}
	}
	free()
	a := sockettest.Receive(t, "the event", evt)
	if a.Err != nil { // one that was on offer already
		a = sockettest.Receive(t, "the event", evt)
	}
	if a.Err != nil {
		t.Fatal(a.Err)
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
		t.Errorf("got %v", err)
	}
	free()
	mustTalk(t, client, sockettest.Accept(t, l))
}

func TestNothingSpinsWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	stays := sockettest.KeepsPendingWithoutDescriptors(t)
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	received := make(chan unixsock.Accepted, 1)
	go func() { received <- <-l.AcceptEvt(t.Context()) }()
	if a := sockettest.Receive(t, "the error", received); !errors.Is(a.Err, syscall.EMFILE) {
		t.Fatalf("AcceptEvt without descriptors: got %+v, want EMFILE", a)
	}
	if stays {
		sockettest.Receive(t, "Ready", kept)
	}
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
		t.Errorf("got %+v", a)
	case <-time.After(100 * time.Millisecond):
	}
	idles(t)
}

func TestEndedEventLeavesNoGoroutineBesideAWaitingAccept(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context()) // starts the watcher, which stays until Close
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
	if err := sockettest.Receive(t, "the accept", errs); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	sockettest.WaitGoroutines(t, goroutines-1)
}

func TestConnectionAcceptedAheadKeepsItsPeer(t *testing.T) {
	l := sockettest.Listen(t)
	evt := l.AcceptEvt(t.Context())
	client := acceptAhead(t, l)
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	b, err := io.ReadAll(mustReceive(t, evt))
	if string(b) != "last words" || err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestEventThatHasEndedHoldsNothing(t *testing.T) {
	l := sockettest.Listen(t)
	l.Ready() // which keeps the watcher going
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
	sockettest.WaitFor(t, "the contexts of events that have ended are held", func() bool {
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

// TestReceiversCloseOnWinsOverItsEvent releases a connection in the moment of its delivery.
// The event makes its context the custodian only if the receiver has not called CloseOn.
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
		server := sockettest.Receive(t, "the delivery", released)
		cancel()
		mustBeOver(t, evt)
		mustTalk(t, client, server)
		client.Close()
		server.Close()
	}
}

// TestAcceptBesideAnEventGetsWhatAnySyncAcceptedAhead has an Accept wait while calls of Ready
// and AcceptEvt, and the ends of contexts, look at the backlog, too.
func TestAcceptBesideAnEventGetsWhatAnySyncAcceptedAhead(t *testing.T) {
	rounds := 3000
	if testing.Short() || sockettest.Race {
		rounds = 500
	}
	l := sockettest.Listen(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-l.Ready():
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
		if err := sockettest.Receive(t, "the Accept", accepted); err != nil {
			t.Fatalf("Accept beside events: got %v, want a connection", err)
		}
	}
	close(stop)
	busy.Wait()
}
