//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"encoding/binary"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendRights sends b, with fds if there are any, and returns how many bytes
// went out, or errWouldBlock.
func sendRights(fd int, b []byte, fds []int) (int, error) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		n, err := unix.SendmsgN(fd, b, oob, nil, 0)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, errWouldBlock
		default:
			return 0, os.NewSyscallError("sendmsg", err)
		}
	}
}

// receiveRights reads into b, and returns how many bytes and which descriptors
// came: all that the kernel opened, whatever else it says. There is room for
// one more than max, so that more than max can be told.
func receiveRights(fd int, b []byte, max int) (int, []int, error) {
	// Messages of other kinds may come before, if someone has asked for them.
	const others = 256
	oob := make([]byte, unix.CmsgSpace(4*(min(max, maxRights)+1))+others)
	for {
		n, oobn, flags, err := receiveMessage(fd, b, oob)
		fds := parseRights(oob[:oobn])
		if onLinux {
			const pidfd = 4 // SCM_PIDFD, for who has set SO_PASSPIDFD: not asked for here
			closeDescriptors(descriptors(oob[:oobn], pidfd))
		}
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, nil, errWouldBlock
		case err != nil:
			return n, fds, os.NewSyscallError("recvmsg", err)
		case flags&unix.MSG_CTRUNC != 0 && len(fds) <= max:
			return n, fds, errors.New("not all of the descriptors that came could be taken")
		}
		return n, fds, nil
	}
}

// parseRights returns every descriptor that came by SCM_RIGHTS in the control
// messages that oob holds.
func parseRights(oob []byte) []int { return descriptors(oob, unix.SCM_RIGHTS) }

// descriptors returns the descriptors in the control messages of one kind, as
// far as the messages can be read: a length that is wrong ends them. The
// functions of x/sys/unix trust the lengths, which come from the kernel.
func descriptors(oob []byte, kind int32) (fds []int) {
	head := unix.CmsgLen(0)
	for len(oob) >= head {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		if uint64(h.Len) < uint64(head) || uint64(h.Len) > uint64(len(oob)) {
			break
		}
		data := oob[head:h.Len]
		if h.Level == unix.SOL_SOCKET && h.Type == kind {
			for d := data; len(d) >= 4; d = d[4:] {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(d))))
			}
		}
		oob = oob[min(unix.CmsgSpace(len(data)), len(oob)):]
	}
	return fds
}

func closeDescriptors(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
