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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// nobody is the ID of an unprivileged user and of its group.
const nobody = 65534

// asNobody returns a function that prepares a child process to run as user nobody.
// It skips the test unless root runs it.
func asNobody(t testing.TB) func(*exec.Cmd) { return asUser(t, nobody) }

// asUser is asNobody for the user and the group with the given ID.
func asUser(t testing.TB, id uint32) func(*exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run a process as another user")
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Skip("open of the test binary: ", err)
	}
	t.Cleanup(func() { exe.Close() })
	return func(cmd *exec.Cmd) {
		// User nobody may lack permission to enter the directory of the binary.
		// The child executes the binary through an inherited descriptor.
		cmd.ExtraFiles = append(cmd.ExtraFiles, exe)
		cmd.Path = fmt.Sprint("/proc/self/fd/", 2+len(cmd.ExtraFiles))
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	}
}

// publicDir returns a ShortDir that other users may read and enter.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := sockettest.ShortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
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
			if !sockettest.InChild(t, nil) {
				return
			}
			syscall.Umask(test.umask)
			path := filepath.Join(sockettest.ShortDir(t), "s")
			watcher := sockettest.StartHelper(t, nil, "watch mode", path, strconv.FormatUint(uint64(test.perm), 8))
			// If the umask removes bits of the mode, Listen restores them after it
			// has bound the socket. The watcher must see at least one file before
			// that, which shows that it looks often enough.
			early := fs.FileMode(test.umask)&test.perm == 0
			for i := 0; i < modeRounds || !early && i < 100*modeRounds; i++ {
				watcher.Send("next")
				watcher.Expect("watching")
				l := sockettest.ListenAt(t, fmt.Sprint(path, i), unixsock.Mode(test.perm))
				bits, when, _ := strings.Cut(watcher.Next(), " ")
				seen, err := strconv.ParseUint(bits, 8, 32)
				if err != nil {
					t.Fatalf("bits that the watcher printed: %v", err)
				}
				if fs.FileMode(seen)&^test.perm != 0 {
					t.Fatalf("Listen with Mode(%#o): got a file with the bits %#o at some time, want no other bits than %#o", test.perm, seen, test.perm)
				}
				early = early || when == "true"
				l.Close()
			}
			if !early {
				t.Errorf("watch of %d files: got none before it had the mode %#o, want at least one", 100*modeRounds, test.perm)
			}
		})
	}
}

// setDefaultACL gives dir a default ACL that admits user nobody, and refuses the group and
// the others. It skips the test if the file system has no ACLs.
func setDefaultACL(t *testing.T, dir string) {
	t.Helper()
	// The attribute holds version 2, and then the tag, the permissions and the ID
	// of the owner, user nobody, the group, the mask and the others.
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, ^uint32(0)}, {0x02, 7, nobody}, {0x04, 0, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_default", acl, 0); err != nil {
		t.Skip("the file system has no access control lists: ", err)
	}
}

func TestModeIsExactWithADefaultACL(t *testing.T) {
	dir := sockettest.ShortDir(t)
	setDefaultACL(t, dir)
	for i, perm := range []fs.FileMode{0, 0o600, 0o640, 0o666, 0o777} {
		l := sockettest.ListenAt(t, filepath.Join(dir, fmt.Sprint(i)), unixsock.Mode(perm))
		if got := lstat(t, l.Addr().String()).Mode().Perm(); got != perm {
			t.Errorf("Listen with Mode(%#o) under a default ACL: got a file with %#o, want %#o", perm, got, perm)
		}
	}
}

// TestModeDecidesUnderADefaultACL lets the user that the ACL admits and another one connect
// all the time. Only a member of the group may.
func TestModeDecidesUnderADefaultACL(t *testing.T) {
	const group, another = 4321, 1234
	dir := publicDir(t)
	path := filepath.Join(dir, "s")
	var watchers []*sockettest.Helper
	for _, id := range []uint32{nobody, another} {
		w := sockettest.StartHelper(t, asUser(t, id), "watch owner", path)
		w.Expect("watching")
		watchers = append(watchers, w)
	}
	member := sockettest.StartHelper(t, asUser(t, group), "connect")
	setDefaultACL(t, dir)
	for range 200 {
		l, err := unixsock.Listen(path, unixsock.Mode(0o660), unixsock.Owner(-1, group), unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatalf("Listen with Mode(0660) under a default ACL: %v", err)
		}
		member.Send(path)
		if got := member.Next(); got != "connected" {
			t.Fatalf("connect of a member of the group with Mode(0660) under a default ACL: got %q, want %q", got, "connected")
		}
		l.Close()
	}
	for _, w := range watchers {
		w.Send("stop")
		w.Expect("never connected")
	}
}

func TestModeKeepsOthersOut(t *testing.T) {
	path := filepath.Join(publicDir(t), "s")
	other := sockettest.StartHelper(t, asNobody(t), "connect")
	for _, test := range []struct {
		perm fs.FileMode
		want string
	}{{0o600, "permission denied"}, {0o660, "permission denied"}, {0o664, "permission denied"}, {0o602, "connected"}, {0o666, "connected"}} {
		l := sockettest.ListenAt(t, path, unixsock.Mode(test.perm), unixsock.UnlinkOnClose())
		other.Send(path)
		if got := other.Next(); got != test.want {
			t.Errorf("connect of another user with Mode(%#o): got %q, want %q", test.perm, got, test.want)
		}
		l.Close()
	}
}

func TestModeOfAnAbstractNameIsAnError(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l, err := unixsock.Listen(unixsock.Abstract(t.Name()), unixsock.Mode(0o600))
	if err == nil {
		l.Close()
		t.Fatalf("Listen at an abstract name with Mode: got no error, want one with %q", "abstract")
	}
	if !strings.Contains(err.Error(), "abstract") {
		t.Errorf("Listen at an abstract name with Mode: got %v, want an error with %q", err, "abstract")
	}
	if l, err := unixsock.NewTCPUnit(unixsock.Abstract(t.Name()), unixsock.Mode(0o600)).Listen("", ""); err == nil {
		l.Close()
		t.Error("Listen of a TCPUnit at an abstract name with Mode: got no error, want one")
	}
}

func TestFileOptionsOfAnAbstractName(t *testing.T) {
	sockettest.CheckDescriptors(t)
	name := unixsock.Abstract(t.Name())
	l := sockettest.ListenAt(t, name, unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	if _, err := unixsock.Listen(name, unixsock.ReplaceStale()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second Listen at an abstract name, with ReplaceStale: got %v, want EADDRINUSE", err)
	}
	sockettest.CheckExchange(t, name, l)
	if err := l.Close(); err != nil {
		t.Errorf("Close with UnlinkOnClose of an abstract name: got %v, want nil", err)
	}
}

func TestReplaceStaleLeavesAListenerWithAFullBacklog(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.Listen(t, unixsock.Backlog(0))
	pending := sockettest.FillBacklog(t, l.Addr().String())
	wantInUse(t, l.Addr().String())
	for range pending {
		sockettest.Accept(t, l)
	}
	if polled(t, l, l.Ready()) {
		t.Errorf("Ready after %d accepts of all clients: got ready for a connection of ReplaceStale, want not ready", pending)
	}
}

func TestReplaceStaleWithoutPermissionLeavesTheFile(t *testing.T) {
	path := filepath.Join(publicDir(t), "s")
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	l := sockettest.ListenAt(t, path, unixsock.Mode(0o600))
	other := sockettest.StartHelper(t, asNobody(t), "serve", path)
	if got := sockettest.Receive(t, "the other user", other.Lines); !strings.Contains(got, "address already in use") {
		t.Errorf("Listen of another user with ReplaceStale: got %q, want an error with %q", got, "address already in use")
	}
	sockettest.CheckExchange(t, path, l)
}

// TestReplaceStaleSaysWhyItCannotProbe leaves a stale file that its owner may not write,
// and tries to replace it without root's privileges.
func TestReplaceStaleSaysWhyItCannotProbe(t *testing.T) {
	var setup func(*exec.Cmd)
	if os.Getuid() == 0 {
		setup = asNobody(t)
	}
	if !sockettest.InChild(t, setup) {
		return
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	sockettest.ListenAt(t, path, unixsock.Mode(0o444)).Close()
	_, err := unixsock.Listen(path, unixsock.ReplaceStale())
	if !errors.Is(err, syscall.EADDRINUSE) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Listen with ReplaceStale at a stale file with 0444: got %v, want EADDRINUSE and fs.ErrPermission", err)
	}
	if want := "cannot probe the existing socket"; !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("Listen with ReplaceStale at a stale file with 0444: got %v, want an error with %q", err, want)
	}
}

// TestALockOfAnotherUserDoesNotStopListen checks the time limit of the wait for the
// directory's lock. Another user holds the lock.
func TestALockOfAnotherUserDoesNotStopListen(t *testing.T) {
	sockettest.CheckDescriptors(t)
	mustListenAgainstALock(t, publicDir(t), asNobody(t), nobody)
}

func TestReplaceStaleInADirectoryThatCannotBeRead(t *testing.T) {
	var setup func(*exec.Cmd)
	if os.Getuid() == 0 {
		setup = asNobody(t)
	}
	if !sockettest.InChild(t, setup) {
		return
	}
	sockettest.CheckDescriptors(t)
	dir := sockettest.ShortDir(t)
	path := filepath.Join(dir, "s")
	leaveStale(t, path)
	if err := os.Chmod(dir, 0o333); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	if _, err := os.ReadDir(dir); !errors.Is(err, fs.ErrPermission) {
		t.Fatalf("ReadDir of the directory with 0333: got %v, want fs.ErrPermission", err)
	}
	l := sockettest.ListenAt(t, path, unixsock.ReplaceStale(), unixsock.UnlinkOnClose(), unixsock.Mode(0o640))
	sockettest.CheckExchange(t, path, l)
	wantInUse(t, path)
	if err := l.Close(); err != nil {
		t.Errorf("Close in a directory that cannot be read: got %v, want nil", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	wantOnly(t, dir)
}

// TestReplaceStaleLocksTheDirectoryOfTheFile listens at a path with ".." after a
// symbolic link. The directory of the file is the parent of the link's target, not
// the directory that holds the link.
func TestReplaceStaleLocksTheDirectoryOfTheFile(t *testing.T) {
	dir := sockettest.ShortDir(t)
	for _, name := range []string{"real", "real/sub"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatalf("Mkdir: %v", err)
		}
	}
	if err := os.Symlink("real/sub", filepath.Join(dir, "link")); err != nil {
		t.Fatalf("Symlink: %v", err)
	}
	path := dir + "/link/../s" // dir/real/s, not dir/s
	leaveStale(t, path)
	fd, err := unix.Open(filepath.Join(dir, "real"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open(2) of the directory: %v", err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		t.Fatalf("flock(2) of the directory: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		l, err := unixsock.Listen(path, unixsock.ReplaceStale())
		if err == nil {
			l.Close()
		}
		done <- err
	}()
	// Listen must not return for a while.
	select {
	case err := <-done:
		t.Errorf("Listen while the directory's lock is held: got %v at once, want no return", err)
		done <- err
	case <-time.After(300 * time.Millisecond):
	}
	unix.Close(fd)
	if err := sockettest.Receive(t, "Listen", done); err != nil {
		t.Errorf("Listen after the directory's lock is free: got %v, want nil", err)
	}
}

// connectFrom connects to path from a socket that it binds to name. Connect does
// not bind its socket. name may have the full length of an address.
func connectFrom(t testing.TB, name, path string) {
	t.Helper()
	fd, err := sockettest.Socket()
	if err != nil {
		t.Fatalf("socket(2): %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	addr := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i := range name {
		addr.Path[i] = int8(name[i])
	}
	n := unsafe.Offsetof(addr.Path) + uintptr(len(name))
	if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&addr)), n); errno != 0 {
		t.Fatalf("bind(2) to %q: %v", name, errno)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatalf("connect(2) to %s: %v", path, err)
	}
}

func TestAddressOfAnAbstractPeerIsWhole(t *testing.T) {
	l := sockettest.Listen(t)
	name := ownName(t, 70, "\x00\x00b\x00")
	connectFrom(t, name, l.Addr().String())
	if got := sockettest.Accept(t, l).RemoteAddr().String(); got != name {
		t.Errorf("RemoteAddr of a peer with an abstract name: got %q, want %q", got, name)
	}
}

func TestAddressOfAPeerAtAPathOfTheFullLengthIsWhole(t *testing.T) {
	l := sockettest.Listen(t)
	name := padded(t, sockettest.ShortDir(t), unixsock.MaxPathLen)
	connectFrom(t, name, l.Addr().String())
	if got := sockettest.Accept(t, l).RemoteAddr().String(); got != name {
		t.Errorf("RemoteAddr of a peer at a path of %d bytes: got %q, want %q", len(name), got, name)
	}
}

func TestConnectToAnAddressOfAConn(t *testing.T) {
	for _, name := range []string{ownName(t, 70, "\x00a\x00"), ownName(t, 70, "\x00\x00")} {
		l := sockettest.ListenAt(t, name)
		client := sockettest.Connect(t, name)
		server := sockettest.Accept(t, l)
		sockettest.CheckExchange(t, client.RemoteAddr().String(), l)
		sockettest.CheckExchange(t, server.LocalAddr().String(), l)
		sockettest.CheckExchange(t, l.Addr().String(), l)
	}
}

// TestDescriptorIsClosedOnce gives the number of a closed Conn's descriptor to
// another descriptor. A second close(2) of the number would close that one.
func TestDescriptorIsClosedOnce(t *testing.T) {
	c, peer := sockettest.Pair(t)
	fd := fdOf(t, c)
	c.Close()
	if err := unix.Dup3(fdOf(t, peer), fd, unix.O_CLOEXEC); err != nil {
		t.Fatalf("dup3(2) to the number of the closed Conn: %v", err)
	}
	defer unix.Close(fd)
	for _, way := range closes {
		if err := way.call(c); err != nil {
			t.Errorf("%s after Close: got %v, want nil", way.name, err)
		}
	}
	if !isOpen(fd) {
		t.Errorf("closes after Close: got descriptor %d of another socket closed, want it open", fd)
	}
}

func TestPeerCredOfAnotherUser(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l := sockettest.ListenAt(t, publicDir(t)+"/s", unixsock.Mode(0o666))
	h := sockettest.StartHelper(t, asNobody(t), "connect")
	h.Send(l.Addr().String())
	h.Expect("connected")
	want := unixsock.Cred{PID: h.Cmd.Process.Pid, UID: nobody, GID: nobody}
	if got := peerCredOf(t, sockettest.Accept(t, l)); got != want {
		t.Errorf("PeerCred of a client of another user: got %+v, want %+v", got, want)
	}
}

func TestPeerCredOfAServerOfAnotherUser(t *testing.T) {
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	h := sockettest.StartHelper(t, asNobody(t), "serve", dir+"/s")
	h.Expect("serving")
	want := unixsock.Cred{PID: h.Cmd.Process.Pid, UID: nobody, GID: nobody}
	if got := peerCredOf(t, sockettest.Connect(t, dir+"/s")); got != want {
		t.Errorf("PeerCred of a server of another user: got %+v, want %+v", got, want)
	}
}

// pidfdOf returns PeerPIDFD of c. It skips the test if the kernel has none.
func pidfdOf(t *testing.T, c *unixsock.Conn) *os.File {
	t.Helper()
	pidfd, err := c.PeerPIDFD()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("PeerPIDFD: %v", err)
	}
	t.Cleanup(func() { pidfd.Close() })
	return pidfd
}

// hasEnded reports whether the process of a pidfd ends within a time.
func hasEnded(t *testing.T, pidfd *os.File, within time.Duration) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(within.Milliseconds()))
		if err != unix.EINTR {
			if err != nil {
				t.Fatalf("poll(2) of a pidfd: %v", err)
			}
			return n > 0
		}
	}
}

func TestPeerPIDFDIsThePeersProcess(t *testing.T) {
	l := sockettest.Listen(t)
	client := sockettest.StartHelper(t, nil, "connect")
	client.Send(l.Addr().String())
	client.Expect("connected")
	server := sockettest.StartHelper(t, nil, "serve", l.Addr().String()+"2")
	server.Expect("serving")
	for what, test := range map[string]struct {
		c    *unixsock.Conn
		peer *sockettest.Helper
	}{
		"a client": {sockettest.Accept(t, l), client},
		"a server": {sockettest.Connect(t, l.Addr().String()+"2"), server},
	} {
		pidfd := pidfdOf(t, test.c)
		info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd.Fd()))
		if want := fmt.Sprintf("\nPid:\t%d\n", test.peer.Cmd.Process.Pid); err != nil || !strings.Contains(string(info), want) {
			t.Errorf("PeerPIDFD of %s: got %q, %v; want a pidfd with %q", what, info, err, want)
		}
		if flags, err := unix.FcntlInt(pidfd.Fd(), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 || err != nil {
			t.Errorf("PeerPIDFD of %s: got the flags %#x, %v; want FD_CLOEXEC", what, flags, err)
		}
		if hasEnded(t, pidfd, 0) {
			t.Errorf("PeerPIDFD of %s: got the end of a process that runs", what)
		}
		test.peer.Kill()
		if !hasEnded(t, pidfd, sockettest.Timeout) {
			t.Errorf("PeerPIDFD of %s that was killed: got no end of the process", what)
		}
		test.c.Close()
		if _, err := test.c.PeerPIDFD(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("PeerPIDFD of a closed Conn: got %v, want net.ErrClosed", err)
		}
	}
}

// TestPeerPIDFDIsNoStandardDescriptor closes the standard input, whose number the kernel
// gives to the next descriptor.
func TestPeerPIDFDIsNoStandardDescriptor(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	c, _ := newPairT(t)
	pidfdOf(t, c)
	os.Stdin.Close()
	if pidfd := pidfdOf(t, c); pidfd.Fd() <= 2 {
		t.Errorf("PeerPIDFD without a standard input: got descriptor %d, want one above 2", pidfd.Fd())
	}
}

func TestAdoptedNamesAreComplete(t *testing.T) {
	sockettest.CheckDescriptors(t)
	for _, name := range []string{
		"\x00a\x00b\x00", "\x00@", "\x00", "\x00" + t.Name() + "\x00\x00",
		sockettest.ShortDir(t) + "/@", string(make([]byte, unixsock.MaxPathLen)),
	} {
		original := sockettest.ListenAt(t, name)
		l := mustFileListener(t, mustFile(t, original))
		original.Close()
		if got := l.Addr().String(); got != name {
			t.Errorf("Addr of a FileListener: got %q, want %q", got, name)
		}
		client := sockettest.Connect(t, l.Addr().String())
		server := sockettest.Accept(t, l)
		if got := mustFileConn(t, mustFile(t, client)).RemoteAddr().String(); got != name {
			t.Errorf("RemoteAddr of a FileConn of the client: got %q, want %q", got, name)
		}
		if got := mustFileConn(t, mustFile(t, server)).LocalAddr().String(); got != name {
			t.Errorf("LocalAddr of a FileConn of the server: got %q, want %q", got, name)
		}
		mustConverse(t, client, server)
		l.Close()
	}
}

func TestASocketThatIsOnlyBoundIsRefused(t *testing.T) {
	fd, err := sockettest.Socket()
	if err != nil {
		t.Fatalf("socket(2): %v", err)
	}
	f := os.NewFile(uintptr(fd), "bound")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: sockettest.ShortDir(t) + "/s"}); err != nil {
		t.Fatalf("bind(2): %v", err)
	}
	if c, err := unixsock.FileConn(f); err == nil {
		c.Close()
		t.Error("FileConn of a socket that is only bound: got no error, want one")
	}
	if l, err := unixsock.FileListener(f); err == nil {
		l.Close()
		t.Error("FileListener of a socket that is only bound: got no error, want one")
	}
}

// addControlMessages sets an option of c. With it the kernel adds a control message
// to what c receives. The test is skipped if the kernel does not have the option.
func addControlMessages(t testing.TB, c *unixsock.Conn, option int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) })
	if err != nil {
		t.Skip("setsockopt(2): ", err)
	}
}

func TestFilesComeAmongCredentials(t *testing.T) {
	for name, option := range map[string]int{
		"credentials": unix.SO_PASSCRED, "security label": unix.SO_PASSSEC, "pidfd": unix.SO_PASSPIDFD,
	} {
		t.Run(name, func(t *testing.T) {
			sockettest.CheckDescriptors(t)
			from, to := newPairT(t)
			addControlMessages(t, to, option)
			r, w := newPipes(t, 2)
			for _, max := range []int{2, 1, 0} {
				if _, err := from.WriteFiles([]byte("x"), w...); err != nil {
					t.Fatalf("WriteFiles: %v", err)
				}
				before := sockettest.CountDescriptors(t)
				_, files, err := to.ReadFiles(make([]byte, 1), max)
				if (err == nil) != (max == 2) || (len(files) == 2) != (max == 2) {
					t.Errorf("ReadFiles with max %d of 2 files: got %d files, %v; want 2, nil if max is 2, else 0, an error", max, len(files), err)
				}
				closeFiles(files)
				if after := sockettest.CountDescriptors(t); after > before {
					t.Errorf("ReadFiles with max %d of 2 files: got %d open descriptors, want at most %d", max, after, before)
				}
			}
			if _, err := from.Write([]byte("x")); err != nil {
				t.Fatalf("Write: %v", err)
			}
			if n, files, err := to.ReadFiles(make([]byte, 1), 0); n != 1 || files != nil || err != nil {
				t.Errorf("ReadFiles of 1 byte without files: got %d, %v, %v; want 1, nil, nil", n, files, err)
			}
			closeFiles(w)
			wantAllClosed(t, r)
		})
	}
}

func TestOwnerLetsAnotherUserConnect(t *testing.T) {
	path := filepath.Join(publicDir(t), "s")
	other := sockettest.StartHelper(t, asNobody(t), "connect")
	for _, test := range []struct {
		name     string
		uid, gid int
		perm     fs.FileMode
		want     string
	}{
		{"group", -1, nobody, 0o660, "connected"},
		{"user", nobody, -1, 0o600, "connected"},
		{"group without permission", -1, nobody, 0o600, "permission denied"},
		{"no change", -1, -1, 0o660, "permission denied"},
	} {
		l := sockettest.ListenAt(t, path, unixsock.Owner(test.uid, test.gid), unixsock.Mode(test.perm), unixsock.UnlinkOnClose())
		info := lstat(t, path)
		stat := info.Sys().(*syscall.Stat_t)
		if uid, gid := int(stat.Uid), int(stat.Gid); uid != max(test.uid, 0) || gid != max(test.gid, 0) || info.Mode().Perm() != test.perm {
			t.Errorf("Listen with Owner(%d, %d) and Mode(%#o): got a file with %d:%d and %#o, want %d:%d and %#o",
				test.uid, test.gid, test.perm, uid, gid, info.Mode().Perm(), max(test.uid, 0), max(test.gid, 0), test.perm)
		}
		other.Send(path)
		if got := other.Next(); got != test.want {
			t.Errorf("connect of another user, %s: got %q, want %q", test.name, got, test.want)
		}
		l.Close()
	}
}

// TestOwnerIsRightBeforeAConnect lets another user connect all the time. The permissions
// allow others to connect, but not the owner, which Listen makes that user. So a connect
// succeeds only if it comes before the owner is set.
func TestOwnerIsRightBeforeAConnect(t *testing.T) {
	dir := publicDir(t)
	other := sockettest.StartHelper(t, asNobody(t), "watch owner", filepath.Join(dir, "s"))
	other.Expect("watching")
	for range 200 {
		l, err := unixsock.Listen(filepath.Join(dir, "s"), unixsock.Mode(0o066), unixsock.Owner(nobody, -1), unixsock.UnlinkOnClose())
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		l.Close()
	}
	other.Send("stop")
	other.Expect("never connected")
}

func TestOwnerWithoutPrivilegeLeavesNothing(t *testing.T) {
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	other := sockettest.StartHelper(t, asNobody(t), "listen as owner", filepath.Join(dir, "s"))
	if got, want := other.Next(), "cannot set the owner to 0:-1"; !strings.Contains(got, want) || !strings.HasPrefix(got, "permission: true") {
		t.Errorf("Listen of another user with Owner(0, -1): got %q, want fs.ErrPermission with %q", got, want)
	}
	wantOnly(t, dir)
}

func TestSetUnlinkOnCloseLeavesAFileThatReplacedTheAdoptedListeners(t *testing.T) {
	if !sockettest.ReportsBoundFile(t) {
		t.Skip("the kernel does not report which file a socket is bound to")
	}
	l := sockettest.Listen(t)
	path := l.Addr().String()
	if err := os.Remove(path); err != nil {
		t.Fatalf("Remove of the socket file: %v", err)
	}
	other := sockettest.ListenAt(t, path)
	adopted := adopt(t, l)
	adopted.SetUnlinkOnClose(true)
	adopted.Close()
	sockettest.CheckExchange(t, path, other)
}

func TestListenReplacesTheFileOfAServerThatWasKilledAtItsStart(t *testing.T) {
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatalf("Chmod of the directory: %v", err)
	}
	for i := range 10 {
		path := filepath.Join(dir, strconv.Itoa(i))
		for range 2 {
			server := sockettest.StartHelper(t, asNobody(t), "start and stop", path)
			server.Expect("started")
			server.Kill()
		}
	}
}

func TestOwnerOfAnAbstractNameIsAnError(t *testing.T) {
	sockettest.CheckDescriptors(t)
	l, err := unixsock.Listen(ownName(t, 80, ""), unixsock.Owner(0, 0))
	if l != nil || err == nil || !strings.Contains(err.Error(), "abstract name has no owner") {
		t.Errorf("Listen at an abstract name with Owner: got %v, %v; want nil, an error with %q", l, err, "abstract name has no owner")
	}
}

func TestPeerGroups(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a process other groups")
	}
	path := filepath.Join(publicDir(t), "s")
	l := sockettest.ListenAt(t, path, unixsock.Mode(0o666))
	for _, n := range []int{0, 1, 60} {
		groups := make([]uint32, n)
		want := make([]int, n)
		for i := range groups {
			groups[i], want[i] = uint32(1000+i), 1000+i
		}
		asOther := asNobody(t)
		h := sockettest.StartHelper(t, func(cmd *exec.Cmd) {
			asOther(cmd)
			cmd.SysProcAttr.Credential.Groups = groups
		}, "connect")
		h.Send(path)
		h.Expect("connected")
		c := sockettest.Accept(t, l)
		got, err := c.PeerGroups()
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		}
		if errors.Is(err, syscall.ERANGE) && os.Getenv("UNIXSOCK_TEST_EMULATOR") != "" {
			t.Skip("the emulator does not report so many groups: ", err)
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("PeerGroups of a process with %d groups: got %v, %v; want %v, nil", n, got, err, want)
		}
		c.Close()
		if groups, err := c.PeerGroups(); groups != nil || !errors.Is(err, net.ErrClosed) {
			t.Errorf("PeerGroups of a closed Conn: got %v, %v; want nil, net.ErrClosed", groups, err)
		}
	}
}

func TestPeerGroupsOfAPairAreTheProcesss(t *testing.T) {
	c, _ := newPairT(t)
	got, err := c.PeerGroups()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	want, wantErr := os.Getgroups()
	if wantErr != nil {
		t.Fatalf("Getgroups: %v", wantErr)
	}
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("PeerGroups of a Pair: got %v, %v; want %v, nil", got, err, want)
	}
}

func TestPeerGroupsOfAKilledProcess(t *testing.T) {
	asOther := asNobody(t)
	path := filepath.Join(publicDir(t), "s")
	l := sockettest.ListenAt(t, path, unixsock.Mode(0o666))
	h := sockettest.StartHelper(t, func(cmd *exec.Cmd) {
		asOther(cmd)
		cmd.SysProcAttr.Credential.Groups = []uint32{1234}
	}, "connect")
	h.Send(path)
	h.Expect("connected")
	h.Kill()
	got, err := sockettest.Accept(t, l).PeerGroups()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil || !slices.Equal(got, []int{1234}) {
		t.Errorf("PeerGroups of a process that has ended: got %v, %v; want [1234], nil", got, err)
	}
}
