//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// serving returns functions that answer each client of l with one byte, until l is closed.
func serving(t *testing.T, l *unixsock.Listener) map[string]func() {
	answer := func(c *unixsock.Conn, err error) bool {
		switch {
		case errors.Is(err, net.ErrClosed):
			return false
		case errors.Is(err, syscall.EAGAIN): // another goroutine was first
			return true
		case err != nil:
			t.Errorf("accept in a drain: got %v, want a connection or net.ErrClosed", err)
			return false
		}
		c.Write([]byte("s"))
		c.Close()
		return true
	}
	return map[string]func(){
		"Accept": func() {
			for answer(l.AcceptContext(context.Background())) {
			}
		},
		"Ready": func() {
			for range l.Ready() {
				answer(l.TryAccept())
			}
		},
		"AcceptEvt": func() {
			for a := range l.AcceptEvt(t.Context()) {
				answer(a.Conn, a.Err)
			}
		},
	}
}

// TestDrainAnswersEveryClientThatConnected drains listeners at random moments, while clients
// connect without pause.
func TestDrainAnswersEveryClientThatConnected(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	dir := sockettest.ShortDir(t)
	for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
		t.Run(loop, func(t *testing.T) {
			for i := range sockettest.Times(300) {
				path := filepath.Join(dir, "s")
				if hasAbstract() && i%2 == 0 {
					path = ownName(t, 80, strconv.Itoa(i))
				}
				drainUnderLoad(t, path, loop)
			}
		})
	}
}

// drainUnderLoad runs one drain of a listener at path. Two goroutines serve it by loop.
func drainUnderLoad(t *testing.T, path, loop string) {
	t.Helper()
	l := sockettest.ListenAt(t, path, unixsock.Backlog(8))
	var servers, clients sync.WaitGroup
	for range 2 {
		servers.Go(serving(t, l)[loop])
	}
	var answered atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				c, err := unixsock.Connect(path)
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
					return
				}
				if err != nil {
					t.Errorf("Connect to a listener that drains: got %v, want ECONNREFUSED or ErrNotExist", err)
					return
				}
				b, err := io.ReadAll(c)
				c.Close()
				if string(b) != "s" || err != nil {
					t.Errorf("ReadAll of a client that had connected: got %q, %v; want %q, nil", b, err, "s")
					return
				}
				answered.Add(1)
			}
		})
	}
	for enough := rand.Int64N(30); answered.Load() < enough; {
		time.Sleep(10 * time.Microsecond)
	}
	if err := l.Drain(); err != nil {
		t.Errorf("Drain: got %v, want nil", err)
	}
	sockettest.CheckReturns(t, "the clients", clients.Wait)
	sockettest.CheckReturns(t, "the servers", servers.Wait)
	if path[0] != 0 && sockettest.IsSocketFile(path) {
		t.Error("Lstat of the socket file after Drain: got a file, want none")
	}
}

func TestDrainOfAnIdleListenerClosesIt(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	for range 2 {
		if err := l.Drain(); err != nil {
			t.Errorf("Drain: got %v, want nil", err)
		}
	}
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
	if c, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Connect after Drain: got %v, %v; want nil, ErrNotExist", c, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close after Drain: got %v, want nil", err)
	}
	if err := l.Drain(); err != nil {
		t.Errorf("Drain after Close: got %v, want nil", err)
	}
}

func TestDrainServesPendingClientsAndCloses(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	ready := l.Ready()
	clients := []*unixsock.Conn{sockettest.Connect(t, path), sockettest.Connect(t, path)}
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if sockettest.IsSocketFile(path) {
		t.Error("Lstat of the socket file after Drain: got a file, want none")
	}
	for _, client := range clients {
		if !polled(t, l, l.Ready()) {
			t.Fatal("select on Ready() in a drain with a pending client: got not ready, want ready")
		}
		server, err := l.TryAccept()
		if err != nil {
			t.Fatalf("TryAccept in a drain: got %v, want a connection", err)
		}
		mustTalk(t, client, server)
	}
	if _, ok := sockettest.ReceiveOK(t, "Ready to be closed", ready); ok {
		t.Error("receive from Ready after a drain: got a value, want a closed channel")
	}
	if c, err := l.TryAccept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryAccept after a drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestSecondDrainLosesNoClient(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	clients := []*unixsock.Conn{sockettest.Connect(t, path), sockettest.Connect(t, path)}
	for _, owner := range []bool{true, false} {
		l.SetUnlinkOnClose(owner)
		if err := l.Drain(); err != nil {
			t.Fatalf("Drain: got %v, want nil", err)
		}
	}
	for _, client := range clients {
		mustTalk(t, client, sockettest.Accept(t, l))
	}
}

// A process that is not written in Go may set the shared socket to blocking mode. accept(2)
// does not wait on a socket that is shut down, and fails with another error than EAGAIN.
func TestDrainEndsASocketInBlockingMode(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	l := sockettest.Listen(t)
	f, err := l.File()
	if err != nil {
		t.Fatalf("File: %v", err)
	}
	defer f.Close()
	if err := syscall.SetNonblock(int(f.Fd()), false); err != nil {
		t.Fatalf("SetNonblock: %v", err)
	}
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if c, err := l.TryAccept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryAccept after Drain of a socket in blocking mode: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestCloseEndsADrain(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if err := l.Close(); err != nil {
		t.Fatalf("Close of a listener that drains: got %v, want nil", err)
	}
	mustEnd(t, client)
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestDrainEndsAConnectThatWaits(t *testing.T) {
	l := sockettest.FullListener(t)
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	result := sockettest.Connecting(t, t.Context(), l.Addr().String())
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	d := sockettest.Receive(t, "ConnectContext whose listener drains", result)
	if !errors.Is(d.Err, syscall.ECONNREFUSED) && !errors.Is(d.Err, fs.ErrNotExist) {
		t.Errorf("ConnectContext whose listener drains: got %v, want ECONNREFUSED or ErrNotExist", d.Err)
	}
}

func TestDrainLeavesTheFileOfAnother(t *testing.T) {
	l := sockettest.Listen(t)
	path := l.Addr().String()
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove of the socket file: %v", err)
	}
	other := sockettest.ListenAt(t, path)
	if err := l.Drain(); err != nil {
		t.Errorf("Drain of a listener whose file was replaced: got %v, want nil", err)
	}
	sockettest.CheckExchange(t, path, other)
}

// The listener of a pre-fork worker, of a systemd unit, or of a process that has handed its
// socket to a successor is not the owner.
func TestDrainLeavesSocketFileAndBacklogToTheOwner(t *testing.T) {
	for name, disown := range map[string]func(l *unixsock.Listener) (drained, owner *unixsock.Listener){
		"adopted": func(l *unixsock.Listener) (drained, owner *unixsock.Listener) { return adopt(t, l), l },
		"handed over": func(l *unixsock.Listener) (drained, owner *unixsock.Listener) {
			owner = adopt(t, l)
			owner.SetUnlinkOnClose(true)
			l.SetUnlinkOnClose(false)
			return l, owner
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := sockettest.Listen(t, unixsock.UnlinkOnClose())
			path := first.Addr().String()
			l, owner := disown(first)
			evt := l.AcceptEvt(t.Context())
			ahead := sockettest.Connect(t, path)
			sockettest.WaitFor(t, "no connection is accepted ahead", func() bool { return !sockettest.Pending(t, l) })
			queued := sockettest.Connect(t, path)
			if err := l.Drain(); err != nil {
				t.Fatalf("Drain: got %v, want nil", err)
			}
			mustTalk(t, ahead, mustReceive(t, evt))
			mustBeOver(t, evt)
			if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept after the drain: got %v, %v; want nil, net.ErrClosed", c, err)
			}
			mustTalk(t, queued, sockettest.Accept(t, owner))
			sockettest.CheckExchange(t, path, owner)
			next := adopt(t, owner)
			owner.SetUnlinkOnClose(false)
			owner.Close()
			sockettest.CheckExchange(t, path, next)
		})
	}
}

func TestDrainOfAnAdoptedListenerThatUnlinksIsTheOwners(t *testing.T) {
	first := sockettest.Listen(t)
	path := first.Addr().String()
	l := adopt(t, first)
	l.SetUnlinkOnClose(true)
	first.Close()
	client := sockettest.Connect(t, path)
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain: got %v, want nil", err)
	}
	if c, err := unixsock.Connect(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Connect after Drain: got %v, %v; want nil, ErrNotExist", c, err)
	}
	mustTalk(t, client, sockettest.Accept(t, l))
}

func TestListenerThatIsShutDownElsewhereEndsAndRemovesNoFile(t *testing.T) {
	if !sockettest.RefusesAfterShutdown(t) {
		t.Skip("the kernel cannot refuse connections to a listening socket")
	}
	for _, began := range []string{"before the shutdown", "after the shutdown"} {
		for _, loop := range []string{"Accept", "Ready", "AcceptEvt"} {
			t.Run(loop+" that began "+began, func(t *testing.T) {
				l := sockettest.Listen(t, unixsock.UnlinkOnClose())
				path := l.Addr().String()
				other := adopt(t, l)
				var servers sync.WaitGroup
				serve := func() {
					for range 3 {
						servers.Go(serving(t, l)[loop])
					}
				}
				if began == "before the shutdown" {
					serve()
				}
				client := sockettest.Connect(t, path)
				shutdown(t, other)
				if began == "after the shutdown" {
					serve()
				}
				if b, err := io.ReadAll(client); string(b) != "s" || err != nil {
					t.Errorf("ReadAll of the pending client: got %q, %v; want %q, nil", b, err, "s")
				}
				sockettest.CheckReturns(t, "the servers of a socket that is shut down", servers.Wait)
				if _, err := l.TryAccept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("TryAccept after the end: got %v, want net.ErrClosed", err)
				}
				l.Close()
				if !sockettest.IsSocketFile(path) {
					t.Error("Lstat of the socket file: got none, want the file to stay")
				}
			})
		}
	}
}

// shutdown shuts down the socket of l for reading, as a process does that drains it.
func shutdown(t *testing.T, l *unixsock.Listener) {
	t.Helper()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	controlErr := raw.Control(func(fd uintptr) { err = syscall.Shutdown(int(fd), syscall.SHUT_RD) })
	if err := cmp.Or(controlErr, err); err != nil {
		t.Fatalf("shutdown(2) of a listening socket: %v", err)
	}
}

func TestDrainDoesNotEndWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	skipUnlessPendingIsKept(t)
	l := sockettest.Listen(t)
	client := sockettest.Connect(t, l.Addr().String())
	free := sockettest.ExhaustDescriptors(t)
	if err := l.Drain(); err != nil {
		t.Fatalf("Drain without descriptors: got %v, want nil", err)
	}
	if c, err := l.Accept(); c != nil || !errors.Is(err, syscall.EMFILE) {
		t.Fatalf("Accept without descriptors in a drain: got %v, %v; want nil, EMFILE", c, err)
	}
	idles(t)
	free()
	mustTalk(t, client, sockettest.Accept(t, l))
	if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after the drain: got %v, %v; want nil, net.ErrClosed", c, err)
	}
}

func TestDrainOfANilOrZeroListenerIsAnError(t *testing.T) {
	for name, l := range map[string]*unixsock.Listener{"nil": nil, "zero": new(unixsock.Listener)} {
		var opErr *net.OpError
		if err := l.Drain(); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &opErr) {
			t.Errorf("Drain of a %s Listener: got %v, want a *net.OpError with os.ErrInvalid", name, err)
		}
	}
}
