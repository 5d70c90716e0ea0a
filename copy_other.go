//go:build !linux

package unixsock

import "io"

// kernelCopy copies nothing: this is for Linux only.
func kernelCopy(io.Writer, io.Reader) (n int64, over bool, err error) {
	return 0, false, nil
}
