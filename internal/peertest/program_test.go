//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// TestPrograms starts clients and servers. Each copies its standard input to the socket at
// NAME, and the socket to its standard output.
func TestPrograms(t *testing.T) {
	for _, command := range []string{
		"nc -N -U NAME",
		"nc -N -l -U NAME",
		"socat -t20 - UNIX-CONNECT:NAME,bind=NAME.client",
		"socat -t20 UNIX-LISTEN:NAME -",
		"socat -t20 - ABSTRACT-CONNECT:NAME,bind=NAME.client",
		"socat -t20 ABSTRACT-LISTEN:NAME -",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			path := socketDir(t) + "/s"
			if strings.Contains(command, "ABSTRACT") {
				linux(t)
				path = abstract("s")
			}
			args := strings.Fields(strings.ReplaceAll(command, "NAME", strings.TrimPrefix(path, "\x00")))
			cmd := peer(t, args[0], args[1:]...)
			if args[0] == "nc" {
				if help, _ := exec.Command(cmd.Path, "-h").CombinedOutput(); !bytes.Contains(help, []byte("OpenBSD")) {
					t.Skip("nc is not OpenBSD's, and may lack the flag -U or -N")
				}
			}
			if strings.Contains(command, "-l ") || strings.Contains(command, "LISTEN") {
				wait := finish(t, cmd, data)
				echo(t, connect(t, path))
				wait(data)
				return
			}
			l := sockettest.ListenAt(t, path)
			wait := finish(t, cmd, data)
			c := accept(t, l)
			if got, want := c.RemoteAddr().String(), path+".client"; got != want && args[0] == "socat" {
				t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, want)
			}
			echo(t, c)
			wait(data)
		})
	}
}

// serve runs an HTTP server on l until the end of the test, and counts its connections.
func serve(t *testing.T, l net.Listener, handler http.Handler) *atomic.Int64 {
	t.Helper()
	var conns atomic.Int64
	server := &http.Server{Handler: handler, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		sockettest.ExpectError(t, "Serve until the server was closed", <-served, http.ErrServerClosed)
	})
	return &conns
}

func TestCurl(t *testing.T) {
	t.Parallel()
	file := socketDir(t) + "/file"
	sockettest.Check(t, os.WriteFile(file, []byte(data+data), 0o600))
	mux := http.NewServeMux()
	mux.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, data) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }) // uses ReadFrom
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // the answer shows an error
		w.Write(body)
	})
	mux.HandleFunc("/addresses", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Host, r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey))
	})
	const url = "http://any.host/"
	for flag, name := range map[string]string{"--unix-socket": socketDir(t) + "/s", "--abstract-unix-socket": abstract("curl")} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			if flag == "--abstract-unix-socket" {
				linux(t)
			}
			conns := serve(t, sockettest.Got(unixsock.NewTCPUnit(name).Listen("tcp", ":80")).Must(t), mux)
			options := []string{"-sSf", flag, strings.TrimPrefix(name, "\x00")}
			args := slices.Concat(options, []string{url + "data", url + "file"}, slices.Repeat([]string{url + "addresses"}, 100),
				[]string{"--next"}, options, []string{"-r", "10000-899999", url + "file"},
				[]string{"--next"}, options, []string{"--data-binary", "@-", url + "echo"})
			want := data + data + data + strings.Repeat("any.host 127.0.0.1:0 127.0.0.1:1\n", 100) + data[10000:900000] + data
			finish(t, peer(t, "curl", args...), data)(want)
			if n := conns.Load(); n != 1 && flag == "--unix-socket" { // curl 7.88 keeps no connection to an abstract name
				t.Errorf("curl sent its requests over %d connections, want 1", n)
			}
		})
	}
}

// python is a server with a backlog of 5, which serves one client after the other, and 50
// clients, which all connect before they exchange a message.
const python = `
import asyncio, socketserver, sys, threading

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())

async def converse(reader, writer):
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer

async def clients():
    connects = (asyncio.open_unix_connection(sys.argv[2]) for _ in range(50))
    ports = await asyncio.gather(*connects)
    print("connected", flush=True)
    print(set(await asyncio.gather(*(converse(*p) for p in ports))), flush=True)

socketserver.UnixStreamServer.request_queue_size = 5
server = socketserver.UnixStreamServer(sys.argv[1], Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
asyncio.run(clients())
`

// Connect waits for the backlog of Python's server. Our own backlog holds Python's clients.
func TestPythonAndBacklogs(t *testing.T) {
	t.Parallel()
	l := sockettest.ListenAt(t, socketDir(t)+"/s", unixsock.Backlog(serverBacklog))
	path := socketDir(t) + "/python"
	_, out := pipes(t, peer(t, "python3", "-c", python, path, l.Addr().String()))
	sockettest.Expect(t, out, "connected\n")
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	const clients = 50
	results := make(chan error, clients)
	for i := range clients {
		go func() {
			c, err := unixsock.ConnectContext(ctx, path)
			if err == nil {
				defer c.Close()
				c.SetDeadline(time.Now().Add(timeout))
				err = converse(c, fmt.Sprint("client ", i))
			}
			results <- err
		}()
	}
	for range clients {
		sockettest.Check(t, sockettest.Receive(t, "a client", results))
	}
	for range clients {
		c := accept(t, l)
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
	sockettest.Expect(t, out, "{b'hello'}\n")
}

// resp encodes a command of Redis.
func resp(args ...string) string {
	s := fmt.Sprintf("*%d\r\n", len(args))
	for _, arg := range args {
		s += bulk(arg)
	}
	return s
}

// bulk encodes a string, as an argument or a reply.
func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

func TestRedis(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	path := dir + "/s"
	sockettest.Check(t, peer(t, "redis-server", "--port", "0", "--unixsocket", path,
		"--save", "", "--appendonly", "no", "--dir", dir, "--daemonize", "no").Start())
	connect(t, path).Close()
	for way, dial := range map[string]func() (net.Conn, error){
		"ConnectContext": func() (net.Conn, error) { return unixsock.ConnectContext(t.Context(), path) },
		"TCPUnit":        func() (net.Conn, error) { return unixsock.NewTCPUnit(path).Dial("tcp", "localhost:6379") },
	} {
		t.Run(way, func(t *testing.T) {
			var conns []net.Conn
			for i := range 50 {
				c, err := dial()
				conns = append(conns, limit(t, c, err))
				sockettest.Send(t, conns[i], strings.Repeat(resp("INCR", fmt.Sprint(way, i)), 3))
			}
			for _, c := range conns {
				sockettest.Expect(t, c, ":1\r\n:2\r\n:3\r\n")
			}
			c := conns[0]
			var requests, replies strings.Builder
			for i := range 2000 {
				requests.WriteString(resp("ECHO", fmt.Sprint(i)))
				replies.WriteString(bulk(fmt.Sprint(i)))
			}
			sockettest.Send(t, c, requests.String())
			sockettest.Expect(t, c, replies.String())
			sockettest.Send(t, c, resp("SET", "key\x00\r\n", data)+resp("GET", "key\x00\r\n")+resp("QUIT"))
			sockettest.ExpectEOF(t, c, "+OK\r\n"+bulk(data)+"+OK\r\n")
		})
	}
}

// serverBacklog is the backlog that the documentation recommends for servers.
const serverBacklog = 511

// proxies forward requests to the socket at PATH. They inherit a TCP listener at ADDR as
// descriptor 3, so the test need not wait until they have started.
var proxies = map[string]struct {
	config      string
	close, keep string // what REUSE is replaced by
	args        string // FILE is the configuration's
}{
	"nginx": {close: "close", keep: `""`, args: "-p DIR -c FILE -e stderr", config: `
daemon off; user root; pid nginx.pid; error_log stderr; worker_processes 2;
events { worker_connections 1024; }
http {
	access_log off; client_body_temp_path body; proxy_temp_path proxy;
	fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	upstream backend { server unix:PATH; keepalive 200; }
	server {
		listen ADDR;
		location / { proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection REUSE; }
	}
}`},
	"haproxy": {close: "httpclose", keep: "http-keep-alive\n\thttp-reuse always", args: "-db -f FILE", config: `
global
	maxconn 1000
	nbthread 2
defaults
	mode http
	retries 0
	timeout connect 10s
	timeout client 10s
	timeout server 10s
	option REUSE
frontend front
	bind fd@3
	default_backend backend
backend backend
	server s unix@PATH
`},
}

// TestProxiesLoseNoRequest checks that the backend answers each request that ApacheBench sends
// through a proxy, which answers 502 or 503 if it cannot connect to the backend, and that the
// proxy opens a connection for each request unless it keeps connections.
func TestProxiesLoseNoRequest(t *testing.T) {
	const requests = 1000
	for name, proxy := range proxies {
		for reuse, keepAlive := range map[string]bool{proxy.close: false, proxy.keep: true} {
			t.Run(fmt.Sprintf("%s, keep-alive %v", name, keepAlive), func(t *testing.T) {
				t.Parallel()
				dir, front := socketDir(t), sockettest.Got(net.Listen("tcp", "127.0.0.1:0")).Must(t)
				path, file, addr := dir+"/s", dir+"/config", front.Addr().String()
				in := strings.NewReplacer("PATH", path, "FILE", file, "DIR", dir, "ADDR", addr, "REUSE", reuse)
				sockettest.Check(t, os.WriteFile(file, []byte(in.Replace(proxy.config)), 0o600))
				cmd := peer(t, name, strings.Fields(in.Replace(proxy.args))...)
				cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // SIGKILL would leave the workers of nginx behind
				cmd.Env = append(os.Environ(), "NGINX=3;")                               // nginx inherits descriptor 3
				sockettest.Control(t, front.(*net.TCPListener), func(fd int) {
					// That of File blocks, and so does a worker whose connection another one has accepted.
					copied := sockettest.Got(sys.Duplicate(fd)).Must(t)
					cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(copied), "front")}
				})
				var reqs atomic.Int64
				conns := serve(t, sockettest.ListenAt(t, path, unixsock.Backlog(serverBacklog)), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					reqs.Add(1)
					io.WriteString(w, "hello\n")
				}))
				sockettest.Check(t, cmd.Start())
				args := []string{"-q", "-n", fmt.Sprint(requests), "-c", "200", "http://" + addr + "/"}
				if keepAlive {
					args = append([]string{"-k"}, args...)
				}
				report, err := peer(t, "ab", args...).Output()
				if err != nil || reqs.Load() != requests || !regexp.MustCompile(`(?m)^Complete requests:\s+1000$`).Match(report) ||
					!regexp.MustCompile(`(?m)^Failed requests:\s+0$`).Match(report) || bytes.Contains(report, []byte("Non-2xx")) {
					t.Errorf("ab sent %d requests: got %v, %d at the backend and the report\n%s", requests, err, reqs.Load(), report)
				}
				if n := conns.Load(); keepAlive == (n >= requests) {
					t.Errorf("the proxy sent %d requests over %d connections, with keep-alive %v", requests, n, keepAlive)
				}
			})
		}
	}
}
