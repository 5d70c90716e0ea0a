package conformance

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/go-unixsock/unixsock"
)

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
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE: %v", err)
	}
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
