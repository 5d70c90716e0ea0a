//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sockettest"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// socket returns a non-blocking socket.
func socket(t testing.TB, socketType int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, socketType, 0)
	if err != nil {
		t.Skipf("no socket of type %d: %v", socketType, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatalf("SetNonblock: %v", err)
	}
	return fd
}

// bound returns a socket that is bound to a new path.
func bound(t testing.TB, socketType int) (fd int, path string) {
	t.Helper()
	fd, path = socket(t, socketType), filepath.Join(sockettest.ShortDir(t), "s")
	if err := sys.Bind(fd, path); err != nil {
		t.Fatalf("Bind: %v", err)
	}
	return fd, path
}

// listener returns a listening stream socket.
func listener(t testing.TB, backlog int) (fd int, path string) {
	t.Helper()
	fd, path = bound(t, unix.SOCK_STREAM)
	if err := sys.Listen(fd, backlog); err != nil {
		t.Fatalf("Listen: %v", err)
	}
	return fd, path
}

func connect(t testing.TB, path string) int {
	t.Helper()
	fd := socket(t, unix.SOCK_STREAM)
	if err := sys.Connect(fd, path); err != nil {
		t.Fatalf("Connect: %v", err)
	}
	return fd
}

func pair(t testing.TB) (fd1, fd2 int) {
	t.Helper()
	fd1, fd2, err := sys.Socketpair()
	if err != nil {
		t.Fatalf("Socketpair: %v", err)
	}
	t.Cleanup(func() { sys.CloseAll([]int{fd1, fd2}) })
	return fd1, fd2
}

func isMarked(t testing.TB, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatalf("FcntlInt: %v", err)
	}
	status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatalf("FcntlInt: %v", err)
	}
	return flags&unix.FD_CLOEXEC != 0 && status&unix.O_NONBLOCK != 0
}

func TestNewDescriptorsAreNonBlockingAndCloseOnExec(t *testing.T) {
	lfd, path := listener(t, 4)
	client, err := sys.Socket()
	if err != nil {
		t.Fatalf("Socket: %v", err)
	}
	defer sys.Close(client)
	if err := sys.Connect(client, path); err != nil {
		t.Fatalf("Connect: %v", err)
	}
	server, _, err := sys.Accept(lfd)
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	defer sys.Close(server)
	copied, err := sys.Duplicate(client)
	if err != nil {
		t.Fatalf("Duplicate: %v", err)
	}
	defer sys.Close(copied)
	fd1, fd2 := pair(t)
	for call, fd := range map[string]int{
		"Socket": client, "Accept": server, "Duplicate": copied, "Socketpair, first": fd1, "Socketpair, second": fd2,
	} {
		if !isMarked(t, fd) {
			t.Errorf("%s: the descriptor is inherited or blocks, want neither", call)
		}
	}
}

func TestAcceptWithoutAConnectionWouldBlock(t *testing.T) {
	lfd, _ := listener(t, 4)
	if fd, _, err := sys.Accept(lfd); err != sys.ErrWouldBlock {
		t.Errorf("Accept: got %d, %v, want ErrWouldBlock", fd, err)
	}
}

func TestConnectToAFullBacklogWouldBlock(t *testing.T) {
	_, path := listener(t, 0)
	sockettest.FillBacklog(t, path)
	if err := sys.Connect(socket(t, unix.SOCK_STREAM), path); err != sys.ErrWouldBlock {
		t.Errorf("Connect: got %v, want ErrWouldBlock", err)
	}
}

func TestAcceptOutOfDescriptorsWithoutAConnectionWouldBlock(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	lfd, _ := listener(t, 4)
	defer sockettest.ExhaustDescriptors(t)()
	for range 3 {
		if fd, _, err := sys.Accept(lfd); err != sys.ErrWouldBlock {
			t.Errorf("Accept: got %d, %v, want ErrWouldBlock", fd, err)
		}
	}
}

func TestAcceptOutOfDescriptorsWithAConnectionFails(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	lfd, path := listener(t, 4)
	for range 2 { // gVisor and macOS drop the first
		connect(t, path)
	}
	defer sockettest.ExhaustDescriptors(t)()
	if fd, _, err := sys.Accept(lfd); !errors.Is(err, unix.EMFILE) {
		t.Errorf("Accept: got %d, %v, want EMFILE", fd, err)
	}
}

func TestAcceptOutOfDescriptorsKeepsTheConnection(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.KeepsPendingWithoutDescriptors(t) {
		t.Skip("accept(2) drops a connection for which there is no descriptor")
	}
	lfd, path := listener(t, 4)
	connect(t, path)
	free := sockettest.ExhaustDescriptors(t)
	for range 3 {
		if fd, _, err := sys.Accept(lfd); !errors.Is(err, unix.EMFILE) {
			t.Fatalf("Accept: got %d, %v, want EMFILE", fd, err)
		}
	}
	free()
	fd, _, err := sys.Accept(lfd)
	if err != nil {
		t.Fatalf("Accept with a free descriptor: %v", err)
	}
	sys.Close(fd)
}

func TestReadReturnsEOFAtTheEnd(t *testing.T) {
	fd, peer := pair(t)
	if err := sys.ShutdownWrite(peer); err != nil {
		t.Fatalf("ShutdownWrite: %v", err)
	}
	if n, err := sys.Read(fd, make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read: got %d, %v, want 0, EOF", n, err)
	}
}

func TestReadOfNothingIsNoEOF(t *testing.T) {
	fd, _ := pair(t)
	if n, err := sys.Read(fd, nil); n != 0 || err != nil {
		t.Errorf("Read(nil): got %d, %v, want 0, nil", n, err)
	}
}

func TestWritevOfEmptyBuffersWritesNothing(t *testing.T) {
	fd, _ := pair(t)
	for _, v := range [][][]byte{{{}}, {nil, {}, nil}} {
		if n, err := sys.Writev(fd, v); n != 0 || err != nil {
			t.Errorf("Writev(%v): got %d, %v, want 0, nil", v, n, err)
		}
	}
}

func TestWritevSkipsEmptyBuffers(t *testing.T) {
	fd, peer := pair(t)
	if n, err := sys.Writev(fd, [][]byte{{}, []byte("ab"), nil, []byte("c")}); n != 3 || err != nil {
		t.Fatalf("Writev: got %d, %v, want 3, nil", n, err)
	}
	b := make([]byte, 8)
	if n, err := sys.Read(peer, b); string(b[:n]) != "abc" || err != nil {
		t.Errorf("Read: got %q, %v, want abc, nil", b[:n], err)
	}
}

func TestWritevOfMaxIovecs(t *testing.T) {
	fd, peer := pair(t)
	v := slices.Repeat([][]byte{{'x'}}, sys.MaxIovecs)
	if n, err := sys.Writev(fd, v); n != sys.MaxIovecs || err != nil {
		t.Fatalf("Writev of %d buffers: got %d, %v, want all, nil", len(v), n, err)
	}
	if n, err := sys.Read(peer, make([]byte, 2*sys.MaxIovecs)); n != sys.MaxIovecs || err != nil {
		t.Errorf("Read: got %d, %v, want %d, nil", n, err, sys.MaxIovecs)
	}
}

// huge returns more bytes than a call may transfer. The kernel provides no memory
// for pages that nobody touches.
func huge(t testing.TB) []byte {
	t.Helper()
	if testing.Short() || sockettest.Race {
		t.Skip("needs 1 GiB of address space")
	}
	b, err := unix.Mmap(-1, 0, sys.MaxIO+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func TestCallsTakeBuffersLongerThanMaxIO(t *testing.T) {
	b := huge(t)
	for name, write := range map[string]func(fd int) (int, error){
		"Write":      func(fd int) (int, error) { return sys.Write(fd, b) },
		"SendRights": func(fd int) (int, error) { return sys.SendRights(fd, b, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			fd, peer := pair(t)
			sent, err := write(fd)
			if sent <= 0 || sent > sys.MaxIO || err != nil {
				t.Fatalf("%s of MaxIO+1 bytes: got %d, %v, want a part of them", name, sent, err)
			}
			if n, err := sys.Read(peer, b); n <= 0 || n > sent || err != nil {
				t.Errorf("Read into MaxIO+1 bytes: got %d, %v, want at most %d, nil", n, err, sent)
			}
		})
	}
}

// A regular file takes and gives as many bytes as a call asks for.
func TestReadAsksForAtMostMaxIO(t *testing.T) {
	b := huge(t)
	f, err := os.Create(filepath.Join(sockettest.ShortDir(t), "file"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	defer f.Close()
	if err := f.Truncate(sys.MaxIO + 1); err != nil {
		t.Skip(err)
	}
	if n, err := sys.Read(int(f.Fd()), b); n != sys.MaxIO || err != nil {
		t.Errorf("Read into MaxIO+1 bytes from a file of that size: got %d, %v, want %d, nil", n, err, sys.MaxIO)
	}
}

func TestWriteAsksForAtMostMaxIO(t *testing.T) {
	b := huge(t)
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	if n, err := sys.Write(int(f.Fd()), b); n != sys.MaxIO || err != nil {
		t.Errorf("Write of MaxIO+1 bytes to /dev/null: got %d, %v, want %d, nil", n, err, sys.MaxIO)
	}
}

func TestReceiveRightsHasRoomForMaxRights(t *testing.T) {
	fd, peer := pair(t)
	fds := slices.Repeat([]int{fd}, sys.MaxRights)
	if n, err := sys.SendRights(fd, []byte("x"), fds); n != 1 || err != nil {
		t.Fatalf("SendRights of %d descriptors: got %d, %v, want 1, nil", len(fds), n, err)
	}
	n, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	sys.CloseAll(got)
	if n != 1 || len(got) != sys.MaxRights || err != nil {
		t.Errorf("ReceiveRights: got %d bytes, %d descriptors, %v; want 1, %d, nil", n, len(got), err, sys.MaxRights)
	}
}

func TestReceivedDescriptorsAreCloseOnExec(t *testing.T) {
	fd, peer := pair(t)
	if _, err := sys.SendRights(fd, []byte("x"), []int{fd}); err != nil {
		t.Fatalf("SendRights: %v", err)
	}
	_, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	defer sys.CloseAll(got)
	if len(got) != 1 || err != nil {
		t.Fatalf("ReceiveRights: got the descriptors %v, %v; want one, nil", got, err)
	}
	if !isMarked(t, got[0]) {
		t.Error("ReceiveRights: the descriptor is inherited or blocks, want neither")
	}
}

// TestReceivedDescriptorsAreNotStandardOnes closes the standard input, output and error, and
// receives descriptors, which the kernel gives the lowest numbers.
func TestReceivedDescriptorsAreNotStandardOnes(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	fd, peer := pair(t)
	if _, err := sys.SendRights(fd, []byte("x"), []int{fd, fd, fd}); err != nil {
		t.Fatalf("SendRights: %v", err)
	}
	var saved []int
	for standard := range 3 {
		copied, err := sys.Duplicate(standard)
		if err != nil {
			t.Fatalf("Duplicate: %v", err)
		}
		saved = append(saved, copied)
		unix.Close(standard)
	}
	n, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	for standard, copied := range saved {
		if used, err := unix.FcntlInt(uintptr(standard), unix.F_GETFD, 0); err == nil {
			defer t.Errorf("descriptor %d after ReceiveRights: got an open one (flags %d), want none", standard, used)
		}
		if _, err := unix.FcntlInt(uintptr(copied), unix.F_DUPFD, standard); err != nil {
			panic(err) // the test has no output
		}
		unix.Close(copied)
	}
	if n != 1 || len(got) != 3 || err != nil {
		t.Fatalf("ReceiveRights: got %d bytes, the descriptors %v, %v; want 1, three, nil", n, got, err)
	}
	for _, received := range got {
		if received <= 2 || !isMarked(t, received) {
			t.Errorf("ReceiveRights without standard descriptors: got %d, want a number above 2, close-on-exec", received)
		}
	}
	sys.CloseAll(got)
}

func TestReceiveRightsOutOfDescriptorsFails(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.ReportsRightsCutByLimit(t) {
		t.Skip("recvmsg(2) does not report that descriptors are missing")
	}
	fd, peer := pair(t)
	if _, err := sys.SendRights(fd, []byte("x"), []int{fd}); err != nil {
		t.Fatalf("SendRights: %v", err)
	}
	defer sockettest.ExhaustDescriptors(t)()
	n, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	// The kernel reports the refusal of a security module in the same way.
	const want = "too many open files, or refused by a security module"
	if n != 1 || len(got) != 0 || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("ReceiveRights: got %d bytes, the descriptors %v, %v; want 1, none, an error with %q", n, got, err, want)
	}
}

func TestSendRightsWithoutRoomSendsNothing(t *testing.T) {
	fd, peer := pair(t)
	fill := make([]byte, 64<<10)
	sent := 0
	for {
		n, err := sys.Write(fd, fill)
		if err == sys.ErrWouldBlock {
			break
		}
		if err != nil {
			t.Fatalf("Write: %v", err)
		}
		sent += n
	}
	if n, err := sys.SendRights(fd, []byte("x"), []int{fd}); n != 0 || err != sys.ErrWouldBlock {
		t.Fatalf("SendRights: got %d, %v, want 0, ErrWouldBlock", n, err)
	}
	for sent > 0 {
		n, got, err := sys.ReceiveRights(peer, fill)
		if err != nil || len(got) != 0 {
			t.Fatalf("ReceiveRights with %d bytes unread: got the descriptors %v, %v; want none, nil", sent, got, err)
		}
		sent -= n
	}
	if n, got, err := sys.ReceiveRights(peer, fill); err != sys.ErrWouldBlock {
		t.Errorf("ReceiveRights after the last byte: got %d bytes, the descriptors %v, %v; want ErrWouldBlock", n, got, err)
	}
}

// TestSendRightsIntoLittleRoomWaits leaves less room than a message with descriptors takes.
func TestSendRightsIntoLittleRoomWaits(t *testing.T) {
	fd, peer := pair(t)
	for err := error(nil); err != sys.ErrWouldBlock; {
		if _, err = sys.Write(fd, make([]byte, 100)); err != nil && err != sys.ErrWouldBlock {
			t.Fatalf("Write: %v", err)
		}
	}
	many := slices.Repeat([]int{fd}, sys.MaxRights)
	var got []int
	for sent := 0; len(got) == 0; {
		if sent == 0 {
			n, err := sys.SendRights(fd, []byte("x"), many)
			if err != nil && err != sys.ErrWouldBlock {
				t.Fatalf("SendRights: got %d, %v, want 1, or ErrWouldBlock until there is room", n, err)
			}
			sent = n
		}
		n, fds, err := sys.ReceiveRights(peer, make([]byte, 50))
		if n == 0 {
			t.Fatalf("ReceiveRights: got 0 bytes, %v, want the descriptors before the last byte", err)
		}
		got = fds
	}
	sys.CloseAll(got)
	if len(got) != len(many) {
		t.Errorf("ReceiveRights: got %d descriptors, want %d", len(got), len(many))
	}
}

func TestSendRightsWithMoreThanFitsLosesNothing(t *testing.T) {
	for _, count := range []int{1, 2, 100, sys.MaxRights} {
		fd, peer := pair(t)
		b := make([]byte, 1<<20)
		sent, err := sys.SendRights(fd, b, slices.Repeat([]int{fd}, count))
		if sent == 0 || err != nil {
			t.Fatalf("SendRights of 1 MiB and %d descriptors: got %d, %v, want a part of the bytes", count, sent, err)
		}
		n, got, err := sys.ReceiveRights(peer, b)
		sys.CloseAll(got)
		for n < sent && err == nil {
			var m int
			m, err = sys.Read(peer, b)
			n += m
		}
		if n != sent || len(got) != count || err != nil {
			t.Errorf("ReceiveRights: got %d bytes, %d descriptors, %v; want %d, %d, nil", n, len(got), err, sent, count)
		}
	}
}

// TestClientWithALongNameIsAccepted binds a client to a name that an address of the system's
// headers has no room for. NetBSD and DragonFly allow it.
func TestClientWithALongNameIsAccepted(t *testing.T) {
	for _, size := range []int{sys.MaxPathLen + 1, 253} {
		lfd, path := listener(t, 4)
		client, dir := socket(t, unix.SOCK_STREAM), sockettest.ShortDir(t)
		name := dir + "/" + strings.Repeat("n", size-len(dir)-1)
		if err := sys.Bind(client, name); err != nil {
			t.Skipf("the kernel binds no socket to a name of %d bytes: %v", size, err)
		}
		if err := sys.Connect(client, path); err != nil {
			t.Fatalf("Connect: %v", err)
		}
		server, peer, err := sys.Accept(lfd)
		if err == sys.ErrWouldBlock {
			t.Skip("the name cannot be read without raw system calls, and the connection is lost")
		}
		if peer != name || err != nil {
			t.Fatalf("Accept of a client with a name of %d bytes: got %q, %v, want its name", size, peer, err)
		}
		defer sys.Close(server)
		if _, remote, err := sys.AdoptStream(server, false); remote != name || err != nil {
			t.Errorf("AdoptStream: got the peer %q, %v, want its name of %d bytes", remote, err, size)
		}
		if local, _, err := sys.AdoptStream(client, false); local != name || err != nil {
			t.Errorf("AdoptStream: got the name %q, %v, want that of %d bytes", local, err, size)
		}
	}
}

func TestErrorsNameTheSystemCall(t *testing.T) {
	missing := filepath.Join(sockettest.ShortDir(t), "s")
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Skip(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	for want, err := range map[string]error{
		"bind":     sys.Bind(fd, missing),
		"connect":  sys.Connect(socket(t, unix.SOCK_STREAM), missing),
		"listen":   sys.Listen(fd, 1),
		"shutdown": sys.ShutdownWrite(fd),
	} {
		var syscallErr *os.SyscallError
		if !errors.As(err, &syscallErr) || syscallErr.Syscall != want {
			t.Errorf("%s: got %v, want a SyscallError that names it", want, err)
		}
	}
}
