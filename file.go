package unixsock

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/sockfile"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// Pair returns two connected Conns without names, as made by socketpair(2). The peer of
// both is this process, for [Conn.PeerCred] and the like, wherever they are passed.
func Pair() (*Conn, *Conn, error) {
	fd1, fd2, err := sys.Socketpair()
	if err != nil {
		return nil, nil, fileError(err)
	}
	return newConn(fd1, unnamed, ""), newConn(fd2, unnamed, ""), nil
}

// FileConn returns a Conn for a copy of f's descriptor, which was inherited or
// received. It must be a connected AF_UNIX stream socket, or FileConn returns an
// error. f stays open, and the caller closes it. Both descriptors share the
// non-blocking mode, which FileConn sets.
func FileConn(f *os.File) (*Conn, error) {
	fd, local, remote, err := adopt(f, false)
	if err != nil {
		return nil, fileError(err)
	}
	c := newConn(fd, unixAddr(local), remote)
	if _, err := c.fd.File(); err != nil { // the poller refuses it
		return nil, fileError(err)
	}
	return c, nil
}

// FileListener returns a Listener for a copy of f's descriptor, which was inherited from
// systemd or a parent process, or received. It must be a listening AF_UNIX stream socket, or
// FileListener returns an error. (macOS and DragonFly do not report whether a socket
// listens. There the first accept fails.) f stays open, and the caller closes it. Both
// descriptors share the backlog and the non-blocking mode, which FileListener sets.
//
// Close leaves the socket file, and Drain leaves the socket to the other processes, unless
// [Listener.SetUnlinkOnClose] says otherwise.
func FileListener(f *os.File) (*Listener, error) {
	fd, name, _, err := adopt(f, true)
	if err != nil {
		return nil, fileError(err)
	}
	l, err := newListener(fd, name, sockfile.FileOf(fd, name))
	return l, fileError(err)
}

// adopt returns a copy of f's descriptor, which sys.AdoptStream has accepted.
func adopt(f *os.File, listening bool) (fd int, local, remote string, err error) {
	if !Available {
		return -1, "", "", errUnavailable
	}
	raw, err := f.SyscallConn()
	if err == nil {
		fd, err = duplicate(raw, os.ErrClosed)
	}
	if err != nil {
		return -1, "", "", err
	}
	local, remote, err = sys.AdoptStream(fd, listening)
	if err != nil {
		sys.Close(fd)
	}
	return fd, local, remote, err
}

// duplicate returns a copy of raw's descriptor, or errClosed if that is closed.
func duplicate(raw syscall.RawConn, errClosed error) (fd int, err error) {
	if raw.Control(func(old uintptr) { fd, err = sys.Duplicate(int(old)) }) != nil {
		return -1, errClosed
	}
	return fd, err
}

// fileError returns the error of a function that has no Conn or Listener yet, nil if
// err is nil.
func fileError(err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: "file", Net: "unix", Err: netfd.MapErr(err)}
}

// File returns a copy of the Conn's descriptor, to pass to a child process or to
// send to another process. Each descriptor must be closed, but both refer to one
// socket: shutting down a half affects both. The copy is non-blocking, as the Conn
// is, and close-on-exec: a child process gets it through ExtraFiles of os/exec.
//
// A program that is not written in Go expects a blocking descriptor. Before it is started,
// close the Conn, which leaves the copy open, and call syscall.SetNonblock(int(f.Fd()), false):
// both share the mode, and the Conn would wait even in Close.
//
// For a library that insists on a *[net.UnixConn], pass the copy to [net.FileConn], which
// makes a copy of its own, and close this one.
func (c *Conn) File() (*os.File, error) {
	raw, err := c.netfd().SyscallConn()
	if err != nil {
		return nil, c.opError("file", err)
	}
	fd, err := duplicate(raw, net.ErrClosed)
	if err != nil {
		return nil, c.opError("file", err)
	}
	return os.NewFile(uintptr(fd), "unix:"+c.local.Name+"->"+c.remote), nil
}

// File returns a copy of the Listener's descriptor, non-blocking and close-on-exec as that
// of [Conn.File]. Each descriptor must be closed, but all share one backlog. If a process
// uses [Listener.Ready], it accepts by [Listener.TryAccept].
//
// To restart a server without losing a client, a process
//
//  1. starts its successor with the copy in ExtraFiles of os/exec, as descriptor 3,
//  2. waits until the successor has adopted it by [FileListener], called
//     SetUnlinkOnClose(true) and reported that, for example on a pipe,
//  3. calls SetUnlinkOnClose(false) and Drain, and serves its connections to their end.
func (l *Listener) File() (*os.File, error) {
	if !l.ok() {
		return nil, l.opError("file", os.ErrInvalid)
	}
	fd, err := duplicate(l.raw, net.ErrClosed)
	if err != nil {
		return nil, l.opError("file", err)
	}
	return os.NewFile(uintptr(fd), "unix:"+l.addr.Name), nil
}

// WriteFiles writes b, and passes copies of the descriptors of files with its first byte
// (SCM_RIGHTS). It returns the number of bytes written. If n is not 0, the descriptors have
// been sent. The files stay open in this process.
//
// WriteFiles returns an error and sends nothing if there are more than 253 files, if one is
// closed, or if b is empty but files is not: a stream carries them only with data. On Linux
// the error is ETOOMANYREFS if too many files are sent and not yet received.
//
// The peer must use [Conn.ReadFiles], which never returns the files of two calls together.
// With a plain Read, the kernel discards the descriptors (on NetBSD those of the messages
// behind it, too), or, on macOS, leaves them open in the peer's process.
func (c *Conn) WriteFiles(b []byte, files ...*os.File) (n int, err error) {
	switch {
	case len(files) == 0:
		return c.Write(b)
	case len(b) == 0:
		return 0, c.ioError("write", writeHalf, errors.New("cannot send descriptors without data"))
	case len(files) > sys.MaxRights:
		return 0, c.ioError("write", writeHalf, fmt.Errorf("cannot send %d descriptors: limit %d", len(files), sys.MaxRights))
	}
	fds := make([]int, 0, len(files))
	waitErr := c.wait(writeHalf, func(fd uintptr) bool {
		for n < len(b) {
			err = withDescriptors(files, fds, func(fds []int) error {
				m, err := sys.SendRights(int(fd), b[n:], fds)
				n += m
				return err
			})
			if err != nil {
				return err != sys.ErrWouldBlock
			}
			files = nil // the first byte has carried the descriptors
		}
		return true
	})
	return n, c.ioError("write", writeHalf, cmp.Or(waitErr, err))
}

// withDescriptors calls f with the descriptors of files appended to fds, and keeps
// them open during the call.
func withDescriptors(files []*os.File, fds []int, f func(fds []int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return fmt.Errorf("file %d: %w", len(fds), err)
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = withDescriptors(files[1:], append(fds, int(fd)), f)
	})
	if controlErr != nil {
		return fmt.Errorf("file %d: %w", len(fds), os.ErrClosed)
	}
	return err
}

// ReadFiles reads up to len(b) bytes as Read does, and receives the descriptors that
// come with them, at most max. files is nil if there are none. They are
// close-on-exec and above 2, and the caller closes them.
//
// ReadFiles returns an error if max is negative, if it receives more than max
// descriptors, or if the process is out of descriptors for them or a security module
// refuses one. It has closed every received descriptor then, but the n bytes have been
// read.
func (c *Conn) ReadFiles(b []byte, max int) (n int, files []*os.File, err error) {
	switch {
	case max < 0:
		return 0, nil, c.ioError("read", readHalf, fmt.Errorf("negative maximum of descriptors: %d", max))
	case len(b) == 0:
		n, err = c.Read(b)
		return n, nil, err
	}
	var fds []int
	waitErr := c.wait(readHalf, func(fd uintptr) bool {
		n, fds, err = sys.ReceiveRights(int(fd), b)
		return err != sys.ErrWouldBlock
	})
	err = cmp.Or(waitErr, err)
	switch {
	case n > 0 && c.isClosed(readHalf):
		n, err = 0, net.ErrClosed // as in Read
	case err == nil && n == 0:
		err = io.EOF
	case err == nil && len(fds) > max:
		err = fmt.Errorf("received %d descriptors, limit %d: closed all", len(fds), max)
	}
	if err != nil {
		sys.CloseAll(fds)
		return n, nil, c.ioError("read", readHalf, err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received descriptor"))
	}
	return n, files, nil
}
