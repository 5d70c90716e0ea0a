// Package conformance tests unixsock with other modules: golang.org/x/net's
// nettest, which checks what every net.Conn must do, and crypto/tls, net/rpc,
// gRPC and HTTP/2, combined as users combine them. It is a separate module, so
// that users of unixsock do not download its dependencies.
package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/go-unixsock/unixsock"
)

func TestMain(m *testing.M) {
	if !unixsock.Available {
		fmt.Println("no unix domain sockets on", runtime.GOOS)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// socketPath returns a path for a socket, in a directory whose own name is
// short, as socket paths must be.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// longestPath returns the longest path that a socket can have.
func longestPath(t testing.TB) string {
	t.Helper()
	path := socketPath(t)
	if len(path) > unixsock.MaxPathLen {
		t.Skipf("the path %s of the temporary directory is too long", path)
	}
	return path + strings.Repeat("s", unixsock.MaxPathLen-len(path))
}

// plainName returns an abstract name that no other test has, or skips the test
// where there are none.
func plainName(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skipf("no abstract names on %s", runtime.GOOS)
	}
	return unixsock.Abstract(fmt.Sprintf("conformance.%x", rand.Uint64()))
}

// abstractName is plainName with NULs inside and at the end.
func abstractName(t testing.TB) string {
	t.Helper()
	return plainName(t) + "\x00a\x00"
}

// noise returns n bytes in which every value occurs.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{'u', 's'}).Read(b)
	return b
}

// listen listens until the end of the test.
func listen(t testing.TB, path string, opts ...unixsock.ListenOption) *unixsock.Listener {
	t.Helper()
	l, err := unixsock.Listen(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A network is a way to get a listener and what connects to it.
type network struct {
	listener    net.Listener
	dialContext func(ctx context.Context) (net.Conn, error)
}

func (n network) dial() (net.Conn, error) { return n.dialContext(context.Background()) }

// eachNetwork runs a test over a path, an abstract name, and a TCPUnit.
func eachNetwork(t *testing.T, test func(t *testing.T, n network)) {
	over := func(path string) func(t *testing.T) network {
		return func(t *testing.T) network {
			if path == "" {
				path = abstractName(t)
			}
			return network{
				listener:    listen(t, path),
				dialContext: func(ctx context.Context) (net.Conn, error) { return unixsock.ConnectContext(ctx, path) },
			}
		}
	}
	run := func(name string, make func(t *testing.T) network) {
		t.Run(name, func(t *testing.T) { test(t, make(t)) })
	}
	run("path", over(socketPath(t)))
	run("abstract", over(""))
	run("TCPUnit", func(t *testing.T) network {
		unit := unixsock.NewTCPUnit(socketPath(t))
		l, err := unit.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return network{l, func(ctx context.Context) (net.Conn, error) { return unit.DialContext(ctx, "tcp", "localhost:1") }}
	})
}
