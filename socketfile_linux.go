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

// chmod sets the permissions of the socket file called name, and of nothing that
// may have come into its place. fchmodat2 is only for where there is no /proc:
// it is younger than the system call filters of many a container.
func chmod(name string, perm fs.FileMode) error {
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
	err = unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(perm))
	if err == unix.ENOENT {
		err = unix.Fchmodat(unix.AT_FDCWD, name, uint32(perm), unix.AT_SYMLINK_NOFOLLOW)
	}
	return err
}
