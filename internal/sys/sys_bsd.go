//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxWrapped is the maximum length of a name that x/sys/unix passes to the kernel.
const maxWrapped = 103

func accept(fd int) (int, string, error) {
	defer holdForks()()
	nfd, sa, err := acceptSocket(fd)
	mark(err, nfd)
	name, err := nameOf(sa, err)
	return nfd, name, err
}

func getsockname(fd int) (string, error) { return nameOf(syscall.Getsockname(fd)) }
func getpeername(fd int) (string, error) { return nameOf(syscall.Getpeername(fd)) }

// nameOf returns the name in an address that a call has returned.
func nameOf(sa syscall.Sockaddr, err error) (string, error) {
	if unixAddr, ok := sa.(*syscall.SockaddrUnix); ok {
		return unixAddr.Name, err
	}
	if err == nil {
		err = unix.EAFNOSUPPORT
	}
	return "", err
}

// RestrictMode does nothing: these kernels refuse fchmod on a socket. Before
// listen(2) no process can connect.
func RestrictMode(int, fs.FileMode) error { return nil }

// IsBoundTo returns true: these kernels do not report which file a socket is bound to.
func IsBoundTo(int, fs.FileInfo) bool { return true }

// withFile calls do with arguments that denote the file called name, not the target of a
// symbolic link. It returns ErrReplaced if that is not the file that want describes. These
// kernels have no descriptor of a socket file, so it may be replaced after the check.
func withFile(name string, want fs.FileInfo, do func(dir int, path string, flags int) error) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, want) {
		return ErrReplaced
	}
	if err != nil {
		return err
	}
	return do(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW)
}
