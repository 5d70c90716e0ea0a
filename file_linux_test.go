package unixsock

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAdoptedNamesAreWhole(t *testing.T) {
	checkDescriptors(t)
	for _, name := range []string{
		"\x00a\x00b\x00", "\x00@", "\x00", "\x00" + t.Name() + "\x00\x00",
		shortDir(t) + "/@", string(make([]byte, MaxPathLen)),
	} {
		original := mustListenAt(t, name)
		l := mustFileListener(t, mustFile(t, original))
		original.Close()
		if got := l.Addr().String(); got != name {
			t.Errorf("the listener's name is %q, want %q", got, name)
		}
		client := mustConnect(t, l.Addr().String())
		server := mustAccept(t, l)
		if got := mustFileConn(t, mustFile(t, client)).RemoteAddr().String(); got != name {
			t.Errorf("the client's remote name is %q, want %q", got, name)
		}
		if got := mustFileConn(t, mustFile(t, server)).LocalAddr().String(); got != name {
			t.Errorf("the server's local name is %q, want %q", got, name)
		}
		mustConverse(t, client, server)
		l.Close()
	}
}

func TestASocketThatIsOnlyBoundIsRefused(t *testing.T) {
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "bound")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: shortDir(t) + "/s"}); err != nil {
		t.Fatal(err)
	}
	if c, err := FileConn(f); err == nil {
		c.Close()
		t.Error("FileConn: no error")
	}
	if l, err := FileListener(f); err == nil {
		l.Close()
		t.Error("FileListener: no error")
	}
}
