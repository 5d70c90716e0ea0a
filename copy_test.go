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
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A source is something to copy from, and what the test puts into it.
type source struct {
	name string
	ours bool
	// open returns what to read, which gives data and then ends.
	open func(t *testing.T, data []byte) io.Reader
}

// A sink is something to copy to.
type sink struct {
	name string
	ours bool
	// open returns what to write, and a function that ends it and returns what
	// has come out.
	open func(t *testing.T) (io.Writer, func() []byte)
}

// fed writes data to far, closes it, and returns near.
func fed(near io.Reader, far io.WriteCloser, data []byte) io.Reader {
	go func() {
		far.Write(data)
		far.Close()
	}()
	return near
}

// gathered reads far to its end, which comes when near is closed.
func gathered(t *testing.T, near io.WriteCloser, far io.Reader) (io.Writer, func() []byte) {
	got := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(far) // an error shows in what is missing
		got <- b
	}()
	return near, func() []byte {
		near.Close()
		return sockettest.Receive(t, "what was copied", got)
	}
}

// unitEnds returns the two ends of a connection of a TCPUnit.
func unitEnds(t *testing.T) (client, server net.Conn) {
	t.Helper()
	u := unixsock.NewTCPUnit(filepath.Join(sockettest.ShortDir(t), "s"))
	l, err := u.Listen("", "")
	if err != nil {
		t.Fatal(err)
	}
	return netEnds(t, l, func() (net.Conn, error) { return u.Dial("", "") })
}

// netPair returns the two ends of a connection by package net.
func netPair(t *testing.T, network string) (client, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(sockettest.ShortDir(t), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return netEnds(t, l, func() (net.Conn, error) { return net.Dial(network, l.Addr().String()) })
}

func netEnds(t *testing.T, l net.Listener, dial func() (net.Conn, error)) (client, server net.Conn) {
	t.Helper()
	defer l.Close()
	client, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// fileOf returns a file that stands behind a few bytes, and before data.
func fileOf(t *testing.T, data []byte) *os.File {
	t.Helper()
	f := newTestFile(t, 0)
	if _, err := f.Write(append([]byte("head"), data...)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(4, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func newTestFile(t *testing.T, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(sockettest.ShortDir(t), "file"), os.O_RDWR|os.O_CREATE|flag, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func pipeEnds(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

var sources = []source{
	{"Conn", true, func(t *testing.T, data []byte) io.Reader {
		near, far := sockettest.Pair(t)
		return fed(near, far, data)
	}},
	{"InputPort", true, func(t *testing.T, data []byte) io.Reader {
		near, far := sockettest.Pair(t)
		in, _ := near.Ports()
		return fed(in, far, data)
	}},
	{"TCPUnit", true, func(t *testing.T, data []byte) io.Reader {
		near, far := unitEnds(t)
		return fed(near, far, data)
	}},
	{"net tcp", false, func(t *testing.T, data []byte) io.Reader {
		near, far := netPair(t, "tcp")
		return fed(near, far, data)
	}},
	{"net unix", false, func(t *testing.T, data []byte) io.Reader {
		near, far := netPair(t, "unix")
		return fed(near, far, data)
	}},
	{"file", false, func(t *testing.T, data []byte) io.Reader { return fileOf(t, data) }},
	{"pipe", false, func(t *testing.T, data []byte) io.Reader {
		r, w := pipeEnds(t)
		return fed(r, w, data)
	}},
	{"blocking pipe", false, func(t *testing.T, data []byte) io.Reader {
		r, w := pipeEnds(t)
		r.Fd() // makes it blocking
		return fed(r, w, data)
	}},
	{"socket as a file", false, func(t *testing.T, data []byte) io.Reader {
		near, far := netPair(t, "tcp")
		f, err := near.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return fed(f, far, data)
	}},
	{"memory", false, func(t *testing.T, data []byte) io.Reader { return bytes.NewReader(data) }},
}

var sinks = []sink{
	{"Conn", true, func(t *testing.T) (io.Writer, func() []byte) {
		near, far := sockettest.Pair(t)
		return gathered(t, near, far)
	}},
	{"OutputPort", true, func(t *testing.T) (io.Writer, func() []byte) {
		near, far := sockettest.Pair(t)
		_, out := near.Ports()
		return gathered(t, out, far)
	}},
	{"TCPUnit", true, func(t *testing.T) (io.Writer, func() []byte) {
		near, far := unitEnds(t)
		return gathered(t, near, far)
	}},
	{"net tcp", false, func(t *testing.T) (io.Writer, func() []byte) {
		near, far := netPair(t, "tcp")
		return gathered(t, near, far)
	}},
	{"net unix", false, func(t *testing.T) (io.Writer, func() []byte) {
		near, far := netPair(t, "unix")
		return gathered(t, near, far)
	}},
	{"file", false, func(t *testing.T) (io.Writer, func() []byte) { return gatheredFile(t, 0) }},
	{"appending file", false, func(t *testing.T) (io.Writer, func() []byte) { return gatheredFile(t, os.O_APPEND) }},
	{"pipe", false, func(t *testing.T) (io.Writer, func() []byte) {
		r, w := pipeEnds(t)
		return gathered(t, w, r)
	}},
	{"blocking pipe", false, func(t *testing.T) (io.Writer, func() []byte) {
		r, w := pipeEnds(t)
		w.Fd() // makes it blocking
		return gathered(t, w, r)
	}},
	{"memory", false, func(t *testing.T) (io.Writer, func() []byte) {
		b := new(bytes.Buffer)
		return b, b.Bytes
	}},
}

// gatheredFile is a file that stands behind a few bytes.
func gatheredFile(t *testing.T, flag int) (io.Writer, func() []byte) {
	f := newTestFile(t, flag)
	if _, err := f.WriteString("head"); err != nil {
		t.Fatal(err)
	}
	return f, func() []byte {
		b, err := os.ReadFile(f.Name())
		if err != nil || !bytes.HasPrefix(b, []byte("head")) {
			t.Fatalf("%.10q, %v", b, err)
		}
		return b[len("head"):]
	}
}

// copies runs f for each source and sink of which one at least is ours.
func copies(t *testing.T, f func(t *testing.T, from source, to sink)) {
	for _, from := range sources {
		for _, to := range sinks {
			if from.ours || to.ours {
				t.Run(from.name+" to "+to.name, func(t *testing.T) { f(t, from, to) })
			}
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestCopyIsExact(t *testing.T) {
	copies(t, func(t *testing.T, from source, to sink) {
		sizes := []int{0, 1, mathrand.IntN(100 << 10), 64 << 10, 1<<20 + mathrand.IntN(1<<20)}
		if sockettest.Race {
			sizes = sizes[2:4]
		}
		for _, size := range sizes {
			data := randomBytes(size)
			r := from.open(t, data)
			w, result := to.open(t)
			n, err := io.Copy(w, r)
			if n != int64(size) || err != nil {
				t.Fatalf("copied %d of %d bytes, %v", n, size, err)
			}
			if !bytes.Equal(result(), data) {
				t.Fatalf("%d bytes came out changed", size)
			}
		}
	})
}

func TestCopyStopsWhereTheLimitedReaderDoes(t *testing.T) {
	copies(t, func(t *testing.T, from source, to sink) {
		size := int64(700_000)
		if sockettest.Race {
			size = 100_000
		}
		data := randomBytes(int(size))
		limits := []int64{-1, 0, 1, 1 + mathrand.Int64N(size-1), size, size + 1, math.MaxInt64}
		if sockettest.Race {
			limits = limits[3:5]
		}
		for _, limit := range limits {
			r := from.open(t, data)
			w, result := to.open(t)
			limited := &io.LimitedReader{R: r, N: limit}
			want := max(0, min(limit, size))
			n, err := io.Copy(w, limited)
			if n != want || err != nil {
				t.Fatalf("limit %d: copied %d bytes, %v", limit, n, err)
			}
			if limited.N != limit-want {
				t.Fatalf("limit %d: %d left, want %d", limit, limited.N, limit-want)
			}
			if !bytes.Equal(result(), data[:want]) {
				t.Fatalf("limit %d: bytes came out changed", limit)
			}
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(rest, data[want:]) {
				t.Fatalf("limit %d: then %d bytes were left to read, %v", limit, len(rest), err)
			}
		}
	})
}

// A copying is a copy under way.
type copying <-chan copyResult

type copyResult struct {
	n   int64
	err error
}

// startCopy copies r to w.
func startCopy(w io.Writer, r io.Reader) copying {
	done := make(chan copyResult, 1)
	go func() {
		n, err := io.Copy(w, r)
		done <- copyResult{n, err}
	}()
	return done
}

// wantError checks an error for what it is, and whose: the operation and the
// network tell, of the innermost one, for net wraps others' in its own.
func wantError(t *testing.T, err, is error, op, network string) {
	t.Helper()
	var opErr *net.OpError
	for inner := err; errors.As(inner, &opErr); inner = opErr.Err {
	}
	if !errors.Is(err, is) || opErr == nil || opErr.Op != op || opErr.Net != network {
		t.Errorf("%#v (%v), want %s of %s: %v", err, err, op, network, is)
	}
}

// endless is a file that no socket can hold.
func endless(t *testing.T) *os.File {
	t.Helper()
	f := newTestFile(t, 0)
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

// stuck copies r to near and returns once that waits for its
// peer to read.
func stuck(t *testing.T, near *unixsock.Conn, r io.Reader) copying {
	t.Helper()
	c := startCopy(near, r)
	sockettest.WaitFor(t, "the copy is not stuck", func() bool {
		full := false
		raw, err := near.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { full = !sockettest.Writable(int(fd)) })
		return full
	})
	return c
}

// flowing returns a reader of the kind named that never ends.
func flowing(t *testing.T, kind string) io.Reader {
	t.Helper()
	switch kind {
	case "file":
		return endless(t)
	case "memory":
		return struct{ io.Reader }{endless(t)}
	}
	near, far := netPair(t, "tcp")
	go io.Copy(far, endless(t))
	return near
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
	for _, kind := range []string{"file", "socket", "memory"} {
		for name, end := range ends {
			t.Run(kind+", "+name, func(t *testing.T) {
				near, far := sockettest.Pair(t)
				c := stuck(t, near, flowing(t, kind))
				end.end(near, far)
				got := sockettest.Receive(t, "the end of the copy", c)
				if errors.Is(got.err, syscall.ECONNRESET) {
					end.want = syscall.ECONNRESET // as good: the peer left bytes unread
				}
				wantError(t, got.err, end.want, "write", "unix")
				if end.want == syscall.EPIPE || end.want == syscall.ECONNRESET {
					return
				}
				near.Close()
				b, err := io.ReadAll(far)
				if int64(len(b)) != got.n || err != nil {
					t.Errorf("%d bytes came out of %d copied, %v", len(b), got.n, err)
				}
			})
		}
	}
}

func TestCopyOfAFileMovesItsOffsetByWhatWasWritten(t *testing.T) {
	near, _ := sockettest.Pair(t)
	f := endless(t)
	c := stuck(t, near, f)
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	got := sockettest.Receive(t, "the end of the copy", c)
	offset, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatal(err)
	}
	if got.n == 0 || got.n >= 64<<20 {
		t.Fatalf("copied %d bytes, %v", got.n, got.err)
	}
	if runtime.GOOS == "linux" && offset != got.n {
		t.Errorf("copied %d bytes, and the file is at %d", got.n, offset)
	}
}

func TestCopyObeysItsSourcesEnd(t *testing.T) {
	ends := map[string]struct {
		end  func(near net.Conn)
		want error
	}{
		"Close":     {func(near net.Conn) { near.Close() }, net.ErrClosed},
		"CloseRead": {func(near net.Conn) { near.(interface{ CloseRead() error }).CloseRead() }, net.ErrClosed},
		"deadline":  {func(near net.Conn) { near.SetReadDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
	}
	ours := func(t *testing.T) (net.Conn, net.Conn) { return sockettest.Pair(t) }
	pairs := map[string]func(t *testing.T) (near, far net.Conn){
		"unix": ours,
		"tcp":  func(t *testing.T) (net.Conn, net.Conn) { return netPair(t, "tcp") },
	}
	for network, pair := range pairs {
		for name, end := range ends {
			if network == "tcp" && name == "CloseRead" {
				continue // of net's, an EOF
			}
			t.Run(network+", "+name, func(t *testing.T) {
				near, far := pair(t)
				w, _ := sockettest.Pair(t)
				c := startCopy(w, near)
				if _, err := far.Write([]byte("some")); err != nil {
					t.Fatal(err)
				}
				sockettest.WaitInPoller(t, 1)
				end.end(near)
				got := sockettest.Receive(t, "the end of the copy", c)
				wantError(t, got.err, end.want, "read", network)
			})
		}
	}
}

func TestCopyOfAFileThatAnotherCopyHasObeysItsDeadlineAndClose(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	first, _ := sockettest.Pair(t) // whose peer does not read, as none does here
	copies := []copying{startCopy(first, f)}
	sockettest.WaitInPoller(t, 1)

	ended := func(why error, c copying) {
		t.Helper()
		if got := sockettest.Receive(t, "the end of a copy", c); !errors.Is(got.err, why) {
			t.Errorf("a copy ended by %v, want %v", got.err, why)
		}
	}
	second, _ := sockettest.Pair(t)
	second.SetDeadline(time.Now().Add(20 * time.Millisecond))
	ended(os.ErrDeadlineExceeded, startCopy(second, f))
	third, _ := sockettest.Pair(t)
	copies = append(copies, startCopy(third, f))
	sockettest.WaitInPoller(t, 2)
	third.Close()
	ended(net.ErrClosed, copies[1])
	if n, err := f.Read(make([]byte, 10)); n != 10 { // nor does it hold up the file's own users
		t.Errorf("read %d of the file, %v", n, err)
	}
	first.Close()
	ended(net.ErrClosed, copies[0])
}

// Others hold a file for long: net's sendfile does, while its peer does not read.
func TestCopyThatWaitsForItsFileLeavesTheConnToOthers(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c, peer := sockettest.Pair(t)
	held, letGo, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		raw.Read(func(uintptr) bool { close(held); <-letGo; return true })
		close(released)
	}()
	<-held
	done := startCopy(c, f)
	sockettest.WaitFor(t, "the copy does not wait", func() bool {
		return sockettest.GoroutinesIn("sync.Mutex.Lock")+sockettest.GoroutinesIn("semacquire") > 0
	})
	sockettest.Returns(t, "Write", func() { c.Write([]byte("x")) })
	if n, err := peer.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("the peer read %d, %v", n, err)
	}
	sockettest.Returns(t, "Close", func() { c.Close() })
	close(letGo)
	<-released
	if got := sockettest.Receive(t, "the end of the copy", done); !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("the copy ended by %v", got.err)
	}
}

func TestCopyFromAResetConnectionIsNoEOF(t *testing.T) {
	near, far := netPair(t, "tcp")
	w, _ := sockettest.Pair(t)
	c := startCopy(w, near)
	sockettest.WaitInPoller(t, 1)
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	wantError(t, sockettest.Receive(t, "the end of the copy", c).err, syscall.ECONNRESET, "read", "tcp")
}

// addressless is a connection that has no address to tell.
type addressless struct{ net.Conn }

func (addressless) LocalAddr() net.Addr { return nil }

func (c addressless) SyscallConn() (syscall.RawConn, error) {
	return c.Conn.(syscall.Conn).SyscallConn()
}

func TestCopyFromAResetConnectionWithoutAnAddressIsAnError(t *testing.T) {
	near, far := netPair(t, "tcp")
	w, _ := sockettest.Pair(t)
	c := startCopy(w, addressless{near})
	sockettest.WaitInPoller(t, 1)
	far.(*net.TCPConn).SetLinger(0)
	far.Close()
	if got := sockettest.Receive(t, "the end of the copy", c); !errors.Is(got.err, syscall.ECONNRESET) {
		t.Errorf("%v, want ECONNRESET", got.err)
	}
}

func TestCopyAfterACloseIsErrClosed(t *testing.T) {
	near, _ := sockettest.Pair(t)
	near.Close()
	r := bytes.NewReader([]byte("some"))
	n, err := near.ReadFrom(r)
	if n != 0 || r.Len() != 4 {
		t.Errorf("wrote %d bytes, and took %d", n, 4-r.Len())
	}
	wantError(t, err, net.ErrClosed, "write", "unix")
	n, err = near.WriteTo(io.Discard)
	if n != 0 {
		t.Errorf("read %d bytes", n)
	}
	wantError(t, err, net.ErrClosed, "read", "unix")
}

func TestCopyPassesOnTheErrorsOfTheOtherSide(t *testing.T) {
	near, far := sockettest.Pair(t)
	broken := errors.New("broken")
	if n, err := near.ReadFrom(io.MultiReader(bytes.NewReader([]byte("some")), brokenEnd{broken})); n != 4 || err != broken {
		t.Errorf("ReadFrom: %d, %v", n, err)
	}
	if n, err := far.WriteTo(brokenEnd{broken}); n != 0 || err != broken {
		t.Errorf("WriteTo: %d, %v", n, err)
	}
}

type brokenEnd struct{ err error }

func (b brokenEnd) Read([]byte) (int, error) { return 0, b.err }

func (b brokenEnd) Write([]byte) (int, error) { return 0, b.err }

func TestCopyOfAConnToItselfEchoes(t *testing.T) {
	near, far := sockettest.Pair(t)
	c := startCopy(far, far)
	data := randomBytes(1 << 20)
	go func() {
		near.Write(data)
		near.CloseWrite()
	}()
	back := make([]byte, len(data))
	if _, err := io.ReadFull(near, back); err != nil || !bytes.Equal(back, data) {
		t.Errorf("another echo, %v", err)
	}
	if got := sockettest.Receive(t, "the end of the copy", c); got.n != int64(len(data)) || got.err != nil {
		t.Errorf("%d, %v", got.n, got.err)
	}
}

func TestCopyUsesReadAndWriteOfOtherTypes(t *testing.T) {
	near, far := sockettest.Pair(t)
	inner, innerFar := netPair(t, "unix")
	peeked := &peekedConn{inner.(*net.UnixConn), []byte("read ahead, ")}
	c := startCopy(near, peeked)
	if _, err := innerFar.Write([]byte("then the rest")); err != nil {
		t.Fatal(err)
	}
	innerFar.Close()
	if got := sockettest.Receive(t, "the end of the copy", c); got.err != nil {
		t.Fatal(got.err)
	}
	near.Close()
	if b, err := io.ReadAll(far); string(b) != "read ahead, then the rest" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// peekedConn first returns bytes that were read before.
type peekedConn struct {
	*net.UnixConn
	head []byte
}

func (c *peekedConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.UnixConn.Read(b)
}

func TestCopiesLeaveNothingBehind(t *testing.T) {
	tcpNear, tcpFar := netPair(t, "tcp")
	file := fileOf(t, randomBytes(4096))
	descriptors, goroutines := sockettest.CountDescriptors(t), runtime.NumGoroutine()
	for range 250 {
		near, far := sockettest.Pair(t)
		for _, r := range []io.Reader{tcpNear, file} {
			go tcpFar.Write(make([]byte, 4096))
			if _, err := file.Seek(4, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if n, err := io.CopyN(near, r, 4096); n != 4096 || err != nil {
				t.Fatal(n, err)
			}
		}
		if _, err := io.ReadFull(tcpNear, make([]byte, 4096)); err != nil { // of the turn of file
			t.Fatal(err)
		}
		if n, err := io.CopyN(io.Discard, far, 4096); n != 4096 || err != nil {
			t.Fatal(n, err)
		}
		near.Close()
		if n, err := io.Copy(io.Discard, far); n != 4096 || err != nil {
			t.Fatal(n, err)
		}
		far.Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitFor(t, "descriptors are left open", func() bool {
		runtime.GC() // closes pipes that are not in use
		return sockettest.CountDescriptors(t) <= descriptors
	})
}

func TestCopiesInBothDirectionsAtOnce(t *testing.T) {
	// A proxy: client - near1 = near2 - server.
	client, near1 := sockettest.Pair(t)
	near2, server := netPair(t, "tcp")
	out, back := startCopy(near2, near1), startCopy(near1, near2)
	const size = 3 << 20
	for name, ends := range map[string][2]io.ReadWriter{"out": {client, server}, "back": {server, client}} {
		go ends[0].Write(bytes.Repeat([]byte(name), size/len(name)))
	}
	for name, from := range map[string]io.Reader{"out": server, "back": client} {
		want := bytes.Repeat([]byte(name), size/len(name))
		b := make([]byte, len(want))
		if _, err := io.ReadFull(from, b); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s: not what was sent, %v", name, err)
		}
	}
	client.CloseWrite()
	server.(*net.TCPConn).CloseWrite()
	for _, c := range []copying{out, back} {
		if got := sockettest.Receive(t, "the end of a copy", c); got.err != nil {
			t.Error(fmt.Errorf("after %d bytes: %w", got.n, got.err))
		}
	}
}

func TestErrorOfTheSourceIsItsOwn(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(sockettest.ShortDir(t), "f"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	near, _ := sockettest.Pair(t)
	var pathErr *fs.PathError
	if n, err := near.ReadFrom(f); n != 0 || !errors.As(err, &pathErr) || pathErr.Op != "read" {
		t.Errorf("copied %d bytes, %v; want what the file's Read says", n, err)
	}
}

func TestConnsThatAreCopiedIntoEachOtherEndWithAClose(t *testing.T) {
	for range 20 {
		a1, a2 := sockettest.Pair(t)
		b1, b2 := sockettest.Pair(t)
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(a2, b1) })
		wg.Go(func() { io.Copy(b1, a2) })
		for _, end := range []*unixsock.Conn{a1, b2} {
			wg.Go(func() {
				for b := make([]byte, 100_000); ; {
					if _, err := end.Write(b); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(mathrand.N(2 * time.Millisecond))
		for _, c := range []*unixsock.Conn{a2, b1, a1, b2} {
			c.Close()
		}
		sockettest.Returns(t, "the copies", wg.Wait)
	}
}
