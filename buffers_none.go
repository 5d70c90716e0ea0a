//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock

import "errors"

// Never reached, as all of unsupported.go.

func writeVector(int, [][]byte) (int, error) { return 0, errors.ErrUnsupported }
func setBufferSize(int, half, int) error     { return errors.ErrUnsupported }
