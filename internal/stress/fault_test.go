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

// A text has no end, and is one that each side of a conversation knows: the byte at
// every offset can be distinguished from its neighbours and from that of other streams.
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

// A textReader reads s from the offset on, without end, or up to one.
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

// A textChecker is written s, and fails at the first byte that is not next.
type textChecker struct {
	s      text
	offset int64
	begun  func() // called with the first bytes; may be nil
}

var errNotTheText = errors.New("not what was written")

func (w *textChecker) Write(b []byte) (int, error) {
	want := make([]byte, len(b))
	w.s.fill(want, w.offset)
	if !bytes.Equal(b, want) {
		return 0, fmt.Errorf("%w: %d bytes at %d", errNotTheText, len(b), w.offset)
	}
	if w.offset == 0 && len(b) > 0 && w.begun != nil {
		w.begun()
	}
	w.offset += int64(len(b))
	return len(b), nil
}

// isEnd reports whether err is one of those that may end a conversation.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || isGone(err) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}

// talk writes s to c, in every way that there is, until that fails.
func talk(c *unixsock.Conn, s text, r *rand.Rand) error {
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

// hear reads from c, in every way that there is, until that fails.
func hear(c *unixsock.Conn, to *textChecker, r *rand.Rand) error {
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
		for _, f := range files {
			f.Close()
		}
		if _, wrong := to.Write(b[:n]); wrong != nil {
			return wrong
		}
		if err != nil {
			return err
		}
	}
}

// converse sends and receives until both have ended, and calls begun, which may be
// nil, when it first receives something. It returns how many bytes it received, and an
// end that is none of those that there may be.
func converse(c *unixsock.Conn, says, hears text, begun func()) (int64, error) {
	defer c.Close()
	var wg sync.WaitGroup
	var talked, heard error
	to := &textChecker{s: hears, begun: begun}
	wg.Go(func() { talked = talk(c, says, rand.New(rand.NewPCG(rand.Uint64(), 0))) })
	wg.Go(func() {
		heard = hear(c, to, rand.New(rand.NewPCG(rand.Uint64(), 0)))
		c.CloseWrite() // the peer is gone
	})
	wg.Wait()
	for _, err := range []error{talked, heard} {
		if !isEnd(err) || errors.Is(err, os.ErrDeadlineExceeded) {
			return to.offset, err // the deadline is for tests that hang
		}
	}
	return to.offset, nil
}

const (
	faultPathVar = "UNIXSOCK_TEST_FAULT_PATH"
	faultRoleVar = "UNIXSOCK_TEST_FAULT_ROLE"

	// talksEach is how many conversations a process has that is killed.
	talksEach = 8
)

// TestKilledPeersEndTheConversation kills processes in the middle of
// conversations. What was read of each is a prefix of what was written, and it
// ended with one of the errors that say so.
func TestKilledPeersEndTheConversation(t *testing.T) {
	if os.Getenv(sockettest.ChildVar) == t.Name() {
		if err := talkUntilKilled(os.Getenv(faultRoleVar), os.Getenv(faultPathVar)); err != nil {
			t.Fatal(err)
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	goroutines, descriptors := runtime.NumGoroutine(), sockettest.CountDescriptors(t)
	n, name := sockettest.Times(100), t.Name()
	var met, heard atomic.Int64
	for round := range n {
		path := filepath.Join(sockettest.ShortDir(t), "s")
		role := []string{"connects", "listens"}[rand.IntN(2)]
		var l *unixsock.Listener
		if role == "connects" {
			if l, err = unixsock.Listen(path); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(exe, "-test.run=^"+name+"$", "-test.count=1", "-test.timeout=1m")
		sockettest.ChildEnv(cmd, sockettest.ChildVar+"="+name, faultPathVar+"="+path, faultRoleVar+"="+role)
		sockettest.Emulate(cmd)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var talks sync.WaitGroup
		begun, dead := make(chan struct{}, 2*talksEach), make(chan struct{})
		begin := func() { begun <- struct{}{} }
		early := round%2 == 0 // before anything need have been said
		for i := range talksEach {
			talks.Go(func() {
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
					heard.Add(n)
				case l == nil && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)),
					l != nil && errors.Is(err, net.ErrClosed):
					err = nil // killed before it could be met
				}
				if err != nil {
					t.Errorf("conversation %d with a peer that %s: %v", i, role, err)
				}
			})
		}
		sockettest.Receive(t, "a conversation to begin", begun)
		time.Sleep(rand.N(8 * time.Millisecond))
		cmd.Process.Kill()
		err := cmd.Wait()
		close(dead)
		if l != nil {
			l.Close() // pending connections are not served
		}
		talks.Wait()
		os.RemoveAll(filepath.Dir(path))
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("a peer that %s was not killed, but ended: %v\n%s", role, err, out.Bytes())
		}
	}
	sockettest.WaitGoroutines(t, goroutines)
	sockettest.WaitDescriptors(t, descriptors)
	t.Logf("%d processes were killed in %d conversations, of which %d bytes had been read", n, met.Load(), heard.Load())
	if heard.Load() == 0 {
		t.Error("no conversation had begun")
	}
}

// meet accepts from l, or if that is nil connects to path, once it is there; but
// no longer than until dead is closed.
func meet(dead <-chan struct{}, l *unixsock.Listener, path string) (*unixsock.Conn, error) {
	if l != nil {
		return l.AcceptContext(context.Background())
	}
	for {
		c, err := unixsock.Connect(path)
		// Before listen, too, a connect is refused.
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

// talkUntilKilled is what the process does that is killed.
func talkUntilKilled(role, path string) error {
	var l *unixsock.Listener
	if role == "listens" {
		var err error
		if l, err = unixsock.Listen(path, unixsock.Backlog(rand.IntN(3))); err != nil {
			return err
		}
	}
	errs := make(chan error, talksEach)
	for range talksEach {
		go func() {
			c, err := meet(nil, l, path)
			if err != nil {
				errs <- err
				return
			}
			// The other side ends none; so it is this one's end that is awaited.
			_, err = converse(c, 1, 0, nil)
			errs <- fmt.Errorf("a conversation ended early: %v", err)
		}()
	}
	return <-errs
}

// A fault is a way to end what a half of a Conn does.
type fault struct {
	name string
	do   func(c *unixsock.Conn, h sockettest.Half)
	want error // nil: what comes when the peer has gone
}

var faults = []fault{
	{"deadline now", func(c *unixsock.Conn, h sockettest.Half) { h.SetDeadline(c, time.Now()) }, os.ErrDeadlineExceeded},
	{"deadline to come", func(c *unixsock.Conn, h sockettest.Half) { h.SetDeadline(c, time.Now().Add(rand.N(time.Millisecond))) }, os.ErrDeadlineExceeded},
	{"deadline of both", func(c *unixsock.Conn, h sockettest.Half) { c.SetDeadline(time.Now()) }, os.ErrDeadlineExceeded},
	{"close of the half", func(c *unixsock.Conn, h sockettest.Half) { h.Close(c) }, net.ErrClosed},
	{"close of the port", func(c *unixsock.Conn, h sockettest.Half) {
		if in, out := c.Ports(); h == sockettest.ReadHalf {
			in.Close()
		} else {
			out.Close()
		}
	}, net.ErrClosed},
	{"close", func(c *unixsock.Conn, h sockettest.Half) { c.Close() }, net.ErrClosed},
	{"close of the other half, then of this", func(c *unixsock.Conn, h sockettest.Half) {
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

// writers are the ways to write the text, on and on.
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
			err = errors.New("4 MiB went into a socket without a reader")
		}
		return n, err
	},
}

// TestInterruptedWriteReturnsAnExactCount ends, at some moment, what writes to a
// peer that reads slowly. The error says what did, and the count what the peer
// gets.
func TestInterruptedWriteReturnsAnExactCount(t *testing.T) {
	for name, write := range writers {
		for _, f := range faults {
			t.Run(name+"/"+f.name, func(t *testing.T) {
				for range sockettest.Times(4) {
					endWrite(t, write, f)
				}
			})
		}
	}
}

func endWrite(t *testing.T, write func(*unixsock.Conn, *textReader) (int64, error), f fault) {
	c, peer, err := unixsock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer peer.Close()
	var s text
	got := make(chan error, 1)
	read := &textChecker{s: s}
	// The peer reads little, then nothing until all is over, so that a file of a
	// few MiB is enough to fill what is between.
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
	type result struct {
		n   int64
		err error
	}
	ended := make(chan result, 1)
	go func() {
		n, err := write(c, &textReader{s: s})
		ended <- result{n, err}
	}()
	time.Sleep(rand.N(2 * time.Millisecond))
	if f.do != nil {
		f.do(c, sockettest.WriteHalf)
	} else {
		peer.Close()
	}
	r := sockettest.Receive(t, "the end of a write", ended)
	switch {
	case f.want != nil && !errors.Is(r.err, f.want):
		t.Fatalf("ended with %v, want %v", r.err, f.want)
	case f.want == nil && !isGone(r.err):
		t.Fatalf("ended with %v, and the peer is gone", r.err)
	}
	if f.want == os.ErrDeadlineExceeded {
		// It goes on where it was.
		if err := c.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
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
			t.Fatal(r.err)
		}
	}
	err = sockettest.Receive(t, "the end at the peer", got)
	switch {
	case errors.Is(err, errNotTheText):
		t.Fatal(err)
	case f.do == nil:
		if read.offset > r.n {
			t.Fatalf("%d bytes were read, %d written", read.offset, r.n)
		}
	case err != nil && !errors.Is(err, syscall.ECONNRESET):
		t.Fatal(err)
	case read.offset != r.n:
		t.Fatalf("%d bytes were read, and the count is %d", read.offset, r.n)
	}
}

// readers are the ways to read the text, on and on.
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
			for _, f := range files {
				f.Close()
			}
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

// writeTo is c.WriteTo, and io.EOF at the end of c, which is no error there.
func writeTo(to io.Writer, c *unixsock.Conn) error {
	if _, err := c.WriteTo(to); err != nil {
		return err
	}
	return io.EOF
}

// TestInterruptedReadLosesNothing ends, at some moment, what reads from a peer
// that writes now and then. The error says what did; and after a deadline, the
// rest is read.
func TestInterruptedReadLosesNothing(t *testing.T) {
	for name, read := range readers {
		for _, f := range faults {
			t.Run(name+"/"+f.name, func(t *testing.T) {
				for range sockettest.Times(4) {
					endRead(t, read, f)
				}
			})
		}
	}
}

func endRead(t *testing.T, read func(*unixsock.Conn, *textChecker) error, f fault) {
	c, peer, err := unixsock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer peer.Close()
	var s text
	stop := make(chan struct{})
	type result struct {
		n   int64
		err error
	}
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
	time.Sleep(rand.N(2 * time.Millisecond))
	if f.do != nil {
		f.do(c, sockettest.ReadHalf)
	} else {
		peer.Close()
	}
	err = sockettest.Receive(t, "the end of a read", ended)
	switch {
	case errors.Is(err, errNotTheText):
		t.Fatal(err)
	case f.want != nil && !errors.Is(err, f.want):
		t.Fatalf("ended with %v, want %v", err, f.want)
	case f.want == nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET):
		t.Fatalf("ended with %v, and the peer is gone", err)
	}
	close(stop)
	if f.want == os.ErrDeadlineExceeded {
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := read(c, to); !errors.Is(err, io.EOF) {
			t.Fatalf("the rest ended with %v", err)
		}
	}
	w := sockettest.Receive(t, "the end of the peer", wrote)
	switch {
	case f.want == os.ErrDeadlineExceeded && (w.err != nil || to.offset != w.n):
		t.Fatalf("%d bytes were read of %d, %v", to.offset, w.n, w.err)
	case to.offset > w.n:
		t.Fatalf("%d bytes were read of %d", to.offset, w.n)
	case w.err != nil && !isEnd(w.err):
		t.Fatal(w.err)
	}
}

// TestConnectCancelledAsRoomComesIsAllOrNothing ends a Connect that waits
// at about the moment when there is room: it has connected, or no connection arrives.
func TestConnectCancelledAsRoomComesIsAllOrNothing(t *testing.T) {
	l := sockettest.FullListener(t)
	sockettest.Accept(t, l).Close()
	connected, cancelled := 0, 0
	for range sockettest.Times(200) {
		if c, err := unixsock.Connect(l.Addr().String()); err != nil {
			t.Fatal(err)
		} else {
			defer c.Close()
		}
		ctx, cancel := context.WithCancel(t.Context())
		result := sockettest.Connecting(t, ctx, l.Addr().String())
		time.AfterFunc(rand.N(300*time.Microsecond), cancel)
		sockettest.Accept(t, l).Close()
		d := sockettest.Receive(t, "a Connect", result)
		cancel()
		if sockettest.Pending(t, l) != (d.Err == nil) {
			t.Fatalf("the Connect returned %v, and a connection is pending: %v", d.Err, sockettest.Pending(t, l))
		}
		if d.Err == nil {
			connected++
			sockettest.Accept(t, l).Close()
			d.Conn.Close()
		} else if cancelled++; !errors.Is(d.Err, context.Canceled) {
			t.Fatal(d.Err)
		}
	}
	t.Logf("%d connected, %d did not", connected, cancelled)
}

// TestRunningOutOfDescriptorsLosesNoConnection lets the descriptors run out, and come
// back, while clients wait: the listener and its events tell of it, burn nothing,
// and go on, and each client is served.
func TestRunningOutOfDescriptorsLosesNoConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("the kernel drops the connection that accept(2) has no descriptor for")
	}
	l := sockettest.Listen(t, unixsock.Backlog(64))
	ready := l.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for round := range 10 {
		clients := make([]*unixsock.Conn, 8)
		for i := range clients {
			clients[i] = sockettest.Connect(t, l.Addr().String())
			if _, err := clients[i].Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		free := sockettest.ExhaustDescriptors(t)
		if !showsReady(l.Ready()) || sockettest.Receive(t, "readiness", ready) != l {
			t.Fatal("not ready, and eight wait")
		}
		seen := make(map[byte]int)
		var served []*unixsock.Conn
		serve := func(c *unixsock.Conn) {
			t.Helper()
			var id [1]byte
			if _, err := io.ReadFull(c, id[:]); err != nil {
				t.Fatal(err)
			}
			seen[id[0]]++
			served = append(served, c)
		}
		c, err := l.AcceptContext(ctx)
		if err == nil {
			serve(c) // that one was accepted ahead
			_, err = l.AcceptContext(ctx)
		}
		if !errors.Is(err, syscall.EMFILE) {
			t.Fatalf("AcceptContext: %v, want EMFILE", err)
		}
		for range 3 {
			if a := sockettest.Receive(t, "an event", l.AcceptEvt(ctx)); !errors.Is(a.Err, syscall.EMFILE) {
				t.Fatalf("an event gave %v, %v; want EMFILE", a.Conn, a.Err)
			}
		}
		if _, err := unixsock.Connect(l.Addr().String()); !errors.Is(err, syscall.EMFILE) {
			t.Fatalf("Connect: %v, want EMFILE", err)
		}
		if round == 0 {
			used := sockettest.ProcessorTime(t)
			time.Sleep(200 * time.Millisecond)
			if used = sockettest.ProcessorTime(t) - used; used > 50*time.Millisecond {
				t.Errorf("%v of a processor in 200ms that nothing is done in", used)
			}
		}
		free()
		for len(seen) < len(clients) {
			switch len(seen) % 3 {
			case 0:
				serve(sockettest.Accept(t, l))
			case 1:
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				serve(c.(*unixsock.Conn))
			case 2:
				a := sockettest.Receive(t, "an event", l.AcceptEvt(ctx))
				if errors.Is(a.Err, syscall.EMFILE) {
					continue // the one that was on offer already
				}
				if a.Err != nil {
					t.Fatal(a.Err)
				}
				serve(a.Conn)
			}
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("client %d was served %d times", id, n)
			}
		}
		for _, c := range append(clients, served...) {
			c.Close()
		}
		if showsReady(l.Ready()) {
			t.Fatal("ready without a pending connection, want not ready")
		}
	}
}

// TestListenerOutlivesItsFile removes the socket file, and puts another in its
// place: earlier clients are served, and later ones go to the other.
func TestListenerOutlivesItsFile(t *testing.T) {
	l := sockettest.Listen(t, unixsock.UnlinkOnClose())
	path := l.Addr().String()
	sockettest.Connect(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Connect where no file is: %v", err)
	}
	if !showsReady(l.Ready()) {
		t.Error("not ready with a pending connection, want ready")
	}
	other := sockettest.ListenAt(t, path)
	sockettest.Exchange(t, path, other)
	sockettest.Accept(t, l)
	if showsReady(l.Ready()) {
		t.Error("ready without a pending connection, want not ready")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	sockettest.Exchange(t, path, other)
}

// TestWaitingConnectUsesTheFileThatIsThereThen replaces the listener that is
// waited for.
func TestWaitingConnectUsesTheFileThatIsThereThen(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	result := sockettest.Connecting(t, t.Context(), path)
	spare := sockettest.ListenAt(t, path+"2")
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	if d := sockettest.Receive(t, "a Connect", result); d.Err != nil {
		t.Fatal(d.Err)
	}
	sockettest.Accept(t, spare)
}

// TestDirectoryWithoutPermissionIsErrPermission takes the rights to a folder away.
func TestDirectoryWithoutPermissionIsErrPermission(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Skip(err)
		}
		// The last of this: the directory is removed by its owner.
		if err := syscall.Setuid(65534); err != nil {
			t.Skip(err)
		}
	}
	path := filepath.Join(dir, "s")
	l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
	sockettest.Connect(t, path)
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Connect":                  second(unixsock.Connect(path)),
		"Listen":                   second(unixsock.Listen(path)),
		"Listen elsewhere":         second(unixsock.Listen(path + "2")),
		"Listen with ReplaceStale": second(unixsock.Listen(path+"2", unixsock.ReplaceStale(), unixsock.Mode(0o600))),
	} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v, want ErrPermission", what, err)
		}
	}
	sockettest.Accept(t, l)
	// It may be listed and passed through, but not changed.
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	sockettest.Connect(t, path)
	sockettest.Accept(t, l)
	if err := l.Close(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Close that cannot remove the file: %v, want ErrPermission", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if _, err := unixsock.Connect(path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Connect to a listener that could not remove its file: %v", err)
	}
	if _, err := unixsock.Listen(path, unixsock.ReplaceStale()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Listen that cannot remove a stale file: %v, want ErrPermission", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sockettest.Exchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
}

func second[T any](_ T, err error) error { return err }

// maxFiles is the limit of WriteFiles.
const maxFiles = 253

// TestReadFilesTakesEachDescriptorOnce sends bytes and descriptors as it comes,
// and reads them with as little or as much room as it comes. The bytes are all
// there, the descriptors that came are as many as may have, and none is left.
func TestReadFilesTakesEachDescriptorOnce(t *testing.T) {
	byChance(t, 20, func(t *testing.T, r *rand.Rand) {
		before := sockettest.CountDescriptors(t)
		c, peer, err := unixsock.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer peer.Close()
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
				t.Fatal(n, err)
			}
			sent += k
			for r.IntN(3) > 0 && to.offset < from.offset {
				most := r.IntN(6)
				b := make([]byte, 1+r.IntN(500))
				n, files, err := c.ReadFiles(b, most)
				if _, wrong := to.Write(b[:n]); wrong != nil {
					t.Fatal(wrong)
				}
				switch {
				case err == nil && len(files) <= most:
					got += len(files)
				case err != nil && len(files) == 0 && strings.Contains(err.Error(), "descriptors"):
					refused++
				default:
					t.Fatalf("%d files where %d may be, %v", len(files), most, err)
				}
				for _, f := range files {
					if _, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil {
						t.Fatal(err)
					}
					f.Close()
				}
			}
		}
		peer.Close()
		for to.offset < from.offset {
			n, files, err := c.ReadFiles(make([]byte, 1000), maxFiles)
			if err != nil {
				t.Fatal(err)
			}
			to.offset += int64(n)
			got += len(files)
			for _, f := range files {
				f.Close()
			}
		}
		if _, files, err := c.ReadFiles(make([]byte, 1), 1); err != io.EOF || len(files) > 0 {
			t.Errorf("at the end: %v, %v", files, err)
		}
		if got > sent || got+refused*5 < sent {
			t.Errorf("%d descriptors came of %d, and %d times there were too many", got, sent, refused)
		}
		c.Close()
		sockettest.WaitDescriptors(t, before)
	})
}
