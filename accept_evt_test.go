//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
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
// ahead, for an event.
func acceptAhead(t testing.TB, l *unixsock.Listener) (client *unixsock.Conn) {
	t.Helper()
	client = sockettest.Connect(t, l.Addr().String())
	sockettest.WaitFor(t, "the listener has not accepted the connection ahead", func() bool { return !sockettest.Pending(t, l) })
	return client
}

func TestAcceptEvtTakesAnyContext(t *testing.T) {
	type key struct{}
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	for name, ctx := range map[string]context.Context{
		"Background":     context.Background(),
		"WithCancel":     parent,
		"WithValue":      context.WithValue(parent, key{}, 1),
		"WithoutCancel":  context.WithoutCancel(parent),
		"not comparable": ownContext{Context: parent},
		"ends never":     ownContext{Context: context.Background()},
		"AfterFunc":      newLedger(),
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

func TestAtMostOneConnectionIsAcceptedAhead(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(2))
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l.AcceptEvt(ctx)
	}
	acceptAhead(t, l)
	// The backlog is empty again, so it holds as many connections as without an event.
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 3 {
		t.Errorf("connects until the backlog of 2 is full: got %d, want 3", n)
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

// TestOneProcessorLosesNoConnection starts as many receivers as clients, of every sort and in
// random order. On one processor, a goroutine that the poller has woken runs long after the
// event, for example after another one has accepted the connection.
func TestOneProcessorLosesNoConnection(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(1000) {
		const n = 6
		l := sockettest.ListenAt(t, path, unixsock.Backlog(n), unixsock.UnlinkOnClose())
		ctx, cancel := context.WithCancel(t.Context())
		var taken atomic.Int32
		accept := func(c io.Closer, err error) {
			if err != nil {
				t.Errorf("accept: got %v, want a connection", err)
				return
			}
			c.Close()
			taken.Add(1)
		}
		receivers := []func(){
			func() { c, err := l.Accept(); accept(c, err) },
			func() { c, err := l.AcceptContext(ctx); accept(c, err) },
			func() { a := <-l.AcceptEvt(ctx); accept(a.Conn, a.Err) },
			func() { a := <-l.AcceptEvt(context.Background()); accept(a.Conn, a.Err) },
			func() {
				for range l.Ready() {
					c, err := l.TryAccept()
					if !errors.Is(err, syscall.EAGAIN) {
						accept(c, err)
						return
					}
				}
			},
		}
		var busy sync.WaitGroup
		do := func(f func()) { busy.Go(f) }
		var steps []func()
		for range n {
			wait := receivers[rand.N(len(receivers))]
			connect := func() { sockettest.Connect(t, l.Addr().String()).Close() }
			begin := func() {
				own, end := context.WithCancel(t.Context())
				l.AcceptEvt(own)
				runtime.Gosched()
				end()
			}
			steps = append(steps, func() { do(wait) }, connect, []func(){begin, runtime.Gosched, func() { l.Ready() }}[rand.N(3)])
		}
		rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, step := range steps {
			for range rand.N(3) {
				runtime.Gosched()
			}
			step()
		}
		sockettest.CheckReturns(t, "a receiver for each connection", busy.Wait)
		if got := taken.Load(); got != n {
			t.Fatalf("%d connects and as many receivers: got %d connections, want %d", n, got, n)
		}
		cancel()
		l.Close()
	}
}

func TestAcceptEvtOfTheSameContextLeavesNothingBehind(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l.AcceptEvt(ctx)
	goroutines, heap := runtime.NumGoroutine(), sockettest.HeapInUse()
	type key struct{}
	for range 100000 {
		l.AcceptEvt(ctx)
		l.AcceptEvt(context.WithValue(ctx, key{}, 1))
	}
	if more := sockettest.HeapInUse() - heap; more > 1<<20 {
		t.Errorf("heap after 200000 calls of AcceptEvt: got %d more bytes, want at most 1 MiB", more)
	}
	sockettest.WaitGoroutines(t, goroutines)
}

func TestEndedEventsLeaveNothingBehind(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context()) // starts the watcher, which runs until Close
	ctx, stop := context.WithCancel(t.Context())
	errs := accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
	goroutines, heap := runtime.NumGoroutine(), sockettest.HeapInUse()
	for range sockettest.Times(10000) {
		own, cancel := context.WithCancel(t.Context())
		evt := l.AcceptEvt(ownContext{Context: own})
		cancel()
		mustBeOver(t, evt)
	}
	sockettest.WaitGoroutines(t, goroutines)
	if more := sockettest.HeapInUse() - heap; more > 1<<20 {
		t.Errorf("heap after events that ended: got %d more bytes, want at most 1 MiB", more)
	}
	stop()
	if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, context.Canceled) {
		t.Errorf("AcceptContext with a canceled context: got %v, want context.Canceled", err)
	}
	sockettest.WaitGoroutines(t, goroutines-1)
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

// Connections that an event has delivered share its entry on the context. It stays until the
// event is over and the last of them is closed.
func TestEventAndItsConnectionsLeaveNothingOnTheContext(t *testing.T) {
	l := sockettest.Listen(t)
	ctx := newLedger()
	evt := l.AcceptEvt(ctx)
	var servers []*unixsock.Conn
	for range 50 {
		sockettest.Connect(t, l.Addr().String())
		servers = append(servers, mustReceive(t, evt))
	}
	ctx.mustHave(t, 1, "an event that has delivered 50 connections")
	servers[0].CloseOn(context.Background())
	for _, c := range servers[2:] {
		c.Close()
	}
	ctx.mustHave(t, 1, "an event that is alive")
	l.Close()
	mustBeOver(t, evt)
	ctx.mustHave(t, 1, "an event that is over, and a connection that is not closed")
	servers[1].Close()
	ctx.mustHave(t, 0, "an event that is over, and whose connections are closed or released")
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
	l.Close() // closes the events, not the connections
	mustTalk(t, spared, sparedServer)
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

// TestReceiversCloseOnWinsOverItsEvent releases a connection at the moment of its delivery.
// The listener makes the event's context the custodian only if the receiver has not called
// CloseOn.
func TestReceiversCloseOnWinsOverItsEvent(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	for range sockettest.Times(1500) {
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

// skipUnlessPendingIsKept skips the test on a kernel that drops a pending connection
// while the process is out of descriptors.
func skipUnlessPendingIsKept(t *testing.T) {
	t.Helper()
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops a pending connection if accept(2) has no descriptor for it")
	}
}

func TestErrorOfAcceptIsReportedAndLosesNoConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	_, acceptErr := l.Accept()
	_, tryErr := l.TryAccept()
	evt := l.AcceptEvt(t.Context())
	_, besideErr := l.Accept() // what is on offer is the events' error
	errs := []error{acceptErr, tryErr, besideErr}
	for range 5 {
		a, ok := sockettest.ReceiveOK(t, "AcceptEvt to deliver an error", evt)
		if !ok || a.Conn != nil {
			t.Fatalf("receive from AcceptEvt without descriptors: got %+v, %v; want an error, true", a, ok)
		}
		errs = append(errs, a.Err)
	}
	for i, err := range errs {
		var opErr *net.OpError
		if !errors.Is(err, syscall.EMFILE) || !errors.As(err, &opErr) || opErr.Op != "accept" {
			t.Errorf("accept %d without descriptors: got %v, want a *net.OpError of accept with EMFILE", i, err)
		}
	}
	if !polled(t, l, l.Ready()) {
		t.Error("select on Ready() while accepts fail: got not ready, want ready")
	}
	free()
	l.Ready() // accepts again, so the error on offer passes
	mustTalk(t, client, mustReceive(t, evt))
	mustTalk(t, sockettest.Connect(t, l.Addr().String()), mustReceive(t, evt))
}

// gVisor and macOS drop the first connection as accept(2) fails.
func TestAcceptReportsEMFILEOfAPendingConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	for range 2 {
		sockettest.Connect(t, l.Addr().String())
	}
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	if c, err := l.Accept(); c != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Accept without descriptors: got %v, %v; want nil, EMFILE", c, err)
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
	if a := sockettest.Receive(t, "AcceptEvt to deliver an error", l.AcceptEvt(t.Context())); !errors.Is(a.Err, syscall.EMFILE) {
		t.Fatalf("receive from AcceptEvt without descriptors: got %+v, want EMFILE", a)
	}
	sockettest.Receive(t, "Ready", kept)
	idles(t)
}

func TestNothingPendingIsNoErrorWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	ctx, cancel := context.WithCancel(t.Context())
	errs := accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
	var evt <-chan unixsock.Accepted // none at first
	for range 2 {
		select {
		case err := <-errs:
			t.Fatalf("AcceptContext with no connection and no descriptor: got %v, want it to wait", err)
		case a := <-evt:
			t.Fatalf("receive from AcceptEvt with no connection and no descriptor: got %+v, want nothing", a)
		case <-time.After(100 * time.Millisecond): // nothing must come for a while
		}
		evt = l.AcceptEvt(t.Context())
	}
	idles(t)
	cancel()
	if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, context.Canceled) {
		t.Errorf("AcceptContext after the cancel: got %v, want context.Canceled", err)
	}
}
