package unixsock

import (
	"cmp"
	"io"
	"math"
	"net"
	"os"
	"reflect"
	"sync"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/sys"
	"github.com/go-unixsock/unixsock/internal/zerocopy"
)

// ReadFrom reads from r until EOF and writes the bytes to the Conn. It returns the number of
// bytes written. [io.Copy] calls it. Close and deadlines apply as they do to Write. Errors
// are those of Write, and the errors of r unchanged. Concurrent Writes may be interleaved
// with the bytes of r.
//
// On Linux the kernel moves the bytes if r is an *[os.File] of a regular file, a
// *[net.TCPConn], a *[net.UnixConn] of the network "unix", a *Conn, an *[InputPort], a
// connection of a [TCPUnit], or an *[io.LimitedReader] around one of these. Any other type
// is read by its own Read method, even if it embeds one of these. (io.Copy prefers a type's
// WriteTo and ReadFrom to its Read and Write. A type that embeds a *Conn inherits both, so
// it should embed a [net.Conn] if its own Read and Write count.)
//
// A copy of a file waits for a read of the same *os.File that is in progress. Writes to the
// Conn may wait behind the copy; Close does not. Another process that reads the same open file
// at the same time may get bytes that are sent, too. The kernel may send a file's pages without
// copying them: bytes that are overwritten or truncated before the peer has read them may
// arrive changed, or as zeros.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if c.isClosed(writeHalf) {
		return 0, c.opError("write", net.ErrClosed)
	}
	return copyAll(c, r)
}

// WriteTo reads from the Conn until the end of the peer's output and writes the
// bytes to w. It returns the number of bytes written. [io.Copy] calls it. Close and
// deadlines apply as they do to Read. Errors are those of Read, and the errors of w
// unchanged.
//
// On Linux the kernel moves the bytes if w is a *Conn, an *[OutputPort] or a connection of a
// [TCPUnit]. For every other type WriteTo calls its Write method, with up to 128 KiB at a
// time. A copy that waits for the peer holds no buffer.
func (c *Conn) WriteTo(w io.Writer) (int64, error) { return copyAll(w, c) }

// WriteTo is [Conn.WriteTo].
func (p *InputPort) WriteTo(w io.Writer) (int64, error) { return (*Conn)(p).WriteTo(w) }

// ReadFrom is [Conn.ReadFrom].
func (p *OutputPort) ReadFrom(r io.Reader) (int64, error) { return (*Conn)(p).ReadFrom(r) }

// copyAll copies r to w, one of which is a Conn.
func copyAll(w io.Writer, r io.Reader) (n int64, err error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	from := unwrap(limited.R)
	file, _ := from.(*os.File)
	src := streamOf(from)
	var dst syscall.RawConn // not nil if the kernel may move the bytes
	if to, ok := unwrap(w).(*Conn); ok && (file != nil || src != nil) {
		raw, err := to.raw(writeHalf)
		if err != nil {
			return 0, to.ioError("write", writeHalf, err)
		}
		dst = raw
		if file != nil {
			if n, err = sendFile(raw, file, limited); err != zerocopy.ErrRefused {
				return n, to.ioError("write", writeHalf, err)
			}
		}
	}
	if src != nil {
		src.limited = limited
		return src.copyTo(w, dst)
	}
	// The structs hide the other methods, which would lead back to ReadFrom and WriteTo.
	rest, err := io.Copy(struct{ io.Writer }{w}, struct{ io.Reader }{r})
	return n + rest, err
}

// unwrap returns the Conn of a port or of a TCPUnit's connection. It returns the *os.File or
// *net.TCPConn in the values that os and net pass to ReadFrom and WriteTo: structs of
// unexported types (os.fileWithoutWriteTo and the like) that embed it to hide one of its
// methods. No type outside of os and net has their package path. It returns any other value
// unchanged.
func unwrap(v any) any {
	switch v := v.(type) {
	case *tcpConn:
		return v.Conn
	case *InputPort:
		return (*Conn)(v)
	case *OutputPort:
		return (*Conn)(v)
	}
	value := reflect.ValueOf(v)
	if value.Kind() == reflect.Struct {
		name := map[string]string{"os": "File", "net": "TCPConn"}[value.Type().PkgPath()]
		if field := value.FieldByName(name); field.IsValid() {
			return field.Interface()
		}
	}
	return v
}

// sendFile copies f in the kernel. After ErrRefused, Read and Write have to continue the
// copy.
func sendFile(dst netfd.RawConn, f *os.File, limited *io.LimitedReader) (int64, error) {
	// A Read of a pipe or a terminal may hold the file's lock for ever. A file in /proc, whose
	// size is 0, is generated again for each call, so several calls may mix two versions.
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return 0, zerocopy.ErrRefused
	}
	src, _ := f.SyscallConn() // fails only if the file is nil
	n, err := zerocopy.SendFile(dst, src, limited.N)
	limited.N -= n
	return n, err
}

// A stream is the input of a stream socket, as a copy reads it.
type stream struct {
	syscall.RawConn
	conn    net.Conn          // a *Conn, *net.TCPConn or *net.UnixConn
	limited *io.LimitedReader // its N is how many bytes the copy may still take
	splice  bool              // whether the next take tries to move them into a pipe first

	// What the last take took: a pipe or a buffer, with n bytes of it in use, or an error.
	pipe   *zerocopy.Pipe
	buffer *buffer
	n      int
	err    error
}

// spliceAfter is how many bytes a copy to a Conn has to get from a read for the kernel to
// move the next ones. Small messages are faster without a pipe.
const spliceAfter = 8 << 10

type buffer [128 << 10]byte

// buffers holds unused buffers, of type *buffer.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// streamOf returns v as a stream if it is of one of the types that ReadFrom lists, or else
// nil: other types may do more in Read.
func streamOf(v any) *stream {
	var raw syscall.RawConn
	var err error
	switch v := v.(type) {
	case *Conn:
		raw, err = v.raw(readHalf)
	case *net.TCPConn:
		raw, err = v.SyscallConn()
	case *net.UnixConn:
		// The messages of the other networks must not be joined.
		if addr, ok := v.LocalAddr().(*net.UnixAddr); ok && addr != nil && addr.Net == "unix" {
			raw, err = v.SyscallConn()
		}
	}
	if raw == nil || err != nil {
		return nil // if it is closed, its Read says so
	}
	return &stream{RawConn: raw, conn: v.(net.Conn)}
}

// copyTo copies the stream to w. If w is a Conn, dst is its RawConn, or else nil.
func (s *stream) copyTo(w io.Writer, dst syscall.RawConn) (n int64, err error) {
	take := s.take
	for s.limited.N > 0 {
		if err := s.wait(take); err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
		s.limited.N -= int64(s.n)
		s.splice = dst != nil && s.n >= spliceAfter
		written, err := s.give(w, dst)
		n += int64(written)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// wait calls take, as it is RawConn's, until it has taken something or fails, and returns the
// error as the Read of the stream's connection would. If the input of a Conn is closed then,
// wait discards what was taken, because CloseRead may have discarded bytes before it. The
// garbage collector closes the pipe.
func (s *stream) wait(take func(fd uintptr) bool) error {
	err := cmp.Or(s.Read(take), s.err)
	if c, ok := s.conn.(*Conn); ok {
		if c.isClosed(readHalf) {
			err = net.ErrClosed
		}
		return c.opError("read", err)
	}
	if rawErr, ok := err.(*net.OpError); ok {
		err = rawErr.Err // Op is raw-read
	}
	if err == nil || err == io.EOF {
		return err
	}
	from, to := s.conn.LocalAddr(), s.conn.RemoteAddr()
	return &net.OpError{Op: "read", Net: from.Network(), Source: from, Addr: to, Err: err}
}

// take takes bytes from the socket if there are any. Only read(2) distinguishes the end of
// the input from TCP's urgent mark, at which splice(2) stops. A copy that waits holds no
// pipe and no buffer.
func (s *stream) take(fd uintptr) bool {
	s.pipe, s.buffer, s.err = nil, nil, nil
	if s.splice {
		s.pipe, s.n, s.err = zerocopy.Fill(int(fd), s.limited.N)
		if s.pipe != nil || s.err != nil {
			return true
		}
	}
	s.buffer = buffers.Get().(*buffer)
	s.n, s.err = sys.Read(int(fd), s.buffer[:min(int64(len(s.buffer)), s.limited.N)])
	if s.err != nil {
		buffers.Put(s.buffer)
		s.buffer = nil
	}
	return s.err != sys.ErrWouldBlock
}

// give writes what was taken to w. The bytes of a pipe go to dst, which is w. If the kernel
// cannot move them, Write writes them, or reports the error.
func (s *stream) give(w io.Writer, dst syscall.RawConn) (n int, err error) {
	var b []byte
	if s.pipe != nil {
		n, b = s.pipe.Drain(dst)
	} else {
		b = s.buffer[:s.n]
		defer buffers.Put(s.buffer)
		s.buffer = nil
	}
	if len(b) > 0 {
		var m int
		if m, err = w.Write(b); m < 0 || m > len(b) || m < len(b) && err == nil {
			m, err = max(0, min(m, len(b))), cmp.Or(err, io.ErrShortWrite)
		}
		n += m
	}
	return n, err
}
