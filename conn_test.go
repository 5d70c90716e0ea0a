//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

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

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// --- helpers ---

// fdOf returns the descriptor of c, to look at once c is closed.
func fdOf(t testing.TB, c *unixsock.Conn) (fd int) {
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

// isOpen reports whether fd is a descriptor. The answer concerns a Conn only
// while nothing else in the process opens any.
func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// fillBuffer writes to c until a write would wait, and returns how many bytes
// it wrote. It leaves no deadline behind.
func fillBuffer(t testing.TB, c *unixsock.Conn) (total int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64<<10)
	rawErr := raw.Write(func(fd uintptr) bool {
		for n := 0; err == nil || err == unix.EINTR; total += max(n, 0) {
			n, err = unix.Write(int(fd), b)
		}
		return true
	})
	if rawErr != nil || err != unix.EAGAIN {
		t.Fatalf("filling the buffer: %v, %v", rawErr, err)
	}
	return total
}

// waiting starts f, which is to wait in the poller, and returns its error's
// channel once it does.
func waiting(t testing.TB, f func() error) <-chan error {
	t.Helper()
	before := sockettest.GoroutinesIn("IO wait")
	result := make(chan error, 1)
	go func() { result <- f() }()
	sockettest.WaitInPoller(t, before+1)
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

// closes are all ways to close, and what each closes.
var closes = []struct {
	name string
	half sockettest.Half
	call func(*unixsock.Conn) error
}{
	{"Close", sockettest.BothHalves, (*unixsock.Conn).Close},
	{"CloseRead", sockettest.ReadHalf, (*unixsock.Conn).CloseRead},
	{"CloseWrite", sockettest.WriteHalf, (*unixsock.Conn).CloseWrite},
	{"in.Close", sockettest.ReadHalf, func(c *unixsock.Conn) error { in, _ := c.Ports(); return in.Close() }},
	{"out.Close", sockettest.WriteHalf, func(c *unixsock.Conn) error { _, out := c.Ports(); return out.Close() }},
}

// --- Read and Write ---

func TestPortsReadAndWrite(t *testing.T) {
	client, server := sockettest.Pair(t)
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
	c, _ := sockettest.Pair(t)
	in, out := c.Ports()
	in2, out2 := c.Ports()
	if in != in2 || out != out2 {
		t.Error("they differ")
	}
}

func TestBytesArriveWholeAndInOrder(t *testing.T) {
	c, peer := sockettest.Pair(t)
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
	if err := sockettest.Receive(t, "the writer", sent); err != nil {
		t.Error(err)
	}
}

func TestReadAndWriteOfNoBytes(t *testing.T) {
	c, peer := sockettest.Pair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("Write: %d, %v", n, err)
	}
	c.CloseWrite()
	wantEOF(t, peer, "")
}

func TestWritesOfManyDoNotMix(t *testing.T) {
	c, peer := sockettest.Pair(t)
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

// firstWrite is more than a Conn writes before the poller knows it.
const firstWrite = 64 << 10

// The first write that has to wait is where the poller comes in: what others
// write must not come in between.
func TestWritesDoNotMixWhenTheFirstHasToWait(t *testing.T) {
	rounds := 500
	if testing.Short() || sockettest.Race {
		rounds = 50
	}
	const writers, size = 4, firstWrite
	got := make([]byte, writers*size)
	for range rounds {
		c, peer := newPairT(t)
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

func TestReadAndWriteAllocateNothing(t *testing.T) {
	c, peer := sockettest.Pair(t)
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

// --- WriteBuffers ---

// cut returns data in pieces of n bytes, with empty ones among them.
func cut(data []byte, n int) net.Buffers {
	v := net.Buffers{nil}
	for piece := range slices.Chunk(data, n) {
		v = append(v, piece, []byte{})
	}
	return v
}

func TestWriteBuffersWritesAll(t *testing.T) {
	for _, c := range []struct{ size, piece int }{
		{0, 1}, {1, 1}, {100, 7}, {1024, 1}, {3*1024 + 1, 1}, {2 << 20, 100_000}, {2 << 20, 2 << 20},
	} {
		t.Run(fmt.Sprintf("%d bytes by %d", c.size, c.piece), func(t *testing.T) {
			near, far := sockettest.Pair(t)
			data := randomBytes(c.size)
			v := cut(data, c.piece)
			_, result := gathered(t, near, far)
			if n, err := near.WriteBuffers(&v); n != int64(c.size) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
			if len(v) != 0 {
				t.Errorf("%d buffers are left", len(v))
			}
			if !bytes.Equal(result(), data) {
				t.Error("other bytes came out")
			}
		})
	}
}

func TestWriteBuffersLeavesWhatItDidNotWrite(t *testing.T) {
	near, far := sockettest.Pair(t)
	data := randomBytes(4 << 20)
	v := cut(data, 5000)
	if err := near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := near.WriteBuffers(&v)
	wantError(t, err, os.ErrDeadlineExceeded, "write", "unix")
	near.Close()
	got, err := io.ReadAll(far)
	if int64(len(got)) != n || err != nil {
		t.Errorf("%d bytes came out of %d, %v", len(got), n, err)
	}
	if n == 0 || !bytes.Equal(slices.Concat(got, slices.Concat(v...)), data) {
		t.Error("what came out and what is left do not make up what was given")
	}
}

func TestWriteBuffersEndsWithAClose(t *testing.T) {
	for name, end := range map[string]func(c *unixsock.Conn) error{"Close": (*unixsock.Conn).Close, "CloseWrite": (*unixsock.Conn).CloseWrite} {
		t.Run(name, func(t *testing.T) {
			near, _ := sockettest.Pair(t)
			failed := make(chan error, 1)
			go func() {
				v := cut(make([]byte, 4<<20), 100_000)
				_, err := near.WriteBuffers(&v)
				failed <- err
			}()
			sockettest.WaitInPoller(t, 1)
			end(near)
			wantError(t, sockettest.Receive(t, "the end of WriteBuffers", failed), net.ErrClosed, "write", "unix")
			v := net.Buffers{[]byte("more")}
			n, err := near.WriteBuffers(&v)
			if n != 0 || len(v) != 1 {
				t.Errorf("wrote %d bytes, %d buffers are left", n, len(v))
			}
			wantError(t, err, net.ErrClosed, "write", "unix")
		})
	}
}

func TestWriteBuffersDoesNotMixWithOthers(t *testing.T) {
	const writers, rounds, size = 4, 5, 500_000
	near, far := sockettest.Pair(t)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				v := cut(bytes.Repeat([]byte{byte('a' + i)}, size), 999)
				if _, err := near.WriteBuffers(&v); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		wg.Wait()
		near.Close()
	}()
	message := make([]byte, size)
	for range writers * rounds {
		if _, err := io.ReadFull(far, message); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(message, message[:1]); n != size {
			t.Fatalf("only %d bytes of %d are of one writer", n, size)
		}
	}
}

func TestWriteBuffersIsOneSystemCall(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	near, far := sockettest.Pair(t)
	v := cut(make([]byte, 1000), 10)
	before := writesOfThread(t)
	if _, err := near.WriteBuffers(&v); err != nil {
		t.Fatal(err)
	}
	if n := writesOfThread(t) - before; n != 1 {
		t.Errorf("%d system calls", n)
	}
	if _, err := io.ReadFull(far, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
}

// writesOfThread returns how often this thread has called write(2) or its like.
func writesOfThread(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/io")
	if err != nil {
		t.Skip("no count of system calls: ", err)
	}
	_, count, _ := strings.Cut(string(b), "syscw: ")
	if _, err := fmt.Sscan(count, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// --- closing halves ---

func TestClosedOutputIsEOFForThePeer(t *testing.T) {
	for what, closeIt := range map[string]func(*unixsock.Conn) error{
		"CloseWrite": (*unixsock.Conn).CloseWrite,
		"the port":   func(c *unixsock.Conn) error { _, out := c.Ports(); return out.Close() },
		"Close":      (*unixsock.Conn).Close,
	} {
		c, peer := sockettest.Pair(t)
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
	for what, closeIt := range map[string]func(*unixsock.Conn) error{
		"CloseRead": (*unixsock.Conn).CloseRead,
		"the port":  func(c *unixsock.Conn) error { in, _ := c.Ports(); return in.Close() },
		"Close":     (*unixsock.Conn).Close,
	} {
		c, peer := sockettest.Pair(t)
		if err := closeIt(c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if what != "Close" && !sockettest.ReportsClosedInput(t) {
			continue
		}
		_, err := peer.Write([]byte("!"))
		wantOpError(t, what, err, "write", syscall.EPIPE)
	}
}

func TestOneHalfClosedLeavesTheOther(t *testing.T) {
	c, peer := sockettest.Pair(t)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, peer, "")
	if _, err := peer.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	peer.CloseWrite()
	wantEOF(t, c, "answer")

	c, peer = sockettest.Pair(t)
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("notice")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	wantEOF(t, peer, "notice")
}

func TestClosesInEveryOrder(t *testing.T) {
	l := sockettest.Listen(t)
	const length = 4
	total := 1
	for range length {
		total *= len(closes)
	}
	for i := range total {
		c := sockettest.Connect(t, l.Addr().String())
		peer := sockettest.Accept(t, l)
		fd := fdOf(t, c)
		var closed sockettest.Half
		order := ""
		for range length {
			way := closes[i%len(closes)]
			i /= len(closes)
			order += " " + way.name
			if err := way.call(c); err != nil {
				t.Fatalf("%s: %v", order, err)
			}
			closed |= way.half

			if got, want := isOpen(fd), closed != sockettest.BothHalves; got != want {
				t.Fatalf("%s: the descriptor is open: %v, want %v", order, got, want)
			}
			if closed&sockettest.ReadHalf != 0 {
				_, err := c.Read(make([]byte, 1))
				wantOpError(t, order, err, "read", net.ErrClosed)
			} else if _, err := peer.Write([]byte("!")); err != nil {
				t.Errorf("%s: the peer's write: %v", order, err)
			} else if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("%s: read %d, %v", order, n, err)
			}
			if closed&sockettest.WriteHalf != 0 {
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

func TestPeerThatHasGoneIsNoErrorOfAClose(t *testing.T) {
	for _, first := range closes {
		for _, second := range closes {
			c, peer := sockettest.Pair(t)
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

// --- closing halves while calls wait ---

func TestCloseEndsAWaitingRead(t *testing.T) {
	for _, way := range closes {
		if way.half&sockettest.ReadHalf == 0 {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c, peer := sockettest.Pair(t)
			result := waiting(t, readOne(c))
			if err := way.call(c); err != nil {
				t.Fatal(err)
			}
			wantOpError(t, "Read", sockettest.Receive(t, "the reader", result), "read", net.ErrClosed)
			if way.half == sockettest.BothHalves {
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

func TestCloseEndsAWaitingWrite(t *testing.T) {
	for _, way := range closes {
		if way.half&sockettest.WriteHalf == 0 {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			c, peer := sockettest.Pair(t)
			fillBuffer(t, c)
			result := waiting(t, writeOne(c))
			if err := way.call(c); err != nil {
				t.Fatal(err)
			}
			wantOpError(t, "Write", sockettest.Receive(t, "the writer", result), "write", net.ErrClosed)
			if way.half == sockettest.BothHalves {
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

func TestWriteEndedByCloseReturnsTheExactCount(t *testing.T) {
	c, peer := sockettest.Pair(t)
	var n int
	result := waiting(t, func() (err error) {
		n, err = c.Write(make([]byte, 8<<20))
		return err
	})
	c.CloseWrite()
	wantOpError(t, "Write", sockettest.Receive(t, "the writer", result), "write", net.ErrClosed)
	got, err := io.Copy(io.Discard, peer)
	if got != int64(n) || n == 0 || err != nil {
		t.Errorf("the peer read %d bytes, %v; Write said %d", got, err, n)
	}
}

func TestCloseWakesEveryWaitingCall(t *testing.T) {
	c, _ := sockettest.Pair(t)
	fillBuffer(t, c)
	// Of many readers one waits in the poller, the others for their turn.
	errs := make(chan error, 20)
	for range 10 {
		go func() { errs <- readOne(c)() }()
		go func() { errs <- writeOne(c)() }()
	}
	sockettest.WaitInPoller(t, 2)
	c.Close()
	for range 20 {
		if err := sockettest.Receive(t, "the waiting call", errs); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
}

func TestOtherHalfKeepsWaitingThroughAClose(t *testing.T) {
	c, peer := sockettest.Pair(t)
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
	if err := sockettest.Receive(t, "the reader", result); err != nil {
		t.Error(err)
	}

	c, peer = sockettest.Pair(t)
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
	if err := sockettest.Receive(t, "the writer", result); err != nil {
		t.Error(err)
	}
}

// What is unread counts against the peer's buffer; poll does not tell the peer
// that its output is shut down.
func TestCloseReadEndsTheWaitOfAPeerThatWrites(t *testing.T) {
	if !sockettest.ReportsClosedInput(t) {
		t.Skip("the kernel does not report a closed input to the peer")
	}
	a, b := sockettest.Pair(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := a.Write(make([]byte, 8<<20))
		wrote <- err
	}()
	sockettest.WaitInPoller(t, 1)
	if err := b.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := sockettest.Receive(t, "the peer's Write", wrote); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the peer's Write: %v, want EPIPE", err)
	}
}

// A half that is closed during the registration must not keep a call waiting in it:
// on Linux no event would tell, of a socket that is half full, that it is closed.
func TestClosingAHalfEndsTheFirstWait(t *testing.T) {
	rounds := 5000
	if testing.Short() || sockettest.Race {
		rounds = 500
	}
	for what, half := range map[string]struct {
		close func(*unixsock.Conn) error
		wait  func(syscall.RawConn) error
	}{
		"input":  {(*unixsock.Conn).CloseRead, func(raw syscall.RawConn) error { return raw.Read(func(uintptr) bool { return false }) }},
		"output": {(*unixsock.Conn).CloseWrite, func(raw syscall.RawConn) error { return raw.Write(func(uintptr) bool { return false }) }},
	} {
		t.Run(what, func(t *testing.T) {
			for range rounds {
				c, peer := newPairT(t)
				if err := c.SetWriteBuffer(4 << 10); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Write(make([]byte, 1<<10)); n != 1<<10 || err != nil {
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
				if err := sockettest.Receive(t, "the wait", ended); !errors.Is(err, net.ErrClosed) {
					t.Fatal(err)
				}
				c.Close()
				peer.Close()
			}
		})
	}
}

func TestCloseOfAHalfWinsAgainstDeadlinesToCome(t *testing.T) {
	for _, h := range []sockettest.Half{sockettest.ReadHalf, sockettest.WriteHalf} {
		for range 40 {
			c, _ := sockettest.Pair(t)
			do, closeHalf := readOne(c), c.CloseRead
			set := []func(time.Time) error{c.SetReadDeadline, c.SetDeadline}
			if h == sockettest.WriteHalf {
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
			err := sockettest.Receive(t, "the call that waits in a closed half", result)
			quit.Store(true)
			wg.Wait()
			if !errors.Is(err, net.ErrClosed) {
				t.Fatalf("got %v, want net.ErrClosed", err)
			}
			c.Close()
		}
	}
}

// --- deadlines ---

func TestDeadlinePastEndsItsHalfOnly(t *testing.T) {
	c, peer := sockettest.Pair(t)
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

func TestDeadlineEndsWaitingCalls(t *testing.T) {
	c, _ := sockettest.Pair(t)
	fillBuffer(t, c)
	reader, writer := waiting(t, readOne(c)), waiting(t, writeOne(c))
	if err := c.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	wantOpError(t, "Read", sockettest.Receive(t, "the reader", reader), "read", os.ErrDeadlineExceeded)
	wantOpError(t, "Write", sockettest.Receive(t, "the writer", writer), "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfBothHalvesSetsTheOneThatIsOpen(t *testing.T) {
	c, _ := sockettest.Pair(t)
	c.CloseWrite()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	wantOpError(t, "Read", err, "read", os.ErrDeadlineExceeded)

	c, _ = sockettest.Pair(t)
	c.CloseRead()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err = c.Write([]byte("!"))
	wantOpError(t, "Write", err, "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfWhatIsClosedIsErrClosed(t *testing.T) {
	c, _ := sockettest.Pair(t)
	c.CloseRead()
	wantOpError(t, "SetReadDeadline", c.SetReadDeadline(time.Time{}), "set", net.ErrClosed)
	c.CloseWrite()
	wantOpError(t, "SetWriteDeadline", c.SetWriteDeadline(time.Time{}), "set", net.ErrClosed)
	wantOpError(t, "SetDeadline", c.SetDeadline(time.Time{}), "set", net.ErrClosed)
}

// --- CloseOn ---

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

func TestCloseOnClosesWhenTheContextIsDone(t *testing.T) {
	c, peer := sockettest.Pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.CloseOn(ctx)
	reader := waiting(t, readOne(c))
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatalf("before the context is done: %v", err)
	}
	cancel()
	wantOpError(t, "Read", sockettest.Receive(t, "the reader", reader), "read", net.ErrClosed)
	wantEOF(t, peer, "!")
}

func TestCloseOnAContextThatIsDoneCloses(t *testing.T) {
	c, peer := sockettest.Pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.CloseOn(ctx)
	wantEOF(t, peer, "")
}

func TestCloseOnTheLastOfSeveralContextsCloses(t *testing.T) {
	c, peer := sockettest.Pair(t)
	first := newLedger()
	last, cancel := context.WithCancel(t.Context())
	c.CloseOn(context.Background())
	c.CloseOn(first)
	c.CloseOn(last)
	cancel()
	wantEOF(t, peer, "")
	sockettest.WaitFor(t, "the first context still holds the Conn", func() bool { return first.entries() == 0 })
}

func TestCloseOnOfTheSameContextLeavesOneEntry(t *testing.T) {
	c, _ := sockettest.Pair(t)
	ctx := newLedger()
	for range 1000 {
		c.CloseOn(ctx)
	}
	if n := ctx.entries(); n != 1 {
		t.Errorf("1000 calls of CloseOn left %d entries on the context, want 1", n)
	}
}

func TestCloseOnReplacesTheCustodian(t *testing.T) {
	c, peer := sockettest.Pair(t)
	first, second := newLedger(), newLedger()
	c.CloseOn(first)
	c.CloseOn(second)
	if n := first.entries(); n != 0 {
		t.Errorf("CloseOn with another context left %d entries on the first, want 0", n)
	}
	if n := second.entries(); n != 1 {
		t.Errorf("CloseOn left %d entries on its context, want 1", n)
	}
	mustConverse(t, c, peer)
}

func TestEndOfAReplacedCustodianLeavesTheConnOpen(t *testing.T) {
	c, peer := sockettest.Pair(t)
	first, cancel := context.WithCancel(t.Context())
	c.CloseOn(first)
	c.CloseOn(newLedger())
	cancel()
	mustConverse(t, c, peer)
}

func TestCloseOnBackgroundReleasesTheConn(t *testing.T) {
	c, peer := sockettest.Pair(t)
	ctx := newLedger()
	c.CloseOn(ctx)
	c.CloseOn(context.Background())
	if n := ctx.entries(); n != 0 {
		t.Errorf("CloseOn(context.Background()) left %d entries on the custodian, want 0", n)
	}
	mustConverse(t, c, peer)
}

// TestCloseOnReplacedAsTheOldContextEnds replaces a custodian while its context ends. If
// CloseOn finds the connection open, the old context must not close it any more.
func TestCloseOnReplacedAsTheOldContextEnds(t *testing.T) {
	rounds := 10000
	if testing.Short() {
		rounds = 500
	}
	next := newLedger()
	for range rounds {
		c, peer, err := unixsock.Pair()
		if err != nil {
			t.Fatal(err)
		}
		old, cancel := context.WithCancel(t.Context())
		c.CloseOn(old)
		go cancel()
		c.CloseOn(next)
		if next.entries() == 1 { // it was open
			<-old.Done()
			for range 3 {
				runtime.Gosched()
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatalf("Write after a CloseOn that replaced an ended context: got %v, want no error", err)
			}
		}
		c.Close()
		peer.Close()
		if n := next.entries(); n != 0 {
			t.Fatalf("a closed Conn left %d entries on its custodian, want 0", n)
		}
	}
}

func TestClosedConnLeavesNothingOnItsContext(t *testing.T) {
	for _, first := range closes {
		for _, second := range closes {
			ctx := newLedger()
			c, _ := sockettest.Pair(t)
			c.CloseOn(ctx)
			if n := ctx.entries(); n != 1 {
				t.Fatalf("%d entries, want 1: this test sees nothing", n)
			}
			first.call(c)
			second.call(c)
			want := 0
			if first.half|second.half != sockettest.BothHalves {
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
		c, _ := sockettest.Pair(t)
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

// --- descriptors and the poller ---

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

func TestNoCallUsesAReusedDescriptor(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(100))
	var quit atomic.Bool
	var strangers sync.WaitGroup
	for range 2 {
		strangers.Go(func() { watchStrangers(t, &quit) })
	}
	uses := []func(c *unixsock.Conn, ctx context.Context){
		func(c *unixsock.Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.Write(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.SetDeadline(time.Now().Add(time.Hour)) },
		func(c *unixsock.Conn, ctx context.Context) { c.CloseOn(ctx) },
		func(c *unixsock.Conn, _ context.Context) {
			if raw, err := c.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) { unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) })
			}
		},
	}
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for range 150 {
				c, err := unixsock.Connect(l.Addr().String())
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
				for _, conn := range []*unixsock.Conn{c, s} {
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
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// Whichever call is the first on a new connection, and whichever calls come in between,
// everything ends, and no descriptor is left.
func TestRegistrationRacesWithClosesAndDeadlines(t *testing.T) {
	rounds := 3000
	if testing.Short() || sockettest.Race {
		rounds = 300
	}
	descriptors := sockettest.CountDescriptors(t)
	uses := []func(c *unixsock.Conn, ctx context.Context){
		func(c *unixsock.Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.Write(make([]byte, firstWrite)) }, // more than fits
		func(c *unixsock.Conn, _ context.Context) { c.Write(make([]byte, 1<<19)) },
		func(c *unixsock.Conn, _ context.Context) { c.ReadFrom(bytes.NewReader(make([]byte, 8))) },
		func(c *unixsock.Conn, _ context.Context) { c.SetDeadline(time.Now().Add(time.Hour)) },
		func(c *unixsock.Conn, _ context.Context) { c.PeerCred() },
		func(c *unixsock.Conn, _ context.Context) {
			if f, err := c.File(); err == nil {
				f.Close()
			}
		},
		func(c *unixsock.Conn, ctx context.Context) { c.CloseOn(ctx) },
		func(c *unixsock.Conn, _ context.Context) { c.CloseRead() },
		func(c *unixsock.Conn, _ context.Context) { c.CloseWrite() },
		func(c *unixsock.Conn, _ context.Context) { c.Close() },
	}
	for range rounds {
		c, peer, err := unixsock.Pair()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetWriteBuffer(firstWrite / 4); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		all := slices.Clone(uses)
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var wg sync.WaitGroup
		for _, use := range all {
			wg.Go(func() { use(c, ctx) })
		}
		sockettest.Returns(t, "a use of a connection that is closed", wg.Wait)
		cancel()
		peer.Close()
	}
	sockettest.WaitDescriptors(t, descriptors)
}

func TestUnreachableConnectionIsClosed(t *testing.T) {
	for what, use := range map[string]func(t *testing.T, c, peer *unixsock.Conn){
		"new": func(*testing.T, *unixsock.Conn, *unixsock.Conn) {},
		"with the poller": func(t *testing.T, c, peer *unixsock.Conn) {
			if err := c.SetDeadline(time.Time{}); err != nil {
				t.Error(err)
			}
		},
		"in use": func(t *testing.T, c, peer *unixsock.Conn) { mustTalk(t, c, peer) },
		"under an unreachable custodian": func(_ *testing.T, c, _ *unixsock.Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			c.CloseOn(ctx)
			runtime.KeepAlive(cancel)
		},
	} {
		t.Run(what, func(t *testing.T) {
			peer := func() *unixsock.Conn {
				c, peer, err := unixsock.Pair()
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
			sockettest.WaitFor(t, "it stays open", func() bool {
				runtime.GC()
				return len(end) > 0
			})
			if err := <-end; err != io.EOF {
				t.Error(err)
			}
		})
	}
}

// The runtime's poller wants descriptors of its own when it starts, and ends the
// process if there are none. A test would have it started: the child runs none.
func TestPollerStartsBeforeDescriptorsRunOut(t *testing.T) {
	cmd := sockettest.HelperCommand(t, nil, "wait without descriptors")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// helpWaitWithoutDescriptors takes all descriptors and then has connections wait.
func helpWaitWithoutDescriptors([]string) error {
	var pairs [2][2]*unixsock.Conn
	for i := range pairs {
		c, peer, err := unixsock.Pair()
		if err != nil {
			return err
		}
		pairs[i] = [2]*unixsock.Conn{c, peer}
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

// --- SyscallConn ---

func TestRawConnFollowsTheHalves(t *testing.T) {
	c, peer := sockettest.Pair(t)
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
		f    func(*unixsock.Conn) error
		want error
	}{
		"a half's close": {func(c *unixsock.Conn) error { return errors.Join(c.CloseRead(), c.CloseWrite()) }, net.ErrClosed},
		"Close":          {(*unixsock.Conn).Close, net.ErrClosed},
		"a deadline":     {func(c *unixsock.Conn) error { return c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		t.Run(what, func(t *testing.T) {
			c, _ := sockettest.Pair(t)
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
			wantOpError(t, "Read", sockettest.Receive(t, "the reader", reader), "raw-read", end.want)
			wantOpError(t, "Write", sockettest.Receive(t, "the writer", writer), "raw-write", end.want)
		})
	}
}

// --- buffer sizes ---

func TestBufferSizesAreSet(t *testing.T) {
	near, _ := sockettest.Pair(t)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set func(bytes int) error
		opt int
	}{
		"SetReadBuffer":  {near.SetReadBuffer, unix.SO_RCVBUF},
		"SetWriteBuffer": {near.SetWriteBuffer, unix.SO_SNDBUF},
	} {
		sizes := make([]int, 2)
		for i, ask := range []int{8 << 10, 64 << 10} {
			if err := c.set(ask); err != nil {
				t.Fatal(name, err)
			}
			raw.Control(func(fd uintptr) { sizes[i], err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, c.opt) })
			if err != nil || sizes[i] < ask {
				t.Errorf("%s(%d) set %d, %v", name, ask, sizes[i], err)
			}
		}
		if sizes[0] >= sizes[1] {
			t.Errorf("%s made no difference: %d", name, sizes)
		}
	}
	near.CloseRead()
	wantError(t, near.SetReadBuffer(8<<10), net.ErrClosed, "set", "unix")
	near.Close()
	wantError(t, near.SetWriteBuffer(8<<10), net.ErrClosed, "set", "unix")
}

// --- addresses ---

func TestAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := sockettest.Accept(t, l)
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
	c, _ := sockettest.Pair(t)
	want := c.RemoteAddr().String()
	c.Close()
	if got := c.RemoteAddr().String(); got != want || c.LocalAddr().String() != "" {
		t.Errorf("from %q to %q, want from an unnamed one to %q", c.LocalAddr(), got, want)
	}
}

// --- credentials ---

// peerCredOf returns the credentials of c's peer. The test is skipped if the
// platform cannot tell.
func peerCredOf(t testing.TB, c *unixsock.Conn) unixsock.Cred {
	t.Helper()
	cred, err := c.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// wantCred makes sure that it is process pid of this user that is there.
func wantCred(t testing.TB, c *unixsock.Conn, pid int) {
	t.Helper()
	got := peerCredOf(t, c)
	if runtime.GOOS != "linux" && got.PID == 0 {
		pid = 0
	}
	if want := (unixsock.Cred{PID: pid, UID: os.Getuid(), GID: os.Getgid()}); got != want {
		t.Errorf("at the other end is %+v, want %+v", got, want)
	}
}

func TestPeerCredIsThisProcess(t *testing.T) {
	sockettest.CheckDescriptors(t)
	client, server := sockettest.Pair(t)
	wantCred(t, client, os.Getpid())
	wantCred(t, server, os.Getpid())
}

func TestPeerCredOfAPair(t *testing.T) {
	c1, c2, err := unixsock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	defer c2.Close()
	wantCred(t, c1, os.Getpid())
	wantCred(t, c2, os.Getpid())
}

func TestPeerCredOfOtherProcesses(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t)
	client := sockettest.StartHelper(t, nil, "connect")
	client.Tell(l.Addr().String())
	client.Expect("connected")
	wantCred(t, sockettest.Accept(t, l), client.Cmd.Process.Pid)

	server := sockettest.StartHelper(t, nil, "serve", l.Addr().String()+"2")
	server.Expect("serving")
	wantCred(t, sockettest.Connect(t, l.Addr().String()+"2"), server.Cmd.Process.Pid)
}

func TestPeerCredAfterThePeerIsGone(t *testing.T) {
	client, server := sockettest.Pair(t)
	cred := peerCredOf(t, server)
	client.Close()
	if got := peerCredOf(t, server); got.UID != cred.UID || got.GID != cred.GID {
		t.Errorf("it was %+v, and is %+v", cred, got)
	}
}

func TestPeerCredOfAKilledProcess(t *testing.T) {
	l := sockettest.Listen(t)
	h := sockettest.StartHelper(t, nil, "connect")
	h.Tell(l.Addr().String())
	h.Expect("connected")
	pid := h.Cmd.Process.Pid
	h.Kill()
	// It is accepted only now.
	wantCred(t, sockettest.Accept(t, l), pid)
}

func TestPeerCredAfterOneHalfIsClosed(t *testing.T) {
	client, server := sockettest.Pair(t)
	client.CloseWrite()
	wantCred(t, client, os.Getpid())
	server.CloseRead()
	wantCred(t, server, os.Getpid())
}

func TestPeerCredAfterClose(t *testing.T) {
	client, server := sockettest.Pair(t)
	peerCredOf(t, client)
	client.Close()
	server.CloseRead()
	server.CloseWrite()
	for _, c := range []*unixsock.Conn{client, server} {
		cred, err := c.PeerCred()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", err)
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Errorf("error %#v, want a *net.OpError", err)
		}
		if cred != (unixsock.Cred{}) {
			t.Errorf("with an error comes %+v", cred)
		}
	}
}

// --- nil and zero values ---

func TestNilAndZeroConnsReturnErrors(t *testing.T) {
	for name, c := range map[string]*unixsock.Conn{"nil": nil, "zero": new(unixsock.Conn)} {
		in, out := c.Ports()
		b := make([]byte, 1)
		calls := map[string]func() error{
			"Read":                    func() error { _, err := c.Read(b); return err },
			"Write":                   func() error { _, err := c.Write(b); return err },
			"ReadFrom":                func() error { _, err := c.ReadFrom(bytes.NewReader(b)); return err },
			"WriteTo":                 func() error { _, err := c.WriteTo(io.Discard); return err },
			"WriteBuffers":            func() error { _, err := c.WriteBuffers(&net.Buffers{b}); return err },
			"WriteFiles":              func() error { _, err := c.WriteFiles(b); return err },
			"WriteFiles of a file":    func() error { _, err := c.WriteFiles(b, os.Stdin); return err },
			"ReadFiles":               func() error { _, _, err := c.ReadFiles(b, 1); return err },
			"SyscallConn":             func() error { _, err := c.SyscallConn(); return err },
			"File":                    func() error { _, err := c.File(); return err },
			"PeerCred":                func() error { _, err := c.PeerCred(); return err },
			"PeerGroups":              func() error { _, err := c.PeerGroups(); return err },
			"SetDeadline":             func() error { return c.SetDeadline(time.Time{}) },
			"SetReadDeadline":         func() error { return c.SetReadDeadline(time.Time{}) },
			"SetWriteDeadline":        func() error { return c.SetWriteDeadline(time.Time{}) },
			"SetReadBuffer":           func() error { return c.SetReadBuffer(1 << 16) },
			"SetWriteBuffer":          func() error { return c.SetWriteBuffer(1 << 16) },
			"Close":                   c.Close,
			"CloseRead":               c.CloseRead,
			"CloseWrite":              c.CloseWrite,
			"InputPort.Read":          func() error { _, err := in.Read(b); return err },
			"InputPort.WriteTo":       func() error { _, err := in.WriteTo(io.Discard); return err },
			"InputPort.SetDeadline":   func() error { return in.SetReadDeadline(time.Time{}) },
			"InputPort.Close":         in.Close,
			"OutputPort.Write":        func() error { _, err := out.Write(b); return err },
			"OutputPort.ReadFrom":     func() error { _, err := out.ReadFrom(bytes.NewReader(b)); return err },
			"OutputPort.SetDeadline":  func() error { return out.SetWriteDeadline(time.Time{}) },
			"OutputPort.Close":        out.Close,
			"Close as a net.Conn":     func() error { return net.Conn(c).Close() },
			"io.Copy to a Conn":       func() error { _, err := io.Copy(c, bytes.NewReader(b)); return err },
			"io.Copy from an InPort":  func() error { _, err := io.Copy(io.Discard, in); return err },
			"io.Copy between the two": func() error { _, err := io.Copy(c, c); return err },
		}
		for call, do := range calls {
			var opErr *net.OpError
			if err := do(); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
				t.Errorf("%s of a %s Conn: got %v, want an OpError with os.ErrInvalid", call, name, err)
			}
		}
		c.CloseOn(t.Context())
		if local, remote := c.LocalAddr(), c.RemoteAddr(); local != nil || remote != nil {
			t.Errorf("addresses of a %s Conn: got %v and %v, want nil", name, local, remote)
		}
	}
}

// --- roles of helper processes ---

// helpConnect connects to each path that it reads, and stays connected until it
// reads the next one.
func helpConnect([]string) error {
	var path string
	for {
		if _, err := fmt.Scanln(&path); err != nil {
			return nil
		}
		c, err := unixsock.Connect(path)
		switch {
		case errors.Is(err, os.ErrPermission):
			fmt.Println("permission denied")
		case err != nil:
			return err
		default:
			fmt.Println("connected")
			defer c.Close()
		}
	}
}

// helpServe listens at a path, or on the descriptor that it has inherited if
// that is "inherited", and answers each client with its pid.
func helpServe(args []string) error {
	var l *unixsock.Listener
	var err error
	if args[0] == "inherited" {
		f := os.NewFile(3, "inherited")
		l, err = unixsock.FileListener(f)
		f.Close()
	} else {
		l, err = unixsock.Listen(args[0], unixsock.ReplaceStale())
	}
	if err != nil {
		return err
	}
	fmt.Println("serving")
	go func() {
		sockettest.UntilEOF()
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprint(c, os.Getpid())
		c.Close()
	}
}
