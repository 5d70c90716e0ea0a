package unixsock_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

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

func TestKernelMovesTheBytes(t *testing.T) {
	const size = 1000 // small compared with bufferSize: the test itself allocates little
	data := randomBytes(size)
	refusesAppend := sockettest.RefusesSpliceToAppend(t)
	copies(t, func(t *testing.T, from source, to sink) {
		inKernel := true
		for _, name := range []string{from.name, to.name} {
			switch name {
			case "memory":
				t.Skip("a copy from or to memory needs no buffer")
			case "blocking pipe":
				inKernel = false
			case "appending file":
				inKernel = inKernel && !refusesAppend
			}
		}
		for _, way := range []string{"io.Copy", "ReadFrom", "WriteTo"} {
			r := from.open(t, data)
			w, result := to.open(t)
			copy, ok := ways(w, r)[way]
			if !ok {
				continue
			}
			before := allocated()
			n, err := copy()
			buffered := allocated()-before >= bufferSize
			if n != size || err != nil {
				t.Fatalf("%s of %d bytes: got %d, %v; want %d, nil", way, size, n, err, size)
			}
			if got := result(); !bytes.Equal(got, data) {
				t.Fatalf("%s of %d bytes: got %d bytes at the other end, want the same bytes", way, size, len(got))
			}
			if buffered == inKernel {
				t.Errorf("%s of %d bytes: copied through a buffer %t, want %t", way, size, buffered, !inKernel)
			}
		}
	})
}

func TestKernelMovesTheBytesOfALimitedReader(t *testing.T) {
	data := randomBytes(1000)
	for _, from := range sources {
		if from.name == "memory" || from.name == "blocking pipe" {
			continue
		}
		t.Run(from.name, func(t *testing.T) {
			near, far := sockettest.Pair(t)
			limited := &io.LimitedReader{R: from.open(t, data), N: 600}
			before := allocated()
			n, err := io.Copy(near, limited)
			if n := allocated() - before; n >= bufferSize {
				t.Errorf("io.Copy with limit 600: allocated %d bytes, want less than a buffer of %d", n, bufferSize)
			}
			if n != 600 || err != nil || limited.N != 0 {
				t.Fatalf("io.Copy with limit 600: got %d, %v, with limit %d left; want 600, nil, with limit 0 left", n, err, limited.N)
			}
			got := make([]byte, 600)
			if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, data[:600]) {
				t.Errorf("ReadFull of the peer after io.Copy with limit 600: got %v, equal bytes: %t; want nil, equal bytes", err, bytes.Equal(got, data[:600]))
			}
		})
	}
}

func TestKernelCopyDoesNotJoinPackets(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("socketpair(2): %v", err)
	}
	far := os.NewFile(uintptr(fds[1]), "packets")
	defer far.Close()
	near := os.NewFile(uintptr(fds[0]), "packets")
	defer near.Close()
	in, out := sockettest.Pair(t)
	if _, err := out.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatalf("Write of the peer: %v", err)
	}
	out.Close()
	before := allocated()
	if n, err := in.WriteTo(near); n != 100 || err != nil {
		t.Fatalf("WriteTo a seqpacket socket of 100 bytes: got %d, %v; want 100, nil", n, err)
	}
	if n := allocated() - before; n < bufferSize {
		t.Errorf("WriteTo a seqpacket socket: allocated %d bytes, want at least a buffer of %d", n, bufferSize)
	}
}

// TestRefusalHalfWayLosesNothing sets O_APPEND on the destination in the middle of a copy.
// From then on, the kernel refuses to splice to the file.
func TestRefusalHalfWayLosesNothing(t *testing.T) {
	near, far := sockettest.Pair(t)
	f := newTestFile(t, 0)
	first, second := randomBytes(300_000), randomBytes(900_000)
	start := allocated()
	c := startCopy(f, near)
	if _, err := far.Write(first); err != nil {
		t.Fatalf("Write of the first %d bytes: %v", len(first), err)
	}
	sockettest.WaitFor(t, "the file does not have the first bytes", func() bool {
		info, err := f.Stat()
		return err == nil && info.Size() == int64(len(first))
	})
	inKernel := allocated()
	if n := inKernel - start; n >= bufferSize {
		t.Errorf("copy of the first %d bytes: allocated %d bytes, want less than a buffer of %d", len(first), n, bufferSize)
	}
	sockettest.WaitInPoller(t, 1)
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn of the file: %v", err)
	}
	raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFL, unix.O_APPEND) })
	if err != nil {
		t.Fatalf("fcntl(2) with F_SETFL, O_APPEND: %v", err)
	}
	if _, err := far.Write(second); err != nil {
		t.Fatalf("Write of the last %d bytes: %v", len(second), err)
	}
	far.Close()
	if got := sockettest.Receive(t, "the end of the copy", c); got.n != 1_200_000 || got.err != nil {
		t.Fatalf("io.Copy of 1200000 bytes to a file that gets O_APPEND: got %d, %v; want 1200000, nil", got.n, got.err)
	}
	if n := allocated() - inKernel; n < bufferSize && sockettest.RefusesSpliceToAppend(t) {
		t.Errorf("copy of the last %d bytes: allocated %d bytes, want at least a buffer of %d", len(second), n, bufferSize)
	}
	b, err := os.ReadFile(f.Name())
	if want := append(first, second...); err != nil || !bytes.Equal(b, want) {
		t.Errorf("ReadFile after the copy: got %d bytes, %v; want the %d bytes that the peer wrote", len(b), err, len(want))
	}
}

func TestFilesOfProcAreCopied(t *testing.T) {
	const name = "/proc/self/maps"
	near, far := sockettest.Pair(t)
	f, err := os.Open(name)
	if err != nil {
		t.Skipf("Open: %v", err)
	}
	defer f.Close()
	w, result := gathered(t, near, far)
	n, err := io.Copy(w, f)
	if b := result(); n == 0 || int64(len(b)) != n || err != nil {
		t.Errorf("io.Copy of %s: got %d, %v, with %d bytes at the other end; want the same number, more than 0, and nil", name, n, err, len(b))
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

// Some files of sysfs can be opened, but not read.
func TestErrorOfAFileIsNotTheSockets(t *testing.T) {
	names, _ := filepath.Glob("/sys/class/net/*/queues/tx-*/traffic_class")
	read := false
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		_, want := f.Read(make([]byte, 1))
		if want == nil {
			continue
		}
		read = true
		near, _ := sockettest.Pair(t)
		if n, err := near.ReadFrom(f); n != 0 || !reflect.DeepEqual(err, want) {
			t.Errorf("ReadFrom of %s: got %d, %v; want 0, %v", name, n, err, want)
		}
	}
	if !read {
		t.Skip("no file of sysfs whose read fails")
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

func TestIdleCopyHoldsNoPipe(t *testing.T) {
	if !sockettest.InChild(t, nil) { // the child has no pipes of other copies
		return
	}
	near, far := sockettest.Pair(t)
	from, feed := netPair(t, "unix")
	before := sockettest.CountDescriptors(t)
	c := startCopy(near, from)
	if _, err := feed.Write([]byte("some")); err != nil {
		t.Fatalf("Write of the source's peer: %v", err)
	}
	if _, err := io.ReadFull(far, make([]byte, 4)); err != nil {
		t.Fatalf("ReadFull of the 4 copied bytes: got %v, want no error", err)
	}
	sockettest.WaitFor(t, "the idle copy holds descriptors", func() bool {
		runtime.GC() // closes unused pipes
		return sockettest.CountDescriptors(t) <= before
	})
	from.Close()
	sockettest.Receive(t, "the end of the copy", c)
}

// Other code may hold the lock of a file for long: sendfile in package net does, while its
// peer does not read.
func TestCopyDoesNotWaitForTheLockOfItsFile(t *testing.T) {
	f := largeFile(t)
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn of the file: %v", err)
	}
	held, release, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		raw.Read(func(uintptr) bool { close(held); <-release; return true })
		close(released)
	}()
	<-held
	defer func() { close(release); <-released }()

	c, peer := sockettest.Pair(t)
	sockettest.CheckReturns(t, "copy of a file whose lock is held", func() {
		if n, err := c.ReadFrom(io.LimitReader(f, 10)); n != 10 || err != nil {
			t.Errorf("ReadFrom of a file whose lock is held: got %d, %v; want 10, nil", n, err)
		}
	})
	done := startCopy(c, f)
	if n, err := io.ReadFull(peer, make([]byte, 8<<20)); err != nil {
		t.Errorf("ReadFull of 8 MiB of a file whose lock is held: got %d, %v; want no error", n, err)
	}
	sockettest.CheckReturns(t, "Close during a copy of a file whose lock is held", func() { c.Close() })
	if got := sockettest.Receive(t, "the end of the copy", done); !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("copy whose Conn is closed: got %d bytes, %v; want net.ErrClosed", got.n, got.err)
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
