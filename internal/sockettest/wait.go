//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"flag"
	"runtime"
	"testing"
	"time"
)

// Timeout is how long helpers wait for an event that a test requires. It ends tests that
// hang. It does not measure speed.
const Timeout = 30 * time.Second

// WaitFor waits until done returns true. It polls: use it where nothing signals
// the change. The failure message ends with what.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	waitFor(t, func() string { return what }, done)
}

// waitFor is WaitFor with a message that is built only if the wait fails.
func waitFor(t testing.TB, what func() string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Timeout); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v: %s", Timeout, what())
		}
	}
}

// Receive returns the next value from ch, or the zero value if ch is closed.
func Receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	v, _ := ReceiveOK(t, what, ch)
	return v
}

// ReceiveOK returns the next value from ch, and whether ch is open. If none comes, it fails
// the test with the stacks of all goroutines.
func ReceiveOK[T any](t testing.TB, what string, ch <-chan T) (T, bool) {
	t.Helper()
	timer := time.NewTimer(Timeout)
	defer timer.Stop()
	select {
	case v, ok := <-ch:
		return v, ok
	case <-timer.C:
		t.Fatalf("waited %v for %s\n%s", Timeout, what, stacks())
		panic("not reached")
	}
}

// CheckReturns calls f and fails the test, as ReceiveOK does, if f does not return. f may end
// the test, though it runs in another goroutine.
func CheckReturns(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { done <- returned }()
		f()
		returned = true
	}()
	if !Receive(t, what, done) {
		t.FailNow() // f has called it, or Goexit
	}
}

// stacks returns the stack traces of all goroutines, for the message of a failure.
func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}

var rounds = flag.Int("rounds", 1, "run the tests that repeat their work this many times as long")

// Times returns how many times a test repeats its work, n by default: fewer times with
// -short and under the race detector, more with -rounds.
func Times(n int) int {
	switch {
	case testing.Short():
		n /= 10
	case Race:
		n /= 3
	}
	return max(1, n**rounds)
}
