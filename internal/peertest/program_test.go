//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// echoClient connects to sys.argv[1] with a blocking socket and echoes.
const echoClient = `
import socket, sys

with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    while data := s.recv(65536):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)
`

// programs are the commands of a client or of a server. Each copies its standard input to
// the socket at NAME, and the socket to its standard output, or else it echoes.
var programs = map[string]struct {
	server, abstract, echoes bool
	command                  []string
}{
	"nc":                     {command: []string{"nc", "-N", "-U", "NAME"}},
	"nc server":              {server: true, command: []string{"nc", "-N", "-l", "-U", "NAME"}},
	"socat":                  {command: []string{"socat", "-t20", "-", "UNIX-CONNECT:NAME,bind=NAME.client"}},
	"socat server":           {server: true, command: []string{"socat", "-t20", "UNIX-LISTEN:NAME", "-"}},
	"socat, abstract":        {abstract: true, command: []string{"socat", "-t20", "-", "ABSTRACT-CONNECT:NAME,bind=NAME.client"}},
	"socat server, abstract": {abstract: true, server: true, command: []string{"socat", "-t20", "ABSTRACT-LISTEN:NAME", "-"}},
	"python":                 {echoes: true, command: []string{"python3", "-c", echoClient, "NAME"}},
}

func TestPrograms(t *testing.T) {
	for name, test := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.command[0] == "nc" {
				if help, _ := exec.Command(program(t, "nc"), "-h").CombinedOutput(); !bytes.Contains(help, []byte("OpenBSD")) {
					t.Skip("nc is not OpenBSD's, and may lack the flag -U or -N")
				}
			}
			path, args := socketDir(t)+"/s", slices.Clone(test.command[1:])
			if test.abstract {
				linux(t)
				path = abstract("s")
			}
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "NAME", strings.TrimPrefix(path, "\x00"))
			}
			cmd := peer(t, test.command[0], args...)
			var wait func(string)
			var c *unixsock.Conn
			if test.server {
				wait = finish(t, cmd, data)
				c = connect(t, path)
			} else {
				l := sockettest.ListenAt(t, path)
				wait = finish(t, cmd, data)
				c = accept(t, l)
				if got, want := c.RemoteAddr().String(), path+".client"; got != want && test.command[0] == "socat" {
					t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, want)
				}
			}
			if test.echoes {
				sockettest.Check(t, converse(c, data))
				wait("")
			} else {
				echo(t, c)
				wait(data)
			}
		})
	}
}

// serve runs server on l until the end of the test.
func serve(t *testing.T, l net.Listener, server *http.Server) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		sockettest.ExpectError(t, "Serve until the server was closed", <-served, http.ErrServerClosed)
	})
}

func TestCurl(t *testing.T) {
	program(t, "curl")
	file := socketDir(t) + "/file"
	sockettest.Check(t, os.WriteFile(file, []byte(data+data), 0o600))
	mux := http.NewServeMux()
	mux.HandleFunc("/x", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "x") })
	mux.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, data) })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }) // uses ReadFrom
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read the request's body: got %v after %d bytes, want EOF", err, len(body))
		}
		w.Write(body)
	})
	mux.HandleFunc("/addresses", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.RemoteAddr, " ", r.Context().Value(http.LocalAddrContextKey))
	})
	url := "http://any.host/"
	for flag, name := range map[string]string{"--unix-socket": socketDir(t) + "/s", "--abstract-unix-socket": abstract("curl")} {
		t.Run(flag, func(t *testing.T) {
			if flag == "--abstract-unix-socket" {
				linux(t)
			}
			var conns atomic.Int64
			serve(t, sockettest.Got(unixsock.NewTCPUnit(name).Listen("tcp", ":80")).Must(t), &http.Server{
				Handler: mux,
				ConnState: func(_ net.Conn, state http.ConnState) {
					if state == http.StateNew {
						conns.Add(1)
					}
				},
			})
			curl := func(input, want string, args ...string) {
				t.Helper()
				conns.Store(0)
				finish(t, peer(t, "curl", append([]string{"-sSf", flag, strings.TrimPrefix(name, "\x00")}, args...)...), input)(want)
				if n := conns.Load(); n != 1 && flag == "--unix-socket" { // curl 7.88 keeps no connection to an abstract name
					t.Errorf("curl sent its requests over %d connections, want 1", n)
				}
			}
			curl("", data, url+"data")
			curl("", data+data, url+"file")
			curl("", data[10000:900000], "-r", "10000-899999", url+"file")
			curl(data, data, "--data-binary", "@-", url+"echo")
			curl("", "any.host 127.0.0.1:0 127.0.0.1:1", url+"addresses")
			curl("", strings.Repeat("x", 100), strings.Fields(strings.Repeat(url+"x ", 100))...)
		})
	}
}

// pythonClients is the number of clients that connect at the same time.
const pythonClients = 100

// pythonServers are servers with a backlog of 5. A server echoes what a client
// sends, after the client has closed its output. It prints a line once it listens.
var pythonServers = map[string]string{
	"socketserver": `
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())
socketserver.UnixStreamServer.request_queue_size = 5
with socketserver.UnixStreamServer(sys.argv[1], Echo) as server: # one client after the other
    print("listening", flush=True)
    server.serve_forever()
`,
	"asyncio": `
import asyncio, sys
async def echo(reader, writer):
    writer.write(await reader.read())
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_unix_server(echo, sys.argv[1], backlog=5)
    print("listening", flush=True)
    await server.serve_forever()
asyncio.run(main())
`,
}

// asyncioClients connects sys.argv[2] clients to sys.argv[1], prints a line once all
// have connected, exchanges a message with each and prints the different answers.
const asyncioClients = `
import asyncio, sys
async def converse(reader, writer):
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer
async def main():
    connects = (asyncio.open_unix_connection(sys.argv[1]) for _ in range(int(sys.argv[2])))
    ports = await asyncio.gather(*connects)
    print("connected", flush=True)
    print(set(await asyncio.gather(*(converse(*p) for p in ports))), flush=True)
asyncio.run(main())
`

func TestConnectWaitsForPythonServers(t *testing.T) {
	for name, source := range pythonServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketDir(t) + "/s"
			_, out := pipes(t, peer(t, "python3", "-c", source, path))
			sockettest.Expect(t, out, "listening\n")
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			results := make(chan error, pythonClients)
			for i := range pythonClients {
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
			for range pythonClients {
				sockettest.Check(t, sockettest.Receive(t, "a client", results))
			}
		})
	}
}

// The server accepts only after every client has connected, so the backlog must
// hold all of them.
func TestBacklogHoldsAsyncioClients(t *testing.T) {
	t.Parallel()
	l := sockettest.ListenAt(t, socketDir(t)+"/s", unixsock.Backlog(serverBacklog))
	_, out := pipes(t, peer(t, "python3", "-c", asyncioClients, l.Addr().String(), fmt.Sprint(pythonClients)))
	sockettest.Expect(t, out, "connected\n")
	for range pythonClients {
		c := accept(t, l)
		go func() {
			io.Copy(c, c)
			c.Close()
		}()
	}
	sockettest.Expect(t, out, "{b'hello'}\n")
}

// A session is a connection that speaks RESP, the protocol of Redis.
type session struct {
	net.Conn
	r *bufio.Reader
}

// send sends a command as an array of bulk strings.
func (s *session) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	_, err := io.WriteString(s, b.String())
	return err
}

// reply reads a simple string, an integer or a bulk string.
func (s *session) reply() (string, error) {
	line, err := s.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if !strings.HasPrefix(line, "$") {
		return line, nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 {
		return "", fmt.Errorf("reply has an invalid length: %q", line)
	}
	b := make([]byte, n+2)
	_, err = io.ReadFull(s.r, b)
	return string(b[:n]), err
}

// expect reads a reply and returns an error unless it is want.
func (s *session) expect(want string) error {
	got, err := s.reply()
	if err == nil && got != want {
		err = fmt.Errorf("got a reply of %d bytes, %.40q; want %d, %.40q", len(got), got, len(want), want)
	}
	return err
}

func TestRedis(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	path := dir + "/s"
	sockettest.Check(t, peer(t, "redis-server", "--port", "0", "--unixsocket", path,
		"--save", "", "--appendonly", "no", "--dir", dir, "--daemonize", "no").Start())
	connect(t, path).Close()
	for way, dial := range map[string]func(ctx context.Context) (net.Conn, error){
		"ConnectContext": func(ctx context.Context) (net.Conn, error) { return unixsock.ConnectContext(ctx, path) },
		"TCPUnit": func(ctx context.Context) (net.Conn, error) {
			return unixsock.NewTCPUnit(path).DialContext(ctx, "tcp", "localhost:6379")
		},
	} {
		t.Run(way, func(t *testing.T) {
			newSession := func() *session {
				c, err := dial(t.Context())
				c = limit(t, c, err)
				return &session{c, bufio.NewReader(c)}
			}
			s := newSession()
			for i := range 8 {
				key := fmt.Sprint("key\x00\r\n", i)
				sockettest.Check(t, errors.Join(s.send("SET", key, data[i:]), s.expect("+OK")))
				sockettest.Check(t, errors.Join(s.send("GET", key), s.expect(data[i:])))
			}
			const conns, each = 50, 20
			errs := make(chan error, conns+1)
			go func() { // a pipeline
				var err error
				for i := 0; i < 2000 && err == nil; i++ {
					err = s.send("ECHO", strconv.Itoa(i))
				}
				errs <- err
			}()
			for i := range 2000 {
				sockettest.Check(t, s.expect(strconv.Itoa(i)))
			}
			for range conns {
				s := newSession()
				go func() {
					var err error
					for i := 0; i < each && err == nil; i++ {
						if err = s.send("INCR", way); err == nil {
							_, err = s.reply()
						}
					}
					errs <- err
				}()
			}
			for range cap(errs) {
				sockettest.Check(t, sockettest.Receive(t, "a session", errs))
			}
			sockettest.Check(t, errors.Join(s.send("GET", way), s.expect(strconv.Itoa(conns*each))))
			sockettest.Check(t, errors.Join(s.send("QUIT"), s.expect("+OK")))
			sockettest.ExpectEOF(t, s, "")
		})
	}
}

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
