//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
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
		sockettest.Send(t, ends[0], "hello")
		sockettest.Expect(t, ends[1], "hello")
	}
}

// newPairT returns the two ends of unixsock.Pair. They are closed at the end of
// the test.
func newPairT(t testing.TB) (*unixsock.Conn, *unixsock.Conn) {
	t.Helper()
	c1, c2, err := unixsock.Pair()
	sockettest.Check(t, err)
	t.Cleanup(func() { c1.Close(); c2.Close() })
	return c1, c2
}

// A filer is a socket of this package or of net.
type filer interface{ File() (*os.File, error) }

// mustFile returns the file of a socket. It is closed at the end of the test.
func mustFile(t testing.TB, socket filer) *os.File {
	t.Helper()
	return sockettest.Got(socket.File()).Must(t)
}

// adoptCopy returns what FileConn or FileListener makes of a copy of socket.
func adoptCopy[T any](t testing.TB, by func(*os.File) (T, error), socket filer) T {
	t.Helper()
	f := mustFile(t, socket)
	adopted := sockettest.Got(by(f)).Must(t)
	sockettest.Check(t, f.Close())
	return adopted
}

// flagsOf returns flags of the descriptor of c: F_GETFD or F_GETFL.
func flagsOf(t testing.TB, c syscall.Conn, cmd int) (flags int) {
	t.Helper()
	sockettest.Control(t, c, func(fd int) { flags, _ = unix.FcntlInt(uintptr(fd), cmd, 0) })
	return flags
}

// wantFileError fails the test unless err is a *net.OpError of op with text.
func wantFileError(t testing.TB, what string, err error, op, text string) {
	t.Helper()
	var opErr *net.OpError
	if !errors.As(err, &opErr) || opErr.Op != op || opErr.Net != "unix" || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got the error %v, want a *net.OpError of %s with %q", what, err, op, text)
	}
}

func isBlocking(t testing.TB, c syscall.Conn) bool {
	t.Helper()
	return flagsOf(t, c, unix.F_GETFL)&unix.O_NONBLOCK == 0
}

func TestPairIsConnected(t *testing.T) {
	c1, c2 := newPairT(t)
	mustConverse(t, c1, c2)
	if c1.String() != "unix ->" || c2.String() != "unix ->" {
		t.Errorf("ends of a Pair: got %v and %v, want none with a name", c1, c2)
	}
	c2.Close()
	_, err := c2.File()
	wantFileError(t, "File of a closed Conn", err, "file", net.ErrClosed.Error())
}

func TestFileConnAdoptsACopy(t *testing.T) {
	sockettest.CheckDescriptors(t)
	client, server := sockettest.Pair(t)
	adopted := adoptCopy(t, unixsock.FileConn, server)
	sockettest.Check(t, adoptCopy(t, unixsock.FileConn, server).Close())
	mustConverse(t, client, server)
	server.Close()
	mustConverse(t, client, adopted)
	sockettest.Send(t, client, "last words")
	client.Close()
	late := adoptCopy(t, unixsock.FileConn, adopted)
	if adopted.String() != server.String() || late.String() != server.String() {
		t.Errorf("FileConn before and after the peer's Close: got %v and %v, want %v", adopted, late, server)
	}
	sockettest.ExpectEOF(t, late, "last words")
}

func TestFileListenerAdoptsACopy(t *testing.T) {
	sockettest.CheckDescriptors(t)
	original := sockettest.Listen(t)
	path := original.Addr().String()
	adopted := adoptCopy(t, unixsock.FileListener, original)
	sockettest.Check(t, adoptCopy(t, unixsock.FileListener, original).Close()) // leaves the file
	sockettest.CheckExchange(t, path, original)
	original.Close()
	_, err := original.File()
	wantFileError(t, "File of a closed Listener", err, "file", net.ErrClosed.Error())
	sockettest.CheckExchange(t, path, adopted)
	client := adoptCopy(t, unixsock.FileConn, sockettest.Connect(t, path))
	if addr, remote := adopted.Addr().String(), client.RemoteAddr().String(); addr != path || remote != path {
		t.Errorf("Addr of a FileListener and RemoteAddr of its client's FileConn: got %q and %q, want %q", addr, remote, path)
	}
}

func TestFilesAndAdoptedSocketsDoNotBlock(t *testing.T) {
	conn, _ := newPairT(t)
	fc, fl := mustFile(t, conn), mustFile(t, sockettest.Listen(t))
	for _, f := range []*os.File{fc, fl} {
		f.Fd() // puts some files into blocking mode
		if isBlocking(t, f) {
			t.Error("descriptor after File and Fd: got it in blocking mode, which the socket shares")
		}
		sockettest.Control(t, f, func(fd int) { sockettest.Check(t, unix.SetNonblock(fd, false)) })
	}
	c, l := sockettest.Got(unixsock.FileConn(fc)).Must(t), sockettest.Got(unixsock.FileListener(fl)).Must(t)
	if isBlocking(t, c) || isBlocking(t, l) {
		t.Error("descriptor that was adopted in blocking mode: got it unchanged")
	}
}

func TestFileConnAndFileListenerRefuseOthers(t *testing.T) {
	sockettest.CheckDescriptors(t)
	// socket returns a new one, or nil if the kernel does not have the type.
	socket := func(domain, socketType int, prepare func(fd int) error) *os.File {
		fd, err := unix.Socket(domain, socketType, 0)
		if err == unix.EPROTONOSUPPORT {
			return nil
		}
		return sockettest.Got(os.NewFile(uintptr(fd), "socket"), errors.Join(err, prepare(fd))).Must(t)
	}
	nothing, listen := func(int) error { return nil }, func(fd int) error { return unix.Listen(fd, 4) }
	bind := func(fd int) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: sockettest.ShortDir(t) + "/s"}) }
	pipe, closed := newPipes(t, 1)
	closeFiles(closed)
	conn, _ := newPairT(t)
	adopt := map[string]func(*os.File) error{
		"FileConn":     func(f *os.File) error { _, err := unixsock.FileConn(f); return err },
		"FileListener": func(f *os.File) error { _, err := unixsock.FileListener(f); return err },
	}
	const notUnix, notStream, notConnected, notListening = "not a unix socket", "not a stream", "not a connected socket", "not a listening socket"
	for name, test := range map[string]struct {
		f                  *os.File
		asConn, asListener string // in the errors' texts; "" where there is no error
	}{
		"nil":         {nil, "invalid argument", "invalid argument"},
		"closed":      {closed[0], "closed", "closed"},
		"pipe":        {pipe[0], "not a socket", "not a socket"},
		"tcp":         {socket(unix.AF_INET, unix.SOCK_STREAM, listen), notUnix, notUnix},
		"datagram":    {socket(unix.AF_UNIX, unix.SOCK_DGRAM, nothing), notStream, notStream},
		"seqpacket":   {socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, nothing), notStream, notStream},
		"unconnected": {socket(unix.AF_UNIX, unix.SOCK_STREAM, nothing), notConnected, notListening},
		"bound":       {socket(unix.AF_UNIX, unix.SOCK_STREAM, bind), notConnected, notListening},
		"listener":    {mustFile(t, sockettest.Listen(t)), notConnected, ""},
		"conn":        {mustFile(t, conn), "", notListening},
	} {
		for call, want := range map[string]string{"FileConn": test.asConn, "FileListener": test.asListener} {
			if want == "" || test.f == nil && name != "nil" || want == notListening && name != "conn" && !sockettest.ReportsListening(t) {
				continue
			}
			wantFileError(t, call+" of "+name, adopt[call](test.f), "file", want)
			if want == notStream && !isBlocking(t, test.f) {
				t.Errorf("%s, %s: got the file in non-blocking mode, want it unchanged", call, name)
			}
		}
	}
}

func TestAChildAdoptsWhatItInherits(t *testing.T) {
	l := sockettest.Listen(t)
	c, inherited := newPairT(t)
	files := []*os.File{mustFile(t, inherited), mustFile(t, l)}
	sockettest.StartHelper(t, func(cmd *exec.Cmd) { cmd.ExtraFiles = files }, "talk")
	closeFiles(files)
	inherited.Close()
	l.Close()
	sockettest.Send(t, c, "who?")
	sockettest.Check(t, c.CloseWrite())
	sockettest.ExpectEOF(t, sockettest.Connect(t, l.Addr().String()), "who?")
}

// helpTalk copies from the Conn to a client of the Listener. It inherited both.
func helpTalk([]string) error {
	c, connErr := unixsock.FileConn(os.NewFile(3, "conn"))
	l, err := unixsock.FileListener(os.NewFile(4, "listener"))
	if err = errors.Join(connErr, err); err != nil {
		return err
	}
	client, err := l.Accept()
	if err == nil {
		_, err = io.Copy(client, c)
	}
	return err
}

func TestEveryDescriptorIsCloseOnExec(t *testing.T) {
	c1, c2 := newPairT(t)
	l := sockettest.Listen(t, unixsock.ReplaceStale(), unixsock.Mode(0o600))
	client, server := sockettest.Connect(t, l.Addr().String()), sockettest.Accept(t, l)
	fc, fl := mustFile(t, client), mustFile(t, l)
	sendFiles(t, c1, "x", fc, fl)
	received := receiveFiles(t, c2, "x", 2, 2)
	for name, socket := range map[string]syscall.Conn{
		"Pair 1": c1, "Pair 2": c2, "Listen": l, "Connect": client, "Accept": server,
		"Conn.File": fc, "Listener.File": fl, "FileConn": adoptCopy(t, unixsock.FileConn, client), "FileListener": adoptCopy(t, unixsock.FileListener, l),
		"ReadFiles": received[1],
	} {
		if flags := flagsOf(t, socket, unix.F_GETFD); flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor flags of the result of %s: got %#x, want FD_CLOEXEC", name, flags)
		}
	}
}

// newPipes returns the ends of n pipes. They are closed at the end of the test.
func newPipes(t testing.TB, n int) (r, w []*os.File) {
	t.Helper()
	for range n {
		pr, pw, err := os.Pipe()
		sockettest.Check(t, err)
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

// wantAllClosed closes the write ends of pipes. It fails the test unless each read end is at
// its end then: no copy of a write end is open, neither received nor in flight.
func wantAllClosed(t testing.TB, r, w []*os.File) {
	t.Helper()
	closeFiles(w)
	for i, f := range r {
		f.SetReadDeadline(time.Now().Add(sockettest.Timeout))
		if _, err := f.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("Read of pipe %d: got %v, want io.EOF as no write end is open", i, err)
		}
	}
}

// sendFiles writes data with files.
func sendFiles(t testing.TB, c *unixsock.Conn, data string, files ...*os.File) {
	t.Helper()
	if n, err := c.WriteFiles([]byte(data), files...); n != len(data) || err != nil {
		t.Fatalf("WriteFiles of %d bytes and %d files: got %d, %v; want %[1]d, nil", len(data), len(files), n, err)
	}
}

// receiveFiles reads data with n files, at most max. They are closed at the end of the test.
func receiveFiles(t testing.TB, c *unixsock.Conn, data string, max, n int) []*os.File {
	t.Helper()
	b := make([]byte, len(data))
	m, files, err := c.ReadFiles(b, max)
	t.Cleanup(func() { closeFiles(files) })
	if string(b[:m]) != data || len(files) != n || err != nil {
		t.Fatalf("ReadFiles with max %d: got %q, %d files, %v; want %q, %d files, nil", max, b[:m], len(files), err, data, n)
	}
	return files
}

// The files come with the first part of the bytes. The other direction is closed.
func TestFilesPassAndWork(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	c1, c2 := newPairT(t)
	r, w := newPipes(t, 2)
	sockettest.Check(t, errors.Join(from.CloseRead(), to.CloseWrite()))
	sendFiles(t, from, "abcd", w[0], w[1], mustFile(t, c2))
	sockettest.Check(t, errors.Join(from.CloseWrite(), c2.Close()))
	sockettest.Send(t, w[0], "open") // WriteFiles has not closed it
	sockettest.Expect(t, r[0], "open")
	closeFiles(w)
	files := receiveFiles(t, to, "ab", 3, 3)
	receiveFiles(t, to, "cd", 3, 0)
	if n, files, err := to.ReadFiles(make([]byte, 1), 1); n != 0 || files != nil || err != io.EOF {
		t.Errorf("ReadFiles after the peer's CloseWrite: got %d, %v, %v; want 0, nil, io.EOF", n, files, err)
	}
	for i := range r {
		sockettest.Send(t, files[i], fmt.Sprint("file ", i))
		files[i].Close()
		sockettest.ExpectEOF(t, r[i], fmt.Sprint("file ", i))
	}
	mustConverse(t, c1, sockettest.Got(unixsock.FileConn(files[2])).Must(t))
}

// maxFiles is the most files that WriteFiles accepts.
const maxFiles = 253

func TestReadFilesReturnsAtMostMax(t *testing.T) {
	for _, test := range []struct{ sent, max int }{{1, 0}, {3, 2}, {maxFiles, maxFiles - 1}, {1, 1}, {3, 4}, {maxFiles, math.MaxInt}} {
		t.Run(fmt.Sprintf("%d of %d", test.max, test.sent), func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			r, w := newPipes(t, 1)
			if _, err := from.WriteFiles([]byte("abc"), slices.Repeat(w, test.sent)...); err != nil {
				t.Skip("the kernel allows fewer files: ", err)
			}
			if test.sent <= test.max {
				closeFiles(receiveFiles(t, to, "abc", test.max, test.sent))
			} else {
				n, files, err := to.ReadFiles(make([]byte, 3), test.max)
				wantFileError(t, "ReadFiles", err, "read", "limit")
				if n != 3 || files != nil {
					t.Errorf("ReadFiles: got %d bytes, %d files; want 3, none", n, len(files))
				}
			}
			wantAllClosed(t, r, w)
			mustConverse(t, from, to) // the error does not end the Conn
		})
	}
}

func TestFilesThatCannotBeWritten(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	closed, w := newPipes(t, 1)
	closeFiles(closed)
	for name, test := range map[string]struct {
		b     string
		files []*os.File
		want  string // in the error's text
	}{
		"too many":            {"x", slices.Repeat(w, maxFiles+1), "253"},
		"no bytes":            {"", w, "without data"},
		"nil among others":    {"x", []*os.File{w[0], nil}, "file 1"},
		"closed among others": {"x", []*os.File{w[0], closed[0]}, "file 1"},
	} {
		n, err := from.WriteFiles([]byte(test.b), test.files...)
		wantFileError(t, "WriteFiles, "+name, err, "write", test.want)
		if n != 0 || errors.Is(err, net.ErrClosed) {
			t.Errorf("WriteFiles, %s: got %d, %v; want 0, not the net.ErrClosed of a closed Conn", name, n, err)
		}
	}
	sockettest.Send(t, from, "y")
	receiveFiles(t, to, "y", 10, 0) // the calls have sent nothing
	to.Close()
	_, err := from.WriteFiles([]byte("x"), w...)
	sockettest.ExpectError(t, "WriteFiles after the peer's Close", err, syscall.EPIPE)
}

func TestCallsWithoutFilesAreReadAndWrite(t *testing.T) {
	from, to := newPairT(t)
	sendFiles(t, from, "bytes")
	sendFiles(t, from, "")
	_, _, err := to.ReadFiles(make([]byte, 1), -1)
	wantFileError(t, "ReadFiles with max -1", err, "read", "negative maximum of descriptors: -1")
	for _, want := range []string{"", "byt", "es"} {
		if files := receiveFiles(t, to, want, 0, 0); files != nil {
			t.Errorf("ReadFiles without files: got %v, want nil", files)
		}
	}
}

// The messages are longer than the buffer.
func TestConcurrentWriteFilesDoNotMix(t *testing.T) {
	sockettest.CheckDescriptors(t)
	const writers, messages, size = 6, 6, 20_000
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after the close of the pair, which ends the writers
	from, to := newPairT(t)
	sockettest.Check(t, from.SetWriteBuffer(4096))
	r, w := newPipes(t, writers)
	for i := range writers {
		wg.Go(func() {
			b := bytes.Repeat([]byte{byte(i)}, size)
			for j := range messages {
				if n, err := from.WriteFiles(b, w[i:i+min(1, j%3)]...); n != size || err != nil {
					t.Errorf("message %d of writer %d: got %d, %v; want %d, nil", j, i, n, err, size)
				}
			}
		})
	}
	sockettest.Check(t, to.SetReadDeadline(time.Now().Add(sockettest.Timeout)))
	var all []byte
	for b := make([]byte, 7001); len(all) < writers*messages*size; {
		n, files, err := to.ReadFiles(b, 1)
		sockettest.Check(t, err)
		all = append(all, b[:n]...)
		for _, f := range files {
			sockettest.Send(t, f, string(all[(len(all)-1)/size*size:][:1])) // of the message that began last
			f.Close()
		}
	}
	for message := range slices.Chunk(all, size) {
		if bytes.Count(message, message[:1]) != size {
			t.Errorf("message of writer %d: got bytes of others in it", message[0])
		}
	}
	closeFiles(w)
	for i := range r {
		sockettest.ExpectEOF(t, r[i], strings.Repeat(string([]byte{byte(i)}), messages-messages/3))
	}
}

func TestFilesThatNobodyTakesAreClosed(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 2)
	sendFiles(t, from, "abc", w...)
	sockettest.Expect(t, to, "abc")
	sendFiles(t, from, "abc", w...)
	from.Close()
	to.Close() // NetBSD closes what it has discarded when it closes a socket
	wantAllClosed(t, r, w)
}

// NetBSD discards the descriptors of both messages with those that Read does not return.
func TestReadFilesBehindAReadLosesNoByte(t *testing.T) {
	from, to := newPairT(t)
	_, w := newPipes(t, 1)
	for _, message := range []string{"a", "b"} {
		sockettest.Got(from.WriteFiles([]byte(message), w...)).Must(t)
	}
	sockettest.Expect(t, to, "a")
	b := make([]byte, 2)
	n, files, err := to.ReadFiles(b, 1)
	closeFiles(files)
	if string(b[:n]) != "b" || (err == nil) != (len(files) == 1) {
		t.Errorf("ReadFiles behind a Read: got %q, %d files, %v; want %q and a file, or an error", b[:n], len(files), err, "b")
	}
}

// The WriteFiles that is ended has sent the files and a part of the bytes.
func TestReadFilesAndWriteFilesEnd(t *testing.T) {
	past := time.Unix(1, 0)
	for name, test := range map[string]struct {
		end  func(reader, writer *unixsock.Conn)
		want error
	}{
		"deadline": {func(r, w *unixsock.Conn) { r.SetReadDeadline(past); w.SetWriteDeadline(past) }, os.ErrDeadlineExceeded},
		"half":     {func(r, w *unixsock.Conn) { r.CloseRead(); w.CloseWrite() }, net.ErrClosed},
		"whole":    {func(r, w *unixsock.Conn) { r.Close(); w.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			reader, _ := newPairT(t)
			writer, peer := newPairT(t)
			sockettest.Check(t, writer.SetWriteBuffer(4096))
			r, w := newPipes(t, 1)
			readFiles := func() error {
				_, _, err := reader.ReadFiles(make([]byte, 1), 1)
				return err
			}
			b, sent := make([]byte, 1<<20), 0
			writeFiles := func() error {
				n, err := writer.WriteFiles(b, w...)
				sent += n
				return err
			}
			read, written := waiting(t, readFiles), waiting(t, writeFiles)
			sockettest.WaitFor(t, "WriteFiles does not wait", func() bool { return isFull(t, writer) })
			test.end(reader, writer)
			sockettest.ExpectError(t, "ReadFiles that waits", sockettest.Receive(t, "ReadFiles", read), test.want)
			sockettest.ExpectError(t, "WriteFiles that waits", sockettest.Receive(t, "WriteFiles", written), test.want)
			sockettest.ExpectError(t, "ReadFiles afterwards", readFiles(), test.want)
			sockettest.ExpectError(t, "WriteFiles afterwards", writeFiles(), test.want)
			writer.Close()
			closeFiles(receiveFiles(t, peer, "\x00", 1, 1))
			sockettest.ExpectEOF(t, peer, strings.Repeat("\x00", max(sent, 1)-1))
			wantAllClosed(t, r, w)
		})
	}
}

func TestReadFilesWithoutDescriptorsLeavesNoneOpen(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	reported := sockettest.ReportsRightsCutByLimit(t)
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	r, w := newPipes(t, 1)
	spare, _ := newPipes(t, 2)
	sendFiles(t, from, "x", slices.Repeat(w, 5)...)
	free := sockettest.ExhaustDescriptors(t)
	closeFiles(spare) // room for two of five
	_, files, err := to.ReadFiles(make([]byte, 1), 5)
	free()
	closeFiles(files)
	mustConverse(t, from, to)
	if reported { // otherwise the kernel keeps files open
		wantFileError(t, "ReadFiles out of descriptors", err, "read", "too many open files")
		wantAllClosed(t, r, w)
	}
}
