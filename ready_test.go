//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"cmp"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

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

// dialNet connects with package net, as a program without this package does. This
// package does not observe such a connect. The connection is closed at the end of the
// test.
func dialNet(t testing.TB, path string) {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("net.Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
}

// acceptElsewhere starts another process, which inherits l and accepts one connection.
// It returns false in that process.
func acceptElsewhere(t *testing.T, l *unixsock.Listener) bool {
	t.Helper()
	return !sockettest.InChild(t, func(cmd *exec.Cmd) {
		raw, err := l.SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn: %v", err)
		}
		var nfd int
		controlErr := raw.Control(func(fd uintptr) { nfd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		if err := cmp.Or(controlErr, err); err != nil {
			t.Fatalf("duplicate the listener's descriptor: %v", err)
		}
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(nfd), "listener")}
		t.Cleanup(func() { cmd.ExtraFiles[0].Close() })
	})
}

// isElsewhere reports whether this is the other process. There it first accepts the
// connection.
func isElsewhere(t *testing.T) bool {
	t.Helper()
	if os.Getenv(sockettest.ChildVar) != t.Name() {
		return false
	}
	f := os.NewFile(3, "listener")
	l, err := unixsock.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatalf("FileListener: %v", err)
	}
	defer l.Close()
	if !sockettest.Pending(t, l) {
		t.Fatal("poll in the other process: got no pending connection, want one")
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
			t.Fatal("Ready twice: got two channels, want one")
		}
		if got := sockettest.Receive(t, "Ready", ready); got != l {
			t.Fatalf("receive from Ready: got %v, want the listener", got)
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
					t.Errorf("receive from Ready: got %v, want the listener", got)
				}
			}
		})
	}
	dialNet(t, l.Addr().String())
	sockettest.CheckReturns(t, "5000 receives from Ready while a connection is pending", wg.Wait)
}

func TestReadyServesAnyNumberOfReceives(t *testing.T) {
	l := sockettest.Listen(t)
	ready := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	for i := range 500 {
		if !polled(t, l, l.Ready()) {
			t.Fatalf("select %d on Ready() with a connection: got not ready, want ready", i)
		}
	}
	if !polled(t, l, ready) {
		t.Error("select on the kept channel with a connection: got not ready, want ready")
	}
}

func TestKeptReadyIsLevelTriggered(t *testing.T) {
	l := sockettest.Listen(t)
	ready := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Connect(t, l.Addr().String())
	for range 2 {
		for range 50 {
			if got := sockettest.Receive(t, "the kept channel", ready); got != l {
				t.Fatalf("receive from the kept channel: got %v, want the listener", got)
			}
		}
		sockettest.Accept(t, l)
	}
	if polled(t, l, ready) {
		t.Error("select on the kept channel without a connection: got ready, want not ready")
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
							t.Fatal("select before the connect: got ready, want not ready")
						}
						client, err := connect(l)
						if err != nil {
							t.Fatalf("%s: %v", connectName, err)
						}
						if keep {
							// A select with a default may lag until another goroutine has run.
							sockettest.Receive(t, "the kept channel", kept)
						} else if !polled(t, l, ready()) {
							t.Fatal("select on Ready() after the connect: got not ready, want ready")
						}
						server, err := accept(l)
						if err != nil {
							t.Fatalf("%s: %v", acceptName, err)
						}
						if polled(t, l, ready()) {
							t.Fatal("select after the accept: got ready, want not ready")
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
		t.Fatalf("Symlink: %v", err)
	}
	kept := l.Ready()
	for _, path := range []string{dir + "//s", dir + "/./s", dir + "/link"} {
		sockettest.Connect(t, path)
		sockettest.Receive(t, "the kept channel after a connect to "+path, kept)
		sockettest.Accept(t, l)
		if polled(t, l, kept) {
			t.Errorf("select on the kept channel after a connect to %s and the accept: got ready, want not ready", path)
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
		t.Fatalf("Rename: %v", err)
	}
	for range 100 {
		c := sockettest.Connect(t, path)
		sockettest.Receive(t, "the kept channel", kept)
		if polled(t, old, old.Ready()) {
			t.Fatal("select on Ready() of the listener whose file was replaced: got ready, want not ready")
		}
		sockettest.Accept(t, l).Close()
		c.Close()
	}
}

func TestReadyFollowsAnAcceptByAnotherListenerOfTheSocket(t *testing.T) {
	l := sockettest.Listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	defer f.Close()
	twin, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatalf("FileListener: %v", err)
	}
	defer twin.Close()
	kept := l.Ready()
	for i := range 100 {
		c := sockettest.Connect(t, l.Addr().String())
		sockettest.Receive(t, "the kept channel", kept)
		sockettest.Accept(t, twin).Close()
		if i%2 == 0 && polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() after an accept by the other Listener: got ready, want not ready")
		}
		for start := time.Now(); polled(t, l, kept); time.Sleep(time.Millisecond) {
			if time.Since(start) > time.Second { // the documented limit is 50 ms
				t.Fatal("select on the kept channel 1 s after an accept by the other Listener: got ready, want not ready within 50 ms")
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
				t.Fatal("select on Ready() after the connect: got not ready, want ready")
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
			t.Fatal("select after the accept: got ready, want not ready")
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
	for pending := 5; pending > 0; pending-- {
		sockettest.Receive(t, "the kept channel", kept)
		if !polled(t, l, l.Ready()) {
			t.Fatalf("select on Ready() with %d pending connections: got not ready, want ready", pending)
		}
		sockettest.Accept(t, l)
	}
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("select without a connection: got ready, want not ready")
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
				t.Errorf("receive without a connection: got %v, want nothing", got)
			case <-stop:
			}
		})
	}
	waitReceivers(t, 10)
	// Nothing must come for longer than any interval at which the listener checks again.
	time.Sleep(120 * time.Millisecond)
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
					t.Errorf("receive from the kept channel: got %v, want the listener", got)
				}
			})
		}
		sockettest.WaitFor(t, "not all other receivers wait", func() bool { return sockettest.GoroutinesIn("chan receive") >= before+others })
		client := sockettest.Connect(t, l.Addr().String())
		for i := range 3 {
			if !polled(t, l, l.Ready()) {
				t.Fatalf("select %d on Ready() beside other receivers: got not ready, want ready", i)
			}
		}
		sockettest.CheckReturns(t, "the other receivers", wg.Wait)
		server := sockettest.Accept(t, l)
		if polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() after the accept: got ready, want not ready")
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
		t.Fatalf("environment of the child process: got no %s, want the path of the listener", pathVar)
	}
	if !polled(t, l, l.Ready()) {
		t.Error("select on Ready() after a connect by another process: got not ready, want ready")
	}
	if got := sockettest.Receive(t, "a receive from the kept channel to return", woken); got != l {
		t.Errorf("receive from the kept channel: got %v, want the listener", got)
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
		sockettest.Receive(t, "the kept channel", kept)
	}
	if !acceptElsewhere(t, l) {
		return
	}
	if polled(t, l, l.Ready()) {
		t.Error("select on Ready() after an accept by another process: got ready, want not ready")
	}
}

func TestKeptReadyFollowsAnAcceptByAnotherProcessWithin50ms(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "the kept channel", kept)
	if !acceptElsewhere(t, l) {
		return
	}
	for start := time.Now(); polled(t, l, kept); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Second { // the documented limit is 50 ms
			t.Fatal("select on the kept channel 1 s after an accept by another process: got ready, want not ready within 50 ms")
		}
	}
}

func TestReadyAcceptsNothing(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(2))
	kept := l.Ready()
	dialNet(t, l.Addr().String())
	for range 1000 {
		sockettest.Receive(t, "the kept channel", kept)
		sockettest.Receive(t, "Ready", l.Ready())
	}
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 2 {
		t.Errorf("connects until the backlog of 2 with 1 pending connection is full: got %d, want 2", n)
	}
}

func TestReadyLeavesTheBacklogToAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "Ready", l.Ready())
	acceptElsewhere(t, l) // fails the test if no connection is pending there
}

func TestReadyReportsWhatAnEventHasAccepted(t *testing.T) {
	l := sockettest.Listen(t)
	l.AcceptEvt(t.Context())
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.WaitFor(t, "the listener has not accepted the connection ahead", func() bool { return !sockettest.Pending(t, l) })
	for range 10 {
		if !polled(t, l, l.Ready()) || !polled(t, l, kept) {
			t.Fatal("select with a connection that is accepted ahead: got not ready, want ready")
		}
	}
	sockettest.Accept(t, l)
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("select after the accept: got ready, want not ready")
	}
}

func TestReadyIsExactAfterAReceiveFromAnEvent(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 1000 {
		sockettest.Connect(t, l.Addr().String()).Close()
		if !polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() after the connect: got not ready, want ready")
		}
		sockettest.Receive(t, "AcceptEvt", l.AcceptEvt(ctx)).Conn.Close()
		if polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() after a receive from AcceptEvt: got ready, want not ready")
		}
	}
}

func TestCloseClosesReady(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	sockettest.Connect(t, l.Addr().String())
	sockettest.Receive(t, "the kept channel", kept)
	l.Close()
	for range 300 { // more than the kept channel has room for
		for _, ready := range []<-chan *unixsock.Listener{kept, l.Ready()} {
			select {
			case got, ok := <-ready:
				if ok {
					t.Fatalf("receive from Ready after Close: got %v, want a closed channel", got)
				}
			default:
				t.Fatal("receive from Ready after Close: would block, want a closed channel")
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
				t.Errorf("receive from Ready while the listener closes: got %v, want a closed channel", got)
			}
		})
	}
	waitReceivers(t, 10)
	l.Close()
	sockettest.CheckReturns(t, "the receivers of Ready", wg.Wait)
}

func TestReadyOfAClosedListenerIsClosed(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	select {
	case got, ok := <-l.Ready():
		if ok {
			t.Errorf("receive from Ready after Close: got %v, want a closed channel", got)
		}
	default:
		t.Error("receive from Ready after Close: would block, want a closed channel")
	}
}

func TestReadyCostsNothingBeforeItsFirstUse(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String()).Close()
	sockettest.Accept(t, l).Close() // the poller may open descriptors of its own
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	second := sockettest.Listen(t)
	for range 10 {
		sockettest.Connect(t, second.Addr().String()).Close()
		sockettest.Accept(t, second).Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	if n := sockettest.CountDescriptors(t); n != descriptors+1 {
		t.Errorf("Listen without a call of Ready: got %d more descriptors, want 1", n-descriptors)
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
		if n := sockettest.CountDescriptors(t); n > descriptors+2 { // the client's may still be open
			t.Errorf("Listen and Ready: got %d more descriptors, want at most 2", n-descriptors)
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

func TestFirstReadyUsesNoProcessorIfAConnectionIsPending(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	l.Ready()
	idles(t)
}

// idles fails the test if this process uses more than a fifth of a processor in each of
// three intervals: what spins does so in all of them, and gVisor's clock is coarse.
func idles(t testing.TB) {
	t.Helper()
	var share float64
	for range 3 {
		start, used := time.Now(), sockettest.ProcessorTime(t)
		time.Sleep(300 * time.Millisecond) // the process must stay idle for this long
		share = float64(sockettest.ProcessorTime(t)-used) / float64(time.Since(start))
		if share <= 0.2 {
			return
		}
	}
	t.Errorf("wait without work: got %.0f %% of a processor used, want at most 20 %%", 100*share)
}

// TestReadyServesASelectLoop runs the loop that Ready is made for. No client is lost when
// the loop stops.
func TestReadyServesASelectLoop(t *testing.T) {
	const n = 500
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var connected, accepted atomic.Int32
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
						accepted.Add(1)
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Go(func() {
		for {
			c, err := unixsock.ConnectContext(ctx, l.Addr().String())
			if err != nil {
				return
			}
			c.Close()
			connected.Add(1)
		}
	})
	sockettest.WaitFor(t, "the servers have not accepted enough connections", func() bool { return accepted.Load() >= n })
	cancel()
	sockettest.CheckReturns(t, "the servers and the client", wg.Wait)
	for sockettest.Pending(t, l) {
		sockettest.Accept(t, l).Close()
		accepted.Add(1)
	}
	if got, want := accepted.Load(), connected.Load(); got != want {
		t.Errorf("accepted connections after the loops stopped, with the pending ones: got %d, want %d", got, want)
	}
}

// TestKeptReadyServesManyReceives receives many more values than the channel has room for.
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
	sockettest.CheckReturns(t, "1000 receives from a kept channel while a connection is pending", receivers.Wait)
}

func TestKeptReadyIsExactAfterAnAcceptThroughSyscallConn(t *testing.T) {
	l := sockettest.Listen(t)
	kept := l.Ready()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
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
				t.Fatalf("RawConn.%s: %v", name, err)
			}
			select {
			case <-kept:
				t.Fatalf("select on the kept channel after an accept(2) in a callback of %s: got ready, want not ready", name)
			default:
			}
		}
	}
}
