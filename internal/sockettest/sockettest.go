//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

// Package sockettest provides the helpers that the tests of this module share:
// sockets in short directories, waits with a time limit, child processes, and
// checks for leaks. Only tests import it.
//
// A helper that takes a testing.TB ends the test if it cannot do its work. What
// it opens is closed at the end of the test.
package sockettest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// ShortDir returns a new directory that is removed at the end of the test. Its
// path is short enough for socket files, which that of t.TempDir may not be.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	Check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Got holds what a call returned: sockettest.Got(unixsock.Connect(path)).Must(t).
func Got[T any](v T, err error) Result[T] { return Result[T]{v, err} }

// A Result is a value and an error.
type Result[T any] struct {
	v   T
	err error
}

// Must returns the value. It ends the test if the call failed. A value that has a Close is
// closed at the end of the test.
func (r Result[T]) Must(t testing.TB) T {
	t.Helper()
	Check(t, r.err)
	if c, ok := any(r.v).(io.Closer); ok {
		t.Cleanup(func() { c.Close() })
	}
	return r.v
}

// Check ends the test if a call failed.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got the error %v, want nil", err)
	}
}

// Send writes data to w.
func Send(t testing.TB, w io.Writer, data string) {
	t.Helper()
	if n, err := io.WriteString(w, data); n != len(data) || err != nil {
		t.Fatalf("Write of %d bytes: got %d, %v; want %[1]d, nil", len(data), n, err)
	}
}

// Expect reads as many bytes from r as want has. It ends the test if they differ.
func Expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("ReadFull of %d bytes: got %d, %v and %.100q, want %.100q", len(want), n, err, b[:n], want)
	}
}

// ExpectEOF reads r to its end. It ends the test unless r yields exactly want.
func ExpectEOF(t testing.TB, r io.Reader, want string) {
	t.Helper()
	if b, err := io.ReadAll(r); string(b) != want || err != nil {
		t.Fatalf("ReadAll: got %d bytes, %v and %.100q; want %d bytes, nil and %.100q", len(b), err, b, len(want), want)
	}
}

// ExpectError fails the test unless errors.Is finds want in err.
func ExpectError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got the error %v, want %v", what, err, want)
	}
}

// Control calls f with the descriptor of c.
func Control(t testing.TB, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	Check(t, err)
	Check(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

// IsSocketFile reports whether path is a socket file, and not a link to one.
func IsSocketFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// Listen listens at a new path.
func Listen(t testing.TB, opts ...unixsock.ListenOption) *unixsock.Listener {
	t.Helper()
	return ListenAt(t, filepath.Join(ShortDir(t), "s"), opts...)
}

// ListenAt listens at path.
func ListenAt(t testing.TB, path string, opts ...unixsock.ListenOption) *unixsock.Listener {
	t.Helper()
	return Got(unixsock.Listen(path, opts...)).Must(t)
}

// Connect connects to path.
func Connect(t testing.TB, path string) *unixsock.Conn {
	t.Helper()
	return Got(unixsock.Connect(path)).Must(t)
}

// Accept accepts a connection from l.
func Accept(t testing.TB, l *unixsock.Listener) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	return Got(l.AcceptContext(ctx)).Must(t)
}

// Pair returns the two ends of a connection made by Connect and Accept.
func Pair(t testing.TB) (client, server *unixsock.Conn) {
	t.Helper()
	l := Listen(t)
	client = Connect(t, l.Addr().String())
	server = Accept(t, l)
	Check(t, l.Close())
	return client, server
}

// CheckExchange fails the test unless a connection to path arrives at l.
//
// On a kernel where ReplaceStale has to connect to find out whether a listener is alive,
// CheckExchange first closes pending connections, which probably come from ReplaceStale.
func CheckExchange(t testing.TB, path string, l *unixsock.Listener) {
	t.Helper()
	if !DistinguishesBoundFromDead(t) {
		for Pending(t, l) {
			Accept(t, l).Close()
		}
	}
	c := Connect(t, path)
	defer c.Close()
	s := Accept(t, l)
	defer s.Close()
	Send(t, c, "!")
	Expect(t, s, "!")
}

// WaitClosing waits until a Close of l, in another goroutine, has begun.
func WaitClosing(t testing.TB, l *unixsock.Listener) {
	t.Helper()
	WaitFor(t, "Close has not begun", func() bool {
		return errors.Is(l.SetDeadline(time.Time{}), net.ErrClosed)
	})
}

// A Half is the input or the output of a Conn, or both.
type Half uint

const (
	ReadHalf Half = 1 << iota
	WriteHalf
	BothHalves = ReadHalf | WriteHalf
)

// Close closes that half of c.
func (h Half) Close(c *unixsock.Conn) error {
	return map[Half]func() error{ReadHalf: c.CloseRead, WriteHalf: c.CloseWrite, BothHalves: c.Close}[h]()
}

// SetDeadline sets the deadline of that half of c.
func (h Half) SetDeadline(c *unixsock.Conn, t time.Time) error {
	return map[Half]func(time.Time) error{
		ReadHalf: c.SetReadDeadline, WriteHalf: c.SetWriteDeadline, BothHalves: c.SetDeadline,
	}[h](t)
}
