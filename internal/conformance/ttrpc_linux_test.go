package conformance

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/go-unixsock/unixsock"
	pb "google.golang.org/grpc/interop/grpc_testing"
)

// sameUser is a handshake of ttrpc that admits the user of this process.
type sameUser struct{}

func (sameUser) Handshake(_ context.Context, conn net.Conn) (net.Conn, any, error) {
	inner := conn
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // of a TCPUnit
		inner = wrapped.NetConn()
	}
	c, ok := inner.(*unixsock.Conn)
	if !ok {
		return nil, nil, errors.New("not a connection of unixsock")
	}
	cred, err := c.PeerCred()
	if err == nil && cred.UID != os.Getuid() {
		err = os.ErrPermission
	}
	return conn, cred, err
}

// ttrpcsOwn is ttrpc's handshake for the same purpose, which insists on a *net.UnixConn.
type ttrpcsOwn struct{}

func (ttrpcsOwn) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	file, err := conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, nil, err
	}
	conn.Close()
	defer file.Close()
	if conn, err = net.FileConn(file); err != nil {
		return nil, nil, err
	}
	return ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
}

func TestTTRPCCallsReturnTheirData(t *testing.T) {
	data := noise(1 << 20)
	for name, handshaker := range map[string]ttrpc.Handshaker{"PeerCred": sameUser{}, "net.UnixConn": ttrpcsOwn{}} {
		t.Run(name, func(t *testing.T) {
			eachNetwork(t, func(t *testing.T, n network) { testTTRPC(t, n, handshaker, data) })
		})
	}
}

func testTTRPC(t *testing.T, n network, handshaker ttrpc.Handshaker, data []byte) {
	ctx := timeLimit(t)
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(handshaker))
	if err != nil {
		t.Fatalf("NewServer: %v", err)
	}
	server.RegisterService("Echo", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Echo": func(_ context.Context, unmarshal func(any) error) (any, error) {
			in := new(pb.Payload)
			return in, unmarshal(in)
		},
	}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, n.listener) }()

	conn, err := n.dial()
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	client := ttrpc.NewClient(conn)
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			in, out := &pb.Payload{Body: data[i:]}, new(pb.Payload)
			err := client.Call(ctx, "Echo", "Echo", in, out)
			checkEcho(t, "Call", out.GetBody(), in.GetBody(), err)
		})
	}
	calls.Wait()
	client.Close()
	if err := server.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != ttrpc.ErrServerClosed {
		t.Errorf("Serve: got %v, want ErrServerClosed", err)
	}
}
