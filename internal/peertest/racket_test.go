//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-unixsock/unixsock"
)

// A racket is a Racket process that evaluates expressions. It reads one expression
// a line and answers with one line.
type racket struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// evaluator is the program that the Racket process runs. Output of the expressions
// goes to standard error, so that standard output carries only results.
const evaluator = `
(define (hex digits)
  (apply bytes
         (for/list ([i (in-range 0 (string-length digits) 2)])
           (string->number (substring digits i (+ i 2)) 16))))
(define (socket-path digits)
  (define name (hex digits))
  (cond [(regexp-match? #rx#"^\0" name) name]
        [(path-string? (bytes->string/latin-1 name)) (bytes->path name)]
        [else (bytes->string/latin-1 name)]))
(let ([results (current-output-port)])
  (parameterize ([current-output-port (current-error-port)])
    (let loop ()
      (define expression (read))
      (unless (eof-object? expression)
        (write (with-handlers ([exn:fail? (lambda (e) (list 'failed (exn-message e)))])
                 (call-with-values (lambda () (eval expression)) list))
               results)
        (newline results)
        (flush-output results)
        (loop)))))`

// startRacket starts Racket with its unix socket library.
func startRacket(t testing.TB) *racket {
	t.Helper()
	cmd := peer(t, "racket", "-l", "racket/base", "-l", "racket/port", "-l", "racket/unix-socket", "-e", evaluator)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("StdinPipe: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("StdoutPipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start racket: %v", err)
	}
	r := &racket{t, in, bufio.NewReader(out)}
	if got := r.eval("unix-socket-available?"); got != "(#t)" {
		t.Skipf("Racket has no unix sockets on this system: unix-socket-available? is %s", got)
	}
	return r
}

// send sends an expression to Racket. Each PATH in it is replaced by the next path,
// as an expression whose value racket/unix-socket accepts.
func (r *racket) send(expression string, path ...string) {
	r.t.Helper()
	for _, p := range path {
		expression = strings.Replace(expression, "PATH", fmt.Sprintf(`(socket-path "%x")`, p), 1)
	}
	if _, err := fmt.Fprintln(r.in, strings.Join(strings.Fields(expression), " ")); err != nil {
		r.t.Fatalf("send %s to Racket: got %v, want no error", expression, err)
	}
}

// result returns the values of the next expression that was sent, as a list.
func (r *racket) result() string {
	r.t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Fatalf("read a result from Racket: got %q, %v; want a line", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

// eval sends an expression and returns its values, as a list.
func (r *racket) eval(expression string, path ...string) string {
	r.t.Helper()
	r.send(expression, path...)
	return r.result()
}

// do evaluates an expression that has no value, such as a definition.
func (r *racket) do(expression string, path ...string) {
	r.t.Helper()
	if got := r.eval(expression, path...); got != "()" && got != "(#<void>)" {
		r.t.Fatalf("evaluate %s in Racket: got %s, want no value", expression, got)
	}
}

// want evaluates an expression and checks its value.
func (r *racket) want(value, expression string, path ...string) {
	r.t.Helper()
	if got := r.eval(expression, path...); got != "("+value+")" {
		r.t.Fatalf("evaluate %s in Racket: got %s, want (%s)", expression, got, value)
	}
}

// eachRacketName runs a test with every kind of name that Racket accepts.
func eachRacketName(t *testing.T, test func(t *testing.T, r *racket, name string)) {
	r := startRacket(t)
	run := func(kind, name string) {
		t.Run(kind, func(t *testing.T) {
			if !unixsock.ValidPath(name) {
				linux(t)
			}
			r := *r
			r.t = t
			test(t, &r, name)
		})
	}
	run("path", socketDir(t)+"/s")
	run("longest path", longPath(t, socketDir(t), unixsock.MaxPathLen))
	run("path that is not UTF-8", socketDir(t)+"/\xff\xfe(")
	run("path with runs of slashes", "//"+socketDir(t)+"///s")
	run("abstract", abstract("plain"))
	run("abstract with NULs inside", abstract("\x00a\x00\x00b"))
	run("abstract with a trailing NUL", abstract("a\x00"))
	run("longest abstract name", abstract(strings.Repeat("n", unixsock.MaxPathLen))[:unixsock.MaxPathLen])
	run("abstract name that is not UTF-8", abstract("\xff\xfe\n@"))
}

func TestRacketIsClient(t *testing.T) {
	data := noise(1<<20 + 1)
	eachRacketName(t, func(t *testing.T, r *racket, name string) {
		l := listen(t, name)
		r.send(`(let-values ([(in out) (unix-socket-connect PATH)])
			(copy-port in out)
			(close-output-port out)
			(close-input-port in))`, name)
		converse(t, accept(t, l), data)
		if got := r.result(); got != "(#<void>)" {
			t.Errorf("run Racket's client: got %s, want (#<void>)", got)
		}
	})
}

func TestRacketIsServer(t *testing.T) {
	data := noise(1<<20 + 1)
	eachRacketName(t, func(t *testing.T, r *racket, name string) {
		r.do(`(define listener (unix-socket-listen PATH))`, name)
		r.send(`(let-values ([(in out) (unix-socket-accept listener)])
			(copy-port in out)
			(close-output-port out)
			(close-input-port in)
			(unix-socket-close-listener listener))`)
		converse(t, connect(t, name), data)
		if got := r.result(); got != "(#<void>)" {
			t.Errorf("run Racket's server: got %s, want (#<void>)", got)
		}
	})
}

// Names that differ only in their NULs are different names for Racket and unixsock.
func TestRacketDistinguishesNamesByTheirNULs(t *testing.T) {
	linux(t)
	r := startRacket(t)
	name := abstract("a")
	names := []string{name, name + "\x00", name + "\x00\x00", name + "\x00b"}
	var listeners []*unixsock.Listener
	for _, n := range names {
		listeners = append(listeners, listen(t, n))
	}
	for i, n := range names {
		r.do(`(define-values (in out) (unix-socket-connect PATH))`, n)
		c := accept(t, listeners[i])
		if _, err := fmt.Fprintln(c, i); err != nil {
			t.Fatalf("Write to Racket at %q: got %v, want no error", n, err)
		}
		r.want(fmt.Sprintf("%q", fmt.Sprint(i)), `(read-line in)`)
		r.do(`(begin (close-input-port in) (close-output-port out))`)
	}
}

// withRacket runs a test twice with a connection between Racket's ports in and out and a
// Conn. Racket connects the first time and accepts the second time.
func withRacket(t *testing.T, test func(t *testing.T, r *racket, c *unixsock.Conn)) {
	t.Run("Racket connects", func(t *testing.T) {
		r := startRacket(t)
		l := listen(t, socketDir(t)+"/s")
		r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
		test(t, r, accept(t, l))
	})
	t.Run("Racket accepts", func(t *testing.T) {
		r := startRacket(t)
		path := socketDir(t) + "/s"
		r.do(`(define listener (unix-socket-listen PATH))`, path)
		c := connect(t, path)
		r.do(`(define-values (in out) (unix-socket-accept listener))`)
		test(t, r, c)
	})
}

func TestRacketSeesOutputClosed(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		_, out := c.Ports()
		io.WriteString(out, "last words")
		if err := out.Close(); err != nil {
			t.Fatalf("Close of the OutputPort: got %v, want no error", err)
		}
		r.want(`#"last words"`, `(port->bytes in #:close? #f)`)
		r.want(`#<eof>`, `(read-byte in)`)
		// The other half still works.
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		expectBytes(t, c, "on")
	})
}

func TestRacketSeesInputClosed(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		in, out := c.Ports()
		if err := in.Close(); err != nil {
			t.Fatalf("Close of the InputPort: got %v, want no error", err)
		}
		got := r.eval(`(begin (write-bytes #"x" out) (flush-output out))`)
		if !strings.HasPrefix(got, "(failed ") || !strings.Contains(got, fmt.Sprintf("errno=%d", int(syscall.EPIPE))) {
			t.Errorf("write in Racket after the InputPort was closed: got %s, want EPIPE", got)
		}
		if _, err := io.WriteString(out, "on"); err != nil {
			t.Fatalf("Write after the InputPort was closed: got %v, want no error", err)
		}
		r.want(`#"on"`, `(read-bytes 2 in)`)
	})
}

func TestRacketsOutputClosedIsSeen(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (write-bytes #"last words" out) (close-output-port out))`)
		expectBytes(t, c, "last words")
		expectEOF(t, c)
		if _, err := io.WriteString(c, "on"); err != nil {
			t.Fatalf("Write after Racket closed its output: got %v, want no error", err)
		}
		r.want(`#"on"`, `(read-bytes 2 in)`)
	})
}

func TestRacketsInputClosedIsSeen(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(close-input-port in)`)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after Racket closed its input: got %v, want EPIPE", err)
		}
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		expectBytes(t, c, "on")
	})
}

func TestRacketSeesClose(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.send(`(read-byte in)`)
		if err := c.Close(); err != nil {
			t.Fatalf("Close: got %v, want no error", err)
		}
		if got := r.result(); got != "(#<eof>)" {
			t.Errorf("read in Racket while the Conn is closed: got %s, want (#<eof>)", got)
		}
		// Racket can close its ports without an error after the peer has closed.
		r.do(`(begin (close-output-port out) (close-input-port in))`)
	})
}

func TestRacketsCloseIsSeen(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (close-output-port out) (close-input-port in))`)
		expectEOF(t, c)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after Racket closed both ports: got %v, want EPIPE", err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite after Racket closed both ports: got %v, want no error", err)
		}
		if err := c.CloseRead(); err != nil {
			t.Errorf("CloseRead after Racket closed both ports: got %v, want no error", err)
		}
	})
}

func TestConnectMakesRacketsListenerReady(t *testing.T) {
	r := startRacket(t)
	path := socketDir(t) + "/s"
	r.do(`(define listener (unix-socket-listen PATH))`, path)
	r.want(`#f`, `(sync/timeout 0 listener)`)
	c := connect(t, path)
	// Readiness accepts no connection, so a second sync returns the listener again.
	r.want(`#t`, `(eq? listener (sync listener))`)
	r.want(`#t`, `(eq? listener (sync/timeout 0 listener))`)
	r.do(`(define-values (in out) (unix-socket-accept listener))`)
	r.want(`#f`, `(sync/timeout 0 listener)`)
	io.WriteString(c, "x")
	r.want(`#"x"`, `(read-bytes 1 in)`)
}

func TestRacketsAcceptEvtTakesOurConnects(t *testing.T) {
	r := startRacket(t)
	path := socketDir(t) + "/s"
	r.do(`(define listener (unix-socket-listen PATH))`, path)
	r.do(`(define evt (unix-socket-accept-evt listener))`)
	r.want(`#f`, `(sync/timeout 0 evt)`)
	for i := range 20 {
		// The connect comes first in half of the rounds, the sync in the others.
		expression := `(let ([ports (sync evt)])
			(copy-port (car ports) (cadr ports))
			(for-each (lambda (p) (if (input-port? p) (close-input-port p) (close-output-port p))) ports))`
		var c *unixsock.Conn
		if i%2 == 0 {
			c = connect(t, path)
			r.send(expression)
		} else {
			r.send(expression)
			c = connect(t, path)
		}
		converse(t, c, []byte(fmt.Sprint("connection ", i)))
		if got := r.result(); got != "(#<void>)" {
			t.Fatalf("echo in Racket on connection %d: got %s, want (#<void>)", i, got)
		}
	}
}

func TestRacketsCustodianClosesOurConn(t *testing.T) {
	r := startRacket(t)
	path := socketDir(t) + "/s"
	r.do(`(define listener (unix-socket-listen PATH))`, path)
	r.do(`(define custodian (make-custodian))`)
	r.do(`(define evt (parameterize ([current-custodian custodian]) (unix-socket-accept-evt listener)))`)
	c := connect(t, path)
	r.do(`(define ports (sync evt))`)
	r.do(`(begin (write-bytes #"x" (cadr ports)) (flush-output (cadr ports)))`)
	expectBytes(t, c, "x")
	r.do(`(custodian-shutdown-all custodian)`)
	expectEOF(t, c)
}

func TestRacketsConnectMakesListenerReady(t *testing.T) {
	r := startRacket(t)
	l := listen(t, socketDir(t)+"/s")
	ready := l.Ready()
	select {
	case <-ready:
		t.Fatal("receive from Ready before the connect: got a value, want none")
	default:
	}
	r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
	select {
	case got := <-ready:
		if got != l {
			t.Fatalf("receive from Ready after the connect: got %p, want the listener %p", got, l)
		}
	case <-time.After(timeout):
		t.Fatalf("receive from Ready after the connect: got nothing within %v, want the listener", timeout)
	}
	r.do(`(begin (write-bytes #"x" out) (flush-output out))`)
	expectBytes(t, accept(t, l), "x")
}

func TestAcceptEvtTakesRacketsConnects(t *testing.T) {
	r := startRacket(t)
	l := listen(t, socketDir(t)+"/s")
	evt := l.AcceptEvt(t.Context())
	for range 20 {
		r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
		select {
		case a, ok := <-evt:
			if !ok {
				t.Fatal("receive from AcceptEvt: got a closed channel, want a connection")
			}
			c := withDeadline(t, "receive from AcceptEvt", a.Conn, a.Err)
			r.do(`(begin (write-bytes #"x" out) (close-output-port out))`)
			expectBytes(t, c, "x")
			expectEOF(t, c)
			c.Close()
			r.want(`#<eof>`, `(read-byte in)`)
		case <-time.After(timeout):
			t.Fatalf("receive from AcceptEvt: got nothing within %v, want a connection", timeout)
		}
	}
}
