package main

import (
	"runtime"
	"time"
)

// A row is one line of the table: two ways to do the same work.
type row struct {
	name   string
	labels [2]string // of the sides
	sides  [2]setup
	goal   float64 // the ratio should not exceed it
	unit   unit

	// few is set if the samples hardly differ: then the fewest pairs are enough.
	few bool
}

// rows returns all rows in the order of the table.
func (b *bench) rows() []row {
	rows := append(b.connectRows(), b.streamRows()...)
	rows = append(rows, b.loopRows()...)
	if runtime.GOOS == "linux" { // elsewhere a full backlog refuses connections
		rows = append(rows, b.backlogRows()...)
	}
	return rows
}

func (b *bench) connectRows() []row {
	request := func(p pkg) setup { return b.requests(p, 1, acceptLoop) }
	requests := func(p pkg) setup { return b.requests(p, 32, acceptLoop) }
	return []row{
		compared("connect + accept + close", 0.75, b.connect),
		counted("connect + accept + close, allocations", 0.50, allocations, b.allocations),
		counted("connect + accept + close, bytes", 0.50, bytes, b.bytes),
		counted("heap of an idle connection, both ends", 1.00, bytes, b.idleHeap),
		compared("connect + request + close", 1.00, request),
		compared("connect + request + close, 32 clients", 0.97, requests),
	}
}

func (b *bench) streamRows() []row {
	return []row{
		compared("round trip of 64 bytes", 1.02, b.roundTrip),
		compared("32 MiB, writes of 64 KiB", 1.02, func(p pkg) setup { return b.throughput(p, 64<<10) }),
		compared("32 MiB, writes of 1 MiB", 1.02, func(p pkg) setup { return b.throughput(p, 1<<20) }),
		compared("io.Copy of 32 MiB, file to unix", 1.05, b.copyFile),
		compared("io.Copy of 32 MiB, TCP to unix", 1.05, func(p pkg) setup { return b.copyConn(tcp, p) }),
		compared("io.Copy of 32 MiB, unix to TCP", 0.90, func(p pkg) setup { return b.copyConn(p, tcp) }),
		compared("io.Copy of 32 MiB, unix to unix", 0.90, func(p pkg) setup { return b.copyConn(p, p) }),
		compared("…, processor time", 0.85, func(p pkg) setup { return b.copyCPU(p, p) }),
		compared("io.Copy of 32 MiB, unix to new file", 1.25, func(p pkg) setup { return b.copyToFile(p, true) }),
		compared("io.Copy of 32 MiB, unix to old file", 1.25, func(p pkg) setup { return b.copyToFile(p, false) }),
		compared("proxy, round trip of 64 bytes", 1.05, b.proxiedRoundTrip),
		compared("proxy, 32 MiB, writes of 1 KiB", 1.05, func(p pkg) setup { return b.proxiedWrites(p, 1<<10) }),
	}
}

// loopRows returns the rows that compare two loops of a server, both of unixsock.
func (b *bench) loopRows() []row {
	labels := [2]string{"event", "Accept"}
	withAccept := func(name string, loop serverLoop) row {
		sides := [2]setup{b.requests(ours, 1, loop), b.requests(ours, 1, acceptLoop)}
		return row{name: name, labels: labels, sides: sides, goal: 1.35, unit: nanoseconds}
	}
	return []row{
		withAccept("Ready loop", readyLoop),
		withAccept("AcceptEvt loop", acceptEvtLoop),
	}
}

// backlogRows returns the rows that package net has no equivalent for: its Dial
// fails when the backlog is full. They are compared with a limit.
func (b *bench) backlogRows() []row {
	limited := func(name string, side setup, limit float64, u unit) row {
		return row{
			name:   name,
			labels: [2]string{"unixsock", "limit"},
			sides:  [2]setup{side, constant(limit)},
			goal:   1.00,
			unit:   u,
		}
	}
	wait := limited("1,000 connects, backlog of 4", b.manyConnects, float64(300*time.Millisecond), nanoseconds)
	share := limited("CPU cores used by 1,000 waiting connects", b.waitingConnects, 0.20, cores)
	share.few = true
	return []row{wait, share}
}

// compared returns a row that compares the time that f takes with unixsock and with net.
func compared(name string, goal float64, f func(pkg) setup) row {
	return row{
		name:   name,
		labels: [2]string{ours.name, theirs.name},
		sides:  [2]setup{f(ours), f(theirs)},
		goal:   goal,
		unit:   nanoseconds,
	}
}

// counted returns a row that compares memory.
func counted(name string, goal float64, u unit, f func(pkg) setup) row {
	r := compared(name, goal, f)
	r.unit, r.few = u, true
	return r
}

// constant returns a side that is not measured.
func constant(v float64) setup {
	return func() (sampler, func(), error) {
		return func() (float64, error) { return v, nil }, func() {}, nil
	}
}
