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
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// ShortDir returns a new directory that is removed at the end of the test. Its
// path is short enough for socket files, which that of t.TempDir may not be.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatalf("MkdirTemp: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
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
	l, err := unixsock.Listen(path, opts...)
	if err != nil {
		t.Fatalf("Listen at %s: %v", path, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Connect connects to path.
func Connect(t testing.TB, path string) *unixsock.Conn {
	t.Helper()
	c, err := unixsock.Connect(path)
	if err != nil {
		t.Fatalf("Connect to %s: %v", path, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Accept accepts a connection from l.
func Accept(t testing.TB, l *unixsock.Listener) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Timeout)
	defer cancel()
	c, err := l.AcceptContext(ctx)
	if err != nil {
		t.Fatalf("AcceptContext within %v: %v", Timeout, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Pair returns the two ends of a connection made by Connect and Accept.
func Pair(t testing.TB) (client, server *unixsock.Conn) {
	t.Helper()
	l := Listen(t)
	client = Connect(t, l.Addr().String())
	server = Accept(t, l)
	if err := l.Close(); err != nil {
		t.Fatalf("Close of the listener: %v", err)
	}
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
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatalf("Write of 1 byte: %v", err)
	}
	if n, err := s.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("Read of 1 byte that was sent: got %d, %v; want 1, nil", n, err)
	}
}

// IsClosed reports whether the descriptor of c is closed.
func IsClosed(t testing.TB, c *unixsock.Conn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	err = raw.Control(func(uintptr) {})
	if err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatalf("RawConn.Control: got %v, want nil or ErrClosed", err)
	}
	return err != nil
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
	switch h {
	case ReadHalf:
		return c.CloseRead()
	case WriteHalf:
		return c.CloseWrite()
	}
	return c.Close()
}

// SetDeadline sets the deadline of that half of c.
func (h Half) SetDeadline(c *unixsock.Conn, t time.Time) error {
	switch h {
	case ReadHalf:
		return c.SetReadDeadline(t)
	case WriteHalf:
		return c.SetWriteDeadline(t)
	}
	return c.SetDeadline(t)
}
