package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/go-unixsock/unixsock"
)

// A pkg is a package to measure, with the functions that a program calls.
type pkg struct {
	name   string
	listen func(path string) (net.Listener, error)
	dial   func(address string) (net.Conn, error)
}

var (
	ours = pkg{
		name: "unixsock",
		// Package net's backlog is as long as the system allows, often 4096.
		listen: func(path string) (net.Listener, error) { return unixsock.Listen(path, unixsock.Backlog(4096)) },
		dial:   func(path string) (net.Conn, error) { return unixsock.Connect(path) },
	}
	theirs = pkg{
		name:   "net",
		listen: func(path string) (net.Listener, error) { return net.Listen("unix", path) },
		dial:   func(path string) (net.Conn, error) { return net.Dial("unix", path) },
	}
	// tcp is for the other side of a proxy.
	tcp = pkg{
		name:   "tcp",
		listen: func(string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		dial:   func(address string) (net.Conn, error) { return net.Dial("tcp", address) },
	}
)

// transferSize is how many bytes a sample of the stream rows moves.
const transferSize = 32 << 20

// A bench holds what the rows share.
type bench struct {
	dir    string
	paths  int      // how many paths were handed out
	file   *os.File // transferSize bytes
	target *os.File // the destination of copies
	client *client  // the client process of the rows that have one

	// All sides write from the same memory and read into the same memory:
	// separate buffers would differ in their place in the caches.
	message, buffer []byte
}

func newBench() (*bench, error) {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, message: make([]byte, 1<<20), buffer: make([]byte, 1<<20)}
	if err := b.open(); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) open() (err error) {
	if b.file, err = os.Create(filepath.Join(b.dir, "file")); err != nil {
		return err
	}
	if _, err = b.file.Write(make([]byte, transferSize)); err != nil {
		return err
	}
	if b.target, err = os.Create(filepath.Join(b.dir, "target")); err != nil {
		return err
	}
	b.client, err = startClient()
	return err
}

func (b *bench) close() {
	if b.client != nil {
		b.client.stop()
	}
	b.file.Close()
	b.target.Close()
	os.RemoveAll(b.dir)
}

// path returns a new path for a socket. All paths have the same length, because
// both packages allocate copies of them.
func (b *bench) path() string {
	b.paths++
	return filepath.Join(b.dir, fmt.Sprintf("%02d", b.paths))
}

// A link makes connections that have both ends in this process.
type link struct {
	pkg
	net.Listener
	address string
}

func (b *bench) link(p pkg) (*link, error) {
	l, err := p.listen(b.path())
	if err != nil {
		return nil, err
	}
	return &link{p, l, l.Addr().String()}, nil
}

// pair returns the two ends of a new connection.
func (k *link) pair() (dialed, accepted net.Conn, err error) {
	if dialed, err = k.dial(k.address); err != nil {
		return nil, nil, err
	}
	if accepted, err = k.Accept(); err != nil {
		dialed.Close()
		return nil, nil, err
	}
	return dialed, accepted, nil
}
