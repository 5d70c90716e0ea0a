//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
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

// startPython starts a Python program and returns its output.
func startPython(t *testing.T, source string, args ...string) *bufio.Reader {
	t.Helper()
	_, out := pipes(t, peer(t, "python3", append([]string{"-c", source}, args...)...))
	return out
}

func TestConnectWaitsForPythonServers(t *testing.T) {
	for name, source := range pythonServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketDir(t) + "/s"
			sockettest.Expect(t, startPython(t, source, path), "listening\n")
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			results := make(chan error, pythonClients)
			start := make(chan struct{})
			for i := range pythonClients {
				go func() {
					<-start
					c, err := unixsock.ConnectContext(ctx, path)
					if err == nil {
						defer c.Close()
						c.SetDeadline(time.Now().Add(timeout))
						err = converse(c, fmt.Sprint("client ", i))
					}
					results <- err
				}()
			}
			close(start)
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
	out := startPython(t, asyncioClients, l.Addr().String(), fmt.Sprint(pythonClients))
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
