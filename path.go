package unixsock

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"
)

// ErrInvalidPath is what errors.Is finds in every error about a path that no
// unix domain socket can have on this platform.
var ErrInvalidPath = errors.New("invalid unix socket path")

// onLinux says that there are abstract names.
const onLinux = runtime.GOOS == "linux" || runtime.GOOS == "android"

// errUnavailable is the error of everything on a platform without unix domain
// sockets.
var errUnavailable = fmt.Errorf("unix domain sockets on this platform: %w", errors.ErrUnsupported)

// ValidPath reports whether path can name a unix domain socket on this
// platform; [CheckPath] says why not. It mirrors unix-socket-path?.
func ValidPath(path string) bool {
	return CheckPath(path) == nil
}

// CheckPath returns nil if path can name a unix domain socket on this platform,
// and otherwise an error that is [ErrInvalidPath] and says what is wrong and
// what the limit is.
//
// A string that begins with NUL is an abstract name, on Linux only: it has 1 to
// [MaxPathLen] bytes with the leading NUL, and each of them counts. Any other
// string is a filesystem path. It is valid if it is not empty, holds no NUL,
// and its absolute form has at most MaxPathLen bytes. The absolute form is the
// working directory, a slash, and the path, with runs of slashes made one and
// nothing else changed: no dot, no dot-dot and no link is resolved. That is what
// is bound and connected to, whatever the working directory is later. A leading @
// has no special meaning.
func CheckPath(path string) error {
	_, err := resolve(path)
	return err
}

// Abstract returns the path that stands for the abstract socket called name: a
// NUL and name, as in Racket's byte string #"\0name".
func Abstract(name string) string {
	return "\x00" + name
}

// resolve returns what the kernel is given for path: an abstract name as it is,
// and of a filesystem path the absolute form.
func resolve(path string) (string, error) {
	switch {
	case !Available:
		return "", fmt.Errorf("%w: %w", ErrInvalidPath, errUnavailable)
	case path == "":
		return "", fmt.Errorf("%w: it is empty, the limit is %d bytes", ErrInvalidPath, MaxPathLen)
	case path[0] == 0 && !onLinux:
		return "", fmt.Errorf("%w: it begins with NUL, and abstract names exist on Linux only, not on %s", ErrInvalidPath, runtime.GOOS)
	case path[0] == 0 && len(path) > MaxPathLen:
		return "", fmt.Errorf("%w: the abstract name has %d bytes with its leading NUL, the limit is %d",
			ErrInvalidPath, len(path), MaxPathLen)
	case path[0] == 0:
		return path, nil
	case strings.IndexByte(path, 0) > 0:
		return "", fmt.Errorf("%w: NUL at byte %d of a filesystem path of %d bytes, the limit is %d without any",
			ErrInvalidPath, strings.IndexByte(path, 0), len(path), MaxPathLen)
	}
	full := path
	if path[0] != '/' {
		// The kernel's own word for the working directory: $PWD, which os.Getwd
		// prefers, may be /proc/self/cwd or another name that a chdir moves.
		wd, err := syscall.Getwd()
		if err != nil {
			return "", fmt.Errorf("%w: the absolute form of a relative path, the limit is %d bytes, and no working directory: %w",
				ErrInvalidPath, MaxPathLen, err)
		}
		full = wd + "/" + path
	}
	full = squeezeSlashes(full)
	if len(full) > MaxPathLen {
		return "", fmt.Errorf("%w: the absolute form %.*q has %d bytes, the limit is %d",
			ErrInvalidPath, MaxPathLen, full, len(full), MaxPathLen)
	}
	return full, nil
}

// squeezeSlashes makes each run of slashes in path one.
func squeezeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	b := make([]byte, 0, len(path))
	for i := range len(path) {
		if i > 0 && path[i] == '/' && path[i-1] == '/' {
			continue
		}
		b = append(b, path[i])
	}
	return string(b)
}
