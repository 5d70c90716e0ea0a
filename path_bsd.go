//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"fmt"
	"runtime"
)

// MaxPathLen is the most bytes that the absolute form of a path may have. All
// of them can be used. OpenBSD's kernel wants a NUL behind the path, within the
// 104 bytes that the other systems give to the path alone.
const MaxPathLen = 104 - openBSD

func checkAbstract(string) error {
	return fmt.Errorf("%w: it begins with NUL, and abstract names exist on Linux only, not on %s", ErrInvalidPath, runtime.GOOS)
}
