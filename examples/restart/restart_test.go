//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A process whose environment has asProgram is the example, not its test.
const asProgram = "RESTART_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// start starts the server. lines are what its generations log, and closed when the last one
// has ended.
func start(t *testing.T, path string) (lines <-chan string) {
	t.Helper()
	cmd := exec.Command(sockettest.Got(os.Executable()).Must(t), "serve", path)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // all generations are one group
	log := bufio.NewScanner(sockettest.Got(cmd.StderrPipe()).Must(t))
	sockettest.Check(t, cmd.Start())
	logged := make(chan string, 100)
	go func() {
		for log.Scan() {
			logged <- log.Text()
		}
		close(logged)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for range logged {
		}
		cmd.Wait()
	})
	return logged
}

// next waits until a new generation serves, and returns its number.
func next(t *testing.T, lines <-chan string) (pid int) {
	t.Helper()
	line := sockettest.Receive(t, "a process to serve", lines)
	if _, err := fmt.Sscanf(line, "process %d serves", &pid); err != nil {
		t.Fatalf("start of a server: it logged %q, want that it serves", line)
	}
	return pid
}

// Clients send requests throughout, and another connection is in progress at each restart.
func TestRestartLosesNoClientAndNoSocketFile(t *testing.T) {
	path := filepath.Join(sockettest.ShortDir(t), "s")
	lines := start(t, path)
	pid := next(t, lines)
	var last atomic.Value // the last answer to one of the clients
	var clients sync.WaitGroup
	done := make(chan struct{})
	stop := sync.OnceFunc(func() { close(done); clients.Wait() })
	defer stop()
	for range 4 {
		clients.Go(func() {
			for err := error(nil); err == nil; {
				select {
				case <-done:
					return
				default:
				}
				var answer string
				if answer, err = request(path); err != nil {
					t.Errorf("request during restarts: got error %v, want an answer", err)
				}
				last.Store(answer)
			}
		})
	}
	for range 6 {
		conn := sockettest.Connect(t, path)
		before := sockettest.Got(ask(conn)).Must(t)
		sockettest.Check(t, syscall.Kill(pid, syscall.SIGHUP))
		pid = next(t, lines)
		if !sockettest.IsSocketFile(path) {
			t.Fatalf("restart: the socket file is gone, want that the successor has it")
		}
		if after, err := ask(conn); after != before || err != nil {
			t.Errorf("request on a connection that a restart found in progress: got %q, %v, want %q", after, err, before)
		}
		conn.Close()
		want := fmt.Sprintf("process %d answers", pid)
		sockettest.WaitFor(t, "no answer of the successor", func() bool { return last.Load() == want })
	}
	stop()
	sockettest.Check(t, syscall.Kill(pid, syscall.SIGTERM))
	if line, ok := sockettest.ReceiveOK(t, "the end of all processes", lines); ok {
		t.Errorf("stop of the server: it logged %q, want nothing", line)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stop of the last process: the socket file is there (%v), want that it is removed", err)
	}
}
