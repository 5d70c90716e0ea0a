//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// unitPair returns the two ends of a connection over a TCPUnit.
func unitPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	unit := unixsock.NewTCPUnit(sockettest.ShortDir(t) + "/s")
	l, err := unit.Listen("tcp", "127.0.0.1:8080")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	client, err = unit.Dial("tcp", "example.com:443")
	if err != nil {
		t.Fatalf("TCPUnit.Dial: %v", err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

func TestTCPUnitServesHTTPAtBothEnds(t *testing.T) {
	unit := unixsock.NewTCPUnit(sockettest.ShortDir(t) + "/s")
	l, err := unit.Listen("tcp", ":80")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, port, err := net.SplitHostPort(r.RemoteAddr)
		if host != "127.0.0.1" || port != "0" || err != nil {
			t.Errorf("RemoteAddr of a request: got %q, split as %q, %q, %v; want 127.0.0.1:0", r.RemoteAddr, host, port, err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("ReadAll of a request's body: got %d bytes, %v; want no error", len(body), err)
		}
		w.Header().Set("Host-Was", r.Host)
		w.Write(body)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()

	transport := &http.Transport{DialContext: unit.DialContext}
	client := &http.Client{Transport: transport}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			body := strings.Repeat("body ", 10000)
			resp, err := client.Post("http://example.com/echo", "text/plain", strings.NewReader(body))
			if err != nil {
				t.Errorf("Post of %d bytes: got %v, want a response", len(body), err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if string(got) != body || err != nil || resp.Header.Get("Host-Was") != "example.com" {
				t.Errorf("Post of %d bytes: got %d bytes, equal %t, %v, from host %q; want the same bytes, nil, from host %q",
					len(body), len(got), string(got) == body, err, resp.Header.Get("Host-Was"), "example.com")
			}
		})
	}
	wg.Wait()
	transport.CloseIdleConnections()
	if err := server.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: got %v, want no error", err)
	}
	if err := sockettest.Receive(t, "the server", served); err != http.ErrServerClosed {
		t.Errorf("Serve until Shutdown: got %v, want %v", err, http.ErrServerClosed)
	}
}

func TestTCPUnitsConnectionsCanBeHijacked(t *testing.T) {
	unit := unixsock.NewTCPUnit(sockettest.ShortDir(t) + "/s")
	l, err := unit.Listen("tcp", ":80")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("Hijack: got %v, want a connection", err)
			return
		}
		defer c.Close()
		io.Copy(c, rw)
		c.(interface{ CloseWrite() error }).CloseWrite()
	})}
	go server.Serve(l)
	defer server.Close()

	c, err := unit.Dial("tcp", "")
	if err != nil {
		t.Fatalf("TCPUnit.Dial: %v", err)
	}
	defer c.Close()
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	if _, err := io.WriteString(c, request+"raw bytes"); err != nil {
		t.Fatalf("Write of the request: %v", err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("CloseWrite after the request: %v", err)
	}
	wantEOF(t, c, "raw bytes")
}

func TestTCPUnitsAddressesLookLikeTCPs(t *testing.T) {
	unit := unixsock.NewTCPUnit(sockettest.ShortDir(t) + "/s")
	l, err := unit.Listen("tcp", "")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	defer l.Close()
	client, server := unitPair(t)
	for what, test := range map[string]struct {
		addr net.Addr
		want string
	}{
		"Addr of the listener":     {l.Addr(), "127.0.0.1:1"},
		"LocalAddr of the client":  {client.LocalAddr(), "127.0.0.1:1"},
		"RemoteAddr of the client": {client.RemoteAddr(), "127.0.0.1:0"},
		"LocalAddr of the server":  {server.LocalAddr(), "127.0.0.1:1"},
		"RemoteAddr of the server": {server.RemoteAddr(), "127.0.0.1:0"},
	} {
		if _, ok := test.addr.(*net.TCPAddr); !ok || test.addr.Network() != "tcp" || test.addr.String() != test.want {
			t.Errorf("%s: got %#v, want the *net.TCPAddr %s", what, test.addr, test.want)
		}
	}
}

func TestTCPUnitsConnectionsKeepTheirMethods(t *testing.T) {
	client, server := unitPair(t)
	for what, c := range map[string]net.Conn{"dialed": client, "accepted": server} {
		full, ok := c.(interface {
			net.Conn
			syscall.Conn
			CloseRead() error
			CloseWrite() error
			NetConn() net.Conn
		})
		if !ok {
			t.Fatalf("methods of the %s connection: got those of %T, want also SyscallConn, CloseRead, CloseWrite and NetConn", what, c)
		}
		inner, ok := full.NetConn().(*unixsock.Conn)
		if !ok || inner.RemoteAddr().Network() != "unix" {
			t.Errorf("NetConn of the %s connection: got %#v, want a *Conn with unix addresses", what, full.NetConn())
		}
		if _, err := full.SyscallConn(); err != nil {
			t.Errorf("SyscallConn of the %s connection: got %v, want no error", what, err)
		}
	}
	if err := client.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("CloseWrite of the dialed connection: got %v, want no error", err)
	}
	wantEOF(t, server, "")
}

func TestTCPUnitsConnectionsReadFromAndWriteTo(t *testing.T) {
	client, server := unitPair(t)
	for what, ends := range map[string][2]net.Conn{"dialed": {client, server}, "accepted": {server, client}} {
		from, ok := ends[0].(io.ReaderFrom)
		if !ok {
			t.Fatalf("methods of the %s connection: got those of %T, want also ReadFrom", what, ends[0])
		}
		if n, err := from.ReadFrom(strings.NewReader("hello")); n != 5 || err != nil {
			t.Fatalf("ReadFrom of the %s connection with 5 bytes: got %d, %v; want 5, nil", what, n, err)
		}
		ends[0].(interface{ CloseWrite() error }).CloseWrite()
		to, ok := ends[1].(io.WriterTo)
		if !ok {
			t.Fatalf("methods of the peer of the %s connection: got those of %T, want also WriteTo", what, ends[1])
		}
		var got strings.Builder
		if n, err := to.WriteTo(&got); n != 5 || err != nil || got.String() != "hello" {
			t.Errorf("WriteTo of the peer of the %s connection: got %d, %v, data %q; want 5, nil, data %q", what, n, err, &got, "hello")
		}
	}
}

func TestTCPUnitsDefaultBacklogIs511(t *testing.T) {
	sockettest.SkipUnlessBacklogsWait(t)
	if limit, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil && len(strings.TrimSpace(string(limit))) < 4 {
		t.Skipf("the system limits backlogs to %s", limit)
	}
	for want, opts := range map[int][]unixsock.ListenOption{511: nil, 2: {unixsock.Backlog(2)}} {
		path := sockettest.ShortDir(t) + "/s"
		unit := unixsock.NewTCPUnit(path, opts...)
		l, err := unit.Listen("tcp", "")
		if err != nil {
			t.Fatalf("TCPUnit.Listen: %v", err)
		}
		defer l.Close()
		// Linux queues one more than the backlog.
		for i := range want + 1 {
			if err := dialNow(t, path); err != nil {
				t.Fatalf("connect(2) %d to a backlog of %d: got %v, want no error", i, want, err)
			}
		}
		if err := dialNow(t, path); err != unix.EAGAIN {
			t.Errorf("connect(2) %d to a backlog of %d: got %v, want EAGAIN", want+1, want, err)
		}
	}
}

// dialNow connects to path without waiting, and returns EAGAIN if the backlog is full.
// The connection is closed at the end of the test.
func dialNow(t testing.TB, path string) error {
	t.Helper()
	fd, err := sockettest.TryConnect(path)
	if err == nil {
		t.Cleanup(func() { unix.Close(fd) })
	}
	return err
}

func TestTCPUnitsErrorsAreThoseOfListenAndConnect(t *testing.T) {
	dir := sockettest.ShortDir(t)
	if c, err := unixsock.NewTCPUnit(dir+"/absent").Dial("tcp", ""); c != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("TCPUnit.Dial without a file: got %v, %v; want nil, ErrNotExist", c, err)
	}
	if l, err := unixsock.NewTCPUnit(dir+"/absent/s").Listen("tcp", ""); l != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("TCPUnit.Listen without a directory: got %v, %v; want nil, ErrNotExist", l, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	unit := unixsock.NewTCPUnit(dir + "/s")
	l, err := unit.Listen("tcp", "")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	defer l.Close()
	if c, err := unit.DialContext(ctx, "tcp", ""); c != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("TCPUnit.DialContext with a canceled context: got %v, %v; want nil, Canceled", c, err)
	}
	if l, err := unit.Listen("tcp", ""); l != nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second TCPUnit.Listen: got %v, %v; want nil, EADDRINUSE", l, err)
	}
	l.Close()
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}
