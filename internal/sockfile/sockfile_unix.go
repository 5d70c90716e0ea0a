//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// Bind binds fd to name, gives the socket file its mode and owner, and calls listen,
// which makes fd a listening socket. It returns nil for an abstract name, which has no
// file. If it fails, no file of its own is left.
func (o *Options) Bind(fd int, name string, listen func() error) (*File, error) {
	if o.Mode != nil {
		perm := *o.Mode
		if o.Owner != nil {
			// A connect that the first group's bits admit may succeed later: the kernel
			// checks them before it looks whether the socket listens. If this process is
			// killed now, the owner can still probe the file, if perm lets it write.
			perm &= 0o700
		}
		if err := restrictMode(fd, perm); err != nil {
			return nil, err
		}
	}
	if o.ReplaceStale && !isAbstract(name) {
		return o.replace(fd, name, listen)
	}
	if err := sys.Bind(fd, name); err != nil {
		return nil, err
	}
	return o.prepare(fd, name, listen)
}

// prepare gives the file at name, which the bind of fd has created, its owner and its
// mode, and calls listen. If nothing has to be set, there need not be a file.
func (o *Options) prepare(fd int, name string, listen func() error) (*File, error) {
	file := FileOf(fd, name)
	if file == nil && (o.Mode != nil || o.Owner != nil) {
		return nil, errReplaced
	}
	var err error
	if o.Owner != nil {
		err = chown(name, file.info, o.Owner.UID, o.Owner.GID)
		if err != nil {
			err = fmt.Errorf("cannot set the owner to %d:%d: %w", o.Owner.UID, o.Owner.GID, err)
		}
	}
	if err == nil && o.Mode != nil && file.info.Mode().Perm() != *o.Mode {
		err = chmod(name, file.info, *o.Mode)
	}
	if err == nil {
		err = listen()
	}
	if err != nil {
		file.unlink()
		return nil, err
	}
	return file, nil
}

// closing is how long replace waits for a socket that is being closed: a child process
// between fork and exec holds the sockets of its parent.
const closing = 50 * time.Millisecond

// replace is Bind for a name that may have a stale file. It waits without the directory's
// lock, which other processes need.
func (o *Options) replace(fd int, name string, listen func() error) (*File, error) {
	giveUp := time.Now().Add(time.Second + rand.N(time.Second))
	for limit := (time.Time{}); ; {
		file, err := o.replaceNow(fd, name, listen, giveUp)
		if !errors.Is(err, errBound) {
			return file, err
		}
		if limit.IsZero() {
			limit = time.Now().Add(closing)
		}
		if !closes(name, limit) {
			return nil, err
		}
	}
}

// closes waits until limit for the socket that is bound to name to be closed.
func closes(name string, limit time.Time) bool {
	for time.Now().Before(limit) {
		time.Sleep(time.Millisecond)
		if err := probeDatagram(name); err != errBound {
			return err == nil || errors.Is(err, fs.ErrNotExist)
		}
	}
	return false
}

// unlockedPause is much longer than a process takes to probe, remove and bind, or
// to bind and listen.
const unlockedPause = 50 * time.Millisecond

// replaceNow is replace without a wait for a socket that is being closed. Until giveUp it
// waits for the directory's lock, and holds it until the socket listens: on some kernels a
// socket that is bound, but does not listen yet, looks stale.
func (o *Options) replaceNow(fd int, name string, listen func() error, giveUp time.Time) (*File, error) {
	unlock, locked := lockDirOf(name, giveUp)
	defer unlock()
	if err := removeStale(name, locked); err != nil {
		return nil, fmt.Errorf("%w: %w", errInUse, err)
	}
	if err := sys.Bind(fd, name); err != nil {
		return nil, err
	}
	file, err := o.prepare(fd, name, listen)
	if err != nil {
		return nil, err
	}
	// A process without the lock may remove the file, if it has probed before this
	// bind, or before this listen. Then that process wins.
	if !locked {
		time.Sleep(unlockedPause)
	}
	if file == nil || !file.exists() {
		return nil, errReplaced
	}
	return file, nil
}

// removeStale removes the file called name if it is that of a closed socket. It returns an
// error if the file stays. A file that does not exist, or cannot be examined, is left to
// bind(2).
func removeStale(name string, locked bool) error {
	info, err := os.Lstat(name)
	switch {
	case err != nil:
		return nil
	case info.Mode().Type() == fs.ModeSymlink:
		return errors.New("existing file is a symbolic link")
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("existing file is not a socket")
	}
	err = probe(name)
	if err == nil && !locked {
		// It may be the socket of a process that is between bind and listen.
		time.Sleep(unlockedPause)
		err = probe(name)
	}
	switch kind := sharedFileSystem(name); {
	case err != nil:
		return err
	case kind != "" && !onRootDevice(info):
		return fmt.Errorf("cannot tell on %s whether a server is listening; remove the file if none is", kind)
	case !unchanged(name, info):
		return errors.New("another process has replaced the socket file")
	}
	if err := unlink(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var (
	errInUse     = os.NewSyscallError("bind", unix.EADDRINUSE)
	errBound     = errors.New("a process has the socket open")
	errListening = errors.New("a server is listening on the socket")
)

// probe returns nil if no socket is bound to the socket file called name: if a datagram
// and a stream socket both get ECONNREFUSED. Most kernels return it for the datagram
// socket only if no socket is bound. gVisor always returns it. There, the stream socket
// gives a listening one a connection that ends at once, so it is not used repeatedly. The
// stream socket alone is not enough: macOS and the BSDs return ECONNREFUSED also if the
// backlog is full.
func probe(name string) error {
	if err := probeDatagram(name); err != nil {
		return err
	}
	err := connect(unix.SOCK_STREAM, name)
	if err == nil || err == sys.ErrWouldBlock {
		return errListening
	}
	return probeError(err)
}

// probeDatagram is the part of probe that a bound stream socket does not notice. It returns
// errBound if there is one.
func probeDatagram(name string) error {
	err := connect(unix.SOCK_DGRAM, name)
	if err == nil || errors.Is(err, unix.EPROTOTYPE) {
		return errBound
	}
	return probeError(err)
}

func probeError(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("cannot probe the existing socket: %w", err)
}

// connect connects a new socket of the given type to name, and closes it.
func connect(socketType int, name string) error {
	fd, err := sys.SocketOf(socketType)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return sys.Connect(fd, name)
}

// onRootDevice reports whether a file is on the device of "/". What serves the root of a
// container serves it alone.
func onRootDevice(info fs.FileInfo) bool {
	root, err := os.Stat("/")
	return err == nil && root.Sys().(*syscall.Stat_t).Dev == info.Sys().(*syscall.Stat_t).Dev
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
	if err != nil || info.Mode().Type() != fs.ModeSocket || !isBoundTo(fd, info) {
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
	unlock, _ := lockDirOf(f.path, time.Now().Add(time.Second))
	defer unlock()
	return f.unlink()
}

// unlink removes the file if it is still there.
func (f *File) unlink() error {
	if f == nil || !f.exists() {
		return nil
	}
	if err := unlink(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (f *File) exists() bool {
	info, err := os.Lstat(f.path)
	return err == nil && os.SameFile(f.info, info)
}

// lockDirOf locks the directory of an absolute path against other processes that
// replace or remove socket files there. It waits until giveUp only: any user who can
// read the directory can hold the lock.
func lockDirOf(path string, giveUp time.Time) (unlock func(), locked bool) {
	// filepath.Dir would resolve dot-dot lexically, which is another directory behind a
	// symbolic link.
	dir := path[:strings.LastIndexByte(path, '/')+1]
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		unlock, err := lockDir(dir)
		if err == nil {
			return unlock, true
		}
		if err != sys.ErrWouldBlock || time.Now().After(giveUp) {
			return func() {}, false
		}
		time.Sleep(rand.N(pause))
	}
}

// errReplaced is the error of chmod and chown if the socket file is not the expected one.
var errReplaced = fmt.Errorf("%w: the socket file has been removed or replaced, or cannot be examined", errInUse)

// chmod sets the permissions of the socket file called name if it is the file that want
// describes. It does not follow a symbolic link.
func chmod(name string, want fs.FileInfo, perm fs.FileMode) error {
	return withFile(name, want, func(dir int, path string, flags int) error {
		return os.NewSyscallError("chmod", unix.Fchmodat(dir, path, uint32(perm), flags))
	})
}

// chown is chmod for the owner and the group. -1 leaves one unchanged.
func chown(name string, want fs.FileInfo, uid, gid int) error {
	return withFile(name, want, func(dir int, path string, flags int) error {
		return os.NewSyscallError("chown", unix.Fchownat(dir, path, uid, gid, flags))
	})
}

// unlink removes a file. os.Remove would also remove an empty directory.
func unlink(name string) error {
	return sys.Repeat("unlink", func() error { return unix.Unlink(name) })
}

// lockDir locks the directory dir against other callers of lockDir, in any process, until
// the function that it returns is called; the kernel releases the lock when the process
// dies. It returns ErrWouldBlock if the lock is held.
func lockDir(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	if err := sys.Repeat("flock", func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return func() {
		_ = unix.Flock(fd, unix.LOCK_UN) // a child being forked may have the descriptor, too
		unix.Close(fd)
	}, nil
}
