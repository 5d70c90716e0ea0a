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
	"path/filepath"
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

// fdOf returns the number of c's descriptor, for a check after c is closed.
func fdOf(t testing.TB, c *unixsock.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatalf("RawConn.Control: %v", err)
	}
	return fd
}

// isOpen reports whether fd is an open descriptor. The result says whether a
// Conn is open only while nothing else in the process opens descriptors, which
// could get the same number.
func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// fillBuffer writes to c until a write would block, and returns how many bytes
// it wrote. It does not change the deadlines of c.
func fillBuffer(t testing.TB, c *unixsock.Conn) (total int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	b := make([]byte, 64<<10)
	rawErr := raw.Write(func(fd uintptr) bool {
		for n := 0; err == nil || err == unix.EINTR; total += max(n, 0) {
			n, err = unix.Write(int(fd), b)
		}
		return true
	})
	if rawErr != nil || err != unix.EAGAIN {
		t.Fatalf("write(2) until the buffer is full: got %v from RawConn.Write, %v from write(2); want nil, EAGAIN", rawErr, err)
	}
	return total
}

// waiting calls f in a goroutine, and fails the test if f returns within 5 ms. On a busy
// machine f may begin later: what a test asserts then must hold, too. The channel yields
// the error of f.
func waiting(t testing.TB, f func() error) <-chan error {
	t.Helper()
	result := make(chan error, 1)
	go func() { result <- f() }()
	select {
	case err := <-result:
		t.Fatalf("call that has to wait: got %v, want it to wait", err)
	case <-time.After(5 * time.Millisecond): // nothing must come for a while
	}
	return result
}

// readOne returns a function that reads 1 byte from r.
func readOne(r io.Reader) func() error {
	return func() error {
		_, err := r.Read(make([]byte, 1))
		return err
	}
}

// writeOne returns a function that writes 1 byte to w.
func writeOne(w io.Writer) func() error {
	return func() error {
		_, err := w.Write(make([]byte, 1))
		return err
	}
}

// wantOpError fails the test unless err is a *net.OpError of op with both
// addresses, and errors.Is finds want in it. done is what returned err.
func wantOpError(t testing.TB, done string, err error, op string, want error) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || opErr.Source == nil || opErr.Addr == nil {
		t.Errorf("%s: got %#v, want a net.OpError of %s on unix with both addresses", done, err, op)
	}
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", done, err, want)
	}
}

// wantEOF fails the test unless r yields exactly data and then io.EOF.
func wantEOF(t testing.TB, r io.Reader, data string) {
	t.Helper()
	b, err := io.ReadAll(r)
	if string(b) != data || err != nil {
		t.Errorf("ReadAll: got %q, %v; want %q, nil", b, err, data)
	}
}

// closes lists the ways to close a Conn, and the half that each closes.
var closes = []struct {
	name string
	half sockettest.Half
	call func(*unixsock.Conn) error
}{
	{"Close", sockettest.BothHalves, (*unixsock.Conn).Close},
	{"CloseRead", sockettest.ReadHalf, (*unixsock.Conn).CloseRead},
	{"CloseWrite", sockettest.WriteHalf, (*unixsock.Conn).CloseWrite},
	{"InputPort.Close", sockettest.ReadHalf, func(c *unixsock.Conn) error { in, _ := c.Ports(); return in.Close() }},
	{"OutputPort.Close", sockettest.WriteHalf, func(c *unixsock.Conn) error { _, out := c.Ports(); return out.Close() }},
}

// --- Read and Write ---

func TestPortsReadAndWrite(t *testing.T) {
	client, server := sockettest.Pair(t)
	in, out := client.Ports()
	peerIn, peerOut := server.Ports()
	for _, way := range []struct {
		name string
		r    io.Reader
		w    io.Writer
	}{{"client to server", peerIn, out}, {"server to client", in, peerOut}} {
		if _, err := io.WriteString(way.w, "hello"); err != nil {
			t.Fatalf("Write to the OutputPort, %s: %v", way.name, err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(way.r, b); string(b) != "hello" || err != nil {
			t.Fatalf("ReadFull from the InputPort, %s: got %q, %v; want %q, nil", way.name, b, err, "hello")
		}
	}
}

func TestPortsAreTheSameEachTime(t *testing.T) {
	c, _ := sockettest.Pair(t)
	in, out := c.Ports()
	in2, out2 := c.Ports()
	if in != in2 || out != out2 {
		t.Errorf("second call of Ports: got %p, %p; want %p, %p as from the first", in2, out2, in, out)
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
			err = errors.Join(err, fmt.Errorf("got the count %d, want %d", n, len(data)))
		}
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(peer)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("ReadAll at the peer: got %d bytes, %v; want the %d bytes that were written, nil", len(got), err, len(data))
	}
	if err := sockettest.Receive(t, "the writer", sent); err != nil {
		t.Errorf("Write of %d bytes and CloseWrite: %v", len(data), err)
	}
}

func TestReadAndWriteOfNoBytes(t *testing.T) {
	c, peer := sockettest.Pair(t)
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of 0 bytes: got %d, %v; want 0, nil", n, err)
	}
	if n, err := c.Write(nil); n != 0 || err != nil {
		t.Errorf("Write of 0 bytes: got %d, %v; want 0, nil", n, err)
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
				t.Errorf("Write of %d bytes by writer %d: got %v, want nil", size, i, err)
			}
		})
	}
	go func() { wg.Wait(); c.CloseWrite() }()
	got, err := io.ReadAll(peer)
	if err != nil || len(got) != writers*size {
		t.Fatalf("ReadAll at the peer: got %d bytes, %v; want %d bytes, nil", len(got), err, writers*size)
	}
	for block := range slices.Chunk(got, size) {
		if n := bytes.Count(block, block[:1]); n != size {
			t.Fatalf("%d concurrent Writes of %d bytes: got a block with %d bytes of its first writer, want %d", writers, size, n, size)
		}
	}
}

// TestWritesDoNotMixWhenTheFirstHasToWait writes concurrently to new connections.
// The first Write that has to wait registers the Conn with the poller. The other
// goroutines must not write between the parts of that Write.
func TestWritesDoNotMixWhenTheFirstHasToWait(t *testing.T) {
	rounds := 500
	if testing.Short() || sockettest.Race {
		rounds = 50
	}
	const writers, size = 4, 64 << 10
	got := make([]byte, writers*size)
	for range rounds {
		c, peer := newPairT(t)
		// Only a part of a Write fits into the buffer.
		if err := c.SetWriteBuffer(size / 4); err != nil {
			t.Fatalf("SetWriteBuffer: %v", err)
		}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				message := bytes.Repeat([]byte{byte(i)}, size)
				if n, err := c.Write(message); n != size || err != nil {
					t.Errorf("Write of %d bytes by writer %d: got %d, %v; want %d, nil", size, i, n, err, size)
				}
			})
		}
		if n, err := io.ReadFull(peer, got); err != nil {
			t.Fatalf("ReadFull of all Writes: got %d, %v; want %d, nil", n, err, len(got))
		}
		wg.Wait()
		for message := range slices.Chunk(got, size) {
			if n := bytes.Count(message, message[:1]); n != size {
				t.Fatalf("%d concurrent Writes of %d bytes: got a block with %d bytes of its first writer, want %d", writers, size, n, size)
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
	for name, ends := range map[string]struct {
		w io.Writer
		r io.Reader
	}{"Conn": {c, peer}, "InputPort": {peer, in}, "OutputPort": {out, peer}} {
		n := testing.AllocsPerRun(100, func() {
			if _, err := ends.w.Write(b); err != nil {
				t.Fatalf("%s: Write: %v", name, err)
			}
			if _, err := ends.r.Read(b); err != nil {
				t.Fatalf("%s: Read: %v", name, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: Write and Read of 64 bytes: got %v allocations, want 0", name, n)
		}
	}
}

// --- WriteBuffers ---

// cut returns data in buffers of n bytes, with empty buffers before and between
// them.
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
				t.Errorf("WriteBuffers: got %d, %v; want %d, nil", n, err, c.size)
			}
			if len(v) != 0 {
				t.Errorf("WriteBuffers: left %d buffers, want 0", len(v))
			}
			if got := result(); !bytes.Equal(got, data) {
				t.Errorf("WriteBuffers: the peer read %d bytes, want the %d bytes of the buffers", len(got), len(data))
			}
		})
	}
}

func TestWriteBuffersLeavesWhatItDidNotWrite(t *testing.T) {
	near, far := sockettest.Pair(t)
	data := randomBytes(4 << 20)
	v := cut(data, 5000)
	if err := near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatalf("SetWriteDeadline: %v", err)
	}
	n, err := near.WriteBuffers(&v)
	wantError(t, err, os.ErrDeadlineExceeded, "write", "unix")
	near.Close()
	got, err := io.ReadAll(far)
	if int64(len(got)) != n || err != nil {
		t.Errorf("WriteBuffers that a deadline ended: the peer read %d bytes, %v; want the %d bytes it returned, nil", len(got), err, n)
	}
	if n == 0 || !bytes.Equal(slices.Concat(got, slices.Concat(v...)), data) {
		t.Errorf("WriteBuffers that a deadline ended: wrote %d bytes, left %d buffers; want some bytes, and all data in one or the other", n, len(v))
	}
}

func TestWriteBuffersEndsWithAClose(t *testing.T) {
	for name, end := range map[string]func(c *unixsock.Conn) error{"Close": (*unixsock.Conn).Close, "CloseWrite": (*unixsock.Conn).CloseWrite} {
		t.Run(name, func(t *testing.T) {
			near, _ := sockettest.Pair(t)
			result := waiting(t, func() error {
				v := cut(make([]byte, 4<<20), 100_000)
				_, err := near.WriteBuffers(&v)
				return err
			})
			end(near)
			wantError(t, sockettest.Receive(t, "the end of WriteBuffers", result), net.ErrClosed, "write", "unix")
			v := net.Buffers{[]byte("more")}
			n, err := near.WriteBuffers(&v)
			if n != 0 || len(v) != 1 {
				t.Errorf("WriteBuffers after %s: got %d and %d buffers left, want 0 and 1", name, n, len(v))
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
					t.Errorf("WriteBuffers of %d bytes by writer %d: got %v, want nil", size, i, err)
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
		if n, err := io.ReadFull(far, message); err != nil {
			t.Fatalf("ReadFull of the bytes of one WriteBuffers: got %d, %v; want %d, nil", n, err, size)
		}
		if n := bytes.Count(message, message[:1]); n != size {
			t.Fatalf("%d concurrent writers in WriteBuffers: got a message with %d bytes of its first writer, want %d", writers, n, size)
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
		t.Fatalf("WriteBuffers: %v", err)
	}
	if n := writesOfThread(t) - before; n != 1 {
		t.Errorf("WriteBuffers of 1000 bytes by 10: got %d system calls, want 1", n)
	}
	if n, err := io.ReadFull(far, make([]byte, 1000)); err != nil {
		t.Fatalf("ReadFull at the peer: got %d, %v; want 1000, nil", n, err)
	}
}

// writesOfThread returns how many system calls of this thread were write(2) or
// similar. It skips the test if the kernel does not report the count.
func writesOfThread(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/io")
	if err != nil {
		t.Skip("no count of system calls: ", err)
	}
	_, count, _ := strings.Cut(string(b), "syscw: ")
	if _, err := fmt.Sscan(count, &n); err != nil {
		t.Fatalf("syscw in /proc/thread-self/io: %v", err)
	}
	return n
}

// --- closing halves ---

func TestClosedOutputIsEOFForThePeer(t *testing.T) {
	for name, closeOutput := range map[string]func(*unixsock.Conn) error{
		"CloseWrite":       (*unixsock.Conn).CloseWrite,
		"OutputPort.Close": func(c *unixsock.Conn) error { _, out := c.Ports(); return out.Close() },
		"Close":            (*unixsock.Conn).Close,
	} {
		c, peer := sockettest.Pair(t)
		if _, err := c.Write([]byte("last words")); err != nil {
			t.Fatalf("Write: %v", err)
		}
		if err := closeOutput(c); err != nil {
			t.Fatalf("%s: got %v, want nil", name, err)
		}
		wantEOF(t, peer, "last words")
		if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read after the peer's %s: got %d, %v; want 0 and io.EOF itself", name, n, err)
		}
	}
}

func TestClosedInputIsEPIPEForThePeer(t *testing.T) {
	for name, closeInput := range map[string]func(*unixsock.Conn) error{
		"CloseRead":       (*unixsock.Conn).CloseRead,
		"InputPort.Close": func(c *unixsock.Conn) error { in, _ := c.Ports(); return in.Close() },
		"Close":           (*unixsock.Conn).Close,
	} {
		c, peer := sockettest.Pair(t)
		if err := closeInput(c); err != nil {
			t.Fatalf("%s: got %v, want nil", name, err)
		}
		if name != "Close" && !sockettest.ReportsClosedInput(t) {
			continue
		}
		_, err := peer.Write([]byte("!"))
		wantOpError(t, "Write after the peer's "+name, err, "write", syscall.EPIPE)
	}
}

func TestOneHalfClosedLeavesTheOther(t *testing.T) {
	c, peer := sockettest.Pair(t)
	if err := c.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: got %v, want nil", err)
	}
	wantEOF(t, peer, "")
	if _, err := peer.Write([]byte("answer")); err != nil {
		t.Fatalf("Write after the peer's CloseWrite: got %v, want nil", err)
	}
	peer.CloseWrite()
	wantEOF(t, c, "answer")

	c, peer = sockettest.Pair(t)
	if err := c.CloseRead(); err != nil {
		t.Fatalf("CloseRead: got %v, want nil", err)
	}
	if _, err := c.Write([]byte("notice")); err != nil {
		t.Fatalf("Write after CloseRead: got %v, want nil", err)
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
				t.Fatalf("last of the calls%s: got %v, want nil", order, err)
			}
			closed |= way.half

			if got, want := isOpen(fd), closed != sockettest.BothHalves; got != want {
				t.Fatalf("descriptor after%s: got open %v, want %v", order, got, want)
			}
			if closed&sockettest.ReadHalf != 0 {
				_, err := c.Read(make([]byte, 1))
				wantOpError(t, "Read after"+order, err, "read", net.ErrClosed)
			} else if _, err := peer.Write([]byte("!")); err != nil {
				t.Errorf("peer's Write after%s: got %v, want nil", order, err)
			} else if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("Read after%s: got %d, %v; want 1, nil", order, n, err)
			}
			if closed&sockettest.WriteHalf != 0 {
				_, err := c.Write([]byte("!"))
				wantOpError(t, "Write after"+order, err, "write", net.ErrClosed)
				if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("peer's Read after%s: got %d, %v; want 0, io.EOF", order, n, err)
				}
			} else if _, err := c.Write([]byte("!")); err != nil {
				t.Errorf("Write after%s: got %v, want nil", order, err)
			} else if n, err := peer.Read(make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("peer's Read after%s: got %d, %v; want 1, nil", order, n, err)
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
				t.Errorf("%s after the peer's Close: got %v, want nil", first.name, err)
			}
			if err := second.call(c); err != nil {
				t.Errorf("%s after the peer's Close and %s: got %v, want nil", second.name, first.name, err)
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
				t.Fatalf("%s while a Read waits: got %v, want nil", way.name, err)
			}
			wantOpError(t, "waiting Read after "+way.name, sockettest.Receive(t, "the reader", result), "read", net.ErrClosed)
			if way.half == sockettest.BothHalves {
				return
			}
			if _, err := c.Write([]byte("on")); err != nil {
				t.Fatalf("Write after %s: got %v, want nil", way.name, err)
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
				t.Fatalf("%s while a Write waits: got %v, want nil", way.name, err)
			}
			wantOpError(t, "waiting Write after "+way.name, sockettest.Receive(t, "the writer", result), "write", net.ErrClosed)
			if way.half == sockettest.BothHalves {
				return
			}
			if _, err := peer.Write([]byte("on")); err != nil {
				t.Fatalf("Write after the peer's %s: got %v, want nil", way.name, err)
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
	fd := fdOf(t, peer)
	sockettest.WaitFor(t, "the Write has not begun", func() bool { return sockettest.Readable(fd) })
	c.CloseWrite()
	wantOpError(t, "waiting Write after CloseWrite", sockettest.Receive(t, "the writer", result), "write", net.ErrClosed)
	got, err := io.Copy(io.Discard, peer)
	if got != int64(n) || n == 0 || err != nil {
		t.Errorf("Write that CloseWrite ended: the peer read %d bytes, %v; want the %d that Write returned, above 0", got, err, n)
	}
}

func TestCloseWakesEveryWaitingCall(t *testing.T) {
	c, _ := sockettest.Pair(t)
	fillBuffer(t, c)
	// One reader and one writer wait in the poller. The others wait for their locks.
	var calls []<-chan error
	for range 10 {
		calls = append(calls, waiting(t, readOne(c)), waiting(t, writeOne(c)))
	}
	c.Close()
	for _, call := range calls {
		if err := sockettest.Receive(t, "the waiting call", call); !errors.Is(err, net.ErrClosed) {
			t.Errorf("waiting Read or Write after Close: got %v, want net.ErrClosed", err)
		}
	}
}

func TestOtherHalfKeepsWaitingThroughAClose(t *testing.T) {
	c, peer := sockettest.Pair(t)
	result := waiting(t, readOne(c))
	if err := c.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite while a Read waits: got %v, want nil", err)
	}
	// The Read must not return for a while.
	select {
	case err := <-result:
		t.Fatalf("waiting Read after CloseWrite: got %v, want no return", err)
	case <-time.After(10 * time.Millisecond):
	}
	if _, err := peer.Write([]byte("!")); err != nil {
		t.Fatalf("Write after the peer's CloseWrite: got %v, want nil", err)
	}
	if err := sockettest.Receive(t, "the reader", result); err != nil {
		t.Errorf("Read after CloseWrite: got %v, want nil", err)
	}

	c, peer = sockettest.Pair(t)
	fillBuffer(t, c)
	result = waiting(t, writeOne(c))
	if err := c.CloseRead(); err != nil {
		t.Fatalf("CloseRead while a Write waits: got %v, want nil", err)
	}
	// The Write must not return for a while.
	select {
	case err := <-result:
		t.Fatalf("waiting Write after CloseRead: got %v, want no return", err)
	case <-time.After(10 * time.Millisecond):
	}
	go io.Copy(io.Discard, peer)
	if err := sockettest.Receive(t, "the writer", result); err != nil {
		t.Errorf("Write after CloseRead: got %v, want nil", err)
	}
}

// TestCloseReadEndsTheWaitOfAPeerThatWrites fills the peer's send buffer, against
// which unread data counts. CloseRead must wake the peer, although poll does not
// report to the peer that its output is shut down.
func TestCloseReadEndsTheWaitOfAPeerThatWrites(t *testing.T) {
	if !sockettest.ReportsClosedInput(t) {
		t.Skip("the kernel does not report a closed input to the peer")
	}
	peer, c := sockettest.Pair(t)
	result := waiting(t, func() error {
		_, err := peer.Write(make([]byte, 8<<20))
		return err
	})
	if err := c.CloseRead(); err != nil {
		t.Fatalf("CloseRead while the peer's Write waits: got %v, want nil", err)
	}
	if err := sockettest.Receive(t, "the peer's Write", result); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("peer's waiting Write after CloseRead: got %v, want EPIPE", err)
	}
}

// TestCloseReadDoesNotWaitForAPeerThatWrites has a peer that fills the buffer again as
// CloseRead empties it, if the kernel lets it.
func TestCloseReadDoesNotWaitForAPeerThatWrites(t *testing.T) {
	peer, c := sockettest.Pair(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for err := error(nil); err == nil; {
			_, err = peer.Write(make([]byte, 4<<10))
		}
	}()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatalf("Read: %v", err)
	}
	sockettest.CheckReturns(t, "CloseRead while the peer writes", func() { c.CloseRead() })
	c.Close()
	sockettest.Receive(t, "the peer's writes to end", ended)
}

// TestClosingAHalfEndsTheFirstWait closes a half while a call registers the Conn
// with the poller. The call must not keep waiting in that half. On Linux no event
// reports the close if the socket's buffer is partly full.
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
					t.Fatalf("SetWriteBuffer: %v", err)
				}
				if n, err := c.Write(make([]byte, 1<<10)); n != 1<<10 || err != nil {
					t.Fatalf("Write of 1024 bytes: got %d, %v; want 1024, nil", n, err)
				}
				raw, err := c.SyscallConn()
				if err != nil {
					t.Fatalf("SyscallConn: %v", err)
				}
				ended := make(chan error, 1)
				go func() { ended <- half.wait(raw) }()
				if err := half.close(c); err != nil {
					t.Fatalf("close of the %s during the first wait: got %v, want nil", what, err)
				}
				if err := sockettest.Receive(t, "the first wait", ended); !errors.Is(err, net.ErrClosed) {
					t.Fatalf("first wait, with the %s closed: got %v, want net.ErrClosed", what, err)
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
			name, wait, closeHalf := "CloseRead", readOne(c), c.CloseRead
			setters := []func(time.Time) error{c.SetReadDeadline, c.SetDeadline}
			if h == sockettest.WriteHalf {
				fillBuffer(t, c)
				name, wait, closeHalf = "CloseWrite", writeOne(c), c.CloseWrite
				setters[0] = c.SetWriteDeadline
			}
			result := waiting(t, wait)
			var quit atomic.Bool
			var wg sync.WaitGroup
			for _, set := range setters {
				wg.Go(func() {
					for !quit.Load() {
						set(time.Now().Add(time.Hour))
						set(time.Time{})
					}
				})
			}
			runtime.Gosched()
			if err := closeHalf(); err != nil {
				t.Fatalf("%s during calls of SetDeadline: got %v, want nil", name, err)
			}
			err := sockettest.Receive(t, "the call that waits in a closed half", result)
			quit.Store(true)
			wg.Wait()
			if !errors.Is(err, net.ErrClosed) {
				t.Fatalf("waiting call after %s during calls of SetDeadline: got %v, want net.ErrClosed", name, err)
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
	for name, set := range map[string]func(time.Time) error{
		"Conn.SetReadDeadline": c.SetReadDeadline, "InputPort.SetReadDeadline": in.SetReadDeadline,
	} {
		if err := set(past); err != nil {
			t.Fatalf("%s in the past: got %v, want nil", name, err)
		}
		_, err := c.Read(make([]byte, 1))
		wantOpError(t, "Read after "+name+" in the past", err, "read", os.ErrDeadlineExceeded)
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("Read after %s in the past: got %#v, want a net.Error that is a timeout", name, err)
		}
		if _, err := c.Write([]byte("!")); err != nil {
			t.Errorf("Write after %s in the past: got %v, want nil", name, err)
		}
		if err := set(none); err != nil {
			t.Fatalf("%s of the zero time: got %v, want nil", name, err)
		}
	}
	for name, set := range map[string]func(time.Time) error{
		"Conn.SetWriteDeadline": c.SetWriteDeadline, "OutputPort.SetWriteDeadline": out.SetWriteDeadline,
	} {
		if err := set(past); err != nil {
			t.Fatalf("%s in the past: got %v, want nil", name, err)
		}
		_, err := c.Write([]byte("!"))
		wantOpError(t, "Write after "+name+" in the past", err, "write", os.ErrDeadlineExceeded)
		if _, err := peer.Write([]byte("!")); err != nil {
			t.Fatalf("peer's Write: %v", err)
		}
		if n, err := c.Read(make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("Read after %s in the past: got %d, %v; want 1, nil", name, n, err)
		}
		if err := set(none); err != nil {
			t.Fatalf("%s of the zero time: got %v, want nil", name, err)
		}
	}
	if _, err := c.Write([]byte("!")); err != nil {
		t.Errorf("Write after SetWriteDeadline of the zero time: got %v, want nil", err)
	}
}

func TestDeadlineEndsWaitingCalls(t *testing.T) {
	c, _ := sockettest.Pair(t)
	fillBuffer(t, c)
	reader, writer := waiting(t, readOne(c)), waiting(t, writeOne(c))
	if err := c.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatalf("SetDeadline while calls wait: got %v, want nil", err)
	}
	wantOpError(t, "waiting Read after SetDeadline", sockettest.Receive(t, "the reader", reader), "read", os.ErrDeadlineExceeded)
	wantOpError(t, "waiting Write after SetDeadline", sockettest.Receive(t, "the writer", writer), "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfBothHalvesSetsTheOneThatIsOpen(t *testing.T) {
	c, _ := sockettest.Pair(t)
	c.CloseWrite()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatalf("SetDeadline after CloseWrite: got %v, want nil", err)
	}
	_, err := c.Read(make([]byte, 1))
	wantOpError(t, "Read after CloseWrite and SetDeadline in the past", err, "read", os.ErrDeadlineExceeded)

	c, _ = sockettest.Pair(t)
	c.CloseRead()
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatalf("SetDeadline after CloseRead: got %v, want nil", err)
	}
	_, err = c.Write([]byte("!"))
	wantOpError(t, "Write after CloseRead and SetDeadline in the past", err, "write", os.ErrDeadlineExceeded)
}

func TestDeadlineOfWhatIsClosedIsErrClosed(t *testing.T) {
	c, _ := sockettest.Pair(t)
	c.CloseRead()
	wantOpError(t, "SetReadDeadline after CloseRead", c.SetReadDeadline(time.Time{}), "set", net.ErrClosed)
	c.CloseWrite()
	wantOpError(t, "SetWriteDeadline after CloseWrite", c.SetWriteDeadline(time.Time{}), "set", net.ErrClosed)
	wantOpError(t, "SetDeadline after CloseRead and CloseWrite", c.SetDeadline(time.Time{}), "set", net.ErrClosed)
}

// --- CloseOn ---

// A ledger is a context that records the functions that context.AfterFunc registers
// with it. It ends when end is called.
type ledger struct {
	context.Context
	done chan struct{}

	mu    sync.Mutex
	next  int            // the key of the next function
	funcs map[int]func() // those that are not stopped
}

func newLedger() *ledger {
	return &ledger{Context: context.Background(), done: make(chan struct{}), funcs: make(map[int]func())}
}

func (l *ledger) Done() <-chan struct{} { return l.done }

// AfterFunc registers f. context.AfterFunc calls this method.
func (l *ledger) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.next
	l.next++
	l.funcs[id] = f
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, ok := l.funcs[id]
		delete(l.funcs, id)
		return ok
	}
}

func (l *ledger) Err() error {
	select {
	case <-l.done:
		return context.Canceled
	default:
		return nil
	}
}

// end cancels the context. It returns once the functions that were registered have
// been started.
func (l *ledger) end() {
	l.mu.Lock()
	funcs := l.funcs
	l.funcs = make(map[int]func())
	close(l.done)
	l.mu.Unlock()
	for _, f := range funcs {
		f()
	}
}

// entries returns how many functions are registered.
func (l *ledger) entries() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.funcs)
}

// mustHave fails the test unless the ledger has n entries after what was done. A custodian is
// released by a goroutine of its own.
func (l *ledger) mustHave(t testing.TB, n int, done string) {
	t.Helper()
	runtime.Gosched()
	sockettest.WaitFor(t, fmt.Sprintf("%s: the context does not have %d entries", done, n), func() bool { return l.entries() == n })
}

func TestCloseOnClosesWhenTheContextIsDone(t *testing.T) {
	c, peer := sockettest.Pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.CloseOn(ctx)
	reader := waiting(t, readOne(c))
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatalf("Write before the context is done: got %v, want nil", err)
	}
	cancel()
	wantOpError(t, "waiting Read after the context of CloseOn is canceled", sockettest.Receive(t, "the reader", reader), "read", net.ErrClosed)
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
	ctx.mustHave(t, 1, "1000 calls of CloseOn")
}

func TestCloseOnReplacesTheCustodian(t *testing.T) {
	c, peer := sockettest.Pair(t)
	first, second := newLedger(), newLedger()
	c.CloseOn(first)
	c.CloseOn(second)
	first.mustHave(t, 0, "CloseOn with a second context, on the first")
	second.mustHave(t, 1, "CloseOn with a second context, on the second")
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
	ctx.mustHave(t, 0, "CloseOn(context.Background())")
	mustConverse(t, c, peer)
}

// TestCloseOnReplacedAsTheOldContextEnds replaces a custodian while its context
// ends. If the second CloseOn finds the connection open, the old context must no
// longer close it.
func TestCloseOnReplacedAsTheOldContextEnds(t *testing.T) {
	var open []*unixsock.Conn // replaced in time
	for range sockettest.Times(300) {
		c, _ := newPairT(t)
		old, next := newLedger(), newLedger()
		c.CloseOn(old)
		ended := make(chan struct{})
		go func() { defer close(ended); old.end() }()
		c.CloseOn(next)
		if _, err := c.Write([]byte("x")); err == nil {
			open = append(open, c)
			next.mustHave(t, 1, "CloseOn in time, on the next context")
		} else {
			next.mustHave(t, 0, "CloseOn too late, on the next context")
		}
		<-ended
		old.mustHave(t, 0, "CloseOn of another context, on the one that ended")
	}
	for _, c := range open {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("Write after a CloseOn that replaced an ending context: got %v, want nil, as before", err)
		}
	}
}

func TestClosedConnLeavesNothingOnItsContext(t *testing.T) {
	for _, first := range closes {
		for _, second := range closes {
			ctx := newLedger()
			c, _ := sockettest.Pair(t)
			c.CloseOn(ctx)
			// Without an entry, the checks below would prove nothing.
			if n := ctx.entries(); n != 1 {
				t.Fatalf("CloseOn: got %d entries on the context, want 1", n)
			}
			first.call(c)
			second.call(c)
			want := 0
			if first.half|second.half != sockettest.BothHalves {
				want = 1
			}
			ctx.mustHave(t, want, first.name+" and "+second.name)
			c.Close()
			c.CloseOn(ctx)
			ctx.mustHave(t, 0, "CloseOn of a closed Conn")
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
	ctx.mustHave(t, 0, "200 times CloseOn during CloseRead and CloseWrite")
}

// A lockingContext is a context whose method of one name locks a mutex, which another
// goroutine may hold. The function that its AfterFunc returns counts as a method, "stop".
type lockingContext struct {
	context.Context
	method  string
	mu      sync.Mutex
	entered chan struct{} // of size 1
}

func (c *lockingContext) enter(method string) {
	if method != c.method {
		return
	}
	select {
	case c.entered <- struct{}{}:
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
}

func (c *lockingContext) Done() <-chan struct{} { c.enter("Done"); return c.Context.Done() }
func (c *lockingContext) Value(key any) any     { c.enter("Value"); return nil }

// Err locks the mutex once the context is done, when an accept that waits asks for the reason.
func (c *lockingContext) Err() error {
	if c.Context.Err() != nil {
		c.enter("Err")
	}
	return c.Context.Err()
}

func (c *lockingContext) AfterFunc(f func()) (stop func() bool) {
	c.enter("AfterFunc")
	stopInner := context.AfterFunc(c.Context, f)
	return func() bool { c.enter("stop"); return stopInner() }
}

// lockingCases are calls that are in a method of ctx, and other calls, which must return
// meanwhile. cancel ends ctx.
var lockingCases = map[string]func(t *testing.T, ctx context.Context, cancel func()) (call func(), others []func()){
	"AcceptEvt": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		l := sockettest.Listen(t)
		return func() { l.AcceptEvt(ctx) }, usesOf(t, l)
	},
	"CloseOn of a Listener": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		l := sockettest.Listen(t)
		return func() { l.CloseOn(ctx) }, usesOf(t, l)
	},
	"CloseOn of a Conn": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		c, _ := sockettest.Pair(t)
		return func() { c.CloseOn(ctx) }, []func(){
			func() { c.SetDeadline(time.Time{}) }, func() { c.CloseOn(t.Context()) }, func() { c.CloseRead() }, func() { c.Close() },
		}
	},
	"CloseOn of an event's receiver": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		l := sockettest.Listen(t)
		sockettest.Connect(t, l.Addr().String())
		evt := l.AcceptEvt(t.Context())
		return func() { (<-evt).Conn.CloseOn(ctx) }, usesOf(t, l)
	},
	"AcceptContext of a context that ends": func(t *testing.T, ctx context.Context, cancel func()) (func(), []func()) {
		l := sockettest.Listen(t)
		cancel()
		return func() { l.AcceptContext(ctx) }, usesOf(t, l)
	},
	"AcceptContext whose context ends": func(t *testing.T, ctx context.Context, cancel func()) (func(), []func()) {
		l := sockettest.Listen(t)
		return func() { time.AfterFunc(time.Millisecond, cancel); l.AcceptContext(ctx) }, usesOf(t, l)
	},
	"AcceptContext with Ready": func(t *testing.T, ctx context.Context, cancel func()) (func(), []func()) {
		l := sockettest.Listen(t)
		l.Ready()
		return func() { time.AfterFunc(time.Millisecond, cancel); l.AcceptContext(ctx) }, usesOf(t, l)
	},
	"the custodian before": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		var others []func()
		for _, next := range []func(c *unixsock.Conn){
			func(c *unixsock.Conn) { c.Close() },
			func(c *unixsock.Conn) { c.CloseRead(); c.CloseWrite() },
			func(c *unixsock.Conn) { c.CloseOn(t.Context()) },
			func(c *unixsock.Conn) { c.CloseOn(context.Background()) },
		} {
			c, _ := sockettest.Pair(t)
			c.CloseOn(ctx)
			others = append(others, func() { next(c) })
		}
		for _, next := range []func(l *unixsock.Listener){
			func(l *unixsock.Listener) { l.Close() },
			func(l *unixsock.Listener) { l.CloseOn(t.Context()) },
		} {
			l := sockettest.Listen(t)
			l.CloseOn(ctx)
			others = append(others, func() { next(l) })
		}
		return func() {}, others
	},
	"an event that has delivered": func(t *testing.T, ctx context.Context, _ func()) (func(), []func()) {
		l := sockettest.Listen(t)
		sockettest.Connect(t, l.Addr().String())
		c := mustReceive(t, l.AcceptEvt(ctx))
		return func() {}, append([]func(){func() { c.Close() }}, usesOf(t, l)...)
	},
}

// usesOf returns calls of l that wait for nothing. The last one closes l.
func usesOf(t *testing.T, l *unixsock.Listener) []func() {
	return []func(){
		func() { l.SetDeadline(time.Time{}) },
		func() {
			sockettest.Connect(t, l.Addr().String())
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		},
		func() { l.Ready() },
		func() { l.AcceptEvt(t.Context()) },
		func() { l.CloseOn(t.Context()) },
		func() { l.Close() },
	}
}

func TestMethodsOfAContextHoldUpNoOtherCall(t *testing.T) {
	for name, prepare := range lockingCases {
		for _, method := range []string{"Done", "Err", "Value", "AfterFunc", "stop"} {
			t.Run(name+", "+method, func(t *testing.T) {
				inner, cancel := context.WithCancel(t.Context())
				defer cancel()
				ctx := &lockingContext{Context: inner, method: method, entered: make(chan struct{}, 1)}
				call, others := prepare(t, ctx, cancel)
				select { // forget what entered as the case was prepared
				case <-ctx.entered:
				default:
				}
				ctx.mu.Lock()
				unlock := sync.OnceFunc(ctx.mu.Unlock)
				defer unlock()
				returned := make(chan struct{})
				go func() { defer close(returned); call() }()
				select {
				case <-ctx.entered:
				case <-returned:
				}
				for i, other := range others {
					sockettest.CheckReturns(t, fmt.Sprintf("other call %d while a method of a context waits for a mutex", i), other)
				}
				unlock()
				cancel()
				sockettest.CheckReturns(t, "the call whose context has locked the mutex", func() { <-returned })
			})
		}
	}
}

// A context may end between the registration of the custodian's function, which runs then in
// a goroutine of its own, and the moment at which the Conn has the custodian.
func TestContextThatEndsBeforeTheCustodianIsInPlaceCloses(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	for range sockettest.Times(1000) {
		c, peer, err := unixsock.Pair()
		if err != nil {
			t.Fatalf("Pair: %v", err)
		}
		l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c.CloseOn(ctx)
		l.CloseOn(ctx)
		mustEnd(t, peer)
		sockettest.WaitClosing(t, l)
		l.Close()
		peer.Close()
	}
}

// --- descriptors and the poller ---

// watchForeignSockets opens and closes sockets that do not belong to this package
// until quit is set. It fails the test if another goroutine uses or closes one of
// their descriptors.
func watchForeignSockets(t *testing.T, quit *atomic.Bool) {
	type end struct {
		fd  int
		ino uint64
	}
	identify := func(fd int) uint64 {
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			t.Errorf("fstat(2) of a foreign socket: got %v, want nil", err)
		}
		return uint64(stat.Ino)
	}
	for !quit.Load() && !t.Failed() {
		var ends []end
		for range 4 {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Errorf("socketpair(2): %v", err)
				return
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				identify(fd) // NetBSD may report the first inode number as 0, once
				ends = append(ends, end{fd, identify(fd)})
			}
		}
		for range 3 {
			runtime.Gosched()
			for i, e := range ends {
				if ino := identify(e.fd); ino != e.ino {
					t.Errorf("fstat(2) of a foreign socket: got inode %d, want %d", ino, e.ino)
				}
				b := []byte{byte(i)}
				// If another goroutine shuts down the socket or reads the byte,
				// recvfrom(2) finds no byte. With MSG_DONTWAIT it does not wait.
				if err := unix.Sendto(e.fd, b, unix.MSG_DONTWAIT, nil); err != nil {
					t.Errorf("sendto(2) with a foreign socket: got %v, want nil", err)
				}
				n, _, err := unix.Recvfrom(ends[i^1].fd, b, unix.MSG_DONTWAIT)
				if n != 1 || b[0] != byte(i) || err != nil {
					t.Errorf("recvfrom(2) with a foreign socket: got %d, byte %d, %v; want 1, byte %d, nil", n, b[0], err, i)
				}
			}
		}
		for _, e := range ends {
			if err := unix.Close(e.fd); err != nil {
				t.Errorf("close(2) of a foreign socket: got %v, want nil", err)
			}
		}
	}
}

func TestNoCallUsesAReusedDescriptor(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(100))
	var quit atomic.Bool
	var watchers sync.WaitGroup
	for range 2 {
		watchers.Go(func() { watchForeignSockets(t, &quit) })
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
					t.Errorf("Connect: %v", err)
					return
				}
				s, err := l.AcceptContext(t.Context())
				if err != nil {
					t.Errorf("AcceptContext: %v", err)
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
								t.Errorf("%s during other calls: got %v, want nil", way.name, err)
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
	watchers.Wait()
	l.Close()
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

// TestRegistrationRacesWithClosesAndDeadlines makes calls on a new connection
// concurrently and in random order. Whichever call comes first and registers the
// connection with the poller, all calls return and no descriptor is left open.
func TestRegistrationRacesWithClosesAndDeadlines(t *testing.T) {
	rounds := 3000
	if testing.Short() || sockettest.Race {
		rounds = 300
	}
	descriptors := sockettest.CountDescriptors(t)
	uses := []func(c *unixsock.Conn, ctx context.Context){
		func(c *unixsock.Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.Read(make([]byte, 8)) },
		func(c *unixsock.Conn, _ context.Context) { c.Write(make([]byte, 64<<10)) }, // more than fits into the buffer
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
			t.Fatalf("Pair: %v", err)
		}
		if err := c.SetWriteBuffer(16 << 10); err != nil {
			t.Fatalf("SetWriteBuffer: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		all := slices.Clone(uses)
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var wg sync.WaitGroup
		for _, use := range all {
			wg.Go(func() { use(c, ctx) })
		}
		sockettest.CheckReturns(t, "calls on a connection that is closed", wg.Wait)
		cancel()
		peer.Close()
	}
	sockettest.WaitDescriptors(t, descriptors)
}

func TestUnreachableConnectionIsClosed(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, c, peer *unixsock.Conn){
		"new": func(*testing.T, *unixsock.Conn, *unixsock.Conn) {},
		"registered with the poller": func(t *testing.T, c, peer *unixsock.Conn) {
			if err := c.SetDeadline(time.Time{}); err != nil {
				t.Errorf("SetDeadline of the zero time: got %v, want nil", err)
			}
		},
		"in use": func(t *testing.T, c, peer *unixsock.Conn) { mustTalk(t, c, peer) },
		"under an unreachable custodian": func(_ *testing.T, c, _ *unixsock.Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			c.CloseOn(ctx)
			runtime.KeepAlive(cancel)
		},
	} {
		t.Run(name, func(t *testing.T) {
			peer := func() *unixsock.Conn {
				c, peer, err := unixsock.Pair()
				if err != nil {
					t.Fatalf("Pair: %v", err)
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
			sockettest.WaitFor(t, "the unreachable Conn stays open", func() bool {
				runtime.GC()
				return len(end) > 0
			})
			if err := <-end; err != io.EOF {
				t.Errorf("Read at the peer of an unreachable Conn: got %v, want io.EOF", err)
			}
		})
	}
}

// TestPollerStartsBeforeDescriptorsRunOut checks that Conns can wait in a process
// that is out of descriptors. The runtime's poller opens descriptors when it
// starts, and ends the process if none is free. In a process that runs tests, the
// poller may have started already. The child process runs no tests.
func TestPollerStartsBeforeDescriptorsRunOut(t *testing.T) {
	cmd := sockettest.HelperCommand(t, nil, "wait without descriptors")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("Reads that wait in a process without free descriptors: got %v, want nil; output:\n%s", err, out)
	}
}

// helpWaitWithoutDescriptors uses up all descriptors, and then lets a Read wait on
// each of two connections.
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
		runtime.Gosched() // the Read likely waits now; if it does not, it must succeed all the same
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

func TestConnWorksInsideAControlCallback(t *testing.T) {
	c, peer := sockettest.Pair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	sockettest.CheckReturns(t, "Control", func() {
		err = raw.Control(func(uintptr) {
			_, writeErr := c.Write([]byte("x"))
			deadlineErr := c.SetDeadline(time.Now().Add(time.Minute))
			_, credErr := c.PeerCred()
			if errors.Is(credErr, errors.ErrUnsupported) {
				credErr = nil
			}
			if err := errors.Join(writeErr, deadlineErr, credErr, c.CloseWrite()); err != nil {
				t.Errorf("Write, SetDeadline, PeerCred and CloseWrite in a callback: got %v, want nil", err)
			}
		})
	})
	if err != nil {
		t.Errorf("Control: got %v, want nil", err)
	}
	wantEOF(t, peer, "x")
}

func TestRawConnFollowsTheHalves(t *testing.T) {
	c, peer := sockettest.Pair(t)
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	yes := func(uintptr) bool { return true }
	unused := func(fd uintptr) bool {
		t.Errorf("RawConn of a closed half: called its function with descriptor %d, want no call", fd)
		return true
	}
	if err := raw.Read(yes); err != nil {
		t.Errorf("RawConn.Read: got %v, want nil", err)
	}
	if err := raw.Write(yes); err != nil {
		t.Errorf("RawConn.Write: got %v, want nil", err)
	}

	c.CloseRead()
	wantOpError(t, "RawConn.Read after CloseRead", raw.Read(unused), "raw-read", net.ErrClosed)
	if err := raw.Write(yes); err != nil {
		t.Errorf("RawConn.Write after CloseRead: got %v, want nil", err)
	}
	if err := raw.Control(func(uintptr) {}); err != nil {
		t.Errorf("RawConn.Control after CloseRead: got %v, want nil", err)
	}
	c.CloseWrite()
	wantOpError(t, "RawConn.Read after both closes", raw.Read(unused), "raw-read", net.ErrClosed)
	wantOpError(t, "RawConn.Write after both closes", raw.Write(unused), "raw-write", net.ErrClosed)
	wantOpError(t, "RawConn.Control after both closes", raw.Control(func(fd uintptr) { unused(fd) }), "raw-control", net.ErrClosed)

	raw, err = peer.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn of the peer: %v", err)
	}
	peer.CloseWrite()
	wantOpError(t, "RawConn.Write after CloseWrite", raw.Write(unused), "raw-write", net.ErrClosed)
	if err := raw.Read(yes); err != nil {
		t.Errorf("RawConn.Read after CloseWrite: got %v, want nil", err)
	}
}

func TestRawConnThatWaitsEndsWithCloseAndDeadline(t *testing.T) {
	never := func(uintptr) bool { return false }
	for name, end := range map[string]struct {
		call func(*unixsock.Conn) error
		want error
	}{
		"CloseRead and CloseWrite": {func(c *unixsock.Conn) error { return errors.Join(c.CloseRead(), c.CloseWrite()) }, net.ErrClosed},
		"Close":                    {(*unixsock.Conn).Close, net.ErrClosed},
		"SetDeadline":              {func(c *unixsock.Conn) error { return c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := sockettest.Pair(t)
			fillBuffer(t, c)
			raw, err := c.SyscallConn()
			if err != nil {
				t.Fatalf("SyscallConn: %v", err)
			}
			reader := waiting(t, func() error { return raw.Read(never) })
			writer := waiting(t, func() error { return raw.Write(never) })
			if err := end.call(c); err != nil {
				t.Fatalf("%s while calls wait: got %v, want nil", name, err)
			}
			wantOpError(t, "waiting RawConn.Read after "+name, sockettest.Receive(t, "the reader", reader), "raw-read", end.want)
			wantOpError(t, "waiting RawConn.Write after "+name, sockettest.Receive(t, "the writer", writer), "raw-write", end.want)
		})
	}
}

// --- buffer sizes ---

func TestBufferSizesAreSet(t *testing.T) {
	near, _ := sockettest.Pair(t)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	for name, buffer := range map[string]struct {
		set func(bytes int) error
		opt int
	}{
		"SetReadBuffer":  {near.SetReadBuffer, unix.SO_RCVBUF},
		"SetWriteBuffer": {near.SetWriteBuffer, unix.SO_SNDBUF},
	} {
		sizes := make([]int, 2)
		for i, ask := range []int{8 << 10, 64 << 10} {
			if err := buffer.set(ask); err != nil {
				t.Fatalf("%s(%d): got %v, want nil", name, ask, err)
			}
			raw.Control(func(fd uintptr) { sizes[i], err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, buffer.opt) })
			if err != nil || sizes[i] < ask {
				t.Errorf("getsockopt(2) after %s(%d): got %d, %v; want at least %d, nil", name, ask, sizes[i], err, ask)
			}
		}
		if sizes[0] >= sizes[1] {
			t.Errorf("getsockopt(2) after %s of 8 KiB and 64 KiB: got %d and %d, want a larger second size", name, sizes[0], sizes[1])
		}
	}
	near.CloseRead()
	wantError(t, near.SetReadBuffer(8<<10), net.ErrClosed, "set", "unix")
	near.Close()
	wantError(t, near.SetWriteBuffer(8<<10), net.ErrClosed, "set", "unix")
}

func TestBufferSizesOfAConnWhosePeerIsGone(t *testing.T) {
	near, far := sockettest.Pair(t)
	far.Close()
	for name, set := range map[string]func(bytes int) error{"SetReadBuffer": near.SetReadBuffer, "SetWriteBuffer": near.SetWriteBuffer} {
		if err := set(8 << 10); err != nil {
			t.Errorf("%s after the peer's Close: got %v, want nil", name, err)
		}
	}
}

// --- addresses ---

func TestAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := sockettest.Accept(t, l)
	for name, test := range map[string]struct {
		addr net.Addr
		want string
	}{
		"LocalAddr of the client":  {client.LocalAddr(), ""},
		"RemoteAddr of the client": {client.RemoteAddr(), l.Addr().String()},
		"LocalAddr of the server":  {server.LocalAddr(), l.Addr().String()},
		"RemoteAddr of the server": {server.RemoteAddr(), ""},
	} {
		addr, ok := test.addr.(*net.UnixAddr)
		if !ok || addr.Name != test.want || addr.Net != "unix" || addr.Network() != "unix" {
			t.Errorf("%s: got %#v, want a *net.UnixAddr of unix with the name %q", name, test.addr, test.want)
		}
	}
}

func TestAddressesAllocateNothingOnceAsked(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := sockettest.Accept(t, l)
	unitClient, unitServer := unitPair(t)
	for name, addr := range map[string]func() net.Addr{
		"Listener.Addr":            l.Addr,
		"LocalAddr of a client":    client.LocalAddr,
		"RemoteAddr of a client":   client.RemoteAddr,
		"LocalAddr of a server":    server.LocalAddr,
		"RemoteAddr of a server":   server.RemoteAddr,
		"LocalAddr of a TCPUnit's": unitClient.LocalAddr, "RemoteAddr of a TCPUnit's": unitServer.RemoteAddr,
	} {
		if n := testing.AllocsPerRun(100, func() { addr() }); n != 0 {
			t.Errorf("%s: got %v allocations, want 0", name, n)
		}
	}
}

func TestStringShowsTheAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	client := sockettest.Connect(t, path)
	server := sockettest.Accept(t, l)
	in, out := client.Ports()
	unit := unixsock.NewTCPUnit(path + "2")
	unitListener, err := unit.Listen("", "")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	defer unitListener.Close()
	unitConn, err := unit.Dial("", "")
	if err != nil {
		t.Fatalf("TCPUnit.Dial: %v", err)
	}
	defer unitConn.Close()
	for what, test := range map[string]struct {
		value any
		want  string
	}{
		"a client":             {client, "unix ->" + path},
		"a server":             {server, "unix " + path + "->"},
		"an input port":        {in, "unix ->" + path},
		"an output port":       {out, "unix ->" + path},
		"a Listener":           {l, "unix " + path},
		"a TCPUnit":            {unit, "unix " + path + "2"},
		"a TCPUnit's listener": {unitListener, "unix " + path + "2"},
		"a TCPUnit's Conn":     {unitConn, "unix ->" + path + "2"},
		"an Accepted":          {unixsock.Accepted{Conn: client}, "{unix ->" + path + " <nil>}"},
		"a nil Conn":           {(*unixsock.Conn)(nil), "<nil>"},
		"a nil InputPort":      {(*unixsock.InputPort)(nil), "<nil>"},
		"a nil OutputPort":     {(*unixsock.OutputPort)(nil), "<nil>"},
		"a nil Listener":       {(*unixsock.Listener)(nil), "<nil>"},
		"a nil TCPUnit":        {(*unixsock.TCPUnit)(nil), "<nil>"},
		"a zero Conn":          {&unixsock.Conn{}, "unix ->"},
		"a zero Listener":      {&unixsock.Listener{}, "unix "},
		"a unit of no path":    {unixsock.NewTCPUnit("a\x00b"), `unix "a\x00b"`},
		"a unit of a path with an escape sequence": {unixsock.NewTCPUnit("/\x1b[2J"), `unix "/\x1b[2J"`},
		"a unit of a path that is not UTF-8":       {unixsock.NewTCPUnit("/\x9b2J"), `unix "/\x9b2J"`},
		"a unit of a path with other letters":      {unixsock.NewTCPUnit("/é ü"), "unix /é ü"},
	} {
		if got := fmt.Sprintf("%v", test.value); got != test.want {
			t.Errorf("%%v of %s: got %q, want %q", what, got, test.want)
		}
	}
}

// TestPrintingRacesWithNothing prints values while their state changes. The race detector
// finds a field that is read.
func TestPrintingRacesWithNothing(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	printed := make(chan string)
	go func() { printed <- fmt.Sprint(client, l) }()
	client.SetDeadline(time.Now())
	client.RemoteAddr()
	l.Ready()
	client.Close()
	l.Close()
	if got, want := sockettest.Receive(t, "the text", printed), "unix ->"; !strings.HasPrefix(got, want) {
		t.Errorf("Sprint of a Conn and a Listener: got %q, want %q first", got, want)
	}
}

func TestAddressesStayAfterAClose(t *testing.T) {
	c, _ := sockettest.Pair(t)
	want := c.RemoteAddr().String()
	c.Close()
	if local, remote := c.LocalAddr().String(), c.RemoteAddr().String(); local != "" || remote != want {
		t.Errorf("LocalAddr and RemoteAddr after Close: got %q and %q, want %q and %q", local, remote, "", want)
	}
}

// --- credentials ---

// peerCredOf returns the credentials of c's peer. It skips the test if the
// platform does not report them.
func peerCredOf(t testing.TB, c *unixsock.Conn) unixsock.Cred {
	t.Helper()
	cred, err := c.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("PeerCred: got %v, want nil", err)
	}
	return cred
}

// wantCred fails the test unless the peer of c is process pid of this user. Only
// on Linux must the kernel report the process.
func wantCred(t testing.TB, c *unixsock.Conn, pid int) {
	t.Helper()
	got := peerCredOf(t, c)
	if runtime.GOOS != "linux" && got.PID == 0 {
		pid = 0
	}
	if want := (unixsock.Cred{PID: pid, UID: os.Getuid(), GID: os.Getgid()}); got != want {
		t.Errorf("PeerCred: got %+v, want %+v", got, want)
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
		t.Fatalf("Pair: %v", err)
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
	client.Send(l.Addr().String())
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
		t.Errorf("PeerCred after the peer's Close: got %+v, want the user and the group of %+v", got, cred)
	}
}

func TestPeerCredOfAKilledProcess(t *testing.T) {
	l := sockettest.Listen(t)
	h := sockettest.StartHelper(t, nil, "connect")
	h.Send(l.Addr().String())
	h.Expect("connected")
	pid := h.Cmd.Process.Pid
	h.Kill()
	// The listener accepts the connection after the process has ended.
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
			t.Errorf("PeerCred after Close: got %v, want net.ErrClosed", err)
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Errorf("PeerCred after Close: got %#v, want a *net.OpError", err)
		}
		if cred != (unixsock.Cred{}) {
			t.Errorf("PeerCred after Close: got %+v, want the zero Cred", cred)
		}
	}
}

// --- nil and zero values ---

func TestNilAndZeroConnsReturnErrors(t *testing.T) {
	for value, c := range map[string]*unixsock.Conn{"nil": nil, "zero": new(unixsock.Conn)} {
		in, out := c.Ports()
		b := make([]byte, 1)
		calls := map[string]func() error{
			"Read":                   func() error { _, err := c.Read(b); return err },
			"Write":                  func() error { _, err := c.Write(b); return err },
			"ReadFrom":               func() error { _, err := c.ReadFrom(bytes.NewReader(b)); return err },
			"WriteTo":                func() error { _, err := c.WriteTo(io.Discard); return err },
			"WriteBuffers":           func() error { _, err := c.WriteBuffers(&net.Buffers{b}); return err },
			"WriteFiles":             func() error { _, err := c.WriteFiles(b); return err },
			"WriteFiles of a file":   func() error { _, err := c.WriteFiles(b, os.Stdin); return err },
			"ReadFiles":              func() error { _, _, err := c.ReadFiles(b, 1); return err },
			"SyscallConn":            func() error { _, err := c.SyscallConn(); return err },
			"File":                   func() error { _, err := c.File(); return err },
			"PeerCred":               func() error { _, err := c.PeerCred(); return err },
			"PeerGroups":             func() error { _, err := c.PeerGroups(); return err },
			"SetDeadline":            func() error { return c.SetDeadline(time.Time{}) },
			"SetReadDeadline":        func() error { return c.SetReadDeadline(time.Time{}) },
			"SetWriteDeadline":       func() error { return c.SetWriteDeadline(time.Time{}) },
			"SetReadBuffer":          func() error { return c.SetReadBuffer(1 << 16) },
			"SetWriteBuffer":         func() error { return c.SetWriteBuffer(1 << 16) },
			"Close":                  c.Close,
			"CloseRead":              c.CloseRead,
			"CloseWrite":             c.CloseWrite,
			"InputPort.Read":         func() error { _, err := in.Read(b); return err },
			"InputPort.WriteTo":      func() error { _, err := in.WriteTo(io.Discard); return err },
			"InputPort.SetDeadline":  func() error { return in.SetReadDeadline(time.Time{}) },
			"InputPort.Close":        in.Close,
			"OutputPort.Write":       func() error { _, err := out.Write(b); return err },
			"OutputPort.ReadFrom":    func() error { _, err := out.ReadFrom(bytes.NewReader(b)); return err },
			"OutputPort.SetDeadline": func() error { return out.SetWriteDeadline(time.Time{}) },
			"OutputPort.Close":       out.Close,
			"Close as a net.Conn":    func() error { return net.Conn(c).Close() },
			"io.Copy to a Conn":      func() error { _, err := io.Copy(c, bytes.NewReader(b)); return err },
			"io.Copy from InputPort": func() error { _, err := io.Copy(io.Discard, in); return err },
			"io.Copy Conn to itself": func() error { _, err := io.Copy(c, c); return err },
		}
		for name, call := range calls {
			var opErr *net.OpError
			if err := call(); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
				t.Errorf("%s of a %s Conn: got %v, want a *net.OpError with os.ErrInvalid", name, value, err)
			}
		}
		c.CloseOn(t.Context()) // it must not panic
		if local, remote := c.LocalAddr(), c.RemoteAddr(); local != nil || remote != nil {
			t.Errorf("LocalAddr and RemoteAddr of a %s Conn: got %v and %v, want nil and nil", value, local, remote)
		}
	}
}

// os.File ends the process if a write to descriptor 1 fails with EPIPE.
func TestWriteOnDescriptor1ReturnsEPIPE(t *testing.T) {
	h := sockettest.StartHelper(t, nil, "write on descriptor 1")
	h.Expect("EPIPE: true")
}

// --- roles of helper processes ---

// helpConnect connects to each path that it reads from its input. It closes the
// connections at the end of its input.
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

// helpServe listens at a path, or on the inherited descriptor if its argument is
// "inherited". It answers each client with its process ID.
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

// helpWriteOnDescriptor1 closes its standard output, makes a Conn of descriptor 1, and
// writes to it after its peer has gone. It prints whether the error is EPIPE.
func helpWriteOnDescriptor1([]string) error {
	fd, err := unix.Dup(1)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), "output")
	os.Stdout.Close()
	c, peer, err := unixsock.Pair() // c has descriptor 1, the lowest that is free
	if err != nil {
		return err
	}
	c.SetWriteDeadline(time.Now().Add(time.Minute)) // registers c with the poller
	peer.Close()
	_, err = c.Write([]byte("x"))
	fmt.Fprintln(out, "EPIPE:", errors.Is(err, syscall.EPIPE))
	return nil
}
