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
		// Until the file has its owner and its mode, it admits its first owner only: a
		// connect that other bits admit may succeed later, because the kernel checks them
		// before it looks whether the socket listens. If this process is killed meanwhile,
		// the owner can still probe the file, if Mode lets it write.
		//
		// Linux and FreeBSD 15 give the file the permissions of the socket, less the umask.
		// Other kernels refuse fchmod: there, the bits may be wider until they are set.
		err := os.NewSyscallError("fchmod", unix.Fchmod(fd, uint32(*o.Mode&0o700)))
		if err != nil && sys.AbstractNames {
			return nil, err
		}
	}
	if o.ReplaceStale && !isAbstract(name) {
		return o.replace(fd, name, listen)
	}
	return o.create(fd, name, listen)
}

// create binds fd to name, gives the new file its owner and its mode, and calls listen.
func (o *Options) create(fd int, name string, listen func() error) (*File, error) {
	info, err := os.Lstat(name)
	if err == nil && info.Mode().Type() == fs.ModeSymlink { // macOS and NetBSD would bind its target
		return nil, fmt.Errorf("%w: %w", errInUse, errLink)
	}
	if err := sys.Bind(fd, name); err != nil {
		return nil, err
	}
	file := FileOf(-1, name)
	err = o.apply(file)
	if err == nil {
		err = listen()
	}
	if err != nil {
		file.unlink()
		return nil, err
	}
	return file, nil
}

// apply gives the file its owner and its mode. If nothing has to be set, there need not be
// a file. The order matters: see Bind.
func (o *Options) apply(f *File) error {
	switch {
	case o.Mode == nil && o.Owner == nil:
		return nil
	case f == nil:
		return errReplaced
	}
	return f.with(func(dir int, path string, flags int) error {
		if o.Mode != nil {
			if err := removeACL(f.path, path); err != nil {
				return err
			}
		}
		if o.changesOwner(f.info) {
			uid, gid := o.Owner.UID, o.Owner.GID
			err := sys.Repeat("chown", func() error { return unix.Fchownat(dir, path, uid, gid, flags) })
			if err != nil {
				return fmt.Errorf("cannot set the owner to %d:%d: %w", uid, gid, err)
			}
		}
		if o.Mode == nil || f.info.Mode().Perm() == *o.Mode {
			return nil
		}
		perm := uint32(*o.Mode)
		return sys.Repeat("chmod", func() error { return unix.Fchmodat(dir, path, perm, flags) })
	})
}

// changesOwner reports whether Owner differs from that of the file.
func (o *Options) changesOwner(info fs.FileInfo) bool {
	stat := info.Sys().(*syscall.Stat_t)
	return o.Owner != nil && (o.Owner.UID != -1 && uint32(o.Owner.UID) != stat.Uid ||
		o.Owner.GID != -1 && uint32(o.Owner.GID) != stat.Gid)
}

const (
	// closing is how long replace waits for a socket that is being closed: a child process
	// between fork and exec holds the sockets of its parent.
	closing = 50 * time.Millisecond

	// unlockedPause is much longer than a process takes to probe, remove and bind, or to
	// bind and listen.
	unlockedPause = 50 * time.Millisecond
)

// replace is Bind for a name that may have a stale file. It holds the directory's lock until
// the socket listens: on some kernels a socket that is bound, but does not listen yet, looks
// stale. Other processes need the lock, so it comes after the wait for a socket that is being
// closed. A link is not followed: its target may be on a file system that does not answer.
func (o *Options) replace(fd int, name string, listen func() error) (*File, error) {
	end := time.Now().Add(closing)
	for FileOf(-1, name) != nil && probe(unix.SOCK_DGRAM, name) == errBound && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	lock := lockDirOf(name, time.Now().Add(time.Second+rand.N(time.Second)))
	defer lock.Close()
	if err := removeStale(name, lock != nil); err != nil {
		return nil, fmt.Errorf("%w: %w", errInUse, err)
	}
	file, err := o.create(fd, name, listen)
	if err != nil {
		return nil, err
	}
	// A process without the lock may remove the file, if it has probed before this
	// bind, or before this listen. Then that process wins.
	if lock == nil {
		time.Sleep(unlockedPause)
	}
	if file == nil || !file.isOwn() {
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
		return errLink
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("existing file is not a socket")
	}
	err = checkStale(name)
	if err == nil && !locked {
		// It may be the socket of a process that is between bind and listen.
		time.Sleep(unlockedPause)
		err = checkStale(name)
	}
	if err != nil {
		return err
	}
	root, err := os.Lstat("/") // what serves the root of a container serves no other kernel
	if kind := sharedFileSystem(name); kind != "" && (err != nil || device(root) != device(info)) {
		const uncertain = "cannot tell on %s whether a server is listening; remove the file if none is"
		return fmt.Errorf(uncertain, kind)
	}
	if !unchanged(name, info) {
		return errors.New("another process has replaced the socket file")
	}
	return unlink(name)
}

var (
	errInUse     = os.NewSyscallError("bind", unix.EADDRINUSE)
	errLink      = errors.New("existing file is a symbolic link")
	errBound     = errors.New("a process has the socket open")
	errListening = errors.New("a server is listening on the socket")
	errReplaced  = fmt.Errorf("%w: the socket file has been removed or replaced", errInUse)
)

// checkStale returns nil if no socket is bound to the socket file called name: if a datagram
// and a stream socket both get ECONNREFUSED. Most kernels return it for the datagram
// socket only if no socket is bound, and a bound one does not notice. gVisor always returns
// it. There, the stream socket gives a listening one a connection that ends at once, so it
// is not used repeatedly. The stream socket alone is not enough: macOS and the BSDs return
// ECONNREFUSED also if the backlog is full.
func checkStale(name string) error {
	if err := probe(unix.SOCK_DGRAM, name); err != nil {
		return err
	}
	return probe(unix.SOCK_STREAM, name)
}

// probe connects a socket of the given type to name. It returns nil if that is refused.
func probe(socketType int, name string) error {
	fd, err := sys.SocketOf(socketType)
	if err == nil {
		err = sys.Connect(fd, name)
		sys.Close(fd)
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	case socketType == unix.SOCK_DGRAM && (err == nil || errors.Is(err, unix.EPROTOTYPE)):
		return errBound
	case err == nil || err == sys.ErrWouldBlock:
		return errListening
	}
	return fmt.Errorf("cannot probe the existing socket: %w", err)
}

// device returns the device of a file.
func device(info fs.FileInfo) uint64 { return uint64(info.Sys().(*syscall.Stat_t).Dev) }

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
	fd   int // of an adopted socket, which may not be bound to the file; otherwise -1
}

// FileOf returns the socket file at path, nil if there is none or path is an abstract name.
// If fd is an adopted socket whose name is path, the methods ask the kernel whether fd is
// bound to the file. If the file has just been bound, fd is -1.
func FileOf(fd int, path string) *File {
	if !strings.HasPrefix(path, "/") {
		return nil // a chdir may have changed the meaning of a relative path
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return nil
	}
	return &File{path, info, fd}
}

// isOwn reports whether the file that is at the path now is the one that the socket is bound
// to. If the kernel cannot tell, the file that was at the path when the socket was adopted
// counts as its own.
func (f *File) isOwn() bool {
	info, err := os.Lstat(f.path)
	if err != nil {
		return false
	}
	if f.fd >= 0 {
		if bound, known := isBoundTo(f.fd, info); known {
			return bound
		}
	}
	return os.SameFile(f.info, info)
}

// Remove removes the file if it is still there, and no other file at its path. It
// waits at most a second for another process that is replacing the file.
func (f *File) Remove() error {
	if f == nil {
		return nil
	}
	defer lockDirOf(f.path, time.Now().Add(time.Second)).Close()
	return f.unlink()
}

// unlink removes the file if it is still there.
func (f *File) unlink() error {
	if f == nil || !f.isOwn() {
		return nil
	}
	return unlink(f.path)
}

// lockDirOf locks the directory of an absolute path against other processes that
// replace or remove socket files there, until the result is closed. It waits until giveUp
// only, and returns nil then: any user who can read the directory can hold the lock. The
// kernel releases it when the process dies.
func lockDirOf(path string, giveUp time.Time) *os.File {
	// filepath.Dir would resolve dot-dot lexically, which is another directory behind a
	// symbolic link.
	dir, err := os.Open(path[:strings.LastIndexByte(path, '/')+1])
	if err != nil {
		return nil
	}
	lock := func() error { return unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := sys.Repeat("flock", lock)
		if err == nil {
			return dir
		}
		if err != sys.ErrWouldBlock || time.Now().After(giveUp) {
			dir.Close()
			return nil
		}
		time.Sleep(rand.N(pause))
	}
}

// unlink removes a file, if it exists. os.Remove would also remove an empty directory.
func unlink(name string) error {
	err := sys.Repeat("unlink", func() error { return unix.Unlink(name) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
