//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// removeACL does nothing: connect(2) does not check ACLs here.
func removeACL(string, string) error { return nil }

// isBoundTo reports that the answer is not known: these kernels do not report it.
func isBoundTo(int, fs.FileInfo) (bound, known bool) { return false, false }

// with calls do with arguments that denote the file, not the target of a symbolic link. It
// returns errReplaced if another file has its path. These kernels have no descriptor of a
// socket file, so it may be replaced after the check.
func (f *File) with(do func(dir int, path string, flags int) error) error {
	if !f.isOwn() {
		return errReplaced
	}
	return do(unix.AT_FDCWD, f.path, unix.AT_SYMLINK_NOFOLLOW)
}

// sharedFileSystem returns the name of the file system that holds a file if a socket of
// another kernel, or of another file system, can be seen and not be reached through it, and
// otherwise "".
func sharedFileSystem(name string) string {
	kind := fileSystem(name)
	kind = kind[:strings.IndexAny(kind+".", ".|")] // fusefs.sshfs on FreeBSD, puffs|sshfs on NetBSD
	switch kind {
	case "fuse", "fusefs", "macfuse", "osxfuse", "puffs", "virtiofs",
		"nfs", "smbfs", "p9fs", "afs", "coda":
		return kind
	}
	return ""
}
