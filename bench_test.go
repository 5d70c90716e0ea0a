//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A benchmark of what net can do too has two sub-benchmarks that do the same
// work, one over this package and one over net. To compare them, in some minutes:
//
//	go install golang.org/x/perf/cmd/benchstat@latest
//	go test -run '^$' -bench . -count 10 > bench.txt
//	benchstat -col '/impl@(net ours)' bench.txt

// An impl is a package to measure, by the functions that a program calls.
type impl struct {
	name   string
	listen func(path string, backlog int) (net.Listener, error)
	dial   func(path string) (net.Conn, error)
}

var impls = []impl{
	{
		name: "ours",
		listen: func(path string, backlog int) (net.Listener, error) {
			return unixsock.Listen(path, unixsock.Backlog(backlog))
		},
		dial: func(path string) (net.Conn, error) { return unixsock.Connect(path) },
	},
	{
		name:   "net",
		listen: func(path string, _ int) (net.Listener, error) { return net.Listen("unix", path) },
		dial:   func(path string) (net.Conn, error) { return net.Dial("unix", path) },
	},
}

// compare runs f for each package.
func compare(b *testing.B, f func(b *testing.B, p impl)) {
	for _, p := range impls {
		b.Run("impl="+p.name, func(b *testing.B) {
			b.ReportAllocs()
			f(b, p)
		})
	}
}

// mustListen listens on a new path, with a backlog as net's.
func (p impl) mustListen(b *testing.B) (l net.Listener, path string) {
	b.Helper()
	path = filepath.Join(sockettest.ShortDir(b), "s")
	l, err := p.listen(path, 4096)
	if err != nil {
		b.Fatalf("listen: %v", err)
	}
	b.Cleanup(func() { l.Close() })
	return l, path
}

// mustPair returns the two ends of a connection.
func (p impl) mustPair(b *testing.B) (client, server net.Conn) {
	b.Helper()
	l, path := p.mustListen(b)
	client, server = pairOf(b, l, func() (net.Conn, error) { return p.dial(path) })
	l.Close()
	return client, server
}

// tcpPair returns the two ends of a connection over TCP.
func tcpPair(b *testing.B) (client, server net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatalf("Listen: %v", err)
	}
	defer l.Close()
	return pairOf(b, l, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
}

func pairOf(b *testing.B, l net.Listener, dial func() (net.Conn, error)) (client, server net.Conn) {
	b.Helper()
	client, err := dial()
	if err != nil {
		b.Fatalf("dial: %v", err)
	}
	b.Cleanup(func() { client.Close() })
	server, err = l.Accept()
	if err != nil {
		b.Fatalf("Accept: %v", err)
	}
	b.Cleanup(func() { server.Close() })
	return client, server
}

func BenchmarkConnectAcceptClose(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		l, path := p.mustListen(b)
		for b.Loop() {
			client, err := p.dial(path)
			if err != nil {
				b.Fatalf("dial: %v", err)
			}
			server, err := l.Accept()
			if err != nil {
				b.Fatalf("Accept: %v", err)
			}
			client.Close()
			server.Close()
		}
	})
}

// answer serves one request of 64 bytes on each connection that l accepts.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answerOne(c)
	}
}

// answerOne serves one request of 64 bytes on c, and closes it.
func answerOne(c net.Conn) error {
	defer c.Close()
	var request [64]byte
	if _, err := io.ReadFull(c, request[:]); err != nil {
		return err
	}
	_, err := c.Write(request[:])
	return err
}

// ask makes one request on a connection of its own.
func (p impl) ask(path string) error {
	c, err := p.dial(path)
	if err != nil {
		return err
	}
	defer c.Close()
	var b [64]byte
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b[:])
	return err
}

func BenchmarkRequest(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		l, path := p.mustListen(b)
		go answer(l)
		for b.Loop() {
			if err := p.ask(path); err != nil {
				b.Fatalf("ask: %v", err)
			}
		}
	})
}

func BenchmarkRequestFrom32Clients(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		l, path := p.mustListen(b)
		go answer(l)
		requests := make(chan struct{}, 64)
		var clients sync.WaitGroup
		for range 32 {
			clients.Go(func() {
				for range requests {
					if err := p.ask(path); err != nil {
						b.Errorf("ask: %v", err)
					}
				}
			})
		}
		for b.Loop() {
			requests <- struct{}{}
		}
		close(requests)
		clients.Wait()
	})
}

func BenchmarkRoundTrip64(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		client, server := p.mustPair(b)
		roundTrips(b, client, server)
	})
}

// roundTrips measures how long 64 bytes take from client to server and back.
func roundTrips(b *testing.B, client, server net.Conn) {
	go func() {
		var message [64]byte
		for {
			if _, err := io.ReadFull(server, message[:]); err != nil {
				return
			}
			if _, err := server.Write(message[:]); err != nil {
				return
			}
		}
	}()
	var message [64]byte
	for b.Loop() {
		if _, err := client.Write(message[:]); err != nil {
			b.Fatalf("Write: %v", err)
		}
		if _, err := io.ReadFull(client, message[:]); err != nil {
			b.Fatalf("ReadFull: %v", err)
		}
	}
}

// swallow reads c to its end. It returns a function that waits until it is there.
func swallow(c io.Reader) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1<<20)
		for {
			if _, err := c.Read(buffer); err != nil {
				return
			}
		}
	}()
	return func() { <-done }
}

func BenchmarkThroughput(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			compare(b, func(b *testing.B, p impl) {
				client, server := p.mustPair(b)
				wait := swallow(server)
				b.SetBytes(int64(size))
				message := make([]byte, size)
				for b.Loop() {
					if _, err := client.Write(message); err != nil {
						b.Fatalf("Write: %v", err)
					}
				}
				client.Close()
				wait()
			})
		})
	}
}

func BenchmarkWriteBuffers(b *testing.B) {
	const count, size = 64, 1 << 10
	compare(b, func(b *testing.B, p impl) {
		client, server := p.mustPair(b)
		wait := swallow(server)
		b.SetBytes(count * size)
		parts, message := make(net.Buffers, count), make([]byte, size)
		for b.Loop() {
			for i := range parts {
				parts[i] = message
			}
			buffers := parts
			var err error
			if c, ok := client.(*unixsock.Conn); ok {
				_, err = c.WriteBuffers(&buffers)
			} else {
				_, err = buffers.WriteTo(client)
			}
			if err != nil {
				b.Fatalf("WriteTo: %v", err)
			}
		}
		client.Close()
		wait()
	})
}

const copied = 64 << 20

func BenchmarkCopyFile(b *testing.B) {
	name := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, copied), 0o600); err != nil {
		b.Fatalf("WriteFile: %v", err)
	}
	compare(b, func(b *testing.B, p impl) {
		f, err := os.Open(name)
		if err != nil {
			b.Fatalf("Open: %v", err)
		}
		defer f.Close()
		client, server := p.mustPair(b)
		wait := swallow(server)
		b.SetBytes(copied)
		for b.Loop() {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				b.Fatalf("Seek: %v", err)
			}
			if n, err := io.Copy(client, f); n != copied || err != nil {
				b.Fatalf("Copy of %d bytes: got %d, %v", copied, n, err)
			}
		}
		client.Close()
		wait()
	})
}

// benchmarkCopy measures io.Copy from one connection to another, as a proxy
// does. from and to return both ends of a new connection.
func benchmarkCopy(b *testing.B, from, to func(p impl, b *testing.B) (near, far net.Conn)) {
	compare(b, func(b *testing.B, p impl) {
		b.SetBytes(copied)
		for b.Loop() {
			source, feed := from(p, b)
			drain, sink := to(p, b)
			wait := swallow(sink)
			go send(feed)
			if n, err := io.Copy(drain, source); n != copied || err != nil {
				b.Fatalf("Copy of %d bytes: got %d, %v", copied, n, err)
			}
			source.Close()
			drain.Close()
			wait()
		}
	})
}

// send writes copied bytes to c and closes it.
func send(c net.Conn) {
	defer c.Close()
	message := make([]byte, 64<<10)
	for range copied / len(message) {
		if _, err := c.Write(message); err != nil {
			return // the other end is closed
		}
	}
}

func overUnix(p impl, b *testing.B) (near, far net.Conn) { return p.mustPair(b) }

func overTCP(_ impl, b *testing.B) (near, far net.Conn) { return tcpPair(b) }

func BenchmarkCopyUnixToTCP(b *testing.B) { benchmarkCopy(b, overUnix, overTCP) }

func BenchmarkCopyTCPToUnix(b *testing.B) { benchmarkCopy(b, overTCP, overUnix) }

func BenchmarkCopyUnixToUnix(b *testing.B) { benchmarkCopy(b, overUnix, overUnix) }

// BenchmarkCopyUnixToFile copies to a file that is empty at first, or has as many bytes.
func BenchmarkCopyUnixToFile(b *testing.B) {
	for _, target := range []string{"new", "old"} {
		b.Run("file="+target, func(b *testing.B) {
			compare(b, func(b *testing.B, p impl) {
				f, err := os.Create(filepath.Join(b.TempDir(), "file"))
				if err != nil {
					b.Fatalf("Create: %v", err)
				}
				defer f.Close()
				b.SetBytes(copied)
				for b.Loop() {
					if target == "new" {
						f.Truncate(0)
					}
					if _, err := f.Seek(0, io.SeekStart); err != nil {
						b.Fatalf("Seek: %v", err)
					}
					source, feed := p.mustPair(b)
					go send(feed)
					if n, err := io.Copy(f, source); n != copied || err != nil {
						b.Fatalf("Copy of %d bytes: got %d, %v", copied, n, err)
					}
					source.Close()
				}
			})
		})
	}
}

// mustProxy returns the two ends of a connection through a proxy, which copies both
// directions with io.Copy.
func (p impl) mustProxy(b *testing.B) (client, server net.Conn) {
	b.Helper()
	client, in := p.mustPair(b)
	out, server := p.mustPair(b)
	for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			io.Copy(c[0], c[1])
			c[0].Close()
		}()
	}
	return client, server
}

func BenchmarkProxyRoundTrip64(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		client, server := p.mustProxy(b)
		roundTrips(b, client, server)
	})
}

func BenchmarkProxyWrites1K(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		client, server := p.mustProxy(b)
		wait := swallow(server)
		message := make([]byte, 1<<10)
		b.SetBytes(int64(len(message)))
		for b.Loop() {
			if _, err := client.Write(message); err != nil {
				b.Fatalf("Write: %v", err)
			}
		}
		client.Close()
		wait()
	})
}

// BenchmarkServerLoop compares three loops of a server, all ours, that answer one
// request for each connection: by Accept, by a receive from Ready and an Accept,
// and by a receive from AcceptEvt. The client is another process, as a server's
// clients are.
func BenchmarkServerLoop(b *testing.B) {
	for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
		b.Run("loop="+loop, func(b *testing.B) {
			l := sockettest.Listen(b, unixsock.Backlog(4096))
			next := map[string]func() (net.Conn, error){
				"Accept": l.Accept,
				"Ready": func() (net.Conn, error) {
					<-l.Ready()
					return l.Accept()
				},
				"AcceptEvt": func() (net.Conn, error) {
					a := <-l.AcceptEvt(b.Context())
					return a.Conn, a.Err
				},
			}[loop]
			client := sockettest.StartHelper(b, nil, "ask", l.Addr().String())
			defer client.Kill()
			client.Expect("asking")
			for b.Loop() {
				c, err := next()
				if err != nil {
					b.Fatalf("next connection: %v", err)
				}
				if err := answerOne(c); err != nil {
					b.Fatalf("answer to a request: %v", err)
				}
			}
		})
	}
}

// helpAsk makes requests at a path, one after the other, until it is killed.
func helpAsk(args []string) error {
	p := impls[0]
	fmt.Println("asking")
	for {
		if err := p.ask(args[0]); err != nil {
			return err
		}
	}
}

// BenchmarkConnectTheFull measures 1,000 connects at once against a backlog of
// 4, all of them served. It is not compared with net, whose Dial fails.
func BenchmarkConnectTheFull(b *testing.B) {
	for b.Loop() {
		path := filepath.Join(sockettest.ShortDir(b), "s")
		l, err := unixsock.Listen(path, unixsock.Backlog(4))
		if err != nil {
			b.Fatalf("Listen: %v", err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		var clients sync.WaitGroup
		for range 1000 {
			clients.Go(func() {
				c, err := unixsock.ConnectContext(ctx, path)
				if err != nil {
					b.Errorf("ConnectContext: %v", err)
					return
				}
				c.Close()
			})
		}
		clients.Wait()
		cancel()
		l.Close()
	}
}
