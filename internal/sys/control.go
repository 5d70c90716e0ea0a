//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// scmPidfd is Linux's SCM_PIDFD. The kernel adds a descriptor of this kind to
// messages if the user has set SO_PASSPIDFD on the socket.
const scmPidfd = 4

// rights returns the descriptors of SCM_RIGHTS in received control messages. It
// closes those of SCM_PIDFD, for which the package has no use.
func rights(control []byte) []int {
	if AbstractNames { // Linux
		CloseAll(descriptors(control, scmPidfd))
	}
	return descriptors(control, unix.SCM_RIGHTS)
}

// descriptors returns the descriptors in the control messages of one kind. A
// length beyond the end of control is clipped: macOS reports the full length of a
// message that it has cut off. A length below that of a header ends the messages.
// The functions of x/sys/unix reject such lengths, and lose the descriptors.
func descriptors(control []byte, kind int32) (fds []int) {
	head := unix.CmsgLen(0)
	for len(control) >= head {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		if uint64(h.Len) < uint64(head) {
			break
		}
		data := control[head:min(uint64(h.Len), uint64(len(control)))]
		if h.Level == unix.SOL_SOCKET && h.Type == kind {
			for d := data; len(d) >= 4; d = d[4:] {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(d))))
			}
		}
		control = control[min(unix.CmsgSpace(len(data)), len(control)):]
	}
	return fds
}
