//go:build !race

package unixsock

const raceEnabled = false
