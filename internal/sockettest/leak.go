//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// CountDescriptors returns how many descriptors this process has open.
func CountDescriptors(t testing.TB) int {
	t.Helper()
	for _, dir := range []string{"/proc/self/fd", "/dev/fd"} {
		if entries, err := os.ReadDir(dir); err == nil {
			return len(entries)
		}
	}
	t.Skip("this system has no list of a process's descriptors")
	return 0
}

// WaitDescriptors waits until at most n descriptors are open.
func WaitDescriptors(t testing.TB, n int) {
	t.Helper()
	WaitFor(t, "descriptors are left open", func() bool { return CountDescriptors(t) <= n })
}

// CheckDescriptors fails the test if more descriptors are open at its end than
// at the call.
func CheckDescriptors(t testing.TB) {
	t.Helper()
	// The runtime opens descriptors for its poller and for the first process.
	c1, c2, err := unixsock.Pair()
	if err != nil {
		t.Fatal(err)
	}
	c1.Close()
	c2.Close()
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Release()
	}
	n := CountDescriptors(t)
	t.Cleanup(func() { WaitDescriptors(t, n) })
}

// WaitGoroutines waits until at most n goroutines are left.
func WaitGoroutines(t testing.TB, n int) {
	t.Helper()
	deadline := time.Now().Add(Timeout)
	for runtime.NumGoroutine() > n {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left, want %d:\n%s", runtime.NumGoroutine(), n, strings.Join(Goroutines(), "\n\n"))
		}
		time.Sleep(time.Millisecond)
	}
}

// HeapInUse returns how many bytes of the heap are reachable.
func HeapInUse() int64 {
	runtime.GC()
	runtime.GC() // frees what a finalizer of the first has let go
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
