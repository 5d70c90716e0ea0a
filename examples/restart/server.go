//go:build !js && !wasip1

package main

import (
	"errors"
	"fmt"
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

// serve answers clients until a signal stops or replaces this process. Both processes accept
// until the old one knows that its successor is ready, so the backlog is always served.
func serve(path string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, os.Interrupt)
	listener, err := listen(path)
	if err != nil {
		return err
	}
	go func() {
		for <-signals == syscall.SIGHUP {
			if err := startSuccessor(listener); err == nil {
				listener.SetUnlinkOnClose(false) // the file is the successor's
				break
			}
			log.Print("no successor: ", err)
		}
		listener.Drain() // ends the loop below, without losing a client
	}()
	log.Printf("process %d serves", os.Getpid())
	var clients sync.WaitGroup
	defer clients.Wait() // connections in progress finish
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			clients.Go(func() { answer(conn) })
		case errors.Is(err, net.ErrClosed):
			return listener.Close() // returns when the file has been removed
		default: // out of descriptors, for example
			log.Print(err)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// listen returns a new listener, or in a successor the inherited one.
func listen(path string) (*unixsock.Listener, error) {
	if os.Getenv("RESTART_SUCCESSOR") == "" {
		return unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	}
	socket, ready := os.NewFile(3, "socket"), os.NewFile(4, "ready")
	defer socket.Close()
	defer ready.Close()
	listener, err := unixsock.FileListener(socket)
	if err == nil {
		listener.SetUnlinkOnClose(true)
		_, err = ready.WriteString("ready")
	}
	return listener, err
}

// startSuccessor returns when the new process has adopted the listener.
func startSuccessor(listener *unixsock.Listener) error {
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	ready, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(os.Args[0], os.Args[1:]...) // the path may now hold a new version
	cmd.Env = append(os.Environ(), "RESTART_SUCCESSOR=1")
	cmd.ExtraFiles = []*os.File{socket, report} // descriptors 3 and 4 there
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Start()
	report.Close() // so that the end of the successor is EOF here
	if err != nil {
		return err
	}
	ready.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err = ready.Read(make([]byte, 1)); err != nil {
		cmd.Process.Kill()
		err = fmt.Errorf("%w, %v", err, cmd.Wait())
	}
	return err
}
