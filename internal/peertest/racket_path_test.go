//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/go-unixsock/unixsock"
)

var seed = flag.Uint64("seed", 0, "seed of the random paths; 0 means a random seed")

// absoluteForm defines a Racket function of a name in hex. It returns "no" if the
// name is not valid, otherwise the bytes to which Racket would bind a socket, in
// hex. A name that begins with NUL is a byte string in Racket, any other name is a
// path in any encoding. Names of which Racket cannot make a path, "" and those that
// contain a NUL, are passed as strings.
//
// The last branch of form does what unix-socket.rkt does with a path.
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
func (r *racket) absoluteForms(paths []string) []string {
	r.t.Helper()
	var quoted strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&quoted, " \"%x\"", path)
	}
	answers := strings.Fields(strings.Trim(r.eval("(map absolute-form '("+quoted.String()+"))"), "()"))
	if len(answers) != len(paths) {
		r.t.Fatalf("ask Racket about %d paths: got %d answers, want %d", len(paths), len(answers), len(paths))
	}
	for i, answer := range answers {
		switch answer = strings.Trim(answer, `"`); answer {
		case "no":
			answers[i] = ""
		default:
			b, err := hex.DecodeString(answer)
			if err != nil || len(b) == 0 {
				r.t.Fatalf("ask Racket about %q: got %q, want bytes in hex", paths[i], answer)
			}
			answers[i] = string(b)
		}
	}
	return answers
}

// correct works around a bug in Racket and returns the answer that Racket's
// documentation promises. Racket's build-path, up to 8.7 at least, looks for
// Windows UNC paths on every system. If the working directory is / and the path is
// \a/b, it mistakes the result /\a/b for a UNC path and removes the first slash.
// The path that unix-socket-path? measures and that Racket would bind is then
// relative and one byte too short.
func correct(wd, path, answer string) string {
	if wd != "/" || !strings.HasPrefix(path, `\`) || !strings.HasPrefix(answer, `\`) {
		return answer
	}
	if len(answer) == unixsock.MaxPathLen {
		return ""
	}
	return "/" + answer
}

// absolute returns the absolute form of path in unixsock. It is visible in the error
// of a connect whose context is already canceled.
func absolute(t testing.TB, path string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := unixsock.ConnectContext(ctx, path)
	var opErr *net.OpError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &opErr) {
		t.Fatalf("ConnectContext(%q) with a canceled context: got %v, want an OpError with context.Canceled", path, err)
	}
	return opErr.Addr.String()
}

// A pathGenerator generates random paths. Most have a length near the limit.
type pathGenerator struct {
	*rand.Rand
	wd string
}

// bytes returns n bytes without NUL. Slashes, dots, bytes that are not ASCII and
// characters that are special on some system are frequent.
func (g *pathGenerator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		switch g.IntN(8) {
		case 0:
			b[i] = '/'
		case 1:
			b[i] = `.@~\ $:%*"`[g.IntN(10)]
		case 2:
			b[i] = byte(1 + g.IntN(255))
		case 3:
			b[i] = byte(128 + g.IntN(128))
		default:
			b[i] = byte('a' + g.IntN(26))
		}
	}
	return b
}

// near returns a length that differs from n by at most 3.
func (g *pathGenerator) near(n int) int {
	return max(0, n-3+g.IntN(7))
}

// path returns the next path.
func (g *pathGenerator) path() string {
	const limit = unixsock.MaxPathLen
	switch g.IntN(10) {
	case 0: // an abstract name of any length, with NULs
		b := g.bytes(g.IntN(131))
		for range g.IntN(4) {
			b = slices.Insert(b, g.IntN(len(b)+1), 0)
		}
		return unixsock.Abstract(string(b))
	case 1: // an abstract name near the limit, or only NULs
		if g.IntN(10) == 0 {
			return strings.Repeat("\x00", 1+g.IntN(130))
		}
		return unixsock.Abstract(string(g.bytes(g.near(limit) - 1)))
	case 2: // a path that contains a NUL
		b := g.bytes(1 + g.IntN(limit))
		return string(slices.Insert(b, 1+g.IntN(len(b)), 0))
	case 3: // any bytes but NUL
		return string(g.bytes(g.IntN(131)))
	case 4: // at most three bytes
		return string(g.bytes(g.IntN(4)))
	case 5, 6: // absolute
		b := g.bytes(g.near(limit))
		b[0] = '/'
		return g.stretch(string(b))
	default: // relative
		return g.stretch(string(g.bytes(g.near(limit - len(g.wd) - 1))))
	}
}

// stretch replaces some slashes of path by runs of slashes, so that path is longer
// than its absolute form.
func (g *pathGenerator) stretch(path string) string {
	var b strings.Builder
	for i := range len(path) {
		b.WriteByte(path[i])
		if path[i] == '/' && g.IntN(3) == 0 {
			b.WriteString(strings.Repeat("/", g.IntN(60)))
		}
	}
	return b.String()
}

func TestRacketAgreesOnPaths(t *testing.T) {
	linux(t)
	const (
		total = 10_000
		batch = 200
		limit = unixsock.MaxPathLen
	)
	start := *seed
	if start == 0 {
		start = rand.Uint64()
	}
	t.Logf("seed %d", start)

	// The lengths are fixed, so that the paths depend on the seed only.
	base := longPath(t, socketDir(t), 40)
	wds := []string{
		"/",
		base,
		base + "/with space/\xff\xfe",
		longPath(t, base, limit-8),
		longPath(t, base, limit-1), // too long for any relative path
		longPath(t, base, limit+9),
	}
	for _, wd := range wds {
		if err := os.MkdirAll(wd, 0o700); err != nil {
			t.Fatalf("MkdirAll: %v", err)
		}
	}

	r := startRacket(t)
	r.do(absoluteForm)
	g := &pathGenerator{Rand: rand.New(rand.NewPCG(start, 0))}
	var valid, invalid, full, over, squeezed int
	for asked := 0; asked < total; asked += batch {
		g.wd = wds[asked/batch%len(wds)]
		t.Chdir(g.wd)
		r.do(`(current-directory (bytes->path (hex "` + hex.EncodeToString([]byte(g.wd)) + `")))`)

		paths := make([]string, batch)
		for i := range paths {
			paths[i] = g.path()
		}
		for i, answer := range r.absoluteForms(paths) {
			path := paths[i]
			want := correct(g.wd, path, answer)
			if got := unixsock.ValidPath(path); got != (want != "") {
				t.Errorf("ValidPath(%q) in the working directory %q, seed %d: got %t (%v), want %t as in Racket",
					path, g.wd, start, got, unixsock.CheckPath(path), want != "")
				continue
			}
			if want == "" {
				invalid++
				if len(path) == limit+1 {
					over++
				}
				continue
			}
			valid++
			if len(want) == limit {
				full++
			}
			if len(path) > limit {
				squeezed++
			}
			if got := absolute(t, path); got != want {
				t.Errorf("absolute form of %q in the working directory %q, seed %d: got %q, want %q as in Racket",
					path, g.wd, start, got, want)
			}
		}
	}
	t.Logf("%d valid paths: %d of %d bytes, %d longer before runs of slashes collapsed; %d invalid paths: %d one byte too long",
		valid, full, limit, squeezed, invalid, over)
	// Without enough paths near the limit, the test would not test the limit.
	for _, n := range []int{valid, invalid, full, over, squeezed} {
		if n < 20 {
			t.Errorf("generate %d paths: got %d of one kind, want at least 20", total, n)
		}
	}
}
