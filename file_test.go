//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
func newPairT(t testing.TB) (*Conn, *Conn) {
	t.Helper()
	c1, c2, err := Pair()
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
func mustFileConn(t testing.TB, f *os.File) *Conn {
	t.Helper()
	c, err := FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mustFileListener adopts f. The Listener is closed with the test.
func mustFileListener(t testing.TB, f *os.File) *Listener {
	t.Helper()
	l, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestPairIsConnected(t *testing.T) {
	checkDescriptors(t)
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
	checkDescriptors(t)
	client, server := mustPair(t)
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
	checkDescriptors(t)
	client, server := mustPair(t)
	f := mustFile(t, server)
	if err := mustFileConn(t, f).Close(); err != nil {
		t.Fatal(err)
	}
	mustConverse(t, client, server)
	mustConverse(t, client, f)
}

func TestFileConnOfNet(t *testing.T) {
	checkDescriptors(t)
	path := filepath.Join(shortDir(t), "s")
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
	mustConverse(t, client, mustAccept(t, l))
	if got := client.RemoteAddr().String(); got != path {
		t.Errorf("the remote name is %q, want %q", got, path)
	}
}

func TestFileConnOfOneWhosePeerIsGone(t *testing.T) {
	client, server := mustPair(t)
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
	checkDescriptors(t)
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
	if err := receive(t, "the reader", woken); !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want net.ErrClosed", err)
	}
}

func TestFileListenerOfABlockingDescriptor(t *testing.T) {
	checkDescriptors(t)
	path := filepath.Join(shortDir(t), "s")
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
	mustAnswer(t, l, path)
}

func TestFileListenerAdoptsACopy(t *testing.T) {
	checkDescriptors(t)
	original := mustListen(t)
	f := mustFile(t, original)
	l := mustFileListener(t, f)
	f.Close()
	original.Close()
	if l.Addr().String() != original.Addr().String() {
		t.Errorf("its name is %q, want %q", l.Addr(), original.Addr())
	}
	mustAnswer(t, l, original.name)
}

func TestFileListenerLeavesTheOriginal(t *testing.T) {
	checkDescriptors(t)
	original := mustListen(t, UnlinkOnClose())
	f := mustFile(t, original)
	if err := mustFileListener(t, f).Close(); err != nil {
		t.Fatal(err)
	}
	mustAnswer(t, original, original.name)
}

func TestAdoptedListenerIsAnEvent(t *testing.T) {
	checkDescriptors(t)
	original := mustListen(t)
	l := mustFileListener(t, mustFile(t, original))
	ready := l.Ready()
	if isReady(l) {
		t.Error("ready, and nobody has connected")
	}
	client := mustConnect(t, original.name)
	if !isReady(l) {
		t.Error("not ready, and somebody has connected")
	}
	accepted := receive(t, "an accept event", l.AcceptEvt(t.Context()))
	if accepted.Err != nil {
		t.Fatal(accepted.Err)
	}
	mustConverse(t, client, accepted.Conn)
	if isReady(l) {
		t.Error("ready, and all are accepted")
	}
	l.Close()
	waitFor(t, "the closed listener's channel is open", func() bool {
		_, ok := <-ready
		return !ok
	})
}

func TestFileConnAndFileListenerRefuseOthers(t *testing.T) {
	checkDescriptors(t)
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
		"a listener":    {func(t *testing.T) *os.File { return mustFile(t, mustListen(t)) }, "not a connected socket", []string{conn}},
		"not listening": {openUnconnected, "not a listening socket", []string{listener}},
		"a conn":        {func(t *testing.T) *os.File { c, _ := newPairT(t); return mustFile(t, c) }, "not a listening socket", []string{listener}},
	} {
		for _, by := range test.by {
			t.Run(by+" "+name, func(t *testing.T) {
				checkDescriptors(t)
				f := test.open(t)
				var c io.Closer
				var err error
				if by == conn {
					c, err = FileConn(f)
				} else {
					c, err = FileListener(f)
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
	f, err := os.Create(filepath.Join(shortDir(t), "file"))
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
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "unconnected")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestARefusedFileIsUntouched(t *testing.T) {
	f, _ := rawPair(t, unix.SOCK_DGRAM)
	if _, err := FileConn(f); err == nil {
		t.Fatal("no error")
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("its flags are %#x, %v: it is no longer blocking", flags, err)
	}
}

func TestFileAfterClose(t *testing.T) {
	c, _ := newPairT(t)
	l := mustListen(t)
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
// descriptor into blocking mode, for all who share its description.
func TestFileLeavesDeadlinesAlive(t *testing.T) {
	c, _ := newPairT(t)
	l := mustListen(t)
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
	checkDescriptors(t)
	l := mustListen(t)
	f := mustFile(t, l)
	h := startHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, "serve", "inherited")
	h.expect("serving")
	f.Close()
	l.Close()
	for range 3 {
		if pid := askPid(t, l.name); pid != h.cmd.Process.Pid {
			t.Errorf("%d answers, want %d", pid, h.cmd.Process.Pid)
		}
	}
	h.kill()
}

func TestAChildTalksOverAnInheritedConn(t *testing.T) {
	checkDescriptors(t)
	mine, its := newPairT(t)
	f := mustFile(t, its)
	h := startHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{f} }, "talk")
	f.Close()
	its.Close()
	if _, err := mine.Write([]byte("who?\n")); err != nil {
		t.Fatal(err)
	}
	mine.CloseWrite()
	got, err := io.ReadAll(mine)
	if want := fmt.Sprintf("who? %d", h.cmd.Process.Pid); err != nil || string(got) != want {
		t.Errorf("the child says %q, %v, want %q", got, err, want)
	}
	h.kill()
}

// helpTalk reads a line from the Conn that it has inherited, and answers with
// that and its pid.
func helpTalk([]string) error {
	f := os.NewFile(3, "inherited")
	c, err := FileConn(f)
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
	l := mustListen(t, ReplaceStale(), Mode(0o600))
	client, server := mustConnect(t, l.name), mustAccept(t, l)
	mustConnect(t, l.name)
	evt := receive(t, "an accept event", l.AcceptEvt(t.Context())).Conn
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
