//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// CountDescriptors returns how many descriptors this process has open.
func CountDescriptors(t testing.TB) int {
	t.Helper()
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		return len(entries)
	}
	n := 0
	for fd := range 1 << 14 { // more than a test opens
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

// WaitDescriptors waits until at most n descriptors are open.
func WaitDescriptors(t testing.TB, n int) {
	t.Helper()
	what := func() string { return fmt.Sprintf("%d descriptors are open, want at most %d", CountDescriptors(t), n) }
	waitFor(t, what, func() bool { return CountDescriptors(t) <= n })
}

// CheckDescriptors fails the test if more descriptors are open at its end than
// at the call.
func CheckDescriptors(t testing.TB) {
	t.Helper()
	n := CountDescriptors(t)
	t.Cleanup(func() { WaitDescriptors(t, n) })
}

// WaitGoroutines waits until at most n goroutines are left.
func WaitGoroutines(t testing.TB, n int) {
	t.Helper()
	what := func() string {
		return fmt.Sprintf("%d goroutines are left, want at most %d:\n%s", runtime.NumGoroutine(), n, stacks())
	}
	waitFor(t, what, func() bool { return runtime.NumGoroutine() <= n })
}

// HeapInUse returns how many bytes of the heap are reachable.
func HeapInUse() int64 {
	runtime.GC()
	runtime.GC() // frees what the finalizers of the first run released
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
