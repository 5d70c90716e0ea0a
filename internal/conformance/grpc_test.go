package conformance

import (
	"bytes"
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

// echoServer is a gRPC service that returns what it is sent.
type echoServer struct {
	pb.UnimplementedTestServiceServer
	level  chan credentials.SecurityLevel // reported by EmptyCall
	waited chan error                     // how HalfDuplexCall's context ended
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

// HalfDuplexCall waits for its client to go away.
func (s *echoServer) HalfDuplexCall(stream pb.TestService_HalfDuplexCallServer) error {
	if err := stream.Send(new(pb.StreamingOutputCallResponse)); err != nil {
		return err
	}
	<-stream.Context().Done()
	s.waited <- stream.Context().Err()
	return nil
}

// securityLevel returns what gRPC thinks of a connection.
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
			t.Errorf("Serve returned %v", err)
		}
	})
}

// dialGRPC returns a client with local credentials.
func dialGRPC(t *testing.T, target string, opts ...grpc.DialOption) pb.TestServiceClient {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(local.NewCredentials()))
	cc, err := grpc.NewClient(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return pb.NewTestServiceClient(cc)
}

// eachGRPC runs a test with servers and clients over each sort of network.
func eachGRPC(t *testing.T, test func(t *testing.T, client pb.TestServiceClient, s *echoServer)) {
	eachNetwork(t, func(t *testing.T, n network) {
		s := new(echoServer)
		serveGRPC(t, n.listener, s)
		test(t, dialGRPC(t, "passthrough:///any", grpc.WithContextDialer(
			func(ctx context.Context, _ string) (net.Conn, error) { return n.dialContext(ctx) })), s)
	})
}

func timeLimit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPCCalls(t *testing.T) {
	data := noise(1 << 20)
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, _ *echoServer) {
		ctx := timeLimit(t)
		var wg sync.WaitGroup
		defer wg.Wait()
		for i := range 8 {
			wg.Go(func() {
				body := data[i:]
				out, err := client.UnaryCall(ctx, &pb.SimpleRequest{Payload: &pb.Payload{Body: body}})
				if err != nil || !bytes.Equal(out.GetPayload().GetBody(), body) {
					t.Errorf("%d bytes came back of %d, or others: %v", len(out.GetPayload().GetBody()), len(body), err)
				}
			})
		}
	})
}

func TestGRPCStreams(t *testing.T) {
	data := noise(200)
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, _ *echoServer) {
		stream, err := client.FullDuplexCall(timeLimit(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			body := data[:i]
			if err := stream.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: body}}); err != nil {
				t.Fatal(err)
			}
			out, err := stream.Recv()
			if err != nil || !bytes.Equal(out.GetPayload().GetBody(), body) {
				t.Fatalf("message %d came back as another: %v", i, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("the end of the stream is %v, want EOF", err)
		}
	})
}

// A server learns that a client has given up a stream.
func TestGRPCCancels(t *testing.T) {
	eachGRPC(t, func(t *testing.T, client pb.TestServiceClient, s *echoServer) {
		ctx, cancel := context.WithCancel(timeLimit(t))
		defer cancel()
		stream, err := client.HalfDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("the client's stream ended with %v", err)
		}
		if err := <-s.waited; err != context.Canceled {
			t.Errorf("the server's stream ended with %v", err)
		}
	})
}

// Local credentials trust a unix socket by its address, and so either end must
// have one that says "unix".
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
				t.Fatal(err)
			}
			if got := securityLevel(p.AuthInfo); got != credentials.PrivacyAndIntegrity {
				t.Errorf("for the client the connection is %v", got)
			}
			if got := <-s.level; got != credentials.PrivacyAndIntegrity {
				t.Errorf("for the server the connection is %v", got)
			}
		})
	}
}

// gRPC's own client connects to the Listener, by its own notation of addresses.
func TestGRPCsOwnDialer(t *testing.T) {
	test := func(t *testing.T, path, target string) {
		s := new(echoServer)
		serveGRPC(t, listen(t, path), s)
		if _, err := dialGRPC(t, target).EmptyCall(timeLimit(t), new(pb.Empty)); err != nil {
			t.Fatal(err)
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
