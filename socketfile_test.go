//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
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
	sockettest.Check(t, sockettest.ListenAt(t, path).Close())
}

func lstat(t testing.TB, path string) fs.FileInfo {
	t.Helper()
	return sockettest.Got(os.Lstat(path)).Must(t)
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
	var op *net.OpError
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.As(err, &op) || op.Op != "listen" {
		t.Errorf("Listen with ReplaceStale at %s: got %#v, want an OpError with Op listen and EADDRINUSE", path, err)
	}
	after := lstat(t, path)
	if !os.SameFile(before, after) || before.Mode() != after.Mode() || before.Size() != after.Size() {
		t.Errorf("file after Listen with ReplaceStale at %s: got %v, want the unchanged %v", path, after, before)
	}
}

// wantOnly fails the test unless dir contains exactly the files named want, in sorted order.
func wantOnly(t testing.TB, dir string, want ...string) {
	t.Helper()
	var got []string
	for _, e := range sockettest.Got(os.ReadDir(dir)).Must(t) {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("files in %s: got %q, want %q", dir, got, want)
	}
}

// TestModeIsExactUnderEveryUmask listens with and without Mode while a goroutine creates
// other files, which a change of the umask would affect.
func TestModeIsExactUnderEveryUmask(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	for _, umask := range []int{0, 0o022, 0o027, 0o077, 0o777} {
		syscall.Umask(umask)
		left := 0o777 &^ fs.FileMode(umask)
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() { stopped <- createFiles(filepath.Join(dir, "file"), left, stop) }()
		perms := []fs.FileMode{0, 0o200, 0o222, 0o600, 0o620, 0o640, 0o660, 0o666, 0o711, 0o777, left}
		for i, perm := range perms {
			for range 4 {
				if i%2 == 0 {
					leaveStale(t, path)
					sockettest.Check(t, os.Chmod(path, 0o777)) // every user may probe the stale file
				}
				opts := []unixsock.ListenOption{unixsock.Mode(perm), unixsock.ReplaceStale(), unixsock.UnlinkOnClose()}
				if i == len(perms)-1 {
					opts[0] = nil // without Mode, the umask decides
				}
				l := sockettest.ListenAt(t, path, opts...)
				if got := lstat(t, path).Mode(); got != fs.ModeSocket|perm {
					t.Errorf("Listen with Mode(%#o) under umask %#o: got a file with %v, want %v", perm, umask, got, fs.ModeSocket|perm)
				}
				sockettest.Check(t, l.Close())
			}
		}
		close(stop)
		sockettest.Check(t, sockettest.Receive(t, "the goroutine that creates files", stopped))
		if got := syscall.Umask(umask); got != umask {
			t.Errorf("umask after Listen with Mode: got %#o, want the unchanged %#o", got, umask)
		}
	}
}

// createFiles creates and removes a directory until stop is closed. It returns an error
// unless the umask leaves perm.
func createFiles(name string, perm fs.FileMode, stop <-chan struct{}) error {
	for {
		made := os.Mkdir(name, 0o777)
		info, err := os.Lstat(name)
		if err := errors.Join(made, err, os.Remove(name)); err != nil {
			return err
		}
		if got := info.Mode().Perm(); got != perm {
			return fmt.Errorf("directory created during Listen: got mode %#o, want %#o", got, perm)
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

func TestAFailedListenLeavesNothing(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	for want, o := range map[string]unixsock.ListenOption{
		"mode": unixsock.Mode(fs.ModeSticky | 0o600), "owner": unixsock.Owner(-2, 0), "backlog": unixsock.Backlog(-1),
	} {
		l, err := unixsock.Listen(filepath.Join(dir, "s"), unixsock.ReplaceStale(), o)
		var op *net.OpError
		if l != nil || !errors.As(err, &op) || op.Op != "listen" || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen with a wrong %s: got %v, %v, want an OpError with Op listen about it", want, l, err)
		}
		wantOnly(t, dir)
	}
}

// bind returns a socket of the given type that is bound to path.
func bind(t *testing.T, socketType int, path string) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, socketType, 0)
	if err != nil {
		t.Skipf("socket(2): %v", err)
	}
	sockettest.Check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	return fd
}

// keepBound is bind until the end of the test.
func keepBound(t *testing.T, socketType int, path string) (fd int) {
	t.Helper()
	fd = bind(t, socketType, path)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// staleFiles make a file at path that ReplaceStale replaces.
var staleFiles = map[string]func(t *testing.T, path string){
	"closed":   func(t *testing.T, path string) { leaveStale(t, path) },
	"bound":    func(t *testing.T, path string) { unix.Close(bind(t, unix.SOCK_STREAM, path)) },
	"datagram": func(t *testing.T, path string) { unix.Close(bind(t, unix.SOCK_DGRAM, path)) },
	"killed": func(t *testing.T, path string) {
		h := sockettest.StartHelper(t, nil, "serve", path)
		h.Expect("serving")
		wantInUse(t, path)
		h.Kill()
	},
	"seqpacket": func(t *testing.T, path string) {
		if !sockettest.RefusesDeadSeqpacket(t) {
			t.Skip("the kernel answers as if the socket were open")
		}
		unix.Close(bind(t, unix.SOCK_SEQPACKET, path))
	},
}

// filesInUse make a file at path that ReplaceStale leaves. They may make another at path+"2".
var filesInUse = map[string]func(t *testing.T, path string){
	"full backlog": func(t *testing.T, path string) {
		sockettest.ListenAt(t, path, unixsock.Backlog(0))
		for fd, err := sockettest.TryConnect(path); err == nil; fd, err = sockettest.TryConnect(path) {
			t.Cleanup(func() { unix.Close(fd) })
		}
	},
	"stream that does not listen": func(t *testing.T, path string) {
		if !sockettest.DistinguishesBoundFromDead(t) {
			t.Skip("the kernel answers for a socket that does not listen yet as for a closed one")
		}
		keepBound(t, unix.SOCK_STREAM, path)
	},
	"datagram": func(t *testing.T, path string) { keepBound(t, unix.SOCK_DGRAM, path) },
	"datagram that accepts only from its peer": func(t *testing.T, path string) {
		keepBound(t, unix.SOCK_DGRAM, path+"2")
		sockettest.Check(t, unix.Connect(keepBound(t, unix.SOCK_DGRAM, path), &unix.SockaddrUnix{Name: path + "2"}))
	},
	"seqpacket": func(t *testing.T, path string) { keepBound(t, unix.SOCK_SEQPACKET, path) },
	"seqpacket listener": func(t *testing.T, path string) {
		sockettest.Check(t, unix.Listen(keepBound(t, unix.SOCK_SEQPACKET, path), 4))
	},
	"file":               func(t *testing.T, path string) { sockettest.Check(t, os.WriteFile(path, []byte("precious"), 0o600)) },
	"empty file":         func(t *testing.T, path string) { sockettest.Check(t, os.WriteFile(path, nil, 0o600)) },
	"directory":          func(t *testing.T, path string) { sockettest.Check(t, os.Mkdir(path, 0o700)) },
	"fifo":               func(t *testing.T, path string) { sockettest.Check(t, unix.Mkfifo(path, 0o600)) },
	"link to itself":     func(t *testing.T, path string) { link(t, path, path) },
	"dangling link":      func(t *testing.T, path string) { link(t, path+"2", path) },
	"link to a stale":    func(t *testing.T, path string) { leaveStale(t, path+"2"); link(t, path+"2", path) },
	"link to a listener": func(t *testing.T, path string) { sockettest.ListenAt(t, path+"2"); link(t, path+"2", path) },
	"link to a file": func(t *testing.T, path string) {
		sockettest.Check(t, os.WriteFile(path+"2", []byte("precious"), 0o600))
		link(t, path+"2", path)
	},
}

func link(t *testing.T, target, path string) { sockettest.Check(t, os.Symlink(target, path)) }

func TestReplaceStaleReplacesOnlyStaleFiles(t *testing.T) {
	test := func(create func(*testing.T, string), stale bool) func(*testing.T) {
		return func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			path := filepath.Join(sockettest.ShortDir(t), "s")
			create(t, path)
			before, files := lstat(t, path), len(sockettest.Got(os.ReadDir(filepath.Dir(path))).Must(t))
			for _, o := range []unixsock.ListenOption{nil, unixsock.Mode(0o600), unixsock.Owner(os.Getuid(), -1)} {
				_, err := unixsock.Listen(path, o)
				sockettest.ExpectError(t, "Listen without ReplaceStale", err, syscall.EADDRINUSE)
			}
			if !os.SameFile(before, lstat(t, path)) {
				t.Error("Listen without ReplaceStale: got another file, want the unchanged one")
			}
			if stale {
				sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
			} else {
				wantInUse(t, path)
			}
			if n := len(sockettest.Got(os.ReadDir(filepath.Dir(path))).Must(t)); n != files {
				t.Errorf("directory after Listen: got %d files, want %d", n, files)
			}
		}
	}
	for name, create := range staleFiles {
		t.Run("stale/"+name, test(create, true))
	}
	for name, create := range filesInUse {
		t.Run("in use/"+name, test(create, false))
	}
}

func TestReplaceStaleLeavesALiveListener(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t)
	path := l.Addr().String()
	wantInUse(t, path)
	connects, message := 0, "a process has the socket open"
	if !sockettest.DistinguishesBoundFromDead(t) {
		connects, message = 1, "a server is listening on the socket"
	}
	got := 0
	for ; polled(t, l, l.Ready()); got++ {
		sockettest.Accept(t, l).Close()
	}
	if got != connects {
		t.Errorf("listener after another Listen with ReplaceStale: got %d pending connections, want %d", got, connects)
	}
	if _, err := unixsock.Listen(path, unixsock.ReplaceStale()); err == nil || !strings.Contains(err.Error(), message) {
		t.Errorf("Listen with ReplaceStale at a live socket: got %v, want an error with %q", err, message)
	}
	sockettest.CheckExchange(t, path, l)
}

func TestReplaceStaleOfAPathWithASlashAfterTheFileIsInUse(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	if l, err := unixsock.Listen(path + "/"); !errors.Is(err, unix.EADDRINUSE) {
		t.Skipf("Listen at %s: got %v, %v", path+"/", l, err)
	}
	if l, err := unixsock.Listen(path+"/", unixsock.ReplaceStale()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("Listen with ReplaceStale at %s: got %v, %v, want EADDRINUSE", path+"/", l, err)
	}
}

// flock locks a directory until the descriptor is closed.
func flock(t testing.TB, dir string) (fd int) {
	t.Helper()
	fd = sockettest.Got(unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)).Must(t)
	sockettest.Check(t, unix.Flock(fd, unix.LOCK_EX))
	return fd
}

// TestReplaceStaleWaits closes a socket 10 ms after Listen began, as a child process does
// that has inherited it and calls exec, or removes its file. It takes the directory's lock
// for that, so Listen must wait without it.
func TestReplaceStaleWaits(t *testing.T) {
	if !sockettest.DistinguishesBoundFromDead(t) {
		t.Skip("the kernel does not say whether a socket is bound")
	}
	for _, remove := range []bool{false, true} {
		err := errors.ErrUnsupported
		for i := 0; err != nil && i < 5; i++ { // a busy machine may stop this process for longer than Listen waits
			path := filepath.Join(sockettest.ShortDir(t), "s")
			fd := bind(t, unix.SOCK_STREAM, path)
			listened := make(chan error, 1)
			go func() {
				l, err := unixsock.Listen(path, unixsock.ReplaceStale())
				l.Close()
				listened <- err
			}()
			time.Sleep(10 * time.Millisecond) // Listen waits for 50 ms
			start := time.Now()
			lock := flock(t, filepath.Dir(path))
			took := time.Since(start)
			if remove {
				os.Remove(path)
				defer unix.Close(fd)
			} else {
				unix.Close(fd)
			}
			unix.Close(lock)
			if err = sockettest.Receive(t, "Listen", listened); err == nil && took > 30*time.Millisecond {
				err = fmt.Errorf("the lock was free after %v, want at once", took)
			}
		}
		sockettest.Check(t, err)
	}
}

// helpRace takes part in races. Each line of its input is a path and the time at which
// to listen there, in nanoseconds since 1970. It prints whether it has won. The winner
// writes its process ID to each client. After the next line it closes its listener and
// leaves the file.
func helpRace([]string) error {
	fmt.Println("here")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var path string
		var at int64
		if _, err := fmt.Sscan(in.Text(), &path, &at); err != nil {
			return err
		}
		time.Sleep(time.Until(time.Unix(0, at))) // all racers start at this time
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		fmt.Println("won:", err == nil)
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

// TestReplaceStaleHasOneWinner kills some racers of some rounds, at a random time of the race.
func TestReplaceStaleHasOneWinner(t *testing.T) {
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
	leaveStale(t, path)
	rounds := sockettest.Times(10)
	for round := range rounds {
		at := time.Now().Add(3 * time.Millisecond)
		for _, r := range racers {
			r.Send(fmt.Sprint(path, " ", at.UnixNano()))
		}
		kills := round >= rounds-3
		if kills {
			time.Sleep(time.Until(at.Add(rand.N(2 * time.Millisecond))))
			for _, r := range racers[:4] {
				r.Kill()
			}
			racers = racers[4:]
		}
		var winners []*sockettest.Helper
		for _, r := range racers {
			if r.Next() == "won: true" {
				winners = append(winners, r)
			}
		}
		if n := len(winners); n > 1 || n == 0 && !kills {
			t.Fatalf("%d processes call Listen at once with ReplaceStale: got %d winners, want one", len(racers), n)
		}
		if len(winners) == 0 { // it was killed
			sockettest.Check(t, sockettest.ListenAt(t, path, unixsock.ReplaceStale()).Close())
		} else {
			sockettest.ExpectEOF(t, sockettest.Connect(t, path), strconv.Itoa(winners[0].Cmd.Process.Pid))
			wantInUse(t, path)
		}
		wantOnly(t, dir, "s")
		for _, r := range racers {
			r.Send("next")
			r.Expect("closed")
		}
	}
	for _, r := range racers {
		r.Kill()
	}
}

// TestALockOfAnotherStopsNoCall replaces a stale file, tries to replace a live listener's, and
// removes others on Close and in a Drain, while the directory is locked. A Drain has the kernel
// refuse connects before it waits for the lock and removes the file.
func TestALockOfAnotherStopsNoCall(t *testing.T) {
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	stale, live := filepath.Join(dir, "stale"), filepath.Join(dir, "live")
	leaveStale(t, stale)
	server := sockettest.ListenAt(t, live)
	closing := sockettest.ListenAt(t, filepath.Join(dir, "closing"), unixsock.UnlinkOnClose())
	draining := sockettest.ListenAt(t, filepath.Join(dir, "draining"))
	defer unix.Close(flock(t, dir))
	start := time.Now()
	errs := make(chan error, 3)
	go func() { errs <- closing.Close() }()
	go func() { errs <- draining.Drain() }()
	go func() {
		_, err := unixsock.Listen(live, unixsock.ReplaceStale())
		sockettest.ExpectError(t, "Listen at a live socket", err, syscall.EADDRINUSE)
		errs <- nil
	}()
	if sockettest.RefusesAfterShutdown(t) {
		sockettest.WaitFor(t, "connects are not refused before the file is removed", func() bool {
			c, err := unixsock.Connect(draining.Addr().String())
			c.Close()
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	l := sockettest.ListenAt(t, stale, unixsock.ReplaceStale())
	took := time.Since(start)
	for range cap(errs) {
		sockettest.Check(t, sockettest.Receive(t, "Close, Drain and Listen", errs))
	}
	// The limit allows for a busy machine.
	if all := time.Since(start); took < time.Second || all > 10*time.Second {
		t.Errorf("Listen while another holds the lock: took %v, with Close and Drain %v; want at least a second, at most two", took, all)
	}
	sockettest.CheckExchange(t, stale, l)
	sockettest.CheckExchange(t, live, server)
	wantOnly(t, dir, "live", "stale")
}

func TestReplaceStaleWithoutDescriptorsIsEMFILE(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	defer sockettest.ExhaustDescriptors(t)()
	// The highest descriptor is 63. Listen needs one descriptor for its socket, a second
	// for the lock, and a third for the socket that probes the file.
	for available := range 3 {
		if available > 0 {
			unix.Close(64 - available)
		}
		if l, err := unixsock.Listen(path, unixsock.ReplaceStale()); !errors.Is(err, syscall.EMFILE) {
			t.Errorf("Listen with ReplaceStale and %d free descriptors: got %v, %v, want EMFILE", available, l, err)
		}
	}
}

// adopt returns a Listener for a duplicate of l's descriptor, such as a successor process
// has.
func adopt(t testing.TB, l *unixsock.Listener) *unixsock.Listener {
	t.Helper()
	f := sockettest.Got(l.File()).Must(t)
	defer f.Close()
	return sockettest.Got(unixsock.FileListener(f)).Must(t)
}

// keepsAdoptedFiles reports whether this runs in an emulator of another processor: it does not
// report which file a socket is bound to, so the file of an adopted listener stays.
func keepsAdoptedFiles() bool { return os.Getenv("UNIXSOCK_TEST_EMULATOR") != "" }

func TestUnlinkOnClose(t *testing.T) {
	type step = func(t *testing.T, l *unixsock.Listener)
	set := func(_ *testing.T, l *unixsock.Listener) { l.SetUnlinkOnClose(true) }
	replace := func(kind string) step {
		return func(t *testing.T, l *unixsock.Listener) {
			set(t, l)
			path := l.Addr().String()
			sockettest.Check(t, os.Rename(path, path+"2"))
			filesInUse[kind](t, path)
		}
	}
	option := []unixsock.ListenOption{unixsock.UnlinkOnClose()}
	for name, test := range map[string]struct {
		opts    []unixsock.ListenOption
		adopted bool
		end     step
		removes bool
	}{
		"no option":     {opts: []unixsock.ListenOption{unixsock.ReplaceStale(), unixsock.Mode(0o600)}},
		"option":        {opts: option, removes: true},
		"set":           {end: set, removes: true},
		"unset":         {opts: option, end: func(_ *testing.T, l *unixsock.Listener) { l.SetUnlinkOnClose(false) }},
		"adopted":       {opts: option, adopted: true},
		"adopted, set":  {opts: option, adopted: true, end: set, removes: true},
		"adopted, none": {adopted: true, end: func(t *testing.T, l *unixsock.Listener) { set(t, l); l.SetUnlinkOnClose(false) }},
		"CloseOn": {opts: option, end: func(t *testing.T, l *unixsock.Listener) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			l.CloseOn(ctx)
			sockettest.WaitClosing(t, l)
		}, removes: true},
		"no file": {opts: option, end: func(t *testing.T, l *unixsock.Listener) {
			sockettest.Check(t, os.Remove(l.Addr().String()))
		}, removes: true},
		"no directory": {opts: option, end: func(t *testing.T, l *unixsock.Listener) {
			sockettest.Check(t, os.RemoveAll(filepath.Dir(l.Addr().String())))
		}, removes: true},
		"another listener":          {end: replace("full backlog")},
		"adopted, another listener": {adopted: true, end: replace("full backlog")},
		"empty file":                {end: replace("empty file")},
		"directory":                 {end: replace("directory")},
		"link to its own file":      {end: replace("dangling link")},
	} {
		t.Run(name, func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			l := sockettest.Listen(t, test.opts...)
			path := l.Addr().String()
			if test.adopted {
				successor := adopt(t, l)
				l.SetUnlinkOnClose(false)
				sockettest.Check(t, l.Close())
				l = successor
			}
			sockettest.CheckExchange(t, path, l)
			if test.end != nil {
				test.end(t, l)
			}
			before, _ := os.Lstat(path)
			sockettest.Check(t, l.Close()) // it waits for the Close by CloseOn
			after, err := os.Lstat(path)
			switch {
			case test.removes && !errors.Is(err, fs.ErrNotExist) && !(test.adopted && keepsAdoptedFiles()):
				t.Errorf("file after Close: got %v, %v, want none", after, err)
			case !test.removes && (err != nil || !os.SameFile(before, after)):
				t.Errorf("file after Close: got %v, %v, want the unchanged %v", after, err, before)
			}
		})
	}
}

func TestUnlinkOnCloseIsDoneOnceWhenAnyCloseReturns(t *testing.T) {
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	path := l.Addr().String()
	// The first Close waits for the lock of the directory, which the test holds.
	lock := flock(t, filepath.Dir(path))
	go l.Close()
	sockettest.WaitClosing(t, l)
	second := make(chan error, 1)
	go func() { second <- l.Close() }()
	select {
	case err := <-second:
		t.Errorf("second Close while the first waits for the lock: got %v, want it to wait", err)
	case <-time.After(20 * time.Millisecond): // it must not return for a while
	}
	unix.Close(lock)
	sockettest.Check(t, sockettest.Receive(t, "the second Close", second))
	wantOnly(t, filepath.Dir(path))
	next := sockettest.ListenAt(t, path)
	sockettest.Check(t, l.Close())
	sockettest.CheckExchange(t, path, next)
}

func TestFileOptionsWorkThroughTCPUnit(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	leaveStale(t, path)
	unit := unixsock.NewTCPUnit(path, unixsock.Mode(0o604), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	l := sockettest.Got(unit.Listen("tcp", "localhost:80")).Must(t)
	if got, want := lstat(t, path).Mode(), fs.ModeSocket|0o604; got != want {
		t.Errorf("file after TCPUnit.Listen with Mode(0604): got mode %v, want %v", got, want)
	}
	sockettest.Check(t, l.Close())
	wantOnly(t, filepath.Dir(path))
}

// helpWatchOwner tries to connect to a path until a connect succeeds or it reads a line.
// It prints whether it connected.
func helpWatchOwner(args []string) error {
	fmt.Println("watching")
	stop := make(chan struct{})
	go func() {
		os.Stdin.Read(make([]byte, 1))
		close(stop)
	}()
	for denied := false; ; {
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
		select {
		case <-stop:
			if !denied {
				return errors.New("no connect was denied by the permissions")
			}
			fmt.Println("never connected")
			return nil
		default:
		}
	}
}
