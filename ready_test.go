//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// polled reports whether l is ready, by a select with a default. ready is its
// channel: from a call of Ready each time, or kept.
func polled(t testing.TB, l *unixsock.Listener, ready <-chan *unixsock.Listener) bool {
	t.Helper()
	select {
	case got, ok := <-ready:
		if got != l || !ok {
			t.Fatalf("a receive gave %v, %v, want the listener", got, ok)
		}
		return true
	default:
		return false
	}
}

// dialNet connects as a program without this package does, which therefore
// it does not notice. The connection is closed with the test.
func dialNet(t testing.TB, path string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// acceptElsewhere has another process, which inherits l, take one connection. It
// returns false in that process.
func acceptElsewhere(t *testing.T, l *unixsock.Listener) bool {
	t.Helper()
	return !sockettest.InChild(t, func(cmd *exec.Cmd) {
		raw, err := l.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			var nfd int
			if nfd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(nfd), "listener")}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.ExtraFiles[0].Close() })
	})
}

// isElsewhere reports whether this is the other process, and does its work.
func isElsewhere(t *testing.T) bool {
	t.Helper()
	if os.Getenv(sockettest.ChildVar) != t.Name() {
		return false
	}
	f := os.NewFile(3, "listener")
	l, err := unixsock.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !sockettest.Pending(t, l) {
		t.Fatal("no connection is pending for another process")
	}
	sockettest.Accept(t, l).Close()
	return true
}

func TestReadyIsOneChannelAndYieldsTheListener(t *testing.T) {
	l := sockettest.Listen(t)
	ready := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	for range 3 {
		if l.Ready() != ready {
			t.Fatal("a second call gave another channel")
		}
		if got := sockettest.Receive(t, "Ready", ready); got != l {
			t.Fatalf("got %v", got)
		}
	}
}

func TestReadyIsLevelTriggered(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for range 50 {
				ready := kept
				if i%2 == 0 {
					ready = l.Ready()
				}
				if got := <-ready; got != l {
					t.Errorf("got %v", got)
				}
			}
		})
	}
	dialNet(t, l.Addr().String())
	sockettest.Returns(t, "everyone receives, again and again", wg.Wait)
}

func TestReadyServesAnyNumberOfReceives(t *testing.T) {
	l := sockettest.Listen(t)
	ready := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	const n = 500
	polls := make([]<-chan *unixsock.Listener, n)
	for i := range polls {
		polls[i] = l.Ready()
	}
	for i := range polls {
		if !polled(t, l, l.Ready()) {
			t.Fatalf("poll %d says not ready", i)
		}
	}
	if !polled(t, l, ready) {
		t.Error("the channel that was kept says not ready")
	}
}

func TestKeptReadyIsLevelTriggered(t *testing.T) {
	l := sockettest.Listen(t)
	ready := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Connect(t, l.Addr().String())
	for range 2 {
		for range 50 {
			if got := sockettest.Receive(t, "the channel that was kept", ready); got != l {
				t.Fatalf("a receive gave %v, want the listener", got)
			}
		}
		sockettest.Accept(t, l)
	}
	if polled(t, l, ready) {
		t.Error("Ready without a connection: ready, want not ready")
	}
}

func TestReadyIsExactWhenPolled(t *testing.T) {
	rounds := 2000
	switch {
	case testing.Short():
		rounds = 100
	case sockettest.Race:
		rounds = 700
	}
	connects := map[string]func(*unixsock.Listener) (net.Conn, error){
		"Connect":  func(l *unixsock.Listener) (net.Conn, error) { return unixsock.Connect(l.Addr().String()) },
		"net.Dial": func(l *unixsock.Listener) (net.Conn, error) { return net.Dial("unix", l.Addr().String()) },
	}
	accepts := map[string]func(*unixsock.Listener) (net.Conn, error){
		"Accept":        func(l *unixsock.Listener) (net.Conn, error) { return l.Accept() },
		"AcceptContext": func(l *unixsock.Listener) (net.Conn, error) { return l.AcceptContext(context.Background()) },
		"AcceptContext with a context": func(l *unixsock.Listener) (net.Conn, error) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			return l.AcceptContext(ctx)
		},
	}
	for connectName, connect := range connects {
		for acceptName, accept := range accepts {
			for _, keep := range []bool{false, true} {
				name := connectName + " and " + acceptName + ", Ready called"
				if keep {
					name = connectName + " and " + acceptName + ", kept"
				}
				t.Run(name, func(t *testing.T) {
					l := sockettest.Listen(t)
					kept := l.Ready()
					ready := l.Ready
					if keep {
						ready = func() <-chan *unixsock.Listener { return kept }
					}
					for range rounds {
						if polled(t, l, ready()) {
							t.Fatal("ready before the connect")
						}
						client, err := connect(l)
						if err != nil {
							t.Fatal(err)
						}
						if keep {
							// A poll may lag until a goroutine has run.
							sockettest.Receive(t, "the channel that was kept", kept)
						} else if !polled(t, l, ready()) {
							t.Fatal("not ready after the connect")
						}
						server, err := accept(l)
						if err != nil {
							t.Fatal(err)
						}
						if polled(t, l, ready()) {
							t.Fatal("ready after the accept")
						}
						client.Close()
						server.Close()
					}
				})
			}
		}
	}
}

func TestKeptReadyReportsAConnectByAnyPath(t *testing.T) {
	dir := sockettest.ShortDir(t)
	l := sockettest.ListenAt(t, filepath.Join(dir, "s"))
	if err := os.Symlink("s", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	kept := l.Ready()
	for _, path := range []string{dir + "//s", dir + "/./s", dir + "/link"} {
		sockettest.Connect(t, path)
		sockettest.Receive(t, "the kept channel, after a connect to "+path, kept)
		sockettest.Accept(t, l)
		if polled(t, l, kept) {
			t.Errorf("ready after the accept of a connect to %s", path)
		}
	}
}

func TestKeptReadyReportsAConnectToARenamedFile(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	old := sockettest.ListenAt(t, path)
	old.Ready()
	l := sockettest.ListenAt(t, path+"2")
	kept := l.Ready()
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c := sockettest.Connect(t, path)
		sockettest.Receive(t, "the kept channel", kept)
		if polled(t, old, old.Ready()) {
			t.Fatal("the listener whose file was replaced is ready")
		}
		sockettest.Accept(t, l).Close()
		c.Close()
	}
}

func TestReadyFollowsAnAcceptByAnotherListenerOfTheSocket(t *testing.T) {
	l := sockettest.Listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	twin, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	kept := l.Ready()
	for i := range 100 {
		c := sockettest.Connect(t, l.Addr().String())
		sockettest.Receive(t, "the kept channel", kept)
		sockettest.Accept(t, twin).Close()
		if i%2 == 0 && polled(t, l, l.Ready()) {
			t.Fatal("Ready() after the accept: ready, want not ready")
		}
		for start := time.Now(); polled(t, l, kept); time.Sleep(time.Millisecond) {
			if time.Since(start) > time.Second { // the contract says 50 ms
				t.Fatal("the kept channel is still ready a second after the accept")
			}
		}
		c.Close()
	}
}

func TestReadyIsExactWithAnEventAlive(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context())
	kept := l.Ready()
	for round := range 1000 {
		client := sockettest.Connect(t, l.Addr().String())
		if round%2 == 0 {
			if !polled(t, l, l.Ready()) {
				t.Fatal("not ready after the connect")
			}
		} else {
			sockettest.Receive(t, "the kept channel", kept)
		}
		server := sockettest.Accept(t, l)
		ready := kept
		if round%2 == 0 {
			ready = l.Ready()
		}
		if polled(t, l, ready) {
			t.Fatal("ready after the accept")
		}
		client.Close()
		server.Close()
	}
}

func TestReadyStaysWhileAnotherConnectionWaits(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(8))
	kept := l.Ready()
	for range 5 {
		sockettest.Connect(t, l.Addr().String())
	}
	for waiting := 5; waiting > 0; waiting-- {
		sockettest.Receive(t, "the kept channel", kept)
		if !polled(t, l, l.Ready()) {
			t.Fatalf("not ready while %d wait", waiting)
		}
		sockettest.Accept(t, l)
	}
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("Ready without a connection: ready, want not ready")
	}
}

func TestReadyNeverSucceedsWhileNoneIsPending(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 10 {
		wg.Go(func() {
			select {
			case got := <-kept:
				t.Errorf("a receive gave %v", got)
			case <-stop:
			}
		})
	}
	time.Sleep(120 * time.Millisecond) // longer than any look-again
	close(stop)
	wg.Wait()
}

func TestPolledReadyToleratesOtherReceivers(t *testing.T) {
	const others = 50
	l := sockettest.Listen(t)
	kept := l.Ready()
	for range 50 {
		var wg sync.WaitGroup
		before := sockettest.GoroutinesIn("chan receive")
		for range others {
			wg.Go(func() {
				if got := <-kept; got != l {
					t.Errorf("got %v", got)
				}
			})
		}
		sockettest.WaitFor(t, "the others wait", func() bool { return sockettest.GoroutinesIn("chan receive") >= before+others })
		client := sockettest.Connect(t, l.Addr().String())
		for i := range 3 {
			if !polled(t, l, l.Ready()) {
				t.Fatalf("poll %d says not ready", i)
			}
		}
		sockettest.Returns(t, "the others", wg.Wait)
		server := sockettest.Accept(t, l)
		if polled(t, l, l.Ready()) {
			t.Fatal("ready after the accept")
		}
		client.Close()
		server.Close()
	}
}

const pathVar = "UNIXSOCK_TEST_PATH"

func TestReadyReportsAConnectByAnotherProcess(t *testing.T) {
	if path := os.Getenv(pathVar); path != "" {
		if sockettest.InChild(t, nil) {
			sockettest.Connect(t, path)
		}
		return
	}
	l := sockettest.Listen(t)
	kept := l.Ready()
	woken := make(chan *unixsock.Listener, 1)
	go func() { woken <- <-kept }()
	if sockettest.InChild(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, pathVar+"="+l.Addr().String()) }) {
		t.Fatal("the child has no path")
	}
	if !polled(t, l, l.Ready()) {
		t.Error("select on Ready(): not ready, want ready")
	}
	if got := sockettest.Receive(t, "a receive from the kept channel", woken); got != l {
		t.Errorf("got %v", got)
	}
}

func TestReadyFollowsAnAcceptByAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	for range 10 {
		sockettest.Receive(t, "the channel that was kept", kept)
	}
	if !acceptElsewhere(t, l) {
		return
	}
	if polled(t, l, l.Ready()) {
		t.Error("select on Ready(): ready, want not ready")
	}
}

func TestKeptReadyFollowsAnAcceptByAnotherProcessWithin50ms(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "the channel that was kept", kept)
	if !acceptElsewhere(t, l) {
		return
	}
	for start := time.Now(); polled(t, l, kept); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Second { // far longer than it takes
			t.Fatal("it is ready still")
		}
	}
}

func TestReadyAcceptsNothing(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(2))
	kept := l.Ready()
	dialNet(t, l.Addr().String())
	for range 1000 {
		sockettest.Receive(t, "the channel that was kept", kept)
		sockettest.Receive(t, "Ready", l.Ready())
	}
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 2 {
		t.Errorf("%d more connects succeeded, want 2", n)
	}
}

func TestReadyLeavesTheBacklogToAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "Ready", l.Ready())
	acceptElsewhere(t, l) // fails the test if nothing waits there
}

func TestReadyReportsWhatAnEventHasAccepted(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context())
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.WaitFor(t, "the event accepts", func() bool { return !sockettest.Pending(t, l) })
	for range 10 {
		if !polled(t, l, l.Ready()) || !polled(t, l, kept) {
			t.Fatal("not ready")
		}
	}
	sockettest.Accept(t, l)
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("ready after the accept")
	}
}

func TestReadyIsExactAfterAReceiveFromAnEvent(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 1000 {
		sockettest.Connect(t, l.Addr().String()).Close()
		if !polled(t, l, l.Ready()) {
			t.Fatal("not ready after the connect")
		}
		sockettest.Receive(t, "AcceptEvt", l.AcceptEvt(ctx)).Conn.Close()
		if polled(t, l, l.Ready()) {
			t.Fatal("ready after the receive")
		}
	}
}

func TestCloseClosesReady(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "the channel that was kept", kept)
	l.Close()
	for range 300 { // more than could have been left in it
		for _, ready := range []<-chan *unixsock.Listener{kept, l.Ready()} {
			select {
			case got, ok := <-ready:
				if ok {
					t.Fatalf("a receive gave %v", got)
				}
			default:
				t.Fatal("a receive would wait")
			}
		}
	}
}

func TestCloseWakesEveryReceiverOfReady(t *testing.T) {
	l := sockettest.Listen(t)
	var wg sync.WaitGroup
	for range 10 {
		ready := l.Ready()
		wg.Go(func() {
			if got, ok := <-ready; ok {
				t.Errorf("a receive gave %v", got)
			}
		})
	}
	l.Close()
	sockettest.Returns(t, "the receivers of Ready", wg.Wait)
}

func TestReadyOfAClosedListenerIsClosed(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	select {
	case got, ok := <-l.Ready():
		if ok {
			t.Errorf("a receive gave %v", got)
		}
	default:
		t.Error("a receive would wait")
	}
}

func TestReadyCostsNothingBeforeItsFirstUse(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String()).Close()
	sockettest.Accept(t, l).Close() // the poller may need descriptors of its own
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	second := sockettest.Listen(t)
	for range 10 {
		sockettest.Connect(t, second.Addr().String()).Close()
		sockettest.Accept(t, second).Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	if n := sockettest.CountDescriptors(t); n != descriptors+1 {
		t.Errorf("a listener took %d descriptors", n-descriptors)
	}
}

func TestReadyTakesNoDescriptorAndLeavesNoGoroutine(t *testing.T) {
	warm := sockettest.Listen(t)
	warm.Ready()
	warm.Close()
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	for range 20 {
		l := sockettest.Listen(t)
		ready := l.Ready()
		sockettest.Connect(t, l.Addr().String()).Close()
		sockettest.Receive(t, "Ready", ready)
		if n := sockettest.CountDescriptors(t); n > descriptors+2 { // the connect's may be on its way
			t.Errorf("a listener took %d descriptors", n-descriptors)
		}
		l.Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

func TestReadyUsesNoProcessorWhileAConnectionIsPending(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	l.AcceptEvt(t.Context())
	for range 3 {
		sockettest.Connect(t, l.Addr().String())
	}
	sockettest.Receive(t, "Ready", kept)
	idles(t)
}

// idles fails the test if this process is busy.
func idles(t testing.TB) {
	t.Helper()
	start, used := time.Now(), sockettest.ProcessorTime(t)
	time.Sleep(300 * time.Millisecond)
	if share := float64(sockettest.ProcessorTime(t)-used) / float64(time.Since(start)); share > 0.2 {
		t.Errorf("it takes %.0f %% of a processor", 100*share)
	}
}

// TestReadyServesASelectLoop is the loop that Ready is made for: no client is lost
// when it stops.
func TestReadyServesASelectLoop(t *testing.T) {
	const n = 500
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	served := make(chan struct{}, n)
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-l.Ready():
					own, cancelOwn := context.WithTimeout(ctx, time.Millisecond)
					c, err := l.AcceptContext(own)
					cancelOwn()
					if err == nil {
						c.Close()
						served <- struct{}{}
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	sockettest.Returns(t, "the clients", func() {
		for range n {
			c, err := unixsock.Connect(l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		}
	})
	for range n {
		sockettest.Receive(t, "a client is served", served)
	}
	cancel()
	sockettest.Returns(t, "the servers", wg.Wait)
	if sockettest.Pending(t, l) || polled(t, l, l.Ready()) {
		t.Error("a connection is still pending")
	}
}

// TestKeptReadyServesManyReceives receives much more often than the channel has room for.
func TestKeptReadyServesManyReceives(t *testing.T) {
	const goroutines, receives = 5, 200
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	var receivers sync.WaitGroup
	for range goroutines {
		receivers.Go(func() {
			for range receives {
				<-kept
			}
		})
	}
	sockettest.Returns(t, "1000 receives from a kept channel while a connection is pending", receivers.Wait)
}

func TestKeptReadyIsExactAfterAnAcceptThroughSyscallConn(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	accept := func(fd uintptr) {
		nfd, _, err := unix.Accept(int(fd))
		if err != nil {
			t.Errorf("accept(2) in a callback: got %v, want a connection", err)
			return
		}
		unix.Close(nfd)
	}
	for name, call := range map[string]func() error{
		"Control": func() error { return raw.Control(accept) },
		"Read":    func() error { return raw.Read(func(fd uintptr) bool { accept(fd); return true }) },
	} {
		for range 100 {
			sockettest.Connect(t, l.Addr().String()).Close()
			sockettest.Receive(t, "Ready", kept)
			if err := call(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-kept:
				t.Fatalf("a kept channel after an accept(2) in a callback of %s: ready, want not ready", name)
			default:
			}
		}
	}
}
