//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
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

// accepting calls accept(i) in n goroutines, and returns once each of them has begun. It
// closes what they accept. The channel yields their errors.
func accepting(t testing.TB, n int, accept func(i int) (*unixsock.Conn, error)) <-chan error {
	t.Helper()
	errs := make(chan error, n)
	var begun sync.WaitGroup
	begun.Add(n)
	for i := range n {
		go func() {
			begun.Done()
			c, err := accept(i)
			if c != nil {
				c.Close()
			}
			errs <- err
		}()
	}
	sockettest.CheckReturns(t, "the goroutines to begin", begun.Wait)
	return errs
}

// Linux queues one more connection than the backlog. FillBacklog skips the test on other
// systems.
func TestBacklog(t *testing.T) {
	for name, test := range map[string]struct {
		opts []unixsock.ListenOption
		want int
	}{
		"the default, 4":   {nil, 5},
		"0":                {[]unixsock.ListenOption{unixsock.Backlog(0)}, 1},
		"the last of two":  {[]unixsock.ListenOption{unixsock.Backlog(9), unixsock.Backlog(2)}, 3},
		"with nil options": {[]unixsock.ListenOption{nil, unixsock.Backlog(0), nil}, 1},
	} {
		l := sockettest.Listen(t, test.opts...)
		if n := sockettest.FillBacklog(t, l.Addr().String()); n != test.want {
			t.Errorf("connects until the backlog is full, %s: got %d, want %d", name, n, test.want)
		}
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

func TestAcceptThatMayNotWait(t *testing.T) {
	past := time.Now().Add(-time.Second)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	timedOut, cancel := context.WithDeadline(t.Context(), past)
	defer cancel()
	for name, test := range map[string]struct {
		ctx      context.Context
		deadline time.Time
		want     error
		timeout  bool
	}{
		"canceled context":              {canceled, time.Time{}, context.Canceled, false},
		"context that timed out":        {timedOut, time.Time{}, context.DeadlineExceeded, true},
		"deadline that is past":         {t.Context(), past, os.ErrDeadlineExceeded, true},
		"deadline and canceled context": {canceled, past, os.ErrDeadlineExceeded, true},
	} {
		for _, isPending := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connection pending %t", name, isPending), func(t *testing.T) {
				l := sockettest.Listen(t)
				if isPending {
					sockettest.Connect(t, l.Addr().String())
				}
				l.SetDeadline(test.deadline)
				c, err := l.AcceptContext(test.ctx)
				var opErr *net.OpError
				if c != nil || !errors.Is(err, test.want) || !errors.As(err, &opErr) || opErr.Op != "accept" || opErr.Timeout() != test.timeout {
					t.Errorf("AcceptContext: got %v, %v; want nil, a *net.OpError of accept with %v, a timeout: %v", c, err, test.want, test.timeout)
				}
				if timesOut := errors.Is(err, os.ErrDeadlineExceeded); timesOut != (test.want == os.ErrDeadlineExceeded) {
					t.Errorf("AcceptContext: got %v, os.ErrDeadlineExceeded: %v", err, timesOut)
				}
				if sockettest.Pending(t, l) != isPending {
					t.Error("AcceptContext that may not wait: got the connection accepted, want it pending")
				}
				if !isPending {
					sockettest.Connect(t, l.Addr().String())
				}
				l.SetDeadline(time.Time{})
				sockettest.Accept(t, l)
			})
		}
	}
}

func TestWaitingAcceptsEnd(t *testing.T) {
	var cancel func()
	for name, test := range map[string]struct {
		end  func(l *unixsock.Listener)
		want error
	}{
		"the context":        {func(*unixsock.Listener) { cancel() }, context.Canceled},
		"a deadline to come": {func(l *unixsock.Listener) { l.SetDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
		"a deadline earlier than another": {func(l *unixsock.Listener) {
			l.SetDeadline(time.Now().Add(time.Hour))
			l.SetDeadline(time.Now().Add(-time.Hour))
		}, os.ErrDeadlineExceeded},
		"Close": {func(l *unixsock.Listener) {
			var closing sync.WaitGroup
			for range 10 {
				closing.Go(func() {
					if err := l.Close(); err != nil {
						t.Errorf("concurrent Close: got %v, want nil", err)
					}
				})
			}
			sockettest.CheckReturns(t, "Close", closing.Wait)
		}, net.ErrClosed},
	} {
		for watched, use := range map[string]func(*unixsock.Listener){
			"":            func(*unixsock.Listener) {},
			", Ready":     func(l *unixsock.Listener) { l.Ready() },
			", AcceptEvt": func(l *unixsock.Listener) { l.AcceptEvt(context.Background()) },
		} {
			t.Run(name+watched, func(t *testing.T) {
				l := sockettest.Listen(t)
				use(l)
				var ctx context.Context
				ctx, cancel = context.WithCancel(t.Context())
				defer cancel()
				errs := accepting(t, 5, func(int) (*unixsock.Conn, error) { return l.AcceptContext(ctx) })
				test.end(l)
				for range 5 {
					if err := sockettest.Receive(t, "AcceptContext", errs); !errors.Is(err, test.want) {
						t.Errorf("AcceptContext ended by %s: got %v, want %v", name, err, test.want)
					}
				}
			})
		}
	}
}

func TestTryAcceptTakesAPendingConnection(t *testing.T) {
	for name, use := range map[string]func(l *unixsock.Listener){
		"alone":           func(*unixsock.Listener) {},
		"with Ready":      func(l *unixsock.Listener) { l.Ready() },
		"with events":     func(l *unixsock.Listener) { l.AcceptEvt(t.Context()) },
		"past a deadline": func(l *unixsock.Listener) { l.SetDeadline(time.Now().Add(-time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			use(l)
			for range 3 {
				client := sockettest.Connect(t, l.Addr().String())
				server, err := l.TryAccept()
				if err != nil {
					t.Fatalf("TryAccept of a pending connection: %v", err)
				}
				mustTalk(t, client, server)
				server.Close()
				c, err := l.TryAccept()
				var opErr *net.OpError
				if c != nil || !errors.Is(err, syscall.EAGAIN) || !errors.As(err, &opErr) || opErr.Op != "accept" || !opErr.Timeout() {
					t.Fatalf("TryAccept without a connection: got %v, %v; want nil, a *net.OpError of accept with EAGAIN, a timeout", c, err)
				}
			}
			if polled(t, l, l.Ready()) {
				t.Error("select on Ready() after a TryAccept that found nothing: got ready, want not ready")
			}
		})
	}
}

// TryAccept takes connections, and wakeups, beside goroutines that wait in Accept.
func TestTryAcceptTakesNoWakeupOfAnAccept(t *testing.T) {
	for name, use := range map[string]func(l *unixsock.Listener){
		"plain": func(*unixsock.Listener) {}, "with Ready": func(l *unixsock.Listener) { l.Ready() },
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t)
			use(l)
			for range sockettest.Times(2000) {
				errs := accepting(t, 2, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
				for connects := 2; connects > 0; connects-- {
					sockettest.Connect(t, l.Addr().String()).Close()
					if rand.N(2) == 0 {
						runtime.Gosched()
					}
					if rand.N(2) == 0 {
						if c, err := l.TryAccept(); err == nil {
							c.Close()
							connects++
						}
					}
				}
				for range 2 {
					if err := sockettest.Receive(t, "AcceptContext beside TryAccept", errs); err != nil {
						t.Fatalf("AcceptContext beside TryAccept: got %v, want a connection", err)
					}
				}
			}
		})
	}
}

// A context that is done closes a Conn or a Listener by Close, in a goroutine. The caller's own
// Close is complete when it returns, too.
func TestSecondCloseWaitsForTheFirst(t *testing.T) {
	l := sockettest.Listen(t)
	direct, waited := sockettest.Connect(t, l.Addr().String()), sockettest.Connect(t, l.Addr().String())
	waited.SetDeadline(time.Time{}) // registers the descriptor with the poller
	for what, s := range map[string]interface {
		io.Closer
		syscall.Conn
	}{"Listener": l, "Conn": direct, "Conn that has waited": waited} {
		raw, err := s.SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn: %v", err)
		}
		inside, release := make(chan bool), make(chan bool)
		go raw.Control(func(uintptr) { close(inside); <-release })
		<-inside
		closes := make(chan error, 2)
		for range cap(closes) {
			go func() { closes <- s.Close() }()
		}
		select {
		case <-closes:
			t.Errorf("%s: two calls of Close while a callback has the descriptor: got a return, want both to wait", what)
		case <-time.After(20 * time.Millisecond): // nothing must happen for this time
		}
		close(release)
		for range cap(closes) {
			if err := sockettest.Receive(t, what+": Close", closes); err != nil {
				t.Errorf("%s: Close: got %v, want no error", what, err)
			}
		}
	}
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
	_, tryErr := l.TryAccept()
	for name, err := range map[string]error{
		"Accept":        acceptErr,
		"AcceptContext": contextErr,
		"TryAccept":     tryErr,
		"SetDeadline":   l.SetDeadline(time.Now()),
		"Control":       raw.Control(func(uintptr) { t.Error("Control after Close: got a callback, want none") }),
	} {
		var opErr *net.OpError
		if !errors.Is(err, net.ErrClosed) || !errors.As(err, &opErr) || opErr.Addr.String() != addr {
			t.Errorf("%s after Close: got %v, want a *net.OpError with net.ErrClosed and the address %s", name, err, addr)
		}
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: got %v, want nil", err)
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
	errs := accepting(t, 3, func(int) (*unixsock.Conn, error) { return l.AcceptContext(t.Context()) })
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

func TestClosedListenerLeavesNothingOnItsContext(t *testing.T) {
	l := sockettest.Listen(t)
	released, ctx := newLedger(), newLedger()
	l.CloseOn(released)
	l.CloseOn(context.Background())
	released.mustHave(t, 0, "CloseOn(context.Background()) after CloseOn")
	sockettest.CheckExchange(t, l.Addr().String(), l)
	for range 10 {
		l.CloseOn(ctx)
	}
	ctx.mustHave(t, 1, "10 calls of CloseOn")
	l.Close()
	ctx.mustHave(t, 0, "Close")
	l.CloseOn(ctx)
	ctx.mustHave(t, 0, "CloseOn of a closed Listener")
}

// The old context may close the listener, or the next one does.
func TestListenersCloseOnReplacedAsTheOldContextEnds(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(2000) {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		old, next := newLedger(), newLedger()
		l.CloseOn(old)
		ended := make(chan struct{})
		go func() { defer close(ended); old.end() }()
		l.CloseOn(next)
		<-ended
		next.end()
		sockettest.WaitClosing(t, l)
		l.Close()
		old.mustHave(t, 0, "Close, on the context that ended")
		next.mustHave(t, 0, "Close, on the next context")
	}
}

func TestSyscallConnGivesControlOnly(t *testing.T) {
	l := sockettest.Listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	var kind int
	controlErr := raw.Control(func(fd uintptr) { kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) })
	if err := cmp.Or(controlErr, err); err != nil || kind != unix.SOCK_STREAM {
		t.Errorf("Control to get SO_TYPE: got %d, %v; want SOCK_STREAM, nil", kind, err)
	}
	for name, call := range map[string]func(func(fd uintptr) bool) error{"Read": raw.Read, "Write": raw.Write} {
		err := call(func(uintptr) bool { t.Errorf("%s: got a callback, want none", name); return true })
		var opErr *net.OpError
		if !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &opErr) {
			t.Errorf("%s: got %v, want a *net.OpError with errors.ErrUnsupported", name, err)
		}
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
	path := filepath.Join(sockettest.ShortDir(t), "s")
	before := runtime.NumGoroutine()
	for round := range sockettest.Times(5000) {
		l, err := unixsock.Listen(path, unixsock.Backlog(8))
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		other, cancelOther := context.WithCancel(context.Background())

		var waiters, enders sync.WaitGroup
		for range 1 + rand.N(4) {
			switch rand.N(5) {
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
				event := []context.Context{ctx, other}[rand.N(2)]
				waiters.Go(func() {
					for a := range l.AcceptEvt(event) {
						a.Conn.Close()
					}
				})
			case 4:
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

func TestNilAndZeroListenersReturnErrors(t *testing.T) {
	for name, l := range map[string]*unixsock.Listener{"nil": nil, "zero": new(unixsock.Listener)} {
		for call, do := range map[string]func() error{
			"Accept":        func() error { _, err := l.Accept(); return err },
			"AcceptContext": func() error { _, err := l.AcceptContext(t.Context()); return err },
			"TryAccept":     func() error { _, err := l.TryAccept(); return err },
			"Drain":         l.Drain,
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

// serving returns functions that answer each client of l with one byte, until l is closed.
func serving(t *testing.T, l *unixsock.Listener) map[string]func() {
	answer := func(c *unixsock.Conn, err error) bool {
		switch {
		case errors.Is(err, net.ErrClosed):
			return false
		case errors.Is(err, syscall.EAGAIN): // another goroutine was first
			return true
		case err != nil:
			t.Errorf("accept in a drain: got %v, want a connection or net.ErrClosed", err)
			return false
		}
		c.Write([]byte("s"))
		c.Close()
		return true
	}
	return map[string]func(){
		"Accept": func() {
			for answer(l.AcceptContext(context.Background())) {
			}
		},
		"Ready": func() {
			for range l.Ready() {
				answer(l.TryAccept())
			}
		},
		"AcceptEvt": func() {
			for a := range l.AcceptEvt(t.Context()) {
				answer(a.Conn, a.Err)
			}
		},
	}
}

// TestDrainAnswersEveryClientThatConnected drains listeners at random moments, while clients
// connect without pause.
func TestDrainAnswersEveryClientThatConnected(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	dir := sockettest.ShortDir(t)
	for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
		t.Run(loop, func(t *testing.T) {
			for i := range sockettest.Times(300) {
				path := filepath.Join(dir, "s")
				if hasAbstract() && i%2 == 0 {
					path = ownName(t, 80, strconv.Itoa(i))
				}
				drainUnderLoad(t, path, loop)
			}
		})
	}
}

// drainUnderLoad runs one drain of a listener at path. Two goroutines serve it by loop.
func drainUnderLoad(t *testing.T, path, loop string) {
	t.Helper()
	l := sockettest.ListenAt(t, path, unixsock.Backlog(8))
	var servers, clients sync.WaitGroup
	for range 2 {
		servers.Go(serving(t, l)[loop])
	}
	var answered atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				c, err := unixsock.Connect(path)
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
					return
				}
				if err != nil {
					t.Errorf("Connect to a listener that drains: got %v, want ECONNREFUSED or ErrNotExist", err)
					return
				}
				b, err := io.ReadAll(c)
				c.Close()
				if string(b) != "s" || err != nil {
					t.Errorf("ReadAll of a client that had connected: got %q, %v; want %q, nil", b, err, "s")
					return
				}
				answered.Add(1)
			}
		})
	}
	for enough := rand.Int64N(30); answered.Load() < enough; {
		time.Sleep(10 * time.Microsecond)
	}
	if err := l.Drain(); err != nil {
		t.Errorf("Drain: got %v, want nil", err)
	}
	sockettest.CheckReturns(t, "the clients", clients.Wait)
	sockettest.CheckReturns(t, "the servers", servers.Wait)
	if path[0] != 0 && sockettest.IsSocketFile(path) {
		t.Error("Lstat of the socket file after Drain: got a file, want none")
	}
}

func TestDrainOfAnIdleListenerClosesIt(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	for range 2 {
		if err := l.Drain(); err != nil {
			t.Errorf("Drain: got %v, want nil", err)
		}
	}
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
	if c, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Connect after Drain: got %v, %v; want nil, ErrNotExist", c, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close after Drain: got %v, want nil", err)
	}
	if err := l.Drain(); err != nil {
		t.Errorf("Drain after Close: got %v, want nil", err)
	}
}

// An abstract name is free once the descriptor is closed.
func TestDrainOfAnIdleListenerIsComplete(t *testing.T) {
	if !hasAbstract() {
		t.Skip("no abstract names")
	}
	name := unixsock.Abstract(fmt.Sprint(t.Name(), os.Getpid()))
	for i := range 200 {
		l, err := unixsock.Listen(name)
		if err != nil {
			t.Fatalf("Listen after %d drains of listeners of the same name: got %v, want a listener", i, err)
		}
		if i%2 == 0 {
			l.Ready()
		}
		if err := l.Drain(); err != nil {
			t.Fatalf("Drain: got %v, want no error", err)
		}
	}
}

func TestDrainServesPendingClientsAndCloses(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	ready := l.Ready()
	clients := []*unixsock.Conn{sockettest.Connect(t, path), sockettest.Connect(t, path)}
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if sockettest.IsSocketFile(path) {
		t.Error("Lstat of the socket file after Drain: got a file, want none")
	}
	for _, client := range clients {
		if !polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() in a drain with a pending client: got not ready, want ready")
		}
		server, err := l.TryAccept()
		if err != nil {
			t.Fatalf("TryAccept in a drain: got %v, want a connection", err)
		}
		mustTalk(t, client, server)
	}
	if _, ok := sockettest.ReceiveOK(t, "Ready to be closed", ready); ok {
		t.Error("receive from Ready after a drain: got a value, want a closed channel")
	}
	if c, err := l.TryAccept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryAccept after a drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestSecondDrainLosesNoClient(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	clients := []*unixsock.Conn{sockettest.Connect(t, path), sockettest.Connect(t, path)}
	for _, owner := range []bool{true, false} {
		l.SetUnlinkOnClose(owner)
		if err := l.Drain(); err != nil {
			t.Fatalf("Drain: got %v, want nil", err)
		}
	}
	for _, client := range clients {
		mustTalk(t, client, sockettest.Accept(t, l))
	}
}

// A process that is not written in Go may set the shared socket to blocking mode. accept(2)
// does not wait on a socket that is shut down, and fails with another error than EAGAIN.
func TestDrainEndsASocketInBlockingMode(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	l := sockettest.Listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	defer f.Close()
	if err := syscall.SetNonblock(int(f.Fd()), false); err != nil {
		t.Fatalf("SetNonblock: %v", err)
	}
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if c, err := l.TryAccept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryAccept after Drain of a socket in blocking mode: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestCloseEndsADrain(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if err := l.Close(); err != nil {
		t.Fatalf("Close of a listener that drains: got %v, want nil", err)
	}
	mustEnd(t, client)
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestDrainEndsAConnectThatWaits(t *testing.T) {
	l := sockettest.FullListener(t)
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	result := sockettest.Connecting(t, t.Context(), l.Addr().String())
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	d := sockettest.Receive(t, "ConnectContext whose listener drains", result)
	if !errors.Is(d.Err, syscall.ECONNREFUSED) && !errors.Is(d.Err, fs.ErrNotExist) {
		t.Errorf("ConnectContext whose listener drains: got %v, want ECONNREFUSED or ErrNotExist", d.Err)
	}
}

func TestDrainLeavesTheFileOfAnother(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove of the socket file: %v", err)
	}
	other := sockettest.ListenAt(t, path)
	if err := l.Drain(); err != nil {
		t.Errorf("Drain of a listener whose file was replaced: got %v, want nil", err)
	}
	sockettest.CheckExchange(t, path, other)
}

// The listener of a pre-fork worker, of a systemd unit, or of a process that has handed its
// socket to a successor is not the owner.
func TestDrainLeavesSocketFileAndBacklogToTheOwner(t *testing.T) {
	for name, disown := range map[string]func(l *unixsock.Listener) (drained, owner *unixsock.Listener){
		"adopted": func(l *unixsock.Listener) (drained, owner *unixsock.Listener) { return adopt(t, l), l },
		"handed over": func(l *unixsock.Listener) (drained, owner *unixsock.Listener) {
			owner = adopt(t, l)
			owner.SetUnlinkOnClose(true)
			l.SetUnlinkOnClose(false)
			return l, owner
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := sockettest.Listen(t, unixsock.UnlinkOnClose())
			path := first.Addr().String()
			l, owner := disown(first)
			evt := l.AcceptEvt(t.Context())
			ahead := sockettest.Connect(t, path)
			sockettest.WaitFor(t, "no connection is accepted ahead", func() bool { return !sockettest.Pending(t, l) })
			queued := sockettest.Connect(t, path)
			if err := l.Drain(); err != nil {
				t.Fatalf("Drain: got %v, want nil", err)
			}
			mustTalk(t, ahead, mustReceive(t, evt))
			mustBeOver(t, evt)
			if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after the drain: got %v, %v; want nil, net.ErrClosed", c, err)
			}
			mustTalk(t, queued, sockettest.Accept(t, owner))
			sockettest.CheckExchange(t, path, owner)
			next := adopt(t, owner)
			owner.SetUnlinkOnClose(false)
			owner.Close()
			sockettest.CheckExchange(t, path, next)
		})
	}
}

func TestDrainOfAnAdoptedListenerThatUnlinksIsTheOwners(t *testing.T) {
	first := sockettest.Listen(t)
	path := first.Addr().String()
	l := adopt(t, first)
	l.SetUnlinkOnClose(true)
	first.Close()
	client := sockettest.Connect(t, path)
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	// The file stays where the kernel does not say that it is the listener's.
	if c, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Connect after Drain: got %v, %v; want nil, ErrNotExist or ECONNREFUSED", c, err)
	}
	mustTalk(t, client, sockettest.Accept(t, l))
}

func TestListenerThatIsShutDownElsewhereEndsAndRemovesNoFile(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	began := []string{"after the shutdown", "before the shutdown"}
	if !sockettest.ShutdownWakesAccept(t) {
		began = began[:1]
	}
	for _, began := range began {
		for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
			t.Run(loop+" that began "+began, func(t *testing.T) {
				l := sockettest.Listen(t, unixsock.UnlinkOnClose())
				path := l.Addr().String()
				other := adopt(t, l)
				var servers sync.WaitGroup
				serve := func() {
					for range 3 {
						servers.Go(serving(t, l)[loop])
					}
				}
				if began == "before the shutdown" {
					serve()
				}
				client := sockettest.Connect(t, path)
				shutdown(t, other)
				if began == "after the shutdown" {
					serve()
				}
				if b, err := io.ReadAll(client); string(b) != "s" || err != nil {
					t.Errorf("ReadAll of the pending client: got %q, %v; want %q, nil", b, err, "s")
				}
				sockettest.CheckReturns(t, "the servers of a socket that is shut down", servers.Wait)
				if _, err := l.TryAccept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("TryAccept after the end: got %v, want net.ErrClosed", err)
				}
				l.Close()
				if !sockettest.IsSocketFile(path) {
					t.Error("Lstat of the socket file: got none, want the file to stay")
				}
			})
		}
	}
}

// shutdown shuts down the socket of l for reading, as a process does that drains it.
func shutdown(t *testing.T, l *unixsock.Listener) {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	controlErr := raw.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), syscall.SHUT_RD) })
	if err := cmp.Or(controlErr, err); err != nil {
		t.Fatalf("shutdown(2) of a listening socket: %v", err)
	}
}

func TestDrainDoesNotEndWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain without descriptors: got %v, want nil", err)
	}
	if c, err := l.Accept(); c != nil || !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("Accept without descriptors in a drain: got %v, %v; want nil, EMFILE", c, err)
	}
	idles(t)
	free()
	mustTalk(t, client, sockettest.Accept(t, l))
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestDrainOfANilOrZeroListenerIsAnError(t *testing.T) {
	for name, l := range map[string]*unixsock.Listener{"nil": nil, "zero": new(unixsock.Listener)} {
		var opErr *net.OpError
		if err := l.Drain(); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
			t.Errorf("Drain of a %s Listener: got %v, want a *net.OpError with os.ErrInvalid", name, err)
		}
	}
}
