package unixsock

import (
	"io"
	"net"
	"sync"
)

var (
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
)

// ReadFrom writes to the Conn what it reads from r, until r ends, and returns
// how many bytes it wrote. [io.Copy] calls it. Close and deadlines rule it as
// they rule Write. Its errors are those of Write, and those of r as they are.
//
// On Linux the kernel moves the bytes itself, past the memory of the program, if
// r is an [os.File] that is a regular file, a pipe or a stream socket, a
// [net.TCPConn], a [net.UnixConn], a Conn or an [InputPort], or one of these in
// an [io.LimitedReader]; a pipe or socket in non-blocking mode, as Go's own are
// and a shell's are not. So it does if r is of another type that has a
// SyscallConn method of its own, and a descriptor of such a kind: a type must not
// have that method if its Read does more than read the descriptor. A type that
// embeds one with such a method is read by its own Read.
//
// What other goroutines write meanwhile comes in between the steps of the copy.
// Of a file the kernel may send the pages themselves: who writes to it before the
// peer has read may change what the peer reads.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if c.isClosed(writeHalf) {
		return 0, c.opError("write", net.ErrClosed)
	}
	return copyAll(c, r)
}

// WriteTo writes to w what it reads from the Conn, until the end of the peer's
// output, and returns how many bytes it wrote. [io.Copy] calls it. Close and
// deadlines rule it as they rule Read. Its errors are those of Read, and those of
// w as they are.
//
// The kernel moves the bytes itself as in [Conn.ReadFrom], if w is such a thing;
// it may be an [OutputPort].
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

// copyAll copies r to w: by the kernel, as far as that goes, and the rest by way
// of memory. Whatever stops the kernel, r.Read or w.Write then say it in their
// own words, or go on.
func copyAll(w io.Writer, r io.Reader) (int64, error) {
	n, over, err := kernelCopy(w, r)
	if over {
		return n, err
	}
	rest, err := plainCopy(w, r)
	return n + rest, err
}

// copyBuffers holds the buffers of plain copies, *[copySize]byte.
var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}

const copySize = 64 << 10

// plainCopy copies r to w by Read and Write alone. Other methods of theirs would
// lead back here.
func plainCopy(w io.Writer, r io.Reader) (int64, error) {
	b := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, b[:])
}
