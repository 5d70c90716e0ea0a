//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cut returns data in pieces of n bytes, with empty ones among them.
func cut(data []byte, n int) net.Buffers {
	v := net.Buffers{nil}
	for piece := range slices.Chunk(data, n) {
		v = append(v, piece, []byte{})
	}
	return v
}

func TestWriteBuffersWritesAll(t *testing.T) {
	for _, c := range []struct{ size, piece int }{
		{0, 1}, {1, 1}, {100, 7}, {maxBuffers, 1}, {3*maxBuffers + 1, 1}, {2 << 20, 100_000}, {2 << 20, 2 << 20},
	} {
		t.Run(fmt.Sprintf("%d bytes by %d", c.size, c.piece), func(t *testing.T) {
			near, far := mustPair(t)
			data := randomBytes(c.size)
			v := cut(data, c.piece)
			_, result := gathered(t, near, far)
			if n, err := near.WriteBuffers(&v); n != int64(c.size) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
			if len(v) != 0 {
				t.Errorf("%d buffers are left", len(v))
			}
			if !bytes.Equal(result(), data) {
				t.Error("other bytes came out")
			}
		})
	}
}

func TestWriteBuffersLeavesWhatItDidNotWrite(t *testing.T) {
	near, far := mustPair(t)
	data := randomBytes(4 << 20)
	v := cut(data, 5000)
	if err := near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := near.WriteBuffers(&v)
	wantError(t, err, os.ErrDeadlineExceeded, "write", "unix")
	near.Close()
	got, err := io.ReadAll(far)
	if int64(len(got)) != n || err != nil {
		t.Errorf("%d bytes came out of %d, %v", len(got), n, err)
	}
	if n == 0 || !bytes.Equal(slices.Concat(got, slices.Concat(v...)), data) {
		t.Error("what came out and what is left do not make up what was given")
	}
}

func TestWriteBuffersEndsWithAClose(t *testing.T) {
	for name, end := range map[string]func(c *Conn) error{"Close": (*Conn).Close, "CloseWrite": (*Conn).CloseWrite} {
		t.Run(name, func(t *testing.T) {
			near, _ := mustPair(t)
			failed := make(chan error, 1)
			go func() {
				v := cut(make([]byte, 4<<20), 100_000)
				_, err := near.WriteBuffers(&v)
				failed <- err
			}()
			waitInPoller(t, 1)
			end(near)
			wantError(t, receive(t, "the end of WriteBuffers", failed), net.ErrClosed, "write", "unix")
			v := net.Buffers{[]byte("more")}
			n, err := near.WriteBuffers(&v)
			if n != 0 || len(v) != 1 {
				t.Errorf("wrote %d bytes, %d buffers are left", n, len(v))
			}
			wantError(t, err, net.ErrClosed, "write", "unix")
		})
	}
}

func TestWriteBuffersDoesNotMixWithOthers(t *testing.T) {
	const writers, rounds, size = 4, 5, 500_000
	near, far := mustPair(t)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				v := cut(bytes.Repeat([]byte{byte('a' + i)}, size), 999)
				if _, err := near.WriteBuffers(&v); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		wg.Wait()
		near.Close()
	}()
	message := make([]byte, size)
	for range writers * rounds {
		if _, err := io.ReadFull(far, message); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(message, message[:1]); n != size {
			t.Fatalf("only %d bytes of %d are of one writer", n, size)
		}
	}
}

func TestWriteBuffersIsOneSystemCall(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	near, far := mustPair(t)
	v := cut(make([]byte, 1000), 10)
	before := writesOfThread(t)
	if _, err := near.WriteBuffers(&v); err != nil {
		t.Fatal(err)
	}
	if n := writesOfThread(t) - before; n != 1 {
		t.Errorf("%d system calls", n)
	}
	if _, err := io.ReadFull(far, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
}

// writesOfThread returns how often this thread has called write(2) or its like.
func writesOfThread(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/io")
	if err != nil {
		t.Skip("no count of system calls: ", err)
	}
	_, count, _ := strings.Cut(string(b), "syscw: ")
	if _, err := fmt.Sscan(count, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBufferSizesAreSet(t *testing.T) {
	near, _ := mustPair(t)
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set func(bytes int) error
		opt int
	}{
		"SetReadBuffer":  {near.SetReadBuffer, unix.SO_RCVBUF},
		"SetWriteBuffer": {near.SetWriteBuffer, unix.SO_SNDBUF},
	} {
		sizes := make([]int, 2)
		for i, ask := range []int{8 << 10, 64 << 10} {
			if err := c.set(ask); err != nil {
				t.Fatal(name, err)
			}
			raw.Control(func(fd uintptr) { sizes[i], err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, c.opt) })
			if err != nil || sizes[i] < ask {
				t.Errorf("%s(%d) set %d, %v", name, ask, sizes[i], err)
			}
		}
		if sizes[0] >= sizes[1] {
			t.Errorf("%s made no difference: %d", name, sizes)
		}
	}
	near.CloseRead()
	wantError(t, near.SetReadBuffer(8<<10), net.ErrClosed, "set", "unix")
	near.Close()
	wantError(t, near.SetWriteBuffer(8<<10), net.ErrClosed, "set", "unix")
}
