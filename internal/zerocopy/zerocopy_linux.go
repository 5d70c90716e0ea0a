package zerocopy

import (
	"cmp"
	"errors"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// maxStep is the size of a pipe, and the maximum number of bytes that are moved before other
// goroutines may use the descriptors, and a close or a deadline takes effect. Package net
// uses the same.
const maxStep = 1 << 20

// SendFile copies up to limit bytes of a regular file, starting at its offset, to dst. It
// returns the number of bytes copied. The kernel moves the offset as it sends. The error is
// [ErrRefused] or an error of dst. SendFile does not wait for writes of others to dst if the
// file has no more bytes to send.
func SendFile(dst Socket, src syscall.RawConn, limit int64) (n int64, err error) {
	for n < limit && err == nil && !atEnd(src) {
		if err = dst.Lock(); err == nil {
			var sent int
			sent, err = sendSome(dst, src, int(min(limit-n, maxStep)))
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

// sendSome sends up to size bytes of the file, fewer if it ends, or if dst was full and had to
// be waited for: another goroutine may hold the lock of the file by then, and other writes to
// dst go first.
func sendSome(dst Socket, src syscall.RawConn, size int) (sent int, err error) {
	for hadRoom := false; sent < size; {
		n, err := sendOnce(dst, src, size-sent)
		sent += n
		if err != sys.ErrWouldBlock {
			if n == 0 {
				return sent, err
			}
			hadRoom = false
			continue
		}
		room, err := waitForRoom(dst)
		if room && hadRoom {
			err = ErrRefused // it is the file that blocks
		}
		if err != nil || !room {
			return sent, err
		}
		hadRoom = true
	}
	return sent, nil
}

// sendOnce calls send with the lock of the file, which keeps other readers from its offset.
// It waits for that lock outside of WriteLocked, so that a reader which holds the lock for
// long does not delay the close of dst.
func sendOnce(dst Socket, src syscall.RawConn, size int) (n int, err error) {
	err = ErrRefused // if src is closed
	_ = src.Read(func(in uintptr) bool {
		writeErr := dst.WriteLocked(func(out uintptr) bool {
			n, err = send(int(out), int(in), size)
			return true
		})
		err = cmp.Or(writeErr, err)
		return true
	})
	return n, err
}

// waitForRoom waits until a write to dst may succeed. It reports whether dst had room at
// once.
func waitForRoom(dst Socket) (room bool, err error) {
	calls := 0
	err = dst.WriteLocked(func(out uintptr) bool {
		calls++
		return calls > 1 || sys.Writable(int(out)) // the poller does not report it twice
	})
	return calls == 1 && err == nil, err
}

// send is sendfile(2). It returns 0 at the end of the file, ErrWouldBlock if the socket is
// full, and ErrRefused if Read and Write have to go on. An error of the socket is returned
// here: a Read, to continue the copy, would move the offset.
//
// The kernel sends nothing at the size that the file reports, and some file systems report
// fewer bytes than a file has. send tries again, because the file may just have grown.
func send(out, in, size int) (sent int, err error) {
	for range 2 {
		sent, err = sys.Sendfile(out, in, size)
		switch {
		case sent > 0 || err == nil && sys.AtEnd(in),
			err == sys.ErrWouldBlock, errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
			return sent, err
		case err != nil:
			return 0, ErrRefused
		}
	}
	return 0, ErrRefused
}
