//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// mustReceive returns the next connection from evt. The connection is closed at the
// end of the test.
func mustReceive(t testing.TB, evt <-chan unixsock.Accepted) *unixsock.Conn {
	t.Helper()
	a, ok := sockettest.ReceiveOK(t, "AcceptEvt", evt)
	if !ok || a.Conn == nil {
		t.Fatalf("receive from AcceptEvt: got %+v, %v; want a connection, true", a, ok)
	}
	return sockettest.Got(a.Conn, a.Err).Must(t)
}

// mustBeOver fails the test unless evt is closed within [sockettest.Timeout], without a value.
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
	sockettest.Send(t, client, "x")
	sockettest.Expect(t, server, "x")
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

// polled reports whether l is ready, by a select with a default case. ready is the
// channel of l: the result of a new call of Ready, or kept from an earlier call.
func polled(t testing.TB, l *unixsock.Listener, ready <-chan *unixsock.Listener) bool {
	t.Helper()
	select {
	case got, ok := <-ready:
		if got != l || !ok {
			t.Fatalf("select on Ready: got %v, %v; want the listener, true", got, ok)
		}
		return true
	default:
		return false
	}
}

func notReadyWithin50ms(t testing.TB, l *unixsock.Listener, kept <-chan *unixsock.Listener, by string) {
	t.Helper()
	for start := time.Now(); polled(t, l, kept); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Second { // 50 ms are documented: this allows for a busy machine
			t.Fatalf("select on the kept channel 1 s after the accept by %s: got ready, want not ready within 50 ms", by)
		}
	}
}

// Ready is polled in each state. An accept that the listener does not see, by a receiver that
// waited or another Listener, may leave the kept channel ready for 50 ms.
func TestReadyIsExactWhenPolled(t *testing.T) {
	dir := sockettest.ShortDir(t)
	path, link := filepath.Join(dir, "s"), filepath.Join(dir, "link")
	sockettest.Check(t, os.Symlink("s", link))
	for name, test := range map[string]struct {
		isSeen bool
		accept func(l, twin *unixsock.Listener)
	}{
		"Accept":           {true, func(l, _ *unixsock.Listener) { sockettest.Accept(t, l).Close() }},
		"Accept beside":    {true, func(l, _ *unixsock.Listener) { l.AcceptEvt(t.Context()); sockettest.Accept(t, l).Close() }},
		"TryAccept":        {true, func(l, _ *unixsock.Listener) { sockettest.Got(l.TryAccept()).Must(t).Close() }},
		"another Listener": {false, func(_, twin *unixsock.Listener) { sockettest.Accept(t, twin).Close() }},
		"a callback that panics": {true, func(l, _ *unixsock.Listener) {
			defer func() { _ = recover() }()
			sockettest.Control(t, l, func(fd int) {
				nfd, _, err := unix.Accept(fd)
				sockettest.Check(t, err)
				unix.Close(nfd)
				panic("of the callback")
			})
		}},
		"an event in a select with Ready": {false, func(l, _ *unixsock.Listener) {
			for deadline := time.Now().Add(sockettest.Timeout); time.Now().Before(deadline); {
				select {
				case <-l.Ready():
				case a := <-l.AcceptEvt(t.Context()):
					sockettest.Got(a.Conn, a.Err).Must(t).Close()
					return
				}
			}
			t.Fatal("select with Ready and AcceptEvt: it never chose the event")
		}},
	} {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		twin, kept := adopt(t, l), l.Ready()
		for round := range sockettest.Times(20) {
			if l.Ready() != kept || polled(t, l, l.Ready()) || polled(t, l, kept) {
				t.Fatalf("Ready before a connect, %s: got another channel or ready, want the same one, not ready", name)
			}
			client := sockettest.Got(net.Dial("unix", []string{path, link}[round%2])).Must(t)
			if round%4 < 2 {
				sockettest.Receive(t, "the kept channel", kept)
			}
			for range 3 {
				if !polled(t, l, l.Ready()) {
					t.Fatalf("select on Ready() after the connect, %s: got not ready, want ready", name)
				}
			}
			if test.accept(l, twin); !test.isSeen && round%3 == 0 {
				notReadyWithin50ms(t, l, kept, name)
			} else if test.isSeen && polled(t, l, kept) || polled(t, l, l.Ready()) {
				t.Fatalf("select on Ready after the accept by %s: got ready, want not ready", name)
			}
			client.Close()
		}
		l.Close()
		twin.Close()
	}
}

func TestReadyFollowsAnotherProcess(t *testing.T) {
	l := sockettest.Listen(t)
	kept, f := l.Ready(), sockettest.Got(l.File()).Must(t)
	if sockettest.InChild(t, func(cmd *exec.Cmd) {
		cmd.ExtraFiles = []*os.File{f}
		sockettest.Connect(t, l.Addr().String())
		sockettest.Receive(t, "the kept channel", kept)
	}) {
		twin := sockettest.Got(unixsock.FileListener(os.NewFile(3, "listener"))).Must(t)
		sockettest.Got(twin.TryAccept()).Must(t)
		return
	}
	notReadyWithin50ms(t, l, kept, "another process")
}

// There are as many receivers as clients, of every sort and in random order, and other accepts,
// which may end without a connection. On one processor, a goroutine that the poller has woken
// runs long after the event, for example after another one has accepted the connection.
func TestOneProcessorLosesNoConnection(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	path := filepath.Join(sockettest.ShortDir(t), "s")
	ways, goroutines := slices.Collect(maps.Values(accepts)), runtime.NumGoroutine()
	for range sockettest.Times(400) {
		const n = 6
		l := sockettest.ListenAt(t, path, unixsock.Backlog(4*n), unixsock.UnlinkOnClose())
		var busy sync.WaitGroup
		connect := func() {
			c, err := unixsock.Connect(path)
			sockettest.ExpectError(t, "Connect", err, nil)
			c.Close()
		}
		giveBack := func(c *unixsock.Conn, err error) {
			if err == nil {
				c.Close()
				connect()
			}
		}
		others := []func(){
			runtime.Gosched,
			func() { l.Ready() },
			func() { giveBack(l.TryAccept()) },
			func() {
				ctx, end := context.WithCancel(t.Context())
				l.AcceptEvt(ctx)
				busy.Go(func() { giveBack(l.AcceptContext(ctx)) })
				runtime.Gosched()
				end()
			},
		}
		var steps []func()
		for range n {
			accept := ways[rand.N(len(ways))]
			steps = append(steps, connect, others[rand.N(len(others))], func() {
				busy.Go(func() {
					c, err := accept(l)
					sockettest.ExpectError(t, "accept", err, nil)
					c.Close()
				})
			})
		}
		rand.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, step := range steps {
			for range rand.N(3) {
				runtime.Gosched()
			}
			step()
		}
		sockettest.CheckReturns(t, "a receiver for each connection", busy.Wait)
		_, err := l.TryAccept()
		sockettest.ExpectError(t, "TryAccept after as many accepts as connects", err, syscall.EAGAIN)
		l.Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
}

// A context that ends closes the connections that its event has delivered, unless the receiver
// has called CloseOn.
func TestEventEndsWithItsContext(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(t.Context())
	ledger := newLedger()
	for _, test := range map[string]struct {
		ctx context.Context
		end func()
	}{
		"Background":         {context.Background(), nil},
		"WithoutCancel":      {context.WithoutCancel(ctx), nil},
		"that never ends":    {ownContext{Context: context.Background()}, nil},
		"that has AfterFunc": {ledger, ledger.end},
		"WithValue":          {context.WithValue(ctx, key{}, 1), cancel},
	} {
		l := sockettest.Listen(t)
		evt := l.AcceptEvt(test.ctx)
		var clients, servers [2]*unixsock.Conn
		for i := range clients {
			clients[i] = sockettest.Connect(t, l.Addr().String())
			servers[i] = mustReceive(t, l.AcceptEvt(test.ctx))
			mustTalk(t, clients[i], servers[i])
		}
		if servers[1].CloseOn(context.Background()); test.end != nil {
			test.end()
			mustEnd(t, clients[0])
		} else {
			l.Close()
			mustTalk(t, clients[0], servers[0])
		}
		mustBeOver(t, evt)
		mustBeOver(t, l.AcceptEvt(test.ctx))
		mustTalk(t, clients[1], servers[1])
	}
}

// The context ends, or the receiver calls CloseOn, in the moment of the delivery.
func TestReceiversCloseOnWinsOverItsEvent(t *testing.T) {
	l := sockettest.Listen(t)
	processors := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(processors)
	for i := range sockettest.Times(400) {
		ctx, cancel := context.WithCancel(t.Context())
		evt, received := l.AcceptEvt(ctx), make(chan *unixsock.Conn, 1)
		receive := func(c *unixsock.Conn) {
			if i%2 == 0 {
				c.CloseOn(context.Background())
			}
			received <- c
		}
		var client *unixsock.Conn
		if i%4 < 2 {
			go func() { receive((<-evt).Conn) }()
			client = sockettest.Connect(t, l.Addr().String())
		} else { // on one processor, the receiver goes on before the goroutine that has delivered
			runtime.GOMAXPROCS(1)
			client = acceptAhead(t, l)
			runtime.Gosched() // until the connection is on offer
			receive(sockettest.Receive(t, "AcceptEvt", evt).Conn)
		}
		server := sockettest.Receive(t, "AcceptEvt", received)
		runtime.GOMAXPROCS(processors)
		cancel()
		mustBeOver(t, evt)
		if i%2 == 0 {
			mustTalk(t, client, server)
		} else {
			mustEnd(t, client)
		}
		client.Close()
		server.Close()
	}
}

// Contexts with one Done channel share an event. Connections that it has delivered share its
// entry on the context, which stays until the event is over and the last of them is closed.
func TestEventsAndTheirConnectionsLeaveNothingBehind(t *testing.T) {
	type key struct{}
	l, ctx, ended := sockettest.Listen(t), newLedger(), newLedger()
	evt, goroutines := l.AcceptEvt(ctx), runtime.NumGoroutine()
	over := l.AcceptEvt(ended)
	ended.end()
	mustBeOver(t, over)
	for range 1000 {
		if l.AcceptEvt(context.WithValue(ctx, key{}, 1)) != evt {
			t.Fatal("AcceptEvt with a context derived from another one: got another channel, want the same one")
		}
	}
	sockettest.WaitGoroutines(t, goroutines)
	var servers []*unixsock.Conn
	for range 4 {
		sockettest.Connect(t, l.Addr().String())
		servers = append(servers, mustReceive(t, evt))
	}
	servers[0].CloseOn(context.Background())
	servers[1].Close()
	servers[2].Close()
	ctx.mustHave(t, 1, "an event that is alive")
	l.Close()
	mustBeOver(t, evt)
	ctx.mustHave(t, 1, "an event that is over, and a connection that is not closed")
	servers[3].Close()
	ctx.mustHave(t, 0, "an event that is over, and whose connections are closed or released")
}

// A client that was accepted ahead and finds its connection closed may connect again at once.
func TestClientThatConnectsAgainDoesNotReachTheClosingListener(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(60) {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		l.AcceptEvt(t.Context())
		client, again := acceptAhead(t, l), make(chan *unixsock.Conn, 1)
		go func() {
			client.Read(make([]byte, 1)) // ends with Close
			c, _ := unixsock.Connect(path)
			again <- c
		}()
		l.Close()
		if c := sockettest.Receive(t, "Connect of the client", again); c != nil {
			t.Fatalf("Connect after the end of a connection that was accepted ahead: got %v, want an error", c)
		}
	}
}

func TestAcceptsAndDrainWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops a pending connection if accept(2) has no descriptor for it")
	}
	l := sockettest.Listen(t)
	clients := []*unixsock.Conn{sockettest.Connect(t, l.Addr().String()), sockettest.Connect(t, l.Addr().String())}
	free := sockettest.ExhaustDescriptors(t)
	mustFail := func(c *unixsock.Conn, err error) {
		t.Helper()
		if expectListenerError(t, "accept without descriptors", "accept", l.Addr().String(), err, syscall.EMFILE); c != nil {
			t.Errorf("accept without descriptors: got %v, want nil", c)
		}
	}
	mustFail(accepts["Accept"](l))
	mustFail(l.TryAccept())
	evt := l.AcceptEvt(t.Context())
	mustFail(accepts["Accept"](l)) // beside the error that is on offer
	for range 5 {
		a := sockettest.Receive(t, "AcceptEvt to deliver an error", evt)
		mustFail(a.Conn, a.Err)
	}
	if !polled(t, l, l.Ready()) {
		t.Error("select on Ready() while accepts fail: got not ready, want ready")
	}
	sockettest.Check(t, l.Drain())
	mustFail(accepts["Accept"](l))
	sockettest.WaitIdle(t)
	free()
	l.Ready() // accepts again, so the error on offer passes
	for _, client := range clients {
		mustTalk(t, client, mustReceive(t, evt))
	}
	mustBeOver(t, evt)
	mustBeClosed(t, l)
}

func TestReadyAndEventsCostNothingBeforeTheirUseAndAfterClose(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	for range 10 {
		l := sockettest.Listen(t)
		sockettest.CheckExchange(t, l.Addr().String(), l)
		sockettest.WaitGoroutines(t, goroutines)
		sockettest.WaitDescriptors(t, descriptors+1)
		l.AcceptEvt(ctx)
		l.AcceptEvt(ownContext{Context: ctx})
		client := sockettest.Connect(t, l.Addr().String())
		sockettest.Receive(t, "Ready", l.Ready())
		sockettest.WaitDescriptors(t, descriptors+3)
		client.Close()
		l.Close()
		sockettest.WaitGoroutines(t, goroutines)
		sockettest.WaitDescriptors(t, descriptors)
	}
}

func TestNothingSpinsWhileAConnectionIsPending(t *testing.T) {
	before, after := sockettest.Listen(t), sockettest.Listen(t)
	before.Ready()
	sockettest.Connect(t, before.Addr().String())
	sockettest.Connect(t, after.Addr().String())
	after.Ready()
	after.AcceptEvt(t.Context())
	sockettest.WaitIdle(t)
}
