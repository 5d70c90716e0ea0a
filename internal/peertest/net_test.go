//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// eachNetName runs a test with each kind of name. unixsock uses name; package net
// uses netName, in which a leading @ stands for the NUL of an abstract name.
func eachNetName(t *testing.T, test func(t *testing.T, name, netName string)) {
	t.Run("path", func(t *testing.T) {
		path := socketDir(t) + "/s"
		test(t, path, path)
	})
	// Package net needs one byte of sun_path for a terminating NUL.
	t.Run("longest path of net", func(t *testing.T) {
		path := longPath(t, socketDir(t), len(syscall.RawSockaddrUnix{}.Path)-1)
		test(t, path, path)
	})
	t.Run("abstract", func(t *testing.T) {
		linux(t)
		name := abstract("net")
		test(t, name, "@"+name[1:])
	})
	t.Run("abstract with NULs", func(t *testing.T) {
		linux(t)
		name := abstract("\x00net\x00\x00")
		test(t, name, "@"+name[1:])
	})
	t.Run("longest abstract name", func(t *testing.T) {
		linux(t)
		name := abstract("")
		name += strings.Repeat("n", unixsock.MaxPathLen-len(name))
		test(t, name, "@"+name[1:])
	})
}

// dialNet connects with package net and sets a deadline.
func dialNet(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.DialTimeout("unix", name, timeout)
	if err != nil {
		t.Fatalf("net.DialTimeout to %s: %v", name, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(timeout))
	return c.(*net.UnixConn)
}

// listenNet listens with package net and sets a deadline.
func listenNet(t *testing.T, name string) *net.UnixListener {
	t.Helper()
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatalf("net.Listen at %s: %v", name, err)
	}
	t.Cleanup(func() { l.Close() })
	ul := l.(*net.UnixListener)
	ul.SetDeadline(time.Now().Add(timeout))
	return ul
}

// acceptNet accepts with package net and sets a deadline.
func acceptNet(t *testing.T, l *net.UnixListener) *net.UnixConn {
	t.Helper()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatalf("AcceptUnix: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(timeout))
	return c
}

func TestNetIsClient(t *testing.T) {
	data := noise(1<<20 + 1)
	eachNetName(t, func(t *testing.T, name, netName string) {
		l := listen(t, name)
		theirs := dialNet(t, netName)
		ours := accept(t, l)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { echo(t, theirs) })
		converse(t, ours, data)
	})
}

func TestNetIsServer(t *testing.T) {
	data := noise(1<<20 + 1)
	eachNetName(t, func(t *testing.T, name, netName string) {
		l := listenNet(t, netName)
		ours := connect(t, name)
		theirs := acceptNet(t, l)
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { echo(t, theirs) })
		converse(t, ours, data)
	})
}

// Package net shows an abstract name with a leading @. RemoteAddr returns it with a
// leading NUL.
func TestNetsNameIsRemoteAddr(t *testing.T) {
	eachNetName(t, func(t *testing.T, name, netName string) {
		l := listen(t, socketDir(t)+"/s")
		to := &net.UnixAddr{Name: l.Addr().String(), Net: "unix"}
		c, err := net.DialUnix("unix", &net.UnixAddr{Name: netName, Net: "unix"}, to)
		if err != nil {
			t.Fatalf("net.DialUnix from %s: %v", netName, err)
		}
		defer c.Close()
		if got := accept(t, l).RemoteAddr().String(); got != name {
			t.Errorf("RemoteAddr of a client that is bound: got %q, want %q", got, name)
		}
	})
}

func TestNetSeesHalfClose(t *testing.T) {
	l := listen(t, socketDir(t)+"/s")
	theirs := dialNet(t, l.Addr().String())
	ours := accept(t, l)

	if err := ours.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: got %v, want no error", err)
	}
	expectEOF(t, theirs)
	// The other half still works.
	if _, err := io.WriteString(theirs, "on"); err != nil {
		t.Fatalf("Write of package net after the peer's CloseWrite: got %v, want no error", err)
	}
	expectBytes(t, ours, "on")
	if err := ours.CloseRead(); err != nil {
		t.Fatalf("CloseRead: got %v, want no error", err)
	}
	if _, err := theirs.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write of package net after CloseRead: got %v, want EPIPE", err)
	}
}

func TestNetsHalfCloseIsSeen(t *testing.T) {
	l := listenNet(t, socketDir(t)+"/s")
	ours := connect(t, l.Addr().String())
	theirs := acceptNet(t, l)

	if err := theirs.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite of package net: %v", err)
	}
	expectEOF(t, ours)
	if _, err := ours.Write([]byte("on")); err != nil {
		t.Fatalf("Write after CloseWrite of package net: got %v, want no error", err)
	}
	expectBytes(t, theirs, "on")
	if err := theirs.CloseRead(); err != nil {
		t.Fatalf("CloseRead of package net: %v", err)
	}
	if _, err := ours.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) && sockettest.ReportsClosedInput(t) {
		t.Errorf("Write after CloseRead of package net: got %v, want EPIPE", err)
	}
}

// "@x" is an abstract name for package net, but a file for unixsock.
func TestNetReachesFileCalledAt(t *testing.T) {
	dir := socketDir(t)
	t.Chdir(dir)
	l := listen(t, "@x")
	if info, err := os.Lstat(dir + "/@x"); err != nil || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("Lstat of @x after Listen: got %v, %v; want a socket", info, err)
	}
	theirs := dialNet(t, "./@x")
	io.WriteString(theirs, "at")
	expectBytes(t, accept(t, l), "at")
}

// withFile calls adopt with a duplicate of the descriptor of from.
func withFile[T any](t *testing.T, from interface{ File() (*os.File, error) }, adopt func(*os.File) (T, error)) T {
	t.Helper()
	f, err := from.File()
	if err != nil {
		t.Fatalf("File of a %T: got %v, want a file", from, err)
	}
	defer f.Close()
	adopted, err := adopt(f)
	if err != nil {
		t.Fatalf("adopt the file of a %T: got %v, want no error", from, err)
	}
	return adopted
}

func TestNetAdoptsConn(t *testing.T) {
	data := noise(1<<20 + 1)
	ours, given, err := unixsock.Pair()
	withDeadline(t, "Pair", ours, err)
	theirs := withFile(t, withDeadline(t, "Pair", given, err), net.FileConn).(*net.UnixConn)
	defer theirs.Close()
	theirs.SetDeadline(time.Now().Add(timeout))
	given.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { echo(t, theirs) })
	converse(t, ours, data)
}

func TestNetAdoptsListener(t *testing.T) {
	given := listen(t, socketDir(t)+"/s")
	l := withFile(t, given, net.FileListener).(*net.UnixListener)
	defer l.Close()
	l.SetDeadline(time.Now().Add(timeout))
	given.Close()
	c := connect(t, given.Addr().String())
	io.WriteString(c, "x")
	expectBytes(t, acceptNet(t, l), "x")
}

func TestNetsConnIsAdopted(t *testing.T) {
	data := noise(1<<20 + 1)
	l := listenNet(t, socketDir(t)+"/s")
	given := dialNet(t, l.Addr().String())
	theirs := acceptNet(t, l)
	ours := withDeadline(t, "FileConn", withFile(t, given, unixsock.FileConn), nil)
	given.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { echo(t, theirs) })
	converse(t, ours, data)
}

func TestNetsListenerIsAdopted(t *testing.T) {
	given := listenNet(t, socketDir(t)+"/s")
	given.SetUnlinkOnClose(false)
	l := withFile(t, given, unixsock.FileListener)
	defer l.Close()
	given.Close()
	if got, want := l.Addr().String(), given.Addr().String(); got != want {
		t.Errorf("Addr of an adopted listener: got %q, want %q", got, want)
	}
	c := dialNet(t, given.Addr().String())
	io.WriteString(c, "x")
	expectBytes(t, accept(t, l), "x")
}
