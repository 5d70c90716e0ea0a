package unixsock

import (
	"context"
	"net"
)

// A TCPUnit lets code that was written against TCP use one Unix domain socket.
//
// Every client then has the loopback address 127.0.0.1:0. Middleware that trusts, logs or
// limits clients by address treats all of them as one local client. An HTTP server needs
// no TCPUnit: it can serve on the Listener of [Listen].
//
// It mirrors make-unix-socket-tcp@, the unit that Racket's web server takes.
type TCPUnit struct {
	path string // in its absolute form, if err is nil
	err  error  // of the path
	opts []ListenOption
}

// NewTCPUnit returns a unit for the socket at path, whose absolute form it determines at
// once. The default backlog is 511, as in Racket's web server. If path is not valid, the
// unit's methods return the error.
func NewTCPUnit(path string, opts ...ListenOption) *TCPUnit {
	name, err := resolve(path)
	return &TCPUnit{name, err, append([]ListenOption{Backlog(511)}, opts...)}
}

// Listen is [Listen] on the unit's path. It ignores its arguments. The addresses of the
// listener and of its connections look like TCP's. A type assertion gives access to the
// other methods of a [Listener]. Accept returns connections as [TCPUnit.DialContext]
// does; the other methods return plain Conns.
func (u *TCPUnit) Listen(network, address string) (net.Listener, error) {
	if u.err != nil {
		return nil, pathError("listen", u.path, u.err)
	}
	l, err := Listen(u.path, u.opts...)
	if err != nil {
		return nil, err
	}
	return &tcpListener{l}, nil
}

// Dial is [TCPUnit.DialContext] without a context.
func (u *TCPUnit) Dial(network, address string) (net.Conn, error) {
	return u.DialContext(context.Background(), network, address)
}

// DialContext is [ConnectContext] to the unit's path. It ignores network and address. The
// connection's addresses look like TCP's: local 127.0.0.1:1, remote 127.0.0.1:0. A type
// assertion gives access to the other methods of a [Conn], and to NetConn, a method
// that returns the Conn itself as a [net.Conn].
func (u *TCPUnit) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if u.err != nil {
		return nil, pathError("dial", u.path, u.err)
	}
	c, err := ConnectContext(ctx, u.path)
	if err != nil {
		return nil, err
	}
	return &tcpConn{c}, nil
}

// String returns "unix " and the unit's path, in quotes where [Conn.String] would use them.
func (u *TCPUnit) String() string {
	if u == nil {
		return "<nil>"
	}
	return "unix " + printable(u.path)
}

type tcpListener struct{ *Listener }

func (l *tcpListener) Addr() net.Addr { return tcpLocal }

func (l *tcpListener) Accept() (net.Conn, error) {
	c, err := l.AcceptContext(context.Background())
	if err != nil {
		return nil, err
	}
	return &tcpConn{c}, nil
}

type tcpConn struct{ *Conn }

func (c *tcpConn) LocalAddr() net.Addr  { return tcpLocal }
func (c *tcpConn) RemoteAddr() net.Addr { return tcpRemote }
func (c *tcpConn) NetConn() net.Conn    { return c.Conn }

// The addresses of all connections, as in Racket's tcp-addresses.
var (
	tcpLocal  = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	tcpRemote = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 0}
)
