package main

import (
	"context"
	"io"
	"net"

	"github.com/go-unixsock/unixsock"
)

// requestSize is the length of a request and of its answer.
const requestSize = 64

// requests measures how long a request takes: the client connects, sends,
// receives the answer and closes. The server is in this process. The clients are
// goroutines of another process, as clients of servers are.
func (b *bench) requests(p pkg, clients int, loop serverLoop) setup {
	const n = 400
	return func() (sampler, func(), error) {
		path := b.path()
		l, err := p.listen(path)
		if err != nil {
			return nil, nil, err
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			// If the loop ends early, clients fail instead of waiting.
			defer l.Close()
			loop(ctx, l)
		}()
		stop := func() {
			cancel()
			l.Close()
		}
		o := order{Package: p.name, Path: path, Clients: clients, Requests: n}
		return func() (float64, error) { return b.client.measure(o) }, stop, nil
	}
}

// A serverLoop accepts connections and answers them until ctx is done or l is
// closed.
type serverLoop func(ctx context.Context, l net.Listener)

// acceptLoop is the plain loop, which most servers have.
func acceptLoop(_ context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go answer(c)
	}
}

// readyLoop waits for the listener's readiness in a select, then accepts.
func readyLoop(ctx context.Context, l net.Listener) {
	listener := l.(*unixsock.Listener)
	for {
		select {
		case _, ok := <-listener.Ready():
			if !ok {
				return
			}
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go answer(c)
		case <-ctx.Done():
			return
		}
	}
}

// acceptEvtLoop receives accepted connections in a select.
func acceptEvtLoop(ctx context.Context, l net.Listener) {
	listener := l.(*unixsock.Listener)
	for {
		select {
		case a, ok := <-listener.AcceptEvt(ctx):
			if !ok || a.Err != nil {
				return
			}
			go answer(a.Conn)
		case <-ctx.Done():
			return
		}
	}
}

// answer answers the one request of a connection.
func answer(c net.Conn) {
	defer c.Close()
	echo(c, make([]byte, requestSize))
}

// echo receives a message as long as b and sends it back.
func echo(c net.Conn, b []byte) error {
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	_, err := c.Write(b)
	return err
}

// ask sends b and receives an answer of the same length.
func ask(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}
