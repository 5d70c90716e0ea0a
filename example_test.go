//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bufio"
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
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			conn, err := unixsock.ConnectContext(ctx, path)
			for errors.Is(err, syscall.ECONNREFUSED) { // not on Linux
				time.Sleep(time.Millisecond)
				conn, err = unixsock.ConnectContext(ctx, path)
			}
			if err != nil {
				fmt.Println(err)
				return
			}
			conn.Close()
		})
	}
	clients.Wait()
	fmt.Println("10 clients are connected")

	// Output:
	// 10 clients are connected
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

// A worker shares the socket with others, so another one may be first to accept the client
// that Ready has reported. Its Drain leaves the socket to the others, because a listener of
// FileListener does not own it.
func ExampleListener_TryAccept() {
	path, remove := newPath()
	defer remove()
	parent, err := unixsock.Listen(path, unixsock.Backlog(511))
	if err != nil {
		log.Fatal(err)
	}
	defer parent.Close()

	worker := func(stop <-chan struct{}) {
		file, err := parent.File() // a process of its own finds the file as descriptor 3
		if err != nil {
			log.Fatal(err)
		}
		listener, err := unixsock.FileListener(file)
		file.Close()
		if err != nil {
			log.Fatal(err)
		}
		for {
			select {
			case _, ok := <-listener.Ready():
				if !ok {
					return // the listener has drained
				}
				conn, err := listener.TryAccept()
				if errors.Is(err, syscall.EAGAIN) {
					continue // another worker was first
				} else if err != nil {
					log.Print(err) // out of descriptors, for example
					time.Sleep(100 * time.Millisecond)
					continue
				}
				fmt.Fprint(conn, "served once;")
				conn.Close()
			case <-stop:
				listener.Drain()
				stop = nil
			}
		}
	}
	var workers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		workers.Go(func() { worker(stop) })
	}
	for range 4 {
		conn, err := unixsock.Connect(path)
		if err != nil {
			log.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		fmt.Println(string(answer), err)
		conn.Close()
	}
	close(stop)
	workers.Wait()

	// Output:
	// served once; <nil>
	// served once; <nil>
	// served once; <nil>
	// served once; <nil>
}

// One select waits for the clients of two listeners, a ticker and a context. A second context
// is the custodian of the connections: those that are open when the loop stops may finish, and
// are closed after a time of grace.
func ExampleListener_AcceptEvt() {
	listen := func() (listener *unixsock.Listener, remove func()) {
		path, remove := newPath()
		listener, err := unixsock.Listen(path, unixsock.Backlog(511))
		if err != nil {
			log.Fatal(err)
		}
		return listener, remove
	}
	users, remove := listen()
	defer remove()
	admins, remove := listen()
	defer remove()
	loop, stop := context.WithCancel(context.Background())
	conns, closeAll := context.WithCancel(context.Background())

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
	server := func() {
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
	}

	var ended sync.WaitGroup
	ended.Go(server)
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
	stop() // both connections are open
	ended.Wait()

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

	connect := func() (client, server *unixsock.Conn) { // through the proxy
		client, a, err := unixsock.Pair()
		if err != nil {
			log.Fatal(err)
		}
		b, server, err := unixsock.Pair()
		if err != nil {
			log.Fatal(err)
		}
		go proxy(a, b, 100*time.Millisecond)
		return client, server
	}

	client, server := connect()
	defer client.Close()
	go func() {
		defer server.Close()
		question, err := io.ReadAll(server) // up to the EOF of the half-close
		fmt.Fprintf(server, "you said %q, %v", question, err)
	}()
	fmt.Fprint(client, "how are you?")
	client.CloseWrite()
	answer, err := io.ReadAll(client)
	fmt.Printf("%s, %v\n", answer, err)

	idle, server := connect()
	defer idle.Close()
	defer server.Close()
	n, err := idle.Read(make([]byte, 1))
	fmt.Println("an idle connection is closed:", n, err)

	// Output:
	// you said "how are you?", <nil>, <nil>
	// an idle connection is closed: 0 EOF
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

// A server reads the cgroup of a client from /proc, where the client has a number. If the
// client's process still runs afterwards, no other process can have had that number.
func ExampleConn_PeerPIDFD() {
	path, remove := newPath()
	defer remove()
	listener, err := unixsock.Listen(path)
	if err != nil {
		log.Fatal(err)
	}
	defer listener.Close()
	client, err := unixsock.Connect(path)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.AcceptContext(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	isClients := func() (bool, error) {
		pidfd, err := conn.PeerPIDFD()
		if err != nil {
			return false, err
		}
		defer pidfd.Close()
		cred, err := conn.PeerCred()
		if err != nil {
			return false, err
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cred.PID))
		if err != nil {
			return false, err
		}
		// A pidfd becomes readable when its process ends.
		ended, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 0)
		return ended == 0 && len(cgroup) > 0, err
	}
	ok, err := isClients()
	if errors.Is(err, errors.ErrUnsupported) {
		ok, err = true, nil // before Linux 6.5, and on other systems
	}
	fmt.Println("the cgroup is the client's:", ok, err)

	// Output:
	// the cgroup is the client's: true <nil>
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
			conn, ok := c.(*unixsock.Conn) // not behind ServeTLS or another wrapper
			if !ok {
				return ctx
			}
			cred, err := conn.PeerCred()
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
