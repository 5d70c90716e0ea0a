//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sys"
)

// newDir returns a new directory whose path is short enough for socket files.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatalf("MkdirTemp: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newSocket returns a socket of the given type that is bound to name. It is closed at the
// end of the test.
func newSocket(t *testing.T, socketType int, name string) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, socketType, 0)
	if err != nil {
		t.Skipf("Socket of type %d: %v", socketType, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatalf("Bind: %v", err)
	}
	return fd
}

// newListener returns a listening stream socket at name.
func newListener(t *testing.T, name string) (fd int) {
	t.Helper()
	fd = newSocket(t, unix.SOCK_STREAM, name)
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatalf("Listen: %v", err)
	}
	return fd
}

// leaveStale leaves the file of a closed stream socket at name.
func leaveStale(t *testing.T, name string) {
	t.Helper()
	unix.Close(newSocket(t, unix.SOCK_STREAM, name))
}

// listen returns a function that makes fd a listening socket.
func listen(fd int) func() error { return func() error { return unix.Listen(fd, 64) } }

// replace listens at name with ReplaceStale.
func replace(t *testing.T, name string) (*File, error) {
	t.Helper()
	fd, err := sys.Socket()
	if err != nil {
		t.Fatalf("Socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	o := Options{ReplaceStale: true}
	return o.Bind(fd, name, listen(fd))
}

func TestReplaceStaleKeepsWhatIsInUse(t *testing.T) {
	for name, create := range map[string]func(t *testing.T, name string){
		"live stream listener": func(t *testing.T, name string) { newListener(t, name) },
		"full backlog": func(t *testing.T, name string) {
			newListener(t, name)
			for range 10 {
				fd, err := sys.Socket()
				if err != nil {
					t.Fatalf("Socket: %v", err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				if sys.Connect(fd, name) != nil {
					return
				}
			}
		},
		"live datagram socket": func(t *testing.T, name string) { newSocket(t, unix.SOCK_DGRAM, name) },
		"live seqpacket listener": func(t *testing.T, name string) {
			if err := unix.Listen(newSocket(t, unix.SOCK_SEQPACKET, name), 4); err != nil {
				t.Fatalf("Listen: %v", err)
			}
		},
		"regular file": func(t *testing.T, name string) {
			if err := os.WriteFile(name, []byte("precious"), 0o600); err != nil {
				t.Fatalf("WriteFile: %v", err)
			}
		},
		"directory": func(t *testing.T, name string) {
			if err := os.Mkdir(name, 0o700); err != nil {
				t.Fatalf("Mkdir: %v", err)
			}
		},
		"link to a stale socket": func(t *testing.T, name string) {
			leaveStale(t, name+"2")
			if err := os.Symlink(name+"2", name); err != nil {
				t.Fatalf("Symlink: %v", err)
			}
		},
		"dangling link": func(t *testing.T, name string) {
			if err := os.Symlink("nowhere", name); err != nil {
				t.Fatalf("Symlink: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(newDir(t), "s")
			create(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatalf("Lstat: %v", err)
			}
			if file, err := replace(t, path); file != nil || !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("Bind: got %v, %v, want EADDRINUSE", file, err)
			}
			if !unchanged(path, before) {
				t.Error("Bind has replaced the file, want it kept")
			}
		})
	}
}

func TestReplaceStaleOfAPathWithASlashAfterTheFileIsInUse(t *testing.T) {
	path := filepath.Join(newDir(t), "s")
	leaveStale(t, path)
	fd, err := sys.Socket()
	if err != nil {
		t.Fatalf("Socket: %v", err)
	}
	defer unix.Close(fd)
	if err := sys.Bind(fd, path+"/"); !errors.Is(err, unix.EADDRINUSE) {
		t.Skipf("bind to %s: %v", path+"/", err)
	}
	if file, err := replace(t, path+"/"); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("Bind with ReplaceStale at %s: got %v, %v; want EADDRINUSE", path+"/", file, err)
	}
}

func TestReplaceStaleReplacesADeadSocket(t *testing.T) {
	for name, socketType := range map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM} {
		path := filepath.Join(newDir(t), "s")
		unix.Close(newSocket(t, socketType, path))
		if file, err := replace(t, path); file == nil || err != nil {
			t.Errorf("Bind at the file of a closed %s socket: got %v, %v, want no error", name, file, err)
		}
	}
}

// skipUnlessBoundIsReported skips the test if the kernel does not say that a socket is bound
// to name: Bind does not wait then.
func skipUnlessBoundIsReported(t *testing.T, name string) {
	t.Helper()
	if probe(unix.SOCK_DGRAM, name) == nil {
		t.Skip("the kernel does not say whether a socket is bound")
	}
}

// oneOfFive calls f up to five times, until it returns nil. A busy machine may stop this
// process for longer than Bind waits.
func oneOfFive(t *testing.T, f func() error) {
	t.Helper()
	err := f()
	for range 4 {
		if err == nil {
			return
		}
		err = f()
	}
	if err != nil {
		t.Errorf("five times: %v", err)
	}
}

// TestReplaceStaleWaitsForASocketThatIsBeingClosed closes a socket 10 ms after Bind began,
// as a child process does that has inherited it and calls exec.
func TestReplaceStaleWaitsForASocketThatIsBeingClosed(t *testing.T) {
	oneOfFive(t, func() error {
		path := filepath.Join(newDir(t), "s")
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Fatalf("Socket: %v", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			t.Fatalf("Bind: %v", err)
		}
		time.AfterFunc(10*time.Millisecond, func() { unix.Close(fd) })
		if file, err := replace(t, path); file == nil || err != nil {
			return fmt.Errorf("Bind at a socket that is closed after 10 ms: got %v, %v, want no error", file, err)
		}
		return nil
	})
}

// TestReplaceStaleTakesAFileThatIsRemovedMeanwhile removes the file of a bound socket 10 ms
// after Bind began.
func TestReplaceStaleTakesAFileThatIsRemovedMeanwhile(t *testing.T) {
	oneOfFive(t, func() error {
		path := filepath.Join(newDir(t), "s")
		newSocket(t, unix.SOCK_STREAM, path)
		skipUnlessBoundIsReported(t, path)
		time.AfterFunc(10*time.Millisecond, func() { os.Remove(path) })
		if file, err := replace(t, path); file == nil || err != nil {
			return fmt.Errorf("Bind at a file that is removed after 10 ms: got %v, %v, want no error", file, err)
		}
		return nil
	})
}

// TestReplaceStaleWaitsWithoutTheLock takes the directory's lock again and again while Bind
// waits for a socket that stays open.
func TestReplaceStaleWaitsWithoutTheLock(t *testing.T) {
	path := filepath.Join(newDir(t), "s")
	newListener(t, path)
	skipUnlessBoundIsReported(t, path)
	oneOfFive(t, func() error {
		result := make(chan error, 1)
		go func() {
			_, err := replace(t, path)
			result <- err
		}()
		for longest, last := time.Duration(0), time.Now(); ; {
			if lock := lockDirOf(path, time.Time{}); lock != nil {
				longest, last = max(longest, time.Since(last)), time.Now()
				lock.Close()
			}
			select {
			case err := <-result:
				if !errors.Is(err, errBound) {
					return fmt.Errorf("Bind at a live socket: got %v, want %v", err, errBound)
				}
				if longest = max(longest, time.Since(last)); longest >= closing {
					return fmt.Errorf("lock while Bind waits: not free for %v, want less than %v", longest, closing)
				}
				return nil
			default:
			}
		}
	})
}

func TestReplaceStaleHasOneWinner(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	start := time.Now()
	defer func() {
		took := time.Since(start) / time.Duration(rounds)
		t.Logf("20 racers for a stale file: a round took %v", took)
		if took > 500*time.Millisecond {
			t.Errorf("20 racers for a stale file: a round took %v, want about 50 ms", took)
		}
	}()
	path := filepath.Join(newDir(t), "s")
	for range rounds {
		leaveStale(t, path)
		var racers sync.WaitGroup
		var sockets []int
		winners := make(chan *File, 20)
		for range cap(winners) {
			fd, err := sys.Socket()
			if err != nil {
				t.Fatalf("Socket: %v", err)
			}
			sockets = append(sockets, fd)
			racers.Go(func() {
				o := Options{ReplaceStale: true}
				switch file, err := o.Bind(fd, path, listen(fd)); {
				case err == nil:
					winners <- file
				case !errors.Is(err, syscall.EADDRINUSE):
					t.Errorf("Bind of a loser: got %v, want EADDRINUSE", err)
				}
			})
		}
		racers.Wait()
		if n := len(winners); n != 1 {
			t.Fatalf("20 racers for a stale file: %d winners, want 1", n)
		}
		if winner := <-winners; !winner.isOwn() {
			t.Fatal("the winner's file is gone")
		}
		sys.CloseAll(sockets)
		if err := os.Remove(path); err != nil {
			t.Fatalf("Remove: %v", err)
		}
	}
}

func TestReplaceStaleProceedsWithoutTheLock(t *testing.T) {
	dir := newDir(t)
	path := filepath.Join(dir, "s")
	lock := lockDirOf(path, time.Time{})
	if lock == nil {
		t.Fatal("lockDirOf: got no lock, want one")
	}
	defer lock.Close()
	leaveStale(t, path)
	start := time.Now()
	if file, err := replace(t, path); file == nil || err != nil {
		t.Errorf("Bind while another holds the lock: got %v, %v, want no error", file, err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("Bind while another holds the lock took %v, want at least a second", took)
	}
	if file, err := replace(t, path); file != nil || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Bind at a live socket without the lock: got %v, %v, want EADDRINUSE", file, err)
	}
}

// TestUnchangedNoticesAReusedInode replaces a file until the new one has its inode.
func TestUnchangedNoticesAReusedInode(t *testing.T) {
	path := filepath.Join(newDir(t), "s")
	leaveStale(t, path)
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatalf("Lstat: %v", err)
	}
	if !unchanged(path, info) {
		t.Error("a file compared with itself: changed, want unchanged")
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, past, past); err != nil { // as the old file with this inode
		t.Fatalf("Chtimes: %v", err)
	}
	if unchanged(path, info) {
		t.Error("a file with the same inode and another time: unchanged, want changed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if unchanged(path, info) {
		t.Error("a file that is gone: unchanged, want changed")
	}
}

func TestChangesOfAReplacedFileFail(t *testing.T) {
	path := filepath.Join(newDir(t), "s")
	leaveStale(t, path)
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatalf("Lstat: %v", err)
	}
	file := &File{path, info, -1}
	newSocket(t, unix.SOCK_STREAM, path+"2")
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatalf("Rename: %v", err)
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatalf("Lstat: %v", err)
	}
	mode := fs.FileMode(0o777)
	for _, path := range []string{path, path + "2"} { // replaced, and removed
		for name, o := range map[string]Options{"mode": {Mode: &mode}, "owner": {Owner: &Owner{1, 1}}} {
			if err := o.apply(&File{path, info, -1}); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s of the file that was at %s: got %v, want EADDRINUSE", name, path, err)
			}
		}
	}
	if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() {
		t.Errorf("the file that replaced it: got %v, %v, want the mode %v", after, err, before.Mode())
	}
	if err := file.Remove(); err != nil {
		t.Errorf("Remove of a file that was replaced: got %v, want no error", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file that replaced it: got %v, want it kept", err)
	}
}

func TestModeDoesNotFollowALink(t *testing.T) {
	dir := newDir(t)
	path, link := filepath.Join(dir, "s"), filepath.Join(dir, "link")
	leaveStale(t, path)
	if err := os.Symlink(path, link); err != nil {
		t.Fatalf("Symlink: %v", err)
	}
	info, err := os.Stat(link)
	if err != nil {
		t.Fatalf("Stat: %v", err)
	}
	mode := fs.FileMode(0o777)
	o := Options{Mode: &mode}
	if err := o.apply(&File{link, info, -1}); err == nil {
		t.Error("mode of a link: got no error, want one")
	}
}

func TestCheckRefusesOptions(t *testing.T) {
	mode := func(m fs.FileMode) *fs.FileMode { return &m }
	tooLarge := -2 // where an int is too small for it
	if strconv.IntSize == 64 {
		largest := uint64(maxID)
		tooLarge = int(largest + 1)
	}
	for name, test := range map[string]struct {
		options Options
		path    string
		ok      bool
	}{
		"none":                     {Options{}, "/s", true},
		"mode":                     {Options{Mode: mode(0o777)}, "/s", true},
		"mode with other bits":     {Options{Mode: mode(fs.ModeSticky | 0o600)}, "/s", false},
		"mode of an abstract name": {Options{Mode: mode(0o600)}, "\x00s", false},
		"no owner":                 {Options{Owner: &Owner{-1, -1}}, "/s", true},
		"owner below -1":           {Options{Owner: &Owner{-2, 0}}, "/s", false},
		"group above the maximum":  {Options{Owner: &Owner{0, tooLarge}}, "/s", false},
		"owner of an abstract":     {Options{Owner: &Owner{0, 0}}, "\x00s", false},
	} {
		if err := test.options.Check(test.path); (err == nil) != test.ok {
			t.Errorf("%s: got %v, want an error: %v", name, err, !test.ok)
		}
	}
}

func TestNilFileDoesNothing(t *testing.T) {
	var f *File
	if err := f.Remove(); err != nil {
		t.Errorf("Remove of a nil File: got %v, want no error", err)
	}
}

// TestModeWithoutTheFileFails has no file, as if it were removed just after bind(2).
func TestModeWithoutTheFileFails(t *testing.T) {
	mode := fs.FileMode(0o123)
	withMode := Options{Mode: &mode}
	if err := withMode.apply(nil); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("mode, no file: got %v, want EADDRINUSE", err)
	}
	o := Options{}
	if err := o.apply(nil); err != nil {
		t.Errorf("no options, no file: got %v, want no error", err)
	}
}

func TestUnlinkLeavesADirectory(t *testing.T) {
	dir := newDir(t)
	if err := unlink(dir); err == nil {
		t.Error("unlink of a directory: got nil, want an error")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("Stat after unlink: %v", err)
	}
}

func TestLockExcludesAnother(t *testing.T) {
	path := filepath.Join(newDir(t), "s")
	for range 2 {
		lock := lockDirOf(path, time.Time{})
		if lock == nil {
			t.Fatal("lockDirOf of a directory that is not locked: got no lock, want one")
		}
		if lockDirOf(path, time.Time{}) != nil {
			t.Error("lockDirOf of a locked directory: got the lock, want none")
		}
		lock.Close()
	}
}
