//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
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
	if config.replaceStale && name[0] != 0 {
		err = replaceStale(fd, name, err)
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

// replaceStale goes on where a bind of fd to name ended with err: if a file was
// in the way, and it is a stale socket's, it is replaced.
func replaceStale(fd int, name string, err error) error {
	// From the question to the bind, no other may ask: it would hear of the
	// same stale socket, and remove what is bound here in between.
	patience := time.Second + rand.N(time.Second) // not all at the same moment
	switch {
	case err == nil:
		patience = 0 // it is only to know whether there are others
	case !errors.Is(err, unix.EADDRINUSE):
		return err
	}
	unlock, alone := lockDir(dirOf(name), patience)
	if err != nil {
		alone = false // there was a file to ask about
		err = replaceFile(fd, name)
	}
	unlock()
	if err != nil || alone {
		return err
	}
	// Another that goes without the lock may have asked before this bind, and
	// remove the file yet: then it is the one that wins.
	file, err := statSocketFile(name)
	time.Sleep(unlockedPause)
	if err != nil || !file.stillThere() {
		return os.NewSyscallError("bind", unix.EADDRINUSE)
	}
	return nil
}

// unlockedPause is much longer than it takes to ask, to remove and to bind.
const unlockedPause = 50 * time.Millisecond

// replaceFile binds fd to name after it has removed a stale socket's file there.
func replaceFile(fd int, name string) error {
	if info, err := os.Lstat(name); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("%w: the file there is no socket", os.NewSyscallError("bind", unix.EADDRINUSE))
		}
		answer, err := ask(name)
		if err != nil {
			return err
		}
		switch answer {
		case unix.ECONNREFUSED:
			if err := unlink(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		case unix.ENOENT: // removed meanwhile
		default:
			return os.NewSyscallError("bind", unix.EADDRINUSE)
		}
	}
	return bindSocket(fd, name)
}

// ask asks for the socket that is bound to the file called name. The answer is
// ECONNREFUSED if no open one is.
//
// It asks with a datagram socket: the kernel looks for the socket bound to the
// file first, and finds that it is of another kind only if there is one. So the
// answer does not depend on the backlog, which may be full, nor on whether the
// other listens yet; and the other does not hear of it.
func ask(name string) (answer, err error) {
	fd, err := socket(unix.SOCK_DGRAM)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for {
		if answer := connect(fd, name); answer != unix.EINTR {
			return answer, nil
		}
	}
}

// unlink removes a file. os.Remove would remove an empty directory, too.
func unlink(name string) error {
	for {
		if err := unix.Unlink(name); err != unix.EINTR {
			return os.NewSyscallError("unlink", err)
		}
	}
}

// lockDir keeps those who replace or remove socket files in dir from each
// other, until the function that it returns is called. The kernel lets go of
// the lock when a process dies. Whoever may read the directory may hold it, so
// it is not waited for beyond patience. It returns whether it got the lock.
func lockDir(dir string, patience time.Duration) (unlock func(), locked bool) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}, false
	}
	giveUp := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(giveUp) {
			break
		}
		time.Sleep(rand.N(pause))
	}
	return func() {
		_ = unix.Flock(fd, unix.LOCK_UN) // a fork under way may have the descriptor, too
		unix.Close(fd)
	}, err == nil
}
