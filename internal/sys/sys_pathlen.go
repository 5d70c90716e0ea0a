//go:build darwin || dragonfly || freebsd || netbsd

package sys

// MaxPathLen is the maximum length of a path in a socket address.
const MaxPathLen = 104
