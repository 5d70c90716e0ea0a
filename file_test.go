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
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// mustConverse makes sure that what is written to one end is read from the other.
func mustConverse(t testing.TB, c1, c2 io.ReadWriter) {
	t.Helper()
	for _, ends := range [][2]io.ReadWriter{{c1, c2}, {c2, c1}} {
		if _, err := ends[0].Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(ends[1], b); err != nil || string(b) != "hello" {
			t.Fatalf("reads %q, %v", b, err)
		}
	}
}

// newPairT returns the two ends of a Pair. They are closed with the test.
func newPairT(t testing.TB) (*unixsock.Conn, *unixsock.Conn) {
	t.Helper()
	c1, c2, err := unixsock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c1.Close(); c2.Close() })
	return c1, c2
}

// rawPair returns the two ends of a socket pair as files, in blocking mode.
func rawPair(t testing.TB, kind int) (*os.File, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err != nil {
		t.Skip(err)
	}
	f1, f2 := os.NewFile(uintptr(fds[0]), "end 1"), os.NewFile(uintptr(fds[1]), "end 2")
	t.Cleanup(func() { f1.Close(); f2.Close() })
	return f1, f2
}

// mustFile returns the file of what has one. It is closed with the test.
func mustFile(t testing.TB, of interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := of.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mustFileConn adopts f. The Conn is closed with the test.
func mustFileConn(t testing.TB, f *os.File) *unixsock.Conn {
	t.Helper()
	c, err := unixsock.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustFileListener adopts f. The Listener is closed with the test.
func mustFileListener(t testing.TB, f *os.File) *unixsock.Listener {
	t.Helper()
	l, err := unixsock.FileListener(f)
	if err != nil {
		t.Fatal(err)
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
			t.Errorf("an address is %v %q", addr.Network(), addr)
		}
	}
	if err := c1.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c2.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("error %v, want EOF", err)
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
		t.Errorf("the local name is %q, want %q", got, want)
	}
	if got := adopted.RemoteAddr().String(); got != "" {
		t.Errorf("the remote name is %q, want none", got)
	}
	adopted.Close()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("error %v, want EOF", err)
	}
}

func TestFileConnLeavesTheOriginal(t *testing.T) {
	sockettest.CheckDescriptors(t)
	client, server := sockettest.Pair(t)
	f := mustFile(t, server)
	if err := mustFileConn(t, f).Close(); err != nil {
		t.Fatal(err)
	}
	mustConverse(t, client, server)
	mustConverse(t, client, f)
}

func TestFileConnOfNet(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	nl, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	f, err := nl.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := mustFileListener(t, f)
	nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	cf, err := nc.File()
	if err != nil {
		t.Fatal(err)
	}
	defer cf.Close()
	client := mustFileConn(t, cf)
	nc.Close()
	mustConverse(t, client, sockettest.Accept(t, l))
	if got := client.RemoteAddr().String(); got != path {
		t.Errorf("the remote name is %q, want %q", got, path)
	}
}

func TestFileConnOfOneWhosePeerIsGone(t *testing.T) {
	client, server := sockettest.Pair(t)
	if _, err := client.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	client.Close()
	adopted := mustFileConn(t, mustFile(t, server))
	if b, err := io.ReadAll(adopted); err != nil || string(b) != "last words" {
		t.Errorf("reads %q, %v", b, err)
	}
}

func TestFileConnOfABlockingDescriptor(t *testing.T) {
	sockettest.CheckDescriptors(t)
	f1, f2 := rawPair(t, unix.SOCK_STREAM)
	c1, c2 := mustFileConn(t, f1), mustFileConn(t, f2)
	mustConverse(t, c1, c2)
	c1.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c1.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
	c1.SetReadDeadline(time.Time{})
	woken := make(chan error, 1)
	go func() {
		_, err := c1.Read(make([]byte, 1))
		woken <- err
	}()
	c1.Close()
	if err := sockettest.Receive(t, "the reader", woken); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want net.ErrClosed", err)
	}
}

func TestFileListenerOfABlockingDescriptor(t *testing.T) {
	sockettest.CheckDescriptors(t)
	path := filepath.Join(sockettest.ShortDir(t), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "blocking")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 4)); err != nil {
		t.Fatal(err)
	}
	l := mustFileListener(t, f)
	l.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want os.ErrDeadlineExceeded", err)
	}
	l.SetDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := l.AcceptContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want context.DeadlineExceeded", err)
	}
	sockettest.Exchange(t, path, l)
}

func TestFileListenerAdoptsACopy(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t)
	f := mustFile(t, original)
	l := mustFileListener(t, f)
	f.Close()
	original.Close()
	if l.Addr().String() != original.Addr().String() {
		t.Errorf("its name is %q, want %q", l.Addr(), original.Addr())
	}
	sockettest.Exchange(t, original.Addr().String(), l)
}

func TestFileListenerLeavesTheOriginal(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t, unixsock.UnlinkOnClose())
	f := mustFile(t, original)
	if err := mustFileListener(t, f).Close(); err != nil {
		t.Fatal(err)
	}
	sockettest.Exchange(t, original.Addr().String(), original)
}

func TestAdoptedListenerIsAnEvent(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t)
	l := mustFileListener(t, mustFile(t, original))
	ready := l.Ready()
	if polled(t, l, l.Ready()) {
		t.Error("Ready without a connection: ready, want not ready")
	}
	client := sockettest.Connect(t, original.Addr().String())
	if !polled(t, l, l.Ready()) {
		t.Error("Ready with a connection pending: not ready, want ready")
	}
	accepted := sockettest.Receive(t, "an accept event", l.AcceptEvt(t.Context()))
	if accepted.Err != nil {
		t.Fatal(accepted.Err)
	}
	mustConverse(t, client, accepted.Conn)
	if polled(t, l, l.Ready()) {
		t.Error("ready, and all are accepted")
	}
	l.Close()
	sockettest.WaitFor(t, "the closed listener's channel is open", func() bool {
		_, ok := <-ready
		return !ok
	})
}

func TestFileConnAndFileListenerRefuseOthers(t *testing.T) {
	sockettest.CheckDescriptors(t)
	conn, listener := "FileConn", "FileListener"
	for name, test := range map[string]struct {
		open func(t *testing.T) *os.File
		want string // in the message
		by   []string
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
					t.Fatal("no error")
				}
				var op *net.OpError
				if !errors.As(err, &op) || op.Net != "unix" {
					t.Errorf("error %#v, want a *net.OpError of unix", err)
				}
				if !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %q, want %q in it", err, test.want)
				}
			})
		}
	}
}

func openTCPListener(t *testing.T) *os.File {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	return mustFile(t, l.(*net.TCPListener))
}

func openTCPConn(t *testing.T) *os.File {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return mustFile(t, c.(*net.TCPConn))
}

func openUDP(t *testing.T) *os.File {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { c.Close() })
	return mustFile(t, c.(*net.UDPConn))
}

func openRegular(t *testing.T) *os.File {
	f, err := os.Create(filepath.Join(sockettest.ShortDir(t), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openPipe(t *testing.T) *os.File {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r
}

func openClosed(t *testing.T) *os.File {
	c, _ := newPairT(t)
	f := mustFile(t, c)
	f.Close()
	return f
}

func openUnconnected(t *testing.T) *os.File {
	fd, err := sockettest.Socket()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "unconnected")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestARefusedFileIsUntouched(t *testing.T) {
	f, _ := rawPair(t, unix.SOCK_DGRAM)
	if _, err := unixsock.FileConn(f); err == nil {
		t.Fatal("no error")
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("its flags are %#x, %v: it is no longer blocking", flags, err)
	}
}

func TestFileAfterClose(t *testing.T) {
	c, _ := newPairT(t)
	l := sockettest.Listen(t)
	c.Close()
	l.Close()
	for _, of := range []interface{ File() (*os.File, error) }{c, l} {
		f, err := of.File()
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%T: error %v, want net.ErrClosed", of, err)
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Errorf("%T: error %#v, want a *net.OpError", of, err)
		}
	}
}

// TestFileLeavesDeadlinesAlive is about the method Fd, which may put a
// descriptor into blocking mode, for every descriptor that shares its description.
func TestFileLeavesDeadlinesAlive(t *testing.T) {
	c, _ := newPairT(t)
	l := sockettest.Listen(t)
	mustFile(t, c).Fd()
	mustFile(t, l).Fd()
	soon := time.Now().Add(10 * time.Millisecond)
	c.SetReadDeadline(soon)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: error %v, want os.ErrDeadlineExceeded", err)
	}
	l.SetDeadline(soon)
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("accept: error %v, want os.ErrDeadlineExceeded", err)
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
			t.Errorf("%d answers, want %d", pid, h.Cmd.Process.Pid)
		}
	}
	h.Kill()
}

func TestAChildTalksOverAnInheritedConn(t *testing.T) {
	sockettest.CheckDescriptors(t)
	mine, its := newPairT(t)
	f := mustFile(t, its)
	h := sockettest.StartHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, "talk")
	f.Close()
	its.Close()
	if _, err := mine.Write([]byte("who?\n")); err != nil {
		t.Fatal(err)
	}
	mine.CloseWrite()
	got, err := io.ReadAll(mine)
	if want := fmt.Sprintf("who? %d", h.Cmd.Process.Pid); err != nil || string(got) != want {
		t.Errorf("the child says %q, %v, want %q", got, err, want)
	}
	h.Kill()
}

// helpTalk reads a line from the Conn that it has inherited, and answers with
// that and its pid.
func helpTalk([]string) error {
	f := os.NewFile(3, "inherited")
	c, err := unixsock.FileConn(f)
	f.Close()
	if err != nil {
		return err
	}
	defer c.Close()
	said, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c, "%s %d", strings.TrimSpace(string(said)), os.Getpid())
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
		t.Fatal(err)
	}
	_, received, err := c2.ReadFiles(make([]byte, 1), 2)
	if err != nil || len(received) != 2 {
		t.Fatal(received, err)
	}
	defer received[0].Close()
	defer received[1].Close()
	for name, of := range map[string]syscall.Conn{
		"Pair 1": c1, "Pair 2": c2, "Listen": l, "Connect": client, "Accept": server, "AcceptEvt": evt,
		"Conn.File": fc, "Listener.File": fl, "FileConn": mustFileConn(t, fc), "FileListener": mustFileListener(t, fl),
		"ReadFiles 1": received[0], "ReadFiles 2": received[1],
	} {
		raw, err := of.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: flags %#x, %v: not close-on-exec", name, flags, err)
			}
		})
	}
}

// newPipes returns the ends of n pipes. They are closed with the test.
func newPipes(t testing.TB, n int) (r, w []*os.File) {
	t.Helper()
	for range n {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
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

// wantAllClosed makes sure that no copy of a write end is left, in flight or
// received: the read ends are at their end.
func wantAllClosed(t testing.TB, r []*os.File) {
	t.Helper()
	for i, f := range r {
		f.SetReadDeadline(time.Now().Add(sockettest.Timeout))
		if _, err := f.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("pipe %d: error %v, want EOF: its other end is open", i, err)
		}
	}
}

// setBuffer makes c's send buffer small.
func setBuffer(t testing.TB, c *unixsock.Conn, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesPassAndWork(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	n, err := from.WriteFiles([]byte("three"), w...)
	if n != 5 || err != nil {
		t.Fatal(n, err)
	}
	closeFiles(w)
	b := make([]byte, 10)
	n, files, err := to.ReadFiles(b, 3)
	if err != nil || string(b[:n]) != "three" || len(files) != 3 {
		t.Fatalf("%q, %d files, %v", b[:n], len(files), err)
	}
	for i, f := range files {
		if _, err := fmt.Fprint(f, i); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if got, err := io.ReadAll(r[i]); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("pipe %d reads %q, %v: the order is wrong", i, got, err)
		}
	}
}

func TestWriteFilesLeavesTheFilesOpen(t *testing.T) {
	from, to := newPairT(t)
	r, w := newPipes(t, 1)
	if _, err := from.WriteFiles([]byte("x"), w[0]); err != nil {
		t.Fatal(err)
	}
	from.Close()
	to.Close()
	if _, err := w[0].Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := r[0].Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestAConnCanBePassed(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	c1, c2 := newPairT(t)
	if _, err := from.WriteFiles([]byte("x"), mustFile(t, c2)); err != nil {
		t.Fatal(err)
	}
	c2.Close()
	_, files, err := to.ReadFiles(make([]byte, 1), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles(files)
	mustConverse(t, c1, mustFileConn(t, files[0]))
}

func TestReadFilesWithMoreThanMaxClosesAll(t *testing.T) {
	for _, test := range []struct{ come, max int }{{1, 0}, {3, 0}, {3, 1}, {3, 2}, {253, 0}, {253, 100}, {253, 252}} {
		t.Run(fmt.Sprintf("%d of %d", test.max, test.come), func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			r, w := newPipes(t, 1)
			if _, err := from.WriteFiles([]byte("abc"), slices.Repeat(w, test.come)...); err != nil {
				t.Skip(err) // more than this system allows
			}
			closeFiles(w)
			before := sockettest.CountDescriptors(t)
			n, files, err := to.ReadFiles(make([]byte, 3), test.max)
			if err == nil || n != 3 || files != nil {
				t.Errorf("%d bytes, %d files, error %v; want 3 bytes, no file, an error", n, len(files), err)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "read" {
				t.Errorf("error %#v, want a *net.OpError of read", err)
			}
			if after := sockettest.CountDescriptors(t); after > before {
				t.Errorf("%d descriptors were open, %d are", before, after)
			}
			wantAllClosed(t, r)
			mustConverse(t, from, to) // the Conn goes on
		})
	}
}

// maxFiles is the limit of WriteFiles.
const maxFiles = 253

func TestAsManyFilesAsCanPass(t *testing.T) {
	for _, n := range []int{1, maxFiles} {
		for _, max := range []int{n, n + 1, math.MaxInt} {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			r, w := newPipes(t, 1)
			if _, err := from.WriteFiles([]byte("x"), slices.Repeat(w, n)...); err != nil {
				t.Skip(err)
			}
			closeFiles(w)
			_, files, err := to.ReadFiles(make([]byte, 1), max)
			if err != nil || len(files) != n {
				t.Errorf("max %d: %d files of %d, %v", max, len(files), n, err)
			}
			closeFiles(files)
			wantAllClosed(t, r)
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
		want  string // in the message
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
				t.Fatalf("%d bytes, error %v; want none, and an error", n, err)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "write" {
				t.Errorf("error %#v, want a *net.OpError of write", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
			if errors.Is(err, net.ErrClosed) {
				t.Errorf("error %q says that the Conn is closed, which it is not", err)
			}
		})
	}
	// Nothing of all that has gone out.
	if _, err := from.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	n, files, err := to.ReadFiles(b, 10)
	if string(b[:n]) != "y" || len(files) != 0 || err != nil {
		t.Errorf("reads %q, %d files, %v", b[:n], len(files), err)
	}
}

func TestWriteFilesWithoutFilesIsWrite(t *testing.T) {
	from, to := newPairT(t)
	if n, err := from.WriteFiles([]byte("bytes")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := from.WriteFiles(nil); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	b := make([]byte, 10)
	if n, err := to.Read(b); string(b[:n]) != "bytes" || err != nil {
		t.Errorf("reads %q, %v", b[:n], err)
	}
}

func TestReadFilesWithoutFilesIsRead(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	for _, max := range []int{0, 3} {
		if _, err := from.Write([]byte("bytes")); err != nil {
			t.Fatal(err)
		}
		if n, files, err := to.ReadFiles(nil, max); n != 0 || files != nil || err != nil {
			t.Errorf("into nothing: %d bytes, %v, %v", n, files, err)
		}
		b := make([]byte, 3)
		for _, want := range []string{"byt", "es"} {
			if n, files, err := to.ReadFiles(b, max); string(b[:n]) != want || files != nil || err != nil {
				t.Errorf("reads %q, %v, %v; want %q", b[:n], files, err, want)
			}
		}
	}
	from.Close()
	if n, files, err := to.ReadFiles(make([]byte, 1), 1); n != 0 || files != nil || err != io.EOF {
		t.Errorf("at the end: %d bytes, %v, error %v; want EOF", n, files, err)
	}
}

func TestReadFilesRefusesANegativeMax(t *testing.T) {
	from, to := newPairT(t)
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, _, err := to.ReadFiles(make([]byte, 1), -1); n != 0 || err == nil {
		t.Errorf("%d bytes, error %v", n, err)
	}
}

// TestFilesComeOnce reads the bytes of one message in small pieces.
func TestFilesComeOnce(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 2)
	if _, err := from.WriteFiles([]byte("abcdef"), w...); err != nil {
		t.Fatal(err)
	}
	closeFiles(w)
	for i, want := range []string{"ab", "cd", "ef"} {
		b := make([]byte, 2)
		n, files, err := to.ReadFiles(b, 2)
		if string(b[:n]) != want || err != nil {
			t.Fatalf("reads %q, %v", b[:n], err)
		}
		if wantFiles := []int{2, 0, 0}[i]; len(files) != wantFiles {
			t.Errorf("with %q come %d files, want %d", b, len(files), wantFiles)
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
			err = fmt.Errorf("%d bytes written", n)
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
			t.Errorf("%d files after %d bytes", len(more), got.Len())
		}
		got.Write(b[:n])
		files = append(files, more...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := sockettest.Receive(t, "the writer", written); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got.Bytes(), sent) {
		t.Errorf("%d bytes came, not what was sent", got.Len())
	}
	if len(files) != 3 {
		t.Errorf("%d files came, want 3", len(files))
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
	from, to := newPairT(t)
	setBuffer(t, from, 4096)
	r, w := newPipes(t, writers)
	for i := range writers {
		go func() {
			b := bytes.Repeat([]byte{byte(i)}, size)
			for j := range messages {
				var err error
				if j%3 == 2 {
					_, err = from.Write(b)
				} else {
					_, err = from.WriteFiles(b, w[i])
				}
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	b := make([]byte, 7001)
	var files, all int
	for from, total := byte(0), writers*messages*size; all < total; {
		n, more, err := to.ReadFiles(b, 1)
		if err != nil {
			t.Fatal(err)
		}
		for k := range n {
			if (all+k)%size == 0 {
				from = b[k]
			} else if b[k] != from {
				t.Fatalf("at byte %d of a message of writer %d: a byte of writer %d", (all+k)%size, from, b[k])
			}
		}
		all += n
		for _, f := range more {
			files++
			// The message that began last is the one that it came with.
			if _, err := f.Write([]byte{from}); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	if want := writers * (messages - messages/3); files != want {
		t.Errorf("%d files came, want %d", files, want)
	}
	closeFiles(w)
	for i := range r {
		got, err := io.ReadAll(r[i])
		if want := bytes.Repeat([]byte{byte(i)}, messages-messages/3); err != nil || !bytes.Equal(got, want) {
			t.Errorf("writer %d's files came with the messages of %v, %v", i, got, err)
		}
	}
}

func TestAPlainReadLeaksNoFile(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	if _, err := from.WriteFiles([]byte("abc"), w...); err != nil {
		t.Fatal(err)
	}
	closeFiles(w)
	before := sockettest.CountDescriptors(t)
	b := make([]byte, 3)
	if n, err := to.Read(b); string(b[:n]) != "abc" || err != nil {
		t.Errorf("reads %q, %v", b[:n], err)
	}
	if after := sockettest.CountDescriptors(t); after > before {
		t.Errorf("%d descriptors were open, %d are", before, after)
	}
	wantAllClosed(t, r)
}

func TestFilesNeverReadAreClosedWithTheConn(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 3)
	if _, err := from.WriteFiles([]byte("abc"), w...); err != nil {
		t.Fatal(err)
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
		t.Errorf("%d bytes, %v, error %v; want os.ErrDeadlineExceeded", n, files, err)
	}
	to.SetReadDeadline(time.Time{})
	before := fillBuffer(t, from)
	from.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
	if n, err := from.WriteFiles([]byte("x"), w...); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, error %v; want os.ErrDeadlineExceeded", n, err)
	}
	from.SetWriteDeadline(time.Time{})
	closeFiles(w)
	wantAllClosed(t, r) // nothing went out
	if _, err := io.ReadFull(to, make([]byte, before)); err != nil {
		t.Fatal(err)
	}
	mustConverse(t, from, to)
}

// hasInput reports whether there is something to read from c.
func hasInput(t testing.TB, c *unixsock.Conn) (yes bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { yes = sockettest.Readable(int(fd)) })
	return yes
}

// TestADeadlineAmidWriteFiles has the files go out, and not all of the bytes.
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
		t.Fatalf("%d bytes, error %v", n, err)
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
			t.Fatal(err)
		}
	}
	if read != n || count != 1 {
		t.Errorf("%d bytes and %d files came, want %d and 1", read, count, n)
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
			woken := make(chan error, 2)
			go func() {
				_, _, err := reader.ReadFiles(make([]byte, 1), 1)
				woken <- err
			}()
			go func() {
				_, err := writer.WriteFiles([]byte("x"), w...)
				woken <- err
			}()
			sockettest.WaitInPoller(t, 2)
			closeHalves(reader, writer)
			for range 2 {
				if err := sockettest.Receive(t, "the waiting call", woken); !errors.Is(err, net.ErrClosed) {
					t.Errorf("error %v, want net.ErrClosed", err)
				}
			}
			if _, _, err := reader.ReadFiles(make([]byte, 1), 1); !errors.Is(err, net.ErrClosed) {
				t.Errorf("ReadFiles: error %v, want net.ErrClosed", err)
			}
			if _, err := writer.WriteFiles([]byte("x"), w...); !errors.Is(err, net.ErrClosed) {
				t.Errorf("WriteFiles: error %v, want net.ErrClosed", err)
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
		t.Fatal(err)
	}
	c1.CloseWrite()
	n, files, err := c2.ReadFiles(make([]byte, 2), 1)
	if n != 1 || len(files) != 1 || err != nil {
		t.Errorf("%d bytes, %d files, %v", n, len(files), err)
	}
	closeFiles(files)
	if _, _, err := c2.ReadFiles(make([]byte, 2), 1); err != io.EOF {
		t.Errorf("error %v, want EOF", err)
	}
}

func TestWriteFilesToAPeerThatIsGone(t *testing.T) {
	sockettest.CheckDescriptors(t)
	c1, c2 := newPairT(t)
	r, w := newPipes(t, 1)
	c2.Close()
	if n, err := c1.WriteFiles([]byte("x"), w...); n != 0 || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%d bytes, error %v; want EPIPE", n, err)
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
		t.Fatal(err)
	}
	lowest, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(lowest)
	for room := range 6 {
		if _, err := from.WriteFiles([]byte("x"), slices.Repeat(w, 5)...); err != nil {
			t.Fatal(err)
		}
		before := sockettest.CountDescriptors(t)
		low = limit
		sockettest.SetUint(&low.Cur, lowest+room)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		n, files, err := to.ReadFiles(make([]byte, 1), 5)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		got := len(files)
		closeFiles(files)
		switch {
		case room < 5 && reported && (err == nil || got != 0):
			t.Errorf("room for %d of 5: %d files, error %v", room, got, err)
		case room == 5 && (err != nil || got != 5):
			t.Errorf("room for all: %d files, error %v", got, err)
		}
		if after := sockettest.CountDescriptors(t); after > before {
			t.Errorf("room for %d of 5, %d bytes read: %d descriptors were open, %d are", room, n, before, after)
		}
	}
	mustConverse(t, from, to)
	closeFiles(w)
	if err := to.Close(); err != nil { // what it has not read goes with it
		t.Fatal(err)
	}
	if reported { // otherwise the kernel itself keeps them open
		wantAllClosed(t, r)
	}
}
