//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// leaveStale creates a socket file at path whose socket is closed.
func leaveStale(t testing.TB, path string) {
	t.Helper()
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatalf("Listen at %s: %v", path, err)
	}
	if err := l.Close(); err != nil {
		t.Fatalf("Close of the listener at %s: %v", path, err)
	}
}

func lstat(t testing.TB, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatalf("Lstat: %v", err)
	}
	return info
}

// wantInUse fails the test unless a Listen with ReplaceStale at path returns EADDRINUSE
// and leaves the file unchanged.
func wantInUse(t testing.TB, path string) {
	t.Helper()
	before := lstat(t, path)
	l, err := unixsock.Listen(path, unixsock.ReplaceStale())
	if err == nil {
		l.Close()
		t.Fatalf("Listen with ReplaceStale at %s, which is in use: got a listener, want EADDRINUSE", path)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen with ReplaceStale at %s, which is in use: got %v, want EADDRINUSE", path, err)
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "listen" {
		t.Errorf("Listen with ReplaceStale at %s, which is in use: got %#v, want a *net.OpError with Op listen", path, err)
	}
	after := lstat(t, path)
	if !os.SameFile(before, after) || before.Mode() != after.Mode() {
		t.Errorf("file after Listen with ReplaceStale at %s, which is in use: got %v, want the unchanged %v", path, after, before)
	}
}

func TestModeIsExactUnderEveryUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		t.Run(fmt.Sprintf("%03o", umask), func(t *testing.T) {
			t.Parallel() // each subtest runs in its own process
			if !sockettest.InChild(t, nil) {
				return
			}
			sockettest.CheckDescriptors(t)
			path := filepath.Join(sockettest.ShortDir(t), "s")
			syscall.Umask(umask)
			for _, perm := range []fs.FileMode{0, 0o200, 0o222, 0o600, 0o620, 0o640, 0o660, 0o666, 0o711, 0o777} {
				for _, stale := range []bool{false, true} {
					if stale {
						syscall.Umask(0) // every user may probe the stale file
						leaveStale(t, path)
						syscall.Umask(umask)
					}
					l, err := unixsock.Listen(path, unixsock.Mode(perm), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
					if err != nil {
						t.Fatalf("Listen with Mode(%#o), stale file %t: got %v, want a listener", perm, stale, err)
					}
					if got := lstat(t, path).Mode(); got != fs.ModeSocket|perm {
						t.Errorf("file after Listen with Mode(%#o), stale file %t: got mode %v, want %v", perm, stale, got, fs.ModeSocket|perm)
					}
					if err := l.Close(); err != nil {
						t.Fatalf("Close after Listen with Mode(%#o), stale file %t: got %v, want no error", perm, stale, err)
					}
				}
			}
			if got := syscall.Umask(umask); got != umask {
				t.Errorf("umask after Listen with Mode: got %#o, want the unchanged %#o", got, umask)
			}
		})
	}
}

func TestWithoutModeTheUmaskApplies(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	syscall.Umask(0o027)
	l := sockettest.Listen(t)
	if got := lstat(t, l.Addr().String()).Mode().Perm(); got != 0o750 {
		t.Errorf("file after Listen without Mode under umask 027: got mode %#o, want 0750", got)
	}
}

func TestModeLeavesOtherFilesUnchanged(t *testing.T) {
	const umask = 0o022
	if !sockettest.InChild(t, nil) {
		return
	}
	syscall.Umask(umask)
	dir := sockettest.ShortDir(t)
	stop, stopped := make(chan struct{}), make(chan error, 1)
	made := make(chan struct{})
	go func() {
		stopped <- func() error {
			for i := 0; ; i++ {
				name := filepath.Join(dir, "file")
				f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o777)
				if err != nil {
					return err
				}
				info, err := f.Stat()
				f.Close()
				if err != nil {
					return err
				}
				if info.Mode().Perm() != 0o755 {
					return fmt.Errorf("mode of file %d: got %#o, want 0755", i, info.Mode().Perm())
				}
				if err := os.Remove(name); err != nil {
					return err
				}
				if i == 0 {
					close(made)
				}
				select {
				case <-stop:
					return nil
				default:
				}
			}
		}()
	}()
	sockettest.Receive(t, "the first file", made)
	for i := range 300 {
		l, err := unixsock.Listen(filepath.Join(dir, "s"), unixsock.Mode([]fs.FileMode{0, 0o777}[i%2]), unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatalf("Listen %d: %v", i, err)
		}
		l.Close()
	}
	close(stop)
	if err := sockettest.Receive(t, "the goroutine that creates files", stopped); err != nil {
		t.Errorf("create files under umask 022 while another goroutine calls Listen with Mode: got %v, want no error", err)
	}
	if got := syscall.Umask(umask); got != umask {
		t.Errorf("umask after Listen with Mode: got %#o, want the unchanged %#o", got, umask)
	}
}

// modeRounds is the number of listeners that a watching process checks.
const modeRounds = 150

// TestModeIsRightBeforeAConnect lets another process connect as soon as a connect
// succeeds. The permission bits must be right at that moment.
func TestModeIsRightBeforeAConnect(t *testing.T) {
	for _, test := range []struct {
		umask int
		perm  fs.FileMode
	}{
		{0, 0o600}, {0o077, 0o666}, {0o077, 0o777},
	} {
		t.Run(fmt.Sprintf("%03o %03o", test.umask, test.perm), func(t *testing.T) {
			if !sockettest.InChild(t, nil) {
				return
			}
			syscall.Umask(test.umask)
			path := filepath.Join(sockettest.ShortDir(t), "s")
			watcher := sockettest.StartHelper(t, nil, "watch open", path, strconv.FormatUint(uint64(test.perm), 8))
			watcher.Expect("watching")
			for i := range modeRounds {
				l := sockettest.ListenAt(t, fmt.Sprint(path, i), unixsock.Mode(test.perm))
				sockettest.Accept(t, l).Close()
				l.Close()
			}
			watcher.Expect(fmt.Sprintf("%d connected", modeRounds))
		})
	}
}

// helpWatchOpen connects to each listener as soon as a connect succeeds, and then
// checks the permission bits of the listener's file.
func helpWatchOpen(args []string) error {
	perm, err := strconv.ParseUint(args[1], 8, 32)
	if err != nil {
		return err
	}
	fmt.Println("watching")
	for i := range modeRounds {
		path := fmt.Sprint(args[0], i)
		c, err := net.Dial("unix", path)
		for deadline := time.Now().Add(sockettest.Timeout); err != nil; c, err = net.Dial("unix", path) {
			if time.Now().After(deadline) {
				return err
			}
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.Mode().Perm() != fs.FileMode(perm) {
			return fmt.Errorf("mode of %s once a connect succeeds: got %#o, want %#o", path, info.Mode().Perm(), perm)
		}
		c.Close()
	}
	fmt.Println(modeRounds, "connected")
	return nil
}

// helpWatchMode watches the file of each listener, from before the listener creates it
// until it has the requested permission bits. For each file it prints the union of all
// bits that it saw, and whether it saw the file before it had the requested bits.
func helpWatchMode(args []string) error {
	perm, err := strconv.ParseUint(args[1], 8, 32)
	if err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for i := 0; in.Scan(); i++ {
		fmt.Println("watching")
		path := fmt.Sprint(args[0], i)
		seen, mode, early := fs.FileMode(0), fs.FileMode(0), -1
		for deadline := time.Now().Add(sockettest.Timeout); early < 0 || mode != fs.FileMode(perm); {
			var st unix.Stat_t
			switch err := unix.Lstat(path, &st); err {
			case nil:
				mode = fs.FileMode(st.Mode).Perm()
				seen |= mode
				early++
			case unix.ENOENT:
				if time.Now().After(deadline) {
					return fmt.Errorf("Lstat of %s: got no file within %v, want one", path, sockettest.Timeout)
				}
			default:
				return err
			}
		}
		fmt.Printf("%o %v\n", seen, early > 0)
	}
	return nil
}

func TestModeRefuses(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for _, perm := range []fs.FileMode{fs.ModeSetuid | 0o600, fs.ModeSticky, fs.ModeSocket | 0o600, fs.ModeDir, 0o1600, 0o10000} {
		l, err := unixsock.Listen(path, unixsock.Mode(perm))
		if err == nil {
			l.Close()
			t.Errorf("Listen with Mode(%v): got a listener, want an error", perm)
			continue
		}
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "listen" || !strings.Contains(err.Error(), "mode") {
			t.Errorf("Listen with Mode(%v): got %v, want a *net.OpError with Op listen about the mode", perm, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat after a failed Listen with Mode(%v): got %v, want ErrNotExist", perm, err)
		}
	}
}

func TestListenInUseWithoutReplaceStale(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	before := lstat(t, path)
	if _, err := unixsock.Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen at a stale file without ReplaceStale: got %v, want EADDRINUSE", err)
	}
	if !os.SameFile(before, lstat(t, path)) {
		t.Error("file after Listen without ReplaceStale: got another file, want the stale one")
	}
}

func TestReplaceStaleReplacesWhatACloseLeft(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
}

func TestReplaceStaleReplacesWhatAKillLeft(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	h := sockettest.StartHelper(t, nil, "listen", path)
	h.Expect("listening")
	wantInUse(t, path)
	h.Kill()
	sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
}

func helpListen(args []string) error {
	l, err := unixsock.Listen(args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("listening")
	sockettest.UntilEOF()
	return nil
}

func TestReplaceStaleSaysThatTheSocketIsOpen(t *testing.T) {
	l := sockettest.Listen(t)
	want := "a process has the socket open"
	if !sockettest.DistinguishesBoundFromDead(t) {
		want = "a server is listening on the socket"
	}
	if _, err := unixsock.Listen(l.Addr().String(), unixsock.ReplaceStale()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Listen with ReplaceStale at a live socket: got %v, want an error with %q", err, want)
	}
}

func TestReplaceStaleBindsAFreePath(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t, unixsock.ReplaceStale())
	sockettest.CheckExchange(t, l.Addr().String(), l)
}

func TestReplaceStaleLeavesALiveListener(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t)
	wantInUse(t, l.Addr().String())
	want := 0
	if !sockettest.DistinguishesBoundFromDead(t) {
		want = 1
	}
	got := 0
	for ; polled(t, l, l.Ready()); got++ {
		sockettest.Accept(t, l).Close()
	}
	if got != want {
		t.Errorf("listener after another Listen with ReplaceStale: got %d pending connections, want %d", got, want)
	}
	sockettest.CheckExchange(t, l.Addr().String(), l)
}

func TestReplaceStaleLeavesASocketThatDoesNotListenYet(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for name, kind := range map[string]int{
		"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET,
	} {
		t.Run(name, func(t *testing.T) {
			if kind == unix.SOCK_STREAM && !sockettest.DistinguishesBoundFromDead(t) {
				t.Skip("the kernel answers for a socket that does not listen yet as for a closed one")
			}
			path := filepath.Join(sockettest.ShortDir(t), "s")
			fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
			if err != nil {
				t.Skipf("socket(2): %v", err)
			}
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatalf("bind(2): %v", err)
			}
			wantInUse(t, path)
			// Nothing but the socket keeps the file: once the socket is closed, ReplaceStale
			// replaces the file.
			unix.Close(fd)
			if kind == unix.SOCK_SEQPACKET && !sockettest.RefusesDeadSeqpacket(t) {
				return // the kernel answers as if the socket were open
			}
			sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
		})
	}
}

func TestReplaceStaleLeavesADatagramSocketThatHasAPeer(t *testing.T) {
	dir := sockettest.ShortDir(t)
	path, other := filepath.Join(dir, "s"), filepath.Join(dir, "other")
	// A connected datagram socket accepts datagrams only from its peer.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatalf("socket(2): %v", err)
	}
	defer unix.Close(fd)
	otherFd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatalf("socket(2) for the peer: %v", err)
	}
	defer unix.Close(otherFd)
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrUnix{Name: path}),
		unix.Bind(otherFd, &unix.SockaddrUnix{Name: other}),
		unix.Connect(fd, &unix.SockaddrUnix{Name: other}),
	); err != nil {
		t.Fatalf("bind(2) and connect(2): %v", err)
	}
	wantInUse(t, path)
}

func TestReplaceStaleLeavesWhatIsNoSocket(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"empty":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(sockettest.ShortDir(t), "s")
			if err := make(path); err != nil {
				t.Fatalf("create the file: %v", err)
			}
			size := lstat(t, path).Size()
			wantInUse(t, path)
			if got := lstat(t, path).Size(); got != size {
				t.Errorf("size after Listen with ReplaceStale: got %d, want the unchanged %d", got, size)
			}
		})
	}
}

func TestReplaceStaleLeavesASymbolicLink(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for name, make := range map[string]func(target string) error{
		"dangling":      func(string) error { return nil },
		"to a file":     func(target string) error { return os.WriteFile(target, []byte("precious"), 0o600) },
		"to itself":     nil,
		"to a stale":    func(target string) error { leaveStale(t, target); return nil },
		"to a listener": func(target string) error { sockettest.ListenAt(t, target); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := sockettest.ShortDir(t)
			path, target := filepath.Join(dir, "s"), filepath.Join(dir, "target")
			if make == nil {
				target = path
			} else if err := make(target); err != nil {
				t.Fatalf("create the target: %v", err)
			}
			if err := os.Symlink(target, path); err != nil {
				t.Fatalf("Symlink: %v", err)
			}
			before, _ := os.Lstat(target)
			wantInUse(t, path)
			for option, o := range map[string]unixsock.ListenOption{
				"no option": nil, "Mode": unixsock.Mode(0o600), "Owner": unixsock.Owner(os.Getuid(), -1),
			} {
				if l, err := unixsock.Listen(path, o); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("Listen at a link with %s: got %v, %v, want EADDRINUSE", option, l, err)
				}
			}
			if got, err := os.Readlink(path); got != target {
				t.Errorf("Readlink after Listen with ReplaceStale: got %q, %v; want %q", got, err, target)
			}
			after, err := os.Lstat(target)
			if (before == nil) != (after == nil) || before != nil && !os.SameFile(before, after) {
				t.Errorf("Lstat of the target after Listen with ReplaceStale: got %v, %v; want the unchanged %v", after, err, before)
			}
		})
	}
}

func TestReplaceStaleHasOneWinnerAmongGoroutines(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	rounds := 20
	if testing.Short() || sockettest.Race {
		rounds = 8
	}
	for range rounds {
		leaveStale(t, path)
		const racers = 20
		start := make(chan struct{})
		type result struct {
			l   *unixsock.Listener
			err error
		}
		results := make(chan result, racers)
		for range racers {
			go func() {
				<-start
				l, err := unixsock.Listen(path, unixsock.ReplaceStale())
				results <- result{l, err}
			}()
		}
		close(start)
		var winner *unixsock.Listener
		for range racers {
			r := sockettest.Receive(t, "a racer", results)
			switch {
			case r.err == nil && winner != nil:
				r.l.Close()
				t.Errorf("%d goroutines call Listen at once with ReplaceStale: got a second listener, want one", racers)
			case r.err == nil:
				winner = r.l
				defer winner.Close()
			case !errors.Is(r.err, syscall.EADDRINUSE):
				t.Errorf("Listen at once with %d others and ReplaceStale: got %v, want a listener or EADDRINUSE", racers-1, r.err)
			}
		}
		if winner == nil {
			t.Fatalf("%d goroutines call Listen at once with ReplaceStale: got no listener, want one", racers)
		}
		sockettest.CheckExchange(t, path, winner)
		wantOnly(t, dir, "s")
		winner.Close()
		os.Remove(path)
	}
}

// wantOnly fails the test unless dir contains exactly the files named want, in sorted order.
func wantOnly(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("ReadDir: %v", err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("list of %s: got %q, want %q", dir, got, want)
	}
}

// helpRace takes part in races. Each line of its input is a path and the time at which
// to listen there, in nanoseconds since 1970. It prints whether it has won. The winner
// writes its process ID to each client until it reads the next line. It then closes its
// listener and leaves the file.
func helpRace([]string) error {
	fmt.Println("here")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		path, at, _ := strings.Cut(in.Text(), " ")
		ns, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return err
		}
		time.Sleep(time.Until(time.Unix(0, ns))) // all racers start at this time
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			fmt.Println("in use")
			in.Scan()
			continue
		case err != nil:
			return err
		}
		fmt.Println("won")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, os.Getpid())
				c.Close()
			}
		}()
		in.Scan()
		l.Close()
		fmt.Println("closed")
	}
	return nil
}

// askPid connects to path, where the winner of a race listens, and returns the process
// ID that the winner writes.
func askPid(t testing.TB, path string) int {
	t.Helper()
	c := sockettest.Connect(t, path)
	defer c.Close()
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("ReadAll of the winner's process ID: got %q, %v; want a number", answer, err)
	}
	pid, err := strconv.Atoi(string(answer))
	if err != nil {
		t.Fatalf("ReadAll of the winner's process ID: got %q, want a number", answer)
	}
	return pid
}

// raceTogether makes all racers listen at path at the same time.
func raceTogether(racers []*sockettest.Helper, path string) {
	at := time.Now().Add(3 * time.Millisecond).UnixNano()
	for _, r := range racers {
		r.Send(fmt.Sprint(path, " ", at))
	}
}

func TestReplaceStaleHasOneWinnerAmongProcesses(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	racers := make([]*sockettest.Helper, 20)
	for i := range racers {
		racers[i] = sockettest.StartHelper(t, nil, "race")
	}
	for _, r := range racers {
		r.Expect("here")
	}
	rounds := sockettest.Times(60)
	leaveStale(t, path)
	for range rounds {
		raceTogether(racers, path)
		var winner *sockettest.Helper
		for _, r := range racers {
			switch line := r.Next(); {
			case line == "won" && winner != nil:
				t.Fatalf("%d processes call Listen at once with ReplaceStale: got a second winner, want one", len(racers))
			case line == "won":
				winner = r
			case line != "in use":
				t.Fatalf("result of a racer: got %q, want %q or %q", line, "won", "in use")
			}
		}
		if winner == nil {
			t.Fatalf("%d processes call Listen at once with ReplaceStale: got no winner, want one", len(racers))
		}
		if pid := askPid(t, path); pid != winner.Cmd.Process.Pid {
			t.Errorf("connect to the winner: got process %d, want %d", pid, winner.Cmd.Process.Pid)
		}
		wantOnly(t, dir, "s")
		for _, r := range racers {
			r.Send("next")
		}
		winner.Expect("closed")
	}
	for _, r := range racers {
		r.Kill()
	}
}

func TestReplaceStaleSurvivesTheKillOfRacers(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	leaveStale(t, path)
	rounds := sockettest.Times(12)
	var racers []*sockettest.Helper
	for range rounds {
		living := len(racers)
		for len(racers) < 10 {
			racers = append(racers, sockettest.StartHelper(t, nil, "race"))
		}
		for _, r := range racers[living:] {
			r.Expect("here")
		}
		raceTogether(racers, path)
		for range 5 {
			time.Sleep(rand.N(2 * time.Millisecond)) // the kill comes at a random point of the race
			racers[0].Kill()
			racers = racers[1:]
		}
		var winner *sockettest.Helper
		for _, r := range racers {
			switch line := r.Next(); {
			case line == "won" && winner != nil:
				t.Fatalf("processes call Listen at once with ReplaceStale and 5 are killed: got a second winner among the %d that live, want at most one", len(racers))
			case line == "won":
				winner = r
			case line != "in use":
				t.Fatalf("result of a racer: got %q, want %q or %q", line, "won", "in use")
			}
		}
		if winner != nil {
			if pid := askPid(t, path); pid != winner.Cmd.Process.Pid {
				t.Errorf("connect to the winner: got process %d, want %d", pid, winner.Cmd.Process.Pid)
			}
			wantInUse(t, path)
		} else {
			// The living racers found the path in use because of a racer that was killed.
			l := sockettest.ListenAt(t, path, unixsock.ReplaceStale())
			sockettest.CheckExchange(t, path, l)
			l.Close()
		}
		wantOnly(t, dir, "s")
		for _, r := range racers {
			r.Send("next")
		}
		if winner != nil {
			winner.Expect("closed")
		}
	}
	for _, r := range racers {
		r.Kill()
	}
}

// stopwatch returns a function that fails the test if the operation what took longer than
// a bounded wait for a lock may take. The limit allows for a busy machine.
func stopwatch(t testing.TB, what string) (stop func()) {
	const limit = 10 * time.Second
	start := time.Now()
	return func() {
		t.Helper()
		if took := time.Since(start); took > limit {
			t.Errorf("%s: took %v, want at most %v", what, took, limit)
		}
	}
}

// helpHoldLock locks a directory until the end of its input.
func helpHoldLock(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("held by", os.Getuid())
	sockettest.UntilEOF()
	return nil
}

func TestAForeignLockDoesNotStopListen(t *testing.T) {
	if runtime.GOOS == "linux" && os.Getuid() == 0 {
		t.Skip("TestALockOfAnotherUserDoesNotStopListen tests this with the lock of another user")
	}
	sockettest.CheckDescriptors(t)
	mustListenAgainstALock(t, sockettest.ShortDir(t), nil, os.Getuid())
}

// mustListenAgainstALock replaces a stale file in dir, and removes the new one with
// UnlinkOnClose, while a helper process holds the lock of dir. setup, which may be nil,
// makes the helper run as user uid.
func mustListenAgainstALock(t *testing.T, dir string, setup func(*exec.Cmd), uid int) {
	t.Helper()
	path := filepath.Join(dir, "s")
	leaveStale(t, path)
	holder := sockettest.StartHelper(t, setup, "hold lock", dir)
	holder.Expect(fmt.Sprint("held by ", uid))

	stop := stopwatch(t, "Listen while another process holds the lock")
	l := sockettest.ListenAt(t, path, unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	stop()
	sockettest.CheckExchange(t, path, l)
	stop = stopwatch(t, "Close while another process holds the lock")
	if err := l.Close(); err != nil {
		t.Errorf("Close while another process holds the lock: got %v, want no error", err)
	}
	stop()
	wantOnly(t, dir)
}

func TestReplaceStaleWithoutDescriptorsIsEMFILE(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	free := sockettest.ExhaustDescriptors(t)
	defer free()
	// The highest descriptor is 63. Listen needs one descriptor for its socket, a second
	// for the lock, and a third for the socket that probes the file.
	for available := range 3 {
		if available > 0 {
			unix.Close(64 - available)
		}
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		if err == nil {
			l.Close()
		}
		if !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Listen with ReplaceStale and %d free descriptors: got %v, want EMFILE", available, err)
		}
	}
}

func TestUnlinkOnCloseRemovesTheFile(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	sockettest.CheckExchange(t, l.Addr().String(), l)
	if err := l.Close(); err != nil {
		t.Errorf("Close with UnlinkOnClose: got %v, want no error", err)
	}
	wantOnly(t, filepath.Dir(l.Addr().String()))
}

func TestCloseLeavesTheFileWithoutUnlinkOnClose(t *testing.T) {
	l := sockettest.Listen(t, unixsock.ReplaceStale(), unixsock.Mode(0o600))
	before := lstat(t, l.Addr().String())
	if err := l.Close(); err != nil {
		t.Errorf("Close without UnlinkOnClose: got %v, want no error", err)
	}
	if !os.SameFile(before, lstat(t, l.Addr().String())) {
		t.Error("file after Close without UnlinkOnClose: got another file, want that of the listener")
	}
}

func TestUnlinkOnCloseIsOfCloseOnToo(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	ctx, cancel := context.WithCancel(t.Context())
	l.CloseOn(ctx)
	cancel()
	sockettest.WaitFor(t, "the file still exists after the context of CloseOn ended", func() bool {
		_, err := os.Lstat(l.Addr().String())
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestUnlinkOnCloseLeavesTheFileOfAnother(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	// The test repeats because some file systems soon reuse an inode number.
	for range 50 {
		first := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		if err := os.Remove(path); err != nil {
			t.Fatalf("Remove: %v", err)
		}
		second := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		if err := first.Close(); err != nil {
			t.Errorf("Close of a listener whose path has the file of another: got %v, want no error", err)
		}
		sockettest.CheckExchange(t, path, second)
		if err := second.Close(); err != nil {
			t.Errorf("Close of the second listener: got %v, want no error", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("Lstat after Close of the second listener: got %v, want ErrNotExist", err)
		}
	}
}

func TestUnlinkOnCloseLeavesWhatIsNoSocket(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink(path+"2", path) },
	} {
		t.Run(name, func(t *testing.T) {
			l := sockettest.Listen(t, unixsock.UnlinkOnClose())
			// The link points to the listener's own file.
			if err := errors.Join(os.Rename(l.Addr().String(), l.Addr().String()+"2"), make(l.Addr().String())); err != nil {
				t.Fatalf("rename the socket file and create another file: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Errorf("Close of a listener whose path is not a socket: got %v, want no error", err)
			}
			wantOnly(t, filepath.Dir(l.Addr().String()), "s", "s2")
		})
	}
}

func TestUnlinkOnCloseWithoutAFileIsNoError(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	if err := os.RemoveAll(filepath.Dir(l.Addr().String())); err != nil {
		t.Fatalf("RemoveAll: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close after the file and its directory were removed: got %v, want no error", err)
	}
}

func TestUnlinkOnCloseOfAFileThatGoesMeanwhileIsNoError(t *testing.T) {
	rounds := 3000
	if testing.Short() || sockettest.Race {
		rounds = 300
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range rounds {
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		removed := make(chan struct{})
		go func() { os.Remove(path); close(removed) }()
		if err := l.Close(); err != nil {
			t.Fatalf("Close while another goroutine removes the file: got %v, want no error", err)
		}
		<-removed
	}
}

func TestUnlinkOnCloseIsDoneWhenASecondCloseReturns(t *testing.T) {
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	// The first Close waits for the lock of the directory, which the test holds.
	dir, err := os.Open(filepath.Dir(l.Addr().String()))
	if err != nil {
		t.Fatalf("Open of the directory: %v", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("flock(2) of the directory: %v", err)
	}
	go l.Close()
	sockettest.WaitClosing(t, l)
	second := make(chan error, 1)
	go func() { second <- l.Close() }()
	select {
	case err := <-second:
		t.Errorf("second Close while the first waits for the lock: got %v, want it to wait", err)
	case <-time.After(20 * time.Millisecond): // it must not return for a while
	}
	dir.Close()
	if err := sockettest.Receive(t, "the second Close", second); err != nil {
		t.Errorf("second Close while the first waits for the lock: got %v, want nil", err)
	}
	wantOnly(t, filepath.Dir(l.Addr().String()))
}

func TestUnlinkOnCloseIsDoneOnce(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
	l.Close()
	next := sockettest.ListenAt(t, path)
	if err := l.Close(); err != nil {
		t.Errorf("second Close with UnlinkOnClose: got %v, want no error", err)
	}
	sockettest.CheckExchange(t, path, next)
}

func TestAFailedListenLeavesNoFile(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	if l, err := unixsock.Listen(filepath.Join(dir, "s"), unixsock.Backlog(-1), unixsock.Mode(0o600), unixsock.ReplaceStale()); err == nil {
		l.Close()
		t.Fatal("Listen with Backlog(-1): got a listener, want an error")
	}
	wantOnly(t, dir)
}

func TestProductionOptionsWorkThroughTCPUnit(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	leaveStale(t, path)
	unit := unixsock.NewTCPUnit(path, unixsock.Mode(0o604), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	l, err := unit.Listen("tcp", "localhost:80")
	if err != nil {
		t.Fatalf("TCPUnit.Listen with ReplaceStale at a stale file: got %v, want a listener", err)
	}
	if got, want := lstat(t, path).Mode(), fs.ModeSocket|0o604; got != want {
		t.Errorf("file after TCPUnit.Listen with Mode(0604): got mode %v, want %v", got, want)
	}
	if _, err := unit.Listen("tcp", "localhost:80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second TCPUnit.Listen: got %v, want EADDRINUSE", err)
	}
	c, err := unit.Dial("tcp", "localhost:80")
	if err != nil {
		t.Fatalf("TCPUnit.Dial: got %v, want a connection", err)
	}
	c.Close()
	if err := l.Close(); err != nil {
		t.Errorf("Close with UnlinkOnClose: got %v, want no error", err)
	}
	wantOnly(t, dir)
}

// helpWatchOwner tries to connect to a path until a connect succeeds or it reads a line.
// It prints whether it connected.
func helpWatchOwner(args []string) error {
	stop := make(chan struct{})
	fmt.Println("watching")
	go func() {
		var line string
		fmt.Scanln(&line)
		close(stop)
	}()
	for denied := false; ; {
		select {
		case <-stop:
			if !denied {
				return errors.New("no connect was denied by the permissions")
			}
			fmt.Println("never connected")
			return nil
		default:
		}
		c, err := unixsock.Connect(args[0])
		switch {
		case err == nil:
			c.Close()
			fmt.Println("connected")
			return nil
		case errors.Is(err, fs.ErrPermission):
			denied = true
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
			return err
		}
	}
}

// helpListenAsOwner calls Listen with root as the owner, and prints the error and whether
// it is ErrPermission.
func helpListenAsOwner(args []string) error {
	_, err := unixsock.Listen(args[0], unixsock.Owner(0, -1))
	fmt.Printf("permission: %v, %v\n", errors.Is(err, fs.ErrPermission), err)
	return nil
}

// helpStartAndStop starts and stops a server until it is killed. It prints a line after
// the first time.
func helpStartAndStop(args []string) error {
	for i := 0; ; i++ {
		l, err := unixsock.Listen(args[0], unixsock.Mode(0o660), unixsock.Owner(-1, os.Getgid()), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
		if err != nil {
			return err
		}
		l.Close()
		if i == 0 {
			fmt.Println("started")
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

// keepsAdoptedFiles reports whether this runs in an emulator of another processor: it does not
// report which file a socket is bound to, so the file of an adopted listener stays.
func keepsAdoptedFiles() bool { return os.Getenv("UNIXSOCK_TEST_EMULATOR") != "" }

func TestSetUnlinkOnCloseDecidesAtClose(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		for _, unlink := range []bool{false, true} {
			if adopted && unlink && keepsAdoptedFiles() {
				continue
			}
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
	if sockettest.IsSocketFile(path) && !keepsAdoptedFiles() {
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
