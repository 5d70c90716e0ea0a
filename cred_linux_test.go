package unixsock

import (
	"os"
	"testing"
)

func TestPeerCredOfAnotherUser(t *testing.T) {
	checkDescriptors(t)
	l := mustListenAt(t, publicDir(t)+"/s", Mode(0o666))
	h := startHelper(t, asNobody(t), "connect")
	h.tell(l.name)
	h.expect("connected")
	want := Cred{PID: h.cmd.Process.Pid, UID: nobody, GID: nobody}
	if got := peerCredOf(t, mustAccept(t, l)); got != want {
		t.Errorf("at the other end is %+v, want %+v", got, want)
	}
}

func TestPeerCredOfAServerOfAnotherUser(t *testing.T) {
	dir := publicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	h := startHelper(t, asNobody(t), "serve", dir+"/s")
	h.expect("serving")
	want := Cred{PID: h.cmd.Process.Pid, UID: nobody, GID: nobody}
	if got := peerCredOf(t, mustConnect(t, dir+"/s")); got != want {
		t.Errorf("at the other end is %+v, want %+v", got, want)
	}
}
