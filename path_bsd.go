//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import "github.com/go-unixsock/unixsock/internal/sys"

// Available reports whether the platform has Unix domain sockets. It mirrors
// unix-socket-available?.
const Available = true

// MaxPathLen is the maximum length of the absolute form of a path, all of it usable: 104
// bytes, or 103 on OpenBSD, whose kernel needs room for a NUL. Some programs cannot
// reach a path of the full length.
const MaxPathLen = sys.MaxPathLen
