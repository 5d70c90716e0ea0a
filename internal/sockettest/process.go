//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sockettest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ChildVar  = "UNIXSOCK_TEST_CHILD"  // holds, in a child process, the name of its test
	helperVar = "UNIXSOCK_TEST_HELPER" // holds, in a helper process, its role
)

// Main is for TestMain. In a helper process, it calls the function of its role
// with the arguments of StartHelper or HelperCommand; otherwise it runs the
// tests. It does not return.
func Main(m *testing.M, roles map[string]func(args []string) error) {
	role := os.Getenv(helperVar)
	if role == "" {
		// The runtime opens descriptors for its poller and for the first process. No test
		// shall count them as left open.
		r, w, _ := os.Pipe()
		r.Close()
		w.Close()
		if p, err := os.FindProcess(os.Getpid()); err == nil {
			_ = p.Release()
		}
		os.Exit(m.Run())
	}
	time.AfterFunc(2*time.Minute, func() { panic("helper still runs after 2 minutes: " + role) })
	f := roles[role]
	if f == nil {
		fmt.Println("error: unknown role of a helper:", role)
		os.Exit(1)
	}
	if err := f(os.Args[1:]); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// InChild runs the calling test, which changes the state of the process, in a child
// process. It returns true in the child, and false in the parent once the child has
// passed. setup, which may be nil, prepares the child.
func InChild(t *testing.T, setup func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(ChildVar) == t.Name() {
		return true
	}
	// A wait of the child fails before the child's time limit.
	cmd := childCommand(t, setup, ChildVar+"="+t.Name(),
		"-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v", fmt.Sprint("-test.timeout=", 2*Timeout))
	out, err := cmd.CombinedOutput()
	ended := func(how string) bool { // the test itself: the name of a subtest goes on after it
		return strings.Contains(string(out), "--- "+how+": "+t.Name()+" ")
	}
	switch {
	case err != nil:
		t.Fatalf("test in a child process: %v\n%s", err, out)
	case ended("SKIP"):
		t.Skipf("test in a child process: skipped\n%s", out)
	case !ended("PASS"):
		t.Fatalf("test in a child process: it did not run\n%s", out)
	}
	return false
}

// childCommand returns a command that runs this binary with a variable in its environment, in
// the emulator that UNIXSOCK_TEST_EMULATOR names, if it is set: an emulator of another
// processor does not emulate the processes that a program starts.
func childCommand(t testing.TB, setup func(*exec.Cmd), variable string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(exe, args...)
	// The race detector sleeps for a second at the end of a process, by default.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), variable)
	if setup != nil {
		setup(cmd)
	}
	if path, err := exec.LookPath(os.Getenv("UNIXSOCK_TEST_EMULATOR")); err == nil {
		cmd.Args = append([]string{path, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = path
	}
	return cmd
}

// A Helper is a process that runs a role of Main. It reads commands and prints
// answers, one per line, and ends at the end of its input.
type Helper struct {
	Cmd   *exec.Cmd
	Lines <-chan string // closed at the end of its output

	t  testing.TB
	in io.WriteCloser
}

// HelperCommand returns the command that runs a role of Main. setup, which may be
// nil, prepares it.
func HelperCommand(t testing.TB, setup func(*exec.Cmd), role string, args ...string) *exec.Cmd {
	t.Helper()
	return childCommand(t, setup, helperVar+"="+role, args...)
}

// StartHelper starts HelperCommand. The helper is killed at the end of the test.
func StartHelper(t testing.TB, setup func(*exec.Cmd), role string, args ...string) *Helper {
	t.Helper()
	cmd := HelperCommand(t, setup, role, args...)
	cmd.Stderr = os.Stderr
	in, out := Got(cmd.StdinPipe()).Must(t), Got(cmd.StdoutPipe()).Must(t)
	Check(t, cmd.Start())
	lines := make(chan string, 1)
	h := &Helper{Cmd: cmd, Lines: lines, t: t, in: in}
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(h.Kill)
	return h
}

// Kill ends the helper with SIGKILL and returns when it has ended.
func (h *Helper) Kill() {
	_ = h.Cmd.Process.Kill()
	for range h.Lines {
	}
	h.in.Close()
	_ = h.Cmd.Wait() // it was killed
}

// Send writes a line to the helper's input.
func (h *Helper) Send(line string) {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		h.t.Fatalf("Write of %q to the helper: %v; its next line is %q", line, err, h.Next())
	}
}

// Next returns the helper's next line. It fails the test if the helper reports an error.
func (h *Helper) Next() string {
	h.t.Helper()
	line := Receive(h.t, "a line from the helper", h.Lines)
	if err, isError := strings.CutPrefix(line, "error: "); isError {
		h.t.Fatalf("next line of the helper: got the error %s", err)
	}
	return line
}

// Expect fails the test unless the helper's next line is want.
func (h *Helper) Expect(want string) {
	h.t.Helper()
	if got := h.Next(); got != want {
		h.t.Fatalf("next line of the helper: got %q, want %q", got, want)
	}
}

// UntilEOF waits, in a helper, for the end of the helper's input.
func UntilEOF() { _, _ = io.Copy(io.Discard, os.Stdin) }

// ExhaustDescriptors makes the process unable to open another descriptor until free is
// called. The process should be a child.
func ExhaustDescriptors(t testing.TB) (free func()) { return limitDescriptors(t, 0) }

// limitDescriptors leaves n descriptors.
func limitDescriptors(t testing.TB, n int) (free func()) {
	t.Helper()
	var limit unix.Rlimit
	Check(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	lowest := Got(unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)).Must(t)
	unix.Close(lowest)
	low := limit
	setUint(&low.Cur, lowest+n)
	Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	return func() { Check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }
}

// setUint sets a field that is a uint64 on some systems, and an int64 on others.
func setUint[T int64 | uint64](to *T, n int) { *to = T(n) }

// ProcessorTime returns how much processor time this process has used.
func ProcessorTime(t testing.TB) time.Duration {
	var usage unix.Rusage
	Check(t, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// WaitIdle waits until this process uses less than a quarter of a processor. A goroutine that
// spins uses more all the time. A busy machine does not fail the test.
func WaitIdle(t testing.TB) {
	t.Helper()
	WaitFor(t, "the process uses more than a quarter of a processor", func() bool {
		const period = 100 * time.Millisecond
		used := ProcessorTime(t)
		time.Sleep(period) // the time that is measured
		return ProcessorTime(t)-used < period/4
	})
}
