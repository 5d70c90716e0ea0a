//go:build !(linux || darwin || freebsd)

package sys

import "errors"

// PeerCred is not supported: x/sys/unix has no call for it on DragonFly, NetBSD and OpenBSD.
func PeerCred(int) (pid, uid, gid int, err error) { return 0, 0, 0, errors.ErrUnsupported }

// PeerGroups is not supported, as PeerCred.
func PeerGroups(int) ([]int, error) { return nil, errors.ErrUnsupported }
