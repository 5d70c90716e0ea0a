package conformance

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/local"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// echoServer is a gRPC service that returns what it receives.
type echoServer struct {
	pb.UnimplementedTestServiceServer
	level  chan credentials.SecurityLevel // of the connection, sent by EmptyCall
	waited chan error                     // of the context, sent by HalfDuplexCall
}

func (s *echoServer) EmptyCall(ctx context.Context, in *pb.Empty) (*pb.Empty, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("no peer")
	}
	s.level <- securityLevel(p.AuthInfo)
	return in, nil
}

func (s *echoServer) UnaryCall(_ context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	return &pb.SimpleResponse{Payload: in.Payload}, nil
}

func (s *echoServer) FullDuplexCall(stream pb.TestService_FullDuplexCallServer) error {
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.StreamingOutputCallResponse{Payload: in.Payload}); err != nil {
			return err
		}
	}
}

// HalfDuplexCall waits until the client cancels the stream.
func (s *echoServer) HalfDuplexCall(stream pb.TestService_HalfDuplexCallServer) error {
	if err := stream.Send(new(pb.StreamingOutputCallResponse)); err != nil {
		return err
	}
	<-stream.Context().Done()
	s.waited <- stream.Context().Err()
	return nil
}

// securityLevel returns the security level that gRPC assigns to a connection.
func securityLevel(info credentials.AuthInfo) credentials.SecurityLevel {
	if i, ok := info.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	}); ok {
		return i.GetCommonAuthInfo().SecurityLevel
	}
	return credentials.InvalidSecurityLevel
}

// serveGRPC serves s on l, with local credentials, until the end of the test.
func serveGRPC(t *testing.T, l net.Listener, s *echoServer) {
	t.Helper()
	s.level = make(chan credentials.SecurityLevel, 1)
	s.waited = make(chan error, 1)
	server := grpc.NewServer(grpc.Creds(local.NewCredentials()))
	pb.RegisterTestServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.GracefulStop()
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v, want nil after GracefulStop", err)
		}
	})
}

// dialGRPC returns a client with local credentials.
func dialGRPC(t *testing.T, target string, opts ...grpc.DialOption) pb.TestServiceClient {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(local.NewCredentials()))
	cc, err := grpc.NewClient(target, opts...)
	if err != nil {
		t.Fatalf("grpc.NewClient: %v", err)
	}
	t.Cleanup(func() { cc.Close() })
	return pb.NewTestServiceClient(cc)
}

// eachGRPC runs a test with a server and a client over each network.
func eachGRPC(t *testing.T, test func(t *testing.T, client pb.TestServiceClient, s *echoServer)) {
	eachNetwork(t, func(t *testing.T, n network) {
		s := new(echoServer)
		serveGRPC(t, n.listener, s)
		test(t, dialGRPC(t, "passthrough:///any", grpc.WithContextDialer(
			func(ctx context.Context, _ string) (net.Conn, error) { return n.dialContext(ctx) })), s)
	})
}

// timeLimit returns a context that ends a test that hangs.
func timeLimit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPCCallsReturnTheirData(t *testing.T) {
	data := noise(1 << 20)
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, _ *echoServer) {
		ctx := timeLimit(t)
		var wg sync.WaitGroup
		defer wg.Wait()
		for i := range 8 {
			wg.Go(func() {
				body := data[i:]
				out, err := client.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: body}})
				checkEcho(t, "UnaryCall", out.GetPayload().GetBody(), body, err)
			})
		}
	})
}

func TestGRPCStreamsReturnTheirMessages(t *testing.T) {
	data := noise(200)
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, _ *echoServer) {
		stream, err := client.FullDuplexCall(timeLimit(t))
		if err != nil {
			t.Fatalf("FullDuplexCall: %v", err)
		}
		for i := range data {
			body := data[:i]
			if err := stream.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: body}}); err != nil {
				t.Fatalf("Send of message %d: %v", i, err)
			}
			out, err := stream.Recv()
			if err != nil {
				t.Fatalf("Recv of message %d: %v", i, err)
			}
			checkEcho(t, "stream message", out.GetPayload().GetBody(), body, nil)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatalf("CloseSend: %v", err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("Recv after CloseSend: got %v, want EOF", err)
		}
	})
}

func TestGRPCServerSeesCancelledStream(t *testing.T) {
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, s *echoServer) {
		ctx, cancel := context.WithCancel(timeLimit(t))
		defer cancel()
		stream, err := client.HalfDuplexCall(ctx)
		if err != nil {
			t.Fatalf("HalfDuplexCall: %v", err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("first Recv: %v", err)
		}
		cancel()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("Recv of the client after cancel: got %v, want code Canceled", err)
		}
		select {
		case err := <-s.waited:
			if err != context.Canceled {
				t.Errorf("context of the server's stream after the client's cancel: got %v, want Canceled", err)
			}
		case <-timeLimit(t).Done():
			t.Error("context of the server's stream after the client's cancel: not done, want Canceled")
		}
	})
}

// Local credentials trust a connection whose address has the network "unix", at either end.
func TestGRPCTrustsUnixAddresses(t *testing.T) {
	paths := map[string]func(testing.TB) string{"path": socketPath, "abstract": abstractName}
	for name, makePath := range paths {
		t.Run(name, func(t *testing.T) {
			path := makePath(t)
			s := new(echoServer)
			serveGRPC(t, listen(t, path), s)
			client := dialGRPC(t, "passthrough:///any", grpc.WithContextDialer(
				func(ctx context.Context, _ string) (net.Conn, error) { return unixsock.ConnectContext(ctx, path) }))
			var p peer.Peer
			if _, err := client.EmptyCall(timeLimit(t), new(pb.Empty), grpc.Peer(&p)); err != nil {
				t.Fatalf("EmptyCall: %v", err)
			}
			const want = credentials.PrivacyAndIntegrity
			if got := securityLevel(p.AuthInfo); got != want {
				t.Errorf("security level at the client: got %v, want %v", got, want)
			}
			if got := <-s.level; got != want {
				t.Errorf("security level at the server: got %v, want %v", got, want)
			}
		})
	}
}

// The addresses are in gRPC's own notation, unix:// and unix-abstract:.
func TestGRPCsOwnDialerConnects(t *testing.T) {
	test := func(t *testing.T, path, target string) {
		s := new(echoServer)
		serveGRPC(t, listen(t, path), s)
		if _, err := dialGRPC(t, target).EmptyCall(timeLimit(t), new(pb.Empty)); err != nil {
			t.Fatalf("EmptyCall with target %q: %v", target, err)
		}
	}
	t.Run("path", func(t *testing.T) {
		path := socketPath(t)
		test(t, path, "unix://"+path)
	})
	t.Run("abstract", func(t *testing.T) {
		path := plainName(t)
		test(t, path, "unix-abstract:"+path[1:])
	})
}
