package unixsock_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"github.com/go-unixsock/unixsock/internal/sys"
	"golang.org/x/sys/unix"
)

// nobody is the ID of an unprivileged user and of its group.
const nobody = 65534

// asUser returns a function that prepares a child process to run as the user and the group
// with the given ID. It skips the test unless root runs it.
func asUser(t testing.TB, id uint32, groups ...uint32) func(*exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	exe := sockettest.Got(os.Open("/proc/self/exe")).Must(t)
	return func(cmd *exec.Cmd) {
		// The user may lack permission to enter the directory of the binary. The child
		// executes the binary through an inherited descriptor.
		cmd.ExtraFiles = append(cmd.ExtraFiles, exe)
		cmd.Path = fmt.Sprint("/proc/self/fd/", 2+len(cmd.ExtraFiles))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id, Groups: groups}}
	}
}

// publicDir returns a ShortDir with the given permissions for other users.
func publicDir(t testing.TB, perm fs.FileMode) string {
	t.Helper()
	dir := sockettest.ShortDir(t)
	sockettest.Check(t, os.Chmod(dir, perm))
	return dir
}

// A goroutine looks at the file all the time. It must see the mode change, which shows that it
// looks often enough. The owner's bits are right from the start, so that another server can probe
// the file of one that was killed.
func TestModeIsExactAndNeverWider(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	for _, test := range []struct {
		umask int
		perm  fs.FileMode
		acl   bool
	}{{0, 0, false}, {0, 0o660, false}, {0o022, 0o620, false}, {0o077, 0o777, false}, {0, 0o640, true}} {
		syscall.Umask(test.umask)
		path := sockettest.ShortDir(t) + "/s"
		if test.acl {
			setDefaultACL(t, filepath.Dir(path))
		}
		var wrong, changed atomic.Uint32
		var stop atomic.Bool
		var watcher sync.WaitGroup
		watcher.Go(func() {
			for !stop.Load() {
				if info, err := os.Lstat(path); err == nil {
					wrong.Or(uint32(info.Mode().Perm()&^test.perm | test.perm&0o700&^info.Mode().Perm()))
					changed.Or(uint32(info.Mode().Perm() ^ test.perm))
				}
			}
		})
		for i := 0; i < 40 || changed.Load() == 0 && test.perm != 0 && i < 10_000; i++ {
			l, err := unixsock.Listen(path, unixsock.Mode(test.perm), unixsock.UnlinkOnClose())
			sockettest.Check(t, err)
			if got := lstat(t, path).Mode().Perm(); got != test.perm {
				t.Errorf("Listen with %+v: got a file with %#o", test, got)
			}
			l.Close()
		}
		stop.Store(true)
		watcher.Wait()
		if wrong.Load() != 0 || changed.Load() == 0 && test.perm != 0 {
			t.Errorf("watch during Listen with %+v: got the wrong bits %#o at some time, and changes of %#o", test, wrong.Load(), changed.Load())
		}
	}
}

// setDefaultACL gives dir a default ACL that admits user nobody, and refuses the group and
// the others. It skips the test if the file system has no ACLs.
func setDefaultACL(t *testing.T, dir string) {
	t.Helper()
	const none = ^uint32(0)
	// Version 2, then the tag, the permissions and the ID of the owner, user nobody, the group, the
	// mask and the others.
	acl, err := binary.Append(nil, binary.LittleEndian, []uint32{
		2, 0x01 | 7<<16, none, 0x02 | 7<<16, nobody, 0x04, none, 0x10 | 7<<16, none, 0x20, none,
	})
	sockettest.Check(t, err)
	if err := unix.Setxattr(dir, "system.posix_acl_default", acl, 0); err != nil {
		t.Skip("the file system has no access control lists: ", err)
	}
}

// Users who may not connect, not even the owner in the first case, try all the time.
func TestNobodyElseConnectsWhileListenSetsTheFile(t *testing.T) {
	const group, another = 4321, 1234
	for _, test := range []struct {
		opts   []unixsock.ListenOption
		acl    bool
		member uint32
		others []uint32
	}{
		{[]unixsock.ListenOption{unixsock.Mode(0o066), unixsock.Owner(nobody, -1)}, false, another, []uint32{nobody}},
		{[]unixsock.ListenOption{unixsock.Mode(0o660), unixsock.Owner(-1, group)}, true, group, []uint32{nobody, another}},
	} {
		path := publicDir(t, 0o755) + "/s"
		var watchers []*sockettest.Helper
		for _, id := range test.others {
			watchers = append(watchers, sockettest.StartHelper(t, asUser(t, id), "watch owner", path))
			watchers[len(watchers)-1].Expect("watching")
		}
		member := sockettest.StartHelper(t, asUser(t, test.member), "connect")
		if test.acl {
			setDefaultACL(t, filepath.Dir(path))
		}
		for range 30 {
			l := sockettest.ListenAt(t, path, append(test.opts, unixsock.UnlinkOnClose())...)
			member.Send(path)
			member.Expect("connected")
			l.Close()
		}
		for _, w := range watchers {
			w.Send("stop")
			w.Expect("never connected")
		}
	}
}

func TestModeAndOwnerDecideWhoConnects(t *testing.T) {
	path := publicDir(t, 0o755) + "/s"
	other := sockettest.StartHelper(t, asUser(t, nobody), "connect")
	for _, test := range []struct {
		uid, gid int
		perm     fs.FileMode
		want     string
	}{
		{-1, -1, 0o660, "permission denied"}, {-1, -1, 0o664, "permission denied"}, {-1, -1, 0o602, "connected"},
		{-1, nobody, 0o660, "connected"}, {-1, nobody, 0o600, "permission denied"}, {nobody, -1, 0o600, "connected"},
	} {
		l := sockettest.ListenAt(t, path, unixsock.Owner(test.uid, test.gid), unixsock.Mode(test.perm), unixsock.UnlinkOnClose())
		other.Send(path)
		if got := other.Next(); got != test.want {
			t.Errorf("connect of another user with %+v: got %q", test, got)
		}
		l.Close()
	}
}

func TestFileOptionsOfAnAbstractName(t *testing.T) {
	sockettest.CheckDescriptors(t)
	name := ownName(t, 80, "")
	for _, opt := range []unixsock.ListenOption{unixsock.Mode(0o600), unixsock.Owner(0, 0)} {
		_, err := unixsock.Listen(name, opt)
		wantFileError(t, "Listen at an abstract name with Mode or Owner", err, "listen", "abstract name has no owner and no permissions")
	}
	l := sockettest.ListenAt(t, name, unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	_, err := unixsock.Listen(name, unixsock.ReplaceStale())
	sockettest.ExpectError(t, "second Listen with ReplaceStale", err, syscall.EADDRINUSE)
	sockettest.CheckExchange(t, name, l)
	sockettest.Check(t, l.Close())
}

// The permissions of the first file, live and stale, keep its own owner out.
func TestListenWithoutPrivilege(t *testing.T) {
	var setup func(*exec.Cmd)
	if os.Getuid() == 0 {
		setup = asUser(t, nobody)
	}
	if !sockettest.InChild(t, setup) {
		return
	}
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := dir + "/s"
	l := sockettest.ListenAt(t, path, unixsock.Mode(0o444))
	for _, state := range []string{"live", "stale"} {
		_, err := unixsock.Listen(path, unixsock.ReplaceStale())
		if !errors.Is(err, syscall.EADDRINUSE) || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "cannot probe the existing socket") {
			t.Errorf("Listen with ReplaceStale at a %s socket with 0444: got %v, want EADDRINUSE, fs.ErrPermission and why", state, err)
		}
		wantOnly(t, dir, "s")
		l.Close()
	}

	sockettest.Check(t, os.Remove(path))
	_, err := unixsock.Listen(path, unixsock.Owner(0, -1))
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "cannot set the owner to 0:-1") {
		t.Errorf("Listen of another user with Owner(0, -1): got %v, want fs.ErrPermission and why", err)
	}
	wantOnly(t, dir)

	leaveStale(t, path)
	sockettest.Check(t, os.Chmod(dir, 0o333)) // no lock without a read of the directory
	l = sockettest.ListenAt(t, path, unixsock.ReplaceStale(), unixsock.UnlinkOnClose(), unixsock.Mode(0o640))
	sockettest.CheckExchange(t, path, l)
	wantInUse(t, path)
	sockettest.Check(t, l.Close())
	sockettest.Check(t, os.Chmod(dir, 0o700))
	wantOnly(t, dir)
}

// The directory of the file is the parent of the link's target, not that of the link.
func TestReplaceStaleLocksTheDirectoryOfTheFile(t *testing.T) {
	dir := sockettest.ShortDir(t)
	sockettest.Check(t, os.MkdirAll(dir+"/real/sub", 0o700))
	sockettest.Check(t, os.Symlink("real/sub", dir+"/link"))
	path := dir + "/link/../s" // dir/real/s, not dir/s
	lock := sockettest.Got(os.Open(dir + "/real")).Must(t)
	sockettest.Check(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	done := waiting(t, func() error {
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		l.Close()
		return err
	})
	if sockettest.IsSocketFile(path) {
		t.Error("socket file of a Listen that waits for the directory's lock: got one, want none")
	}
	lock.Close()
	sockettest.Check(t, sockettest.Receive(t, "Listen after the lock is free", done))
}

func TestNamesAreWhole(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for _, name := range []string{
		ownName(t, 70, "\x00a\x00"), ownName(t, unixsock.MaxPathLen, "\x00\x00"),
		sockettest.ShortDir(t) + "/@", padded(t, sockettest.ShortDir(t), unixsock.MaxPathLen),
	} {
		other := sockettest.Listen(t)
		fd, err := sys.Socket()
		sockettest.Check(t, errors.Join(err, sys.Bind(fd, name), sys.Connect(fd, other.Addr().String())))
		peer := sockettest.Accept(t, other).RemoteAddr()
		sockettest.Check(t, sys.Close(fd))
		_ = os.Remove(name) // unless it is abstract
		l := sockettest.ListenAt(t, name)
		client, server := sockettest.Connect(t, name), sockettest.Accept(t, l)
		addrs := []net.Addr{
			peer, l.Addr(), adoptCopy(t, unixsock.FileListener, l).Addr(),
			client.RemoteAddr(), adoptCopy(t, unixsock.FileConn, client).RemoteAddr(),
			server.LocalAddr(), adoptCopy(t, unixsock.FileConn, server).LocalAddr(),
		}
		for i, addr := range addrs {
			if addr.String() != name {
				t.Errorf("address %d of those with the name %q: got %q", i, name, addr)
			}
		}
	}
}

// The first peers are processes of this user, the others are of another user.
func TestPeerIsTheOtherProcess(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := publicDir(t, 0o777)
	l := sockettest.ListenAt(t, dir+"/s", unixsock.Mode(0o666))
	own, err := os.Getgroups()
	sockettest.Check(t, err)
	for _, n := range []int{-1, 0, 60} {
		want, wantGroups, setup := unixsock.Cred{UID: os.Getuid(), GID: os.Getgid()}, own, func(*exec.Cmd) {}
		if n >= 0 {
			groups := make([]uint32, n)
			wantGroups = make([]int, n)
			for i := range groups {
				groups[i], wantGroups[i] = uint32(1000+i), 1000+i
			}
			want, setup = unixsock.Cred{UID: nobody, GID: nobody}, asUser(t, nobody, groups...)
		}
		client, server := sockettest.StartHelper(t, setup, "connect"), sockettest.StartHelper(t, setup, "serve", fmt.Sprint(dir, "/", n))
		client.Send(dir + "/s")
		client.Expect("connected")
		server.Expect("serving")
		for c, peer := range map[*unixsock.Conn]*sockettest.Helper{
			sockettest.Accept(t, l): client, sockettest.Connect(t, fmt.Sprint(dir, "/", n)): server,
		} {
			wantPIDFD(t, c, peer)
			peer.Kill()
			want.PID = peer.Cmd.Process.Pid
			if got := peerCredOf(t, c); got != want {
				t.Errorf("PeerCred: got %+v, want %+v", got, want)
			}
			got, err := c.PeerGroups()
			if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ERANGE) && os.Getenv("UNIXSOCK_TEST_EMULATOR") != "" {
				t.Skip(err) // an emulator does not report many groups
			}
			slices.Sort(got)
			slices.Sort(wantGroups)
			if err != nil || !slices.Equal(got, wantGroups) {
				t.Errorf("PeerGroups: got %v, %v; want %v, nil", got, err, wantGroups)
			}
			c.Close()
			_, err = c.PeerGroups()
			sockettest.ExpectError(t, "PeerGroups of a closed Conn", err, net.ErrClosed)
			_, err = c.PeerPIDFD()
			sockettest.ExpectError(t, "PeerPIDFD of a closed Conn", err, net.ErrClosed)
		}
	}
}

// wantPIDFD fails the test if PeerPIDFD of c is a descriptor of another process than the peer's,
// which it kills, is inherited, or has the number of a standard one.
func wantPIDFD(t *testing.T, c *unixsock.Conn, peer *sockettest.Helper) {
	t.Helper()
	os.Stdin.Close() // the kernel gives its number to the next descriptor
	pidfd, err := c.PeerPIDFD()
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	sockettest.Got(pidfd, err).Must(t)
	fd := int(pidfd.Fd())
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if want := fmt.Sprintf("\nPid:\t%d\n", peer.Cmd.Process.Pid); err != nil || !strings.Contains(string(info), want) {
		t.Errorf("PeerPIDFD: got %q, %v; want a pidfd with %q", info, err, want)
	}
	if flags := flagsOf(t, pidfd, unix.F_GETFD); flags&unix.FD_CLOEXEC == 0 || fd <= 2 || sockettest.Readable(fd) {
		t.Errorf("PeerPIDFD: got descriptor %d, flags %#x, ended %v; want one above 2, FD_CLOEXEC, false", fd, flags, sockettest.Readable(fd))
	}
	peer.Kill()
	sockettest.WaitFor(t, "the pidfd does not report the end of the process that was killed", func() bool { return sockettest.Readable(fd) })
}

func TestFilesComeAmongOtherControlMessages(t *testing.T) {
	sockettest.CheckDescriptors(t)
	from, to := newPairT(t)
	sockettest.Control(t, to, func(fd int) {
		for _, option := range []int{unix.SO_PASSCRED, unix.SO_PASSSEC, unix.SO_PASSPIDFD} {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1) // the kernel may lack one
		}
	})
	r, w := newPipes(t, 2)
	sendFiles(t, from, "xy", w...)
	closeFiles(receiveFiles(t, to, "x", 2, 2))
	receiveFiles(t, to, "y", 0, 0)
	sendFiles(t, from, "z", slices.Repeat(w[:1], maxFiles)...)
	closeFiles(receiveFiles(t, to, "z", maxFiles, maxFiles))
	sendFiles(t, from, "x", w...)
	_, _, err := to.ReadFiles(make([]byte, 1), 1)
	wantFileError(t, "ReadFiles of 2 files with max 1", err, "read", "limit 1")
	wantAllClosed(t, r, w)
}
