// Package sockfile manages the file that binding a Unix socket creates: its mode
// and owner, the replacement of a stale one, and its removal.
package sockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/go-unixsock/unixsock/internal/sys"
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

// Listen binds fd to name, gives the socket file its mode and owner, and makes fd
// a listening socket. It returns nil for an abstract name, which has no file. If
// it fails, no file of its own is left.
func (o *Options) Listen(fd int, name string, backlog int) (*File, error) {
	if o.Mode != nil {
		perm := *o.Mode
		if o.Owner != nil {
			// A connect that the first group's bits admit may succeed later: the kernel
			// checks them before it looks whether the socket listens. The owner's bits
			// stay, so that the next process can probe the file if this one is killed.
			perm &= 0o700
		}
		if err := sys.RestrictMode(fd, perm); err != nil {
			return nil, err
		}
	}
	if !o.ReplaceStale || isAbstract(name) {
		if err := sys.Bind(fd, name); err != nil {
			return nil, err
		}
		return o.listen(fd, name, backlog)
	}
	// The lock is held until the socket listens: on some kernels a socket that is
	// bound, but does not listen yet, looks stale.
	unlock, locked := lockDirOf(name, time.Second+rand.N(time.Second))
	defer unlock()
	if err := bindOrReplace(fd, name, locked); err != nil {
		return nil, err
	}
	file, err := o.listen(fd, name, backlog)
	if err != nil {
		return nil, err
	}
	// A process without the lock may remove the file, if it has probed before this
	// bind, or before this listen. Then that process wins.
	if !locked {
		time.Sleep(unlockedPause)
	}
	if file == nil || !file.exists() {
		return nil, sys.ErrReplaced
	}
	return file, nil
}

// listen makes fd listen once the file at name, which the bind of fd has created, has
// its owner and its mode. If nothing has to be set, there need not be a file.
func (o *Options) listen(fd int, name string, backlog int) (*File, error) {
	file := FileOf(fd, name)
	if file == nil && (o.Mode != nil || o.Owner != nil) {
		return nil, sys.ErrReplaced
	}
	var err error
	if o.Owner != nil {
		err = sys.Chown(name, file.info, o.Owner.UID, o.Owner.GID)
		if err != nil {
			err = fmt.Errorf("cannot set the owner to %d:%d: %w", o.Owner.UID, o.Owner.GID, err)
		}
	}
	if err == nil && o.Mode != nil && file.info.Mode().Perm() != *o.Mode {
		err = sys.Chmod(name, file.info, *o.Mode)
	}
	if err == nil {
		err = sys.Listen(fd, backlog)
	}
	if err != nil {
		file.unlink()
		return nil, err
	}
	return file, nil
}

// unlockedPause is much longer than a process takes to probe, remove and bind, or
// to bind and listen.
const unlockedPause = 50 * time.Millisecond

// bindOrReplace binds fd to name, and replaces the file of a stale socket.
func bindOrReplace(fd int, name string, locked bool) error {
	inUse := sys.Bind(fd, name)
	if !errors.Is(inUse, sys.EADDRINUSE) {
		return inUse
	}
	info, err := os.Lstat(name)
	switch {
	case err != nil:
		return sys.Bind(fd, name) // removed in the meantime, or it fails again
	case info.Mode().Type() == fs.ModeSymlink:
		return fmt.Errorf("%w: existing file is a symbolic link", inUse)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: existing file is not a socket", inUse)
	}
	stale, err := sys.IsStale(name)
	if stale && !locked {
		// Without the lock it may be the socket of a process that is between bind
		// and listen.
		time.Sleep(unlockedPause)
		stale, err = sys.IsStale(name)
	}
	if err != nil {
		return err
	}
	if !stale || !unchanged(name, info) {
		return fmt.Errorf("%w: existing socket may be in use", inUse)
	}
	if err := sys.Unlink(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return sys.Bind(fd, name)
}

// unchanged reports whether the file called name is still the one that info
// describes. The time distinguishes a new file from one whose inode it reuses.
func unchanged(name string, info fs.FileInfo) bool {
	now, err := os.Lstat(name)
	return err == nil && os.SameFile(info, now) && info.ModTime().Equal(now.ModTime())
}

// A File is a socket file. The socket that is bound to it keeps its inode from
// being reused. The methods of a nil File do nothing.
type File struct {
	path string
	info fs.FileInfo
}

// FileOf returns the file that fd is bound to at path. It returns nil if path is relative or
// an abstract name, or if the file was removed or replaced, or cannot be examined. Only
// Linux 6 and later is asked which file fd is bound to. Elsewhere, any socket file passes.
func FileOf(fd int, path string) *File {
	if !strings.HasPrefix(path, "/") {
		return nil // a chdir may have changed its meaning
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket || !sys.IsBoundTo(fd, info) {
		return nil
	}
	return &File{path, info}
}

// Remove removes the file if it is still there, and no other file at its path. It
// waits at most a second for another process that is replacing the file.
func (f *File) Remove() error {
	if f == nil {
		return nil
	}
	unlock, _ := lockDirOf(f.path, time.Second)
	defer unlock()
	return f.unlink()
}

// unlink removes the file if it is still there.
func (f *File) unlink() error {
	if f == nil || !f.exists() {
		return nil
	}
	if err := sys.Unlink(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *File) exists() bool {
	info, err := os.Lstat(f.path)
	return err == nil && os.SameFile(f.info, info)
}

// lockDirOf locks the directory of an absolute path against other processes that
// replace or remove socket files there. It gives up after timeout: any user who can
// read the directory can hold the lock.
func lockDirOf(path string, timeout time.Duration) (unlock func(), locked bool) {
	// filepath.Dir would resolve dot-dot lexically, which is another directory behind a
	// symbolic link.
	dir := path[:strings.LastIndexByte(path, '/')+1]
	giveUp := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		unlock, err := sys.LockDir(dir)
		if err == nil {
			return unlock, true
		}
		if err != sys.ErrWouldBlock || time.Now().After(giveUp) {
			return func() {}, false
		}
		time.Sleep(rand.N(pause))
	}
}
