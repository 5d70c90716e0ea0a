// Command racket is a server and a client that exchange lines over a Unix domain socket.
// Its peer is echo.rkt, a Racket program that takes the same arguments. Either side may be
// in Go or in Racket (Debian's package racket), each in a terminal:
//
//	racket examples/racket/echo.rkt serve /tmp/echo
//	go run ./examples/racket connect /tmp/echo hello world
//
//	go run ./examples/racket serve '\x00echo'
//	racket examples/racket/echo.rkt connect '\x00echo' hello world
//
// The path is the inside of a string literal, so '\x00echo' is an abstract name.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"strconv"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	if err := run(os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: racket serve PATH, or racket connect PATH WORDS")
	}
	path, err := strconv.Unquote(`"` + args[1] + `"`)
	if err != nil {
		return fmt.Errorf("path %q: %w", args[1], err)
	}
	switch {
	case args[0] == "serve" && len(args) == 2:
		return serve(path)
	case args[0] == "connect":
		return connect(path, args[2:])
	}
	return run(nil)
}

// serve serves one client.
func serve(path string) error {
	listener, err := unixsock.Listen(path, unixsock.Backlog(1), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	if err != nil {
		return err
	}
	defer listener.Close()
	log.Print("go: listening")
	<-listener.Ready() // (sync listener) in Racket
	conn, err := listener.AcceptContext(context.Background())
	if err != nil {
		return err
	}
	in, out := conn.Ports()
	defer in.Close()
	defer out.Close()
	lines, count := bufio.NewScanner(in), 0
	for ; lines.Scan(); count++ {
		fmt.Fprintf(out, "go echoes %s\n", lines.Text())
	}
	fmt.Fprintf(out, "%d lines\n", count)
	return lines.Err()
}

func connect(path string, words []string) error {
	conn, err := unixsock.Connect(path)
	if err != nil {
		return err
	}
	in, out := conn.Ports()
	defer in.Close()
	for _, word := range words {
		fmt.Fprintln(out, word)
	}
	out.Close() // the server reads EOF; its answer can still be read
	_, err = io.Copy(os.Stdout, in)
	return err
}
