// Command select is a server whose loop waits for clients, a ticker and a
// signal in one select. It answers a line with that line in capitals, and stops
// when nobody has come for a while, or at Ctrl-C, without losing a client.
//
//	go run ./examples/select              # and soon, in another terminal:
//	echo hello | nc -U -N select.sock
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	path := flag.String("path", "select.sock", "the socket's `path`")
	idle := flag.Duration("idle", 10*time.Second, "stop when nobody has come for so `long`")
	flag.Parse()
	if !unixsock.Available {
		log.Fatalf("unix domain sockets are not available on %s", runtime.GOOS)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := serve(ctx, *path, *idle); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context, path string, idle time.Duration) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	listener, err := unixsock.Listen(path)
	if err != nil {
		return err
	}
	defer listener.Close()
	log.Printf("listening on %s", listener.Addr())

	ticker := time.NewTicker(max(idle/4, time.Millisecond))
	defer ticker.Stop()
	last, leaving, interrupted := time.Now(), false, ctx.Done()
	// Once its file is gone, no new client finds the socket. Who found it just
	// before is served: the loop goes on until a tick finds nobody waiting.
	leave := func(why string) {
		log.Printf("%s, leaving", why)
		leaving, interrupted = true, nil
		if err := os.Remove(path); err != nil {
			log.Print(err)
		}
		ticker.Reset(100 * time.Millisecond)
	}
	for {
		select {
		case <-listener.Ready():
			conn, err := listener.AcceptContext(context.Background())
			if err != nil { // no descriptor is left, say: the client waits on
				log.Print(err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			last = time.Now()
			clients.Go(func() { answer(conn) })
		case <-ticker.C:
			select {
			case <-listener.Ready(): // a client came together with the tick
				continue
			default:
			}
			switch {
			case leaving:
				return nil
			case time.Since(last) >= idle:
				leave("idle")
			}
		case <-interrupted:
			leave("interrupted")
		}
	}
}

func answer(conn *unixsock.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
		fmt.Fprint(conn, strings.ToUpper(line))
	}
}
