//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import "github.com/go-unixsock/unixsock/internal/sys"

// Available reports whether the platform supports Unix domain sockets. It mirrors
// unix-socket-available?.
const Available = true

// MaxPathLen is the maximum length, in bytes, of the absolute form of a path: 104, or
// 103 on OpenBSD, whose kernel needs room for a NUL after the path. The whole length is
// usable.
const MaxPathLen = sys.MaxPathLen
