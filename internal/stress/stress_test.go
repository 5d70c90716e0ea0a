//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

// Package stress tests package unixsock with random operations, many
// connections, and faults. Its tests accept these flags:
//
//	go test . -rounds 50                     run 50 times as long
//	go test . -soak 10m -timeout 0           run TestSoak, which is skipped by default
//	go test . -run TestModel$ -seed 123      repeat the subtest seed=123
package stress

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
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

func TestMain(m *testing.M) { sockettest.Main(m, nil) }

// byChance runs f n times as subtests, each with a different seed. The name of the subtest
// contains the seed.
func byChance(t *testing.T, n int, f func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	first := rand.Uint64() >> 1
	n = sockettest.Times(n)
	if *seed != 0 {
		first, n = *seed, 1
	}
	for s := first; s < first+uint64(n); s++ {
		ok := t.Run("seed="+strconv.FormatUint(s, 10), func(t *testing.T) {
			f(t, rand.New(rand.NewPCG(s, s)))
		})
		if !ok {
			return
		}
	}
}

// TestTenThousandConnectionsAreOpenAtOnce opens 10,000 connections between two processes.
// On most systems one process may have about 20,000 descriptors, too few for both ends.
func TestTenThousandConnectionsAreOpenAtOnce(t *testing.T) {
	const pathVar = "UNIXSOCK_TEST_STRESS_PATH"
	n := 10000
	if testing.Short() {
		n = 1000
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("getrlimit(2): %v", err)
	}
	if room := uint64(n + 100); uint64(limit.Cur) < room {
		limit.Cur = min(limit.Max, 1<<20)
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
		if uint64(limit.Cur) < room {
			n = int(limit.Cur) - 100
			t.Logf("the limit is %d descriptors: the test uses %d connections", limit.Cur, n)
		}
	}
	if os.Getenv(sockettest.ChildVar) == t.Name() {
		openMany(t, os.Getenv(pathVar), n)
		return
	}
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(511))
	served := make(chan error, 1)
	go func() { served <- serveMany(l, n) }()
	begin := time.Now()
	sockettest.InChild(t, func(cmd *exec.Cmd) {
		sockettest.WithRounds(cmd)
		cmd.Env = append(cmd.Env, pathVar+"="+l.Addr().String())
	})
	if err := sockettest.Receive(t, "the server", served); err != nil {
		t.Fatalf("serve %d connections: got %v, want no error", n, err)
	}
	t.Logf("opened and used %d connections at once in %v", n, time.Since(begin).Round(time.Millisecond))
	l.Close()
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// openMany opens n connections, sends the number of each as a question, and then reads the
// answers.
func openMany(t *testing.T, path string, n int) {
	conns := make([]*unixsock.Conn, n)
	for i := range conns {
		c, err := sockettest.Dial(t, path)
		if err != nil {
			t.Fatalf("Connect %d of %d: got %v, want a connection", i, n, err)
		}
		defer c.Close()
		if err := binary.Write(c, binary.BigEndian, uint32(i)); err != nil {
			t.Fatalf("Write to connection %d of %d: got %v, want no error", i, n, err)
		}
		conns[i] = c
	}
	// The server answers once all connections are open.
	for i, c := range conns {
		var answer uint32
		if err := binary.Read(c, binary.BigEndian, &answer); err != nil || answer != ^uint32(i) {
			t.Fatalf("Read of the answer on connection %d: got %x, %v; want %x, nil", i, answer, err, ^uint32(i))
		}
	}
}

// serveMany accepts n connections, and starts a goroutine for each that reads the question.
// Once all connections are open, the goroutines answer. serveMany returns when the peers
// have closed all connections.
func serveMany(l *unixsock.Listener, n int) error {
	var wg sync.WaitGroup
	all := make(chan struct{})
	errs := make(chan error, n)
	for range n {
		c, err := l.AcceptContext(context.Background())
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer c.Close()
			var id uint32
			err := binary.Read(c, binary.BigEndian, &id)
			if err == nil {
				<-all
				err = binary.Write(c, binary.BigEndian, ^id)
			}
			if err == nil {
				if _, err = c.Read(make([]byte, 1)); err == io.EOF {
					err = nil
				}
			}
			errs <- err
		})
	}
	close(all)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// acceptors are the ways to accept a connection.
var acceptors = []func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error){
	func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error) {
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		return c.(*unixsock.Conn), nil
	},
	func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error) { return l.AcceptContext(ctx) },
	func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error) {
		if _, ok := <-l.Ready(); !ok {
			return nil, net.ErrClosed
		}
		return l.AcceptContext(ctx)
	},
	func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error) {
		a, ok := <-l.AcceptEvt(ctx)
		if !ok {
			return nil, net.ErrClosed
		}
		return a.Conn, a.Err
	},
}

// TestConnectionsLeaveNothingBehind serves many connections, one after the other. It checks
// that each client is served once, and that no goroutine or descriptor is left.
func TestConnectionsLeaveNothingBehind(t *testing.T) {
	n := sockettest.Times(20000)
	l := sockettest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	const clients = 4
	var next atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for id := next.Add(1); id <= int64(n) && !t.Failed(); id = next.Add(1) {
				if err := askID(t, l.Addr().String(), uint64(id)); err != nil {
					t.Errorf("connect client %d, send its ID and read the answer: got %v, want no error", id, err)
					cancel()
				}
			}
		})
	}
	begin, heap := time.Now(), sockettest.HeapInUse()
	seen := make([]bool, n+1)
	for i := range n {
		c, err := acceptors[i*len(acceptors)/n](ctx, l)
		if err != nil {
			t.Fatalf("accept %d: got %v, want a connection", i, err)
		}
		id, err := answerID(c)
		if err != nil {
			t.Fatalf("read the ID of accept %d and answer client %d: got %v, want no error", i, id, err)
		}
		if id > uint64(n) || seen[id] {
			t.Fatalf("accept %d: got client %d, want one from 1 to %d that was not accepted before", i, id, n)
		}
		seen[id] = true
	}
	wg.Wait()
	took := time.Since(begin)
	t.Logf("served %d connections in %v, %v each; heap %+d KiB", n, took.Round(time.Millisecond), took/time.Duration(n), (sockettest.HeapInUse()-heap)>>10)
	cancel()
	// The listener's watcher and the goroutine that waits for ctx are left.
	sockettest.WaitGoroutines(t, goroutines+2)
	sockettest.WaitDescriptors(t, descriptors)
}

// askID connects to path, sends id, and checks the answer.
func askID(t *testing.T, path string, id uint64) error {
	c, err := sockettest.Dial(t, path)
	if err != nil {
		return err
	}
	defer c.Close()
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], id)
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	if got := binary.BigEndian.Uint64(b[:]); got != ^id {
		return fmt.Errorf("answer to %x: got %x, want %x", id, got, ^id)
	}
	return nil
}

// answerID reads the ID of one client, answers the client, and closes c. It returns the ID.
func answerID(c *unixsock.Conn) (id uint64, err error) {
	defer c.Close()
	var b [8]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, err
	}
	id = binary.BigEndian.Uint64(b[:])
	binary.BigEndian.PutUint64(b[:], ^id)
	_, err = c.Write(b[:])
	return id, err
}

// TestTwoHundredGoroutinesShareAConn lets goroutines call all methods of a Conn
// concurrently. As many bytes arrive at the peer as the writes return. The reads return no
// more bytes than the peer sent. Each error is that of a deadline or a close.
func TestTwoHundredGoroutinesShareAConn(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	const many = 200
	custodian, end := context.WithCancel(t.Context())
	defer end()
	totalWrote, totalRead := int64(0), int64(0)
	for range sockettest.Times(5) {
		c, peer, err := unixsock.Pair()
		if err != nil {
			t.Fatalf("Pair: %v", err)
		}
		var wrote, read, arrived, sent atomic.Int64
		var peers, users sync.WaitGroup
		peers.Go(func() {
			for {
				n, files, err := peer.ReadFiles(make([]byte, 10000), 10)
				arrived.Add(int64(n))
				closeAll(files)
				if err != nil {
					if !isEnd(err) {
						t.Errorf("ReadFiles of the peer: got %v, want EOF or the error of a closed connection", err)
					}
					return
				}
			}
		})
		peers.Go(func() {
			b := make([]byte, 10000)
			for {
				n, err := peer.Write(b[:1+rand.IntN(len(b))])
				sent.Add(int64(n))
				if err != nil {
					if !isEnd(err) {
						t.Errorf("Write of the peer: got %v, want the error of a closed connection", err)
					}
					return
				}
			}
		})
		var stop atomic.Bool
		for i := range many {
			users.Go(func() {
				for !stop.Load() {
					if err := use(custodian, c, i%20, &wrote, &read); err != nil && !isEnd(err) {
						t.Errorf("use %d of the shared Conn: got %v, want nil or the error of a deadline or a close", i%20, err)
						return
					}
				}
			})
		}
		time.Sleep(100 * time.Millisecond) // the goroutines use the Conn for this time
		sockettest.WaitFor(t, "the goroutines have written or read no byte", func() bool { return wrote.Load() > 0 && read.Load() > 0 })
		// The test closes the output. Several goroutines then close the input and the Conn.
		c.SetWriteDeadline(time.Time{})
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite of the shared Conn: got %v, want no error", err)
		}
		time.Sleep(rand.N(5 * time.Millisecond)) // the goroutines use the input for this time
		for range 10 {
			users.Go(func() {
				if err := c.CloseRead(); err != nil {
					t.Errorf("CloseRead of the shared Conn: got %v, want no error", err)
				}
				if err := c.Close(); err != nil {
					t.Errorf("Close of the shared Conn: got %v, want no error", err)
				}
			})
		}
		stop.Store(true)
		users.Wait()
		peers.Wait()
		peer.Close()
		if wrote.Load() != arrived.Load() {
			t.Errorf("write to the shared Conn: got %d bytes in all, want %d, which arrived at the peer", wrote.Load(), arrived.Load())
		}
		if read.Load() > sent.Load() {
			t.Errorf("read from the shared Conn: got %d bytes in all, want at most %d, which the peer sent", read.Load(), sent.Load())
		}
		if t.Failed() {
			return
		}
		totalWrote, totalRead = totalWrote+wrote.Load(), totalRead+read.Load()
	}
	t.Logf("wrote %d bytes, read %d", totalWrote, totalRead)
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// use makes the call of c with the number what. custodian is a context for CloseOn. use
// adds the number of bytes written or read to wrote or read.
func use(custodian context.Context, c *unixsock.Conn, what int, wrote, read *atomic.Int64) error {
	b := make([]byte, 1+rand.IntN(5000))
	var n int
	var err error
	switch what {
	case 0, 1, 2, 3, 4:
		n, err = c.Write(b)
		wrote.Add(int64(n))
	case 5:
		n, err = c.WriteFiles(b, os.Stdin)
		wrote.Add(int64(n))
	case 6, 7, 8, 9:
		n, err = c.Read(b)
		read.Add(int64(n))
	case 10:
		var files []*os.File
		n, files, err = c.ReadFiles(b, 1)
		read.Add(int64(n))
		closeAll(files)
	case 11:
		err = c.SetDeadline(time.Now().Add(rand.N(time.Millisecond)))
	case 12:
		err = c.SetReadDeadline(time.Now().Add(rand.N(time.Millisecond)))
	case 13:
		err = c.SetWriteDeadline(time.Now().Add(rand.N(time.Millisecond)))
	case 14, 15:
		err = c.SetDeadline(time.Time{})
	case 16:
		var f *os.File
		if f, err = c.File(); err == nil {
			f.Close()
		}
	case 17:
		if _, err = c.PeerCred(); errors.Is(err, errors.ErrUnsupported) {
			err = nil
		}
	case 18:
		if rand.IntN(100) == 0 {
			c.CloseOn(custodian)
		} else {
			c.CloseOn(context.Background())
		}
		c.LocalAddr()
		c.RemoteAddr()
	case 19:
		raw, _ := c.SyscallConn()
		if err = raw.Control(func(uintptr) {}); err == nil {
			err = raw.Write(func(uintptr) bool { return true })
		}
	}
	return err
}

// TestSoak runs servers and clients for a long time, and logs the descriptors, goroutines
// and heap that they use. At the end, no descriptor or goroutine is left, and the heap has
// grown by at most 1 MiB.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("runs for the time that -soak sets; the default is 0")
	}
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t)
	ctx, stop := context.WithCancel(t.Context())
	var served, asked, cancelled atomic.Int64
	var servers, clients sync.WaitGroup
	for i := range 2 * len(acceptors) {
		servers.Go(func() {
			for ctx.Err() == nil {
				// The context, which is the custodian of an event's connection, lives longer
				// than an exchange takes.
				short, cancel := context.WithTimeout(ctx, time.Second)
				c, err := acceptors[i%len(acceptors)](short, l)
				if err == nil {
					if _, err = answerID(c); err == nil {
						served.Add(1)
					}
				}
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && !isEnd(err) {
					t.Errorf("accept and answer a client in server %d: got %v, want nil or the error of a context, a deadline or a close", i, err)
					stop()
				}
			}
		})
	}
	for range 8 {
		clients.Go(func() {
			for ctx.Err() == nil {
				err := askID(t, l.Addr().String(), rand.Uint64())
				switch {
				case err == nil:
					asked.Add(1)
				case err == io.EOF || isGone(err):
					cancelled.Add(1) // the custodian ended
				case ctx.Err() == nil:
					t.Errorf("connect, send an ID and read the answer: got %v, want nil, EOF or the error of a closed peer", err)
					stop()
				}
			}
		})
	}
	clients.Go(func() {
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(ctx, rand.N(time.Millisecond))
			if c, err := unixsock.ConnectContext(short, l.Addr().String()); err == nil {
				c.Close()
			}
			cancel()
			l.AcceptEvt(short)
			if c, p, err := unixsock.Pair(); err == nil {
				c.CloseOn(ctx)
				c.WriteFiles([]byte("!"), os.Stdin)
				if rand.IntN(2) == 0 {
					_, files, _ := p.ReadFiles(make([]byte, 1), 1)
					closeAll(files)
				}
				c.Close()
				p.Close()
			}
		}
	})
	var first, last int64
	show := func(at time.Duration) {
		last = sockettest.HeapInUse()
		t.Logf("%8v  %10d served  %6d disconnected  %5d descriptors  %5d goroutines  %7d KiB of heap", at.Round(time.Second),
			served.Load(), cancelled.Load(), sockettest.CountDescriptors(t), runtime.NumGoroutine(), last>>10)
	}
	begin := time.Now()
	for part := range 10 {
		select {
		case <-time.After(*soak / 10):
		case <-ctx.Done():
		}
		show(time.Since(begin))
		if part == 0 {
			first = last
		}
	}
	stop()
	l.Close()
	servers.Wait()
	clients.Wait()
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
	show(time.Since(begin))
	if last > first+1<<20 {
		t.Errorf("heap in use: got %d KiB, want at most 1024 more than %d", last>>10, first>>10)
	}
	// A client that is disconnected while the server writes the answer counts as served.
	if asked.Load() > served.Load() {
		t.Errorf("clients that got an answer: got %d, want at most the %d that were served", asked.Load(), served.Load())
	}
}
