//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stress

import (
	"errors"
	"io"
	"math"
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

// ends returns the two ends of a connection: of package unixsock, of net over Unix sockets or
// of net over TCP.
func ends(t *testing.T, kind int) (near, far net.Conn) {
	t.Helper()
	if kind == 0 {
		return sockettest.Pair(t)
	}
	network, address := "tcp", "127.0.0.1:0"
	if kind == 1 {
		network, address = "unix", filepath.Join(sockettest.ShortDir(t), "s")
	}
	l := sockettest.Got(net.Listen(network, address)).Must(t)
	near = sockettest.Got(net.Dial(network, l.Addr().String())).Must(t)
	return near, sockettest.Got(l.Accept()).Must(t)
}

// someOf returns r, or an io.LimitedReader around it, and the limit.
func someOf(r io.Reader, random *rand.Rand) (io.Reader, int64) {
	if random.IntN(2) == 0 {
		return r, math.MaxInt64
	}
	limit := random.Int64N(1 << (6 + random.IntN(16)))
	return io.LimitReader(r, limit), limit
}

// drain copies r to w, in small pieces and with pauses.
func drain(w io.Writer, r io.Reader) error {
	for b := make([]byte, 40_000); ; {
		if rand.IntN(40) == 0 {
			time.Sleep(rand.N(time.Millisecond)) // the reader is slower than the copy
		}
		n, err := r.Read(b[:1+rand.IntN(len(b))])
		if _, wrong := w.Write(b[:n]); wrong != nil || err != nil {
			return errors.Join(wrong, err)
		}
	}
}

// TestRandomCopiesOfAStream copies a connection to another until the input ends. The copies have
// limits and deadlines of the source, after which the next one continues. A write deadline or a
// close may end the last. As many bytes arrive as the copies return, in order: all, if they end at EOF.
func TestRandomCopiesOfAStream(t *testing.T) {
	byChance(t, 40, func(t *testing.T, r *rand.Rand) {
		kinds := [][2]int{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {2, 0}}[r.IntN(5)]
		from, feed := ends(t, kinds[0])
		to, far := ends(t, kinds[1])
		size := r.Int64N(1 << (4 + r.IntN(19)))
		go func() {
			io.CopyBuffer(struct{ io.Writer }{feed}, io.LimitReader(&textReader{}, size), make([]byte, 1<<(4+rand.IntN(15))))
			feed.(interface{ CloseWrite() error }).CloseWrite()
		}()
		checker, arrived := &textChecker{}, make(chan error, 1)
		go func() {
			arrived <- drain(checker, far)
			far.Close()
		}()
		if r.IntN(4) == 0 {
			stops := []func() error{from.Close, to.Close, func() error { return to.SetWriteDeadline(time.Unix(1, 0)) }}
			if c, ok := from.(*unixsock.Conn); ok {
				stops = append(stops, c.CloseRead)
			}
			if c, ok := to.(*unixsock.Conn); ok {
				stops = append(stops, c.CloseWrite)
			}
			stop := stops[r.IntN(len(stops))]
			time.AfterFunc(time.Duration(r.IntN(3000))*time.Microsecond, func() { stop() })
		}
		total, complete := int64(0), false
		for stopped := false; !complete && !stopped; {
			if r.IntN(3) == 0 {
				from.SetReadDeadline(time.Now().Add(time.Duration(r.IntN(500)) * time.Microsecond))
			}
			source, limit := someOf(from, r)
			n, err := io.Copy(to, source)
			total += n
			var opErr *net.OpError
			switch {
			case err == nil:
				complete = n < limit
			case errors.As(err, &opErr) && opErr.Op == "read" && errors.Is(err, os.ErrDeadlineExceeded):
				from.SetReadDeadline(time.Time{})
			case isEnd(err):
				stopped = true
			default:
				t.Fatalf("io.Copy: got %d, %v; want nil, or the error of a deadline or a close", n, err)
			}
		}
		to.Close()
		err := sockettest.Receive(t, "the end of the output", arrived)
		if errors.Is(err, errNotTheText) || checker.offset != total || complete && total != size {
			t.Fatalf("copies of %d bytes, complete %t: got %d, of which %d arrived, %v", size, complete, total, checker.offset, err)
		}
	})
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
// Each byte of the file is returned by one of the calls, and arrives once.
func TestRandomCopiesOfAFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a plain copy reads more than it can write")
	}
	byChance(t, 30, func(t *testing.T, r *rand.Rand) {
		name := filepath.Join(sockettest.ShortDir(t), "f")
		writer := sockettest.Got(os.Create(name)).Must(t)
		f := sockettest.Got(os.Open(name)).Must(t)
		text := &textReader{}
		sockettest.Got(io.CopyN(writer, text, 1+r.Int64N(1<<(5+r.IntN(18))))).Must(t)
		var sent atomic.Int64
		var got, want histogram
		var calls, peers sync.WaitGroup
		calls.Go(func() {
			for range 20 {
				io.CopyN(writer, text, rand.Int64N(60_000))
				runtime.Gosched()
			}
		})
		lossless := r.IntN(2) == 0 // no peer closes before it has read everything
		for range 1 + r.IntN(4) {
			near, far := sockettest.Pair(t)
			random := rand.New(rand.NewPCG(r.Uint64(), 0))
			stop := int64(1) << 40
			if !lossless {
				stop = r.Int64N(1 << (10 + r.IntN(13)))
			}
			peers.Go(func() {
				drain(&got, io.LimitReader(far, stop))
				far.Close()
			})
			calls.Go(func() { sent.Add(copyFile(t, near, f, random)) })
		}
		if r.IntN(2) == 0 {
			calls.Go(func() {
				for n, b := 1, make([]byte, 10_000); n > 0; {
					n, _ = f.Read(b)
					sent.Add(int64(n))
					got.Write(b[:n])
				}
			})
		}
		sockettest.CheckReturns(t, "the end of the copies", calls.Wait)
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil || offset != sent.Load() {
			t.Fatalf("Seek after calls that returned %d bytes of the file: got %d, %v; want as many", sent.Load(), offset, err)
		}
		sockettest.CheckReturns(t, "the end of the peers", peers.Wait)
		if !lossless {
			return
		}
		io.Copy(&want, io.LimitReader(&textReader{}, offset))
		for v := range want {
			if got[v].Load() != want[v].Load() {
				t.Fatalf("bytes of value %d that arrived: got %d, want %d", v, got[v].Load(), want[v].Load())
			}
		}
	})
}

// copyFile copies f to c until it has found the end of f several times, or c is closed. It
// returns the number of bytes copied. It closes c.
func copyFile(t *testing.T, c *unixsock.Conn, f *os.File, r *rand.Rand) (total int64) {
	defer c.Close()
	for ends := 0; ends < 10; {
		after := time.Duration(r.IntN(1000)) * time.Microsecond
		if r.IntN(4) == 0 {
			c.SetWriteDeadline(time.Now().Add(after))
		} else if r.IntN(150) == 0 {
			time.AfterFunc(after, func() { c.CloseWrite() })
		}
		source, limit := someOf(f, r)
		n, err := io.Copy(c, source)
		total += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.SetWriteDeadline(time.Time{})
		} else if err != nil || n > limit {
			if !isEnd(err) {
				t.Errorf("io.Copy of at most %d bytes of a file: got %d, %v; want nil, or the error of a deadline or a close", limit, n, err)
			}
			return total
		} else if n == 0 {
			ends++
		}
	}
	return total
}
