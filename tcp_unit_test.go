//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// newUnit returns a TCPUnit at a new path, and its listener.
func newUnit(t testing.TB, opts ...unixsock.ListenOption) (*unixsock.TCPUnit, net.Listener) {
	t.Helper()
	unit := unixsock.NewTCPUnit(filepath.Join(sockettest.ShortDir(t), "s"), opts...)
	return unit, sockettest.Got(unit.Listen("tcp", "127.0.0.1:8080")).Must(t)
}

// unitPair returns the two ends of a connection over a TCPUnit.
func unitPair(t testing.TB) (client, server stream) {
	t.Helper()
	unit, l := newUnit(t)
	dialed, accepted := sockettest.Got(unit.Dial("tcp", "example.com:443")).Must(t), sockettest.Got(l.Accept()).Must(t)
	for _, c := range []net.Conn{dialed, accepted} {
		if inner, ok := c.(interface{ NetConn() net.Conn }).NetConn().(*unixsock.Conn); !ok || inner.RemoteAddr().Network() != "unix" {
			t.Errorf("NetConn of a TCPUnit's connection: got %#v, want a *Conn with unix addresses", inner)
		}
	}
	return dialed.(stream), accepted.(stream)
}

func TestTCPUnitsDefaultBacklogIs511(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	if limit, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil && len(strings.TrimSpace(string(limit))) < 4 {
		t.Skipf("the system limits backlogs to %s", limit)
	}
	for want, opts := range map[int][]unixsock.ListenOption{511: nil, 2: {unixsock.Backlog(2)}} {
		path := filepath.Join(sockettest.ShortDir(t), "s")
		sockettest.Got(unixsock.NewTCPUnit(path, opts...).Listen("tcp", "")).Must(t)
		for n := 0; ; n++ { // Linux queues one more than the backlog
			fd, err := sockettest.TryConnect(path)
			if err != nil {
				if err != unix.EAGAIN || n != want+1 {
					t.Errorf("connect(2) to a backlog of %d: got %v after %d connections, want EAGAIN after %d", want, err, n, want+1)
				}
				break
			}
			defer unix.Close(fd)
		}
	}
}

func TestTCPUnitsErrorsAreThoseOfListenAndConnect(t *testing.T) {
	fails := func(want error) func(v any, err error) {
		return func(v any, err error) {
			t.Helper()
			if v != nil || !errors.Is(err, want) {
				t.Errorf("call that fails: got %v, %v; want nil, %v", v, err, want)
			}
		}
	}
	absent := unixsock.NewTCPUnit(filepath.Join(sockettest.ShortDir(t), "absent", "s"))
	fails(fs.ErrNotExist)(absent.Dial("tcp", ""))
	fails(fs.ErrNotExist)(absent.Listen("tcp", ""))
	unit, l := newUnit(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fails(context.Canceled)(unit.DialContext(ctx, "tcp", ""))
	fails(syscall.EADDRINUSE)(unit.Listen("tcp", ""))
	l.Close()
	fails(net.ErrClosed)(l.Accept())
}
