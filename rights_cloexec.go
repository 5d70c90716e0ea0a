//go:build linux || dragonfly || freebsd || netbsd || openbsd

package unixsock

import "golang.org/x/sys/unix"

// receiveMessage is recvmsg(2); the descriptors that come are close-on-exec.
func receiveMessage(fd int, b, oob []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
	return max(n, 0), oobn, flags, err
}
