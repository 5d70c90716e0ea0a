//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
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

// accepts are the ways to wait for a connection of a listener.
var accepts = map[string]func(l *unixsock.Listener) (*unixsock.Conn, error){
	"Accept": func(l *unixsock.Listener) (*unixsock.Conn, error) { return l.AcceptContext(context.Background()) },
	"Ready": func(l *unixsock.Listener) (*unixsock.Conn, error) {
		for range l.Ready() {
			if c, err := l.TryAccept(); !errors.Is(err, syscall.EAGAIN) {
				return c, err
			}
		}
		return nil, net.ErrClosed
	},
	"AcceptEvt": func(l *unixsock.Listener) (*unixsock.Conn, error) {
		if a, ok := <-l.AcceptEvt(context.Background()); ok {
			return a.Conn, a.Err
		}
		return nil, net.ErrClosed
	},
}

// expectListenerError fails the test unless err is a *net.OpError of op and addr in which
// errors.Is finds want.
func expectListenerError(t testing.TB, what, op, addr string, err, want error) {
	t.Helper()
	var opErr *net.OpError
	if !errors.Is(err, want) || !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || fmt.Sprint(opErr.Addr) != addr {
		t.Errorf("%s: got %#v, want a *net.OpError of %s and %s with %v", what, err, op, addr, want)
	}
}

// mustBeClosed fails the test unless an Accept, which waits for the end of a drain, finds l
// closed.
func mustBeClosed(t testing.TB, l *unixsock.Listener) {
	t.Helper()
	sockettest.CheckReturns(t, "Accept of a closed listener", func() {
		if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Accept of a closed listener: got %v, %v; want nil, net.ErrClosed", c, err)
		}
	})
}

// Linux queues one more connection than the backlog. FillBacklog skips the test on other
// systems.
func TestBacklog(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(math.MaxInt))
	for range 50 { // far more than the default, and less than the limit of any system
		sockettest.Connect(t, l.Addr().String())
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	l, err := unixsock.Listen(path, unixsock.Backlog(-1))
	expectListenerError(t, "Listen with Backlog(-1)", "listen", path, err, err)
	if l != nil || !strings.Contains(fmt.Sprint(err), "-1") || sockettest.IsSocketFile(path) {
		t.Errorf("Listen with Backlog(-1): got %v, %v; want nil, an error that contains -1, and no socket file", l, err)
	}
	for want, opts := range map[int][]unixsock.ListenOption{
		5: nil, // the default is 4
		1: {nil, unixsock.Backlog(0), nil},
		3: {unixsock.Backlog(9), unixsock.Backlog(2)},
	} {
		l := sockettest.Listen(t, opts...)
		if n := sockettest.FillBacklog(t, l.Addr().String()); n != want {
			t.Errorf("connects until the backlog is full: got %d, want %d", n, want)
		}
	}
}

func TestListenerHasItsPathAndKeepsOthersOut(t *testing.T) {
	t.Chdir(sockettest.ShortDir(t))
	path := sockettest.Got(unix.Getwd()).Must(t) + "/s"
	l := sockettest.ListenAt(t, "s")
	if addr, ok := l.Addr().(*net.UnixAddr); !ok || *addr != (net.UnixAddr{Name: path, Net: "unix"}) {
		t.Errorf("Addr of a listener at s: got %#v, want the unix address %s", l.Addr(), path)
	}
	dialer := net.Dialer{LocalAddr: &net.UnixAddr{Name: path + "c", Net: "unix"}}
	sockettest.Got(dialer.Dial("unix", path)).Must(t)
	server := sockettest.Accept(t, l)
	if local, remote := server.LocalAddr().String(), server.RemoteAddr().String(); local != path || remote != path+"c" {
		t.Errorf("addresses of an accepted Conn: got %q, %q; want %q, %q", local, remote, path, path+"c")
	}
	descriptors := sockettest.CountDescriptors(t)
	for range 2 {
		_, err := unixsock.Listen(path)
		expectListenerError(t, "Listen at the path of another listener, open or closed", "listen", path, err, syscall.EADDRINUSE)
		sockettest.WaitDescriptors(t, descriptors)
		l.Close() // the file stays
	}
	sockettest.Check(t, os.Remove(path))
	sockettest.ListenAt(t, path)
}

// An accept ends while it waits, or as it begins; a pending connection stays then.
func TestAcceptEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(l *unixsock.Listener, cancel func())
		want error
	}{
		"the context": {func(_ *unixsock.Listener, cancel func()) { cancel() }, context.Canceled},
		"the deadline": {func(l *unixsock.Listener, _ func()) {
			l.SetDeadline(time.Now().Add(time.Hour))
			l.SetDeadline(time.Now().Add(-time.Hour))
		}, os.ErrDeadlineExceeded},
		"Close": {func(l *unixsock.Listener, _ func()) { l.Close() }, net.ErrClosed},
		"the custodian": {func(l *unixsock.Listener, _ func()) {
			ctx, end := context.WithCancel(t.Context())
			l.CloseOn(t.Context())
			l.CloseOn(ctx)
			end()
			sockettest.WaitClosing(t, l)
		}, net.ErrClosed},
	} {
		for i := range 4 {
			l := sockettest.Listen(t)
			ctx, cancel := context.WithCancel(t.Context())
			if i%2 == 0 {
				l.Ready()
			}
			errs := make(chan error, 3)
			begin := func() {
				for range cap(errs) {
					go func() { _, err := l.AcceptContext(ctx); errs <- err }()
				}
			}
			if i < 2 {
				begin()
				test.end(l, cancel)
			} else {
				sockettest.Connect(t, l.Addr().String())
				test.end(l, cancel)
				begin()
			}
			for range cap(errs) {
				err := sockettest.Receive(t, "AcceptContext", errs)
				expectListenerError(t, "AcceptContext ended by "+name, "accept", l.Addr().String(), err, test.want)
				if netErr, ok := err.(net.Error); !ok || netErr.Timeout() != (name == "the deadline") {
					t.Errorf("AcceptContext ended by %s: got %v, want a timeout only for a deadline", name, err)
				}
			}
			if cancel(); i >= 2 && test.want != net.ErrClosed {
				sockettest.Check(t, l.SetDeadline(time.Time{}))
				sockettest.Accept(t, l)
			}
		}
	}
	l := sockettest.Listen(t)
	l.SetDeadline(time.Now().Add(time.Millisecond))
	_, err := l.Accept()
	sockettest.ExpectError(t, "Accept that waits for a deadline", err, os.ErrDeadlineExceeded)
}

func TestTryAcceptTakesAPendingConnection(t *testing.T) {
	l := sockettest.Listen(t)
	for _, use := range []func(){
		func() { l.SetDeadline(time.Now().Add(-time.Second)) }, // has no effect
		func() { l.Ready() },
		func() { l.AcceptEvt(t.Context()) },
	} {
		use()
		client := sockettest.Connect(t, l.Addr().String())
		mustTalk(t, client, sockettest.Got(l.TryAccept()).Must(t))
		c, err := l.TryAccept()
		expectListenerError(t, "TryAccept of nothing", "accept", l.Addr().String(), err, syscall.EAGAIN)
		if netErr, ok := err.(net.Error); c != nil || !ok || !netErr.Timeout() {
			t.Errorf("TryAccept of nothing: got %v, %v; want nil, a timeout", c, err)
		}
	}
	if polled(t, l, l.Ready()) {
		t.Error("select on Ready() after a TryAccept that found nothing: got ready, want not ready")
	}
}

func TestClientsThatHaveGoneFailNoAccept(t *testing.T) {
	for _, accept := range accepts {
		l := sockettest.Listen(t)
		for range 3 {
			sockettest.Connect(t, l.Addr().String()).Close()
		}
		sockettest.Send(t, sockettest.Connect(t, l.Addr().String()), "!")
		for b := make([]byte, 1); b[0] == 0; { // some kernels drop the clients that have gone
			sockettest.Got(accept(l)).Must(t).Read(b)
		}
	}
}

func TestUsesOfClosedNilAndZeroListenersFail(t *testing.T) {
	closed := sockettest.Listen(t)
	raw := sockettest.Got(closed.SyscallConn()).Must(t)
	addr := closed.Addr().String()
	for op, call := range map[string]func(func(fd uintptr) bool) error{"raw-read": raw.Read, "raw-write": raw.Write} {
		err := call(func(uintptr) bool { t.Errorf("%s: got a callback, want none", op); return true })
		expectListenerError(t, op, op, addr, err, errors.ErrUnsupported)
	}
	for range 2 {
		sockettest.Check(t, closed.Close())
		sockettest.Check(t, closed.Drain())
	}
	sockettest.ExpectError(t, "Control after Close", raw.Control(func(uintptr) { t.Error("Control after Close: got a callback, want none") }), net.ErrClosed)
	for name, l := range map[string]*unixsock.Listener{"nil": nil, "zero": new(unixsock.Listener), "closed": closed} {
		c, err := l.Accept()
		_, contextErr := l.AcceptContext(t.Context())
		_, tryErr := l.TryAccept()
		calls := map[string]error{"accept": err, "accept ": contextErr, "accept  ": tryErr, "set": l.SetDeadline(time.Now())}
		want, wantAddr := net.ErrClosed, addr
		if l != closed {
			_, rawErr := l.SyscallConn()
			calls["drain"], calls["close"], calls["raw"] = l.Drain(), l.Close(), rawErr
			want, wantAddr = os.ErrInvalid, "<nil>"
		}
		for op, err := range calls {
			expectListenerError(t, op+" of a "+name+" Listener", strings.TrimSpace(op), wantAddr, err, want)
		}
		l.CloseOn(t.Context())
		l.SetUnlinkOnClose(true)
		ready, ok := sockettest.ReceiveOK(t, "Ready", l.Ready())
		if got := fmt.Sprint(l.Addr()); c != nil || ok || got != wantAddr {
			t.Errorf("Accept, Ready, Addr of a %s Listener: got %v, %v, %s; want nil, a closed channel, %s", name, c, ready, got, wantAddr)
		}
		mustBeOver(t, l.AcceptEvt(t.Context()))
	}
}

// A context that is done closes a Conn or a Listener by Close, in a goroutine. The caller's own
// Close is complete when it returns, too.
func TestSecondCloseWaitsForTheFirst(t *testing.T) {
	l := sockettest.Listen(t)
	direct, waited := sockettest.Connect(t, l.Addr().String()), sockettest.Connect(t, l.Addr().String())
	waited.SetDeadline(time.Time{}) // registers the descriptor with the poller
	for _, s := range []interface {
		io.Closer
		syscall.Conn
	}{l, direct, waited} {
		raw, closes := sockettest.Got(s.SyscallConn()).Must(t), make(chan error, 2)
		release := hold(t, func(f func(uintptr) bool) error { return raw.Control(func(fd uintptr) { f(fd) }) })
		for range cap(closes) {
			go func() { closes <- s.Close() }()
		}
		select {
		case <-closes:
			t.Errorf("two calls of Close of a %T while a callback has the descriptor: got a return, want both to wait", s)
		case <-time.After(5 * time.Millisecond): // nothing must happen for this time
		}
		release()
		for range cap(closes) {
			sockettest.Check(t, sockettest.Receive(t, "Close", closes))
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

func TestListenerHasOneCustodianAndLeavesNothingOnIt(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // what a context starts as it ends runs after the next call
	sockettest.WaitFor(t, "custodians that ended just before they were replaced closed the listener", func() bool {
		l, replaced, released, ctx := sockettest.Listen(t), newLedger(), newLedger(), newLedger()
		l.CloseOn(replaced)
		replaced.end()
		l.CloseOn(released)
		l.CloseOn(context.Background())
		released.mustHave(t, 0, "CloseOn(context.Background()) after CloseOn")
		for range 10 {
			l.CloseOn(ctx)
		}
		isOpen := l.SetDeadline(time.Time{}) == nil
		if isOpen {
			ctx.mustHave(t, 1, "10 calls of CloseOn")
		}
		l.Close()
		ctx.mustHave(t, 0, "Close")
		l.CloseOn(ctx)
		ctx.mustHave(t, 0, "CloseOn of a closed Listener")
		return isOpen
	})
}

// serve answers each client of l with one byte, until l is closed.
func serve(t *testing.T, l *unixsock.Listener, accept func(*unixsock.Listener) (*unixsock.Conn, error)) {
	for {
		c, err := accept(l)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept in a drain: got %v, want a connection or net.ErrClosed", err)
			}
			return
		}
		c.Write([]byte("s"))
		c.Close()
	}
}

// skipUnlessConnectsAreRefused skips the test on a kernel that cannot refuse connections to
// a listening socket.
func skipUnlessConnectsAreRefused(t *testing.T) {
	t.Helper()
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
}

// Listeners drain at random moments, while clients connect without pause. On Linux clients
// wait for every second one, whose backlog is full.
func TestDrainAnswersEveryClientThatConnected(t *testing.T) {
	skipUnlessConnectsAreRefused(t)
	dir, descriptors := sockettest.ShortDir(t), sockettest.CountDescriptors(t)
	for way, accept := range accepts {
		for i := range sockettest.Times(40) {
			path, backlog := filepath.Join(dir, "s"), 8
			if hasAbstract() && i%2 == 0 {
				path, backlog = ownName(t, 80, strconv.Itoa(i)), 0
			}
			l := sockettest.ListenAt(t, path, unixsock.Backlog(backlog))
			var busy sync.WaitGroup
			for range 2 {
				busy.Go(func() { serve(t, l, accept) })
			}
			var answered atomic.Int64
			for range 4 {
				busy.Go(func() {
					for {
						c, err := unixsock.Connect(path)
						if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
							return
						}
						b, readErr := io.ReadAll(c)
						if c.Close(); string(b) != "s" || err != nil || readErr != nil {
							t.Errorf("Connect, ReadAll of a client of a listener that drains, %s: got %v, %q, %v; want an answer, or no connection", way, err, b, readErr)
							return
						}
						answered.Add(1)
					}
				})
			}
			for enough := rand.Int64N(30); answered.Load() < enough && !t.Failed(); {
				time.Sleep(10 * time.Microsecond)
			}
			sockettest.Check(t, l.Drain())
			sockettest.CheckReturns(t, "the clients and the servers", busy.Wait)
			if sockettest.IsSocketFile(path) {
				t.Fatal("Lstat of the socket file after Drain: got a file, want none")
			}
		}
	}
	sockettest.WaitDescriptors(t, descriptors)
}

// Drain closes an idle listener before it returns: then an abstract name is free.
func TestDrainOfAnIdleListenerClosesIt(t *testing.T) {
	for i := range 40 {
		path := filepath.Join(sockettest.ShortDir(t), "s")
		if hasAbstract() && i%2 == 0 {
			path = ownName(t, 80, "")
		}
		l := sockettest.ListenAt(t, path)
		if i%4 < 2 {
			l.Ready()
		}
		sockettest.Check(t, l.Drain())
		if c, err := unixsock.Connect(path); c != nil || sockettest.IsSocketFile(path) {
			t.Fatalf("Connect after Drain: got %v, %v; want an error, and no file", c, err)
		}
		mustBeClosed(t, l)
	}
}

func TestDrainServesPendingClientsAndCloses(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	ready := l.Ready()
	clients := []*unixsock.Conn{sockettest.Connect(t, path), sockettest.Connect(t, path)}
	for _, owner := range []bool{true, false} { // the second Drain does not leave the backlog to others
		l.SetUnlinkOnClose(owner)
		sockettest.Check(t, l.Drain())
	}
	other := sockettest.ListenAt(t, path) // the file has gone
	for _, client := range clients {
		if !polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() in a drain with a pending client: got not ready, want ready")
		}
		mustTalk(t, client, sockettest.Got(l.TryAccept()).Must(t))
	}
	if _, ok := sockettest.ReceiveOK(t, "Ready to be closed", ready); ok {
		t.Error("receive from Ready after a drain: got a value, want a closed channel")
	}
	mustBeClosed(t, l)
	client := sockettest.Connect(t, path)
	sockettest.Check(t, os.Remove(path))
	another := sockettest.ListenAt(t, path)
	sockettest.Check(t, other.Drain()) // leaves the file of another
	sockettest.CheckExchange(t, path, another)
	sockettest.Check(t, other.Close()) // ends the drain
	mustEnd(t, client)
	mustBeClosed(t, other)
}

// A process that is not written in Go may set the shared socket to blocking mode. accept(2)
// does not wait on a socket that is shut down, and fails with another error than EAGAIN.
func TestDrainEndsASocketInBlockingMode(t *testing.T) {
	skipUnlessConnectsAreRefused(t)
	l := sockettest.Listen(t)
	sockettest.Control(t, l, func(fd int) { sockettest.Check(t, unix.SetNonblock(fd, false)) })
	sockettest.Check(t, l.Drain())
	mustBeClosed(t, l)
}

// The listener of a pre-fork worker, of a systemd unit, or of a process that has handed its
// socket to a successor is not the owner.
func TestDrainLeavesSocketFileAndBacklogToTheOwner(t *testing.T) {
	for _, adopted := range []bool{true, false} {
		owner := sockettest.Listen(t, unixsock.UnlinkOnClose())
		path, l := owner.Addr().String(), adopt(t, owner)
		if !adopted { // but handed over
			owner, l = l, owner
			owner.SetUnlinkOnClose(true)
			l.SetUnlinkOnClose(false)
		}
		evt := l.AcceptEvt(t.Context())
		ahead := acceptAhead(t, l)
		queued := sockettest.Connect(t, path)
		sockettest.Check(t, l.Drain())
		mustTalk(t, ahead, mustReceive(t, evt))
		mustBeOver(t, evt)
		mustBeClosed(t, l)
		mustTalk(t, queued, sockettest.Accept(t, owner))
		sockettest.CheckExchange(t, path, owner)
		last := sockettest.Connect(t, path)
		sockettest.Check(t, owner.Drain())
		if sockettest.IsSocketFile(path) && (adopted || !keepsAdoptedFiles()) {
			t.Error("Lstat of the socket file after the owner's Drain: got a file, want none")
		}
		if c, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Connect after the owner's Drain: got %v, %v; want nil, ErrNotExist or ECONNREFUSED", c, err)
		}
		mustTalk(t, last, sockettest.Accept(t, owner))
		mustBeClosed(t, owner)
	}
}

func TestListenerThatIsShutDownElsewhereEndsAndRemovesNoFile(t *testing.T) {
	skipUnlessConnectsAreRefused(t)
	orders := map[bool][]bool{false: {false}, true: {false, true}}[sockettest.ShutdownWakesAccept(t)]
	for way, accept := range accepts {
		for _, waits := range orders {
			l := sockettest.Listen(t, unixsock.UnlinkOnClose())
			var servers sync.WaitGroup
			begin := func() {
				for range 3 {
					servers.Go(func() { serve(t, l, accept) })
				}
			}
			if waits {
				begin()
			}
			client := sockettest.Connect(t, l.Addr().String())
			sockettest.Control(t, adopt(t, l), func(fd int) { sockettest.Check(t, unix.Shutdown(fd, unix.SHUT_RD)) })
			if !waits {
				begin()
			}
			sockettest.ExpectEOF(t, client, "s")
			sockettest.CheckReturns(t, "the servers of a socket that is shut down", servers.Wait)
			mustBeClosed(t, l)
			if l.Close(); !sockettest.IsSocketFile(l.Addr().String()) {
				t.Errorf("Lstat of the socket file of a listener that has ended, %s: got none, want the file to stay", way)
			}
		}
	}
}
