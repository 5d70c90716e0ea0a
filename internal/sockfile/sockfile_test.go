//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// check ends the test if a call failed. The helpers of sockettest import this package.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("got the error %v, want nil", err)
	}
}

// bind returns a new path, short enough for socket files, to which a socket is bound until
// the end of the test.
func bind(t *testing.T) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	path = filepath.Join(dir, "s")
	check(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	return path
}

func lstat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	check(t, err)
	return info
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
		"mode with sticky":         {Options{Mode: mode(fs.ModeSticky | 0o600)}, "/s", false},
		"mode with setuid":         {Options{Mode: mode(fs.ModeSetuid | 0o600)}, "/s", false},
		"mode with a type":         {Options{Mode: mode(fs.ModeSocket | 0o600)}, "/s", false},
		"mode with Unix's sticky":  {Options{Mode: mode(0o1600)}, "/s", false},
		"mode above all":           {Options{Mode: mode(0o10000)}, "/s", false},
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

func TestUnchangedNoticesAReusedInode(t *testing.T) {
	path := bind(t)
	info := lstat(t, path)
	if !unchanged(path, info) {
		t.Error("a file compared with itself: changed, want unchanged")
	}
	past := time.Now().Add(-time.Hour)
	check(t, os.Chtimes(path, past, past)) // as the old file with this inode
	if unchanged(path, info) {
		t.Error("a file with the same inode and another time: unchanged, want changed")
	}
	check(t, os.Remove(path))
	if unchanged(path, info) {
		t.Error("a file that is gone: unchanged, want changed")
	}
}

// TestApplyFailsWithoutTheFile applies options to a file that was replaced, to one that was
// removed, to none, and to a link.
func TestApplyFailsWithoutTheFile(t *testing.T) {
	path := bind(t)
	info := lstat(t, path)
	other := bind(t)
	check(t, os.Rename(other, path))
	check(t, os.Symlink(path, path+"2"))
	before := lstat(t, path)
	mode := fs.FileMode(0o777)
	for what, f := range map[string]*File{
		"replaced": {path, info, -1}, "removed": {other, info, -1}, "no": nil, "linked": {path + "2", before, -1},
	} {
		for option, o := range map[string]Options{"mode": {Mode: &mode}, "owner": {Owner: &Owner{1, 1}}} {
			if err := o.apply(f); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s of a %s file: got %v, want EADDRINUSE", option, what, err)
			}
		}
		if err := f.Remove(); err != nil {
			t.Errorf("Remove of a %s file: got %v, want no error", what, err)
		}
	}
	if after := lstat(t, path); !os.SameFile(before, after) || after.Mode() != before.Mode() {
		t.Errorf("the other file: got %v, want the unchanged %v", after, before)
	}
	if err := new(Options).apply(nil); err != nil {
		t.Errorf("no options, no file: got %v, want no error", err)
	}
}

func TestFileIsReadyBeforeListen(t *testing.T) {
	path := bind(t)
	check(t, os.Remove(path))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(t, err)
	defer unix.Close(fd)
	mode := fs.FileMode(0o723)
	o := Options{Mode: &mode}
	if os.Getuid() == 0 {
		o.Owner = &Owner{1, 2}
	}
	_, err = o.Bind(fd, path, func() error {
		if info := lstat(t, path); info.Mode().Perm() != mode || o.changesOwner(info) {
			t.Errorf("file before listen(2): got %v, of another owner: %v; want %v", info.Mode(), o.changesOwner(info), mode)
		}
		return unix.Listen(fd, 1)
	})
	check(t, err)
}

func TestUnlinkLeavesADirectory(t *testing.T) {
	path := bind(t)
	check(t, os.Remove(path))
	check(t, unlink(path)) // another process may have removed it
	check(t, os.Mkdir(path, 0o700))
	if err := unlink(path); err == nil {
		t.Error("unlink of a directory: got nil, want an error")
	}
	lstat(t, path)
}
