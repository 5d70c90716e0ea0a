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
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// serverBacklog is the backlog that the documentation recommends for servers.
const serverBacklog = 511

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
daemon off; %s pid nginx.pid; error_log stderr; worker_processes 2;
events { worker_connections 1024; }
http {
	access_log off; client_body_temp_path body; proxy_temp_path proxy;
	fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	upstream backend { server unix:%s; %s }
	server {
		listen %s;
		location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection %s; }
	}
}`, user, path, reuse, addr, connection)
	sockettest.Check(t, os.WriteFile(dir+"/nginx.conf", []byte(config), 0o600))
	cmd := peer(t, "nginx", "-p", dir, "-c", dir+"/nginx.conf", "-e", "stderr")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	sockettest.Check(t, cmd.Start())
	sockettest.WaitFor(t, "nginx does not listen", func() bool { // nothing but a connect shows it
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

// haproxy starts haproxy, without retries of a connect that fails. haproxy inherits
// a TCP socket that already listens, so the test need not wait until it has started.
func haproxy(t *testing.T, path string, keepAlive bool) string {
	t.Helper()
	l := sockettest.Got(net.Listen("tcp", "127.0.0.1:0")).Must(t)
	f := sockettest.Got(l.(*net.TCPListener).File()).Must(t)
	defer l.Close() // haproxy alone accepts
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
	sockettest.Check(t, os.WriteFile(file, []byte(config), 0o600))
	cmd := peer(t, "haproxy", "-db", "-f", file)
	cmd.ExtraFiles = []*os.File{f} // descriptor 3 in the child
	sockettest.Check(t, cmd.Start())
	return l.Addr().String()
}

// freeAddr returns a free TCP address on loopback. Its port is outside the range
// from which Linux and macOS assign ports to other programs.
func freeAddr(t *testing.T) (addr string) {
	t.Helper()
	sockettest.WaitFor(t, "no TCP port is free", func() bool {
		addr = fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		l, err := net.Listen("tcp", addr)
		if err == nil {
			l.Close()
		}
		return err == nil
	})
	return addr
}

// TestProxiesLoseNoRequest checks that the backend answers each request that ApacheBench sends
// through a proxy, which answers 502 or 503 if it cannot connect to the backend, and that the
// proxy opens a connection for each request unless it keeps connections.
func TestProxiesLoseNoRequest(t *testing.T) {
	const requests = 1000
	for name, start := range map[string]func(t *testing.T, path string, keepAlive bool) (addr string){"nginx": nginx, "haproxy": haproxy} {
		for _, keepAlive := range []bool{false, true} {
			for _, clients := range []int{16, 200} {
				t.Run(fmt.Sprintf("%s, keep-alive %v, %d clients", name, keepAlive, clients), func(t *testing.T) {
					t.Parallel()
					program(t, name)
					path := socketDir(t) + "/s"
					var conns, reqs atomic.Int64
					serve(t, sockettest.ListenAt(t, path, unixsock.Backlog(serverBacklog)), &http.Server{
						Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							reqs.Add(1)
							io.WriteString(w, "hello\n")
						}),
						ConnState: func(_ net.Conn, state http.ConnState) {
							if state == http.StateNew {
								conns.Add(1)
							}
						},
					})
					args := []string{"-q", "-n", strconv.Itoa(requests), "-c", strconv.Itoa(clients), "http://" + start(t, path, keepAlive) + "/"}
					if keepAlive {
						args = append([]string{"-k"}, args...)
					}
					report, err := peer(t, "ab", args...).Output()
					if err != nil || !regexp.MustCompile(`(?m)^Complete requests:\s+1000$`).Match(report) ||
						!regexp.MustCompile(`(?m)^Failed requests:\s+0$`).Match(report) || strings.Contains(string(report), "Non-2xx") {
						t.Errorf("ab sent %d requests: got %v and the report\n%s", requests, err, report)
					}
					if n := reqs.Load(); n != requests {
						t.Errorf("ab sent %d requests: the backend got %d", requests, n)
					}
					if n := conns.Load(); keepAlive == (n >= requests) {
						t.Errorf("the proxy sent %d requests over %d connections, with keep-alive %v", requests, n, keepAlive)
					}
				})
			}
		}
	}
}
