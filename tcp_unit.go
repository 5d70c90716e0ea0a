package unixsock

import (
	"context"
	"net"
)

// A TCPUnit serves code written against TCP with one unix domain socket. It
// mirrors make-unix-socket-tcp@, the unit that Racket's web server takes.
type TCPUnit struct {
	path string
	name string // what path stood for when the unit was made; "" if err is set
	err  error  // of the path
	opts []ListenOption
}

// NewTCPUnit returns a unit for the socket at path, which is made absolute now.
// Its backlog is 511, that of Racket's web server, unless opts say otherwise. A
// path that is not valid is an error of the methods.
func NewTCPUnit(path string, opts ...ListenOption) *TCPUnit {
	name, err := resolve(path)
	return &TCPUnit{
		path: path,
		name: name,
		err:  err,
		opts: append([]ListenOption{Backlog(511)}, opts...),
	}
}

// check returns what is wrong with the unit's path; the zero unit's is empty.
func (u *TCPUnit) check() error {
	if u.name == "" && u.err == nil {
		return CheckPath("")
	}
	return u.err
}

// Listen is [Listen] on the unit's path; its arguments are not looked at. The
// listener's address, and those of its connections, look like TCP's. It has the
// methods of a [Listener] besides, by assertion; of these only Accept returns
// connections such as [TCPUnit.DialContext] does, the others plain Conns.
func (u *TCPUnit) Listen(network, address string) (net.Listener, error) {
	if err := u.check(); err != nil {
		return nil, listenError(u.path, err)
	}
	l, err := listen(u.name, u.opts)
	if err != nil {
		return nil, err
	}
	return &tcpListener{l}, nil
}

// Dial is [TCPUnit.DialContext] without a context.
func (u *TCPUnit) Dial(network, address string) (net.Conn, error) {
	return u.DialContext(context.Background(), network, address)
}

// DialContext is [ConnectContext] to the unit's path; network and address are
// not looked at. The connection's addresses look like TCP's, local 127.0.0.1:1
// and remote 127.0.0.1:0. It has the methods of a [Conn] besides, by assertion,
// and NetConn returns that Conn. So it is with the listener's connections.
func (u *TCPUnit) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := u.check(); err != nil {
		return nil, dialError(u.path, err)
	}
	c, err := dial(ctx, u.name)
	if err != nil {
		return nil, err
	}
	return &tcpConn{c}, nil
}

// tcpListener is a Listener that looks like one of TCP.
type tcpListener struct{ *Listener }

func (l *tcpListener) Addr() net.Addr { return tcpAddr(1) }

func (l *tcpListener) Accept() (net.Conn, error) {
	c, err := l.AcceptContext(context.Background())
	if err != nil {
		return nil, err
	}
	return &tcpConn{c}, nil
}

// tcpConn is a Conn that looks like one of TCP.
type tcpConn struct{ *Conn }

func (c *tcpConn) LocalAddr() net.Addr  { return tcpAddr(1) }
func (c *tcpConn) RemoteAddr() net.Addr { return tcpAddr(0) }
func (c *tcpConn) NetConn() net.Conn    { return c.Conn }

// tcpAddr is 127.0.0.1 with a port, as in Racket's tcp-addresses.
func tcpAddr(port int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
}
