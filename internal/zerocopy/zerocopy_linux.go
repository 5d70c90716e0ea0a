package zerocopy

import (
	"cmp"
	"errors"
	"io"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// maxStep is the size of a pipe, and the maximum number of bytes that are moved before other
// goroutines may use the descriptors, and a close or a deadline takes effect. Package net
// uses the same.
const maxStep = 1 << 20

// probeSize is how many bytes a send tries after one that has sent a part: as a rule, dst is
// full, and the kernel reads that much of the file only to say so.
const probeSize = 4 << 10

// SendFile copies up to limit bytes of a regular file, starting at its offset, to dst. It
// returns the number of bytes copied. The kernel moves the offset as it sends. The error is
// [ErrRefused] or an error of dst. SendFile does not wait for writes of others to dst if the
// file has no more bytes to send.
func SendFile(dst Socket, src syscall.RawConn, limit int64) (n int64, err error) {
	for n < limit && err == nil {
		err = ErrRefused                     // if src is closed
		_ = src.Read(func(in uintptr) bool { // waits for the lock of the file without that of dst
			err = dst.Lock(false)
			if err == sys.ErrWouldBlock && sys.AtEnd(int(in)) {
				err = io.EOF
			}
			return true
		})
		if err == sys.ErrWouldBlock {
			err = dst.Lock(true)
		}
		if err == nil {
			var sent int
			sent, err = sendSome(dst, src, int(min(limit-n, maxStep)))
			n += int64(sent)
			dst.Unlock()
		}
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// sendSome sends size bytes of the file, or fewer if it has to wait for dst: another goroutine
// may hold the lock of the file by then, and other writes to dst go first. At the end of the
// file the error is io.EOF.
func sendSome(dst Socket, src syscall.RawConn, size int) (sent int, err error) {
	for hadRoom := false; ; hadRoom = true {
		n, err := sendOnce(dst, src, size-sent)
		sent += n
		if err != sys.ErrWouldBlock {
			return sent, err
		}
		calls := 0
		err = dst.WriteLocked(func(out uintptr) bool {
			calls++
			return calls > 1 || sys.Writable(int(out)) // the poller does not report it twice
		})
		switch {
		case err != nil || calls > 1:
			return sent, err
		case hadRoom && n == 0:
			return sent, ErrRefused // it is the file that blocks
		}
	}
}

// sendOnce calls send with the lock of the file, which keeps other readers from its offset.
// It waits for that lock outside of WriteLocked, so that a reader which holds the lock for
// long does not delay the close of dst.
func sendOnce(dst Socket, src syscall.RawConn, size int) (n int, err error) {
	_ = src.Read(func(in uintptr) bool { // if src is closed, the Read of SendFile fails next
		writeErr := dst.WriteLocked(func(out uintptr) bool {
			n, err = send(int(out), int(in), size)
			return true
		})
		err = cmp.Or(writeErr, err)
		return true
	})
	return n, err
}

// send calls sendfile(2) until it has sent size bytes, the socket is full, with the error
// ErrWouldBlock, or the file ends, with io.EOF. The error is ErrRefused if Read and Write have
// to go on. An error of the socket is returned here: a Read, to continue the copy, would move
// the offset.
//
// The kernel sends nothing at the size that the file reports, and some file systems report
// fewer bytes than a file has. send tries again, because the file may just have grown.
func send(out, in, size int) (sent int, err error) {
	for ask, nothing := size, 0; nothing < 2; {
		n, err := sys.Sendfile(out, in, ask)
		sent += n
		switch {
		case sent == size, err == sys.ErrWouldBlock,
			errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			return sent, err
		case err != nil:
			return sent, ErrRefused
		case n == ask:
			ask, nothing = size-sent, 0
		case n > 0:
			ask, nothing = min(probeSize, size-sent), 0
		case sys.AtEnd(in):
			return sent, io.EOF
		default:
			nothing++
		}
	}
	return sent, ErrRefused
}
