// Command activation is a server that inherits its listening sockets and stops when no
// client has come for a while. Later clients wait for the next start. systemd starts it,
// or this program with -start does. (systemd-socket-activate is in Debian's package
// systemd, nc in netcat-openbsd.)
//
//	go build -o activation.out ./examples/activation
//	systemd-socket-activate -l /tmp/one.sock ./activation.out -idle 2s & sleep 1
//	nc -U -N /tmp/one.sock </dev/null; wait
//	./activation.out -start /tmp/many.sock -idle 1s & server=$!; sleep 1
//	nc -U -N /tmp/many.sock </dev/null; sleep 2
//	nc -U -N /tmp/many.sock </dev/null; sleep 2
//	kill $server; rm /tmp/one.sock /tmp/many.sock activation.out
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	start := flag.String("start", "", "listen at `path`, and start this command whenever a client is pending")
	idle := flag.Duration("idle", 10*time.Second, "stop when no client has come for this `duration`")
	flag.Parse()
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	if *start != "" {
		log.Fatal(starter(*start, *idle))
	}
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	count, _ := strconv.Atoi(fds) // 0 if LISTEN_FDS is not set
	if count < 1 || pid != strconv.Itoa(os.Getpid()) {
		log.Fatalf("no sockets for process %d: LISTEN_PID=%s LISTEN_FDS=%s", os.Getpid(), pid, fds)
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	names = append(names, make([]string, count)...) // there may be too few
	var servers sync.WaitGroup
	for i, name := range names[:count] {
		f := os.NewFile(uintptr(3+i), name)
		listener, err := unixsock.FileListener(f)
		f.Close()
		if err != nil {
			log.Fatalf("socket %d, %q: %v", i, name, err)
		}
		servers.Go(func() { serve(listener, name, *idle) })
	}
	servers.Wait()
}

// serve answers clients until none has come for idle. It loses none: a client is answered, or
// stays in the backlog for the next start. Drain leaves the socket, its file and its backlog
// to the process that has passed them, because a listener of FileListener is not the owner.
func serve(listener *unixsock.Listener, name string, idle time.Duration) {
	for n := 1; ; {
		ctx, cancel := context.WithTimeout(context.Background(), idle)
		conn, err := listener.AcceptContext(ctx)
		cancel()
		switch {
		case errors.Is(err, net.ErrClosed): // the listener has drained
			log.Printf("process %d stops serving %q", os.Getpid(), name)
			return
		case errors.Is(err, context.DeadlineExceeded):
			listener.Drain()
			continue
		case err != nil:
			log.Print(err) // out of descriptors, for example: the client stays pending
			time.Sleep(100 * time.Millisecond)
			continue
		}
		conn.SetDeadline(time.Now().Add(time.Second))
		fmt.Fprintf(conn, "client %d of process %d\n", n, os.Getpid())
		conn.Close()
		n++
	}
}

// starter does what systemd does. Ready accepts nothing, so the client stays pending for
// the process that starter starts.
func starter(path string, idle time.Duration) error {
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale(), unixsock.Mode(0o660))
	if err != nil {
		return err
	}
	for range listener.Ready() { // until the listener is closed
		f, err := listener.File()
		if err != nil {
			return err
		}
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -idle "$1"`, os.Args[0], idle.String())
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=started")
		cmd.ExtraFiles = []*os.File{f} // descriptor 3 there
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
		f.Close()
	}
	return nil
}
