//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/pprof"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

func TestMain(m *testing.M) {
	sockettest.Main(m, map[string]func(args []string) error{
		"ask":                      helpAsk,
		"race":                     helpRace,
		"watch owner":              helpWatchOwner,
		"connect":                  helpConnect,
		"serve":                    helpServe,
		"talk":                     helpTalk,
		"wait without descriptors": helpWaitWithoutDescriptors,
		"write on descriptor 1":    helpWriteOnDescriptor1,
	})
}

func TestConnectErrorsNameTheReason(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	sockettest.Check(t, os.WriteFile("file", nil, 0o600))
	sockettest.Check(t, os.Symlink("loop", "loop"))
	sockettest.ListenAt(t, "dead").Close()
	plain := error(syscall.ENOTSOCK)
	if hasAbstract() {
		plain = syscall.ECONNREFUSED
	}
	for path, want := range map[string]error{
		"absent":   fs.ErrNotExist,
		"absent/s": fs.ErrNotExist,
		"dead":     syscall.ECONNREFUSED,
		"file":     plain,
		"file/s":   syscall.ENOTDIR,
		"loop":     syscall.ELOOP,
	} {
		c, err := unixsock.Connect(path)
		if c != nil || !errors.Is(err, want) {
			t.Errorf("Connect to %s: got %v, %v; want nil, %v", path, c, err, want)
		}
		expectDialError(t, err, dir+"/"+path)
	}
}

// expectDialError fails the test unless err is the error of a Connect to name.
func expectDialError(t *testing.T, err error, name string) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Net != "unix" || !reflect.DeepEqual(opErr.Addr, &net.UnixAddr{Name: name, Net: "unix"}) {
		t.Fatalf("Connect to %q: got %#v, want a *net.OpError with Op dial, Net unix and the *net.UnixAddr", name, err)
	}
}

func TestConnectWithoutPermissionIsErrPermission(t *testing.T) {
	const pathVar = "UNIXSOCK_TEST_PATH"
	path := os.Getenv(pathVar)
	if os.Getenv(sockettest.ChildVar) == "" {
		path = sockettest.Listen(t).Addr().String()
		sockettest.Check(t, os.Chmod(filepath.Dir(path), 0o755))
		sockettest.Check(t, os.Chmod(path, 0))
	}
	if !sockettest.InChild(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, pathVar+"="+path) }) {
		return
	}
	if os.Getuid() == 0 {
		// The child changes its user itself: another user may have no access to the
		// directory of the test binary, so the parent cannot start the child as that user.
		if err := syscall.Setuid(65534); err != nil {
			t.Skipf("setuid(2): %v", err)
		}
	}
	_, err := unixsock.Connect(path)
	sockettest.ExpectError(t, "Connect to a file with mode 0", err, fs.ErrPermission)
}

func TestConnectThatFailsLeavesNoDescriptor(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	dead, full := l.Addr().String(), sockettest.FullListener(t).Addr().String()
	before := sockettest.CountDescriptors(t)
	for range 20 {
		_, err := unixsock.Connect(dead)
		sockettest.ExpectError(t, "Connect to a closed listener", err, syscall.ECONNREFUSED)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err = unixsock.ConnectContext(ctx, full)
		sockettest.ExpectError(t, "ConnectContext to a full backlog", err, context.DeadlineExceeded)
		cancel()
	}
	if after := sockettest.CountDescriptors(t); after > before {
		t.Errorf("open descriptors after failed Connects: got %d, want %d", after, before)
	}
}

func TestConnectWithoutDescriptorsIsEMFILE(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	path := l.Addr().String()
	free := sockettest.ExhaustDescriptors(t)
	_, err := unixsock.Connect(path)
	sockettest.ExpectError(t, "Connect without a free descriptor", err, syscall.EMFILE)
	_, err = unixsock.Listen(path + "2")
	sockettest.ExpectError(t, "Listen without a free descriptor", err, syscall.EMFILE)
	if sockettest.IsSocketFile(path + "2") {
		t.Error("Listen without a free descriptor: got a socket file, want none")
	}
	free()
	sockettest.CheckExchange(t, path, l)
}

// expectServed waits for a ConnectContext that waits, and for which there is room now.
func expectServed(t *testing.T, what string, result <-chan sockettest.Dialed) *unixsock.Conn {
	t.Helper()
	d := sockettest.Receive(t, what, result)
	return sockettest.Got(d.Conn, d.Err).Must(t)
}

func TestConnectWaitsWhileTheBacklogIsFull(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	t.Chdir(realDir(t))
	l := sockettest.ListenAt(t, "s", unixsock.Backlog(0))
	sockettest.Connect(t, "s")
	result := sockettest.Connecting(t, t.Context(), "s")
	other := sockettest.FullListener(t)
	ctx, cancel := context.WithCancel(t.Context())
	stuck := sockettest.Connecting(t, ctx, other.Addr().String())

	t.Chdir(realDir(t)) // a Connect that waits keeps its directory
	decoy := sockettest.ListenAt(t, "s")
	select {
	case d := <-result:
		t.Fatalf("ConnectContext to a full backlog: got %v, %v; want it to wait", d.Conn, d.Err)
	case <-time.After(5 * time.Millisecond): // nothing must happen for this time
	}
	sockettest.Accept(t, l)
	expectServed(t, "ConnectContext to a relative path, beside one to another", result)
	sockettest.Accept(t, l)
	if sockettest.Pending(t, decoy) {
		t.Error("ConnectContext to a relative path, with Chdir while it waits: got a connection in the new directory, want one in the old")
	}
	cancel()
	err := sockettest.Receive(t, "ConnectContext to a backlog that stays full", stuck).Err
	sockettest.ExpectError(t, "ConnectContext whose context is canceled", err, context.Canceled)
}

func TestManyConnectsAgainstABacklogOf4AreServed(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	const clients = 200
	l := sockettest.Listen(t, unixsock.Backlog(4))
	before := sockettest.CountDescriptors(t)
	errs := make(chan error, clients)
	for range clients {
		go func() {
			c, err := unixsock.Connect(l.Addr().String())
			if err == nil {
				defer c.Close()
				_, err = io.ReadFull(c, make([]byte, 1))
			}
			errs <- err
		}()
	}
	for range clients {
		s := sockettest.Accept(t, l)
		sockettest.Send(t, s, "!")
		s.Close()
	}
	for range clients {
		sockettest.Check(t, sockettest.Receive(t, "a client", errs))
	}
	if sockettest.Pending(t, l) {
		t.Errorf("connection pending after %d clients: got one more, want none", clients)
	}
	sockettest.WaitDescriptors(t, before)
}

// Each accept makes room for one client, and another Connect begins just then.
func TestWaitingConnectIsServedBeforeNewcomers(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	result := sockettest.Connecting(t, t.Context(), path)
	for range 20 {
		time.Sleep(5 * time.Millisecond) // the server's work for each client
		sockettest.Accept(t, l)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if c, err := unixsock.ConnectContext(ctx, path); err == nil {
			defer c.Close()
		}
		cancel()
		if len(result) > 0 {
			sockettest.Check(t, (<-result).Err)
			return
		}
	}
	t.Error("Connect that waits beside newcomers: got no connection after room for 20, want one")
}

func TestConnectEndsWithItsContext(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	before := sockettest.CountDescriptors(t)
	canceled, cancel := context.WithCancel(t.Context())
	late, cancelLate := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancelLate()
	results := map[context.Context]<-chan sockettest.Dialed{
		late: sockettest.Connecting(t, late, path), canceled: sockettest.Connecting(t, canceled, path),
	}
	cancel()
	for ctx, result := range results {
		err := sockettest.Receive(t, "ConnectContext whose context is done", result).Err
		sockettest.ExpectError(t, "ConnectContext whose context is done", err, ctx.Err())
		expectDialError(t, err, path)
		if timeout := err.(net.Error).Timeout(); timeout != (ctx == late) {
			t.Errorf("Timeout of the error %v: got %t, want %t", err, timeout, ctx == late)
		}
	}
	if after := sockettest.CountDescriptors(t); after != before {
		t.Errorf("open descriptors after ConnectContext whose context ended: got %d, want %d", after, before)
	}
	sockettest.Accept(t, l)
	_, err := unixsock.ConnectContext(canceled, path)
	sockettest.ExpectError(t, "ConnectContext with a canceled context", err, context.Canceled)
	if sockettest.Pending(t, l) {
		t.Error("accept after ConnectContext whose context ended: got one more pending connection, want none")
	}
}

func TestWaitingConnectFailsWhenTheListenerIsGone(t *testing.T) {
	l := sockettest.FullListener(t)
	result := sockettest.Connecting(t, t.Context(), l.Addr().String())
	l.Close()
	err := sockettest.Receive(t, "ConnectContext whose listener is closed", result).Err
	sockettest.ExpectError(t, "ConnectContext whose listener is closed", err, syscall.ECONNREFUSED)
}

// The contract's limit is 20 % of a core. The test allows 25 % because the measurement
// is not exact.
func TestWaitingConnectsUseLittleProcessorAndHoldNoThread(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	threads := pprof.Lookup("threadcreate").Count()
	var wg sync.WaitGroup
	var waits []<-chan struct{}
	for i := range 51 {
		path := sockettest.FullListener(t).Addr().String()
		waiters := 10
		if i == 0 {
			waiters = 500
		}
		for range waiters {
			ctx, wait := sockettest.Watch(ctx)
			waits = append(waits, wait)
			wg.Go(func() {
				_, err := unixsock.ConnectContext(ctx, path)
				sockettest.ExpectError(t, "ConnectContext to a full backlog, with a context that is canceled", err, context.Canceled)
			})
		}
	}
	for _, wait := range waits {
		sockettest.Receive(t, "ConnectContext to wait", wait)
	}
	share := 100.0
	for i := 0; i < 3 && share > 25; i++ { // gVisor's clock is coarse
		start, used := time.Now(), sockettest.ProcessorTime(t)
		time.Sleep(time.Second) // the time that is measured
		share = 100 * float64(sockettest.ProcessorTime(t)-used) / float64(time.Since(start))
	}
	if share > 25 {
		t.Errorf("processor time of %d waiting goroutines, the last of three seconds: got %.1f %% of a core, want at most 25 %%", len(waits), share)
	}
	if more := pprof.Lookup("threadcreate").Count() - threads; more > 20 {
		t.Errorf("new threads of %d waiting goroutines: got %d, want at most 20", len(waits), more)
	}
	cancel()
	wg.Wait()
}

// In the bubble the clock goes on only while all of its goroutines wait for each other or
// for the clock.
func TestConnectsInsideAndOutsideOfABubbleWaitForOnePath(t *testing.T) {
	l := sockettest.FullListener(t)
	outside := sockettest.Connecting(t, t.Context(), l.Addr().String())
	room := make(chan bool)
	go func() {
		<-room
		for range 3 { // FullListener's own Connect, too
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		time.AfterFunc(time.Second, func() { close(room) })
		sockettest.Connect(t, l.Addr().String())
	})
	expectServed(t, "Connect outside of the bubble", outside)
}

func TestContextHasNoHoldOnceConnected(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := sockettest.Listen(t)
	before := runtime.NumGoroutine()
	clients := []*unixsock.Conn{sockettest.Got(unixsock.ConnectContext(ctx, l.Addr().String())).Must(t)}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("goroutines after ConnectContext: got %d, want at most %d", after, before)
	}
	servers := []*unixsock.Conn{sockettest.Accept(t, l)}
	if sockettest.FullBacklog(t) == syscall.EAGAIN {
		l = sockettest.FullListener(t)
		result := sockettest.Connecting(t, ctx, l.Addr().String())
		sockettest.Accept(t, l)
		clients = append(clients, expectServed(t, "ConnectContext", result))
		servers = append(servers, sockettest.Accept(t, l))
	}
	cancel()
	time.Sleep(5 * time.Millisecond) // nothing must happen for this time
	for i, c := range clients {
		sockettest.Send(t, c, "!")
		sockettest.Expect(t, servers[i], "!")
	}
}

// TestNoMethodOfANilOrZeroValuePanics calls every method, so that a new one is tested, too.
func TestNoMethodOfANilOrZeroValuePanics(t *testing.T) {
	for _, v := range []any{
		(*unixsock.Conn)(nil), new(unixsock.Conn),
		(*unixsock.InputPort)(nil), new(unixsock.InputPort),
		(*unixsock.OutputPort)(nil), new(unixsock.OutputPort),
		(*unixsock.Listener)(nil), new(unixsock.Listener),
		new(unixsock.TCPUnit),
	} {
		value := reflect.ValueOf(v)
		for i := range value.NumMethod() {
			method, name := value.Method(i), value.Type().Method(i).Name
			args := make([]reflect.Value, method.Type().NumIn())
			for i := range args {
				args[i] = reflect.Zero(method.Type().In(i))
				if method.Type().In(i) == reflect.TypeFor[context.Context]() {
					args[i] = reflect.ValueOf(t.Context())
				}
			}
			call := method.Call
			if method.Type().IsVariadic() {
				call = method.CallSlice
			}
			for _, result := range call(args) {
				if result.Type() == reflect.TypeFor[error]() && result.IsNil() {
					t.Errorf("%s of %#v: got no error, want one", name, v)
				}
			}
		}
	}
}
