//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// dialNet connects with package net from the address local, nil for none.
func dialNet(t *testing.T, name string, local *net.UnixAddr) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", local, &net.UnixAddr{Name: name, Net: "unix"})
	return limit(t, c, err)
}

// listenNet returns a listener whose Accept cannot block the test.
func listenNet(t *testing.T, name string) *net.UnixListener {
	t.Helper()
	l := sockettest.Got(net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})).Must(t)
	sockettest.Check(t, l.SetDeadline(time.Now().Add(timeout)))
	return l
}

// adopt calls by with a duplicate of the descriptor of from, which it closes.
func adopt[T any](t *testing.T, from interface {
	io.Closer
	File() (*os.File, error)
}, by func(*os.File) (T, error)) T {
	t.Helper()
	f := sockettest.Got(from.File()).Must(t)
	adopted := sockettest.Got(by(f)).Must(t)
	sockettest.Check(t, errors.Join(f.Close(), from.Close()))
	return adopted
}

// netPairs connect a Conn and a connection of package net at a name, which begins with @ for
// package net if it is abstract.
var netPairs = map[string]func(t *testing.T, name, netName string) (net.Conn, net.Conn){
	"net dials": func(t *testing.T, name, netName string) (net.Conn, net.Conn) {
		l := sockettest.ListenAt(t, name)
		theirs := dialNet(t, netName, nil)
		return accept(t, l), theirs
	},
	"net listens": func(t *testing.T, name, netName string) (net.Conn, net.Conn) {
		l := listenNet(t, netName)
		ours := connect(t, name)
		return ours, sockettest.Got(l.Accept()).Must(t)
	},
	"net adopts a Conn": func(t *testing.T, _, _ string) (net.Conn, net.Conn) {
		ours, given, err := unixsock.Pair()
		return ours, adopt(t, sockettest.Got(given, err).Must(t), net.FileConn)
	},
	"net adopts a Listener": func(t *testing.T, name, _ string) (net.Conn, net.Conn) {
		l := adopt(t, sockettest.ListenAt(t, name), net.FileListener)
		ours := connect(t, name)
		return ours, sockettest.Got(l.Accept()).Must(t)
	},
	"net's connection is adopted": func(t *testing.T, _, netName string) (net.Conn, net.Conn) {
		l := listenNet(t, netName)
		ours := adopt(t, dialNet(t, netName, nil), unixsock.FileConn)
		return ours, sockettest.Got(l.Accept()).Must(t)
	},
	"net's listener is adopted": func(t *testing.T, name, netName string) (net.Conn, net.Conn) {
		given := listenNet(t, netName)
		given.SetUnlinkOnClose(false)
		l := adopt(t, given, unixsock.FileListener)
		if got := l.Addr().String(); got != name {
			t.Errorf("Addr of an adopted listener: got %q, want %q", got, name)
		}
		theirs := dialNet(t, netName, nil)
		return accept(t, l), theirs
	},
}

func eachNetPair(t *testing.T, name, netName string, test func(t *testing.T, ours, theirs stream)) {
	for how, pair := range netPairs {
		t.Run(how, func(t *testing.T) {
			ours, theirs := pair(t, name, netName)
			os.Remove(name)
			test(t, limit(t, ours, nil).(stream), limit(t, theirs, nil).(stream))
		})
	}
}

func TestNet(t *testing.T) {
	for kind, name := range map[string]string{
		"path":                  socketDir(t) + "/s",
		"longest path of net":   longPath(t, socketDir(t), len(syscall.RawSockaddrUnix{}.Path)-1), // a NUL ends it
		"abstract":              abstract("net"),
		"abstract with NULs":    abstract("\x00net\x00\x00"),
		"longest abstract name": abstract(strings.Repeat("n", unixsock.MaxPathLen))[:unixsock.MaxPathLen],
	} {
		t.Run(kind, func(t *testing.T) {
			netName := name
			if name[0] == 0 {
				linux(t)
				netName = "@" + name[1:]
			}
			eachNetPair(t, name, netName, func(t *testing.T, ours, theirs stream) {
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() { echo(t, theirs) })
				sockettest.Check(t, converse(ours, data))
			})
			l := sockettest.Listen(t)
			dialNet(t, l.Addr().String(), &net.UnixAddr{Name: netName, Net: "unix"})
			if got := accept(t, l).RemoteAddr().String(); got != name {
				t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, name)
			}
		})
	}
}

// TestNetAndHalfCloses closes the halves of one end of a connection with package net.
func TestNetAndHalfCloses(t *testing.T) {
	path := socketDir(t) + "/s"
	for _, net := range []bool{false, true} {
		eachNetPair(t, path, path, func(t *testing.T, closer, other stream) {
			if net {
				closer, other = other, closer
			}
			sockettest.Check(t, closer.CloseWrite())
			sockettest.ExpectEOF(t, other, "")
			sockettest.Send(t, other, "on") // the other half still works
			sockettest.Expect(t, closer, "on")
			sockettest.Check(t, closer.CloseRead())
			if _, err := other.Write([]byte("x")); sockettest.ReportsClosedInput(t) {
				sockettest.ExpectError(t, "Write after the peer's CloseRead", err, syscall.EPIPE)
			}
		})
	}
}

// "@x" is an abstract name for package net, but a file for unixsock.
func TestNetReachesFileCalledAt(t *testing.T) {
	t.Chdir(socketDir(t))
	l := sockettest.ListenAt(t, "@x")
	sockettest.Send(t, dialNet(t, "./@x", nil), "at")
	sockettest.Expect(t, accept(t, l), "at")
}
