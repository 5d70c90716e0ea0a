//go:build race

package sockettest

// Race reports whether the race detector is on, which makes each step several
// times slower.
const Race = true
