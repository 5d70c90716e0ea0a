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
	"reflect"
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
func fdOf(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	sockettest.Control(t, c, func(n int) { fd = n })
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
func fillBuffer(t testing.TB, c syscall.Conn) (total int) {
	t.Helper()
	raw, err := c.SyscallConn()
	sockettest.Check(t, err)
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

// wantOpError fails the test unless err is a *net.OpError of op with both
// addresses, and errors.Is finds want in it. done is what returned err.
func wantOpError(t testing.TB, done string, err error, op string, want error) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || opErr.Source == nil || opErr.Addr == nil ||
		!errors.Is(err, want) || opErr.Timeout() != (want == os.ErrDeadlineExceeded) {
		t.Errorf("%s: got %v (%#v), want a net.OpError of %s on unix with both addresses and %v", done, err, err, op, want)
	}
}

// --- every kind of connection ---

// A stream has the methods that every kind of connection has.
type stream interface {
	net.Conn
	syscall.Conn
	io.ReaderFrom
	io.WriterTo
	CloseRead() error
	CloseWrite() error
	CloseOn(context.Context)
	File() (*os.File, error)
	PeerCred() (unixsock.Cred, error)
	ReadFiles(b []byte, max int) (int, []*os.File, error)
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	WriteBuffers(*net.Buffers) (int64, error)
	WriteFiles(b []byte, files ...*os.File) (int, error)
}

// ports is a Conn that is used through its ports where they have a method for it.
type ports struct {
	*unixsock.Conn
	in  *unixsock.InputPort
	out *unixsock.OutputPort
}

func (p ports) Read(b []byte) (int, error)                { return p.in.Read(b) }
func (p ports) Write(b []byte) (int, error)               { return p.out.Write(b) }
func (p ports) ReadFrom(r io.Reader) (int64, error)       { return p.out.ReadFrom(r) }
func (p ports) CloseRead() error                          { return p.in.Close() }
func (p ports) CloseWrite() error                         { return p.out.Close() }
func (p ports) SetReadDeadline(deadline time.Time) error  { return p.in.SetReadDeadline(deadline) }
func (p ports) SetWriteDeadline(deadline time.Time) error { return p.out.SetWriteDeadline(deadline) }

// kinds maps each kind of connection to a function that returns its two ends.
var kinds = map[string]func(t testing.TB) (c, peer stream){
	"Connect": func(t testing.TB) (c, peer stream) { c, peer = sockettest.Pair(t); return c, peer },
	"Accept":  func(t testing.TB) (c, peer stream) { peer, c = sockettest.Pair(t); return c, peer },
	"Pair":    func(t testing.TB) (c, peer stream) { c, peer = newPairT(t); return c, peer },
	"TCPUnit": unitPair,
	"Ports": func(t testing.TB) (stream, stream) {
		c, peer := newPairT(t)
		in, out := c.Ports()
		if in2, out2 := c.Ports(); in != in2 || out != out2 {
			t.Errorf("second call of Ports: got %p, %p; want %p, %p as from the first", in2, out2, in, out)
		}
		return ports{c, in, out}, peer
	},
	"FileConn": func(t testing.TB) (stream, stream) {
		c, peer := newPairT(t)
		f := sockettest.Got(c.File()).Must(t)
		c.Close()
		defer f.Close()
		return sockettest.Got(unixsock.FileConn(f)).Must(t), peer
	},
}

// eachKind runs f for each kind of connection. open returns the two ends of a new one.
func eachKind(t *testing.T, f func(t *testing.T, open func(testing.TB) (c, peer stream))) {
	for name, open := range kinds {
		t.Run(name, func(t *testing.T) { f(t, open) })
	}
}

// An end is a way to end the uses of a half, and the error that they return then.
type end struct {
	name string
	half sockettest.Half
	want error
	call func(stream) error
}

var closes = []end{
	{"Close", sockettest.BothHalves, net.ErrClosed, stream.Close},
	{"CloseRead", sockettest.ReadHalf, net.ErrClosed, stream.CloseRead},
	{"CloseWrite", sockettest.WriteHalf, net.ErrClosed, stream.CloseWrite},
}

// deadlines returns the ways to set a deadline after d.
func deadlines(d time.Duration) []end {
	return []end{
		{"SetDeadline", sockettest.BothHalves, os.ErrDeadlineExceeded, func(c stream) error { return c.SetDeadline(time.Now().Add(d)) }},
		{"SetReadDeadline", sockettest.ReadHalf, os.ErrDeadlineExceeded, func(c stream) error { return c.SetReadDeadline(time.Now().Add(d)) }},
		{"SetWriteDeadline", sockettest.WriteHalf, os.ErrDeadlineExceeded, func(c stream) error { return c.SetWriteDeadline(time.Now().Add(d)) }},
	}
}

var custodian = end{"the end of the custodian", sockettest.BothHalves, net.ErrClosed, func(c stream) error {
	ctx, cancel := context.WithCancel(context.Background())
	c.CloseOn(ctx)
	cancel()
	return nil
}}

// A use is a call of a connection that needs one half, or either, and the Op of its errors.
type use struct {
	name string
	half sockettest.Half
	op   string
	call func(stream) error
}

// waits lists the uses that may have to wait. Each reads or writes one byte.
var waits = []use{
	{"Read", sockettest.ReadHalf, "read", func(c stream) error { return readOne(c)() }},
	{"ReadFiles", sockettest.ReadHalf, "read", func(c stream) error { _, _, err := c.ReadFiles(make([]byte, 1), 0); return err }},
	{"RawConn.Read", sockettest.ReadHalf, "raw-read", func(c stream) error { return rawUse(c, syscall.RawConn.Read, unix.Read) }},
	{"Write", sockettest.WriteHalf, "write", func(c stream) error { _, err := c.Write([]byte("!")); return err }},
	{"WriteBuffers", sockettest.WriteHalf, "write", func(c stream) error { _, err := c.WriteBuffers(&net.Buffers{[]byte("!")}); return err }},
	{"WriteFiles", sockettest.WriteHalf, "write", func(c stream) error { _, err := c.WriteFiles([]byte("!")); return err }},
	{"ReadFrom", sockettest.WriteHalf, "write", func(c stream) error { _, err := c.ReadFrom(strings.NewReader("!")); return err }},
	{"RawConn.Write", sockettest.WriteHalf, "raw-write", func(c stream) error { return rawUse(c, syscall.RawConn.Write, unix.Write) }},
}

// others lists the uses that never wait.
var others = []use{
	{"SetDeadline", sockettest.BothHalves, "set", func(c stream) error { return c.SetDeadline(time.Time{}) }},
	{"SetReadDeadline", sockettest.ReadHalf, "set", func(c stream) error { return c.SetReadDeadline(time.Time{}) }},
	{"SetWriteDeadline", sockettest.WriteHalf, "set", func(c stream) error { return c.SetWriteDeadline(time.Time{}) }},
	{"SetReadBuffer", sockettest.ReadHalf, "set", func(c stream) error { return c.SetReadBuffer(8 << 10) }},
	{"SetWriteBuffer", sockettest.WriteHalf, "set", func(c stream) error { return c.SetWriteBuffer(8 << 10) }},
	{"File", sockettest.BothHalves, "file", func(c stream) error { f, err := c.File(); f.Close(); return err }},
	{"PeerCred", sockettest.BothHalves, "peercred", func(c stream) error {
		cred, err := c.PeerCred()
		if errors.Is(err, errors.ErrUnsupported) || err != nil && cred != (unixsock.Cred{}) {
			return nil
		}
		return err
	}},
	{"RawConn.Control", sockettest.BothHalves, "raw-control", func(c stream) error {
		return rawUse(c, func(raw syscall.RawConn, _ func(uintptr) bool) error { return raw.Control(func(uintptr) {}) }, nil)
	}},
}

// rawUse moves a byte by a system call in a method of RawConn.
func rawUse(c stream, method func(syscall.RawConn, func(uintptr) bool) error, move func(int, []byte) (int, error)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return method(raw, func(fd uintptr) bool {
		n, err := move(int(fd), []byte("!"))
		return n > 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
}

// What the uses in waits read and write, if all of a half succeed.
const allRead, allWritten = "!!!", "!!!!!"

// checkWaits calls every use in waits. Those of the halves that ended fail with want, and
// the others succeed. done says what ended the halves.
func checkWaits(t *testing.T, done string, c, peer stream, ended sockettest.Half, want error) {
	t.Helper()
	if ended&sockettest.ReadHalf == 0 {
		sockettest.Send(t, peer, allRead)
	}
	for _, use := range waits {
		var err error
		sockettest.CheckReturns(t, use.name+" after "+done, func() { err = use.call(c) })
		if use.half&ended != 0 {
			wantOpError(t, use.name+" after "+done, err, use.op, want)
		} else if err != nil {
			t.Errorf("%s after %s: got %v, want nil", use.name, done, err)
		}
	}
	if ended&sockettest.WriteHalf == 0 {
		sockettest.Expect(t, peer, allWritten)
	}
}

func TestClosesInEveryOrder(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for i := range 2 * len(closes) * len(closes) * len(closes) {
			c, peer := open(t)
			fd := fdOf(t, c)
			var closed sockettest.Half
			order := ""
			for step, i := 0, i/2; step < 3; step, i = step+1, i/len(closes) {
				way := closes[i%len(closes)]
				order += " " + way.name
				if err := way.call(c); err != nil {
					t.Fatalf("last of the calls%s: got %v, want nil", order, err)
				}
				closed |= way.half
				if got, want := isOpen(fd), closed != sockettest.BothHalves; got != want {
					t.Fatalf("descriptor after%s: got open %v, want %v", order, got, want)
				}
				if i%2 == 0 && step < 2 {
					continue // so that no other call comes between the closes
				}
				checkWaits(t, order, c, peer, closed, net.ErrClosed)
				for _, use := range others {
					if err := use.call(c); use.half&^closed == 0 {
						wantOpError(t, use.name+" after"+order, err, use.op, net.ErrClosed)
					} else if err != nil {
						t.Errorf("%s after%s: got %v, want nil", use.name, order, err)
					}
				}
				if closed&sockettest.WriteHalf != 0 {
					if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("peer's Read after%s: got %d, %v; want 0 and io.EOF itself", order, n, err)
					}
				}
				if closed == sockettest.BothHalves || closed == sockettest.ReadHalf && sockettest.ReportsClosedInput(t) {
					_, err := peer.Write([]byte("!"))
					wantOpError(t, "peer's Write after"+order, err, "write", syscall.EPIPE)
				}
			}
		}
	})
}

func TestPeerThatHasGoneIsNoErrorOfAClose(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for _, first := range closes {
			for _, second := range closes {
				c, peer := open(t)
				sockettest.Send(t, peer, "!")
				peer.Close()
				err := errors.Join(c.SetReadBuffer(8<<10), c.SetWriteBuffer(8<<10), first.call(c), second.call(c))
				if err != nil {
					t.Errorf("set buffers, %s and %s after the peer's Close: got %v, want nil", first.name, second.name, err)
				}
			}
		}
	})
}

func TestDeadlinePastEndsItsHalf(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for _, d := range deadlines(-time.Second) {
			c, peer := open(t)
			sockettest.Check(t, d.call(c))
			checkWaits(t, d.name+" in the past", c, peer, d.half, d.want)
			sockettest.Check(t, c.SetDeadline(time.Time{}))
			checkWaits(t, "SetDeadline of the zero time", c, peer, 0, nil)
			sockettest.Check(t, d.call(c))
			sockettest.Check(t, errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})))
			checkWaits(t, "SetReadDeadline and SetWriteDeadline of the zero time", c, peer, 0, nil)
		}
		for _, way := range closes[1:] { // SetDeadline sets the deadline of the other half
			c, _ := open(t)
			sockettest.Check(t, errors.Join(way.call(c), c.SetDeadline(time.Now())))
			for _, use := range waits {
				want := os.ErrDeadlineExceeded
				if use.half == way.half {
					want = net.ErrClosed
				}
				wantOpError(t, use.name+" after "+way.name+" and SetDeadline", use.call(c), use.op, want)
			}
		}
	})
}

// One use of a half waits in the poller, and the others for their locks.
func TestWaitsEndWithTheirHalf(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for _, end := range slices.Concat(closes, deadlines(time.Millisecond), []end{custodian}) {
			c, peer := open(t)
			fillBuffer(t, c)
			results := make(map[string]chan error)
			for _, use := range waits {
				result := make(chan error, 1)
				results[use.name] = result
				go func() { result <- use.call(c) }()
			}
			checkWaiting := func(half sockettest.Half, after string) {
				time.Sleep(5 * time.Millisecond) // nothing must come for a while
				for _, use := range waits {
					if use.half&half != 0 && len(results[use.name]) > 0 {
						t.Errorf("%s that has to wait%s: got %v, want no return", use.name, after, <-results[use.name])
					}
				}
			}
			checkWaiting(sockettest.BothHalves, "")
			sockettest.Check(t, end.call(c))
			for _, use := range waits {
				if use.half&end.half != 0 {
					err := sockettest.Receive(t, use.name+" after "+end.name, results[use.name])
					wantOpError(t, "waiting "+use.name+" after "+end.name, err, use.op, end.want)
				}
			}
			if end.half == sockettest.BothHalves {
				continue
			}
			other := sockettest.BothHalves &^ end.half
			checkWaiting(other, " after "+end.name)
			if other == sockettest.ReadHalf {
				sockettest.Send(t, peer, allRead)
			} else {
				go io.Copy(io.Discard, peer)
			}
			for _, use := range waits {
				if use.half == other {
					sockettest.Check(t, sockettest.Receive(t, use.name+" after "+end.name, results[use.name]))
				}
			}
		}
	})
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		c, peer := open(t)
		b := make([]byte, 64)
		if n := testing.AllocsPerRun(100, func() {
			c.Write(b)
			peer.Read(b)
			peer.Write(b)
			c.Read(b)
		}); n != 0 {
			t.Errorf("Write and Read of 64 bytes in both directions: got %v allocations, want 0", n)
		}
	})
}

// cut returns data in buffers of n bytes, with empty buffers before and between
// them.
func cut(data []byte, n int) net.Buffers {
	v := net.Buffers{nil}
	for piece := range slices.Chunk(data, n) {
		v = append(v, piece, []byte{})
	}
	return v
}

func TestBytesArriveWholeAndInOrder(t *testing.T) {
	data := randomBytes(2 << 20)
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		c, peer := open(t)
		got := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(peer) // after an error, bytes are missing
			got <- b
		}()
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("Read of 0 bytes: got %d, %v; want 0, nil", n, err)
		}
		var want []byte
		for _, part := range []struct{ size, piece int }{
			{0, 1}, {1, 1}, {100, 7}, {1024, 1}, {3*1024 + 1, 1}, {64 << 10, 1 << 20}, {2 << 20, 100_000}, {1<<20 + 1, 2 << 20},
		} {
			b := data[:part.size]
			if n, err := c.Write(b); n != part.size || err != nil {
				t.Errorf("Write of %d bytes: got %d, %v; want all, nil", part.size, n, err)
			}
			v := cut(b, part.piece)
			if n, err := c.WriteBuffers(&v); n != int64(part.size) || err != nil || len(v) != 0 {
				t.Errorf("WriteBuffers of %d bytes by %d: got %d, %v and %d buffers left; want all, nil, 0", part.size, part.piece, n, err, len(v))
			}
			want = slices.Concat(want, b, b)
		}
		sockettest.Check(t, c.CloseWrite())
		if got := sockettest.Receive(t, "the peer", got); !bytes.Equal(got, want) {
			t.Errorf("ReadAll at the peer: got %d bytes, want the %d bytes that were written", len(got), len(want))
		}
	})
}

// TestWritesDoNotMix writes concurrently to new connections. The first Write that has to
// wait registers the Conn with the poller. The other goroutines must not write between the
// parts of that Write.
func TestWritesDoNotMix(t *testing.T) {
	for i := range sockettest.Times(100) {
		size := 64 << 10
		if i == 0 {
			size = 1<<20 + 1
		}
		c, peer := newPairT(t)
		sockettest.Check(t, c.SetWriteBuffer(16<<10)) // only a part of a Write fits into the buffer
		const writers = 4
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				message := bytes.Repeat([]byte{byte(i)}, size)
				if n, err := c.Write(message); n != size || err != nil {
					t.Errorf("Write of %d bytes by writer %d: got %d, %v; want all, nil", size, i, n, err)
				}
				v := cut(message, 999)
				if n, err := c.WriteBuffers(&v); n != int64(size) || err != nil {
					t.Errorf("WriteBuffers of %d bytes by writer %d: got %d, %v; want all, nil", size, i, n, err)
				}
			})
		}
		message := make([]byte, size)
		for range 2 * writers {
			if n, err := io.ReadFull(peer, message); err != nil {
				t.Fatalf("ReadFull of one message: got %d, %v; want %d, nil", n, err, size)
			}
			if n := bytes.Count(message, message[:1]); n != size {
				t.Fatalf("%d concurrent writers of %d bytes: got a message with %d bytes of its first writer, want all", writers, size, n)
			}
		}
		wg.Wait()
		c.Close()
		peer.Close()
	}
}

func TestWriteThatEndsEarlyReturnsTheExactCount(t *testing.T) {
	data := randomBytes(4 << 20)
	for name, write := range map[string]func(c *unixsock.Conn) (n int, left []byte, err error){
		"Write": func(c *unixsock.Conn) (int, []byte, error) { n, err := c.Write(data); return n, data[n:], err },
		"WriteBuffers": func(c *unixsock.Conn) (int, []byte, error) {
			v := cut(data, 5000)
			n, err := c.WriteBuffers(&v)
			return int(n), slices.Concat(v...), err
		},
	} {
		for _, want := range []error{net.ErrClosed, os.ErrDeadlineExceeded} {
			c, peer := newPairT(t)
			var n int
			var left []byte
			result := waiting(t, func() (err error) { n, left, err = write(c); return err })
			fd := fdOf(t, peer)
			sockettest.WaitFor(t, name+" has not begun", func() bool { return sockettest.Readable(fd) })
			if want == os.ErrDeadlineExceeded {
				c.SetWriteDeadline(time.Now())
			} else {
				c.CloseWrite()
			}
			wantOpError(t, "waiting "+name, sockettest.Receive(t, name, result), "write", want)
			c.CloseWrite()
			got, err := io.ReadAll(peer)
			if len(got) != n || n == 0 || err != nil || !bytes.Equal(slices.Concat(got, left), data) {
				t.Errorf("%s that ended with %v: the peer read %d bytes, %v, and %d were left; want the %d that it returned, above 0, and the rest left",
					name, want, len(got), err, len(left), n)
			}
		}
	}
}

func TestWriteBuffersIsOneSystemCall(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	writes := func() (n int) { // system calls of this thread that are like write(2)
		b, err := os.ReadFile("/proc/thread-self/io")
		if err != nil {
			t.Skip("no count of system calls: ", err)
		}
		_, count, _ := strings.Cut(string(b), "syscw: ")
		_, err = fmt.Sscan(count, &n)
		sockettest.Check(t, err)
		return n
	}
	c, _ := sockettest.Pair(t)
	v := cut(make([]byte, 1000), 10)
	before := writes()
	if _, err := c.WriteBuffers(&v); err != nil || writes()-before != 1 {
		t.Errorf("WriteBuffers of 1000 bytes by 10: got %v after %d system calls, want nil after 1", err, writes()-before)
	}
}

// A peer that writes fills the buffer again as CloseRead empties it, if the kernel lets
// it. When it waits, poll does not report to it that its output is shut down.
func TestCloseReadEndsThePeersWrites(t *testing.T) {
	for _, size := range []int{4 << 10, 8 << 20} {
		c, peer := newPairT(t)
		result := waiting(t, func() (err error) {
			for err == nil {
				_, err = peer.Write(make([]byte, size))
			}
			return err
		})
		sockettest.Expect(t, c, "\x00")
		sockettest.CheckReturns(t, "CloseRead while the peer writes", func() { c.CloseRead() })
		if !sockettest.ReportsClosedInput(t) {
			c.Close()
		}
		err := sockettest.Receive(t, "the peer's Write", result)
		wantOpError(t, fmt.Sprintf("peer's Write of %d bytes after CloseRead", size), err, "write", syscall.EPIPE)
	}
}

// TestCloseOfAHalfEndsWaitsToCome closes a half while a call registers the Conn with the
// poller and, in every other round, while deadlines are set. On Linux no event reports the
// close if the socket's buffer is partly full.
func TestCloseOfAHalfEndsWaitsToCome(t *testing.T) {
	for i := range sockettest.Times(1000) {
		c, peer := newPairT(t)
		sockettest.Send(t, c, "!")
		raw, err := c.SyscallConn()
		sockettest.Check(t, err)
		half, wait := sockettest.ReadHalf, raw.Read
		if i%4 < 2 {
			half, wait = sockettest.WriteHalf, raw.Write
		}
		ended := make(chan error, 1)
		var wg sync.WaitGroup
		wg.Go(func() { ended <- wait(func(uintptr) bool { return false }) })
		if i%2 == 0 {
			wg.Go(func() {
				for len(ended) == 0 {
					half.SetDeadline(c, time.Now().Add(time.Hour))
					c.SetDeadline(time.Time{})
				}
			})
			runtime.Gosched()
		}
		sockettest.Check(t, half.Close(c))
		sockettest.CheckReturns(t, "the wait in a closed half", wg.Wait)
		sockettest.ExpectError(t, "wait in a closed half", <-ended, net.ErrClosed)
		c.Close()
		peer.Close()
	}
}

// --- CloseOn ---

// A ledger is a context that counts the functions that context.AfterFunc has registered with
// it, until they are stopped or run. end cancels it.
type ledger struct {
	context.Context
	end     func()
	entries atomic.Int64
}

func newLedger() *ledger {
	ctx, cancel := context.WithCancel(context.Background())
	return &ledger{Context: ctx, end: cancel}
}

// Value hides the inner context from context.AfterFunc, which calls AfterFunc then.
func (l *ledger) Value(any) any { return nil }

func (l *ledger) AfterFunc(f func()) (stop func() bool) {
	l.entries.Add(1)
	inner := context.AfterFunc(l.Context, func() { l.entries.Add(-1); f() })
	return func() bool {
		stopped := inner()
		if stopped {
			l.entries.Add(-1)
		}
		return stopped
	}
}

// mustHave fails the test unless the ledger has n entries after what was done. A custodian is
// released by a goroutine of its own.
func (l *ledger) mustHave(t testing.TB, n int, done string) {
	t.Helper()
	runtime.Gosched()
	sockettest.WaitFor(t, fmt.Sprintf("%s: the context does not have %d entries", done, n), func() bool { return l.entries.Load() == int64(n) })
}

func TestAConnHasOneCustodianAtATime(t *testing.T) {
	c, peer := newPairT(t)
	first, second, third := newLedger(), newLedger(), newLedger()
	c.CloseOn(context.Background())
	for range 1000 {
		c.CloseOn(first)
	}
	first.mustHave(t, 1, "1000 calls of CloseOn")
	c.CloseOn(second)
	first.end()
	first.mustHave(t, 0, "CloseOn with a second context, on the first")
	second.mustHave(t, 1, "CloseOn with a second context, on the second")
	c.CloseOn(context.Background())
	second.mustHave(t, 0, "CloseOn(context.Background())")
	mustConverse(t, c, peer)
	c.CloseOn(third)
	third.end()
	sockettest.ExpectEOF(t, peer, "")
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
		var wg sync.WaitGroup
		wg.Go(old.end)
		c.CloseOn(next)
		if _, err := c.Write([]byte("x")); err == nil {
			open = append(open, c)
			next.mustHave(t, 1, "CloseOn in time, on the next context")
		} else {
			next.mustHave(t, 0, "CloseOn too late, on the next context")
		}
		wg.Wait()
		old.mustHave(t, 0, "CloseOn of another context, on the one that ended")
	}
	for _, c := range open {
		sockettest.Send(t, c, "x")
	}
}

func TestClosedConnLeavesNothingOnItsContext(t *testing.T) {
	ctx := newLedger()
	for _, first := range closes {
		for _, second := range closes {
			c, _ := newPairT(t)
			c.CloseOn(ctx)
			if n := ctx.entries.Load(); n != 1 {
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
	for range sockettest.Times(200) {
		c, _ := newPairT(t)
		var wg sync.WaitGroup
		wg.Go(func() { c.CloseOn(ctx) })
		wg.Go(func() { c.CloseRead() })
		wg.Go(func() { c.CloseWrite() })
		wg.Wait()
	}
	ctx.mustHave(t, 0, "CloseOn during CloseRead and CloseWrite")
}

// A context may end between the registration of the custodian's function, which runs then in
// a goroutine of its own, and the moment at which the Conn has the custodian.
func TestContextThatEndsBeforeTheCustodianIsInPlaceCloses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := sockettest.Listen(t)
	path := l.Addr().String()
	for range sockettest.Times(200) {
		c, peer := newPairT(t)
		c.CloseOn(ctx)
		mustEnd(t, peer)
		peer.Close()
		l.Close()
		l = sockettest.ListenAt(t, path, unixsock.ReplaceStale())
		l.CloseOn(ctx)
		sockettest.WaitClosing(t, l)
	}
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

// contextCase holds what the calls in contextCases use.
type contextCase struct {
	ctx    context.Context
	cancel func()
	l, l2  *unixsock.Listener
	c, c2  *unixsock.Conn
}

// contextCases maps a name to a preparation. It returns a call that is in a method of ctx
// while other calls must return.
var contextCases = map[string]func(t *testing.T, e *contextCase) (call func()){
	"AcceptEvt":             func(_ *testing.T, e *contextCase) func() { return func() { e.l.AcceptEvt(e.ctx) } },
	"CloseOn of a Listener": func(_ *testing.T, e *contextCase) func() { return func() { e.l.CloseOn(e.ctx) } },
	"CloseOn of a Conn":     func(_ *testing.T, e *contextCase) func() { return func() { e.c.CloseOn(e.ctx) } },
	"CloseOn of an event's receiver": func(t *testing.T, e *contextCase) func() {
		sockettest.Connect(t, e.l.Addr().String())
		evt := e.l.AcceptEvt(t.Context())
		return func() { (<-evt).Conn.CloseOn(e.ctx) }
	},
	"AcceptContext of a context that ends": func(_ *testing.T, e *contextCase) func() {
		e.cancel()
		return func() { e.l.AcceptContext(e.ctx) }
	},
	"AcceptContext whose context ends": func(_ *testing.T, e *contextCase) func() {
		return func() { time.AfterFunc(time.Millisecond, e.cancel); e.l.AcceptContext(e.ctx) }
	},
	"AcceptContext with Ready": func(_ *testing.T, e *contextCase) func() {
		e.l.Ready()
		return func() { time.AfterFunc(time.Millisecond, e.cancel); e.l.AcceptContext(e.ctx) }
	},
	"the custodian before": func(_ *testing.T, e *contextCase) func() {
		for _, v := range []interface{ CloseOn(context.Context) }{e.c, e.c2, e.l, e.l2} {
			v.CloseOn(e.ctx)
		}
		return func() {}
	},
	"an event that has delivered": func(t *testing.T, e *contextCase) func() {
		sockettest.Connect(t, e.l.Addr().String())
		e.c2 = mustReceive(t, e.l.AcceptEvt(e.ctx))
		return func() {}
	},
}

func TestMethodsOfAContextHoldUpNoOtherCall(t *testing.T) {
	for name, prepare := range contextCases {
		for _, method := range []string{"Done", "Err", "Value", "AfterFunc", "stop"} {
			t.Run(name+", "+method, func(t *testing.T) {
				inner, cancel := context.WithCancel(t.Context())
				defer cancel()
				ctx := &lockingContext{Context: inner, method: method, entered: make(chan struct{}, 1)}
				l, l2 := sockettest.Listen(t), sockettest.Listen(t)
				c, c2 := newPairT(t)
				e := &contextCase{ctx, cancel, l, l2, c, c2}
				call := prepare(t, e)
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
				for i, other := range []func(){
					func() { l.SetDeadline(time.Time{}) },
					func() { sockettest.Connect(t, l.Addr().String()); sockettest.Accept(t, l) },
					func() { l.Ready() },
					func() { l.AcceptEvt(t.Context()) },
					func() { l.CloseOn(t.Context()) },
					func() { l.Close() },
					func() { l2.Close() },
					func() { c.SetDeadline(time.Time{}) },
					func() { c.CloseOn(t.Context()) },
					func() { c.CloseRead() },
					func() { c.Close() },
					func() { e.c2.Close() },
				} {
					sockettest.CheckReturns(t, fmt.Sprintf("other call %d while a method of a context waits for a mutex", i), other)
				}
				unlock()
				cancel()
				sockettest.Receive(t, "the call whose context has locked the mutex", returned)
			})
		}
	}
}

// --- descriptors and the poller ---

// watchForeignSockets opens and closes sockets that do not belong to this package
// until quit is set. It fails the test if another goroutine uses or closes one of
// their descriptors.
func watchForeignSockets(t *testing.T, quit *atomic.Bool) {
	for !quit.Load() && !t.Failed() {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Errorf("socketpair(2): %v", err)
			return
		}
		for i := range 6 {
			runtime.Gosched()
			// If another goroutine shuts down the socket or reads the byte,
			// recvfrom(2) finds no byte. With MSG_DONTWAIT it does not wait.
			b := []byte{byte(i)}
			sendErr := unix.Sendto(fds[i%2], b, unix.MSG_DONTWAIT, nil)
			n, _, err := unix.Recvfrom(fds[(i+1)%2], b, unix.MSG_DONTWAIT)
			if n != 1 || b[0] != byte(i) || err != nil || sendErr != nil {
				t.Errorf("sendto(2) and recvfrom(2) with foreign sockets: got %v, %d, byte %d, %v; want nil, 1, byte %d, nil", sendErr, n, b[0], err, i)
			}
		}
		if err := errors.Join(unix.Close(fds[0]), unix.Close(fds[1])); err != nil {
			t.Errorf("close(2) of foreign sockets: got %v, want nil", err)
		}
	}
}

// Whichever call comes first and registers the connection with the poller, all calls
// return, none uses the descriptor of another socket, and nothing is left behind.
func TestNoCallUsesAReusedDescriptor(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(100))
	var quit atomic.Bool
	var watchers, users sync.WaitGroup
	for range 4 {
		watchers.Go(func() { watchForeignSockets(t, &quit) })
		users.Go(func() {
			for i := range sockettest.Times(80) {
				c, err1 := unixsock.Connect(l.Addr().String())
				s, err2 := l.AcceptContext(t.Context())
				if err := errors.Join(err1, err2, c.SetWriteBuffer(16<<10)); err != nil {
					t.Errorf("Connect, AcceptContext and SetWriteBuffer: got %v, want nil", err)
					return
				}
				ctx, cancel := context.WithCancel(t.Context())
				all := []func(){cancel}
				for _, conn := range []*unixsock.Conn{c, s}[i%2:] { // in every other round, s alone ends its calls
					for _, use := range slices.Concat(waits, others) {
						all = append(all, func() { use.call(conn) })
					}
					for _, way := range closes {
						all = append(all, func() {
							if err := way.call(conn); err != nil {
								t.Errorf("%s during other calls: got %v, want nil", way.name, err)
							}
						})
					}
					all = append(all, func() { conn.CloseOn(ctx) },
						func() { conn.Write(make([]byte, 64<<10)) }, // more than fits into the buffer
						func() { conn.Write(make([]byte, 1<<19)) })
				}
				rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				var wg sync.WaitGroup
				for _, f := range all {
					wg.Go(f)
				}
				wg.Wait()
				c.Close()
				cancel()
			}
		})
	}
	sockettest.CheckReturns(t, "calls on connections that are closed", users.Wait)
	quit.Store(true)
	watchers.Wait()
	l.Close()
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

func TestUnreachableConnectionIsClosed(t *testing.T) {
	for name, use := range map[string]func(c, peer *unixsock.Conn){
		"new":                        func(_, _ *unixsock.Conn) {},
		"registered with the poller": func(c, _ *unixsock.Conn) { c.SetDeadline(time.Time{}) },
		"in use":                     func(c, peer *unixsock.Conn) { mustTalk(t, c, peer) },
		"under an unreachable custodian": func(c, _ *unixsock.Conn) {
			ctx, cancel := context.WithCancel(context.Background())
			c.CloseOn(ctx)
			runtime.KeepAlive(cancel)
		},
	} {
		peer := func() *unixsock.Conn {
			c, peer, err := unixsock.Pair()
			sockettest.Check(t, err)
			use(c, peer)
			return peer
		}()
		end := make(chan error, 1)
		go func() { end <- readOne(peer)() }()
		sockettest.WaitFor(t, "the unreachable Conn that is "+name+" stays open", func() bool {
			runtime.GC()
			return len(end) > 0
		})
		if err := <-end; err != io.EOF {
			t.Errorf("Read at the peer of an unreachable Conn that is %s: got %v, want io.EOF", name, err)
		}
		peer.Close()
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
	a1, a2, err1 := unixsock.Pair()
	b1, b2, err2 := unixsock.Pair()
	var limit syscall.Rlimit
	err3 := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	limit.Cur = 64
	if err := errors.Join(err1, err2, err3, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)); err != nil {
		return err
	}
	for err := error(nil); err == nil; {
		_, err = syscall.Dup(0)
	}
	for _, pair := range [][2]*unixsock.Conn{{a1, a2}, {b1, b2}} {
		ended := make(chan error, 1)
		go func() { ended <- readOne(pair[0])() }()
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

// os.File ends the process if a write to descriptor 1 fails with EPIPE.
func TestWriteOnDescriptor1ReturnsEPIPE(t *testing.T) {
	h := sockettest.StartHelper(t, nil, "write on descriptor 1")
	h.Expect("EPIPE: true")
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

func TestConnWorksInsideAControlCallback(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		c, peer := open(t)
		sockettest.CheckReturns(t, "Control", func() {
			sockettest.Control(t, c, func(int) {
				checkWaits(t, "Control", c, peer, 0, nil)
				for _, use := range others {
					sockettest.Check(t, use.call(c))
				}
				sockettest.Check(t, c.CloseWrite())
			})
		})
		sockettest.ExpectEOF(t, peer, "")
	})
}

// --- buffer sizes, addresses and credentials ---

func TestBufferSizesAreSet(t *testing.T) {
	c, _ := sockettest.Pair(t)
	for name, buffer := range map[string]struct {
		set func(bytes int) error
		opt int
	}{
		"SetReadBuffer":  {c.SetReadBuffer, unix.SO_RCVBUF},
		"SetWriteBuffer": {c.SetWriteBuffer, unix.SO_SNDBUF},
	} {
		last := 0
		for _, ask := range []int{8 << 10, 64 << 10} {
			sockettest.Check(t, buffer.set(ask))
			sockettest.Control(t, c, func(fd int) {
				if size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, buffer.opt); err != nil || size < ask || size <= last {
					t.Errorf("getsockopt(2) after %s(%d): got %d, %v; want at least that and more than %d, nil", name, ask, size, err, last)
				} else {
					last = size
				}
			})
		}
	}
}

func TestAddresses(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	server := sockettest.Accept(t, l)
	unit := unixsock.NewTCPUnit(l.Addr().String() + "2")
	unitListener := sockettest.Got(unit.Listen("", "")).Must(t)
	unitClient := sockettest.Got(unit.Dial("", "")).Must(t)
	unitServer := sockettest.Got(unitListener.Accept()).Must(t)
	unnamed, named := &net.UnixAddr{Net: "unix"}, &net.UnixAddr{Name: l.Addr().String(), Net: "unix"}
	tcp := func(port int) net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port} }
	for _, when := range []string{"", " after Close"} {
		for what, test := range map[string]struct {
			addr func() net.Addr
			want net.Addr
		}{
			"Addr of the listener":            {l.Addr, named},
			"LocalAddr of the client":         {client.LocalAddr, unnamed},
			"RemoteAddr of the client":        {client.RemoteAddr, named},
			"LocalAddr of the server":         {server.LocalAddr, named},
			"RemoteAddr of the server":        {server.RemoteAddr, unnamed},
			"Addr of the unit's listener":     {unitListener.Addr, tcp(1)},
			"LocalAddr of the unit's client":  {unitClient.LocalAddr, tcp(1)},
			"RemoteAddr of the unit's client": {unitClient.RemoteAddr, tcp(0)},
			"LocalAddr of the unit's server":  {unitServer.LocalAddr, tcp(1)},
			"RemoteAddr of the unit's server": {unitServer.RemoteAddr, tcp(0)},
		} {
			if got := test.addr(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("%s%s: got %#v, want %#v", what, when, got, test.want)
			}
			if n := testing.AllocsPerRun(100, func() { test.addr() }); n != 0 {
				t.Errorf("%s%s, asked again: got %v allocations, want 0", what, when, n)
			}
		}
		for _, c := range []io.Closer{l, client, server, unitListener, unitClient, unitServer} {
			c.Close()
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
	unitListener := sockettest.Got(unit.Listen("", "")).Must(t)
	unitConn := sockettest.Got(unit.Dial("", "")).Must(t)
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

// The race detector finds a field that is read while it changes.
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

// peerCredOf returns the credentials of c's peer. It skips the test if the
// platform does not report them.
func peerCredOf(t testing.TB, c *unixsock.Conn) unixsock.Cred {
	t.Helper()
	cred, err := c.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	sockettest.Check(t, err)
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

func TestPeerCred(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for _, makePair := range []func(testing.TB) (client, server *unixsock.Conn){sockettest.Pair, newPairT} {
		client, server := makePair(t)
		for range 2 {
			wantCred(t, client, os.Getpid())
			wantCred(t, server, os.Getpid())
			client.CloseWrite()
			server.CloseRead()
		}
		client.Close()
		if cred := peerCredOf(t, server); cred.UID != os.Getuid() || cred.GID != os.Getgid() {
			t.Errorf("PeerCred after the peer's Close: got %+v, want this user and group", cred)
		}
	}
}

func TestPeerCredOfOtherProcesses(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t)
	client := sockettest.StartHelper(t, nil, "connect")
	for range 2 {
		client.Send(l.Addr().String())
		client.Expect("connected")
	}
	wantCred(t, sockettest.Accept(t, l), client.Cmd.Process.Pid)
	client.Kill()
	wantCred(t, sockettest.Accept(t, l), client.Cmd.Process.Pid)

	server := sockettest.StartHelper(t, nil, "serve", l.Addr().String()+"2")
	server.Expect("serving")
	wantCred(t, sockettest.Connect(t, l.Addr().String()+"2"), server.Cmd.Process.Pid)
}

func TestUsesOfNilAndZeroConnsFail(t *testing.T) {
	for value, c := range map[string]*unixsock.Conn{"nil": nil, "zero": new(unixsock.Conn)} {
		in, out := c.Ports()
		for _, c := range []stream{c, ports{c, in, out}} {
			uses := slices.Concat(waits, others, []use{
				{name: "WriteTo", call: func(c stream) error { _, err := c.WriteTo(io.Discard); return err }},
				{name: "io.Copy to itself", call: func(c stream) error { _, err := io.Copy(c, c); return err }},
			})
			for _, way := range closes {
				uses = append(uses, use{name: way.name, call: way.call})
			}
			for _, use := range uses {
				var opErr *net.OpError
				if err := use.call(c); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
					t.Errorf("%s of a %s %T: got %v, want a *net.OpError with os.ErrInvalid", use.name, value, c, err)
				}
			}
			c.CloseOn(t.Context()) // it must not panic
			if local, remote := c.LocalAddr(), c.RemoteAddr(); local != nil || remote != nil {
				t.Errorf("LocalAddr and RemoteAddr of a %s Conn: got %v and %v, want nil and nil", value, local, remote)
			}
		}
	}
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
