//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// realDir is shortDir with no link in its path: what the kernel says of it when
// it is the working directory.
func realDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(shortDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// padded returns a path in dir that is n bytes long.
func padded(t testing.TB, dir string, n int) string {
	t.Helper()
	pad := n - len(dir) - 1
	if pad < 1 {
		t.Skipf("the temporary directory %q is too long a path for sockets", dir)
	}
	return dir + "/" + strings.Repeat("p", pad)
}

// exchange fails the test unless a connection to path arrives at l.
func exchange(t testing.TB, path string, l *Listener) {
	t.Helper()
	c := mustConnect(t, path)
	defer c.Close()
	s := mustAccept(t, l)
	defer s.Close()
	if _, err := c.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Fatalf("read %d bytes, %v; want 1", n, err)
	}
}

func isSocketFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

func TestPathOfTheFullLengthBindsListensConnects(t *testing.T) {
	path := padded(t, shortDir(t), MaxPathLen)
	if err := CheckPath(path); err != nil {
		t.Fatal(err)
	}
	l := mustListenAt(t, path)
	if !isSocketFile(path) {
		t.Fatal("no socket file of that name")
	}
	if got := l.Addr().String(); got != path {
		t.Errorf("the listener is at %q, want %q", got, path)
	}
	exchange(t, path, l)
}

func TestPathsThatDifferInTheLastByteOfTheFullLengthDiffer(t *testing.T) {
	path := padded(t, shortDir(t), MaxPathLen)
	other := path[:len(path)-1] + "q"
	l, m := mustListenAt(t, path), mustListenAt(t, other)
	exchange(t, other, m)
	exchange(t, path, l)
}

func TestPathTooLongNamesItsLengthAndTheLimit(t *testing.T) {
	dir := shortDir(t)
	path := padded(t, dir, MaxPathLen+1)
	for what, call := range map[string]func() error{
		"CheckPath": func() error { return CheckPath(path) },
		"Connect":   func() error { _, err := Connect(path); return err },
		"Listen":    func() error { _, err := Listen(path); return err },
	} {
		err := call()
		if !errors.Is(err, ErrInvalidPath) {
			t.Errorf("%s: %v, want ErrInvalidPath", what, err)
			continue
		}
		for _, n := range []int{MaxPathLen + 1, MaxPathLen} {
			if !strings.Contains(err.Error(), strconv.Itoa(n)) {
				t.Errorf("%s: %q does not name %d", what, err, n)
			}
		}
	}
	if ValidPath(path) {
		t.Error("ValidPath says true")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v, %v; want nothing", entries, err)
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
		strings.Repeat("a", MaxPathLen),
		strings.Repeat("a", 1<<20),
		"\x00" + strings.Repeat("a", 200),
	} {
		name := strconv.Quote(path[:min(len(path), 20)])
		if ValidPath(path) {
			t.Errorf("%s is valid", name)
		}
		if err := CheckPath(path); !errors.Is(err, ErrInvalidPath) {
			t.Errorf("CheckPath(%s): %v", name, err)
		} else if len(err.Error()) > 1000 {
			t.Errorf("CheckPath(%s): a message of %d bytes", name, len(err.Error()))
		} else if limit := strconv.Itoa(MaxPathLen); !strings.Contains(err.Error(), limit) && (onLinux || path == "" || path[0] != 0) {
			t.Errorf("CheckPath(%s): %v, which does not tell the limit of %s", name, err, limit)
		}
		c, err := Connect(path)
		if c != nil || !errors.Is(err, ErrInvalidPath) {
			t.Errorf("Connect(%s): %v, %v", name, c, err)
		}
		var opErr *net.OpError
		if !errors.As(err, &opErr) || opErr.Op != "dial" || opErr.Net != "unix" || opErr.Addr.String() != path {
			t.Errorf("Connect(%s): %#v", name, opErr)
		}
		l, err := Listen(path)
		if l != nil || !errors.Is(err, ErrInvalidPath) {
			t.Errorf("Listen(%s): %v, %v", name, l, err)
		}
		if !errors.As(err, &opErr) || opErr.Op != "listen" || opErr.Net != "unix" || opErr.Addr.String() != path {
			t.Errorf("Listen(%s): %#v", name, opErr)
		}
		unit := NewTCPUnit(path)
		if _, err := unit.Dial("tcp", ""); !errors.Is(err, ErrInvalidPath) {
			t.Errorf("TCPUnit.Dial of %s: %v", name, err)
		}
		if _, err := unit.Listen("tcp", ""); !errors.Is(err, ErrInvalidPath) {
			t.Errorf("TCPUnit.Listen of %s: %v", name, err)
		}
	}
}

func TestInvalidPathNeverReachesTheKernel(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	// With no descriptor to be had, whoever asks for one hears of that instead.
	defer exhaustDescriptors(t)()
	for _, path := range []string{"", "a\x00b", strings.Repeat("/a", 60), "\x00" + strings.Repeat("a", MaxPathLen)} {
		if _, err := Connect(path); !errors.Is(err, ErrInvalidPath) {
			t.Errorf("Connect(%q): %v", path, err)
		}
		if _, err := Listen(path); !errors.Is(err, ErrInvalidPath) {
			t.Errorf("Listen(%q): %v", path, err)
		}
	}
}

func TestRelativePathIsMadeAbsolute(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	l := mustListenAt(t, "s")
	if want := dir + "/s"; l.Addr().String() != want || !isSocketFile(want) {
		t.Fatalf("the listener is at %q, want %q and a file there", l.Addr(), want)
	}
	c := mustConnect(t, "s")
	if want := dir + "/s"; c.RemoteAddr().String() != want {
		t.Errorf("connected to %q, want %q", c.RemoteAddr(), want)
	}
}

func TestRelativePathIsMeasuredInItsAbsoluteForm(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	full := padded(t, dir, MaxPathLen)
	path := full[len(dir)+1:]
	l := mustListenAt(t, path)
	exchange(t, path, l)
	if err := CheckPath(path + "p"); !errors.Is(err, ErrInvalidPath) {
		t.Errorf("one byte more: %v, want ErrInvalidPath", err)
	}
}

func TestRelativePathInTheRootHasOneSlashBefore(t *testing.T) {
	t.Chdir("/")
	if name, err := resolve("s"); name != "/s" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
	if path := strings.Repeat("p", MaxPathLen-1); !ValidPath(path) || ValidPath(path+"p") {
		t.Errorf("valid: %v, and with one byte more: %v; want true and false", ValidPath(path), ValidPath(path+"p"))
	}
}

func TestChdirChangesNothingLater(t *testing.T) {
	dir := realDir(t)
	if err := os.Mkdir(dir+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	l := mustListenAt(t, "s")
	unit := NewTCPUnit("s")

	t.Chdir(dir + "/other")
	decoy := mustListenAt(t, "s")
	exchange(t, l.Addr().String(), l)
	exchange(t, decoy.Addr().String(), decoy)

	c, err := unit.Dial("tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustAccept(t, l)
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
		if got, err := resolve(path); got != want || err != nil {
			t.Errorf("%q is %q, %v; want %q", path, got, err, want)
		}
	}

	dir := shortDir(t)
	l := mustListenAt(t, "//"+dir+"////s")
	if want := dir + "/s"; l.Addr().String() != want || !isSocketFile(want) {
		t.Errorf("the listener is at %q, want %q and a file there", l.Addr(), want)
	}
	exchange(t, dir+"//s", l)
}

func TestRunsOfSlashesDoNotCount(t *testing.T) {
	dir := shortDir(t)
	path := padded(t, dir, MaxPathLen)
	path = dir + strings.Repeat("/", 1000) + path[len(dir)+1:]
	if err := CheckPath(path); err != nil {
		t.Fatal(err)
	}
	exchange(t, path, mustListenAt(t, path))
	if ValidPath(path + "p") {
		t.Error("one byte more is valid")
	}
}

func TestDotsAndLinksAreLeftToTheKernel(t *testing.T) {
	dir := shortDir(t)
	if err := os.MkdirAll(dir+"/far/away", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/far/away", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	path := dir + "/link/../s"
	l := mustListenAt(t, path)
	if got := l.Addr().String(); got != path {
		t.Errorf("the listener is at %q, want %q", got, path)
	}
	if !isSocketFile(dir + "/far/s") {
		t.Error("the .. was not taken behind the link")
	}
	exchange(t, dir+"/far/./s", l)
}

func TestAtSignMeansNothing(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	for _, path := range []string{"@", "@x", dir + "/@y"} {
		l := mustListenAt(t, path)
		if !isSocketFile(path) {
			t.Errorf("no socket file %q", path)
		}
		if l.Addr().String()[0] != '/' {
			t.Errorf("%q became %q", path, l.Addr())
		}
		exchange(t, path, l)
	}
}

func TestAbstractWritesTheNUL(t *testing.T) {
	for _, name := range []string{"", "a", "\x00", "a\x00b"} {
		if got, want := Abstract(name), "\x00"+name; got != want {
			t.Errorf("Abstract(%q) = %q, want %q", name, got, want)
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
		f.Skip(err)
	}
	wd, err = filepath.EvalSymlinks(wd)
	if err != nil {
		f.Skip(err)
	}
	hasAbstract := ValidPath("\x00")
	f.Fuzz(func(t *testing.T, path string) {
		name, err := resolve(path)
		if (CheckPath(path) == nil) != (err == nil) || ValidPath(path) != (err == nil) {
			t.Fatal("CheckPath, ValidPath and what is bound do not agree")
		}

		// The promise, said in another way than the code says it.
		want, valid := path, path != "" && !strings.Contains(path, "\x00")
		switch {
		case strings.HasPrefix(path, "\x00"):
			valid = hasAbstract
		case !strings.HasPrefix(path, "/"):
			want = wd + "/" + path
		}
		if !strings.HasPrefix(path, "\x00") {
			for strings.Contains(want, "//") {
				want = strings.ReplaceAll(want, "//", "/")
			}
		}
		valid = valid && len(want) <= MaxPathLen

		switch {
		case valid && (err != nil || name != want):
			t.Fatalf("%q is %q, %v; want %q", path, name, err, want)
		case !valid && !errors.Is(err, ErrInvalidPath):
			t.Fatalf("%q is %q, %v; want ErrInvalidPath", path, name, err)
		case valid:
			if again, err := resolve(name); again != name || err != nil {
				t.Fatalf("%q, resolved again, is %q, %v", name, again, err)
			}
		}
	})
}
