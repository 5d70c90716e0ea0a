//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// isBare reports whether the poller does not know c yet.
func isBare(c *Conn) bool { return c.file.file.Load() == nil }

// barePair returns two connected Conns that the poller does not know yet.
func barePair(t testing.TB) (c, peer *Conn) {
	t.Helper()
	for {
		c, peer, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); peer.Close() })
		if isBare(c) && isBare(peer) { // all but the first of a process
			return c, peer
		}
	}
}

func TestConnectionThatNeverWaitsMeetsNoPoller(t *testing.T) {
	client, server := barePair(t)
	b := make([]byte, 8)
	for range 3 {
		mustTalk(t, client, server)
		mustTalk(t, server, client)
		if n, err := client.Read(nil); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	if onLinux {
		if _, err := client.PeerCred(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.SetWriteBuffer(1 << 16); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(b); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	if !isBare(client) || !isBare(server) {
		t.Error("the poller knows it")
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

func TestServerThatWaitedHasThePollerReady(t *testing.T) {
	l := mustListen(t)
	accepted := make(chan *Conn, 1)
	go func() {
		if c, err := l.AcceptContext(t.Context()); err == nil {
			accepted <- c
		}
	}()
	waitInPoller(t, 1)
	mustConnect(t, l.Addr().String())
	server := receive(t, "the accept", accepted)
	defer server.Close()
	if isBare(server) {
		t.Error("the poller does not know it")
	}
}

// The first write that has to wait is where the poller comes in: what others
// write must not come in between.
func TestWritesDoNotMixAsTheFirstComesToWait(t *testing.T) {
	rounds := 500
	if testing.Short() || raceEnabled {
		rounds = 50
	}
	const writers, size = 4, bareMost
	got := make([]byte, writers*size)
	for range rounds {
		c, peer := barePair(t)
		if err := c.SetWriteBuffer(size / 4); err != nil { // so that part of it fits
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				message := bytes.Repeat([]byte{byte(i)}, size)
				if n, err := c.Write(message); n != size || err != nil {
					t.Error(n, err)
				}
			})
		}
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		for message := range slices.Chunk(got, size) {
			if bytes.Count(message, message[:1]) != size {
				t.Fatal("two writes are mixed")
			}
		}
		c.Close()
		peer.Close()
	}
}

// Whatever comes first to a new connection, and whatever comes in between,
// everything ends, and no descriptor is left.
func TestPollerComesInAmongClosesAndDeadlines(t *testing.T) {
	rounds := 3000
	if testing.Short() || raceEnabled {
		rounds = 300
	}
	descriptors := countDescriptors(t)
	uses := []func(c *Conn, ctx context.Context){
		func(c *Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.Write(make([]byte, bareMost)) }, // more than fits
		func(c *Conn, _ context.Context) { c.Write(make([]byte, 1<<19)) },
		func(c *Conn, _ context.Context) { c.ReadFrom(bytes.NewReader(make([]byte, 8))) },
		func(c *Conn, _ context.Context) { c.SetDeadline(time.Now().Add(time.Hour)) },
		func(c *Conn, _ context.Context) { c.PeerCred() },
		func(c *Conn, _ context.Context) {
			if f, err := c.File(); err == nil {
				f.Close()
			}
		},
		func(c *Conn, ctx context.Context) { c.CloseOn(ctx) },
		func(c *Conn, _ context.Context) { c.CloseRead() },
		func(c *Conn, _ context.Context) { c.CloseWrite() },
		func(c *Conn, _ context.Context) { c.Close() },
	}
	for range rounds {
		c, peer, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetWriteBuffer(bareMost / 4); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		all := slices.Clone(uses)
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var wg sync.WaitGroup
		for _, use := range all {
			wg.Go(func() { use(c, ctx) })
		}
		ends(t, "a use of a connection that is closed", wg.Wait)
		cancel()
		peer.Close()
	}
	waitDescriptors(t, descriptors)
}

func TestConnectionThatNobodyCanReachIsClosed(t *testing.T) {
	for what, use := range map[string]func(t *testing.T, c, peer *Conn){
		"new": func(*testing.T, *Conn, *Conn) {},
		"with the poller": func(t *testing.T, c, peer *Conn) {
			if err := c.SetDeadline(time.Time{}); err != nil || isBare(c) {
				t.Error(err)
			}
		},
		"in use": func(t *testing.T, c, peer *Conn) { mustTalk(t, c, peer) },
		"under a custodian that nobody can reach": func(_ *testing.T, c, _ *Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			c.CloseOn(ctx)
			runtime.KeepAlive(cancel)
		},
	} {
		t.Run(what, func(t *testing.T) {
			peer := func() *Conn {
				c, peer, err := Pair()
				if err != nil {
					t.Fatal(err)
				}
				use(t, c, peer)
				return peer
			}()
			defer peer.Close()
			end := make(chan error, 1)
			go func() {
				_, err := peer.Read(make([]byte, 8))
				end <- err
			}()
			waitFor(t, "it stays open", func() bool {
				runtime.GC()
				return len(end) > 0
			})
			if err := <-end; err != io.EOF {
				t.Error(err)
			}
		})
	}
}

// A half that is closed while the poller comes in must not keep who waits in it:
// on Linux no event would tell, of a socket that is half full, that it is closed.
func TestHalfClosedAsTheFirstComesToWaitEndsTheWait(t *testing.T) {
	rounds := 5000
	if testing.Short() || raceEnabled {
		rounds = 500
	}
	for what, half := range map[string]struct {
		close func(*Conn) error
		wait  func(syscall.RawConn) error
	}{
		"input":  {(*Conn).CloseRead, func(raw syscall.RawConn) error { return raw.Read(func(uintptr) bool { return false }) }},
		"output": {(*Conn).CloseWrite, func(raw syscall.RawConn) error { return raw.Write(func(uintptr) bool { return false }) }},
	} {
		t.Run(what, func(t *testing.T) {
			for range rounds {
				c, peer := barePair(t)
				if err := c.SetWriteBuffer(4 << 10); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Write(make([]byte, 1<<10)); n != 1<<10 || err != nil || !isBare(c) {
					t.Fatal(n, err)
				}
				raw, err := c.SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- half.wait(raw) }()
				if err := half.close(c); err != nil {
					t.Fatal(err)
				}
				if err := receive(t, "the wait", ended); !errors.Is(err, net.ErrClosed) {
					t.Fatal(err)
				}
				c.Close()
				peer.Close()
			}
		})
	}
}

func TestPollerThatRefusesIsSaidSoByWhatWouldWait(t *testing.T) {
	c, peer := barePair(t)
	fd := c.file.fd
	// The poller, too, would refuse: os.File does not give it what may block.
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Fatalf("SetDeadline: %v", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(shortDir(t), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for range 2 {
		if err := c.SetDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("SetDeadline: %v", err)
		}
		for _, size := range []int{1, bareMost + 1} {
			if _, err := peer.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, size)); n != 1 || err != nil {
				t.Errorf("Read of what is there: %d, %v", n, err)
			}
			if _, err := c.Read(make([]byte, size)); !errors.Is(err, os.ErrNoDeadline) {
				t.Errorf("Read: %v", err)
			}
		}
		for wrote := 0; ; {
			n, err := c.Write(make([]byte, bareMost+1))
			if wrote += n; err == nil {
				continue
			}
			if !errors.Is(err, os.ErrNoDeadline) {
				t.Errorf("Write: %v", err)
			}
			if _, err := io.ReadFull(peer, make([]byte, wrote)); err != nil {
				t.Errorf("of the %d bytes that were written: %v", wrote, err)
			}
			break
		}
		if err := file.Truncate(8 << 20); err != nil {
			t.Fatal(err)
		}
		file.Seek(0, io.SeekStart)
		n, err := io.Copy(c, file)
		if !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("Copy: %v", err)
		}
		if _, err := io.ReadFull(peer, make([]byte, n)); err != nil {
			t.Errorf("of the %d bytes that were copied: %v", n, err)
		}
		if err := raw.Read(func(uintptr) bool { return false }); !errors.Is(err, os.ErrNoDeadline) {
			t.Errorf("RawConn.Read: %v", err)
		}
		if err := raw.Control(func(uintptr) {}); err != nil {
			t.Errorf("RawConn.Control: %v", err)
		}
		if copied, err := c.File(); err != nil {
			t.Errorf("File: %v", err)
		} else {
			copied.Close()
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// The runtime's poller wants descriptors of its own when it starts, and ends the
// process if there are none. A test would have it started: the child runs none.
func TestPollerStartsBeforeDescriptorsRunOut(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(exe)
	childEnv(cmd, startVar+"=1")
	emulate(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

const startVar = "UNIXSOCK_TEST_START"

func TestMain(m *testing.M) {
	if os.Getenv(startVar) == "" {
		// This starts the poller, as -timeout does, but for -timeout 0: its own
		// descriptors must not be counted as left open by the first to wait.
		if r, w, err := os.Pipe(); err == nil {
			r.Close()
			w.Close()
		}
		os.Exit(m.Run())
	}
	if err := waitWithoutDescriptors(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// waitWithoutDescriptors takes all descriptors and then has connections wait.
func waitWithoutDescriptors() error {
	var pairs [2][2]*Conn
	for i := range pairs {
		c, peer, err := Pair()
		if err != nil {
			return err
		}
		pairs[i] = [2]*Conn{c, peer}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	for {
		if _, err := syscall.Dup(0); err != nil {
			break
		}
	}
	for _, pair := range pairs {
		ended := make(chan error, 1)
		go func() {
			_, err := pair[0].Read(make([]byte, 1))
			ended <- err
		}()
		runtime.Gosched() // it likely waits then; if not, the rest holds all the same
		if _, err := pair[1].Write([]byte("x")); err != nil {
			return err
		}
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}
