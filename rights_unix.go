//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"os"

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

// parseRights returns every descriptor in the control messages that oob holds,
// as far as they can be read.
func parseRights(oob []byte) (fds []int) {
	for len(oob) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if header.Level == unix.SOL_SOCKET && header.Type == unix.SCM_RIGHTS {
			message := unix.SocketControlMessage{Header: header, Data: data}
			if got, err := unix.ParseUnixRights(&message); err == nil {
				fds = append(fds, got...)
			}
		}
		oob = rest
	}
	return fds
}

func closeDescriptors(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
