package unixsock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// passAlong sets an option of c that has the kernel add messages to what it
// receives.
func passAlong(t testing.TB, c *Conn, option int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, 1) })
	if err != nil {
		t.Skip(err)
	}
}

func TestFilesComeAmongCredentials(t *testing.T) {
	for name, option := range map[string]int{
		"credentials": unix.SO_PASSCRED, "security label": unix.SO_PASSSEC, "pidfd": unix.SO_PASSPIDFD,
	} {
		t.Run(name, func(t *testing.T) {
			checkDescriptors(t)
			from, to := newPairT(t)
			passAlong(t, to, option)
			r, w := newPipes(t, 2)
			for _, max := range []int{2, 1, 0} {
				if _, err := from.WriteFiles([]byte("x"), w...); err != nil {
					t.Fatal(err)
				}
				before := countDescriptors(t)
				_, files, err := to.ReadFiles(make([]byte, 1), max)
				if (err == nil) != (max == 2) || (len(files) == 2) != (max == 2) {
					t.Errorf("max %d of 2: %d files, %v", max, len(files), err)
				}
				closeFiles(files)
				if after := countDescriptors(t); after > before {
					t.Errorf("max %d of 2: %d descriptors were open, %d are", max, before, after)
				}
			}
			if _, err := from.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if n, files, err := to.ReadFiles(make([]byte, 1), 0); n != 1 || files != nil || err != nil {
				t.Errorf("without files: %d bytes, %v, %v", n, files, err)
			}
			closeFiles(w)
			wantAllClosed(t, r)
		})
	}
}
