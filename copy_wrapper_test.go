//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
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

// A filter is what the Read and Write of a wrapper do with the bytes.
type filter struct {
	head []byte // read or written before anything else
	key  byte   // combined with each other byte by exclusive or
	n    int    // the number of bytes that have passed, without the head
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

// A wrapperShape returns a wrapper of one end of a connection, and the other end.
type wrapperShape struct {
	name string
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
			t.Fatal(err)
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

// wrappers runs f for each shape with each filter. passed is what far writes, or
// what is written to the wrapper; want is what comes out at the other side.
func wrappers(t *testing.T, f func(t *testing.T, s wrapperShape, filter *filter, passed, want []byte)) {
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

// closeWrite ends what c writes.
func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
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
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, passed, want []byte) {
		for name, open := range destinations {
			for _, limit := range []int64{0, 7, math.MaxInt64} { // 0 is without one
				f := &filter{head: f.head, key: f.key}
				r, feed := s.open(t, f)
				w, far := open(t)
				if _, err := feed.Write(passed); err != nil {
					t.Fatal(err)
				}
				closeWrite(t, feed)
				source, want := io.Reader(r), want
				limited := &io.LimitedReader{R: r, N: limit}
				if limit > 0 {
					source, want = limited, want[:min(limit, int64(len(want)))]
				}
				head := len(f.head)
				checkRead(t, fmt.Sprintf("%s.ReadFrom, limit %d", name, limit), func() (int64, error) { return w.ReadFrom(source) }, far, want)
				if f.n != len(want)-head {
					t.Errorf("%s.ReadFrom, limit %d: Read returned %d bytes, want %d", name, limit, f.n, len(want)-head)
				}
				if limit > 0 && limited.N != limit-int64(len(want)) {
					t.Errorf("%s.ReadFrom, limit %d: %d left, want %d", name, limit, limited.N, limit-int64(len(want)))
				}
			}
		}
	})
}

// checkRead runs a copy and checks what far then reads.
func checkRead(t *testing.T, what string, copy func() (int64, error), far io.Reader, want []byte) {
	t.Helper()
	n, err := copy()
	if n != int64(len(want)) || err != nil {
		t.Fatalf("%s copied %d bytes, %v; want %d", what, n, err, len(want))
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: the peer read %q, %v; want %q", what, got, err, want)
	}
}

// io.Copy calls a WriteTo that the wrapper inherits, before it calls ReadFrom. A
// LimitedReader hides it.
func TestCopyFromAWrapperUsesItsRead(t *testing.T) {
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, passed, want []byte) {
		r, feed := s.open(t, f)
		near, far := sockettest.Pair(t)
		if _, err := feed.Write(passed); err != nil {
			t.Fatal(err)
		}
		closeWrite(t, feed)
		source := io.Reader(r)
		if _, ok := r.(io.WriterTo); ok {
			source = io.LimitReader(r, math.MaxInt64)
		}
		checkRead(t, "io.Copy", func() (int64, error) { return io.Copy(near, source) }, far, want)
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
	wrappers(t, func(t *testing.T, s wrapperShape, f *filter, passed, want []byte) {
		for name, open := range sources {
			for _, way := range []string{"WriteTo", "io.Copy"} {
				f := &filter{head: f.head, key: f.key}
				w, far := s.open(t, f)
				r, feed := open(t)
				if _, err := feed.Write(passed); err != nil {
					t.Fatal(err)
				}
				closeWrite(t, feed)
				n, err := int64(0), error(nil)
				if way == "WriteTo" {
					n, err = r.WriteTo(w)
				} else {
					n, err = io.Copy(w, r.(io.Reader))
				}
				if n != int64(len(passed)) || err != nil || f.n != len(passed) {
					t.Fatalf("%s of %s copied %d bytes, %v, %d by Write; want %d", way, name, n, err, f.n, len(passed))
				}
				got := make([]byte, len(want))
				if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s of %s: the peer read %q, %v; want %q", way, name, got, err, want)
				}
			}
		}
	})
}

// A waitingReader ends when end is closed. It reports its first Read.
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
				t.Errorf("ReadFrom copied %d bytes, %v; want 0", n, err)
			}
		})
	}
	sockettest.Returns(t, "the Reads", waiting.Wait)
	if held := (heldMemory() - before) / copies; held > buffer+extra {
		t.Errorf("%d idle copies hold %d bytes each, want at most %d", copies, held, buffer+extra)
	}
	close(end)
	sockettest.Returns(t, "the copies", ended.Wait)
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
		if n, err := c.ReadFrom(r); n != 0 || err == nil || r.Len() != 4 {
			t.Errorf("%s: ReadFrom wrote %d bytes, %v, and took %d; want an error", name, n, err, 4-r.Len())
		}
		if n, err := c.WriteTo(io.Discard); n != 0 || err == nil {
			t.Errorf("%s: WriteTo read %d bytes, %v; want an error", name, n, err)
		}
		open, _ := sockettest.Pair(t)
		if n, err := open.ReadFrom(c); n != 0 || err == nil {
			t.Errorf("%s: ReadFrom of it copied %d bytes, %v; want an error", name, n, err)
		}
	}
}
