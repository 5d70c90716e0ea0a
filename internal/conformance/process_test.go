//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package conformance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cloudflare/tableflip"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/go-unixsock/unixsock"
)

func init() {
	roles["upgradable"] = upgradable
	roles["activated"] = activated
}

// A process is a process in a role, with the processes that it starts.
type process struct {
	*exec.Cmd
	lines chan string // of the standard output of all of them; closed when they have ended
}

// start starts a command in a role.
func start(t *testing.T, cmd *exec.Cmd, role string) *process {
	t.Helper()
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("StdoutPipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("Start: %v", err)
	}
	p := &process{cmd, make(chan string, 100)}
	go func() {
		for lines := bufio.NewScanner(output); lines.Scan(); {
			p.lines <- lines.Text()
		}
		close(p.lines)
	}()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for range p.lines {
		}
		cmd.Wait()
	})
	return p
}

// pid waits until a process is ready, and returns its number.
func (p *process) pid(t *testing.T) int {
	t.Helper()
	select {
	case line := <-p.lines:
		pid, err := strconv.Atoi(line)
		if err != nil {
			t.Fatalf("start of a process: it printed %q, want its number", line)
		}
		return pid
	case <-timeLimit(t).Done():
		t.Fatal("start of a process: it printed nothing, want its number")
	}
	return 0
}

// end waits until all processes have ended. They may print nothing.
func (p *process) end(t *testing.T) {
	t.Helper()
	for limit := timeLimit(t).Done(); ; {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return
			}
			t.Errorf("end of a process: it printed %q, want nothing", line)
		case <-limit:
			t.Fatal("end of a process: it still runs")
		}
	}
}

// answer sends the number of this process to each client until the listener is closed.
func answer(listener *unixsock.Listener) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := listener.AcceptContext(context.Background())
		if err != nil {
			return nil // closed
		}
		clients.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
				fmt.Fprint(conn, os.Getpid())
			}
		})
	}
}

// ask returns the number of the process that answers at path.
func ask(path string) (pid string, err error) {
	conn, err := unixsock.Connect(path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return string(b), err
}

// upgradable is a server that tableflip replaces on SIGHUP. Upgrader.AddListener calls
// SetUnlinkOnClose(false), so Drain leaves the socket to the successor. Upgrader.Stop
// removes the socket file of the last process.
func upgradable(args []string) error {
	path := args[0]
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	upgrader, err := tableflip.New(tableflip.Options{UpgradeTimeout: 30 * time.Second})
	if err != nil {
		return err
	}
	defer upgrader.Stop()
	listener, err := inherit(upgrader, path)
	if err != nil {
		return err
	}
	if err := upgrader.Ready(); err != nil {
		return err
	}
	ended, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	go func() {
		for sig := range signals {
			if sig == syscall.SIGTERM {
				listener.SetUnlinkOnClose(true) // Drain ends the socket
				upgrader.Stop()
			} else if err := upgrader.Upgrade(); err != nil {
				fmt.Println("upgrade:", err)
			}
		}
	}()
	go func() {
		<-upgrader.Exit()
		listener.Drain()
	}()
	go func() {
		// An upgrade fails while the parent runs.
		if err := upgrader.WaitForParent(ended); err != nil {
			fmt.Println("end of the parent:", err)
		}
		fmt.Println(os.Getpid())
	}()
	return answer(listener)
}

// inherit returns the listener of the parent process, or a new one.
func inherit(upgrader *tableflip.Upgrader, path string) (*unixsock.Listener, error) {
	inherited, err := upgrader.Listener("unix", path)
	if err != nil {
		return nil, err
	}
	if inherited == nil {
		listener, err := unixsock.Listen(path, unixsock.Backlog(511), unixsock.ReplaceStale())
		if err == nil {
			err = upgrader.AddListener("unix", path, listener)
		}
		return listener, err
	}
	defer inherited.Close()
	file, err := inherited.(*net.UnixListener).File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return unixsock.FileListener(file)
}

func TestTableflipUpgradesUnderLoad(t *testing.T) {
	path := socketPath(t)
	server := start(t, exec.Command(os.Args[0], path), "upgradable")
	pid := server.pid(t)

	done, answers := make(chan struct{}), make(chan string)
	var load sync.WaitGroup
	stop := sync.OnceFunc(func() { close(done); load.Wait() })
	defer stop()
	for range 4 {
		load.Go(func() {
			for {
				answer, err := ask(path)
				if err != nil {
					t.Errorf("request during upgrades: got error %v, want an answer", err)
					return
				}
				select {
				case <-done:
					return
				case answers <- answer:
				default:
				}
			}
		})
	}
	for range 5 {
		if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatalf("SIGHUP to process %d: %v", pid, err)
		}
		pid = server.pid(t)
		for limit := timeLimit(t).Done(); ; {
			select {
			case answer := <-answers:
				if answer != strconv.Itoa(pid) {
					continue
				}
			case <-limit:
				t.Fatalf("requests after an upgrade: got no answer of process %d", pid)
			}
			break
		}
	}
	stop()

	syscall.Kill(pid, syscall.SIGTERM)
	server.end(t)
	if entries, err := os.ReadDir(filepath.Dir(path)); len(entries) != 0 || err != nil {
		t.Errorf("stop of the last process: got files %v, %v; want none", entries, err)
	}
}

// activated is a service of systemd. It answers the clients of each of its sockets until no
// one is pending, and leaves later ones to the next start of the service.
func activated([]string) error {
	pid := strconv.Itoa(os.Getpid())
	var names []string
	for name, files := range activation.FilesWithNames() {
		for _, f := range files {
			listener, err := unixsock.FileListener(f)
			f.Close()
			if err != nil {
				return err
			}
			names = append(names, name)
			for {
				conn, err := listener.TryAccept()
				if err != nil {
					break
				}
				fmt.Fprint(conn, name, " ", pid)
				conn.Close()
			}
			listener.Drain()
		}
	}
	slices.Sort(names)
	fmt.Println(strings.Join(names, " "))
	return nil
}

// The test is systemd: it listens, and starts the service while clients are pending. The
// Drain of one service must leave the sockets to the next one.
func TestServiceOfSystemdIsActivated(t *testing.T) {
	paths := map[string]string{"first": socketPath(t), "second": socketPath(t)}
	names := []string{"first", "second"}
	var sockets []*os.File
	for _, name := range names {
		f, err := listen(t, paths[name], unixsock.Backlog(10)).File()
		if err != nil {
			t.Fatalf("File: %v", err)
		}
		defer f.Close()
		sockets = append(sockets, f)
	}
	for range 3 {
		conns := map[*unixsock.Conn]string{}
		for range 4 {
			for _, name := range names {
				c, err := unixsock.Connect(paths[name])
				if err != nil {
					t.Fatalf("Connect: %v", err)
				}
				defer c.Close()
				conns[c] = name
			}
		}
		cmd := exec.Command("/bin/sh", "-c",
			`LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=first:second exec "$0"`, os.Args[0])
		cmd.ExtraFiles = sockets
		service := start(t, cmd, "activated")
		for c, name := range conns {
			c.SetDeadline(time.Now().Add(30 * time.Second))
			want := fmt.Sprint(name, " ", cmd.Process.Pid)
			if got, err := io.ReadAll(c); string(got) != want || err != nil {
				t.Errorf("answer of an activated service: got %q, %v; want %q", got, err, want)
			}
		}
		if got, want := <-service.lines, "first second"; got != want {
			t.Errorf("sockets of an activated service: got %q, want %q", got, want)
		}
		service.end(t)
	}
}
