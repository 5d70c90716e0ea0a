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
		if got := decodeLinux([]byte(test.body)); got != test.want {
			t.Errorf("decode %s: got %q, want %q", test.desc, got, test.want)
		}
	}
}

func FuzzDecodeAddress(f *testing.F) {
	f.Add([]byte("/a\x00"), "/a")
	f.Add([]byte("\x00a\x00b"), "\x00a\x00b")
	f.Add([]byte("/"+strings.Repeat("p", 107)+"\x00"), "/"+strings.Repeat("p", 107))
	f.Add([]byte{}, "")
	f.Add([]byte{1}, "\x00")
	f.Add([]byte{1, 0}, strings.Repeat("\x00", 108))
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if got := decodeLinux(b); !strings.HasPrefix(string(b), got) {
			t.Fatalf("decode %q: got %q, want a part of it", b, got)
		}
		if len(name) > 108 || strings.IndexByte(name, 0) > 0 {
			return // neither an abstract name nor a path
		}
		var a [maxAddress]byte
		size := encode(&a, name, true)
		if got := decodeLinux(a[headerSize:size]); size != 2+len(name) || got != name {
			t.Fatalf("encode and decode %q: got %q and %d bytes, want the same name and %d", name, got, size, 2+len(name))
		}
	})
}
