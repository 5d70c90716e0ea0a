package unixsock

import "github.com/go-unixsock/unixsock/internal/sys"

// Available reports whether the platform has Unix domain sockets. It mirrors
// unix-socket-available?.
const Available = true

// MaxPathLen is the maximum length, in bytes, of the absolute form of a path, or of an
// abstract name with its leading NUL: 108 on Linux, 104 on macOS and the BSDs, 103 on
// OpenBSD. The whole length is usable, but net, Python and nc cannot reach 108 bytes.
const MaxPathLen = sys.MaxPathLen
