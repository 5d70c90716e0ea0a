package unixsock

import "net"

const (
	maxBuffers = 1024    // that one writev takes, on every system
	maxIO      = 1 << 30 // bytes in one system call; some systems refuse 2 GiB
)

// WriteBuffers writes all of the buffers, or returns how many bytes went out and
// why no more did. As far as the kernel takes them, up to 1,024 go out in one
// system call, without a copy. What is written is removed from *v, as by
// [net.Buffers.WriteTo], which knows only the connections of package net. What
// other goroutines write does not mix with the buffers.
func (c *Conn) WriteBuffers(v *net.Buffers) (int64, error) {
	raw, err := c.raw(writeHalf)
	if err != nil {
		return 0, c.ioError("write", writeHalf, err)
	}
	var total int64
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		for skipEmpty(v); len(*v) > 0; skipEmpty(v) {
			var n int
			n, failed = writeVector(int(fd), batch(*v))
			total += int64(n)
			consume(v, n)
			if failed != nil {
				return failed != errWouldBlock
			}
		}
		return true
	})
	if err != nil {
		failed = rawCause(err)
	}
	return total, c.ioError("write", writeHalf, failed)
}

// batch returns what of the buffers one writev takes.
func batch(v [][]byte) [][]byte {
	if len(v[0]) > maxIO {
		return [][]byte{v[0][:maxIO]}
	}
	size := 0
	for i, b := range v {
		if i == maxBuffers || len(b) > maxIO-size {
			return v[:i]
		}
		size += len(b)
	}
	return v
}

// skipEmpty removes the empty buffers at the front.
func skipEmpty(v *net.Buffers) {
	for len(*v) > 0 && len((*v)[0]) == 0 {
		(*v)[0] = nil
		*v = (*v)[1:]
	}
}

// consume removes the first n bytes of the buffers.
func consume(v *net.Buffers, n int) {
	for n > 0 {
		b := (*v)[0]
		if n < len(b) {
			(*v)[0] = b[n:]
			return
		}
		n -= len(b)
		(*v)[0] = nil
		*v = (*v)[1:]
	}
}

// SetReadBuffer sets the size of the kernel's receive buffer (SO_RCVBUF). On
// Linux it makes no difference to a unix socket: what has been written and not
// yet read counts against the writer's send buffer.
func (c *Conn) SetReadBuffer(bytes int) error { return c.setBuffer(readHalf, bytes) }

// SetWriteBuffer sets the size of the kernel's send buffer (SO_SNDBUF): how
// much may be written before the peer reads. The kernel has limits of its own
// for it, and Linux doubles what is asked for, for its bookkeeping.
func (c *Conn) SetWriteBuffer(bytes int) error { return c.setBuffer(writeHalf, bytes) }

func (c *Conn) setBuffer(h half, bytes int) error {
	if c.isClosed(h) {
		return c.opError("set", net.ErrClosed)
	}
	err := c.file.control(func(fd int) error { return setBufferSize(fd, h, bytes) })
	if err != nil {
		return c.opError("set", err)
	}
	return nil
}
