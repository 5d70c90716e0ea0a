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
// name, as in Racket's byte string #"\0name". Every byte counts: haproxy's abns@ pads a
// name with NULs to 108 bytes. gRPC passes the text unix:@name to a custom dialer as it is.
func Abstract(name string) string {
	return "\x00" + name
}

// resolve returns the name that the kernel gets for path: an abstract name as it is,
// a filesystem path in its absolute form. With an error it returns path itself.
func resolve(path string) (string, error) {
	name, nul := path, strings.IndexByte(path, 0)
	abstract := nul == 0
	switch {
	case !Available:
		return path, fmt.Errorf("%w: %w", ErrInvalidPath, errUnavailable)
	case path == "":
		return path, invalid("path is empty", path)
	case nul > 0:
		return path, invalid(fmt.Sprintf("path contains NUL at byte %d", nul), path)
	case abstract && !sys.AbstractNames:
		return path, invalid("path begins with NUL, and "+runtime.GOOS+" has no abstract names", path)
	case !abstract && path[0] != '/':
		// This is the kernel's name for the working directory. os.Getwd prefers $PWD,
		// which may be /proc/self/cwd or another name whose meaning a chdir changes.
		wd, err := syscall.Getwd()
		if err != nil {
			return path, fmt.Errorf("%w: %w", invalid("relative path without a working directory", path), err)
		}
		name = wd + "/" + path
	}
	for !abstract && strings.Contains(name, "//") {
		name = strings.ReplaceAll(name, "//", "/")
	}
	if len(name) > MaxPathLen {
		return path, invalid(fmt.Sprintf("name %.*q is too long", MaxPathLen, name), name)
	}
	return name, nil
}

// invalid returns the error of a path or name of len(s) bytes.
func invalid(problem, s string) error {
	return fmt.Errorf("%w: %s (%d bytes, limit %d)", ErrInvalidPath, problem, len(s), MaxPathLen)
}
