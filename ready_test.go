//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

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

	"golang.org/x/sys/unix"
)

// polled reports whether l is ready, by a select with a default. ready is its
// channel: asked for anew, or kept.
func polled(t testing.TB, l *Listener, ready <-chan *Listener) bool {
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
// tells it nothing. The connection is closed with the test.
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
func acceptElsewhere(t *testing.T, l *Listener) bool {
	t.Helper()
	return !inChild(t, func(cmd *exec.Cmd) {
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
	if os.Getenv(childVar) != t.Name() {
		return false
	}
	if !readable(3) {
		t.Fatal("no connection waits for another process")
	}
	fd, _, err := accept(3)
	if err != nil {
		t.Fatal(err)
	}
	closeSocket(fd)
	return true
}

func TestReadyIsOneChannelAndGivesTheListener(t *testing.T) {
	l := mustListen(t)
	ready := l.Ready()
	mustConnect(t, l.Addr().String())
	for range 3 {
		if l.Ready() != ready {
			t.Fatal("a second call gave another channel")
		}
		if got := receive(t, "Ready", ready); got != l {
			t.Fatalf("got %v", got)
		}
	}
}

func TestReadyIsLevelTriggered(t *testing.T) {
	l := mustListen(t)
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
	ends(t, "everyone receives, again and again", wg.Wait)
}

func TestReadyAskedAnewSucceedsHoweverManyReceive(t *testing.T) {
	l := mustListen(t)
	ready := l.Ready()
	mustConnect(t, l.Addr().String())
	const n = 500
	polls := make([]<-chan *Listener, n)
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

// The kept channel must stand this without any other goroutine's help, so there
// is one processor and nobody yields.
func TestReadyKeptIsLevelTriggeredWhenPolled(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := mustListen(t)
	ready := l.Ready()
	mustConnect(t, l.Addr().String())
	mustConnect(t, l.Addr().String())
	for range 2 {
		for i := range 50 {
			if !polled(t, l, ready) {
				t.Fatalf("poll %d says not ready", i)
			}
		}
		mustAccept(t, l)
	}
	if polled(t, l, ready) {
		t.Error("it is ready when nothing waits")
	}
}

func TestReadyIsExactWhenPolled(t *testing.T) {
	rounds := 2000
	switch {
	case testing.Short():
		rounds = 100
	case raceEnabled:
		rounds = 700
	}
	connects := map[string]func(*Listener) (net.Conn, error){
		"Connect":  func(l *Listener) (net.Conn, error) { return Connect(l.Addr().String()) },
		"net.Dial": func(l *Listener) (net.Conn, error) { return net.Dial("unix", l.Addr().String()) },
	}
	accepts := map[string]func(*Listener) (net.Conn, error){
		"Accept":        func(l *Listener) (net.Conn, error) { return l.Accept() },
		"AcceptContext": func(l *Listener) (net.Conn, error) { return l.AcceptContext(context.Background()) },
		"AcceptContext with a context": func(l *Listener) (net.Conn, error) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			return l.AcceptContext(ctx)
		},
	}
	for connectName, connect := range connects {
		for acceptName, accept := range accepts {
			for _, keep := range []bool{false, true} {
				name := connectName + " and " + acceptName + ", asked anew"
				if keep {
					name = connectName + " and " + acceptName + ", kept"
				}
				t.Run(name, func(t *testing.T) {
					l := mustListen(t)
					kept := l.Ready()
					ready := l.Ready
					if keep {
						ready = func() <-chan *Listener { return kept }
					}
					for range rounds {
						if polled(t, l, ready()) {
							t.Fatal("ready before the connect")
						}
						client, err := connect(l)
						if err != nil {
							t.Fatal(err)
						}
						if keep && connectName != "Connect" {
							// Nobody has told the channel; a goroutine must run.
							receive(t, "the channel that was kept", kept)
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

func TestReadyKeptIsExactWhateverAConnectCallsThePath(t *testing.T) {
	dir := shortDir(t)
	l := mustListenAt(t, filepath.Join(dir, "s"))
	if err := os.Symlink("s", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	kept := l.Ready()
	for _, path := range []string{dir + "//s", dir + "/./s", dir + "/link"} {
		mustConnect(t, path)
		if !polled(t, l, kept) {
			t.Errorf("not ready after a connect to %s", path)
		}
		mustAccept(t, l)
	}
}

func TestReadyKeptIsExactWhenThePathWasAnotherListeners(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	old := mustListenAt(t, path)
	old.Ready()
	l := mustListenAt(t, path+"2")
	kept := l.Ready()
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		c := mustConnect(t, path)
		if !polled(t, l, kept) {
			t.Fatal("not ready after a connect")
		}
		mustAccept(t, l).Close()
		c.Close()
	}
}

func TestReadyKeptIsExactWhenAnotherListenerOfTheSocketAccepts(t *testing.T) {
	l := mustListen(t)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	twin, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	kept := l.Ready()
	for range 100 {
		c := mustConnect(t, l.Addr().String())
		if !polled(t, l, kept) {
			t.Fatal("not ready after a connect")
		}
		mustAccept(t, twin).Close()
		if polled(t, l, kept) {
			t.Fatal("ready after the accept")
		}
		c.Close()
	}
}

func TestReadyIsExactWithAnEventAlive(t *testing.T) {
	l := mustListen(t)
	l.AcceptEvt(t.Context())
	kept := l.Ready()
	for _, ready := range []func() <-chan *Listener{l.Ready, func() <-chan *Listener { return kept }} {
		for range 500 {
			client := mustConnect(t, l.Addr().String())
			if !polled(t, l, ready()) {
				t.Fatal("not ready after the connect")
			}
			server := mustAccept(t, l)
			if polled(t, l, ready()) {
				t.Fatal("ready after the accept")
			}
			client.Close()
			server.Close()
		}
	}
}

func TestReadyStaysWhileAnotherConnectionWaits(t *testing.T) {
	l := mustListen(t, Backlog(8))
	kept := l.Ready()
	for range 5 {
		mustConnect(t, l.Addr().String())
	}
	for waiting := 5; waiting > 0; waiting-- {
		if !polled(t, l, kept) || !polled(t, l, l.Ready()) {
			t.Fatalf("not ready while %d wait", waiting)
		}
		mustAccept(t, l)
	}
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("ready when none waits")
	}
}

func TestReadySucceedsNeverWhileNoneWaits(t *testing.T) {
	l := mustListen(t)
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

func TestReadyWhenPolledStandsOthersWhoReceive(t *testing.T) {
	const others = 50
	l := mustListen(t)
	kept := l.Ready()
	for range 50 {
		var wg sync.WaitGroup
		before := goroutinesIn("chan receive")
		for range others {
			wg.Go(func() {
				if got := <-kept; got != l {
					t.Errorf("got %v", got)
				}
			})
		}
		waitFor(t, "the others wait", func() bool { return goroutinesIn("chan receive") >= before+others })
		client := mustConnect(t, l.Addr().String())
		for i := range 3 {
			if !polled(t, l, l.Ready()) {
				t.Fatalf("poll %d says not ready", i)
			}
		}
		ends(t, "the others", wg.Wait)
		server := mustAccept(t, l)
		if polled(t, l, l.Ready()) {
			t.Fatal("ready after the accept")
		}
		client.Close()
		server.Close()
	}
}

const pathVar = "UNIXSOCK_TEST_PATH"

func TestReadyHearsOfAConnectByAnotherProcess(t *testing.T) {
	if path := os.Getenv(pathVar); path != "" {
		if inChild(t, nil) {
			mustConnect(t, path)
		}
		return
	}
	l := mustListen(t)
	kept := l.Ready()
	woken := make(chan *Listener, 1)
	go func() { woken <- <-kept }()
	if inChild(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, pathVar+"="+l.Addr().String()) }) {
		t.Fatal("the child has no path")
	}
	if !polled(t, l, l.Ready()) {
		t.Error("asked anew, it is not ready")
	}
	if got := receive(t, "who waited on the channel that was kept", woken); got != l {
		t.Errorf("got %v", got)
	}
}

func TestReadyHearsOfAnAcceptByAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := mustListen(t)
	kept := l.Ready()
	mustConnect(t, l.Addr().String())
	for range 10 {
		receive(t, "the channel that was kept", kept)
	}
	if !acceptElsewhere(t, l) {
		return
	}
	if polled(t, l, l.Ready()) {
		t.Error("asked anew, it is ready")
	}
}

func TestReadyKeptHearsSoonOfAnAcceptByAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := mustListen(t)
	kept := l.Ready()
	mustConnect(t, l.Addr().String())
	receive(t, "the channel that was kept", kept)
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
	l := mustListen(t, Backlog(2))
	kept := l.Ready()
	dialNet(t, l.Addr().String())
	for range 1000 {
		receive(t, "the channel that was kept", kept)
		receive(t, "Ready", l.Ready())
	}
	if n := fillBacklog(t, l.Addr().String()); n != 2 {
		t.Errorf("%d more connects succeeded, want 2", n)
	}
}

func TestReadyLeavesTheBacklogToAnotherProcess(t *testing.T) {
	if isElsewhere(t) {
		return
	}
	l := mustListen(t)
	mustConnect(t, l.Addr().String())
	receive(t, "Ready", l.Ready())
	acceptElsewhere(t, l) // fails the test if nothing waits there
}

func TestReadyReportsWhatAnEventHasAccepted(t *testing.T) {
	l := mustListen(t)
	l.AcceptEvt(t.Context())
	kept := l.Ready()
	mustConnect(t, l.Addr().String())
	waitFor(t, "the event accepts", func() bool { return !waits(t, l) })
	for range 10 {
		if !polled(t, l, l.Ready()) || !polled(t, l, kept) {
			t.Fatal("not ready")
		}
	}
	mustAccept(t, l)
	if polled(t, l, kept) || polled(t, l, l.Ready()) {
		t.Error("ready after the accept")
	}
}

func TestReadyAskedAnewIsExactAfterAnEventWasReceived(t *testing.T) {
	l := mustListen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 1000 {
		mustConnect(t, l.Addr().String()).Close()
		if !polled(t, l, l.Ready()) {
			t.Fatal("not ready after the connect")
		}
		receive(t, "AcceptEvt", l.AcceptEvt(ctx)).Conn.Close()
		if polled(t, l, l.Ready()) {
			t.Fatal("ready after the receive")
		}
	}
}

func TestCloseClosesReady(t *testing.T) {
	l := mustListen(t)
	kept := l.Ready()
	mustConnect(t, l.Addr().String())
	receive(t, "the channel that was kept", kept)
	l.Close()
	for range 300 { // more than could have been left in it
		for _, ready := range []<-chan *Listener{kept, l.Ready()} {
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

func TestCloseWakesAllWhoWaitForReady(t *testing.T) {
	l := mustListen(t)
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
	ends(t, "those who wait for Ready", wg.Wait)
}

func TestReadyOfAListenerClosedBeforeIsClosed(t *testing.T) {
	l := mustListen(t)
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
	l := mustListen(t)
	mustConnect(t, l.Addr().String()).Close()
	mustAccept(t, l).Close() // the poller may need descriptors of its own
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
	second := mustListen(t)
	for range 10 {
		mustConnect(t, second.Addr().String()).Close()
		mustAccept(t, second).Close()
	}
	if second.watched.Load() {
		t.Error("it is being watched")
	}
	waitGoroutines(t, goroutines)
	if n := countDescriptors(t); n != descriptors+1 {
		t.Errorf("a listener took %d descriptors", n-descriptors)
	}
}

func TestReadyTakesNoDescriptorAndLeavesNoGoroutine(t *testing.T) {
	warm := mustListen(t)
	warm.Ready()
	warm.Close()
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
	for range 20 {
		l := mustListen(t)
		ready := l.Ready()
		mustConnect(t, l.Addr().String()).Close()
		receive(t, "Ready", ready)
		if n := countDescriptors(t); n > descriptors+2 { // the connect's may be on its way
			t.Errorf("a listener took %d descriptors", n-descriptors)
		}
		l.Close()
	}
	waitGoroutines(t, goroutines)
	waitDescriptors(t, descriptors)
}

func TestReadyBurnsNoProcessorWhileAConnectionWaits(t *testing.T) {
	l := mustListen(t)
	kept := l.Ready()
	l.AcceptEvt(t.Context())
	for range 3 {
		mustConnect(t, l.Addr().String())
	}
	receive(t, "Ready", kept)
	idles(t)
}

// idles fails the test if this process is busy.
func idles(t testing.TB) {
	t.Helper()
	start, used := time.Now(), processorTime(t)
	time.Sleep(300 * time.Millisecond)
	if share := float64(processorTime(t)-used) / float64(time.Since(start)); share > 0.2 {
		t.Errorf("it takes %.0f %% of a processor", 100*share)
	}
}

// TestReadyServesASelectLoop is the loop that Ready is made for: nobody is lost
// when it stops.
func TestReadyServesASelectLoop(t *testing.T) {
	const n = 500
	l := mustListen(t)
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
	ends(t, "the clients", func() {
		for range n {
			c, err := Connect(l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		}
	})
	for range n {
		receive(t, "a client is served", served)
	}
	cancel()
	ends(t, "the servers", wg.Wait)
	if waits(t, l) || polled(t, l, l.Ready()) {
		t.Error("something waits still")
	}
}
