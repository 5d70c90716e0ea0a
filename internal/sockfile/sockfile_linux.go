package sockfile

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// with calls do with arguments that denote the file, not the target of a symbolic link. It
// returns errReplaced if another file has its path. The file cannot be replaced after the
// check. do gets a descriptor only without access to /proc: then Fchmodat calls fchmodat2,
// and the system call filters of many containers are older.
func (f *File) with(do func(dir int, path string, flags int) error) error {
	file, err := os.OpenFile(f.path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return errReplaced
	case err != nil:
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !os.SameFile(info, f.info) {
		return errReplaced
	}
	fd := int(file.Fd())
	err = do(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) {
		err = do(fd, "", unix.AT_EMPTY_PATH)
	}
	return err
}

// removeACL removes the access ACL that a default ACL of the directory has given to the file
// called name: with one, the permission bits of the group are only a mask. link denotes the
// file that the caller has opened. Without access to /proc, the removal fails.
func removeACL(name, link string) error {
	const acl = "system.posix_acl_access"
	switch _, err := unix.Lgetxattr(name, acl, nil); err {
	case unix.ENODATA, unix.EOPNOTSUPP, unix.ENOSYS:
		return nil // there is none
	}
	return sys.Repeat("removexattr", func() error { return unix.Removexattr(link, acl) })
}

// shared holds the names of file systems through which a socket of another kernel, or of
// another file system, can be seen and not be reached: connect(2) answers as if it were
// closed. The magic numbers without a name in x/sys/unix are from the kernel's sources.
var shared = map[uint32]string{
	unix.FUSE_SUPER_MAGIC:  "fuse", // and virtiofs
	unix.NFS_SUPER_MAGIC:   "nfs",
	unix.SMB_SUPER_MAGIC:   "smb",
	unix.SMB2_SUPER_MAGIC:  "smb",
	unix.CIFS_SUPER_MAGIC:  "cifs",
	unix.V9FS_MAGIC:        "9p",
	unix.CEPH_SUPER_MAGIC:  "ceph",
	unix.AFS_SUPER_MAGIC:   "afs",
	unix.AFS_FS_MAGIC:      "afs",
	unix.CODA_SUPER_MAGIC:  "coda",
	unix.OCFS2_SUPER_MAGIC: "ocfs2",
	0x01161970:             "gfs2",
	0x0bd00bd0:             "lustre",
	0x786f4256:             "vboxsf",
}

// sharedFileSystem returns the name of the file system that holds a file if it is one of
// shared, and otherwise "".
func sharedFileSystem(name string) string {
	var stat unix.Statfs_t
	// A system call filter may refuse it. The type stays 0 then.
	_ = sys.Repeat("statfs", func() error { return unix.Statfs(name, &stat) })
	return shared[uint32(stat.Type)]
}
