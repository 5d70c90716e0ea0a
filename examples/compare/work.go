package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/go-unixsock/unixsock"
)

// A side is a package to measure, by the functions that a program calls.
type side struct {
	listen func(path string) (net.Listener, error)
	dial   func(path string) (net.Conn, error)
}

var (
	ours = side{
		// Not the default: net's backlog is as long as the system allows.
		listen: func(path string) (net.Listener, error) { return unixsock.Listen(path, unixsock.Backlog(4096)) },
		dial:   func(path string) (net.Conn, error) { return unixsock.Connect(path) },
	}
	theirs = side{
		listen: func(path string) (net.Listener, error) { return net.Listen("unix", path) },
		dial:   func(path string) (net.Conn, error) { return net.Dial("unix", path) },
	}
	// overTCP is what a proxy has on its other side.
	overTCP = side{
		listen: func(string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		dial:   func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) },
	}
)

// A bench has a directory for sockets and a file to copy.
type bench struct {
	dir   string
	file  *os.File
	names int

	// What is written and read in bulk is in the same place for both sides. To
	// allocate it each time would have the garbage collector come round in step
	// with their turns, to the cost of one of them.
	message, buffer [1 << 20]byte
}

func newBench() (*bench, error) {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir}
	if b.file, err = os.Create(filepath.Join(dir, "file")); err == nil {
		_, err = b.file.Write(make([]byte, copied))
	}
	if err != nil {
		b.remove()
		return nil, err
	}
	return b, nil
}

func (b *bench) remove() {
	b.file.Close()
	os.RemoveAll(b.dir)
}

func (b *bench) rows() []row {
	rows := []row{
		b.row("connect + accept + close", 0.90, b.connect),
		{"  bytes allocated by it", 0.50, b.allocated(ours), b.allocated(theirs), inBytes},
		b.row("connect + request + close", 0.97, func(s side) measure { return b.requests(s, 1, plain) }),
		b.row("  from 32 clients at once", 0.95, func(s side) measure { return b.requests(s, 32, plain) }),
		b.row("round trip of 64 bytes", 1.02, b.roundTrip),
	}
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		rows = append(rows, b.row(fmt.Sprintf("write and read 64 MiB by %d KiB", size>>10), 1.02,
			func(s side) measure { return b.throughput(s, size) }))
	}
	return append(rows,
		b.row("io.Copy(conn, file), 64 MiB", 1.00, b.copyFile),
		b.row("io.Copy, unix to TCP, 64 MiB", 1.00, func(s side) measure { return b.copyConn(s, overTCP) }),
		b.row("io.Copy, TCP to unix, 64 MiB", 1.00, func(s side) measure { return b.copyConn(overTCP, s) }),
		b.row("io.Copy, unix to unix, 64 MiB", 0.80, func(s side) measure { return b.copyConn(s, s) }),
		row{"heap of an idle connection, both ends", 1.00, b.idle(ours), b.idle(theirs), inBytes},
		row{"Ready then accept (net: our plain Accept)", 1.20, b.requests(ours, 1, afterReady), b.requests(ours, 1, plain), inTime},
	)
}

func (b *bench) row(work string, target float64, f func(side) measure) row {
	return row{work, target, f(ours), f(theirs), inTime}
}

// path returns a new path for a socket.
func (b *bench) path() string {
	b.names++
	return filepath.Join(b.dir, fmt.Sprint(b.names))
}

// pair returns the two ends of a new connection.
func (b *bench) pair(s side) (near, far net.Conn, err error) {
	l, err := s.listen(b.path())
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = s.dial(l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if far, err = l.Accept(); err != nil {
		near.Close()
	}
	return near, far, err
}

// timed returns how long f took, divided by n.
func timed(n int, f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return float64(time.Since(began)) / float64(n), err
}

// repeat calls f n times.
func repeat(n int, f func() error) error {
	for range n {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// connecting returns a function that connects, accepts and closes.
func (b *bench) connecting(s side) func() error {
	path := b.path()
	l, err := s.listen(path)
	return func() error {
		if err != nil {
			return err
		}
		client, err := s.dial(path)
		if err != nil {
			return err
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			return err
		}
		return server.Close()
	}
}

func (b *bench) connect(s side) measure {
	const n = 200
	f := b.connecting(s)
	return func() (float64, error) {
		return timed(n, func() error { return repeat(n, f) })
	}
}

func (b *bench) allocated(s side) measure {
	const n = 1000
	f := b.connecting(s)
	return func() (float64, error) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := repeat(n, f)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc-before.TotalAlloc) / n, err
	}
}

func plain(l net.Listener) (net.Conn, error) { return l.Accept() }

func afterReady(l net.Listener) (net.Conn, error) {
	if _, ok := <-l.(*unixsock.Listener).Ready(); !ok {
		return nil, net.ErrClosed
	}
	return l.Accept()
}

// requests makes requests of 64 bytes from a number of clients, each on a
// connection of its own, of a server that accepts as told.
func (b *bench) requests(s side, clients int, accept func(net.Listener) (net.Conn, error)) measure {
	const n = 320
	l, err := s.listen(b.path())
	if err != nil {
		return func() (float64, error) { return 0, err }
	}
	go func() {
		for {
			c, err := accept(l)
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				echo(c)
			}()
		}
	}()
	request := func() error {
		c, err := s.dial(l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		return ask(c, make([]byte, 64))
	}
	return func() (float64, error) {
		return timed(n, func() error {
			errs := make(chan error, clients)
			for range clients {
				go func() { errs <- repeat(n/clients, request) }()
			}
			var failed error
			for range clients {
				if err := <-errs; err != nil {
					failed = err
				}
			}
			return failed
		})
	}
}

// echo sends back one message of 64 bytes.
func echo(c net.Conn) error {
	b := make([]byte, 64)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// ask sends b and reads as much.
func ask(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

func (b *bench) roundTrip(s side) measure {
	const n = 1000
	var client, server net.Conn
	return func() (float64, error) {
		if client == nil {
			var err error
			if client, server, err = b.pair(s); err != nil {
				return 0, err
			}
			go func() {
				for echo(server) == nil {
				}
			}()
		}
		message := make([]byte, 64)
		return timed(n, func() error {
			return repeat(n, func() error { return ask(client, message) })
		})
	}
}

const copied = 64 << 20

// swallow reads c to its end and says on the channel what it got.
func (b *bench) swallow(c net.Conn) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer c.Close()
		n := 0
		for {
			m, err := c.Read(b.buffer[:])
			n += m
			if err == nil {
				continue
			}
			if err == io.EOF && n == copied {
				err = nil
			}
			done <- err
			return
		}
	}()
	return done
}

// sent times how long it takes until what f sends into to has come out of from.
func (b *bench) sent(to, from net.Conn, f func() error) (float64, error) {
	done := b.swallow(from)
	return timed(1, func() error {
		err := f()
		to.Close()
		if err != nil {
			return err
		}
		return <-done
	})
}

func feed(c net.Conn, message []byte) error {
	return repeat(copied/len(message), func() error { _, err := c.Write(message); return err })
}

func (b *bench) throughput(s side, size int) measure {
	return func() (float64, error) {
		client, server, err := b.pair(s)
		if err != nil {
			return 0, err
		}
		return b.sent(client, server, func() error { return feed(client, b.message[:size]) })
	}
}

func (b *bench) copyFile(s side) measure {
	return func() (float64, error) {
		if _, err := b.file.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		client, server, err := b.pair(s)
		if err != nil {
			return 0, err
		}
		return b.sent(client, server, func() error { _, err := io.Copy(client, b.file); return err })
	}
}

// copyConn copies from one connection to another, as a proxy does.
func (b *bench) copyConn(from, to side) measure {
	return func() (float64, error) {
		source, client, err := b.pair(from)
		if err != nil {
			return 0, err
		}
		defer source.Close()
		sink, server, err := b.pair(to)
		if err != nil {
			client.Close()
			return 0, err
		}
		return b.sent(sink, server, func() error {
			go func() {
				defer client.Close()
				feed(client, b.message[:64<<10])
			}()
			_, err := io.Copy(sink, source)
			return err
		})
	}
}

// idle measures the heap of connections that wait: ours grow when somebody first
// has to wait for them, or sets a deadline.
func (b *bench) idle(s side) measure {
	const n = 200
	return func() (float64, error) {
		open := make([]net.Conn, 0, 2*n)
		before := inUse()
		err := repeat(n, func() error {
			near, far, err := b.pair(s)
			if err != nil {
				return err
			}
			open = append(open, near, far)
			return errors.Join(near.SetDeadline(time.Time{}), far.SetDeadline(time.Time{}))
		})
		after := inUse()
		for _, c := range open {
			c.Close()
		}
		return float64(after-before) / n, err
	}
}

func inUse() int64 {
	runtime.GC()
	runtime.GC() // the second frees what had a finalizer
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

const crowdWork = "1,000 connects at once, backlog 4"

// crowd tells how 1,000 connects fare at once against a backlog of 4, which net
// gives up on, and what they cost while nobody accepts.
func (b *bench) crowd() (string, error) {
	const n, standing = 1000, time.Second
	l, err := unixsock.Listen(b.path(), unixsock.Backlog(4))
	if err != nil {
		return "", err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	errs := make(chan error, n)
	for range n {
		go func() {
			c, err := unixsock.ConnectContext(ctx, l.Addr().String())
			if err == nil {
				c.Close()
			}
			errs <- err
		}()
	}
	time.Sleep(standing / 4) // by now all stand in line
	used := cpuTime()
	time.Sleep(standing)
	share := float64(cpuTime()-used) / float64(standing)

	began := time.Now()
	var serve sync.WaitGroup
	serve.Go(func() {
		for range n {
			c, err := l.AcceptContext(ctx)
			if err != nil {
				return
			}
			c.Close()
		}
	})
	served := 0
	for range n {
		if err := <-errs; err == nil {
			served++
		}
	}
	serve.Wait()
	return fmt.Sprintf("%-42s %d served in %v; %.2f of a core while they waited (at most: 2s, 0.50)",
		crowdWork, served, time.Since(began).Round(time.Millisecond), share), nil
}
