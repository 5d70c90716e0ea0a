package zerocopy

import (
	"cmp"
	"errors"
	"io"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// Available reports whether the package copies anything on this system.
const Available = true

// maxStep is the maximum number of bytes that one system call moves, and the size of a
// pipe. Package net uses the same. Between two calls other goroutines may use the
// descriptors, and a close or a deadline takes effect.
const maxStep = 1 << 20

// SendFile copies up to limit bytes of a regular file, starting at its offset, to dst. It
// returns the number of bytes copied. The offset moves by as many, and is never ahead: the
// kernel moves it as it sends. The error is [ErrRefused] or an error of dst.
func SendFile(dst Socket, src syscall.RawConn, limit int64) (n int64, err error) {
	for n < limit {
		if !dst.TryLock() {
			// A file at its end does not wait for the write of another goroutine.
			if peek(src) == io.EOF {
				return n, nil
			}
			dst.Lock()
		}
		sent, err := sendSome(dst, src, int(min(limit-n, maxStep)))
		dst.Unlock()
		n += int64(sent)
		switch {
		case err == nil:
		case err == io.EOF || peek(src) == io.EOF:
			return n, nil // all of the file is sent, so the copy succeeds
		case err != sys.ErrWouldBlock:
			return n, err
		case peek(src) != nil:
			return n, ErrRefused // the file is what would block
		}
	}
	return n, nil
}

// peek returns EOF if a file has no byte at its offset.
func peek(file syscall.RawConn) (err error) {
	_ = file.Read(func(fd uintptr) bool { // fails if it is closed, as the next call will
		_, err = sys.Peek(int(fd), make([]byte, 1))
		return true
	})
	return err
}

// sendSome sends up to size bytes of src. If dst is full it sends none, and waits until there
// is room. At the end of src it returns EOF, and ErrWouldBlock if dst is not full, so src may
// be what would block.
//
// It holds the lock of the file, which keeps other readers from its offset, for the system
// calls only. It waits for that lock outside of WriteLocked, so that a reader which holds the
// lock for long does not delay the close of dst.
func sendSome(dst Socket, src syscall.RawConn, size int) (sent int, err error) {
	var dstErr error
	err = ErrRefused // if src is closed
	_ = src.Read(func(in uintptr) bool {
		dstErr = dst.WriteLocked(func(out uintptr) bool {
			sent, err = send(int(out), int(in), size)
			return true
		})
		return true
	})
	switch {
	case dstErr != nil:
		return 0, dstErr
	case err == sys.ErrWouldBlock:
		dstErr = dst.WriteLocked(func(out uintptr) bool {
			if err == nil || sys.Writable(int(out)) {
				return true
			}
			err = nil
			return false
		})
		return 0, cmp.Or(dstErr, err)
	case errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET):
		return 0, err // a Read, to continue the copy, would move the offset
	case err != nil && err != io.EOF:
		return 0, ErrRefused
	}
	return sent, err
}

// send is sendfile(2), which sends nothing at the size that the file reports. Some file
// systems report fewer bytes than a file has. If there are more, it tries again, because the
// file may just have grown, and then returns ErrRefused.
func send(out, in, size int) (sent int, err error) {
	for range 2 {
		if sent, err = sys.Sendfile(out, in, size); sent > 0 || err != nil {
			return sent, err
		}
		if _, err = sys.Peek(in, make([]byte, 1)); err != nil {
			return 0, err
		}
	}
	return 0, ErrRefused
}
