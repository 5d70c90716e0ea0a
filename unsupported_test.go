//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd)

package unixsock_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/go-unixsock/unixsock"
)

func TestEveryConstructorIsUnsupported(t *testing.T) {
	if unixsock.Available || unixsock.ValidPath("s") || unixsock.ValidPath(unixsock.Abstract("s")) {
		t.Error("sockets are available, or a path is valid")
	}
	unit := unixsock.NewTCPUnit("s")
	for name, f := range map[string]func() error{
		"CheckPath":      func() error { return unixsock.CheckPath("s") },
		"Connect":        func() error { _, err := unixsock.Connect("s"); return err },
		"ConnectContext": func() error { _, err := unixsock.ConnectContext(context.Background(), "s"); return err },
		"Listen":         func() error { _, err := unixsock.Listen("s"); return err },
		"Pair":           func() error { _, _, err := unixsock.Pair(); return err },
		"FileConn":       func() error { _, err := unixsock.FileConn(os.Stdin); return err },
		"FileListener":   func() error { _, err := unixsock.FileListener(os.Stdin); return err },
		"TCPUnit.Listen": func() error { _, err := unit.Listen("tcp", ":0"); return err },
		"TCPUnit.Dial":   func() error { _, err := unit.Dial("tcp", ":0"); return err },
	} {
		if err := f(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
