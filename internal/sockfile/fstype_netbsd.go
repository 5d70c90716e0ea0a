package sockfile

import "golang.org/x/sys/unix"

// fileSystem returns the name of the file system that holds a file, "" if it cannot tell.
func fileSystem(name string) string {
	var stat unix.Statvfs_t
	if err := unix.Statvfs(name, &stat); err != nil {
		return ""
	}
	return unix.ByteSliceToString(stat.Fstypename[:])
}
