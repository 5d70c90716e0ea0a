// Package sockfile manages the file that binding a Unix socket creates: its mode
// and owner, the replacement of a stale one, and its removal.
package sockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
)

// Options say how to create a socket file.
type Options struct {
	Mode         *fs.FileMode // nil: as the umask leaves it
	Owner        *Owner       // nil: the process's
	ReplaceStale bool
}

// An Owner is a user and a group. -1 stands for no change.
type Owner struct{ UID, GID int }

// Check returns an error if a socket called name cannot have the options.
func (o *Options) Check(name string) error {
	switch {
	case isAbstract(name) && (o.Mode != nil || o.Owner != nil):
		return errors.New("an abstract name has no owner and no permissions")
	case o.Mode != nil && *o.Mode&^fs.ModePerm != 0:
		return fmt.Errorf("mode %#o: only permission bits are allowed, at most %#o", uint32(*o.Mode), fs.ModePerm)
	case o.Owner != nil && (!validID(o.Owner.UID) || !validID(o.Owner.GID)):
		return fmt.Errorf("owner %d:%d: an ID must be -1 (no change) or from 0 to %d", o.Owner.UID, o.Owner.GID, uint32(maxID))
	}
	return nil
}

// maxID is the largest user or group ID. The next number is -1 as a uint32.
const maxID = math.MaxUint32 - 1

func validID(id int) bool { return id >= -1 && int64(id) <= maxID }

func isAbstract(name string) bool { return name[0] == 0 }
