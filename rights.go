package unixsock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// maxRights is the most descriptors that one message carries: Linux's
// SCM_MAX_FD, and below what the other systems allow.
const maxRights = 253

// WriteFiles writes b, and with its first byte passes copies of the descriptors
// of files, at most 253 (SCM_RIGHTS). It returns how many bytes of b went out; if
// any did, so did the descriptors. b must not be empty if files are given, for
// on a stream descriptors travel with a byte. More files, an empty b or a closed
// file is an error, and nothing goes out. The files stay open here.
//
// The peer must call [Conn.ReadFiles]: of a plain Read the kernel closes what
// came with the bytes.
func (c *Conn) WriteFiles(b []byte, files ...*os.File) (n int, err error) {
	switch {
	case c.isClosed(writeHalf):
		return 0, c.opError("write", net.ErrClosed)
	case len(files) == 0:
		return c.Write(b)
	case len(b) == 0:
		return 0, c.opError("write", errors.New("no bytes: descriptors travel with at least one"))
	case len(files) > maxRights:
		return 0, c.opError("write", fmt.Errorf("%d descriptors: the limit is %d", len(files), maxRights))
	}
	controls := make([]syscall.RawConn, len(files))
	for i, f := range files {
		if controls[i], err = f.SyscallConn(); err != nil {
			return 0, c.opError("write", fmt.Errorf("file %d: %w", i, err))
		}
	}
	raw, err := c.raw(writeHalf)
	if err != nil {
		return 0, c.ioError("write", writeHalf, err)
	}
	fds := make([]int, 0, len(files))
	rawErr := raw.Write(func(fd uintptr) bool {
		for n < len(b) {
			var m int
			if n == 0 {
				err = withDescriptors(controls, fds, func(fds []int) error {
					m, err = sendRights(int(fd), b, fds)
					return err
				})
			} else {
				m, err = sendRights(int(fd), b[n:], nil)
			}
			if err != nil {
				return err != errWouldBlock
			}
			n += m
		}
		return true
	})
	if rawErr != nil {
		err = rawCause(rawErr)
	}
	return n, c.ioError("write", writeHalf, err)
}

// withDescriptors calls f with the descriptors of controls, behind those in fds,
// and keeps them open meanwhile.
func withDescriptors(controls []syscall.RawConn, fds []int, f func(fds []int) error) (err error) {
	if len(controls) == 0 {
		return f(fds)
	}
	controlErr := controls[0].Control(func(fd uintptr) {
		err = withDescriptors(controls[1:], append(fds, int(fd)), f)
	})
	if controlErr != nil {
		return fmt.Errorf("file %d: %w", len(fds), os.ErrClosed)
	}
	return err
}

// ReadFiles reads up to len(b) bytes as Read does, and takes the descriptors
// that came with them, at most max; files is nil if none came. They are
// close-on-exec, and the caller's to close. If more came than max, which may be
// 0 but not negative, or not all of them could be taken for want of descriptors,
// that is an error, and none is left open here; the n bytes have been read all
// the same.
func (c *Conn) ReadFiles(b []byte, max int) (n int, files []*os.File, err error) {
	switch {
	case c.isClosed(readHalf):
		return 0, nil, c.opError("read", net.ErrClosed)
	case max < 0:
		return 0, nil, c.opError("read", fmt.Errorf("max %d: it must not be negative", max))
	case len(b) == 0:
		return 0, nil, nil
	}
	raw, err := c.raw(readHalf)
	if err != nil {
		return 0, nil, c.ioError("read", readHalf, err)
	}
	var fds []int
	rawErr := raw.Read(func(fd uintptr) bool {
		n, fds, err = receiveRights(int(fd), b, max)
		return err != errWouldBlock
	})
	if rawErr != nil {
		err = rawCause(rawErr)
	}
	if n > 0 && c.isClosed(readHalf) {
		n, err = 0, net.ErrClosed // as in Read
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && len(fds) > max {
		err = fmt.Errorf("more descriptors came than the %d that were asked for", max)
	}
	if err != nil {
		closeDescriptors(fds)
		return n, nil, c.ioError("read", readHalf, err)
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received descriptor"))
	}
	return n, files, nil
}
