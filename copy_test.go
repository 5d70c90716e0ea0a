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
	"reflect"
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
	f := newTestFile(t, 0)
	if _, err := f.Write(append([]byte("head"), data...)); err != nil {
		t.Fatalf("Write to the file: %v", err)
	}
	if _, err := f.Seek(4, io.SeekStart); err != nil {
		t.Fatalf("Seek to byte 4 of the file: %v", err)
	}
	return f
}

func newTestFile(t *testing.T, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(sockettest.ShortDir(t), "file"), os.O_RDWR|os.O_CREATE|flag, 0o600)
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
	{"blocking pipe", false, func(t *testing.T, data []byte) io.Reader {
		r, w := pipeEnds(t)
		r.Fd() // makes the pipe blocking
		return fed(r, w, data)
	}},
	{"socket as a file", false, func(t *testing.T, data []byte) io.Reader {
		near, far := netPair(t, "tcp")
		f, err := near.(*net.TCPConn).File()
		if err != nil {
			t.Fatalf("File of a TCPConn: %v", err)
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
		w.Fd() // makes the pipe blocking
		return gathered(t, w, r)
	}},
	{"memory", false, func(t *testing.T) (io.Writer, func() []byte) {
		b := new(bytes.Buffer)
		return b, b.Bytes
	}},
}

// gatheredFile returns a file of 4 bytes whose offset is at its end, and a function that
// returns the bytes behind them.
func gatheredFile(t *testing.T, flag int) (io.Writer, func() []byte) {
	f := newTestFile(t, flag)
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
	f := newTestFile(t, 0)
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
	sockettest.WaitFor(t, "the copy has not filled the send buffer", func() bool {
		full := false
		raw, err := near.SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn: %v", err)
		}
		raw.Control(func(fd uintptr) { full = !sockettest.Writable(int(fd)) })
		return full
	})
	return c
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
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatalf("SetWriteDeadline: %v", err)
	}
	got := sockettest.Receive(t, "the end of the copy", c)
	offset, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatalf("Seek: %v", err)
	}
	if got.n == 0 || got.n >= 64<<20 {
		t.Fatalf("copy of 64 MiB that a deadline ends: got %d bytes, %v; want some of the bytes", got.n, got.err)
	}
	if runtime.GOOS == "linux" && offset != got.n {
		t.Errorf("offset of the file after a copy of %d bytes: got %d, want %d", got.n, offset, got.n)
	}
}

func TestCopyThatFailsLeavesTheOffsetToAnotherReader(t *testing.T) {
	near, _ := sockettest.Pair(t)
	f := largeFile(t)
	c := blockedCopy(t, near, f)
	if _, err := io.ReadFull(f, make([]byte, 64<<10)); err != nil {
		t.Fatalf("ReadFull of the file: %v", err)
	}
	want, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		t.Fatalf("Seek: %v", err)
	}
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatalf("SetWriteDeadline: %v", err)
	}
	sockettest.Receive(t, "the end of the copy", c)
	if offset, err := f.Seek(0, io.SeekCurrent); offset != want || err != nil {
		t.Errorf("offset of a file after a copy that failed, and a Read beside it: got %d, %v; want %d, nil", offset, err, want)
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
				w, _ := sockettest.Pair(t)
				c := startCopy(w, near)
				if _, err := far.Write([]byte("some")); err != nil {
					t.Fatalf("Write of the peer: %v", err)
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
	f := largeFile(t)
	first, _ := sockettest.Pair(t) // no peer in this test reads
	copies := []pendingCopy{startCopy(first, f)}
	sockettest.WaitInPoller(t, 1)

	wantEnd := func(what string, c pendingCopy, want error) {
		t.Helper()
		if got := sockettest.Receive(t, "the end of the "+what, c); !errors.Is(got.err, want) {
			t.Errorf("%s: got %d bytes, %v; want %v", what, got.n, got.err, want)
		}
	}
	second, _ := sockettest.Pair(t)
	second.SetDeadline(time.Now().Add(20 * time.Millisecond))
	wantEnd("second copy of a file, with a deadline", startCopy(second, f), os.ErrDeadlineExceeded)
	third, _ := sockettest.Pair(t)
	copies = append(copies, startCopy(third, f))
	sockettest.WaitInPoller(t, 2)
	third.Close()
	wantEnd("third copy of a file, with Close of its destination", copies[1], net.ErrClosed)
	// The first copy, which waits, does not block a Read of the file.
	if n, err := f.Read(make([]byte, 10)); n != 10 {
		t.Errorf("Read of a file of which a copy waits: got %d, %v; want 10", n, err)
	}
	first.Close()
	wantEnd("first copy of a file, with Close of its destination", copies[0], net.ErrClosed)
}

// A copy that has sent everything must not wait for the peer to read. The deadline ends
// one that does.
func TestCopyOfAFileThatFitsDoesNotWaitForThePeer(t *testing.T) {
	for _, size := range []int64{0, 1, 1 << 10, 40 << 10, 100 << 10} {
		for what, reader := range map[string]func(*os.File) io.Reader{
			"file":                   func(f *os.File) io.Reader { return f },
			"limited beyond its end": func(f *os.File) io.Reader { return io.LimitReader(f, 1<<20) },
			"limited to its size":    func(f *os.File) io.Reader { return io.LimitReader(f, size) },
		} {
			f := newTestFile(t, 0)
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

func TestCopyToAConnInUseLeavesTheFileToOthers(t *testing.T) {
	f := largeFile(t)
	busy, _ := sockettest.Pair(t) // no peer in this test reads
	write := waiting(t, func() error {
		_, err := busy.Write(make([]byte, 8<<20))
		return err
	})
	blocked := startCopy(busy, f)
	sockettest.WaitFor(t, "the copy does not wait for the Write", func() bool { return waitingForALock() > 0 })

	other, _ := sockettest.Pair(t)
	other.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if got := sockettest.Receive(t, "the end of the other copy", startCopy(other, f)); !errors.Is(got.err, os.ErrDeadlineExceeded) {
		t.Errorf("copy of a file that another copy waits to write: got %d bytes, %v; want os.ErrDeadlineExceeded", got.n, got.err)
	}
	busy.Close()
	if err := sockettest.Receive(t, "the end of the Write", write); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write whose Conn is closed: got %v, want net.ErrClosed", err)
	}
	if got := sockettest.Receive(t, "the end of the copy", blocked); !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("copy whose Conn is closed: got %d bytes, %v; want net.ErrClosed", got.n, got.err)
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

// A socket reports a reset to one call only: the kernel's copy, or the Write after it.
func TestCopyToAResetConnectionReportsWhatWriteDoes(t *testing.T) {
	reset := func() net.Conn {
		near, far := netPair(t, "tcp")
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		raw, err := near.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn: %v", err)
		}
		raw.Read(func(fd uintptr) bool { return sockettest.Readable(int(fd)) })
		return near
	}
	_, err := reset().Write([]byte("some"))
	var want syscall.Errno
	if !errors.As(err, &want) {
		t.Fatalf("Write to a reset connection: got %v, want an Errno", err)
	}
	r, w := sockettest.Pair(t)
	if _, err := w.Write([]byte("some")); err != nil {
		t.Fatalf("Write: %v", err)
	}
	_, err = io.Copy(reset(), r)
	wantError(t, err, want, "write", "tcp")
}

func TestCopyToAFileReportsWhatWriteDoes(t *testing.T) {
	name := filepath.Join(sockettest.ShortDir(t), "f")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer f.Close()
	readEnd, writeEnd, err := os.Pipe()
	if err != nil {
		t.Fatalf("Pipe: %v", err)
	}
	defer readEnd.Close()
	defer writeEnd.Close()
	for desc, f := range map[string]*os.File{"a file open for reading only": f, "the read end of a pipe": readEnd} {
		r, w := sockettest.Pair(t)
		if _, err := w.Write([]byte("some")); err != nil {
			t.Fatalf("Write: %v", err)
		}
		_, want := f.Write([]byte("some"))
		if n, err := r.WriteTo(f); n != 0 || !reflect.DeepEqual(err, want) {
			t.Errorf("WriteTo %s: got %d, %#v; want 0, %#v", desc, n, err, want)
		}
	}
}

// addressless is a connection whose LocalAddr returns nil.
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
		t.Errorf("io.Copy from a reset connection without an address: got %v, want ECONNRESET", got.err)
	}
}

func TestCopyAfterACloseIsErrClosed(t *testing.T) {
	near, _ := sockettest.Pair(t)
	near.Close()
	r := bytes.NewReader([]byte("some"))
	n, err := near.ReadFrom(r)
	if n != 0 || r.Len() != 4 {
		t.Errorf("ReadFrom after Close: got %d, with %d bytes read from the source; want 0, with 0 bytes read", n, 4-r.Len())
	}
	wantError(t, err, net.ErrClosed, "write", "unix")
	n, err = near.WriteTo(io.Discard)
	if n != 0 {
		t.Errorf("WriteTo after Close: got %d, want 0", n)
	}
	wantError(t, err, net.ErrClosed, "read", "unix")
}

func TestCopyPassesOnTheErrorsOfTheOtherSide(t *testing.T) {
	near, far := sockettest.Pair(t)
	broken := errors.New("broken")
	if n, err := near.ReadFrom(io.MultiReader(bytes.NewReader([]byte("some")), brokenEnd{broken})); n != 4 || err != broken {
		t.Errorf("ReadFrom of 4 bytes and an error: got %d, %v; want 4, %v", n, err, broken)
	}
	if n, err := far.WriteTo(brokenEnd{broken}); n != 0 || err != broken {
		t.Errorf("WriteTo a writer that fails: got %d, %v; want 0, %v", n, err, broken)
	}
}

// A brokenEnd is a reader and writer whose methods return err.
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
		t.Errorf("ReadFull of the echo of %d bytes: got %v, equal bytes: %t; want nil, equal bytes", len(data), err, bytes.Equal(back, data))
	}
	if got := sockettest.Receive(t, "the end of the copy", c); got.n != int64(len(data)) || got.err != nil {
		t.Errorf("io.Copy of a Conn to itself: got %d, %v; want %d, nil", got.n, got.err, len(data))
	}
}

func TestCopyUsesReadAndWriteOfOtherTypes(t *testing.T) {
	near, far := sockettest.Pair(t)
	inner, innerFar := netPair(t, "unix")
	peeked := &peekedConn{inner.(*net.UnixConn), []byte("read ahead, ")}
	c := startCopy(near, peeked)
	if _, err := innerFar.Write([]byte("then the rest")); err != nil {
		t.Fatalf("Write of the source's peer: %v", err)
	}
	innerFar.Close()
	if got := sockettest.Receive(t, "the end of the copy", c); got.err != nil {
		t.Fatalf("io.Copy from a type with its own Read: got %d, %v; want no error", got.n, got.err)
	}
	near.Close()
	const want = "read ahead, then the rest"
	if b, err := io.ReadAll(far); string(b) != want || err != nil {
		t.Errorf("ReadAll of the peer after io.Copy from a type with its own Read: got %q, %v; want %q, nil", b, err, want)
	}
}

// peekedConn is a connection whose Read first returns the bytes of head, which were read
// ahead.
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
