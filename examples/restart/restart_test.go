//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package main

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// generations is how often each test restarts the server.
const generations = 10

// A process whose environment has asProgram is the example, not its test.
const asProgram = "RESTART_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// server is the example's server, in its current generation.
type server struct {
	path  string
	pid   int
	lines chan string // what the generations log; closed when the last one has ended
}

// start starts the first generation.
func start(t *testing.T) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatalf("Executable: %v", err)
	}
	s := &server{path: filepath.Join(sockettest.ShortDir(t), "s"), lines: make(chan string, 100)}
	cmd := exec.Command(exe, "serve", s.path)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // all generations are one group
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatalf("StderrPipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("Start: %v", err)
	}
	go func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			s.lines <- lines.Text()
		}
		close(s.lines)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for range s.lines {
		}
		cmd.Wait()
	})
	s.next(t)
	return s
}

// next waits until a new generation serves.
func (s *server) next(t *testing.T) {
	t.Helper()
	line := sockettest.Receive(t, "a process to serve", s.lines)
	pid, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(line, "process "), " serves"))
	if err != nil {
		t.Fatalf("start of a server: it logged %q, want that it serves", line)
	}
	s.pid = pid
}

func (s *server) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(s.pid, sig); err != nil {
		t.Fatalf("signal %v to process %d: got %v, want success", sig, s.pid, err)
	}
}

// restart replaces the server and waits until its successor serves.
func (s *server) restart(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGHUP)
	s.next(t)
}

// stop stops the last generation and waits until all have ended.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGTERM)
	for {
		line, ok := sockettest.ReceiveOK(t, "the end of all processes", s.lines)
		if !ok {
			return
		}
		t.Errorf("stop of the server: it logged %q, want nothing", line)
	}
}

// load sends requests from several goroutines until the function that it returns is called.
// Each generation that serves under load is sent on seen, once or more.
func load(t *testing.T, path string) (seen <-chan string, stop func()) {
	const clients = 4
	var running sync.WaitGroup
	done, answers := make(chan struct{}), make(chan string)
	for range clients {
		running.Go(func() {
			for last := ""; ; {
				answer, err := request(path)
				if err != nil {
					t.Errorf("request during restarts: got error %v, want an answer", err)
					return
				}
				offer := answers
				if answer == last {
					offer = nil // it has been reported
				}
				select {
				case <-done:
					return
				case offer <- answer:
					last = answer
				default:
				}
			}
		})
	}
	return answers, sync.OnceFunc(func() {
		close(done)
		running.Wait()
	})
}

func TestRestartLosesNoRequest(t *testing.T) {
	s := start(t)
	seen, stop := load(t, s.path)
	defer stop()
	for range generations {
		s.restart(t)
		for want := "process " + strconv.Itoa(s.pid) + " answers"; ; {
			if sockettest.Receive(t, "an answer of process "+strconv.Itoa(s.pid), seen) == want {
				break
			}
		}
	}
	stop()
	s.stop(t)
}

func TestRestartFinishesConnectionsInProgress(t *testing.T) {
	s := start(t)
	for range generations {
		conn, err := unixsock.Connect(s.path)
		if err != nil {
			t.Fatalf("Connect: %v", err)
		}
		defer conn.Close()
		before, err := ask(conn)
		if err != nil {
			t.Fatalf("ask: %v", err)
		}
		s.restart(t)
		if after, err := ask(conn); after != before || err != nil {
			t.Errorf("request on a connection that a restart found in progress: got %q, %v, want %q", after, err, before)
		}
		conn.Close()
	}
	s.stop(t)
}

func TestLastProcessRemovesSocketFile(t *testing.T) {
	s := start(t)
	for range generations {
		s.restart(t)
		if !sockettest.IsSocketFile(s.path) {
			t.Fatalf("restart: the socket file is gone, want that the successor has it")
		}
	}
	s.stop(t)
	if _, err := os.Lstat(s.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stop of the last process: the socket file is there (%v), want that it is removed", err)
	}
}
