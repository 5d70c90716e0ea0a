package unixsock

import (
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"reflect"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/netfd"
	"github.com/go-unixsock/unixsock/internal/zerocopy"
)

// ReadFrom reads from r until EOF and writes the bytes to the Conn. It returns the
// number of bytes written. [io.Copy] calls it. Close and deadlines apply as they do
// to Write. Errors are those of Write, and the errors of r unchanged.
//
// On Linux the kernel moves the bytes, without a buffer in the program, if r is an
// *[os.File], a *[net.TCPConn], a *[net.UnixConn] of the network "unix", a *Conn, an
// *[InputPort], a connection of a [TCPUnit], or an *[io.LimitedReader] around one of
// these. A file must be a regular file that reports its size, or a pipe or stream socket
// in non-blocking mode. For every other type ReadFrom calls its Read method, even if the
// type embeds a connection or has a SyscallConn method. (io.Copy itself prefers a WriteTo
// or ReadFrom to Read and Write. A type that embeds a *Conn inherits both, so it should
// embed a [net.Conn] if its own Read and Write count.)
//
// Concurrent writes by other goroutines may be interleaved with the bytes of r.
// The kernel may send a file's pages without copying them. If the file is modified
// before the peer reads, the peer may see the modification. While a file is sent, its
// offset is up to 1 MiB ahead: do not write to the same *os.File. Close waits for a read of
// the file that is in progress, which takes long only if the file system does not answer.
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
// On Linux the kernel moves the bytes if w is an *[OutputPort], or of a type that
// [Conn.ReadFrom] lists, unless it is a file opened for appending. For every other type
// WriteTo calls its Write method.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	if c.isClosed(readHalf) {
		return 0, c.opError("read", net.ErrClosed)
	}
	return copyAll(w, c)
}

// WriteTo is [Conn.WriteTo].
func (p *InputPort) WriteTo(w io.Writer) (int64, error) { return (*Conn)(p).WriteTo(w) }

// ReadFrom is [Conn.ReadFrom].
func (p *OutputPort) ReadFrom(r io.Reader) (int64, error) { return (*Conn)(p).ReadFrom(r) }

// copyAll copies r to w: in the kernel as far as possible, then by Read and Write.
func copyAll(w io.Writer, r io.Reader) (int64, error) {
	n, err := kernelCopy(w, r)
	if err != zerocopy.ErrRefused {
		return n, err
	}
	// The structs hide the other methods, which would lead back to ReadFrom and WriteTo.
	rest, err := io.Copy(struct{ io.Writer }{w}, struct{ io.Reader }{r})
	return n + rest, err
}

// kernelCopy copies r to w, one of them a Conn, in the kernel. After ErrRefused, Read and
// Write have to continue the copy.
func kernelCopy(w io.Writer, r io.Reader) (n int64, err error) {
	if !zerocopy.Available {
		return 0, zerocopy.ErrRefused
	}
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: r, N: math.MaxInt64}
	}
	reader, writer := unwrap(limited.R), unwrap(w)
	src, from := descriptor(reader, readHalf)
	if from == zerocopy.Unsupported {
		return 0, zerocopy.ErrRefused
	}
	dst, to := descriptor(writer, writeHalf)
	if to == zerocopy.Unsupported {
		return 0, zerocopy.ErrRefused
	}
	if from == zerocopy.File {
		n, err = zerocopy.SendFile(dst, src, limited.N)
		limited.N -= n
		return n, copyError("write", writer, writeHalf, err)
	}
	n, rest, err := zerocopy.Splice(dst, src, limited.N)
	limited.N -= n + int64(len(rest))
	_, toFile := writer.(*os.File)
	switch {
	case len(rest) == 0:
		return n, copyError("read", reader, readHalf, err)
	case err != zerocopy.ErrRefused && !toFile:
		return n, copyError("write", writer, writeHalf, err) // a socket reports it only once
	}
	m, err := w.Write(rest)
	if err == nil {
		err = zerocopy.ErrRefused
	}
	return n + int64(m), err
}

// unwrap returns the Conn of a port or of a TCPUnit's connection. It returns the *os.File or *net.TCPConn in
// the values that os and net pass to ReadFrom and WriteTo: structs of unexported types
// (os.fileWithoutWriteTo and the like) that embed it to hide one of its methods. No type
// outside of os and net has their package path. It returns any other value unchanged.
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

// descriptor returns access to the descriptor that v, an io.Reader or io.Writer,
// reads or writes in half h, and its kind. The kind is Unsupported unless v is of one
// of the types that ReadFrom and WriteTo list: others may do more in Read and Write.
func descriptor(v any, h half) (syscall.RawConn, zerocopy.Kind) {
	switch v := v.(type) {
	case *Conn:
		if raw, err := v.raw(h); err == nil {
			return copyRawConn{raw, v}, zerocopy.Stream
		}
	case *os.File:
		if raw, err := v.SyscallConn(); err == nil {
			return raw, zerocopy.KindOf(raw)
		}
	case *net.TCPConn:
		if raw, err := v.SyscallConn(); err == nil {
			return raw, zerocopy.Stream
		}
	case *net.UnixConn:
		// Splice would join the messages of the other networks.
		addr, ok := v.LocalAddr().(*net.UnixAddr)
		if raw, err := v.SyscallConn(); err == nil && ok && addr != nil && addr.Net == "unix" {
			return raw, zerocopy.Stream
		}
	}
	return nil, zerocopy.Unsupported
}

// A copyRawConn is the RawConn of a Conn with the Read that a copy needs.
type copyRawConn struct {
	netfd.RawConn
	c *Conn
}

// Read fails if the input is closed when f returns, for the reason in Conn.Read.
func (r copyRawConn) Read(f func(fd uintptr) bool) error {
	err := r.RawConn.Read(f)
	if r.c.isClosed(readHalf) {
		return net.ErrClosed
	}
	return err
}

// copyError returns err, the error of a copy from or to v, as v.Read or v.Write would
// return it.
func copyError(op string, v any, h half, err error) error {
	if err == nil || err == zerocopy.ErrRefused {
		return err
	}
	switch v := v.(type) {
	case *Conn:
		return v.ioError(op, h, err)
	case *os.File:
		return &fs.PathError{Op: op, Path: v.Name(), Err: err}
	case net.Conn:
		return &net.OpError{Op: op, Net: v.LocalAddr().Network(), Source: v.LocalAddr(), Addr: v.RemoteAddr(), Err: err}
	}
	return err
}
