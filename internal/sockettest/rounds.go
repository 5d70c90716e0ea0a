//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"flag"
	"testing"
)

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
