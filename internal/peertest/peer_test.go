//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// timeout is how long a test waits for a peer before it gives up on it.
const timeout = 30 * time.Second

// program returns the file of a program. It skips the test if the program is not
// installed. Servers may be in /usr/sbin, which is not in every user's PATH.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, name := range []string{name, "/usr/sbin/" + name} {
		if file, err := exec.LookPath(name); err == nil {
			return file
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// peer returns a command that is killed at the end of the test, or when
// timeout is, and whose standard error is shown if the test fails.
func peer(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	// A child that the peer leaves behind must not hold Wait by its pipes.
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.Cleanup(func() {
		cancel()
		if cmd.Process != nil && cmd.ProcessState == nil {
			cmd.Wait()
		}
		if t.Failed() && stderr.Len() > 0 {
			b := stderr.Bytes()
			t.Logf("the end of what %s wrote to its standard error: %s", name, b[max(0, len(b)-4096):])
		}
	})
	return cmd
}

// finish runs cmd with input to its end and returns a function that waits for
// that and gives its output.
func finish(t testing.TB, cmd *exec.Cmd, input []byte) func() []byte {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(input), &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		return output.Bytes()
	}
}

// linux skips the test where there are no abstract names.
func linux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skipf("no abstract names on %s", runtime.GOOS)
	}
}

// socketDir returns a directory whose own name is short, as socket paths must
// be, with no link in it.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// longPath returns a path in dir of exactly n bytes.
func longPath(t testing.TB, dir string, n int) string {
	t.Helper()
	if len(dir)+2 > n {
		t.Skipf("the temporary directory %s leaves no room for a path of %d bytes", dir, n)
	}
	return dir + "/" + strings.Repeat("p", n-len(dir)-1)
}

// abstract returns an abstract name that no other test has, with end at its end.
func abstract(end string) string {
	return unixsock.Abstract(fmt.Sprintf("peertest.%d.%x.%s", os.Getpid(), rand.Uint64(), end))
}

// noise returns n bytes in which every value occurs.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{'u', 's'}).Read(b)
	return b
}

// listen returns a Listener that is open until the end of the test.
func listen(t testing.TB, path string, opts ...unixsock.ListenOption) *unixsock.Listener {
	t.Helper()
	l, err := unixsock.Listen(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// accept accepts with a limit on its timeout.
func accept(t testing.TB, l *unixsock.Listener) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	c, err := l.AcceptContext(ctx)
	return limit(t, c, err)
}

// connect connects to a peer that may not have come to listen yet, of which
// nothing but a connect can tell.
func connect(t testing.TB, path string) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for {
		c, err := unixsock.ConnectContext(ctx, path)
		if ctx.Err() == nil && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)) {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		return limit(t, c, err)
	}
}

// limit checks err and gives c a deadline, so that no fault makes a test hang.
func limit(t testing.TB, c *unixsock.Conn, err error) *unixsock.Conn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatal(err)
	}
	return c
}

// halfCloser is a net.Conn whose output closes alone.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// echo sends all that it reads back, and closes its output when the peer's ends.
func echo(t testing.TB, c halfCloser) {
	t.Helper()
	if _, err := io.Copy(c, c); err != nil {
		t.Errorf("echo: %v", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("echo: %v", err)
	}
}

// converse sends data to a peer that echoes, closes the output, reads to the
// end and checks that all came back.
func converse(t testing.TB, c halfCloser, data []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("reading what a peer echoes: %v", err)
	}
	if err := <-sent; err != nil {
		t.Fatalf("sending to a peer that echoes: %v", err)
	}
	same(t, got, data)
}

// same checks that got is want, without printing either.
func same(t testing.TB, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("got %d bytes, want %d; the first that differs is byte %d", len(got), len(want), i)
}

// expectEOF checks that nothing more comes from r.
func expectEOF(t testing.TB, r io.Reader) {
	t.Helper()
	b := make([]byte, 1)
	if n, err := r.Read(b); n != 0 || err != io.EOF {
		t.Fatalf("Read gave %d bytes, %v, want EOF", n, err)
	}
}

// expectBytes checks that want comes from r.
func expectBytes(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v, want %q", b[:n], err, want)
	}
}
