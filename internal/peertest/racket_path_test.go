//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package peertest

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/go-unixsock/unixsock"
	"github.com/go-unixsock/unixsock/internal/sockettest"
)

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
func (r *racket) absoluteForms(paths []string) []string {
	r.t.Helper()
	var quoted strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&quoted, " \"%x\"", path)
	}
	list := r.eval("(map absolute-form '(" + quoted.String() + "))")
	answers := strings.Fields(strings.NewReplacer("(", "", ")", "", `"`, "").Replace(list))
	if len(answers) != len(paths) {
		r.t.Fatalf("ask Racket about %d paths: got %d answers", len(paths), len(answers))
	}
	for i, answer := range answers {
		answers[i] = ""
		if answer != "no" {
			answers[i] = string(sockettest.Got(hex.DecodeString(answer)).Must(r.t))
		}
	}
	return answers
}

// correct works around a bug in Racket and returns the answer that Racket's
// documentation promises. Racket's build-path, up to 8.7 at least, takes /\a/b for a
// Windows UNC path on every system, and removes the first slash.
func correct(wd, path, answer string) string {
	if wd != "/" || !strings.HasPrefix(path, `\`) || !strings.HasPrefix(answer, `\`) {
		return answer
	}
	if len(answer) == unixsock.MaxPathLen {
		return ""
	}
	return "/" + answer
}

// absolute returns the absolute form of path in unixsock, "" if path is not valid. It is
// visible in the error of a connect whose context is already canceled.
func absolute(t testing.TB, path string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := unixsock.ConnectContext(ctx, path)
	var opErr *net.OpError
	if !errors.As(err, &opErr) || errors.Is(err, context.Canceled) != unixsock.ValidPath(path) {
		t.Fatalf("ConnectContext(%q) with a canceled context: got %v", path, err)
	}
	if !unixsock.ValidPath(path) {
		return ""
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
		default:
			b[i] = byte('a' + g.IntN(26))
		}
	}
	return b
}

// path returns the next path.
func (g *pathGenerator) path() string {
	b := g.bytes(unixsock.MaxPathLen - 3 + g.IntN(7)) // near the limit
	nuls := 0
	switch g.IntN(9) {
	case 0:
		b[0], nuls = 0, g.IntN(4)
	case 1:
		return strings.Repeat("\x00", 1+g.IntN(130))
	case 2:
		nuls = 1
	case 3:
		b, nuls = append([]byte{0}, g.bytes(g.IntN(131))...), g.IntN(4)
	case 4:
		b = g.bytes(g.IntN(131))
	case 5:
		b = b[:g.IntN(4)]
	case 6:
		b[0] = '/'
	default: // relative
		b = b[min(len(b), len(g.wd)+1):]
	}
	for range nuls {
		b[g.IntN(len(b))] = 0
	}
	if nuls > 0 || len(b) > 0 && b[0] == 0 {
		return string(b)
	}
	var s strings.Builder // runs of slashes make it longer than its absolute form
	for _, c := range b {
		s.WriteByte(c)
		if c == '/' && g.IntN(3) == 0 {
			s.WriteString(strings.Repeat("/", g.IntN(60)))
		}
	}
	return s.String()
}

func TestRacketAgreesOnPaths(t *testing.T) {
	linux(t)
	const limit = unixsock.MaxPathLen
	start := cmp.Or(*seed, rand.Uint64())
	g := &pathGenerator{Rand: rand.New(rand.NewPCG(start, 0))}
	r := startRacket(t)
	r.do(absoluteForm)
	base := longPath(t, socketDir(t), 40) // the paths depend on the seed only
	counts := map[string]int{}
	for _, wd := range []string{
		"/", base, base + "/with space/\xff\xfe", longPath(t, base, limit-8),
		longPath(t, base, limit-1), longPath(t, base, limit+9), // too long for any relative path
	} {
		sockettest.Check(t, os.MkdirAll(wd, 0o700))
		t.Chdir(wd)
		r.do(`(current-directory (bytes->path (hex "` + hex.EncodeToString([]byte(wd)) + `")))`)
		g.wd = wd
		paths := make([]string, 500)
		for i := range paths {
			paths[i] = g.path()
		}
		for i, answer := range r.absoluteForms(paths) {
			path, want := paths[i], correct(wd, paths[i], answer)
			if got := absolute(t, path); got != want {
				t.Errorf("absolute form of %q in %q, seed %d: got %q (%v), want %q as in Racket", path, wd, start, got, unixsock.CheckPath(path), want)
			}
			switch {
			case want == "" && len(path) == limit+1:
				counts["one byte too long"]++
			case want == "":
				counts["not valid"]++
			case len(path) > limit:
				counts["longer before runs of slashes collapsed"]++
			case len(want) == limit:
				counts["as long as possible"]++
			default:
				counts["valid"]++
			}
		}
	}
	for kind, n := range counts { // else it would not test the limit
		if n < 20 || len(counts) < 5 {
			t.Errorf("seed %d: generated %d paths that are %s, want at least 20", start, n, kind)
		}
	}
}
