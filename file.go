package unixsock

import (
	"net"
	"os"
	"syscall"
)

// Pair returns two connected Conns, both ends unnamed, as socketpair(2) makes
// them; close-on-exec, as all descriptors of this package are.
func Pair() (*Conn, *Conn, error) {
	if !Available {
		return nil, nil, fileError(errUnavailable)
	}
	fd1, fd2, err := newPair()
	if err != nil {
		return nil, nil, fileError(err)
	}
	return newConn(fd1, "", ""), newConn(fd2, "", ""), nil
}

// FileConn returns a Conn of a copy of f's descriptor, which must be a connected
// AF_UNIX stream socket; any other is refused. It is for descriptors that were
// inherited or received. f stays open, and remains the caller's to close. The
// two share the non-blocking mode, which is set.
func FileConn(f *os.File) (*Conn, error) {
	fd, local, remote, err := adopt(f, false)
	if err != nil {
		return nil, fileError(err)
	}
	c := newConn(fd, local, remote)
	if _, err := c.file.open(); err != nil {
		c.Close()
		return nil, fileError(err)
	}
	return c, nil
}

// FileListener returns a Listener of a copy of f's descriptor, which must be a
// listening AF_UNIX stream socket; any other is refused, but that NetBSD, OpenBSD
// and DragonFly do not tell one that does not listen. It is for sockets that were
// inherited, from systemd or a parent process. f stays open, and remains the
// caller's to close. The two share the non-blocking mode, which is set, and the
// backlog.
func FileListener(f *os.File) (*Listener, error) {
	fd, local, _, err := adopt(f, true)
	if err != nil {
		return nil, fileError(err)
	}
	l, err := newListener(fd, local)
	if err != nil {
		return nil, fileError(err)
	}
	return l, nil
}

// adopt copies the descriptor of f and returns the copy and its names.
func adopt(f *os.File, listening bool) (fd int, local, remote string, err error) {
	if !Available {
		return -1, "", "", errUnavailable
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, "", "", err
	}
	fd, err = copyDescriptor(raw.Control)
	if err == net.ErrClosed {
		err = os.ErrClosed // it is the file's to say, not a Conn's
	}
	if err != nil {
		return -1, "", "", err
	}
	if local, remote, err = adoptSocket(fd, listening); err != nil {
		closeSocket(fd)
		return -1, "", "", err
	}
	return fd, local, remote, nil
}

// copyDescriptor copies the descriptor that control lends.
func copyDescriptor(control func(func(uintptr)) error) (fd int, err error) {
	if controlErr := control(func(old uintptr) { fd, err = duplicate(int(old)) }); controlErr != nil {
		return -1, net.ErrClosed
	}
	return fd, err
}

// fileError makes the error of a function that has no Conn or Listener yet.
func fileError(err error) error {
	return &net.OpError{Op: "file", Net: "unix", Err: cause(err)}
}

// File returns a copy of the Conn's descriptor, for a child process or another
// that it is sent to. The two close apart, but are one socket: what one shuts
// down is shut down for both. The copy is in non-blocking mode, as the Conn is,
// and close-on-exec: a child gets it by os/exec's ExtraFiles.
func (c *Conn) File() (*os.File, error) {
	f, err := copyFile(c.file.SyscallConn, "unix:"+c.local+"->"+c.remote)
	if err != nil {
		return nil, c.opError("file", err)
	}
	return f, nil
}

// File returns a copy of the Listener's descriptor, for a child process or
// another that it is sent to. The two close apart, but share one backlog. The
// copy is in non-blocking mode, as the Listener is, and close-on-exec: a child
// gets it by os/exec's ExtraFiles.
func (l *Listener) File() (*os.File, error) {
	f, err := copyFile(l.file.SyscallConn, "unix:"+l.name)
	if err != nil {
		return nil, l.opError("file", err)
	}
	return f, nil
}

func copyFile(syscallConn func() (syscall.RawConn, error), name string) (*os.File, error) {
	raw, err := syscallConn()
	if err != nil {
		return nil, err
	}
	fd, err := copyDescriptor(raw.Control)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
