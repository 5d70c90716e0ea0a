// Command http serves net/http on a Unix domain socket, and is its own first client. The
// kernel reports the user of each client to the server. Only the server's own user and
// group can connect; for a front end of another group, such as nginx, add unixsock.Owner.
// The server replaces the socket that a crash has left. At Ctrl-C or SIGTERM it answers the
// clients that are pending, and stops.
//
//	go build -o http.out ./examples/http
//	./http.out & server=$!; sleep 1
//	curl --unix-socket http.sock http://localhost/hello
//	kill $server; wait $server; rm http.out
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	path := flag.String("path", "http.sock", "the socket's `path`")
	flag.Parse()
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *path); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, path string) error {
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.Mode(0o660),
		unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	if err != nil {
		return err
	}
	var conns sync.WaitGroup
	server := &http.Server{
		Handler:           http.HandlerFunc(hello),
		ReadHeaderTimeout: 5 * time.Second,
		ConnContext:       withPeer,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Done()
			}
		},
	}
	defer server.Close()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	if err := get(path, "http://localhost/hello"); err != nil {
		return err
	}
	fmt.Printf("try: curl --unix-socket %s http://localhost/hello\n", path)
	select {
	case err := <-served: // Serve itself pauses on errors such as EMFILE
		return err
	case <-ctx.Done():
	}
	if err := listener.Drain(); err != nil { // no new client comes in
		log.Print(err) // the socket file could not be removed; the drain proceeds
	}
	server.SetKeepAlivesEnabled(false) // a connection ends with its response
	done := make(chan struct{})
	go func() {
		<-served     // it has accepted the pending clients
		conns.Wait() // Shutdown would drop requests that are read and not yet handled
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
	}
	return nil
}

// withPeer adds the peer's credentials to the context of a connection. The connection is not
// a *unixsock.Conn if something wraps the listener: ServeTLS, netutil.LimitListener, a TCPUnit.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if wrapper, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = wrapper.NetConn()
	}
	peer := "an unknown peer"
	if c, ok := conn.(*unixsock.Conn); ok {
		if cred, err := c.PeerCred(); err == nil {
			peer = fmt.Sprintf("process %d of user %d", cred.PID, cred.UID)
		}
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

type peerKey struct{}

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s, from %s\n", r.Method, r.URL.Path, r.Context().Value(peerKey{}))
}

// get sends a request to the server at path and prints the answer.
func get(path, url string) error {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsock.ConnectContext(ctx, path)
		},
	}}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Printf("GET %s: %s, %s", url, response.Status, body)
	return err
}
