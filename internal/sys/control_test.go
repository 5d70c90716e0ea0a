//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package sys

import (
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message returns a control message of SOL_SOCKET. Its header claims a length of
// length bytes, whatever the length of data is.
func message(kind int32, length int, data ...byte) []byte {
	return messageOf(unix.SOL_SOCKET, kind, length, data...)
}

func messageOf(level, kind int32, length int, data ...byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	setLen(&h.Len, length)
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// setLen sets a field that has 32 bits on some systems and 64 on others. -1 sets
// all of its bits.
func setLen[T uint32 | uint64](to *T, n int) { *to = T(n) }

// numbers returns the bytes of descriptors.
func numbers(fds ...int) (b []byte) {
	for _, fd := range fds {
		b = binary.NativeEndian.AppendUint32(b, uint32(fd))
	}
	return b
}

func TestDescriptorsOfMessages(t *testing.T) {
	const rights = unix.SCM_RIGHTS
	head := unix.CmsgLen(0)
	three := unix.UnixRights(3, 4, 5)
	many := make([]int, 254)
	for i := range many {
		many[i] = i + 3
	}
	for _, test := range []struct {
		desc    string
		control []byte
		want    []int
	}{
		{"no bytes", nil, nil},
		{"a part of a header", three[:head-1], nil},
		{"a header only", three[:head], nil},
		{"no descriptors", unix.UnixRights(), nil},
		{"three descriptors", three, []int{3, 4, 5}},
		{"254 descriptors", unix.UnixRights(many...), many},
		{"two messages", slices.Concat(three, unix.UnixRights(6)), []int{3, 4, 5, 6}},
		{"another type first", slices.Concat(message(rights+1, head+12, numbers(7, 8, 9)...), three), []int{3, 4, 5}},
		{"another type last", slices.Concat(three, message(rights+1, head+4, numbers(7)...)), []int{3, 4, 5}},
		{"another level", messageOf(unix.SOL_SOCKET+1, rights, head+4, numbers(7)...), nil},
		{"a descriptor and a quarter", message(rights, head+5, append(numbers(3), 9)...), []int{3}},
		{"less than a descriptor", message(rights, head+3, 3, 0, 0), nil},
		{"length 0", message(rights, 0, numbers(3)...), nil},
		{"length 1", message(rights, 1, numbers(3)...), nil},
		{"a length below the header's", message(rights, head-1, numbers(3)...), nil},
		{"a length below the header's in the second message",
			slices.Concat(three, message(rights, head-1, numbers(6)...)), []int{3, 4, 5}},
		{"a part of a second header", slices.Concat(three, three[:head-1]), []int{3, 4, 5}},

		// The buffer ends before the message.
		{"cut after the second descriptor", three[:head+8], []int{3, 4}},
		{"cut inside the third descriptor", three[:head+11], []int{3, 4}},
		{"cut inside the first descriptor", three[:head+2], nil},
		{"254 descriptors with room for 100", unix.UnixRights(many...)[:head+400], many[:100]},
		{"cut in the second message", slices.Concat(three, unix.UnixRights(6, 7, 8)[:head+4]), []int{3, 4, 5, 6}},
		{"the largest length", message(rights, -1, numbers(3, 4)...)[:head+8], []int{3, 4}},
		{"a length that wraps with alignment", message(rights, -4, numbers(3, 4)...)[:head+8], []int{3, 4}},
		{"a length of 1 GiB", message(rights, 1<<30, numbers(3)...)[:head+4], []int{3}},
		{"another type that claims all of the rest",
			slices.Concat(message(rights+1, -1, numbers(7, 8)...), three), nil},
	} {
		t.Run(test.desc, func(t *testing.T) {
			// Without capacity after the end, a read there panics.
			control := slices.Clip(slices.Clone(test.control))
			if got := descriptors(control, rights); !slices.Equal(got, test.want) {
				t.Errorf("descriptors(% x): got %v, want %v", control, got, test.want)
			}
		})
	}
}

func TestControlBufferHoldsTheLongestMessage(t *testing.T) {
	const darwinMost = 2048 // MCLBYTES, header included
	fds := make([]int, 254)
	if got, want := maxControl, max(len(unix.UnixRights(fds...)), darwinMost); got < want {
		t.Errorf("maxControl is %d, want at least %d", got, want)
	}
}

// wantDescriptors does what descriptors does in a different way: it reads the fields
// of the headers by their offsets, and counts in uint64.
func wantDescriptors(control []byte) (fds []int) {
	var h unix.Cmsghdr
	size := uint64(len(control))
	head := uint64(unix.CmsgLen(0))
	align := uint64(unix.CmsgSpace(1)) - head // of one byte of data
	for at := uint64(0); at+head <= size; {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)), control[at:])
		length := uint64(h.Len)
		if length < head {
			break
		}
		end := at + min(length, size-at)
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for i := at + head; i+4 <= end; i += 4 {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(control[i:]))))
			}
		}
		at = (end + align - 1) / align * align
	}
	return fds
}

func FuzzDescriptors(f *testing.F) {
	head := unix.CmsgLen(0)
	three := unix.UnixRights(3, 4, 5)
	other := message(unix.SCM_RIGHTS+1, head+12, numbers(7, 8, 9)...)
	for _, control := range [][]byte{
		nil,
		{0},
		three,
		slices.Concat(other, three, three),
		slices.Concat(three, other),
		three[:len(three)-1],
		three[:head+4],
		three[:head-1],
		slices.Concat(three, three[:7]),
		message(unix.SCM_RIGHTS, head+5, append(numbers(1), 9)...),
		message(unix.SCM_RIGHTS, 1<<30, numbers(1)...),
		message(unix.SCM_RIGHTS, -1, numbers(-1)...),
		message(unix.SCM_RIGHTS, 0),
	} {
		f.Add(control)
	}
	f.Fuzz(func(t *testing.T, control []byte) {
		control = slices.Clip(slices.Clone(control))
		got := descriptors(control, unix.SCM_RIGHTS)
		if want := wantDescriptors(control); !slices.Equal(got, want) {
			t.Errorf("descriptors(% x): got %v, want %v", control, got, want)
		}
	})
}
