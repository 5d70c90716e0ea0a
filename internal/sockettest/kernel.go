//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// The functions of this file probe what the kernel does where kernels differ, with
// system calls of their own. A test that asserts what one kernel does calls them, and
// skips what another kernel cannot do.

func probeSocket(t testing.TB, socketType int) int {
	fd, err := socketOf(socketType)
	if err == unix.EPROTONOSUPPORT {
		t.Skip("the kernel has no Unix sockets of this type")
	}
	Check(t, err)
	return fd
}

func probeListener(t testing.TB, socketType int) (fd int, path string) {
	path = filepath.Join(ShortDir(t), "probe")
	fd = probeSocket(t, socketType)
	Check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	Check(t, unix.Listen(fd, 4))
	return fd, path
}

func probePair(t testing.TB) [2]int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	Check(t, err)
	return fds
}

// connectErr returns the error of a connect(2) to path.
func connectErr(t testing.TB, socketType int, path string) error {
	fd := probeSocket(t, socketType)
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

// KeepsPendingWithoutDescriptors reports whether a connection stays pending if accept(2) has no
// descriptor for it. gVisor and macOS drop it. Call it in a child process.
func KeepsPendingWithoutDescriptors(t testing.TB) bool {
	listener, path := probeListener(t, unix.SOCK_STREAM)
	client := Got(TryConnect(path)).Must(t)
	defer sys.CloseAll([]int{listener, client})
	free := ExhaustDescriptors(t)
	_, _, err := unix.Accept(listener)
	ExpectError(t, "accept without a free descriptor", err, unix.EMFILE)
	free()
	fd, _, err := unix.Accept(listener)
	unix.Close(fd)
	return err == nil
}

// ReportsRightsCutByLimit reports whether recvmsg(2) reports that the process was out of
// descriptors for those that were sent: by MSG_CTRUNC, or EMSGSIZE on the BSDs. gVisor does
// not, and keeps them open in the kernel. Call it in a child process.
func ReportsRightsCutByLimit(t testing.TB) bool {
	fds := probePair(t)
	defer sys.CloseAll(fds[:])
	Check(t, unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(0, 0), nil, 0))
	free := limitDescriptors(t, 1)
	control := make([]byte, 256)
	_, n, flags, _, err := unix.Recvmsg(fds[1], make([]byte, 1), control, 0)
	free()
	messages, _ := unix.ParseSocketControlMessage(control[:n])
	for _, m := range messages {
		received, _ := unix.ParseUnixRights(&m)
		sys.CloseAll(received)
	}
	if err == unix.EMSGSIZE {
		return true
	}
	Check(t, err)
	return flags&unix.MSG_CTRUNC != 0
}

// DistinguishesBoundFromDead reports whether connect(2) of a datagram socket tells a stream
// socket that does not listen yet from a file without a socket. In gVisor it does not.
func DistinguishesBoundFromDead(t testing.TB) bool {
	path := filepath.Join(ShortDir(t), "probe")
	bound := probeSocket(t, unix.SOCK_STREAM)
	defer unix.Close(bound)
	Check(t, unix.Bind(bound, &unix.SockaddrUnix{Name: path}))
	return connectErr(t, unix.SOCK_DGRAM, path) != unix.ECONNREFUSED
}

// RefusesDeadSeqpacket reports whether connect(2) of a stream socket to the file of a closed
// seqpacket socket fails with ECONNREFUSED. In gVisor it is EPROTOTYPE, as if it were open.
func RefusesDeadSeqpacket(t testing.TB) bool {
	fd, path := probeListener(t, unix.SOCK_SEQPACKET)
	unix.Close(fd)
	return connectErr(t, unix.SOCK_STREAM, path) == unix.ECONNREFUSED
}

// RefusesAfterShutdown reports whether the kernel refuses connections to a listening socket
// that is shut down for reading. Linux and NetBSD do. gVisor, macOS and FreeBSD do not.
func RefusesAfterShutdown(t testing.TB) bool {
	listener, path := probeListener(t, unix.SOCK_STREAM)
	defer unix.Close(listener)
	_ = unix.Shutdown(listener, unix.SHUT_RD) // an error means that it has no effect
	return connectErr(t, unix.SOCK_STREAM, path) == unix.ECONNREFUSED
}

// ShutdownWakesAccept reports whether a goroutine that waits in the poller to accept wakes when
// the listening socket is shut down. On NetBSD it does not.
func ShutdownWakesAccept(t testing.TB) bool {
	listener, _ := probeListener(t, unix.SOCK_STREAM)
	f := os.NewFile(uintptr(listener), "listener")
	defer f.Close()
	Check(t, f.SetReadDeadline(time.Now().Add(time.Second)))
	raw := Got(f.SyscallConn()).Must(t)
	calls := 0
	err := raw.Read(func(fd uintptr) bool {
		if calls++; calls == 1 {
			time.AfterFunc(100*time.Millisecond, func() { _ = unix.Shutdown(int(fd), unix.SHUT_RD) })
		}
		return calls > 1
	})
	return err == nil
}

// ReportsListening reports whether the kernel tells a listening socket from another one. macOS
// and DragonFly do not.
func ReportsListening(t testing.TB) bool {
	fd := probeSocket(t, unix.SOCK_STREAM)
	defer unix.Close(fd)
	_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil
}

// ReportsClosedInput reports whether a write fails with EPIPE once the peer has shut down
// its input. On macOS, NetBSD, OpenBSD and FreeBSD before 15 it does not.
func ReportsClosedInput(t testing.TB) bool {
	fds := probePair(t)
	defer sys.CloseAll(fds[:])
	Check(t, unix.Shutdown(fds[1], unix.SHUT_RD))
	return unix.Sendto(fds[0], []byte("x"), unix.MSG_DONTWAIT, nil) == unix.EPIPE
}
