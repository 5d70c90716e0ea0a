//go:build race

package unixsock

// raceEnabled says that each step takes many times as long.
const raceEnabled = true
