//go:build !linux

package zerocopy

import "syscall"

// Available reports whether the package copies anything on this system.
const Available = false

func kindOf(int) Kind { return Unsupported }

// SendFile copies nothing.
func SendFile(dst, src syscall.RawConn, limit int64) (n int64, err error) {
	return 0, ErrRefused
}

// Splice copies nothing.
func Splice(dst, src syscall.RawConn, limit int64) (n int64, rest []byte, err error) {
	return 0, nil, ErrRefused
}
