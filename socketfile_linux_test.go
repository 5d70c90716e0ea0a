package unixsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const nobody = 65534

// asNobody returns a setup that runs a child process as another user.
func asNobody(t testing.TB) func(*exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { exe.Close() })
	return func(cmd *exec.Cmd) {
		// The other user may not enter the directory that the binary is in.
		cmd.ExtraFiles = append(cmd.ExtraFiles, exe)
		cmd.Path = fmt.Sprint("/proc/self/fd/", 2+len(cmd.ExtraFiles))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
}

// publicDir is a shortDir that others may read.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestModeIsNeverWider(t *testing.T) {
	for _, test := range []struct {
		umask int
		perm  fs.FileMode
	}{
		{0, 0}, {0, 0o600}, {0, 0o660}, {0o022, 0o620}, {0o077, 0o660}, {0o022, 0o666},
	} {
		t.Run(fmt.Sprintf("%03o %03o", test.umask, test.perm), func(t *testing.T) {
			if !inChild(t, nil) {
				return
			}
			syscall.Umask(test.umask)
			path := filepath.Join(shortDir(t), "s")
			watcher := startHelper(t, nil, "watch mode", path, strconv.FormatUint(uint64(test.perm), 8))
			// Where the umask takes away what was asked for, the watcher must have
			// seen some file before that was made good: it looks sharply enough.
			early := fs.FileMode(test.umask)&test.perm == 0
			for i := 0; i < modeRounds || !early && i < 100*modeRounds; i++ {
				watcher.tell("next")
				watcher.expect("watching")
				l := mustListenAt(t, fmt.Sprint(path, i), Mode(test.perm))
				bits, when, _ := strings.Cut(watcher.hear(), " ")
				seen, err := strconv.ParseUint(bits, 8, 32)
				if err != nil {
					t.Fatal(err)
				}
				if fs.FileMode(seen)&^test.perm != 0 {
					t.Fatalf("the file had the bits %#o, wider than %#o", seen, test.perm)
				}
				early = early || when == "true"
				l.Close()
			}
			if !early {
				t.Error("the watcher never saw a file before it had its bits")
			}
		})
	}
}

func TestModeIsExactWithADefaultACL(t *testing.T) {
	dir := shortDir(t)
	// Version 2: tag, permissions and id of the owner, user 65534, the group,
	// the mask and the others.
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, ^uint32(0)}, {0x02, 7, nobody}, {0x04, 7, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 7, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_default", acl, 0); err != nil {
		t.Skip("no access control lists here: ", err)
	}
	for i, perm := range []fs.FileMode{0, 0o600, 0o640, 0o666, 0o777} {
		l := mustListenAt(t, filepath.Join(dir, fmt.Sprint(i)), Mode(perm))
		if got := lstat(t, l.name).Mode().Perm(); got != perm {
			t.Errorf("Mode(%#o): the file has %#o", perm, got)
		}
	}
}

func TestModeKeepsOthersOut(t *testing.T) {
	path := filepath.Join(publicDir(t), "s")
	other := startHelper(t, asNobody(t), "connect")
	for _, test := range []struct {
		perm fs.FileMode
		want string
	}{{0o600, "permission denied"}, {0o660, "permission denied"}, {0o664, "permission denied"}, {0o602, "connected"}, {0o666, "connected"}} {
		l := mustListenAt(t, path, Mode(test.perm), UnlinkOnClose())
		other.tell(path)
		if got := other.hear(); got != test.want {
			t.Errorf("Mode(%#o): another user says %q, want %q", test.perm, got, test.want)
		}
		l.Close()
	}
}

func TestModeOfAnAbstractNameIsAnError(t *testing.T) {
	checkDescriptors(t)
	l, err := Listen(Abstract(t.Name()), Mode(0o600))
	if err == nil {
		l.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "abstract") {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
	if l, err := NewTCPUnit(Abstract(t.Name()), Mode(0o600)).Listen("", ""); err == nil {
		l.Close()
		t.Error("no error through a TCPUnit")
	}
}

func TestFileOptionsOfAnAbstractName(t *testing.T) {
	checkDescriptors(t)
	name := Abstract(t.Name())
	l := mustListenAt(t, name, ReplaceStale(), UnlinkOnClose())
	if _, err := Listen(name, ReplaceStale()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("error %v, want EADDRINUSE", err)
	}
	mustAnswer(t, l, name)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestReplaceStaleLeavesAListenerWithAFullBacklog(t *testing.T) {
	checkDescriptors(t)
	l := mustListen(t, Backlog(0))
	waiting := 0
	for full := false; !full; {
		fd, err := newSocket()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeSocket(fd) })
		switch err := connectSocket(fd, l.name); err {
		case nil:
			waiting++
		case errWouldBlock:
			full = true
		default:
			t.Fatal(err)
		}
	}
	wantInUse(t, l.name)
	for range waiting {
		mustAccept(t, l)
	}
	if isReady(l) {
		t.Error("the listener has heard of it")
	}
}

func TestReplaceStaleWhereOthersMayNotAsk(t *testing.T) {
	path := filepath.Join(publicDir(t), "s")
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	l := mustListenAt(t, path, Mode(0o600))
	other := startHelper(t, asNobody(t), "serve", path)
	if got := receive(t, "the other user", other.lines); !strings.Contains(got, "address already in use") {
		t.Errorf("another user says %q", got)
	}
	mustAnswer(t, l, path)
}

// TestALockOfAnotherUserStopsNobody is what the lock's time limit is for.
func TestALockOfAnotherUserStopsNobody(t *testing.T) {
	checkDescriptors(t)
	mustListenAgainstALock(t, publicDir(t), asNobody(t), nobody)
}

func TestReplaceStaleInADirectoryThatCannotBeRead(t *testing.T) {
	var setup func(*exec.Cmd)
	if os.Getuid() == 0 {
		setup = asNobody(t)
	}
	if !inChild(t, setup) {
		return
	}
	checkDescriptors(t)
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	leaveStale(t, path)
	if err := os.Chmod(dir, 0o333); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(dir); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("the directory can be read: %v", err)
	}
	l := mustListenAt(t, path, ReplaceStale(), UnlinkOnClose(), Mode(0o640))
	mustAnswer(t, l, path)
	wantInUse(t, path)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantOnly(t, dir)
}

// TestReplaceStaleLocksTheDirectoryOfTheFile is about a path whose directory is
// not what stands before its last dot-dot.
func TestReplaceStaleLocksTheDirectoryOfTheFile(t *testing.T) {
	dir := shortDir(t)
	for _, name := range []string{"real", "real/sub"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real/sub", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	path := dir + "/link/../s" // dir/real/s, not dir/s
	leaveStale(t, path)
	fd, err := unix.Open(filepath.Join(dir, "real"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := Listen(path, ReplaceStale())
		if err == nil {
			l.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("Listen did not wait for who holds the lock of the directory; error %v", err)
		done <- err
	case <-time.After(300 * time.Millisecond):
	}
	unix.Close(fd)
	if err := receive(t, "Listen", done); err != nil {
		t.Error(err)
	}
}
