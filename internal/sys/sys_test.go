//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys_test

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock/internal/sockettest"
	"github.com/go-unixsock/unixsock/internal/sys"
)

// socket returns a socket that is closed at the end of the test.
func socket(t testing.TB) int {
	t.Helper()
	fd := sockettest.Got(sys.Socket()).Must(t)
	t.Cleanup(func() { sys.Close(fd) })
	return fd
}

// listener returns a listening socket and its path.
func listener(t testing.TB) (fd int, path string) {
	t.Helper()
	fd, path = socket(t), filepath.Join(sockettest.ShortDir(t), "s")
	sockettest.Check(t, sys.Bind(fd, path))
	sockettest.Check(t, sys.Listen(fd, 4))
	return fd, path
}

func pair(t testing.TB) (fd1, fd2 int) {
	t.Helper()
	fd1, fd2, err := sys.Socketpair()
	sockettest.Check(t, err)
	t.Cleanup(func() { sys.CloseAll([]int{fd1, fd2}) })
	return fd1, fd2
}

// isMarked reports whether fd is close-on-exec and non-blocking.
func isMarked(t testing.TB, fd int) bool {
	t.Helper()
	flags := sockettest.Got(unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)).Must(t)
	status := sockettest.Got(unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)).Must(t)
	return flags&unix.FD_CLOEXEC != 0 && status&unix.O_NONBLOCK != 0
}

func TestNewDescriptorsAreNonBlockingAndCloseOnExec(t *testing.T) {
	lfd, path := listener(t)
	client := socket(t)
	sockettest.Check(t, sys.Connect(client, path))
	server, _, err := sys.Accept(lfd)
	sockettest.Check(t, err)
	copied := sockettest.Got(sys.Duplicate(client)).Must(t)
	defer sys.CloseAll([]int{server, copied})
	fd1, fd2 := pair(t)
	for i, fd := range []int{client, server, copied, fd1, fd2} {
		if !isMarked(t, fd) {
			t.Errorf("descriptor %d of Socket, Accept, Duplicate and Socketpair: it is inherited or blocks, want neither", i)
		}
	}
}

func TestAcceptWithAndWithoutDescriptors(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	keeps := sockettest.KeepsPendingWithoutDescriptors(t)
	lfd, path := listener(t)
	expect := func(want error) {
		t.Helper()
		if fd, _, err := sys.Accept(lfd); !errors.Is(err, want) || err == nil && !isMarked(t, fd) {
			t.Errorf("Accept: got %d, %v, want %v", fd, err, want)
		}
	}
	expect(sys.ErrWouldBlock)
	clients := []int{socket(t), socket(t)} // gVisor and macOS drop the first
	free := sockettest.ExhaustDescriptors(t)
	for range 3 {
		expect(sys.ErrWouldBlock)
	}
	for _, client := range clients {
		sockettest.Check(t, sys.Connect(client, path))
	}
	expect(unix.EMFILE)
	if !keeps {
		return
	}
	expect(unix.EMFILE)
	free()
	for range clients {
		expect(nil)
	}
}

func TestOnlyTheEndIsEOF(t *testing.T) {
	fd, peer := pair(t)
	sockettest.Check(t, sys.ShutdownWrite(peer))
	for size, want := range []error{nil, io.EOF} {
		if n, err := sys.Read(fd, make([]byte, size)); n != 0 || err != want {
			t.Errorf("Read of %d bytes at the end: got %d, %v, want 0, %v", size, n, err, want)
		}
	}
}

func TestWritevWritesAll(t *testing.T) {
	fd, peer := pair(t)
	for _, v := range [][][]byte{
		{{}}, {nil, {}, nil}, {{}, []byte("ab"), nil, []byte("c")}, slices.Repeat([][]byte{{'x'}}, sys.MaxIovecs),
	} {
		want := string(slices.Concat(v...))
		if n, err := sys.Writev(fd, v); n != len(want) || err != nil {
			t.Fatalf("Writev of %d buffers: got %d, %v, want %d, nil", len(v), n, err, len(want))
		}
		b := make([]byte, 2*sys.MaxIovecs)
		if n, _ := sys.Read(peer, b); string(b[:n]) != want {
			t.Errorf("Read after Writev of %d buffers: got %q, want %q", len(v), b[:n], want)
		}
	}
}

// huge returns more bytes than a call may transfer, without a page of memory behind them.
func huge(t testing.TB) []byte {
	t.Helper()
	if sockettest.Race {
		t.Skip("the race detector records every byte")
	}
	b, err := unix.Mmap(-1, 0, sys.MaxIO+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// At the offset of the test a read of more than MaxIO bytes would end after the largest offset
// of a file, which is an error, and one of MaxIO bytes finds the end of the file.
func TestReadAsksForAtMostMaxIO(t *testing.T) {
	b := huge(t)
	name := filepath.Join(sockettest.ShortDir(t), "file")
	sockettest.Check(t, os.WriteFile(name, nil, 0o600))
	for _, name := range []string{name, "/proc/self/status"} { // some file systems have a lower limit
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		if _, err := f.Seek(math.MaxInt64-sys.MaxIO, io.SeekStart); err != nil {
			continue
		}
		fd := int(f.Fd())
		if _, err := unix.Read(fd, b); err != unix.EINVAL {
			continue
		}
		if n, err := sys.Read(fd, b); n != 0 || err != io.EOF {
			t.Errorf("Read of MaxIO+1 bytes, MaxIO before the largest offset: got %d, %v, want 0, EOF", n, err)
		}
		return
	}
	t.Skip("no file shows how many bytes a read asks for")
}

func TestWriteAsksForAtMostMaxIO(t *testing.T) {
	b := huge(t)
	f := sockettest.Got(os.OpenFile("/dev/null", os.O_WRONLY, 0)).Must(t)
	if n, err := sys.Write(int(f.Fd()), b); n != sys.MaxIO || err != nil {
		t.Errorf("Write of MaxIO+1 bytes to /dev/null: got %d, %v, want %d, nil", n, err, sys.MaxIO)
	}
}

func TestReceivedRightsAreAllOfThemCloseOnExec(t *testing.T) {
	b := make([]byte, 1<<20)
	for _, size := range []int{1, len(b)} { // the larger one does not fit
		for _, count := range []int{1, 2, 100, sys.MaxRights} {
			fd, peer := pair(t)
			sent, err := sys.SendRights(fd, b[:size], slices.Repeat([]int{fd}, count))
			if sent == 0 || err != nil {
				t.Fatalf("SendRights of %d bytes and %d descriptors: got %d, %v, want a part of the bytes", size, count, sent, err)
			}
			n, got, err := sys.ReceiveRights(peer, b)
			for m := 0; n < sent && err == nil; n += m {
				m, err = sys.Read(peer, b)
			}
			if n != sent || len(got) != count || err != nil {
				t.Errorf("ReceiveRights: got %d bytes, %d descriptors, %v; want %d, %d, nil", n, len(got), err, sent, count)
			}
			for _, received := range got {
				if !isMarked(t, received) {
					t.Errorf("ReceiveRights: descriptor %d of %d is inherited or blocks, want neither", received, count)
				}
			}
			sys.CloseAll(got)
		}
	}
}

// The kernel gives received descriptors the lowest numbers.
func TestReceivedDescriptorsAreNotStandardOnes(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	fd, peer := pair(t)
	sockettest.Got(sys.SendRights(fd, []byte("x"), []int{fd, fd, fd})).Must(t)
	var saved []int
	for standard := range 3 {
		saved = append(saved, sockettest.Got(sys.Duplicate(standard)).Must(t))
		unix.Close(standard)
	}
	n, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	for standard, copied := range saved {
		if _, err := unix.FcntlInt(uintptr(standard), unix.F_GETFD, 0); err == nil {
			defer t.Errorf("descriptor %d after ReceiveRights: got an open one, want none", standard)
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
}

func TestReceiveRightsOutOfDescriptorsFails(t *testing.T) {
	if !sockettest.InChild(t, nil) {
		return
	}
	if !sockettest.ReportsRightsCutByLimit(t) {
		t.Skip("recvmsg(2) does not report that descriptors are missing")
	}
	fd, peer := pair(t)
	sockettest.Got(sys.SendRights(fd, []byte("x"), []int{fd})).Must(t)
	defer sockettest.ExhaustDescriptors(t)()
	n, got, err := sys.ReceiveRights(peer, make([]byte, 1))
	// The kernel reports the refusal of a security module in the same way.
	const want = "could not receive all descriptors"
	if n != 1 || len(got) != 0 || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("ReceiveRights: got %d bytes, the descriptors %v, %v; want 1, none, an error with %q", n, got, err, want)
	}
}

func TestSendRightsWithoutRoomSendsNothing(t *testing.T) {
	fd, peer := pair(t)
	for err := error(nil); err != sys.ErrWouldBlock; { // leave less room than descriptors take
		if _, err = sys.Write(fd, make([]byte, 100)); err != sys.ErrWouldBlock {
			sockettest.Check(t, err)
		}
	}
	for sent, received := 0, 0; received == 0; {
		n, err := 1, error(nil)
		if sent == 0 {
			n, err = sys.SendRights(fd, []byte("x"), slices.Repeat([]int{fd}, sys.MaxRights))
		}
		if n != 0 && err != nil || err != nil && err != sys.ErrWouldBlock {
			t.Fatalf("SendRights: got %d, %v, want 1, nil, or 0, ErrWouldBlock until there is room", n, err)
		}
		sent = n
		n, fds, err := sys.ReceiveRights(peer, make([]byte, 50))
		sys.CloseAll(fds)
		received = len(fds)
		if n == 0 || err != nil || received != 0 && (received != sys.MaxRights || sent != 1) {
			t.Fatalf("ReceiveRights: got %d bytes, %d descriptors, %v after %d SendRights; want all of one", n, received, err, sent)
		}
	}
}

// NetBSD and DragonFly bind a client to a name for which the system's headers have no room.
func TestClientWithALongNameIsAccepted(t *testing.T) {
	for _, size := range []int{sys.MaxPathLen + 1, 253} {
		lfd, path := listener(t)
		client, dir := socket(t), sockettest.ShortDir(t)
		name := dir + "/" + strings.Repeat("n", size-len(dir)-1)
		if err := sys.Bind(client, name); err != nil {
			t.Skipf("the kernel binds no socket to a name of %d bytes: %v", size, err)
		}
		sockettest.Check(t, sys.Connect(client, path))
		server, peer, err := sys.Accept(lfd)
		if err == sys.ErrWouldBlock {
			t.Skip("the name cannot be read without raw system calls, and the connection is lost")
		}
		sockettest.Check(t, err)
		defer sys.Close(server)
		_, remote, err := sys.AdoptStream(server, false)
		local, _, clientErr := sys.AdoptStream(client, false)
		if peer != name || remote != name || local != name || err != nil || clientErr != nil {
			t.Errorf("name of %d bytes: got %q of Accept, %q, %v and %q, %v of AdoptStream", size, peer, remote, err, local, clientErr)
		}
	}
}

func TestErrorsNameTheSystemCall(t *testing.T) {
	missing := filepath.Join(sockettest.ShortDir(t), "missing", "s")
	fd := int(sockettest.Got(os.Open("/dev/null")).Must(t).Fd())
	for want, err := range map[string]error{
		"bind":     sys.Bind(fd, missing),
		"connect":  sys.Connect(socket(t), missing),
		"listen":   sys.Listen(fd, 1),
		"shutdown": sys.ShutdownWrite(fd),
	} {
		var syscallErr *os.SyscallError
		if !errors.As(err, &syscallErr) || syscallErr.Syscall != want {
			t.Errorf("%s: got %v, want a SyscallError that names it", want, err)
		}
	}
}
