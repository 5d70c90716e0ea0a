//go:build linux || dragonfly || freebsd

package sys

import "golang.org/x/sys/unix"

const (
	acceptTrap  = unix.SYS_ACCEPT4
	acceptFlags = sockFlags
)
