//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package netfd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// check ends the test if a call failed.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got the error %v, want nil", err)
	}
}

// newPair returns two connected FDs, neither of which is registered.
func newPair(t *testing.T) (f, peer *FD) {
	t.Helper()
	fd1, fd2, err := sys.Socketpair()
	check(t, err)
	f, peer = New(fd1), New(fd2)
	t.Cleanup(func() { f.Close(); peer.Close() })
	if isRegistered(f) { // the first FD of a process is registered at once
		return newPair(t)
	}
	return f, peer
}

func isRegistered(f *FD) bool { return f.file.Load() != nil }

// expectEOF reads from the peer of a closed FD, or of one whose output is shut down.
func expectEOF(t *testing.T, peer *FD) {
	t.Helper()
	if n, err := peer.Read(make([]byte, 8)); n != 0 || err != io.EOF {
		t.Errorf("Read of the peer: got %d, %v, want EOF", n, err)
	}
}

func TestConnectionThatNeverWaitsStaysDirect(t *testing.T) {
	f, peer := newPair(t)
	b := make([]byte, 2*maxDirect)
	var room int
	check(t, f.Control(func(fd int) (err error) { // on macOS and the BSDs, the buffer is smaller
		room, err = sys.Write(fd, b[:100<<10])
		return err
	}))
	read := func(f *FD, size int) {
		t.Helper()
		if n, err := io.ReadAtLeast(f, b, size); n != size || err != nil {
			t.Fatalf("Read of %d bytes into a large buffer: got %d, %v", size, n, err)
		}
	}
	read(peer, room)
	for _, size := range []int{1, room} {
		for _, ends := range [][2]*FD{{f, peer}, {peer, f}} {
			if n, err := ends[0].Write(b[:size]); n != size || err != nil {
				t.Fatalf("Write of %d bytes: got %d, %v", size, n, err)
			}
			read(ends[1], size)
		}
	}
	check(t, f.Control(sys.ShutdownWrite))
	expectEOF(t, peer)
	if isRegistered(f) || isRegistered(peer) {
		t.Error("after calls that did not wait, an FD is registered, want none")
	}
}

func TestCallThatWaitsRegisters(t *testing.T) {
	f, peer := newPair(t)
	go func() {
		for !isRegistered(f) {
			runtime.Gosched()
		}
		peer.Write([]byte("x"))
	}()
	if n, err := f.Read(make([]byte, 1)); n != 1 || err != nil || !isRegistered(f) {
		t.Errorf("Read that waits: got %d, %v, registered %t; want 1, nil, true", n, err, isRegistered(f))
	}

	f, peer = newPair(t)
	go io.Copy(io.Discard, peer)
	if _, err := f.Write(make([]byte, 8<<20)); err != nil || !isRegistered(f) {
		t.Errorf("Write that waits: got %v, registered %t; want nil, true", err, isRegistered(f))
	}
}

func TestRefusedRegistrationClosesTheDescriptor(t *testing.T) {
	f, peer := newPair(t)
	// os.NewFile registers no descriptor in blocking mode.
	check(t, syscall.SetNonblock(int(f.fd), false))
	if file, err := f.File(); file != nil || !errors.Is(err, os.ErrNoDeadline) {
		t.Fatalf("File of a refused descriptor: got %v, %v, want ErrNoDeadline", file, err)
	}
	if err := peer.Control(func(fd int) error { _, err := sys.Read(fd, make([]byte, 1)); return err }); err != io.EOF {
		t.Errorf("read(2) of the peer: got %v, want EOF", err)
	}
	if _, err := f.Read(make([]byte, 1)); err != net.ErrClosed {
		t.Errorf("Read after a refused registration: got %v, want net.ErrClosed", err)
	}
	check(t, f.Close())
}

func TestConcurrentWritesOfADirectFDAreNotInterleaved(t *testing.T) {
	const writers = 4
	for _, size := range []int{100 << 10, 100 << 10, maxDirect + 1} {
		f, peer := newPair(t)
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				if n, err := f.Write(bytes.Repeat([]byte{byte(i)}, size)); n != size || err != nil {
					t.Errorf("Write of %d bytes: got %d, %v, want all", size, n, err)
				}
			})
		}
		b := make([]byte, size)
		for range writers {
			_, err := io.ReadFull(peer, b)
			check(t, err)
			if got := bytes.Count(b, b[:1]); got != size {
				t.Fatalf("next %d bytes of concurrent Writes: got %d of one Write, want all", size, got)
			}
		}
		wg.Wait()
	}
}

func TestCloseWakesWritesBehindACallbackOfRawConnWrite(t *testing.T) {
	f, _ := newPair(t)
	raw, err := f.SyscallConn()
	check(t, err)
	begun, release := make(chan bool), make(chan bool)
	done, woken := make(chan error), make(chan error)
	start := func(result chan error, turn uint32, write func() error) {
		go func() { result <- write() }()
		for next := uint32(0); next != turn; runtime.Gosched() {
			f.mu.Lock()
			next = f.next
			f.mu.Unlock()
		}
	}
	start(done, 1, func() error {
		return raw.Write(func(uintptr) bool { close(begun); <-release; return true })
	})
	<-begun
	start(woken, 2, func() error { _, err := f.Write(make([]byte, 1)); return MapErr(err) })
	start(woken, 3, func() error {
		return raw.Write(func(uintptr) bool { t.Error("second RawConn.Write: called its function"); return true })
	})
	go f.Close() // it returns after the callback
	for range 2 {
		select {
		case err := <-woken:
			if err != net.ErrClosed {
				t.Errorf("Write behind a callback of RawConn.Write, after Close: got %v, want net.ErrClosed", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Write behind a callback of RawConn.Write, after Close: got no return in 10 s")
		}
	}
	close(release)
	check(t, <-done) // a callback that runs during Close is no error
}

func TestClosedFDReturnsErrors(t *testing.T) {
	direct, peer := newPair(t)
	registered, registeredPeer := newPair(t)
	_, err := registered.File()
	check(t, err)
	for name, f := range map[string]*FD{"direct": direct, "registered": registered, "zero": new(FD)} {
		for range 2 {
			check(t, f.Close())
		}
		_, readErr := f.Read(make([]byte, 1))
		_, writeErr := f.Write(make([]byte, 1))
		controlErr := f.Control(func(int) error { return nil })
		for call, err := range map[string]error{"Read": readErr, "Write": writeErr, "Control": controlErr} {
			if MapErr(err) != net.ErrClosed {
				t.Errorf("%s of a closed %s FD: got %v, want net.ErrClosed", call, name, err)
			}
		}
	}
	expectEOF(t, peer)
	expectEOF(t, registeredPeer)
}
