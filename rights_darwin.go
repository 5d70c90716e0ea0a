package unixsock

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveMessage is recvmsg(2); the descriptors that come are close-on-exec,
// and no fork of this process falls between their birth and that.
func receiveMessage(fd int, b, oob []byte) (n, oobn, flags int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	n, oobn, flags, _, err = unix.Recvmsg(fd, b, oob, 0)
	for _, received := range parseRights(oob[:oobn]) {
		unix.CloseOnExec(received)
	}
	return max(n, 0), oobn, flags, err
}
