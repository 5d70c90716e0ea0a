package sockfile

import (
	"encoding/binary"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"
)

// The request and the reply of unix_diag, from linux/sock_diag.h and linux/unix_diag.h:
// a netlink header of 16 bytes, then a unix_diag_req of 24 bytes, or a unix_diag_msg of
// 16 bytes with attributes. The attribute that was requested is the first one.
const (
	diagRequestSize = 16 + 24
	diagReplySize   = 16 + 16 + 12

	showVFS      = 2 // UDIAG_SHOW_VFS
	attributeVFS = 1 // UNIX_DIAG_VFS: a header, the inode and the device, of 4 bytes each
	anything     = 1<<32 - 1
)

// isBoundTo reports whether the file that info describes is the one that fd is bound to. On
// Linux 6 and later the answer is always known: without a reply, the file is another one.
// Earlier kernels may report another number than stat(2) for a file on overlayfs.
func isBoundTo(fd int, info fs.FileInfo) (bound, known bool) {
	var system unix.Utsname
	var stat unix.Stat_t
	if unix.Uname(&system) != nil || system.Release[1] == '.' && system.Release[0] < '6' {
		return false, false
	}
	diag, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil || unix.Fstat(fd, &stat) != nil {
		return false, true
	}
	defer unix.Close(diag)
	native := binary.NativeEndian
	b := make([]byte, 512)
	native.PutUint32(b, diagRequestSize)
	native.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b[16] = unix.AF_UNIX
	native.PutUint32(b[20:], anything) // the state of the socket
	native.PutUint32(b[24:], uint32(stat.Ino))
	native.PutUint32(b[28:], showVFS)
	native.PutUint32(b[32:], anything) // a cookie
	native.PutUint32(b[36:], anything)
	// The kernel replies before sendto returns. There is no reply if sendto fails.
	_ = unix.Sendto(diag, b[:diagRequestSize], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	n, _, err := unix.Recvfrom(diag, b, unix.MSG_DONTWAIT)
	if err != nil || n < diagReplySize || native.Uint16(b[4:]) != unix.SOCK_DIAG_BY_FAMILY || native.Uint16(b[34:]) != attributeVFS {
		return false, true
	}
	// The kernel reports the inode number in 32 bits, and the device in its own encoding.
	inode := uint32(info.Sys().(*syscall.Stat_t).Ino)
	number := unix.Major(device(info))<<20 | unix.Minor(device(info))
	return native.Uint32(b[36:]) == inode && native.Uint32(b[40:]) == number, true
}
