package zerocopy_test

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock/internal/zerocopy"
)

// A slowConn is a RawConn whose Write is preceded by what other goroutines do meanwhile.
type slowConn struct {
	syscall.RawConn
	meanwhile func()
}

func (c slowConn) Write(f func(fd uintptr) bool) error {
	c.meanwhile()
	return c.RawConn.Write(f)
}

func TestRefusedSendFileGivesItsBytesBackBesideAnotherCopy(t *testing.T) {
	dir := t.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	defer src.Close()
	if err := src.Truncate(4 << 20); err != nil {
		t.Fatalf("Truncate: %v", err)
	}
	// sendfile(2) refuses a destination that is opened for appending.
	dst, err := os.OpenFile(filepath.Join(dir, "dst"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatalf("OpenFile: %v", err)
	}
	defer dst.Close()
	srcRaw, srcErr := src.SyscallConn()
	dstRaw, dstErr := dst.SyscallConn()
	if srcErr != nil || dstErr != nil {
		t.Fatalf("SyscallConn: %v, %v", srcErr, dstErr)
	}
	const claimed = 1 << 20 // by the other copy
	refusing := slowConn{dstRaw, func() { src.Seek(claimed, io.SeekCurrent) }}
	if n, err := zerocopy.SendFile(refusing, srcRaw, 1<<20); n != 0 || err != zerocopy.ErrRefused {
		t.Skipf("SendFile to a file opened for appending: got %d, %v; the kernel does not refuse it", n, err)
	}
	if offset, err := src.Seek(0, io.SeekCurrent); offset != claimed || err != nil {
		t.Errorf("offset after a SendFile that was refused: got %d, %v; want the %d of the other copy", offset, err, claimed)
	}
}
