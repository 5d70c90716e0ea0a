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

func fdOf(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	sockettest.Control(t, c, func(n int) { fd = n })
	return fd
}

func isOpen(fd int) bool { _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); return err == nil }

// fillBuffer writes to c until a write would block, and returns how many bytes it wrote.
func fillBuffer(t testing.TB, c syscall.Conn) (total int) {
	t.Helper()
	var err error
	sockettest.Control(t, c, func(fd int) {
		for n := 0; err == nil || err == unix.EINTR; total += max(n, 0) {
			n, err = unix.Write(fd, make([]byte, 64<<10))
		}
	})
	if err != unix.EAGAIN {
		t.Fatalf("write(2) until the buffer is full: got %v, want EAGAIN", err)
	}
	return total
}

// waiting calls f, whose error the channel yields. It fails the test if f returns within 5 ms.
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

func readOne(r io.Reader) func() error {
	return func() error { _, err := r.Read(make([]byte, 1)); return err }
}

// wantOpError fails the test unless err is want, in a *net.OpError of op.
func wantOpError(t testing.TB, done string, err error, op string, want error) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || opErr.Source == nil || opErr.Addr == nil ||
		!errors.Is(err, want) || opErr.Timeout() != (want == os.ErrDeadlineExceeded) {
		t.Errorf("%s: got %v (%#v), want a net.OpError of %s on unix with both addresses and %v", done, err, err, op, want)
	}
}

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

var kinds = map[string]func(t testing.TB) (c, peer stream){
	"Connect": func(t testing.TB) (c, peer stream) { c, peer = sockettest.Pair(t); return c, peer },
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

// A use is a call of a connection that needs one half, or either, and the Op of its errors.
type use struct {
	name string
	half sockettest.Half
	op   string
	call func(stream) error
}

// want returns the error of the uses of a half that u, a close or a deadline, has ended.
func (u use) want() error {
	if u.op == "set" {
		return os.ErrDeadlineExceeded
	}
	return net.ErrClosed
}

var closes = []use{
	{"Close", sockettest.BothHalves, "close", stream.Close},
	{"CloseRead", sockettest.ReadHalf, "close", stream.CloseRead},
	{"CloseWrite", sockettest.WriteHalf, "close", stream.CloseWrite},
}

func deadlines(d time.Duration) []use {
	return []use{
		{"SetDeadline", sockettest.BothHalves, "set", func(c stream) error { return c.SetDeadline(time.Now().Add(d)) }},
		{"SetReadDeadline", sockettest.ReadHalf, "set", func(c stream) error { return c.SetReadDeadline(time.Now().Add(d)) }},
		{"SetWriteDeadline", sockettest.WriteHalf, "set", func(c stream) error { return c.SetWriteDeadline(time.Now().Add(d)) }},
	}
}

var custodian = use{"the end of the custodian", sockettest.BothHalves, "close", func(c stream) error {
	ctx, cancel := context.WithCancel(context.Background())
	c.CloseOn(ctx)
	cancel()
	return nil
}}

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

var others = append(deadlines(time.Hour), []use{
	{"SetReadBuffer", sockettest.ReadHalf, "set", func(c stream) error { return c.SetReadBuffer(8 << 10) }},
	{"SetWriteBuffer", sockettest.WriteHalf, "set", func(c stream) error { return c.SetWriteBuffer(8 << 10) }},
	{"File", sockettest.BothHalves, "file", func(c stream) error { f, err := c.File(); f.Close(); return err }},
	{"PeerCred", sockettest.BothHalves, "peercred", func(c stream) error {
		cred, err := c.PeerCred()
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		} else if err != nil && cred != (unixsock.Cred{}) {
			return fmt.Errorf("got the credentials %+v with the error %v", cred, err)
		}
		return err
	}},
	{"RawConn.Control", sockettest.BothHalves, "raw-control", func(c stream) error {
		return rawUse(c, func(raw syscall.RawConn, _ func(uintptr) bool) error { return raw.Control(func(uintptr) {}) }, nil)
	}},
}...)

func rawUse(c stream, method func(syscall.RawConn, func(uintptr) bool) error, move func(int, []byte) (int, error)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return method(raw, func(fd uintptr) bool {
		n, _ := move(int(fd), []byte("!")) // it fails with EPIPE where a shutdown wakes the call
		return n > 0
	})
}

const allRead, allWritten = "!!!", "!!!!!" // by all of waits

// checkUses calls uses, which include waits. Those that done has ended fail with want.
func checkUses(t *testing.T, done string, uses []use, c, peer stream, ended sockettest.Half, want error) {
	t.Helper()
	if ended&sockettest.ReadHalf == 0 {
		sockettest.Send(t, peer, allRead)
	}
	for _, use := range uses {
		var err error
		sockettest.CheckReturns(t, use.name+" after "+done, func() { err = use.call(c) })
		if use.half&^ended != 0 {
			sockettest.ExpectError(t, use.name+" after "+done, err, nil)
		} else {
			wantOpError(t, use.name+" after "+done, err, use.op, want)
		}
	}
	if ended&sockettest.WriteHalf == 0 && !t.Failed() {
		sockettest.Expect(t, peer, allWritten)
	}
}

// Other calls come after each close, or after the last one, or the peer has gone before.
func TestClosesInEveryOrder(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for i := range 3 * len(closes) * len(closes) * len(closes) {
			c, peer := open(t)
			if i%3 == 2 {
				sockettest.Send(t, peer, "!")
				sockettest.Check(t, errors.Join(peer.Close(), c.SetReadBuffer(8<<10), c.SetWriteBuffer(8<<10)))
			}
			ctx := newLedger()
			c.CloseOn(ctx)
			ctx.mustHave(t, 1, "CloseOn")
			fd := -1
			if i%3 == 0 { // fdOf registers c with the poller
				fd = fdOf(t, c)
			}
			var closed sockettest.Half
			order, next := "", i/3
			for step := range 3 {
				way := closes[next%len(closes)]
				next /= len(closes)
				order += " " + way.name
				closed |= way.half
				sockettest.ExpectError(t, "last of the calls"+order, way.call(c), nil)
				if got, want := isOpen(fd), closed != sockettest.BothHalves; fd >= 0 && got != want {
					t.Fatalf("descriptor after%s: got open %v, want %v", order, got, want)
				}
				if i%3 == 2 || i%3 == 1 && step < 2 {
					continue
				}
				checkUses(t, order, slices.Concat(waits, others), c, peer, closed, net.ErrClosed)
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
			if closed != sockettest.BothHalves {
				ctx.mustHave(t, 1, order)
				c.Close()
			}
			ctx.mustHave(t, 0, order)
			c.CloseOn(ctx)
			ctx.mustHave(t, 0, "CloseOn after Close")
		}
	})
}

func TestDeadlinePastEndsItsHalf(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for _, d := range deadlines(-time.Second) {
			c, peer := open(t)
			sockettest.Check(t, d.call(c))
			checkUses(t, d.name+" in the past", waits, c, peer, d.half, d.want())
			sockettest.Check(t, errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})))
			checkUses(t, "deadlines of the zero time", waits, c, peer, 0, nil)
		}
		for _, way := range closes[1:] {
			c, _ := open(t)
			sockettest.Check(t, errors.Join(way.call(c), c.SetDeadline(time.Now())))
			for _, use := range waits {
				if use.half != way.half {
					wantOpError(t, use.name+" after "+way.name+" and SetDeadline", use.call(c), use.op, os.ErrDeadlineExceeded)
				}
			}
		}
	})
}

// One use of a half waits in the poller, and the others for their locks.
func TestWaitsEndWithTheirHalf(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		for _, end := range slices.Concat(closes, deadlines(time.Millisecond), []use{custodian}) {
			c, peer := open(t)
			fillBuffer(t, c)
			var results []chan error
			for _, use := range waits {
				result := make(chan error, 1)
				results = append(results, result)
				go func() { result <- use.call(c) }()
			}
			checkWaiting := func(half sockettest.Half, after string) {
				time.Sleep(5 * time.Millisecond) // nothing must come for a while
				for i, use := range waits {
					if use.half&half != 0 && len(results[i]) > 0 {
						t.Errorf("%s that has to wait%s: got %v, want no return", use.name, after, <-results[i])
					}
				}
			}
			checkWaiting(sockettest.BothHalves, "")
			sockettest.Check(t, end.call(c))
			for i, use := range waits {
				if use.half&end.half != 0 {
					err := sockettest.Receive(t, use.name+" after "+end.name, results[i])
					wantOpError(t, "waiting "+use.name+" after "+end.name, err, use.op, end.want())
				}
			}
			checkWaiting(sockettest.BothHalves&^end.half, " after "+end.name)
			go peer.Write([]byte(allRead)) // to c, unless its input has ended
			go io.Copy(io.Discard, peer)
			for i, use := range waits {
				if use.half&end.half == 0 {
					sockettest.Check(t, sockettest.Receive(t, use.name+" after "+end.name, results[i]))
				}
			}
		}
	})
}

// cut returns data in buffers of n bytes, with empty buffers before and between them.
func cut(data []byte, n int) net.Buffers {
	v := net.Buffers{nil}
	for piece := range slices.Chunk(data, n) {
		v = append(v, piece, []byte{})
	}
	return v
}

func TestBytesArriveWholeAndInOrder(t *testing.T) {
	data := randomBytes(1<<20 + 1)
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		c, peer := open(t)
		b := data[:64]
		if n := testing.AllocsPerRun(100, func() { c.Write(b); peer.Read(b); peer.Write(b); c.Read(b) }); n != 0 {
			t.Errorf("Write and Read of 64 bytes in both directions: got %v allocations, want 0", n)
		}
		waiting, echo := open(t)
		go io.CopyBuffer(struct{ io.Writer }{echo}, struct{ io.Reader }{echo}, make([]byte, len(b)))
		if n := testing.AllocsPerRun(100, func() { waiting.Write(b); waiting.Read(b) }); n != 0 {
			t.Errorf("Write, and Read that waits for an answer, not for the first time: got %v allocations, want 0", n)
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("Read of 0 bytes: got %d, %v; want 0, nil", n, err)
		}
		_, result := gathered(t, c, peer)
		var want []byte
		for _, part := range []struct{ size, piece int }{
			{0, 1}, {1, 1}, {100, 7}, {1024, 1}, {3*1024 + 1, 1}, {64 << 10, 1 << 20}, {1<<20 + 1, 100_000},
		} {
			b, v := data[:part.size], cut(data[:part.size], part.piece)
			n, err := c.Write(b)
			if n2, err2 := c.WriteBuffers(&v); n != len(b) || n2 != int64(n) || err != nil || err2 != nil || len(v) != 0 {
				t.Errorf("Write and WriteBuffers of %d bytes by %d: got %d, %v and %d, %v with %d buffers left; want all, nil, none",
					part.size, part.piece, n, err, n2, err2, len(v))
			}
			want = slices.Concat(want, b, b)
		}
		if got := result(); !bytes.Equal(got, want) {
			t.Errorf("the peer read %d bytes, want the %d bytes that were written", len(got), len(want))
		}
	})
}

// No goroutine writes between the parts of the Write that has to wait, and registers the Conn.
func TestWritesDoNotMix(t *testing.T) {
	const writers = 4
	message := make([]byte, 1<<20+1)
	for range sockettest.Times(100) {
		c, peer := newPairT(t)
		sockettest.Check(t, c.SetWriteBuffer(16<<10)) // only a part of a Write fits into the buffer
		for i := range writers {
			b := bytes.Repeat([]byte{byte(i)}, len(message))
			go func() {
				v := cut(b, 999)
				n, err := c.Write(b)
				if n2, err2 := c.WriteBuffers(&v); n != len(b) || n2 != int64(n) || err != nil || err2 != nil {
					t.Errorf("Write and WriteBuffers of %d bytes: got %d, %v and %d, %v; want all, nil", len(b), n, err, n2, err2)
				}
			}()
		}
		for range 2 * writers {
			n, err := io.ReadFull(peer, message)
			if same := bytes.Count(message, message[:1]); err != nil || same != len(message) {
				t.Fatalf("ReadFull of one message: got %d bytes, %v, %d of its first writer; want %d, nil, all", n, err, same, len(message))
			}
		}
		message = message[:64<<10] // after the first round
		peer.Close()
	}
}

func TestWriteThatEndsEarlyReturnsTheExactCount(t *testing.T) {
	data := randomBytes(4 << 20)
	for name, write := range map[string]func(c stream, v *net.Buffers) (int64, error){
		"Write": func(c stream, v *net.Buffers) (int64, error) {
			n, err := c.Write(data)
			*v = net.Buffers{data[n:]}
			return int64(n), err
		},
		"WriteBuffers": stream.WriteBuffers,
	} {
		for _, end := range []use{closes[2], deadlines(0)[2]} {
			c, peer := newPairT(t)
			left := cut(data, 5000)
			var n int64
			result := waiting(t, func() (err error) { n, err = write(c, &left); return err })
			// NetBSD forgets the count of a write(2) that finds its half closed.
			sockettest.WaitFor(t, name+" does not wait", func() bool { return isFull(t, c) })
			sockettest.Check(t, end.call(c))
			wantOpError(t, "waiting "+name+" after "+end.name, sockettest.Receive(t, name, result), "write", end.want())
			c.CloseWrite()
			got, err := io.ReadAll(peer)
			if int64(len(got)) != n || n == 0 || err != nil || !bytes.Equal(append(got, slices.Concat(left...)...), data) {
				t.Errorf("%s that ended by %s: the peer read %d bytes, %v; want the %d returned, above 0, and the rest left", name, end.name, len(got), err, n)
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
		fmt.Sscan(count, &n)
		return n
	}
	c, _ := newPairT(t)
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
			for ; err == nil; _, err = peer.Write(make([]byte, size)) {
			}
			return err
		})
		sockettest.Expect(t, c, "\x00")
		sockettest.CheckReturns(t, "CloseRead while the peer writes", func() { c.CloseRead() })
		if !sockettest.ReportsClosedInput(t) {
			c.Close()
		}
		wantOpError(t, "peer's Write after CloseRead", sockettest.Receive(t, "the peer's Write", result), "write", syscall.EPIPE)
	}
}

// A call registers the Conn with the poller as the half is closed and, in some rounds, as
// deadlines are set. On Linux no event reports the close if the buffer is partly full.
func TestCloseOfAHalfEndsWaitsToCome(t *testing.T) {
	for i := range max(160, sockettest.Times(400)) {
		c, peer := newPairT(t)
		sockettest.Send(t, c, "!")
		raw, err := c.SyscallConn()
		sockettest.Check(t, err)
		half, wait := sockettest.ReadHalf, raw.Read
		if i%2 == 0 {
			half, wait = sockettest.WriteHalf, raw.Write
		}
		ended := make(chan error, 1)
		go func() { ended <- wait(func(uintptr) bool { return false }) }()
		if i%8 < 2 {
			for _, h := range []sockettest.Half{half, sockettest.BothHalves} {
				go func() {
					for h.SetDeadline(c, time.Now().Add(time.Hour)) == nil && h.SetDeadline(c, time.Time{}) == nil {
					}
				}()
			}
		}
		for range i % 5 {
			runtime.Gosched()
		}
		sockettest.Check(t, half.Close(c))
		sockettest.ExpectError(t, "wait in a closed half", sockettest.Receive(t, "the wait in a closed half", ended), net.ErrClosed)
		c.Close()
		peer.Close()
	}
}

// A ledger is a context that counts the functions of AfterFunc that wait for its end.
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
		if !inner() {
			return false
		}
		l.entries.Add(-1)
		return true
	}
}

// mustHave waits until the ledger has n entries. A goroutine of its own releases a custodian.
func (l *ledger) mustHave(t testing.TB, n int, done string) {
	t.Helper()
	runtime.Gosched()
	sockettest.WaitFor(t, fmt.Sprintf("%s: the context does not have %d entries", done, n), func() bool { return l.entries.Load() == int64(n) })
}

// If the second CloseOn finds the connection open, the old context must no longer close it.
func TestAConnHasOneCustodianAtATime(t *testing.T) {
	open := make(map[*unixsock.Conn]*ledger) // with the custodian
	for i := range sockettest.Times(300) {
		c, _ := newPairT(t)
		old, next := newLedger(), newLedger()
		c.CloseOn(old)
		c.CloseOn(old)
		old.mustHave(t, 1, "CloseOn twice")
		if i%2 == 0 {
			go old.end()
		}
		c.CloseOn(next)
		old.end()
		if _, err := c.Write([]byte("x")); err == nil {
			open[c] = next
		}
		old.mustHave(t, 0, "CloseOn of another context, on the one before")
	}
	for c, custodian := range open {
		custodian.mustHave(t, 1, "CloseOn as the context before ends")
		c.CloseOn(context.Background())
		custodian.mustHave(t, 0, "CloseOn(context.Background())")
		custodian.end()
		sockettest.Send(t, c, "x")
	}
}

// The custodian's function may run before the Conn or the Listener has the custodian.
func TestContextThatEndsBeforeTheCustodianIsInPlaceCloses(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range sockettest.Times(100) {
		c, peer := newPairT(t)
		l := sockettest.Listen(t)
		c.CloseOn(ctx)
		l.CloseOn(ctx)
		mustEnd(t, peer)
		sockettest.WaitClosing(t, l)
		l.Close()
	}
}

// A heldContext has a method, or a stop of its AfterFunc, that waits until release is closed.
type heldContext struct {
	context.Context
	method           string
	entered, release chan struct{}
}

func (c *heldContext) enter(method string) {
	if method == c.method {
		c.entered <- struct{}{}
		<-c.release
	}
}

func (c *heldContext) Done() <-chan struct{} { c.enter("Done"); return c.Context.Done() }
func (c *heldContext) Err() error            { c.enter("Err"); return c.Context.Err() }
func (c *heldContext) Value(any) any         { c.enter("Value"); return nil }
func (c *heldContext) AfterFunc(f func()) (stop func() bool) {
	c.enter("AfterFunc")
	return func() bool { c.enter("stop"); return true }
}

// Package pending tests the contexts of Accept and of events.
func TestMethodsOfACustodianHoldUpNoOtherCall(t *testing.T) {
	for _, method := range []string{"Done", "Err", "Value", "AfterFunc", "stop"} {
		ctx := &heldContext{newLedger(), "", make(chan struct{}, 8), make(chan struct{})}
		c1, c2 := newPairT(t)
		c3, c4 := newPairT(t)
		l1, l2 := sockettest.Listen(t), sockettest.Listen(t)
		for _, v := range []interface{ CloseOn(context.Context) }{c2, c3, c4, l2} {
			v.CloseOn(ctx)
		}
		sockettest.Connect(t, l2.Addr().String())
		delivered := mustReceive(t, l2.AcceptEvt(ctx))
		ctx.method = method
		var wg sync.WaitGroup
		wg.Go(func() { c1.CloseOn(ctx) })
		wg.Go(func() { l1.CloseOn(ctx) })
		if method != "stop" {
			sockettest.Receive(t, "a call of "+method, ctx.entered)
			sockettest.Receive(t, "another call of "+method, ctx.entered)
		}
		for i, other := range []func(){
			func() { c1.SetDeadline(time.Time{}) }, func() { c1.CloseOn(t.Context()) }, func() { c1.CloseRead() }, func() { c1.Close() },
			func() { c2.CloseOn(t.Context()) }, func() { c3.CloseRead(); c3.CloseWrite() }, func() { c4.CloseOn(context.Background()) }, func() { delivered.Close() },
			func() { l1.SetDeadline(time.Time{}) }, func() { l1.Ready() }, func() { l1.AcceptEvt(t.Context()) },
			func() { sockettest.Connect(t, l1.Addr().String()); sockettest.Accept(t, l1) },
			func() { l1.CloseOn(t.Context()) }, func() { l1.Close() }, func() { l2.Close() },
		} {
			sockettest.CheckReturns(t, fmt.Sprintf("other call %d while %s of a context does not return", i, method), other)
		}
		close(ctx.release)
		sockettest.CheckReturns(t, "CloseOn", wg.Wait)
	}
}

// watchForeignSockets fails the test if another goroutine uses or closes one of its descriptors.
func watchForeignSockets(t *testing.T, quit *atomic.Bool) {
	for !quit.Load() && !t.Failed() {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		for i := 0; i < 6 && err == nil; i++ {
			runtime.Gosched()
			// If another goroutine shuts down the socket or reads the byte,
			// recvfrom(2) finds no byte. With MSG_DONTWAIT it does not wait.
			b := []byte{byte(i)}
			sendErr := unix.Sendto(fds[i%2], b, unix.MSG_DONTWAIT, nil)
			n, _, recvErr := unix.Recvfrom(fds[1-i%2], b, unix.MSG_DONTWAIT)
			if err = errors.Join(sendErr, recvErr); n != 1 || b[0] != byte(i) {
				err = errors.Join(err, fmt.Errorf("byte %d: got %d, %d", i, n, b))
			}
		}
		if err := errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1])); err != nil {
			t.Errorf("socketpair(2), sendto(2), recvfrom(2) and close(2) of foreign sockets: got %v, want nil", err)
		}
	}
}

// Whichever call comes first and registers the connection with the poller, all calls
// return, none uses the descriptor of another socket, and nothing is left behind.
func TestNoCallUsesAReusedDescriptor(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	l, custodian := sockettest.Listen(t, unixsock.Backlog(100)), newLedger()
	var quit atomic.Bool
	var watchers, users sync.WaitGroup
	storm := func() {
		c, err1 := unixsock.Connect(l.Addr().String())
		s, err2 := l.AcceptContext(t.Context())
		if err := errors.Join(err1, err2, c.SetWriteBuffer(16<<10)); err != nil {
			t.Errorf("Connect, AcceptContext and SetWriteBuffer: got %v, want nil", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		all := []func(){cancel}
		for _, conn := range []*unixsock.Conn{c, s}[rand.IntN(2):] { // in half of the rounds, s alone ends its calls
			for _, use := range slices.Concat(waits, others) {
				all = append(all, func() { use.call(conn) })
			}
			for _, way := range closes {
				all = append(all, func() { sockettest.ExpectError(t, way.name+" during other calls", way.call(conn), nil) })
			}
			all = append(all, func() { conn.CloseOn(ctx) }, func() { conn.CloseOn(custodian) },
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
	}
	for range 4 {
		watchers.Go(func() { watchForeignSockets(t, &quit) })
		users.Go(func() {
			for range sockettest.Times(40) {
				storm()
			}
		})
	}
	sockettest.CheckReturns(t, "calls on connections that are closed", users.Wait)
	quit.Store(true)
	watchers.Wait()
	l.Close()
	custodian.mustHave(t, 0, "CloseOn during closes")
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
}

func TestUnreachableConnectionIsClosed(t *testing.T) {
	for name, use := range map[string]func(c, peer *unixsock.Conn){
		"new":                            func(_, _ *unixsock.Conn) {},
		"registered with the poller":     func(c, _ *unixsock.Conn) { c.SetDeadline(time.Time{}) },
		"in use":                         func(c, peer *unixsock.Conn) { mustTalk(t, c, peer) },
		"under an unreachable custodian": func(c, _ *unixsock.Conn) { c.CloseOn(newLedger()) },
	} {
		c, peer, err := unixsock.Pair()
		sockettest.Check(t, err)
		use(c, peer) // the last use of c
		end := make(chan error, 1)
		go func() { end <- readOne(peer)() }()
		sockettest.WaitFor(t, "the unreachable Conn that is "+name+" stays open", func() bool { runtime.GC(); return len(end) > 0 })
		sockettest.ExpectError(t, "Read at the peer of an unreachable Conn that is "+name, <-end, io.EOF)
		peer.Close()
	}
}

// The runtime's poller opens descriptors when it starts, and ends the process if none is free.
// The timers of tests and of TestMain start it, so the child process runs neither.
func TestPollerStartsBeforeDescriptorsRunOut(t *testing.T) {
	cmd := sockettest.HelperCommand(t, nil, "wait without descriptors")
	cmd.Env = append(cmd.Env, "UNIXSOCK_TEST_NO_TIMER=1")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "<nil>\n" {
		t.Errorf("Reads that wait in a process without free descriptors: got %v, output %q; want nil, <nil>", err, out)
	}
}

func init() {
	if os.Getenv("UNIXSOCK_TEST_NO_TIMER") != "" {
		fmt.Println(helpWaitWithoutDescriptors(nil))
		os.Exit(0)
	}
}

func helpWaitWithoutDescriptors([]string) error {
	c, peer, err := unixsock.Pair()
	if err := errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 64, Max: 64})); err != nil {
		return err
	}
	for err == nil {
		_, err = syscall.Dup(0)
	}
	for _, ends := range [][2]*unixsock.Conn{{c, peer}, {peer, c}} {
		ended := make(chan error, 1)
		go func() { ended <- readOne(ends[0])() }()
		runtime.Gosched() // the Read likely waits now; if it does not, it must succeed all the same
		if _, err := ends[1].Write([]byte("x")); err != nil || <-ended != nil {
			return errors.New("a Read or a Write has failed")
		}
	}
	return nil
}

// os.File ends the process if a write to descriptor 1 fails with EPIPE.
func TestWriteOnDescriptor1ReturnsEPIPE(t *testing.T) {
	h := sockettest.StartHelper(t, nil, "write on descriptor 1")
	h.Expect("EPIPE: true")
}

// helpWriteOnDescriptor1 makes a Conn of descriptor 1, and writes to it after its peer has gone.
func helpWriteOnDescriptor1([]string) error {
	fd, err1 := unix.Dup(1)
	os.Stdout.Close()
	c, peer, err2 := unixsock.Pair() // c has descriptor 1, the lowest that is free
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	c.SetWriteDeadline(time.Now().Add(time.Minute)) // registers c with the poller
	peer.Close()
	_, err := c.Write([]byte("x"))
	fmt.Fprintln(os.NewFile(uintptr(fd), "output"), "EPIPE:", errors.Is(err, syscall.EPIPE))
	return nil
}

// Those of Read and Write exclude other reads or writes.
func TestConnWorksInsideACallbackOfItsRawConn(t *testing.T) {
	eachKind(t, func(t *testing.T, open func(testing.TB) (c, peer stream)) {
		c, peer := open(t)
		sockettest.CheckReturns(t, "Control", func() {
			sockettest.Control(t, c, func(int) {
				checkUses(t, "Control", slices.Concat(waits, others), c, peer, 0, nil)
				sockettest.Check(t, errors.Join(c.SetDeadline(time.Time{}), c.CloseWrite()))
			})
		})
		for i, method := range []func(syscall.RawConn, func(uintptr) bool) error{syscall.RawConn.Read, syscall.RawConn.Write} {
			c, _ := open(t)
			sockettest.CheckReturns(t, "RawConn.Read or Write", func() {
				sockettest.Check(t, rawUse(c, method, func(int, []byte) (int, error) {
					for _, use := range slices.Concat(others, closes[1+i:2+i]) {
						sockettest.ExpectError(t, use.name+" in a callback of RawConn.Read or Write", use.call(c), nil)
					}
					return 1, nil
				}))
			})
		}
	})
}

func TestBufferSizesAreSet(t *testing.T) {
	c, _ := newPairT(t)
	for opt, set := range map[int]func(bytes int) error{unix.SO_RCVBUF: c.SetReadBuffer, unix.SO_SNDBUF: c.SetWriteBuffer} {
		var got [2]int
		for i, ask := range []int{8 << 10, 64 << 10} {
			sockettest.Check(t, set(ask))
			sockettest.Control(t, c, func(fd int) { got[i], _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt) })
		}
		if got[0] < 8<<10 || got[1] < 64<<10 || got[0] == got[1] {
			t.Errorf("option %d after setting 8 KiB and 64 KiB: got %d, want at least that", opt, got)
		}
	}
}

func TestAddressesAndStrings(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	client, server := sockettest.Connect(t, path), sockettest.Accept(t, l)
	in, out := client.Ports()
	unit := unixsock.NewTCPUnit(path + "2")
	unitListener := sockettest.Got(unit.Listen("", "")).Must(t)
	unitConn := sockettest.Got(unit.Dial("", "")).Must(t)
	unitServer := sockettest.Got(unitListener.Accept()).Must(t)
	for want, values := range map[string][]any{
		"unix ->" + path:              {client, in, out},
		"unix " + path + "->":         {server},
		"unix " + path:                {l},
		"unix " + path + "2":          {unit, unitListener},
		"unix ->" + path + "2":        {unitConn},
		"{unix ->" + path + " <nil>}": {unixsock.Accepted{Conn: client}},
		"unix ->":                     {&unixsock.Conn{}},
		"unix ":                       {&unixsock.Listener{}},
		`unix "a\x00b"`:               {unixsock.NewTCPUnit("a\x00b")},
		`unix "/\x1b[2J"`:             {unixsock.NewTCPUnit("/\x1b[2J")},
		`unix "/\x9b2J"`:              {unixsock.NewTCPUnit("/\x9b2J")}, // not UTF-8
		"unix /é ü":                   {unixsock.NewTCPUnit("/é ü")},
		"<nil>":                       {(*unixsock.Conn)(nil), (*unixsock.InputPort)(nil), (*unixsock.OutputPort)(nil), (*unixsock.Listener)(nil), (*unixsock.TCPUnit)(nil)},
	} {
		for _, value := range values {
			if got := fmt.Sprintf("%v", value); got != want {
				t.Errorf("%%v of a %T: got %q, want %q", value, got, want)
			}
		}
	}
	unnamed, named := &net.UnixAddr{Net: "unix"}, &net.UnixAddr{Name: path, Net: "unix"}
	tcp1, tcp0 := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 0}
	for range 2 { // the second time, after Close
		for i, addr := range []struct {
			get  func() net.Addr
			want net.Addr
		}{
			{l.Addr, named}, {client.LocalAddr, unnamed}, {client.RemoteAddr, named}, {server.LocalAddr, named}, {server.RemoteAddr, unnamed},
			{unitListener.Addr, tcp1}, {unitConn.LocalAddr, tcp1}, {unitConn.RemoteAddr, tcp0}, {unitServer.LocalAddr, tcp1}, {unitServer.RemoteAddr, tcp0},
		} {
			got := addr.get()
			if n := testing.AllocsPerRun(100, func() { addr.get() }); n != 0 || !reflect.DeepEqual(got, addr.want) {
				t.Errorf("address %d: got %#v, with %v allocations the next times; want %#v with 0", i, got, n, addr.want)
			}
		}
		// The race detector finds a field that String reads while it changes.
		printed := make(chan string)
		go func() { printed <- fmt.Sprint(client, " ", l) }()
		client.SetDeadline(time.Now())
		l.Ready()
		for _, c := range []io.Closer{l, client, server, unitListener, unitConn, unitServer} {
			c.Close()
		}
		if got, want := sockettest.Receive(t, "the text", printed), "unix ->"+path+" unix "+path; got != want {
			t.Errorf("Sprint during other calls: got %q, want %q", got, want)
		}
	}
}

// peerCredOf returns c.PeerCred. It skips the test if the platform has none.
func peerCredOf(t testing.TB, c *unixsock.Conn) unixsock.Cred {
	t.Helper()
	cred, err := c.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	sockettest.Check(t, err)
	return cred
}

// wantCred fails the test unless the peer of c is process pid, if the kernel reports it.
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
			sockettest.Check(t, errors.Join(client.CloseWrite(), server.CloseRead()))
		}
		client.Close()
		if cred := peerCredOf(t, server); cred.UID != os.Getuid() || cred.GID != os.Getgid() {
			t.Errorf("PeerCred after the peer's Close: got %+v, want this user and group", cred)
		}
	}
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
	for _, c := range []*unixsock.Conn{nil, new(unixsock.Conn)} {
		in, out := c.Ports()
		for _, use := range slices.Concat(waits, others, closes) {
			for _, s := range []stream{c, ports{c, in, out}} {
				var opErr *net.OpError
				if err := use.call(s); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
					t.Errorf("%s of a nil or zero %T: got %v, want a *net.OpError with os.ErrInvalid", use.name, s, err)
				}
			}
		}
		c.CloseOn(t.Context()) // it must not panic
		if local, remote := c.LocalAddr(), c.RemoteAddr(); local != nil || remote != nil {
			t.Errorf("LocalAddr and RemoteAddr of a nil or zero Conn: got %v and %v, want nil and nil", local, remote)
		}
	}
}

func helpConnect([]string) error {
	for path := ""; ; {
		if _, err := fmt.Scanln(&path); err != nil {
			return nil
		}
		c, err := unixsock.Connect(path)
		if errors.Is(err, os.ErrPermission) {
			fmt.Println("permission denied")
			continue
		} else if err != nil {
			return err
		}
		defer c.Close()
		fmt.Println("connected")
	}
}

// helpServe listens at a path, and answers each client with its process ID.
func helpServe(args []string) error {
	l, err := unixsock.Listen(args[0], unixsock.ReplaceStale())
	if err != nil {
		return err
	}
	fmt.Println("serving")
	go func() { sockettest.UntilEOF(); l.Close() }()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		fmt.Fprint(c, os.Getpid())
		c.Close()
	}
}
