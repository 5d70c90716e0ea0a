package sockfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// restrictMode makes the file that a bind of fd creates no wider than perm: the
// kernel gives it the permissions of the socket, less the umask.
func restrictMode(fd int, perm fs.FileMode) error {
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, uint32(perm)))
}

// withFile calls do with arguments that denote the file called name, not the target of a
// symbolic link. It returns errReplaced if that is not the file that want describes, which
// cannot be replaced after the check. do gets a descriptor only without access to /proc:
// then Fchmodat calls fchmodat2, and the system call filters of many containers are older.
func withFile(name string, want fs.FileInfo, do func(dir int, path string, flags int) error) error {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT:
		return errReplaced
	case err != nil:
		return os.NewSyscallError("open", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if info, err := file.Stat(); err != nil || !os.SameFile(info, want) {
		return errReplaced
	}
	err = do(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
		err = do(fd, "", unix.AT_EMPTY_PATH)
	}
	return err
}
