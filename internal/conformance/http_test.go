package conformance

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// testHTTP sends concurrent requests and checks the protocol and the body of each response.
// With HTTP/2, they share one connection.
func testHTTP(t *testing.T, n network, scheme, proto string, server *http.Server, transport *http.Transport) {
	data := noise(1 << 20)
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	server.ConnState = func(c net.Conn, _ http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		conns[c] = true
	}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read of a request's body: %v", err)
		}
		w.Write(body)
	})
	served := make(chan error, 1)
	go func() {
		if scheme == "https" {
			served <- server.ServeTLS(n.listener, "", "")
		} else {
			served <- server.Serve(n.listener)
		}
	}()
	defer func() {
		transport.CloseIdleConnections()
		if err := server.Shutdown(timeLimit(t)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("Serve: got %v, want ErrServerClosed", err)
		}
	}()

	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dialContext(ctx) }
	client := &http.Client{Transport: transport}
	post := func(body []byte) {
		req, err := http.NewRequestWithContext(timeLimit(t), "POST", scheme+"://unix.test/", bytes.NewReader(body))
		if err != nil {
			t.Errorf("NewRequest: %v", err)
			return
		}
		res, err := client.Do(req)
		if err != nil {
			t.Errorf("POST of %d bytes: %v", len(body), err)
			return
		}
		defer res.Body.Close()
		got, err := io.ReadAll(res.Body)
		checkEcho(t, "POST", got, body, err)
		if res.Proto != proto {
			t.Errorf("protocol of the response: got %s, want %s", res.Proto, proto)
		}
	}
	post(data) // opens the connection that the others can share
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { post(data[:i*10_000]) })
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if proto == "HTTP/2.0" && len(conns) != 1 {
		t.Errorf("21 requests: got %d connections, want 1", len(conns))
	}
}

func TestHTTP1RequestsAreAnswered(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		testHTTP(t, n, "http", "HTTP/1.1", new(http.Server), new(http.Transport))
	})
}

func TestUnencryptedHTTP2UsesOneConnection(t *testing.T) {
	eachNetwork(t, func(t *testing.T, n network) {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		testHTTP(t, n, "http", "HTTP/2.0", &http.Server{Protocols: protocols}, &http.Transport{Protocols: protocols})
	})
}

func TestHTTP2OverTLSUsesOneConnection(t *testing.T) {
	serverConfig, clientConfig := tlsConfigs(t)
	eachNetwork(t, func(t *testing.T, n network) {
		testHTTP(t, n, "https", "HTTP/2.0",
			&http.Server{TLSConfig: serverConfig.Clone()},
			&http.Transport{TLSClientConfig: clientConfig.Clone(), ForceAttemptHTTP2: true})
	})
}

// A TCPUnit's methods fit where those of a net.Dialer are expected.
func TestTransportDialsThroughTCPUnit(t *testing.T) {
	unit := unixsock.NewTCPUnit(socketPath(t))
	l, err := unit.Listen("tcp", "localhost:80")
	if err != nil {
		t.Fatalf("TCPUnit.Listen: %v", err)
	}
	remote := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { remote <- r.RemoteAddr })}
	go server.Serve(l)
	defer server.Close()

	transport := &http.Transport{DialContext: unit.DialContext}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	for range 3 {
		res, err := client.Get("http://localhost:80/")
		if err != nil {
			t.Fatalf("GET through a TCPUnit: %v", err)
		}
		res.Body.Close()
		if got, want := <-remote, "127.0.0.1:0"; got != want {
			t.Errorf("RemoteAddr of a request through a TCPUnit: got %q, want %q", got, want)
		}
	}
}
