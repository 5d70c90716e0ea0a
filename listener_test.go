//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
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
	"golang.org/x/sys/unix"
)

// Linux queues one more connection than the backlog. FillBacklog skips the test on other
// systems.

func TestBacklogDefaultIs4(t *testing.T) {
	l := sockettest.Listen(t)
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 5 {
		t.Errorf("connects until the default backlog is full: got %d, want 5", n)
	}
}

func TestBacklogOf0IsAllowed(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(0))
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 1 {
		t.Errorf("connects until the backlog of 0 is full: got %d, want 1", n)
	}
}

func TestLastBacklogOptionApplies(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(9), unixsock.Backlog(2))
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 3 {
		t.Errorf("connects until the backlog of the last option, 2, is full: got %d, want 3", n)
	}
}

func TestNegativeBacklogIsAnError(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	l, err := unixsock.Listen(path, unixsock.Backlog(-1))
	if l != nil || err == nil {
		t.Fatalf("Listen with Backlog(-1): got %v, %v; want nil, an error", l, err)
	}
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != "listen" {
		t.Errorf("Listen with Backlog(-1): got the error %#v, want a *net.OpError with Op listen", err)
	}
	if !strings.Contains(err.Error(), "-1") {
		t.Errorf("Listen with Backlog(-1): got the error %q, want one that contains -1", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Lstat after Listen with Backlog(-1): got %v, want os.ErrNotExist", err)
	}
}

func TestHugeBacklogIsCappedByTheSystem(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(math.MaxInt))
	for range 50 { // far more than the default, and less than the limit of any system
		sockettest.Connect(t, l.Addr().String())
	}
}

func TestNilOptionIsIgnored(t *testing.T) {
	l := sockettest.Listen(t, nil, unixsock.Backlog(0), nil)
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 1 {
		t.Errorf("connects until the backlog of 0 is full, with nil options: got %d, want 1", n)
	}
}

func TestEachAcceptGetsOneConnection(t *testing.T) {
	const n = 20
	l := sockettest.Listen(t)
	var accepted atomic.Int32
	errs := sockettest.Accepting(t, n, func(i int) (*unixsock.Conn, error) {
		c, err := l.AcceptContext(t.Context())
		accepted.Add(1)
		return c, err
	})
	for i := range n {
		if got := accepted.Load(); got != int32(i) {
			t.Fatalf("%d connects: got %d calls of AcceptContext that returned, want %d", i, got, i)
		}
		sockettest.Connect(t, l.Addr().String())
		if err := sockettest.Receive(t, "AcceptContext", errs); err != nil {
			t.Fatalf("AcceptContext after a connect: got %v, want a connection", err)
		}
	}
}

func TestConcurrentConnectionsWakeEveryAccept(t *testing.T) {
	const n = 20
	l := sockettest.Listen(t, unixsock.Backlog(n))
	errs := sockettest.Accepting(t, n, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
	for range n {
		sockettest.Connect(t, l.Addr().String())
	}
	for range n {
		if err := sockettest.Receive(t, "AcceptContext", errs); err != nil {
			t.Errorf("AcceptContext after a connect: got %v, want a connection", err)
		}
	}
}

func TestAcceptContextEndsWithItsOwnContext(t *testing.T) {
	const n = 10
	l := sockettest.Listen(t)
	contexts, cancels := make([]context.Context, n), make([]context.CancelFunc, n)
	for i := range n {
		contexts[i], cancels[i] = context.WithCancel(t.Context())
	}
	returned := make(chan int, n)
	errs := sockettest.Accepting(t, n, func(i int) (*unixsock.Conn, error) {
		c, err := l.AcceptContext(contexts[i])
		returned <- i
		return c, err
	})
	// One goroutine waits in the poller. The others wait until it leaves the poller.
	// When a context ends, only the goroutine that it belongs to may return.
	order := rand.Perm(n)
	for _, i := range order[1:] {
		cancels[i]()
		if got := sockettest.Receive(t, "AcceptContext", returned); got != i {
			t.Fatalf("cancel of context %d: got the return of AcceptContext %d, want %d", i, got, i)
		}
		if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, context.Canceled) {
			t.Fatalf("AcceptContext after the cancel: got %v, want context.Canceled", err)
		}
	}
	sockettest.Connect(t, l.Addr().String())
	if got := sockettest.Receive(t, "AcceptContext", returned); got != order[0] {
		t.Errorf("connect: got the return of AcceptContext %d, want %d", got, order[0])
	}
	if err := sockettest.Receive(t, "AcceptContext", errs); err != nil {
		t.Errorf("AcceptContext after a connect: got %v, want a connection", err)
	}
	cancels[order[0]]()
}

func TestAcceptContextSaysThatItsContextTimedOut(t *testing.T) {
	l := sockettest.Listen(t)
	errs := make(chan error)
	for range 3 {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			_, err := l.AcceptContext(ctx)
			errs <- err
		}()
	}
	for range 3 {
		err := sockettest.Receive(t, "AcceptContext", errs)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("AcceptContext after its context timed out: got %v, want context.DeadlineExceeded and not os.ErrDeadlineExceeded", err)
		}
		if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
			t.Errorf("AcceptContext after its context timed out: got %#v, want a net.Error whose Timeout is true", err)
		}
	}
}

func TestAcceptContextThatIsDoneAcceptsNothing(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := l.AcceptContext(ctx); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("AcceptContext with a context that is done: got %v, %v; want nil, context.Canceled", c, err)
	}
	if !sockettest.Pending(t, l) {
		t.Error("AcceptContext with a context that is done: got no pending connection, want it pending")
	}
}

// A lockingContext is a context whose Err locks a mutex of its owner's.
type lockingContext struct {
	context.Context
	mu *sync.Mutex
}

func (c lockingContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Context.Err()
}

func TestCloseDoesNotWaitForTheErrOfAContext(t *testing.T) {
	for range sockettest.Times(1000) {
		l := sockettest.Listen(t)
		inner, cancel := context.WithCancel(t.Context())
		ctx := lockingContext{inner, new(sync.Mutex)}
		errs := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
		ctx.mu.Lock()
		cancel() // AcceptContext calls Err
		sockettest.CheckReturns(t, "Close while AcceptContext waits for Err", func() { l.Close() })
		ctx.mu.Unlock()
		if err := sockettest.Receive(t, "AcceptContext", errs); err == nil {
			t.Fatal("AcceptContext whose context is canceled, and whose listener is closed: got nil, want an error")
		}
	}
}

func TestAcceptContextHasNoHoldOnceAccepted(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	server, err := l.AcceptContext(ctx)
	if err != nil {
		t.Fatalf("AcceptContext: %v", err)
	}
	defer server.Close()
	cancel()
	mustTalk(t, client, server)
}

func TestDeadlineEndsEveryAccept(t *testing.T) {
	l := sockettest.Listen(t)
	errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
	if err := l.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatalf("SetDeadline: %v", err)
	}
	for range 5 {
		err := sockettest.Receive(t, "AcceptContext", errs)
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("AcceptContext past the deadline: got %v, want os.ErrDeadlineExceeded and a timeout", err)
		}
	}
}

func TestDeadlineMovedEarlierEndsEveryAccept(t *testing.T) {
	for name, earlier := range map[string]time.Duration{"to come": 10 * time.Millisecond, "past": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			l.SetDeadline(time.Now().Add(time.Hour))
			errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			l.SetDeadline(time.Now().Add(earlier))
			for range 5 {
				if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("AcceptContext past a deadline that was moved earlier: got %v, want os.ErrDeadlineExceeded", err)
				}
			}
		})
	}
}

func TestDeadlineMovedLaterEndsNoAccept(t *testing.T) {
	for name, later := range map[string]time.Time{"later": time.Now().Add(time.Hour), "zero": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // the test spends most of its time waiting
			l := sockettest.Listen(t)
			soon := time.Now().Add(time.Second)
			l.SetDeadline(soon)
			errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			l.SetDeadline(later)
			if !time.Now().Before(soon) {
				t.Skip("the machine is too slow: the first deadline passed before it was moved")
			}
			select {
			case err := <-errs:
				t.Fatalf("AcceptContext past a deadline that was moved later: got %v, want it to wait", err)
			case <-time.After(time.Until(soon) + 50*time.Millisecond): // until then, no call may return
			}
			for range 5 {
				sockettest.Connect(t, l.Addr().String())
				if err := sockettest.Receive(t, "AcceptContext", errs); err != nil {
					t.Errorf("AcceptContext after a connect: got %v, want a connection", err)
				}
			}
		})
	}
}

func TestDeadlineThatIsPastAcceptsNothing(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	l.SetDeadline(time.Now().Add(-time.Second))
	for range 2 {
		if c, err := l.Accept(); c != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Accept past the deadline: got %v, %v; want nil, os.ErrDeadlineExceeded", c, err)
		}
	}
	l.SetDeadline(time.Time{})
	sockettest.Accept(t, l)
}

func TestDeadlineLeavesReadyAndAcceptEvtAlone(t *testing.T) {
	l := sockettest.Listen(t)
	ready, evt := l.Ready(), l.AcceptEvt(t.Context())
	l.SetDeadline(time.Now().Add(-time.Second))
	sockettest.Connect(t, l.Addr().String())
	if got := sockettest.Receive(t, "Ready", ready); got != l {
		t.Errorf("receive from Ready past the deadline: got %v, want the listener", got)
	}
	a := sockettest.Receive(t, "AcceptEvt", evt)
	if a.Err != nil {
		t.Fatalf("receive from AcceptEvt past the deadline: got the error %v, want a connection", a.Err)
	}
	a.Conn.Close()
}

func TestCloseWakesEveryAccept(t *testing.T) {
	for name, prepare := range map[string]func(*unixsock.Listener){
		"alone":     func(*unixsock.Listener) {},
		"Ready":     func(l *unixsock.Listener) { l.Ready() },
		"AcceptEvt": func(l *unixsock.Listener) { l.AcceptEvt(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			prepare(l)
			errs := sockettest.Accepting(t, 10, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if err := l.Close(); err != nil {
						t.Errorf("concurrent Close: got %v, want nil", err)
					}
				})
			}
			sockettest.CheckReturns(t, "Close", wg.Wait)
			for range 10 {
				if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, net.ErrClosed) {
					t.Errorf("AcceptContext after Close: got %v, want net.ErrClosed", err)
				}
			}
		})
	}
}

func TestSecondCloseIsNil(t *testing.T) {
	l := sockettest.Listen(t)
	for i := range 3 {
		if err := l.Close(); err != nil {
			t.Errorf("Close, call %d: got %v, want nil", i+1, err)
		}
	}
}

func TestPathIsFreeWhenASecondCloseReturns(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(3000) {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		ctx, cancel := context.WithCancel(t.Context())
		l.CloseOn(ctx)
		cancel()
		if err := l.Close(); err != nil {
			t.Fatalf("Close while the custodian closes the listener: got %v, want nil", err)
		}
		l, err := unixsock.Listen(path, unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatalf("Listen at the same path after Close: got %v, want nil", err)
		}
		l.Close()
	}
}

func TestSecondCloseInACallbackReturns(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	var closing sync.WaitGroup
	sockettest.CheckReturns(t, "Control, whose callback calls Close,", func() {
		raw.Control(func(uintptr) {
			closing.Go(func() { l.Close() })
			sockettest.WaitClosing(t, l)
			if err := l.Close(); err != nil {
				t.Errorf("second Close in a callback: got %v, want nil", err)
			}
		})
	})
	sockettest.CheckReturns(t, "the first Close", closing.Wait)
}

func TestClosedListenerReturnsErrClosed(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	addr := l.Addr().String()
	l.Close()
	_, acceptErr := l.Accept()
	_, contextErr := l.AcceptContext(t.Context())
	for name, err := range map[string]error{
		"Accept":        acceptErr,
		"AcceptContext": contextErr,
		"SetDeadline":   l.SetDeadline(time.Now()),
		"Control":       raw.Control(func(uintptr) { t.Error("Control after Close: got a callback, want none") }),
		"Read":          raw.Read(func(uintptr) bool { t.Error("Read after Close: got a callback, want none"); return true }),
	} {
		var opErr *net.OpError
		if !errors.Is(err, net.ErrClosed) || !errors.As(err, &opErr) || opErr.Addr.String() != addr {
			t.Errorf("%s after Close: got %v, want a *net.OpError with net.ErrClosed and the address %s", name, err, addr)
		}
	}
	if l.Addr().String() != addr {
		t.Errorf("Addr after Close: got %v, want %s", l.Addr(), addr)
	}
}

func TestCloseOnClosesTheListener(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	l.CloseOn(context.Background())
	l.CloseOn(t.Context())
	l.CloseOn(ctx)
	errs := sockettest.Accepting(t, 3, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
	cancel()
	for range 3 {
		if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, net.ErrClosed) {
			t.Errorf("AcceptContext after the end of CloseOn's context: got %v, want net.ErrClosed", err)
		}
	}
}

// An ownContext is a context of a type that package context does not know and that is
// not comparable. Package context needs a goroutine to follow one.
type ownContext struct {
	context.Context
	_ []int
}

func (c ownContext) Value(any) any { return nil }

func TestListenerClosedEarlierLeavesNothingOnItsContext(t *testing.T) {
	parent, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := runtime.NumGoroutine()
	for range 10 {
		l := sockettest.Listen(t)
		l.CloseOn(ownContext{Context: parent})
		l.CloseOn(ownContext{Context: parent})
		l.Close()
		l.CloseOn(ownContext{Context: parent})
	}
	sockettest.WaitGoroutines(t, before)
}

func TestSyscallConnGivesTheDescriptor(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	listening := 0
	err = raw.Control(func(fd uintptr) {
		listening, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			t.Errorf("getsockopt(2) of SO_ACCEPTCONN: %v", err)
		}
	})
	if err != nil || listening != 1 {
		t.Errorf("Control to get SO_ACCEPTCONN: got %d, %v; want 1, nil", listening, err)
	}
}

func TestSyscallConnReadCallsBackAtOnceWhateverElseWaits(t *testing.T) {
	for name, use := range map[string]func(l *unixsock.Listener){
		"nothing":  func(*unixsock.Listener) {},
		"Ready":    func(l *unixsock.Listener) { l.Ready() },
		"an event": func(l *unixsock.Listener) { l.AcceptEvt(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			use(l)
			if name != "nothing" {
				sockettest.WaitInPoller(t, 1)
			}
			raw, err := l.SyscallConn()
			if err != nil {
				t.Fatalf("SyscallConn: %v", err)
			}
			sockettest.CheckReturns(t, "Read", func() {
				if err := raw.Read(func(uintptr) bool { return true }); err != nil {
					t.Errorf("RawConn.Read: got %v, want nil", err)
				}
			})
		})
	}
}

func TestAcceptDoesNotWaitForARawConnThatDeclines(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	declined := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- raw.Read(func(uintptr) bool {
			select {
			case declined <- struct{}{}:
			default:
			}
			return false
		})
	}()
	sockettest.Receive(t, "the callback of RawConn.Read", declined)
	accepted := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
	sockettest.Connect(t, l.Addr().String())
	if err := sockettest.Receive(t, "AcceptContext", accepted); err != nil {
		t.Errorf("AcceptContext beside a RawConn.Read whose callback returns false: got %v, want a connection", err)
	}
	l.Close()
	if err := sockettest.Receive(t, "RawConn.Read", ended); !errors.Is(err, net.ErrClosed) {
		t.Errorf("RawConn.Read after Close: got %v, want net.ErrClosed", err)
	}
}

func TestSyscallConnReadWaitsForAConnection(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	errs := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) {
		return nil, raw.Read(func(fd uintptr) bool { return sockettest.Readable(int(fd)) })
	})
	sockettest.Connect(t, l.Addr().String())
	if err := sockettest.Receive(t, "RawConn.Read", errs); err != nil {
		t.Errorf("RawConn.Read after a connect: got %v, want nil", err)
	}
	sockettest.Accept(t, l)

	l.SetDeadline(time.Now().Add(-time.Second))
	if err := raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("RawConn.Read past the deadline: got %v, want os.ErrDeadlineExceeded", err)
	}
	if err := raw.Write(func(uintptr) bool { return true }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("RawConn.Write: got %v, want errors.ErrUnsupported", err)
	}
}

func TestAddrIsTheAbsoluteFormOfThePath(t *testing.T) {
	dir := sockettest.ShortDir(t)
	t.Chdir(dir)
	wd, err := unix.Getwd()
	if err != nil {
		t.Fatalf("Getwd: %v", err)
	}
	l := sockettest.ListenAt(t, "s")
	addr, ok := l.Addr().(*net.UnixAddr)
	if !ok || addr.Name != wd+"/s" || addr.Net != "unix" {
		t.Errorf("Addr of a listener at s in %s: got %#v, want the unix address %s/s", wd, l.Addr(), wd)
	}
}

func TestAcceptedConnHasItsAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	clientPath := filepath.Join(sockettest.ShortDir(t), "c")
	dialer := net.Dialer{LocalAddr: &net.UnixAddr{Name: clientPath, Net: "unix"}}
	for want, dial := range map[string]func() (net.Conn, error){
		"":         func() (net.Conn, error) { return unixsock.Connect(l.Addr().String()) },
		clientPath: func() (net.Conn, error) { return dialer.Dial("unix", l.Addr().String()) },
	} {
		client, err := dial()
		if err != nil {
			t.Fatalf("connect from %q: %v", want, err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatalf("Accept: %v", err)
		}
		defer server.Close()
		if got := server.LocalAddr().String(); got != l.Addr().String() {
			t.Errorf("LocalAddr of an accepted Conn: got %q, want %q", got, l.Addr())
		}
		if got := server.RemoteAddr().String(); got != want {
			t.Errorf("RemoteAddr of an accepted Conn: got %q, want %q", got, want)
		}
	}
}

func TestFileStaysAfterClose(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	info, err := os.Lstat(l.Addr().String())
	if err != nil || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("Lstat after Close: got %v, %v; want a socket, nil", info, err)
	}
	if _, err := unixsock.Listen(l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen at the path of a closed listener: got %v, want EADDRINUSE", err)
	}
	if _, err := os.Lstat(l.Addr().String()); err != nil {
		t.Errorf("Lstat after a Listen that failed: got %v, want nil", err)
	}
	if err := os.Remove(l.Addr().String()); err != nil {
		t.Fatalf("Remove of the socket file: %v", err)
	}
	sockettest.ListenAt(t, l.Addr().String())
}

func TestListenOnALiveSocketIsErrAddrInUse(t *testing.T) {
	l := sockettest.Listen(t)
	before := sockettest.CountDescriptors(t)
	second, err := unixsock.Listen(l.Addr().String())
	var opErr *net.OpError
	if second != nil || !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &opErr) ||
		opErr.Op != "listen" || opErr.Net != "unix" || opErr.Addr.String() != l.Addr().String() {
		t.Errorf("Listen at the path of a live listener: got %v, %#v; want nil, a *net.OpError of listen with EADDRINUSE and the address", second, err)
	}
	sockettest.WaitDescriptors(t, before)
	sockettest.Connect(t, l.Addr().String())
	sockettest.Accept(t, l)
}

func TestListenLeavesNoDescriptorAfterClose(t *testing.T) {
	dir := sockettest.ShortDir(t)
	before := sockettest.CountDescriptors(t)
	for i := range 20 {
		l, err := unixsock.Listen(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		l.Ready()
		l.AcceptEvt(t.Context())
		l.Close()
	}
	sockettest.WaitDescriptors(t, before)
}

func TestAcceptWithoutDescriptorsWaitsWhileNoneIsPending(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	ctx, cancel := context.WithCancel(t.Context())
	errs := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
	select {
	case err := <-errs:
		t.Fatalf("AcceptContext without descriptors and connections: got %v, want it to wait", err)
	case <-time.After(100 * time.Millisecond): // the call must not return for a while
	}
	cancel()
	if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, context.Canceled) {
		t.Errorf("AcceptContext after the cancel: got %v, want context.Canceled", err)
	}
}

func TestAcceptReportsEMFILEOfAPendingConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	for range 2 { // gVisor and macOS drop the first
		sockettest.Connect(t, l.Addr().String())
	}
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	if c, err := l.Accept(); c != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Accept without descriptors: got %v, %v; want nil, EMFILE", c, err)
	}
}

func TestAcceptWithoutDescriptorsLosesNoConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	for range 5 {
		c, err := l.Accept()
		var opErr *net.OpError
		if c != nil || !errors.Is(err, syscall.EMFILE) || !errors.As(err, &opErr) || opErr.Op != "accept" {
			t.Fatalf("Accept without descriptors: got %v, %v; want nil, a *net.OpError of accept with EMFILE", c, err)
		}
	}
	free()
	mustTalk(t, client, sockettest.Accept(t, l))
}

func TestAbandonedListenerWithoutWatcherIsCollected(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	func() {
		l, err := unixsock.Listen(path)
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if c, err := l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("AcceptContext without a client: got %v, %v; want nil, context.DeadlineExceeded", c, err)
		}
	}()
	sockettest.WaitFor(t, "the descriptor of an unreachable listener is still open", func() bool {
		runtime.GC()
		c, err := unixsock.Connect(path)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// TestAnyOrderOfEndsWakesEveryWaitingCall starts goroutines that wait for a listener in
// every possible way. Other goroutines end the waits in every possible way, concurrently
// and in random order.
func TestAnyOrderOfEndsWakesEveryWaitingCall(t *testing.T) {
	rounds := 10000
	switch {
	case testing.Short():
		rounds = 500
	case sockettest.Race:
		rounds = 4000
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	before := runtime.NumGoroutine()
	for round := range rounds {
		l, err := unixsock.Listen(path, unixsock.Backlog(8))
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		other, cancelOther := context.WithCancel(context.Background())

		var waiters, enders sync.WaitGroup
		for range 1 + rand.N(4) {
			switch rand.N(6) {
			case 0:
				waiters.Go(func() {
					if c, err := l.Accept(); err == nil {
						c.Close()
					}
				})
			case 1:
				waiters.Go(func() {
					if c, err := l.AcceptContext(ctx); err == nil {
						c.Close()
					}
				})
			case 2:
				waiters.Go(func() { <-l.Ready() })
			case 3:
				waiters.Go(func() {
					for a := range l.AcceptEvt(ctx) {
						a.Conn.Close()
					}
				})
			case 4:
				waiters.Go(func() {
					for a := range l.AcceptEvt(other) {
						a.Conn.Close()
					}
				})
			case 5:
				waiters.Go(func() {
					select {
					case a, ok := <-l.AcceptEvt(ctx):
						if ok {
							a.Conn.Close()
						}
					case <-l.Ready():
					case <-other.Done():
					}
				})
			}
		}
		for range rand.N(5) {
			wait := rand.N(50)
			act := []func(){
				cancel,
				cancelOther,
				func() { l.SetDeadline(time.Now().Add(-time.Second)) },
				func() { l.SetDeadline(time.Now().Add(50 * time.Microsecond)) },
				func() { l.SetDeadline(time.Time{}) },
				func() {
					if fd, err := sockettest.TryConnect(path); err == nil {
						unix.Close(fd)
					}
				},
				func() { l.Close() },
			}[rand.N(7)]
			enders.Go(func() {
				for range wait {
					runtime.Gosched()
				}
				act()
			})
		}
		sockettest.CheckReturns(t, "the goroutines that end the waits", enders.Wait)
		sockettest.CheckReturns(t, "Close", func() { l.Close() })
		sockettest.CheckReturns(t, "the goroutines that wait for the listener", waiters.Wait)
		cancel()
		cancelOther()
		if err := os.Remove(path); err != nil {
			t.Fatalf("Remove of the socket file: %v", err)
		}
		if round%1000 == 0 {
			sockettest.WaitGoroutines(t, before)
		}
	}
	sockettest.WaitGoroutines(t, before)
}

type stormKey struct{}

// TestStormOfClientsIsServedExactlyOnce connects many clients at once. Goroutines accept
// the connections in every possible way at the same time, while events begin and end.
func TestStormOfClientsIsServedExactlyOnce(t *testing.T) {
	clients, atOnce := 3000, 300
	if testing.Short() {
		clients = 500
	}
	l := sockettest.Listen(t, unixsock.Backlog(64))
	beforeGoroutines, beforeFiles := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// A server counts its connection, writes one byte to it and closes it. A client that is
	// served twice may read more than that byte.
	var served atomic.Int64
	serve := func(c net.Conn) {
		served.Add(1)
		c.Write([]byte("s"))
		c.Close()
	}
	take := func(a unixsock.Accepted, ok bool) {
		switch {
		case ok && a.Err != nil:
			t.Errorf("receive from AcceptEvt: got the error %v, want a connection", a.Err)
		case ok:
			serve(a.Conn)
		}
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
			for ctx.Err() == nil {
				own, cancelOwn := context.WithTimeout(ctx, time.Duration(rand.N(2000))*time.Microsecond)
				if c, err := l.AcceptContext(own); err == nil {
					serve(c)
				}
				cancelOwn()
			}
		})
		servers.Go(func() { // one event for all calls of AcceptEvt
			for ctx.Err() == nil {
				a, ok := <-l.AcceptEvt(ctx)
				take(a, ok)
			}
		})
		servers.Go(func() { // Ready, and then an accept, which may find no connection
			for {
				if _, ok := <-l.Ready(); !ok {
					return
				}
				own, cancelOwn := context.WithTimeout(ctx, 100*time.Microsecond)
				if c, err := l.AcceptContext(own); err == nil {
					serve(c)
				}
				cancelOwn()
			}
		})
		servers.Go(func() { // events that end without a receive
			for ctx.Err() == nil {
				own, cancelOwn := context.WithCancel(ctx)
				l.AcceptEvt(own)
				for range rand.N(20) {
					runtime.Gosched()
				}
				cancelOwn()
			}
		})
		servers.Go(func() { // two events, with a receive from one of them
			for ctx.Err() == nil {
				own, cancelOwn := context.WithTimeout(ctx, time.Millisecond)
				evt := l.AcceptEvt(own)
				l.AcceptEvt(context.WithValue(ctx, stormKey{}, 1))
				a, ok := <-evt
				if ok {
					// The end of own closes the connection. If own has ended, the connection
					// is counted without being served.
					if own.Err() == nil {
						take(a, ok)
					} else {
						served.Add(1)
						a.Conn.Close()
					}
				}
				cancelOwn()
			}
		})
	}
	servers.Go(func() {
		for ctx.Err() == nil {
			l.SetDeadline(time.Now().Add(time.Hour))
			runtime.Gosched()
			l.SetDeadline(time.Time{})
			time.Sleep(time.Millisecond)
		}
	})

	// A client reads EOF instead of the byte if its server's context ended between the
	// receive and the write. Its connection is counted once, too.
	var wg sync.WaitGroup
	var remaining atomic.Int64
	remaining.Store(int64(clients))
	for range atOnce {
		wg.Go(func() {
			for remaining.Add(-1) >= 0 {
				c, err := unixsock.Connect(l.Addr().String())
				if err != nil {
					t.Errorf("Connect: %v", err)
					return
				}
				c.SetDeadline(time.Now().Add(sockettest.Timeout))
				b := make([]byte, 2)
				n, err := c.Read(b)
				if n > 1 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Read in a client: got %q, %v; want at most 1 byte before the deadline", b[:n], err)
				}
				c.Close()
			}
		})
	}
	sockettest.CheckReturns(t, "the clients", wg.Wait)
	if n := served.Load(); n != int64(clients) {
		t.Errorf("served connections after %d connects: got %d, want %d", clients, n, clients)
	}
	cancel()
	l.Close()
	sockettest.CheckReturns(t, "the servers", servers.Wait)
	sockettest.WaitGoroutines(t, beforeGoroutines)
	sockettest.WaitDescriptors(t, beforeFiles-1) // l is closed
}

func TestNilAndZeroListenersReturnErrors(t *testing.T) {
	for name, l := range map[string]*unixsock.Listener{"nil": nil, "zero": new(unixsock.Listener)} {
		for call, do := range map[string]func() error{
			"Accept":        func() error { _, err := l.Accept(); return err },
			"AcceptContext": func() error { _, err := l.AcceptContext(t.Context()); return err },
			"SetDeadline":   func() error { return l.SetDeadline(time.Time{}) },
			"SyscallConn":   func() error { _, err := l.SyscallConn(); return err },
			"File":          func() error { _, err := l.File(); return err },
			"Close":         l.Close,
		} {
			var opErr *net.OpError
			if err := do(); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
				t.Errorf("%s of a %s Listener: got %v, want a *net.OpError with os.ErrInvalid", call, name, err)
			}
		}
		l.CloseOn(t.Context())
		l.SetUnlinkOnClose(true)
		if addr := l.Addr(); addr != nil {
			t.Errorf("Addr of a %s Listener: got %v, want nil", name, addr)
		}
		if _, ok := <-l.Ready(); ok {
			t.Errorf("receive from Ready of a %s Listener: got a value, want a closed channel", name)
		}
		if _, ok := <-l.AcceptEvt(t.Context()); ok {
			t.Errorf("receive from AcceptEvt of a %s Listener: got a value, want a closed channel", name)
		}
	}
}

func TestCloseOnBackgroundReleasesTheListener(t *testing.T) {
	l := sockettest.Listen(t)
	ctx := newLedger()
	l.CloseOn(ctx)
	l.CloseOn(context.Background())
	if n := ctx.entries(); n != 0 {
		t.Errorf("CloseOn(context.Background()) after CloseOn(ctx): got %d entries on ctx, want 0", n)
	}
	sockettest.CheckExchange(t, l.Addr().String(), l)
}

// TestListenersCloseOnReplacedAsTheOldContextEnds is TestCloseOnReplacedAsTheOldContextEnds
// for a Listener.
func TestListenersCloseOnReplacedAsTheOldContextEnds(t *testing.T) {
	rounds := 10000
	if testing.Short() {
		rounds = 500
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	goroutines := runtime.NumGoroutine()
	for range rounds {
		l, err := unixsock.Listen(path, unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		old, next := newLedger(), newLedger()
		l.CloseOn(old)
		go old.end()
		l.CloseOn(next)
		open := next.entries() == 1
		for runtime.NumGoroutine() > goroutines { // until the function of the old context has returned
			runtime.Gosched()
		}
		if err := l.SetDeadline(time.Time{}); (err == nil) != open {
			t.Fatalf("SetDeadline after a CloseOn that replaced an ending context (replaced in time: %v): got %v", open, err)
		}
		l.Close()
		if o, n := old.entries(), next.entries(); o != 0 || n != 0 {
			t.Fatalf("Close: got %d entries on the old context, %d on the new one; want none", o, n)
		}
	}
}

// adopt returns a Listener for a duplicate of l's descriptor, such as a successor process
// has.
func adopt(t testing.TB, l *unixsock.Listener) *unixsock.Listener {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	defer f.Close()
	adopted, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatalf("FileListener: %v", err)
	}
	t.Cleanup(func() { adopted.Close() })
	return adopted
}

func TestSetUnlinkOnCloseDecidesAtClose(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		for _, unlink := range []bool{false, true} {
			l := sockettest.Listen(t)
			path := l.Addr().String()
			if adopted {
				next := adopt(t, l)
				l.Close()
				l = next
			}
			l.SetUnlinkOnClose(!unlink)
			l.SetUnlinkOnClose(unlink)
			if err := l.Close(); err != nil {
				t.Fatalf("Close after SetUnlinkOnClose(%v), adopted %v: got %v, want nil", unlink, adopted, err)
			}
			if exists := sockettest.IsSocketFile(path); exists == unlink {
				t.Errorf("Close after SetUnlinkOnClose(%v), adopted %v: got a file: %v, want %v", unlink, adopted, exists, !unlink)
			}
		}
	}
}

func TestHandoverKeepsTheFileUntilTheSuccessorCloses(t *testing.T) {
	old := sockettest.Listen(t, unixsock.UnlinkOnClose())
	path := old.Addr().String()
	successor := adopt(t, old)
	old.SetUnlinkOnClose(false)
	successor.SetUnlinkOnClose(true)
	old.Close()
	sockettest.CheckExchange(t, path, successor)
	successor.Close()
	if sockettest.IsSocketFile(path) {
		t.Error("Close of the successor: got a file, want it removed")
	}
}

func TestSetUnlinkOnCloseLeavesTheFileOfAnother(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	adopted := adopt(t, l)
	l.SetUnlinkOnClose(true)
	adopted.SetUnlinkOnClose(true)
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove of the socket file: %v", err)
	}
	other := sockettest.ListenAt(t, path)
	l.Close()
	adopted.Close()
	sockettest.CheckExchange(t, path, other)
}
