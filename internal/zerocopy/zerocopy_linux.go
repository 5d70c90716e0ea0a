package zerocopy

import (
	"errors"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// maxStep is the maximum number of bytes that one system call moves, and the size of a
// pipe. Package net uses the same. Between two calls other goroutines may use the
// descriptors, and a close or a deadline takes effect.
const maxStep = 1 << 20

// SendFile copies up to limit bytes of a regular file, starting at its offset, to dst. It
// returns the number of bytes copied. The kernel moves the offset as it sends. The error is
// [ErrRefused] or an error of dst. SendFile locks dst only while the file has bytes to send.
func SendFile(dst Socket, src syscall.RawConn, limit int64) (n int64, err error) {
	for n < limit && err == nil && !atEnd(src) {
		if err = dst.Lock(); err == nil {
			var sent int
			sent, err = sendSome(dst, src, limit-n)
			n += int64(sent)
			dst.Unlock()
		}
	}
	return n, err
}

// atEnd reports whether a file has no byte at its offset.
func atEnd(file syscall.RawConn) (end bool) {
	_ = file.Read(func(fd uintptr) bool { // fails if the file is closed, as in sendSome
		end = sys.AtEnd(int(fd))
		return true
	})
	return end
}

// sendSome sends some of the file, at most limit bytes. If dst is full, it waits until there
// is room.
//
// It holds the lock of the file, which keeps other readers from its offset, for the system
// calls only. It waits for that lock outside of WriteLocked, so that a reader which holds the
// lock for long does not delay the close of dst.
func sendSome(dst Socket, src syscall.RawConn, limit int64) (sent int, err error) {
	err = ErrRefused // if src is closed
	_ = src.Read(func(in uintptr) bool {
		writeErr := dst.WriteLocked(func(out uintptr) bool {
			sent, err = send(int(out), int(in), int(min(limit, maxStep)))
			return true
		})
		if writeErr != nil {
			err = writeErr
		}
		return true
	})
	if err == sys.ErrWouldBlock {
		err = dst.WriteLocked(func(out uintptr) bool { return sys.Writable(int(out)) })
	}
	return sent, err
}

// send is sendfile(2). It returns ErrWouldBlock if the socket is full, and ErrRefused if Read
// and Write have to go on. An error of the socket is returned here: a Read, to continue the
// copy, would move the offset.
//
// The kernel sends nothing at the size that the file reports, and some file systems report
// fewer bytes than a file has. send tries again, because the file may just have grown, or the
// socket may just have got room. If not, the file would block.
func send(out, in, size int) (sent int, err error) {
	for range 3 {
		sent, err = sys.Sendfile(out, in, size)
		switch {
		case sent > 0:
			return sent, nil
		case err == sys.ErrWouldBlock && !sys.Writable(out),
			errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			return 0, err
		case err != nil && err != sys.ErrWouldBlock:
			return 0, ErrRefused
		}
	}
	return 0, ErrRefused
}
