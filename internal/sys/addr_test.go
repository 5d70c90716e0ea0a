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
		desc       string
		body       string // the bytes after the header
		linux, bsd string
	}{
		{"no name", "", "", ""},
		{"a path without a NUL", "/a", "/a", "/a"},
		{"a path with a NUL after it", "/a\x00", "/a", "/a"},
		{"a path with NULs and other bytes after it", "/a\x00\x00b", "/a", "/a"},
		{"a path that begins with @", "@a", "@a", "@a"},
		{"a path that is not UTF-8", "\xff\x80", "\xff\x80", "\xff\x80"},
		{"a path of full length", full, full, full},
		{"a path of full length with the kernel's NUL after it", full + "\x00", full, full},
		{"the longest path of NetBSD", strings.Repeat("p", 253), strings.Repeat("p", 253), strings.Repeat("p", 253)},
		{"one NUL", "\x00", "\x00", ""},
		{"NULs", strings.Repeat("\x00", 104), strings.Repeat("\x00", 104), ""},
		{"a NUL first", "\x00a", "\x00a", ""},
		{"a NUL first and last", "\x00a\x00", "\x00a\x00", ""},
		{"a NUL first and NULs within", "\x00a\x00\x00b", "\x00a\x00\x00b", ""},
		{"NULs at full length", strings.Repeat("\x00", 108), strings.Repeat("\x00", 108), ""},
	} {
		if got, err := decode([]byte(linuxHeader+test.body), true); got != test.linux || err != nil {
			t.Errorf("Linux: decode %s: got %q, %v, want %q", test.desc, got, err, test.linux)
		}
		header := string([]byte{byte(2 + len(test.body)), 1})
		if got, err := decode([]byte(header+test.body), false); got != test.bsd || err != nil {
			t.Errorf("BSD: decode %s: got %q, %v, want %q", test.desc, got, err, test.bsd)
		}
	}
}

func TestDecodeRefusesAnotherFamily(t *testing.T) {
	for _, linux := range []bool{true, false} {
		if got, err := decode([]byte{2, 2, 0, 0}, linux); err == nil {
			t.Errorf("decode an IPv4 address (Linux: %v): got %q, want an error", linux, got)
		}
		if got, err := decode(nil, linux); got != "" || err != nil {
			t.Errorf("decode no address (Linux: %v): got %q, %v, want no name", linux, got, err)
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
		for _, linux := range []bool{true, false} {
			if got, err := decode(b, linux); err == nil && got != "" && !strings.HasPrefix(string(b[headerSize:]), got) {
				t.Fatalf("decode %q: got %q, want a part of it", b, got)
			}
		}
		if len(name) > 108 || strings.IndexByte(name, 0) > 0 {
			return // neither an abstract name nor a path
		}
		var a [maxAddress]byte
		size := encode(&a, name, true)
		if got, err := decode(a[:size], true); size != 2+len(name) || got != name || err != nil {
			t.Fatalf("encode and decode %q: got %q, %v and %d bytes, want the same name and %d", name, got, err, size, 2+len(name))
		}
	})
}
