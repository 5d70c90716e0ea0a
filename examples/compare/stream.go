package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// roundTrip measures how long 64 bytes take to go to the other end and back.
func (b *bench) roundTrip(p pkg) setup { return b.connected(p, pingPong) }

// proxiedRoundTrip is roundTrip through a proxy.
func (b *bench) proxiedRoundTrip(p pkg) setup { return b.proxied(p, pingPong) }

// pingPong measures how long 64 bytes take from near to far and back.
func pingPong(near, far net.Conn) (float64, error) {
	const n = 500
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

// copyToFile measures io.Copy from a connection to a file, which is empty if fresh is set,
// or else has as many bytes already.
func (b *bench) copyToFile(p pkg, fresh bool) setup {
	return b.connected(p, func(near, far net.Conn) (float64, error) {
		if fresh {
			if err := b.target.Truncate(0); err != nil {
				return 0, err
			}
		}
		if _, err := b.target.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		return timed(1, func() error {
			written := make(chan error, 1)
			go func() {
				written <- b.writeAll(far, 64<<10)
				far.Close()
			}()
			_, err := io.Copy(b.target, near)
			near.Close() // if the copy failed, this ends the writes
			return errors.Join(err, <-written)
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

// proxiedWrites measures how long it takes to write transferSize bytes, by writes of one
// size, and to read them behind a proxy.
func (b *bench) proxiedWrites(p pkg, size int) setup {
	return b.proxied(p, func(near, far net.Conn) (float64, error) {
		return b.transfer(near, far, func() error { return b.writeAll(near, size) })
	})
}

// proxied calls measure for each sample, with the two ends of a connection through a proxy,
// which copies both directions with io.Copy.
func (b *bench) proxied(p pkg, measure func(near, far net.Conn) (float64, error)) setup {
	return b.connected(p, func(in, near net.Conn) (float64, error) {
		k, err := b.link(p)
		if err != nil {
			return 0, err
		}
		defer k.Close()
		out, far, err := k.pair()
		if err != nil {
			return 0, err
		}
		defer far.Close()
		var copies sync.WaitGroup
		for _, c := range [][2]net.Conn{{in, out}, {out, in}} {
			copies.Go(func() {
				io.Copy(c[0], c[1]) // ends with the close of either
				c[0].Close()
			})
		}
		took, err := measure(near, far)
		near.Close()
		far.Close()
		copies.Wait()
		return took, err
	})
}

// copyConn measures io.Copy from one connection to another, as a proxy does it:
// it accepts the first connection and dials the second.
func (b *bench) copyConn(from, to pkg) setup { return b.copying(from, to, b.proxy) }

// copyCPU measures the processor time of copyConn.
func (b *bench) copyCPU(from, to pkg) setup {
	return b.copying(from, to, func(in, out *link) (float64, error) {
		before := cpuTime()
		_, err := b.proxy(in, out)
		return float64(cpuTime() - before), err
	})
}

func (b *bench) copying(from, to pkg, sample func(in, out *link) (float64, error)) setup {
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
		return func() (float64, error) { return sample(in, out) }, stop, nil
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
