package zerocopy

import (
	"errors"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// A pipe holds bytes on their way from one socket to another. The kernel moves
// pages into it and out of it, without a copy.
type pipe struct {
	r, w    int
	data    int // the number of bytes in the pipe
	cleanup runtime.Cleanup
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
	p.cleanup = runtime.AddCleanup(p, closePipe, fds)
	return p
}

func closePipe(fds [2]int) {
	unix.Close(fds[0])
	unix.Close(fds[1])
}

// release ends the use of the pipe. It closes a pipe that is not empty, so that no
// other copy gets the bytes.
func (p *pipe) release() {
	if p.data == 0 {
		pipes.Put(p)
		return
	}
	p.cleanup.Stop()
	closePipe([2]int{p.r, p.w})
}

// drain moves the bytes of the pipe to dst, and returns how many it has moved. If its
// error is not nil, the rest remains in the pipe. The error is ErrRefused if dst is closed,
// past its deadline or broken, or the kernel refuses the splice: Write reports it, too.
// It is another one if a socket may report it only once, as it does ECONNRESET.
func (p *pipe) drain(dst syscall.RawConn) (n int, err error) {
	size := p.data
	dstErr := dst.Write(func(out uintptr) bool {
		for p.data > 0 {
			var m int
			m, err = splice(int(out), p.r, p.data)
			p.data -= m
			if err != nil || m == 0 {
				return err != unix.EAGAIN
			}
		}
		return true
	})
	if p.data > 0 && (dstErr != nil || err == nil || errors.Is(err, unix.EPIPE)) {
		err = ErrRefused
	}
	return size - p.data, err
}

// takeRest returns the bytes in the pipe and releases it.
func (p *pipe) takeRest() []byte {
	rest := make([]byte, p.data)
	n := 0
	for n < len(rest) {
		m, err := sys.Read(p.r, rest[n:])
		if err != nil {
			break // cannot happen: the bytes are there
		}
		n += m
		p.data -= m
	}
	p.release()
	return rest[:n]
}
