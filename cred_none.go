//go:build dragonfly || netbsd || openbsd

package unixsock

import "errors"

// peerCred cannot tell: x/sys/unix does not know the means of these kernels.
func peerCred(int) (Cred, error) { return Cred{}, errors.ErrUnsupported }
