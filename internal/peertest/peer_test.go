//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

// Package peertest tests unixsock against other implementations of Unix domain
// sockets: Racket, whose library unixsock mirrors, netcat, socat, curl, Redis,
// nginx, haproxy, Python, systemd and Go's net. A test is skipped if its program is
// not installed. The package contains only tests.
package peertest

import (
	"bufio"
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
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

const timeout = sockettest.Timeout

// data is what peers exchange, always the same.
var data = func() string {
	b := make([]byte, 1<<20+1)
	rand.NewChaCha8([32]byte{'u', 's'}).Read(b)
	return string(b)
}()

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
	cmd.WaitDelay = time.Second // Wait must return even if a child of the peer still holds the pipes
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.Cleanup(func() {
		cancel()
		if cmd.Process != nil && cmd.ProcessState == nil {
			cmd.Wait()
		}
		if b := stderr.Bytes(); t.Failed() && len(b) > 0 {
			t.Logf("end of the standard error of %s: %s", name, b[max(0, len(b)-4096):])
		}
	})
	return cmd
}

// finish starts cmd with input. It returns a function that waits until cmd exits
// and checks its output.
func finish(t testing.TB, cmd *exec.Cmd, input string) func(want string) {
	t.Helper()
	var output strings.Builder
	cmd.Stdin, cmd.Stdout = strings.NewReader(input), &output
	sockettest.Check(t, cmd.Start())
	return func(want string) {
		t.Helper()
		sockettest.Check(t, cmd.Wait())
		sockettest.ExpectEOF(t, strings.NewReader(output.String()), want)
	}
}

// pipes starts cmd and returns its input and its output.
func pipes(t testing.TB, cmd *exec.Cmd) (io.Writer, *bufio.Reader) {
	t.Helper()
	in, out := sockettest.Got(cmd.StdinPipe()).Must(t), sockettest.Got(cmd.StdoutPipe()).Must(t)
	sockettest.Check(t, cmd.Start())
	return in, bufio.NewReader(out)
}

// linux skips the test on systems without abstract names.
func linux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skipf("%s has no abstract names", runtime.GOOS)
	}
}

// socketDir returns a new directory whose path is short and contains no symbolic link.
func socketDir(t testing.TB) string {
	t.Helper()
	return sockettest.Got(filepath.EvalSymlinks(sockettest.ShortDir(t))).Must(t)
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

// A stream is a connection whose halves can be closed.
type stream interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
}

// limit sets a deadline on c, so that no call can block the test. c is closed at its end.
func limit[C net.Conn](t testing.TB, c C, err error) C {
	t.Helper()
	c = sockettest.Got(c, err).Must(t)
	sockettest.Check(t, c.SetDeadline(time.Now().Add(timeout)))
	return c
}

func accept(t testing.TB, l *unixsock.Listener) *unixsock.Conn {
	t.Helper()
	return limit(t, sockettest.Accept(t, l), nil)
}

// connect connects to a peer. It retries until the peer listens, because nothing but a
// connect shows that.
func connect(t testing.TB, path string) *unixsock.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for {
		c, err := unixsock.ConnectContext(ctx, path)
		if ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return limit(t, c, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// echo writes the bytes that it reads from c back to c until EOF, and then closes the
// output of c.
func echo(t testing.TB, c stream) {
	t.Helper()
	n, err := io.Copy(c, c)
	if err := errors.Join(err, c.CloseWrite()); err != nil {
		t.Errorf("echo to the peer: got %v after %d bytes, want no error", err, n)
	}
}

// converse sends message to a peer that echoes and closes the output of c. It returns an
// error unless the peer sends back the same.
func converse(c stream, message string) error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, message)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("sent %d bytes, %.20q: got %d, %.20q", len(message), message, len(got), got)
	}
	return nil
}
