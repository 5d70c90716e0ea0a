//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"errors"
	"io/fs"
	"os"
	"strings"

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

// sharedFileSystem returns the name of the file system that holds a file if a socket of
// another kernel, or of another file system, can be seen and not be reached through it, and
// otherwise "".
func sharedFileSystem(name string) string {
	kind := fileSystem(name)
	kind = kind[:strings.IndexAny(kind+".", ".|")] // fusefs.sshfs on FreeBSD, puffs|sshfs on NetBSD
	switch kind {
	case "fuse", "fusefs", "macfuse", "osxfuse", "puffs", "virtiofs", "nfs", "smbfs", "p9fs", "afs", "coda":
		return kind
	}
	return ""
}
