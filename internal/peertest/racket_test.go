//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

// A racket is a Racket process. It reads an expression a line and answers with one line.
type racket struct {
	t    testing.TB
	in   io.Writer
	out  *bufio.Reader
	sent string // the last expression
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
                 (call-with-values (lambda () (eval expression)) (lambda vs (remq (void) vs))))
               results)
        (newline results)
        (flush-output results)
        (loop)))))`

// send sends an expression to Racket. Each PATH in it is replaced by the next path,
// as an expression whose value racket/unix-socket accepts.
func (r *racket) send(expression string, path ...string) {
	r.t.Helper()
	for _, p := range path {
		expression = strings.Replace(expression, "PATH", fmt.Sprintf(`(socket-path "%x")`, p), 1)
	}
	r.sent = expression
	sockettest.Send(r.t, r.in, strings.Join(strings.Fields(expression), " ")+"\n")
}

// eval sends an expression and returns its values, as a list.
func (r *racket) eval(expression string) string {
	r.t.Helper()
	r.send(expression)
	return sockettest.Got(r.out.ReadString('\n')).Must(r.t)
}

// expect checks the value of the expression that was sent.
func (r *racket) expect(value string) {
	r.t.Helper()
	if got := sockettest.Got(r.out.ReadString('\n')).Must(r.t); got != "("+value+")\n" {
		r.t.Fatalf("evaluate %.1000s in Racket: got %s, want (%s)", r.sent, got, value)
	}
}

// want evaluates an expression and checks its value.
func (r *racket) want(value, expression string) {
	r.t.Helper()
	r.send(expression)
	r.expect(value)
}

// do evaluates an expression that has no value, such as a definition.
func (r *racket) do(expression string, path ...string) {
	r.t.Helper()
	r.send(expression, path...)
	r.expect("")
}

// run runs a subtest with the same process.
func (r *racket) run(t *testing.T, name string, test func(t *testing.T, r *racket)) {
	t.Run(name, func(t *testing.T) { test(t, &racket{t: t, in: r.in, out: r.out}) })
}

// TestRacket uses one process for all tests, because Racket starts slowly.
func TestRacket(t *testing.T) {
	in, out := pipes(t, peer(t, "racket", "-l", "racket/base", "-l", "racket/port", "-l", "racket/unix-socket", "-e", evaluator))
	r := &racket{t: t, in: in, out: out}
	if got := r.eval("unix-socket-available?"); got != "(#t)\n" {
		t.Skipf("Racket has no unix sockets on this system: unix-socket-available? is %s", got)
	}
	r.run(t, "talks", racketTalks)
	r.run(t, "half-closes", racketHalfCloses)
	r.run(t, "events", racketEvents)
	r.run(t, "paths", racketPaths)
}

// racketCopies echoes in Racket.
const racketCopies = `(let-values ([(in out) %s])
	(copy-port in out)
	(close-output-port out)
	(close-input-port in))`

func racketTalks(t *testing.T, r *racket) {
	for kind, name := range map[string]string{
		"path":                            socketDir(t) + "/s",
		"longest path":                    longPath(t, socketDir(t), unixsock.MaxPathLen),
		"path that is not UTF-8":          socketDir(t) + "/\xff\xfe(",
		"path with runs of slashes":       "//" + socketDir(t) + "///s",
		"abstract":                        abstract("plain"),
		"abstract with NULs inside":       abstract("\x00a\x00\x00b"),
		"abstract with trailing NULs":     abstract("a\x00\x00"),
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
			r.expect("")
			r.do(`(unix-socket-close-listener listener)`)
			l := sockettest.ListenAt(t, name, unixsock.ReplaceStale())
			r.send(fmt.Sprintf(racketCopies, `(unix-socket-connect PATH)`), name)
			sockettest.Check(t, converse(accept(t, l), data))
			r.expect("")
		})
	}
}

// halfCloses close ends of a connection between Racket's ports in and out and a Conn.
var halfCloses = map[string]func(t *testing.T, r *racket, c *unixsock.Conn){
	"our output": func(t *testing.T, r *racket, c *unixsock.Conn) {
		_, out := c.Ports()
		sockettest.Send(t, out, "last words")
		sockettest.Check(t, out.Close())
		r.want(`#"last words"`, `(port->bytes in #:close? #f)`)
		r.want(`#<eof>`, `(read-byte in)`)
		r.sends(t, c)
	},
	"our input": func(t *testing.T, r *racket, c *unixsock.Conn) {
		in, out := c.Ports()
		sockettest.Check(t, in.Close())
		got := r.eval(`(begin (write-bytes #"x" out) (flush-output out))`)
		if want := fmt.Sprintf("errno=%d", int(syscall.EPIPE)); !strings.HasPrefix(got, "(failed ") || !strings.Contains(got, want) {
			t.Errorf("write in Racket after the InputPort was closed: got %s, want EPIPE", got)
		}
		r.receives(t, out)
	},
	"Racket's output": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(begin (write-bytes #"last words" out) (close-output-port out))`)
		sockettest.ExpectEOF(t, c, "last words")
		r.receives(t, c)
	},
	"Racket's input": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.do(`(close-input-port in)`)
		_, err := c.Write([]byte("x"))
		sockettest.ExpectError(t, "Write after Racket closed its input", err, syscall.EPIPE)
		r.sends(t, c)
	},
	"our both": func(t *testing.T, r *racket, c *unixsock.Conn) {
		r.send(`(read-byte in)`)
		sockettest.Check(t, c.Close())
		r.expect(`#<eof>`)
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

// sends and receives check that the half of a connection that is still open works.
func (r *racket) sends(t *testing.T, in io.Reader) {
	t.Helper()
	r.do(`(begin (write-bytes #"on" out) (flush-output out))`)
	sockettest.Expect(t, in, "on")
}

func (r *racket) receives(t *testing.T, out io.Writer) {
	t.Helper()
	sockettest.Send(t, out, "on")
	r.want(`#"on"`, `(read-bytes 2 in)`)
}

func racketHalfCloses(t *testing.T, r *racket) {
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

func racketEvents(t *testing.T, r *racket) {
	path := socketDir(t) + "/listener"
	r.run(t, "Racket's listener", func(t *testing.T, r *racket) {
		r.do(`(define listener (unix-socket-listen PATH))`, path)
		r.want(`#f`, `(sync/timeout 0 listener)`)
		c := connect(t, path)
		// Readiness accepts no connection, so a second sync returns the listener again.
		r.want(`#t`, `(eq? listener (sync listener))`)
		r.want(`#t`, `(eq? listener (sync/timeout 0 listener))`)
		r.do(`(define-values (in out) (unix-socket-accept listener))`)
		r.want(`#f`, `(sync/timeout 0 listener)`)
		r.receives(t, c)
	})
	r.run(t, "Racket's accept-evt", func(t *testing.T, r *racket) {
		r.do(`(define custodian (make-custodian))`)
		r.do(`(define evt (parameterize ([current-custodian custodian]) (unix-socket-accept-evt listener)))`)
		r.want(`#f`, `(sync/timeout 0 evt)`)
		for i := range 20 {
			// The connect comes first in half of the rounds, the sync in the others.
			var c *unixsock.Conn
			if i%2 == 0 {
				c = connect(t, path)
			}
			r.send(fmt.Sprintf(racketCopies, `(apply values (sync evt))`))
			if c == nil {
				c = connect(t, path)
			}
			sockettest.Check(t, converse(c, fmt.Sprint("connection ", i)))
			r.expect("")
		}
		c := connect(t, path)
		r.do(`(define-values (in out) (apply values (sync evt)))`)
		r.sends(t, c)
		r.do(`(custodian-shutdown-all custodian)`)
		sockettest.ExpectEOF(t, c, "")
	})
	r.run(t, "Ready and AcceptEvt", func(t *testing.T, r *racket) {
		l := sockettest.Listen(t)
		ready, evt := l.Ready(), l.AcceptEvt(t.Context())
		select {
		case <-ready:
			t.Fatal("receive from Ready before the connect: got a value, want none")
		default:
		}
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

var seed = flag.Uint64("seed", 0, "seed of the random paths; 0 means a random seed")

// absoluteForm defines a Racket function of a name in hex. It returns "no" if the
// name is not valid, otherwise the bytes to which Racket would bind a socket, in
// hex. The last branch of form does what unix-socket.rkt does with a path.
const absoluteForm = `
(define (absolute-form digits)
  (define name (socket-path digits))
  (define (form) (if (bytes? name) name (path->bytes (cleanse-path (path->complete-path name)))))
  (if (unix-socket-path? name)
      (apply string-append
             (for/list ([b (form)])
               (string-append (if (< b 16) "0" "") (number->string b 16))))
      "no"))`

// absoluteForms returns the absolute form of each path as Racket computes it, or ""
// if Racket considers the path not valid.
func (r *racket) absoluteForms(wd string, paths []string) []string {
	r.t.Helper()
	r.do(fmt.Sprintf(`(current-directory (bytes->path (hex "%x")))`, wd))
	var list strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&list, ` "%x"`, path)
	}
	answers := regexp.MustCompile(`\w+`).FindAllString(r.eval("(map absolute-form '("+list.String()+"))"), -1)
	if len(answers) != len(paths) {
		r.t.Fatalf("ask Racket about %d paths: got %d answers", len(paths), len(answers))
	}
	for i, answer := range answers {
		b, err := hex.DecodeString(answer)
		if err != nil && answer != "no" {
			r.t.Fatalf("ask Racket about %q: got %s", paths[i], answer)
		}
		answers[i] = string(b)
		// Racket's build-path, up to 8.7 at least, takes /\a/b for a Windows UNC path on
		// every system, and removes the first slash. Its documentation promises the path.
		if wd == "/" && strings.HasPrefix(paths[i], `\`) && strings.HasPrefix(answers[i], `\`) {
			answers[i] = "/" + answers[i]
			if len(answers[i]) > unixsock.MaxPathLen {
				answers[i] = ""
			}
		}
	}
	return answers
}

// randomPath returns a random path, abstract name or invalid string. Lengths near the limit,
// in the directory wd, and characters that are special on some system are frequent.
func randomPath(g *rand.Rand, wd string) string {
	b := make([]byte, unixsock.MaxPathLen-3+g.IntN(7))
	if g.IntN(4) == 0 {
		b = make([]byte, 1+g.IntN(130))
	}
	for i := range b {
		const frequent = `//.@~\ $:%*"abcdefghijkl`
		b[i] = frequent[g.IntN(len(frequent))]
		if g.IntN(8) == 0 {
			b[i] = byte(1 + g.IntN(255))
		}
	}
	nuls := max(0, g.IntN(9)-5)
	switch g.IntN(6) {
	case 0:
		b[0] = 0
	case 1:
		b[0] = '/'
	case 2:
		clear(b)
	default: // relative
		b = b[min(len(b), len(wd)+1):]
		nuls = min(nuls, len(b))
	}
	for range nuls {
		b[g.IntN(len(b))] = 0
	}
	if strings.Contains(string(b), "\x00") {
		return string(b)
	}
	return regexp.MustCompile("/").ReplaceAllStringFunc(string(b), func(string) string { // its absolute form is shorter
		return strings.Repeat("/", max(1, g.IntN(180)-120))
	})
}

func racketPaths(t *testing.T, r *racket) {
	linux(t)
	const limit = unixsock.MaxPathLen
	start := cmp.Or(*seed, rand.Uint64())
	g := rand.New(rand.NewPCG(start, 0))
	r.do(absoluteForm)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	base := longPath(t, socketDir(t), 40) // the paths depend on the seed only
	var longest, tooLong, collapsed int
	for _, wd := range []string{
		"/", base, base + "/with space/\xff\xfe", longPath(t, base, limit-8),
		longPath(t, base, limit-1), longPath(t, base, limit+9), // too long for any relative path
	} {
		sockettest.Check(t, os.MkdirAll(wd, 0o700))
		t.Chdir(wd)
		paths := make([]string, 500)
		for i := range paths {
			paths[i] = randomPath(g, wd)
		}
		for i, want := range r.absoluteForms(wd, paths) {
			path, got := paths[i], ""
			_, err := unixsock.ConnectContext(ctx, path)
			if opErr := (*net.OpError)(nil); errors.Is(err, context.Canceled) && errors.As(err, &opErr) {
				got = opErr.Addr.String()
			}
			if got != want || unixsock.ValidPath(path) != (want != "") {
				t.Errorf("absolute form of %q in %q, seed %d: got %q (%v), want %q as in Racket", path, wd, start, got, err, want)
			}
			switch {
			case want == "" && len(path) == limit+1:
				tooLong++
			case want != "" && len(path) > limit:
				collapsed++
			case len(want) == limit:
				longest++
			}
		}
	}
	if min(longest, tooLong, collapsed) < 20 { // else it would not test the limit
		t.Errorf("seed %d: generated %d paths of the limit, %d of one byte more, %d with runs of slashes; want 20", start, longest, tooLong, collapsed)
	}
}
