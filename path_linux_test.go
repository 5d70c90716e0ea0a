package unixsock

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
)

// ownName returns an abstract name of n bytes that no other process uses, with
// its leading NUL. tail is its end.
func ownName(t testing.TB, n int, tail string) string {
	t.Helper()
	name := Abstract(t.Name() + "." + strconv.Itoa(os.Getpid()) + ".")
	pad := n - len(name) - len(tail)
	if pad < 0 {
		t.Fatalf("%d bytes are too few for %q", n, name+tail)
	}
	return name + strings.Repeat("a", pad) + tail
}

func TestAbstractNameOfTheFullLengthWorks(t *testing.T) {
	name := ownName(t, MaxPathLen, "")
	l := mustListenAt(t, name)
	if got := l.Addr().String(); got != name {
		t.Errorf("the listener is at %q, want %q", got, name)
	}
	exchange(t, name, l)
}

func TestAbstractNameTooLongNamesItsLengthAndTheLimit(t *testing.T) {
	err := CheckPath(ownName(t, MaxPathLen+1, ""))
	if !errors.Is(err, ErrInvalidPath) {
		t.Fatalf("got %v, want ErrInvalidPath", err)
	}
	for _, n := range []string{"109", "108"} {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("%q does not name %s", err, n)
		}
	}
}

func TestAbstractNamesThatDifferInANULDiffer(t *testing.T) {
	base := ownName(t, 80, "")
	names := []string{
		base, base + "\x00", base + "\x00\x00", base + "\x00b", base + "\x00b\x00", "\x00" + base,
		base + strings.Repeat("\x00", MaxPathLen-len(base)),
		base + strings.Repeat("\x00", MaxPathLen-len(base)-1),
	}
	listeners := make([]*Listener, len(names))
	for i, name := range names {
		listeners[i] = mustListenAt(t, name)
	}
	for i, name := range names {
		c := mustConnect(t, name)
		for j, l := range listeners {
			if got, want := waits(t, l), i == j; got != want {
				t.Errorf("after a connect to %q, one waits at %q: %v", name, names[j], got)
			}
		}
		s := mustAccept(t, listeners[i])
		if got := s.LocalAddr().String(); got != name {
			t.Errorf("accepted at %q, want %q", got, name)
		}
		if got := c.RemoteAddr().String(); got != name {
			t.Errorf("connected to %q, want %q", got, name)
		}
	}
}

func TestEachLengthOfAbstractNameWorks(t *testing.T) {
	// The names are of NULs alone, the hardest to tell apart: "\x00" is one.
	var listeners []*Listener
	for n := 1; n <= MaxPathLen; n++ {
		listeners = append(listeners, mustListenAt(t, strings.Repeat("\x00", n)))
	}
	for _, l := range listeners {
		exchange(t, l.Addr().String(), l)
	}
}

func TestAbstractNameMakesNoFile(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	mustListenAt(t, ownName(t, 60, ""))
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the directory holds %v, %v; want nothing", entries, err)
	}
}

func TestSlashesInAnAbstractNameStay(t *testing.T) {
	name := ownName(t, 70, "//a///b/")
	if got := mustListenAt(t, name).Addr().String(); got != name {
		t.Errorf("%q became %q", name, got)
	}
}

func TestEveryByteMayBeInAPath(t *testing.T) {
	dir := shortDir(t)
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
		l := mustListenAt(t, path)
		if !isSocketFile(path) || l.Addr().String() != path {
			t.Errorf("%q became %q", path, l.Addr())
		}
		exchange(t, path, l)
	}
}

func TestWorkingDirectoryIsTheKernelsNotTheShells(t *testing.T) {
	dir := realDir(t)
	t.Chdir(dir)
	t.Setenv("PWD", "/proc/self/cwd")
	if name, err := resolve("s"); name != dir+"/s" || err != nil {
		t.Errorf("got %q, %v; want %q", name, err, dir+"/s")
	}
}

func TestRelativePathWithoutAWorkingDirectoryIsAnError(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	dir := shortDir(t)
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	err := CheckPath("s")
	if !errors.Is(err, ErrInvalidPath) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrInvalidPath and ErrNotExist", err)
	}
	if err := CheckPath("/s"); err != nil {
		t.Errorf("an absolute path: %v", err)
	}
}
