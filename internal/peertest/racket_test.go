//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
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
	in, out := pipes(t, peer(t, "racket", "-l", "racket/base", "-l", "racket/port", "-l", "racket/unix-socket", "-e", evaluator))
	r := &racket{t, in, out}
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
	sockettest.Send(r.t, r.in, strings.Join(strings.Fields(expression), " ")+"\n")
}

// result returns the values of the next expression that was sent, as a list.
func (r *racket) result() string {
	r.t.Helper()
	return strings.TrimSuffix(sockettest.Got(r.out.ReadString('\n')).Must(r.t), "\n")
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
	r.send(expression, path...)
	r.done(expression)
}

// done waits until Racket has evaluated an expression without a value.
func (r *racket) done(expression string) {
	r.t.Helper()
	if got := r.result(); got != "()" && got != "(#<void>)" {
		r.t.Fatalf("evaluate %s in Racket: got %s, want no value", expression, got)
	}
}

// want evaluates an expression and checks its value.
func (r *racket) want(value, expression string) {
	r.t.Helper()
	if got := r.eval(expression); got != "("+value+")" {
		r.t.Fatalf("evaluate %s in Racket: got %s, want (%s)", expression, got, value)
	}
}

// run runs a subtest with the same process.
func (r *racket) run(t *testing.T, name string, test func(t *testing.T, r *racket)) {
	t.Run(name, func(t *testing.T) { test(t, &racket{t, r.in, r.out}) })
}

// racketCopies echoes in Racket.
const racketCopies = `(let-values ([(in out) %s])
	(copy-port in out)
	(close-output-port out)
	(close-input-port in))`

func TestRacketTalks(t *testing.T) {
	t.Parallel()
	r := startRacket(t)
	for kind, name := range map[string]string{
		"path":                            socketDir(t) + "/s",
		"longest path":                    longPath(t, socketDir(t), unixsock.MaxPathLen),
		"path that is not UTF-8":          socketDir(t) + "/\xff\xfe(",
		"path with runs of slashes":       "//" + socketDir(t) + "///s",
		"abstract":                        abstract("plain"),
		"abstract with NULs inside":       abstract("\x00a\x00\x00b"),
		"abstract with a trailing NUL":    abstract("a\x00"),
		"longest abstract name":           abstract(strings.Repeat("n", unixsock.MaxPathLen))[:unixsock.MaxPathLen],
		"abstract name that is not UTF-8": abstract("\xff\xfe\n@"),
	} {
		r.run(t, kind, func(t *testing.T, r *racket) {
			if !unixsock.ValidPath(name) {
				linux(t)
			}
			r.do(`(define listener (unix-socket-listen PATH))`, name)
			r.send(fmt.Sprintf(racketCopies, `(unix-socket-accept listener)`))
			sockettest.Check(t, converse(connect(t, name), data))
			r.done("a server")
			r.do(`(unix-socket-close-listener listener)`)
			l := sockettest.ListenAt(t, name, unixsock.ReplaceStale())
			r.send(fmt.Sprintf(racketCopies, `(unix-socket-connect PATH)`), name)
			sockettest.Check(t, converse(accept(t, l), data))
			r.done("a client")
		})
	}
	r.run(t, "names that differ in their NULs", func(t *testing.T, r *racket) {
		linux(t)
		name := abstract("a")
		listeners := map[string]*unixsock.Listener{}
		for _, end := range []string{"", "\x00", "\x00\x00", "\x00b"} {
			listeners[end] = sockettest.ListenAt(t, name+end)
		}
		for end, l := range listeners {
			r.do(`(define-values (in out) (unix-socket-connect PATH))`, name+end)
			sockettest.Send(t, accept(t, l), "x")
			r.want(`#"x"`, `(read-bytes 1 in)`)
		}
	})
}

// halfCloses close ends of a connection between Racket's ports in and out and a Conn.
var halfCloses = map[string]func(t *testing.T, r *racket, c *unixsock.Conn){
	"our output": func(t *testing.T, r *racket, c *unixsock.Conn) {
		_, out := c.Ports()
		sockettest.Send(t, out, "last words")
		sockettest.Check(t, out.Close())
		r.want(`#"last words"`, `(port->bytes in #:close? #f)`)
		r.want(`#<eof>`, `(read-byte in)`)
		// The other half still works.
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		sockettest.Expect(t, c, "on")
	},
	"our input": func(t *testing.T, r *racket, c *unixsock.Conn) {
		in, out := c.Ports()
		sockettest.Check(t, in.Close())
		got := r.eval(`(begin (write-bytes #"x" out) (flush-output out))`)
		if want := fmt.Sprintf("errno=%d", int(syscall.EPIPE)); !strings.HasPrefix(got, "(failed ") || !strings.Contains(got, want) {
			t.Errorf("write in Racket after the InputPort was closed: got %s, want EPIPE", got)
		}
		sockettest.Send(t, out, "on")
		r.want(`#"on"`, `(read-bytes 2 in)`)
	},
	"Racket's output": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (write-bytes #"last words" out) (close-output-port out))`)
		sockettest.ExpectEOF(t, c, "last words")
		sockettest.Send(t, c, "on")
		r.want(`#"on"`, `(read-bytes 2 in)`)
	},
	"Racket's input": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(close-input-port in)`)
		_, err := c.Write([]byte("x"))
		sockettest.ExpectError(t, "Write after Racket closed its input", err, syscall.EPIPE)
		r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
		sockettest.Expect(t, c, "on")
	},
	"our both": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.send(`(read-byte in)`)
		sockettest.Check(t, c.Close())
		if got := r.result(); got != "(#<eof>)" {
			t.Errorf("read in Racket while the Conn is closed: got %s, want (#<eof>)", got)
		}
		// Racket can close its ports without an error after the peer has closed.
		r.do(`(begin (close-output-port out) (close-input-port in))`)
	},
	"Racket's both": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (close-output-port out) (close-input-port in))`)
		sockettest.ExpectEOF(t, c, "")
		_, err := c.Write([]byte("x"))
		sockettest.ExpectError(t, "Write after Racket closed both ports", err, syscall.EPIPE)
		sockettest.Check(t, c.CloseWrite())
		sockettest.Check(t, c.CloseRead())
	},
}

func TestRacketAndHalfCloses(t *testing.T) {
	t.Parallel()
	r := startRacket(t)
	for half, test := range halfCloses {
		r.run(t, half+", Racket connects", func(t *testing.T, r *racket) {
			l := sockettest.Listen(t)
			r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
			test(t, r, accept(t, l))
		})
		r.run(t, half+", Racket accepts", func(t *testing.T, r *racket) {
			path := socketDir(t) + "/s"
			r.do(`(define listener (unix-socket-listen PATH))`, path)
			c := connect(t, path)
			r.do(`(define-values (in out) (unix-socket-accept listener))`)
			test(t, r, c)
		})
	}
}

func TestRacketAndEvents(t *testing.T) {
	t.Parallel()
	r := startRacket(t)
	dir := socketDir(t)
	r.run(t, "Racket's listener", func(t *testing.T, r *racket) {
		r.do(`(define listener (unix-socket-listen PATH))`, dir+"/listener")
		r.want(`#f`, `(sync/timeout 0 listener)`)
		c := connect(t, dir+"/listener")
		// Readiness accepts no connection, so a second sync returns the listener again.
		r.want(`#t`, `(eq? listener (sync listener))`)
		r.want(`#t`, `(eq? listener (sync/timeout 0 listener))`)
		r.do(`(define-values (in out) (unix-socket-accept listener))`)
		r.want(`#f`, `(sync/timeout 0 listener)`)
		sockettest.Send(t, c, "x")
		r.want(`#"x"`, `(read-bytes 1 in)`)
	})
	r.run(t, "Racket's accept-evt", func(t *testing.T, r *racket) {
		r.do(`(define listener (unix-socket-listen PATH))`, dir+"/evt")
		r.do(`(define custodian (make-custodian))`)
		r.do(`(define evt (parameterize ([current-custodian custodian]) (unix-socket-accept-evt listener)))`)
		r.want(`#f`, `(sync/timeout 0 evt)`)
		for i := range 20 {
			// The connect comes first in half of the rounds, the sync in the others.
			var c *unixsock.Conn
			if i%2 == 0 {
				c = connect(t, dir+"/evt")
			}
			r.send(fmt.Sprintf(racketCopies, `(apply values (sync evt))`))
			if c == nil {
				c = connect(t, dir+"/evt")
			}
			sockettest.Check(t, converse(c, fmt.Sprint("connection ", i)))
			r.done("an echo")
		}
		c := connect(t, dir+"/evt")
		r.do(`(define ports (sync evt))`)
		r.do(`(begin (write-bytes #"x" (cadr ports)) (flush-output (cadr ports)))`)
		sockettest.Expect(t, c, "x")
		r.do(`(custodian-shutdown-all custodian)`)
		sockettest.ExpectEOF(t, c, "")
	})
	r.run(t, "Ready and AcceptEvt", func(t *testing.T, r *racket) {
		l := sockettest.Listen(t)
		ready := l.Ready()
		select {
		case <-ready:
			t.Fatal("receive from Ready before the connect: got a value, want none")
		default:
		}
		evt := l.AcceptEvt(t.Context())
		for i := range 20 {
			r.do(`(define-values (in out) (unix-socket-connect PATH))`, l.Addr().String())
			if got := sockettest.Receive(t, "Ready after the connect", ready); got != l {
				t.Fatalf("receive from Ready after the connect: got %v, want the listener %v", got, l)
			}
			var c *unixsock.Conn
			if i == 0 {
				c = accept(t, l)
			} else {
				a := sockettest.Receive(t, "AcceptEvt", evt)
				c = limit(t, a.Conn, a.Err)
			}
			r.do(`(begin (write-bytes #"x" out) (close-output-port out))`)
			sockettest.ExpectEOF(t, c, "x")
			c.Close()
			r.want(`#<eof>`, `(read-byte in)`)
		}
	})
}
