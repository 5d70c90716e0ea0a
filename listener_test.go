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

// Linux lets one more connection wait than the backlog says.

func TestBacklogDefaultIs4(t *testing.T) {
	l := sockettest.Listen(t)
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 5 {
		t.Errorf("%d connects succeeded, want 5", n)
	}
}

func TestBacklogOf0IsAllowed(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(0))
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 1 {
		t.Errorf("%d connects succeeded, want 1", n)
	}
}

func TestLastBacklogOptionApplies(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(9), unixsock.Backlog(2))
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 3 {
		t.Errorf("%d connects succeeded, want 3", n)
	}
}

func TestNegativeBacklogIsAnError(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	l, err := unixsock.Listen(path, unixsock.Backlog(-1))
	if l != nil || err == nil {
		t.Fatalf("got %v, %v", l, err)
	}
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != "listen" {
		t.Errorf("%#v is not an OpError of listen", err)
	}
	if !strings.Contains(err.Error(), "-1") {
		t.Errorf("%q does not say what is wrong", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a file: %v", err)
	}
}

func TestHugeBacklogIsCappedByTheSystem(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(math.MaxInt))
	for range 50 { // far more than the default, and less than any system's cap
		sockettest.Connect(t, l.Addr().String())
	}
}

func TestNilOptionIsIgnored(t *testing.T) {
	l := sockettest.Listen(t, nil, unixsock.Backlog(0), nil)
	if n := sockettest.FillBacklog(t, l.Addr().String()); n != 1 {
		t.Errorf("%d connects succeeded, want 1", n)
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
			t.Fatalf("%d accepts ended after %d connects", got, i)
		}
		sockettest.Connect(t, l.Addr().String())
		if err := sockettest.Receive(t, "an accept", errs); err != nil {
			t.Fatal(err)
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
		if err := sockettest.Receive(t, "an accept", errs); err != nil {
			t.Error(err)
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
	ended := make(chan int, n)
	errs := sockettest.Accepting(t, n, func(i int) (*unixsock.Conn, error) {
		c, err := l.AcceptContext(contexts[i])
		ended <- i
		return c, err
	})
	// One of them waits in the poller and the others for their turn; whichever
	// it is, only the one that is meant may end.
	order := rand.Perm(n)
	for _, i := range order[1:] {
		cancels[i]()
		if got := sockettest.Receive(t, "an accept", ended); got != i {
			t.Fatalf("accept %d ended when %d was cancelled", got, i)
		}
		if err := sockettest.Receive(t, "an accept", errs); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	sockettest.Connect(t, l.Addr().String())
	if got := sockettest.Receive(t, "an accept", ended); got != order[0] {
		t.Errorf("accept %d got the connection", got)
	}
	if err := sockettest.Receive(t, "an accept", errs); err != nil {
		t.Error(err)
	}
	cancels[order[0]]()
}

func TestAcceptContextSaysThatItsContextTimedOut(t *testing.T) {
	l := sockettest.Listen(t)
	errs := sockettest.Accepting(t, 3, func(i int) (*unixsock.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		return l.AcceptContext(ctx)
	})
	for range 3 {
		err := sockettest.Receive(t, "an accept", errs)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
	}
}

func TestAcceptContextThatIsDoneAcceptsNothing(t *testing.T) {
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := l.AcceptContext(ctx); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v", c, err)
	}
	if !sockettest.Pending(t, l) {
		t.Error("the connection is not pending any more")
	}
}

func TestAcceptContextHasNoHoldOnceAccepted(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	server, err := l.AcceptContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cancel()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestDeadlineEndsEveryAccept(t *testing.T) {
	l := sockettest.Listen(t)
	errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
	if err := l.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		err := sockettest.Receive(t, "an accept", errs)
		var timeout net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v", err)
		}
	}
}

func TestDeadlineMovedEarlierEndsEveryAccept(t *testing.T) {
	for what, earlier := range map[string]time.Duration{"to come": 10 * time.Millisecond, "past": -time.Hour} {
		t.Run(what, func(t *testing.T) {
			l := sockettest.Listen(t)
			l.SetDeadline(time.Now().Add(time.Hour))
			errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			l.SetDeadline(time.Now().Add(earlier))
			for range 5 {
				if err := sockettest.Receive(t, "an accept", errs); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestDeadlineMovedLaterEndsNoAccept(t *testing.T) {
	for what, later := range map[string]time.Time{"later": time.Now().Add(time.Hour), "zero": {}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			l := sockettest.Listen(t)
			soon := time.Now().Add(time.Second)
			l.SetDeadline(soon)
			errs := sockettest.Accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			l.SetDeadline(later)
			if !time.Now().Before(soon) {
				t.Skip("the machine is too slow to tell")
			}
			select {
			case err := <-errs:
				t.Fatalf("an accept ended: %v", err)
			case <-time.After(time.Until(soon) + 50*time.Millisecond):
			}
			for range 5 {
				sockettest.Connect(t, l.Addr().String())
				if err := sockettest.Receive(t, "an accept", errs); err != nil {
					t.Error(err)
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
			t.Fatalf("got %v, %v", c, err)
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
		t.Errorf("Ready gave %v", got)
	}
	a := sockettest.Receive(t, "AcceptEvt", evt)
	if a.Err != nil {
		t.Fatal(a.Err)
	}
	a.Conn.Close()
}

func TestCloseWakesEveryAccept(t *testing.T) {
	for what, prepare := range map[string]func(*unixsock.Listener){
		"alone":     func(*unixsock.Listener) {},
		"Ready":     func(l *unixsock.Listener) { l.Ready() },
		"AcceptEvt": func(l *unixsock.Listener) { l.AcceptEvt(context.Background()) },
	} {
		t.Run(what, func(t *testing.T) {
			l := sockettest.Listen(t)
			prepare(l)
			errs := sockettest.Accepting(t, 10, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if err := l.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			sockettest.Returns(t, "Close", wg.Wait)
			for range 10 {
				if err := sockettest.Receive(t, "an accept", errs); !errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestSecondCloseIsNil(t *testing.T) {
	l := sockettest.Listen(t)
	for range 3 {
		if err := l.Close(); err != nil {
			t.Error(err)
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
			t.Fatal(err)
		}
		l, err := unixsock.Listen(path, unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

func TestSecondCloseInACallbackReturns(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var closing sync.WaitGroup
	sockettest.Returns(t, "the callback", func() {
		raw.Control(func(uintptr) {
			closing.Go(func() { l.Close() })
			sockettest.WaitClosing(t, l)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	})
	sockettest.Returns(t, "the first Close", closing.Wait)
}

func TestClosedListenerReturnsErrClosed(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, acceptErr := l.Accept()
	_, contextErr := l.AcceptContext(t.Context())
	for what, err := range map[string]error{
		"Accept":        acceptErr,
		"AcceptContext": contextErr,
		"SetDeadline":   l.SetDeadline(time.Now()),
		"Control":       raw.Control(func(uintptr) { t.Error("Control gave a descriptor") }),
		"Read":          raw.Read(func(uintptr) bool { t.Error("Read gave a descriptor"); return true }),
	} {
		var opErr *net.OpError
		if !errors.Is(err, net.ErrClosed) || !errors.As(err, &opErr) || opErr.Addr.String() != addr {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if l.Addr().String() != addr {
		t.Errorf("the address became %v", l.Addr())
	}
}

func TestAcceptOfASocketThatDoesNotListenFails(t *testing.T) {
	var l unixsock.Listener
	_, acceptErr := l.Accept()
	_, rawErr := l.SyscallConn()
	for what, err := range map[string]error{
		"Accept":      acceptErr,
		"SyscallConn": rawErr,
		"SetDeadline": l.SetDeadline(time.Now()),
		"Close":       l.Close(),
	} {
		if !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if _, ok := sockettest.ReceiveOK(t, "Ready", l.Ready()); ok {
		t.Error("it is ready")
	}
	if _, ok := sockettest.ReceiveOK(t, "AcceptEvt", l.AcceptEvt(t.Context())); ok {
		t.Error("its event gave something")
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
		if err := sockettest.Receive(t, "an accept", errs); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
}

// An ownContext is a context of a type that package context does not know and
// that cannot be compared. To follow one takes a goroutine.
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
		t.Fatal(err)
	}
	listening := 0
	err = raw.Control(func(fd uintptr) {
		listening, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil || listening != 1 {
		t.Errorf("got %d, %v", listening, err)
	}
}

func TestSyscallConnReadCallsBackAtOnceWhateverElseWaits(t *testing.T) {
	for what, use := range map[string]func(l *unixsock.Listener){
		"nothing":  func(*unixsock.Listener) {},
		"Ready":    func(l *unixsock.Listener) { l.Ready() },
		"an event": func(l *unixsock.Listener) { l.AcceptEvt(t.Context()) },
	} {
		t.Run(what, func(t *testing.T) {
			l := sockettest.Listen(t)
			use(l)
			if what != "nothing" {
				sockettest.WaitInPoller(t, 1)
			}
			raw, err := l.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			sockettest.Returns(t, "Read", func() {
				if err := raw.Read(func(uintptr) bool { return true }); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestSyscallConnReadWaitsForAConnection(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	errs := sockettest.Accepting(t, 1, func(int) (*unixsock.Conn, error) {
		return nil, raw.Read(func(fd uintptr) bool { return sockettest.Readable(int(fd)) })
	})
	sockettest.Connect(t, l.Addr().String())
	if err := sockettest.Receive(t, "the Read", errs); err != nil {
		t.Error(err)
	}
	sockettest.Accept(t, l)

	l.SetDeadline(time.Now().Add(-time.Second))
	if err := raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: got %v", err)
	}
	if err := raw.Write(func(uintptr) bool { return true }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Write: got %v", err)
	}
}

func TestAddrIsTheAbsoluteFormOfThePath(t *testing.T) {
	dir := sockettest.ShortDir(t)
	t.Chdir(dir)
	wd, err := unix.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	l := sockettest.ListenAt(t, "s")
	addr, ok := l.Addr().(*net.UnixAddr)
	if !ok || addr.Name != wd+"/s" || addr.Net != "unix" {
		t.Errorf("got %#v", l.Addr())
	}
}

func TestAcceptedConnHasItsAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	name := filepath.Join(sockettest.ShortDir(t), "c")
	dialer := net.Dialer{LocalAddr: &net.UnixAddr{Name: name, Net: "unix"}}
	for what, dial := range map[string]func() (net.Conn, error){
		"":   func() (net.Conn, error) { return unixsock.Connect(l.Addr().String()) },
		name: func() (net.Conn, error) { return dialer.Dial("unix", l.Addr().String()) },
	} {
		client, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if got := server.LocalAddr().String(); got != l.Addr().String() {
			t.Errorf("local: got %q", got)
		}
		if got := server.RemoteAddr().String(); got != what {
			t.Errorf("remote: got %q, want %q", got, what)
		}
	}
}

func TestFileStaysAfterClose(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	info, err := os.Lstat(l.Addr().String())
	if err != nil || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("got %v, %v", info, err)
	}
	if _, err := unixsock.Listen(l.Addr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listening there again: got %v", err)
	}
	if _, err := os.Lstat(l.Addr().String()); err != nil {
		t.Errorf("listening there again removed the file: %v", err)
	}
	if err := os.Remove(l.Addr().String()); err != nil {
		t.Fatal(err)
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
		t.Errorf("got %v, %#v", second, err)
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
			t.Fatal(err)
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
		t.Fatalf("Accept returned %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	if err := sockettest.Receive(t, "the accept", errs); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestAcceptReportsEMFILEOfAPendingConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	if c, err := l.Accept(); c != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Accept without descriptors: got %v, %v, want EMFILE", c, err)
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
			t.Fatalf("got %v, %v", c, err)
		}
	}
	free()
	server := sockettest.Accept(t, l)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestAbandonedListenerWithoutWatcherIsCollected(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	func() {
		l, err := unixsock.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if c, err := l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("AcceptContext without a client: got %v, %v, want DeadlineExceeded", c, err)
		}
	}()
	sockettest.WaitFor(t, "the descriptor of a dropped listener stays open", func() bool {
		runtime.GC()
		c, err := unixsock.Connect(path)
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

// TestAnyOrderOfEndsWakesEveryWaitingCall waits in all the ways there are, and ends
// the waits in all the ways there are, at once and in random order.
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
			t.Fatal(err)
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
		sockettest.Returns(t, "the enders", enders.Wait)
		sockettest.Returns(t, "Close", func() { l.Close() })
		sockettest.Returns(t, "the waiters", waiters.Wait)
		cancel()
		cancelOther()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if round%1000 == 0 {
			sockettest.WaitGoroutines(t, before)
		}
	}
	sockettest.WaitGoroutines(t, before)
}

type stormKey struct{}

// TestStormOfClientsIsServedExactlyOnce has many clients, and every goroutine that can
// accept at work at once, while events come and go.
func TestStormOfClientsIsServedExactlyOnce(t *testing.T) {
	clients, atOnce := 3000, 300
	if testing.Short() {
		clients = 500
	}
	l := sockettest.Listen(t, unixsock.Backlog(64))
	beforeGoroutines, beforeFiles := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()

	// A server hands its connection a byte and a number of its own; a client
	// that is served sees both, and one that is served twice sees too much.
	var served atomic.Int64
	serve := func(c net.Conn) {
		served.Add(1)
		c.Write([]byte("s"))
		c.Close()
	}
	take := func(a unixsock.Accepted, ok bool) {
		switch {
		case ok && a.Err != nil:
			t.Error(a.Err)
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
		servers.Go(func() { // one event for all, from a call of AcceptEvt each time
			for ctx.Err() == nil {
				a, ok := <-l.AcceptEvt(ctx)
				take(a, ok)
			}
		})
		servers.Go(func() { // Ready, and then an accept that need not find anything
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
		servers.Go(func() { // events that end without having been received from
			for ctx.Err() == nil {
				own, cancelOwn := context.WithCancel(ctx)
				l.AcceptEvt(own)
				for range rand.N(20) {
					runtime.Gosched()
				}
				cancelOwn()
			}
		})
		servers.Go(func() { // events of which one is received from
			for ctx.Err() == nil {
				a, b := context.WithTimeout(ctx, time.Millisecond)
				evt := l.AcceptEvt(a)
				l.AcceptEvt(context.WithValue(ctx, stormKey{}, 1))
				got, ok := <-evt
				if ok {
					// Its context will close it, and must not before it is served.
					if a.Err() == nil {
						take(got, ok)
					} else {
						served.Add(1)
						got.Conn.Close()
					}
				}
				b()
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

	// A client that gets EOF instead of the byte had a server whose context
	// ended between receive and write; that is service too, counted once.
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(clients))
	for range atOnce {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				c, err := unixsock.Connect(l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(sockettest.Timeout))
				b := make([]byte, 2)
				n, err := c.Read(b)
				if n > 1 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("a client got %q, %v", b[:n], err)
				}
				c.Close()
			}
		})
	}
	sockettest.Returns(t, "the clients", wg.Wait)
	if n := served.Load(); n != int64(clients) {
		t.Errorf("%d clients were served %d times", clients, n)
	}
	cancel()
	l.Close()
	sockettest.Returns(t, "the servers", servers.Wait)
	sockettest.WaitGoroutines(t, beforeGoroutines)
	sockettest.WaitDescriptors(t, beforeFiles-1)
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
				t.Errorf("%s of a %s Listener: got %v, want an OpError with os.ErrInvalid", call, name, err)
			}
		}
		l.CloseOn(t.Context())
		l.SetUnlinkOnClose(true)
		if addr := l.Addr(); addr != nil {
			t.Errorf("address of a %s Listener: got %v, want nil", name, addr)
		}
		if _, ok := <-l.Ready(); ok {
			t.Errorf("Ready of a %s Listener: got a value, want a closed channel", name)
		}
		if _, ok := <-l.AcceptEvt(t.Context()); ok {
			t.Errorf("AcceptEvt of a %s Listener: got a value, want a closed channel", name)
		}
	}
}

func TestCloseOnBackgroundReleasesTheListener(t *testing.T) {
	l := sockettest.Listen(t)
	ctx := newLedger()
	l.CloseOn(ctx)
	l.CloseOn(context.Background())
	if n := ctx.entries(); n != 0 {
		t.Errorf("CloseOn(context.Background()) left %d entries on the custodian, want 0", n)
	}
	sockettest.Exchange(t, l.Addr().String(), l)
}

// TestListenersCloseOnReplacedAsTheOldContextEnds is TestCloseOnReplacedAsTheOldContextEnds
// for a Listener.
func TestListenersCloseOnReplacedAsTheOldContextEnds(t *testing.T) {
	rounds := 10000
	if testing.Short() {
		rounds = 500
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	next := newLedger()
	for range rounds {
		l, err := unixsock.Listen(path, unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatal(err)
		}
		old, cancel := context.WithCancel(t.Context())
		l.CloseOn(old)
		go cancel()
		l.CloseOn(next)
		if next.entries() == 1 { // it was open
			<-old.Done()
			runtime.Gosched()
			if err := l.SetDeadline(time.Time{}); err != nil {
				t.Fatalf("SetDeadline after a CloseOn that replaced an ended context: got %v, want no error", err)
			}
		}
		l.Close()
		if n := next.entries(); n != 0 {
			t.Fatalf("a closed Listener left %d entries on its custodian, want 0", n)
		}
	}
}

// adopt returns a Listener for a copy of l's descriptor, as a successor has it.
func adopt(t testing.TB, l *unixsock.Listener) *unixsock.Listener {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	adopted, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatal(err)
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
				t.Fatal(err)
			}
			if exists := sockettest.IsSocketFile(path); exists == unlink {
				t.Errorf("Close after SetUnlinkOnClose(%v), adopted %v: the file exists: %v, want %v", unlink, adopted, exists, !unlink)
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
	sockettest.Exchange(t, path, successor)
	successor.Close()
	if sockettest.IsSocketFile(path) {
		t.Error("Close of the successor: the file exists, want it removed")
	}
}

func TestSetUnlinkOnCloseLeavesTheFileOfAnother(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	adopted := adopt(t, l)
	l.SetUnlinkOnClose(true)
	adopted.SetUnlinkOnClose(true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other := sockettest.ListenAt(t, path)
	l.Close()
	adopted.Close()
	sockettest.Exchange(t, path, other)
}
