//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

// Package stress tests package unixsock with random operations, many
// connections, and faults. Its tests accept these flags:
//
//	go test . -rounds 50                     run 50 times as long
//	go test . -soak 10m -timeout 0           run TestSoak, which is skipped by default
//	go test . -run TestModel$ -seed 123      repeat the subtest seed=123
package stress

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

var (
	soak = flag.Duration("soak", 0, "run TestSoak for this long")
	seed = flag.Uint64("seed", 0, "repeat the run of a random test that has this seed")
)

func TestMain(m *testing.M) {
	sockettest.Main(m, map[string]func([]string) error{"converse": converseUntilKilled})
}

// byChance runs f n times as subtests, each with a different seed, which is in its name.
func byChance(t *testing.T, n int, f func(t *testing.T, r *rand.Rand)) {
	first := rand.Uint64() >> 1
	n = sockettest.Times(n)
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+uint64(n) && !t.Failed(); s++ {
		t.Run("seed="+strconv.FormatUint(s, 10), func(t *testing.T) { f(t, rand.New(rand.NewPCG(s, s))) })
	}
}

// checkLeaks fails the test if more goroutines or descriptors are left at its end than at
// the call.
func checkLeaks(t *testing.T) {
	sockettest.CheckDescriptors(t)
	n := runtime.NumGoroutine()
	t.Cleanup(func() { sockettest.WaitGoroutines(t, n) })
}

// TestConcurrentAcceptsServeEachClientOnce runs crowds, each at a new listener.
func TestConcurrentAcceptsServeEachClientOnce(t *testing.T) {
	for range sockettest.Times(4) {
		crowd(t, func(id uint32) bool { return id <= 400 })
	}
}

// TestSoak runs crowds for a long time. The heap does not grow.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("runs for the time that -soak sets; the default is 0")
	}
	var heap [10]int64
	for i := range heap {
		end := time.Now().Add(*soak / 10)
		crowd(t, func(uint32) bool { return time.Now().Before(end) })
		heap[i] = sockettest.HeapInUse() >> 10
	}
	if heap[9] > heap[0]+1024 {
		t.Errorf("KiB of heap in use after each tenth of the time: got %d, want at most 1024 more at the end", heap)
	}
}

// crowd lets many clients connect to a listener, and goroutines accept them in every way,
// while more returns true for the ID of another client. It checks what holds in any order:
// each client is served once, unless the end of an event's context closed the connection, and
// nothing is left behind.
func crowd(t *testing.T, more func(id uint32) bool) {
	sockettest.FullBacklog(t) // the clients' Dial may not be the first to call it, in their goroutines
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(rand.IntN(8)))
	var ids, clients, closed, disconnected atomic.Uint32
	var served sync.Map
	var accepting, serving, connecting sync.WaitGroup
	serve := func(c *unixsock.Conn) {
		defer c.Close()
		var id uint32
		err := binary.Read(c, binary.BigEndian, &id)
		if err == nil {
			err = binary.Write(c, binary.BigEndian, ^id)
		}
		if _, again := served.LoadOrStore(id, true); err != nil || again {
			t.Errorf("serve client %d, which was served before: %t, got %v; want nil, once", id, again, err)
		}
	}
	for _, accept := range waysToAccept(l, &closed) {
		accepting.Go(func() {
			for err := error(nil); !errors.Is(err, net.ErrClosed); {
				ctx, cancel := context.WithTimeout(context.Background(), rand.N(2*time.Millisecond))
				var c *unixsock.Conn
				if c, err = accept(ctx); err == nil {
					serving.Go(func() { serve(c) })
				} else if !isEnd(err) && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("accept: got %v, want a connection, or the error of a deadline, of a context or of a close", err)
				}
				cancel()
			}
		})
	}
	for range 16 {
		connecting.Go(func() {
			for id := ids.Add(1); more(id) && !t.Failed(); id = ids.Add(1) {
				clients.Add(1)
				switch answer, err := ask(t, l.Addr().String(), id); {
				case err == io.EOF || isGone(err):
					disconnected.Add(1)
				case err != nil || answer != ^id:
					t.Errorf("exchange of client %d: got %x, %v; want %x, nil, or a disconnect", id, answer, err, ^id)
				}
			}
		})
	}
	connecting.Wait()
	if showsReady(l.Ready()) {
		t.Error("poll of Ready() after the last client: got true, want false")
	}
	sockettest.WaitDescriptors(t, descriptors+1)
	sockettest.Check(t, l.Close())
	sockettest.CheckReturns(t, "the accepts to end", accepting.Wait)
	sockettest.CheckReturns(t, "the clients to be served", serving.Wait)
	n := uint32(0)
	served.Range(func(any, any) bool { n++; return true })
	if n+closed.Load() != clients.Load() || disconnected.Load() != closed.Load() {
		t.Errorf("%d clients: got %d served, %d disconnected, %d closed by a context; want each served, or disconnected and closed",
			clients.Load(), n, disconnected.Load(), closed.Load())
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// ask connects to path, sends id and returns the answer.
func ask(t *testing.T, path string, id uint32) (answer uint32, err error) {
	c, err := sockettest.Dial(t, path)
	if err != nil {
		return 0, fmt.Errorf("connect: %v", err) // it is not isGone
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(sockettest.Timeout))
	if err := binary.Write(c, binary.BigEndian, id); err != nil {
		return 0, err
	}
	err = binary.Read(c, binary.BigEndian, &answer)
	return answer, err
}

type acceptFunc func(context.Context) (*unixsock.Conn, error)

// waysToAccept returns functions that try to accept a connection from l until a context ends.
// It has no effect on the connection, unless it is that of an event and closes the connection
// before the receiver has released it: then closed is increased.
func waysToAccept(l *unixsock.Listener, closed *atomic.Uint32) []acceptFunc {
	kept := sync.OnceValue(l.Ready)
	byEvent := func(ctx context.Context) (*unixsock.Conn, error) {
		a, ok := <-l.AcceptEvt(ctx)
		switch {
		case !ok:
			return nil, cmp.Or(ctx.Err(), net.ErrClosed)
		case a.Err != nil:
			return nil, a.Err
		}
		a.Conn.CloseOn(context.Background())
		if errors.Is(a.Conn.SetDeadline(time.Time{}), net.ErrClosed) {
			closed.Add(1)
			return nil, syscall.EAGAIN
		}
		return a.Conn, nil
	}
	byReady := func(ready <-chan *unixsock.Listener) (*unixsock.Conn, error) {
		if _, ok := <-ready; ok && rand.IntN(4) == 0 {
			return nil, syscall.EAGAIN // the connection is left to others
		}
		return l.TryAccept()
	}
	return []acceptFunc{
		l.AcceptContext,
		byEvent,
		func(context.Context) (*unixsock.Conn, error) { return l.AcceptContext(context.Background()) },
		func(context.Context) (*unixsock.Conn, error) { return byReady(l.Ready()) },
		func(context.Context) (*unixsock.Conn, error) { return byReady(kept()) },
		func(context.Context) (*unixsock.Conn, error) { return byEvent(context.Background()) },
		func(ctx context.Context) (*unixsock.Conn, error) {
			l.AcceptEvt(ctx) // nobody receives from it
			<-ctx.Done()
			return l.TryAccept()
		},
		func(ctx context.Context) (*unixsock.Conn, error) {
			deadline, _ := ctx.Deadline()
			err := l.SetDeadline(deadline)
			<-ctx.Done()
			l.SetDeadline(time.Time{})
			return nil, cmp.Or(err, ctx.Err())
		},
	}
}

// TestTwoHundredGoroutinesShareAConn lets goroutines call the methods of a Conn concurrently.
// As many bytes arrive at the peer as the writes return. The reads return no more bytes than
// the peer sent. Each error is that of a deadline or a close.
func TestTwoHundredGoroutinesShareAConn(t *testing.T) {
	checkLeaks(t)
	for range sockettest.Times(2) {
		c, peer := pair(t)
		arrived := start(func() (int64, error) { return readers["ReadFiles"](peer, io.Discard) })
		sent := start(func() (int64, error) { return writers["Write"](peer, &textReader{}) })
		var wrote, read atomic.Int64
		use := func(what int) (err error) {
			var n int64
			switch soon := time.Now().Add(rand.N(time.Millisecond)); {
			case what == 0:
				c.CloseOn(t.Context())
				c.CloseOn(context.Background())
				var f *os.File
				if f, err = c.File(); err == nil {
					f.Close()
				}
			case what < 4:
				err = []func(time.Time) error{c.SetReadDeadline, c.SetWriteDeadline, c.SetDeadline}[rand.IntN(3)](soon)
			case what == 4:
				err = c.SetDeadline(time.Time{})
			case what < 13:
				n, err = anyOf(writers)(c, io.LimitReader(&textReader{}, rand.Int64N(20_000)))
				wrote.Add(n)
			default:
				n, err = anyOf(readers)(c, io.Discard)
				read.Add(n)
			}
			return err
		}
		var users sync.WaitGroup
		var stop atomic.Bool
		for i := range 200 {
			users.Go(func() {
				for ; !stop.Load(); time.Sleep(rand.N(time.Millisecond)) {
					if err := use(i % 20); err != nil && !isEnd(err) {
						t.Errorf("use %d of the shared Conn: got %v, want nil, or the error of a deadline or a close", i%20, err)
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond) // the goroutines use the Conn for this time
		sockettest.WaitFor(t, "no byte was written or read", func() bool { return wrote.Load() > 0 && read.Load() > 0 })
		c.SetWriteDeadline(time.Time{})
		sockettest.Check(t, c.CloseWrite())
		time.Sleep(rand.N(5 * time.Millisecond)) // they use the input for this time
		for range 10 {
			users.Go(func() { sockettest.ExpectError(t, "CloseRead and Close", errors.Join(c.CloseRead(), c.Close()), nil) })
		}
		stop.Store(true)
		sockettest.CheckReturns(t, "the calls to end", users.Wait)
		a, s := sockettest.Receive(t, "the peer's reads to end", arrived), sockettest.Receive(t, "the peer's writes to end", sent)
		if a.err != nil && !isEnd(a.err) || !isEnd(s.err) || wrote.Load() != a.n || read.Load() > s.n {
			t.Fatalf("bytes through the shared Conn: got %d written and %d arrived, %v, %d read and %d sent, %v; want as many, nil, no more, an end",
				wrote.Load(), a.n, a.err, read.Load(), s.n, s.err)
		}
	}
}
