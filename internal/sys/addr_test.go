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
		"\x00", "\x00a", "\x00a\x00", "\x00\x00\x00", strings.Repeat("\x00", 108),
	} {
		for linux, header := range map[bool]string{true: linuxHeader, false: string([]byte{byte(2 + len(name)), 1})} {
			b := [maxAddress]byte([]byte(strings.Repeat("\xEE", maxAddress)))
			n := encode(&b, name, linux)
			if want := header + name; n != len(want) || string(b[:]) != want+strings.Repeat("\xEE", maxAddress-n) {
				t.Errorf("encode %q (Linux: %t): got %d bytes of %q, want %q and no change after it", name, linux, n, b, want)
			}
		}
	}
}

func TestDecodeReturnsTheName(t *testing.T) {
	full, longest, nuls := "/"+strings.Repeat("p", 107), strings.Repeat("p", 253), strings.Repeat("\x00", 108)
	for _, test := range []struct{ body, linux, bsd string }{ // body: the bytes after the header
		{"", "", ""},
		{"/a", "/a", "/a"},
		{"/a\x00", "/a", "/a"},
		{"/a\x00\x00b", "/a", "/a"},
		{"@a", "@a", "@a"},
		{"\xff\x80", "\xff\x80", "\xff\x80"},
		{full, full, full},
		{full + "\x00", full, full},
		{longest, longest, longest}, // of NetBSD
		{"\x00", "\x00", ""},
		{nuls[:104], nuls[:104], ""},
		{"\x00a", "\x00a", ""},
		{"\x00a\x00", "\x00a\x00", ""},
		{"\x00a\x00\x00b", "\x00a\x00\x00b", ""},
		{nuls, nuls, ""},
	} {
		bsdHeader := string([]byte{byte(2 + len(test.body)), 1})
		linux, linuxErr := decode([]byte(linuxHeader+test.body), true)
		bsd, bsdErr := decode([]byte(bsdHeader+test.body), false)
		if linux != test.linux || bsd != test.bsd || linuxErr != nil || bsdErr != nil {
			t.Errorf("decode %q: got %q, %v on Linux and %q, %v on a BSD, want %q and %q",
				test.body, linux, linuxErr, bsd, bsdErr, test.linux, test.bsd)
		}
	}
	for _, linux := range []bool{true, false} {
		for _, b := range [][]byte{nil, {1}, {2, 2, 0, 0}} {
			if got, err := decode(b, linux); got != "" || (err != nil) != (len(b) == 4) {
				t.Errorf("decode %v (Linux: %v): got %q, %v, want no name, and an error of the IPv4 address", b, linux, got, err)
			}
		}
	}
}

func FuzzDecodeAddress(f *testing.F) {
	f.Add([]byte("/a\x00"), "/a")
	f.Add([]byte("\x00a\x00b"), "\x00a\x00b")
	f.Add([]byte("/"+strings.Repeat("p", 107)+"\x00"), "/"+strings.Repeat("p", 107))
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
