//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-unixsock/unixsock"
)

func ExampleConnect() {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	_, err = unixsock.Connect(path)
	fmt.Println("no file:", errors.Is(err, fs.ErrNotExist))

	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	conn, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println("connected:", conn.RemoteAddr().String() == path)

	// Output:
	// no file: true
	// connected: true
}

// A listener's Ready is one case among others of a select. It accepts nothing:
// the client waits until Accept takes it.
func ExampleListener_Ready() {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()

	// With a default, the select is exact: Connect has returned, so the client
	// waits; Accept has returned, so it waits no more.
	poll := func() {
		select {
		case l := <-listener.Ready():
			fmt.Println("ready, the listener itself:", l == listener)
		default:
			fmt.Println("nobody waits")
		}
	}
	poll()
	client, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	poll()
	poll()
	conn, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	poll()

	// Without one, it waits for whatever comes first.
	select {
	case <-listener.Ready():
		fmt.Println("ready")
	case <-time.After(time.Millisecond):
		fmt.Println("time is up")
	}

	// Output:
	// nobody waits
	// ready, the listener itself: true
	// ready, the listener itself: true
	// nobody waits
	// time is up
}

// AcceptEvt's context is the custodian of what it delivers: once it is done,
// the channel and the connections are closed.
func ExampleListener_AcceptEvt() {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	client, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	accepted := <-listener.AcceptEvt(ctx)
	if accepted.Err != nil {
		log.Fatal(accepted.Err)
	}
	fmt.Fprint(accepted.Conn, "welcome")
	cancel()
	_, open := <-listener.AcceptEvt(ctx)
	fmt.Println("event open:", open)
	words, err := io.ReadAll(client) // up to the EOF of the close
	fmt.Printf("client reads %q, %v\n", words, err)

	// Output:
	// event open: false
	// client reads "welcome", <nil>
}

// The ports close apart: after the output, the input still reads.
func ExampleConn_Ports() {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")

	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.AcceptContext(context.Background())
		if err != nil {
			return
		}
		defer conn.Close()
		question, err := io.ReadAll(conn) // up to the EOF of the half-close
		if err != nil {
			return
		}
		fmt.Fprintf(conn, "you said %q", question)
	}()

	conn, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	in, out := conn.Ports()
	defer in.Close()
	fmt.Fprint(out, "how are you?")
	out.Close()
	answer, err := io.ReadAll(in)
	fmt.Println(string(answer), err)

	// Output:
	// you said "how are you?" <nil>
}

// A TCPUnit lets code written against TCP talk over a unix domain socket.
func ExampleTCPUnit() {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	unit := unixsock.NewTCPUnit(filepath.Join(dir, "socket"))
	listener, err := unit.Listen("tcp", "localhost:80")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s", r.RemoteAddr)
	}))

	client := http.Client{Transport: &http.Transport{DialContext: unit.DialContext}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://localhost/")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Println(string(body), err)

	// Output:
	// hello, 127.0.0.1:0 <nil>
}

func ExampleCheckPath() {
	for _, path := range []string{"/run/example.sock", "", "a\x00b", strings.Repeat("/long", 30)} {
		err := unixsock.CheckPath(path) // which says what is wrong, and what the limit is here
		fmt.Println(err == nil, errors.Is(err, unixsock.ErrInvalidPath))
	}

	// Output:
	// true false
	// false true
	// false true
	// false true
}
