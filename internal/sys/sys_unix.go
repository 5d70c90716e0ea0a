//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// EAGAIN is the error of a call that would have to wait, as [ErrWouldBlock] is.
const EAGAIN = unix.EAGAIN

// MaxPathLen is the maximum length of a name in a socket address.
const MaxPathLen = len(unix.RawSockaddrUnix{}.Path) - pathNUL

// Socket returns a stream socket.
func Socket() (fd int, err error) { return SocketOf(unix.SOCK_STREAM) }

// SocketOf returns a socket of the given type.
func SocketOf(socketType int) (fd int, err error) {
	defer holdForks()()
	fd, err = unix.Socket(unix.AF_UNIX, socketType|sockFlags, 0)
	cloexec(err, fd)
	return fd, os.NewSyscallError("socket", err)
}

// Socketpair returns two connected stream sockets.
func Socketpair() (fd1, fd2 int, err error) {
	defer holdForks()()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|sockFlags, 0)
	cloexec(err, fds[0], fds[1])
	return fds[0], fds[1], os.NewSyscallError("socketpair", err)
}

// holdForks keeps this process from forking until release is called, if new descriptors
// are inherited until cloexec is called: sockFlags make them close-on-exec, where a system
// has such flags.
func holdForks() (release func()) {
	if sockFlags != 0 {
		return func() {}
	}
	syscall.ForkLock.RLock()
	return syscall.ForkLock.RUnlock
}

// cloexec makes new sockets close-on-exec and non-blocking, unless the call that created
// them has done so or has failed with err.
func cloexec(err error, fds ...int) {
	if sockFlags != 0 || err != nil {
		return
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		_ = unix.SetNonblock(fd, true) // cannot fail
	}
}

// Bind binds fd to name.
func Bind(fd int, name string) error {
	return Repeat("bind", func() error { return setSockaddr(unix.SYS_BIND, unix.Bind, fd, name) })
}

// setSockaddr calls bind(2) or connect(2): for a name of up to maxWrapped bytes by the
// function of x/sys/unix, for a longer one by the raw system call, the only way.
func setSockaddr(trap uintptr, wrapper func(int, unix.Sockaddr) error, fd int, name string) error {
	if len(name) <= maxWrapped {
		return wrapper(fd, &unix.SockaddrUnix{Name: name})
	}
	var b [maxAddress]byte
	n := encode(&b, name, AbstractNames)
	if _, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(n)); errno != 0 {
		return errno
	}
	return nil
}

// Listen makes fd a listening socket.
func Listen(fd, backlog int) error {
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

// Connect connects fd to name. It returns ErrWouldBlock if the listener's backlog is
// full. On macOS and the BSDs that is ECONNREFUSED.
func Connect(fd int, name string) error {
	err := Repeat("connect", func() error {
		return setSockaddr(unix.SYS_CONNECT, unix.Connect, fd, name)
	})
	if errors.Is(err, unix.EISCONN) { // the interrupted call has succeeded
		return nil
	}
	return err
}

// Accept accepts a connection and returns its descriptor and the peer's name. It
// returns ErrWouldBlock if no connection is pending.
func Accept(fd int) (nfd int, peer string, err error) {
	gone := 0
	nfd, err = repeat("accept", func() (nfd int, err error) {
		nfd, peer, err = accept(fd)
		if err == unix.ECONNABORTED { // the peer has gone: accept the next one
			err = unix.EINTR
			if gone++; gone > 1<<12 { // NetBSD: the socket is shut down, and in blocking mode
				err = unix.EAGAIN
			}
		}
		return nfd, err
	})
	outOfDescriptors := errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
	if outOfDescriptors && poll(fd, unix.POLLIN) == 0 {
		// Linux allocates the descriptor before it checks the queue, so there need not be
		// a connection.
		return -1, "", ErrWouldBlock
	}
	return nfd, peer, err
}

// AdoptStream returns the names of fd and makes it non-blocking if it is a Unix stream
// socket that listens, or is connected if listening is false. Otherwise the error says
// why it is not.
//
// macOS and DragonFly do not report whether a socket listens. There, one without a peer
// passes as listening, and its first accept fails.
func AdoptStream(fd int, listening bool) (local, remote string, err error) {
	kind, kindErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	local, localErr := getsockname(fd)
	remote, peerErr := getpeername(fd)
	connected := peerErr == nil || isConnected(fd)
	accepting, acceptingErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	switch {
	case kindErr != nil:
		err = fmt.Errorf("not a socket: %w", os.NewSyscallError("getsockopt", kindErr))
	case localErr != nil:
		err = fmt.Errorf("not a unix socket: %w", os.NewSyscallError("getsockname", localErr))
	case kind != unix.SOCK_STREAM:
		err = errors.New("not a stream socket: it preserves message boundaries")
	case !listening && !connected:
		err = fmt.Errorf("not a connected socket: %w", os.NewSyscallError("getpeername", peerErr))
	case listening && accepting == 0 && (acceptingErr == nil || connected):
		err = errors.New("not a listening socket")
	default:
		err = os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
	}
	return local, remote, err
}

// isConnected reports whether fd is connected, or was until its peer closed: macOS and the
// BSDs report no name of a peer that has gone, and what it has sent can still be read.
func isConnected(fd int) bool {
	err := peek(fd)
	return !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.EINVAL)
}

// peek returns the error of a read that leaves the bytes where they are.
func peek(fd int) error {
	var b [1]byte
	_, err := repeat("recvfrom", func() (int, error) {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n, err
	})
	return err
}

// Duplicate returns a copy of fd, above the standard descriptors 0 to 2.
func Duplicate(fd int) (int, error) {
	nfd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return nfd, os.NewSyscallError("fcntl", err)
}

// AboveStandard returns fd, or moves it above the standard descriptors 0 to 2 if it is one
// of them, because the process has closed its own. os.File ends the process if a write to 1
// or 2 fails with EPIPE. If it fails, fd is closed.
func AboveStandard(fd int) (int, error) {
	if fd > 2 {
		return fd, nil
	}
	defer unix.Close(fd)
	return Duplicate(fd)
}

// Close closes fd.
func Close(fd int) error {
	return os.NewSyscallError("close", unix.Close(fd))
}

// Read reads available bytes. It returns ErrWouldBlock if there are none, and io.EOF at
// the end. It calls package syscall, which informs the race detector that a read happens
// after the write of the same bytes.
func Read(fd int, b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := repeat("read", func() (int, error) { return syscall.Read(fd, b[:min(len(b), MaxIO)]) })
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, ReadError(err)
}

// ReadError returns the error of a read from a connected socket that failed with err. On
// FreeBSD, a read that finds the socket empty just as the peer closes may fail with ENOTCONN.
func ReadError(err error) error {
	if errors.Is(err, unix.ENOTCONN) {
		return io.EOF
	}
	return err
}

// Write writes the part of b for which there is room. It returns ErrWouldBlock if
// there is none.
func Write(fd int, b []byte) (int, error) {
	return repeat("write", func() (int, error) { return syscall.Write(fd, b[:min(len(b), MaxIO)]) })
}

// Writev is Write for at most [MaxIovecs] buffers of at most [MaxIO] bytes in all.
func Writev(fd int, v [][]byte) (int, error) {
	return repeat("writev", func() (int, error) { return writev(fd, v) })
}

// Repeat makes a system call, again if a signal interrupts it. Its errors are those of the
// package.
func Repeat(name string, call func() error) error {
	_, err := repeat(name, func() (int, error) { return 0, call() })
	return err
}

// repeat makes a system call, again if a signal interrupts it. EAGAIN becomes
// ErrWouldBlock, and another error an *os.SyscallError. With an error, the number is 0.
func repeat(name string, call func() (int, error)) (int, error) {
	for {
		switch n, err := call(); err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, ErrWouldBlock
		default:
			return 0, os.NewSyscallError(name, err)
		}
	}
}

// Writable reports whether fd has room for bytes to write, or a write would fail.
func Writable(fd int) bool { return poll(fd, unix.POLLOUT) != 0 }

// Poll reports whether fd has a connection to accept, bytes to read, or an end of input, and
// whether fd is a listening socket that is shut down. Not all kernels report the latter.
func Poll(fd int) (readable, shutDown bool) {
	events := poll(fd, unix.POLLIN|pollShutDown)
	if pollShutDown == 0 {
		// recv(2) fails for a listening socket, but NetBSD's has an end of input then.
		return events != 0, events != 0 && peek(fd) == nil
	}
	return events != 0, events&pollShutDown != 0
}

// poll returns those of the events that are there, and errors.
func poll(fd int, events int16) int16 {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, _ = repeat("poll", func() (int, error) { return unix.Poll(fds, 0) })
	return fds[0].Revents
}

// ShutdownRead shuts down the input of fd, and discards the unread data. The kernel
// charges the data to the peer: on Linux a peer that waits to write would otherwise
// wait forever. A peer that has gone is no error.
func ShutdownRead(fd int) error {
	err := shutdown(fd, unix.SHUT_RD)
	var b [16 << 10]byte
	// The limit exceeds what a buffer holds: on some BSDs the peer can still write.
	for reads, readErr := 0, error(nil); readErr == nil && reads < 1<<16; reads++ {
		_, readErr = Read(fd, b[:])
	}
	return err
}

// RefuseConnects makes the kernel refuse new connections to the listening socket fd, if it
// can: connections in the backlog stay. Linux and NetBSD can. macOS and gVisor do nothing. On
// FreeBSD it would make an accept fail, and new connections would still succeed.
func RefuseConnects(fd int) {
	if AbstractNames || runtime.GOOS == "netbsd" {
		_ = unix.Shutdown(fd, unix.SHUT_RD)
	}
}

// ShutdownWrite shuts down the output of fd. A peer that has gone is no error.
func ShutdownWrite(fd int) error { return shutdown(fd, unix.SHUT_WR) }

func shutdown(fd, how int) error {
	if err := unix.Shutdown(fd, how); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return os.NewSyscallError("shutdown", err)
	}
	return nil
}

// SetReadBuffer sets the size of the receive buffer. A peer that has gone is no error.
func SetReadBuffer(fd, bytes int) error { return setBuffer(fd, unix.SO_RCVBUF, bytes) }

// SetWriteBuffer sets the size of the send buffer. A peer that has gone is no error.
func SetWriteBuffer(fd, bytes int) error { return setBuffer(fd, unix.SO_SNDBUF, bytes) }

func setBuffer(fd, opt, bytes int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, bytes)
	if err == unix.EINVAL && bytes > 0 { // the peer of a socket of macOS has gone
		return nil
	}
	return os.NewSyscallError("setsockopt", err)
}

// SendRights sends the part of b for which there is room, with copies of fds. It
// returns ErrWouldBlock if there is no room, and nothing has been sent then.
func SendRights(fd int, b []byte, fds []int) (int, error) {
	var control []byte
	if len(fds) > 0 {
		control = unix.UnixRights(fds...)
	}
	if control != nil && !AbstractNames {
		// With little room, macOS and NetBSD report EMSGSIZE. NetBSD reports success and loses
		// the message if the descriptors, of which the kernel makes pointers, then do not fit
		// beside the bytes. poll(2) reports room for at least MaxRights pointers and a byte.
		if !Writable(fd) {
			return 0, ErrWouldBlock
		}
		b = b[:1]
	}
	return repeat("sendmsg", func() (int, error) {
		return unix.SendmsgN(fd, b[:min(len(b), MaxIO)], control, nil, 0)
	})
}

// maxControl is room for every control message that a kernel delivers with one read. Linux
// sends at most 253 descriptors in one, macOS and the BSDs at most 2048 bytes. Messages of
// other kinds may come first, if the user has enabled them. So no message is cut off: macOS
// leaves the descriptors in the rest of one open.
const maxControl = 4096

// ReceiveRights reads available bytes into b, and returns the descriptors that
// came with them, even with an error: the caller closes them. At the end n is 0, and err nil
// or io.EOF.
func ReceiveRights(fd int, b []byte) (n int, fds []int, err error) {
	control := make([]byte, maxControl)
	var controlLen, flags int
	var lost bool
	n, err = repeat("recvmsg", func() (n int, err error) {
		if !AbstractNames { // FreeBSD 12 ignores MSG_CMSG_CLOEXEC, and macOS has none
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
		}
		n, controlLen, flags, _, err = unix.Recvmsg(fd, b[:min(len(b), MaxIO)], control, receiveFlags)
		// Both errors leave the bytes unread. EMSGSIZE: a BSD is out of descriptors. EINVAL: NetBSD
		// has discarded these descriptors with those of an earlier message that read(2) took.
		if (err == unix.EMSGSIZE || err == unix.EINVAL) && !lost {
			lost = true
			err = unix.EINTR
		}
		fds = rights(control[:controlLen])
		if !AbstractNames {
			for _, received := range fds {
				unix.CloseOnExec(received)
			}
		}
		return n, err
	})
	if err == nil && (lost || flags&unix.MSG_CTRUNC != 0) {
		err = errors.New("could not receive all descriptors: too many open files, refused by a security module, or discarded by the kernel")
	}
	for i := 0; i < len(fds) && err == nil; i++ {
		fds[i], err = AboveStandard(fds[i])
	}
	return n, fds, ReadError(err)
}

// scmPidfd is Linux's SCM_PIDFD. The kernel adds a descriptor of this kind to messages if
// the user has set SO_PASSPIDFD on the socket.
const scmPidfd = 4

// rights returns the descriptors in received control messages. It closes those of
// SCM_PIDFD, for which the package has no use.
func rights(control []byte) (fds []int) {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		received, _ := unix.ParseUnixRights(&m)
		fds = append(fds, received...)
		if AbstractNames && m.Header.Level == unix.SOL_SOCKET && m.Header.Type == scmPidfd {
			m.Header.Type = unix.SCM_RIGHTS // of the same form
			pidfds, _ := unix.ParseUnixRights(&m)
			CloseAll(pidfds)
		}
	}
	return fds
}

func toInts(ids []uint32) []int {
	ints := make([]int, len(ids))
	for i, id := range ids {
		ints[i] = int(id)
	}
	return ints
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
