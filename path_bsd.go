//go:build darwin || dragonfly || freebsd || netbsd

package unixsock

// MaxPathLen is the most bytes that the absolute form of a path may have. All
// of them can be used.
const MaxPathLen = 104
