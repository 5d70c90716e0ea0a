//go:build amd64 || arm64

package sockfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// Answers of a system call filter.
const (
	allow = unix.SECCOMP_RET_ALLOW
	kill  = unix.SECCOMP_RET_KILL_PROCESS
)

func refuse(errno syscall.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }

// A filter answers the system calls of a thread. socket(2) for another family than AF_UNIX
// gets the answer otherSocket.
type filter struct {
	calls       map[uint32]uint32
	otherSocket uint32
	others      uint32
}

// install installs the filter for the calling goroutine, which keeps its thread.
func (f filter) install(t *testing.T) {
	t.Helper()
	const loadNumber, loadDomain = 0, 16 // offsets in struct seccomp_data on little-endian machines
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET, K: k} }
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ, Jf: skip, K: k}
	}
	program := []unix.SockFilter{
		load(loadNumber), unless(unix.SYS_SOCKET, 4),
		load(loadDomain), unless(unix.AF_UNIX, 1), answer(allow), answer(f.otherSocket),
	}
	for number, k := range f.calls {
		program = append(program, unless(number, 1), answer(k))
	}
	program = append(program, answer(f.others))
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skipf("prctl(2): %v", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		t.Skipf("seccomp(2): %v", errno)
	}
}

// TestPlainListenMakesOnlyTheseCalls refuses all other system calls, and kills the process
// if it opens a socket that is not a Unix socket.
func TestPlainListenMakesOnlyTheseCalls(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	dir := sockettest.ShortDir(t)
	sockettest.ListenAt(t, filepath.Join(dir, "first")) // starts the poller
	f := filter{calls: map[uint32]uint32{}, otherSocket: kill, others: refuse(unix.EPERM)}
	for _, number := range []uint32{
		unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_NEWFSTATAT, unix.SYS_FCNTL, unix.SYS_EPOLL_CTL,
		// Listen does not ask for the kernel's version. If it did, a socket would follow.
		unix.SYS_UNAME, unix.SYS_FSTAT,
		// Of the runtime, and of the report of the test's result.
		unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_CLOSE, unix.SYS_EPOLL_PWAIT, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		unix.SYS_FUTEX, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_MPROTECT,
		unix.SYS_MUNMAP, unix.SYS_NANOSLEEP, unix.SYS_READ, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK,
		unix.SYS_RT_SIGRETURN, unix.SYS_SCHED_YIELD, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_WRITE,
	} {
		f.calls[number] = allow
	}
	f.install(t)
	sockettest.ListenAt(t, filepath.Join(dir, "s"))
	sockettest.ListenAt(t, unixsock.Abstract(dir))
}

func TestOwnerThatChangesNothingIsNotSet(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	path := filepath.Join(sockettest.ShortDir(t), "s")
	filter{calls: map[uint32]uint32{
		unix.SYS_FCHOWNAT: refuse(unix.EPERM), unix.SYS_FCHOWN: refuse(unix.EPERM),
	}, otherSocket: allow, others: allow}.install(t)
	if _, err := unixsock.Listen(path, unixsock.Owner(os.Getuid()+1, -1)); !errors.Is(err, unix.EPERM) {
		t.Fatalf("Listen with another Owner where chown(2) is refused: got %v, want EPERM", err)
	}
	for _, owner := range [][2]int{{-1, -1}, {os.Getuid(), -1}, {-1, os.Getgid()}, {os.Getuid(), os.Getgid()}} {
		sockettest.ListenAt(t, path, unixsock.Owner(owner[0], owner[1]), unixsock.Mode(0o660), unixsock.UnlinkOnClose()).Close()
	}
}

// TestAdoptedListenerLeavesTheFileOfAnother closes adopted listeners whose path another
// listener has taken over, where the kernel does not say which file a socket is bound to, or
// says only the inode's number.
func TestAdoptedListenerLeavesTheFileOfAnother(t *testing.T) {
	diag, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Skip("the kernel does not report which file a socket is bound to")
	}
	unix.Close(diag)
	takeOver := func(t *testing.T) (l, other *unixsock.Listener) {
		l = sockettest.Listen(t)
		sockettest.Check(t, os.Remove(l.Addr().String()))
		return l, sockettest.ListenAt(t, l.Addr().String())
	}
	for name, prepare := range map[string]func(t *testing.T) (l, other *unixsock.Listener){
		"namespace": func(t *testing.T) (l, other *unixsock.Listener) {
			l, other = takeOver(t)
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("cannot make a network namespace: %v", err)
			}
			return l, other
		},
		"netlink": func(t *testing.T) (l, other *unixsock.Listener) {
			l, other = takeOver(t)
			filter{otherSocket: refuse(unix.EAFNOSUPPORT), others: allow}.install(t)
			return l, other
		},
		"inode": func(t *testing.T) (l, other *unixsock.Listener) {
			path := filepath.Join(sockettest.ShortDir(t), "s")
			l = onNewTmpfs(t, path)
			other = onNewTmpfs(t, path) // the first file of each has the same number
			return l, other
		},
	} {
		t.Run(name, func(t *testing.T) {
			if !sockettest.InChild(t, nil) {
				return
			}
			l, other := prepare(t)
			f := sockettest.Got(l.File()).Must(t)
			adopted := sockettest.Got(unixsock.FileListener(f)).Must(t)
			adopted.SetUnlinkOnClose(true)
			sockettest.Check(t, adopted.Close())
			sockettest.CheckExchange(t, other.Addr().String(), other)
		})
	}
}

// onNewTmpfs listens on a new file system that is mounted over the directory of path, in a
// mount namespace of the calling goroutine.
func onNewTmpfs(t *testing.T, path string) *unixsock.Listener {
	t.Helper()
	runtime.LockOSThread()
	dir := filepath.Dir(path)
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"),
	); err != nil {
		t.Skipf("cannot mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return sockettest.ListenAt(t, path)
}
