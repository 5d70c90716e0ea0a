package sys

import "golang.org/x/sys/unix"

const MaxPathLen = 103 // the kernel needs room for a NUL after it

func writev(fd int, v [][]byte) (int, error) { return unix.Writev(fd, v) }
