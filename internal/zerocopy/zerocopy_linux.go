package zerocopy

import (
	"cmp"
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// Available reports whether the package copies anything on this system.
const Available = true

// maxStep is the maximum number of bytes that one step of a copy moves, and the
// size of a pipe. Package net uses the same. Between two steps, other goroutines
// may use the descriptors, and a deadline takes effect.
const maxStep = 1 << 20

func kindOf(fd int) Kind {
	var st unix.Stat_t
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || unix.Fstat(fd, &st) != nil {
		return Unsupported
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Size == 0 && flags&unix.O_ACCMODE == unix.O_RDONLY {
			return Unsupported // in /proc, where each seek generates the file again
		}
		return File
	case unix.S_IFSOCK:
		// Splice would join the messages of other types of sockets.
		if t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
			return Unsupported
		}
	case unix.S_IFIFO:
	default:
		return Unsupported
	}
	if flags&unix.O_NONBLOCK == 0 {
		return Unsupported // the poller cannot wait for a blocking descriptor
	}
	return Stream
}

// SendFile copies up to limit bytes of a [File], starting at its offset, to a
// [Stream] that is a socket. It returns the number of bytes copied. The offset
// moves by as many. Its error is [ErrRefused] or an error of dst.
func SendFile(dst, src syscall.RawConn, limit int64) (n int64, err error) {
	for n < limit {
		size := min(limit-n, maxStep)
		sent, err := sendStep(dst, src, size)
		n += sent
		if sent < size || err != nil {
			return n, err
		}
	}
	return n, nil
}

// sendStep is SendFile for size bytes. It sends fewer only at the end of src, or with an
// error. It moves the offset of src by size first, so that no other reader gets these
// bytes, and at the end back by what it has not sent. The lock of an os.File would exclude
// other readers, too, but they may hold it for long, and would then keep dst from being
// closed.
func sendStep(dst, src syscall.RawConn, size int64) (n int64, err error) {
	end, err := seek(src, size)
	if err != nil {
		return 0, ErrRefused // src is closed, or has no offset
	}
	start := end - size
	next := start
	dstErr := dst.Write(func(out uintptr) bool {
		for sent := 1; sent > 0 && next < end; {
			err = ErrRefused // src is closed
			src.Control(func(in uintptr) { sent, err = sys.Sendfile(int(out), int(in), &next, int(end-next)) })
			if err != nil {
				return err != sys.ErrWouldBlock
			}
		}
		return true
	})
	switch {
	case dstErr != nil:
		err = dstErr
	case err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET):
		err = ErrRefused // Read reports an error of the file, Write one of the socket
	}
	if next < end {
		at, _ := seek(src, 0)
		// If dst has failed, others may have read on from end. Otherwise the copy goes on.
		if at == end || err == nil || err == ErrRefused {
			_, _ = seek(src, next-end) // fails if src is closed
		}
	}
	return next - start, err
}

// seek moves the offset of a file by n bytes, and returns the new one.
func seek(file syscall.RawConn, n int64) (offset int64, err error) {
	closedErr := file.Control(func(fd uintptr) { offset, err = unix.Seek(int(fd), n, io.SeekCurrent) })
	return offset, cmp.Or(closedErr, err)
}

// Splice copies up to limit bytes from a [Stream] to a [Stream] or a [File]. One of
// them is a socket. It returns the number of bytes copied, and in rest the bytes that it
// has read from src but could not write to dst. Its error is [ErrRefused], an error of
// dst if there is a rest, or else an error of src. With ErrRefused, the caller writes the
// rest next.
//
// If src.Read fails after it has called its function, the bytes of that step are
// discarded.
func Splice(dst, src syscall.RawConn, limit int64) (n int64, rest []byte, err error) {
	for n < limit && err == nil {
		var p *pipe
		if p, err = fill(src, int(min(limit-n, maxStep))); p == nil {
			break
		}
		filled := p.data
		err = p.drain(dst)
		n += int64(filled - p.data)
		rest = p.release()
	}
	return n, rest, err
}

// fill waits for src and returns a pipe with up to size bytes of it, or nil at the end of
// src. It takes a pipe for the system call only, so a copy that waits for its source
// holds none.
func fill(src syscall.RawConn, size int) (p *pipe, err error) {
	srcErr := src.Read(func(in uintptr) bool {
		if p = newPipe(); p == nil {
			err = ErrRefused
			return true
		}
		p.data, err = splice(p.w, int(in), size)
		if p.data == 0 {
			p.release()
			p = nil
		}
		return err != sys.ErrWouldBlock
	})
	if srcErr == nil {
		return p, err
	}
	if p != nil {
		p.release()
	}
	return nil, ErrRefused // src is closed, or past its deadline
}

// splice is [sys.Splice]. Its error is ErrRefused if the kernel does not support the
// operation and has done nothing.
func splice(out, in, size int) (int, error) {
	n, err := sys.Splice(out, in, size)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		err = ErrRefused
	}
	return n, err
}
