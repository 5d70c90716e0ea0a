//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package stress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// A text is an endless sequence of bytes that both ends of a connection know. The byte at
// an offset is a hash of the offset and the text, so that a textChecker notices bytes that
// are lost, repeated, out of place or of another text.
type text byte

func (s text) at(offset int64) byte {
	x := uint64(offset) + uint64(s)<<56
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return byte(x ^ x>>31)
}

func (s text) fill(b []byte, offset int64) {
	for i := range b {
		b[i] = s.at(offset + int64(i))
	}
}

// A textReader reads s from offset on. It never returns EOF.
type textReader struct {
	s      text
	offset int64
}

func (r *textReader) Read(b []byte) (int, error) {
	b = b[:min(len(b), 32<<10)]
	r.s.fill(b, r.offset)
	r.offset += int64(len(b))
	return len(b), nil
}

// A textChecker is a writer whose Write returns an error unless the bytes are the next ones
// of s.
type textChecker struct {
	s      text
	offset int64
	begun  func() // called at the first byte; may be nil
}

var errNotTheText = errors.New("bytes differ from those written")

func (w *textChecker) Write(b []byte) (int, error) {
	want := make([]byte, len(b))
	w.s.fill(want, w.offset)
	if !bytes.Equal(b, want) {
		return 0, fmt.Errorf("%w: %d bytes at offset %d", errNotTheText, len(b), w.offset)
	}
	if w.offset == 0 && len(b) > 0 && w.begun != nil {
		w.begun()
	}
	w.offset += int64(len(b))
	return len(b), nil
}

// isEnd reports whether err is one of the errors that may end a conversation: EOF, that of
// a closed peer, an expired deadline or a closed connection.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || isGone(err) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}

// send writes s to c with randomly chosen methods until a write fails.
func send(c *unixsock.Conn, s text, r *rand.Rand) error {
	file, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer file.Close()
	from := &textReader{s: s}
	for {
		n := 1 + r.IntN(20000)
		switch r.IntN(3) {
		case 0:
			b := make([]byte, n)
			from.Read(b)
			_, err = c.Write(b)
		case 1:
			b := make([]byte, n)
			from.Read(b)
			_, err = c.WriteFiles(b, file)
		case 2:
			_, err = io.Copy(c, io.LimitReader(from, int64(n)))
		}
		if err != nil {
			return err
		}
	}
}

// receive reads from c with randomly chosen methods until a read fails.
func receive(c *unixsock.Conn, to *textChecker, r *rand.Rand) error {
	for {
		b := make([]byte, 1+r.IntN(20000))
		var n int
		var files []*os.File
		var err error
		switch r.IntN(20) {
		case 0:
			if _, err := io.Copy(to, c); err != nil {
				return err
			}
			return io.EOF
		case 1, 2, 3, 4, 5, 6, 7:
			n, files, err = c.ReadFiles(b, 2)
		default:
			n, err = c.Read(b)
		}
		closeAll(files)
		if _, wrong := to.Write(b[:n]); wrong != nil {
			return wrong
		}
		if err != nil {
			return err
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// converse sends out and receives in until both directions have ended. It calls begun,
// which may be nil, at the first byte that it receives. It returns the number of bytes
// that it received, and the error that ended a direction, unless it is one that isEnd
// allows. An expired deadline is an error, too.
func converse(c *unixsock.Conn, out, in text, begun func()) (int64, error) {
	defer c.Close()
	var wg sync.WaitGroup
	var sendErr, receiveErr error
	to := &textChecker{s: in, begun: begun}
	wg.Go(func() { sendErr = send(c, out, rand.New(rand.NewPCG(rand.Uint64(), 0))) })
	wg.Go(func() {
		receiveErr = receive(c, to, rand.New(rand.NewPCG(rand.Uint64(), 0)))
		c.CloseWrite() // the peer is gone
	})
	wg.Wait()
	for _, err := range []error{sendErr, receiveErr} {
		// The deadline is the time limit of the test, so it must not expire.
		if !isEnd(err) || errors.Is(err, os.ErrDeadlineExceeded) {
			return to.offset, err
		}
	}
	return to.offset, nil
}

const (
	faultPathVar = "UNIXSOCK_TEST_FAULT_PATH"
	faultRoleVar = "UNIXSOCK_TEST_FAULT_ROLE"

	// conversations is the number of connections to a process that is killed.
	conversations = 8
)

// TestKilledPeersEndTheConversation kills processes during conversations. The bytes read
// are a prefix of those written, and the conversation ends with EOF or with the error of a
// peer that is gone.
func TestKilledPeersEndTheConversation(t *testing.T) {
	if os.Getenv(sockettest.ChildVar) == t.Name() {
		if err := converseUntilKilled(os.Getenv(faultRoleVar), os.Getenv(faultPathVar)); err != nil {
			t.Fatalf("converse until the process is killed: got %v, want no end", err)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("Executable: %v", err)
	}
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	n, name := sockettest.Times(100), t.Name()
	var met, received atomic.Int64
	for round := range n {
		path := filepath.Join(sockettest.ShortDir(t), "s")
		role := []string{"connects", "listens"}[rand.IntN(2)]
		var l *unixsock.Listener
		if role == "connects" {
			if l, err = unixsock.Listen(path); err != nil {
				t.Fatalf("Listen: %v", err)
			}
		}
		cmd := exec.Command(exe, "-test.run=^"+name+"$", "-test.count=1", "-test.timeout=1m")
		sockettest.ChildEnv(cmd, sockettest.ChildVar+"="+name, faultPathVar+"="+path, faultRoleVar+"="+role)
		sockettest.Emulate(cmd)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatalf("start a child process: %v", err)
		}
		var running sync.WaitGroup
		begun, dead := make(chan struct{}, 2*conversations), make(chan struct{})
		begin := func() { begun <- struct{}{} }
		early := round%2 == 0 // the kill does not wait for the first byte
		for i := range conversations {
			running.Go(func() {
				c, err := meet(dead, l, path)
				if early || err != nil {
					begin()
				}
				switch {
				case err == nil:
					c.SetDeadline(time.Now().Add(sockettest.Timeout))
					var n int64
					n, err = converse(c, 0, 1, begin)
					met.Add(1)
					received.Add(n)
				case l == nil && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)),
					l != nil && errors.Is(err, net.ErrClosed):
					err = nil // the kill came before the connection
				}
				if err != nil {
					t.Errorf("conversation %d with a killed peer that %s: got %v, want EOF or the error of a closed peer", i, role, err)
				}
			})
		}
		sockettest.Receive(t, "a conversation to begin", begun)
		time.Sleep(rand.N(8 * time.Millisecond)) // the kill comes at a random point of the conversations
		cmd.Process.Kill()
		err := cmd.Wait()
		close(dead)
		if l != nil {
			l.Close() // ends the accepts; no goroutine serves the pending connections
		}
		running.Wait()
		os.RemoveAll(filepath.Dir(path))
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("kill a peer that %s: got %v, want SIGKILL\n%s", role, err, out.Bytes())
		}
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
	t.Logf("killed %d processes during %d conversations, after %d bytes", n, met.Load(), received.Load())
	if received.Load() == 0 {
		t.Error("converse with killed peers: got 0 bytes, want some")
	}
}

// meet accepts a connection from l. If l is nil, it connects to path, and retries until a
// listener exists or dead is closed.
func meet(dead <-chan struct{}, l *unixsock.Listener, path string) (*unixsock.Conn, error) {
	if l != nil {
		return l.AcceptContext(context.Background())
	}
	for {
		c, err := unixsock.Connect(path)
		// The kernel refuses a connect between the peer's bind and listen, too.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		select {
		case <-dead:
			return c, err
		case <-time.After(time.Millisecond):
		}
	}
}

// converseUntilKilled runs in the process that the test kills. It returns only if a
// conversation ends earlier.
func converseUntilKilled(role, path string) error {
	var l *unixsock.Listener
	if role == "listens" {
		var err error
		if l, err = unixsock.Listen(path, unixsock.Backlog(rand.IntN(3))); err != nil {
			return err
		}
	}
	errs := make(chan error, conversations)
	for range conversations {
		go func() {
			c, err := meet(nil, l, path)
			if err != nil {
				errs <- err
				return
			}
			// The test ends no conversation before the kill.
			_, err = converse(c, 1, 0, nil)
			errs <- fmt.Errorf("conversation ended before the kill: %v", err)
		}()
	}
	return <-errs
}

// A fault is an event that ends a blocked read or write.
type fault struct {
	name string
	do   func(c *unixsock.Conn, h sockettest.Half) // nil: the peer closes its end
	want error                                     // nil: the error of a closed peer
}

// inflict causes f on h, the half of c that a call uses.
func (f fault) inflict(c, peer *unixsock.Conn, h sockettest.Half) {
	if f.do != nil {
		f.do(c, h)
	} else {
		peer.Close()
	}
}

var faults = []fault{
	{"deadline now", func(c *unixsock.Conn, h sockettest.Half) { h.SetDeadline(c, time.Now()) }, os.ErrDeadlineExceeded},
	{"deadline in the future", func(c *unixsock.Conn, h sockettest.Half) { h.SetDeadline(c, time.Now().Add(rand.N(time.Millisecond))) }, os.ErrDeadlineExceeded},
	{"deadline of both halves", func(c *unixsock.Conn, h sockettest.Half) { c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	{"close of the half", func(c *unixsock.Conn, h sockettest.Half) { h.Close(c) }, net.ErrClosed},
	{"close of the port", func(c *unixsock.Conn, h sockettest.Half) {
		if in, out := c.Ports(); h == sockettest.ReadHalf {
			in.Close()
		} else {
			out.Close()
		}
	}, net.ErrClosed},
	{"close", func(c *unixsock.Conn, h sockettest.Half) { c.Close() }, net.ErrClosed},
	{"close of the other half, then of this one", func(c *unixsock.Conn, h sockettest.Half) {
		(sockettest.BothHalves &^ h).Close(c)
		h.Close(c)
	}, net.ErrClosed},
	{"end of the custodian", func(c *unixsock.Conn, h sockettest.Half) {
		ctx, cancel := context.WithCancel(context.Background())
		c.CloseOn(ctx)
		cancel()
	}, net.ErrClosed},
	{"the peer's close", nil, nil},
}

// A result holds the values that a write returned.
type result struct {
	n   int64
	err error
}

// eachFault runs a test for each combination of a way to read or write and a fault.
func eachFault[W any](t *testing.T, ways map[string]W, test func(*testing.T, W, fault)) {
	for name, way := range ways {
		for _, f := range faults {
			t.Run(name+"/"+f.name, func(t *testing.T) {
				for range sockettest.Times(4) {
					test(t, way, f)
				}
			})
		}
	}
}

// pair returns the ends of a connection made by unixsock.Pair.
func pair(t *testing.T) (c, peer *unixsock.Conn) {
	t.Helper()
	c, peer, err := unixsock.Pair()
	if err != nil {
		t.Fatalf("Pair: %v", err)
	}
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// writers are the ways to write the text until a call fails. They return the number of
// bytes written.
var writers = map[string]func(c *unixsock.Conn, from *textReader) (int64, error){
	"Write": func(c *unixsock.Conn, from *textReader) (n int64, err error) {
		b := make([]byte, 1+rand.IntN(1<<20))
		for err == nil {
			from.s.fill(b, n)
			var m int
			m, err = c.Write(b)
			n += int64(m)
		}
		return n, err
	},
	"WriteFiles": func(c *unixsock.Conn, from *textReader) (n int64, err error) {
		b := make([]byte, 1+rand.IntN(1<<20))
		for err == nil {
			from.s.fill(b, n)
			var m int
			m, err = c.WriteFiles(b, os.Stdin)
			n += int64(m)
		}
		return n, err
	},
	"ReadFrom": func(c *unixsock.Conn, from *textReader) (int64, error) {
		return c.ReadFrom(from)
	},
	"ReadFrom a Conn": func(c *unixsock.Conn, from *textReader) (int64, error) {
		r, w, err := unixsock.Pair()
		if err != nil {
			return 0, err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			io.Copy(struct{ io.Writer }{w}, from)
		}()
		n, err := c.ReadFrom(r)
		r.Close()
		<-done
		w.Close()
		return n, err
	},
	"ReadFrom a file": func(c *unixsock.Conn, from *textReader) (n int64, err error) {
		f, err := os.CreateTemp("", "us")
		if err != nil {
			return 0, err
		}
		defer f.Close()
		defer os.Remove(f.Name())
		if _, err := io.CopyN(f, from, 4<<20); err != nil {
			return 0, err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		n, err = c.ReadFrom(f)
		if err == nil {
			err = errors.New("ReadFrom of 4 MiB, which the peer does not read: got no error, want one")
		}
		return n, err
	},
}

// TestInterruptedWriteReturnsAnExactCount interrupts a write to a peer that reads slowly,
// at a random moment. The write returns the error of the fault, and the number of bytes
// that the peer receives.
func TestInterruptedWriteReturnsAnExactCount(t *testing.T) { eachFault(t, writers, interruptWrite) }

func interruptWrite(t *testing.T, write func(*unixsock.Conn, *textReader) (int64, error), f fault) {
	c, peer := pair(t)
	var s text
	got := make(chan error, 1)
	read := &textChecker{s: s}
	// The peer reads a little and then waits until the write has ended, so that a file of
	// a few MiB fills the socket's buffer.
	proceed := make(chan struct{})
	go func() {
		b := make([]byte, 16<<10)
		for range rand.IntN(20) {
			n, err := peer.Read(b)
			if _, wrong := read.Write(b[:n]); wrong != nil || err != nil {
				if err == io.EOF {
					err = nil
				}
				got <- errors.Join(wrong, err)
				return
			}
		}
		<-proceed
		if f.do == nil {
			got <- nil
			return
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{read}, struct{ io.Reader }{peer}, b)
		got <- err
	}()
	ended := make(chan result, 1)
	go func() {
		n, err := write(c, &textReader{s: s})
		ended <- result{n, err}
	}()
	time.Sleep(rand.N(2 * time.Millisecond)) // the fault comes at a random point of the write
	f.inflict(c, peer, sockettest.WriteHalf)
	r := sockettest.Receive(t, "the end of a write", ended)
	switch {
	case f.want != nil && !errors.Is(r.err, f.want):
		t.Fatalf("write interrupted by %s: got %v, want %v", f.name, r.err, f.want)
	case f.want == nil && !isGone(r.err):
		t.Fatalf("write to a peer that has closed: got %v, want EPIPE or ECONNRESET", r.err)
	}
	if f.want == os.ErrDeadlineExceeded {
		// The next write continues at the offset where this write ended.
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatalf("SetWriteDeadline: %v", err)
		}
		go func() {
			n, err := c.Write([]byte{s.at(r.n)})
			ended <- result{r.n + int64(n), err}
			c.CloseWrite()
		}()
	}
	close(proceed)
	if f.want == os.ErrDeadlineExceeded {
		if r = sockettest.Receive(t, "a write after a deadline", ended); r.err != nil {
			t.Fatalf("Write of 1 byte after an expired deadline: got %v, want no error", r.err)
		}
	}
	err := sockettest.Receive(t, "the last read of the peer", got)
	switch {
	case f.do == nil && !errors.Is(err, errNotTheText):
		if read.offset > r.n {
			t.Fatalf("write interrupted by %s: got %d bytes, want at least %d, which the peer has read", f.name, r.n, read.offset)
		}
	case err != nil && !errors.Is(err, syscall.ECONNRESET):
		t.Fatalf("read of the peer after a write interrupted by %s: got %v, want EOF or ECONNRESET", f.name, err)
	case read.offset != r.n:
		t.Fatalf("write interrupted by %s: got %d bytes, want %d, which the peer has read", f.name, r.n, read.offset)
	}
}

// readers are the ways to read the text until a call fails.
var readers = map[string]func(c *unixsock.Conn, to *textChecker) error{
	"Read": func(c *unixsock.Conn, to *textChecker) error {
		b := make([]byte, 1+rand.IntN(100<<10))
		for {
			n, err := c.Read(b)
			if _, wrong := to.Write(b[:n]); wrong != nil || err != nil {
				return errors.Join(wrong, err)
			}
		}
	},
	"ReadFiles": func(c *unixsock.Conn, to *textChecker) error {
		b := make([]byte, 1+rand.IntN(100<<10))
		for {
			n, files, err := c.ReadFiles(b, 1)
			closeAll(files)
			if _, wrong := to.Write(b[:n]); wrong != nil || err != nil {
				return errors.Join(wrong, err)
			}
		}
	},
	"WriteTo": func(c *unixsock.Conn, to *textChecker) error {
		return writeTo(struct{ io.Writer }{to}, c)
	},
	"WriteTo a Conn": func(c *unixsock.Conn, to *textChecker) error {
		w, r, err := unixsock.Pair()
		if err != nil {
			return err
		}
		defer r.Close()
		checked := make(chan error, 1)
		go func() {
			_, err := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{r})
			checked <- err
		}()
		err = writeTo(w, c)
		w.Close()
		return errors.Join(err, <-checked)
	},
}

// writeTo calls c.WriteTo. At the end of the input it returns io.EOF, as the other ways to
// read do.
func writeTo(to io.Writer, c *unixsock.Conn) error {
	if _, err := c.WriteTo(to); err != nil {
		return err
	}
	return io.EOF
}

// TestInterruptedReadLosesNothing interrupts a read from a peer that writes with pauses, at
// a random moment. The read returns the error of the fault. After a deadline, later reads
// return the rest of the bytes.
func TestInterruptedReadLosesNothing(t *testing.T) { eachFault(t, readers, interruptRead) }

func interruptRead(t *testing.T, read func(*unixsock.Conn, *textChecker) error, f fault) {
	c, peer := pair(t)
	var s text
	stop := make(chan struct{})
	wrote := make(chan result, 1)
	go func() {
		b := make([]byte, 64<<10)
		from := &textReader{s: s}
		for {
			n := 1 + rand.IntN(len(b))
			s.fill(b[:n], from.offset)
			m, err := peer.WriteFiles(b[:n], os.Stdin)
			from.offset += int64(m)
			if err == nil {
				select {
				case <-stop:
				case <-time.After(rand.N(200 * time.Microsecond)):
					continue
				}
			}
			peer.CloseWrite()
			wrote <- result{from.offset, err}
			return
		}
	}()
	to := &textChecker{s: s}
	ended := make(chan error, 1)
	go func() { ended <- read(c, to) }()
	time.Sleep(rand.N(2 * time.Millisecond)) // the fault comes at a random point of the read
	f.inflict(c, peer, sockettest.ReadHalf)
	err := sockettest.Receive(t, "the end of a read", ended)
	switch {
	case errors.Is(err, errNotTheText), f.want != nil && !errors.Is(err, f.want):
		t.Fatalf("read interrupted by %s: got %v, want %v", f.name, err, f.want)
	case f.want == nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET):
		t.Fatalf("read from a peer that has closed: got %v, want EOF or ECONNRESET", err)
	}
	close(stop)
	if f.want == net.ErrClosed {
		c.Close() // some kernels do not tell the peer that only the input is closed
	}
	if f.want == os.ErrDeadlineExceeded {
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatalf("SetDeadline: %v", err)
		}
		if err := read(c, to); !errors.Is(err, io.EOF) {
			t.Fatalf("read after an expired deadline: got %v, want EOF", err)
		}
	}
	w := sockettest.Receive(t, "the last write of the peer", wrote)
	switch {
	case f.want == os.ErrDeadlineExceeded && (w.err != nil || to.offset != w.n):
		t.Fatalf("read before and after %s: got %d bytes, with error %v of the peer's write; want %d bytes, which the peer wrote, without an error",
			f.name, to.offset, w.err, w.n)
	case to.offset > w.n:
		t.Fatalf("read interrupted by %s: got %d bytes, want at most %d, which the peer wrote", f.name, to.offset, w.n)
	case w.err != nil && !isEnd(w.err):
		t.Fatalf("write of the peer of a read interrupted by %s: got %v, want the error of a closed connection", f.name, w.err)
	}
}

// TestCancelledConnectLeavesNoConnection cancels a waiting Connect at about the moment when
// the backlog gets room. A connection is pending if and only if Connect returned one.
func TestCancelledConnectLeavesNoConnection(t *testing.T) {
	l := sockettest.FullListener(t)
	sockettest.Accept(t, l).Close()
	connected, cancelled := 0, 0
	for range sockettest.Times(200) {
		sockettest.Connect(t, l.Addr().String())
		ctx, cancel := context.WithCancel(t.Context())
		result := sockettest.Connecting(t, ctx, l.Addr().String())
		time.AfterFunc(rand.N(300*time.Microsecond), cancel)
		sockettest.Accept(t, l).Close()
		d := sockettest.Receive(t, "a canceled ConnectContext", result)
		cancel()
		if pending := sockettest.Pending(t, l); pending != (d.Err == nil) {
			t.Fatalf("canceled ConnectContext: got %v, with a connection pending %t; want pending %t", d.Err, pending, !pending)
		}
		if d.Err == nil {
			connected++
			sockettest.Accept(t, l).Close()
			d.Conn.Close()
		} else if cancelled++; !errors.Is(d.Err, context.Canceled) {
			t.Fatalf("canceled ConnectContext: got %v, want Canceled", d.Err)
		}
	}
	t.Logf("canceled %d waiting calls of ConnectContext: %d returned a connection, %d an error", connected+cancelled, connected, cancelled)
}

// TestRunningOutOfDescriptorsLosesNoConnection uses up the descriptors while clients are
// pending. Accepts and events report EMFILE, and no goroutine spins. Once descriptors are
// free again, each client is served once.
func TestRunningOutOfDescriptorsLosesNoConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops a connection for which accept(2) has no descriptor")
	}
	l := sockettest.Listen(t, unixsock.Backlog(64))
	l.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for round := range 10 {
		clients := make([]*unixsock.Conn, 8)
		for i := range clients {
			clients[i] = sockettest.Connect(t, l.Addr().String())
			if _, err := clients[i].Write([]byte{byte(i)}); err != nil {
				t.Fatalf("Write of client %d: %v", i, err)
			}
		}
		free := sockettest.ExhaustDescriptors(t)
		served := acceptWithoutDescriptors(t, ctx, l)
		if round == 0 {
			checkIdle(t)
		}
		free()
		served = acceptAll(t, ctx, l, served, len(clients))
		seen := make(map[byte]bool)
		for _, c := range served {
			var id [1]byte
			if _, err := io.ReadFull(c, id[:]); err != nil {
				t.Fatalf("ReadFull of the client's ID: got %v, want no error", err)
			}
			if seen[id[0]] {
				t.Errorf("accept %d clients: got client %d twice, want each once", len(clients), id[0])
			}
			seen[id[0]] = true
		}
		for _, c := range append(clients, served...) {
			c.Close()
		}
		if showsReady(l.Ready()) {
			t.Fatal("poll of Ready() after the last client: got true, want false")
		}
	}
}

// TestRunningOutOfDescriptorsIsReported uses up the descriptors while clients are pending,
// as the test above does. It checks what holds on kernels that drop the connection, too:
// AcceptContext reports EMFILE, no goroutine spins, and later accepts succeed.
func TestRunningOutOfDescriptorsIsReported(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	l := sockettest.Listen(t, unixsock.Backlog(64))
	l.Ready()
	for range 2 {
		sockettest.Connect(t, l.Addr().String())
	}
	free := sockettest.ExhaustDescriptors(t)
	if c, err := l.AcceptContext(t.Context()); !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("AcceptContext without a free descriptor: got %v, %v; want EMFILE", c, err)
	}
	checkIdle(t)
	free()
	sockettest.Accept(t, l)
}

// checkIdle fails the test if the process uses much processor time while the test makes no
// call. A goroutine that spins uses a whole processor.
func checkIdle(t *testing.T) {
	t.Helper()
	const idle, limit = 200 * time.Millisecond, 100 * time.Millisecond
	used := sockettest.ProcessorTime(t)
	time.Sleep(idle) // the time that is measured
	if used = sockettest.ProcessorTime(t) - used; used > limit {
		t.Errorf("processor time in %v without a free descriptor and without a call: got %v, want at most %v", idle, used, limit)
	}
}

// acceptWithoutDescriptors checks what a listener with pending connections reports while
// no descriptor is free. It returns the connection that the listener has accepted ahead,
// if any.
func acceptWithoutDescriptors(t *testing.T, ctx context.Context, l *unixsock.Listener) (served []*unixsock.Conn) {
	t.Helper()
	if !showsReady(l.Ready()) || sockettest.Receive(t, "readiness", l.Ready()) != l {
		t.Fatal("poll of Ready() with pending clients: got false, want true")
	}
	c, err := l.AcceptContext(ctx)
	if err == nil {
		served = append(served, c)
		_, err = l.AcceptContext(ctx)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("AcceptContext without a free descriptor: got %v, want EMFILE", err)
	}
	for range 3 {
		if a := sockettest.Receive(t, "an event", l.AcceptEvt(ctx)); !errors.Is(a.Err, syscall.EMFILE) {
			t.Fatalf("receive from an event without a free descriptor: got %v, %v; want EMFILE", a.Conn, a.Err)
		}
	}
	if _, err := unixsock.Connect(l.Addr().String()); !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("Connect without a free descriptor: got %v, want EMFILE", err)
	}
	return served
}

// acceptAll accepts with AcceptContext, Accept and an event in turn, and appends to served
// until it has n connections.
func acceptAll(t *testing.T, ctx context.Context, l *unixsock.Listener, served []*unixsock.Conn, n int) []*unixsock.Conn {
	t.Helper()
	for len(served) < n {
		var c *unixsock.Conn
		var err error
		switch len(served) % 3 {
		case 0:
			c = sockettest.Accept(t, l)
		case 1:
			c, err = acceptors[0](ctx, l)
		case 2:
			a := sockettest.Receive(t, "an event", l.AcceptEvt(ctx))
			if errors.Is(a.Err, syscall.EMFILE) {
				continue // the event offered the error before descriptors were free
			}
			c, err = a.Conn, a.Err
		}
		if err != nil {
			t.Fatalf("accept %d of %d with free descriptors: got %v, want a connection", len(served), n, err)
		}
		served = append(served, c)
	}
	return served
}

// TestListenerOutlivesItsFile removes the socket file of a listener, and binds another
// listener to the same path. The first listener accepts the clients that connected before,
// the other one those that connect afterwards. Close of the first listener leaves the file
// of the other.
func TestListenerOutlivesItsFile(t *testing.T) {
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	path := l.Addr().String()
	sockettest.Connect(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if _, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Connect after the removal of the socket file: got %v, want ErrNotExist", err)
	}
	if !showsReady(l.Ready()) {
		t.Error("poll of Ready() with a pending connection: got false, want true")
	}
	other := sockettest.ListenAt(t, path)
	sockettest.CheckExchange(t, path, other)
	sockettest.Accept(t, l)
	if showsReady(l.Ready()) {
		t.Error("poll of Ready() without a pending connection: got true, want false")
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close of a listener whose path has the file of another: got %v, want no error", err)
	}
	sockettest.CheckExchange(t, path, other)
}

// TestWaitingConnectFollowsAReplacedFile replaces the socket file while a Connect waits.
// The Connect then connects to the new listener.
func TestWaitingConnectFollowsAReplacedFile(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	result := sockettest.Connecting(t, t.Context(), path)
	spare := sockettest.ListenAt(t, path+"2")
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatalf("Rename: %v", err)
	}
	if d := sockettest.Receive(t, "ConnectContext after its file was replaced", result); d.Err != nil {
		t.Fatalf("ConnectContext whose file is replaced while it waits: got %v, want a connection", d.Err)
	}
	sockettest.Accept(t, spare)
}

// TestDirectoryWithoutPermissionIsErrPermission removes the permissions of a directory.
// Connect, Listen and Close return ErrPermission, and an open listener stays usable.
func TestDirectoryWithoutPermissionIsErrPermission(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Skipf("Chown: %v", err)
		}
		// The directory belongs to the new user, so that the child can remove it at the end.
		if err := syscall.Setuid(65534); err != nil {
			t.Skipf("setuid(2): %v", err)
		}
	}
	path := filepath.Join(dir, "s")
	l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
	sockettest.Connect(t, path)
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatalf("Chmod to 0: %v", err)
	}
	for what, err := range map[string]error{
		"Connect":                  second(unixsock.Connect(path)),
		"Listen":                   second(unixsock.Listen(path)),
		"Listen at another path":   second(unixsock.Listen(path + "2")),
		"Listen with ReplaceStale": second(unixsock.Listen(path+"2", unixsock.ReplaceStale(), unixsock.Mode(0o600))),
	} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s in a directory without permissions: got %v, want ErrPermission", what, err)
		}
	}
	sockettest.Accept(t, l)
	// The user can read and search the directory, but not write to it.
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatalf("Chmod to 0500: %v", err)
	}
	sockettest.Connect(t, path)
	sockettest.Accept(t, l)
	if err := l.Close(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Close in a read-only directory: got %v, want ErrPermission", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: got %v, want nil", err)
	}
	if _, err := unixsock.Connect(path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Connect to a closed listener whose file remains: got %v, want ECONNREFUSED", err)
	}
	if _, err := unixsock.Listen(path, unixsock.ReplaceStale()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Listen with ReplaceStale in a read-only directory: got %v, want ErrPermission", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatalf("Chmod to 0700: %v", err)
	}
	sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
}

// second returns the second result of a call, its error.
func second[T any](_ T, err error) error { return err }

// maxFiles is the maximum number of files of one WriteFiles.
const maxFiles = 253

// TestReadFilesTakesEachDescriptorOnce sends random numbers of bytes and descriptors, and
// reads them with random buffer sizes and limits. All bytes arrive. Each descriptor arrives
// once, or ReadFiles discards it with an error because there are more than the limit. No
// descriptor stays open.
func TestReadFilesTakesEachDescriptorOnce(t *testing.T) {
	byChance(t, 20, func(t *testing.T, r *rand.Rand) {
		before := sockettest.CountDescriptors(t)
		c, peer := pair(t)
		sent, got, refused := 0, 0, 0
		var s text
		from, to := &textReader{s: s}, &textChecker{s: s}
		for range 100 {
			b := make([]byte, 1+r.IntN(300))
			from.Read(b)
			k := 0
			if r.IntN(3) > 0 {
				k = r.IntN(6)
			}
			files := make([]*os.File, k)
			for i := range files {
				files[i] = os.Stdin
			}
			if n, err := peer.WriteFiles(b, files...); n != len(b) || err != nil {
				t.Fatalf("WriteFiles of %d bytes and %d files: got %d, %v; want %d, nil", len(b), k, n, err, len(b))
			}
			sent += k
			for r.IntN(3) > 0 && to.offset < from.offset {
				most := r.IntN(6)
				b := make([]byte, 1+r.IntN(500))
				n, files, err := c.ReadFiles(b, most)
				if _, wrong := to.Write(b[:n]); wrong != nil {
					t.Fatalf("ReadFiles of at most %d bytes: got %v, want the bytes that the peer wrote", len(b), wrong)
				}
				switch {
				case err == nil && len(files) <= most:
					got += len(files)
				case err != nil && len(files) == 0 && strings.Contains(err.Error(), "descriptors"):
					refused++
				default:
					t.Fatalf("ReadFiles with a limit of %d files: got %d files, %v; want at most %d files, or none and an error about descriptors",
						most, len(files), err, most)
				}
				for _, f := range files {
					if _, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil {
						t.Fatalf("fcntl(2) of a received file: got %v, want a valid descriptor", err)
					}
					f.Close()
				}
			}
		}
		peer.Close()
		for to.offset < from.offset {
			n, files, err := c.ReadFiles(make([]byte, 1000), maxFiles)
			if err != nil {
				t.Fatalf("ReadFiles of the last %d bytes: got %v, want no error", from.offset-to.offset, err)
			}
			to.offset += int64(n)
			got += len(files)
			closeAll(files)
		}
		if _, files, err := c.ReadFiles(make([]byte, 1), 1); err != io.EOF || len(files) > 0 {
			t.Errorf("ReadFiles at the end of the input: got %v, %v; want no files, EOF", files, err)
		}
		if got > sent || got+refused*5 < sent {
			t.Errorf("ReadFiles of %d descriptors: got %d, with up to 5 discarded %d times; want at least %d and at most %d",
				sent, got, refused, sent-refused*5, sent)
		}
		c.Close()
		sockettest.WaitDescriptors(t, before)
	})
}
