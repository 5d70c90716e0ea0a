//go:build !js && !wasip1

// Command prefork is a server of several processes: a parent that listens, and workers that
// inherit the socket and accept. On SIGHUP the parent replaces its workers, and on SIGTERM or
// Ctrl-C it stops, in both cases without losing a client. The program is its own client, too.
//
//	go build -o prefork.out ./examples/prefork
//	./prefork.out serve prefork.sock & server=$!; sleep 1
//	./prefork.out client prefork.sock & client=$!; sleep 1
//	kill -HUP $server; sleep 1; kill -HUP $server; sleep 1
//	kill $client; wait $client  # it has counted 0 failures
//	kill $server; wait $server; rm prefork.out
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	signals := make(chan os.Signal, 2) // a worker ignores them: its parent tells it when to end
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2], signals)
	case len(os.Args) == 3 && os.Args[1] == "client":
		client(os.Args[2], signals)
	case len(os.Args) == 2 && os.Args[1] == "worker":
		err = work()
	default:
		err = errors.New("usage: prefork serve PATH, or prefork client PATH")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// serve is the parent. It accepts nothing until it stops.
func serve(path string, signals <-chan os.Signal) error {
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
	if err != nil {
		return err
	}
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	var workers sync.WaitGroup
	defer workers.Wait()
	start := func() context.CancelFunc {
		ctx, stop := context.WithCancel(context.Background())
		for range 3 {
			workers.Go(func() { keep(ctx, socket) })
		}
		return stop
	}
	stop := start()
	for <-signals == syscall.SIGHUP {
		old := stop
		stop = start()
		old()
	}
	stop()
	// The socket is the parent's: its Drain refuses new clients. It serves the pending ones itself.
	if err := listener.Drain(); err != nil {
		log.Print(err) // the socket file could not be removed; the drain proceeds
	}
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			workers.Go(func() { answer(conn) })
		case errors.Is(err, net.ErrClosed):
			return nil // the listener has drained
		default:
			log.Print(err) // out of descriptors, for example: the client stays pending
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// keep keeps a worker running until ctx is done. The worker reads EOF then, and also if the
// parent ends.
func keep(ctx context.Context, socket *os.File) {
	for ctx.Err() == nil {
		cmd := exec.Command(os.Args[0], "worker") // the path may now hold a new version
		cmd.ExtraFiles = []*os.File{socket}       // descriptor 3 there
		cmd.Stderr = os.Stderr
		input, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			release := context.AfterFunc(ctx, func() { input.Close() })
			err = cmd.Wait()
			release()
		}
		if err != nil {
			log.Print("worker: ", err)
			time.Sleep(time.Second)
		}
	}
}

// work is a worker. It shares the backlog with the others, so another one may be first to
// accept a client that Ready has reported. Its Drain leaves the socket to the others, because
// a listener of FileListener does not own it.
func work() error {
	socket := os.NewFile(3, "socket")
	listener, err := unixsock.FileListener(socket)
	socket.Close()
	if err != nil {
		return err
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		listener.Drain()
	}()
	var clients sync.WaitGroup
	defer clients.Wait()
	for range listener.Ready() { // until the listener has drained
		conn, err := listener.TryAccept()
		timeout, ok := err.(net.Error)
		switch {
		case err == nil:
			clients.Go(func() { answer(conn) })
		case ok && timeout.Timeout(), errors.Is(err, net.ErrClosed):
			// Another worker was first.
		default:
			log.Print(err) // out of descriptors, for example: the client stays pending
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

func answer(conn io.WriteCloser) {
	fmt.Fprintf(conn, "process %d", os.Getpid())
	conn.Close()
}

// client connects again and again until a signal ends it.
func client(path string, signals <-chan os.Signal) {
	processes, answers, failures := map[string]bool{}, 0, 0
	for ticker := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ticker.C:
			answer, err := request(path)
			if err != nil {
				log.Print(err)
				failures++
				continue
			}
			processes[answer] = true
			answers++
		case <-signals:
			log.Printf("%d answers of %d processes, %d failures", answers, len(processes), failures)
			return
		}
	}
}

func request(path string) (answer string, err error) {
	conn, err := unixsock.Connect(path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	if err == nil && len(b) == 0 {
		err = errors.New("disconnected without an answer")
	}
	return string(b), err
}
