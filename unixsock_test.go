//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come. It ends tests that
// hang, and is no measure of speed.
const patience = 30 * time.Second

// shortDir returns a directory that is removed with the test. Its path is short
// enough for the names of sockets in it, which that of t.TempDir may not be.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mustListen listens on a new path. The listener is closed with the test.
func mustListen(t testing.TB, opts ...ListenOption) *Listener {
	t.Helper()
	return mustListenAt(t, filepath.Join(shortDir(t), "s"), opts...)
}

// mustListenAt listens on path. The listener is closed with the test.
func mustListenAt(t testing.TB, path string, opts ...ListenOption) *Listener {
	t.Helper()
	l, err := Listen(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// mustConnect connects to path. The connection is closed with the test.
func mustConnect(t testing.TB, path string) *Conn {
	t.Helper()
	c, err := Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustAccept accepts from l. The connection is closed with the test.
func mustAccept(t testing.TB, l *Listener) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := l.AcceptContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustPair returns the two ends of a connection made by Connect and Accept.
func mustPair(t testing.TB) (client, server *Conn) {
	t.Helper()
	l := mustListen(t)
	client = mustConnect(t, l.Addr().String())
	server = mustAccept(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// countDescriptors returns how many descriptors this process has open.
func countDescriptors(t testing.TB) int {
	t.Helper()
	for _, dir := range []string{"/proc/self/fd", "/dev/fd"} {
		if entries, err := os.ReadDir(dir); err == nil {
			return len(entries)
		}
	}
	t.Skip("no list of this process's descriptors")
	return 0
}

// waitFor waits until done returns true. It is for what no event tells of.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// waitGoroutines waits until at most n goroutines are left.
func waitGoroutines(t testing.TB, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > n {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			t.Fatalf("%d goroutines are left, want %d:\n%s", runtime.NumGoroutine(), n, stacks)
		}
		time.Sleep(time.Millisecond)
	}
}

// waitDescriptors waits until at most n descriptors are open.
func waitDescriptors(t testing.TB, n int) {
	t.Helper()
	waitFor(t, "descriptors are left open", func() bool { return countDescriptors(t) <= n })
}

// receive returns what comes out of ch, and fails the test if nothing does.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		t.Fatalf("waited %v in vain: %s", patience, what)
		panic("not reached")
	}
}

const childVar = "UNIXSOCK_TEST_CHILD"

// inChild runs the calling test in a process of its own, for what a test must
// not do to this one. It returns true there, and false in the parent once the
// child has passed. setup, which may be nil, prepares the child.
func inChild(t *testing.T, setup func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(childVar) == t.Name() {
		return true
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v", "-test.timeout=1m")
	childEnv(cmd, childVar+"="+t.Name())
	if setup != nil {
		setup(cmd)
	}
	emulate(cmd)
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("in a child process: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP: "+t.Name()):
		t.Skipf("in a child process:\n%s", out)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatalf("the child process ran no test:\n%s", out)
	}
	return false
}

// childEnv gives a child that is this binary its environment. A child of the
// race detector would linger for a second at its end.
func childEnv(cmd *exec.Cmd, vars ...string) {
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Env = append(cmd.Env, vars...)
}

// emulate has a child that is this binary run by the program that
// UNIXSOCK_TEST_EMULATOR names, if it does: an emulator of another processor
// does not see to the processes that a program starts.
func emulate(cmd *exec.Cmd) {
	name := os.Getenv("UNIXSOCK_TEST_EMULATOR")
	if name == "" {
		return
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return
	}
	cmd.Args = append([]string{path, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = path
}

// waits reports whether a connection waits at l to be accepted.
func waits(t testing.TB, l *Listener) (yes bool) {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { yes = readable(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return yes
}

// goroutinesIn returns how many goroutines are in a state, as stack traces name
// it: "IO wait" is that of those who wait in the poller.
func goroutinesIn(state string) int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), " ["+state)
}

// waitInPoller waits until n goroutines wait in the poller.
func waitInPoller(t testing.TB, n int) {
	t.Helper()
	waitFor(t, "no goroutine waits in the poller", func() bool { return goroutinesIn("IO wait") >= n })
}

// exhaustDescriptors leaves this process, which should be a child, no descriptor
// to open, until free is called.
func exhaustDescriptors(t testing.TB) (free func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for {
		fd, err := unix.Dup(0)
		if err == unix.EMFILE {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}

// skipUnlessBacklogsWait skips where a full backlog is ECONNREFUSED.
func skipUnlessBacklogsWait(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" && runtime.GOOS != "android" {
		t.Skip("no telling a full backlog from nobody listening on " + runtime.GOOS)
	}
}

// fullListener returns a listener with no room in its backlog.
func fullListener(t testing.TB) *Listener {
	t.Helper()
	skipUnlessBacklogsWait(t)
	l := mustListen(t, Backlog(0))
	mustConnect(t, l.Addr().String())
	return l
}

// A dialed is what a Connect returned.
type dialed struct {
	conn *Conn
	err  error
}

// connecting starts a ConnectContext to l, which is full, and returns once it
// waits. The connection is closed with the test.
func connecting(t testing.TB, ctx context.Context, path string) <-chan dialed {
	t.Helper()
	before := retrying.Load()
	result := make(chan dialed, 1)
	go func() {
		c, err := ConnectContext(ctx, path)
		if c != nil {
			t.Cleanup(func() { c.Close() })
		}
		result <- dialed{c, err}
	}()
	waitFor(t, "no Connect waits", func() bool { return retrying.Load() > before })
	return result
}

func TestConnectReachesTheListener(t *testing.T) {
	client, server := mustPair(t)
	for _, c := range [][2]*Conn{{client, server}, {server, client}} {
		if n, err := c[0].Write([]byte("hello")); n != 5 || err != nil {
			t.Fatalf("wrote %d, %v", n, err)
		}
		b := make([]byte, 10)
		if n, err := c[1].Read(b); string(b[:n]) != "hello" || err != nil {
			t.Fatalf("read %q, %v", b[:n], err)
		}
	}
}

func TestConnectSaysWhyNot(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	if err := os.WriteFile("file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mustListenAt(t, "dead").Close()
	if err := os.Symlink("loop", "loop"); err != nil {
		t.Fatal(err)
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
		c, err := Connect(path)
		if c != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", path, c, err, want)
		}
		var opErr *net.OpError
		if !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Net != "unix" {
			t.Errorf("%s: %#v, want a net.OpError of dial and unix", path, err)
			continue
		}
		if addr, ok := opErr.Addr.(*net.UnixAddr); !ok || addr.Name != dir+"/"+path || addr.Net != "unix" {
			t.Errorf("%s: an error about %#v", path, opErr.Addr)
		}
	}
}

func TestConnectWithoutPermissionIsErrPermission(t *testing.T) {
	const pathVar = "UNIXSOCK_TEST_PATH"
	path := os.Getenv(pathVar)
	if os.Getenv(childVar) == "" {
		l := mustListen(t)
		path = l.Addr().String()
		for name, mode := range map[string]fs.FileMode{filepath.Dir(path): 0o755, path: 0} {
			if err := os.Chmod(name, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !inChild(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, pathVar+"="+path) }) {
		return
	}
	if os.Getuid() == 0 {
		// In here, for the test's own program may be in a directory of root's.
		if err := syscall.Setuid(65534); err != nil {
			t.Skip(err)
		}
	}
	if _, err := Connect(path); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want ErrPermission", err)
	}
}

func TestConnectThatFailsLeavesNoDescriptor(t *testing.T) {
	l := mustListen(t)
	l.Close()
	dead := l.Addr().String()
	full := fullListener(t).Addr().String()
	before := countDescriptors(t)
	for range 20 {
		if _, err := Connect(dead); err == nil {
			t.Fatal("connected to nobody")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := ConnectContext(ctx, full); err == nil {
			t.Fatal("connected where there is no room")
		}
		cancel()
	}
	if after := countDescriptors(t); after > before {
		t.Errorf("%d descriptors, there were %d", after, before)
	}
}

func TestConnectReportsWantOfDescriptors(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	l := mustListen(t)
	free := exhaustDescriptors(t)
	if _, err := Connect(l.Addr().String()); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Connect: %v, want EMFILE", err)
	}
	path := l.Addr().String() + "2"
	if _, err := Listen(path); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Listen: %v, want EMFILE", err)
	}
	if isSocketFile(path) {
		t.Error("a Listen that failed left a file")
	}
	free()
	exchange(t, l.Addr().String(), l)
}

func TestConnectWaitsWhileTheBacklogIsFull(t *testing.T) {
	l := fullListener(t)
	result := connecting(t, t.Context(), l.Addr().String())
	select {
	case d := <-result:
		t.Fatalf("came back before there was room: %v", d.err)
	case <-time.After(50 * time.Millisecond):
	}
	mustAccept(t, l)
	if d := receive(t, "the Connect that there is room for", result); d.err != nil {
		t.Fatal(d.err)
	}
	mustAccept(t, l)
}

func TestThousandConnectsAgainstABacklogOf4AreServed(t *testing.T) {
	skipUnlessBacklogsWait(t)
	const clients = 1000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < 2*clients+100 {
		t.Skipf("%d descriptors are too few", limit.Cur)
	}
	l := mustListen(t, Backlog(4))
	before := countDescriptors(t)
	start := make(chan struct{})
	errs := make(chan error, clients)
	for i := range clients {
		go func() {
			<-start
			c, err := Connect(l.Addr().String())
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
		s := mustAccept(t, l)
		var id [2]byte
		if _, err := io.ReadFull(s, id[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		s.Close()
		seen[id] = true
	}
	for range clients {
		if err := receive(t, "a client", errs); err != nil {
			t.Error(err)
		}
	}
	if len(seen) != clients {
		t.Errorf("%d clients were served, want %d", len(seen), clients)
	}
	waitDescriptors(t, before)
}

func TestConnectThatWaitsEndsWithItsContext(t *testing.T) {
	l := fullListener(t)
	before := countDescriptors(t)
	cancelled, cancel := context.WithCancel(t.Context())
	defer cancel()
	timed, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	for ctx, want := range map[context.Context]error{cancelled: context.Canceled, timed: context.DeadlineExceeded} {
		result := connecting(t, ctx, l.Addr().String())
		if want == context.Canceled {
			cancel()
		}
		d := receive(t, "a Connect whose context is done", result)
		if d.conn != nil || !errors.Is(d.err, want) {
			t.Errorf("got %v, %v; want %v", d.conn, d.err, want)
		}
		var opErr *net.OpError
		if !errors.As(d.err, &opErr) || opErr.Op != "dial" || opErr.Addr.String() != l.Addr().String() {
			t.Errorf("got %#v, want a net.OpError of dial", d.err)
		}
		if timeout := opErr.Timeout(); timeout != (want == context.DeadlineExceeded) {
			t.Errorf("%v: Timeout() is %v", want, timeout)
		}
	}
	if after := countDescriptors(t); after != before {
		t.Errorf("%d descriptors, there were %d", after, before)
	}
	mustAccept(t, l)
	if waits(t, l) {
		t.Error("a Connect that ended with its context connected")
	}
}

func TestConnectWithAContextThatIsDoneDoesNotConnect(t *testing.T) {
	l := mustListen(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := ConnectContext(ctx, l.Addr().String()); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v; want context.Canceled", c, err)
	}
	if waits(t, l) {
		t.Error("it connected")
	}
}

func TestConnectThatWaitsHearsThatTheListenerIsGone(t *testing.T) {
	l := fullListener(t)
	result := connecting(t, t.Context(), l.Addr().String())
	l.Close()
	if d := receive(t, "a Connect to nobody", result); !errors.Is(d.err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want ECONNREFUSED", d.err)
	}
}

func TestConnectThatWaitsKeepsToItsDirectory(t *testing.T) {
	skipUnlessBacklogsWait(t)
	t.Chdir(realDir(t))
	l := mustListenAt(t, "s", Backlog(0))
	mustConnect(t, "s")
	result := connecting(t, t.Context(), "s")

	t.Chdir(realDir(t))
	decoy := mustListenAt(t, "s")
	mustAccept(t, l)
	if d := receive(t, "the Connect", result); d.err != nil {
		t.Fatal(d.err)
	}
	if waits(t, decoy) {
		t.Error("it went where the process is now")
	}
}

func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestConnectsThatWaitBurnNoProcessorAndHoldNoThread(t *testing.T) {
	for what, n := range map[string]int{"one": 1, "many": 500} {
		t.Run(what, func(t *testing.T) {
			l := fullListener(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			threads := pprof.Lookup("threadcreate").Count()
			var wg sync.WaitGroup
			before := retrying.Load()
			for range n {
				wg.Go(func() {
					if _, err := ConnectContext(ctx, l.Addr().String()); !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				})
			}
			waitFor(t, "they wait", func() bool { return retrying.Load() >= before+int64(n) })

			start, used := time.Now(), processorTime(t)
			time.Sleep(500 * time.Millisecond)
			share := float64(processorTime(t)-used) / float64(time.Since(start))
			t.Logf("%d waiting took %.1f %% of a processor", n, 100*share)
			if share > 0.5 {
				t.Errorf("%d waiting took %.1f %% of a processor", n, 100*share)
			}
			if more := pprof.Lookup("threadcreate").Count() - threads; more > 20 {
				t.Errorf("%d waiting made %d threads", n, more)
			}
			cancel()
			wg.Wait()
		})
	}
}

func TestContextHasNoHoldOnceConnected(t *testing.T) {
	for _, what := range []string{"at once", "after a wait"} {
		t.Run(what, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var c, s *Conn
			if what == "at once" {
				l := mustListen(t)
				var err error
				if c, err = ConnectContext(ctx, l.Addr().String()); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				s = mustAccept(t, l)
			} else {
				l := fullListener(t)
				result := connecting(t, ctx, l.Addr().String())
				mustAccept(t, l)
				d := receive(t, "the Connect", result)
				if d.err != nil {
					t.Fatal(d.err)
				}
				c, s = d.conn, mustAccept(t, l)
			}
			cancel()
			time.Sleep(10 * time.Millisecond) // for what would come to come
			go io.Copy(s, s)
			if _, err := c.Write([]byte("!")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestConnectLeavesNoGoroutine(t *testing.T) {
	l := mustListen(t, Backlog(100))
	before := runtime.NumGoroutine()
	for range 50 {
		mustConnect(t, l.Addr().String())
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, there were %d", after, before)
	}
}

func TestEveryDescriptorIsCloseOnExecAndNonBlocking(t *testing.T) {
	l := mustListen(t)
	client := mustConnect(t, l.Addr().String())
	server := mustAccept(t, l)
	for what, s := range map[string]syscall.Conn{"listener": l, "connected": client, "accepted": server} {
		raw, err := s.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: descriptor flags %#x, %v; want close-on-exec", what, flags, err)
			}
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("%s: file flags %#x, %v; want non-blocking", what, flags, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
