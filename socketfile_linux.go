package unixsock

import (
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// narrow sees to it that the file that bind makes is not wider than perm: the
// kernel gives it the permissions of the socket, less the umask.
func narrow(fd int, perm fs.FileMode) error {
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, uint32(perm)))
}

// chmod sets the permissions of the file called name, not of what it may link to.
func chmod(name string, perm fs.FileMode) error {
	err := unix.Fchmodat(unix.AT_FDCWD, name, uint32(perm), unix.AT_SYMLINK_NOFOLLOW)
	if err != unix.EOPNOTSUPP {
		return err
	}
	// Before Linux 6.6, only by way of /proc.
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return unix.ENOTSOCK
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(perm))
}
