//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stress

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// ends returns the two ends of a connection: of package unixsock, of net over TCP or of net
// over Unix sockets.
func ends(t *testing.T, kind int) (near, far net.Conn) {
	t.Helper()
	if kind == 0 {
		return sockettest.Pair(t)
	}
	network, address := "tcp", "127.0.0.1:0"
	if kind == 1 {
		network, address = "unix", filepath.Join(sockettest.ShortDir(t), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	defer l.Close()
	if near, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { near.Close() })
	if far, err = l.Accept(); err != nil {
		t.Fatalf("Accept: %v", err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far
}

// someOf returns r, or an io.LimitedReader around it.
func someOf(r io.Reader, random *rand.Rand) io.Reader {
	if random.IntN(2) == 0 {
		return r
	}
	return &io.LimitedReader{R: r, N: random.Int64N(1 << (6 + random.IntN(16)))}
}

// TestRandomCopiesOfAStream copies a connection to another, or to a file, until the input
// ends. Each of the copies is limited or not. Some end with a deadline of the source, and
// the next one continues. A write, a deadline or a close of either end may end the last. The
// bytes that arrive are as many as the copies return, in order. They are all of the bytes
// if nothing but deadlines of the source has ended a copy.
func TestRandomCopiesOfAStream(t *testing.T) {
	byChance(t, 60, func(t *testing.T, r *rand.Rand) {
		kind := r.IntN(3)
		from, feed := ends(t, kind)
		sinkKind := 0
		if kind == 0 {
			sinkKind = r.IntN(4)
		}
		var to io.Writer
		checker := &textChecker{}
		arrived := make(chan error, 1)
		if sinkKind == 3 {
			f, err := os.Create(filepath.Join(sockettest.ShortDir(t), "f"))
			if err != nil {
				t.Fatalf("Create: %v", err)
			}
			defer f.Close()
			to = f
		} else {
			near, far := ends(t, sinkKind)
			to = near
			slow := r.IntN(2) == 0
			go func() { arrived <- drain(far, checker, slow) }()
		}
		size := r.Int64N(1 << (4 + r.IntN(19)))
		go func() {
			io.CopyBuffer(struct{ io.Writer }{feed}, io.LimitReader(&textReader{}, size), make([]byte, 1<<(4+rand.IntN(15))))
			feed.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if r.IntN(4) == 0 {
			after, end := time.Duration(r.IntN(3000))*time.Microsecond, randomEnd(from, to, r)
			time.AfterFunc(after, end)
		}
		total, complete := copyUntilEOF(t, to, from, r)
		if f, ok := to.(*os.File); ok {
			f.Seek(0, io.SeekStart)
			_, err := io.Copy(checker, f)
			arrived <- err
		} else {
			to.(io.Closer).Close()
		}
		if err := sockettest.Receive(t, "the end of the output", arrived); errors.Is(err, errNotTheText) {
			t.Fatalf("read behind %d bytes of copies: %v", total, err)
		}
		if checker.offset != total || complete && total != size {
			t.Fatalf("copies of %d bytes, complete %t: got %d bytes at the other end, want %d", size, complete, checker.offset, total)
		}
	})
}

// drain reads c to its end, in small pieces and with pauses if slow is set.
func drain(c net.Conn, to io.Writer, slow bool) error {
	for b := make([]byte, 40_000); ; {
		part := b
		if slow {
			part = b[:1+rand.IntN(len(b))]
			if rand.IntN(20) == 0 {
				time.Sleep(rand.N(time.Millisecond)) // the reader is slower than the copy
			}
		}
		n, err := c.Read(part)
		if _, wrong := to.Write(part[:n]); wrong != nil {
			c.Close()
			return wrong
		}
		if err != nil {
			return err
		}
	}
}

// randomEnd returns a function that ends a copy from from to to.
func randomEnd(from net.Conn, to io.Writer, r *rand.Rand) func() {
	var ends []func()
	ends = append(ends, func() { from.Close() })
	if c, ok := from.(*unixsock.Conn); ok {
		ends = append(ends, func() { c.CloseRead() })
	}
	if c, ok := to.(net.Conn); ok {
		ends = append(ends, func() { c.SetWriteDeadline(time.Unix(1, 0)) })
	}
	if c, ok := to.(*unixsock.Conn); ok {
		ends = append(ends, func() { c.Close() }, func() { c.CloseWrite() })
	}
	return ends[r.IntN(len(ends))]
}

// copyUntilEOF copies from to to until EOF or an error that is not that of a deadline of the
// source. It returns the number of bytes copied, and whether EOF was reached.
func copyUntilEOF(t *testing.T, to io.Writer, from net.Conn, r *rand.Rand) (total int64, complete bool) {
	for {
		if r.IntN(3) == 0 {
			from.SetReadDeadline(time.Now().Add(time.Duration(r.IntN(500)) * time.Microsecond))
		}
		source := someOf(from, r)
		limited, _ := source.(*io.LimitedReader)
		limit := int64(0)
		if limited != nil {
			limit = limited.N
		}
		n, err := io.Copy(to, source)
		total += n
		var opErr *net.OpError
		switch {
		case err == nil && (limited == nil || n < limit):
			return total, true
		case err == nil && limited.N != limit-n:
			t.Fatalf("N of a LimitedReader after a copy of %d of %d bytes: got %d, want %d", n, limit, limited.N, limit-n)
		case err == nil:
		case errors.As(err, &opErr) && opErr.Op == "read" && errors.Is(err, os.ErrDeadlineExceeded):
			from.SetReadDeadline(time.Time{})
		case isEnd(err):
			return total, false
		default:
			t.Fatalf("io.Copy: got %d, %v; want nil, or the error of a deadline or a close", n, err)
		}
	}
}

// A histogram counts bytes by their value.
type histogram [256]atomic.Int64

func (h *histogram) Write(b []byte) (int, error) {
	for _, v := range b {
		h[v].Add(1)
	}
	return len(b), nil
}

// TestRandomCopiesOfAFile lets goroutines copy one file to several connections, and read it,
// while it grows. Deadlines, limits and closes end copies, and the next ones continue.
// Each byte of the file is returned by one of the calls, and the bytes that arrive are those
// of the file and of concurrent writes to the connections.
func TestRandomCopiesOfAFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a plain copy reads more than it can write")
	}
	byChance(t, 60, func(t *testing.T, r *rand.Rand) {
		f, grow := growingFile(t, r)
		var sent, others atomic.Int64
		var got, want histogram
		var copies, peers sync.WaitGroup
		lossless := r.IntN(2) == 0 // no peer closes before it has read everything
		for range 1 + r.IntN(4) {
			near, far := sockettest.Pair(t)
			random := rand.New(rand.NewPCG(r.Uint64(), 0))
			stop := int64(1) << 40
			if !lossless {
				stop = r.Int64N(1 << (10 + r.IntN(13)))
			}
			peers.Go(func() {
				drain(far, &stopWriter{&got, stop}, stop&1 == 0)
				far.Close()
			})
			if r.IntN(3) == 0 {
				copies.Go(func() {
					for range 20 {
						n, err := near.Write(make([]byte, rand.IntN(100_000)))
						others.Add(int64(n))
						if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
							return
						}
					}
				})
			}
			copies.Go(func() { sent.Add(copyFile(t, near, f, random)) })
		}
		if r.IntN(2) == 0 {
			copies.Go(func() {
				for b := make([]byte, 10_000); ; {
					n, err := f.Read(b)
					sent.Add(int64(n))
					got.Write(b[:n])
					if err != nil {
						return
					}
				}
			})
		}
		sockettest.CheckReturns(t, "the end of the copies", func() { grow(); copies.Wait() })
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil || offset != sent.Load() {
			t.Fatalf("Seek after calls that returned %d bytes of the file: got %d, %v; want as many", sent.Load(), offset, err)
		}
		sockettest.CheckReturns(t, "the end of the peers", peers.Wait)
		if !lossless {
			return
		}
		text := io.LimitReader(&textReader{}, offset)
		io.Copy(&want, text)
		want[0].Add(others.Load())
		for v := range want {
			if got[v].Load() != want[v].Load() {
				t.Fatalf("bytes of value %d that arrived: got %d, want %d, with %d of other writes", v, got[v].Load(), want[v].Load(), others.Load())
			}
		}
	})
}

// growingFile returns a new file whose bytes are a text, and a function that waits until
// it has grown to its final size.
func growingFile(t *testing.T, r *rand.Rand) (f *os.File, wait func()) {
	name := filepath.Join(sockettest.ShortDir(t), "f")
	writer, err := os.Create(name)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() { writer.Close() })
	text := &textReader{}
	if _, err := io.CopyN(writer, text, 1+r.Int64N(1<<(5+r.IntN(18)))); err != nil {
		t.Fatalf("Write to the file: %v", err)
	}
	if f, err = os.Open(name); err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	var growth sync.WaitGroup
	growth.Go(func() {
		for range 20 {
			io.CopyN(writer, text, rand.Int64N(60_000))
			runtime.Gosched()
		}
	})
	return f, growth.Wait
}

// A stopWriter fails after left bytes.
type stopWriter struct {
	w    io.Writer
	left int64
}

func (w *stopWriter) Write(b []byte) (int, error) {
	w.left -= int64(len(b))
	if w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return w.w.Write(b)
}

// copyFile copies f to c until it has found the end of f several times, or c is closed. It
// returns the number of bytes copied. It closes c.
func copyFile(t *testing.T, c *unixsock.Conn, f *os.File, r *rand.Rand) (total int64) {
	defer c.Close()
	for ends := 0; ends < 10; {
		switch r.IntN(4) {
		case 0:
			c.SetWriteDeadline(time.Now().Add(time.Duration(r.IntN(1000)) * time.Microsecond))
		case 1:
			if r.IntN(50) == 0 {
				time.AfterFunc(time.Duration(r.IntN(500))*time.Microsecond, func() { c.CloseWrite() })
			}
		}
		n, err := io.Copy(c, someOf(f, r))
		total += n
		switch {
		case err == nil && n == 0:
			ends++
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.SetWriteDeadline(time.Time{})
		case isEnd(err):
			return total
		default:
			t.Errorf("io.Copy of a file: got %d, %v; want nil, or the error of a deadline or a close", n, err)
			return total
		}
	}
	return total
}
