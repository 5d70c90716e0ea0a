//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// realDir returns a ShortDir whose path contains no link. The kernel reports this path
// when the directory is the working directory.
func realDir(t testing.TB) string {
	t.Helper()
	return sockettest.Got(filepath.EvalSymlinks(sockettest.ShortDir(t))).Must(t)
}

// padded returns a path in dir that is n bytes long.
func padded(t testing.TB, dir string, n int) string {
	t.Helper()
	pad := n - len(dir) - 1
	if pad < 1 {
		t.Skipf("the path of the temporary directory %q is too long for sockets", dir)
	}
	return dir + "/" + strings.Repeat("p", pad)
}

// resolved returns the name that Connect uses for path. It is the address in the error
// that ConnectContext returns, before any system call, if the context is done.
func resolved(path string) (string, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := unixsock.ConnectContext(ctx, path)
	var opErr *net.OpError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &opErr) {
		return "", err
	}
	return opErr.Addr.String(), nil
}

// hasAbstract reports whether the system has abstract names.
func hasAbstract() bool { return runtime.GOOS == "linux" || runtime.GOOS == "android" }

// ownName returns an abstract name that no other process uses. It has n bytes, including
// the leading NUL, and ends with tail.
func ownName(t testing.TB, n int, tail string) string {
	t.Helper()
	name := unixsock.Abstract(t.Name() + "." + strconv.Itoa(os.Getpid()) + ".")
	return name + strings.Repeat("a", n-len(name)-len(tail)) + tail
}

// The listeners of all paths exist at the same time, so the test also shows that names differ
// that differ in one byte.
func TestSocketIsAtTheAbsoluteFormOfItsPath(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	t.Setenv("PWD", "/proc/self/cwd") // the working directory is the kernel's
	sockettest.Check(t, os.MkdirAll("far/away", 0o700))
	sockettest.Check(t, os.Symlink("far/away", "link"))
	full := padded(t, dir, unixsock.MaxPathLen)
	tail := full[len(dir)+1 : len(full)-1]
	tests := [][2]string{ // a path and its absolute form
		{full, full},
		{full[:len(full)-1] + "q", full[:len(full)-1] + "q"},
		{tail + "r", dir + "/" + tail + "r"},
		{dir + strings.Repeat("/", 1000) + tail + "s", dir + "/" + tail + "s"},
		{"//" + dir + "////s", dir + "/s"},
		{dir + "/link/../t", dir + "/link/../t"}, // the kernel's far/t
		{"./u", dir + "/./u"},
		{"@", dir + "/@"},
		{"@x", dir + "/@x"},
		{dir + "/@y", dir + "/@y"},
	}
	if hasAbstract() { // Linux allows every byte in a path, too
		for b := 1; b < 256; b++ {
			if c := string([]byte{byte(b)}); b != '/' && b != '.' && b != '@' {
				tests = append(tests, [2]string{"every" + c, dir + "/every" + c})
			}
		}
	}
	files := len(tests) + 1
	if hasAbstract() {
		base := ownName(t, 80, "")
		names := []string{
			base, base + "\x00", base + "\x00\x00", base + "\x00b", base + "\x00b\x00", "\x00" + base,
			ownName(t, unixsock.MaxPathLen, ""), ownName(t, 90, "//a///b/"),
		}
		for n := range unixsock.MaxPathLen {
			names = append(names, strings.Repeat("\x00", n+1))
		}
		for _, name := range names {
			tests = append(tests, [2]string{name, name})
		}
	}
	listeners := make([]*unixsock.Listener, len(tests))
	for i, test := range tests {
		path, want := test[0], test[1]
		var err error
		sockettest.WaitFor(t, "the name is in use", func() bool { // another run of this test may have those of NULs only
			listeners[i], err = unixsock.Listen(path)
			return !errors.Is(err, syscall.EADDRINUSE)
		})
		sockettest.Got(listeners[i], err).Must(t)
		if got := listeners[i].Addr().String(); got != want || want[0] != 0 && !sockettest.IsSocketFile(want) {
			t.Errorf("Listen at %.20q (%d bytes): got the address %q, want %q and a socket file", path, len(path), got, want)
		}
	}
	if entries := sockettest.Got(os.ReadDir(dir)).Must(t); len(entries) != files {
		t.Errorf("ReadDir: got %d files, want %d, none of an abstract name", len(entries), files)
	}
	for i, test := range tests {
		path, want := test[0], test[1]
		c, s := sockettest.Connect(t, path), sockettest.Accept(t, listeners[i])
		if c.RemoteAddr().String() != want || s.LocalAddr().String() != want {
			t.Errorf("Connect to %.20q: got RemoteAddr %q, LocalAddr %q of the server's end; want %q", path, c.RemoteAddr(), s.LocalAddr(), want)
		}
		c.Close()
		s.Close()
	}
	sockettest.CheckExchange(t, "far/./t", listeners[5])
}

func TestInvalidPathIsAnErrorEverywhereAndNeverReachesTheKernel(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := realDir(t)
	t.Chdir(dir)
	full := padded(t, dir, unixsock.MaxPathLen)
	// Without a free descriptor, a call that creates a socket returns EMFILE instead.
	free := sockettest.ExhaustDescriptors(t)
	for path, size := range map[string]int{ // size: of what is too long, the absolute form
		"":                                    0,
		"a\x00":                               2,
		"a\x00b":                              3,
		"/\x00":                               2,
		"/a/b\x00":                            5,
		full + "p":                            len(full) + 1,
		full[len(dir)+1:] + "p":               len(full) + 1,
		dir + "///" + full[len(dir)+1:] + "p": len(full) + 1,
		strings.Repeat("/a", 1000):            2000,
		strings.Repeat("a", 1<<20):            len(dir) + 1 + 1<<20,
		unixsock.Abstract(strings.Repeat("a", unixsock.MaxPathLen)): unixsock.MaxPathLen + 1,
	} {
		unit, errs := unixsock.NewTCPUnit(path), map[string]error{"check": unixsock.CheckPath(path)}
		_, errs["dial"] = unixsock.Connect(path)
		_, errs["listen"] = unixsock.Listen(path)
		_, errs["dial by a TCPUnit"] = unit.Dial("tcp", "")
		_, errs["listen by a TCPUnit"] = unit.Listen("tcp", "")
		for call, err := range errs {
			want := fmt.Sprintf("(%d bytes, limit %d)", size, unixsock.MaxPathLen)
			if !errors.Is(err, unixsock.ErrInvalidPath) || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s of %.20q: got %.1000v, want ErrInvalidPath that ends with %q", call, path, err, want)
			}
			var opErr *net.OpError
			if call == "check" {
				if len(err.Error()) > 1000 {
					t.Errorf("check of %.20q: got a message of %d bytes, want at most 1000", path, len(err.Error()))
				}
			} else if !errors.As(err, &opErr) || !strings.HasPrefix(call, opErr.Op) || opErr.Net != "unix" || opErr.Addr.String() != path {
				t.Errorf("%s of %.20q: got %#v, want a *net.OpError with that Op, Net unix and the path as Addr", call, path, opErr)
			}
		}
		if unixsock.ValidPath(path) {
			t.Errorf("ValidPath(%.20q): got true, want false", path)
		}
	}
	free()
	if entries := sockettest.Got(os.ReadDir(dir)).Must(t); len(entries) != 0 {
		t.Errorf("ReadDir after the calls with invalid paths: got %v, want an empty directory", entries)
	}
}

func TestRelativePathInTheRootHasOneSlashBefore(t *testing.T) {
	t.Chdir("/")
	if name, err := resolved("s"); name != "/s" || err != nil {
		t.Errorf("resolve s in /: got %q, %v; want /s, nil", name, err)
	}
	path := strings.Repeat("p", unixsock.MaxPathLen-1)
	if ok, long := unixsock.ValidPath(path), unixsock.ValidPath(path+"p"); !ok || long {
		t.Errorf("ValidPath in / of %d bytes and of one more: got %t, %t; want true, false", len(path), ok, long)
	}
}

func TestChdirChangesNothingLater(t *testing.T) {
	t.Chdir(realDir(t))
	l := sockettest.ListenAt(t, "s")
	unit := unixsock.NewTCPUnit("s")
	t.Chdir(realDir(t))
	decoy := sockettest.ListenAt(t, "s")
	sockettest.CheckExchange(t, l.Addr().String(), l)
	sockettest.CheckExchange(t, decoy.Addr().String(), decoy)
	sockettest.Got(unit.Dial("tcp", "")).Must(t)
	sockettest.Accept(t, l)
}

func TestAbstractWritesTheNUL(t *testing.T) {
	for _, name := range []string{"", "a", "\x00", "a\x00b"} {
		if got := unixsock.Abstract(name); got != "\x00"+name {
			t.Errorf("Abstract(%q): got %q, want it after a NUL", name, got)
		}
	}
}

func TestRelativePathWithoutAWorkingDirectoryIsAnError(t *testing.T) {
	if !hasAbstract() {
		t.Skip("Linux only")
	}
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	sockettest.Check(t, os.Chdir(dir))
	sockettest.Check(t, os.Remove(dir))
	err := unixsock.CheckPath("s")
	if !errors.Is(err, unixsock.ErrInvalidPath) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckPath(%q) in a removed directory: got %v, want ErrInvalidPath and ErrNotExist", "s", err)
	}
	sockettest.Check(t, unixsock.CheckPath("/s"))
}

func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"", "/", "//", "///a", "/a//", "/a//../b", "a", "@a", "\x00", "\x00a", "\x00a\x00", "a\x00", "/a\x00b", "\xff\xfe", "/tmp//x/./..//y/",
		strings.Repeat("a", 107), strings.Repeat("a", 108), "/" + strings.Repeat("a", 107), "/" + strings.Repeat("a", 108),
		"\x00" + strings.Repeat("\x00", 107), "\x00" + strings.Repeat("\x00", 108), "/" + strings.Repeat("/a", 60), strings.Repeat("/", 300),
	} {
		f.Add(seed)
	}
	wd := sockettest.Got(filepath.EvalSymlinks(sockettest.Got(os.Getwd()).Must(f))).Must(f)
	f.Fuzz(func(t *testing.T, path string) {
		name, err := resolved(path)
		if checked, ok := unixsock.CheckPath(path), unixsock.ValidPath(path); (checked == nil) != (err == nil) || ok != (err == nil) {
			t.Fatalf("check and resolve %q: got %v of CheckPath, %t of ValidPath and %v of ConnectContext; want the same of all", path, checked, ok, err)
		}

		// want and valid follow the documentation, by another algorithm than the code's.
		want, valid := path, hasAbstract()
		if !strings.HasPrefix(path, "\x00") {
			valid = path != "" && !strings.Contains(path, "\x00")
			if !strings.HasPrefix(path, "/") {
				want = wd + "/" + path
			}
			for strings.Contains(want, "//") {
				want = strings.ReplaceAll(want, "//", "/")
			}
		}
		valid = valid && len(want) <= unixsock.MaxPathLen

		if valid && (err != nil || name != want) || !valid && !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Fatalf("resolve %q: got %q, %v; want %q if it is valid (%t), or ErrInvalidPath", path, name, err, want, valid)
		}
		if again, err := resolved(name); valid && (again != name || err != nil) {
			t.Fatalf("resolve %q, the result for %q: got %q, %v; want it unchanged, nil", name, path, again, err)
		}
	})
}
