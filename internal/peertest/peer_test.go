//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

// Package peertest tests unixsock against other implementations of Unix domain
// sockets: Racket, whose library unixsock mirrors, netcat, socat, curl, Redis,
// nginx, haproxy, Python, systemd and Go's net. A test is skipped if its program is
// not installed. The package contains only tests.
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

// timeout limits each wait for a peer.
const timeout = 30 * time.Second

// program returns the path of a program. It skips the test if the program is not
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

// peer returns a command that is killed at the end of the test, or after timeout.
// If the test fails, the end of the command's standard error is logged.
func peer(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	// Wait must return even if a child of the peer still holds the pipes.
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
			t.Logf("end of the standard error of %s: %s", name, b[max(0, len(b)-4096):])
		}
	})
	return cmd
}

// finish starts cmd with input. It returns a function that waits until cmd exits
// and returns its output.
func finish(t testing.TB, cmd *exec.Cmd, input []byte) func() []byte {
	t.Helper()
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewReader(input), &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd, err)
	}
	return func() []byte {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Fatalf("run %s: got %v, want exit status 0", cmd, err)
		}
		return output.Bytes()
	}
}

// linux skips the test on systems without abstract names.
func linux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skipf("%s has no abstract names", runtime.GOOS)
	}
}

// socketDir returns a new directory whose path is short, because the length of a
// socket path is limited, and contains no symbolic link.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatalf("MkdirTemp: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatalf("EvalSymlinks: %v", err)
	}
	return dir
}

// longPath returns a path in dir of exactly n bytes.
func longPath(t testing.TB, dir string, n int) string {
	t.Helper()
	if len(dir)+2 > n {
		t.Skipf("the temporary directory %s is too long for a path of %d bytes", dir, n)
	}
	return dir + "/" + strings.Repeat("p", n-len(dir)-1)
}

// abstract returns an abstract name that no other test uses and that ends with end.
func abstract(end string) string {
	return unixsock.Abstract(fmt.Sprintf("peertest.%d.%x.%s", os.Getpid(), rand.Uint64(), end))
}

// noise returns n pseudo-random bytes, always the same.
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
		t.Fatalf("Listen at %s: %v", path, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// accept waits at most timeout for a connection and returns it.
func accept(t testing.TB, l *unixsock.Listener) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	c, err := l.AcceptContext(ctx)
	return withDeadline(t, "AcceptContext", c, err)
}

// connect connects to a peer. It retries until the peer listens, because nothing but a
// connect shows that.
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
		return withDeadline(t, "ConnectContext to "+path, c, err)
	}
}

// withDeadline fails the test if the call what, which returned c and err, failed. It sets
// a deadline on c, so that no call on c can block the test. c is closed at the end of the
// test.
func withDeadline(t testing.TB, what string, c *unixsock.Conn, err error) *unixsock.Conn {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: got %v, want a connection", what, err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.Fatalf("SetDeadline: %v", err)
	}
	return c
}

// A halfCloser is a net.Conn that can close only its output.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// echo writes the bytes that it reads from c back to c until EOF, and then closes the
// output of c.
func echo(t testing.TB, c halfCloser) {
	t.Helper()
	if n, err := io.Copy(c, c); err != nil {
		t.Errorf("echo to the peer: got %v after %d bytes, want no error", err, n)
	}
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite after the echo: got %v, want no error", err)
	}
}

// converse sends data to a peer that echoes and closes the output of c. It reads
// until EOF and checks that the peer sent back the same data.
func converse(t testing.TB, c halfCloser, data []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read from a peer that echoes: got %v after %d bytes, want EOF", err, len(got))
	}
	if err := <-sent; err != nil {
		t.Fatalf("write to a peer that echoes: got %v, want no error", err)
	}
	same(t, got, data)
}

// same checks that got equals want. It prints neither, because both may be long.
func same(t testing.TB, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("compare the data: got %d bytes, want %d; the first difference is at byte %d", len(got), len(want), i)
}

// expectEOF checks that r is at its end.
func expectEOF(t testing.TB, r io.Reader) {
	t.Helper()
	b := make([]byte, 1)
	if n, err := r.Read(b); n != 0 || err != io.EOF {
		t.Fatalf("Read at the end of the input: got %d bytes, %v; want 0 bytes, EOF", n, err)
	}
}

// expectBytes checks that the next bytes of r are want.
func expectBytes(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read %d bytes: got %q, %v; want %q", len(want), b[:n], err, want)
	}
}
