//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

// A server answers when the client has closed its output. The ports of a connection close
// independently, so the client can still read.
func Example() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil {
				log.Print(err) // out of descriptors, for example: the client stays pending
				time.Sleep(100 * time.Millisecond)
				continue
			}
			go func() {
				defer conn.Close()
				question, err := io.ReadAll(conn)
				fmt.Fprintf(conn, "you said %q, %v", question, err)
			}()
		}
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
	fmt.Printf("%s, %v\n", answer, err)

	// Output:
	// you said "how are you?", <nil>, <nil>
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

// ConnectContext waits while the listener's backlog is full. (On Linux. Other kernels refuse
// the connection.)
func ExampleConnectContext() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(0))
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			conn, err := unixsock.ConnectContext(ctx, path)
			for errors.Is(err, syscall.ECONNREFUSED) { // not on Linux
				time.Sleep(time.Millisecond)
				conn, err = unixsock.ConnectContext(ctx, path)
			}
			if err != nil {
				log.Fatal(err)
			}
			conn.Close()
		})
	}
	for range 4 {
		conn, err := listener.AcceptContext(ctx)
		if err != nil {
			log.Fatal(err)
		}
		conn.Close()
	}
	clients.Wait()
	fmt.Println("all clients were connected")

	// Output:
	// all clients were connected
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

	poll := func() {
		select { // exact, because it calls Ready
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
	conn, err := listener.TryAccept()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	poll()

	// Output:
	// no connection is pending
	// ready, the listener itself: true
	// no connection is pending
}

// Workers share the socket, so another one may be first to accept the client that Ready has
// reported. The Drain of a worker leaves the socket to the others, because a listener of
// FileListener does not own it.
func ExampleListener_TryAccept() {
	path, remove := newPath()
	defer remove()
	parent, err := unixsock.Listen(path, unixsock.Backlog(511))
	if err != nil {
		log.Fatal(err)
	}
	defer parent.Close()

	var workers sync.WaitGroup
	var listeners []*unixsock.Listener
	for range 3 {
		file, err := parent.File() // a process of its own finds the file as descriptor 3
		if err != nil {
			log.Fatal(err)
		}
		listener, err := unixsock.FileListener(file)
		file.Close()
		if err != nil {
			log.Fatal(err)
		}
		listeners = append(listeners, listener)
		workers.Go(func() {
			for range listener.Ready() { // until the listener has drained
				conn, err := listener.TryAccept()
				if errors.Is(err, syscall.EAGAIN) {
					continue // another worker was first
				} else if err != nil {
					log.Print(err) // out of descriptors, for example
					time.Sleep(100 * time.Millisecond)
					continue
				}
				fmt.Fprint(conn, "hello")
				conn.Close()
			}
		})
	}
	for range 2 {
		conn, err := unixsock.Connect(path)
		if err != nil {
			log.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		fmt.Println(string(answer), err)
		conn.Close()
	}
	for _, listener := range listeners {
		listener.Drain()
	}
	workers.Wait()

	// Output:
	// hello <nil>
	// hello <nil>
}

// One select waits for the clients of two listeners, a ticker and a context. A second context
// is the custodian of the connections: those that are open when the loop stops may finish, and
// are closed after a time of grace.
func ExampleListener_AcceptEvt() {
	path, remove := newPath()
	defer remove()
	users, err := unixsock.Listen(path, unixsock.Backlog(511))
	if err != nil {
		log.Fatal(err)
	}
	admins, err := unixsock.Listen(path+".admins", unixsock.Backlog(511))
	if err != nil {
		log.Fatal(err)
	}
	loop, stop := context.WithCancel(context.Background())
	conns, closeAll := context.WithCancel(context.Background())
	go func() {
		for _, listener := range []*unixsock.Listener{users, admins} {
			conn, err := unixsock.Connect(listener.Addr().String())
			if err != nil {
				log.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintln(conn, "hello")
			answer, err := bufio.NewReader(conn).ReadString('\n')
			fmt.Printf("%q, %v\n", answer, err)
		}
		stop()
		<-conns.Done() // both connections are open until then
	}()

	var clients sync.WaitGroup
	serve := func(kind string, accepted unixsock.Accepted) {
		if accepted.Err != nil {
			log.Print(accepted.Err) // out of descriptors, for example: the client stays pending
			time.Sleep(100 * time.Millisecond)
			return
		}
		clients.Go(func() {
			defer accepted.Conn.Close()
			for lines := bufio.NewScanner(accepted.Conn); lines.Scan(); { // until closeAll
				fmt.Fprintf(accepted.Conn, "%s, %s\n", lines.Text(), kind)
			}
		})
	}
	user, admin := users.AcceptEvt(conns), admins.AcceptEvt(conns)
	ticker, stopped := time.NewTicker(time.Minute), loop.Done()
	defer ticker.Stop()
	for user != nil || admin != nil {
		select {
		case accepted, ok := <-user:
			if !ok {
				user = nil // the listener has drained
				continue
			}
			serve("user", accepted)
		case accepted, ok := <-admin:
			if !ok {
				admin = nil
				continue
			}
			serve("admin", accepted)
		case <-ticker.C:
			log.Print("another minute")
		case <-stopped:
			users.Drain() // the pending clients are still delivered
			admins.Drain()
			stopped = nil
		}
	}
	time.AfterFunc(50*time.Millisecond, closeAll) // the time of grace
	clients.Wait()
	fmt.Println("the server ends")

	// Output:
	// "hello, user\n", <nil>
	// "hello, admin\n", <nil>
	// the server ends
}

// An HTTP server stops without losing a client: Drain lets no new one in, Serve returns when it
// has accepted the pending ones, and each connection ends with its response. (Shutdown would
// drop requests that it finds unread on connections that were just accepted.)
func ExampleListener_Drain() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
	if err != nil {
		log.Fatal(err)
	}
	var conns sync.WaitGroup
	server := http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello") }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
			case http.StateClosed, http.StateHijacked:
				conns.Done()
			}
		},
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	conn, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

	if err := listener.Drain(); err != nil {
		log.Print(err) // the socket file could not be removed
	}
	server.SetKeepAlivesEnabled(false) // also makes room behind a LimitListener that is full
	done := make(chan struct{})
	go func() {
		defer close(done)
		fmt.Println("the listener has drained:", errors.Is(<-served, net.ErrClosed))
		conns.Wait()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second): // for clients that send no request, or a long one
	}
	server.Close()

	status, err := bufio.NewReader(conn).ReadString('\n')
	fmt.Println(strings.TrimSpace(status), err)

	// Output:
	// the listener has drained: true
	// HTTP/1.1 200 OK <nil>
}

// A proxy copies both directions. If one end closes its output, the proxy passes that on, and
// the other direction continues. If no byte has moved for some time, it closes both ends.
func ExampleConn_ReadFrom() {
	proxy := func(a, b *unixsock.Conn, idle time.Duration) {
		defer a.Close()
		defer b.Close()
		var moved atomic.Int64
		// transfer returns false when the time is up, and true when the direction has ended.
		transfer := func(to, from *unixsock.Conn) bool {
			n, err := io.Copy(to, from) // calls ReadFrom or WriteTo: on Linux the kernel copies
			moved.Add(n)
			var opErr *net.OpError
			if errors.As(err, &opErr) && opErr.Op == "read" && opErr.Timeout() {
				return false
			}
			to.CloseWrite()
			from.CloseRead()
			return true
		}
		moved.Store(1)
		for ended, back := false, false; (!ended || !back) && moved.Swap(0) > 0; {
			for _, conn := range []*unixsock.Conn{a, b} {
				conn.SetReadDeadline(time.Now().Add(idle)) // not a half that is closed
				conn.SetWriteDeadline(time.Now().Add(2 * idle))
			}
			var directions sync.WaitGroup
			directions.Go(func() { ended = ended || transfer(b, a) })
			directions.Go(func() { back = back || transfer(a, b) })
			directions.Wait()
		}
	}

	client, a, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	b, server, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	go proxy(a, b, 100*time.Millisecond)
	go func() {
		question, err := io.ReadAll(server) // up to the EOF of the half-close
		fmt.Fprintf(server, "you said %q, %v", question, err)
	}()
	fmt.Fprint(client, "how are you?")
	client.CloseWrite()
	answer, err := io.ReadAll(client) // until the connection has been idle
	fmt.Printf("%s, %v\n", answer, err)

	// Output:
	// you said "how are you?", <nil>, <nil>
}

// A connection becomes the standard input and output of a child process, as under inetd. A
// program that is not written in Go expects a descriptor in blocking mode.
func ExampleConn_File() {
	conn, peer, err := unixsock.Pair()
	if err != nil {
		log.Fatal(err)
	}
	defer peer.Close()

	file, err := conn.File()
	if err != nil {
		log.Fatal(err)
	}
	conn.Close() // only this descriptor: the connection stays open
	if err := syscall.SetNonblock(int(file.Fd()), false); err != nil {
		log.Fatal(err)
	}
	cmd := exec.Command("cat")
	cmd.Stdin, cmd.Stdout = file, file
	err = cmd.Start()
	file.Close()
	if err != nil {
		log.Fatal(err)
	}

	fmt.Fprint(peer, "hello")
	peer.CloseWrite()
	text, err := io.ReadAll(peer)
	fmt.Printf("%q, %v\n", text, err)
	fmt.Println("the child ends:", cmd.Wait())

	// Output:
	// "hello", <nil>
	// the child ends: <nil>
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

// An HTTP server knows the user of each client: the kernel says it, so the client cannot lie
// about it. The client dials the same path.
func ExampleConn_PeerCred() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path, unixsock.Backlog(511))
	if err != nil {
		log.Fatal(err)
	}
	type credKey struct{}
	server := http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if w, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS, or of a TCPUnit
				c = w.NetConn()
			}
			if conn, ok := c.(*unixsock.Conn); ok {
				if cred, err := conn.PeerCred(); err == nil {
					return context.WithValue(ctx, credKey{}, cred)
				}
			}
			return ctx
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			cred, known := r.Context().Value(credKey{}).(unixsock.Cred)
			// Not known on NetBSD, OpenBSD and DragonFly.
			fmt.Fprintf(w, "%s, this user: %v", r.URL.Path, !known || cred.UID == os.Getuid())
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
	fmt.Println(string(body), err)

	// Output:
	// /hello, this user: true <nil>
}

// A server reads the cgroup of a client from /proc, where the client has a number. If the
// client's process still runs afterwards, no other process can have had that number.
func ExampleConn_PeerPIDFD() {
	cgroupOf := func(conn *unixsock.Conn) ([]byte, error) {
		pidfd, err := conn.PeerPIDFD()
		if err != nil {
			return nil, err
		}
		defer pidfd.Close()
		cred, err := conn.PeerCred()
		if err != nil {
			return nil, err
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cred.PID))
		if err != nil {
			return nil, err
		}
		// A pidfd becomes readable when its process ends.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 0)
		if n > 0 {
			err = errors.New("the client has ended")
		}
		return cgroup, err
	}

	conn, peer, err := unixsock.Pair() // the client is this process
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	defer peer.Close()
	cgroup, err := cgroupOf(conn)
	known := err == nil && len(cgroup) > 0
	fmt.Println(known || errors.Is(err, errors.ErrUnsupported)) // before Linux 6.5, and on other systems

	// Output:
	// true
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
	fmt.Fprintf(files[0], "written by the receiver of %q", b[:n])
	files[0].Close()
	text, err := io.ReadAll(r)
	fmt.Println(string(text), err)

	// Output:
	// written by the receiver of "a pipe" <nil>
}

// An http.Transport dials through a TCPUnit, whatever the host in the URL is.
func ExampleTCPUnit_DialContext() {
	path, remove := newPath()
	defer remove()
	unit := unixsock.NewTCPUnit(path)
	listener, err := unit.Listen("tcp", "localhost:80")
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s at %s, from %s", r.URL.Path, r.Host, r.RemoteAddr)
	})}
	go server.Serve(listener)
	defer server.Close()

	client := http.Client{Transport: &http.Transport{DialContext: unit.DialContext}}
	defer client.CloseIdleConnections()
	response, err := client.Get("http://app.example/hello")
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fmt.Println(string(body), err)

	// Output:
	// /hello at app.example, from 127.0.0.1:0 <nil>
}
