// Command select is a server that waits for clients, a ticker and Ctrl-C in one select. It
// answers a line with the same line in capitals. It stops when no client has come for a
// while, or at Ctrl-C, without losing a client. After kill -9 it can be started again at
// once: it replaces the socket file that was left behind. (nc is in Debian's package
// netcat-openbsd.)
//
//	go build -o select.out ./examples/select
//	./select.out -idle 3s & server=$!; sleep 1
//	echo hello | nc -U -N select.sock
//	wait $server; rm select.out
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	path := flag.String("path", "select.sock", "the socket's `path`")
	idle := flag.Duration("idle", 10*time.Second, "stop when no client has come for this `duration`")
	flag.Parse()
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *path, *idle); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context, path string, idle time.Duration) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
	if err != nil {
		return err
	}
	defer listener.Close()
	log.Printf("listening on %s", listener.Addr())

	ticker, interrupted := time.NewTicker(max(idle/4, time.Millisecond)), ctx.Done()
	for last := time.Now(); ; {
		select {
		case _, ok := <-listener.Ready():
			if !ok {
				return nil // the listener has drained
			}
			accept(listener, &clients)
			last = time.Now()
			continue
		case <-ticker.C:
			if time.Since(last) < idle {
				continue
			}
			log.Print("idle, stopping")
		case <-interrupted:
			interrupted = nil
			log.Print("interrupted, stopping")
		}
		if err := listener.Drain(); err != nil { // no new client comes in
			log.Print(err) // the socket file could not be removed; the drain proceeds
		}
		last = time.Now()
	}
}

// accept serves the next client.
func accept(listener *unixsock.Listener, clients *sync.WaitGroup) {
	conn, err := listener.TryAccept()
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return // another goroutine or process was first
	} else if err != nil {
		log.Print(err)
		time.Sleep(100 * time.Millisecond) // out of descriptors, for example
		return
	}
	clients.Go(func() {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
			fmt.Fprint(conn, strings.ToUpper(line))
		}
	})
}
