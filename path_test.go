//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// realDir returns a ShortDir whose path contains no link. The kernel reports this path
// when the directory is the working directory.
func realDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(sockettest.ShortDir(t))
	if err != nil {
		t.Fatalf("EvalSymlinks: %v", err)
	}
	return dir
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

// onLinux skips the test on systems without abstract names.
func onLinux(t testing.TB) {
	t.Helper()
	if !hasAbstract() {
		t.Skip("Linux only")
	}
}

func TestPathOfTheFullLengthBindsListensConnects(t *testing.T) {
	path := padded(t, sockettest.ShortDir(t), unixsock.MaxPathLen)
	if err := unixsock.CheckPath(path); err != nil {
		t.Fatalf("CheckPath of %d bytes: got %v, want nil", len(path), err)
	}
	l := sockettest.ListenAt(t, path)
	if !sockettest.IsSocketFile(path) {
		t.Fatalf("Listen at a path of %d bytes: got no socket file %q, want one", len(path), path)
	}
	if got := l.Addr().String(); got != path {
		t.Errorf("Addr of a listener at a path of %d bytes: got %q, want %q", len(path), got, path)
	}
	sockettest.CheckExchange(t, path, l)
}

func TestPathsThatDifferInTheLastByteOfTheFullLengthDiffer(t *testing.T) {
	path := padded(t, sockettest.ShortDir(t), unixsock.MaxPathLen)
	other := path[:len(path)-1] + "q"
	l, m := sockettest.ListenAt(t, path), sockettest.ListenAt(t, other)
	sockettest.CheckExchange(t, other, m)
	sockettest.CheckExchange(t, path, l)
}

func TestPathTooLongNamesItsLengthAndTheLimit(t *testing.T) {
	dir := sockettest.ShortDir(t)
	path := padded(t, dir, unixsock.MaxPathLen+1)
	for what, call := range map[string]func() error{
		"CheckPath": func() error { return unixsock.CheckPath(path) },
		"Connect":   func() error { _, err := unixsock.Connect(path); return err },
		"Listen":    func() error { _, err := unixsock.Listen(path); return err },
	} {
		err := call()
		if !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("%s of %d bytes: got %v, want ErrInvalidPath", what, len(path), err)
			continue
		}
		for _, n := range []int{unixsock.MaxPathLen + 1, unixsock.MaxPathLen} {
			if !strings.Contains(err.Error(), strconv.Itoa(n)) {
				t.Errorf("%s of %d bytes: got %q, want an error with the number %d", what, len(path), err, n)
			}
		}
	}
	if unixsock.ValidPath(path) {
		t.Errorf("ValidPath of %d bytes: got true, want false", len(path))
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("ReadDir after the calls with a path of %d bytes: got %v, %v; want an empty directory", len(path), entries, err)
	}
}

func TestInvalidPathIsAnErrorEverywhere(t *testing.T) {
	for _, path := range []string{
		"",
		"a\x00",
		"a\x00b",
		"/\x00",
		"/a/b\x00",
		strings.Repeat("/a", 1000),
		strings.Repeat("a", unixsock.MaxPathLen),
		strings.Repeat("a", 1<<20),
		"\x00" + strings.Repeat("a", 200),
	} {
		name := strconv.Quote(path[:min(len(path), 20)])
		if unixsock.ValidPath(path) {
			t.Errorf("ValidPath(%s): got true, want false", name)
		}
		if err := unixsock.CheckPath(path); !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("CheckPath(%s): got %v, want ErrInvalidPath", name, err)
		} else if len(err.Error()) > 1000 {
			t.Errorf("CheckPath(%s): got a message of %d bytes, want at most 1000", name, len(err.Error()))
		} else if limit := strconv.Itoa(unixsock.MaxPathLen); !strings.Contains(err.Error(), limit) && (hasAbstract() || path == "" || path[0] != 0) {
			t.Errorf("CheckPath(%s): got %v, want an error with the limit %s", name, err, limit)
		}
		c, err := unixsock.Connect(path)
		if c != nil || !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("Connect(%s): got %v, %v; want nil, ErrInvalidPath", name, c, err)
		}
		var opErr *net.OpError
		if !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Net != "unix" || opErr.Addr.String() != path {
			t.Errorf("Connect(%s): got %#v, want a *net.OpError with Op dial, Net unix and the path as Addr", name, opErr)
		}
		l, err := unixsock.Listen(path)
		if l != nil || !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("Listen(%s): got %v, %v; want nil, ErrInvalidPath", name, l, err)
		}
		if !errors.As(err, &opErr) || opErr.Op != "listen" || opErr.Net != "unix" || opErr.Addr.String() != path {
			t.Errorf("Listen(%s): got %#v, want a *net.OpError with Op listen, Net unix and the path as Addr", name, opErr)
		}
		unit := unixsock.NewTCPUnit(path)
		if _, err := unit.Dial("tcp", ""); !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("TCPUnit.Dial to %s: got %v, want ErrInvalidPath", name, err)
		}
		if _, err := unit.Listen("tcp", ""); !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("TCPUnit.Listen at %s: got %v, want ErrInvalidPath", name, err)
		}
	}
}

func TestInvalidPathNeverReachesTheKernel(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	// Without a free descriptor, a call that creates a socket returns EMFILE instead.
	defer sockettest.ExhaustDescriptors(t)()
	for _, path := range []string{"", "a\x00b", strings.Repeat("/a", 60), "\x00" + strings.Repeat("a", unixsock.MaxPathLen)} {
		if _, err := unixsock.Connect(path); !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("Connect(%q) without a free descriptor: got %v, want ErrInvalidPath", path, err)
		}
		if _, err := unixsock.Listen(path); !errors.Is(err, unixsock.ErrInvalidPath) {
			t.Errorf("Listen(%q) without a free descriptor: got %v, want ErrInvalidPath", path, err)
		}
	}
}

func TestRelativePathIsMadeAbsolute(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	l := sockettest.ListenAt(t, "s")
	if want := dir + "/s"; l.Addr().String() != want || !sockettest.IsSocketFile(want) {
		t.Fatalf("Listen at %q: got address %q, socket file at %q: %t; want address %q and a socket file", "s", l.Addr(), want, sockettest.IsSocketFile(want), want)
	}
	c := sockettest.Connect(t, "s")
	if want := dir + "/s"; c.RemoteAddr().String() != want {
		t.Errorf("RemoteAddr after Connect to %q: got %q, want %q", "s", c.RemoteAddr(), want)
	}
}

func TestRelativePathIsMeasuredInItsAbsoluteForm(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	full := padded(t, dir, unixsock.MaxPathLen)
	path := full[len(dir)+1:]
	l := sockettest.ListenAt(t, path)
	sockettest.CheckExchange(t, path, l)
	if err := unixsock.CheckPath(path + "p"); !errors.Is(err, unixsock.ErrInvalidPath) {
		t.Errorf("CheckPath of a relative path whose absolute form has %d bytes: got %v, want ErrInvalidPath", len(full)+1, err)
	}
}

func TestRelativePathInTheRootHasOneSlashBefore(t *testing.T) {
	t.Chdir("/")
	if name, err := resolved("s"); name != "/s" || err != nil {
		t.Errorf("resolve %q in /: got %q, %v; want %q, nil", "s", name, err, "/s")
	}
	if path := strings.Repeat("p", unixsock.MaxPathLen-1); !unixsock.ValidPath(path) || unixsock.ValidPath(path+"p") {
		t.Errorf("ValidPath in / of %d and of %d bytes: got %t, %t; want true, false",
			len(path), len(path)+1, unixsock.ValidPath(path), unixsock.ValidPath(path+"p"))
	}
}

func TestChdirChangesNothingLater(t *testing.T) {
	dir := realDir(t)
	if err := os.Mkdir(dir+"/other", 0o700); err != nil {
		t.Fatalf("Mkdir: %v", err)
	}
	t.Chdir(dir)
	l := sockettest.ListenAt(t, "s")
	unit := unixsock.NewTCPUnit("s")

	t.Chdir(dir + "/other")
	decoy := sockettest.ListenAt(t, "s")
	sockettest.CheckExchange(t, l.Addr().String(), l)
	sockettest.CheckExchange(t, decoy.Addr().String(), decoy)

	c, err := unit.Dial("tcp", "")
	if err != nil {
		t.Fatalf("TCPUnit.Dial after Chdir: got %v, want a connection", err)
	}
	defer c.Close()
	sockettest.Accept(t, l)
}

func TestRunsOfSlashesAreOne(t *testing.T) {
	for path, want := range map[string]string{
		"/":             "/",
		"//":            "/",
		"///a":          "/a",
		"/a//":          "/a/",
		"/a/":           "/a/",
		"//a///b//c///": "/a/b/c/",
		"/a/./b":        "/a/./b",
		"/a//../b":      "/a/../b",
	} {
		if got, err := resolved(path); got != want || err != nil {
			t.Errorf("resolve %q: got %q, %v; want %q, nil", path, got, err, want)
		}
	}

	dir := sockettest.ShortDir(t)
	path := "//" + dir + "////s"
	l := sockettest.ListenAt(t, path)
	if want := dir + "/s"; l.Addr().String() != want || !sockettest.IsSocketFile(want) {
		t.Errorf("Listen at %q: got address %q, socket file at %q: %t; want address %q and a socket file", path, l.Addr(), want, sockettest.IsSocketFile(want), want)
	}
	sockettest.CheckExchange(t, dir+"//s", l)
}

func TestRunsOfSlashesDoNotCount(t *testing.T) {
	dir := sockettest.ShortDir(t)
	path := padded(t, dir, unixsock.MaxPathLen)
	path = dir + strings.Repeat("/", 1000) + path[len(dir)+1:]
	if err := unixsock.CheckPath(path); err != nil {
		t.Fatalf("CheckPath of %d bytes and 999 more slashes: got %v, want nil", unixsock.MaxPathLen, err)
	}
	sockettest.CheckExchange(t, path, sockettest.ListenAt(t, path))
	if unixsock.ValidPath(path + "p") {
		t.Errorf("ValidPath of %d bytes and 999 more slashes: got true, want false", unixsock.MaxPathLen+1)
	}
}

func TestDotsAndLinksAreLeftToTheKernel(t *testing.T) {
	dir := sockettest.ShortDir(t)
	if err := os.MkdirAll(dir+"/far/away", 0o700); err != nil {
		t.Fatalf("MkdirAll: %v", err)
	}
	if err := os.Symlink(dir+"/far/away", dir+"/link"); err != nil {
		t.Fatalf("Symlink: %v", err)
	}
	path := dir + "/link/../s"
	l := sockettest.ListenAt(t, path)
	if got := l.Addr().String(); got != path {
		t.Errorf("Addr of a listener at %q: got %q, want it unchanged", path, got)
	}
	if !sockettest.IsSocketFile(dir + "/far/s") {
		t.Errorf("Listen at %q, where link points to far/away: got no socket file far/s, want one", path)
	}
	sockettest.CheckExchange(t, dir+"/far/./s", l)
}

func TestAtSignHasNoSpecialMeaning(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	for _, path := range []string{"@", "@x", dir + "/@y"} {
		l := sockettest.ListenAt(t, path)
		if !sockettest.IsSocketFile(path) {
			t.Errorf("Listen at %q: got no socket file of that name, want one", path)
		}
		if l.Addr().String()[0] != '/' {
			t.Errorf("Addr of a listener at %q: got %q, want an absolute path", path, l.Addr())
		}
		sockettest.CheckExchange(t, path, l)
	}
}

func TestAbstractWritesTheNUL(t *testing.T) {
	for _, name := range []string{"", "a", "\x00", "a\x00b"} {
		if got, want := unixsock.Abstract(name), "\x00"+name; got != want {
			t.Errorf("Abstract(%q): got %q, want %q", name, got, want)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, seed := range []string{
		"", "/", "//", "a", "@a", "\x00", "\x00a", "\x00a\x00", "a\x00", "/a\x00b", "\xff\xfe", "/tmp//x/./..//y/",
		strings.Repeat("a", 107), strings.Repeat("a", 108), "/" + strings.Repeat("a", 107), "/" + strings.Repeat("a", 108),
		"\x00" + strings.Repeat("\x00", 107), "\x00" + strings.Repeat("\x00", 108), "/" + strings.Repeat("/a", 60), strings.Repeat("/", 300),
	} {
		f.Add(seed)
	}
	wd, err := os.Getwd()
	if err != nil {
		f.Skipf("Getwd: %v", err)
	}
	wd, err = filepath.EvalSymlinks(wd)
	if err != nil {
		f.Skipf("EvalSymlinks: %v", err)
	}
	f.Fuzz(func(t *testing.T, path string) {
		name, err := resolved(path)
		if checked, ok := unixsock.CheckPath(path), unixsock.ValidPath(path); (checked == nil) != (err == nil) || ok != (err == nil) {
			t.Fatalf("check and resolve %q: got %v of CheckPath, %t of ValidPath and %v of ConnectContext; want the same of all", path, checked, ok, err)
		}

		// want and valid follow the documentation, by another algorithm than the code's.
		want, valid := path, path != "" && !strings.Contains(path, "\x00")
		switch {
		case strings.HasPrefix(path, "\x00"):
			valid = hasAbstract()
		case !strings.HasPrefix(path, "/"):
			want = wd + "/" + path
		}
		if !strings.HasPrefix(path, "\x00") {
			for strings.Contains(want, "//") {
				want = strings.ReplaceAll(want, "//", "/")
			}
		}
		valid = valid && len(want) <= unixsock.MaxPathLen

		switch {
		case valid && (err != nil || name != want):
			t.Fatalf("resolve %q: got %q, %v; want %q, nil", path, name, err, want)
		case !valid && !errors.Is(err, unixsock.ErrInvalidPath):
			t.Fatalf("resolve %q: got %q, %v; want ErrInvalidPath", path, name, err)
		case valid:
			if again, err := resolved(name); again != name || err != nil {
				t.Fatalf("resolve %q, the result for %q: got %q, %v; want it unchanged, nil", name, path, again, err)
			}
		}
	})
}

// ownName returns an abstract name that no other process uses. It has n bytes, including
// the leading NUL, and ends with tail.
func ownName(t testing.TB, n int, tail string) string {
	t.Helper()
	name := unixsock.Abstract(t.Name() + "." + strconv.Itoa(os.Getpid()) + ".")
	pad := n - len(name) - len(tail)
	if pad < 0 {
		t.Fatalf("abstract name %q: got %d bytes, want at most %d", name+tail, len(name)+len(tail), n)
	}
	return name + strings.Repeat("a", pad) + tail
}

func TestAbstractNameOfTheFullLengthWorks(t *testing.T) {
	onLinux(t)
	name := ownName(t, unixsock.MaxPathLen, "")
	l := sockettest.ListenAt(t, name)
	if got := l.Addr().String(); got != name {
		t.Errorf("Addr of a listener at an abstract name of %d bytes: got %q, want %q", len(name), got, name)
	}
	sockettest.CheckExchange(t, name, l)
}

func TestAbstractNameTooLongNamesItsLengthAndTheLimit(t *testing.T) {
	onLinux(t)
	err := unixsock.CheckPath(ownName(t, unixsock.MaxPathLen+1, ""))
	if !errors.Is(err, unixsock.ErrInvalidPath) {
		t.Fatalf("CheckPath of an abstract name of %d bytes: got %v, want ErrInvalidPath", unixsock.MaxPathLen+1, err)
	}
	for _, n := range []string{"109", "108"} {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("CheckPath of an abstract name of %d bytes: got %q, want an error with the number %s", unixsock.MaxPathLen+1, err, n)
		}
	}
}

func TestAbstractNamesThatDifferInANULDiffer(t *testing.T) {
	onLinux(t)
	base := ownName(t, 80, "")
	names := []string{
		base, base + "\x00", base + "\x00\x00", base + "\x00b", base + "\x00b\x00", "\x00" + base,
		base + strings.Repeat("\x00", unixsock.MaxPathLen-len(base)),
		base + strings.Repeat("\x00", unixsock.MaxPathLen-len(base)-1),
	}
	listeners := make([]*unixsock.Listener, len(names))
	for i, name := range names {
		listeners[i] = sockettest.ListenAt(t, name)
	}
	for i, name := range names {
		c := sockettest.Connect(t, name)
		for j, l := range listeners {
			if got, want := sockettest.Pending(t, l), i == j; got != want {
				t.Errorf("connection pending at %q after Connect to %q: got %t, want %t", names[j], name, got, want)
			}
		}
		s := sockettest.Accept(t, listeners[i])
		if got := s.LocalAddr().String(); got != name {
			t.Errorf("LocalAddr after Accept at %q: got %q, want the name", name, got)
		}
		if got := c.RemoteAddr().String(); got != name {
			t.Errorf("RemoteAddr after Connect to %q: got %q, want the name", name, got)
		}
	}
}

func TestEachLengthOfAbstractNameWorks(t *testing.T) {
	onLinux(t)
	// The names consist of NULs only: "\x00", "\x00\x00" and so on. They are the hardest
	// names to distinguish.
	var listeners []*unixsock.Listener
	for n := 1; n <= unixsock.MaxPathLen; n++ {
		listeners = append(listeners, sockettest.ListenAt(t, strings.Repeat("\x00", n)))
	}
	for _, l := range listeners {
		sockettest.CheckExchange(t, l.Addr().String(), l)
	}
}

func TestAbstractNameMakesNoFile(t *testing.T) {
	onLinux(t)
	dir := realDir(t)
	t.Chdir(dir)
	sockettest.ListenAt(t, ownName(t, 60, ""))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("ReadDir after Listen at an abstract name: got %v, %v; want an empty directory", entries, err)
	}
}

func TestSlashesInAnAbstractNameStay(t *testing.T) {
	onLinux(t)
	name := ownName(t, 70, "//a///b/")
	if got := sockettest.ListenAt(t, name).Addr().String(); got != name {
		t.Errorf("Addr of a listener at the abstract name %q: got %q, want the name", name, got)
	}
}

func TestEveryByteMayBeInAPath(t *testing.T) {
	onLinux(t)
	dir := sockettest.ShortDir(t)
	var all []byte
	for b := 1; b < 256; b++ {
		if b != '/' {
			all = append(all, byte(b))
		}
	}
	for len(all) > 0 {
		n := min(len(all), 60)
		path := dir + "/" + string(all[:n])
		all = all[n:]
		l := sockettest.ListenAt(t, path)
		if !sockettest.IsSocketFile(path) || l.Addr().String() != path {
			t.Errorf("Listen at %q: got address %q, socket file %t; want the path, true", path, l.Addr(), sockettest.IsSocketFile(path))
		}
		sockettest.CheckExchange(t, path, l)
	}
}

func TestWorkingDirectoryIsTheKernelsNotPWD(t *testing.T) {
	onLinux(t)
	dir := realDir(t)
	t.Chdir(dir)
	t.Setenv("PWD", "/proc/self/cwd")
	if name, err := resolved("s"); name != dir+"/s" || err != nil {
		t.Errorf("resolve %q with another PWD: got %q, %v; want %q, nil", "s", name, err, dir+"/s")
	}
}

func TestRelativePathWithoutAWorkingDirectoryIsAnError(t *testing.T) {
	onLinux(t)
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	if err := os.Chdir(dir); err != nil {
		t.Fatalf("Chdir: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatalf("Remove of the working directory: %v", err)
	}
	err := unixsock.CheckPath("s")
	if !errors.Is(err, unixsock.ErrInvalidPath) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CheckPath(%q) in a removed directory: got %v, want ErrInvalidPath and ErrNotExist", "s", err)
	}
	if err := unixsock.CheckPath("/s"); err != nil {
		t.Errorf("CheckPath(%q) in a removed directory: got %v, want nil", "/s", err)
	}
}
