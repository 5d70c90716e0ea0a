package sys

import (
	"encoding/binary"
	"strings"
	"testing"
)

func (l layout) String() string {
	if l == layoutBSD {
		return "BSD"
	}
	return "Linux"
}

// head returns the header of an address of n bytes.
func (l layout) head(n int) string {
	if l == layoutBSD {
		return string([]byte{byte(n), 1})
	}
	return string(binary.NativeEndian.AppendUint16(nil, 1))
}

var layouts = []layout{layoutLinux, layoutBSD}

func TestEncodeWritesTheHeaderAndTheNameOnly(t *testing.T) {
	for _, l := range layouts {
		for _, name := range []string{
			"/a", "@a", "\xff\xfe", "/" + strings.Repeat("p", 103), "/" + strings.Repeat("p", 107),
			"\x00", "\x00a", "\x00a\x00", "\x00\x00\x00", "\x00" + strings.Repeat("\x00", 107),
		} {
			var b [maxAddress]byte
			for i := range b {
				b[i] = 0xEE
			}
			n := l.encode(&b, name)
			if got, want := string(b[:n]), l.head(2+len(name))+name; got != want {
				t.Errorf("%v: encode %q: got the address %q, want %q", l, name, got, want)
			}
			if rest := string(b[n:]); rest != strings.Repeat("\xEE", maxAddress-n) {
				t.Errorf("%v: encode %q: got %q after the address, want no change", l, name, rest)
			}
		}
	}
}

func TestDecodeReturnsTheName(t *testing.T) {
	full := "/" + strings.Repeat("p", 107)
	for _, test := range []struct {
		desc         string
		body         string // the bytes after the header
		linux, onBSD string
	}{
		{"no name", "", "", ""},
		{"a path without a NUL", "/a", "/a", "/a"},
		{"a path with a NUL after it", "/a\x00", "/a", "/a"},
		{"a path with NULs and other bytes after it", "/a\x00\x00b", "/a", "/a"},
		{"a path that begins with @", "@a", "@a", "@a"},
		{"a path that is not UTF-8", "\xff\x80", "\xff\x80", "\xff\x80"},
		{"a path of full length", full, full, full},
		{"a path of full length with the kernel's NUL after it", full + "\x00", full, full},
		{"one NUL", "\x00", "\x00", ""},
		{"NULs", strings.Repeat("\x00", 14), strings.Repeat("\x00", 14), ""},
		{"a NUL first", "\x00a", "\x00a", ""},
		{"a NUL first and last", "\x00a\x00", "\x00a\x00", ""},
		{"a NUL first and NULs within", "\x00a\x00\x00b", "\x00a\x00\x00b", ""},
		{"NULs at full length", strings.Repeat("\x00", 108), strings.Repeat("\x00", 108), ""},
	} {
		for _, l := range layouts {
			want := test.linux
			if l == layoutBSD {
				want = test.onBSD
			}
			b := []byte(l.head(2+len(test.body)) + test.body)
			if got := l.decode(b, len(b)); got != want {
				t.Errorf("%v: decode %s: got %q, want %q", l, test.desc, got, want)
			}
			// The kernel writes into a buffer that is longer than the address.
			long := append(b[:len(b):len(b)], "other"...)
			if got := l.decode(long, len(b)); got != want {
				t.Errorf("%v: decode %s in a longer buffer: got %q, want %q", l, test.desc, got, want)
			}
		}
	}
}

func TestDecodeClipsTheLength(t *testing.T) {
	for _, l := range layouts {
		b := []byte(l.head(4) + "/a")
		for n, want := range map[int]string{-1: "", 0: "", 1: "", 2: "", 3: "/", 4: "/a", 5: "/a", 1 << 30: "/a"} {
			if got := l.decode(b, n); got != want {
				t.Errorf("%v: decode an address of length %d: got %q, want %q", l, n, got, want)
			}
		}
		if got := l.decode(nil, 16); got != "" {
			t.Errorf("%v: decode no bytes: got %q, want \"\"", l, got)
		}
	}
}

func TestDecodeRejectsOtherFamilies(t *testing.T) {
	for _, b := range []string{"\x10\x02/a", "\x00\x00/a", "\x02\x00/a", "\x00\x02/a", "\x01\xff/a"} {
		for _, l := range layouts {
			if got := l.decode([]byte(b), len(b)); got != "" {
				t.Errorf("%v: decode %q: got %q, want \"\"", l, b, got)
			}
		}
	}
}

func FuzzDecodeAddress(f *testing.F) {
	f.Add([]byte("\x01\x00/a\x00"), 5, "/a")
	f.Add([]byte("\x00\x01\x00a\x00b"), 6, "\x00a\x00b")
	f.Add([]byte("\x6f\x01/"+strings.Repeat("p", 107)+"\x00"), 111, "/"+strings.Repeat("p", 107))
	f.Add([]byte{}, 16, "")
	f.Add([]byte{1}, -1, "\x00")
	f.Add([]byte{1, 0}, 1<<31-1, strings.Repeat("\x00", 108))
	f.Fuzz(func(t *testing.T, b []byte, n int, name string) {
		for _, l := range layouts {
			got := l.decode(b, n)
			if room := min(n, len(b)); got != "" && (len(got) > room-2 || got != string(b[2:2+len(got)])) {
				t.Fatalf("%v: decode %q, length %d: got %q, want a part of it", l, b, n, got)
			}

			abstract := strings.HasPrefix(name, "\x00")
			if len(name) > 108 || abstract && l == layoutBSD || !abstract && strings.Contains(name, "\x00") {
				continue
			}
			var a [maxAddress]byte
			size := l.encode(&a, name)
			if got := l.decode(a[:], size); size != 2+len(name) || got != name {
				t.Fatalf("%v: encode and decode %q: got %q and %d bytes, want the same name and %d", l, name, got, size, 2+len(name))
			}
		}
	})
}
