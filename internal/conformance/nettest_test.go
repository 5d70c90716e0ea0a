package conformance

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"golang.org/x/net/nettest"
)

// connPair returns two ends and an error in the form that nettest.MakePipe requires.
func connPair[C net.Conn](c1, c2 C, err error) (net.Conn, net.Conn, func(), error) {
	if err != nil {
		return nil, nil, nil, err
	}
	return c1, c2, func() { c1.Close(); c2.Close() }, nil
}

// meet calls dial and accept concurrently, and returns the two ends of the connection.
func meet[C net.Conn](dial, accept func() (C, error)) (C, C, error) {
	var (
		wg        sync.WaitGroup
		c1, c2    C
		err, fail error
	)
	wg.Go(func() { c2, fail = accept() })
	c1, err = dial()
	wg.Wait()
	if err == nil {
		err = fail
	}
	return c1, c2, err
}

// overListener makes pipes with Connect and a listener.
func overListener(l *unixsock.Listener) nettest.MakePipe {
	return func() (net.Conn, net.Conn, func(), error) {
		return connPair(meet(
			func() (*unixsock.Conn, error) { return unixsock.Connect(l.Addr().String()) },
			func() (*unixsock.Conn, error) { return l.AcceptContext(context.Background()) }))
	}
}

func TestPathIsNetConn(t *testing.T) {
	nettest.TestConn(t, overListener(listen(t, socketPath(t))))
}

func TestLongestPathIsNetConn(t *testing.T) {
	nettest.TestConn(t, overListener(listen(t, longestPath(t))))
}

func TestAbstractNameIsNetConn(t *testing.T) {
	nettest.TestConn(t, overListener(listen(t, abstractName(t))))
}

func TestAcceptEvtIsNetConn(t *testing.T) {
	l := listen(t, socketPath(t))
	evt := l.AcceptEvt(t.Context())
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		return connPair(meet(
			func() (*unixsock.Conn, error) { return unixsock.Connect(l.Addr().String()) },
			func() (*unixsock.Conn, error) {
				a, ok := <-evt
				if !ok {
					return nil, net.ErrClosed
				}
				return a.Conn, a.Err
			}))
	})
}

// With Ready in use, the watcher waits in the poller, and wakes Accept.
func TestWatchedListenerIsNetConn(t *testing.T) {
	l := listen(t, socketPath(t))
	l.Ready()
	nettest.TestConn(t, overListener(l))
}

func TestTCPUnitIsNetConn(t *testing.T) {
	unit := unixsock.NewTCPUnit(socketPath(t))
	l, err := unit.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	defer l.Close()
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		return connPair(meet(
			func() (net.Conn, error) { return unit.Dial("tcp", "localhost:1") },
			l.Accept))
	})
}

func TestPairIsNetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		return connPair(unixsock.Pair())
	})
}

// readopt closes c and returns a Conn that has adopted a copy of its descriptor.
func readopt(c *unixsock.Conn) (*unixsock.Conn, error) {
	defer c.Close()
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unixsock.FileConn(f)
}

func TestAdoptedConnIsNetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c1, c2, err := unixsock.Pair()
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = readopt(c1); err != nil {
			return nil, nil, nil, err
		}
		c2, err = readopt(c2)
		return connPair(c1, c2, err)
	})
}

func TestAdoptedListenerIsNetConn(t *testing.T) {
	first := listen(t, socketPath(t))
	f, err := first.File()
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	l, err := unixsock.FileListener(f)
	f.Close()
	first.Close()
	if err != nil {
		t.Fatalf("FileListener: %v", err)
	}
	defer l.Close()
	nettest.TestConn(t, overListener(l))
}

// One end is a *net.UnixConn from net.Listen, the other end is from Connect.
func TestConnToNetIsNetConn(t *testing.T) {
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	defer l.Close()
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		return connPair(meet(
			func() (net.Conn, error) { return unixsock.Connect(l.Addr().String()) },
			l.Accept))
	})
}

// The two ports together do what a Conn does, Close included.
func TestPortsAreNetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c1, c2, err := unixsock.Pair()
		if err != nil {
			return nil, nil, nil, err
		}
		return connPair(newPorts(c1), newPorts(c2), nil)
	})
}

// ports is a net.Conn made of two ports. Only its addresses are those of the Conn.
type ports struct {
	net.Conn
	in  *unixsock.InputPort
	out *unixsock.OutputPort
}

func newPorts(c *unixsock.Conn) *ports {
	in, out := c.Ports()
	return &ports{c, in, out}
}

func (p *ports) Read(b []byte) (int, error)         { return p.in.Read(b) }
func (p *ports) Write(b []byte) (int, error)        { return p.out.Write(b) }
func (p *ports) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *ports) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }

func (p *ports) SetDeadline(t time.Time) error {
	return errors.Join(p.in.SetReadDeadline(t), p.out.SetWriteDeadline(t))
}

func (p *ports) Close() error {
	return errors.Join(p.in.Close(), p.out.Close())
}
