package unixsock_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// bufferSize is the size of the buffer that io.Copy allocates. A copy in the kernel
// allocates no buffer.
const bufferSize = 32 << 10

// allocated returns the number of bytes that the process has allocated so far.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// ways returns the functions that copy r to w, by name. ReadFrom and WriteTo are present
// only if w or r has the method.
func ways(w io.Writer, r io.Reader) map[string]func() (int64, error) {
	ways := map[string]func() (int64, error){
		"io.Copy": func() (int64, error) { return io.Copy(w, r) },
	}
	if w, ok := w.(io.ReaderFrom); ok {
		ways["ReadFrom"] = func() (int64, error) { return w.ReadFrom(r) }
	}
	if r, ok := r.(io.WriterTo); ok {
		ways["WriteTo"] = func() (int64, error) { return r.WriteTo(w) }
	}
	return ways
}

func TestKernelSendsFiles(t *testing.T) {
	const size = 1000 // small compared with bufferSize: the test itself allocates little
	data := randomBytes(size)
	for _, to := range sinks {
		if !to.ours {
			continue
		}
		for _, limit := range []int64{0, 600, math.MaxInt64} { // 0 means no LimitedReader
			for _, way := range []string{"io.Copy", "ReadFrom", "WriteTo"} {
				var r io.Reader = fileOf(t, data)
				want := int64(size)
				if limit > 0 {
					r, want = io.LimitReader(r, limit), min(limit, size)
				}
				w, result := to.open(t)
				copy, ok := ways(w, r)[way]
				if !ok {
					continue
				}
				before := allocated()
				n, err := copy()
				if buffered := allocated() - before; n != want || err != nil || buffered >= bufferSize {
					t.Errorf("%s of a file to %s with limit %d: got %d, %v, with %d bytes allocated; want %d, nil, with less than %d", way, to.name, limit, n, err, buffered, want, bufferSize)
				}
				if got := result(); !bytes.Equal(got, data[:want]) {
					t.Errorf("%s of a file to %s with limit %d: got %d bytes at the other end, want the same bytes", way, to.name, limit, len(got))
				}
			}
		}
	}
}

// A copy whose destination is full holds a pipe if the kernel moves the bytes.
func TestKernelMovesBulkBetweenSockets(t *testing.T) {
	if !sockettest.InChild(t, nil) { // the child has no pipes of other copies
		return
	}
	start := sockettest.CountDescriptors(t)
	for _, from := range sources {
		if from.name == "memory" || from.name == "file" {
			continue
		}
		listed := from.ours || from.name == "net tcp" || from.name == "net unix"
		for _, limit := range []int64{3 << 20, math.MaxInt64} {
			t.Run(fmt.Sprintf("%s, limit %d", from.name, limit), func(t *testing.T) {
				sockettest.WaitFor(t, "pipes of other copies are left", func() bool {
					runtime.GC() // closes unused pipes
					return sockettest.CountDescriptors(t) <= start
				})
				r := from.open(t, make([]byte, 4<<20))
				near, far := sockettest.Pair(t)
				before := sockettest.CountDescriptors(t)
				c := blockedCopy(t, near, io.LimitReader(r, limit))
				if listed {
					sockettest.WaitFor(t, "the copy holds no pipe", func() bool { return sockettest.CountDescriptors(t) > before })
				} else if got := sockettest.CountDescriptors(t); got > before {
					t.Errorf("descriptors during a copy by Read and Write: got %d, want the %d before", got, before)
				}
				far.Close()
				sockettest.Receive(t, "the end of the copy", c)
			})
		}
	}
}

// A read that is too short would cut a message off.
func TestCopyFromASocketOfMessagesUsesItsRead(t *testing.T) {
	l, err := net.Listen("unixpacket", filepath.Join(sockettest.ShortDir(t), "s"))
	if err != nil {
		t.Fatalf("net.Listen: %v", err)
	}
	near, far := netEnds(t, l, func() (net.Conn, error) { return net.Dial("unixpacket", l.Addr().String()) })
	data := randomBytes(3 * bufferSize)
	go func() {
		for message := range slices.Chunk(data, bufferSize) {
			far.Write(message)
		}
		far.Close()
	}()
	w, peer := sockettest.Pair(t)
	out, result := gathered(t, w, peer)
	n, err := io.Copy(out, near)
	if got := result(); n != int64(len(data)) || err != nil || !bytes.Equal(got, data) {
		t.Errorf("io.Copy of three messages: got %d, %v, with %d bytes at the other end; want the same %d bytes, nil", n, err, len(got), len(data))
	}
}

func TestCopyDoesNotEndAtUrgentData(t *testing.T) {
	for _, size := range []int{5, 100_000} {
		// receive returns what read gets from a peer that sends bytes, an urgent one, and bytes.
		receive := func(read func(tcp net.Conn) []byte) []byte {
			near, far := netPair(t, "tcp")
			raw, err := far.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatalf("SyscallConn: %v", err)
			}
			go func() {
				far.Write(bytes.Repeat([]byte("a"), size))
				raw.Write(func(fd uintptr) bool { return unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) != unix.EAGAIN })
				far.Write(bytes.Repeat([]byte("b"), size))
				far.Close()
			}()
			return read(near)
		}
		want := receive(func(tcp net.Conn) []byte {
			b, err := io.ReadAll(tcp)
			if err != nil {
				t.Fatalf("ReadAll of a connection with urgent data: %v", err)
			}
			return b
		})
		got := receive(func(tcp net.Conn) []byte {
			near, far := sockettest.Pair(t)
			w, result := gathered(t, near, far)
			if n, err := io.Copy(w, tcp); n != int64(len(want)) || err != nil {
				t.Errorf("io.Copy of a connection with urgent data: got %d, %v; want %d, nil", n, err, len(want))
			}
			return result()
		})
		if !bytes.Equal(got, want) {
			t.Errorf("io.Copy of a connection with urgent data: got %d bytes at the other end, want the %d of a ReadAll", len(got), len(want))
		}
	}
}

// A seek in a file of /proc generates the file again, so lines may be missing or doubled.
func TestFileThatReportsNoSizeIsCopiedByRead(t *testing.T) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	c, _ := sockettest.Pair(t)
	before := allocated()
	n, err := c.ReadFrom(f)
	if n == 0 || err != nil {
		t.Fatalf("ReadFrom of %s: got %d, %v; want more than 0, nil", f.Name(), n, err)
	}
	if n := allocated() - before; n < bufferSize {
		t.Errorf("ReadFrom of %s: allocated %d bytes, want a buffer of %d", f.Name(), n, bufferSize)
	}
}

// A copy must find the end of a file whose reported size is wrong. The deadline ends a copy
// that waits for the peer instead.
func TestCopyOfAFileOfAWrongSizeDoesNotWaitForThePeer(t *testing.T) {
	for name, size := range map[string]int64{"/proc/self/status": 0, "/sys/devices/system/cpu/online": 4096} {
		f, err := os.Open(name)
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		c, _ := sockettest.Pair(t) // the peer does not read
		c.SetDeadline(time.Now().Add(sockettest.Timeout))
		if _, err := c.Write(make([]byte, 100<<10)); err != nil { // poll(2) reports no room after it
			t.Fatalf("Write of 100 KiB: %v", err)
		}
		if n, err := c.ReadFrom(f); n == 0 || err != nil {
			t.Errorf("ReadFrom of %s, whose reported size is %d: got %d, %v; want more than 0, nil", name, size, n, err)
		}
	}
}

// TestPipeNeverLeaksBytes repeatedly ends a copy that has left bytes in its pipe. The next
// copy must not receive them.
func TestPipeNeverLeaksBytes(t *testing.T) {
	for range 10 {
		near, _ := sockettest.Pair(t)
		c := blockedCopy(t, near, endlessReader(t, "socket"))
		near.Close()
		sockettest.Receive(t, "the end of the copy", c)

		from, feed := netPair(t, "unix")
		to, sink := sockettest.Pair(t)
		data := randomBytes(1000)
		w, result := gathered(t, to, sink)
		if n, err := io.Copy(w, fed(from, feed, data)); n != 1000 || err != nil {
			t.Fatalf("io.Copy of 1000 bytes after a copy that left bytes in its pipe: got %d, %v; want 1000, nil", n, err)
		}
		if got := result(); !bytes.Equal(got, data) {
			t.Fatalf("io.Copy of 1000 bytes after a copy that left bytes in its pipe: got %d bytes at the other end, want the same bytes", len(got))
		}
	}
}

// memoryTest opens n of what open opens, calls start for each, waits until quiet reports
// true for each, and fails the test unless the process soon holds at most limit bytes for
// each that it did not hold before the calls of start, and no descriptor.
func memoryTest[T any](t *testing.T, n int, limit int64, open func() T, start func(T), quiet func(T) bool) {
	t.Helper()
	var all []T
	for range n {
		all = append(all, open())
	}
	memory, descriptors := heldMemory(), sockettest.CountDescriptors(t)
	for _, one := range all {
		start(one)
	}
	for _, one := range all {
		sockettest.WaitFor(t, "a copy is not quiet", func() bool { return quiet(one) })
	}
	runtime.GC() // the second collection empties the pools
	var held int64
	defer runtime.KeepAlive(all)
	defer func() { t.Logf("%d copies hold %d bytes each, want at most %d", n, held, limit) }()
	sockettest.WaitFor(t, "the copies hold too much memory, or descriptors", func() bool {
		held = (heldMemory() - memory) / int64(n)
		return held <= limit && sockettest.CountDescriptors(t) <= descriptors
	})
}

// copyEnds are the ends of a copy from from to to, and their peers.
type copyEnds struct{ feed, from, to, peer net.Conn }

func TestIdleCopiesHoldNoBufferAndNoPipe(t *testing.T) {
	if !sockettest.InChild(t, nil) { // the child has no pipes of other copies
		return
	}
	ours := func(t *testing.T) (net.Conn, net.Conn) {
		a, b, err := unixsock.Pair()
		if err != nil {
			t.Fatalf("Pair: %v", err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	}
	tcp := func(t *testing.T) (net.Conn, net.Conn) { return netPair(t, "tcp") }
	unix := func(t *testing.T) (net.Conn, net.Conn) { return netPair(t, "unix") }
	for name, pairs := range map[string][2]func(*testing.T) (net.Conn, net.Conn){
		"unix to unix": {ours, ours}, "tcp to unix": {tcp, ours}, "net unix to unix": {unix, ours}, "unix to tcp": {ours, tcp},
	} {
		t.Run(name, func(t *testing.T) {
			n := 500
			if testing.Short() || sockettest.Race {
				n = 50
			}
			memoryTest(t, n, 16<<10, func() (e copyEnds) {
				e.feed, e.from = pairs[0](t)
				e.to, e.peer = pairs[1](t)
				return e
			}, func(e copyEnds) {
				go io.Copy(e.to, e.from)
				pass(t, e.feed, e.peer, 200_000)
			}, func(copyEnds) bool { return true })
		})
	}
}

func TestStalledCopyHoldsOneBuffer(t *testing.T) {
	// 500 of them may hold 70 MiB, so each a 500th of that.
	memoryTest(t, 50, 70<<20/500, func() (e copyEnds) {
		e.feed, e.from = sockettest.Pair(t)
		e.to, e.peer = netPair(t, "tcp")
		e.to.(*net.TCPConn).SetWriteBuffer(64 << 10)
		return e
	}, func(e copyEnds) {
		go io.Copy(e.to, e.from)
		go func() {
			for err := error(nil); err == nil; {
				_, err = e.feed.Write(zeros)
			}
		}()
	}, func(e copyEnds) bool { return isFull(t, e.feed.(*unixsock.Conn)) })
}

var zeros = make([]byte, 64<<10)

// holdLock takes the read lock of a file, as other code may do for long: sendfile in package
// net holds it while its peer does not read. release gives it back.
func holdLock(t *testing.T, f *os.File) (release func()) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn of the file: %v", err)
	}
	held, over, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		raw.Read(func(uintptr) bool { close(held); <-over; return true })
		close(released)
	}()
	sockettest.Receive(t, "the lock of the file", held)
	return func() { close(over); <-released }
}

func TestLockOfAFileDelaysNoClose(t *testing.T) {
	f := largeFile(t)
	c, peer := sockettest.Pair(t)
	done := blockedCopy(t, c, f)
	release := holdLock(t, f)
	go io.Copy(io.Discard, peer) // so that the copy continues, and waits for the lock
	sockettest.WaitFor(t, "the peer has not read", func() bool { return !isFull(t, c) })
	sockettest.CheckReturns(t, "Close during a copy of a file whose lock is held", func() { c.Close() })
	release()
	if got := sockettest.Receive(t, "the end of the copy", done); !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("copy whose Conn is closed: got %d bytes, %v; want net.ErrClosed", got.n, got.err)
	}
}

// A copy that waits for the lock of a file does not keep others from writing.
func TestLockOfAFileDelaysNoWrite(t *testing.T) {
	f := largeFile(t)
	c, peer := sockettest.Pair(t)
	done := blockedCopy(t, c, f)
	release := holdLock(t, f)
	go io.Copy(io.Discard, peer)
	sockettest.CheckReturns(t, "Write during a copy of a file whose lock is held", func() {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("Write during a copy of a file whose lock is held: got %v, want no error", err)
		}
	})
	release()
	if got := sockettest.Receive(t, "the end of the copy", done); got.err != nil {
		t.Errorf("copy, once the lock of the file is free: got %d bytes, %v; want no error", got.n, got.err)
	}
}

func TestCopyWithoutDescriptorsToSpareIsAPlainOne(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	near, far := sockettest.Pair(t)
	from, feed := netPair(t, "unix")
	defer sockettest.ExhaustDescriptors(t)()
	data := randomBytes(500_000)
	w, result := gathered(t, near, far)
	if n, err := io.Copy(w, fed(from, feed, data)); n != int64(len(data)) || err != nil {
		t.Fatalf("io.Copy of %d bytes without a free descriptor: got %d, %v; want %d, nil", len(data), n, err, len(data))
	}
	if got := result(); !bytes.Equal(got, data) {
		t.Errorf("io.Copy of %d bytes without a free descriptor: got %d bytes at the other end, want the same bytes", len(data), len(got))
	}
}

// TestReadHappensAfterTheCopyOfAFile fails with the race detector only.
func TestReadHappensAfterTheCopyOfAFile(t *testing.T) {
	a, b := sockettest.Pair(t)
	file := fileOf(t, []byte("x"))
	shared := 0
	var reader sync.WaitGroup
	reader.Go(func() {
		if _, err := b.Read(make([]byte, 1)); err != nil {
			t.Errorf("Read: got %v, want a byte", err)
		}
		shared++
	})
	shared = 1
	if n, err := io.Copy(a, file); n != 1 || err != nil {
		t.Errorf("io.Copy of a file: got %d, %v, want 1 byte", n, err)
	}
	reader.Wait()
	if shared != 2 {
		t.Errorf("the shared variable: got %d, want 2", shared)
	}
}
