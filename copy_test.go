//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// The kinds of readers and writers between which the tests copy.
var (
	sources    = append([]string{"tcp", "unix", "file", "pipe's output", "memory"}, ourSources...)
	sinks      = append([]string{"tcp", "unix", "file", "pipe's input", "memory"}, ourSinks...)
	ourSources = []string{"Conn", "InputPort", "TCPUnit"}
	ourSinks   = []string{"Conn", "OutputPort", "TCPUnit"}
)

// endsOf returns the end of a connection of the given kind that a test copies, and its peer.
func endsOf(t *testing.T, kind string) (near any, far io.ReadWriteCloser) {
	t.Helper()
	switch kind {
	case "Conn", "InputPort", "OutputPort":
		c, far := sockettest.Pair(t)
		in, out := c.Ports()
		return map[string]any{"Conn": c, "InputPort": in, "OutputPort": out}[kind], far
	case "TCPUnit":
		u := unixsock.NewTCPUnit(filepath.Join(sockettest.ShortDir(t), "s"))
		l := sockettest.Got(u.Listen("", "")).Must(t)
		near := sockettest.Got(u.Dial("", "")).Must(t)
		return near, sockettest.Got(l.Accept()).Must(t)
	case "pipe's output", "pipe's input":
		r, w, err := os.Pipe()
		sockettest.Check(t, err)
		t.Cleanup(func() { r.Close(); w.Close() })
		if kind == "pipe's input" {
			r, w = w, r
		}
		return r, w
	}
	return netPair(t, kind)
}

// netPair returns the two ends of a connection of package net.
func netPair(t *testing.T, network string) (client, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network != "tcp" {
		address = filepath.Join(sockettest.ShortDir(t), "s")
	}
	l := sockettest.Got(net.Listen(network, address)).Must(t)
	defer l.Close()
	client = sockettest.Got(net.Dial(network, l.Addr().String())).Must(t)
	return client, sockettest.Got(l.Accept()).Must(t)
}

// openSource returns a reader that returns data and then io.EOF.
func openSource(t *testing.T, kind string, data []byte) io.Reader {
	t.Helper()
	switch kind {
	case "memory":
		return bytes.NewReader(data)
	case "file":
		f := fileOfSize(t, 0)
		sockettest.Send(t, f, "head"+string(data))
		sockettest.Got(f.Seek(4, io.SeekStart)).Must(t)
		return f
	}
	near, far := endsOf(t, kind)
	piece := max(1, len(data))
	if kind == "pipe's output" {
		piece = 4 << 10 // NetBSD 10's pipes mix up the bytes of long writes
	}
	go func() {
		for b := range slices.Chunk(data, piece) {
			far.Write(b)
		}
		far.Close()
	}()
	return near.(io.Reader)
}

// openSink returns a writer, and a function that closes it and returns what has arrived at
// its other end.
func openSink(t *testing.T, kind string) (io.Writer, func() []byte) {
	t.Helper()
	switch kind {
	case "memory":
		b := new(bytes.Buffer)
		return b, b.Bytes
	case "file":
		f := fileOfSize(t, 0)
		sockettest.Send(t, f, "head")
		return f, func() []byte {
			b, _ := os.ReadFile(f.Name())
			return bytes.TrimPrefix(b, []byte("head"))
		}
	}
	near, far := endsOf(t, kind)
	return gathered(t, near.(io.WriteCloser), far)
}

// gathered starts a goroutine that reads far until EOF. It returns near, the other end,
// and a function that closes near and returns the bytes that the goroutine has read.
func gathered(t *testing.T, near io.WriteCloser, far io.Reader) (io.Writer, func() []byte) {
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(far) // after an error, bytes are missing
		got <- b
	}()
	return near, func() []byte {
		near.Close()
		return sockettest.Receive(t, "the copied bytes", got)
	}
}

// fileOfSize returns a file of NULs.
func fileOfSize(t *testing.T, size int64) *os.File {
	t.Helper()
	f := sockettest.Got(os.OpenFile(filepath.Join(sockettest.ShortDir(t), "file"), os.O_RDWR|os.O_CREATE, 0o600)).Must(t)
	sockettest.Check(t, f.Truncate(size))
	return f
}

const large = 64 << 20 // more than a blocked copy takes

// endlessReader returns a reader of the given kind of a large file.
func endlessReader(t *testing.T, kind string) io.Reader {
	t.Helper()
	f := fileOfSize(t, large)
	switch kind {
	case "file":
		return f
	case "memory":
		return struct{ io.Reader }{f}
	}
	near, far := netPair(t, kind)
	go io.Copy(far, f)
	return near
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// checkCopy copies r to a Conn, and fails the test unless the bytes of want arrive.
func checkCopy(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	w, result := openSink(t, "Conn")
	n, err := io.Copy(w, r)
	if got := result(); n != int64(len(want)) || err != nil || !bytes.Equal(got, want) {
		t.Errorf("io.Copy to a Conn: got %d, %v, with %d bytes at the other end; want the same %d bytes, nil", n, err, len(got), len(want))
	}
}

type copyResult struct {
	n   int64
	err error
}

func startCopy(w io.Writer, r io.Reader) <-chan copyResult {
	done := make(chan copyResult, 1)
	go func() {
		n, err := io.Copy(w, r)
		done <- copyResult{n, err}
	}()
	return done
}

// blockedCopy starts a copy of r to near, whose peer does not read, and waits until near is full.
func blockedCopy(t *testing.T, near *unixsock.Conn, r io.Reader) <-chan copyResult {
	t.Helper()
	c := startCopy(near, r)
	sockettest.WaitFor(t, "the copy has not filled the send buffer", func() bool { return isFull(t, near) })
	return c
}

// isFull reports whether the send buffer of c has no room.
func isFull(t *testing.T, c syscall.Conn) (full bool) {
	t.Helper()
	sockettest.Control(t, c, func(fd int) { full = !sockettest.Writable(fd) })
	return full
}

// hold calls a method of a RawConn, whose callback returns when release is called.
func hold(t *testing.T, call func(func(uintptr) bool) error) (release func()) {
	t.Helper()
	held, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		call(func(uintptr) bool { close(held); <-end; return true })
		close(ended)
	}()
	sockettest.Receive(t, "the callback of a RawConn", held)
	return func() { close(end); <-ended }
}

// flood writes b to w until a Write fails.
func flood(w io.Writer, b []byte) {
	for err := error(nil); err == nil; {
		_, err = w.Write(b)
	}
}

// pass writes n bytes to from and waits until they have arrived at to.
func pass(t *testing.T, from io.Writer, to io.Reader, n int) {
	t.Helper()
	go from.Write(make([]byte, n))
	sockettest.Expect(t, to, string(make([]byte, n)))
}

// wantError fails the test unless err is the error is, and the innermost *net.OpError in
// err, since package net wraps the errors of others, has the operation and network of the side
// of a copy that has to fail.
func wantError(t *testing.T, err, is error, op, network string) {
	t.Helper()
	var opErr *net.OpError
	for inner := err; errors.As(inner, &opErr); inner = opErr.Err {
	}
	if !errors.Is(err, is) || opErr == nil || opErr.Op != op || opErr.Net != network {
		t.Errorf("call that fails: got %#v (%v), want a *net.OpError with Op %s, Net %s and the error %v", err, err, op, network, is)
	}
}

func TestCopyIsExactAndLeavesNothingBehind(t *testing.T) {
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	const size = 1_000_000
	data := randomBytes(size)
	for _, from := range sources {
		for _, to := range sinks {
			if !slices.Contains(ourSources, from) && !slices.Contains(ourSinks, to) {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				for _, limits := range [][]int64{nil, {-1, 0, 1, 50_000, 300_001, math.MaxInt64}} {
					r := openSource(t, from, data)
					w, result := openSink(t, to)
					left := int64(size)
					for _, limit := range limits {
						limited := &io.LimitedReader{R: r, N: limit}
						want := max(0, min(limit, left))
						if n, err := io.Copy(w, limited); n != want || err != nil || limited.N != limit-n {
							t.Fatalf("io.Copy with %d bytes left and limit %d: got %d, %v, and N %d; want %d, nil", left, limit, n, err, limited.N, want)
						}
						left -= want
					}
					if n, err := io.Copy(w, r); n != left || err != nil {
						t.Fatalf("io.Copy with %d bytes left: got %d, %v; want all, nil", left, n, err)
					}
					if got := result(); !bytes.Equal(got, data) {
						t.Fatalf("copies of %d bytes with limits %d: got %d bytes at the other end, want the same bytes", size, limits, len(got))
					}
				}
			})
		}
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitFor(t, "more descriptors are open than before the copies", func() bool {
		runtime.GC() // closes unused pipes
		return sockettest.CountDescriptors(t) <= descriptors
	})
}

// bufferSize is the size of the buffer that io.Copy allocates. A copy in the kernel has none.
const bufferSize = 32 << 10

func memStats() (m runtime.MemStats) { runtime.ReadMemStats(&m); return m }

// A copy that has sent everything must not wait for the peer to read.
func TestKernelSendsFilesAndDoesNotWaitForThePeer(t *testing.T) {
	near, _ := sockettest.Pair(t)
	room := fillBuffer(t, near)
	for _, size := range []int64{0, 4 << 10, min(100<<10, int64(room))} {
		data := randomBytes(int(size))
		for _, to := range ourSinks {
			for _, limit := range []int64{-1, 600, size, math.MaxInt64} { // -1 means no LimitedReader
				r, want := openSource(t, "file", data), size
				if limit >= 0 {
					r, want = io.LimitReader(r, limit), min(limit, size)
				}
				near, far := endsOf(t, to)
				before := memStats().TotalAlloc
				got := sockettest.Receive(t, "the end of a copy to a peer that does not read", startCopy(near.(io.Writer), r))
				buffered := runtime.GOOS == "linux" && size > 0 && memStats().TotalAlloc-before >= bufferSize
				if got.n != want || got.err != nil || buffered {
					t.Errorf("io.Copy of a file of %d bytes to %s with limit %d: got %d, %v, through a buffer: %t; want %d, nil, without", size, to, limit, got.n, got.err, buffered, want)
				}
				near.(io.Closer).Close()
				sockettest.ExpectEOF(t, far, string(data[:want]))
			}
		}
	}
}

func TestCopyObeysItsDestinationsEnd(t *testing.T) {
	ends := map[string]struct {
		end  func(near, far *unixsock.Conn)
		want error
	}{
		"Close":           {func(near, _ *unixsock.Conn) { near.Close() }, net.ErrClosed},
		"CloseWrite":      {func(near, _ *unixsock.Conn) { near.CloseWrite() }, net.ErrClosed},
		"deadline":        {func(near, _ *unixsock.Conn) { near.SetWriteDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
		"close of a peer": {func(_, far *unixsock.Conn) { far.Close() }, syscall.EPIPE},
	}
	for _, kind := range []string{"file", "tcp", "memory"} {
		for name, end := range ends {
			t.Run(kind+", "+name, func(t *testing.T) {
				near, far := sockettest.Pair(t)
				r := endlessReader(t, kind)
				c := blockedCopy(t, near, r)
				f, checkOffset := r.(*os.File)
				checkOffset = checkOffset && runtime.GOOS == "linux" // a plain copy reads more than it can write
				var during int64
				if checkOffset {
					during = sockettest.Got(f.Seek(0, io.SeekCurrent)).Must(t)
					sockettest.Expect(t, f, string(make([]byte, 10))) // the copy, which waits, does not block it
				}
				end.end(near, far)
				got := sockettest.Receive(t, "the end of the copy", c)
				if errors.Is(got.err, syscall.ECONNRESET) && end.want == syscall.EPIPE {
					end.want = syscall.ECONNRESET // also correct: the peer closed with unread bytes
				}
				wantError(t, got.err, end.want, "write", "unix")
				if checkOffset {
					if after := sockettest.Got(f.Seek(0, io.SeekCurrent)).Must(t); during > got.n || after != got.n+10 {
						t.Errorf("offset of a file during and after a copy of %d bytes and a Read of 10: got %d, %d", got.n, during, after)
					}
				}
				if name != "close of a peer" {
					near.Close()
					if n, err := io.Copy(io.Discard, struct{ io.Reader }{far}); n != got.n || err != nil {
						t.Errorf("bytes that arrive of a copy of %d bytes: got %d, %v", got.n, n, err)
					}
				}
			})
		}
	}
}

func TestCopyObeysItsSourcesEnd(t *testing.T) {
	end := func(near, _ net.Conn) { near.Close() }
	endRead := func(near, _ net.Conn) { near.(*unixsock.Conn).CloseRead() }
	expire := func(near, _ net.Conn) { near.SetReadDeadline(time.Now().Add(time.Millisecond)) }
	// A socket reports a reset to one system call only, which may be a splice.
	reset := func(_, far net.Conn) { far.(*net.TCPConn).SetLinger(0); far.Close() }
	for _, test := range []struct {
		kind, name string
		end        func(near, far net.Conn)
		want       error
	}{
		{"Conn", "Close", end, net.ErrClosed},
		{"Conn", "CloseRead", endRead, net.ErrClosed}, // a Read of package net returns EOF
		{"Conn", "deadline", expire, os.ErrDeadlineExceeded},
		{"tcp", "Close", end, net.ErrClosed},
		{"tcp", "deadline", expire, os.ErrDeadlineExceeded},
		{"tcp", "reset", reset, syscall.ECONNRESET},
	} {
		for _, size := range []int{4, 100_000} {
			t.Run(fmt.Sprintf("%s, %s after %d bytes", test.kind, test.name, size), func(t *testing.T) {
				near, far := endsOf(t, test.kind)
				w, peer := sockettest.Pair(t)
				c := startCopy(w, near.(io.Reader))
				pass(t, far, peer, size)
				test.end(near.(net.Conn), far.(net.Conn))
				got := sockettest.Receive(t, "the end of the copy", c)
				wantError(t, got.err, test.want, "read", map[string]string{"Conn": "unix", "tcp": "tcp"}[test.kind])
			})
		}
	}
}

func TestCopyThatHasSentItsFileWaitsForNoWrite(t *testing.T) {
	const size = 2 << 20
	for range sockettest.Times(30) {
		near, far := sockettest.Pair(t)
		c := blockedCopy(t, near, fileOfSize(t, size))
		go flood(near, bytes.Repeat([]byte{1}, 1<<20))
		b := make([]byte, 64<<10)
		for zeros := 0; zeros < size; { // the peer reads until it has the whole file
			n := sockettest.Got(far.Read(b)).Must(t)
			zeros += bytes.Count(b[:n], []byte{0})
		}
		if got := sockettest.Receive(t, "the end of the copy", c); got.n != size || got.err != nil {
			t.Fatalf("copy of a file that the peer has, beside a Write that waits: got %d, %v; want %d, nil", got.n, got.err, size)
		}
	}
}

// Another reader takes the rest of the file while the copy waits for its peer, and a Write waits
// for the copy.
func TestCopyWhoseFileHasEndedWaitsForNoWrite(t *testing.T) {
	near, far := sockettest.Pair(t)
	f := fileOfSize(t, large)
	c := blockedCopy(t, near, f)
	sockettest.Got(io.Copy(io.Discard, f)).Must(t)
	waiting(t, func() error { _, err := near.Write(make([]byte, large)); return err })
	go io.CopyN(io.Discard, far, 300<<10) // room for the copy, but not for the Write
	if got := sockettest.Receive(t, "the end of the copy", c); got.err != nil {
		t.Errorf("copy of a file whose rest has been read: got %d, %v, want nil", got.n, got.err)
	}
}

func TestCopyWhoseFileIsClosedEnds(t *testing.T) {
	near, far := sockettest.Pair(t)
	f := fileOfSize(t, large)
	c := blockedCopy(t, near, f)
	f.Close()
	go io.Copy(io.Discard, far)
	sockettest.ExpectError(t, "copy of a file that is closed", sockettest.Receive(t, "the end of the copy", c).err, os.ErrClosed)
	sockettest.Send(t, near, "x") // the copy has released its lock, once
}

// Two files share an offset, as after "prog > log 2>&1", or append to the same file.
func TestCopyToASharedFileOverwritesNothing(t *testing.T) {
	for name, flag := range map[string]int{"offset": 0, "end": os.O_APPEND} {
		t.Run(name, func(t *testing.T) {
			f := sockettest.Got(os.OpenFile(fileOfSize(t, 0).Name(), os.O_WRONLY|flag, 0)).Must(t)
			other := os.NewFile(uintptr(sockettest.Got(syscall.Dup(int(f.Fd()))).Must(t)), "shared")
			defer other.Close()
			const size, line = 4 << 20, "a line of the log\n"
			c := startCopy(f, openSource(t, "Conn", make([]byte, size)))
			wrote := 0
			for end := time.Now().Add(sockettest.Timeout); len(c) == 0 && time.Now().Before(end); wrote += len(line) {
				sockettest.Send(t, other, line)
			}
			if got := sockettest.Receive(t, "the end of the copy", c); got.n != size || got.err != nil {
				t.Errorf("io.Copy to a shared file: got %d, %v; want %d, nil", got.n, got.err, size)
			}
			if info := sockettest.Got(f.Stat()).Must(t); info.Size() != int64(size+wrote) {
				t.Errorf("size of a file after a copy of %d bytes and writes of %d: got %d", size, wrote, info.Size())
			}
		})
	}
}

func TestCopyPassesOnTheErrorsOfTheOtherSide(t *testing.T) {
	near, _ := sockettest.Pair(t)
	broken := errors.New("broken")
	if n, err := near.ReadFrom(io.MultiReader(bytes.NewReader([]byte("some")), iotest.ErrReader(broken))); n != 4 || err != broken {
		t.Errorf("ReadFrom of 4 bytes and an error: got %d, %v; want 4, %v", n, err, broken)
	}
	for _, test := range []struct {
		n    int
		err  error
		want copyResult
	}{
		{0, broken, copyResult{0, broken}},
		{2, broken, copyResult{2, broken}},
		{3, nil, copyResult{3, io.ErrShortWrite}},
		{-1, nil, copyResult{0, io.ErrShortWrite}},
		{5, nil, copyResult{4, io.ErrShortWrite}},
	} {
		in, out := sockettest.Pair(t)
		sockettest.Send(t, out, "some")
		n, err := in.WriteTo(writeFunc(func([]byte) (int, error) { return test.n, test.err }))
		if got := (copyResult{n, err}); got != test.want {
			t.Errorf("WriteTo a writer that returns %d, %v for 4 bytes: got %v, want %v", test.n, test.err, got, test.want)
		}
	}
	f := openSource(t, "file", []byte("some")).(*os.File)
	f = sockettest.Got(os.OpenFile(f.Name(), os.O_WRONLY, 0)).Must(t)
	var pathErr *fs.PathError
	if n, err := near.ReadFrom(f); n != 0 || !errors.As(err, &pathErr) || pathErr.Op != "read" {
		t.Errorf("ReadFrom of a file that is open for writing only: got %d, %v; want 0, a *fs.PathError with Op read", n, err)
	}
}

type writeFunc func(b []byte) (int, error)

func (f writeFunc) Write(b []byte) (int, error) { return f(b) }

func TestCopiesInBothDirectionsAtOnce(t *testing.T) {
	// A proxy: client - near1 = near2 - server.
	client, near1 := sockettest.Pair(t)
	near2, server := sockettest.Pair(t)
	copies := []<-chan copyResult{startCopy(near2, near1), startCopy(near1, near2)}
	out, back := randomBytes(3<<20), randomBytes(3<<20)
	go client.Write(out)
	go server.Write(back)
	sockettest.CheckReturns(t, "the bytes of both directions", func() {
		sockettest.Expect(t, server, string(out))
		sockettest.Expect(t, client, string(back))
	})
	go flood(client, out)
	go flood(server, back)
	sockettest.WaitFor(t, "the proxy has room", func() bool { return isFull(t, near1) && isFull(t, near2) })
	near1.Close()
	near2.Close()
	for _, c := range copies {
		sockettest.ExpectError(t, "copy of a proxy that closes", sockettest.Receive(t, "the end of a copy", c).err, net.ErrClosed)
	}
}

// A filter is what the Read and Write of a wrapper do with bytes: they put head before them,
// change each, and count them.
type filter struct {
	head []byte
	n    int
}

// change returns b with each byte changed. It is its own inverse.
func change(b []byte) []byte {
	b = slices.Clone(b)
	for i := range b {
		b[i] ^= 0x55
	}
	return b
}

func (f *filter) read(r io.Reader, b []byte) (int, error) {
	if len(f.head) > 0 {
		n := copy(b, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := r.Read(b)
	copy(b, change(b[:n]))
	f.n += n
	return n, err
}

func (f *filter) write(w io.Writer, b []byte) (int, error) {
	if _, err := w.Write(append(f.head, change(b)...)); err != nil {
		return 0, err
	}
	f.head = nil
	f.n += len(b)
	return len(b), nil
}

// Fields of these wrappers have the names and types of those in os.fileWithoutWriteTo and the like.
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

func (w embedsInterface) SyscallConn() (syscall.RawConn, error) {
	return w.Conn.(syscall.Conn).SyscallConn()
}

func TestCopyUsesTheReadAndWriteOfAWrapper(t *testing.T) {
	data := []byte("some bytes")
	whole := append([]byte("ahead"), change(data)...)
	for _, shape := range []struct {
		name, kind string // kind is that of what is wrapped
		wrap       func(end any, f *filter) io.ReadWriter
	}{
		{"net.Conn embedded", "Conn", func(end any, f *filter) io.ReadWriter { return embedsInterface{end.(net.Conn), f} }},
		{"net.Conn of TCP embedded", "tcp", func(end any, f *filter) io.ReadWriter { return embedsInterface{end.(net.Conn), f} }},
		{"net.TCPConn embedded", "tcp", func(end any, f *filter) io.ReadWriter { return embedsTCPConn{end.(*net.TCPConn), f} }},
		{"net.UnixConn embedded", "unix", func(end any, f *filter) io.ReadWriter { return embedsUnixConn{end.(*net.UnixConn), f} }},
		{"Conn embedded", "Conn", func(end any, f *filter) io.ReadWriter { return embedsConn{end.(*unixsock.Conn), f} }},
		{"pointer", "Conn", func(end any, f *filter) io.ReadWriter { return &embedsConn{end.(*unixsock.Conn), f} }},
		{"os.File embedded", "file", func(end any, f *filter) io.ReadWriter { return embedsFile{end.(*os.File), f} }},
	} {
		for _, to := range ourSinks {
			for _, limit := range []int64{0, 7, math.MaxInt64} { // 0 means no LimitedReader
				t.Run(fmt.Sprintf("%s to %s, limit %d", shape.name, to, limit), func(t *testing.T) {
					f, want := &filter{head: []byte("ahead")}, whole
					var r io.Reader = shape.wrap(openSource(t, shape.kind, data), f)
					if limit > 0 {
						r, want = io.LimitReader(r, limit), whole[:min(limit, int64(len(whole)))]
					}
					w, result := openSink(t, to)
					n, err := w.(io.ReaderFrom).ReadFrom(r)
					checkFiltered(t, n, err, len(want), f, len(want)-len("ahead"), result(), want)
				})
			}
		}
		for _, from := range ourSources {
			t.Run(from+" to "+shape.name, func(t *testing.T) {
				f := &filter{head: []byte("ahead")}
				w, result := openSink(t, shape.kind)
				n, err := openSource(t, from, data).(io.WriterTo).WriteTo(shape.wrap(w, f))
				checkFiltered(t, n, err, len(data), f, len(data), result(), whole)
			})
		}
	}
}

func checkFiltered(t *testing.T, n int64, err error, want int, f *filter, through int, got, arrived []byte) {
	t.Helper()
	if n != int64(want) || err != nil || f.n != through || !bytes.Equal(got, arrived) {
		t.Errorf("copy: got %d, %v, with %d bytes through the wrapper, and %q; want %d, nil, %d, %q", n, err, f.n, got, want, through, arrived)
	}
}

func TestCopyOfAClosedNilOrZeroConnTakesNothing(t *testing.T) {
	closed, _ := sockettest.Pair(t)
	closed.Close()
	for name, c := range map[string]*unixsock.Conn{"closed": closed, "nil": nil, "zero": new(unixsock.Conn)} {
		r := bytes.NewReader([]byte("some"))
		open, peer := sockettest.Pair(t)
		peer.Close()
		_, err1 := c.ReadFrom(r)
		_, err2 := c.WriteTo(io.Discard)
		_, err3 := open.ReadFrom(c)
		_, err4 := open.WriteTo(c)
		if err1 == nil || err2 == nil || err3 == nil || err4 == nil && c != nil || r.Len() != 4 || c == closed && !errors.Is(err1, net.ErrClosed) {
			t.Errorf("%s Conn: ReadFrom got %v, with %d of 4 bytes left, WriteTo %v, ReadFrom of it %v, WriteTo it %v; want errors, 4", name, err1, r.Len(), err2, err3, err4)
		}
	}
}

// checkHeld calls open n times, then the functions that it has returned, and fails the test
// unless the process soon holds at most limit bytes for each of the latter, and no descriptor.
func checkHeld(t *testing.T, n int, limit int64, open func() (begin func())) {
	t.Helper()
	var all []func()
	for range n {
		all = append(all, open())
	}
	heapAndStacks := func() int64 {
		runtime.GC()
		m := memStats()
		return int64(m.HeapAlloc + m.StackInuse)
	}
	memory, descriptors := heapAndStacks(), sockettest.CountDescriptors(t)
	for _, begin := range all {
		begin()
	}
	runtime.GC() // the second collection empties the pools
	var held int64
	defer func() { t.Logf("%d copies hold %d bytes each, want at most %d", n, held, limit) }()
	sockettest.WaitFor(t, "the copies hold too much memory, or descriptors", func() bool {
		held = (heapAndStacks() - memory) / int64(n)
		return held <= limit && sockettest.CountDescriptors(t) <= descriptors
	})
}

func TestIdlePlainCopyHoldsNoMoreThanTheBufferOfIOCopy(t *testing.T) {
	near, _ := sockettest.Pair(t)
	checkHeld(t, 200, bufferSize+8<<10, func() func() {
		r, w := io.Pipe()
		t.Cleanup(func() { w.Close() })
		return func() {
			go near.ReadFrom(r)
			sockettest.Send(t, w, "x")
		}
	})
}
