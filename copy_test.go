//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A source is a kind of reader from which a test copies.
type source struct {
	name string
	ours bool // its type is one of package unixsock
	// open returns a reader that returns data and then io.EOF.
	open func(t *testing.T, data []byte) io.Reader
}

// A sink is a kind of writer to which a test copies.
type sink struct {
	name string
	ours bool // its type is one of package unixsock
	// open returns a writer, and a function that closes it and returns the bytes
	// that arrived at the other end.
	open func(t *testing.T) (io.Writer, func() []byte)
}

// fed starts a goroutine that writes data to far and closes it. It returns near, the
// other end.
func fed(near io.Reader, far io.WriteCloser, data []byte) io.Reader {
	go func() {
		far.Write(data)
		far.Close()
	}()
	return near
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

// unitEnds returns the two ends of a connection of a TCPUnit.
func unitEnds(t *testing.T) (client, server net.Conn) {
	t.Helper()
	u := unixsock.NewTCPUnit(filepath.Join(sockettest.ShortDir(t), "s"))
	l, err := u.Listen("", "")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	return netEnds(t, l, func() (net.Conn, error) { return u.Dial("", "") })
}

// netPair returns the two ends of a connection of package net.
func netPair(t *testing.T, network string) (client, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(sockettest.ShortDir(t), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatalf("net.Listen: %v", err)
	}
	return netEnds(t, l, func() (net.Conn, error) { return net.Dial(network, l.Addr().String()) })
}

// netEnds returns the two ends of a connection that dial makes to l, and closes l.
func netEnds(t *testing.T, l net.Listener, dial func() (net.Conn, error)) (client, server net.Conn) {
	t.Helper()
	defer l.Close()
	client, err := dial()
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// fileOf returns a file of 4 bytes followed by data. Its offset is at data.
func fileOf(t *testing.T, data []byte) *os.File {
	t.Helper()
	f := newTestFile(t)
	if _, err := f.Write(append([]byte("head"), data...)); err != nil {
		t.Fatalf("Write to the file: %v", err)
	}
	if _, err := f.Seek(4, io.SeekStart); err != nil {
		t.Fatalf("Seek to byte 4 of the file: %v", err)
	}
	return f
}

func newTestFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(sockettest.ShortDir(t), "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func pipeEnds(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("Pipe: %v", err)
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
	{"file", false, func(t *testing.T) (io.Writer, func() []byte) { return gatheredFile(t) }},
	{"pipe", false, func(t *testing.T) (io.Writer, func() []byte) {
		r, w := pipeEnds(t)
		return gathered(t, w, r)
	}},
	{"memory", false, func(t *testing.T) (io.Writer, func() []byte) {
		b := new(bytes.Buffer)
		return b, b.Bytes
	}},
}

// gatheredFile returns a file of 4 bytes whose offset is at its end, and a function that
// returns the bytes behind them.
func gatheredFile(t *testing.T) (io.Writer, func() []byte) {
	f := newTestFile(t)
	if _, err := f.WriteString("head"); err != nil {
		t.Fatalf("Write to the file: %v", err)
	}
	return f, func() []byte {
		b, err := os.ReadFile(f.Name())
		if err != nil || !bytes.HasPrefix(b, []byte("head")) {
			t.Fatalf("ReadFile after a copy to offset 4: got %.10q..., %v; want %q and the copied bytes", b, err, "head")
		}
		return b[len("head"):]
	}
}

// copies runs f for each pair of a source and a sink, at least one of which is ours.
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
				t.Fatalf("io.Copy of %d bytes: got %d, %v; want %d, nil", size, n, err, size)
			}
			if got := result(); !bytes.Equal(got, data) {
				t.Fatalf("io.Copy of %d bytes: got %d bytes at the other end, want the same bytes", size, len(got))
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
				t.Fatalf("io.Copy of %d bytes with limit %d: got %d, %v; want %d, nil", size, limit, n, err, want)
			}
			if limited.N != limit-want {
				t.Fatalf("N of the LimitedReader after io.Copy of %d bytes with limit %d: got %d, want %d", size, limit, limited.N, limit-want)
			}
			if got := result(); !bytes.Equal(got, data[:want]) {
				t.Fatalf("io.Copy of %d bytes with limit %d: got %d bytes at the other end, want the first %d bytes", size, limit, len(got), want)
			}
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(rest, data[want:]) {
				t.Fatalf("ReadAll of the source after io.Copy of %d bytes with limit %d: got %d bytes, %v; want the last %d bytes", size, limit, len(rest), err, size-want)
			}
		}
	})
}

// A pendingCopy delivers the result of a copy that a goroutine makes.
type pendingCopy <-chan copyResult

type copyResult struct {
	n   int64
	err error
}

// startCopy starts a goroutine that copies r to w.
func startCopy(w io.Writer, r io.Reader) pendingCopy {
	done := make(chan copyResult, 1)
	go func() {
		n, err := io.Copy(w, r)
		done <- copyResult{n, err}
	}()
	return done
}

// wantError fails the test unless err is the error is, and the innermost *net.OpError in
// err has the given operation and network. They show which side of a copy failed. The
// innermost error counts because package net wraps the errors of others in its own.
func wantError(t *testing.T, err, is error, op, network string) {
	t.Helper()
	var opErr *net.OpError
	for inner := err; errors.As(inner, &opErr); inner = opErr.Err {
	}
	if !errors.Is(err, is) || opErr == nil || opErr.Op != op || opErr.Net != network {
		t.Errorf("call that fails: got %#v (%v), want a *net.OpError with Op %s, Net %s and the error %v", err, err, op, network, is)
	}
}

// largeFile returns a file that is larger than any socket buffer.
func largeFile(t *testing.T) *os.File {
	t.Helper()
	f := newTestFile(t)
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatalf("Truncate to 64 MiB: %v", err)
	}
	return f
}

// blockedCopy starts a copy of r to near, and returns once the send buffer of near is full,
// because the peer does not read.
func blockedCopy(t *testing.T, near *unixsock.Conn, r io.Reader) pendingCopy {
	t.Helper()
	c := startCopy(near, r)
	sockettest.WaitFor(t, "the copy has not filled the send buffer", func() bool { return isFull(t, near) })
	return c
}

// isFull reports whether the send buffer of c has no room.
func isFull(t *testing.T, c syscall.Conn) (full bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	raw.Control(func(fd uintptr) { full = !sockettest.Writable(int(fd)) })
	return full
}

// endlessReader returns a reader of the given kind with more bytes than a blocked copy reads.
func endlessReader(t *testing.T, kind string) io.Reader {
	t.Helper()
	switch kind {
	case "file":
		return largeFile(t)
	case "memory":
		return struct{ io.Reader }{largeFile(t)}
	}
	near, far := netPair(t, "tcp")
	go io.Copy(far, largeFile(t))
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
				c := blockedCopy(t, near, endlessReader(t, kind))
				end.end(near, far)
				got := sockettest.Receive(t, "the end of the copy", c)
				if errors.Is(got.err, syscall.ECONNRESET) {
					end.want = syscall.ECONNRESET // also correct: the peer closed with unread bytes
				}
				wantError(t, got.err, end.want, "write", "unix")
				if end.want == syscall.EPIPE || end.want == syscall.ECONNRESET {
					return
				}
				near.Close()
				b, err := io.ReadAll(far)
				if int64(len(b)) != got.n || err != nil {
					t.Errorf("ReadAll of the peer after a copy of %d bytes: got %d bytes, %v; want %d, nil", got.n, len(b), err, got.n)
				}
			})
		}
	}
}

func TestCopyOfAFileMovesItsOffsetByWhatWasWritten(t *testing.T) {
	near, _ := sockettest.Pair(t)
	f := largeFile(t)
	c := blockedCopy(t, near, f)
	during, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatalf("Seek: %v", err)
	}
	if n, err := f.Read(make([]byte, 10)); n != 10 { // the copy, which waits, does not block it
		t.Errorf("Read of a file of which a copy waits: got %d, %v; want 10", n, err)
	}
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatalf("SetWriteDeadline: %v", err)
	}
	got := sockettest.Receive(t, "the end of the copy", c)
	after, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatalf("Seek: %v", err)
	}
	if got.n == 0 || got.n >= 64<<20 {
		t.Fatalf("copy of 64 MiB that a deadline ends: got %d bytes, %v; want some of the bytes", got.n, got.err)
	}
	if runtime.GOOS == "linux" && (during > got.n || after != got.n+10) {
		t.Errorf("offset of the file during and after a copy of %d bytes and a Read of 10: got %d, %d; want at most %d, %d",
			got.n, during, after, got.n, got.n+10)
	}
}

func TestCopiesThatFailLoseNothingOfTheirFile(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a plain copy reads more than it can write")
	}
	f := largeFile(t)
	var copies []pendingCopy
	for i := range 4 {
		near, far := sockettest.Pair(t)
		copies = append(copies, startCopy(near, f))
		go func() {
			io.CopyN(io.Discard, far, int64(i)<<20+mathrand.Int64N(1<<20))
			far.Close()
		}()
	}
	var total int64
	for _, c := range copies {
		total += sockettest.Receive(t, "the end of a copy", c).n
	}
	rest, err := io.Copy(io.Discard, f)
	if err != nil || total+rest != 64<<20 {
		t.Errorf("Copy of the rest of a file, after copies that wrote %d bytes of it: got %d, %v; want %d, nil", total, rest, err, 64<<20-total)
	}
}

// A copy waits for a Write of its Conn by another goroutine. Meanwhile another copy sends the
// rest of the file.
func TestCopyToAConnInUseLeavesTheFileToOthers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a plain copy reads more than it can write")
	}
	f := largeFile(t)
	busy, _ := sockettest.Pair(t)
	release := holdWrites(t, busy)
	waiting := startCopy(busy, f)
	other, far := sockettest.Pair(t)
	w, result := gathered(t, other, far)
	var sent int64
	for {
		n, err := io.CopyN(w, f, 64<<10)
		sent += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("CopyN of a file that another copy waits to write: got %d, %v; want 65536, nil", n, err)
		}
	}
	busy.SetWriteDeadline(time.Unix(1, 0))
	release()
	got := sockettest.Receive(t, "the end of the copy", waiting)
	if arrived := len(result()); sent+got.n != 64<<20 || int64(arrived) != sent {
		t.Errorf("two copies of 64 MiB: got %d bytes, of which %d arrived, and %d, %v; want 64 MiB in all", sent, arrived, got.n, got.err)
	}
}

// holdWrites lets other writes of c wait until release is called.
func holdWrites(t *testing.T, c *unixsock.Conn) (release func()) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	held, end, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		raw.Write(func(uintptr) bool { close(held); <-end; return true })
		close(ended)
	}()
	sockettest.Receive(t, "the call of RawConn.Write's function", held)
	return sync.OnceFunc(func() { close(end); <-ended })
}

func TestCopyThatHasSentItsFileWaitsForNoWrite(t *testing.T) {
	for range 50 {
		near, far := sockettest.Pair(t)
		f := newTestFile(t)
		if err := f.Truncate(2 << 20); err != nil {
			t.Fatalf("Truncate to 2 MiB: %v", err)
		}
		c := blockedCopy(t, near, f)
		ones := bytes.Repeat([]byte{1}, 1<<20)
		go func() {
			for err := error(nil); err == nil; {
				_, err = near.Write(ones)
			}
		}()
		b := make([]byte, 64<<10)
		for zeros := 0; zeros < 2<<20; { // the peer reads until it has the whole file
			n, err := far.Read(b)
			if err != nil {
				t.Fatalf("Read of the peer: %v", err)
			}
			zeros += bytes.Count(b[:n], []byte{0})
		}
		if got := sockettest.Receive(t, "the end of the copy", c); got.n != 2<<20 || got.err != nil {
			t.Fatalf("copy of a file of 2 MiB that the peer has, beside a Write that waits: got %d, %v; want %d, nil", got.n, got.err, 2<<20)
		}
		near.Close()
		far.Close()
	}
}

func TestCloseAtTheBeginningOfACopyLeavesTheOffset(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("a plain copy reads more than it can write")
	}
	f := largeFile(t)
	for range 3000 {
		near, far, err := unixsock.Pair()
		if err != nil {
			t.Fatalf("Pair: %v", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatalf("Seek: %v", err)
		}
		go near.Close()
		n, err := near.ReadFrom(io.LimitReader(f, 1<<20))
		near.Close()
		far.Close()
		if offset, _ := f.Seek(0, io.SeekCurrent); offset != n {
			t.Fatalf("offset of a file after a ReadFrom with a Close beside it that returned %d, %v: got %d, want %d", n, err, offset, n)
		}
	}
}

func TestConcurrentCopiesOfAFileSendEachByteOnce(t *testing.T) {
	const chunk, chunks, conns = 16 << 10, 200, 4
	var data []byte
	for i := range chunks {
		data = append(data, bytes.Repeat(binary.BigEndian.AppendUint16(nil, uint16(i)), chunk/2)...)
	}
	f := fileOf(t, data)
	received := make(chan []byte, conns)
	for range conns {
		near, far := sockettest.Pair(t)
		go func() {
			got, _ := io.ReadAll(far)
			received <- got
		}()
		go func() {
			defer near.Close()
			for {
				if n, err := io.CopyN(near, f, chunk); err != nil {
					if n != 0 || err != io.EOF {
						t.Errorf("CopyN of a chunk: got %d, %v; want %d, nil or 0, EOF", n, err, chunk)
					}
					return
				}
			}
		}()
	}
	var all [chunks]int
	for range conns {
		for part := range slices.Chunk(sockettest.Receive(t, "what a peer has read", received), chunk) {
			number := binary.BigEndian.Uint16(part)
			all[number]++
			if !bytes.Equal(part, data[int(number)*chunk:][:chunk]) {
				t.Errorf("chunk %d: got other bytes in it", number)
			}
		}
	}
	for number, times := range all {
		if times != 1 {
			t.Errorf("chunk %d: sent %d times, want once", number, times)
		}
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
				continue // a Read of package net returns EOF after its CloseRead
			}
			t.Run(network+", "+name, func(t *testing.T) {
				near, far := pair(t)
				w, peer := sockettest.Pair(t)
				c := startCopy(w, near)
				pass(t, far, peer, 4)
				end.end(near)
				got := sockettest.Receive(t, "the end of the copy", c)
				wantError(t, got.err, end.want, "read", network)
			})
		}
	}
}

// pass writes n bytes to from and waits until they have arrived at to.
func pass(t *testing.T, from io.Writer, to io.Reader, n int) {
	t.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		t.Fatalf("ReadFull of %d bytes behind a copy: %v", n, err)
	}
}

// A copy that has sent everything must not wait for the peer to read. The deadline ends
// one that does.
func TestCopyOfAFileThatFitsDoesNotWaitForThePeer(t *testing.T) {
	near, _ := sockettest.Pair(t)
	room := fillBuffer(t, near)
	for _, size := range []int64{0, 1, 1 << 10, 4 << 10, 40 << 10, 100 << 10} {
		if size > int64(room) {
			t.Logf("a socket buffer holds %d bytes, not %d", room, size)
			continue
		}
		for what, reader := range map[string]func(*os.File) io.Reader{
			"file":                   func(f *os.File) io.Reader { return f },
			"limited beyond its end": func(f *os.File) io.Reader { return io.LimitReader(f, 1<<20) },
			"limited to its size":    func(f *os.File) io.Reader { return io.LimitReader(f, size) },
		} {
			f := newTestFile(t)
			if err := f.Truncate(size); err != nil {
				t.Fatalf("Truncate to %d bytes: %v", size, err)
			}
			c, _ := sockettest.Pair(t) // the peer does not read
			c.SetDeadline(time.Now().Add(sockettest.Timeout))
			if n, err := c.ReadFrom(reader(f)); n != size || err != nil {
				t.Errorf("ReadFrom of a file of %d bytes, %s: got %d, %v; want %d, nil", size, what, n, err, size)
			}
		}
	}
}

// A socket reports a reset to one system call only, which may be a splice.
func TestCopyFromAResetConnectionIsNoEOF(t *testing.T) {
	for _, size := range []int{4, 100_000} {
		near, far := netPair(t, "tcp")
		w, peer := sockettest.Pair(t)
		c := startCopy(w, near)
		pass(t, far, peer, size)
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		wantError(t, sockettest.Receive(t, "the end of the copy", c).err, syscall.ECONNRESET, "read", "tcp")
	}
}

// Two files share an offset, as standard output and standard error do after "prog > log 2>&1".
func TestCopyToASharedFileOverwritesNothing(t *testing.T) {
	f := newTestFile(t)
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatalf("dup: %v", err)
	}
	other := os.NewFile(uintptr(fd), "shared")
	defer other.Close()
	near, far := sockettest.Pair(t)
	const size = 8 << 20
	c := startCopy(f, fed(near, far, make([]byte, size)))
	wrote := 0
	for line := []byte("a line of the log\n"); ; wrote += len(line) {
		select {
		case got := <-c:
			if got.n != size || got.err != nil {
				t.Errorf("io.Copy to a file with a shared offset: got %d, %v; want %d, nil", got.n, got.err, size)
			}
			if info, err := f.Stat(); err != nil || info.Size() != int64(size+wrote) {
				t.Errorf("Stat of a file after a copy of %d bytes and writes of %d: got %d bytes, %v; want %d", size, wrote, info.Size(), err, size+wrote)
			}
			return
		default:
			if _, err := other.Write(line); err != nil {
				t.Fatalf("Write to a file with a shared offset: %v", err)
			}
		}
	}
}

func TestCopyPassesOnTheErrorsOfTheOtherSide(t *testing.T) {
	near, _ := sockettest.Pair(t)
	broken := errors.New("broken")
	if n, err := near.ReadFrom(io.MultiReader(bytes.NewReader([]byte("some")), brokenEnd{broken})); n != 4 || err != broken {
		t.Errorf("ReadFrom of 4 bytes and an error: got %d, %v; want 4, %v", n, err, broken)
	}
	for written, want := range map[int]error{0: broken, 2: broken, 3: io.ErrShortWrite} {
		in, out := sockettest.Pair(t)
		if _, err := out.Write([]byte("some")); err != nil {
			t.Fatalf("Write of the peer: %v", err)
		}
		err := want
		if want == io.ErrShortWrite {
			err = nil
		}
		if n, err := in.WriteTo(brokenWriter{written, err}); n != int64(written) || err != want {
			t.Errorf("WriteTo a writer that writes %d of 4 bytes: got %d, %v; want %d, %v", written, n, err, written, want)
		}
	}
}

// A brokenEnd is a reader that returns err.
type brokenEnd struct{ err error }

func (b brokenEnd) Read([]byte) (int, error) { return 0, b.err }

// A brokenWriter is a writer that writes n bytes and returns err.
type brokenWriter struct {
	n   int
	err error
}

func (b brokenWriter) Write([]byte) (int, error) { return b.n, b.err }

func TestCopiesLeaveNothingBehind(t *testing.T) {
	tcpNear, tcpFar := netPair(t, "tcp")
	file := fileOf(t, randomBytes(4096))
	descriptors, goroutines := sockettest.CountDescriptors(t), runtime.NumGoroutine()
	for range 250 {
		near, far := sockettest.Pair(t)
		for _, r := range []io.Reader{tcpNear, file} {
			go tcpFar.Write(make([]byte, 4096))
			if _, err := file.Seek(4, io.SeekStart); err != nil {
				t.Fatalf("Seek: %v", err)
			}
			if n, err := io.CopyN(near, r, 4096); n != 4096 || err != nil {
				t.Fatalf("io.CopyN from %T of 4096 bytes: got %d, %v; want 4096, nil", r, n, err)
			}
		}
		// Nothing has read the bytes that the peer wrote while the file was the source.
		if _, err := io.ReadFull(tcpNear, make([]byte, 4096)); err != nil {
			t.Fatalf("ReadFull of the TCP connection's last 4096 bytes: got %v, want no error", err)
		}
		if n, err := io.CopyN(io.Discard, far, 4096); n != 4096 || err != nil {
			t.Fatalf("io.CopyN to Discard of 4096 bytes: got %d, %v; want 4096, nil", n, err)
		}
		near.Close()
		if n, err := io.Copy(io.Discard, far); n != 4096 || err != nil {
			t.Fatalf("io.Copy to Discard of the other 4096 bytes: got %d, %v; want 4096, nil", n, err)
		}
		far.Close()
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitFor(t, "more descriptors are open than before the copies", func() bool {
		runtime.GC() // closes unused pipes
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
			t.Errorf("ReadFull of %d bytes in direction %s: got %v, equal bytes: %t; want nil, equal bytes", len(want), name, err, bytes.Equal(b, want))
		}
	}
	client.CloseWrite()
	server.(*net.TCPConn).CloseWrite()
	for name, c := range map[string]pendingCopy{"out": out, "back": back} {
		if got := sockettest.Receive(t, "the end of the copy in direction "+name, c); got.err != nil {
			t.Errorf("io.Copy in direction %s: got %d, %v; want no error", name, got.n, got.err)
		}
	}
}

func TestErrorOfTheSourceIsItsOwn(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(sockettest.ShortDir(t), "f"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("some")); err != nil {
		t.Fatalf("Write to the file: %v", err)
	}
	near, _ := sockettest.Pair(t)
	var pathErr *fs.PathError
	if n, err := near.ReadFrom(f); n != 0 || !errors.As(err, &pathErr) || pathErr.Op != "read" {
		t.Errorf("ReadFrom of a file that is open for writing only: got %d, %v; want 0, a *fs.PathError with Op read", n, err)
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
		time.Sleep(mathrand.N(2 * time.Millisecond)) // the closes come at a random point of the copies
		for _, c := range []*unixsock.Conn{a2, b1, a1, b2} {
			c.Close()
		}
		sockettest.CheckReturns(t, "the end of the copies", wg.Wait)
	}
}
