package main

import (
	"errors"
	"fmt"
	"io"
	"net"
)

// roundTrip measures how long 64 bytes take to go to the other end and back.
func (b *bench) roundTrip(p pkg) setup {
	const n = 500
	return b.connected(p, func(near, far net.Conn) (float64, error) {
		echoed := make(chan struct{})
		go func() {
			defer close(echoed)
			for message := make([]byte, 64); echo(far, message) == nil; {
			}
		}()
		message := make([]byte, 64)
		once := func() error { return ask(near, message) }
		err := repeat(n/10, once) // both ends have waited before the clock starts
		if err != nil {
			return 0, err
		}
		took, err := timed(n, func() error { return repeat(n, once) })
		near.Close()
		<-echoed
		return took, err
	})
}

// throughput measures how long it takes to write and read transferSize bytes, by
// writes of one size.
func (b *bench) throughput(p pkg, size int) setup {
	return b.connected(p, func(near, far net.Conn) (float64, error) {
		return b.transfer(near, far, func() error { return b.writeAll(near, size) })
	})
}

// copyFile measures io.Copy from a file to a connection.
func (b *bench) copyFile(p pkg) setup {
	return b.connected(p, func(near, far net.Conn) (float64, error) {
		if _, err := b.file.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		return b.transfer(near, far, func() error {
			_, err := io.Copy(near, b.file)
			return err
		})
	})
}

// connected calls measure for each sample, with the two ends of a new connection.
func (b *bench) connected(p pkg, measure func(near, far net.Conn) (float64, error)) setup {
	return func() (sampler, func(), error) {
		k, err := b.link(p)
		if err != nil {
			return nil, nil, err
		}
		sample := func() (float64, error) {
			near, far, err := k.pair()
			if err != nil {
				return 0, err
			}
			defer near.Close()
			defer far.Close()
			return measure(near, far)
		}
		return sample, func() { k.Close() }, nil
	}
}

// copyConn measures io.Copy from one connection to another, as a proxy does it:
// it accepts the first connection and dials the second.
func (b *bench) copyConn(from, to pkg) setup {
	return func() (sampler, func(), error) {
		in, err := b.link(from)
		if err != nil {
			return nil, nil, err
		}
		out, err := b.link(to)
		if err != nil {
			in.Close()
			return nil, nil, err
		}
		stop := func() {
			in.Close()
			out.Close()
		}
		return func() (float64, error) { return b.proxy(in, out) }, stop, nil
	}
}

// proxy takes one sample: a client writes, the proxy copies, a server reads.
func (b *bench) proxy(in, out *link) (float64, error) {
	client, source, err := in.pair()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	defer source.Close()
	sink, server, err := out.pair()
	if err != nil {
		return 0, err
	}
	defer sink.Close()
	defer server.Close()

	return b.transfer(sink, server, func() error {
		written := make(chan error, 1)
		go func() {
			written <- b.writeAll(client, 64<<10)
			client.Close()
		}()
		_, err := io.Copy(sink, source)
		source.Close() // if the copy failed, this ends the client
		return errors.Join(err, <-written)
	})
}

// transfer measures how long it takes until all that send has written to near has
// been read from far.
func (b *bench) transfer(near, far net.Conn, send func() error) (float64, error) {
	read := make(chan error, 1)
	return timed(1, func() error {
		go func() {
			read <- b.readAll(far)
			far.Close() // if the read failed, this ends send
		}()
		err := send()
		near.Close()
		return errors.Join(err, <-read)
	})
}

// writeAll writes transferSize bytes to c, size at a time.
func (b *bench) writeAll(c net.Conn, size int) error {
	return repeat(transferSize/size, func() error {
		_, err := c.Write(b.message[:size])
		return err
	})
}

// readAll reads from c up to EOF, which must come after transferSize bytes.
func (b *bench) readAll(c net.Conn) error {
	for n := 0; ; {
		m, err := c.Read(b.buffer)
		n += m
		switch {
		case err == io.EOF && n == transferSize:
			return nil
		case err == io.EOF:
			return fmt.Errorf("received %d bytes, want %d", n, transferSize)
		case err != nil:
			return err
		}
	}
}
