//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// serverBacklog is the backlog that the documentation recommends for servers.
const serverBacklog = 511

// A backend is an HTTP server behind a proxy. It counts connections and requests.
type backend struct {
	path        string
	conns, reqs atomic.Int64
}

// startBackend serves HTTP on a Listener until the end of the test.
func startBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{path: socketDir(t) + "/s"}
	l := listen(t, b.path, unixsock.Backlog(serverBacklog))
	serve(t, l, &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b.reqs.Add(1)
			io.WriteString(w, "hello\n")
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				b.conns.Add(1)
			}
		},
	})
	return b
}

// A startProxy starts a proxy in front of the socket at path and returns the
// address of the proxy's TCP port. With keepAlive the proxy reuses its connections
// to the socket, otherwise it opens one for each request.
type startProxy func(t *testing.T, path string, keepAlive bool) (addr string)

// nginx starts nginx, which has a main process and two workers. The main process
// stops the workers when it receives SIGTERM. A SIGKILL would leave them behind.
func nginx(t *testing.T, path string, keepAlive bool) string {
	t.Helper()
	dir, addr := socketDir(t), freeAddr(t)
	user, connection, reuse := "", "close", ""
	if os.Geteuid() == 0 {
		// Without this line the workers run as another user, who has no access to dir.
		user = "user root;"
	}
	if keepAlive {
		// An empty Connection header is not sent. The default of HTTP/1.1 is keep-alive.
		connection, reuse = `""`, "keepalive 200;"
	}
	config := fmt.Sprintf(`
		daemon off;
		%s
		pid nginx.pid;
		error_log stderr;
		worker_processes 2;
		events { worker_connections 1024; }
		http {
			access_log off;
			client_body_temp_path body;
			proxy_temp_path proxy;
			fastcgi_temp_path fastcgi;
			uwsgi_temp_path uwsgi;
			scgi_temp_path scgi;
			upstream backend {
				server unix:%s;
				%s
			}
			server {
				listen %s;
				location / {
					proxy_pass http://backend;
					proxy_http_version 1.1;
					proxy_set_header Connection %s;
				}
			}
		}`, user, path, reuse, addr, connection)
	writeFile(t, dir+"/nginx.conf", config)
	cmd := peer(t, "nginx", "-p", dir, "-c", dir+"/nginx.conf", "-e", "stderr")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		t.Fatalf("start nginx: %v", err)
	}
	awaitTCP(t, addr)
	return addr
}

// haproxy starts haproxy, without retries of a connect that fails. haproxy inherits
// a TCP socket that already listens, so the test need not wait until it has started.
func haproxy(t *testing.T, path string, keepAlive bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("net.Listen: %v", err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatalf("File of the TCP listener: %v", err)
	}
	defer f.Close()
	reuse := "option httpclose"
	if keepAlive {
		reuse = "option http-keep-alive\nhttp-reuse always"
	}
	config := fmt.Sprintf(`
global
	maxconn 1000
	nbthread 2
defaults
	mode http
	retries 0
	timeout connect 10s
	timeout client 10s
	timeout server 10s
	%s
frontend front
	bind fd@3
	default_backend backend
backend backend
	server s unix@%s
`, reuse, path)
	file := socketDir(t) + "/haproxy.cfg"
	writeFile(t, file, config)
	cmd := peer(t, "haproxy", "-db", "-f", file)
	cmd.ExtraFiles = []*os.File{f} // descriptor 3 in the child
	if err := cmd.Start(); err != nil {
		t.Fatalf("start haproxy: %v", err)
	}
	return l.Addr().String()
}

// freeAddr returns a free TCP address on loopback. Its port is outside the range
// from which Linux and macOS assign ports to other programs.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000)))
		if err == nil {
			l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("looked for a free TCP port 1000 times: got none, want one")
	return ""
}

// awaitTCP waits until a server listens on addr. It retries a connect, because nothing
// else shows that the server listens.
func awaitTCP(t *testing.T, addr string) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		c, err := net.DialTimeout("tcp", addr, timeout)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("connect to the proxy: got %v, want a connection within %v", err, timeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatalf("WriteFile: %v", err)
	}
}

// ab runs ApacheBench, which sends requests to addr from the given number of concurrent
// clients. It returns the report that ApacheBench prints.
func ab(t *testing.T, addr string, requests, clients int, keepAlive bool) string {
	t.Helper()
	args := []string{"-q", "-n", strconv.Itoa(requests), "-c", strconv.Itoa(clients)}
	if keepAlive {
		args = append(args, "-k")
	}
	return string(finish(t, peer(t, "ab", append(args, "http://"+addr+"/")...), nil)())
}

// abCount returns a counter from the report of ab, or 0 if ab omits it.
func abCount(t *testing.T, report, name string) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)$`).FindStringSubmatch(report)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatalf("read %q in the report of ab: %v", name, err)
	}
	return n
}

// testProxy checks that the backend answers each request that ab sends through a
// proxy. It also checks that the proxy reuses connections to the backend only with
// keep-alive.
func testProxy(t *testing.T, start startProxy) {
	t.Helper()
	program(t, "ab")
	const requests = 2000
	for _, keepAlive := range []bool{false, true} {
		for _, clients := range []int{16, 200} {
			name := fmt.Sprintf("new connections, %d clients", clients)
			if keepAlive {
				name = fmt.Sprintf("keep-alive, %d clients", clients)
			}
			t.Run(name, func(t *testing.T) {
				b := startBackend(t)
				addr := start(t, b.path, keepAlive)
				report := ab(t, addr, requests, clients, keepAlive)
				complete := abCount(t, report, "Complete requests")
				failed := abCount(t, report, "Failed requests")
				errors := abCount(t, report, "Non-2xx responses")
				if complete != requests || failed != 0 || errors != 0 {
					t.Errorf("ab sent %d requests: got %d answers, %d failed, %d not 2xx; want %d answers, 0 failed, 0 not 2xx",
						requests, complete, failed, errors, requests)
				}
				if n := b.reqs.Load(); n != requests {
					t.Errorf("ab sent %d requests: the backend got %d, want %d", requests, n, requests)
				}
				conns := b.conns.Load()
				if !keepAlive && conns != requests {
					t.Errorf("the proxy forwarded %d requests: got %d connections, want %d", requests, conns, requests)
				}
				if keepAlive && conns >= requests {
					t.Errorf("the proxy forwarded %d requests: got %d connections, want fewer", requests, conns)
				}
			})
		}
	}
}

// nginx answers 502 if it cannot connect to the backend.
func TestNginxLosesNoRequest(t *testing.T) {
	program(t, "nginx")
	testProxy(t, nginx)
}

// haproxy answers 503 if it cannot connect to the backend.
func TestHaproxyLosesNoRequest(t *testing.T) {
	program(t, "haproxy")
	testProxy(t, haproxy)
}
