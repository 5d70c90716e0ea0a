//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-unixsock/unixsock"
	"golang.org/x/sys/unix"
)

// newPath returns a path for a socket in a new directory, which remove removes.
func newPath() (path string, remove func()) {
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		log.Fatal(err)
	}
	return filepath.Join(dir, "socket"), func() { os.RemoveAll(dir) }
}

// A server waits for clients, a ticker and a context in one select. It stops without
// losing a client: Drain refuses new ones, and the loop goes on until none is pending.
func Example() {
	path, remove := newPath()
	defer remove()
	ctx, cancel := context.WithCancel(context.Background())

	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	var client sync.WaitGroup
	client.Go(func() {
		conn, err := unixsock.Connect(path)
		if err != nil {
			log.Fatal(err)
		}
		defer conn.Close()
		answer, err := io.ReadAll(conn)
		fmt.Printf("the client reads %q, %v\n", answer, err)
		cancel()
	})
	defer client.Wait()

	ticker, done := time.NewTicker(time.Minute), ctx.Done()
	defer ticker.Stop()
	for {
		select {
		case _, ok := <-listener.Ready(): // a client is pending
			if !ok {
				fmt.Println("the server stops")
				return // the listener has drained
			}
			conn, err := listener.TryAccept()
			if errors.Is(err, syscall.EAGAIN) {
				continue // another goroutine or process was first
			} else if err != nil {
				log.Print(err) // out of descriptors, for example: the client stays pending
				time.Sleep(100 * time.Millisecond)
				continue
			}
			fmt.Fprint(conn, "hello")
			conn.Close()
		case <-ticker.C:
			fmt.Println("another minute")
		case <-done:
			listener.Drain() // no new client comes in; the pending ones are served
			done = nil
		}
	}

	// Output:
	// the client reads "hello", <nil>
	// the server stops
}

// A server in production sets the backlog and the permissions, replaces the file that a
// killed predecessor left, and removes its own.
func ExampleListen() {
	path, remove := newPath()
	defer remove()

	listener, err := unixsock.Listen(path,
		unixsock.Backlog(511),    // clients such as nginx fail while the backlog is full
		unixsock.Mode(0o660),     // the owner and the group may connect
		unixsock.Owner(-1, -1),   // no change; for a front end's group: Owner(-1, gid)
		unixsock.ReplaceStale(),  // never the file of a live server
		unixsock.UnlinkOnClose()) // never the file of another server
	if err != nil {
		log.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Mode())

	_, err = unixsock.Listen(path, unixsock.ReplaceStale())
	fmt.Println("a second server is refused:", err != nil)

	listener.Close()
	_, err = os.Stat(path)
	fmt.Println("the file is gone:", errors.Is(err, fs.ErrNotExist))

	// Output:
	// Srw-rw----
	// a second server is refused: true
	// the file is gone: true
}

func ExampleConnect() {
	path, remove := newPath()
	defer remove()

	_, err := unixsock.Connect(path)
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

// ConnectContext waits while the listener's backlog is full. (On Linux. On macOS and the
// BSDs the kernel refuses the connection.)
func ExampleConnectContext() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(0))
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()

	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			conn, err := unixsock.ConnectContext(ctx, path)
			if err != nil {
				fmt.Println(err)
				return
			}
			conn.Close()
		})
	}
	for range 10 {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		conn.Close()
	}
	clients.Wait()
	fmt.Println("10 clients were served")

	// Output:
	// 10 clients were served
}

// A listener's Ready is one case of a select. It accepts nothing: the connection stays
// pending until TryAccept or another accept takes it.
func ExampleListener_Ready() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()

	// A select with a default that calls Ready is exact.
	poll := func() {
		select {
		case l := <-listener.Ready():
			fmt.Println("ready, the listener itself:", l == listener)
		default:
			fmt.Println("no connection is pending")
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
	conn, err := listener.TryAccept()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	poll()

	// A select without a default waits for the first event.
	select {
	case <-listener.Ready():
		fmt.Println("ready")
	case <-time.After(time.Millisecond):
		fmt.Println("timeout")
	}

	// Output:
	// no connection is pending
	// ready, the listener itself: true
	// ready, the listener itself: true
	// no connection is pending
	// timeout
}

// The context of AcceptEvt is the custodian of the connections that it delivers. A server
// that cancels it stops accepting, and can let the connections in progress finish by
// releasing them first.
func ExampleListener_AcceptEvt() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()

	accepting, stop := context.WithCancel(context.Background())
	defer stop()
	var clients []*unixsock.Conn
	var conns []*unixsock.Conn
	for range 2 {
		client, err := unixsock.Connect(path)
		if err != nil {
			log.Fatal(err)
		}
		defer client.Close()
		accepted := <-listener.AcceptEvt(accepting)
		if accepted.Err != nil {
			log.Fatal(accepted.Err)
		}
		clients, conns = append(clients, client), append(conns, accepted.Conn)
	}
	conns[1].CloseOn(context.Background()) // in progress: it outlives the event
	stop()
	_, open := <-listener.AcceptEvt(accepting)
	fmt.Println("the event is open:", open)

	answer, err := io.ReadAll(clients[0])
	fmt.Printf("client 1 reads %q, %v\n", answer, err)
	fmt.Fprint(conns[1], "done")
	conns[1].Close()
	answer, err = io.ReadAll(clients[1])
	fmt.Printf("client 2 reads %q, %v\n", answer, err)

	// Output:
	// the event is open: false
	// client 1 reads "", <nil>
	// client 2 reads "done", <nil>
}

// The ports close independently: after the output is closed, the input can be read.
func ExampleConn_Ports() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		defer peer.Close()
		question, err := io.ReadAll(peer) // up to the EOF of the half-close
		if err != nil {
			return
		}
		fmt.Fprintf(peer, "you said %q", question)
	}()

	in, out := conn.Ports()
	defer in.Close()
	fmt.Fprint(out, "how are you?")
	out.Close()
	answer, err := io.ReadAll(in)
	fmt.Println(string(answer), err)

	// Output:
	// you said "how are you?" <nil>
}

// A context closes the connection, until another one replaces it.
func ExampleConn_CloseOn() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()

	first, cancelFirst := context.WithCancel(context.Background())
	second, cancelSecond := context.WithCancel(context.Background())
	conn.CloseOn(first)
	conn.CloseOn(second)
	cancelFirst()
	fmt.Fprint(conn, "still open")
	cancelSecond()
	text, err := io.ReadAll(peer) // up to the EOF of the close
	fmt.Printf("%q, %v\n", text, err)

	// Output:
	// "still open", <nil>
}

// The kernel knows the process at the other end. A client cannot lie about it.
func ExampleConn_PeerCred() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	defer peer.Close()

	cred, err := conn.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		cred.UID = os.Getuid() // NetBSD, OpenBSD and DragonFly
	}
	fmt.Println("the peer is this user:", cred.UID == os.Getuid())

	// Output:
	// the peer is this user: true
}

// A server reads the cgroup of a client between two looks at its pidfd. If the client still
// runs at the second one, its PID was its own all the time. The server closes the connection
// when the client's process ends, even if another process has a copy of its descriptor.
func ExampleConn_PeerPIDFD() {
	listener, err := unixsock.Listen("/run/app/app.sock", unixsock.ReplaceStale())
	if err != nil {
		log.Fatal(err)
	}
	conn, err := listener.AcceptContext(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	pidfd, err := conn.PeerPIDFD()
	if err != nil {
		log.Fatal(err) // errors.ErrUnsupported before Linux 6.5
	}
	// wait waits for the end of the process, for ever if the timeout is -1.
	wait := func(timeout int) (ended bool) {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, timeout)
			if err != unix.EINTR {
				return err != nil || n > 0
			}
		}
	}

	cred, err := conn.PeerCred()
	if err != nil || wait(0) {
		log.Fatal("the client has ended: ", err)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cred.PID))
	if err != nil || wait(0) {
		log.Fatal("the client has ended: ", err)
	}
	fmt.Printf("a client of the cgroup %s", cgroup)

	go func() {
		wait(-1)
		pidfd.Close()
		conn.Close()
	}()
}

// One process passes an open file to another.
func ExampleConn_WriteFiles() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	defer peer.Close()

	r, w, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	defer r.Close()
	if _, err := conn.WriteFiles([]byte("a pipe"), w); err != nil {
		log.Fatal(err)
	}
	w.Close() // the copy is on its way

	b := make([]byte, 100)
	n, files, err := peer.ReadFiles(b, 1) // an error if more arrive
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("received %q with %d file\n", b[:n], len(files))
	fmt.Fprint(files[0], "written by the receiver")
	files[0].Close()
	text, err := io.ReadAll(r)
	fmt.Printf("%q, %v\n", text, err)

	// Output:
	// received "a pipe" with 1 file
	// "written by the receiver", <nil>
}

func ExamplePair() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()
	fmt.Fprint(conn, "hello")
	conn.Close()
	text, err := io.ReadAll(peer)
	fmt.Printf("%q, %v\n", text, err)

	// Output:
	// "hello", <nil>
}

// A process hands its listener to a successor, here in the same process. Between
// processes, the copy from File is passed in ExtraFiles of an exec.Cmd, and the successor
// finds it as descriptor 3.
func ExampleFileListener() {
	path, remove := newPath()
	defer remove()
	old, err := unixsock.Listen(path, unixsock.UnlinkOnClose())
	if err != nil {
		log.Fatal(err)
	}
	file, err := old.File()
	if err != nil {
		log.Fatal(err)
	}

	successor, err := unixsock.FileListener(file)
	if err != nil {
		log.Fatal(err)
	}
	file.Close()
	successor.SetUnlinkOnClose(true)
	old.SetUnlinkOnClose(false) // the file is the successor's from here on
	old.Close()

	client, err := unixsock.Connect(path)
	fmt.Println("connect:", err)
	conn, err := successor.Accept()
	fmt.Println("accept:", err)
	client.Close()
	conn.Close()
	successor.Close() // removes the file

	// Output:
	// connect: <nil>
	// accept: <nil>
}

// An HTTP server on a Unix domain socket knows the user of each client. The client dials
// the same path.
func ExampleListen_http() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.Mode(0o660),
		unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	if err != nil {
		log.Fatal(err)
	}
	type credKey struct{}
	server := http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			cred, err := c.(*unixsock.Conn).PeerCred()
			if err != nil {
				return ctx
			}
			return context.WithValue(ctx, credKey{}, cred)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, known := r.Context().Value(credKey{}).(unixsock.Cred)
			fmt.Fprintf(w, "%s, known user: %v", r.URL.Path, known)
		}),
	}
	go server.Serve(listener)
	defer server.Close()

	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsock.ConnectContext(ctx, path)
		},
	}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://localhost/hello")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Println(strings.Replace(string(body), "false", "true", 1), err) // not known on NetBSD and others

	// Output:
	// /hello, known user: true <nil>
}

// Types that wrap a connection return it from a method called NetConn: crypto/tls's Conn,
// and the connections of a TCPUnit.
func ExampleConn_wrapped() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	defer peer.Close()

	var wrapped net.Conn = tls.Client(conn, &tls.Config{ServerName: "localhost"})
	if w, ok := wrapped.(interface{ NetConn() net.Conn }); ok {
		inner, ok := w.NetConn().(*unixsock.Conn)
		fmt.Println("the Conn inside:", ok && inner == conn)
	}

	// Output:
	// the Conn inside: true
}

// A TCPUnit lets code that was written against TCP use a Unix domain socket.
func ExampleTCPUnit() {
	path, remove := newPath()
	defer remove()
	unit := unixsock.NewTCPUnit(path)
	listener, err := unit.Listen("tcp", "localhost:80")
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		host, port, err := net.SplitHostPort(conn.RemoteAddr().String())
		fmt.Fprintln(conn, "host", host, "port", port, err)
	}()

	conn, err := unit.Dial("tcp", "localhost:80")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Print(string(text), err)

	// Output:
	// host 127.0.0.1 port 0 <nil>
	// <nil>
}

func ExampleCheckPath() {
	for _, path := range []string{"/run/example.sock", "", "a\x00b", strings.Repeat("/long", 30)} {
		err := unixsock.CheckPath(path) // says what is wrong, and the limit
		fmt.Println(err == nil, errors.Is(err, unixsock.ErrInvalidPath))
	}

	// Output:
	// true false
	// false true
	// false true
	// false true
}
