package sys

import (
	"encoding/binary"
	"strings"
	"testing"
)

// linuxHeader is the header of an address on Linux.
var linuxHeader = string(binary.NativeEndian.AppendUint16(nil, 1))

func TestEncodeWritesTheHeaderAndTheNameOnly(t *testing.T) {
	for _, name := range []string{
		"/a", "@a", "\xff\xfe", "/" + strings.Repeat("p", 103), "/" + strings.Repeat("p", 107),
		"\x00", "\x00a", "\x00a\x00", "\x00\x00\x00", "\x00" + strings.Repeat("\x00", 107),
	} {
		for _, test := range []struct {
			system, header string
			linux          bool
		}{
			{"Linux", linuxHeader, true},
			{"BSD", string([]byte{byte(2 + len(name)), 1}), false},
		} {
			var b [maxAddress]byte
			for i := range b {
				b[i] = 0xEE
			}
			n := encode(&b, name, test.linux)
			if got, want := string(b[:n]), test.header+name; got != want {
				t.Errorf("%s: encode %q: got the address %q, want %q", test.system, name, got, want)
			}
			if rest := string(b[n:]); rest != strings.Repeat("\xEE", maxAddress-n) {
				t.Errorf("%s: encode %q: got %q after the address, want no change", test.system, name, rest)
			}
		}
	}
}

func TestDecodeReturnsTheName(t *testing.T) {
	full := "/" + strings.Repeat("p", 107)
	for _, test := range []struct {
		desc string
		body string // the bytes after the header
		want string
	}{
		{"no name", "", ""},
		{"a path without a NUL", "/a", "/a"},
		{"a path with a NUL after it", "/a\x00", "/a"},
		{"a path with NULs and other bytes after it", "/a\x00\x00b", "/a"},
		{"a path that begins with @", "@a", "@a"},
		{"a path that is not UTF-8", "\xff\x80", "\xff\x80"},
		{"a path of full length", full, full},
		{"a path of full length with the kernel's NUL after it", full + "\x00", full},
		{"one NUL", "\x00", "\x00"},
		{"NULs", strings.Repeat("\x00", 14), strings.Repeat("\x00", 14)},
		{"a NUL first", "\x00a", "\x00a"},
		{"a NUL first and last", "\x00a\x00", "\x00a\x00"},
		{"a NUL first and NULs within", "\x00a\x00\x00b", "\x00a\x00\x00b"},
		{"NULs at full length", strings.Repeat("\x00", 108), strings.Repeat("\x00", 108)},
	} {
		b := []byte(linuxHeader + test.body)
		if got := decodeLinux(b, len(b)); got != test.want {
			t.Errorf("decode %s: got %q, want %q", test.desc, got, test.want)
		}
		// The kernel writes into a buffer that is longer than the address.
		long := append(b[:len(b):len(b)], "other"...)
		if got := decodeLinux(long, len(b)); got != test.want {
			t.Errorf("decode %s in a longer buffer: got %q, want %q", test.desc, got, test.want)
		}
	}
}

func TestDecodeClipsTheLength(t *testing.T) {
	b := []byte(linuxHeader + "/a")
	for n, want := range map[int]string{-1: "", 0: "", 1: "", 2: "", 3: "/", 4: "/a", 5: "/a", 1 << 30: "/a"} {
		if got := decodeLinux(b, n); got != want {
			t.Errorf("decode an address of length %d: got %q, want %q", n, got, want)
		}
	}
	if got := decodeLinux(nil, 16); got != "" {
		t.Errorf("decode no bytes: got %q, want \"\"", got)
	}
}

func TestDecodeRejectsOtherFamilies(t *testing.T) {
	for _, b := range []string{"\x10\x02/a", "\x00\x00/a", "\x02\x00/a", "\x00\x02/a", "\x01\xff/a"} {
		if got := decodeLinux([]byte(b), len(b)); got != "" {
			t.Errorf("decode %q: got %q, want \"\"", b, got)
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
		got := decodeLinux(b, n)
		if room := min(n, len(b)); got != "" && (len(got) > room-2 || got != string(b[2:2+len(got)])) {
			t.Fatalf("decode %q, length %d: got %q, want a part of it", b, n, got)
		}
		if len(name) > 108 || strings.IndexByte(name, 0) > 0 {
			return // neither an abstract name nor a path
		}
		var a [maxAddress]byte
		size := encode(&a, name, true)
		if got := decodeLinux(a[:], size); size != 2+len(name) || got != name {
			t.Fatalf("encode and decode %q: got %q and %d bytes, want the same name and %d", name, got, size, 2+len(name))
		}
	})
}
