package stress

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// TestSignalsInterruptNoCall sends signals to threads that wait in a system call on a socket.
// Such calls wait only if another process has made the shared socket blocking. With a timeout,
// the kernel does not restart them.
func TestSignalsInterruptNoCall(t *testing.T) {
	block := func(c syscall.Conn) {
		sockettest.Control(t, c, func(fd int) {
			for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
				sockettest.Check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: 30}))
			}
			sockettest.Check(t, unix.SetNonblock(fd, false))
		})
	}
	l := sockettest.Listen(t)
	block(l)
	conns, peers := make([]*unixsock.Conn, 3), make([]*unixsock.Conn, 3)
	for i := range conns {
		conns[i], peers[i] = pair(t)
		block(conns[i])
	}
	const size = 1 << 20 // more than a buffer holds
	ended := make(chan error)
	for want, call := range map[int]func() (int, error){
		0: func() (int, error) { _, err := l.TryAccept(); return 0, err },
		1: func() (int, error) {
			n, _, err := conns[0].ReadFiles(make([]byte, 10), 1)
			return n, err
		},
		size: func() (int, error) { return conns[1].WriteFiles(make([]byte, size), os.Stdin) },
		size + 1: func() (int, error) {
			n, err := conns[2].WriteBuffers(&net.Buffers{make([]byte, 1), make([]byte, size)})
			return int(n), err
		},
	} {
		go func() {
			n, err := call()
			if err == nil && n != want {
				err = fmt.Errorf("got %d, want %d", n, want)
			}
			ended <- err
		}()
	}
	for range 20 {
		tasks := sockettest.Got(os.ReadDir("/proc/self/task")).Must(t)
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		}
		time.Sleep(time.Millisecond) // the calls may wait again
	}
	sockettest.Connect(t, l.Addr().String())
	sockettest.Send(t, peers[0], "!")
	for i, n := range []int64{size, size + 1} {
		start(func() (int64, error) { return io.CopyN(io.Discard, peers[i+1], n) })
	}
	for range 4 {
		sockettest.Check(t, sockettest.Receive(t, "the end of a call", ended))
	}
}
