package unixsock_test

import (
	"bytes"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// A copy whose destination is full holds a pipe if the kernel moves the bytes.
func TestKernelMovesBulkBetweenSockets(t *testing.T) {
	if !sockettest.InChild(t, nil) { // the child has no pipes of other copies
		return
	}
	start := sockettest.CountDescriptors(t)
	for _, from := range append([]string{"tcp", "unix"}, ourSources...) {
		for _, to := range ourSinks {
			t.Run(from+" to "+to, func(t *testing.T) {
				sockettest.WaitFor(t, "pipes of other copies are left", func() bool {
					runtime.GC() // closes unused pipes
					return sockettest.CountDescriptors(t) <= start
				})
				r, feed := endsOf(t, from)
				w, far := endsOf(t, to)
				before := sockettest.CountDescriptors(t)
				go flood(feed, make([]byte, 1<<20))
				if to == "Conn" { // io.Copy calls the WriteTo of the others
					r = io.LimitReader(r.(io.Reader), math.MaxInt64)
				}
				c := startCopy(w.(io.Writer), r.(io.Reader))
				sockettest.WaitFor(t, "the copy holds no pipe", func() bool {
					held := sockettest.CountDescriptors(t) > before
					if !held { // the copy may have filled the output with a buffer
						far.Read(make([]byte, 64<<10))
					}
					return held
				})
				far.Close()
				sockettest.Receive(t, "the end of the copy", c)
			})
		}
	}
}

// An empty message is not the end of the input.
func TestCopyFromASocketOfMessagesUsesItsRead(t *testing.T) {
	address := &net.UnixAddr{Name: filepath.Join(sockettest.ShortDir(t), "s"), Net: "unixgram"}
	near := sockettest.Got(net.ListenUnixgram("unixgram", address)).Must(t)
	far := sockettest.Got(net.DialUnix("unixgram", nil, address)).Must(t)
	w, peer := sockettest.Pair(t)
	startCopy(w, near)
	for _, message := range []string{"some", "", "more"} {
		sockettest.Control(t, far, func(fd int) { sockettest.Check(t, unix.Send(fd, []byte(message), 0)) })
	}
	sockettest.CheckReturns(t, "the messages", func() { sockettest.Expect(t, peer, "somemore") })
}

func TestCopyDoesNotEndAtUrgentData(t *testing.T) {
	for _, size := range []int{5, 100_000} {
		// open returns a connection whose peer sends bytes, an urgent one, and bytes.
		open := func() net.Conn {
			near, far := netPair(t, "tcp")
			raw := sockettest.Got(far.(*net.TCPConn).SyscallConn()).Must(t)
			go func() {
				far.Write(make([]byte, size))
				raw.Write(func(fd uintptr) bool { return unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) != unix.EAGAIN })
				far.Write(bytes.Repeat([]byte("b"), size))
				far.Close()
			}()
			return near
		}
		want := sockettest.Got(io.ReadAll(open())).Must(t)
		checkCopy(t, open(), want)
	}
}

// A seek in a file of /proc, which reports no size, generates the file again: lines may be
// missing or doubled. One of /sys reports more than it has, and the copy must find its end
// without waiting for the peer.
func TestCopyOfAFileOfAWrongSize(t *testing.T) {
	for name, reported := range map[string]int64{"/proc/meminfo": 0, "/sys/devices/system/cpu/online": 4096} {
		f, err := os.Open(name)
		if err != nil {
			t.Skip(err)
		}
		defer f.Close()
		c, _ := sockettest.Pair(t)                           // the peer does not read
		sockettest.Send(t, c, string(make([]byte, 100<<10))) // poll(2) reports no room after it
		c.SetDeadline(time.Now().Add(sockettest.Timeout))
		before := memStats().TotalAlloc
		if n, err := c.ReadFrom(f); n == 0 || err != nil {
			t.Errorf("ReadFrom of %s, whose reported size is %d: got %d, %v; want more than 0, nil", name, reported, n, err)
		}
		if n := memStats().TotalAlloc - before; reported == 0 && n < bufferSize {
			t.Errorf("ReadFrom of %s: allocated %d bytes, want a buffer of %d", name, n, bufferSize)
		}
	}
}

// A copy that fails leaves bytes in its pipe. The next copy must not receive them.
func TestPipeNeverLeaksBytes(t *testing.T) {
	data := randomBytes(100_000)
	for range 5 {
		near, _ := sockettest.Pair(t)
		c := blockedCopy(t, near, endlessReader(t, "tcp"))
		near.Close()
		sockettest.Receive(t, "the end of the copy", c)
		checkCopy(t, openSource(t, "unix", data), data)
	}
}

func TestIdleCopiesHoldNoBufferAndNoPipe(t *testing.T) {
	if !sockettest.InChild(t, nil) { // the child has no pipes of other copies
		return
	}
	for _, kinds := range [][2]string{{"Conn", "Conn"}, {"tcp", "Conn"}, {"unix", "Conn"}, {"Conn", "tcp"}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			checkHeld(t, 60, 16<<10, func() func() {
				from, feed := endsOf(t, kinds[0])
				to, peer := endsOf(t, kinds[1])
				return func() {
					startCopy(to.(io.Writer), from.(io.Reader))
					pass(t, feed, peer, 20_000)
				}
			})
		})
	}
}

// 500 of them may hold 70 MiB, so each a 500th of that.
func TestStalledCopyHoldsOneBuffer(t *testing.T) {
	b := make([]byte, 64<<10)
	checkHeld(t, 50, 70<<20/500, func() func() {
		feed, from := sockettest.Pair(t)
		to, _ := netPair(t, "tcp")
		to.(*net.TCPConn).SetWriteBuffer(64 << 10)
		return func() {
			go io.Copy(to, from)
			go flood(feed, b)
			sockettest.WaitFor(t, "the copy takes bytes", func() bool { return isFull(t, feed) })
		}
	})
}

// A copy waits for a Write of its Conn by another goroutine. Meanwhile another copy sends the
// rest of the file.
func TestCopyToAConnInUseLeavesTheFileToOthers(t *testing.T) {
	const size = 8 << 20
	f := fileOfSize(t, size)
	busy, _ := sockettest.Pair(t)
	release := hold(t, sockettest.Got(busy.SyscallConn()).Must(t).Write)
	waiting := startCopy(busy, f)
	w, result := openSink(t, "Conn")
	var sent int64
	for {
		n, err := io.CopyN(w, f, 64<<10)
		sent += n
		if err == io.EOF {
			break
		}
		sockettest.Check(t, err)
	}
	busy.SetWriteDeadline(time.Unix(1, 0))
	release()
	got := sockettest.Receive(t, "the end of the copy", waiting)
	if arrived := len(result()); sent+got.n != size || int64(arrived) != sent {
		t.Errorf("two copies of %d bytes: got %d, of which %d arrived, and %d, %v; want all", size, sent, arrived, got.n, got.err)
	}
}

func TestCloseAtTheBeginningOfACopyLeavesTheOffset(t *testing.T) {
	f := fileOfSize(t, large)
	for range 3000 {
		near, far, err := unixsock.Pair()
		sockettest.Check(t, err)
		sockettest.Got(f.Seek(0, io.SeekStart)).Must(t)
		go near.Close()
		n, err := near.ReadFrom(io.LimitReader(f, 1<<20))
		near.Close()
		far.Close()
		if offset := sockettest.Got(f.Seek(0, io.SeekCurrent)).Must(t); offset != n {
			t.Fatalf("offset of a file after a ReadFrom with a Close beside it that returned %d, %v: got %d, want %[1]d", n, err, offset)
		}
	}
}

// The lock of a file may be held for long: package net's sendfile holds it while its peer does
// not read.
func TestLockOfAFileDelaysNoCloseAndNoWrite(t *testing.T) {
	for name, call := range map[string]func(c *unixsock.Conn) error{
		"Close": (*unixsock.Conn).Close,
		"Write": func(c *unixsock.Conn) error { _, err := c.Write([]byte("x")); return err },
	} {
		f := fileOfSize(t, large)
		c, peer := sockettest.Pair(t)
		done := blockedCopy(t, c, f)
		release := hold(t, sockettest.Got(f.SyscallConn()).Must(t).Read)
		go io.Copy(io.Discard, peer) // so that the copy continues, and waits for the lock
		sockettest.WaitFor(t, "the peer has not read", func() bool { return !isFull(t, c) })
		sockettest.CheckReturns(t, name+" during a copy of a file whose lock is held", func() { sockettest.ExpectError(t, name, call(c), nil) })
		release()
		want := map[string]error{"Close": net.ErrClosed}[name]
		sockettest.ExpectError(t, "copy with a "+name+" beside it", sockettest.Receive(t, "the end of the copy", done).err, want)
	}
}

func TestCopyWithoutDescriptorsToSpareIsAPlainOne(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	data := randomBytes(500_000)
	w, result := openSink(t, "Conn")
	from := openSource(t, "unix", data)
	t.Cleanup(sockettest.ExhaustDescriptors(t))
	n, err := io.Copy(w, from)
	if got := result(); n != int64(len(data)) || err != nil || !bytes.Equal(got, data) {
		t.Errorf("io.Copy of %d bytes without a free descriptor: got %d, %v, with %d bytes at the other end; want the same bytes", len(data), n, err, len(got))
	}
}

// TestReadHappensAfterTheCopyOfAFile fails with the race detector only.
func TestReadHappensAfterTheCopyOfAFile(t *testing.T) {
	a, b := sockettest.Pair(t)
	file := openSource(t, "file", []byte("x"))
	shared := 0
	var reader sync.WaitGroup
	reader.Go(func() {
		b.Read(make([]byte, 1))
		shared++
	})
	shared = 1
	io.Copy(a, file)
	reader.Wait()
	if shared != 2 {
		t.Errorf("the shared variable: got %d, want 2", shared)
	}
}
