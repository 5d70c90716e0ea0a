package sockfile

import "golang.org/x/sys/unix"

// fileSystem returns the name of the file system that holds a file, "" if it cannot tell.
func fileSystem(name string) string {
	var stat unix.Statfs_t
	if err := unix.Statfs(name, &stat); err != nil {
		return ""
	}
	return unix.ByteSliceToString(stat.F_fstypename[:])
}
