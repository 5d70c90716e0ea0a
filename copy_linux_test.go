package unixsock_test

import (
	"bytes"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// countMoved counts the bytes that the kernel moves while the test runs.
func countMoved(t *testing.T) *atomic.Int64 {
	n := new(atomic.Int64)
	unixsock.OnMoved(func(m int) { n.Add(int64(m)) })
	t.Cleanup(func() { unixsock.OnMoved(nil) })
	return n
}

func TestKernelMovesTheBytes(t *testing.T) {
	copies(t, func(t *testing.T, from source, to sink) {
		count := countMoved(t)
		size := 1 << 20
		if sockettest.Race {
			size >>= 3
		}
		r := from.open(t, randomBytes(size))
		w, result := to.open(t)
		if _, err := io.Copy(w, r); err != nil {
			t.Fatal(err)
		}
		if n := len(result()); n != size {
			t.Fatalf("%d bytes of %d came out", n, size)
		}
		want := int64(size)
		for _, name := range []string{from.name, to.name} {
			switch name {
			case "memory", "blocking pipe", "appending file":
				want = 0
			}
		}
		if n := count.Load(); n != want {
			t.Errorf("the kernel moved %d bytes, want %d", n, want)
		}
	})
}

func TestPacketsAreNotRunTogetherByTheKernel(t *testing.T) {
	count := countMoved(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(fds[1]), "packets")
	defer far.Close()
	near := os.NewFile(uintptr(fds[0]), "packets")
	defer near.Close()
	in, out := sockettest.Pair(t)
	go func() {
		out.Write(bytes.Repeat([]byte("x"), 100))
		out.Close()
	}()
	if n, err := in.WriteTo(near); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	if n := count.Load(); n != 0 {
		t.Errorf("the kernel moved %d bytes", n)
	}
}

// TestRefusalHalfWayLosesNothing makes the kernel refuse in the middle of a copy
// what it did before: to splice to a file that is being appended to.
func TestRefusalHalfWayLosesNothing(t *testing.T) {
	count := countMoved(t)
	near, far := sockettest.Pair(t)
	f := newTestFile(t, 0)
	c := startCopy(f, near)
	first, second := randomBytes(300_000), randomBytes(900_000)
	if _, err := far.Write(first); err != nil {
		t.Fatal(err)
	}
	sockettest.WaitFor(t, "the file does not grow", func() bool {
		info, err := f.Stat()
		return err == nil && info.Size() == int64(len(first))
	})
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
	if n := count.Load(); n != int64(len(first)) {
		t.Errorf("the kernel moved %d bytes, want %d", n, len(first))
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
		c := stuck(t, near, flowing(t, "socket"))
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
	count := countMoved(t)
	near, far := sockettest.Pair(t)
	from, feed := netPair(t, "unix")
	defer sockettest.ExhaustDescriptors(t)()
	data := randomBytes(500_000)
	w, result := gathered(t, near, far)
	if n, err := io.Copy(w, fed(from, feed, data)); n != int64(len(data)) || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(result(), data) || count.Load() != 0 {
		t.Errorf("other bytes came out, or the kernel moved some of them: %d", count.Load())
	}
}
