//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// Readable reports whether poll(2) finds input, an end or a connection at fd.
func Readable(fd int) bool { return polled(fd, unix.POLLIN) }

// Writable reports whether poll(2) finds that fd has room for output, or that
// its peer no longer reads.
func Writable(fd int) bool { return polled(fd, unix.POLLOUT) }

func polled(fd int, events int16) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, _ := unix.Poll(fds, 0) // it does not wait, so no signal interrupts it
	return n > 0
}

// Pending reports whether the kernel's queue of l holds a connection.
func Pending(t testing.TB, l *unixsock.Listener) (yes bool) {
	t.Helper()
	Control(t, l, func(fd int) { yes = Readable(fd) })
	return yes
}

func socketOf(socketType int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, socketType, 0)
	if err == nil {
		unix.CloseOnExec(fd)
		err = unix.SetNonblock(fd, true)
	}
	return fd, err
}

// TryConnect connects a new socket to path without waiting. The caller closes it.
func TryConnect(path string) (fd int, err error) {
	fd, err = socketOf(unix.SOCK_STREAM)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// FillBacklog connects to path until the backlog is full, and returns how many
// connects succeeded.
func FillBacklog(t testing.TB, path string) (n int) {
	t.Helper()
	SkipUnlessBacklogsWait(t)
	for ; ; n++ {
		fd, err := TryConnect(path)
		if err == unix.EAGAIN {
			return n
		}
		Check(t, err)
		t.Cleanup(func() { unix.Close(fd) })
	}
}

// SkipUnlessBacklogsWait skips the test on kernels that refuse connections to a full backlog.
func SkipUnlessBacklogsWait(t testing.TB) {
	t.Helper()
	if FullBacklog(t) != unix.EAGAIN {
		t.Skip("connect(2) does not distinguish a full backlog from a socket without a listener")
	}
}

// FullBacklog returns the error of a connect(2) to a listener with a full backlog: EAGAIN on
// Linux, ECONNREFUSED elsewhere.
func FullBacklog(t testing.TB) error {
	fullOnce.Do(func() {
		listener, path := probeListener(t, unix.SOCK_STREAM)
		fds := []int{listener}
		for full == nil {
			fd, err := TryConnect(path)
			fds, full = append(fds, fd), err
		}
		sys.CloseAll(fds)
	})
	return full
}

var (
	fullOnce sync.Once
	full     error // set by fullOnce
)

// Dial is unixsock.Connect, which waits for a full backlog also where the kernel refuses
// the connection, for [Timeout] at most.
func Dial(t testing.TB, path string) (*unixsock.Conn, error) {
	c, err := unixsock.Connect(path)
	refused := FullBacklog(t) // EAGAIN is waited for inside Connect
	for deadline := time.Now().Add(Timeout); errors.Is(err, refused) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
		c, err = unixsock.Connect(path)
	}
	return c, err
}

// FullListener returns a listener with no room in its backlog.
func FullListener(t testing.TB) *unixsock.Listener {
	t.Helper()
	SkipUnlessBacklogsWait(t)
	l := Listen(t, unixsock.Backlog(0))
	Connect(t, l.Addr().String())
	return l
}

// Dialed is what a call of ConnectContext returned.
type Dialed struct {
	Conn *unixsock.Conn
	Err  error
}

// Connecting starts a ConnectContext to a listener with a full backlog, and
// returns once it waits.
func Connecting(t testing.TB, ctx context.Context, path string) <-chan Dialed {
	t.Helper()
	ctx, waits := Watch(ctx)
	result := make(chan Dialed, 1)
	go func() {
		c, err := unixsock.ConnectContext(ctx, path)
		if c != nil {
			t.Cleanup(func() { c.Close() })
		}
		result <- Dialed{c, err}
	}()
	Receive(t, "ConnectContext to wait", waits)
	return result
}

// Watch returns a context for one call of ConnectContext, and a channel that is closed
// once the call waits: it asks for Done only then.
func Watch(ctx context.Context) (context.Context, <-chan struct{}) {
	waits := make(chan struct{})
	return watched{ctx, sync.OnceFunc(func() { close(waits) })}, waits
}

type watched struct {
	context.Context
	asked func()
}

func (w watched) Done() <-chan struct{} {
	w.asked()
	return w.Context.Done()
}
