package sys

import "golang.org/x/sys/unix"

const (
	acceptTrap  = unix.SYS_PACCEPT
	acceptFlags = 0 // not the flags, which come after it, but a signal mask
)
