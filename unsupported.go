//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock

// Available reports whether the platform has Unix domain sockets. It mirrors
// unix-socket-available?.
const Available = false

// MaxPathLen is the maximum length of a path, in bytes. No path is valid here.
const MaxPathLen = 0
