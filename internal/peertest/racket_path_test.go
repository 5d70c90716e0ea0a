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

var seed = flag.Uint64("seed", 0, "seed of the paths that Racket is asked about; 0 takes one at random")

// judge is asked about names in hex, and answers of each with "no", or with the
// bytes, in hex too, of what a socket of that name is bound to. A name that
// begins with NUL is a byte string for Racket, any other a path, in whatever
// encoding. What Racket makes no path of, "" or a string with NUL, it is asked
// about all the same.
//
// The else of form is what unix-socket.rkt itself does with a path.
const judge = `
(define (judge digits)
  (define name (socket-path digits))
  (define (form) (if (bytes? name) name (path->bytes (cleanse-path (path->complete-path name)))))
  (if (unix-socket-path? name)
      (apply string-append
             (for/list ([b (form)])
               (string-append (if (< b 16) "0" "") (number->string b 16))))
      "no"))`

// ask asks Racket about paths. It answers "" of one that is not valid, and
// otherwise gives the absolute form.
func (r *racket) ask(paths []string) []string {
	r.t.Helper()
	var quoted strings.Builder
	for _, path := range paths {
		fmt.Fprintf(&quoted, " \"%x\"", path)
	}
	answers := strings.Fields(strings.Trim(r.eval("(map judge '("+quoted.String()+"))"), "()"))
	if len(answers) != len(paths) {
		r.t.Fatalf("Racket gave %d answers to %d questions", len(answers), len(paths))
	}
	for i, answer := range answers {
		switch answer = strings.Trim(answer, `"`); answer {
		case "no":
			answers[i] = ""
		default:
			b, err := hex.DecodeString(answer)
			if err != nil || len(b) == 0 {
				r.t.Fatalf("Racket answered %q", answer)
			}
			answers[i] = string(b)
		}
	}
	return answers
}

// repair makes of Racket's answer what its documentation calls for. Racket's
// build-path, up to 8.7 at least, looks for UNC paths of Windows on every
// system: if the working directory is / and the path \a/b, it takes the /\a/b
// that it has put together for one, and drops the first slash. The path that
// unix-socket-path? then measures, and that Racket would bind, is not absolute,
// and one byte short.
func repair(wd, path, answer string) string {
	if wd != "/" || !strings.HasPrefix(path, `\`) || !strings.HasPrefix(answer, `\`) {
		return answer
	}
	if len(answer) == unixsock.MaxPathLen {
		return ""
	}
	return "/" + answer
}

// absolute returns the absolute form of path as a user of this package sees it:
// in the error of a connect that is called off before it begins.
func absolute(t testing.TB, path string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := unixsock.ConnectContext(ctx, path)
	var opErr *net.OpError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &opErr) {
		t.Fatalf("ConnectContext(%q), cancelled: %v", path, err)
	}
	return opErr.Addr.String()
}

// A forger makes up paths, most of them near the limit.
type forger struct {
	*rand.Rand
	wd string
}

// bytes returns n bytes without NUL, in which slashes, dots, bytes of no
// encoding and characters of meaning elsewhere are frequent.
func (f *forger) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		switch f.IntN(8) {
		case 0:
			b[i] = '/'
		case 1:
			b[i] = `.@~\ $:%*"`[f.IntN(10)]
		case 2:
			b[i] = byte(1 + f.IntN(255))
		case 3:
			b[i] = byte(128 + f.IntN(128))
		default:
			b[i] = byte('a' + f.IntN(26))
		}
	}
	return b
}

// near returns a length at, below or above n.
func (f *forger) near(n int) int {
	return max(0, n-3+f.IntN(7))
}

// path returns the next path.
func (f *forger) path() string {
	const limit = unixsock.MaxPathLen
	switch f.IntN(10) {
	case 0: // an abstract name of any length
		b := f.bytes(f.IntN(131))
		for range f.IntN(4) {
			b = slices.Insert(b, f.IntN(len(b)+1), 0)
		}
		return unixsock.Abstract(string(b))
	case 1: // one near the limit, or all of NULs
		if f.IntN(10) == 0 {
			return strings.Repeat("\x00", 1+f.IntN(130))
		}
		return unixsock.Abstract(string(f.bytes(f.near(limit) - 1)))
	case 2: // a path with NUL inside
		b := f.bytes(1 + f.IntN(limit))
		return string(slices.Insert(b, 1+f.IntN(len(b)), 0))
	case 3: // anything
		return string(f.bytes(f.IntN(131)))
	case 4: // a few bytes
		return string(f.bytes(f.IntN(4)))
	case 5, 6: // absolute
		b := f.bytes(f.near(limit))
		b[0] = '/'
		return f.stretch(string(b))
	default: // relative
		return f.stretch(string(f.bytes(f.near(limit - len(f.wd) - 1))))
	}
}

// stretch makes some slashes of path runs of them, so that path is longer than
// its absolute form, and sometimes much.
func (f *forger) stretch(path string) string {
	var b strings.Builder
	for i := range len(path) {
		b.WriteByte(path[i])
		if path[i] == '/' && f.IntN(3) == 0 {
			b.WriteString(strings.Repeat("/", f.IntN(60)))
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
	t.Logf("the seed is %d", start)

	// Their lengths are fixed, so that the seed alone decides the paths.
	base := longPath(t, socketDir(t), 40)
	wds := []string{
		"/",
		base,
		base + "/with space/\xff\xfe",
		longPath(t, base, limit-8),
		longPath(t, base, limit-1), // no relative path has room
		longPath(t, base, limit+9),
	}
	for _, wd := range wds {
		if err := os.MkdirAll(wd, 0o700); err != nil {
			t.Fatal(err)
		}
	}

	r := startRacket(t)
	r.do(judge)
	f := &forger{Rand: rand.New(rand.NewPCG(start, 0))}
	var valid, invalid, full, over, squeezed int
	for asked := 0; asked < total; asked += batch {
		f.wd = wds[asked/batch%len(wds)]
		t.Chdir(f.wd)
		r.do(`(current-directory (bytes->path (hex "` + hex.EncodeToString([]byte(f.wd)) + `")))`)

		paths := make([]string, batch)
		for i := range paths {
			paths[i] = f.path()
		}
		for i, answer := range r.ask(paths) {
			path := paths[i]
			want := repair(f.wd, path, answer)
			if got := unixsock.ValidPath(path); got != (want != "") {
				t.Errorf("seed %d, working directory %q: ValidPath(%q) is %t, for Racket it is %t: %v",
					start, f.wd, path, got, want != "", unixsock.CheckPath(path))
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
				t.Errorf("seed %d, working directory %q: the absolute form of %q is %q, for Racket it is %q",
					start, f.wd, path, got, want)
			}
		}
	}
	t.Logf("%d valid, %d of them of %d bytes, %d with more before slashes were made one; %d invalid, %d of them one byte over",
		valid, full, limit, squeezed, invalid, over)
	// A run that misses the edge would prove nothing.
	for _, n := range []int{valid, invalid, full, over, squeezed} {
		if n < 20 {
			t.Errorf("the paths are badly spread: one sort of them came %d times", n)
		}
	}
}
