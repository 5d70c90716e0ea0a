package conformance

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

func needFUSE(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE: %v", err)
	}
}

// interrupter is a file system that answers the first call of each operation as if a signal
// had interrupted it.
type interrupter struct {
	fuse.RawFileSystem

	mu          sync.Mutex
	interrupted map[string]bool
}

// status returns EINTR for the first call of an operation, and OK for the others.
func (fs *interrupter) status(operation string) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.interrupted[operation] {
		return fuse.OK
	}
	fs.interrupted[operation] = true
	return fuse.EINTR
}

func (fs *interrupter) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := fs.status("mknod"); s != fuse.OK {
		return s
	}
	return fs.RawFileSystem.Mknod(cancel, in, name, out)
}

func (fs *interrupter) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	operation := "chown"
	if _, ok := in.GetMode(); ok {
		operation = "chmod"
	}
	if s := fs.status(operation); s != fuse.OK {
		return s
	}
	return fs.RawFileSystem.SetAttr(cancel, in, out)
}

func (fs *interrupter) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s := fs.status("opendir"); s != fuse.OK {
		return s
	}
	return fs.RawFileSystem.OpenDir(cancel, in, out)
}

func (fs *interrupter) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if s := fs.status("unlink"); s != fuse.OK {
		return s
	}
	return fs.RawFileSystem.Unlink(cancel, header, name)
}

// mirror runs the calling test in a child process, which has a mount namespace of its own
// and is root. There it mounts a file system at mnt that passes calls on to src, as changed
// by wrap, which may be nil. ok is false in the parent.
func mirror(t *testing.T, wrap func(fuse.RawFileSystem) fuse.RawFileSystem) (src, mnt string, ok bool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mount needs root")
	}
	needFUSE(t)
	if !sockettest.InChild(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}) {
		return "", "", false
	}
	dir := sockettest.ShortDir(t)
	src, mnt = filepath.Join(dir, "src"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.Mkdir(src, 0o755), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatalf("Mkdir: %v", err)
	}
	root, err := fs.NewLoopbackRoot(src)
	if err != nil {
		t.Fatalf("NewLoopbackRoot: %v", err)
	}
	files := fs.NewNodeFS(root, &fs.Options{})
	if wrap != nil {
		files = wrap(files)
	}
	server, err := fuse.NewServer(files, mnt, &fuse.MountOptions{DirectMountStrict: true, AllowOther: true})
	if err != nil {
		t.Skipf("cannot mount a FUSE file system: %v", err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatalf("WaitMount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(mnt, unix.MNT_DETACH) })
	return src, mnt, true
}

// TestReplaceStaleLeavesALiveSocketSeenThroughFUSE listens at the mirror of a live server's
// socket. A connect there is refused, as if the server had gone.
func TestReplaceStaleLeavesALiveSocketSeenThroughFUSE(t *testing.T) {
	src, mnt, ok := mirror(t, nil)
	if !ok {
		return
	}
	live := sockettest.ListenAt(t, src+"/s")
	if c, err := unixsock.Connect(mnt + "/s"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("Connect to the mirror of a live socket: got %v, %v; want ECONNREFUSED", c, err)
	}
	l, err := unixsock.Listen(mnt+"/s", unixsock.ReplaceStale())
	if err == nil {
		l.Close()
	}
	const want = "cannot tell on fuse whether a server is listening; remove the file if none is"
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), want) {
		t.Errorf("Listen with ReplaceStale at the mirror of a live socket: got %v, want EADDRINUSE and %q", err, want)
	}
	sockettest.CheckExchange(t, src+"/s", live)
}

func TestReplaceStaleKnowsThatASocketOnFUSEIsLive(t *testing.T) {
	_, mnt, ok := mirror(t, nil)
	if !ok {
		return
	}
	live := sockettest.ListenAt(t, mnt+"/s")
	const want = "a process has the socket open"
	if _, err := unixsock.Listen(mnt+"/s", unixsock.ReplaceStale()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Listen with ReplaceStale at a live socket on FUSE: got %v, want %q", err, want)
	}
	sockettest.CheckExchange(t, mnt+"/s", live)
}

// TestReplaceStaleReplacesOnARootOfFUSE makes a FUSE file system the root of its thread, as
// that of a container may be.
func TestReplaceStaleReplacesOnARootOfFUSE(t *testing.T) {
	_, mnt, ok := mirror(t, nil)
	if !ok {
		return
	}
	sockettest.ListenAt(t, mnt+"/s").Close()
	if err := os.MkdirAll(mnt+os.TempDir(), 0o777); err != nil {
		t.Fatalf("MkdirAll: %v", err)
	}
	t.Run("", func(t *testing.T) {
		runtime.LockOSThread() // until the goroutine ends, and the thread with it
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(mnt)); err != nil {
			t.Skipf("cannot change the root of a thread: %v", err)
		}
		l, err := unixsock.Listen("/s", unixsock.ReplaceStale())
		if err != nil {
			t.Fatalf("Listen with ReplaceStale at a stale file on a root of FUSE: got %v, want a listener", err)
		}
		defer l.Close()
		sockettest.CheckExchange(t, "/s", l)
	})
}

// A stuck file system answers a lookup of the name stuck once end is closed.
type stuck struct {
	fuse.RawFileSystem
	end chan struct{}
}

func (fs stuck) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "stuck" {
		<-fs.end
	}
	return fs.RawFileSystem.Lookup(cancel, header, name, out)
}

func TestReplaceStaleFollowsNoLink(t *testing.T) {
	end := make(chan struct{})
	src, mnt, ok := mirror(t, func(fs fuse.RawFileSystem) fuse.RawFileSystem { return stuck{fs, end} })
	if !ok {
		return
	}
	defer close(end)
	link := filepath.Join(filepath.Dir(src), "s")
	if err := os.Symlink(mnt+"/stuck", link); err != nil {
		t.Fatalf("Symlink: %v", err)
	}
	sockettest.CheckReturns(t, "Listen with ReplaceStale at a link", func() {
		const want = "existing file is a symbolic link"
		if _, err := unixsock.Listen(link, unixsock.ReplaceStale()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Listen with ReplaceStale at a link: got %v, want %q", err, want)
		}
	})
}

func TestInterruptedCallsAreRepeated(t *testing.T) {
	files := &interrupter{interrupted: make(map[string]bool)}
	_, mnt, ok := mirror(t, func(fs fuse.RawFileSystem) fuse.RawFileSystem {
		files.RawFileSystem = fs
		return files
	})
	if !ok {
		return
	}
	l, err := unixsock.Listen(mnt+"/s", unixsock.Mode(0o660), unixsock.Owner(1, 1), unixsock.ReplaceStale(), unixsock.UnlinkOnClose())
	if err != nil {
		t.Fatalf("Listen on a file system whose calls are interrupted: got %v, want a listener", err)
	}
	sockettest.CheckExchange(t, mnt+"/s", l)
	if err := l.Close(); err != nil {
		t.Errorf("Close on a file system whose calls are interrupted: got %v, want no error", err)
	}
	files.mu.Lock()
	defer files.mu.Unlock()
	for _, operation := range []string{"mknod", "chown", "chmod", "opendir", "unlink"} {
		if !files.interrupted[operation] {
			t.Errorf("Listen and Close: got no call of %s, want one", operation)
		}
	}
}

// A smallFile is a file of 3 MiB that reports a size of 10 bytes, as placeholder files do.
type smallFile struct{ fs.Inode }

const (
	reported = 10
	actual   = 3 << 20
)

func (*smallFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, reported
	return 0
}

// Open makes the kernel send each read to Read, whatever the size is.
func (*smallFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (*smallFile) Read(_ context.Context, _ fs.FileHandle, b []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	n := max(0, min(int64(len(b)), actual-offset))
	for i := range b[:n] {
		b[i] = byte((offset + int64(i)) / 3)
	}
	return fuse.ReadResultData(b[:n]), 0
}

// TestCopyOfAFileThatReportsTooFewBytesIsWhole needs root, or fusermount.
func TestCopyOfAFileThatReportsTooFewBytesIsWhole(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("file", root.NewPersistentInode(ctx, &smallFile{}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		t.Skipf("cannot mount a FUSE file system: %v", err)
	}
	defer server.Unmount()
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer f.Close()
	c, _ := sockettest.Pair(t)                           // the peer does not read
	sockettest.Send(t, c, string(make([]byte, 100<<10))) // poll(2) reports no room after it
	c.SetDeadline(time.Now().Add(sockettest.Timeout))
	if n, err := io.CopyN(c, f, 20_000); err != nil {
		t.Errorf("io.CopyN of 20,000 bytes of a file that reports %d, into a socket with room: got %d, %v; want nil", reported, n, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatalf("Seek: %v", err)
	}
	near, far, err := unixsock.Pair()
	if err != nil {
		t.Fatalf("Pair: %v", err)
	}
	defer near.Close()
	defer far.Close()
	type result struct {
		n   int64
		err error
	}
	copied := make(chan result, 1)
	go func() {
		n, err := io.Copy(near, f)
		near.Close()
		copied <- result{n, err}
	}()
	b, err := io.ReadAll(far)
	if err != nil || len(b) != actual {
		t.Errorf("ReadAll behind a copy of a file of %d bytes that reports %d: got %d, %v; want all", actual, reported, len(b), err)
	}
	for i := range b {
		if b[i] != byte(i/3) {
			t.Fatalf("byte %d behind the copy: got %d, want %d", i, b[i], byte(i/3))
		}
	}
	if r := <-copied; r.n != actual || r.err != nil {
		t.Errorf("io.Copy of a file of %d bytes that reports %d: got %d, %v; want %d, nil", actual, reported, r.n, r.err, actual)
	}
}
