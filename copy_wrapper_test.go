//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A filter holds what the Read and Write of a wrapper do with the bytes.
type filter struct {
	head []byte // read or written before all other bytes
	key  byte   // XORed with each byte, except those of head
	n    int    // number of bytes read or written, except those of head
}

func (f *filter) read(r io.Reader, b []byte) (int, error) {
	if len(f.head) > 0 {
		n := copy(b, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := r.Read(b)
	for i := range b[:n] {
		b[i] ^= f.key
	}
	f.n += n
	return n, err
}

func (f *filter) write(w io.Writer, b []byte) (int, error) {
	out := slices.Clone(b)
	for i := range out {
		out[i] ^= f.key
	}
	if _, err := w.Write(append(f.head, out...)); err != nil {
		return 0, err
	}
	f.head = nil
	f.n += len(b)
	return len(b), nil
}

// The wrappers are values, not pointers, and the fields of some have the same names
// and types as in os.fileWithoutWriteTo and net.tcpConnWithoutWriteTo.
type (
	embedsInterface struct {
		net.Conn
		f *filter
	}
	embedsTCPConn struct {
		*net.TCPConn
		f *filter
	}
	embedsUnixConn struct {
		*net.UnixConn
		f *filter
	}
	embedsConn struct {
		*unixsock.Conn
		f *filter
	}
	embedsFile struct {
		*os.File
		f *filter
	}
	holdsConn struct {
		c net.Conn
		f *filter
	}
	hasSyscallConn struct{ embedsInterface }
)

func (w embedsInterface) Read(b []byte) (int, error)  { return w.f.read(w.Conn, b) }
func (w embedsInterface) Write(b []byte) (int, error) { return w.f.write(w.Conn, b) }
func (w embedsTCPConn) Read(b []byte) (int, error)    { return w.f.read(w.TCPConn, b) }
func (w embedsTCPConn) Write(b []byte) (int, error)   { return w.f.write(w.TCPConn, b) }
func (w embedsUnixConn) Read(b []byte) (int, error)   { return w.f.read(w.UnixConn, b) }
func (w embedsUnixConn) Write(b []byte) (int, error)  { return w.f.write(w.UnixConn, b) }
func (w embedsConn) Read(b []byte) (int, error)       { return w.f.read(w.Conn, b) }
func (w embedsConn) Write(b []byte) (int, error)      { return w.f.write(w.Conn, b) }
func (w embedsFile) Read(b []byte) (int, error)       { return w.f.read(w.File, b) }
func (w embedsFile) Write(b []byte) (int, error)      { return w.f.write(w.File, b) }
func (w holdsConn) Read(b []byte) (int, error)        { return w.f.read(w.c, b) }
func (w holdsConn) Write(b []byte) (int, error)       { return w.f.write(w.c, b) }

// SyscallConn lets the user of a wrapper set socket options.
func (w holdsConn) SyscallConn() (syscall.RawConn, error) {
	return w.c.(syscall.Conn).SyscallConn()
}

// SyscallConn lets the user of a wrapper set socket options.
func (w hasSyscallConn) SyscallConn() (syscall.RawConn, error) {
	return w.Conn.(syscall.Conn).SyscallConn()
}

// A wrapperShape is a kind of wrapper.
type wrapperShape struct {
	name string
	// open returns a wrapper of one end of a connection, and the other end.
	open func(t *testing.T, f *filter) (wrapper io.ReadWriter, far net.Conn)
}

var wrapperShapes = []wrapperShape{
	{"net.Conn embedded", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "tcp")
		return embedsInterface{near, f}, far
	}},
	{"net.Conn embedded, with SyscallConn", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "tcp")
		return hasSyscallConn{embedsInterface{near, f}}, far
	}},
	{"net.TCPConn embedded", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "tcp")
		return embedsTCPConn{near.(*net.TCPConn), f}, far
	}},
	{"net.UnixConn embedded", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "unix")
		return embedsUnixConn{near.(*net.UnixConn), f}, far
	}},
	{"Conn embedded", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := sockettest.Pair(t)
		return embedsConn{near, f}, far
	}},
	{"pointer to a struct that embeds Conn", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := sockettest.Pair(t)
		return &embedsConn{near, f}, far
	}},
	{"os.File embedded", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "unix")
		file, err := near.(*net.UnixConn).File()
		if err != nil {
			t.Fatalf("File of a UnixConn: %v", err)
		}
		near.Close()
		t.Cleanup(func() { file.Close() })
		return embedsFile{file, f}, far
	}},
	{"TCP held, with SyscallConn", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := netPair(t, "tcp")
		return holdsConn{near, f}, far
	}},
	{"Conn held, with SyscallConn", func(t *testing.T, f *filter) (io.ReadWriter, net.Conn) {
		near, far := sockettest.Pair(t)
		return holdsConn{near, f}, far
	}},
}

// wrappers runs f for each shape with each filter. The test writes the bytes of input to
// one side of the wrapper. The bytes of want arrive at the other side.
func wrappers(t *testing.T, f func(t *testing.T, s wrapperShape, filter *filter, input, want []byte)) {
	data := []byte("some bytes")
	coded := slices.Clone(data)
	for i := range coded {
		coded[i] ^= 0x55
	}
	for _, s := range wrapperShapes {
		t.Run(s.name, func(t *testing.T) {
			t.Run("counting", func(t *testing.T) { f(t, s, &filter{}, data, data) })
			t.Run("encrypting", func(t *testing.T) { f(t, s, &filter{key: 0x55}, data, coded) })
			t.Run("buffered", func(t *testing.T) {
				f(t, s, &filter{head: []byte("ahead")}, data, append([]byte("ahead"), data...))
			})
		})
	}
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
}

func TestReadFromUsesTheReadOfAWrapper(t *testing.T) {
	destinations := map[string]func(t *testing.T) (io.ReaderFrom, net.Conn){
		"Conn": func(t *testing.T) (io.ReaderFrom, net.Conn) { return sockettest.Pair(t) },
		"OutputPort": func(t *testing.T) (io.ReaderFrom, net.Conn) {
			near, far := sockettest.Pair(t)
			_, out := near.Ports()
			return out, far
		},
		"TCPUnit": func(t *testing.T) (io.ReaderFrom, net.Conn) {
			near, far := unitEnds(t)
			return near.(io.ReaderFrom), far
		},
	}
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, input, want []byte) {
		for name, open := range destinations {
			for _, limit := range []int64{0, 7, math.MaxInt64} { // 0 means no limit
				f := &filter{head: f.head, key: f.key}
				r, feed := s.open(t, f)
				w, far := open(t)
				if _, err := feed.Write(input); err != nil {
					t.Fatalf("Write of the source's peer: %v", err)
				}
				closeWrite(t, feed)
				source, want := io.Reader(r), want
				limited := &io.LimitedReader{R: r, N: limit}
				if limit > 0 {
					source, want = limited, want[:min(limit, int64(len(want)))]
				}
				head := len(f.head)
				what := fmt.Sprintf("%s.ReadFrom with limit %d", name, limit)
				checkRead(t, what, func() (int64, error) { return w.ReadFrom(source) }, far, want)
				if f.n != len(want)-head {
					t.Errorf("%s: got %d bytes from the wrapper's Read, want %d", what, f.n, len(want)-head)
				}
				if limit > 0 && limited.N != limit-int64(len(want)) {
					t.Errorf("N of the LimitedReader after %s: got %d, want %d", what, limited.N, limit-int64(len(want)))
				}
			}
		}
	})
}

// checkRead calls copy, and fails the test unless copy reports as many bytes as want has
// and far then reads the bytes of want.
func checkRead(t *testing.T, what string, copy func() (int64, error), far io.Reader, want []byte) {
	t.Helper()
	n, err := copy()
	if n != int64(len(want)) || err != nil {
		t.Fatalf("%s: got %d, %v; want %d, nil", what, n, err, len(want))
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadFull of the peer after %s: got %q, %v; want %q, nil", what, got, err, want)
	}
}

// If the wrapper inherits a WriteTo, io.Copy calls it instead of ReadFrom. A LimitedReader
// hides the WriteTo.
func TestCopyFromAWrapperUsesItsRead(t *testing.T) {
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, input, want []byte) {
		r, feed := s.open(t, f)
		near, far := sockettest.Pair(t)
		if _, err := feed.Write(input); err != nil {
			t.Fatalf("Write of the source's peer: %v", err)
		}
		closeWrite(t, feed)
		source := io.Reader(r)
		if _, ok := r.(io.WriterTo); ok {
			source = io.LimitReader(r, math.MaxInt64)
		}
		checkRead(t, "io.Copy from a wrapper to a Conn", func() (int64, error) { return io.Copy(near, source) }, far, want)
	})
}

func TestWriteToUsesTheWriteOfAWrapper(t *testing.T) {
	sources := map[string]func(t *testing.T) (io.WriterTo, net.Conn){
		"Conn": func(t *testing.T) (io.WriterTo, net.Conn) { return sockettest.Pair(t) },
		"InputPort": func(t *testing.T) (io.WriterTo, net.Conn) {
			near, far := sockettest.Pair(t)
			in, _ := near.Ports()
			return in, far
		},
		"TCPUnit": func(t *testing.T) (io.WriterTo, net.Conn) {
			near, far := unitEnds(t)
			return near.(io.WriterTo), far
		},
	}
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, input, want []byte) {
		for name, open := range sources {
			for _, way := range []string{"WriteTo", "io.Copy"} {
				f := &filter{head: f.head, key: f.key}
				w, far := s.open(t, f)
				r, feed := open(t)
				if _, err := feed.Write(input); err != nil {
					t.Fatalf("Write of the source's peer: %v", err)
				}
				closeWrite(t, feed)
				n, err := int64(0), error(nil)
				if way == "WriteTo" {
					n, err = r.WriteTo(w)
				} else {
					n, err = io.Copy(w, r.(io.Reader))
				}
				if n != int64(len(input)) || err != nil || f.n != len(input) {
					t.Fatalf("%s from %s to a wrapper: got %d, %v, with %d bytes through the wrapper's Write; want %d, nil, with %d bytes",
						way, name, n, err, f.n, len(input), len(input))
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("ReadFull of the peer after %s from %s to a wrapper: got %q, %v; want %q, nil", way, name, got, err, want)
				}
			}
		}
	})
}

// A waitingReader returns EOF once end is closed. Its Read reports to waiting that it has
// been called.
type waitingReader struct {
	waiting *sync.WaitGroup
	end     <-chan struct{}
}

func (r waitingReader) Read([]byte) (int, error) {
	r.waiting.Done()
	<-r.end
	return 0, io.EOF
}

func TestIdleCopyHoldsNoMoreThanTheBufferOfIOCopy(t *testing.T) {
	const copies, buffer, extra = 1000, 32 << 10, 8 << 10
	near, _ := sockettest.Pair(t)
	var waiting, ended sync.WaitGroup
	end := make(chan struct{})
	before := heldMemory()
	for range copies {
		waiting.Add(1)
		ended.Go(func() {
			if n, err := near.ReadFrom(waitingReader{&waiting, end}); n != 0 || err != nil {
				t.Errorf("ReadFrom of a reader without bytes: got %d, %v; want 0, nil", n, err)
			}
		})
	}
	sockettest.CheckReturns(t, "the calls of Read", waiting.Wait)
	if held := (heldMemory() - before) / copies; held > buffer+extra {
		t.Errorf("memory of %d idle copies: got %d bytes for each, want at most %d", copies, held, buffer+extra)
	}
	close(end)
	sockettest.CheckReturns(t, "the end of the copies", ended.Wait)
}

// heldMemory returns the size of the heap and the stacks after a garbage collection.
func heldMemory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func TestCopyOfAClosedNilOrZeroConnTakesNothing(t *testing.T) {
	closed, _ := sockettest.Pair(t)
	closed.Close()
	for name, c := range map[string]*unixsock.Conn{"closed": closed, "nil": nil, "zero": new(unixsock.Conn)} {
		r := bytes.NewReader([]byte("some"))
		if n, err := c.ReadFrom(r); n != 0 || err == nil || r.Len() != 4 || c == closed && !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadFrom of a %s Conn: got %d, %v, with %d bytes read from the source; want 0, an error, with 0 bytes read", name, n, err, 4-r.Len())
		}
		if n, err := c.WriteTo(io.Discard); n != 0 || err == nil {
			t.Errorf("WriteTo of a %s Conn: got %d, %v; want 0, an error", name, n, err)
		}
		open, _ := sockettest.Pair(t)
		if n, err := open.ReadFrom(c); n != 0 || err == nil {
			t.Errorf("ReadFrom with a %s Conn as the source: got %d, %v; want 0, an error", name, n, err)
		}
	}
}
