//go:build !race

package sockettest

// Race reports whether the race detector is on.
const Race = false
