//go:build linux

package peertest

import (
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/go-unixsock/unixsock"
)

// systemd-socket-activate listens, waits for the first client and then replaces
// itself with the server, which keeps the process ID. The server exits after it
// was idle. All clients connect first, so that it has no idle time between them.
func TestSystemdActivatesExample(t *testing.T) {
	program(t, "systemd-socket-activate")
	dir := socketDir(t)
	server := dir + "/activation"
	// Not a peer: a build without a cache may take longer than timeout.
	build := exec.CommandContext(t.Context(), program(t, "go"), "build", "-o", server, "../../examples/activation")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build examples/activation: got %v, want success\n%s", err, output)
	}

	paths := []string{dir + "/one", dir + "/two"}
	cmd := peer(t, "systemd-socket-activate", "-l", paths[0], "-l", paths[1], "--fdname=one:two", server, "-idle", "2s")
	wait := finish(t, cmd, nil)
	const clients = 3
	conns := map[string][]*unixsock.Conn{}
	for _, path := range paths {
		for range clients {
			conns[path] = append(conns[path], connect(t, path))
		}
	}
	for _, path := range paths {
		for i, c := range conns[path] {
			got, err := io.ReadAll(c)
			want := fmt.Sprintf("client %d of process %d\n", i+1, cmd.Process.Pid)
			if err != nil || string(got) != want {
				t.Errorf("connect to %s: got %q, %v; want %q", path, got, err, want)
			}
		}
	}
	wait()
}
