// Command echo holds a conversation with itself over a Unix domain socket. It shows the
// two ports of a connection, which close independently.
//
//	go run ./examples/echo
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime"

	"github.com/go-unixsock/unixsock"
)

func main() {
	log.SetFlags(0)
	if !unixsock.Available {
		log.Fatalf("Unix domain sockets are not available on %s", runtime.GOOS)
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "echo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // the socket file is in it
	path := filepath.Join(dir, "socket")

	listener, err := unixsock.Listen(path, unixsock.Backlog(1)) // for one client
	if err != nil {
		return err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- serve(listener) }()

	conn, err := unixsock.Connect(path)
	if err != nil {
		return err
	}
	in, out := conn.Ports()
	defer in.Close()
	defer out.Close()
	fmt.Println("client: connected")
	lines := bufio.NewScanner(in)
	for _, word := range []string{"hello", "world"} {
		fmt.Fprintln(out, word)
		if !lines.Scan() {
			return errors.Join(errors.New("no echo"), lines.Err())
		}
		fmt.Printf("client: reads %q\n", lines.Text())
	}

	fmt.Println("client: closes its output port")
	if err := out.Close(); err != nil {
		return err
	}
	rest, err := io.ReadAll(in) // the input port stays open until the server's EOF
	if err != nil {
		return err
	}
	fmt.Printf("client: reads %q, then EOF\n", rest)
	return <-served
}

// serve accepts one client and sends its lines back. At the end of its input it sends the
// number of lines.
func serve(listener *unixsock.Listener) error {
	conn, err := listener.AcceptContext(context.Background())
	if err != nil {
		return err
	}
	in, out := conn.Ports()
	defer in.Close()
	defer out.Close()
	lines := bufio.NewScanner(in)
	n := 0
	for ; lines.Scan(); n++ {
		fmt.Printf("server: reads %q, echoes it\n", lines.Text())
		fmt.Fprintln(out, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return err
	}
	fmt.Println("server: reads EOF, its output port is still open")
	_, err = fmt.Fprintf(out, "%d lines\n", n)
	return err
}
