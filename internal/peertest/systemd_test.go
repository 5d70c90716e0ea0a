//go:build linux

package peertest

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// systemd-socket-activate listens, waits for the first client and then replaces
// itself with the server, which keeps the process ID. The server exits after it
// was idle. All clients connect first, so that it has no idle time between them.
func TestSystemdActivatesExample(t *testing.T) {
	t.Parallel()
	program(t, "systemd-socket-activate")
	dir := socketDir(t)
	server, paths := dir+"/activation", []string{dir + "/one", dir + "/two"}
	// Not a peer: a build without a cache may take longer than timeout.
	build := exec.CommandContext(t.Context(), program(t, "go"), "build", "-o", server, "../../examples/activation")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build examples/activation: got %v, want success\n%s", err, output)
	}
	cmd := peer(t, "systemd-socket-activate", "-l", paths[0], "-l", paths[1], "--fdname=one:two", server, "-idle", "250ms")
	wait := finish(t, cmd, "")
	var conns []*unixsock.Conn
	for i := range 6 {
		conns = append(conns, connect(t, paths[i%2]))
	}
	for i, c := range conns {
		sockettest.ExpectEOF(t, c, fmt.Sprintf("client %d of process %d\n", i/2+1, cmd.Process.Pid))
	}
	wait("")
}
