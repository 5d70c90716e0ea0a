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
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// textAt returns the byte at an offset of the text, an endless sequence of bytes that both
// ends of a connection know. It is a hash, so that a textChecker notices bytes that are lost,
// repeated or out of place.
func textAt(offset int64) byte {
	x := uint64(offset)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return byte(x ^ x>>31)
}

// A textReader reads the text from offset on.
type textReader struct {
	offset int64
	gate   func() bool // called before each Read; true makes it return EOF; may be nil
}

func (r *textReader) Read(b []byte) (int, error) {
	if r.gate != nil && r.gate() {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = textAt(r.offset + int64(i))
	}
	r.offset += int64(len(b))
	return len(b), nil
}

// A textChecker is a writer whose Write returns an error unless the bytes are the next ones
// of the text.
type textChecker struct {
	offset int64
	gate   func() bool // called before each Write; may be nil
}

var errNotTheText = errors.New("bytes differ from those written")

func (w *textChecker) Write(b []byte) (int, error) {
	want := make([]byte, len(b))
	(&textReader{offset: w.offset}).Read(want)
	if !bytes.Equal(b, want) {
		return 0, fmt.Errorf("%w: %d bytes at offset %d", errNotTheText, len(b), w.offset)
	}
	if w.gate != nil {
		w.gate()
	}
	w.offset += int64(len(b))
	return len(b), nil
}

// isGone reports whether err is the error of a write to a closed peer.
func isGone(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.ENOTCONN) // of FreeBSD, if the peer closes just now
}

// isEnd reports whether err is one of the errors that may end a conversation: EOF, that of
// a closed peer, an expired deadline or a closed connection.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || isGone(err) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// pair returns the ends of a connection made by unixsock.Pair.
func pair(t *testing.T) (c, peer *unixsock.Conn) {
	c, peer, err := unixsock.Pair()
	sockettest.Check(t, err)
	t.Cleanup(func() { c.Close(); peer.Close() })
	return c, peer
}

// ioFunc is a Read or a Write.
type ioFunc func([]byte) (int, error)

func (f ioFunc) Read(b []byte) (int, error)  { return f(b) }
func (f ioFunc) Write(b []byte) (int, error) { return f(b) }

// transfer copies with Reads and Writes of a random size. It returns how many bytes the
// Writes return.
func transfer(to, from ioFunc) (int64, error) {
	b := make([]byte, 1000+rand.IntN(1000<<rand.IntN(11)))
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, b)
}

type (
	writeFunc func(c *unixsock.Conn, from io.Reader) (int64, error)
	readFunc  func(c *unixsock.Conn, to io.Writer) (int64, error)
)

// writers are the ways to write until a call fails or from ends. They return the number of
// bytes written.
var writers = map[string]writeFunc{
	"Write": func(c *unixsock.Conn, from io.Reader) (int64, error) { return transfer(c.Write, from.Read) },
	"WriteFiles": func(c *unixsock.Conn, from io.Reader) (int64, error) {
		return transfer(func(b []byte) (int, error) { return c.WriteFiles(b, os.Stdin) }, from.Read)
	},
	"ReadFrom": func(c *unixsock.Conn, from io.Reader) (int64, error) { return c.ReadFrom(from) },
}

// readers are the ways to read until a call fails or the input ends.
var readers = map[string]readFunc{
	"Read": func(c *unixsock.Conn, to io.Writer) (int64, error) { return transfer(to.Write, c.Read) },
	"ReadFiles": func(c *unixsock.Conn, to io.Writer) (int64, error) {
		return transfer(to.Write, func(b []byte) (int, error) {
			n, files, err := c.ReadFiles(b, 1)
			closeAll(files)
			return n, err
		})
	},
	"WriteTo": func(c *unixsock.Conn, to io.Writer) (int64, error) { return c.WriteTo(to) },
}

// anyOf returns one of the ways, at random.
func anyOf[W any](ways map[string]W) (way W) {
	for _, way = range ways {
		break
	}
	return way
}

// converse writes and reads until both directions have ended, because the peer is gone, and
// calls begun once it has read something. It returns an error that has ended a direction for
// another reason.
func converse(c *unixsock.Conn, begun func() bool) error {
	defer c.Close()
	var wg sync.WaitGroup
	var writeErr, readErr error
	wg.Go(func() { _, writeErr = anyOf(writers)(c, &textReader{}) })
	_, readErr = anyOf(readers)(c, &textChecker{gate: sync.OnceValue(begun)})
	c.CloseWrite()
	wg.Wait()
	if isGone(readErr) {
		readErr = nil
	}
	if isEnd(writeErr) {
		writeErr = nil
	}
	return errors.Join(readErr, writeErr)
}

// conversations is the number of connections to a process that is killed.
const conversations = 8

// TestKilledPeersEndTheConversation kills processes during conversations. The bytes read are
// a prefix of those written, and the conversation ends with EOF or with the error of a peer
// that is gone.
func TestKilledPeersEndTheConversation(t *testing.T) {
	checkLeaks(t)
	for round := range sockettest.Times(8) {
		l := sockettest.Listen(t, unixsock.Backlog(conversations))
		peer := sockettest.StartHelper(t, nil, "converse", l.Addr().String())
		begun, running := make(chan struct{}, conversations), sync.WaitGroup{}
		for range conversations {
			running.Go(func() {
				c, err := l.AcceptContext(t.Context())
				if err == nil {
					err = converse(c, func() bool { begun <- struct{}{}; return true })
				}
				if err != nil && !errors.Is(err, net.ErrClosed) {
					t.Errorf("conversation with a killed peer: got %v, want EOF or the error of a closed peer", err)
				}
			})
		}
		peer.Expect("ready")
		if round%2 == 0 {
			sockettest.Receive(t, "a conversation to begin", begun)
		}
		time.Sleep(rand.N(8 * time.Millisecond)) // the kill comes at a random point
		peer.Cmd.Process.Kill()
		for line := range peer.Lines {
			t.Errorf("output of a killed peer: got %q, want none", line)
		}
		peer.Kill()
		sockettest.Check(t, l.Close()) // ends the accepts for which there is no client
		sockettest.CheckReturns(t, "the end of the conversations", running.Wait)
	}
}

// converseUntilKilled runs in the process that the test kills.
func converseUntilKilled(args []string) error {
	fmt.Println("ready")
	ended := make(chan error)
	for range conversations {
		go func() {
			c, err := unixsock.Connect(args[0])
			if err == nil {
				err = converse(c, func() bool { return true })
			}
			ended <- err
		}()
	}
	return fmt.Errorf("conversation ended before the kill: %v", <-ended)
}

// A fault is an event that ends a blocked read or write.
type fault struct {
	name string
	do   func(c, peer *unixsock.Conn, h sockettest.Half) // h is the half of c that a call uses
	want error                                           // nil: that of a closed peer
}

var faults = []fault{
	{"deadline in the future", func(c, _ *unixsock.Conn, h sockettest.Half) {
		h.SetDeadline(c, time.Now().Add(rand.N(time.Millisecond)))
	}, os.ErrDeadlineExceeded},
	{"close of the half", func(c, _ *unixsock.Conn, h sockettest.Half) { h.Close(c) }, net.ErrClosed},
	{"close", func(c, _ *unixsock.Conn, _ sockettest.Half) { c.Close() }, net.ErrClosed},
	{"close of the other half, then of this one", func(c, _ *unixsock.Conn, h sockettest.Half) {
		(sockettest.BothHalves &^ h).Close(c)
		h.Close(c)
	}, net.ErrClosed},
	{"the peer's close", func(_, peer *unixsock.Conn, _ sockettest.Half) { peer.Close() }, nil},
}

// A result holds the values that a copy returned.
type result struct {
	n   int64
	err error
}

// start calls f in a goroutine and returns the channel of its result.
func start(f func() (int64, error)) <-chan result {
	ch := make(chan result, 1)
	go func() {
		n, err := f()
		ch <- result{n, err}
	}()
	return ch
}

// TestInterruptedWriteReturnsAnExactCount interrupts writes to a peer that reads a little and
// then waits. A write returns the number of bytes that the peer receives. After a deadline,
// the next write continues where it ended.
func TestInterruptedWriteReturnsAnExactCount(t *testing.T) {
	for name, write := range writers {
		interrupt(t, name, sockettest.WriteHalf, write, readers["ReadFiles"])
	}
}

// TestInterruptedReadLosesNothing interrupts reads from a peer that writes with pauses. After
// a deadline, later reads return the rest.
func TestInterruptedReadLosesNothing(t *testing.T) {
	for name, read := range readers {
		interrupt(t, name, sockettest.ReadHalf, writers["WriteFiles"], read)
	}
}

// interrupt causes each fault at a random moment of a write or read, which uses h.
func interrupt(t *testing.T, name string, h sockettest.Half, write writeFunc, read readFunc) {
	for _, f := range faults {
		t.Run(name+"/"+f.name, func(t *testing.T) {
			for range sockettest.Times(3) {
				f.interrupt(t, h, write, read)
			}
		})
	}
}

func (f fault) interrupt(t *testing.T, h sockettest.Half, write writeFunc, read readFunc) {
	c, peer := pair(t)
	proceed, steps := make(chan struct{}), rand.IntN(20)
	gate := func() bool {
		if steps--; steps < 0 {
			<-proceed
		}
		return steps < 0
	}
	from, to, sender, receiver := &textReader{}, &textChecker{gate: gate}, c, peer
	if h == sockettest.ReadHalf {
		from, to, sender, receiver = &textReader{gate: gate}, &textChecker{}, peer, c
	}
	calls := map[sockettest.Half]<-chan result{
		sockettest.ReadHalf: start(func() (int64, error) { return read(receiver, to) }),
		sockettest.WriteHalf: start(func() (int64, error) {
			n, err := write(sender, from)
			if err == nil {
				err = sender.CloseWrite()
			}
			return n, err
		}),
	}
	time.Sleep(rand.N(2 * time.Millisecond)) // the fault comes at a random point
	f.do(c, peer, h)
	r := sockettest.Receive(t, "the end of an interrupted call", calls[h])
	gone := isGone(r.err) || h == sockettest.ReadHalf && r.err == nil
	if f.want == nil && !gone || f.want != nil && !errors.Is(r.err, f.want) {
		t.Fatalf("interrupted call: got %v, want %v (nil: the error of a closed peer)", r.err, f.want)
	}
	close(proceed)
	if f.want == net.ErrClosed {
		c.Close() // some kernels do not tell the peer that only the input is closed
	} else if f.want == os.ErrDeadlineExceeded {
		sockettest.Check(t, c.SetDeadline(time.Now().Add(sockettest.Timeout)))
		if h == sockettest.ReadHalf {
			_, err := read(c, to)
			sockettest.Check(t, err)
		} else {
			n, err := io.CopyN(c, &textReader{offset: r.n}, 3000)
			sockettest.Check(t, errors.Join(err, c.CloseWrite()))
			r.n += n
		}
	}
	o := sockettest.Receive(t, "the end of the peer's call", calls[sockettest.BothHalves&^h])
	wrote, lossless := r.n, f.want != nil
	if h == sockettest.ReadHalf {
		wrote, lossless = o.n, f.want == os.ErrDeadlineExceeded
	}
	if lossless && (o.err != nil || to.offset != wrote) || o.err != nil && !isEnd(o.err) || to.offset > wrote {
		t.Fatalf("interrupted call: got %d bytes written and %d read, and %v of the peer's call; want as many, nil", wrote, to.offset, o.err)
	}
}

// TestCanceledConnectLeavesNoConnection cancels a waiting Connect at about the moment when
// the backlog gets room. A connection is pending if and only if Connect returned one.
func TestCanceledConnectLeavesNoConnection(t *testing.T) {
	l := sockettest.FullListener(t)
	sockettest.Accept(t, l).Close()
	for range sockettest.Times(100) {
		sockettest.Connect(t, l.Addr().String())
		ctx, cancel := context.WithCancel(t.Context())
		result := sockettest.Connecting(t, ctx, l.Addr().String())
		time.AfterFunc(rand.N(300*time.Microsecond), cancel)
		sockettest.Accept(t, l).Close()
		d := sockettest.Receive(t, "a canceled ConnectContext", result)
		cancel()
		if pending := sockettest.Pending(t, l); pending != (d.Err == nil) || d.Err != nil && !errors.Is(d.Err, context.Canceled) {
			t.Fatalf("canceled ConnectContext: got %v, with a connection pending %t; want pending or Canceled", d.Err, pending)
		} else if pending {
			sockettest.Accept(t, l).Close()
		}
	}
}

// showsReady polls a Ready channel and reports whether it was ready.
func showsReady(ready <-chan *unixsock.Listener) bool {
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// TestWaitingConnectFollowsAReplacedFile replaces the socket file while a Connect waits,
// which then connects to the new listener.
func TestWaitingConnectFollowsAReplacedFile(t *testing.T) {
	l := sockettest.FullListener(t)
	path := l.Addr().String()
	result := sockettest.Connecting(t, t.Context(), path)
	spare := sockettest.ListenAt(t, path+"2")
	sockettest.Check(t, os.Rename(path+"2", path))
	sockettest.Check(t, sockettest.Receive(t, "ConnectContext after its file was replaced", result).Err)
	sockettest.Accept(t, spare)
}

// TestDirectoryWithoutPermissionIsErrPermission removes the write permission of a directory.
// Listen and Close return ErrPermission, and an open listener stays usable.
func TestDirectoryWithoutPermissionIsErrPermission(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	if os.Getuid() == 0 {
		if err := errors.Join(os.Chown(dir, 65534, 65534), syscall.Setuid(65534)); err != nil {
			t.Skip(err)
		}
	}
	path, other := filepath.Join(dir, "s"), filepath.Join(dir, "other")
	l := sockettest.ListenAt(t, path, unixsock.UnlinkOnClose())
	sockettest.Check(t, os.Chmod(dir, 0o500))
	for i, opts := range [][]unixsock.ListenOption{nil, {unixsock.Mode(0o600)}, {unixsock.ReplaceStale()}} {
		_, err := unixsock.Listen(other, opts...)
		sockettest.ExpectError(t, fmt.Sprint("Listen with options ", i), err, fs.ErrPermission)
	}
	sockettest.CheckExchange(t, path, l)
	sockettest.ExpectError(t, "Close with UnlinkOnClose", l.Close(), fs.ErrPermission)
	sockettest.Check(t, l.Close())
	_, err := unixsock.Listen(path, unixsock.ReplaceStale())
	sockettest.ExpectError(t, "Listen with ReplaceStale at a stale file", err, fs.ErrPermission)
	sockettest.Check(t, os.Chmod(dir, 0o700))
	sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path, unixsock.ReplaceStale()))
}
