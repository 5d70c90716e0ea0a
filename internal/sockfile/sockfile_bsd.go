//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// restrictMode does nothing: these kernels refuse fchmod on a socket. Before
// listen(2) no process can connect.
func restrictMode(int, fs.FileMode) error { return nil }

// isBoundTo returns true: these kernels do not report which file a socket is bound to.
func isBoundTo(int, fs.FileInfo) bool { return true }

// withFile calls do with arguments that denote the file called name, not the target of a
// symbolic link. It returns errReplaced if that is not the file that want describes. These
// kernels have no descriptor of a socket file, so it may be replaced after the check.
func withFile(name string, want fs.FileInfo, do func(dir int, path string, flags int) error) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, want) {
		return errReplaced
	}
	if err != nil {
		return err
	}
	return do(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW)
}
