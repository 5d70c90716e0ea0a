//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

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
	listen func(path string) (net.Listener, error)
	dial   func(path string) (net.Conn, error)
}

var impls = []impl{
	{
		"ours",
		func(path string) (net.Listener, error) { return unixsock.Listen(path, unixsock.Backlog(4096)) },
		func(path string) (net.Conn, error) { return unixsock.Connect(path) },
	},
	{
		"net",
		func(path string) (net.Listener, error) { return net.Listen("unix", path) },
		func(path string) (net.Conn, error) { return net.Dial("unix", path) },
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

// newListener listens on a new path.
func (p impl) newListener(b *testing.B) (l net.Listener, path string) {
	b.Helper()
	path = filepath.Join(sockettest.ShortDir(b), "s")
	return sockettest.Got(p.listen(path)).Must(b), path
}

// A pairFunc returns the two ends of a new connection.
type pairFunc func(p impl, b *testing.B) (near, far net.Conn)

func overUnix(p impl, b *testing.B) (near, far net.Conn) {
	l, path := p.newListener(b)
	defer l.Close()
	return sockettest.Got(p.dial(path)).Must(b), sockettest.Got(l.Accept()).Must(b)
}

func overTCP(_ impl, b *testing.B) (near, far net.Conn) {
	l := sockettest.Got(net.Listen("tcp", "127.0.0.1:0")).Must(b)
	defer l.Close()
	return sockettest.Got(net.Dial("tcp", l.Addr().String())).Must(b), sockettest.Got(l.Accept()).Must(b)
}

// overProxy is overUnix through a proxy, which copies both directions with io.Copy.
func overProxy(p impl, b *testing.B) (near, far net.Conn) {
	near, in := overUnix(p, b)
	out, far := overUnix(p, b)
	for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			io.Copy(c[0], c[1])
			c[0].Close()
		}()
	}
	return near, far
}

func BenchmarkConnectAcceptClose(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		l, path := p.newListener(b)
		for b.Loop() {
			client, err := p.dial(path)
			sockettest.Check(b, err)
			server, err := l.Accept()
			sockettest.Check(b, err)
			client.Close()
			server.Close()
		}
	})
}

// ask sends a message and waits until it comes back.
func ask(c net.Conn, message []byte) error {
	_, writeErr := c.Write(message)
	_, err := io.ReadFull(c, message)
	return errors.Join(writeErr, err)
}

// echo answers one message.
func echo(c net.Conn, message []byte) error {
	_, readErr := io.ReadFull(c, message)
	_, err := c.Write(message)
	return errors.Join(readErr, err)
}

// request asks on a connection of its own.
func (p impl) request(path string) error {
	c, err := p.dial(path)
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c, make([]byte, 64))
}

// answer serves a request.
func answer(c net.Conn) error { return errors.Join(echo(c, make([]byte, 64)), c.Close()) }

func BenchmarkRequest(b *testing.B) {
	compare(b, func(b *testing.B, p impl) {
		l, path := p.newListener(b)
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				go answer(c)
			}
		}()
		for b.Loop() {
			sockettest.Check(b, p.request(path))
		}
	})
}

// BenchmarkServerLoop compares three loops of a server, all ours, that answer one request for each
// connection. The client is another process, as a server's clients are.
func BenchmarkServerLoop(b *testing.B) {
	for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
		b.Run("loop="+loop, func(b *testing.B) {
			l := sockettest.Listen(b, unixsock.Backlog(4096))
			next := map[string]func() (net.Conn, error){
				"Accept":    l.Accept,
				"Ready":     func() (net.Conn, error) { return (<-l.Ready()).Accept() },
				"AcceptEvt": func() (net.Conn, error) { a := <-l.AcceptEvt(b.Context()); return a.Conn, a.Err },
			}[loop]
			client := sockettest.StartHelper(b, nil, "ask", l.Addr().String())
			defer client.Kill()
			client.Expect("asking")
			for b.Loop() {
				c, err := next()
				sockettest.Check(b, err)
				sockettest.Check(b, answer(c))
			}
		})
	}
}

// helpAsk makes requests at a path, one after the other, until it is killed.
func helpAsk(args []string) error {
	fmt.Println("asking")
	for {
		if err := impls[0].request(args[0]); err != nil {
			return err
		}
	}
}

// BenchmarkRoundTrip64 measures how long 64 bytes take to the other end and back.
func BenchmarkRoundTrip64(b *testing.B) {
	for i, connect := range []pairFunc{overUnix, overProxy} {
		b.Run("way="+[]string{"direct", "proxy"}[i], func(b *testing.B) {
			compare(b, func(b *testing.B, p impl) {
				near, far := connect(p, b)
				go func() {
					for message := make([]byte, 64); echo(far, message) == nil; {
					}
				}()
				message := make([]byte, 64)
				for b.Loop() {
					sockettest.Check(b, ask(near, message))
				}
			})
		})
	}
}

// swallow reads c to its end, which the result waits for.
func swallow(c io.Reader) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buffer := make([]byte, 1<<20); ; {
			if _, err := c.Read(buffer); err != nil {
				return
			}
		}
	}()
	return func() { <-done }
}

// BenchmarkWrite measures writes to a peer that reads, the first ones through a proxy.
func BenchmarkWrite(b *testing.B) {
	for _, test := range []struct {
		name    string
		connect pairFunc
		size    int
	}{{"1K-proxy", overProxy, 1 << 10}, {"4K", overUnix, 4 << 10}, {"64K", overUnix, 64 << 10}, {"1M", overUnix, 1 << 20}} {
		b.Run("size="+test.name, func(b *testing.B) {
			compare(b, func(b *testing.B, p impl) {
				near, far := test.connect(p, b)
				wait := swallow(far)
				b.SetBytes(int64(test.size))
				message := make([]byte, test.size)
				for b.Loop() {
					_, err := near.Write(message)
					sockettest.Check(b, err)
				}
				near.Close()
				wait()
			})
		})
	}
}

const copied = 64 << 20

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

// BenchmarkCopy measures io.Copy. A file is the source, a new one, or one that is overwritten.
func BenchmarkCopy(b *testing.B) {
	file := sockettest.Got(os.Create(filepath.Join(b.TempDir(), "file"))).Must(b)
	_, err := file.Write(make([]byte, copied))
	sockettest.Check(b, err)
	for _, test := range []struct {
		name     string
		from, to pairFunc // nil: the file
		truncate bool
	}{
		{"file-unix", nil, overUnix, false}, {"tcp-unix", overTCP, overUnix, false}, {"unix-unix", overUnix, overUnix, false},
		{"unix-tcp", overUnix, overTCP, false}, {"unix-old-file", overUnix, nil, false}, {"unix-new-file", overUnix, nil, true},
	} {
		b.Run("copy="+test.name, func(b *testing.B) {
			compare(b, func(b *testing.B, p impl) {
				b.SetBytes(copied)
				for b.Loop() {
					if test.truncate {
						sockettest.Check(b, file.Truncate(0))
					}
					_, err := file.Seek(0, io.SeekStart)
					sockettest.Check(b, err)
					copyOnce(b, p, file, test.from, test.to)
				}
			})
		})
	}
}

// copyOnce copies from a new connection to another. Where there is none, it uses the file.
func copyOnce(b *testing.B, p impl, file *os.File, from, to pairFunc) {
	var source, target io.ReadWriter = file, file
	if from != nil {
		near, feed := from(p, b)
		defer near.Close()
		go send(feed)
		source = near
	}
	if to != nil {
		near, sink := to(p, b)
		defer swallow(sink)()
		defer near.Close()
		target = near
	}
	if n, err := io.Copy(target, source); n != copied || err != nil {
		b.Fatalf("Copy of %d bytes: got %d, %v", copied, n, err)
	}
}
