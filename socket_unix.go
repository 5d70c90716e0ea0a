//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Available reports whether unix domain sockets are available and supported on
// the current platform. It mirrors unix-socket-available?.
const Available = true

// newSocket returns a stream socket that is non-blocking and close-on-exec.
func newSocket() (int, error) {
	fd, err := socket(unix.SOCK_STREAM)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	return aboveStandard(fd), nil
}

// aboveStandard moves a descriptor that came out as 0, 1 or 2, in a process that
// closed these: what the process prints would go there. If no other is to be
// had it stays, which is no reason to lose a connection.
func aboveStandard(fd int) int {
	if fd > 2 {
		return fd
	}
	nfd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fd
	}
	unix.Close(fd)
	return nfd
}

// newFile gives fd to the runtime's poller. If that refuses (ENOSPC, ENOMEM), it
// returns an error and the file all the same, which owns fd then, too.
func newFile(fd int) (*os.File, error) {
	f := os.NewFile(uintptr(fd), "unix socket")
	if f.SetDeadline(time.Time{}) != nil { // os.NewFile does not tell
		return f, errRefused
	}
	return f, nil
}

func closeSocket(fd int) error {
	return os.NewSyscallError("close", unix.Close(fd))
}

// readSocket reads what has come, or returns errWouldBlock. Like os.File, it goes
// by package syscall, whose calls the race detector knows to be in order.
func readSocket(fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		switch n, err := syscall.Read(fd, b[:min(len(b), maxIO)]); {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return 0, errWouldBlock
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// writeSocket writes as much of b as there is room for, or returns
// errWouldBlock if there is none.
func writeSocket(fd int, b []byte) (int, error) {
	for {
		switch n, err := syscall.Write(fd, b[:min(len(b), maxIO)]); err {
		case nil:
			return n, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, errWouldBlock
		default:
			return 0, os.NewSyscallError("write", err)
		}
	}
}

func bindSocket(fd int, name string) error {
	return os.NewSyscallError("bind", bind(fd, name))
}

func listenSocket(fd, backlog int) error {
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

// connectSocket connects fd, or returns errWouldBlock if a backlog is full.
// Where that cannot be told from nobody listening, it is ECONNREFUSED.
func connectSocket(fd int, name string) error {
	for {
		switch err := connect(fd, name); err {
		case unix.EINTR:
		case unix.EISCONN: // the call that was interrupted came through
			return nil
		case unix.EAGAIN:
			return errWouldBlock
		default:
			return os.NewSyscallError("connect", err)
		}
	}
}

// acceptSocket accepts a connection and returns its descriptor and the peer's
// name, or errWouldBlock if none waits.
func acceptSocket(fd int) (int, string, error) {
	for {
		nfd, peer, err := accept(fd)
		switch err {
		case nil:
			return aboveStandard(nfd), peer, nil
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EAGAIN:
			return -1, "", errWouldBlock
		case unix.EMFILE, unix.ENFILE:
			// Linux looks for a free descriptor before it looks for a
			// connection; want of the first is no news while none waits.
			if !readable(fd) {
				return -1, "", errWouldBlock
			}
		}
		return -1, "", os.NewSyscallError("accept", err)
	}
}

// readable reports whether fd has something to accept or to read, or an end.
func readable(fd int) bool { return ready(fd, unix.POLLIN) }

// writable reports whether fd has room for what is written, or nobody to read it.
func writable(fd int) bool { return ready(fd, unix.POLLOUT) }

func ready(fd int, events int16) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// shutdownSocket shuts down one half of fd. A peer that has gone already is no
// error.
func shutdownSocket(fd int, h half) error {
	how := unix.SHUT_RD
	if h == writeHalf {
		how = unix.SHUT_WR
	}
	if err := unix.Shutdown(fd, how); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

// discard drops what has come to fd, whose input is shut down. It would stay
// charged to the peer: on Linux a peer that waits to write would wait for ever.
func discard(fd int) {
	var b [16 << 10]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT)
		if err != unix.EINTR && (err != nil || n == 0) {
			return
		}
	}
}
