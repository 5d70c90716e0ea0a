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

// newPair returns two connected FDs, neither of which is registered.
func newPair(t *testing.T) (f, peer *FD) {
	t.Helper()
	for {
		fd1, fd2, err := sys.Socketpair()
		if err != nil {
			t.Fatalf("Socketpair: %v", err)
		}
		f, peer := New(fd1), New(fd2)
		t.Cleanup(func() { f.Close(); peer.Close() })
		if !isRegistered(f) { // the first FD of a process is registered at once
			return f, peer
		}
	}
}

func isRegistered(f *FD) bool { return f.file.Load() != nil }

// talk sends a byte from one FD to the other.
func talk(t *testing.T, from, to *FD) {
	t.Helper()
	if n, err := from.Write([]byte("x")); n != 1 || err != nil {
		t.Fatalf("Write: got %d, %v, want 1", n, err)
	}
	if n, err := to.Read(make([]byte, 8)); n != 1 || err != nil {
		t.Fatalf("Read: got %d, %v, want 1", n, err)
	}
}

func TestConnectionThatNeverWaitsStaysDirect(t *testing.T) {
	f, peer := newPair(t)
	talk(t, f, peer)
	talk(t, peer, f)
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if n, err := peer.Read(make([]byte, 2*maxDirect)); n != 1 || err != nil {
		t.Fatalf("Read into a large buffer: got %d, %v, want 1", n, err)
	}
	large := make([]byte, 100<<10)
	var room int
	err := f.Control(func(fd int) (err error) { // on macOS and the BSDs, the buffer is smaller
		room, err = sys.Write(fd, large)
		return err
	})
	if err != nil {
		t.Fatalf("write(2): %v", err)
	}
	if _, err := io.ReadFull(peer, large[:room]); err != nil {
		t.Fatalf("Read of %d bytes: %v", room, err)
	}
	if n, err := f.Write(large[:room]); n != room || err != nil {
		t.Fatalf("Write of %d bytes: got %d, %v, want all", room, n, err)
	}
	if n, err := io.ReadFull(peer, large[:room]); err != nil {
		t.Fatalf("Read of %d bytes: got %d, %v, want all", room, n, err)
	}
	if err := f.Control(sys.ShutdownWrite); err != nil {
		t.Fatalf("Control: %v", err)
	}
	if n, err := peer.Read(make([]byte, 8)); n != 0 || err != io.EOF {
		t.Errorf("Read at the end: got %d, %v, want EOF", n, err)
	}
	if isRegistered(f) || isRegistered(peer) {
		t.Error("after calls that did not wait, an FD is registered, want none")
	}
}

func TestCallThatWaitsRegisters(t *testing.T) {
	for name, wait := range map[string]func(f, peer *FD) error{
		"Read": func(f, peer *FD) error {
			go func() {
				for !isRegistered(f) {
					runtime.Gosched()
				}
				peer.Write([]byte("x"))
			}()
			_, err := f.Read(make([]byte, 1))
			return err
		},
		"Write": func(f, peer *FD) error {
			go io.Copy(io.Discard, peer)
			_, err := f.Write(make([]byte, 8<<20))
			return err
		},
	} {
		f, peer := newPair(t)
		if err := wait(f, peer); err != nil || !isRegistered(f) {
			t.Errorf("%s: got %v, registered %v, want no error and registered", name, err, isRegistered(f))
		}
	}
}

func TestRefusedRegistrationClosesTheDescriptor(t *testing.T) {
	f, peer := newPair(t)
	// os.NewFile registers no descriptor in blocking mode.
	if err := syscall.SetNonblock(int(f.fd), false); err != nil {
		t.Fatalf("SetNonblock: %v", err)
	}
	if file, err := f.File(); file != nil || !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("File of a refused descriptor: got %v, %v, want ErrNoDeadline", file, err)
	}
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read of the peer: got %d, %v, want EOF", n, err)
	}
	if _, err := f.Read(make([]byte, 1)); err != net.ErrClosed {
		t.Errorf("Read after a refused registration: got %v, want net.ErrClosed", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after a refused registration: got %v, want no error", err)
	}
}

func TestConcurrentWritesOfADirectFDAreNotInterleaved(t *testing.T) {
	const writers = 4
	for _, size := range []int{100 << 10, maxDirect + 1} {
		for range 5 {
			f, peer := newPair(t)
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() {
					b := bytes.Repeat([]byte{byte(i)}, size)
					if n, err := f.Write(b); n != size || err != nil {
						t.Errorf("Write of %d bytes: got %d, %v, want all", size, n, err)
					}
				})
			}
			b := make([]byte, size)
			for range writers {
				if _, err := io.ReadFull(peer, b); err != nil {
					t.Fatalf("Read of %d bytes: %v", size, err)
				}
				if got := bytes.Count(b, b[:1]); got != size {
					t.Fatalf("next %d bytes of concurrent Writes: got %d of one Write, want all", size, got)
				}
			}
			wg.Wait()
			f.Close()
			peer.Close()
		}
	}
}

func TestCloseWakesWritesBehindACallbackOfRawConnWrite(t *testing.T) {
	f, _ := newPair(t)
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	inside, release, done := make(chan bool), make(chan bool), make(chan error)
	go func() {
		done <- raw.Write(func(uintptr) bool { close(inside); <-release; return true })
	}()
	<-inside
	writeErr, rawErr := make(chan error, 1), make(chan error, 1)
	go func() { _, err := f.Write(make([]byte, 1)); writeErr <- MapErr(err) }()
	go func() {
		rawErr <- raw.Write(func(uintptr) bool { t.Error("second RawConn.Write: called its function"); return true })
	}()
	go f.Close() // it returns after the callback
	for call, errs := range map[string]chan error{"Write": writeErr, "RawConn.Write": rawErr} {
		select {
		case err := <-errs:
			if err != net.ErrClosed {
				t.Errorf("%s behind a callback of RawConn.Write, after Close: got %v, want net.ErrClosed", call, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s behind a callback of RawConn.Write, after Close: got no return in 10 s", call)
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("RawConn.Write whose callback ran during Close: got %v, want no error", err)
	}
}

func TestClosedFDReturnsErrors(t *testing.T) {
	for name, register := range map[string]bool{"direct": false, "registered": true} {
		f, _ := newPair(t)
		if register {
			if _, err := f.File(); err != nil {
				t.Fatalf("File: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		for call, do := range map[string]func() error{
			"Read":    func() error { _, err := f.Read(make([]byte, 1)); return err },
			"Write":   func() error { _, err := f.Write(make([]byte, 1)); return err },
			"Control": func() error { return f.Control(func(int) error { return nil }) },
		} {
			if err := MapErr(do()); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s of a closed %s FD: got %v, want net.ErrClosed", call, name, err)
			}
		}
	}
}

func TestZeroFDIsClosed(t *testing.T) {
	f := new(FD)
	_, readErr := f.Read(make([]byte, 1))
	_, writeErr := f.Write(make([]byte, 1))
	_, fileErr := f.File()
	_, rawErr := f.SyscallConn()
	for call, err := range map[string]error{
		"Read": readErr, "Write": writeErr, "File": fileErr, "SyscallConn": rawErr,
		"Control": f.Control(nil),
	} {
		if err != net.ErrClosed {
			t.Errorf("%s of a zero FD: got %v, want net.ErrClosed", call, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close of a zero FD: got %v, want no error", err)
	}
}

func TestDirectCallsAllocateNothing(t *testing.T) {
	f, peer := newPair(t)
	b := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		f.Write(b)
		peer.Read(b)
	}); n != 0 {
		t.Errorf("a Write and a Read that do not wait: %v allocations, want 0", n)
	}
}
