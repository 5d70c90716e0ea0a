package zerocopy

import (
	"errors"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// A Pipe holds bytes on their way from one socket to another. The kernel moves
// pages into it and out of it, without a copy.
type Pipe struct {
	r, w int
	data int // the number of bytes in the pipe
}

// pipes holds the unused pipes, of type *Pipe, all of them empty. The garbage
// collector removes pipes from it, and their cleanup closes them.
var pipes sync.Pool

// newPipe returns an empty pipe, or nil if the process is out of descriptors.
func newPipe() *Pipe {
	if p, ok := pipes.Get().(*Pipe); ok {
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	// The kernel may refuse the size. A smaller pipe takes more steps.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, maxStep)
	p := &Pipe{r: fds[0], w: fds[1]}
	runtime.AddCleanup(p, sys.CloseAll, fds[:])
	return p
}

// Fill returns a pipe with n bytes, at most limit, that have arrived at a stream socket. It
// returns nil if it has moved none, for any reason that a Read finds, too. Its error is one
// that the socket reports only once.
func Fill(in int, limit int64) (p *Pipe, n int, err error) {
	if p = newPipe(); p == nil {
		return nil, 0, nil
	}
	p.data, err = sys.Splice(p.w, in, int(min(limit, maxStep)))
	if p.data > 0 {
		return p, p.data, nil
	}
	p.release()
	if err == sys.ErrWouldBlock || errors.Is(err, errors.ErrUnsupported) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		err = nil
	}
	return nil, 0, err
}

// Drain moves the bytes of the pipe to dst, a stream socket, and ends the use of the pipe. It
// returns how many it has moved, and the rest. If there is a rest, a write to dst succeeds or
// reports the error.
func (p *Pipe) Drain(dst syscall.RawConn) (n int, rest []byte) {
	filled := p.data
	_ = dst.Write(func(out uintptr) bool {
		for p.data > 0 {
			moved, err := sys.Splice(int(out), p.r, p.data)
			p.data -= moved
			if err != nil || moved == 0 {
				return err != sys.ErrWouldBlock
			}
		}
		return true
	})
	n = filled - p.data
	return n, p.release()
}

// release ends the use of the pipe, and returns the bytes that are left in it, so that no
// other copy gets them.
func (p *Pipe) release() []byte {
	rest := make([]byte, p.data)
	n, _ := sys.Read(p.r, rest) // of all: they are there
	if p.data -= n; p.data == 0 {
		pipes.Put(p)
	}
	return rest[:n]
}
