package unixsock_test

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// bufferSize is the size of the buffer that io.Copy allocates. A copy in the kernel
// allocates none.
const bufferSize = 32 << 10

// allocated returns how many bytes the process has allocated.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// ways returns the functions that copy r to w.
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
	const size = 1000 // few, so that the test allocates little besides
	data := randomBytes(size)
	refusesAppend := sockettest.RefusesSpliceToAppend(t)
	copies(t, func(t *testing.T, from source, to sink) {
		inKernel := true
		for _, name := range []string{from.name, to.name} {
			switch name {
			case "memory":
				t.Skip("memory is copied without a buffer of its own")
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
			if n != size || err != nil || !bytes.Equal(result(), data) {
				t.Fatalf("%s copied %d bytes, %v, or others; want %d", way, n, err, size)
			}
			if buffered == inKernel {
				t.Errorf("%s copied through a buffer: %t, want %t", way, buffered, !inKernel)
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
			if allocated()-before >= bufferSize {
				t.Error("the copy went through a buffer")
			}
			if n != 600 || err != nil || limited.N != 0 {
				t.Fatalf("copied %d bytes, %v, and %d are left; want 600 and 0", n, err, limited.N)
			}
			got := make([]byte, 600)
			if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, data[:600]) {
				t.Errorf("the peer read other bytes, %v", err)
			}
		})
	}
}

func TestKernelCopyDoesNotJoinPackets(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(fds[1]), "packets")
	defer far.Close()
	near := os.NewFile(uintptr(fds[0]), "packets")
	defer near.Close()
	in, out := sockettest.Pair(t)
	if _, err := out.Write(bytes.Repeat([]byte("x"), 100)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	before := allocated()
	if n, err := in.WriteTo(near); n != 100 || err != nil {
		t.Fatalf("copied %d bytes, %v; want 100", n, err)
	}
	if n := allocated() - before; n < bufferSize {
		t.Errorf("the copy allocated %d bytes, want a buffer of %d", n, bufferSize)
	}
}

// TestRefusalHalfWayLosesNothing makes the kernel refuse in the middle of a copy
// what it did before: to splice to a file that is being appended to.
func TestRefusalHalfWayLosesNothing(t *testing.T) {
	near, far := sockettest.Pair(t)
	f := newTestFile(t, 0)
	first, second := randomBytes(300_000), randomBytes(900_000)
	start := allocated()
	c := startCopy(f, near)
	if _, err := far.Write(first); err != nil {
		t.Fatal(err)
	}
	sockettest.WaitFor(t, "the file does not grow", func() bool {
		info, err := f.Stat()
		return err == nil && info.Size() == int64(len(first))
	})
	inKernel := allocated()
	if n := inKernel - start; n >= bufferSize {
		t.Errorf("the first part of the copy allocated %d bytes, want no buffer", n)
	}
	sockettest.WaitInPoller(t, 1)
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFL, unix.O_APPEND) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write(second); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if got := sockettest.Receive(t, "the end of the copy", c); got.n != 1_200_000 || got.err != nil {
		t.Fatal(got)
	}
	if n := allocated() - inKernel; n < bufferSize && sockettest.RefusesSpliceToAppend(t) {
		t.Errorf("the rest of the copy allocated %d bytes, want a buffer of %d", n, bufferSize)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(b, append(first, second...)) {
		t.Errorf("%d bytes came out, or others, %v", len(b), err)
	}
}

func TestFilesOfProcAreCopied(t *testing.T) {
	const name = "/proc/self/maps"
	near, far := sockettest.Pair(t)
	f, err := os.Open(name)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	w, result := gathered(t, near, far)
	n, err := io.Copy(w, f)
	if b := result(); n == 0 || int64(len(b)) != n || err != nil {
		t.Errorf("copied %d bytes, %d came out, %v", n, len(b), err)
	}
}

// TestPipeNeverLeaksBytes leaves bytes in a pipe again and again: the next copy
// must not get them.
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
			t.Fatal(n, err)
		}
		if !bytes.Equal(result(), data) {
			t.Fatal("other bytes came out")
		}
	}
}

func TestIdleCopyHoldsNoPipe(t *testing.T) {
	if !sockettest.InChild(t, nil) { // where there are no pipes of other copies
		return
	}
	near, far := sockettest.Pair(t)
	from, feed := netPair(t, "unix")
	before := sockettest.CountDescriptors(t)
	c := startCopy(near, from)
	if _, err := feed.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	sockettest.WaitFor(t, "the copy holds descriptors", func() bool {
		runtime.GC() // closes pipes that are not in use
		return sockettest.CountDescriptors(t) <= before
	})
	from.Close()
	sockettest.Receive(t, "the end of the copy", c)
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
		t.Fatal(n, err)
	}
	if !bytes.Equal(result(), data) {
		t.Error("other bytes came out")
	}
}
