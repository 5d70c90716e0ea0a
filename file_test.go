//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// mustConverse fails the test unless what is written to each end is read from the
// other.
func mustConverse(t testing.TB, c1, c2 io.ReadWriter) {
	t.Helper()
	for _, ends := range [][2]io.ReadWriter{{c1, c2}, {c2, c1}} {
		if n, err := ends[0].Write([]byte("hello")); err != nil {
			t.Fatalf("Write of 5 bytes: got %d, %v; want 5, nil", n, err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(ends[1], b); err != nil || string(b) != "hello" {
			t.Fatalf("ReadFull at the other end: got %q, %v; want %q, nil", b, err, "hello")
		}
	}
}

// newPairT returns the two ends of unixsock.Pair. They are closed at the end of
// the test.
func newPairT(t testing.TB) (*unixsock.Conn, *unixsock.Conn) {
	t.Helper()
	c1, c2, err := unixsock.Pair()
	if err != nil {
		t.Fatalf("Pair: %v", err)
	}
	t.Cleanup(func() { c1.Close(); c2.Close() })
	return c1, c2
}

// rawPair returns the two ends of a socket pair of the given type as files, in
// blocking mode. It skips the test if the kernel does not have the type.
func rawPair(t testing.TB, socketType int) (*os.File, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, socketType, 0)
	if err != nil {
		t.Skip("socketpair(2): ", err)
	}
	f1, f2 := os.NewFile(uintptr(fds[0]), "end 1"), os.NewFile(uintptr(fds[1]), "end 2")
	t.Cleanup(func() { f1.Close(); f2.Close() })
	return f1, f2
}

// mustFile returns the file of a socket. It is closed at the end of the test.
func mustFile(t testing.TB, socket interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatalf("File of a %T: %v", socket, err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mustFileConn returns the FileConn of f. The Conn is closed at the end of the
// test.
func mustFileConn(t testing.TB, f *os.File) *unixsock.Conn {
	t.Helper()
	c, err := unixsock.FileConn(f)
	if err != nil {
		t.Fatalf("FileConn: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustFileListener returns the FileListener of f. The Listener is closed at the
// end of the test.
func mustFileListener(t testing.TB, f *os.File) *unixsock.Listener {
	t.Helper()
	l, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatalf("FileListener: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestPairIsConnected(t *testing.T) {
	sockettest.CheckDescriptors(t)
	c1, c2 := newPairT(t)
	mustConverse(t, c1, c2)
	for _, addr := range []net.Addr{c1.LocalAddr(), c1.RemoteAddr(), c2.LocalAddr(), c2.RemoteAddr()} {
		if addr.Network() != "unix" || addr.String() != "" {
			t.Errorf("address of an end of a Pair: got %s %q, want unix %q", addr.Network(), addr, "")
		}
	}
	if err := c1.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: got %v, want nil", err)
	}
	if n, err := c2.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read after the peer's CloseWrite: got %d, %v; want 0, io.EOF", n, err)
	}
}

func TestFileConnAdoptsACopy(t *testing.T) {
	sockettest.CheckDescriptors(t)
	client, server := sockettest.Pair(t)
	f := mustFile(t, server)
	adopted := mustFileConn(t, f)
	f.Close()
	server.Close()
	mustConverse(t, client, adopted)
	if got, want := adopted.LocalAddr().String(), server.LocalAddr().String(); got != want {
		t.Errorf("LocalAddr of a FileConn: got %q, want %q", got, want)
	}
	if got := adopted.RemoteAddr().String(); got != "" {
		t.Errorf("RemoteAddr of a FileConn: got %q, want %q", got, "")
	}
	adopted.Close()
	if n, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read after Close of the peer and of its copy: got %d, %v; want 0, io.EOF", n, err)
	}
}

func TestFileConnLeavesTheOriginal(t *testing.T) {
	sockettest.CheckDescriptors(t)
	client, server := sockettest.Pair(t)
	f := mustFile(t, server)
	if err := mustFileConn(t, f).Close(); err != nil {
		t.Fatalf("Close of the FileConn: got %v, want nil", err)
	}
	mustConverse(t, client, server)
	mustConverse(t, client, f)
}

func TestFileConnOfNet(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	netListener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatalf("net.ListenUnix: %v", err)
	}
	defer netListener.Close()
	f, err := netListener.File()
	if err != nil {
		t.Fatalf("File of the net.UnixListener: %v", err)
	}
	defer f.Close()
	l := mustFileListener(t, f)
	netConn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatalf("net.DialUnix: %v", err)
	}
	defer netConn.Close()
	cf, err := netConn.File()
	if err != nil {
		t.Fatalf("File of the net.UnixConn: %v", err)
	}
	defer cf.Close()
	client := mustFileConn(t, cf)
	netConn.Close()
	mustConverse(t, client, sockettest.Accept(t, l))
	if got := client.RemoteAddr().String(); got != path {
		t.Errorf("RemoteAddr of the FileConn of a net.UnixConn: got %q, want %q", got, path)
	}
}

func TestFileConnOfOneWhosePeerIsGone(t *testing.T) {
	client, server := sockettest.Pair(t)
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatalf("Write: %v", err)
	}
	client.Close()
	adopted := mustFileConn(t, mustFile(t, server))
	if name := adopted.LocalAddr().String(); name != server.LocalAddr().String() {
		t.Errorf("LocalAddr of a FileConn after the peer's Close: got %q, want %q", name, server.LocalAddr())
	}
	if b, err := io.ReadAll(adopted); err != nil || string(b) != "last words" {
		t.Errorf("ReadAll of a FileConn after the peer's Close: got %q, %v; want %q, nil", b, err, "last words")
	}
}

func TestFileConnOfABlockingDescriptor(t *testing.T) {
	sockettest.CheckDescriptors(t)
	f1, f2 := rawPair(t, unix.SOCK_STREAM)
	c1, c2 := mustFileConn(t, f1), mustFileConn(t, f2)
	mustConverse(t, c1, c2)
	c1.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := c1.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read with a deadline in 10 ms: got %d, %v; want 0, os.ErrDeadlineExceeded", n, err)
	}
	c1.SetReadDeadline(time.Time{})
	result := waiting(t, readOne(c1))
	c1.Close()
	if err := sockettest.Receive(t, "the reader", result); !errors.Is(err, net.ErrClosed) {
		t.Errorf("waiting Read after Close: got %v, want net.ErrClosed", err)
	}
}

func TestFileListenerOfABlockingDescriptor(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatalf("socket(2): %v", err)
	}
	f := os.NewFile(uintptr(fd), "blocking")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 4)); err != nil {
		t.Fatalf("bind(2) and listen(2): %v", err)
	}
	l := mustFileListener(t, f)
	l.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept with a deadline in 10 ms: got %v, want os.ErrDeadlineExceeded", err)
	}
	l.SetDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AcceptContext with a deadline in 10 ms: got %v, want context.DeadlineExceeded", err)
	}
	sockettest.CheckExchange(t, path, l)
}

func TestFileListenerAdoptsACopy(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t)
	f := mustFile(t, original)
	l := mustFileListener(t, f)
	f.Close()
	original.Close()
	if l.Addr().String() != original.Addr().String() {
		t.Errorf("Addr of a FileListener: got %q, want %q", l.Addr(), original.Addr())
	}
	sockettest.CheckExchange(t, original.Addr().String(), l)
}

func TestFileListenerLeavesTheOriginal(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t, unixsock.UnlinkOnClose())
	f := mustFile(t, original)
	if err := mustFileListener(t, f).Close(); err != nil {
		t.Fatalf("Close of the FileListener: got %v, want nil", err)
	}
	sockettest.CheckExchange(t, original.Addr().String(), original)
}

func TestAdoptedListenerIsAnEvent(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t)
	l := mustFileListener(t, mustFile(t, original))
	ready := l.Ready()
	if polled(t, l, l.Ready()) {
		t.Error("Ready without a connection: got ready, want not ready")
	}
	client := sockettest.Connect(t, original.Addr().String())
	if !polled(t, l, l.Ready()) {
		t.Error("Ready with a connection pending: got not ready, want ready")
	}
	accepted := sockettest.Receive(t, "an accept event", l.AcceptEvt(t.Context()))
	if accepted.Err != nil {
		t.Fatalf("AcceptEvt: got %v, want nil", accepted.Err)
	}
	mustConverse(t, client, accepted.Conn)
	if polled(t, l, l.Ready()) {
		t.Error("Ready after the only connection is accepted: got ready, want not ready")
	}
	l.Close()
	for open := true; open; {
		_, open = sockettest.ReceiveOK(t, "the close of the channel of Ready", ready)
	}
}

func TestFileConnAndFileListenerRefuseOthers(t *testing.T) {
	sockettest.CheckDescriptors(t)
	conn, listener := "FileConn", "FileListener"
	for name, test := range map[string]struct {
		open func(t *testing.T) *os.File
		want string   // in the error's text
		by   []string // the functions that must refuse the file
	}{
		"tcp conn":      {openTCPConn, "not a unix socket", []string{conn, listener}},
		"tcp listener":  {openTCPListener, "not a unix socket", []string{conn, listener}},
		"udp":           {openUDP, "not a unix socket", []string{conn, listener}},
		"datagram":      {func(t *testing.T) *os.File { f, _ := rawPair(t, unix.SOCK_DGRAM); return f }, "not a stream", []string{conn, listener}},
		"seqpacket":     {func(t *testing.T) *os.File { f, _ := rawPair(t, unix.SOCK_SEQPACKET); return f }, "not a stream", []string{conn, listener}},
		"file":          {openRegular, "not a socket", []string{conn, listener}},
		"pipe":          {openPipe, "not a socket", []string{conn, listener}},
		"nil":           {func(*testing.T) *os.File { return nil }, "invalid argument", []string{conn, listener}},
		"closed":        {openClosed, "closed", []string{conn, listener}},
		"unconnected":   {openUnconnected, "not a connected socket", []string{conn}},
		"a listener":    {func(t *testing.T) *os.File { return mustFile(t, sockettest.Listen(t)) }, "not a connected socket", []string{conn}},
		"not listening": {openUnconnected, "not a listening socket", []string{listener}},
		"a conn":        {func(t *testing.T) *os.File { c, _ := newPairT(t); return mustFile(t, c) }, "not a listening socket", []string{listener}},
	} {
		for _, by := range test.by {
			t.Run(by+" "+name, func(t *testing.T) {
				if name == "not listening" && !sockettest.ReportsListening(t) {
					t.Skip("the kernel does not report whether a socket listens")
				}
				sockettest.CheckDescriptors(t)
				f := test.open(t)
				var c io.Closer
				var err error
				if by == conn {
					c, err = unixsock.FileConn(f)
				} else {
					c, err = unixsock.FileListener(f)
				}
				if err == nil {
					c.Close()
					t.Fatalf("%s of the file %q: got no error, want one with %q", by, name, test.want)
				}
				var op *net.OpError
				if !errors.As(err, &op) || op.Net != "unix" {
					t.Errorf("%s of the file %q: got %#v, want a *net.OpError of unix", by, name, err)
				}
				if !strings.Contains(err.Error(), test.want) {
					t.Errorf("%s of the file %q: got %q, want an error with %q", by, name, err, test.want)
				}
			})
		}
	}
}

func openTCPListener(t *testing.T) *os.File {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip("net.Listen: ", err)
	}
	t.Cleanup(func() { l.Close() })
	return mustFile(t, l.(*net.TCPListener))
}

func openTCPConn(t *testing.T) *os.File {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip("net.Listen: ", err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("net.Dial: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return mustFile(t, c.(*net.TCPConn))
}

func openUDP(t *testing.T) *os.File {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Skip("net.ListenPacket: ", err)
	}
	t.Cleanup(func() { c.Close() })
	return mustFile(t, c.(*net.UDPConn))
}

func openRegular(t *testing.T) *os.File {
	f, err := os.Create(filepath.Join(sockettest.ShortDir(t), "file"))
	if err != nil {
		t.Fatalf("os.Create: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openPipe(t *testing.T) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("os.Pipe: %v", err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

// openClosed returns a file that is closed.
func openClosed(t *testing.T) *os.File {
	c, _ := newPairT(t)
	f := mustFile(t, c)
	f.Close()
	return f
}

// openUnconnected returns the file of a stream socket that is neither connected
// nor listening.
func openUnconnected(t *testing.T) *os.File {
	fd, err := sockettest.Socket()
	if err != nil {
		t.Fatalf("socket(2): %v", err)
	}
	f := os.NewFile(uintptr(fd), "unconnected")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestARefusedFileIsUntouched(t *testing.T) {
	f, _ := rawPair(t, unix.SOCK_DGRAM)
	if _, err := unixsock.FileConn(f); err == nil {
		t.Fatal("FileConn of a datagram socket: got no error, want one")
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("fcntl(F_GETFL) after FileConn: got %#x, %v; want flags without O_NONBLOCK (%#x), nil", flags, err, unix.O_NONBLOCK)
	}
}

func TestFileAfterClose(t *testing.T) {
	c, _ := newPairT(t)
	l := sockettest.Listen(t)
	c.Close()
	l.Close()
	for _, socket := range []interface{ File() (*os.File, error) }{c, l} {
		f, err := socket.File()
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("File of a closed %T: got %v, want net.ErrClosed", socket, err)
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Errorf("File of a closed %T: got %#v, want a *net.OpError", socket, err)
		}
	}
}

// TestFileLeavesDeadlinesAlive calls the method Fd of the file. Fd may put the
// descriptor into blocking mode, and with it each descriptor that shares its open
// file description.
func TestFileLeavesDeadlinesAlive(t *testing.T) {
	c, _ := newPairT(t)
	l := sockettest.Listen(t)
	mustFile(t, c).Fd()
	mustFile(t, l).Fd()
	soon := time.Now().Add(10 * time.Millisecond)
	c.SetReadDeadline(soon)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read with a deadline, after Fd of the Conn's file: got %v, want os.ErrDeadlineExceeded", err)
	}
	l.SetDeadline(soon)
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Accept with a deadline, after Fd of the Listener's file: got %v, want os.ErrDeadlineExceeded", err)
	}
}

func TestAChildServesAnInheritedListener(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t)
	f := mustFile(t, l)
	h := sockettest.StartHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, "serve", "inherited")
	h.Expect("serving")
	f.Close()
	l.Close()
	for range 3 {
		if pid := askPid(t, l.Addr().String()); pid != h.Cmd.Process.Pid {
			t.Errorf("connect to the inherited listener: got an answer of process %d, want %d", pid, h.Cmd.Process.Pid)
		}
	}
	h.Kill()
}

func TestAChildTalksOverAnInheritedConn(t *testing.T) {
	sockettest.CheckDescriptors(t)
	c, inherited := newPairT(t)
	f := mustFile(t, inherited)
	h := sockettest.StartHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, "talk")
	f.Close()
	inherited.Close()
	if _, err := c.Write([]byte("who?\n")); err != nil {
		t.Fatalf("Write: %v", err)
	}
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if want := fmt.Sprintf("who? %d", h.Cmd.Process.Pid); err != nil || string(got) != want {
		t.Errorf("ReadAll of the child's answer: got %q, %v; want %q, nil", got, err, want)
	}
	h.Kill()
}

// helpTalk reads the Conn that it inherited to the end, and answers with what it
// read and its process ID.
func helpTalk([]string) error {
	f := os.NewFile(3, "inherited")
	c, err := unixsock.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	defer c.Close()
	question, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "%s %d", strings.TrimSpace(string(question)), os.Getpid())
	return err
}

func TestEveryDescriptorIsCloseOnExec(t *testing.T) {
	c1, c2 := newPairT(t)
	l := sockettest.Listen(t, unixsock.ReplaceStale(), unixsock.Mode(0o600))
	client, server := sockettest.Connect(t, l.Addr().String()), sockettest.Accept(t, l)
	sockettest.Connect(t, l.Addr().String())
	evt := sockettest.Receive(t, "an accept event", l.AcceptEvt(t.Context())).Conn
	fc, fl := mustFile(t, client), mustFile(t, l)
	if _, err := c1.WriteFiles([]byte("x"), fc, fl); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	_, received, err := c2.ReadFiles(make([]byte, 1), 2)
	if err != nil || len(received) != 2 {
		t.Fatalf("ReadFiles: got %d files, %v; want 2, nil", len(received), err)
	}
	defer received[0].Close()
	defer received[1].Close()
	for name, socket := range map[string]syscall.Conn{
		"Pair 1": c1, "Pair 2": c2, "Listen": l, "Connect": client, "Accept": server, "AcceptEvt": evt,
		"Conn.File": fc, "Listener.File": fl, "FileConn": mustFileConn(t, fc), "FileListener": mustFileListener(t, fl),
		"ReadFiles 1": received[0], "ReadFiles 2": received[1],
	} {
		raw, err := socket.SyscallConn()
		if err != nil {
			t.Fatalf("SyscallConn of the result of %s: %v", name, err)
		}
		raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("fcntl(F_GETFD) of the result of %s: got %#x, %v; want flags with FD_CLOEXEC (%#x), nil", name, flags, err, unix.FD_CLOEXEC)
			}
		})
	}
}

// newPipes returns the ends of n pipes. They are closed at the end of the test.
func newPipes(t testing.TB, n int) (r, w []*os.File) {
	t.Helper()
	for range n {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatalf("os.Pipe: %v", err)
		}
		t.Cleanup(func() { pr.Close(); pw.Close() })
		r, w = append(r, pr), append(w, pw)
	}
	return r, w
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// wantAllClosed fails the test unless each read end in r is at its end. Then no copy of
// a write end is open, neither received nor in flight.
func wantAllClosed(t testing.TB, r []*os.File) {
	t.Helper()
	for i, f := range r {
		f.SetReadDeadline(time.Now().Add(sockettest.Timeout))
		if _, err := f.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read of pipe %d: got %v, want io.EOF as no write end is open", i, err)
		}
	}
}

// setBuffer sets the size of c's send buffer.
func setBuffer(t testing.TB, c *unixsock.Conn, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size) })
	if err != nil {
		t.Fatalf("setsockopt(SO_SNDBUF): %v", err)
	}
}

func TestFilesPassAndWork(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	n, err := from.WriteFiles([]byte("three"), w...)
	if n != 5 || err != nil {
		t.Fatalf("WriteFiles of 5 bytes and 3 files: got %d, %v; want 5, nil", n, err)
	}
	closeFiles(w)
	b := make([]byte, 10)
	n, files, err := to.ReadFiles(b, 3)
	if err != nil || string(b[:n]) != "three" || len(files) != 3 {
		t.Fatalf("ReadFiles: got %q, %d files, %v; want %q, 3 files, nil", b[:n], len(files), err, "three")
	}
	for i, f := range files {
		if _, err := fmt.Fprint(f, i); err != nil {
			t.Fatalf("Write to received file %d: got %v, want nil", i, err)
		}
		f.Close()
		if got, err := io.ReadAll(r[i]); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("ReadAll of pipe %d: got %q, %v; want %q as written to received file %d, nil", i, got, err, fmt.Sprint(i), i)
		}
	}
}

func TestWriteFilesLeavesTheFilesOpen(t *testing.T) {
	from, to := newPairT(t)
	r, w := newPipes(t, 1)
	if _, err := from.WriteFiles([]byte("x"), w[0]); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	from.Close()
	to.Close()
	if _, err := w[0].Write([]byte("y")); err != nil {
		t.Fatalf("Write to the file after WriteFiles: got %v, want nil", err)
	}
	if _, err := r[0].Read(make([]byte, 1)); err != nil {
		t.Fatalf("Read from the pipe after WriteFiles: got %v, want nil", err)
	}
}

func TestAConnCanBePassed(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	c1, c2 := newPairT(t)
	if _, err := from.WriteFiles([]byte("x"), mustFile(t, c2)); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	c2.Close()
	_, files, err := to.ReadFiles(make([]byte, 1), 1)
	if err != nil {
		t.Fatalf("ReadFiles: got %v, want nil", err)
	}
	defer closeFiles(files)
	mustConverse(t, c1, mustFileConn(t, files[0]))
}

func TestReadFilesWithMoreThanMaxClosesAll(t *testing.T) {
	for _, test := range []struct{ sent, max int }{{1, 0}, {3, 0}, {3, 1}, {3, 2}, {253, 0}, {253, 100}, {253, 252}} {
		t.Run(fmt.Sprintf("%d of %d", test.max, test.sent), func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			r, w := newPipes(t, 1)
			if _, err := from.WriteFiles([]byte("abc"), slices.Repeat(w, test.sent)...); err != nil {
				t.Skip("the kernel allows fewer files: ", err)
			}
			closeFiles(w)
			before := sockettest.CountDescriptors(t)
			n, files, err := to.ReadFiles(make([]byte, 3), test.max)
			if err == nil || n != 3 || files != nil {
				t.Errorf("ReadFiles with max %d of %d files: got %d, %d files, %v; want 3, no files, an error", test.max, test.sent, n, len(files), err)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "read" {
				t.Errorf("ReadFiles with max %d of %d files: got %#v, want a *net.OpError of read", test.max, test.sent, err)
			}
			if after := sockettest.CountDescriptors(t); after > before {
				t.Errorf("ReadFiles with max %d of %d files: got %d open descriptors, want at most %d", test.max, test.sent, after, before)
			}
			wantAllClosed(t, r)
			mustConverse(t, from, to) // the error does not end the Conn
		})
	}
}

// maxFiles is the most files that WriteFiles accepts.
const maxFiles = 253

func TestAsManyFilesAsCanPass(t *testing.T) {
	for _, n := range []int{1, maxFiles} {
		for _, max := range []int{n, n + 1, math.MaxInt} {
			t.Run(fmt.Sprintf("%d of at most %d", n, max), func(t *testing.T) {
				sockettest.CheckDescriptors(t)
				from, to := newPairT(t)
				r, w := newPipes(t, 1)
				if _, err := from.WriteFiles([]byte("x"), slices.Repeat(w, n)...); err != nil {
					t.Skip("the kernel allows fewer files: ", err)
				}
				closeFiles(w)
				_, files, err := to.ReadFiles(make([]byte, 1), max)
				if err != nil || len(files) != n {
					t.Errorf("ReadFiles: got %d files, %v; want %d, nil", len(files), err, n)
				}
				closeFiles(files)
				wantAllClosed(t, r)
			})
		}
	}
}

func TestFilesThatCannotBeWritten(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	_, w := newPipes(t, 1)
	closed := openClosed(t)
	for name, test := range map[string]struct {
		b     string
		files []*os.File
		want  string // in the error's text
	}{
		"too many":           {"x", slices.Repeat(w, maxFiles+1), "253"},
		"no bytes":           {"", w, "without data"},
		"nil":                {"x", []*os.File{nil}, "file 0"},
		"nil among others":   {"x", []*os.File{w[0], nil}, "file 1"},
		"closed":             {"x", []*os.File{closed}, "file 0"},
		"closed among other": {"x", []*os.File{w[0], closed}, "file 1"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := from.WriteFiles([]byte(test.b), test.files...)
			if n != 0 || err == nil {
				t.Fatalf("WriteFiles: got %d, %v; want 0, an error", n, err)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "write" {
				t.Errorf("WriteFiles: got %#v, want a *net.OpError of write", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("WriteFiles: got %q, want an error with %q", err, test.want)
			}
			if errors.Is(err, net.ErrClosed) {
				t.Errorf("WriteFiles on an open Conn: got %q, want another error than net.ErrClosed", err)
			}
		})
	}
	// None of the calls has sent anything.
	if _, err := from.Write([]byte("y")); err != nil {
		t.Fatalf("Write after WriteFiles failed: got %v, want nil", err)
	}
	b := make([]byte, 10)
	n, files, err := to.ReadFiles(b, 10)
	if string(b[:n]) != "y" || len(files) != 0 || err != nil {
		t.Errorf("ReadFiles after WriteFiles failed: got %q, %d files, %v; want %q, 0 files, nil", b[:n], len(files), err, "y")
	}
}

func TestWriteFilesWithoutFilesIsWrite(t *testing.T) {
	from, to := newPairT(t)
	if n, err := from.WriteFiles([]byte("bytes")); n != 5 || err != nil {
		t.Fatalf("WriteFiles of 5 bytes without files: got %d, %v; want 5, nil", n, err)
	}
	if n, err := from.WriteFiles(nil); n != 0 || err != nil {
		t.Fatalf("WriteFiles of 0 bytes without files: got %d, %v; want 0, nil", n, err)
	}
	b := make([]byte, 10)
	if n, err := to.Read(b); string(b[:n]) != "bytes" || err != nil {
		t.Errorf("Read after WriteFiles: got %q, %v; want %q, nil", b[:n], err, "bytes")
	}
}

func TestReadFilesWithoutFilesIsRead(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	for _, max := range []int{0, 3} {
		if _, err := from.Write([]byte("bytes")); err != nil {
			t.Fatalf("Write: %v", err)
		}
		if n, files, err := to.ReadFiles(nil, max); n != 0 || files != nil || err != nil {
			t.Errorf("ReadFiles into 0 bytes, max %d: got %d, %v, %v; want 0, nil, nil", max, n, files, err)
		}
		b := make([]byte, 3)
		for _, want := range []string{"byt", "es"} {
			if n, files, err := to.ReadFiles(b, max); string(b[:n]) != want || files != nil || err != nil {
				t.Errorf("ReadFiles without files, max %d: got %q, %v, %v; want %q, nil, nil", max, b[:n], files, err, want)
			}
		}
	}
	from.Close()
	if n, files, err := to.ReadFiles(make([]byte, 1), 1); n != 0 || files != nil || err != io.EOF {
		t.Errorf("ReadFiles after the peer's Close: got %d, %v, %v; want 0, nil, io.EOF", n, files, err)
	}
}

func TestReadFilesRefusesANegativeMax(t *testing.T) {
	from, to := newPairT(t)
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatalf("Write: %v", err)
	}
	b := make([]byte, 1)
	if n, _, err := to.ReadFiles(b, -1); n != 0 || err == nil || !strings.Contains(err.Error(), "negative maximum of descriptors: -1") {
		t.Errorf("ReadFiles with max -1: got %d, %v; want 0, an error that says so", n, err)
	}
	if n, err := to.Read(b); string(b[:n]) != "x" || err != nil {
		t.Errorf("Read after a ReadFiles that was refused: got %q, %v; want %q, nil", b[:n], err, "x")
	}
}

// TestFilesComeOnce reads the bytes of one WriteFiles in parts. The files come with
// the first part only.
func TestFilesComeOnce(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 2)
	if _, err := from.WriteFiles([]byte("abcdef"), w...); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	closeFiles(w)
	for i, want := range []string{"ab", "cd", "ef"} {
		b := make([]byte, 2)
		n, files, err := to.ReadFiles(b, 2)
		if string(b[:n]) != want || err != nil {
			t.Fatalf("ReadFiles of 2 bytes: got %q, %v; want %q, nil", b[:n], err, want)
		}
		if wantFiles := []int{2, 0, 0}[i]; len(files) != wantFiles {
			t.Errorf("ReadFiles of %q: got %d files, want %d", b, len(files), wantFiles)
		}
		closeFiles(files)
	}
	wantAllClosed(t, r)
}

func TestAllOfALongWriteFilesArrives(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	setBuffer(t, from, 4096)
	r, w := newPipes(t, 3)
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i * 7 / 3)
	}
	written := make(chan error, 1)
	go func() {
		n, err := from.WriteFiles(sent, w...)
		if err == nil && n != len(sent) {
			err = fmt.Errorf("got the count %d, want %d", n, len(sent))
		}
		from.CloseWrite()
		written <- err
	}()
	var got bytes.Buffer
	var files []*os.File
	b := make([]byte, 10000)
	for {
		n, more, err := to.ReadFiles(b, 3)
		if len(more) > 0 && got.Len() > 0 {
			t.Errorf("ReadFiles after %d bytes: got %d files, want 0", got.Len(), len(more))
		}
		got.Write(b[:n])
		files = append(files, more...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("ReadFiles after %d bytes: got %v, want nil or io.EOF", got.Len(), err)
		}
	}
	if err := sockettest.Receive(t, "the writer", written); err != nil {
		t.Errorf("WriteFiles of %d bytes: %v", len(sent), err)
	}
	if !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("ReadFiles to the end: got %d bytes, want the %d bytes that were sent", got.Len(), len(sent))
	}
	if len(files) != 3 {
		t.Errorf("ReadFiles to the end: got %d files, want 3", len(files))
	}
	closeFiles(files)
	closeFiles(w)
	wantAllClosed(t, r)
}

func TestConcurrentWriteFilesDoNotMix(t *testing.T) {
	sockettest.CheckDescriptors(t)
	const (
		writers  = 6
		messages = 10
		size     = 20_000
	)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after the close of the pair, which ends the writers
	from, to := newPairT(t)
	setBuffer(t, from, 4096)
	r, w := newPipes(t, writers)
	for i := range writers {
		wg.Go(func() {
			b := bytes.Repeat([]byte{byte(i)}, size)
			for j := range messages {
				var err error
				if j%3 == 2 {
					_, err = from.Write(b)
				} else {
					_, err = from.WriteFiles(b, w[i])
				}
				if err != nil {
					t.Errorf("message %d of writer %d: got %v, want nil", j, i, err)
				}
			}
		})
	}
	b := make([]byte, 7001)
	var files, all int
	for writer, total := byte(0), writers*messages*size; all < total; {
		n, more, err := to.ReadFiles(b, 1)
		if err != nil {
			t.Fatalf("ReadFiles after %d bytes: got %v, want nil", all, err)
		}
		for k := range n {
			if (all+k)%size == 0 {
				writer = b[k]
			} else if b[k] != writer {
				t.Fatalf("byte %d of a message of writer %d: got a byte of writer %d", (all+k)%size, writer, b[k])
			}
		}
		all += n
		for _, f := range more {
			files++
			// The file came with the message that began last.
			if _, err := f.Write([]byte{writer}); err != nil {
				t.Fatalf("Write to a received file: %v", err)
			}
			f.Close()
		}
	}
	if want := writers * (messages - messages/3); files != want {
		t.Errorf("ReadFiles of all messages: got %d files, want %d", files, want)
	}
	closeFiles(w)
	for i := range r {
		got, err := io.ReadAll(r[i])
		if want := bytes.Repeat([]byte{byte(i)}, messages-messages/3); err != nil || !bytes.Equal(got, want) {
			t.Errorf("writers of the messages that the files of writer %d came with: got %v, %v; want %v, nil", i, got, err, want)
		}
	}
}

func TestAPlainReadLeaksNoFile(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	if _, err := from.WriteFiles([]byte("abc"), w...); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	closeFiles(w)
	before := sockettest.CountDescriptors(t)
	b := make([]byte, 3)
	if n, err := to.Read(b); string(b[:n]) != "abc" || err != nil {
		t.Errorf("Read after WriteFiles: got %q, %v; want %q, nil", b[:n], err, "abc")
	}
	sockettest.WaitDescriptors(t, before)
	other, _ := newPairT(t)
	other.Close() // NetBSD closes what it has discarded when it closes a socket
	wantAllClosed(t, r)
}

func TestFilesNeverReadAreClosedWithTheConn(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	if _, err := from.WriteFiles([]byte("abc"), w...); err != nil {
		t.Fatalf("WriteFiles: %v", err)
	}
	closeFiles(w)
	from.Close()
	to.Close()
	wantAllClosed(t, r)
}

func TestFilesMeetDeadlines(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 1)
	to.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if n, files, err := to.ReadFiles(make([]byte, 1), 1); n != 0 || files != nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ReadFiles with a deadline in 10 ms: got %d, %v, %v; want 0, nil, os.ErrDeadlineExceeded", n, files, err)
	}
	to.SetReadDeadline(time.Time{})
	before := fillBuffer(t, from)
	from.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := from.WriteFiles([]byte("x"), w...); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("WriteFiles with a deadline in 10 ms: got %d, %v; want 0, os.ErrDeadlineExceeded", n, err)
	}
	from.SetWriteDeadline(time.Time{})
	closeFiles(w)
	wantAllClosed(t, r) // WriteFiles sent no file
	if n, err := io.ReadFull(to, make([]byte, before)); err != nil {
		t.Fatalf("ReadFull of the full buffer: got %d, %v; want %d, nil", n, err, before)
	}
	mustConverse(t, from, to)
}

// hasInput reports whether poll(2) finds input or an end at c.
func hasInput(t testing.TB, c *unixsock.Conn) (yes bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	raw.Control(func(fd uintptr) { yes = sockettest.Readable(int(fd)) })
	return yes
}

// TestADeadlineAmidWriteFiles sets a deadline when WriteFiles has sent the files
// and a part of the bytes.
func TestADeadlineAmidWriteFiles(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	_, w := newPipes(t, 1)
	b := make([]byte, 16<<20)
	var n int
	written := make(chan error, 1)
	go func() {
		var err error
		n, err = from.WriteFiles(b, w...)
		written <- err
	}()
	sockettest.WaitFor(t, "nothing arrives", func() bool { return hasInput(t, to) })
	from.SetWriteDeadline(time.Unix(1, 0))
	err := sockettest.Receive(t, "the writer", written)
	if n <= 0 || n >= len(b) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("WriteFiles of %d bytes that a deadline ended: got %d, %v; want a part, os.ErrDeadlineExceeded", len(b), n, err)
	}
	from.Close()
	b = make([]byte, 1<<20)
	read, count := 0, 0
	for {
		m, files, err := to.ReadFiles(b, 1)
		read += m
		count += len(files)
		closeFiles(files)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("ReadFiles after %d bytes: got %v, want nil or io.EOF", read, err)
		}
	}
	if read != n || count != 1 {
		t.Errorf("ReadFiles to the end: got %d bytes and %d files, want %d and 1", read, count, n)
	}
}

func TestClosingAHalfWakesReadFilesAndWriteFiles(t *testing.T) {
	for name, closeHalves := range map[string]func(reader, writer *unixsock.Conn){
		"half":  func(reader, writer *unixsock.Conn) { reader.CloseRead(); writer.CloseWrite() },
		"whole": func(reader, writer *unixsock.Conn) { reader.Close(); writer.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			reader, _ := newPairT(t)
			writer, _ := newPairT(t)
			_, w := newPipes(t, 1)
			fillBuffer(t, writer)
			readFiles := func() error {
				_, _, err := reader.ReadFiles(make([]byte, 1), 1)
				return err
			}
			writeFiles := func() error {
				_, err := writer.WriteFiles([]byte("x"), w...)
				return err
			}
			read, written := waiting(t, readFiles), waiting(t, writeFiles)
			closeHalves(reader, writer)
			if err := sockettest.Receive(t, "ReadFiles", read); !errors.Is(err, net.ErrClosed) {
				t.Errorf("waiting ReadFiles after the close: got %v, want net.ErrClosed", err)
			}
			if err := sockettest.Receive(t, "WriteFiles", written); !errors.Is(err, net.ErrClosed) {
				t.Errorf("waiting WriteFiles after the close: got %v, want net.ErrClosed", err)
			}
			if err := readFiles(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("ReadFiles after the close: got %v, want net.ErrClosed", err)
			}
			if err := writeFiles(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("WriteFiles after the close: got %v, want net.ErrClosed", err)
			}
		})
	}
}

func TestFilesPassOverTheOtherHalf(t *testing.T) {
	sockettest.CheckDescriptors(t)
	c1, c2 := newPairT(t)
	_, w := newPipes(t, 1)
	c1.CloseRead()
	c2.CloseWrite()
	if _, err := c1.WriteFiles([]byte("x"), w...); err != nil {
		t.Fatalf("WriteFiles after CloseRead: got %v, want nil", err)
	}
	c1.CloseWrite()
	n, files, err := c2.ReadFiles(make([]byte, 2), 1)
	if n != 1 || len(files) != 1 || err != nil {
		t.Errorf("ReadFiles after CloseWrite: got %d, %d files, %v; want 1, 1 file, nil", n, len(files), err)
	}
	closeFiles(files)
	if _, _, err := c2.ReadFiles(make([]byte, 2), 1); err != io.EOF {
		t.Errorf("ReadFiles after the peer's CloseWrite: got %v, want io.EOF", err)
	}
}

func TestWriteFilesToAPeerThatIsGone(t *testing.T) {
	sockettest.CheckDescriptors(t)
	c1, c2 := newPairT(t)
	r, w := newPipes(t, 1)
	c2.Close()
	if n, err := c1.WriteFiles([]byte("x"), w...); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("WriteFiles after the peer's Close: got %d, %v; want 0, EPIPE", n, err)
	}
	closeFiles(w)
	wantAllClosed(t, r)
}

func TestReadFilesWithoutDescriptorsLeavesNoneOpen(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	reported := sockettest.ReportsRightsCutByLimit(t)
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 1)
	var limit, low unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("getrlimit(2): %v", err)
	}
	lowest, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatalf("fcntl(F_DUPFD_CLOEXEC): %v", err)
	}
	unix.Close(lowest)
	for room := range 6 {
		if _, err := from.WriteFiles([]byte("x"), slices.Repeat(w, 5)...); err != nil {
			t.Fatalf("WriteFiles: %v", err)
		}
		before := sockettest.CountDescriptors(t)
		low = limit
		sockettest.SetUint(&low.Cur, lowest+room)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatalf("setrlimit(2) to %d more descriptors: %v", room, err)
		}
		n, files, err := to.ReadFiles(make([]byte, 1), 5)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatalf("setrlimit(2) to the old limit: %v", err)
		}
		got := len(files)
		closeFiles(files)
		switch {
		case room < 5 && reported && (err == nil || got != 0):
			t.Errorf("ReadFiles of 5 files with %d free descriptors: got %d files, %v; want 0, an error", room, got, err)
		case room == 5 && (err != nil || got != 5):
			t.Errorf("ReadFiles of 5 files with 5 free descriptors: got %d files, %v; want 5, nil", got, err)
		}
		if after := sockettest.CountDescriptors(t); after > before {
			t.Errorf("ReadFiles of 5 files with %d free descriptors (%d bytes read): got %d open descriptors, want at most %d", room, n, after, before)
		}
	}
	mustConverse(t, from, to)
	closeFiles(w)
	if err := to.Close(); err != nil { // Close discards what is unread
		t.Fatalf("Close: got %v, want nil", err)
	}
	if reported { // otherwise the kernel keeps files open
		wantAllClosed(t, r)
	}
}
