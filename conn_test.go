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
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fdOf returns the descriptor of c, to look at once c is closed.
func fdOf(t testing.TB, c *Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// isOpen reports whether fd is a descriptor. It tells something of a Conn only
// while nothing else in the process opens any.
func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// fillBuffer writes to c until it would wait, and leaves no deadline behind.
func fillBuffer(t testing.TB, c *Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	rawErr := raw.Write(func(fd uintptr) bool {
		for err == nil || err == unix.EINTR {
			_, err = unix.Write(int(fd), b)
		}
		return true
	})
	if rawErr != nil || err != unix.EAGAIN {
		t.Fatalf("filling the buffer: %v, %v", rawErr, err)
	}
}

// waiting starts f, which is to wait in the poller, and returns its error's
// channel once it does.
func waiting(t testing.TB, f func() error) <-chan error {
	t.Helper()
	before := goroutinesIn("IO wait")
	result := make(chan error, 1)
	go func() { result <- f() }()
	waitInPoller(t, before+1)
	return result
}

func readOne(r io.Reader) func() error {
	return func() error {
		_, err := r.Read(make([]byte, 1))
		return err
	}
}

func writeOne(w io.Writer) func() error {
	return func() error {
		_, err := w.Write(make([]byte, 1))
		return err
	}
}

// wantOpError fails the test unless err is a *net.OpError of op, and is want.
func wantOpError(t testing.TB, what string, err error, op string, want error) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || opErr.Source == nil || opErr.Addr == nil {
		t.Errorf("%s: %#v, want a net.OpError of %s, with addresses", what, err, op)
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// wantEOF fails the test unless r ends after data.
func wantEOF(t testing.TB, r io.Reader, data string) {
	t.Helper()
	b, err := io.ReadAll(r)
	if string(b) != data || err != nil {
		t.Errorf("read %q, %v; want %q and the end", b, err, data)
	}
}

func TestPortsReadAndWrite(t *testing.T) {
	client, server := mustPair(t)
	in, out := client.Ports()
	peerIn, peerOut := server.Ports()
	for _, p := range []struct {
		r io.Reader
		w io.Writer
	}{{peerIn, out}, {in, peerOut}} {
		if _, err := io.WriteString(p.w, "hello"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(p.r, b); string(b) != "hello" || err != nil {
			t.Fatalf("read %q, %v", b, err)
		}
	}
}

func TestPortsAreTheSameEachTime(t *testing.T) {
	c, _ := mustPair(t)
	in, out := c.Ports()
	in2, out2 := c.Ports()
	if in != in2 || out != out2 {
		t.Error("they differ")
	}
}

func TestClosedOutputIsEOFForThePeer(t *testing.T) {
	for what, closeIt := range map[string]func(*Conn) error{
		"CloseWrite": (*Conn).CloseWrite,
		"the port":   func(c *Conn) error { _, out := c.Ports(); return out.Close() },
		"Close":      (*Conn).Close,
	} {
		c, peer := mustPair(t)
		if _, err := c.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		if err := closeIt(c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		wantEOF(t, peer, "last words")
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: then read %d, %v; want io.EOF itself", what, n, err)
		}
	}
}

func TestClosedInputIsEPIPEForThePeer(t *testing.T) {
	for what, closeIt := range map[string]func(*Conn) error{
		"CloseRead": (*Conn).CloseRead,
		"the port":  func(c *Conn) error { in, _ := c.Ports(); return in.Close() },
		"Close":     (*Conn).Close,
	} {
		c, peer := mustPair(t)
		if err := closeIt(c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, err := peer.Write([]byte("!"))
		wantOpError(t, what, err, "write", syscall.EPIPE)
	}
}

func TestOneHalfClosedLeavesTheOther(t *testing.T) {
	c, peer := mustPair(t)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, peer, "")
	if _, err := peer.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	peer.CloseWrite()
	wantEOF(t, c, "answer")

	c, peer = mustPair(t)
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("notice")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	wantEOF(t, peer, "notice")
}

// closes are all ways to close, and what each closes.
var closes = []struct {
	name string
	half half
	call func(*Conn) error
}{
	{"Close", bothHalves, (*Conn).Close},
	{"CloseRead", readHalf, (*Conn).CloseRead},
	{"CloseWrite", writeHalf, (*Conn).CloseWrite},
	{"in.Close", readHalf, func(c *Conn) error { in, _ := c.Ports(); return in.Close() }},
	{"out.Close", writeHalf, func(c *Conn) error { _, out := c.Ports(); return out.Close() }},
}

func TestClosesInEveryOrder(t *testing.T) {
	l := mustListen(t)
	const length = 4
	total := 1
	for range length {
		total *= len(closes)
	}
	for i := range total {
		c := mustConnect(t, l.Addr().String())
		peer := mustAccept(t, l)
		fd := fdOf(t, c)
		var closed half
		order := ""
		for range length {
			way := closes[i%len(closes)]
			i /= len(closes)
			order += " " + way.name
			if err := way.call(c); err != nil {
				t.Fatalf("%s: %v", order, err)
			}
			closed |= way.half

			if got, want := isOpen(fd), closed != bothHalves; got != want {
				t.Fatalf("%s: the descriptor is open: %v, want %v", order, got, want)
			}
			if closed&readHalf != 0 {
				_, err := c.Read(make([]byte, 1))
				wantOpError(t, order, err, "read", net.ErrClosed)
			} else if _, err := peer.Write([]byte("!")); err != nil {
				t.Errorf("%s: the peer's write: %v", order, err)
			} else if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("%s: read %d, %v", order, n, err)
			}
			if closed&writeHalf != 0 {
				_, err := c.Write([]byte("!"))
				wantOpError(t, order, err, "write", net.ErrClosed)
				if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("%s: the peer read %d, %v", order, n, err)
				}
			} else if _, err := c.Write([]byte("!")); err != nil {
				t.Errorf("%s: write: %v", order, err)
			} else if n, err := peer.Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("%s: the peer read %d, %v", order, n, err)
			}
		}
		c.Close()
		peer.Close()
	}
}

func TestReaderThatWaitsHearsOfTheClose(t *testing.T) {
	for _, way := range closes {
		if way.half&readHalf == 0 {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c, peer := mustPair(t)
			result := waiting(t, readOne(c))
			if err := way.call(c); err != nil {
				t.Fatal(err)
			}
			wantOpError(t, "Read", receive(t, "the reader", result), "read", net.ErrClosed)
			if way.half == bothHalves {
				return
			}
			if _, err := c.Write([]byte("on")); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			wantEOF(t, peer, "on")
		})
	}
}

func TestWriterThatWaitsHearsOfTheClose(t *testing.T) {
	for _, way := range closes {
		if way.half&writeHalf == 0 {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c, peer := mustPair(t)
			fillBuffer(t, c)
			result := waiting(t, writeOne(c))
			if err := way.call(c); err != nil {
				t.Fatal(err)
			}
			wantOpError(t, "Write", receive(t, "the writer", result), "write", net.ErrClosed)
			if way.half == bothHalves {
				return
			}
			if _, err := peer.Write([]byte("on")); err != nil {
				t.Fatal(err)
			}
			peer.CloseWrite()
			wantEOF(t, c, "on")
		})
	}
}

func TestWriteThatACloseEndsSaysHowMuchWentOut(t *testing.T) {
	c, peer := mustPair(t)
	var n int
	result := waiting(t, func() (err error) {
		n, err = c.Write(make([]byte, 8<<20))
		return err
	})
	c.CloseWrite()
	wantOpError(t, "Write", receive(t, "the writer", result), "write", net.ErrClosed)
	got, err := io.Copy(io.Discard, peer)
	if got != int64(n) || n == 0 || err != nil {
		t.Errorf("the peer read %d bytes, %v; Write said %d", got, err, n)
	}
}

func TestOtherHalfWaitsOnThroughAClose(t *testing.T) {
	c, peer := mustPair(t)
	result := waiting(t, readOne(c))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		t.Fatalf("the reader came back: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	if _, err := peer.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the reader", result); err != nil {
		t.Error(err)
	}

	c, peer = mustPair(t)
	fillBuffer(t, c)
	result = waiting(t, writeOne(c))
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		t.Fatalf("the writer came back: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	go io.Copy(io.Discard, peer)
	if err := receive(t, "the writer", result); err != nil {
		t.Error(err)
	}
}

func TestCloseWakesAllWhoWait(t *testing.T) {
	c, _ := mustPair(t)
	fillBuffer(t, c)
	// Of many readers one waits in the poller, the others for their turn.
	errs := make(chan error, 20)
	for range 10 {
		go func() { errs <- readOne(c)() }()
		go func() { errs <- writeOne(c)() }()
	}
	waitInPoller(t, 2)
	c.Close()
	for range 20 {
		if err := receive(t, "those who wait", errs); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
}

func TestCloseOfAHalfWinsAgainstDeadlinesToCome(t *testing.T) {
	for _, h := range []half{readHalf, writeHalf} {
		for range 40 {
			c, _ := mustPair(t)
			do, closeHalf := readOne(c), c.CloseRead
			set := []func(time.Time) error{c.SetReadDeadline, c.SetDeadline}
			if h == writeHalf {
				fillBuffer(t, c)
				do, closeHalf = writeOne(c), c.CloseWrite
				set[0] = c.SetWriteDeadline
			}
			result := waiting(t, do)
			var quit atomic.Bool
			var wg sync.WaitGroup
			for _, set := range set {
				wg.Go(func() {
					for !quit.Load() {
						set(time.Now().Add(time.Hour))
						set(time.Time{})
					}
				})
			}
			runtime.Gosched()
			if err := closeHalf(); err != nil {
				t.Fatal(err)
			}
			err := receive(t, "one who waits in a closed half", result)
			quit.Store(true)
			wg.Wait()
			if !errors.Is(err, net.ErrClosed) {
				t.Fatalf("got %v, want net.ErrClosed", err)
			}
			c.Close()
		}
	}
}

func TestPeerThatHasGoneIsNoErrorOfAClose(t *testing.T) {
	for _, first := range closes {
		for _, second := range closes {
			c, peer := mustPair(t)
			peer.Close()
			if err := first.call(c); err != nil {
				t.Errorf("%s: %v", first.name, err)
			}
			if err := second.call(c); err != nil {
				t.Errorf("%s after %s: %v", second.name, first.name, err)
			}
		}
	}
}

func TestDeadlinePastEndsItsHalfOnly(t *testing.T) {
	c, peer := mustPair(t)
	in, out := c.Ports()
	past, none := time.Now().Add(-time.Second), time.Time{}
	for what, set := range map[string]func(time.Time) error{"the Conn": c.SetReadDeadline, "the port": in.SetReadDeadline} {
		if err := set(past); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		wantOpError(t, what, err, "read", os.ErrDeadlineExceeded)
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("%s: %#v, want a net.Error that is a timeout", what, err)
		}
		if _, err := c.Write([]byte("!")); err != nil {
			t.Errorf("%s: the output: %v", what, err)
		}
		if err := set(none); err != nil {
			t.Fatal(err)
		}
	}
	for what, set := range map[string]func(time.Time) error{"the Conn": c.SetWriteDeadline, "the port": out.SetWriteDeadline} {
		if err := set(past); err != nil {
			t.Fatal(err)
		}
		_, err := c.Write([]byte("!"))
		wantOpError(t, what, err, "write", os.ErrDeadlineExceeded)
		if _, err := peer.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("%s: the input: %d, %v", what, n, err)
		}
		if err := set(none); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte("!")); err != nil {
		t.Errorf("with the deadline taken back: %v", err)
	}
}

func TestDeadlineEndsThoseWhoWait(t *testing.T) {
	c, _ := mustPair(t)
	fillBuffer(t, c)
	reader, writer := waiting(t, readOne(c)), waiting(t, writeOne(c))
	if err := c.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	wantOpError(t, "Read", receive(t, "the reader", reader), "read", os.ErrDeadlineExceeded)
	wantOpError(t, "Write", receive(t, "the writer", writer), "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfBothHalvesSetsTheOneThatIsOpen(t *testing.T) {
	c, _ := mustPair(t)
	c.CloseWrite()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	wantOpError(t, "Read", err, "read", os.ErrDeadlineExceeded)

	c, _ = mustPair(t)
	c.CloseRead()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Write([]byte("!"))
	wantOpError(t, "Write", err, "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfWhatIsClosedIsErrClosed(t *testing.T) {
	c, _ := mustPair(t)
	c.CloseRead()
	wantOpError(t, "SetReadDeadline", c.SetReadDeadline(time.Time{}), "set", net.ErrClosed)
	c.CloseWrite()
	wantOpError(t, "SetWriteDeadline", c.SetWriteDeadline(time.Time{}), "set", net.ErrClosed)
	wantOpError(t, "SetDeadline", c.SetDeadline(time.Time{}), "set", net.ErrClosed)
}

func TestCloseOnClosesWhenTheContextIsDone(t *testing.T) {
	c, peer := mustPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.CloseOn(ctx)
	reader := waiting(t, readOne(c))
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatalf("before the context is done: %v", err)
	}
	cancel()
	wantOpError(t, "Read", receive(t, "the reader", reader), "read", net.ErrClosed)
	wantEOF(t, peer, "!")
}

func TestCloseOnAContextThatIsDoneCloses(t *testing.T) {
	c, peer := mustPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.CloseOn(ctx)
	wantEOF(t, peer, "")
}

func TestCloseOnSeveralContextsClosesWithTheFirst(t *testing.T) {
	c, peer := mustPair(t)
	first, cancel := context.WithCancel(t.Context())
	second := newLedger()
	c.CloseOn(context.Background())
	c.CloseOn(second)
	c.CloseOn(first)
	c.CloseOn(second)
	cancel()
	wantEOF(t, peer, "")
	waitFor(t, "the other context is let go of", func() bool { return second.entries() == 0 })
}

// A ledger is a context that never ends and knows what was left on it.
type ledger struct {
	context.Context
	done chan struct{}
	mu   sync.Mutex
	next int
	left map[int]func()
}

func newLedger() *ledger {
	return &ledger{Context: context.Background(), done: make(chan struct{}), left: make(map[int]func())}
}

func (l *ledger) Done() <-chan struct{} { return l.done }

// AfterFunc is what context.AfterFunc calls.
func (l *ledger) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.next
	l.next++
	l.left[id] = f
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, ok := l.left[id]
		delete(l.left, id)
		return ok
	}
}

func (l *ledger) entries() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.left)
}

func TestClosedConnLeavesNothingOnItsContext(t *testing.T) {
	for _, first := range closes {
		for _, second := range closes {
			ctx := newLedger()
			c, _ := mustPair(t)
			c.CloseOn(ctx)
			if n := ctx.entries(); n != 1 {
				t.Fatalf("%d entries, want 1: this test sees nothing", n)
			}
			first.call(c)
			second.call(c)
			want := 0
			if first.half|second.half != bothHalves {
				want = 1
			}
			if n := ctx.entries(); n != want {
				t.Errorf("after %s and %s: %d entries, want %d", first.name, second.name, n, want)
			}
			c.Close()
			c.CloseOn(ctx)
			if n := ctx.entries(); n != 0 {
				t.Errorf("CloseOn of a closed Conn: %d entries", n)
			}
		}
	}
}

func TestCloseOnRacingCloseLeavesNothingOnTheContext(t *testing.T) {
	ctx := newLedger()
	for range 200 {
		c, _ := mustPair(t)
		var wg sync.WaitGroup
		wg.Go(func() { c.CloseOn(ctx) })
		wg.Go(func() { c.CloseRead() })
		wg.Go(func() { c.CloseWrite() })
		wg.Wait()
	}
	if n := ctx.entries(); n != 0 {
		t.Errorf("%d entries", n)
	}
}

func TestRawConnFollowsTheHalves(t *testing.T) {
	c, peer := mustPair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	yes := func(uintptr) bool { return true }
	unused := func(uintptr) bool { t.Error("called with a descriptor"); return true }
	if err := raw.Read(yes); err != nil {
		t.Error(err)
	}
	if err := raw.Write(yes); err != nil {
		t.Error(err)
	}

	c.CloseRead()
	wantOpError(t, "Read", raw.Read(unused), "raw-read", net.ErrClosed)
	if err := raw.Write(yes); err != nil {
		t.Errorf("Write, with the input closed: %v", err)
	}
	if err := raw.Control(func(uintptr) {}); err != nil {
		t.Errorf("Control, with the input closed: %v", err)
	}
	c.CloseWrite()
	wantOpError(t, "Read", raw.Read(unused), "raw-read", net.ErrClosed)
	wantOpError(t, "Write", raw.Write(unused), "raw-write", net.ErrClosed)
	wantOpError(t, "Control", raw.Control(func(fd uintptr) { unused(fd) }), "raw-control", net.ErrClosed)

	raw, err = peer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	peer.CloseWrite()
	wantOpError(t, "Write", raw.Write(unused), "raw-write", net.ErrClosed)
	if err := raw.Read(yes); err != nil {
		t.Errorf("Read, with the output closed: %v", err)
	}
}

func TestRawConnThatWaitsEndsWithCloseAndDeadline(t *testing.T) {
	never := func(uintptr) bool { return false }
	for what, end := range map[string]struct {
		f    func(*Conn) error
		want error
	}{
		"a half's close": {func(c *Conn) error { return errors.Join(c.CloseRead(), c.CloseWrite()) }, net.ErrClosed},
		"Close":          {(*Conn).Close, net.ErrClosed},
		"a deadline":     {func(c *Conn) error { return c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		t.Run(what, func(t *testing.T) {
			c, _ := mustPair(t)
			fillBuffer(t, c)
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			reader := waiting(t, func() error { return raw.Read(never) })
			writer := waiting(t, func() error { return raw.Write(never) })
			if err := end.f(c); err != nil {
				t.Fatal(err)
			}
			wantOpError(t, "Read", receive(t, "the reader", reader), "raw-read", end.want)
			wantOpError(t, "Write", receive(t, "the writer", writer), "raw-write", end.want)
		})
	}
}

// watchStrangers opens and closes descriptors that have nothing to do with this
// package until quit is set, and fails the test if anyone else touches one.
func watchStrangers(t *testing.T, quit *atomic.Bool) {
	type end struct {
		fd  int
		ino uint64
	}
	identify := func(fd int) uint64 {
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			t.Errorf("a descriptor that is not this package's: fstat: %v", err)
		}
		return uint64(stat.Ino)
	}
	for !quit.Load() && !t.Failed() {
		var ends []end
		for range 4 {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				ends = append(ends, end{fd, identify(fd)})
			}
		}
		for range 3 {
			runtime.Gosched()
			for i, e := range ends {
				if identify(e.fd) != e.ino {
					t.Error("a descriptor that is not this package's is now something else")
				}
				b := []byte{byte(i)}
				// MSG_DONTWAIT: were it shut down or taken, nothing would be there.
				if err := unix.Sendto(e.fd, b, unix.MSG_DONTWAIT, nil); err != nil {
					t.Errorf("a socket that is not this package's: write: %v", err)
				}
				n, _, err := unix.Recvfrom(ends[i^1].fd, b, unix.MSG_DONTWAIT)
				if n != 1 || b[0] != byte(i) || err != nil {
					t.Errorf("a socket that is not this package's: read %d, %v", n, err)
				}
			}
		}
		for _, e := range ends {
			if err := unix.Close(e.fd); err != nil {
				t.Errorf("a descriptor that is not this package's: close: %v", err)
			}
		}
	}
}

func TestNoCallLandsOnADescriptorThatIsSomeoneElses(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
	l := mustListen(t, Backlog(100))
	var quit atomic.Bool
	var strangers sync.WaitGroup
	for range 2 {
		strangers.Go(func() { watchStrangers(t, &quit) })
	}
	uses := []func(c *Conn, ctx context.Context){
		func(c *Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.Write(make([]byte, 8)) },
		func(c *Conn, _ context.Context) { c.SetDeadline(time.Now().Add(time.Hour)) },
		func(c *Conn, ctx context.Context) { c.CloseOn(ctx) },
		func(c *Conn, _ context.Context) {
			if raw, err := c.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) { unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) })
			}
		},
	}
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range 150 {
				c, err := Connect(l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				s, err := l.AcceptContext(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithCancel(t.Context())
				var all []func()
				for _, conn := range []*Conn{c, s} {
					for _, use := range uses {
						all = append(all, func() { use(conn, ctx) })
					}
					for _, way := range closes {
						all = append(all, func() {
							if err := way.call(conn); err != nil {
								t.Errorf("%s: %v", way.name, err)
							}
						})
					}
				}
				all = append(all, cancel)
				rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				var wg sync.WaitGroup
				for _, f := range all {
					wg.Go(f)
				}
				wg.Wait()
			}
		})
	}
	users.Wait()
	quit.Store(true)
	strangers.Wait()
	l.Close()
	waitGoroutines(t, goroutines)
	waitDescriptors(t, descriptors)
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	c, peer := mustPair(t)
	in, out := c.Ports()
	b := make([]byte, 64)
	for what, ends := range map[string]struct {
		w io.Writer
		r io.Reader
	}{"the Conn": {c, peer}, "the ports": {peer, in}, "the ports again": {out, peer}} {
		n := testing.AllocsPerRun(100, func() {
			if _, err := ends.w.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := ends.r.Read(b); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func TestAddresses(t *testing.T) {
	l := mustListen(t)
	client := mustConnect(t, l.Addr().String())
	server := mustAccept(t, l)
	for what, test := range map[string]struct {
		addr net.Addr
		want string
	}{
		"the client's own": {client.LocalAddr(), ""},
		"the client's to":  {client.RemoteAddr(), l.Addr().String()},
		"the server's own": {server.LocalAddr(), l.Addr().String()},
		"the server's to":  {server.RemoteAddr(), ""},
	} {
		addr, ok := test.addr.(*net.UnixAddr)
		if !ok || addr.Name != test.want || addr.Net != "unix" || addr.Network() != "unix" {
			t.Errorf("%s: %#v, want the name %q", what, test.addr, test.want)
		}
	}
}

func TestAddressesStayAfterAClose(t *testing.T) {
	c, _ := mustPair(t)
	want := c.RemoteAddr().String()
	c.Close()
	if got := c.RemoteAddr().String(); got != want || c.LocalAddr().String() != "" {
		t.Errorf("from %q to %q, want from an unnamed one to %q", c.LocalAddr(), got, want)
	}
}

func TestBytesArriveWholeAndInOrder(t *testing.T) {
	c, peer := mustPair(t)
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	sent := make(chan error, 1)
	go func() {
		n, err := c.Write(data)
		if n != len(data) {
			err = errors.Join(err, fmt.Errorf("wrote %d", n))
		}
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v; want the %d that were written", len(got), err, len(data))
	}
	if err := receive(t, "the writer", sent); err != nil {
		t.Error(err)
	}
}

func TestWritesOfManyDoNotMix(t *testing.T) {
	c, peer := mustPair(t)
	const writers, size = 8, 1 << 20
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if _, err := c.Write(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
				t.Error(err)
			}
		})
	}
	go func() { wg.Wait(); c.CloseWrite() }()
	got, err := io.ReadAll(peer)
	if err != nil || len(got) != writers*size {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	for block := range slices.Chunk(got, size) {
		if bytes.Count(block, block[:1]) != size {
			t.Fatal("two writes are mixed")
		}
	}
}

func TestReadAndWriteOfNoBytes(t *testing.T) {
	c, peer := mustPair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	c.CloseWrite()
	wantEOF(t, peer, "")
}

func TestZeroConnIsAnError(t *testing.T) {
	var c Conn
	_, readErr := c.Read(make([]byte, 1))
	_, writeErr := c.Write(make([]byte, 1))
	_, rawErr := c.SyscallConn()
	for what, err := range map[string]error{
		"Read": readErr, "Write": writeErr, "SyscallConn": rawErr,
		"Close": c.Close(), "CloseRead": c.CloseRead(), "CloseWrite": c.CloseWrite(),
		"SetDeadline": c.SetDeadline(time.Time{}),
	} {
		if !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%s: %v, want os.ErrInvalid", what, err)
		}
	}
}

// closeStandard closes the standard descriptors of this process, which should be
// a child, until reopen is called, which tells those that were used meanwhile.
func closeStandard(t *testing.T) (reopen func() (used []int)) {
	t.Helper()
	var saved [3]int
	for fd := range saved {
		var err error
		if saved[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 10); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	return func() (used []int) {
		for fd, save := range saved {
			if isOpen(fd) {
				used = append(used, fd)
				unix.Close(fd)
			}
			// F_DUPFD takes the lowest number that is free: fd, as these go up.
			if got, err := unix.FcntlInt(uintptr(save), unix.F_DUPFD, fd); err != nil || got != fd {
				panic(fmt.Sprint(got, err))
			}
		}
		return used
	}
}

// A program that has closed its standard descriptors gets their numbers for its
// sockets. Of 1 and 2 os.File takes EPIPE for the end of the program.
func TestPeerThatHasGoneDoesNotEndAProgramWithoutStandardDescriptors(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	dir := shortDir(t)
	reopen := closeStandard(t)
	var trouble []string
	for i := range 4 {
		l, err := Listen(fmt.Sprint(dir, "/", i))
		if err != nil {
			trouble = append(trouble, err.Error())
			continue
		}
		c, err := Connect(l.Addr().String())
		if err != nil {
			trouble = append(trouble, err.Error())
			continue
		}
		s, err := l.AcceptContext(t.Context())
		if err != nil {
			trouble = append(trouble, err.Error())
			continue
		}
		writer, peer := c, s
		if i%2 == 1 {
			writer, peer = s, c
		}
		peer.Close()
		if _, err := writer.Write([]byte("!")); !errors.Is(err, syscall.EPIPE) {
			trouble = append(trouble, fmt.Sprintf("write: %v, want EPIPE", err))
		}
		// The others stay open, so that each round finds other numbers.
	}
	if used := reopen(); len(used) > 0 {
		trouble = append(trouble, fmt.Sprintf("descriptors %v are in use", used))
	}
	if len(trouble) > 0 {
		t.Error(strings.Join(trouble, "\n"))
	}
}

// What is unread counts against the peer's buffer; poll does not tell the peer
// that its output is shut down.
func TestCloseReadEndsTheWaitOfAPeerThatWrites(t *testing.T) {
	a, b := mustPair(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := a.Write(make([]byte, 8<<20))
		wrote <- err
	}()
	waitInPoller(t, 1)
	if err := b.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the peer's Write", wrote); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the peer's Write: %v, want EPIPE", err)
	}
}

func TestCloseOnAnewWithTheSameContextLeavesOneThing(t *testing.T) {
	a, _ := mustPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 1000 {
		a.CloseOn(ctx)
	}
	if n := len(a.custody); n != 1 {
		t.Errorf("the Conn holds %d things of one context", n)
	}
}
