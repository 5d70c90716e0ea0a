package sockfile

import "golang.org/x/sys/unix"

// fileSystem returns the name of the file system that holds a file, "" if it cannot tell.
func fileSystem(name string) string {
	var stat unix.Statvfs_t
	_ = unix.Statvfs(name, &stat) // the name stays empty if it fails
	return unix.ByteSliceToString(stat.Fstypename[:])
}
