//go:build !linux

package sys

import "errors"

// PeerPIDFD is not supported: only Linux has pidfds.
func PeerPIDFD(int) (int, error) { return -1, errors.ErrUnsupported }
