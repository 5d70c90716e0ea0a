package unixsock

import (
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"reflect"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/sys"
)

const (
	// fileChunk is how much of a file goes out before the Conn is given to
	// others who write, and deadlines are looked at.
	fileChunk = 4 << 20

	// bulk is how large a chunk from a Conn must be for the next to be tried for
	// twice.
	bulk = 16 << 10

	// pipeSize is what the pipe between two sockets is asked to hold, and how much
	// goes through it at once: enough that the steps are few, and little enough
	// that its pages are still in the cache.
	pipeSize = 256 << 10

	// connChunk is that of a Conn, which holds less than one of TCP.
	connChunk = 128 << 10
)

// moved, if set, is told of each move of bytes by the kernel. It is for tests.
var moved func(n int)

// kernelCopy copies r to w, one of which is a Conn or its port, by sendfile or
// splice. It returns how many bytes it wrote, and whether the copy is over, by
// the end of r or by err. If it is not, r and w stand exactly behind these bytes
// and the copy must go on by other means.
func kernelCopy(w io.Writer, r io.Reader) (n int64, over bool, err error) {
	t := transfer{w: w, r: r, left: math.MaxInt64}
	limited, ok := r.(*io.LimitedReader)
	if ok {
		t.r, t.left = limited.R, limited.N
		if t.left <= 0 {
			return 0, true, nil
		}
		defer func() { limited.N = t.left }()
	}
	var from, to kind
	if t.in, from = descriptor(t.r); from == unfit {
		return 0, false, nil
	}
	if t.out, to = descriptor(t.w); to == unfit {
		return 0, false, nil
	}
	if from == file {
		over, err = t.sendfile()
	} else {
		over, err = t.splice()
	}
	return t.written, over, err
}

// kind says what the kernel can do with a descriptor.
type kind int

const (
	unfit  kind = iota // nothing
	file               // sendfile from, splice to: a regular file
	stream             // splice from and to: a stream socket or a pipe, non-blocking
)

// descriptor returns access to the descriptor that v, an io.Reader or io.Writer,
// reads or writes, and its kind.
func descriptor(v any) (syscall.RawConn, kind) {
	if c := connOf(v); c != nil {
		file, err := c.netfd().File()
		if err != nil {
			return nil, unfit // closed, or not to be waited for
		}
		raw, err := file.SyscallConn()
		if err != nil {
			return nil, unfit
		}
		return raw, stream
	}
	s, ok := v.(syscall.Conn)
	if !ok || inheritsSyscallConn(v) {
		return nil, unfit
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, unfit
	}
	if s, ok := v.(net.Conn); ok {
		switch addr := s.LocalAddr().(type) {
		case *net.TCPAddr:
			return raw, stream
		case *net.UnixAddr:
			if addr != nil && addr.Net != "unix" {
				return nil, unfit // packets, which splice would run together
			}
			return raw, stream
		}
	}
	k := unfit
	if raw.Control(func(fd uintptr) { k = kindOf(int(fd)) }) != nil {
		return nil, unfit
	}
	return raw, k
}

// connOf returns the Conn that v is or is a part of, or nil.
func connOf(v any) *Conn {
	switch v := v.(type) {
	case *Conn:
		return v
	case *tcpConn:
		return v.Conn
	case *InputPort:
		return (*Conn)(v)
	case *OutputPort:
		return (*Conn)(v)
	}
	return nil
}

// inheritsSyscallConn reports whether v may owe its SyscallConn to what it
// embeds. Its Read or Write then may well be its own, and hand out what was read
// ahead, or count, which the kernel would pass by. What os and net embed, they
// embed only to hide methods from io.Copy.
func inheritsSyscallConn(v any) bool {
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if pkg := t.PkgPath(); t.Kind() != reflect.Struct || pkg == "os" || pkg == "net" {
		return false
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && (f.Type.Implements(syscallConnType) || reflect.PointerTo(f.Type).Implements(syscallConnType)) {
			return true
		}
	}
	return false
}

var syscallConnType = reflect.TypeFor[syscall.Conn]()

func kindOf(fd int) kind {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return unfit
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return file
	case unix.S_IFSOCK:
		if t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || t != unix.SOCK_STREAM {
			return unfit
		}
	case unix.S_IFIFO:
	default:
		return unfit
	}
	// A blocking one cannot be waited for in the poller.
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		return unfit
	}
	return stream
}

// A transfer is a copy by the kernel under way.
type transfer struct {
	w       io.Writer
	r       io.Reader
	out, in syscall.RawConn // of w and r
	left    int64           // how much more to take from r
	written int64           // to w

	// What the callbacks of RawConn calls work on.
	file    int // the descriptor of r
	pipe    *pipe
	chunk   int64 // how much to take at once
	n       int   // how much of a chunk is sent
	last    int   // the size of the chunk before, from a Conn; 0 once made use of
	failed  error // of the last system call
	waitErr error // of the last call for w
}

// sendfile copies a file to a Conn.
func (t *transfer) sendfile() (over bool, err error) {
	c := connOf(t.w)
	give := t.giveFile
	// The file is held as in its Read, so that no other Read of it gets in
	// between, but not while w has no room: that may be long, and who waits for a
	// file hears of no deadline and of no Close. It is the first to be held: it
	// may be another's for long, who would keep w from being closed.
	take := func(in uintptr) bool {
		t.file = int(in)
		t.waitErr = t.out.Write(give)
		return true
	}
	woken := false
	wait := func(out uintptr) bool {
		over := woken || sys.Writable(int(out)) // since it was full, which nothing tells here
		woken = true
		return over
	}
	for t.left > 0 {
		t.n, t.failed, t.waitErr = 0, nil, nil
		err := t.in.Read(take)
		t.left -= int64(t.n)
		t.count(t.n)
		if err == nil && t.failed == unix.EAGAIN {
			woken, t.failed = false, nil
			t.waitErr = t.out.Write(wait)
		}
		switch {
		case err != nil:
			return false, nil // the file is closed
		case t.waitErr != nil:
			return true, c.ioError("write", writeHalf, netfd.MapRawErr(t.waitErr))
		case t.failed == io.EOF:
			return true, nil
		case t.failed == unix.EIO || t.failed == unix.EBADF || t.failed == unix.ESTALE || t.failed == unix.EOVERFLOW || refused(t.failed):
			return false, nil // its Read knows better, or fails too
		case t.failed != nil:
			return true, c.ioError("write", writeHalf, os.NewSyscallError("sendfile", t.failed))
		}
	}
	return true, nil
}

// giveFile sends a chunk of t.file, as far as out has room: it fails with EAGAIN
// where there is none, and with io.EOF at the end of the file.
func (t *transfer) giveFile(out uintptr) bool {
	chunk := int(min(t.left, fileChunk))
	for t.n < chunk {
		n, err := unix.Sendfile(int(out), t.file, nil, chunk-t.n)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n == 0:
			err = io.EOF
		}
		if t.failed = err; err != nil {
			break
		}
		t.n += n
	}
	return true
}

// splice copies a stream. The kernel has it pass through a pipe, but without a
// copy of the bytes.
func (t *transfer) splice() (over bool, err error) {
	c := connOf(t.r) // may be nil
	fill, drain := t.fill, t.drain
	t.chunk = pipeSize
	if c != nil {
		t.chunk = connChunk
	}
	for t.left > 0 {
		if t.in.Read(fill) != nil || t.pipe == nil {
			return false, nil // closed or past a deadline, or want of descriptors
		}
		if t.failed != nil || t.pipe.data == 0 {
			t.pipe.release()
			switch {
			case t.failed == nil:
				return c == nil || !c.isClosed(readHalf), nil
			case refused(t.failed):
				return false, nil
			}
			return true, readError(t.r, t.failed)
		}
		if c != nil && c.isClosed(readHalf) {
			// As in Read. The pipe goes, with what is in it.
			t.pipe.release()
			return true, c.opError("read", net.ErrClosed)
		}
		size := t.pipe.data
		if c != nil {
			t.last = size // of TCP, which holds more, nothing is gained
		}
		t.left -= int64(size)
		_ = t.out.Write(drain) // rescue tells what ended it
		t.count(size - t.pipe.data)
		if t.pipe.data > 0 {
			return t.rescue()
		}
		t.pipe.release()
	}
	return true, nil
}

// fill moves bytes into a pipe. It takes the pipe once there is something to put
// into it: a thousand copies that wait need none.
func (t *transfer) fill(in uintptr) bool {
	if t.pipe = newPipe(); t.pipe == nil {
		return true
	}
	for {
		t.pipe.data, t.failed = splice(t.pipe.w, int(in), int(min(t.left, t.chunk)))
		if t.failed != unix.EAGAIN { // which is not for want of room: the pipe is empty
			return true
		}
		if t.last < bulk {
			break
		}
		// Whoever sends in bulk may be of this program, too, and want for a
		// processor. To let him go on costs less than to wait for him.
		t.last = 0
		runtime.Gosched()
	}
	t.pipe.release()
	t.pipe = nil
	return false
}

// drain moves bytes out of the pipe.
func (t *transfer) drain(out uintptr) bool {
	for t.pipe.data > 0 {
		n, err := splice(int(out), t.pipe.r, t.pipe.data)
		if err != nil || n == 0 {
			return err != unix.EAGAIN
		}
		t.pipe.data -= n
	}
	return true
}

// rescue writes what the kernel could not get out of the pipe. If t.w is closed,
// past its deadline or broken, its Write says so.
func (t *transfer) rescue() (over bool, err error) {
	defer t.pipe.release()
	n, err := plainCopy(t.w, t.pipe)
	t.written += n
	return err != nil, err
}

// count counts n bytes that the kernel has moved to t.w.
func (t *transfer) count(n int) {
	t.written += int64(n)
	if n > 0 && moved != nil {
		moved(n)
	}
}

func splice(out, in, limit int) (int, error) {
	for {
		n, err := unix.Splice(in, nil, out, nil, limit, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(max(n, 0)), err
		}
	}
}

// refused reports whether err says that the kernel cannot do such a thing, and
// has done nothing.
func refused(err error) bool {
	return err == unix.EINVAL || err == unix.ENOSYS || err == unix.EPERM || err == unix.EOPNOTSUPP
}

// readError makes of err, with which a splice from r failed, the error of r.Read.
func readError(r io.Reader, err error) error {
	if c := connOf(r); c != nil {
		return c.ioError("read", readHalf, os.NewSyscallError("splice", err))
	}
	switch r := r.(type) {
	case net.Conn:
		e := &net.OpError{Op: "read", Source: r.LocalAddr(), Addr: r.RemoteAddr(), Err: os.NewSyscallError("splice", err)}
		if e.Source != nil {
			e.Net = e.Source.Network()
		}
		return e
	case interface{ Name() string }:
		return &fs.PathError{Op: "read", Path: r.Name(), Err: err}
	}
	return os.NewSyscallError("splice", err)
}

// A pipe is where bytes wait between two sockets.
type pipe struct {
	r, w    int
	data    int // how many bytes are in it
	cleanup runtime.Cleanup
}

// pipes holds the pipes that are not in use, *pipe, all of them empty.
var pipes sync.Pool

// newPipe returns an empty pipe, or nil if there is none to be had.
func newPipe() *pipe {
	if p, ok := pipes.Get().(*pipe); ok {
		return p
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	for i, fd := range fds {
		fds[i] = fd
	}
	if min(fds[0], fds[1]) <= 2 {
		closePipe(fds) // what the process prints would come out of it
		return nil
	}
	// A smaller one does as well, in more steps.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	p := &pipe{r: fds[0], w: fds[1]}
	p.cleanup = runtime.AddCleanup(p, closePipe, fds)
	return p
}

func closePipe(fds [2]int) {
	unix.Close(fds[0])
	unix.Close(fds[1])
}

// release ends the use of p. One that is not empty is not used again.
func (p *pipe) release() {
	if p.data == 0 {
		pipes.Put(p)
		return
	}
	p.cleanup.Stop()
	closePipe([2]int{p.r, p.w})
}

// Read takes bytes out of the pipe, for a copy by way of memory.
func (p *pipe) Read(b []byte) (int, error) {
	if p.data == 0 {
		return 0, io.EOF
	}
	for {
		n, err := unix.Read(p.r, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("read", err)
		}
		p.data -= n
		return n, nil
	}
}
