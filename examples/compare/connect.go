package main

import (
	"errors"
	"net"
	"runtime"
	"time"
)

// connect measures how long it takes to connect, accept and close both ends, one
// connection after the other.
func (b *bench) connect(p pkg) setup {
	const n = 200
	return b.connecting(p, func(once func() error) (float64, error) {
		return timed(n, func() error { return repeat(n, once) })
	})
}

// allocations counts the allocations of connect, accept and close.
func (b *bench) allocations(p pkg) setup {
	return b.allocated(p, func(m *runtime.MemStats) uint64 { return m.Mallocs })
}

// bytes counts the bytes that connect, accept and close allocate.
func (b *bench) bytes(p pkg) setup {
	return b.allocated(p, func(m *runtime.MemStats) uint64 { return m.TotalAlloc })
}

// allocated measures by how much a connection raises a counter of the runtime.
func (b *bench) allocated(p pkg, counter func(*runtime.MemStats) uint64) setup {
	const n = 1000
	return b.connecting(p, func(once func() error) (float64, error) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := repeat(n, once)
		runtime.ReadMemStats(&after)
		return float64(counter(&after)-counter(&before)) / n, err
	})
}

// connecting calls measure for each sample, with a function that connects,
// accepts and closes once.
func (b *bench) connecting(p pkg, measure func(once func() error) (float64, error)) setup {
	return func() (sampler, func(), error) {
		k, err := b.link(p)
		if err != nil {
			return nil, nil, err
		}
		once := func() error {
			dialed, accepted, err := k.pair()
			if err != nil {
				return err
			}
			return errors.Join(dialed.Close(), accepted.Close())
		}
		sample := func() (float64, error) { return measure(once) }
		return sample, func() { k.Close() }, nil
	}
}

// idleHeap measures the heap that connections use while both ends wait.
func (b *bench) idleHeap(p pkg) setup {
	const n = 200
	return func() (sampler, func(), error) {
		k, err := b.link(p)
		if err != nil {
			return nil, nil, err
		}
		sample := func() (float64, error) {
			conns := make([]net.Conn, 0, 2*n)
			before := heapInUse()
			err := repeat(n, func() error {
				dialed, accepted, err := k.pair()
				if err != nil {
					return err
				}
				conns = append(conns, dialed, accepted)
				return errors.Join(awaitData(dialed), awaitData(accepted))
			})
			after := heapInUse()
			for _, c := range conns {
				c.Close()
			}
			return float64(after-before) / n, err
		}
		return sample, func() { k.Close() }, nil
	}
}

// awaitData has c allocate what it needs to wait for data: a unixsock.Conn
// registers with the runtime's poller when it first has to wait, or when it gets
// a deadline.
func awaitData(c net.Conn) error { return c.SetDeadline(time.Time{}) }

func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // frees what had a finalizer
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
