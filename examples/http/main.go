// Command http is net/http over a unix domain socket: a server, and a client of
// it, both through a TCPUnit. The server goes on until Ctrl-C. Its socket is for
// its user and group alone, takes the place of one that a crash has left, and is
// removed in the end; each answer says who has asked, by the kernel's word.
//
//	go run ./examples/http                # and in another terminal:
//	curl --unix-socket http.sock http://localhost/hello
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
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	path := flag.String("path", "http.sock", "the socket's `path`")
	flag.Parse()
	if !unixsock.Available {
		log.Fatalf("unix domain sockets are not available on %s", runtime.GOOS)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *path); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, path string) error {
	unit := unixsock.NewTCPUnit(path, unixsock.Mode(0o660), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	listener, err := unit.Listen("tcp", "localhost:80") // the unit has its own idea
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(hello),
		ReadHeaderTimeout: 5 * time.Second,
		ConnContext:       withPeer,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	if err := get(unit, "http://localhost/hello"); err != nil {
		server.Close()
		return err
	}
	fmt.Println("now you, until Ctrl-C:")
	fmt.Printf("  curl --unix-socket %s http://localhost/hello\n", path)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// The requests under way get a moment to end.
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

// withPeer adds to a connection's context who is at its other end. Whatever a
// TCPUnit accepts has the methods of a unixsock.Conn.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	cred, err := conn.(interface{ PeerCred() (unixsock.Cred, error) }).PeerCred()
	if err != nil {
		return context.WithValue(ctx, peerKey{}, err.Error())
	}
	return context.WithValue(ctx, peerKey{}, fmt.Sprintf("process %d of user %d", cred.PID, cred.UID))
}

type peerKey struct{}

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s, from %s\n", r.Method, r.URL.Path, r.Context().Value(peerKey{}))
}

// get asks for url through the unit and prints the answer.
func get(unit *unixsock.TCPUnit, url string) error {
	client := &http.Client{Transport: &http.Transport{DialContext: unit.DialContext}}
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
