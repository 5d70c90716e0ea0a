//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
)

// peerCredOf returns who is at the other end of c. The test is skipped if the
// platform cannot tell.
func peerCredOf(t testing.TB, c *Conn) Cred {
	t.Helper()
	cred, err := c.PeerCred()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cred
}

// wantCred makes sure that it is process pid of this user that is there.
func wantCred(t testing.TB, c *Conn, pid int) {
	t.Helper()
	got := peerCredOf(t, c)
	if runtime.GOOS != "linux" && got.PID == 0 {
		pid = 0
	}
	if want := (Cred{PID: pid, UID: os.Getuid(), GID: os.Getgid()}); got != want {
		t.Errorf("at the other end is %+v, want %+v", got, want)
	}
}

func TestPeerCredIsThisProcess(t *testing.T) {
	checkDescriptors(t)
	client, server := mustPair(t)
	wantCred(t, client, os.Getpid())
	wantCred(t, server, os.Getpid())
}

func TestPeerCredOfAPair(t *testing.T) {
	c1, c2, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c1.Close()
	defer c2.Close()
	wantCred(t, c1, os.Getpid())
	wantCred(t, c2, os.Getpid())
}

func TestPeerCredOfOtherProcesses(t *testing.T) {
	checkDescriptors(t)
	l := mustListen(t)
	client := startHelper(t, nil, "connect")
	client.tell(l.name)
	client.expect("connected")
	wantCred(t, mustAccept(t, l), client.cmd.Process.Pid)

	server := startHelper(t, nil, "serve", l.name+"2")
	server.expect("serving")
	wantCred(t, mustConnect(t, l.name+"2"), server.cmd.Process.Pid)
}

func TestPeerCredAfterThePeerIsGone(t *testing.T) {
	client, server := mustPair(t)
	cred := peerCredOf(t, server)
	client.Close()
	if got := peerCredOf(t, server); got.UID != cred.UID || got.GID != cred.GID {
		t.Errorf("it was %+v, and is %+v", cred, got)
	}
}

func TestPeerCredOfAKilledProcess(t *testing.T) {
	l := mustListen(t)
	h := startHelper(t, nil, "connect")
	h.tell(l.name)
	h.expect("connected")
	pid := h.cmd.Process.Pid
	h.kill()
	// It is accepted only now.
	wantCred(t, mustAccept(t, l), pid)
}

func TestPeerCredAfterOneHalfIsClosed(t *testing.T) {
	client, server := mustPair(t)
	client.CloseWrite()
	wantCred(t, client, os.Getpid())
	server.CloseRead()
	wantCred(t, server, os.Getpid())
}

func TestPeerCredAfterClose(t *testing.T) {
	client, server := mustPair(t)
	peerCredOf(t, client)
	client.Close()
	server.CloseRead()
	server.CloseWrite()
	for _, c := range []*Conn{client, server} {
		cred, err := c.PeerCred()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", err)
		}
		var op *net.OpError
		if !errors.As(err, &op) {
			t.Errorf("error %#v, want a *net.OpError", err)
		}
		if cred != (Cred{}) {
			t.Errorf("with an error comes %+v", cred)
		}
	}
}

// helpConnect connects to each path that it is told, and stays connected until
// it is told the next.
func helpConnect([]string) error {
	var path string
	for {
		if _, err := fmt.Scanln(&path); err != nil {
			return nil
		}
		c, err := Connect(path)
		switch {
		case errors.Is(err, os.ErrPermission):
			fmt.Println("permission denied")
		case err != nil:
			return err
		default:
			fmt.Println("connected")
			defer c.Close()
		}
	}
}

// helpServe listens at a path, or on the descriptor that it has inherited if
// that is "inherited", and answers each client with its pid.
func helpServe(args []string) error {
	var l *Listener
	var err error
	if args[0] == "inherited" {
		f := os.NewFile(3, "inherited")
		l, err = FileListener(f)
		f.Close()
	} else {
		l, err = Listen(args[0], ReplaceStale())
	}
	if err != nil {
		return err
	}
	fmt.Println("serving")
	go func() {
		untilEOF()
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprint(c, os.Getpid())
		c.Close()
	}
}
