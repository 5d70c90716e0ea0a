package conformance

import (
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"sync"
	"testing"
)

// Echoer is a service of net/rpc.
type Echoer struct{}

// Echo returns its argument.
func (Echoer) Echo(in []byte, out *[]byte) error {
	*out = in
	return nil
}

// testRPC makes concurrent calls over several connections.
func testRPC(t *testing.T, n network, serve func(*rpc.Server, io.ReadWriteCloser), newClient func(io.ReadWriteCloser) *rpc.Client) {
	server := rpc.NewServer()
	if err := server.Register(Echoer{}); err != nil {
		t.Fatalf("Register: %v", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	const clients, calls = 8, 25
	for range clients {
		wg.Go(func() {
			c, err := n.listener.Accept()
			if err != nil {
				t.Errorf("Accept: %v", err)
				return
			}
			serve(server, c)
		})
		wg.Go(func() {
			c, err := n.dial()
			if err != nil {
				t.Errorf("Connect: %v", err)
				return
			}
			client := newClient(c)
			defer client.Close()
			var pending []*rpc.Call
			for i := range calls {
				pending = append(pending, client.Go("Echoer.Echo", noise(i*200), new([]byte), nil))
			}
			for _, call := range pending {
				<-call.Done
				checkEcho(t, "RPC", *call.Reply.(*[]byte), call.Args.([]byte), call.Error)
			}
		})
	}
}

func TestRPCCallsReturnTheirData(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		testRPC(t, n, (*rpc.Server).ServeConn, rpc.NewClient)
	})
}

func TestJSONRPCCallsReturnTheirData(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		testRPC(t, n, func(s *rpc.Server, c io.ReadWriteCloser) { s.ServeCodec(jsonrpc.NewServerCodec(c)) }, jsonrpc.NewClient)
	})
}
