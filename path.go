package unixsock

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// ErrInvalidPath is the error that errors.Is finds in every error about a path that
// no Unix domain socket can have on this platform.
var ErrInvalidPath = errors.New("invalid unix socket path")

var errUnavailable = fmt.Errorf("unix domain sockets on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// ValidPath reports whether path can name a Unix domain socket on this platform. It
// mirrors unix-socket-path?.
func ValidPath(path string) bool {
	return CheckPath(path) == nil
}

// CheckPath returns nil if path can name a Unix domain socket on this platform.
// Otherwise it returns an error that wraps [ErrInvalidPath] and says what is wrong,
// with the length and the limit.
//
// On Linux, a string that begins with NUL is an abstract name. It has 1 to
// [MaxPathLen] bytes with the leading NUL, and each of them counts. Any other string
// is a filesystem path. It is valid if it is not empty, contains no NUL, and its
// absolute form has at most MaxPathLen bytes. A leading @ has no special meaning.
//
// The absolute form is the working directory, a slash, and the path, with runs of
// slashes collapsed and nothing else changed: dots and symbolic links are left to the
// kernel. The socket is bound or connected to the absolute form, so a later change of
// the working directory has no effect.
func CheckPath(path string) error {
	_, err := resolve(path)
	return err
}

// Abstract returns the path of the abstract socket called name: a NUL followed by
// name, as in Racket's byte string #"\0name".
func Abstract(name string) string {
	return "\x00" + name
}

// resolve returns the name that the kernel gets for path: an abstract name as it is,
// a filesystem path in its absolute form. With an error it returns path itself.
func resolve(path string) (string, error) {
	switch {
	case !Available:
		return path, fmt.Errorf("%w: %w", ErrInvalidPath, errUnavailable)
	case path == "":
		return path, fmt.Errorf("%w: path is empty (0 bytes, limit %d)", ErrInvalidPath, MaxPathLen)
	case path[0] == 0 && !sys.AbstractNames:
		return path, fmt.Errorf("%w: path begins with NUL (%d bytes, limit %d), and %s has no abstract names",
			ErrInvalidPath, len(path), MaxPathLen, runtime.GOOS)
	case path[0] == 0 && len(path) > MaxPathLen:
		return path, fmt.Errorf("%w: abstract name is too long (%d bytes with its leading NUL, limit %d)",
			ErrInvalidPath, len(path), MaxPathLen)
	case path[0] == 0:
		return path, nil
	case strings.IndexByte(path, 0) > 0:
		return path, fmt.Errorf("%w: path contains NUL at byte %d (%d bytes, limit %d)",
			ErrInvalidPath, strings.IndexByte(path, 0), len(path), MaxPathLen)
	}
	full := path
	if path[0] != '/' {
		// This is the kernel's name for the working directory. os.Getwd prefers $PWD,
		// which may be /proc/self/cwd or another name whose meaning a chdir changes.
		wd, err := syscall.Getwd()
		if err != nil {
			return path, fmt.Errorf("%w: relative path without a working directory (%d bytes, limit %d for the absolute form): %w",
				ErrInvalidPath, len(path), MaxPathLen, err)
		}
		full = wd + "/" + path
	}
	for strings.Contains(full, "//") {
		full = strings.ReplaceAll(full, "//", "/")
	}
	if len(full) > MaxPathLen {
		return path, fmt.Errorf("%w: absolute form %.*q is too long (%d bytes, limit %d)",
			ErrInvalidPath, MaxPathLen, full, len(full), MaxPathLen)
	}
	return full, nil
}
