package stress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
	"golang.org/x/sys/unix"
)

// TestFullOrReadOnlyFilesystemIsAnError calls Listen in a file system that is full or
// read-only. The error is ENOSPC or EROFS, Listen leaves no file, and open listeners stay
// usable.
func TestFullOrReadOnlyFilesystemIsAnError(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mount needs root")
	}
	probe := exec.Command("/proc/self/exe", "-test.run=^$")
	sockettest.ChildEnv(probe)
	probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := probe.Run(); err != nil {
		t.Skipf("cannot make a mount namespace: %v", err)
	}
	if !sockettest.InChild(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	}) {
		return
	}
	dir := sockettest.ShortDir(t)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("cannot make a mount namespace: %v", err)
	}
	// The file system has room for its root directory and three files.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,nr_inodes=4"); err != nil {
		t.Skipf("cannot mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	at := func(name string) string { return filepath.Join(dir, name) }

	stale := sockettest.ListenAt(t, at("stale"))
	stale.Close()
	l := sockettest.ListenAt(t, at("l"), unixsock.UnlinkOnClose())
	other := sockettest.ListenAt(t, at("other"), unixsock.UnlinkOnClose())
	for what, opts := range map[string][]unixsock.ListenOption{
		"without options":  nil,
		"with all options": {unixsock.Mode(0o600), unixsock.ReplaceStale(), unixsock.UnlinkOnClose()},
	} {
		if _, err := unixsock.Listen(at("more"), opts...); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Listen %s in a full file system: got %v, want ENOSPC", what, err)
		}
		if sockettest.IsSocketFile(at("more")) {
			t.Errorf("Listen %s in a full file system: got a socket file, want none", what)
		}
	}
	sockettest.CheckExchange(t, at("l"), l)
	// ReplaceStale needs no room to replace a file.
	sockettest.CheckExchange(t, at("stale"), sockettest.ListenAt(t, at("stale"), unixsock.ReplaceStale()))
	if err := other.Close(); err != nil {
		t.Errorf("Close with UnlinkOnClose in a full file system: got %v, want no error", err)
	}
	again := sockettest.ListenAt(t, at("more"), unixsock.Mode(0o600))
	again.Close()

	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatalf("remount: %v", err)
		}
	}
	remount(unix.MS_RDONLY)
	for what, opts := range map[string][]unixsock.ListenOption{
		"without options":    nil,
		"with Mode":          {unixsock.Mode(0o600)},
		"with ReplaceStale":  {unixsock.ReplaceStale()},
		"with UnlinkOnClose": {unixsock.UnlinkOnClose()},
	} {
		if _, err := unixsock.Listen(at("new"), opts...); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Listen %s in a read-only file system: got %v, want EROFS", what, err)
		}
	}
	if _, err := unixsock.Listen(at("more"), unixsock.ReplaceStale()); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Listen with ReplaceStale at a stale file in a read-only file system: got %v, want EROFS", err)
	}
	sockettest.CheckExchange(t, at("l"), l) // connect writes nothing
	if err := l.Close(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Close with UnlinkOnClose in a read-only file system: got %v, want EROFS", err)
	}
	remount(0)
	sockettest.CheckExchange(t, at("l"), sockettest.ListenAt(t, at("l"), unixsock.ReplaceStale()))
}

// rawPeer returns a Conn and the descriptor of its peer.
func rawPeer(t *testing.T) (c *unixsock.Conn, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("socketpair(2): %v", err)
	}
	f := os.NewFile(uintptr(fds[0]), "")
	defer f.Close()
	if c, err = unixsock.FileConn(f); err != nil {
		t.Fatalf("FileConn: %v", err)
	}
	t.Cleanup(func() { c.Close(); unix.Close(fds[1]) })
	return c, fds[1]
}

// setOption sets a socket option of c. It skips the test if the kernel lacks the option.
func setOption(t *testing.T, c *unixsock.Conn, option int, name string) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatalf("SyscallConn: %v", err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) })
	if err != nil {
		t.Skipf("setsockopt(2) of %s: %v", name, err)
	}
}

// TestReadFilesIgnoresCredentials receives control messages with credentials before, after
// and without those with descriptors.
func TestReadFilesIgnoresCredentials(t *testing.T) {
	before := sockettest.CountDescriptors(t)
	t.Run("", func(t *testing.T) {
		c, peer := rawPeer(t)
		setOption(t, c, unix.SO_PASSCRED, "SO_PASSCRED")
		cred := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
		rights := func(n int) []byte { return unix.UnixRights(make([]int, n)...) }
		for _, m := range []struct {
			what string
			oob  []byte
			want int
		}{
			{"nothing", nil, 0},
			{"credentials", cred, 0},
			{"no descriptors", rights(0), 0},
			{"a descriptor", rights(1), 1},
			{"credentials, then two descriptors", append(cred[:len(cred):len(cred)], rights(2)...), 2},
			{"two descriptors, then credentials", append(rights(2), cred...), 2},
			{"two messages of one descriptor", append(rights(1), rights(1)...), 2},
			{"as many as WriteFiles sends", rights(maxFiles), maxFiles},
		} {
			if err := unix.Sendmsg(peer, []byte("!"), m.oob, nil, 0); err != nil {
				if m.what == "two messages of one descriptor" && err == unix.EINVAL {
					continue // the kernel accepts only one message of each kind
				}
				t.Fatalf("sendmsg(2) of %s: %v", m.what, err)
			}
			n, files, err := c.ReadFiles(make([]byte, 1), m.want)
			if n != 1 || len(files) != m.want || err != nil {
				t.Errorf("ReadFiles of %s: got %d bytes, %d files, %v; want 1 byte, %d files", m.what, n, len(files), err, m.want)
			}
			closeAll(files)
		}
	})
	sockettest.WaitDescriptors(t, before)
}

// TestReadFilesClosesPidfds makes the kernel add a pidfd of the sender to each message. The
// peer did not send this descriptor. ReadFiles neither returns it nor leaves it open.
func TestReadFilesClosesPidfds(t *testing.T) {
	const passPidfd = 76 // SO_PASSPIDFD, Linux 6.5
	before := sockettest.CountDescriptors(t)
	t.Run("", func(t *testing.T) {
		c, peer := rawPeer(t)
		setOption(t, c, passPidfd, "SO_PASSPIDFD")
		for _, rights := range []int{0, 1} {
			if err := unix.Sendmsg(peer, []byte("!"), unix.UnixRights(make([]int, rights)...), nil, 0); err != nil {
				t.Fatalf("sendmsg(2) of %d descriptors: %v", rights, err)
			}
			n, files, err := c.ReadFiles(make([]byte, 1), 1)
			if n != 1 || len(files) != rights || err != nil {
				t.Errorf("ReadFiles of %d descriptors and a pidfd: got %d bytes, %d files, %v; want 1 byte, %d files", rights, n, len(files), err, rights)
			}
			closeAll(files)
		}
		c.Close()
	})
	if after := sockettest.CountDescriptors(t); after > before {
		t.Errorf("open descriptors after Close: got %d, want at most %d", after, before)
	}
}

// storm sends signals to every thread of this process until stop is called.
func storm(t *testing.T, signals ...syscall.Signal) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var sent int
	wg.Go(func() {
		for ctx.Err() == nil {
			tasks, err := os.ReadDir("/proc/self/task")
			if err != nil {
				t.Errorf("ReadDir of the process's threads: %v", err)
				return
			}
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				for _, s := range signals {
					unix.Tgkill(os.Getpid(), tid, s)
					sent++
				}
			}
			unix.Kill(os.Getpid(), signals[0])
			time.Sleep(50 * time.Microsecond) // leaves processor time for the test
		}
	})
	return func() {
		cancel()
		wg.Wait()
		t.Logf("sent %d signals", sent)
	}
}

// neverRestart makes a signal interrupt system calls. It clears SA_RESTART, which Go sets
// so that the kernel restarts the calls. It reports whether it succeeded. It supports most
// architectures: on some, the kernel's structure has another layout.
func neverRestart(s syscall.Signal) bool {
	switch runtime.GOARCH {
	case "mips", "mipsle", "mips64", "mips64le", "alpha", "sparc64":
		return false
	}
	var action struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const saRestart = 0x10000000
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&action)), 8, 0, 0); errno != 0 {
		return false
	}
	if action.flags&saRestart == 0 {
		return false
	}
	action.flags &^= saRestart
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	return errno == 0
}

// TestSignalsInterruptNoCall runs servers and clients while another goroutine sends many
// signals to the process. No call fails.
func TestSignalsInterruptNoCall(t *testing.T) {
	if !sockettest.InChild(t, sockettest.WithRounds) {
		return
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	if !neverRestart(syscall.SIGCHLD) || !neverRestart(syscall.SIGURG) {
		t.Log("cannot clear SA_RESTART: no signal interrupts a system call")
	}
	l := sockettest.Listen(t, unixsock.Backlog(1))
	path := l.Addr().String()
	goroutines := runtime.NumGoroutine()
	stop := storm(t, syscall.SIGURG, syscall.SIGCHLD)

	var servers, clients sync.WaitGroup
	accepts := slices.Clone(acceptors)
	// Readiness does not reserve a connection: another goroutine may accept it.
	accepts[2] = func(ctx context.Context, l *unixsock.Listener) (*unixsock.Conn, error) {
		<-l.Ready()
		ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		return l.AcceptContext(ctx)
	}
	for _, accept := range accepts {
		servers.Go(func() {
			for {
				c, err := accept(context.Background(), l)
				switch {
				case errors.Is(err, net.ErrClosed):
					return
				case errors.Is(err, context.DeadlineExceeded):
					continue
				case err != nil:
					t.Errorf("accept during signals: got %v, want a connection", err)
					return
				}
				servers.Go(func() {
					defer c.Close()
					if _, err := io.Copy(c, c); err != nil {
						t.Errorf("io.Copy of the echo during signals: got %v, want no error", err)
					}
				})
			}
		})
	}
	until := time.Now().Add(time.Duration(sockettest.Times(1000)) * time.Millisecond)
	for range 8 {
		clients.Go(func() {
			for time.Now().Before(until) && !t.Failed() {
				if err := callEverything(path); err != nil {
					t.Errorf("calls of a client during signals: got %v, want no error", err)
				}
			}
		})
	}
	clients.Go(func() {
		dir := sockettest.ShortDir(t)
		for i := 0; time.Now().Before(until); i++ {
			l, err := unixsock.Listen(filepath.Join(dir, "s"), unixsock.Mode(0o600), unixsock.ReplaceStale())
			if err != nil {
				t.Errorf("Listen during signals: got %v, want a listener", err)
				return
			}
			if err := l.Close(); err != nil {
				t.Errorf("Close of a listener during signals: got %v, want no error", err)
			}
		}
	})
	clients.Wait()
	stop()
	if err := l.Close(); err != nil {
		t.Errorf("Close of the listener: got %v, want no error", err)
	}
	servers.Wait()
	sockettest.WaitGoroutines(t, goroutines)
}

// callEverything connects to path, where a server echoes, and makes the calls that a Conn
// offers. It checks the echo.
func callEverything(path string) error {
	c, err := unixsock.Connect(path)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.PeerCred(); err != nil {
		return err
	}
	f, err := c.File()
	if err != nil {
		return err
	}
	f.Close()
	const size = 300 << 10
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(c, &textReader{}, size)
		if err == nil {
			_, err = c.WriteFiles([]byte{text(0).at(size)}, os.Stdin)
		}
		sent <- errors.Join(err, c.CloseWrite())
	}()
	to := &textChecker{}
	b := make([]byte, 1+rand.IntN(32<<10))
	for {
		n, files, err := c.ReadFiles(b, 1)
		closeAll(files)
		if _, wrong := to.Write(b[:n]); wrong != nil {
			return wrong
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if to.offset != size+1 {
		return fmt.Errorf("echo of %d bytes: got %d, want %d", size+1, to.offset, size+1)
	}
	return <-sent
}
