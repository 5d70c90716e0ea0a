//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// narrow does nothing: these kernels refuse fchmod on a socket. Before listen,
// no one can connect.
func narrow(int, fs.FileMode) error { return nil }

// chmod sets the permissions of the file called name, not of what it may link to.
func chmod(name string, perm fs.FileMode) error {
	return unix.Fchmodat(unix.AT_FDCWD, name, uint32(perm), unix.AT_SYMLINK_NOFOLLOW)
}
