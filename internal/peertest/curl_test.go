//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/go-unixsock/unixsock"
)

// web serves handler over a TCPUnit on path until the end of the test.
func web(t *testing.T, path string, handler http.HandlerFunc) {
	t.Helper()
	serve(t, listenUnit(t, path), &http.Server{Handler: handler})
}

// listenUnit returns a listener of a TCPUnit on path.
func listenUnit(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := unixsock.NewTCPUnit(path).Listen("tcp", ":80")
	if err != nil {
		t.Fatalf("TCPUnit.Listen at %s: %v", path, err)
	}
	return l
}

// serve runs server on l until the end of the test.
func serve(t *testing.T, l net.Listener, server *http.Server) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("Serve until the server was closed: got %v, want %v", err, http.ErrServerClosed)
		}
	})
}

func TestCurlDownloads(t *testing.T) {
	program(t, "curl")
	data := noise(1<<20 + 1)
	path := socketDir(t) + "/s"
	web(t, path, func(w http.ResponseWriter, r *http.Request) { w.Write(data) })
	output := finish(t, peer(t, "curl", "-sSf", "--unix-socket", path, "http://any.host/"), nil)
	same(t, output(), data)
}

// net/http sends a file through the connection's ReadFrom.
func TestCurlDownloadsFile(t *testing.T) {
	program(t, "curl")
	data := noise(3<<20 + 1)
	dir := socketDir(t)
	file := dir + "/file"
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
	web(t, dir+"/s", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	output := finish(t, peer(t, "curl", "-sSf", "--unix-socket", dir+"/s", "http://any.host/"), nil)
	same(t, output(), data)
	output = finish(t, peer(t, "curl", "-sSf", "-r", "1000000-1999999", "--unix-socket", dir+"/s", "http://any.host/"), nil)
	same(t, output(), data[1000000:2000000])
}

func TestCurlUploads(t *testing.T) {
	program(t, "curl")
	data := noise(1<<20 + 1)
	path := socketDir(t) + "/s"
	web(t, path, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read the request's body: got %v after %d bytes, want EOF", err, len(body))
		}
		w.Write(body)
	})
	output := finish(t, peer(t, "curl", "-sSf", "--data-binary", "@-", "--unix-socket", path, "http://any.host/"), data)
	same(t, output(), data)
}

func TestCurlConnectsToAbstractName(t *testing.T) {
	linux(t)
	program(t, "curl")
	name := abstract("curl")
	web(t, name, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) })
	output := finish(t, peer(t, "curl", "-sSf", "--abstract-unix-socket", name[1:], "http://any.host/"), nil)
	if got := output(); string(got) != "any.host" {
		t.Errorf("curl requested a page: got %q, want %q", got, "any.host")
	}
}

func TestCurlKeepsItsConnection(t *testing.T) {
	program(t, "curl")
	path := socketDir(t) + "/s"
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	serve(t, listenUnit(t, path), &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.URL.Path)
		}),
		ConnState: func(c net.Conn, _ http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			conns[c] = true
		},
	})
	args := []string{"-sSf", "--unix-socket", path}
	args = append(args, strings.Fields(strings.Repeat(" http://any.host/x", 100))...)
	output := finish(t, peer(t, "curl", args...), nil)
	if got, want := output(), bytes.Repeat([]byte("/x"), 100); !bytes.Equal(got, want) {
		t.Errorf("curl requested a page 100 times: got %q, want %q", got, want)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(conns) != 1 {
		t.Errorf("curl sent 100 requests: got %d connections, want 1", len(conns))
	}
}

// Handlers may split the addresses of a request into host and port.
func TestCurlsAddressSplits(t *testing.T) {
	program(t, "curl")
	path := socketDir(t) + "/s"
	web(t, path, func(w http.ResponseWriter, r *http.Request) {
		host, port, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil || net.ParseIP(host) == nil || port != "0" {
			t.Errorf("split RemoteAddr %q: got host %q, port %q, %v; want an IP address, port 0", r.RemoteAddr, host, port, err)
		}
		if local := r.Context().Value(http.LocalAddrContextKey).(net.Addr); local.String() != "127.0.0.1:1" {
			t.Errorf("local address of a request: got %v, want 127.0.0.1:1", local)
		}
	})
	finish(t, peer(t, "curl", "-sSf", "--unix-socket", path, "http://any.host/"), nil)()
}
