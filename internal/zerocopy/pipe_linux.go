package zerocopy

import (
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// A pipe holds bytes on their way from one socket to another. The kernel moves
// pages into it and out of it, without a copy.
type pipe struct {
	r, w int
	data int // the number of bytes in the pipe
}

// pipes holds the unused pipes, of type *pipe, all of them empty. The garbage
// collector removes pipes from it, and their cleanup closes them.
var pipes sync.Pool

// newPipe returns an empty pipe, or nil if the process is out of descriptors.
func newPipe() *pipe {
	if p, ok := pipes.Get().(*pipe); ok {
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	// The kernel may refuse the size. A smaller pipe takes more steps.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, maxStep)
	p := &pipe{r: fds[0], w: fds[1]}
	runtime.AddCleanup(p, sys.CloseAll, fds[:])
	return p
}

// release ends the use of the pipe, and returns the bytes that are left in it, so that no
// other copy gets them.
func (p *pipe) release() []byte {
	rest := make([]byte, p.data)
	for p.data > 0 {
		n, err := sys.Read(p.r, rest[len(rest)-p.data:])
		if err != nil {
			return nil // cannot happen: the bytes are there
		}
		p.data -= n
	}
	pipes.Put(p)
	return rest
}

// drain moves the bytes of the pipe to dst. If its error is not nil, the rest remains in
// the pipe. The error is ErrRefused if dst is closed or past its deadline, or the kernel
// refuses the splice.
func (p *pipe) drain(dst syscall.RawConn) (err error) {
	dstErr := dst.Write(func(out uintptr) bool {
		for p.data > 0 {
			var n int
			n, err = splice(int(out), p.r, p.data)
			p.data -= n
			if err != nil || n == 0 {
				return err != sys.ErrWouldBlock
			}
		}
		return true
	})
	if dstErr != nil || err == nil && p.data > 0 {
		return ErrRefused
	}
	return err
}
