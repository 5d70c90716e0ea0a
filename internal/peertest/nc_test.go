//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bytes"
	"os/exec"
	"testing"
)

// netcat returns a command that runs OpenBSD's nc. It skips the test if nc is
// another program of that name, which may lack the flag -U or -N.
func netcat(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	help, _ := exec.Command(program(t, "nc"), "-h").CombinedOutput()
	if !bytes.Contains(help, []byte("OpenBSD")) {
		t.Skip("nc is not OpenBSD's nc")
	}
	return peer(t, "nc", args...)
}

func TestNetcatIsClient(t *testing.T) {
	data := noise(1<<20 + 1)
	path := socketDir(t) + "/s"
	l := listen(t, path)
	output := finish(t, netcat(t, "-N", "-U", path), data)
	echo(t, accept(t, l))
	same(t, output(), data)
}

func TestNetcatIsServer(t *testing.T) {
	data := noise(1<<20 + 1)
	path := socketDir(t) + "/s"
	output := finish(t, netcat(t, "-N", "-l", "-U", path), data)
	echo(t, connect(t, path))
	same(t, output(), data)
}
