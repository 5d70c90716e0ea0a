package sys

import (
	"bytes"
	"encoding/binary"
	"syscall"
)

// A socket address is passed to and from the kernel as bytes with a length: a
// header of two bytes, then the name, with no NUL after it. The functions of
// x/sys/unix lose the last byte of a path of full length, treat a leading @ as
// NUL, and cut an abstract name at its second NUL.

const (
	familyUnix = 1 // AF_UNIX, the same number on every system
	headerSize = 2

	// The BSDs admit longer names than they document, up to a length that fits one byte.
	maxAddress = 256
)

// encode writes the address of name into b and returns the address's length. Linux's
// header is the family in the machine's byte order. That of macOS and the BSDs is the
// address's length in one byte and the family in another.
func encode(b *[maxAddress]byte, name string, linux bool) int {
	n := headerSize + copy(b[headerSize:], name)
	if linux {
		binary.NativeEndian.PutUint16(b[:], familyUnix)
	} else {
		b[0], b[1] = byte(n), familyUnix
	}
	return n
}

// decode returns the name in an address that the kernel has written. b is empty if there
// is none. On Linux the length ends an abstract name, which begins with NUL.
func decode(b []byte, linux bool) (string, error) {
	switch {
	case len(b) < headerSize:
		return "", nil
	case b[0] != familyUnix && b[1] != familyUnix: // the other byte is never 1
		return "", syscall.EAFNOSUPPORT
	}
	name := b[headerSize:]
	if end := bytes.IndexByte(name, 0); end > 0 || end == 0 && !linux {
		name = name[:end]
	}
	return string(name), nil
}
