//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// bind binds fd to name, and makes the socket file as the options want it.
func (config *listenConfig) bind(fd int, name string) (*socketFile, error) {
	if config.mode != nil {
		if err := narrow(fd, *config.mode); err != nil {
			return nil, err
		}
	}
	err := bindSocket(fd, name)
	if config.replaceStale && name[0] != 0 && errors.Is(err, unix.EADDRINUSE) {
		err = replaceStale(fd, name)
	}
	if err != nil {
		return nil, err
	}
	file, err := statSocketFile(name)
	if err != nil {
		if config.mode == nil && !config.unlinkOnClose {
			err = nil // removed at once, which is no concern of this Listen
		}
		return nil, err
	}
	if config.mode != nil && file.info.Mode().Perm() != *config.mode {
		if err := chmod(name, *config.mode); err != nil {
			file.unlink()
			return nil, os.NewSyscallError("chmod", err)
		}
	}
	return file, nil
}

// replaceStale binds fd to name, where a file is, if that is a stale socket's.
func replaceStale(fd int, name string) error {
	// From the question to the bind, no other may ask: it would hear of the
	// same stale socket, and remove what is bound here in between.
	defer lockDir(filepath.Dir(name))()
	if info, err := os.Lstat(name); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("%w: the file there is no socket", os.NewSyscallError("bind", unix.EADDRINUSE))
		}
		if !stale(name) {
			return os.NewSyscallError("bind", unix.EADDRINUSE)
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return bindSocket(fd, name)
}

// stale reports whether no open socket is bound to the file called name.
//
// It asks with a datagram socket: the kernel looks for the socket bound to the
// file first, and finds that it is of another kind only if there is one. So the
// answer does not depend on the backlog, which may be full, nor on whether the
// other listens yet; and the other does not hear of it.
func stale(name string) bool {
	fd, err := socket(unix.SOCK_DGRAM)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	for {
		if err := connect(fd, name); err != unix.EINTR {
			return err == unix.ECONNREFUSED || err == unix.ENOENT
		}
	}
}

// lockDir keeps those who replace or remove socket files in dir from each
// other, until the function that it returns is called. The kernel lets go of
// the lock when a process dies. Whoever may read the directory may hold it,
// so it is waited for no longer than a user may wait; with some chance in when
// that ends, lest several who gave up together replace the same file.
func lockDir(dir string) (unlock func()) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	giveUp := time.Now().Add(time.Second + rand.N(time.Second))
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(giveUp) {
			break
		}
		time.Sleep(rand.N(pause))
	}
	return func() { unix.Close(fd) }
}
