package sys

import (
	"bytes"
	"encoding/binary"
)

// A socket address is passed to and from the kernel as bytes with a length: a
// header of two bytes, then the name, with no NUL after it. The functions of
// x/sys/unix lose the last byte of a path of full length, treat a leading @ as
// NUL, and cut an abstract name at its second NUL.

const (
	familyUnix = 1 // AF_UNIX, the same number on every system
	headerSize = 2

	// The kernel appends a NUL to a path of full length when it reports one.
	maxAddress = headerSize + 108 + 1
)

// A layout is a system's form of the header of a socket address.
type layout bool

const (
	layoutLinux layout = false // a family of two bytes in the machine's byte order
	layoutBSD   layout = true  // a length of one byte, a family of one byte
)

// encode writes the address of name into b and returns the address's length.
func (l layout) encode(b *[maxAddress]byte, name string) int {
	n := headerSize + copy(b[headerSize:], name)
	if l == layoutBSD {
		b[0], b[1] = byte(n), familyUnix
	} else {
		binary.NativeEndian.PutUint16(b[:], familyUnix)
	}
	return n
}

// decode returns the name in an address that the kernel has written, "" if it
// has none. n is the length that the kernel reported, which may exceed len(b).
func (l layout) decode(b []byte, n int) string {
	b = b[:max(0, min(n, len(b)))]
	if len(b) <= headerSize {
		return ""
	}
	family := uint16(b[1])
	if l == layoutLinux {
		family = binary.NativeEndian.Uint16(b)
	}
	if family != familyUnix {
		return ""
	}
	name := b[headerSize:]
	if l == layoutLinux && name[0] == 0 {
		return string(name) // abstract: only its length ends it
	}
	if end := bytes.IndexByte(name, 0); end >= 0 {
		name = name[:end]
	}
	return string(name)
}
