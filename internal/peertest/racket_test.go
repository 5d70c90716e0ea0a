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

// A racket is a Racket process that evaluates what it is sent, a line in and a
// line out.
type racket struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// evaluator is the Racket program. What the expressions print goes elsewhere,
// to leave the output to the results.
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
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &racket{t, in, bufio.NewReader(out)}
	if got := r.eval("unix-socket-available?"); got != "(#t)" {
		t.Skipf("Racket has no unix sockets here: unix-socket-available? is %s", got)
	}
	return r
}

// send sends an expression. PATH in it stands for path as Racket takes it.
func (r *racket) send(expression string, path ...string) {
	r.t.Helper()
	for _, p := range path {
		expression = strings.Replace(expression, "PATH", fmt.Sprintf(`(socket-path "%x")`, p), 1)
	}
	if _, err := fmt.Fprintln(r.in, strings.Join(strings.Fields(expression), " ")); err != nil {
		r.t.Fatalf("sending %s to Racket: %v", expression, err)
	}
}

// result gives the values of the next expression, as a list.
func (r *racket) result() string {
	r.t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Fatalf("Racket gave no result: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (r *racket) eval(expression string, path ...string) string {
	r.t.Helper()
	r.send(expression, path...)
	return r.result()
}

// do evaluates a definition, or something else without a value of interest.
func (r *racket) do(expression string, path ...string) {
	r.t.Helper()
	if got := r.eval(expression, path...); got != "()" && got != "(#<void>)" {
		r.t.Fatalf("Racket made of %s: %s", expression, got)
	}
}

// want evaluates an expression and checks its value.
func (r *racket) want(value, expression string, path ...string) {
	r.t.Helper()
	if got := r.eval(expression, path...); got != "("+value+")" {
		r.t.Fatalf("Racket made of %s: %s, want (%s)", expression, got, value)
	}
}

// eachRacketName runs a test with every sort of name that Racket takes.
func eachRacketName(t *testing.T, test func(t *testing.T, r *racket, name string)) {
	r := startRacket(t)
	run := func(sort, name string) {
		t.Run(sort, func(t *testing.T) {
			if !unixsock.ValidPath(name) {
				linux(t)
			}
			r := *r
			r.t = t
			test(t, &r, name)
		})
	}
	run("path", socketDir(t)+"/s")
	run("path of the longest", longPath(t, socketDir(t), unixsock.MaxPathLen))
	run("path of no encoding", socketDir(t)+"/\xff\xfe(")
	run("path with runs of slashes", "//"+socketDir(t)+"///s")
	run("abstract", abstract("plain"))
	run("abstract with NULs inside", abstract("\x00a\x00\x00b"))
	run("abstract with NUL at its end", abstract("a\x00"))
	run("abstract of the longest", abstract(strings.Repeat("n", unixsock.MaxPathLen))[:unixsock.MaxPathLen])
	run("abstract of no encoding", abstract("\xff\xfe\n@"))
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
			t.Errorf("Racket's client ended with %s", got)
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
			t.Errorf("Racket's server ended with %s", got)
		}
	})
}

// A NUL at the end makes another name, for both alike.
func TestRacketTellsNamesApartByTheirNULs(t *testing.T) {
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
			t.Fatal(err)
		}
		r.want(fmt.Sprintf("%q", fmt.Sprint(i)), `(read-line in)`)
		r.do(`(begin (close-input-port in) (close-output-port out))`)
	}
}

// withRacket gives a connection between Racket's ports in and out, and a Conn,
// made by either side.
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
			t.Fatal(err)
		}
		r.want(`#"last words"`, `(port->bytes in #:close? #f)`)
		r.want(`#<eof>`, `(read-byte in)`)
		// The other half goes on.
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		expectBytes(t, c, "on")
	})
}

func TestRacketSeesInputClosed(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		in, out := c.Ports()
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		got := r.eval(`(begin (write-bytes #"x" out) (flush-output out))`)
		if !strings.HasPrefix(got, "(failed ") || !strings.Contains(got, fmt.Sprintf("errno=%d", int(syscall.EPIPE))) {
			t.Errorf("Racket's write gave %s, want EPIPE", got)
		}
		if _, err := io.WriteString(out, "on"); err != nil {
			t.Fatal(err)
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
			t.Fatal(err)
		}
		r.want(`#"on"`, `(read-bytes 2 in)`)
	})
}

func TestRacketsInputClosedIsSeen(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(close-input-port in)`)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write gave %v, want EPIPE", err)
		}
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		expectBytes(t, c, "on")
	})
}

func TestRacketSeesClose(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.send(`(read-byte in)`)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if got := r.result(); got != "(#<eof>)" {
			t.Errorf("Racket's read gave %s, want (#<eof>)", got)
		}
		// Closing one's half is no error where the peer has gone.
		r.do(`(begin (close-output-port out) (close-input-port in))`)
	})
}

func TestRacketsCloseIsSeen(t *testing.T) {
	withRacket(t, func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (close-output-port out) (close-input-port in))`)
		expectEOF(t, c)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write gave %v, want EPIPE", err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("CloseWrite, the peer gone: %v", err)
		}
		if err := c.CloseRead(); err != nil {
			t.Errorf("CloseRead, the peer gone: %v", err)
		}
	})
}

func TestConnectMakesRacketsListenerReady(t *testing.T) {
	r := startRacket(t)
	path := socketDir(t) + "/s"
	r.do(`(define listener (unix-socket-listen PATH))`, path)
	r.want(`#f`, `(sync/timeout 0 listener)`)
	c := connect(t, path)
	// Readiness accepts nothing: it comes again, with the listener itself.
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
		// By turns, the event and the connect come first.
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
			t.Fatalf("Racket ended with %s", got)
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
		t.Fatal("ready before the connect")
	default:
	}
	r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
	select {
	case got := <-ready:
		if got != l {
			t.Fatalf("readiness gave %p, want the listener %p", got, l)
		}
	case <-time.After(timeout):
		t.Fatal("not ready after the connect")
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
				t.Fatal("the channel is closed")
			}
			c := limit(t, a.Conn, a.Err)
			r.do(`(begin (write-bytes #"x" out) (close-output-port out))`)
			expectBytes(t, c, "x")
			expectEOF(t, c)
			c.Close()
			r.want(`#<eof>`, `(read-byte in)`)
		case <-time.After(timeout):
			t.Fatal("no connection delivered")
		}
	}
}
