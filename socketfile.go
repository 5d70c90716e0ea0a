package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Mode sets the permission bits of the socket file to exactly perm, whatever
// the umask, which is not touched: it is the whole process's. On Linux the file
// is never wider than perm, not for a moment; on macOS and the BSDs, which give
// no means for that, it may be before anyone can connect. No one can connect
// before the bits are right. To connect takes write permission.
//
// It is an error of [Listen] if perm has other bits than those of
// [fs.ModePerm], or if the path is an abstract name, which has no permissions.
func Mode(perm fs.FileMode) ListenOption {
	return func(c *listenConfig) { c.mode = &perm }
}

// ReplaceStale lets [Listen] replace a socket file that no socket answers for,
// as a process that was killed leaves one behind. It asks the socket, and never
// replaces the file of one that lives, its backlog full or not; a file that is
// no socket; or a symbolic link: the error then is [syscall.EADDRINUSE], as it
// is where this process may not ask.
//
// Of many that listen with ReplaceStale on one stale path, one wins. They
// exclude each other by a lock on the directory. Where the directory cannot be
// read, or somebody holds the lock for longer than a second or two, which any
// user may who can read it, Listen goes on without. Lest another that does so
// has won, it looks once more 50 ms after it has bound.
func ReplaceStale() ListenOption {
	return func(c *listenConfig) { c.replaceStale = true }
}

// UnlinkOnClose makes [Listener.Close] remove the socket file, if what is there
// is still this listener's own. Close waits a second at most for who holds the
// lock that [ReplaceStale] takes. On an abstract name, which goes with its
// socket, it has no effect.
func UnlinkOnClose() ListenOption {
	return func(c *listenConfig) { c.unlinkOnClose = true }
}

// checkMode returns what is wrong with the mode asked for, if anything.
func (config *listenConfig) checkMode(name string) error {
	switch {
	case config.mode == nil:
		return nil
	case name[0] == 0:
		return fmt.Errorf("mode %#o: an abstract name has no permissions", *config.mode)
	case *config.mode&^fs.ModePerm != 0:
		return fmt.Errorf("mode %#o: it must have permission bits only, at most %#o", uint32(*config.mode), fs.ModePerm)
	}
	return nil
}

// A socketFile is the file that a bind made, nil for an abstract name. The bound
// socket keeps the file's inode from being used for another.
type socketFile struct {
	path string
	info fs.FileInfo
}

func statSocketFile(name string) (*socketFile, error) {
	if name[0] == 0 {
		return nil, nil
	}
	info, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	return &socketFile{name, info}, nil
}

// dirOf returns the directory of an absolute path. filepath.Dir would resolve
// dot-dot by the letter, which is another directory behind a symbolic link.
func dirOf(path string) string {
	return path[:strings.LastIndexByte(path, '/')+1]
}

// unlink removes the file if it is still there.
func (f *socketFile) unlink() error {
	if f == nil {
		return nil
	}
	unlock, _ := lockDir(dirOf(f.path), time.Second)
	defer unlock()
	if !f.stillThere() {
		return nil
	}
	if err := unlink(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *socketFile) stillThere() bool {
	info, err := os.Lstat(f.path)
	return err == nil && os.SameFile(f.info, info)
}
