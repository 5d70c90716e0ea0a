//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package main

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// asServer is the environment variable that makes the test binary the example itself.
const asServer = "RESTART_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// ask returns the process that answers at path.
func ask(path string) (pid int, err error) {
	conn, err := unixsock.Connect(path)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	answer, err := io.ReadAll(conn)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(answer)))
}

func TestRestartLosesNoClient(t *testing.T) {
	const generations, loaders = 10, 4
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "restart.sock")
	cmd := exec.Command(exe)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asServer+"=1")
	output, err := cmd.StderrPipe() // which all generations inherit
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() { syscall.Kill(pid, syscall.SIGKILL) }()
	lines := bufio.NewReader(output)
	if line, err := lines.ReadString('\n'); err != nil || !strings.HasSuffix(line, "serves\n") {
		t.Fatalf("start of the server: got %q, %v, want that it serves", line, err)
	}

	stop := make(chan struct{})
	var load sync.WaitGroup
	var mu sync.Mutex
	served := make(map[int]int)
	for range loaders {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				pid, err := ask(path)
				if err != nil {
					t.Errorf("a client during a restart: got error %v, want an answer", err)
					return
				}
				mu.Lock()
				served[pid]++
				mu.Unlock()
			}
		})
	}
	for range generations {
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		next := pid
		for next == pid {
			if next, err = ask(path); err != nil {
				t.Fatal(err)
			}
		}
		pid = next
	}
	close(stop)
	load.Wait()
	if len(served) < generations {
		t.Errorf("%d generations under load: %d processes served the clients, want each", generations, len(served))
	}

	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(lines); err != nil { // until the last one has ended
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the first generation ends with %v, want no error", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file after the last generation: got %v, want ErrNotExist", err)
	}
}
