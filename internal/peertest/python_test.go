//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// pythonClients is the number of clients that connect at the same time.
const pythonClients = 100

// pythonServers are servers with a backlog of 5. A server echoes what a client
// sends, after the client has closed its output. It prints a line once it listens.
var pythonServers = map[string]string{
	// This server serves one client after the other.
	"socketserver": `
import socketserver, sys

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())

class Server(socketserver.UnixStreamServer):
    request_queue_size = 5

with Server(sys.argv[1], Echo) as server:
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
// have tried, exchanges a message with each and prints how many got it back.
const asyncioClients = `
import asyncio, sys

async def connect():
    return await asyncio.open_unix_connection(sys.argv[1])

async def converse(i, ports):
    if isinstance(ports, BaseException):
        raise ports
    reader, writer = ports
    message = b"client %d" % i
    writer.write(message)
    writer.write_eof()
    got = await reader.read()
    writer.close()
    if got != message:
        raise ValueError("client %d: got %r" % (i, got))

async def main():
    count = int(sys.argv[2])
    ports = await asyncio.gather(*(connect() for _ in range(count)), return_exceptions=True)
    print("connected", flush=True)
    results = await asyncio.gather(*(converse(i, p) for i, p in enumerate(ports)), return_exceptions=True)
    for error in filter(None, results):
        print(repr(error), file=sys.stderr)
    print(results.count(None), flush=True)

asyncio.run(main())
`

// echoClient connects to sys.argv[1] with a blocking socket and echoes.
const echoClient = `
import socket, sys

with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    while data := s.recv(65536):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)
`

// startPython starts a Python program and returns its output.
func startPython(t *testing.T, source string, args ...string) *bufio.Reader {
	t.Helper()
	cmd := peer(t, "python3", append([]string{"-c", source}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("StdoutPipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start python3: %v", err)
	}
	return bufio.NewReader(out)
}

// expectLine checks that the next line of r is want.
func expectLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	line, err := r.ReadString('\n')
	if got := strings.TrimSuffix(line, "\n"); err != nil || got != want {
		t.Fatalf("read a line of the peer: got %q, %v; want %q", got, err, want)
	}
}

// atOnce starts pythonClients clients, which connect with dial at the same time and
// exchange a message. It returns the errors of dial and of the exchanges.
func atOnce(dial func() (net.Conn, error)) (dialErrs, exchangeErrs []error) {
	var (
		mu      sync.Mutex
		clients sync.WaitGroup
		start   = make(chan struct{})
	)
	for i := range pythonClients {
		clients.Go(func() {
			<-start
			c, err := dial()
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				dialErrs = append(dialErrs, err)
				return
			}
			defer c.Close()
			if err := exchange(c.(halfCloser), fmt.Sprint("client ", i)); err != nil {
				mu.Lock()
				defer mu.Unlock()
				exchangeErrs = append(exchangeErrs, err)
			}
		})
	}
	close(start)
	clients.Wait()
	return dialErrs, exchangeErrs
}

// exchange sends message to a peer that echoes, and checks the answer.
func exchange(c halfCloser, message string) error {
	c.SetDeadline(time.Now().Add(timeout))
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != message {
		err = fmt.Errorf("sent %q: got %q", message, got)
	}
	return err
}

func TestConnectWaitsForPythonServers(t *testing.T) {
	program(t, "python3")
	for name, source := range pythonServers {
		t.Run(name, func(t *testing.T) {
			path := socketDir(t) + "/s"
			expectLine(t, startPython(t, source, path), "listening")

			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			dialErrs, exchangeErrs := atOnce(func() (net.Conn, error) {
				c, err := unixsock.ConnectContext(ctx, path)
				if err != nil {
					return nil, err
				}
				return c, nil
			})
			if len(dialErrs) != 0 {
				t.Errorf("%d clients called ConnectContext at once: got %d errors, want none; the first is %v",
					pythonClients, len(dialErrs), dialErrs[0])
			}
			if len(exchangeErrs) != 0 {
				t.Errorf("%d clients sent a message: got %d errors, want none; the first is %v",
					pythonClients, len(exchangeErrs), exchangeErrs[0])
			}

			dialErrs, _ = atOnce(func() (net.Conn, error) { return net.Dial("unix", path) })
			t.Logf("%d clients called net.Dial at once: got %d errors", pythonClients, len(dialErrs))
		})
	}
}

// The server accepts only after every client has connected, so the backlog must
// hold all of them.
func TestBacklogHoldsAsyncioClients(t *testing.T) {
	program(t, "python3")
	l := listen(t, socketDir(t)+"/s", unixsock.Backlog(serverBacklog))
	out := startPython(t, asyncioClients, l.Addr().String(), fmt.Sprint(pythonClients))
	expectLine(t, out, "connected")

	var served atomic.Int64
	go func() {
		for {
			c, err := l.AcceptContext(t.Context())
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(timeout))
				if _, err := io.Copy(c, c); err == nil {
					served.Add(1)
				}
			}()
		}
	}()
	line, err := out.ReadString('\n')
	if got, want := strings.TrimSpace(line), fmt.Sprint(pythonClients); err != nil || got != want {
		t.Errorf("%s asyncio clients connected at once: got %q with an answer, %v; want %q. The server answered %d",
			want, got, err, want, served.Load())
	}
}

func TestPythonIsClient(t *testing.T) {
	program(t, "python3")
	data := noise(1<<20 + 1)
	l := listen(t, socketDir(t)+"/s")
	wait := finish(t, peer(t, "python3", "-c", echoClient, l.Addr().String()), nil)
	converse(t, accept(t, l), data)
	wait()
}
