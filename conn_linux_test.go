package unixsock

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestAddressOfAnAbstractPeerIsWhole(t *testing.T) {
	l := mustListen(t)
	name := ownName(t, 70, "\x00\x00b\x00")

	// A client with a name of its own, which Connect does not give.
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer closeSocket(fd)
	if err := bindSocket(fd, name); err != nil {
		t.Fatal(err)
	}
	if err := connectSocket(fd, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if got := mustAccept(t, l).RemoteAddr().String(); got != name {
		t.Errorf("the peer is %q, want %q", got, name)
	}
}

func TestAddressOfAPeerAtAPathOfTheFullLengthIsWhole(t *testing.T) {
	l := mustListen(t)
	name := padded(t, shortDir(t), MaxPathLen)
	fd, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer closeSocket(fd)
	if err := bindSocket(fd, name); err != nil {
		t.Fatal(err)
	}
	if err := connectSocket(fd, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if got := mustAccept(t, l).RemoteAddr().String(); got != name {
		t.Errorf("the peer is %q, want %q", got, name)
	}
}

func TestConnectToAnAddressOfAConn(t *testing.T) {
	for _, name := range []string{ownName(t, 70, "\x00a\x00"), ownName(t, 70, "\x00\x00")} {
		l := mustListenAt(t, name)
		client := mustConnect(t, name)
		server := mustAccept(t, l)
		exchange(t, client.RemoteAddr().String(), l)
		exchange(t, server.LocalAddr().String(), l)
		exchange(t, l.Addr().String(), l)
	}
}

func TestDescriptorIsClosedOnce(t *testing.T) {
	// A second close(2) would hit what has got the number since.
	c, peer := mustPair(t)
	fd := fdOf(t, c)
	c.Close()
	if err := unix.Dup3(fdOf(t, peer), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, way := range closes {
		if err := way.call(c); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
	}
	if !isOpen(fd) {
		t.Error("the number's new owner was closed")
	}
}
