//go:build !js && !wasip1

// Command restart is a server that replaces itself on SIGHUP without losing a client: its
// successor inherits the listening socket, and with it the backlog. Each client reads the
// number of the process that serves it. (nc is in Debian's package netcat-openbsd, pkill
// in procps.)
//
//	go build -o restart.out ./examples/restart
//	./restart.out &
//	while nc -U -N restart.sock </dev/null; do sleep 0.2; done    # in another terminal
//	pkill -HUP restart.out                                        # again and again
//	pkill restart.out
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"github.com/go-unixsock/unixsock"
)

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	listener, err := listen("restart.sock")
	if err != nil {
		log.Fatal(err)
	}
	var clients sync.WaitGroup
	defer clients.Wait() // connections in progress finish
	defer listener.Close()
	log.Printf("process %d serves", os.Getpid())
	for {
		select {
		case <-listener.Ready():
			conn, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			clients.Go(func() {
				fmt.Fprintln(conn, os.Getpid())
				conn.Close()
			})
		case s := <-signals:
			if s == syscall.SIGHUP {
				if err := startSuccessor(listener); err != nil {
					log.Print("no successor: ", err)
					continue
				}
				listener.SetUnlinkOnClose(false) // the file is the successor's
			}
			return
		}
	}
}

// listen listens at path, or in a successor adopts descriptor 3 and reports that.
func listen(path string) (*unixsock.Listener, error) {
	if os.Getenv("RESTART_SUCCESSOR") == "" {
		return unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	}
	inherited := os.NewFile(3, "listener")
	defer inherited.Close()
	listener, err := unixsock.FileListener(inherited)
	if err == nil {
		listener.SetUnlinkOnClose(true)
		_, err = os.Stdout.WriteString("ready")
	}
	return listener, err
}

// startSuccessor returns when the new process has adopted the listener.
func startSuccessor(listener *unixsock.Listener) error {
	file, err := listener.File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), "RESTART_SUCCESSOR=1")
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = io.ReadFull(ready, make([]byte, len("ready")))
	return err
}
