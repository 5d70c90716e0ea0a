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
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	sockettest.Main(m, map[string]func(args []string) error{
		"ask":                      helpAsk,
		"listen":                   helpListen,
		"race":                     helpRace,
		"hold lock":                helpHoldLock,
		"watch mode":               helpWatchMode,
		"watch owner":              helpWatchOwner,
		"listen as owner":          helpListenAsOwner,
		"start and stop":           helpStartAndStop,
		"watch open":               helpWatchOpen,
		"connect":                  helpConnect,
		"serve":                    helpServe,
		"talk":                     helpTalk,
		"wait without descriptors": helpWaitWithoutDescriptors,
		"write on descriptor 1":    helpWriteOnDescriptor1,
	})
}

func TestConnectReachesTheListener(t *testing.T) {
	client, server := sockettest.Pair(t)
	for _, c := range [][2]*unixsock.Conn{{client, server}, {server, client}} {
		if n, err := c[0].Write([]byte("hello")); n != 5 || err != nil {
			t.Fatalf("Write of 5 bytes: got %d, %v; want 5, nil", n, err)
		}
		b := make([]byte, 10)
		if n, err := c[1].Read(b); string(b[:n]) != "hello" || err != nil {
			t.Fatalf("Read after the peer's Write: got %q, %v; want %q, nil", b[:n], err, "hello")
		}
	}
}

func TestConnectErrorsNameTheReason(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	if err := os.WriteFile("file", nil, 0o600); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
	sockettest.ListenAt(t, "dead").Close()
	if err := os.Symlink("loop", "loop"); err != nil {
		t.Fatalf("Symlink: %v", err)
	}
	plain := error(syscall.ECONNREFUSED)
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		plain = syscall.ENOTSOCK
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
		var opErr *net.OpError
		if !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Net != "unix" {
			t.Errorf("Connect to %s: got %#v, want a *net.OpError with Op dial and Net unix", path, err)
			continue
		}
		if addr, ok := opErr.Addr.(*net.UnixAddr); !ok || addr.Name != dir+"/"+path || addr.Net != "unix" {
			t.Errorf("Addr of the error of Connect to %s: got %#v, want a *net.UnixAddr of %s/%s", path, opErr.Addr, dir, path)
		}
	}
}

func TestConnectWithoutPermissionIsErrPermission(t *testing.T) {
	const pathVar = "UNIXSOCK_TEST_PATH"
	path := os.Getenv(pathVar)
	if os.Getenv(sockettest.ChildVar) == "" {
		l := sockettest.Listen(t)
		path = l.Addr().String()
		for name, mode := range map[string]fs.FileMode{filepath.Dir(path): 0o755, path: 0} {
			if err := os.Chmod(name, mode); err != nil {
				t.Fatalf("Chmod: %v", err)
			}
		}
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
	if _, err := unixsock.Connect(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Connect to a file with mode 0: got %v, want ErrPermission", err)
	}
}

func TestConnectThatFailsLeavesNoDescriptor(t *testing.T) {
	l := sockettest.Listen(t)
	l.Close()
	dead := l.Addr().String()
	full := sockettest.FullListener(t).Addr().String()
	before := sockettest.CountDescriptors(t)
	for range 20 {
		if _, err := unixsock.Connect(dead); err == nil {
			t.Fatal("Connect to a closed listener: got a connection, want an error")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := unixsock.ConnectContext(ctx, full); err == nil {
			t.Fatal("ConnectContext to a full backlog: got a connection, want an error")
		}
		cancel()
	}
	if after := sockettest.CountDescriptors(t); after > before {
		t.Errorf("open descriptors after failed Connects: got %d, want at most %d", after, before)
	}
}

func TestConnectWithoutDescriptorsIsEMFILE(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t)
	free := sockettest.ExhaustDescriptors(t)
	if _, err := unixsock.Connect(l.Addr().String()); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Connect without a free descriptor: got %v, want EMFILE", err)
	}
	path := l.Addr().String() + "2"
	if _, err := unixsock.Listen(path); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Listen without a free descriptor: got %v, want EMFILE", err)
	}
	if sockettest.IsSocketFile(path) {
		t.Error("Listen without a free descriptor: got a socket file, want none")
	}
	free()
	sockettest.CheckExchange(t, l.Addr().String(), l)
}

func TestConnectWaitsWhileTheBacklogIsFull(t *testing.T) {
	l := sockettest.FullListener(t)
	result := sockettest.Connecting(t, t.Context(), l.Addr().String())
	select {
	case d := <-result:
		t.Fatalf("ConnectContext to a full backlog: got %v, %v; want it to wait", d.Conn, d.Err)
	case <-time.After(50 * time.Millisecond): // nothing must happen for this time
	}
	sockettest.Accept(t, l)
	if d := sockettest.Receive(t, "ConnectContext once the backlog has room", result); d.Err != nil {
		t.Fatalf("ConnectContext once the backlog has room: got %v, want a connection", d.Err)
	}
	sockettest.Accept(t, l)
}

func TestThousandConnectsAgainstABacklogOf4AreServed(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	const clients = 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < 2*clients+100 {
		t.Skipf("the limit of %d descriptors is too low for %d connections", limit.Cur, clients)
	}
	l := sockettest.Listen(t, unixsock.Backlog(4))
	before := sockettest.CountDescriptors(t)
	start := make(chan struct{})
	errs := make(chan error, clients)
	for i := range clients {
		go func() {
			<-start
			c, err := unixsock.Connect(l.Addr().String())
			if err == nil {
				defer c.Close()
				_, err = c.Write([]byte{byte(i), byte(i >> 8)})
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
			}
			errs <- err
		}()
	}
	close(start)
	seen := make(map[[2]byte]bool)
	for range clients {
		s := sockettest.Accept(t, l)
		var id [2]byte
		if _, err := io.ReadFull(s, id[:]); err != nil {
			t.Fatalf("ReadFull of a client's ID: got %v, want no error", err)
		}
		if _, err := s.Write([]byte("!")); err != nil {
			t.Fatalf("Write of the answer to client %v: got %v, want no error", id, err)
		}
		s.Close()
		seen[id] = true
	}
	for range clients {
		if err := sockettest.Receive(t, "a client", errs); err != nil {
			t.Errorf("Connect, Write and Read of a client: got %v, want no error", err)
		}
	}
	if len(seen) != clients {
		t.Errorf("connect %d clients to a backlog of 4: got %d IDs, want %d", clients, len(seen), clients)
	}
	sockettest.WaitDescriptors(t, before)
}

// Each accept makes room for one client, and another Connect begins just then.
func TestWaitingConnectIsServedBeforeNewcomers(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	result := sockettest.Connecting(t, t.Context(), path)
	for rooms := 1; ; rooms++ {
		time.Sleep(5 * time.Millisecond) // the server's work for each client
		sockettest.Accept(t, l)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if c, err := unixsock.ConnectContext(ctx, path); err == nil {
			defer c.Close()
		}
		cancel()
		select {
		case d := <-result:
			if d.Err != nil || rooms > 20 {
				t.Errorf("Connect that waits beside newcomers: got %v after room for %d, want a connection after at most 20", d.Err, rooms)
			}
			return
		default:
		}
	}
}

func TestWaitingConnectEndsWithItsContext(t *testing.T) {
	l := sockettest.FullListener(t)
	before := sockettest.CountDescriptors(t)
	for _, want := range []error{context.Canceled, context.DeadlineExceeded} {
		ctx, cancel := context.WithCancel(t.Context())
		if want == context.DeadlineExceeded {
			ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
		}
		defer cancel()
		result := sockettest.Connecting(t, ctx, l.Addr().String())
		if want == context.Canceled {
			cancel()
		}
		err := sockettest.Receive(t, "ConnectContext whose context is done", result).Err
		var opErr *net.OpError
		if !errors.Is(err, want) || !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Addr.String() != l.Addr().String() {
			t.Fatalf("ConnectContext whose context ends: got %#v, want a *net.OpError with %v, Op dial and Addr %v", err, want, l.Addr())
		}
		if timeout, wantTimeout := opErr.Timeout(), want == context.DeadlineExceeded; timeout != wantTimeout {
			t.Errorf("Timeout of the error %v: got %t, want %t", want, timeout, wantTimeout)
		}
	}
	if after := sockettest.CountDescriptors(t); after != before {
		t.Errorf("open descriptors after ConnectContext whose context ended: got %d, want %d", after, before)
	}
	sockettest.Accept(t, l)
	if sockettest.Pending(t, l) {
		t.Error("accept after ConnectContext whose context ended: got one more pending connection, want none")
	}
}

func TestConnectWithAContextThatIsDoneDoesNotConnect(t *testing.T) {
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := unixsock.ConnectContext(ctx, l.Addr().String()); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("ConnectContext with a canceled context: got %v, %v; want nil, Canceled", c, err)
	}
	if sockettest.Pending(t, l) {
		t.Error("ConnectContext with a canceled context: got a pending connection, want none")
	}
}

func TestWaitingConnectFailsWhenTheListenerIsGone(t *testing.T) {
	l := sockettest.FullListener(t)
	result := sockettest.Connecting(t, t.Context(), l.Addr().String())
	l.Close()
	if d := sockettest.Receive(t, "ConnectContext whose listener is closed", result); !errors.Is(d.Err, syscall.ECONNREFUSED) {
		t.Errorf("ConnectContext whose listener is closed: got %v, want ECONNREFUSED", d.Err)
	}
}

func TestWaitingConnectKeepsItsDirectory(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	t.Chdir(realDir(t))
	l := sockettest.ListenAt(t, "s", unixsock.Backlog(0))
	sockettest.Connect(t, "s")
	result := sockettest.Connecting(t, t.Context(), "s")

	t.Chdir(realDir(t))
	decoy := sockettest.ListenAt(t, "s")
	sockettest.Accept(t, l)
	if d := sockettest.Receive(t, "ConnectContext once the backlog has room", result); d.Err != nil {
		t.Fatalf("ConnectContext to a relative path, once the backlog has room: got %v, want a connection", d.Err)
	}
	if sockettest.Pending(t, decoy) {
		t.Error("ConnectContext to a relative path, with Chdir while it waits: got a connection in the new directory, want one in the old")
	}
}

// The contract's limit is 20 % of a core. The test allows 25 % because the measurement
// is not exact.
func TestWaitingConnectsUseLittleProcessorAndHoldNoThread(t *testing.T) {
	for what, test := range map[string]struct{ paths, waiters int }{
		"one":              {1, 1},
		"500 for one path": {1, 500},
		"10 for 50 paths":  {50, 10},
	} {
		t.Run(what, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			threads := pprof.Lookup("threadcreate").Count()
			var wg sync.WaitGroup
			var waits []<-chan struct{}
			for range test.paths {
				path := sockettest.FullListener(t).Addr().String()
				for range test.waiters {
					ctx, wait := sockettest.Watch(ctx)
					waits = append(waits, wait)
					wg.Go(func() {
						if _, err := unixsock.ConnectContext(ctx, path); !errors.Is(err, context.Canceled) {
							t.Errorf("ConnectContext to a full backlog, with a context that is canceled: got %v, want Canceled", err)
						}
					})
				}
			}
			for _, wait := range waits {
				sockettest.Receive(t, "ConnectContext to wait", wait)
			}

			n := len(waits)
			start, used := time.Now(), sockettest.ProcessorTime(t)
			time.Sleep(time.Second) // the time that is measured
			share := float64(sockettest.ProcessorTime(t)-used) / float64(time.Since(start))
			t.Logf("%d waiting goroutines use %.1f %% of a core", n, 100*share)
			if share > 0.25 {
				t.Errorf("processor time of %d waiting goroutines: got %.1f %% of a core, want at most 25 %%", n, 100*share)
			}
			if more := pprof.Lookup("threadcreate").Count() - threads; more > 20 {
				t.Errorf("new threads of %d waiting goroutines: got %d, want at most 20", n, more)
			}
			cancel()
			wg.Wait()
		})
	}
}

// TestWaitingConnectIsServedAfterOthersHaveGivenUp cancels the waiters of one path one
// after the other. The last one connects once the backlog has room.
func TestWaitingConnectIsServedAfterOthersHaveGivenUp(t *testing.T) {
	l := sockettest.FullListener(t)
	var cancels []context.CancelFunc
	var results []<-chan sockettest.Dialed
	goroutines := runtime.NumGoroutine()
	for range 10 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cancels = append(cancels, cancel)
		results = append(results, sockettest.Connecting(t, ctx, l.Addr().String()))
	}
	last := len(cancels) - 1
	for i, cancel := range cancels[:last] {
		cancel()
		if d := sockettest.Receive(t, "the end of a waiter", results[i]); !errors.Is(d.Err, context.Canceled) {
			t.Errorf("ConnectContext whose context is canceled: got %v, want Canceled", d.Err)
		}
	}
	sockettest.Accept(t, l)
	if d := sockettest.Receive(t, "the last waiter", results[last]); d.Err != nil {
		t.Errorf("last waiting ConnectContext, once the backlog has room: got %v, want a connection", d.Err)
	}
	cancels[last]()
	sockettest.WaitGoroutines(t, goroutines)
}

// In the bubble the clock goes on only while all of its goroutines wait for each other or
// for the clock.
func TestConnectsInsideAndOutsideOfABubbleWaitForOnePath(t *testing.T) {
	l := sockettest.FullListener(t)
	outside := sockettest.Connecting(t, t.Context(), l.Addr().String())
	room := make(chan struct{})
	accepted := make(chan error, 3)
	go func() {
		<-room
		for range cap(accepted) {
			c, err := l.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		inside := make(chan error, 1)
		go func() {
			c, err := unixsock.Connect(l.Addr().String())
			if err == nil {
				c.Close()
			}
			inside <- err
		}()
		time.Sleep(time.Second)
		close(room)
		if err := <-inside; err != nil {
			t.Errorf("Connect in a bubble: got %v, want a connection", err)
		}
	})
	if d := sockettest.Receive(t, "the Connect outside of the bubble", outside); d.Err != nil {
		t.Errorf("Connect outside of the bubble: got %v, want a connection", d.Err)
	}
	for range cap(accepted) {
		if err := sockettest.Receive(t, "an accept", accepted); err != nil {
			t.Errorf("Accept: got %v, want a connection", err)
		}
	}
}

func TestWaitingConnectsForOnePathDoNotBlockAnother(t *testing.T) {
	full, other := sockettest.FullListener(t), sockettest.FullListener(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := sockettest.Connecting(t, ctx, full.Addr().String())
	waiting := sockettest.Connecting(t, t.Context(), other.Addr().String())
	sockettest.Accept(t, other)
	if d := sockettest.Receive(t, "ConnectContext to the backlog with room", waiting); d.Err != nil {
		t.Errorf("ConnectContext to a backlog with room, while another waits for a full one: got %v, want a connection", d.Err)
	} else {
		d.Conn.Close()
	}
	cancel()
	if d := sockettest.Receive(t, "ConnectContext to the full backlog", stuck); !errors.Is(d.Err, context.Canceled) {
		t.Errorf("ConnectContext to a full backlog, with a canceled context: got %v, want Canceled", d.Err)
	}
}

func TestContextHasNoHoldOnceConnected(t *testing.T) {
	for _, what := range []string{"at once", "after a wait"} {
		t.Run(what, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var c, s *unixsock.Conn
			if what == "at once" {
				l := sockettest.Listen(t)
				var err error
				if c, err = unixsock.ConnectContext(ctx, l.Addr().String()); err != nil {
					t.Fatalf("ConnectContext: got %v, want a connection", err)
				}
				t.Cleanup(func() { c.Close() })
				s = sockettest.Accept(t, l)
			} else {
				l := sockettest.FullListener(t)
				result := sockettest.Connecting(t, ctx, l.Addr().String())
				sockettest.Accept(t, l)
				d := sockettest.Receive(t, "ConnectContext once the backlog has room", result)
				if d.Err != nil {
					t.Fatalf("ConnectContext once the backlog has room: got %v, want a connection", d.Err)
				}
				c, s = d.Conn, sockettest.Accept(t, l)
			}
			cancel()
			time.Sleep(10 * time.Millisecond) // nothing must happen for this time
			go io.Copy(s, s)
			if _, err := c.Write([]byte("!")); err != nil {
				t.Fatalf("Write after the context of ConnectContext ended: got %v, want no error", err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatalf("ReadFull of the echo after the context of ConnectContext ended: got %v, want no error", err)
			}
		})
	}
}

func TestConnectLeavesNoGoroutine(t *testing.T) {
	l := sockettest.Listen(t, unixsock.Backlog(100))
	before := runtime.NumGoroutine()
	for range 50 {
		sockettest.Connect(t, l.Addr().String())
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("goroutines after 50 Connects: got %d, want at most %d", after, before)
	}
}

func TestCloseWakesWritesBehindACallbackOfRawConnWrite(t *testing.T) {
	c, _ := sockettest.Pair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	inside, release := make(chan bool), make(chan bool)
	go raw.Write(func(uintptr) bool { close(inside); <-release; return true })
	<-inside
	defer close(release)
	writes := make(chan error, 2)
	go func() {
		_, err := c.Write([]byte("x"))
		writes <- err
	}()
	go func() {
		_, err := c.WriteBuffers(&net.Buffers{[]byte("x")})
		writes <- err
	}()
	select {
	case err := <-writes:
		t.Fatalf("Write beside a callback of RawConn.Write: got a return with %v, want it to wait", err)
	case <-time.After(20 * time.Millisecond): // nothing must happen for this time
	}
	go c.Close() // it returns after the callback
	for range cap(writes) {
		err := sockettest.Receive(t, "a Write or WriteBuffers behind a callback of RawConn.Write, after Close", writes)
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write or WriteBuffers behind a callback of RawConn.Write, after Close: got %v, want net.ErrClosed", err)
		}
	}
}

func TestEveryDescriptorIsCloseOnExecAndNonBlocking(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := sockettest.Accept(t, l)
	for what, s := range map[string]syscall.Conn{"listening": l, "connected": client, "accepted": server} {
		raw, err := s.SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn of the %s socket: %v", what, err)
		}
		err = raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags of the %s socket: got %#x, %v; want FD_CLOEXEC", what, flags, err)
			}
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("file flags of the %s socket: got %#x, %v; want O_NONBLOCK", what, flags, err)
			}
		})
		if err != nil {
			t.Fatalf("RawConn.Control of the %s socket: %v", what, err)
		}
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
			results := call(args)
			if len(results) == 0 {
				continue
			}
			last := results[len(results)-1]
			if last.Type() == reflect.TypeFor[error]() && last.IsNil() {
				t.Errorf("%s of %#v: got no error, want one", name, v)
			}
		}
	}
}
