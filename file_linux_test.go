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
func asUser(t testing.TB, id uint32, groups ...int) func(*exec.Cmd) {
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
		credential := &syscall.Credential{Uid: id, Gid: id}
		for _, group := range groups {
			credential.Groups = append(credential.Groups, uint32(group))
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	}
}

// publicDir returns a ShortDir with the given permissions for other users.
func publicDir(t testing.TB, perm fs.FileMode) string {
	t.Helper()
	dir := sockettest.ShortDir(t)
	sockettest.Check(t, os.Chmod(dir, perm))
	return dir
}

// Another goroutine looks at the file all the time. If Listen changes the mode after it has bound
// the socket, the goroutine must see that, which shows that it looks often enough.
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
		path := filepath.Join(sockettest.ShortDir(t), "s")
		if test.acl {
			setDefaultACL(t, filepath.Dir(path))
		}
		var wider, changed atomic.Uint32
		var stop atomic.Bool
		var watcher sync.WaitGroup
		watcher.Go(func() {
			for !stop.Load() {
				if info, err := os.Lstat(path); err == nil {
					wider.Or(uint32(info.Mode().Perm() &^ test.perm))
					changed.Or(uint32(info.Mode().Perm() ^ test.perm))
				}
			}
		})
		for i := 0; i < 100 || changed.Load() == 0 && test.perm != 0 && i < 10_000; i++ {
			l, err := unixsock.Listen(path, unixsock.Mode(test.perm), unixsock.UnlinkOnClose())
			sockettest.Check(t, err)
			if got := lstat(t, path).Mode().Perm(); got != test.perm {
				t.Errorf("Listen with %+v: got a file with %#o", test, got)
			}
			l.Close()
		}
		stop.Store(true)
		watcher.Wait()
		if wider.Load() != 0 || changed.Load() == 0 && test.perm != 0 {
			t.Errorf("watch during Listen with %+v: got the forbidden bits %#o at some time, changes of %#o", test, wider.Load(), changed.Load())
		}
	}
}

// setDefaultACL gives dir a default ACL that admits user nobody, and refuses the group and
// the others. It skips the test if the file system has no ACLs.
func setDefaultACL(t *testing.T, dir string) {
	t.Helper()
	// The attribute holds version 2, and then the tag, the permissions and the ID
	// of the owner, user nobody, the group, the mask and the others.
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{0x01, 7, ^uint32(0)}, {0x02, 7, nobody}, {0x04, 0, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint32(acl, e[0]|e[1]<<16)
		acl = binary.LittleEndian.AppendUint32(acl, e[2])
	}
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
		path := filepath.Join(publicDir(t, 0o755), "s")
		var watchers []*sockettest.Helper
		for _, id := range test.others {
			watchers = append(watchers, sockettest.StartHelper(t, asUser(t, id), "watch owner", path))
			watchers[len(watchers)-1].Expect("watching")
		}
		member := sockettest.StartHelper(t, asUser(t, test.member), "connect")
		if test.acl {
			setDefaultACL(t, filepath.Dir(path))
		}
		for range 50 {
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
	path := filepath.Join(publicDir(t, 0o755), "s")
	other := sockettest.StartHelper(t, asUser(t, nobody), "connect")
	for _, test := range []struct {
		uid, gid int
		perm     fs.FileMode
		want     string
	}{
		{-1, -1, 0o660, "permission denied"},
		{-1, -1, 0o664, "permission denied"},
		{-1, -1, 0o602, "connected"},
		{-1, nobody, 0o660, "connected"},
		{-1, nobody, 0o600, "permission denied"},
		{nobody, -1, 0o600, "connected"},
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
		if _, err := unixsock.Listen(name, opt); err == nil || !strings.Contains(err.Error(), "abstract name has no owner and no permissions") {
			t.Errorf("Listen at an abstract name with Mode or Owner: got %v, want an error that says why", err)
		}
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
	path := filepath.Join(dir, "s")
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

// The directory of the file is the parent of the link's target, not the directory that holds
// the link.
func TestReplaceStaleLocksTheDirectoryOfTheFile(t *testing.T) {
	dir := sockettest.ShortDir(t)
	sockettest.Check(t, os.MkdirAll(filepath.Join(dir, "real/sub"), 0o700))
	sockettest.Check(t, os.Symlink("real/sub", filepath.Join(dir, "link")))
	path := dir + "/link/../s" // dir/real/s, not dir/s
	leaveStale(t, path)
	lock := sockettest.Got(os.Open(filepath.Join(dir, "real"))).Must(t)
	sockettest.Check(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	done := waiting(t, func() error {
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		l.Close()
		return err
	})
	lock.Close()
	sockettest.Check(t, sockettest.Receive(t, "Listen after the lock is free", done))
}

func TestNamesAreWhole(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for _, name := range []string{
		ownName(t, 70, "\x00a\x00"), ownName(t, unixsock.MaxPathLen, "\x00\x00"),
		sockettest.ShortDir(t) + "/@", padded(t, sockettest.ShortDir(t), unixsock.MaxPathLen),
	} {
		l := sockettest.ListenAt(t, name)
		client, server := sockettest.Connect(t, name), sockettest.Accept(t, l)
		l2 := adoptCopy(t, unixsock.FileListener, l)
		addrs := []net.Addr{
			l.Addr(), client.RemoteAddr(), server.LocalAddr(),
			l2.Addr(), adoptCopy(t, unixsock.FileConn, client).RemoteAddr(), adoptCopy(t, unixsock.FileConn, server).LocalAddr(),
		}
		l.Close()
		l2.Close()
		_ = os.Remove(name)

		other := sockettest.Listen(t)
		fd, err := sys.Socket()
		sockettest.Check(t, errors.Join(err, sys.Bind(fd, name), sys.Connect(fd, other.Addr().String())))
		addrs = append(addrs, sockettest.Accept(t, other).RemoteAddr()) // of a peer with that name
		sockettest.Check(t, sys.Close(fd))
		for i, addr := range addrs {
			if addr.String() != name {
				t.Errorf("address %d of those with the name %q: got %q", i, name, addr)
			}
		}
	}
}

// The number of a closed Conn's descriptor becomes that of another. A second close(2) of the
// number would close that one.
func TestDescriptorIsClosedOnce(t *testing.T) {
	peer, c := sockettest.Pair(t)
	fd := fdOf(t, c)
	c.Close()
	sockettest.Check(t, unix.Dup3(fdOf(t, peer), fd, unix.O_CLOEXEC))
	defer unix.Close(fd)
	for _, way := range closes {
		sockettest.Check(t, way.call(c))
	}
	if !isOpen(fd) {
		t.Errorf("closes after Close: got descriptor %d of another socket closed, want it open", fd)
	}
}

// The first peers are processes of this user, the others, with different numbers of groups, of
// another one. Each has ended when it is asked for.
func TestPeerIsTheOtherProcess(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := publicDir(t, 0o777)
	l := sockettest.ListenAt(t, dir+"/s", unixsock.Mode(0o666))
	own, err := os.Getgroups()
	sockettest.Check(t, err)
	var sixty []int
	for i := range 60 {
		sixty = append(sixty, 1000+i)
	}
	for i, groups := range [][]int{own, {}, {1000}, sixty} {
		want, setup := unixsock.Cred{UID: os.Getuid(), GID: os.Getgid()}, func(*exec.Cmd) {}
		if i > 0 {
			want, setup = unixsock.Cred{UID: nobody, GID: nobody}, asUser(t, nobody, groups...)
		}
		client, server := sockettest.StartHelper(t, setup, "connect"), sockettest.StartHelper(t, setup, "serve", fmt.Sprint(dir, "/", i))
		client.Send(dir + "/s")
		client.Expect("connected")
		server.Expect("serving")
		for c, peer := range map[*unixsock.Conn]*sockettest.Helper{
			sockettest.Accept(t, l): client, sockettest.Connect(t, fmt.Sprint(dir, "/", i)): server,
		} {
			want.PID = peer.Cmd.Process.Pid
			wantPIDFD(t, c, peer)
			if got := peerCredOf(t, c); got != want {
				t.Errorf("PeerCred: got %+v, want %+v", got, want)
			}
			got, err := c.PeerGroups()
			if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ERANGE) && os.Getenv("UNIXSOCK_TEST_EMULATOR") != "" {
				t.Skip(err) // an emulator does not report many groups
			}
			slices.Sort(got)
			slices.Sort(groups)
			if err != nil || !slices.Equal(got, groups) {
				t.Errorf("PeerGroups: got %v, %v; want %v, nil", got, err, groups)
			}
			c.Close()
			_, err = c.PeerGroups()
			sockettest.ExpectError(t, "PeerGroups of a closed Conn", err, net.ErrClosed)
			if _, err = c.PeerPIDFD(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("PeerPIDFD of a closed Conn: got %v, want net.ErrClosed", err)
			}
		}
	}
}

// wantPIDFD kills the peer. It fails the test if PeerPIDFD of c is a descriptor of another
// process, is inherited, or has the number of a standard one.
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
	sockettest.WaitFor(t, "PeerPIDFD has no end of the process that was killed", func() bool { return sockettest.Readable(fd) })
}

func TestFilesComeAmongCredentials(t *testing.T) {
	for name, option := range map[string]int{
		"credentials": unix.SO_PASSCRED, "security label": unix.SO_PASSSEC, "pidfd": unix.SO_PASSPIDFD,
	} {
		t.Run(name, func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			sockettest.Control(t, to, func(fd int) {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
					t.Skip("setsockopt(2): ", err)
				}
			})
			r, w := newPipes(t, 2)
			sendFiles(t, from, "xy", w...)
			closeFiles(receiveFiles(t, to, "x", 2, 2))
			receiveFiles(t, to, "y", 0, 0)
			sendFiles(t, from, "x", w...)
			if _, files, err := to.ReadFiles(make([]byte, 1), 1); err == nil || files != nil {
				t.Errorf("ReadFiles of 2 files with max 1: got %d files, %v; want 0, an error", len(files), err)
			}
			wantAllClosed(t, r, w)
		})
	}
}

func TestSetUnlinkOnCloseLeavesAFileThatReplacedTheAdoptedListeners(t *testing.T) {
	if !sockettest.ReportsBoundFile(t) {
		t.Skip("the kernel does not report which file a socket is bound to")
	}
	l := sockettest.Listen(t)
	path := l.Addr().String()
	sockettest.Check(t, os.Remove(path))
	other := sockettest.ListenAt(t, path)
	adopted := adoptCopy(t, unixsock.FileListener, l)
	adopted.SetUnlinkOnClose(true)
	adopted.Close()
	sockettest.CheckExchange(t, path, other)
}

// Each server replaces the file of the one before.
func TestListenReplacesTheFileOfAServerThatWasKilledAtItsStart(t *testing.T) {
	path := filepath.Join(publicDir(t, 0o777), "s")
	for range 10 {
		server := sockettest.StartHelper(t, asUser(t, nobody), "start and stop", path)
		server.Expect("started")
		server.Kill()
	}
}
