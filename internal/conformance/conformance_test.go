// Package conformance tests unixsock with other modules: golang.org/x/net's nettest, which
// checks what every net.Conn must do; crypto/tls, net/rpc, gRPC, ttrpc, HTTP/2, websockets,
// tableflip and systemd's activation, combined as users combine them; and go-fuse, which
// makes file systems that a server may meet. It is a separate module, so that users of
// unixsock do not download its dependencies.
package conformance

import (
	"bytes"
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
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// roleVar is the environment variable that makes this program a process of a test: it holds
// a key of roles.
const roleVar = "CONFORMANCE_ROLE"

// roles holds the functions of the processes that tests start.
var roles = map[string]func(args []string) error{}

// socketPath returns a path for a socket in a new directory. The path is short enough for
// a socket file, which that of t.TempDir may not be.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatalf("MkdirTemp: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// longestPath returns a path of MaxPathLen bytes.
func longestPath(t testing.TB) string {
	t.Helper()
	path := socketPath(t)
	if len(path) > unixsock.MaxPathLen {
		t.Skipf("path in the temporary directory: %d bytes, limit %d: %s", len(path), unixsock.MaxPathLen, path)
	}
	return path + strings.Repeat("s", unixsock.MaxPathLen-len(path))
}

// plainName returns a new abstract name without NUL inside. It skips the test on systems
// without abstract names.
func plainName(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skipf("%s has no abstract names", runtime.GOOS)
	}
	return unixsock.Abstract(fmt.Sprintf("conformance.%x", rand.Uint64()))
}

// abstractName returns a new abstract name with NULs inside and at the end.
func abstractName(t testing.TB) string {
	t.Helper()
	return plainName(t) + "\x00a\x00"
}

// checkEcho fails the test unless got, which came back with err, is what was sent.
func checkEcho(t testing.TB, what string, got, sent []byte, err error) {
	t.Helper()
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s of %d bytes: got %d bytes, equal: %v, %v; want the same bytes", what, len(sent), len(got), bytes.Equal(got, sent), err)
	}
}

// noise returns n pseudorandom bytes, the same ones in every call.
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
		t.Fatalf("Listen at %q: %v", path, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// A network is a listener, and a function that connects to it.
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
			t.Fatalf("TCPUnit.Listen: %v", err)
		}
		t.Cleanup(func() { l.Close() })
		return network{l, func(ctx context.Context) (net.Conn, error) { return unit.DialContext(ctx, "tcp", "localhost:1") }}
	})
}
