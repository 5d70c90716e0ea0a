//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd

package unixsock

import (
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlMessage builds a control message whose header claims n bytes of data,
// whatever data there are.
func controlMessage(level, kind int32, n int, data []byte) []byte {
	b := make([]byte, max(unix.CmsgSpace(len(data)), unix.CmsgLen(0)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// descriptorsIn reads oob as parseRights does, by other means: it returns the
// whole numbers in the data of each SCM_RIGHTS up to the first message that
// cannot be.
func descriptorsIn(oob []byte) (fds []int) {
	for len(oob) >= unix.SizeofCmsghdr {
		var h unix.Cmsghdr
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unix.SizeofCmsghdr), oob)
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(len(oob)) {
			break
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for data := oob[unix.CmsgLen(0):h.Len]; len(data) >= 4; data = data[4:] {
				fds = append(fds, int(int32(binary.NativeEndian.Uint32(data))))
			}
		}
		oob = oob[min(len(oob), unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0))):]
	}
	return fds
}

func FuzzParseRights(f *testing.F) {
	three := unix.UnixRights(3, 4, 5)
	other := controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS+1, 12, make([]byte, 12))
	for _, oob := range [][]byte{
		nil,
		{0},
		three,
		slices.Concat(other, three, three),
		slices.Concat(three, other),
		three[:len(three)-1],            // cut in the padding, or in the last number
		three[:unix.CmsgLen(0)+4],       // cut behind the first number
		three[:unix.CmsgLen(0)-1],       // cut in the header
		slices.Concat(three, three[:7]), // a whole one, and a piece of a header
		unix.UnixRights(),
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, 5, []byte{1, 0, 0, 0, 9}), // a number and a quarter
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, 3, []byte{1, 0, 0}),
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, 1<<30, []byte{1, 0, 0, 0}),
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, -1, nil),
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, -unix.CmsgLen(0), nil), // of length 0
		controlMessage(unix.SOL_SOCKET+1, unix.SCM_RIGHTS, 4, []byte{1, 0, 0, 0}),
		controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, 4, []byte{0xff, 0xff, 0xff, 0xff}),
	} {
		f.Add(oob)
	}
	f.Fuzz(func(t *testing.T, oob []byte) {
		// A slice of its own, with nothing behind it: what is read beyond the
		// end is not there.
		oob = slices.Clip(slices.Clone(oob))
		got := parseRights(oob)
		if want := descriptorsIn(oob); !slices.Equal(got, want) {
			t.Errorf("% x: got %v, want %v", oob, got, want)
		}
	})
}
