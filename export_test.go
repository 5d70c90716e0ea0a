//go:build linux

package unixsock

// OnMoved has f called with each number of bytes that the kernel moves in a
// copy; nil ends that.
func OnMoved(f func(n int)) { moved = f }
