package unixsock

import (
	"bytes"
	"encoding/binary"
)

// A socket address goes to and from the kernel as bytes with their own length:
// two bytes of header, then the name, and no NUL behind it. What x/sys/unix
// does instead loses the last byte of a path, takes @ for NUL, and cuts an
// abstract name at its second NUL.

const (
	familyUnix   = 1 // AF_UNIX, the same number everywhere
	sockaddrHead = 2

	// The kernel appends a NUL to a path of full length when it reports one.
	sockaddrSize = sockaddrHead + 108 + 1
)

// A layout says how a system heads a socket address.
type layout bool

const (
	layoutLinux layout = false // a family of two bytes in the machine's order
	layoutBSD   layout = true  // a length of one byte, a family of one byte
)

// encode writes the address of name into b and returns the address's length.
func (l layout) encode(b *[sockaddrSize]byte, name string) int {
	n := sockaddrHead + copy(b[sockaddrHead:], name)
	if l == layoutBSD {
		b[0], b[1] = byte(n), familyUnix
	} else {
		binary.NativeEndian.PutUint16(b[:], familyUnix)
	}
	return n
}

// decode returns the name in an address as the kernel wrote it, "" if it has
// none. n is the length that the kernel reported, which may be more than b
// could hold.
func (l layout) decode(b []byte, n int) string {
	b = b[:max(0, min(n, len(b)))]
	if len(b) <= sockaddrHead {
		return ""
	}
	family := uint16(b[1])
	if l == layoutLinux {
		family = binary.NativeEndian.Uint16(b)
	}
	if family != familyUnix {
		return ""
	}
	name := b[sockaddrHead:]
	if l == layoutLinux && name[0] == 0 {
		return string(name) // abstract: its length is all that ends it
	}
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	return string(name)
}
