package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// MaxPathLen is the maximum length of a path in a socket address.
const MaxPathLen = 104

const (
	bornMarked   = true
	birthFlags   = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	acceptMarks  = true
	receiveFlags = unix.MSG_CMSG_CLOEXEC
)

func acceptSocket(fd int) (int, unix.Sockaddr, error) { return unix.Accept4(fd, birthFlags) }

// PeerCred is not supported: x/sys/unix has no call for it on this system.
func PeerCred(int) (pid, uid, gid int, err error) { return 0, 0, 0, errors.ErrUnsupported }

// PeerGroups is not supported, as PeerCred.
func PeerGroups(int) ([]int, error) { return nil, errors.ErrUnsupported }
